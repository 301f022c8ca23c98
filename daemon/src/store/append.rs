//! Appending to a history: numbers, journal sequence, open parts and usage move together, in one batch.
//!
//! The work depends on what is appended, never on how long the history is or how many sessions there are.

use std::collections::BTreeMap;

use openagent_core::event::EventKind;
use openagent_core::id::{MessageId, SessionId};
use openagent_core::time::Timestamp;
use openagent_core::usage::Usage;
use sled::Batch;
use time::OffsetDateTime;

use super::StoreError;
use super::model::{DayUsage, MessageUsage, SessionCursor};
use super::record::{self, Name, Table};
use super::writer::Ledger;

/// An event on its way into the store, with its stored form.
#[derive(Debug)]
pub(crate) struct NewEvent {
    pub(crate) at: Timestamp,
    pub(crate) kind: EventKind,
    pub(crate) stored: Vec<u8>,
}

/// Appends `events`; answers where the history ends now.
pub(super) fn append(
    ledger: &mut Ledger,
    session: &SessionId,
    events: &[NewEvent],
    journal_seq: Option<u64>,
) -> Result<SessionCursor, StoreError> {
    let mut cursor = ledger.cursor(session)?;
    if let Some(got) = journal_seq {
        if got <= cursor.journal_seq {
            return Err(StoreError::JournalReplayed { stored: cursor.journal_seq, got });
        }
        cursor.journal_seq = got;
    }
    let mut batch = Batch::default();
    let mut accounts = Accounts::default();
    for event in events {
        cursor.last_seq += 1;
        cursor.updated_at = Some(event.at);
        cursor.follow_parts(cursor.last_seq, &event.kind);
        cursor.follow_turn(cursor.last_seq, &event.kind);
        cursor.extent.tail_bytes += event.stored.len() as u64;
        record::put_new(&mut batch, &Name::event(session, cursor.last_seq), &event.stored)?;
        if let EventKind::Usage { message, provider, model, usage } = &event.kind {
            accounts.report(ledger, session, &mut cursor, event.at, message, provider, model, *usage)?;
        }
    }
    accounts.write(ledger, session, &mut batch)?;
    ledger.apply_with_cursor(session, cursor.clone(), batch)?;
    ledger.compaction.look_at(session, &cursor);
    Ok(cursor)
}

/// The usage records that one append touches.
#[derive(Default)]
struct Accounts {
    messages: BTreeMap<MessageId, MessageUsage>,
    days: BTreeMap<(String, String, String), Usage>,
}

impl Accounts {
    /// Takes into account that `message` has used `usage` so far; what was said of it before no longer counts.
    #[allow(clippy::too_many_arguments, reason = "the fields of one event")]
    fn report(
        &mut self,
        ledger: &Ledger,
        session: &SessionId,
        cursor: &mut SessionCursor,
        at: Timestamp,
        message: &MessageId,
        provider: &str,
        model: &str,
        usage: Usage,
    ) -> Result<(), StoreError> {
        let before = match self.messages.get(message) {
            Some(before) => Some(before.clone()),
            None => record::get(&ledger.db, &message_name(session, message))?
                .map(|stored| record::decode::<MessageUsage>("usage of a message", &stored))
                .transpose()?,
        };
        let day = before.as_ref().map_or_else(|| day_of(at), |before| before.day.clone());
        if let Some(before) = before {
            subtract(&mut cursor.usage, &before.usage);
            subtract(self.day(ledger, before.day, before.provider, before.model)?, &before.usage);
        }
        cursor.usage.add(&usage);
        self.day(ledger, day.clone(), provider.to_owned(), model.to_owned())?.add(&usage);
        let report = MessageUsage { message: message.clone(), provider: provider.to_owned(), model: model.to_owned(), day, usage };
        self.messages.insert(message.clone(), report);
        Ok(())
    }

    fn day(&mut self, ledger: &Ledger, day: String, provider: String, model: String) -> Result<&mut Usage, StoreError> {
        let key = (day, provider, model);
        if !self.days.contains_key(&key) {
            let stored = record::get(&ledger.db, &day_name(&key.0, &key.1, &key.2))?;
            let usage = stored.map(|stored| record::decode::<DayUsage>("usage of a day", &stored)).transpose()?;
            self.days.insert(key.clone(), usage.map(|day| day.usage).unwrap_or_default());
        }
        Ok(self.days.entry(key).or_default())
    }

    fn write(self, ledger: &Ledger, session: &SessionId, batch: &mut Batch) -> Result<(), StoreError> {
        for (message, report) in self.messages {
            record::put(&ledger.db, batch, &message_name(session, &message), &record::encode("usage of a message", &report)?)?;
        }
        for ((day, provider, model), usage) in self.days {
            let name = day_name(&day, &provider, &model);
            let report = DayUsage { day, provider, model, usage };
            record::put(&ledger.db, batch, &name, &record::encode("usage of a day", &report)?)?;
        }
        Ok(())
    }
}

fn message_name(session: &SessionId, message: &MessageId) -> Name {
    Name::new(Table::MessageUsage, &[session.as_str().as_bytes(), message.as_str().as_bytes()])
}

fn day_name(day: &str, provider: &str, model: &str) -> Name {
    Name::new(Table::DayUsage, &[day.as_bytes(), &record::digest(&[provider, model])])
}

fn subtract(from: &mut Usage, usage: &Usage) {
    let (sum, less) = (&mut from.tokens, &usage.tokens);
    sum.input = sum.input.saturating_sub(less.input);
    sum.output = sum.output.saturating_sub(less.output);
    sum.reasoning = sum.reasoning.saturating_sub(less.reasoning);
    sum.cache_read = sum.cache_read.saturating_sub(less.cache_read);
    sum.cache_write = sum.cache_write.saturating_sub(less.cache_write);
    from.cost_micros = from.cost_micros.saturating_sub(usage.cost_micros);
}

fn day_of(at: Timestamp) -> String {
    let date = OffsetDateTime::from_unix_timestamp(at.as_millis().div_euclid(1_000)).unwrap_or(OffsetDateTime::UNIX_EPOCH).date();
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}
