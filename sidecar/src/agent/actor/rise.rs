//! Bringing the agent up, as a job beside the actor, which meanwhile hears commands and can give it up by dropping it: the processes go with it.
//!
//! ```text
//! nothing ── prepare, start ──► server ──┬── conversation, events ──────────────────────► Up
//!                                        └── throwaway prompt ──► Warm ── take over ──────► Up
//!                                                                   └── fails: end, then from nothing
//! ```
//!
//! Warm: OpenCode knows the workspace, with the repository that was made for it, and has had its slow first prompt there, since most of that cost is
//! the directory's and not the process's. The repository is then put aside, because the workspace is filled while nobody looks. At the take-over it
//! is put back and OpenCode goes on with what it knows; or the workspace has got a repository, or files that OpenCode reads only once, and it is
//! told to look at it anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openagent_core::provider::split_model;
use openagent_proto::sidecar::{ErrorCode, StartAgent};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::{EVENTS_MAX, Up, failed, process_error};
use crate::agent::Condition;
use crate::agent::opencode::client::{Client, ClientError};
use crate::agent::opencode::config::{Config, Endpoint, config};
use crate::agent::opencode::feed::{self, Feed};
use crate::agent::opencode::process::{self, Server, Workspace};
use crate::agent::opencode::translate::Snapshot;
use crate::control::ApiError;
use crate::model::ModelProxy;
use crate::settings::Settings;
use crate::task::{Task, Tasks};

/// Time for the event stream after the server is ready.
const FEED_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for a warm agent to be taken over: 0.1 s are usual. Beyond, a new one is started instead.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(10);

/// The conversation of the throwaway prompt. It does not exist before or after.
const REHEARSAL: &str = "ses_rehearsal";

/// The major version whose events and calls are known.
const MAJOR: &str = "1";

/// A server that has had its first prompt and works for no session.
pub(super) struct Warm {
    pub(super) server: Server,
    pub(super) version: String,
    client: Client,
    config: Config,
    endpoint: Endpoint,
}

/// What became of a start.
pub(super) enum Risen {
    Warm(Box<Warm>),
    /// With what happened before it was listened to.
    Up(Box<Up>, Box<Missed>),
}

/// What OpenCode says when it is asked: durable events that may have been missed, and the state that it does not repeat.
pub(super) struct Missed {
    pub(super) history: Option<Result<Vec<Value>, ClientError>>,
    pub(super) snapshot: Result<Snapshot, ClientError>,
}

impl Missed {
    /// Asks; without `known`, the last known sequence numbers, for the state alone.
    pub(super) async fn read(client: &Client, session: &str, known: Option<&BTreeMap<String, u64>>) -> Box<Self> {
        let history = match known {
            Some(known) => Some(client.history(known).await),
            None => None,
        };
        // The state is read last: it is then at least as new as the history.
        Box::new(Self { history, snapshot: client.snapshot(session).await })
    }
}

/// Everything that a start needs.
pub(super) struct Rise {
    pub(super) settings: Arc<Settings>,
    pub(super) models: ModelProxy,
    pub(super) condition: watch::Sender<Condition>,
    pub(super) tasks: Tasks,
    pub(super) start: StartAgent,
    pub(super) known: BTreeMap<String, u64>,
}

impl Rise {
    /// Brings the agent up, from a warm one if there is one that fits.
    pub(super) async fn run(self, warm: Option<Box<Warm>>) -> Result<Risen, ApiError> {
        if let Some(warm) = warm {
            let mut warm = *warm;
            if self.fits(&warm) {
                match tokio::time::timeout(TAKE_OVER_TIMEOUT, self.take_over(&warm.client)).await {
                    Ok(Ok(link)) => return Ok(self.up(warm.server, warm.client, warm.version, link).await),
                    Ok(Err(error)) => tracing::warn!(error = error.message, "the warm agent could not be taken over"),
                    Err(_) => tracing::warn!("the warm agent was not taken over in time"),
                }
                warm.server.kill().await;
            } else {
                warm.server.end().await;
            }
        }
        self.cold().await
    }

    async fn cold(&self) -> Result<Risen, ApiError> {
        let endpoint = self.models.configure(&self.start.providers);
        let config = self.config(&endpoint)?;
        self.step("the workspace is made ready");
        // What an earlier process left running, also one of an earlier sidecar, would work beside the new one.
        let (workspace, ()) = tokio::try_join!(process::prepare(&self.settings), process::sweep(&self.settings)).map_err(process_error)?;
        self.step("OpenCode is starting");
        let server = process::start(&self.settings, &config, &self.tasks).await.map_err(process_error)?;
        self.condition.send_modify(|condition| condition.running = true);
        self.step("OpenCode is checked");
        let client = Client::new(server.address.clone(), server.password.clone());
        let version = client.version().await.map_err(|error| failed(&error))?;
        if version.split('.').next() != Some(MAJOR) {
            let message =
                format!("OpenCode {version} is not supported: OpenAgent needs OpenCode {MAJOR}.x; `cargo xtask setup` installs it");
            return Err(ApiError::new(ErrorCode::AgentUnavailable, message));
        }
        client.check_config().await.map_err(|error| failed(&error))?;
        if self.start.warm {
            self.step("OpenCode has its first prompt");
            self.rehearse(&client, workspace).await?;
            return Ok(Risen::Warm(Box::new(Warm { server, version, client, config, endpoint })));
        }
        let (link, ()) = tokio::try_join!(self.listen(&client), self.converse(&client))?;
        Ok(self.up(server, client, version, link).await)
    }

    fn config(&self, endpoint: &Endpoint) -> Result<Config, ApiError> {
        config(&self.start, &self.settings.workspace, endpoint).map_err(|error| ApiError::new(ErrorCode::InvalidRequest, error.to_string()))
    }

    /// Whether the warm agent is configured as this start wants it.
    fn fits(&self, warm: &Warm) -> bool {
        self.config(&warm.endpoint).is_ok_and(|config| config.serves_as(&warm.config))
    }

    /// The throwaway prompt. Whatever it leaves behind is removed.
    async fn rehearse(&self, client: &Client, workspace: Workspace) -> Result<(), ApiError> {
        let model = split_model(&self.start.model).ok_or_else(|| ApiError::new(ErrorCode::InvalidRequest, "the model has no provider"))?;
        self.models.rehearse(true);
        let directory = self.settings.workspace.to_string_lossy();
        let rehearsed = async {
            client.create_session(REHEARSAL, &directory).await?;
            // With a title it asks for none.
            client.rename(REHEARSAL, "Rehearsal").await?;
            client.converse(REHEARSAL, "Say that you are ready.", &self.start.agent, model).await?;
            client.delete_session(REHEARSAL).await
        };
        let rehearsed = rehearsed.await;
        self.models.rehearse(false);
        rehearsed.map_err(|error| failed(&error))?;
        if workspace != Workspace::Changed {
            process::put_aside(&self.settings).await.map_err(process_error)?;
        }
        Ok(())
    }

    async fn take_over(&self, client: &Client) -> Result<Link, ApiError> {
        self.step("the workspace is made ready");
        let ready = async {
            if process::prepare(&self.settings).await.map_err(process_error)? != Workspace::Kept {
                client.forget_workspace().await.map_err(|error| failed(&error))?;
            }
            self.converse(client).await
        };
        // The events are those of all directories, so that they do not wait for this one.
        let (link, ()) = tokio::try_join!(self.listen(client), ready)?;
        Ok(link)
    }

    /// The session's conversation.
    async fn converse(&self, client: &Client) -> Result<(), ApiError> {
        let (session, directory) = (self.settings.session.as_str(), self.settings.workspace.to_string_lossy());
        client.create_session(session, &directory).await.map_err(|error| failed(&error))?;
        match &self.start.title {
            Some(title) => client.rename(session, title).await.map_err(|error| failed(&error)),
            None => Ok(()),
        }
    }

    /// The events from now on.
    async fn listen(&self, client: &Client) -> Result<Link, ApiError> {
        let (told, mut events) = mpsc::channel(EVENTS_MAX);
        let feed = self.tasks.spawn("agent events", feed::run(client.clone(), told));
        let connected = tokio::time::timeout(FEED_TIMEOUT, async {
            loop {
                match events.recv().await {
                    Some(Feed::Connected) => return true,
                    Some(_) => {}
                    None => return false,
                }
            }
        });
        if connected.await != Ok(true) {
            return Err(ApiError::new(ErrorCode::AgentFailed, "OpenCode's events cannot be read"));
        }
        Ok(Link { events, feed })
    }

    async fn up(&self, server: Server, client: Client, version: String, link: Link) -> Risen {
        self.step("what happened meanwhile is read");
        let missed = Missed::read(&client, self.settings.session.as_str(), Some(&self.known)).await;
        let Link { events, feed } = link;
        Risen::Up(Box::new(Up { server, client, version, events, feed, reading: None }), missed)
    }

    fn step(&self, step: &'static str) {
        self.condition.send_modify(|condition| condition.step = step);
    }
}

struct Link {
    events: mpsc::Receiver<Feed>,
    feed: Task<()>,
}
