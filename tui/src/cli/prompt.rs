//! Giving prompts, and waiting for what comes of them: `prompt` and `run`.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use openagent_core::event::TurnOutcome;
use openagent_core::id::{RequestId, SessionId};
use openagent_core::permission::PermissionResponse;
use openagent_core::session::Status;
use tokio::time::Instant;

use super::allow::Allow;
use super::args::{Prompt, Run, TurnOptions};
use super::patience::Patience;
use super::progress::Progress;
use super::session::{failed, new_session, stopped};
use super::turn::{News, Turn};
use super::{Done, Failure, OK, prompt_text, report, resolve, usage};
use crate::client::{Client, ClientError, EventStream, ExitCode, Kind, Pending, PendingRequest, SessionChange, StreamItem};
use crate::output::session::{pending as pending_text, short_id};
use crate::output::text::visible;
use crate::output::{self, Format, json, say, stderr_is_terminal, stdout_is_terminal};

/// Time for a remembered answer, or somebody else, to answer what no `--allow` fits, before the turn counts as blocked.
const BLOCK_GRACE: Duration = Duration::from_millis(300);

/// What stands for no deadline.
const NEVER: Duration = Duration::from_secs(365 * 86_400);

pub(super) async fn prompt(client: &Client, prompt: Prompt, format: Format) -> Done {
    if !prompt.wait && (!prompt.turn.allow.is_empty() || prompt.turn.timeout.is_some()) {
        return Err(usage("--allow and --timeout need --wait", ""));
    }
    let text = prompt_text(prompt.text).await?;
    let id = resolve::session(client, &prompt.id).await?;
    let (model, agent) = (prompt.model.unwrap_or_default(), prompt.agent.unwrap_or_default());
    if prompt.wait {
        let after = client.session(&id).await?.last_seq;
        let giving = client.prompt(&id, text, model, agent);
        return follow(client, &id, after, giving, &prompt.turn, format).await?.print(client, format, false).await;
    }
    let message = client.prompt(&id, text, model, agent).await?;
    if format == Format::Json {
        output::as_json(&serde_json::json!({ "session_id": id, "message_id": message }))?;
    }
    Ok(OK)
}

pub(super) async fn run(client: &Client, run: Run, format: Format) -> Done {
    let text = prompt_text(Some(run.prompt)).await?;
    let session = client.create_session(new_session(run.options)?).await?;
    let id = session.id;
    if stderr_is_terminal() {
        say(&format!("session {}", short_id(&id)));
    }
    let giving = client.prompt(&id, text, String::new(), String::new());
    let end = follow(client, &id, 0, giving, &run.turn, format).await?;
    // A session that waits for an answer is what the user needs next.
    let remove = run.rm && !matches!(end.how, How::Blocked(_));
    if remove {
        let code = end.print(client, format, true).await;
        client.remove(&id).await?;
        return code;
    }
    end.print(client, format, false).await
}

/// How a turn came to its end, or why it is no longer waited for.
#[derive(Debug)]
enum How {
    Ended(TurnOutcome),
    Blocked(Vec<Pending>),
    Interrupted,
    TimedOut(Duration),
    Failed(ClientError),
}

#[derive(Debug)]
struct End {
    id: SessionId,
    how: How,
    text: String,
    /// The text was printed as it came.
    streamed: bool,
    error: Option<ClientError>,
}

/// Gives the prompt and follows the session behind event `after` until the turn has ended or cannot go on.
async fn follow(
    client: &Client,
    id: &SessionId,
    after: u64,
    giving: impl Future<Output = Result<String, ClientError>>,
    options: &TurnOptions,
    format: Format,
) -> Result<End, Failure> {
    let conversation = id.as_str().parse().map_err(|_| ClientError::malformed("the session's id"))?;
    let mut follower = Follower {
        client,
        id,
        after,
        turn: Turn::new(conversation),
        allow: &options.allow,
        stream: stdout_is_terminal() && format == Format::Table,
        open_line: false,
        unanswered: Vec::new(),
        progress: Progress::default(),
    };
    let how = follower.until_end(giving, options.timeout).await?;
    if follower.open_line {
        output::line("")?;
    }
    follower.progress.end();
    let streamed = follower.stream && follower.turn.outcome().is_some();
    Ok(End { id: id.clone(), how, text: follower.turn.answer(), streamed, error: follower.turn.error().cloned() })
}

struct Follower<'a> {
    client: &'a Client,
    id: &'a SessionId,
    /// The last event that was taken into account.
    after: u64,
    turn: Turn,
    allow: &'a [Allow],
    stream: bool,
    /// The last letters that were printed did not end a line.
    open_line: bool,
    /// What was asked and no rule allows.
    unanswered: Vec<RequestId>,
    progress: Progress,
}

impl Follower<'_> {
    /// Reads on behind the last event, as soon as there is a daemon again where there was none for a moment.
    async fn subscribe(&self, patience: &mut Patience) -> Result<EventStream, Failure> {
        loop {
            match self.client.subscribe(self.id, self.after, true, true).await {
                Ok(events) => return Ok(events),
                Err(error) => patience.again(error).await?,
            }
        }
    }

    async fn until_end(
        &mut self,
        giving: impl Future<Output = Result<String, ClientError>>,
        timeout: Option<Duration>,
    ) -> Result<How, Failure> {
        let mut patience = Patience::default();
        let mut events = self.client.subscribe(self.id, self.after, true, true).await?;
        let mut sessions = self.client.watch_sessions().await?;
        let mut giving = pin!(giving);
        let (mut given, mut watching) = (false, true);
        let mut deadline = pin!(tokio::time::sleep(timeout.unwrap_or(NEVER)));
        let mut block = pin!(tokio::time::sleep(NEVER));
        loop {
            if let Some(outcome) = self.turn.outcome() {
                return Ok(How::Ended(outcome.clone()));
            }
            tokio::select! {
                // An end that has come counts before a deadline that comes at the same time.
                biased;
                item = events.next() => {
                    let item = match item {
                        Ok(Some(item)) => item,
                        Ok(None) => return Ok(How::Failed(ClientError::new(Kind::NotFound, "the session was removed", ""))),
                        // The turn goes on without the daemon, and is gone on with where it was left.
                        Err(error) => {
                            patience.again(error).await?;
                            events = self.subscribe(&mut patience).await?;
                            continue;
                        }
                    };
                    patience.there();
                    if let Some(how) = self.item(item).await? {
                        return Ok(how);
                    }
                    if self.unanswered.is_empty() {
                        block.as_mut().reset(Instant::now() + NEVER);
                    } else {
                        block.as_mut().reset(Instant::now() + BLOCK_GRACE);
                    }
                }
                accepted = &mut giving, if !given => {
                    given = true;
                    match accepted {
                        Ok(message) => {
                            let message = message.parse().map_err(|_| ClientError::malformed("the message's id"))?;
                            self.turn.accepted(Some(message));
                        }
                        Err(mut error) if error.is_disconnected() => {
                            error.hint = format!("see whether the prompt has arrived: openagent logs {}", short_id(self.id));
                            return Ok(How::Failed(error));
                        }
                        // A session that could not be made says in its events why, and better than the prompt that waited for it.
                        Err(error) => return Ok(How::Failed(self.cause_of(error).await)),
                    }
                }
                // A prompt waits as long as its session waits for room.
                change = sessions.next(), if watching && !given => match change {
                    Ok(Some(SessionChange::Changed(session))) if session.id == *self.id => self.progress.session(&session),
                    Ok(Some(_)) => {}
                    // What the place in the queue is, is not worth failing for.
                    Ok(None) | Err(_) => watching = false,
                },
                () = &mut block, if !self.unanswered.is_empty() => {
                    match self.client.pending(Some(self.id)).await {
                        Ok(waiting) if !waiting.is_empty() => return Ok(How::Blocked(waiting)),
                        Ok(_) => self.unanswered.clear(),
                        Err(error) if error.is_disconnected() => block.as_mut().reset(Instant::now() + BLOCK_GRACE),
                        Err(error) => return Err(error.into()),
                    }
                }
                _ = tokio::signal::ctrl_c() => return Ok(How::Interrupted),
                () = &mut deadline => return Ok(How::TimedOut(timeout.unwrap_or(NEVER))),
            }
        }
    }

    async fn cause_of(&self, error: ClientError) -> ClientError {
        match self.client.session(self.id).await {
            Ok(session) if session.status == Some(Status::Error) && session.fault.is_some() => failed(self.id, session.fault),
            _ => error,
        }
    }

    async fn item(&mut self, item: StreamItem) -> Result<Option<How>, Failure> {
        let news = match item {
            // A snapshot repeats what was taken into account.
            StreamItem::Event(event) if event.seq <= self.after => None,
            StreamItem::Event(event) => {
                self.after = event.seq;
                self.progress.event(&event.kind);
                self.turn.event(event.kind)
            }
            StreamItem::Delta(delta) => self.turn.delta(delta),
            StreamItem::Snapshot(_) | StreamItem::CaughtUp(_) => None,
        };
        match news {
            Some(News::Letters { text, new_part }) if self.stream => {
                if new_part && self.open_line {
                    output::print("\n\n")?;
                }
                output::print(&visible(&text))?;
                self.open_line = !text.ends_with('\n');
            }
            Some(News::Tool(line)) if self.stream && stderr_is_terminal() => {
                if std::mem::take(&mut self.open_line) {
                    output::line("")?;
                }
                say(&line);
            }
            Some(News::Permission(request)) => {
                if self.allow.iter().any(|rule| rule.fits(&request)) {
                    self.allow_once(&request.id).await?;
                } else {
                    self.unanswered.push(request.id);
                }
            }
            Some(News::Question(request)) => self.unanswered.push(request.id),
            Some(News::Answered(id)) => self.unanswered.retain(|waiting| *waiting != id),
            Some(News::Gone(Status::Error, fault)) => return Ok(Some(How::Failed(failed(self.id, fault)))),
            Some(News::Gone(..)) => return Ok(Some(How::Failed(stopped(self.id)))),
            Some(News::Letters { .. } | News::Tool(_)) | None => {}
        }
        Ok(None)
    }

    async fn allow_once(&self, request: &RequestId) -> Result<(), Failure> {
        let mut patience = Patience::default();
        loop {
            match self.client.answer_permission(self.id, request, PermissionResponse::Once, String::new()).await {
                // Whether it arrived or not, it can be given again: the first one counts.
                Err(error) if error.is_disconnected() => patience.again(error).await?,
                // Somebody else was faster, or the agent no longer asks: either way nothing waits.
                Err(error) if !matches!(error.kind, Kind::Conflict | Kind::NotFound) => return Err(error.into()),
                _ => return Ok(()),
            }
        }
    }
}

impl End {
    /// Prints what came of the turn; the exit code tells the same.
    async fn print(self, client: &Client, format: Format, removed: bool) -> Done {
        let short = short_id(&self.id).to_owned();
        let keep = |hint: String| if removed { String::new() } else { hint };
        let mut waiting = Vec::new();
        let (outcome, error) = match self.how {
            How::Ended(TurnOutcome::Completed) => ("completed", None),
            How::Ended(TurnOutcome::Aborted) => ("aborted", Some(ClientError::new(Kind::Failed, "the turn was aborted", ""))),
            How::Ended(TurnOutcome::Failed { message }) => {
                let told = self.error.unwrap_or_else(|| ClientError::new(Kind::Failed, message, ""));
                ("failed", Some(told))
            }
            How::Ended(TurnOutcome::Interrupted) => {
                let hint = keep(format!("see what happened: openagent logs {short}"));
                ("interrupted", Some(ClientError::new(Kind::Failed, "the agent's process ended during the turn", hint)))
            }
            How::Blocked(pending) => {
                let what = pending.first().map_or(String::new(), |first| match &first.request {
                    PendingRequest::Permission(request) => format!("permission: {}", request.permission),
                    PendingRequest::Question(_) => "an answer".into(),
                });
                waiting = pending;
                let hint = format!("answer, then wait: openagent wait {short}");
                ("blocked", Some(ClientError::new(Kind::Blocked, format!("the agent of session {short} asks for {what}"), hint)))
            }
            How::Interrupted => {
                // The turn must not go on unseen; where that fails the user is told how to end it.
                let hint = match client.abort(&self.id).await {
                    Ok(()) => keep(format!("go on with it: openagent prompt {short} TEXT")),
                    Err(_) => format!("it could not be told so; end it: openagent abort {short}"),
                };
                ("aborted", Some(ClientError::new(Kind::Failed, format!("interrupted; the turn of session {short} was ended"), hint)))
            }
            How::TimedOut(after) => {
                let message = format!("the turn did not end within {} seconds", after.as_secs_f32());
                let hint = keep(format!("it goes on: openagent wait {short}, or end it: openagent abort {short}"));
                ("timeout", Some(ClientError::new(Kind::Deadline, message, hint)))
            }
            How::Failed(error) => ("failed", Some(error)),
        };
        let code = error.as_ref().map_or(ExitCode::Ok, ClientError::exit_code) as u8;
        match format {
            Format::Json => {
                let usage = client.session(&self.id).await.map(|session| session.usage).unwrap_or_default();
                output::as_json(&json::Turn {
                    session_id: self.id.to_string(),
                    outcome,
                    text: self.text,
                    usage: usage.into(),
                    error: error.map(|error| json::Problem { code: error.reason, message: error.message, hint: error.hint }),
                    pending: waiting.into_iter().map(Into::into).collect(),
                    removed,
                })?;
            }
            Format::Table => {
                if !self.streamed && outcome == "completed" && !self.text.is_empty() {
                    // A program gets the text as it is; only a terminal obeys control characters.
                    if stdout_is_terminal() { output::line(&visible(&self.text))? } else { output::line(&self.text)? }
                }
                for pending in &waiting {
                    say(&pending_text(pending));
                }
                if let Some(error) = error {
                    report(&error);
                }
            }
        }
        Ok(code)
    }
}
