//! Client of the daemon: gRPC over its Unix socket, in the words of the domain.
//!
//! [`Client`] is a cheap handle; clones share one connection, which is made when it is first used and made again after it broke.
//! [`connect`](Client::connect) starts the daemon where that is wanted. Answers are converted in [`convert`], which is total: what this
//! version does not know becomes data, never a panic. Each call has a deadline; errors are [`ClientError`]s with a hint and an exit code.

mod connect;
pub mod convert;
pub mod error;
pub mod identity;
pub mod stream;
pub mod view;

use std::sync::Arc;
use std::time::Duration;

use openagent_core::id::{RequestId, SessionId, TerminalId};
use openagent_core::permission::{PermissionMode, PermissionResponse, PermissionRule};
use openagent_core::session::{IdleAction, WorkspaceSource};
use openagent_proto::v1;
use tonic::Request;
use tonic::transport::Channel;
use v1::daemon_service_client::DaemonServiceClient;
use v1::event_service_client::EventServiceClient;
use v1::permission_service_client::PermissionServiceClient;
use v1::provider_service_client::ProviderServiceClient;
use v1::session_service_client::SessionServiceClient;
use v1::terminal_service_client::TerminalServiceClient;
use v1::usage_service_client::UsageServiceClient;
use v1::vault_service_client::VaultServiceClient;

pub use connect::{Start, become_daemon, daemon_program, paths};
pub use error::{ClientError, ExitCode, Kind};
pub use openagent_core::config::Paths;
pub use stream::{
    BackupStream, EventStream, ExportStream, SessionStream, Snapshot, StreamItem, TerminalInput, TerminalItem, TerminalStream,
};
pub use view::{AttachedTo, AttachedView, InstanceView, Pending, PendingRequest, SessionChange, SessionView};

/// Deadline of calls that the daemon answers from what it knows.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// Deadline of calls that wait for an agent or an engine. Longer than the longest grace period the daemon accepts (5 minutes).
const WORK_DEADLINE: Duration = Duration::from_secs(600);

/// Largest accepted answer: an event is 4 MiB at most, and a list holds many sessions.
const ANSWER_MAX_BYTES: usize = 32 * 1024 * 1024;

/// A connection to the daemon.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    name: Arc<str>,
}

/// What a new session is made with. Empty texts and `None` stand for the daemon's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewSession {
    /// Title; empty: the agent gives one.
    pub title: String,
    /// What the workspace starts from.
    pub workspace: WorkspaceSource,
    /// `provider/model`.
    pub model: String,
    /// The agent's mode or persona.
    pub agent: String,
    /// What it may do unasked.
    pub permission_mode: Option<PermissionMode>,
    /// Memory limit.
    pub memory_bytes: Option<u64>,
    /// Processor limit, in thousandths of a core.
    pub cpu_millis: Option<u32>,
    /// Limit of processes and threads.
    pub pids: Option<u32>,
    /// Rest after which it becomes idle; zero: never.
    pub idle_timeout: Option<Duration>,
    /// What becomes of its instance then.
    pub idle_action: Option<IdleAction>,
}

fn call<T>(message: T) -> Request<T> {
    within(message, CALL_DEADLINE)
}

fn work<T>(message: T) -> Request<T> {
    within(message, WORK_DEADLINE)
}

fn within<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

macro_rules! service {
    ($name:ident, $client:ident) => {
        fn $name(&self) -> $client<Channel> {
            $client::new(self.channel.clone()).max_decoding_message_size(ANSWER_MAX_BYTES)
        }
    };
}

impl Client {
    service!(daemon_service, DaemonServiceClient);
    service!(session_service, SessionServiceClient);
    service!(event_service, EventServiceClient);
    service!(permission_service, PermissionServiceClient);
    service!(terminal_service, TerminalServiceClient);
    service!(vault_service, VaultServiceClient);
    service!(provider_service, ProviderServiceClient);
    service!(usage_service, UsageServiceClient);

    /// The name under which others see this client.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the daemon is doing.
    pub async fn status(&self) -> Result<v1::GetStatusResponse, ClientError> {
        Ok(self.daemon_service().get_status(call(v1::GetStatusRequest {})).await?.into_inner())
    }

    /// Ends the daemon; what becomes of the sessions that run is `sessions`.
    pub async fn shutdown(&self, sessions: v1::ShutdownSessions) -> Result<(), ClientError> {
        self.daemon_service().shutdown(work(v1::ShutdownRequest { sessions: sessions.into() })).await?;
        Ok(())
    }

    /// Streams a copy of the daemon's store, which is whole only if the stream ends without an error.
    pub async fn backup(&self) -> Result<BackupStream, ClientError> {
        Ok(BackupStream::new(self.daemon_service().backup_store(v1::BackupStoreRequest {}).await?.into_inner()))
    }

    /// Has every record of the daemon's store read, and tells what is wrong. Takes as long as that takes.
    pub async fn verify(&self) -> Result<v1::VerifyStoreResponse, ClientError> {
        Ok(self.daemon_service().verify_store(v1::VerifyStoreRequest {}).await?.into_inner())
    }

    /// All sessions, newest first.
    pub async fn sessions(&self) -> Result<Vec<SessionView>, ClientError> {
        let listed = self.session_service().list_sessions(call(v1::ListSessionsRequest {})).await?.into_inner();
        // A session whose id cannot be read cannot be addressed either, so there is nothing to show it for.
        Ok(listed.sessions.into_iter().filter_map(|session| convert::session(session).ok()).collect())
    }

    /// One session.
    pub async fn session(&self, id: &SessionId) -> Result<SessionView, ClientError> {
        let request = v1::GetSessionRequest { session_id: id.to_string() };
        whole(self.session_service().get_session(call(request)).await?.into_inner().session)
    }

    /// All sessions as they are, then each that changes.
    pub async fn watch_sessions(&self) -> Result<SessionStream, ClientError> {
        let stream = self.session_service().watch_sessions(v1::WatchSessionsRequest {}).await?.into_inner();
        Ok(SessionStream::new(stream))
    }

    /// Makes a session and begins to provision it; returns at once.
    pub async fn create_session(&self, new: NewSession) -> Result<SessionView, ClientError> {
        let answer = self.session_service().create_session(call(convert::create_request(new))).await?.into_inner();
        whole(answer.session)
    }

    /// Gives the agent a prompt and returns the id of the user's message once the agent has accepted it.
    /// An empty `model` or `agent` leaves the session's.
    pub async fn prompt(&self, id: &SessionId, text: String, model: String, agent: String) -> Result<String, ClientError> {
        let request = v1::PromptRequest { session_id: id.to_string(), text, model, agent };
        Ok(self.session_service().prompt(work(request)).await?.into_inner().message_id)
    }

    /// Ends the turn that runs, if any.
    pub async fn abort(&self, id: &SessionId) -> Result<(), ClientError> {
        self.session_service().abort(call(v1::AbortRequest { session_id: id.to_string() })).await?;
        Ok(())
    }

    /// Ends the session's instance; returns when it has ended.
    pub async fn stop(&self, id: &SessionId) -> Result<SessionView, ClientError> {
        let request = v1::StopSessionRequest { session_id: id.to_string(), grace_period: None };
        whole(self.session_service().stop_session(work(request)).await?.into_inner().session)
    }

    /// Gives a stopped or failed session a new instance; returns at once.
    pub async fn resume(&self, id: &SessionId) -> Result<SessionView, ClientError> {
        let request = v1::ResumeSessionRequest { session_id: id.to_string() };
        whole(self.session_service().resume_session(call(request)).await?.into_inner().session)
    }

    /// Removes the session with its workspace and history; returns when nothing is left.
    pub async fn remove(&self, id: &SessionId) -> Result<(), ClientError> {
        self.session_service().remove_session(work(v1::RemoveSessionRequest { session_id: id.to_string() })).await?;
        Ok(())
    }

    /// Gives the session a title.
    pub async fn rename(&self, id: &SessionId, title: String) -> Result<SessionView, ClientError> {
        let request = v1::RenameSessionRequest { session_id: id.to_string(), title };
        whole(self.session_service().rename_session(call(request)).await?.into_inner().session)
    }

    /// Streams the session as a zip archive, which is whole only if the stream ends without an error.
    pub async fn export(&self, id: &SessionId) -> Result<ExportStream, ClientError> {
        let request = v1::ExportSessionRequest { session_id: id.to_string() };
        Ok(ExportStream::new(self.session_service().export_session(request).await?.into_inner()))
    }

    /// The history of a session behind event `after`, and with `follow` what happens from then on.
    pub async fn subscribe(&self, id: &SessionId, after: u64, follow: bool, deltas: bool) -> Result<EventStream, ClientError> {
        let request = v1::SubscribeRequest { session_id: id.to_string(), after_seq: after, follow, deltas, client: self.name.to_string() };
        Ok(EventStream::new(self.event_service().subscribe(request).await?.into_inner()))
    }

    /// What waits for an answer, oldest first; in all sessions where `id` is `None`.
    pub async fn pending(&self, id: Option<&SessionId>) -> Result<Vec<Pending>, ClientError> {
        let request = v1::ListPendingRequest { session_id: id.map(ToString::to_string).unwrap_or_default() };
        let listed = self.permission_service().list_pending(call(request)).await?.into_inner();
        Ok(listed.pending.into_iter().filter_map(|pending| convert::pending(pending).ok()).collect())
    }

    /// Answers a permission request; `reason` is for the agent, with a rejection.
    pub async fn answer_permission(
        &self,
        id: &SessionId,
        request: &RequestId,
        response: PermissionResponse,
        reason: String,
    ) -> Result<(), ClientError> {
        let request = v1::AnswerPermissionRequest {
            session_id: id.to_string(),
            request_id: request.to_string(),
            response: convert::response_request(response).into(),
            reason,
            by: self.name.to_string(),
        };
        self.permission_service().answer_permission(work(request)).await?;
        Ok(())
    }

    /// Answers a question request: for each question the chosen labels or own words; `None` dismisses it.
    pub async fn answer_question(&self, id: &SessionId, request: &RequestId, answers: Option<Vec<Vec<String>>>) -> Result<(), ClientError> {
        let request = v1::AnswerQuestionRequest {
            session_id: id.to_string(),
            request_id: request.to_string(),
            dismiss: answers.is_none(),
            answers: answers.unwrap_or_default().into_iter().map(|chosen| v1::QuestionAnswer { chosen }).collect(),
            by: self.name.to_string(),
        };
        self.permission_service().answer_question(work(request)).await?;
        Ok(())
    }

    /// Remembered answers that hold for every session.
    pub async fn rules(&self) -> Result<Vec<PermissionRule>, ClientError> {
        let listed = self.permission_service().list_rules(call(v1::ListRulesRequest {})).await?.into_inner();
        Ok(listed.rules.into_iter().map(|rule| PermissionRule { permission: rule.permission, pattern: rule.pattern }).collect())
    }

    /// Forgets a remembered answer.
    pub async fn remove_rule(&self, rule: PermissionRule) -> Result<(), ClientError> {
        let rule = Some(v1::Rule { permission: rule.permission, pattern: rule.pattern });
        self.permission_service().remove_rule(call(v1::RemoveRuleRequest { rule })).await?;
        Ok(())
    }

    /// Starts a terminal; an empty `command` is a login shell.
    pub async fn open_terminal(&self, id: &SessionId, columns: u16, rows: u16, command: String) -> Result<v1::Terminal, ClientError> {
        let request = v1::OpenTerminalRequest { session_id: id.to_string(), size: Some(convert::size_request(columns, rows)), command };
        let opened = self.terminal_service().open_terminal(work(request)).await?.into_inner();
        opened.terminal.ok_or_else(|| ClientError::malformed("the opened terminal is missing from it"))
    }

    /// The session's terminals.
    pub async fn terminals(&self, id: &SessionId) -> Result<Vec<v1::Terminal>, ClientError> {
        let request = v1::ListTerminalsRequest { session_id: id.to_string() };
        Ok(self.terminal_service().list_terminals(call(request)).await?.into_inner().terminals)
    }

    /// Attaches to a terminal whose output up to `offset` is known.
    pub async fn attach_terminal(
        &self,
        id: &SessionId,
        terminal: &TerminalId,
        offset: u64,
        read_only: bool,
        size: (u16, u16),
    ) -> Result<(TerminalInput, TerminalStream), ClientError> {
        let attach = v1::TerminalAttach {
            session_id: id.to_string(),
            terminal_id: terminal.to_string(),
            offset_bytes: offset,
            read_only,
            size: Some(convert::size_request(size.0, size.1)),
            client: self.name.to_string(),
        };
        let (input, requests) = TerminalInput::new(attach);
        let stream = self.terminal_service().attach_terminal(requests).await?.into_inner();
        Ok((input, TerminalStream::new(stream)))
    }

    /// Ends a terminal and everything that runs in it.
    pub async fn close_terminal(&self, id: &SessionId, terminal: &TerminalId) -> Result<(), ClientError> {
        let request = v1::CloseTerminalRequest { session_id: id.to_string(), terminal_id: terminal.to_string() };
        self.terminal_service().close_terminal(work(request)).await?;
        Ok(())
    }

    /// Stores or replaces a provider's key; returns when it is durable.
    pub async fn set_key(&self, provider: &str, secret: &openagent_core::secret::Secret) -> Result<v1::Key, ClientError> {
        let request = v1::SetKeyRequest { provider: provider.to_owned(), secret: secret.expose().to_owned() };
        let stored = self.vault_service().set_key(call(request)).await?.into_inner();
        stored.key.ok_or_else(|| ClientError::malformed("the stored key's record is missing from it"))
    }

    /// Names and dates of the stored keys.
    pub async fn keys(&self) -> Result<Vec<v1::Key>, ClientError> {
        Ok(self.vault_service().list_keys(call(v1::ListKeysRequest {})).await?.into_inner().keys)
    }

    /// Removes a provider's key.
    pub async fn remove_key(&self, provider: &str) -> Result<(), ClientError> {
        self.vault_service().remove_key(call(v1::RemoveKeyRequest { provider: provider.to_owned() })).await?;
        Ok(())
    }

    /// Providers with their models, and the model that a new session gets.
    pub async fn providers(&self, usable_only: bool) -> Result<v1::ListProvidersResponse, ClientError> {
        Ok(self.provider_service().list_providers(call(v1::ListProvidersRequest { usable_only })).await?.into_inner())
    }

    /// What was spent, of one session or of all.
    pub async fn usage(&self, id: Option<&SessionId>, group_by: v1::UsageGrouping) -> Result<v1::GetUsageResponse, ClientError> {
        let session_id = id.map(ToString::to_string).unwrap_or_default();
        let request = v1::GetUsageRequest { session_id, group_by: group_by.into() };
        Ok(self.usage_service().get_usage(call(request)).await?.into_inner())
    }
}

fn whole(session: Option<v1::Session>) -> Result<SessionView, ClientError> {
    let session = session.ok_or_else(|| ClientError::malformed("the session is missing from it"))?;
    convert::session(session).map_err(|unreadable| ClientError::malformed(&unreadable.to_string()))
}
