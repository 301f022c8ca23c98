//! The warm pool: instances that were prepared before anybody asked for them, up to an agent whose slow first prompt is behind it, and frozen.
//!
//! A slot is a session id that no session has yet, with its volumes and its instance. What an engine fixes at creation therefore carries nothing of the session
//! that takes it but this id. Slots are in memory only: a daemon that starts finds those of its predecessor as things that no session owns, and removes them.
//!
//! Invariants: a slot is given to one session at most, because it is taken out of the list under its lock; what is being made, kept or handed over is named by
//! [`Pool::owns`], so that reconciliation leaves it alone; sessions that wait for room come before slots.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openagent_core::config::PoolConfig;
use openagent_core::id::{InstanceId, SessionId};
use openagent_core::instance::Instance;
use openagent_core::permission::PermissionMode;
use openagent_core::session::{Fault, IdleAction, Limits, NetworkPolicy, Session, Step, WorkspaceSource};
use openagent_proto::sidecar as wire;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::admission::Permit;
use super::step::{StepRun, Yield, start_agent};
use crate::clock;
use crate::driver::Observed;
use crate::sidecar::Credentials;

/// Time between two looks at whether slots are still what a new session would get.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Shortest and longest pause after a slot could not be made.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// Time that a session which took a slot has to itself before the next slot is made: the start of an agent takes whole processors, just when the session's own
/// agent is to answer its first prompt.
const CALM: Duration = Duration::from_secs(3);

/// Time for prepared instances to be removed when the daemon ends.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// What is undone of a slot that nobody takes.
const UNDO: [Step; 3] = [Step::Start, Step::Create, Step::Volume];

/// The model of slots while no provider can be used.
const DEMO_MODEL: &str = "demo/tour";

/// What slots are made for: sessions with the configured settings.
#[derive(Debug, Clone)]
pub struct Template {
    /// How many, and how old.
    pub config: PoolConfig,
    /// `provider/model`, where one is configured.
    pub model: Option<String>,
    /// The agent's mode.
    pub agent: String,
    /// What it may do unasked.
    pub permission_mode: PermissionMode,
    /// What it may use.
    pub limits: Limits,
}

/// A prepared instance.
pub struct Slot {
    /// What it was prepared for; the session that takes it takes its id.
    pub session: Session,
    /// Its instance.
    pub instance: Instance,
    /// Of its sidecar.
    pub credentials: Credentials,
    /// The room that it takes.
    pub permit: Permit,
    /// Names it as owned until it is dropped.
    pub owned: Owned,
    image: String,
    agent: wire::StartAgent,
    made_at: Instant,
}

/// Names a session id as the pool's until it is dropped.
pub struct Owned {
    pool: Pool,
    session: SessionId,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.pool.with(|inner| inner.owned.remove(&self.session));
    }
}

#[derive(Default)]
struct Inner {
    slots: VecDeque<Slot>,
    /// What is being prepared.
    making: Option<(Session, InstanceId)>,
    owned: HashSet<SessionId>,
}

struct Kept {
    template: Template,
    inner: Mutex<Inner>,
    taken: Notify,
    ready: watch::Sender<u32>,
    close: CancellationToken,
    closed: CancellationToken,
}

/// The warm pool. A clone is the same pool.
#[derive(Clone)]
pub struct Pool(Arc<Kept>);

impl Pool {
    /// An empty pool; [`Pool::keep`] fills it.
    #[must_use]
    pub fn new(template: Template) -> Self {
        Self(Arc::new(Kept {
            template,
            inner: Mutex::default(),
            taken: Notify::new(),
            ready: watch::Sender::new(0),
            close: CancellationToken::new(),
            closed: CancellationToken::new(),
        }))
    }

    /// How many slots are ready, and how many are to be.
    #[must_use]
    pub fn counts(&self) -> (u32, u32) {
        (*self.0.ready.borrow(), self.0.template.config.size)
    }

    /// Whether what an engine holds of this session is the pool's.
    #[must_use]
    pub fn owns(&self, session: &SessionId) -> bool {
        self.with(|inner| inner.owned.contains(session))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut inner);
        let ready = u32::try_from(inner.slots.len()).unwrap_or(u32::MAX);
        // Under the lock: what is told last must be what is so.
        self.0.ready.send_if_modified(|now| std::mem::replace(now, ready) != ready);
        result
    }

    fn own(&self, session: &SessionId) -> Owned {
        self.with(|inner| inner.owned.insert(session.clone()));
        Owned { pool: self.clone(), session: session.clone() }
    }

    /// A slot for a session of these settings, if one fits and is still what it was. Nobody else gets it.
    pub async fn claim(&self, shared: &Arc<Shared>, session: &Session) -> Option<Slot> {
        if self.0.template.config.size == 0 || session.driver != shared.driver.name() {
            return None;
        }
        let wanted = start_agent(shared, session);
        loop {
            let slot = self.with(|inner| {
                let at = inner.slots.iter().position(|slot| slot.session.limits == session.limits && serves(&slot.agent, &wanted))?;
                inner.slots.remove(at)
            })?;
            self.0.taken.notify_one();
            let (image, observed) = tokio::join!(shared.driver.ensure_image(), shared.driver.inspect(&slot.session.id, &slot.instance.id));
            if image.is_ok_and(|image| image == slot.image) && observed.is_ok_and(|observed| observed == Observed::Paused) {
                return Some(slot);
            }
            self.discard(shared, slot);
        }
    }

    /// Keeps the pool as the configuration says, until it is closed or the daemon ends; then removes what is left of it.
    pub async fn keep(&self, shared: &Arc<Shared>) {
        if self.0.template.config.size > 0 {
            let ends = async {
                tokio::select! {
                    () = shared.tasks.token().cancelled() => {}
                    () = self.0.close.cancelled() => {}
                }
            };
            tokio::select! {
                () = ends => {}
                () = self.refill(shared) => {}
            }
            let (slots, making) = self.with(|inner| (std::mem::take(&mut inner.slots), inner.making.take()));
            let left = slots.iter().map(|slot| (slot.session.clone(), slot.instance.id.clone())).chain(making);
            let undone = left.map(|(session, instance)| async {
                StepRun::new(Arc::clone(shared), session, instance).unwind(&UNDO, Duration::ZERO).await;
            });
            futures::future::join_all(undone).await;
        }
        self.0.closed.cancel();
    }

    /// Ends the pool: nothing more is prepared, and what is prepared is removed. Bounded; what is left then is an orphan for the next daemon.
    pub async fn close(&self) {
        self.0.close.cancel();
        if tokio::time::timeout(CLOSE_MAX, self.0.closed.cancelled()).await.is_err() {
            tracing::warn!("prepared instances were not removed in time");
        }
    }

    async fn refill(&self, shared: &Arc<Shared>) {
        let mut keys = shared.vault.versions();
        let mut rules = shared.rules.subscribe();
        let mut load = shared.admission.load();
        let mut failures = 0u32;
        let mut again_at = Instant::now();
        loop {
            self.weed(shared).await;
            let missing = self.0.template.config.size.saturating_sub(*self.0.ready.borrow());
            if missing > 0
                && Instant::now() >= again_at
                && let Some(permit) = shared.admission.spare(self.0.template.limits.memory_bytes)
            {
                match self.make(shared, permit).await {
                    Ok(slot) => {
                        failures = 0;
                        self.with(|inner| {
                            inner.making = None;
                            inner.slots.push_back(slot);
                        });
                        continue;
                    }
                    Err(fault) => {
                        let pause = PAUSES.0.saturating_mul(2u32.saturating_pow(failures)).min(PAUSES.1);
                        failures = failures.saturating_add(1);
                        again_at = Instant::now() + pause;
                        tracing::warn!(%fault, again_in_s = pause.as_secs(), "an instance cannot be prepared");
                    }
                }
            }
            let now = Instant::now();
            let next = if again_at > now { again_at.min(now + LOOK_EVERY) } else { now + LOOK_EVERY };
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.0.taken.notified() => tokio::time::sleep(CALM).await,
                _ = keys.changed() => {}
                _ = rules.changed() => {}
                _ = load.changed() => {}
            }
        }
    }

    /// Removes slots that no session would take any more, and all of them while sessions wait for room.
    async fn weed(&self, shared: &Arc<Shared>) {
        let waiting = shared.admission.load().borrow().waiting > 0;
        let image = shared.driver.ensure_image().await.ok();
        let wanted = start_agent(shared, &self.session(shared));
        let max_age = Duration::from_millis(self.0.template.config.max_age_millis);
        let stale = |slot: &Slot| {
            waiting
                || slot.made_at.elapsed() >= max_age
                || image.as_ref().is_some_and(|image| *image != slot.image)
                || !serves(&slot.agent, &wanted)
        };
        let old: Vec<Slot> = self.with(|inner| {
            let (old, kept): (VecDeque<Slot>, VecDeque<Slot>) = std::mem::take(&mut inner.slots).into_iter().partition(stale);
            inner.slots = kept;
            old.into()
        });
        for slot in old {
            tracing::info!(session = %slot.session.id, "a prepared instance is replaced or gives its room up");
            self.discard(shared, slot);
        }
    }

    fn discard(&self, shared: &Arc<Shared>, slot: Slot) {
        let run = StepRun::new(Arc::clone(shared), slot.session.clone(), slot.instance.id.clone());
        shared.tasks.spawn("pool-discard", async move {
            run.unwind(&UNDO, Duration::ZERO).await;
            // Only now is its room free, and its name nobody's.
            drop(slot);
        });
    }

    /// What a session with the configured settings is.
    fn session(&self, shared: &Shared) -> Session {
        let template = &self.0.template;
        let model = shared.catalogue.default_model(|id| shared.has_key(id), template.model.as_deref());
        Session {
            id: SessionId::from_ulid(ulid::Ulid::new()),
            title: String::new(),
            title_is_users: false,
            driver: shared.driver.name().to_owned(),
            workspace: WorkspaceSource::Empty,
            model: model.unwrap_or_else(|| DEMO_MODEL.to_owned()),
            agent: template.agent.clone(),
            network: NetworkPolicy::None,
            limits: template.limits,
            permission_mode: template.permission_mode,
            permission_rules: vec![],
            idle_timeout_millis: 0,
            idle_action: IdleAction::Pause,
            created_at: clock::now(),
        }
    }

    async fn make(&self, shared: &Arc<Shared>, permit: Permit) -> Result<Slot, Fault> {
        let session = self.session(shared);
        let owned = self.own(&session.id);
        let instance = Instance::provisioning(InstanceId::from_ulid(ulid::Ulid::new()), session.driver.clone(), clock::now());
        self.with(|inner| inner.making = Some((session.clone(), instance.id.clone())));
        let mut climb = StepRun::new(Arc::clone(shared), session, instance.id.clone());
        let began = Instant::now();
        match prepare(&mut climb).await {
            Ok((image, credentials, agent)) => {
                let session = climb.session;
                tracing::info!(session = %session.id, millis = began.elapsed().as_millis(), "an instance is prepared");
                Ok(Slot { session, instance, credentials, permit, owned, image, agent, made_at: Instant::now() })
            }
            Err(fault) => {
                climb.unwind(&UNDO, Duration::ZERO).await;
                self.with(|inner| inner.making = None);
                Err(fault)
            }
        }
    }
}

/// From nothing to a frozen instance; gives the identity of its image, what its registration gave, and what its agent was told.
async fn prepare(climb: &mut StepRun) -> Result<(String, Credentials, wire::StartAgent), Fault> {
    let driver = Arc::clone(&climb.shared.driver);
    let image = driver.ensure_image().await?;
    for step in [Step::Volume, Step::Create, Step::Start] {
        if let Yield::Token(token) = climb.run(step).await.0? {
            climb.token = Some(token);
        }
    }
    let (client, credentials) = climb.connect().await?;
    let agent = climb.start_agent();
    client.start(&wire::StartAgent { warm: true, ..agent.clone() }).await.map_err(|error| error.fault())?;
    drop(client);
    driver.pause(&climb.session.id, &climb.instance).await?;
    Ok((image, credentials, agent))
}

/// Whether an agent that was started like this becomes one that is wanted like that without being started anew.
fn serves(slot: &wire::StartAgent, wanted: &wire::StartAgent) -> bool {
    slot.providers == wanted.providers && slot.permission_mode == wanted.permission_mode && slot.allow == wanted.allow
}
