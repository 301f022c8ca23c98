//! The journal keeps its numbers and its order through restarts, damage and slow readers.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use openagent_core::event::{Part, PartBody};
use proptest::prelude::*;

use super::*;

fn event(number: u64) -> EventKind {
    EventKind::KeysUpdated { providers: vec![format!("p{number}")] }
}

fn part(text: &str, done: bool) -> EventKind {
    let body = PartBody::Text { text: text.into(), done, synthetic: false };
    let id = |text: &str| text.to_owned().try_into().unwrap();
    EventKind::Part {
        part: Part {
            id: id("prt_1"),
            message: "msg_1".to_owned().try_into().unwrap(),
            conversation: "ses_1".to_owned().try_into().unwrap(),
            body,
        },
    }
}

fn delta(offset: u64, text: &str) -> PartDelta {
    PartDelta { message: "msg_1".parse().unwrap(), part: "prt_1".parse().unwrap(), offset, text: text.into() }
}

async fn next(reader: &mut JournalReader) -> JournalItem {
    tokio::time::timeout(Duration::from_secs(10), reader.next()).await.unwrap().unwrap()
}

/// Everything that the reader has now: numbers of recorded events, each with the provider that `event` put in.
async fn drain(reader: &mut JournalReader) -> Vec<(u64, String)> {
    let mut seen = Vec::new();
    while let Some(item) = reader.try_next().await.unwrap() {
        match item {
            JournalItem::Recorded { seq, kind, .. } => match serde_json::from_slice(&kind).unwrap() {
                EventKind::KeysUpdated { mut providers } => seen.push((seq, providers.remove(0))),
                other => panic!("{other:?}"),
            },
            JournalItem::Gap { first, last } => seen.push((last, format!("gap from {first}"))),
            JournalItem::Delta(_) => panic!("a delta"),
        }
    }
    seen
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    segments.sort();
    segments
}

/// Waits until the journal's thread has let go of its files.
async fn close(journal: Journal, folder: &Path) {
    journal.flush().await.unwrap();
    drop(journal);
    let lock = OpenOptions::new().write(true).open(folder.join("journal/lock")).unwrap();
    lock.lock().unwrap();
}

fn numbered(range: impl Iterator<Item = u64>) -> Vec<(u64, String)> {
    range.map(|number| (number, format!("p{number}"))).collect()
}

#[tokio::test]
async fn events_are_numbered_from_one_and_read_from_any_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let mut early = journal.subscribe(0);
    for number in 1..=5 {
        assert_eq!(journal.record(event(number)).await.unwrap(), number);
    }
    assert_eq!(drain(&mut early).await, numbered(1..=5));
    assert_eq!(drain(&mut journal.subscribe(3)).await, numbered(4..=5));
    assert_eq!(drain(&mut journal.subscribe(5)).await, []);
}

#[tokio::test]
async fn many_writers_at_once_get_one_dense_sequence() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let writers = (0..500).map(|number| journal.record(event(number)));
    let mut given: Vec<u64> = futures::future::join_all(writers).await.into_iter().map(Result::unwrap).collect();
    given.sort_unstable();
    assert_eq!(given, (1..=500).collect::<Vec<_>>());
    assert_eq!(drain(&mut journal.subscribe(0)).await.len(), 500);
}

#[tokio::test]
async fn a_reader_is_woken_by_what_is_recorded_later() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let mut reader = journal.subscribe(0);
    let (item, recorded) = tokio::join!(next(&mut reader), journal.record(event(1)));
    assert_eq!(recorded.unwrap(), 1);
    assert!(matches!(item, JournalItem::Recorded { seq: 1, .. }));
}

#[tokio::test]
async fn the_sequence_goes_on_after_a_restart_and_a_torn_end_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    for number in 1..=3 {
        journal.record(event(number)).await.unwrap();
    }
    close(journal, folder.path()).await;
    let segment = OpenOptions::new().read(true).write(true).open(&segments(folder.path())[0]).unwrap();
    let whole = segment.metadata().unwrap().len();
    segment.write_all_at(&[0, 0, 0, 9, 1, 2, 3], whole).unwrap();

    let journal = Journal::open(folder.path()).unwrap();
    assert_eq!(segment.metadata().unwrap().len(), whole);
    assert_eq!(journal.record(event(4)).await.unwrap(), 4);
    assert_eq!(drain(&mut journal.subscribe(0)).await, numbered(1..=4));
}

#[tokio::test]
async fn two_sidecars_do_not_write_one_journal() {
    let folder = tempfile::tempdir().unwrap();
    let _first = Journal::open(folder.path()).unwrap();
    assert!(matches!(Journal::open(folder.path()), Err(JournalError::InUse { .. })));
}

#[tokio::test]
async fn a_journal_of_the_first_format_is_read() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("journal")).unwrap();
    // Two entries as they were shipped, made by hand from the description in `file`.
    let entries = concat!(
        "0000002a71b869a1a22e240d0000000000000001000001a20267e71b7b226b696e64223a226b6579735f75706461746564222c2270726f7669646572",
        "73223a5b227031225d7d",
        "0000002a686308d34f184eb50000000000000002000001a20267e71b7b226b696e64223a226b6579735f75706461746564222c2270726f7669646572",
        "73223a5b227032225d7d",
    );
    let file = [b"openagent-journal/1\n", hex::decode(entries).unwrap().as_slice()].concat();
    std::fs::write(folder.path().join("journal/00000000000000000001.log"), file).unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    assert_eq!(drain(&mut journal.subscribe(0)).await, numbered(1..=2));
    assert_eq!(journal.record(event(3)).await.unwrap(), 3);
}

#[tokio::test]
async fn a_journal_of_a_newer_format_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("journal")).unwrap();
    let file = folder.path().join("journal/00000000000000000001.log");
    std::fs::write(&file, "openagent-journal/2\n...").unwrap();
    assert!(matches!(Journal::open(folder.path()), Err(JournalError::Format { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"openagent-journal/2\n...");
}

#[tokio::test]
async fn what_is_acknowledged_goes_and_the_sequence_stays() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { segment_bytes: 200, worth_trimming_bytes: 1, ..Limits::default() };
    let journal = Journal::open_with(folder.path(), limits).unwrap();
    for number in 1..=20 {
        journal.record(event(number)).await.unwrap();
    }
    let before = segments(folder.path()).len();
    journal.ack(10);
    journal.flush().await.unwrap();
    assert!((2..before).contains(&segments(folder.path()).len()));
    assert_eq!(drain(&mut journal.subscribe(10)).await, numbered(11..=20));
    journal.ack(20);
    journal.flush().await.unwrap();
    assert_eq!(segments(folder.path()).len(), 1);
    close(journal, folder.path()).await;
    let journal = Journal::open_with(folder.path(), limits).unwrap();
    assert_eq!(journal.record(event(21)).await.unwrap(), 21);
    assert_eq!(drain(&mut journal.subscribe(20)).await, numbered(21..=21));
}

#[tokio::test]
async fn a_full_journal_drops_the_oldest_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { total_bytes: 2_000, segment_bytes: 400, worth_trimming_bytes: 1 };
    let journal = Journal::open_with(folder.path(), limits).unwrap();
    let mut slow = journal.subscribe(0);
    for number in 1..=100 {
        journal.record(event(number)).await.unwrap();
    }
    let size: u64 = segments(folder.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(size <= limits.total_bytes, "{size}");
    let seen = drain(&mut slow).await;
    let (floor, gap) = &seen[0];
    assert_eq!(gap, "gap from 1");
    assert_eq!(seen[1..], numbered(floor + 1..=100));
}

#[tokio::test]
async fn a_reader_that_is_ahead_moves_the_numbers_on() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    journal.record(event(1)).await.unwrap();
    let mut reader = journal.subscribe(41);
    assert_eq!(drain(&mut reader).await, []);
    assert_eq!(journal.record(event(42)).await.unwrap(), 42);
    assert_eq!(drain(&mut reader).await, numbered(42..=42));
    close_and_read(journal, folder.path()).await;
}

#[tokio::test]
async fn who_was_behind_when_the_numbers_moved_on_is_told_of_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    journal.record(event(1)).await.unwrap();
    assert!(journal.subscribe(5).try_next().await.unwrap().is_none());
    let gap = (5, "gap from 2".to_owned());
    assert_eq!(drain(&mut journal.subscribe(0)).await.last(), Some(&gap), "nothing is behind it yet");
    assert_eq!(drain(&mut journal.subscribe(1)).await, [gap]);
}

async fn close_and_read(journal: Journal, folder: &Path) {
    // The reader of the test above holds the thread; a journal that is opened elsewhere sees the same.
    let seen = drain(&mut journal.subscribe(0)).await;
    assert_eq!(seen, [(1, "p1".into()), (41, "gap from 2".into()), (42, "p42".into())], "{}", folder.display());
}

#[tokio::test]
async fn letters_reach_a_late_reader_as_the_part_so_far_and_end_with_the_part() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    journal.record(part("", false)).await.unwrap();
    let mut early = journal.subscribe(0);
    assert!(matches!(next(&mut early).await, JournalItem::Recorded { seq: 1, .. }));
    journal.delta(delta(0, "Hel"));
    assert_eq!(next(&mut early).await, JournalItem::Delta(delta(0, "Hel")));
    journal.delta(delta(3, "lo "));
    journal.delta(delta(6, "you"));
    assert_eq!(next(&mut early).await, JournalItem::Delta(delta(3, "lo you")));

    let mut late = journal.subscribe(0);
    assert!(matches!(next(&mut late).await, JournalItem::Recorded { seq: 1, .. }));
    assert_eq!(next(&mut late).await, JournalItem::Delta(delta(0, "Hello you")));

    journal.record(part("Hello you", true)).await.unwrap();
    let mut after = journal.subscribe(1);
    assert!(matches!(next(&mut after).await, JournalItem::Recorded { seq: 2, .. }));
    assert!(after.try_next().await.unwrap().is_none());
}

#[tokio::test]
async fn letters_are_not_shown_before_the_part_that_they_belong_to() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    for number in 1..=3 {
        journal.record(event(number)).await.unwrap();
    }
    journal.record(part("", false)).await.unwrap();
    journal.delta(delta(0, "x"));
    let mut reader = journal.subscribe(0);
    for wanted in 1..=4 {
        assert!(matches!(next(&mut reader).await, JournalItem::Recorded { seq, .. } if seq == wanted));
    }
    assert_eq!(next(&mut reader).await, JournalItem::Delta(delta(0, "x")));
}

#[tokio::test]
async fn a_text_that_is_begun_again_is_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let mut reader = journal.subscribe(0);
    journal.delta(delta(0, "first try"));
    assert_eq!(next(&mut reader).await, JournalItem::Delta(delta(0, "first try")));
    journal.delta(delta(0, "second"));
    assert_eq!(next(&mut reader).await, JournalItem::Delta(delta(0, "second")));
    // The part as it was when it paused: what follows would not fit a reader that replaced its text by it.
    journal.record(part("sec", false)).await.unwrap();
    assert!(matches!(next(&mut reader).await, JournalItem::Recorded { seq: 1, .. }));
    assert_eq!(next(&mut reader).await, JournalItem::Delta(delta(0, "second")));
}

#[tokio::test]
async fn too_large_an_event_is_refused_and_the_next_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let huge = EventKind::KeysUpdated { providers: vec!["x".repeat(EVENT_MAX_BYTES)] };
    assert!(matches!(journal.record(huge).await, Err(JournalError::TooLarge { .. })));
    assert_eq!(journal.record(event(1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_segment_that_cannot_be_read_is_a_gap_and_its_numbers_are_not_given_again() {
    for damage in ["garbage", "unreadable"] {
        for which in [0, 1, usize::MAX] {
            let folder = tempfile::tempdir().unwrap();
            let limits = Limits { segment_bytes: 300, worth_trimming_bytes: 1, ..Limits::default() };
            let journal = Journal::open_with(folder.path(), limits).unwrap();
            for number in 1..=20 {
                journal.record(event(number)).await.unwrap();
            }
            close(journal, folder.path()).await;
            let segments = segments(folder.path());
            let hit = segments.get(which).unwrap_or_else(|| segments.last().unwrap());
            std::fs::remove_file(hit).unwrap();
            match damage {
                "garbage" => std::fs::write(hit, vec![b'x'; 400]).unwrap(),
                _ => std::fs::create_dir(hit).unwrap(),
            }
            let journal = Journal::open_with(folder.path(), limits).unwrap();
            let next = journal.record(event(0)).await.unwrap();
            assert!(next > 20, "{next}");
            let seen = drain(&mut journal.subscribe(0)).await;
            let gaps: Vec<_> = seen.iter().filter(|(_, what)| what.starts_with("gap")).collect();
            assert_eq!(gaps.len(), 1, "{seen:?}");
            assert!(seen.iter().filter(|(seq, what)| *what == format!("p{seq}")).count() >= 10, "{seen:?}");
        }
    }
}

#[tokio::test]
async fn an_entry_that_is_damaged_while_the_journal_is_open_is_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    for number in 1..=8 {
        journal.record(event(number)).await.unwrap();
    }
    let file = OpenOptions::new().write(true).open(&segments(folder.path())[0]).unwrap();
    let entry = (file.metadata().unwrap().len() - 20) / 8;
    for damaged in [3, 4] {
        file.write_all_at(b"?", 20 + (damaged - 1) * entry + 30).unwrap();
    }
    let expected: Vec<_> = numbered(1..=2).into_iter().chain([(4, "gap from 3".to_owned())]).chain(numbered(5..=8)).collect();
    assert_eq!(drain(&mut journal.subscribe(0)).await, expected);
    assert_eq!(drain(&mut journal.subscribe(3)).await[0], (4, "gap from 4".to_owned()));
}

#[tokio::test]
async fn a_full_disk_refuses_events_and_leaves_the_journal_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| std::process::Command::new(arguments[0]).args(&arguments[1..]).arg(folder.path()).status();
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=64k", "none"]).is_ok_and(|status| status.success()) {
        eprintln!("skipped: no file system can be mounted here");
        return;
    }
    let journal = Journal::open(folder.path()).unwrap();
    let large = EventKind::KeysUpdated { providers: vec!["x".repeat(9_000)] };
    let mut recorded = 0;
    let refused = loop {
        match journal.record(&large).await {
            Ok(seq) => recorded = seq,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, JournalError::Write(_)), "{refused}");
    let count = |seen: Vec<(u64, String)>| seen.len() as u64;
    assert_eq!(count(drain(&mut journal.subscribe(0)).await), recorded, "what was recorded can be read");
    assert!(journal.record(&large).await.is_err(), "also again");
    journal.ack(0);
    close(journal, folder.path()).await;
    let journal = Journal::open(folder.path()).unwrap();
    assert_eq!(journal.last(), recorded, "nothing half written is left");
    assert!(journal.record(&large).await.is_err());
    // What the daemon has is given up, and makes room.
    journal.ack(recorded);
    assert_eq!(journal.record(&large).await.unwrap(), recorded + 1);
    close(journal, folder.path()).await;
    let journal = Journal::open(folder.path()).unwrap();
    let seen = drain(&mut journal.subscribe(0)).await;
    assert_eq!(seen.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [recorded, recorded + 1]);
    assert_eq!(seen[0].1, "gap from 1");
    close(journal, folder.path()).await;
    assert!(mount(&["umount"]).unwrap().success());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Cut anywhere, a journal opens and has an unchanged prefix. With any byte changed it opens and has everything but the entry that was hit, and
    /// says so; and no number is given twice.
    #[test]
    fn any_damage_leaves_what_it_did_not_hit(at in any::<proptest::sample::Index>(), flip in proptest::option::of(1u8..)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let journal = Journal::open(folder.path()).unwrap();
            for number in 1..=8 {
                journal.record(event(number)).await.unwrap();
            }
            close(journal, folder.path()).await;
            let file = OpenOptions::new().read(true).write(true).open(&segments(folder.path())[0]).unwrap();
            let size = usize::try_from(file.metadata().unwrap().len()).unwrap();
            let header = 20;
            let at = (header + at.index(size - header)) as u64;
            let entry = (at - 20) / ((size as u64 - 20) / 8) + 1;
            let expected: Vec<_> = match flip {
                Some(flip) => {
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, at).unwrap();
                    file.write_all_at(&[byte[0] ^ flip], at).unwrap();
                    let gap = (entry < 8).then(|| (entry, format!("gap from {entry}")));
                    numbered(1..=entry - 1).into_iter().chain(gap).chain(numbered(entry + 1..=8)).collect()
                }
                None => {
                    file.set_len(at).unwrap();
                    numbered(1..=entry - 1)
                }
            };
            for _ in 0..2 {
                let journal = Journal::open(folder.path()).unwrap();
                assert_eq!(drain(&mut journal.subscribe(0)).await, expected);
                close(journal, folder.path()).await;
            }
            let journal = Journal::open(folder.path()).unwrap();
            let next = expected.last().map_or(0, |(last, _)| *last) + 1;
            assert_eq!(journal.record(event(next)).await.unwrap(), next);
            assert_eq!(drain(&mut journal.subscribe(next - 1)).await, numbered(next..=next));
        });
    }

    /// Whatever is recorded, acknowledged and read in whatever order: a reader gets each number once, in order, or is told of the gap.
    #[test]
    fn a_reader_never_misses_anything_in_silence(steps in proptest::collection::vec((0u8..3, 1u64..30), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let limits = Limits { total_bytes: 3_000, segment_bytes: 300, worth_trimming_bytes: 100 };
            let journal = Journal::open_with(folder.path(), limits).unwrap();
            let mut reader = journal.subscribe(0);
            let (mut recorded, mut seen) = (0, 0);
            for (what, amount) in steps {
                match what {
                    0 => for _ in 0..amount {
                        recorded += 1;
                        assert_eq!(journal.record(event(recorded)).await.unwrap(), recorded);
                    },
                    1 => {
                        journal.ack(seen.min(amount));
                        journal.flush().await.unwrap();
                    }
                    _ => for _ in 0..amount {
                        match reader.try_next().await.unwrap() {
                            None => break,
                            Some(JournalItem::Recorded { seq, .. }) => {
                                assert_eq!(seq, seen + 1);
                                seen = seq;
                            }
                            Some(JournalItem::Gap { first, last }) => {
                                assert!(first == seen + 1 && last >= first);
                                seen = last;
                            }
                            Some(JournalItem::Delta(_)) => panic!("a delta"),
                        }
                    },
                }
            }
        });
    }
}
