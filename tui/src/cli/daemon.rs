//! Starting, stopping and looking at the daemon, and printing the configuration that it would read.

use std::time::Duration;

use openagent_core::config::{CONFIG_MAX_BYTES, Config, ConfigError};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::args::{Daemon, OutputArgs};
use super::{Done, Failure, OK};
use crate::client::{Client, ClientError, Kind, Start, become_daemon, daemon_program, paths};
use crate::output::quantity::bytes;
use crate::output::text::single_line;
use crate::output::{self, Format, json, say};

/// Time for a daemon to end; it gives its calls and sessions ten seconds by default.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at the socket of a daemon that ends.
const STOP_POLL: Duration = Duration::from_millis(50);

pub(super) async fn daemon(command: Daemon, outer: OutputArgs) -> Done {
    match command {
        Daemon::Start(listing) => {
            let client = Client::connect(&paths()?, Start::OnDemand).await?;
            print_status(&client, listing.output.format(outer)).await
        }
        Daemon::Status(listing) => print_status(&running().await?, listing.output.format(outer)).await,
        Daemon::Stop => stop().await,
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

async fn stop() -> Done {
    let socket = paths()?.socket;
    if UnixStream::connect(&socket).await.is_err() {
        say("the daemon is not running");
        return Ok(OK);
    }
    match Client::lazy(&socket).shutdown(openagent_proto::v1::ShutdownSessions::Unspecified).await {
        // It may be gone before its answer is here.
        Err(error) if !error.is_disconnected() => return Err(error.into()),
        _ => {}
    }
    let deadline = Instant::now() + STOP_DEADLINE;
    while UnixStream::connect(&socket).await.is_ok() {
        if Instant::now() >= deadline {
            let message = format!("the daemon did not end within {} seconds", STOP_DEADLINE.as_secs());
            return Err(ClientError::new(Kind::Deadline, message, "see its log: openagentd.log in its state folder").into());
        }
        tokio::time::sleep(STOP_POLL).await;
    }
    Ok(OK)
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
