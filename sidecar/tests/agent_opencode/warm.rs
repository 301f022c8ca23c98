//! Agents that are brought up before there is a session for them.

use std::path::Path;
use std::time::Instant;

use openagent_core::event::{AgentProcess, EventKind, PartBody, TurnOutcome};
use openagent_proto::sidecar::{AgentProvider, Prompt, StartAgent, Title};
use tokio::time::timeout;

use crate::fixture::*;

fn warm(provider: AgentProvider) -> StartAgent {
    StartAgent { warm: true, ..start(provider) }
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = std::process::Command::new("git")
        .args(["-c", "user.name=x", "-c", "user.email=x@y", "-c", "init.defaultBranch=trunk"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What is told of a first prompt, and when.
struct First {
    ready: std::time::Duration,
    accepted: std::time::Duration,
    letters: std::time::Duration,
}

/// Takes the agent over and has it work; the model answers at once.
async fn take_over(world: &mut World, model: &mut Model, started: StartAgent) -> First {
    let name = started.model.clone();
    let begun = Instant::now();
    world.agent.start(started).await.unwrap();
    let ready = begun.elapsed();
    world.prompt("Hello", &name).await;
    let accepted = begun.elapsed();
    let call = model.call().await;
    call.say("Here I am").await;
    timeout(LONG, world.until_letters()).await.unwrap();
    let letters = begun.elapsed();
    call.stop().await;
    assert_eq!(world.until_turn_ended().await, TurnOutcome::Completed);
    println!("ready after {ready:?}, accepted after {accepted:?}, first letters after {letters:?}");
    First { ready, accepted, letters }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_agent_is_taken_over_with_its_slow_first_prompt_behind_it() {
    let (mut world, mut model) = (World::new().await, Model::new().await);
    let workspace = world.folder.path().join("workspace");
    let begun = Instant::now();
    let started = world.agent.start(warm(model.provider())).await.unwrap();
    println!("warm after {:?}", begun.elapsed());
    assert_eq!(started.version, "1.18.33");
    assert_eq!(world.agent.start(warm(model.provider())).await.unwrap(), started, "it is warm already");
    assert!(world.agent.health().running && !world.agent.ready(), "no session is at work");
    let prompt = Prompt { text: "x".into(), model: "acme/tour".into(), agent: "build".into() };
    assert_eq!(world.agent.prompt(prompt).await.unwrap_err().code.wire().0, "NOT_READY");
    assert_eq!(entries(&workspace), [""; 0], "the workspace is as it was");
    assert_eq!((world.journal.last(), world.models.calls()), (0, 0), "nothing is told and nobody was asked");
    let servers_before = servers(&world);

    let titled = StartAgent { title: Some("Mine".into()), ..start(model.provider()) };
    let first = take_over(&mut world, &mut model, titled).await;
    assert!(servers(&world).contains(&servers_before[0]), "it is the same process");
    // Generous: the machine may be busy. The bench holds it to the promise.
    assert!(first.ready <= first.accepted && first.accepted <= first.letters);
    assert!(world.agent.ready());
    let conversations: std::collections::BTreeSet<_> = world
        .told
        .iter()
        .filter_map(|kind| if let EventKind::Message { message } = kind { Some(message.conversation.to_string()) } else { None })
        .collect();
    assert_eq!(conversations.into_iter().collect::<Vec<_>>(), ["ses_01ARZ3NDEKTSV4RRFFQ69G5FAV"]);
    assert!(!format!("{:?}", world.told).contains("ehears"), "{:#?}", world.told);
    assert!(!world.told.iter().any(|kind| matches!(kind, EventKind::Title { .. })), "the title is the user's");
    assert!(workspace.join(".git").exists());

    // Snapshots: what a turn changes is told.
    changes_a_file(&mut world, &mut model, "acme/tour").await;
    world.agent.rename(Title { title: "Other".into() }).await.unwrap();
    world.until("new title", |kind| matches!(kind, EventKind::Title { title } if title == "Other").then_some(())).await;
    world.end().await;
}

/// A turn that writes a file must tell the difference that it made, which takes a repository that OpenCode knows.
async fn changes_a_file(world: &mut World, model: &mut Model, name: &str) {
    world.prompt("Write", name).await;
    let call = model.call().await;
    call.tool("write", &serde_json::json!({ "filePath": "new.txt", "content": "new\n" })).await;
    let asked = world.until_asked().await;
    world.answer(asked.id.as_str(), "once").await;
    model.call().await.stop().await;
    assert_eq!(world.until_turn_ended().await, TurnOutcome::Completed);
    let diff = |kind: &EventKind| matches!(kind, EventKind::Diff { files } if files.iter().any(|file| file.path == "new.txt" && file.additions == 1));
    if !world.told.iter().any(diff) {
        world.until("difference", |kind| diff(kind).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_that_was_filled_meanwhile_is_seen_as_it_is() {
    for own_repository in [false, true] {
        let (mut world, mut model) = (World::new().await, Model::new().await);
        let workspace = world.folder.path().join("workspace");
        world.agent.start(warm(model.provider())).await.unwrap();
        std::fs::write(workspace.join("AGENTS.md"), "Always be brief, says the canary.").unwrap();
        if own_repository {
            git(&workspace, &["init", "-q"]);
            git(&workspace, &["add", "-A"]);
            git(&workspace, &["commit", "-q", "-m", "Theirs"]);
        }
        world.agent.start(start(model.provider())).await.unwrap();
        world.prompt("Hello", "acme/tour").await;
        let call = model.call().await;
        let request = call.request.to_string();
        assert!(request.contains("says the canary"), "the project's instructions are read");
        assert!(request.contains("Is directory a git repo: yes"), "{request}");
        call.stop().await;
        assert_eq!(world.until_turn_ended().await, TurnOutcome::Completed);
        let log = git(&workspace, &["log", "--format=%s"]);
        assert_eq!(log.trim(), if own_repository { "Theirs" } else { "Start of the session" });
        changes_a_file(&mut world, &mut model, "acme/tour").await;
        let step = |kind: &EventKind| matches!(kind, EventKind::Part { part } if matches!(part.body, PartBody::Text { .. }));
        assert!(world.told.iter().any(step));
        assert_eq!(world.agent.health().restarts, 0);
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_agent_that_does_not_fit_is_started_anew_and_never_wider() {
    let (mut world, mut model) = (World::new().await, Model::new().await);
    world.agent.start(warm(model.provider())).await.unwrap();
    let before = servers(&world);
    let read_only = StartAgent { permission_mode: "read-only".into(), ..start(model.provider()) };
    world.agent.start(read_only).await.unwrap();
    assert!(!servers(&world).contains(&before[0]));
    world.prompt("Look", "acme/tour").await;
    let call = model.call().await;
    assert!(!call.request["tools"].to_string().contains("\"bash\""));
    call.stop().await;
    assert_eq!(world.until_turn_ended().await, TurnOutcome::Completed);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wire_format_is_rehearsed_without_asking_the_provider() {
    let (mut world, mut model) = (World::new().await, Model::new().await);
    for kind in ["anthropic", "openai", "demo"] {
        let provider = provider(kind, kind, &model.base_url);
        world.agent.start(warm(provider.clone())).await.unwrap();
        assert_eq!(world.models.calls(), 0, "{kind}");
        if kind == "anthropic" {
            world.agent.start(start(provider)).await.unwrap();
            world.prompt("Hello", "anthropic/tour").await;
            assert_eq!(model.call().await.path, "/v1/messages");
            world.agent.shutdown(std::time::Duration::from_secs(10)).await;
            let world_after = world;
            world = World::new().await;
            drop(world_after);
        }
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_agent_that_died_is_warm_again_without_a_word_in_the_journal() {
    let (mut world, mut model) = (World::new().await, Model::new().await);
    world.agent.start(warm(model.provider())).await.unwrap();
    kill(&world);
    timeout(LONG, async {
        while world.agent.health().restarts == 0 || !world.agent.step().contains("no session") {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(world.journal.last(), 0);
    assert_eq!(entries(&world.folder.path().join("workspace")), [""; 0]);
    let provider = model.provider();
    take_over(&mut world, &mut model, start(provider)).await;
    let exits = world.told.iter().filter(|kind| matches!(kind, EventKind::Agent { process: AgentProcess::Exited { .. } })).count();
    assert_eq!(exits, 0);
    world.end().await;
}
