//! The demo: the whole tour with no key and no network, in a container and as child processes.

use openagent_proto::v1;
use openagent_proto::v1::tool_part::State;
use openagent_tests::harness::engine::{AGENT, Container};
use openagent_tests::harness::{Driver, World};

/// The file that the tour writes.
const FILE: &str = "hello-openagent.md";

async fn the_tour(driver: Driver) {
    let world = World::started(driver).await;
    let said = world.cli(&["models", "demo", "-o", "json"]).await;
    assert!(said.status.success(), "{said:?}");
    let models: serde_json::Value = serde_json::from_slice(&said.stdout).expect("it is JSON");
    let [model] = models.as_array().map_or(&[][..], Vec::as_slice) else { panic!("one model is expected: {models}") };
    let model = model["id"].as_str().or_else(|| model["model"].as_str()).unwrap_or_else(|| panic!("it has a name: {models}")).to_owned();
    assert!(model.starts_with("demo/"), "{model}");

    let mut clients = world.clients().await;
    assert_eq!(clients.vault.list_keys(v1::ListKeysRequest {}).await.expect("keys are listed").into_inner().keys, []);
    let (id, mut events) = clients.active(&model).await;
    clients.prompt(&id, "Show me around").await;

    let command = events.until_asked().await;
    assert_eq!(command.permission, "bash");
    assert!(events.pieces > 5, "the welcome streams in pieces: {}", events.pieces);
    assert!(events.answer().contains("Welcome to **OpenAgent**"), "{}", events.answer());
    clients.permit(&id, &command.id, v1::PermissionResponse::Once).await;

    let write = events.until_asked().await;
    assert_eq!(write.permission, "edit");
    assert!(write.title.contains(FILE), "{write:?}");
    assert!(write.diff.as_ref().is_some_and(|diff| diff.contains("+# Hello from OpenAgent")), "the whole change can be read: {write:?}");
    let path = match driver {
        Driver::Docker => None,
        Driver::Local => Some(world.path(&format!("state/local/{id}/workspace/{FILE}"))),
    };
    assert!(path.as_ref().is_none_or(|path| !path.exists()), "nothing is written before it is allowed");
    clients.permit(&id, &write.id, v1::PermissionResponse::Once).await;

    let end = events.until_turn_ended().await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{end:?}");
    assert!(events.answer().contains("That was the tour"), "{}", events.answer());
    let tools = events.tools();
    let [bash, file] = tools.as_slice() else { panic!("two tools are expected: {tools:?}") };
    let Some(State::Completed(done)) = &bash.state else { panic!("{bash:?}") };
    assert!(done.output.contains(".git"), "a real command ran: {}", done.output);
    assert!(matches!(&file.state, Some(State::Completed(_))), "{file:?}");

    let written = match &path {
        Some(path) => std::fs::read_to_string(path).expect("the file is there"),
        None => {
            let container = Container::of(&id).await;
            assert_eq!(container.run(AGENT, "ls /sys/class/net").await.text(), "lo", "there is no network");
            container.run(AGENT, &format!("cat /workspace/{FILE}")).await.out
        }
    };
    assert!(written.starts_with("# Hello from OpenAgent\n"), "{written}");

    let usage = clients.get(&id).await.usage.expect("it is counted");
    let tokens = usage.tokens.expect("it is counted");
    assert!(tokens.input > 100 && tokens.output > 100, "{usage:?}");
    assert_eq!(usage.cost_micros, 0, "the demo costs nothing");
    assert!(world.model.requests().is_empty(), "no model server was asked");

    // The tour ends the conversation; it can be taken again.
    let end = clients.turn(&id, &mut events, "What is the capital of France?").await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{end:?}");
    assert!(events.answer().contains("only a scripted demo"), "{}", events.answer());
    clients.prompt(&id, "tour").await;
    let again = events.until_asked().await;
    clients.permit(&id, &again.id, v1::PermissionResponse::Reject).await;
    events.until_turn_ended().await;
    world.end().await;
}

#[tokio::test]
async fn the_tour_needs_no_key_and_no_network() {
    the_tour(Driver::Docker).await;
}

#[tokio::test]
async fn the_tour_works_without_an_engine() {
    the_tour(Driver::Local).await;
}
