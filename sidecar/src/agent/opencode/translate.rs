//! From OpenCode's events to domain events, without I/O and without a clock: the time comes in with each call.
//!
//! Invariants, held over every recorded stream by `tests/translate.rs`:
//! - total: any JSON gives outputs or none, never a panic; what is not known becomes `Unknown`, known noise is dropped;
//! - each turn of the session's own conversation ends exactly once (OpenCode says `idle` up to three times), subagents never end it;
//! - every part and every request that was opened is closed by an event: by OpenCode's own, or by ours when it has died or moved on;
//! - a durable event is taken once, though `/global/event` says it twice and a replay may say it again.
//!
//! Letters of a part are deltas by byte offset; after a gap in the stream its letters are withheld until OpenCode sends the part whole.
//! Repeated whole outputs of a running command are thinned: the newest is kept and given out by [`Translator::tick`].

mod message;
mod part;
mod request;
mod turn;

use std::collections::{BTreeMap, BTreeSet};

use openagent_core::event::{EventKind, FileDiff, PartDelta, TodoItem};
use openagent_core::id::ConversationId;
use openagent_core::time::Timestamp;
use serde_json::Value;

use super::bound::bounded;
use super::json::{field, list, text};

pub use request::Answer;

/// Most event ids remembered from a replay: more than can arrive live while one is read.
const REPLAYED_MAX: usize = 8192;

/// Event types that tell a user nothing, or nothing that another event does not say.
const NOISE: &[&str] = &[
    "catalog.updated",
    "command.executed",
    "file.edited",
    "file.watcher.updated",
    "global.disposed",
    "installation.update-available",
    "installation.updated",
    "integration.connection.updated",
    "integration.updated",
    "lsp.client.diagnostics",
    "lsp.updated",
    "models-dev.refreshed",
    "plugin.added",
    "project.directories.updated",
    "project.updated",
    "pty.created",
    "pty.deleted",
    "pty.exited",
    "pty.updated",
    "reference.updated",
    "server.connected",
    "server.heartbeat",
    "server.instance.disposed",
    "session.compacted",
    "session.deleted",
    "tui.command.execute",
    "tui.prompt.append",
    "tui.session.select",
    "tui.toast.show",
    "vcs.branch.updated",
    "workspace.failed",
    "workspace.ready",
    "workspace.status",
    "worktree.failed",
    "worktree.ready",
];

/// What a piece of OpenCode's stream means.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// To be recorded.
    Record(EventKind),
    /// To be passed on, and forgotten.
    Delta(PartDelta),
}

/// Follows one session and its subagents.
#[derive(Debug)]
pub struct Translator {
    root: ConversationId,
    turn: turn::Turn,
    parts: BTreeMap<String, part::Open>,
    messages: message::Known,
    requests: BTreeMap<String, request::Pending>,
    busy: BTreeSet<String>,
    subagents: BTreeSet<String>,
    title: String,
    diff: Vec<FileDiff>,
    todo: Vec<TodoItem>,
    sequences: BTreeMap<String, u64>,
    replayed: BTreeSet<String>,
    replaying: bool,
    outputs: Vec<Output>,
}

impl Translator {
    /// Follows the conversation `root`, which is the session's own, from a state of rest.
    #[must_use]
    pub fn new(root: ConversationId) -> Self {
        Self {
            root,
            turn: turn::Turn::default(),
            parts: BTreeMap::new(),
            messages: message::Known::default(),
            requests: BTreeMap::new(),
            busy: BTreeSet::new(),
            subagents: BTreeSet::new(),
            title: String::new(),
            diff: Vec::new(),
            todo: Vec::new(),
            sequences: BTreeMap::new(),
            replayed: BTreeSet::new(),
            replaying: false,
            outputs: Vec::new(),
        }
    }

    /// Takes one event: the `payload` of a `/global/event`, or an event of `/event`.
    pub fn apply(&mut self, payload: &Value, now: Timestamp) -> Vec<Output> {
        let name = text(payload, "type");
        if Self::is_number(payload) {
            let event = field(payload, "syncEvent");
            self.saw_sequence(text(event, "aggregateID"), field(event, "seq"));
        } else if !self.replayed.remove(text(payload, "id")) {
            self.dispatch(name, field(payload, "properties"), now);
        }
        self.take()
    }

    /// Whether it only tells the number of the durable event before it.
    #[must_use]
    pub fn is_number(payload: &Value) -> bool {
        text(payload, "type") == "sync"
    }

    /// Takes one entry of `/sync/history`: a durable event that may have been missed.
    pub fn replay(&mut self, entry: &Value, now: Timestamp) -> Vec<Output> {
        let (session, sequence) = (text(entry, "aggregate_id"), field(entry, "seq"));
        if self.sequences.get(session).is_some_and(|known| sequence.as_u64().is_none_or(|sequence| sequence <= *known)) {
            return Vec::new();
        }
        self.saw_sequence(session, sequence);
        if self.replayed.len() >= REPLAYED_MAX {
            // The oldest: they ascend.
            self.replayed.pop_first();
        }
        self.replayed.insert(text(entry, "id").to_owned());
        // Durable names carry a version: "message.updated.1".
        let name = text(entry, "type");
        let name = name.rsplit_once('.').filter(|(_, version)| version.parse::<u32>().is_ok()).map_or(name, |(name, _)| name);
        self.replaying = true;
        self.dispatch(name, field(entry, "data"), now);
        self.replaying = false;
        self.take()
    }

    /// What is due at `now`: thinned outputs of running commands, and the end of a turn whose last message never came.
    pub fn tick(&mut self, now: Timestamp) -> Vec<Output> {
        self.flush_tools(now);
        self.settle_overdue(now);
        self.take()
    }

    /// When [`tick`](Self::tick) has something to do next.
    #[must_use]
    pub fn next_tick(&self) -> Option<Timestamp> {
        self.parts.values().filter_map(part::Open::due_at).chain(self.turn.end_at).min()
    }

    /// The last durable sequence number seen of each conversation.
    #[must_use]
    pub const fn sequences(&self) -> &BTreeMap<String, u64> {
        &self.sequences
    }

    /// Continues behind durable events that an earlier run has taken.
    pub fn continue_from(&mut self, sequences: BTreeMap<String, u64>) {
        self.sequences = sequences;
    }

    /// The title that the conversation has already.
    pub fn titled(&mut self, title: &str) {
        title.clone_into(&mut self.title);
    }

    /// Whether a turn is under way.
    #[must_use]
    pub const fn in_turn(&self) -> bool {
        self.turn.open
    }

    /// The stream was interrupted: letters may be missing from here on.
    pub fn stream_broke(&mut self) {
        self.parts.values_mut().for_each(part::Open::lost_letters);
    }

    /// The agent's process has died: closes what it left open.
    pub fn died(&mut self) -> Vec<Output> {
        self.close_parts(|_| true, "interrupted: the agent's process ended");
        self.withdraw_requests(|_| true, "the agent's process ended");
        self.busy.clear();
        self.turn_died();
        self.take()
    }

    fn dispatch(&mut self, name: &str, properties: &Value, now: Timestamp) {
        let known = match name {
            "message.part.delta" => self.part_delta(properties),
            "message.part.updated" => self.part_updated(field(properties, "part"), now),
            "message.part.removed" => self.part_removed(properties),
            "message.updated" => self.message_updated(field(properties, "info"), now),
            "message.removed" => self.message_removed(text(properties, "messageID")),
            "session.status" => self.status(text(properties, "sessionID"), field(properties, "status"), now),
            "session.idle" => self.status(text(properties, "sessionID"), &serde_json::json!({ "type": "idle" }), now),
            "session.error" => self.error(properties, now),
            "session.created" | "session.updated" => self.session(field(properties, "info")),
            "session.diff" => self.session_diff(properties),
            "todo.updated" => self.todos(properties),
            "permission.asked" => self.permission_asked(properties, now),
            "permission.replied" => self.permission_replied(properties),
            "question.asked" => self.question_asked(properties, now),
            "question.replied" | "question.rejected" => self.question_answered(properties),
            noise => NOISE.contains(&noise).then_some(()),
        };
        if known.is_none() {
            self.record(EventKind::Unknown { name: name.to_owned(), raw: properties.clone() });
        }
    }

    fn saw_sequence(&mut self, session: &str, sequence: &Value) {
        if let Some(sequence) = sequence.as_u64() {
            let last = self.sequences.entry(session.to_owned()).or_default();
            *last = sequence.max(*last);
        }
    }

    fn session(&mut self, info: &Value) -> Option<()> {
        let (id, title) = (text(info, "id"), text(info, "title"));
        if id == self.root.as_str() {
            // What a conversation is called before it has a title, such as "New session - 2026-11-22T08:38:10.464Z".
            let placeholder = title.starts_with("New session - ") || title.starts_with("Child session - ");
            if !placeholder && !title.is_empty() && title != self.title {
                title.clone_into(&mut self.title);
                self.record(EventKind::Title { title: title.to_owned() });
            }
        } else if let Some(parent) = info.get("parentID").and_then(Value::as_str)
            && !self.subagents.contains(id)
        {
            let (conversation, parent) = (id.parse().ok()?, parent.parse().ok()?);
            self.subagents.insert(id.to_owned());
            self.record(EventKind::Subagent { conversation, parent, title: title.to_owned() });
        }
        Some(())
    }

    fn session_diff(&mut self, properties: &Value) -> Option<()> {
        // An empty one follows every turn and says nothing; the user's message carries what the turn changed.
        let files = list(properties, "diff");
        if text(properties, "sessionID") == self.root.as_str() && !files.is_empty() {
            self.diff(files);
        }
        Some(())
    }

    fn todos(&mut self, properties: &Value) -> Option<()> {
        if text(properties, "sessionID") == self.root.as_str() {
            let items = list(properties, "todos").iter().map(|item| TodoItem {
                content: text(item, "content").to_owned(),
                status: text(item, "status").to_owned(),
                priority: text(item, "priority").to_owned(),
            });
            let items: Vec<_> = items.collect();
            if items != self.todo {
                self.todo.clone_from(&items);
                self.record(EventKind::Todo { items });
            }
        }
        Some(())
    }

    fn diff(&mut self, files: &[Value]) {
        let file = |file: &Value| FileDiff {
            path: text(file, "file").to_owned(),
            additions: super::json::count(file, "additions"),
            deletions: super::json::count(file, "deletions"),
            status: text(file, "status").to_owned(),
            patch: text(file, "patch").to_owned(),
        };
        let files: Vec<_> = files.iter().map(file).collect();
        if files != self.diff {
            self.diff.clone_from(&files);
            self.record(EventKind::Diff { files });
        }
    }

    fn record(&mut self, kind: EventKind) {
        self.outputs.push(Output::Record(bounded(kind)));
    }

    fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Takes over what OpenCode says of its present state, after its stream was interrupted. `statuses` lists only conversations that are
    /// not at rest.
    pub fn resync(&mut self, state: &Snapshot, now: Timestamp) -> Vec<Output> {
        let root = self.root.as_str().to_owned();
        for (session, status) in state.statuses.as_object().into_iter().flatten() {
            self.status(session, status, now);
        }
        let at_rest = |session: &str| state.statuses.get(session).is_none();
        for session in self.busy.clone().into_iter().filter(|session| at_rest(session)) {
            self.status(&session, &serde_json::json!({ "type": "idle" }), now);
        }
        if self.turn.open && at_rest(&root) {
            self.status(&root, &serde_json::json!({ "type": "idle" }), now);
        }
        self.resync_requests(state, now);
        if let Some(todos) = &state.todos {
            self.todos(&serde_json::json!({ "sessionID": root, "todos": todos }));
        }
        self.take()
    }
}

/// OpenCode's present state, as its HTTP API tells it.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Answer of `/session/status`.
    pub statuses: Value,
    /// Answer of `/permission`.
    pub permissions: Value,
    /// Answer of `/question`.
    pub questions: Value,
    /// Answer of `/session/{id}/todo`, if it was asked.
    pub todos: Option<Value>,
}
