//! Recorded events.

use openagent_core::event::{
    AgentExit, AgentProcess, Busy, Event, EventKind, FileDiff, Message, Part, PartBody, Role, StepOutcome, TodoItem, ToolState, TurnOutcome,
};
use openagent_core::instance::{ExitCause, Instance, InstanceState};
use openagent_core::session::Step;
use openagent_proto::v1;
use serde_json::{Value, json};
use v1::event::Kind;

use super::{Unreadable, fault, optional_time, permission_request, question_request, response, some, status, time, usage};

/// A recorded event. What cannot be read becomes an unknown event at its place that says why.
#[must_use]
pub fn event(event: v1::Event) -> Event {
    let name = event.kind.as_ref().map_or("unknown", name);
    let kind = event.kind.ok_or(Unreadable::Unknown("its kind")).and_then(kind);
    let kind = kind
        .unwrap_or_else(|unreadable| EventKind::Unknown { name: name.to_owned(), raw: json!({ "unreadable": unreadable.to_string() }) });
    Event { seq: event.seq, at: time(event.created_at), kind }
}

const fn name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Session(_) => "session",
        Kind::Instance(_) => "instance",
        Kind::Step(_) => "step",
        Kind::Agent(_) => "agent",
        Kind::Busy(_) => "busy",
        Kind::TurnEnded(_) => "turn_ended",
        Kind::Message(_) => "message",
        Kind::MessageRemoved(_) => "message_removed",
        Kind::Part(_) => "part",
        Kind::PartRemoved(_) => "part_removed",
        Kind::Subagent(_) => "subagent",
        Kind::PermissionAsked(_) => "permission_asked",
        Kind::PermissionAnswered(_) => "permission_answered",
        Kind::QuestionAsked(_) => "question_asked",
        Kind::QuestionAnswered(_) => "question_answered",
        Kind::Todo(_) => "todo",
        Kind::Diff(_) => "diff",
        Kind::Usage(_) => "usage",
        Kind::Terminal(_) => "terminal",
        Kind::KeysUpdated(_) => "keys_updated",
        Kind::AgentError(_) => "agent_error",
        Kind::Gap(_) => "gap",
        Kind::Unknown(_) => "unknown",
        Kind::Title(_) => "title",
    }
}

fn kind(kind: Kind) -> Result<EventKind, Unreadable> {
    Ok(match kind {
        Kind::Session(session) => EventKind::Session {
            status: status(session.status()).ok_or(Unreadable::Unknown("its status"))?,
            fault: session.fault.map(fault),
            title: session.title,
        },
        Kind::Instance(changed) => {
            EventKind::Instance { instance: instance(changed.instance.ok_or(Unreadable::Unknown("the instance"))?)? }
        }
        Kind::Step(step) => step_event(step)?,
        Kind::Agent(agent) => EventKind::Agent { process: agent_process(agent)? },
        Kind::Busy(busy) => EventKind::Busy { busy: busy_state(busy)? },
        Kind::TurnEnded(ended) => EventKind::TurnEnded { outcome: turn_outcome(ended)? },
        Kind::Message(changed) => EventKind::Message { message: message(changed)? },
        Kind::MessageRemoved(removed) => EventKind::MessageRemoved { id: removed.id.parse()? },
        Kind::Part(changed) => EventKind::Part { part: part(changed)? },
        Kind::PartRemoved(removed) => EventKind::PartRemoved { message: removed.message_id.parse()?, id: removed.id.parse()? },
        Kind::Subagent(subagent) => EventKind::Subagent {
            conversation: subagent.conversation_id.parse()?,
            parent: subagent.parent_id.parse()?,
            title: subagent.title,
        },
        Kind::PermissionAsked(request) => EventKind::PermissionAsked { request: permission_request(request)? },
        Kind::PermissionAnswered(answered) => EventKind::PermissionAnswered {
            response: response(answered.response()).ok_or(Unreadable::Unknown("the answer"))?,
            id: answered.id.parse()?,
            by: answered.by,
            reason: some(answered.reason),
        },
        Kind::QuestionAsked(request) => EventKind::QuestionAsked { request: question_request(request)? },
        Kind::QuestionAnswered(answered) => EventKind::QuestionAnswered {
            id: answered.id.parse()?,
            answers: (!answered.dismissed).then(|| answered.answers.into_iter().map(|answer| answer.chosen).collect()),
            by: answered.by,
        },
        Kind::Todo(todo) => EventKind::Todo { items: todo.items.into_iter().map(todo_item).collect() },
        Kind::Diff(diff) => EventKind::Diff { files: diff.files.into_iter().map(file_diff).collect() },
        Kind::Usage(spent) => {
            EventKind::Usage { message: spent.message_id.parse()?, provider: spent.provider, model: spent.model, usage: usage(spent.usage) }
        }
        Kind::Terminal(terminal) => EventKind::Terminal { id: terminal.id.parse()?, exit_code: terminal.exit_code },
        Kind::KeysUpdated(keys) => EventKind::KeysUpdated { providers: keys.providers },
        Kind::AgentError(error) => EventKind::AgentError {
            name: error.name,
            message: error.message,
            status_code: error.status_code.and_then(|code| u16::try_from(code).ok()),
            hint: some(error.hint),
        },
        Kind::Title(title) => EventKind::Title { title: title.title },
        Kind::Gap(gap) => EventKind::Gap { reason: gap.reason },
        Kind::Unknown(unknown) => EventKind::Unknown { name: unknown.name, raw: value(unknown.raw_json) },
    })
}

/// JSON as it came; a text that is none is kept as a text.
fn value(json: String) -> Value {
    serde_json::from_str(&json).unwrap_or(Value::String(json))
}

fn instance(instance: v1::Instance) -> Result<Instance, Unreadable> {
    Ok(Instance {
        id: instance.id.parse()?,
        state: match instance.state() {
            v1::InstanceState::Provisioning => InstanceState::Provisioning,
            v1::InstanceState::Running => InstanceState::Running,
            v1::InstanceState::Paused => InstanceState::Paused,
            v1::InstanceState::Terminated => InstanceState::Terminated,
            v1::InstanceState::Error => InstanceState::Error { cause: exit_cause(&instance)? },
            v1::InstanceState::Unspecified => return Err(Unreadable::Unknown("the instance's state")),
        },
        driver: instance.driver,
        created_at: time(instance.created_at),
        running_at: optional_time(instance.running_at),
        ended_at: optional_time(instance.ended_at),
    })
}

/// What ended an instance that ended by itself.
pub(super) fn exit_cause(instance: &v1::Instance) -> Result<ExitCause, Unreadable> {
    Ok(match instance.exit_reason() {
        v1::ExitReason::Exited => ExitCause::Exited { code: instance.exit_code },
        v1::ExitReason::Killed => ExitCause::Killed { signal: i32::try_from(instance.exit_code).unwrap_or_default() },
        v1::ExitReason::OutOfMemory => ExitCause::OutOfMemory,
        v1::ExitReason::Removed => ExitCause::Removed,
        v1::ExitReason::NotStarted => ExitCause::NotStarted,
        v1::ExitReason::EngineGone => ExitCause::EngineGone,
        v1::ExitReason::EngineStopped => ExitCause::EngineStopped,
        v1::ExitReason::Unresponsive => ExitCause::Unresponsive,
        v1::ExitReason::Unwatched => ExitCause::Unwatched,
        v1::ExitReason::Unspecified => return Err(Unreadable::Unknown("what ended the instance")),
    })
}

fn step_event(event: v1::StepEvent) -> Result<EventKind, Unreadable> {
    use v1::step_event::Outcome;
    let step = Step::LADDER.into_iter().find(|step| step.name() == event.step).ok_or(Unreadable::Unknown("the step"))?;
    let outcome = match event.outcome.ok_or(Unreadable::Unknown("the step's outcome"))? {
        Outcome::Started(_) => StepOutcome::Started,
        Outcome::Done(done) => StepOutcome::Done { millis: done.millis },
        Outcome::Failed(failed) => StepOutcome::Failed { fault: fault(failed) },
    };
    Ok(EventKind::Step { step, outcome })
}

fn agent_process(event: v1::AgentEvent) -> Result<AgentProcess, Unreadable> {
    use v1::agent_event::Process;
    Ok(match event.process.ok_or(Unreadable::Unknown("the agent's state"))? {
        Process::Ready(ready) => AgentProcess::Ready { version: ready.version },
        Process::Exited(exited) => AgentProcess::Exited {
            code: exited.code,
            restart_in_millis: exited.restart_in_millis,
            cause: match exited.cause() {
                v1::AgentExitCause::OutOfMemory => AgentExit::OutOfMemory,
                v1::AgentExitCause::Unresponsive => AgentExit::Unresponsive,
                v1::AgentExitCause::Unspecified => AgentExit::Ended,
            },
        },
    })
}

fn busy_state(event: v1::BusyEvent) -> Result<Busy, Unreadable> {
    use v1::busy_event::Busy as Wire;
    Ok(match event.busy.ok_or(Unreadable::Unknown("what the agent does"))? {
        Wire::Working(_) => Busy::Working,
        Wire::Retrying(retrying) => {
            Busy::Retrying { attempt: retrying.attempt, message: retrying.message, next_at: time(retrying.next_at) }
        }
        Wire::Rest(_) => Busy::Rest,
    })
}

fn turn_outcome(event: v1::TurnEndedEvent) -> Result<TurnOutcome, Unreadable> {
    Ok(match event.outcome() {
        v1::TurnOutcome::Completed => TurnOutcome::Completed,
        v1::TurnOutcome::Aborted => TurnOutcome::Aborted,
        v1::TurnOutcome::Failed => TurnOutcome::Failed { message: event.message },
        v1::TurnOutcome::Interrupted => TurnOutcome::Interrupted,
        v1::TurnOutcome::Unspecified => return Err(Unreadable::Unknown("the turn's outcome")),
    })
}

fn message(message: v1::Message) -> Result<Message, Unreadable> {
    Ok(Message {
        role: match message.role() {
            v1::Role::User => Role::User,
            v1::Role::Assistant => Role::Assistant,
            v1::Role::Unspecified => return Err(Unreadable::Unknown("the message's role")),
        },
        id: message.id.parse()?,
        conversation: message.conversation_id.parse()?,
        parent: some(message.parent_id).map(|id| id.parse()).transpose()?,
        agent: message.agent,
        model: message.model,
        created_at: time(message.created_at),
        completed_at: optional_time(message.completed_at),
        error: message.error,
        summary: message.summary,
    })
}

fn part(part: v1::Part) -> Result<Part, Unreadable> {
    let body = part.body.map_or_else(
        || PartBody::Unknown { name: "unknown".into(), raw: json!({ "unreadable": "its kind is absent or unknown" }) },
        part_body,
    );
    Ok(Part { id: part.id.parse()?, message: part.message_id.parse()?, conversation: part.conversation_id.parse()?, body })
}

fn part_body(body: v1::part::Body) -> PartBody {
    use v1::part::Body;
    match body {
        Body::Text(text) => PartBody::Text { text: text.text, done: text.done, synthetic: text.synthetic },
        Body::Reasoning(reasoning) => PartBody::Reasoning { text: reasoning.text, done: reasoning.done },
        Body::Tool(call) => match call.state {
            Some(state) => PartBody::Tool { tool: call.tool, state: tool_state(state) },
            None => PartBody::Unknown { name: call.tool, raw: json!({ "unreadable": "the call's state is absent or unknown" }) },
        },
        Body::File(file) => PartBody::File { mime: file.mime, name: file.name },
        Body::Patch(patch) => PartBody::Patch { files: patch.files },
        Body::Subtask(subtask) => PartBody::Subtask { agent: subtask.agent, description: subtask.description },
        Body::Mention(mention) => PartBody::Mention { agent: mention.agent },
        Body::Compaction(compaction) => PartBody::Compaction { auto: compaction.auto },
        Body::StepStart(_) => PartBody::StepStart,
        Body::StepFinish(finish) => {
            let spent = usage(finish.usage);
            PartBody::StepFinish { reason: finish.reason, tokens: spent.tokens, cost_micros: spent.cost_micros }
        }
        Body::Unknown(unknown) => PartBody::Unknown { name: unknown.name, raw: value(unknown.raw_json) },
    }
}

fn tool_state(state: v1::tool_part::State) -> ToolState {
    use v1::tool_part::State;
    match state {
        State::Pending(_) => ToolState::Pending,
        State::Running(running) => ToolState::Running { input: value(running.input_json), title: running.title, output: running.output },
        State::Completed(completed) => ToolState::Completed {
            input: value(completed.input_json),
            title: completed.title,
            output: completed.output,
            exit_code: completed.exit_code,
            diff: completed.diff,
            millis: completed.millis,
        },
        State::Error(error) => ToolState::Error { input: value(error.input_json), error: error.error },
    }
}

fn todo_item(item: v1::TodoItem) -> TodoItem {
    TodoItem { content: item.content, status: item.status, priority: item.priority }
}

fn file_diff(file: v1::FileDiff) -> FileDiff {
    FileDiff { path: file.path, additions: file.additions, deletions: file.deletions, status: file.status, patch: file.patch }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(kind: Option<Kind>) -> EventKind {
        let wire = v1::Event { seq: 7, created_at: None, kind };
        let event = event(wire);
        assert_eq!(event.seq, 7, "a recorded event keeps its place");
        event.kind
    }

    #[test]
    fn what_this_version_does_not_know_becomes_an_unknown_event_at_its_place() {
        let hostile: Vec<(Option<Kind>, &str)> = vec![
            (None, "unknown"),
            (Some(Kind::Session(v1::SessionEvent { status: 42, ..Default::default() })), "session"),
            (Some(Kind::Instance(v1::InstanceEvent::default())), "instance"),
            (Some(Kind::Step(v1::StepEvent { step: "teleport".into(), outcome: None })), "step"),
            (Some(Kind::Step(v1::StepEvent { step: "image".into(), outcome: None })), "step"),
            (Some(Kind::Agent(v1::AgentEvent::default())), "agent"),
            (Some(Kind::Busy(v1::BusyEvent::default())), "busy"),
            (Some(Kind::TurnEnded(v1::TurnEndedEvent { outcome: -1, ..Default::default() })), "turn_ended"),
            (Some(Kind::Message(v1::Message { role: 9, id: "msg_1".into(), ..Default::default() })), "message"),
            (Some(Kind::Message(v1::Message { role: 1, id: "../x".into(), ..Default::default() })), "message"),
            (Some(Kind::Part(v1::Part::default())), "part"),
            (
                Some(Kind::PermissionAnswered(v1::PermissionAnsweredEvent { id: "per_1".into(), response: 8, ..Default::default() })),
                "permission_answered",
            ),
            (Some(Kind::Terminal(v1::TerminalEvent::default())), "terminal"),
        ];
        for (kind, expected) in hostile {
            match converted(kind) {
                EventKind::Unknown { name, raw } => {
                    assert_eq!(name, expected);
                    assert!(raw["unreadable"].is_string(), "{expected}");
                }
                other => panic!("{expected} became {other:?}"),
            }
        }
    }

    #[test]
    fn a_part_of_an_unknown_kind_is_still_a_part() {
        let wire = v1::Part { id: "prt_1".into(), message_id: "msg_1".into(), conversation_id: "ses_1".into(), body: None };
        match converted(Some(Kind::Part(wire))) {
            EventKind::Part { part } => assert!(matches!(part.body, PartBody::Unknown { .. })),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tool_arguments_that_are_no_json_are_kept_as_text() {
        assert_eq!(value("{\"a\":1}".into()), json!({ "a": 1 }));
        assert_eq!(value("{broken".into()), json!("{broken"));
    }
}
