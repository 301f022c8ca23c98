//! Tar in, zip out.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::path::{Component, Path};

use openagent_core::session::{Fault, Session};
use openagent_core::time::Timestamp;
use openagent_core::usage::Usage;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tar::EntryType;
use zip::ZipWriter;
use zip::write::{SimpleFileOptions, StreamWriter};

use super::ChunkWriter;
use super::transcript::Transcript;

/// Entries of a workspace that are exported at most.
const ENTRIES_MAX: usize = 500_000;

/// Bytes of a workspace that are exported at most.
const BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;

/// What the manifest says of the session.
pub struct About {
    /// Its settings.
    pub session: Session,
    /// What it has cost.
    pub usage: Usage,
    /// When the archive is made.
    pub created_at: Timestamp,
}

#[derive(Serialize)]
struct Manifest<'a> {
    format: u32,
    created_at: String,
    openagent_version: &'static str,
    session: ManifestSession<'a>,
    files: Vec<FileEntry>,
    left_out: Vec<LeftOut>,
}

#[derive(Serialize)]
struct ManifestSession<'a> {
    id: &'a str,
    title: &'a str,
    model: &'a str,
    agent: &'a str,
    permission_mode: &'static str,
    created_at: String,
    usage: Usage,
}

#[derive(Serialize)]
struct FileEntry {
    path: String,
    size_bytes: u64,
    sha256: String,
}

#[derive(Serialize)]
struct LeftOut {
    path: String,
    reason: &'static str,
}

struct Archive {
    zip: ZipWriter<StreamWriter<ChunkWriter>>,
    files: Vec<FileEntry>,
    left_out: Vec<LeftOut>,
    names: HashSet<String>,
    bytes: u64,
    made_at: zip::DateTime,
}

fn broken(error: &io::Error) -> Fault {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Fault::new("CANCELLED", "the client went away", "");
    }
    tracing::warn!(%error, "an export failed");
    Fault::new("EXPORT_FAILED", "the workspace cannot be read to its end", "try again; look at the daemon's log")
}

fn zip_failed(error: zip::result::ZipError) -> Fault {
    broken(&error.into())
}

/// Writes the whole archive.
///
/// # Errors
/// `EXPORT_TOO_LARGE`, `EXPORT_FAILED`, `CANCELLED`.
pub(super) fn write(workspace: impl Read, transcript: &Transcript, about: &About, chunks: ChunkWriter) -> Result<(), Fault> {
    let made_at = u64::try_from(about.created_at.as_millis() / 1000).unwrap_or(0);
    let mut archive = Archive {
        zip: ZipWriter::new_stream(chunks),
        files: vec![],
        left_out: vec![],
        names: HashSet::new(),
        bytes: 0,
        made_at: zip_time(made_at),
    };
    archive.add_workspace(workspace)?;
    archive.add_bytes("transcript.md", transcript.markdown(about).as_bytes())?;
    archive.add_bytes("transcript.json", &transcript.json(about))?;
    archive.finish(about)
}

impl Archive {
    fn add_workspace(&mut self, workspace: impl Read) -> Result<(), Fault> {
        let mut tar = tar::Archive::new(workspace);
        let entries = tar.entries().map_err(|error| broken(&error))?;
        for (count, entry) in entries.enumerate() {
            if count >= ENTRIES_MAX {
                return Err(too_large());
            }
            let mut entry = entry.map_err(|error| broken(&error))?;
            let raw = entry.path_bytes().into_owned();
            let shown = String::from_utf8_lossy(&raw).into_owned();
            let name = match safe_name(&raw) {
                Ok(None) => continue,
                Ok(Some(name)) => format!("workspace/{name}"),
                Err(reason) => {
                    self.leave_out(shown, reason);
                    continue;
                }
            };
            if !self.names.insert(name.clone()) {
                self.leave_out(shown, "the name is there twice");
                continue;
            }
            let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
            let options = SimpleFileOptions::default().last_modified_time(zip_time(entry.header().mtime().unwrap_or(0)));
            match entry.header().entry_type() {
                EntryType::Directory => {
                    self.zip.add_directory(&name, options.unix_permissions(mode)).map_err(zip_failed)?;
                }
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    let size = entry.size();
                    self.bytes = self.bytes.saturating_add(size);
                    if self.bytes > BYTES_MAX {
                        return Err(too_large());
                    }
                    self.add(name, size, options.unix_permissions(mode), &mut entry)?;
                }
                EntryType::Symlink => {
                    let target = entry.link_name_bytes().map(|target| target.into_owned()).unwrap_or_default();
                    match safe_target(&name, &target) {
                        Some(target) => {
                            self.zip.add_symlink(&name, target, options).map_err(zip_failed)?;
                        }
                        None => self.leave_out(shown, "the link may point out of the workspace"),
                    }
                }
                EntryType::Link => self.leave_out(shown, "it is a hard link to another file of the workspace"),
                _ => self.leave_out(shown, "it is not a file, folder or link"),
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, path: String, reason: &'static str) {
        self.left_out.push(LeftOut { path: path.chars().take(1024).collect(), reason });
    }

    fn add_bytes(&mut self, name: &str, mut bytes: &[u8]) -> Result<(), Fault> {
        let size = bytes.len() as u64;
        let options = SimpleFileOptions::default().last_modified_time(self.made_at).unix_permissions(0o644);
        self.add(name.to_owned(), size, options, &mut bytes)
    }

    fn add(&mut self, name: String, size: u64, options: SimpleFileOptions, content: &mut impl Read) -> Result<(), Fault> {
        let options = options.large_file(size >= u64::from(u32::MAX));
        self.zip.start_file(&name, options).map_err(zip_failed)?;
        let mut digest = Sha256::new();
        let mut written = 0;
        let mut buffer = vec![0; super::CHUNK_BYTES];
        loop {
            let read = content.read(&mut buffer).map_err(|error| broken(&error))?;
            if read == 0 {
                break;
            }
            digest.update(&buffer[..read]);
            written += read as u64;
            self.zip.write_all(&buffer[..read]).map_err(|error| broken(&error))?;
        }
        self.files.push(FileEntry { path: name, size_bytes: written, sha256: hex::encode(digest.finalize()) });
        Ok(())
    }

    fn finish(mut self, about: &About) -> Result<(), Fault> {
        let session = &about.session;
        let manifest = Manifest {
            format: 1,
            created_at: about.created_at.to_string(),
            openagent_version: env!("CARGO_PKG_VERSION"),
            session: ManifestSession {
                id: session.id.as_str(),
                title: &session.title,
                model: &session.model,
                agent: &session.agent,
                permission_mode: session.permission_mode.name(),
                created_at: session.created_at.to_string(),
                usage: about.usage,
            },
            files: std::mem::take(&mut self.files),
            left_out: std::mem::take(&mut self.left_out),
        };
        let manifest = serde_json::to_vec_pretty(&manifest).expect("a manifest has only string keys");
        self.add_bytes("manifest.json", &manifest)?;
        let mut chunks = self.zip.finish().map_err(zip_failed)?.into_inner();
        chunks.send().map_err(|error| broken(&error))
    }
}

/// Seconds since the epoch as a zip archive writes them: UTC, within 1980 to 2107.
fn zip_time(seconds: u64) -> zip::DateTime {
    let at = i64::try_from(seconds).ok().and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok());
    let zip = at.and_then(|at| {
        let year = u16::try_from(at.year()).ok()?;
        zip::DateTime::from_date_and_time(year, at.month().into(), at.day(), at.hour(), at.minute(), at.second()).ok()
    });
    zip.unwrap_or_default()
}

fn too_large() -> Fault {
    Fault::new("EXPORT_TOO_LARGE", "the workspace has more than 500000 entries or 16 GiB", "remove what is not needed from it first")
}

/// The name of an entry below `workspace/`; `None` for the workspace itself.
fn safe_name(raw: &[u8]) -> Result<Option<String>, &'static str> {
    let text = std::str::from_utf8(raw).map_err(|_| "the name is not UTF-8")?;
    if text.chars().any(char::is_control) {
        return Err("the name has control characters");
    }
    if text.contains('\\') {
        return Err("the name has a backslash, which some systems take for a separator");
    }
    let mut parts = Vec::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().ok_or("the name is not UTF-8")?),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err("the name points out of the workspace"),
        }
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

/// The target of a link, if following it stays in the workspace.
fn safe_target(link: &str, raw: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(raw).ok()?;
    if target.is_empty() || target.contains('\\') || target.chars().any(char::is_control) {
        return None;
    }
    // The link stands this many folders below `workspace/`.
    let mut depth = link.split('/').count().checked_sub(2)?;
    let mut below = false;
    for component in Path::new(target).components() {
        match component {
            Component::Normal(_) => below = true,
            Component::CurDir => {}
            // The parent of what may be a link itself is anywhere; only the folders above this link are known to be folders.
            Component::ParentDir if below => return None,
            Component::ParentDir => depth = depth.checked_sub(1)?,
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(target.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_workspace_are_refused() {
        for bad in [&b"../x"[..], b"/etc/passwd", b"a/../../x", b"a\\..\\x", b"a\nb", b"\xff"] {
            assert!(safe_name(bad).is_err(), "{bad:?}");
        }
        assert_eq!(safe_name(b"./a/./b"), Ok(Some("a/b".to_owned())));
        assert_eq!(safe_name(b"./"), Ok(None));
    }

    #[test]
    fn links_stay_in_the_workspace() {
        assert!(safe_target("workspace/a/b", b"../c").is_some());
        // `here -> .` makes `here/here/../..` two folders above the workspace, whatever its names add up to.
        for bad in [&b"/etc"[..], b"../../c", b"x/../../../c", b"here/here/../..", b"", b"a\\b"] {
            assert_eq!(safe_target("workspace/a/b", bad), None, "{bad:?}");
        }
        assert_eq!(safe_target("workspace/b", b"../c"), None);
    }
}
