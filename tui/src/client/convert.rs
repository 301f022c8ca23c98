//! The door between the wire and the domain, on the client's side.
//!
//! Total: whatever arrives is either converted or refused as [`Unreadable`], and a recorded event is never refused, because the history has
//! no holes: it becomes [`EventKind::Unknown`](openagent_core::event::EventKind::Unknown) at its place.

mod event;

use openagent_core::activity::Activity;
use openagent_core::event::PartDelta;
use openagent_core::id::InvalidId;
use openagent_core::permission::{PermissionMode, PermissionRequest, PermissionResponse, Question, QuestionOption, QuestionRequest};
use openagent_core::session::{Fault, IdleAction, Limits, Status, WorkspaceSource};
use openagent_core::time::Timestamp;
use openagent_core::usage::{Tokens, Usage};
use openagent_proto::v1;
use thiserror::Error;

pub use event::event;

use super::NewSession;
use super::view::{AttachedTo, AttachedView, InstanceView, Pending, PendingRequest, SessionChange, SessionView};

/// Why something that arrived cannot be said in the words of the domain.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// An id is none.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// A required part is absent, or of a kind that this version does not know.
    #[error("{0} is absent or unknown")]
    Unknown(&'static str),
}

/// A point in time; the epoch where it is absent.
pub(super) fn time(at: Option<prost_types::Timestamp>) -> Timestamp {
    optional_time(at).unwrap_or_default()
}

pub(super) fn optional_time(at: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    at.map(|at| Timestamp::from_millis(at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos) / 1_000_000)))
}

/// A point in time, as the commands that print wire messages need it.
#[must_use]
pub fn timestamp(at: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    optional_time(at)
}

pub(super) fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Tokens and cost; zero where they are absent.
#[must_use]
pub fn usage(usage: Option<v1::Usage>) -> Usage {
    let usage = usage.unwrap_or_default();
    let tokens = usage.tokens.unwrap_or_default();
    Usage {
        tokens: Tokens {
            input: tokens.input,
            output: tokens.output,
            reasoning: tokens.reasoning,
            cache_read: tokens.cache_read,
            cache_write: tokens.cache_write,
        },
        cost_micros: usage.cost_micros,
    }
}

/// A fault.
#[must_use]
pub fn fault(fault: v1::Fault) -> Fault {
    Fault { code: fault.code, message: fault.message, hint: fault.hint }
}

pub(super) fn status(status: v1::SessionStatus) -> Option<Status> {
    match status {
        v1::SessionStatus::Unspecified => None,
        v1::SessionStatus::Creating => Some(Status::Creating),
        v1::SessionStatus::Active => Some(Status::Active),
        v1::SessionStatus::Idle => Some(Status::Idle),
        v1::SessionStatus::Stopped => Some(Status::Stopped),
        v1::SessionStatus::Error => Some(Status::Error),
    }
}

fn activity(activity: Option<v1::Activity>) -> Activity {
    use v1::activity::Kind;
    match activity.and_then(|activity| activity.kind) {
        Some(Kind::Working(_)) => Activity::Working,
        Some(Kind::Blocked(blocked)) => Activity::Blocked { permissions: count(blocked.permissions), questions: count(blocked.questions) },
        Some(Kind::Retrying(retrying)) => Activity::Retrying { attempt: retrying.attempt, next_at: time(retrying.next_at) },
        Some(Kind::Done(_)) => Activity::Done,
        Some(Kind::Failed(_)) => Activity::Failed,
        Some(Kind::Quiet(_)) | None => Activity::Quiet,
    }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn permission_mode(mode: v1::PermissionMode) -> Option<PermissionMode> {
    match mode {
        v1::PermissionMode::Unspecified => None,
        v1::PermissionMode::Ask => Some(PermissionMode::Ask),
        v1::PermissionMode::AutoEdit => Some(PermissionMode::AutoEdit),
        v1::PermissionMode::ReadOnly => Some(PermissionMode::ReadOnly),
    }
}

fn instance_state(state: v1::InstanceState) -> &'static str {
    match state {
        v1::InstanceState::Unspecified => "unknown",
        v1::InstanceState::Provisioning => "provisioning",
        v1::InstanceState::Running => "running",
        v1::InstanceState::Paused => "paused",
        v1::InstanceState::Terminated => "terminated",
        v1::InstanceState::Error => "error",
    }
}

fn instance(instance: v1::Instance) -> Option<InstanceView> {
    Some(InstanceView {
        id: instance.id.parse().ok()?,
        state: instance_state(instance.state()),
        exit: event::exit_cause(&instance).ok(),
        driver: instance.driver,
        exit_cause: instance.exit_cause,
        created_at: time(instance.created_at),
        running_at: optional_time(instance.running_at),
        ended_at: optional_time(instance.ended_at),
    })
}

fn idle_action(action: v1::IdleAction) -> Option<IdleAction> {
    match action {
        v1::IdleAction::Unspecified => None,
        v1::IdleAction::Pause => Some(IdleAction::Pause),
        v1::IdleAction::Stop => Some(IdleAction::Stop),
    }
}

fn attached(attached: v1::Attached) -> AttachedView {
    let to = match attached.to() {
        v1::AttachedTo::Unspecified => AttachedTo::Unknown,
        v1::AttachedTo::Events => AttachedTo::Events,
        v1::AttachedTo::Terminal => AttachedTo::Terminal,
    };
    AttachedView { client: attached.client, to, since: time(attached.since) }
}

/// A session.
pub fn session(session: v1::Session) -> Result<SessionView, Unreadable> {
    let limits = session.limits.unwrap_or_default();
    let idle_timeout_millis = session.idle_timeout.map_or(0, |timeout| {
        let millis = timeout.seconds.saturating_mul(1000).saturating_add(i64::from(timeout.nanos) / 1_000_000);
        u64::try_from(millis).unwrap_or(0)
    });
    Ok(SessionView {
        id: session.id.parse()?,
        status: status(session.status()),
        permission_mode: permission_mode(session.permission_mode()),
        idle_action: idle_action(session.idle_action()),
        title: session.title,
        fault: session.fault.map(fault),
        activity: activity(session.activity),
        driver: session.driver,
        instance: session.instance.and_then(instance),
        workspace: match session.workspace.and_then(|workspace| workspace.source) {
            Some(v1::workspace::Source::Copy(copy)) => WorkspaceSource::Copy { path: copy.path },
            Some(v1::workspace::Source::Empty(_)) | None => WorkspaceSource::Empty,
        },
        model: session.model,
        agent: session.agent,
        limits: Limits { memory_bytes: limits.memory_bytes, cpu_millis: limits.cpu_millis, pids: limits.pids },
        idle_timeout_millis,
        usage: usage(session.usage),
        created_at: time(session.created_at),
        updated_at: time(session.updated_at),
        last_seq: session.last_seq,
        network: session.network,
        step: session.step,
        queue_position: session.queue_position,
        unreachable_since: optional_time(session.unreachable_since),
        attached: session.attached.into_iter().map(attached).collect(),
    })
}

/// A change in the set of sessions.
pub fn session_change(answer: v1::WatchSessionsResponse) -> Result<SessionChange, Unreadable> {
    use v1::watch_sessions_response::Item;
    match answer.item.ok_or(Unreadable::Unknown("the change"))? {
        Item::Changed(changed) => Ok(SessionChange::Changed(Box::new(session(changed)?))),
        Item::Removed(id) => Ok(SessionChange::Removed(id.parse()?)),
        Item::CaughtUp(_) => Ok(SessionChange::CaughtUp),
    }
}

/// Letters of a part.
pub fn delta(delta: v1::PartDelta) -> Result<PartDelta, Unreadable> {
    Ok(PartDelta { message: delta.message_id.parse()?, part: delta.part_id.parse()?, offset: delta.offset_bytes, text: delta.text })
}

/// A permission request.
pub fn permission_request(request: v1::PermissionRequest) -> Result<PermissionRequest, Unreadable> {
    Ok(PermissionRequest {
        id: request.id.parse()?,
        conversation: request.conversation_id.parse()?,
        permission: request.permission,
        title: request.title,
        diff: request.diff,
        patterns: request.patterns,
        always: request.always,
        asked_at: time(request.asked_at),
    })
}

/// A question request.
pub fn question_request(request: v1::QuestionRequest) -> Result<QuestionRequest, Unreadable> {
    let option = |option: v1::QuestionOption| QuestionOption { label: option.label, description: option.description };
    let question = |question: v1::Question| Question {
        header: question.header,
        text: question.text,
        options: question.options.into_iter().map(option).collect(),
        multiple: question.multiple,
        custom: question.custom,
    };
    Ok(QuestionRequest {
        id: request.id.parse()?,
        conversation: request.conversation_id.parse()?,
        questions: request.questions.into_iter().map(question).collect(),
        asked_at: time(request.asked_at),
    })
}

/// Something that waits for an answer.
pub fn pending(pending: v1::Pending) -> Result<Pending, Unreadable> {
    use v1::pending::Request;
    let request = match pending.request.ok_or(Unreadable::Unknown("the request"))? {
        Request::Permission(request) => PendingRequest::Permission(permission_request(request)?),
        Request::Question(request) => PendingRequest::Question(question_request(request)?),
    };
    Ok(Pending { session: pending.session_id.parse()?, session_title: pending.session_title, request })
}

pub(super) fn response(response: v1::PermissionResponse) -> Option<PermissionResponse> {
    match response {
        v1::PermissionResponse::Unspecified => None,
        v1::PermissionResponse::Once => Some(PermissionResponse::Once),
        v1::PermissionResponse::Session => Some(PermissionResponse::Session),
        v1::PermissionResponse::Always => Some(PermissionResponse::Always),
        v1::PermissionResponse::Reject => Some(PermissionResponse::Reject),
    }
}

pub(super) const fn response_request(response: PermissionResponse) -> v1::PermissionResponse {
    match response {
        PermissionResponse::Once => v1::PermissionResponse::Once,
        PermissionResponse::Session => v1::PermissionResponse::Session,
        PermissionResponse::Always => v1::PermissionResponse::Always,
        PermissionResponse::Reject => v1::PermissionResponse::Reject,
    }
}

/// The size of a view, within what the protocol allows.
pub(super) fn size_request(columns: u16, rows: u16) -> v1::TerminalSize {
    let bounded = |cells: u16| u32::from(cells.clamp(2, 1000));
    v1::TerminalSize { columns: bounded(columns), rows: bounded(rows) }
}

pub(super) fn create_request(new: NewSession) -> v1::CreateSessionRequest {
    use v1::workspace::Source;
    let source = match new.workspace {
        WorkspaceSource::Empty => Source::Empty(v1::EmptyWorkspace {}),
        WorkspaceSource::Copy { path } => Source::Copy(v1::CopyWorkspace { path }),
    };
    let mode = new.permission_mode.map_or(v1::PermissionMode::Unspecified, |mode| match mode {
        PermissionMode::Ask => v1::PermissionMode::Ask,
        PermissionMode::AutoEdit => v1::PermissionMode::AutoEdit,
        PermissionMode::ReadOnly => v1::PermissionMode::ReadOnly,
    });
    let idle_action = new.idle_action.map_or(v1::IdleAction::Unspecified, |action| match action {
        IdleAction::Pause => v1::IdleAction::Pause,
        IdleAction::Stop => v1::IdleAction::Stop,
    });
    v1::CreateSessionRequest {
        title: new.title,
        workspace: Some(v1::Workspace { source: Some(source) }),
        model: new.model,
        agent: new.agent,
        permission_mode: mode.into(),
        limits: Some(v1::Limits {
            memory_bytes: new.memory_bytes.unwrap_or_default(),
            cpu_millis: new.cpu_millis.unwrap_or_default(),
            pids: new.pids.unwrap_or_default(),
        }),
        idle_timeout: new.idle_timeout.map(|timeout| prost_types::Duration {
            seconds: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(timeout.subsec_nanos()).unwrap_or_default(),
        }),
        idle_action: idle_action.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const SESSION: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV";

    #[test]
    fn a_session_with_values_of_a_later_version_is_still_shown() {
        let wire = v1::Session { id: SESSION.into(), status: 99, permission_mode: 77, ..Default::default() };
        let view = session(wire).unwrap();
        assert_eq!((view.status, view.permission_mode, view.status_name()), (None, None, "unknown"));
        assert_eq!(view.activity, Activity::Quiet);
    }

    #[test]
    fn a_session_whose_id_is_none_is_refused_with_the_reason() {
        let refused = session(v1::Session { id: "ses_../x".into(), ..Default::default() }).unwrap_err();
        assert!(refused.to_string().contains("is not a session id"), "{refused}");
    }

    #[test]
    fn an_absent_request_is_refused_and_an_absurd_time_does_not_panic() {
        assert_eq!(pending(v1::Pending::default()).unwrap_err(), Unreadable::Unknown("the request"));
        let absurd = prost_types::Timestamp { seconds: i64::MAX, nanos: i32::MAX };
        assert_eq!(timestamp(Some(absurd)).unwrap().as_millis(), i64::MAX);
    }

    #[test]
    fn sizes_are_brought_into_the_protocols_bounds() {
        let size = size_request(0, u16::MAX);
        assert_eq!((size.columns, size.rows), (2, 1000));
    }
}
