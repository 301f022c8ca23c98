//! The journal: every event that is recorded, in order, on disk before anybody sees it, until the daemon has it.
//!
//! One thread owns the files and does everything that blocks. What queued up while it wrote is appended and flushed in one go, then answered, then
//! the doorbell is rung. A reader has a cursor of its own and asks for what is behind it; nothing is queued for a reader, so that a slow one costs
//! nothing. The files are bounded: when they are full the oldest entries go, and whoever still wanted them is told by a [`JournalItem::Gap`].
//!
//! Letters of parts that are still being written are kept beside it in memory only, so that a late reader gets the part so far.

mod file;
mod live;

use std::borrow::Borrow;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use openagent_core::event::{EVENT_MAX_BYTES, EventKind, PartDelta};
use openagent_core::id::PartId;
use openagent_core::time::Timestamp;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::file::DEFAULT_MAX_BYTES;
use self::file::{Limits, SegmentFiles};
use self::live::{Effect, Live, Sent};

/// Commands that wait for the journal's thread; further callers wait.
const COMMANDS_MAX: usize = 256;

/// Bytes after which a batch is written although more is waiting.
const BATCH_MAX_BYTES: usize = EVENT_MAX_BYTES;

/// Why the journal failed.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The files cannot be read or made.
    #[error("the journal in {folder} cannot be opened")]
    Open {
        /// Its folder.
        folder: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another sidecar writes it.
    #[error("the journal in {folder} is in use by another sidecar")]
    InUse {
        /// Its folder.
        folder: String,
    },
    /// It was written by a newer version.
    #[error("the journal file {file} has a format that this version does not know")]
    Format {
        /// The file.
        file: String,
    },
    /// The event could not be written; the journal is as it was.
    #[error("the event cannot be written to the journal")]
    Write(#[source] Arc<io::Error>),
    /// The event is larger than [`EVENT_MAX_BYTES`].
    #[error("an event of {bytes} bytes is too large for the journal")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The event has no JSON form.
    #[error("the event cannot be serialised")]
    Serialise(#[source] serde_json::Error),
    /// The journal's thread has ended.
    #[error("the journal is closed")]
    Closed,
}

/// What a reader gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalItem {
    /// A recorded event.
    Recorded {
        /// Its number: dense, from 1, over the life of the session's volume.
        seq: u64,
        /// When it was recorded.
        at: Timestamp,
        /// JSON object of its kind.
        kind: Bytes,
    },
    /// Letters of a part that is being written.
    Delta(PartDelta),
    /// These entries are no longer kept.
    Gap {
        /// First missing entry.
        first: u64,
        /// Last missing entry.
        last: u64,
    },
}

enum Command {
    Record { kind: Vec<u8>, effect: Effect, reply: oneshot::Sender<Result<u64, JournalError>> },
    Read { after: u64, reply: oneshot::Sender<io::Result<Vec<JournalItem>>> },
    Trim,
    Flush { reply: oneshot::Sender<()> },
}

struct Shared {
    acknowledged: AtomicU64,
    kept_from: AtomicU64,
    live: Mutex<Live>,
    letters: watch::Sender<()>,
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handle on the journal.
#[derive(Clone)]
pub struct Journal {
    commands: mpsc::Sender<Command>,
    head: watch::Receiver<u64>,
    shared: Arc<Shared>,
}

impl Journal {
    /// Opens or makes the journal in `state_dir` and starts its thread. What a crash left half written is cut off.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(state_dir: &Path) -> Result<Self, JournalError> {
        Self::open_with(state_dir, Limits::default())
    }

    /// As [`open`](Self::open), with files of at most `max_bytes` together.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open_within(state_dir: &Path, max_bytes: u64) -> Result<Self, JournalError> {
        Self::open_with(state_dir, Limits::within(max_bytes))
    }

    fn open_with(state_dir: &Path, limits: Limits) -> Result<Self, JournalError> {
        let folder = state_dir.join("journal");
        let files = SegmentFiles::open(&folder, limits)?;
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (bell, head) = watch::channel(files.last());
        let shared = Arc::new(Shared {
            acknowledged: AtomicU64::new(0),
            kept_from: AtomicU64::new(u64::MAX),
            live: Mutex::new(Live::default()),
            letters: watch::Sender::new(()),
        });
        let writer = Writer { files, inbox, bell, shared: Arc::clone(&shared) };
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| JournalError::Open { folder: folder.display().to_string(), source })?;
        Ok(Self { commands, head, shared })
    }

    /// Number of the last recorded event; 0 before the first.
    #[must_use]
    pub fn last(&self) -> u64 {
        *self.head.borrow()
    }

    /// Records an event and answers its number once it is durable.
    ///
    /// # Errors
    /// [`JournalError`]; the event is then not recorded.
    pub async fn record(&self, event: impl Borrow<EventKind>) -> Result<u64, JournalError> {
        let event = event.borrow();
        let kind = serde_json::to_vec(event).map_err(JournalError::Serialise)?;
        if kind.len() > EVENT_MAX_BYTES {
            return Err(JournalError::TooLarge { bytes: kind.len() });
        }
        let (reply, answer) = oneshot::channel();
        let command = Command::Record { kind, effect: Effect::of(event), reply };
        self.commands.send(command).await.map_err(|_| JournalError::Closed)?;
        answer.await.map_err(|_| JournalError::Closed)?
    }

    /// Passes letters of a part on that is being written. Never recorded; superseded by the part when it is.
    pub fn delta(&self, delta: PartDelta) {
        let last = self.last();
        self.shared.live().take(delta, last);
        self.shared.letters.send_replace(());
    }

    /// A reader of everything behind `after`. A cursor that is ahead of the journal (whose volume was lost or cut) moves the journal's numbers on, so
    /// that nothing recorded from now on is mistaken for what that reader has.
    #[must_use]
    pub fn subscribe(&self, after: u64) -> JournalReader {
        JournalReader {
            commands: self.commands.clone(),
            head: self.head.clone(),
            letters: self.shared.letters.subscribe(),
            shared: Arc::clone(&self.shared),
            after,
            ready: VecDeque::new(),
            sent: BTreeMap::new(),
        }
    }

    /// Entries up to `seq` are no longer needed.
    pub fn ack(&self, seq: u64) {
        self.shared.acknowledged.fetch_max(seq, Ordering::AcqRel);
        // When the queue is full the thread is at work, and looks at the number after its next batch anyway.
        let _ = self.commands.try_send(Command::Trim);
    }

    /// Entries behind `seq` are kept though they are acknowledged, as long as there is room.
    pub fn keep_from(&self, seq: u64) {
        self.shared.kept_from.store(seq, Ordering::Release);
    }

    /// Waits until everything that was recorded before this call has been answered.
    ///
    /// # Errors
    /// [`JournalError::Closed`].
    pub async fn flush(&self) -> Result<(), JournalError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Flush { reply }).await.map_err(|_| JournalError::Closed)?;
        answer.await.map_err(|_| JournalError::Closed)
    }
}

/// Reads the journal at its own pace.
pub struct JournalReader {
    commands: mpsc::Sender<Command>,
    head: watch::Receiver<u64>,
    letters: watch::Receiver<()>,
    shared: Arc<Shared>,
    after: u64,
    ready: VecDeque<JournalItem>,
    sent: BTreeMap<PartId, Sent>,
}

impl JournalReader {
    /// The next item; waits for it. `None` when the journal is closed or cannot be read. Cancel safe.
    pub async fn next(&mut self) -> Option<JournalItem> {
        loop {
            if let Some(item) = self.try_next().await.ok()? {
                return Some(item);
            }
            tokio::select! {
                changed = self.head.changed() => changed.ok()?,
                changed = self.letters.changed() => changed.ok()?,
            }
        }
    }

    /// The next item, if there is one now. Cancel safe.
    ///
    /// # Errors
    /// [`JournalError::Closed`] when the journal is closed or cannot be read.
    pub async fn try_next(&mut self) -> Result<Option<JournalItem>, JournalError> {
        if self.ready.is_empty() {
            self.letters.mark_unchanged();
            let last = *self.head.borrow_and_update();
            if last != self.after {
                self.read().await?;
            }
        }
        if let Some(item) = self.ready.pop_front() {
            match item {
                JournalItem::Recorded { seq: last, .. } | JournalItem::Gap { last, .. } => self.after = last,
                JournalItem::Delta(_) => {}
            }
            return Ok(Some(item));
        }
        // Letters are shown behind what was recorded before them only.
        Ok(self.shared.live().next(self.after, &mut self.sent).map(JournalItem::Delta))
    }

    async fn read(&mut self) -> Result<(), JournalError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Read { after: self.after, reply }).await.map_err(|_| JournalError::Closed)?;
        match answer.await.map_err(|_| JournalError::Closed)? {
            Ok(items) => {
                self.ready = items.into();
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, after = self.after, "the journal cannot be read");
                Err(JournalError::Closed)
            }
        }
    }
}

/// The journal's thread.
struct Writer {
    files: SegmentFiles,
    inbox: mpsc::Receiver<Command>,
    bell: watch::Sender<u64>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Batch {
    kinds: Vec<Vec<u8>>,
    effects: Vec<Effect>,
    replies: Vec<oneshot::Sender<Result<u64, JournalError>>>,
    bytes: usize,
}

impl Writer {
    fn run(mut self) {
        while let Some(first) = self.inbox.blocking_recv() {
            let mut batch = Batch::default();
            let mut next = Some(first);
            while let Some(command) = next {
                match command {
                    Command::Record { kind, effect, reply } => {
                        batch.bytes += kind.len();
                        batch.kinds.push(kind);
                        batch.effects.push(effect);
                        batch.replies.push(reply);
                        next = if batch.bytes < BATCH_MAX_BYTES { self.inbox.try_recv().ok() } else { None };
                    }
                    other => {
                        self.commit(std::mem::take(&mut batch));
                        self.serve(other);
                        next = None;
                    }
                }
            }
            self.commit(batch);
        }
    }

    fn commit(&mut self, batch: Batch) {
        if batch.kinds.is_empty() {
            return;
        }
        let at = Timestamp::from(OffsetDateTime::now_utc());
        let appended = self.files.append(at, &batch.kinds).or_else(|error| {
            let acknowledged = self.shared.acknowledged.load(Ordering::Acquire);
            if self.files.recycle(acknowledged)? { self.files.append(at, &batch.kinds) } else { Err(error) }
        });
        match appended {
            Ok(first) => {
                let numbered = || (first..).zip(&batch.effects);
                let mut live = self.shared.live();
                numbered().for_each(|(seq, effect)| live.apply(effect, seq));
                drop(live);
                self.bell.send_replace(self.files.last());
                for (seq, reply) in (first..).zip(batch.replies) {
                    // Whoever recorded may be gone; the event is recorded all the same.
                    let _ = reply.send(Ok(seq));
                }
            }
            Err(error) => {
                tracing::error!(%error, "events cannot be written to the journal");
                let error = Arc::new(error);
                for reply in batch.replies {
                    let _ = reply.send(Err(JournalError::Write(Arc::clone(&error))));
                }
            }
        }
        self.trim();
    }

    fn serve(&mut self, command: Command) {
        match command {
            Command::Read { after, reply } => {
                let items = self.read(after);
                let _ = reply.send(items);
            }
            Command::Trim => self.trim(),
            Command::Flush { reply } => {
                let _ = reply.send(());
            }
            // Taken by `run` into its batch.
            Command::Record { .. } => {}
        }
    }

    fn read(&mut self, after: u64) -> io::Result<Vec<JournalItem>> {
        if after > self.files.last() {
            tracing::warn!(journal = self.files.last(), reader = after, "the journal is behind its reader; its numbers are moved on");
            self.files.skip_to(after)?;
            self.bell.send_replace(self.files.last());
        }
        self.files.read(after)
    }

    fn trim(&mut self) {
        let (acknowledged, kept_from) = (self.shared.acknowledged.load(Ordering::Acquire), self.shared.kept_from.load(Ordering::Acquire));
        if let Err(error) = self.files.trim(acknowledged, kept_from) {
            tracing::warn!(%error, "the journal cannot be trimmed");
        }
    }
}

#[cfg(test)]
mod tests;
