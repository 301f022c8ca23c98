//! What a client sees of sessions: the daemon's answers in the words of the domain. Values that this version does not know are `None`.

use openagent_core::activity::Activity;
use openagent_core::id::{InstanceId, RequestId, SessionId};
use openagent_core::instance::ExitCause;
use openagent_core::permission::{PermissionMode, PermissionRequest, QuestionRequest};
use openagent_core::session::{Fault, IdleAction, Limits, Status, WorkspaceSource};
use openagent_core::time::Timestamp;
use openagent_core::usage::Usage;

/// A session as a client sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionView {
    /// The session.
    pub id: SessionId,
    /// Its title. Untrusted text where the agent gave it.
    pub title: String,
    /// Its status.
    pub status: Option<Status>,
    /// Why, where the status is an error.
    pub fault: Option<Fault>,
    /// What the agent does.
    pub activity: Activity,
    /// `docker` or `local`.
    pub driver: String,
    /// The instance that it has, or had last.
    pub instance: Option<InstanceView>,
    /// What its workspace started from.
    pub workspace: WorkspaceSource,
    /// `provider/model`.
    pub model: String,
    /// The agent's mode or persona.
    pub agent: String,
    /// What it may do unasked.
    pub permission_mode: Option<PermissionMode>,
    /// What it may use.
    pub limits: Limits,
    /// Rest after which it becomes idle, in milliseconds; 0: never.
    pub idle_timeout_millis: u64,
    /// What it has spent.
    pub usage: Usage,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its last event was recorded.
    pub updated_at: Timestamp,
    /// Seq of its last event.
    pub last_seq: u64,
    /// What may be reached from inside.
    pub network: String,
    /// The provisioning step that runs; empty when none does.
    pub step: String,
    /// What becomes of its instance when it is idle.
    pub idle_action: Option<IdleAction>,
    /// Its place among those that wait for room to run, from 1; 0: it does not wait.
    pub queue_position: u32,
    /// Since when its instance does not answer; what is known of the agent is as old.
    pub unreachable_since: Option<Timestamp>,
    /// Who follows it, oldest first.
    pub attached: Vec<AttachedView>,
}

impl SessionView {
    /// The status's name; `unknown` for one that this version does not know.
    #[must_use]
    pub fn status_name(&self) -> &'static str {
        self.status.map_or("unknown", Status::name)
    }

    /// What it rests on, where it is idle: its frozen instance, or none at all.
    #[must_use]
    pub fn rest(&self) -> Option<Rest> {
        if self.status != Some(Status::Idle) {
            return None;
        }
        match self.instance.as_ref().map(|instance| instance.state) {
            Some("paused") => Some(Rest::Paused),
            None | Some("terminated" | "error") => Some(Rest::NoInstance),
            Some(_) => None,
        }
    }
}

/// What an idle session rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Its instance is frozen.
    Paused,
    /// It has no instance.
    NoInstance,
}

impl Rest {
    /// Its name in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::NoInstance => "no instance",
        }
    }
}

/// Somebody who follows a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedView {
    /// The name that the client gave. Untrusted text.
    pub client: String,
    /// What it follows.
    pub to: AttachedTo,
    /// Since when.
    pub since: Timestamp,
}

/// What a client follows of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachedTo {
    /// Its conversation.
    Events,
    /// One of its terminals.
    Terminal,
    /// Something that this version does not know.
    Unknown,
}

impl AttachedTo {
    /// Its name in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Terminal => "terminal",
            Self::Unknown => "unknown",
        }
    }
}

/// One container run of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceView {
    /// The instance.
    pub id: InstanceId,
    /// `docker` or `local`.
    pub driver: String,
    /// `provisioning`, `running`, `paused`, `terminated`, `error` or `unknown`.
    pub state: &'static str,
    /// Why it ended, where it ended by itself.
    pub exit_cause: String,
    /// The same in the words of the domain; `None` where it did not end by itself, or for a reason that this version does not know.
    pub exit: Option<ExitCause>,
    /// When its ladder began.
    pub created_at: Timestamp,
    /// When it reached `running`.
    pub running_at: Option<Timestamp>,
    /// When it reached a final state.
    pub ended_at: Option<Timestamp>,
}

/// A change in the set of sessions.
#[derive(Debug, Clone, PartialEq)]
pub enum SessionChange {
    /// A session as it is from now on.
    Changed(Box<SessionView>),
    /// A session was removed.
    Removed(SessionId),
    /// Everything that was there at the beginning has been sent.
    CaughtUp,
}

/// Something that waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// The session that asks.
    pub session: SessionId,
    /// Its title. Untrusted text where the agent gave it.
    pub session_title: String,
    /// What it asks.
    pub request: PendingRequest,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PendingRequest {
    /// To be allowed something.
    Permission(PermissionRequest),
    /// To be told something.
    Question(QuestionRequest),
}

impl PendingRequest {
    /// The request's id.
    #[must_use]
    pub const fn id(&self) -> &RequestId {
        match self {
            Self::Permission(request) => &request.id,
            Self::Question(request) => &request.id,
        }
    }
}
