//! Sessions: one actor each, and the registry that finds them.
//!
//! The actor owns everything that changes about a session: its record, its lifecycle, its link to the sidecar and what waits for an answer. Everything else holds
//! a [`SessionHandle`]: a bounded channel of inputs, and `watch`es of the current [`View`] and of the connection to the sidecar. What a session did is in
//! the event log; what it is, is its view.
//!
//! Tasks of a session: the actor; while it has an instance also the follower (`link`), the relay, and the watch over the instance's end.

pub mod actor;
pub mod admission;
pub mod directory;
pub mod link;
pub mod live;
pub mod pending;
pub mod pool;
pub mod presence;
pub mod registry;
pub mod step;

use std::sync::Arc;
use std::time::Duration;

use openagent_core::activity::Activity;
use openagent_core::id::{RequestId, SessionId};
use openagent_core::permission::{PermissionResponse, PermissionRule};
use openagent_core::session::lifecycle::State;
use openagent_core::session::{Fault, Step};
use openagent_core::time::Timestamp;
use openagent_core::usage::Usage;
use tokio::sync::{mpsc, oneshot, watch};

use crate::catalogue::Catalogue;
use crate::driver::Driver;
use crate::event::{EventLog, LogInfo};
use crate::relay::ModelRelay;
use crate::sidecar::SidecarClient;
use crate::store::{SessionRecord, Store};
use crate::task::Tasks;
use crate::vault::Vault;

pub use pending::Pending;
use presence::{Attached, Presence};
pub use registry::SessionRegistry;

/// Inputs that a session may have waiting. Full: callers are told `BUSY`, the follower waits.
const INPUTS_MAX: usize = 256;

/// What every session uses.
pub struct Shared {
    /// Records.
    pub store: Store,
    /// Histories.
    pub log: EventLog,
    /// Keys.
    pub vault: Vault,
    /// What runs instances.
    pub driver: Arc<dyn Driver>,
    /// Providers and models.
    pub catalogue: Arc<Catalogue>,
    /// What is served to sidecars.
    pub relay: ModelRelay,
    /// Remembered answers that hold for every session.
    pub rules: watch::Sender<Arc<Vec<PermissionRule>>>,
    /// All views.
    pub directory: Arc<directory::Directory>,
    /// Room to run.
    pub admission: admission::Admission,
    /// Prepared instances.
    pub pool: pool::Pool,
    /// Tasks.
    pub tasks: Tasks,
    /// Time for an agent to end by itself.
    pub stop_grace: Duration,
}

impl Shared {
    /// Whether a provider has a key.
    #[must_use]
    pub fn has_key(&self, provider: &str) -> bool {
        self.vault.versions().borrow().contains_key(provider)
    }
}

/// A session as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// What is stored of it.
    pub record: SessionRecord,
    /// What its agent does.
    pub activity: Activity,
    /// What it has cost.
    pub usage: Usage,
    /// When its last event was recorded.
    pub updated_at: Timestamp,
    /// Its last event.
    pub last_seq: u64,
    /// What waits for an answer, oldest first.
    pub pending: Vec<Pending>,
    /// Place in the queue of sessions that wait for room to run, from 1; 0: it does not wait.
    pub queue_position: u32,
    /// Since when its instance runs and its sidecar does not answer.
    pub unreachable_since: Option<Timestamp>,
    /// Who follows it, oldest first.
    pub attached: Vec<Attached>,
}

impl View {
    /// A session of which nothing is known but what is stored.
    #[must_use]
    pub fn stored(record: SessionRecord, info: &LogInfo) -> Self {
        Self {
            activity: Activity::Quiet,
            usage: info.usage,
            updated_at: info.updated_at.unwrap_or(record.session.created_at),
            last_seq: info.last_seq,
            pending: vec![],
            queue_position: 0,
            unreachable_since: None,
            attached: vec![],
            record,
        }
    }

    /// The provisioning step that runs.
    #[must_use]
    pub const fn step(&self) -> Option<Step> {
        match self.record.lifecycle.state() {
            State::Starting { step, .. } => Some(*step),
            State::Active { .. }
            | State::Idle { .. }
            | State::Waking { .. }
            | State::Resting
            | State::Unwinding { .. }
            | State::Stopped
            | State::Failed { .. }
            | State::Removed => None,
        }
    }
}

/// What is asked of a session, with where to answer.
pub enum Command {
    /// Give it an instance.
    Resume(oneshot::Sender<Result<(), Fault>>),
    /// Thaw its instance; answered when it is thawed.
    Wake(oneshot::Sender<Result<(), Fault>>),
    /// End its instance; answered when it has ended.
    Stop(Option<Duration>, oneshot::Sender<Result<(), Fault>>),
    /// Remove it; answered when nothing is left.
    Remove(oneshot::Sender<Result<(), Fault>>),
    /// Prompt its agent; answered with the message's id when the agent has it.
    Prompt(PromptJob),
    /// End the turn.
    Abort(oneshot::Sender<Result<(), Fault>>),
    /// Answer a permission request.
    AnswerPermission(PermissionAnswer, oneshot::Sender<Result<(), Fault>>),
    /// Answer a question.
    AnswerQuestion(QuestionAnswer, oneshot::Sender<Result<(), Fault>>),
    /// Nothing: answered when the view shows everything that came before.
    Look(oneshot::Sender<Result<(), Fault>>),
    /// Give it a title.
    Rename(String, oneshot::Sender<Result<(), Fault>>),
}

impl Command {
    /// Answers whoever asked that it is not done.
    fn refuse(self, fault: Fault) {
        let _ = match self {
            Self::Prompt(job) => job.reply.send(Err(fault)).is_ok(),
            Self::Resume(reply)
            | Self::Wake(reply)
            | Self::Stop(_, reply)
            | Self::Remove(reply)
            | Self::Abort(reply)
            | Self::AnswerPermission(_, reply)
            | Self::AnswerQuestion(_, reply)
            | Self::Look(reply)
            | Self::Rename(_, reply) => reply.send(Err(fault)).is_ok(),
        };
    }
}

/// A prompt on its way.
pub struct PromptJob {
    /// What the user wrote.
    pub text: String,
    /// Another model from now on.
    pub model: Option<String>,
    /// Another agent from now on.
    pub agent: Option<String>,
    /// Where to answer.
    pub reply: oneshot::Sender<Result<String, Fault>>,
}

/// An answer to a permission request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermissionAnswer {
    /// The request.
    pub id: RequestId,
    /// The answer.
    pub response: PermissionResponse,
    /// For the agent, with a rejection.
    pub reason: Option<String>,
    /// Who answers.
    pub by: String,
}

/// An answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuestionAnswer {
    /// The request.
    pub id: RequestId,
    /// One list for each question; absent: dismissed.
    pub answers: Option<Vec<Vec<String>>>,
    /// Who answers.
    pub by: String,
}

/// A hold on a session.
#[derive(Clone)]
pub struct SessionHandle {
    id: SessionId,
    inputs: mpsc::Sender<actor::Input>,
    view: watch::Receiver<Arc<View>>,
    client: watch::Receiver<Option<SidecarClient>>,
    presence: Presence,
}

fn gone() -> Fault {
    Fault::new("NOT_FOUND", "the session was removed", "list the others: openagent ls")
}

impl SessionHandle {
    /// Its id.
    #[must_use]
    pub const fn id(&self) -> &SessionId {
        &self.id
    }

    /// It as it is now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Who follows it.
    #[must_use]
    pub const fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Another session waits for the room that this one takes if it is idle.
    pub(crate) fn yield_room(&self) {
        // Full: it is not idle.
        let _ = self.inputs.try_send(actor::Input::Yield);
    }

    /// The connection to its sidecar; waits for one that is being made, and thaws an instance that is frozen.
    ///
    /// # Errors
    /// `NOT_RUNNING` when the session has no instance, `SIDECAR_UNREACHABLE`.
    pub async fn client(&self) -> Result<SidecarClient, Fault> {
        let view = self.view();
        if view.record.lifecycle.instance().is_none() {
            let message = format!("the session has no running instance (it is {})", view.record.lifecycle.status().name());
            return Err(Fault::new("NOT_RUNNING", message, "resume it first: openagent resume ID"));
        }
        if matches!(view.record.lifecycle.state(), State::Idle { .. } | State::Waking { .. }) {
            self.ask(Command::Wake).await?;
        }
        actor::effect::linked(self.client.clone()).await
    }

    /// Asks something of it and waits for the answer.
    ///
    /// # Errors
    /// The session's fault; `BUSY` when too much waits already, `NOT_FOUND` when it is gone.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, Fault>>) -> Command) -> Result<T, Fault> {
        let (reply, answer) = oneshot::channel();
        self.inputs.try_send(actor::Input::Command(command(reply))).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Fault::new("BUSY", "too much waits for this session already", "try again in a moment"),
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        answer.await.map_err(|_| gone())?
    }
}
