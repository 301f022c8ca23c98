//! A copy of the whole store while it is written.
//!
//! sled has no snapshots, and the writer must not wait for a slow reader of the copy. So the copy is made in two phases. First, one session
//! after the other is read as it is, while the writer goes on; it notes which sessions change ([`Ledger::begin_backup`]), and deletes
//! nothing that belongs to a history. Then one job of the writer reads the small records of the changed sessions, and those that belong to all
//! sessions, into memory: this is the moment that the copy is of. What the changed histories had grown by then, which no longer changes, is
//! written last. Memory is needed for the names of all sessions, and for the small records of those that changed meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

use openagent_core::id::SessionId;
use openagent_core::time::Timestamp;
use sled::Db;

use super::archive::{ArchiveWriter, Manifest};
use super::model::SessionCursor;
use super::open::FORMAT;
use super::record::{self, Name, Table};
use super::writer::{Hold, Ledger};
use super::{Store, StoreError, blocking};

/// Tables whose records belong to one session and change.
pub(super) const OF_A_SESSION: [Table; 5] = [Table::Session, Table::Cursor, Table::MessageUsage, Table::Sealed, Table::Place];
/// Tables whose records belong to no session.
pub(super) const OF_ALL: [Table; 3] = [Table::Key, Table::Rule, Table::DayUsage];

type Record = (Vec<u8>, Vec<u8>);

/// What changed while the first phase ran, of one moment.
struct Last {
    records: Vec<Record>,
    cursors: BTreeMap<SessionId, SessionCursor>,
    gone: BTreeSet<SessionId>,
}

impl Store {
    /// Writes a consistent copy to `out`, as one file, while the store is used. It holds what the store holds: keys in their envelopes, and not
    /// the master key. It is whole only if this answers without an error.
    ///
    /// # Errors
    /// [`StoreError::BackupRuns`]; [`StoreError::BadRecord`] for a record that cannot be read; [`StoreError::Io`] of `out`.
    pub async fn backup<W: Write + Send + 'static>(&self, out: W, created_at: Timestamp) -> Result<(W, Manifest), StoreError> {
        let (own, hold) = self.write(Ledger::begin_backup).await?;
        let first = self.read(move |db| First::copy(db, out, own, hold)).await?;
        let last = self.write(Last::take).await?;
        let inner = Arc::clone(&self.0);
        blocking(move || first.finish(&inner.db, last, created_at)).await
    }
}

struct First<W: Write> {
    archive: ArchiveWriter<W>,
    /// Up to where each history was copied.
    copied: BTreeMap<SessionId, u64>,
    events: u64,
    _holds: (Arc<Hold>, Arc<Hold>),
}

impl<W: Write> First<W> {
    fn copy(db: &Db, out: W, own: Arc<Hold>, hold: Arc<Hold>) -> Result<Self, StoreError> {
        let mut first = Self { archive: ArchiveWriter::new(out), copied: BTreeMap::new(), events: 0, _holds: (own, hold) };
        let mut sessions = vec![];
        record::scan_table(db, Table::Session, |name, _| {
            sessions.push(session_of(name)?);
            Ok(())
        })?;
        for session in sessions {
            // Removed since; it is among those that changed.
            let Some(cursor) = cursor_of(db, &session)? else { continue };
            for table in OF_A_SESSION {
                scan_session(db, table, &session, |name, value| first.archive.add(name, value))?;
            }
            first.copy_events(db, &session, 0, cursor.last_seq)?;
            first.copied.insert(session, cursor.last_seq);
        }
        Ok(first)
    }

    fn copy_events(&mut self, db: &Db, session: &SessionId, after: u64, upto: u64) -> Result<(), StoreError> {
        let prefix = record::prefix(Table::Event, session.as_str().as_bytes());
        if after >= upto {
            return Ok(());
        }
        record::scan(db, &prefix, &Name::event(session, after + 1), |rest, value| {
            let seq = rest.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::BadRecord { what: "event".to_owned() })?;
            if seq > upto {
                return Ok(false);
            }
            self.archive.add(&[&prefix[..], rest].concat(), &value)?;
            self.events += 1;
            Ok(seq < upto)
        })
    }

    fn finish(mut self, db: &Db, last: Last, created_at: Timestamp) -> Result<(W, Manifest), StoreError> {
        self.archive.begin_last();
        for (name, value) in &last.records {
            self.archive.add(name, value)?;
        }
        for (session, cursor) in &last.cursors {
            let copied = self.copied.get(session).copied().unwrap_or(0);
            self.copy_events(db, session, copied, cursor.last_seq)?;
            self.copied.insert(session.clone(), cursor.last_seq);
        }
        for session in &last.gone {
            if let Some(copied) = self.copied.remove(session) {
                self.events -= count_events(db, session, copied)?;
            }
        }
        let manifest = Manifest {
            form: 0,
            store_format: FORMAT,
            openagent_version: env!("CARGO_PKG_VERSION").to_owned(),
            created_at,
            sessions: self.copied.len() as u64,
            events: self.events,
            again: last.cursors.into_keys().collect(),
            gone: last.gone,
            parts: vec![],
        };
        self.archive.finish(manifest)
    }
}

impl Last {
    fn take(ledger: &mut Ledger) -> Result<Self, StoreError> {
        let mut last = Self { records: vec![], cursors: BTreeMap::new(), gone: BTreeSet::new() };
        let touched = ledger.touched();
        let db = &ledger.db;
        for session in touched {
            let Some(cursor) = cursor_of(db, &session)? else {
                last.gone.insert(session);
                continue;
            };
            for table in OF_A_SESSION {
                scan_session(db, table, &session, |name, value| {
                    last.records.push((name.to_vec(), value.to_vec()));
                    Ok(())
                })?;
            }
            last.cursors.insert(session, cursor);
        }
        for table in OF_ALL {
            record::scan_table(db, table, |rest, value| {
                last.records.push(([&[table as u8], rest].concat(), value));
                Ok(())
            })?;
        }
        Ok(last)
    }
}

/// How many events up to `upto` a session has. Those of a removed one are still there: they are held.
fn count_events(db: &Db, session: &SessionId, upto: u64) -> Result<u64, StoreError> {
    let mut count = 0;
    if upto > 0 {
        record::scan(db, &record::prefix(Table::Event, session.as_str().as_bytes()), &Name::event(session, 1), |rest, _| {
            let seq = rest.try_into().map(u64::from_be_bytes).unwrap_or(u64::MAX);
            count += u64::from(seq <= upto);
            Ok(seq < upto)
        })?;
    }
    Ok(count)
}

fn cursor_of(db: &Db, session: &SessionId) -> Result<Option<SessionCursor>, StoreError> {
    let stored = record::get(db, &Name::new(Table::Cursor, &[session.as_str().as_bytes()]))?;
    stored.map(|stored| record::decode("end of a history", &stored)).transpose()
}

fn session_of(name: &[u8]) -> Result<SessionId, StoreError> {
    let id = std::str::from_utf8(name).ok().and_then(|id| id.parse().ok());
    id.ok_or_else(|| StoreError::BadRecord { what: "session (its id)".to_owned() })
}

/// The records of one session in a table, with their whole names.
fn scan_session(
    db: &Db,
    table: Table,
    session: &SessionId,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let id = session.as_str().as_bytes();
    if matches!(table, Table::Session | Table::Cursor) {
        let name = Name::new(table, &[id]);
        return record::get(db, &name)?.map_or(Ok(()), |value| take(name.as_bytes(), &value));
    }
    let prefix = record::prefix(table, id);
    record::scan(db, &prefix, &Name::new(table, &[id, b""]), |rest, value| {
        take(&[&prefix[..], rest].concat(), &value)?;
        Ok(true)
    })
}
