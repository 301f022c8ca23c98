//! The tools of the fault tests do what they say: the proxy before the engine, and an engine of a test's own.

use std::time::Instant;

use bollard::Docker;
use bollard::query_parameters::{EventsOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder};
use futures::StreamExt;
use nix::sys::signal::Signal;
use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_tests::harness::client::within;
use openagent_tests::harness::engine::{Container, ROOT};
use openagent_tests::harness::engine_proxy::{Action, EngineProxy};
use openagent_tests::harness::instance::{Permissions, Who};
use openagent_tests::harness::light_image::LightImage;
use openagent_tests::harness::orphan::machine_engine;
use openagent_tests::harness::own_engine::{Containers, OwnEngine};
use openagent_tests::harness::{CANARY, Driver, PATIENCE, World};
use tokio::io::AsyncWriteExt;

const MODEL: &str = "scripted/scripted-large";

fn client(proxy: &EngineProxy) -> Docker {
    Docker::connect_with_unix(&proxy.socket().to_string_lossy(), 20, bollard::API_DEFAULT_VERSION).expect("the proxy listens")
}

#[tokio::test]
async fn the_proxy_hands_on_what_no_rule_stops() {
    let proxy = EngineProxy::before(&machine_engine());
    let mut world = World::behind(&proxy).await;
    world.start().await;
    world.set_keys(CANARY).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active(MODEL).await;
    assert_eq!(clients.turn(&id, &mut events, "#echo through the proxy").await.outcome(), v1::TurnOutcome::Completed);
    for call in ["POST /volumes/create", "POST /containers/create"] {
        assert!(proxy.calls().iter().any(|made| made.starts_with(call)), "{call} went through: {:?}", proxy.calls());
    }

    let engine = client(&proxy);
    let container = Container::at(engine.clone(), &id).await;
    let said = container.exec(ROOT, &["cat"], &"typed\n".repeat(100_000)).await;
    assert_eq!((said.code, said.out.len()), (0, 600_000), "an upgraded connection is a pipe whose ends are closed one by one");
    container.put_program("/workspace", "large", vec![7; 8 << 20]).await;
    assert_eq!(container.run(ROOT, "stat -c %s /workspace/large").await.text(), (8 << 20).to_string());
    let options = EventsOptionsBuilder::default().build();
    let mut told = Box::pin(engine.events(Some(options)));
    let act = async {
        // The stream is asked for when it is read first.
        while !proxy.calls().iter().any(|call| call.starts_with("GET /events")) {
            tokio::task::yield_now().await;
        }
        container.spawn(ROOT, &["sleep", "0.5"]).await;
    };
    let (event, ()) = within("an event of the engine", PATIENCE, async { tokio::join!(told.next(), act) }).await;
    event.expect("the stream goes on").expect("it does not break");

    proxy.go_away().await;
    within("the end of the events", PATIENCE, async { while matches!(told.next().await, Some(Ok(_))) {} }).await;
    assert!(engine.ping().await.is_err(), "nobody listens");
    proxy.come_back().await;
    assert!(engine.ping().await.is_ok());
    assert_eq!(clients.turn(&id, &mut events, "#echo still here").await.outcome(), v1::TurnOutcome::Completed);
    world.end().await;
}

#[tokio::test]
async fn a_rule_decides_what_becomes_of_a_call() {
    let proxy = EngineProxy::before(&machine_engine());
    let engine = client(&proxy);
    {
        let rule = proxy.rule("GET", "version", Action::Answer { status: 503, message: "out of order".to_owned() });
        let refused = engine.version().await.expect_err("the rule answers").to_string();
        assert!(refused.contains("503") && refused.contains("out of order"), "{refused}");
        assert_eq!(rule.hits(), 1);
    }
    assert!(engine.version().await.is_ok(), "a rule that is gone decides nothing");
    {
        let _once = proxy.once("GET", "version", Action::Cut);
        assert!(engine.version().await.is_err());
        assert!(engine.version().await.is_ok(), "it was for one call");
    }
    for action in [Action::Hold, Action::HoldAnswer] {
        let mut rule = proxy.rule("*", "version", action);
        let call = engine.version();
        let mut call = std::pin::pin!(call);
        tokio::select! {
            _ = &mut call => panic!("it is held"),
            () = rule.until_hit(1) => rule.release(),
        }
        within("a released call", PATIENCE, call).await.expect("it goes through");
    }
}

#[tokio::test]
async fn a_call_whose_caller_is_gone_never_reaches_the_engine() {
    let proxy = EngineProxy::before(&machine_engine());
    let name = format!("openagent-proxy-test-{}", std::process::id());
    let body = format!("{{\"Name\":\"{name}\"}}");
    let head = format!(
        "POST /volumes/create HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    for (action, made) in [(Action::Hold, false), (Action::HoldAnswer, true), (Action::CutAnswer, true)] {
        let mut rule = proxy.once("POST", "volumes/create", action.clone());
        let mut caller = tokio::net::UnixStream::connect(proxy.socket()).await.expect("the proxy listens");
        caller.write_all(format!("{head}{body}").as_bytes()).await.expect("it reads");
        rule.until_hit(1).await;
        drop(caller);
        rule.release();
        let engine = client(&proxy);
        assert!(engine.ping().await.is_ok());
        let found = engine.inspect_volume(&name).await.is_ok();
        if found {
            engine.remove_volume(&name, None::<bollard::query_parameters::RemoveVolumeOptions>).await.expect("nobody uses it");
        }
        assert_eq!(found, made, "{action:?}");
    }
}

#[tokio::test]
async fn an_agent_in_a_container_is_found_signalled_and_read() {
    let light = LightImage::make().await;
    let mut world = World::new(Driver::Docker).await;
    world.set_env("OPENAGENT_IMAGE", light.name());
    world.start().await;
    world.set_keys(CANARY).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active(MODEL).await;
    let before = Permissions::of(&world, &id).await;
    clients.prompt(&id, "#hang").await;
    events
        .until("work", |kind| match kind {
            Kind::Busy(busy) => matches!(busy.busy, Some(v1::busy_event::Busy::Working(_))).then_some(()),
            _ => None,
        })
        .await;
    world.signal_to(&id, Who::Agent, Signal::SIGKILL).await;
    assert_eq!(events.until_turn_ended().await.outcome(), v1::TurnOutcome::Interrupted);
    events
        .until("an agent that is ready again", |kind| match kind {
            Kind::Agent(agent) => matches!(agent.process, Some(v1::agent_event::Process::Ready(_))).then_some(()),
            _ => None,
        })
        .await;
    assert_eq!(clients.turn(&id, &mut events, "#echo once more").await.outcome(), v1::TurnOutcome::Completed);
    Permissions::of(&world, &id).await.must_not_be_wider_than(&before);

    for (signal, state) in [(Signal::SIGSTOP, "T"), (Signal::SIGCONT, "S")] {
        world.signal_to(&id, Who::Sidecar, signal).await;
        let container = world.container(&id).await;
        container.until(ROOT, &format!("grep -q '^State:.*{state}' /proc/1/status")).await;
    }
    world.until_no_orphans(PATIENCE).await;
    world.end().await;
}

#[tokio::test]
async fn an_engine_of_its_own_is_stopped_killed_hung_and_booted() {
    let light = LightImage::make().await;
    let began = Instant::now();
    let mut engine = OwnEngine::start(Containers::RunOn, light.name()).await;
    eprintln!("an engine with the image took {:?}", began.elapsed());
    let mut world = World::on(&engine).await;
    world.start().await;
    world.set_keys(CANARY).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active(MODEL).await;
    assert_eq!(clients.turn(&id, &mut events, "#echo on another engine").await.outcome(), v1::TurnOutcome::Completed);
    let container = world.container(&id).await.id;
    world.kill().await;
    let runs = async |client: Docker| {
        let about = client.inspect_container(&container, None::<InspectContainerOptions>).await.expect("the container is known");
        about.state.and_then(|state| state.running).unwrap_or_default()
    };

    for how in ["stopped", "killed"] {
        match how {
            "stopped" => engine.stop().await,
            _ => engine.kill().await,
        }
        assert!(!engine.answers().await, "it is {how}");
        engine.run().await;
        assert!(runs(engine.client()).await, "{how}: its containers run on");
    }
    engine.freeze();
    let ping = tokio::time::timeout(std::time::Duration::from_millis(300), engine.answers()).await;
    assert!(ping.is_err(), "it hangs");
    engine.thaw();
    assert!(engine.answers().await);
    let began = Instant::now();
    engine.power_off();
    engine.run().await;
    eprintln!("a loss of power and the boot took {:?}", began.elapsed());
    assert!(!runs(engine.client()).await, "nothing runs after a boot, and what was on disk is there");
    let options = KillContainerOptionsBuilder::default().build();
    assert!(engine.client().kill_container(&container, Some(options)).await.is_err());
}
