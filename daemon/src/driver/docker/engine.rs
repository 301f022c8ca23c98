//! The connection to a container engine: where it is, what it is, and how its errors become faults.
//!
//! Invariants: every call has a time limit, and errors are told apart by status and by the kind of the I/O error, never by text, which differs
//! between engines and versions.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{SystemInfo, SystemVersion};
use bollard::{API_DEFAULT_VERSION, Docker};
use openagent_core::session::Fault;

/// Limit of an ordinary call; the slowest, starting a container, takes 0.2 s alone and 2 s among twenty.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Limit of calls that only ask.
pub(super) const ASK_LIMIT: Duration = Duration::from_secs(10);

/// Limit of the question how it is, which somebody looks at a screen for.
pub(super) const HEALTH_LIMIT: Duration = Duration::from_secs(3);

/// Limit of the question whether it takes new connections.
const KNOCK_LIMIT: Duration = Duration::from_secs(3);

/// Longest part of an engine's message that is passed on, in characters.
const MESSAGE_MAX_CHARS: usize = 300;

const USE_LOCAL: &str = "or use the local driver: OPENAGENT_DRIVER=local";

/// Where engines listen, most usual first; `~` is the home folder, `$` the user's runtime folder.
const SOCKETS: [&str; 4] = ["/var/run/docker.sock", "$/docker.sock", "~/.docker/run/docker.sock", "$/podman/podman.sock"];

/// What is known about an engine that matters to how containers are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Name and version.
    pub(super) name: String,
    /// Processors that a container can be given.
    pub(super) cpus: i64,
    /// It runs on this very kernel, so that a socket may reach through a bind mount.
    pub(super) same_kernel: bool,
    /// The runtime used when none is asked for.
    pub(super) default_runtime: String,
    /// It runs without root.
    pub(super) rootless: bool,
    /// It maps the users of containers to others.
    pub(super) user_namespace: bool,
}

impl Facts {
    fn new(info: &SystemInfo, version: &SystemVersion, kernel: Option<&str>) -> Self {
        let component = version.components.iter().flatten().next();
        let product = match component.map(|component| component.name.as_str()) {
            Some(name) if name.to_lowercase().contains("podman") => "Podman",
            Some(_) | None => "Docker",
        };
        let option = |name: &str| info.security_options.iter().flatten().any(|option| option.split(',').any(|part| part == name));
        Self {
            name: format!("{product} {}", component.map_or("of unknown version", |component| component.version.as_str())),
            cpus: info.ncpu.unwrap_or(1).max(1),
            same_kernel: kernel.is_some() && kernel == info.kernel_version.as_deref(),
            default_runtime: info.default_runtime.clone().unwrap_or_default(),
            rootless: option("name=rootless") || option("rootless"),
            user_namespace: option("name=userns"),
        }
    }
}

/// The connection to an engine. Made lazily: an engine may be installed or started while the daemon runs.
#[derive(Debug)]
pub(super) struct Engine {
    endpoint: Option<String>,
    /// With the place it leads to, which stays the same when other engines come and go.
    client: Mutex<Option<(PathBuf, Docker)>>,
}

impl Engine {
    pub(super) const fn new(endpoint: Option<String>) -> Self {
        Self { endpoint, client: Mutex::new(None) }
    }

    /// The client. Its own time limit is that of the longest call; shorter ones are set by [`Self::call`].
    pub(super) fn client(&self) -> Result<Docker, Fault> {
        let mut known = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = known.as_ref() {
            return Ok(client.clone());
        }
        let path = self.socket()?;
        let client = connect(&path)?;
        *known = Some((path, client.clone()));
        Ok(client)
    }

    /// Where the engine is, once it was found.
    fn place(&self) -> Option<PathBuf> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(path, _)| path.clone())
    }

    /// What an error of the engine's means to the user.
    pub(super) fn fault(&self, step: &str, error: &Error) -> Fault {
        let place = self.place().unwrap_or_default();
        fault(step, &place, error)
    }

    /// Whether the engine takes new connections. One that is going does not, and still answers on those that it has.
    pub(super) async fn knock(&self) -> Result<(), Fault> {
        let path = self.place().map_or_else(|| self.socket(), Ok)?;
        let client = connect(&path)?;
        Ok(self.call("knocking at the container engine", KNOCK_LIMIT, client.ping()).await.map(drop)?)
    }

    fn socket(&self) -> Result<PathBuf, Fault> {
        let named = self.endpoint.clone().or_else(|| std::env::var("DOCKER_HOST").ok()).filter(|endpoint| !endpoint.is_empty());
        match named {
            Some(endpoint) => endpoint_path(&endpoint),
            None => {
                let base = |variable| std::env::var_os(variable).map(PathBuf::from);
                let candidates = candidates(base("HOME").as_deref(), base("XDG_RUNTIME_DIR").as_deref());
                candidates.into_iter().find(|path| path.exists()).ok_or_else(|| missing("no container engine was found"))
            }
        }
    }

    /// Runs a call within its limit. `step` says what is being done, as in "creating the container".
    pub(super) async fn call<T>(
        &self,
        step: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failed(step, error)),
            Err(_) => Err(self.failed(step, Error::RequestTimeoutError)),
        }
    }

    fn failed(&self, step: &'static str, error: Error) -> CallError {
        CallError { step, place: self.place().unwrap_or_default(), error }
    }

    pub(super) async fn facts(&self, limit: Duration) -> Result<Facts, Fault> {
        let client = self.client()?;
        let info = self.call("asking the container engine about itself", limit, client.info());
        let version = self.call("asking the container engine for its version", limit, client.version());
        let (info, version) = tokio::try_join!(info, version)?;
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok();
        Ok(Facts::new(&info, &version, kernel.as_deref().map(str::trim)))
    }
}

/// A call that failed, and what it was for.
#[derive(Debug)]
pub(super) struct CallError {
    step: &'static str,
    place: PathBuf,
    error: Error,
}

impl CallError {
    /// The engine's status, when it answered.
    pub(super) const fn status(&self) -> Option<u16> {
        match &self.error {
            Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
            _ => None,
        }
    }

    /// Success where the status says that things are so already.
    pub(super) fn unless(self, statuses: &[u16]) -> Result<(), Self> {
        if self.status().is_some_and(|status| statuses.contains(&status)) { Ok(()) } else { Err(self) }
    }
}

impl From<CallError> for Fault {
    fn from(failed: CallError) -> Self {
        fault(failed.step, &failed.place, &failed.error)
    }
}

fn connect(path: &Path) -> Result<Docker, Fault> {
    Docker::connect_with_unix(&path.to_string_lossy(), CALL_LIMIT.as_secs(), API_DEFAULT_VERSION)
        .map_err(|error| fault("connecting to the container engine", path, &error))
}

fn missing(what: &str) -> Fault {
    Fault::new("ENGINE_MISSING", what, format!("install Docker (https://docs.docker.com/engine/install) or Podman, {USE_LOCAL}"))
}

fn endpoint_path(endpoint: &str) -> Result<PathBuf, Fault> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if path.starts_with('/') {
        return Ok(path.into());
    }
    Err(Fault::new(
        "ENGINE_ENDPOINT",
        format!("the container engine's address {endpoint:?} is not the path of a Unix socket"),
        "forward a remote engine's socket with `ssh -nNT -L /tmp/engine.sock:/var/run/docker.sock HOST` and use unix:///tmp/engine.sock",
    ))
}

fn candidates(home: Option<&Path>, runtime: Option<&Path>) -> Vec<PathBuf> {
    let place = |socket: &&str| {
        if let Some(rest) = socket.strip_prefix("~/") {
            home.map(|home| home.join(rest))
        } else if let Some(rest) = socket.strip_prefix("$/") {
            runtime.map(|runtime| runtime.join(rest))
        } else {
            Some(PathBuf::from(socket))
        }
    };
    SOCKETS.iter().filter_map(place).collect()
}

/// The kind of the I/O error that caused an error, if one did.
fn io_kind(error: &Error) -> Option<std::io::ErrorKind> {
    if let Error::IOError { err } = error {
        return Some(err.kind());
    }
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return Some(error.kind());
        }
        // A connection that was closed in the middle of a call, as by an engine that ends.
        if error.downcast_ref::<hyper::Error>().is_some_and(|error| !error.is_parse() && !error.is_user()) && error.source().is_none() {
            return Some(std::io::ErrorKind::UnexpectedEof);
        }
        next = error.source();
    }
    None
}

fn fault(step: &str, place: &Path, error: &Error) -> Fault {
    let place = place.display();
    match error {
        Error::SocketNotFoundError(path) => missing(&format!("there is no container engine at {path}")),
        Error::RequestTimeoutError => Fault::new(
            "ENGINE_TIMEOUT",
            format!("{step} took too long: the container engine at {place} does not answer"),
            "look at its log (journalctl -u docker) or restart it",
        ),
        Error::DockerResponseServerError { status_code, message } => {
            let message: String = message.chars().filter(|char| !char.is_control()).take(MESSAGE_MAX_CHARS).collect();
            let hint = format!("that is what the container engine at {place} says; its log may tell more (journalctl -u docker)");
            Fault::new("ENGINE_ERROR", format!("{step} failed: {message} (status {status_code})"), hint)
        }
        error => match io_kind(error) {
            Some(std::io::ErrorKind::PermissionDenied) => Fault::new(
                "ENGINE_FORBIDDEN",
                format!("you may not use the container engine's socket {place}"),
                format!("join its group (sudo usermod -aG docker \"$USER\", then log in again), {USE_LOCAL}"),
            ),
            // Also a socket that was there once: engines remove it when they end.
            Some(_) => Fault::new(
                "ENGINE_UNREACHABLE",
                format!("{step} failed: the container engine at {place} cannot be reached"),
                format!("start it (sudo systemctl start docker), {USE_LOCAL}"),
            ),
            None => Fault::new(
                "ENGINE_ERROR",
                format!("{step} failed: the answer of the container engine at {place} makes no sense ({error})"),
                "look at its log (journalctl -u docker); it may be of a version that is not supported",
            ),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn errors_become_stable_codes_with_something_to_do() {
        let io = |kind: std::io::ErrorKind| Error::IOError { err: kind.into() };
        let answered = Error::DockerResponseServerError { status_code: 500, message: "no\nspace".into() };
        let table = [
            (Error::SocketNotFoundError("/x".into()), "ENGINE_MISSING"),
            (io(std::io::ErrorKind::NotFound), "ENGINE_UNREACHABLE"),
            (io(std::io::ErrorKind::PermissionDenied), "ENGINE_FORBIDDEN"),
            (io(std::io::ErrorKind::ConnectionRefused), "ENGINE_UNREACHABLE"),
            (Error::RequestTimeoutError, "ENGINE_TIMEOUT"),
            (answered, "ENGINE_ERROR"),
        ];
        for (error, code) in table {
            let fault = fault("creating the container", Path::new("/x"), &error);
            assert_eq!(fault.code, code);
            assert!(!fault.hint.is_empty());
            assert!(!fault.message.contains('\n'));
        }
    }

    #[test]
    fn an_endpoint_is_a_socket_or_a_clear_fault() {
        assert_eq!(endpoint_path("unix:///run/docker.sock").unwrap(), Path::new("/run/docker.sock"));
        assert_eq!(endpoint_path("/run/docker.sock").unwrap(), Path::new("/run/docker.sock"));
        assert_eq!(endpoint_path("tcp://localhost:2375").unwrap_err().code, "ENGINE_ENDPOINT");
        assert_eq!(candidates(None, None), [PathBuf::from("/var/run/docker.sock")]);
        assert_eq!(candidates(Some(Path::new("/h")), Some(Path::new("/r"))).len(), SOCKETS.len());
    }

    #[test]
    fn another_kernel_is_another_machine() {
        let info = SystemInfo {
            kernel_version: Some("6.1".into()),
            security_options: Some(vec!["name=seccomp,profile=default".into(), "name=rootless".into()]),
            ..SystemInfo::default()
        };
        let facts = Facts::new(&info, &SystemVersion::default(), Some("6.1"));
        assert!(facts.same_kernel && facts.rootless && !facts.user_namespace);
        assert!(!Facts::new(&info, &SystemVersion::default(), Some("6.2")).same_kernel);
        assert!(!Facts::new(&SystemInfo::default(), &SystemVersion::default(), None).same_kernel);
    }
}
