//! Commands that wait for an agent outlive restarts of the daemon, and go on where they were.

use std::process::Stdio;

use openagent_tests::harness::{CANARY, Driver, PATIENCE, World};

fn pipe(world: &World, name: &str) -> String {
    let path = world.path(name);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
    path.to_str().expect("the test's folders are UTF-8").to_owned()
}

#[tokio::test]
async fn a_run_and_its_readers_go_on_while_the_daemon_is_replaced_under_a_turn() {
    let world = World::new(Driver::Local).await;
    let started = world.cli(&["daemon", "start"]).await;
    assert!(started.status.success(), "{started:?}");
    world.set_keys(CANARY).await;
    // Opening a pipe waits for the other side, so the turn runs exactly as long as the daemon is being replaced.
    let (begun, go) = (pipe(&world, "begun"), pipe(&world, "go"));
    let prompt = format!("#bash echo begun > {begun}; cat {go}; echo went");
    let mut run = tokio::process::Command::from(world.command("openagent"));
    run.args(["run", &prompt, "--model", "scripted/scripted-large", "--title", "long", "--allow", "all", "-o", "json"]);
    run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let run = run.spawn().expect("it can be started");
    tokio::time::timeout(PATIENCE, tokio::fs::read_to_string(&begun)).await.expect("the turn runs").expect("it says so");
    let mut logs = tokio::process::Command::from(world.command("openagent"));
    logs.args(["logs", "long", "-f", "-o", "json"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let logs = logs.spawn().expect("it can be started");

    let first = world.serving_pid().await;
    for _ in 0..2 {
        let restarted = world.cli(&["daemon", "restart", "-o", "json"]).await;
        assert!(restarted.status.success(), "{restarted:?}");
        let told: serde_json::Value = serde_json::from_slice(&restarted.stdout).expect("it is JSON");
        assert_ne!(told["before"]["pid"], told["after"]["pid"], "{told}");
        assert_eq!(told["after"]["pid"], world.serving_pid().await.as_raw());
    }
    assert_ne!(first, world.serving_pid().await);

    tokio::time::timeout(PATIENCE, tokio::fs::write(&go, "")).await.expect("the turn still runs").expect("and reads");
    let output = tokio::time::timeout(PATIENCE, run.wait_with_output()).await.expect("it ends in time").expect("it runs");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!((&told["outcome"], output.status.code()), (&"completed".into(), Some(0)), "{told}");
    assert!(told["text"].as_str().is_some_and(|text| text.contains("went")), "{told}");

    let id = told["session_id"].as_str().expect("it names its session").to_owned();
    assert!(world.cli(&["rm", "-f", &id]).await.status.success());
    let output = tokio::time::timeout(PATIENCE, logs.wait_with_output()).await.expect("it ends with its session").expect("it runs");
    let seqs: Vec<u64> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("one event a line")["seq"].as_u64().expect("it is numbered"))
        .collect();
    assert!(seqs.len() > 20 && seqs.iter().copied().eq(1..=seqs.len() as u64), "each event once and in order: {seqs:?}");
    world.end().await;
}
