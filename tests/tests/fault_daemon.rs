//! The daemon is killed: at every step of a start, in mid-stream, while somebody is asked. Whoever comes next finds the session at work, and nothing lost or twice.

use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_tests::harness::client::Clients;
use openagent_tests::harness::engine_proxy::{Action, EngineProxy};
use openagent_tests::harness::instance::Permissions;
use openagent_tests::harness::light_image::LightImage;
use openagent_tests::harness::orphan::machine_engine;
use openagent_tests::harness::witness::Witness;
use openagent_tests::harness::{CANARY, PATIENCE, World};

const MODEL: &str = "scripted/scripted-large";

/// A session with a workspace that is copied, so that every step has something to do, and somebody who follows it.
async fn followed(world: &World, clients: &mut Clients) -> Witness {
    let source = world.path("source");
    std::fs::create_dir_all(&source).expect("the folder is ours");
    std::fs::write(source.join("copied.txt"), "as it was").expect("the folder is ours");
    let copy = v1::CopyWorkspace { path: source.display().to_string() };
    let request = v1::CreateSessionRequest {
        model: MODEL.to_owned(),
        workspace: Some(v1::Workspace { source: Some(v1::workspace::Source::Copy(copy)) }),
        permission_mode: v1::PermissionMode::Ask.into(),
        ..Default::default()
    };
    let id = clients.create_with(request).await.id;
    let mut witness = Witness::of(&id);
    witness.connect(clients).await;
    witness
}

/// The daemon is killed now and started again; the witness is back.
async fn killed_and_back(world: &mut World, witness: &mut Witness) -> Clients {
    world.kill().await;
    witness.until_broken().await;
    world.start().await;
    let mut clients = world.clients().await;
    witness.connect(&mut clients).await;
    clients
}

/// What must hold once the daemon is back: a prompt is answered without anybody's doing, the workspace is whole, nothing is lost, twice, or left over.
async fn goes_on(world: &World, clients: &mut Clients, witness: &mut Witness, moment: &str) {
    clients.prompt(&witness.session, "#echo after all").await;
    assert_eq!(witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed, "killed {moment}");
    witness.judge(clients).await;
    let session = clients.get(&witness.session).await;
    assert_eq!((session.status(), session.permission_mode()), (v1::SessionStatus::Active, v1::PermissionMode::Ask), "killed {moment}");
    let written = v1::PromptRequest { session_id: witness.session.clone(), text: "#bash cat copied.txt".to_owned(), ..Default::default() };
    clients.session.prompt(written).await.expect("the prompt is taken");
    let asked = witness.until_asked().await;
    clients.permit(&witness.session, &asked.id, v1::PermissionResponse::Once).await;
    let output = witness
        .until("the file", |kind| match kind {
            Kind::Part(v1::Part { body: Some(v1::part::Body::Tool(tool)), .. }) => match &tool.state {
                Some(v1::tool_part::State::Completed(done)) => Some(done.output.clone()),
                _ => None,
            },
            _ => None,
        })
        .await;
    assert_eq!(output.trim(), "as it was", "killed {moment}");
    witness.until_turn_ended().await;
    world.until_no_orphans(PATIENCE).await;
}

#[tokio::test]
async fn while_the_engine_works_for_a_step_of_the_start() {
    let proxy = EngineProxy::before(&machine_engine());
    let light = LightImage::make().await;
    let mut world = World::behind(&proxy).await;
    world.set_env("OPENAGENT_IMAGE", light.name());
    world.start().await;
    world.set_keys(CANARY).await;
    for (step, method, path) in [
        ("image", "GET", "images"),
        ("volume", "POST", "volumes/create"),
        ("create", "POST", "containers/create"),
        ("workspace", "PUT", "containers/*/archive"),
        ("start", "POST", "containers/*/start"),
    ] {
        for action in [Action::Hold, Action::HoldAnswer] {
            let moment = format!("at step {step}, {action:?}");
            let mut clients = world.clients().await;
            let mut rule = proxy.once(method, path, action);
            let mut witness = followed(&world, &mut clients).await;
            rule.until_hit(1).await;
            let mut clients = killed_and_back(&mut world, &mut witness).await;
            drop(rule);
            goes_on(&world, &mut clients, &mut witness, &moment).await;
            clients.remove(&witness.session).await;
        }
    }
    world.end().await;
}

#[tokio::test]
async fn at_each_step_of_the_start() {
    let mut world = World::light().await;
    world.start().await;
    world.set_keys(CANARY).await;
    for step in ["admission", "image", "volume", "create", "workspace", "start", "register", "keys", "agent"] {
        let mut clients = world.clients().await;
        let mut witness = followed(&world, &mut clients).await;
        witness.until_step_begins(step).await;
        let mut clients = killed_and_back(&mut world, &mut witness).await;
        goes_on(&world, &mut clients, &mut witness, &format!("at step {step}")).await;
    }
    world.end().await;
}

#[tokio::test]
async fn in_mid_stream() {
    let mut world = World::light().await;
    world.start().await;
    world.set_keys(CANARY).await;
    for ends_meanwhile in [true, false] {
        let mut clients = world.clients().await;
        let mut witness = followed(&world, &mut clients).await;
        witness.until_ready().await;
        clients.prompt(&witness.session, "#wait gate").await;
        witness.until_letters().await;
        let gate = world.path("state/local").join(&witness.session).join("workspace/gate");
        world.kill().await;
        witness.until_broken().await;
        if ends_meanwhile {
            std::fs::write(&gate, "").expect("the workspace is ours");
        }
        world.start().await;
        let mut clients = world.clients().await;
        witness.connect(&mut clients).await;
        if !ends_meanwhile {
            // Whoever is late gets the letters so far.
            witness.until_letters().await;
            std::fs::write(&gate, "").expect("the workspace is ours");
        }
        assert_eq!(witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
        let history = witness.judge(&mut clients).await;
        let whole = history.iter().any(|event| match &event.kind {
            Some(Kind::Part(v1::Part { body: Some(v1::part::Body::Text(text)), .. })) => text.done && text.text == "It begins and ends.",
            _ => false,
        });
        assert!(whole, "the text is whole: {history:#?}");
        goes_on(&world, &mut clients, &mut witness, "in mid-stream").await;
    }
    world.end().await;
}

#[tokio::test]
async fn while_a_permission_waits() {
    let mut world = World::light().await;
    world.start().await;
    world.set_keys(CANARY).await;
    let mut clients = world.clients().await;
    let mut witness = followed(&world, &mut clients).await;
    witness.until_ready().await;
    let before = Permissions::of(&world, &witness.session).await;
    clients.prompt(&witness.session, "#bash touch made.txt").await;
    let asked = witness.until_asked().await;
    let mut clients = killed_and_back(&mut world, &mut witness).await;

    let made = world.path("state/local").join(&witness.session).join("workspace/made.txt");
    let activity = clients.get(&witness.session).await.activity.and_then(|activity| activity.kind);
    assert!(matches!(activity, Some(v1::activity::Kind::Blocked(_))), "it is still asked: {activity:?}");
    assert!(!made.exists(), "nobody has allowed it");
    clients.permit(&witness.session, &asked.id, v1::PermissionResponse::Once).await;
    assert_eq!(witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
    assert!(made.exists());
    witness.judge(&mut clients).await;
    Permissions::of(&world, &witness.session).await.must_not_be_wider_than(&before);
    goes_on(&world, &mut clients, &mut witness, "while a permission waited").await;
    world.end().await;
}
