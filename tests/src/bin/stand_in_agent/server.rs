//! The HTTP door: the paths that the sidecar uses. Any other is answered with a page, as OpenCode does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use base64::Engine;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::VERSION;
use super::turn::{Agent, Prompt, Reply};

/// Time between two signs of life in the stream of events.
const HEARTBEAT: Duration = Duration::from_secs(10);

type Shared = State<Arc<Agent>>;

pub(crate) fn router(agent: Arc<Agent>, password: &str) -> Router {
    let wanted = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("opencode:{password}")));
    let check = move |headers: HeaderMap, request: Request, next: Next| {
        let known = headers.get(header::AUTHORIZATION).is_some_and(|sent| sent.as_bytes() == wanted.as_bytes());
        async move { if known { next.run(request).await } else { StatusCode::UNAUTHORIZED.into_response() } }
    };
    Router::new()
        .route("/global/health", get(|| async { Json(json!({ "healthy": true, "version": VERSION })) }))
        .route("/global/event", get(events))
        .route("/global/dispose", post(dispose))
        .route("/config", get(|State(agent): Shared| async move { Json(agent.config.clone()) }))
        .route("/api/session", post(create))
        .route("/session/status", get(|State(agent): Shared| async move { Json(agent.statuses()) }))
        .route("/session/{id}", patch(rename))
        .route("/session/{id}/prompt_async", post(prompt))
        .route("/session/{id}/abort", post(abort))
        .route("/session/{id}/todo", get(|| async { Json(json!([])) }))
        .route("/session/{id}/message/{message}", get(message))
        .route("/permission", get(|State(agent): Shared| async move { Json(agent.waiting(true)) }))
        .route("/permission/{id}/reply", post(permission))
        .route("/question", get(|State(agent): Shared| async move { Json(agent.waiting(false)) }))
        .route("/question/{id}/reply", post(question))
        .route(
            "/question/{id}/reject",
            post(|State(agent): Shared, Path(id): Path<String>| async move { reply(&agent, &id, Reply::Rejected { message: None }) }),
        )
        .route("/sync/history", post(history))
        .fallback(|| async { Html("<!doctype html><title>OpenCode</title>") })
        .layer(middleware::from_fn(check))
        .with_state(agent)
}

fn error(status: StatusCode, name: &str, message: impl std::fmt::Display) -> Response {
    (status, Json(json!({ "name": name, "data": { "message": message.to_string() } }))).into_response()
}

fn broken(failure: impl std::fmt::Display) -> Response {
    error(StatusCode::INTERNAL_SERVER_ERROR, "UnknownError", failure)
}

async fn events(State(agent): Shared) -> Response {
    let mut feed = agent.log().subscribe();
    let stream = async_stream::stream! {
        yield Ok::<_, std::convert::Infallible>(Bytes::from_static(b"data: {\"payload\":{\"id\":\"evt_0\",\"type\":\"server.connected\",\"properties\":{}}}\n\n"));
        loop {
            match tokio::time::timeout(HEARTBEAT, feed.recv()).await {
                Ok(Ok(event)) => yield Ok(event),
                Ok(Err(RecvError::Lagged(_) | RecvError::Closed)) => return,
                Err(_) => yield Ok(Bytes::from_static(b"data: {\"payload\":{\"id\":\"evt_0\",\"type\":\"server.heartbeat\",\"properties\":{}}}\n\n")),
            }
        }
    };
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
}

async fn dispose(State(agent): Shared) -> Json<Value> {
    agent.dispose().await;
    Json(json!(true))
}

async fn create(State(agent): Shared, Json(body): Json<Value>) -> Response {
    match agent.create(body["id"].as_str().unwrap_or_default()) {
        Ok(info) => Json(json!({ "data": info })).into_response(),
        Err(failure) => broken(failure),
    }
}

async fn rename(State(agent): Shared, Path(id): Path<String>, Json(body): Json<Value>) -> Response {
    match agent.rename(&id, body["title"].as_str().unwrap_or_default()) {
        Ok(Some(info)) => Json(info).into_response(),
        Ok(None) => error(StatusCode::NOT_FOUND, "NotFoundError", format_args!("Session not found: {id}")),
        Err(failure) => broken(failure),
    }
}

async fn prompt(State(agent): Shared, Path(id): Path<String>, Json(body): Json<Value>) -> Response {
    let Some(prompt) = Prompt::of(&body) else { return error(StatusCode::BAD_REQUEST, "BadRequest", "the body is no prompt") };
    match agent.prompt(&id, prompt) {
        Ok(true) => StatusCode::NO_CONTENT.into_response(),
        Ok(false) => error(StatusCode::NOT_FOUND, "NotFoundError", format_args!("Session not found: {id}")),
        Err(failure) => broken(failure),
    }
}

async fn abort(State(agent): Shared, Path(id): Path<String>) -> Json<Value> {
    agent.abort(&id);
    Json(json!(true))
}

async fn message(State(agent): Shared, Path((_, message)): Path<(String, String)>) -> Response {
    let found = agent.log().message(&message);
    match found {
        Ok(Some(info)) => Json(json!({ "info": info, "parts": [] })).into_response(),
        Ok(None) => error(StatusCode::NOT_FOUND, "NotFoundError", format_args!("Message not found: {message}")),
        Err(failure) => broken(failure),
    }
}

fn reply(agent: &Agent, id: &str, given: Reply) -> Response {
    if agent.reply(id, given) {
        Json(json!(true)).into_response()
    } else {
        error(StatusCode::NOT_FOUND, "NotFoundError", "no such request")
    }
}

async fn permission(State(agent): Shared, Path(id): Path<String>, Json(body): Json<Value>) -> Response {
    let given = match body["reply"].as_str() {
        Some("once") => Reply::Once,
        Some("always") => Reply::Always,
        Some("reject") => Reply::Rejected { message: body["message"].as_str().map(str::to_owned) },
        _ => return error(StatusCode::BAD_REQUEST, "BadRequest", "the body is no answer"),
    };
    reply(&agent, &id, given)
}

async fn question(State(agent): Shared, Path(id): Path<String>, Json(body): Json<Value>) -> Response {
    reply(&agent, &id, Reply::Chosen(body["answers"].clone()))
}

async fn history(State(agent): Shared, Json(known): Json<BTreeMap<String, u64>>) -> Response {
    let history = agent.log().history(&known);
    match history {
        Ok(events) => Json(events).into_response(),
        Err(failure) => broken(failure),
    }
}
