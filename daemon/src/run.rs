//! The daemon's life: open everything in order, serve, close everything in the reverse order.
//!
//! Sessions that run go on running when the daemon ends; the next daemon takes them up again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openagent_core::config::{Config, DriverName, OnShutdown, Paths};
use openagent_core::session::Fault;
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::catalogue::Catalogue;
use crate::clock;
use crate::config::{self, LoadError};
use crate::driver::Driver;
use crate::driver::docker::{DockerDriver, DockerOptions};
use crate::driver::local::{LocalDriver, LocalOptions};
use crate::event::EventLog;
use crate::relay::ModelRelay;
use crate::rpc::{self, Context, Defaults};
use crate::session::admission::{Admission, Bounds};
use crate::session::directory::Directory;
use crate::session::pool::{Pool, Template};
use crate::session::{SessionRegistry, Shared};
use crate::store::Store;
use crate::task::Tasks;
use crate::vault::Vault;

/// Time that streams get to end when the daemon ends.
const DRAIN: Duration = Duration::from_secs(2);

/// Sessions that may run at a time on the smallest of machines.
const RUNNING_MIN: u32 = 4;

/// Where the daemon's settings come from.
pub struct Options {
    environment: HashMap<String, String>,
    program: PathBuf,
}

impl Options {
    /// The environment of this process, and where its program is.
    #[must_use]
    pub fn from_environment() -> Self {
        Self { environment: std::env::vars().collect(), program: std::env::current_exe().unwrap_or_default() }
    }

    /// The configuration that is in force, and where files are.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn configuration(&self) -> Result<(Config, Paths), Fault> {
        let env = |name: &str| self.environment.get(name).cloned();
        let paths = config::paths(env).map_err(|error| error.fault())?;
        let config = config::load(&paths, env).map_err(|error| error.fault())?;
        Ok((config, paths))
    }
}

/// Runs a daemon to its end.
///
/// # Errors
/// What kept it from starting, or ended it.
pub async fn run(options: Options) -> Result<(), Fault> {
    let (config, paths) = options.configuration()?;
    config::make_folders(&paths).map_err(|error| error.fault())?;
    start_log(&config)?;
    no_core_dumps();
    let install = rustls::crypto::ring::default_provider().install_default();
    if install.is_err() {
        tracing::debug!("a TLS provider is installed already");
    }

    let tasks = Tasks::new();
    let store = Store::open_with_reserve(&paths.store_dir, config.store.reserve_bytes).await.map_err(|error| error.fault())?;
    store.bound_histories(config.history).await.map_err(|error| error.fault())?;
    let listener = rpc::listen(&paths.socket).await.map_err(|error| serve_fault(&error))?;
    let vault = Vault::open(store.clone(), &paths.master_key_file).await.map_err(|error| error.fault())?;
    let catalogue = Arc::new(
        Catalogue::new(&config.providers).map_err(|mistakes| LoadError::Mistakes { path: paths.config_file.clone(), mistakes }.fault())?,
    );
    let driver = driver(&config, &paths, &options, &tasks);
    let relay = ModelRelay::new(Arc::clone(&catalogue), vault.clone())
        .map_err(|error| Fault::new("TLS_UNUSABLE", error.to_string(), "check the proxy and certificate settings of this machine"))?;
    let rules = store.load_rules().await.map_err(|error| error.fault())?;
    let shared = Arc::new(Shared {
        store: store.clone(),
        log: EventLog::new(store.clone()),
        vault,
        driver,
        catalogue,
        relay,
        rules: watch::Sender::new(Arc::new(rules)),
        directory: Arc::new(Directory::default()),
        admission: Admission::new(bounds(&config)),
        pool: Pool::new(Template {
            config: config.pool,
            model: config.session.model.clone(),
            agent: config.session.agent.clone(),
            permission_mode: config.session.permission_mode,
            limits: config.session.limits,
        }),
        tasks: tasks.clone(),
        stop_grace: Duration::from_millis(config.daemon.stop_grace_millis),
    });
    let registry = SessionRegistry::new(shared);
    let sessions = registry.raise_all().await.map_err(|error| error.fault())?;
    tracing::info!(sessions, socket = %paths.socket.display(), "ready");

    let shutdown = CancellationToken::new();
    let on_shutdown = Arc::new(watch::Sender::new(config.daemon.on_shutdown));
    end_on_signal(&tasks, shutdown.clone())?;
    let context = Context {
        registry: registry.clone(),
        defaults: Defaults {
            model: config.session.model.clone(),
            agent: config.session.agent.clone(),
            permission_mode: config.session.permission_mode,
            idle_timeout_millis: config.session.idle_timeout_millis,
            idle_action: config.session.idle_action,
            limits: config.session.limits,
        },
        started_at: clock::now(),
        socket: paths.socket.clone(),
        state_dir: paths.state_dir.clone(),
        shutdown: shutdown.clone(),
        on_shutdown: Arc::clone(&on_shutdown),
    };
    let served = rpc::serve(context, listener, DRAIN).await;
    registry.shared().pool.close().await;
    match *on_shutdown.borrow() {
        OnShutdown::Keep => tracing::info!("ending; sessions go on running"),
        OnShutdown::Stop => {
            tracing::info!("ending; sessions are stopped");
            registry.stop_all().await;
        }
    }
    let left = tasks.shutdown(DRAIN).await;
    if left > 0 {
        tracing::warn!(left, "tasks were dropped");
    }
    store.close().await;
    served.map_err(|error| serve_fault(&error))
}

fn serve_fault(error: &rpc::ServeError) -> Fault {
    let hint = match error {
        rpc::ServeError::Taken(_) => "use that one: openagent daemon status; or stop it: openagent daemon stop",
        rpc::ServeError::Socket(..) => "check the permissions of the socket's folder",
        rpc::ServeError::Server(_) | rpc::ServeError::Reflection(_) => "look at the daemon's log",
    };
    Fault::new("SOCKET", error.to_string(), hint)
}

fn start_log(config: &Config) -> Result<(), Fault> {
    let filter = EnvFilter::try_new(&config.daemon.log).map_err(|error| {
        Fault::new("CONFIG_INVALID", format!("the log filter {:?} is not understood: {error}", config.daemon.log), "use for example: info")
    })?;
    let set = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
    if set.is_err() {
        tracing::debug!("a log is set up already");
    }
    Ok(())
}

/// A core of the daemon would hold provider keys.
fn no_core_dumps() {
    if let Err(error) = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0) {
        tracing::warn!(%error, "core dumps cannot be switched off");
    }
}

fn end_on_signal(tasks: &Tasks, shutdown: CancellationToken) -> Result<(), Fault> {
    let listen = |kind| signal(kind).map_err(|error| Fault::new("INTERNAL", format!("signals cannot be received: {error}"), ""));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tasks.spawn("signals", async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("told to end by SIGTERM"),
            _ = interrupt.recv() => tracing::info!("told to end by SIGINT"),
            () = shutdown.cancelled() => {}
        }
        shutdown.cancel();
    });
    Ok(())
}

fn driver(config: &Config, paths: &Paths, options: &Options, tasks: &Tasks) -> Arc<dyn Driver> {
    match config.driver {
        DriverName::Docker => {
            let options = DockerOptions {
                endpoint: config.docker.endpoint.clone(),
                image: config.docker.image.clone(),
                runtime: config.docker.runtime.clone(),
                link_mode: config.docker.link,
                runtime_dir: paths.runtime_dir.clone(),
                state_label: state_label(&paths.state_dir),
                journal_max_bytes: config.journal.max_bytes,
            };
            Arc::new(DockerDriver::new(options, tasks.clone()))
        }
        DriverName::Local => {
            let next_to_own = || options.program.with_file_name("openagent-sidecar");
            let options = LocalOptions {
                state_dir: paths.state_dir.clone(),
                runtime_dir: paths.runtime_dir.clone(),
                sidecar: config.local.sidecar.as_ref().map_or_else(next_to_own, PathBuf::from),
                opencode: opencode(config, paths, options),
                journal_max_bytes: config.journal.max_bytes,
            };
            Arc::new(LocalDriver::new(options, tasks.clone()))
        }
    }
}

/// How many sessions may run at a time.
fn bounds(config: &Config) -> Bounds {
    let running = match config.daemon.max_running {
        0 => running_by_memory(),
        given => given,
    };
    Bounds { running, memory_bytes: config.daemon.memory_budget_bytes }
}

/// One session for each GiB of memory: an agent at work takes about two thirds of it.
#[cfg(target_os = "linux")]
fn running_by_memory() -> u32 {
    let memory_bytes = nix::sys::sysinfo::sysinfo().map_or(0, |machine| machine.ram_total());
    u32::try_from(memory_bytes >> 30).unwrap_or(u32::MAX).max(RUNNING_MIN)
}

/// Where the machine's memory is not known, as many as a small machine bears.
#[cfg(not(target_os = "linux"))]
const fn running_by_memory() -> u32 {
    RUNNING_MIN * 2
}

/// Whose an engine's things are: daemons of other users or folders on the same engine have other labels.
fn state_label(state_dir: &Path) -> String {
    let digest = Sha256::digest(state_dir.as_os_str().as_encoded_bytes());
    hex::encode(&digest[..8])
}

/// The OpenCode program: named, installed by the set-up, or in `PATH`.
fn opencode(config: &Config, paths: &Paths, options: &Options) -> PathBuf {
    if let Some(named) = &config.local.opencode {
        return PathBuf::from(named);
    }
    let installed = paths.data_dir.join("opencode").join(opencode_version()).join("opencode");
    if installed.is_file() {
        return installed;
    }
    let path = options.environment.get("PATH").map(String::as_str).unwrap_or_default();
    let found = std::env::split_paths(path).map(|folder| folder.join("opencode")).find(|program| program.is_file());
    found.unwrap_or(installed)
}

/// The version that the image and the set-up pin.
fn opencode_version() -> &'static str {
    let lock = include_str!("../../docker/opencode.lock.toml");
    lock.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"')).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_version_is_found_in_the_lock_file() {
        assert!(opencode_version().starts_with("1."), "{:?}", opencode_version());
    }

    #[test]
    fn daemons_with_other_folders_have_other_labels() {
        assert_ne!(state_label(Path::new("/a")), state_label(Path::new("/b")));
    }
}
