//! Builds the programs and stages them together: the daemon looks for the sidecar next to its own executable.
//!
//! On Linux the sidecar is linked statically against glibc, so that one binary runs in any image.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::paths::Paths;
use crate::{digest, process};

/// Which of cargo's profiles the programs are built with.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Quick to build; what the tests run.
    Debug,
    /// What a user runs.
    Release,
}

impl Profile {
    /// Name of cargo's output folder.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::Debug => "--profile=dev",
            Self::Release => "--profile=release",
        }
    }
}

const SIDECAR: &str = "openagent-sidecar";
const HOST_PROGRAMS: [&str; 2] = ["openagent", "openagentd"];

/// The cargo that runs us.
pub fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// A cargo command in the workspace.
pub fn cargo_command(paths: &Paths) -> Command {
    let mut command = Command::new(cargo());
    command.current_dir(&paths.root).env("CARGO_TARGET_DIR", &paths.target);
    command
}

/// Builds the sidecar and returns its file.
pub fn sidecar(paths: &Paths, profile: Profile) -> Result<PathBuf> {
    let mut build = cargo_command(paths);
    build.args(["build", profile.flag(), "--package", SIDECAR, "--bin", SIDECAR]);
    let mut output = paths.target.clone();
    if env::consts::OS == "linux" {
        let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
        let flags = env::var("RUSTFLAGS").unwrap_or_default();
        build.args(["--target", &triple]).env("RUSTFLAGS", format!("{flags} -C target-feature=+crt-static").trim_start());
        output.push(triple);
    }
    process::shown("build the sidecar", build)?;
    Ok(output.join(profile.folder()).join(SIDECAR))
}

/// Builds all three programs and stages them; returns the folder that holds them.
pub fn programs(paths: &Paths, profile: Profile) -> Result<PathBuf> {
    let mut build = cargo_command(paths);
    build.args(["build", profile.flag()]);
    for program in HOST_PROGRAMS {
        build.args(["--package", program, "--bin", program]);
    }
    process::shown("build the client and the daemon", build)?;
    let sidecar = sidecar(paths, profile)?;

    let staged = paths.own().join(profile.folder()).join("bin");
    fs::create_dir_all(&staged).with_context(|| format!("create {}", staged.display()))?;
    for program in HOST_PROGRAMS {
        place(&paths.target.join(profile.folder()).join(program), &staged.join(program))?;
    }
    place(&sidecar, &staged.join(SIDECAR))?;
    Ok(staged)
}

/// Copies a program if it differs. By rename, because the old one may be running.
pub fn place(from: &Path, to: &Path) -> Result<()> {
    if to.is_file() && digest::sha256_hex(from)? == digest::sha256_hex(to)? {
        return Ok(());
    }
    let folder = to.parent().context("a staged program has no folder")?;
    let copy = tempfile::NamedTempFile::new_in(folder).with_context(|| format!("create a file in {}", folder.display()))?;
    fs::copy(from, copy.path()).with_context(|| format!("copy {}", from.display()))?;
    copy.persist(to).with_context(|| format!("stage {}", to.display()))?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_staged_program_is_replaced_only_when_it_differs() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("built"), folder.path().join("staged"));
        fs::write(&from, "one").unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o755)).unwrap();
        place(&from, &to).unwrap();
        let first = fs::metadata(&to).unwrap();
        assert_eq!(first.permissions().mode() & 0o777, 0o755);
        place(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().ino(), first.ino());
        // A running program keeps its old file: the new one is another inode.
        let open = fs::File::open(&to).unwrap();
        fs::write(&from, "two").unwrap();
        place(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "two");
        assert_eq!(std::io::read_to_string(open).unwrap(), "one");
    }
}
