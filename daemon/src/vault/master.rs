//! The master key file.
//!
//! It is outside the store's folder, so that a copy of the store alone opens nothing. It is made whole or not at all, never over another
//! file, and refused when others could have read it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use openagent_core::envelope::MasterKey;
use zeroize::Zeroizing;

use super::VaultError;

/// Reads the master key; `None` when there is no file.
pub(super) fn read(path: &Path) -> Result<Option<MasterKey>, VaultError> {
    let io = |source| VaultError::MasterKeyFile { path: path.to_owned(), source };
    // O_NOFOLLOW and O_NONBLOCK: neither a link nor a pipe in its place is followed or waited for.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let found = file.metadata().map_err(io)?;
    let refuse = |why| VaultError::MasterKeyUnsafe { path: path.to_owned(), why };
    if !found.is_file() {
        return Err(refuse("is not a plain file"));
    }
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(refuse("belongs to another user"));
    }
    if found.mode() & 0o077 != 0 {
        return Err(refuse("can be read or written by others"));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MasterKey::BYTES + 1));
    (&file).take(MasterKey::BYTES as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    let key = MasterKey::from_bytes(&bytes).ok_or(VaultError::MasterKeyDamaged { path: path.to_owned(), bytes: found.len() })?;
    Ok(Some(key))
}

/// Makes the file with a new key, unless it came to exist meanwhile; then that one counts.
pub(super) fn create(path: &Path) -> Result<MasterKey, VaultError> {
    let io = |source| VaultError::MasterKeyFile { path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
    let draft = draft_path(path);
    let outcome = write_draft(&draft).and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    let cleaned = fs::remove_file(&draft);
    outcome.and(cleaned).and_then(|()| File::open(folder)?.sync_all()).map_err(io)?;
    read(path)?.ok_or_else(|| io(io::ErrorKind::NotFound.into()))
}

fn write_draft(draft: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    file.write_all(&MasterKey::generate().to_bytes())?;
    file.sync_all()
}

fn draft_path(path: &Path) -> PathBuf {
    path.with_added_extension(format!("{:016x}.new", u64::from_be_bytes(openagent_core::seal::random())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_file_is_private_complete_and_alone_in_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/master.key");
        assert!(read(&path).unwrap().is_none());
        let made = create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(read(&path).unwrap().unwrap().to_bytes(), made.to_bytes());
        assert_eq!(create(&path).unwrap().to_bytes(), made.to_bytes(), "an existing key is never replaced");
    }

    #[test]
    fn a_file_that_others_could_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        create(&path).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(read(&path), Err(VaultError::MasterKeyUnsafe { .. })), "{mode:o}");
        }
    }

    #[test]
    fn a_file_of_another_length_or_kind_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        create(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        for bytes in [&whole[..47], &[&whole[..], b"\n"].concat(), b""] {
            fs::write(&path, bytes).unwrap();
            assert!(matches!(read(&path), Err(VaultError::MasterKeyDamaged { .. })), "{} bytes", bytes.len());
        }
        let link = folder.path().join("link.key");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read(&link).is_err());
        assert!(read(folder.path()).is_err());
    }
}
