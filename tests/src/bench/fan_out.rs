//! One session's events to many clients: the daemon's own store, event log and gRPC door in this process, 50 clients each on a connection of its own,
//! in a process that only reads.
//!
//! The baseline does the least that keeps an event and tells everybody: it writes to one file, makes that durable, and writes the same bytes to 50
//! Unix sockets.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use openagent_core::config::{OnShutdown, PoolConfig};
use openagent_core::event::EventKind;
use openagent_core::id::SessionId;
use openagent_core::permission::PermissionMode;
use openagent_core::session::lifecycle::Lifecycle;
use openagent_core::session::{Limits, NetworkPolicy, Session, WorkspaceSource};
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
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::readers::Readers;
use crate::report::{Report, Series};

const CLIENTS: usize = 50;
const EVENTS: usize = 1_000;
const EVENT_BYTES: usize = 8 * 1024;
const SESSION: &str = "ses_01KBQ9GMSE3M6Y8VH1E2C5WZRT";

/// Events of one turn of either side: sides alternate so often, that both see the same machine.
const BLOCK: usize = 100;

/// How often everything is sent at once.
const BURSTS: usize = 3;

/// The door closes at once: nobody is to be drained.
const GRACE: Duration = Duration::from_millis(100);

/// Measures one event at a time, also beside a client that never reads, then all at once.
pub async fn measure(report: &mut Report) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("oa").tempdir_in("/tmp").context("make a folder")?;
    let daemon = Daemon::start(folder.path()).await?;
    let mut ours = Readers::start(&daemon.socket, Some(SESSION), CLIENTS, 0, EVENT_BYTES)?;
    ours.connected().await?;
    let mut raw = Raw::start(folder.path()).await?;

    let (mut own, mut least) = (vec![], vec![]);
    for block in 0..=EVENTS / BLOCK {
        for _ in 0..BLOCK {
            let took = daemon.send(&mut ours).await?;
            // The first block makes connections and buffers warm.
            if block > 0 {
                own.push(took);
            }
        }
        for _ in 0..BLOCK {
            let began = Instant::now();
            send_raw(&mut raw.file, &mut raw.sockets, 1).await?;
            let last = raw.readers.until_all_have(1).await?;
            if block > 0 {
                least.push((last - began).as_secs_f64() * 1e3);
            }
        }
    }
    let (own, least) = (Series::new(own), Series::new(least));
    let ratio = format!("{:.2}", own.median() / least.median());
    report.promise("an event of 8 KiB to 50 clients, append to last receipt (p99 of 1,000)", 12.0, own.quantile(0.99), "ms");
    report.row("one event of 8 KiB to 50 clients, append to last receipt", &own.tail("ms"), &least.tail("ms"), &ratio, own.count());

    let (mut own, mut least) = (vec![], vec![]);
    for _ in 0..BURSTS {
        let began = Instant::now();
        let (appended, last) = tokio::join!(daemon.append(EVENTS), ours.until_all_have(EVENTS));
        appended?;
        own.push((last? - began).as_secs_f64());
        let began = Instant::now();
        let (sent, last) = tokio::join!(send_raw(&mut raw.file, &mut raw.sockets, EVENTS), raw.readers.until_all_have(EVENTS));
        sent?;
        least.push((last? - began).as_secs_f64());
    }
    report.compare("1,000 events of 8 KiB at once to 50 clients, all received", &Series::new(own), &Series::new(least), "s");

    drop(ours);
    let mut beside = Readers::start(&daemon.socket, Some(SESSION), CLIENTS, 1, EVENT_BYTES)?;
    beside.connected().await?;
    // They are given the history first; the one that never reads takes none of it.
    beside.until_all_have(daemon.appended.load(Ordering::Relaxed)).await?;
    let mut with_stuck = vec![];
    for _ in 0..EVENTS {
        with_stuck.push(daemon.send(&mut beside).await?);
    }
    let with_stuck = Series::new(with_stuck);
    report.promise("the same beside a client that never reads (p99)", 12.0, with_stuck.quantile(0.99), "ms");
    report.row("the same one at a time, with a 51st client that never reads", &with_stuck.tail("ms"), "", "", with_stuck.count());
    drop((beside, raw));
    daemon.end().await;
    report.note(
        "Fan-out: the daemon's store, event log and gRPC service run inside the bench; 50 clients, each with its own connection to its Unix socket, are in a \
         process of their own, and only read: they count messages and decode nothing. An event is durable before it is sent. The time ends when that process \
         has said that all have the event, which is later than the last write. At once means that 400 MB pass through 50 sockets; clients share the cores with the daemon. \
         Raw writes each event to a file, makes it durable (`fdatasync`), and writes the same bytes to 50 Unix sockets that the same kind of process reads.",
    );
    Ok(())
}

/// What a daemon serves events with.
struct Daemon {
    log: EventLog,
    appended: AtomicUsize,
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
        Ok(Self { log, appended: AtomicUsize::new(0), session, text: "x".repeat(EVENT_BYTES), store, tasks, shutdown, socket, serving })
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
        self.appended.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    /// Appends one event; gives how many milliseconds later all readers had it.
    async fn send(&self, readers: &mut Readers) -> Result<f64> {
        let began = Instant::now();
        self.append(1).await?;
        let last = readers.until_all_have(1).await?;
        Ok((last - began).as_secs_f64() * 1e3)
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

/// The least that keeps an event and tells everybody.
struct Raw {
    file: tokio::fs::File,
    sockets: Vec<UnixStream>,
    readers: Readers,
}

impl Raw {
    async fn start(folder: &Path) -> Result<Self> {
        let file = tokio::fs::File::create(folder.join("raw.log")).await.context("create a file")?;
        let socket = folder.join("raw");
        let listener = UnixListener::bind(&socket).context("listen")?;
        let mut readers = Readers::start(&socket, None, CLIENTS, 0, EVENT_BYTES)?;
        let mut sockets = vec![];
        for _ in 0..CLIENTS {
            sockets.push(listener.accept().await.context("accept a reader")?.0);
        }
        readers.connected().await?;
        Ok(Self { file, sockets, readers })
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
