//! Child processes: started as the agent's user with a clean environment, waited for, and reaped.
//!
//! Invariant: every child is started through [`spawn`], so that the reaper of orphans knows which zombies are somebody's child and leaves them to
//! whoever waits for them. No child outlives the sidecar, gains a privilege, or sees the sidecar's environment.

pub mod confine;
pub mod memory;
pub mod reaper;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getsid};
use tokio::process::Command;

use crate::settings::Settings;

/// Pids are the process's, not an object's, hence a static. Held while a child is started, so that the reaper never sees one that is not yet in it.
static CHILDREN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Where programs are looked up when the sidecar itself was told nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Rounds in which [`end_descendants`] ends what those it ended in the round before have left to it.
const END_ROUNDS: usize = 100;

/// Time between two rounds, in which the killed ones end.
const END_PAUSE: Duration = Duration::from_millis(10);

fn children() -> MutexGuard<'static, BTreeSet<i32>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The whole environment that every process of the agent starts from.
#[must_use]
pub fn agent_environment(settings: &Settings) -> Vec<(&'static str, String)> {
    let home = settings.agent_home.to_string_lossy().into_owned();
    let path = std::env::var("PATH").ok().filter(|path| !path.is_empty()).unwrap_or_else(|| DEFAULT_PATH.to_owned());
    let user = match settings.agent_uid {
        Some(_) => "agent".to_owned(),
        None => std::env::var("USER").unwrap_or_else(|_| "agent".to_owned()),
    };
    vec![
        ("HOME", home),
        ("PATH", path),
        ("USER", user.clone()),
        ("LOGNAME", user),
        ("SHELL", shell().to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TERM", "xterm-256color".to_owned()),
    ]
}

/// A command that will run as the agent's user in the workspace, in a session of its own, with [`agent_environment`] only and without standard input.
#[must_use]
pub fn agent_command(settings: &Settings, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(agent_environment(settings)).current_dir(&settings.workspace).stdin(Stdio::null()).kill_on_drop(true);
    if let Some(uid) = settings.agent_uid {
        // With a user id, the standard library also empties the list of supplementary groups.
        command.uid(uid).gid(uid);
    }
    confine::confine(&mut command, settings.agent_uid.is_some());
    command
}

/// The shell of terminals: `bash` where the image has it.
#[must_use]
pub fn shell() -> &'static str {
    ["/bin/bash", "/usr/bin/bash"].into_iter().find(|path| Path::new(path).exists()).unwrap_or("/bin/sh")
}

/// A login shell, or `command` in a shell, to be started on a terminal as [`agent_command`] would.
#[must_use]
pub fn agent_shell(settings: &Settings, command: Option<&str>) -> pty_process::Command {
    let mut shell = pty_process::Command::new(shell())
        .env_clear()
        .envs(agent_environment(settings))
        .env("COLORTERM", "truecolor")
        .current_dir(&settings.workspace)
        .kill_on_drop(true);
    shell = match command {
        Some(command) => shell.arg("-c").arg(command),
        None => shell.arg("-l"),
    };
    if let Some(uid) = settings.agent_uid {
        shell = shell.uid(uid).gid(uid);
    }
    confine::confine_on_terminal(shell, settings.agent_uid.is_some())
}

/// Starts a command of [`agent_command`].
///
/// # Errors
/// Why it could not be started.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    spawn_with(|| command.spawn())
}

/// Starts a child by `start`, which must not wait.
///
/// # Errors
/// Why it could not be started.
pub fn spawn_with(start: impl FnOnce() -> io::Result<tokio::process::Child>) -> io::Result<Child> {
    let mut children = children();
    let inner = start()?;
    let pid = inner.id().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(|| io::Error::other("the child has no pid"))?;
    children.insert(pid);
    Ok(Child { pid, inner })
}

/// A running child, leader of a session and process group of its own. Dropped, it is killed.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    inner: tokio::process::Child,
}

impl Child {
    /// Its process id, which is its group's as well.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for its end. Cancel safe.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.inner.wait().await;
        children().remove(&self.pid);
        // The reaper stops at the first zombie that is somebody's: this one may have been in its way.
        reaper::look_again();
        status
    }

    /// The pipe to its standard input, once.
    pub const fn take_stdin(&mut self) -> Option<tokio::process::ChildStdin> {
        self.inner.stdin.take()
    }

    /// The pipe from its standard output, once.
    pub const fn take_stdout(&mut self) -> Option<tokio::process::ChildStdout> {
        self.inner.stdout.take()
    }

    /// The pipe from its standard error, once.
    pub const fn take_stderr(&mut self) -> Option<tokio::process::ChildStderr> {
        self.inner.stderr.take()
    }

    /// Sends `signal` to its whole group. Nothing happens when nobody is left in it.
    pub fn signal_group(&self, signal: Signal) {
        signal_group(self.pid, signal);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Not waited for: the runtime kills and reaps it, and the reaper may be the first to do the latter.
        if self.inner.id().is_some() {
            signal_group(self.pid, Signal::SIGKILL);
        }
        children().remove(&self.pid);
    }
}

/// Sends `signal` to the group of the child `pid`. Nothing happens when nobody is left in it.
pub fn signal_group(pid: i32, signal: Signal) {
    // 0 and 1 would mean the sidecar's own group and everybody.
    if pid > 1 {
        // The group may be gone, which is what was wanted.
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}

/// Sends `signal` to every process of the session that `pid` leads or led: its own group, and those that its shell made for its jobs.
pub fn signal_session(pid: i32, signal: Signal) {
    signal_group(pid, signal);
    for other in processes().filter(|other| *other > 1 && *other != pid) {
        if session_of(other) == Some(pid) {
            // It may have ended in between.
            let _ = kill(Pid::from_raw(other), signal);
        }
    }
}

fn session_of(pid: i32) -> Option<i32> {
    getsid(Some(Pid::from_raw(pid))).ok().map(Pid::as_raw)
}

/// Ends whatever is left below this process, which as a subreaper has become the parent of all that its own children left behind.
pub async fn end_descendants() {
    for _ in 0..END_ROUNDS {
        let left: Vec<i32> = processes().filter(|pid| parent_of(*pid) == Some(std::process::id())).collect();
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
        tokio::time::sleep(END_PAUSE).await;
    }
    tracing::warn!("some processes of the agent could not be ended");
}

fn processes() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn parent_of(pid: i32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold anything; state and parent follow the last one.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Exit code as a shell shows it: 128 + signal number when a signal killed it.
#[must_use]
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::BTreeSet;

    use tokio::io::AsyncReadExt;

    use super::*;

    fn settings(folder: &Path) -> Settings {
        Settings {
            session: "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            token_sha256: [0; 32],
            link_dir: folder.into(),
            workspace: folder.into(),
            state_dir: folder.into(),
            agent_home: folder.into(),
            agent_uid: None,
            opencode: "opencode".into(),
            journal_max_bytes: 8 << 20,
        }
    }

    #[tokio::test]
    async fn a_child_has_the_clean_environment_only_and_a_session_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = agent_command(&settings(folder.path()), "/bin/sh");
        command
            .args(["-c", "cat /proc/$$/environ; printf '|%s' \"$(cut -d' ' -f5,6 /proc/$$/stat)\" \"$(umask)\" \"$(pwd)\""])
            .stdout(Stdio::piped());
        let mut child = spawn(&mut command).unwrap();
        let mut said = String::new();
        child.take_stdout().unwrap().read_to_string(&mut said).await.unwrap();
        assert!(child.wait().await.unwrap().success());
        let mut parts = said.split('|');
        let names: BTreeSet<_> = parts.next().unwrap().split('\0').filter_map(|pair| pair.split_once('=')).map(|(name, _)| name).collect();
        assert_eq!(names, BTreeSet::from(["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "USER"]));
        assert_eq!(parts.next().unwrap(), format!("{0} {0}", child.pid()));
        assert_eq!(parts.next().unwrap(), "0002");
        assert_eq!(Path::new(parts.next().unwrap()), folder.path().canonicalize().unwrap());
    }

    #[tokio::test]
    async fn a_group_is_ended_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = agent_command(&settings(folder.path()), "/bin/sh");
        // The reader sees the end only when nobody has the pipe open any more.
        command.args(["-c", "sleep 1000 & echo up; wait"]).stdout(Stdio::piped());
        let mut child = spawn(&mut command).unwrap();
        let mut output = child.take_stdout().unwrap();
        let mut up = [0; 3];
        output.read_exact(&mut up).await.unwrap();
        child.signal_group(Signal::SIGTERM);
        assert_eq!(exit_code(child.wait().await.unwrap()), 143);
        let rest = tokio::time::timeout(Duration::from_secs(10), output.read_to_end(&mut Vec::new())).await;
        assert_eq!(rest.unwrap().unwrap(), 0);
    }
}
