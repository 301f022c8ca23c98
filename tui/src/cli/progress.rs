//! What happens until an agent accepts prompts, told on stderr while somebody waits for it.
//!
//! Steps are told where somebody is looking; that a session waits for room is told to scripts as well, since it may take long.

use std::io::Write;

use openagent_core::event::{AgentProcess, Busy, EventKind, StepOutcome};
use openagent_core::id::SessionId;
use openagent_core::session::{Status, Step};

use super::Failure;
use super::patience::Patience;
use super::session::{failed, stopped};
use crate::client::{Client, ClientError, Kind, SessionChange, SessionView, StreamItem};
use crate::output::quantity::{ordinal, took};
use crate::output::session::short_id;
use crate::output::text::shortened;
use crate::output::{say, stderr_is_terminal};

/// Shortest step that is worth a line of its own once it is done.
const STEP_SHOWN_MILLIS: u64 = 100;

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Progress {
    place: u32,
}

impl Progress {
    /// Clears what is left on the last line of stderr.
    pub(super) fn end(&self) {
        if stderr_is_terminal() {
            // Who closed stderr does not want to be told.
            let _ = std::io::stderr().write_all(b"\r\x1b[K");
        }
    }

    /// Writes over the last line of stderr.
    fn in_place(&self, text: &str) {
        self.end();
        let _ = write!(std::io::stderr(), "  {text}");
    }

    /// Tells a provisioning step: the one that runs in place, those that took their time line by line.
    pub(super) fn event(&self, kind: &EventKind) {
        if !stderr_is_terminal() {
            return;
        }
        match kind {
            EventKind::Step { step, outcome: StepOutcome::Started } if self.place == 0 => self.in_place(&format!("{} ...", step.name())),
            EventKind::Step { step, outcome: StepOutcome::Done { millis } } => {
                self.end();
                if *millis >= STEP_SHOWN_MILLIS {
                    say(&format!("  {} ({})", step.name(), took(*millis)));
                }
            }
            EventKind::Step { step, outcome: StepOutcome::Failed { .. } } => {
                self.end();
                say(&format!("  {} failed", step.name()));
            }
            EventKind::Busy { busy: Busy::Retrying { attempt, message, .. } } => {
                say(&format!("  the model call failed ({attempt}) and will be tried again: {}", shortened(message, 200)));
            }
            EventKind::Agent { process: AgentProcess::Exited { code, cause, .. } } => {
                say(&format!("  the agent {}", cause.sentence(*code)))
            }
            _ => {}
        }
    }

    /// Tells the session's place in the queue, where it has changed.
    pub(super) fn session(&mut self, session: &SessionView) {
        if session.queue_position == self.place {
            return;
        }
        self.place = session.queue_position;
        if self.place == 0 {
            return;
        }
        let place = ordinal(self.place);
        let text = format!("waits for room: {place} in the queue (openagent stop {} takes it out)", short_id(&session.id));
        if stderr_is_terminal() { self.in_place(&text) } else { say(&text) }
    }
}

/// Waits until the agent of a session accepts prompts, which is being created or resumed behind event `after`.
pub(super) async fn until_ready(client: &Client, id: &SessionId, after: u64) -> Result<(), Failure> {
    let mut waiting = Waiting { client, id, cursor: after, climbs: after == 0, agent_begins: false, progress: Progress::default() };
    let mut patience = Patience::default();
    let end = loop {
        let before = waiting.cursor;
        let watched = tokio::select! {
            watched = waiting.watch() => watched,
            _ = tokio::signal::ctrl_c() => break Err(left(id).into()),
        };
        match watched {
            Ok(()) => break Ok(()),
            Err(error) => {
                if waiting.cursor != before {
                    patience.there();
                }
                if let Err(failure) = patience.again(error).await {
                    break Err(failure);
                }
            }
        }
    };
    waiting.progress.end();
    end
}

/// Nobody waits any more, but the session does not mind.
fn left(id: &SessionId) -> ClientError {
    let short = short_id(id);
    let hint = format!("wait for it: openagent wait {short} --until active, or end it: openagent stop {short}");
    ClientError::new(Kind::Failed, format!("interrupted; session {short} goes on being started"), hint)
}

struct Waiting<'a> {
    client: &'a Client,
    id: &'a SessionId,
    cursor: u64,
    /// An instance is being made, so that an agent is yet to come; one that only slept is there already.
    climbs: bool,
    /// The step that makes the agent ready has begun.
    agent_begins: bool,
    progress: Progress,
}

impl Waiting<'_> {
    async fn watch(&mut self) -> Result<(), ClientError> {
        let mut events = self.client.subscribe(self.id, self.cursor, true, false).await?;
        let mut sessions = self.client.watch_sessions().await?;
        loop {
            tokio::select! {
                biased;
                item = events.next() => match item? {
                    Some(StreamItem::Event(event)) if event.seq > self.cursor => {
                        self.cursor = event.seq;
                        if let Some(end) = self.event(event.kind) {
                            return end;
                        }
                    }
                    Some(_) => {}
                    None => return Err(ClientError::new(Kind::NotFound, "the session was removed while it was waited for", "")),
                },
                change = sessions.next() => match change? {
                    Some(SessionChange::Changed(session)) if session.id == *self.id => self.progress.session(&session),
                    Some(_) => {}
                    None => return Err(ClientError::new(Kind::Unreachable, "the daemon ended", "start it again: openagent daemon start")),
                },
            }
        }
    }

    fn event(&mut self, kind: EventKind) -> Option<Result<(), ClientError>> {
        self.progress.event(&kind);
        match kind {
            EventKind::Step { step: Step::Agent, outcome: StepOutcome::Done { .. } } => return Some(Ok(())),
            EventKind::Step { step, .. } => {
                self.climbs = true;
                self.agent_begins |= step == Step::Agent;
            }
            // While its step runs, the end of that is what counts, and says how long it took.
            EventKind::Agent { process: AgentProcess::Ready { .. } } if !self.agent_begins => return Some(Ok(())),
            EventKind::Session { status: Status::Active, .. } if !self.climbs => return Some(Ok(())),
            EventKind::Session { status: Status::Error, fault, .. } => return Some(Err(failed(self.id, fault))),
            EventKind::Session { status: Status::Stopped, .. } => return Some(Err(stopped(self.id))),
            _ => {}
        }
        None
    }
}
