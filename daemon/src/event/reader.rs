//! A reader of one session's history: a cursor, a page, and what it has had of the open parts.

use std::collections::VecDeque;
use std::sync::Arc;

use openagent_core::event::{Event, PartDelta};
use openagent_core::id::SessionId;
use tokio::sync::watch;

use super::live::Had;
use super::{History, LogInfo, PAGE, locked};
use crate::store::{Store, StoreError};

/// What a reader gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// The next recorded event.
    Event(Arc<Event>),
    /// Letters of an unfinished part; offset 0 restarts its text.
    Delta(PartDelta),
    /// Everything that was recorded when the subscription began has been delivered; its last number. Comes once.
    CaughtUp(u64),
    /// The session was removed; nothing else will come.
    Removed,
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
    page: VecDeque<Arc<Event>>,
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
        loop {
            let Some(info) = *self.recorded.borrow_and_update() else { return Ok(Item::Removed) };
            if let Some(target) = self.target.take_if(|target| *target <= self.cursor) {
                return Ok(Item::CaughtUp(target));
            }
            if self.page.is_empty() && self.cursor < info.last_seq {
                self.page = self.fetch(info.last_seq).await?;
            }
            if let Some(event) = self.page.pop_front() {
                self.cursor = event.seq;
                if self.letters.is_some() {
                    locked(&self.history.live).delivered(&event, &mut self.had);
                }
                return Ok(Item::Event(event));
            }
            match &mut self.letters {
                None => wait(&mut self.recorded).await?,
                Some(letters) => {
                    letters.mark_unchanged();
                    if let Some(delta) = locked(&self.history.live).next(self.cursor, &mut self.had) {
                        return Ok(Item::Delta(delta));
                    }
                    tokio::select! {
                        changed = wait(&mut self.recorded) => changed?,
                        changed = wait(letters) => changed?,
                    }
                }
            }
        }
    }

    async fn fetch(&self, upto: u64) -> Result<VecDeque<Arc<Event>>, StoreError> {
        if let Some(page) = locked(&self.history.recent).page(self.cursor, PAGE) {
            return Ok(page);
        }
        let page = self.store.events(&self.session, self.cursor, upto, PAGE).await?;
        if page.is_empty() && self.recorded.borrow().is_some() {
            return Err(StoreError::BadRecord { what: format!("history of session {} (its end is missing)", self.session) });
        }
        Ok(page.into_iter().map(|(event, _)| event).collect())
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
