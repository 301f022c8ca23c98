//! The engine under the sandboxes breaks, or somebody takes things away there: it is stopped, killed, slow, hangs or is away when the daemon starts; containers, volumes
//! and images go. The user is told what happened, other sessions and calls are not held up, and each session goes on.

use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::{
    KillContainerOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder, RemoveVolumeOptions, TagImageOptionsBuilder,
};
use nix::sys::signal::Signal;
use openagent_proto::v1;
use openagent_tests::harness::client::{Clients, within};
use openagent_tests::harness::engine_proxy::{Action, EngineProxy};
use openagent_tests::harness::light_image::LightImage;
use openagent_tests::harness::orphan::machine_engine;
use openagent_tests::harness::own_engine::{Containers, OwnEngine};
use openagent_tests::harness::process::Process;
use openagent_tests::harness::subject::{MODEL, Moment, Subject, state};
use openagent_tests::harness::{CANARY, Driver, PATIENCE, World};

/// Time in which the daemon must say how the engine is, whatever that does.
const STATUS_BOUND: Duration = Duration::from_secs(5);

async fn ready(mut world: World, image: &str) -> World {
    world.set_env("OPENAGENT_IMAGE", image);
    world.start().await;
    world.set_keys(CANARY).await;
    world
}

/// What the daemon says of its engine, in time.
async fn engine_status(clients: &mut Clients) -> v1::DriverStatus {
    let status = within("the status", STATUS_BOUND, clients.daemon.get_status(v1::GetStatusRequest {}));
    status.await.expect("the daemon answers").into_inner().driver.expect("it has a driver")
}

async fn engine_is_told_to_be(clients: &mut Clients, codes: &[&str]) {
    let status = engine_status(clients).await;
    let fault = status.fault.expect("what is wrong is told");
    assert!(!status.healthy && codes.contains(&fault.code.as_str()) && !fault.hint.is_empty(), "{fault:?}");
}

/// How the engine goes, and what becomes of its containers then.
async fn the_engine_goes_and_comes_back(containers: Containers) {
    let light = LightImage::make().await;
    let mut engine = OwnEngine::start(containers, light.name()).await;
    let world = ready(World::on(&engine).await, light.name()).await;
    for how in ["stopped", "killed"] {
        let mut at_work = Subject::at(&world, Moment::MidStream).await;
        let mut frozen = Subject::at(&world, Moment::Frozen).await;
        let mut clients = world.clients().await;
        match how {
            "stopped" => engine.stop().await,
            _ => engine.kill().await,
        }
        engine_is_told_to_be(&mut clients, &["ENGINE_UNREACHABLE", "ENGINE_MISSING"]).await;
        if containers == Containers::EndWithIt && how == "stopped" {
            at_work.failed(&mut clients, "INSTANCE_ENDED", v1::ExitReason::EngineStopped).await;
            clients.resume(&at_work.id).await;
            let refused = clients.get_when(&at_work.id, "no start without an engine", |session| {
                session.fault.as_ref().is_some_and(|fault| fault.code.starts_with("ENGINE_"))
            });
            assert!(!refused.await.fault.expect("it was there").hint.is_empty());
        }
        engine.run().await;
        match containers {
            Containers::EndWithIt => {
                if how == "killed" {
                    let fault = at_work.failed(&mut clients, "INSTANCE_ENDED", v1::ExitReason::EngineStopped).await;
                    assert!(fault.message.contains("engine") && fault.hint.contains("openagent resume"), "{how}: {fault:?}");
                }
                frozen.lost_in_its_sleep(&mut clients, v1::ExitReason::EngineStopped).await;
                at_work.goes_on_anew(&world).await;
                frozen.goes_on_anew(&world).await;
            }
            Containers::RunOn => {
                world.open_gate(&at_work.id, "never").await;
                assert_eq!(at_work.witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed, "{how}");
                let asleep = clients.get(&frozen.id).await;
                assert_eq!((asleep.status(), state(&asleep)), (v1::SessionStatus::Idle, v1::InstanceState::Paused), "{how}");
                at_work.goes_on(&world).await;
                frozen.goes_on(&world).await;
            }
        }
        for subject in [at_work, frozen] {
            clients.remove(&subject.id).await;
        }
    }
    world.end().await;
}

#[tokio::test]
async fn an_engine_that_takes_its_containers_along_is_stopped_and_killed() {
    Box::pin(the_engine_goes_and_comes_back(Containers::EndWithIt)).await;
}

#[tokio::test]
async fn an_engine_whose_containers_run_on_is_stopped_and_killed() {
    Box::pin(the_engine_goes_and_comes_back(Containers::RunOn)).await;
}

#[tokio::test]
async fn a_slow_engine_costs_time_and_nothing_else() {
    let proxy = EngineProxy::before(&machine_engine());
    let light = LightImage::make().await;
    let world = ready(World::behind(&proxy).await, light.name()).await;
    let _slow = proxy.rule("*", "", Action::Delay(Duration::from_millis(300)));
    let mut clients = world.clients().await;
    let mut subject = Subject::at(&world, Moment::Frozen).await;
    assert!(engine_status(&mut clients).await.healthy);
    subject.goes_on(&world).await;
    clients.stop(&subject.id).await;
    subject.goes_on(&world).await;
    world.end().await;
}

#[tokio::test]
async fn an_engine_that_hangs_holds_up_only_what_needs_it_and_not_for_ever() {
    let proxy = EngineProxy::before(&machine_engine());
    let light = LightImage::make().await;
    let world = ready(World::behind(&proxy).await, light.name()).await;
    let mut clients = world.clients().await;
    let (mut at_rest, mut stopping) = (Subject::at(&world, Moment::AtRest).await, Subject::at(&world, Moment::MidStream).await);
    let hang = proxy.rule("*", "", Action::Hold);
    let began = Instant::now();
    let id = clients.create(MODEL).await.id;
    let stop = {
        let (mut clients, id) = (clients.clone(), stopping.id.clone());
        async move { clients.stop(&id).await }
    };
    let meanwhile = async {
        let mut clients = world.clients().await;
        engine_is_told_to_be(&mut clients, &["ENGINE_TIMEOUT"]).await;
        clients.prompt(&at_rest.id, "#echo here").await;
        assert_eq!(at_rest.witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
        assert!(began.elapsed() < Duration::from_secs(10), "others are not held up: {:?}", began.elapsed());
        let failed = |session: &v1::Session| session.status() == v1::SessionStatus::Error;
        let session = clients.get_when(&id, "that the engine hangs", failed).await;
        let fault = session.fault.expect("it says why");
        assert!(fault.code == "ENGINE_TIMEOUT" && !fault.hint.is_empty(), "{fault:?}");
        assert!(began.elapsed() < Duration::from_secs(60), "after {:?}", began.elapsed());
        drop(hang);
    };
    tokio::join!(stop, meanwhile);
    assert_eq!(clients.get(&stopping.id).await.status(), v1::SessionStatus::Stopped);
    at_rest.goes_on(&world).await;
    stopping.goes_on(&world).await;
    clients.resume(&id).await;
    clients.get_when(&id, "a start", |session| session.status() == v1::SessionStatus::Active && session.step.is_empty()).await;
    world.until_no_orphans(PATIENCE).await;
    world.end().await;
}

#[tokio::test]
async fn a_daemon_that_starts_without_its_engine_declares_nobody_dead() {
    let proxy = EngineProxy::before(&machine_engine());
    let light = LightImage::make().await;
    let mut world = ready(World::behind(&proxy).await, light.name()).await;
    let mut at_work = Subject::at(&world, Moment::MidStream).await;
    let mut frozen = Subject::at(&world, Moment::Frozen).await;
    world.kill().await;
    at_work.witness.until_broken().await;
    frozen.witness.until_broken().await;
    proxy.go_away().await;
    world.start().await;
    let mut clients = world.clients().await;
    engine_is_told_to_be(&mut clients, &["ENGINE_UNREACHABLE", "ENGINE_MISSING"]).await;
    at_work.witness.connect(&mut clients).await;
    // Its sidecar is reached without the engine.
    at_work.witness.until_letters().await;
    let seen = |session: v1::Session| (session.status(), state(&session));
    assert_eq!(seen(clients.get(&at_work.id).await), (v1::SessionStatus::Active, v1::InstanceState::Running));
    assert_eq!(seen(clients.get(&frozen.id).await), (v1::SessionStatus::Idle, v1::InstanceState::Paused));
    let new = clients.create(MODEL).await.id;
    let failed = clients.get_when(&new, "no start without an engine", |session| session.status() == v1::SessionStatus::Error).await;
    assert!(failed.fault.is_some_and(|fault| fault.code.starts_with("ENGINE_") && !fault.hint.is_empty()));
    proxy.come_back().await;
    world.open_gate(&at_work.id, "never").await;
    assert_eq!(at_work.witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
    at_work.goes_on(&world).await;
    frozen.goes_on(&world).await;
    assert!(engine_status(&mut clients).await.healthy);
    world.end().await;
}

/// What somebody does to a container.
#[derive(Debug, Clone, Copy)]
enum Meddling {
    /// `docker rm -f`.
    Remove,
    /// `docker kill`.
    Kill,
    /// `kill -9` of its main process, on the machine.
    KillMain,
}

async fn meddle(engine: &Docker, container: &str, how: Meddling) {
    match how {
        Meddling::Remove => {
            let force = RemoveContainerOptionsBuilder::default().force(true).build();
            engine.remove_container(container, Some(force)).await.expect("the engine removes it");
        }
        Meddling::Kill => {
            let options = KillContainerOptionsBuilder::default().build();
            engine.kill_container(container, Some(options)).await.expect("the engine kills it");
        }
        Meddling::KillMain => {
            let about = engine.inspect_container(container, None).await.expect("the container is there");
            let pid = about.state.and_then(|state| state.pid).and_then(|pid| i32::try_from(pid).ok()).expect("it runs");
            Process::of(pid).expect("the engine is on this machine").signal(Signal::SIGKILL);
        }
    }
}

#[tokio::test]
async fn a_container_is_removed_or_killed_by_somebody_else() {
    let light = LightImage::make().await;
    let world = ready(World::new(Driver::Docker).await, light.name()).await;
    let mut clients = world.clients().await;
    for (how, reason) in [
        (Meddling::Remove, v1::ExitReason::Removed),
        (Meddling::Kill, v1::ExitReason::Killed),
        (Meddling::KillMain, v1::ExitReason::Killed),
    ] {
        for moment in [Moment::MidStream, Moment::Asked, Moment::Frozen] {
            if moment == Moment::Frozen && matches!(how, Meddling::KillMain) {
                // With control groups of version 1 a frozen process does not die before it is thawed.
                continue;
            }
            let mut subject = Subject::at(&world, moment).await;
            let container = world.container(&subject.id).await.id;
            meddle(&world.engine(), &container, how).await;
            if moment == Moment::Frozen {
                subject.lost_in_its_sleep(&mut clients, reason).await;
            } else {
                let fault = subject.failed(&mut clients, "INSTANCE_ENDED", reason).await;
                assert!(fault.hint.contains("openagent resume"), "{how:?}: {fault:?}");
            }
            subject.goes_on_anew(&world).await;
            clients.remove(&subject.id).await;
        }
    }
    world.end().await;
}

#[tokio::test]
async fn a_container_that_somebody_else_freezes_is_out_of_reach_until_it_is_thawed() {
    let light = LightImage::make().await;
    let world = ready(World::new(Driver::Docker).await, light.name()).await;
    let mut clients = world.clients().await;
    let mut subject = Subject::at(&world, Moment::MidStream).await;
    let (engine, container) = (world.engine(), world.container(&subject.id).await.id);
    engine.pause_container(&container).await.expect("the engine freezes it");
    let silent = clients.get_when(&subject.id, "silence", |session| session.unreachable_since.is_some()).await;
    assert_eq!(silent.status(), v1::SessionStatus::Active, "nothing is lost");
    engine.unpause_container(&container).await.expect("the engine thaws it");
    clients.get_when(&subject.id, "an answer", |session| session.unreachable_since.is_none()).await;
    world.open_gate(&subject.id, "never").await;
    assert_eq!(subject.witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
    subject.goes_on(&world).await;

    // And the other way round.
    let mut subject = Subject::at(&world, Moment::Frozen).await;
    engine.unpause_container(&world.container(&subject.id).await.id).await.expect("the engine thaws it");
    subject.goes_on(&world).await;
    world.end().await;
}

#[tokio::test]
async fn a_volume_that_is_gone_is_said_and_not_replaced_by_an_empty_one() {
    let light = LightImage::make().await;
    let world = ready(World::new(Driver::Docker).await, light.name()).await;
    let mut clients = world.clients().await;
    let subject = Subject::at(&world, Moment::AtRest).await;
    clients.stop(&subject.id).await;
    for volume in ["workspace", "home", "state"] {
        let name = format!("openagent-{}-{volume}", subject.id);
        world.engine().remove_volume(&name, None::<RemoveVolumeOptions>).await.expect("nobody uses it");
        clients.resume(&subject.id).await;
        let lost = |session: &v1::Session| session.status() == v1::SessionStatus::Error;
        let fault = clients.get_when(&subject.id, "that it is gone", lost).await.fault.expect("it says why");
        assert!(fault.code == "VOLUME_LOST" && fault.message.contains(volume) && fault.hint.contains("openagent rm"), "{fault:?}");
        assert!(world.engine().inspect_volume(&name).await.is_err(), "no empty one is made");
        clients.stop(&subject.id).await;
    }
    subject.witness.judge(&mut clients).await;
    world.end().await;
}

#[tokio::test]
async fn an_image_that_is_gone_at_a_resume_is_said() {
    let light = LightImage::make().await;
    let name = format!("{}-gone", light.name());
    let (repository, tag) = name.split_once(':').expect("it has a tag");
    let tagged = TagImageOptionsBuilder::default().repo(repository).tag(tag).build();
    let world = World::new(Driver::Docker).await;
    let engine = world.engine();
    engine.tag_image(light.name(), Some(tagged.clone())).await.expect("the engine tags it");
    let world = ready(world, &name).await;
    let mut clients = world.clients().await;
    let mut subject = Subject::at(&world, Moment::AtRest).await;
    clients.stop(&subject.id).await;
    let untag = RemoveImageOptionsBuilder::default().build();
    engine.remove_image(&name, Some(untag.clone()), None).await.expect("the engine removes it");
    clients.resume(&subject.id).await;
    let failed = clients.get_when(&subject.id, "that it is gone", |session| session.status() == v1::SessionStatus::Error).await;
    let fault = failed.fault.expect("it says why");
    assert!(fault.code == "IMAGE_MISSING" && fault.message.contains(&name) && fault.hint.contains("cargo xtask image"), "{fault:?}");
    engine.tag_image(light.name(), Some(tagged)).await.expect("the engine tags it");
    subject.goes_on(&world).await;
    world.end().await;
    engine.remove_image(&name, Some(untag), None).await.expect("the engine removes it");
}
