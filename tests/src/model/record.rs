//! The bounded record of requests the scripted model saw. When it is full the oldest are forgotten and counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use axum::http::HeaderMap;
use serde_json::{Value, json};

/// Requests kept at most.
pub const RECORD_MAX_REQUESTS: usize = 512;

/// Sum of the kept bodies, as sent, at most; a single larger body is kept alone.
pub const RECORD_MAX_BYTES: usize = 64 * 1024 * 1024;

/// The headers a test may ask for; the rest says nothing about the sender's behaviour.
const KEPT_HEADERS: [&str; 12] = [
    "accept",
    "anthropic-beta",
    "anthropic-version",
    "authorization",
    "content-type",
    "host",
    "proxy-authorization",
    "user-agent",
    "x-api-key",
    "x-goog-api-key",
    "x-session-affinity",
    "x-session-id",
];

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// HTTP method, upper case.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Selected headers by lower-case name, among them those that carry keys.
    pub headers: BTreeMap<String, String>,
    /// The body; null when it was empty or no JSON.
    pub body: Value,
    /// Size of the body as sent.
    pub body_bytes: usize,
    /// When the whole body had arrived.
    pub received_at: SystemTime,
}

impl RecordedRequest {
    pub(super) fn new(method: &str, path: &str, headers: &HeaderMap, raw: &[u8]) -> Self {
        let kept = KEPT_HEADERS.iter().filter_map(|name| {
            let value = headers.get(*name)?.to_str().ok()?;
            Some(((*name).to_owned(), value.to_owned()))
        });
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: kept.collect(),
            body: serde_json::from_slice(raw).unwrap_or(Value::Null),
            body_bytes: raw.len(),
            received_at: SystemTime::now(),
        }
    }

    /// A kept header by lower-case name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The key the caller presented: bearer token or `x-api-key`.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.header("authorization").and_then(|value| value.strip_prefix("Bearer ")).or_else(|| self.header("x-api-key"))
    }

    pub(super) fn to_json(&self) -> Value {
        let since_epoch = self.received_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        json!({
            "method": self.method,
            "path": self.path,
            "headers": self.headers,
            "body": self.body,
            "body_bytes": self.body_bytes,
            "received_at": since_epoch.as_secs_f64(),
        })
    }
}

/// The ring behind [`super::ScriptedModel::requests`].
#[derive(Debug, Default)]
pub(super) struct Record {
    kept: VecDeque<Arc<RecordedRequest>>,
    kept_bytes: usize,
    forgotten: u64,
}

impl Record {
    /// Adds one and answers how many were ever added.
    pub(super) fn push(&mut self, request: RecordedRequest) -> u64 {
        self.kept_bytes += request.body_bytes;
        self.kept.push_back(Arc::new(request));
        while self.kept.len() > 1 && (self.kept.len() > RECORD_MAX_REQUESTS || self.kept_bytes > RECORD_MAX_BYTES) {
            if let Some(oldest) = self.kept.pop_front() {
                self.kept_bytes -= oldest.body_bytes;
                self.forgotten += 1;
            }
        }
        self.forgotten + u64::try_from(self.kept.len()).unwrap_or(u64::MAX)
    }

    pub(super) fn list(&self) -> Vec<Arc<RecordedRequest>> {
        self.kept.iter().cloned().collect()
    }

    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_record_forgets_the_oldest_and_counts_them() {
        let mut record = Record::default();
        for turn in 0..RECORD_MAX_REQUESTS + 3 {
            record.push(RecordedRequest::new("POST", &format!("/{turn}"), &HeaderMap::new(), b"{}"));
        }
        assert_eq!(record.list().len(), RECORD_MAX_REQUESTS);
        assert_eq!(record.forgotten(), 3);
        assert_eq!(record.list()[0].path, "/3");
    }

    #[test]
    fn bodies_over_the_byte_bound_push_out_older_ones() {
        let mut record = Record::default();
        let half = vec![b' '; RECORD_MAX_BYTES / 2 + 1];
        for path in ["/a", "/b"] {
            record.push(RecordedRequest::new("POST", path, &HeaderMap::new(), &half));
        }
        assert_eq!(record.list().len(), 1);
        assert_eq!(record.list()[0].path, "/b");
    }
}
