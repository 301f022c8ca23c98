//! What the daemon serves to a sidecar: model calls, with the provider's key added here, so that it never enters the container.
//!
//! A relay is one stream that the driver dialled, with the roles reversed: the sidecar is the HTTP/2 client. It can only ask for `POST /model/<provider>/<path>`,
//! for a provider of the catalogue, on a path that this provider's agents may use. Everything it sends is hostile: sizes and streams are bounded, headers
//! are an allow-list, redirects are not followed (a key must not travel elsewhere). Bodies stream through unbuffered in both directions.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use openagent_core::id::SessionId;
use openagent_core::provider::{ProviderKind, Route};
use openagent_proto::sidecar::relay;

use crate::catalogue::Catalogue;
use crate::driver::BoxStream;
use crate::sidecar::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::vault::Vault;

/// A model call carries the whole conversation, images included; providers accept 32 MiB at most.
const REQUEST_MAX_BYTES: usize = 32 * 1024 * 1024;

/// One agent, its subagents and titles: more at once is not work.
const STREAMS_MAX: u32 = 64;

const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// Request headers that are passed on. Authentication is never among them.
const REQUEST_HEADERS: [&str; 9] = [
    "accept",
    "anthropic-beta",
    "anthropic-version",
    "content-type",
    "openai-beta",
    "user-agent",
    "x-session-affinity",
    "x-session-id",
    "x-stainless-retry-count",
];

/// Response headers that are not passed on: those of the connection, and what could set state at the other end.
const NOT_ANSWERED: [&str; 8] =
    ["connection", "content-length", "keep-alive", "proxy-authenticate", "set-cookie", "transfer-encoding", "upgrade", "alt-svc"];

/// Calls providers for sidecars.
#[derive(Clone)]
pub struct ModelRelay {
    shared: Arc<Shared>,
}

struct Shared {
    catalogue: Arc<Catalogue>,
    vault: Vault,
    client: reqwest::Client,
}

#[derive(Clone)]
struct Caller {
    relay: ModelRelay,
    session: SessionId,
}

/// Why a relay cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("the client for model providers cannot be set up")]
pub struct ClientError(#[from] reqwest::Error);

impl ModelRelay {
    /// A relay that finds providers in `catalogue` and their keys in `vault`.
    ///
    /// # Errors
    /// [`ClientError`] when the system's certificates or proxy settings cannot be used.
    pub fn new(catalogue: Arc<Catalogue>, vault: Vault) -> Result<Self, ClientError> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_DEADLINE)
            .pool_max_idle_per_host(8)
            .build()?;
        Ok(Self { shared: Arc::new(Shared { catalogue, vault, client }) })
    }

    /// Serves one relay stream until it ends.
    pub async fn serve(&self, session: SessionId, stream: BoxStream) {
        let caller = Caller { relay: self.clone(), session };
        let router = Router::new()
            .route(&format!("{}/{{provider}}/{{*path}}", relay::MODEL), post(call))
            .layer(DefaultBodyLimit::disable())
            .with_state(caller);
        let service = hyper_util::service::TowerToHyperService::new(router);
        let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(15))
            .keep_alive_timeout(Duration::from_secs(10))
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "relay ended");
        }
    }
}

/// An error in the shape that providers use, so that the agent shows its sentence.
fn refuse(status: StatusCode, code: &str, message: &str) -> Response {
    let body = serde_json::json!({ "type": "error", "error": { "type": code, "code": code, "message": message } });
    (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

async fn call(State(caller): State<Caller>, Path((provider, path)): Path<(String, String)>, headers: HeaderMap, body: Body) -> Response {
    let shared = &caller.relay.shared;
    let Some(provider) = shared.catalogue.get(&provider).filter(|provider| provider.kind != ProviderKind::Demo) else {
        return refuse(StatusCode::NOT_FOUND, "provider_unknown", "OpenAgent knows no such provider");
    };
    if provider.route != Route::Host {
        return refuse(StatusCode::FORBIDDEN, "route_direct", "this provider is called directly, not through the relay");
    }
    if !provider.kind.allowed_paths().contains(&path.as_str()) {
        return refuse(StatusCode::FORBIDDEN, "path_forbidden", "agents may only make model calls with this key");
    }
    let mut request = shared
        .client
        .post(format!("{}/{path}", provider.base_url.trim_end_matches('/')))
        .body(reqwest::Body::wrap_stream(Limited::new(body, REQUEST_MAX_BYTES).into_data_stream()));
    for name in REQUEST_HEADERS {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    match shared.vault.get(&provider.id) {
        Ok(Some(key)) => {
            let (header, prefix) = provider.kind.key_header();
            let Ok(mut value) = HeaderValue::from_str(&format!("{prefix}{}", key.expose())) else {
                return refuse(StatusCode::UNAUTHORIZED, "key_invalid", "the stored key cannot be sent in a header; set it again");
            };
            value.set_sensitive(true);
            request = request.header(header, value);
            if let Err(error) = shared.vault.used(&provider.id, crate::clock::now()).await {
                tracing::warn!(%error, "the time of a key's use cannot be noted");
            }
        }
        Ok(None) if provider.needs_key => {
            let message = format!("no key is set for {}: openagent keys set {}", provider.name, provider.id);
            return refuse(StatusCode::UNAUTHORIZED, "key_missing", &message);
        }
        Ok(None) => {}
        Err(error) => {
            tracing::error!(%error, provider = provider.id, "a provider key cannot be read");
            return refuse(StatusCode::UNAUTHORIZED, "key_unreadable", "the stored key cannot be read; set it again: openagent keys set");
        }
    }
    match request.send().await {
        Ok(answer) => pass_on(answer),
        Err(error) => {
            // An error's text may hold the address but never a header.
            tracing::warn!(error = %error.without_url(), session = %caller.session, provider = provider.id, "a model call failed");
            let message = format!("{} cannot be reached from this machine", provider.name);
            refuse(StatusCode::BAD_GATEWAY, "provider_unreachable", &message)
        }
    }
}

fn pass_on(answer: reqwest::Response) -> Response {
    let mut response = Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        for (name, value) in answer.headers() {
            if !is_withheld(name) {
                headers.append(name, value.clone());
            }
        }
    }
    response
        .body(Body::from_stream(answer.bytes_stream()))
        .unwrap_or_else(|_| refuse(StatusCode::BAD_GATEWAY, "provider_answer", "the provider's answer cannot be passed on"))
}

fn is_withheld(name: &HeaderName) -> bool {
    NOT_ANSWERED.contains(&name.as_str())
}
