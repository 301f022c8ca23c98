//! Terminals: shells on pseudo-terminals, run as the agent's user, watched by any number of clients.
//!
//! Each terminal keeps the last bytes of its output in a ring, addressed by their offset since the beginning, and follows it with a screen. A client
//! has a cursor of its own and asks for what is behind it; one that fell out of the ring gets the screen drawn anew. Nothing is queued for a
//! client, so that a slow one costs the shell and the others nothing. At most one client is the writer: its keys reach the shell, and the shell
//! has the size of its view.
//!
//! ```text
//! reading task   PTY -> ring and screen, rings the doorbell; at the end records the exit code
//! writing task   queue of typed bytes -> PTY; the queue is bounded, a client that finds it full waits
//! client         one WebSocket each, see `socket`
//! ```

mod history;
mod ring;
mod screen;
pub mod socket;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use openagent_core::event::EventKind;
use openagent_core::id::TerminalId;
use openagent_core::time::Timestamp;
use openagent_proto::sidecar::terminal::TERMINALS_MAX;
use openagent_proto::sidecar::{ErrorCode, OpenTerminal, TerminalInfo};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

use self::state::{Size, State};
use crate::control::ApiError;
use crate::journal::Journal;
use crate::process::{self, Child};
use crate::settings::Settings;
use crate::task::{Task, Tasks};

/// Ended terminals that stay listed, so that a late client sees their end.
const ENDED_MAX: usize = 16;

/// Longest command, in bytes.
const COMMAND_MAX_BYTES: usize = 64 * 1024;

/// Pieces of input (of up to a frame each) that wait for the shell to read them.
const INPUT_MAX: usize = 16;

/// Largest piece read from the pseudo-terminal at once; what is parsed before another task gets a turn.
const READ_MAX_BYTES: usize = 16 * 1024;

/// Time in which the output of an ended shell is read, where something that it left behind keeps the terminal open.
const DRAIN_MAX: Duration = Duration::from_millis(500);

/// Time between the request to end and the end by force.
const HANGUP_GRACE: Duration = Duration::from_secs(1);

/// Handle on all terminals.
#[derive(Clone)]
pub struct Terminals {
    settings: Arc<Settings>,
    journal: Journal,
    tasks: Tasks,
    all: Arc<Mutex<BTreeMap<TerminalId, Arc<Terminal>>>>,
}

/// A terminal.
pub struct Terminal {
    id: TerminalId,
    created_at: Timestamp,
    /// Leader of its process session; none of a terminal of an earlier sidecar, which has ended.
    pid: Option<i32>,
    state: Mutex<State>,
    /// Rung when anything of the state changed.
    doorbell: watch::Sender<()>,
    input: mpsc::Sender<Bytes>,
    /// What the pseudo-terminal's size should be.
    size: watch::Sender<Size>,
}

impl Terminals {
    /// The last terminals of the session's earlier instances, all ended.
    #[must_use]
    pub fn new(settings: Arc<Settings>, journal: Journal, tasks: Tasks) -> Self {
        let kept = history::load(&settings.state_dir)
            .into_iter()
            .map(|(about, output)| (about.id.clone(), Arc::new(Terminal::ended(about, &output))));
        let all = Arc::new(Mutex::new(kept.collect()));
        Self { settings, journal, tasks, all }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<TerminalId, Arc<Terminal>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every terminal that runs, and the last ones that have ended.
    #[must_use]
    pub fn list(&self) -> Vec<TerminalInfo> {
        self.all().values().map(|terminal| terminal.info()).collect()
    }

    /// A terminal by its id.
    #[must_use]
    pub fn get(&self, id: &TerminalId) -> Option<Arc<Terminal>> {
        self.all().get(id).cloned()
    }

    /// Starts a shell, or a command of one, on a new terminal.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `CONFLICT` for an id that is taken, `RESOURCE_EXHAUSTED` for one terminal too many, `INTERNAL`.
    pub async fn open(&self, request: &OpenTerminal) -> Result<TerminalInfo, ApiError> {
        let invalid = |message: &str| ApiError::new(ErrorCode::InvalidRequest, message);
        let id: TerminalId = request.id.parse().map_err(|error| ApiError::new(ErrorCode::InvalidRequest, format!("{error}")))?;
        let size = Size::checked(request.columns, request.rows).ok_or_else(|| invalid("columns and rows must be 2 to 1000"))?;
        let command = request.command.as_deref().filter(|command| !command.is_empty());
        if command.is_some_and(|command| command.len() > COMMAND_MAX_BYTES || command.contains('\0')) {
            return Err(invalid("the command is over 64 KiB or contains a NUL"));
        }
        let (terminal, child, reader, writer) = {
            let mut all = self.all();
            if all.contains_key(&id) {
                return Err(ApiError::new(ErrorCode::Conflict, "there is a terminal of this id"));
            }
            if all.values().filter(|terminal| terminal.state().exit_code().is_none()).count() >= TERMINALS_MAX {
                return Err(ApiError::new(ErrorCode::ResourceExhausted, format!("the session has {TERMINALS_MAX} terminals")));
            }
            let started = self.start(id.clone(), size, command).map_err(|error| {
                tracing::warn!(terminal = %id, %error, "a terminal could not be started");
                ApiError::new(ErrorCode::Internal, format!("the shell could not be started: {}", error.kind()))
            })?;
            all.insert(id.clone(), Arc::clone(&started.0));
            started
        };
        let writing = self.tasks.spawn("terminal input", writer);
        let recorded = self.journal.record(EventKind::Terminal { id: id.clone(), exit_code: None }).await;
        let info = terminal.info();
        self.tasks.spawn("terminal", self.clone().run(terminal, child, reader, writing));
        if let Err(error) = recorded {
            tracing::error!(terminal = %id, %error, "a terminal could not be recorded and is ended");
            self.close(&id).await;
            return Err(ApiError::new(ErrorCode::Internal, "the terminal could not be recorded"));
        }
        Ok(info)
    }

    #[allow(clippy::type_complexity, reason = "taken apart by its only caller")]
    fn start(
        &self,
        id: TerminalId,
        size: Size,
        command: Option<&str>,
    ) -> io::Result<(Arc<Terminal>, Child, pty_process::OwnedReadPty, impl Future<Output = ()> + Send + 'static)> {
        let mut pty = None;
        let child = process::spawn_with(|| {
            // Within the lock on starting children, because the file descriptor is not closed on exec from its first moment.
            let (opened, pts) = pty_process::open().map_err(to_io)?;
            opened.resize(size.of_pty()).map_err(to_io)?;
            if self.settings.agent_uid.is_some() {
                // It is the sidecar's: without this, programs of the agent could use it but not open it by name.
                nix::sys::stat::fchmod(&pts, nix::sys::stat::Mode::from_bits_truncate(0o666))?;
            }
            let child = process::agent_shell(&self.settings, command).spawn(pts).map_err(to_io)?;
            pty = Some(opened);
            Ok(child)
        })?;
        let (reader, writer) = pty.ok_or_else(|| io::Error::other("there is no pseudo-terminal"))?.into_split();
        let (input, typed) = mpsc::channel(INPUT_MAX);
        let terminal = Arc::new(Terminal {
            id,
            created_at: OffsetDateTime::now_utc().into(),
            pid: Some(child.pid()),
            state: Mutex::new(State::new(size)),
            doorbell: watch::Sender::new(()),
            input,
            size: watch::Sender::new(size),
        });
        let size = terminal.size.subscribe();
        Ok((terminal, child, reader, write(writer, typed, size)))
    }

    /// Follows a terminal to its end.
    async fn run(self, terminal: Arc<Terminal>, mut child: Child, mut reader: pty_process::OwnedReadPty, writing: Task<()>) {
        let status = {
            let reading = read(&terminal, &mut reader);
            tokio::pin!(reading);
            let mut at_end = false;
            loop {
                tokio::select! {
                    () = &mut reading, if !at_end => at_end = true,
                    status = child.wait() => {
                        if !at_end && tokio::time::timeout(DRAIN_MAX, &mut reading).await.is_err() {
                            tracing::debug!(terminal = %terminal.id, "something holds the terminal of an ended shell open");
                        }
                        break status;
                    }
                }
            }
        };
        // With both halves gone the terminal is hung up for whatever the shell left behind.
        writing.abort();
        drop(reader);
        let code = status.map_or(-1, process::exit_code);
        // Recorded first: whoever closes all terminals before the sidecar ends waits for the end that is shown.
        if let Err(error) = self.journal.record(EventKind::Terminal { id: terminal.id.clone(), exit_code: Some(code) }).await {
            tracing::error!(terminal = %terminal.id, %error, "the end of a terminal could not be recorded");
        }
        let (about, output) = {
            let state = terminal.state();
            let Size { columns, rows } = state.size();
            let (end_offset, output) = state.last(history::KEPT_MAX_BYTES);
            let ended_at = OffsetDateTime::now_utc().into();
            let (id, created_at) = (terminal.id.clone(), terminal.created_at);
            (history::About { id, created_at, ended_at, columns, rows, exit_code: code, end_offset }, output)
        };
        let state_dir = self.settings.state_dir.clone();
        // Before the end is shown: whoever closes all terminals before the sidecar ends waits for it.
        match tokio::task::spawn_blocking(move || history::keep(&state_dir, &about, &output)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(terminal = %terminal.id, %error, "what a terminal showed could not be kept"),
            Err(_) => tracing::error!(terminal = %terminal.id, "keeping what a terminal showed broke off"),
        }
        terminal.state().end(code);
        terminal.doorbell.send_replace(());
        self.forget_oldest_ended();
    }

    fn forget_oldest_ended(&self) {
        let mut all = self.all();
        let mut ended: Vec<_> = all.values().filter_map(|terminal| Some((terminal.state().ended_at()?, terminal.id.clone()))).collect();
        ended.sort_unstable();
        for (_, id) in ended.iter().rev().skip(ENDED_MAX) {
            all.remove(id);
        }
    }

    /// Ends a terminal and everything that was started in it. Nothing happens to one that has ended or never was.
    pub async fn close(&self, id: &TerminalId) {
        let Some(terminal) = self.get(id) else { return };
        if terminal.state().exit_code().is_some() {
            return;
        }
        let Some(pid) = terminal.pid else { return };
        process::signal_session(pid, Signal::SIGHUP);
        // A stopped process would not hear of it otherwise.
        process::signal_session(pid, Signal::SIGCONT);
        if tokio::time::timeout(HANGUP_GRACE, terminal.until_ended()).await.is_err() {
            process::signal_session(pid, Signal::SIGKILL);
            terminal.until_ended().await;
        }
        // What ignored the hang-up and was not the shell itself.
        process::signal_session(pid, Signal::SIGKILL);
    }

    /// Ends all terminals.
    pub async fn close_all(&self) {
        let ids: Vec<_> = self.all().keys().cloned().collect();
        futures::future::join_all(ids.iter().map(|id| self.close(id))).await;
    }
}

impl Terminal {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn info(&self) -> TerminalInfo {
        let state = self.state();
        let Size { columns, rows } = state.size();
        TerminalInfo {
            id: self.id.to_string(),
            columns,
            rows,
            created_at: self.created_at.as_millis(),
            exit_code: state.exit_code(),
            attached: state.attached(),
        }
    }

    /// A terminal of an earlier sidecar.
    fn ended(about: history::About, output: &[u8]) -> Self {
        let size = Size::clamped(about.columns, about.rows);
        Self {
            id: about.id,
            created_at: about.created_at,
            pid: None,
            state: Mutex::new(State::ended_before(size, about.end_offset, output, about.exit_code)),
            doorbell: watch::Sender::new(()),
            // Nobody reads it: what is typed goes nowhere.
            input: mpsc::channel(1).0,
            size: watch::Sender::new(size),
        }
    }

    async fn until_ended(&self) {
        let mut changes = self.doorbell.subscribe();
        while self.state().exit_code().is_none() && changes.changed().await.is_ok() {}
    }

    /// Applies `change` and lets everybody know.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (answer, size) = {
            let mut state = self.state();
            (change(&mut state), state.size())
        };
        self.size.send_if_modified(|current| std::mem::replace(current, size) != size);
        self.doorbell.send_replace(());
        answer
    }
}

async fn read(terminal: &Terminal, reader: &mut pty_process::OwnedReadPty) {
    let mut buffer = vec![0; READ_MAX_BYTES];
    // An error (EIO) is how a pseudo-terminal says that nobody has it open any more.
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        terminal.state().output(&buffer[..count]);
        terminal.doorbell.send_replace(());
        // A flood would otherwise keep a runtime's thread for as long as the shell writes.
        tokio::task::yield_now().await;
    }
}

async fn write(mut writer: pty_process::OwnedWritePty, mut typed: mpsc::Receiver<Bytes>, mut size: watch::Receiver<Size>) {
    loop {
        tokio::select! {
            changed = size.changed() => {
                if changed.is_err() {
                    return;
                }
                resize(&writer, &mut size);
            }
            input = typed.recv() => {
                let Some(mut input) = input else { return };
                while !input.is_empty() {
                    tokio::select! {
                        written = writer.write_buf(&mut input) => if !matches!(written, Ok(1..)) { return },
                        Ok(()) = size.changed() => resize(&writer, &mut size),
                    }
                }
            }
        }
    }
}

fn resize(writer: &pty_process::OwnedWritePty, size: &mut watch::Receiver<Size>) {
    let size = *size.borrow_and_update();
    if let Err(error) = writer.resize(size.of_pty()) {
        tracing::debug!(%error, "a terminal could not be resized");
    }
}

fn to_io(error: pty_process::Error) -> io::Error {
    match error {
        pty_process::Error::Io(error) => error,
        pty_process::Error::Rustix(errno) => errno.into(),
        other => io::Error::other(other.to_string()),
    }
}
