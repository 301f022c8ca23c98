//! The HTTP door of the scripted model: routes, the key check, the record, and playing a reply onto a socket.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::conversation::{Asker, Conversation, Tail};
use super::record::RecordedRequest;
use super::script::{self, Refusal, Reply, Script, Step, Trouble};
use super::wire::{Format, Heading};
use super::{BODY_MAX_BYTES, MODELS, PromptKey, RETRY_AFTER_MS, Shared};

type Model = State<Arc<Shared>>;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/responses", post(responses))
        .route("/v1/messages", post(messages))
        .route("/control/release/{name}", post(release))
        .route("/control/requests", get(requests))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .with_state(shared)
}

async fn chat(state: Model, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    answer(Format::Chat, state, &uri, &headers, &body).await
}

async fn responses(state: Model, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    answer(Format::Responses, state, &uri, &headers, &body).await
}

async fn messages(state: Model, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    answer(Format::Messages, state, &uri, &headers, &body).await
}

async fn models(State(shared): Model, uri: Uri, headers: HeaderMap) -> Response {
    let request = RecordedRequest::new("GET", &uri.to_string(), &headers, b"");
    let has_key = shared.opens(&request);
    shared.remember(request);
    if !has_key {
        return refuse(Format::Chat, Refusal::Key);
    }
    // One list serves both families: each client reads the fields it knows.
    let list: Vec<Value> = MODELS
        .iter()
        .map(|id| {
            json!({
                "id": id, "object": "model", "created": 1_767_225_600, "owned_by": "openagent",
                "type": "model", "display_name": id, "created_at": "2026-01-01T00:00:00Z",
            })
        })
        .collect();
    let (first, last) = (MODELS.first(), MODELS.last());
    Json(json!({ "object": "list", "data": list, "has_more": false, "first_id": first, "last_id": last })).into_response()
}

async fn release(State(shared): Model, Path(name): Path<String>) -> StatusCode {
    shared.gates().gate(&name).release();
    StatusCode::NO_CONTENT
}

async fn requests(State(shared): Model) -> Json<Value> {
    Json(shared.record().list().iter().map(|request| request.to_json()).collect())
}

async fn answer(format: Format, State(shared): Model, uri: &Uri, headers: &HeaderMap, raw: &[u8]) -> Response {
    let request = RecordedRequest::new("POST", &uri.to_string(), headers, raw);
    let has_key = shared.opens(&request);
    let session = request.header("x-session-affinity").unwrap_or_default().to_owned();
    let conversation = request.body.is_object().then(|| Conversation::read(format, &request.body));
    let number = shared.remember(request);
    if !has_key {
        return refuse(format, Refusal::Key);
    }
    let Some(conversation) = conversation else { return refuse(format, Refusal::Malformed) };
    let reply = match choose(&shared, session, &conversation) {
        Choice::Reply(reply) => reply,
        Choice::Refuse(refusal) => return refuse(format, refusal),
        Choice::Hang => {
            // The connection's task drops this future when the client goes away.
            shared.stop.cancelled().await;
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
    };
    let heading = Heading { number, model: conversation.model.clone(), usage: reply.usage, wants_usage: conversation.wants_usage };
    if conversation.is_streaming { stream(shared, format, heading, reply) } else { whole(&shared, format, &heading, &reply).await }
}

enum Choice {
    Reply(Reply),
    Refuse(Refusal),
    Hang,
}

fn choose(shared: &Shared, session: String, conversation: &Conversation) -> Choice {
    match conversation.asker {
        Asker::Agent => {}
        Asker::TitleAgent => return Choice::Reply(script::title(&conversation.tail)),
        Asker::SummaryAgent => return Choice::Reply(script::summary()),
    }
    match script::script(&conversation.tail) {
        Script::Reply(reply) => Choice::Reply(reply),
        Script::Refuse(refusal) => Choice::Refuse(refusal),
        Script::Hang => Choice::Hang,
        Script::Trouble { times, trouble, then } => {
            let text = match &conversation.tail {
                Tail::User(text) => text.clone(),
                Tail::Results(_) => String::new(),
            };
            let prompt = PromptKey { session, turn: conversation.turn, text };
            match trouble {
                _ if !shared.is_refused(prompt, times) => Choice::Reply(then),
                Trouble::Refuse(refusal) => Choice::Refuse(refusal),
                Trouble::Reply(reply) => Choice::Reply(reply),
            }
        }
    }
}

fn refuse(format: Format, refusal: Refusal) -> Response {
    let (status, body) = format.refusal(refusal);
    let mut response = (status, Json(body)).into_response();
    if matches!(refusal, Refusal::RateLimit | Refusal::Server) {
        response.headers_mut().insert("retry-after-ms", RETRY_AFTER_MS.into());
    }
    response
}

/// Plays the steps one by one; an error in the body makes the server break the connection.
fn stream(shared: Arc<Shared>, format: Format, heading: Heading, reply: Reply) -> Response {
    let stop = shared.stop.clone();
    let frames = async_stream::stream! {
        let mut encoder = format.encoder(heading);
        yield Ok(encoder.open());
        for step in reply.steps {
            match step {
                Step::Reason(text) => yield Ok(encoder.reason(&text)),
                Step::Text(text) => yield Ok(encoder.text(&text)),
                Step::Call { name, arguments } => yield Ok(encoder.call(&name, &arguments)),
                Step::Pause(pause) => tokio::time::sleep(pause).await,
                Step::Gate(name) => {
                    let gate = shared.gates().gate(&name);
                    gate.pass().await;
                }
                Step::Cut => {
                    yield Err(io::Error::other("the script cuts the connection"));
                    return;
                }
                Step::Fail => {
                    yield Ok(encoder.fail());
                    return;
                }
            }
        }
        yield Ok(encoder.close());
    };
    // What still streams when the server stops is cut, not ended: a reader must not take it for a whole answer.
    let body = async_stream::stream! {
        let mut frames = std::pin::pin!(frames);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    yield Err(io::Error::other("the scripted model stops"));
                    return;
                }
                frame = frames.next() => match frame {
                    Some(frame) => yield frame,
                    None => return,
                },
            }
        }
    };
    let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(body)).into_response()
}

async fn whole(shared: &Shared, format: Format, heading: &Heading, reply: &Reply) -> Response {
    for step in &reply.steps {
        match step {
            Step::Pause(pause) => tokio::time::sleep(*pause).await,
            Step::Gate(name) => {
                let gate = shared.gates().gate(name);
                tokio::select! {
                    () = gate.pass() => {}
                    () = shared.stop.cancelled() => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
                }
            }
            Step::Cut => {
                let broken = async_stream::stream! {
                    yield Ok("{");
                    // An error drops what hyper has not flushed yet, and it flushes when the body has nothing ready.
                    tokio::task::yield_now().await;
                    yield Err(io::Error::other("the script cuts the connection"));
                };
                return ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(broken)).into_response();
            }
            Step::Fail => return refuse(format, Refusal::Server),
            Step::Reason(_) | Step::Text(_) | Step::Call { .. } => {}
        }
    }
    Json(format.whole(heading, reply)).into_response()
}

impl Shared {
    fn opens(&self, request: &RecordedRequest) -> bool {
        self.key.as_deref().is_none_or(|key| request.key() == Some(key))
    }
}
