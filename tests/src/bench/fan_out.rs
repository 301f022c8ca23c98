//! One session's events to many clients: the daemon's own store, event log and gRPC door in this process, 50 clients each on a connection of its own.
//!
//! The baseline does the least that keeps an event and tells everybody: it writes to one file, makes that durable, and writes the same bytes to 50
//! Unix sockets.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use openagent_core::config::{OnShutdown, PoolConfig};
use openagent_core::event::EventKind;
use openagent_core::id::SessionId;
use openagent_core::permission::PermissionMode;
use openagent_core::session::lifecycle::Lifecycle;
use openagent_core::session::{Limits, NetworkPolicy, Session, WorkspaceSource};
use openagent_proto::v1::SubscribeRequest;
use openagent_proto::v1::event::Kind;
use openagent_proto::v1::subscribe_response::Item;
use openagent_tests::harness::Clients;
use openagentd::catalogue::Catalogue;
use openagentd::clock;
use openagentd::driver::local::{LocalDriver, LocalOptions};
use openagentd::event::EventLog;
use openagentd::relay::ModelRelay;
use openagentd::rpc::{self, Context as Door, Defaults};
use openagentd::session::admission::{Admission, Bounds};
use openagentd::session::directory::Directory;
use openagentd::session::pool::{Pool, Template};
use openagentd::session::{SessionRegistry, Shared};
use openagentd::store::{SessionRecord, Store};
use openagentd::task::Tasks;
use openagentd::vault::Vault;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::report::{Report, Series};

const CLIENTS: usize = 50;
const EVENTS: usize = 1_000;
const EVENT_BYTES: usize = 8 * 1024;
const SESSION: &str = "ses_01KBQ9GMSE3M6Y8VH1E2C5WZRT";

/// Events of one turn of either side: sides alternate so often, that both see the same machine.
const BLOCK: usize = 100;

/// Longest wait for all clients to have an event.
const PATIENCE: Duration = Duration::from_secs(60);

/// The door closes at once: nobody is to be drained.
const GRACE: Duration = Duration::from_millis(100);

/// Measures one event at a time, then all at once.
pub async fn measure(report: &mut Report) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("oa").tempdir_in("/tmp").context("make a folder")?;
    let daemon = Daemon::start(folder.path()).await?;
    let mut ours = Side::grpc(&daemon).await?;
    let mut file = tokio::fs::File::create(folder.path().join("raw.log")).await.context("create a file")?;
    let (mut sockets, mut theirs) = Side::sockets()?;

    let (mut own, mut raw) = (vec![], vec![]);
    for block in 0..=EVENTS / BLOCK {
        for _ in 0..BLOCK {
            let began = Instant::now();
            daemon.append(1).await?;
            let last = ours.until_all_have(1).await?;
            // The first block makes connections and buffers warm.
            if block > 0 {
                own.push((last - began).as_secs_f64() * 1e3);
            }
        }
        for _ in 0..BLOCK {
            let began = Instant::now();
            send_raw(&mut file, &mut sockets, 1).await?;
            let last = theirs.until_all_have(1).await?;
            if block > 0 {
                raw.push((last - began).as_secs_f64() * 1e3);
            }
        }
    }
    let (own, raw) = (Series::new(own), Series::new(raw));
    let ratio = format!("{:.2}", own.median() / raw.median());
    report.row("one event of 8 KiB to 50 clients, append to last receipt", &own.tail("ms"), &raw.tail("ms"), &ratio, own.count());

    let (mut own, mut raw) = (vec![], vec![]);
    for _ in 0..3 {
        let began = Instant::now();
        let (appended, last) = tokio::join!(daemon.append(EVENTS), ours.until_all_have(EVENTS));
        appended?;
        own.push((last? - began).as_secs_f64());
        let began = Instant::now();
        let (sent, last) = tokio::join!(send_raw(&mut file, &mut sockets, EVENTS), theirs.until_all_have(EVENTS));
        sent?;
        raw.push((last? - began).as_secs_f64());
    }
    report.compare("1,000 events of 8 KiB at once to 50 clients, all received", &Series::new(own), &Series::new(raw), "s");
    drop(ours);

    let mut plain = Side::undecoded(&daemon).await?;
    let (mut own, mut raw) = (vec![], vec![]);
    for round in 0..=3 {
        let began = Instant::now();
        let (appended, last) = tokio::join!(daemon.append(EVENTS), plain.until_all_have(EVENTS));
        appended?;
        let took = (last? - began).as_secs_f64();
        let began = Instant::now();
        let (sent, last) = tokio::join!(send_raw(&mut file, &mut sockets, EVENTS), theirs.until_all_have(EVENTS));
        sent?;
        let last = last?;
        // The first round makes connections and buffers warm.
        if round > 0 {
            own.push(took);
            raw.push((last - began).as_secs_f64());
        }
    }
    report.compare("the same, received by clients that do not decode", &Series::new(own), &Series::new(raw), "s");
    drop((plain, theirs, sockets));
    daemon.end().await;
    report.note(
        "Fan-out: the daemon's store, event log and gRPC service run inside the bench, with 50 clients that each have their own connection to its Unix \
         socket and decode every event (in the last row they only count messages); an event is durable before it is sent. Clients share the cores with the daemon, so what they cost is in the \
         numbers: 1,000 events at once, appended by tens as a journal gives them, are 100 commits and 400 MB to copy and decode. Raw writes each event to a file, makes it durable (`fdatasync`), and \
         writes the same bytes to 50 Unix socket pairs read in the same process, without framing or encoding.",
    );
    Ok(())
}

/// What a daemon serves events with.
struct Daemon {
    log: EventLog,
    session: SessionId,
    text: String,
    store: Store,
    tasks: Tasks,
    shutdown: CancellationToken,
    socket: std::path::PathBuf,
    serving: JoinSet<()>,
}

impl Daemon {
    async fn start(folder: &Path) -> Result<Self> {
        // The relay wants a provider of TLS, though nothing here calls anybody; a second one changes nothing.
        drop(rustls::crypto::ring::default_provider().install_default());
        let session: SessionId = SESSION.parse().context("the session's id")?;
        let store = Store::open(folder.join("store")).await.context("open the store")?;
        store.put_session(&record(&session)).await.context("store a session")?;
        let tasks = Tasks::new();
        let vault = Vault::open(store.clone(), &folder.join("master.key")).await.context("open the vault")?;
        let catalogue = Arc::new(Catalogue::new(&[]).ok().context("the built-in catalogue")?);
        let local = LocalOptions {
            state_dir: folder.to_owned(),
            runtime_dir: folder.to_owned(),
            sidecar: folder.join("none"),
            opencode: folder.join("none"),
            journal_max_bytes: 64 * 1024 * 1024,
        };
        let log = EventLog::new(store.clone());
        let shared = Shared {
            store: store.clone(),
            log: log.clone(),
            relay: ModelRelay::new(Arc::clone(&catalogue), vault.clone()).context("make the relay")?,
            vault,
            driver: Arc::new(LocalDriver::new(local, tasks.clone())),
            catalogue,
            rules: watch::Sender::new(Arc::default()),
            directory: Arc::new(Directory::default()),
            admission: Admission::new(Bounds { running: 1, memory_bytes: 0 }),
            pool: Pool::new(Template {
                config: PoolConfig { size: 0, ..PoolConfig::default() },
                model: None,
                agent: "build".to_owned(),
                permission_mode: PermissionMode::Ask,
                limits: Limits::default(),
            }),
            tasks: tasks.clone(),
            stop_grace: GRACE,
        };
        let registry = SessionRegistry::new(Arc::new(shared));
        registry.raise_all().await.context("raise the session")?;
        let socket = folder.join("s");
        let listener = rpc::listen(&socket).await.context("listen")?;
        let shutdown = CancellationToken::new();
        let door = Door {
            registry,
            defaults: Defaults {
                model: None,
                agent: "build".to_owned(),
                permission_mode: PermissionMode::Ask,
                idle_timeout_millis: 0,
                idle_action: openagent_core::session::IdleAction::default(),
                limits: Limits::default(),
            },
            started_at: clock::now(),
            socket: socket.clone(),
            state_dir: folder.to_owned(),
            shutdown: shutdown.clone(),
            on_shutdown: Arc::new(watch::Sender::new(OnShutdown::Keep)),
        };
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            if let Err(error) = rpc::serve(door, listener, GRACE).await {
                eprintln!("the daemon's door failed: {error}");
            }
        });
        Ok(Self { log, session, text: "x".repeat(EVENT_BYTES), store, tasks, shutdown, socket, serving })
    }

    /// Appends events in batches of ten, as a busy sidecar's journal gives them.
    async fn append(&self, count: usize) -> Result<()> {
        let mut left = count;
        while left > 0 {
            let batch = left.min(10);
            let events = (0..batch).map(|_| (clock::now(), EventKind::Gap { reason: self.text.clone() })).collect();
            self.log.append(&self.session, events, None).await.context("append")?;
            left -= batch;
        }
        Ok(())
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        self.serving.join_next().await;
        self.tasks.shutdown(GRACE).await;
        self.store.close().await;
    }
}

/// A stored session that was stopped.
pub fn record(id: &SessionId) -> SessionRecord {
    let session = Session {
        id: id.clone(),
        title: "bench".to_owned(),
        title_is_users: true,
        driver: "local".to_owned(),
        workspace: WorkspaceSource::Empty,
        model: "demo/tour".to_owned(),
        agent: "build".to_owned(),
        network: NetworkPolicy::None,
        limits: Limits::default(),
        permission_mode: PermissionMode::Ask,
        permission_rules: vec![],
        idle_timeout_millis: 0,
        idle_action: openagent_core::session::IdleAction::default(),
        created_at: clock::now(),
    };
    SessionRecord { session, lifecycle: Lifecycle::default(), instance: None, keys_version: 0 }
}

/// 50 readers that report when they have how many events.
struct Side {
    reports: mpsc::Receiver<Instant>,
    _readers: JoinSet<()>,
}

impl Side {
    async fn grpc(daemon: &Daemon) -> Result<Self> {
        let (report, reports) = mpsc::channel(CLIENTS * EVENTS);
        let mut readers = JoinSet::new();
        for _ in 0..CLIENTS {
            let mut clients = Clients::connect(&daemon.socket).await;
            let request =
                SubscribeRequest { session_id: SESSION.to_owned(), after_seq: 0, follow: true, deltas: true, client: "bench".to_owned() };
            let mut stream = clients.event.subscribe(request).await.context("subscribe")?.into_inner();
            let report = report.clone();
            readers.spawn(async move {
                while let Ok(Some(message)) = stream.message().await {
                    if let Some(Item::Event(event)) = message.item
                        && matches!(event.kind, Some(Kind::Gap(_)))
                        && report.send(Instant::now()).await.is_err()
                    {
                        return;
                    }
                }
            });
        }
        Ok(Self { reports, _readers: readers })
    }

    /// Clients that speak HTTP/2 and count messages, but do not look into them: what they cost is closer to what the raw side's cost.
    async fn undecoded(daemon: &Daemon) -> Result<Self> {
        let (report, reports) = mpsc::channel(CLIENTS * EVENTS);
        let mut readers = JoinSet::new();
        let after_seq = daemon.log.info(&daemon.session).await.context("ask for the end of the history")?.last_seq;
        for _ in 0..CLIENTS {
            let stream = UnixStream::connect(&daemon.socket).await.context("connect")?;
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.context("greet the daemon")?;
            readers.spawn(async move { drop(connection.await) });
            let asked = SubscribeRequest { session_id: SESSION.to_owned(), after_seq, follow: true, ..Default::default() }.encode_to_vec();
            let head = u32::try_from(asked.len()).context("the request is short")?.to_be_bytes();
            let body = Full::new(Bytes::from([&[0], &head[..], &asked].concat()));
            let request = http::Request::post("http://daemon/openagent.v1.EventService/Subscribe")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(body)
                .context("make a request")?;
            let mut body = sender.send_request(request).await.context("subscribe")?.into_body();
            let report = report.clone();
            readers.spawn(async move {
                let _sender = sender;
                let mut messages = Messages::default();
                while let Some(Ok(frame)) = body.frame().await {
                    for _ in 0..frame.data_ref().map_or(0, |data| messages.take(data)) {
                        if report.send(Instant::now()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
        Ok(Self { reports, _readers: readers })
    }

    fn sockets() -> Result<(Vec<UnixStream>, Self)> {
        let (report, reports) = mpsc::channel(CLIENTS * EVENTS);
        let mut readers = JoinSet::new();
        let mut writers = vec![];
        for _ in 0..CLIENTS {
            let (writer, mut reader) = UnixStream::pair().context("make a pair of sockets")?;
            writers.push(writer);
            let report = report.clone();
            readers.spawn(async move {
                let mut event = vec![0; EVENT_BYTES];
                while reader.read_exact(&mut event).await.is_ok() {
                    if report.send(Instant::now()).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok((writers, Self { reports, _readers: readers }))
    }

    /// Waits until every reader has had `events` more; answers when the last one had its last.
    async fn until_all_have(&mut self, events: usize) -> Result<Instant> {
        let mut last = None;
        for _ in 0..CLIENTS * events {
            let report = tokio::time::timeout(PATIENCE, self.reports.recv()).await.context("a client did not get every event")?;
            last = last.max(Some(report.context("every reader ended")?));
        }
        last.context("no event was waited for")
    }
}

/// Counts the events in a stream of messages, each of which has a head: a byte, and its length in four.
#[derive(Default)]
struct Messages {
    head: [u8; 5],
    head_bytes: usize,
    body_bytes: usize,
}

impl Messages {
    /// Takes bytes; answers how many messages of an event's size end in them.
    fn take(&mut self, data: &[u8]) -> usize {
        let (mut at, mut events) = (0, 0);
        while at < data.len() {
            if self.head_bytes < self.head.len() {
                self.head[self.head_bytes] = data[at];
                (self.head_bytes, at) = (self.head_bytes + 1, at + 1);
                continue;
            }
            let [_, length @ ..] = self.head;
            let length = u32::from_be_bytes(length) as usize;
            let taken = (data.len() - at).min(length - self.body_bytes);
            (self.body_bytes, at) = (self.body_bytes + taken, at + taken);
            if self.body_bytes == length {
                events += usize::from(length > EVENT_BYTES);
                (self.head_bytes, self.body_bytes) = (0, 0);
            }
        }
        events
    }
}

async fn send_raw(file: &mut tokio::fs::File, sockets: &mut [UnixStream], count: usize) -> Result<()> {
    let event = vec![b'x'; EVENT_BYTES];
    let mut left = count;
    while left > 0 {
        let batch = left.min(10);
        for _ in 0..batch {
            file.write_all(&event).await.context("write the file")?;
        }
        file.flush().await.context("write the file")?;
        file.sync_data().await.context("make the file durable")?;
        for socket in &mut *sockets {
            for _ in 0..batch {
                socket.write_all(&event).await.context("write a socket")?;
            }
        }
        left -= batch;
    }
    Ok(())
}
