//! What a client sees of sessions: the daemon's answers in the words of the domain. Values that this version does not know are `None`.

use openagent_core::activity::Activity;
use openagent_core::id::{InstanceId, RequestId, SessionId};
use openagent_core::permission::{PermissionMode, PermissionRequest, QuestionRequest};
use openagent_core::session::{Fault, Limits, Status, WorkspaceSource};
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
}

impl SessionView {
    /// The status's name; `unknown` for one that this version does not know.
    #[must_use]
    pub fn status_name(&self) -> &'static str {
        self.status.map_or("unknown", Status::name)
    }
}

/// One container run of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceView {
    /// The instance.
    pub id: InstanceId,
    /// `docker` or `local`.
    pub driver: String,
    /// `provisioning`, `running`, `terminated`, `error` or `unknown`.
    pub state: &'static str,
    /// Why it ended, where it ended by itself.
    pub exit_cause: String,
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
