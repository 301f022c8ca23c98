//! A proxy in front of a container engine, which lets a test decide what becomes of the daemon's calls.
//!
//! It speaks HTTP/1.1 on a Unix socket of its own and opens one connection to the engine for each call. What no rule stops goes through as it comes: archives and
//! the stream of engine events are handed on piece by piece, and an upgraded connection (`exec`, `attach`) becomes a plain pipe whose ends are closed one by one.
//! The first [`Rule`] that fits a call decides; a rule counts its hits, so a test can act exactly while a call is under way: before the engine hears of it
//! ([`Action::Hold`]), or after the engine did it and before the daemon knows ([`Action::HoldAnswer`]).
//!
//! Invariant: a call that is held when its caller goes away is given up, so it never reaches the engine later. The proxy has a thread and a runtime of its own: a
//! test that blocks, as the clean-up of a [`World`](super::World) does, does not stop it.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::PATIENCE;
use super::client::within;

/// Calls that are remembered; further ones are only counted.
const CALLS_MAX: usize = 10_000;

/// Name of its socket.
const SOCKET: &str = "docker.sock";

/// Time for the proxy to do what it is told.
const COMMAND_PATIENCE: Duration = Duration::from_secs(10);

/// Time between two looks at whether the caller of a held call is still there.
const CALLER_LOOK_INTERVAL: Duration = Duration::from_millis(5);

type Body = BoxBody<Bytes, hyper::Error>;

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It goes through, and is counted.
    Pass,
    /// It waits before the engine hears of it, until the rule is released: for ever, if it never is.
    Hold,
    /// The engine does it; its answer waits until the rule is released.
    HoldAnswer,
    /// It waits this long before the engine hears of it.
    Delay(Duration),
    /// The engine never hears of it; this is answered.
    Answer {
        /// HTTP status.
        status: u16,
        /// The `message` of the answer.
        message: String,
    },
    /// The engine never hears of it; the connection is cut.
    Cut,
    /// The engine does it; instead of its answer the connection is cut.
    CutAnswer,
}

/// A rule and what it was hit by. Dropped, it holds nothing any more and is taken out of use.
pub struct Rule {
    id: u64,
    shared: Arc<Shared>,
    hits: watch::Receiver<u64>,
    released: watch::Sender<bool>,
}

impl Rule {
    /// How often it was hit.
    #[must_use]
    pub fn hits(&self) -> u64 {
        *self.hits.borrow()
    }

    /// Waits until it was hit this often in all. A rule on an answer is hit when the engine has answered.
    ///
    /// # Panics
    /// When it is not.
    pub async fn until_hit(&mut self, times: u64) {
        within("a call to the engine", PATIENCE, self.hits.wait_for(|hits| *hits >= times)).await.expect("the rule is in use");
    }

    /// Lets everything go on that is held, now and later.
    pub fn release(&self) {
        self.released.send_replace(true);
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        self.release();
        self.shared.rules().retain(|rule| rule.id != self.id);
    }
}

/// A rule as the connections see it.
#[derive(Clone)]
struct Entry {
    id: u64,
    method: Option<Method>,
    path: Vec<String>,
    action: Action,
    /// Calls that it still decides.
    left: u64,
    hit: Arc<watch::Sender<u64>>,
    released: watch::Receiver<bool>,
}

impl Entry {
    fn fits(&self, method: &Method, path: &str) -> bool {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        // Calls may name the version of the API that they speak.
        let version = |segment: &&str| segment.starts_with('v') && segment[1..].starts_with(|first: char| first.is_ascii_digit());
        let segments = &segments[usize::from(segments.first().is_some_and(version))..];
        self.left > 0
            && self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self.path.len() <= segments.len()
            && self.path.iter().zip(segments).all(|(wanted, segment)| wanted == "*" || wanted == segment)
    }

    fn count(&self) {
        self.hit.send_modify(|hits| *hits += 1);
    }

    /// Waits for the release; `false` when the caller goes away before.
    async fn wait(&mut self, caller: &Caller) -> bool {
        tokio::select! {
            biased;
            () = caller.gone() => false,
            // A rule that is gone holds nothing.
            _ = self.released.wait_for(|released| *released) => !caller.is_gone(),
        }
    }
}

struct Shared {
    engine: PathBuf,
    rules: Mutex<Vec<Entry>>,
    calls: Mutex<Vec<String>>,
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> MutexGuard<'_, Vec<String>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a call and gives the rule that decides it.
    fn rule_for(&self, method: &Method, path: &str) -> Option<Entry> {
        let mut calls = self.calls();
        if calls.len() < CALLS_MAX {
            calls.push(format!("{method} {path}"));
        }
        let mut rules = self.rules();
        let rule = rules.iter_mut().find(|rule| rule.fits(method, path))?;
        rule.left -= 1;
        Some(rule.clone())
    }
}

enum Command {
    GoAway(oneshot::Sender<()>),
    ComeBack(oneshot::Sender<()>),
}

/// The proxy. Dropped, it ends.
pub struct EngineProxy {
    folder: TempDir,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
    next_rule: std::sync::atomic::AtomicU64,
}

impl EngineProxy {
    /// A proxy before the engine behind the socket `engine`.
    ///
    /// # Panics
    /// When it cannot listen.
    #[must_use]
    pub fn before(engine: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("oa-proxy-").tempdir_in("/tmp").expect("a temporary folder can be made");
        let socket = folder.path().join(SOCKET);
        let shared = Arc::new(Shared { engine: engine.to_owned(), rules: Mutex::default(), calls: Mutex::default() });
        let stop = CancellationToken::new();
        let (commands, inbox) = mpsc::channel(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(&socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()))
        };
        let door = Door { socket, shared: shared.clone(), listener: Some(listener), connections: JoinSet::new() };
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(stopped.run_until_cancelled_owned(door.run(inbox)));
        });
        Self { folder, shared, commands, stop, thread: Some(thread), next_rule: std::sync::atomic::AtomicU64::new(1) }
    }

    /// The engine's socket.
    #[must_use]
    pub fn engine(&self) -> &Path {
        &self.shared.engine
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    /// A rule for calls of a method (`*`: any) on a path that begins with these segments, of which `*` is any one: `rule("POST", "containers/*/start", …)`.
    #[must_use]
    pub fn rule(&self, method: &str, path: &str, action: Action) -> Rule {
        self.rule_for(u64::MAX, method, path, action)
    }

    /// A rule for the next call only.
    #[must_use]
    pub fn once(&self, method: &str, path: &str, action: Action) -> Rule {
        self.rule_for(1, method, path, action)
    }

    fn rule_for(&self, calls: u64, method: &str, path: &str, action: Action) -> Rule {
        let id = self.next_rule.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (hit, hits) = watch::channel(0);
        let (released, release) = watch::channel(false);
        let entry = Entry {
            id,
            method: (method != "*").then(|| method.parse().expect("a method")),
            path: path.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect(),
            action,
            left: calls,
            hit: Arc::new(hit),
            released: release,
        };
        self.shared.rules().push(entry);
        Rule { id, shared: self.shared.clone(), hits, released }
    }

    /// Every call so far, as `METHOD /path?query`.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.shared.calls().clone()
    }

    /// The engine is gone: every connection is cut, new ones are refused.
    ///
    /// # Panics
    /// When the proxy has ended.
    pub async fn go_away(&self) {
        self.tell(Command::GoAway).await;
    }

    /// The engine is back.
    ///
    /// # Panics
    /// When the proxy has ended.
    pub async fn come_back(&self) {
        self.tell(Command::ComeBack).await;
    }

    async fn tell(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (done, is_done) = oneshot::channel();
        within("the proxy", COMMAND_PATIENCE, async {
            self.commands.send(command(done)).await.expect("the proxy runs");
            is_done.await.expect("the proxy runs");
        })
        .await;
    }
}

impl Drop for EngineProxy {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the engine's proxy has panicked");
        }
    }
}

/// Accepts, and knows every connection.
struct Door {
    socket: PathBuf,
    shared: Arc<Shared>,
    listener: Option<UnixListener>,
    connections: JoinSet<()>,
}

impl Door {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let accepted = async {
                match &self.listener {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::GoAway(done)) => {
                        self.listener = None;
                        self.connections.shutdown().await;
                        let _ = done.send(());
                    }
                    Some(Command::ComeBack(done)) => {
                        if self.listener.is_none() {
                            let _ = std::fs::remove_file(&self.socket);
                            self.listener = UnixListener::bind(&self.socket).ok();
                        }
                        let _ = done.send(());
                    }
                    None => return,
                },
                accepted = accepted => if let Ok((stream, _)) = accepted {
                    self.connections.spawn(serve(stream, self.shared.clone()));
                },
                Some(_) = self.connections.join_next() => {}
            }
        }
    }
}

/// Serves one connection of the daemon's; a call that is cut ends it. Pipes of upgraded calls live as long as it does, and end with it.
async fn serve(stream: UnixStream, shared: Arc<Shared>) {
    let Ok(caller) = stream.as_fd().try_clone_to_owned() else { return };
    let caller = Arc::new(Caller(caller));
    let (pipes, mut piped) = mpsc::channel(1);
    let service = hyper::service::service_fn(move |request| call(request, shared.clone(), caller.clone(), pipes.clone()));
    // A connection that breaks off is what tests do.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    if let Ok(pipe) = piped.try_recv() {
        pipe.run().await;
    }
}

/// The daemon's end of a connection. HTTP notices its end only once a call's body was read, and a held one was not.
struct Caller(OwnedFd);

impl Caller {
    fn is_gone(&self) -> bool {
        // The end is told without being asked for.
        let mut socket = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        poll(&mut socket, PollTimeout::ZERO).is_err() || socket[0].any().unwrap_or(true)
    }

    /// Looks now and then: to be woken by the end alone is nothing that the runtime offers.
    async fn gone(&self) {
        let mut looks = tokio::time::interval(CALLER_LOOK_INTERVAL);
        while !self.is_gone() {
            looks.tick().await;
        }
    }
}

/// The two ends of an upgraded call.
struct Pipe {
    daemon: hyper::upgrade::OnUpgrade,
    engine: hyper::upgrade::OnUpgrade,
}

impl Pipe {
    async fn run(self) {
        let (Ok(daemon), Ok(engine)) = tokio::join!(self.daemon, self.engine) else { return };
        // Each direction ends when its source does; an error ends both.
        let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(daemon), &mut TokioIo::new(engine)).await;
    }
}

/// An error ends the connection without an answer.
async fn call(
    mut request: Request<Incoming>,
    shared: Arc<Shared>,
    caller: Arc<Caller>,
    pipes: mpsc::Sender<Pipe>,
) -> Result<Response<Body>, io::Error> {
    let cut = || io::Error::from(io::ErrorKind::ConnectionAborted);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let mut rule = shared.rule_for(request.method(), path.split('?').next().unwrap_or_default());
    let action = rule.as_ref().map_or(Action::Pass, |rule| rule.action.clone());
    if let Some(rule) = &mut rule {
        match &action {
            Action::Pass => rule.count(),
            Action::Hold => {
                rule.count();
                if !rule.wait(&caller).await {
                    return Err(cut());
                }
            }
            Action::Delay(time) => {
                rule.count();
                tokio::time::sleep(*time).await;
            }
            Action::Answer { status, message } => {
                rule.count();
                return Ok(answer(*status, message));
            }
            Action::Cut => {
                rule.count();
                return Err(cut());
            }
            Action::HoldAnswer | Action::CutAnswer => {}
        }
    }
    let daemon = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let mut answered = match forward(request, &shared.engine).await {
        Ok(answered) => answered,
        Err(Failure::Away) => return Err(cut()),
        Err(Failure::Broke(error)) => return Ok(answer(502, &error.to_string())),
    };
    if let Some(rule) = &mut rule {
        match action {
            Action::HoldAnswer => {
                rule.count();
                if !rule.wait(&caller).await {
                    return Err(cut());
                }
            }
            Action::CutAnswer => {
                rule.count();
                return Err(cut());
            }
            Action::Pass | Action::Hold | Action::Delay(_) | Action::Answer { .. } | Action::Cut => {}
        }
    }
    if answered.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(daemon) = daemon
    {
        let engine = hyper::upgrade::on(&mut answered);
        // One upgrade is all that a connection can have.
        let _ = pipes.try_send(Pipe { daemon, engine });
    }
    Ok(answered.map(BodyExt::boxed))
}

enum Failure {
    /// No engine listens.
    Away,
    Broke(hyper::Error),
}

async fn forward(request: Request<Incoming>, engine: &Path) -> Result<Response<Incoming>, Failure> {
    let stream = UnixStream::connect(engine).await.map_err(|_| Failure::Away)?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(Failure::Broke)?;
    // Driven beside the answer: its body comes through this connection.
    drive(connection.with_upgrades());
    sender.send_request(request).await.map_err(Failure::Broke)
}

/// Runs until its call is over: the call's end, which is dropped with the daemon's connection, ends it.
#[allow(clippy::disallowed_methods, reason = "the end of the call ends it; the runtime is the proxy's own and ends with it")]
fn drive(connection: impl Future<Output = Result<(), hyper::Error>> + Send + 'static) {
    tokio::spawn(async move { drop(connection.await) });
}

fn answer(status: u16, message: &str) -> Response<Body> {
    let text = serde_json::json!({ "message": message }).to_string();
    let body = Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).expect("a rule answers with a status");
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(method: &str, path: &str) -> Entry {
        let (hit, _) = watch::channel(0);
        let (_, released) = watch::channel(false);
        Entry {
            id: 0,
            method: (method != "*").then(|| method.parse().expect("a method")),
            path: path.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect(),
            action: Action::Pass,
            left: 1,
            hit: Arc::new(hit),
            released,
        }
    }

    #[test]
    fn a_rule_fits_by_method_and_by_the_beginning_of_the_path_without_its_version() {
        let start = entry("POST", "containers/*/start");
        assert!(start.fits(&Method::POST, "/v1.41/containers/abc/start") && start.fits(&Method::POST, "/containers/abc/start"));
        assert!(!start.fits(&Method::GET, "/containers/abc/start") && !start.fits(&Method::POST, "/containers/abc/stop"));
        assert!(!start.fits(&Method::POST, "/containers/create"));
        let all = entry("*", "");
        assert!(all.fits(&Method::DELETE, "/volumes/x") && entry("*", "volumes").fits(&Method::POST, "/volumes/create"));
        let used = Entry { left: 0, ..all };
        assert!(!used.fits(&Method::GET, "/_ping"));
    }
}
