//! Keys come out only as what they were put in, and nothing of them is in the store.

#![allow(clippy::unwrap_used, reason = "tests")]

use tempfile::TempDir;

use super::*;
use crate::store::tests::record;

const CANARY: &str = "sk-canary-0123456789abcdef";
const ONE: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV";
const AT: Timestamp = Timestamp::from_millis(1_795_336_693_531);

async fn open(folder: &TempDir) -> Result<Vault, VaultError> {
    let store = Store::open(folder.path().join("state/db")).await.unwrap();
    Vault::open(store, &folder.path().join("data/master.key")).await
}

fn secret() -> Secret {
    Secret::new(CANARY.to_owned())
}

#[tokio::test]
async fn a_key_comes_back_after_a_restart_and_is_nowhere_in_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let vault = open(&folder).await.unwrap();
    assert_eq!(vault.get("openai").unwrap(), None);
    assert_eq!(vault.set("openai", secret(), AT).await.unwrap().version, 1);
    drop(vault);
    let vault = open(&folder).await.unwrap();
    assert_eq!(vault.get("openai").unwrap(), Some(secret()));
    assert_eq!(vault.list().iter().map(|key| (key.provider.as_str(), key.version)).collect::<Vec<_>>(), [("openai", 1)]);
    let data = std::fs::read(folder.path().join("state/db/db")).unwrap();
    assert!(!data.windows(8).any(|part| part == b"sk-canar"));
}

#[tokio::test]
async fn versions_only_grow_and_changes_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let vault = open(&folder).await.unwrap();
    let mut versions = vault.versions();
    vault.set("openai", secret(), AT).await.unwrap();
    assert_eq!(*versions.borrow_and_update(), Versions::from([("openai".to_owned(), 1)]));
    vault.remove("openai", AT).await.unwrap();
    assert!(versions.has_changed().unwrap() && versions.borrow_and_update().is_empty());
    assert_eq!(vault.get("openai").unwrap(), None);
    assert!(matches!(vault.remove("openai", AT).await, Err(VaultError::NoKey(_))));
    drop((vault, versions));
    let vault = open(&folder).await.unwrap();
    assert!(vault.list().is_empty());
    let later = AT.plus_millis(5);
    let key = vault.set("openai", secret(), later).await.unwrap();
    assert_eq!((key.version, key.created_at), (3, later));
    assert_eq!(vault.set("openai", secret(), later.plus_millis(1)).await.unwrap().created_at, later);
}

#[tokio::test]
async fn edited_swapped_and_old_records_give_one_error() {
    let folder = tempfile::tempdir().unwrap();
    let vault = open(&folder).await.unwrap();
    for provider in ["one", "two"] {
        vault.set(provider, secret(), AT).await.unwrap();
    }
    let store = vault.0.store.clone();
    let keys = store.load_keys().await.unwrap();
    vault.set("one", secret(), AT).await.unwrap();
    let present = store.load_keys().await.unwrap()[0].clone();
    drop(vault);
    let mut edited = BASE64.decode(present.envelope.as_ref().unwrap()).unwrap();
    *edited.last_mut().unwrap() ^= 1;
    for (what, envelope) in [
        ("edited", BASE64.encode(edited)),
        ("swapped", keys[1].envelope.clone().unwrap()),
        ("old", keys[0].envelope.clone().unwrap()),
        ("none", "!".to_owned()),
        ("cut", BASE64.encode("x")),
    ] {
        store.put_key(&KeyRecord { envelope: Some(envelope), ..present.clone() }).await.unwrap();
        let vault = Vault::open(store.clone(), &folder.path().join("data/master.key")).await.unwrap();
        let error = vault.get("one").unwrap_err();
        assert_eq!(error.to_string(), "the stored record of the key of one cannot be opened", "{what}");
        assert_eq!(error.fault().code, "KEY_UNREADABLE");
    }
}

#[tokio::test]
async fn without_the_master_key_nothing_is_opened_or_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data/master.key");
    let vault = open(&folder).await.unwrap();
    vault.set("openai", secret(), AT).await.unwrap();
    drop(vault);
    let aside = folder.path().join("aside");
    std::fs::rename(&path, &aside).unwrap();
    assert!(matches!(open(&folder).await, Err(VaultError::MasterKeyMissing { .. })));
    assert!(!path.exists());
    master::create(&path).unwrap();
    assert!(matches!(open(&folder).await, Err(VaultError::OtherMasterKey { .. })));
    std::fs::rename(&aside, &path).unwrap();
    assert_eq!(open(&folder).await.unwrap().get("openai").unwrap(), Some(secret()));
}

#[tokio::test]
async fn the_time_of_use_is_shown_at_once_and_written_once_a_minute() {
    let folder = tempfile::tempdir().unwrap();
    let vault = open(&folder).await.unwrap();
    vault.set("openai", secret(), AT).await.unwrap();
    let stored = async || vault.0.store.load_keys().await.unwrap()[0].used_at;
    for (after, written) in [(0, 0), (59_999, 0), (60_000, 60_000), (61_000, 60_000)] {
        vault.used("openai", AT.plus_millis(after)).await.unwrap();
        assert_eq!(vault.list()[0].used_at, Some(AT.plus_millis(after)));
        assert_eq!(stored().await, Some(AT.plus_millis(written)));
    }
    vault.used("unknown", AT).await.unwrap();
}

#[tokio::test]
async fn records_of_a_session_open_only_as_themselves_and_go_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let vault = open(&folder).await.unwrap();
    let (one, two): (SessionId, SessionId) = (ONE.parse().unwrap(), "ses_01ARZ3NDEKTSV4RRFFQ69G5FAW".parse().unwrap());
    vault.0.store.put_session(&record(ONE)).await.unwrap();
    vault.seal_record("sidecar", &one, b"token").await.unwrap();
    vault.seal_record("sidecar", &one, b"token 2").await.unwrap();
    assert_eq!(vault.open_record("sidecar", &one).await.unwrap().unwrap().as_slice(), b"token 2");
    let stored = vault.0.store.sealed(&one, "sidecar").await.unwrap().unwrap();
    vault.0.store.put_sealed(&two, "sidecar", stored).await.unwrap();
    assert!(matches!(vault.open_record("sidecar", &two).await, Err(VaultError::CannotOpen { .. })));
    assert!(vault.remove_record("sidecar", &two).await.unwrap());
    assert_eq!(vault.open_record("sidecar", &two).await.unwrap(), None);
}

#[tokio::test]
async fn what_cannot_be_a_key_is_refused_and_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let vault = open(&folder).await.unwrap();
    for bad in [String::new(), "x".repeat(SECRET_MAX_BYTES + 1), format!("{CANARY}\n"), format!("a {CANARY}"), format!("{CANARY}é")] {
        let error = vault.set("openai", Secret::new(bad), AT).await.unwrap_err();
        assert!(matches!(error, VaultError::InvalidSecret(_)));
        assert!(!format!("{error} {error:?} {:?}", error.fault()).contains("canary"));
    }
    assert!(matches!(vault.set("../x", secret(), AT).await, Err(VaultError::InvalidProvider(_))));
}
