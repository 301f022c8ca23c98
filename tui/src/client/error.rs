//! What can go wrong between a client and the daemon, with what to do about it and the exit code that tells a script.

use openagent_core::session::Fault;
use thiserror::Error;
use tonic::Code;
use tonic_types::StatusExt;

/// Exit codes of `openagent`; part of its interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// It worked.
    Ok = 0,
    /// It failed.
    Error = 1,
    /// It was asked for in a way that makes no sense.
    Usage = 2,
    /// What it is about does not exist.
    NotFound = 3,
    /// A key is missing or was refused.
    Auth = 4,
    /// The agent waits for an answer, or was denied something.
    Blocked = 5,
}

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Nothing answers, or the connection broke. Worth trying again.
    Unreachable,
    /// It does not exist.
    NotFound,
    /// The request makes no sense.
    Invalid,
    /// A key is missing or was refused, or the daemon belongs to somebody else.
    Auth,
    /// The agent waits for an answer.
    Blocked,
    /// Somebody else was faster.
    Conflict,
    /// It does not fit the state that the session is in.
    State,
    /// It took too long.
    Deadline,
    /// A limit is reached.
    Limit,
    /// Anything else.
    Failed,
}

impl Kind {
    /// The exit code that stands for it.
    #[must_use]
    pub const fn exit_code(self) -> ExitCode {
        match self {
            Self::NotFound => ExitCode::NotFound,
            Self::Invalid => ExitCode::Usage,
            Self::Auth => ExitCode::Auth,
            Self::Blocked => ExitCode::Blocked,
            Self::Unreachable | Self::Conflict | Self::State | Self::Deadline | Self::Limit | Self::Failed => ExitCode::Error,
        }
    }
}

/// A failed call, or a failed command.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ClientError {
    /// What kind of failure it is.
    pub kind: Kind,
    /// Stable reason, such as `IMAGE_MISSING`; empty where the daemon gave none.
    pub reason: String,
    /// One sentence. May hold untrusted text.
    pub message: String,
    /// What to do about it; empty when nothing is known to help.
    pub hint: String,
}

/// Reasons that mean that what the request names does not exist, whatever code they came with.
const UNKNOWN_REASONS: [&str; 2] = ["MODEL_UNKNOWN", "PROVIDER_UNKNOWN"];

/// Reasons that mean a missing or refused key, whatever code they came with.
const KEY_REASONS: [&str; 2] = ["KEY_MISSING", "KEY_UNREADABLE"];

/// Reason with which a daemon that ends refuses; the next one will not.
const STOPPING_REASON: &str = "DAEMON_STOPPING";

impl ClientError {
    /// A failure without a stable reason.
    #[must_use]
    pub fn new(kind: Kind, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind, reason: String::new(), message: message.into(), hint: hint.into() }
    }

    /// The daemon's answer cannot be what it should be.
    #[must_use]
    pub fn malformed(what: &str) -> Self {
        Self::new(
            Kind::Failed,
            format!("the daemon's answer cannot be read: {what}"),
            "run the same version of openagent and openagentd: openagent daemon restart",
        )
    }

    /// The exit code that stands for it.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        self.kind.exit_code()
    }

    /// Whether connecting again may help.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        self.kind == Kind::Unreachable
    }
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        let info = status.get_details_error_info();
        let (reason, mut hint) = info.map_or_else(Default::default, |mut info| {
            let hint = info.metadata.remove("hint").unwrap_or_default();
            (info.reason, hint)
        });
        // Without details of ours a transport failed: what tonic says about that names layers, not what happened.
        let broken = reason.is_empty() && (status.code() == Code::Unavailable || std::error::Error::source(&status).is_some());
        if broken {
            return Self::new(Kind::Unreachable, "the connection to the daemon was lost", "see how it is doing: openagent daemon status");
        }
        let kind = match status.code() {
            _ if KEY_REASONS.contains(&reason.as_str()) => Kind::Auth,
            _ if reason == STOPPING_REASON => Kind::Unreachable,
            _ if UNKNOWN_REASONS.contains(&reason.as_str()) => Kind::NotFound,
            Code::NotFound => Kind::NotFound,
            Code::InvalidArgument | Code::OutOfRange => Kind::Invalid,
            Code::Unauthenticated | Code::PermissionDenied => Kind::Auth,
            Code::Aborted | Code::AlreadyExists => Kind::Conflict,
            Code::FailedPrecondition => Kind::State,
            Code::DeadlineExceeded | Code::Cancelled => Kind::Deadline,
            Code::ResourceExhausted => Kind::Limit,
            // The daemon answered, so it is the agent or the engine that is not there.
            Code::Unavailable | Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => Kind::Failed,
            Code::Unimplemented => Kind::Failed,
        };
        if status.code() == Code::Unimplemented && hint.is_empty() {
            "the daemon is older than this client; start the new one: openagent daemon restart".clone_into(&mut hint);
        }
        let message =
            if status.message().is_empty() { format!("the daemon refused: {}", status.code()) } else { status.message().to_owned() };
        Self { kind, reason, message, hint }
    }
}

impl From<Fault> for ClientError {
    fn from(fault: Fault) -> Self {
        let kind = if KEY_REASONS.contains(&fault.code.as_str()) { Kind::Auth } else { Kind::Failed };
        Self { kind, reason: fault.code, message: fault.message, hint: fault.hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    fn status(code: Code, reason: &str) -> tonic::Status {
        let metadata = std::collections::HashMap::from([("hint".to_owned(), "do this".to_owned())]);
        tonic::Status::with_error_details(code, "it failed", ErrorDetails::with_error_info(reason, "openagent", metadata))
    }

    #[test]
    fn each_code_has_its_exit_code() {
        let table = [
            (Code::NotFound, "SESSION_UNKNOWN", 3),
            (Code::InvalidArgument, "INVALID", 2),
            (Code::InvalidArgument, "PROVIDER_UNKNOWN", 3),
            (Code::OutOfRange, "CURSOR", 2),
            (Code::FailedPrecondition, "STOPPED", 1),
            (Code::FailedPrecondition, "KEY_MISSING", 4),
            (Code::PermissionDenied, "PEER", 4),
            (Code::Aborted, "ANSWERED", 1),
            (Code::ResourceExhausted, "LIMIT", 1),
            (Code::Unavailable, "AGENT_RESTARTS", 1),
            (Code::Internal, "BUG", 1),
            (Code::ResourceExhausted, "STORE_FULL", 1),
            (Code::DataLoss, "STORE_CORRUPT", 1),
            (Code::FailedPrecondition, "OVER_BUDGET", 1),
            (Code::FailedPrecondition, "SESSION_SETTLING", 1),
            (Code::DataLoss, "KEY_UNREADABLE", 4),
        ];
        for (code, reason, exit) in table {
            assert_eq!(ClientError::from(status(code, reason)).exit_code() as u8, exit, "{code:?} {reason}");
        }
        assert_eq!(Kind::Blocked.exit_code() as u8, 5);
        assert_eq!(ExitCode::Ok as u8, 0);
    }

    #[test]
    fn the_daemons_hint_and_reason_arrive() {
        let error = ClientError::from(status(Code::NotFound, "SESSION_UNKNOWN"));
        assert_eq!((error.message.as_str(), error.reason.as_str(), error.hint.as_str()), ("it failed", "SESSION_UNKNOWN", "do this"));
    }

    #[test]
    fn a_broken_connection_is_told_apart_from_an_agent_that_is_not_there() {
        assert!(ClientError::from(tonic::Status::unavailable("tcp connect error")).is_disconnected());
        assert!(!ClientError::from(status(Code::Unavailable, "AGENT_RESTARTS")).is_disconnected());
        assert!(ClientError::from(status(Code::Unavailable, "DAEMON_STOPPING")).is_disconnected());
    }
}
