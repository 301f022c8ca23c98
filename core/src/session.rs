//! A session: its record and its words. The lifecycle is in [`lifecycle`].

pub mod lifecycle;

use serde::{Deserialize, Serialize};

use crate::id::SessionId;
use crate::permission::{PermissionMode, PermissionRule};
use crate::time::Timestamp;

/// Longest title, in characters.
pub const TITLE_MAX_CHARS: usize = 200;

/// Longest prompt, in bytes.
pub const PROMPT_MAX_BYTES: usize = 1024 * 1024;

/// Status of a session, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// An instance is being made and has not registered yet.
    Creating,
    /// An instance is registered.
    Active,
    /// Nothing was asked of it for the idle timeout; the next prompt makes it active.
    Idle,
    /// No instance; history, workspace and settings are kept.
    Stopped,
    /// As stopped, because something failed; the fault says what.
    Error,
}

impl Status {
    /// The name used in output and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Active => "active",
            Self::Idle => "idle",
            Self::Stopped => "stopped",
            Self::Error => "error",
        }
    }
}

/// Why something failed, and what the user can do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// Stable machine-readable reason, such as `IMAGE_MISSING`.
    pub code: String,
    /// One clear sentence without final period.
    pub message: String,
    /// What to do about it; empty when nothing is known to help.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl Fault {
    /// A fault with what to do about it.
    pub fn new(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), hint: hint.into() }
    }
}

/// A step on the way from nothing to an agent that accepts prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// There is room for another running session.
    Admission,
    /// The image, or the agent's program, is present.
    Image,
    /// The volumes exist.
    Volume,
    /// The container exists.
    Create,
    /// The workspace holds what the session starts from.
    Workspace,
    /// The container runs.
    Start,
    /// The sidecar has registered.
    Register,
    /// The sidecar has the provider keys it needs.
    Keys,
    /// The agent accepts prompts.
    Agent,
}

impl Step {
    /// The ladder, from the ground up.
    pub const LADDER: [Self; 9] =
        [Self::Admission, Self::Image, Self::Volume, Self::Create, Self::Workspace, Self::Start, Self::Register, Self::Keys, Self::Agent];

    /// The step above, if any.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        Self::LADDER.into_iter().find(|step| *step > self)
    }

    /// The name used in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Create => "create",
            Self::Workspace => "workspace",
            Self::Start => "start",
            Self::Register => "register",
            Self::Keys => "keys",
            Self::Agent => "agent",
        }
    }
}

/// What a session's workspace starts from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum WorkspaceSource {
    /// An empty git repository.
    #[default]
    Empty,
    /// A copy of a folder of the user's, without what its ignore files exclude.
    Copy {
        /// Absolute path on the daemon's machine.
        path: String,
    },
}

/// What a container may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkPolicy {
    /// Model calls only.
    #[default]
    None,
}

/// What a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, in bytes; below 512 MiB OpenCode is killed on its first commands.
    pub memory_bytes: u64,
    /// Processor time, in thousandths of a core.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub pids: u32,
}

impl Limits {
    /// Smallest memory limit with which the agent works, in bytes.
    pub const MEMORY_MIN_BYTES: u64 = 512 * 1024 * 1024;
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: 2 * 1024 * 1024 * 1024, cpu_millis: 2_000, pids: 512 }
    }
}

/// What becomes of the instance of a session that is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdleAction {
    /// It is frozen: it takes no processor time, and the next prompt finds it as it was, at once.
    #[default]
    Pause,
    /// It is ended: it takes nothing but disk, and the next prompt starts a new one.
    Stop,
}

impl IdleAction {
    /// Every action.
    pub const ALL: [Self; 2] = [Self::Pause, Self::Stop];

    /// The name used in configuration and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Stop => "stop",
        }
    }
}

/// A session's settings: what it was made with, and what only its owner changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The session.
    pub id: SessionId,
    /// Its title.
    pub title: String,
    /// The title was given by the user; the agent does not replace it.
    pub title_is_users: bool,
    /// Name of the driver that runs its instances.
    pub driver: String,
    /// What its workspace starts from.
    pub workspace: WorkspaceSource,
    /// `provider/model` of the next prompt.
    pub model: String,
    /// The agent's mode or persona for the next prompt.
    pub agent: String,
    /// What it may reach.
    pub network: NetworkPolicy,
    /// What it may use.
    pub limits: Limits,
    /// What it may do unasked.
    pub permission_mode: PermissionMode,
    /// Answers that hold for its life.
    pub permission_rules: Vec<PermissionRule>,
    /// Rest after which it becomes idle, in milliseconds; 0: never.
    pub idle_timeout_millis: u64,
    /// What becomes of its instance then.
    #[serde(default)]
    pub idle_action: IdleAction,
    /// When it was made.
    pub created_at: Timestamp,
}
