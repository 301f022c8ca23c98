//! One container run of a session.
//!
//! ```text
//! provisioning ──registered──► running ──exit──► terminated
//!       │                       │   ▲
//!       │                  frozen   thawed
//!       │                       ▼   │
//!       │                       paused ──exit──► terminated
//!       └───────────failed─────────┴───────────► error
//! ```
//! `terminated` and `error` are final; a session that is resumed gets a new instance.

use serde::{Deserialize, Serialize};

use crate::id::InstanceId;
use crate::time::Timestamp;

/// State of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum InstanceState {
    /// Its ladder of steps is being climbed.
    Provisioning,
    /// Its sidecar has registered.
    Running,
    /// It is frozen: everything is as it was, and nothing runs.
    Paused,
    /// It ended because it was told to.
    Terminated,
    /// It ended by itself or could not be made.
    Error {
        /// What ended it.
        cause: ExitCause,
    },
}

/// What ended an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum ExitCause {
    /// Its main process exited.
    Exited {
        /// Exit code.
        code: i64,
    },
    /// A signal killed its main process.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// How it ended cannot be known: nobody watched it.
    Unwatched,
    /// The kernel killed it because its memory limit was reached.
    OutOfMemory,
    /// Its container was removed by somebody else.
    Removed,
    /// A provisioning step failed.
    NotStarted,
    /// The engine that ran it cannot be reached.
    EngineGone,
    /// The engine was stopped or restarted, and took it down.
    EngineStopped,
    /// Its sidecar runs and does not answer.
    Unresponsive,
}

impl ExitCause {
    /// What the owner of the session can do about it.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Exited { .. } | Self::Killed { .. } | Self::Removed | Self::NotStarted | Self::Unwatched => {
                "resume the session: openagent resume ID"
            }
            Self::OutOfMemory => "resume the session: openagent resume ID; a new session can be given more: openagent new --memory SIZE",
            Self::EngineGone => "start the container engine, then resume the session: openagent resume ID",
            Self::EngineStopped => "once the container engine is back, resume the session: openagent resume ID",
            Self::Unresponsive => {
                "resume the session: openagent resume ID; if this happens again, look for a full disk or too little memory"
            }
        }
    }
}

impl std::fmt::Display for ExitCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "it exited with code {code}"),
            Self::Killed { signal } => write!(f, "it was killed by signal {signal}"),
            Self::Unwatched => f.write_str("it ended while no daemon watched it"),
            Self::OutOfMemory => f.write_str("it ran out of memory and was killed"),
            Self::Removed => f.write_str("its container was removed by somebody else"),
            Self::NotStarted => f.write_str("it could not be started"),
            Self::EngineGone => f.write_str("the container engine cannot be reached"),
            Self::EngineStopped => f.write_str("the container engine was stopped or restarted"),
            Self::Unresponsive => f.write_str("its sidecar no longer answers"),
        }
    }
}

/// One container run of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The instance.
    pub id: InstanceId,
    /// Name of the driver that runs it: `docker` or `local`.
    pub driver: String,
    /// Where it is in its life.
    pub state: InstanceState,
    /// When its ladder began.
    pub created_at: Timestamp,
    /// When it reached `running`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_at: Option<Timestamp>,
    /// When it reached a final state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

impl Instance {
    /// A new instance at the foot of its ladder.
    #[must_use]
    pub const fn provisioning(id: InstanceId, driver: String, created_at: Timestamp) -> Self {
        Self { id, driver, state: InstanceState::Provisioning, created_at, running_at: None, ended_at: None }
    }

    /// Whether it still holds, or may hold, an engine's resources.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self.state, InstanceState::Provisioning | InstanceState::Running | InstanceState::Paused)
    }

    /// It was frozen, or thawed. Ignored unless it runs or is paused.
    pub fn frozen(&mut self, frozen: bool) -> bool {
        let (from, to) =
            if frozen { (InstanceState::Running, InstanceState::Paused) } else { (InstanceState::Paused, InstanceState::Running) };
        let fits = self.state == from;
        if fits {
            self.state = to;
        }
        fits
    }

    /// The sidecar has registered. Ignored once the instance has ended.
    pub fn registered(&mut self, at: Timestamp) -> bool {
        let fits = self.state == InstanceState::Provisioning;
        if fits {
            self.state = InstanceState::Running;
            self.running_at = Some(at);
        }
        fits
    }

    /// The instance has ended, on request (`None`) or by `cause`. The first end is the one that counts.
    pub fn ended(&mut self, cause: Option<ExitCause>, at: Timestamp) -> bool {
        let fits = self.is_live();
        if fits {
            self.state = cause.map_or(InstanceState::Terminated, |cause| InstanceState::Error { cause });
            self.ended_at = Some(at);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ulid::Ulid;

    #[test]
    fn the_first_end_counts_and_nothing_revives_an_ended_instance() {
        let at = Timestamp::from_millis(1);
        let mut instance = Instance::provisioning(InstanceId::from_ulid(Ulid::nil()), "local".into(), at);
        assert!(!instance.frozen(true), "what has not registered is not frozen");
        assert!(instance.registered(at) && !instance.registered(at));
        assert!(instance.frozen(true) && instance.is_live() && !instance.frozen(true) && instance.frozen(false));
        assert!(instance.ended(Some(ExitCause::OutOfMemory), at));
        assert!(!instance.ended(None, at) && !instance.registered(at) && !instance.frozen(false));
        assert_eq!(instance.state, InstanceState::Error { cause: ExitCause::OutOfMemory });
    }
}
