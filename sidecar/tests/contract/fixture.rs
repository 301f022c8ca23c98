//! A running sidecar, and the daemon's side of its control API.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use openagent_core::seal::{KeyPair, PublicKey, Purpose, Sealed, SealedChannel, Side};
use openagent_proto::sidecar::{PREAMBLE_CONTROL, Registered, SealedProviderKey, env, path};
use openagent_sidecar::journal::Journal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

pub const SESSION: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV";
pub const OTHER_SESSION: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAW";
pub const TOKEN: &str = "one-time-token-canary";

/// The bound of every wait.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// The folders that outlive a sidecar.
pub struct Folders(TempDir);

impl Folders {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["link", "workspace", "state", "home"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self(folder)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("link").join("sidecar.sock")
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_openagent-sidecar"));
        command
            .arg("serve")
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap())
            .env(env::SESSION_ID, SESSION)
            .env(env::TOKEN_SHA256, hex::encode(Sha256::digest(TOKEN)))
            .env(env::LINK_DIR, self.path("link"))
            .env(env::WORKSPACE_DIR, self.path("workspace"))
            .env(env::STATE_DIR, self.path("state"))
            .env(env::AGENT_HOME, self.path("home"))
            .env(env::OPENCODE, self.path("no-such-opencode"))
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts a sidecar and waits until it says that it serves.
    pub async fn start(&self) -> Sidecar {
        self.start_with(|command| command).await
    }

    /// As [`Folders::start`], with more in the environment.
    pub async fn start_with(&self, prepare: impl FnOnce(&mut Command) -> &mut Command) -> Sidecar {
        let mut command = self.command();
        let mut child = prepare(&mut command).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = String::new();
        within("the sidecar serves", async {
            loop {
                let line = lines.next_line().await.unwrap().unwrap_or_else(|| panic!("the sidecar has ended: {log}"));
                log.push_str(&line);
                if line.contains("serving") {
                    return;
                }
            }
        })
        .await;
        let rest = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                log.push_str(&line);
                log.push('\n');
            }
            log
        });
        Sidecar { socket: self.socket(), child, rest }
    }
}

/// A running sidecar.
pub struct Sidecar {
    socket: PathBuf,
    pub child: Child,
    rest: tokio::task::JoinHandle<String>,
}

impl Sidecar {
    /// A control connection that has not registered.
    pub async fn dial(&self) -> Daemon {
        Daemon::over(dial(&self.socket, PREAMBLE_CONTROL).await).await
    }

    /// A control connection that has.
    pub async fn registered(&self) -> Daemon {
        let mut daemon = self.dial().await;
        daemon.register().await;
        daemon
    }

    /// How it ended, and everything that it logged.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        let status = within("the sidecar ends", self.child.wait()).await.unwrap();
        (status, within("its log ends", self.rest).await.unwrap())
    }
}

/// A stream as a driver gives it to the daemon.
pub async fn dial(socket: &Path, preamble: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(format!("{preamble}\n").as_bytes()).await.unwrap();
    stream
}

/// The daemon's side of a control connection.
#[derive(Clone)]
pub struct Daemon {
    requests: SendRequest<Full<Bytes>>,
    pub bearer: Option<String>,
    pub recipient: String,
    channel: std::sync::Arc<Option<SealedChannel>>,
}

/// An answer with its body.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
}

impl Answer {
    /// Status and code of an error in the one JSON shape.
    pub fn error(&self) -> (u16, &str) {
        assert_eq!(self.body["success"], json!(false), "{self:?}");
        assert!(!self.body["error"]["message"].as_str().unwrap().is_empty());
        (self.status.as_u16(), self.body["error"]["code"].as_str().unwrap())
    }
}

impl Daemon {
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (requests, connection) = within("the handshake", handshake).await.unwrap();
        tokio::spawn(connection);
        Self { requests, bearer: None, recipient: String::new(), channel: std::sync::Arc::default() }
    }

    pub fn request(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(format!("http://sidecar{path}"));
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        request.body(Full::new(body.into())).unwrap()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let mut requests = self.requests.clone();
        within("the answer", async {
            requests.ready().await.unwrap();
            requests.send_request(request).await.unwrap()
        })
        .await
    }

    pub async fn call_raw(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Answer {
        let answer = self.send(self.request(method, path, body)).await;
        let status = answer.status();
        let body = within("the body", answer.into_body().collect()).await.unwrap().to_bytes();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        Answer { status, body }
    }

    pub async fn call(&self, method: Method, path: &str, body: &Value) -> Answer {
        self.call_raw(method, path, body.to_string()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call_raw(Method::GET, path, "").await
    }

    pub async fn assert_serving(&self) {
        assert_eq!(self.get(path::HEALTH).await.body["status"], "ok");
    }

    pub async fn register(&mut self) {
        let pair = KeyPair::generate();
        let answer = self.call(Method::POST, path::REGISTER, &registration(&pair.public().to_base64())).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        self.take_registration(&pair, serde_json::from_value(answer.body).unwrap());
    }

    pub fn take_registration(&mut self, pair: &KeyPair, registered: Registered) {
        let session = SESSION.parse().unwrap();
        let theirs = PublicKey::from_base64(&registered.sidecar_public_key).unwrap();
        assert_eq!(theirs.key_id(), registered.sidecar_key_id);
        let channel = pair.agree(theirs, Side::Daemon, &session).unwrap();
        let sealed = Sealed::try_from(registered.sidecar_auth_token).unwrap();
        let bearer = channel.auth_token.open(&Purpose::AuthToken.aad(&session, "bearer", 1), &sealed).unwrap();
        self.bearer = Some(String::from_utf8(bearer.to_vec()).unwrap());
        self.recipient = registered.sidecar_key_id;
        self.channel = std::sync::Arc::new(Some(channel));
    }

    /// A provider key as the daemon seals it.
    pub fn seal(&self, provider: &str, version: u64, key: &[u8]) -> SealedProviderKey {
        let aad = Purpose::ProviderKeys.aad(&SESSION.parse().unwrap(), provider, version);
        let channel = self.channel.as_ref().as_ref().unwrap();
        SealedProviderKey { provider: provider.into(), sealed: channel.provider_keys.seal(&aad, key).into() }
    }

    pub async fn update_keys(&self, version: u64, keys: &[SealedProviderKey]) -> Answer {
        let body = json!({ "recipientKeyId": self.recipient, "version": version, "keys": keys });
        self.call(Method::PUT, path::UPDATE_KEYS, &body).await
    }

    pub async fn events(&self, after: u64) -> Events {
        let answer = self.send(self.request(Method::GET, &format!("{}?after={after}", path::EVENTS), "")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Events { body: answer.into_body(), rest: String::new() }
    }
}

/// The body of a registration with the right token.
pub fn registration(public_key: &str) -> Value {
    json!({ "sessionId": SESSION, "registrationToken": TOKEN, "publicKey": public_key, "keyId": "k1" })
}

/// A server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub id: Option<u64>,
    pub event: Option<String>,
    pub data: Value,
}

/// An event stream.
pub struct Events {
    body: Incoming,
    rest: String,
}

impl Events {
    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, rest)) = self.rest.split_once("\n\n") {
                let mut parsed = Frame { id: None, event: None, data: Value::Null };
                for line in frame.lines() {
                    match line.split_once(": ") {
                        Some(("id", id)) => parsed.id = Some(id.parse().unwrap()),
                        Some(("event", event)) => parsed.event = Some(event.into()),
                        Some(("data", data)) => parsed.data = serde_json::from_str(data).unwrap(),
                        _ => assert!(line.starts_with(':'), "{line:?}"),
                    }
                }
                self.rest = rest.to_owned();
                if parsed.data.is_null() {
                    continue;
                }
                return Some(parsed);
            }
            let piece = within("the next event", self.body.frame()).await?.ok()?.into_data().unwrap();
            self.rest.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }
}

/// Opens the journal that an ended sidecar has left, to look at it.
pub fn journal(folders: &Folders) -> Journal {
    Journal::open(&folders.path("state")).unwrap()
}
