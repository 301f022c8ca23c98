//! A reader of one session's history: a cursor, a page, and what it has had of the open parts.
//!
//! A cursor at or above the floor gets what follows it, each event once. One below it is given a [`Snapshot`]: everything that is kept, from the
//! beginning, then what follows the floor. A compaction that overtakes a reader makes it begin such a snapshot; so does one that changes the
//! kept events while a reader is among them. A reader waits for the end of a compaction that runs, so each run costs it one snapshot at most.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openagent_core::event::{Event, PartDelta};
use openagent_core::id::SessionId;
use tokio::sync::watch;

use super::live::Had;
use super::recorded::{self, Recorded};
use super::{History, LogInfo, PAGE, locked};
use crate::store::{Floor, PartEffect, Read, Store, StoreError};

/// How long a compaction that runs is waited for before what it has left so far is read.
const COMPACTION_WAIT: Duration = Duration::from_secs(2);

/// What a reader gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// The next recorded event.
    Event(Arc<Recorded>),
    /// Letters of an unfinished part; offset 0 restarts its text.
    Delta(PartDelta),
    /// The reader begins anew: what it had is replaced by what follows. Of the events up to the floor some are kept, in order but not dense, each
    /// with the latest state of what it tells about; then events are dense.
    Snapshot(Snapshot),
    /// Everything that was recorded when the subscription began has been delivered; its last number. Comes once.
    CaughtUp(u64),
    /// The session was removed; nothing else will come.
    Removed,
}

/// What a reader gets that passes events on encoded.
#[derive(Debug)]
pub enum Delivery {
    /// The next recorded events, in the form in which they are passed on.
    Events(Bytes),
    /// Something else.
    Other(Item),
}

/// What is left of the older part of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Number of the last event of that part.
    pub floor: u64,
    /// How many of its events are kept.
    pub kept: u64,
    /// How many are not.
    pub dropped: u64,
}

/// Reads a session's history from a cursor on, and follows it.
#[derive(Debug)]
pub struct EventReader {
    store: Store,
    session: SessionId,
    history: Arc<History>,
    recorded: watch::Receiver<Option<LogInfo>>,
    letters: Option<watch::Receiver<u64>>,
    cursor: u64,
    /// What is still to be reached before it has caught up.
    target: Option<u64>,
    page: VecDeque<Arc<Recorded>>,
    /// Where the reader is once the page is used up.
    through: u64,
    /// The compacted part, while the reader is in it.
    below: Option<Floor>,
    had: Had,
}

impl EventReader {
    pub(super) fn new(store: Store, session: SessionId, history: Arc<History>, after: u64, deltas: bool) -> Result<Self, StoreError> {
        let recorded = history.recorded.subscribe();
        let last = recorded.borrow().map(|info| info.last_seq);
        let last = last.ok_or_else(|| StoreError::UnknownSession(session.clone()))?;
        if after > last {
            return Err(StoreError::CursorBeyondEnd { session, after, last });
        }
        let letters = deltas.then(|| history.letters.subscribe());
        Ok(Self {
            store,
            session,
            history,
            recorded,
            letters,
            cursor: after,
            target: Some(last),
            page: VecDeque::new(),
            through: after,
            below: None,
            had: Had::default(),
        })
    }

    /// Number of the last event that was delivered.
    #[must_use]
    pub const fn cursor(&self) -> u64 {
        self.cursor
    }

    /// The next item. Cancel-safe: an item is either delivered or still to come.
    ///
    /// # Errors
    /// [`StoreError`], when the history cannot be read.
    pub async fn next(&mut self) -> Result<Item, StoreError> {
        if let Some(other) = self.until_events().await? {
            return Ok(other);
        }
        let event = Arc::clone(&self.page[0]);
        self.delivered(1);
        Ok(Item::Event(event))
    }

    /// The next events as `encode` gives them, as many as go together; or another item. Every event is encoded once for all readers, so
    /// there is one `encode` for a log. Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`], when the history cannot be read.
    pub async fn next_encoded(&mut self, encode: impl Fn(&Event, &mut Vec<u8>)) -> Result<Delivery, StoreError> {
        if let Some(other) = self.until_events().await? {
            return Ok(Delivery::Other(other));
        }
        let (bytes, count) = recorded::run(&self.page, encode);
        self.delivered(count);
        Ok(Delivery::Events(bytes))
    }

    /// Waits until there are events on the page, or something else comes first.
    async fn until_events(&mut self) -> Result<Option<Item>, StoreError> {
        loop {
            if let Some(target) = self.target.take_if(|target| *target <= self.cursor) {
                return Ok(Some(Item::CaughtUp(target)));
            }
            if !self.page.is_empty() {
                return Ok(None);
            }
            let Some(info) = *self.recorded.borrow_and_update() else { return Ok(Some(Item::Removed)) };
            if self.cursor < info.last_seq {
                // Up to the target first, so that nothing goes together with what comes behind it.
                if let Some(snapshot) = self.fetch(self.target.unwrap_or(info.last_seq)).await? {
                    return Ok(Some(Item::Snapshot(snapshot)));
                }
                if self.page.is_empty() {
                    self.cursor = self.through;
                }
                continue;
            }
            match &mut self.letters {
                None => wait(&mut self.recorded).await?,
                Some(letters) => {
                    letters.mark_unchanged();
                    if let Some(delta) = locked(&self.history.live).next(self.cursor, &mut self.had) {
                        return Ok(Some(Item::Delta(delta)));
                    }
                    tokio::select! {
                        changed = wait(&mut self.recorded) => changed?,
                        changed = wait(letters) => changed?,
                    }
                }
            }
        }
    }

    /// The first `count` events of the page are the client's now.
    fn delivered(&mut self, count: usize) {
        for event in self.page.drain(..count) {
            self.cursor = event.seq;
            if self.letters.is_some() && matches!(PartEffect::of(&event.kind), PartEffect::Open { .. }) {
                locked(&self.history.live).delivered(&event, &mut self.had);
            }
        }
        if self.page.is_empty() {
            self.cursor = self.through;
        }
    }

    /// Gets the next page, or begins a snapshot.
    async fn fetch(&mut self, upto: u64) -> Result<Option<Snapshot>, StoreError> {
        if self.below.is_none()
            && let Some(mut page) = locked(&self.history.recent).page(self.cursor, PAGE)
        {
            page.truncate(page.partition_point(|event| event.seq <= upto));
            self.through = page.back().map_or(self.cursor, |event| event.seq);
            self.page = page;
            return Ok(None);
        }
        let mut compacting = self.store.compacting();
        let mut has_waited = false;
        let floor = loop {
            match self.store.events(&self.session, self.cursor, upto, PAGE, self.below).await? {
                Read::Events { events, through } => {
                    if through == self.cursor && self.recorded.borrow().is_some() {
                        return Err(StoreError::BadRecord { what: format!("history of session {} (its end is missing)", self.session) });
                    }
                    self.page = events.into_iter().map(|(event, _)| Arc::new(Recorded::new(event))).collect();
                    self.through = through;
                    self.below.take_if(|floor| through >= floor.seq);
                    return Ok(None);
                }
                Read::Compacted(floor) if has_waited => break floor,
                Read::Compacted(_) => {
                    has_waited = true;
                    // Its end or the time's: in both cases what is there now is read.
                    let _ = tokio::time::timeout(COMPACTION_WAIT, compacting.wait_for(|running| !running.contains(&self.session))).await;
                }
            }
        };
        (self.cursor, self.through) = (0, 0);
        self.below = Some(floor);
        self.target = self.target.map(|target| target.max(floor.seq));
        self.had = Had::default();
        Ok(Some(Snapshot { floor: floor.seq, kept: floor.kept, dropped: floor.seq.saturating_sub(floor.kept) }))
    }
}

/// The history outlives its readers, so the doorbell is never gone.
async fn wait<T>(doorbell: &mut watch::Receiver<T>) -> Result<(), StoreError> {
    doorbell.changed().await.map_err(|_| StoreError::Closed)
}

impl Drop for EventReader {
    fn drop(&mut self) {
        if self.history.recorded.receiver_count() <= 1 {
            locked(&self.history.recent).clear();
        }
    }
}
