//! The agent's actor: the only owner of OpenCode's process, its feed and the translator.

mod reply;

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openagent_core::event::{AgentProcess, EventKind};
use openagent_core::id::ConversationId;
use openagent_core::time::Timestamp;
use openagent_proto::sidecar::{AgentStarted, ErrorCode, PermissionReply, Prompt, Prompted, QuestionReply, StartAgent};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::Condition;
use super::opencode::client::Client;
use super::opencode::config::config;
use super::opencode::feed::{self, Feed};
use super::opencode::process::{self, ProcessError, Server};
use super::opencode::translate::{Output, Translator};
use crate::control::ApiError;
use crate::journal::Journal;
use crate::model::ModelProxy;
use crate::process::exit_code;
use crate::settings::Settings;
use crate::task::{Task, Tasks};

/// Events that wait for the actor; beyond, OpenCode itself queues.
const EVENTS_MAX: usize = 1024;

/// Notices that wait for the actor; further ones wait.
const NOTICES_MAX: usize = 64;

/// First and longest pause before the agent is started again.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(500);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Exits within this time that make it given up: something is wrong that another start does not mend.
const EXITS_MAX: usize = 5;
const EXITS_WINDOW: Duration = Duration::from_secs(120);

/// Time for the event stream after the server is ready.
const FEED_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for the last events of a turn that a shutdown has ended.
const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(1);

/// The major version whose events and calls are known.
const MAJOR: &str = "1";

type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// What the handle asks.
pub(super) enum Command {
    Start { start: Box<StartAgent>, reply: Reply<AgentStarted> },
    Prompt { prompt: Prompt, reply: Reply<Prompted> },
    Abort { reply: Reply<()> },
    AnswerPermission { request: PermissionReply, reply: Reply<()> },
    AnswerQuestion { request: QuestionReply, reply: Reply<()> },
    Rename { title: String, reply: Reply<()> },
    Shutdown { grace: Duration, reply: Reply<()> },
}

/// What a call beside the actor found out.
enum Notice {
    PromptRefused,
    NotAborted,
    /// The answer did not arrive; the request still waits.
    NotAnswered(String),
    /// The request does not exist any more.
    Gone(String),
}

/// A server that accepts prompts.
struct Up {
    server: Server,
    client: Client,
    version: String,
    events: mpsc::Receiver<Feed>,
    feed: Task<()>,
}

pub(super) struct Actor {
    settings: Arc<Settings>,
    journal: Journal,
    models: ModelProxy,
    condition: watch::Sender<Condition>,
    tasks: Tasks,
    translator: Translator,
    up: Option<Up>,
    /// What was asked for last; the agent is kept running as long as there is one.
    wanted: Option<StartAgent>,
    exits: Vec<Instant>,
    restart_at: Option<Instant>,
    last_prompt_millis: u64,
    saved: BTreeMap<String, u64>,
    notices: mpsc::Sender<Notice>,
    noticed: mpsc::Receiver<Notice>,
}

/// What the actor does next.
enum Input {
    Command(Option<Command>),
    Notice(Option<Notice>),
    Event(Option<Feed>),
    Exited(i32),
    Restart,
    Tick,
}

impl Actor {
    pub(super) fn new(
        settings: Arc<Settings>,
        journal: Journal,
        models: ModelProxy,
        condition: watch::Sender<Condition>,
        tasks: Tasks,
    ) -> Self {
        let (notices, noticed) = mpsc::channel(NOTICES_MAX);
        let root = ConversationId::try_from(settings.session.to_string()).expect("a session id is a conversation id");
        Self {
            translator: Translator::new(root),
            settings,
            journal,
            models,
            condition,
            tasks,
            up: None,
            wanted: None,
            exits: Vec::new(),
            restart_at: None,
            last_prompt_millis: 0,
            saved: BTreeMap::new(),
            notices,
            noticed,
        }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.load().await;
        loop {
            match self.next(&mut commands).await {
                Input::Command(Some(command)) => self.command(command).await,
                Input::Command(None) => return,
                Input::Notice(Some(notice)) => self.notice(notice).await,
                Input::Notice(None) => {}
                Input::Event(Some(feed)) => self.event(feed).await,
                // The feed's task has panicked; its stream is gone for good.
                Input::Event(None) => self.exited(-1).await,
                Input::Exited(code) => self.exited(code).await,
                Input::Restart => self.restart().await,
                Input::Tick => self.tick().await,
            }
        }
    }

    /// Chooses; only receives and timers, so it may be dropped at any point.
    async fn next(&mut self, commands: &mut mpsc::Receiver<Command>) -> Input {
        let tick = self.translator.next_tick().map(|at| Instant::now() + Duration::from_millis(at.millis_since(now())));
        let exited_or_event = async {
            match &mut self.up {
                // Events first: what was said before the end belongs before it.
                Some(up) => tokio::select! {
                    biased;
                    feed = up.events.recv() => Input::Event(feed),
                    status = up.server.child.wait() => Input::Exited(status.map_or(-1, exit_code)),
                },
                None => std::future::pending().await,
            }
        };
        let at = |at: Option<Instant>| async move {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            command = commands.recv() => Input::Command(command),
            notice = self.noticed.recv() => Input::Notice(notice),
            input = exited_or_event => input,
            () = at(self.restart_at) => Input::Restart,
            () = at(tick) => Input::Tick,
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Start { start, reply } => {
                let started = self.start(*start).await;
                // Whoever asked may have gone; the agent runs all the same.
                let _ = reply.send(started);
            }
            Command::Prompt { prompt, reply } => self.prompt(prompt, reply),
            Command::Abort { reply } => self.abort(reply),
            Command::AnswerPermission { request, reply } => self.answer_permission(request, reply),
            Command::AnswerQuestion { request, reply } => self.answer_question(request, reply),
            Command::Rename { title, reply } => self.rename(title, reply),
            Command::Shutdown { grace, reply } => {
                self.wanted = None;
                self.restart_at = None;
                self.shut_down(grace).await;
                self.step("it was shut down");
                let _ = reply.send(Ok(()));
            }
        }
    }

    async fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::PromptRefused => self.translator.prompt_refused(),
            Notice::NotAborted => self.translator.aborting(false),
            Notice::NotAnswered(id) => self.translator.expect_answer(&id, None),
            Notice::Gone(id) => {
                let outputs = self.translator.gone(&id);
                self.tell(outputs).await;
            }
        }
    }

    async fn start(&mut self, start: StartAgent) -> Result<AgentStarted, ApiError> {
        let same = self
            .wanted
            .as_ref()
            .is_some_and(|wanted| wanted.providers == start.providers && wanted.permission_mode == start.permission_mode);
        if let Some(up) = &self.up
            && (same || self.translator.in_turn())
        {
            let version = up.version.clone();
            if same {
                self.wanted = Some(start);
            }
            return Ok(AgentStarted { version });
        }
        self.shut_down(LAST_EVENTS_TIMEOUT).await;
        self.exits.clear();
        self.restart_at = None;
        if let Some(title) = &start.title {
            self.translator.titled(title);
        }
        let version = self.come_up(&start).await.inspect_err(|_| self.step("it could not be started"))?;
        self.wanted = Some(start);
        Ok(AgentStarted { version })
    }

    /// From nothing to a server that accepts prompts.
    async fn come_up(&mut self, start: &StartAgent) -> Result<String, ApiError> {
        let endpoint = self.models.configure(&start.providers);
        let config = config(start, &self.settings.workspace, &endpoint)
            .map_err(|error| ApiError::new(ErrorCode::InvalidRequest, error.to_string()))?;
        self.step("the workspace is made ready");
        process::prepare(&self.settings).await.map_err(process_error)?;
        self.step("OpenCode is starting");
        let server = process::start(&self.settings, &config, &self.tasks).await.map_err(process_error)?;
        self.condition.send_modify(|condition| condition.running = true);
        let up = match self.meet(server, start).await {
            Ok(up) => up,
            Err(error) => {
                self.condition.send_modify(|condition| condition.running = false);
                return Err(error);
            }
        };
        let version = up.version.clone();
        self.up = Some(up);
        self.step("what happened meanwhile is read");
        self.catch_up().await;
        if self.translator.in_turn() {
            // A turn that an earlier process has left unfinished: nothing resumes it.
            let outputs = self.translator.died();
            self.tell(outputs).await;
        }
        self.record(EventKind::Agent { process: AgentProcess::Ready { version: version.clone() } }).await;
        self.condition.send_modify(|condition| condition.ready = true);
        self.step("it accepts prompts");
        Ok(version)
    }

    /// Finds out whether the server is the right one, and connects to it.
    async fn meet(&self, server: Server, start: &StartAgent) -> Result<Up, ApiError> {
        let client = Client::new(server.address.clone(), server.password.clone());
        self.step("OpenCode is checked");
        let version = client.version().await.map_err(|error| failed(&error))?;
        if version.split('.').next() != Some(MAJOR) {
            let message =
                format!("OpenCode {version} is not supported: OpenAgent needs OpenCode {MAJOR}.x; `cargo xtask setup` installs it");
            return Err(ApiError::new(ErrorCode::AgentUnavailable, message));
        }
        client.check_config().await.map_err(|error| failed(&error))?;
        let (session, directory) = (self.settings.session.as_str(), self.settings.workspace.to_string_lossy());
        client.create_session(session, &directory).await.map_err(|error| failed(&error))?;
        if let Some(title) = &start.title {
            client.rename(session, title).await.map_err(|error| failed(&error))?;
        }
        let (told, mut events) = mpsc::channel(EVENTS_MAX);
        let feed = self.tasks.spawn("agent events", feed::run(client.clone(), told));
        let connected = tokio::time::timeout(FEED_TIMEOUT, async {
            loop {
                match events.recv().await {
                    Some(Feed::Connected) => return true,
                    Some(_) => {}
                    None => return false,
                }
            }
        });
        if connected.await != Ok(true) {
            return Err(ApiError::new(ErrorCode::AgentFailed, "OpenCode's events cannot be read"));
        }
        Ok(Up { server, client, version, events, feed })
    }

    /// Closes the gap between what is known and what OpenCode has done: durable events first, then the state that it does not keep.
    async fn catch_up(&mut self) {
        let Some(client) = self.up.as_ref().map(|up| up.client.clone()) else { return };
        match client.history(self.translator.sequences()).await {
            Ok(events) => {
                for event in events {
                    let outputs = self.translator.replay(&event, now());
                    self.tell(outputs).await;
                }
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "the agent's events could not be read again");
                let reason = "the agent's events could not be read again after a break".to_owned();
                self.record(EventKind::Gap { reason }).await;
            }
        }
        self.look().await;
    }

    /// Takes over the state that OpenCode is in now.
    async fn look(&mut self) {
        let Some(client) = self.up.as_ref().map(|up| up.client.clone()) else { return };
        match client.snapshot(self.settings.session.as_str()).await {
            Ok(snapshot) => {
                let outputs = self.translator.resync(&snapshot, now());
                self.tell(outputs).await;
            }
            Err(error) => tracing::warn!(error = chain(&error), "the agent's state could not be read"),
        }
    }

    async fn tick(&mut self) {
        if self.translator.overdue(now()) {
            self.look().await;
        }
        let outputs = self.translator.tick(now());
        self.tell(outputs).await;
    }

    async fn event(&mut self, feed: Feed) {
        match feed {
            Feed::Event(payload) => {
                let outputs = self.translator.apply(&payload, now());
                self.tell(outputs).await;
            }
            Feed::Broken => self.translator.stream_broke(),
            Feed::Connected => self.catch_up().await,
        }
    }

    /// The process has ended by itself.
    async fn exited(&mut self, code: i32) {
        if let Some(mut up) = self.up.take() {
            while let Ok(feed) = up.events.try_recv() {
                if let Feed::Event(payload) = feed {
                    let outputs = self.translator.apply(&payload, now());
                    self.tell(outputs).await;
                }
            }
            self.end(up).await;
        }
        let outputs = self.translator.died();
        self.tell(outputs).await;
        self.back_off(code).await;
    }

    async fn back_off(&mut self, code: i32) {
        let now = Instant::now();
        self.exits.retain(|exit| now.duration_since(*exit) < EXITS_WINDOW);
        self.exits.push(now);
        let doublings = u32::try_from(self.exits.len() - 1).unwrap_or(u32::MAX);
        let pause = (self.wanted.is_some() && self.exits.len() < EXITS_MAX)
            .then(|| RESTART_PAUSE_MIN.saturating_mul(2_u32.saturating_pow(doublings)).min(RESTART_PAUSE_MAX));
        tracing::warn!(code, restart_in = ?pause, "the agent has ended by itself");
        self.restart_at = pause.map(|pause| now + pause);
        self.step(if pause.is_some() { "it has ended and is started again soon" } else { "it has ended too often and was given up" });
        let restart_in_millis = pause.map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        self.record(EventKind::Agent { process: AgentProcess::Exited { code, restart_in_millis } }).await;
    }

    async fn restart(&mut self) {
        self.restart_at = None;
        let Some(start) = self.wanted.clone() else { return };
        self.condition.send_modify(|condition| condition.restarts += 1);
        if let Err(error) = self.come_up(&start).await {
            tracing::error!(error = error.message, "the agent could not be started again");
            self.back_off(-1).await;
        }
    }

    /// Ends a running server in order: its work first, so that commands are killed and texts are saved, then its process.
    async fn shut_down(&mut self, grace: Duration) {
        let Some(mut up) = self.up.take() else { return };
        self.condition.send_modify(|condition| condition.ready = false);
        let deadline = Instant::now() + grace;
        let was_in_turn = self.translator.in_turn();
        if let Ok(Err(error)) = tokio::time::timeout_at(deadline, up.client.dispose()).await {
            tracing::warn!(error = chain(&error), "the agent could not be told to end its work");
        }
        let last = deadline.min(Instant::now() + LAST_EVENTS_TIMEOUT);
        while was_in_turn && self.translator.in_turn() {
            let Ok(Some(feed)) = tokio::time::timeout_at(last, up.events.recv()).await else { break };
            if let Feed::Event(payload) = feed {
                let outputs = self.translator.apply(&payload, now());
                self.tell(outputs).await;
            }
        }
        self.end(up).await;
        let outputs = self.translator.died();
        self.tell(outputs).await;
        self.save().await;
    }

    async fn end(&mut self, up: Up) {
        up.feed.abort();
        up.server.end().await;
        self.condition.send_modify(|condition| {
            condition.running = false;
            condition.ready = false;
        });
    }

    async fn tell(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Record(kind) => {
                    let at_rest = matches!(kind, EventKind::TurnEnded { .. });
                    self.record(kind).await;
                    if at_rest {
                        self.save().await;
                    }
                }
                Output::Delta(delta) => self.journal.delta(delta),
            }
        }
    }

    async fn record(&self, kind: EventKind) {
        if let Err(error) = self.journal.record(kind).await {
            tracing::error!(error = chain(&error), "an event of the agent could not be recorded");
        }
    }

    fn step(&self, step: &'static str) {
        self.condition.send_modify(|condition| condition.step = step);
    }

    /// Where the numbers of OpenCode's durable events are kept from one sidecar to the next.
    fn sequences_file(&self) -> PathBuf {
        self.settings.state_dir.join("agent-sequences.json")
    }

    async fn load(&mut self) {
        let read = tokio::fs::read(self.sequences_file()).await;
        // Without them everything is read again, which tells nothing new but harms nobody.
        if let Some(sequences) = read.ok().and_then(|bytes| serde_json::from_slice::<BTreeMap<String, u64>>(&bytes).ok()) {
            self.saved.clone_from(&sequences);
            self.translator.continue_from(sequences);
        }
    }

    async fn save(&mut self) {
        if self.saved == *self.translator.sequences() {
            return;
        }
        let sequences = self.translator.sequences().clone();
        let (file, next) = (self.sequences_file(), self.sequences_file().with_extension("new"));
        let write = async {
            tokio::fs::write(&next, serde_json::to_vec(&sequences).unwrap_or_default()).await?;
            tokio::fs::rename(&next, &file).await
        };
        match write.await {
            Ok(()) => self.saved = sequences,
            Err(error) => tracing::warn!(%error, "the place in the agent's events could not be kept"),
        }
    }
}

fn now() -> Timestamp {
    OffsetDateTime::now_utc().into()
}

/// An error with its sources, in one line.
fn chain(error: &dyn StdError) -> String {
    let sources = std::iter::successors(Some(error), |error: &&dyn StdError| (*error).source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn failed(error: &dyn StdError) -> ApiError {
    ApiError::new(ErrorCode::AgentFailed, chain(error))
}

fn process_error(error: ProcessError) -> ApiError {
    let code = match error {
        ProcessError::Missing { .. } | ProcessError::Start { .. } => ErrorCode::AgentUnavailable,
        ProcessError::Prepare(_) | ProcessError::Ended { .. } | ProcessError::Late => ErrorCode::AgentFailed,
    };
    ApiError::new(code, chain(&error))
}
