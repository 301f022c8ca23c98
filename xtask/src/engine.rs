//! The container engine as xtask sees it, through the `docker` program: is one there, start one, ask it about images and
//! about what our sessions left behind.
//!
//! Invariant: an engine that xtask started is written down in `target/openagent/engine.started` (`pid N` or `systemd`),
//! so that whoever called xtask can stop it again; an engine that was up before never is.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fmt};

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::process;
use crate::term::{self, Step};

/// Label that every container, network and volume of a session carries.
const SESSION_LABEL: &str = "dev.openagent.session";
/// One question to the engine; a busy one may take seconds.
const QUESTION_LIMIT: Duration = Duration::from_secs(60);
/// A first start creates the engine's storage.
const START_LIMIT: Duration = Duration::from_secs(90);
const START_POLL: Duration = Duration::from_millis(250);
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
const PID_FILES: [&str; 2] = ["/var/run/docker.pid", "/run/docker.pid"];

/// An engine that answers and can run our image.
pub struct Engine {
    /// Its version, for the user.
    pub version: String,
    /// `DOCKER_HOST` for the programs that know nothing of the `docker` program's contexts; `None` if it is the default.
    pub host: Option<String>,
}

/// Why no engine can be used.
#[derive(Debug, PartialEq, Eq)]
pub enum Unusable {
    /// There is no `docker` program.
    NoProgram,
    /// The engine's socket is closed to this user.
    NoPermission,
    /// Nothing answers; the text is the program's own.
    NoAnswer(String),
    /// It runs containers of another platform than the sidecar is built for.
    OtherPlatform(String),
    /// This machine cannot build the Linux sidecar.
    NotLinux,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoProgram => write!(f, "Docker is not installed"),
            Self::NoPermission => write!(
                f,
                "this user may not use Docker; run `sudo usermod -aG docker $USER` and log in again (members of that group are as mighty as root)"
            ),
            Self::NoAnswer(text) => write!(f, "Docker does not answer: {text}"),
            Self::OtherPlatform(platform) => {
                write!(f, "Docker runs {platform} containers, this machine builds for linux/{}", go_arch(env::consts::ARCH))
            }
            Self::NotLinux => write!(f, "the programs inside the container are built on Linux only so far"),
        }
    }
}

/// Names of containers, networks and volumes that belong to sessions.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Belongings(BTreeSet<String>);

impl Belongings {
    /// What is here but was not there before.
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// Asks for the engine.
pub fn probe() -> Result<Result<Engine, Unusable>> {
    if env::consts::OS != "linux" {
        return Ok(Err(Unusable::NotLinux));
    }
    if process::find("docker").is_none() {
        return Ok(Err(Unusable::NoProgram));
    }
    let mut version = docker();
    version.args(["version", "--format", "{{json .Server}}"]);
    let answer = match process::capture(QUESTION_LIMIT, version) {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(Unusable::NoAnswer(format!("{error:#}")))),
    };
    if !answer.status.success() {
        return Ok(Err(refusal(&answer.stderr)));
    }
    let server: serde_json::Value = serde_json::from_str(&answer.stdout).context("read the answer of `docker version`")?;
    let word = |key: &str| server.get(key).and_then(|value| value.as_str()).unwrap_or("unknown").to_owned();
    let platform = format!("{}/{}", word("Os"), word("Arch"));
    if platform != format!("linux/{}", go_arch(env::consts::ARCH)) {
        return Ok(Err(Unusable::OtherPlatform(platform)));
    }
    Ok(Ok(Engine { version: word("Version"), host: context_host() }))
}

/// Whether the user points at one particular engine, in which case starting another would be wrong.
pub fn is_chosen() -> bool {
    env::var_os("DOCKER_HOST").is_some_and(|host| host != DEFAULT_HOST)
}

/// The `docker` program.
pub fn docker() -> Command {
    let mut command = Command::new("docker");
    // Builders of other kinds keep their images to themselves; this one uses the engine's.
    command.env("BUILDX_BUILDER", "default");
    command
}

/// The id of a local image, if there is one of this name.
pub fn image_id(name: &str) -> Result<Option<String>> {
    let mut inspect = docker();
    inspect.args(["image", "inspect", "--format", "{{.Id}}", name]);
    let answer = process::capture(QUESTION_LIMIT, inspect)?;
    if answer.status.success() {
        return Ok(Some(answer.stdout.trim().to_owned()));
    }
    if answer.stderr.to_ascii_lowercase().contains("no such image") {
        return Ok(None);
    }
    bail!("look for the image {name}: {}", answer.stderr.trim())
}

/// Runs a short `docker` command and returns its stdout.
pub fn ask(arguments: &[&str]) -> Result<String> {
    let mut command = docker();
    command.args(arguments);
    let answer = process::capture(QUESTION_LIMIT, command)?;
    if !answer.status.success() {
        bail!("`docker {}` failed: {}", arguments.join(" "), answer.stderr.trim());
    }
    Ok(answer.stdout)
}

/// What sessions have in the engine right now.
pub fn belongings() -> Result<Belongings> {
    let label = format!("label={SESSION_LABEL}");
    let questions: [(&str, &[&str]); 3] = [
        ("container", &["ps", "--all", "--format", "{{.Names}}"]),
        ("network", &["network", "ls", "--format", "{{.Name}}"]),
        ("volume", &["volume", "ls", "--format", "{{.Name}}"]),
    ];
    let mut found = BTreeSet::new();
    for (kind, question) in questions {
        let names = ask(&[question, &["--filter", &label]].concat())?;
        found.extend(names.lines().map(|name| format!("{kind} {name}")));
    }
    Ok(Belongings(found))
}

/// Starts the installed engine and waits until it answers; writes down that it was us.
pub fn start(paths: &Paths) -> Result<Engine> {
    let step = Step::begin("start Docker");
    fs::create_dir_all(paths.own()).with_context(|| format!("create {}", paths.own().display()))?;
    let log = paths.own().join("dockerd.log");
    let mut child = None;
    let mark = if Path::new("/run/systemd/system").exists() {
        let mut systemctl = Command::new("systemctl");
        systemctl.args(["start", "docker"]);
        let answer = process::capture(START_LIMIT, systemctl)?;
        if !answer.status.success() {
            bail!("`systemctl start docker` failed: {}", answer.stderr.trim());
        }
        "systemd".to_owned()
    } else if let Some(pid) = running_pid() {
        // The package's own start script was faster.
        format!("pid {pid}")
    } else {
        let started = spawn_dockerd(&log)?;
        let mark = format!("pid {}", started.id());
        child = Some(started);
        mark
    };
    fs::write(paths.own().join("engine.started"), format!("{mark}\n")).context("write down that Docker was started")?;

    let started_at = Instant::now();
    loop {
        let state = probe()?;
        if let Ok(engine) = state {
            if mark.starts_with("pid") {
                term::note(&format!("dockerd runs as {mark} until it is stopped with `kill`, log: {}", log.display()));
            }
            step.done();
            return Ok(engine);
        }
        if let Some(status) = child.as_mut().map(Child::try_wait).transpose().context("look after dockerd")?.flatten() {
            bail!("dockerd ended ({status}); its last lines, from {}:\n{}", log.display(), process::tail(&log, 15));
        }
        if started_at.elapsed() > START_LIMIT {
            bail!(
                "dockerd does not answer after {} s; its last lines, from {}:\n{}",
                START_LIMIT.as_secs(),
                log.display(),
                process::tail(&log, 15)
            );
        }
        std::thread::park_timeout(START_POLL);
    }
}

/// Detached, so that it outlives this program and the terminal.
fn spawn_dockerd(log: &Path) -> Result<Child> {
    let program = process::find("dockerd").context("dockerd is not installed")?;
    let output = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let errors = output.try_clone().context("share the log of dockerd")?;
    Command::new(program).stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0).spawn().context("start dockerd")
}

fn running_pid() -> Option<u32> {
    let pid: u32 = PID_FILES.iter().find_map(|file| fs::read_to_string(file).ok())?.trim().parse().ok()?;
    let program = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (program.trim() == "dockerd").then_some(pid)
}

fn refusal(stderr: &str) -> Unusable {
    if stderr.to_ascii_lowercase().contains("permission denied") {
        return Unusable::NoPermission;
    }
    Unusable::NoAnswer(stderr.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given").trim().to_owned())
}

fn context_host() -> Option<String> {
    if env::var_os("DOCKER_HOST").is_some() {
        return None;
    }
    let host = ask(&["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]).ok()?.trim().to_owned();
    (!host.is_empty() && host != DEFAULT_HOST).then_some(host)
}

/// A processor's name as Docker writes it.
fn go_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_docker_program_are_told_apart() {
        let closed = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: connect: ...";
        assert_eq!(refusal(closed), Unusable::NoPermission);
        let down = "\nCannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?\n";
        assert!(matches!(refusal(down), Unusable::NoAnswer(text) if text.starts_with("Cannot connect")));
        assert_eq!(refusal(""), Unusable::NoAnswer("no reason given".to_owned()));
    }

    #[test]
    fn only_what_is_new_counts_as_left_behind() {
        let set = |names: &[&str]| Belongings(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(set(&["container a", "volume b"]).since(&set(&["volume b", "volume c"])), ["container a"]);
    }
}
