//! The durable log and the stream of events: the only state that outlives the process.
//!
//! One line of JSON an event. A line that a killed process did not finish is cut off; it was never told to anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// Events that wait for a slow reader; beyond, its stream ends and it reads the log.
const FEED_MAX: usize = 4096;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Milliseconds since the epoch.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// An id in OpenCode's form; ids of one process ascend.
pub(crate) fn id(prefix: &str) -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let tick = now().wrapping_mul(4096);
    let clock = LAST.fetch_max(tick, Ordering::Relaxed).max(tick);
    let clock = LAST.fetch_add(1, Ordering::Relaxed).max(clock) & 0xffff_ffff_ffff;
    let tail = openagent_core::seal::random::<14>().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
    format!("{prefix}_{clock:012x}{}", tail.iter().collect::<String>())
}

/// The log and who listens.
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    directory: String,
    feed: broadcast::Sender<Bytes>,
    next: BTreeMap<String, u64>,
    sessions: BTreeMap<String, Value>,
    messages: BTreeSet<String>,
}

impl Log {
    pub(crate) fn open(folder: &Path, directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join("stand-in.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let mut log = Self {
            path,
            file,
            directory: directory.to_string_lossy().into_owned(),
            feed: broadcast::channel(FEED_MAX).0,
            next: BTreeMap::new(),
            sessions: BTreeMap::new(),
            messages: BTreeSet::new(),
        };
        let whole = log.read(|log, event| log.note(&event))?;
        log.file.set_len(whole)?;
        Ok(log)
    }

    /// Hands every whole line to `take`, and gives where the last one ends.
    fn read(&mut self, mut take: impl FnMut(&mut Self, Value)) -> io::Result<u64> {
        let mut reader = BufReader::new(File::open(&self.path)?);
        let (mut line, mut whole) = (Vec::new(), 0);
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            if length == 0 || line.last() != Some(&b'\n') {
                return Ok(whole);
            }
            whole += length as u64;
            take(self, serde_json::from_slice(&line)?);
        }
    }

    fn note(&mut self, event: &Value) {
        let session = event["aggregate_id"].as_str().unwrap_or_default().to_owned();
        let info = &event["data"]["info"];
        match event["type"].as_str().unwrap_or_default() {
            "session.created.1" | "session.updated.1" => {
                self.sessions.insert(session.clone(), info.clone());
            }
            "message.updated.1" => {
                self.messages.insert(info["id"].as_str().unwrap_or_default().to_owned());
            }
            _ => {}
        }
        self.next.insert(session, event["seq"].as_u64().unwrap_or_default() + 1);
    }

    /// Writes an event, then tells it twice, as OpenCode does: as it is, and with its number.
    pub(crate) fn durable(&mut self, session: &str, kind: &str, properties: &Value) -> io::Result<()> {
        let (id, seq, name) = (id("evt"), self.next.get(session).copied().unwrap_or_default(), format!("{kind}.1"));
        let event = json!({ "id": id, "aggregate_id": session, "seq": seq, "type": name, "data": properties });
        self.file.write_all(format!("{event}\n").as_bytes())?;
        self.note(&event);
        self.send(&json!({ "id": id, "type": kind, "properties": properties }));
        let sync = json!({ "id": id, "type": name, "seq": seq, "aggregateID": session, "data": properties });
        self.send(&json!({ "type": "sync", "syncEvent": sync, "id": id }));
        Ok(())
    }

    /// Tells an event that nobody keeps.
    pub(crate) fn transient(&self, kind: &str, properties: &Value) {
        self.send(&json!({ "id": id("evt"), "type": kind, "properties": properties }));
    }

    fn send(&self, payload: &Value) {
        let event = json!({ "directory": self.directory, "project": "stand-in", "payload": payload });
        // Nobody may listen.
        let _ = self.feed.send(Bytes::from(format!("data: {event}\n\n")));
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Bytes> {
        self.feed.subscribe()
    }

    /// What a conversation is, if there is one of this id.
    pub(crate) fn session(&self, id: &str) -> Option<&Value> {
        self.sessions.get(id)
    }

    /// What a message is, if there is one of this id.
    pub(crate) fn message(&mut self, id: &str) -> io::Result<Option<Value>> {
        if !self.messages.contains(id) {
            return Ok(None);
        }
        let mut found = None;
        self.read(|_, mut event| {
            if event["type"] == "message.updated.1" && event["data"]["info"]["id"] == id {
                found = Some(event["data"]["info"].take());
            }
        })?;
        Ok(found)
    }

    /// Events behind the known numbers; of conversations that are not named, all.
    pub(crate) fn history(&mut self, known: &BTreeMap<String, u64>) -> io::Result<Vec<Value>> {
        let mut missed = Vec::new();
        self.read(|_, event| {
            let known = event["aggregate_id"].as_str().and_then(|session| known.get(session));
            if known.is_none_or(|known| event["seq"].as_u64().is_some_and(|seq| seq > *known)) {
                missed.push(event);
            }
        })?;
        Ok(missed)
    }
}
