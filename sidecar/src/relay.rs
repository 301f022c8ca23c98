//! Client of what the daemon serves on the relay stream that it dialled.
//!
//! At most one relay is current: a newer stream replaces an older one, whose calls run to their end. While there is none, a call waits for a bounded
//! time, so that a turn outlives a restart of the daemon. A call is sent again over another stream only if nothing of it was sent over the first.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};

/// How long a call waits for a relay: the time in which a daemon is restarted or upgraded.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// Most calls that have not been answered yet; further ones wait. Answers that are being streamed are bounded by the daemon's HTTP/2 settings.
pub const UNANSWERED_MAX: usize = 64;

/// Time between pings on a stream, a third of the silence after which the `exec` bridge ends itself.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);

/// Time in which a ping must be answered.
pub const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What one HTTP/2 stream may have on its way that nobody has read, in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// What all streams of a connection together may have on their way: enough for each of 256 that nobody reads, so that none of them stalls the others.
pub const CONNECTION_WINDOW_BYTES: u32 = 256 * STREAM_WINDOW_BYTES;

/// Body of a call to the daemon.
pub type RelayBody = BoxBody<Bytes, Box<dyn StdError + Send + Sync>>;

/// Why a call had no answer.
#[derive(Debug, Error)]
pub enum RelayError {
    /// No daemon was connected for [`WAIT_MAX`].
    #[error("no daemon is connected")]
    NoDaemon,
    /// The stream broke while the call was on its way.
    #[error("the relay to the daemon broke before the answer")]
    Broken(#[source] hyper::Error),
}

/// Handle on the relay.
#[derive(Clone)]
pub struct Relay {
    current: watch::Sender<Option<Stream>>,
    unanswered: Arc<Semaphore>,
    wait_max: Duration,
}

#[derive(Clone)]
struct Stream {
    number: u64,
    requests: http2::SendRequest<RelayBody>,
}

impl Default for Relay {
    fn default() -> Self {
        Self::with_wait_max(WAIT_MAX)
    }
}

impl Relay {
    /// A relay without a stream, whose calls wait for one as long as said.
    #[must_use]
    pub fn with_wait_max(wait_max: Duration) -> Self {
        Self { current: watch::Sender::new(None), unanswered: Arc::new(Semaphore::new(UNANSWERED_MAX)), wait_max }
    }

    /// Whether a daemon is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// Speaks HTTP/2 over `stream` until it ends; meanwhile it is the one that calls take.
    ///
    /// # Errors
    /// Why the stream ended, unless it was closed in order.
    pub async fn run(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> hyper::Result<()> {
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .handshake(TokioIo::new(stream))
            .await?;
        let mut number = 0;
        self.current.send_modify(|current| {
            number = current.as_ref().map_or(0, |older| older.number) + 1;
            *current = Some(Stream { number, requests });
        });
        let ended = connection.await;
        self.forget(number);
        ended
    }

    /// Sends a call over the current stream, or the next one.
    ///
    /// # Errors
    /// [`RelayError`].
    pub async fn send(&self, mut request: Request<RelayBody>) -> Result<Response<Incoming>, RelayError> {
        let deadline = Instant::now() + self.wait_max;
        let _turn = timeout_at(deadline, self.unanswered.acquire()).await.map_err(|_| RelayError::NoDaemon)?;
        let mut streams = self.current.subscribe();
        loop {
            let found = timeout_at(deadline, streams.wait_for(Option::is_some)).await;
            let Some(Stream { number, mut requests }) = found.ok().and_then(Result::ok).and_then(|stream| stream.clone()) else {
                return Err(RelayError::NoDaemon);
            };
            match requests.try_send_request(request).await {
                Ok(answer) => return Ok(answer),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => {
                        self.forget(number);
                        request = unsent;
                    }
                    None => return Err(RelayError::Broken(error.into_error())),
                },
            }
        }
    }

    fn forget(&self, number: u64) {
        self.current.send_if_modified(|current| {
            let was_current = current.as_ref().is_some_and(|stream| stream.number == number);
            if was_current {
                *current = None;
            }
            was_current
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt, Full};
    use hyper::server::conn::http2 as server;
    use hyper::service::service_fn;
    use tokio::io::DuplexStream;

    use super::*;
    use crate::task::Tasks;

    fn call(text: &'static str) -> Request<RelayBody> {
        let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never: Infallible| match never {}).boxed();
        Request::post("http://relay/model/demo/chat").body(body).unwrap()
    }

    /// A daemon that answers each call with its name and what it was sent.
    fn daemon(tasks: &Tasks, name: &'static str, stream: DuplexStream) -> crate::task::Task<()> {
        let service = service_fn(move |request: Request<Incoming>| async move {
            let body = request.into_body().collect().await?.to_bytes();
            let answer = [name.as_bytes(), &body].concat();
            Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(answer))))
        });
        tasks.spawn("daemon", async move {
            let _ = server::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        })
    }

    fn connect(tasks: &Tasks, relay: &Relay) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let relay = relay.clone();
        tasks.spawn("relay", async move { relay.run(near).await });
        far
    }

    async fn connected(relay: &Relay, number: u64) {
        let mut streams = relay.current.subscribe();
        let wanted = streams.wait_for(|current| current.as_ref().is_some_and(|stream| stream.number >= number));
        tokio::time::timeout(Duration::from_secs(10), wanted).await.unwrap().unwrap();
    }

    async fn text(answer: Response<Incoming>) -> String {
        String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_call_waits_for_a_daemon_to_come() {
        let (tasks, relay) = (Tasks::default(), Relay::default());
        let (answer, ()) = tokio::join!(relay.send(call("hello")), async {
            tokio::task::yield_now().await;
            daemon(&tasks, "first ", connect(&tasks, &relay));
        });
        assert_eq!(text(answer.unwrap()).await, "first hello");
    }

    #[tokio::test]
    async fn a_call_does_not_wait_for_ever() {
        let relay = Relay::with_wait_max(Duration::from_millis(10));
        assert!(matches!(relay.send(call("hello")).await, Err(RelayError::NoDaemon)));
    }

    #[tokio::test]
    async fn a_newer_stream_takes_the_calls_and_the_end_of_the_older_one_changes_nothing() {
        let (tasks, relay) = (Tasks::default(), Relay::default());
        let older = daemon(&tasks, "older ", connect(&tasks, &relay));
        connected(&relay, 1).await;
        daemon(&tasks, "newer ", connect(&tasks, &relay));
        connected(&relay, 2).await;
        older.abort();
        for _ in 0..10 {
            assert_eq!(text(relay.send(call("x")).await.unwrap()).await, "newer x");
        }
    }

    #[tokio::test]
    async fn after_a_restart_of_the_daemon_calls_go_on() {
        let (tasks, relay) = (Tasks::default(), Relay::default());
        let first = daemon(&tasks, "first ", connect(&tasks, &relay));
        assert_eq!(text(relay.send(call("x")).await.unwrap()).await, "first x");
        first.abort();
        first.await;
        let (answer, ()) = tokio::join!(relay.send(call("y")), async {
            daemon(&tasks, "second ", connect(&tasks, &relay));
        });
        assert_eq!(text(answer.unwrap()).await, "second y");
    }

    #[tokio::test]
    async fn a_call_that_was_on_its_way_is_not_repeated() {
        let (tasks, relay) = (Tasks::default(), Relay::default());
        let stream = connect(&tasks, &relay);
        let (arrived, arrival) = tokio::sync::oneshot::channel();
        let arrived = std::sync::Mutex::new(Some(arrived));
        let service = service_fn(move |_: Request<Incoming>| {
            arrived.lock().unwrap().take().unwrap().send(()).unwrap();
            std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
        });
        let daemon = tasks.spawn("daemon", async move {
            let _ = server::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
        let (answer, ()) = tokio::join!(relay.send(call("x")), async {
            arrival.await.unwrap();
            daemon.abort();
        });
        assert!(matches!(answer, Err(RelayError::Broken(_))));
    }
}
