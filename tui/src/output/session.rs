//! Sessions and what they ask, as blocks and tables for people.

use openagent_core::activity::Activity;
use openagent_core::id::SessionId;
use openagent_core::instance::ExitCause;
use openagent_core::permission::{PermissionRequest, Question};
use openagent_core::session::{Status, WorkspaceSource};
use openagent_core::time::Timestamp;

use super::quantity::{bytes, cost, count, ordinal, span};
use super::table::Table;
use super::text::{shortened, single_line, visible};
use crate::client::{AttachedTo, Pending, PendingRequest, SessionView};

/// Columns of a title in a table.
const TITLE_COLUMNS: usize = 40;

/// Lines of a diff that are shown where something is asked; the rest is in the inbox of the terminal user interface and in JSON.
const DIFF_MAX_LINES: usize = 40;

/// The last eight characters of the id: those that differ between sessions that were made one after the other.
#[must_use]
pub fn short_id(id: &SessionId) -> &str {
    let id = id.as_str();
    &id[id.len().saturating_sub(8)..]
}

/// The activity's name.
#[must_use]
pub const fn activity_name(activity: &Activity) -> &'static str {
    match activity {
        Activity::Quiet => "quiet",
        Activity::Working => "working",
        Activity::Blocked { .. } => "blocked",
        Activity::Retrying { .. } => "retrying",
        Activity::Done => "done",
        Activity::Failed => "failed",
    }
}

/// Status and activity in one: a symbol, so that no colour is needed, and a word. What the agent does matters while it can do something.
#[must_use]
pub fn state(session: &SessionView, now: Timestamp) -> String {
    if session.queue_position > 0 {
        return format!("◌ queued ({})", ordinal(session.queue_position));
    }
    if let Some(since) = session.unreachable_since {
        return format!("~ unreachable for {}", span(now.millis_since(since)));
    }
    match session.status {
        Some(Status::Creating) if session.step.is_empty() => "◌ creating".into(),
        Some(Status::Creating) => format!("◌ creating: {}", single_line(&session.step)),
        Some(Status::Active) => match &session.activity {
            Activity::Quiet => "○ ready".into(),
            Activity::Working => "● working".into(),
            Activity::Blocked { .. } => "? blocked".into(),
            Activity::Retrying { attempt, .. } => format!("↻ retrying ({attempt})"),
            Activity::Done => "✓ done".into(),
            Activity::Failed => "✗ failed".into(),
        },
        Some(Status::Idle) => session.rest().map_or_else(|| "z idle".into(), |rest| format!("z idle, {}", rest.name())),
        Some(Status::Stopped) => "■ stopped".into(),
        Some(Status::Error) => "✗ error".into(),
        None => "· unknown".into(),
    }
}

/// The title, or a word for there being none.
fn title(title: &str, columns: usize) -> String {
    if title.is_empty() { "(untitled)".into() } else { shortened(title, columns) }
}

/// All sessions, one a line.
#[must_use]
pub fn table(sessions: &[SessionView], now: Timestamp) -> String {
    let mut table = Table::new(&["ID", "STATE", "TITLE", "MODEL", ">TOKENS", ">COST", ">HERE", ">AGE"]);
    for session in sessions {
        table.row([
            short_id(&session.id).to_owned(),
            state(session, now),
            title(&session.title, TITLE_COLUMNS),
            shortened(&session.model, TITLE_COLUMNS),
            count(session.usage.tokens.total()),
            cost(session.usage.cost_micros),
            // Who follows it by name is said where one session is shown.
            if session.attached.is_empty() { String::new() } else { session.attached.len().to_string() },
            span(now.millis_since(session.created_at)),
        ]);
    }
    table.render()
}

/// Everything about one session.
#[must_use]
pub fn block(session: &SessionView, now: Timestamp) -> String {
    let tokens = &session.usage.tokens;
    let limits = &session.limits;
    let mut lines = vec![("id", session.id.to_string()), ("title", title(&session.title, 200)), ("state", state(session, now))];
    if session.queue_position > 0 {
        lines.push((
            "hint",
            format!("it starts by itself when there is room; take it out of the queue: openagent stop {}", short_id(&session.id)),
        ));
    }
    if session.unreachable_since.is_some() {
        lines.push(("activity", format!("{} when it last answered", activity_name(&session.activity))));
    }
    if let Some(fault) = &session.fault {
        lines.push(("error", single_line(&fault.message)));
        let exit = session.instance.as_ref().and_then(|instance| instance.exit.as_ref());
        let hint = if fault.hint.is_empty() { exit.map_or("", ExitCause::hint) } else { &fault.hint };
        if !hint.is_empty() {
            lines.push(("hint", single_line(hint)));
        }
    }
    let idle = match (session.idle_timeout_millis, session.idle_action) {
        (0, _) => "never".into(),
        (millis, None) => format!("after {}", span(millis)),
        (millis, Some(action)) => format!("after {}, then {}", span(millis), action.name()),
    };
    let ago = |at: Timestamp| format!("{at} ({} ago)", span(now.millis_since(at)));
    lines.extend([
        ("model", single_line(&session.model)),
        ("agent", single_line(&session.agent)),
        ("permissions", session.permission_mode.map_or("unknown", |mode| mode.name()).to_owned()),
        (
            "workspace",
            match &session.workspace {
                WorkspaceSource::Empty => "empty".into(),
                WorkspaceSource::Copy { path } => format!("copy of {}", single_line(path)),
            },
        ),
        ("network", single_line(&session.network)),
        (
            "limits",
            format!(
                "{} memory, {}.{} cores, {} processes",
                bytes(limits.memory_bytes),
                limits.cpu_millis / 1000,
                limits.cpu_millis % 1000 / 100,
                limits.pids
            ),
        ),
        ("idle", idle),
        (
            "tokens",
            format!(
                "{} ({} in, {} out, {} reasoning, {} cached)",
                count(tokens.total()),
                count(tokens.input),
                count(tokens.output),
                count(tokens.reasoning),
                count(tokens.cache_read)
            ),
        ),
        ("cost", cost(session.usage.cost_micros)),
        ("created", ago(session.created_at)),
        ("updated", ago(session.updated_at)),
    ]);
    if let Some(instance) = &session.instance {
        let cause = if instance.exit_cause.is_empty() { String::new() } else { format!(": {}", single_line(&instance.exit_cause)) };
        lines.push(("instance", format!("{} ({}, {}{cause})", instance.id, single_line(&instance.driver), instance.state)));
    }
    for (index, attached) in session.attached.iter().enumerate() {
        let name = if index == 0 { "attached" } else { "" };
        let what = match attached.to {
            AttachedTo::Events => "follows",
            AttachedTo::Terminal => "in a terminal",
            AttachedTo::Unknown => "attached",
        };
        lines.push((name, format!("{}, {what} for {}", single_line(&attached.client), span(now.millis_since(attached.since)))));
    }
    lines.into_iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect()
}

/// `text` with every line set in.
fn indented(text: &str) -> String {
    visible(text.trim_end()).lines().map(|line| format!("    {line}\n")).collect()
}

fn permission_body(request: &PermissionRequest) -> String {
    let mut body = indented(&request.title);
    if let Some(diff) = &request.diff {
        let shown: Vec<&str> = diff.lines().take(DIFF_MAX_LINES).collect();
        body.push_str(&indented(&shown.join("\n")));
        let left = diff.lines().count().saturating_sub(DIFF_MAX_LINES);
        if left > 0 {
            body.push_str(&format!("    … {left} more lines\n"));
        }
    }
    if !request.always.is_empty() {
        let wider: Vec<String> = request.always.iter().map(|pattern| single_line(pattern)).collect();
        body.push_str(&format!("    session or always would allow: {}\n", wider.join("  ")));
    }
    body
}

fn question_body(question: &Question) -> String {
    let mut body = indented(&question.text);
    for option in &question.options {
        let description = if option.description.is_empty() { String::new() } else { format!(": {}", single_line(&option.description)) };
        body.push_str(&format!("      - {}{description}\n", single_line(&option.label)));
    }
    if question.multiple {
        body.push_str("      (several may be chosen, separated by commas)\n");
    }
    if question.custom {
        body.push_str("      (or your own words)\n");
    }
    body
}

/// One request with the commands that answer it.
#[must_use]
pub fn pending(pending: &Pending) -> String {
    let session = short_id(&pending.session);
    let what = match &pending.request {
        PendingRequest::Permission(request) => single_line(&request.permission),
        PendingRequest::Question(_) => "question".into(),
    };
    let id = pending.request.id();
    let head = format!("{id}  {what}  in {session} {}\n", title(&pending.session_title, TITLE_COLUMNS));
    let (body, command) = match &pending.request {
        PendingRequest::Permission(request) => {
            (permission_body(request), format!("openagent permit {session} {id} once|session|always|reject"))
        }
        PendingRequest::Question(request) => {
            let answers = " ANSWER".repeat(request.questions.len().max(1));
            (request.questions.iter().map(question_body).collect(), format!("openagent answer {session} {id}{answers}"))
        }
    };
    format!("{head}{body}    answer: {command}\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::client::convert;
    use openagent_proto::v1;

    fn session(title: &str) -> SessionView {
        let wire = v1::Session {
            id: "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
            title: title.into(),
            status: v1::SessionStatus::Active.into(),
            model: "demo/tour".into(),
            ..Default::default()
        };
        convert::session(wire).unwrap()
    }

    #[test]
    fn a_session_is_one_line_whatever_its_title_holds() {
        let listed = table(&[session("evil\n\x1b[2Jtitle")], Timestamp::from_millis(60_000));
        assert_eq!(listed.lines().count(), 2);
        assert!(listed.contains("Q69G5FAV") && listed.contains("evil ^[[2Jtitle") && listed.contains("○ ready"), "{listed}");
        assert!(listed.trim_end().ends_with("1m"));
    }

    #[test]
    fn a_state_says_what_is_waited_for_and_how_old_it_is() {
        let now = Timestamp::from_millis(72_000);
        let mut shown = session("t");
        let instance = v1::Instance { id: "ins_01ARZ3NDEKTSV4RRFFQ69G5FAV".into(), ..Default::default() };
        let paused = v1::Instance { state: v1::InstanceState::Paused.into(), ..instance.clone() };
        let view = |instance: v1::Instance| {
            convert::session(v1::Session { id: shown.id.to_string(), instance: Some(instance), ..Default::default() }).unwrap().instance
        };
        let (paused, ended) = (view(paused), view(v1::Instance { state: v1::InstanceState::Terminated.into(), ..instance }));
        shown.queue_position = 2;
        assert_eq!(state(&shown, now), "◌ queued (2nd)");
        shown.queue_position = 0;
        shown.unreachable_since = Some(Timestamp::from_millis(60_000));
        assert_eq!(state(&shown, now), "~ unreachable for 12s");
        shown.unreachable_since = None;
        shown.status = Some(Status::Idle);
        assert_eq!(state(&shown, now), "z idle, no instance");
        shown.instance = paused;
        assert_eq!(state(&shown, now), "z idle, paused");
        shown.instance = ended;
        assert_eq!(state(&shown, now), "z idle, no instance");
    }

    #[test]
    fn a_failed_session_says_what_ended_it_and_what_helps_and_who_is_there() {
        let wire = v1::Session {
            id: "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
            status: v1::SessionStatus::Error.into(),
            fault: Some(v1::Fault { code: "INSTANCE_ENDED".into(), message: "the sandbox ended".into(), hint: String::new() }),
            instance: Some(v1::Instance {
                id: "ins_01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
                driver: "docker".into(),
                state: v1::InstanceState::Error.into(),
                exit_cause: "it ran out of memory and was killed".into(),
                exit_reason: v1::ExitReason::OutOfMemory.into(),
                ..Default::default()
            }),
            attached: vec![v1::Attached { client: "anna@laptop\n".into(), to: v1::AttachedTo::Terminal.into(), since: None }],
            ..Default::default()
        };
        let shown = block(&convert::session(wire).unwrap(), Timestamp::from_millis(60_000));
        assert!(shown.contains("hint         resume the session: ") && shown.contains("openagent new --memory SIZE\n"), "{shown}");
        assert!(shown.contains("error: it ran out of memory and was killed)\n"), "{shown}");
        assert!(shown.contains("attached     anna@laptop, in a terminal for 1m\n"), "{shown}");
    }

    #[test]
    fn a_request_shows_the_whole_command_and_how_to_answer() {
        let request = v1::PermissionRequest {
            id: "per_1".into(),
            conversation_id: "ses_1".into(),
            permission: "bash".into(),
            title: "git push\nrm -rf /\x1b[A".into(),
            always: vec!["git push *".into()],
            ..Default::default()
        };
        let wire = v1::Pending {
            session_id: "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
            session_title: String::new(),
            request: Some(v1::pending::Request::Permission(request)),
        };
        let shown = pending(&convert::pending(wire).unwrap());
        assert!(shown.contains("    git push\n    rm -rf /^[[A\n"), "{shown}");
        assert!(shown.contains("openagent permit Q69G5FAV per_1 once|session|always|reject"), "{shown}");
    }
}
