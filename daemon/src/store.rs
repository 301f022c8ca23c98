//! The store: the only place that knows sled.
//!
//! Owns `<state>/db`. Invariants: one process at a time; what a call has answered survives a kill and a power cut; sessions, histories and
//! usage that belong together change together. One thread writes ([`writer`]); reads run on the runtime's blocking threads.
//!
//! Two faults of sled 0.34 are mended here: a kill during open can make the database unopenable ([`open`]), and a flush persists neither the
//! file's size nor values that went to files of their own ([`writer`], [`record`]).
//!
//! How records look is told in [`record`]; what they hold in [`model`].

mod append;
mod archive;
mod backup;
mod compact;
mod error;
mod history;
mod migrate;
mod model;
mod open;
mod record;
mod restore;
mod space;
mod verify;
mod witness;
mod writer;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

use nix::fcntl::Flock;
use openagent_core::event::{EVENT_MAX_BYTES, EventKind};
use openagent_core::id::SessionId;
use openagent_core::permission::PermissionRule;
use openagent_core::time::Timestamp;
use sled::{Batch, Db};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

pub(crate) use append::NewEvent;
pub use archive::{BackupError, Manifest};
pub use error::StoreError;
pub(crate) use history::{Floor, Page, Read};
pub use model::{DayUsage, MessageUsage, SessionCursor, SessionRecord};
pub(crate) use model::{KeyRecord, OPEN_PARTS_MAX, PartEffect};
use record::{Name, Table};
pub use restore::{Keys, Restored, check, restore};
pub use space::Condition;
use space::Space;
pub(crate) use verify::Envelope;
pub use verify::{Opener, Report};
use writer::{Answer, Job, Ledger, cursor_name};

/// Pages of histories that are read at a time: a crowd of readers waits its turn instead of taking a thread and memory each.
const PAGE_READS_MAX: usize = 16;

/// A handle on the store. The last one to be dropped closes it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    path: PathBuf,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    /// Of the writer, which dozes while the disk is full.
    waker: Thread,
    space: Arc<Space>,
    /// Turns of those who read pages of histories.
    page_reads: Semaphore,
    compacting: watch::Receiver<BTreeSet<SessionId>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    db: Db,
    /// Released last, so that nobody else opens the folder while sled is closing.
    _lock: Flock<File>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.0.path).finish()
    }
}

impl Inner {
    fn stop_writer(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop_writer();
    }
}

impl Store {
    /// Opens the store in the folder `path`, or makes it.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::NewerFormat`], [`StoreError::Corrupt`], [`StoreError::Io`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with_reserve(path, 0).await
    }

    /// Like [`Store::open`]; writes are refused with [`StoreError::Full`] while less than `reserve_bytes` are free on its disk.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub async fn open_with_reserve(path: impl AsRef<Path>, reserve_bytes: u64) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        blocking(move || Self::open_now(path, reserve_bytes)).await
    }

    fn open_now(path: PathBuf, reserve_bytes: u64) -> Result<Self, StoreError> {
        let opened = open::open(&path)?;
        let space = Arc::new(Space::new(&path, reserve_bytes));
        let ledger = Ledger::new(opened.db.clone(), opened.data, opened.witness, Arc::clone(&space))?;
        let compacting = ledger.compaction.running();
        let (jobs, queue) = mpsc::channel(writer::QUEUE_JOBS);
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || writer::run(ledger, queue));
        let thread = thread.map_err(|e| StoreError::io("start its writer", e))?;
        Ok(Self(Arc::new(Inner {
            path,
            jobs: Mutex::new(Some(jobs)),
            waker: thread.thread().clone(),
            space,
            page_reads: Semaphore::new(PAGE_READS_MAX),
            compacting,
            writer: Mutex::new(Some(thread)),
            db: opened.db,
            _lock: opened.lock,
        })))
    }

    /// Finishes what is queued and stops writing; later calls answer [`StoreError::Closed`].
    pub async fn close(&self) {
        let inner = Arc::clone(&self.0);
        let stopped = blocking(move || {
            inner.stop_writer();
            Ok(())
        });
        if let Err(error) = stopped.await {
            tracing::error!(error = &error as &dyn std::error::Error, "the store was not closed in order");
        }
    }

    /// Whether it can be written, now and whenever that changes.
    #[must_use]
    pub fn condition(&self) -> watch::Receiver<Condition> {
        // The writer looks when it writes: nothing may have been written since the disk became full.
        self.0.space.look();
        self.0.space.watch()
    }

    /// Puts a session's record in the place of the one before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_session(&self, record: &SessionRecord) -> Result<(), StoreError> {
        let session = record.session.id.clone();
        let value = record::encode("session", record)?;
        self.write(move |ledger| {
            let mut batch = Batch::default();
            record::put(&ledger.db, &mut batch, &session_name(&session), &value)?;
            match ledger.cursor(&session) {
                Ok(_) => {
                    ledger.touch(&session);
                    ledger.apply(batch)
                }
                Err(StoreError::UnknownSession(_)) => ledger.apply_with_cursor(&session, SessionCursor::default(), batch),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Removes a session with all that is its own; sums by day and model stay. Its history is deleted by and by, also after a restart.
    ///
    /// # Errors
    /// [`StoreError::UnknownSession`].
    pub async fn remove_session(&self, session: &SessionId) -> Result<(), StoreError> {
        let session = session.clone();
        self.write(move |ledger| ledger.remove_session(&session)).await
    }

    /// All sessions by id, which is by age, with the end of their histories.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_sessions(&self) -> Result<Vec<(SessionRecord, SessionCursor)>, StoreError> {
        self.read(|db| {
            let mut sessions: Vec<(SessionRecord, SessionCursor)> = Vec::new();
            record::scan_table(db, Table::Session, |_, value| {
                sessions.push((record::decode("session", &value)?, SessionCursor::default()));
                Ok(())
            })?;
            let mut rows = sessions.iter_mut();
            record::scan_table(db, Table::Cursor, |name, value| {
                if let Some((_, cursor)) = rows.find(|(record, _)| record.session.id.as_str().as_bytes() == name) {
                    *cursor = record::decode("end of a history", &value)?;
                }
                Ok(())
            })?;
            Ok(sessions)
        })
        .await
    }

    /// Where a session's history durably ends.
    ///
    /// # Errors
    /// [`StoreError::UnknownSession`].
    pub async fn cursor(&self, session: &SessionId) -> Result<SessionCursor, StoreError> {
        let session = session.clone();
        // Through the writer: what is applied but not yet durable is not told.
        self.write(move |ledger| ledger.cursor(&session)).await
    }

    /// The journal of the session's sidecar begins anew at 1, because its volume was made anew.
    ///
    /// # Errors
    /// [`StoreError::UnknownSession`].
    pub(crate) async fn reset_journal(&self, session: &SessionId) -> Result<(), StoreError> {
        let session = session.clone();
        self.write(move |ledger| {
            let cursor = SessionCursor { journal_seq: 0, ..ledger.cursor(&session)? };
            ledger.apply_with_cursor(&session, cursor, Batch::default())
        })
        .await
    }

    /// Appends to a history. `durable` runs on the writer's thread, in the order of the appends, once they are durable, even if the caller is gone.
    pub(crate) async fn append(
        &self,
        session: &SessionId,
        events: Vec<NewEvent>,
        journal_seq: Option<u64>,
        durable: impl FnOnce(Vec<NewEvent>, &SessionCursor) + Send + 'static,
    ) -> Result<SessionCursor, StoreError> {
        let session = session.clone();
        let apply = move |ledger: &mut Ledger| append::append(ledger, &session, &events, journal_seq).map(|cursor| (cursor, events));
        let answer = |(cursor, events): (SessionCursor, Vec<NewEvent>)| {
            durable(events, &cursor);
            cursor
        };
        self.submit(apply, answer).await
    }

    /// What each message of a session has used.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn message_usage(&self, session: &SessionId) -> Result<Vec<MessageUsage>, StoreError> {
        let session = session.clone();
        self.read(move |db| {
            let mut usage = Vec::new();
            let session = session.as_str().as_bytes();
            record::scan(
                db,
                &record::prefix(Table::MessageUsage, session),
                &Name::new(Table::MessageUsage, &[session, b""]),
                |_, value| {
                    usage.push(record::decode("usage of a message", &value)?);
                    Ok(true)
                },
            )?;
            Ok(usage)
        })
        .await
    }

    /// What was used by day, provider and model, in all sessions, also those removed since.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn day_usage(&self) -> Result<Vec<DayUsage>, StoreError> {
        self.read(|db| table(db, Table::DayUsage, "usage of a day")).await
    }

    /// Remembers a permission for all sessions.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_rule(&self, rule: &PermissionRule) -> Result<(), StoreError> {
        let (name, value) = (rule_name(rule), record::encode("permission", rule)?);
        self.write(move |ledger| ledger.put(&name, &value)).await
    }

    /// Forgets a permission; answers whether it was known.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_rule(&self, rule: &PermissionRule) -> Result<bool, StoreError> {
        let name = rule_name(rule);
        self.write(move |ledger| ledger.remove(&name)).await
    }

    /// The permissions that hold for all sessions.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_rules(&self) -> Result<Vec<PermissionRule>, StoreError> {
        self.read(|db| table(db, Table::Rule, "permission")).await
    }

    pub(crate) async fn put_key(&self, key: &KeyRecord) -> Result<(), StoreError> {
        let (name, value) = (Name::new(Table::Key, &[key.provider.as_bytes()]), record::encode("provider key", key)?);
        self.write(move |ledger| ledger.put(&name, &value)).await
    }

    pub(crate) async fn load_keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.read(|db| table(db, Table::Key, "provider key")).await
    }

    /// Puts an encrypted record of a session; it goes when the session is removed.
    pub(crate) async fn put_sealed(&self, session: &SessionId, kind: &str, record: Vec<u8>) -> Result<(), StoreError> {
        let (name, session) = (sealed_name(session, kind), session.clone());
        self.write(move |ledger| {
            ledger.touch(&session);
            ledger.put(&name, &record)
        })
        .await
    }

    pub(crate) async fn sealed(&self, session: &SessionId, kind: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let name = sealed_name(session, kind);
        self.read(move |db| record::get(db, &name)).await
    }

    pub(crate) async fn remove_sealed(&self, session: &SessionId, kind: &str) -> Result<bool, StoreError> {
        let (name, session) = (sealed_name(session, kind), session.clone());
        self.write(move |ledger| {
            ledger.touch(&session);
            ledger.remove(&name)
        })
        .await
    }

    /// Whether anything is stored that only the master key opens.
    pub(crate) async fn holds_secrets(&self) -> Result<bool, StoreError> {
        self.read(|db| {
            let first = |table: Table| db.scan_prefix([table as u8]).next().transpose().map_err(|e| StoreError::engine("read records", e));
            Ok(first(Table::Sealed)?.is_some()
                || table::<KeyRecord>(db, Table::Key, "provider key")?.iter().any(|key| key.envelope.is_some()))
        })
        .await
    }

    async fn write<T: Send + 'static>(
        &self,
        apply: impl FnOnce(&mut Ledger) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.submit(apply, |applied| applied).await
    }

    /// Applies on the writer's thread and, once durable, makes the answer of it there, in the order of the jobs.
    async fn submit<A: Send + 'static, T: Send + 'static>(
        &self,
        apply: impl FnOnce(&mut Ledger) -> Result<A, StoreError> + Send + 'static,
        answer: impl FnOnce(A) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, replied) = oneshot::channel();
        let job: Job = Box::new(move |ledger| {
            let applied = apply(ledger);
            let finish: Answer = Box::new(move |durable| {
                // A caller that no longer waits has nothing to be told.
                let _ = reply.send(applied.and_then(|applied| durable.map(|()| answer(applied))));
            });
            finish
        });
        let jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(StoreError::Closed)?;
        jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        self.0.waker.unpark();
        replied.await.map_err(|_| StoreError::Broken { why: "its writer is gone".into() })?
    }

    async fn read<T: Send + 'static>(&self, read: impl FnOnce(&Db) -> Result<T, StoreError> + Send + 'static) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.0);
        blocking(move || read(&inner.db)).await
    }
}

/// Verifies the store in the folder `path` while no daemon uses it; nothing is changed, it is not migrated either.
///
/// # Errors
/// [`StoreError::Locked`], and what else keeps it from being read to its end.
pub fn verify_offline(path: &Path, opener: &Opener) -> Result<Report, StoreError> {
    let (db, format, _lock) = open::open_to_look(path)?;
    verify::verify(&db, format, Some(opener))
}

/// Runs on a thread that may block. sled can panic on damaged files; that becomes an error.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(StoreError::BadRecord { what: "database (its engine panicked)".to_owned() }))
}

fn table<T: serde::de::DeserializeOwned>(db: &Db, table: Table, what: &str) -> Result<Vec<T>, StoreError> {
    let mut values = Vec::new();
    record::scan_table(db, table, |_, value| {
        values.push(record::decode(what, &value)?);
        Ok(())
    })?;
    Ok(values)
}

fn session_name(session: &SessionId) -> Name {
    Name::new(Table::Session, &[session.as_str().as_bytes()])
}

fn rule_name(rule: &PermissionRule) -> Name {
    Name::new(Table::Rule, &[&record::digest(&[&rule.permission, &rule.pattern])])
}

fn sealed_name(session: &SessionId, kind: &str) -> Name {
    Name::new(Table::Sealed, &[session.as_str().as_bytes(), kind.as_bytes()])
}

/// The stored form of an event: its time (i64, big-endian) and the JSON of its kind; its number is in its key.
pub(crate) fn encode_event(at: Timestamp, kind: EventKind) -> Result<NewEvent, StoreError> {
    let mut stored = at.as_millis().to_be_bytes().to_vec();
    serde_json::to_writer(&mut stored, &kind).map_err(|_| StoreError::BadRecord { what: "event (to be stored)".to_owned() })?;
    let bytes = stored.len() - size_of::<i64>();
    if bytes > EVENT_MAX_BYTES {
        return Err(StoreError::EventTooLarge { bytes });
    }
    Ok(NewEvent { at, kind, stored })
}

fn decode_event(stored: &[u8]) -> Result<(Timestamp, EventKind), StoreError> {
    let (at, kind) = stored.split_first_chunk::<8>().ok_or_else(|| StoreError::BadRecord { what: "event".to_owned() })?;
    Ok((Timestamp::from_millis(i64::from_be_bytes(*at)), record::decode("event", kind)?))
}

#[cfg(test)]
pub(crate) mod tests;
