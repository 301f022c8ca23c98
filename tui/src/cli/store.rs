//! Care of the daemon's store: copies of it, looking through it, and putting a copy in its place.
//!
//! While a daemon runs it does the work itself. Without one its program does, as `openagentd verify` and `openagentd restore`.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::Instant;

use super::args::{Backup, OutputArgs, Restore, Verify};
use super::partial::{Partial, exists};
use super::{Done, Failure, OK, agreed, connect, usage};
use crate::client::{BackupStream, Client, ClientError, ExitCode, Kind, daemon_program, paths};
use crate::output::quantity::bytes;
use crate::output::text::single_line;
use crate::output::{self, Format, json, say, stderr_is_terminal};

/// Between two words about how far a backup is.
const TOLD_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn backup(backup: Backup) -> Done {
    if backup.file.as_os_str() == "-" {
        if std::io::stdout().is_terminal() {
            return Err(usage("a backup is not written to a terminal", "name a file: openagent daemon backup FILE"));
        }
        let mut copy = connect().await?.backup().await?;
        while let Some(chunk) = copy.next().await? {
            std::io::stdout().lock().write_all(&chunk)?;
        }
        std::io::stdout().flush()?;
        return Ok(OK);
    }
    if !backup.force && backup.file.symlink_metadata().is_ok() {
        return Err(exists(&backup.file));
    }
    let mut copy = connect().await?.backup().await?;
    let mut partial = Partial::create(&backup.file)?;
    let received = tokio::select! {
        received = receive(&mut copy, &mut partial) => received,
        _ = tokio::signal::ctrl_c() => Err(ClientError::new(Kind::Failed, "interrupted; nothing was saved", "").into()),
    };
    told_so_far("");
    let size = received?;
    partial.finish(&backup.file, backup.force)?;
    say(&format!("{} ({}); keep it as safe as the store: it holds what was said in all sessions", backup.file.display(), bytes(size)));
    Ok(OK)
}

async fn receive(copy: &mut BackupStream, partial: &mut Partial) -> Result<u64, Failure> {
    let mut size = 0;
    let mut told_at = Instant::now();
    while let Some(chunk) = copy.next().await? {
        partial.write(&chunk)?;
        size += chunk.len() as u64;
        if told_at.elapsed() > TOLD_EVERY {
            told_so_far(&bytes(size));
            told_at = Instant::now();
        }
    }
    Ok(size)
}

/// Writes over the last line of stderr, where somebody is looking.
fn told_so_far(text: &str) {
    if stderr_is_terminal() {
        // Who closed stderr does not want to be told.
        let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
    }
}

pub(super) async fn verify(verify: Verify, outer: OutputArgs) -> Done {
    let format = verify.output.format(outer);
    let socket = paths()?.socket;
    let runs = UnixStream::connect(&socket).await.is_ok();
    if let Some(file) = verify.file {
        return offline("verify", [readable(&file)?.into()], format).await;
    }
    if !runs {
        return offline("verify", [], format).await;
    }
    let report: json::Verified = Client::lazy(&socket).verify().await?.into();
    match format {
        Format::Json => output::as_json(&report)?,
        Format::Table => output::print(&block(&report))?,
    }
    if report.sound {
        return Ok(OK);
    }
    let message = if report.problem_count == 1 {
        "the store has a problem".to_owned()
    } else {
        format!("the store has {} problems", report.problem_count)
    };
    Err(ClientError::new(Kind::Failed, message, "restore a backup: openagent daemon stop && openagent daemon restore FILE").into())
}

fn block(report: &json::Verified) -> String {
    let opened = format!("{} opened, {} not", report.opened, report.unopened);
    let mut lines = vec![
        ("format", report.format.to_string()),
        ("sessions", report.sessions.to_string()),
        ("events", report.events.to_string()),
        ("records", report.records.to_string()),
        ("encrypted", opened),
        ("state", if report.sound { "sound".into() } else { "damaged".into() }),
    ];
    lines.extend(report.problems.iter().map(|problem| ("problem", single_line(problem))));
    lines.into_iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect()
}

pub(super) async fn restore(restore: Restore) -> Done {
    let paths = paths()?;
    let file = readable(&restore.file)?;
    if UnixStream::connect(&paths.socket).await.is_ok() {
        let hint = "end it first, sessions go on running: openagent daemon stop";
        return Err(ClientError::new(Kind::State, "a store is not restored under a daemon that runs", hint).into());
    }
    if !restore.yes && std::io::stdin().is_terminal() {
        say(&format!("{} takes the place of the store in {}.", file.display(), paths.state_dir.display()));
        say("What happened since it was made is not in it. The store that is there is kept beside it.");
        if !agreed("Restore it?").await {
            say("Nothing was changed.");
            return Ok(ExitCode::Error as u8);
        }
    }
    let keys = restore.without_keys.then(|| OsString::from("--without-keys"));
    offline("restore", std::iter::once(file.into()).chain(keys), Format::Table).await
}

/// A file that can be read; what is wrong with it is said here rather than by a program that nobody called.
fn readable(file: &Path) -> Result<PathBuf, Failure> {
    match std::fs::File::open(file).and_then(|open| open.metadata()) {
        Ok(found) if found.is_file() => Ok(file.to_owned()),
        Ok(_) => Err(usage(format!("{} is not a file", file.display()), "name a file that openagent daemon backup made")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(ClientError::new(
            Kind::NotFound,
            format!("there is no file {}", file.display()),
            "name one that openagent daemon backup made",
        )
        .into()),
        Err(error) => Err(ClientError::new(Kind::Failed, format!("{} cannot be read: {error}", file.display()), "").into()),
    }
}

/// Has the daemon's program do it, which says on stdout and stderr what came of it.
async fn offline(command: &str, arguments: impl IntoIterator<Item = OsString>, format: Format) -> Done {
    if format == Format::Json {
        return Err(usage("without a daemon this is told to people only", "leave out -o json"));
    }
    let program = daemon_program()?;
    let ended = tokio::process::Command::new(&program).arg(command).arg("--").args(arguments).status().await;
    let ended = ended.map_err(|error| ClientError::new(Kind::Failed, format!("{} cannot be started: {error}", program.display()), ""))?;
    Ok(ended.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(ExitCode::Error as u8))
}
