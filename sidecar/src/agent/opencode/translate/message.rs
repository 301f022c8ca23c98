//! Messages and what they cost.

use std::collections::{BTreeMap, VecDeque};

use openagent_core::event::{EventKind, Message, Role};
use openagent_core::id::MessageId;
use openagent_core::time::Timestamp;
use openagent_core::usage::Usage;
use serde_json::Value;

use super::super::json::{cost, field, flag, list, text, time, tokens};
use super::Translator;

/// Messages whose last form is remembered, to say only what changed; older ones are no longer updated.
const KNOWN_MAX: usize = 256;

/// The last form of the newest messages.
#[derive(Debug, Default)]
pub(super) struct Known {
    messages: BTreeMap<MessageId, (Message, Usage)>,
    order: VecDeque<MessageId>,
}

impl Known {
    fn get(&self, id: &MessageId) -> Option<&(Message, Usage)> {
        self.messages.get(id)
    }

    fn set(&mut self, message: Message, usage: Usage) {
        let id = message.id.clone();
        if self.messages.insert(id.clone(), (message, usage)).is_none() {
            self.order.push_back(id);
            if self.order.len() > KNOWN_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.messages.remove(&oldest);
            }
        }
    }

    /// The provider of the newest message that names one.
    pub(super) fn provider(&self) -> Option<&str> {
        self.order.iter().rev().filter_map(|id| self.messages.get(id)?.0.model.split_once('/')).map(|(provider, _)| provider).next()
    }
}

impl Translator {
    pub(super) fn message_updated(&mut self, info: &Value, now: Timestamp) -> Option<()> {
        let id: MessageId = text(info, "id").parse().ok()?;
        let role = match text(info, "role") {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => return None,
        };
        // A user's message holds its model in an object, an assistant's in two fields of its own.
        let model = info.get("model").unwrap_or(info);
        let model = match (text(model, "providerID"), text(model, "modelID")) {
            ("", _) | (_, "") => String::new(),
            (provider, model) => format!("{provider}/{model}"),
        };
        let times = field(info, "time");
        let error = info.get("error").map(|error| Failure::of(error).message);
        let message = Message {
            id: id.clone(),
            conversation: text(info, "sessionID").parse().ok()?,
            role,
            parent: text(info, "parentID").parse().ok(),
            agent: text(info, "agent").to_owned(),
            model: model.clone(),
            created_at: time(times, "created").unwrap_or(now),
            completed_at: time(times, "completed"),
            error,
            summary: flag(info, "summary"),
        };
        let usage = Usage { tokens: tokens(field(info, "tokens")), cost_micros: cost(info, "cost") };
        let (known, paid) = self.messages.get(&id).map_or((None, Usage::default()), |(message, usage)| (Some(message), *usage));
        let (is_new, changed) = (known.is_none(), known != Some(&message));
        let root = message.conversation == self.root;
        let completed = message.completed_at.is_some();

        if role == Role::Assistant && completed {
            self.close_parts(|part| part.message() == &id, "interrupted");
        }
        self.messages.set(message.clone(), usage);
        if changed {
            self.record(EventKind::Message { message });
        }
        if usage != paid
            && let Some((provider, model)) = model.split_once('/')
        {
            let (provider, model) = (provider.to_owned(), model.to_owned());
            self.record(EventKind::Usage { message: id.clone(), provider, model, usage });
        }
        if root
            && role == Role::User
            && let Some(summary) = info.get("summary")
        {
            self.diff(list(summary, "diffs"));
        }
        if root && role == Role::Assistant {
            self.turn_saw_assistant(&id, info, is_new, now);
        }
        Some(())
    }

    pub(super) fn message_removed(&mut self, id: &str) -> Option<()> {
        let id = id.parse().ok()?;
        self.parts.retain(|_, part| part.message() != &id);
        self.record(EventKind::MessageRemoved { id });
        Some(())
    }
}

/// An error as OpenCode writes it: `{"name", "data": {"message", "statusCode"}}`.
pub(super) struct Failure {
    pub(super) name: String,
    pub(super) message: String,
    pub(super) status_code: Option<u16>,
}

impl Failure {
    pub(super) fn of(error: &Value) -> Self {
        let (name, data) = (text(error, "name"), field(error, "data"));
        let name = if name.is_empty() { "UnknownError" } else { name };
        // Errors of OpenCode itself carry a stack; its first line says what went wrong.
        let message = text(data, "message");
        let message = if name == "UnknownError" { message.lines().next().unwrap_or_default() } else { message };
        let status_code = field(data, "statusCode").as_u64().and_then(|code| u16::try_from(code).ok());
        Self { name: name.to_owned(), message: if message.is_empty() { name } else { message }.to_owned(), status_code }
    }

    /// The user stopped the turn; no failure.
    pub(super) fn is_abort(&self) -> bool {
        self.name == "MessageAbortedError"
    }
}
