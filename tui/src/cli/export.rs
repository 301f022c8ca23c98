//! Saving a session as a zip archive.
//!
//! The archive is written next to its place and takes its name only once it is whole and on the disk, so that a file with that name is
//! never half an archive.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::args::Export;
use super::{Done, Failure, OK, resolve, usage};
use crate::client::{Client, ClientError, ExportStream, Kind};
use crate::output::quantity::bytes;
use crate::output::{say, stderr_is_terminal};

pub(super) async fn export(client: &Client, export: Export) -> Done {
    if export.output.as_os_str() == "-" {
        if std::io::stdout().is_terminal() {
            return Err(usage("an archive is not written to a terminal", "name a file: openagent export ID -o FILE.zip"));
        }
        let id = resolve::session(client, &export.id).await?;
        let mut archive = client.export(&id).await?;
        while let Some(chunk) = archive.next().await? {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(&chunk)?;
        }
        std::io::stdout().flush()?;
        return Ok(OK);
    }
    if !export.force && export.output.symlink_metadata().is_ok() {
        return Err(exists(&export.output));
    }
    let id = resolve::session(client, &export.id).await?;
    let mut archive = client.export(&id).await?;
    let mut partial = Partial::create(&export.output)?;
    let size = tokio::select! {
        size = receive(&mut archive, &mut partial) => size?,
        _ = tokio::signal::ctrl_c() => return Err(ClientError::new(Kind::Failed, "interrupted; nothing was saved", "").into()),
    };
    partial.finish(&export.output, export.force)?;
    if stderr_is_terminal() {
        say(&format!("{} ({})", export.output.display(), bytes(size)));
    }
    Ok(OK)
}

async fn receive(archive: &mut ExportStream, partial: &mut Partial) -> Result<u64, Failure> {
    let mut size = 0;
    while let Some(chunk) = archive.next().await? {
        partial.file.write_all(&chunk).map_err(|error| unwritable(&partial.path, &error))?;
        size += chunk.len() as u64;
    }
    Ok(size)
}

fn exists(path: &Path) -> Failure {
    ClientError::new(Kind::Conflict, format!("{} exists", path.display()), "choose another name, or overwrite it with --force").into()
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    ClientError::new(Kind::Failed, format!("{} cannot be written: {error}", path.display()), "").into()
}

/// An archive that is not whole yet; removed unless it is finished.
struct Partial {
    file: File,
    path: PathBuf,
    finished: bool,
}

impl Partial {
    fn create(target: &Path) -> Result<Self, Failure> {
        let name = target.file_name().ok_or_else(|| usage(format!("{} is not a file name", target.display()), ""))?;
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}.partial", std::process::id()));
        let path = target.with_file_name(partial);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(|error| unwritable(&path, &error))?;
        Ok(Self { file, path, finished: false })
    }

    fn finish(mut self, target: &Path, force: bool) -> Result<(), Failure> {
        self.file.sync_all().map_err(|error| unwritable(&self.path, &error))?;
        if force {
            std::fs::rename(&self.path, target).map_err(|error| unwritable(target, &error))?;
            self.finished = true;
        } else {
            // A second name fails where a file came to be meanwhile; a rename would take its place.
            std::fs::hard_link(&self.path, target).map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => exists(target),
                _ => unwritable(target, &error),
            })?;
        }
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| unwritable(folder, &error))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // What cannot be removed is at least not under the archive's name.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_archive_that_is_given_up_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.zip");
        let mut partial = Partial::create(&target).unwrap();
        partial.file.write_all(b"half").unwrap();
        drop(partial);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_came_to_be_meanwhile_is_kept_unless_forced() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.zip");
        let partial = Partial::create(&target).unwrap();
        std::fs::write(&target, "mine").unwrap();
        assert!(partial.finish(&target, false).is_err());
        assert_eq!(std::fs::read(&target).unwrap(), b"mine");
        let mut partial = Partial::create(&target).unwrap();
        partial.file.write_all(b"whole").unwrap();
        partial.finish(&target, true).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
