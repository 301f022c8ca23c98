//! Runs other programs: shown (their output is the progress), quiet (output to a log file, with a sign of life), or
//! captured. Quiet and captured runs never wait for ever and never read the user's stdin.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::term::Step;

/// How often a quiet step shows that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// How long a program that ran out of time gets to end itself.
const TERM_GRACE: Duration = Duration::from_secs(10);
/// Captured output beyond this is cut; nothing we ask for comes near it.
const CAPTURE_MAX_BYTES: u64 = 4 << 20;
/// Lines of a failed step's log that are shown.
const LOG_TAIL_LINES: usize = 30;

/// Output of a program that ended.
pub struct Captured {
    /// How it ended.
    pub status: ExitStatus,
    /// Its stdout, invalid UTF-8 replaced.
    pub stdout: String,
    /// Its stderr, invalid UTF-8 replaced.
    pub stderr: String,
}

/// Finds a program in `PATH` or in the folders of system programs, which a plain user's `PATH` may lack.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Runs a program whose own output tells the user what goes on.
pub fn shown(step: &str, mut command: Command) -> Result<()> {
    let step = Step::begin(step);
    let status = command.status().with_context(|| format!("start {}", name(&command)))?;
    if !status.success() {
        bail!("{} failed ({status})", name(&command));
    }
    step.done();
    Ok(())
}

/// Runs a program with its output in `log`; shows the end of the log if it fails.
pub fn quiet(step: &str, log: &Path, limit: Duration, mut command: Command) -> Result<()> {
    let step = Step::begin(step);
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let errors = file.try_clone().with_context(|| format!("share {}", log.display()))?;
    let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
    let child = child.with_context(|| format!("start {}", name(&command)))?;
    let status = wait(child, limit, || step.still(tail(log, 1).trim()))
        .with_context(|| format!("{}; its output is in {}", name(&command), log.display()))?;
    if !status.success() {
        bail!("{} failed ({status}); its last lines, from {}:\n{}", name(&command), log.display(), tail(log, LOG_TAIL_LINES));
    }
    step.done();
    Ok(())
}

/// Runs a program and returns what it printed, whatever its exit code.
pub fn capture(limit: Duration, mut command: Command) -> Result<Captured> {
    let stdout = tempfile::tempfile().context("create a temporary file")?;
    let stderr = tempfile::tempfile().context("create a temporary file")?;
    let child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().context("share a temporary file")?)
        .stderr(stderr.try_clone().context("share a temporary file")?)
        .spawn()
        .with_context(|| format!("start {}", name(&command)))?;
    let status = wait(child, limit, || ()).with_context(|| name(&command))?;
    Ok(Captured { status, stdout: content(stdout)?, stderr: content(stderr)? })
}

/// The last `lines` lines of a file, or nothing if it cannot be read.
pub fn tail(file: &Path, lines: usize) -> String {
    let text = fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn content(mut file: File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).context("rewind captured output")?;
    file.take(CAPTURE_MAX_BYTES).read_to_end(&mut bytes).context("read captured output")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits for a child with a limit; a thread does the waiting, so that the limit needs no polling.
fn wait(mut child: Child, limit: Duration, mut alive: impl FnMut()) -> Result<ExitStatus> {
    let pid = Pid::from_raw(i32::try_from(child.id()).context("process id out of range")?);
    let started_at = Instant::now();
    let (ended, end) = sync_channel(1);
    thread::spawn(move || ended.send(child.wait()));
    loop {
        let left = limit.saturating_sub(started_at.elapsed());
        match end.recv_timeout(left.min(SIGN_OF_LIFE)) {
            Ok(status) => return status.context("wait for the program's end"),
            Err(RecvTimeoutError::Disconnected) => bail!("the thread that waits for the program is gone"),
            Err(RecvTimeoutError::Timeout) if started_at.elapsed() < limit => alive(),
            Err(RecvTimeoutError::Timeout) => {
                // The program may have ended this very moment; then the signals find nobody, which is fine.
                let _gone = kill(pid, Signal::SIGTERM);
                if end.recv_timeout(TERM_GRACE).is_err() {
                    let _gone = kill(pid, Signal::SIGKILL);
                }
                bail!("gave up after {} s", limit.as_secs());
            }
        }
    }
}

fn name(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args().take(2));
    format!("`{}`", words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn output_and_exit_code_are_captured() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let captured = capture(Duration::from_secs(20), command).unwrap();
        assert_eq!((captured.stdout.as_str(), captured.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(captured.status.code(), Some(3));
    }

    #[test]
    fn a_program_that_hangs_is_ended_at_its_limit() {
        let mut command = Command::new("sh");
        command.args(["-c", "exec tail -f /dev/null"]);
        let error = capture(Duration::from_millis(50), command).map(|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("gave up"), "{error:#}");
    }

    #[test]
    fn a_failing_quiet_step_shows_the_end_of_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo the reason; exit 1"]);
        let error = quiet("trial", &folder.path().join("trial.log"), Duration::from_secs(20), command).unwrap_err();
        assert!(error.to_string().contains("the reason"), "{error}");
    }
}
