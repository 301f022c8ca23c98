//! What is kept says the same as everything said, and no more than may be kept is kept.

#![allow(clippy::unwrap_used, reason = "tests")]

use openagent_core::activity::ActivityTracker;
use openagent_core::event::{Busy, Event, EventKind, Message, Part, PartBody, Role, StepOutcome, TodoItem, ToolState, TurnOutcome};
use openagent_core::permission::{PermissionRequest, PermissionResponse};
use openagent_core::session::Step;
use openagent_core::usage::{Tokens, Usage};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;
use tempfile::TempDir;

use super::*;
use crate::export::archive::About;
use crate::export::transcript::Transcript;
use crate::store::model::Extent;
use crate::store::tests::record;
use crate::store::{Page, Read, Store};

const ONE: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV";
const AT: Timestamp = Timestamp::from_millis(1_795_336_693_531);
const ALL: Page = Page { events: usize::MAX, bytes: usize::MAX };
const UNBOUNDED: u64 = u64::MAX / 4;

fn one() -> SessionId {
    ONE.parse().unwrap()
}

async fn bounded(compact_after: u64, max_bytes: u64) -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("db")).await.unwrap();
    store.put_session(&record(ONE)).await.unwrap();
    store.bound_histories(HistoryConfig { compact_after, max_bytes }).await.unwrap();
    (folder, store)
}

async fn append(store: &Store, events: &[EventKind]) {
    let events = events.iter().map(|kind| encode_event(AT, kind.clone()).unwrap()).collect();
    store.append(&one(), events, None, |_, _| {}).await.unwrap();
}

/// Waits until no history is over its bounds; a look at the cursor gives the writer an idle moment.
async fn rested(store: &Store) -> SessionCursor {
    let mut running = store.compacting();
    tokio::time::timeout(Duration::from_secs(60), running.wait_for(BTreeSet::is_empty)).await.expect("compaction ends").unwrap();
    store.cursor(&one()).await.unwrap()
}

async fn kept(store: &Store, cursor: &SessionCursor) -> Vec<(Event, usize)> {
    let floor = match store.events(&one(), 0, cursor.last_seq, ALL, None).await.unwrap() {
        Read::Compacted(floor) => Some(floor),
        Read::Events { .. } => None,
    };
    match store.events(&one(), 0, cursor.last_seq, ALL, floor).await.unwrap() {
        Read::Events { events, through } => {
            assert_eq!(through, cursor.last_seq);
            events
        }
        Read::Compacted(floor) => panic!("it rests, and yet {floor:?}"),
    }
}

/// What a history tells, to whoever folds it.
#[derive(Debug, PartialEq)]
struct Told {
    conversation: String,
    activity: openagent_core::activity::Activity,
    spent: BTreeMap<String, Usage>,
    todo: Vec<TodoItem>,
}

fn told<'a>(events: impl IntoIterator<Item = &'a EventKind>) -> Told {
    let (mut transcript, mut tracker) = (Transcript::default(), ActivityTracker::default());
    let (mut spent, mut todo) = (BTreeMap::new(), vec![]);
    for kind in events {
        tracker.apply(kind);
        match kind {
            EventKind::Usage { message, usage, .. } => drop(spent.insert(message.to_string(), *usage)),
            EventKind::Todo { items } => todo.clone_from(items),
            _ => {}
        }
        transcript.apply(Event { seq: 0, at: AT, kind: kind.clone() });
    }
    let about = About { session: record(ONE).session, usage: Usage::default(), created_at: AT };
    Told { conversation: String::from_utf8(transcript.json(&about)).unwrap(), activity: tracker.activity(), spent, todo }
}

fn message(id: u8, completed: bool) -> EventKind {
    EventKind::Message {
        message: Message {
            id: format!("msg_{id}").parse().unwrap(),
            conversation: ONE.parse().unwrap(),
            role: if id.is_multiple_of(2) { Role::User } else { Role::Assistant },
            parent: None,
            agent: String::new(),
            model: String::new(),
            created_at: AT,
            completed_at: completed.then_some(AT),
            error: None,
            summary: false,
        },
    }
}

fn part(message: u8, id: u8, body: PartBody) -> EventKind {
    EventKind::Part {
        part: Part {
            id: format!("prt_{message}_{id}").parse().unwrap(),
            message: format!("msg_{message}").parse().unwrap(),
            conversation: ONE.parse().unwrap(),
            body,
        },
    }
}

fn text(message: u8, id: u8, text: String, done: bool) -> EventKind {
    part(message, id, PartBody::Text { text, done, synthetic: false })
}

fn tool(message: u8, id: u8, output: String) -> EventKind {
    let input = serde_json::json!({ "command": "ls" });
    part(message, id, PartBody::Tool { tool: "bash".to_owned(), state: ToolState::Running { input, title: String::new(), output } })
}

fn used(message: u8, input: u64) -> EventKind {
    EventKind::Usage {
        message: format!("msg_{message}").parse().unwrap(),
        provider: "demo".to_owned(),
        model: "tour".to_owned(),
        usage: Usage { tokens: Tokens { input, ..Tokens::default() }, cost_micros: input },
    }
}

fn asked(id: u8) -> EventKind {
    EventKind::PermissionAsked {
        request: PermissionRequest {
            id: format!("per_{id}").parse().unwrap(),
            conversation: ONE.parse().unwrap(),
            permission: "bash".to_owned(),
            title: "ls".to_owned(),
            diff: Some("-a\n+b".to_owned()),
            patterns: vec![],
            always: vec![],
            asked_at: AT,
        },
    }
}

fn answered(id: u8) -> EventKind {
    let id = format!("per_{id}").parse().unwrap();
    EventKind::PermissionAnswered { id, response: PermissionResponse::Once, by: "somebody".to_owned(), reason: None }
}

fn session(status: Status) -> EventKind {
    EventKind::Session { status, fault: None, title: "a session".to_owned() }
}

fn any_event() -> impl Strategy<Value = EventKind> {
    let (m, p, n) = (0u8..6, 0u8..4, 0usize..2_000);
    prop_oneof![
        3 => (m.clone(), any::<bool>()).prop_map(|(m, done)| message(m, done)),
        8 => (m.clone(), p.clone(), n.clone(), any::<bool>()).prop_map(|(m, p, n, done)| text(m, p, format!("{n}{}", "x".repeat(n * 4)), done)),
        6 => (m.clone(), p.clone(), n).prop_map(|(m, p, n)| tool(m, p, "y".repeat(n))),
        1 => m.clone().prop_map(|m| EventKind::MessageRemoved { id: format!("msg_{m}").parse().unwrap() }),
        1 => (m.clone(), p.clone()).prop_map(|(m, p)| {
            EventKind::PartRemoved { message: format!("msg_{m}").parse().unwrap(), id: format!("prt_{m}_{p}").parse().unwrap() }
        }),
        2 => (m, 0u64..100).prop_map(|(m, input)| used(m, input)),
        1 => p.clone().prop_map(asked),
        1 => p.clone().prop_map(answered),
        1 => p.prop_map(|p| EventKind::Todo { items: vec![TodoItem { content: p.to_string(), status: String::new(), priority: String::new() }] }),
        2 => Just(EventKind::Busy { busy: Busy::Working }),
        2 => Just(EventKind::TurnEnded { outcome: TurnOutcome::Completed }),
        1 => Just(EventKind::Step { step: Step::Image, outcome: StepOutcome::Started }),
        1 => Just(session(Status::Active)),
        1 => Just(session(Status::Stopped)),
    ]
}

/// As an agent has it: parts have a message.
fn in_order(events: Vec<EventKind>) -> Vec<EventKind> {
    let mut known = BTreeSet::new();
    let in_order = |kind: EventKind| {
        let first = match &kind {
            EventKind::Message { message } => {
                known.insert(message.id.clone());
                None
            }
            EventKind::MessageRemoved { id } => {
                known.remove(id);
                None
            }
            EventKind::Part { part } if known.insert(part.message.clone()) => {
                Some(message(part.message.as_str()[4..].parse().unwrap(), false))
            }
            _ => None,
        };
        first.into_iter().chain([kind])
    };
    events.into_iter().flat_map(in_order).collect()
}

/// What must hold of the records of a history, whatever happened to it.
async fn consistent(store: &Store, cursor: &SessionCursor) {
    let events = kept(store, cursor).await;
    let (below, above): (Vec<_>, Vec<_>) = events.iter().partition(|(event, _)| event.seq <= cursor.floor);
    assert!(events.is_sorted_by(|(a, _), (b, _)| a.seq < b.seq));
    assert_eq!(above.iter().map(|(event, _)| event.seq).collect::<Vec<_>>(), (cursor.floor + 1..=cursor.last_seq).collect::<Vec<_>>());
    let bytes = |events: &[&(Event, usize)]| events.iter().map(|(_, bytes)| *bytes as u64).sum::<u64>();
    assert_eq!((cursor.kept, cursor.extent.kept_bytes), (below.len() as u64, bytes(&below)));
    assert_eq!(cursor.extent.tail_bytes, bytes(&above));
    let mut places = BTreeSet::new();
    let prefix = record::prefix(Table::Place, ONE.as_bytes());
    let from = Name::new(Table::Place, &[ONE.as_bytes(), b""]);
    record::scan(&store.0.db, &prefix, &from, |name, value| {
        let place: Place = record::decode("place", &value).unwrap();
        let at = below.iter().find(|(event, _)| event.seq == place.seq);
        let (event, size) = at.unwrap_or_else(|| panic!("nothing stands in the place of {:?}", String::from_utf8_lossy(name)));
        assert_eq!(*size as u64, place.bytes);
        assert!(places.insert(event.seq), "two things stand in one place");
        Ok(true)
    })
    .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_tells_the_same_as_everything(
        events in proptest::collection::vec(any_event(), 1..300),
        compact_after in 1u64..60,
        group in 1usize..40,
    ) {
        let events = in_order(events);
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let (folder, store) = bounded(compact_after, UNBOUNDED).await;
            for (round, group) in events.chunks(group).enumerate() {
                append(&store, group).await;
                if round % 4 == 0 {
                    rested(&store).await;
                }
            }
            let cursor = rested(&store).await;
            consistent(&store, &cursor).await;
            let is_held = cursor.turn > 0 || !cursor.open_parts.is_empty();
            assert!(is_held || cursor.last_seq - cursor.floor <= compact_after, "{cursor:?}");
            let kept = kept(&store, &cursor).await;
            assert_eq!(told(kept.iter().map(|(event, _)| &event.kind)), told(&events));
            store.close().await;
            drop(store);
            let store = Store::open(folder.path().join("db")).await.unwrap();
            assert_eq!(store.cursor(&one()).await.unwrap(), cursor);
        });
    }

    #[test]
    fn a_history_stays_within_its_bytes_and_loses_its_oldest_messages_whole(
        events in proptest::collection::vec(any_event(), 1..300),
        max_bytes in 2_000u64..60_000,
    ) {
        let events = in_order(events);
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let (_folder, store) = bounded(20, max_bytes).await;
            for group in events.chunks(7) {
                append(&store, group).await;
            }
            append(&store, &[session(Status::Stopped)]).await;
            let cursor = rested(&store).await;
            consistent(&store, &cursor).await;
            let kept = kept(&store, &cursor).await;
            let bytes = cursor.extent.kept_bytes + cursor.extent.tail_bytes;
            // What says how things stand now is not trimmed, neither is what was not settled yet.
            let settled = cursor.extent.trimmed >= cursor.extent.settled;
            assert!(bytes <= max_bytes || settled, "{bytes} of {max_bytes}: {cursor:?}");
            let gaps = kept.iter().filter(|(event, _)| matches!(event.kind, EventKind::Gap { .. })).count();
            assert_eq!(gaps, usize::from(cursor.extent.gap > 0));
            let spent: u64 = told(&events).spent.values().map(|usage| usage.tokens.input).sum();
            assert_eq!(cursor.usage.tokens.input, spent, "sums stay");
        });
    }
}

/// `turns` of a conversation, each with the states that a long answer goes through.
fn conversation(turns: std::ops::Range<u8>) -> Vec<EventKind> {
    let turn = |n: u8| {
        let mut events = vec![message(n * 2, true), text(n * 2, 0, format!("question {n}"), true), EventKind::Busy { busy: Busy::Working }];
        events.push(message(n * 2 + 1, false));
        events.extend((0..8).map(|step| tool(n * 2 + 1, 0, "z".repeat(step * 100))));
        events.push(text(n * 2 + 1, 1, String::new(), false));
        events.push(text(n * 2 + 1, 1, format!("answer {n}"), true));
        events.extend([message(n * 2 + 1, true), used(n * 2 + 1, 10), EventKind::TurnEnded { outcome: TurnOutcome::Completed }]);
        events
    };
    turns.flat_map(turn).collect()
}

#[tokio::test]
async fn a_turn_that_runs_is_never_compacted() {
    let (_folder, store) = bounded(10, UNBOUNDED).await;
    append(&store, &conversation(0..4)).await;
    let before = rested(&store).await;
    assert!(before.floor > 40 && before.kept < before.floor / 2, "{before:?}");
    append(&store, &[EventKind::Busy { busy: Busy::Working }]).await;
    for n in 0..50 {
        append(&store, &[tool(9, 0, n.to_string())]).await;
    }
    let running = rested(&store).await;
    assert!(running.floor <= before.last_seq && running.floor > before.floor, "{running:?}");
    append(&store, &[EventKind::TurnEnded { outcome: TurnOutcome::Completed }]).await;
    assert!(rested(&store).await.floor > before.last_seq);
}

#[tokio::test]
async fn what_goes_is_said_in_one_gap_and_whole_messages_go() {
    let (_folder, store) = bounded(30, 6_000).await;
    let mut gaps = BTreeSet::new();
    for n in 0..30 {
        append(&store, &conversation(n..n + 1)).await;
        gaps.insert(rested(&store).await.extent.gap);
    }
    assert!(gaps.len() > 3, "{gaps:?}");
    let cursor = rested(&store).await;
    consistent(&store, &cursor).await;
    assert!(cursor.extent.kept_bytes + cursor.extent.tail_bytes <= 6_000, "{cursor:?}");
    let kept = kept(&store, &cursor).await;
    let EventKind::Gap { reason } = &kept[0].0.kind else { panic!("{:?}", kept[0]) };
    let expected =
        format!("the messages of the first {} events, up to {AT}, were removed to keep the history within its bounds", kept[0].0.seq);
    assert_eq!(*reason, expected);
    let conversation = told(kept.iter().map(|(event, _)| &event.kind)).conversation;
    assert!(conversation.contains("answer 29") && !conversation.contains("answer 0\""), "{conversation}");
    assert_eq!(store.message_usage(&one()).await.unwrap().len(), 30, "what was used is known for each message");
}

#[tokio::test]
async fn a_session_that_is_removed_while_it_is_compacted_leaves_nothing() {
    let (_folder, store) = bounded(10, UNBOUNDED).await;
    for n in 0..20 {
        append(&store, &conversation(n..n + 1)).await;
    }
    store.remove_session(&one()).await.unwrap();
    let mut running = store.compacting();
    tokio::time::timeout(Duration::from_secs(60), running.wait_for(BTreeSet::is_empty)).await.expect("compaction ends").unwrap();
    for _ in 0..10_000 {
        if store.0.db.iter().keys().all(|key| !key.unwrap().windows(ONE.len()).any(|part| part == ONE.as_bytes())) {
            return;
        }
        let _ = store.cursor(&one()).await;
    }
    panic!("something is left");
}

/// What the first version that compacts wrote. These texts are never edited.
#[test]
fn records_of_compacted_histories_are_read() {
    let cursor = r#"{"last_seq":90,"floor":40,"kept":12,"journal_seq":80,"usage":{"tokens":{"input":1,"output":2,"reasoning":3,"cache_read":4,
        "cache_write":5},"cost_micros":6},"turn":77,"extent":{"kept_bytes":900,"tail_bytes":5000,"in_turn":true,"settled":33,"trimmed":9,"gap":8}}"#;
    let cursor: SessionCursor = record::decode("cursor", cursor.as_bytes()).unwrap();
    let extent = Extent { kept_bytes: 900, tail_bytes: 5_000, in_turn: true, settled: 33, trimmed: 9, gap: 8 };
    assert_eq!((cursor.floor, cursor.kept, cursor.turn, &cursor.extent), (40, 12, 77, &extent));
    let place: Place = record::decode("place", br#"{"seq":7,"bytes":120}"#).unwrap();
    assert_eq!((place.seq, place.bytes), (7, 120));
}
