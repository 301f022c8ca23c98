//! The one thread that writes.
//!
//! Jobs come through a bounded queue. Whatever is queued is applied, each job as one atomic batch, then all of it is flushed and made durable
//! in one go, then each caller is answered: the cost of durability is shared, and nobody waits longer than one flush. When the queue is full,
//! callers wait. A write that fails leaves memory and disk in doubt, so every later job is refused until the daemon is restarted.
//!
//! Removed sessions leave their records behind for the idle moments of this thread, which deletes them in small pieces.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

use openagent_core::id::SessionId;
use sled::{Batch, Db};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::StoreError;
use super::model::SessionCursor;
use super::record::{self, Name, Table};

/// Jobs that can wait; then callers do.
pub(super) const QUEUE_JOBS: usize = 256;

/// Jobs that share one flush. More would make the first ones wait without sparing much.
const GROUP_JOBS: usize = 256;

/// Keys that are deleted between two looks at the queue: well under a millisecond of work.
const PURGE_KEYS: usize = 500;

/// Work for the writer: applies its batch, and answers once it is known whether that is durable.
pub(super) type Job = Box<dyn FnOnce(&mut Ledger) -> Answer + Send>;
/// What a job does with the outcome of the flush.
pub(super) type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// The writer's own state: the database and where each session's history ends, as applied (not yet as durable).
pub(super) struct Ledger {
    pub(super) db: Db,
    data: File,
    cursors: HashMap<SessionId, SessionCursor>,
    leaving: VecDeque<SessionId>,
    broken: bool,
}

impl Ledger {
    pub(super) fn new(db: Db, data: File) -> Result<Self, StoreError> {
        let mut leaving = VecDeque::new();
        record::scan_table(&db, Table::Leaving, |name, _| {
            let session = std::str::from_utf8(name).ok().and_then(|id| id.parse().ok());
            leaving.push_back(session.ok_or_else(|| StoreError::BadRecord { what: "list of removed sessions".to_owned() })?);
            Ok(())
        })?;
        Ok(Self { db, data, cursors: HashMap::new(), leaving, broken: false })
    }

    /// Applies one atomic batch.
    pub(super) fn apply(&mut self, batch: Batch) -> Result<(), StoreError> {
        if self.broken {
            return Err(StoreError::Broken);
        }
        self.db.apply_batch(batch).map_err(|e| {
            self.broken = true;
            StoreError::engine("write a record", e)
        })
    }

    /// Where the history of a session ends.
    pub(super) fn cursor(&mut self, session: &SessionId) -> Result<SessionCursor, StoreError> {
        if let Some(cursor) = self.cursors.get(session) {
            return Ok(cursor.clone());
        }
        let stored = record::get(&self.db, &cursor_name(session))?;
        let stored = stored.ok_or_else(|| StoreError::UnknownSession(session.clone()))?;
        let cursor: SessionCursor = record::decode("end of a history", &stored)?;
        self.cursors.insert(session.clone(), cursor.clone());
        Ok(cursor)
    }

    /// Applies a batch that moves a session's cursor.
    pub(super) fn apply_with_cursor(&mut self, session: &SessionId, cursor: SessionCursor, mut batch: Batch) -> Result<(), StoreError> {
        record::put(&self.db, &mut batch, &cursor_name(session), &record::encode("end of a history", &cursor)?)?;
        self.apply(batch)?;
        self.cursors.insert(session.clone(), cursor);
        Ok(())
    }

    /// Forgets a session at once and its history by and by.
    pub(super) fn remove_session(&mut self, session: &SessionId) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        let id = session.as_str().as_bytes();
        if !record::remove(&self.db, &mut batch, &Name::new(Table::Session, &[id]))? {
            return Err(StoreError::UnknownSession(session.clone()));
        }
        record::remove(&self.db, &mut batch, &cursor_name(session))?;
        record::put(&self.db, &mut batch, &Name::new(Table::Leaving, &[id]), b"")?;
        self.apply(batch)?;
        self.cursors.remove(session);
        self.leaving.push_back(session.clone());
        Ok(())
    }

    fn purge_some(&mut self) -> Result<(), StoreError> {
        let Some(session) = self.leaving.front().cloned() else { return Ok(()) };
        let id = session.as_str().as_bytes();
        let mut batch = Batch::default();
        let mut left = PURGE_KEYS;
        for table in [Table::Event, Table::MessageUsage, Table::Sealed] {
            for key in self.db.scan_prefix(record::prefix(table, id)).keys().take(left) {
                batch.remove(key.map_err(|e| StoreError::engine("list what a removed session left", e))?);
                left -= 1;
            }
        }
        let is_done = left > 0;
        if is_done {
            record::remove(&self.db, &mut batch, &Name::new(Table::Leaving, &[id]))?;
        }
        self.apply(batch)?;
        if is_done {
            self.leaving.pop_front();
        }
        Ok(())
    }

    fn make_durable(&mut self) -> Result<(), StoreError> {
        if self.broken {
            return Err(StoreError::Broken);
        }
        let flushed = self.db.flush().map_err(|e| StoreError::engine("flush", e));
        // sled's flush is no fsync of the file's size: without this, everything that made the file longer is lost with the power.
        let durable = flushed.and_then(|_| self.data.sync_data().map_err(|e| StoreError::io("make a write durable", e)));
        self.broken |= durable.is_err();
        durable
    }
}

fn cursor_name(session: &SessionId) -> Name {
    Name::new(Table::Cursor, &[session.as_str().as_bytes()])
}

/// The thread's loop; ends when every sender is gone.
pub(super) fn run(mut ledger: Ledger, mut jobs: mpsc::Receiver<Job>) {
    loop {
        let mut group = Vec::new();
        let first = if ledger.leaving.is_empty() || ledger.broken {
            jobs.blocking_recv().ok_or(TryRecvError::Disconnected)
        } else {
            jobs.try_recv()
        };
        match first {
            Ok(job) => group.push(job),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return,
        }
        while group.len() < GROUP_JOBS
            && let Ok(job) = jobs.try_recv()
        {
            group.push(job);
        }
        commit(&mut ledger, group);
    }
}

fn commit(ledger: &mut Ledger, group: Vec<Job>) {
    let mut answers = Vec::with_capacity(group.len());
    let work = AssertUnwindSafe(|| {
        if group.is_empty() {
            ledger.purge_some()?;
        }
        for job in group {
            answers.push(job(ledger));
        }
        ledger.make_durable()
    });
    let outcome = catch_unwind(work).unwrap_or_else(|_| {
        tracing::error!("the database engine panicked; nothing more is written");
        ledger.broken = true;
        Err(StoreError::Broken)
    });
    if let Err(error) = &outcome
        && !matches!(error, StoreError::Broken)
    {
        // Also a purge that cannot go on ends here, rather than be tried for ever.
        ledger.broken = true;
        tracing::error!(error = error as &dyn std::error::Error, "the store failed; nothing more is written");
    }
    for answer in answers {
        answer(outcome.clone());
    }
}
