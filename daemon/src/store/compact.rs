//! Compaction: what is old is kept only as far as it still says something.
//!
//! Each history has a floor ([`SessionCursor::floor`]). Above it every event is kept, densely. At and below it are kept, sparsely and in order:
//!
//! - of each message, part, usage of a message, subagent and open terminal: the latest state that was recorded at or below the floor, in the
//!   place of the first one. Taking the place keeps the order of a conversation, which is the order in which things appeared;
//! - of each request, and of title, status, instance, agent, provider keys, things to do and changed files: the latest event, at its own place;
//! - what tells the conversation: ends of turns, stops and failures, answers, errors, gaps.
//!
//! What was removed, steps, what the agent was busy with and what nobody understood is not kept. A fold over what is kept, then over what
//! is above the floor, gives the same conversation as a fold over everything.
//!
//! The floor rises when more than `compact_after` events (or half of `max_bytes`) are above it, and never into a turn that runs or to a part
//! that is still being written. When a history still is over `max_bytes`, it is trimmed: its oldest messages go with their parts, and a gap says so.
//!
//! All of it is done in pieces by the store's writer, one piece a batch: the floor moves in the batch that deletes what is below it, so there is
//! nothing to finish after a crash, and a run that was interrupted is begun again by the next look at the session's cursor. [`Table::Place`] says
//! where among the kept events the state of a thing stands, so a piece costs what it takes in, however long the history is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use openagent_core::config::HistoryConfig;
use openagent_core::event::EventKind;
use openagent_core::id::SessionId;
use openagent_core::session::Status;
use openagent_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use sled::{Batch, Db};
use tokio::sync::watch;

use super::model::{SessionCursor, TurnEffect};
use super::record::{self, Name, Table};
use super::writer::Ledger;
use super::{StoreError, decode_event, encode_event};

/// Events that one piece takes in, and how many bytes of them: a few milliseconds of work.
const PIECE_EVENTS: usize = 64;
const PIECE_BYTES: usize = 256 * 1024;

/// Which histories are due.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    bounds: Option<HistoryConfig>,
    runs: VecDeque<Run>,
    /// The sessions of the runs, for readers that wait until a history rests.
    running: watch::Sender<BTreeSet<SessionId>>,
    /// Histories in which something cannot be read: they are left as they are.
    damaged: BTreeSet<SessionId>,
}

#[derive(Debug)]
struct Run {
    session: SessionId,
    trims: bool,
}

impl Compaction {
    /// From now on histories are bounded.
    pub(super) const fn bound(&mut self, bounds: HistoryConfig) {
        self.bounds = Some(bounds);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(super) fn running(&self) -> watch::Receiver<BTreeSet<SessionId>> {
        self.running.subscribe()
    }

    /// Begins a run if the history that ends at `cursor` is over its bounds.
    pub(super) fn look_at(&mut self, session: &SessionId, cursor: &SessionCursor) {
        let Some(bounds) = &self.bounds else { return };
        let is_due = may_rise(cursor, bounds) || may_trim(cursor, bounds.max_bytes);
        if !is_due || self.running.borrow().contains(session) || self.damaged.contains(session) {
            return;
        }
        self.running.send_modify(|running| {
            running.insert(session.clone());
        });
        self.runs.push_back(Run { session: session.clone(), trims: false });
    }

    fn end(&mut self) {
        if let Some(run) = self.runs.pop_front() {
            self.running.send_modify(|running| {
                running.remove(&run.session);
            });
        }
    }
}

fn may_rise(cursor: &SessionCursor, bounds: &HistoryConfig) -> bool {
    let is_long = cursor.last_seq - cursor.floor > bounds.compact_after || cursor.extent.tail_bytes > bounds.max_bytes / 2;
    is_long && highest_floor(cursor) > cursor.floor
}

fn may_trim(cursor: &SessionCursor, max_bytes: u64) -> bool {
    cursor.extent.kept_bytes + cursor.extent.tail_bytes > max_bytes && cursor.extent.trimmed < cursor.extent.settled
}

/// The floor may not rise beyond this: the turn that runs and the parts that are being written are above it.
fn highest_floor(cursor: &SessionCursor) -> u64 {
    let turn = (cursor.turn > 0).then_some(cursor.turn);
    cursor.open_parts.values().map(|open| open.seq).chain(turn).min().map_or(cursor.last_seq, |first| first - 1)
}

/// How far the floor should rise in this run; at or below it already: not at all.
fn wanted_floor(cursor: &SessionCursor, bounds: &HistoryConfig) -> u64 {
    let highest = highest_floor(cursor);
    if cursor.extent.tail_bytes > bounds.max_bytes / 4 {
        highest
    } else {
        highest.min(cursor.last_seq.saturating_sub(bounds.compact_after / 2))
    }
}

/// Does one piece of the work that is due.
pub(super) fn some(ledger: &mut Ledger) -> Result<(), StoreError> {
    let Some(session) = ledger.compaction.runs.front().map(|run| run.session.clone()) else { return Ok(()) };
    match piece(ledger, &session) {
        Ok(true) => Ok(()),
        Ok(false) | Err(StoreError::UnknownSession(_)) => {
            ledger.compaction.end();
            Ok(())
        }
        Err(error @ StoreError::BadRecord { .. }) => {
            tracing::error!(%session, error = &error as &dyn std::error::Error, "the history cannot be compacted");
            ledger.compaction.damaged.insert(session);
            ledger.compaction.end();
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Does one piece for this session; answers whether there was anything to do.
fn piece(ledger: &mut Ledger, session: &SessionId) -> Result<bool, StoreError> {
    let Some(bounds) = ledger.compaction.bounds else { return Ok(false) };
    let cursor = ledger.cursor(session)?;
    let trims = ledger.compaction.runs.front().is_some_and(|run| run.trims);
    let trimmed_bytes = bounds.max_bytes - bounds.max_bytes / 4;
    let floor = wanted_floor(&cursor, &bounds);
    let mut piece = Piece::new(&ledger.db, session.clone(), cursor);
    if floor > piece.cursor.floor {
        piece.raise(floor)?;
    } else if may_trim(&piece.cursor, if trims { trimmed_bytes } else { bounds.max_bytes }) {
        piece.trim(trimmed_bytes)?;
        if let Some(run) = ledger.compaction.runs.front_mut() {
            run.trims = true;
        }
    } else {
        return Ok(false);
    }
    let (cursor, batch) = piece.finish()?;
    ledger.apply_with_cursor(session, cursor, batch)?;
    Ok(true)
}

/// What becomes of an event when the floor rises over it.
enum Fate {
    /// It goes.
    Goes,
    /// It is kept as it is.
    Stays,
    /// It replaces the event of the same name, at its own place.
    Latest(Name),
    /// It replaces the event of the same name, in its place.
    Replaces(Name),
    /// It goes, and so does the event of this name.
    Ends(Name),
    /// It goes, and so do the events whose names begin with this one.
    EndsAll(Name),
}

fn fate(session: &SessionId, event: &EventKind) -> Fate {
    let name = |what: &str, of: &[&str]| {
        let mut fields = vec![session.as_str().as_bytes(), what.as_bytes()];
        fields.extend(of.iter().map(|id| id.as_bytes()));
        Name::new(Table::Place, &fields)
    };
    match event {
        EventKind::Message { message } => Fate::Replaces(name("message", &[message.id.as_str(), ""])),
        EventKind::Part { part } => Fate::Replaces(name("message", &[part.message.as_str(), part.id.as_str()])),
        EventKind::MessageRemoved { id } => Fate::EndsAll(name("message", &[id.as_str(), ""])),
        EventKind::PartRemoved { message, id } => Fate::Ends(name("message", &[message.as_str(), id.as_str()])),
        EventKind::Usage { message, .. } => Fate::Replaces(name("usage", &[message.as_str()])),
        EventKind::Subagent { conversation, .. } => Fate::Replaces(name("subagent", &[conversation.as_str()])),
        EventKind::PermissionAsked { request } => Fate::Latest(name("request", &[request.id.as_str()])),
        EventKind::QuestionAsked { request } => Fate::Latest(name("request", &[request.id.as_str()])),
        EventKind::Terminal { id, exit_code: None } => Fate::Replaces(name("terminal", &[id.as_str()])),
        EventKind::Terminal { id, exit_code: Some(_) } => Fate::Ends(name("terminal", &[id.as_str()])),
        EventKind::Session { status: Status::Stopped | Status::Error, .. }
        | EventKind::TurnEnded { .. }
        | EventKind::PermissionAnswered { .. }
        | EventKind::QuestionAnswered { .. }
        | EventKind::AgentError { .. }
        | EventKind::Gap { .. } => Fate::Stays,
        EventKind::Session { .. } => Fate::Latest(name("session", &[])),
        EventKind::Title { .. } => Fate::Latest(name("title", &[])),
        EventKind::Instance { .. } => Fate::Latest(name("instance", &[])),
        EventKind::Agent { .. } => Fate::Latest(name("agent", &[])),
        EventKind::Todo { .. } => Fate::Latest(name("todo", &[])),
        EventKind::Diff { .. } => Fate::Latest(name("diff", &[])),
        EventKind::KeysUpdated { .. } => Fate::Latest(name("keys", &[])),
        EventKind::Step { .. } | EventKind::Busy { .. } | EventKind::Unknown { .. } => Fate::Goes,
    }
}

/// Whether an event can belong to something whose beginning was recorded before it.
const fn continues(event: &EventKind) -> bool {
    matches!(event, EventKind::Message { .. } | EventKind::Part { .. } | EventKind::Usage { .. })
}

/// Where the state of a thing stands.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Place {
    seq: u64,
    bytes: u64,
}

/// One piece of work: what it changes is gathered here and becomes one batch.
struct Piece<'a> {
    db: &'a Db,
    session: SessionId,
    cursor: SessionCursor,
    /// Events as they are to be stored; `None`: not at all.
    events: BTreeMap<u64, Option<Vec<u8>>>,
    places: BTreeMap<Name, Option<Place>>,
}

impl<'a> Piece<'a> {
    const fn new(db: &'a Db, session: SessionId, cursor: SessionCursor) -> Self {
        Self { db, session, cursor, events: BTreeMap::new(), places: BTreeMap::new() }
    }

    /// The stored events from `first` to `last`, as many as a piece takes.
    fn read(&self, first: u64, last: u64) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut events = Vec::new();
        let mut bytes = 0;
        let prefix = record::prefix(Table::Event, self.session.as_str().as_bytes());
        record::scan(self.db, &prefix, &Name::event(&self.session, first), |name, stored| {
            let seq = name.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::BadRecord { what: "event".to_owned() })?;
            if seq > last {
                return Ok(false);
            }
            bytes += stored.len();
            events.push((seq, stored));
            Ok(seq < last && events.len() < PIECE_EVENTS && bytes < PIECE_BYTES)
        })?;
        Ok(events)
    }

    /// Raises the floor towards `floor`.
    fn raise(&mut self, floor: u64) -> Result<(), StoreError> {
        for (seq, stored) in self.read(self.cursor.floor + 1, floor)? {
            if seq != self.cursor.floor + 1 {
                return Err(StoreError::BadRecord { what: format!("history of session {} (an event is missing)", self.session) });
            }
            self.cursor.floor = seq;
            let bytes = stored.len() as u64;
            self.cursor.extent.tail_bytes = self.cursor.extent.tail_bytes.saturating_sub(bytes);
            let (at, kind) = decode_event(&stored)?;
            let extent = &mut self.cursor.extent;
            match TurnEffect::of(&kind) {
                TurnEffect::Begins => extent.in_turn = true,
                TurnEffect::Ends => (extent.in_turn, extent.settled) = (false, seq),
                TurnEffect::None if !extent.in_turn && !continues(&kind) => extent.settled = seq,
                TurnEffect::None => {}
            }
            self.lower(seq, at, kind, stored)?;
        }
        Ok(())
    }

    /// Takes the event over which the floor has just risen in among the kept ones.
    fn lower(&mut self, seq: u64, at: Timestamp, kind: EventKind, mut stored: Vec<u8>) -> Result<(), StoreError> {
        let fate = fate(&self.session, &kind);
        if let EventKind::PermissionAsked { mut request } = kind
            && request.diff.take().is_some()
        {
            // Who allowed what is kept; the change itself stands in the conversation.
            stored = encode_event(at, EventKind::PermissionAsked { request })?.stored;
            self.events.insert(seq, Some(stored.clone()));
        }
        match fate {
            Fate::Goes => self.forget(seq),
            Fate::Stays => self.count_in(stored.len()),
            Fate::Latest(name) => {
                self.end(&name)?;
                self.places.insert(name, Some(Place { seq, bytes: stored.len() as u64 }));
                self.count_in(stored.len());
            }
            Fate::Replaces(name) => {
                self.count_in(stored.len());
                let bytes = stored.len() as u64;
                let place = match self.place(&name)? {
                    Some(before) => {
                        self.count_out(before);
                        self.forget(seq);
                        self.events.insert(before.seq, Some(stored));
                        before.seq
                    }
                    None => seq,
                };
                self.places.insert(name, Some(Place { seq: place, bytes }));
            }
            Fate::Ends(name) => {
                self.end(&name)?;
                self.forget(seq);
            }
            Fate::EndsAll(name) => {
                self.end_all(&name)?;
                self.forget(seq);
            }
        }
        Ok(())
    }

    /// Removes the oldest messages until the history takes no more than `max_bytes`, and says so in a gap.
    fn trim(&mut self, max_bytes: u64) -> Result<(), StoreError> {
        let settled = self.cursor.extent.settled;
        let events = self.read(self.cursor.extent.trimmed + 1, settled)?;
        let is_last = events.len() < PIECE_EVENTS && events.iter().map(|(_, stored)| stored.len()).sum::<usize>() < PIECE_BYTES;
        let mut gone = None;
        for (seq, stored) in events {
            if self.cursor.extent.kept_bytes + self.cursor.extent.tail_bytes <= max_bytes {
                return self.tell(gone);
            }
            self.cursor.extent.trimmed = seq;
            if self.events.contains_key(&seq) {
                continue;
            }
            let (at, kind) = decode_event(&stored)?;
            match (fate(&self.session, &kind), &kind) {
                (Fate::Latest(name), EventKind::PermissionAsked { .. } | EventKind::QuestionAsked { .. }) => self.end(&name)?,
                (Fate::Latest(_), _) => continue,
                (Fate::Replaces(_), EventKind::Part { part }) => {
                    let session = self.session.as_str().as_bytes();
                    self.end_all(&Name::new(Table::Place, &[session, b"message", part.message.as_str().as_bytes(), b""]))?;
                }
                (Fate::Replaces(name), EventKind::Message { .. }) => self.end_all(&name)?,
                (Fate::Replaces(name), _) => self.end(&name)?,
                (Fate::Goes | Fate::Stays | Fate::Ends(_) | Fate::EndsAll(_), _) => {}
            }
            if !self.events.contains_key(&seq) {
                self.count_out(Place { seq, bytes: stored.len() as u64 });
                self.forget(seq);
            }
            gone = Some((seq, at));
        }
        if is_last {
            self.cursor.extent.trimmed = settled;
        }
        self.tell(gone)
    }

    /// Puts a gap into the place of the last event that went.
    fn tell(&mut self, gone: Option<(u64, Timestamp)>) -> Result<(), StoreError> {
        let Some((seq, at)) = gone else { return Ok(()) };
        let before = std::mem::replace(&mut self.cursor.extent.gap, seq);
        if before != 0 && !self.events.contains_key(&before) {
            let stored = record::get(self.db, &Name::event(&self.session, before))?;
            self.count_out(Place { seq: before, bytes: stored.map_or(0, |stored| stored.len() as u64) });
            self.forget(before);
        }
        let reason = format!("the messages of the first {seq} events, up to {at}, were removed to keep the history within its bounds");
        let gap = encode_event(at, EventKind::Gap { reason })?;
        self.count_in(gap.stored.len());
        self.events.insert(seq, Some(gap.stored));
        Ok(())
    }

    const fn count_in(&mut self, bytes: usize) {
        self.cursor.kept += 1;
        self.cursor.extent.kept_bytes += bytes as u64;
    }

    fn forget(&mut self, seq: u64) {
        self.events.insert(seq, None);
    }

    const fn count_out(&mut self, place: Place) {
        self.cursor.kept = self.cursor.kept.saturating_sub(1);
        self.cursor.extent.kept_bytes = self.cursor.extent.kept_bytes.saturating_sub(place.bytes);
    }

    fn place(&self, name: &Name) -> Result<Option<Place>, StoreError> {
        match self.places.get(name) {
            Some(place) => Ok(*place),
            None => record::get(self.db, name)?.map(|stored| record::decode("place of an event", &stored)).transpose(),
        }
    }

    fn end(&mut self, name: &Name) -> Result<(), StoreError> {
        if let Some(place) = self.place(name)? {
            self.count_out(place);
            self.forget(place.seq);
            self.places.insert(name.clone(), None);
        }
        Ok(())
    }

    fn end_all(&mut self, prefix: &Name) -> Result<(), StoreError> {
        let mut names: BTreeSet<Name> = self.places.keys().filter(|name| name.as_bytes().starts_with(prefix.as_bytes())).cloned().collect();
        record::scan(self.db, prefix.as_bytes(), prefix, |rest, _| {
            names.insert(prefix.followed_by(rest));
            Ok(true)
        })?;
        names.iter().try_for_each(|name| self.end(name))
    }

    fn finish(self) -> Result<(SessionCursor, Batch), StoreError> {
        let mut batch = Batch::default();
        for (seq, stored) in self.events {
            let name = Name::event(&self.session, seq);
            match stored {
                Some(stored) => record::put(self.db, &mut batch, &name, &stored)?,
                None => drop(record::remove(self.db, &mut batch, &name)?),
            }
        }
        for (name, place) in self.places {
            match place {
                Some(place) => record::put(self.db, &mut batch, &name, &record::encode("place of an event", &place)?)?,
                None => drop(record::remove(self.db, &mut batch, &name)?),
            }
        }
        Ok((self.cursor, batch))
    }
}

#[cfg(test)]
mod tests;
