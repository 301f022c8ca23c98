//! Instances as child processes: for machines without a container engine, and for tests.
//!
//! It isolates nothing, and says so. Everything is in folders of the daemon's state folder, closed to other users:
//!
//! ```text
//! local/<session>/{workspace,home,state}      the volumes
//! local/<session>/instances/<instance>/       spec.json     from create on
//!                                             process.json  who it is, from start on
//!                                             paused.json   whom to wake, while it is paused
//!                                             exit.json     how it ended, if this daemon saw it
//!                                             sidecar.log   what it said; cut when it is long, at each look at everything there is
//! ```
//! A sidecar is in a process group of its own and outlives the daemon. The daemon that comes next finds it by its process file, whose start time tells
//! it from a later process with the same id. Children are reaped by a task each; how an adopted one ended cannot be known, and is told so.

mod family;
mod process;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use futures::future::BoxFuture;
use nix::sys::signal::Signal;
use openagent_core::id::{InstanceId, SessionId};
use openagent_core::instance::ExitCause;
use openagent_core::session::{Fault, WorkspaceSource};
use openagent_proto::sidecar::env;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

use super::link::{self, Entry, Links, Pauses};
use super::{BoxStream, DIAL_PATIENCE, Driver, InstanceSpec, Observed, Owned, OwnedKind, Purpose, TarStream, VOLUMES, readable_tail};
use crate::task::Tasks;
use crate::workspace::{self, Bounds, Ownership, SeedError};
use family::Family;
use process::Identity;

/// Time in which a killed process must be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Pause between looks at an instance that somebody waits for and nobody has started yet.
const CREATED_PAUSE: Duration = Duration::from_millis(250);

/// Longest output of a sidecar that is let stand, and what is kept of a longer one.
const LOG_BYTES: (u64, u64) = (1024 * 1024, 64 * 1024);

/// Variables of the daemon's that the sidecar gets; it gives the agent its own choice of them.
const INHERITED: [&str; 9] = ["PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "LOGNAME", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"];

/// Settings of the driver.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// The daemon's state folder.
    pub state_dir: PathBuf,
    /// The daemon's folder for sockets.
    pub runtime_dir: PathBuf,
    /// The sidecar.
    pub sidecar: PathBuf,
    /// The OpenCode program.
    pub opencode: PathBuf,
    /// Largest size of a sidecar's journal, in bytes.
    pub journal_max_bytes: u64,
}

/// Runs instances as child processes.
#[derive(Debug, Clone)]
pub struct LocalDriver {
    options: LocalOptions,
    links: Links,
    tasks: Tasks,
    /// How the children of this daemon ended, once they have.
    children: Arc<Mutex<HashMap<InstanceId, watch::Receiver<Option<ExitCause>>>>>,
}

/// What `create` was told and `start` needs.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    token_sha256: String,
}

fn failed(step: &str, path: &Path, error: &io::Error) -> Fault {
    let hint = "check that the daemon's state folder can be written and that its disk is not full";
    Fault::new("LOCAL_STATE", format!("{step} {} failed: {error}", path.display()), hint)
}

fn not_running(instance: &InstanceId, observed: &Observed) -> Fault {
    let what = match observed {
        Observed::Missing => "it was removed".to_owned(),
        Observed::Created | Observed::Running => "it was not started".to_owned(),
        Observed::Paused => "it is paused".to_owned(),
        Observed::Ended(cause) => cause.to_string(),
    };
    Fault::new("INSTANCE_NOT_RUNNING", format!("the sidecar of {instance} is not running: {what}"), "resume the session")
}

fn cause_of(status: ExitStatus) -> ExitCause {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitCause::Exited { code: code.into() },
        (None, Some(signal)) => ExitCause::Killed { signal },
        (None, None) => ExitCause::Unwatched,
    }
}

fn make_folder(folder: &Path) -> Result<(), Fault> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| failed("making the folder", folder, &error))
}

/// Writes a file whole or not at all.
fn write_record(path: &Path, record: &impl Serialize) -> Result<(), Fault> {
    let write = || {
        let text = serde_json::to_vec(record)?;
        let new = path.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(&new, path)
    };
    write().map_err(|error| failed("writing", path, &error))
}

fn read_record<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Removes a tree, folders that the agent closed to itself included.
fn remove_tree(root: &Path) -> Result<(), Fault> {
    let gone = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    let removed = match fs::remove_dir_all(root).or_else(gone) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_folders(root);
            fs::remove_dir_all(root).or_else(gone)
        }
        other => other,
    };
    removed.map_err(|error| failed("removing", root, &error))
}

fn open_folders(root: &Path) {
    let mut open = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        // What cannot be opened shows when the removal is tried again.
        let _still_closed = fs::set_permissions(&folder, Permissions::from_mode(0o700));
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        open.extend(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// What changes when a program is installed anew.
fn version(program: &Path) -> String {
    let metadata = fs::metadata(program).ok();
    let size = metadata.as_ref().map_or(0, fs::Metadata::len);
    let changed = metadata.and_then(|metadata| metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    format!("{}:{size}:{}", program.display(), changed.unwrap_or_default().as_nanos())
}

/// Runs file work off the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Fault::new("LOCAL_STATE", "work on the daemon's state folder broke off", "")))
}

impl LocalDriver {
    /// A driver for the folders of `options`; its reapers run in `tasks`.
    #[must_use]
    pub fn new(options: LocalOptions, tasks: Tasks) -> Self {
        let links = Links::new(&options.runtime_dir);
        Self { options, links, tasks, children: Arc::default() }
    }

    fn all(&self) -> PathBuf {
        self.options.state_dir.join("local")
    }

    fn session(&self, session: &SessionId) -> PathBuf {
        self.all().join(session.as_str())
    }

    fn instance(&self, session: &SessionId, instance: &InstanceId) -> PathBuf {
        self.session(session).join("instances").join(instance.as_str())
    }

    fn child(&self, instance: &InstanceId) -> Option<watch::Receiver<Option<ExitCause>>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner).get(instance).cloned()
    }

    fn observe(&self, session: &SessionId, instance: &InstanceId) -> Observed {
        let folder = self.instance(session, instance);
        if !folder.join("spec.json").exists() {
            return Observed::Missing;
        }
        if let Some(cause) = self.child(instance).and_then(|child| child.borrow().clone()) {
            return Observed::Ended(cause);
        }
        match read_record::<Identity>(&folder.join("process.json")) {
            None => Observed::Created,
            Some(process) if process.is_stopped() => Observed::Paused,
            // It is reaped at any moment, and then its cause is known.
            Some(_) if self.child(instance).is_some() => Observed::Running,
            Some(process) if process.is_alive() => Observed::Running,
            Some(_) => Observed::Ended(read_record(&folder.join("exit.json")).unwrap_or(ExitCause::Unwatched)),
        }
    }

    fn is_up(&self, session: &SessionId, instance: &InstanceId) -> bool {
        matches!(self.observe(session, instance), Observed::Running | Observed::Paused)
    }

    fn family(&self, session: &SessionId, instance: &InstanceId) -> Family {
        let sidecar = read_record(&self.instance(session, instance).join("process.json"));
        Family { sidecar, home: self.session(session).join("home") }
    }

    async fn freeze(&self, session: &SessionId, instance: &InstanceId) -> Result<(), Fault> {
        match self.observe(session, instance) {
            // Also where a daemon was killed in the middle of it.
            Observed::Running | Observed::Paused => {}
            other => return Err(not_running(instance, &other)),
        }
        let family = self.family(session, instance);
        let record = self.instance(session, instance).join("paused.json");
        let still = blocking(move || {
            let before = read_record(&record).unwrap_or_default();
            family.freeze(before, |stopped| write_record(&record, &stopped))
        })
        .await;
        if !matches!(still, Ok(true)) {
            self.thaw(session, instance).await?;
        }
        if still? {
            return Ok(());
        }
        let message = format!("the processes of {instance} could not be stopped in time; they go on");
        Err(Fault::new("INSTANCE_RESTLESS", message, "look for a process that starts others without end, or hangs on a disk"))
    }

    async fn thaw(&self, session: &SessionId, instance: &InstanceId) -> Result<(), Fault> {
        let family = self.family(session, instance);
        let record = self.instance(session, instance).join("paused.json");
        blocking(move || {
            family.thaw(&read_record::<Vec<Identity>>(&record).unwrap_or_default());
            match fs::remove_file(&record) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", &record, &error)),
                Ok(()) | Err(_) => Ok(()),
            }
        })
        .await
    }

    fn make(&self, spec: &InstanceSpec) -> Result<(), Fault> {
        if self.is_up(&spec.session, &spec.instance) {
            return Err(Fault::new("INSTANCE_RUNS", format!("the sidecar of {} runs already", spec.instance), ""));
        }
        let folder = self.instance(&spec.session, &spec.instance);
        remove_tree(&folder)?;
        make_folder(&folder)?;
        self.links.make(&spec.instance, Entry::Owner)?;
        write_record(&folder.join("spec.json"), &Spec { token_sha256: spec.token_sha256.clone() })
    }

    fn spawn(&self, session: &SessionId, instance: &InstanceId) -> Result<(), Fault> {
        let folder = self.instance(session, instance);
        let Some(spec) = read_record::<Spec>(&folder.join("spec.json")) else {
            return Err(not_running(instance, &Observed::Missing));
        };
        let log_path = folder.join("sidecar.log");
        let log = File::options().create(true).append(true).mode(0o600).open(&log_path);
        let log = log.and_then(|log| Ok((log.try_clone()?, log))).map_err(|error| failed("opening", &log_path, &error))?;
        let place = self.session(session);
        let mut command = Command::new(&self.options.sidecar);
        command.arg("serve").env_clear();
        command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.env(env::SESSION_ID, session.as_str());
        command.env(env::TOKEN_SHA256, spec.token_sha256);
        command.env(env::LINK_DIR, self.links.folder(instance));
        command.env(env::WORKSPACE_DIR, place.join("workspace"));
        command.env(env::STATE_DIR, place.join("state"));
        command.env(env::AGENT_HOME, place.join("home"));
        command.env(env::OPENCODE, &self.options.opencode);
        command.env(env::JOURNAL_MAX_BYTES, self.options.journal_max_bytes.to_string());
        command.env(env::START_GATE, "1");
        command.current_dir(&place).stdin(Stdio::piped()).stdout(log.0).stderr(log.1);
        // It outlives the daemon, and a Ctrl-C in the daemon's terminal is not meant for it.
        command.process_group(0).kill_on_drop(false);
        let mut child = command.spawn().map_err(|error| {
            let message = format!("the sidecar {} could not be started: {error}", self.options.sidecar.display());
            Fault::new("SIDECAR_MISSING", message, "install openagent-sidecar next to openagentd")
        })?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).expect("a child that was not waited for has its id");
        let gate = child.stdin.take().map(ChildStdin::into_owned_fd);
        let recorded = write_record(&folder.join("process.json"), &Identity::of_child(pid));
        if recorded.is_err() {
            // Nobody would find it again.
            let _ended = child.start_kill();
        } else if let Some(Ok(gate)) = gate {
            // It begins only now that it is found again; a daemon that is killed before leaves it the end of its input. One that has ended already is reaped.
            let _ended = File::from(gate).write_all(b"\n");
        }
        self.reap(session, instance.clone(), child);
        recorded
    }

    fn reap(&self, session: &SessionId, instance: InstanceId, mut child: Child) {
        let (ended, end) = watch::channel(None);
        self.children.lock().unwrap_or_else(PoisonError::into_inner).insert(instance.clone(), end);
        let exit = self.instance(session, &instance).join("exit.json");
        let family = self.family(session, &instance);
        let stop = self.tasks.token().clone();
        self.tasks.spawn("local sidecar", async move {
            // The process outlives the daemon; what it ended with is then found out by the next one.
            let Some(waited) = stop.run_until_cancelled(child.wait()).await else { return };
            let cause = waited.map_or(ExitCause::Unwatched, cause_of);
            family.end_all(&instance).await;
            // Its folder may be gone with it.
            let _removed = write_record(&exit, &cause);
            ended.send_replace(Some(cause));
        });
    }

    async fn wait_for_end(&self, session: &SessionId, instance: &InstanceId) -> ExitCause {
        // Without an answer the reaper was dropped at a shutdown; the process may live on.
        if let Some(mut child) = self.child(instance)
            && let Ok(cause) = child.wait_for(Option::is_some).await
        {
            return cause.clone().unwrap_or(ExitCause::Unwatched);
        }
        let record = self.instance(session, instance).join("process.json");
        loop {
            let process = read_record::<Identity>(&record);
            let cause = match (self.observe(session, instance), process) {
                (Observed::Missing, _) => ExitCause::Removed,
                (Observed::Ended(cause), _) => cause,
                (Observed::Running | Observed::Paused, Some(process)) if process.is_alive() => {
                    process.ended().await;
                    continue;
                }
                (Observed::Running | Observed::Paused, _) => ExitCause::Unwatched,
                (Observed::Created, _) => {
                    tokio::time::sleep(CREATED_PAUSE).await;
                    continue;
                }
            };
            self.family(session, instance).end_all(instance).await;
            return cause;
        }
    }

    /// Waits until the process is gone, at most for `patience`.
    async fn gone(process: &Identity, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut pauses = Pauses::new();
        while process.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            pauses.rest().await;
        }
        true
    }

    async fn end(&self, session: &SessionId, instance: &InstanceId, grace: Duration) -> Result<(), Fault> {
        let Some(process) = read_record::<Identity>(&self.instance(session, instance).join("process.json")) else {
            return Ok(());
        };
        if !grace.is_zero() {
            process.signal(Signal::SIGTERM);
            if self.observe(session, instance) == Observed::Paused {
                self.thaw(session, instance).await?;
            }
            Self::gone(&process, grace).await;
        }
        // A killed sidecar ends none of its children.
        let family = self.family(session, instance);
        if !family.end_all(instance).await {
            let message = format!("the processes of {instance} could not be killed");
            return Err(Fault::new("INSTANCE_STUCK", message, "one hangs in the kernel; look for a stuck disk or network mount"));
        }
        if let Some(mut child) = self.child(instance) {
            // Reaped at once; the bound is for a runtime that is being shut down.
            let _unreaped = tokio::time::timeout(KILL_PATIENCE, child.wait_for(Option::is_some)).await;
        }
        Ok(())
    }

    async fn connect(&self, session: &SessionId, instance: &InstanceId, purpose: Purpose) -> Result<BoxStream, Fault> {
        let socket = self.links.socket(instance);
        let deadline = Instant::now() + DIAL_PATIENCE;
        let mut pauses = Pauses::new();
        loop {
            let error = match link::connect(&socket, purpose).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            let observed = self.observe(session, instance);
            if !matches!(observed, Observed::Running | Observed::Paused) {
                return Err(not_running(instance, &observed));
            }
            if Instant::now() >= deadline {
                let log = self.instance(session, instance).join("sidecar.log");
                let message = format!("the sidecar of {instance} does not answer: {error}");
                return Err(Fault::new("SIDECAR_UNREACHABLE", message, format!("look at its output: {}", log.display())));
            }
            pauses.rest().await;
        }
    }

    fn owned(&self) -> Result<Vec<Owned>, Fault> {
        let all = self.all();
        let mut owned = vec![];
        for session in names(&all)? {
            let Ok(session) = session.parse::<SessionId>() else { continue };
            if VOLUMES.iter().any(|(volume, _)| self.session(&session).join(volume).is_dir()) {
                owned.push(Owned { session: session.clone(), instance: None, kind: OwnedKind::Volume, running: false });
            }
            for instance in names(&self.session(&session).join("instances"))? {
                let Ok(instance) = instance.parse::<InstanceId>() else { continue };
                let running = self.is_up(&session, &instance);
                let log = self.instance(&session, &instance).join("sidecar.log");
                if let Err(error) = shorten(&log, LOG_BYTES) {
                    tracing::warn!(%instance, %error, "the output of a sidecar cannot be cut");
                }
                owned.push(Owned { session: session.clone(), instance: Some(instance), kind: OwnedKind::Instance, running });
            }
        }
        owned.sort();
        Ok(owned)
    }
}

/// Cuts a log that grew over its limit to its end. What is written to it at this very moment may be lost.
fn shorten(log: &Path, (limit, kept): (u64, u64)) -> io::Result<()> {
    let mut file = match File::options().read(true).append(true).open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if file.metadata()?.len() <= limit {
        return Ok(());
    }
    let mut end = vec![];
    file.seek(SeekFrom::End(-i64::try_from(kept).unwrap_or(i64::MAX)))?;
    Read::by_ref(&mut file).take(kept).read_to_end(&mut end)?;
    // The sidecar appends, wherever the end is.
    file.set_len(0)?;
    file.write_all(&end)
}

/// Names in a folder; none when it is missing.
fn names(folder: &Path) -> Result<Vec<String>, Fault> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        Err(error) => Err(failed("listing", folder, &error)),
    }
}

/// Fills a folder from `source`: one thread writes the archive, this one unpacks it.
fn fill(source: &WorkspaceSource, folder: &Path, own: &Path) -> Result<(), Fault> {
    if let WorkspaceSource::Copy { path } = source
        && let (Ok(root), Ok(own)) = (fs::canonicalize(path), fs::canonicalize(own))
        && own.starts_with(&root)
    {
        let message = format!("the folder {path} holds the daemon's own state, which would be copied into itself");
        return Err(Fault::new("WORKSPACE_SOURCE", message, "copy a folder further down"));
    }
    let unpacking = |error: &io::Error| failed("filling", folder, error);
    let (reader, mut writer) = io::pipe().map_err(|error| unpacking(&error))?;
    let (written, unpacked) = std::thread::scope(|scope| {
        let writing = scope.spawn(move || workspace::write_seed(source, Ownership::Kept, Bounds::default(), &mut writer));
        let unpacked = workspace::unpack(reader, folder);
        (writing.join(), unpacked)
    });
    match written {
        Err(_) => Err(Fault::new("WORKSPACE_SOURCE", "reading the workspace's source broke off", "")),
        Ok(Err(error)) if !matches!(error, SeedError::NotTaken(_)) => Err(Fault::from(&error)),
        Ok(Ok(()) | Err(_)) => unpacked.map_err(|error| unpacking(&error)),
    }
}

impl Driver for LocalDriver {
    fn name(&self) -> &'static str {
        "local"
    }

    fn isolation_warning(&self) -> &'static str {
        "the local driver isolates nothing: the agent runs as you, with your files, your network and no limits"
    }

    fn health(&self) -> BoxFuture<'_, Result<String, Fault>> {
        Box::pin(async move {
            self.ensure_image().await?;
            Ok("child processes of this machine, not isolated".to_owned())
        })
    }

    fn ensure_image(&self) -> BoxFuture<'_, Result<String, Fault>> {
        Box::pin(async move {
            let (sidecar, opencode) = (&self.options.sidecar, &self.options.opencode);
            if !is_program(sidecar) {
                let message = format!("there is no program {}", sidecar.display());
                return Err(Fault::new("SIDECAR_MISSING", message, "install openagent-sidecar next to openagentd"));
            }
            if !is_program(opencode) {
                let message = format!("there is no program {}", opencode.display());
                return Err(Fault::new(
                    "OPENCODE_MISSING",
                    message,
                    "install OpenCode (cargo xtask setup), or set OPENAGENT_OPENCODE to its path",
                ));
            }
            Ok([sidecar, opencode].map(|program| version(program)).join(" "))
        })
    }

    fn ensure_volumes<'a>(&'a self, session: &'a SessionId) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let place = self.session(session);
            VOLUMES.iter().try_for_each(|(volume, _)| make_folder(&place.join(volume)))
        })
    }

    fn missing_volumes<'a>(&'a self, session: &'a SessionId) -> BoxFuture<'a, Result<Vec<&'static str>, Fault>> {
        Box::pin(async move {
            let place = self.session(session);
            Ok(VOLUMES.iter().map(|(volume, _)| *volume).filter(|volume| !place.join(volume).is_dir()).collect())
        })
    }

    fn remove_volumes<'a>(&'a self, session: &'a SessionId) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let place = self.session(session);
            blocking(move || {
                VOLUMES.iter().try_for_each(|(volume, _)| remove_tree(&place.join(volume)))?;
                // Not empty while an instance is left; then they go with it.
                let _in_use = fs::remove_dir(place.join("instances"));
                let _in_use = fs::remove_dir(&place);
                Ok(())
            })
            .await
        })
    }

    fn create(&self, spec: InstanceSpec) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(async move {
            self.ensure_image().await?;
            self.make(&spec)
        })
    }

    fn start<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            match self.observe(session, instance) {
                Observed::Running => Ok(()),
                Observed::Paused => self.thaw(session, instance).await,
                Observed::Missing | Observed::Created | Observed::Ended(_) => self.spawn(session, instance),
            }
        })
    }

    fn pause<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(self.freeze(session, instance))
    }

    fn wake<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            match self.observe(session, instance) {
                Observed::Running => Ok(()),
                Observed::Paused => self.thaw(session, instance).await,
                other => Err(not_running(instance, &other)),
            }
        })
    }

    fn stop<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId, grace: Duration) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(self.end(session, instance, grace))
    }

    fn remove<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            self.end(session, instance, Duration::ZERO).await?;
            self.children.lock().unwrap_or_else(PoisonError::into_inner).remove(instance);
            self.links.remove(instance)?;
            let folder = self.instance(session, instance);
            let place = self.session(session);
            blocking(move || {
                remove_tree(&folder)?;
                // Only empty when the volumes are gone too.
                let _in_use = fs::remove_dir(place.join("instances"));
                let _in_use = fs::remove_dir(&place);
                Ok(())
            })
            .await
        })
    }

    fn dial<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId, purpose: Purpose) -> BoxFuture<'a, Result<BoxStream, Fault>> {
        Box::pin(self.connect(session, instance, purpose))
    }

    fn inspect<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<Observed, Fault>> {
        Box::pin(async move { Ok(self.observe(session, instance)) })
    }

    fn ended<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, ExitCause> {
        Box::pin(self.wait_for_end(session, instance))
    }

    fn logs<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId, max_bytes: usize) -> BoxFuture<'a, String> {
        let path = self.instance(session, instance).join("sidecar.log");
        Box::pin(async move {
            let read = move || {
                let mut file = File::open(&path)?;
                // One byte more, so that a cut shows and the tail begins with a whole line.
                let start = file.metadata()?.len().saturating_sub(max_bytes as u64 + 1);
                file.seek(SeekFrom::Start(start))?;
                let mut bytes = vec![];
                file.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
                io::Result::Ok(readable_tail(&bytes, max_bytes))
            };
            tokio::task::spawn_blocking(read).await.ok().and_then(Result::ok).unwrap_or_default()
        })
    }

    fn fill_workspace<'a>(
        &'a self,
        session: &'a SessionId,
        _instance: &'a InstanceId,
        source: WorkspaceSource,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        let folder = self.session(session).join("workspace");
        let own = self.all();
        Box::pin(blocking(move || fill(&source, &folder, &own)))
    }

    fn read_workspace<'a>(&'a self, session: &'a SessionId, _instance: Option<&'a InstanceId>) -> BoxFuture<'a, Result<TarStream, Fault>> {
        Box::pin(async move {
            let folder = self.session(session).join("workspace");
            if !folder.is_dir() {
                return Err(Fault::new("WORKSPACE_MISSING", format!("session {session} has no workspace yet"), "start the session first"));
            }
            let archive: TarStream = Box::new(workspace::stream_folder(folder));
            Ok(archive)
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Owned>, Fault>> {
        let driver = self.clone();
        Box::pin(blocking(move || driver.owned()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_the_agent_closed_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let closed = folder.path().join("tree/closed");
        fs::create_dir_all(closed.join("inner")).unwrap();
        fs::write(closed.join("inner/file"), "").unwrap();
        fs::set_permissions(closed.join("inner"), Permissions::from_mode(0o500)).unwrap();
        fs::set_permissions(&closed, Permissions::from_mode(0o000)).unwrap();
        remove_tree(&folder.path().join("tree")).unwrap();
        remove_tree(&folder.path().join("tree")).unwrap();
        assert!(!folder.path().join("tree").exists());
    }

    #[test]
    fn the_state_folder_is_not_copied_into_itself() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("state/local");
        fs::create_dir_all(&own).unwrap();
        let source = WorkspaceSource::Copy { path: folder.path().to_str().unwrap().to_owned() };
        assert_eq!(fill(&source, &own, &own).unwrap_err().code, "WORKSPACE_SOURCE");
    }

    #[test]
    fn a_long_log_is_cut_to_its_end_while_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("sidecar.log");
        shorten(&log, (10, 4)).unwrap();
        let mut writer = File::options().create(true).append(true).open(&log).unwrap();
        writer.write_all(b"0123456789").unwrap();
        shorten(&log, (10, 4)).unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"0123456789");
        writer.write_all(b"a").unwrap();
        shorten(&log, (10, 4)).unwrap();
        writer.write_all(b"b").unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"789ab");
    }

    #[test]
    fn a_signal_is_told_apart_from_an_exit_code() {
        assert_eq!(cause_of(ExitStatus::from_raw(9)), ExitCause::Killed { signal: 9 });
        assert_eq!(cause_of(ExitStatus::from_raw(3 << 8)), ExitCause::Exited { code: 3 });
    }
}
