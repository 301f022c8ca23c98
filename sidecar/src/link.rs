//! The sidecar's socket: every stream that the daemon dialled arrives here and says in its first line what it is for.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use openagent_proto::sidecar::{PREAMBLE_CONTROL, PREAMBLE_RELAY, SOCKET_NAME};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::relay::{CONNECTION_WINDOW_BYTES, PING_INTERVAL, PING_TIMEOUT, Relay, STREAM_WINDOW_BYTES};
use crate::task::Tasks;

/// Streams at once. The daemon needs two, and two more while it replaces broken ones; a further one is closed at once.
const STREAMS_MAX: usize = 64;

/// Time in which a stream must say what it is for.
const PREAMBLE_LIMIT: Duration = Duration::from_secs(5);

/// Pause after the operating system refused a stream (no descriptors left), so that this does not become a busy loop.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// HTTP/2 streams of one connection: every client's terminals, event streams and calls.
const REQUESTS_MAX: u32 = 256;

/// The listening socket.
pub struct Link {
    listener: UnixListener,
    path: PathBuf,
    streams: Arc<Semaphore>,
}

enum Purpose {
    Control,
    Relay,
}

impl Link {
    /// Listens in `folder`, in place of whoever did so before.
    ///
    /// # Errors
    /// When the folder does not allow it.
    pub fn listen(folder: &Path) -> io::Result<Self> {
        let path = folder.join(SOCKET_NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&path)?;
        // The folders above keep others out; the host's daemon may have another user id than the container's root.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        Ok(Self { listener, path, streams: Arc::new(Semaphore::new(STREAMS_MAX)) })
    }

    /// Serves streams until the token of `tasks` is cancelled; those that are open then end when their calls are answered.
    pub async fn serve(self, router: Router, relay: Relay, tasks: Tasks) {
        let stop = tasks.token().clone();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => match Arc::clone(&self.streams).try_acquire_owned() {
                    Ok(permit) => {
                        tasks.spawn("stream", serve_stream(stream, router.clone(), relay.clone(), stop.clone(), permit));
                    }
                    Err(_) => tracing::warn!("a stream was closed: {STREAMS_MAX} are open"),
                },
                Err(error) => {
                    tracing::warn!(%error, "a stream could not be accepted");
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
            }
        }
        // The next sidecar removes it as well.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve_stream(mut stream: UnixStream, router: Router, relay: Relay, stop: CancellationToken, _permit: OwnedSemaphorePermit) {
    match timeout(PREAMBLE_LIMIT, read_preamble(&mut stream)).await {
        Ok(Ok(Purpose::Control)) => serve_control(stream, router, stop).await,
        Ok(Ok(Purpose::Relay)) => {
            tracing::info!("relay connected");
            let ended = tokio::select! {
                ended = relay.run(stream) => ended,
                () = stop.cancelled() => Ok(()),
            };
            tracing::info!(error = ended.err().map(tracing::field::display), "relay ended");
        }
        Ok(Err(error)) => tracing::debug!(%error, "a stream did not say what it is for"),
        Err(_) => tracing::debug!("a stream did not say in time what it is for"),
    }
}

/// Given to every request: cancelled when the connection that it came over has ended. What was upgraded does not notice by itself while it waits.
#[derive(Debug, Clone)]
pub struct ConnectionEnd(pub CancellationToken);

async fn serve_control(stream: UnixStream, router: Router, stop: CancellationToken) {
    let end = CancellationToken::new();
    let _ended = end.clone().drop_guard();
    let router = router.layer(Extension(ConnectionEnd(end)));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(REQUESTS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a control stream broke");
    }
}

/// Reads the first line byte by byte, since what follows it is HTTP/2's. It is short.
async fn read_preamble(stream: &mut UnixStream) -> io::Result<Purpose> {
    const LONGEST: usize = if PREAMBLE_CONTROL.len() > PREAMBLE_RELAY.len() { PREAMBLE_CONTROL.len() } else { PREAMBLE_RELAY.len() };
    let mut line = Vec::with_capacity(LONGEST);
    loop {
        let byte = stream.read_u8().await?;
        match (byte, line.as_slice()) {
            (b'\n', line) if line == PREAMBLE_CONTROL.as_bytes() => return Ok(Purpose::Control),
            (b'\n', line) if line == PREAMBLE_RELAY.as_bytes() => return Ok(Purpose::Relay),
            (byte, line_so_far) if byte != b'\n' && line_so_far.len() < LONGEST => line.push(byte),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the first line is not a known one")),
        }
    }
}
