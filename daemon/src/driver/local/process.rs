//! Processes by identity, so that one that merely got the id of another is never taken for it, nor signalled.
//!
//! On Linux the identity is the boot and the clock tick of the start, elsewhere the time of the start as `ps` prints it. A process that has
//! ended and was not reaped yet counts as gone.

use std::collections::HashMap;
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
#[cfg(target_os = "linux")]
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
#[cfg(target_os = "linux")]
use tokio::io::{Interest, unix::AsyncFd};

/// Pause between looks at a process whose end the system does not tell.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// A process, told from all others that had or will have its id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Identity {
    pid: i32,
    started: String,
}

impl Identity {
    /// Of the process that has this id now.
    pub(super) fn of(pid: i32) -> Option<Self> {
        start_of(pid, false).map(|started| Self { pid, started })
    }

    /// Of a child that was not reaped yet, which may have ended already.
    pub(super) fn of_child(pid: i32) -> Self {
        Self { pid, started: start_of(pid, true).unwrap_or_else(|| "unknown".to_owned()) }
    }

    pub(super) fn is_alive(&self) -> bool {
        start_of(self.pid, false).is_some_and(|started| started == self.started)
    }

    /// Resolves when it has ended. Costs nothing meanwhile where the system tells the end of processes that are no children.
    pub(super) async fn ended(&self) {
        #[cfg(target_os = "linux")]
        if let Some(handle) = handle(self.pid)
            // It may have been another one's id when the handle was made.
            && self.is_alive()
        {
            let _told = handle.readable().await;
        }
        while self.is_alive() {
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// It exists and stands still because of a signal.
    pub(super) fn is_stopped(&self) -> bool {
        self.is_alive() && state_of(self.pid) == Some('T')
    }

    /// Signals the process if it is still the same.
    pub(super) fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may end between the look and the signal, which is what the signal is for.
            let _gone = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// The process and everything that descends from it, ancestors first.
    pub(super) fn family(&self) -> Vec<Self> {
        if !self.is_alive() {
            return vec![];
        }
        let parents = parents();
        let mut family = vec![self.pid];
        let mut next = 0;
        while let Some(parent) = family.get(next).copied() {
            family.extend(
                parents.iter().filter(|(pid, of)| **of == parent && !family.contains(pid)).map(|(pid, _)| *pid).collect::<Vec<_>>(),
            );
            next += 1;
        }
        family.into_iter().filter_map(Self::of).collect()
    }
}

/// A handle that becomes readable when the process ends; not there on old kernels and in some sandboxes.
#[cfg(target_os = "linux")]
#[allow(deprecated, reason = "its successor is an unsafe function for descriptors that may be closed meanwhile; this one is owned")]
fn handle(pid: i32) -> Option<AsyncFd<OwnedFd>> {
    let handle = pidfd_open(rustix::process::Pid::from_raw(pid)?, PidfdFlags::NONBLOCK).ok()?;
    AsyncFd::with_interest(handle, Interest::READABLE).ok()
}

/// Fields of a line of `/proc/<pid>/stat` after the command, which may hold spaces and parentheses: state first.
#[cfg(target_os = "linux")]
fn stat(pid: i32) -> Option<Vec<String>> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = line.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

#[cfg(target_os = "linux")]
fn state_of(pid: i32) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

/// All processes that were started with this variable set to this path, as far as this user may know.
#[cfg(target_os = "linux")]
pub(super) fn with_environment(name: &str, value: &Path) -> Vec<Identity> {
    use std::os::unix::ffi::OsStrExt;
    let wanted = [name.as_bytes(), b"=", value.as_os_str().as_bytes()].concat();
    let names = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| {
            let pid = name.to_str()?.parse().ok()?;
            let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
            environment.split(|byte| *byte == 0).any(|variable| variable == wanted).then_some(())?;
            Identity::of(pid)
        })
        .collect()
}

/// Only Linux tells.
#[cfg(not(target_os = "linux"))]
pub(super) fn with_environment(_name: &str, _value: &Path) -> Vec<Identity> {
    vec![]
}

#[cfg(target_os = "linux")]
fn start_of(pid: i32, ended_too: bool) -> Option<String> {
    let fields = stat(pid)?;
    if !ended_too && matches!(fields.first()?.as_str(), "Z" | "X") {
        return None;
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    // Field 22 of proc_pid_stat(5), counted from the process id.
    Some(format!("{}/{}", boot.trim(), fields.get(19)?))
}

/// Parent by process.
#[cfg(target_os = "linux")]
fn parents() -> HashMap<i32, i32> {
    let names = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| {
            let pid = name.to_str()?.parse().ok()?;
            Some((pid, stat(pid)?.get(1)?.parse().ok()?))
        })
        .collect()
}

#[cfg(not(target_os = "linux"))]
fn ps(arguments: &[&str]) -> Option<String> {
    let output = std::process::Command::new("/bin/ps").args(arguments).env("LC_ALL", "C").output().ok()?;
    String::from_utf8(output.stdout).ok()
}

#[cfg(not(target_os = "linux"))]
fn state_of(pid: i32) -> Option<char> {
    ps(&["-o", "stat=", "-p", &pid.to_string()])?.trim().chars().next()
}

#[cfg(not(target_os = "linux"))]
fn start_of(pid: i32, ended_too: bool) -> Option<String> {
    let line = ps(&["-o", "stat=,lstart=", "-p", &pid.to_string()])?;
    let (state, started) = line.trim().split_once(' ')?;
    (ended_too || !state.starts_with('Z')).then(|| started.trim().to_owned())
}

/// Parent by process.
#[cfg(not(target_os = "linux"))]
fn parents() -> HashMap<i32, i32> {
    let lines = ps(&["-axo", "pid=,ppid="]).unwrap_or_default();
    let pair = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    lines.lines().filter_map(pair).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_told_without_reaping_it() {
        let mut child = Command::new("sh").args(["-c", "read line"]).stdin(Stdio::piped()).spawn().unwrap();
        let identity = Identity::of(i32::try_from(child.id()).unwrap()).unwrap();
        let mut ended = Box::pin(identity.ended());
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut ended).await.is_err());
        drop(child.stdin.take());
        tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
        child.wait().unwrap();
        tokio::time::timeout(Duration::from_secs(1), identity.ended()).await.unwrap();
    }

    #[test]
    fn an_ended_process_is_gone_before_it_is_reaped_and_a_reused_id_is_another_process() {
        let mut child = Command::new("sh").args(["-c", "read line"]).stdin(Stdio::piped()).spawn().unwrap();
        let identity = Identity::of(i32::try_from(child.id()).unwrap()).unwrap();
        let other = Identity { started: "another time".into(), ..identity.clone() };
        assert!(identity.is_alive() && !other.is_alive());
        other.signal(Signal::SIGKILL);
        assert!(child.try_wait().unwrap().is_none());
        let own = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.family().contains(&identity) && own.family()[0] == own);
        identity.signal(Signal::SIGKILL);
        while identity.is_alive() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!identity.is_alive() && identity.family().is_empty());
    }
}
