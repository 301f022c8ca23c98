//! Reading everything, to find what is damaged before it is missed.
//!
//! One pass over all keys in their order: values are put together of their chunks and decoded, histories must be as their cursors say, and
//! every record must belong to a session, or to all. It may run while the store is written: nothing that belongs to a history is deleted
//! meanwhile, and what seems wrong because it has just changed is looked at again before it is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use openagent_core::id::SessionId;
use openagent_core::permission::PermissionRule;
use openagent_core::usage::Usage;
use sled::Db;

use super::model::{DayUsage, KeyRecord, MessageUsage, SessionCursor, SessionRecord};
use super::record::{self, Name, Table};
use super::{Store, StoreError, blocking, decode_event, open};

/// Problems that are told; further ones are counted.
const PROBLEMS_MAX: usize = 100;

/// Records between two looks whether anybody still waits for the report.
const LOOK_RECORDS: u64 = 1_024;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Format of the store.
    pub format: u64,
    /// Sessions that were read.
    pub sessions: u64,
    /// Events that were read.
    pub events: u64,
    /// Records of all kinds that were read.
    pub records: u64,
    /// Encrypted records that were opened.
    pub opened: u64,
    /// Encrypted records that could not be opened.
    pub unopened: u64,
    /// The first problems, one sentence each.
    pub problems: Vec<String>,
    /// All problems.
    pub problem_count: u64,
}

/// An encrypted record.
#[derive(Debug)]
pub(crate) enum Envelope<'a> {
    Key(&'a KeyRecord),
    Sealed { session: &'a SessionId, kind: &'a str, stored: &'a [u8] },
}

/// Tells of encrypted records whether they can be opened.
#[derive(Clone)]
pub struct Opener(Arc<dyn Fn(&Envelope<'_>) -> bool + Send + Sync>);

impl Opener {
    pub(crate) fn new(opens: impl Fn(&Envelope<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(opens))
    }
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opener")
    }
}

impl Store {
    /// Reads every record and tells what is wrong with any.
    ///
    /// # Errors
    /// [`StoreError::Io`] where the database cannot be read at all.
    pub async fn verify(&self, opener: Opener) -> Result<Report, StoreError> {
        let hold = self.write(|ledger| Ok(ledger.hold())).await?;
        let waiting = Arc::new(());
        let is_waited_for = Arc::downgrade(&waiting);
        let inner = Arc::clone(&self.0);
        let report = blocking(move || {
            let _hold = hold;
            Verifier::new(&inner.db, open::FORMAT, Some(&opener)).run(|| is_waited_for.strong_count() > 0)
        })
        .await;
        drop(waiting);
        report
    }
}

/// Verifies a database that nobody writes.
pub(super) fn verify(db: &Db, format: u64, opener: Option<&Opener>) -> Result<Report, StoreError> {
    Verifier::new(db, format, opener).run(|| true)
}

struct History {
    cursor: SessionCursor,
    has_session: bool,
    has_events: bool,
}

/// What was read of the history that is being read.
struct Reading {
    session: SessionId,
    kept: u64,
    last: u64,
    hole: Option<u64>,
}

struct Verifier<'a> {
    db: &'a Db,
    opener: Option<&'a Opener>,
    report: Report,
    histories: BTreeMap<SessionId, History>,
    reading: Option<Reading>,
    using: Option<(SessionId, Usage)>,
    /// The last session that records were found of which there is not; told once a table.
    orphan: Option<(Table, SessionId)>,
}

/// A value whose chunks are not all read.
struct Value {
    name: Vec<u8>,
    bytes: Vec<u8>,
    length: usize,
    next: u16,
}

impl<'a> Verifier<'a> {
    fn new(db: &'a Db, format: u64, opener: Option<&'a Opener>) -> Self {
        let report = Report { format, ..Report::default() };
        Self { db, opener, report, histories: BTreeMap::new(), reading: None, using: None, orphan: None }
    }

    fn run(mut self, is_waited_for: impl Fn() -> bool) -> Result<Report, StoreError> {
        let mut open: Option<Value> = None;
        // Of what has pieces astray, further ones are not told.
        let mut astray = vec![];
        for row in self.db.iter() {
            let (key, chunk) = row.map_err(|e| StoreError::engine("read its records", e))?;
            let Some((name, number)) = key.split_last_chunk::<2>().map(|(name, number)| (name, u16::from_be_bytes(*number))) else {
                self.problem("a key is too short");
                continue;
            };
            if number == 0 {
                self.unfinished(open.take());
                match record::header(&chunk) {
                    Ok((length, head)) => open = Some(Value { name: name.to_vec(), bytes: head.to_vec(), length, next: 1 }),
                    Err(_) => self.problem(format!("{} has no sound beginning", shown(name))),
                }
            } else if let Some(value) = open.as_mut().filter(|value| value.name == name && value.next == number) {
                value.bytes.extend_from_slice(&chunk);
                value.next += 1;
            } else if open.as_ref().is_some_and(|value| value.name == name) {
                self.unfinished(open.take());
                astray = name.to_vec();
            } else if astray != name {
                self.problem(format!("{} has a piece too many", shown(name)));
                astray = name.to_vec();
            }
            if let Some(value) = open.take_if(|value| value.bytes.len() >= value.length && value.next >= record::chunks(value.length)) {
                if value.bytes.len() == value.length {
                    self.record(&value.name, &value.bytes)?;
                } else {
                    self.problem(format!("{} is longer than it says", shown(&value.name)));
                }
                if self.report.records.is_multiple_of(LOOK_RECORDS) && !is_waited_for() {
                    return Err(StoreError::Closed);
                }
            }
        }
        self.unfinished(open);
        self.end_reading()?;
        self.end_using()?;
        self.end()?;
        Ok(self.report)
    }

    fn problem(&mut self, what: impl Into<String>) {
        self.report.problem_count += 1;
        if self.report.problems.len() < PROBLEMS_MAX {
            self.report.problems.push(what.into());
        }
    }

    fn unfinished(&mut self, value: Option<Value>) {
        if let Some(value) = value {
            self.problem(format!("{} is cut", shown(&value.name)));
        }
    }

    fn record(&mut self, name: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.report.records += 1;
        let Some((table, rest)) = name.split_first().and_then(|(first, rest)| Table::of(*first).map(|table| (table, rest))) else {
            self.problem(format!("{} is of no known kind", shown(name)));
            return Ok(());
        };
        if !matches!(table, Table::Event) {
            self.end_reading()?;
        }
        if !matches!(table, Table::MessageUsage) {
            self.end_using()?;
        }
        let sound = match table {
            Table::Cursor => self.cursor(rest, value),
            Table::Event => self.event(rest, value)?,
            Table::Session => self.session(rest, value)?,
            Table::MessageUsage => self.usage(rest, value)?,
            Table::Sealed => self.sealed(rest, value)?,
            Table::Place => match session_of(rest) {
                Some((session, _)) => self.check_owner(Table::Place, &session).map(|_| true)?,
                None => false,
            },
            Table::Key => self.key(rest, value),
            Table::DayUsage => record::decode::<DayUsage>("usage", value).is_ok(),
            Table::Rule => record::decode::<PermissionRule>("permission", value).is_ok(),
            Table::Leaving => session_of(rest).is_some(),
            Table::Meta => record::decode::<u64>("format", value).is_ok(),
        };
        if !sound {
            self.problem(format!("{} cannot be read", shown(name)));
        }
        Ok(())
    }

    fn cursor(&mut self, rest: &[u8], value: &[u8]) -> bool {
        match (session_of(rest), record::decode("end of a history", value)) {
            (Some((session, b"")), Ok(cursor)) => {
                self.histories.insert(session, History { cursor, has_session: false, has_events: false });
                true
            }
            _ => false,
        }
    }

    fn session(&mut self, rest: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        self.report.sessions += 1;
        let Ok(record) = record::decode::<SessionRecord>("session", value) else { return Ok(false) };
        if record.session.id.as_str().as_bytes() != rest {
            return Ok(false);
        }
        if let Some(history) = self.histories.get_mut(&record.session.id) {
            history.has_session = true;
        } else if self.cursor_now(&record.session.id)?.is_none() && record::get(self.db, &Name::new(Table::Session, &[rest]))?.is_some() {
            self.problem(format!("session {} has settings and no history", record.session.id));
        }
        Ok(true)
    }

    fn event(&mut self, rest: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        let place = session_of(rest).and_then(|(session, seq)| Some((session, u64::from_be_bytes(seq.try_into().ok()?))));
        let Some((session, seq)) = place else { return Ok(false) };
        self.report.events += 1;
        if self.reading.as_ref().is_none_or(|reading| reading.session != session) {
            self.end_reading()?;
            if !self.check_owner(Table::Event, &session)? {
                return Ok(decode_event(value).is_ok());
            }
            self.reading = Some(Reading { session: session.clone(), kept: 0, last: 0, hole: None });
        }
        let floor = self.histories.get(&session).map_or(0, |history| history.cursor.floor);
        if let Some(reading) = &mut self.reading {
            if seq <= floor {
                reading.kept += 1;
            } else if seq != reading.last.max(floor) + 1 && reading.hole.is_none() {
                reading.hole = Some(reading.last.max(floor) + 1);
            }
            reading.last = seq;
        }
        Ok(decode_event(value).is_ok())
    }

    /// Compares the history that was read with its cursor; or with how that is now, if it has moved on.
    fn end_reading(&mut self) -> Result<(), StoreError> {
        let Some(reading) = self.reading.take() else { return Ok(()) };
        let session = &reading.session;
        let now = self.cursor_now(session)?;
        let Some(history) = self.histories.get_mut(session) else { return Ok(()) };
        history.has_events = true;
        let cursor = history.cursor.clone();
        if let Some(missing) = reading.hole {
            self.problem(format!("event {missing} of session {session} is missing"));
        } else if reading.kept != cursor.kept {
            self.problem(format!("the compacted history of session {session} has {} events instead of {}", reading.kept, cursor.kept));
        }
        let end = now.map_or(cursor.last_seq, |now| now.last_seq);
        let last = reading.last.max(cursor.floor);
        if last < cursor.last_seq || last > end.max(cursor.last_seq) {
            self.problem(format!("the history of session {session} ends at {last} instead of {}", cursor.last_seq));
        }
        Ok(())
    }

    fn usage(&mut self, rest: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        let (Some((session, _)), Ok(message)) = (session_of(rest), record::decode::<MessageUsage>("usage", value)) else {
            return Ok(false);
        };
        if self.using.as_ref().is_none_or(|(using, _)| *using != session) {
            self.end_using()?;
            if !self.check_owner(Table::MessageUsage, &session)? {
                return Ok(true);
            }
            self.using = Some((session, Usage::default()));
        }
        if let Some((_, sum)) = &mut self.using {
            sum.add(&message.usage);
        }
        Ok(true)
    }

    fn end_using(&mut self) -> Result<(), StoreError> {
        let Some((session, sum)) = self.using.take() else { return Ok(()) };
        let now = self.cursor_now(&session)?;
        if let (Some(history), Some(now)) = (self.histories.get(&session), now)
            && now.last_seq == history.cursor.last_seq
            && now.usage != sum
        {
            self.problem(format!("the usage of session {session} is not the sum of its messages"));
        }
        Ok(())
    }

    fn key(&mut self, rest: &[u8], value: &[u8]) -> bool {
        match record::decode::<KeyRecord>("provider key", value) {
            Ok(key) if key.provider.as_bytes() == rest => {
                if key.envelope.is_some() {
                    self.envelope(&Envelope::Key(&key), || format!("the key of {}", key.provider));
                }
                true
            }
            _ => false,
        }
    }

    fn sealed(&mut self, rest: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        let Some((session, kind)) = session_of(rest) else { return Ok(false) };
        let Ok(kind) = std::str::from_utf8(kind) else { return Ok(false) };
        self.envelope(&Envelope::Sealed { session: &session, kind, stored: value }, || format!("the {kind} of session {session}"));
        self.check_owner(Table::Sealed, &session)?;
        Ok(true)
    }

    fn envelope(&mut self, envelope: &Envelope<'_>, what: impl Fn() -> String) {
        let Some(opener) = self.opener else { return };
        if (opener.0)(envelope) {
            self.report.opened += 1;
        } else {
            self.report.unopened += 1;
            self.problem(format!("{} cannot be opened with the master key", what()));
        }
    }

    /// Whether there is such a session, or was until its removal, which is not finished.
    fn belongs(&self, session: &SessionId) -> Result<bool, StoreError> {
        if self.histories.contains_key(session) || self.cursor_now(session)?.is_some() {
            return Ok(true);
        }
        Ok(record::get(self.db, &Name::new(Table::Leaving, &[session.as_str().as_bytes()]))?.is_some())
    }

    fn check_owner(&mut self, table: Table, session: &SessionId) -> Result<bool, StoreError> {
        if self.belongs(session)? {
            return Ok(true);
        }
        if self.orphan.as_ref().is_none_or(|(known, orphan)| (*known, orphan) != (table, session)) {
            self.problem(format!("{} belongs to nothing", shown(Name::new(table, &[session.as_str().as_bytes()]).as_bytes())));
            self.orphan = Some((table, session.clone()));
        }
        Ok(false)
    }

    fn cursor_now(&self, session: &SessionId) -> Result<Option<SessionCursor>, StoreError> {
        let stored = record::get(self.db, &Name::new(Table::Cursor, &[session.as_str().as_bytes()]))?;
        Ok(stored.and_then(|stored| record::decode("end of a history", &stored).ok()))
    }

    /// What only shows once all is read.
    fn end(&mut self) -> Result<(), StoreError> {
        for (session, history) in std::mem::take(&mut self.histories) {
            let is_gone = self.cursor_now(&session)?.is_none();
            if !history.has_session && !is_gone {
                self.problem(format!("session {session} has a history and no settings"));
            }
            if !history.has_events && history.cursor.last_seq > 0 && !is_gone {
                self.problem(format!("the history of session {session} is missing"));
            }
        }
        Ok(())
    }
}

/// The session that a name begins with, and what follows.
pub(super) fn session_of(rest: &[u8]) -> Option<(SessionId, &[u8])> {
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let session = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    Some((session, rest.get(end + 1..).unwrap_or_default()))
}

/// A name for people: its table, and of which session it is. Nothing of what is stored.
fn shown(name: &[u8]) -> String {
    let (first, rest) = name.split_first().unwrap_or((&0, &[]));
    let table = match Table::of(*first) {
        Some(Table::Session) => "the settings",
        Some(Table::Event) => "an event",
        Some(Table::Cursor) => "the end of the history",
        Some(Table::MessageUsage) => "the usage of a message",
        Some(Table::DayUsage) => "the usage of a day",
        Some(Table::Key) => "a provider key",
        Some(Table::Rule) => "a permission",
        Some(Table::Sealed) => "an encrypted record",
        Some(Table::Leaving) => "a note of a removal",
        Some(Table::Place) => "a place in the history",
        Some(Table::Meta) => "a record of the store itself",
        None => "a record",
    };
    match session_of(rest) {
        Some((session, _)) => format!("{table} of session {session}"),
        None => table.to_owned(),
    }
}

#[cfg(test)]
mod tests;
