//! A sidecar's event stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::Method;
use http_body_util::BodyDataStream;
use openagent_core::event::{EVENT_MAX_BYTES, EventKind, PartDelta};
use openagent_core::time::Timestamp;
use openagent_proto::sidecar as wire;
use serde::Deserialize;
use sse_stream::{Sse, SseByteStream};

use super::{SidecarClient, SidecarError};

/// An event in JSON, escaped at worst, and its frame.
const FRAME_MAX_BYTES: usize = 2 * EVENT_MAX_BYTES + 4096;

/// What a sidecar tells.
#[derive(Debug, PartialEq)]
pub enum Told {
    /// A journal entry.
    Recorded {
        /// Its place in the journal.
        seq: u64,
        /// When it happened.
        at: Timestamp,
        /// What happened.
        kind: EventKind,
    },
    /// Letters of a part that is still being written.
    Delta(PartDelta),
    /// Journal entries that are no longer kept.
    Gap(wire::Gap),
}

/// A stream of [`Told`] that ends with the connection.
pub struct EventStream {
    frames: BoxStream<'static, Result<Sse, sse_stream::Error>>,
    unparsed: Arc<AtomicUsize>,
}

#[derive(Deserialize)]
struct Entry {
    at: Timestamp,
    #[serde(flatten)]
    kind: EventKind,
}

impl SidecarClient {
    /// The journal after `after`, then what follows.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub async fn events(&self, after: u64) -> Result<EventStream, SidecarError> {
        let answer = self.send(Method::GET, &format!("{}?after={after}", wire::path::EVENTS), Bytes::new()).await?;
        if !answer.status().is_success() {
            return Err(SidecarError::Protocol);
        }
        let unparsed = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&unparsed);
        let bounded = BodyDataStream::new(answer.into_body()).map_err(std::io::Error::other).and_then(move |data| {
            let total = counter.fetch_add(data.len(), Ordering::Relaxed) + data.len();
            let fits = total <= FRAME_MAX_BYTES;
            async move { if fits { Ok(data) } else { Err(std::io::Error::other("an event is over the size limit")) } }
        });
        Ok(EventStream { frames: SseByteStream::new(bounded).boxed(), unparsed })
    }
}

impl EventStream {
    /// The next thing told. Cancel safe.
    ///
    /// # Errors
    /// [`SidecarError::Lost`] at the end of the connection, [`SidecarError::Protocol`] for what cannot be understood.
    pub async fn next(&mut self) -> Result<Told, SidecarError> {
        loop {
            let frame = self.frames.next().await.ok_or(SidecarError::Lost)?.map_err(|_| SidecarError::Lost)?;
            self.unparsed.store(0, Ordering::Relaxed);
            if let Some(told) = parse(&frame)? {
                return Ok(told);
            }
        }
    }
}

fn parse(frame: &Sse) -> Result<Option<Told>, SidecarError> {
    let Some(data) = &frame.data else { return Ok(None) };
    let told = match frame.event.as_deref() {
        Some("delta") => Told::Delta(serde_json::from_str(data).map_err(|_| SidecarError::Protocol)?),
        Some("gap") => Told::Gap(serde_json::from_str(data).map_err(|_| SidecarError::Protocol)?),
        Some(_) => return Ok(None),
        None => {
            let seq = frame.id.as_deref().and_then(|id| id.parse().ok()).ok_or(SidecarError::Protocol)?;
            let Entry { at, mut kind } = parse_entry(data)?;
            if data.len() > EVENT_MAX_BYTES {
                kind = EventKind::Gap { reason: format!("an event of {} bytes is over the limit", data.len()) };
            }
            Told::Recorded { seq, at, kind }
        }
    };
    Ok(Some(told))
}

/// A sidecar may be newer than this daemon: a kind of event that is not known here is kept as it came.
fn parse_entry(data: &str) -> Result<Entry, SidecarError> {
    if let Ok(entry) = serde_json::from_str(data) {
        return Ok(entry);
    }
    let raw: serde_json::Value = serde_json::from_str(data).map_err(|_| SidecarError::Protocol)?;
    let at = raw.get("at").and_then(serde_json::Value::as_i64).ok_or(SidecarError::Protocol)?;
    let name = raw.get("kind").and_then(serde_json::Value::as_str).ok_or(SidecarError::Protocol)?.chars().take(64).collect();
    Ok(Entry { at: Timestamp::from_millis(at), kind: EventKind::Unknown { name, raw } })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn frame(event: Option<&str>, id: Option<&str>, data: &str) -> Sse {
        Sse { event: event.map(Into::into), data: Some(data.into()), id: id.map(Into::into), retry: None }
    }

    #[test]
    fn an_event_of_a_newer_sidecar_is_kept_and_not_an_error() {
        let told = parse(&frame(None, Some("7"), r#"{"at":5,"kind":"hologram","x":1}"#)).unwrap().unwrap();
        assert!(matches!(told, Told::Recorded { seq: 7, kind: EventKind::Unknown { ref name, .. }, .. } if name == "hologram"));
        assert!(parse(&frame(Some("novelty"), None, "{}")).unwrap().is_none());
    }

    #[test]
    fn nonsense_is_an_error_and_not_a_panic() {
        for bad in [frame(None, None, "{}"), frame(None, Some("x"), "{}"), frame(None, Some("1"), "[]"), frame(Some("delta"), None, "{}")] {
            assert!(matches!(parse(&bad), Err(SidecarError::Protocol)));
        }
    }
}
