//! An agent in folders of its own, and the model that it asks.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use openagent_core::event::{EventKind, PartBody, ToolState, TurnOutcome};
use openagent_proto::sidecar::{AgentModel, AgentPrice, AgentProvider, PermissionReply, Prompt, StartAgent};
use openagent_sidecar::agent::Agent;
use openagent_sidecar::journal::{Journal, JournalError, JournalItem, JournalReader};
use openagent_sidecar::keyring::KeyRing;
use openagent_sidecar::model::ModelProxy;
use openagent_sidecar::relay::Relay;
use openagent_sidecar::settings::Settings;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The longest that anything here may take: OpenCode's cold start and first prompt, on a busy machine.
pub const LONG: Duration = Duration::from_secs(120);

pub fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("OPENAGENT_TEST_OPENCODE") {
        return program.into();
    }
    let data = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share")));
    let program = data.unwrap().join("openagent/opencode/1.18.33/opencode");
    assert!(program.exists(), "{} is missing: run `cargo xtask setup`", program.display());
    program
}

pub fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["workspace", "state", "home", "link"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    folder
}

pub struct World {
    pub folder: tempfile::TempDir,
    pub agent: Agent,
    pub models: ModelProxy,
    pub journal: Journal,
    pub reader: JournalReader,
    pub told: Vec<EventKind>,
    pub letters: String,
}

impl World {
    pub async fn new() -> Self {
        Self::open(folder(), program()).await
    }

    pub async fn open(folder: tempfile::TempDir, opencode: PathBuf) -> Self {
        let at = |name: &str| folder.path().join(name);
        let settings = Settings {
            session: "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            token_sha256: [0; 32],
            link_dir: at("link"),
            workspace: at("workspace"),
            state_dir: at("state"),
            agent_home: at("home"),
            agent_uid: None,
            opencode,
            journal_max_bytes: 8 << 20,
        };
        // An earlier agent of this folder ends by itself when its handle is dropped.
        let journal = timeout(LONG, async {
            loop {
                match Journal::open(&at("state")) {
                    Err(JournalError::InUse { .. }) => tokio::task::yield_now().await,
                    opened => return opened.unwrap(),
                }
            }
        });
        let journal = journal.await.unwrap();
        let reader = journal.subscribe(journal.last());
        let models = ModelProxy::bind(KeyRing::default(), Relay::with_wait_max(Duration::ZERO)).await.unwrap();
        let agent = Agent::new(Arc::new(settings), journal.clone(), models.clone());
        Self { folder, agent, models, journal, reader, told: Vec::new(), letters: String::new() }
    }

    /// Reads events until one is `wanted`.
    pub async fn until<T>(&mut self, what: &str, wanted: impl Fn(&EventKind) -> Option<T>) -> T {
        let found = timeout(LONG, async {
            loop {
                match self.reader.next().await.unwrap() {
                    JournalItem::Recorded { kind, .. } => {
                        let kind: EventKind = serde_json::from_slice(&kind).unwrap();
                        assert!(!matches!(kind, EventKind::Unknown { .. }), "{kind:?}");
                        let found = wanted(&kind);
                        self.told.push(kind);
                        if let Some(found) = found {
                            return found;
                        }
                    }
                    JournalItem::Delta(delta) => self.letters.push_str(&delta.text),
                    JournalItem::Gap { .. } => panic!("a gap"),
                }
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("no {what} came; told: {:#?}", self.told),
        }
    }

    /// Reads events until a part streams.
    pub async fn until_letters(&mut self) {
        loop {
            match self.reader.next().await.unwrap() {
                JournalItem::Recorded { kind, .. } => self.told.push(serde_json::from_slice(&kind).unwrap()),
                JournalItem::Delta(delta) => return self.letters.push_str(&delta.text),
                JournalItem::Gap { .. } => panic!("a gap"),
            }
        }
    }

    pub async fn until_turn_ended(&mut self) -> TurnOutcome {
        self.until("end of the turn", |kind| if let EventKind::TurnEnded { outcome } = kind { Some(outcome.clone()) } else { None }).await
    }

    pub async fn until_asked(&mut self) -> openagent_core::permission::PermissionRequest {
        self.until(
            "permission request",
            |kind| if let EventKind::PermissionAsked { request } = kind { Some(request.clone()) } else { None },
        )
        .await
    }

    pub async fn prompt(&self, text: &str, model: &str) -> String {
        let prompt = Prompt { text: text.into(), model: model.into(), agent: "build".into() };
        self.agent.prompt(prompt).await.unwrap().message_id
    }

    pub async fn answer(&self, id: &str, response: &str) {
        self.agent
            .answer_permission(PermissionReply { id: id.into(), response: response.into(), reason: None, by: "test".into() })
            .await
            .unwrap();
    }

    pub fn tools(&self) -> Vec<(String, ToolState)> {
        let tool = |kind: &EventKind| match kind {
            EventKind::Part { part } => match &part.body {
                PartBody::Tool { tool, state } => Some((tool.clone(), state.clone())),
                _ => None,
            },
            _ => None,
        };
        self.told.iter().filter_map(tool).collect()
    }

    /// The texts that were finished.
    pub fn texts(&self) -> String {
        let text = |kind: &EventKind| match kind {
            EventKind::Part { part } => match &part.body {
                PartBody::Text { text, done: true, .. } => Some(text.clone()),
                _ => None,
            },
            _ => None,
        };
        self.told.iter().filter_map(text).collect::<Vec<_>>().join("\n")
    }

    pub async fn end(self) {
        self.agent.shutdown(Duration::from_secs(10)).await;
        assert!(!self.agent.health().running && !self.agent.ready());
    }
}

pub fn provider(id: &str, kind: &str, base_url: &str) -> AgentProvider {
    AgentProvider {
        id: id.into(),
        name: id.into(),
        kind: kind.into(),
        route: "direct".into(),
        base_url: base_url.into(),
        needs_key: false,
        models: vec![AgentModel {
            id: "tour".into(),
            name: "Tour".into(),
            context: 128_000,
            output: 8_000,
            reasoning: false,
            price: AgentPrice { input: 1_000_000, output: 2_000_000, ..AgentPrice::default() },
        }],
    }
}

pub fn start(provider: AgentProvider) -> StartAgent {
    StartAgent {
        title: None,
        model: format!("{}/tour", provider.id),
        agent: "build".into(),
        permission_mode: "ask".into(),
        allow: Vec::new(),
        providers: vec![provider],
        warm: false,
    }
}

/// A model server of the test's own: it hands each request of an agent at work to the test, which writes the answer piece by piece.
pub struct Model {
    pub base_url: String,
    calls: mpsc::Receiver<Call>,
}

pub struct Call {
    pub path: String,
    pub request: Value,
    pieces: mpsc::Sender<String>,
}

impl Call {
    pub async fn say(&self, text: &str) {
        self.piece(&json!({ "content": text }), None).await;
    }

    pub async fn tool(self, name: &str, arguments: &Value) {
        let call = json!({ "index": 0, "id": format!("call_{name}"), "type": "function", "function": { "name": name, "arguments": arguments.to_string() } });
        self.piece(&json!({ "tool_calls": [call] }), None).await;
        self.piece(&json!({}), Some("tool_calls")).await;
        self.pieces.send("data: [DONE]\n\n".into()).await.unwrap();
    }

    pub async fn stop(self) {
        self.piece(&json!({}), Some("stop")).await;
        self.pieces.send("data: [DONE]\n\n".into()).await.unwrap();
    }

    pub async fn piece(&self, delta: &Value, finish: Option<&str>) {
        let chunk = json!({ "id": "x", "object": "chat.completion.chunk", "created": 0, "model": "tour",
            "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }],
            "usage": { "prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12 } });
        self.pieces.send(format!("data: {chunk}\n\n")).await.unwrap();
    }
}

impl Model {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (told, calls) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let told = told.clone();
                let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let told = told.clone();
                    async move { Ok::<_, Infallible>(Self::answer(request, told).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(stream), service);
                tokio::spawn(async move { drop(connection.await) });
            }
        });
        Self { base_url, calls }
    }

    pub async fn answer(
        request: hyper::Request<hyper::body::Incoming>,
        told: mpsc::Sender<Call>,
    ) -> hyper::Response<BoxBody<Bytes, Infallible>> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let request: Value = serde_json::from_slice(&body).unwrap();
        let builder = hyper::Response::builder().header("content-type", "text/event-stream");
        if request.get("tools").is_none() {
            return builder.body(Full::from("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Titled\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n").boxed()).unwrap();
        }
        let (pieces, mut written) = mpsc::channel::<String>(64);
        told.send(Call { path, request, pieces }).await.unwrap();
        let body = async_stream::stream! {
            while let Some(piece) = written.recv().await {
                yield Ok(Frame::data(Bytes::from(piece)));
            }
        };
        builder.body(StreamBody::new(body).boxed()).unwrap()
    }

    pub async fn call(&mut self) -> Call {
        timeout(LONG, self.calls.recv()).await.expect("the agent asks the model").unwrap()
    }

    pub fn provider(&self) -> AgentProvider {
        provider("acme", "openai-compatible", &self.base_url)
    }
}

/// The OpenCode processes that work for this world.
pub fn servers(world: &World) -> Vec<i32> {
    let home = format!("HOME={}", world.folder.path().join("home").display());
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let ours = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains("serve")
            && environment.split(|byte| *byte == 0).any(|variable| variable == home.as_bytes())
    };
    processes.filter(ours).collect()
}

pub fn kill(world: &World) {
    let servers = servers(world);
    // A process that it has just forked looks like it, and comes behind it.
    assert!(!servers.is_empty(), "a server runs");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(servers[0]), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Writes a script by another process: a child started by another test meanwhile would hold it open for writing, and it could not be run (`ETXTBSY`).
pub fn write_program(path: &Path, script: &str) {
    let source = path.with_extension("source");
    std::fs::write(&source, script).unwrap();
    assert!(std::process::Command::new("cp").arg(&source).arg(path).status().unwrap().success());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
