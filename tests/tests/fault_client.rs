//! Clients break: they are killed, they are stuck, they flood the daemon, they answer all at once. Nobody else is harmed.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use openagent_proto::v1;
use openagent_proto::v1::attach_terminal_request::Request as Asked;
use openagent_proto::v1::event::Kind;
use openagent_tests::harness::client::{Clients, within};
use openagent_tests::harness::host::{MIB, until};
use openagent_tests::harness::process::Process;
use openagent_tests::harness::pty::{ENTER, Pty};
use openagent_tests::harness::refusal::refused;
use openagent_tests::harness::subject::{Moment, Subject};
use openagent_tests::harness::witness::Witness;
use openagent_tests::harness::{CANARY, PATIENCE, World};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Time in which an ordinary call is answered while others misbehave; a healthy daemon takes a few milliseconds, a busy machine more.
const IN_TIME: Duration = Duration::from_secs(20);

/// Prompts that are given one after the other, to be worked off in order.
const BATCH: usize = 20;

/// Subscriptions that the daemon has at a time.
const SUBSCRIPTIONS_MAX: usize = 1_024;

async fn light() -> World {
    let mut world = World::light().await;
    world.start().await;
    world.set_keys(CANARY).await;
    world
}

/// Resident memory of a process, in bytes.
fn memory(process: Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the system tells it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("it is a number") * 1024
}

/// Open files of a process.
fn files(process: Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.pid())).expect("it runs").count()
}

/// `openagent logs` of a session in JSON, from behind an event; its lines.
fn logs(world: &World, id: &str, after: u64) -> (tokio::process::Child, tokio::io::Lines<BufReader<tokio::process::ChildStdout>>) {
    let mut command = tokio::process::Command::from(world.command("openagent"));
    command.args(["logs", id, "-f", "--after", &after.to_string(), "-o", "json"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().expect("openagent is staged");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    (child, lines)
}

fn seq(line: &str) -> u64 {
    let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    event["seq"].as_u64().expect("it is numbered")
}

#[tokio::test]
async fn a_reader_that_is_killed_in_mid_stream_goes_on_behind_its_last_line() {
    let world = light().await;
    let mut subject = Subject::at(&world, Moment::AtRest).await;
    let mut clients = world.clients().await;
    let mut last = 0;
    for round in 0..5 {
        let (mut child, mut lines) = logs(&world, &subject.id, last);
        clients.prompt(&subject.id, &format!("#slow 2 40 {round}")).await;
        // In the middle of a turn, at another place each time.
        for _ in 0..4 + round {
            let line = within("a line", PATIENCE, lines.next_line()).await.expect("it can be read").expect("it goes on");
            assert_eq!(seq(&line), last + 1, "each event once and in order");
            last += 1;
        }
        child.kill().await.expect("it runs");
        // What it had written and nobody has read is lost with it: the cursor is what was read.
        subject.witness.until_turn_ended().await;
    }
    let (_child, mut lines) = logs(&world, &subject.id, last);
    let end = clients.get(&subject.id).await.last_seq;
    while last < end {
        let line = within("a line", PATIENCE, lines.next_line()).await.expect("it can be read").expect("it goes on");
        assert_eq!(seq(&line), last + 1);
        last += 1;
    }
    subject.goes_on(&world).await;
    world.end().await;
}

fn interface(world: &World, id: &str) -> Pty {
    let mut command = world.command("openagent");
    command.arg("attach").arg(id);
    Pty::spawn(command, 100, 30)
}

#[tokio::test]
async fn an_interface_that_is_killed_is_seen_to_leave_and_the_next_one_shows_everything() {
    let world = light().await;
    let mut subject = Subject::at(&world, Moment::AtRest).await;
    let mut clients = world.clients().await;
    let mut first = interface(&world, &subject.id);
    first.wait_for(&["It begins and ends."]).await;
    clients.get_when(&subject.id, "the interface", |session| session.attached.len() == 2).await;
    clients.prompt(&subject.id, "#wait later").await;
    first.wait_for(&["It begins"]).await;
    // Dropped, the program is killed: SIGKILL, in the middle of what it draws.
    drop(first);
    clients.get_when(&subject.id, "its leaving", |session| session.attached.len() == 1).await;
    let mut second = interface(&world, &subject.id);
    second.wait_for(&["#wait later"]).await;
    world.open_gate(&subject.id, "later").await;
    subject.witness.until_turn_ended().await;
    second.type_keys(&format!("#echo typed anew{ENTER}")).await;
    subject.witness.until_turn_ended().await;
    second.wait_for(&["typed anew"]).await;
    drop(second);
    subject.goes_on(&world).await;
    world.end().await;
}

/// A subscriber on a connection of its own that reads nothing.
async fn stuck(world: &World, id: &str) -> (Clients, tonic::Streaming<v1::SubscribeResponse>) {
    let mut clients = world.clients().await;
    let request = v1::SubscribeRequest { session_id: id.to_owned(), follow: true, deltas: true, ..Default::default() };
    let stream = clients.event.subscribe(request).await.expect("the history is there").into_inner();
    (clients, stream)
}

#[tokio::test]
async fn stuck_clients_cost_nobody_else_anything() {
    let world = light().await;
    let mut subject = Subject::at(&world, Moment::AtRest).await;
    let mut clients = world.clients().await;
    let daemon = world.daemon_process().expect("it runs");
    let mut silent = vec![];
    for _ in 0..8 {
        silent.push(stuck(&world, &subject.id).await);
    }
    // A connection whose other end does not even take what the transport sends.
    let (mut hung, _hung_lines) = logs(&world, &subject.id, 0);
    let hung_process = Process::of(i32::try_from(hung.id().expect("it runs")).expect("ids are small")).expect("it runs");
    hung_process.signal(Signal::SIGSTOP);
    // A terminal that floods, whose viewer reads nothing.
    let open = v1::OpenTerminalRequest {
        session_id: subject.id.clone(),
        size: Some(v1::TerminalSize { columns: 80, rows: 24 }),
        command: "yes flood | head -c 30000000; touch flooded; cat".to_owned(),
    };
    let terminal = clients.terminal.open_terminal(open).await.expect("it opens").into_inner().terminal.expect("it is answered");
    let (requests, stream) = mpsc::channel(1);
    let attach = v1::TerminalAttach { session_id: subject.id.clone(), terminal_id: terminal.id, ..Default::default() };
    requests.send(v1::AttachTerminalRequest { request: Some(Asked::Attach(attach)) }).await.expect("the stream is ours");
    let mut viewer = world.clients().await;
    let viewed = viewer.terminal.attach_terminal(ReceiverStream::new(stream)).await.expect("it attaches").into_inner();

    let before = memory(daemon);
    // One word, so that it comes in one piece.
    let text = "8".repeat(8 * 1024);
    let (mut events, mut slowest) = (0, Duration::ZERO);
    while events < 1_000 {
        let began = Instant::now();
        let wanted = events + 2 * BATCH;
        for _ in 0..BATCH {
            clients.prompt(&subject.id, &format!("#echo {text}")).await;
        }
        // The prompt itself, and its answer.
        let all = subject.witness.until("events of 8 KiB", |kind| {
            if let Kind::Part(v1::Part { body: Some(v1::part::Body::Text(part)), .. }) = kind {
                events += usize::from(part.text.len() >= text.len());
            }
            (events >= wanted).then_some(())
        });
        within("turns beside stuck clients", IN_TIME, all).await;
        slowest = slowest.max(began.elapsed());
    }
    let done = |session: &v1::Session| matches!(session.activity, Some(v1::Activity { kind: Some(v1::activity::Kind::Done(_)) }));
    clients.get_when(&subject.id, "the end of its work", done).await;
    subject.witness.take_for(Duration::from_millis(50)).await;
    world.until_file(&subject.id, "flooded").await;
    let grown = memory(daemon).saturating_sub(before);
    println!(
        "{events} events of 8 KiB beside {} stuck clients: slowest {BATCH} turns {slowest:?}, the daemon grew by {} KiB",
        silent.len() + 2,
        grown / 1024
    );
    assert!(grown < 96 * MIB, "the daemon grew by {grown} bytes");
    let began = Instant::now();
    clients.list().await;
    assert!(began.elapsed() < IN_TIME);

    // Whoever reads again misses nothing.
    let (_, stream) = &mut silent[0];
    let end = clients.get(&subject.id).await.last_seq;
    let mut last = 0;
    while last < end {
        let item = within("what was held back", PATIENCE, stream.message()).await.expect("the stream does not break").expect("it goes on");
        match item.item {
            Some(v1::subscribe_response::Item::Event(event)) => {
                assert_eq!(event.seq, last + 1);
                last = event.seq;
            }
            Some(v1::subscribe_response::Item::Snapshot(snapshot)) => last = snapshot.floor_seq,
            _ => {}
        }
    }
    hung_process.signal(Signal::SIGCONT);
    hung.kill().await.expect("it runs");
    drop((viewed, requests, silent));
    subject.goes_on(&world).await;
    world.end().await;
}

/// Whether what floods is refused in words, or by the transport itself.
fn said_why(refusal: &Status) {
    assert!(!refusal.message().is_empty(), "{refusal:?}");
    let has_reason = refusal.get_details_error_info().is_some_and(|info| !info.reason.is_empty());
    assert!(
        has_reason || matches!(refusal.code(), Code::OutOfRange | Code::ResourceExhausted | Code::Unavailable | Code::Cancelled),
        "{refusal:?}"
    );
}

/// A healthy client is served in time.
async fn others_are_served(clients: &mut Clients, subject: &mut Subject) {
    within("a turn beside a flood", IN_TIME, async {
        clients.prompt(&subject.id, "#echo beside the flood").await;
        subject.witness.until_turn_ended().await;
        clients.list().await;
    })
    .await;
}

/// Ten thousand subscriptions that nobody reads, of which the daemon takes as many as it may.
async fn flood_of_subscriptions(world: &World, clients: &mut Clients, subject: &mut Subject) {
    let mut streams = vec![];
    let mut subscribing = JoinSet::new();
    for _ in 0..40 {
        let clients = world.clients().await;
        for _ in 0..250 {
            let (mut clients, session_id) = (clients.clone(), subject.id.clone());
            subscribing.spawn(async move {
                let request = v1::SubscribeRequest { session_id, after_seq: 0, follow: true, ..Default::default() };
                clients.event.subscribe(request).await.map(|stream| (clients, stream.into_inner()))
            });
        }
    }
    while let Some(subscribed) = within("ten thousand subscriptions", PATIENCE, subscribing.join_next()).await {
        match subscribed.expect("no call panics") {
            Ok(stream) => streams.push(stream),
            Err(refusal) => {
                let refusal = refused::<()>(Err(refusal), Code::ResourceExhausted, "RESOURCE_EXHAUSTED");
                assert!(refusal.message.contains("subscriptions are open already"), "{refusal:?}");
            }
        }
    }
    // The witness has one.
    assert_eq!(streams.len(), SUBSCRIPTIONS_MAX - 1);
    others_are_served(clients, subject).await;
}

#[tokio::test]
async fn a_flood_is_refused_in_words_and_leaves_nothing_behind() {
    let world = light().await;
    let mut subject = Subject::at(&world, Moment::AtRest).await;
    let mut clients = world.clients().await;
    let daemon = world.daemon_process().expect("it runs");
    others_are_served(&mut clients, &mut subject).await;
    let (files_before, memory_before) = (files(daemon), memory(daemon));

    // Calls.
    let mut calls = JoinSet::new();
    let caller = world.clients().await;
    for number in 0..4_000_u32 {
        let mut clients = caller.clone();
        let id = if number % 2 == 0 { subject.id.clone() } else { format!("ses_no-such-{number}") };
        calls.spawn(async move { clients.session.get_session(v1::GetSessionRequest { session_id: id }).await.map(drop) });
    }
    others_are_served(&mut clients, &mut subject).await;
    while let Some(call) = within("thousands of calls", PATIENCE, calls.join_next()).await {
        if let Err(refusal) = call.expect("no call panics") {
            said_why(&refusal);
        }
    }

    // Prompts: more than may wait.
    let mut prompts = JoinSet::new();
    for number in 0..100 {
        let mut clients = caller.clone();
        let request = v1::PromptRequest { session_id: subject.id.clone(), text: format!("#echo flood {number}"), ..Default::default() };
        prompts.spawn(async move { clients.session.prompt(request).await.map(drop) });
    }
    while let Some(prompt) = within("many prompts", PATIENCE, prompts.join_next()).await {
        if let Err(refusal) = prompt.expect("no call panics") {
            said_why(&refusal);
        }
    }

    // Requests that are too large.
    let mut large = world.clients().await;
    for bytes in [1 << 20, (1 << 20) + 1, 5 << 20, 64 << 20] {
        let request = v1::PromptRequest { session_id: subject.id.clone(), text: "x".repeat(bytes), ..Default::default() };
        let outcome = within("a huge prompt", PATIENCE, large.session.prompt(request)).await;
        match outcome {
            Ok(_) => assert!(bytes <= 1 << 20, "{bytes}"),
            Err(refusal) => said_why(&refusal),
        }
    }

    // Subscriptions, again and again: the allocator keeps what was used once, and no more.
    let mut after = vec![];
    for _ in 0..3 {
        flood_of_subscriptions(&world, &mut clients, &mut subject).await;
        until("open files as before", PATIENCE, async || files(daemon), |now| *now <= files_before + 8).await;
        after.push(memory(daemon));
    }
    println!(
        "memory after each flood of subscriptions: {:?} MiB, before {}",
        after.iter().map(|bytes| bytes / MIB).collect::<Vec<_>>(),
        memory_before / MIB
    );
    assert!(after[2] < after[0] + 48 * MIB, "{after:?}");

    // Connections that say nothing, or something else.
    let mut half_open = vec![];
    for number in 0..1_000 {
        let mut connection = UnixStream::connect(world.socket()).await.expect("the daemon takes connections");
        if number % 3 == 0 {
            // It may be cut off already.
            let _ = connection.write_all(&vec![u8::try_from(number % 251).expect("it is small"); 4_096]).await;
        }
        if number % 3 == 1 {
            let _ = connection.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        }
        half_open.push(connection);
    }
    others_are_served(&mut clients, &mut subject).await;
    let mut answer = vec![];
    let garbage = &mut half_open[0];
    within("the end of garbage", PATIENCE, garbage.read_to_end(&mut answer)).await.ok();
    drop(half_open);

    drop((large, caller));
    let left = until("open files as before", PATIENCE, async || files(daemon), |now| *now <= files_before + 4).await;
    // Threads that served the crowd end after some seconds; the allocator keeps some of what was used once, and no more with each flood.
    let grown = async || {
        clients.list().await;
        memory(daemon).saturating_sub(memory_before) / MIB
    };
    let grown = until("memory within its bound", PATIENCE, grown, |mebibytes| *mebibytes < 192).await;
    println!("afterwards: {left} open files, the daemon is {grown} MiB larger");
    subject.goes_on(&world).await;
    world.end().await;
}

#[tokio::test]
async fn a_daemon_without_files_to_open_serves_those_who_are_there_and_others_later() {
    let world = light().await;
    let mut subject = Subject::at(&world, Moment::AtRest).await;
    let mut clients = world.clients().await;
    let daemon = world.daemon_process().expect("it runs");
    let limit = |most: usize| {
        let limited = Command::new("prlimit").args(["--pid", &daemon.pid().to_string(), &format!("--nofile={most}:20000")]).status();
        assert!(limited.expect("prlimit is there").success());
    };
    let before = files(daemon);
    limit(before + 20);
    let mut crowd = vec![];
    for _ in 0..60 {
        crowd.push(UnixStream::connect(world.socket()).await.expect("the system takes connections"));
    }
    until("all files used", PATIENCE, async || files(daemon), |now| *now >= before + 20).await;
    within("a call on a connection that is there", IN_TIME, clients.list()).await;
    drop(crowd);
    until("files again", PATIENCE, async || files(daemon), |now| *now <= before + 4).await;
    let mut late = within("a new client", IN_TIME, world.clients()).await;
    within("its call", IN_TIME, late.list()).await;
    limit(20_000);
    subject.goes_on(&world).await;
    world.end().await;
}

#[tokio::test]
async fn of_many_answers_at_once_one_wins_and_the_others_are_told_whose() {
    let world = light().await;
    let mut subject = Subject::at(&world, Moment::Asked).await;
    let asked = subject.asked.clone().expect("it asks");
    let mut others = Witness::of(&subject.id);
    let mut answers = JoinSet::new();
    for number in 0..50 {
        let mut clients = world.clients().await;
        if number == 0 {
            others.connect(&mut clients).await;
        }
        let request = v1::AnswerPermissionRequest {
            session_id: subject.id.clone(),
            request_id: asked.id.clone(),
            response: if number % 2 == 0 { v1::PermissionResponse::Once } else { v1::PermissionResponse::Reject }.into(),
            by: format!("client-{number}"),
            ..Default::default()
        };
        answers.spawn(async move { (format!("client-{number}"), number % 2 == 0, clients.permission.answer_permission(request).await) });
    }
    let (mut won, mut told) = (vec![], BTreeSet::new());
    while let Some(answer) = within("answers", PATIENCE, answers.join_next()).await {
        let (by, allows, outcome) = answer.expect("no call panics");
        match outcome {
            Ok(_) => won.push((by, allows)),
            Err(refusal) => {
                assert_eq!(refusal.code(), Code::Aborted, "{refusal:?}");
                told.insert(refusal.message().to_owned());
            }
        }
    }
    let [(winner, allows)] = &won[..] else { panic!("one answer wins: {won:?}") };
    assert_eq!(told.into_iter().collect::<Vec<_>>(), [format!("{winner} has answered this request already")]);
    let seen = others
        .until("the answer", |kind| match kind {
            Kind::PermissionAnswered(answer) => Some(answer.clone()),
            _ => None,
        })
        .await;
    assert_eq!((&seen.by, &seen.id), (winner, &asked.id));
    subject.witness.until_turn_ended().await;
    let made = world.path("state/local").join(&subject.id).join("workspace/made");
    assert_eq!(made.exists(), *allows, "what was answered was done");
    let history = subject.goes_on(&world).await;
    let answered = history.iter().filter(|event| matches!(event.kind, Some(Kind::PermissionAnswered(_)))).count();
    assert_eq!(answered, 1);
    world.end().await;
}
