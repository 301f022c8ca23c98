//! Clients of every service of a daemon, with the calls that most tests make.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use openagent_proto::v1;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::PATIENCE;
use super::events::Events;

/// Clients of every service.
#[derive(Clone)]
pub struct Clients {
    /// Sessions.
    pub session: v1::session_service_client::SessionServiceClient<Channel>,
    /// Histories.
    pub event: v1::event_service_client::EventServiceClient<Channel>,
    /// The inbox.
    pub permission: v1::permission_service_client::PermissionServiceClient<Channel>,
    /// Terminals.
    pub terminal: v1::terminal_service_client::TerminalServiceClient<Channel>,
    /// Keys.
    pub vault: v1::vault_service_client::VaultServiceClient<Channel>,
    /// Providers.
    pub provider: v1::provider_service_client::ProviderServiceClient<Channel>,
    /// What was spent.
    pub usage: v1::usage_service_client::UsageServiceClient<Channel>,
    /// The daemon.
    pub daemon: v1::daemon_service_client::DaemonServiceClient<Channel>,
    /// The connection itself.
    pub channel: Channel,
}

impl Clients {
    /// Connects to a socket.
    ///
    /// # Panics
    /// When nothing answers.
    pub async fn connect(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://daemon").connect_with_connector(connector).await.expect("the daemon answers");
        Self {
            session: v1::session_service_client::SessionServiceClient::new(channel.clone()),
            event: v1::event_service_client::EventServiceClient::new(channel.clone()),
            permission: v1::permission_service_client::PermissionServiceClient::new(channel.clone()),
            terminal: v1::terminal_service_client::TerminalServiceClient::new(channel.clone()),
            vault: v1::vault_service_client::VaultServiceClient::new(channel.clone()),
            provider: v1::provider_service_client::ProviderServiceClient::new(channel.clone()),
            usage: v1::usage_service_client::UsageServiceClient::new(channel.clone()),
            daemon: v1::daemon_service_client::DaemonServiceClient::new(channel.clone()),
            channel,
        }
    }

    /// Stores a provider's key.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn set_key(&mut self, provider: &str, secret: &str) {
        let request = v1::SetKeyRequest { provider: provider.to_owned(), secret: secret.to_owned() };
        self.vault.set_key(request).await.expect("the key is taken");
    }

    /// Makes a session with a model and the defaults; does not wait.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn create(&mut self, model: &str) -> v1::Session {
        let request = v1::CreateSessionRequest { model: model.to_owned(), ..Default::default() };
        self.create_with(request).await
    }

    /// Makes a session; does not wait.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn create_with(&mut self, request: v1::CreateSessionRequest) -> v1::Session {
        self.session.create_session(request).await.expect("the session is made").into_inner().session.expect("it is answered")
    }

    /// The session as it is.
    ///
    /// # Panics
    /// When there is none.
    pub async fn get(&mut self, id: &str) -> v1::Session {
        let request = v1::GetSessionRequest { session_id: id.to_owned() };
        self.session.get_session(request).await.expect("the session is there").into_inner().session.expect("it is answered")
    }

    /// The session as soon as it is as `wanted`. Its view follows its history: who has just read an event may be a moment ahead of it.
    ///
    /// # Panics
    /// When it does not become so.
    pub async fn get_when(&mut self, id: &str, what: &str, wanted: impl Fn(&v1::Session) -> bool) -> v1::Session {
        let mut watch = self.session.watch_sessions(v1::WatchSessionsRequest {}).await.expect("sessions are watched").into_inner();
        within(what, PATIENCE, async {
            loop {
                let item = watch.message().await.expect("the watch does not break").expect("nor end").item;
                if let Some(v1::watch_sessions_response::Item::Changed(session)) = item
                    && session.id == id
                    && wanted(&session)
                {
                    return session;
                }
            }
        })
        .await
    }

    /// All sessions.
    ///
    /// # Panics
    /// When the daemon does not answer.
    pub async fn list(&mut self) -> Vec<v1::Session> {
        self.session.list_sessions(v1::ListSessionsRequest {}).await.expect("sessions are listed").into_inner().sessions
    }

    /// Prompts a session; waits until its agent has the prompt.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn prompt(&mut self, id: &str, text: &str) -> String {
        let request = v1::PromptRequest { session_id: id.to_owned(), text: text.to_owned(), ..Default::default() };
        self.session.prompt(request).await.expect("the prompt is taken").into_inner().message_id
    }

    /// Stops a session and waits for it.
    ///
    /// # Panics
    /// When it cannot be stopped.
    pub async fn stop(&mut self, id: &str) {
        let request = v1::StopSessionRequest { session_id: id.to_owned(), grace_period: None };
        self.session.stop_session(request).await.expect("the session stops");
    }

    /// Gives a session a new instance; does not wait.
    ///
    /// # Panics
    /// When it cannot be resumed.
    pub async fn resume(&mut self, id: &str) {
        let request = v1::ResumeSessionRequest { session_id: id.to_owned() };
        self.session.resume_session(request).await.expect("the session is resumed");
    }

    /// Removes a session and waits for it.
    ///
    /// # Panics
    /// When it cannot be removed.
    pub async fn remove(&mut self, id: &str) {
        let request = v1::RemoveSessionRequest { session_id: id.to_owned() };
        self.session.remove_session(request).await.expect("the session is removed");
    }

    /// Answers a permission request.
    ///
    /// # Panics
    /// When the answer is refused.
    pub async fn permit(&mut self, id: &str, request_id: &str, response: v1::PermissionResponse) {
        let request = v1::AnswerPermissionRequest {
            session_id: id.to_owned(),
            request_id: request_id.to_owned(),
            response: response.into(),
            by: "test".to_owned(),
            ..Default::default()
        };
        self.permission.answer_permission(request).await.expect("the answer is taken");
    }

    /// Follows a session's history from its beginning, letters included.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub async fn follow(&mut self, id: &str) -> Events {
        self.follow_after(id, 0).await
    }

    /// Follows a session's history from behind an event, letters included.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub async fn follow_after(&mut self, id: &str, after_seq: u64) -> Events {
        let request = v1::SubscribeRequest { session_id: id.to_owned(), after_seq, follow: true, deltas: true, client: "test".to_owned() };
        Events::new(self.event.subscribe(request).await.expect("the history is there").into_inner(), after_seq)
    }

    /// A session's whole history so far.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub async fn history(&mut self, id: &str) -> Vec<v1::Event> {
        let request = v1::SubscribeRequest { session_id: id.to_owned(), after_seq: 0, follow: false, deltas: false, client: String::new() };
        let stream = self.event.subscribe(request).await.expect("the history is there").into_inner();
        let mut events = Events::new(stream, 0);
        while events.next(PATIENCE).await.is_some() {}
        events.seen
    }

    /// A session that accepts prompts, with its events from the beginning.
    ///
    /// # Panics
    /// When it does not become active.
    pub async fn active(&mut self, model: &str) -> (String, Events) {
        let id = self.create(model).await.id;
        let mut events = self.follow(&id).await;
        events.until_ready().await;
        (id, events)
    }

    /// Prompts, and waits for the end of the turn.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn turn(&mut self, id: &str, events: &mut Events, text: &str) -> v1::TurnEndedEvent {
        self.prompt(id, text).await;
        events.until_turn_ended().await
    }
}

/// A bound for a call.
///
/// # Panics
/// When it is over.
pub async fn within<T>(what: &str, bound: Duration, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(bound, future).await.unwrap_or_else(|_| panic!("{what} took more than {bound:?}"))
}
