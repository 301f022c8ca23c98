//! Making, listing, stopping, resuming, removing and naming sessions.

use std::io::IsTerminal;

use openagent_core::id::SessionId;
use openagent_core::session::{Status, WorkspaceSource};

use super::args::{New, Remove, Rename, Resume, SessionOptions};
use super::progress::until_ready;
use super::{Done, Failure, OK, agreed, print_session, prompt_text, resolve, usage};
use crate::client::{Client, ClientError, Kind, NewSession, SessionView};
use crate::output::quantity::now;
use crate::output::session::{block, short_id, table};
use crate::output::text::shortened;
use crate::output::{self, Format, json, say};

/// What the options ask for; a relative folder is that of this process.
pub(super) fn new_session(options: SessionOptions) -> Result<NewSession, Failure> {
    let workspace = match options.workspace {
        None => WorkspaceSource::Empty,
        Some(path) => {
            let unusable =
                |why: String| usage(format!("the workspace {} cannot be used: {why}", path.display()), "name a folder that exists");
            let folder = std::fs::canonicalize(&path).map_err(|error| unusable(error.to_string()))?;
            if !folder.is_dir() {
                return Err(unusable("it is not a folder".into()));
            }
            let folder = folder.into_os_string().into_string().map_err(|_| unusable("its name is not UTF-8".into()))?;
            WorkspaceSource::Copy { path: folder }
        }
    };
    Ok(NewSession {
        title: options.title.unwrap_or_default(),
        workspace,
        model: options.model.unwrap_or_default(),
        agent: options.agent.unwrap_or_default(),
        permission_mode: options.permission_mode,
        memory_bytes: options.memory,
        cpu_millis: options.cpus,
        pids: options.pids,
        idle_timeout: options.idle_timeout,
        idle_action: options.idle_action,
    })
}

pub(super) async fn new(client: &Client, new: New, format: Format) -> Done {
    let prompt = match new.prompt {
        Some(prompt) => Some(prompt_text(Some(prompt)).await?),
        None => None,
    };
    let created = client.create_session(new_session(new.options)?).await?;
    let id = created.id.clone();
    if !new.no_wait {
        until_ready(client, &id, 0).await?;
    }
    if let Some(prompt) = prompt {
        client.prompt(&id, prompt, String::new(), String::new()).await?;
    }
    let session = if new.no_wait { created } else { client.session(&id).await? };
    print_session(session, format, |session| format!("{}\n", session.id))
}

/// The error of a session that failed.
pub(super) fn failed(id: &SessionId, fault: Option<openagent_core::session::Fault>) -> ClientError {
    let mut error = fault.map_or_else(|| ClientError::new(Kind::Failed, "the session failed", ""), ClientError::from);
    if error.hint.is_empty() {
        error.hint = format!("see what happened: openagent logs {}", short_id(id));
    }
    error
}

/// The error of a session that somebody stopped meanwhile.
pub(super) fn stopped(id: &SessionId) -> ClientError {
    ClientError::new(Kind::State, "the session was stopped", format!("go on with it: openagent resume {}", short_id(id)))
}

pub(super) async fn ls(client: &Client, format: Format) -> Done {
    let sessions = client.sessions().await?;
    match format {
        Format::Json => output::as_json(&sessions.into_iter().map(json::Session::from).collect::<Vec<_>>())?,
        Format::Table if sessions.is_empty() => say("There are no sessions. Make one: openagent new"),
        Format::Table => output::print(&table(&sessions, now()))?,
    }
    Ok(OK)
}

pub(super) async fn show(client: &Client, id: &str, format: Format) -> Done {
    let id = resolve::session(client, id).await?;
    print_session(client.session(&id).await?, format, |session| block(session, now()))
}

pub(super) async fn abort(client: &Client, id: &str) -> Done {
    let id = resolve::session(client, id).await?;
    client.abort(&id).await?;
    Ok(OK)
}

pub(super) async fn stop(client: &Client, ids: &[String], format: Format) -> Done {
    let mut stopped: Vec<SessionView> = Vec::new();
    for id in resolve_all(client, ids).await? {
        stopped.push(client.stop(&id).await?);
    }
    if format == Format::Json {
        let stopped: Vec<json::Session> = stopped.into_iter().map(Into::into).collect();
        match stopped.as_slice() {
            [one] => output::as_json(one)?,
            several => output::as_json(&several)?,
        }
    }
    Ok(OK)
}

pub(super) async fn resume(client: &Client, resume: Resume, format: Format) -> Done {
    let id = resolve::session(client, &resume.id).await?;
    let before = client.session(&id).await?.last_seq;
    let mut session = client.resume(&id).await?;
    let ready = session.status == Some(Status::Active) && session.step.is_empty() && session.queue_position == 0;
    if !resume.no_wait && !ready {
        until_ready(client, &id, before).await?;
        session = client.session(&id).await?;
    }
    match format {
        Format::Json => print_session(session, format, |_| String::new()),
        Format::Table => Ok(OK),
    }
}

pub(super) async fn rename(client: &Client, rename: Rename, format: Format) -> Done {
    let id = resolve::session(client, &rename.id).await?;
    let session = client.rename(&id, rename.title).await?;
    match format {
        Format::Json => print_session(session, format, |_| String::new()),
        Format::Table => Ok(OK),
    }
}

/// All of them, or an error before anything was done to the first.
async fn resolve_all(client: &Client, ids: &[String]) -> Result<Vec<SessionId>, Failure> {
    let mut resolved = Vec::new();
    for id in ids {
        resolved.push(resolve::session(client, id).await?);
    }
    resolved.dedup();
    Ok(resolved)
}

pub(super) async fn rm(client: &Client, remove: Remove) -> Done {
    let mut ids = Vec::new();
    for text in &remove.ids {
        match resolve::session(client, text).await {
            Ok(id) => ids.push(id),
            Err(Failure::Failed(error)) if remove.force && error.kind == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    ids.dedup();
    if !remove.force && std::io::stdin().is_terminal() && !ids.is_empty() && !confirmed(client, &ids).await? {
        say("Nothing was removed.");
        return Ok(crate::client::ExitCode::Error as u8);
    }
    for id in ids {
        match client.remove(&id).await {
            Err(error) if remove.force && error.kind == Kind::NotFound => {}
            removed => removed?,
        }
    }
    Ok(OK)
}

/// Asks on the terminal: a workspace that is gone does not come back.
async fn confirmed(client: &Client, ids: &[SessionId]) -> Result<bool, Failure> {
    for id in ids {
        let session = client.session(id).await?;
        say(&format!("{}  {}", short_id(id), shortened(&session.title, 60)));
    }
    Ok(agreed("Remove with workspace and history?").await)
}
