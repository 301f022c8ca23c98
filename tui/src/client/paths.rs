//! Where the daemon is found.

use std::path::PathBuf;

/// The places that a client needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The daemon's state folder.
    pub state: PathBuf,
}
