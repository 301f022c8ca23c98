//! The pinned OpenCode program: fetched with the user's npm, verified against the digest in
//! `docker/opencode.lock.toml`, kept in the user's data folder.
//!
//! Invariant: a file at the final path was unpacked from a tarball whose digest matched the pin; a receipt next to it
//! holds the pin and the program's own digest, so that a changed pin or a changed file is noticed.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;

use crate::digest::{sha256_hex, verify};
use crate::paths::Paths;
use crate::{process, term};

/// A download of 60 MB; slow lines are no reason to give up early.
const FETCH_LIMIT: Duration = Duration::from_secs(900);
/// The program is 185 MB; more than this is not what was asked for.
const PROGRAM_MAX_BYTES: u64 = 1 << 30;
/// Where the program lies in the npm tarball.
const PROGRAM_IN_TARBALL: &str = "package/bin/opencode";

/// The lock file's content.
pub struct Lock {
    /// The one version that is run.
    pub version: String,
    pins: BTreeMap<String, Pin>,
}

/// Where the program of one platform comes from, and the digest its tarball must have.
#[derive(Debug, PartialEq, Eq)]
pub struct Pin {
    package: String,
    integrity: String,
}

/// The verified program on this machine.
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// SHA-256 of the executable, hexadecimal.
    pub sha256: String,
    /// Its version, as pinned.
    pub version: String,
}

impl Lock {
    /// Reads `docker/opencode.lock.toml`.
    pub fn load(paths: &Paths) -> Result<Self> {
        let file = paths.root.join("docker/opencode.lock.toml");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("read {}", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse().context("not valid TOML")?;
        let word = |table: &toml::Table, key: &str| {
            table.get(key).and_then(|value| value.as_str()).map(str::to_owned).with_context(|| format!("`{key}` is missing"))
        };
        let version = word(&table, "version")?;
        // It becomes a folder's name and a build argument.
        if version.is_empty() || !version.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')) {
            bail!("`version` has characters that no version has");
        }
        let mut pins = BTreeMap::new();
        for (platform, pin) in table.get("platform").and_then(|value| value.as_table()).context("`platform` is missing")? {
            let pin = pin.as_table().with_context(|| format!("platform {platform} is not a table"))?;
            let (package, integrity) = (word(pin, "package")?, word(pin, "integrity")?);
            pins.insert(platform.clone(), Pin { package, integrity });
        }
        Ok(Self { version, pins })
    }

    /// The pin of a platform as Rust names it (`linux`, `x86_64`).
    pub fn pin(&self, os: &str, arch: &str) -> Result<&Pin> {
        let os = if os == "macos" { "darwin" } else { os };
        let arch = match arch {
            "x86_64" => "x64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = format!("{os}-{arch}");
        self.pins.get(&platform).with_context(|| {
            format!("docker/opencode.lock.toml pins no OpenCode {} for {platform}; add its package and integrity", self.version)
        })
    }
}

/// Where the program of this version belongs.
pub fn path(paths: &Paths, version: &str) -> PathBuf {
    paths.data.join("opencode").join(version).join("opencode")
}

/// The program, if it is there and is what the pin says.
pub fn installed(paths: &Paths) -> Result<Option<Program>> {
    let lock = Lock::load(paths)?;
    let pin = lock.pin(std::env::consts::OS, std::env::consts::ARCH)?;
    let path = path(paths, &lock.version);
    let Ok(receipt) = fs::read_to_string(receipt(&path)) else { return Ok(None) };
    if !path.is_file() {
        return Ok(None);
    }
    let sha256 = sha256_hex(&path)?;
    if receipt != receipt_text(pin, &sha256) {
        term::warn(&format!("{} is not what was installed; fetching it again", path.display()));
        return Ok(None);
    }
    Ok(Some(Program { path, sha256, version: lock.version }))
}

/// Fetches, verifies and installs the program; a half-done install leaves nothing at the final path.
pub fn install(paths: &Paths) -> Result<Program> {
    let lock = Lock::load(paths)?;
    let pin = lock.pin(std::env::consts::OS, std::env::consts::ARCH)?;
    let path = path(paths, &lock.version);
    let folder = path.parent().context("the data folder has no parent")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;

    // An own empty folder: npm then takes the user's settings, and no project's.
    let download = tempfile::tempdir_in(folder).context("create a folder for the download")?;
    let mut npm = Command::new("npm");
    npm.args(["pack", "--silent", &format!("{}@{}", pin.package, lock.version)]).current_dir(download.path());
    process::quiet(&format!("fetch OpenCode {}", lock.version), &paths.log("npm"), FETCH_LIMIT, npm)?;
    let tarball = fs::read_dir(download.path())
        .context("list the download")?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|file| file.extension().is_some_and(|ending| ending == "tgz"))
        .context("npm pack left no tarball")?;

    verify(&tarball, &pin.integrity).with_context(|| format!("refused {}@{}: nothing was installed", pin.package, lock.version))?;
    unpack(&tarball, &path)?;
    let sha256 = sha256_hex(&path)?;
    fs::write(receipt(&path), receipt_text(pin, &sha256)).context("write the receipt of OpenCode")?;
    term::note(&format!("installed {}", path.display()));
    Ok(Program { path, sha256, version: lock.version })
}

fn receipt(program: &Path) -> PathBuf {
    program.with_extension("receipt")
}

fn receipt_text(pin: &Pin, sha256: &str) -> String {
    format!("{}\n{sha256}\n", pin.integrity)
}

fn unpack(tarball: &Path, path: &Path) -> Result<()> {
    let folder = path.parent().context("the program's path has no parent")?;
    let file = File::open(tarball).with_context(|| format!("open {}", tarball.display()))?;
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    for entry in archive.entries().context("read the tarball")? {
        let entry = entry.context("read the tarball")?;
        if entry.path().context("read the tarball")?.as_ref() != Path::new(PROGRAM_IN_TARBALL) {
            continue;
        }
        let size = entry.size();
        if size > PROGRAM_MAX_BYTES {
            bail!("{PROGRAM_IN_TARBALL} claims to be {size} bytes");
        }
        let mut program = tempfile::NamedTempFile::new_in(folder).context("create a temporary file")?;
        let copied = io::copy(&mut entry.take(PROGRAM_MAX_BYTES), &mut program).context("unpack OpenCode")?;
        if copied != size {
            bail!("{PROGRAM_IN_TARBALL} ends after {copied} of {size} bytes");
        }
        program.flush().context("unpack OpenCode")?;
        program.as_file().set_permissions(Permissions::from_mode(0o755)).context("make OpenCode executable")?;
        program.as_file().sync_all().context("write OpenCode to disk")?;
        program.persist(path).with_context(|| format!("install {}", path.display()))?;
        return Ok(());
    }
    bail!("the tarball holds no {PROGRAM_IN_TARBALL}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    const LOCK: &str = include_str!("../../docker/opencode.lock.toml");

    fn tarball(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
        let path = folder.join("program.tgz");
        let mut archive = tar::Builder::new(GzEncoder::new(File::create(&path).unwrap(), Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, name, content).unwrap();
        archive.into_inner().unwrap().finish().unwrap();
        path
    }

    #[test]
    fn the_lock_file_pins_every_platform_we_name() {
        let lock = Lock::parse(LOCK).unwrap();
        for (os, arch) in [("linux", "x86_64"), ("linux", "aarch64"), ("macos", "x86_64"), ("macos", "aarch64")] {
            let pin = lock.pin(os, arch).unwrap();
            let (algorithm, digest) = pin.integrity.split_once('-').unwrap();
            let expected = if algorithm == "sha512" { 64 } else { 32 };
            assert_eq!(STANDARD.decode(digest).unwrap().len(), expected, "{os} {arch}");
        }
    }

    #[test]
    fn a_platform_without_a_pin_is_refused_with_what_to_do() {
        let error = Lock::parse(LOCK).unwrap().pin("linux", "riscv64").unwrap_err().to_string();
        assert!(error.contains("linux-riscv64") && error.contains("opencode.lock.toml"), "{error}");
    }

    #[test]
    fn a_broken_lock_file_says_what_is_missing() {
        for (text, missing) in [
            ("", "version"),
            ("version = \"1.0\"", "platform"),
            ("version = \"../..\"\n[platform]", "version"),
            ("version = \"1.0\"\n[platform.linux-x64]\npackage = \"x\"", "integrity"),
        ] {
            let error = Lock::parse(text).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(missing), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_program_is_unpacked_executable_and_alone() {
        let folder = tempfile::tempdir().unwrap();
        let tarball = tarball(folder.path(), PROGRAM_IN_TARBALL, b"#!/bin/sh\n");
        let path = folder.path().join("opencode");
        unpack(&tarball, &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"#!/bin/sh\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_tarball_without_the_program_installs_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let tarball = tarball(folder.path(), "package/other", b"x");
        let path = folder.path().join("opencode");
        assert!(unpack(&tarball, &path).is_err());
        assert!(!path.exists());
    }
}
