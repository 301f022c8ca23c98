//! A language model that does what the prompt says: the scripted model server of all tests, benches and demos.
//!
//! It owns one loopback HTTP server that speaks the three wire formats OpenCode's bundled providers use, streaming and
//! not: `POST /v1/chat/completions`, `POST /v1/responses`, `POST /v1/messages`, and `GET /v1/models`. Invariant: the
//! answer depends only on the request and on how often the same prompt was refused before; there is no randomness
//! and no clock beyond the pauses a prompt asks for.
//!
//! The first keyword in the last user message decides; arguments reach to the end of its line. A request whose last
//! message is a tool result is answered by text, so no prompt loops. Without a keyword the answer is that of `#plain`.
//!
//! | keyword | answer |
//! |---|---|
//! | `#plain` | a short text, `The quick answer is forty-two.` |
//! | `#echo TEXT...` | everything after the keyword, all lines |
//! | `#long N` | N numbered chunks of text |
//! | `#slow MS N` | the same, MS milliseconds apart |
//! | `#reason` | reasoning, then text |
//! | `#bash COMMAND` | one `bash` call |
//! | `#write PATH TEXT` | one `write` call; `\n` in TEXT is a line break |
//! | `#edit PATH OLD=>NEW` | one `edit` call; `\n` as above |
//! | `#read PATH` | one `read` call |
//! | `#tools` | two parallel `bash` calls |
//! | `#question` | one `question` call with the options Blue and Green |
//! | `#todo` | one `todowrite` call with three todos |
//! | `#subagent [PROMPT]` | one `task` call for agent `general`; prompt `#plain` unless given |
//! | `#unknown-tool` | a call of a tool that does not exist |
//! | `#bad-args` | a `bash` call whose arguments do not fit its schema |
//! | `#bad-json` | a `bash` call whose arguments are no JSON |
//! | `#usage IN OUT REASON CACHE [WRITE]` | text with these token counts (IN without cached, OUT without reasoning) |
//! | `#401`, `#403` | refused, each time |
//! | `#429 [N]`, `#500 [N]` | refused N times (default 1) with a short `retry-after-ms`, then text |
//! | `#429-forever` | refused, each time |
//! | `#overflow` | refused, each time: the context is too long |
//! | `#cut [N]` | the connection is cut in mid-stream N times (default 1), then text |
//! | `#stream-error [N]` | an error object inside the stream N times (default 1), then text |
//! | `#hang` | no answer until the client goes away |
//! | `#wait NAME` | begins, blocks until [`ScriptedModel::release`]`(NAME)`, ends; a released name stays released |
//!
//! Requests of OpenCode's title and summary (compaction) agents are known by their system prompts and get a title made
//! of the prompt's first words, or a fixed summary; they never run a keyword. "The same prompt" means: same `x-session-affinity` header, same number of user
//! messages, same text.
//!
//! Tasks: one that accepts; one per connection. [`ScriptedModel::shutdown`] cuts what is still streaming; dropping the
//! handle does the same without waiting. Bounds: [`RECORD_MAX_REQUESTS`], [`RECORD_MAX_BYTES`], [`BODY_MAX_BYTES`].

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod conversation;
mod gate;
mod http;
mod record;
mod script;
mod wire;

pub use record::{RECORD_MAX_BYTES, RECORD_MAX_REQUESTS, RecordedRequest};

use gate::Gates;
use record::Record;

/// Model ids offered by `GET /v1/models`. Any other id is answered as well.
pub const MODELS: [&str; 2] = ["scripted-large", "scripted-small"];

/// Largest request body taken; larger than the largest prompt OpenCode was seen to send (a 20 MB one).
pub const BODY_MAX_BYTES: usize = 48 * 1024 * 1024;

/// The value of `retry-after-ms` in refusals that may be tried again: short, so that tests of retries are fast.
pub const RETRY_AFTER_MS: u64 = 50;

/// Prompts whose refusals are counted; when full the counts begin anew.
const COUNTED_PROMPTS_MAX: usize = 4096;

/// How long [`ScriptedModel::shutdown`] waits for connections to notice.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address could not be bound.
    #[error("scripted model: bind {address}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// How to start a [`ScriptedModel`].
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    key: Option<String>,
    port: u16,
}

impl ModelOptions {
    /// Requires `key` as bearer token or `x-api-key`; every other one gets the 401 of the wire format.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Listens on this port instead of a free one.
    #[must_use]
    pub fn on_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Binds to loopback and serves until the handle is shut down or dropped.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn start(self) -> Result<ScriptedModel, StartError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let bind_error = |source| StartError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        let shared = Arc::new(Shared::new(self.key));
        let router = http::router(Arc::clone(&shared));
        // Small chunks must leave at once: the latency of a token is what benches measure.
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        let stop = shared.stop.clone();
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await });
        Ok(ScriptedModel { address, shared, server })
    }
}

/// A running scripted model server.
#[derive(Debug)]
pub struct ScriptedModel {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinSet<std::io::Result<()>>,
}

impl ScriptedModel {
    /// Starts one on a free loopback port that takes any key.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> Result<Self, StartError> {
        ModelOptions::default().start().await
    }

    /// Options for one that requires `key`.
    #[must_use]
    pub fn with_key(key: impl Into<String>) -> ModelOptions {
        ModelOptions::default().with_key(key)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The provider's base URL, ending in `/v1`.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The newest requests, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<Arc<RecordedRequest>> {
        self.shared.record().list()
    }

    /// How many requests were forgotten because the record was full.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.shared.record().forgotten()
    }

    /// Waits until a request for which `is_it` holds is in the record; `None` when `bound` passes first.
    pub async fn wait_for_request(&self, bound: Duration, is_it: impl Fn(&RecordedRequest) -> bool) -> Option<Arc<RecordedRequest>> {
        let mut doorbell = self.shared.arrivals.subscribe();
        let found = async {
            loop {
                doorbell.borrow_and_update();
                let hit = self.shared.record().list().into_iter().find(|request| is_it(request));
                if hit.is_some() || doorbell.changed().await.is_err() {
                    return hit;
                }
            }
        };
        tokio::time::timeout(bound, found).await.ok().flatten()
    }

    /// Waits until a stream stands at `#wait NAME` (its first text has been sent); false when `bound` passes first.
    pub async fn wait_until_waiting(&self, name: &str, bound: Duration) -> bool {
        let gate = self.shared.gates().gate(name);
        tokio::time::timeout(bound, gate.wait_reached()).await.is_ok()
    }

    /// Lets every stream that stands, or will stand, at `#wait NAME` go on.
    pub fn release(&self, name: &str) {
        self.shared.gates().gate(name).release();
    }

    /// Cuts what is still streaming, closes the port and waits for the connections to end.
    pub async fn shutdown(mut self) {
        self.shared.stop.cancel();
        drop(tokio::time::timeout(SHUTDOWN_GRACE, self.server.join_next()).await);
    }

    /// Serves until the server ends by itself, which it does only when its listener fails.
    pub async fn wait(&mut self) {
        self.server.join_next().await;
    }
}

impl Drop for ScriptedModel {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// What the handlers share. Each lock is held for one lookup and never across an await.
#[derive(Debug)]
struct Shared {
    key: Option<String>,
    record: Mutex<Record>,
    refusals: Mutex<HashMap<PromptKey, u32>>,
    gates: Mutex<Gates>,
    arrivals: watch::Sender<u64>,
    stop: CancellationToken,
}

/// What makes two requests the same prompt asked again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PromptKey {
    session: String,
    turn: usize,
    text: String,
}

impl Shared {
    fn new(key: Option<String>) -> Self {
        Self {
            key,
            record: Mutex::default(),
            refusals: Mutex::default(),
            gates: Mutex::default(),
            arrivals: watch::Sender::new(0),
            stop: CancellationToken::new(),
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gates(&self) -> MutexGuard<'_, Gates> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a request and answers its number, counted from one.
    fn remember(&self, request: RecordedRequest) -> u64 {
        let number = self.record().push(request);
        self.arrivals.send_replace(number);
        number
    }

    /// Counts one more try of a prompt and says whether it is among the first `refused`.
    fn is_refused(&self, prompt: PromptKey, refused: u32) -> bool {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() >= COUNTED_PROMPTS_MAX && !refusals.contains_key(&prompt) {
            refusals.clear();
        }
        let tries = refusals.entry(prompt).or_default();
        *tries = tries.saturating_add(1);
        *tries <= refused
    }
}
