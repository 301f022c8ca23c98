//! Configuration: what may be set, where it is read from, and where files are kept.
//!
//! Everything here is a pure function of a text, an environment and a user id. Order of precedence: flags, environment, file, default. All
//! mistakes of a file are reported together, each with its line; a key that is not known is a mistake.

mod near;
mod parse;
mod paths;
mod print;
mod value;

use std::fmt;

pub use near::nearest;
pub use paths::{Paths, Platform};

use crate::permission::PermissionMode;
use crate::provider::{Model, ProviderKind, Route};
use crate::session::{IdleAction, Limits};

/// Largest configuration file, in bytes.
pub const CONFIG_MAX_BYTES: usize = 1024 * 1024;

/// A mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// Line in the file, from 1; `None` where it comes from somewhere else.
    pub line: Option<usize>,
    /// What is wrong, naming the key.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// What runs the sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriverName {
    /// Docker containers.
    #[default]
    Docker,
    /// Child processes of the daemon, without isolation.
    Local,
}

impl DriverName {
    /// Every driver.
    pub const ALL: [Self; 2] = [Self::Docker, Self::Local];

    /// The name used in configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Local => "local",
        }
    }
}

/// How the daemon reaches a sidecar in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkMode {
    /// The socket where it works, else the bridge.
    #[default]
    Auto,
    /// A Unix socket in a folder that is bind-mounted.
    Socket,
    /// A process started in the container by the engine.
    Exec,
}

impl LinkMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Socket, Self::Exec];

    /// The name used in configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Socket => "socket",
            Self::Exec => "exec",
        }
    }
}

/// `[docker]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerConfig {
    /// Where the engine is, such as `unix:///var/run/docker.sock`; `None`: the engine's own default.
    pub endpoint: Option<String>,
    /// The image of a session's container.
    pub image: String,
    /// The engine's runtime, such as `runsc`; `None`: the engine's default.
    pub runtime: Option<String>,
    /// How a sidecar is reached.
    pub link: LinkMode,
}

impl Default for DockerConfig {
    fn default() -> Self {
        Self { endpoint: None, image: "openagent-agent:latest".to_owned(), runtime: None, link: LinkMode::Auto }
    }
}

/// `[local]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalConfig {
    /// The OpenCode program; `None`: found as the architecture says.
    pub opencode: Option<String>,
    /// The sidecar program; `None`: next to the daemon's.
    pub sidecar: Option<String>,
}

/// `[session]`: what a new session starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionDefaults {
    /// `provider/model`; `None`: the first usable one.
    pub model: Option<String>,
    /// The agent's mode.
    pub agent: String,
    /// What it may do unasked.
    pub permission_mode: PermissionMode,
    /// Rest after which it becomes idle, in milliseconds; 0: never.
    pub idle_timeout_millis: u64,
    /// What becomes of its instance then.
    pub idle_action: IdleAction,
    /// What it may use.
    pub limits: Limits,
}

impl Default for SessionDefaults {
    fn default() -> Self {
        Self {
            model: None,
            agent: "build".to_owned(),
            permission_mode: PermissionMode::default(),
            idle_timeout_millis: 15 * 60 * 1_000,
            idle_action: IdleAction::default(),
            limits: Limits::default(),
        }
    }
}

/// `[daemon]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonConfig {
    /// What is logged: a level, or directives as `tracing` understands them.
    pub log: String,
    /// Time that sessions and calls get to end in order at a shutdown, in milliseconds.
    pub stop_grace_millis: u64,
    /// What becomes of sessions when the daemon ends.
    pub on_shutdown: OnShutdown,
    /// Sessions that may have an instance at a time; 0: one for each GiB of the machine's memory.
    pub max_running: u32,
    /// Sum of the memory limits of these sessions, in bytes; 0: no limit.
    pub memory_budget_bytes: u64,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            log: "info".to_owned(),
            stop_grace_millis: 10_000,
            on_shutdown: OnShutdown::default(),
            max_running: 0,
            memory_budget_bytes: 0,
        }
    }
}

/// What becomes of sessions when the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnShutdown {
    /// They go on; the next daemon takes them up.
    #[default]
    Keep,
    /// They are stopped.
    Stop,
}

impl OnShutdown {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::Keep, Self::Stop];

    /// The name used in configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Stop => "stop",
        }
    }
}

/// `[pool]`: prepared instances, for sessions that start at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// How many are kept ready; 0: none.
    pub size: u32,
    /// Age at which one is replaced, in milliseconds.
    pub max_age_millis: u64,
}

impl PoolConfig {
    /// Most instances that are kept ready: each holds some 300 MiB.
    pub const SIZE_MAX: u32 = 64;
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { size: 1, max_age_millis: 6 * 3_600 * 1_000 }
    }
}

/// `[history]`: how much of a session's past is kept in detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryConfig {
    /// Events that are kept as they happened; of older ones only what still says something.
    pub compact_after: u64,
    /// What the history of one session may take, in bytes; beyond it its oldest messages go.
    pub max_bytes: u64,
}

impl HistoryConfig {
    /// Fewest events that are kept as they happened.
    pub const COMPACT_AFTER_MIN: u64 = 100;
    /// Smallest bound of a history, in bytes: a few of the largest events.
    pub const MAX_BYTES_MIN: u64 = 8 * 1024 * 1024;
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self { compact_after: 20_000, max_bytes: 256 * 1024 * 1024 }
    }
}

/// `[store]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreConfig {
    /// Free space on the store's disk, in bytes, below which nothing more is written.
    pub reserve_bytes: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { reserve_bytes: 64 * 1024 * 1024 }
    }
}

/// `[journal]`: what a sidecar keeps while the daemon is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalConfig {
    /// Bytes; beyond it the oldest entries go, and the gap is told.
    pub max_bytes: u64,
}

impl JournalConfig {
    /// Smallest journal, in bytes: it holds a few of the largest events.
    pub const MAX_BYTES_MIN: u64 = 8 * 1024 * 1024;
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { max_bytes: 64 * 1024 * 1024 }
    }
}

/// `[provider.NAME]`: a provider of the user's own, or changes to one of the catalogue's. What is absent is the catalogue's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderConfig {
    /// Its id.
    pub id: String,
    /// Line of its heading, for mistakes that only show against the catalogue.
    pub line: usize,
    /// Name for people.
    pub name: Option<String>,
    /// Wire format.
    pub kind: Option<ProviderKind>,
    /// Where it is, without a slash at its end.
    pub base_url: Option<String>,
    /// Plain http is meant, also to another machine.
    pub insecure: bool,
    /// How calls reach it.
    pub route: Option<Route>,
    /// It wants a key.
    pub needs_key: Option<bool>,
    /// Its models, instead of the catalogue's; empty: the catalogue's.
    pub models: Vec<Model>,
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// What runs the sandboxes.
    pub driver: DriverName,
    /// `[docker]`.
    pub docker: DockerConfig,
    /// `[local]`.
    pub local: LocalConfig,
    /// `[session]`.
    pub session: SessionDefaults,
    /// `[daemon]`.
    pub daemon: DaemonConfig,
    /// `[pool]`.
    pub pool: PoolConfig,
    /// `[history]`.
    pub history: HistoryConfig,
    /// `[store]`.
    pub store: StoreConfig,
    /// `[journal]`.
    pub journal: JournalConfig,
    /// `[provider.NAME]`, by id.
    pub providers: Vec<ProviderConfig>,
}

impl Config {
    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// Every mistake in it, by line.
    pub fn parse(text: &str) -> Result<Self, Vec<ConfigError>> {
        parse::parse(text)
    }

    /// Applies the environment: `OPENAGENT_DRIVER`, `OPENAGENT_IMAGE`, `OPENAGENT_DOCKER_HOST`, `OPENAGENT_OPENCODE`, `OPENAGENT_LOG`. `DOCKER_HOST`
    /// counts only where neither names an endpoint: it is meant for other programs as well, so it does not outdo what was said to this one.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn overlay(&mut self, env: impl Fn(&str) -> Option<String>) -> Result<(), Vec<ConfigError>> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let mut mistakes = vec![];
        if let Some(name) = env("OPENAGENT_DRIVER") {
            match value::one_of(&name, DriverName::ALL.map(|driver| (driver.name(), driver))) {
                Ok(driver) => self.driver = driver,
                Err(why) => mistakes.push(ConfigError { line: None, message: format!("OPENAGENT_DRIVER: {why}") }),
            }
        }
        if let Some(image) = env("OPENAGENT_IMAGE") {
            self.docker.image = image;
        }
        if let Some(endpoint) = env("OPENAGENT_DOCKER_HOST") {
            self.docker.endpoint = Some(endpoint);
        } else if self.docker.endpoint.is_none() {
            self.docker.endpoint = env("DOCKER_HOST");
        }
        if let Some(endpoint) = &self.docker.endpoint
            && let Err(why) = value::endpoint(endpoint)
        {
            mistakes.push(ConfigError { line: None, message: format!("the engine's endpoint: {why}") });
        }
        if let Some(program) = env("OPENAGENT_OPENCODE") {
            self.local.opencode = Some(program);
        }
        if let Some(log) = env("OPENAGENT_LOG") {
            self.daemon.log = log;
        }
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
    }

    /// The configuration as a file that gives the same again.
    #[must_use]
    pub fn to_toml(&self) -> String {
        print::print(self)
    }
}

#[cfg(test)]
mod tests;
