//! Putting a backup in the place of a store.
//!
//! The new store is made beside the old one and verified there, so that nothing of the old one is touched for a file that is not sound. Safe
//! to kill at any point: until the old store is moved away it is the store, and then the new one is.
//!
//! ```text
//! db.restoring            being made
//! db.restored             whole and durable
//! db.before-restore-1     the old one, kept
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use sled::{Batch, Db};

use super::archive::{ArchiveReader, BackupError, Manifest, Phase};
use super::migrate::{self, remove_folder};
use super::record::{self, Name, Table};
use super::verify::{self, Opener, Report};
use super::{StoreError, backup, open};

/// Bytes that are put into the new store at once.
const BATCH_BYTES: usize = 1024 * 1024;

/// Old stores that are kept aside; whoever has more removes some.
const ASIDE_MAX: u32 = 1_000;

/// What happens to the provider keys and credentials in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// They are restored; the master key of this machine must open them.
    Keep,
    /// They are left out.
    LeaveOut,
}

/// What a restore has done.
#[derive(Debug)]
pub struct Restored {
    /// What was restored.
    pub manifest: Manifest,
    /// Where the store is that was there before.
    pub aside: Option<PathBuf>,
}

/// Puts the backup `file` in the place of the store `path`, while no daemon uses that.
///
/// # Errors
/// [`BackupError`]; the store is as it was then.
pub fn restore(path: &Path, file: &Path, keys: Keys, opener: &Opener) -> Result<Restored, BackupError> {
    open::make_parent(path)?;
    let mut lock = open::lock(path)?;
    settle(path)?;
    let restoring = restoring_path(path);
    let made = make(file, &restoring, keys, opener);
    if made.is_err() {
        let _ = remove_folder(&restoring);
    }
    let (manifest, _) = made?;
    let failed = |e| StoreError::io("take its new place", e);
    let restored = restored_path(path);
    fs::rename(&restoring, &restored).map_err(failed)?;
    sync_parent(path)?;
    let aside = if path.exists() { Some(move_aside(path)?) } else { None };
    // Of the store that was there before.
    migrate::settle(path)?;
    fs::rename(&restored, path).map_err(failed)?;
    sync_parent(path)?;
    if !open::was_made(&lock)? {
        open::note_made(&mut lock)?;
    }
    Ok(Restored { manifest, aside })
}

/// Reads the backup `file` to its end and verifies what it would restore, with `scratch` as a folder for that.
///
/// # Errors
/// [`BackupError`].
pub fn check(file: &Path, scratch: &Path, opener: &Opener) -> Result<(Manifest, Report), BackupError> {
    let checked = read(file, scratch, Keys::Keep, opener);
    remove_folder(scratch).map_err(|e| StoreError::io("clean up after the check of a backup", e))?;
    checked
}

/// A new store of a sound backup, in the folder `to`.
fn make(file: &Path, to: &Path, keys: Keys, opener: &Opener) -> Result<(Manifest, Report), BackupError> {
    let (manifest, report) = read(file, to, keys, opener)?;
    if report.unopened > 0 {
        return Err(BackupError::OtherMasterKey { path: file.to_owned() });
    }
    if let Some(problem) = report.problems.first() {
        return Err(BackupError::Damaged { path: file.to_owned(), why: problem.clone() });
    }
    Ok((manifest, report))
}

fn read(file: &Path, to: &Path, keys: Keys, opener: &Opener) -> Result<(Manifest, Report), BackupError> {
    let mut reader = ArchiveReader::open(file, open::FORMAT)?;
    open::make_folder(to)?;
    let db = open::open_sled(to)?;
    load(&mut reader, &db, keys)?;
    open::make_durable(to, &db)?;
    let report = verify::verify(&db, reader.manifest.store_format, Some(opener))?;
    if (report.sessions, report.events) != (reader.manifest.sessions, reader.manifest.events) {
        let (sessions, events) = (report.sessions, report.events);
        return Err(reader.damaged(format!("it has {sessions} sessions and {events} events, and its manifest says otherwise")));
    }
    Ok((reader.manifest, report))
}

fn load(reader: &mut ArchiveReader, db: &Db, keys: Keys) -> Result<(), BackupError> {
    let (again, gone) = (reader.manifest.again.clone(), reader.manifest.gone.clone());
    let unknown = reader.damaged("it holds records of a kind that is not known");
    let unknown = || match &unknown {
        BackupError::Damaged { path, why } => BackupError::Damaged { path: path.clone(), why: why.clone() },
        _ => BackupError::Store(StoreError::Closed),
    };
    let (mut batch, mut bytes) = (Batch::default(), 0);
    reader.read(|phase, name, value| {
        let (table, rest) = name.split_first().and_then(|(first, rest)| Some((Table::of(*first)?, rest))).ok_or_else(unknown)?;
        if table == Table::Event || backup::OF_A_SESSION.contains(&table) {
            let (session, _) = verify::session_of(rest).ok_or_else(unknown)?;
            let is_old = phase == Phase::First && table != Table::Event && again.contains(&session);
            if is_old || gone.contains(&session) {
                return Ok(());
            }
        } else if !backup::OF_ALL.contains(&table) {
            return Err(unknown());
        }
        if keys == Keys::LeaveOut && matches!(table, Table::Key | Table::Sealed) {
            return Ok(());
        }
        record::put_new(&mut batch, &Name::new(table, &[rest]), value)?;
        bytes += name.len() + value.len();
        if bytes >= BATCH_BYTES {
            bytes = 0;
            db.apply_batch(std::mem::take(&mut batch)).map_err(|e| StoreError::engine("write what is restored", e))?;
        }
        Ok(())
    })?;
    db.apply_batch(batch).map_err(|e| StoreError::engine("write what is restored", e))?;
    open::write_format(db, reader.manifest.store_format)?;
    Ok(())
}

fn move_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let failed = |e| StoreError::io("move the old one aside", e);
    let free = (1..=ASIDE_MAX).map(|number| path.with_added_extension(format!("before-restore-{number}"))).find(|name| !name.exists());
    let aside = free.ok_or_else(|| failed(std::io::ErrorKind::AlreadyExists.into()))?;
    fs::rename(path, &aside).map_err(failed)?;
    sync_parent(path)?;
    Ok(aside)
}

fn sync_parent(path: &Path) -> Result<(), StoreError> {
    path.parent().map_or(Ok(()), open::sync_folder)
}

fn restored_path(path: &Path) -> PathBuf {
    path.with_added_extension("restored")
}

fn restoring_path(path: &Path) -> PathBuf {
    path.with_added_extension("restoring")
}

/// Ends what a restore left that was killed: once the old store was moved away, the new one is the store; before, the old one is.
pub(super) fn settle(path: &Path) -> Result<(), StoreError> {
    let failed = |e| StoreError::io("end its restoring", e);
    let restored = restored_path(path);
    if restored.exists() && !path.exists() {
        migrate::settle(path)?;
        fs::rename(&restored, path).map_err(failed)?;
        tracing::info!("a restore of the store was interrupted at its end; it is finished");
        sync_parent(path)?;
    }
    remove_folder(&restored).and_then(|()| remove_folder(&restoring_path(path))).map_err(failed)
}
