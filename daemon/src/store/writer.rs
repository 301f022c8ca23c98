//! The one thread that writes.
//!
//! Jobs come through a bounded queue. Whatever is queued is applied, each job as one atomic batch, then all of it is flushed and made durable
//! in one go, then each caller is answered: the cost of durability is shared, and nobody waits longer than one flush. When the queue is full,
//! callers wait. A write that fails leaves memory and disk in doubt, so every later job is refused until the daemon is restarted. Before
//! that can happen for want of room, writes are refused one by one: see [`super::space`].
//!
//! Removed sessions leave their records behind for the idle moments of this thread, which deletes them in small pieces; histories are compacted
//! then as well ([`compact`]). A thread that is never idle does such a piece between two groups now and then.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use openagent_core::id::SessionId;
use sled::{Batch, Db};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::StoreError;
use super::compact::{self, Compaction};
use super::model::SessionCursor;
use super::record::{self, Name, Table};
use super::space::Space;
use super::witness::Witness;

/// Jobs that can wait; then callers do.
pub(super) const QUEUE_JOBS: usize = 256;

/// Jobs that share one flush. More would make the first ones wait without sparing much.
const GROUP_JOBS: usize = 256;

/// Groups after which a piece of what waits for an idle moment is done without one.
const CARE_GROUPS: u32 = 8;

/// Sessions whose cursors are kept in memory; they are read again when there are more.
const CURSORS_MAX: usize = 1_024;

/// Keys that are deleted between two looks at the queue: well under a millisecond of work.
const PURGE_KEYS: usize = 500;

/// Time between two looks whether a full disk has room again; a write that comes in waits for the next one.
const FULL_LOOK: Duration = Duration::from_millis(200);

/// Work for the writer: applies its batch, and answers once it is known whether that is durable.
pub(super) type Job = Box<dyn FnOnce(&mut Ledger) -> Answer + Send>;
/// What a job does with the outcome of the flush.
pub(super) type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// The writer's own state: the database and where each session's history ends, as applied (not yet as durable).
pub(super) struct Ledger {
    pub(super) db: Db,
    data: File,
    witness: Witness,
    space: Arc<Space>,
    cursors: HashMap<SessionId, SessionCursor>,
    leaving: VecDeque<SessionId>,
    pub(super) compaction: Compaction,
    /// Groups since the last piece of care.
    busy_groups: u32,
    /// Something was applied that is not durable.
    is_dirty: bool,
    /// Who reads the whole store holds one of these: nothing that belongs to a history is deleted meanwhile.
    hold: Arc<Hold>,
    backup: Weak<Hold>,
    /// Sessions that changed since the backup began.
    touched: BTreeSet<SessionId>,
}

/// Keeps what belongs to histories from being deleted, for as long as it lives.
#[derive(Debug)]
pub(super) struct Hold;

impl Ledger {
    pub(super) fn new(db: Db, data: File, witness: Witness, space: Arc<Space>) -> Result<Self, StoreError> {
        let mut leaving = VecDeque::new();
        record::scan_table(&db, Table::Leaving, |name, _| {
            let session = std::str::from_utf8(name).ok().and_then(|id| id.parse().ok());
            leaving.push_back(session.ok_or_else(|| StoreError::BadRecord { what: "list of removed sessions".to_owned() })?);
            Ok(())
        })?;
        Ok(Self {
            db,
            data,
            witness,
            space,
            cursors: HashMap::new(),
            leaving,
            compaction: Compaction::default(),
            busy_groups: 0,
            is_dirty: false,
            hold: Arc::new(Hold),
            backup: Weak::new(),
            touched: BTreeSet::new(),
        })
    }

    /// Applies one atomic batch.
    pub(super) fn apply(&mut self, batch: Batch) -> Result<(), StoreError> {
        self.space.may_write()?;
        self.is_dirty = true;
        self.db.apply_batch(batch).map_err(|e| {
            let error = StoreError::engine("write a record", e);
            self.space.break_down(&error);
            error
        })
    }

    /// Puts a record in the place of an earlier one.
    pub(super) fn put(&mut self, name: &Name, value: &[u8]) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        record::put(&self.db, &mut batch, name, value)?;
        self.apply(batch)
    }

    /// Removes a record; answers whether it was there.
    pub(super) fn remove(&mut self, name: &Name) -> Result<bool, StoreError> {
        let mut batch = Batch::default();
        let was_there = record::remove(&self.db, &mut batch, name)?;
        self.apply(batch).map(|()| was_there)
    }

    /// Nothing that belongs to a history is deleted until all of these are gone.
    pub(super) fn hold(&self) -> Arc<Hold> {
        Arc::clone(&self.hold)
    }

    /// Whether histories must stay as they are, but for new events.
    pub(super) fn is_held(&self) -> bool {
        Arc::strong_count(&self.hold) > 1
    }

    /// A hold of its own for a backup; from now on it is noted which sessions change.
    pub(super) fn begin_backup(&mut self) -> Result<(Arc<Hold>, Arc<Hold>), StoreError> {
        if self.backup.strong_count() > 0 {
            return Err(StoreError::BackupRuns);
        }
        let backup = Arc::new(Hold);
        self.backup = Arc::downgrade(&backup);
        self.touched.clear();
        Ok((backup, self.hold()))
    }

    /// The sessions that changed since the backup began.
    pub(super) fn touched(&mut self) -> BTreeSet<SessionId> {
        std::mem::take(&mut self.touched)
    }

    /// Notes for a backup that a record of this session changes.
    pub(super) fn touch(&mut self, session: &SessionId) {
        if self.backup.strong_count() > 0 {
            self.touched.insert(session.clone());
        }
    }

    /// Where the history of a session ends.
    pub(super) fn cursor(&mut self, session: &SessionId) -> Result<SessionCursor, StoreError> {
        if let Some(cursor) = self.cursors.get(session) {
            return Ok(cursor.clone());
        }
        let stored = record::get(&self.db, &cursor_name(session))?;
        let stored = stored.ok_or_else(|| StoreError::UnknownSession(session.clone()))?;
        let cursor: SessionCursor = record::decode("end of a history", &stored)?;
        // What a restart has interrupted goes on.
        self.compaction.look_at(session, &cursor);
        if self.cursors.len() >= CURSORS_MAX {
            self.cursors.clear();
        }
        self.cursors.insert(session.clone(), cursor.clone());
        Ok(cursor)
    }

    /// Applies a batch that moves a session's cursor.
    pub(super) fn apply_with_cursor(&mut self, session: &SessionId, cursor: SessionCursor, mut batch: Batch) -> Result<(), StoreError> {
        record::put(&self.db, &mut batch, &cursor_name(session), &record::encode("end of a history", &cursor)?)?;
        self.touch(session);
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
        self.touch(session);
        self.apply(batch)?;
        self.cursors.remove(session);
        self.leaving.push_back(session.clone());
        Ok(())
    }

    fn needs_care(&self) -> bool {
        !(self.leaving.is_empty() && self.compaction.is_empty())
    }

    fn purge_some(&mut self) -> Result<(), StoreError> {
        let Some(session) = self.leaving.front().cloned() else { return Ok(()) };
        let id = session.as_str().as_bytes();
        let mut batch = Batch::default();
        let mut left = PURGE_KEYS;
        for table in [Table::Event, Table::MessageUsage, Table::Sealed, Table::Place] {
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
        self.space.is_whole()?;
        if !std::mem::take(&mut self.is_dirty) {
            return Ok(());
        }
        self.witness.count()?;
        self.db.flush().map_err(|e| StoreError::engine("flush", e))?;
        // sled's flush is no fsync of the file's size: without this, everything that made the file longer is lost with the power.
        self.data.sync_data().map_err(|e| StoreError::io("make a write durable", e))?;
        self.witness.note()
    }

    /// Whether there is work for idle moments that may be done now.
    fn may_care(&self) -> bool {
        self.needs_care() && !self.is_held() && self.space.may_write().is_ok()
    }
}

pub(super) fn cursor_name(session: &SessionId) -> Name {
    Name::new(Table::Cursor, &[session.as_str().as_bytes()])
}

/// The thread's loop; ends when every sender is gone.
pub(super) fn run(mut ledger: Ledger, mut jobs: mpsc::Receiver<Job>) {
    loop {
        let mut group = Vec::new();
        let first = if ledger.space.is_full() || ledger.may_care() {
            jobs.try_recv()
        } else {
            jobs.blocking_recv().ok_or(TryRecvError::Disconnected)
        };
        match first {
            Ok(job) => group.push(job),
            Err(TryRecvError::Empty) if ledger.space.is_full() => {
                std::thread::park_timeout(FULL_LOOK);
                ledger.space.look();
                continue;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => break,
        }
        while group.len() < GROUP_JOBS
            && let Ok(job) = jobs.try_recv()
        {
            group.push(job);
        }
        commit(&mut ledger, group);
    }
    if let Err(error) = ledger.witness.make_durable() {
        tracing::error!(error = &error as &dyn std::error::Error, "the store was not closed in order");
    }
}

fn commit(ledger: &mut Ledger, group: Vec<Job>) {
    let mut answers = Vec::with_capacity(group.len());
    ledger.space.look();
    let work = AssertUnwindSafe(|| {
        // Before the jobs: what is compacted is durable already.
        ledger.busy_groups = ledger.busy_groups.saturating_add(1);
        if (group.is_empty() || ledger.busy_groups > CARE_GROUPS) && ledger.may_care() {
            ledger.busy_groups = 0;
            ledger.purge_some()?;
            compact::some(ledger)?;
        }
        for job in group {
            answers.push(job(ledger));
        }
        ledger.make_durable()
    });
    let outcome = catch_unwind(work).unwrap_or_else(|_| Err(StoreError::BadRecord { what: "database (its engine panicked)".to_owned() }));
    if let Err(error) = &outcome
        && ledger.space.is_whole().is_ok()
    {
        // Also a purge that cannot go on ends here, rather than be tried for ever.
        ledger.space.break_down(error);
        tracing::error!(error = error as &dyn std::error::Error, "the store failed; nothing more is written");
    }
    for answer in answers {
        answer(outcome.clone());
    }
}
