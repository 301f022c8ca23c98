//! The gRPC door: `openagent.v1`, health and reflection on a Unix socket.
//!
//! The socket is 0600 in a folder of 0700, and every connection's peer must be this user (or root). Services hold only handles; they check what comes in,
//! ask a session or a reader, and convert. One file a service.

pub mod convert;
pub mod daemon;
pub mod event;
pub mod permission;
pub mod provider;
pub mod session;
pub mod status;
pub mod terminal;
pub mod usage;
pub mod vault;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;
use openagent_core::config::OnShutdown;
use openagent_core::session::PROMPT_MAX_BYTES;
use openagent_core::time::Timestamp;
use openagent_proto::{FILE_DESCRIPTOR_SET, v1};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::session::SessionRegistry;

/// Largest request: a prompt, and room for the rest of it.
const REQUEST_MAX_BYTES: usize = PROMPT_MAX_BYTES + 64 * 1024;

/// Calls that run at once on one connection; a client with more open streams is not a client.
const STREAMS_MAX: u32 = 256;

/// What every service uses.
#[derive(Clone)]
pub struct Context {
    /// All sessions.
    pub registry: SessionRegistry,
    /// Defaults of new sessions.
    pub defaults: Defaults,
    /// When the daemon started.
    pub started_at: Timestamp,
    /// Its socket.
    pub socket: PathBuf,
    /// Its state folder.
    pub state_dir: PathBuf,
    /// Ends the daemon.
    pub shutdown: CancellationToken,
    /// What becomes of sessions then.
    pub on_shutdown: Arc<watch::Sender<OnShutdown>>,
}

/// Defaults of new sessions.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// `provider/model`.
    pub model: Option<String>,
    /// The agent's mode or persona.
    pub agent: String,
    /// What it may do unasked.
    pub permission_mode: openagent_core::permission::PermissionMode,
    /// Rest after which it becomes idle, in milliseconds; 0: never.
    pub idle_timeout_millis: u64,
    /// What becomes of its instance then.
    pub idle_action: openagent_core::session::IdleAction,
    /// What it may use.
    pub limits: openagent_core::session::Limits,
}

/// Why the door cannot be opened.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Another daemon has the socket.
    #[error("another daemon serves {0} already")]
    Taken(PathBuf),
    /// The socket cannot be made.
    #[error("the socket {0} cannot be made")]
    Socket(PathBuf, #[source] io::Error),
    /// The server ended with an error.
    #[error("the gRPC server failed")]
    Server(#[from] tonic::transport::Error),
    /// The descriptors cannot be served.
    #[error("the gRPC reflection service cannot be set up")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// The daemon's socket, and what says that it is this daemon's.
pub struct Door {
    listener: UnixListener,
    /// Held until the socket is removed: of two daemons that start or end at the same time, neither takes the other's socket away.
    lock: Flock<File>,
}

/// Makes the daemon's socket, in the place of a dead one.
///
/// # Errors
/// [`ServeError::Taken`], [`ServeError::Socket`].
pub async fn listen(socket: &Path) -> Result<Door, ServeError> {
    let fail = |error| ServeError::Socket(socket.to_owned(), error);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(socket.with_added_extension("lock"));
    let lock = match Flock::lock(file.map_err(fail)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, Errno::EWOULDBLOCK)) => return Err(ServeError::Taken(socket.to_owned())),
        Err((_, errno)) => return Err(fail(errno.into())),
    };
    // An older version takes no lock.
    if UnixStream::connect(socket).await.is_ok() {
        return Err(ServeError::Taken(socket.to_owned()));
    }
    match std::fs::remove_file(socket) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    let listener = UnixListener::bind(socket).map_err(fail)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(Door { listener, lock })
}

/// Serves until `context.shutdown`; calls that run then have `grace` to end.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(context: Context, door: Door, grace: Duration) -> Result<(), ServeError> {
    let Door { listener, lock } = door;
    let socket = context.socket.clone();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<v1::session_service_server::SessionServiceServer<session::Sessions>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let peers = UnixListenerStream::new(listener).filter(|peer| std::future::ready(peer.as_ref().map_or(true, is_own)));
    let stop = context.shutdown.clone();
    let served = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(v1::daemon_service_server::DaemonServiceServer::new(daemon::Daemon(context.clone())))
        .add_service(
            v1::session_service_server::SessionServiceServer::new(session::Sessions(context.clone()))
                .max_decoding_message_size(REQUEST_MAX_BYTES),
        )
        .add_service(event::Events::new(context.clone()))
        .add_service(v1::permission_service_server::PermissionServiceServer::new(permission::Permissions(context.clone())))
        .add_service(v1::terminal_service_server::TerminalServiceServer::new(terminal::Terminals(context.clone())))
        .add_service(v1::vault_service_server::VaultServiceServer::new(vault::Keys(context.clone())))
        .add_service(v1::provider_service_server::ProviderServiceServer::new(provider::Providers(context.clone())))
        .add_service(v1::usage_service_server::UsageServiceServer::new(usage::Usages(context.clone())))
        .serve_with_incoming_shutdown(peers, stop.clone().cancelled_owned());
    // Streams that follow something never end by themselves: after the grace period they are cut.
    let cut = async {
        stop.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        served = served => served?,
        () = cut => {}
    }
    let _ = std::fs::remove_file(socket);
    drop(lock);
    Ok(())
}

/// The folder's and socket's modes keep others out already; this also holds where somebody loosened them.
fn is_own(peer: &UnixStream) -> bool {
    let uid = peer.peer_cred().map(|credentials| credentials.uid());
    let own = uid.as_ref().is_ok_and(|uid| *uid == geteuid().as_raw() || *uid == 0);
    if !own {
        tracing::warn!(uid = ?uid.ok(), "a connection of another user was refused");
    }
    own
}
