//! Reading a history while others write and compact it.
//!
//! sled's scans are no snapshots: a scan may run into what a compaction deletes meanwhile. So a page counts only if the floor is where it was
//! when the page was begun, or below all of the page; otherwise it is read again.

use std::collections::BTreeSet;

use openagent_core::config::HistoryConfig;
use openagent_core::event::Event;
use openagent_core::id::SessionId;
use sled::Db;
use tokio::sync::watch;

use super::model::SessionCursor;
use super::record::{self, Name, Table};
use super::{Store, StoreError, cursor_name, decode_event};

/// How much of a history is read at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

/// The compacted part of a history, as it is at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Floor {
    /// Up to here.
    pub(crate) seq: u64,
    /// Number of events that are kept of it.
    pub(crate) kept: u64,
    trimmed: u64,
}

/// What a read gives.
#[derive(Debug)]
pub(crate) enum Read {
    /// The next events with their stored sizes; they are all there is up to `through`.
    Events { events: Vec<(Event, usize)>, through: u64 },
    /// The place from which to read is below the floor, or the compacted part is not any more as the reader knows it.
    Compacted(Floor),
}

impl Store {
    /// Bounds all histories from now on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn bound_histories(&self, bounds: HistoryConfig) -> Result<(), StoreError> {
        let bound = move |ledger: &mut super::writer::Ledger| {
            ledger.compaction.bound(bounds);
            Ok(())
        };
        self.write(bound).await
    }

    /// The sessions whose histories are being compacted.
    pub(crate) fn compacting(&self) -> watch::Receiver<BTreeSet<SessionId>> {
        self.0.compacting.clone()
    }

    /// Events `after + 1` to `upto`, or as many of them as fit the page; at least one, if there is one. They are dense, but for the compacted part
    /// `known`, which a reader reads from its beginning; without it, nothing at or below the floor is given.
    pub(crate) async fn events(
        &self,
        session: &SessionId,
        after: u64,
        upto: u64,
        page: Page,
        known: Option<Floor>,
    ) -> Result<Read, StoreError> {
        let session = session.clone();
        // Never closed.
        let _turn = self.0.page_reads.acquire().await;
        self.read(move |db| {
            let mut floor = floor_of(db, &session)?;
            loop {
                match known {
                    Some(known) if known != floor => return Ok(Read::Compacted(floor)),
                    None if after < floor.seq => return Ok(Read::Compacted(floor)),
                    Some(_) | None => {}
                }
                let read = scan(db, &session, after, upto, page, floor.seq);
                let now = floor_of(db, &session)?;
                if now == floor || after >= now.seq {
                    return read;
                }
                floor = now;
            }
        })
        .await
    }
}

fn floor_of(db: &Db, session: &SessionId) -> Result<Floor, StoreError> {
    let cursor = record::get(db, &cursor_name(session))?;
    // Without a cursor the session was removed: nothing is left to be read.
    let cursor: SessionCursor = cursor.map(|stored| record::decode("end of a history", &stored)).transpose()?.unwrap_or_default();
    Ok(Floor { seq: cursor.floor, kept: cursor.kept, trimmed: cursor.extent.trimmed })
}

fn scan(db: &Db, session: &SessionId, after: u64, upto: u64, page: Page, floor: u64) -> Result<Read, StoreError> {
    let mut events = Vec::new();
    if after >= upto {
        return Ok(Read::Events { events, through: after });
    }
    let (mut last, mut left, mut is_cut) = (after, page.bytes, false);
    let prefix = record::prefix(Table::Event, session.as_str().as_bytes());
    record::scan(db, &prefix, &Name::event(session, after + 1), |name, stored| {
        let seq = name.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::BadRecord { what: "event".to_owned() })?;
        if seq > upto {
            return Ok(false);
        }
        if seq > floor && seq != last.max(floor) + 1 {
            return Err(StoreError::BadRecord { what: format!("history of session {session} (an event is missing)") });
        }
        is_cut = events.len() >= page.events || (!events.is_empty() && stored.len() > left);
        if is_cut {
            return Ok(false);
        }
        left = left.saturating_sub(stored.len());
        let (at, kind) = decode_event(&stored)?;
        events.push((Event { seq, at, kind }, stored.len()));
        last = seq;
        Ok(seq < upto)
    })?;
    let through = match () {
        () if is_cut => last,
        // Up to the floor a history is sparse; above it, what ends early lacks its end, or was removed.
        () if upto <= floor => upto,
        () => last.max(floor),
    };
    Ok(Read::Events { events, through })
}
