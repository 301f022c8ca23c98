//! Starting the daemon on demand: `openagent` next to a program called `openagentd` that the test controls.

#![allow(missing_docs, reason = "a test")]

#[path = "fake/daemon.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod fake;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fake::{Fake, Outcome, State};

/// `openagent` in a folder of its own, next to a daemon that is this script.
fn installed(folder: &Path, script: &str) -> PathBuf {
    let program = folder.join("openagent");
    let built = Path::new(env!("CARGO_BIN_EXE_openagent"));
    if std::fs::hard_link(built, &program).is_err() {
        std::fs::copy(built, &program).expect("the program can be copied");
    }
    let daemon = folder.join("openagentd");
    std::fs::write(&daemon, format!("#!/bin/sh\n{script}\n")).expect("the script can be written");
    std::fs::set_permissions(&daemon, std::fs::Permissions::from_mode(0o755)).expect("it can be made a program");
    program
}

async fn run(fake: &Fake, program: &Path, arguments: &[&str]) -> Outcome {
    let output = tokio::time::timeout(fake::BOUND, fake.command(program, arguments).output());
    output.await.expect("openagent ends in time").expect("openagent runs").into()
}

#[tokio::test]
async fn a_daemon_that_dies_is_quoted() {
    let fake = Fake::new(State::default());
    let program =
        installed(fake.folder(), "echo 'error: the store is of a newer version' >&2; echo 'hint: install the newer one' >&2; exit 1");
    let outcome = run(&fake, &program, &["ls"]).await;
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.starts_with("error: the store is of a newer version\nhint: install the newer one\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("openagentd.log"), "{outcome:?}");
}

#[tokio::test]
async fn two_clients_that_come_at_once_start_one_daemon_and_both_go_on() {
    let fake = Fake::new(State::default());
    let begun = fake.folder().join("begun");
    let end = fake.folder().join("end");
    for pipe in [&begun, &end] {
        nix::unistd::mkfifo(pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
    }
    // Opening a pipe waits for the other side, so neither the script nor the test has to guess when the other is ready.
    let script = format!(
        "echo started >> '{0}/starts'; ps -o sid= -p $$ > '{0}/sid'; echo $$ > '{1}'; cat '{2}'",
        fake.folder().display(),
        begun.display(),
        end.display()
    );
    let program = installed(fake.folder(), &script);
    let clients = async { tokio::join!(run(&fake, &program, &["ls", "--json"]), run(&fake, &program, &["ls", "--json"])) };
    let serving = async {
        let pid = tokio::time::timeout(fake::BOUND, tokio::fs::read_to_string(&begun)).await.expect("it starts").expect("it says so");
        fake.serve();
        pid
    };
    let ((first, second), pid) = tokio::join!(clients, serving);
    for outcome in [first, second] {
        assert_eq!((outcome.code, outcome.stdout.trim()), (0, "[]"), "{outcome:?}");
    }
    let starts = std::fs::read_to_string(fake.folder().join("starts")).expect("it was started");
    assert_eq!(starts.lines().count(), 1);
    let sid = std::fs::read_to_string(fake.folder().join("sid")).expect("it said so");
    assert_eq!(sid.trim(), pid.trim(), "the daemon leads a session of its own");
    tokio::time::timeout(fake::BOUND, tokio::fs::write(&end, "")).await.expect("the script reads").expect("and ends");
}
