//! Turns of the session's own conversation, its status, and errors.
//!
//! A turn begins with the first sign of work and ends when OpenCode is idle *and* the last assistant message is complete. `idle` alone is no
//! end: after an abort or an error it comes before the last message, and again after it. Where the message never comes, time ends the turn.

use openagent_core::event::{Busy, EventKind, TurnOutcome};
use openagent_core::id::MessageId;
use openagent_core::time::Timestamp;
use serde_json::Value;

use super::super::json::{count, field, text, time};
use super::Translator;
use super::message::Failure;

/// How long an idle conversation may take to begin a message, or to go on after a tool call.
const NOTHING_FOLLOWS_MILLIS: i64 = 1_500;

/// How long a prompt may take to be worked on. The last `idle` of an aborted turn may come behind the next prompt.
const NOTHING_BEGINS_MILLIS: i64 = 10_000;

/// How long an idle conversation may take to complete its last message; an aborted command is given 3 s to end.
const COMPLETION_MILLIS: i64 = 5_000;

/// A turn, or the rest between two.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) open: bool,
    /// When an idle turn ends though something is missing.
    pub(super) end_at: Option<Timestamp>,
    idle: bool,
    worked: bool,
    aborted: bool,
    error: Option<String>,
    last: Option<Last>,
    shown: Option<Busy>,
}

/// The last assistant message of the turn.
#[derive(Debug)]
struct Last {
    id: MessageId,
    completed: bool,
    error: Option<(bool, String)>,
}

impl Translator {
    /// A prompt is about to be handed over.
    pub fn prompted(&mut self) {
        self.begin_turn();
    }

    /// The prompt was not taken.
    pub fn prompt_refused(&mut self) {
        if !self.turn.worked && self.turn.last.is_none() {
            self.turn = Turn { shown: self.turn.shown.take(), ..Turn::default() };
        }
    }

    /// The user stops the turn, or (`false`) could not.
    pub fn aborting(&mut self, aborted: bool) {
        self.turn.aborted = aborted && self.turn.open;
    }

    fn begin_turn(&mut self) {
        if !self.turn.open {
            self.turn = Turn { open: true, shown: self.turn.shown.take(), ..Turn::default() };
        }
    }

    pub(super) fn status(&mut self, session: &str, status: &Value, now: Timestamp) -> Option<()> {
        let own = session == self.root.as_str();
        let busy = match text(status, "type") {
            "busy" => Busy::Working,
            "retry" => Busy::Retrying {
                attempt: u32::try_from(count(status, "attempt")).unwrap_or(u32::MAX),
                message: super::super::bound::cut(text(status, "message"), 4096),
                next_at: time(status, "next").unwrap_or(now),
            },
            "idle" => {
                self.busy.remove(session);
                if own {
                    self.turn_idle(now);
                } else {
                    self.withdraw_requests(|pending| pending.conversation() == session, "the subagent has ended");
                }
                return Some(());
            }
            _ => return None,
        };
        self.busy.insert(session.to_owned());
        if own {
            self.begin_turn();
            self.turn.worked = true;
            self.turn.idle = false;
            self.turn.end_at = None;
            self.show(busy);
        }
        Some(())
    }

    fn show(&mut self, busy: Busy) {
        if self.turn.shown.as_ref() != Some(&busy) {
            self.turn.shown = Some(busy.clone());
            self.record(EventKind::Busy { busy });
        }
    }

    fn turn_idle(&mut self, now: Timestamp) {
        if !self.turn.open {
            return;
        }
        self.turn.idle = true;
        match &self.turn.last {
            Some(last) if last.completed => self.end_turn(),
            Some(_) => self.turn.end_at = self.turn.end_at.or(Some(now.plus_millis(COMPLETION_MILLIS))),
            None => {
                let millis = if self.turn.worked { NOTHING_FOLLOWS_MILLIS } else { NOTHING_BEGINS_MILLIS };
                self.turn.end_at = self.turn.end_at.or(Some(now.plus_millis(millis)));
            }
        }
    }

    pub(super) fn turn_saw_assistant(&mut self, id: &MessageId, info: &Value, is_new: bool, now: Timestamp) {
        let completed = time(field(info, "time"), "completed").is_some();
        if is_new && !completed {
            self.begin_turn();
        }
        let same = self.turn.last.as_ref().is_some_and(|last| last.id == *id);
        if !self.turn.open || !(is_new || same) {
            return;
        }
        let error = info.get("error").map(Failure::of).map(|failure| (failure.is_abort(), failure.message));
        let decided = error.is_some() || text(info, "finish") != "tool-calls";
        self.turn.last = Some(Last { id: id.clone(), completed, error });
        if self.turn.idle && completed {
            if decided {
                self.end_turn();
            } else {
                self.turn.end_at = Some(now.plus_millis(NOTHING_FOLLOWS_MILLIS));
            }
        }
    }

    /// Whether the next [`tick`](Self::tick) ends the turn by time alone. Ask OpenCode for its state before: the `idle` may have been that of an
    /// earlier turn.
    #[must_use]
    pub fn overdue(&self, now: Timestamp) -> bool {
        self.turn.open && self.turn.end_at.is_some_and(|end_at| end_at <= now)
    }

    pub(super) fn settle_overdue(&mut self, now: Timestamp) {
        if self.overdue(now) {
            self.end_turn();
        }
    }

    fn end_turn(&mut self) {
        let turn = std::mem::take(&mut self.turn);
        let aborted = turn.aborted || turn.last.as_ref().is_some_and(|last| matches!(last.error, Some((true, _))));
        let outcome = match (turn.last, turn.error) {
            _ if aborted => TurnOutcome::Aborted,
            (Some(Last { error: Some((_, message)), .. }), _) => TurnOutcome::Failed { message },
            (None | Some(Last { completed: false, .. }), Some(message)) => TurnOutcome::Failed { message },
            (Some(Last { .. }) | None, _) => TurnOutcome::Completed,
        };
        self.finish_turn(outcome, turn.shown);
    }

    pub(super) fn turn_died(&mut self) {
        if self.turn.open {
            let turn = std::mem::take(&mut self.turn);
            self.finish_turn(TurnOutcome::Interrupted, turn.shown);
        }
    }

    fn finish_turn(&mut self, outcome: TurnOutcome, shown: Option<Busy>) {
        let root = self.root.clone();
        self.close_parts(|part| part.conversation() == &root, "interrupted");
        // A subagent that still works may still wait for an answer.
        let busy = std::mem::take(&mut self.busy);
        self.withdraw_requests(|pending| !busy.contains(pending.conversation()), "the turn has ended");
        self.busy = busy;
        self.turn.shown = shown;
        self.show(Busy::Rest);
        self.record(EventKind::TurnEnded { outcome });
    }

    pub(super) fn error(&mut self, properties: &Value, now: Timestamp) -> Option<()> {
        let (session, failure) = (text(properties, "sessionID"), Failure::of(field(properties, "error")));
        let own = session == self.root.as_str() || session.is_empty();
        if failure.is_abort() {
            self.turn.aborted |= own && self.turn.open;
            return Some(());
        }
        if own && self.turn.open {
            // Behind an error of its own OpenCode sends a second one that says nothing.
            if self.turn.error.is_some() && failure.message == "UnknownError: UnknownError" {
                return Some(());
            }
            self.turn.error = Some(failure.message.clone());
            // An error before the first sign of work (an unknown agent) is followed by nothing at all.
            if !self.turn.worked && self.turn.end_at.is_none() {
                self.turn.end_at = Some(now.plus_millis(NOTHING_FOLLOWS_MILLIS));
            }
        }
        let hint = hint(&failure, self.messages.provider());
        let Failure { name, message, status_code } = failure;
        self.record(EventKind::AgentError { name, message, status_code, hint });
        Some(())
    }
}

/// What the user can do about an error.
fn hint(failure: &Failure, provider: Option<&str>) -> Option<String> {
    let provider = provider.unwrap_or("PROVIDER");
    Some(match (failure.status_code, failure.name.as_str()) {
        (Some(401), _) if failure.message.starts_with("no key") => {
            format!("set one with `openagent keys set {provider}`, then send the prompt again")
        }
        (Some(401 | 403), _) => {
            format!("the provider refused the key: set another one with `openagent keys set {provider}`, then send the prompt again")
        }
        (Some(404), _) => "the provider does not know this model: choose another one with `openagent models`".to_owned(),
        (Some(402), _) => "the account at the provider has no credit left: add some there, or choose another provider's model".to_owned(),
        (Some(429), _) => "the provider limits how much may be asked: wait, or choose another model, then send the prompt again".to_owned(),
        // Of a proxy on the way, ours included.
        (Some(502), _) | (None, "APIError") => {
            "the provider could not be reached: check its address and the network, then send the prompt again".to_owned()
        }
        (Some(500..), _) => {
            "the provider has a fault of its own: send the prompt again later, or choose another provider's model".to_owned()
        }
        (_, "ContextOverflowError") => "the conversation is too long for the model: the agent compacts it where it can".to_owned(),
        (_, "ContentFilterError") => "the provider's filter stopped the answer: put the prompt in other words".to_owned(),
        (_, "ProviderAuthError") => format!("set a key with `openagent keys set {provider}`"),
        _ => return None,
    })
}
