//! Backup, restore and verification of a store, and what happens when its disk is full.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/store.rs"]
mod support;

use std::fs::{self, File};
use std::io::{self, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openagent_core::config::HistoryConfig;
use openagent_core::event::EventKind;
use openagent_core::id::SessionId;
use openagent_core::secret::Secret;
use openagent_core::time::Timestamp;
use openagent_core::usage::{Tokens, Usage};
use openagentd::event::EventLog;
use openagentd::store::{Condition, Keys, SessionRecord, Store, StoreError, check, restore, verify_offline};
use openagentd::vault::Vault;
use support::{content, copy, history, opener, shipped};
use tempfile::TempDir;

const AT: Timestamp = Timestamp::from_millis(1_795_336_693_531);
const FOLDER: &str = "OPENAGENT_TEST_STORE";
const FILE: &str = "OPENAGENT_TEST_BACKUP";

/// A folder with a store that has sessions, histories, usage and keys.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        copy(&shipped()[0], home.0.path());
        home
    }

    fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn db(&self) -> PathBuf {
        self.at("state/db")
    }

    fn key(&self) -> PathBuf {
        self.at("data/master.key")
    }

    /// What is beside the store.
    fn beside(&self) -> Vec<String> {
        let entries = fs::read_dir(self.at("state")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.filter(|name| !["db", "db.lock", "db.format-1.backup"].contains(&name.as_str())).collect();
        names.sort();
        names
    }

    async fn store(&self) -> Store {
        Store::open(self.db()).await.unwrap()
    }

    async fn back_up(&self, name: &str) -> PathBuf {
        let store = self.store().await;
        let (bytes, _) = store.backup(Vec::new(), AT).await.unwrap();
        store.close().await;
        let file = self.at(name);
        fs::write(&file, bytes).unwrap();
        file
    }
}

async fn any_session(store: &Store) -> SessionRecord {
    store.load_sessions().await.unwrap().remove(0).0
}

fn renamed(record: &SessionRecord, id: &str, title: &str) -> SessionRecord {
    let mut record = record.clone();
    record.session.id = id.parse().unwrap();
    record.session.title = title.to_owned();
    record
}

fn note(text: &str) -> (Timestamp, EventKind) {
    (AT, EventKind::Gap { reason: text.to_owned() })
}

#[tokio::test]
async fn a_backup_restored_elsewhere_is_the_same_store() {
    let home = Home::new();
    let store = home.store().await;
    let before = content(&store, &home.key()).await;
    drop(store);
    let file = home.back_up("backup").await;
    let other = Home::empty();
    fs::create_dir(other.at("data")).unwrap();
    fs::copy(home.key(), other.key()).unwrap();
    let restored = restore(&other.db(), &file, Keys::Keep, &opener(&other.key())).unwrap();
    assert_eq!((restored.manifest.sessions, restored.aside), (2, None));
    let store = other.store().await;
    assert_eq!(content(&store, &other.key()).await, before);
    let report = store.verify(opener(&other.key())).await.unwrap();
    assert_eq!((report.sessions, report.opened, report.problem_count), (2, 2, 0));
    // The stories of both go on.
    let log = EventLog::new(store.clone());
    let id = before.sessions[0].0.session.id.clone();
    log.append(&id, vec![note("more")], None).await.unwrap();
    assert_eq!(history(&log, &id).await.len(), before.histories[0].len() + 1);
}

#[tokio::test]
async fn a_backup_holds_no_master_key_and_no_key_in_clear() {
    let home = Home::new();
    let file = home.back_up("backup").await;
    let master = fs::read(home.key()).unwrap();
    let mut zip = zip::ZipArchive::new(File::open(file).unwrap()).unwrap();
    for index in 0..zip.len() {
        let mut bytes = vec![];
        zip.by_index(index).unwrap().read_to_end(&mut bytes).unwrap();
        for secret in [&master[16..], b"sk-fixture-0123456789"] {
            assert!(!bytes.windows(secret.len()).any(|part| part == secret));
        }
    }
}

/// An output that is taken as slowly as `steps` allows.
struct Slow {
    bytes: Vec<u8>,
    is_begun: Arc<AtomicBool>,
    may_go: Arc<AtomicBool>,
}

impl Write for Slow {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.is_begun.store(true, Ordering::SeqCst);
        let give_up_at = Instant::now() + Duration::from_secs(30);
        while !self.may_go.load(Ordering::SeqCst) && Instant::now() < give_up_at {
            std::thread::yield_now();
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_of_one_moment_while_everything_changes() {
    let home = Home::new();
    let store = home.store().await;
    let vault = Vault::open(store.clone(), &home.key()).await.unwrap();
    let log = EventLog::new(store.clone());
    let one = any_session(&store).await;
    let gone = renamed(&one, "ses_01ARZ3NDEKTSV4RRFFQ69G5FA0", "gone");
    for n in 0..40 {
        let other = renamed(&one, &format!("ses_01ARZ3NDEKTSV4RRFFQ69G50{n:02}"), "other");
        store.put_session(&other).await.unwrap();
        log.append(&other.session.id, vec![note(&format!("{n}").repeat(50_000))], None).await.unwrap();
    }
    store.put_session(&gone).await.unwrap();
    log.append(&gone.session.id, vec![note("gone")], None).await.unwrap();
    let (is_begun, may_go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let out = Slow { bytes: vec![], is_begun: Arc::clone(&is_begun), may_go: Arc::clone(&may_go) };
    let copying = {
        let store = store.clone();
        async move { store.backup(out, AT).await }
    };
    let changing = async {
        while !is_begun.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        assert!(matches!(store.backup(Vec::new(), AT).await, Err(StoreError::BackupRuns)));
        // The writer does not wait for who takes the copy.
        let mut usage = Usage { tokens: Tokens::default(), cost_micros: 0 };
        for n in 1..=300 {
            usage.tokens.input = n;
            let spent = EventKind::Usage { message: "msg_during".parse().unwrap(), provider: "demo".into(), model: "tour".into(), usage };
            log.append(&one.session.id, vec![note(&n.to_string()), (AT, spent)], None).await.unwrap();
        }
        let fresh = renamed(&one, "ses_01ARZ3NDEKTSV4RRFFQ69G5FA1", "fresh");
        store.put_session(&fresh).await.unwrap();
        log.append(&fresh.session.id, vec![note("fresh")], None).await.unwrap();
        store.put_session(&renamed(&one, one.session.id.as_str(), "renamed")).await.unwrap();
        store.remove_session(&gone.session.id).await.unwrap();
        vault.set("anthropic", Secret::new("sk-during".to_owned()), AT).await.unwrap();
        assert_eq!(store.verify(vault.opener()).await.unwrap().problems, Vec::<String>::new(), "verified while a copy is made");
        may_go.store(true, Ordering::SeqCst);
    };
    let (made, ()) = tokio::join!(copying, changing);
    let (out, manifest) = made.unwrap();
    drop(vault);
    let now = content(&store, &home.key()).await;
    let file = home.at("backup");
    fs::write(&file, out.bytes).unwrap();
    assert_eq!((manifest.sessions, manifest.events), (43, now.histories.iter().map(|h| h.len() as u64).sum::<u64>()));
    let other = Home::empty();
    restore(&other.db(), &file, Keys::Keep, &opener(&home.key())).unwrap();
    let restored = other.store().await;
    assert_eq!(content(&restored, &home.key()).await, now);
    assert!(now.sessions.iter().any(|(record, _)| record.session.title == "renamed"));
}

#[tokio::test]
async fn a_compacted_history_is_backed_up_and_restored_as_it_is() {
    let home = Home::new();
    let store = home.store().await;
    let log = EventLog::new(store.clone());
    let id = any_session(&store).await.session.id;
    store.bound_histories(HistoryConfig { compact_after: 50, ..HistoryConfig::default() }).await.unwrap();
    for n in 0..400 {
        log.append(&id, vec![note(&n.to_string())], None).await.unwrap();
    }
    let mut looks = 0;
    while store.cursor(&id).await.unwrap().floor < 300 {
        looks += 1;
        assert!(looks < 100_000, "it is never compacted");
    }
    let before = content(&store, &home.key()).await;
    assert_eq!(store.verify(opener(&home.key())).await.unwrap().problems, Vec::<String>::new());
    drop(log);
    store.close().await;
    drop(store);
    let file = home.back_up("backup").await;
    let other = Home::empty();
    restore(&other.db(), &file, Keys::Keep, &opener(&home.key())).unwrap();
    assert_eq!(content(&other.store().await, &home.key()).await, before);
}

#[tokio::test]
async fn a_restore_keeps_the_old_store_aside_and_is_refused_beside_a_daemon() {
    let home = Home::new();
    let file = home.back_up("backup").await;
    let store = home.store().await;
    let refused = restore(&home.db(), &file, Keys::Keep, &opener(&home.key())).unwrap_err();
    assert_eq!(refused.fault().code, "STORE_LOCKED");
    let one = any_session(&store).await;
    store.put_session(&renamed(&one, one.session.id.as_str(), "changed after the backup")).await.unwrap();
    store.close().await;
    drop(store);
    for number in 1..=2 {
        let restored = restore(&home.db(), &file, Keys::Keep, &opener(&home.key())).unwrap();
        assert_eq!(restored.aside, Some(home.at(&format!("state/db.before-restore-{number}"))));
        assert_eq!(any_session(&home.store().await).await, one);
    }
    let old = Store::open(home.at("state/db.before-restore-1")).await.unwrap();
    assert_eq!(any_session(&old).await.session.title, "changed after the backup");
}

#[tokio::test]
async fn a_backup_of_another_machine_is_refused_unless_its_keys_are_left_out() {
    let home = Home::new();
    let file = home.back_up("backup").await;
    let other = Home::new();
    fs::remove_file(other.key()).unwrap();
    let refused = restore(&other.db(), &file, Keys::Keep, &opener(&other.key())).unwrap_err().fault();
    assert_eq!(refused.code, "MASTER_KEY_MISSING");
    assert!(refused.hint.contains("--without-keys"), "{refused:?}");
    assert_eq!(other.beside(), Vec::<String>::new());
    restore(&other.db(), &file, Keys::LeaveOut, &opener(&other.key())).unwrap();
    let found = content(&other.store().await, &other.key()).await;
    assert_eq!((found.sessions.len(), found.keys.len()), (2, 0));
}

#[tokio::test]
async fn no_damaged_backup_changes_anything() {
    let home = Home::new();
    let file = home.back_up("backup").await;
    let whole = fs::read(&file).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&file, bytes).unwrap();
        let fault = restore(&home.db(), &file, Keys::Keep, &opener(&home.key())).unwrap_err().fault();
        assert!(fault.code.starts_with("BACKUP_"), "{what}: {fault:?}");
        let checked = check(&file, &home.at("scratch"), &opener(&home.key()));
        assert!(checked.map_or(true, |(_, report)| report.problem_count > 0), "{what}");
        assert!(!home.at("scratch").exists(), "{what}");
        assert_eq!(home.beside(), Vec::<String>::new(), "{what}");
    };
    for keep in (0..whole.len()).step_by(whole.len() / 12) {
        refused(&whole[..keep], &format!("cut at {keep}"));
    }
    let mut flipped = whole.clone();
    flipped[whole.len() / 3] ^= 0x40;
    refused(&flipped, "a flipped bit");
    refused(b"not a backup at all", "something else");
    assert_eq!(restore(&home.db(), &home.at("none"), Keys::Keep, &opener(&home.key())).unwrap_err().fault().code, "BACKUP_UNREADABLE");
    // Made by hand, with digests that are right.
    let hostile = |change: &Change| {
        let mut zip = zip::ZipArchive::new(Cursor::new(&whole)).unwrap();
        let mut entries = vec![];
        for index in 0..zip.len() {
            let mut entry = zip.by_index(index).unwrap();
            let mut bytes = vec![];
            let name = entry.name().unwrap().into_owned();
            entry.read_to_end(&mut bytes).unwrap();
            entries.push((name, bytes));
        }
        let (_, manifest) = entries.pop().unwrap();
        let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        change(&mut manifest, &mut entries);
        let mut zip = zip::ZipWriter::new(Cursor::new(vec![]));
        let mut parts = vec![];
        for (name, bytes) in &entries {
            use sha2::Digest;
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
            parts.push(serde_json::json!({"name": name, "bytes": bytes.len(), "sha256": hex::encode(sha2::Sha256::digest(bytes))}));
        }
        if manifest["parts"].is_array() {
            manifest["parts"] = parts.into();
        }
        zip.start_file("manifest.json", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(manifest.to_string().as_bytes()).unwrap();
        zip.finish().unwrap().into_inner()
    };
    assert!(restore_bytes(&home, &hostile(&|_, _| {})), "unchanged it is a backup");
    refused(&hostile(&|manifest, _| manifest["store_format"] = 99.into()), "a newer format");
    refused(&hostile(&|manifest, _| manifest["events"] = 1.into()), "a wrong count");
    refused(&hostile(&|manifest, _| manifest["parts"] = "none".into()), "no parts");
    refused(&hostile(&|_, parts| parts.push(("../../evil".into(), vec![]))), "a part with another name");
    refused(&hostile(&|_, parts| parts.push(("last-000002".into(), b"\0\x01z\0\0\0\0".to_vec()))), "a record of no known kind");
    refused(&hostile(&|_, parts| parts.push(("last-000002".into(), vec![0xff; 1000]))), "no record");
    refused(&hostile(&|_, parts| parts.push(("last-000002".into(), b"\0\x04pabc\0\0\0\x03{{{".to_vec()))), "a record that is no JSON");
    // The first history without its third event.
    let without_event = hostile(&|manifest, parts| {
        let bytes = &mut parts[0].1;
        let at = bytes.windows(8).position(|window| window == 3u64.to_be_bytes()).unwrap();
        bytes[at + 7] = 200;
        manifest["events"] = manifest["events"].as_u64().unwrap().into();
    });
    refused(&without_event, "a history with a hole");
}

/// What is done to a manifest and the parts.
type Change = dyn Fn(&mut serde_json::Value, &mut Vec<(String, Vec<u8>)>);

fn restore_bytes(home: &Home, bytes: &[u8]) -> bool {
    let other = Home::empty();
    let file = other.at("file");
    fs::write(&file, bytes).unwrap();
    restore(&other.db(), &file, Keys::Keep, &opener(&home.key())).is_ok()
}

/// Not a test: the program that is killed.
#[test]
#[ignore = "a helper that the other tests start and kill"]
fn restores_a_backup() {
    let (Some(folder), Some(file)) = (std::env::var_os(FOLDER), std::env::var_os(FILE)) else { return };
    let folder = Path::new(&folder);
    restore(&folder.join("state/db"), Path::new(&file), Keys::Keep, &opener(&folder.join("data/master.key"))).unwrap();
}

#[tokio::test]
async fn a_restore_that_is_killed_leaves_the_old_or_the_new_store() {
    let home = Home::new();
    let file = home.back_up("backup").await;
    let new = any_session(&home.store().await).await;
    let old = renamed(&new, new.session.id.as_str(), "the old one");
    let store = home.store().await;
    store.put_session(&old).await.unwrap();
    store.close().await;
    drop(store);
    type Moment = fn(&Path) -> bool;
    let moments: [Moment; 4] = [
        |state| state.join("db.restoring").exists(),
        |state| state.join("db.restored").exists(),
        |state| !state.join("db").exists(),
        |state| state.join("db.before-restore-1").exists(),
    ];
    let mut outcomes = [0, 0];
    for is_there in moments {
        for later in [0, 100, 1_000, 10_000] {
            let trial = Home(tempfile::tempdir().unwrap());
            copy(home.0.path(), trial.0.path());
            let mut helper = Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "restores_a_backup"])
                .env(FOLDER, trial.0.path())
                .env(FILE, &file)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            while !is_there(&trial.at("state")) && helper.try_wait().unwrap().is_none() {
                std::hint::spin_loop();
            }
            let until = Instant::now() + Duration::from_micros(later);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            let _ = helper.kill();
            helper.wait().unwrap();
            let found = any_session(&trial.store().await).await;
            outcomes[usize::from(found == new)] += 1;
            assert!(found == new || found == old, "{}", found.session.title);
            assert!(trial.beside().iter().all(|name| name == "db.before-restore-1"), "{:?}", trial.beside());
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}

#[tokio::test]
async fn verification_names_what_is_wrong_and_changes_nothing() {
    let home = Home::new();
    let store = home.store().await;
    let vault = Vault::open(store.clone(), &home.key()).await.unwrap();
    vault.set("anthropic", Secret::new("sk-x".to_owned()), AT).await.unwrap();
    drop((vault, store));
    let sound = verify_offline(&home.db(), &opener(&home.key())).unwrap();
    assert_eq!((sound.sessions, sound.opened, sound.problem_count), (2, 3, 0));
    let without_key = verify_offline(&home.db(), &opener(&home.at("none"))).unwrap();
    assert_eq!((without_key.opened, without_key.unopened, without_key.problem_count), (0, 3, 3));
    assert!(without_key.problems.iter().any(|problem| problem == "the key of openai cannot be opened with the master key"));
    assert!(without_key.problems.iter().all(|problem| !problem.contains("sk-")));
    let missing = verify_offline(&home.at("elsewhere/db"), &opener(&home.key())).unwrap_err();
    assert_eq!(missing.fault().code, "STORE_CORRUPT");
    let store = home.store().await;
    assert_eq!(verify_offline(&home.db(), &opener(&home.key())).unwrap_err().fault().code, "STORE_LOCKED");
    drop(store);
    let file = home.back_up("backup").await;
    let (manifest, report) = check(&file, &home.at("scratch"), &opener(&home.key())).unwrap();
    assert_eq!((manifest.sessions, report.sessions, report.problem_count), (2, 2, 0));
}

/// Bytes that are free where `path` is.
fn free(path: &Path) -> u64 {
    let found = nix::sys::statvfs::statvfs(path).unwrap();
    found.blocks_available() * found.fragment_size()
}

/// A file system of its own; unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` where this user may not mount.
    fn new(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={bytes},mode=0700");
        nix::mount::mount(Some("tmpfs"), folder.path(), Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str())).ok()?;
        Some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

async fn wait_until(condition: &mut tokio::sync::watch::Receiver<Condition>, wanted: impl Fn(&Condition) -> bool) {
    tokio::time::timeout(Duration::from_secs(10), condition.wait_for(wanted)).await.expect("in time").unwrap();
}

const MIB: u64 = 1024 * 1024;

#[tokio::test]
async fn a_full_disk_refuses_writes_one_by_one_and_none_is_half_done() {
    let Some(disk) = SmallDisk::new(16 * MIB) else { return };
    let path = disk.0.path();
    let store = Store::open_with_reserve(path.join("db"), 4 * MIB).await.unwrap();
    let mut condition = store.condition();
    let log = EventLog::new(store.clone());
    let one = renamed(&any_session(&Home::new().store().await).await, "ses_01ARZ3NDEKTSV4RRFFQ69G5FA0", "one");
    let id: SessionId = one.session.id.clone();
    store.put_session(&one).await.unwrap();
    let mut last = 0;
    let refused = loop {
        match log.append(&id, vec![note(&"x".repeat(100_000)), note("small")], Some(last + 1)).await {
            Ok(now) => last = now,
            Err(error) => break error,
        }
        assert!(last < 1_000, "the disk never gets full");
    };
    let fault = refused.fault();
    assert_eq!((fault.code.as_str(), free(path) < 4 * MIB), ("STORE_FULL", true));
    assert!(fault.hint.contains("MiB"), "{fault:?}");
    assert!(matches!(*condition.borrow_and_update(), Condition::Full { needed_bytes, .. } if needed_bytes == 4 * MIB));
    // Reads go on, and nothing of what was refused is there: not in memory either.
    assert!(matches!(store.put_session(&renamed(&one, id.as_str(), "two")).await, Err(StoreError::Full { .. })));
    let cursor = store.cursor(&id).await.unwrap();
    assert_eq!((cursor.last_seq, cursor.journal_seq > 0), (last, true));
    assert_eq!(history(&log, &id).await.len() as u64, last);
    // With room, writing goes on by itself.
    nix::mount::mount(None::<&str>, path, None::<&str>, nix::mount::MsFlags::MS_REMOUNT, Some(format!("size={}", 64 * MIB).as_str()))
        .unwrap();
    wait_until(&mut condition, |condition| *condition == Condition::Writable).await;
    let next = log.append(&id, vec![note("after")], Some(cursor.journal_seq + 1)).await.unwrap();
    assert_eq!(next, last + 1);
    drop(log);
    store.close().await;
    drop(store);
    let report = verify_offline(&path.join("db"), &opener(&path.join("none"))).unwrap();
    assert_eq!((report.events, report.problem_count), (last + 1, 0));
}

#[tokio::test]
async fn a_disk_that_is_full_in_earnest_breaks_the_store_and_loses_nothing() {
    let Some(disk) = SmallDisk::new(8 * MIB) else { return };
    let path = disk.0.path();
    let store = Store::open(path.join("db")).await.unwrap();
    let log = EventLog::new(store.clone());
    let one = renamed(&any_session(&Home::new().store().await).await, "ses_01ARZ3NDEKTSV4RRFFQ69G5FA0", "one");
    let id = one.session.id.clone();
    store.put_session(&one).await.unwrap();
    let mut last = 0;
    let refused = loop {
        match log.append(&id, vec![note(&"x".repeat(100_000))], None).await {
            Ok(now) => last = now,
            Err(error) => break error,
        }
        assert!(last < 1_000, "the disk never gets full");
    };
    assert_eq!(refused.fault().code, "STORE_FAILED");
    let broken = store.put_session(&one).await.unwrap_err().fault();
    assert!(broken.code == "STORE_FAILED" && broken.hint.contains("disk"), "{broken:?}");
    assert!(matches!(*store.condition().borrow(), Condition::Broken { .. }));
    drop(log);
    store.close().await;
    drop(store);
    nix::mount::mount(None::<&str>, path, None::<&str>, nix::mount::MsFlags::MS_REMOUNT, Some(format!("size={}", 64 * MIB).as_str()))
        .unwrap();
    let store = Store::open(path.join("db")).await.unwrap();
    assert!(store.cursor(&id).await.unwrap().last_seq >= last);
    assert_eq!(store.verify(opener(&path.join("none"))).await.unwrap().problems, Vec::<String>::new());
}
