//! What the store has answered survives `kill -9`, at whatever moment it comes, also while the store is being opened.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use openagent_core::config::HistoryConfig;
use openagent_core::event::{Busy, Event, EventKind, Message, Part, PartBody, Role, TurnOutcome};
use openagent_core::id::SessionId;
use openagent_core::permission::PermissionMode;
use openagent_core::session::lifecycle::Lifecycle;
use openagent_core::session::{Limits, NetworkPolicy, Session, WorkspaceSource};
use openagent_core::time::Timestamp;
use openagent_core::usage::Usage;
use openagentd::event::{EventLog, Item};
use openagentd::export::archive::About;
use openagentd::export::transcript::Transcript;
use openagentd::store::{SessionRecord, Store};

const FOLDER: &str = "OPENAGENT_TEST_STORE";
const BOUNDS: HistoryConfig = HistoryConfig { compact_after: 100, max_bytes: u64::MAX / 4 };
const AT: Timestamp = Timestamp::from_millis(1_795_336_693_531);

fn session() -> SessionId {
    "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap()
}

fn record() -> SessionRecord {
    SessionRecord {
        session: Session {
            id: session(),
            title: "a session".to_owned(),
            title_is_users: false,
            driver: "local".to_owned(),
            workspace: WorkspaceSource::Empty,
            model: "demo/tour".to_owned(),
            agent: "build".to_owned(),
            network: NetworkPolicy::None,
            limits: Limits::default(),
            permission_mode: PermissionMode::Ask,
            permission_rules: vec![],
            idle_timeout_millis: 0,
            idle_action: openagent_core::session::IdleAction::default(),
            created_at: AT,
        },
        lifecycle: Lifecycle::default(),
        instance: None,
        keys_version: 0,
    }
}

/// The text of the event numbered `seq`: of many sizes, some larger than a chunk.
fn text(seq: u64) -> String {
    format!("{seq} {}", "x".repeat(usize::try_from(seq * 997 % 13_000).unwrap()))
}

/// Not a test: the program that is killed. Says on standard output what was answered.
#[tokio::test]
#[ignore = "a helper that the other tests start and kill"]
async fn writes_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let mut out = std::io::stdout();
    let mut say = |what: String| {
        writeln!(out, "\n{what}").unwrap();
        out.flush().unwrap();
    };
    say("opening".to_owned());
    let store = Store::open(&folder).await.unwrap();
    store.put_session(&record()).await.unwrap();
    let log = EventLog::new(store);
    let mut last = log.info(&session()).await.unwrap().last_seq;
    say(format!("acked {last}"));
    loop {
        let events = (1..=3).map(|n| (AT, EventKind::Gap { reason: text(last + n) })).collect();
        last = log.append(&session(), events, Some(last / 3 + 1)).await.unwrap();
        say(format!("acked {last}"));
    }
}

/// Event `seq` of a conversation: in each turn of ten events a question, and an answer that goes through several states.
fn spoken(seq: u64) -> EventKind {
    let turn = (seq - 1) / 10;
    let message = |role| Message {
        id: format!("msg_{turn}_{role:?}").parse().unwrap(),
        conversation: session().as_str().parse().unwrap(),
        role,
        parent: None,
        agent: String::new(),
        model: String::new(),
        created_at: AT,
        completed_at: None,
        error: None,
        summary: false,
    };
    let part = |role, part: u64, text: String| EventKind::Part {
        part: Part {
            id: format!("prt_{turn}_{part}").parse().unwrap(),
            message: format!("msg_{turn}_{role:?}").parse().unwrap(),
            conversation: session().as_str().parse().unwrap(),
            body: PartBody::Text { text, done: true, synthetic: false },
        },
    };
    match seq % 10 {
        1 => EventKind::Message { message: message(Role::User) },
        2 => part(Role::User, 0, format!("question {turn}")),
        3 => EventKind::Busy { busy: Busy::Working },
        4 => EventKind::Message { message: message(Role::Assistant) },
        0 => EventKind::TurnEnded { outcome: TurnOutcome::Completed },
        _ => part(Role::Assistant, seq % 2 + 1, text(seq)),
    }
}

/// Not a test: the program that is killed while it compacts.
#[tokio::test]
#[ignore = "a helper that the other tests start and kill"]
async fn compacts_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let mut out = std::io::stdout();
    let store = Store::open(&folder).await.unwrap();
    store.bound_histories(BOUNDS).await.unwrap();
    store.put_session(&record()).await.unwrap();
    let log = EventLog::new(store);
    let mut last = log.info(&session()).await.unwrap().last_seq;
    loop {
        last = log.append(&session(), (1..=7).map(|n| (AT, spoken(last + n))).collect(), None).await.unwrap();
        writeln!(out, "\nacked {last}").unwrap();
        out.flush().unwrap();
    }
}

fn start(folder: &Path) -> Child {
    start_helper("writes_until_it_is_killed", folder)
}

fn start_helper(name: &str, folder: &Path) -> Child {
    let helper = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", name, "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    helper.unwrap()
}

/// Kills the helper once `until` says so of a line, or has been waited for long enough, and answers the last event that it was told of.
fn kill_when(mut helper: Child, mut until: impl FnMut(&str) -> bool) -> Option<u64> {
    let lines = BufReader::new(helper.stdout.take().unwrap()).lines();
    let mut acked = None;
    let mut is_killed = false;
    for line in lines {
        let line = line.unwrap();
        if let Some(seq) = line.strip_prefix("acked ") {
            acked = Some(seq.parse().unwrap());
        }
        if !is_killed && until(&line) {
            helper.kill().unwrap();
            is_killed = true;
        }
    }
    let status = helper.wait().unwrap();
    assert!(is_killed, "the helper ended by itself: {status}");
    acked
}

/// Everything that was answered is there, nothing is there in part, and it can be gone on with.
async fn check(folder: &Path, acked: u64) -> u64 {
    let store = Store::open(folder).await.unwrap();
    let log = EventLog::new(store);
    let Ok(info) = log.info(&session()).await else {
        assert_eq!(acked, 0, "the session is gone");
        return 0;
    };
    assert!(info.last_seq >= acked, "{} of {acked} events are there", info.last_seq);
    assert_eq!((info.last_seq % 3, info.journal_seq), (0, info.last_seq / 3), "a batch is there in part");
    let mut reader = log.subscribe(&session(), 0, false).await.unwrap();
    let mut seen = 0;
    loop {
        match reader.next().await.unwrap() {
            Item::Event(event) => {
                seen += 1;
                assert_eq!((event.seq, &event.kind), (seen, &EventKind::Gap { reason: text(seen) }));
            }
            Item::CaughtUp(last) => {
                assert_eq!((seen, last), (info.last_seq, info.last_seq));
                return last;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_kill_while_writing_loses_nothing_that_was_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let mut last = 0;
    for round in 0..12u64 {
        let enough = last + 30 + round * 37;
        let acked = kill_when(start(&path), |line| line.strip_prefix("acked ").is_some_and(|seq| seq.parse::<u64>().unwrap() >= enough));
        last = check(&path, acked.unwrap()).await;
    }
    assert!(last > 500);
}

/// A conversation as JSON.
#[derive(Default)]
struct Folded(Transcript);

impl Folded {
    fn take(&mut self, seq: u64, kind: EventKind) {
        self.0.apply(Event { seq, at: AT, kind });
    }

    fn json(&self) -> String {
        String::from_utf8(self.0.json(&About { session: record().session, usage: Usage::default(), created_at: AT })).unwrap()
    }
}

#[tokio::test]
async fn a_kill_while_compacting_leaves_the_same_conversation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let (mut last, mut compacted) = (0, 0);
    for round in 0..14u64 {
        let enough = last + 60 + round * 13;
        let helper = start_helper("compacts_until_it_is_killed", &path);
        let acked = kill_when(helper, |line| line.strip_prefix("acked ").is_some_and(|seq| seq.parse::<u64>().unwrap() >= enough)).unwrap();
        let store = Store::open(&path).await.unwrap();
        let cursor = store.cursor(&session()).await.unwrap();
        assert!(cursor.last_seq >= acked, "{} of {acked} events are there", cursor.last_seq);
        assert!(cursor.floor >= compacted, "the floor sank");
        (last, compacted) = (cursor.last_seq, cursor.floor);
        let log = EventLog::new(store);
        let mut reader = log.subscribe(&session(), 0, false).await.unwrap();
        let (mut told, mut kept) = (Folded::default(), 0);
        loop {
            match reader.next().await.unwrap() {
                Item::Event(event) => {
                    kept += u64::from(event.seq <= cursor.floor);
                    told.take(event.seq, event.kind.clone());
                }
                Item::Snapshot(snapshot) => assert_eq!((snapshot.floor, snapshot.kept), (cursor.floor, cursor.kept)),
                Item::CaughtUp(seq) => {
                    assert_eq!(seq, last);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(kept, cursor.kept);
        let mut all = Folded::default();
        (1..=last).for_each(|seq| all.take(seq, spoken(seq)));
        assert_eq!(told.json(), all.json());
    }
    assert!(compacted > 500, "{compacted} of {last}");
}

#[tokio::test]
async fn a_kill_while_opening_leaves_a_store_that_opens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let full = kill_when(start(&path), |line| line.strip_prefix("acked ").is_some_and(|seq| seq.parse::<u64>().unwrap() >= 600));
    let mut last = check(&path, full.unwrap()).await;
    for round in 0..40u32 {
        let acked = kill_when(start(&path), |line| {
            let is_opening = line == "opening";
            if is_opening {
                // Somewhere in the few milliseconds that opening takes.
                let until = Instant::now() + Duration::from_micros(u64::from(round) * 250);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
            }
            is_opening
        });
        last = check(&path, acked.unwrap_or(last).max(last)).await;
    }
}
