//! OpenCode's stream of events: always connected, never behind. The server queues without a bound for a slow reader and repeats nothing for one
//! that was away, so a task of its own reads, and tells when something may be missing.

use std::time::Duration;

use bytes::BytesMut;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::mpsc;

use super::client::{Client, ClientError};

/// Longest line, in bytes: a part of 20 MB has been seen.
pub const LINE_MAX_BYTES: usize = 32 * 1024 * 1024;

/// Silence after which the stream counts as broken: three heartbeats of 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Time for the stream to begin. A server that is under way begins it in milliseconds, and one that has only just begun to listen may never answer.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Attempts in a row without any answer after which the server counts as hanging: with the silence before them, 45 s.
const UNANSWERED_MAX: u32 = 3;

/// Time between two attempts to connect.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(100);

/// What the feed tells.
#[derive(Debug)]
pub enum Feed {
    /// The stream is there from here on; what was said before was missed.
    Connected,
    /// An event's payload.
    Event(Value),
    /// The stream has ended, or an event was too large to take.
    Broken,
    /// The server takes connections and answers none.
    Hanging,
}

/// Reads the stream for ever and tells `inputs`, which must not stop taking. Ends when nobody takes any more.
pub async fn run(client: Client, inputs: mpsc::Sender<Feed>) {
    let mut unanswered = 0;
    loop {
        let begun = client.events(BEGIN_TIMEOUT).await;
        unanswered = if matches!(begun, Err(ClientError::Timeout(_))) { unanswered + 1 } else { 0 };
        if unanswered == UNANSWERED_MAX && inputs.send(Feed::Hanging).await.is_err() {
            return;
        }
        if let Ok(mut body) = begun {
            let mut lines = Lines::default();
            let mut connected = false;
            while let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE_MAX, body.frame()).await {
                let Ok(data) = frame.into_data() else { continue };
                for line in lines.push(&data) {
                    // Only the first event says that the server has taken the subscription; its headers come before.
                    if !std::mem::replace(&mut connected, true) && inputs.send(Feed::Connected).await.is_err() {
                        return;
                    }
                    let told = match line {
                        Line::Data(json) => serde_json::from_slice::<Value>(&json)
                            .map_or(Feed::Broken, |mut event| Feed::Event(event.get_mut("payload").map_or(Value::Null, Value::take))),
                        Line::TooLong => Feed::Broken,
                    };
                    if inputs.send(told).await.is_err() {
                        return;
                    }
                }
            }
            if inputs.send(Feed::Broken).await.is_err() {
                return;
            }
        }
        if inputs.is_closed() {
            return;
        }
        tokio::time::sleep(RECONNECT_INTERVAL).await;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Data(Vec<u8>),
    TooLong,
}

/// Takes the stream apart. OpenCode writes nothing but `data: {json}` on one line, and comments.
#[derive(Default)]
struct Lines {
    rest: BytesMut,
    searched: usize,
    skipping: bool,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Vec<Line> {
        self.rest.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(at) = self.rest[self.searched..].iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(self.searched + at + 1);
            self.searched = 0;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if let Some(data) = line.strip_prefix(b"data:") {
                lines.push(Line::Data(data.strip_prefix(b" ").unwrap_or(data).to_vec()));
            }
        }
        self.searched = self.rest.len();
        if self.rest.len() > LINE_MAX_BYTES {
            if !std::mem::replace(&mut self.skipping, true) {
                lines.push(Line::TooLong);
            }
            self.rest.clear();
            self.searched = 0;
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_the_stream_is_cut() {
        let stream = b": comment\ndata: {\"a\":1}\n\ndata:{\"b\":2}\r\n\n";
        for size in 1..stream.len() {
            let mut lines = Lines::default();
            let read: Vec<_> = stream.chunks(size).flat_map(|chunk| lines.push(chunk)).collect();
            assert_eq!(read, [Line::Data(b"{\"a\":1}".to_vec()), Line::Data(b"{\"b\":2}".to_vec())], "in pieces of {size}");
        }
    }

    #[test]
    fn a_line_without_end_is_left_out_and_the_next_one_is_read() {
        let mut lines = Lines::default();
        let mut read = Vec::new();
        for _ in 0..3 {
            read.extend(lines.push(&vec![b'x'; LINE_MAX_BYTES / 2 + 1]));
        }
        read.extend(lines.push(b"\ndata: {}\n"));
        assert_eq!(read, [Line::TooLong, Line::Data(b"{}".to_vec())]);
    }
}
