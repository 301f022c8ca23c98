//! A daemon that only pretends: real gRPC on a real socket, answers from memory.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream::BoxStream;
use openagent_proto::v1;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};
use v1::event::Kind;

/// Longest time that anything here may take.
pub const BOUND: Duration = Duration::from_secs(30);

pub const SESSION: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV";

/// What the daemon knows and was told.
#[allow(dead_code, reason = "each test uses a part of it")]
#[derive(Default)]
pub struct State {
    pub protocol: Option<u32>,
    /// What it says of itself beyond version and protocol.
    pub status: v1::GetStatusResponse,
    /// How it was told to end.
    pub shutdowns: Vec<v1::ShutdownRequest>,
    /// What reading its store has shown.
    pub verified: v1::VerifyStoreResponse,
    /// Place in the queue that a session gets when it is made, which keeps its agent from being ready.
    pub queue_position: u32,
    /// Names of the clients that subscribed.
    pub clients: Vec<String>,
    /// Who answered.
    pub answered_by: Vec<String>,
    pub sessions: Vec<v1::Session>,
    pub events: Vec<v1::Event>,
    pub pending: Vec<v1::Pending>,
    /// What happens after the user's message.
    pub script: Vec<Kind>,
    /// What happens after a permission request was answered.
    pub after_answer: Vec<Kind>,
    pub created: Vec<v1::CreateSessionRequest>,
    pub prompts: Vec<String>,
    pub answered: Vec<(String, i32)>,
    pub answers: Vec<v1::AnswerQuestionRequest>,
    pub secrets: Vec<(String, String)>,
    pub removed: Vec<String>,
    pub archive: Vec<Result<Vec<u8>, Code>>,
}

#[derive(Clone)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    doorbell: Arc<watch::Sender<u64>>,
    folder: Arc<tempfile::TempDir>,
}

pub fn session(id: &str, title: &str) -> v1::Session {
    v1::Session {
        id: id.into(),
        title: title.into(),
        status: v1::SessionStatus::Active.into(),
        model: "demo/tour".into(),
        ..Default::default()
    }
}

/// The agent accepts prompts.
pub fn ready() -> Kind {
    Kind::Agent(v1::AgentEvent { process: Some(v1::agent_event::Process::Ready(v1::AgentReady { version: "1".into() })) })
}

fn refused(code: Code, reason: &str, message: &str, hint: &str) -> Status {
    let metadata = std::collections::HashMap::from([("hint".to_owned(), hint.to_owned())]);
    Status::with_error_details(code, message, ErrorDetails::with_error_info(reason, "openagent", metadata))
}

impl Fake {
    /// A folder without a daemon.
    pub fn new(state: State) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self { state: Arc::new(Mutex::new(state)), doorbell: Arc::new(watch::channel(0).0), folder: Arc::new(folder) }
    }

    /// A daemon that answers.
    pub fn serving(state: State) -> Self {
        let fake = Self::new(state);
        fake.serve();
        fake
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn serve(&self) {
        let listener = UnixListener::bind(self.folder().join("openagentd.sock")).expect("the socket can be bound");
        let server = tonic::transport::Server::builder()
            .add_service(v1::daemon_service_server::DaemonServiceServer::new(self.clone()))
            .add_service(v1::session_service_server::SessionServiceServer::new(self.clone()))
            .add_service(v1::event_service_server::EventServiceServer::new(self.clone()))
            .add_service(v1::permission_service_server::PermissionServiceServer::new(self.clone()))
            .add_service(v1::vault_service_server::VaultServiceServer::new(self.clone()))
            .add_service(v1::provider_service_server::ProviderServiceServer::new(self.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        #[allow(
            clippy::disallowed_methods,
            reason = "it ends with the test's runtime, and a panic in it fails the call that is waited for"
        )]
        tokio::spawn(server);
    }

    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().expect("no test panics while it holds the state"))
    }

    /// Records events and rings.
    pub fn record(&self, kinds: impl IntoIterator<Item = Kind>) {
        self.with(|state| {
            for kind in kinds {
                let seq = state.events.len() as u64 + 1;
                if let Kind::PermissionAsked(request) = &kind {
                    let request = Some(v1::pending::Request::Permission(request.clone()));
                    state.pending.push(v1::Pending { session_id: SESSION.into(), session_title: "work".into(), request });
                }
                state.events.push(v1::Event { seq, created_at: None, kind: Some(kind) });
            }
        });
        self.doorbell.send_modify(|rings| *rings += 1);
    }

    /// The environment in which `openagent` finds this daemon.
    pub fn command(&self, program: &Path, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").kill_on_drop(true);
        for name in ["OPENAGENT_RUNTIME_DIR", "OPENAGENT_STATE_DIR", "HOME"] {
            command.env(name, self.folder());
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub async fn openagent(&self, arguments: &[&str]) -> Outcome {
        self.openagent_with(arguments, "").await
    }

    pub async fn openagent_with(&self, arguments: &[&str], input: &str) -> Outcome {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_openagent"));
        let mut child = self.command(&program, arguments).stdin(Stdio::piped()).spawn().expect("openagent can be started");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // A command that does not read it closes it early.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = tokio::time::timeout(BOUND, child.wait_with_output()).await.expect("openagent ends in time").expect("openagent runs");
        output.into()
    }
}

#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<std::process::Output> for Outcome {
    fn from(output: std::process::Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

#[tonic::async_trait]
impl v1::daemon_service_server::DaemonService for Fake {
    type BackupStoreStream = BoxStream<'static, Result<v1::BackupStoreResponse, Status>>;

    async fn backup_store(&self, _: Request<v1::BackupStoreRequest>) -> Answer<Self::BackupStoreStream> {
        let pieces = self.with(|state| state.archive.clone()).into_iter().map(|piece| match piece {
            Ok(chunk) => Ok(v1::BackupStoreResponse { chunk }),
            Err(code) => Err(refused(code, "STORE_CORRUPT", "a record cannot be read", "restore a backup")),
        });
        answer(Box::pin(futures::stream::iter(pieces)))
    }

    async fn verify_store(&self, _: Request<v1::VerifyStoreRequest>) -> Answer<v1::VerifyStoreResponse> {
        answer(self.with(|state| state.verified.clone()))
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answer<v1::GetStatusResponse> {
        let protocol = self.with(|state| state.protocol).unwrap_or(openagent_proto::PROTOCOL);
        let status = self.with(|state| state.status.clone());
        answer(v1::GetStatusResponse { version: "9.9.9".into(), protocol, ..status })
    }

    async fn shutdown(&self, request: Request<v1::ShutdownRequest>) -> Answer<v1::ShutdownResponse> {
        self.with(|state| state.shutdowns.push(request.into_inner()));
        std::fs::remove_file(self.folder().join("openagentd.sock")).expect("the socket is there");
        answer(v1::ShutdownResponse {})
    }
}

#[tonic::async_trait]
impl v1::session_service_server::SessionService for Fake {
    type WatchSessionsStream = BoxStream<'static, Result<v1::WatchSessionsResponse, Status>>;
    type ExportSessionStream = BoxStream<'static, Result<v1::ExportSessionResponse, Status>>;

    async fn create_session(&self, request: Request<v1::CreateSessionRequest>) -> Answer<v1::CreateSessionResponse> {
        let request = request.into_inner();
        if request.model == "openai/none" {
            return Err(refused(Code::FailedPrecondition, "KEY_MISSING", "openai has no key", "store it: openagent keys set openai"));
        }
        let queue_position = self.with(|state| state.queue_position);
        let made = v1::Session { queue_position, ..session(SESSION, &request.title) };
        self.with(|state| {
            state.created.push(request);
            state.sessions.push(made.clone());
        });
        if queue_position == 0 {
            self.record([ready()]);
        }
        answer(v1::CreateSessionResponse { session: Some(made) })
    }

    async fn get_session(&self, request: Request<v1::GetSessionRequest>) -> Answer<v1::GetSessionResponse> {
        let id = request.into_inner().session_id;
        let found = self.with(|state| {
            let found = state.sessions.iter().find(|session| session.id == id).cloned();
            found.map(|found| v1::Session { last_seq: state.events.len() as u64, ..found })
        });
        let missing = || refused(Code::NotFound, "SESSION_NOT_FOUND", "there is no such session", "list them: openagent ls");
        answer(v1::GetSessionResponse { session: Some(found.ok_or_else(missing)?) })
    }

    async fn list_sessions(&self, _: Request<v1::ListSessionsRequest>) -> Answer<v1::ListSessionsResponse> {
        answer(v1::ListSessionsResponse { sessions: self.with(|state| state.sessions.clone()) })
    }

    async fn watch_sessions(&self, _: Request<v1::WatchSessionsRequest>) -> Answer<Self::WatchSessionsStream> {
        use v1::watch_sessions_response::Item;
        let changed = self.with(|state| state.sessions.clone()).into_iter().map(Item::Changed);
        let items: Vec<_> = changed.chain([Item::CaughtUp(v1::WatchCaughtUp {})]).collect();
        let items = items.into_iter().map(|item| Ok(v1::WatchSessionsResponse { item: Some(item) }));
        answer(Box::pin(futures::StreamExt::chain(futures::stream::iter(items), futures::stream::pending())))
    }

    async fn prompt(&self, request: Request<v1::PromptRequest>) -> Answer<v1::PromptResponse> {
        let (script, id) = self.with(|state| {
            state.prompts.push(request.into_inner().text);
            (std::mem::take(&mut state.script), format!("msg_user{}", state.prompts.len()))
        });
        let user = v1::Message { id: id.clone(), conversation_id: SESSION.into(), role: v1::Role::User.into(), ..Default::default() };
        self.record(std::iter::once(Kind::Message(user)).chain(script));
        answer(v1::PromptResponse { message_id: id })
    }

    async fn abort(&self, _: Request<v1::AbortRequest>) -> Answer<v1::AbortResponse> {
        answer(v1::AbortResponse {})
    }

    async fn stop_session(&self, _: Request<v1::StopSessionRequest>) -> Answer<v1::StopSessionResponse> {
        Err(Status::unimplemented("stop"))
    }

    async fn resume_session(&self, _: Request<v1::ResumeSessionRequest>) -> Answer<v1::ResumeSessionResponse> {
        Err(Status::unimplemented("resume"))
    }

    async fn remove_session(&self, request: Request<v1::RemoveSessionRequest>) -> Answer<v1::RemoveSessionResponse> {
        self.with(|state| state.removed.push(request.into_inner().session_id));
        answer(v1::RemoveSessionResponse {})
    }

    async fn rename_session(&self, _: Request<v1::RenameSessionRequest>) -> Answer<v1::RenameSessionResponse> {
        Err(Status::unimplemented("rename"))
    }

    async fn export_session(&self, _: Request<v1::ExportSessionRequest>) -> Answer<Self::ExportSessionStream> {
        let chunks = self.with(|state| state.archive.clone()).into_iter();
        let chunks = chunks
            .map(|chunk| chunk.map(|chunk| v1::ExportSessionResponse { chunk }).map_err(|code| refused(code, "BROKE", "it broke", "")));
        answer(Box::pin(futures::stream::iter(chunks.collect::<Vec<_>>())))
    }
}

#[tonic::async_trait]
impl v1::event_service_server::EventService for Fake {
    type SubscribeStream = BoxStream<'static, Result<v1::SubscribeResponse, Status>>;

    async fn subscribe(&self, request: Request<v1::SubscribeRequest>) -> Answer<Self::SubscribeStream> {
        let request = request.into_inner();
        self.with(|state| state.clients.push(request.client.clone()));
        let (state, mut doorbell) = (Arc::clone(&self.state), self.doorbell.subscribe());
        answer(Box::pin(async_stream::stream! {
            let mut next = usize::try_from(request.after_seq).unwrap_or(usize::MAX);
            loop {
                doorbell.borrow_and_update();
                let events = state.lock().expect("no test panics while it holds the state").events.clone();
                for event in events.into_iter().skip(next) {
                    next += 1;
                    yield Ok(v1::SubscribeResponse { item: Some(v1::subscribe_response::Item::Event(event)) });
                }
                if !request.follow || doorbell.changed().await.is_err() {
                    break;
                }
            }
        }))
    }
}

#[tonic::async_trait]
impl v1::permission_service_server::PermissionService for Fake {
    async fn list_pending(&self, _: Request<v1::ListPendingRequest>) -> Answer<v1::ListPendingResponse> {
        answer(v1::ListPendingResponse { pending: self.with(|state| state.pending.clone()) })
    }

    async fn answer_permission(&self, request: Request<v1::AnswerPermissionRequest>) -> Answer<v1::AnswerPermissionResponse> {
        let request = request.into_inner();
        let rest = self.with(|state| {
            state.answered.push((request.request_id.clone(), request.response));
            state.answered_by.push(request.by.clone());
            state.pending.clear();
            std::mem::take(&mut state.after_answer)
        });
        let answered =
            v1::PermissionAnsweredEvent { id: request.request_id, response: request.response, by: request.by, reason: request.reason };
        self.record(std::iter::once(Kind::PermissionAnswered(answered)).chain(rest));
        answer(v1::AnswerPermissionResponse {})
    }

    async fn answer_question(&self, request: Request<v1::AnswerQuestionRequest>) -> Answer<v1::AnswerQuestionResponse> {
        self.with(|state| state.answers.push(request.into_inner()));
        answer(v1::AnswerQuestionResponse {})
    }

    async fn list_rules(&self, _: Request<v1::ListRulesRequest>) -> Answer<v1::ListRulesResponse> {
        answer(v1::ListRulesResponse { rules: vec![v1::Rule { permission: "bash".into(), pattern: "git *".into() }] })
    }

    async fn remove_rule(&self, _: Request<v1::RemoveRuleRequest>) -> Answer<v1::RemoveRuleResponse> {
        Err(refused(Code::NotFound, "NOT_FOUND", "there is no such rule", ""))
    }
}

#[tonic::async_trait]
impl v1::vault_service_server::VaultService for Fake {
    async fn set_key(&self, request: Request<v1::SetKeyRequest>) -> Answer<v1::SetKeyResponse> {
        let request = request.into_inner();
        self.with(|state| state.secrets.push((request.provider.clone(), request.secret)));
        answer(v1::SetKeyResponse { key: Some(v1::Key { provider: request.provider, version: 1, ..Default::default() }) })
    }

    async fn list_keys(&self, _: Request<v1::ListKeysRequest>) -> Answer<v1::ListKeysResponse> {
        answer(v1::ListKeysResponse { keys: vec![] })
    }

    async fn remove_key(&self, _: Request<v1::RemoveKeyRequest>) -> Answer<v1::RemoveKeyResponse> {
        Err(refused(Code::NotFound, "NOT_FOUND", "no key is stored", ""))
    }
}

#[tonic::async_trait]
impl v1::provider_service_server::ProviderService for Fake {
    async fn list_providers(&self, _: Request<v1::ListProvidersRequest>) -> Answer<v1::ListProvidersResponse> {
        let model = v1::Model {
            id: "gpt".into(),
            name: "GPT".into(),
            context_tokens: 128_000,
            input_price_micros: 1_250_000,
            ..Default::default()
        };
        let provider =
            v1::Provider { id: "openai".into(), name: "OpenAI".into(), needs_key: true, models: vec![model], ..Default::default() };
        answer(v1::ListProvidersResponse { providers: vec![provider], default_model: "openai/gpt".into() })
    }
}
