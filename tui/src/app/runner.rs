//! Carries out effects: calls, streams that reconnect by themselves, the attached terminal. Everything comes back as an input.
//!
//! Tasks: one watch over all sessions for as long as the program runs; at most one follows the open session and at most one is attached to a
//! terminal (starting the next ends the one before); one short task a call. All end with the runner. Their inputs wait in one
//! bounded channel: when the screen does not keep up, the streams slow down, and the daemon coalesces for slow readers.

use std::path::Path;
use std::time::Duration;

use openagent_core::id::{SessionId, TerminalId};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::input::{Answer, Call, Effect, Input, Watch};
use crate::client::{Client, ClientError, Kind, StreamItem, TerminalItem};

/// Inputs that wait for the screen.
pub const INPUT_CAPACITY: usize = 1_024;

/// Typed bytes and sizes that wait for the terminal; when they are full, typing is lost and the user is told.
const ORDER_CAPACITY: usize = 256;

/// Time until a broken stream is tried again for the first time.
const BACKOFF_MIN: Duration = Duration::from_millis(250);

/// Longest time between tries.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

enum Order {
    Type(Vec<u8>),
    Resize(u16, u16),
    TakeOver,
}

/// Carries out effects.
pub struct Runner {
    client: Client,
    inputs: mpsc::Sender<Input>,
    tasks: JoinSet<()>,
    follow: Option<AbortHandle>,
    attached: Option<(AbortHandle, mpsc::Sender<Order>)>,
}

struct Backoff(Duration);

impl Backoff {
    fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(BACKOFF_MAX);
        now
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn ended() -> ClientError {
    ClientError::new(Kind::Unreachable, "the daemon ended the stream", "see how it is doing: openagent daemon status")
}

impl Runner {
    /// A runner that watches the sessions from now on.
    #[must_use]
    pub fn new(client: Client, inputs: mpsc::Sender<Input>) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(watch(client.clone(), inputs.clone()));
        Self { client, inputs, tasks, follow: None, attached: None }
    }

    /// Whether a task has panicked since the last look; finished ones are let go.
    pub fn reap(&mut self) -> bool {
        let mut panicked = false;
        while let Some(result) = self.tasks.try_join_next() {
            panicked |= result.is_err_and(|error| error.is_panic());
        }
        panicked
    }

    /// Carries out one effect; `false` for the end of the program. What could not be passed on comes back as an error to show.
    pub fn run(&mut self, effect: Effect) -> Result<bool, ClientError> {
        match effect {
            Effect::Quit => return Ok(false),
            Effect::Follow(session, after) => {
                self.unfollow();
                self.follow = Some(self.tasks.spawn(follow(self.client.clone(), self.inputs.clone(), session, after)));
            }
            Effect::Unfollow => self.unfollow(),
            Effect::Call(call) => {
                let (client, inputs) = (self.client.clone(), self.inputs.clone());
                self.tasks.spawn(async move {
                    let answer = Box::pin(carry_out(&client, call)).await;
                    // Nobody listens only while the program ends.
                    let _ = inputs.send(Input::Answer(answer)).await;
                });
            }
            Effect::Attach { session, terminal, offset, size } => {
                self.detach();
                let (orders, queued) = mpsc::channel(ORDER_CAPACITY);
                let task = attach(self.client.clone(), self.inputs.clone(), session, terminal, offset, size, queued);
                self.attached = Some((self.tasks.spawn(task), orders));
            }
            Effect::Detach => self.detach(),
            Effect::Type(bytes) => self.order(Order::Type(bytes))?,
            Effect::ResizeTerminal(columns, rows) => self.order(Order::Resize(columns, rows))?,
            Effect::TakeOver => self.order(Order::TakeOver)?,
        }
        Ok(true)
    }

    fn unfollow(&mut self) {
        if let Some(task) = self.follow.take() {
            task.abort();
        }
    }

    fn detach(&mut self) {
        if let Some((task, _)) = self.attached.take() {
            task.abort();
        }
    }

    fn order(&self, order: Order) -> Result<(), ClientError> {
        let Some((_, orders)) = &self.attached else { return Ok(()) };
        match orders.try_send(order) {
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(ClientError::new(Kind::Limit, "the terminal does not keep up; what was typed last is lost", ""))
            }
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }
}

/// Watches all sessions. Ends when nobody listens.
async fn watch(client: Client, inputs: mpsc::Sender<Input>) {
    let mut backoff = Backoff(BACKOFF_MIN);
    loop {
        let error = match client.watch_sessions().await {
            Ok(mut stream) => {
                if inputs.send(Input::Watch(Watch::Connected)).await.is_err() {
                    return;
                }
                loop {
                    match stream.next().await {
                        Ok(Some(change)) => {
                            backoff = Backoff(BACKOFF_MIN);
                            if inputs.send(Input::Watch(Watch::Item(change))).await.is_err() {
                                return;
                            }
                        }
                        Ok(None) => break ended(),
                        Err(error) => break error,
                    }
                }
            }
            Err(error) => error,
        };
        let delay = backoff.next();
        if inputs.send(Input::Watch(Watch::Lost(error, millis(delay)))).await.is_err() {
            return;
        }
        tokio::time::sleep(delay).await;
    }
}

/// Follows a session behind event `after`, across lost connections. Ends with the session.
async fn follow(client: Client, inputs: mpsc::Sender<Input>, session: SessionId, mut after: u64) {
    let mut backoff = Backoff(BACKOFF_MIN);
    let tell = async |watch| inputs.send(Input::Follow(session.clone(), watch)).await.is_ok();
    loop {
        let error = match client.subscribe(&session, after, true, true).await {
            Ok(mut stream) => {
                if !tell(Watch::Connected).await {
                    return;
                }
                loop {
                    match stream.next().await {
                        Ok(Some(item)) => {
                            backoff = Backoff(BACKOFF_MIN);
                            if let StreamItem::Event(event) = &item {
                                after = event.seq;
                            }
                            if !tell(Watch::Item(item)).await {
                                return;
                            }
                        }
                        Ok(None) => break ended(),
                        Err(error) => break error,
                    }
                }
            }
            Err(error) => error,
        };
        let delay = backoff.next();
        let told = match error.kind {
            Kind::NotFound => {
                tell(Watch::Ended(None)).await;
                return;
            }
            // The history is shorter than what was seen of it: the daemon's store is another one.
            Kind::Invalid if after > 0 => {
                after = 0;
                tell(Watch::Reset).await
            }
            _ => tell(Watch::Lost(error, millis(delay))).await,
        };
        if !told {
            return;
        }
        tokio::time::sleep(delay).await;
    }
}

/// Is attached to a terminal, across lost connections. Ends with its shell.
async fn attach(
    client: Client,
    inputs: mpsc::Sender<Input>,
    session: SessionId,
    terminal: TerminalId,
    mut offset: u64,
    mut size: (u16, u16),
    mut orders: mpsc::Receiver<Order>,
) {
    let mut backoff = Backoff(BACKOFF_MIN);
    let tell = async |watch| inputs.send(Input::Terminal(terminal.clone(), watch)).await.is_ok();
    loop {
        let error = match client.attach_terminal(&session, &terminal, offset, false, size).await {
            Ok((input, mut stream)) => {
                if !tell(Watch::Connected).await {
                    return;
                }
                // Reading never waits for writing: a shell that does not read would otherwise never be seen to say why.
                let write = async {
                    while let Some(order) = orders.recv().await {
                        let sent = match order {
                            Order::Type(bytes) => input.input(&bytes).await,
                            Order::Resize(columns, rows) => {
                                size = (columns, rows);
                                input.resize(columns, rows).await
                            }
                            Order::TakeOver => input.take_over().await,
                        };
                        if sent.is_err() {
                            break;
                        }
                    }
                    std::future::pending::<()>().await;
                };
                let read = async {
                    loop {
                        match stream.next().await {
                            Ok(Some(item)) => {
                                backoff = Backoff(BACKOFF_MIN);
                                if let TerminalItem::Output { end_offset, .. } | TerminalItem::Screen { end_offset, .. } = &item {
                                    offset = *end_offset;
                                }
                                let exited = matches!(item, TerminalItem::Exited(_));
                                if !tell(Watch::Item(item)).await || exited {
                                    return None;
                                }
                            }
                            Ok(None) => return Some(ended()),
                            Err(error) => return Some(error),
                        }
                    }
                };
                let result = tokio::select! {
                    result = read => result,
                    () = write => None,
                };
                match result {
                    Some(error) => error,
                    None => return,
                }
            }
            Err(error) => error,
        };
        if matches!(error.kind, Kind::NotFound | Kind::State | Kind::Invalid) {
            tell(Watch::Ended(Some(error))).await;
            return;
        }
        let delay = backoff.next();
        if !tell(Watch::Lost(error, millis(delay))).await {
            return;
        }
        tokio::time::sleep(delay).await;
    }
}

async fn carry_out(client: &Client, call: Call) -> Answer {
    match call {
        Call::Status => Answer::Status(client.status().await.map(Box::new)),
        Call::Providers => Answer::Providers(client.providers(false).await),
        Call::Keys => Answer::Keys(client.keys().await),
        Call::Pending => Answer::Pending(client.pending(None).await),
        Call::Usage(grouping) => Answer::Usage(grouping, client.usage(None, grouping).await),
        Call::Create(new) => Answer::Created(client.create_session(new).await.map(Box::new)),
        Call::Prompt { session, ticket, text } => {
            let result = client.prompt(&session, text, String::new(), String::new()).await;
            Answer::Prompted { session, ticket, result }
        }
        Call::Abort(id) => Answer::Aborted(client.abort(&id).await),
        Call::Stop(id) => Answer::Changed("stopped", client.stop(&id).await.map(Box::new)),
        Call::Resume(id) => Answer::Changed("resuming", client.resume(&id).await.map(Box::new)),
        Call::Rename(id, title) => Answer::Changed("renamed", client.rename(&id, title).await.map(Box::new)),
        Call::Remove(id) => {
            let result = client.remove(&id).await;
            Answer::Removed(id, result)
        }
        Call::Export(id, path) => {
            let result = export(client, &id, Path::new(&path)).await;
            Answer::Exported(path, result)
        }
        Call::AnswerPermission { session, request, response, reason } => {
            let result = client.answer_permission(&session, &request, response, reason).await;
            Answer::Replied(request, result)
        }
        Call::AnswerQuestion { session, request, answers } => {
            let result = client.answer_question(&session, &request, answers).await;
            Answer::Replied(request, result)
        }
        Call::SetKey(provider, secret) => {
            let result = client.set_key(&provider, &secret).await;
            Answer::KeySet(provider, result)
        }
        Call::RemoveKey(provider) => {
            let result = client.remove_key(&provider).await;
            Answer::KeyRemoved(provider, result)
        }
        Call::Terminals(id) => {
            let result = client.terminals(&id).await;
            Answer::Terminals(id, result)
        }
        Call::OpenTerminal(id, (columns, rows)) => {
            let result = client.open_terminal(&id, columns, rows, String::new()).await;
            Answer::TerminalOpened(id, result)
        }
        Call::CloseTerminal(session, terminal) => Answer::TerminalClosed(client.close_terminal(&session, &terminal).await),
    }
}

/// Writes a session's archive to `path`, which must not exist. It appears whole or not at all.
async fn export(client: &Client, id: &SessionId, path: &Path) -> Result<u64, ClientError> {
    let failed = |step: &str, error: &std::io::Error| {
        ClientError::new(Kind::Failed, format!("cannot {step} {}: {error}", path.display()), "choose another file")
    };
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    // The name is taken first, so that nothing is fetched in vain and nobody's file is replaced.
    tokio::fs::OpenOptions::new().write(true).create_new(true).open(path).await.map_err(|error| failed("create", &error))?;
    let written = async {
        let mut file = tokio::fs::File::create(part).await.map_err(|error| failed("write", &error))?;
        let mut stream = client.export(id).await?;
        let mut bytes = 0;
        while let Some(chunk) = stream.next().await? {
            file.write_all(&chunk).await.map_err(|error| failed("write", &error))?;
            bytes += chunk.len() as u64;
        }
        file.sync_all().await.map_err(|error| failed("write", &error))?;
        tokio::fs::rename(part, path).await.map_err(|error| failed("write", &error))?;
        Ok(bytes)
    };
    let result = written.await;
    if result.is_err() {
        // The failure above is what the user needs to hear; leftovers are empty or marked as parts.
        let _ = tokio::fs::remove_file(part).await;
        let _ = tokio::fs::remove_file(path).await;
    }
    result
}
