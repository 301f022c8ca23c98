//! The control API: what the daemon asks of the sidecar over HTTP. Paths, bodies and codes are those of [`openagent_proto::sidecar`].
//!
//! Invariant: whatever arrives is answered in the one JSON shape, bounded before it is read, and leaves the sidecar serving. Everything but health,
//! ready and register wants the bearer token that registration gave out.

mod agent;
mod body;
mod error;
mod events;
mod internal;
mod keys;
mod registration;
mod terminals;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{any, delete, get, post, put};
use http::header::AUTHORIZATION;
use openagent_proto::sidecar::{ErrorCode, path};
use tokio::sync::{Mutex, watch};

pub use self::error::ApiError;
use self::registration::Registration;
use crate::agent::Agent;
use crate::journal::Journal;
use crate::keyring::KeyRing;
use crate::settings::Settings;
use crate::task::Tasks;
use crate::terminal::Terminals;

/// What the control API acts on.
#[derive(Clone)]
pub struct Control(Arc<Parts>);

struct Parts {
    settings: Arc<Settings>,
    journal: Journal,
    keys: KeyRing,
    agent: Agent,
    terminals: Terminals,
    tasks: Tasks,
    registration: Registration,
    /// One update of the keys at a time: opened, recorded, taken.
    update: Mutex<()>,
    started_at: Instant,
    shutdown: watch::Sender<Option<Duration>>,
}

impl Control {
    /// A control API whose registration token is valid from now on.
    #[must_use]
    pub fn new(settings: Arc<Settings>, journal: Journal, keys: KeyRing, agent: Agent, terminals: Terminals, tasks: Tasks) -> Self {
        let started_at = Instant::now();
        let registration = Registration::new(settings.session.clone(), settings.token_sha256, started_at);
        let shutdown = watch::Sender::new(None);
        Self(Arc::new(Parts {
            settings,
            journal,
            keys,
            agent,
            terminals,
            tasks,
            registration,
            update: Mutex::new(()),
            started_at,
            shutdown,
        }))
    }

    /// The time that the daemon granted, once it has asked for the end.
    pub async fn asked_to_end(&self) -> Duration {
        let mut shutdown = self.0.shutdown.subscribe();
        loop {
            if let Some(grace) = *shutdown.borrow_and_update() {
                return grace;
            }
            if shutdown.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Has `work` run to its end although the connection of whoever asked breaks: half of it may be done already.
    async fn see_through<T, F>(&self, name: &'static str, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let done = self.0.tasks.spawn(name, work).await;
        done.unwrap_or_else(|| Err(ApiError::new(ErrorCode::Internal, format!("{name} failed in the sidecar"))))
    }

    /// The router of all paths.
    pub fn router(&self) -> Router {
        let guarded = Router::new()
            .route(path::UPDATE_KEYS, put(keys::update))
            .route(path::SHUTDOWN, post(internal::shutdown))
            .route(path::EVENTS, get(events::events))
            .route(path::ACK, post(events::ack))
            .route(path::START, post(agent::start))
            .route(path::PROMPT, post(agent::prompt))
            .route(path::ABORT, post(agent::abort))
            .route(path::PERMISSION, post(agent::permission))
            .route(path::QUESTION, post(agent::question))
            .route(path::TITLE, post(agent::title))
            .route(path::TERMINALS, get(terminals::list).post(terminals::open))
            .route(&format!("{}/{{id}}", path::TERMINALS), delete(terminals::close))
            // Over HTTP/2 a WebSocket begins with CONNECT (RFC 8441), over HTTP/1.1 with GET.
            .route(path::TERMINAL, any(terminals::attach))
            .route_layer(middleware::from_fn_with_state(self.clone(), guard));
        Router::new()
            .route(path::HEALTH, get(internal::health))
            .route(path::READY, get(internal::ready))
            .route(path::REGISTER, post(registration::register))
            .merge(guarded)
            .fallback(|| async { ApiError::new(ErrorCode::NotFound, "there is no such path") })
            .method_not_allowed_fallback(|| async { ApiError::new(ErrorCode::MethodNotAllowed, "this path does not take this method") })
            .with_state(self.clone())
    }
}

async fn guard(State(control): State<Control>, request: Request, next: Next) -> Result<Response, ApiError> {
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let bearer = match (values.next().and_then(|value| value.to_str().ok()), values.next()) {
        (Some(value), None) => value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token),
        _ => None,
    };
    if bearer.is_some_and(|bearer| control.0.registration.admits(bearer)) {
        Ok(next.run(request).await)
    } else {
        Err(ApiError::new(ErrorCode::Unauthorized, "the bearer token is missing or not the right one"))
    }
}
