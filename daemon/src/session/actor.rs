//! The actor of one session.
//!
//! `next` chooses (receives and timers, cancel safe); `apply` changes state and notes what is to be done; `settle` does it in a fixed order: store the
//! record, append the events, show the new view, run the effects. Desired state is durable before it is acted on. Effects run as tasks and come back
//! as inputs.

pub(crate) mod effect;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use openagent_core::activity::{Activity, ActivityTracker};
use openagent_core::event::{AgentProcess, Busy, EventKind, StepOutcome};
use openagent_core::id::{InstanceId, RequestId};
use openagent_core::instance::{ExitCause, Instance};
use openagent_core::permission::{PermissionResponse, PermissionRule};
use openagent_core::secret::Secret;
use openagent_core::session::lifecycle::{Effect, Input as LifecycleInput, Reply, Rest, State};
use openagent_core::session::{Fault, Status, Step, TITLE_MAX_CHARS};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::link::Link;
use super::pending::{Inbox, Pending, allowed};
use super::step::{CREDENTIALS, Yield};
use super::{Command, INPUTS_MAX, PermissionAnswer, PromptJob, SessionHandle, Shared, View};
use crate::clock;
use crate::event::{Item, LogInfo};
use crate::sidecar::{Credentials, SidecarClient};
use crate::store::SessionRecord;
use crate::vault::Versions;
use effect::Job;

/// Prompts that may wait for an agent to become ready.
const WAITING_PROMPTS_MAX: usize = 16;

/// Events at the end of a history from which a daemon that starts learns what an agent does and asks.
const RECALLED_MAX: u64 = 2_000;

/// Inputs that are applied before one settling.
const DRAIN_MAX: usize = 64;

/// Name under which remembered answers are given.
const BY_RULE: &str = "rule";

/// What reaches a session.
pub enum Input {
    /// From a client.
    Command(Command),
    /// A step of the ladder ran.
    Stepped(InstanceId, Step, Result<Yield, Fault>, u64),
    /// What was to be undone is undone.
    Unwound,
    /// The instance told this; it is about to be recorded.
    Happened(InstanceId, Vec<EventKind>),
    /// Events were recorded.
    Recorded,
    /// The instance ended by itself.
    Ended(InstanceId, ExitCause),
    /// An answer reached the agent, or did not.
    Answered(RequestId, Vec<PermissionRule>, bool, Result<(), Fault>, Option<oneshot::Sender<Result<(), Fault>>>),
    /// The agent took a prompt, or did not; with the number of the last news of its work when the prompt was sent.
    Delivered(u64, Result<String, Fault>, oneshot::Sender<Result<String, Fault>>),
    /// The session was at rest for its idle timeout.
    IdleTimeout,
    /// The set of stored keys changed.
    KeysChanged,
}

/// How a session comes into being.
pub enum Birth {
    /// It is new; its first instance is to be made.
    New,
    /// It was found in the store when the daemon started.
    Found,
}

struct Live {
    link: Link,
}

/// The actor.
pub struct Actor {
    shared: Arc<Shared>,
    record: SessionRecord,
    inputs: mpsc::Receiver<Input>,
    me: mpsc::WeakSender<Input>,
    view: watch::Sender<Arc<View>>,
    client: watch::Sender<Option<SidecarClient>>,
    keys: watch::Receiver<Versions>,
    tracker: ActivityTracker,
    inbox: Inbox,
    live: Option<Live>,
    token: Option<Secret>,
    /// How often the agent said what it does. A prompt that was taken without any such news since it was sent means work.
    work_news: u64,
    /// The status as it was told last.
    shown: Option<EventKind>,
    /// Answers that reached the agent and whose event is still to come.
    unconfirmed: Vec<(RequestId, oneshot::Sender<Result<(), Fault>>)>,
    /// Told when the view shows what they are about.
    replies: Vec<oneshot::Sender<Result<(), Fault>>>,
    delivered: Vec<(oneshot::Sender<Result<String, Fault>>, String)>,
    prompts: VecDeque<PromptJob>,
    settled: Vec<oneshot::Sender<Result<(), Fault>>>,
    stop_grace: Duration,
    idle_at: Option<Instant>,
    events: Vec<EventKind>,
    fresh_journal: bool,
    store: bool,
    jobs: Vec<Job>,
}

impl Actor {
    /// Makes the actor of `record` and the hold on it. It must be given to a task as [`Actor::run`].
    #[must_use]
    pub fn new(shared: Arc<Shared>, record: SessionRecord, info: LogInfo) -> (Self, SessionHandle) {
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let id = record.session.id.clone();
        let view = watch::Sender::new(Arc::new(View {
            record: record.clone(),
            activity: Activity::Quiet,
            usage: info.usage,
            updated_at: info.updated_at.unwrap_or(record.session.created_at),
            last_seq: info.last_seq,
            pending: vec![],
            queue_position: 0,
            unreachable_since: None,
            attached: vec![],
        }));
        let client = watch::Sender::new(None);
        let handle = SessionHandle { id, inputs: sender.clone(), view: view.subscribe(), client: client.subscribe() };
        let stop_grace = shared.stop_grace;
        let keys = shared.vault.versions();
        let actor = Self {
            shared,
            record,
            inputs,
            me: sender.downgrade(),
            view,
            client,
            keys,
            tracker: ActivityTracker::default(),
            inbox: Inbox::default(),
            live: None,
            token: None,
            work_news: 0,
            shown: None,
            unconfirmed: vec![],
            replies: vec![],
            delivered: vec![],
            prompts: VecDeque::new(),
            settled: vec![],
            stop_grace,
            idle_at: None,
            events: vec![],
            fresh_journal: false,
            store: false,
            jobs: vec![],
        };
        (actor, handle)
    }

    /// Runs until the session is removed or nobody holds it any more.
    /// `raised` is told when the view is right for the first time.
    pub async fn run(mut self, birth: Birth, raised: oneshot::Sender<()>) {
        match birth {
            Birth::New => {
                self.lifecycle(LifecycleInput::Start(new_instance()));
            }
            Birth::Found => {
                if self.record.lifecycle.instance().is_some() {
                    self.recall().await;
                }
                self.take_up().await;
            }
        }
        self.settle().await;
        let _ = raised.send(());
        while let Some(input) = self.next().await {
            self.apply(input);
            for _ in 1..DRAIN_MAX {
                match self.inputs.try_recv() {
                    Ok(input) => self.apply(input),
                    Err(_) => break,
                }
            }
            self.settle().await;
            if *self.record.lifecycle.state() == State::Removed {
                break;
            }
        }
        self.unlink();
    }

    async fn next(&mut self) -> Option<Input> {
        let idle = async {
            match self.idle_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // Inputs first: a prompt that arrived with the timeout keeps the session active.
        tokio::select! {
            biased;
            input = self.inputs.recv() => input,
            () = self.shared.tasks.token().cancelled() => None,
            Ok(()) = self.keys.changed() => Some(Input::KeysChanged),
            () = idle => Some(Input::IdleTimeout),
        }
    }

    /// Picks up what the daemon left when it ended.
    async fn take_up(&mut self) {
        match self.record.lifecycle.state().clone() {
            State::Active { instance } | State::Idle { instance } => self.adopt(instance).await,
            State::Starting { instance, step } => {
                let fault = Fault::new(
                    "START_INTERRUPTED",
                    "the daemon ended while the session was being started",
                    "resume it: openagent resume ID",
                );
                self.lifecycle(LifecycleInput::StepFailed(instance, step, fault));
            }
            State::Unwinding { rest, .. } => {
                let mut steps = vec![Step::Start, Step::Create];
                let removed = matches!(rest, Rest::RemovedNext | Rest::Removed);
                if removed || !self.record.lifecycle.workspace_ready() {
                    steps.push(Step::Volume);
                }
                let instance = self.record.instance.as_ref().map(|instance| instance.id.clone());
                self.jobs.push(Job::Unwind(instance, steps, Duration::ZERO));
            }
            State::Stopped | State::Failed { .. } | State::Removed => {}
        }
    }

    fn lifecycle(&mut self, input: LifecycleInput) -> Reply {
        let before = self.record.lifecycle.status();
        let (reply, effects) = self.record.lifecycle.apply(input);
        if reply == Reply::Accepted {
            self.store = true;
        }
        if let Reply::Ignored(why) = reply {
            tracing::debug!(session = %self.record.session.id, why, "an input was ignored");
        }
        for effect in effects {
            match effect {
                Effect::Show => self.show_status(),
                Effect::Run(instance, step) => self.begin(instance, step),
                Effect::Unwind(instance, steps) => self.jobs.push(Job::Unwind(instance, steps, self.stop_grace)),
            }
        }
        let after = self.record.lifecycle.status();
        if before != after && matches!(after, Status::Stopped | Status::Error) {
            self.at_rest();
        }
        reply
    }

    fn show_status(&mut self) {
        let (status, fault) = (self.record.lifecycle.status(), self.record.lifecycle.fault().cloned());
        let event = EventKind::Session { status, fault, title: self.record.session.title.clone() };
        if self.shown.as_ref() == Some(&event) {
            return;
        }
        self.shown = Some(event.clone());
        self.tracker.apply(&event);
        self.events.push(event);
    }

    fn begin(&mut self, id: InstanceId, step: Step) {
        if step == Step::Image {
            let instance = Instance::provisioning(id.clone(), self.record.session.driver.clone(), clock::now());
            self.record.instance = Some(instance.clone());
            self.events.push(EventKind::Instance { instance });
        }
        if step == Step::Keys {
            self.record.keys_version += 1;
        }
        self.events.push(EventKind::Step { step, outcome: StepOutcome::Started });
        self.jobs.push(Job::Step(id, step));
    }

    /// The session has no instance any more.
    fn at_rest(&mut self) {
        self.unlink();
        self.inbox.clear();
        self.replies.extend(self.unconfirmed.drain(..).map(|(_, reply)| reply));
        self.token = None;
        let fault = self.record.lifecycle.fault().cloned();
        for prompt in self.prompts.drain(..) {
            let stopped =
                || Fault::new("SESSION_STOPPED", "the session was stopped before its agent was ready", "resume it: openagent resume ID");
            let _ = prompt.reply.send(Err(fault.clone().unwrap_or_else(stopped)));
        }
    }

    fn unlink(&mut self) {
        if let Some(live) = self.live.take() {
            live.link.cancel.cancel();
        }
        self.client.send_replace(None);
    }

    fn instance_ended(&mut self, cause: Option<ExitCause>) {
        if let Some(instance) = &mut self.record.instance
            && instance.ended(cause, clock::now())
        {
            self.events.push(EventKind::Instance { instance: instance.clone() });
            self.store = true;
        }
    }

    fn apply(&mut self, input: Input) {
        match input {
            Input::Command(command) => self.command(command),
            Input::Stepped(instance, step, outcome, millis) => self.stepped(instance, step, outcome, millis),
            Input::Unwound => {
                self.instance_ended(None);
                self.lifecycle(LifecycleInput::Unwound);
            }
            Input::Happened(instance, events) if self.record.lifecycle.instance() == Some(&instance) => {
                for event in &events {
                    self.happened(event);
                }
            }
            // What an instance told while it was being ended changes only the history; what was recorded is shown in any case.
            Input::Happened(..) | Input::Recorded => {}
            Input::Ended(instance, cause) => {
                let fault = Fault::new("INSTANCE_ENDED", format!("the sandbox ended: {cause}"), "resume the session: openagent resume ID");
                if self.record.lifecycle.instance() == Some(&instance) {
                    self.instance_ended(Some(cause));
                }
                self.lifecycle(LifecycleInput::InstanceEnded(instance, fault));
            }
            Input::Answered(id, rules, everywhere, outcome, reply) => self.answered(&id, rules, everywhere, outcome, reply),
            Input::Delivered(news, outcome, reply) => match outcome {
                Ok(message) => {
                    if news == self.work_news {
                        self.tracker.apply(&EventKind::Busy { busy: Busy::Working });
                    }
                    self.delivered.push((reply, message));
                }
                Err(fault) => {
                    let _ = reply.send(Err(fault));
                }
            },
            Input::IdleTimeout => {
                self.lifecycle(LifecycleInput::IdleTimeout);
            }
            Input::KeysChanged => {
                if self.live.is_some() && matches!(self.record.lifecycle.state(), State::Active { .. } | State::Idle { .. }) {
                    self.record.keys_version += 1;
                    self.store = true;
                    self.jobs.push(Job::PushKeys);
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Resume(reply) => match verdict(self.lifecycle(LifecycleInput::Start(new_instance()))) {
                Ok(()) => self.replies.push(reply),
                Err(fault) => {
                    let _ = reply.send(Err(fault));
                }
            },
            Command::Stop(grace, reply) => {
                self.stop_grace = grace.unwrap_or(self.shared.stop_grace);
                let outcome = self.lifecycle(LifecycleInput::Stop);
                self.stop_grace = self.shared.stop_grace;
                self.when_settled(outcome, reply);
            }
            Command::Remove(reply) => {
                let outcome = self.lifecycle(LifecycleInput::Remove);
                self.when_settled(outcome, reply);
            }
            Command::Prompt(job) => self.prompt(job),
            Command::Abort(reply) => match self.record.lifecycle.state() {
                State::Active { .. } | State::Idle { .. } => self.jobs.push(Job::Abort(reply)),
                State::Starting { .. } | State::Unwinding { .. } | State::Stopped | State::Failed { .. } | State::Removed => {
                    let _ = reply.send(Ok(()));
                }
            },
            Command::AnswerPermission(answer, reply) => match self.inbox.take(&answer.id, &answer.by) {
                Ok(Pending::Permission(request)) => {
                    let rule = |pattern: &String| PermissionRule { permission: request.permission.clone(), pattern: pattern.clone() };
                    let rules = match answer.response {
                        PermissionResponse::Session | PermissionResponse::Always => request.always.iter().map(rule).collect(),
                        PermissionResponse::Once | PermissionResponse::Reject => vec![],
                    };
                    self.jobs.push(Job::Answer(answer, rules, Some(reply)));
                }
                Ok(Pending::Question(_)) => {
                    self.inbox.release(&answer.id);
                    let _ = reply.send(Err(Fault::new("INVALID", "this request is a question", "answer it: openagent answer")));
                }
                Err(fault) => {
                    let _ = reply.send(Err(fault));
                }
            },
            Command::AnswerQuestion(answer, reply) => match self.inbox.take(&answer.id, &answer.by) {
                Ok(Pending::Question(request)) => {
                    let fits = answer.answers.as_ref().is_none_or(|answers| answers.len() == request.questions.len());
                    if fits {
                        self.jobs.push(Job::Reply(answer, reply));
                    } else {
                        self.inbox.release(&answer.id);
                        let message = format!("{} answers are needed, one for each question", request.questions.len());
                        let _ = reply.send(Err(Fault::new("INVALID", message, "")));
                    }
                }
                Ok(Pending::Permission(_)) => {
                    self.inbox.release(&answer.id);
                    let _ = reply.send(Err(Fault::new("INVALID", "this request asks for permission", "answer it: openagent permit")));
                }
                Err(fault) => {
                    let _ = reply.send(Err(fault));
                }
            },
            Command::Look(reply) => self.replies.push(reply),
            Command::Rename(title, reply) => {
                self.record.session.title_is_users = true;
                self.retitle(title.clone());
                if self.live.is_some() {
                    self.jobs.push(Job::Title(title));
                }
                self.replies.push(reply);
            }
        }
    }

    fn when_settled(&mut self, outcome: Reply, reply: oneshot::Sender<Result<(), Fault>>) {
        let unwinding = matches!(self.record.lifecycle.state(), State::Unwinding { .. });
        match verdict(outcome) {
            Ok(()) if unwinding => self.settled.push(reply),
            Ok(()) => self.replies.push(reply),
            Err(fault) => {
                let _ = reply.send(Err(fault));
            }
        }
    }

    fn retitle(&mut self, title: String) {
        if self.record.session.title != title {
            self.record.session.title = title;
            self.store = true;
            self.show_status();
        }
    }

    fn prompt(&mut self, job: PromptJob) {
        match self.lifecycle(LifecycleInput::Prompted) {
            Reply::Accepted | Reply::AlreadySo | Reply::Ignored(_) => {}
            Reply::Denied(fault) => {
                let _ = job.reply.send(Err(fault));
                return;
            }
        }
        self.idle_at = None;
        match self.record.lifecycle.state() {
            State::Starting { .. } if self.prompts.len() < WAITING_PROMPTS_MAX => self.prompts.push_back(job),
            State::Starting { .. } => {
                let _ =
                    job.reply.send(Err(Fault::new("BUSY", "too many prompts wait for this session already", "wait until it is active")));
            }
            State::Active { .. } | State::Idle { .. } => self.jobs.push(Job::Deliver(job)),
            State::Unwinding { .. } | State::Stopped | State::Failed { .. } | State::Removed => {
                unreachable!("the lifecycle denies prompts in these states")
            }
        }
    }

    fn stepped(&mut self, instance: InstanceId, step: Step, outcome: Result<Yield, Fault>, millis: u64) {
        let current =
            matches!(self.record.lifecycle.state(), State::Starting { instance: now, step: at } if *now == instance && *at == step);
        if !current {
            return;
        }
        match outcome {
            Ok(given) => {
                self.events.push(EventKind::Step { step, outcome: StepOutcome::Done { millis } });
                match given {
                    Yield::Nothing => {}
                    Yield::Token(token) => self.token = Some(token),
                    Yield::Connected(client, credentials) => {
                        self.token = None;
                        if let Some(now) = &mut self.record.instance
                            && now.registered(clock::now())
                        {
                            self.events.push(EventKind::Instance { instance: now.clone() });
                        }
                        self.link(instance.clone(), credentials, Some(client));
                    }
                }
                // New volumes begin with an empty journal.
                self.fresh_journal |= step == Step::Volume && !self.record.lifecycle.workspace_ready();
                self.lifecycle(LifecycleInput::StepDone(instance, step));
                if matches!(self.record.lifecycle.state(), State::Active { .. }) {
                    self.jobs.extend(self.prompts.drain(..).map(Job::Deliver));
                }
            }
            Err(fault) => {
                self.events.push(EventKind::Step { step, outcome: StepOutcome::Failed { fault: fault.clone() } });
                self.instance_ended(Some(ExitCause::NotStarted));
                self.lifecycle(LifecycleInput::StepFailed(instance, step, fault));
            }
        }
    }

    fn link(&mut self, instance: InstanceId, credentials: Credentials, first: Option<SidecarClient>) {
        let Some(actor) = self.me.upgrade() else { return };
        self.unlink();
        let link = Link {
            shared: Arc::clone(&self.shared),
            session: self.record.session.id.clone(),
            instance,
            credentials,
            actor,
            client: self.client.clone(),
            cancel: self.shared.tasks.token().child_token(),
        };
        link.start(first);
        self.live = Some(Live { link });
    }

    fn happened(&mut self, event: &EventKind) {
        self.tracker.apply(event);
        self.inbox.apply(event);
        match event {
            EventKind::Busy { .. } => self.work_news += 1,
            EventKind::TurnEnded { .. } => {
                self.work_news += 1;
                self.replies.extend(self.unconfirmed.drain(..).map(|(_, reply)| reply));
            }
            EventKind::PermissionAnswered { id, .. } | EventKind::QuestionAnswered { id, .. } => {
                self.replies.extend(self.unconfirmed.extract_if(.., |(known, _)| known == id).map(|(_, reply)| reply));
            }
            EventKind::Title { title } if !self.record.session.title_is_users => {
                let title: String = title.chars().filter(|c| !c.is_control()).take(TITLE_MAX_CHARS).collect();
                if !title.trim().is_empty() {
                    self.retitle(title.trim().to_owned());
                }
            }
            EventKind::PermissionAsked { request } => {
                let remembered = allowed(&self.record.session.permission_rules, request) || allowed(&self.shared.rules.borrow(), request);
                if remembered && self.inbox.take(&request.id, BY_RULE).is_ok() {
                    let answer = PermissionAnswer {
                        id: request.id.clone(),
                        response: PermissionResponse::Once,
                        reason: None,
                        by: BY_RULE.to_owned(),
                    };
                    self.jobs.push(Job::Answer(answer, vec![], None));
                }
            }
            EventKind::Agent { process: AgentProcess::Exited { restart_in_millis: None, code } } => {
                let fault = Fault::new(
                    "AGENT_GAVE_UP",
                    format!("the agent's program ended again and again (last with code {code})"),
                    "look at: openagent logs ID; then resume it: openagent resume ID",
                );
                if let Some(instance) = self.record.lifecycle.instance().cloned() {
                    self.lifecycle(LifecycleInput::InstanceEnded(instance, fault));
                }
            }
            _ => {}
        }
    }

    fn answered(
        &mut self,
        id: &RequestId,
        rules: Vec<PermissionRule>,
        everywhere: bool,
        outcome: Result<(), Fault>,
        reply: Option<oneshot::Sender<Result<(), Fault>>>,
    ) {
        if outcome.is_err() {
            self.inbox.release(id);
        } else {
            let known = &mut self.record.session.permission_rules;
            if everywhere {
                self.shared.rules.send_modify(|all| {
                    let mut more = (**all).clone();
                    more.extend(rules);
                    more.sort();
                    more.dedup();
                    *all = Arc::new(more);
                });
            } else {
                for rule in rules {
                    if !known.contains(&rule) && known.len() < openagent_core::permission::PATTERNS_MAX {
                        known.push(rule);
                        self.store = true;
                    }
                }
            }
        }
        match (outcome, reply) {
            (Ok(()), Some(reply)) if self.inbox.waiting().iter().any(|pending| pending.id() == id) => {
                self.unconfirmed.push((id.clone(), reply));
            }
            (outcome, Some(reply)) => {
                let _ = reply.send(outcome);
            }
            (_, None) => {}
        }
    }

    fn rearm_idle(&mut self) {
        let timeout = self.record.session.idle_timeout_millis;
        let active = matches!(self.record.lifecycle.state(), State::Active { .. });
        let resting = matches!(self.tracker.activity(), Activity::Quiet | Activity::Done | Activity::Failed);
        self.idle_at = (active && resting && timeout > 0).then(|| Instant::now() + Duration::from_millis(timeout));
    }

    /// Makes durable, shows, and acts, in this order.
    async fn settle(&mut self) {
        let id = self.record.session.id.clone();
        if std::mem::take(&mut self.store)
            && let Err(error) = self.shared.store.put_session(&self.record).await
        {
            tracing::error!(session = %id, %error, "the session's record cannot be stored");
        }
        if std::mem::take(&mut self.fresh_journal)
            && let Err(error) = self.shared.log.reset_journal(&id).await
        {
            tracing::error!(session = %id, %error, "the new journal cannot be noted");
        }
        let events = std::mem::take(&mut self.events);
        if !events.is_empty() {
            let at = clock::now();
            let stamped = events.into_iter().map(|kind| (at, kind)).collect();
            if let Err(error) = self.shared.log.append(&id, stamped, None).await {
                tracing::error!(session = %id, %error, "events cannot be stored");
            }
        }
        self.rearm_idle();
        if *self.record.lifecycle.state() == State::Removed {
            if let Err(error) = self.shared.log.remove(&id).await {
                tracing::error!(session = %id, %error, "the session's record cannot be removed");
            }
            self.shared.directory.removed(&id);
        } else {
            self.publish().await;
        }
        if matches!(self.record.lifecycle.state(), State::Stopped | State::Failed { .. } | State::Removed) {
            for waiter in self.settled.drain(..) {
                let _ = waiter.send(Ok(()));
            }
        }
        for reply in self.replies.drain(..) {
            let _ = reply.send(Ok(()));
        }
        for (reply, message) in self.delivered.drain(..) {
            let _ = reply.send(Ok(message));
        }
        for job in std::mem::take(&mut self.jobs) {
            self.start(job);
        }
    }

    async fn publish(&self) {
        let id = &self.record.session.id;
        let info = match self.shared.log.info(id).await {
            Ok(info) => info,
            Err(error) => {
                tracing::error!(session = %id, %error, "the end of the history cannot be read");
                return;
            }
        };
        let view = Arc::new(View {
            record: self.record.clone(),
            activity: self.tracker.activity(),
            usage: info.usage,
            updated_at: info.updated_at.unwrap_or(self.record.session.created_at),
            last_seq: info.last_seq,
            pending: self.inbox.waiting().to_vec(),
            queue_position: 0,
            unreachable_since: None,
            attached: vec![],
        });
        if **self.view.borrow() != *view {
            self.view.send_replace(Arc::clone(&view));
            self.shared.directory.changed(view);
        }
    }

    /// Links up again with an instance that may have gone on running while no daemon was there.
    async fn adopt(&mut self, instance: InstanceId) {
        match self.shared.vault.open_record(CREDENTIALS, &self.record.session.id).await {
            Ok(Some(bytes)) => match Credentials::from_bytes(&bytes) {
                Some(credentials) => {
                    tracing::info!(session = %self.record.session.id, "taking up the link with an instance that was left running");
                    self.link(instance, credentials, None);
                    return;
                }
                None => tracing::error!(session = %self.record.session.id, "the credentials of a sidecar cannot be understood"),
            },
            Ok(None) => {}
            Err(error) => tracing::error!(session = %self.record.session.id, %error, "the credentials of a sidecar cannot be read"),
        }
        let fault =
            Fault::new("CREDENTIALS_LOST", "the daemon can no longer speak with the session's sidecar", "resume it: openagent resume ID");
        self.lifecycle(LifecycleInput::InstanceEnded(instance, fault));
    }

    /// Learns again what the agent does and asks, from the end of the history.
    async fn recall(&mut self) {
        let id = self.record.session.id.clone();
        let after = self.view.borrow().last_seq.saturating_sub(RECALLED_MAX);
        let mut reader = match self.shared.log.subscribe(&id, after, false).await {
            Ok(reader) => reader,
            Err(error) => {
                tracing::error!(session = %id, %error, "the history cannot be read");
                return;
            }
        };
        loop {
            match reader.next().await {
                Ok(Item::Event(event)) => {
                    self.tracker.apply(&event.kind);
                    self.inbox.apply(&event.kind);
                }
                Ok(Item::Delta(_)) => {}
                Ok(Item::CaughtUp(_) | Item::Removed) => return,
                Err(error) => {
                    tracing::error!(session = %id, %error, "the history cannot be read");
                    return;
                }
            }
        }
    }
}

fn new_instance() -> InstanceId {
    InstanceId::from_ulid(ulid::Ulid::new())
}

fn verdict(reply: Reply) -> Result<(), Fault> {
    match reply {
        Reply::Accepted | Reply::AlreadySo | Reply::Ignored(_) => Ok(()),
        Reply::Denied(fault) => Err(fault),
    }
}
