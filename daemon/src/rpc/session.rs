//! `SessionService`.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openagent_core::id::SessionId;
use openagent_core::session::{Fault, Limits, NetworkPolicy, PROMPT_MAX_BYTES, Session, TITLE_MAX_CHARS, WorkspaceSource};
use openagent_proto::v1;
use tonic::{Request, Response, Status};

use super::status::{invalid, status};
use super::{Context, convert};
use crate::clock;
use crate::session::directory::Change;
use crate::session::{Command, PromptJob, SessionHandle};

/// Longest time that a caller may give an agent to end by itself.
const GRACE_MAX: Duration = Duration::from_secs(300);

/// Longest name of an agent's mode or persona, in bytes.
const AGENT_MAX_BYTES: usize = 64;

/// Changes of the session list that come faster than this are sent together.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// The service.
pub struct Sessions(pub Context);

impl Sessions {
    fn find(&self, id: &str) -> Result<SessionHandle, Status> {
        self.0.registry.find(id).map_err(|fault| status(&fault))
    }

    fn wire(handle: &SessionHandle) -> Option<v1::Session> {
        Some(convert::session(&handle.view()))
    }

    /// Everything that is wrong with a request to make a session, or the session.
    fn plan(&self, request: v1::CreateSessionRequest) -> Result<Session, Fault> {
        let shared = self.0.registry.shared();
        let defaults = &self.0.defaults;
        let mut mistakes: Vec<String> = Vec::new();
        let title_is_users = !request.title.is_empty();
        if let Err(mistake) = check_title(&request.title) {
            mistakes.push(mistake);
        }
        let workspace = convert::workspace_from(request.workspace);
        if let WorkspaceSource::Copy { path } = &workspace
            && !Path::new(path).is_absolute()
        {
            mistakes.push(format!("the workspace {path:?} is not an absolute path"));
        }
        let permission_mode = match convert::permission_mode_from(request.permission_mode) {
            Ok(mode) => mode.unwrap_or(defaults.permission_mode),
            Err(unknown) => {
                mistakes.push(format!("the permission mode {unknown} is not known to this daemon"));
                defaults.permission_mode
            }
        };
        let limits = limits(request.limits.unwrap_or_default(), &defaults.limits, &mut mistakes);
        let idle_timeout_millis = match request.idle_timeout {
            None => defaults.idle_timeout_millis,
            Some(timeout) => convert::duration_from(&timeout).and_then(|time| u64::try_from(time.as_millis()).ok()).unwrap_or_else(|| {
                mistakes.push("the idle timeout is negative".to_owned());
                0
            }),
        };
        let idle_action = match convert::idle_action_from(request.idle_action) {
            Ok(action) => action.unwrap_or(defaults.idle_action),
            Err(unknown) => {
                mistakes.push(format!("the idle action {unknown} is not known to this daemon"));
                defaults.idle_action
            }
        };
        let agent = if request.agent.is_empty() { defaults.agent.clone() } else { request.agent };
        if let Err(mistake) = check_agent(&agent) {
            mistakes.push(mistake);
        }
        let model = if request.model.is_empty() {
            shared.catalogue.default_model(|id| shared.has_key(id), defaults.model.as_deref()).ok_or_else(|| {
                Fault::new(
                    "KEY_MISSING",
                    "no provider has a key",
                    "set one: openagent keys set PROVIDER; or try the demo: --model demo/tour",
                )
            })?
        } else {
            request.model
        };
        let mut unusable = None;
        match shared.catalogue.resolve_model(&model) {
            Ok((provider, _)) if provider.needs_key && !shared.has_key(&provider.id) => {
                let hint = format!("set one: openagent keys set {}", provider.id);
                unusable = Some(Fault::new("KEY_MISSING", format!("no key is set for {}", provider.name), hint));
            }
            Ok(_) => {}
            Err(fault) if mistakes.is_empty() => unusable = Some(fault),
            Err(fault) => mistakes.push(fault.message),
        }
        if !mistakes.is_empty() {
            return Err(Fault::new("INVALID", mistakes.join("; "), "see what is possible: openagent new --help"));
        }
        if let Some(fault) = unusable {
            return Err(fault);
        }
        Ok(Session {
            id: SessionId::from_ulid(ulid::Ulid::new()),
            title: if title_is_users { request.title } else { "New session".to_owned() },
            title_is_users,
            driver: shared.driver.name().to_owned(),
            workspace,
            model,
            agent,
            network: NetworkPolicy::None,
            limits,
            permission_mode,
            permission_rules: vec![],
            idle_timeout_millis,
            idle_action,
            created_at: clock::now(),
        })
    }

    /// The model of a prompt must be one that the running agent was started with.
    fn check_model(&self, model: &str) -> Result<(), Fault> {
        let shared = self.0.registry.shared();
        let (provider, _) = shared.catalogue.resolve_model(model)?;
        if provider.needs_key && !shared.has_key(&provider.id) {
            let hint = format!("set one: openagent keys set {}", provider.id);
            return Err(Fault::new("KEY_MISSING", format!("no key is set for {}", provider.name), hint));
        }
        Ok(())
    }
}

fn check_title(title: &str) -> Result<(), String> {
    if title.chars().count() > TITLE_MAX_CHARS {
        return Err(format!("the title has more than {TITLE_MAX_CHARS} characters"));
    }
    if title.chars().any(char::is_control) {
        return Err("the title has control characters".to_owned());
    }
    Ok(())
}

fn check_agent(agent: &str) -> Result<(), String> {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if (1..=AGENT_MAX_BYTES).contains(&agent.len()) && agent.bytes().all(harmless) {
        return Ok(());
    }
    Err(format!("the agent {agent:?} is not a name of 1 to {AGENT_MAX_BYTES} letters, digits, '-', '_' and '.'"))
}

fn limits(asked: v1::Limits, defaults: &Limits, mistakes: &mut Vec<String>) -> Limits {
    let or = |asked: u64, default: u64| if asked == 0 { default } else { asked };
    let memory_bytes = or(asked.memory_bytes, defaults.memory_bytes);
    if memory_bytes < Limits::MEMORY_MIN_BYTES {
        mistakes.push("the memory limit is below 512 MiB, with which the agent does not work".to_owned());
    }
    let cpu_millis = if asked.cpu_millis == 0 { defaults.cpu_millis } else { asked.cpu_millis };
    if cpu_millis < 100 {
        mistakes.push("the limit of processor time is below a tenth of a core".to_owned());
    }
    let pids = if asked.pids == 0 { defaults.pids } else { asked.pids };
    if pids < 64 {
        mistakes.push("the limit of processes is below 64, with which the agent does not work".to_owned());
    }
    Limits { memory_bytes, cpu_millis, pids }
}

#[tonic::async_trait]
impl v1::session_service_server::SessionService for Sessions {
    type WatchSessionsStream = Pin<Box<dyn Stream<Item = Result<v1::WatchSessionsResponse, Status>> + Send>>;
    type ExportSessionStream = Pin<Box<dyn Stream<Item = Result<v1::ExportSessionResponse, Status>> + Send>>;

    async fn create_session(&self, request: Request<v1::CreateSessionRequest>) -> Result<Response<v1::CreateSessionResponse>, Status> {
        let session = self.plan(request.into_inner()).map_err(|fault| status(&fault))?;
        let handle = self.0.registry.create(session).await.map_err(|fault| status(&fault))?;
        Ok(Response::new(v1::CreateSessionResponse { session: Self::wire(&handle) }))
    }

    async fn get_session(&self, request: Request<v1::GetSessionRequest>) -> Result<Response<v1::GetSessionResponse>, Status> {
        let view = self.0.registry.look(&request.into_inner().session_id).await.map_err(|fault| status(&fault))?;
        Ok(Response::new(v1::GetSessionResponse { session: Some(convert::session(&view)) }))
    }

    async fn list_sessions(&self, _: Request<v1::ListSessionsRequest>) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let mut views = self.0.registry.shared().directory.all();
        // Within one millisecond ids tell the order, but for those of prepared instances, which are older than their sessions.
        views.sort_by_key(|view| std::cmp::Reverse((view.record.session.created_at, view.record.session.id.clone())));
        Ok(Response::new(v1::ListSessionsResponse { sessions: views.iter().map(|view| convert::session(view)).collect() }))
    }

    async fn watch_sessions(&self, _: Request<v1::WatchSessionsRequest>) -> Result<Response<Self::WatchSessionsStream>, Status> {
        use v1::watch_sessions_response::Item;
        let mut watcher = self.0.registry.shared().directory.watch();
        let stop = self.0.shutdown.clone();
        let stream = async_stream::stream! {
            let item = |item| Ok(v1::WatchSessionsResponse { item: Some(item) });
            let mut first = true;
            loop {
                let changes = tokio::select! {
                    changes = watcher.next() => changes,
                    () = stop.cancelled() => {
                        yield Err(status(&Fault::new("DAEMON_STOPPING", "the daemon is ending", "connect again in a moment")));
                        return;
                    }
                };
                let Some(changes) = changes else {
                    yield Err(status(&Fault::new("BUSY", "this client is too far behind", "connect again")));
                    return;
                };
                for change in changes {
                    yield item(match change {
                        Change::Changed(view) => Item::Changed(convert::session(&view)),
                        Change::Removed(id) => Item::Removed(id.to_string()),
                    });
                }
                if std::mem::take(&mut first) {
                    yield item(Item::CaughtUp(v1::WatchCaughtUp {}));
                }
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn prompt(&self, request: Request<v1::PromptRequest>) -> Result<Response<v1::PromptResponse>, Status> {
        let v1::PromptRequest { session_id, text, model, agent } = request.into_inner();
        if text.trim().is_empty() {
            return Err(invalid("the prompt is empty"));
        }
        if text.len() > PROMPT_MAX_BYTES {
            return Err(invalid("the prompt has more than 1 MiB"));
        }
        let handle = self.find(&session_id)?;
        if !model.is_empty() {
            self.check_model(&model).map_err(|fault| status(&fault))?;
        }
        if !agent.is_empty() {
            check_agent(&agent).map_err(invalid)?;
        }
        let given = |text: String| (!text.is_empty()).then_some(text);
        let message_id = handle
            .ask(|reply| Command::Prompt(PromptJob { text, model: given(model), agent: given(agent), reply }))
            .await
            .map_err(|fault| status(&fault))?;
        Ok(Response::new(v1::PromptResponse { message_id }))
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Result<Response<v1::AbortResponse>, Status> {
        let handle = self.find(&request.into_inner().session_id)?;
        handle.ask(Command::Abort).await.map_err(|fault| status(&fault))?;
        Ok(Response::new(v1::AbortResponse {}))
    }

    async fn stop_session(&self, request: Request<v1::StopSessionRequest>) -> Result<Response<v1::StopSessionResponse>, Status> {
        let request = request.into_inner();
        let grace = match &request.grace_period {
            None => None,
            Some(grace) => Some(
                convert::duration_from(grace)
                    .filter(|grace| *grace <= GRACE_MAX)
                    .ok_or_else(|| invalid("the grace period must be between 0 and 5 minutes"))?,
            ),
        };
        let handle = self.find(&request.session_id)?;
        handle.ask(|reply| Command::Stop(grace, reply)).await.map_err(|fault| status(&fault))?;
        Ok(Response::new(v1::StopSessionResponse { session: Self::wire(&handle) }))
    }

    async fn resume_session(&self, request: Request<v1::ResumeSessionRequest>) -> Result<Response<v1::ResumeSessionResponse>, Status> {
        let handle = self.find(&request.into_inner().session_id)?;
        handle.ask(Command::Resume).await.map_err(|fault| status(&fault))?;
        Ok(Response::new(v1::ResumeSessionResponse { session: Self::wire(&handle) }))
    }

    async fn remove_session(&self, request: Request<v1::RemoveSessionRequest>) -> Result<Response<v1::RemoveSessionResponse>, Status> {
        let handle = self.find(&request.into_inner().session_id)?;
        handle.ask(Command::Remove).await.map_err(|fault| status(&fault))?;
        Ok(Response::new(v1::RemoveSessionResponse {}))
    }

    async fn rename_session(&self, request: Request<v1::RenameSessionRequest>) -> Result<Response<v1::RenameSessionResponse>, Status> {
        let request = request.into_inner();
        let title = request.title.trim().to_owned();
        if title.is_empty() {
            return Err(invalid("the title is empty"));
        }
        check_title(&title).map_err(invalid)?;
        let handle = self.find(&request.session_id)?;
        handle.ask(|reply| Command::Rename(title, reply)).await.map_err(|fault| status(&fault))?;
        Ok(Response::new(v1::RenameSessionResponse { session: Self::wire(&handle) }))
    }

    async fn export_session(&self, request: Request<v1::ExportSessionRequest>) -> Result<Response<Self::ExportSessionStream>, Status> {
        let handle = self.find(&request.into_inner().session_id)?;
        let chunks = crate::export::export(self.0.registry.shared(), &handle.view()).await.map_err(|fault| status(&fault))?;
        let stream = chunks.map(|chunk| match chunk {
            Ok(chunk) => Ok(v1::ExportSessionResponse { chunk }),
            Err(fault) => Err(status(&fault)),
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
