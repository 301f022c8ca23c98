//! The effects of a session's actor: each runs as a task and comes back as an input, or answers whoever asked.
//!
//! An effect that needs the sidecar waits, for a bounded time, until the link is there: a prompt that arrives while a daemon that just started takes up its
//! links is not refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openagent_core::id::InstanceId;
use openagent_core::permission::{PermissionResponse, PermissionRule};
use openagent_core::session::lifecycle::State;
use openagent_core::session::{Fault, Session, Step};
use openagent_proto::sidecar as wire;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Actor, Input, new_instance};
use crate::session::admission::{Permit, Ticket};
use crate::session::step::{StepRun, Yield, push_keys};
use crate::session::{PermissionAnswer, PromptJob, QuestionAnswer};
use crate::sidecar::{Credentials, SidecarClient, SidecarError};

/// Time that a caller waits for a link that is being taken up again.
const LINK_PATIENCE: Duration = Duration::from_secs(20);

/// Time that a prompt waits for an agent that is started again, and between two tries; covers the pauses before the first restarts.
const AGENT_PATIENCE: Duration = Duration::from_secs(30);
const AGENT_PAUSE: Duration = Duration::from_millis(200);

/// Answer of a sidecar whose agent does not accept prompts yet.
const NOT_READY: &str = wire::ErrorCode::NotReady.wire().0;

/// Effects that wait for the state they follow from to be durable.
pub(super) enum Job {
    Step(InstanceId, Step),
    Unwind(Option<InstanceId>, Vec<Step>, Duration),
    Freeze(InstanceId),
    Wake(InstanceId),
    Deliver(PromptJob),
    Answer(PermissionAnswer, Vec<PermissionRule>, Option<oneshot::Sender<Result<(), Fault>>>),
    Reply(QuestionAnswer, oneshot::Sender<Result<(), Fault>>),
    Abort(oneshot::Sender<Result<(), Fault>>),
    Title(String),
    PushKeys,
}

impl Actor {
    fn step_run(&self, instance: InstanceId) -> StepRun {
        StepRun {
            shared: Arc::clone(&self.shared),
            session: self.record.session.clone(),
            instance,
            token: self.token.clone(),
            claimed: self.claimed.clone(),
            connected: self.connected(),
            keys_version: self.record.keys_version,
            keeps_volumes: self.record.lifecycle.workspace_ready(),
        }
    }

    fn is_at(&self, instance: &InstanceId, step: Step) -> bool {
        matches!(self.record.lifecycle.state(), State::Starting { instance: now, step: at } if now == instance && *at == step)
    }

    fn connected(&self) -> Option<(SidecarClient, Credentials)> {
        Some((self.client.borrow().clone()?, self.live.as_ref()?.credentials.clone()))
    }

    pub(super) fn start(&mut self, job: Job) {
        let Some(me) = self.me.upgrade() else { return };
        let tasks = self.shared.tasks.clone();
        match job {
            // It waited, and things have changed.
            Job::Step(instance, step) if !self.is_at(&instance, step) => {}
            Job::Step(instance, Step::Admission) => self.ask_for_room(me, instance),
            Job::Step(instance, step) => {
                let mut run = self.step_run(instance.clone());
                // Lost since the registration: the link dials anew.
                let lost = self.live.as_ref().filter(|_| step > Step::Register && run.connected.is_none());
                let lost = lost.map(|live| live.credentials.clone());
                let client = self.client.subscribe();
                let task = tasks.spawn("session-step", async move {
                    if let Some(credentials) = lost {
                        run.connected = linked(client).await.ok().map(|client| (client, credentials));
                    }
                    let (outcome, millis) = run.run(step).await;
                    let _ = me.send(Input::Stepped(instance, step, outcome, millis)).await;
                });
                self.running = Some((step, task));
            }
            Job::Unwind(instance, steps, grace) => {
                let run = self.step_run(instance.unwrap_or_else(new_instance));
                let running = self.running.take();
                tasks.spawn("session-unwind", async move {
                    if let Some((step, task)) = running {
                        // What is made behind the back of its undoing would be nobody's.
                        let _ = tokio::time::timeout(patience(step), task).await;
                    }
                    run.unwind(&steps, grace).await;
                    let _ = me.send(Input::Unwound).await;
                });
            }
            Job::Freeze(instance) => {
                if let Some(live) = &mut self.live
                    && matches!(self.record.lifecycle.state(), State::Idle { instance: now } if *now == instance)
                {
                    live.unlink();
                    live.freeze(true);
                    self.unreachable_since = None;
                }
            }
            Job::Wake(instance) => {
                if let Some(live) = &self.live
                    && self.record.lifecycle.instance() == Some(&instance)
                {
                    live.freeze(false);
                }
            }
            Job::Deliver(job) => self.deliver(job),
            Job::Answer(answer, rules, reply) => {
                let client = self.client.subscribe();
                let store = self.shared.store.clone();
                tasks.spawn("session-permission", async move {
                    let body = wire::PermissionReply {
                        id: answer.id.to_string(),
                        response: response_name(answer.response).to_owned(),
                        reason: answer.reason,
                        by: answer.by,
                    };
                    let outcome = match linked(client).await {
                        Ok(client) => client.answer_permission(&body).await.map_err(|error| error.fault()),
                        Err(fault) => Err(fault),
                    };
                    let mut everywhere = outcome.is_ok() && answer.response == PermissionResponse::Always;
                    let mut reply = reply;
                    for rule in rules.iter().filter(|_| everywhere) {
                        if let Err(error) = store.put_rule(rule).await {
                            let Fault { code, message, hint } = error.fault();
                            everywhere = false;
                            if let Some(reply) = reply.take() {
                                let message =
                                    format!("the answer was given for this session, and cannot be remembered for others: {message}");
                                let _ = reply.send(Err(Fault::new(&code, message, hint)));
                            }
                            break;
                        }
                    }
                    let _ = me.send(Input::Answered(answer.id, rules, everywhere, outcome, reply)).await;
                });
            }
            Job::Reply(answer, reply) => {
                let client = self.client.subscribe();
                tasks.spawn("session-question", async move {
                    let body = wire::QuestionReply { id: answer.id.to_string(), answers: answer.answers, by: answer.by };
                    let outcome = match linked(client).await {
                        Ok(client) => client.answer_question(&body).await.map_err(|error| error.fault()),
                        Err(fault) => Err(fault),
                    };
                    let _ = me.send(Input::Answered(answer.id, vec![], false, outcome, Some(reply))).await;
                });
            }
            Job::Abort(reply) => {
                let client = self.client.subscribe();
                tasks.spawn("session-abort", async move {
                    let outcome = match linked(client).await {
                        Ok(client) => client.abort().await.map_err(|error| error.fault()),
                        Err(fault) => Err(fault),
                    };
                    let _ = reply.send(outcome);
                });
            }
            Job::Title(title) => {
                let client = self.client.subscribe();
                tasks.spawn("session-title", async move {
                    if let Ok(client) = linked(client).await
                        && let Err(error) = client.rename(&title).await
                    {
                        tracing::warn!(%error, "the agent was not told its new title");
                    }
                });
            }
            Job::PushKeys => {
                let Some(credentials) = self.live.as_ref().map(|live| live.credentials.clone()) else { return };
                let (shared, session, version) = (Arc::clone(&self.shared), self.record.session.clone(), self.record.keys_version);
                let client = self.client.subscribe();
                tasks.spawn("session-keys", async move {
                    let pushed = match linked(client).await {
                        Ok(client) => push_keys(&shared, &session, &client, &credentials, version).await,
                        Err(fault) => Err(fault),
                    };
                    if let Err(fault) = pushed {
                        tracing::error!(session = %session.id, %fault, "the sidecar does not have the present keys");
                        let _ = me.send(Input::KeysNotPushed).await;
                    }
                });
            }
        }
    }

    /// Waits for room in a task that ends with the wish for it.
    fn ask_for_room(&mut self, me: mpsc::Sender<Input>, instance: InstanceId) {
        // Asked for at once, so that the order is that of asking.
        let ticket = self.permit.is_none().then(|| self.shared.admission.ask(self.record.session.limits.memory_bytes)).transpose();
        let cancel = self.shared.tasks.token().child_token();
        self.waiting = Some(cancel.clone().drop_guard());
        let began = Instant::now();
        let wait = async move {
            let outcome = match ticket {
                Ok(None) => Ok(Yield::Nothing),
                Ok(Some(ticket)) => Ok(Yield::Room(room(ticket, &me, &instance).await)),
                Err(fault) => Err(fault),
            };
            let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let _ = me.send(Input::Stepped(instance, Step::Admission, outcome, millis)).await;
        };
        self.shared.tasks.spawn("session-admission", async move { cancel.run_until_cancelled(wait).await });
    }

    /// Model and agent of a prompt become the session's.
    fn deliver(&mut self, job: PromptJob) {
        let before = self.record.session.model.clone();
        let session: &mut Session = &mut self.record.session;
        for (field, new) in [(&mut session.model, job.model), (&mut session.agent, job.agent)] {
            if let Some(new) = new
                && *field != new
            {
                *field = new;
                self.store = true;
            }
        }
        let body = wire::Prompt { text: job.text, model: session.model.clone(), agent: session.agent.clone() };
        // The agent knows the providers that were usable when it started; another one may have got its key since.
        self.restart_due |= before != session.model;
        let restart = self.restart_due.then(|| self.record.instance.as_ref().map(|instance| instance.id.clone())).flatten();
        let restart = restart.map(|instance| self.step_run(instance).start_agent());
        let client = self.client.subscribe();
        let (Some(me), news) = (self.me.upgrade(), self.work_news) else { return };
        self.delivering += 1;
        self.shared.tasks.spawn("session-prompt", async move {
            let outcome = match linked(client).await {
                Ok(client) => prompt(&client, restart.as_ref(), &body).await.map_err(|error| error.fault()),
                Err(fault) => Err(fault),
            };
            let _ = me.send(Input::Delivered(news, outcome, job.reply)).await;
        });
    }
}

/// Time that undoing waits for a step that still runs: the bounds of an engine's calls, and no time for steps that hold nothing of an engine.
const fn patience(step: Step) -> Duration {
    match step {
        Step::Volume | Step::Create | Step::Start => Duration::from_secs(35),
        Step::Register => Duration::from_secs(5),
        Step::Admission | Step::Image | Step::Workspace | Step::Keys | Step::Agent => Duration::ZERO,
    }
}

/// Room to run, told where in the queue it stands until there is some.
async fn room(mut ticket: Ticket, me: &mpsc::Sender<Input>, instance: &InstanceId) -> Permit {
    loop {
        match ticket.redeem() {
            Ok(permit) => return permit,
            Err(place) => {
                let _ = me.send(Input::Queued(instance.clone(), place)).await;
                ticket.changed().await;
            }
        }
    }
}

/// Gives a prompt to an agent that knows its provider.
async fn prompt(client: &SidecarClient, start: Option<&wire::StartAgent>, body: &wire::Prompt) -> Result<String, SidecarError> {
    if let Some(start) = start {
        client.start(start).await?;
    }
    let deadline = Instant::now() + AGENT_PATIENCE;
    loop {
        match client.prompt(body).await {
            // It has just died and is started again by its sidecar.
            Err(SidecarError::Refused { code, .. }) if code == NOT_READY && Instant::now() < deadline => {
                tokio::time::sleep(AGENT_PAUSE).await;
            }
            answer => return answer.map(|answer| answer.message_id),
        }
    }
}

/// The connection to the sidecar, as soon as there is one.
///
/// # Errors
/// `SIDECAR_UNREACHABLE` when there is none within [`LINK_PATIENCE`].
pub(crate) async fn linked(mut client: watch::Receiver<Option<SidecarClient>>) -> Result<SidecarClient, Fault> {
    let unreachable =
        || Fault::new("SIDECAR_UNREACHABLE", "the session's sidecar cannot be reached at the moment", "try again in a moment");
    let found = tokio::time::timeout(LINK_PATIENCE, client.wait_for(Option::is_some)).await;
    found.ok().and_then(Result::ok).and_then(|client| client.clone()).ok_or_else(unreachable)
}

const fn response_name(response: PermissionResponse) -> &'static str {
    match response {
        PermissionResponse::Once => "once",
        PermissionResponse::Session => "session",
        PermissionResponse::Always => "always",
        PermissionResponse::Reject => "reject",
    }
}
