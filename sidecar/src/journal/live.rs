//! Letters of parts that are still being written, kept per part so that a late reader gets the part so far.
//!
//! Each reader remembers per part how far it is; nothing is queued for it, and letters that came while it was away reach it as one piece.

use std::collections::BTreeMap;

use openagent_core::event::{EventKind, PartBody, PartDelta};
use openagent_core::id::{MessageId, PartId};

/// Largest text kept of one part, in bytes: that of an event. Of a longer one only what follows is kept; the recorded part makes up for it.
const PART_MAX_BYTES: usize = openagent_core::event::EVENT_MAX_BYTES;

/// Most bytes kept of all parts together. Beyond, the part that was silent longest is forgotten.
const TOTAL_MAX_BYTES: usize = 2 * PART_MAX_BYTES;

/// Most parts kept.
const PARTS_MAX: usize = 256;

/// Largest piece given to a reader at once, in bytes.
const PIECE_MAX_BYTES: usize = 64 * 1024;

/// What a recorded event means for the letters.
pub enum Effect {
    /// Nothing.
    None,
    /// The part is whole, or gone: its letters are no longer needed.
    Ended(PartId),
    /// All parts of the message are gone.
    MessageEnded(MessageId),
    /// The part as it was so far is recorded; readers get its letters from the beginning again.
    Restarted(PartId),
}

impl Effect {
    pub fn of(event: &EventKind) -> Self {
        match event {
            EventKind::Part { part } => match &part.body {
                PartBody::Text { done: false, .. } | PartBody::Reasoning { done: false, .. } => Self::Restarted(part.id.clone()),
                _ => Self::Ended(part.id.clone()),
            },
            EventKind::PartRemoved { id, .. } => Self::Ended(id.clone()),
            EventKind::MessageRemoved { id } => Self::MessageEnded(id.clone()),
            _ => Self::None,
        }
    }
}

/// How far a reader is with a part.
pub struct Sent {
    generation: u64,
    offset: u64,
}

struct LivePart {
    message: MessageId,
    base: u64,
    text: String,
    /// Changes when readers must begin again.
    generation: u64,
    /// Readers that have not seen this entry do not know the part yet.
    after: u64,
    touched: u64,
}

impl LivePart {
    fn end(&self) -> u64 {
        self.base + self.text.len() as u64
    }
}

/// The letters of all parts that are being written.
#[derive(Default)]
pub struct Live {
    parts: BTreeMap<PartId, LivePart>,
    clock: u64,
}

impl Live {
    /// Takes letters in; `last` is the last recorded entry.
    pub fn take(&mut self, delta: PartDelta, last: u64) {
        self.clock += 1;
        let now = self.clock;
        let PartDelta { message, part: id, offset, text } = delta;
        let part = self.parts.entry(id.clone()).or_insert_with(|| LivePart {
            message,
            base: offset,
            text: String::new(),
            generation: now,
            after: last,
            touched: now,
        });
        part.touched = now;
        if offset != part.end() {
            let keep = offset.checked_sub(part.base).and_then(|keep| usize::try_from(keep).ok());
            match keep.filter(|keep| part.text.is_char_boundary(*keep)) {
                Some(keep) => part.text.truncate(keep),
                None => {
                    part.base = offset;
                    part.text.clear();
                }
            }
            part.generation = now;
        }
        part.text.push_str(&text);
        if part.text.len() > PART_MAX_BYTES {
            part.base = part.end();
            part.text = String::new();
        }
        self.bound(&id);
    }

    fn bound(&mut self, newest: &PartId) {
        while self.parts.len() > PARTS_MAX || self.parts.values().map(|part| part.text.len()).sum::<usize>() > TOTAL_MAX_BYTES {
            let oldest = self.parts.iter().filter(|(id, _)| *id != newest).min_by_key(|(_, part)| part.touched);
            let Some(oldest) = oldest.map(|(id, _)| id.clone()) else { return };
            self.parts.remove(&oldest);
        }
    }

    /// Takes the recorded entry `seq` into account.
    pub fn apply(&mut self, effect: &Effect, seq: u64) {
        match effect {
            Effect::None => {}
            Effect::Ended(id) => {
                self.parts.remove(id);
            }
            Effect::MessageEnded(message) => self.parts.retain(|_, part| part.message != *message),
            Effect::Restarted(id) => {
                self.clock += 1;
                if let Some(part) = self.parts.get_mut(id) {
                    part.generation = self.clock;
                    part.after = seq;
                }
            }
        }
    }

    /// The next letters for a reader that has seen the entries up to `after` and these letters.
    pub fn next(&self, after: u64, sent: &mut BTreeMap<PartId, Sent>) -> Option<PartDelta> {
        for (id, part) in self.parts.iter().filter(|(_, part)| part.after <= after) {
            let known = sent.get(id).filter(|sent| sent.generation == part.generation && sent.offset >= part.base);
            let offset = known.map_or(part.base, |sent| sent.offset);
            let rest = usize::try_from(offset - part.base).ok().and_then(|from| part.text.get(from..)).unwrap_or_default();
            if !rest.is_empty() {
                let text = rest[..rest.floor_char_boundary(PIECE_MAX_BYTES)].to_owned();
                sent.insert(id.clone(), Sent { generation: part.generation, offset: offset + text.len() as u64 });
                return Some(PartDelta { message: part.message.clone(), part: id.clone(), offset, text });
            }
        }
        sent.retain(|id, _| self.parts.contains_key(id));
        None
    }
}
