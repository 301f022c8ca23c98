//! What is stored. These forms change only by addition; a change of another kind is a new record version and a migration.

use std::collections::BTreeMap;

use openagent_core::event::{Busy, EventKind, PartBody};
use openagent_core::id::{MessageId, PartId};
use openagent_core::instance::Instance;
use openagent_core::session::lifecycle::Lifecycle;
use openagent_core::session::{Session, Status};
use openagent_core::time::Timestamp;
use openagent_core::usage::Usage;
use serde::{Deserialize, Serialize};

/// Most parts of one session that can be unfinished at once; the letters of further ones are not shown live.
pub(crate) const OPEN_PARTS_MAX: usize = 256;

/// All that is known of a session but its history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Its settings.
    pub session: Session,
    /// Where it is in its life.
    pub lifecycle: Lifecycle,
    /// Its present or last instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// Version of the last set of provider keys that was given to a sidecar of it.
    #[serde(default)]
    pub keys_version: u64,
}

/// Where a session's history begins and ends, and its sums. Written in the same batch as the events that move it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SessionCursor {
    /// Number of its last event.
    pub last_seq: u64,
    /// Up to here the history is compacted and sparse; above it is dense. 0: nothing was compacted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub floor: u64,
    /// How many events are kept at or below the floor.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub kept: u64,
    /// The sidecar's number for the last of its events that is stored.
    pub journal_seq: u64,
    /// When its last event happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
    /// What it has used.
    pub usage: Usage,
    /// Parts that are still being written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) open_parts: BTreeMap<PartId, OpenPart>,
    /// Number of the event with which the turn that runs began; 0: none runs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) turn: u64,
    /// What it takes, and how far its compaction is.
    #[serde(default, skip_serializing_if = "Extent::is_empty")]
    pub(super) extent: Extent,
}

/// What a history takes, and how far its compaction is; so that nothing has to be read to decide what is due.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Extent {
    /// Stored bytes of the events at or below the floor.
    pub(super) kept_bytes: u64,
    /// Stored bytes of the events above the floor, as far as they were counted.
    pub(super) tail_bytes: u64,
    /// Whether the floor is within a turn.
    pub(super) in_turn: bool,
    /// The last event at or below the floor that is in no turn: what belongs together does not reach beyond it.
    pub(super) settled: u64,
    /// Up to here the history was trimmed: of messages nothing is left.
    pub(super) trimmed: u64,
    /// The event that says so; 0: none.
    pub(super) gap: u64,
}

impl Extent {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
const fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// What an event means for the turn that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnEffect {
    Begins,
    Ends,
    None,
}

impl TurnEffect {
    pub(super) const fn of(event: &EventKind) -> Self {
        match event {
            EventKind::Busy { busy: Busy::Working | Busy::Retrying { .. } } => Self::Begins,
            EventKind::TurnEnded { .. }
            | EventKind::Busy { busy: Busy::Rest }
            | EventKind::Session { status: Status::Stopped | Status::Error, .. } => Self::Ends,
            _ => Self::None,
        }
    }
}

/// A part that is still being written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpenPart {
    /// Its message.
    pub(crate) message: MessageId,
    /// Number of the event that holds its latest recorded state.
    pub(crate) seq: u64,
}

/// What an event means for the parts that are still being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartEffect<'a> {
    Open { message: &'a MessageId, part: &'a PartId, text: &'a str },
    Close(&'a PartId),
    CloseMessage(&'a MessageId),
    CloseAll,
    None,
}

impl<'a> PartEffect<'a> {
    pub(crate) const fn of(event: &'a EventKind) -> Self {
        match event {
            EventKind::Part { part } => match &part.body {
                PartBody::Text { text, done: false, .. } | PartBody::Reasoning { text, done: false } => {
                    Self::Open { message: &part.message, part: &part.id, text: text.as_str() }
                }
                _ => Self::Close(&part.id),
            },
            EventKind::PartRemoved { id, .. } => Self::Close(id),
            EventKind::MessageRemoved { id } => Self::CloseMessage(id),
            EventKind::TurnEnded { .. } | EventKind::Session { status: Status::Stopped | Status::Error, .. } => Self::CloseAll,
            _ => Self::None,
        }
    }
}

impl SessionCursor {
    /// Follows whether a turn runs, as the event numbered `seq` says.
    pub(super) const fn follow_turn(&mut self, seq: u64, event: &EventKind) {
        match TurnEffect::of(event) {
            TurnEffect::Begins if self.turn == 0 => self.turn = seq,
            TurnEffect::Ends => self.turn = 0,
            TurnEffect::Begins | TurnEffect::None => {}
        }
    }

    /// Follows which parts are being written, as the event numbered `seq` says.
    pub(super) fn follow_parts(&mut self, seq: u64, event: &EventKind) {
        match PartEffect::of(event) {
            PartEffect::Open { message, part, .. } => {
                if self.open_parts.len() < OPEN_PARTS_MAX || self.open_parts.contains_key(part) {
                    self.open_parts.insert(part.clone(), OpenPart { message: message.clone(), seq });
                }
            }
            PartEffect::Close(part) => {
                self.open_parts.remove(part);
            }
            PartEffect::CloseMessage(message) => self.open_parts.retain(|_, open| open.message != *message),
            PartEffect::CloseAll => self.open_parts.clear(),
            PartEffect::None => {}
        }
    }
}

/// What one message has used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageUsage {
    /// The message.
    pub message: MessageId,
    /// Provider id.
    pub provider: String,
    /// Model id.
    pub model: String,
    /// UTC day on which it was first reported, as `2026-11-22`.
    pub day: String,
    /// Tokens and cost.
    pub usage: Usage,
}

/// What was used of a model on a day, in all sessions, also those removed since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayUsage {
    /// UTC day, as `2026-11-22`.
    pub day: String,
    /// Provider id.
    pub provider: String,
    /// Model id.
    pub model: String,
    /// Tokens and cost.
    pub usage: Usage,
}

/// A provider key as it is stored; a removed one keeps its version, so that a later one is higher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyRecord {
    pub(crate) provider: String,
    pub(crate) version: u64,
    /// Base 64 of the envelope; absent once removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) envelope: Option<String>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) used_at: Option<Timestamp>,
}
