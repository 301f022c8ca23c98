//! A store of every format that was shipped is opened for ever, at whatever moment its migration is killed.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/store.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use openagentd::store::{Store, verify_offline};
use support::{Content, content, copy, opener, shipped};

const FOLDER: &str = "OPENAGENT_TEST_STORE";

fn first_format() -> PathBuf {
    shipped().remove(0)
}

async fn opened(folder: &Path) -> Content {
    let store = Store::open(folder.join("state/db")).await.unwrap();
    let key = folder.join("data/master.key");
    let found = content(&store, &key).await;
    let report = store.verify(opener(&key)).await.unwrap();
    assert_eq!((report.problems.as_slice(), report.unopened), (&[][..], 0));
    assert_eq!(report.events, found.histories.iter().map(|history| history.len() as u64).sum::<u64>());
    store.close().await;
    found
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn every_shipped_store_opens_with_all_that_is_in_it() {
    for fixture in &shipped() {
        let folder = tempfile::tempdir().unwrap();
        copy(fixture, folder.path());
        let found = opened(folder.path()).await;
        let titles: Vec<_> = found.sessions.iter().map(|(record, _)| record.session.title.as_str()).collect();
        assert_eq!(titles, ["fixture tour", "never prompted"], "{fixture:?}");
        for ((_, cursor), history) in found.sessions.iter().zip(&found.histories) {
            assert!(cursor.last_seq > 10 && history.len() as u64 == cursor.kept + cursor.last_seq - cursor.floor, "{fixture:?}");
            let above = history.iter().map(|(seq, _)| *seq).filter(|seq| *seq > cursor.floor);
            assert!(above.eq(cursor.floor + 1..=cursor.last_seq), "{fixture:?}");
        }
        assert_eq!((found.keys.as_slice(), found.messages > 0), (&[("openai".to_owned(), "sk-fixture-0123456789".to_owned())][..], true));
        let day_input: u64 = found.days.iter().map(|day| day.usage.tokens.input).sum();
        assert_eq!(day_input, found.sessions.iter().map(|(_, cursor)| cursor.usage.tokens.input).sum::<u64>());
        assert!(day_input > 0);
        let copies = names(&folder.path().join("state")).iter().filter(|name| name.ends_with(".backup")).count();
        let shipped_as: u64 = fixture.to_str().unwrap().rsplit_once('-').unwrap().1.parse().unwrap();
        let format = verify_offline(&folder.path().join("state/db"), &opener(&folder.path().join("data/master.key"))).unwrap().format;
        assert_eq!(copies, usize::from(shipped_as < format), "only an older format is backed up");
        assert_eq!(opened(folder.path()).await, found, "again");
    }
}

/// Not a test: the program that is killed.
#[tokio::test]
#[ignore = "a helper that the other tests start and kill"]
async fn opens_a_store() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    Store::open(Path::new(&folder).join("state/db")).await.unwrap().close().await;
}

/// Lets the helper open the store and kills it once `is_there`, and then `later`.
fn open_and_kill(folder: &Path, is_there: impl Fn(&Path) -> bool, later: Duration) {
    let state = folder.join("state");
    let mut helper = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "opens_a_store"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !is_there(&state) && helper.try_wait().unwrap().is_none() {
        std::hint::spin_loop();
    }
    let until = Instant::now() + later;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    // It may have ended already; then this was a kill after the end.
    let _ = helper.kill();
    helper.wait().unwrap();
}

#[tokio::test]
async fn a_migration_that_is_killed_anywhere_is_finished_by_the_next_start() {
    let expected = {
        let folder = tempfile::tempdir().unwrap();
        copy(&first_format(), folder.path());
        opened(folder.path()).await
    };
    type Moment = (&'static str, fn(&Path) -> bool);
    let moments: [Moment; 6] = [
        ("it is opened", |state| state.join("db.lock").exists()),
        ("the copy is named", |state| state.join("db.migrating").exists()),
        ("the copy is being made", |state| state.join("db.format-1.backup.partial").exists()),
        ("the copy is whole", |state| state.join("db.format-1.backup").exists()),
        ("commits are counted", |state| state.join("db/witness").exists()),
        ("it is done", |state| state.join("db/witness").exists() && !state.join("db.migrating").exists()),
    ];
    let mut cut_copies = 0;
    for (moment, is_there) in moments {
        for later in [0, 500, 3_000] {
            let folder = tempfile::tempdir().unwrap();
            copy(&first_format(), folder.path());
            let state = folder.path().join("state");
            // Something to copy for a few milliseconds.
            fs::write(state.join("db/padding"), vec![7; 8 * 1024 * 1024]).unwrap();
            // Twice: what a kill leaves may be killed again.
            for _ in 0..2 {
                open_and_kill(folder.path(), is_there, Duration::from_micros(later));
                cut_copies += usize::from(state.join("db.format-1.backup.partial").exists());
            }
            assert_eq!(opened(folder.path()).await, expected, "{moment}, {later} µs later");
            let left = names(&state);
            assert_eq!(left, ["db", "db.format-1.backup", "db.lock"], "{moment}, {later} µs later");
            assert_eq!(fs::metadata(state.join("db.format-1.backup/padding")).unwrap().len(), 8 * 1024 * 1024);
            // The copy is a store as it was before.
            fs::rename(state.join("db"), state.join("away")).unwrap();
            fs::rename(state.join("db.format-1.backup"), state.join("db")).unwrap();
            assert_eq!(opened(folder.path()).await, expected, "the copy; {moment}, {later} µs later");
        }
    }
    assert!(cut_copies > 0, "no kill came while files were copied");
}

#[tokio::test]
async fn a_second_migration_does_not_touch_the_copy_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    copy(&first_format(), folder.path());
    opened(folder.path()).await;
    let state = folder.path().join("state");
    fs::write(state.join("db.format-1.backup/mark"), "of the first").unwrap();
    // Back to the older version, and forth again.
    fs::remove_dir_all(state.join("db")).unwrap();
    copy(&first_format().join("state/db"), &state.join("db"));
    opened(folder.path()).await;
    assert_eq!(names(&state), ["db", "db.format-1.2.backup", "db.format-1.backup", "db.lock"]);
    assert!(state.join("db.format-1.backup/mark").exists() && !state.join("db.format-1.2.backup/mark").exists());
}
