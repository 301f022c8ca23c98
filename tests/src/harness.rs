//! A world of its own for each test: folders, a real daemon, a scripted model server, real clients.
//!
//! A [`World`] runs the staged programs as a user would, with every folder in a temporary place. When it is dropped its sessions are removed, its daemon is
//! ended, and what is left at the engine with the world's label is an error of the test. Waiting is always for a named condition, with a bound.

pub mod client;
pub mod engine;
pub mod engine_proxy;
pub mod events;
pub mod host;
pub mod instance;
pub mod leak;
pub mod light_image;
pub mod orphan;
pub mod own_engine;
pub mod process;
pub mod pty;
pub mod refusal;
pub mod shell;
pub mod subject;
pub mod witness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::model::ScriptedModel;
pub use client::Clients;
use engine_proxy::EngineProxy;
use own_engine::OwnEngine;
use process::Process;

/// Longest wait for anything that a healthy system does; generous, since two cores may run several agents at once.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The key that the scripted model server wants. Tests that look for leaks look for it.
pub const CANARY: &str = "sk-canary-0123456789abcdef-never-to-be-seen";

/// What runs the sandboxes of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The real engine.
    Docker,
    /// Child processes.
    Local,
}

impl Driver {
    const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Local => "local",
        }
    }
}

/// Folders, a model server, and a daemon when it is started.
pub struct World {
    root: TempDir,
    driver: Driver,
    environment: BTreeMap<String, String>,
    /// The engine itself, whatever stands between it and the daemon.
    engine_socket: PathBuf,
    daemon: Option<std::process::Child>,
    /// The model server that the providers `scripted`, `scripted-openai`, `scripted-anthropic` and `scripted-direct` point at.
    pub model: ScriptedModel,
}

/// Folder of the staged programs: `cargo xtask test` names it, otherwise where it stages them.
#[must_use]
pub fn programs() -> PathBuf {
    std::env::var_os("OPENAGENT_TEST_BIN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/openagent/debug/bin"), PathBuf::from)
}

/// Copies a program by another process: were it written by this one, a child that another test starts meanwhile would hold it open for writing, and it could
/// not be run (`ETXTBSY`).
///
/// # Panics
/// When it cannot be copied.
pub fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status();
    assert!(copied.expect("cp is there").success(), "{} cannot be copied", from.display());
}

/// The OpenCode program.
#[must_use]
pub fn opencode() -> PathBuf {
    std::env::var_os("OPENAGENT_TEST_OPENCODE").map_or_else(
        || {
            let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
            let data = std::env::var_os("XDG_DATA_HOME").map_or_else(|| home.join(".local/share"), PathBuf::from);
            data.join("openagent/opencode/1.18.33/opencode")
        },
        PathBuf::from,
    )
}

/// The light stand-in for OpenCode: `cargo` builds it beside the tests.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn stand_in_agent() -> PathBuf {
    let test = std::env::current_exe().expect("a program knows where it is");
    let mut folders = test.ancestors().skip(1).take(2).map(|folder| folder.join("stand-in-agent"));
    folders.find(|program| program.exists()).expect("the stand-in is built with the tests of this package")
}

impl World {
    /// A world with a model server and no daemon yet.
    ///
    /// # Panics
    /// When it cannot be made: a test cannot go on.
    pub async fn new(driver: Driver) -> Self {
        let root = tempfile::Builder::new().prefix("oa").tempdir_in("/tmp").expect("a temporary folder can be made");
        let model = ScriptedModel::with_key(CANARY).start().await.expect("the scripted model server starts");
        let path = |name: &str| root.path().join(name).display().to_string();
        let mut environment: BTreeMap<String, String> = [
            ("HOME", path("home")),
            ("OPENAGENT_CONFIG", path("config.toml")),
            ("OPENAGENT_STATE_DIR", path("state")),
            ("OPENAGENT_DATA_DIR", path("data")),
            ("OPENAGENT_RUNTIME_DIR", path("run")),
            ("OPENAGENT_DRIVER", driver.name().to_owned()),
            ("OPENAGENT_OPENCODE", opencode().display().to_string()),
            ("OPENAGENT_LOG", std::env::var("OPENAGENT_TEST_LOG").unwrap_or_else(|_| "info,openagentd=debug".to_owned())),
            ("PATH", std::env::var("PATH").unwrap_or_default()),
            ("TERM", "xterm-256color".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        for name in ["OPENAGENT_TEST_IMAGE", "DOCKER_HOST"] {
            if let Ok(value) = std::env::var(name) {
                environment.insert(name.replace("OPENAGENT_TEST_IMAGE", "OPENAGENT_IMAGE"), value);
            }
        }
        std::fs::create_dir(root.path().join("home")).expect("the temporary folder is ours");
        let world = Self { root, driver, environment, engine_socket: orphan::machine_engine(), daemon: None, model };
        world.write_config("");
        world
    }

    /// A world whose daemon reaches the machine's engine through a proxy; no daemon runs yet. Make the proxy first, so that it is dropped last.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn behind(proxy: &EngineProxy) -> Self {
        let mut world = Self::new(Driver::Docker).await;
        world.engine_socket = proxy.engine().to_owned();
        world.set_env("OPENAGENT_DOCKER_HOST", &format!("unix://{}", proxy.socket().display()));
        world
    }

    /// A world on an engine of its own; no daemon runs yet. Make the engine first, so that it is dropped last.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn on(engine: &OwnEngine) -> Self {
        let mut world = Self::new(Driver::Docker).await;
        world.engine_socket = engine.socket();
        world.set_env("OPENAGENT_DOCKER_HOST", &format!("unix://{}", engine.socket().display()));
        world.set_env("OPENAGENT_IMAGE", engine.image());
        world
    }

    /// A world on the local driver whose agent is the light stand-in, which needs no model; a session of it starts in the time of a few processes and takes a
    /// few MB. No daemon runs yet.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn light() -> Self {
        let mut world = Self::new(Driver::Local).await;
        world.set_env("OPENAGENT_OPENCODE", &stand_in_agent().display().to_string());
        world
    }

    /// A world with a daemon that runs.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn started(driver: Driver) -> Self {
        let mut world = Self::new(driver).await;
        world.start().await;
        world
    }

    /// A world with a daemon that runs and has the key of the scripted providers.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn with_keys(driver: Driver) -> Self {
        let world = Self::started(driver).await;
        world.set_keys(CANARY).await;
        world
    }

    /// Gives every scripted provider this key.
    ///
    /// # Panics
    /// When the daemon refuses it.
    pub async fn set_keys(&self, key: &str) {
        let mut clients = self.clients().await;
        for provider in ["scripted", "scripted-openai", "scripted-anthropic", "scripted-direct"] {
            clients.set_key(provider, key).await;
        }
    }

    /// Writes the configuration: the scripted providers, and `more`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_config(&self, more: &str) {
        let url = self.model.base_url();
        let mut text = String::from(more);
        if !more.contains("[pool]") {
            // Prepared instances would be left over when all sessions are removed; tests of them ask for them.
            text.push_str("\n[pool]\nsize = 0\n");
        }
        for (id, kind, route) in [
            ("scripted", "openai-compatible", "host"),
            ("scripted-openai", "openai", "host"),
            ("scripted-anthropic", "anthropic", "host"),
            ("scripted-direct", "openai-compatible", "direct"),
        ] {
            text.push_str(&format!(
                "\n[provider.{id}]\nkind = \"{kind}\"\nroute = \"{route}\"\nbase_url = \"{url}\"\n\
                 [[provider.{id}.models]]\nid = \"scripted-large\"\ncontext = 200000\noutput = 8000\nreasoning = true\n\
                 price_input = 1.0\nprice_output = 2.0\nprice_cache_read = 0.1\nprice_cache_write = 1.25\n\
                 [[provider.{id}.models]]\nid = \"scripted-small\"\ncontext = 200000\noutput = 8000\n"
            ));
        }
        std::fs::write(self.root.path().join("config.toml"), text).expect("the temporary folder is ours");
    }

    /// A variable for every program that is started from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// What runs this world's sandboxes.
    #[must_use]
    pub const fn driver(&self) -> Driver {
        self.driver
    }

    /// A path in the world's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("run/openagentd.sock")
    }

    /// The engine's own socket.
    #[must_use]
    pub fn engine_socket(&self) -> &Path {
        &self.engine_socket
    }

    /// The daemon's process, if this world has started one and it runs.
    #[must_use]
    pub fn daemon_process(&self) -> Option<Process> {
        Process::of(i32::try_from(self.daemon.as_ref()?.id()).ok()?)
    }

    /// The daemon's process id.
    ///
    /// # Panics
    /// When none was started.
    #[must_use]
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon was started").id()
    }

    /// One of the staged programs, with the world's environment and nothing else.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(programs().join(program));
        command.env_clear().envs(&self.environment).current_dir(self.root.path());
        command
    }

    /// The world's environment.
    #[must_use]
    pub const fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Runs `openagent` with arguments and waits for its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    pub async fn cli(&self, arguments: &[&str]) -> Output {
        self.cli_with_input(arguments, "").await
    }

    /// Runs `openagent` with arguments and standard input, and waits for its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    pub async fn cli_with_input(&self, arguments: &[&str], input: &str) -> Output {
        use tokio::io::AsyncWriteExt;
        let mut command = tokio::process::Command::from(self.command("openagent"));
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("openagent is staged: cargo xtask test does that");
        let mut stdin = child.stdin.take().expect("standard input is piped");
        // A program that does not read its input may have ended already.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
        output.unwrap_or_else(|_| panic!("openagent {arguments:?} did not end")).expect("its output can be read")
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("daemon.log")).expect("the folder is ours");
        let errors = log.try_clone().expect("a file can be opened twice");
        let mut command = self.command("openagentd");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        self.daemon = Some(command.spawn().expect("openagentd is staged: cargo xtask test does that"));
        let deadline = Instant::now() + PATIENCE;
        while tokio::net::UnixStream::connect(self.socket()).await.is_err() {
            let ended = self.daemon.as_mut().expect("just started").try_wait().expect("it is our child");
            assert!(ended.is_none(), "the daemon ended: {ended:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "the daemon does not answer\n{}", self.log());
            tokio::task::yield_now().await;
        }
    }

    /// The daemon's log so far, whoever started it.
    #[must_use]
    pub fn log(&self) -> String {
        ["daemon.log", "state/openagentd.log"].map(|name| std::fs::read_to_string(self.path(name)).unwrap_or_default()).concat()
    }

    /// Connected clients of every service.
    ///
    /// # Panics
    /// When the daemon does not answer.
    pub async fn clients(&self) -> Clients {
        Clients::connect(&self.socket()).await
    }

    /// Ends the daemon in order and waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn stop(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM).await;
    }

    /// Kills the daemon.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn kill(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGKILL).await;
    }

    /// Waits for the end of a daemon that was told to end in another way.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn ended(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let ended = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(move || daemon.wait())).await;
        ended.expect("the daemon ends when it is told to").expect("waiting does not panic").expect("it is our child");
    }

    async fn signal(&mut self, signal: nix::sys::signal::Signal) {
        let Some(daemon) = &self.daemon else { return };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.id()).expect("process ids are small"));
        nix::sys::signal::kill(pid, signal).expect("it is our child");
        self.ended().await;
    }

    /// Removes every session, ends the daemon, and gives what is left at the engine or as processes: nothing, if all is well.
    ///
    /// # Panics
    /// When a session cannot be removed.
    pub async fn end(mut self) {
        let on_demand = self.daemon.is_none() && self.is_served();
        if self.daemon.is_some() || on_demand {
            let mut clients = self.clients().await;
            for session in clients.list().await {
                clients.remove(&session.id).await;
            }
            let left = self.belongings().await;
            assert!(left.is_empty(), "left behind: {left:?}");
            self.stop().await;
        }
        if on_demand {
            let stopped = self.cli(&["daemon", "stop"]).await;
            assert!(stopped.status.success(), "{stopped:?}");
        }
    }

    /// Whether a daemon answers, whoever started it.
    fn is_served(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
    }

    /// The process id of the daemon that answers, whoever started it.
    ///
    /// # Panics
    /// When none answers.
    pub async fn serving_pid(&self) -> nix::unistd::Pid {
        let mut clients = self.clients().await;
        let status = clients.daemon.get_status(openagent_proto::v1::GetStatusRequest {}).await.expect("the daemon answers");
        nix::unistd::Pid::from_raw(i32::try_from(status.into_inner().pid).expect("process ids are small"))
    }
}

/// A test that failed must not leave agents running: the daemon goes, and with it, by force, what it started.
impl Drop for World {
    fn drop(&mut self) {
        let mut daemon = self.daemon.take();
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}", self.log());
        }
        if daemon.is_some() || self.is_served() {
            let mut remove = self.command("openagent");
            let listed = remove.args(["ls", "-o", "json"]).stdin(Stdio::null()).output();
            let sessions: serde_json::Value =
                listed.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok()).unwrap_or_default();
            for id in sessions.as_array().into_iter().flatten().filter_map(|session| session["id"].as_str()) {
                let _ = self.command("openagent").args(["rm", "-f", id]).stdin(Stdio::null()).output();
            }
        }
        if let Some(daemon) = &mut daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        } else if self.is_served() {
            // It was started on demand, and is nobody's child.
            let _ = self.command("openagent").args(["daemon", "stop"]).stdin(Stdio::null()).output();
        }
        self.sweep();
    }
}
