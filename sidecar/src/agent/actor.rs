//! The agent's actor: the only owner of OpenCode's process, its feed and the translator.

mod reply;
mod rise;
mod told;
mod waiting;

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openagent_core::event::{AgentExit, AgentProcess, EventKind, Part, PartBody, ToolState};
use openagent_core::id::ConversationId;
use openagent_core::time::Timestamp;
use openagent_proto::sidecar::{AgentStarted, ErrorCode, PermissionReply, Prompt, Prompted, QuestionReply, StartAgent};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use self::rise::{Missed, Rise, Risen, Warm};
use self::told::Told;
use self::waiting::Waiting;
use super::Condition;
use super::opencode::client::Client;
use super::opencode::feed::Feed;
use super::opencode::process::{self, ProcessError, Server};
use super::opencode::translate::{Output, Translator};
use crate::control::ApiError;
use crate::journal::Journal;
use crate::model::ModelProxy;
use crate::process::exit_code;
use crate::process::memory::OomKills;
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

/// Exit code of a process that SIGKILL ended.
const KILLED: i32 = 128 + 9;

/// Under these names numbers in the journal are kept beside those of conversations: behind which it is read again, and its last.
const JOURNAL: &str = "journal";
const JOURNAL_LAST: &str = "journal-last";

/// Time for the last events of a turn that a shutdown has ended.
const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(1);

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
    /// What may have been missed is being read; events wait until it is known.
    reading: Option<Job<Box<Missed>>>,
}

/// Work beside the actor. Dropped, it is given up.
struct Job<T>(Task<T>);

impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A start that is under way.
struct Rising {
    start: StartAgent,
    job: Job<Result<Risen, ApiError>>,
    /// Those who wait for it; none when it was not asked for but is due.
    replies: Vec<Reply<AgentStarted>>,
    /// Given meanwhile.
    title: Option<String>,
    /// The process had ended by itself before.
    again: bool,
}

/// The agent's server.
enum Phase {
    Down,
    Rising(Box<Rising>),
    /// It works for no session yet.
    Warm(Box<Warm>),
    Up(Box<Up>),
}

pub(super) struct Actor {
    settings: Arc<Settings>,
    journal: Journal,
    models: ModelProxy,
    condition: watch::Sender<Condition>,
    tasks: Tasks,
    translator: Translator,
    phase: Phase,
    /// What was asked for last; the agent is kept running as long as there is one.
    wanted: Option<StartAgent>,
    exits: Vec<Instant>,
    /// Counts what the kernel has killed for want of memory, and how many of it were told.
    oom_kills: OomKills,
    oom_told: u64,
    waiting: Waiting,
    restart_at: Option<Instant>,
    last_prompt_millis: u64,
    saved: BTreeMap<String, u64>,
    /// Number in the journal up to which it holds what OpenCode's events of known numbers say: now, and before the last turn, of which something may follow behind its end.
    covered: u64,
    covered_before: u64,
    before_turn: u64,
    /// Until what happened before this sidecar began was read again.
    told: Option<Told>,
    notices: mpsc::Sender<Notice>,
    noticed: mpsc::Receiver<Notice>,
}

/// What the actor does next.
enum Input {
    Command(Option<Command>),
    Notice(Option<Notice>),
    Event(Option<Feed>),
    Exited(i32),
    Risen(Option<Result<Risen, ApiError>>),
    Missed(Option<Box<Missed>>),
    Write,
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
        let oom_kills = OomKills::find();
        let root = ConversationId::try_from(settings.session.to_string()).expect("a session id is a conversation id");
        Self {
            translator: Translator::new(root),
            settings,
            journal,
            models,
            condition,
            tasks,
            phase: Phase::Down,
            wanted: None,
            exits: Vec::new(),
            oom_told: oom_kills.count(),
            oom_kills,
            waiting: Waiting::default(),
            restart_at: None,
            last_prompt_millis: 0,
            saved: BTreeMap::new(),
            covered: 0,
            covered_before: 0,
            before_turn: 0,
            told: None,
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
                Input::Event(None) => self.exited(-1, AgentExit::Ended).await,
                Input::Exited(code) => {
                    let of_memory = code == KILLED && self.oom_kills_since();
                    self.exited(code, if of_memory { AgentExit::OutOfMemory } else { AgentExit::Ended }).await;
                }
                Input::Risen(risen) => {
                    let lost = || Err(ApiError::new(ErrorCode::Internal, "the start of the agent was lost"));
                    self.risen(risen.unwrap_or_else(lost)).await;
                }
                Input::Missed(missed) => self.missed(missed).await,
                Input::Write => self.write().await,
                Input::Restart => self.restart().await,
                Input::Tick => self.tick().await,
            }
        }
    }

    /// Chooses; only receives and timers, so it may be dropped at any point.
    async fn next(&mut self, commands: &mut mpsc::Receiver<Command>) -> Input {
        let reading = matches!(&self.phase, Phase::Up(up) if up.reading.is_some());
        // As long as the journal takes nothing, OpenCode's events stay with OpenCode; commands are heard all the same.
        let stuck = self.waiting.is_stuck();
        let tick = self
            .translator
            .next_tick()
            .filter(|_| !reading && !stuck)
            .map(|at| Instant::now() + Duration::from_millis(at.millis_since(now())));
        let server = async {
            match &mut self.phase {
                Phase::Up(up) => {
                    let Up { server, events, reading, .. } = &mut **up;
                    // Events first: what was said before the end belongs before it. None while the one before them is being read.
                    let told = async {
                        match reading {
                            _ if stuck => std::future::pending().await,
                            Some(job) => Input::Missed((&mut job.0).await),
                            None => Input::Event(events.recv().await),
                        }
                    };
                    tokio::select! {
                        biased;
                        input = told => input,
                        status = server.child.wait() => Input::Exited(status.map_or(-1, exit_code)),
                    }
                }
                Phase::Warm(warm) => Input::Exited(warm.server.child.wait().await.map_or(-1, exit_code)),
                Phase::Rising(rising) => Input::Risen((&mut rising.job.0).await),
                Phase::Down => std::future::pending().await,
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
            input = server => input,
            () = at(self.restart_at) => Input::Restart,
            () = at(self.waiting.retry_at()) => Input::Write,
            () = at(tick) => Input::Tick,
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Start { start, reply } => self.start(*start, reply).await,
            Command::Prompt { prompt, reply } => self.prompt(prompt, reply),
            Command::Abort { reply } => self.abort(reply),
            Command::AnswerPermission { request, reply } => self.answer_permission(request, reply),
            Command::AnswerQuestion { request, reply } => self.answer_question(request, reply),
            Command::Rename { title, reply } => self.rename(title, reply),
            Command::Shutdown { grace, reply } => {
                self.wanted = None;
                self.restart_at = None;
                self.shut_down(grace, "it is shut down").await;
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

    async fn start(&mut self, start: StartAgent, reply: Reply<AgentStarted>) {
        let same = self
            .wanted
            .as_ref()
            .is_some_and(|wanted| wanted.providers == start.providers && wanted.permission_mode == start.permission_mode);
        match &mut self.phase {
            Phase::Up(up) if same || self.translator.in_turn() => {
                let version = up.version.clone();
                if same {
                    self.wanted = Some(StartAgent { warm: false, ..start });
                }
                return drop(reply.send(Ok(AgentStarted { version })));
            }
            Phase::Warm(warm) if start.warm && self.wanted.as_ref() == Some(&start) => {
                return drop(reply.send(Ok(AgentStarted { version: warm.version.clone() })));
            }
            Phase::Rising(rising) if rising.start == start => return rising.replies.push(reply),
            Phase::Up(_) | Phase::Warm(_) | Phase::Rising(_) | Phase::Down => {}
        }
        let warm = match std::mem::replace(&mut self.phase, Phase::Down) {
            Phase::Warm(warm) => Some(warm),
            other => {
                self.phase = other;
                self.shut_down(LAST_EVENTS_TIMEOUT, "another start took its place").await;
                None
            }
        };
        self.exits.clear();
        self.restart_at = None;
        self.rise(start, warm, vec![reply], false);
    }

    /// From nothing, or from a warm server, to one that accepts prompts; beside the actor.
    fn rise(&mut self, start: StartAgent, warm: Option<Box<Warm>>, replies: Vec<Reply<AgentStarted>>, again: bool) {
        if let Some(title) = &start.title {
            self.translator.titled(title);
        }
        let rise = Rise {
            settings: Arc::clone(&self.settings),
            models: self.models.clone(),
            condition: self.condition.clone(),
            tasks: self.tasks.clone(),
            start: start.clone(),
            known: self.translator.sequences().clone(),
        };
        let job = Job(self.tasks.spawn("agent start", rise.run(warm)));
        self.phase = Phase::Rising(Box::new(Rising { start, job, replies, title: None, again }));
    }

    async fn risen(&mut self, risen: Result<Risen, ApiError>) {
        let Phase::Rising(rising) = std::mem::replace(&mut self.phase, Phase::Down) else { return };
        let Rising { start, replies, title, again, .. } = *rising;
        let mut cause = AgentExit::Ended;
        let started = match risen {
            Ok(Risen::Warm(warm)) => {
                let version = warm.version.clone();
                self.phase = Phase::Warm(warm);
                self.step("no session is at work yet");
                Ok(version)
            }
            Ok(Risen::Up(up, missed)) => {
                let version = up.version.clone();
                self.phase = Phase::Up(up);
                self.take_in(missed).await;
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
            Err(mut error) => {
                if self.oom_kills_since() {
                    error.message.push_str("; the sandbox ran out of memory: give the session more of it");
                    cause = AgentExit::OutOfMemory;
                }
                tracing::error!(error = error.message, "the agent could not be started");
                self.condition.send_modify(|condition| condition.running = false);
                self.step("it could not be started");
                Err(error)
            }
        };
        match &started {
            Ok(_) => self.wanted = Some(start),
            // A first start that failed is left to whoever asked for it.
            Err(_) if again => self.back_off(-1, cause).await,
            Err(_) => {}
        }
        if let Some(title) = title {
            let (reply, _) = oneshot::channel();
            self.rename(title, reply);
        }
        for reply in replies {
            // Whoever asked may have gone; the agent runs all the same.
            let _ = reply.send(started.clone().map(|version| AgentStarted { version }));
        }
    }

    /// Begins to close the gap between what is known and what OpenCode has done: durable events first, then the state that it does not keep. Without
    /// `history`, only the state is read.
    fn catch_up(&mut self, history: bool) {
        let Phase::Up(up) = &mut self.phase else { return };
        let known = history.then(|| self.translator.sequences().clone());
        let (client, session) = (up.client.clone(), self.settings.session.to_string());
        let read = async move { Missed::read(&client, &session, known.as_ref()).await };
        up.reading = Some(Job(self.tasks.spawn("what was missed", read)));
    }

    async fn missed(&mut self, missed: Option<Box<Missed>>) {
        if let Phase::Up(up) = &mut self.phase {
            up.reading = None;
        }
        if let Some(missed) = missed {
            let whole = missed.history.is_some();
            self.take_in(missed).await;
            if !whole {
                // The state alone is read when a turn is overdue: now it ends, unless it has turned out to go on.
                let outputs = self.translator.tick(now());
                self.tell(outputs).await;
            }
        }
    }

    async fn take_in(&mut self, missed: Box<Missed>) {
        match missed.history {
            Some(Ok(events)) => {
                let told = self.told.take();
                for event in events {
                    let mut outputs = self.translator.replay(&event, now());
                    outputs.retain(|output| told.as_ref().is_none_or(|told| told.is_new(output)));
                    self.tell(outputs).await;
                    self.covered = self.journal.last();
                }
            }
            Some(Err(error)) => {
                tracing::warn!(error = chain(&error), "the agent's events could not be read again");
                let reason = "the agent's events could not be read again after a break".to_owned();
                self.record(EventKind::Gap { reason }).await;
            }
            None => {}
        }
        match missed.snapshot {
            Ok(snapshot) => {
                let outputs = self.translator.resync(&snapshot, now());
                self.tell(outputs).await;
            }
            Err(error) => tracing::warn!(error = chain(&error), "the agent's state could not be read"),
        }
    }

    async fn tick(&mut self) {
        if self.translator.overdue(now()) && matches!(self.phase, Phase::Up(_)) {
            return self.catch_up(false);
        }
        let outputs = self.translator.tick(now());
        self.tell(outputs).await;
    }

    async fn take_event(&mut self, payload: &Value) {
        let outputs = self.translator.apply(payload, now());
        self.tell(outputs).await;
        if Translator::is_number(payload) {
            self.covered = self.journal.last();
        }
    }

    async fn event(&mut self, feed: Feed) {
        match feed {
            Feed::Event(payload) => {
                self.take_event(&payload).await;
                if !self.translator.in_turn() {
                    // What follows a turn is not told with the next one.
                    self.save().await;
                }
            }
            Feed::Broken => self.translator.stream_broke(),
            Feed::Hanging => {
                if let Phase::Up(up) = &mut self.phase {
                    up.server.kill().await;
                }
                self.exited(KILLED, AgentExit::Unresponsive).await;
            }
            Feed::Connected => self.catch_up(true),
        }
    }

    /// Whether the kernel has killed something for want of memory since this was asked last.
    fn oom_kills_since(&mut self) -> bool {
        let count = self.oom_kills.count();
        count > std::mem::replace(&mut self.oom_told, count)
    }

    /// The process has ended by itself.
    async fn exited(&mut self, code: i32, cause: AgentExit) {
        let phase = std::mem::replace(&mut self.phase, Phase::Down);
        if let Phase::Up(mut up) = phase {
            // What waits behind a gap that was not closed is read again with it, from OpenCode's durable events.
            while up.reading.is_none()
                && let Ok(feed) = up.events.try_recv()
            {
                if let Feed::Event(payload) = feed {
                    self.take_event(&payload).await;
                }
            }
            self.end(*up).await;
        }
        if let Err(error) = process::sweep(&self.settings).await {
            tracing::warn!(error = chain(&error), "what the agent left running could not be ended");
        }
        let outputs = self.translator.died();
        self.tell(outputs).await;
        self.back_off(code, cause).await;
    }

    async fn back_off(&mut self, code: i32, cause: AgentExit) {
        let now = Instant::now();
        self.exits.retain(|exit| now.duration_since(*exit) < EXITS_WINDOW);
        self.exits.push(now);
        let doublings = u32::try_from(self.exits.len() - 1).unwrap_or(u32::MAX);
        let pause = (self.wanted.is_some() && self.exits.len() < EXITS_MAX)
            .then(|| RESTART_PAUSE_MIN.saturating_mul(2_u32.saturating_pow(doublings)).min(RESTART_PAUSE_MAX));
        tracing::warn!(code, restart_in = ?pause, "the agent has ended by itself");
        self.restart_at = pause.map(|pause| now + pause);
        self.step(if pause.is_some() { "it has ended and is started again soon" } else { "it has ended too often and was given up" });
        self.condition.send_modify(|condition| {
            condition.running = false;
            condition.ready = false;
        });
        if self.wanted.as_ref().is_some_and(|wanted| wanted.warm) {
            // Of no session's history.
            return;
        }
        let restart_in_millis = pause.map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        self.record(EventKind::Agent { process: AgentProcess::Exited { code, restart_in_millis, cause } }).await;
    }

    async fn restart(&mut self) {
        self.restart_at = None;
        let Some(start) = self.wanted.clone() else { return };
        self.condition.send_modify(|condition| condition.restarts += 1);
        self.rise(start, None, Vec::new(), true);
    }

    /// Ends a running server in order: its work first, so that commands are killed and texts are saved, then its process.
    /// Whoever waits for a start is told `why`.
    async fn shut_down(&mut self, grace: Duration, why: &str) {
        let mut up = match std::mem::replace(&mut self.phase, Phase::Down) {
            Phase::Up(up) => *up,
            Phase::Warm(warm) => {
                warm.server.end().await;
                return self.condition.send_modify(|condition| condition.running = false);
            }
            Phase::Rising(mut rising) => {
                rising.job.0.abort();
                // Its processes are killed when it is dropped, which it is when this returns.
                let _ = (&mut rising.job.0).await;
                for reply in std::mem::take(&mut rising.replies) {
                    let _ = reply.send(Err(ApiError::new(ErrorCode::NotReady, format!("the agent does not start: {why}"))));
                }
                return self.condition.send_modify(|condition| condition.running = false);
            }
            Phase::Down => return,
        };
        self.condition.send_modify(|condition| condition.ready = false);
        let deadline = Instant::now() + grace;
        let was_in_turn = self.translator.in_turn();
        if let Ok(Err(error)) = tokio::time::timeout_at(deadline, up.client.dispose()).await {
            tracing::warn!(error = chain(&error), "the agent could not be told to end its work");
        }
        let last = deadline.min(Instant::now() + LAST_EVENTS_TIMEOUT);
        while was_in_turn && up.reading.is_none() && self.translator.in_turn() {
            let Ok(Some(feed)) = tokio::time::timeout_at(last, up.events.recv()).await else { break };
            if let Feed::Event(payload) = feed {
                self.take_event(&payload).await;
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
                    let command_ended = is_ended_command(&kind);
                    self.record(kind).await;
                    if command_ended && self.oom_kills_since() {
                        self.record(out_of_memory()).await;
                    }
                    if at_rest {
                        self.before_turn = std::mem::replace(&mut self.covered_before, self.covered);
                        self.save().await;
                    }
                }
                delta @ Output::Delta(_) => self.waiting.put(&self.journal, delta).await,
            }
        }
    }

    async fn record(&mut self, kind: EventKind) {
        self.waiting.put(&self.journal, Output::Record(kind)).await;
    }

    /// Tries to record what waits.
    async fn write(&mut self) {
        if let Some(told) = self.waiting.write(&self.journal).await {
            self.record(told).await;
            self.save().await;
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
        let mut saved = read.ok().and_then(|bytes| serde_json::from_slice::<BTreeMap<String, u64>>(&bytes).ok()).unwrap_or_default();
        let (journal, last) = (saved.remove(JOURNAL).unwrap_or_default(), saved.remove(JOURNAL_LAST).unwrap_or_default());
        self.saved.clone_from(&saved);
        self.translator.continue_from(saved);
        (self.covered, self.covered_before, self.before_turn) = (journal, journal, journal);
        self.journal.keep_from(journal);
        if self.journal.last() < last {
            // Its end was lost, and is not read again from OpenCode: whoever wants it is told of a gap.
            let _ = self.journal.subscribe(last).try_next().await;
        }
        match Told::read(&self.journal, journal).await {
            Ok(mut told) => {
                // Whoever asked has ended with its sidecar.
                let outputs = self.translator.asked_before(told.take_asked());
                self.told = Some(told);
                self.tell(outputs).await;
            }
            Err(error) => tracing::warn!(error = chain(&error), "what was told before could not be read"),
        }
    }

    async fn save(&mut self) {
        // What waits is not recorded yet: should it be lost, it is read again from here.
        if self.saved == *self.translator.sequences() || self.waiting.is_stuck() {
            return;
        }
        let (sequences, journal) = (self.translator.sequences().clone(), self.before_turn);
        let mut kept = sequences.clone();
        kept.insert(JOURNAL.to_owned(), journal);
        kept.insert(JOURNAL_LAST.to_owned(), self.journal.last());
        let (file, next) = (self.sequences_file(), self.sequences_file().with_extension("new"));
        let write = async {
            tokio::fs::write(&next, serde_json::to_vec(&kept).unwrap_or_default()).await?;
            tokio::fs::rename(&next, &file).await
        };
        match write.await {
            Ok(()) => {
                self.saved = sequences;
                self.journal.keep_from(journal);
            }
            Err(error) => tracing::warn!(%error, "the place in the agent's events could not be kept"),
        }
    }
}

fn is_ended_command(kind: &EventKind) -> bool {
    let state = match kind {
        EventKind::Part { part: Part { body: PartBody::Tool { state, .. }, .. } } => state,
        _ => return false,
    };
    matches!(state, ToolState::Completed { .. } | ToolState::Error { .. })
}

/// A command of the agent was killed while the agent itself goes on.
fn out_of_memory() -> EventKind {
    EventKind::AgentError {
        name: "OUT_OF_MEMORY".to_owned(),
        message: "a command of the agent was killed because the sandbox ran out of memory".to_owned(),
        status_code: None,
        hint: Some("give new sessions more memory (`memory` in the configuration), or have the agent use less".to_owned()),
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
