//! What happens in a session, as data.
//!
//! Two families. *Recorded* events ([`EventKind`]) make up the history: each has a place in the session's dense sequence, is shown only once
//! durable, and is enough to rebuild the conversation. *Deltas* ([`PartDelta`]) are the letters of a part that is still being written:
//! never recorded, addressed by byte offset, and superseded by the recorded part that follows.
//!
//! The serde form of [`EventKind`] is the sidecar's journal, the wire to the daemon and the store. It changes only by addition.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::id::{ConversationId, MessageId, PartId, RequestId, TerminalId};
use crate::instance::Instance;
use crate::permission::{PermissionRequest, PermissionResponse, QuestionRequest};
use crate::session::{Fault, Status, Step};
use crate::time::Timestamp;
use crate::usage::{Tokens, Usage};

/// Largest serialised event, in bytes. OpenCode has been seen to send parts of 20 MB (a prompt of that size); longer texts are cut with a note.
pub const EVENT_MAX_BYTES: usize = 4 * 1024 * 1024;

/// A recorded event at its place in the history of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Place in the session's history: dense, from 1.
    pub seq: u64,
    /// When it happened (where it came from the agent: when the sidecar saw it).
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// The session's status or title changed.
    Session {
        /// Status from now on.
        status: Status,
        /// Why, where the status is an error.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fault: Option<Fault>,
        /// Title from now on.
        title: String,
    },
    /// An instance of the session changed.
    Instance {
        /// The instance as it is from now on.
        instance: Instance,
    },
    /// A provisioning step began, ended or failed.
    Step {
        /// The step.
        step: Step,
        /// What became of it.
        outcome: StepOutcome,
    },
    /// The agent's server process changed state.
    Agent {
        /// Its state from now on.
        process: AgentProcess,
    },
    /// The agent began to work, waits before a retry, or is at rest.
    Busy {
        /// What it does from now on.
        busy: Busy,
    },
    /// A turn (everything from a prompt to rest) ended.
    TurnEnded {
        /// How.
        outcome: TurnOutcome,
    },
    /// The agent gave its conversation a title.
    Title {
        /// The title. Untrusted text.
        title: String,
    },
    /// A message was added or changed; it replaces an earlier one of the same id.
    Message {
        /// The message without its parts.
        message: Message,
    },
    /// A message was taken out of the conversation.
    MessageRemoved {
        /// Which.
        id: MessageId,
    },
    /// A part was added or changed; it replaces an earlier one of the same id.
    Part {
        /// The part.
        part: Part,
    },
    /// A part was taken out of its message.
    PartRemoved {
        /// Its message.
        message: MessageId,
        /// Which.
        id: PartId,
    },
    /// A subagent's conversation began.
    Subagent {
        /// The subagent's conversation.
        conversation: ConversationId,
        /// The conversation that started it.
        parent: ConversationId,
        /// What it is to do.
        title: String,
    },
    /// The agent asks for permission.
    PermissionAsked {
        /// What it asks.
        request: PermissionRequest,
    },
    /// A permission request was answered.
    PermissionAnswered {
        /// Which.
        id: RequestId,
        /// The answer.
        response: PermissionResponse,
        /// Who answered: a client's name, `rule` for a remembered answer, `agent` where the agent withdrew or decided it.
        by: String,
        /// Why it was rejected.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The agent asks a question.
    QuestionAsked {
        /// What it asks.
        request: QuestionRequest,
    },
    /// A question was answered, or dismissed (`answers` absent).
    QuestionAnswered {
        /// Which.
        id: RequestId,
        /// For each question the chosen labels or own words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answers: Option<Vec<Vec<String>>>,
        /// Who answered.
        by: String,
    },
    /// The agent's list of things to do, whole.
    Todo {
        /// Everything on the list.
        items: Vec<TodoItem>,
    },
    /// What the turn has changed in the workspace so far.
    Diff {
        /// One entry a file.
        files: Vec<FileDiff>,
    },
    /// A model call was paid for.
    Usage {
        /// The message it belongs to.
        message: MessageId,
        /// Provider id.
        provider: String,
        /// Model id.
        model: String,
        /// Tokens and cost of this message so far; replaces what was said of it before.
        usage: Usage,
    },
    /// A terminal was opened or ended.
    Terminal {
        /// Which.
        id: TerminalId,
        /// Exit code once it has ended; 128 + signal number when a signal killed it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
    },
    /// The set of provider keys that the session may use changed.
    KeysUpdated {
        /// The providers that have a key now.
        providers: Vec<String>,
    },
    /// The agent reports an error of its own or of the model provider.
    AgentError {
        /// The agent's name for it, such as `APIError`.
        name: String,
        /// Its message. Untrusted text.
        message: String,
        /// HTTP status of the provider, where it came from there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status_code: Option<u16>,
        /// What the user can do about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    /// Events are missing here: they were never received, or were no longer kept.
    Gap {
        /// Why, in one sentence.
        reason: String,
    },
    /// Something that this version does not know, kept as it came.
    Unknown {
        /// The agent's name for it.
        name: String,
        /// Its data.
        raw: Value,
    },
}

/// What became of a provisioning step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum StepOutcome {
    /// It began.
    Started,
    /// It is done.
    Done {
        /// How long it took, in milliseconds.
        millis: u64,
    },
    /// It failed.
    Failed {
        /// Why, and what to do.
        fault: Fault,
    },
}

/// State of the agent's server process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "process", rename_all = "snake_case")]
pub enum AgentProcess {
    /// It accepts prompts.
    Ready {
        /// Its version.
        version: String,
    },
    /// It ended by itself.
    Exited {
        /// Exit code; 128 + signal number when a signal killed it.
        code: i32,
        /// Milliseconds until it is started again; absent when it was given up.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        restart_in_millis: Option<u64>,
        /// What ended it.
        #[serde(default, skip_serializing_if = "AgentExit::is_ended")]
        cause: AgentExit,
    },
}

/// What ended the agent's server process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentExit {
    /// It ended by itself, or nothing more is known than its code.
    #[default]
    Ended,
    /// The kernel killed it because the memory was used up.
    OutOfMemory,
    /// It ran and no longer answered, so it was killed.
    Unresponsive,
}

impl AgentExit {
    /// Nothing more is known than the code.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    /// What happened to the agent, in a few words that follow its name; `code` as in [`AgentProcess::Exited`].
    #[must_use]
    pub fn sentence(self, code: i32) -> String {
        match self {
            Self::Ended if code > 128 => format!("was killed by signal {}", code - 128),
            Self::Ended if code < 0 => "could not be started".to_owned(),
            Self::Ended => format!("exited with code {code}"),
            Self::OutOfMemory => "ran out of memory".to_owned(),
            Self::Unresponsive => "no longer answered and was killed".to_owned(),
        }
    }
}

/// What the agent does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "busy", rename_all = "snake_case")]
pub enum Busy {
    /// It works on a turn.
    Working,
    /// A model call failed and will be tried again.
    Retrying {
        /// Which attempt failed, from 1.
        attempt: u32,
        /// What the provider said. Untrusted text.
        message: String,
        /// When the next attempt is made.
        next_at: Timestamp,
    },
    /// It waits for the next prompt.
    Rest,
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "turn", rename_all = "snake_case")]
pub enum TurnOutcome {
    /// The agent came to its end.
    Completed,
    /// The user stopped it.
    Aborted,
    /// An error ended it.
    Failed {
        /// The error's message. Untrusted text.
        message: String,
    },
    /// The agent's process died under it.
    Interrupted,
}

/// Who wrote a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The user.
    User,
    /// The agent.
    Assistant,
}

/// A message without its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The message.
    pub id: MessageId,
    /// Its conversation: the session's own or a subagent's.
    pub conversation: ConversationId,
    /// Who wrote it.
    pub role: Role,
    /// The message it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<MessageId>,
    /// The agent's mode or persona, such as `build` or `plan`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent: String,
    /// `provider/model`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// When it was begun.
    pub created_at: Timestamp,
    /// When it was completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// The error that ended it. Untrusted text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// It stands for older messages that were compacted.
    #[serde(default)]
    pub summary: bool,
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The part.
    pub id: PartId,
    /// Its message.
    pub message: MessageId,
    /// Its conversation.
    pub conversation: ConversationId,
    /// What it holds.
    pub body: PartBody,
}

/// What a part holds. All texts are untrusted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PartBody {
    /// Prose.
    Text {
        /// The text so far; whole once `done`.
        text: String,
        /// Nothing more will be added.
        done: bool,
        /// Inserted by the agent's program, not written by the user or the model.
        #[serde(default)]
        synthetic: bool,
    },
    /// The model's reasoning.
    Reasoning {
        /// The text so far; whole once `done`.
        text: String,
        /// Nothing more will be added.
        done: bool,
    },
    /// A tool call.
    Tool {
        /// The tool's name.
        tool: String,
        /// Where it is.
        state: ToolState,
    },
    /// A file that was attached.
    File {
        /// Media type.
        mime: String,
        /// File name or address; never the content.
        name: String,
    },
    /// Files changed in a step.
    Patch {
        /// Paths in the container.
        files: Vec<String>,
    },
    /// Work that the user hands to a subagent.
    Subtask {
        /// The subagent.
        agent: String,
        /// What it is to do.
        description: String,
    },
    /// A mention of a subagent.
    Mention {
        /// The subagent.
        agent: String,
    },
    /// The conversation was compacted here.
    Compaction {
        /// The agent did it by itself.
        auto: bool,
    },
    /// A model call began.
    StepStart,
    /// A model call ended.
    StepFinish {
        /// The model's reason to stop.
        reason: String,
        /// Its tokens.
        tokens: Tokens,
        /// Its cost in micro-units of currency.
        cost_micros: u64,
    },
    /// A kind of part that this version does not know.
    Unknown {
        /// The agent's name for it.
        name: String,
        /// Its data.
        raw: Value,
    },
}

/// Where a tool call is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum ToolState {
    /// The model writes its arguments.
    Pending,
    /// It runs, or waits for permission.
    Running {
        /// Its arguments.
        input: Value,
        /// A short description.
        #[serde(default)]
        title: String,
        /// What it printed so far (its last part, where it is long).
        #[serde(default)]
        output: String,
    },
    /// It ended; a command that failed is completed, too.
    Completed {
        /// Its arguments.
        input: Value,
        /// A short description.
        title: String,
        /// What it answered.
        output: String,
        /// Exit code, where it ran a command.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// Unified diff, where it changed a file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        diff: Option<String>,
        /// How long it ran, in milliseconds.
        millis: u64,
    },
    /// It failed or was refused.
    Error {
        /// Its arguments.
        input: Value,
        /// Why.
        error: String,
    },
}

/// The letters that were added to a text or reasoning part that is still being written. Never recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartDelta {
    /// The part's message.
    pub message: MessageId,
    /// The part.
    pub part: PartId,
    /// Byte offset in the part's text at which `text` begins; 0 restarts the text.
    pub offset: u64,
    /// The letters.
    pub text: String,
}

/// A thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TodoItem {
    /// What.
    pub content: String,
    /// `pending`, `in_progress`, `completed` or `cancelled`.
    pub status: String,
    /// `high`, `medium` or `low`.
    pub priority: String,
}

/// What changed in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDiff {
    /// Path relative to the workspace.
    pub path: String,
    /// Lines added.
    pub additions: u64,
    /// Lines removed.
    pub deletions: u64,
    /// `added`, `modified` or `deleted`.
    pub status: String,
    /// Unified diff.
    pub patch: String,
}
