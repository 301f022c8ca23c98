//! Workspaces as tar archives: seeding one from a folder of the user's, and reading one back from a folder.
//!
//! Invariants: nothing outside the folder is read (symbolic links are kept as links and never followed), what is not a file, folder or link is left
//! out, an archive is never held in memory as a whole, and a seed is bounded in entries and bytes.
//!
//! Archives are written by a blocking thread into a bounded channel of chunks; a full channel stops the thread, a dropped receiver ends it.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ignore::WalkBuilder;
use openagent_core::session::{Fault, WorkspaceSource};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;

/// Most entries of a seed; a tree of this size takes about a minute to copy into a volume.
pub const ENTRIES_MAX: u64 = 200_000;

/// Most bytes of a seed.
pub const BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// Size of one chunk of an archive.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks between the thread that writes an archive and its reader; when it is full the thread waits.
const CHUNKS_QUEUED_MAX: usize = 8;

/// What the smallest valid git repository consists of: folders, and files with their content.
const REPOSITORY_FOLDERS: [&str; 6] = [".git", ".git/objects", ".git/refs", ".git/refs/heads", ".git/refs/tags", ".git/info"];
const REPOSITORY_FILES: [(&str, &str); 2] = [
    (".git/HEAD", "ref: refs/heads/main\n"),
    (".git/config", "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n"),
];

/// Why a workspace cannot be seeded.
#[derive(Debug, Error)]
pub enum SeedError {
    /// The path is not absolute, or not a folder.
    #[error("{} is not a folder with an absolute path", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// The folder is missing or cannot be entered.
    #[error("the folder {} cannot be read", path.display())]
    Unreachable {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something in the folder cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Ignore files or the tree itself cannot be understood.
    #[error("the folder {} cannot be listed", path.display())]
    Unlistable {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: ignore::Error,
    },
    /// It has too many entries.
    #[error("the folder {} has more than {ENTRIES_MAX} files", path.display())]
    TooMany {
        /// The folder.
        path: PathBuf,
    },
    /// It is too large.
    #[error("the folder {} holds more than {} MiB", path.display(), BYTES_MAX / (1024 * 1024))]
    TooLarge {
        /// The folder.
        path: PathBuf,
    },
    /// Nobody takes the archive any more.
    #[error("the archive could not be passed on")]
    NotTaken(#[source] io::Error),
}

impl From<&SeedError> for Fault {
    fn from(error: &SeedError) -> Self {
        let hint = match error {
            SeedError::NotAFolder { .. } => "give the path of an existing folder on the daemon's machine",
            SeedError::Unreachable { .. } => "check that it exists and that the daemon's user may read it",
            SeedError::Unreadable { .. } => "make it readable for the daemon's user, or exclude it in .ignore or .gitignore",
            SeedError::Unlistable { .. } => "check its ignore files",
            SeedError::TooMany { .. } | SeedError::TooLarge { .. } => "exclude what the agent does not need in .ignore or .gitignore",
            SeedError::NotTaken(_) => "",
        };
        let reason = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
        Self::new("WORKSPACE_SOURCE", format!("{error}{reason}"), hint)
    }
}

/// Who owns the entries of a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// A user of a container: owner and group are this id, and the group may do what the owner may.
    Container(u64),
    /// Whoever unpacks it; modes are kept.
    Kept,
}

/// Bounds of a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most entries.
    pub entries: u64,
    /// Most bytes of files.
    pub bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { entries: ENTRIES_MAX, bytes: BYTES_MAX }
    }
}

/// Chunks of an archive that a thread writes, in order.
pub type Chunks = ReceiverStream<io::Result<Bytes>>;

/// Writes the seed in the background: its chunks, and how it went. The chunks end with an error when it fails.
#[must_use]
pub fn stream_seed(source: WorkspaceSource, ownership: Ownership) -> (Chunks, JoinHandle<Result<(), SeedError>>) {
    let (chunks, received) = mpsc::channel(CHUNKS_QUEUED_MAX);
    let writing = tokio::task::spawn_blocking(move || {
        let mut writer = ChunkWriter::new(chunks);
        let outcome = write_seed(&source, ownership, Bounds::default(), &mut writer);
        writer.finish(outcome.is_ok());
        outcome
    });
    (ReceiverStream::new(received), writing)
}

/// Reads a folder in the background as a tar archive; entries are relative to it.
#[must_use]
pub fn stream_folder(root: PathBuf) -> StreamReader<Chunks, Bytes> {
    let (chunks, received) = mpsc::channel(CHUNKS_QUEUED_MAX);
    // Not joined: it ends by itself when the receiver is dropped, and its failure is the last thing the receiver gets.
    drop(tokio::task::spawn_blocking(move || {
        let mut writer = ChunkWriter::new(chunks);
        let outcome = write_folder(&root, &mut writer);
        if let Err(error) = &outcome {
            tracing::warn!(%error, folder = %root.display(), "reading a workspace failed");
        }
        writer.finish(outcome.is_ok());
    }));
    StreamReader::new(ReceiverStream::new(received))
}

/// Writes the tar archive that `source` describes.
///
/// # Errors
/// See [`SeedError`]; the archive is then incomplete.
pub fn write_seed(source: &WorkspaceSource, ownership: Ownership, bounds: Bounds, out: &mut impl Write) -> Result<(), SeedError> {
    let mut archive =
        Archive { tar: tar::Builder::new(out), ownership: Some(ownership), bounds, entries: 0, bytes: 0, root: PathBuf::new() };
    match source {
        WorkspaceSource::Empty => archive.repository()?,
        WorkspaceSource::Copy { path } => {
            archive.root = checked_root(Path::new(path))?;
            archive.copy()?;
        }
    }
    archive.tar.finish().map_err(SeedError::NotTaken)
}

/// Writes everything in the folder, ignore rules or not.
///
/// # Errors
/// See [`SeedError`]; the archive is then incomplete.
pub fn write_folder(root: &Path, out: &mut impl Write) -> Result<(), SeedError> {
    let bounds = Bounds { entries: u64::MAX, bytes: u64::MAX };
    let mut archive = Archive { tar: tar::Builder::new(out), ownership: None, bounds, entries: 0, bytes: 0, root: root.to_path_buf() };
    archive.everything(root, |_| true)?;
    archive.tar.finish().map_err(SeedError::NotTaken)
}

/// Unpacks a seed into an existing folder.
///
/// # Errors
/// An I/O error of the archive or the folder.
pub fn unpack(archive: impl Read, folder: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.set_overwrite(true);
    archive.unpack(folder)
}

fn checked_root(path: &Path) -> Result<PathBuf, SeedError> {
    if !path.is_absolute() {
        return Err(SeedError::NotAFolder { path: path.to_path_buf() });
    }
    let unreachable = |source| SeedError::Unreachable { path: path.to_path_buf(), source };
    let root = fs::canonicalize(path).map_err(unreachable)?;
    if !fs::metadata(&root).map_err(unreachable)?.is_dir() {
        return Err(SeedError::NotAFolder { path: path.to_path_buf() });
    }
    fs::read_dir(&root).map_err(unreachable)?;
    Ok(root)
}

struct Archive<W: Write> {
    tar: tar::Builder<W>,
    /// Absent: as it is on disk.
    ownership: Option<Ownership>,
    bounds: Bounds,
    entries: u64,
    bytes: u64,
    root: PathBuf,
}

impl<W: Write> Archive<W> {
    fn repository(&mut self) -> Result<(), SeedError> {
        for folder in REPOSITORY_FOLDERS {
            let mut header = self.made_header(tar::EntryType::Directory, 0o755, 0);
            self.tar.append_data(&mut header, format!("./{folder}/"), io::empty()).map_err(SeedError::NotTaken)?;
        }
        for (path, content) in REPOSITORY_FILES {
            let mut header = self.made_header(tar::EntryType::Regular, 0o644, content.len() as u64);
            self.tar.append_data(&mut header, format!("./{path}"), content.as_bytes()).map_err(SeedError::NotTaken)?;
        }
        Ok(())
    }

    /// The folder without what its ignore files exclude. Repositories are copied whole: ignore rules are about the tree, and one that
    /// matches a name inside `.git` would tear it.
    fn copy(&mut self) -> Result<(), SeedError> {
        let root = self.root.clone();
        let mut walk = WalkBuilder::new(&root);
        walk.hidden(false).require_git(false).follow_links(false);
        walk.filter_entry(|entry| entry.file_name() != OsStr::new(".git"));
        for entry in walk.build() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if is_missing(&error) => continue,
                Err(source) => return Err(SeedError::Unlistable { path: root, source }),
            };
            self.append(entry.path())?;
            // A `.git` that is a file points to a repository somewhere else, which the container will not have.
            let repository = entry.path().join(".git");
            let is_folder = entry.file_type().is_some_and(|kind| kind.is_dir());
            if is_folder && fs::symlink_metadata(&repository).is_ok_and(|metadata| metadata.is_dir()) {
                // The lock of a git command that runs on the original would stay for ever in the copy.
                self.everything(&repository, |name| name != OsStr::new("index.lock"))?;
            }
        }
        Ok(())
    }

    fn everything(&mut self, folder: &Path, wanted: fn(&OsStr) -> bool) -> Result<(), SeedError> {
        let mut walk = WalkBuilder::new(folder);
        walk.standard_filters(false).follow_links(false).filter_entry(move |entry| wanted(entry.file_name()));
        for entry in walk.build() {
            match entry {
                Ok(entry) => self.append(entry.path())?,
                Err(error) if is_missing(&error) => {}
                Err(source) => return Err(SeedError::Unlistable { path: folder.to_path_buf(), source }),
            }
        }
        Ok(())
    }

    /// Appends one file, folder or link. What vanished since it was listed is left out.
    fn append(&mut self, path: &Path) -> Result<(), SeedError> {
        let Some(relative) = path.strip_prefix(&self.root).ok().filter(|relative| !relative.as_os_str().is_empty()) else {
            return Ok(());
        };
        let name = Path::new(".").join(relative);
        let unreadable = |source| SeedError::Unreadable { path: path.to_path_buf(), source };
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(unreadable)?,
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            self.count(0)?;
            let mut header = self.header(tar::EntryType::Directory, &metadata, 0);
            self.tar.append_data(&mut header, name.join(""), io::empty()).map_err(SeedError::NotTaken)
        } else if kind.is_symlink() {
            let target = match fs::read_link(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other.map_err(unreadable)?,
            };
            self.count(0)?;
            let mut header = self.header(tar::EntryType::Symlink, &metadata, 0);
            self.tar.append_link(&mut header, &name, &target).map_err(SeedError::NotTaken)
        } else if kind.is_file() {
            let Some(file) = open_file(path).map_err(unreadable)? else { return Ok(()) };
            // From the open file: the name may mean another one by now.
            let metadata = file.metadata().map_err(unreadable)?;
            if !metadata.is_file() {
                return Ok(());
            }
            self.count(metadata.len())?;
            let mut header = self.header(tar::EntryType::Regular, &metadata, metadata.len());
            let mut content = Exactly { file, left: metadata.len(), failed: None };
            let appended = self.tar.append_data(&mut header, &name, &mut content);
            match content.failed {
                Some(source) => Err(unreadable(source)),
                None => appended.map_err(SeedError::NotTaken),
            }
        } else if self.ownership.is_none() {
            // A pipe, a socket or a device: its name alone, so that whoever reads the archive can say that it is missing. Tar knows no sockets.
            self.count(0)?;
            let mut header = self.header(tar::EntryType::Fifo, &metadata, 0);
            self.tar.append_data(&mut header, &name, io::empty()).map_err(SeedError::NotTaken)
        } else {
            Ok(())
        }
    }

    fn count(&mut self, bytes: u64) -> Result<(), SeedError> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.entries > self.bounds.entries {
            return Err(SeedError::TooMany { path: self.root.clone() });
        }
        if self.bytes > self.bounds.bytes {
            return Err(SeedError::TooLarge { path: self.root.clone() });
        }
        Ok(())
    }

    fn header(&self, kind: tar::EntryType, metadata: &Metadata, size: u64) -> tar::Header {
        let mut header = self.made_header(kind, metadata.permissions().mode(), size);
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        if self.ownership.is_none() {
            header.set_uid(u64::from(metadata.uid()));
            header.set_gid(u64::from(metadata.gid()));
        }
        header
    }

    fn made_header(&self, kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        let mode = mode & 0o777;
        match self.ownership {
            Some(Ownership::Container(id)) => {
                header.set_uid(id);
                header.set_gid(id);
                let owner = mode & 0o700 | 0o600;
                let folder = if kind == tar::EntryType::Directory { 0o2700 } else { 0 };
                let mode = mode | owner | folder;
                header.set_mode(mode | (mode & 0o700) >> 3);
            }
            Some(Ownership::Kept) | None => header.set_mode(mode),
        }
        header
    }
}

/// Opens a regular file for reading; `None` when it is gone or became something else, which must not block on a pipe.
fn open_file(path: &Path) -> io::Result<Option<File>> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    match File::options().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ELOOP as i32) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_missing(error: &ignore::Error) -> bool {
    error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// A file that gives exactly the bytes its header promised: cut when it grew meanwhile, padded with zeros when it shrank.
struct Exactly {
    file: File,
    left: u64,
    failed: Option<io::Error>,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let part = &mut buffer[..want];
        let got = match self.file.read(part) {
            Ok(0) => {
                part.fill(0);
                want
            }
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                return Err(kind.into());
            }
        };
        self.left -= got as u64;
        Ok(got)
    }
}

/// Gathers what is written into chunks.
struct ChunkWriter {
    chunks: mpsc::Sender<io::Result<Bytes>>,
    pending: Vec<u8>,
}

impl ChunkWriter {
    fn new(chunks: mpsc::Sender<io::Result<Bytes>>) -> Self {
        Self { chunks, pending: Vec::with_capacity(CHUNK_BYTES) }
    }

    fn finish(mut self, complete: bool) {
        // A receiver that is gone wants neither the rest nor the news.
        let _gone = if complete {
            self.flush()
        } else {
            self.chunks.blocking_send(Err(io::Error::other("the archive is incomplete"))).map_err(|_| io::ErrorKind::BrokenPipe.into())
        };
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(CHUNK_BYTES - self.pending.len())];
        self.pending.extend_from_slice(part);
        if self.pending.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.pending, Vec::with_capacity(CHUNK_BYTES));
        self.chunks.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests;
