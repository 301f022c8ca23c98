//! From older formats to this one.
//!
//! The list of steps only grows: a store of every format that was shipped can be opened for ever. Before the first step the files are copied
//! next to the store. Safe to kill at any point, because each point is known by what is there:
//!
//! ```text
//! db.migrating                  names the copy; written first, removed last
//! db.format-1.backup.partial    a copy that is not whole: made anew
//! db.format-1.backup            whole and durable; never written again
//! db, format record             written after all steps, so that they are all done again after a kill: each gives the same when repeated
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sled::Db;

use super::StoreError;
use super::open::{self, FORMAT};

/// What makes a store of one format into one of the next; it may be repeated after a kill.
type Step = fn(&Db) -> Result<(), StoreError>;

/// The first makes format 2 of format 1, and so on.
const STEPS: [Step; 1] = [to_2];
const _: () = assert!(STEPS.len() as u64 + 1 == FORMAT, "a step for each format");

/// Copies of one format that are kept at most; whoever went back and forth more often removes some.
const COPIES_MAX: u32 = 100;

/// Format 2 only adds: the count of commits begins when the store is opened next, and histories that were compacted say so themselves.
/// Its number keeps daemons away that would take such a history for a damaged one.
fn to_2(_: &Db) -> Result<(), StoreError> {
    Ok(())
}

/// Brings a store of the format `from` to this version's format.
pub(super) fn migrate(path: &Path, db: Db, from: u64) -> Result<Db, StoreError> {
    // What is copied is closed: nothing changes its files.
    drop(db);
    let copy = back_up(path, from)?;
    tracing::info!(from, to = FORMAT, copy = %copy.display(), "the store is migrated; as it was before it is kept in the copy");
    let db = open::open_sled(path)?;
    let done = usize::try_from(from - 1).unwrap_or(usize::MAX);
    for step in STEPS.iter().skip(done) {
        step(&db)?;
    }
    // Before the format says that the steps are done, they are durable.
    make_durable(path, &db)?;
    open::write_format(&db, FORMAT)?;
    make_durable(path, &db)?;
    settle(path)?;
    Ok(db)
}

/// Removes what a migration leaves when it is killed just before its end.
pub(super) fn settle(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(note_path(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("end its migration", error)),
        _ => Ok(()),
    }
}

fn make_durable(path: &Path, db: &Db) -> Result<(), StoreError> {
    db.flush().map_err(|e| StoreError::engine("flush its migration", e))?;
    let data = File::open(path.join("db")).and_then(|data| data.sync_data());
    data.map_err(|e| StoreError::io("make its migration durable", e))
}

fn note_path(path: &Path) -> PathBuf {
    path.with_added_extension("migrating")
}

/// Copies the files of a closed store next to it, unless a killed attempt already has; answers where.
fn back_up(path: &Path, format: u64) -> Result<PathBuf, StoreError> {
    let step = "back itself up before a migration";
    let failed = |e| StoreError::io(step, e);
    let note = note_path(path);
    let copy = match noted_copy(path, &note).map_err(failed)? {
        Some(copy) => copy,
        None => {
            let copy = free_name(path, format).ok_or_else(|| failed(io::ErrorKind::AlreadyExists.into()))?;
            let name = copy.file_name().unwrap_or_default().as_encoded_bytes();
            write_durably(&note, name).map_err(failed)?;
            sync_parent(path)?;
            copy
        }
    };
    if copy.exists() {
        return Ok(copy);
    }
    let partial = copy.with_added_extension("partial");
    remove_folder(&partial).map_err(failed)?;
    copy_folder(path, &partial).map_err(failed)?;
    fs::rename(&partial, &copy).map_err(failed)?;
    sync_parent(path)?;
    Ok(copy)
}

/// The copy that a killed attempt chose. A note that was cut with the power is none: nothing was done after it.
fn noted_copy(path: &Path, note: &Path) -> io::Result<Option<PathBuf>> {
    let name = match fs::read_to_string(note) {
        Ok(name) => name,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_ours = name.ends_with(".backup") && !name.contains('/');
    Ok(is_ours.then(|| path.with_file_name(name)))
}

/// A name that no copy has yet: one of an earlier migration is never written over.
fn free_name(path: &Path, format: u64) -> Option<PathBuf> {
    let first = path.with_added_extension(format!("format-{format}.backup"));
    let further = (2..=COPIES_MAX).map(|number| path.with_added_extension(format!("format-{format}.{number}.backup")));
    std::iter::once(first).chain(further).find(|name| !name.exists())
}

fn sync_parent(path: &Path) -> Result<(), StoreError> {
    path.parent().map_or(Ok(()), open::sync_folder)
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Removes a folder with all that is in it, if it is there.
pub(super) fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies files and folders and makes the copy durable. What is neither does not belong to a store.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    File::open(to)?.sync_all()
}
