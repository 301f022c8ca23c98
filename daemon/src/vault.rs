//! The vault: provider keys, and what else must not be readable in the store.
//!
//! Each key is in an envelope of its own (`core::envelope`) under a master key whose file is outside the store. Invariants: a key leaves as a
//! [`Secret`] only, and its envelope is opened anew for each use; versions of a provider's key only grow, also over a removal; a changed,
//! moved or older record gives one error that says no more; without its master key nothing is overwritten. Whoever must know of changes
//! watches [`Vault::versions`].

mod master;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use openagent_core::envelope::{EnvelopeError, MasterKey, RecordId};
use openagent_core::id::SessionId;
use openagent_core::provider::is_provider_id;
use openagent_core::secret::{SECRET_MAX_BYTES, Secret};
use openagent_core::session::Fault;
use openagent_core::time::Timestamp;
use thiserror::Error;
use tokio::sync::watch;
use zeroize::{Zeroize, Zeroizing};

use crate::store::{Envelope, KeyRecord, Opener, Store, StoreError};

/// Whose the records are: there is one user a daemon.
const OWNER: &str = "user";

/// How often the time of last use is written, in milliseconds: a key is used many times a minute.
const USED_WRITE_MILLIS: u64 = 60_000;

/// Why the vault could not do something.
#[derive(Debug, Error)]
pub enum VaultError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The master key file cannot be read or made.
    #[error("the master key file {path} cannot be read or made")]
    MasterKeyFile {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Others could have read or replaced the master key.
    #[error("the master key file {path} {why}")]
    MasterKeyUnsafe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The master key file has another length than it was made with.
    #[error("the master key file {path} is damaged ({bytes} bytes instead of {expected})", expected = MasterKey::BYTES)]
    MasterKeyDamaged {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// Keys are stored, but there is no master key.
    #[error("the master key file {path} is missing, and keys are stored that only it opens")]
    MasterKeyMissing {
        /// The file.
        path: PathBuf,
    },
    /// Keys are stored under another master key.
    #[error("the master key in {path} is not the one that the stored keys were encrypted with")]
    OtherMasterKey {
        /// The file.
        path: PathBuf,
    },
    /// A record was changed, moved or put back. Deliberately says no more.
    #[error("the stored record of {what} cannot be opened")]
    CannotOpen {
        /// Whose record.
        what: String,
    },
    /// There is no key of this provider.
    #[error("there is no key of the provider {0}")]
    NoKey(String),
    /// This cannot be a provider's id.
    #[error("{0:?} is not a provider id")]
    InvalidProvider(String),
    /// This cannot be a key. Says nothing of it.
    #[error("the key {0}")]
    InvalidSecret(&'static str),
}

impl VaultError {
    /// The error for users: a stable code, the message with its cause, and what to do.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let (code, hint) = match self {
            Self::Store(error) => return error.fault(),
            Self::MasterKeyFile { path, .. } => ("MASTER_KEY_FILE", format!("check the folder and permissions of {}", path.display())),
            Self::MasterKeyUnsafe { path, .. } => {
                ("MASTER_KEY_UNSAFE", format!("if you trust it: chmod 600 {}; if not, set your provider keys anew", path.display()))
            }
            Self::MasterKeyDamaged { path, .. } | Self::MasterKeyMissing { path } | Self::OtherMasterKey { path } => {
                ("MASTER_KEY_MISSING", format!("put the original file back at {}; nothing was overwritten", path.display()))
            }
            Self::CannotOpen { .. } => ("KEY_UNREADABLE", "set the key again: openagent keys set PROVIDER".to_owned()),
            Self::NoKey(provider) => ("KEY_MISSING", format!("set one: openagent keys set {provider}")),
            Self::InvalidProvider(_) => ("PROVIDER_UNKNOWN", "list providers with: openagent providers".to_owned()),
            Self::InvalidSecret(_) => ("KEY_INVALID", "give the key alone, as the provider shows it".to_owned()),
        };
        let message = match self {
            Self::MasterKeyFile { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        };
        Fault::new(code, message, hint)
    }
}

/// What may be told of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// Provider id.
    pub provider: String,
    /// From 1; each change makes it higher.
    pub version: u64,
    /// When a key of this provider was first set, since it had none.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// When a model call last used it.
    pub used_at: Option<Timestamp>,
}

/// The providers that have a key, with its version.
pub type Versions = BTreeMap<String, u64>;

/// A handle on the vault.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

struct Inner {
    store: Store,
    master: MasterKey,
    /// Envelopes as stored, removed ones included.
    keys: Mutex<BTreeMap<String, Entry>>,
    /// Held over a change, from reading the present version to showing the next one.
    changing: tokio::sync::Mutex<()>,
    versions: watch::Sender<Versions>,
}

struct Entry {
    record: KeyRecord,
    used_written_at: Option<Timestamp>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault")
    }
}

impl Vault {
    /// Opens the vault of `store` with the master key in the file `path`, which is made if nothing needs it yet.
    ///
    /// # Errors
    /// [`VaultError`]; nothing is overwritten then.
    pub async fn open(store: Store, path: &Path) -> Result<Self, VaultError> {
        let holds_secrets = store.holds_secrets().await?;
        let file = path.to_owned();
        let master = tokio::task::spawn_blocking(move || match master::read(&file)? {
            Some(master) => Ok(master),
            None if holds_secrets => Err(VaultError::MasterKeyMissing { path: file }),
            None => master::create(&file),
        });
        let master = master.await.map_err(|_| StoreError::Closed)??;
        let mut keys = BTreeMap::new();
        for record in store.load_keys().await? {
            if let Err(EnvelopeError::OtherMasterKey) = open_key(&master, &record).unwrap_or(Ok(Secret::new(String::new()))) {
                return Err(VaultError::OtherMasterKey { path: path.to_owned() });
            }
            let used_written_at = record.used_at;
            keys.insert(record.provider.clone(), Entry { record, used_written_at });
        }
        let versions = watch::Sender::new(versions_of(&keys));
        Ok(Self(Arc::new(Inner { store, master, keys: Mutex::new(keys), changing: tokio::sync::Mutex::default(), versions })))
    }

    /// The providers that have a key, with its version, now and whenever they change.
    #[must_use]
    pub fn versions(&self) -> watch::Receiver<Versions> {
        self.0.versions.subscribe()
    }

    /// Stores a provider's key, or replaces it; answers once it is durable.
    ///
    /// # Errors
    /// [`VaultError::InvalidProvider`], [`VaultError::InvalidSecret`], [`VaultError::Store`].
    pub async fn set(&self, provider: &str, secret: Secret, now: Timestamp) -> Result<KeyInfo, VaultError> {
        if !is_provider_id(provider) {
            return Err(VaultError::InvalidProvider(provider.chars().take(64).collect()));
        }
        check_secret(&secret)?;
        let _changing = self.0.changing.lock().await;
        let before = self.keys().get(provider).map(|entry| entry.record.clone());
        let version = before.as_ref().map_or(0, |before| before.version) + 1;
        let name = key_name(provider);
        let envelope = self.0.master.seal(RecordId { record: &name, owner: OWNER, version }, secret.expose().as_bytes());
        let created_at = before.filter(|before| before.envelope.is_some()).map_or(now, |before| before.created_at);
        let record = KeyRecord {
            provider: provider.to_owned(),
            version,
            envelope: Some(BASE64.encode(envelope)),
            created_at,
            updated_at: now,
            used_at: None,
        };
        let told = info(&record);
        self.put(record).await?;
        Ok(told)
    }

    /// Removes a provider's key; answers once that is durable.
    ///
    /// # Errors
    /// [`VaultError::NoKey`], [`VaultError::Store`].
    pub async fn remove(&self, provider: &str, now: Timestamp) -> Result<(), VaultError> {
        let _changing = self.0.changing.lock().await;
        let record = self.keys().get(provider).map(|entry| entry.record.clone()).filter(|record| record.envelope.is_some());
        let record = record.ok_or_else(|| VaultError::NoKey(provider.chars().take(64).collect()))?;
        let version = record.version + 1;
        self.put(KeyRecord { version, envelope: None, updated_at: now, used_at: None, ..record }).await
    }

    /// Names and dates of the stored keys, by provider.
    #[must_use]
    pub fn list(&self) -> Vec<KeyInfo> {
        self.keys().values().filter(|entry| entry.record.envelope.is_some()).map(|entry| info(&entry.record)).collect()
    }

    /// A provider's key, for one use; `None` when it has none.
    ///
    /// # Errors
    /// [`VaultError::CannotOpen`].
    pub fn get(&self, provider: &str) -> Result<Option<Secret>, VaultError> {
        let Some(record) = self.keys().get(provider).map(|entry| entry.record.clone()) else { return Ok(None) };
        match open_key(&self.0.master, &record) {
            None => Ok(None),
            Some(Ok(secret)) => Ok(Some(secret)),
            Some(Err(_)) => Err(VaultError::CannotOpen { what: format!("the key of {provider}") }),
        }
    }

    /// Notes that a key was used.
    ///
    /// # Errors
    /// [`VaultError::Store`].
    pub async fn used(&self, provider: &str, now: Timestamp) -> Result<(), VaultError> {
        let is_due = match self.keys().get_mut(provider) {
            Some(entry) if entry.record.envelope.is_some() => {
                entry.record.used_at = Some(now);
                let is_due = entry.used_written_at.is_none_or(|written| now.millis_since(written) >= USED_WRITE_MILLIS);
                if is_due {
                    entry.used_written_at = Some(now);
                }
                is_due
            }
            _ => false,
        };
        if is_due {
            let _changing = self.0.changing.lock().await;
            let record = self.keys().get(provider).map(|entry| entry.record.clone());
            if let Some(record) = record {
                self.0.store.put_key(&record).await?;
            }
        }
        Ok(())
    }

    /// Encrypts and stores a record of a session, such as the credentials of its sidecar; it goes with the session.
    ///
    /// # Errors
    /// [`VaultError::Store`].
    pub async fn seal_record(&self, kind: &str, session: &SessionId, bytes: &[u8]) -> Result<(), VaultError> {
        let _changing = self.0.changing.lock().await;
        let before = self.0.store.sealed(session, kind).await?;
        let version = before.and_then(|before| take_version(&before).map(|(version, _)| version)).unwrap_or(0) + 1;
        let name = record_name(kind, session);
        let envelope = self.0.master.seal(RecordId { record: &name, owner: OWNER, version }, bytes);
        self.0.store.put_sealed(session, kind, [&version.to_be_bytes()[..], &envelope].concat()).await?;
        Ok(())
    }

    /// Opens what [`Vault::seal_record`] stored.
    ///
    /// # Errors
    /// [`VaultError::CannotOpen`], [`VaultError::Store`].
    pub async fn open_record(&self, kind: &str, session: &SessionId) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        let Some(stored) = self.0.store.sealed(session, kind).await? else { return Ok(None) };
        let cannot_open = || VaultError::CannotOpen { what: format!("the {kind} of session {session}") };
        let (version, envelope) = take_version(&stored).ok_or_else(cannot_open)?;
        let name = record_name(kind, session);
        self.0.master.open(RecordId { record: &name, owner: OWNER, version }, envelope).map(Some).map_err(|_| cannot_open())
    }

    /// Removes what [`Vault::seal_record`] stored; answers whether there was anything.
    ///
    /// # Errors
    /// [`VaultError::Store`].
    pub async fn remove_record(&self, kind: &str, session: &SessionId) -> Result<bool, VaultError> {
        Ok(self.0.store.remove_sealed(session, kind).await?)
    }

    /// Tells of any stored record whether this vault's master key opens it.
    #[must_use]
    pub fn opener(&self) -> Opener {
        let inner = Arc::clone(&self.0);
        Opener::new(move |envelope| opens(&inner.master, envelope))
    }

    async fn put(&self, record: KeyRecord) -> Result<(), VaultError> {
        self.0.store.put_key(&record).await?;
        let versions = {
            let mut keys = self.keys();
            keys.insert(record.provider.clone(), Entry { record, used_written_at: None });
            versions_of(&keys)
        };
        self.0.versions.send_replace(versions);
        Ok(())
    }

    fn keys(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Like [`Vault::opener`], without a vault: with the master key in the file `path`. Without that file nothing opens.
///
/// # Errors
/// [`VaultError::MasterKeyFile`], [`VaultError::MasterKeyUnsafe`], [`VaultError::MasterKeyDamaged`].
pub fn opener_of(path: &Path) -> Result<Opener, VaultError> {
    let master = master::read(path)?;
    Ok(Opener::new(move |envelope| master.as_ref().is_some_and(|master| opens(master, envelope))))
}

fn opens(master: &MasterKey, envelope: &Envelope<'_>) -> bool {
    match envelope {
        Envelope::Key(key) => open_key(master, key).is_none_or(|opened| opened.is_ok()),
        Envelope::Sealed { session, kind, stored } => take_version(stored).is_some_and(|(version, envelope)| {
            let name = record_name(kind, session);
            master.open(RecordId { record: &name, owner: OWNER, version }, envelope).is_ok()
        }),
    }
}

fn check_secret(secret: &Secret) -> Result<(), VaultError> {
    let text = secret.expose();
    if text.is_empty() {
        return Err(VaultError::InvalidSecret("is empty"));
    }
    if text.len() > SECRET_MAX_BYTES {
        return Err(VaultError::InvalidSecret("is longer than 16 KiB"));
    }
    // It becomes the value of an HTTP header.
    if !text.bytes().all(|byte| (b'!'..=b'~').contains(&byte)) {
        return Err(VaultError::InvalidSecret("has spaces, control characters or letters that no key has"));
    }
    Ok(())
}

fn versions_of(keys: &BTreeMap<String, Entry>) -> Versions {
    let present = keys.values().map(|entry| &entry.record).filter(|record| record.envelope.is_some());
    present.map(|record| (record.provider.clone(), record.version)).collect()
}

fn info(record: &KeyRecord) -> KeyInfo {
    KeyInfo {
        provider: record.provider.clone(),
        version: record.version,
        created_at: record.created_at,
        updated_at: record.updated_at,
        used_at: record.used_at,
    }
}

/// `None` for a removed key.
fn open_key(master: &MasterKey, record: &KeyRecord) -> Option<Result<Secret, EnvelopeError>> {
    let envelope = record.envelope.as_ref()?;
    let name = key_name(&record.provider);
    let id = RecordId { record: &name, owner: OWNER, version: record.version };
    let opened = BASE64.decode(envelope).map_err(|_| EnvelopeError::CannotOpen).and_then(|envelope| master.open(id, &envelope));
    Some(opened.and_then(|mut plain| {
        String::from_utf8(std::mem::take(&mut *plain)).map(Secret::new).map_err(|error| {
            error.into_bytes().zeroize();
            EnvelopeError::CannotOpen
        })
    }))
}

fn key_name(provider: &str) -> String {
    format!("provider-key/{provider}")
}

fn record_name(kind: &str, session: &SessionId) -> String {
    format!("{kind}/{session}")
}

fn take_version(stored: &[u8]) -> Option<(u64, &[u8])> {
    stored.split_first_chunk::<8>().map(|(version, envelope)| (u64::from_be_bytes(*version), envelope))
}

#[cfg(test)]
mod tests;
