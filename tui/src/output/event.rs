//! Events as lines of a log for people. `None`: nothing that a reader of a log wants.

use openagent_core::event::{AgentProcess, Busy, Event, EventKind, Part, PartBody, Role, StepOutcome, ToolState, TurnOutcome};
use openagent_core::instance::{ExitCause, Instance, InstanceState};
use openagent_core::permission::PermissionResponse;

use super::quantity::{cost, count, took};
use super::text::{shortened, single_line, visible};

/// Columns of a tool's description.
const TITLE_COLUMNS: usize = 100;

/// The log line of an event: its number, its time of day (UTC) and what happened. Texts of several lines are set in.
#[must_use]
pub fn line(event: &Event) -> Option<String> {
    let what = what(&event.kind)?;
    let at = event.at.to_string();
    let time = at.get(11..19).unwrap_or(&at);
    let mut lines = what.lines();
    let mut text = format!("{:>5} {time}  {}", event.seq, lines.next().unwrap_or_default());
    for more in lines {
        text.push_str("\n                 ");
        text.push_str(more);
    }
    Some(text)
}

fn what(kind: &EventKind) -> Option<String> {
    Some(match kind {
        EventKind::Session { status, fault, .. } => {
            format!(
                "session is {}{}",
                status.name(),
                fault.as_ref().map_or(String::new(), |fault| format!(": {}", single_line(&fault.message)))
            )
        }
        EventKind::Step { step, outcome } => step_line(step.name(), outcome)?,
        EventKind::Agent { process: AgentProcess::Ready { version } } => format!("agent is ready ({})", single_line(version)),
        EventKind::Agent { process: AgentProcess::Exited { code, restart_in_millis, cause } } => match restart_in_millis {
            Some(millis) => format!("agent {}, starts again in {}", cause.sentence(*code), took(*millis)),
            None => format!("agent {} and was given up", cause.sentence(*code)),
        },
        EventKind::Busy { busy: Busy::Retrying { attempt, message, .. } } => {
            format!("model call failed ({attempt}), will be tried again: {}", single_line(message))
        }
        EventKind::TurnEnded { outcome } => match outcome {
            TurnOutcome::Completed => "turn completed".into(),
            TurnOutcome::Aborted => "turn aborted".into(),
            TurnOutcome::Failed { message } => format!("turn failed: {}", single_line(message)),
            TurnOutcome::Interrupted => "turn interrupted: the agent's process ended".into(),
        },
        EventKind::Message { message } => match (&message.error, message.role) {
            (Some(error), _) => format!("message failed: {}", single_line(error)),
            (None, Role::User) => "user:".into(),
            (None, Role::Assistant) => return None,
        },
        EventKind::Part { part } => part_lines(part)?,
        EventKind::Subagent { title, .. } => format!("subagent: {}", shortened(title, TITLE_COLUMNS)),
        EventKind::PermissionAsked { request } => {
            format!("asks for {} ({}):\n{}", single_line(&request.permission), request.id, visible(&request.title))
        }
        EventKind::PermissionAnswered { id, response, by, reason } => {
            let reason = reason.as_ref().map_or(String::new(), |reason| format!(": {}", single_line(reason)));
            format!("{id} answered {} by {}{reason}", response_name(*response), single_line(by))
        }
        EventKind::QuestionAsked { request } => {
            let questions: Vec<_> = request.questions.iter().map(|question| visible(&question.text)).collect();
            format!("asks a question ({}):\n{}", request.id, questions.join("\n"))
        }
        EventKind::QuestionAnswered { id, answers, by } => match answers {
            Some(answers) => {
                let chosen: Vec<String> = answers.iter().map(|chosen| single_line(&chosen.join(", "))).collect();
                format!("{id} answered by {}: {}", single_line(by), chosen.join("; "))
            }
            None => format!("{id} dismissed by {}", single_line(by)),
        },
        EventKind::Todo { items } => {
            let done = items.iter().filter(|item| item.status == "completed").count();
            format!("todo: {done} of {} done", items.len())
        }
        EventKind::Diff { files } if !files.is_empty() => {
            let (plus, minus) = files.iter().fold((0, 0), |(plus, minus), file| (plus + file.additions, minus + file.deletions));
            format!("changed {} files (+{plus} -{minus})", files.len())
        }
        EventKind::Usage { provider, model, usage, .. } => {
            format!("{}/{}: {} tokens, {}", single_line(provider), single_line(model), count(usage.tokens.total()), cost(usage.cost_micros))
        }
        EventKind::Terminal { id, exit_code: None } => format!("terminal {id} opened"),
        EventKind::Terminal { id, exit_code: Some(code) } => format!("terminal {id} ended with code {code}"),
        EventKind::KeysUpdated { providers } if providers.is_empty() => "provider keys: none".into(),
        EventKind::KeysUpdated { providers } => format!("provider keys: {}", single_line(&providers.join(" "))),
        EventKind::AgentError { message, .. } => format!("error: {}", visible(message)),
        EventKind::Gap { reason } => format!("events are missing here: {}", single_line(reason)),
        EventKind::Title { title } => format!("title: {}", single_line(title)),
        EventKind::Unknown { name, .. } => format!("unknown event {}", single_line(name)),
        EventKind::Instance { instance: Instance { state: InstanceState::Error { cause }, .. } } if *cause != ExitCause::NotStarted => {
            format!("the sandbox ended: {cause}")
        }
        EventKind::Instance { .. }
        | EventKind::Busy { busy: Busy::Working | Busy::Rest }
        | EventKind::MessageRemoved { .. }
        | EventKind::PartRemoved { .. }
        | EventKind::Diff { .. } => return None,
    })
}

fn step_line(step: &str, outcome: &StepOutcome) -> Option<String> {
    match outcome {
        StepOutcome::Started => None,
        StepOutcome::Done { millis } => Some(format!("{step}: {}", took(*millis))),
        StepOutcome::Failed { fault } => Some(format!("{step} failed: {}", single_line(&fault.message))),
    }
}

fn part_lines(part: &Part) -> Option<String> {
    Some(match &part.body {
        PartBody::Text { text, done: true, synthetic: false } if !text.is_empty() => visible(text).into_owned(),
        PartBody::Reasoning { text, done: true } if !text.is_empty() => format!("(thinks) {}", visible(text)),
        PartBody::Tool { tool, state } => tool_line(tool, state)?,
        PartBody::File { name, .. } => format!("file: {}", single_line(name)),
        PartBody::Subtask { agent, description } => format!("subtask for {}: {}", single_line(agent), single_line(description)),
        PartBody::Compaction { .. } => "conversation compacted".into(),
        PartBody::Unknown { name, .. } => format!("unknown part {}", single_line(name)),
        PartBody::Text { .. }
        | PartBody::Reasoning { .. }
        | PartBody::Patch { .. }
        | PartBody::Mention { .. }
        | PartBody::StepStart
        | PartBody::StepFinish { .. } => return None,
    })
}

/// A tool call that ended; `None` before that.
#[must_use]
pub fn tool_line(tool: &str, state: &ToolState) -> Option<String> {
    let tool = single_line(tool);
    match state {
        ToolState::Pending | ToolState::Running { .. } => None,
        ToolState::Completed { title, exit_code, millis, .. } => {
            let code = exit_code.filter(|code| *code != 0).map_or(String::new(), |code| format!(", exit code {code}"));
            Some(format!("[{tool}] {} ({}{code})", shortened(title, TITLE_COLUMNS), took(*millis)))
        }
        ToolState::Error { error, .. } => Some(format!("[{tool}] failed: {}", shortened(error, TITLE_COLUMNS))),
    }
}

/// The answer's name on the command line.
#[must_use]
pub const fn response_name(response: PermissionResponse) -> &'static str {
    match response {
        PermissionResponse::Once => "once",
        PermissionResponse::Session => "session",
        PermissionResponse::Always => "always",
        PermissionResponse::Reject => "reject",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openagent_core::time::Timestamp;

    #[test]
    fn a_log_line_names_number_and_time_and_is_safe() {
        let kind = EventKind::AgentError { name: "X".into(), message: "bad\x1b[2J\nthing".into(), status_code: None, hint: None };
        let event = Event { seq: 12, at: Timestamp::from_millis(1_795_336_693_531), kind };
        assert_eq!(line(&event).as_deref(), Some("   12 08:38:13  error: bad^[[2J\n                 thing"));
    }

    #[test]
    fn a_step_is_told_once_it_is_done() {
        assert_eq!(step_line("image", &StepOutcome::Started), None);
        assert_eq!(step_line("image", &StepOutcome::Done { millis: 1500 }).as_deref(), Some("image: 1.5 s"));
    }
}
