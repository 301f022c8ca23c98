//! Follows one turn through the events of its session.
//!
//! Plain data: events go in, [`News`] comes out. A turn begins with the user's message and ends with the first `turn_ended` behind it, so
//! that the end of a turn which ran before the prompt is not taken for this one's. Events may come before the daemon has said which
//! message the prompt became.

use std::collections::{BTreeMap, BTreeSet};

use openagent_core::event::{EventKind, PartBody, PartDelta, Role, TurnOutcome};
use openagent_core::id::{ConversationId, MessageId, PartId};
use openagent_core::permission::{PermissionRequest, QuestionRequest};
use openagent_core::session::{Fault, Status};

use crate::client::{ClientError, Kind};
use crate::output::event::tool_line;

/// What an event means to who waits for the turn.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum News {
    /// Letters of the answer, and whether they begin a new part.
    Letters { text: String, new_part: bool },
    /// A tool call ended; a line about it.
    Tool(String),
    /// The agent asks for permission.
    Permission(PermissionRequest),
    /// The agent asks a question.
    Question(QuestionRequest),
    /// Something that was asked has been answered.
    Answered(openagent_core::id::RequestId),
    /// The session failed or was stopped.
    Gone(Status, Option<Fault>),
}

#[derive(Debug, Default)]
struct Written {
    message: Option<MessageId>,
    text: String,
    /// Bytes of `text` that were passed on.
    shown: usize,
}

/// A turn that is waited for.
#[derive(Debug)]
pub(super) struct Turn {
    conversation: ConversationId,
    prompt: Option<MessageId>,
    /// The user's messages seen, in order; a turn that ended belongs to those before it.
    asked: BTreeSet<MessageId>,
    ended: Option<TurnOutcome>,
    assistant: Vec<MessageId>,
    parts: BTreeMap<PartId, Written>,
    order: Vec<PartId>,
    shown_last: Option<PartId>,
    error: Option<ClientError>,
}

impl Turn {
    /// A turn in `conversation` whose prompt is about to be given.
    pub(super) fn new(conversation: ConversationId) -> Self {
        Self {
            conversation,
            prompt: None,
            asked: BTreeSet::new(),
            ended: None,
            assistant: Vec::new(),
            parts: BTreeMap::new(),
            order: Vec::new(),
            shown_last: None,
            error: None,
        }
    }

    /// The daemon has accepted the prompt; it became this message.
    pub(super) fn accepted(&mut self, message: Option<MessageId>) {
        self.prompt = message;
    }

    /// How the turn ended, once it has.
    pub(super) fn outcome(&self) -> Option<&TurnOutcome> {
        let prompt = self.prompt.as_ref()?;
        self.asked.contains(prompt).then_some(self.ended.as_ref()).flatten()
    }

    /// The text of the agent's last message that has one.
    pub(super) fn answer(&self) -> String {
        let of_message = |message: &MessageId| {
            let parts = self.order.iter().filter_map(|id| self.parts.get(id));
            let texts = parts.filter(|part| part.message.as_ref() == Some(message)).map(|part| part.text.trim());
            texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n")
        };
        self.assistant.iter().rev().map(of_message).find(|text| !text.is_empty()).unwrap_or_default()
    }

    /// What went wrong, as the agent told it.
    pub(super) fn error(&self) -> Option<&ClientError> {
        self.error.as_ref()
    }

    /// Takes a recorded event into account.
    pub(super) fn event(&mut self, kind: EventKind) -> Option<News> {
        match kind {
            EventKind::Message { message } if message.conversation == self.conversation => {
                match message.role {
                    Role::User if self.asked.insert(message.id.clone()) => {
                        self.ended = None;
                        self.error = None;
                        self.assistant.clear();
                    }
                    Role::Assistant if !message.summary && !self.assistant.contains(&message.id) => self.assistant.push(message.id),
                    Role::User | Role::Assistant => {}
                }
                None
            }
            EventKind::Part { part } if part.conversation == self.conversation => match part.body {
                PartBody::Text { text, synthetic: false, .. } if self.assistant.contains(&part.message) => {
                    let written = self.part(part.id.clone());
                    written.message = Some(part.message);
                    written.text = text;
                    self.letters(part.id)
                }
                PartBody::Tool { tool, state } => tool_line(&tool, &state).map(News::Tool),
                _ => None,
            },
            EventKind::TurnEnded { outcome } => {
                self.ended = Some(outcome);
                None
            }
            EventKind::AgentError { message, status_code, hint, .. } => {
                let kind = if matches!(status_code, Some(401 | 403)) { Kind::Auth } else { Kind::Failed };
                self.error = Some(ClientError::new(kind, message, hint.unwrap_or_default()));
                None
            }
            EventKind::PermissionAsked { request } => Some(News::Permission(request)),
            EventKind::QuestionAsked { request } => Some(News::Question(request)),
            EventKind::PermissionAnswered { id, .. } | EventKind::QuestionAnswered { id, .. } => Some(News::Answered(id)),
            EventKind::Session { status, fault, .. } if matches!(status, Status::Error | Status::Stopped) => {
                Some(News::Gone(status, fault))
            }
            _ => None,
        }
    }

    /// Takes letters of a part into account. Those of a part that is not the answer's, or that do not fit, are left to the recorded part.
    pub(super) fn delta(&mut self, delta: PartDelta) -> Option<News> {
        let written = self.parts.get_mut(&delta.part)?;
        let offset = usize::try_from(delta.offset).ok()?;
        if offset == 0 && !written.text.is_empty() && !delta.text.starts_with(&written.text) {
            written.text.clear();
        }
        if offset > written.text.len() || !written.text.is_char_boundary(offset) {
            return None;
        }
        let known = written.text.len() - offset;
        let more = delta.text.get(known..)?;
        written.text.push_str(more);
        self.letters(delta.part)
    }

    fn part(&mut self, id: PartId) -> &mut Written {
        if !self.parts.contains_key(&id) {
            self.order.push(id.clone());
        }
        self.parts.entry(id).or_default()
    }

    /// What of a part has not been passed on yet.
    fn letters(&mut self, id: PartId) -> Option<News> {
        let written = self.parts.get_mut(&id)?;
        let text = written.text.get(written.shown..).filter(|text| !text.is_empty())?.to_owned();
        written.shown = written.text.len();
        let new_part = self.shown_last.as_ref().is_some_and(|last| *last != id);
        self.shown_last = Some(id);
        Some(News::Letters { text, new_part })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use openagent_core::event::{Message, Part};
    use openagent_core::time::Timestamp;

    fn message(id: &str, role: Role) -> EventKind {
        EventKind::Message {
            message: Message {
                id: id.parse().unwrap(),
                conversation: "ses_1".parse().unwrap(),
                role,
                parent: None,
                agent: String::new(),
                model: String::new(),
                created_at: Timestamp::default(),
                completed_at: None,
                error: None,
                summary: false,
            },
        }
    }

    fn text(message: &str, part: &str, text: &str, done: bool) -> EventKind {
        EventKind::Part {
            part: Part {
                id: part.parse().unwrap(),
                message: message.parse().unwrap(),
                conversation: "ses_1".parse().unwrap(),
                body: PartBody::Text { text: text.into(), done, synthetic: false },
            },
        }
    }

    fn delta(part: &str, offset: u64, text: &str) -> PartDelta {
        PartDelta { message: "msg_2".parse().unwrap(), part: part.parse().unwrap(), offset, text: text.into() }
    }

    fn turn() -> Turn {
        Turn::new("ses_1".parse().unwrap())
    }

    #[test]
    fn the_end_of_the_turn_before_is_not_this_ones() {
        let mut turn = turn();
        turn.event(EventKind::TurnEnded { outcome: TurnOutcome::Completed });
        turn.accepted(Some("msg_1".parse().unwrap()));
        assert_eq!(turn.outcome(), None);
        turn.event(message("msg_1", Role::User));
        assert_eq!(turn.outcome(), None);
        turn.event(EventKind::TurnEnded { outcome: TurnOutcome::Aborted });
        turn.event(message("msg_1", Role::User));
        assert_eq!(turn.outcome(), Some(&TurnOutcome::Aborted), "a message that changes afterwards does not revive the turn");
    }

    #[test]
    fn a_turn_may_end_before_the_daemon_says_which_message_the_prompt_became() {
        let mut turn = turn();
        turn.event(message("msg_1", Role::User));
        turn.event(EventKind::TurnEnded { outcome: TurnOutcome::Completed });
        assert_eq!(turn.outcome(), None);
        turn.accepted(Some("msg_1".parse().unwrap()));
        assert_eq!(turn.outcome(), Some(&TurnOutcome::Completed));
    }

    #[test]
    fn letters_are_passed_on_once_whatever_comes_twice_or_is_missing() {
        let mut turn = turn();
        turn.event(message("msg_1", Role::User));
        turn.event(message("msg_2", Role::Assistant));
        let mut shown = String::new();
        let mut take = |news: Option<News>| {
            if let Some(News::Letters { text, .. }) = news {
                shown.push_str(&text);
            }
        };
        take(turn.event(text("msg_2", "prt_1", "", false)));
        take(turn.delta(delta("prt_1", 0, "grö")));
        take(turn.delta(delta("prt_1", 0, "größer")));
        take(turn.delta(delta("prt_1", 3, "ö")));
        take(turn.delta(delta("prt_1", 40, "lost")));
        take(turn.event(text("msg_2", "prt_1", "größer als", true)));
        take(turn.delta(delta("prt_9", 0, "of a part that is no text")));
        assert_eq!(shown, "größer als");
        assert_eq!(turn.answer(), "größer als");
    }

    #[test]
    fn the_answer_is_the_last_message_with_a_text_and_never_the_prompt() {
        let mut turn = turn();
        turn.event(message("msg_1", Role::User));
        turn.event(text("msg_1", "prt_0", "the prompt", true));
        turn.event(message("msg_2", Role::Assistant));
        turn.event(text("msg_2", "prt_1", "I look", true));
        turn.event(message("msg_3", Role::Assistant));
        turn.event(text("msg_3", "prt_2", "All ", true));
        turn.event(text("msg_3", "prt_3", "done", true));
        turn.event(message("msg_4", Role::Assistant));
        assert_eq!(turn.answer(), "All\n\ndone");
    }

    #[test]
    fn a_refused_key_is_told_apart_from_other_errors() {
        let mut turn = turn();
        let error = |status_code| EventKind::AgentError { name: "APIError".into(), message: "no".into(), status_code, hint: None };
        turn.event(error(Some(401)));
        assert_eq!(turn.error().unwrap().exit_code() as u8, 4);
        turn.event(error(Some(500)));
        assert_eq!(turn.error().unwrap().exit_code() as u8, 1);
    }
}
