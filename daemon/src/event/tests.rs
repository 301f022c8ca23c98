//! Readers get each event once and in order, whatever happens to the others.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use openagent_core::config::HistoryConfig;
use openagent_core::event::{Busy, Part, PartBody, TurnOutcome};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::tests::record;

const ONE: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV";
const AT: Timestamp = Timestamp::from_millis(1_795_336_693_531);

fn one() -> SessionId {
    ONE.parse().unwrap()
}

async fn fresh() -> (TempDir, EventLog) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("db")).await.unwrap();
    store.put_session(&record(ONE)).await.unwrap();
    (folder, EventLog::new(store))
}

fn note(text: impl ToString) -> (Timestamp, EventKind) {
    (AT, EventKind::Gap { reason: text.to_string() })
}

fn text_part(part: &str, text: &str, done: bool) -> (Timestamp, EventKind) {
    let body = PartBody::Text { text: text.to_owned(), done, synthetic: false };
    let part = Part { id: part.parse().unwrap(), message: "msg".parse().unwrap(), conversation: ONE.parse().unwrap(), body };
    (AT, EventKind::Part { part })
}

fn letters(part: &str, offset: u64, text: &str) -> PartDelta {
    PartDelta { message: "msg".parse().unwrap(), part: part.parse().unwrap(), offset, text: text.to_owned() }
}

async fn next(reader: &mut EventReader) -> Item {
    tokio::time::timeout(Duration::from_secs(20), reader.next()).await.expect("an item within 20 seconds").unwrap()
}

/// What is there without waiting for anything new; the store is given time to read.
async fn ready(reader: &mut EventReader, until: impl Fn(&Item) -> bool) -> Vec<Item> {
    let mut items = vec![];
    loop {
        let item = next(reader).await;
        let is_last = until(&item);
        items.push(item);
        if is_last {
            return items;
        }
    }
}

fn seqs(items: &[Item]) -> Vec<u64> {
    items.iter().filter_map(|item| if let Item::Event(event) = item { Some(event.seq) } else { None }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_readers_each_get_everything_once_while_one_is_stuck() {
    let (_folder, log) = fresh().await;
    let mut stuck = log.subscribe(&one(), 0, true).await.unwrap();
    let session = one();
    let readers = join_all((0..50).map(|_| log.subscribe(&session, 0, true))).await;
    let reading = readers.into_iter().map(|reader| {
        let mut reader = reader.unwrap();
        async move { ready(&mut reader, |item| matches!(item, Item::Event(event) if event.seq == 1_000)).await }
    });
    let appending = async {
        for n in 0..100 {
            log.append(&one(), (0..10).map(|m| note(format!("{n} {m} {}", "x".repeat(8_000)))).collect(), None).await.unwrap();
        }
    };
    let (all, ()) = futures::join!(join_all(reading), appending);
    for items in all {
        assert_eq!(seqs(&items), (1..=1_000).collect::<Vec<_>>());
        assert_eq!(items.iter().filter(|item| matches!(item, Item::CaughtUp(_))).count(), 1);
    }
    let late = ready(&mut stuck, |item| matches!(item, Item::Event(event) if event.seq == 1_000)).await;
    assert_eq!(seqs(&late), (1..=1_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_reader_catches_up_once_and_goes_on_from_its_cursor() {
    let (_folder, log) = fresh().await;
    assert_eq!(log.append(&one(), (0..5).map(note).collect(), Some(9)).await.unwrap(), 5);
    assert_eq!(log.info(&one()).await.unwrap().journal_seq, 9);
    let mut reader = log.subscribe(&one(), 3, false).await.unwrap();
    let items = ready(&mut reader, |item| matches!(item, Item::CaughtUp(_))).await;
    assert_eq!((seqs(&items), items.last()), (vec![4, 5], Some(&Item::CaughtUp(5))));
    assert!(reader.next().now_or_never().is_none());
    log.append(&one(), vec![note("more")], None).await.unwrap();
    assert!(matches!(next(&mut reader).await, Item::Event(event) if event.seq == 6));
    let mut at_the_end = log.subscribe(&one(), 6, false).await.unwrap();
    assert_eq!(next(&mut at_the_end).await, Item::CaughtUp(6));
}

#[tokio::test]
async fn cursors_and_sessions_that_are_not_there_are_errors_and_removal_is_told() {
    let (_folder, log) = fresh().await;
    assert!(matches!(log.subscribe(&one(), 1, false).await, Err(StoreError::CursorBeyondEnd { last: 0, .. })));
    let other = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAW".parse().unwrap();
    assert!(matches!(log.subscribe(&other, 0, false).await, Err(StoreError::UnknownSession(_))));
    let mut reader = log.subscribe(&one(), 0, true).await.unwrap();
    assert_eq!(next(&mut reader).await, Item::CaughtUp(0));
    let session = one();
    let (item, removed) = futures::join!(next(&mut reader), log.remove(&session));
    removed.unwrap();
    assert_eq!((item, next(&mut reader).await), (Item::Removed, Item::Removed));
    assert!(log.append(&one(), vec![note("late")], None).await.is_err());
}

#[tokio::test]
async fn an_append_whose_caller_has_gone_is_still_shown() {
    let (_folder, log) = fresh().await;
    let mut reader = log.subscribe(&one(), 0, false).await.unwrap();
    assert_eq!(next(&mut reader).await, Item::CaughtUp(0));
    assert!(log.append(&one(), vec![note("a")], None).now_or_never().is_none());
    assert!(matches!(next(&mut reader).await, Item::Event(event) if event.seq == 1));
    assert_eq!(log.info(&one()).await.unwrap().last_seq, 1);
}

#[tokio::test]
async fn letters_come_between_the_first_and_the_final_state_of_their_part() {
    let (_folder, log) = fresh().await;
    let mut reader = log.subscribe(&one(), 0, true).await.unwrap();
    let mut plain = log.subscribe(&one(), 0, false).await.unwrap();
    log.delta(&one(), letters("p", 0, "too early")).await.unwrap();
    log.append(&one(), vec![text_part("p", "", false)], None).await.unwrap();
    log.delta(&one(), letters("p", 0, "Hello")).await.unwrap();
    let items = ready(&mut reader, |item| matches!(item, Item::Delta(_))).await;
    assert_eq!(seqs(&items), [1]);
    assert_eq!(items.last(), Some(&Item::Delta(letters("p", 0, "Hello"))));
    for (offset, text) in [(5, ", "), (7, "world")] {
        log.delta(&one(), letters("p", offset, text)).await.unwrap();
    }
    assert_eq!(next(&mut reader).await, Item::Delta(letters("p", 5, ", world")), "what came while it was slow comes in one piece");
    log.delta(&one(), letters("p", 12, "!")).await.unwrap();
    log.append(&one(), vec![text_part("p", "Hello, world!", true)], None).await.unwrap();
    log.delta(&one(), letters("p", 13, "too late")).await.unwrap();
    assert!(matches!(next(&mut reader).await, Item::Event(event) if event.seq == 2));
    assert!(reader.next().now_or_never().is_none());
    let plain = ready(&mut plain, |item| matches!(item, Item::Event(event) if event.seq == 2)).await;
    assert!(!plain.iter().any(|item| matches!(item, Item::Delta(_))));
}

#[tokio::test]
async fn a_late_reader_gets_the_text_so_far_and_the_end_of_a_turn_clears_it() {
    let (_folder, log) = fresh().await;
    log.append(&one(), vec![text_part("p", "", false)], None).await.unwrap();
    log.delta(&one(), letters("p", 0, "so far")).await.unwrap();
    let mut late = log.subscribe(&one(), 1, true).await.unwrap();
    assert_eq!(next(&mut late).await, Item::CaughtUp(1));
    assert_eq!(next(&mut late).await, Item::Delta(letters("p", 0, "so far")));
    log.append(&one(), vec![(AT, EventKind::TurnEnded { outcome: TurnOutcome::Completed })], None).await.unwrap();
    log.delta(&one(), letters("p", 6, " and on")).await.unwrap();
    assert!(matches!(next(&mut late).await, Item::Event(_)));
    assert!(late.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_recorded_state_in_between_is_continued_and_so_is_one_from_before_a_restart() {
    let (folder, log) = fresh().await;
    let mut reader = log.subscribe(&one(), 0, true).await.unwrap();
    log.append(&one(), vec![text_part("p", "", false)], None).await.unwrap();
    log.delta(&one(), letters("p", 0, "abcdef")).await.unwrap();
    ready(&mut reader, |item| matches!(item, Item::Delta(_))).await;
    log.append(&one(), vec![text_part("p", "abc", false)], None).await.unwrap();
    assert!(matches!(next(&mut reader).await, Item::Event(event) if event.seq == 2));
    assert_eq!(next(&mut reader).await, Item::Delta(letters("p", 3, "def")), "it stands at what was recorded");
    drop((reader, log));
    let log = EventLog::new(Store::open(folder.path().join("db")).await.unwrap());
    log.delta(&one(), letters("p", 3, "xyz")).await.unwrap();
    let mut reader = log.subscribe(&one(), 2, true).await.unwrap();
    assert_eq!(next(&mut reader).await, Item::CaughtUp(2));
    assert_eq!(next(&mut reader).await, Item::Delta(letters("p", 0, "abcxyz")));
}

async fn compacting(compact_after: u64) -> (TempDir, Store, EventLog) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("db")).await.unwrap();
    store.put_session(&record(ONE)).await.unwrap();
    store.bound_histories(HistoryConfig { compact_after, max_bytes: u64::MAX / 4 }).await.unwrap();
    (folder, store.clone(), EventLog::new(store))
}

/// Waits until the history is within its bounds; answers its floor.
async fn floor(store: &Store) -> u64 {
    let mut running = store.compacting();
    let rests = running.wait_for(std::collections::BTreeSet::is_empty);
    tokio::time::timeout(Duration::from_secs(60), rests).await.expect("compaction ends").unwrap();
    store.cursor(&one()).await.unwrap().floor
}

/// `count` turns, each of which says anew what the part `p` holds, and a note.
fn turns(count: usize, size: usize) -> Vec<(Timestamp, EventKind)> {
    let turn = |n: usize| {
        let text = text_part("p", &format!("{n}{}", "x".repeat(size)), true);
        [EventKind::Busy { busy: Busy::Working }, text.1, EventKind::TurnEnded { outcome: TurnOutcome::Completed }].map(|kind| (AT, kind))
    };
    (0..count).flat_map(turn).chain([note("end")]).collect()
}

/// What a client holds that takes items as they come: the text of the part, and the numbers of the notes.
#[derive(Debug, Default, PartialEq)]
struct Client {
    text: String,
    notes: Vec<u64>,
    last: u64,
    floor: u64,
    snapshots: usize,
}

impl Client {
    fn take(&mut self, item: Item) {
        match item {
            Item::Event(event) => {
                let is_next = event.seq > self.last && (event.seq <= self.floor || event.seq == self.last.max(self.floor) + 1);
                assert!(is_next, "{} after {} with the floor at {}", event.seq, self.last, self.floor);
                self.last = event.seq;
                match &event.kind {
                    EventKind::Part { part } => {
                        let PartBody::Text { text, .. } = &part.body else { panic!("{part:?}") };
                        self.text = text[..text.find('x').unwrap_or(text.len())].to_owned();
                    }
                    EventKind::Gap { .. } => self.notes.push(event.seq),
                    _ => {}
                }
            }
            Item::Snapshot(snapshot) => {
                assert!(snapshot.floor >= self.floor && snapshot.kept + snapshot.dropped == snapshot.floor);
                *self = Self { floor: snapshot.floor, snapshots: self.snapshots + 1, ..Self::default() };
            }
            Item::Delta(_) | Item::CaughtUp(_) => {}
            Item::Removed => panic!("it was removed"),
        }
    }

    async fn read_to(&mut self, reader: &mut EventReader, last: u64) {
        while self.last < last {
            self.take(next(reader).await);
        }
    }
}

#[tokio::test]
async fn a_reader_from_below_the_floor_gets_what_is_kept_and_one_from_the_floor_gets_all() {
    let (_folder, store, log) = compacting(20).await;
    let last = log.append(&one(), turns(30, 10), None).await.unwrap();
    let floor = floor(&store).await;
    assert!(floor > 60, "{floor}");
    let mut below = log.subscribe(&one(), floor - 1, false).await.unwrap();
    let items = ready(&mut below, |item| matches!(item, Item::CaughtUp(_))).await;
    let Item::Snapshot(snapshot) = items[0] else { panic!("{items:?}") };
    assert_eq!((snapshot.floor, snapshot.kept + snapshot.dropped), (floor, floor));
    let kept = seqs(&items).iter().filter(|seq| **seq <= floor).count() as u64;
    assert!(kept == snapshot.kept && kept < floor / 2, "{kept} of {floor}: {snapshot:?}");
    let mut client = Client::default();
    items.into_iter().for_each(|item| client.take(item));
    assert_eq!((client.text.as_str(), client.last, client.snapshots), ("29", last, 1));
    let mut above = log.subscribe(&one(), floor, false).await.unwrap();
    let items = ready(&mut above, |item| matches!(item, Item::CaughtUp(_))).await;
    assert!(matches!(items[0], Item::Event(_)));
    assert_eq!(seqs(&items), (floor + 1..=last).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_reader_that_keeps_up_is_not_disturbed_by_a_compaction() {
    let (_folder, store, log) = compacting(20).await;
    let mut reader = log.subscribe(&one(), 0, false).await.unwrap();
    let mut client = Client::default();
    for _ in 0..40 {
        let last = log.append(&one(), turns(3, 10), None).await.unwrap();
        client.read_to(&mut reader, last).await;
    }
    assert!(floor(&store).await > 300);
    assert_eq!((client.snapshots, client.notes.len()), (0, 40));
}

#[tokio::test]
async fn a_slow_reader_that_is_overtaken_begins_a_snapshot_and_misses_nothing() {
    let (_folder, store, log) = compacting(40).await;
    let mut slow = log.subscribe(&one(), 0, false).await.unwrap();
    let mut client = Client::default();
    log.append(&one(), turns(5, 10), None).await.unwrap();
    client.take(next(&mut slow).await);
    client.take(next(&mut slow).await);
    // More than is kept in memory for readers.
    let mut last = 0;
    for _ in 0..60 {
        last = log.append(&one(), turns(5, 40_000), None).await.unwrap();
    }
    let floor = floor(&store).await;
    client.read_to(&mut slow, last).await;
    assert_eq!((client.snapshots, client.floor, client.text.as_str()), (1, floor, "4"));
    assert_eq!(client.notes.len(), 61, "what tells the conversation is kept");
}

#[tokio::test]
async fn histories_that_nobody_uses_are_not_kept_in_memory() {
    let (_folder, store, log) = compacting(100).await;
    let mut reader = log.subscribe(&one(), 0, false).await.unwrap();
    let session = |n: usize| SessionId::from_ulid(ulid::Ulid::from(n as u128));
    for n in 0..2 * HISTORIES_MAX {
        store.put_session(&record(session(n).as_str())).await.unwrap();
        log.info(&session(n)).await.unwrap();
    }
    assert_eq!(locked(&log.0.histories).known.len(), 1, "asking for the end of a history leaves nothing");
    for n in 0..2 * HISTORIES_MAX {
        log.append(&session(n), vec![note(n)], None).await.unwrap();
    }
    assert!(locked(&log.0.histories).known.len() <= HISTORIES_MAX);
    let first = log.append(&session(0), vec![note("again")], None).await.unwrap();
    assert_eq!(first, 2, "what was let go is read again");
    log.append(&one(), vec![note("still read")], None).await.unwrap();
    ready(&mut reader, |item| matches!(item, Item::Event(event) if event.seq == 1)).await;
}

#[derive(Debug, Clone)]
enum Act {
    Append(u8),
    Read(u8),
    Subscribe(u8),
    Drop,
    Letters,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (1u8..40).prop_map(Act::Append),
        (1u8..60).prop_map(Act::Read),
        any::<u8>().prop_map(Act::Subscribe),
        Just(Act::Drop),
        Just(Act::Letters),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_interleaved_every_reader_gets_each_event_once_and_in_order(acts in proptest::collection::vec(act(), 1..60)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let (_folder, log) = fresh().await;
            log.append(&one(), vec![text_part("p", "", false)], None).await.unwrap();
            let mut last = 1u64;
            let mut written = 0u64;
            let mut readers: Vec<(EventReader, u64)> = vec![];
            for act in acts {
                match act {
                    Act::Append(count) => {
                        last = log.append(&one(), (0..count).map(|n| note(format!("{n}{}", "y".repeat(7_000)))).collect(), None).await.unwrap();
                    }
                    Act::Letters => {
                        log.delta(&one(), letters("p", written, "z")).await.unwrap();
                        written += 1;
                    }
                    Act::Subscribe(at) => {
                        let after = u64::from(at) % (last + 1);
                        readers.push((log.subscribe(&one(), after, at % 2 == 0).await.unwrap(), after));
                    }
                    Act::Drop => drop(readers.pop()),
                    Act::Read(count) => {
                        for (reader, seen) in &mut readers {
                            for _ in 0..count {
                                if *seen == last {
                                    break;
                                }
                                // A read that is cancelled at its first wait must lose nothing.
                                let item = match reader.next().now_or_never() {
                                    Some(item) => item.unwrap(),
                                    None => next(reader).await,
                                };
                                if let Item::Event(event) = item {
                                    *seen += 1;
                                    assert_eq!(event.seq, *seen);
                                }
                            }
                        }
                    }
                }
            }
            for (mut reader, mut seen) in readers {
                while seen < last {
                    if let Item::Event(event) = next(&mut reader).await {
                        seen += 1;
                        assert_eq!(event.seq, seen);
                    }
                }
            }
        });
    }

    #[test]
    fn whatever_is_compacted_meanwhile_every_reader_ends_up_with_the_same(acts in proptest::collection::vec(act(), 1..60)) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
            let (_folder, _store, log) = compacting(12).await;
            let mut last = log.append(&one(), turns(1, 10), None).await.unwrap();
            let (mut notes, mut readers) = (1, vec![]);
            for act in acts {
                match act {
                    Act::Append(count) => {
                        last = log.append(&one(), turns(usize::from(count) / 4 + 1, 100_000), None).await.unwrap();
                        notes += 1;
                    }
                    Act::Subscribe(_) => readers.push((log.subscribe(&one(), 0, false).await.unwrap(), Client::default())),
                    Act::Drop => drop(readers.pop()),
                    Act::Letters => drop(log.info(&one()).await.unwrap()),
                    Act::Read(count) => {
                        for (reader, client) in &mut readers {
                            for _ in 0..count {
                                if client.last < last {
                                    client.take(next(reader).await);
                                }
                            }
                        }
                    }
                }
            }
            let newest = {
                let mut client = Client::default();
                client.read_to(&mut log.subscribe(&one(), 0, false).await.unwrap(), last).await;
                (client.text, client.notes.len())
            };
            for (mut reader, mut client) in readers {
                client.read_to(&mut reader, last).await;
                assert_eq!((client.text, client.notes.len()), newest);
            }
            assert_eq!(newest.1, notes);
        });
    }
}
