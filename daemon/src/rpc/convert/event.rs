//! Events, domain to wire.

use openagent_core::event::{
    AgentExit, AgentProcess, Busy, Event, EventKind, Message, Part, PartBody, PartDelta, Role, StepOutcome, ToolState, TurnOutcome,
};
use openagent_core::permission::{PermissionRequest, QuestionRequest};
use openagent_core::usage::Usage;
use openagent_proto::v1;

use crate::event::Snapshot;

use super::{fault, instance, permission_response, status, timestamp, usage};

/// A recorded event.
#[must_use]
pub fn event(event: Event) -> v1::Event {
    v1::Event { seq: event.seq, created_at: Some(timestamp(event.at)), kind: Some(kind(event.kind)) }
}

/// What is left of the older part of a history.
#[must_use]
pub const fn snapshot(snapshot: Snapshot) -> v1::HistorySnapshot {
    v1::HistorySnapshot { floor_seq: snapshot.floor, kept: snapshot.kept, dropped: snapshot.dropped }
}

/// Letters of a part that is still being written.
#[must_use]
pub fn delta(delta: PartDelta) -> v1::PartDelta {
    v1::PartDelta { message_id: delta.message.into(), part_id: delta.part.into(), offset_bytes: delta.offset, text: delta.text }
}

fn kind(kind: EventKind) -> v1::event::Kind {
    use v1::event::Kind;
    match kind {
        EventKind::Session { status: new, fault: why, title } => {
            Kind::Session(v1::SessionEvent { status: status(new).into(), fault: why.as_ref().map(fault), title })
        }
        EventKind::Instance { instance: new } => Kind::Instance(v1::InstanceEvent { instance: Some(instance(&new)) }),
        EventKind::Step { step, outcome } => {
            use v1::step_event::Outcome;
            let outcome = match outcome {
                StepOutcome::Started => Outcome::Started(v1::StepStarted {}),
                StepOutcome::Done { millis } => Outcome::Done(v1::StepDone { millis }),
                StepOutcome::Failed { fault: why } => Outcome::Failed(fault(&why)),
            };
            Kind::Step(v1::StepEvent { step: step.name().to_owned(), outcome: Some(outcome) })
        }
        EventKind::Agent { process } => {
            use v1::agent_event::Process;
            let process = match process {
                AgentProcess::Ready { version } => Process::Ready(v1::AgentReady { version }),
                AgentProcess::Exited { code, restart_in_millis, cause } => {
                    let cause = match cause {
                        AgentExit::Ended => v1::AgentExitCause::Unspecified,
                        AgentExit::OutOfMemory => v1::AgentExitCause::OutOfMemory,
                        AgentExit::Unresponsive => v1::AgentExitCause::Unresponsive,
                    };
                    Process::Exited(v1::AgentExited { code, restart_in_millis, cause: cause.into() })
                }
            };
            Kind::Agent(v1::AgentEvent { process: Some(process) })
        }
        EventKind::Busy { busy } => Kind::Busy(v1::BusyEvent { busy: Some(self::busy(busy)) }),
        EventKind::TurnEnded { outcome } => Kind::TurnEnded(turn_ended(outcome)),
        EventKind::Title { title } => Kind::Title(v1::TitleEvent { title }),
        EventKind::Message { message } => Kind::Message(self::message(message)),
        EventKind::MessageRemoved { id } => Kind::MessageRemoved(v1::MessageRemovedEvent { id: id.into() }),
        EventKind::Part { part } => Kind::Part(self::part(part)),
        EventKind::PartRemoved { message, id } => Kind::PartRemoved(v1::PartRemovedEvent { message_id: message.into(), id: id.into() }),
        EventKind::Subagent { conversation, parent, title } => {
            Kind::Subagent(v1::SubagentEvent { conversation_id: conversation.into(), parent_id: parent.into(), title })
        }
        EventKind::PermissionAsked { request } => Kind::PermissionAsked(permission_request(request)),
        EventKind::PermissionAnswered { id, response, by, reason } => Kind::PermissionAnswered(v1::PermissionAnsweredEvent {
            id: id.into(),
            response: permission_response(response).into(),
            by,
            reason: reason.unwrap_or_default(),
        }),
        EventKind::QuestionAsked { request } => Kind::QuestionAsked(question_request(request)),
        EventKind::QuestionAnswered { id, answers, by } => Kind::QuestionAnswered(v1::QuestionAnsweredEvent {
            id: id.into(),
            dismissed: answers.is_none(),
            answers: answers.unwrap_or_default().into_iter().map(|chosen| v1::QuestionAnswer { chosen }).collect(),
            by,
        }),
        EventKind::Todo { items } => Kind::Todo(v1::TodoEvent {
            items: items
                .into_iter()
                .map(|item| v1::TodoItem { content: item.content, status: item.status, priority: item.priority })
                .collect(),
        }),
        EventKind::Diff { files } => Kind::Diff(v1::DiffEvent {
            files: files
                .into_iter()
                .map(|file| v1::FileDiff {
                    path: file.path,
                    additions: file.additions,
                    deletions: file.deletions,
                    status: file.status,
                    patch: file.patch,
                })
                .collect(),
        }),
        EventKind::Usage { message, provider, model, usage: sum } => {
            Kind::Usage(v1::UsageEvent { message_id: message.into(), provider, model, usage: Some(usage(&sum)) })
        }
        EventKind::Terminal { id, exit_code } => Kind::Terminal(v1::TerminalEvent { id: id.into(), exit_code }),
        EventKind::KeysUpdated { providers } => Kind::KeysUpdated(v1::KeysUpdatedEvent { providers }),
        EventKind::AgentError { name, message, status_code, hint } => {
            Kind::AgentError(v1::AgentErrorEvent { name, message, status_code: status_code.map(u32::from), hint: hint.unwrap_or_default() })
        }
        EventKind::Gap { reason } => Kind::Gap(v1::GapEvent { reason }),
        EventKind::Unknown { name, raw } => Kind::Unknown(unknown(name, &raw)),
    }
}

fn unknown(name: String, raw: &serde_json::Value) -> v1::UnknownEvent {
    v1::UnknownEvent { name, raw_json: raw.to_string() }
}

fn busy(busy: Busy) -> v1::busy_event::Busy {
    use v1::busy_event::Busy as Wire;
    match busy {
        Busy::Working => Wire::Working(v1::Working {}),
        Busy::Retrying { attempt, message, next_at } => {
            Wire::Retrying(v1::Retrying { attempt, message, next_at: Some(timestamp(next_at)) })
        }
        Busy::Rest => Wire::Rest(v1::AtRest {}),
    }
}

fn turn_ended(outcome: TurnOutcome) -> v1::TurnEndedEvent {
    let (outcome, message) = match outcome {
        TurnOutcome::Completed => (v1::TurnOutcome::Completed, String::new()),
        TurnOutcome::Aborted => (v1::TurnOutcome::Aborted, String::new()),
        TurnOutcome::Failed { message } => (v1::TurnOutcome::Failed, message),
        TurnOutcome::Interrupted => (v1::TurnOutcome::Interrupted, String::new()),
    };
    v1::TurnEndedEvent { outcome: outcome.into(), message }
}

fn message(message: Message) -> v1::Message {
    let role = match message.role {
        Role::User => v1::Role::User,
        Role::Assistant => v1::Role::Assistant,
    };
    v1::Message {
        id: message.id.into(),
        conversation_id: message.conversation.into(),
        role: role.into(),
        parent_id: message.parent.map(Into::into).unwrap_or_default(),
        agent: message.agent,
        model: message.model,
        created_at: Some(timestamp(message.created_at)),
        completed_at: message.completed_at.map(timestamp),
        error: message.error,
        summary: message.summary,
    }
}

fn part(part: Part) -> v1::Part {
    use v1::part::Body;
    let body = match part.body {
        PartBody::Text { text, done, synthetic } => Body::Text(v1::TextPart { text, done, synthetic }),
        PartBody::Reasoning { text, done } => Body::Reasoning(v1::ReasoningPart { text, done }),
        PartBody::Tool { tool, state } => Body::Tool(v1::ToolPart { tool, state: Some(tool_state(state)) }),
        PartBody::File { mime, name } => Body::File(v1::FilePart { mime, name }),
        PartBody::Patch { files } => Body::Patch(v1::PatchPart { files }),
        PartBody::Subtask { agent, description } => Body::Subtask(v1::SubtaskPart { agent, description }),
        PartBody::Mention { agent } => Body::Mention(v1::MentionPart { agent }),
        PartBody::Compaction { auto } => Body::Compaction(v1::CompactionPart { auto }),
        PartBody::StepStart => Body::StepStart(v1::StepStartPart {}),
        PartBody::StepFinish { reason, tokens, cost_micros } => {
            Body::StepFinish(v1::StepFinishPart { reason, usage: Some(usage(&Usage { tokens, cost_micros })) })
        }
        PartBody::Unknown { name, raw } => Body::Unknown(unknown(name, &raw)),
    };
    v1::Part { id: part.id.into(), message_id: part.message.into(), conversation_id: part.conversation.into(), body: Some(body) }
}

fn tool_state(state: ToolState) -> v1::tool_part::State {
    use v1::tool_part::State;
    match state {
        ToolState::Pending => State::Pending(v1::ToolPending {}),
        ToolState::Running { input, title, output } => State::Running(v1::ToolRunning { input_json: input.to_string(), title, output }),
        ToolState::Completed { input, title, output, exit_code, diff, millis } => {
            State::Completed(v1::ToolCompleted { input_json: input.to_string(), title, output, exit_code, diff, millis })
        }
        ToolState::Error { input, error } => State::Error(v1::ToolError { input_json: input.to_string(), error }),
    }
}

/// A permission request.
#[must_use]
pub fn permission_request(request: PermissionRequest) -> v1::PermissionRequest {
    v1::PermissionRequest {
        id: request.id.into(),
        conversation_id: request.conversation.into(),
        permission: request.permission,
        title: request.title,
        diff: request.diff,
        patterns: request.patterns,
        always: request.always,
        asked_at: Some(timestamp(request.asked_at)),
    }
}

/// A question.
#[must_use]
pub fn question_request(request: QuestionRequest) -> v1::QuestionRequest {
    v1::QuestionRequest {
        id: request.id.into(),
        conversation_id: request.conversation.into(),
        questions: request
            .questions
            .into_iter()
            .map(|question| v1::Question {
                header: question.header,
                text: question.text,
                options: question
                    .options
                    .into_iter()
                    .map(|option| v1::QuestionOption { label: option.label, description: option.description })
                    .collect(),
                multiple: question.multiple,
                custom: question.custom,
            })
            .collect(),
        asked_at: Some(timestamp(request.asked_at)),
    }
}
