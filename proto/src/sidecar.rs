//! The HTTP protocol between daemon and sidecar: paths, JSON bodies, error codes, and the preambles of the streams that carry it.
//!
//! A stream that the driver dialled begins with one line, `openagent/1 control` or `openagent/1 relay`, sent by the daemon, or by the `exec` bridge in its place. On a control stream the
//! daemon then speaks HTTP/2 as client: paths below. On a relay stream the roles are reversed: the sidecar speaks HTTP/2 as client and the daemon
//! serves [`relay`]. The `exec` bridge prints [`BRIDGE_MAGIC`] before the first byte of the sidecar, because a container engine reports a failed exec as output.
//!
//! Names in JSON are camelCase. Bodies over [`BODY_MAX_BYTES`] are answered with 413. All paths but health, ready and register want the bearer token.

use serde::{Deserialize, Serialize};

/// Version of this protocol. The sidecar answers it at registration; the daemon refuses another one.
pub const PROTOCOL: u32 = 1;

/// First line on a control stream, without its newline.
pub const PREAMBLE_CONTROL: &str = "openagent/1 control";

/// First line on a relay stream, without its newline.
pub const PREAMBLE_RELAY: &str = "openagent/1 relay";

/// First line that the `exec` bridge prints, without its newline.
pub const BRIDGE_MAGIC: &str = "openagent-bridge/1";

/// Silence after which the bridge ends itself, in milliseconds. Both ends ping every third of it, since closing an exec does not end its process.
pub const BRIDGE_SILENCE_MAX_MILLIS: u64 = 45_000;

/// Largest request body, in bytes: a prompt of 1 MiB in JSON, escaped at worst.
pub const BODY_MAX_BYTES: usize = 8 * 1024 * 1024;

/// Name of the sidecar's socket in the link folder.
pub const SOCKET_NAME: &str = "sidecar.sock";

/// Environment of the sidecar. None of it is secret.
pub mod env {
    /// The session's id.
    pub const SESSION_ID: &str = "OPENAGENT_SESSION_ID";
    /// SHA-256 of the one-time registration token, in hexadecimal.
    pub const TOKEN_SHA256: &str = "OPENAGENT_TOKEN_SHA256";
    /// Folder of the sidecar's socket.
    pub const LINK_DIR: &str = "OPENAGENT_LINK_DIR";
    /// The workspace.
    pub const WORKSPACE_DIR: &str = "OPENAGENT_WORKSPACE_DIR";
    /// Folder of the journal; the agent cannot read it where users are separated.
    pub const STATE_DIR: &str = "OPENAGENT_STATE_DIR";
    /// The agent's home.
    pub const AGENT_HOME: &str = "OPENAGENT_AGENT_HOME";
    /// User and group id of the agent, equal; absent: the sidecar's own (local driver).
    pub const AGENT_UID: &str = "OPENAGENT_AGENT_UID";
    /// Path of the OpenCode program.
    pub const OPENCODE: &str = "OPENAGENT_OPENCODE";
    /// Largest size of the journal, in bytes: from 8 MiB to 1 TiB. Absent: 64 MiB.
    pub const JOURNAL_MAX_BYTES: &str = "OPENAGENT_JOURNAL_MAX_BYTES";
    /// Set: the sidecar begins only once a byte is on its standard input, and ends where that ends without one. Whoever starts it has then recorded who it is: a
    /// starter that dies before leaves nobody whom nobody knows.
    pub const START_GATE: &str = "OPENAGENT_START_GATE";
}

/// Paths of the control API.
pub mod path {
    /// `GET`, open: [`super::Health`].
    pub const HEALTH: &str = "/internal/health";
    /// `GET`, open: [`super::Ready`], or 503 `NOT_READY`.
    pub const READY: &str = "/internal/ready";
    /// `POST` [`super::Register`], open, once: [`super::Registered`].
    pub const REGISTER: &str = "/internal/register";
    /// `PUT` [`super::UpdateKeys`]: [`super::KeysUpdated`].
    pub const UPDATE_KEYS: &str = "/internal/update-keys";
    /// `POST` [`super::Shutdown`]: 202 [`super::ShuttingDown`].
    pub const SHUTDOWN: &str = "/internal/shutdown";
    /// `GET ?after=N`: server-sent events. `id` and JSON of a recorded event (`at` and the event's kind); `event: delta`; `event: gap` ([`super::Gap`]).
    /// An `N` ahead of the journal (whose volume was lost) moves the journal's numbers on: what is recorded from then on comes after `N`.
    pub const EVENTS: &str = "/events";
    /// `POST` [`super::Ack`]: 204. The journal up to there is no longer needed.
    pub const ACK: &str = "/control/ack";
    /// `POST` [`super::StartAgent`]: 200 [`super::AgentStarted`] once the agent accepts prompts. Idempotent.
    pub const START: &str = "/control/start";
    /// `POST` [`super::Prompt`]: 202 [`super::Prompted`] once the agent has accepted it.
    pub const PROMPT: &str = "/control/prompt";
    /// `POST`: 204.
    pub const ABORT: &str = "/control/abort";
    /// `POST` [`super::PermissionReply`]: 204, or 404 when no such request waits.
    pub const PERMISSION: &str = "/control/permission";
    /// `POST` [`super::QuestionReply`]: 204, or 404 when no such request waits.
    pub const QUESTION: &str = "/control/question";
    /// `POST` [`super::Title`]: 204.
    pub const TITLE: &str = "/control/title";
    /// `GET`: list of [`super::TerminalInfo`]; `POST` [`super::OpenTerminal`]: 201 [`super::TerminalInfo`]; `DELETE /control/terminals/{id}`: 204.
    pub const TERMINALS: &str = "/control/terminals";
    /// WebSocket (RFC 8441), query [`super::AttachTerminal`]. See [`super::terminal`].
    pub const TERMINAL: &str = "/terminal";
}

/// What the daemon serves on the relay.
pub mod relay {
    /// `POST /model/{provider}/{path}`: the provider's answer, streamed. The daemon adds the key.
    pub const MODEL: &str = "/model";
}

/// Frames of the terminal WebSocket.
///
/// Daemon to sidecar: binary = bytes typed; text = JSON [`terminal::Command`]. Sidecar to daemon: binary = [`terminal::OUTPUT`] or [`terminal::SCREEN`], 8 bytes end
/// offset (big-endian), data; text = JSON [`terminal::Notice`]. The sidecar closes after `exited`.
pub mod terminal {
    use serde::{Deserialize, Serialize};

    /// First byte of a binary frame that continues the output.
    pub const OUTPUT: u8 = 0;
    /// First byte of a binary frame that draws the whole screen, after a gap.
    pub const SCREEN: u8 = 1;
    /// Largest data of one frame, in bytes.
    pub const FRAME_MAX_BYTES: usize = 64 * 1024;
    /// Most terminals of a session.
    pub const TERMINALS_MAX: usize = 16;

    /// What an attached client wants.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(tag = "command", rename_all = "camelCase")]
    pub enum Command {
        /// Its view has this size; used if it is the writer.
        Resize {
            /// 2 to 1000.
            columns: u16,
            /// 2 to 1000.
            rows: u16,
        },
        /// Become the writer.
        TakeOver,
    }

    /// What an attached client is told.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(tag = "notice", rename_all = "camelCase")]
    pub enum Notice {
        /// It became, or is no longer, the writer.
        Writer {
            /// Whether it is.
            writing: bool,
        },
        /// The size that the shell sees.
        Size {
            /// Columns.
            columns: u16,
            /// Rows.
            rows: u16,
        },
        /// The shell has ended; the last frame.
        Exited {
            /// 128 + signal number when a signal killed it.
            code: i32,
        },
    }
}

/// An error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Always false.
    pub success: bool,
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// Stable code; see [`ErrorCode`].
    pub code: String,
    /// One sentence.
    pub message: String,
}

/// Stable error codes and their HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// 400.
    InvalidRequest,
    /// 400.
    InvalidPublicKey,
    /// 401.
    Unauthorized,
    /// 403: the session is another one.
    Forbidden,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 409.
    Conflict,
    /// 413.
    PayloadTooLarge,
    /// 429: a bound was reached, such as the number of terminals.
    ResourceExhausted,
    /// 500.
    Internal,
    /// 502: the agent's server answered with an error or not at all.
    AgentFailed,
    /// 503.
    NotReady,
    /// 503: the agent's program is missing or not the right one.
    AgentUnavailable,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 13] = [
        Self::InvalidRequest,
        Self::InvalidPublicKey,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::PayloadTooLarge,
        Self::ResourceExhausted,
        Self::Internal,
        Self::AgentFailed,
        Self::NotReady,
        Self::AgentUnavailable,
    ];

    /// Code on the wire and HTTP status.
    #[must_use]
    pub const fn wire(self) -> (&'static str, u16) {
        match self {
            Self::InvalidRequest => ("INVALID_REQUEST", 400),
            Self::InvalidPublicKey => ("INVALID_PUBLIC_KEY", 400),
            Self::Unauthorized => ("UNAUTHORIZED", 401),
            Self::Forbidden => ("FORBIDDEN", 403),
            Self::NotFound => ("NOT_FOUND", 404),
            Self::MethodNotAllowed => ("METHOD_NOT_ALLOWED", 405),
            Self::Conflict => ("CONFLICT", 409),
            Self::PayloadTooLarge => ("PAYLOAD_TOO_LARGE", 413),
            Self::ResourceExhausted => ("RESOURCE_EXHAUSTED", 429),
            Self::Internal => ("INTERNAL", 500),
            Self::AgentFailed => ("AGENT_FAILED", 502),
            Self::NotReady => ("NOT_READY", 503),
            Self::AgentUnavailable => ("AGENT_UNAVAILABLE", 503),
        }
    }
}

/// Answer of `GET /internal/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Always `ok`.
    pub status: String,
    /// RFC 3339.
    pub timestamp: String,
    /// Since the sidecar started.
    pub uptime_ms: u64,
    /// Of the sidecar.
    pub version: String,
    /// [`PROTOCOL`] of the sidecar; 0 from one that does not say.
    #[serde(default)]
    pub protocol: u32,
    /// The agent's server process.
    pub agent: AgentHealth,
}

/// The agent's server process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentHealth {
    /// It runs.
    pub running: bool,
    /// How often it was started again after it had ended by itself.
    pub restarts: u32,
}

/// Answer of `GET /internal/ready` when the agent accepts prompts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    /// Always `ok`.
    pub status: String,
    /// Always true.
    pub ready: bool,
    /// RFC 3339.
    pub timestamp: String,
    /// The session's id.
    pub session_id: String,
}

/// Body of `POST /internal/register`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Register {
    /// The session's id.
    pub session_id: String,
    /// The one-time token.
    pub registration_token: String,
    /// The daemon's ephemeral X25519 public key: 32 bytes, base 64.
    pub public_key: String,
    /// Its key id.
    pub key_id: String,
}

/// Answer of `POST /internal/register`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    /// Always true.
    pub success: bool,
    /// The sidecar's ephemeral X25519 public key: 32 bytes, base 64.
    pub sidecar_public_key: String,
    /// Its key id.
    pub sidecar_key_id: String,
    /// The bearer token, sealed under the `AuthToken` key (item `bearer`, version 1): base 64.
    pub sidecar_auth_token: String,
    /// [`PROTOCOL`].
    pub protocol: u32,
}

/// Body of `PUT /internal/update-keys`: the whole set; an empty one revokes all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateKeys {
    /// Key id of the sidecar for whom they are sealed.
    pub recipient_key_id: String,
    /// Version of the set; higher than every earlier one, else 409.
    pub version: u64,
    /// One entry a provider.
    pub keys: Vec<SealedProviderKey>,
}

/// A sealed provider key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SealedProviderKey {
    /// Provider id.
    pub provider: String,
    /// Sealed under the `ProviderKeys` key (item: the provider's id, version: the set's): base 64.
    pub sealed: String,
}

/// Answer of `PUT /internal/update-keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeysUpdated {
    /// Always true.
    pub updated: bool,
    /// Providers that have a key now.
    pub providers: Vec<String>,
}

/// Body of `POST /internal/shutdown`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shutdown {
    /// Time for the agent to end by itself, in milliseconds: finite, 0 to 300 000. Absent: 10 000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period_ms: Option<f64>,
}

/// Answer of `POST /internal/shutdown`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShuttingDown {
    /// Always true.
    pub shutting_down: bool,
}

/// Data of `event: gap`: these journal entries are no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gap {
    /// First missing entry.
    pub first: u64,
    /// Last missing entry.
    pub last: u64,
}

/// Body of `POST /control/ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ack {
    /// Journal entries up to this one are durable at the daemon.
    pub seq: u64,
}

/// Body of `POST /control/start`: everything that the agent is to know. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartAgent {
    /// Title that the user gave; absent: the agent gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// `provider/model`.
    pub model: String,
    /// The agent's mode or persona.
    pub agent: String,
    /// `ask`, `auto-edit` or `read-only`.
    pub permission_mode: String,
    /// Remembered answers.
    pub allow: Vec<AllowRule>,
    /// Providers that the agent may use.
    pub providers: Vec<AgentProvider>,
    /// No session is at work yet: the agent comes up and gets its slow first prompt behind it, without a word in the journal. A later start without
    /// this takes it over, with the workspace as it is then; fast, unless what the agent is configured with has changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warm: bool,
}

/// Acts of `permission` that match `pattern` are allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowRule {
    /// The kind of act.
    pub permission: String,
    /// `*` and `?` as in file names.
    pub pattern: String,
}

/// A provider as the sidecar needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentProvider {
    /// Provider id.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// `openai-compatible`, `openai`, `anthropic` or `demo`.
    pub kind: String,
    /// `host` or `direct`.
    pub route: String,
    /// Where it is; used on the direct route only.
    pub base_url: String,
    /// It wants a key.
    pub needs_key: bool,
    /// Its models.
    pub models: Vec<AgentModel>,
}

/// A model as the agent needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentModel {
    /// The provider's name for it.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Tokens that it can take into account.
    pub context: u64,
    /// Tokens that it can answer.
    pub output: u64,
    /// It can reason.
    pub reasoning: bool,
    /// Prices in micro-units of currency for a million tokens.
    pub price: AgentPrice,
}

/// Prices in micro-units of currency for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentPrice {
    /// Of tokens sent.
    pub input: u64,
    /// Of tokens answered.
    pub output: u64,
    /// Of tokens read from the cache.
    pub cache_read: u64,
    /// Of tokens written to the cache.
    pub cache_write: u64,
}

/// Answer of `POST /control/start`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStarted {
    /// The agent's version.
    pub version: String,
}

/// Body of `POST /control/prompt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prompt {
    /// What the user wrote.
    pub text: String,
    /// `provider/model`.
    pub model: String,
    /// The agent's mode or persona.
    pub agent: String,
}

/// Answer of `POST /control/prompt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Prompted {
    /// The user's message.
    pub message_id: String,
}

/// Body of `POST /control/permission`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PermissionReply {
    /// The request.
    pub id: String,
    /// `once`, `session`, `always` or `reject`.
    pub response: String,
    /// For the agent, with a rejection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who answers; comes back in the event.
    pub by: String,
}

/// Body of `POST /control/question`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuestionReply {
    /// The request.
    pub id: String,
    /// One list for each question; absent: dismissed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Vec<Vec<String>>>,
    /// Who answers; comes back in the event.
    pub by: String,
}

/// Body of `POST /control/title`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Title {
    /// The new title.
    pub title: String,
}

/// Body of `POST /control/terminals`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OpenTerminal {
    /// The daemon's id for it.
    pub id: String,
    /// 2 to 1000.
    pub columns: u16,
    /// 2 to 1000.
    pub rows: u16,
    /// For `bash -c`; absent: a login shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// A terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TerminalInfo {
    /// The daemon's id for it.
    pub id: String,
    /// Columns that the shell sees.
    pub columns: u16,
    /// Rows that the shell sees.
    pub rows: u16,
    /// Milliseconds since the epoch.
    pub created_at: i64,
    /// Set once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Clients that are attached.
    pub attached: u32,
}

/// Query of the terminal WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachTerminal {
    /// The terminal.
    pub id: String,
    /// Output up to here is known.
    #[serde(default)]
    pub offset: u64,
    /// Never the writer.
    #[serde(default)]
    pub read_only: bool,
    /// The client's view.
    pub columns: u16,
    /// The client's view.
    pub rows: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_are_distinct() {
        let codes: std::collections::BTreeSet<_> = ErrorCode::ALL.iter().map(|code| code.wire().0).collect();
        assert_eq!(codes.len(), ErrorCode::ALL.len());
    }
}
