//! Stories: what a user does, told once and run on every driver.

use openagent_proto::v1;
use openagent_proto::v1::event::Kind;

use crate::harness::{CANARY, Driver, PATIENCE, World};

/// A session answers a prompt: its text streams, its cost is counted, its history is whole.
///
/// # Panics
/// When the story goes another way.
pub async fn a_prompt_is_answered(driver: Driver) {
    let world = World::with_keys(driver).await;
    let mut clients = world.clients().await;
    for (model, part) in [("scripted/scripted-large", 0), ("scripted-anthropic/scripted-large", 1), ("scripted-openai/scripted-large", 2)] {
        let (id, mut events) = clients.active(model).await;
        let gate = format!("gate{part}");
        clients.prompt(&id, &format!("#wait {gate}")).await;
        while events.pieces == 0 {
            events.next(PATIENCE).await;
        }
        assert!(events.answer().is_empty(), "{model}: letters come before the answer is whole");
        world.model.release(&gate);
        let end = events.until_turn_ended().await;
        assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{model}: {end:?}");
        assert!(!events.answer().is_empty(), "{model}");
        let session = clients.get(&id).await;
        assert!(session.usage.as_ref().is_some_and(|usage| usage.tokens.is_some_and(|tokens| tokens.input > 0)), "{session:?}");
        assert!(matches!(session.activity.and_then(|activity| activity.kind), Some(v1::activity::Kind::Done(_))));
        assert_eq!(clients.history(&id).await, events.seen, "{model}: a late reader sees the same history");
        assert!(world.model.requests().iter().any(|request| request.key() == Some(CANARY)), "{model}: the key is sent");
    }
    world.end().await;
}

/// The agent asks, the user allows, the file is there; a rejection is told to the agent.
///
/// # Panics
/// When the story goes another way.
pub async fn permission_is_asked_and_answered(driver: Driver) {
    let world = World::with_keys(driver).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active("scripted/scripted-large").await;

    clients.prompt(&id, "#bash echo made-by-agent > made.txt && cat made.txt").await;
    let request = events.until_asked().await;
    assert_eq!(request.permission, "bash");
    assert!(request.title.contains("echo made-by-agent > made.txt && cat made.txt"), "the whole command is shown: {request:?}");
    let blocked = clients.get(&id).await.activity.and_then(|activity| activity.kind);
    assert!(matches!(blocked, Some(v1::activity::Kind::Blocked(_))), "{blocked:?}");
    clients.permit(&id, &request.id, v1::PermissionResponse::Once).await;
    let answered = events
        .until("the answer", |kind| match kind {
            Kind::PermissionAnswered(answer) => Some(answer.clone()),
            _ => None,
        })
        .await;
    assert_eq!((answered.by.as_str(), answered.response()), ("test", v1::PermissionResponse::Once));
    let end = events.until_turn_ended().await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{end:?}");
    let tools = events.tools();
    let Some(v1::tool_part::State::Completed(done)) = tools.last().and_then(|tool| tool.state.clone()) else { panic!("{tools:?}") };
    assert_eq!((done.output.trim(), done.exit_code), ("made-by-agent", Some(0)));

    clients.prompt(&id, "#bash rm made.txt").await;
    let request = events.until_asked().await;
    clients.permit(&id, &request.id, v1::PermissionResponse::Reject).await;
    events.until_turn_ended().await;
    let second = v1::AnswerPermissionRequest {
        session_id: id.clone(),
        request_id: request.id.clone(),
        response: v1::PermissionResponse::Once.into(),
        by: "late".to_owned(),
        ..Default::default()
    };
    let refused = clients.permission.answer_permission(second).await.expect_err("the first answer won");
    assert_eq!(refused.code(), tonic::Code::Aborted, "{refused:?}");
    assert!(refused.message().starts_with("test "), "it says who was first: {refused:?}");
    world.end().await;
}

/// The daemon is restarted while a session is at rest: session, history and keys are there, and a prompt works again.
///
/// # Panics
/// When the story goes another way.
pub async fn a_restarted_daemon_goes_on(driver: Driver) {
    let mut world = World::with_keys(driver).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active("scripted/scripted-large").await;
    let (blocked, mut others) = clients.active("scripted/scripted-large").await;
    clients.prompt(&blocked, "#bash touch asked.txt").await;
    let request = others.until_asked().await;
    clients.turn(&id, &mut events, "#echo before").await;
    let before = clients.history(&id).await;
    drop((events, others));
    world.stop().await;
    world.start().await;

    let mut clients = world.clients().await;
    let activity = clients.get(&blocked).await.activity.and_then(|activity| activity.kind);
    assert!(matches!(activity, Some(v1::activity::Kind::Blocked(_))), "what it waits for is known from the first answer on: {activity:?}");
    let mut others = clients.follow(&blocked).await;
    clients.permit(&blocked, &request.id, v1::PermissionResponse::Once).await;
    assert_eq!(others.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed, "the turn goes on where it was");
    let after = clients.history(&id).await;
    assert_eq!(after[..before.len()], before[..], "the history is as it was");
    let last = after.last().map_or(0, |event| event.seq);
    let mut events = clients.follow_after(&id, last).await;
    let end = clients.turn(&id, &mut events, "#echo after").await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{end:?}");
    assert!(events.answer().contains("after"), "{}", events.answer());
    world.end().await;
}

/// A session is stopped and resumed: conversation and workspace are as they were.
///
/// # Panics
/// When the story goes another way.
pub async fn a_stopped_session_is_resumed(driver: Driver) {
    let world = World::with_keys(driver).await;
    let mut clients = world.clients().await;
    let request = v1::CreateSessionRequest {
        model: "scripted/scripted-large".to_owned(),
        permission_mode: v1::PermissionMode::AutoEdit.into(),
        ..Default::default()
    };
    let id = clients.create_with(request).await.id;
    let mut events = clients.follow(&id).await;
    events.until_ready().await;
    clients.turn(&id, &mut events, "#write kept.txt kept over the stop").await;
    clients.stop(&id).await;
    assert_eq!(clients.get(&id).await.status(), v1::SessionStatus::Stopped);
    let refused = clients
        .session
        .prompt(v1::PromptRequest { session_id: id.clone(), text: "hello".to_owned(), ..Default::default() })
        .await
        .expect_err("a stopped session takes no prompt");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    events.until_status(v1::SessionStatus::Stopped).await;

    clients.resume(&id).await;
    events.until_ready().await;
    let session = clients.get(&id).await;
    assert_eq!(session.permission_mode(), v1::PermissionMode::AutoEdit, "resuming changes no permission");
    let end = clients.turn(&id, &mut events, "#read kept.txt").await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{end:?}");
    let tools = events.tools();
    let Some(v1::tool_part::State::Completed(done)) = tools.last().and_then(|tool| tool.state.clone()) else { panic!("{tools:?}") };
    assert!(done.output.contains("kept over the stop"), "{}", done.output);
    world.end().await;
}

/// Reasoning, an edit with its diff, a question, todos, a subagent and an abort in one conversation, each told as what it is.
///
/// # Panics
/// When the story goes another way.
pub async fn work_of_every_kind_is_told(driver: Driver) {
    let world = World::with_keys(driver).await;
    let mut clients = world.clients().await;
    let request = v1::CreateSessionRequest {
        model: "scripted/scripted-large".to_owned(),
        permission_mode: v1::PermissionMode::AutoEdit.into(),
        ..Default::default()
    };
    let id = clients.create_with(request).await.id;
    let mut events = clients.follow(&id).await;
    events.until_ready().await;

    clients.turn(&id, &mut events, "#reason").await;
    let reasoned = events.seen.iter().any(|event| match &event.kind {
        Some(Kind::Part(part)) => {
            matches!(&part.body, Some(v1::part::Body::Reasoning(reasoning)) if reasoning.done && !reasoning.text.is_empty())
        }
        _ => false,
    });
    assert!(reasoned, "reasoning is told apart from prose");

    clients.turn(&id, &mut events, "#write notes.txt first line").await;
    clients.turn(&id, &mut events, "#read notes.txt").await;
    clients.turn(&id, &mut events, "#edit notes.txt first=>second").await;
    let tools = events.tools();
    let Some(v1::tool_part::State::Completed(edit)) = tools.last().and_then(|tool| tool.state.clone()) else { panic!("{tools:?}") };
    let diff = edit.diff.expect("an edit has a diff");
    assert!(diff.contains("-first line") && diff.contains("+second line"), "{diff}");

    clients.prompt(&id, "#question").await;
    let asked = events
        .until("a question", |kind| match kind {
            Kind::QuestionAsked(request) => Some(request.clone()),
            _ => None,
        })
        .await;
    let answers = asked.questions.iter().map(|question| v1::QuestionAnswer { chosen: vec![question.options[0].label.clone()] }).collect();
    let answer =
        v1::AnswerQuestionRequest { session_id: id.clone(), request_id: asked.id, answers, by: "test".to_owned(), ..Default::default() };
    clients.permission.answer_question(answer).await.expect("the answer is taken");
    assert_eq!(events.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);

    clients.prompt(&id, "#todo").await;
    let todo = events
        .until("todos", |kind| match kind {
            Kind::Todo(todo) => Some(todo.clone()),
            _ => None,
        })
        .await;
    assert_eq!(todo.items.len(), 3);
    events.until_turn_ended().await;

    clients.prompt(&id, "#subagent").await;
    let subagent = events
        .until("a subagent", |kind| match kind {
            Kind::Subagent(subagent) => Some(subagent.clone()),
            _ => None,
        })
        .await;
    assert_eq!(subagent.parent_id, id);
    assert_eq!(events.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed, "the subagent's end is not the turn's");
    let spoke = events.seen.iter().any(|event| match &event.kind {
        Some(Kind::Message(message)) => message.conversation_id == subagent.conversation_id,
        _ => false,
    });
    assert!(spoke, "what a subagent says is told as its own");

    clients.prompt(&id, "#hang").await;
    events
        .until("work", |kind| match kind {
            Kind::Busy(busy) => matches!(busy.busy, Some(v1::busy_event::Busy::Working(_))).then_some(()),
            _ => None,
        })
        .await;
    clients.session.abort(v1::AbortRequest { session_id: id.clone() }).await.expect("the turn is aborted");
    assert_eq!(events.until_turn_ended().await.outcome(), v1::TurnOutcome::Aborted);
    let end = clients.turn(&id, &mut events, "#echo still here").await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "a prompt works after an abort");
    world.end().await;
}
