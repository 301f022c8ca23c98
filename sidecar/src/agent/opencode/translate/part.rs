//! Parts of messages: whole ones, letters of those being written, and commands that run.

use openagent_core::event::{EventKind, Part, PartBody, PartDelta, ToolState};
use openagent_core::id::{ConversationId, MessageId, PartId};
use openagent_core::time::Timestamp;
use serde_json::Value;

use super::super::json::{cost, field, flag, text, texts, time, tokens};
use super::{Output, Translator};

/// Most letters of an unfinished part that are kept and passed on, in bytes; the finished part brings the rest.
const LETTERS_MAX_BYTES: usize = 1024 * 1024;

/// Most files named in a patch.
const FILES_MAX: usize = 1000;

/// Least time between two records of the growing output of one command, and how much more each 8 KiB of it cost: it comes whole each time.
const OUTPUT_INTERVAL_MILLIS: i64 = 1_000;
const OUTPUT_BYTES_PER_INTERVAL: usize = 8 * 1024;

/// A part that OpenCode has not finished.
#[derive(Debug)]
pub(super) struct Open {
    part: Part,
    /// Letters are missing, or there are too many: what follows cannot be placed.
    holed: bool,
    /// A tool's state was seen that has not been recorded.
    unrecorded: bool,
    recorded_at: Timestamp,
}

impl Open {
    pub(super) const fn message(&self) -> &MessageId {
        &self.part.message
    }

    pub(super) const fn conversation(&self) -> &ConversationId {
        &self.part.conversation
    }

    pub(super) const fn lost_letters(&mut self) {
        self.holed = true;
    }

    pub(super) fn due_at(&self) -> Option<Timestamp> {
        let PartBody::Tool { state: ToolState::Running { output, .. }, .. } = &self.part.body else { return None };
        let intervals = 1 + i64::try_from(output.len() / OUTPUT_BYTES_PER_INTERVAL).unwrap_or(i64::MAX);
        self.unrecorded.then(|| self.recorded_at.plus_millis(OUTPUT_INTERVAL_MILLIS.saturating_mul(intervals)))
    }

    /// The part as it is when nothing more will come of it.
    fn closed(self, why: &str) -> Part {
        let body = match self.part.body {
            PartBody::Text { text, synthetic, .. } => PartBody::Text { text, done: true, synthetic },
            PartBody::Reasoning { text, .. } => PartBody::Reasoning { text, done: true },
            PartBody::Tool { tool, state: ToolState::Running { input, .. } } => {
                PartBody::Tool { tool, state: ToolState::Error { input, error: why.to_owned() } }
            }
            PartBody::Tool { tool, state: ToolState::Pending } => {
                PartBody::Tool { tool, state: ToolState::Error { input: Value::Null, error: why.to_owned() } }
            }
            finished => finished,
        };
        Part { body, ..self.part }
    }
}

impl Translator {
    pub(super) fn part_delta(&mut self, properties: &Value) -> Option<()> {
        let (id, letters) = (text(properties, "partID"), text(properties, "delta"));
        // A part that was never seen cannot be placed; it will come whole.
        let Some(open) = self.parts.get_mut(id) else { return Some(()) };
        let (PartBody::Text { text: so_far, .. } | PartBody::Reasoning { text: so_far, .. }) = &mut open.part.body else { return Some(()) };
        open.holed |= text(properties, "field") != "text" || so_far.len() + letters.len() > LETTERS_MAX_BYTES;
        if open.holed || letters.is_empty() {
            return Some(());
        }
        let offset = so_far.len() as u64;
        so_far.push_str(letters);
        let delta = PartDelta { message: open.part.message.clone(), part: open.part.id.clone(), offset, text: letters.to_owned() };
        self.outputs.push(Output::Delta(delta));
        Some(())
    }

    pub(super) fn part_updated(&mut self, part: &Value, now: Timestamp) -> Option<()> {
        let id: PartId = text(part, "id").parse().ok()?;
        let message = text(part, "messageID").parse().ok()?;
        let conversation = text(part, "sessionID").parse().ok()?;
        let Some(body) = body(part) else { return Some(()) };
        let part = Part { id: id.clone(), message, conversation, body };
        let earlier = self.parts.remove(id.as_str());
        if is_finished(&part.body) {
            self.record(EventKind::Part { part });
            return Some(());
        }
        // Letters that followed its birth were missed with it.
        let mut open = Open { part, holed: self.replaying, unrecorded: true, recorded_at: now };
        if let Some(earlier) = earlier
            && is_progress(&earlier.part.body, &open.part.body)
        {
            open.unrecorded = earlier.unrecorded || earlier.part.body != open.part.body;
            open.recorded_at = earlier.recorded_at;
        }
        let wait = open.due_at().is_some_and(|due| due > now) && open.recorded_at != now;
        if open.unrecorded && !wait {
            open.unrecorded = false;
            open.recorded_at = now;
            self.record(EventKind::Part { part: open.part.clone() });
        }
        self.parts.insert(String::from(id), open);
        Some(())
    }

    pub(super) fn part_removed(&mut self, properties: &Value) -> Option<()> {
        let (message, id) = (text(properties, "messageID").parse().ok()?, text(properties, "partID"));
        self.parts.remove(id);
        self.record(EventKind::PartRemoved { message, id: id.parse().ok()? });
        Some(())
    }

    pub(super) fn flush_tools(&mut self, now: Timestamp) {
        let mut due = Vec::new();
        for open in self.parts.values_mut().filter(|open| open.due_at().is_some_and(|at| at <= now)) {
            open.unrecorded = false;
            open.recorded_at = now;
            due.push(open.part.clone());
        }
        due.into_iter().for_each(|part| self.record(EventKind::Part { part }));
    }

    pub(super) fn close_parts(&mut self, which: impl Fn(&Open) -> bool, why: &str) {
        let ids: Vec<_> = self.parts.iter().filter(|(_, open)| which(open)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            if let Some(open) = self.parts.remove(&id) {
                self.record(EventKind::Part { part: open.closed(why) });
            }
        }
    }
}

const fn is_finished(body: &PartBody) -> bool {
    !matches!(
        body,
        PartBody::Text { done: false, .. }
            | PartBody::Reasoning { done: false, .. }
            | PartBody::Tool { state: ToolState::Pending | ToolState::Running { .. }, .. }
    )
}

/// Whether the later form only continues the output of a running command.
fn is_progress(earlier: &PartBody, later: &PartBody) -> bool {
    match (earlier, later) {
        (
            PartBody::Tool { tool: a, state: ToolState::Running { input: before, .. } },
            PartBody::Tool { tool: b, state: ToolState::Running { input: after, .. } },
        ) => a == b && before == after,
        _ => false,
    }
}

/// What the part holds; nothing for kinds that another event says better.
fn body(part: &Value) -> Option<PartBody> {
    let times = field(part, "time");
    // A part without times was written in one piece: the user's, or one inserted by OpenCode.
    let done = times.is_null() || time(times, "end").is_some();
    let own = |key: &str| text(part, key).to_owned();
    Some(match text(part, "type") {
        "text" => PartBody::Text { text: own("text"), done, synthetic: flag(part, "synthetic") },
        "reasoning" => PartBody::Reasoning { text: own("text"), done },
        "tool" => PartBody::Tool { tool: own("tool"), state: tool_state(field(part, "state")) },
        "file" => PartBody::File { mime: own("mime"), name: file_name(part) },
        "patch" => PartBody::Patch { files: texts(part, "files", FILES_MAX) },
        "subtask" => PartBody::Subtask { agent: own("agent"), description: own("description") },
        "agent" => PartBody::Mention { agent: own("name") },
        "compaction" => PartBody::Compaction { auto: flag(part, "auto") },
        "step-start" => PartBody::StepStart,
        "step-finish" => {
            PartBody::StepFinish { reason: own("reason"), tokens: tokens(field(part, "tokens")), cost_micros: cost(part, "cost") }
        }
        // A snapshot's id means nothing outside; a retry is said by the status.
        "snapshot" | "retry" => return None,
        other => PartBody::Unknown { name: other.to_owned(), raw: part.clone() },
    })
}

fn file_name(part: &Value) -> String {
    let (name, url) = (text(part, "filename"), text(part, "url"));
    match name {
        "" if url.starts_with("data:") => "inline data".to_owned(),
        "" => url.to_owned(),
        name => name.to_owned(),
    }
}

fn tool_state(state: &Value) -> ToolState {
    let (input, metadata) = (field(state, "input").clone(), field(state, "metadata"));
    let (title, output) = (text(state, "title").to_owned(), text(state, "output").to_owned());
    match text(state, "status") {
        "running" => ToolState::Running { input, title, output: text(metadata, "output").to_owned() },
        "completed" => {
            let times = field(state, "time");
            let (start, end) = (time(times, "start").unwrap_or_default(), time(times, "end").unwrap_or_default());
            let exit_code = field(metadata, "exit").as_i64().and_then(|code| i32::try_from(code).ok());
            let diff = metadata.get("diff").and_then(Value::as_str).map(str::to_owned);
            ToolState::Completed { input, title, output, exit_code, diff, millis: end.millis_since(start) }
        }
        "error" => ToolState::Error { input, error: text(state, "error").to_owned() },
        _ => ToolState::Pending,
    }
}
