//! The effects of a session: steps of the ladder and their undoing. Each runs as a task and comes back to the actor as an input.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openagent_core::id::InstanceId;
use openagent_core::permission::PermissionRule;
use openagent_core::provider::{Provider, Route};
use openagent_core::secret::Secret;
use openagent_core::session::{Fault, Session, Step, WorkspaceSource};
use openagent_proto::sidecar as wire;

use super::Shared;
use super::admission::Permit;
use crate::driver::{InstanceSpec, Purpose};
use crate::sidecar::{Credentials, SidecarClient, SidecarError, registration_token};

/// Kind of the sealed record that holds the credentials of a session's sidecar.
pub const CREDENTIALS: &str = "sidecar-credentials";

/// What a step gives besides being done.
pub enum Yield {
    /// Nothing.
    Nothing,
    /// Room to run.
    Room(Permit),
    /// The one-time token of the created instance.
    Token(Secret),
    /// A registered connection.
    Connected(SidecarClient, Credentials),
}

/// What a step needs.
pub struct StepRun {
    /// What the session shares with others.
    pub shared: Arc<Shared>,
    /// The session's settings.
    pub session: Session,
    /// The instance.
    pub instance: InstanceId,
    /// The one-time token, from `create` to `register`.
    pub token: Option<Secret>,
    /// Of the sidecar of a prepared instance, which has registered already.
    pub claimed: Option<Credentials>,
    /// The connection, from `register` on.
    pub connected: Option<(SidecarClient, Credentials)>,
    /// Version of the next set of keys for this instance.
    pub keys_version: u64,
    /// The volumes hold what is to be kept.
    pub keeps_volumes: bool,
}

fn lost_thread() -> Fault {
    Fault::new("INTERNAL", "the ladder was climbed in the wrong order", "resume the session: openagent resume ID")
}

impl StepRun {
    /// At the foot of the ladder of a new session.
    #[must_use]
    pub const fn new(shared: Arc<Shared>, session: Session, instance: InstanceId) -> Self {
        Self { shared, session, instance, token: None, claimed: None, connected: None, keys_version: 0, keeps_volumes: false }
    }

    /// Does one step; gives what came of it and how long it took, in milliseconds.
    ///
    /// # Errors
    /// The step's fault.
    pub async fn run(&self, step: Step) -> (Result<Yield, Fault>, u64) {
        let started = Instant::now();
        let outcome = self.attempt(step).await;
        (outcome, u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    async fn attempt(&self, step: Step) -> Result<Yield, Fault> {
        let (driver, id) = (&self.shared.driver, &self.session.id);
        match step {
            // Asked for by the session itself, since it waits.
            Step::Admission => {}
            Step::Image => drop(driver.ensure_image().await?),
            Step::Volume => {
                if self.keeps_volumes {
                    self.find_volumes().await?;
                }
                driver.ensure_volumes(id).await?;
            }
            Step::Create => {
                let (token, token_sha256) = registration_token();
                let limits = self.session.limits;
                driver.create(InstanceSpec { session: id.clone(), instance: self.instance.clone(), token_sha256, limits }).await?;
                return Ok(Yield::Token(token));
            }
            // A prepared instance has an empty repository of its own, which its agent knows already.
            Step::Workspace if self.claimed.is_some() && self.session.workspace == WorkspaceSource::Empty => {}
            Step::Workspace => driver.fill_workspace(id, &self.instance, self.session.workspace.clone()).await?,
            Step::Start => driver.start(id, &self.instance).await?,
            Step::Register => {
                let (client, credentials) = self.connect().await?;
                let bytes = credentials.to_bytes();
                self.shared.vault.seal_record(CREDENTIALS, id, &bytes).await.map_err(|error| error.fault())?;
                return Ok(Yield::Connected(client, credentials));
            }
            Step::Keys => {
                let (client, credentials) = self.connected.as_ref().ok_or_else(|| SidecarError::Lost.fault())?;
                push_keys(&self.shared, &self.session, client, credentials, self.keys_version).await?;
            }
            Step::Agent => {
                let (client, _) = self.connected.as_ref().ok_or_else(|| SidecarError::Lost.fault())?;
                client.start(&self.start_agent()).await.map_err(|error| error.fault())?;
            }
        }
        Ok(Yield::Nothing)
    }

    /// A volume that is gone must not be replaced by an empty one in silence: the work would seem to be there.
    async fn find_volumes(&self) -> Result<(), Fault> {
        let missing = self.shared.driver.missing_volumes(&self.session.id).await?;
        if missing.is_empty() {
            return Ok(());
        }
        let message = format!("somebody removed what the session keeps: {}", missing.join(", "));
        Err(Fault::new("VOLUME_LOST", message, "its history can still be read: openagent logs ID; then remove it: openagent rm ID"))
    }

    /// A connection to the sidecar, which registers by it unless it has done so.
    ///
    /// # Errors
    /// The driver's or the sidecar's fault.
    pub async fn connect(&self) -> Result<(SidecarClient, Credentials), Fault> {
        let id = &self.session.id;
        let stream = match self.shared.driver.dial(id, &self.instance, Purpose::Control).await {
            Ok(stream) => stream,
            Err(mut fault) => {
                let logs = self.shared.driver.logs(id, &self.instance, 2_000).await;
                tracing::warn!(session = %id, logs, "the sidecar did not answer");
                if fault.hint.is_empty() {
                    "look at the daemon's log for what the sidecar said last".clone_into(&mut fault.hint);
                }
                return Err(fault);
            }
        };
        let client = SidecarClient::connect(stream, &self.shared.tasks).await.map_err(|error| error.fault())?;
        if let Some(known) = &self.claimed {
            let client = client.with_bearer(known.bearer.clone());
            client.health().await.map_err(|error| error.fault())?;
            return Ok((client, known.clone()));
        }
        let token = self.token.as_ref().ok_or_else(lost_thread)?;
        let credentials = client.register(id, token).await.map_err(|error| error.fault())?;
        Ok((client.with_bearer(credentials.bearer.clone()), credentials))
    }

    /// Everything that the agent is to know.
    #[must_use]
    pub fn start_agent(&self) -> wire::StartAgent {
        start_agent(&self.shared, &self.session)
    }

    /// Undoes steps, in the order given. Undoing must not fail for good: what cannot be undone now is found by its label later.
    pub async fn unwind(&self, steps: &[Step], grace: Duration) {
        for step in steps {
            for attempt in 1..=3 {
                match self.undo(*step, grace).await {
                    Ok(()) => break,
                    Err(fault) => {
                        tracing::warn!(session = %self.session.id, step = step.name(), attempt, %fault, "a step cannot be undone");
                        tokio::time::sleep(Duration::from_millis(200 * attempt)).await;
                    }
                }
            }
        }
    }

    async fn undo(&self, step: Step, grace: Duration) -> Result<(), Fault> {
        let (driver, id) = (&self.shared.driver, &self.session.id);
        match step {
            Step::Start => {
                if let Some((client, _)) = &self.connected
                    && client.shutdown(grace).await.is_ok()
                {
                    // The sidecar ends by itself within the grace period; what does not is ended by the driver below.
                    let _ = tokio::time::timeout(grace + Duration::from_secs(2), driver.ended(id, &self.instance)).await;
                }
                driver.stop(id, &self.instance, grace).await
            }
            Step::Create => {
                driver.remove(id, &self.instance).await?;
                self.shared.vault.remove_record(CREDENTIALS, id).await.map(drop).map_err(|error| error.fault())
            }
            Step::Volume => driver.remove_volumes(id).await,
            Step::Admission | Step::Image | Step::Workspace | Step::Register | Step::Keys | Step::Agent => Ok(()),
        }
    }
}

/// Everything that the agent of a session is to know.
#[must_use]
pub fn start_agent(shared: &Shared, session: &Session) -> wire::StartAgent {
    let own = session.model.split_once('/').map_or("", |(provider, _)| provider);
    let usable = |provider: &&Provider| provider.id == own || !provider.needs_key || shared.has_key(&provider.id);
    let allow = session.permission_rules.iter().chain(shared.rules.borrow().iter()).map(allow_rule).collect();
    wire::StartAgent {
        title: session.title_is_users.then(|| session.title.clone()),
        model: session.model.clone(),
        agent: session.agent.clone(),
        permission_mode: session.permission_mode.name().to_owned(),
        allow,
        providers: shared.catalogue.providers().iter().filter(usable).map(agent_provider).collect(),
        warm: false,
    }
}

/// Gives the sidecar the keys of the providers that it calls itself: all of them, so that a removed one is revoked.
///
/// # Errors
/// The sidecar's fault, or that a key cannot be read.
pub async fn push_keys(
    shared: &Shared,
    session: &Session,
    client: &SidecarClient,
    credentials: &Credentials,
    version: u64,
) -> Result<(), Fault> {
    let providers: Vec<&Provider> = shared.catalogue.providers().iter().filter(|provider| provider.route == Route::Direct).collect();
    if providers.is_empty() {
        return Ok(());
    }
    let mut keys = Vec::new();
    for provider in providers {
        let key = shared.vault.get(&provider.id).map_err(|error| error.fault())?;
        keys.extend(key.map(|key| (provider.id.clone(), key)));
    }
    client.update_keys(&session.id, credentials, version, &keys).await.map_err(|error| error.fault())
}

fn allow_rule(rule: &PermissionRule) -> wire::AllowRule {
    wire::AllowRule { permission: rule.permission.clone(), pattern: rule.pattern.clone() }
}

fn agent_provider(provider: &Provider) -> wire::AgentProvider {
    let route = match provider.route {
        Route::Host => "host",
        Route::Direct => "direct",
    };
    wire::AgentProvider {
        id: provider.id.clone(),
        name: provider.name.clone(),
        kind: provider.kind.name().to_owned(),
        route: route.to_owned(),
        base_url: provider.base_url.clone(),
        needs_key: provider.needs_key,
        models: provider
            .models
            .iter()
            .map(|model| wire::AgentModel {
                id: model.id.clone(),
                name: model.name.clone(),
                context: model.context,
                output: model.output,
                reasoning: model.reasoning,
                price: wire::AgentPrice {
                    input: model.price.input,
                    output: model.price.output,
                    cache_read: model.price.cache_read,
                    cache_write: model.price.cache_write,
                },
            })
            .collect(),
    }
}
