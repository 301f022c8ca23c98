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
use crate::session::Limits;

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
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self { log: "info".to_owned(), stop_grace_millis: 10_000 }
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
