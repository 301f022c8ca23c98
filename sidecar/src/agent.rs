//! The agent: one handle on one actor that owns OpenCode's server process, its event stream and what is known of the conversation.
//!
//! Commands go to the actor over a bounded channel, and none waits for a start: that is a job beside it. Those that ask OpenCode something run beside it, so that a slow answer never holds the events up;
//! what they change in the actor's view (a prompt that was refused, an answer that came too late) comes back as a notice.
//!
//! ```text
//!            start                    ready
//! Down ───────────────► Starting ───────────────► Up
//!  ▲  ▲                  │  ▲  │ fails             │ exits by itself, or no longer answers
//!  │  └──────────────────┼──┼──┘                   ▼
//!  │          warm start │  │ start           Backing off ──► Starting
//!  │                     ▼  │                     │
//!  │                     Warm                     │
//!  └── given up after 5 exits in 2 minutes ───────┘
//! ```

mod actor;
pub mod opencode;

use std::sync::Arc;
use std::time::Duration;

use openagent_proto::sidecar::{AgentHealth, AgentStarted, ErrorCode, PermissionReply, Prompt, Prompted, QuestionReply, StartAgent, Title};
use tokio::sync::{mpsc, oneshot, watch};

use self::actor::{Actor, Command};
use crate::control::ApiError;
use crate::journal::Journal;
use crate::model::ModelProxy;
use crate::settings::Settings;
use crate::task::Tasks;

/// Commands that wait for the actor; further callers wait.
const COMMANDS_MAX: usize = 64;

/// What everybody may know of the agent at any time.
#[derive(Debug, Clone)]
struct Condition {
    running: bool,
    ready: bool,
    restarts: u32,
    step: &'static str,
}

/// Handle on the agent.
#[derive(Clone)]
pub struct Agent {
    commands: mpsc::Sender<Command>,
    condition: watch::Receiver<Condition>,
}

impl Agent {
    /// An agent that is not started yet.
    #[must_use]
    pub fn new(settings: Arc<Settings>, journal: Journal, models: ModelProxy) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (told, condition) = watch::channel(Condition { running: false, ready: false, restarts: 0, step: "it was not asked to start" });
        let tasks = Tasks::default();
        let actor = Actor::new(settings, journal, models, told, tasks.clone());
        tasks.spawn("agent", actor.run(inbox));
        Self { commands, condition }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, ApiError>>) -> Command) -> Result<T, ApiError> {
        let ended = |()| ApiError::new(ErrorCode::NotReady, "the agent has ended");
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| ended(()))?;
        answer.await.map_err(|_| ended(()))?
    }

    /// Starts the agent unless it runs, and returns once it accepts prompts. One that runs is started anew only if it rests and its providers or its
    /// permission mode have changed. A warm start returns once the agent has its slow first prompt behind it; it accepts none until another start
    /// takes it over.
    ///
    /// # Errors
    /// `AGENT_UNAVAILABLE` when its program is missing or another one than expected, `INVALID_REQUEST` when the settings do not fit together,
    /// `AGENT_FAILED` when it does not come up.
    pub async fn start(&self, start: StartAgent) -> Result<AgentStarted, ApiError> {
        self.ask(|reply| Command::Start { start: Box::new(start), reply }).await
    }

    /// Hands a prompt over; returns once the agent has it.
    ///
    /// # Errors
    /// `NOT_READY` before the agent has started, `INVALID_REQUEST` for a model of no known provider, `AGENT_FAILED` when it refuses.
    pub async fn prompt(&self, prompt: Prompt) -> Result<Prompted, ApiError> {
        self.ask(|reply| Command::Prompt { prompt, reply }).await
    }

    /// Stops the turn. Nothing happens when none is under way.
    ///
    /// # Errors
    /// `NOT_READY`, `AGENT_FAILED`.
    pub async fn abort(&self) -> Result<(), ApiError> {
        self.ask(|reply| Command::Abort { reply }).await
    }

    /// Answers a permission request.
    ///
    /// # Errors
    /// `NOT_FOUND` when no such request waits, `INVALID_REQUEST` for an unknown response, `NOT_READY`, `AGENT_FAILED`.
    pub async fn answer_permission(&self, request: PermissionReply) -> Result<(), ApiError> {
        self.ask(|reply| Command::AnswerPermission { request, reply }).await
    }

    /// Answers a question, or dismisses it.
    ///
    /// # Errors
    /// `NOT_FOUND` when no such question waits, `NOT_READY`, `AGENT_FAILED`.
    pub async fn answer_question(&self, request: QuestionReply) -> Result<(), ApiError> {
        self.ask(|reply| Command::AnswerQuestion { request, reply }).await
    }

    /// Gives the conversation a title.
    ///
    /// # Errors
    /// `NOT_READY`, `AGENT_FAILED`.
    pub async fn rename(&self, title: Title) -> Result<(), ApiError> {
        self.ask(|reply| Command::Rename { title: title.title, reply }).await
    }

    /// The state of its process.
    #[must_use]
    pub fn health(&self) -> AgentHealth {
        let condition = self.condition.borrow();
        AgentHealth { running: condition.running, restarts: condition.restarts }
    }

    /// Whether it accepts prompts.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.condition.borrow().ready
    }

    /// What it is at, in a few words, for whoever waits for it.
    #[must_use]
    pub fn step(&self) -> String {
        self.condition.borrow().step.to_owned()
    }

    /// Ends the agent in order within `grace`, then by force. It can be started again.
    pub async fn shutdown(&self, grace: Duration) {
        // An actor that has ended has taken its process with it.
        let _ = self.ask(|reply| Command::Shutdown { grace, reply }).await;
    }
}
