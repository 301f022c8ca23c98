//! `openagent-sidecar connect`: the program that a container engine starts.

use std::process::Stdio;

use openagent_proto::sidecar::BRIDGE_MAGIC;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::fixture::{Daemon, Folders, within};

pub fn connect(folders: &Folders, purpose: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_openagent-sidecar"))
        .args(["connect", purpose, "--link-dir"])
        .arg(folders.path("link"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

pub async fn bridged(child: &mut Child) -> Daemon {
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut magic = String::new();
    within("the magic line", output.read_line(&mut magic)).await.unwrap();
    assert_eq!(magic, format!("{BRIDGE_MAGIC}\n"));
    Daemon::over(tokio::io::join(output, child.stdin.take().unwrap())).await
}

#[tokio::test]
async fn the_control_api_works_over_it() {
    let folders = Folders::new();
    let _sidecar = folders.start().await;
    let mut child = connect(&folders, "control");
    let mut daemon = bridged(&mut child).await;
    daemon.register().await;
    let keys = [daemon.seal("openai", 1, b"sk-canary")];
    assert_eq!(daemon.update_keys(1, &keys).await.status, 200);
    drop(daemon);
    assert!(within("the bridge ends", child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn it_is_one_thread() {
    let folders = Folders::new();
    let _sidecar = folders.start().await;
    let mut child = connect(&folders, "control");
    let _daemon = bridged(&mut child).await;
    let threads = std::fs::read_dir(format!("/proc/{}/task", child.id().unwrap())).unwrap().count();
    assert_eq!(threads, 1);
}

#[tokio::test]
async fn it_ends_with_the_sidecar() {
    let folders = Folders::new();
    let mut sidecar = folders.start().await;
    let mut child = connect(&folders, "relay");
    let mut output = BufReader::new(child.stdout.take().unwrap());
    within("the magic line", output.read_line(&mut String::new())).await.unwrap();
    sidecar.child.start_kill().unwrap();
    assert!(within("the bridge ends", child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn without_a_sidecar_it_says_so() {
    let folders = Folders::new();
    let output = within("the bridge ends", connect(&folders, "control").wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8(output.stderr).unwrap().contains("socket"));
}
