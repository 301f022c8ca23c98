//! What an earlier sidecar told of the turn that it did not live to see the end of. OpenCode's durable events are read again from the beginning of that turn: what the
//! journal has of them already is not told a second time.
//!
//! Invariant: the journal keeps everything from the last saved place in OpenCode's events on, so that the two agree, as long as its bound and its disk allow it.

use std::collections::HashSet;

use openagent_core::event::{EventKind, Part, PartBody, ToolState};
use openagent_core::id::PartId;
use sha2::{Digest, Sha256};

use crate::agent::opencode::translate::Output;
use crate::journal::{Journal, JournalError, JournalItem};

#[derive(Default)]
pub(super) struct Told {
    events: HashSet<[u8; 32]>,
    /// Of these nothing more can be told.
    finished: HashSet<PartId>,
    /// Requests that were asked and not answered, oldest first.
    asked: Vec<EventKind>,
}

impl Told {
    /// Reads what the journal has behind `after`.
    pub(super) async fn read(journal: &Journal, after: u64) -> Result<Self, JournalError> {
        let mut told = Self::default();
        let mut reader = journal.subscribe(after);
        while let Some(item) = reader.try_next().await? {
            if let JournalItem::Recorded { kind, .. } = item
                && let Ok(kind) = serde_json::from_slice(&kind)
            {
                told.add(kind);
            }
        }
        Ok(told)
    }

    fn add(&mut self, kind: EventKind) {
        self.events.extend(digest(&kind));
        match kind {
            EventKind::Part { part } if is_finished(&part) => drop(self.finished.insert(part.id)),
            EventKind::PermissionAsked { .. } | EventKind::QuestionAsked { .. } => self.asked.push(kind),
            EventKind::PermissionAnswered { id, .. } | EventKind::QuestionAnswered { id, .. } => {
                self.asked.retain(|asked| match asked {
                    EventKind::PermissionAsked { request } => request.id != id,
                    EventKind::QuestionAsked { request } => request.id != id,
                    _ => true,
                });
            }
            _ => {}
        }
    }

    /// Requests that still wait for an answer; they are given once.
    pub(super) fn take_asked(&mut self) -> Vec<EventKind> {
        std::mem::take(&mut self.asked)
    }

    /// Whether an event that was read again says anything new.
    pub(super) fn is_new(&self, output: &Output) -> bool {
        let Output::Record(kind) = output else { return true };
        let is_late = matches!(kind, EventKind::Part { part } if self.finished.contains(&part.id));
        !is_late && !digest(kind).is_some_and(|digest| self.events.contains(&digest))
    }
}

/// Of an event that happens once as it is.
fn digest(kind: &EventKind) -> Option<[u8; 32]> {
    let once = matches!(
        kind,
        EventKind::Message { .. } | EventKind::Part { .. } | EventKind::Usage { .. } | EventKind::Title { .. } | EventKind::Subagent { .. }
    );
    if !once {
        return None;
    }
    Some(Sha256::digest(serde_json::to_vec(kind).ok()?).into())
}

const fn is_finished(part: &Part) -> bool {
    match &part.body {
        PartBody::Text { done, .. } | PartBody::Reasoning { done, .. } => *done,
        PartBody::Tool { state, .. } => matches!(state, ToolState::Completed { .. } | ToolState::Error { .. }),
        _ => true,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use openagent_core::event::TurnOutcome;

    fn text(text: &str, done: bool) -> EventKind {
        let body = PartBody::Text { text: text.to_owned(), done, synthetic: false };
        let (id, message, conversation) = ("prt_1".parse().unwrap(), "msg_1".parse().unwrap(), "ses_1".parse().unwrap());
        EventKind::Part { part: Part { id, message, conversation, body } }
    }

    #[test]
    fn what_was_told_is_not_told_again_and_every_turn_ends() {
        let end = EventKind::TurnEnded { outcome: TurnOutcome::Completed };
        let mut told = Told::default();
        told.add(text("", false));
        told.add(end.clone());
        let is_new = |told: &Told, kind: EventKind| told.is_new(&Output::Record(kind));
        assert!(!is_new(&told, text("", false)) && is_new(&told, text("more", true)));
        assert!(is_new(&told, end), "the end of another turn reads the same");
        told.add(text("more", true));
        assert!(!is_new(&told, text("mo", false)), "a state that was passed over is not told behind the last one");
    }
}
