//! What is in a sandbox breaks: its sidecar or its agent is killed, hangs, runs out of memory, is of another version, or finds its journal damaged or its disk full.
//! The user is told what happened, and the session goes on.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::Signal;
use openagent_proto::sidecar as wire;
use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_tests::harness::client::{Clients, within};
use openagent_tests::harness::engine::{AGENT, ROOT};
use openagent_tests::harness::instance::Who;
use openagent_tests::harness::light_image::LightImage;
use openagent_tests::harness::subject::{Moment, Subject, ends, state};
use openagent_tests::harness::{CANARY, Driver, PATIENCE, World};
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;

async fn local(config: &str) -> World {
    let mut world = World::light().await;
    world.write_config(config);
    world.start().await;
    world.set_keys(CANARY).await;
    world
}

async fn docker(image: &LightImage) -> World {
    let mut world = World::new(Driver::Docker).await;
    world.set_env("OPENAGENT_IMAGE", image.name());
    world.start().await;
    world.set_keys(CANARY).await;
    world
}

/// Waits until the end of the agent's process is told.
async fn agent_exited(subject: &mut Subject) -> v1::AgentExited {
    subject
        .witness
        .until("the agent's exit", |kind| match kind {
            Kind::Agent(v1::AgentEvent { process: Some(v1::agent_event::Process::Exited(exited)) }) => Some(*exited),
            _ => None,
        })
        .await
}

async fn agent_ready(subject: &mut Subject) {
    subject
        .witness
        .until("an agent that is ready again", |kind| {
            matches!(kind, Kind::Agent(v1::AgentEvent { process: Some(v1::agent_event::Process::Ready(_)) })).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_sidecar_that_is_killed_takes_the_agent_along_and_the_session_is_resumed() {
    let world = local("").await;
    let mut clients = world.clients().await;
    for moment in [Moment::AtRest, Moment::MidStream, Moment::ToolRuns, Moment::Asked] {
        let mut subject = Subject::at(&world, moment).await;
        let family = world.process_of(&subject.id, Who::Sidecar).await.family();
        world.signal_to(&subject.id, Who::Sidecar, Signal::SIGKILL).await;
        let fault = subject.failed(&mut clients, "INSTANCE_ENDED", v1::ExitReason::Killed).await;
        assert!(fault.message.contains("signal 9") && fault.hint.contains("openagent resume"), "{fault:?}");
        for process in family {
            process.gone().await;
        }
        subject.goes_on_anew(&world).await;
    }
    world.end().await;
}

#[tokio::test]
async fn an_agent_that_is_killed_is_started_again() {
    let light = LightImage::make().await;
    for world in [local("").await, docker(&light).await] {
        for moment in [Moment::AtRest, Moment::MidStream, Moment::ToolRuns, Moment::Asked] {
            let mut subject = Subject::at(&world, moment).await;
            world.signal_to(&subject.id, Who::Agent, Signal::SIGKILL).await;
            let exited = agent_exited(&mut subject).await;
            assert_eq!((exited.code, exited.cause()), (137, v1::AgentExitCause::Unspecified), "{moment:?}");
            assert!(exited.restart_in_millis.is_some(), "{moment:?}: it says when it is back");
            agent_ready(&mut subject).await;
            subject.goes_on_anew(&world).await;
            let session = world.clients().await.get(&subject.id).await;
            assert_eq!((session.status(), state(&session)), (v1::SessionStatus::Active, v1::InstanceState::Running));
        }
        world.end().await;
    }
}

#[tokio::test]
async fn the_real_agent_is_killed_while_a_tool_runs() {
    let world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active("scripted/scripted-large").await;
    clients.prompt(&id, "#bash touch runs; sleep 1000").await;
    let request = events.until_asked().await;
    clients.permit(&id, &request.id, v1::PermissionResponse::Once).await;
    world.until_file(&id, "runs").await;
    let agent = world.process_of(&id, Who::Agent).await;
    let family = agent.family();
    assert!(family.iter().any(|process| process.command_line().contains(&"1000".to_owned())), "the tool runs");
    agent.signal(Signal::SIGKILL);
    assert_eq!(events.until_turn_ended().await.outcome(), v1::TurnOutcome::Interrupted);
    for process in family {
        process.gone().await;
    }
    let tools = events.tools();
    assert!(matches!(tools.last().and_then(|tool| tool.state.as_ref()), Some(v1::tool_part::State::Error(_))), "{tools:?}");
    clients.get_when(&id, "an agent that is back", |session| session.status() == v1::SessionStatus::Active).await;
    events
        .until("an agent that is ready again", |kind| {
            matches!(kind, Kind::Agent(v1::AgentEvent { process: Some(v1::agent_event::Process::Ready(_)) })).then_some(())
        })
        .await;
    let end = clients.turn(&id, &mut events, "#echo back again").await;
    assert_eq!((end.outcome(), events.answer().as_str()), (v1::TurnOutcome::Completed, "back again"));
    world.until_no_orphans(PATIENCE).await;
    world.end().await;
}

#[tokio::test]
async fn an_agent_that_dies_again_and_again_is_given_up_until_the_session_is_resumed() {
    let world = local("").await;
    let mut subject = Subject::at(&world, Moment::AtRest).await;
    let mut pauses = vec![];
    while pauses.last() != Some(&None) {
        world.signal_to(&subject.id, Who::Agent, Signal::SIGKILL).await;
        let exited = agent_exited(&mut subject).await;
        pauses.push(exited.restart_in_millis);
        if exited.restart_in_millis.is_some() {
            agent_ready(&mut subject).await;
        }
    }
    assert_eq!(pauses, [Some(500), Some(1000), Some(2000), Some(4000), None]);
    let mut clients = world.clients().await;
    let failed = clients.get_when(&subject.id, "an error", |session| session.status() == v1::SessionStatus::Error).await;
    let fault = failed.fault.expect("it says why");
    assert_eq!(fault.code, "AGENT_GAVE_UP");
    assert!(fault.message.contains("again and again") && fault.hint.contains("openagent resume"), "{fault:?}");
    world.until_no_orphans(PATIENCE).await;
    subject.goes_on_anew(&world).await;
    world.end().await;
}

#[tokio::test]
async fn an_agent_and_a_sidecar_that_hang_are_noticed_ended_and_told() {
    let light = LightImage::make().await;
    // A local process that is stopped is taken for one that somebody has frozen.
    let (world, containers) = (local("").await, docker(&light).await);
    let (mut of_agent, mut of_sidecar) = (Subject::at(&world, Moment::MidStream).await, Subject::at(&containers, Moment::MidStream).await);
    let began = Instant::now();
    let agent = async {
        world.signal_to(&of_agent.id, Who::Agent, Signal::SIGSTOP).await;
        let exited = agent_exited(&mut of_agent).await;
        assert_eq!(exited.cause(), v1::AgentExitCause::Unresponsive);
        assert!(exited.restart_in_millis.is_some() && began.elapsed() < Duration::from_secs(60), "after {:?}", began.elapsed());
        agent_ready(&mut of_agent).await;
        of_agent.goes_on_anew(&world).await;
    };
    let sidecar = async {
        let mut clients = containers.clients().await;
        containers.signal_to(&of_sidecar.id, Who::Sidecar, Signal::SIGSTOP).await;
        let silent = clients.get_when(&of_sidecar.id, "silence", |session| session.unreachable_since.is_some()).await;
        assert_eq!(silent.status(), v1::SessionStatus::Active, "it still runs");
        let fault = of_sidecar.failed(&mut clients, "INSTANCE_ENDED", v1::ExitReason::Unresponsive).await;
        assert!(fault.message.contains("no longer answers") && fault.hint.contains("openagent resume"), "{fault:?}");
        assert!(began.elapsed() < Duration::from_secs(90), "after {:?}", began.elapsed());
        containers.until_no_orphans(PATIENCE).await;
        of_sidecar.goes_on_anew(&containers).await;
    };
    tokio::join!(agent, sidecar);
    world.end().await;
    containers.end().await;
}

/// What takes all memory that there is.
const GREEDY: &str = "tail /dev/zero";

/// Has the kernel end this process first when memory is short.
async fn sacrifice(world: &World, session: &str, user: &str, pid: &str) {
    world.container(session).await.until(user, &format!("echo 1000 > /proc/{pid}/oom_score_adj")).await;
}

#[tokio::test]
async fn memory_that_runs_out_is_told_whoever_the_kernel_ends() {
    let light = LightImage::make().await;
    let world = docker(&light).await;
    let mut clients = world.clients().await;
    let limits = v1::Limits { memory_bytes: 512 << 20, ..Default::default() };
    let small = || v1::CreateSessionRequest { limits: Some(limits), ..Default::default() };

    let mut subject = Subject::made(&world, Moment::AtRest, small()).await;
    clients.prompt(&subject.id, &format!("#bash {GREEDY}")).await;
    let request = subject.witness.until_asked().await;
    clients.permit(&subject.id, &request.id, v1::PermissionResponse::Once).await;
    let told = subject
        .witness
        .until("word of the memory", |kind| match kind {
            Kind::AgentError(error) => Some(error.clone()),
            _ => None,
        })
        .await;
    assert!(told.name == "OUT_OF_MEMORY" && !told.message.is_empty() && told.hint.contains("memory"), "{told:?}");
    assert_eq!(subject.witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed, "the agent goes on");
    subject.goes_on(&world).await;

    let mut subject = Subject::made(&world, Moment::MidStream, small()).await;
    sacrifice(&world, &subject.id, AGENT, "$(pgrep -o -f '[s]erve --hostname 127.0.0.1')").await;
    world.container(&subject.id).await.spawn(AGENT, &["bash", "-c", GREEDY]).await;
    let exited = agent_exited(&mut subject).await;
    assert_eq!(exited.cause(), v1::AgentExitCause::OutOfMemory, "{exited:?}");
    agent_ready(&mut subject).await;
    subject.goes_on_anew(&world).await;

    let mut subject = Subject::made(&world, Moment::MidStream, small()).await;
    sacrifice(&world, &subject.id, ROOT, "1").await;
    world.container(&subject.id).await.spawn(AGENT, &["bash", "-c", GREEDY]).await;
    let fault = subject.failed(&mut clients, "INSTANCE_ENDED", v1::ExitReason::OutOfMemory).await;
    assert!(fault.message.contains("out of memory") && fault.hint.contains("--memory"), "{fault:?}");
    subject.goes_on_anew(&world).await;
    world.end().await;
}

/// A sidecar of a version to come: it answers what the daemon asks before anything else, with another protocol.
async fn sidecar_of_another_version(socket: PathBuf) {
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("the folder is the daemon's, which is ours");
    loop {
        let (mut stream, _) = listener.accept().await.expect("it listens");
        // The preamble is a line of its own.
        while stream.read_u8().await.is_ok_and(|byte| byte != b'\n') {}
        let service = hyper::service::service_fn(async |request: http::Request<hyper::body::Incoming>| {
            let protocol = wire::PROTOCOL + 1;
            let body = if request.uri().path() == wire::path::REGISTER {
                let (key, id, token) = (String::new(), String::new(), String::new());
                let answer =
                    wire::Registered { success: true, sidecar_public_key: key, sidecar_key_id: id, sidecar_auth_token: token, protocol };
                serde_json::to_vec(&answer)
            } else {
                let agent = wire::AgentHealth { running: true, restarts: 0 };
                let (status, version) = ("ok".to_owned(), "9.0.0".to_owned());
                serde_json::to_vec(&wire::Health { status, timestamp: String::new(), uptime_ms: 0, version, protocol, agent })
            };
            Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from(body.expect("it is JSON")))))
        });
        // One after the other is enough: the daemon leaves after the first answer.
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    }
}

/// Where the sidecar of a session listens.
async fn sidecar_socket(world: &World, clients: &mut Clients, id: &str) -> PathBuf {
    let instance = clients.get(id).await.instance.expect("it has one").id;
    world.path("run/l").join(instance.trim_start_matches("ins_")).join(wire::SOCKET_NAME)
}

fn is_refused_politely(session: &v1::Session) {
    let fault = session.fault.as_ref().expect("an error says why");
    assert_eq!(fault.code, "SIDECAR_VERSION");
    assert!(fault.message.contains("protocol 2") && fault.message.contains("1"), "{fault:?}");
    assert!(fault.hint.contains("openagent resume") && fault.hint.contains("cargo xtask image"), "{fault:?}");
}

#[tokio::test]
async fn a_sidecar_of_another_protocol_is_refused_with_the_remedy() {
    let mut world = World::light().await;
    // It never listens: the test does in its place.
    let silent = world.path("openagent-sidecar");
    std::fs::write(&silent, "#!/bin/sh\n[ \"$1\" = --version ] && echo silent && exit\nexec sleep 1000\n").expect("the folder is ours");
    std::fs::set_permissions(&silent, std::fs::Permissions::from_mode(0o755)).expect("the file is ours");
    world.write_config(&format!("[local]\nsidecar = {:?}\n", silent.display().to_string()));
    world.start().await;
    world.set_keys(CANARY).await;
    let mut clients = world.clients().await;
    let id = clients.create("scripted/scripted-large").await.id;
    clients.get_when(&id, "its registration", |session| session.step == "register").await;
    let other = sidecar_of_another_version(sidecar_socket(&world, &mut clients, &id).await);
    let failed = clients.get_when(&id, "an error", |session| session.status() == v1::SessionStatus::Error);
    let failed = tokio::select! {
        session = failed => session,
        () = other => unreachable!("it serves for ever"),
    };
    is_refused_politely(&failed);
    world.until_no_orphans(PATIENCE).await;
    world.stop().await;

    // At a daemon that comes back and finds it.
    world.write_config("");
    world.start().await;
    let mut subject = Subject::at(&world, Moment::MidStream).await;
    let mut clients = world.clients().await;
    let socket = sidecar_socket(&world, &mut clients, &subject.id).await;
    world.kill().await;
    subject.witness.until_broken().await;
    let session = subject.id.clone();
    let restarted = async {
        world.start().await;
        let mut clients = world.clients().await;
        clients.get_when(&session, "an error", |session| session.status() == v1::SessionStatus::Error).await
    };
    let failed = tokio::select! {
        session = restarted => session,
        () = sidecar_of_another_version(socket) => unreachable!("it serves for ever"),
    };
    is_refused_politely(&failed);
    subject.goes_on_anew(&world).await;
    let mut clients = world.clients().await;
    clients.resume(&id).await;
    clients.get_when(&id, "the first one too", |session| session.status() == v1::SessionStatus::Active).await;
    world.end().await;
}

/// What becomes of the bytes of a journal.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// One in the middle of what the daemon does not have yet is another.
    Flipped,
    /// The file ends in the middle of what the daemon does not have yet.
    Cut,
    /// Nothing of the file makes sense.
    Overwritten,
}

fn journal_file(world: &World, session: &str) -> PathBuf {
    let folder = world.path("state/local").join(session).join("state/journal");
    let files = std::fs::read_dir(&folder).expect("the journal is there").flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|suffix| suffix == "log")).collect();
    files.sort();
    files.pop().unwrap_or_else(|| panic!("no file in {}", folder.display()))
}

/// Damages what is behind the first `known` bytes.
fn damage(file: &Path, known: usize, how: Damage) {
    let mut bytes = std::fs::read(file).expect("the journal can be read");
    let middle = known + (bytes.len() - known) / 2;
    assert!(middle > known, "there is something that the daemon does not have");
    match how {
        Damage::Flipped => bytes[middle] ^= 0x20,
        Damage::Cut => bytes.truncate(middle),
        Damage::Overwritten => bytes.fill(b'?'),
    }
    std::fs::write(file, bytes).expect("the journal can be written");
}

#[tokio::test]
async fn a_damaged_journal_is_a_gap_that_is_told() {
    let mut world = local("").await;
    for how in [Damage::Flipped, Damage::Cut, Damage::Overwritten] {
        let mut subject = Subject::at(&world, Moment::AtRest).await;
        let mut clients = world.clients().await;
        clients.prompt(&subject.id, "#wait gate").await;
        subject.witness.until_letters().await;
        let file = journal_file(&world, &subject.id);
        let known = std::fs::read(&file).expect("the journal is there").len();
        world.kill().await;
        subject.witness.until_broken().await;
        // The turn ends while no daemon is there.
        world.open_gate(&subject.id, "gate").await;
        within("the end of the turn", PATIENCE, async {
            let ended = |file: Vec<u8>| file.windows(10).skip(known).any(|word| word == b"turn_ended");
            while !ended(std::fs::read(&file).expect("it can be read")) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        world.process_of(&subject.id, Who::Sidecar).await.signal(Signal::SIGKILL);
        damage(&file, known, how);
        world.start().await;
        let mut clients = world.clients().await;
        subject.failed(&mut clients, "INSTANCE_ENDED", v1::ExitReason::Unwatched).await;
        let history = subject.goes_on(&world).await;
        let gap = history.iter().find_map(|event| match &event.kind {
            Some(Kind::Gap(gap)) => Some(gap.reason.clone()),
            _ => None,
        });
        // Unless nothing is: what OpenCode still knows is read again.
        assert!(gap.is_some() || ends(&history).len() == 3, "{how:?}: what is lost is said: {history:#?}");
    }
    world.end().await;
}

fn run(words: &[&str]) -> bool {
    Command::new(words[0]).args(&words[1..]).status().is_ok_and(|status| status.success())
}

#[tokio::test]
async fn a_full_disk_under_the_journal_holds_events_back_and_loses_none() {
    let world = local("").await;
    let mut subject = Subject::at(&world, Moment::AtRest).await;
    let mut clients = world.clients().await;
    clients.stop(&subject.id).await;
    let folder = world.path("state/local").join(&subject.id).join("state");
    let (place, kept) = (folder.display().to_string(), world.path("kept").display().to_string());
    assert!(run(&["cp", "-a", &place, &kept]));
    assert!(run(&["mount", "-t", "tmpfs", "-o", "size=1m", "none", &place]), "a file system can be mounted");
    assert!(run(&["cp", "-aT", &kept, &place]));
    subject.goes_on(&world).await;

    clients.prompt(&subject.id, "#wait gate").await;
    subject.witness.until_letters().await;
    let filler = folder.join("filler");
    let full = ["dd", "if=/dev/zero", "bs=4k", &format!("of={}", filler.display()), "status=none"];
    assert!(!run(&full), "the disk is full");
    world.open_gate(&subject.id, "gate").await;
    let refused = within("a refusal", PATIENCE, async {
        loop {
            let prompt = v1::PromptRequest { session_id: subject.id.clone(), text: "#echo one".to_owned(), ..Default::default() };
            if let Err(refused) = clients.session.prompt(prompt).await {
                return refused;
            }
        }
    })
    .await;
    assert!(refused.message().contains("disk"), "{refused:?}");
    std::fs::remove_file(&filler).expect("it is there");
    assert_eq!(subject.witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
    let history = subject.goes_on(&world).await;
    let told = history.iter().any(|event| matches!(&event.kind, Some(Kind::AgentError(error)) if error.name == "JOURNAL_FULL"));
    assert!(told, "that it was full is told");
    clients.stop(&subject.id).await;
    assert!(run(&["umount", "--lazy", &place]));
    world.end().await;
}
