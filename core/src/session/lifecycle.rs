//! The lifecycle of a session: one function from state and input to the new state and ordered effects.
//!
//! ```text
//! Stopped  --Start--> Starting
//! Stopped  --Claim--> Starting
//! Failed   --Start--> Starting
//! Resting  --Start--> Starting
//! Resting  --Prompted--> Starting
//! Starting --StepDone--> Starting | Active
//! Starting --StepFailed--> Unwinding
//! Starting --Interrupted--> Unwinding
//! Starting --InstanceEnded--> Unwinding
//! Starting --Stop--> Unwinding
//! Starting --Remove--> Unwinding
//! Active   --IdleTimeout--> Idle | Unwinding
//! Active   --Stop--> Unwinding
//! Active   --Remove--> Unwinding
//! Active   --InstanceEnded--> Unwinding
//! Idle     --Prompted--> Waking
//! Idle     --Start--> Waking
//! Idle     --Yield--> Unwinding
//! Idle     --Stop--> Unwinding
//! Idle     --Remove--> Unwinding
//! Idle     --InstanceEnded--> Unwinding
//! Waking   --Woken--> Active
//! Waking   --WakeFailed--> Idle
//! Waking   --Stop--> Unwinding
//! Waking   --Remove--> Unwinding
//! Waking   --InstanceEnded--> Unwinding
//! Stopped  --Remove--> Unwinding
//! Resting  --Stop--> Stopped
//! Resting  --Remove--> Unwinding
//! Failed   --Stop--> Stopped
//! Failed   --Remove--> Unwinding
//! Unwinding --Unwound--> Stopped | Failed | Removed | Resting | Starting
//! ```
//! `Starting` shows as `creating` until the sidecar has registered and as `active` from then on. `Idle` has a frozen instance and `Resting` none; both show as
//! `idle`, and a prompt wakes either. An instance that is lost while nothing is asked of it takes nothing with it: the session rests. `Unwinding` undoes, top
//! down, what the instance holds; it shows as what it was, so that nothing is called stopped that still runs. The list of what to undo is data in the state.

use serde::{Deserialize, Serialize};

use super::{Fault, IdleAction, Status, Step};
use crate::id::InstanceId;

/// State of a session, with the data that is valid in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// An instance climbs the ladder.
    Starting {
        /// The instance.
        instance: InstanceId,
        /// The step it is at.
        step: Step,
    },
    /// The agent accepts prompts.
    Active {
        /// The instance.
        instance: InstanceId,
    },
    /// At rest for the idle timeout, the instance frozen or about to be.
    Idle {
        /// The instance.
        instance: InstanceId,
    },
    /// The frozen instance is being thawed.
    Waking {
        /// The instance.
        instance: InstanceId,
    },
    /// At rest without an instance, which the next prompt makes.
    Resting,
    /// What an instance holds is being undone.
    Unwinding {
        /// What is shown meanwhile.
        shown: Status,
        /// Where it leads.
        rest: Rest,
    },
    /// No instance.
    Stopped,
    /// No instance, because of a fault.
    Failed {
        /// What failed.
        fault: Fault,
    },
    /// Nothing is left but the record, which the owner now deletes.
    Removed,
}

/// Where unwinding leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rest", rename_all = "snake_case")]
pub enum Rest {
    /// To `stopped`.
    Stopped,
    /// To `error`.
    Failed {
        /// What failed.
        fault: Fault,
    },
    /// To idle without an instance.
    Resting,
    /// To a new instance.
    Again,
    /// To nothing, as soon as the rest of it is undone, too: it was asked for while something else was being undone.
    RemovedNext,
    /// To nothing.
    Removed,
}

/// What happens to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// It is to have an instance: the given one, if it needs a new one.
    Start(InstanceId),
    /// It is new and gets an instance that was prepared before it, up to a running agent.
    Claim(InstanceId),
    /// A step of the ladder is done.
    StepDone(InstanceId, Step),
    /// A step of the ladder failed.
    StepFailed(InstanceId, Step, Fault),
    /// The daemon ended while the ladder was climbed, and is back.
    Interrupted,
    /// A prompt arrived; with the instance to make, if it needs a new one.
    Prompted(InstanceId),
    /// It was at rest for its idle timeout.
    IdleTimeout(IdleAction),
    /// Another session waits for the room that this one takes.
    Yield,
    /// Its instance was thawed.
    Woken(InstanceId),
    /// Its instance could not be thawed.
    WakeFailed(InstanceId),
    /// It is to have no instance.
    Stop,
    /// It is to be removed with everything it holds.
    Remove,
    /// Its instance ended by itself.
    InstanceEnded(InstanceId, Fault),
    /// Everything was undone; with the instance to make, if one is to follow.
    Unwound(InstanceId),
}

/// What is to be done, in this order. Effects run elsewhere and come back as inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Do a step of the ladder.
    Run(InstanceId, Step),
    /// Freeze the instance.
    Freeze(InstanceId),
    /// Thaw the instance.
    Wake(InstanceId),
    /// Undo steps, in this order.
    Unwind(Option<InstanceId>, Vec<Step>),
    /// Tell that the status changed.
    Show,
}

/// What became of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It was taken.
    Accepted,
    /// It changes nothing: things are so already.
    AlreadySo,
    /// It cannot be done now.
    Denied(Fault),
    /// It means nothing in this state, such as news of an instance that is gone.
    Ignored(&'static str),
}

/// A session's state together with what survives its instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    state: State,
    /// The workspace holds what the session started from; from then on its volume is never undone but by removal.
    workspace_ready: bool,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { state: State::Stopped, workspace_ready: false }
    }
}

const SETTLING: &str = "the session is being stopped or removed";
const OTHER_INSTANCE: &str = "this is about an instance that the session no longer has";

fn settling() -> Reply {
    Reply::Denied(Fault::new("SESSION_SETTLING", SETTLING, "try again in a moment"))
}

fn in_error(fault: &Fault) -> Fault {
    let hint = if fault.hint.is_empty() { "try to resume it: openagent resume ID" } else { &fault.hint };
    Fault::new("SESSION_FAILED", format!("the session has failed: {}", fault.message), hint)
}

impl Lifecycle {
    /// The state.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Whether the workspace was filled, so that its volume holds something to lose.
    #[must_use]
    pub const fn workspace_ready(&self) -> bool {
        self.workspace_ready
    }

    /// The status that users see.
    #[must_use]
    pub const fn status(&self) -> Status {
        match &self.state {
            State::Starting { step, .. } => {
                if (*step as u8) > (Step::Register as u8) {
                    Status::Active
                } else {
                    Status::Creating
                }
            }
            State::Active { .. } => Status::Active,
            State::Idle { .. } | State::Waking { .. } | State::Resting => Status::Idle,
            State::Unwinding { shown, .. } => *shown,
            State::Stopped | State::Removed => Status::Stopped,
            State::Failed { .. } => Status::Error,
        }
    }

    /// What failed, where the status is an error.
    #[must_use]
    pub const fn fault(&self) -> Option<&Fault> {
        match &self.state {
            State::Failed { fault } => Some(fault),
            State::Starting { .. }
            | State::Active { .. }
            | State::Idle { .. }
            | State::Waking { .. }
            | State::Resting
            | State::Unwinding { .. }
            | State::Stopped
            | State::Removed => None,
        }
    }

    /// The instance that the session has now.
    #[must_use]
    pub const fn instance(&self) -> Option<&InstanceId> {
        match &self.state {
            State::Starting { instance, .. } | State::Active { instance } | State::Idle { instance } | State::Waking { instance } => {
                Some(instance)
            }
            State::Resting | State::Unwinding { .. } | State::Stopped | State::Failed { .. } | State::Removed => None,
        }
    }

    /// Whether it holds, or may hold, what an instance needs to run.
    #[must_use]
    pub const fn holds_instance(&self) -> bool {
        self.instance().is_some() || matches!(self.state, State::Unwinding { .. })
    }

    /// Takes one input into account.
    pub fn apply(&mut self, input: Input) -> (Reply, Vec<Effect>) {
        let shown = self.status();
        match (&self.state, input) {
            (State::Stopped | State::Failed { .. } | State::Resting, Input::Start(instance))
            | (State::Resting, Input::Prompted(instance)) => self.begin(instance, Step::Admission),
            (State::Stopped, Input::Claim(instance)) if !self.workspace_ready => self.begin(instance, Step::Workspace),
            (
                State::Starting { .. }
                | State::Active { .. }
                | State::Idle { .. }
                | State::Waking { .. }
                | State::Resting
                | State::Unwinding { .. }
                | State::Stopped
                | State::Failed { .. }
                | State::Removed,
                Input::Claim(_),
            ) => (Reply::Ignored("only a new session takes a prepared instance"), vec![]),
            (
                State::Starting { .. } | State::Active { .. } | State::Waking { .. } | State::Unwinding { rest: Rest::Again, .. },
                Input::Start(_),
            ) => (Reply::AlreadySo, vec![]),
            (State::Idle { instance }, Input::Start(_) | Input::Prompted(_)) => {
                let instance = instance.clone();
                self.state = State::Waking { instance: instance.clone() };
                (Reply::Accepted, vec![Effect::Wake(instance)])
            }
            (State::Unwinding { rest: Rest::Resting, .. }, Input::Start(_) | Input::Prompted(_)) => {
                self.state = State::Unwinding { shown, rest: Rest::Again };
                (Reply::Accepted, vec![])
            }
            (
                State::Unwinding { rest: Rest::Stopped | Rest::Failed { .. } | Rest::RemovedNext | Rest::Removed, .. } | State::Removed,
                Input::Start(_),
            )
            | (State::Unwinding { rest: Rest::Stopped | Rest::RemovedNext | Rest::Removed, .. } | State::Removed, Input::Prompted(_)) => {
                (settling(), vec![])
            }

            (State::Starting { instance, step }, Input::StepDone(of, done)) if *instance == of && *step == done => self.climb(done),
            (State::Starting { instance, step }, Input::StepFailed(of, at, fault)) if *instance == of && *step == at => {
                let undo = self.held(Some(at));
                self.unwind(shown, undo, Rest::Failed { fault })
            }
            (State::Starting { .. }, Input::StepDone(..) | Input::StepFailed(..)) => (Reply::Ignored(OTHER_INSTANCE), vec![]),
            (
                State::Active { .. }
                | State::Idle { .. }
                | State::Waking { .. }
                | State::Resting
                | State::Unwinding { .. }
                | State::Stopped
                | State::Failed { .. }
                | State::Removed,
                Input::StepDone(..) | Input::StepFailed(..),
            ) => (Reply::Ignored("the ladder is no longer climbed"), vec![]),

            (State::Starting { .. }, Input::Interrupted) => {
                let undo = self.held(None);
                self.unwind(shown, undo, Rest::Again)
            }
            (
                State::Active { .. }
                | State::Idle { .. }
                | State::Waking { .. }
                | State::Resting
                | State::Unwinding { .. }
                | State::Stopped
                | State::Failed { .. }
                | State::Removed,
                Input::Interrupted,
            ) => (Reply::Ignored("the ladder was not climbed"), vec![]),

            (
                State::Starting { .. } | State::Active { .. } | State::Waking { .. } | State::Unwinding { rest: Rest::Again, .. },
                Input::Prompted(_),
            ) => (Reply::Accepted, vec![]),
            (State::Stopped, Input::Prompted(_)) => {
                (Reply::Denied(Fault::new("SESSION_STOPPED", "the session is stopped", "resume it first: openagent resume ID")), vec![])
            }
            (State::Failed { fault } | State::Unwinding { rest: Rest::Failed { fault }, .. }, Input::Prompted(_)) => {
                (Reply::Denied(in_error(fault)), vec![])
            }

            (State::Active { instance }, Input::IdleTimeout(IdleAction::Pause)) => {
                let instance = instance.clone();
                self.state = State::Idle { instance: instance.clone() };
                (Reply::Accepted, vec![Effect::Show, Effect::Freeze(instance)])
            }
            (State::Active { .. }, Input::IdleTimeout(IdleAction::Stop)) | (State::Idle { .. }, Input::Yield) => {
                let undo = self.held(None);
                self.unwind(Status::Idle, undo, Rest::Resting)
            }
            (
                State::Starting { .. }
                | State::Idle { .. }
                | State::Waking { .. }
                | State::Resting
                | State::Unwinding { .. }
                | State::Stopped
                | State::Failed { .. }
                | State::Removed,
                Input::IdleTimeout(_),
            ) => (Reply::Ignored("only an active session can become idle"), vec![]),
            (
                State::Starting { .. }
                | State::Active { .. }
                | State::Waking { .. }
                | State::Resting
                | State::Unwinding { .. }
                | State::Stopped
                | State::Failed { .. }
                | State::Removed,
                Input::Yield,
            ) => (Reply::Ignored("only an idle session has room to give"), vec![]),

            (State::Waking { instance }, Input::Woken(of)) if *instance == of => {
                self.state = State::Active { instance: of };
                (Reply::Accepted, vec![Effect::Show])
            }
            (State::Waking { instance }, Input::WakeFailed(of)) if *instance == of => {
                self.state = State::Idle { instance: of };
                (Reply::Accepted, vec![])
            }
            (
                State::Starting { .. }
                | State::Active { .. }
                | State::Idle { .. }
                | State::Waking { .. }
                | State::Resting
                | State::Unwinding { .. }
                | State::Stopped
                | State::Failed { .. }
                | State::Removed,
                Input::Woken(_) | Input::WakeFailed(_),
            ) => (Reply::Ignored(OTHER_INSTANCE), vec![]),

            (State::Starting { .. } | State::Active { .. } | State::Idle { .. } | State::Waking { .. }, Input::Stop) => {
                let undo = self.held(None);
                self.unwind(shown, undo, Rest::Stopped)
            }
            (State::Failed { .. } | State::Resting, Input::Stop) => {
                self.state = State::Stopped;
                (Reply::Accepted, vec![Effect::Show])
            }
            (
                State::Stopped | State::Unwinding { rest: Rest::Stopped | Rest::RemovedNext | Rest::Removed, .. } | State::Removed,
                Input::Stop,
            ) => (Reply::AlreadySo, vec![]),
            (State::Unwinding { rest: Rest::Failed { .. } | Rest::Resting | Rest::Again, .. }, Input::Stop) => {
                self.state = State::Unwinding { shown, rest: Rest::Stopped };
                (Reply::Accepted, vec![])
            }

            (
                State::Starting { .. }
                | State::Active { .. }
                | State::Idle { .. }
                | State::Waking { .. }
                | State::Resting
                | State::Stopped
                | State::Failed { .. },
                Input::Remove,
            ) => {
                let mut undo = self.held(None);
                undo.retain(|step| *step != Step::Volume);
                undo.push(Step::Volume);
                self.unwind(shown, undo, Rest::Removed)
            }
            (State::Unwinding { rest: Rest::RemovedNext | Rest::Removed, .. } | State::Removed, Input::Remove) => {
                (Reply::AlreadySo, vec![])
            }
            (State::Unwinding { rest: Rest::Stopped | Rest::Failed { .. } | Rest::Resting | Rest::Again, .. }, Input::Remove) => {
                self.state = State::Unwinding { shown, rest: Rest::RemovedNext };
                (Reply::Accepted, vec![])
            }

            (State::Starting { instance, .. } | State::Active { instance }, Input::InstanceEnded(of, fault)) if *instance == of => {
                let undo = self.held(None);
                self.unwind(shown, undo, Rest::Failed { fault })
            }
            // Nothing was being done in it: nothing is lost.
            (State::Idle { instance }, Input::InstanceEnded(of, _)) if *instance == of => {
                let undo = self.held(None);
                self.unwind(shown, undo, Rest::Resting)
            }
            (State::Waking { instance }, Input::InstanceEnded(of, _)) if *instance == of => {
                let undo = self.held(None);
                self.unwind(shown, undo, Rest::Again)
            }
            (
                State::Starting { .. }
                | State::Active { .. }
                | State::Idle { .. }
                | State::Waking { .. }
                | State::Resting
                | State::Unwinding { .. }
                | State::Stopped
                | State::Failed { .. }
                | State::Removed,
                Input::InstanceEnded(..),
            ) => (Reply::Ignored(OTHER_INSTANCE), vec![]),

            (State::Unwinding { rest: Rest::RemovedNext, .. }, Input::Unwound(_)) => self.unwind(shown, vec![Step::Volume], Rest::Removed),
            (State::Unwinding { rest: Rest::Again, .. }, Input::Unwound(instance)) => self.begin(instance, Step::Admission),
            (State::Unwinding { rest, .. }, Input::Unwound(_)) => {
                self.state = match rest.clone() {
                    Rest::Stopped => State::Stopped,
                    Rest::Failed { fault } => State::Failed { fault },
                    Rest::Resting | Rest::Again => State::Resting,
                    Rest::RemovedNext | Rest::Removed => State::Removed,
                };
                (Reply::Accepted, vec![Effect::Show])
            }
            (
                State::Starting { .. }
                | State::Active { .. }
                | State::Idle { .. }
                | State::Waking { .. }
                | State::Resting
                | State::Stopped
                | State::Failed { .. }
                | State::Removed,
                Input::Unwound(_),
            ) => (Reply::Ignored("nothing was being undone"), vec![]),
        }
    }

    fn begin(&mut self, instance: InstanceId, step: Step) -> (Reply, Vec<Effect>) {
        self.state = State::Starting { instance: instance.clone(), step };
        (Reply::Accepted, vec![Effect::Show, Effect::Run(instance, step)])
    }

    fn climb(&mut self, done: Step) -> (Reply, Vec<Effect>) {
        let State::Starting { instance, step } = &mut self.state else {
            return (Reply::Ignored("the ladder is no longer climbed"), vec![]);
        };
        if done == Step::Workspace {
            self.workspace_ready = true;
        }
        let mut effects = vec![];
        let above = match done.next() {
            Some(Step::Workspace) if self.workspace_ready => Step::Workspace.next(),
            other => other,
        };
        match above {
            Some(above) => {
                *step = above;
                if done == Step::Register {
                    effects.push(Effect::Show);
                }
                effects.push(Effect::Run(instance.clone(), above));
            }
            None => {
                let instance = instance.clone();
                self.state = State::Active { instance };
                effects.push(Effect::Show);
            }
        }
        (Reply::Accepted, effects)
    }

    /// What the session holds of an engine, top down. A step that failed half-way may hold something, so it is undone as well.
    fn held(&self, failed_at: Option<Step>) -> Vec<Step> {
        let reached = match &self.state {
            State::Starting { step, .. } => failed_at.unwrap_or(*step),
            State::Active { .. } | State::Idle { .. } | State::Waking { .. } => Step::Agent,
            State::Resting | State::Unwinding { .. } | State::Stopped | State::Failed { .. } | State::Removed => return vec![],
        };
        let mut undo = vec![];
        for step in [Step::Start, Step::Create] {
            if reached >= step {
                undo.push(step);
            }
        }
        if reached >= Step::Volume && !self.workspace_ready {
            undo.push(Step::Volume);
        }
        undo
    }

    fn unwind(&mut self, shown: Status, undo: Vec<Step>, rest: Rest) -> (Reply, Vec<Effect>) {
        let instance = self.instance().cloned();
        self.state = State::Unwinding { shown, rest };
        (Reply::Accepted, vec![Effect::Unwind(instance, undo)])
    }
}

#[cfg(test)]
mod tests;
