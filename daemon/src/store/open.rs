//! Opening: who may, what is cleaned up first, and what is refused.
//!
//! sled leaves `snap.*.generating` behind when it is killed while opening, and then takes it for a damaged snapshot; so those are deleted
//! first, under a lock of our own, because a running daemon may just be writing one. sled can panic on damaged files; that is caught. It takes a
//! log whose beginning it cannot read for a new one; so the lock's file remembers that there was a store, and an empty one is then refused.
//! That the log did not end too early is what the [`witness`](super::witness) knows. A store of an older format is migrated
//! ([`migrate`]), one of a newer format is refused untouched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sled::{Batch, Db};

use super::record::{self, Name, Table};
use super::witness::{self, Witness};
use super::{StoreError, migrate, restore};

/// Format of the store as a whole. Newer ones are refused, older ones migrated.
///
/// 1: as first shipped. 2: counts its commits (see [`super::witness`]), and histories may begin later than at 1.
pub(super) const FORMAT: u64 = 2;

/// The first format that counts its commits.
const COUNTED_FORMAT: u64 = 2;

/// What the lock's file holds once the store was made.
const MADE: &[u8] = b"a store is here\n";

/// sled's memory for pages; an idle daemon is to stay small, and readers of recent events do not come here.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;

/// Time for which a lock is waited for: a daemon that just ended may still be closing its files.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// An open database with what must live as long as it.
pub(super) struct Opened {
    pub(super) db: Db,
    /// The file that sled writes to, for making it durable: sled's own flush does not persist the file's size.
    pub(super) data: File,
    pub(super) witness: Witness,
    pub(super) lock: Flock<File>,
}

pub(super) fn open(path: &Path) -> Result<Opened, StoreError> {
    make_parent(path)?;
    let mut lock = lock(path)?;
    restore::settle(path)?;
    make_folder(path)?;
    let was_there = was_made(&lock)?;
    let mut db = open_sled(path)?;
    match check_format(path, &db, was_there)? {
        Found::Nothing => write_format(&db, FORMAT)?,
        Found::Format(FORMAT) => migrate::settle(path)?,
        Found::Format(older) => db = migrate::migrate(path, db, older)?,
    }
    let (data, witness) = make_durable(path, &db)?;
    // Last: what says that there is a store must not be durable before the store is.
    if !was_there {
        note_made(&mut lock)?;
    }
    Ok(Opened { db, data, witness, lock })
}

/// Opens a store to be looked at: it is neither made nor migrated. With its format.
pub(super) fn open_to_look(path: &Path) -> Result<(Db, u64, Flock<File>), StoreError> {
    make_parent(path)?;
    let lock = lock(path)?;
    restore::settle(path)?;
    if !path.join("db").is_file() {
        return Err(StoreError::Corrupt { path: path.to_owned(), what: "there is none".to_owned() });
    }
    let db = open_sled(path)?;
    match check_format(path, &db, true)? {
        Found::Format(format) => {
            if format >= COUNTED_FORMAT {
                witness::check(path, &db)?;
            }
            Ok((db, format, lock))
        }
        Found::Nothing => Err(StoreError::Corrupt { path: path.to_owned(), what: "it is empty".to_owned() }),
    }
}

/// Makes an opened or newly made database durable with all its files, and counts on from its witness.
pub(super) fn make_durable(path: &Path, db: &Db) -> Result<(File, Witness), StoreError> {
    let data = File::open(path.join("db")).map_err(|e| StoreError::io("open its data file", e))?;
    data.sync_data().map_err(|e| StoreError::io("make its data file durable", e))?;
    let witness = Witness::open(path, db, &data)?;
    // Written when the store is made, and not made durable by sled either.
    File::open(path.join("conf")).and_then(|conf| conf.sync_all()).map_err(|e| StoreError::io("make its settings durable", e))?;
    for folder in [Some(path), path.parent()].into_iter().flatten() {
        sync_folder(folder)?;
    }
    Ok((data, witness))
}

pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| StoreError::io("make its folder durable", e))
}

/// Whether the lock's file says that there was a store.
pub(super) fn was_made(lock: &Flock<File>) -> Result<bool, StoreError> {
    Ok(lock.metadata().map_err(|e| StoreError::io("look at its lock", e))?.len() > 0)
}

pub(super) fn note_made(lock: &mut Flock<File>) -> Result<(), StoreError> {
    lock.write_all(MADE).and_then(|()| lock.sync_all()).map_err(|e| StoreError::io("note that it was made", e))
}

/// Makes the folder in which the store's folder is.
pub(super) fn make_parent(path: &Path) -> Result<(), StoreError> {
    path.parent().map_or(Ok(()), make_folder)
}

pub(super) fn make_folder(path: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| StoreError::io("make its folder", e))
}

fn lock_path(path: &Path) -> PathBuf {
    path.with_added_extension("lock")
}

pub(super) fn lock(path: &Path) -> Result<Flock<File>, StoreError> {
    let step = "lock its folder";
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(lock_path(path));
    let mut file = file.map_err(|e| StoreError::io(step, e))?;
    let give_up_at = Instant::now() + LOCK_WAIT;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) if Instant::now() < give_up_at => file = back,
            Err((_, Errno::EWOULDBLOCK)) => return Err(StoreError::Locked { path: path.to_owned() }),
            Err((_, errno)) => return Err(StoreError::io(step, errno.into())),
        }
        std::thread::park_timeout(LOCK_POLL);
    }
}

fn remove_unfinished_snapshots(path: &Path) -> Result<(), StoreError> {
    let step = "remove unfinished snapshots";
    for entry in fs::read_dir(path).map_err(|e| StoreError::io(step, e))? {
        let entry = entry.map_err(|e| StoreError::io(step, e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path()).map_err(|e| StoreError::io(step, e))?;
        }
    }
    Ok(())
}

/// Opens the database in a folder whose lock is held.
pub(super) fn open_sled(path: &Path) -> Result<Db, StoreError> {
    remove_unfinished_snapshots(path)?;
    let corrupt = |what: String| StoreError::Corrupt { path: path.to_owned(), what };
    let give_up_at = Instant::now() + LOCK_WAIT;
    loop {
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(Ok(db)) => return Ok(db),
            // With our own lock held, this can only be an earlier store of this process (or an older daemon) that is still closing.
            Ok(Err(sled::Error::Io(error))) if error.to_string().contains("could not acquire lock") => {
                if Instant::now() >= give_up_at {
                    return Err(StoreError::Locked { path: path.to_owned() });
                }
            }
            Ok(Err(sled::Error::Io(error))) if is_damage(&error) => return Err(corrupt(error.to_string())),
            Ok(Err(sled::Error::Io(error))) => return Err(StoreError::io("open its database", error)),
            Ok(Err(error)) => return Err(corrupt(error.to_string())),
            Err(_) => return Err(corrupt("the database engine panicked while opening it".to_owned())),
        }
        std::thread::park_timeout(LOCK_POLL);
    }
}

fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput)
}

enum Found {
    Nothing,
    /// Known here.
    Format(u64),
}

fn check_format(path: &Path, db: &Db, was_there: bool) -> Result<Found, StoreError> {
    let corrupt = |what: &str| StoreError::Corrupt { path: path.to_owned(), what: what.to_owned() };
    let name = Name::new(Table::Meta, &[b"format"]);
    let check = AssertUnwindSafe(|| {
        let found = record::get(db, &name)?;
        let is_empty = db.iter().next().transpose().map_err(|e| StoreError::engine("read its first record", e))?.is_none();
        Ok((found, is_empty))
    });
    // A read is where sled notices most kinds of damage; nothing has been written yet.
    let (found, is_empty) = match catch_unwind(check) {
        Ok(Ok(read)) => read,
        Ok(Err(StoreError::Io { source, .. })) => return Err(corrupt(&source.to_string())),
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(corrupt("the database engine panicked while reading it")),
    };
    match found {
        Some(found) => match record::decode::<u64>("format", &found)? {
            known @ 1..=FORMAT => Ok(Found::Format(known)),
            found if found > FORMAT => Err(StoreError::NewerFormat { path: path.to_owned(), found, known: FORMAT }),
            _ => Err(corrupt("its format record makes no sense")),
        },
        None if is_empty && was_there => Err(corrupt("its records are gone")),
        None if is_empty => Ok(Found::Nothing),
        None => Err(corrupt("it holds records but no format")),
    }
}

pub(super) fn write_format(db: &Db, format: u64) -> Result<(), StoreError> {
    let step = "write its format";
    let mut batch = Batch::default();
    record::put(db, &mut batch, &Name::new(Table::Meta, &[b"format"]), &record::encode("format", &format)?)?;
    db.apply_batch(batch).and_then(|()| db.flush()).map_err(|e| StoreError::engine(step, e))?;
    Ok(())
}
