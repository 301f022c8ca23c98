//! What the tests of the store share: copies of the stores that were shipped, and what is in a store, to be compared.

use std::fs;
use std::path::{Path, PathBuf};

use openagent_core::event::EventKind;
use openagent_core::id::SessionId;
use openagentd::event::{EventLog, Item};
use openagentd::store::{DayUsage, Opener, SessionCursor, SessionRecord, Store};
use openagentd::vault::{self, Vault};

/// The folders of stores as they were shipped.
pub fn shipped() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let folders = fs::read_dir(fixtures).expect("fixtures").map(|entry| entry.expect("an entry").path());
    let mut stores: Vec<_> =
        folders.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("store-"))).collect();
    stores.sort();
    stores
}

/// A copy of a folder, with modes as a daemon makes them.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("copy a file");
            fs::set_permissions(&target, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
        }
    }
}

/// All that a store holds.
#[derive(Debug, PartialEq)]
pub struct Content {
    pub sessions: Vec<(SessionRecord, SessionCursor)>,
    pub histories: Vec<Vec<(u64, EventKind)>>,
    pub days: Vec<DayUsage>,
    pub messages: usize,
    pub keys: Vec<(String, String)>,
}

pub async fn content(store: &Store, master_key: &Path) -> Content {
    let sessions = store.load_sessions().await.expect("sessions");
    let log = EventLog::new(store.clone());
    let (mut histories, mut messages) = (vec![], 0);
    for (record, _) in &sessions {
        histories.push(history(&log, &record.session.id).await);
        messages += store.message_usage(&record.session.id).await.expect("usage of messages").len();
    }
    let vault = Vault::open(store.clone(), master_key).await.expect("the vault");
    let keys = vault.list().into_iter().map(|key| {
        let secret = vault.get(&key.provider).expect("the envelope opens").expect("a key");
        (key.provider, secret.expose().to_owned())
    });
    let keys = keys.collect();
    Content { sessions, histories, days: store.day_usage().await.expect("usage of days"), messages, keys }
}

/// A whole history. The reader itself refuses one with a hole.
pub async fn history(log: &EventLog, session: &SessionId) -> Vec<(u64, EventKind)> {
    let mut reader = log.subscribe(session, 0, false).await.expect("subscribe");
    let mut events = vec![];
    loop {
        match reader.next().await.expect("an event") {
            Item::Event(event) => events.push((event.seq, event.kind.clone())),
            Item::CaughtUp(_) => return events,
            _ => {}
        }
    }
}

pub fn opener(master_key: &Path) -> Opener {
    vault::opener_of(master_key).expect("the master key")
}
