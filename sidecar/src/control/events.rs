//! The journal as server-sent events: what was recorded, letters of what is being written, gaps, and a heartbeat.

use std::convert::Infallible;
use std::fmt::Write;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use openagent_proto::sidecar::{Ack, ErrorCode, Gap};
use serde::Deserialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::body::JsonBody;
use super::{ApiError, Control};
use crate::journal::{JournalItem, JournalReader};

/// Silence after which a comment is sent, so that a reader notices a dead stream.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Size at which a piece of the stream is sent although there is more, in bytes.
const PIECE_BYTES: usize = 64 * 1024;

/// Far beyond any journal; a number behind it could only be a mistake.
const AFTER_MAX: u64 = 1 << 53;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    #[serde(default)]
    after: u64,
}

pub async fn events(
    State(Control(parts)): State<Control>,
    after: Result<Query<After>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let after = after.ok().map(|Query(After { after })| after).filter(|after| *after <= AFTER_MAX);
    let after = after.ok_or_else(|| ApiError::new(ErrorCode::InvalidRequest, "after must be the number of a journal entry"))?;
    let stream = follow(parts.journal.subscribe(after), parts.tasks.token().clone());
    Ok(([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")], Body::from_stream(stream)).into_response())
}

pub async fn ack(State(Control(parts)): State<Control>, JsonBody(Ack { seq }): JsonBody<Ack>) -> Result<StatusCode, ApiError> {
    if seq > parts.journal.last() {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "the journal has no such entry yet"));
    }
    parts.journal.ack(seq);
    Ok(StatusCode::NO_CONTENT)
}

fn follow(mut reader: JournalReader, stop: CancellationToken) -> impl futures::Stream<Item = Result<Bytes, Infallible>> {
    async_stream::stream! {
        loop {
            let mut piece = String::new();
            while piece.len() < PIECE_BYTES {
                match reader.try_next().await {
                    Ok(Some(item)) => write_item(&mut piece, &item),
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
            if piece.is_empty() {
                // At the end of the sidecar the stream ends behind the last event, not before it.
                if stop.is_cancelled() {
                    return;
                }
                let next = tokio::select! {
                    next = timeout(HEARTBEAT, reader.next()) => next,
                    () = stop.cancelled() => continue,
                };
                match next {
                    Ok(Some(item)) => write_item(&mut piece, &item),
                    Ok(None) => return,
                    Err(_) => piece.push_str(":\n\n"),
                }
            }
            yield Ok(Bytes::from(piece));
        }
    }
}

fn write_item(piece: &mut String, item: &JournalItem) {
    let written = match item {
        JournalItem::Recorded { seq, at, kind } => {
            // Both are JSON without line breaks; the kind is an object, into which the time is put.
            let fields = std::str::from_utf8(kind).ok().and_then(|kind| kind.strip_prefix('{')).unwrap_or("}");
            write!(piece, "id: {seq}\ndata: {{\"at\":{},{fields}\n\n", at.as_millis())
        }
        JournalItem::Delta(delta) => write!(piece, "event: delta\ndata: {}\n\n", json(delta)),
        JournalItem::Gap { first, last } => write!(piece, "event: gap\ndata: {}\n\n", json(&Gap { first: *first, last: *last })),
    };
    written.expect("writing to a string cannot fail");
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data has a JSON form")
}
