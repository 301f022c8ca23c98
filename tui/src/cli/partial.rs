//! Files that are whole under their name or not there at all: archives and backups.
//!
//! What is written stands next to its place and takes its name only once it is whole and on the disk.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Failure, usage};
use crate::client::{ClientError, Kind};

/// The refusal to write over a file.
pub(super) fn exists(path: &Path) -> Failure {
    ClientError::new(Kind::Conflict, format!("{} exists", path.display()), "choose another name, or overwrite it with --force").into()
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    ClientError::new(Kind::Failed, format!("{} cannot be written: {error}", path.display()), "").into()
}

/// A file that is not whole yet; removed unless it is finished.
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    finished: bool,
}

impl Partial {
    /// Begins a file that is to become `target`; only its owner can read it.
    pub(super) fn create(target: &Path) -> Result<Self, Failure> {
        let name = target.file_name().ok_or_else(|| usage(format!("{} is not a file name", target.display()), ""))?;
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}.partial", std::process::id()));
        let path = target.with_file_name(partial);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(|error| unwritable(&path, &error))?;
        Ok(Self { file, path, finished: false })
    }

    /// Adds `bytes` at the end.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| unwritable(&self.path, &error))
    }

    /// Puts it to its place, where only with `force` a file may stand.
    pub(super) fn finish(mut self, target: &Path, force: bool) -> Result<(), Failure> {
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
            // What cannot be removed is at least not under the file's name.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_given_up_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.zip");
        let mut partial = Partial::create(&target).unwrap();
        partial.write(b"half").unwrap();
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
        partial.write(b"whole").unwrap();
        partial.finish(&target, true).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
