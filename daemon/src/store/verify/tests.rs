//! Each kind of damage is named, and nothing sound is.

#![allow(clippy::unwrap_used, reason = "tests")]

use openagent_core::event::EventKind;
use openagent_core::time::Timestamp;
use openagent_core::usage::Tokens;
use sled::Batch;
use tempfile::TempDir;

use super::super::encode_event;
use super::super::tests::record as session_record;
use super::*;

const ONE: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV";
const OTHER: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAW";
const AT: Timestamp = Timestamp::from_millis(1_795_336_693_531);

/// A store with a session of twenty events, the tenth of which has many chunks, and usage.
async fn sound() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("db")).await.unwrap();
    store.put_session(&session_record(ONE)).await.unwrap();
    let events = (1..=20).map(|n| {
        let usage = Usage { tokens: Tokens { input: n, ..Tokens::default() }, cost_micros: n };
        let kind = match n {
            10 => EventKind::Gap { reason: "x".repeat(50_000) },
            _ => EventKind::Usage { message: format!("msg_{n}").parse().unwrap(), provider: "demo".into(), model: "tour".into(), usage },
        };
        encode_event(AT, kind).unwrap()
    });
    store.append(&ONE.parse().unwrap(), events.collect(), None, |_, _| {}).await.unwrap();
    (folder, store)
}

async fn problems(store: &Store) -> Vec<String> {
    store.verify(Opener::new(|_| false)).await.unwrap().problems
}

fn name(table: Table, id: &str) -> Name {
    Name::new(table, &[id.as_bytes()])
}

fn key(name: &Name, chunk: u16) -> Vec<u8> {
    [name.as_bytes(), &chunk.to_be_bytes()].concat()
}

fn put(db: &Db, name: &Name, value: &[u8]) {
    let mut batch = Batch::default();
    record::put(db, &mut batch, name, value).unwrap();
    db.apply_batch(batch).unwrap();
}

#[tokio::test]
async fn a_sound_store_has_no_problems_even_while_a_session_leaves() {
    let (_folder, store) = sound().await;
    let report = store.verify(Opener::new(|_| false)).await.unwrap();
    assert_eq!((report.problem_count, report.sessions, report.events), (0, 1, 20));
    store.put_session(&session_record(OTHER)).await.unwrap();
    // Held, as a backup does, so that what it leaves stays there.
    let hold = store.write(|ledger| Ok(ledger.hold())).await.unwrap();
    store.remove_session(&ONE.parse().unwrap()).await.unwrap();
    let report = store.verify(Opener::new(|_| false)).await.unwrap();
    assert_eq!((report.problem_count, report.sessions, report.events), (0, 1, 20), "{:?}", report.problems);
    drop(hold);
}

#[tokio::test]
async fn every_kind_of_damage_is_named() {
    type Damage = fn(&Db);
    let session: SessionId = ONE.parse().unwrap();
    let cases: [(&str, Damage); 15] = [
        ("event 5 of session ses_01ARZ3NDEKTSV4RRFFQ69G5FAV is missing", |db| {
            db.remove(key(&Name::event(&ONE.parse().unwrap(), 5), 0)).unwrap();
        }),
        ("the history of session ses_01ARZ3NDEKTSV4RRFFQ69G5FAV ends at 19 instead of 20", |db| {
            db.remove(key(&Name::event(&ONE.parse().unwrap(), 20), 0)).unwrap();
        }),
        ("an event of session ses_01ARZ3NDEKTSV4RRFFQ69G5FAV is cut", |db| {
            db.remove(key(&Name::event(&ONE.parse().unwrap(), 10), 9)).unwrap();
        }),
        ("an event of session ses_01ARZ3NDEKTSV4RRFFQ69G5FAV is cut", |db| {
            db.remove(key(&Name::event(&ONE.parse().unwrap(), 10), 4)).unwrap();
        }),
        ("an event of session ses_01ARZ3NDEKTSV4RRFFQ69G5FAV has a piece too many", |db| {
            db.insert(key(&Name::event(&ONE.parse().unwrap(), 10), 40), b"more").unwrap();
        }),
        ("an event of session ses_01ARZ3NDEKTSV4RRFFQ69G5FAV has no sound beginning", |db| {
            db.insert(key(&Name::event(&ONE.parse().unwrap(), 3), 0), vec![9, 9, 9]).unwrap();
        }),
        ("an event of session ses_01ARZ3NDEKTSV4RRFFQ69G5FAV is longer than it says", |db| {
            let key = key(&Name::event(&ONE.parse().unwrap(), 3), 0);
            let longer = [&db.get(&key).unwrap().unwrap()[..], b"more"].concat();
            db.insert(key, longer).unwrap();
        }),
        ("an event of session ses_01ARZ3NDEKTSV4RRFFQ69G5FAV cannot be read", |db| {
            put(db, &Name::event(&ONE.parse().unwrap(), 3), b"12345678{\"kind\":");
        }),
        ("an event of session ses_01ARZ3NDEKTSV4RRFFQ69G5FAW belongs to nothing", |db| {
            let event = record::get(db, &Name::event(&ONE.parse().unwrap(), 1)).unwrap().unwrap();
            put(db, &Name::event(&OTHER.parse().unwrap(), 1), &event);
        }),
        ("session ses_01ARZ3NDEKTSV4RRFFQ69G5FAV has a history and no settings", |db| {
            db.remove(key(&name(Table::Session, ONE), 0)).unwrap();
        }),
        ("session ses_01ARZ3NDEKTSV4RRFFQ69G5FAV has settings and no history", |db| {
            db.remove(key(&name(Table::Cursor, ONE), 0)).unwrap();
        }),
        ("the history of session ses_01ARZ3NDEKTSV4RRFFQ69G5FAW is missing", |db| {
            let cursor = SessionCursor { last_seq: 3, ..SessionCursor::default() };
            put(db, &name(Table::Cursor, OTHER), &record::encode("cursor", &cursor).unwrap());
            put(db, &name(Table::Session, OTHER), &record::encode("session", &session_record(OTHER)).unwrap());
        }),
        ("the usage of session ses_01ARZ3NDEKTSV4RRFFQ69G5FAV is not the sum of its messages", |db| {
            db.remove(key(&Name::new(Table::MessageUsage, &[ONE.as_bytes(), b"msg_7"]), 0)).unwrap();
        }),
        ("a record is of no known kind", |db| {
            db.insert(b"zz\0\0", [1, 0, 0, 0, 1, b'1'].as_slice()).unwrap();
        }),
        ("an encrypted record of session ses_01ARZ3NDEKTSV4RRFFQ69G5FAW belongs to nothing", |db| {
            put(db, &Name::new(Table::Sealed, &[OTHER.as_bytes(), b"sidecar"]), b"x");
        }),
    ];
    for (problem, damage) in cases {
        let (_folder, store) = sound().await;
        damage(&store.0.db);
        let found = problems(&store).await;
        assert!(found.iter().any(|found| found == problem), "{problem}: {found:?}");
        assert!(found.len() <= 4, "{found:?}");
    }
    let (_folder, store) = sound().await;
    assert_eq!(store.cursor(&session).await.unwrap().last_seq, 20);
}

#[tokio::test]
async fn a_store_full_of_problems_gives_a_short_report() {
    let (_folder, store) = sound().await;
    for n in 0..500u64 {
        put(&store.0.db, &Name::new(Table::Rule, &[&n.to_be_bytes()]), b"no json");
    }
    let report = store.verify(Opener::new(|_| false)).await.unwrap();
    assert_eq!((report.problem_count, report.problems.len()), (500, PROBLEMS_MAX));
}
