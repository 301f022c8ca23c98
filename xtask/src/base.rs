//! The base image: the public slim Debian where a registry can be reached, else one made from Debian's packages.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use crate::paths::Paths;
use crate::{apt, engine, process, term};

/// The public image, as in the Dockerfile's `BASE_IMAGE`.
const PUBLIC: &str = "debian:bookworm-slim";
/// Ours, where the public one cannot be had.
const OWN: &str = "openagent-base:bookworm";
const SUITE: &str = "bookworm";
/// 30 MB; behind a broken network the fallback should not have to wait long.
const PULL_LIMIT: Duration = Duration::from_secs(240);
/// Takes 20 s with a near mirror.
const MAKE_LIMIT: Duration = Duration::from_secs(1_200);

/// A local base image.
pub struct Base {
    /// Its name.
    pub name: &'static str,
    /// Its id, which changes with its content.
    pub id: String,
}

/// Finds, pulls or makes the base image; `fresh` asks for a newer one even if one is there.
pub fn ensure(paths: &Paths, fresh: bool) -> Result<Base> {
    if !fresh {
        for name in [PUBLIC, OWN] {
            if let Some(id) = engine::image_id(name)? {
                return Ok(Base { name, id });
            }
        }
    }
    let mut pull = engine::docker();
    pull.args(["pull", "--quiet", PUBLIC]);
    let name = match process::quiet(&format!("pull {PUBLIC}"), &paths.log("pull"), PULL_LIMIT, pull) {
        Ok(()) => PUBLIC,
        Err(_) => {
            term::note(&format!(
                "no registry has {PUBLIC} for us (see {}); making {OWN} from Debian's packages",
                paths.log("pull").display()
            ));
            make(paths)?;
            OWN
        }
    };
    let id = engine::image_id(name)?.with_context(|| format!("{name} was made, but the engine does not have it"))?;
    Ok(Base { name, id })
}

fn make(paths: &Paths) -> Result<()> {
    if process::find("mmdebstrap").is_none() {
        if !(geteuid().is_root() && apt::is_debian_family()) {
            bail!(
                "no base image: {PUBLIC} cannot be pulled, and making one needs mmdebstrap (Debian or Ubuntu: sudo apt-get install -y mmdebstrap); \
                 or load the image by hand with `docker load`"
            );
        }
        let keys: &[&str] = if apt::is_debian() { &[] } else { &["debian-archive-keyring"] };
        apt::install(paths, &[&["mmdebstrap"], keys].concat())?;
    }
    fs::create_dir_all(paths.own()).with_context(|| format!("create {}", paths.own().display()))?;
    let tarball =
        tempfile::Builder::new().prefix("base-").suffix(".tar").tempfile_in(paths.own()).context("create a file for the base image")?;
    let mut make = Command::new("mmdebstrap");
    let mirrors = apt::mirrors()?;
    make.args(arguments(&mirrors)).arg(SUITE).arg(tarball.path());
    make.args(sources(&mirrors));
    process::quiet("make a base image from Debian's packages", &paths.log("mmdebstrap"), MAKE_LIMIT, make)?;
    let mut import = engine::docker();
    import.args(["import", "--change", "CMD [\"bash\"]"]).arg(tarball.path()).arg(OWN);
    process::quiet("import the base image", &paths.log("import"), MAKE_LIMIT, import)
}

/// What makes the image slim: the same kinds of files that Debian's own slim image leaves out.
fn arguments(mirrors: &apt::Mirrors) -> Vec<String> {
    let mut arguments = vec!["--variant=minbase".to_owned(), "--aptopt=Apt::Install-Recommends \"false\"".to_owned()];
    for excluded in ["man", "locale", "info", "doc"] {
        arguments.push(format!("--dpkgopt=path-exclude=/usr/share/{excluded}/*"));
    }
    arguments.push("--dpkgopt=path-include=/usr/share/doc/*/copyright".to_owned());
    arguments.push("--customize-hook=rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/apt/*.bin \"$1\"/var/log/apt".to_owned());
    if mirrors.archive.starts_with("https://") || mirrors.security.starts_with("https://") {
        arguments.push("--include=ca-certificates".to_owned());
    }
    arguments
}

fn sources(mirrors: &apt::Mirrors) -> [String; 3] {
    let apt::Mirrors { archive, security } = mirrors;
    [format!("deb {archive} {SUITE} main"), format!("deb {archive} {SUITE}-updates main"), format!("deb {security} {SUITE}-security main")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_gets_security_updates_from_this_machines_mirrors() {
        let mirrors = apt::Mirrors { archive: "http://mirror.test/debian".to_owned(), security: "https://mirror.test/security".to_owned() };
        assert_eq!(
            sources(&mirrors),
            [
                "deb http://mirror.test/debian bookworm main",
                "deb http://mirror.test/debian bookworm-updates main",
                "deb https://mirror.test/security bookworm-security main"
            ]
        );
        assert!(arguments(&mirrors).contains(&"--include=ca-certificates".to_owned()));
    }

    #[test]
    fn the_dockerfile_names_the_same_public_image() {
        assert!(include_str!("../../docker/Dockerfile").contains(&format!("ARG BASE_IMAGE={PUBLIC}\n")));
    }
}
