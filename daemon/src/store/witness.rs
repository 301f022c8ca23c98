//! The witness: a file of our own that knows how far the store's log went.
//!
//! sled takes a log that was cut for one that ended there. So each commit writes its number twice: into sled, behind all that belongs to the
//! commit, and, once that is durable, into this file. sled recovers a log from its beginning, so a store that has the number has what was
//! written before it; one whose number is lower than the witness's has lost commits that were acknowledged, and is refused.
//!
//! What it guarantees: the witness is never ahead of what is durable, so that no sound store is refused. After the end of a daemon, also by
//! `kill -9`, it is exact. It is written at each commit but made durable only at every [`DURABLE_COMMITS`]th and when the store is closed (a
//! second fsync a commit would double its time): after a power cut it may be behind by so many commits, or by as many as the system's
//! write-back takes (half a minute), and a loss of only those is not noticed. For such a loss the disk must have lost what it said was durable.
//!
//! Two slots in sectors of their own are written in turn: a write that is torn leaves the other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use sha2::{Digest, Sha256};
use sled::{Db, Tree};

use super::StoreError;

/// Name of the file in the store's folder.
pub(super) const FILE: &str = "witness";

/// A tree of its own: its leaf holds nothing else, so that a commit adds some ten bytes to the log and no copies of neighbours.
const TREE: &[u8] = b"witness";
const KEY: &[u8] = b"commits";

/// Commits between two fsyncs of the file: adds under two per cent to the fsyncs.
const DURABLE_COMMITS: u64 = 64;

const SLOT_BYTES: u64 = 512;
const NUMBER_BYTES: usize = 8;
const RECORD_BYTES: usize = NUMBER_BYTES + 8;

/// Counts commits, in sled and in the file.
pub(super) struct Witness {
    tree: Tree,
    file: File,
    commits: u64,
    durable: u64,
}

impl Witness {
    /// Compares the store with its witness. A store without one gets one: it is new, of an older format, or its owner took it away.
    pub(super) fn open(path: &Path, db: &Db, data: &File) -> Result<Self, StoreError> {
        let (tree, commits) = counter(db)?;
        let step = "open its witness";
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path.join(FILE));
        let file = file.map_err(|e| StoreError::io(step, e))?;
        let known = read(&file).map_err(|e| StoreError::io(step, e))?;
        compare(path, commits, &known)?;
        if matches!(known, Known::Nothing) && commits > 0 {
            tracing::warn!(path = %path.display(), commits, "the store has no witness (any more); what is in it is taken for all there was");
        }
        let mut witness = Self { tree, file, commits, durable: commits };
        // Twice, so that both slots are there to be overwritten in place.
        for _ in 0..2 {
            witness.count()?;
            db.flush().map_err(|e| StoreError::engine("count its commits", e))?;
            data.sync_data().map_err(|e| StoreError::io("make its data file durable", e))?;
            witness.note()?;
        }
        witness.make_durable()?;
        Ok(witness)
    }

    /// Counts the commit that is about to be flushed, behind everything that belongs to it.
    pub(super) fn count(&mut self) -> Result<(), StoreError> {
        self.commits += 1;
        self.tree.insert(KEY, &self.commits.to_be_bytes()).map_err(|e| StoreError::engine("count its commits", e))?;
        Ok(())
    }

    /// Notes that the counted commit is durable.
    pub(super) fn note(&mut self) -> Result<(), StoreError> {
        let failed = |e| StoreError::io("note how far it went", e);
        write(&self.file, self.commits).map_err(failed)?;
        if self.commits >= self.durable + DURABLE_COMMITS { self.make_durable() } else { Ok(()) }
    }

    /// Makes the file as it is durable.
    pub(super) fn make_durable(&mut self) -> Result<(), StoreError> {
        if self.durable == self.commits {
            return Ok(());
        }
        self.file.sync_data().map_err(|e| StoreError::io("make its witness durable", e))?;
        self.durable = self.commits;
        Ok(())
    }
}

/// Compares a store that is only looked at with its witness, if it has one.
pub(super) fn check(path: &Path, db: &Db) -> Result<(), StoreError> {
    let failed = |e| StoreError::io("read its witness", e);
    let known = match File::open(path.join(FILE)) {
        Ok(file) => read(&file).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Known::Nothing,
        Err(error) => return Err(failed(error)),
    };
    compare(path, counter(db)?.1, &known)
}

fn compare(path: &Path, commits: u64, known: &Known) -> Result<(), StoreError> {
    match *known {
        Known::Commits(known) if known > commits => Err(StoreError::Behind { path: path.to_owned(), found: commits, known }),
        Known::Damaged => Err(StoreError::Corrupt { path: path.to_owned(), what: format!("its file {FILE} makes no sense") }),
        Known::Commits(_) | Known::Nothing => Ok(()),
    }
}

/// The tree that counts commits, and how many it has counted.
fn counter(db: &Db) -> Result<(Tree, u64), StoreError> {
    let engine = |e| StoreError::engine("count its commits", e);
    let tree = db.open_tree(TREE).map_err(engine)?;
    let commits = match tree.get(KEY).map_err(engine)? {
        None => 0,
        Some(stored) => stored
            .as_ref()
            .try_into()
            .map(u64::from_be_bytes)
            .map_err(|_| StoreError::BadRecord { what: "number of commits".to_owned() })?,
    };
    Ok((tree, commits))
}

enum Known {
    Nothing,
    Commits(u64),
    Damaged,
}

fn read(file: &File) -> io::Result<Known> {
    let length = file.metadata()?.len();
    let mut known = Known::Nothing;
    for slot in 0..2 {
        let mut record = [0; RECORD_BYTES];
        if slot * SLOT_BYTES + RECORD_BYTES as u64 <= length {
            file.read_exact_at(&mut record, slot * SLOT_BYTES)?;
        }
        known = match (decode(record), known) {
            (Some(commits), Known::Commits(other)) => Known::Commits(commits.max(other)),
            (Some(commits), Known::Nothing | Known::Damaged) => Known::Commits(commits),
            // Never written: the power went while the file was made.
            (None, Known::Nothing) if record == [0; RECORD_BYTES] => Known::Nothing,
            (None, Known::Nothing) => Known::Damaged,
            (None, known) => known,
        };
    }
    Ok(known)
}

fn write(file: &File, commits: u64) -> io::Result<()> {
    file.write_all_at(&encode(commits), commits % 2 * SLOT_BYTES)
}

fn encode(commits: u64) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    let number = commits.to_be_bytes();
    record[..NUMBER_BYTES].copy_from_slice(&number);
    record[NUMBER_BYTES..].copy_from_slice(&Sha256::digest(number)[..RECORD_BYTES - NUMBER_BYTES]);
    record
}

fn decode(record: [u8; RECORD_BYTES]) -> Option<u64> {
    let number = record.first_chunk::<NUMBER_BYTES>().map(|number| u64::from_be_bytes(*number))?;
    (encode(number) == record).then_some(number)
}
