//! Everything that runs for an instance: its sidecar, what descends from it, and what it left behind when it was killed.
//!
//! A killed sidecar ends none of its children, and nothing in the table of processes ties them to it any more. The agent's processes are started
//! with a home folder that no other instance has, and inherit it, which is how they are found (on Linux; elsewhere they are found only while
//! their sidecar lives, and so are those that gave themselves another environment). Invariant: nothing else is ever signalled.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use openagent_core::id::InstanceId;

use super::process::{Identity, with_environment};

/// Time in which every process must have stopped, or ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two looks at the table of processes, in which signals take effect.
const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// The processes of one instance.
#[derive(Debug, Clone)]
pub(super) struct Family {
    /// The sidecar, if it was started.
    pub(super) sidecar: Option<Identity>,
    /// The agent's home folder.
    pub(super) home: PathBuf,
}

impl Family {
    /// All that run or are stopped, ancestors first.
    fn members(&self) -> Vec<Identity> {
        let mut members = self.sidecar.as_ref().map(Identity::family).unwrap_or_default();
        let left: Vec<Identity> = with_environment("HOME", &self.home).into_iter().filter(|found| !members.contains(found)).collect();
        members.extend(left);
        members
    }

    /// Stops all, those that start meanwhile too, and gives the ones it stopped, and `stopped` before, to `record` before it does; what the agent
    /// itself has stopped is not among them. Blocks. Gives whether all stand still.
    pub(super) fn freeze<E>(&self, mut stopped: Vec<Identity>, mut record: impl FnMut(&[Identity]) -> Result<(), E>) -> Result<bool, E> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let moving: Vec<Identity> = self.members().into_iter().filter(|member| !member.is_stopped()).collect();
            if moving.is_empty() {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            let known: HashSet<Identity> = stopped.iter().cloned().collect();
            stopped.extend(moving.iter().filter(|member| !known.contains(member)).cloned());
            if stopped.len() > known.len() {
                record(&stopped)?;
            }
            for member in &moving {
                member.signal(Signal::SIGSTOP);
            }
            rest();
        }
    }

    /// Lets go on what [`Self::freeze`] stopped: children first, so that no parent sees one that stands still. The sidecar goes on in any case.
    pub(super) fn thaw(&self, stopped: &[Identity]) {
        for member in stopped.iter().rev().chain(&self.sidecar) {
            member.signal(Signal::SIGCONT);
        }
    }

    /// Ends all by force, off the runtime's threads. Gives whether none is left.
    pub(super) async fn end_all(&self, instance: &InstanceId) -> bool {
        let family = self.clone();
        let ended = tokio::task::spawn_blocking(move || family.kill()).await.unwrap_or_default();
        if !ended {
            tracing::warn!(%instance, "some processes cannot be killed");
        }
        ended
    }

    /// Ends all by force, those that start meanwhile too. Blocks. Gives whether none is left.
    fn kill(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let members = self.members();
            if members.is_empty() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            for member in members {
                member.signal(Signal::SIGKILL);
            }
            rest();
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "only called off the runtime's threads")]
fn rest() {
    std::thread::sleep(LOOK_PAUSE);
}
