//! The one place where the daemon reads the wall clock.

use openagent_core::time::Timestamp;

/// Now.
#[must_use]
pub fn now() -> Timestamp {
    time::OffsetDateTime::now_utc().into()
}
