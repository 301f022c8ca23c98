//! Folders in which sidecars make their sockets, one an instance: `<runtime_dir>/l/<id>/sidecar.sock`.
//!
//! Invariant: the folder that holds them all is for the daemon's user alone, so that what a sidecar makes inside its own is out of reach for
//! other users even where the folder itself must be open: a container's root without capabilities is an ordinary stranger to it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use openagent_core::id::InstanceId;
use openagent_core::session::Fault;
use openagent_proto::sidecar::SOCKET_NAME;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::{BoxStream, Purpose};

/// Longest path of a Unix socket: `sun_path` without its terminator.
const SOCKET_PATH_MAX_BYTES: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// Pauses between tries to reach a sidecar that was just started: short at first, since it answers within milliseconds.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// Who may enter an instance's folder, given that nobody else can reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// Every user, such as the root of a container.
    Everyone,
    /// The daemon's user.
    Owner,
}

/// The link folders of a daemon.
#[derive(Debug, Clone)]
pub(super) struct Links {
    all: PathBuf,
}

impl Links {
    pub(super) fn new(runtime_dir: &Path) -> Self {
        Self { all: runtime_dir.join("l") }
    }

    pub(super) fn folder(&self, instance: &InstanceId) -> PathBuf {
        let text = instance.as_str();
        self.all.join(text.split_once('_').map_or(text, |(_, ulid)| ulid))
    }

    pub(super) fn socket(&self, instance: &InstanceId) -> PathBuf {
        self.folder(instance).join(SOCKET_NAME)
    }

    /// Makes the instance's folder, empty.
    pub(super) fn make(&self, instance: &InstanceId, entry: Entry) -> Result<PathBuf, Fault> {
        let socket = self.socket(instance);
        if socket.as_os_str().len() > SOCKET_PATH_MAX_BYTES {
            return Err(Fault::new(
                "SOCKET_PATH_TOO_LONG",
                format!("the path of the sidecar's socket is longer than {SOCKET_PATH_MAX_BYTES} bytes: {}", socket.display()),
                "set XDG_RUNTIME_DIR, or the daemon's runtime folder, to a shorter path",
            ));
        }
        self.remove(instance)?;
        let folder = self.folder(instance);
        let make = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.all)?;
            fs::set_permissions(&self.all, Permissions::from_mode(0o700))?;
            DirBuilder::new().mode(0o700).create(&folder)?;
            let mode = match entry {
                Entry::Everyone => 0o777,
                Entry::Owner => 0o700,
            };
            fs::set_permissions(&folder, Permissions::from_mode(mode))
        };
        make().map_err(|error| failed("made", &folder, &error))?;
        Ok(folder)
    }

    pub(super) fn exists(&self, instance: &InstanceId) -> bool {
        self.folder(instance).is_dir()
    }

    pub(super) fn remove(&self, instance: &InstanceId) -> Result<(), Fault> {
        let folder = self.folder(instance);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removed", &folder, &error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn failed(what: &str, folder: &Path, error: &io::Error) -> Fault {
    Fault::new(
        "LINK_FOLDER",
        format!("the folder {} of a sidecar's socket could not be {what}: {error}", folder.display()),
        "check that the daemon's runtime folder belongs to you and can be written",
    )
}

/// Connects to a sidecar's socket and sends the preamble.
pub(super) async fn connect(socket: &Path, purpose: Purpose) -> io::Result<BoxStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("{}\n", purpose.preamble()).as_bytes()).await?;
    Ok(Box::new(stream))
}

/// Pauses between tries, each half as long again as the one before.
pub(super) struct Pauses(Duration);

impl Pauses {
    pub(super) const fn new() -> Self {
        Self(PAUSES.0)
    }

    pub(super) async fn rest(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 3 / 2).min(PAUSES.1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const INSTANCE: &str = "ins_01ARZ3NDEKTSV4RRFFQ69G5FAV";

    #[test]
    fn the_folder_is_open_only_behind_a_closed_one() {
        let runtime = tempfile::tempdir().unwrap();
        let links = Links::new(runtime.path());
        let instance = INSTANCE.parse().unwrap();
        let folder = links.make(&instance, Entry::Everyone).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&folder), mode(folder.parent().unwrap())), (0o777, 0o700));
        fs::write(folder.join("old"), "").unwrap();
        let folder = links.make(&instance, Entry::Owner).unwrap();
        assert_eq!((mode(&folder), fs::read_dir(&folder).unwrap().count()), (0o700, 0));
        links.remove(&instance).unwrap();
        links.remove(&instance).unwrap();
        assert!(!links.exists(&instance));
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_a_clear_fault() {
        let links = Links::new(&Path::new("/tmp").join("x".repeat(80)));
        let fault = links.make(&INSTANCE.parse().unwrap(), Entry::Owner).unwrap_err();
        assert_eq!(fault.code, "SOCKET_PATH_TOO_LONG");
    }
}
