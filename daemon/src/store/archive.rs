//! The form of a backup: one zip file.
//!
//! ```text
//! first-000001, ...   records as they were read one session after the other, while the daemon went on writing
//! last-000001, ...    what had changed meanwhile, of one moment: counts instead of the above
//! manifest.json       form, format of the store, counts, and of each part its length and SHA-256
//!
//! record              length of the name (u16), name (table, then fields), length of the value (u32), value; big-endian
//! ```
//! Zip, because any tool opens it and it has an index at its end, as befits what is written as a stream. It holds records and values as the
//! store does: provider keys and credentials in their envelopes, and no master key. Reading takes it for hostile: every length is bounded
//! before anything is taken into memory, a part must be what the manifest says, and what is not known is refused.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use openagent_core::event::EVENT_MAX_BYTES;
use openagent_core::id::SessionId;
use openagent_core::session::Fault;
use openagent_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zip::write::{SimpleFileOptions, StreamWriter};
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::StoreError;

/// Form of the file. It changes only by addition.
const FORM: u32 = 1;

const MANIFEST: &str = "manifest.json";

/// A part is ended once it has as many bytes.
const PART_BYTES: u64 = 4 * 1024 * 1024;

const NAME_MAX_BYTES: usize = 1024;
/// Far over the largest event; nothing else that is stored comes near it.
const VALUE_MAX_BYTES: usize = 2 * EVENT_MAX_BYTES;
const PART_MAX_BYTES: u64 = PART_BYTES + (2 * VALUE_MAX_BYTES) as u64;
const MANIFEST_MAX_BYTES: u64 = 64 * 1024 * 1024;
const PARTS_MAX: usize = 1_000_000;

/// Why a file cannot be taken for a backup.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The operating system refused something.
    #[error("the backup {path} cannot be read")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// It is no backup, or damaged.
    #[error("{path} is no sound backup: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A newer version made it.
    #[error("the backup {path} was made by a newer version (format {found}, this version knows formats up to {known})")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format that is known here.
        known: u64,
    },
    /// Keys in it cannot be opened with this machine's master key.
    #[error("encrypted records in the backup {path} cannot be opened with the master key of this machine")]
    OtherMasterKey {
        /// The file.
        path: PathBuf,
    },
    /// The new store could not be made, or the present one not be moved.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BackupError {
    /// The error for users: a stable code, the message with its cause, and what to do.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let (code, hint) = match self {
            Self::Store(error) => return error.fault(),
            Self::Io { .. } => ("BACKUP_UNREADABLE", "check the name of the file and its permissions"),
            Self::Damaged { .. } => ("BACKUP_DAMAGED", "use another backup; the store was left as it is"),
            Self::Newer { .. } => ("BACKUP_NEWER", "install the newer version of OpenAgent; the store was left as it is"),
            Self::OtherMasterKey { .. } => (
                "MASTER_KEY_MISSING",
                "put the master key file of that machine here, or leave the keys out: openagent daemon restore --without-keys FILE",
            ),
        };
        let message = match self {
            Self::Io { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        };
        Fault::new(code, message, hint)
    }
}

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Form of the file.
    pub(super) form: u32,
    /// Format of the store.
    pub store_format: u64,
    /// Version of the program that made it.
    pub openagent_version: String,
    /// When it was begun.
    pub created_at: Timestamp,
    /// Sessions in it.
    pub sessions: u64,
    /// Events in it.
    pub events: u64,
    /// Sessions that changed while it was made: of these, the first parts hold events only.
    pub(super) again: BTreeSet<SessionId>,
    /// Sessions that were removed while it was made: nothing of them counts.
    pub(super) gone: BTreeSet<SessionId>,
    pub(super) parts: Vec<Part>,
}

/// A part of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    name: String,
    bytes: u64,
    sha256: String,
}

/// Which records a part holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    First,
    Last,
}

impl Phase {
    const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Last => "last",
        }
    }
}

/// Writes a backup.
pub(super) struct ArchiveWriter<W: Write> {
    zip: ZipWriter<StreamWriter<W>>,
    phase: Phase,
    open: Option<(String, u64, Sha256)>,
    parts: Vec<Part>,
}

fn unwritten(error: impl Into<io::Error>) -> StoreError {
    StoreError::io("write its backup", error.into())
}

impl<W: Write> ArchiveWriter<W> {
    pub(super) fn new(out: W) -> Self {
        Self { zip: ZipWriter::new_stream(out), phase: Phase::First, open: None, parts: vec![] }
    }

    /// What follows is of one moment.
    pub(super) fn begin_last(&mut self) {
        self.end_part();
        self.phase = Phase::Last;
    }

    pub(super) fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let (name_bytes, value_bytes) = match (u16::try_from(name.len()), u32::try_from(value.len())) {
            (Ok(name_bytes), Ok(value_bytes)) if name.len() <= NAME_MAX_BYTES && value.len() <= VALUE_MAX_BYTES => {
                (name_bytes, value_bytes)
            }
            _ => return Err(StoreError::BadRecord { what: "record (too large for a backup)".to_owned() }),
        };
        if self.open.is_none() {
            let number = self.parts.iter().filter(|part| part.name.starts_with(self.phase.name())).count() + 1;
            let part = format!("{}-{number:06}", self.phase.name());
            self.zip.start_file(&part, SimpleFileOptions::default()).map_err(unwritten)?;
            self.open = Some((part, 0, Sha256::new()));
        }
        let Some((_, bytes, digest)) = &mut self.open else { return Ok(()) };
        for piece in [&name_bytes.to_be_bytes()[..], name, &value_bytes.to_be_bytes(), value] {
            digest.update(piece);
            *bytes += piece.len() as u64;
            self.zip.write_all(piece).map_err(unwritten)?;
        }
        if *bytes >= PART_BYTES {
            self.end_part();
        }
        Ok(())
    }

    fn end_part(&mut self) {
        if let Some((name, bytes, digest)) = self.open.take() {
            self.parts.push(Part { name, bytes, sha256: hex::encode(digest.finalize()) });
        }
    }

    /// Writes the manifest, whose parts are filled in here, and gives the output back.
    pub(super) fn finish(mut self, manifest: Manifest) -> Result<(W, Manifest), StoreError> {
        self.end_part();
        let manifest = Manifest { form: FORM, parts: std::mem::take(&mut self.parts), ..manifest };
        let text = serde_json::to_vec(&manifest).map_err(unwritten)?;
        self.zip.start_file(MANIFEST, SimpleFileOptions::default()).map_err(unwritten)?;
        self.zip.write_all(&text).map_err(unwritten)?;
        let mut out = self.zip.finish().map_err(unwritten)?.into_inner();
        out.flush().map_err(unwritten)?;
        Ok((out, manifest))
    }
}

/// Reads a backup.
pub(super) struct ArchiveReader {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
    pub(super) manifest: Manifest,
}

impl ArchiveReader {
    pub(super) fn open(path: &Path, known_format: u64) -> Result<Self, BackupError> {
        let damaged = |why: String| BackupError::Damaged { path: path.to_owned(), why };
        let file = File::open(path).map_err(|source| BackupError::Io { path: path.to_owned(), source })?;
        let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|error| damaged(format!("it is no whole zip file ({error})")))?;
        let mut text = vec![];
        {
            let entry = zip.by_name(MANIFEST).map_err(|_| damaged("it has no manifest".to_owned()))?;
            let read = entry.take(MANIFEST_MAX_BYTES + 1).read_to_end(&mut text);
            read.map_err(|error| damaged(format!("its manifest cannot be read ({error})")))?;
        }
        if text.len() as u64 > MANIFEST_MAX_BYTES {
            return Err(damaged("its manifest is too large".to_owned()));
        }
        // Form and format are looked at first: the rest of a newer one may look otherwise.
        let newer = |found| BackupError::Newer { path: path.to_owned(), found, known: known_format };
        let unreadable = |error| damaged(format!("its manifest makes no sense ({error})"));
        let Versions { form, store_format } = serde_json::from_slice(&text).map_err(unreadable)?;
        if store_format > known_format || form > FORM {
            return Err(newer(store_format));
        }
        if store_format == 0 || form == 0 {
            return Err(damaged("it has no format".to_owned()));
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(unreadable)?;
        if manifest.parts.len() > PARTS_MAX || zip.len() != manifest.parts.len() + 1 {
            return Err(damaged("it does not have the parts that its manifest names".to_owned()));
        }
        Ok(Self { path: path.to_owned(), zip, manifest })
    }

    /// Gives each record to `take`: in the order in which they were written, checked part by part. What was given is to be trusted only
    /// once this has answered.
    pub(super) fn read(&mut self, mut take: impl FnMut(Phase, &[u8], &[u8]) -> Result<(), BackupError>) -> Result<(), BackupError> {
        let mut counts = [0, 0];
        for part in self.manifest.parts.clone() {
            let phase = if part.name.starts_with(Phase::First.name()) { Phase::First } else { Phase::Last };
            let count = &mut counts[usize::from(phase == Phase::Last)];
            *count += 1;
            if part.name != format!("{}-{count:06}", phase.name()) || (phase == Phase::First && counts[1] > 0) {
                return Err(self.damaged("it has parts that are not known"));
            }
            self.read_part(&part, phase, &mut take)?;
        }
        Ok(())
    }

    fn read_part(
        &mut self,
        part: &Part,
        phase: Phase,
        take: &mut impl FnMut(Phase, &[u8], &[u8]) -> Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        let path = self.path.clone();
        let damaged = |why: &str| BackupError::Damaged { path: path.clone(), why: format!("its part {} {why}", part.name) };
        if part.bytes > PART_MAX_BYTES {
            return Err(damaged("is too large"));
        }
        let entry = self.zip.by_name(&part.name).map_err(|_| damaged("is missing"))?;
        if !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) || entry.encrypted() {
            return Err(damaged("is packed in a way that no backup is"));
        }
        let mut bytes = Vec::new();
        let read = entry.take(part.bytes + 1).read_to_end(&mut bytes);
        read.map_err(|_| damaged("cannot be unpacked"))?;
        if bytes.len() as u64 != part.bytes || hex::encode(Sha256::digest(&bytes)) != part.sha256 {
            return Err(damaged("is not what the manifest says"));
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (name, value, after) = take_record(rest).ok_or_else(|| damaged("holds what is no record"))?;
            take(phase, name, value)?;
            rest = after;
        }
        Ok(())
    }

    pub(super) fn damaged(&self, why: impl Into<String>) -> BackupError {
        BackupError::Damaged { path: self.path.clone(), why: why.into() }
    }
}

#[derive(Deserialize)]
struct Versions {
    form: u32,
    store_format: u64,
}

/// Name, value, and what follows.
fn take_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (name, rest) = rest.split_at_checked(length).filter(|_| (1..=NAME_MAX_BYTES).contains(&length))?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (value, rest) = rest.split_at_checked(length).filter(|_| length <= VALUE_MAX_BYTES)?;
    Some((name, value, rest))
}
