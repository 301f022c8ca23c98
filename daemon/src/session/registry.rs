//! Finds sessions, makes them, and raises them again when the daemon starts.
//!
//! Invariants: a session has one actor at most, because it is raised and let go under one lock. Of a session that is stopped or failed there is only its view in
//! the directory, until somebody asks for it; so what is stored costs a daemon no task.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::actor::{Actor, Birth, Input};
use super::{Command, SessionHandle, Shared, View};
use crate::clock;
use crate::driver::OwnedKind;
use crate::event::LogInfo;
use crate::store::{SessionRecord, StoreError};
use crate::task::TaskError;
use openagent_core::id::SessionId;
use openagent_core::instance::ExitCause;
use openagent_core::session::lifecycle::{Input as LifecycleInput, Lifecycle, Rest, State};
use openagent_core::session::{Fault, Session, Step};
use tokio::sync::{mpsc, oneshot};

/// Sessions that may be stored. Beyond it the lists that clients show are of no use to anyone.
const SESSIONS_MAX: usize = 100_000;

/// Time between two comparisons with the engine. They are a few calls; what matters at once is told by the engine itself.
const RECONCILE_EVERY: Duration = Duration::from_secs(60);

/// Longest time between two looks for idle sessions while others wait for room.
const MAKE_ROOM_PAUSE: Duration = Duration::from_secs(2);

/// Time for an engine to remove what has ended, beyond the grace period of a stop.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// Sessions by id, as far as they have an actor.
type Raised = HashMap<SessionId, SessionHandle>;

/// All sessions.
#[derive(Clone)]
pub struct SessionRegistry {
    shared: Arc<Shared>,
    raised: Arc<Mutex<Raised>>,
}

impl SessionRegistry {
    /// An empty registry.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, raised: Arc::default() }
    }

    /// What every session uses.
    #[must_use]
    pub const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn with<T>(&self, f: impl FnOnce(&mut Raised) -> T) -> T {
        f(&mut self.raised.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Shows every stored session, raises those that have an instance or are about to, and removes, by label, what the engine holds for sessions that are no more.
    ///
    /// # Errors
    /// [`StoreError`] when the records cannot be read.
    pub async fn raise_all(&self) -> Result<usize, StoreError> {
        let stored = self.shared.store.load_sessions().await?;
        let count = stored.len();
        let mut raised = Vec::new();
        let mut queued = Vec::new();
        for (mut record, cursor) in stored {
            let state = record.lifecycle.state().clone();
            let at_rest = matches!(state, State::Stopped | State::Failed { .. } | State::Resting);
            // The daemon ended before it could begin with the prepared instance that the session had just got.
            if at_rest
                && let Some(instance) = &mut record.instance
                && instance.ended(Some(ExitCause::NotStarted), clock::now())
            {
                self.shared.store.put_session(&record).await?;
            }
            let memory = record.session.limits.memory_bytes;
            let view = Arc::new(View::stored(record, &LogInfo::from(&cursor)));
            self.shared.directory.changed(Arc::clone(&view));
            match state {
                State::Stopped | State::Failed { .. } | State::Resting => {}
                State::Starting { step: Step::Admission, .. } => queued.push(view),
                // Before anybody asks for room: it is taken.
                _ => {
                    let permit = self.shared.admission.adopt(memory);
                    raised.push(self.with(|all| self.raise(all, view, Birth::Found(Some(permit)))).1);
                }
            }
        }
        // Nobody is told what an agent does before it is known. An actor that ended instead is reported elsewhere.
        for right in raised {
            let _ = right.await;
        }
        queued.sort_by_key(|view| view.record.instance.as_ref().map(|instance| instance.created_at));
        for view in queued {
            let (_, right) = self.with(|all| self.raise(all, view, Birth::Found(None)));
            let _ = right.await;
        }
        let (registry, stop) = (self.clone(), self.shared.tasks.token().clone());
        self.shared.tasks.spawn("reconcile", async move {
            stop.run_until_cancelled(registry.reconcile()).await;
        });
        let shared = Arc::clone(&self.shared);
        self.shared.tasks.spawn("warm-pool", async move { shared.pool.keep(&shared).await });
        let (registry, stop) = (self.clone(), self.shared.tasks.token().clone());
        self.shared.tasks.spawn("make-room", async move {
            stop.run_until_cancelled(registry.make_room()).await;
        });
        Ok(count)
    }

    /// Compares what is stored with what the engine holds, now and from time to time: somebody else may have been at work there.
    async fn reconcile(&self) {
        loop {
            self.remove_orphans().await;
            tokio::time::sleep(RECONCILE_EVERY).await;
        }
    }

    /// While sessions wait for room, has idle ones give theirs up, the longest idle first.
    async fn make_room(&self) {
        let mut load = self.shared.admission.load();
        while load.wait_for(|load| load.waiting > 0).await.is_ok() {
            let views = self.shared.directory.all();
            let giving =
                views.iter().filter(|view| matches!(view.record.lifecycle.state(), State::Unwinding { rest: Rest::Resting, .. })).count();
            let enough = giving >= usize::try_from(load.borrow().waiting).unwrap_or(usize::MAX);
            let idle = views.iter().filter(|view| !enough && matches!(view.record.lifecycle.state(), State::Idle { .. }));
            if let Some(view) = idle.min_by_key(|view| view.updated_at)
                && let Some(handle) = self.get(&view.record.session.id)
            {
                tracing::info!(session = %handle.id(), "an idle session gives its room to one that waits");
                handle.yield_room();
            }
            // Its end takes a moment, and another session may become idle meanwhile.
            let _ = tokio::time::timeout(MAKE_ROOM_PAUSE, load.changed()).await;
        }
    }

    async fn remove_orphans(&self) {
        let driver = &self.shared.driver;
        let owned = match driver.list().await {
            Ok(owned) => owned,
            Err(fault) => {
                tracing::warn!(%fault, "what the engine holds cannot be listed");
                return;
            }
        };
        for thing in owned {
            // First: what it hands over has a session before it is no longer the pool's.
            let pooled = self.shared.pool.owns(&thing.session);
            let known = self.view(&thing.session);
            let wanted = match (&known, &thing.instance, thing.kind) {
                (None, _, _) if pooled => true,
                (None, _, _) | (Some(_), _, OwnedKind::Reader) => false,
                (Some(_), _, OwnedKind::Volume) => true,
                (Some(view), instance, OwnedKind::Instance) => {
                    let last = view.record.instance.as_ref();
                    last.is_some_and(|last| Some(&last.id) == instance.as_ref() && last.is_live())
                }
            };
            if wanted {
                continue;
            }
            let removed = match (thing.kind, &thing.instance) {
                (OwnedKind::Instance | OwnedKind::Reader, Some(instance)) => driver.remove(&thing.session, instance).await,
                (OwnedKind::Volume, _) => driver.remove_volumes(&thing.session).await,
                (OwnedKind::Instance | OwnedKind::Reader, None) => Ok(()),
            };
            match removed {
                Ok(()) => tracing::info!(session = %thing.session, kind = ?thing.kind, "removed what no session owns"),
                Err(fault) => tracing::warn!(session = %thing.session, kind = ?thing.kind, %fault, "an orphan cannot be removed"),
            }
        }
    }

    /// Makes a session; its first instance is provisioned from now on.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`, `STORE_FAILED`.
    pub async fn create(&self, session: Session) -> Result<SessionHandle, Fault> {
        // To its end, also when whoever asked for it goes: what was half made would be nobody's.
        let registry = self.clone();
        let made = self.shared.tasks.spawn("session-create", async move { registry.create_now(session).await });
        made.await.unwrap_or_else(|_| Err(Fault::new("DAEMON_STOPPING", "the daemon is ending", "try again in a moment")))
    }

    async fn create_now(&self, session: Session) -> Result<SessionHandle, Fault> {
        if self.shared.directory.count() >= SESSIONS_MAX {
            return Err(Fault::new("RESOURCE_EXHAUSTED", "there are too many sessions", "remove old ones: openagent rm ID"));
        }
        let mut record = SessionRecord { session, lifecycle: Lifecycle::default(), instance: None, keys_version: 0 };
        let (birth, owned) = match self.shared.pool.claim(&self.shared, &record.session).await {
            Some(slot) => {
                record.session.id = slot.session.id.clone();
                record.instance = Some(slot.instance);
                (Birth::Claimed(slot.credentials, slot.permit), Some(slot.owned))
            }
            None => (Birth::New, None),
        };
        // A prepared instance is lost with a record that cannot be stored: nobody owns it any more, and it is removed as such.
        self.shared.store.put_session(&record).await.map_err(|error| error.fault())?;
        let view = Arc::new(View::stored(record, &LogInfo::default()));
        let (handle, raised) = self.with(|all| self.raise(all, view, birth));
        drop(owned);
        // Whoever made it sees it being created, not the stopped session that it is before its actor runs.
        let _ = raised.await;
        Ok(handle)
    }

    fn raise(&self, all: &mut Raised, view: Arc<View>, birth: Birth) -> (SessionHandle, oneshot::Receiver<()>) {
        let (actor, handle) = Actor::new(Arc::clone(&self.shared), view);
        let id = handle.id().clone();
        all.insert(id.clone(), handle.clone());
        let (right, raised) = oneshot::channel();
        let (registry, own) = (self.clone(), id.clone());
        let release = move |inputs: &mpsc::Receiver<Input>| registry.release(&own, inputs);
        let task = self.shared.tasks.spawn("session", Box::pin(actor.run(birth, right, release)));
        let registry = self.clone();
        let last = handle.view.clone();
        self.shared.tasks.spawn("session-watch", async move {
            match task.await {
                Ok(()) if registry.shared.tasks.token().is_cancelled() => {}
                Ok(()) | Err(TaskError::Dropped(_)) => registry.forget_ended(&id),
                Err(TaskError::Panicked(_)) => {
                    let view = Arc::clone(&last.borrow());
                    registry.raise_failed(&view);
                }
            }
        });
        (handle, raised)
    }

    /// Lets an actor go that nobody else holds and nothing was asked of; answers whether it has gone.
    fn release(&self, id: &SessionId, inputs: &mpsc::Receiver<Input>) -> bool {
        self.with(|all| {
            // Handles are given away under this lock only, and effects that are on their way hold a sender, too.
            let followed = all.get(id).is_some_and(|handle| !handle.presence.subscribe().borrow().is_empty());
            let unused = inputs.is_empty() && inputs.sender_strong_count() == 1 && !followed;
            if unused {
                all.remove(id);
            }
            unused
        })
    }

    /// Takes a session out whose actor has ended. One that was let go may have been raised anew since.
    fn forget_ended(&self, id: &SessionId) {
        self.with(|all| {
            if all.get(id).is_some_and(|handle| handle.inputs.is_closed()) {
                all.remove(id);
            }
        });
    }

    /// A session whose actor panicked becomes a failed session; the daemon and the others live on.
    fn raise_failed(&self, last: &View) {
        let mut record = last.record.clone();
        if let Some(instance) = record.lifecycle.instance().cloned() {
            let fault = Fault::new("INTERNAL", "the daemon made a mistake with this session", "resume it: openagent resume ID");
            record.lifecycle.apply(LifecycleInput::InstanceEnded(instance, fault));
        }
        let info = LogInfo { last_seq: last.last_seq, journal_seq: 0, updated_at: Some(last.updated_at), usage: last.usage };
        let view = Arc::new(View::stored(record, &info));
        self.shared.directory.changed(Arc::clone(&view));
        self.with(|all| self.raise(all, view, Birth::Found(None)));
    }

    /// Stops every session that has an instance, or waits for one, all at once. Bounded by the grace period that each gets; what has not ended then is ended by
    /// the next daemon.
    pub async fn stop_all(&self) {
        let handles: Vec<SessionHandle> = self.with(|all| all.values().cloned().collect());
        let stops = handles.into_iter().filter(|handle| handle.view().record.lifecycle.holds_instance()).map(|handle| async move {
            if let Err(fault) = handle.ask(|reply| Command::Stop(None, reply)).await {
                tracing::warn!(session = %handle.id(), %fault, "a session was not stopped");
            }
        });
        let all = futures::future::join_all(stops);
        if tokio::time::timeout(self.shared.stop_grace + STOP_MARGIN, all).await.is_err() {
            tracing::warn!("some sessions did not stop in time");
        }
    }

    /// The session of this id; raised, if it has no actor.
    #[must_use]
    pub fn get(&self, id: &SessionId) -> Option<SessionHandle> {
        self.with(|all| {
            if let Some(handle) = all.get(id) {
                return Some(handle.clone());
            }
            let view = self.shared.directory.get(id)?;
            Some(self.raise(all, view, Birth::Found(None)).0)
        })
    }

    /// The session of this id as it is shown now; it is not raised for this.
    #[must_use]
    pub fn view(&self, id: &SessionId) -> Option<Arc<View>> {
        // One that was just made is not in the directory yet.
        self.with(|all| all.get(id).map(SessionHandle::view)).or_else(|| self.shared.directory.get(id))
    }

    /// The session that a client names, as it is: whoever has seen the end of its history, which may be a moment ahead of its view, is told the state and the sums
    /// up to there. One with too much to do is shown as it was last.
    ///
    /// # Errors
    /// `NOT_FOUND`, `INVALID` for what is no id, `STORE_FAILED`.
    pub async fn look(&self, id: &str) -> Result<View, Fault> {
        let id = parse(id)?;
        if let Some(handle) = self.with(|all| all.get(&id).cloned()) {
            let _ = handle.ask(Command::Look).await;
        }
        let mut view = self.view(&id).ok_or_else(|| unknown(&id))?.as_ref().clone();
        let info = self.shared.log.info(&id).await.map_err(|error| error.fault())?;
        (view.usage, view.last_seq) = (info.usage, info.last_seq);
        Ok(view)
    }

    /// The session that a client names.
    ///
    /// # Errors
    /// `NOT_FOUND`, `INVALID` for what is no id.
    pub fn find(&self, id: &str) -> Result<SessionHandle, Fault> {
        let id = parse(id)?;
        self.get(&id).ok_or_else(|| unknown(&id))
    }
}

fn parse(id: &str) -> Result<SessionId, Fault> {
    id.parse().map_err(|error: openagent_core::id::InvalidId| Fault::new("INVALID", error.to_string(), ""))
}

fn unknown(id: &SessionId) -> Fault {
    Fault::new("NOT_FOUND", format!("there is no session {id}"), "list them: openagent ls")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
