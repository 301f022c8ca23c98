//! The JSON shapes of the command line. Snake case, times in RFC 3339, money in micro-units and as text. They change only by addition.
//!
//! | command | shape |
//! |---|---|
//! | `ls` | list of [`Session`] |
//! | `new`, `show`, `stop`, `resume`, `rename` | [`Session`] (`stop` of several: a list) |
//! | `inbox` | list of [`Pending`] |
//! | `run`, `prompt --wait` | [`Turn`] |
//! | `usage` | [`UsageReport`] |
//! | `keys ls`, `keys set` | list of [`Key`], [`Key`] |
//! | `providers`, `models` | list of [`Provider`], list of [`Model`] |
//! | `rules ls` | list of `{permission, pattern}` |
//! | `daemon status`, `daemon start` | [`Daemon`] |
//! | `daemon restart` | [`Restarted`] |
//! | `daemon verify` | [`Verified`] |
//! | `logs` | one event a line, in the form of [`openagent_core::event::Event`] (times in milliseconds since the epoch); a delta as `{"delta": …}` |

use openagent_core::activity::Activity;
use openagent_core::instance::ExitCause;
use openagent_core::permission::PermissionMode;
use openagent_core::session::{Fault, IdleAction, Limits, WorkspaceSource};
use openagent_core::time::Timestamp;
use openagent_core::usage::Tokens;
use openagent_proto::v1;
use serde::Serialize;

use super::quantity;
use crate::client::view;
use crate::client::{PendingRequest, SessionView, convert};

/// A point in time as RFC 3339.
fn time(at: Timestamp) -> String {
    at.to_string()
}

fn wire_time(at: Option<prost_types::Timestamp>) -> Option<String> {
    convert::timestamp(at).map(time)
}

/// Tokens and money.
#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    /// Token counts.
    pub tokens: Tokens,
    /// Cost in micro-units of currency.
    pub cost_micros: u64,
    /// Cost as text, exact.
    pub cost: String,
}

impl From<openagent_core::usage::Usage> for Usage {
    fn from(usage: openagent_core::usage::Usage) -> Self {
        Self { tokens: usage.tokens, cost_micros: usage.cost_micros, cost: quantity::cost_exact(usage.cost_micros) }
    }
}

/// Why something failed.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// Stable reason; empty where there is none.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self { code: fault.code, message: fault.message, hint: fault.hint }
    }
}

/// What the agent does; absent members do not apply.
#[derive(Debug, Clone, Serialize)]
pub struct ActivityState {
    /// `quiet`, `working`, `blocked`, `retrying` or `done`.
    pub state: &'static str,
    /// Permission requests that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permissions: Option<usize>,
    /// Questions that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub questions: Option<usize>,
    /// Which attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// When the next attempt is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_at: Option<String>,
}

impl From<&Activity> for ActivityState {
    fn from(activity: &Activity) -> Self {
        let mut state =
            Self { state: super::session::activity_name(activity), permissions: None, questions: None, attempt: None, next_at: None };
        match activity {
            Activity::Blocked { permissions, questions } => {
                (state.permissions, state.questions) = (Some(*permissions), Some(*questions));
            }
            Activity::Retrying { attempt, next_at } => (state.attempt, state.next_at) = (Some(*attempt), Some(time(*next_at))),
            Activity::Quiet | Activity::Working | Activity::Done | Activity::Failed => {}
        }
        state
    }
}

/// One container run of a session.
#[derive(Debug, Clone, Serialize)]
pub struct Instance {
    /// The instance.
    pub id: String,
    /// `docker` or `local`.
    pub driver: String,
    /// `provisioning`, `running`, `paused`, `terminated` or `error`.
    pub state: &'static str,
    /// Why it ended by itself; empty where it did not.
    pub exit_cause: String,
    /// The same for programs: `{"cause": "exited", "code": …}`, `{"cause": "killed", "signal": …}`, `out_of_memory`, `removed`,
    /// `not_started`, `engine_gone`, `engine_stopped`, `unresponsive` or `unwatched`; null where it did not.
    pub exit: Option<ExitCause>,
    /// When it was made.
    pub created_at: String,
    /// When it was up.
    pub running_at: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
}

/// Somebody who follows a session.
#[derive(Debug, Clone, Serialize)]
pub struct Attached {
    /// The name that the client gave.
    pub client: String,
    /// `events` for its conversation, `terminal` for one of its terminals.
    pub to: &'static str,
    /// Since when.
    pub since: String,
}

/// A session.
#[derive(Debug, Clone, Serialize)]
pub struct Session {
    /// The session.
    pub id: String,
    /// Its title; may be empty.
    pub title: String,
    /// `creating`, `active`, `idle`, `stopped`, `error` or `unknown`.
    pub status: &'static str,
    /// Why, where the status is `error`.
    pub fault: Option<Problem>,
    /// What the agent does.
    pub activity: ActivityState,
    /// The provisioning step that runs.
    pub step: Option<String>,
    /// `docker` or `local`.
    pub driver: String,
    /// The instance that it has, or had last.
    pub instance: Option<Instance>,
    /// What its workspace started from: `{"source": "empty"}` or `{"source": "copy", "path": …}`.
    pub workspace: WorkspaceSource,
    /// `provider/model`.
    pub model: String,
    /// The agent's mode or persona.
    pub agent: String,
    /// `ask`, `auto-edit` or `read-only`.
    pub permission_mode: Option<PermissionMode>,
    /// What it may use.
    pub limits: Limits,
    /// Rest after which it becomes idle; 0: never.
    pub idle_timeout_millis: u64,
    /// What becomes of its instance then: `pause` or `stop`.
    pub idle_action: Option<IdleAction>,
    /// Its place among those that wait for room to run, from 1; null: it does not wait.
    pub queue_position: Option<u32>,
    /// Since when its instance does not answer, and `activity` is as old; null: it answers.
    pub unreachable_since: Option<String>,
    /// Who follows it, oldest first.
    pub attached: Vec<Attached>,
    /// What may be reached from inside.
    pub network: String,
    /// What it has spent.
    pub usage: Usage,
    /// When it was made.
    pub created_at: String,
    /// When its last event was recorded.
    pub updated_at: String,
    /// Seq of its last event.
    pub last_seq: u64,
}

impl From<SessionView> for Session {
    fn from(session: SessionView) -> Self {
        let attached =
            |attached: view::AttachedView| Attached { client: attached.client, to: attached.to.name(), since: time(attached.since) };
        let instance = |instance: view::InstanceView| Instance {
            id: instance.id.to_string(),
            driver: instance.driver,
            state: instance.state,
            exit_cause: instance.exit_cause,
            exit: instance.exit,
            created_at: time(instance.created_at),
            running_at: instance.running_at.map(time),
            ended_at: instance.ended_at.map(time),
        };
        Self {
            id: session.id.to_string(),
            status: session.status_name(),
            title: session.title,
            fault: session.fault.map(Into::into),
            activity: (&session.activity).into(),
            step: (!session.step.is_empty()).then_some(session.step),
            driver: session.driver,
            instance: session.instance.map(instance),
            workspace: session.workspace,
            model: session.model,
            agent: session.agent,
            permission_mode: session.permission_mode,
            limits: session.limits,
            idle_timeout_millis: session.idle_timeout_millis,
            idle_action: session.idle_action,
            queue_position: (session.queue_position > 0).then_some(session.queue_position),
            unreachable_since: session.unreachable_since.map(time),
            attached: session.attached.into_iter().map(attached).collect(),
            network: session.network,
            usage: session.usage.into(),
            created_at: time(session.created_at),
            updated_at: time(session.updated_at),
            last_seq: session.last_seq,
        }
    }
}

/// One option of a question.
#[derive(Debug, Clone, Serialize)]
pub struct QuestionOption {
    /// The answer itself.
    pub label: String,
    /// What choosing it means.
    pub description: String,
}

/// One question.
#[derive(Debug, Clone, Serialize)]
pub struct Question {
    /// A short heading.
    pub header: String,
    /// The question.
    pub text: String,
    /// The offered answers.
    pub options: Vec<QuestionOption>,
    /// Several may be chosen.
    pub multiple: bool,
    /// Own words are accepted.
    pub custom: bool,
}

/// What is asked.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Asked {
    /// To be allowed something.
    Permission {
        /// `bash`, `edit`, `webfetch` ...
        permission: String,
        /// The full command, or the file.
        title: String,
        /// Unified diff, where it is an edit.
        diff: Option<String>,
        /// What the act matches.
        patterns: Vec<String>,
        /// What a wider answer than `once` would allow.
        always: Vec<String>,
    },
    /// To be told something.
    Question {
        /// The questions, all to be answered together.
        questions: Vec<Question>,
    },
}

/// Something that waits for an answer.
#[derive(Debug, Clone, Serialize)]
pub struct Pending {
    /// The session that asks.
    pub session_id: String,
    /// Its title.
    pub session_title: String,
    /// The request.
    pub request_id: String,
    /// When it was asked.
    pub asked_at: String,
    /// What is asked.
    #[serde(flatten)]
    pub asked: Asked,
}

impl From<view::Pending> for Pending {
    fn from(pending: view::Pending) -> Self {
        let request_id = pending.request.id().to_string();
        let (asked_at, asked) = match pending.request {
            PendingRequest::Permission(request) => (
                request.asked_at,
                Asked::Permission {
                    permission: request.permission,
                    title: request.title,
                    diff: request.diff,
                    patterns: request.patterns,
                    always: request.always,
                },
            ),
            PendingRequest::Question(request) => {
                let question = |question: openagent_core::permission::Question| Question {
                    header: question.header,
                    text: question.text,
                    options: question
                        .options
                        .into_iter()
                        .map(|option| QuestionOption { label: option.label, description: option.description })
                        .collect(),
                    multiple: question.multiple,
                    custom: question.custom,
                };
                (request.asked_at, Asked::Question { questions: request.questions.into_iter().map(question).collect() })
            }
        };
        Self { session_id: pending.session.to_string(), session_title: pending.session_title, request_id, asked_at: time(asked_at), asked }
    }
}

/// How a turn went.
#[derive(Debug, Clone, Serialize)]
pub struct Turn {
    /// The session.
    pub session_id: String,
    /// `completed`, `aborted`, `failed`, `interrupted`, `blocked` or `timeout`.
    pub outcome: &'static str,
    /// The agent's final answer, or what there is of it.
    pub text: String,
    /// What the session has spent.
    pub usage: Usage,
    /// What went wrong.
    pub error: Option<Problem>,
    /// What the agent waits for, where the outcome is `blocked`.
    pub pending: Vec<Pending>,
    /// The session was removed afterwards.
    pub removed: bool,
}

/// One line of a usage report.
#[derive(Debug, Clone, Serialize)]
pub struct UsageGroup {
    /// Session, day, model or message.
    pub key: String,
    /// What was spent.
    #[serde(flatten)]
    pub usage: Usage,
}

/// What was spent.
#[derive(Debug, Clone, Serialize)]
pub struct UsageReport {
    /// All together.
    pub total: Usage,
    /// By what was asked for; empty without a grouping.
    pub groups: Vec<UsageGroup>,
}

impl From<v1::GetUsageResponse> for UsageReport {
    fn from(report: v1::GetUsageResponse) -> Self {
        let group = |group: v1::UsageGroup| UsageGroup { key: group.key, usage: convert::usage(group.usage).into() };
        Self { total: convert::usage(report.total).into(), groups: report.groups.into_iter().map(group).collect() }
    }
}

/// A stored key, without the key.
#[derive(Debug, Clone, Serialize)]
pub struct Key {
    /// Provider id.
    pub provider: String,
    /// From 1; each change makes it one higher.
    pub version: u64,
    /// When it was first stored.
    pub created_at: Option<String>,
    /// When it was last changed.
    pub updated_at: Option<String>,
    /// When a model call last used it.
    pub used_at: Option<String>,
}

impl From<v1::Key> for Key {
    fn from(key: v1::Key) -> Self {
        Self {
            provider: key.provider,
            version: key.version,
            created_at: wire_time(key.created_at),
            updated_at: wire_time(key.updated_at),
            used_at: wire_time(key.used_at),
        }
    }
}

/// A model.
#[derive(Debug, Clone, Serialize)]
pub struct Model {
    /// `provider/model`.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Tokens that it can take into account.
    pub context_tokens: u64,
    /// Tokens that it can answer.
    pub output_tokens: u64,
    /// It can reason.
    pub reasoning: bool,
    /// Price of a million tokens sent, in micro-units of currency.
    pub input_price_micros: u64,
    /// Price of a million tokens answered.
    pub output_price_micros: u64,
    /// Its provider has a key or needs none.
    pub usable: bool,
    /// A new session gets it.
    pub default: bool,
}

/// A provider.
#[derive(Debug, Clone, Serialize)]
pub struct Provider {
    /// Short name.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Wire format.
    pub kind: String,
    /// Where it is.
    pub base_url: String,
    /// `host` or `direct`.
    pub route: String,
    /// It wants a key.
    pub needs_key: bool,
    /// It has one.
    pub has_key: bool,
    /// It comes from the user's configuration.
    pub own: bool,
    /// How many models it has.
    pub models: usize,
}

impl From<v1::Provider> for Provider {
    fn from(provider: v1::Provider) -> Self {
        Self {
            models: provider.models.len(),
            id: provider.id,
            name: provider.name,
            kind: provider.kind,
            base_url: provider.base_url,
            route: provider.route,
            needs_key: provider.needs_key,
            has_key: provider.has_key,
            own: provider.own,
        }
    }
}

/// The models of the listed providers: the default first, then those that could be used now.
#[must_use]
pub fn models(listed: v1::ListProvidersResponse) -> Vec<Model> {
    let default = listed.default_model;
    let of_provider = |provider: v1::Provider| {
        let usable = provider.has_key || !provider.needs_key;
        let default = default.clone();
        provider.models.into_iter().map(move |model| {
            let id = format!("{}/{}", provider.id, model.id);
            Model {
                default: id == default,
                id,
                name: model.name,
                context_tokens: model.context_tokens,
                output_tokens: model.output_tokens,
                reasoning: model.reasoning,
                input_price_micros: model.input_price_micros,
                output_price_micros: model.output_price_micros,
                usable,
            }
        })
    };
    let mut models: Vec<Model> = listed.providers.into_iter().flat_map(of_provider).collect();
    models.sort_by_key(|model| (!model.default, !model.usable));
    models
}

/// How the daemon is doing.
#[derive(Debug, Clone, Serialize)]
pub struct Daemon {
    /// Its version.
    pub version: String,
    /// Its protocol.
    pub protocol: u32,
    /// This client's protocol.
    pub client_protocol: u32,
    /// Its process.
    pub pid: i64,
    /// When it was started.
    pub started_at: Option<String>,
    /// Its socket.
    pub socket: String,
    /// Where it keeps its state.
    pub state_directory: String,
    /// Sessions that it knows.
    pub sessions: u32,
    /// Sessions with an instance.
    pub running: u32,
    /// How many may have one at a time; 0 where the daemon does not say.
    pub max_running: u32,
    /// Sessions that wait for room to run.
    pub queued: u32,
    /// Sum of the memory limits of sessions with an instance.
    pub memory_reserved_bytes: u64,
    /// Its bound; 0: none.
    pub memory_budget_bytes: u64,
    /// Prepared instances that are ready.
    pub warm_ready: u32,
    /// How many are to be.
    pub warm_wanted: u32,
    /// Writes are taken; null where the daemon does not say.
    pub store_writable: Option<bool>,
    /// Why they are not, and what to do.
    pub store_fault: Option<Problem>,
    /// Its resident memory.
    pub memory_bytes: u64,
    /// `docker` or `local`.
    pub driver: String,
    /// The driver works.
    pub driver_healthy: bool,
    /// Version and kind of the engine.
    pub driver_detail: String,
    /// What is wrong with the driver.
    pub driver_fault: Option<Problem>,
    /// What the driver does not isolate; empty for containers.
    pub isolation_warning: String,
}

impl From<v1::GetStatusResponse> for Daemon {
    fn from(status: v1::GetStatusResponse) -> Self {
        let driver = status.driver.unwrap_or_default();
        let store_writable = status.store.as_ref().map(|store| store.writable);
        Self {
            max_running: status.max_running,
            queued: status.queued,
            memory_reserved_bytes: status.memory_reserved_bytes,
            memory_budget_bytes: status.memory_budget_bytes,
            warm_ready: status.warm_ready,
            warm_wanted: status.warm_wanted,
            store_writable,
            store_fault: status.store.and_then(|store| store.fault).map(|fault| convert::fault(fault).into()),
            version: status.version,
            protocol: status.protocol,
            client_protocol: openagent_proto::PROTOCOL,
            pid: status.pid,
            started_at: wire_time(status.started_at),
            socket: status.socket,
            state_directory: status.state_directory,
            sessions: status.sessions,
            running: status.running,
            memory_bytes: status.memory_bytes,
            driver: driver.name,
            driver_healthy: driver.healthy,
            driver_detail: driver.detail,
            driver_fault: driver.fault.map(|fault| convert::fault(fault).into()),
            isolation_warning: driver.isolation_warning,
        }
    }
}

/// What became of a restart.
#[derive(Debug, Clone, Serialize)]
pub struct Restarted {
    /// The daemon that ran before; null where none did.
    pub before: Option<Program>,
    /// The one that runs now.
    pub after: Program,
}

/// A daemon's program.
#[derive(Debug, Clone, Serialize)]
pub struct Program {
    /// Its version.
    pub version: String,
    /// Its protocol.
    pub protocol: u32,
    /// Its process.
    pub pid: i64,
}

impl From<&v1::GetStatusResponse> for Program {
    fn from(status: &v1::GetStatusResponse) -> Self {
        Self { version: status.version.clone(), protocol: status.protocol, pid: status.pid }
    }
}

/// What reading every record of the store has shown.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// Nothing is wrong.
    pub sound: bool,
    /// Format of the store.
    pub format: u64,
    /// Sessions that were read.
    pub sessions: u64,
    /// Events that were read.
    pub events: u64,
    /// Records of all kinds that were read.
    pub records: u64,
    /// Encrypted records that the master key opens.
    pub opened: u64,
    /// Encrypted records that it does not open.
    pub unopened: u64,
    /// How much is wrong.
    pub problem_count: u64,
    /// What is wrong, a sentence each; the first hundred.
    pub problems: Vec<String>,
}

impl From<v1::VerifyStoreResponse> for Verified {
    fn from(report: v1::VerifyStoreResponse) -> Self {
        Self {
            sound: report.problem_count == 0,
            format: report.format,
            sessions: report.sessions,
            events: report.events,
            records: report.records,
            opened: report.opened,
            unopened: report.unopened,
            problem_count: report.problem_count,
            problems: report.problems,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_the_documented_shape() {
        let wire = v1::Session {
            id: "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
            title: "t".into(),
            status: v1::SessionStatus::Active.into(),
            activity: Some(v1::Activity { kind: Some(v1::activity::Kind::Blocked(v1::ActivityBlocked { permissions: 1, questions: 2 })) }),
            usage: Some(v1::Usage { tokens: Some(v1::Tokens { input: 5, ..Default::default() }), cost_micros: 2_422 }),
            created_at: Some(prost_types::Timestamp { seconds: 1_795_336_693, nanos: 531_000_000 }),
            permission_mode: v1::PermissionMode::AutoEdit.into(),
            queue_position: 2,
            attached: vec![v1::Attached { client: "anna".into(), to: v1::AttachedTo::Events.into(), since: None }],
            ..Default::default()
        };
        let session: Session = convert::session(wire).unwrap().into();
        let expected = serde_json::json!({
            "id": "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV", "title": "t", "status": "active", "fault": null,
            "activity": { "state": "blocked", "permissions": 1, "questions": 2 },
            "step": null, "driver": "", "instance": null, "workspace": { "source": "empty" }, "model": "", "agent": "",
            "permission_mode": "auto-edit", "limits": { "memory_bytes": 0, "cpu_millis": 0, "pids": 0 }, "idle_timeout_millis": 0,
            "idle_action": null, "queue_position": 2, "unreachable_since": null,
            "attached": [{ "client": "anna", "to": "events", "since": "1970-01-01T00:00:00Z" }],
            "network": "",
            "usage": {
                "tokens": { "input": 5, "output": 0, "reasoning": 0, "cache_read": 0, "cache_write": 0 },
                "cost_micros": 2422, "cost": "$0.002422"
            },
            "created_at": "2026-11-22T08:38:13.531Z", "updated_at": "1970-01-01T00:00:00Z", "last_seq": 0
        });
        assert_eq!(serde_json::to_value(session).unwrap(), expected);
    }

    #[test]
    fn a_pending_request_has_the_documented_shape() {
        let request = v1::PermissionRequest {
            id: "per_1".into(),
            conversation_id: "ses_1".into(),
            permission: "bash".into(),
            title: "ls".into(),
            patterns: vec!["ls".into()],
            ..Default::default()
        };
        let wire = v1::Pending {
            session_id: "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
            session_title: "t".into(),
            request: Some(v1::pending::Request::Permission(request)),
        };
        let pending: Pending = convert::pending(wire).unwrap().into();
        let expected = serde_json::json!({
            "session_id": "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV", "session_title": "t", "request_id": "per_1",
            "asked_at": "1970-01-01T00:00:00Z", "kind": "permission", "permission": "bash", "title": "ls", "diff": null,
            "patterns": ["ls"], "always": []
        });
        assert_eq!(serde_json::to_value(pending).unwrap(), expected);
    }
}
