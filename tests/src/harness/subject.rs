//! A session to which a fault happens: brought to a moment, followed by a witness, and judged afterwards.
//!
//! What every fault has in common is here: the session may do no more than before, nothing that was acknowledged is lost or told twice, no instance is left that nobody
//! owns, and the next prompt is answered, after a resume where the session has failed.

use openagent_proto::v1;
use openagent_proto::v1::event::Kind;

use super::client::{Clients, within};
use super::engine::AGENT;
use super::instance::Permissions;
use super::witness::Witness;
use super::{Driver, PATIENCE, World};

/// Model of every subject.
pub const MODEL: &str = "scripted/scripted-large";

/// Idle timeout of a session that is to be frozen, in seconds.
const IDLE_SECONDS: i64 = 1;

/// What a session is at when its fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Its agent is ready and has nothing to do.
    AtRest,
    /// Its agent writes.
    MidStream,
    /// A command of its agent runs.
    ToolRuns,
    /// Its agent has asked for permission.
    Asked,
    /// It is idle and frozen.
    Frozen,
}

impl Moment {
    /// Whether a turn is under way.
    #[must_use]
    pub const fn in_turn(self) -> bool {
        matches!(self, Self::MidStream | Self::ToolRuns | Self::Asked)
    }
}

/// The session.
pub struct Subject {
    /// Its id.
    pub id: String,
    /// Who follows it.
    pub witness: Witness,
    /// What it waits for, if its agent has asked.
    pub asked: Option<v1::PermissionRequest>,
    moment: Moment,
    before: Permissions,
    gates: u32,
}

impl World {
    /// Ends the wait of a `#wait NAME` prompt.
    ///
    /// # Panics
    /// When the workspace cannot be written.
    pub async fn open_gate(&self, session: &str, name: &str) {
        match self.driver() {
            Driver::Local => {
                std::fs::write(self.path("state/local").join(session).join("workspace").join(name), "").expect("the workspace is ours");
            }
            Driver::Docker => {
                self.container(session).await.until(AGENT, &format!("touch /workspace/{name}")).await;
            }
        }
    }

    /// Waits until a file is in a session's workspace.
    ///
    /// # Panics
    /// When it does not appear.
    pub async fn until_file(&self, session: &str, name: &str) {
        let path = self.path("state/local").join(session).join("workspace").join(name);
        match self.driver() {
            Driver::Local => {
                within(name, PATIENCE, async {
                    while !path.exists() {
                        tokio::task::yield_now().await;
                    }
                })
                .await;
            }
            Driver::Docker => drop(self.container(session).await.until(AGENT, &format!("test -e /workspace/{name}")).await),
        }
    }
}

impl Subject {
    /// A new session at a moment.
    ///
    /// # Panics
    /// When it does not get there.
    pub async fn at(world: &World, moment: Moment) -> Self {
        Self::made(world, moment, v1::CreateSessionRequest::default()).await
    }

    /// A session of this request at a moment; model, permissions and idle policy are the subject's.
    ///
    /// # Panics
    /// When it does not get there.
    pub async fn made(world: &World, moment: Moment, request: v1::CreateSessionRequest) -> Self {
        let mut clients = world.clients().await;
        let seconds = if moment == Moment::Frozen { IDLE_SECONDS } else { 0 };
        let request = v1::CreateSessionRequest {
            model: MODEL.to_owned(),
            permission_mode: v1::PermissionMode::Ask.into(),
            idle_timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
            idle_action: v1::IdleAction::Pause.into(),
            ..request
        };
        let id = clients.create_with(request).await.id;
        let mut witness = Witness::of(&id);
        witness.connect(&mut clients).await;
        witness.until_ready().await;
        // At work meanwhile: a frozen agent cannot be asked what it may do.
        clients.prompt(&id, "#wait begun").await;
        let before = Permissions::of(world, &id).await;
        world.open_gate(&id, "begun").await;
        assert_eq!(witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
        let mut subject = Self { id, witness, asked: None, moment, before, gates: 0 };
        subject.begin(world, &mut clients).await;
        subject
    }

    async fn begin(&mut self, world: &World, clients: &mut Clients) {
        match self.moment {
            Moment::AtRest => {}
            Moment::MidStream => {
                clients.prompt(&self.id, "#wait never").await;
                self.witness.until_letters().await;
            }
            Moment::ToolRuns => {
                clients.prompt(&self.id, "#bash touch runs; sleep 1000").await;
                let request = self.witness.until_asked().await;
                clients.permit(&self.id, &request.id, v1::PermissionResponse::Once).await;
                world.until_file(&self.id, "runs").await;
            }
            Moment::Asked => {
                clients.prompt(&self.id, "#bash touch made").await;
                self.asked = Some(self.witness.until_asked().await);
            }
            Moment::Frozen => {
                clients.get_when(&self.id, "a frozen instance", |session| state(session) == v1::InstanceState::Paused).await;
            }
        }
    }

    /// Waits until its fault is told, and is what it must be; nobody is told that the instance runs.
    ///
    /// # Panics
    /// When another is told, or none, or it does not say what to do.
    pub async fn failed(&self, clients: &mut Clients, code: &str, reason: v1::ExitReason) -> v1::Fault {
        let session = clients.get_when(&self.id, "an error", |session| session.status() == v1::SessionStatus::Error).await;
        let fault = session.fault.clone().expect("an error says why");
        assert_eq!((fault.code.as_str(), exit_reason(&session)), (code, reason), "{session:#?}");
        assert!(!fault.message.is_empty() && !fault.hint.is_empty(), "{fault:?}");
        assert!(session.unreachable_since.is_none());
        fault
    }

    /// Waits until it has lost its instance while nothing was asked of it: it rests, no error is told, and what ended the instance is.
    ///
    /// # Panics
    /// When it does not.
    pub async fn lost_in_its_sleep(&self, clients: &mut Clients, reason: v1::ExitReason) {
        let ended = |session: &v1::Session| state(session) == v1::InstanceState::Error && session.status() == v1::SessionStatus::Idle;
        let session = clients.get_when(&self.id, "the end of its instance", ended).await;
        assert_eq!((exit_reason(&session), session.fault.as_ref()), (reason, None), "{session:#?}");
        assert!(!session.instance.expect("it had one").exit_cause.is_empty());
    }

    /// What must hold when all is over: a prompt is answered (after a resume where the session has failed or is stopped), its permissions are no wider, nothing is lost,
    /// told twice or left over. Gives its history.
    ///
    /// # Panics
    /// When something does not.
    pub async fn goes_on(&mut self, world: &World) -> Vec<v1::Event> {
        let mut clients = world.clients().await;
        let status = clients.get(&self.id).await.status();
        if matches!(status, v1::SessionStatus::Error | v1::SessionStatus::Stopped) {
            clients.resume(&self.id).await;
        }
        if !self.witness.is_connected() {
            self.witness.connect(&mut clients).await;
        }
        self.gates += 1;
        let gate = format!("gate-{}", self.gates);
        let prompt = clients.prompt(&self.id, &format!("#wait {gate}")).await;
        Permissions::of(world, &self.id).await.must_not_be_wider_than(&self.before);
        world.open_gate(&self.id, &gate).await;
        self.witness
            .until("the prompt after the fault", |kind| matches!(kind, Kind::Message(message) if message.id == prompt).then_some(()))
            .await;
        assert_eq!(self.witness.until_turn_ended().await.outcome(), v1::TurnOutcome::Completed);
        let history = self.witness.judge(&mut clients).await;
        world.until_no_orphans(PATIENCE).await;
        history
    }

    /// As [`goes_on`](Self::goes_on), where the agent has ended: the turn that it was at, if any, is told as interrupted (aborted, where the agent could still say so), once; what it had asked is not asked any more, and
    /// was not done.
    ///
    /// # Panics
    /// When it was not.
    pub async fn goes_on_anew(&mut self, world: &World) -> Vec<v1::Event> {
        let history = self.goes_on(world).await;
        let interrupted = ends(&history).into_iter().filter(|end| *end != v1::TurnOutcome::Completed).count();
        assert_eq!(interrupted, usize::from(self.moment.in_turn()), "{:?} at {:?}", ends(&history), self.moment);
        if let Some(request) = &self.asked {
            let session = world.clients().await.get(&self.id).await;
            let blocked = matches!(session.activity.and_then(|activity| activity.kind), Some(v1::activity::Kind::Blocked(_)));
            assert!(!blocked, "nobody asks any more");
            let permit = v1::AnswerPermissionRequest {
                session_id: self.id.clone(),
                request_id: request.id.clone(),
                response: v1::PermissionResponse::Once.into(),
                ..Default::default()
            };
            let late = world.clients().await.permission.answer_permission(permit).await;
            assert!(late.is_err(), "an answer that is too late is refused");
        }
        history
    }
}

/// The outcomes of all turns of a history.
#[must_use]
pub fn ends(history: &[v1::Event]) -> Vec<v1::TurnOutcome> {
    let end = |event: &v1::Event| match &event.kind {
        Some(Kind::TurnEnded(end)) => Some(end.outcome()),
        _ => None,
    };
    history.iter().filter_map(end).collect()
}

/// State of a session's instance.
#[must_use]
pub fn state(session: &v1::Session) -> v1::InstanceState {
    session.instance.as_ref().map_or(v1::InstanceState::Unspecified, v1::Instance::state)
}

/// What ended a session's instance.
#[must_use]
pub fn exit_reason(session: &v1::Session) -> v1::ExitReason {
    session.instance.as_ref().map_or(v1::ExitReason::Unspecified, v1::Instance::exit_reason)
}
