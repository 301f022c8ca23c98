//! The letters of parts that are still being written.
//!
//! A part is open from its first recorded state that is not final until its final one, its removal, or the end of its turn. Its text so far is
//! kept, bounded, and readers take from it what they have not had yet; so a late reader gets the text so far and a slow one fewer pieces.
//! A text that was replaced rather than continued gets a new generation, and readers begin anew at 0.

use std::collections::{BTreeMap, HashMap};

use openagent_core::event::{Event, PartDelta};
use openagent_core::id::{MessageId, PartId};

use crate::store::{OPEN_PARTS_MAX, PartEffect};

/// Letters kept of one part; what is longer is seen when the part is recorded.
const TEXT_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Largest piece given to a reader, so that it fits any message to a client.
const PIECE_MAX_BYTES: usize = 64 * 1024;

/// The open parts of one session.
#[derive(Debug, Default)]
pub(super) struct Live {
    parts: BTreeMap<PartId, Text>,
    generations: u64,
    recorded_to: u64,
}

#[derive(Debug)]
struct Text {
    message: MessageId,
    generation: u64,
    text: String,
}

/// What one reader has had of the open parts.
#[derive(Debug, Default)]
pub(super) struct Had(HashMap<PartId, (u64, usize)>);

impl Live {
    pub(super) fn at(last_seq: u64) -> Self {
        Self { recorded_to: last_seq, ..Self::default() }
    }

    /// Whether no part is being written.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Takes a recorded event into account.
    pub(super) fn record(&mut self, event: &Event) {
        match PartEffect::of(&event.kind) {
            PartEffect::Open { message, part, text } => self.open(message, part, text),
            PartEffect::Close(part) => {
                self.parts.remove(part);
            }
            PartEffect::CloseMessage(message) => self.parts.retain(|_, open| open.message != *message),
            PartEffect::CloseAll => self.parts.clear(),
            PartEffect::None => {}
        }
    }

    /// Says up to where events were recorded.
    pub(super) const fn recorded_to(&mut self, last_seq: u64) {
        self.recorded_to = last_seq;
    }

    fn open(&mut self, message: &MessageId, part: &PartId, text: &str) {
        if let Some(open) = self.parts.get_mut(part)
            && (open.text.starts_with(text) || text.starts_with(&open.text))
        {
            if text.len() > open.text.len() {
                text.clone_into(&mut open.text);
            }
        } else if self.parts.len() < OPEN_PARTS_MAX || self.parts.contains_key(part) {
            self.generations += 1;
            let open = Text { message: message.clone(), generation: self.generations, text: text.to_owned() };
            self.parts.insert(part.clone(), open);
        }
    }

    /// Takes letters; answers whether there is anything new to show.
    pub(super) fn push(&mut self, delta: &PartDelta) -> bool {
        let Some(open) = self.parts.get_mut(&delta.part) else { return false };
        let Ok(offset) = usize::try_from(delta.offset) else { return false };
        let Some(known) = open.text.get(offset..) else { return false };
        if known.starts_with(&delta.text) && (offset > 0 || known == delta.text) {
            return false;
        }
        if offset + delta.text.len() > TEXT_MAX_BYTES {
            return false;
        }
        if !delta.text.starts_with(known) {
            self.generations += 1;
            open.generation = self.generations;
        }
        open.text.truncate(offset);
        open.text.push_str(&delta.text);
        true
    }

    /// The next piece for a reader that has had all events up to `seq`; none while there are newer events for it.
    pub(super) fn next(&self, seq: u64, had: &mut Had) -> Option<PartDelta> {
        if self.recorded_to != seq {
            return None;
        }
        had.0.retain(|part, _| self.parts.contains_key(part));
        self.parts.iter().find_map(|(part, open)| {
            let (generation, offset) = had.0.get(part).copied().unwrap_or((open.generation, 0));
            let offset = if generation == open.generation { offset } else { 0 };
            let rest = open.text.get(offset..).filter(|rest| !rest.is_empty())?;
            let text = &rest[..rest.floor_char_boundary(PIECE_MAX_BYTES)];
            had.0.insert(part.clone(), (open.generation, offset + text.len()));
            let offset = offset as u64;
            Some(PartDelta { message: open.message.clone(), part: part.clone(), offset, text: text.to_owned() })
        })
    }

    /// A reader gets a recorded event: from there it goes on with the letters behind the recorded text, or anew.
    pub(super) fn delivered(&self, event: &Event, had: &mut Had) {
        if let PartEffect::Open { part, text, .. } = PartEffect::of(&event.kind) {
            match self.parts.get(part) {
                Some(open) if open.text.starts_with(text) => had.0.insert(part.clone(), (open.generation, text.len())),
                _ => had.0.remove(part),
            };
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn delta(offset: u64, text: &str) -> PartDelta {
        PartDelta { message: "msg".parse().unwrap(), part: "prt".parse().unwrap(), offset, text: text.to_owned() }
    }

    fn with_open_part(text: &str) -> Live {
        let mut live = Live::default();
        live.open(&"msg".parse().unwrap(), &"prt".parse().unwrap(), text);
        live
    }

    #[test]
    fn letters_of_an_unknown_part_and_behind_a_gap_are_not_taken() {
        assert!(!Live::default().push(&delta(0, "x")));
        let mut live = with_open_part("ab");
        assert!(!live.push(&delta(3, "x")) && live.push(&delta(2, "cé")));
        assert!(!live.push(&delta(4, "x")), "in the middle of a letter");
    }

    #[test]
    fn what_is_said_twice_is_shown_once() {
        let mut live = with_open_part("");
        let mut had = Had::default();
        assert!(live.push(&delta(0, "abc")));
        assert_eq!(live.next(0, &mut had), Some(delta(0, "abc")));
        assert!(!live.push(&delta(1, "bc")));
        assert!(live.push(&delta(1, "bcd")));
        assert_eq!(live.next(0, &mut had), Some(delta(3, "d")));
        assert_eq!(live.next(0, &mut had), None);
    }

    #[test]
    fn a_restarted_text_begins_anew_for_every_reader() {
        let mut live = with_open_part("");
        let mut had = Had::default();
        live.push(&delta(0, "abc"));
        live.next(0, &mut had);
        assert!(live.push(&delta(0, "xy")));
        assert_eq!(live.next(0, &mut had), Some(delta(0, "xy")));
        assert_eq!(live.next(0, &mut Had::default()), Some(delta(0, "xy")));
    }

    #[test]
    fn long_texts_come_in_pieces_and_stop_at_the_bound() {
        let mut live = with_open_part("");
        let long = "é".repeat(TEXT_MAX_BYTES / 2);
        assert!(live.push(&delta(0, &long)));
        assert!(!live.push(&delta(long.len() as u64, "x")));
        let mut had = Had::default();
        let mut read = String::new();
        while let Some(piece) = live.next(0, &mut had) {
            assert!(piece.text.len() <= PIECE_MAX_BYTES);
            assert_eq!(piece.offset, read.len() as u64);
            read.push_str(&piece.text);
        }
        assert_eq!(read, long);
    }
}
