//! Reaping of orphans: as process 1, or as a subreaper elsewhere, the sidecar inherits what its descendants leave behind.
//!
//! A zombie is looked at without being taken (`WNOWAIT`); one that was started through [`super::spawn`] is left to whoever waits for it, and the
//! search goes on when it is gone.

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

static LOOK_AGAIN: Notify = Notify::const_new();

/// Has the reaper look for zombies although no child has just ended.
pub fn look_again() {
    LOOK_AGAIN.notify_one();
}

/// Takes orphans over and reaps them, for ever.
pub struct Reaper {
    child_ended: Signal,
}

impl Reaper {
    /// Makes this process the one that orphans below it are given to.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn new() -> std::io::Result<Self> {
        prctl::set_child_subreaper(true)?;
        Ok(Self { child_ended: signal(SignalKind::child())? })
    }

    /// Reaps until dropped.
    pub async fn run(mut self) {
        loop {
            reap();
            tokio::select! {
                more = self.child_ended.recv() => if more.is_none() { return },
                () = LOOK_AGAIN.notified() => {}
            }
        }
    }
}

fn reap() {
    loop {
        let children = super::children();
        let zombie = match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(status) => status.pid(),
            Err(Errno::EINTR) => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot look for ended processes");
                return;
            }
        };
        match zombie {
            Some(pid) if !children.contains(&pid.as_raw()) => {
                // Someone else having been faster is as good.
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            }
            Some(_) | None => return,
        }
    }
}
