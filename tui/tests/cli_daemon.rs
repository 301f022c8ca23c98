//! What the command line says about the daemon and its store, and about who waits and who is there.

#![allow(missing_docs, reason = "a test")]

#[path = "fake/daemon.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod fake;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fake::{Fake, Outcome, SESSION, State, ready, session};
use openagent_proto::v1;
use tokio::io::{AsyncBufReadExt, BufReader};
use tonic::Code;
use v1::event::Kind;

fn json(outcome: &Outcome) -> serde_json::Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

fn fault(message: &str, hint: &str) -> Option<v1::Fault> {
    Some(v1::Fault { code: "STORE_FULL".into(), message: message.into(), hint: hint.into() })
}

/// `openagent` in a folder of its own.
fn installed(folder: &Path) -> PathBuf {
    let program = folder.join("openagent");
    let built = Path::new(env!("CARGO_BIN_EXE_openagent"));
    if std::fs::hard_link(built, &program).is_err() {
        std::fs::copy(built, &program).expect("the program can be copied");
    }
    program
}

/// Next to it, a daemon's program that says how it was called and ends with `code`.
fn install_daemon(folder: &Path, code: i32) {
    let daemon = folder.join("openagentd");
    std::fs::write(&daemon, format!("#!/bin/sh\necho \"called with $*\"\nexit {code}\n")).expect("the script can be written");
    std::fs::set_permissions(&daemon, std::fs::Permissions::from_mode(0o755)).expect("it can be made a program");
}

async fn run(fake: &Fake, program: &Path, arguments: &[&str]) -> Outcome {
    let output = tokio::time::timeout(fake::BOUND, fake.command(program, arguments).output());
    output.await.expect("openagent ends in time").expect("openagent runs").into()
}

#[tokio::test]
async fn the_daemons_status_says_what_is_scarce_and_a_warning_is_no_failure() {
    let status = v1::GetStatusResponse {
        sessions: 12,
        running: 3,
        max_running: 4,
        queued: 2,
        memory_reserved_bytes: 6 << 30,
        memory_budget_bytes: 16 << 30,
        warm_ready: 1,
        warm_wanted: 2,
        store: Some(v1::StoreStatus { writable: false, fault: fault("the disk is full: nothing is written", "free some space") }),
        ..Default::default()
    };
    let fake = Fake::serving(State { status, ..Default::default() });
    let table = fake.openagent(&["daemon", "status"]).await;
    assert_eq!(table.code, 0, "{table:?}");
    for line in [
        "sessions   12 (3 running of at most 4, 2 queued)\n",
        "reserved   6 GiB of 16 GiB of memory for sessions that run\n",
        "warm       1 of 2 ready\n",
        "store      read-only\n",
        "error      the disk is full: nothing is written\nhint       free some space\n",
    ] {
        assert!(table.stdout.contains(line), "{line:?} is not in {}", table.stdout);
    }
    let told = json(&fake.openagent(&["daemon", "status", "-o", "json"]).await);
    assert_eq!((&told["max_running"], &told["queued"], &told["store_writable"]), (&4.into(), &2.into(), &false.into()));
    assert_eq!(told["store_fault"]["code"], "STORE_FULL");
}

#[tokio::test]
async fn stopping_says_what_becomes_of_sessions_only_where_it_was_asked() {
    for (flag, expected) in [
        (None, v1::ShutdownSessions::Unspecified),
        (Some("--keep-sessions"), v1::ShutdownSessions::Keep),
        (Some("--stop-sessions"), v1::ShutdownSessions::Stop),
    ] {
        let fake = Fake::serving(State::default());
        let line: Vec<&str> = ["daemon", "stop"].into_iter().chain(flag).collect();
        let outcome = fake.openagent(&line).await;
        assert_eq!(outcome.code, 0, "{outcome:?}");
        fake.with(|state| assert_eq!(state.shutdowns, [v1::ShutdownRequest { sessions: expected.into() }]));
    }
}

#[tokio::test]
async fn a_restart_ends_nothing_where_no_daemon_is_installed() {
    let fake = Fake::serving(State::default());
    let outcome = run(&fake, &installed(fake.folder()), &["daemon", "restart"]).await;
    assert_eq!(outcome.code, 3, "{outcome:?}");
    assert!(outcome.stderr.contains("openagentd is neither next to openagent nor in PATH"), "{outcome:?}");
    fake.with(|state| assert!(state.shutdowns.is_empty()));
}

#[tokio::test]
async fn a_backup_is_whole_and_private_or_not_there() {
    let fake = Fake::serving(State { archive: vec![Ok(b"all ".to_vec()), Ok(b"of it".to_vec())], ..Default::default() });
    let path = fake.folder().join("store.backup");
    let name = path.to_str().expect("temporary folders are UTF-8");
    assert_eq!(fake.openagent(&["daemon", "backup", name]).await.code, 0);
    assert_eq!(std::fs::read(&path).expect("it is there"), b"all of it");
    assert_eq!(std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
    let refused = fake.openagent(&["daemon", "backup", name]).await;
    assert!(refused.code == 1 && refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(fake.openagent(&["daemon", "backup", "-"]).await.stdout, "all of it");
    fake.with(|state| state.archive = vec![Ok(b"half".to_vec()), Err(Code::DataLoss)]);
    let broken = fake.openagent(&["daemon", "backup", name, "--force"]).await;
    assert_eq!((broken.code, broken.stderr.as_str()), (1, "error: a record cannot be read\nhint: restore a backup\n"));
    assert_eq!(std::fs::read(&path).expect("it is still there"), b"all of it");
    let left: Vec<_> = std::fs::read_dir(fake.folder()).expect("it can be listed").flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
}

#[tokio::test]
async fn a_damaged_store_is_told_with_every_problem_and_fails() {
    let verified = v1::VerifyStoreResponse { format: 2, sessions: 5, ..Default::default() };
    let fake = Fake::serving(State { verified, ..Default::default() });
    let sound = fake.openagent(&["daemon", "verify", "--json"]).await;
    assert_eq!((sound.code, &json(&sound)["sound"], &json(&sound)["sessions"]), (0, &true.into(), &5.into()));
    fake.with(|state| {
        state.verified.problems = vec!["event 7 of \x1b[2J is missing".into()];
        state.verified.problem_count = 1;
    });
    let damaged = fake.openagent(&["daemon", "verify"]).await;
    assert_eq!(damaged.code, 1, "{damaged:?}");
    assert!(damaged.stdout.contains("problem    event 7 of ^[[2J is missing\n"), "{damaged:?}");
    assert!(damaged.stderr.starts_with("error: the store has a problem\nhint: restore a backup: "), "{damaged:?}");
}

#[tokio::test]
async fn a_store_is_restored_by_the_daemons_program_and_never_under_a_daemon_that_runs() {
    let fake = Fake::new(State::default());
    let program = installed(fake.folder());
    install_daemon(fake.folder(), 0);
    let file = fake.folder().join("a file");
    std::fs::write(&file, "a backup").expect("it can be written");
    let name = file.to_str().expect("temporary folders are UTF-8");
    let restored = run(&fake, &program, &["daemon", "restore", name, "--without-keys"]).await;
    assert_eq!((restored.code, restored.stdout), (0, format!("called with restore -- {name} --without-keys\n")));
    let verified = run(&fake, &program, &["daemon", "verify", name]).await;
    assert_eq!((verified.code, verified.stdout), (0, format!("called with verify -- {name}\n")));
    install_daemon(fake.folder(), 1);
    assert_eq!(run(&fake, &program, &["daemon", "verify"]).await.code, 1, "what the program ends with counts");
    assert_eq!(run(&fake, &program, &["daemon", "restore", "/nowhere"]).await.code, 3);
    fake.serve();
    let refused = run(&fake, &program, &["daemon", "restore", name]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("openagent daemon stop"), "{refused:?}");
}

#[tokio::test]
async fn a_session_that_waits_for_room_says_its_place_and_how_to_take_it_out() {
    let fake = Fake::serving(State { queue_position: 3, ..Default::default() });
    let program = PathBuf::from(env!("CARGO_BIN_EXE_openagent"));
    let mut child = fake.command(&program, &["new", "--title", "t", "--idle-action", "stop"]).spawn().expect("openagent can be started");
    let stderr = child.stderr.take().expect("stderr is piped");
    let line = tokio::time::timeout(fake::BOUND, BufReader::new(stderr).lines().next_line()).await.expect("it says so in time");
    assert_eq!(line.expect("it can be read").as_deref(), Some("waits for room: 3rd in the queue (openagent stop Q69G5FAV takes it out)"));
    let listed = fake.openagent(&["ls"]).await;
    assert!(listed.stdout.contains("◌ queued (3rd)"), "{listed:?}");
    fake.record([ready()]);
    let end = tokio::time::timeout(fake::BOUND, child.wait()).await.expect("it ends in time").expect("it ends");
    assert!(end.success());
    fake.with(|state| assert_eq!(state.created[0].idle_action(), v1::IdleAction::Stop));
}

#[tokio::test]
async fn others_see_who_follows_and_who_answers_by_a_name_that_people_know() {
    let fake = Fake::serving(State { sessions: vec![session(SESSION, "t")], ..Default::default() });
    let request = v1::PermissionRequest {
        id: "per_1".into(),
        conversation_id: SESSION.into(),
        permission: "bash".into(),
        title: "make".into(),
        ..Default::default()
    };
    fake.record([Kind::PermissionAsked(request)]);
    let program = PathBuf::from(env!("CARGO_BIN_EXE_openagent"));
    for line in [&["logs", SESSION][..], &["permit", "per_1", "once"]] {
        let mut command = fake.command(&program, line);
        let output = tokio::time::timeout(fake::BOUND, command.env("OPENAGENT_CLIENT", "anna's phone").output());
        let outcome = Outcome::from(output.await.expect("it ends in time").expect("it runs"));
        assert_eq!(outcome.code, 0, "{outcome:?}");
    }
    fake.with(|state| {
        assert_eq!((&state.clients[..], &state.answered_by[..]), (&["anna's phone".into()][..], &["anna's phone".into()][..]))
    });
}
