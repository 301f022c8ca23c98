//! What was answered is there after any end, and records that were shipped are read for ever.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use openagent_core::event::AgentProcess;
use openagent_core::permission::PermissionMode;
use openagent_core::session::lifecycle::Lifecycle;
use openagent_core::session::{Limits, NetworkPolicy, Session, WorkspaceSource};
use openagent_core::usage::{Tokens, Usage};
use tempfile::TempDir;

use super::*;

const AT: Timestamp = Timestamp::from_millis(1_795_336_693_531);
const ALL: Page = Page { events: usize::MAX, bytes: usize::MAX };

pub(crate) fn record(id: &str) -> SessionRecord {
    SessionRecord {
        session: Session {
            id: id.parse().unwrap(),
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

const ONE: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV";
const TWO: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAW";

async fn fresh() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("db")).await.unwrap();
    store.put_session(&record(ONE)).await.unwrap();
    (folder, store)
}

async fn reopen(folder: &TempDir, store: Store) -> Store {
    store.close().await;
    drop(store);
    Store::open(folder.path().join("db")).await.unwrap()
}

fn note(text: &str) -> NewEvent {
    encode_event(AT, EventKind::Gap { reason: text.to_owned() }).unwrap()
}

fn paid(message: &str, model: &str, input: u64) -> NewEvent {
    let usage = Usage { tokens: Tokens { input, ..Tokens::default() }, cost_micros: input * 2 };
    let kind = EventKind::Usage { message: message.parse().unwrap(), provider: "demo".to_owned(), model: model.to_owned(), usage };
    encode_event(AT, kind).unwrap()
}

async fn append(store: &Store, session: &str, events: Vec<NewEvent>, journal_seq: Option<u64>) -> Result<SessionCursor, StoreError> {
    store.append(&session.parse().unwrap(), events, journal_seq, |_, _| {}).await
}

async fn texts(store: &Store, session: &str) -> Vec<String> {
    let session = session.parse().unwrap();
    let last = store.cursor(&session).await.unwrap().last_seq;
    let Read::Events { events, through } = store.events(&session, 0, last, ALL, None).await.unwrap() else { panic!("it is compacted") };
    assert_eq!(through, last);
    let text = |(at, (event, _)): (usize, (openagent_core::event::Event, usize))| {
        assert_eq!(event.seq, at as u64 + 1);
        match &event.kind {
            EventKind::Gap { reason } => reason.clone(),
            other => panic!("{other:?}"),
        }
    };
    events.into_iter().enumerate().map(text).collect()
}

#[tokio::test]
async fn values_of_every_size_come_back_and_none_goes_to_a_file_that_is_not_made_durable() {
    let (folder, store) = fresh().await;
    let mut written = vec![];
    for size in [0, 1, 5_000, 5_080, 5_090, 5_100, 5_120, 10_300, 100_000, 1_000_000, EVENT_MAX_BYTES - 100] {
        written.push("x".repeat(size));
    }
    written.extend((0..400).map(|n| format!("{n}").repeat(8 * 1024 / 3)));
    for group in written.chunks(7) {
        append(&store, ONE, group.iter().map(|text| note(text)).collect(), None).await.unwrap();
    }
    assert_eq!(texts(&store, ONE).await, written);
    let store = reopen(&folder, store).await;
    assert_eq!(texts(&store, ONE).await, written);
    assert_eq!(fs::read_dir(folder.path().join("db/blobs")).unwrap().count(), 0);
    assert!(matches!(encode_event(AT, EventKind::Gap { reason: "x".repeat(EVENT_MAX_BYTES) }), Err(StoreError::EventTooLarge { .. })));
}

#[tokio::test]
async fn a_shorter_value_leaves_nothing_of_a_longer_one() {
    let (folder, store) = fresh().await;
    let mut long = record(TWO);
    long.session.title = "t".repeat(50_000);
    store.put_session(&long).await.unwrap();
    store.put_session(&record(TWO)).await.unwrap();
    let store = reopen(&folder, store).await;
    let sessions = store.load_sessions().await.unwrap();
    assert_eq!(sessions.iter().map(|(record, _)| record.clone()).collect::<Vec<_>>(), vec![record(ONE), record(TWO)]);
    let keys = store.0.db.scan_prefix([Table::Session as u8]).count();
    assert_eq!(keys, 2);
}

#[tokio::test]
async fn appends_are_dense_and_all_or_nothing() {
    let (_folder, store) = fresh().await;
    let cursor = append(&store, ONE, vec![note("a"), note("b")], Some(5)).await.unwrap();
    assert_eq!((cursor.last_seq, cursor.journal_seq, cursor.updated_at), (2, 5, Some(AT)));
    let replayed = append(&store, ONE, vec![note("again")], Some(5)).await.unwrap_err();
    assert!(matches!(replayed, StoreError::JournalReplayed { stored: 5, got: 5 }));
    assert!(matches!(append(&store, TWO, vec![note("x")], None).await, Err(StoreError::UnknownSession(_))));
    append(&store, ONE, vec![note("c")], None).await.unwrap();
    store.reset_journal(&ONE.parse().unwrap()).await.unwrap();
    append(&store, ONE, vec![note("d")], Some(1)).await.unwrap();
    assert_eq!(texts(&store, ONE).await, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn usage_of_a_message_is_replaced_and_sums_stay_when_a_session_goes() {
    let (folder, store) = fresh().await;
    store.put_session(&record(TWO)).await.unwrap();
    append(&store, ONE, vec![paid("m1", "a", 10), paid("m1", "a", 25), paid("m2", "b", 1)], None).await.unwrap();
    append(&store, ONE, vec![paid("m2", "a", 5)], None).await.unwrap();
    append(&store, TWO, vec![paid("m1", "a", 100)], None).await.unwrap();
    let one = ONE.parse().unwrap();
    assert_eq!(store.cursor(&one).await.unwrap().usage.tokens.input, 30);
    let messages = store.message_usage(&one).await.unwrap();
    assert_eq!(messages.iter().map(|m| (m.model.as_str(), m.usage.tokens.input)).collect::<Vec<_>>(), [("a", 25), ("a", 5)]);
    store.remove_session(&one).await.unwrap();
    let store = reopen(&folder, store).await;
    let mut days: Vec<_> = store.day_usage().await.unwrap().into_iter().map(|d| (d.day, d.model, d.usage.cost_micros)).collect();
    days.sort();
    assert_eq!(days, [("2026-11-22".to_owned(), "a".to_owned(), 260), ("2026-11-22".to_owned(), "b".to_owned(), 0)]);
}

/// Waits until nothing in the database names the session; every look gives the writer an idle moment.
async fn nothing_left_of(store: &Store, session: &str) {
    for _ in 0..20_000 {
        let rows = store.0.db.iter().keys().map(Result::unwrap);
        if !rows.into_iter().any(|key| key.windows(session.len()).any(|part| part == session.as_bytes())) {
            return;
        }
        store.cursor(&TWO.parse().unwrap()).await.unwrap();
    }
    panic!("something is left of {session}");
}

#[tokio::test]
async fn a_removed_session_leaves_nothing_even_if_the_daemon_ends_meanwhile() {
    let (folder, store) = fresh().await;
    let one: SessionId = ONE.parse().unwrap();
    store.put_session(&record(TWO)).await.unwrap();
    append(&store, ONE, (0..3_000).map(|n| note(&n.to_string())).collect(), None).await.unwrap();
    append(&store, ONE, vec![paid("m1", "a", 10)], None).await.unwrap();
    append(&store, TWO, vec![note("stays")], None).await.unwrap();
    store.put_sealed(&one, "sidecar", vec![1]).await.unwrap();
    store.remove_session(&one).await.unwrap();
    assert!(matches!(store.cursor(&one).await, Err(StoreError::UnknownSession(_))));
    assert!(matches!(store.remove_session(&one).await, Err(StoreError::UnknownSession(_))));
    assert!(matches!(append(&store, ONE, vec![note("late")], None).await, Err(StoreError::UnknownSession(_))));
    let store = reopen(&folder, store).await;
    nothing_left_of(&store, ONE).await;
    assert_eq!(texts(&store, TWO).await, ["stays"]);
    assert_eq!(store.load_sessions().await.unwrap().len(), 1);
}

#[tokio::test]
async fn rules_are_kept_once_each() {
    let (folder, store) = fresh().await;
    let rule = |pattern: &str| PermissionRule { permission: "bash".to_owned(), pattern: pattern.to_owned() };
    let odd = rule(&format!("echo \0{}", "long ".repeat(10_000)));
    for rule in [&rule("ls *"), &rule("ls *"), &odd] {
        store.put_rule(rule).await.unwrap();
    }
    let store = reopen(&folder, store).await;
    let mut rules = store.load_rules().await.unwrap();
    rules.sort();
    assert_eq!(rules, [odd.clone(), rule("ls *")]);
    assert!(store.remove_rule(&odd).await.unwrap() && !store.remove_rule(&odd).await.unwrap());
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_its_snapshots_are_left_alone() {
    let (folder, store) = fresh().await;
    let path = folder.path().join("db");
    let generating = path.join("snap.0000000000000001.generating");
    fs::write(&generating, b"half").unwrap();
    let refused = Store::open(&path).await.unwrap_err();
    assert_eq!(refused.fault().code, "STORE_LOCKED");
    assert!(generating.exists());
    let store = reopen(&folder, store).await;
    assert!(!generating.exists(), "left by one that was killed");
    assert_eq!(store.load_sessions().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused_untouched() {
    let (folder, store) = fresh().await;
    let newer = open::FORMAT + 1;
    open::write_format(&store.0.db, newer).unwrap();
    store.close().await;
    drop(store);
    let refused = Store::open(folder.path().join("db")).await.unwrap_err();
    assert!(matches!(refused, StoreError::NewerFormat { found, known: open::FORMAT, .. } if found == newer), "{refused:?}");
    assert!(refused.fault().hint.contains("newer version"));
}

#[tokio::test]
async fn damaged_files_are_refused_without_a_panic() {
    let (folder, store) = fresh().await;
    append(&store, ONE, (0..500).map(|n| note(&format!("{n}").repeat(1_000))).collect(), None).await.unwrap();
    store.close().await;
    drop(store);
    let path = folder.path().join("db");
    let data = fs::read(path.join("db")).unwrap();
    let mut noise = data.clone();
    noise.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= u8::try_from(at * 7 % 251).unwrap());
    for (what, bytes) in [("noise", &noise[..]), ("half of it", &data[..data.len() / 2]), ("nothing", &[])] {
        fs::write(path.join("db"), bytes).unwrap();
        match Store::open(&path).await {
            Err(StoreError::Corrupt { .. } | StoreError::BadRecord { .. } | StoreError::Behind { .. }) => {}
            Err(other) => panic!("{what}: {other:?}"),
            Ok(_) => panic!("{what}: a store whose records are gone is neither a new one nor an older one"),
        }
    }
}

#[tokio::test]
async fn what_is_closed_says_so() {
    let (_folder, store) = fresh().await;
    store.close().await;
    assert!(matches!(store.put_session(&record(ONE)).await, Err(StoreError::Closed)));
}

#[test]
fn the_stored_form_of_an_event_stays() {
    let event = encode_event(AT, EventKind::Agent { process: AgentProcess::Ready { version: "1.18.33".to_owned() } }).unwrap();
    let expected = br#"{"kind":"agent","process":{"process":"ready","version":"1.18.33"}}"#;
    assert_eq!(event.stored, [&1_795_336_693_531i64.to_be_bytes()[..], expected].concat());
}

/// What version 1 wrote. These texts are never edited: a store of that version must open for ever.
#[test]
fn records_of_the_first_version_are_read() {
    let session = r#"{"session":{"id":"ses_01ARZ3NDEKTSV4RRFFQ69G5FAV","title":"a session","title_is_users":false,"driver":"local",
        "workspace":{"source":"copy","path":"/home/u/p"},"model":"demo/tour","agent":"build","network":"none",
        "limits":{"memory_bytes":2147483648,"cpu_millis":2000,"pids":512},"permission_mode":"auto-edit",
        "permission_rules":[{"permission":"bash","pattern":"ls *"}],"idle_timeout_millis":900000,"created_at":1795336693531},
        "lifecycle":{"state":{"state":"failed","fault":{"code":"IMAGE_MISSING","message":"m","hint":"h"}},"workspace_ready":true},
        "instance":{"id":"ins_01ARZ3NDEKTSV4RRFFQ69G5FAV","driver":"local","state":{"state":"error","cause":{"cause":"exited","code":137}},
        "created_at":1795336693531,"ended_at":1795336693532}}"#;
    let session: SessionRecord = record::decode("session", session.as_bytes()).unwrap();
    assert!(session.lifecycle.workspace_ready() && session.lifecycle.fault().is_some() && session.instance.is_some());
    let cursor = r#"{"last_seq":7,"journal_seq":5,"updated_at":1795336693531,"usage":{"tokens":{"input":1,"output":2,"reasoning":3,
        "cache_read":4,"cache_write":5},"cost_micros":6},"open_parts":{"prt_1":{"message":"msg_1","seq":7}}}"#;
    let cursor: SessionCursor = record::decode("cursor", cursor.as_bytes()).unwrap();
    assert_eq!((cursor.last_seq, cursor.open_parts.len(), cursor.usage.tokens.total()), (7, 1, 15));
    let key = r#"{"provider":"openai","version":3,"envelope":"AQID","created_at":1,"updated_at":2,"used_at":3}"#;
    assert_eq!(record::decode::<KeyRecord>("key", key.as_bytes()).unwrap().version, 3);
    let gone = r#"{"provider":"openai","version":4,"created_at":1,"updated_at":2}"#;
    assert_eq!(record::decode::<KeyRecord>("key", gone.as_bytes()).unwrap().envelope, None);
}
