//! The stories on the local driver, with the real OpenCode.

use openagent_proto::v1;
use openagent_tests::harness::{CANARY, Driver, World};
use openagent_tests::stories;

#[tokio::test]
async fn a_prompt_is_answered() {
    stories::a_prompt_is_answered(Driver::Local).await;
}

#[tokio::test]
async fn permission_is_asked_and_answered() {
    stories::permission_is_asked_and_answered(Driver::Local).await;
}

#[tokio::test]
async fn a_restarted_daemon_goes_on() {
    stories::a_restarted_daemon_goes_on(Driver::Local).await;
}

#[tokio::test]
async fn a_stopped_session_is_resumed() {
    stories::a_stopped_session_is_resumed(Driver::Local).await;
}

#[tokio::test]
async fn work_of_every_kind_is_told() {
    stories::work_of_every_kind_is_told(Driver::Local).await;
}

#[tokio::test]
async fn an_idle_session_wakes_by_a_prompt_for_a_provider_that_got_its_key_meanwhile() {
    let world = World::started(Driver::Local).await;
    let mut clients = world.clients().await;
    clients.set_key("scripted", CANARY).await;
    let request = v1::CreateSessionRequest {
        model: "scripted/scripted-large".to_owned(),
        idle_timeout: Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 }),
        ..Default::default()
    };
    let id = clients.create_with(request).await.id;
    let mut events = clients.follow(&id).await;
    events.until_ready().await;
    events.until_status(v1::SessionStatus::Idle).await;

    clients.set_key("scripted-anthropic", CANARY).await;
    let request = v1::PromptRequest {
        session_id: id.clone(),
        text: "#echo awake".to_owned(),
        model: "scripted-anthropic/scripted-large".to_owned(),
        ..Default::default()
    };
    clients.session.prompt(request).await.expect("an idle session takes a prompt");
    let end = events.until_turn_ended().await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{end:?}");
    assert!(events.answer().contains("awake"));
    assert_eq!(clients.get(&id).await.model, "scripted-anthropic/scripted-large");
    world.end().await;
}
