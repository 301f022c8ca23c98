//! The light stand-in for OpenCode tells the same as the real one: one story, both agents, the same kinds of events.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_tests::harness::instance::{Permissions, Who};
use openagent_tests::harness::witness::Witness;
use openagent_tests::harness::{CANARY, Driver, PATIENCE, World};

const MODEL: &str = "scripted/scripted-large";

/// What an event tells, without what differs from run to run.
fn sort(event: &v1::Event) -> Option<String> {
    let kind = event.kind.as_ref()?;
    Some(match kind {
        Kind::Message(message) => {
            format!("message {} {} {}", message.role().as_str_name(), message.completed_at.is_some(), message.error.is_some())
        }
        Kind::Part(part) => match part.body.as_ref()? {
            v1::part::Body::Text(text) => format!("text {}", text.done),
            v1::part::Body::Tool(tool) => match tool.state.as_ref()? {
                v1::tool_part::State::Pending(_) => format!("{} pending", tool.tool),
                v1::tool_part::State::Running(_) => format!("{} running", tool.tool),
                v1::tool_part::State::Completed(done) => format!("{} completed {:?} {:?}", tool.tool, done.exit_code, done.output),
                v1::tool_part::State::Error(_) => format!("{} error", tool.tool),
            },
            v1::part::Body::StepStart(_) => "step-start".to_owned(),
            v1::part::Body::StepFinish(step) => format!("step-finish {}", step.reason),
            other => format!("part {other:?}"),
        },
        Kind::Busy(busy) => format!("busy {:?}", busy.busy),
        Kind::TurnEnded(end) => format!("turn {}", end.outcome().as_str_name()),
        Kind::PermissionAsked(request) => format!("asked {} {}", request.permission, request.title),
        Kind::PermissionAnswered(answer) => format!("answered {} {}", answer.response().as_str_name(), answer.by),
        Kind::QuestionAsked(request) => format!("question {}", request.questions.len()),
        Kind::QuestionAnswered(answer) => format!("question answered {}", answer.by),
        Kind::Title(_) => "title".to_owned(),
        Kind::Usage(_) => "usage".to_owned(),
        Kind::Unknown(unknown) => format!("unknown {}", unknown.name),
        Kind::AgentError(error) => format!("agent error {}", error.name),
        // How long the real one takes to start is another matter, and an exit's pause with it.
        _ => return None,
    })
}

/// Prompts, streams, asks, is denied, is aborted, dies and comes back; gives what was told.
async fn story(world: &mut World) -> BTreeSet<String> {
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active(MODEL).await;
    let before = Permissions::of(world, &id).await;

    let end = clients.turn(&id, &mut events, "#echo one two three").await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{end:?}");
    assert_eq!(events.answer().trim(), "one two three");
    // Slow enough that nobody can be told of the whole part at once.
    clients.turn(&id, &mut events, "#slow 50 10").await;
    assert!(events.pieces > 0, "letters come");
    let usage = clients.get(&id).await.usage.expect("it was counted");
    assert!(usage.cost_micros > 0 && usage.tokens.is_some_and(|tokens| tokens.input > 0), "{usage:?}");

    clients.prompt(&id, "#bash echo from-the-tool").await;
    let request = events.until_asked().await;
    assert!(request.title.contains("echo from-the-tool"), "{request:?}");
    clients.permit(&id, &request.id, v1::PermissionResponse::Once).await;
    assert_eq!(events.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
    clients.prompt(&id, "#bash echo never").await;
    let request = events.until_asked().await;
    clients.permit(&id, &request.id, v1::PermissionResponse::Reject).await;
    events.until_turn_ended().await;

    clients.prompt(&id, "#slow 20 2000").await;
    while events.pieces < 30 {
        events.next(PATIENCE).await;
    }
    clients.session.abort(v1::AbortRequest { session_id: id.clone() }).await.expect("the turn is aborted");
    assert_eq!(events.until_turn_ended().await.outcome(), v1::TurnOutcome::Aborted);

    clients.prompt(&id, "#bash echo interrupted").await;
    events.until_asked().await;
    world.signal_to(&id, Who::Agent, Signal::SIGKILL).await;
    assert_eq!(events.until_turn_ended().await.outcome(), v1::TurnOutcome::Interrupted);
    events
        .until("an agent that is ready again", |kind| match kind {
            Kind::Agent(agent) => matches!(agent.process, Some(v1::agent_event::Process::Ready(_))).then_some(()),
            _ => None,
        })
        .await;
    Permissions::of(world, &id).await.must_not_be_wider_than(&before);
    let end = clients.turn(&id, &mut events, "#echo back again").await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{end:?}");
    assert_eq!(events.answer().trim(), "back again");

    let mut witness = Witness::of(&id);
    witness.connect(&mut clients).await;
    while !witness.seen().contains_key(&events.seen.last().map_or(0, |event| event.seq)) {
        witness.until("the history", |_| Some(())).await;
    }
    world.kill().await;
    witness.until_broken().await;
    world.start().await;
    let mut clients = world.clients().await;
    witness.connect(&mut clients).await;
    clients.prompt(&id, "#echo after the daemon").await;
    assert_eq!(witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
    let history = witness.judge(&mut clients).await;
    world.until_no_orphans(PATIENCE).await;
    history.iter().filter_map(sort).collect()
}

#[tokio::test]
async fn the_stand_in_tells_what_the_real_agent_tells() {
    let mut light = World::light().await;
    light.start().await;
    light.set_keys(CANARY).await;
    let told = story(&mut light).await;
    light.end().await;
    let mut real = World::with_keys(Driver::Local).await;
    let wanted = story(&mut real).await;
    real.end().await;
    assert_eq!(told, wanted);
}

#[tokio::test]
async fn a_question_is_asked_and_a_prompt_waits_for_a_file() {
    let mut world = World::light().await;
    world.start().await;
    world.set_keys(CANARY).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active(MODEL).await;
    clients.prompt(&id, "#question").await;
    let asked = events
        .until("a question", |kind| match kind {
            Kind::QuestionAsked(request) => Some(request.clone()),
            _ => None,
        })
        .await;
    let answers = vec![v1::QuestionAnswer { chosen: vec![asked.questions[0].options[0].label.clone()] }];
    let answer =
        v1::AnswerQuestionRequest { session_id: id.clone(), request_id: asked.id, answers, by: "test".to_owned(), ..Default::default() };
    clients.permission.answer_question(answer).await.expect("the answer is taken");
    assert_eq!(events.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);

    clients.prompt(&id, "#wait gate").await;
    let before = events.pieces;
    while events.pieces == before {
        events.next(PATIENCE).await;
    }
    std::fs::write(world.path("state/local").join(&id).join("workspace/gate"), "").expect("the workspace is ours");
    assert_eq!(events.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
    assert_eq!(events.answer(), "It begins and ends.");
    world.end().await;
}
