//! What is the case with containers, and when they end: one stream of the engine's events serves all who wait for an end.
//!
//! Events only say where to look; what ended a container is told by looking at it, since engines differ in their events and lose them when they are
//! restarted. So an end is found even if its event is missed: everything watched is looked at by one list call before each subscription, which
//! replays what happened since, and every [`SWEEP_PAUSE`]. Nothing is asked and nothing is subscribed while nobody waits.
//!
//! An absence of the engine is counted whenever its stream breaks or a call fails. A container that was last seen running before an absence, and
//! has ended after it in a way that an engine's own stop looks like, was taken down by it ([`ExitCause::EngineStopped`]). An engine that
//! stops in good order first closes its socket, then ends its containers, and still reports it: that is told by knocking at the socket.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::models::{ContainerState, ContainerStateStatusEnum, EventMessage};
use bollard::query_parameters::{EventsOptionsBuilder, ListContainersOptionsBuilder};
use futures::StreamExt;
use openagent_core::id::InstanceId;
use openagent_core::instance::ExitCause;
use openagent_core::session::Fault;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::super::Observed;
use super::engine::{ASK_LIMIT, Engine};
use super::spec::{LABEL_INSTANCE, LABEL_STATE, container_name};
use crate::task::Tasks;

/// Time after which an engine that cannot be reached is given up by those who wait for an end; it covers a restart and an upgrade.
const ENGINE_PATIENCE: Duration = Duration::from_secs(120);

/// Pause between two looks at everything that is watched, for the case that an event was lost.
const SWEEP_PAUSE: Duration = Duration::from_secs(30);

/// Pauses between tries to reach an engine that went away, the first and the longest.
const RETURN_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How much further back than the last look events are asked for: the engine's clock may differ a little.
const REPLAY_MARGIN: Duration = Duration::from_secs(2);

/// Events after which a container is looked at: an end and a removal, by Docker's names and Podman's.
const EVENTS: [&str; 4] = ["die", "died", "destroy", "remove"];

/// Exit code of a process that a signal killed, without the signal's number.
const SIGNAL_BASE: i64 = 128;

/// Exit code of a process that the engine lost sight of; the sidecar has no such code of its own.
const LOST_EXIT: i64 = 255;

/// What an engine's account of a container means.
fn observed(state: Option<&ContainerState>) -> Observed {
    let Some(state) = state else { return Observed::Created };
    match state.status {
        // Also while it still runs: somebody is removing it by force.
        Some(ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD) => return Observed::Ended(ExitCause::Removed),
        Some(ContainerStateStatusEnum::CREATED) => return Observed::Created,
        Some(ContainerStateStatusEnum::PAUSED) => return Observed::Paused,
        _ if state.paused == Some(true) => return Observed::Paused,
        _ if state.running == Some(true) => return Observed::Running,
        _ => {}
    }
    // Newer engines set the flag for children too, and for good; only a killed main process ended for lack of memory.
    let starved = state.oom_killed == Some(true) && state.exit_code == Some(137);
    Observed::Ended(match state.exit_code {
        _ if starved => ExitCause::OutOfMemory,
        // It was away when the machine, or what runs containers for it, was restarted.
        Some(LOST_EXIT) => ExitCause::EngineStopped,
        Some(code) => match i32::try_from(code - SIGNAL_BASE) {
            Ok(signal @ 1..=64) => ExitCause::Killed { signal },
            _ => ExitCause::Exited { code },
        },
        None => ExitCause::Unwatched,
    })
}

/// Asks the engine what is the case with an instance's container.
pub(super) async fn look(engine: &Engine, instance: &InstanceId) -> Result<Observed, Fault> {
    let client = engine.client()?;
    let name = container_name(instance);
    match engine.call("looking at the container", ASK_LIMIT, client.inspect_container(&name, None)).await {
        Ok(container) => Ok(observed(container.state.as_ref())),
        Err(error) if error.status() == Some(404) => Ok(Observed::Missing),
        Err(error) => Err(error.into()),
    }
}

/// Whether a container that an engine takes down looks like this. The sidecar ends in good order when it is told to.
const fn looks_like_a_stop(cause: &ExitCause) -> bool {
    matches!(cause, ExitCause::Exited { code: 0 } | ExitCause::Killed { signal: 9 | 15 } | ExitCause::Unwatched)
}

/// Somebody waits for its end.
#[derive(Debug)]
struct Watched {
    end: watch::Sender<Option<ExitCause>>,
    since: Instant,
    /// Absences of the engine before the last time that it was seen running.
    running_at: Option<u64>,
}

/// Waits for the ends of containers.
#[derive(Debug)]
pub(super) struct Watch {
    state: Arc<State>,
    tasks: Tasks,
    begun: AtomicBool,
}

impl Watch {
    /// A watch over the containers with this label, which does nothing yet.
    pub(super) fn new(engine: Arc<Engine>, state_label: &str, tasks: Tasks) -> Self {
        let label = format!("{LABEL_STATE}={state_label}");
        let state = State { engine, label, watched: Mutex::default(), wanted: Notify::new(), absences: AtomicU64::new(0) };
        Self { state: Arc::new(state), tasks, begun: AtomicBool::new(false) }
    }

    /// Resolves when the instance's container has ended, with what ended it.
    pub(super) async fn ended(&self, instance: &InstanceId) -> ExitCause {
        let mut waiting = self.state.register(instance);
        if !self.begun.swap(true, Ordering::SeqCst) {
            let (state, stop) = (Arc::clone(&self.state), self.tasks.token().clone());
            self.tasks.spawn("engine events", async move {
                stop.run_until_cancelled(state.run()).await;
            });
        }
        // What ended before is not told by an event. If the engine does not answer, the task looks when it does.
        if let Err(fault) = self.state.look_at(instance).await {
            tracing::debug!(%instance, %fault, "the container cannot be looked at now");
        }
        waiting.end().await
    }
}

/// One who waits; dropping it ends the watch if it is the last one.
struct Waiting {
    state: Arc<State>,
    instance: InstanceId,
    end: Option<watch::Receiver<Option<ExitCause>>>,
}

impl Waiting {
    async fn end(&mut self) -> ExitCause {
        let Some(end) = &mut self.end else { return ExitCause::Unwatched };
        match end.wait_for(Option::is_some).await.map(|cause| cause.clone()) {
            Ok(Some(cause)) => cause,
            // Only with the whole driver.
            Ok(None) | Err(_) => ExitCause::Unwatched,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut watched = self.state.watched();
        self.end = None;
        if watched.get(&self.instance).is_some_and(|watched| watched.end.receiver_count() == 0) {
            watched.remove(&self.instance);
        }
    }
}

#[derive(Debug)]
struct State {
    engine: Arc<Engine>,
    label: String,
    watched: Mutex<HashMap<InstanceId, Watched>>,
    wanted: Notify,
    absences: AtomicU64,
}

impl State {
    fn watched(&self) -> MutexGuard<'_, HashMap<InstanceId, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(self: &Arc<Self>, instance: &InstanceId) -> Waiting {
        let mut all = self.watched();
        // One that was found to have ended is looked at anew: it may have been made and started again.
        all.retain(|id, watched| id != instance || watched.end.borrow().is_none());
        let new = || Watched { end: watch::Sender::new(None), since: Instant::now(), running_at: None };
        let end = all.entry(instance.clone()).or_insert_with(new).end.subscribe();
        self.wanted.notify_one();
        Waiting { state: Arc::clone(self), instance: instance.clone(), end: Some(end) }
    }

    async fn run(&self) {
        let mut silent_since = None;
        let mut pause = RETURN_PAUSES.0;
        loop {
            while self.watched().is_empty() {
                silent_since = None;
                self.wanted.notified().await;
            }
            let mut reached = false;
            let Err(fault) = self.follow(&mut reached).await else { continue };
            self.absences.fetch_add(1, Ordering::SeqCst);
            if reached {
                (silent_since, pause) = (None, RETURN_PAUSES.0);
                tracing::info!(%fault, "the engine's events broke off");
            }
            self.give_up(*silent_since.get_or_insert_with(Instant::now));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETURN_PAUSES.1);
        }
    }

    /// Follows the events until nobody waits any more, or the engine goes away. Tells whether it was reached.
    async fn follow(&self, reached: &mut bool) -> Result<(), Fault> {
        let client = self.engine.client()?;
        let asked_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(REPLAY_MARGIN);
        self.sweep().await?;
        *reached = true;
        let names = EVENTS.map(str::to_owned).to_vec();
        let filters = HashMap::from([("type", vec!["container".to_owned()]), ("label", vec![self.label.clone()]), ("event", names)]);
        let options = EventsOptionsBuilder::default().since(&asked_at.as_secs().to_string()).filters(&filters).build();
        let mut events = Box::pin(client.events(Some(options)));
        let mut sweeps = tokio::time::interval_at(Instant::now() + SWEEP_PAUSE, SWEEP_PAUSE);
        loop {
            tokio::select! {
                event = events.next() => {
                    let event = event.unwrap_or_else(|| Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()));
                    let event = event.map_err(|error| self.engine.fault("following the container engine's events", &error))?;
                    self.heard(event).await?;
                }
                _ = sweeps.tick() => {
                    if self.watched().is_empty() {
                        return Ok(());
                    }
                    self.sweep().await?;
                }
            }
        }
    }

    async fn heard(&self, event: EventMessage) -> Result<(), Fault> {
        let labels = event.actor.and_then(|actor| actor.attributes).unwrap_or_default();
        let Some(instance) = labels.get(LABEL_INSTANCE).and_then(|text| text.parse().ok()) else { return Ok(()) };
        let Err(fault) = self.look_at(&instance).await else { return Ok(()) };
        if self.engine.knock().await.is_ok() {
            return Err(fault);
        }
        // The engine is going, and reports whom it takes along until its stream ends; nobody will tell more before it is back, if it ever is.
        if event.action.is_some_and(|action| action.starts_with("die")) {
            self.tell(&instance, ExitCause::EngineStopped);
        }
        Ok(())
    }

    /// Looks at everything that is watched: by one call, and closer at what does not run.
    async fn sweep(&self) -> Result<(), Fault> {
        let absences = self.absences.load(Ordering::SeqCst);
        let watched: Vec<InstanceId> = self.watched().keys().cloned().collect();
        let client = self.engine.client()?;
        let filters = HashMap::from([("label", vec![self.label.clone()])]);
        let options = ListContainersOptionsBuilder::default().filters(&filters).build();
        let running = self.engine.call("listing containers", ASK_LIMIT, client.list_containers(Some(options))).await?;
        let label = |labels: Option<HashMap<String, String>>| labels?.get(LABEL_INSTANCE)?.parse::<InstanceId>().ok();
        let running: Vec<InstanceId> = running.into_iter().filter_map(|container| label(container.labels)).collect();
        for instance in watched {
            if running.contains(&instance) {
                self.seen_running(&instance, absences);
            } else {
                self.look_at(&instance).await?;
            }
        }
        Ok(())
    }

    fn seen_running(&self, instance: &InstanceId, absences: u64) {
        if let Some(watched) = self.watched().get_mut(instance) {
            watched.running_at = Some(absences);
        }
    }

    fn tell(&self, instance: &InstanceId, cause: ExitCause) {
        if let Some(watched) = self.watched().get(instance) {
            // The first account stands: a container that ended may be removed later.
            watched.end.send_if_modified(|end| end.is_none() && end.replace(cause).is_none());
        }
    }

    /// Looks at one instance, if it is watched, and tells its end. Fails also when the engine turns out to be going.
    async fn look_at(&self, instance: &InstanceId) -> Result<(), Fault> {
        let absences = self.absences.load(Ordering::SeqCst);
        let Some(running_at) = self.watched().get(instance).map(|watched| watched.running_at) else { return Ok(()) };
        match look(&self.engine, instance).await? {
            Observed::Running | Observed::Paused => self.seen_running(instance, absences),
            Observed::Created => {}
            Observed::Missing => self.tell(instance, ExitCause::Removed),
            Observed::Ended(cause) if running_at.is_none() || !looks_like_a_stop(&cause) => self.tell(instance, cause),
            Observed::Ended(_) if running_at < Some(absences) => self.tell(instance, ExitCause::EngineStopped),
            Observed::Ended(cause) => {
                let knocked = self.engine.knock().await;
                self.tell(instance, if knocked.is_ok() { cause } else { ExitCause::EngineStopped });
                return knocked;
            }
        }
        Ok(())
    }

    /// Tells those who have waited long enough that the engine is gone.
    fn give_up(&self, silent_since: Instant) {
        let lost = |watched: &Watched| silent_since.max(watched.since).elapsed() >= ENGINE_PATIENCE;
        let lost: Vec<InstanceId> = self.watched().iter().filter(|(_, watched)| lost(watched)).map(|(id, _)| id.clone()).collect();
        for instance in lost {
            tracing::warn!(%instance, "the engine cannot be reached any more");
            self.tell(&instance, ExitCause::EngineGone);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_container_ended_for_lack_of_memory_only_if_its_main_process_was_killed() {
        use ContainerStateStatusEnum::{CREATED, EXITED, PAUSED, REMOVING, RUNNING};
        let state = |status, code, starved| ContainerState {
            status: Some(status),
            running: Some(matches!(status, RUNNING | PAUSED)),
            exit_code: Some(code),
            oom_killed: Some(starved),
            ..ContainerState::default()
        };
        let table = [
            (state(CREATED, 0, false), Observed::Created),
            (state(RUNNING, 0, true), Observed::Running),
            (state(PAUSED, 0, false), Observed::Paused),
            (state(REMOVING, 0, false), Observed::Ended(ExitCause::Removed)),
            (state(EXITED, 0, true), Observed::Ended(ExitCause::Exited { code: 0 })),
            (state(EXITED, 3, true), Observed::Ended(ExitCause::Exited { code: 3 })),
            (state(EXITED, 137, false), Observed::Ended(ExitCause::Killed { signal: 9 })),
            (state(EXITED, 137, true), Observed::Ended(ExitCause::OutOfMemory)),
            (state(EXITED, 255, false), Observed::Ended(ExitCause::EngineStopped)),
        ];
        for (state, expected) in table {
            assert_eq!(observed(Some(&state)), expected, "{state:?}");
        }
    }

    #[tokio::test]
    async fn an_engine_that_stays_away_is_given_up_by_each_who_has_waited_long_enough() {
        let engine = Engine::new(Some("/nowhere/engine.sock".to_owned()));
        let watch = Watch::new(Arc::new(engine), "label", Tasks::new());
        let [early, late] = ["ins_01ARZ3NDEKTSV4RRFFQ69G5FAV", "ins_01ARZ3NDEKTSV4RRFFQ69G5FAW"].map(|text| text.parse().unwrap());
        let mut waiting = watch.state.register(&early);
        let other = watch.state.register(&late);
        let long_ago = Instant::now().checked_sub(ENGINE_PATIENCE).unwrap();
        watch.state.watched().get_mut(&early).unwrap().since = long_ago;
        watch.state.give_up(Instant::now());
        assert!(watch.state.watched().values().all(|watched| watched.end.borrow().is_none()), "it was there a moment ago");
        watch.state.give_up(long_ago);
        assert_eq!(waiting.end().await, ExitCause::EngineGone);
        assert!(watch.state.watched()[&late].end.borrow().is_none());
        drop((waiting, other));
        assert!(watch.state.watched().is_empty(), "who stops waiting is forgotten");
    }
}
