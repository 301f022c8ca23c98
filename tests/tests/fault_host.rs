//! The host goes down, its power is cut, its disks are full, its clock jumps: each session says what is the case, and goes on.

use std::fs;
use std::path::Path;
use std::time::Duration;

use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_tests::harness::client::{Clients, within};
use openagent_tests::harness::host::{Clock, DAY, MIB, SmallDisk, until};
use openagent_tests::harness::light_image::LightImage;
use openagent_tests::harness::programs;
use openagent_tests::harness::refusal::refused;
use openagent_tests::harness::subject::{MODEL, Moment, Subject, ends};
use openagent_tests::harness::witness::Witness;
use openagent_tests::harness::{CANARY, Driver, PATIENCE, World, stand_in_agent};
use tonic::Code;

async fn light(config: &str) -> World {
    let mut world = World::light().await;
    world.write_config(config);
    world.start().await;
    world.clients().await.set_key("scripted", CANARY).await;
    world
}

/// The whole conversation that a history tells: its messages and parts as they were last, in order.
fn conversation(history: &[v1::Event]) -> Vec<Kind> {
    let mut told: Vec<(String, Kind)> = vec![];
    for event in history {
        let Some(kind) = &event.kind else { continue };
        let name = match kind {
            Kind::Message(message) => &message.id,
            Kind::Part(part) => &part.id,
            _ => continue,
        };
        match told.iter_mut().find(|(known, _)| known == name) {
            Some((_, last)) => *last = kind.clone(),
            None => told.push((name.clone(), kind.clone())),
        }
    }
    told.into_iter().map(|(_, kind)| kind).collect()
}

async fn the_host_reboots(mut world: World, reason: v1::ExitReason) {
    let mut subjects = vec![];
    for moment in [Moment::AtRest, Moment::MidStream, Moment::ToolRuns, Moment::Asked, Moment::Frozen] {
        subjects.push((moment, Subject::at(&world, moment).await));
    }
    let mut clients = world.clients().await;
    let stopped = Subject::at(&world, Moment::AtRest).await;
    clients.stop(&stopped.id).await;
    let resting = v1::CreateSessionRequest {
        model: MODEL.to_owned(),
        idle_timeout: Some(Duration::from_millis(300).try_into().expect("it is short")),
        idle_action: v1::IdleAction::Stop.into(),
        ..Default::default()
    };
    let resting = clients.create_with(resting).await.id;
    clients.get_when(&resting, "rest", |session| session.status() == v1::SessionStatus::Idle && session.step.is_empty()).await;
    let mut conversations = vec![];
    for (_, subject) in &subjects {
        conversations.push(conversation(&clients.history(&subject.id).await));
    }

    world.reboot().await;
    for (_, subject) in &mut subjects {
        subject.witness.until_broken().await;
    }
    world.start().await;
    let mut clients = world.clients().await;
    for ((moment, subject), before) in subjects.iter_mut().zip(conversations) {
        if *moment == Moment::Frozen {
            subject.lost_in_its_sleep(&mut clients, reason).await;
        } else {
            let fault = subject.failed(&mut clients, "INSTANCE_ENDED", reason).await;
            assert!(fault.message.starts_with("the sandbox ended: ") && fault.hint.contains("openagent resume"), "{fault:?}");
        }
        let after = conversation(&clients.history(&subject.id).await);
        assert_eq!(after, before, "the conversation is as it was: {moment:?}");
        let history = subject.goes_on_anew(&world).await;
        assert_eq!(ends(&history).last(), Some(&v1::TurnOutcome::Completed), "{moment:?}");
    }
    let mut stopped = stopped;
    assert_eq!(clients.get(&stopped.id).await.status(), v1::SessionStatus::Stopped, "nobody has asked for it");
    stopped.witness.disconnect();
    stopped.goes_on(&world).await;
    assert_eq!(clients.get(&resting).await.status(), v1::SessionStatus::Idle);
    let mut events = clients.follow(&resting).await;
    assert_eq!(clients.turn(&resting, &mut events, "#echo awake").await.outcome(), v1::TurnOutcome::Completed);
    world.end().await;
}

#[tokio::test]
async fn the_host_reboots_under_sessions_at_every_moment_locally() {
    Box::pin(the_host_reboots(light("").await, v1::ExitReason::Unwatched)).await;
}

#[tokio::test]
async fn the_host_reboots_under_sessions_at_every_moment_in_containers() {
    let image = LightImage::make().await;
    let mut world = World::new(Driver::Docker).await;
    world.set_env("OPENAGENT_IMAGE", image.name());
    world.start().await;
    world.clients().await.set_key("scripted", CANARY).await;
    Box::pin(the_host_reboots(world, v1::ExitReason::Killed)).await;
}

#[tokio::test]
async fn the_host_reboots_while_one_session_is_half_started_and_one_waits_for_room() {
    for step in ["create", "workspace", "register", "agent"] {
        let mut world = light("[daemon]\nmax_running = 2\n").await;
        let mut first = Subject::at(&world, Moment::AtRest).await;
        let mut clients = world.clients().await;
        let mut followed = vec![];
        for _ in 0..2 {
            let witness = Witness::of(&clients.create(MODEL).await.id);
            followed.push(witness);
        }
        for witness in &mut followed {
            witness.connect(&mut clients).await;
        }
        followed[0].until_step_begins(step).await;
        clients.get_when(&followed[1].session, "its place", |session| session.queue_position == 1).await;
        world.reboot().await;
        for witness in followed.iter_mut().chain([&mut first.witness]) {
            witness.until_broken().await;
        }
        world.start().await;
        let mut clients = world.clients().await;
        first.failed(&mut clients, "INSTANCE_ENDED", v1::ExitReason::Unwatched).await;
        for witness in &mut followed {
            // Without anybody's doing.
            clients.get_when(&witness.session, "a start", |session| session.status() == v1::SessionStatus::Active).await;
            witness.connect(&mut clients).await;
            clients.prompt(&witness.session, "#echo at last").await;
            assert_eq!(witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed, "at step {step}");
            witness.judge(&mut clients).await;
        }
        clients.stop(&followed[0].session).await;
        first.goes_on(&world).await;
        world.end().await;
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp is there").success(), "{} is copied", from.display());
}

/// Everything of the store that is not durable yet is lost with the power: its files are again as they were when the last event was acknowledged.
#[tokio::test]
async fn the_power_is_cut_in_the_middle_of_a_group_commit() {
    let mut world = light("").await;
    let mut subject = Subject::at(&world, Moment::AtRest).await;
    let store = world.path("state/db");
    let mut cuts = 0;
    for round in 0..20 {
        let mut clients = world.clients().await;
        let gate = format!("round-{round}");
        clients.prompt(&subject.id, &format!("#wait {gate}")).await;
        subject.witness.until_letters().await;
        // The agent waits, so the store does, and everything in it was acknowledged.
        within("rest of the store", PATIENCE, async {
            while clients.get(&subject.id).await.last_seq != subject.witness.last() {
                subject.witness.take_for(Duration::from_millis(20)).await;
            }
        })
        .await;
        let durable = world.path(&format!("durable-{round}"));
        copy(&store, &durable);
        let file = store.join("db");
        let written = || fs::read(&file).expect("the store is there");
        let before = written();
        let acknowledged = subject.witness.last();
        world.open_gate(&subject.id, &gate).await;
        // As soon as a byte of the next commit is written, and in most rounds before it is durable.
        within("a write", PATIENCE, async {
            while written() == before {
                tokio::task::yield_now().await;
            }
        })
        .await;
        world.reboot().await;
        subject.witness.until_broken().await;
        let is_cut = subject.witness.last() == acknowledged;
        if is_cut {
            cuts += 1;
            fs::remove_dir_all(&store).expect("the daemon is gone");
            copy(&durable, &store);
        }
        world.start().await;
        let mut clients = world.clients().await;
        subject.failed(&mut clients, "INSTANCE_ENDED", v1::ExitReason::Unwatched).await;
        let history = subject.goes_on(&world).await;
        // What the sandbox had noted and the store had lost has come again.
        let whole = history.iter().filter(|event| matches!(&event.kind, Some(Kind::Part(v1::Part { body: Some(v1::part::Body::Text(text)), .. })) if text.text.contains("It begins"))).count();
        assert!(whole > 0, "{history:#?}");
        if cuts == 3 {
            break;
        }
    }
    assert!(cuts > 0, "no event was ever unacknowledged when the power was cut");
    let sound = world.clients().await.daemon.verify_store(v1::VerifyStoreRequest {}).await.expect("it is verified").into_inner();
    assert_eq!(sound.problem_count, 0, "{sound:?}");
    world.end().await;
}

/// The store says why it takes nothing, and so does the command.
async fn says_that_it_is_full(world: &World, clients: &mut Clients) {
    let status = async || clients.clone().daemon.get_status(v1::GetStatusRequest {}).await.expect("it answers").into_inner().store;
    let store = until("a full store", PATIENCE, status, |store| store.as_ref().is_some_and(|store| !store.writable)).await;
    let fault = store.and_then(|store| store.fault).expect("it says why");
    assert_eq!(fault.code, "STORE_FULL");
    assert!(!fault.message.is_empty() && fault.hint.contains("MiB"), "{fault:?}");
    let told = world.cli(&["daemon", "status"]).await;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    for words in ["read-only", "the disk of the store is full", "writing goes on by itself"] {
        assert!(told.status.success() && text.contains(words), "{text}");
    }
}

/// What begins work is refused; everything that is known can still be read.
async fn reads_go_on_and_work_is_refused(clients: &mut Clients, subject: &Subject) {
    let prompt = v1::PromptRequest { session_id: subject.id.clone(), text: "#echo refused".to_owned(), ..Default::default() };
    let said = refused(clients.session.prompt(prompt).await, Code::ResourceExhausted, "STORE_FULL");
    assert!(said.hint.contains("MiB"), "{said:?}");
    let create = v1::CreateSessionRequest { model: MODEL.to_owned(), ..Default::default() };
    refused(clients.session.create_session(create).await, Code::ResourceExhausted, "STORE_FULL");
    assert_eq!(clients.list().await.len(), 1);
    assert!(clients.history(&subject.id).await.len() as u64 >= subject.witness.last());
    assert_eq!(clients.get(&subject.id).await.status(), v1::SessionStatus::Active);
}

/// A turn that runs a command which goes on once a file is there, and says when it is over.
async fn long_command(world: &World, subject: &mut Subject) {
    let mut clients = world.clients().await;
    clients.prompt(&subject.id, "#bash touch runs; while ! test -e go; do sleep 0.02; done; touch over").await;
    let asked = subject.witness.until_asked().await;
    clients.permit(&subject.id, &asked.id, v1::PermissionResponse::Once).await;
    world.until_file(&subject.id, "runs").await;
}

/// The turn ends as if nothing had been, and everything of it arrives once.
async fn arrives_once(world: &World, subject: &mut Subject) {
    let end = subject.witness.until_turn_ended().await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{end:?}");
    let history = subject.goes_on(world).await;
    assert_eq!(ends(&history), [v1::TurnOutcome::Completed; 3]);
    let sound = world.clients().await.daemon.verify_store(v1::VerifyStoreRequest {}).await.expect("it is verified").into_inner();
    assert_eq!(sound.problem_count, 0, "{sound:?}");
}

#[tokio::test]
async fn the_disk_of_the_store_fills_up_under_a_turn_and_has_room_again() {
    let mut world = World::light().await;
    world.write_config("[store]\nreserve = \"16MiB\"\n");
    let disk = SmallDisk::at(&world.path("state"), 96 * MIB);
    world.start().await;
    world.set_keys(CANARY).await;
    let mut subject = Subject::at(&world, Moment::AtRest).await;
    long_command(&world, &mut subject).await;
    let mut clients = world.clients().await;

    disk.fill(15 * MIB);
    says_that_it_is_full(&world, &mut clients).await;
    reads_go_on_and_work_is_refused(&mut clients, &subject).await;
    world.open_gate(&subject.id, "go").await;
    world.until_file(&subject.id, "over").await;
    subject.witness.take_for(Duration::from_millis(500)).await;
    assert!(clients.history(&subject.id).await.len() as u64 == subject.witness.last(), "nobody sees what is not stored");

    // A daemon that is killed meanwhile finds the same.
    world.kill().await;
    subject.witness.until_broken().await;
    world.start().await;
    let mut clients = world.clients().await;
    says_that_it_is_full(&world, &mut clients).await;
    reads_go_on_and_work_is_refused(&mut clients, &subject).await;
    subject.witness.connect(&mut clients).await;
    disk.clear();
    arrives_once(&world, &mut subject).await;
    world.end().await;
    drop(disk);
}

#[tokio::test]
async fn a_daemon_that_starts_on_a_full_disk_takes_up_its_sessions_and_stores_once_there_is_room() {
    let mut world = light("").await;
    let mut subject = Subject::at(&world, Moment::AtRest).await;
    long_command(&world, &mut subject).await;
    world.stop().await;
    subject.witness.until_broken().await;
    world.write_config("[store]\nreserve = \"900000GiB\"\n");
    world.start().await;
    let mut clients = world.clients().await;
    says_that_it_is_full(&world, &mut clients).await;
    reads_go_on_and_work_is_refused(&mut clients, &subject).await;
    world.open_gate(&subject.id, "go").await;
    world.until_file(&subject.id, "over").await;
    world.stop().await;
    world.write_config("");
    world.start().await;
    let mut clients = world.clients().await;
    subject.witness.connect(&mut clients).await;
    arrives_once(&world, &mut subject).await;
    world.end().await;
}

/// Text of the last tool call and how it ended.
async fn output(witness: &mut Witness) -> (String, Option<i32>) {
    witness
        .until("the end of a command", |kind| match kind {
            Kind::Part(v1::Part { body: Some(v1::part::Body::Tool(tool)), .. }) => match &tool.state {
                Some(v1::tool_part::State::Completed(done)) => Some((done.output.clone(), done.exit_code)),
                Some(v1::tool_part::State::Error(error)) => Some((error.error.clone(), None)),
                _ => None,
            },
            _ => None,
        })
        .await
}

#[tokio::test]
async fn the_disk_of_a_workspace_is_full_and_the_conversation_says_so() {
    let world = light("").await;
    let mut subject = Subject::at(&world, Moment::AtRest).await;
    let mut clients = world.clients().await;
    clients.stop(&subject.id).await;
    let workspace = world.path("state/local").join(&subject.id).join("workspace");
    let kept = world.path("kept");
    copy(&workspace, &kept);
    let disk = SmallDisk::at(&workspace, 4 * MIB);
    copy(&kept.join("."), &workspace);
    disk.fill(0);
    clients.resume(&subject.id).await;
    clients.prompt(&subject.id, "#bash cp /bin/sh ./copied").await;
    let asked = subject.witness.until_asked().await;
    clients.permit(&subject.id, &asked.id, v1::PermissionResponse::Once).await;
    let (text, code) = output(&mut subject.witness).await;
    assert!(text.contains("No space left on device") && code != Some(0), "{text} {code:?}");
    assert_eq!(subject.witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
    disk.clear();
    subject.goes_on(&world).await;
    clients.stop(&subject.id).await;
    drop(disk);
    world.end().await;
}

/// Nothing more can be written where the real agent keeps its conversations: the user is told, and once there is room it goes on.
#[tokio::test]
async fn the_disk_of_an_agents_home_is_full_and_the_session_says_so() {
    let world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active(MODEL).await;
    assert_eq!(clients.turn(&id, &mut events, "#echo before").await.outcome(), v1::TurnOutcome::Completed);
    clients.stop(&id).await;
    let home = world.path("state/local").join(&id).join("home");
    let kept = world.path("kept");
    copy(&home, &kept);
    let disk = SmallDisk::at(&home, 64 * MIB);
    copy(&kept.join("."), &home);
    clients.resume(&id).await;
    events.until_ready().await;
    disk.fill(0);
    let prompt = v1::PromptRequest { session_id: id.clone(), text: format!("#echo {}", "full ".repeat(60_000)), ..Default::default() };
    match within("an answer", PATIENCE, clients.session.prompt(prompt)).await {
        Err(refusal) => assert!(!refusal.message().is_empty(), "{refusal:?}"),
        Ok(_) => {
            let end = events.until_turn_ended().await;
            assert!(end.outcome() != v1::TurnOutcome::Completed, "{end:?}");
        }
    }
    disk.clear();
    let session = clients.get(&id).await;
    if session.status() == v1::SessionStatus::Error {
        assert!(session.fault.as_ref().is_some_and(|fault| !fault.message.is_empty() && !fault.hint.is_empty()), "{session:?}");
        clients.resume(&id).await;
    }
    clients.prompt(&id, "#echo room again").await;
    while events.until_turn_ended().await.outcome() != v1::TurnOutcome::Completed {}
    assert_eq!(events.answer().trim(), "room again");
    clients.stop(&id).await;
    drop(disk);
    world.end().await;
}

fn seconds(time: Option<prost_types::Timestamp>) -> i64 {
    time.expect("it has a time").seconds
}

/// The clock is set forwards and backwards by days, with a session that works, one that rests for long, and one that is frozen soon.
#[tokio::test]
async fn the_clock_jumps_by_days_and_no_timer_is_fooled() {
    let mut world = World::light().await;
    let clock = Clock::new(&world.path("home"));
    for (name, value) in clock.preload() {
        world.set_env(name, &value);
    }
    world.set_env("OPENAGENT_OPENCODE", &clock.wrapped(&stand_in_agent()).display().to_string());
    assert!(programs().join("openagentd").exists());
    world.start().await;
    world.set_keys(CANARY).await;
    let mut subject = Subject::at(&world, Moment::MidStream).await;
    let mut clients = world.clients().await;
    let long = v1::CreateSessionRequest {
        model: MODEL.to_owned(),
        idle_timeout: Some(Duration::from_secs(3_600).try_into().expect("it fits")),
        ..Default::default()
    };
    let long = clients.create_with(long).await.id;
    clients.follow(&long).await.until_ready().await;
    let start = seconds(clients.get(&long).await.created_at);

    for jump in [3 * DAY, -4 * DAY, 400 * DAY] {
        clock.set(jump);
        let frozen = Subject::at(&world, Moment::Frozen).await;
        let made = seconds(clients.get(&frozen.id).await.created_at);
        assert!((made - start - jump).abs() < 600, "the clock was set for the daemon: {made} is not {start} and {jump}");
        let long = clients.get(&long).await;
        assert_eq!(long.status(), v1::SessionStatus::Active, "an hour has not passed: {long:?}");
        let busy = clients.get(&subject.id).await;
        assert_eq!((busy.status(), busy.unreachable_since), (v1::SessionStatus::Active, None));
        // Ages are of times in the past or the future, and no command shows a negative one.
        for arguments in [&["ls"][..], &["show", &subject.id], &["usage"], &["logs", &subject.id]] {
            let told = world.cli(arguments).await;
            let text = format!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
            assert!(told.status.success(), "{arguments:?}: {text}");
            assert!(
                !text.split_whitespace().any(|word| word.starts_with('-') && word[1..].starts_with(|c: char| c.is_ascii_digit())),
                "{text}"
            );
        }
        let mut frozen = frozen;
        frozen.goes_on(&world).await;
        clients.remove(&frozen.id).await;
        // Another daemon does not mind either.
        world.kill().await;
        subject.witness.until_broken().await;
        world.start().await;
        clients = world.clients().await;
        subject.witness.connect(&mut clients).await;
        subject.witness.until_letters().await;
    }
    world.open_gate(&subject.id, "never").await;
    assert_eq!(subject.witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
    // Set back at last: what is written now is older than what was written before, and still comes behind it.
    clock.set(0);
    let history = subject.goes_on(&world).await;
    assert!(history.iter().map(|event| event.seq).eq(1..=history.len() as u64), "dense and in order");
    assert_eq!(clients.get(&long).await.status(), v1::SessionStatus::Active);
    world.end().await;
}
