//! Set-up: finds out what this machine lacks for a command and installs it where it may (Debian or Ubuntu, as root);
//! elsewhere it says exactly what to install. Running it again changes nothing.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use crate::engine::{Engine, Unusable};
use crate::opencode::Program;
use crate::paths::Paths;
use crate::term::Step;
use crate::{apt, engine, opencode, process, term};

/// What the calling command cannot do without.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Everything a developer uses; nothing may be missing.
    Everything,
    /// An engine, to build the image.
    Image,
    /// OpenCode and, if possible, an engine.
    Run,
}

/// What set-up found or made.
pub struct Ready {
    /// The engine, or why there is none (only with [`Need::Run`]).
    pub engine: Result<Engine, Unusable>,
    /// The verified OpenCode program.
    pub opencode: Program,
}

/// Something to install, under the name each packager gives it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Package {
    what: &'static str,
    apt: &'static str,
    dnf: &'static str,
    pacman: &'static str,
    brew: &'static str,
}

const COMPILER: Package = Package { what: "a C linker", apt: "gcc", dnf: "gcc", pacman: "gcc", brew: "gcc" };
const STATIC_LIBC: Package = Package { what: "the static C library", apt: "libc6-dev", dnf: "glibc-static", pacman: "glibc", brew: "" };
const GIT: Package = Package { what: "git", apt: "git", dnf: "git", pacman: "git", brew: "git" };
const RIPGREP: Package = Package { what: "ripgrep", apt: "ripgrep", dnf: "ripgrep", pacman: "ripgrep", brew: "ripgrep" };
const NPM: Package = Package { what: "npm, to fetch OpenCode", apt: "npm", dnf: "npm", pacman: "npm", brew: "node" };
const PYTHON: Package =
    Package { what: "python3, for stand-ins in tests", apt: "python3", dnf: "python3", pacman: "python", brew: "python" };
const DOCKER: Package = Package { what: "Docker", apt: "docker.io", dnf: "moby-engine", pacman: "docker", brew: "" };
/// Newer Debian has the `docker` program in a package of its own.
const DOCKER_PROGRAM: &str = "docker-cli";

/// Makes the machine ready for a command.
pub fn setup(paths: &Paths, need: Need) -> Result<Ready> {
    let step = Step::begin("check this machine");
    let mut engine = engine::probe()?;
    let opencode = opencode::installed(paths)?;
    let mut missing = missing_tools(need, engine.is_ok(), opencode.is_some());
    if engine_is_missing(&engine) {
        missing.push(DOCKER);
    }
    if need == Need::Everything {
        check_rust_tools()?;
    }
    step.done();

    if !missing.is_empty() {
        if geteuid().is_root() && apt::is_debian_family() {
            if let Err(error) = install(paths, &missing) {
                // `run` can do without Docker, so only what else is missing now is fatal.
                if need != Need::Run || !missing_tools(need, false, opencode.is_some()).is_empty() {
                    return Err(error);
                }
                term::warn(&format!("{error:#}"));
            }
            engine = engine::probe()?;
        } else {
            explain(need, &missing)?;
        }
    }
    if let Err(Unusable::NoAnswer(_)) = &engine
        && geteuid().is_root()
        && !engine::is_chosen()
        && process::find("dockerd").is_some()
    {
        engine = match engine::start(paths) {
            Err(error) if need == Need::Run => Err(Unusable::NoAnswer(format!("{error:#}"))),
            started => Ok(started?),
        };
    }
    match &engine {
        Ok(engine) => term::note(&format!("Docker {}", engine.version)),
        Err(why) if need == Need::Run => term::warn(&format!("{why}")),
        Err(why) => bail!("this command needs a container engine: {why}"),
    }
    let opencode = match opencode {
        Some(program) => program,
        None => opencode::install(paths)?,
    };
    term::note(&format!("OpenCode {}", opencode.version));
    Ok(Ready { engine, opencode })
}

fn missing_tools(need: Need, engine: bool, opencode: bool) -> Vec<Package> {
    let linux = std::env::consts::OS == "linux";
    let mut missing = Vec::new();
    let mut want = |package: Package, present: bool| {
        if !present {
            missing.push(package);
        }
    };
    want(COMPILER, process::find("cc").is_some());
    want(GIT, process::find("git").is_some());
    want(STATIC_LIBC, !linux || has_static_libc());
    want(NPM, opencode || process::find("npm").is_some());
    // OpenCode's search needs it: in the image it is there, on the machine itself only these need it.
    let searches_here = need == Need::Everything || (need == Need::Run && !engine);
    want(PYTHON, need != Need::Everything || process::find("python3").is_some());
    want(RIPGREP, !searches_here || process::find("rg").is_some());
    missing
}

/// Whether installing would help: not when an engine is there but closed, of the wrong kind, or chosen by the user.
fn engine_is_missing(engine: &Result<Engine, Unusable>) -> bool {
    match engine {
        Err(Unusable::NoProgram) => true,
        Err(Unusable::NoAnswer(_)) => !engine::is_chosen() && process::find("dockerd").is_none(),
        Ok(_) | Err(Unusable::NoPermission | Unusable::OtherPlatform(_) | Unusable::NotLinux) => false,
    }
}

/// The compiler prints a path if it has the archive, and the bare name if not.
fn has_static_libc() -> bool {
    let mut command = Command::new("cc");
    command.arg("-print-file-name=libc.a");
    process::capture(Duration::from_secs(20), command).is_ok_and(|answer| answer.stdout.trim().contains('/'))
}

fn check_rust_tools() -> Result<()> {
    for component in ["rustfmt", "clippy"] {
        let mut command = Command::new(crate::build::cargo());
        command.args([if component == "rustfmt" { "fmt" } else { component }, "--version"]);
        let answer = process::capture(Duration::from_secs(60), command).context("ask cargo for its tools")?;
        if !answer.status.success() {
            bail!("{component} is missing; install it with `rustup component add {component}`");
        }
    }
    Ok(())
}

fn install(paths: &Paths, missing: &[Package]) -> Result<()> {
    apt::update(paths);
    let mut packages: Vec<&str> = missing.iter().map(|package| package.apt).collect();
    if missing.contains(&DOCKER) && process::find("docker").is_none() && apt::knows(DOCKER_PROGRAM) {
        packages.push(DOCKER_PROGRAM);
    }
    apt::install(paths, &packages)
}

/// Says what to install; an error unless the command can go on without it.
fn explain(need: Need, missing: &[Package]) -> Result<()> {
    let instructions = instructions(missing, |packager| process::find(packager).is_some());
    let dispensable = need == Need::Run && missing.iter().all(|package| *package == DOCKER);
    if dispensable {
        term::warn(&instructions);
        return Ok(());
    }
    bail!("{instructions}")
}

fn instructions(missing: &[Package], has: impl Fn(&str) -> bool) -> String {
    let what = missing.iter().map(|package| package.what).collect::<Vec<_>>().join(", ");
    type Name = fn(&Package) -> &'static str;
    let packagers: [(&str, &str, Name); 4] = [
        ("apt-get", "sudo apt-get install -y", |package| package.apt),
        ("dnf", "sudo dnf install -y", |package| package.dnf),
        ("pacman", "sudo pacman -S", |package| package.pacman),
        ("brew", "brew install", |package| package.brew),
    ];
    match packagers.iter().find(|(program, ..)| has(program)) {
        Some((_, command, name)) => {
            let names = missing.iter().map(name).filter(|name| !name.is_empty()).collect::<Vec<_>>().join(" ");
            format!("this machine lacks {what}; install with: {command} {names}")
        }
        None => format!("this machine lacks {what}; install them with your system's packages"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_name_the_packages_of_the_system_at_hand() {
        let missing = [NPM, STATIC_LIBC];
        let apt = instructions(&missing, |packager| packager == "apt-get");
        assert!(apt.ends_with("sudo apt-get install -y npm libc6-dev"), "{apt}");
        let brew = instructions(&missing, |packager| packager == "brew");
        assert!(brew.ends_with("brew install node"), "{brew}");
        assert!(instructions(&missing, |_| false).contains("the static C library"));
    }

    #[test]
    fn only_run_goes_on_without_docker() {
        assert!(explain(Need::Run, &[DOCKER]).is_ok());
        assert!(explain(Need::Run, &[DOCKER, GIT]).is_err());
        assert!(explain(Need::Everything, &[DOCKER]).is_err());
        assert!(explain(Need::Image, &[DOCKER]).is_err());
    }

    #[test]
    fn an_engine_that_is_there_but_closed_is_not_installed_again() {
        assert!(engine_is_missing(&Err(Unusable::NoProgram)));
        assert!(!engine_is_missing(&Err(Unusable::NoPermission)));
        assert!(!engine_is_missing(&Err(Unusable::NotLinux)));
    }
}
