//! Finds sessions, makes them, and raises them again when the daemon starts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::actor::{Actor, Birth};
use super::{Command, SessionHandle, Shared};
use crate::driver::OwnedKind;
use crate::event::LogInfo;
use crate::store::{SessionRecord, StoreError};
use crate::task::TaskError;
use openagent_core::id::SessionId;
use openagent_core::session::lifecycle::{Input, Lifecycle, State};
use openagent_core::session::{Fault, Session};
use tokio::sync::oneshot;

/// Sessions that may be stored. Beyond it the lists that clients show are of no use to anyone.
const SESSIONS_MAX: usize = 100_000;

/// Time between two comparisons with the engine. They are a few calls; what matters at once is told by the engine itself.
const RECONCILE_EVERY: Duration = Duration::from_secs(60);

/// Longest time between two looks for idle sessions while others wait for room.
const MAKE_ROOM_PAUSE: Duration = Duration::from_secs(2);

/// Time for an engine to remove what has ended, beyond the grace period of a stop.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// All sessions.
#[derive(Clone)]
pub struct SessionRegistry {
    shared: Arc<Shared>,
    sessions: Arc<Mutex<HashMap<SessionId, SessionHandle>>>,
}

impl SessionRegistry {
    /// An empty registry.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, sessions: Arc::default() }
    }

    /// What every session uses.
    #[must_use]
    pub const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashMap<SessionId, SessionHandle>) -> T) -> T {
        f(&mut self.sessions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Raises every stored session and removes, by label, what the engine holds for sessions that are no more.
    ///
    /// # Errors
    /// [`StoreError`] when the records cannot be read.
    pub async fn raise_all(&self) -> Result<usize, StoreError> {
        let stored = self.shared.store.load_sessions().await?;
        let count = stored.len();
        let mut raised = Vec::with_capacity(count);
        for (record, cursor) in stored {
            let (_, right) = self.raise(record, LogInfo::from(&cursor), Birth::Found);
            raised.push(right);
        }
        // Nobody is told what an agent does before it is known. An actor that ended instead is reported elsewhere.
        for right in raised {
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
            let idle = views.iter().filter(|view| matches!(view.record.lifecycle.state(), State::Idle { .. }));
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
            let known = self.get(&thing.session).map(|handle| handle.view());
            let wanted = match (&known, &thing.instance, thing.kind) {
                (None, _, _) if self.shared.pool.owns(&thing.session) => true,
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
        if self.with(|sessions| sessions.len()) >= SESSIONS_MAX {
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
        let (handle, raised) = self.raise(record, LogInfo::default(), birth);
        drop(owned);
        // Whoever made it sees it being created, not the stopped session that it is before its actor runs.
        let _ = raised.await;
        Ok(handle)
    }

    fn raise(&self, record: SessionRecord, info: LogInfo, birth: Birth) -> (SessionHandle, oneshot::Receiver<()>) {
        let (actor, handle) = Actor::new(Arc::clone(&self.shared), record, info);
        let id = handle.id().clone();
        if matches!(birth, Birth::Found) {
            self.shared.directory.changed(handle.view());
        }
        self.with(|sessions| sessions.insert(id.clone(), handle.clone()));
        let (right, raised) = oneshot::channel();
        let task = self.shared.tasks.spawn("session", Box::pin(actor.run(birth, right)));
        let registry = self.clone();
        let last = handle.clone();
        self.shared.tasks.spawn("session-watch", async move {
            match task.await {
                Ok(()) if registry.shared.tasks.token().is_cancelled() => {}
                Ok(()) | Err(TaskError::Dropped(_)) => {
                    registry.with(|sessions| sessions.remove(&id));
                }
                Err(TaskError::Panicked(_)) => registry.raise_failed(&last),
            }
        });
        (handle, raised)
    }

    /// A session whose actor panicked becomes a failed session; the daemon and the others live on.
    fn raise_failed(&self, last: &SessionHandle) {
        let view = last.view();
        let mut record = view.record.clone();
        if let Some(instance) = record.lifecycle.instance().cloned() {
            let fault = Fault::new("INTERNAL", "the daemon made a mistake with this session", "resume it: openagent resume ID");
            record.lifecycle.apply(Input::InstanceEnded(instance, fault));
        }
        let info = LogInfo { last_seq: view.last_seq, journal_seq: 0, updated_at: Some(view.updated_at), usage: view.usage };
        self.raise(record, info, Birth::Found);
    }

    /// Stops every session that has an instance, or waits for one, all at once. Bounded by the grace period that each gets; what has not ended then is ended by
    /// the next daemon.
    pub async fn stop_all(&self) {
        let handles: Vec<SessionHandle> = self.with(|sessions| sessions.values().cloned().collect());
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

    /// The session of this id.
    #[must_use]
    pub fn get(&self, id: &SessionId) -> Option<SessionHandle> {
        self.with(|sessions| sessions.get(id).cloned())
    }

    /// The session that a client names.
    ///
    /// # Errors
    /// `NOT_FOUND`, `INVALID` for what is no id.
    pub fn find(&self, id: &str) -> Result<SessionHandle, Fault> {
        let id: SessionId = id.parse().map_err(|error: openagent_core::id::InvalidId| Fault::new("INVALID", error.to_string(), ""))?;
        self.get(&id).ok_or_else(|| Fault::new("NOT_FOUND", format!("there is no session {id}"), "list them: openagent ls"))
    }
}
