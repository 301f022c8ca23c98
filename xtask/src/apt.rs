//! Debian and Ubuntu: whether packages can be installed here, installing them, and the mirrors this machine uses.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::paths::Paths;
use crate::{process, term};

/// The lists are some ten megabytes.
const UPDATE_LIMIT: Duration = Duration::from_secs(600);
/// The largest set, npm from Debian's own packages, takes minutes on a small machine.
const INSTALL_LIMIT: Duration = Duration::from_secs(1_800);
/// Debian's archive and its security updates, for machines whose sources name none (Ubuntu).
const ARCHIVE_VARIABLE: &str = "OPENAGENT_DEBIAN_MIRROR";
const SECURITY_VARIABLE: &str = "OPENAGENT_DEBIAN_SECURITY_MIRROR";

static UPDATE: Once = Once::new();

/// Where Debian's packages come from.
#[derive(Debug, PartialEq, Eq)]
pub struct Mirrors {
    /// The archive itself.
    pub archive: String,
    /// The security updates.
    pub security: String,
}

/// Whether this is Debian or a child of it.
pub fn is_debian_family() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    process::find("apt-get").is_some() && families(&release).iter().any(|family| family == "debian")
}

/// Whether this is Debian itself, so that its sources name Debian's archive.
pub fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    families(&release).first().is_some_and(|family| family == "debian")
}

/// `ID` first, then `ID_LIKE`, from os-release(5).
fn families(release: &str) -> Vec<String> {
    let value = |key: &str| release.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim_matches('"').to_owned();
    let like = value("ID_LIKE=");
    std::iter::once(value("ID=")).chain(like.split_whitespace().map(str::to_owned)).collect()
}

/// Reads the package lists, once per run; needs root.
pub fn update(paths: &Paths) {
    UPDATE.call_once(|| {
        let mut update = apt_get();
        update.args(["update", "--quiet"]);
        // One broken third-party source fails the update but need not concern our packages.
        if let Err(error) = process::quiet("read the package lists", &paths.log("apt-update"), UPDATE_LIMIT, update) {
            term::warn(&format!("{error:#}"));
        }
    });
}

/// Installs packages; needs root.
pub fn install(paths: &Paths, packages: &[&str]) -> Result<()> {
    update(paths);
    let mut install = apt_get();
    install.args(["install", "--quiet", "--yes", "--no-install-recommends"]).args(packages);
    process::quiet(&format!("install {}", packages.join(", ")), &paths.log("apt-install"), INSTALL_LIMIT, install)
}

/// Whether apt knows a package of this name that can be installed.
pub fn knows(package: &str) -> bool {
    let mut policy = Command::new("apt-cache");
    policy.args(["policy", package]).env("LC_ALL", "C");
    process::capture(Duration::from_secs(60), policy)
        .is_ok_and(|policy| policy.stdout.lines().any(|line| line.trim().starts_with("Candidate:") && !line.contains("(none)")))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=300"]);
    command
}

/// The mirrors that the user names, else those of this machine.
///
/// # Errors
/// That there are none, and what to set.
pub fn mirrors() -> Result<Mirrors> {
    if let (Ok(archive), Ok(security)) = (std::env::var(ARCHIVE_VARIABLE), std::env::var(SECURITY_VARIABLE)) {
        return Ok(Mirrors { archive, security });
    }
    let mut sources = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let mut stanzas = String::new();
    let mut files: Vec<_> = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|file| file.path()).collect();
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let target = if has_ending(&file, "sources") { &mut stanzas } else { &mut sources };
        if has_ending(&file, "sources") || has_ending(&file, "list") {
            target.push('\n');
            target.push_str(&text);
            target.push('\n');
        }
    }
    let found = if is_debian() { parse_mirrors(&sources, &stanzas) } else { None };
    found.with_context(|| format!("this machine's package sources name no Debian archive; set {ARCHIVE_VARIABLE} and {SECURITY_VARIABLE}"))
}

fn has_ending(file: &Path, ending: &str) -> bool {
    file.extension().is_some_and(|actual| actual == ending)
}

/// Reads one-line sources and deb822 stanzas (sources.list(5)). Debian's archive is the source with the component `main`
/// and a Debian suite; its security updates are in suites that end in `-security`.
fn parse_mirrors(one_line: &str, deb822: &str) -> Option<Mirrors> {
    let sources: Vec<(String, Vec<String>)> = one_line.lines().filter_map(one_line_source).chain(deb822_sources(deb822)).collect();
    let find = |wanted: fn(&str) -> bool| {
        sources.iter().find(|(_, suites)| suites.iter().any(|suite| wanted(suite))).map(|(uri, _)| uri.trim_end_matches('/').to_owned())
    };
    Some(Mirrors { archive: find(is_archive_suite)?, security: find(|suite| suite.ends_with("-security"))? })
}

/// Suites of Debian's own archive. The names keep third-party sources out, which call theirs `stable` or by the product.
fn is_archive_suite(suite: &str) -> bool {
    ["bookworm", "trixie", "forky", "sid", "bullseye"].contains(&suite)
}

fn one_line_source(line: &str) -> Option<(String, Vec<String>)> {
    let mut rest = line.split('#').next()?.trim().strip_prefix("deb ")?.trim_start();
    if rest.starts_with('[') {
        rest = rest.split_once(']')?.1;
    }
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    (is_web(uri) && words.any(|component| component == "main")).then(|| (uri.to_owned(), vec![suite.to_owned()]))
}

fn deb822_sources(text: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let mut stanza: BTreeMap<String, String> = BTreeMap::new();
    let mut field = String::new();
    for line in text.lines().chain([""]) {
        if line.trim().is_empty() {
            let words = |key: &str| stanza.get(key).map(String::as_str).unwrap_or_default().split_whitespace().map(str::to_owned);
            let enabled = stanza.get("enabled").is_none_or(|value| value.trim() != "no");
            if enabled && words("types").any(|kind| kind == "deb") && words("components").any(|component| component == "main") {
                found.extend(words("uris").find(|uri| is_web(uri)).map(|uri| (uri, words("suites").collect())));
            }
            stanza.clear();
        } else if line.starts_with('#') {
            continue;
        } else if line.starts_with([' ', '\t']) {
            stanza.entry(field.clone()).or_default().push_str(line);
        } else if let Some((key, value)) = line.split_once(':') {
            field = key.trim().to_ascii_lowercase();
            stanza.insert(field.clone(), value.trim().to_owned());
        }
    }
    found
}

fn is_web(uri: &str) -> bool {
    uri.starts_with("http://") || uri.starts_with("https://")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors(archive: &str, security: &str) -> Option<Mirrors> {
        Some(Mirrors { archive: archive.to_owned(), security: security.to_owned() })
    }

    #[test]
    fn mirrors_are_read_from_deb822_stanzas() {
        let text = "Types: deb\nURIs: https://example.org/node\nSuites: nodistro\nComponents: main\n\n\
                    Types: deb deb-src\n# a comment\nURIs: http://mirror.test/debian/\nSuites: bookworm\n bookworm-updates\nComponents: main contrib\n\n\
                    Types: deb\nURIs: http://mirror.test/security\nSuites: bookworm-security\nComponents: main\n";
        assert_eq!(parse_mirrors("", text), mirrors("http://mirror.test/debian", "http://mirror.test/security"));
    }

    #[test]
    fn mirrors_are_read_from_one_line_sources() {
        let text = "# deb http://old.test/debian bookworm main\n\
                    deb [signed-by=/usr/share/keyrings/a.gpg arch=amd64] http://mirror.test/debian trixie main # why\n\
                    deb-src http://mirror.test/src trixie main\n\
                    deb http://mirror.test/security trixie-security main\n";
        assert_eq!(parse_mirrors(text, ""), mirrors("http://mirror.test/debian", "http://mirror.test/security"));
    }

    #[test]
    fn sources_that_are_disabled_local_or_foreign_are_passed_over() {
        let stanzas = "Enabled: no\nTypes: deb\nURIs: http://off.test/debian\nSuites: bookworm\nComponents: main\n";
        let lines = "deb file:/srv/debian bookworm main\ndeb https://vendor.test/apt stable main\n";
        assert_eq!(parse_mirrors(lines, stanzas), None);
    }

    #[test]
    fn the_family_is_read_from_os_release() {
        assert_eq!(families("NAME=\"Ubuntu\"\nID=ubuntu\nID_LIKE=debian\n"), ["ubuntu", "debian"]);
        assert_eq!(families("VERSION_ID=\"12\"\nID=debian\n"), ["debian"]);
        assert_eq!(families("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), ["rocky", "rhel", "centos", "fedora"]);
    }
}
