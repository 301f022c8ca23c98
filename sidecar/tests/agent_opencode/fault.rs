//! An agent that dies, hangs, or is told to end while it starts.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill as signal};
use nix::unistd::Pid;
use openagent_core::event::{AgentExit, AgentProcess, EventKind, PartBody, ToolState, TurnOutcome};
use openagent_proto::sidecar::{AllowRule, Prompt, StartAgent};
use serde_json::json;
use tokio::time::timeout;

use crate::fixture::*;

fn exit(kind: &EventKind) -> Option<(i32, Option<u64>, AgentExit)> {
    match kind {
        EventKind::Agent { process: AgentProcess::Exited { code, restart_in_millis, cause } } => Some((*code, *restart_in_millis, *cause)),
        _ => None,
    }
}

fn ready(kind: &EventKind) -> Option<()> {
    matches!(kind, EventKind::Agent { process: AgentProcess::Ready { .. } }).then_some(())
}

/// Waits until the agent accepts prompts, which it does right after it has said so.
async fn until_ready(world: &World) {
    until("the agent is ready", || world.agent.ready()).await;
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    let reached = timeout(LONG, async {
        while !reached() {
            tokio::task::yield_now().await;
        }
    });
    assert!(reached.await.is_ok(), "{what}");
}

async fn answers(world: &mut World, model: &mut Model) {
    world.prompt("Are you there?", "acme/tour").await;
    let call = model.call().await;
    call.say("Yes.").await;
    call.stop().await;
    assert_eq!(world.until_turn_ended().await, TurnOutcome::Completed);
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_leaves_no_command_running_and_no_tool_open() {
    let (mut world, mut model) = (World::new().await, Model::new().await);
    let allow = vec![AllowRule { permission: "bash".into(), pattern: "*".into() }];
    world.agent.start(StartAgent { allow, ..start(model.provider()) }).await.unwrap();
    world.prompt("Run it", "acme/tour").await;
    let command = "setsid sh -c 'echo $$ > detached; sleep 1000' & echo $$ > attached; sleep 1000";
    model.call().await.tool("bash", &json!({ "command": command, "description": "Waits" })).await;
    let workspace = world.folder.path().join("workspace");
    let pid = |name: &str| text(&workspace.join(name));
    until("the commands run", || pid("detached").ends_with('\n') && pid("attached").ends_with('\n')).await;
    assert!(is_alive(&pid("detached")) && is_alive(&pid("attached")));
    kill(&world);
    assert_eq!(world.until("exit", exit).await, (137, Some(500), AgentExit::Ended));
    assert!(!is_alive(&pid("attached")) && !is_alive(&pid("detached")), "they were killed before the exit was told");
    let tools = world.tools();
    assert!(matches!(tools.last(), Some((_, ToolState::Error { error, .. })) if error.contains("interrupted")), "{tools:?}");
    assert!(world.told.iter().any(|kind| matches!(kind, EventKind::TurnEnded { outcome: TurnOutcome::Interrupted })));
    world.until("second start", ready).await;
    until_ready(&world).await;
    answers(&mut world, &mut model).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_hangs_in_mid_turn_is_killed_and_comes_back() {
    let (mut world, mut model) = (World::new().await, Model::new().await);
    world.agent.start(start(model.provider())).await.unwrap();
    world.prompt("Talk", "acme/tour").await;
    let call = model.call().await;
    call.say("half a ").await;
    let begun = |kind: &EventKind| matches!(kind, EventKind::Part { part } if matches!(part.body, PartBody::Text { .. })).then_some(());
    world.until("text", begun).await;
    let stopped = Instant::now();
    signal(Pid::from_raw(servers(&world)[0]), Signal::SIGSTOP).unwrap();
    let (code, restart, cause) = world.until("exit", exit).await;
    println!("the hang was noticed after {:?}", stopped.elapsed());
    assert_eq!((code, restart, cause), (137, Some(500), AgentExit::Unresponsive));
    assert!(stopped.elapsed() < Duration::from_secs(60));
    assert!(world.told.iter().any(|kind| matches!(kind, EventKind::TurnEnded { outcome: TurnOutcome::Interrupted })));
    drop(call);
    world.until("second start", ready).await;
    until_ready(&world).await;
    answers(&mut world, &mut model).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_frozen_goes_on_and_a_warm_one_is_taken_over() {
    let (mut world, mut model) = (World::new().await, Model::new().await);
    let freeze = |world: &World| {
        let server = Pid::from_raw(servers(world)[0]);
        signal(server, Signal::SIGSTOP).unwrap();
        server
    };
    world.agent.start(StartAgent { warm: true, ..start(model.provider()) }).await.unwrap();
    let server = freeze(&world);
    // Longer than connections and heartbeats last.
    let frozen = tokio::time::Instant::now() + Duration::from_secs(12);
    tokio::time::sleep_until(frozen).await;
    signal(server, Signal::SIGCONT).unwrap();
    world.agent.start(start(model.provider())).await.unwrap();
    assert!(servers(&world).contains(&server.as_raw()), "it is the same process");
    answers(&mut world, &mut model).await;
    let server = freeze(&world);
    tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_secs(12)).await;
    signal(server, Signal::SIGCONT).unwrap();
    answers(&mut world, &mut model).await;
    assert_eq!(world.agent.health().restarts, 0);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_again_and_again_is_given_up_until_it_is_asked_to_start() {
    let (mut world, mut model) = (World::new().await, Model::new().await);
    world.agent.start(start(model.provider())).await.unwrap();
    for pause in [Some(500), Some(1000), Some(2000), Some(4000), None] {
        world.until("start", ready).await;
        until_ready(&world).await;
        kill(&world);
        assert_eq!(world.until("exit", exit).await.1, pause);
    }
    until("it is given up", || world.agent.step().contains("given up")).await;
    assert!(!world.agent.health().running && !world.agent.ready());
    world.agent.start(start(model.provider())).await.unwrap();
    world.until("start", ready).await;
    answers(&mut world, &mut model).await;
    until_ready(&world).await;
    kill(&world);
    assert_eq!(world.until("exit", exit).await.1, Some(500), "the count begins anew");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_events_back_and_loses_none() {
    let folder = folder();
    let state = folder.path().join("state");
    let run = |arguments: &[&str]| std::process::Command::new(arguments[0]).args(&arguments[1..]).arg(&state).status();
    if !run(&["mount", "-t", "tmpfs", "-o", "size=1m", "none"]).is_ok_and(|status| status.success()) {
        eprintln!("skipped: no file system can be mounted here");
        return;
    }
    let (mut world, mut model) = (World::open(folder, program()).await, Model::new().await);
    world.agent.start(start(model.provider())).await.unwrap();
    answers(&mut world, &mut model).await;
    world.prompt("Talk", "acme/tour").await;
    let call = model.call().await;
    let filler = state.join("filler");
    let mut size = 2 << 20;
    while size > 0 {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&filler).unwrap();
        if file.write_all(&vec![0; size]).is_err() {
            size /= 2;
        }
    }
    until_stuck(&world).await;
    call.say("told while the disk was full").await;
    call.stop().await;
    let prompt = Prompt { text: "x".into(), model: "acme/tour".into(), agent: "build".into() };
    assert_eq!(world.agent.prompt(prompt).await.unwrap_err().code.wire().0, "RESOURCE_EXHAUSTED");
    std::fs::remove_file(&filler).unwrap();
    // The prompts that came before the disk was found to be full are worked on as well.
    let outcome = loop {
        tokio::select! {
            outcome = world.until_turn_ended() => break outcome,
            call = model.call() => call.stop().await,
        }
    };
    assert_eq!(outcome, TurnOutcome::Completed);
    assert!(world.texts().contains("told while the disk was full"));
    let told = |kind: &EventKind| matches!(kind, EventKind::AgentError { name, .. } if name == "JOURNAL_FULL").then_some(());
    if !world.told.iter().any(|kind| told(kind).is_some()) {
        world.until("word of the full disk", told).await;
    }
    answers(&mut world, &mut model).await;
    world.agent.shutdown(Duration::from_secs(10)).await;
    assert!(run(&["umount", "--lazy"]).unwrap().success());
}

/// Prompts until one is refused, since nothing can be recorded.
async fn until_stuck(world: &World) {
    let stuck = timeout(LONG, async {
        loop {
            let prompt = Prompt { text: "x".into(), model: "acme/tour".into(), agent: "build".into() };
            if world.agent.prompt(prompt).await.is_err() {
                return;
            }
        }
    });
    assert!(stuck.await.is_ok(), "the disk never filled");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_waits_behind_a_start_that_does_not_come_to_an_end() {
    let folder = folder();
    let program = folder.path().join("opencode");
    write_program(&program, "#!/bin/sh\necho $$ > started\nexec sleep 1000\n");
    let world = World::open(folder, program).await;
    let agent = world.agent.clone();
    let started = tokio::spawn(async move { agent.start(start(provider("demo", "demo", ""))).await });
    let pid = || text(&world.folder.path().join("workspace/started"));
    until("the program runs", || pid().ends_with('\n')).await;
    let begun = Instant::now();
    assert_eq!(world.agent.abort().await.unwrap_err().code.wire().0, "NOT_READY");
    world.agent.shutdown(Duration::from_secs(10)).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(started.await.unwrap().unwrap_err().code.wire().0, "NOT_READY");
    until("the program has ended", || !is_alive(&pid())).await;
    assert!(!world.agent.health().running);
}
