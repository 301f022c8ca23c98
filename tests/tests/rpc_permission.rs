//! Contract of `PermissionService`: the inbox over all sessions, how long an answer holds, and that the first one wins.

use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_tests::harness::events::Events;
use openagent_tests::harness::refusal::refused;
use openagent_tests::harness::{Clients, Driver, World};
use tonic::Code;

const MODEL: &str = "scripted/scripted-large";

fn answer(id: &str, request: &str, response: v1::PermissionResponse) -> v1::AnswerPermissionRequest {
    v1::AnswerPermissionRequest {
        session_id: id.to_owned(),
        request_id: request.to_owned(),
        response: response.into(),
        ..Default::default()
    }
}

fn reply(id: &str, request: &str, chosen: &[&[&str]]) -> v1::AnswerQuestionRequest {
    let answers = chosen.iter().map(|chosen| v1::QuestionAnswer { chosen: chosen.iter().map(|text| (*text).to_owned()).collect() });
    v1::AnswerQuestionRequest {
        session_id: id.to_owned(),
        request_id: request.to_owned(),
        answers: answers.collect(),
        ..Default::default()
    }
}

async fn pending(clients: &mut Clients, id: &str) -> Vec<v1::Pending> {
    let request = v1::ListPendingRequest { session_id: id.to_owned() };
    clients.permission.list_pending(request).await.expect("the inbox is listed").into_inner().pending
}

async fn rules(clients: &mut Clients) -> Vec<v1::Rule> {
    clients.permission.list_rules(v1::ListRulesRequest {}).await.expect("rules are listed").into_inner().rules
}

async fn asked(clients: &mut Clients, id: &str, events: &mut Events, prompt: &str) -> v1::PermissionRequest {
    clients.prompt(id, prompt).await;
    let request = events.until_asked().await;
    blocked(clients, id).await;
    request
}

/// Waits until the turns of sessions are seen to have ended.
async fn at_rest(clients: &mut Clients, ids: &[&str]) {
    let done = Some(v1::Activity { kind: Some(v1::activity::Kind::Done(v1::ActivityDone {})) });
    for id in ids {
        clients.get_when(id, "rest", |session| session.activity == done).await;
    }
}

/// Waits until the inbox shows what was asked.
async fn blocked(clients: &mut Clients, id: &str) {
    let is_blocked = |session: &v1::Session| matches!(&session.activity, Some(v1::Activity { kind: Some(v1::activity::Kind::Blocked(_)) }));
    clients.get_when(id, "a request in the inbox", is_blocked).await;
}

async fn questioned(clients: &mut Clients, id: &str, events: &mut Events) -> v1::QuestionRequest {
    clients.prompt(id, "#question").await;
    let request = events
        .until("a question", |kind| match kind {
            Kind::QuestionAsked(request) => Some(request.clone()),
            _ => None,
        })
        .await;
    blocked(clients, id).await;
    request
}

async fn answered(events: &mut Events) -> v1::PermissionAnsweredEvent {
    events
        .until("the answer", |kind| match kind {
            Kind::PermissionAnswered(answer) => Some(answer.clone()),
            _ => None,
        })
        .await
}

/// The last tool call's output; it must have been run.
fn output(events: &Events) -> String {
    match events.tools().last().and_then(|tool| tool.state.clone()) {
        Some(v1::tool_part::State::Completed(done)) => done.output.trim().to_owned(),
        other => panic!("the call was not run: {other:?}"),
    }
}

#[tokio::test]
async fn the_inbox_lists_all_sessions_and_bad_answers_leave_it_as_it_is() {
    let world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    assert!(pending(&mut clients, "").await.is_empty());
    let (one, mut one_events) = clients.active(MODEL).await;
    let (two, mut two_events) = clients.active(MODEL).await;
    let permission = asked(&mut clients, &one, &mut one_events, "#bash echo first").await;
    let question = questioned(&mut clients, &two, &mut two_events).await;

    let all = pending(&mut clients, "").await;
    let listed: Vec<_> = all.iter().map(|pending| (pending.session_id.as_str(), pending.request.clone())).collect();
    let oldest_first = [
        (one.as_str(), Some(v1::pending::Request::Permission(permission.clone()))),
        (two.as_str(), Some(v1::pending::Request::Question(question.clone()))),
    ];
    assert_eq!(listed, oldest_first);
    assert!(all.iter().all(|pending| !pending.session_title.is_empty()));
    assert_eq!(pending(&mut clients, &two).await, all[1..]);
    assert!(permission.asked_at.is_some() && !permission.always.is_empty(), "{permission:?}");

    let once = answer(&one, &permission.id, v1::PermissionResponse::Once);
    let invalid = [
        answer(&one, &permission.id, v1::PermissionResponse::Unspecified),
        v1::AnswerPermissionRequest { response: 99, ..once.clone() },
        v1::AnswerPermissionRequest { reason: "because".to_owned(), ..once.clone() },
        v1::AnswerPermissionRequest { by: "rule".to_owned(), ..once.clone() },
        v1::AnswerPermissionRequest { by: "agent".to_owned(), ..once.clone() },
        v1::AnswerPermissionRequest { by: "x".repeat(65), ..once.clone() },
        v1::AnswerPermissionRequest { by: "a\nb".to_owned(), ..once.clone() },
        v1::AnswerPermissionRequest { reason: "x".repeat(4097), ..answer(&one, &permission.id, v1::PermissionResponse::Reject) },
        v1::AnswerPermissionRequest { request_id: String::new(), ..once.clone() },
        answer(&two, &question.id, v1::PermissionResponse::Once),
    ];
    for request in invalid {
        refused(clients.permission.answer_permission(request).await, Code::InvalidArgument, "INVALID");
    }
    let invalid = [
        reply(&two, &question.id, &[]),
        reply(&two, &question.id, &[&["Blue"], &["Green"]]),
        reply(&two, &question.id, &[&["x"; 33]]),
        reply(&two, &question.id, &[&["x".repeat(4097).as_str()]]),
        v1::AnswerQuestionRequest { dismiss: true, ..reply(&two, &question.id, &[&["Blue"]]) },
        v1::AnswerQuestionRequest { dismiss: true, ..reply(&one, &permission.id, &[]) },
    ];
    for request in invalid {
        refused(clients.permission.answer_question(request).await, Code::InvalidArgument, "INVALID");
    }
    for (id, request) in [(&one, "per_nothing"), (&two, permission.id.as_str())] {
        let outcome = clients.permission.answer_permission(answer(id, request, v1::PermissionResponse::Once)).await;
        assert!(refused(outcome, Code::NotFound, "NOT_FOUND").hint.contains("openagent inbox"));
        refused(clients.permission.answer_question(reply(id, "que_nothing", &[&["Blue"]])).await, Code::NotFound, "NOT_FOUND");
    }
    assert_eq!(pending(&mut clients, "").await, all, "nothing was answered");

    clients.permission.answer_permission(v1::AnswerPermissionRequest { by: "ü".repeat(64), ..once.clone() }).await.expect("it is taken");
    assert_eq!(answered(&mut one_events).await.by, "ü".repeat(64));
    clients.permission.answer_question(reply(&two, &question.id, &[&["Green"]])).await.expect("it is taken");
    one_events.until_turn_ended().await;
    two_events.until_turn_ended().await;
    assert_eq!(output(&one_events), "first");
    assert!(two_events.answer().contains("Green"), "the agent read it: {}", two_events.answer());
    at_rest(&mut clients, &[&one, &two]).await;
    assert!(pending(&mut clients, "").await.is_empty());
    for (refusal, first) in [
        (refused(clients.permission.answer_permission(once).await, Code::Aborted, "ALREADY_ANSWERED"), "ü"),
        (
            refused(clients.permission.answer_question(reply(&two, &question.id, &[&["Blue"]])).await, Code::Aborted, "ALREADY_ANSWERED"),
            "client",
        ),
    ] {
        assert!(refusal.message.starts_with(first), "it says who was first: {refusal:?}");
    }

    // A dismissed question ends the turn; an aborted turn empties the inbox.
    let question = questioned(&mut clients, &two, &mut two_events).await;
    let dismissal = v1::AnswerQuestionRequest { dismiss: true, by: "me".to_owned(), ..reply(&two, &question.id, &[]) };
    clients.permission.answer_question(dismissal).await.expect("it is dismissed");
    let dismissed = two_events
        .until("the dismissal", |kind| match kind {
            Kind::QuestionAnswered(answer) => Some(answer.clone()),
            _ => None,
        })
        .await;
    assert_eq!((dismissed.dismissed, dismissed.answers.len(), dismissed.by.as_str()), (true, 0, "me"));
    two_events.until_turn_ended().await;
    asked(&mut clients, &one, &mut one_events, "#bash echo never").await;
    clients.session.abort(v1::AbortRequest { session_id: one.clone() }).await.expect("the turn ends");
    one_events.until_turn_ended().await;
    at_rest(&mut clients, &[&one, &two]).await;
    assert!(pending(&mut clients, "").await.is_empty());
    rejected(&mut clients, &one, &mut one_events).await;
    world.end().await;
}

/// A rejection with a reason is read by the agent, which goes on; one without ends the turn.
async fn rejected(clients: &mut Clients, id: &str, events: &mut Events) {
    let request = asked(clients, id, events, "#bash rm -rf everything").await;
    let with_reason = v1::AnswerPermissionRequest {
        reason: "use the bin instead".to_owned(),
        by: "careful".to_owned(),
        ..answer(id, &request.id, v1::PermissionResponse::Reject)
    };
    clients.permission.answer_permission(with_reason).await.expect("it is taken");
    let told = answered(events).await;
    assert_eq!(
        (told.response(), told.by.as_str(), told.reason.as_str()),
        (v1::PermissionResponse::Reject, "careful", "use the bin instead")
    );
    assert_eq!(events.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
    assert!(events.answer().contains("use the bin instead"), "the agent goes on and has read it: {}", events.answer());

    let before = events.answer();
    let request = asked(clients, id, events, "#bash rm -rf everything").await;
    clients.permission.answer_permission(answer(id, &request.id, v1::PermissionResponse::Reject)).await.expect("it is taken");
    assert_eq!(answered(events).await.reason, "");
    events.until_turn_ended().await;
    assert_eq!(events.answer(), before, "the agent said nothing more");
    assert!(matches!(events.tools().last().and_then(|tool| tool.state.clone()), Some(v1::tool_part::State::Error(_))));
}

/// Runs a command that nobody must be asked about.
async fn unasked(clients: &mut Clients, id: &str, events: &mut Events, command: &str) -> String {
    let before = events.seen.len();
    clients.turn(id, events, &format!("#bash {command}")).await;
    for event in &events.seen[before..] {
        if let Some(Kind::PermissionAnswered(answer)) = &event.kind {
            assert_eq!(answer.by, "rule", "{command}");
        }
    }
    output(events)
}

#[tokio::test]
async fn wider_answers_hold_in_their_session_or_everywhere_over_resumes_and_restarts_until_they_are_forgotten() {
    let mut world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    let (one, mut one_events) = clients.active(MODEL).await;
    let (two, mut two_events) = clients.active(MODEL).await;

    let request = asked(&mut clients, &one, &mut one_events, "#bash echo one").await;
    clients.permit(&one, &request.id, v1::PermissionResponse::Session).await;
    one_events.until_turn_ended().await;
    assert_eq!(unasked(&mut clients, &one, &mut one_events, "echo two").await, "two");
    assert!(rules(&mut clients).await.is_empty(), "it is no rule for every session");
    let request = asked(&mut clients, &two, &mut two_events, "#bash echo elsewhere").await;
    clients.permit(&two, &request.id, v1::PermissionResponse::Once).await;
    two_events.until_turn_ended().await;

    let request = asked(&mut clients, &two, &mut two_events, "#bash touch one").await;
    clients.permit(&two, &request.id, v1::PermissionResponse::Always).await;
    two_events.until_turn_ended().await;
    let remembered = rules(&mut clients).await;
    let expected: Vec<_> =
        request.always.iter().map(|pattern| v1::Rule { permission: "bash".to_owned(), pattern: pattern.clone() }).collect();
    assert_eq!(remembered, expected);
    unasked(&mut clients, &two, &mut two_events, "touch two").await;
    unasked(&mut clients, &one, &mut one_events, "touch two").await;

    world.stop().await;
    world.start().await;
    let mut clients = world.clients().await;
    assert_eq!(rules(&mut clients).await, remembered, "it outlives the daemon");
    clients.stop(&one).await;
    clients.resume(&one).await;
    let mut one_events = clients.follow_after(&one, clients.clone().get(&one).await.last_seq).await;
    clients.prompt(&one, "#plain").await;
    one_events.until_turn_ended().await;
    assert_eq!(unasked(&mut clients, &one, &mut one_events, "echo three").await, "three", "resuming narrows nothing");
    unasked(&mut clients, &one, &mut one_events, "touch three").await;

    let unknown = v1::Rule { permission: "bash".to_owned(), pattern: "no such".to_owned() };
    let outcome = clients.permission.remove_rule(v1::RemoveRuleRequest { rule: Some(unknown) }).await;
    assert!(refused(outcome, Code::NotFound, "NOT_FOUND").hint.contains("openagent rules ls"));
    refused(clients.permission.remove_rule(v1::RemoveRuleRequest { rule: None }).await, Code::InvalidArgument, "INVALID");
    for rule in remembered {
        let forget = v1::RemoveRuleRequest { rule: Some(rule) };
        clients.permission.remove_rule(forget.clone()).await.expect("it is forgotten");
        refused(clients.permission.remove_rule(forget).await, Code::NotFound, "NOT_FOUND");
    }
    assert!(rules(&mut clients).await.is_empty());
    // Also the session in which it was answered: it was an answer for every session and not for this one.
    clients.stop(&two).await;
    clients.resume(&two).await;
    let mut two_events = clients.follow_after(&two, clients.clone().get(&two).await.last_seq).await;
    asked(&mut clients, &two, &mut two_events, "#bash touch three").await;
    assert_eq!(pending(&mut clients, "").await.len(), 1, "a resumed session asks again");
    world.end().await;
}
