//! Domain to wire and back. Dull on purpose: one place where a field can be forgotten.

pub mod event;

use std::time::Duration;

use openagent_core::activity::Activity;
use openagent_core::instance::{ExitCause, Instance, InstanceState};
use openagent_core::permission::{PermissionMode, PermissionResponse};
use openagent_core::session::{Fault, IdleAction, Limits, Status, WorkspaceSource};
use openagent_core::time::Timestamp;
use openagent_core::usage::{Tokens, Usage};
use openagent_proto::v1;

use crate::session::View;
use crate::session::presence::{Attached, AttachedTo};

/// Clients that are named with a session; more are of no use to a reader.
const ATTACHED_MAX: usize = 100;

/// A point in time.
#[must_use]
pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let millis = at.as_millis();
    let nanos = i32::try_from(millis.rem_euclid(1000) * 1_000_000).expect("below a second");
    prost_types::Timestamp { seconds: millis.div_euclid(1000), nanos }
}

/// A length of time in milliseconds.
#[must_use]
pub fn duration(millis: u64) -> prost_types::Duration {
    let nanos = i32::try_from(millis % 1000 * 1_000_000).expect("below a second");
    prost_types::Duration { seconds: i64::try_from(millis / 1000).unwrap_or(i64::MAX), nanos }
}

/// A length of time from the wire; `None` when it is negative.
#[must_use]
pub fn duration_from(wire: &prost_types::Duration) -> Option<Duration> {
    Some(Duration::new(u64::try_from(wire.seconds).ok()?, u32::try_from(wire.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?))
}

/// A status.
#[must_use]
pub const fn status(status: Status) -> v1::SessionStatus {
    match status {
        Status::Creating => v1::SessionStatus::Creating,
        Status::Active => v1::SessionStatus::Active,
        Status::Idle => v1::SessionStatus::Idle,
        Status::Stopped => v1::SessionStatus::Stopped,
        Status::Error => v1::SessionStatus::Error,
    }
}

/// A fault.
#[must_use]
pub fn fault(fault: &Fault) -> v1::Fault {
    v1::Fault { code: fault.code.clone(), message: fault.message.clone(), hint: fault.hint.clone() }
}

/// An instance.
#[must_use]
pub fn instance(instance: &Instance) -> v1::Instance {
    let (state, cause) = match &instance.state {
        InstanceState::Provisioning => (v1::InstanceState::Provisioning, None),
        InstanceState::Running => (v1::InstanceState::Running, None),
        InstanceState::Paused => (v1::InstanceState::Paused, None),
        InstanceState::Terminated => (v1::InstanceState::Terminated, None),
        InstanceState::Error { cause } => (v1::InstanceState::Error, Some(cause)),
    };
    let (exit_reason, exit_code) = cause.map_or((v1::ExitReason::Unspecified, 0), exit_reason);
    v1::Instance {
        id: instance.id.to_string(),
        driver: instance.driver.clone(),
        state: state.into(),
        exit_cause: cause.map(ToString::to_string).unwrap_or_default(),
        exit_reason: exit_reason.into(),
        exit_code,
        created_at: Some(timestamp(instance.created_at)),
        running_at: instance.running_at.map(timestamp),
        ended_at: instance.ended_at.map(timestamp),
    }
}

fn exit_reason(cause: &ExitCause) -> (v1::ExitReason, i64) {
    match cause {
        ExitCause::Exited { code } => (v1::ExitReason::Exited, *code),
        ExitCause::Killed { signal } => (v1::ExitReason::Killed, i64::from(*signal)),
        ExitCause::OutOfMemory => (v1::ExitReason::OutOfMemory, 0),
        ExitCause::Removed => (v1::ExitReason::Removed, 0),
        ExitCause::NotStarted => (v1::ExitReason::NotStarted, 0),
        ExitCause::EngineGone => (v1::ExitReason::EngineGone, 0),
        ExitCause::EngineStopped => (v1::ExitReason::EngineStopped, 0),
        ExitCause::Unresponsive => (v1::ExitReason::Unresponsive, 0),
        ExitCause::Unwatched => (v1::ExitReason::Unwatched, 0),
    }
}

/// What becomes of an idle session's instance.
#[must_use]
pub const fn idle_action(action: IdleAction) -> v1::IdleAction {
    match action {
        IdleAction::Pause => v1::IdleAction::Pause,
        IdleAction::Stop => v1::IdleAction::Stop,
    }
}

/// What becomes of an idle session's instance, from the wire; `Ok(None)` where it was not said.
///
/// # Errors
/// The number of an action that is not known here.
pub fn idle_action_from(wire: i32) -> Result<Option<IdleAction>, i32> {
    match v1::IdleAction::try_from(wire) {
        Ok(v1::IdleAction::Unspecified) => Ok(None),
        Ok(v1::IdleAction::Pause) => Ok(Some(IdleAction::Pause)),
        Ok(v1::IdleAction::Stop) => Ok(Some(IdleAction::Stop)),
        Err(_) => Err(wire),
    }
}

fn attached(attached: &Attached) -> v1::Attached {
    let to = match attached.to {
        AttachedTo::Events => v1::AttachedTo::Events,
        AttachedTo::Terminal => v1::AttachedTo::Terminal,
    };
    v1::Attached { client: attached.client.clone(), to: to.into(), since: Some(timestamp(attached.since)) }
}

/// A sum of usage.
#[must_use]
pub const fn usage(usage: &Usage) -> v1::Usage {
    let Tokens { input, output, reasoning, cache_read, cache_write } = usage.tokens;
    v1::Usage { tokens: Some(v1::Tokens { input, output, reasoning, cache_read, cache_write }), cost_micros: usage.cost_micros }
}

/// What an agent does.
#[must_use]
pub fn activity(activity: &Activity) -> v1::Activity {
    use v1::activity::Kind;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let kind = match activity {
        Activity::Quiet => Kind::Quiet(v1::ActivityQuiet {}),
        Activity::Working => Kind::Working(v1::ActivityWorking {}),
        Activity::Blocked { permissions, questions } => {
            Kind::Blocked(v1::ActivityBlocked { permissions: count(*permissions), questions: count(*questions) })
        }
        Activity::Retrying { attempt, next_at } => {
            Kind::Retrying(v1::ActivityRetrying { attempt: *attempt, next_at: Some(timestamp(*next_at)) })
        }
        Activity::Done => Kind::Done(v1::ActivityDone {}),
        Activity::Failed => Kind::Failed(v1::ActivityFailed {}),
    };
    v1::Activity { kind: Some(kind) }
}

/// A permission mode.
#[must_use]
pub const fn permission_mode(mode: PermissionMode) -> v1::PermissionMode {
    match mode {
        PermissionMode::Ask => v1::PermissionMode::Ask,
        PermissionMode::AutoEdit => v1::PermissionMode::AutoEdit,
        PermissionMode::ReadOnly => v1::PermissionMode::ReadOnly,
    }
}

/// A permission mode from the wire; `Ok(None)` where none was given.
///
/// # Errors
/// The number of a mode that is not known here.
pub fn permission_mode_from(wire: i32) -> Result<Option<PermissionMode>, i32> {
    match v1::PermissionMode::try_from(wire) {
        Ok(v1::PermissionMode::Unspecified) => Ok(None),
        Ok(v1::PermissionMode::Ask) => Ok(Some(PermissionMode::Ask)),
        Ok(v1::PermissionMode::AutoEdit) => Ok(Some(PermissionMode::AutoEdit)),
        Ok(v1::PermissionMode::ReadOnly) => Ok(Some(PermissionMode::ReadOnly)),
        Err(_) => Err(wire),
    }
}

/// An answer to a permission request.
#[must_use]
pub const fn permission_response(response: PermissionResponse) -> v1::PermissionResponse {
    match response {
        PermissionResponse::Once => v1::PermissionResponse::Once,
        PermissionResponse::Session => v1::PermissionResponse::Session,
        PermissionResponse::Always => v1::PermissionResponse::Always,
        PermissionResponse::Reject => v1::PermissionResponse::Reject,
    }
}

/// An answer to a permission request from the wire; `None` where it is unspecified or not known here.
#[must_use]
pub fn permission_response_from(wire: i32) -> Option<PermissionResponse> {
    match v1::PermissionResponse::try_from(wire).ok()? {
        v1::PermissionResponse::Unspecified => None,
        v1::PermissionResponse::Once => Some(PermissionResponse::Once),
        v1::PermissionResponse::Session => Some(PermissionResponse::Session),
        v1::PermissionResponse::Always => Some(PermissionResponse::Always),
        v1::PermissionResponse::Reject => Some(PermissionResponse::Reject),
    }
}

/// What a workspace starts from.
#[must_use]
pub fn workspace(source: &WorkspaceSource) -> v1::Workspace {
    use v1::workspace::Source;
    let source = match source {
        WorkspaceSource::Empty => Source::Empty(v1::EmptyWorkspace {}),
        WorkspaceSource::Copy { path } => Source::Copy(v1::CopyWorkspace { path: path.clone() }),
    };
    v1::Workspace { source: Some(source) }
}

/// What a workspace starts from, from the wire.
#[must_use]
pub fn workspace_from(wire: Option<v1::Workspace>) -> WorkspaceSource {
    use v1::workspace::Source;
    match wire.and_then(|workspace| workspace.source) {
        None | Some(Source::Empty(_)) => WorkspaceSource::Empty,
        Some(Source::Copy(copy)) => WorkspaceSource::Copy { path: copy.path },
    }
}

/// Limits.
#[must_use]
pub const fn limits(limits: &Limits) -> v1::Limits {
    v1::Limits { memory_bytes: limits.memory_bytes, cpu_millis: limits.cpu_millis, pids: limits.pids }
}

/// A session as clients see it.
#[must_use]
pub fn session(view: &View) -> v1::Session {
    let session = &view.record.session;
    v1::Session {
        id: session.id.to_string(),
        title: session.title.clone(),
        status: status(view.record.lifecycle.status()).into(),
        fault: view.record.lifecycle.fault().map(fault),
        activity: Some(activity(&view.activity)),
        driver: session.driver.clone(),
        instance: view.record.instance.as_ref().map(instance),
        workspace: Some(workspace(&session.workspace)),
        model: session.model.clone(),
        agent: session.agent.clone(),
        permission_mode: permission_mode(session.permission_mode).into(),
        limits: Some(limits(&session.limits)),
        idle_timeout: Some(duration(session.idle_timeout_millis)),
        usage: Some(usage(&view.usage)),
        created_at: Some(timestamp(session.created_at)),
        updated_at: Some(timestamp(view.updated_at)),
        last_seq: view.last_seq,
        network: match session.network {
            openagent_core::session::NetworkPolicy::None => "none".to_owned(),
        },
        step: view.step().map(|step| step.name().to_owned()).unwrap_or_default(),
        idle_action: idle_action(session.idle_action).into(),
        queue_position: view.queue_position,
        unreachable_since: view.unreachable_since.map(timestamp),
        attached: view.attached.iter().take(ATTACHED_MAX).map(attached).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_and_below_a_second_are_right() {
        assert_eq!(timestamp(Timestamp::from_millis(-1)), prost_types::Timestamp { seconds: -1, nanos: 999_000_000 });
        assert_eq!(timestamp(Timestamp::from_millis(1_500)), prost_types::Timestamp { seconds: 1, nanos: 500_000_000 });
    }

    #[test]
    fn negative_durations_are_refused() {
        assert_eq!(duration_from(&prost_types::Duration { seconds: -1, nanos: 0 }), None);
        assert_eq!(duration_from(&duration(1_250)), Some(Duration::from_millis(1_250)));
    }
}
