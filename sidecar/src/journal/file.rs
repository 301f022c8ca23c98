//! The journal's files: segments named by their first entry, the last of which is written to.
//!
//! ```text
//! segment   "openagent-journal/1\n", then entries
//! entry     length of the kind (4 bytes, big-endian), checksum (8), number (8), milliseconds since the epoch (8), JSON of the kind
//! checksum  first 8 bytes of the SHA-256 of everything else in the entry
//! ```
//!
//! Invariant: there is at least one segment, and a number is never given twice, because an empty segment still says by its name which one is next.
//! An entry counts once it was flushed; whatever follows the last whole entry of a segment is cut off when it is opened.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use openagent_core::event::EVENT_MAX_BYTES;
use openagent_core::time::Timestamp;
use sha2::{Digest, Sha256};

use super::{JournalError, JournalItem};

const FILE_HEADER: &[u8] = b"openagent-journal/1\n";
const ENTRY_HEADER_BYTES: usize = 4 + 8 + 8 + 8;
const SUFFIX: &str = ".log";

/// Largest piece read at once, in bytes, unless one entry is larger.
const READ_MAX_BYTES: u64 = 256 * 1024;

/// Bounds of the files.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// All segments together, in bytes.
    pub total_bytes: u64,
    /// A segment that has reached this size is followed by another one.
    pub segment_bytes: u64,
    /// A segment of at least this size is given up as soon as all of it is acknowledged, although it is the one written to.
    pub worth_trimming_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { total_bytes: 64 * 1024 * 1024, segment_bytes: 4 * 1024 * 1024, worth_trimming_bytes: 256 * 1024 }
    }
}

struct Segment {
    first: u64,
    path: PathBuf,
    file: File,
    /// Where each entry begins.
    offsets: Vec<u64>,
    length: u64,
}

impl Segment {
    /// Number of its last entry; one less than its first while it is empty.
    fn last(&self) -> u64 {
        self.first + self.offsets.len() as u64 - 1
    }

    fn end_of(&self, index: usize) -> u64 {
        self.offsets.get(index + 1).copied().unwrap_or(self.length)
    }
}

/// The journal's files.
pub struct SegmentFiles {
    folder: PathBuf,
    limits: Limits,
    segments: VecDeque<Segment>,
    _lock: File,
}

impl SegmentFiles {
    pub fn open(folder: &Path, limits: Limits) -> Result<Self, JournalError> {
        let name = || folder.display().to_string();
        let failed = |source| JournalError::Open { folder: name(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(folder.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse { folder: name() }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
            if let Some(first) = number.and_then(|number| number.parse::<u64>().ok()).filter(|first| *first > 0) {
                found.push((first, path));
            }
        }
        found.sort_unstable();
        let mut segments = VecDeque::new();
        for (index, (first, path)) in found.iter().enumerate() {
            let before = found.get(index + 1).map_or(u64::MAX, |(next, _)| *next);
            segments.push_back(recover(*first, path.clone(), before)?);
        }
        let mut files = Self { folder: folder.to_owned(), limits, segments, _lock: lock };
        if files.segments.is_empty() {
            files.begin_segment(1).map_err(failed)?;
        }
        Ok(files)
    }

    /// Number of the last entry; 0 before the first.
    pub fn last(&self) -> u64 {
        self.segments.back().map_or(0, Segment::last)
    }

    /// Appends entries, durably, and says the number of the first. On an error nothing is appended.
    pub fn append(&mut self, at: Timestamp, kinds: &[Vec<u8>]) -> io::Result<u64> {
        let first = self.last() + 1;
        if self.segments.back().is_none_or(|segment| segment.length >= self.limits.segment_bytes) {
            self.begin_segment(first)?;
        }
        let size: usize = kinds.iter().map(|kind| ENTRY_HEADER_BYTES + kind.len()).sum();
        self.make_room(size as u64)?;
        let Some(segment) = self.segments.back_mut() else { return Err(io::Error::other("there is no segment")) };
        let mut piece = Vec::with_capacity(size);
        let mut offsets = Vec::with_capacity(kinds.len());
        for (seq, kind) in (first..).zip(kinds) {
            offsets.push(segment.length + piece.len() as u64);
            encode(&mut piece, seq, at, kind);
        }
        if let Err(error) = segment.file.write_all_at(&piece, segment.length).and_then(|()| segment.file.sync_data()) {
            // Whether or not this works, the next attempt writes over it, and opening cuts off what has no valid number.
            let _ = segment.file.set_len(segment.length);
            return Err(error);
        }
        segment.offsets.append(&mut offsets);
        segment.length += piece.len() as u64;
        Ok(first)
    }

    /// The entries behind `after`, a bounded number of them, with a gap before them if some are no longer kept.
    pub fn read(&self, after: u64) -> io::Result<Vec<JournalItem>> {
        let mut items = Vec::new();
        let wanted = after + 1;
        let Some(segment) = self.segments.iter().find(|segment| segment.last() >= wanted) else {
            if after < self.last() {
                items.push(JournalItem::Gap { first: wanted, last: self.last() });
            }
            return Ok(items);
        };
        if segment.first > wanted {
            items.push(JournalItem::Gap { first: wanted, last: segment.first - 1 });
        }
        let from = usize::try_from(wanted.saturating_sub(segment.first)).unwrap_or(usize::MAX);
        let start = segment.offsets.get(from).copied().unwrap_or(segment.length);
        let to =
            (from..segment.offsets.len()).take_while(|index| *index == from || segment.end_of(*index) - start <= READ_MAX_BYTES).last();
        let end = to.map_or(start, |to| segment.end_of(to));
        let mut piece = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
        segment.file.read_exact_at(&mut piece, start)?;
        let mut piece = Bytes::from(piece);
        let mut seq = segment.first + from as u64;
        while !piece.is_empty() {
            let (at, kind) =
                decode(&mut piece, seq).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an entry was changed on disk"))?;
            items.push(JournalItem::Recorded { seq, at, kind });
            seq += 1;
        }
        Ok(items)
    }

    /// Gives up segments of which everything is acknowledged.
    pub fn trim(&mut self, acknowledged: u64) -> io::Result<()> {
        let last = self.last();
        if acknowledged >= last && self.segments.back().is_some_and(|segment| segment.length >= self.limits.worth_trimming_bytes) {
            self.begin_segment(last + 1)?;
        }
        while self.segments.len() > 1 && self.segments.front().is_some_and(|segment| segment.last() <= acknowledged) {
            self.drop_oldest()?;
        }
        Ok(())
    }

    /// The next entry will have the number after `last`.
    pub fn skip_to(&mut self, last: u64) -> io::Result<()> {
        self.begin_segment(last + 1)
    }

    fn make_room(&mut self, more: u64) -> io::Result<()> {
        while self.segments.len() > 1 && self.segments.iter().map(|segment| segment.length).sum::<u64>() + more > self.limits.total_bytes {
            self.drop_oldest()?;
        }
        Ok(())
    }

    fn drop_oldest(&mut self) -> io::Result<()> {
        if let Some(segment) = self.segments.front() {
            std::fs::remove_file(&segment.path)?;
            self.segments.pop_front();
        }
        Ok(())
    }

    fn begin_segment(&mut self, first: u64) -> io::Result<()> {
        // Twenty digits, so that names sort as numbers do.
        let path = self.folder.join(format!("{first:020}{SUFFIX}"));
        let begun = OpenOptions::new().create(true).truncate(true).read(true).write(true).mode(0o600).open(&path).and_then(|file| {
            file.write_all_at(FILE_HEADER, 0)?;
            file.sync_data()?;
            File::open(&self.folder)?.sync_all()?;
            Ok(file)
        });
        let file = begun.inspect_err(|_| {
            // Left behind, it would have the next start cut its predecessor off at its number.
            let _ = std::fs::remove_file(&path);
        })?;
        self.segments.push_back(Segment { first, path, file, offsets: Vec::new(), length: FILE_HEADER.len() as u64 });
        Ok(())
    }
}

fn checksum(entry: &[u8]) -> [u8; 8] {
    let mut digest = Sha256::new();
    digest.update(&entry[..4]);
    digest.update(&entry[12..]);
    let digest = digest.finalize();
    std::array::from_fn(|index| digest[index])
}

fn encode(piece: &mut Vec<u8>, seq: u64, at: Timestamp, kind: &[u8]) {
    let start = piece.len();
    let length = u32::try_from(kind.len()).expect("the journal refuses events over EVENT_MAX_BYTES");
    piece.extend_from_slice(&length.to_be_bytes());
    piece.extend_from_slice(&[0; 8]);
    piece.extend_from_slice(&seq.to_be_bytes());
    piece.extend_from_slice(&at.as_millis().to_be_bytes());
    piece.extend_from_slice(kind);
    let sum = checksum(&piece[start..]);
    piece[start + 4..start + 12].copy_from_slice(&sum);
}

/// Takes the entry `seq` off `piece`; `None` if that is not what it begins with.
fn decode(piece: &mut Bytes, seq: u64) -> Option<(Timestamp, Bytes)> {
    let length = usize::try_from(u32::from_be_bytes(piece.get(..4)?.try_into().ok()?)).ok()?;
    let whole = ENTRY_HEADER_BYTES + length;
    if length > EVENT_MAX_BYTES || piece.len() < whole || checksum(&piece[..whole]) != piece[4..12] {
        return None;
    }
    let mut entry = piece.split_to(whole);
    entry.advance(12);
    let number = entry.get_u64();
    let at = Timestamp::from_millis(entry.get_i64());
    (number == seq).then_some((at, entry))
}

fn recover(first: u64, path: PathBuf, before: u64) -> Result<Segment, JournalError> {
    let failed = |source| JournalError::Open { folder: path.display().to_string(), source };
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    // A segment is never larger than its bound, one batch and one event.
    let mut content = vec![0; usize::try_from(size).map_err(|error| failed(io::Error::other(error)))?];
    file.read_exact_at(&mut content, 0).map_err(failed)?;
    let mut rest = Bytes::from(content);
    let mut offsets = Vec::new();
    let mut length = FILE_HEADER.len() as u64;
    if rest.starts_with(FILE_HEADER) {
        rest.advance(FILE_HEADER.len());
        while first + (offsets.len() as u64) < before && decode(&mut rest, first + offsets.len() as u64).is_some() {
            offsets.push(length);
            length = size - rest.len() as u64;
        }
    } else if FILE_HEADER.starts_with(&rest) {
        file.write_all_at(FILE_HEADER, 0).map_err(failed)?;
    } else {
        return Err(JournalError::Format { file: path.display().to_string() });
    }
    if length != size {
        tracing::warn!(file = %path.display(), bytes = size.saturating_sub(length), "a torn end of the journal was cut off");
        file.set_len(length).and_then(|()| file.sync_data()).map_err(failed)?;
    }
    Ok(Segment { first, path, file, offsets, length })
}
