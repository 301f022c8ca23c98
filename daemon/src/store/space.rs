//! Whether the store can be written: room on its disk, and no failed write before.
//!
//! A write that fails half way leaves memory and disk in doubt, so it must not come to that: before each group of writes the writer looks how
//! much is free, and below the reserve each write is refused by itself, with nothing applied. Reads go on. Once there is room, writing goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::statvfs::statvfs;
use openagent_core::session::Fault;
use tokio::sync::watch;

use super::StoreError;

/// Whether the store can be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It can.
    Writable,
    /// Not until there is more room on its disk; reads go on.
    Full {
        /// Free bytes, when this was last looked at.
        free_bytes: u64,
        /// Free bytes from which on it is written.
        needed_bytes: u64,
    },
    /// Not before a restart; reads fail as well, as sled sees fit.
    Broken {
        /// What failed.
        why: Arc<str>,
    },
}

impl Condition {
    /// Why nothing is written, for users; `None` while it can be written.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        self.refusal().map(|refusal| refusal.fault())
    }

    fn refusal(&self) -> Option<StoreError> {
        match self {
            Self::Writable => None,
            Self::Full { free_bytes, needed_bytes } => Some(StoreError::Full { free_bytes: *free_bytes, needed_bytes: *needed_bytes }),
            Self::Broken { why } => Some(StoreError::Broken { why: Arc::clone(why) }),
        }
    }
}

/// What the writer, and whoever asks before there is something to write, know of it.
pub(super) struct Space {
    path: PathBuf,
    reserve_bytes: u64,
    condition: watch::Sender<Condition>,
}

impl Space {
    pub(super) fn new(path: &Path, reserve_bytes: u64) -> Self {
        let space = Self { path: path.to_owned(), reserve_bytes, condition: watch::Sender::new(Condition::Writable) };
        space.look();
        space
    }

    pub(super) fn watch(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    /// Looks how much room there is: a call of a microsecond, so no need to spare it.
    pub(super) fn look(&self) {
        if self.reserve_bytes == 0 {
            return;
        }
        let Some(free_bytes) = free_bytes(&self.path) else { return };
        let found = if free_bytes < self.reserve_bytes {
            Condition::Full { free_bytes, needed_bytes: self.reserve_bytes }
        } else {
            Condition::Writable
        };
        self.condition.send_if_modified(|condition| {
            if *condition == found || matches!(condition, Condition::Broken { .. }) {
                return false;
            }
            match (&*condition, &found) {
                (Condition::Writable, Condition::Full { .. }) => {
                    tracing::error!(
                        free_bytes,
                        needed_bytes = self.reserve_bytes,
                        "the disk of the store is full; nothing is written until there is room"
                    );
                }
                (Condition::Full { .. }, Condition::Writable) => tracing::info!(free_bytes, "the disk of the store has room again"),
                _ => {}
            }
            *condition = found;
            true
        });
    }

    pub(super) fn is_full(&self) -> bool {
        matches!(*self.condition.borrow(), Condition::Full { .. })
    }

    /// Whether no write has failed before.
    pub(super) fn is_whole(&self) -> Result<(), StoreError> {
        match self.may_write() {
            Err(broken @ StoreError::Broken { .. }) => Err(broken),
            _ => Ok(()),
        }
    }

    pub(super) fn may_write(&self) -> Result<(), StoreError> {
        self.condition.borrow().refusal().map_or(Ok(()), Err)
    }

    /// Nothing is written any more.
    pub(super) fn break_down(&self, error: &StoreError) {
        let why = error.fault().message.into();
        self.condition.send_replace(Condition::Broken { why });
    }
}

/// What a user may still write to the disk of `path`; `None` where the system does not tell.
#[allow(clippy::useless_conversion, reason = "these are of 32 bits on other systems")]
fn free_bytes(path: &Path) -> Option<u64> {
    let found = statvfs(path).ok()?;
    Some(u64::from(found.blocks_available()).saturating_mul(u64::from(found.fragment_size())))
}
