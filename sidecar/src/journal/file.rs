//! The journal's files: segments named by their first entry, the last of which is written to.
//!
//! ```text
//! segment   "openagent-journal/1\n", then entries
//! entry     length of the kind (4 bytes, big-endian), checksum (8), number (8), milliseconds since the epoch (8), JSON of the kind
//! checksum  first 8 bytes of the SHA-256 of everything else in the entry
//! ```
//!
//! Invariant: there is at least one segment, and a number is never given twice, because an empty segment still says by its name which one is next.
//! An entry counts once it was flushed; whatever follows the last whole entry of a segment is cut off when it is opened. Entries that were damaged
//! later are missing from then on: readers are told by a gap, and what comes behind them is kept.

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

/// What every version's header begins with.
const FILE_FAMILY: &[u8] = b"openagent-journal/";

const ENTRY_HEADER_BYTES: usize = 4 + 8 + 8 + 8;
const SUFFIX: &str = ".log";

/// Largest piece read at once, in bytes, unless one entry is larger.
const READ_MAX_BYTES: u64 = 256 * 1024;

/// Size at which a segment is followed by another one, in bytes.
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

/// All segments together where nothing else is said, in bytes.
pub const DEFAULT_MAX_BYTES: u64 = 64 * 1024 * 1024;

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

impl Limits {
    /// Files of at most `total_bytes` together.
    pub const fn within(total_bytes: u64) -> Self {
        let segment_bytes = if total_bytes / 8 < SEGMENT_BYTES { total_bytes / 8 } else { SEGMENT_BYTES };
        Self { total_bytes, segment_bytes, worth_trimming_bytes: 256 * 1024 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::within(DEFAULT_MAX_BYTES)
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
        let mut next = 1;
        for (index, (first, path)) in found.iter().enumerate() {
            let before = found.get(index + 1).map_or(u64::MAX, |(next, _)| *next);
            match recover(*first, path.clone(), before)? {
                Recovered::Segments(recovered) => segments.extend(recovered),
                Recovered::Lost { below } => next = below.min(before),
            }
        }
        let mut files = Self { folder: folder.to_owned(), limits, segments, _lock: lock };
        if files.segments.is_empty() || files.last() + 1 < next {
            files.begin_segment(next).map_err(failed)?;
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
        let size = |bytes: u64| usize::try_from(bytes).map_err(io::Error::other);
        let mut piece = vec![0; size(end - start)?];
        let read = segment.file.read_exact_at(&mut piece, start);
        let piece = Bytes::from(piece);
        // None where it is still empty.
        for index in from..to.map_or(from, |to| to + 1) {
            let seq = segment.first + index as u64;
            let mut entry = piece.slice(size(segment.offsets[index] - start)?..size(segment.end_of(index) - start)?);
            match decode(&mut entry, seq).filter(|_| read.is_ok()) {
                Some((at, kind)) => items.push(JournalItem::Recorded { seq, at, kind }),
                // Damaged on disk since it was written, or the disk does not give it back.
                None => miss(&mut items, seq),
            }
        }
        Ok(items)
    }

    /// Gives up segments of which everything is acknowledged, but for what is behind `kept_from`.
    pub fn trim(&mut self, acknowledged: u64, kept_from: u64) -> io::Result<()> {
        let last = self.last();
        if acknowledged >= last && self.segments.back().is_some_and(|segment| segment.length >= self.limits.worth_trimming_bytes) {
            self.begin_segment(last + 1)?;
        }
        while self.segments.len() > 1 && self.segments.front().is_some_and(|segment| segment.last() <= acknowledged.min(kept_from)) {
            self.drop_oldest()?;
        }
        Ok(())
    }

    /// Makes room on a full disk: gives up everything that is acknowledged, without asking the disk for anything. Says whether that was any.
    pub fn recycle(&mut self, acknowledged: u64) -> io::Result<bool> {
        let segments = self.segments.len();
        while self.segments.len() > 1 && self.segments.front().is_some_and(|segment| segment.last() <= acknowledged) {
            self.drop_oldest()?;
        }
        let more = self.segments.len() < segments;
        let Some(segment) = self.segments.back_mut().filter(|segment| !segment.offsets.is_empty() && segment.last() <= acknowledged) else {
            return Ok(more);
        };
        // The name first: under it, what is still in the file has numbers that are too low, and would be cut off.
        let first = segment.last() + 1;
        let path = self.folder.join(segment_name(first));
        std::fs::rename(&segment.path, &path)?;
        (segment.first, segment.path, segment.length) = (first, path, FILE_HEADER.len() as u64);
        segment.offsets.clear();
        segment.file.set_len(segment.length)?;
        Ok(true)
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
        let path = self.folder.join(segment_name(first));
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

/// What was made of a segment's file.
enum Recovered {
    /// Its entries; more than one segment where some between them were damaged.
    Segments(Vec<Segment>),
    /// Nothing of it can be read. Numbers below this one may have been given.
    Lost { below: u64 },
}

fn recover(first: u64, path: PathBuf, before: u64) -> Result<Recovered, JournalError> {
    let failed = |source| JournalError::Open { folder: path.display().to_string(), source };
    let read = || -> io::Result<(File, Vec<u8>)> {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        // A segment is never larger than its bound, one batch and one event.
        let mut content = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
        file.read_exact_at(&mut content, 0)?;
        Ok((file, content))
    };
    let set_aside = |why: &dyn std::fmt::Display| {
        let size = std::fs::metadata(&path).map_or(u64::from(u32::MAX), |metadata| metadata.len());
        tracing::error!(file = %path.display(), %why, "a file of the journal is damaged as a whole and was set aside");
        std::fs::rename(&path, path.with_extension("damaged")).map_err(failed)?;
        Ok(Recovered::Lost { below: first + size / ENTRY_HEADER_BYTES as u64 + 1 })
    };
    let (file, content) = match read() {
        Ok(read) => read,
        Err(error) => return set_aside(&error),
    };
    let size = content.len() as u64;
    let mut rest = Bytes::from(content);
    let mut offsets = Vec::new();
    let mut length = FILE_HEADER.len() as u64;
    let number = |offsets: &Vec<u64>| first + offsets.len() as u64;
    if rest.starts_with(FILE_HEADER) {
        rest.advance(FILE_HEADER.len());
        while number(&offsets) < before && decode(&mut rest, number(&offsets)).is_some() {
            offsets.push(length);
            length = size - rest.len() as u64;
        }
    } else if FILE_HEADER.starts_with(&rest) {
        file.write_all_at(FILE_HEADER, 0).map_err(failed)?;
    } else if rest.starts_with(FILE_FAMILY) {
        return Err(JournalError::Format { file: path.display().to_string() });
    } else {
        return set_aside(&"it does not begin as one");
    }
    let mut later = Vec::new();
    if let Some((at, seq)) = next_whole(&rest, number(&offsets), before) {
        tracing::error!(file = %path.display(), first = number(&offsets), last = seq - 1, "entries of the journal are damaged");
        // A segment holds consecutive entries, so those behind the damage get one of their own, before they are cut off here.
        let behind = path.with_file_name(segment_name(seq));
        write_whole(&behind, &[FILE_HEADER, &rest[at..]].concat()).map_err(failed)?;
        match recover(seq, behind, before)? {
            Recovered::Segments(segments) => later = segments,
            Recovered::Lost { .. } => {}
        }
    } else if length != size {
        tracing::warn!(file = %path.display(), bytes = size.saturating_sub(length), "a torn end of the journal was cut off");
    }
    if length != size {
        file.set_len(length).and_then(|()| file.sync_data()).map_err(failed)?;
    }
    let mut segments = vec![Segment { first, path, file, offsets, length }];
    segments.append(&mut later);
    Ok(Recovered::Segments(segments))
}

/// Where in `rest` the next whole entry begins that has a number from `from` to before `before`, and its number. Cheap, since in JSON no four bytes
/// read as a length.
fn next_whole(rest: &Bytes, from: u64, before: u64) -> Option<(usize, u64)> {
    (0..rest.len().saturating_sub(ENTRY_HEADER_BYTES)).find_map(|at| {
        let seq = u64::from_be_bytes(rest[at + 12..at + 20].try_into().ok()?);
        let possible = seq >= from && seq < before && seq - from <= (rest.len() / ENTRY_HEADER_BYTES) as u64;
        (possible && decode(&mut rest.slice(at..), seq).is_some()).then_some((at, seq))
    })
}

/// Twenty digits, so that names sort as numbers do.
fn segment_name(first: u64) -> String {
    format!("{first:020}{SUFFIX}")
}

/// Writes a file that is there as a whole or not at all.
fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let next = path.with_extension("new");
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&next)?;
    file.write_all_at(content, 0)?;
    file.sync_all()?;
    std::fs::rename(&next, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Notes that the entry `seq` is not kept, together with those just before it.
fn miss(items: &mut Vec<JournalItem>, seq: u64) {
    match items.last_mut() {
        Some(JournalItem::Gap { last, .. }) if *last + 1 == seq => *last = seq,
        _ => items.push(JournalItem::Gap { first: seq, last: seq }),
    }
}
