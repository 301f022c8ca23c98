//! Instances as containers of an engine that speaks the Docker API: Docker, Podman.
//!
//! The only place that knows bollard. Names, labels and settings of what is made are in [`spec`]; the connection and its errors in [`engine`]; how ends are
//! noticed in [`watch`].
//!
//! A sidecar is reached by its socket in a mounted folder, where the engine runs on this kernel with an ordinary runtime, and by the `exec`
//! [`bridge`] everywhere else. Which of both works is found out with the first instance: the socket has a head start, and when the bridge
//! answers while the socket does not, the bridge is used from then on.

mod archive;
mod bridge;
mod engine;
mod spec;
mod watch;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, ListVolumesOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveVolumeOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder,
};
use futures::StreamExt;
use futures::future::BoxFuture;
use openagent_core::config::LinkMode;
use openagent_core::id::{InstanceId, SessionId};
use openagent_core::instance::ExitCause;
use openagent_core::session::{Fault, WorkspaceSource};

use super::link::{self, Entry, Links, Pauses};
use super::{BoxStream, DIAL_PATIENCE, Driver, InstanceSpec, Observed, Owned, OwnedKind, Purpose, TarStream, VOLUMES, readable_tail};
use crate::task::Tasks;
use bridge::BridgeError;
use engine::{ASK_LIMIT, CALL_LIMIT, Engine, Facts, HEALTH_LIMIT};
use spec::{LABEL_INSTANCE, LABEL_READER, LABEL_SESSION, LABEL_STATE, Link, container_name, volume_name};
use watch::Watch;

/// Time in which an unproven socket may answer before the bridge is tried too; a sidecar listens within a tenth of it.
const SOCKET_HEAD_START: Duration = Duration::from_secs(1);

/// Time in which the last users of a volume must be gone.
const VOLUME_PATIENCE: Duration = Duration::from_secs(10);

/// Runtimes whose containers share the kernel, so that a socket may reach through a mount.
const SHARED_KERNEL_RUNTIMES: [&str; 3] = ["runc", "crun", "io.containerd.runc.v2"];

/// Lines of the sidecar's output that are fetched at most.
const LOG_LINES: &str = "200";

/// Settings of the driver.
#[derive(Debug, Clone)]
pub struct DockerOptions {
    /// The engine's socket, as a path or `unix://` address; absent: `DOCKER_HOST`, or the first usual place where there is one.
    pub endpoint: Option<String>,
    /// The image of session containers.
    pub image: String,
    /// The runtime; absent: the engine's default.
    pub runtime: Option<String>,
    /// How sidecars are reached.
    pub link_mode: LinkMode,
    /// The daemon's folder for sockets.
    pub runtime_dir: PathBuf,
    /// Digest of the daemon's state folder, which tells its things from those of other daemons.
    pub state_label: String,
    /// Largest size of a sidecar's journal, in bytes.
    pub journal_max_bytes: u64,
}

/// Runs instances as containers.
#[derive(Debug)]
pub struct DockerDriver {
    options: DockerOptions,
    engine: Arc<Engine>,
    watch: Watch,
    links: Links,
    tasks: Tasks,
    facts: OnceLock<Facts>,
    /// What the first dialled instance proved: whether sockets reach through mounts.
    socket_works: Mutex<Option<bool>>,
}

fn image_missing(image: &str) -> Fault {
    Fault::new("IMAGE_MISSING", format!("the image {image} is missing"), "build it: cargo xtask image")
}

fn not_running(instance: &InstanceId, observed: &Observed) -> Fault {
    let what = match observed {
        Observed::Missing => "it was removed".to_owned(),
        Observed::Created => "it was not started".to_owned(),
        Observed::Running => "it is only starting".to_owned(),
        Observed::Paused => "it is paused".to_owned(),
        Observed::Ended(cause) => cause.to_string(),
    };
    Fault::new("INSTANCE_NOT_RUNNING", format!("container {} is not running: {what}", container_name(instance)), "resume the session")
}

impl DockerDriver {
    /// A driver that has not spoken to its engine yet. What is left to tidy up when a reader of a workspace is dropped runs in `tasks`.
    #[must_use]
    pub fn new(options: DockerOptions, tasks: Tasks) -> Self {
        let engine = Arc::new(Engine::new(options.endpoint.clone()));
        let watch = Watch::new(Arc::clone(&engine), &options.state_label, tasks.clone());
        let links = Links::new(&options.runtime_dir);
        Self { options, engine, watch, links, tasks, facts: OnceLock::new(), socket_works: Mutex::new(None) }
    }

    fn socket_works(&self) -> Option<bool> {
        *self.socket_works.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, works: bool) {
        let mut known = self.socket_works.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != Some(works) {
            tracing::info!(socket = works, "found out how sidecars are reached");
            *known = Some(works);
        }
    }

    /// Asked by each who needs them until they are known: who waited for the others' questions would wait for all of them at an engine that hangs.
    async fn facts(&self) -> Result<&Facts, Fault> {
        if let Some(facts) = self.facts.get() {
            return Ok(facts);
        }
        let facts = self.engine.facts(ASK_LIMIT).await?;
        Ok(self.facts.get_or_init(|| facts))
    }

    fn shares_kernel(&self, facts: &Facts) -> bool {
        let runtime = self.options.runtime.as_deref().unwrap_or(&facts.default_runtime);
        facts.same_kernel && SHARED_KERNEL_RUNTIMES.contains(&runtime)
    }

    fn link(&self, instance: &InstanceId, facts: &Facts) -> Result<Link, Fault> {
        let by_socket = match self.options.link_mode {
            LinkMode::Socket => true,
            LinkMode::Exec => false,
            LinkMode::Auto => self.shares_kernel(facts) && self.socket_works() != Some(false),
        };
        if by_socket { self.links.make(instance, Entry::Everyone).map(Link::Folder) } else { Ok(Link::Inside) }
    }

    async fn make(&self, spec: InstanceSpec) -> Result<(), Fault> {
        let facts = self.facts().await?;
        let mut link = self.link(&spec.instance, facts)?;
        let name = container_name(&spec.instance);
        let client = self.engine.client()?;
        let mut replaced = false;
        loop {
            let by_folder = matches!(link, Link::Folder(_));
            let body = spec::instance(&self.options, &spec, link.clone(), facts);
            let options = CreateContainerOptionsBuilder::default().name(&name).build();
            let made = self.engine.call("creating the container", CALL_LIMIT, client.create_container(Some(options), body)).await;
            let Err(error) = made else { return Ok(()) };
            match error.status() {
                // What a daemon made before it crashed has the digest of a token that nobody knows any more.
                Some(409) if !replaced && self.observe(&spec.instance).await? != Observed::Running => {
                    replaced = true;
                    self.delete(&name).await?;
                }
                // The folder is on this machine and the engine is not.
                Some(400) if by_folder && self.options.link_mode == LinkMode::Auto => {
                    self.links.remove(&spec.instance)?;
                    link = Link::Inside;
                }
                status => {
                    self.links.remove(&spec.instance)?;
                    return Err(if status == Some(404) { image_missing(&self.options.image) } else { error.into() });
                }
            }
        }
    }

    async fn observe(&self, instance: &InstanceId) -> Result<Observed, Fault> {
        watch::look(&self.engine, instance).await
    }

    async fn freeze(&self, instance: &InstanceId) -> Result<(), Fault> {
        let client = self.engine.client()?;
        let name = container_name(instance);
        let Err(error) = self.engine.call("pausing the container", CALL_LIMIT, client.pause_container(&name)).await else { return Ok(()) };
        // Engines differ in what they answer when it is so already.
        match self.observe(instance).await? {
            Observed::Paused => Ok(()),
            Observed::Running => Err(error.into()),
            other => Err(not_running(instance, &other)),
        }
    }

    async fn thaw(&self, instance: &InstanceId) -> Result<(), Fault> {
        let client = self.engine.client()?;
        let name = container_name(instance);
        let Err(error) = self.engine.call("waking the container", CALL_LIMIT, client.unpause_container(&name)).await else { return Ok(()) };
        match self.observe(instance).await? {
            Observed::Running => Ok(()),
            Observed::Paused => Err(error.into()),
            other => Err(not_running(instance, &other)),
        }
    }

    async fn halt(&self, instance: &InstanceId, grace: Duration) -> Result<(), Fault> {
        let limit = grace + CALL_LIMIT;
        let client = self.engine.client()?.with_timeout(limit);
        let seconds = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        let name = container_name(instance);
        let stop = || self.engine.call("stopping the container", limit, client.stop_container(&name, Some(options.clone())));
        let stopped = stop().await.or_else(|error| error.unless(&[404]));
        // Some engines refuse to stop what is paused; and those that do not would wait for it in vain.
        if stopped.is_err() && self.observe(instance).await? == Observed::Paused {
            self.thaw(instance).await?;
            return stop().await.or_else(|error| error.unless(&[404])).map_err(Fault::from);
        }
        stopped.map_err(Fault::from)
    }

    /// Removes a container; one that is being removed already is waited for.
    async fn delete(&self, name: &str) -> Result<(), Fault> {
        let client = self.engine.client()?;
        let deadline = Instant::now() + CALL_LIMIT;
        let mut pauses = Pauses::new();
        loop {
            let options = RemoveContainerOptionsBuilder::default().force(true).build();
            let removed = self.engine.call("removing the container", CALL_LIMIT, client.remove_container(name, Some(options))).await;
            match removed.or_else(|error| error.unless(&[404])) {
                Err(error) if error.status() == Some(409) && Instant::now() < deadline => pauses.rest().await,
                other => return other.map_err(Fault::from),
            }
        }
    }

    async fn delete_volume(&self, session: &SessionId, volume: &str) -> Result<(), Fault> {
        let client = self.engine.client()?;
        let name = volume_name(session, volume);
        let deadline = Instant::now() + VOLUME_PATIENCE;
        let mut pauses = Pauses::new();
        loop {
            let options = RemoveVolumeOptionsBuilder::default().build();
            let removed = self.engine.call("removing a volume", CALL_LIMIT, client.remove_volume(&name, Some(options))).await;
            match removed.or_else(|error| error.unless(&[404])) {
                Err(error) if error.status() == Some(409) => {
                    if Instant::now() >= deadline {
                        let hint = format!("see who uses it: docker ps --all --filter volume={name}");
                        return Err(Fault::new("VOLUME_IN_USE", format!("the volume {name} is in use"), hint));
                    }
                    self.delete_readers(session).await?;
                    pauses.rest().await;
                }
                other => return other.map_err(Fault::from),
            }
        }
    }

    /// Removes what reads of the workspace left behind, or still use.
    async fn delete_readers(&self, session: &SessionId) -> Result<(), Fault> {
        for (id, owned) in self.containers().await? {
            if owned.session == *session && owned.kind == OwnedKind::Reader {
                self.delete(&id).await?;
            }
        }
        Ok(())
    }

    fn filters(&self) -> HashMap<&'static str, Vec<String>> {
        HashMap::from([("label", vec![format!("{LABEL_STATE}={}", self.options.state_label)])])
    }

    /// This daemon's containers, by the engine's id.
    async fn containers(&self) -> Result<Vec<(String, Owned)>, Fault> {
        let client = self.engine.client()?;
        let options = ListContainersOptionsBuilder::default().all(true).filters(&self.filters()).build();
        let found = self.engine.call("listing containers", ASK_LIMIT, client.list_containers(Some(options))).await?;
        let owned = found.into_iter().filter_map(|container| {
            let labels = container.labels.unwrap_or_default();
            let session = labels.get(LABEL_SESSION)?.parse().ok()?;
            let instance = labels.get(LABEL_INSTANCE).and_then(|text| text.parse().ok());
            let kind = if labels.contains_key(LABEL_READER) { OwnedKind::Reader } else { OwnedKind::Instance };
            // `paused` runs too: it holds everything that a running one holds.
            let running = container.state.is_some_and(|state| matches!(state.as_ref(), "running" | "paused"));
            Some((container.id?, Owned { session, instance, kind, running }))
        });
        Ok(owned.collect())
    }

    async fn volumes(&self) -> Result<Vec<Owned>, Fault> {
        let client = self.engine.client()?;
        let options = ListVolumesOptionsBuilder::default().filters(&self.filters()).build();
        let found = self.engine.call("listing volumes", ASK_LIMIT, client.list_volumes(Some(options))).await?;
        let owned = found.volumes.into_iter().flatten().filter_map(|volume| {
            let session = volume.labels.get(LABEL_SESSION)?.parse().ok()?;
            Some(Owned { session, instance: None, kind: OwnedKind::Volume, running: false })
        });
        Ok(owned.collect())
    }

    async fn connect(&self, instance: &InstanceId, purpose: Purpose) -> Result<BoxStream, Fault> {
        let name = container_name(instance);
        let socket = self.links.socket(instance);
        // An instance without a folder was made for the bridge, whatever is known or set now.
        let (by_socket, by_bridge) = match (self.options.link_mode, self.links.exists(instance), self.socket_works()) {
            (LinkMode::Socket, ..) | (LinkMode::Auto, true, Some(true)) => (true, false),
            (LinkMode::Exec, ..) | (LinkMode::Auto, false, _) | (LinkMode::Auto, true, Some(false)) => (false, true),
            (LinkMode::Auto, true, None) => (true, true),
        };
        let began = Instant::now();
        let mut pauses = Pauses::new();
        loop {
            let mut last = String::new();
            if by_socket {
                match link::connect(&socket, purpose).await {
                    Ok(stream) => {
                        self.remember(true);
                        return Ok(stream);
                    }
                    Err(error) => last = error.to_string(),
                }
            }
            if by_bridge && (!by_socket || began.elapsed() >= SOCKET_HEAD_START) {
                match bridge::open(&self.engine, &name, purpose).await {
                    Ok(stream) if !by_socket => return Ok(stream),
                    // The sidecar listens; now the socket must answer too, or it never will.
                    Ok(bridged) => {
                        let direct = link::connect(&socket, purpose).await;
                        self.remember(direct.is_ok());
                        return Ok(direct.unwrap_or(bridged));
                    }
                    Err(BridgeError::Never(fault)) => return Err(fault),
                    Err(BridgeError::Later(fault)) => last = fault.message,
                }
            }
            let now = self.observe(instance).await?;
            if now != Observed::Running {
                return Err(not_running(instance, &now));
            }
            if began.elapsed() >= DIAL_PATIENCE {
                let message = format!("the sidecar in container {name} does not answer: {last}");
                return Err(Fault::new("SIDECAR_UNREACHABLE", message, format!("look at its output: docker logs {name}")));
            }
            pauses.rest().await;
        }
    }

    async fn tail(&self, instance: &InstanceId, max_bytes: usize) -> Result<String, Fault> {
        let client = self.engine.client()?;
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail(LOG_LINES).build();
        let name = container_name(instance);
        let mut frames = client.logs(&name, Some(options));
        let mut bytes = Vec::new();
        let gather = async {
            while let Some(Ok(frame)) = frames.next().await {
                bytes.extend_from_slice(frame.as_ref());
                let excess = bytes.len().saturating_sub(max_bytes);
                bytes.drain(..excess);
            }
        };
        // What came before the limit is better than nothing.
        let _late = tokio::time::timeout(ASK_LIMIT, gather).await;
        Ok(readable_tail(&bytes, max_bytes))
    }
}

impl Driver for DockerDriver {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn isolation_warning(&self) -> &'static str {
        ""
    }

    fn health(&self) -> BoxFuture<'_, Result<String, Fault>> {
        Box::pin(async move {
            let facts = self.engine.facts(HEALTH_LIMIT).await?;
            let runtime = self.options.runtime.as_deref().unwrap_or(&facts.default_runtime);
            let mut parts = vec![facts.name.as_str(), runtime];
            parts.extend(facts.rootless.then_some("rootless (limits may not be kept)"));
            parts.extend(facts.user_namespace.then_some("user namespaces"));
            Ok(parts.join(", "))
        })
    }

    fn ensure_image(&self) -> BoxFuture<'_, Result<String, Fault>> {
        Box::pin(async move {
            let client = self.engine.client()?;
            match self.engine.call("looking for the image", ASK_LIMIT, client.inspect_image(&self.options.image)).await {
                Err(error) if error.status() == Some(404) => Err(image_missing(&self.options.image)),
                other => Ok(other?.id.unwrap_or_else(|| self.options.image.clone())),
            }
        })
    }

    fn missing_volumes<'a>(&'a self, session: &'a SessionId) -> BoxFuture<'a, Result<Vec<&'static str>, Fault>> {
        Box::pin(async move {
            let client = self.engine.client()?;
            let mut missing = vec![];
            for (volume, _) in VOLUMES {
                let name = volume_name(session, volume);
                match self.engine.call("looking for a volume", ASK_LIMIT, client.inspect_volume(&name)).await {
                    Err(error) if error.status() == Some(404) => missing.push(volume),
                    other => drop(other?),
                }
            }
            Ok(missing)
        })
    }

    fn ensure_volumes<'a>(&'a self, session: &'a SessionId) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let client = self.engine.client()?;
            for (volume, _) in VOLUMES {
                let body = spec::volume(&self.options.state_label, session, volume);
                let made = self.engine.call("creating a volume", CALL_LIMIT, client.create_volume(body)).await;
                made.map(drop).or_else(|error| error.unless(&[409]))?;
            }
            Ok(())
        })
    }

    fn remove_volumes<'a>(&'a self, session: &'a SessionId) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            for (volume, _) in VOLUMES {
                self.delete_volume(session, volume).await?;
            }
            Ok(())
        })
    }

    fn create(&self, spec: InstanceSpec) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(self.make(spec))
    }

    fn start<'a>(&'a self, _session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let client = self.engine.client()?;
            let name = container_name(instance);
            let started = client.start_container(&name, None::<StartContainerOptions>);
            match self.engine.call("starting the container", CALL_LIMIT, started).await {
                Err(error) if error.status() == Some(404) => Err(not_running(instance, &Observed::Missing)),
                Err(_) if self.observe(instance).await? == Observed::Paused => self.thaw(instance).await,
                other => other.map_err(Fault::from),
            }
        })
    }

    fn pause<'a>(&'a self, _session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(self.freeze(instance))
    }

    fn wake<'a>(&'a self, _session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(self.thaw(instance))
    }

    fn stop<'a>(&'a self, _session: &'a SessionId, instance: &'a InstanceId, grace: Duration) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(self.halt(instance, grace))
    }

    fn remove<'a>(&'a self, _session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            self.delete(&container_name(instance)).await?;
            self.links.remove(instance)
        })
    }

    fn dial<'a>(&'a self, _session: &'a SessionId, instance: &'a InstanceId, purpose: Purpose) -> BoxFuture<'a, Result<BoxStream, Fault>> {
        Box::pin(self.connect(instance, purpose))
    }

    fn inspect<'a>(&'a self, _session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<Observed, Fault>> {
        Box::pin(self.observe(instance))
    }

    fn ended<'a>(&'a self, _session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, ExitCause> {
        Box::pin(self.watch.ended(instance))
    }

    fn logs<'a>(&'a self, _session: &'a SessionId, instance: &'a InstanceId, max_bytes: usize) -> BoxFuture<'a, String> {
        Box::pin(async move { self.tail(instance, max_bytes).await.unwrap_or_default() })
    }

    fn fill_workspace<'a>(
        &'a self,
        _session: &'a SessionId,
        instance: &'a InstanceId,
        source: WorkspaceSource,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move { archive::fill(&self.engine, &container_name(instance), source).await })
    }

    fn read_workspace<'a>(&'a self, session: &'a SessionId, _instance: Option<&'a InstanceId>) -> BoxFuture<'a, Result<TarStream, Fault>> {
        Box::pin(archive::read(&self.engine, &self.tasks, &self.options.image, &self.options.state_label, session))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Owned>, Fault>> {
        Box::pin(async move {
            let mut owned: Vec<Owned> = self.containers().await?.into_iter().map(|(_, owned)| owned).collect();
            owned.extend(self.volumes().await?);
            owned.sort();
            owned.dedup();
            Ok(owned)
        })
    }
}
