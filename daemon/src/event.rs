//! The event log: append, then ring; each reader reads by its own cursor.
//!
//! Invariants: the events of a session are numbered densely from 1 in the order of their appends; none is shown before it is durable; a reader
//! gets each event after its cursor exactly once and in order, however slow it is and whatever the others do. There is no queue per reader: a
//! doorbell (`watch`) says how far the history goes, and the reader fetches pages, from the recent events that are kept in memory while
//! anybody reads, or from the store.
//!
//! Letters of unfinished parts ([`live`]) are not recorded. A reader gets those of a part after the part's first recorded state and never after
//! its final one; one that is slow gets fewer and longer pieces.
//!
//! ```text
//! append ─► store's writer ─► durable ─► live parts, recent events ─► doorbell ─► readers
//! delta  ─► live parts ─► doorbell of letters ─► readers that have all recorded events
//! ```

mod live;
mod reader;
mod recent;
mod recorded;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openagent_core::event::{Event, EventKind, PartDelta};
use openagent_core::id::SessionId;
use openagent_core::time::Timestamp;
use openagent_core::usage::Usage;
use tokio::sync::watch;

use crate::store::{NewEvent, Page, Read, SessionCursor, Store, StoreError, encode_event};
use live::Live;
pub use reader::{Delivery, EventReader, Item, Snapshot};
use recent::Recent;
pub use recorded::Recorded;

/// What a reader takes from the store at once.
const PAGE: Page = Page { events: 256, bytes: 256 * 1024 };

/// Histories that are kept in memory before it is looked for some that nobody needs.
const HISTORIES_MAX: usize = 256;

/// Where a session's history durably ends, and its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogInfo {
    /// Number of its last event; 0: none.
    pub last_seq: u64,
    /// The sidecar's number for the last of its events that is stored.
    pub journal_seq: u64,
    /// When its last event happened.
    pub updated_at: Option<Timestamp>,
    /// What it has used.
    pub usage: Usage,
}

impl From<&SessionCursor> for LogInfo {
    fn from(cursor: &SessionCursor) -> Self {
        Self { last_seq: cursor.last_seq, journal_seq: cursor.journal_seq, updated_at: cursor.updated_at, usage: cursor.usage }
    }
}

/// The histories of all sessions. A clone is the same log.
#[derive(Clone)]
pub struct EventLog(Arc<Inner>);

struct Inner {
    store: Store,
    /// Of the sessions that are in use, and some that were lately; entries go when their session is removed.
    histories: Mutex<Histories>,
}

#[derive(Default)]
struct Histories {
    known: HashMap<SessionId, Arc<History>>,
    /// How often entries were taken out: what was read from the store before may be older than what is stored now.
    purges: u64,
    /// Size at which it is looked for entries that nobody needs.
    sweep_at: usize,
}

impl Histories {
    /// Lets those go that nobody reads or writes and in which no part is being written.
    fn sweep(&mut self) {
        if self.known.len() < self.sweep_at.max(HISTORIES_MAX) {
            return;
        }
        // Handles are taken under the lock of this: what nobody holds now, nobody appends to or reads.
        self.known.retain(|_, history| Arc::strong_count(history) > 1 || !locked(&history.live).is_empty());
        self.purges += 1;
        self.sweep_at = self.known.len() * 2;
    }
}

/// What is kept in memory of one session's history.
#[derive(Debug)]
struct History {
    /// `None` once the session was removed.
    recorded: watch::Sender<Option<LogInfo>>,
    letters: watch::Sender<u64>,
    live: Mutex<Live>,
    recent: Mutex<Recent>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for EventLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EventLog")
    }
}

impl EventLog {
    /// The log that `store` holds.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self(Arc::new(Inner { store, histories: Mutex::default() }))
    }

    /// Appends events and answers the number of the last one, once they are durable. All of them are stored, or none. The appends of one
    /// session are in the order in which they were first polled. `journal_seq` is the sidecar's number for the last of the events, where they
    /// come from its journal; give all events of one journal entry together.
    ///
    /// Dropping the future does not undo the append.
    ///
    /// # Errors
    /// [`StoreError::UnknownSession`], [`StoreError::EventTooLarge`], [`StoreError::JournalReplayed`] when `journal_seq` is stored already
    /// (nothing was appended, so a caller that only repeats itself can go on), and whatever stops the store.
    pub async fn append(
        &self,
        session: &SessionId,
        events: Vec<(Timestamp, EventKind)>,
        journal_seq: Option<u64>,
    ) -> Result<u64, StoreError> {
        let history = self.history(session).await?;
        let events = events.into_iter().map(|(at, kind)| encode_event(at, kind)).collect::<Result<Vec<_>, _>>()?;
        let publish = move |events: Vec<NewEvent>, cursor: &SessionCursor| history.publish(events, cursor);
        self.0.store.append(session, events, journal_seq, publish).await.map(|cursor| cursor.last_seq)
    }

    /// Passes the letters of an unfinished part on. Call it after the append of the part's first state has answered: letters of parts that are
    /// not open are not shown, and neither are those behind a gap, until the part is recorded again or its text restarts at 0.
    pub async fn delta(&self, session: &SessionId, delta: PartDelta) -> Result<(), StoreError> {
        let history = self.history(session).await?;
        if locked(&history.live).push(&delta) {
            history.letters.send_modify(|rings| *rings = rings.wrapping_add(1));
        }
        Ok(())
    }

    /// Where a session's history ends.
    ///
    /// # Errors
    /// [`StoreError::UnknownSession`].
    pub async fn info(&self, session: &SessionId) -> Result<LogInfo, StoreError> {
        let known = locked(&self.0.histories).known.get(session).map(|history| *history.recorded.borrow());
        match known {
            Some(info) => info.ok_or_else(|| StoreError::UnknownSession(session.clone())),
            // Whoever only asks for the end of a history leaves nothing behind.
            None => self.0.store.cursor(session).await.map(|cursor| LogInfo::from(&cursor)),
        }
    }

    /// A reader of what follows the event numbered `after`; with the letters of unfinished parts, if `deltas`.
    ///
    /// # Errors
    /// [`StoreError::UnknownSession`], [`StoreError::CursorBeyondEnd`].
    pub async fn subscribe(&self, session: &SessionId, after: u64, deltas: bool) -> Result<EventReader, StoreError> {
        let history = self.history(session).await?;
        EventReader::new(self.0.store.clone(), session.clone(), history, after, deltas)
    }

    /// Removes a session with its history from the store and tells its readers.
    ///
    /// # Errors
    /// [`StoreError::UnknownSession`].
    pub async fn remove(&self, session: &SessionId) -> Result<(), StoreError> {
        self.0.store.remove_session(session).await?;
        let mut histories = locked(&self.0.histories);
        histories.purges += 1;
        if let Some(history) = histories.known.remove(session) {
            history.recorded.send_replace(None);
        }
        Ok(())
    }

    /// The journal of the session's sidecar begins anew at 1. To be called when the volume that holds the journal was removed.
    ///
    /// # Errors
    /// [`StoreError::UnknownSession`].
    pub async fn reset_journal(&self, session: &SessionId) -> Result<(), StoreError> {
        let history = self.history(session).await?;
        self.0.store.reset_journal(session).await?;
        history.recorded.send_modify(|info| {
            if let Some(info) = info {
                info.journal_seq = 0;
            }
        });
        Ok(())
    }

    async fn history(&self, session: &SessionId) -> Result<Arc<History>, StoreError> {
        loop {
            let purges = {
                let histories = locked(&self.0.histories);
                if let Some(history) = histories.known.get(session) {
                    return Ok(Arc::clone(history));
                }
                histories.purges
            };
            let history = self.stored(session).await?;
            let mut histories = locked(&self.0.histories);
            if histories.purges == purges {
                histories.sweep();
                // Whoever was first has published since, perhaps.
                return Ok(Arc::clone(histories.known.entry(session.clone()).or_insert_with(|| Arc::new(history))));
            }
        }
    }

    /// What the store knows of a history.
    async fn stored(&self, session: &SessionId) -> Result<History, StoreError> {
        let cursor = self.0.store.cursor(session).await?;
        let mut live = Live::at(cursor.last_seq);
        for open in cursor.open_parts.values() {
            // Parts that are being written are above the floor; one that is no longer has no letters either.
            if let Read::Events { events, .. } = self.0.store.events(session, open.seq - 1, open.seq, PAGE, None).await? {
                events.iter().for_each(|(event, _)| live.record(event));
            }
        }
        live.recorded_to(cursor.last_seq);
        Ok(History {
            recorded: watch::Sender::new(Some(LogInfo::from(&cursor))),
            letters: watch::Sender::new(0),
            live: Mutex::new(live),
            recent: Mutex::default(),
        })
    }
}

impl History {
    /// Makes durable events visible; called by the store's writer, in the order of the appends.
    fn publish(&self, events: Vec<NewEvent>, cursor: &SessionCursor) {
        let first = cursor.last_seq + 1 - events.len() as u64;
        let events: Vec<(Arc<Recorded>, usize)> = (first..)
            .zip(events)
            .map(|(seq, event)| (Arc::new(Recorded::new(Event { seq, at: event.at, kind: event.kind })), event.stored.len()))
            .collect();
        {
            // Before the doorbell: whoever sees a part's final state must find its letters gone.
            let mut live = locked(&self.live);
            for (event, _) in &events {
                live.record(event);
            }
            live.recorded_to(cursor.last_seq);
        }
        let is_read = self.recorded.receiver_count() > 0;
        {
            let mut recent = locked(&self.recent);
            if is_read {
                recent.extend(events);
            } else {
                recent.clear();
            }
        }
        self.recorded.send_modify(|info| {
            if info.is_some() {
                *info = Some(LogInfo::from(cursor));
            }
        });
    }
}

#[cfg(test)]
mod tests;
