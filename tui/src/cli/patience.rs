//! Waiting for a daemon that went away: it may be restarted, and sessions go on without it.
//!
//! It is waited for, not started: who stopped it meant it.

use std::time::Duration;

use tokio::time::Instant;

use super::Failure;
use crate::client::ClientError;
use crate::output::say;

/// How long a daemon that went away is waited for.
const RETURN_DEADLINE: Duration = Duration::from_secs(60);

/// Between two attempts to reach it.
const RETURN_POLL: Duration = Duration::from_millis(250);

/// How long has been waited already.
#[derive(Debug, Default)]
pub(super) struct Patience {
    lost_at: Option<Instant>,
}

impl Patience {
    /// It is there.
    pub(super) fn there(&mut self) {
        self.lost_at = None;
    }

    /// Waits until it is worth another attempt after `error`, and says so once. Any other error than a lost connection, and one that has lasted too
    /// long, is the end.
    pub(super) async fn again(&mut self, error: ClientError) -> Result<(), Failure> {
        if !error.is_disconnected() {
            return Err(error.into());
        }
        if self.lost_at.is_none() {
            say("the connection to the daemon was lost; waiting for it");
        }
        if self.lost_at.get_or_insert_with(Instant::now).elapsed() > RETURN_DEADLINE {
            return Err(error.into());
        }
        tokio::time::sleep(RETURN_POLL).await;
        Ok(())
    }
}
