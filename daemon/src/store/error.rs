//! What can go wrong in the store, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use openagent_core::event::EVENT_MAX_BYTES;
use openagent_core::id::SessionId;
use openagent_core::session::Fault;
use thiserror::Error;

use super::witness::FILE as WITNESS_FILE;

/// Why the store could not do something.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error("the store {path} is in use by another daemon")]
    Locked {
        /// The store's folder.
        path: PathBuf,
    },
    /// A newer version wrote the store.
    #[error("the store {path} has format {found}, this version knows formats up to {known}")]
    NewerFormat {
        /// The store's folder.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format that is known here.
        known: u64,
    },
    /// The store's files do not make sense.
    #[error("the store {path} is damaged: {what}")]
    Corrupt {
        /// The store's folder.
        path: PathBuf,
        /// What does not make sense.
        what: String,
    },
    /// The operating system refused something.
    #[error("the store could not {step}")]
    Io {
        /// The failed step.
        step: &'static str,
        /// The operating system's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// A stored record does not make sense.
    #[error("the stored {what} cannot be read")]
    BadRecord {
        /// Which record.
        what: String,
    },
    /// No such session.
    #[error("there is no session {0}")]
    UnknownSession(SessionId),
    /// A reader wants to start behind the end of the history.
    #[error("the history of session {session} ends at {last}, before {after}")]
    CursorBeyondEnd {
        /// The session.
        session: SessionId,
        /// Where the reader wants to start.
        after: u64,
        /// Where the history ends.
        last: u64,
    },
    /// An event is larger than any event may be.
    #[error("an event of {bytes} bytes is larger than {EVENT_MAX_BYTES} bytes")]
    EventTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// What is appended comes from a place of the journal that was stored before. Nothing was appended.
    #[error("journal sequence {got} was stored before (stored up to {stored})")]
    JournalReplayed {
        /// Last stored journal sequence.
        stored: u64,
        /// Journal sequence of what was to be appended.
        got: u64,
    },
    /// The log of the store ends before what was acknowledged: its file was cut or put back.
    #[error("the store {path} is damaged: {found} of {known} commits are in it, so that {} acknowledged ones are lost", known - found)]
    Behind {
        /// The store's folder.
        path: PathBuf,
        /// Commits that are in it.
        found: u64,
        /// Commits that are known to have been in it.
        known: u64,
    },
    /// The disk is too full to write; nothing was changed. Writing goes on by itself once there is room.
    #[error("the disk of the store is full: {free_bytes} bytes are free, {needed_bytes} are needed")]
    Full {
        /// Free bytes.
        free_bytes: u64,
        /// Free bytes from which on it is written.
        needed_bytes: u64,
    },
    /// An earlier write failed, so that memory and disk may differ; only a restart helps.
    #[error("the store stopped after a failed write: {why}")]
    Broken {
        /// What failed.
        why: Arc<str>,
    },
    /// There is one backup at a time.
    #[error("another backup of the store is being made")]
    BackupRuns,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// The error for users: a stable code, the message with its cause, and what to do.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let (code, hint) = match self {
            Self::Locked { .. } => ("STORE_LOCKED", "one daemon a user: stop the other one with: openagent daemon stop".to_owned()),
            Self::NewerFormat { path, .. } => {
                ("STORE_NEWER", format!("install the newer version of OpenAgent again, or move {} away to start afresh", path.display()))
            }
            Self::Corrupt { path, .. } => (
                "STORE_CORRUPT",
                format!("restore a backup: openagent daemon restore FILE; or move {} away to start afresh", path.display()),
            ),
            Self::Behind { path, .. } => (
                "STORE_CORRUPT",
                format!(
                    "restore a backup: openagent daemon restore FILE; or delete {} to go on with what is left",
                    path.join(WITNESS_FILE).display()
                ),
            ),
            Self::Full { free_bytes, needed_bytes } => {
                let mib = needed_bytes.saturating_sub(*free_bytes).div_ceil(1024 * 1024);
                ("STORE_FULL", format!("free {mib} MiB on the disk of the state folder; writing goes on by itself then"))
            }
            Self::Io { .. } | Self::Broken { .. } => {
                ("STORE_FAILED", "look for a full or failing disk, then restart: openagent daemon stop".to_owned())
            }
            Self::BackupRuns => ("BUSY", "wait until it is done".to_owned()),
            Self::BadRecord { .. } => ("STORE_CORRUPT", "restore a backup: openagent daemon restore FILE".to_owned()),
            Self::UnknownSession(_) => ("SESSION_NOT_FOUND", "list sessions with: openagent ls".to_owned()),
            Self::CursorBeyondEnd { .. } => ("CURSOR_BEYOND_END", "subscribe from 0 to read the whole history".to_owned()),
            Self::EventTooLarge { .. } => ("EVENT_TOO_LARGE", String::new()),
            Self::JournalReplayed { .. } => ("JOURNAL_REPLAYED", String::new()),
            Self::Closed => ("DAEMON_STOPPING", "try again in a moment".to_owned()),
        };
        let message = match self {
            Self::Io { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        };
        Fault::new(code, message, hint)
    }

    pub(super) fn io(step: &'static str, source: io::Error) -> Self {
        Self::Io { step, source: Arc::new(source) }
    }

    pub(super) fn engine(step: &'static str, source: sled::Error) -> Self {
        Self::io(step, source.into())
    }
}
