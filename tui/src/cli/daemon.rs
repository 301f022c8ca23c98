//! Starting, stopping and looking at the daemon, and printing the configuration that it would read.

use std::path::Path;
use std::time::Duration;

use openagent_core::config::{CONFIG_MAX_BYTES, Config, ConfigError};
use openagent_proto::v1::ShutdownSessions;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::args::{Daemon, OutputArgs, StopDaemon};
use super::{Done, Failure, OK, store};
use crate::client::{Client, ClientError, Kind, Start, become_daemon, daemon_program, paths};
use crate::output::quantity::bytes;
use crate::output::text::single_line;
use crate::output::{self, Format, json, say, stderr_is_terminal};

/// Time for a daemon to end; it gives its calls ten seconds by default.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// Time for a daemon to end that may stop its sessions first.
const STOP_SESSIONS_DEADLINE: Duration = Duration::from_secs(360);

/// Between two looks at the socket of a daemon that ends.
const STOP_POLL: Duration = Duration::from_millis(50);

pub(super) async fn daemon(command: Daemon, outer: OutputArgs) -> Done {
    match command {
        Daemon::Start(listing) => {
            let client = Client::connect(&paths()?, Start::OnDemand).await?;
            print_status(&client, listing.output.format(outer)).await
        }
        Daemon::Status(listing) => print_status(&running().await?, listing.output.format(outer)).await,
        Daemon::Stop(how) => stop(how).await,
        Daemon::Restart(listing) => restart(listing.output.format(outer)).await,
        Daemon::Backup(backup) => store::backup(backup).await,
        Daemon::Verify(verify) => store::verify(verify, outer).await,
        Daemon::Restore(restore) => store::restore(restore).await,
        Daemon::Run { detach } => Err(become_daemon(&daemon_program()?, detach).into()),
    }
}

/// The daemon that runs, of whatever protocol: it can be looked at and stopped all the same.
async fn running() -> Result<Client, Failure> {
    let socket = paths()?.socket;
    if UnixStream::connect(&socket).await.is_err() {
        return Err(ClientError::new(Kind::Unreachable, "the daemon is not running", "start it: openagent daemon start").into());
    }
    Ok(Client::lazy(&socket))
}

async fn stop(how: StopDaemon) -> Done {
    let socket = paths()?.socket;
    if UnixStream::connect(&socket).await.is_err() {
        say("the daemon is not running");
        return Ok(OK);
    }
    let client = Client::lazy(&socket);
    let sessions = match (how.keep_sessions, how.stop_sessions) {
        (true, _) => ShutdownSessions::Keep,
        (_, true) => ShutdownSessions::Stop,
        (false, false) => ShutdownSessions::Unspecified,
    };
    let pid = client.status().await.map_or(0, |status| status.pid);
    end(&client, &socket, sessions, pid).await?;
    Ok(OK)
}

/// Ends the running daemon with its process, and starts the one that is installed.
async fn restart(format: Format) -> Done {
    // Nothing is ended where nothing can be started.
    daemon_program()?;
    let paths = paths()?;
    let mut before = None;
    if UnixStream::connect(&paths.socket).await.is_ok() {
        let client = Client::lazy(&paths.socket);
        let status = client.status().await?;
        if stderr_is_terminal() {
            say(&format!("openagentd {} ends; sessions go on running ...", single_line(&status.version)));
        }
        end(&client, &paths.socket, ShutdownSessions::Keep, status.pid).await?;
        before = Some(json::Program::from(&status));
    }
    let status = Client::connect(&paths, Start::OnDemand).await?.status().await?;
    let restarted = json::Restarted { before, after: json::Program::from(&status) };
    match format {
        Format::Json => output::as_json(&restarted)?,
        Format::Table => {
            let program = |program: &json::Program| format!("openagentd {} (process {})", single_line(&program.version), program.pid);
            let before = restarted.before.as_ref().map_or_else(|| "none ran".to_owned(), program);
            output::print(&format!("{:<10} {before}\n{:<10} {}\n", "before", "now", program(&restarted.after)))?;
        }
    }
    Ok(OK)
}

/// Ends the daemon, and waits until nothing answers at its socket and its process is gone, so that another one finds the store free.
async fn end(client: &Client, socket: &Path, sessions: ShutdownSessions, pid: i64) -> Result<(), Failure> {
    match client.shutdown(sessions).await {
        // It may be gone before its answer is here.
        Err(error) if !error.is_disconnected() => return Err(error.into()),
        _ => {}
    }
    let within = if sessions == ShutdownSessions::Keep { STOP_DEADLINE } else { STOP_SESSIONS_DEADLINE };
    let deadline = Instant::now() + within;
    while UnixStream::connect(socket).await.is_ok() || is_running(pid) {
        if Instant::now() >= deadline {
            let message = format!("the daemon did not end within {} seconds", within.as_secs());
            return Err(ClientError::new(Kind::Deadline, message, "see its log: openagentd.log in its state folder").into());
        }
        tokio::time::sleep(STOP_POLL).await;
    }
    Ok(())
}

/// Whether a process is there and not only its exit code, which nobody may ever fetch.
fn is_running(pid: i64) -> bool {
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1) else { return false };
    if nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_err() {
        return false;
    }
    // The name before the state is the program's choice, and may hold anything but ends with a bracket.
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    !state.as_deref().and_then(|stat| stat.rsplit_once(')')).is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

async fn print_status(client: &Client, format: Format) -> Done {
    let status: json::Daemon = client.status().await?.into();
    match format {
        Format::Json => output::as_json(&status)?,
        Format::Table => output::print(&block(&status))?,
    }
    Ok(OK)
}

fn block(status: &json::Daemon) -> String {
    let engine = if status.driver_healthy { single_line(&status.driver_detail) } else { "not healthy".into() };
    let protocol =
        if status.protocol == status.client_protocol { String::new() } else { format!(" (this client speaks {})", status.client_protocol) };
    let mut lines = vec![
        ("version", single_line(&status.version)),
        ("protocol", format!("{}{protocol}", status.protocol)),
        ("process", status.pid.to_string()),
        ("started", status.started_at.clone().unwrap_or_default()),
        ("sessions", sessions(status)),
        ("reserved", reserved(status)),
        ("warm", format!("{} of {} ready", status.warm_ready, status.warm_wanted)),
        ("memory", bytes(status.memory_bytes)),
        ("driver", format!("{} ({engine})", single_line(&status.driver))),
        ("socket", single_line(&status.socket)),
        ("state", single_line(&status.state_directory)),
    ];
    if let Some(writable) = status.store_writable {
        lines.push(("store", if writable { "takes writes".into() } else { "read-only".into() }));
    }
    for fault in [&status.store_fault, &status.driver_fault].into_iter().flatten() {
        lines.push(("error", single_line(&fault.message)));
        if !fault.hint.is_empty() {
            lines.push(("hint", single_line(&fault.hint)));
        }
    }
    if !status.isolation_warning.is_empty() {
        lines.push(("warning", single_line(&status.isolation_warning)));
    }
    lines.into_iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect()
}

fn sessions(status: &json::Daemon) -> String {
    let most = if status.max_running > 0 { format!(" of at most {}", status.max_running) } else { String::new() };
    let queued = if status.queued > 0 { format!(", {} queued", status.queued) } else { String::new() };
    format!("{} ({} running{most}{queued})", status.sessions, status.running)
}

fn reserved(status: &json::Daemon) -> String {
    let budget = if status.memory_budget_bytes > 0 { format!(" of {}", bytes(status.memory_budget_bytes)) } else { String::new() };
    format!("{}{budget} of memory for sessions that run", bytes(status.memory_reserved_bytes))
}

/// Prints the configuration as the daemon would read it now: the file and the environment on top of the defaults.
pub(super) fn print_config() -> Done {
    let path = paths()?.config_file;
    let place = single_line(&path.display().to_string());
    let text = match std::fs::metadata(&path) {
        Ok(file) if file.len() > CONFIG_MAX_BYTES as u64 => {
            return Err(ClientError::new(Kind::Invalid, format!("{place} is longer than 1 MiB"), "shorten it, or move it away").into());
        }
        _ => match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(ClientError::new(
                    Kind::Failed,
                    format!("{place} cannot be read: {error}"),
                    "make it readable, or move it away",
                )
                .into());
            }
        },
    };
    let origin = if text.is_some() { "read from" } else { "defaults; there is no" };
    let mistakes = |mistakes: Vec<ConfigError>| {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        let message = format!("mistakes in the configuration ({place}):\n{}", lines.join("\n"));
        ClientError::new(Kind::Invalid, message, "mend every line above")
    };
    let mut config = Config::parse(text.as_deref().unwrap_or_default()).map_err(mistakes)?;
    config.overlay(|name| std::env::var(name).ok()).map_err(mistakes)?;
    output::print(&format!("# {origin} {place}\n{}", config.to_toml()))?;
    Ok(OK)
}
