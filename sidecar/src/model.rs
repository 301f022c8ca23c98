//! The model proxy: what the agent takes for its providers.
//!
//! An HTTP/1.1 server on loopback. The agent holds a dummy key that is drawn anew at every start and is worth nothing elsewhere; the proxy checks it,
//! takes the caller's authentication off, lets through only the calls that a model needs, and sends them by their provider's route: to the daemon,
//! which adds the key; or to the provider itself, with the key added here; or to the scripted [`demo`]. Nothing is buffered in either direction.
//! In a rehearsal, while no session is at work yet, every call is answered here, with one word.
//!
//! Invariant: no answer, error or log line holds a key, a prompt or an answer of a model beyond the stream that it belongs to.

mod answer;
pub mod demo;
mod direct;
mod header;
mod rehearsal;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use openagent_core::provider::{ProviderKind, Route};
use openagent_core::seal::random;
use openagent_proto::sidecar::{AgentProvider, relay};
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use self::answer::{ProxyBody, refusal};
use crate::agent::opencode::config::{Endpoint, kind};
use crate::keyring::KeyRing;
use crate::relay::{Relay, RelayError};
use crate::task::Tasks;

/// Largest body of a call, in bytes: a long conversation with pictures.
pub const BODY_MAX_BYTES: usize = 32 * 1024 * 1024;

/// Most connections at once; further ones wait. An agent with ten subagents uses about twenty.
const CONNECTIONS_MAX: usize = 256;

/// Time for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Time between two attempts to accept after the system had no room for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Handle on the model proxy.
#[derive(Clone)]
pub struct ModelProxy(Arc<Shared>);

struct Shared {
    address: SocketAddr,
    access: RwLock<Access>,
    keys: KeyRing,
    relay: Relay,
    direct: direct::Direct,
    calls: AtomicU64,
}

/// Who may call what.
#[derive(Default)]
struct Access {
    /// Empty before the first configuration: nothing matches.
    key: String,
    providers: BTreeMap<String, AgentProvider>,
    rehearsing: bool,
}

impl ModelProxy {
    /// Begins to listen on a free port of loopback. Everything is refused until [`configure`](Self::configure).
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn bind(keys: KeyRing, relay: Relay) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let shared = Shared {
            address: listener.local_addr()?,
            access: RwLock::default(),
            keys,
            relay,
            direct: direct::Direct::default(),
            calls: AtomicU64::new(0),
        };
        let proxy = Self(Arc::new(shared));
        let tasks = Tasks::default();
        tasks.spawn("model proxy", proxy.clone().accept(listener, tasks.clone()));
        Ok(proxy)
    }

    /// Sets the providers that may be called from now on, and draws a new key; the old one is no longer accepted.
    #[must_use]
    pub fn configure(&self, providers: &[AgentProvider]) -> Endpoint {
        let key = hex::encode(random::<24>());
        let providers = providers.iter().map(|provider| (provider.id.clone(), provider.clone())).collect();
        *self.0.access.write().unwrap_or_else(PoisonError::into_inner) = Access { key: key.clone(), providers, rehearsing: false };
        Endpoint { base_url: format!("http://{}", self.0.address), key }
    }

    /// Whether calls are answered here from now on, whatever their provider. [`configure`](Self::configure) ends a rehearsal.
    pub fn rehearse(&self, rehearsing: bool) {
        self.0.access.write().unwrap_or_else(PoisonError::into_inner).rehearsing = rehearsing;
    }

    /// How many calls were let through.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }

    async fn accept(self, listener: TcpListener, tasks: Tasks) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        while let Ok(connection) = Arc::clone(&connections).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let proxy = self.clone();
                    tasks.spawn("model call", async move {
                        proxy.serve(stream).await;
                        drop(connection);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection of the agent to its models could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self, stream: TcpStream) {
        let service = service_fn(|request| {
            let proxy = self.clone();
            async move { Ok::<_, Infallible>(proxy.answer(request).await) }
        });
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        // An agent that hangs up in the middle of an answer was aborted.
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<ProxyBody> {
        match self.admit(&request) {
            Ok(call) if call.rehearsed => rehearsal::answer(call.path, Limited::new(request.into_body(), BODY_MAX_BYTES)).await,
            Ok(call) => {
                self.0.calls.fetch_add(1, Ordering::Relaxed);
                self.send(call, request).await
            }
            Err(refused) => *refused,
        }
    }

    fn admit(&self, request: &Request<Incoming>) -> Result<Call, Box<Response<ProxyBody>>> {
        let access = self.0.access.read().unwrap_or_else(PoisonError::into_inner);
        let known = !access.key.is_empty()
            && header::caller_key(request.headers()).is_some_and(|key| bool::from(key.as_bytes().ct_eq(access.key.as_bytes())));
        if !known {
            return Err(Box::new(refusal(StatusCode::UNAUTHORIZED, "this address answers the agent of this session only")));
        }
        let path = request.uri().path().strip_prefix("/p/").and_then(|path| path.split_once('/'));
        let found = path.and_then(|(provider, path)| {
            let provider = access.providers.get(provider)?;
            let kind = kind(provider)?;
            let path = kind.allowed_paths().iter().copied().find(|allowed| *allowed == path)?;
            Some(Call { provider: provider.clone(), kind, path, rehearsed: access.rehearsing })
        });
        let Some(call) = found else {
            return Err(Box::new(refusal(StatusCode::NOT_FOUND, "the agent may not make this call of a provider")));
        };
        if request.method() != Method::POST {
            return Err(Box::new(refusal(StatusCode::METHOD_NOT_ALLOWED, "the agent may only POST to a provider")));
        }
        let length = request.headers().get(http::header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > BODY_MAX_BYTES) {
            return Err(Box::new(refusal(StatusCode::PAYLOAD_TOO_LARGE, "the request to the model is larger than 32 MiB")));
        }
        Ok(call)
    }

    async fn send(&self, call: Call, request: Request<Incoming>) -> Response<ProxyBody> {
        let Call { provider, kind, path, .. } = call;
        let (mut head, body) = request.into_parts();
        header::strip_request(&mut head.headers);
        let path = head.uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        let body = Limited::new(body, BODY_MAX_BYTES);
        if kind == ProviderKind::Demo {
            return demo::answer(body).await;
        }
        if provider.route == route_name(Route::Direct) {
            return self.0.direct.send(&provider, kind, &self.0.keys, &path, head.headers, body).await;
        }
        // The authority is none: the daemon looks at the path alone.
        let mut request = Request::new(body.boxed());
        *request.method_mut() = Method::POST;
        *request.headers_mut() = head.headers;
        let Ok(uri) = format!("http://openagentd{}/{}/{path}", relay::MODEL, provider.id).parse() else {
            return refusal(StatusCode::BAD_REQUEST, "the address of the call is not valid");
        };
        *request.uri_mut() = uri;
        match self.0.relay.send(request).await {
            Ok(answer) => answer::pass(answer),
            Err(error @ RelayError::NoDaemon) => {
                tracing::warn!(provider = provider.id, %error, "a model call found no daemon");
                refusal(StatusCode::SERVICE_UNAVAILABLE, "the OpenAgent daemon is not running: start it with `openagent daemon start`")
            }
            Err(error @ RelayError::Broken(_)) => {
                tracing::warn!(provider = provider.id, %error, "a model call was cut off");
                refusal(StatusCode::SERVICE_UNAVAILABLE, "the connection to the OpenAgent daemon broke")
            }
        }
    }
}

struct Call {
    provider: AgentProvider,
    kind: ProviderKind,
    path: &'static str,
    rehearsed: bool,
}

const fn route_name(route: Route) -> &'static str {
    match route {
        Route::Host => "host",
        Route::Direct => "direct",
    }
}
