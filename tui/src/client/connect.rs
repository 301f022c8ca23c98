//! Reaching the daemon, and starting it where nothing answers.
//!
//! Who finds nobody at the socket takes the lock `<state>/start.lock`, and only its holder starts a daemon, so that two clients that come
//! at once end up with the same one. The lock ends with its holder. The daemon runs in a session of its own, which it reaches through
//! `openagent daemon run --detach`: the client's own program becomes leader of a new session and then turns into the daemon.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use openagent_core::config::{Paths, Platform};
use openagent_proto::PROTOCOL;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::error::{ClientError, Kind};
use super::{Client, within};

/// Time for a daemon that was started to answer.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Between two looks at the socket of a daemon that is starting.
const START_POLL: Duration = Duration::from_millis(20);

/// Time for a daemon that accepts connections to say how it is doing.
const STATUS_DEADLINE: Duration = Duration::from_secs(5);

/// Size at which the log of a daemon is moved aside before the next one is started.
const LOG_MAX_BYTES: u64 = 8 * 1024 * 1024;

/// How much of the log of a daemon that died is read and shown.
const LOG_TAIL_MAX_BYTES: u64 = 16 * 1024;
const LOG_TAIL_MAX_LINES: usize = 8;

/// Where the daemon is found and keeps its files, as the environment says.
pub fn paths() -> Result<Paths, ClientError> {
    // A value that is not UTF-8 cannot be meant by any of the variables that are looked at.
    Paths::resolve(|name| std::env::var(name).ok(), nix::unistd::getuid().as_raw(), Platform::CURRENT).map_err(|mistakes| {
        let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        ClientError::new(Kind::Invalid, mistakes.join("\n"), "")
    })
}

/// What to do where no daemon answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Start one.
    OnDemand,
    /// Say so.
    Never,
}

impl Client {
    /// Connects to the daemon, and starts it where nothing answers and `start` says so. Refuses a daemon of another protocol.
    pub async fn connect(paths: &Paths, start: Start) -> Result<Self, ClientError> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if UnixStream::connect(&paths.socket).await.is_err() {
                match start {
                    Start::OnDemand => start_daemon(paths).await?,
                    Start::Never => {
                        return Err(ClientError::new(Kind::Unreachable, "the daemon is not running", "start it: openagent daemon start"));
                    }
                }
            }
            let client = Self::lazy(&paths.socket);
            match client.check_protocol().await {
                Ok(()) => return Ok(client),
                // A daemon that is ending still accepts connections; the next one takes its place.
                Err(error) if error.is_disconnected() && start == Start::OnDemand && Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(START_POLL).await;
        }
    }

    /// A client of the daemon at `socket` that connects when it is first used.
    #[must_use]
    pub fn lazy(socket: &Path) -> Self {
        Self { channel: channel(socket.to_owned()), name: super::identity::name().into() }
    }

    /// Refuses a daemon that speaks another version of the protocol.
    pub async fn check_protocol(&self) -> Result<(), ClientError> {
        let request = within(openagent_proto::v1::GetStatusRequest {}, STATUS_DEADLINE);
        let status = self.daemon_service().get_status(request).await?.into_inner();
        if status.protocol == PROTOCOL {
            return Ok(());
        }
        let mut error = ClientError::new(
            Kind::Failed,
            format!("the daemon (version {}) speaks protocol {}, this client protocol {PROTOCOL}", status.version, status.protocol),
            if status.protocol < PROTOCOL {
                "replace it, sessions go on running: openagent daemon restart"
            } else {
                "use the openagent that came with this daemon, or stop the daemon: openagent daemon stop"
            },
        );
        "PROTOCOL".clone_into(&mut error.reason);
        Err(error)
    }
}

fn channel(socket: PathBuf) -> Channel {
    let connector = service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is not used: the connector knows where to go. It only names the host in requests.
    Endpoint::from_static("http://openagent.local").connect_with_connector_lazy(connector)
}

async fn start_daemon(paths: &Paths) -> Result<(), ClientError> {
    DirBuilder::new().recursive(true).mode(0o700).create(&paths.state_dir).map_err(|error| {
        let message = format!("the state folder {} cannot be made: {error}", paths.state_dir.display());
        ClientError::new(Kind::Failed, message, "make it writable, or name another one with OPENAGENT_STATE_DIR")
    })?;
    let lock = open(&paths.state_dir.join("start.lock"))?;
    let log_path = log_path(paths);
    let deadline = Instant::now() + START_DEADLINE;
    let mut started: Option<(Child, u64)> = None;
    loop {
        if UnixStream::connect(&paths.socket).await.is_ok() {
            return Ok(());
        }
        match &mut started {
            None if lock.try_lock().is_ok() => {
                // Between the look at the socket and the lock another client may have brought one up.
                if UnixStream::connect(&paths.socket).await.is_ok() {
                    return Ok(());
                }
                started = Some(spawn(&log_path)?);
            }
            None => {}
            Some((child, begin)) => {
                if let Ok(Some(status)) = child.try_wait() {
                    let said = log_tail(&log_path, *begin);
                    let message = if said.is_empty() { format!("the daemon ended at once ({status})") } else { said };
                    return Err(ClientError::new(Kind::Failed, message, format!("its log: {}", log_path.display())));
                }
            }
        }
        if Instant::now() >= deadline {
            return Err(ClientError::new(
                Kind::Deadline,
                format!("the daemon did not answer within {} seconds", START_DEADLINE.as_secs()),
                format!("its log: {}", log_path.display()),
            ));
        }
        tokio::time::sleep(START_POLL).await;
    }
}

/// Where a daemon that was started on demand writes what it says.
#[must_use]
pub(crate) fn log_path(paths: &Paths) -> PathBuf {
    paths.state_dir.join("openagentd.log")
}

fn open(path: &Path) -> Result<File, ClientError> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(|error| {
        ClientError::new(Kind::Failed, format!("{} cannot be opened: {error}", path.display()), "make the state folder writable")
    })
}

/// Starts the daemon; returns it and where its words begin in the log.
fn spawn(log_path: &Path) -> Result<(Child, u64), ClientError> {
    daemon_program()?;
    if std::fs::metadata(log_path).is_ok_and(|log| log.len() > LOG_MAX_BYTES) {
        // Only comfort is lost where this fails: the log goes on growing.
        let _ = std::fs::rename(log_path, log_path.with_extension("log.old"));
    }
    let log = open(log_path)?;
    let begin = log.metadata().map_or(0, |log| log.len());
    let not_started = |error: std::io::Error| ClientError::new(Kind::Failed, format!("the daemon cannot be started: {error}"), "");
    let errors = log.try_clone().map_err(not_started)?;
    let child = Command::new(std::env::current_exe().map_err(not_started)?)
        .args(["daemon", "run", "--detach"])
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(not_started)?;
    Ok((child, begin))
}

/// The daemon's program: next to this one, else in `PATH`.
pub fn daemon_program() -> Result<PathBuf, ClientError> {
    const NAME: &str = "openagentd";
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(NAME)));
    let in_path = std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    beside.into_iter().chain(in_path.map(|folder| folder.join(NAME))).find(|program| program.is_file()).ok_or_else(|| {
        ClientError::new(
            Kind::NotFound,
            format!("{NAME} is neither next to openagent nor in PATH"),
            "install openagentd, or start the daemon yourself",
        )
    })
}

/// Turns this process into the daemon's program; with `new_session` away from the terminal that it was started from.
/// Returns only where that failed.
#[must_use]
pub fn become_daemon(program: &Path, new_session: bool) -> ClientError {
    let mut daemon = std::process::Command::new(program);
    if new_session {
        if let Err(error) = nix::unistd::setsid() {
            return ClientError::new(Kind::Failed, format!("the daemon cannot leave its terminal: {error}"), "");
        }
        // A folder that the daemon stood in could not be unmounted.
        daemon.current_dir("/");
    }
    let error = daemon.exec();
    ClientError::new(Kind::Failed, format!("{} cannot be started: {error}", program.display()), "")
}

/// The last lines of the log from `begin` on.
fn log_tail(path: &Path, begin: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut log = File::open(path)?;
        let end = log.metadata()?.len();
        log.seek(SeekFrom::Start(begin.max(end.saturating_sub(LOG_TAIL_MAX_BYTES))))?;
        let mut bytes = Vec::new();
        log.take(LOG_TAIL_MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_TAIL_MAX_LINES)..].join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_words_of_the_daemon_that_died_are_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("openagentd.log");
        let before = "an older daemon\n";
        std::fs::write(&path, format!("{before}{}error: the store is locked\n\nhint: stop the other\n", "noise\n".repeat(20))).unwrap();
        let said = log_tail(&path, before.len() as u64);
        assert!(said.ends_with("error: the store is locked\nhint: stop the other"), "{said}");
        assert_eq!(said.lines().count(), LOG_TAIL_MAX_LINES);
        assert!(!said.contains("older"));
        assert_eq!(log_tail(&folder.path().join("absent"), 0), "");
    }

    #[tokio::test]
    async fn a_client_that_must_not_start_a_daemon_says_that_none_runs() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().map(str::to_owned);
        let paths =
            Paths::resolve(|name| (name == "HOME" || name == "XDG_RUNTIME_DIR").then(|| home.clone())?, 0, Platform::CURRENT).unwrap();
        let refused = Client::connect(&paths, Start::Never).await.unwrap_err();
        assert!(refused.is_disconnected() && refused.hint.contains("openagent daemon start"), "{refused:?}");
        assert!(!paths.state_dir.exists(), "nothing was made");
    }
}
