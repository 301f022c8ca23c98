//! The actor of one session.
//!
//! `next` chooses (receives and timers, cancel safe); `apply` changes state and notes what is to be done; `settle` does it in a fixed order: store the
//! record, append the events, show the new view, run the effects. Desired state is durable before it is acted on: while the store takes no writes the effects of
//! the ladder wait, everything else goes on, and what is to be stored is tried again. Effects run as tasks and come back as inputs.
//!
//! [`command`]: what clients ask; [`news`]: what instances and effects tell; [`effect`]: what is run.

mod command;
pub(crate) mod effect;
mod news;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use openagent_core::activity::{Activity, ActivityTracker};
use openagent_core::event::{EventKind, StepOutcome};
use openagent_core::id::{InstanceId, RequestId};
use openagent_core::instance::{ExitCause, Instance, InstanceState};
use openagent_core::permission::PermissionRule;
use openagent_core::secret::Secret;
use openagent_core::session::lifecycle::{Effect, Input as LifecycleInput, Reply, Rest, State};
use openagent_core::session::{Fault, Status, Step};
use openagent_core::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use super::admission::Permit;
use super::live::Live;
use super::pending::Inbox;
use super::presence::{AttachedTo, Everybody};
use super::step::{CREDENTIALS, Yield};
use super::{Command, INPUTS_MAX, PromptJob, SessionHandle, Shared, View};
use crate::clock;
use crate::event::Item;
use crate::sidecar::{Credentials, SidecarClient};
use crate::store::{SessionRecord, StoreError};
use crate::task::Task;
use crate::vault::Versions;
use effect::Job;

/// Events at the end of a history from which a daemon that starts learns what an agent does and asks.
const RECALLED_MAX: u64 = 2_000;

/// Inputs that are applied before one settling.
const DRAIN_MAX: usize = 64;

/// Time after which what could not be stored is tried again.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// Time after which the actor of a session at rest is let go; it is cheap to raise it again.
const RELEASE_AFTER: Duration = Duration::from_secs(5);

/// Time after which an instance that could not be frozen is tried again.
const FREEZE_RETRY: Duration = Duration::from_secs(60);

/// Own events that are held while the store takes no writes; a session says little of its own then, since its ladder waits.
const HELD_EVENTS_MAX: usize = 256;

/// What reaches a session.
pub enum Input {
    /// From a client.
    Command(Command),
    /// Its place in the queue of those that wait for room.
    Queued(InstanceId, u32),
    /// A step of the ladder ran.
    Stepped(InstanceId, Step, Result<Yield, Fault>, u64),
    /// What was to be undone is undone.
    Unwound,
    /// The instance told this; it is about to be recorded.
    Happened(InstanceId, Vec<EventKind>),
    /// Events were recorded.
    Recorded,
    /// Since when the sidecar does not answer; absent: it answers.
    Reached(InstanceId, Option<Timestamp>),
    /// The sidecar speaks this protocol, which is not the daemon's.
    Outdated(InstanceId, u32),
    /// The instance ended by itself.
    Ended(InstanceId, ExitCause),
    /// The instance is frozen (or thawed), or could not be.
    Frozen(InstanceId, bool, Result<(), Fault>),
    /// An answer reached the agent, or did not.
    Answered(RequestId, Vec<PermissionRule>, bool, Result<(), Fault>, Option<oneshot::Sender<Result<(), Fault>>>),
    /// The agent took a prompt, or did not; with the number of the last news of its work when the prompt was sent.
    Delivered(u64, Result<String, Fault>, oneshot::Sender<Result<String, Fault>>),
    /// The session was at rest for its idle timeout.
    IdleTimeout,
    /// Another session waits for the room that an idle one takes.
    Yield,
    /// The set of stored keys changed.
    KeysChanged,
    /// The sidecar does not have it yet.
    KeysNotPushed,
    /// Who follows the session changed.
    Attached,
    /// What could not be stored is to be tried again.
    StoreAgain,
    /// Nothing was asked of a session without an instance for a while.
    Unused,
}

/// How a session comes into being.
pub enum Birth {
    /// It is new; its first instance is to be made.
    New,
    /// It is new and has a prepared instance, whose sidecar is registered, and the room that this takes.
    Claimed(Credentials, Permit),
    /// It was found in the store, with the room that its instance takes.
    Found(Option<Permit>),
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
    attached: watch::Receiver<Everybody>,
    tracker: ActivityTracker,
    inbox: Inbox,
    live: Option<Live>,
    token: Option<Secret>,
    /// Of the sidecar of a prepared instance, until the ladder is at its registration.
    claimed: Option<Credentials>,
    /// The ladder is climbed with a prepared instance.
    prepared: bool,
    /// The room that the instance takes.
    permit: Option<Permit>,
    /// Ends the wait for room when dropped.
    waiting: Option<DropGuard>,
    queue_position: u32,
    unreachable_since: Option<Timestamp>,
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
    /// Prompts on their way to the agent, which may have to be started anew for them.
    delivering: usize,
    settled: Vec<oneshot::Sender<Result<(), Fault>>>,
    /// Told when the instance is thawed, or cannot be.
    wakers: Vec<oneshot::Sender<Result<(), Fault>>>,
    /// Keys or title may have changed while the sidecar could not be told.
    stale: bool,
    /// The agent is to be started with another model before its next prompt.
    restart_due: bool,
    /// The step that was begun last.
    running: Option<(Step, Task<()>)>,
    stop_grace: Duration,
    idle_at: Option<Instant>,
    /// When the actor is not needed any more, if nobody asks for it until then.
    release_at: Option<Instant>,
    events: Vec<(Timestamp, EventKind)>,
    fresh_journal: bool,
    store: bool,
    retry_at: Option<Instant>,
    gone: bool,
    jobs: Vec<Job>,
}

impl Actor {
    /// Makes the actor of the session that `view` shows and the hold on it. It must be given to a task as [`Actor::run`].
    #[must_use]
    pub fn new(shared: Arc<Shared>, view: Arc<View>) -> (Self, SessionHandle) {
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let id = view.record.session.id.clone();
        let view = watch::Sender::new(view);
        let record = view.borrow().record.clone();
        let client = watch::Sender::new(None);
        let handle = SessionHandle {
            id,
            inputs: sender.clone(),
            view: view.subscribe(),
            client: client.subscribe(),
            presence: super::presence::Presence::default(),
        };
        let stop_grace = shared.stop_grace;
        let keys = shared.vault.versions();
        let actor = Self {
            attached: handle.presence.subscribe(),
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
            claimed: None,
            prepared: false,
            permit: None,
            waiting: None,
            queue_position: 0,
            unreachable_since: None,
            work_news: 0,
            shown: None,
            unconfirmed: vec![],
            replies: vec![],
            delivered: vec![],
            prompts: VecDeque::new(),
            delivering: 0,
            settled: vec![],
            wakers: vec![],
            stale: false,
            restart_due: false,
            running: None,
            stop_grace,
            idle_at: None,
            release_at: None,
            events: vec![],
            fresh_journal: false,
            store: false,
            retry_at: None,
            gone: false,
            jobs: vec![],
        };
        (actor, handle)
    }

    /// Runs until the session is removed, the daemon ends, or `release` lets the actor of a session at rest go, of which the view is all there is to know then.
    /// `raised` is told when the view is right for the first time.
    pub async fn run(mut self, birth: Birth, raised: oneshot::Sender<()>, release: impl Fn(&mpsc::Receiver<Input>) -> bool) {
        match birth {
            Birth::New => {
                self.lifecycle(LifecycleInput::Start(new_instance()));
            }
            Birth::Claimed(credentials, permit) => {
                self.claimed = Some(credentials);
                self.prepared = true;
                self.permit = Some(permit);
                let instance = self.record.instance.as_ref().map_or_else(new_instance, |instance| instance.id.clone());
                self.lifecycle(LifecycleInput::Claim(instance));
            }
            Birth::Found(permit) => {
                self.permit = permit;
                if self.record.lifecycle.instance().is_some() {
                    self.recall().await;
                }
                self.take_up().await;
            }
        }
        self.settle().await;
        let _ = raised.send(());
        while !self.gone
            && let Some(input) = self.next().await
        {
            if matches!(input, Input::Unused) && release(&self.inputs) {
                return;
            }
            self.apply(input);
            for _ in 1..DRAIN_MAX {
                match self.inputs.try_recv() {
                    Ok(input) => self.apply(input),
                    Err(_) => break,
                }
            }
            self.settle().await;
        }
        self.unlink();
    }

    async fn next(&mut self) -> Option<Input> {
        let at = |at: Option<Instant>| async move {
            match at {
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
            Ok(()) = self.attached.changed() => Some(Input::Attached),
            () = at(self.retry_at) => Some(Input::StoreAgain),
            () = at(self.idle_at) => Some(Input::IdleTimeout),
            () = at(self.release_at) => Some(Input::Unused),
        }
    }

    /// Picks up what the daemon left when it ended.
    async fn take_up(&mut self) {
        if let Err(fault) = self.own_driver() {
            tracing::warn!(session = %self.record.session.id, %fault, "a session cannot be taken up");
            self.unreachable_since = Some(clock::now());
            return;
        }
        match self.record.lifecycle.state().clone() {
            State::Active { instance } => self.adopt(instance, true).await,
            State::Idle { instance } => self.adopt(instance, false).await,
            // Whoever prompted it was told that the daemon ended.
            State::Waking { instance } => {
                self.lifecycle(LifecycleInput::WakeFailed(instance.clone()));
                self.adopt(instance, false).await;
            }
            State::Starting { step, .. } => {
                self.instance_ended(Some(ExitCause::NotStarted));
                self.lifecycle(LifecycleInput::Interrupted);
                if step == Step::Admission {
                    // It holds nothing that could be undone, and keeps its place.
                    self.jobs.clear();
                    self.lifecycle(LifecycleInput::Unwound(new_instance()));
                }
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
            State::Resting | State::Stopped | State::Failed { .. } | State::Removed => {}
        }
    }

    /// Whether the daemon uses the driver that the session was made with.
    fn own_driver(&self) -> Result<(), Fault> {
        let (own, used) = (&self.record.session.driver, self.shared.driver.name());
        if own == used {
            return Ok(());
        }
        let message = format!("the session was made with the {own} driver, and this daemon uses the {used} driver");
        Err(Fault::new("OTHER_DRIVER", message, format!("start the daemon with OPENAGENT_DRIVER={own}")))
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
                Effect::Freeze(instance) => self.jobs.push(Job::Freeze(instance)),
                Effect::Wake(instance) => self.jobs.push(Job::Wake(instance)),
                Effect::Unwind(instance, steps) => self.jobs.push(Job::Unwind(instance, steps, self.stop_grace)),
            }
        }
        let after = self.record.lifecycle.status();
        if before != after && matches!(after, Status::Stopped | Status::Error) {
            self.at_rest();
        }
        if !matches!(self.record.lifecycle.state(), State::Starting { step: Step::Admission, .. }) {
            self.waiting = None;
            self.queue_position = 0;
        }
        if !self.record.lifecycle.holds_instance() {
            self.let_go();
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
        self.tell(event);
    }

    fn tell(&mut self, event: EventKind) {
        if self.events.len() < HELD_EVENTS_MAX {
            self.events.push((clock::now(), event));
        }
    }

    fn begin(&mut self, id: InstanceId, step: Step) {
        if step == Step::Admission {
            self.forget_instance();
            self.record.instance = Some(Instance::provisioning(id.clone(), self.record.session.driver.clone(), clock::now()));
        }
        let claimed = step == Step::Workspace && self.claimed.is_some();
        if (step == Step::Admission || claimed)
            && let Some(instance) = self.record.instance.clone()
        {
            self.tell(EventKind::Instance { instance });
        }
        if step == Step::Keys {
            self.record.keys_version += 1;
        }
        self.tell(EventKind::Step { step, outcome: StepOutcome::Started });
        self.jobs.push(Job::Step(id, step));
    }

    /// The session is stopped or failed: nothing that waits for its agent can be done.
    fn at_rest(&mut self) {
        self.unlink();
        self.inbox.clear();
        self.replies.extend(self.unconfirmed.drain(..).map(|(_, reply)| reply));
        let fault = self.record.lifecycle.fault().cloned();
        let fault = fault.unwrap_or_else(|| {
            Fault::new("SESSION_STOPPED", "the session was stopped before its agent was ready", "resume it: openagent resume ID")
        });
        self.refuse_waiting(&fault);
    }

    /// There is no instance any more.
    fn let_go(&mut self) {
        self.forget_instance();
        self.permit = None;
    }

    fn forget_instance(&mut self) {
        self.unlink();
        self.inbox.clear();
        self.replies.extend(self.unconfirmed.drain(..).map(|(_, reply)| reply));
        self.token = None;
        self.claimed = None;
        self.prepared = false;
    }

    fn refuse_waiting(&mut self, fault: &Fault) {
        for prompt in self.prompts.drain(..) {
            let _ = prompt.reply.send(Err(fault.clone()));
        }
        for waker in self.wakers.drain(..) {
            let _ = waker.send(Err(fault.clone()));
        }
    }

    fn unlink(&mut self) {
        self.live = None;
        self.unreachable_since = None;
        self.client.send_replace(None);
    }

    fn instance_ended(&mut self, cause: Option<ExitCause>) {
        if let Some(instance) = &mut self.record.instance
            && instance.ended(cause, clock::now())
        {
            let instance = instance.clone();
            self.tell(EventKind::Instance { instance });
            self.store = true;
        }
    }

    fn go_live(&mut self, instance: InstanceId, credentials: Credentials) -> Option<&mut Live> {
        let actor = self.me.upgrade()?;
        self.unlink();
        let session = self.record.session.id.clone();
        let live = Live::new(Arc::clone(&self.shared), session, instance, credentials, actor, self.client.clone());
        Some(self.live.insert(live))
    }

    fn rearm_idle(&mut self) {
        let timeout = self.record.session.idle_timeout_millis;
        let active = matches!(self.record.lifecycle.state(), State::Active { .. });
        let resting = matches!(self.tracker.activity(), Activity::Quiet | Activity::Done | Activity::Failed);
        // Whoever has a terminal open is at work in it.
        let at_terminal = self.attached.borrow().iter().any(|(_, attached)| attached.to == AttachedTo::Terminal);
        let armed = active && resting && self.delivering == 0 && !at_terminal && timeout > 0;
        // One that could not be frozen is tried again.
        let unfrozen = matches!(self.record.lifecycle.state(), State::Idle { .. })
            && self.record.instance.as_ref().is_some_and(|instance| instance.state == InstanceState::Running);
        let after = if armed { Some(Duration::from_millis(timeout)) } else { unfrozen.then_some(FREEZE_RETRY) };
        // Whoever only looks does not keep it awake.
        self.idle_at = after.map(|after| self.idle_at.unwrap_or_else(|| Instant::now() + after));
    }

    /// A stopped or failed session to which nothing happens needs no actor.
    fn rearm_release(&mut self) {
        let at_rest = matches!(self.record.lifecycle.state(), State::Stopped | State::Failed { .. } | State::Resting);
        let unused = at_rest && self.retry_at.is_none() && self.attached.borrow().is_empty();
        self.release_at = unused.then(|| Instant::now() + RELEASE_AFTER);
    }

    /// Makes durable, shows, and acts, in this order.
    async fn settle(&mut self) {
        let stored = self.make_durable().await;
        self.rearm_idle();
        if *self.record.lifecycle.state() == State::Removed {
            let id = self.record.session.id.clone();
            match self.shared.log.remove(&id).await {
                Ok(()) | Err(StoreError::UnknownSession(_)) => {
                    self.gone = true;
                    self.shared.directory.removed(&id);
                }
                Err(error) => {
                    if self.retry_at.is_none() {
                        tracing::error!(session = %id, %error, "the session's record cannot be removed; it is tried again");
                    }
                    let fault = error.fault();
                    for waiter in self.settled.drain(..) {
                        let _ = waiter.send(Err(fault.clone()));
                    }
                }
            }
        }
        if !self.gone {
            self.publish().await;
        }
        let retry = !self.gone && (stored.is_err() || *self.record.lifecycle.state() == State::Removed);
        self.retry_at = retry.then(|| Instant::now() + STORE_RETRY);
        self.rearm_release();
        if matches!(self.record.lifecycle.state(), State::Stopped | State::Failed { .. } | State::Resting) || self.gone {
            for waiter in self.settled.drain(..) {
                let _ = waiter.send(stored.clone());
            }
        }
        for reply in self.replies.drain(..) {
            let _ = reply.send(stored.clone());
        }
        for (reply, message) in self.delivered.drain(..) {
            let _ = reply.send(Ok(message));
        }
        for job in std::mem::take(&mut self.jobs) {
            if stored.is_err() && matches!(job, Job::Step(..) | Job::Freeze(_)) {
                self.jobs.push(job);
            } else {
                self.start(job);
            }
        }
    }

    async fn make_durable(&mut self) -> Result<(), Fault> {
        let id = self.record.session.id.clone();
        let first = self.retry_at.is_none();
        let failed = |error: StoreError, what: &str| {
            if first {
                tracing::error!(session = %id, %error, "{what} cannot be stored; it is tried again");
            }
            error.fault()
        };
        // Given to the store together, they share one flush; it takes them in this order.
        let (shared, record, events) = (&self.shared, &self.record, &self.events);
        let (stored, reset, appended) = tokio::join!(
            async { if self.store { Some(shared.store.put_session(record).await) } else { None } },
            async { if self.fresh_journal { Some(shared.log.reset_journal(&id).await) } else { None } },
            async { if events.is_empty() { None } else { Some(shared.log.append(&id, events.clone(), None).await) } },
        );
        // Each for itself: what is stored is not to be stored again with what is not.
        self.store &= !matches!(stored, Some(Ok(())));
        self.fresh_journal &= !matches!(reset, Some(Ok(())));
        if matches!(appended, Some(Ok(_))) {
            self.events.clear();
        }
        stored.transpose().map_err(|error| failed(error, "the session's record"))?;
        reset.transpose().map_err(|error| failed(error, "the new journal"))?;
        appended.transpose().map_err(|error| failed(error, "an event of the session"))?;
        Ok(())
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
            queue_position: self.queue_position,
            unreachable_since: self.unreachable_since,
            attached: self.attached.borrow().iter().map(|(_, attached)| attached.clone()).collect(),
        });
        if **self.view.borrow() != *view {
            self.view.send_replace(Arc::clone(&view));
            self.shared.directory.changed(view);
        }
    }

    /// Takes up again an instance that may have gone on running while no daemon was there.
    async fn adopt(&mut self, instance: InstanceId, linked: bool) {
        match self.shared.vault.open_record(CREDENTIALS, &self.record.session.id).await {
            Ok(Some(bytes)) => match Credentials::from_bytes(&bytes) {
                Some(credentials) => {
                    tracing::info!(session = %self.record.session.id, "taking up an instance that was left running");
                    // Keys may have changed while no daemon was there.
                    self.stale = true;
                    if let Some(live) = self.go_live(instance, credentials) {
                        if linked {
                            live.link(None);
                        } else {
                            live.freeze(true);
                        }
                    }
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
                Ok(Item::Delta(_) | Item::Snapshot(_)) => {}
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
