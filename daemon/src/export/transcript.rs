//! The conversation of a session, folded from its events, for people and for programs.

use std::collections::HashMap;
use std::fmt::Write;

use openagent_core::event::{Event, EventKind, Message, Part, PartBody, Role, ToolState};
use openagent_core::id::{MessageId, PartId};
use serde::Serialize;

use super::archive::About;

/// A conversation: messages in the order in which they came, each with its parts.
#[derive(Debug, Default)]
pub struct Transcript {
    order: Vec<MessageId>,
    messages: HashMap<MessageId, Entry>,
    parts: HashMap<PartId, MessageId>,
}

#[derive(Debug, Default, Serialize)]
struct Entry {
    #[serde(flatten)]
    message: Option<Message>,
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct Document<'a> {
    format: u32,
    session: &'a str,
    title: &'a str,
    messages: Vec<&'a Entry>,
}

impl Transcript {
    /// Takes one event into account.
    pub fn apply(&mut self, event: Event) {
        match event.kind {
            EventKind::Message { message } => {
                let id = message.id.clone();
                self.entry(&id).message = Some(message);
            }
            EventKind::MessageRemoved { id } => {
                self.order.retain(|known| *known != id);
                self.messages.remove(&id);
            }
            EventKind::Part { part } => {
                self.parts.insert(part.id.clone(), part.message.clone());
                let parts = &mut self.entry(&part.message.clone()).parts;
                match parts.iter_mut().find(|known| known.id == part.id) {
                    Some(known) => *known = part,
                    None => parts.push(part),
                }
            }
            EventKind::PartRemoved { id, .. } => {
                if let Some(message) = self.parts.remove(&id)
                    && let Some(entry) = self.messages.get_mut(&message)
                {
                    entry.parts.retain(|part| part.id != id);
                }
            }
            _ => {}
        }
    }

    fn entry(&mut self, id: &MessageId) -> &mut Entry {
        if !self.messages.contains_key(id) {
            self.order.push(id.clone());
        }
        self.messages.entry(id.clone()).or_default()
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.order.iter().filter_map(|id| self.messages.get(id)).filter(|entry| entry.message.is_some())
    }

    /// The conversation as JSON; messages and parts in the form in which they are stored.
    #[must_use]
    pub fn json(&self, about: &About) -> Vec<u8> {
        let document =
            Document { format: 1, session: about.session.id.as_str(), title: &about.session.title, messages: self.entries().collect() };
        serde_json::to_vec_pretty(&document).expect("a transcript has only string keys")
    }

    /// The conversation as markdown.
    #[must_use]
    pub fn markdown(&self, about: &About) -> String {
        let mut text = format!("# {}\n\nSession {}, {}\n", line(&about.session.title), about.session.id, about.session.created_at);
        for entry in self.entries() {
            let Some(message) = &entry.message else { continue };
            let subagent = message.conversation.as_str() != about.session.id.as_str();
            let who = match (message.role, subagent) {
                (Role::User, false) => "User".to_owned(),
                (Role::User, true) => "Task for a subagent".to_owned(),
                (Role::Assistant, false) => format!("Agent ({})", line(&message.model)),
                (Role::Assistant, true) => format!("Subagent ({})", line(&message.model)),
            };
            let _ = write!(text, "\n## {who}\n");
            for part in &entry.parts {
                push_part(&mut text, &part.body);
            }
            if let Some(error) = &message.error {
                let _ = write!(text, "\n> error: {}\n", line(error));
            }
        }
        text
    }
}

/// One line of untrusted text.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A block that its content cannot end: the fence is longer than any run of backticks in it.
fn fenced(text: &mut String, language: &str, content: &str) {
    let longest = content.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let _ = write!(text, "\n{fence}{language}\n{}\n{fence}\n", content.trim_end_matches('\n'));
}

fn push_part(text: &mut String, body: &PartBody) {
    match body {
        PartBody::Text { text: prose, synthetic: false, .. } => {
            let _ = write!(text, "\n{prose}\n");
        }
        PartBody::Reasoning { text: prose, .. } => {
            for (index, thought) in prose.lines().enumerate() {
                let _ = write!(text, "{}> {thought}", if index == 0 { "\n> *reasoning*\n" } else { "\n" });
            }
            text.push('\n');
        }
        PartBody::Tool { tool, state } => push_tool(text, tool, state),
        PartBody::File { name, .. } => {
            let _ = write!(text, "\nAttached: {}\n", line(name));
        }
        PartBody::Subtask { agent, description } => {
            let _ = write!(text, "\nTask for {}: {}\n", line(agent), line(description));
        }
        PartBody::Compaction { .. } => text.push_str("\n*Older messages were compacted here.*\n"),
        PartBody::Text { synthetic: true, .. }
        | PartBody::Patch { .. }
        | PartBody::Mention { .. }
        | PartBody::StepStart
        | PartBody::StepFinish { .. }
        | PartBody::Unknown { .. } => {}
    }
}

fn push_tool(text: &mut String, tool: &str, state: &ToolState) {
    let (input, outcome) = match state {
        ToolState::Pending => (None, "not begun"),
        ToolState::Running { input, .. } => (Some(input), "running"),
        ToolState::Completed { input, .. } => (Some(input), "done"),
        ToolState::Error { input, .. } => (Some(input), "failed"),
    };
    let _ = write!(text, "\n**{}** ({outcome})\n", line(tool));
    if let Some(input) = input {
        match input.get("command").and_then(serde_json::Value::as_str) {
            Some(command) => fenced(text, "sh", command),
            None => fenced(text, "json", &serde_json::to_string_pretty(input).unwrap_or_default()),
        }
    }
    match state {
        ToolState::Completed { diff: Some(diff), .. } => fenced(text, "diff", diff),
        ToolState::Completed { output, .. } | ToolState::Running { output, .. } if !output.is_empty() => fenced(text, "", output),
        ToolState::Error { error, .. } => fenced(text, "", error),
        ToolState::Completed { .. } | ToolState::Running { .. } | ToolState::Pending => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_cannot_end_its_own_block() {
        let mut text = String::new();
        fenced(&mut text, "", "a\n````\nb");
        assert_eq!(text, "\n`````\na\n````\nb\n`````\n");
    }
}
