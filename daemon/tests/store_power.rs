//! The power goes: a store's file that is cut or torn anywhere either has all that was acknowledged, or is refused.
//!
//! A cut in what was not yet durable cannot lose what was acknowledged; one in what was can, if the disk did not keep its word. Both are tried,
//! on copies of a store whose daemon was killed.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/store.rs"]
#[allow(dead_code, reason = "shared with tests that need more of it")]
mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use openagent_core::event::EventKind;
use openagent_core::id::SessionId;
use openagent_core::time::Timestamp;
use openagentd::event::{EventLog, Item};
use openagentd::store::{Store, StoreError, verify_offline};
use support::{copy, history, opener, shipped};

const AT: Timestamp = Timestamp::from_millis(1_795_336_693_531);

fn text(seq: u64) -> String {
    format!("{seq} {}", "x".repeat(usize::try_from(seq * 997 % 9_000).unwrap()))
}

struct Written {
    session: SessionId,
    /// Length of the file and of the history after each commit that was acknowledged.
    steps: Vec<(u64, u64)>,
}

/// Copies of the files of a store, as they are at a moment: what a kill leaves.
fn freeze(from: &Path, to: &Path) {
    copy(from, to);
}

/// Writes a history into one of the shipped stores, copying the files after each of the last commits.
async fn write(from: usize, home: &Path, frozen: &Path, commits: u64, copies: u64) -> Written {
    copy(&shipped()[from], home);
    let state = home.join("state");
    let store = Store::open(state.join("db")).await.unwrap();
    let session = store.load_sessions().await.unwrap().remove(0).0.session.id;
    let log = EventLog::new(store.clone());
    let mut last = log.info(&session).await.unwrap().last_seq;
    let mut steps = vec![];
    for commit in 0..commits {
        let events = (1..=2).map(|n| (AT, EventKind::Gap { reason: text(last + n) })).collect();
        last = log.append(&session, events, None).await.unwrap();
        let length = fs::metadata(state.join("db/db")).unwrap().len();
        steps.push((length, last));
        if commit + copies >= commits {
            freeze(&state, &frozen.join(format!("{commit}")));
        }
    }
    Written { session, steps }
}

/// Opens a damaged store: it is refused, or has at least `acked` events, dense.
async fn check(state: &Path, session: &SessionId, acked: u64, what: &str) -> bool {
    let store = match Store::open(state.join("db")).await {
        Ok(store) => store,
        Err(error) => {
            assert_eq!(error.fault().code, "STORE_CORRUPT", "{what}: {error:?}");
            // For good, not only at the first look.
            let again = Store::open(state.join("db")).await.unwrap_err();
            assert_eq!(again.fault().code, "STORE_CORRUPT", "{what}, again: {again:?}");
            return false;
        }
    };
    let report = store.verify(opener(&state.join("none"))).await.unwrap();
    let log = EventLog::new(store);
    let events = history(&log, session).await;
    let last = events.last().map_or(0, |(seq, _)| *seq);
    assert!(last >= acked, "{what}: the history ends at {last}, before {acked}");
    assert!(report.problems.iter().all(|problem| problem.contains("master key")), "{what}: {:?}", report.problems);
    true
}

/// Where written bytes end in a file that sled makes longer ahead of its use.
fn end_of_data(file: &Path) -> u64 {
    let bytes = fs::read(file).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1)
}

#[tokio::test]
async fn a_log_that_was_cut_is_refused_and_never_silently_shorter() {
    // The log of the first is in the order of its file; the second has places that were used again.
    for from in [0, 1] {
        let home = tempfile::tempdir().unwrap();
        let frozen = tempfile::tempdir().unwrap();
        let written = write(from, home.path(), frozen.path(), 150, 1).await;
        let (_, acked) = *written.steps.last().unwrap();
        let whole = frozen.path().join("149");
        let end = end_of_data(&whole.join("db/db"));
        let trial = tempfile::tempdir().unwrap();
        let mut refused = 0;
        let backwards = [0, 1, 7, 100, 511, 512, 4_096, 5_000, 9_000, 20_000, 65_536, 131_072, 400_000];
        let parts = (1..12).map(|part| end / 12 * part);
        for cut in backwards.into_iter().filter(|back| *back < end).map(|back| end - back).chain(parts) {
            let state = trial.path().join(format!("{cut}"));
            copy(&whole, &state);
            OpenOptions::new().write(true).open(state.join("db/db")).unwrap().set_len(cut).unwrap();
            let is_open = check(&state, &written.session, acked, &format!("cut at {cut} of {end}")).await;
            refused += usize::from(!is_open);
        }
        assert!(refused > 15, "{refused}");
        assert!(check(&whole, &written.session, acked, "not cut").await);
    }
}

#[tokio::test]
async fn a_torn_page_at_the_end_is_refused_or_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let frozen = tempfile::tempdir().unwrap();
    let written = write(0, home.path(), frozen.path(), 120, 1).await;
    let (_, acked) = *written.steps.last().unwrap();
    let whole = frozen.path().join("119");
    let end = end_of_data(&whole.join("db/db"));
    let trial = tempfile::tempdir().unwrap();
    for (back, bytes) in [(0, 4_096), (512, 512), (4_096, 4_096), (4_096, 512), (20_000, 4_096), (60_000, 16_384), (200_000, 512)] {
        for fill in [0u8, 0xa5] {
            let state = trial.path().join(format!("{back}-{bytes}-{fill}"));
            copy(&whole, &state);
            let file = OpenOptions::new().write(true).open(state.join("db/db")).unwrap();
            file.write_all_at(&vec![fill; bytes], end.saturating_sub(back)).unwrap();
            check(&state, &written.session, acked, &format!("{bytes} bytes of {fill} {back} before the end")).await;
        }
    }
}

/// Everything that was acknowledged is there, or somebody is told that it is not: who opens the store, reads the history, or verifies it.
async fn is_told_or_whole(state: &Path, session: &SessionId, acked: u64, what: &str) -> &'static str {
    let Ok(store) = Store::open(state.join("db")).await else { return "refused" };
    let log = EventLog::new(store.clone());
    let mut reader = match log.subscribe(session, 0, false).await {
        Ok(reader) => reader,
        Err(_) => return "no history",
    };
    let mut last = 0;
    loop {
        match reader.next().await {
            Ok(Item::Event(event)) => last = event.seq,
            Ok(Item::CaughtUp(_)) => break,
            Ok(_) => {}
            Err(_) => return "read fails",
        }
    }
    if store
        .verify(opener(&state.join("none")))
        .await
        .is_ok_and(|report| report.problems.iter().all(|problem| problem.contains("master key")))
    {
        assert!(last >= acked, "{what}: {last} of {acked} events, and nobody was told");
        return "whole";
    }
    "verification"
}

#[tokio::test]
async fn damage_in_the_middle_is_told() {
    let home = tempfile::tempdir().unwrap();
    let frozen = tempfile::tempdir().unwrap();
    let written = write(1, home.path(), frozen.path(), 300, 1).await;
    let (_, acked) = *written.steps.last().unwrap();
    let whole = frozen.path().join("299");
    let end = end_of_data(&whole.join("db/db"));
    let trial = tempfile::tempdir().unwrap();
    let mut outcomes = std::collections::BTreeMap::new();
    for part in 0..40 {
        let state = trial.path().join(format!("{part}"));
        copy(&whole, &state);
        let file = OpenOptions::new().write(true).open(state.join("db/db")).unwrap();
        file.write_all_at(&[0xa5; 512], end / 40 * part + 100).unwrap();
        let outcome = is_told_or_whole(&state, &written.session, acked, &format!("512 bytes at {part}/40 of {end}")).await;
        *outcomes.entry(outcome).or_insert(0) += 1;
        fs::remove_dir_all(&state).unwrap();
    }
    assert!(outcomes.contains_key("refused") && outcomes.contains_key("whole"), "{outcomes:?}");
}

#[tokio::test]
async fn a_cut_behind_what_was_acknowledged_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let frozen = tempfile::tempdir().unwrap();
    let written = write(0, home.path(), frozen.path(), 60, 12).await;
    let trial = tempfile::tempdir().unwrap();
    // What the last commits wrote is on the disk in part only, and the witness as it was before them: the power went in the middle of these.
    for commit in 48..59 {
        let (before, after) = (frozen.path().join(format!("{commit}")), frozen.path().join(format!("{}", commit + 1)));
        let (old, new) = (fs::read(before.join("db/db")).unwrap(), fs::read(after.join("db/db")).unwrap());
        let changed = (0..new.len()).find(|at| old.get(*at) != new.get(*at)).unwrap() as u64;
        let end = end_of_data(&after.join("db/db"));
        for part in 0..6 {
            let state = trial.path().join(format!("{commit}-{part}"));
            copy(&before, &state);
            let keep = usize::try_from(changed + (end - changed) / 6 * part).unwrap();
            let file = OpenOptions::new().write(true).open(state.join("db/db")).unwrap();
            file.write_all_at(&new[..keep], 0).unwrap();
            if keep as u64 > old.len() as u64 {
                file.set_len(keep as u64).unwrap();
            }
            let acked = written.steps[usize::try_from(commit).unwrap()].1;
            assert!(check(&state, &written.session, acked, &format!("commit {} cut at {keep}", commit + 1)).await);
        }
    }
}

#[tokio::test]
async fn the_witness_is_exact_after_a_kill_and_its_loss_is_survived() {
    let home = tempfile::tempdir().unwrap();
    let frozen = tempfile::tempdir().unwrap();
    let written = write(0, home.path(), frozen.path(), 40, 2).await;
    // The store of one commit before, with the witness of the last one: one commit is missing.
    let state = frozen.path().join("38");
    fs::copy(frozen.path().join("39/db/witness"), state.join("db/witness")).unwrap();
    let told = verify_offline(&state.join("db"), &opener(&state.join("none"))).unwrap_err();
    assert!(matches!(told, StoreError::Behind { .. }), "{told:?}");
    let refused = Store::open(state.join("db")).await.unwrap_err();
    assert!(refused.to_string().contains("1 acknowledged"), "{refused}");
    let fault = refused.fault();
    assert!(fault.hint.contains("db/witness") && fault.code == "STORE_CORRUPT", "{fault:?}");
    // A torn write of the witness leaves the slot before.
    let state = frozen.path().join("39");
    let torn = frozen.path().join("torn");
    for slot in [0, 512] {
        let _ = fs::remove_dir_all(&torn);
        copy(&state, &torn);
        let witness = OpenOptions::new().write(true).open(torn.join("db/witness")).unwrap();
        witness.write_all_at(&[0xff; 9], slot).unwrap();
        assert!(check(&torn, &written.session, written.steps[39].1, "a torn witness").await);
    }
    // What makes no sense at all is not taken for nothing; what its owner deleted is.
    fs::write(torn.join("db/witness"), [0xff; 600]).unwrap();
    assert_eq!(Store::open(torn.join("db")).await.unwrap_err().fault().code, "STORE_CORRUPT");
    fs::remove_file(torn.join("db/witness")).unwrap();
    assert!(check(&torn, &written.session, written.steps[39].1, "no witness").await);
    assert!(File::open(torn.join("db/witness")).is_ok());
}
