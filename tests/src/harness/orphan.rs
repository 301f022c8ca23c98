//! What no session owns: containers, volumes, processes and folders of a world's daemon, at the engine and on this machine.
//!
//! What belongs to a world is known by the daemon's label, or by the world's folder. Of it a session may have its volumes and one instance, the one that it shows;
//! everything else is an orphan.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bollard::models::ContainerSummary;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use nix::sys::signal::Signal;
use openagent_proto::v1;

use super::process::Process;
use super::{Driver, World};

/// Limit of a call to the engine, in seconds.
const CALL_TIMEOUT_SECONDS: u64 = 60;

/// The socket of the machine's engine.
#[must_use]
pub fn machine_engine() -> PathBuf {
    let named = std::env::var("DOCKER_HOST").ok();
    named.as_deref().and_then(|host| host.strip_prefix("unix://")).unwrap_or("/var/run/docker.sock").into()
}

/// What a daemon has at the engine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Thing {
    kind: &'static str,
    name: String,
    session: String,
    instance: Option<String>,
}

async fn things(engine: &Docker, label: &str) -> Result<Vec<Thing>, bollard::errors::Error> {
    let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
    let containers = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let volumes = ListVolumesOptionsBuilder::default().filters(&filters).build();
    let of = |labels: &HashMap<String, String>, name: &str| labels.get(&format!("dev.openagent.{name}")).cloned();
    let mut things: Vec<Thing> = vec![];
    for container in engine.list_containers(Some(containers)).await? {
        let labels = container.labels.unwrap_or_default();
        let name = container.id.unwrap_or_default();
        let instance = Some(of(&labels, "instance").unwrap_or_default());
        things.push(Thing { kind: "container", name, session: of(&labels, "session").unwrap_or_default(), instance });
    }
    for volume in engine.list_volumes(Some(volumes)).await?.volumes.unwrap_or_default() {
        let session = of(&volume.labels, "session").unwrap_or_default();
        things.push(Thing { kind: "volume", name: volume.name, session, instance: None });
    }
    Ok(things)
}

/// Names in a folder; none when it is missing.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

impl World {
    /// A client of the engine itself, whatever stands between it and the daemon.
    ///
    /// # Panics
    /// When its socket is missing.
    #[must_use]
    pub fn engine(&self) -> Docker {
        let socket = self.engine_socket().to_string_lossy();
        Docker::connect_with_unix(&socket, CALL_TIMEOUT_SECONDS, API_DEFAULT_VERSION).expect("the engine is there")
    }

    fn label(&self) -> String {
        let digest = <sha2::Sha256 as sha2::Digest>::digest(self.path("state").as_os_str().as_encoded_bytes());
        format!("dev.openagent.state={}", hex::encode(&digest[..8]))
    }

    /// Everything that this world's daemon has made and did not remove.
    ///
    /// # Panics
    /// When the engine does not answer.
    pub async fn belongings(&self) -> Vec<String> {
        match self.driver() {
            Driver::Docker => {
                let things = things(&self.engine(), &self.label()).await.expect("the engine answers");
                things.into_iter().map(|thing| format!("{} {}", thing.kind, thing.name)).collect()
            }
            Driver::Local => {
                let folders = names(&self.path("state/local")).into_iter().map(|name| format!("folder {name}"));
                folders
                    .chain(self.sidecars().into_iter().map(|(_, session, process)| format!("sidecar {process:?} of {session}")))
                    .collect()
            }
        }
    }

    /// Sidecars of this world that run on this machine: instance, session, process.
    #[must_use]
    pub fn sidecars(&self) -> Vec<(String, String, Process)> {
        let root = self.path("state");
        let is_sidecar = |process: &Process| {
            let words = process.command_line();
            words.len() == 2 && words[0].ends_with("/openagent-sidecar") && words[1] == "serve" && process.belongs_to(&root)
        };
        let named = |process: Process| {
            let environment = process.environment();
            // Its folder for sockets has the shortest name that tells it.
            let instance = Path::new(environment.get("OPENAGENT_LINK_DIR")?).file_name()?.to_str()?;
            Some((format!("ins_{instance}"), environment.get("OPENAGENT_SESSION_ID")?.clone(), process))
        };
        Process::all().into_iter().filter(is_sidecar).filter_map(named).collect()
    }

    /// What no session owns now.
    ///
    /// # Panics
    /// When daemon or engine do not answer.
    pub async fn orphans(&self) -> Vec<String> {
        let sessions = self.clients().await.list().await;
        let owns = |session: &str, instance: Option<&str>| {
            sessions.iter().any(|known| {
                known.id == session && instance.is_none_or(|instance| known.instance.as_ref().is_some_and(|shown| shown.id == instance))
            })
        };
        if self.driver() == Driver::Docker {
            let things = things(&self.engine(), &self.label()).await.expect("the engine answers");
            let orphans = things.into_iter().filter(|thing| !owns(&thing.session, thing.instance.as_deref()));
            return orphans.map(|thing| format!("{} {} of {}", thing.kind, thing.name, thing.session)).collect();
        }
        let mut orphans: Vec<String> = names(&self.path("state/local")).into_iter().filter(|session| !owns(session, None)).collect();
        let mut owned: BTreeSet<Process> = self.daemon_process().into_iter().flat_map(Process::family).collect();
        for (instance, session, process) in self.sidecars() {
            owned.extend(process.family());
            if !owns(&session, Some(&instance)) {
                orphans.push(format!("sidecar {} of {session}, instance {instance}", process.pid()));
            }
        }
        let place = self.path("state/local");
        let lost =
            Process::all().into_iter().filter(|process| !owned.contains(process) && process.belongs_to(&place) && process.is_alive());
        orphans.extend(lost.map(|process| format!("process {} {:?}", process.pid(), process.command_line())));
        orphans
    }

    /// Waits until nothing is left that no session owns, and no session that is stopped or failed has something that runs.
    ///
    /// # Panics
    /// When it is there after `bound`.
    pub async fn until_no_orphans(&self, bound: Duration) {
        let deadline = Instant::now() + bound;
        loop {
            let mut orphans = self.orphans().await;
            orphans.extend(self.running_without_need().await);
            if orphans.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "orphans after {bound:?}: {orphans:#?}");
            tokio::task::yield_now().await;
        }
    }

    async fn running_without_need(&self) -> Vec<String> {
        let mut ended: BTreeSet<String> = BTreeSet::new();
        for session in self.clients().await.list().await {
            if matches!(session.status(), v1::SessionStatus::Stopped | v1::SessionStatus::Error) {
                ended.insert(session.id);
            }
        }
        if self.driver() == Driver::Local {
            let sidecars = self.sidecars().into_iter().filter(|(_, session, _)| ended.contains(session));
            return sidecars.map(|(instance, session, _)| format!("instance {instance} of {session}, which does not run")).collect();
        }
        let sessions = self.list_running().await.into_iter().filter_map(|container| container.labels?.remove("dev.openagent.session"));
        sessions.filter(|session| ended.contains(session)).map(|session| format!("a container of {session}, which does not run")).collect()
    }

    async fn list_running(&self) -> Vec<ContainerSummary> {
        let filters = HashMap::from([("label".to_owned(), vec![self.label()])]);
        let running = ListContainersOptionsBuilder::default().filters(&filters).build();
        self.engine().list_containers(Some(running)).await.expect("the engine answers")
    }

    /// Ids of this world's containers that run, frozen ones among them.
    pub(super) async fn running_containers(&self) -> Vec<String> {
        self.list_running().await.into_iter().filter_map(|container| container.id).collect()
    }

    /// Removes by force what is left of this world: for tests that have failed.
    pub(super) fn sweep(&self) {
        let place = self.path("state/local");
        let own = Process::of(i32::try_from(std::process::id()).unwrap_or_default());
        for process in Process::all().into_iter().filter(|process| Some(*process) != own && process.belongs_to(&place)) {
            process.signal(Signal::SIGKILL);
        }
        if self.driver() == Driver::Local || !self.engine_socket().exists() {
            return;
        }
        let (engine, label) = (self.engine(), self.label());
        // The test's own runtime cannot be waited on from here.
        let sweeping = std::thread::spawn(move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let force = RemoveContainerOptionsBuilder::default().force(true).build();
                for thing in things(&engine, &label).await? {
                    // One that is being removed already is as good as gone.
                    let _ = match thing.kind {
                        "container" => engine.remove_container(&thing.name, Some(force.clone())).await,
                        _ => engine.remove_volume(&thing.name, Some(RemoveVolumeOptionsBuilder::default().force(true).build())).await,
                    };
                }
                Ok(())
            })
        });
        match sweeping.join() {
            Ok(Ok(())) => {}
            other => eprintln!("what is left at the engine could not be removed: {other:?}"),
        }
    }
}
