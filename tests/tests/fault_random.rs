//! Chance: sessions are used while things break in a random order, then everything comes to rest, and what must always hold is looked at.
//!
//! The schedule follows from a seed, which is printed. `OPENAGENT_TEST_SEED` repeats one (the machine's own timing is not repeated), `OPENAGENT_TEST_SECONDS` lets it
//! run for longer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use openagent_proto::v1;
use openagent_proto::v1::activity::Kind as Doing;
use openagent_proto::v1::event::Kind;
use openagent_tests::harness::client::{Clients, within};
use openagent_tests::harness::host::{MIB, SmallDisk};
use openagent_tests::harness::instance::Permissions;
use openagent_tests::harness::process::Process;
use openagent_tests::harness::witness::Witness;
use openagent_tests::harness::{CANARY, PATIENCE, World};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt;

const MODEL: &str = "scripted/scripted-large";

/// How long things break, if nobody says otherwise.
const SECONDS: u64 = 40;

/// Sessions at a time; more are made only in the place of removed ones.
const SESSIONS: usize = 6;

/// Calls that are under way at a time; further actions wait for one of them.
const CALLS_MAX: usize = 24;

/// Bound of every call, whatever breaks meanwhile: the daemon gives up on a silent sidecar before.
const CALL_BOUND: Duration = Duration::from_secs(120);

/// Free space below which the store takes no writes.
const RESERVE: u64 = 16 * MIB;

/// Random numbers that follow from a seed: `SplitMix64`.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least + 1))
    }
}

/// What happens next, and how often in a hundred.
#[derive(Debug, Clone, Copy)]
enum Action {
    Prompt,
    Answer,
    Abort,
    Stop,
    Resume,
    Remove,
    Rename,
    Leave,
    KillDaemon,
    RestartDaemon,
    HangDaemon,
    KillSidecar,
    KillAgent,
    HangSidecar,
    HangAgent,
    FillDisk,
    Reboot,
}

const ACTIONS: [(Action, u64); 17] = [
    (Action::Prompt, 30),
    (Action::Answer, 18),
    (Action::Abort, 4),
    (Action::Stop, 5),
    (Action::Resume, 12),
    (Action::Remove, 2),
    (Action::Rename, 4),
    (Action::Leave, 5),
    (Action::KillDaemon, 3),
    (Action::RestartDaemon, 2),
    (Action::HangDaemon, 2),
    (Action::KillSidecar, 3),
    (Action::KillAgent, 4),
    (Action::HangSidecar, 2),
    (Action::HangAgent, 2),
    (Action::FillDisk, 2),
    (Action::Reboot, 1),
];

/// A session as its users know it.
struct Known {
    witness: Witness,
    /// Messages of prompts that were taken, with their texts.
    taken: BTreeMap<String, String>,
    /// Texts of prompts of which nobody knows whether they were taken.
    unclear: BTreeSet<String>,
    /// The title that was given last, if that is known.
    title: Option<String>,
    /// Somebody may have removed it.
    leaving: bool,
}

/// What became of a call.
enum Done {
    Prompted { session: String, text: String, outcome: Result<String, Status> },
    Renamed { session: String, title: String, outcome: Result<(), Status> },
    Removed { session: String, outcome: Result<(), Status> },
    Other { what: &'static str, outcome: Result<(), Status> },
}

struct Story {
    // Dropped first: a folder with a disk in it cannot be removed.
    disk: SmallDisk,
    world: World,
    clients: Clients,
    chance: Chance,
    sessions: BTreeMap<String, Known>,
    calls: JoinSet<Done>,
    /// Processes that hang, and until when.
    hanging: Vec<(Process, Instant)>,
    full_until: Option<Instant>,
    prompts: u64,
    log: Log,
}

/// What was done so far; it is printed when the test fails.
struct Log {
    seed: u64,
    began: Instant,
    lines: Vec<String>,
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("OPENAGENT_TEST_SEED={}; what was done:\n{}", self.seed, self.lines.join("\n"));
        }
    }
}

/// A refusal must say why: with our own details, unless the connection itself broke.
fn must_say_why(what: &str, refusal: &Status) {
    let broke = matches!(refusal.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
        && refusal.get_details_error_info().is_none();
    if broke {
        assert!(
            std::error::Error::source(refusal).is_some() || refusal.message().contains("h2") || refusal.message().contains("transport"),
            "{what}: {refusal:?}"
        );
        return;
    }
    let info = refusal.get_details_error_info().unwrap_or_else(|| panic!("{what}: no details in {refusal:?}"));
    assert!(!info.reason.is_empty() && !refusal.message().is_empty() && !refusal.message().contains("panicked"), "{what}: {refusal:?}");
}

impl Story {
    async fn begun(seed: u64) -> Self {
        let mut world = World::light().await;
        world.write_config("[store]\nreserve = \"16MiB\"\n[daemon]\nmax_running = 5\n");
        let disk = SmallDisk::at(&world.path("state"), 256 * MIB);
        world.start().await;
        world.set_keys(CANARY).await;
        let clients = world.clients().await;
        let (sessions, calls) = (BTreeMap::new(), JoinSet::new());
        let log = Log { seed, began: Instant::now(), lines: vec![] };
        let mut story =
            Self { world, disk, clients, chance: Chance(seed), sessions, calls, hanging: vec![], full_until: None, prompts: 0, log };
        for _ in 0..SESSIONS {
            story.make().await;
        }
        story
    }

    fn note(&mut self, what: String) {
        let line = format!("{:>7} ms {what}", self.log.began.elapsed().as_millis());
        self.log.lines.push(line);
    }

    async fn make(&mut self) {
        // Never, pause soon, or stop soon.
        let (millis, action) = match self.chance.below(3) {
            0 => (0, v1::IdleAction::Pause),
            1 => (self.chance.below(1_500) + 200, v1::IdleAction::Pause),
            _ => (self.chance.below(1_500) + 200, v1::IdleAction::Stop),
        };
        let request = v1::CreateSessionRequest {
            model: MODEL.to_owned(),
            permission_mode: v1::PermissionMode::Ask.into(),
            idle_timeout: Some(Duration::from_millis(millis).try_into().expect("it is short")),
            idle_action: action.into(),
            ..Default::default()
        };
        let made = within("making a session", CALL_BOUND, self.clients.session.create_session(request)).await;
        let id = match made {
            Ok(made) => made.into_inner().session.expect("it is answered").id,
            Err(refusal) => return must_say_why("create", &refusal),
        };
        self.note(format!("made {id}"));
        let mut witness = Witness::of(&id);
        witness.connect(&mut self.clients).await;
        let known = Known { witness, taken: BTreeMap::new(), unclear: BTreeSet::new(), title: None, leaving: false };
        self.sessions.insert(id, known);
    }

    fn any(&mut self) -> Option<String> {
        let staying: Vec<String> = self.sessions.iter().filter(|(_, known)| !known.leaving).map(|(id, _)| id.clone()).collect();
        let place = self.chance.below(staying.len().max(1) as u64);
        staying.into_iter().nth(usize::try_from(place).unwrap_or_default())
    }

    fn choose(&mut self) -> Action {
        let mut left = self.chance.below(ACTIONS.iter().map(|(_, share)| share).sum());
        for (action, share) in ACTIONS {
            if left < share {
                return action;
            }
            left -= share;
        }
        Action::Prompt
    }

    /// Witnesses receive, and what was begun goes on, for this time.
    async fn watch(&mut self, time: Duration) {
        let all = self.sessions.values_mut().map(|known| known.witness.take_for(time));
        let all = async {
            futures::future::join_all(all).await;
            // Those that are cut off wait for nothing.
            std::future::pending::<()>().await;
        };
        let _over = tokio::time::timeout(time, all).await;
        self.gather();
        let now = Instant::now();
        self.hanging.retain(|(process, until)| {
            if now >= *until {
                process.signal(Signal::SIGCONT);
            }
            now < *until
        });
        if self.full_until.is_some_and(|until| now >= until) {
            self.disk.clear();
            self.full_until = None;
        }
    }

    fn gather(&mut self) {
        while let Some(done) = self.calls.try_join_next() {
            self.learn(done.expect("no call panics"));
        }
    }

    fn learn(&mut self, done: Done) {
        let refusal = match &done {
            Done::Prompted { outcome: Err(refusal), .. } => Some(("prompt", refusal)),
            Done::Renamed { outcome: Err(refusal), .. } => Some(("rename", refusal)),
            Done::Removed { outcome: Err(refusal), .. } => Some(("remove", refusal)),
            Done::Other { what, outcome: Err(refusal) } => Some((*what, refusal)),
            _ => None,
        };
        if let Some((what, refusal)) = refusal {
            must_say_why(what, refusal);
            self.note(format!("{what} refused: {}", refusal.message()));
        }
        match done {
            Done::Prompted { session, text, outcome } => {
                let Some(known) = self.sessions.get_mut(&session) else { return };
                match outcome {
                    Ok(message) => drop(known.taken.insert(message, text)),
                    Err(_) => drop(known.unclear.insert(text)),
                }
            }
            Done::Renamed { session, title, outcome } => {
                if let Some(known) = self.sessions.get_mut(&session) {
                    known.title = outcome.is_ok().then_some(title);
                }
            }
            Done::Removed { session, outcome: Ok(()) } => drop(self.sessions.remove(&session)),
            Done::Removed { .. } | Done::Other { .. } => {}
        }
    }

    /// A process of a session, if it has one now.
    fn process(&self, session: &str, agent: bool) -> Option<Process> {
        let (_, _, sidecar) = self.world.sidecars().into_iter().find(|(_, of, _)| of == session)?;
        if !agent {
            return Some(sidecar);
        }
        sidecar.family().into_iter().find(|process| process.command_line().join(" ").contains("serve --hostname 127.0.0.1"))
    }

    async fn act(&mut self, action: Action) {
        let Some(id) = self.any() else { return self.make().await };
        self.note(format!("{action:?} {id}"));
        match action {
            Action::Prompt => {
                self.prompts += 1;
                let number = self.prompts;
                let text = match self.chance.below(6) {
                    0 => format!("#slow 5 60 p{number}"),
                    1 | 2 => format!("#bash touch made-{number}"),
                    3 => format!("#question p{number}"),
                    _ => format!("#echo p{number} and some words more"),
                };
                let (mut clients, request) =
                    (self.clients.clone(), v1::PromptRequest { session_id: id.clone(), text: text.clone(), ..Default::default() });
                self.calls.spawn(async move {
                    let outcome = within("a prompt", CALL_BOUND, clients.session.prompt(request)).await;
                    Done::Prompted { session: id, text, outcome: outcome.map(|answer| answer.into_inner().message_id) }
                });
            }
            Action::Answer => self.answer(),
            Action::Abort => {
                let mut clients = self.clients.clone();
                self.calls.spawn(async move {
                    let outcome = within("abort", CALL_BOUND, clients.session.abort(v1::AbortRequest { session_id: id })).await;
                    Done::Other { what: "abort", outcome: outcome.map(drop) }
                });
            }
            Action::Stop => {
                let mut clients = self.clients.clone();
                let request = v1::StopSessionRequest { session_id: id, grace_period: None };
                self.calls.spawn(async move {
                    let outcome = within("stop", CALL_BOUND, clients.session.stop_session(request)).await;
                    Done::Other { what: "stop", outcome: outcome.map(drop) }
                });
            }
            Action::Resume => {
                let mut clients = self.clients.clone();
                self.calls.spawn(async move {
                    let outcome =
                        within("resume", CALL_BOUND, clients.session.resume_session(v1::ResumeSessionRequest { session_id: id })).await;
                    Done::Other { what: "resume", outcome: outcome.map(drop) }
                });
            }
            Action::Remove => {
                if let Some(known) = self.sessions.get_mut(&id) {
                    known.leaving = true;
                }
                let (mut clients, session) = (self.clients.clone(), id.clone());
                self.calls.spawn(async move {
                    let outcome =
                        within("remove", CALL_BOUND, clients.session.remove_session(v1::RemoveSessionRequest { session_id: id })).await;
                    Done::Removed { session, outcome: outcome.map(drop) }
                });
                self.make().await;
            }
            Action::Rename => {
                let (mut clients, title) = (self.clients.clone(), format!("title {}", self.chance.below(1_000)));
                if let Some(known) = self.sessions.get_mut(&id) {
                    known.title = None;
                }
                let request = v1::RenameSessionRequest { session_id: id.clone(), title: title.clone() };
                // At once: of two on their way nobody knows the last.
                let outcome = within("rename", CALL_BOUND, clients.session.rename_session(request)).await.map(drop);
                self.learn(Done::Renamed { session: id, title, outcome });
            }
            Action::Leave => {
                let known = self.sessions.get_mut(&id).expect("it was chosen among them");
                known.witness.disconnect();
                self.reconnect().await;
            }
            Action::KillDaemon => {
                self.world.kill().await;
                self.back().await;
            }
            Action::RestartDaemon => {
                self.world.stop().await;
                self.back().await;
            }
            Action::Reboot => {
                self.world.reboot().await;
                self.hanging.clear();
                self.back().await;
            }
            Action::HangDaemon => {
                let daemon = self.world.daemon_process().expect("it runs");
                let time = self.chance.millis(50, 700);
                daemon.signal(Signal::SIGSTOP);
                self.watch(time).await;
                daemon.signal(Signal::SIGCONT);
            }
            Action::KillSidecar | Action::KillAgent => {
                if let Some(process) = self.process(&id, matches!(action, Action::KillAgent)) {
                    process.signal(Signal::SIGKILL);
                }
            }
            Action::HangSidecar | Action::HangAgent => {
                let time = self.chance.millis(100, 4_000);
                if let Some(process) = self.process(&id, matches!(action, Action::HangAgent)) {
                    process.signal(Signal::SIGSTOP);
                    self.hanging.push((process, Instant::now() + time));
                }
            }
            Action::FillDisk => {
                if self.full_until.is_none() {
                    self.disk.fill(RESERVE - MIB);
                    self.full_until = Some(Instant::now() + self.chance.millis(200, 1_500));
                }
            }
        }
    }

    /// Answers what waits first, once or not at all, without being asked to remember it.
    fn answer(&mut self) {
        let mut clients = self.clients.clone();
        let (allow, place) = (self.chance.below(3) > 0, self.chance.below(8));
        self.calls.spawn(async move {
            let outcome = within("answers", CALL_BOUND, async {
                let pending = clients.permission.list_pending(v1::ListPendingRequest::default()).await?.into_inner().pending;
                let place = usize::try_from(place).unwrap_or_default() % pending.len().max(1);
                match pending.into_iter().nth(place) {
                    Some(pending) => respond(&mut clients, pending, allow).await,
                    None => Ok(()),
                }
            });
            Done::Other { what: "answer", outcome: outcome.await }
        });
    }

    async fn back(&mut self) {
        for known in self.sessions.values_mut() {
            known.witness.until_broken().await;
        }
        self.world.start().await;
        self.clients = self.world.clients().await;
        self.reconnect().await;
    }

    async fn reconnect(&mut self) {
        let ids: BTreeSet<String> = self.clients.list().await.into_iter().map(|session| session.id).collect();
        for (id, known) in &mut self.sessions {
            if ids.contains(id) && !known.leaving && !known.witness.is_connected() {
                known.witness.connect(&mut self.clients).await;
            }
        }
    }

    /// Nothing breaks any more; what was begun ends.
    async fn calm(&mut self) {
        self.hanging.drain(..).for_each(|(process, _)| process.signal(Signal::SIGCONT));
        self.disk.clear();
        self.full_until = None;
        let deadline = Instant::now() + CALL_BOUND;
        while !self.calls.is_empty() {
            assert!(Instant::now() < deadline, "{} calls do not end", self.calls.len());
            self.watch(Duration::from_millis(20)).await;
            self.settle_requests().await;
        }
        let listed = self.clients.list().await;
        for (id, known) in &self.sessions {
            let is_there = listed.iter().any(|session| session.id == *id);
            assert!(is_there || known.leaving, "session {id} was made and is gone");
        }
        self.sessions.retain(|id, known| {
            let is_there = listed.iter().any(|session| session.id == *id);
            is_there && !known.leaving
        });
        for session in &listed {
            if !self.sessions.contains_key(&session.id) {
                self.clients.remove(&session.id).await;
            }
        }
    }

    /// Whatever is asked is refused.
    async fn settle_requests(&mut self) {
        let listed = self.clients.permission.list_pending(v1::ListPendingRequest::default()).await;
        for pending in listed.map(|listed| listed.into_inner().pending).unwrap_or_default() {
            if let Err(refusal) = respond(&mut self.clients, pending, false).await {
                must_say_why("answer", &refusal);
            }
        }
    }

    /// Brings a session to rest with a ready agent.
    async fn rest(&mut self, id: &str) {
        let deadline = Instant::now() + CALL_BOUND;
        loop {
            let session = self.clients.get(id).await;
            let doing = session.activity.and_then(|activity| activity.kind);
            match session.status() {
                v1::SessionStatus::Error => {
                    let fault = session.fault.clone().expect("an error says why");
                    assert!(!fault.code.is_empty() && !fault.message.is_empty() && !fault.hint.is_empty(), "{fault:?}");
                    self.clients.resume(id).await;
                }
                v1::SessionStatus::Stopped => self.clients.resume(id).await,
                v1::SessionStatus::Idle => return,
                v1::SessionStatus::Active if session.step.is_empty() && session.unreachable_since.is_none() => {
                    if matches!(doing, Some(Doing::Quiet(_) | Doing::Done(_) | Doing::Failed(_))) {
                        return;
                    }
                }
                _ => {}
            }
            assert!(Instant::now() < deadline, "{id} does not come to rest: {session:#?}");
            self.settle_requests().await;
            self.watch(Duration::from_millis(20)).await;
        }
    }

    async fn judge(&mut self, wanted: &Permissions) {
        self.reconnect().await;
        let ids: Vec<String> = self.sessions.keys().cloned().collect();
        for id in &ids {
            self.rest(id).await;
            self.reconnect().await;
            // Held in its turn, so that it does not become idle while it is looked at.
            let answered = self.clients.session.prompt(v1::PromptRequest {
                session_id: id.clone(),
                text: "#wait last".to_owned(),
                ..Default::default()
            });
            let answered = within("a prompt after all", PATIENCE, answered).await;
            let message = answered.unwrap_or_else(|refusal| panic!("{id} takes no prompt: {refusal:?}")).into_inner().message_id;
            let found = Permissions::of(&self.world, id).await;
            found.must_not_be_wider_than(wanted);
            self.world.open_gate(id, "last").await;
            let known = self.sessions.get_mut(id).expect("it is ours");
            known.taken.insert(message.clone(), "#wait last".to_owned());
            // The end of that prompt's turn, not of an earlier one that the witness has still to hear of.
            let mut begun = false;
            known
                .witness
                .until("the end of the last turn", |kind| match kind {
                    Kind::Message(told) if told.parent_id == message => {
                        begun = true;
                        None
                    }
                    Kind::TurnEnded(end) if begun => Some(end.outcome()),
                    _ => None,
                })
                .await;
            let history = known.witness.judge(&mut self.clients).await;
            check(id, known, &history);
            if let Some(title) = &known.title {
                assert_eq!(&self.clients.get(id).await.title, title, "{id} was renamed");
            }
        }
        self.world.until_no_orphans(PATIENCE).await;
        let verified = self.world.cli(&["daemon", "verify"]).await;
        assert!(verified.status.success(), "{verified:?}");
    }
}

async fn respond(clients: &mut Clients, pending: v1::Pending, allow: bool) -> Result<(), Status> {
    match pending.request {
        Some(v1::pending::Request::Permission(request)) => {
            let response = if allow { v1::PermissionResponse::Once } else { v1::PermissionResponse::Reject };
            let answer = v1::AnswerPermissionRequest {
                session_id: pending.session_id,
                request_id: request.id,
                response: response.into(),
                ..Default::default()
            };
            clients.permission.answer_permission(answer).await.map(drop)
        }
        Some(v1::pending::Request::Question(request)) => {
            let answer =
                v1::AnswerQuestionRequest { session_id: pending.session_id, request_id: request.id, dismiss: true, ..Default::default() };
            clients.permission.answer_question(answer).await.map(drop)
        }
        None => Ok(()),
    }
}

/// Every prompt that was taken is in the history, once; none of the others is there twice.
fn check(id: &str, known: &Known, history: &[v1::Event]) {
    let users: BTreeSet<&str> = history
        .iter()
        .filter_map(|event| match &event.kind {
            Some(Kind::Message(message)) if message.role() == v1::Role::User => Some(message.id.as_str()),
            _ => None,
        })
        .collect();
    let mut texts: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for event in history {
        if let Some(Kind::Part(part)) = &event.kind
            && users.contains(part.message_id.as_str())
            && let Some(v1::part::Body::Text(text)) = &part.body
        {
            texts.entry(text.text.as_str()).or_default().insert(part.message_id.as_str());
        }
    }
    for (message, text) in &known.taken {
        assert!(users.contains(message.as_str()), "{id}: prompt {text:?} was taken as {message} and is lost");
        assert_eq!(texts.get(text.as_str()).map(BTreeSet::len), Some(1), "{id}: prompt {text:?}");
    }
    for text in &known.unclear {
        assert!(texts.get(text.as_str()).map_or(0, BTreeSet::len) <= 1, "{id}: prompt {text:?} was taken twice");
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test]
async fn whatever_breaks_in_whatever_order_nothing_is_lost_and_every_session_goes_on() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set").as_nanos();
    let seed = number("OPENAGENT_TEST_SEED").unwrap_or(u64::try_from(now % u128::from(u32::MAX)).expect("it is small"));
    let time = Duration::from_secs(number("OPENAGENT_TEST_SECONDS").unwrap_or(SECONDS));
    println!("OPENAGENT_TEST_SEED={seed}");
    let mut story = Story::begun(seed).await;
    let first = story.sessions.keys().next().expect("some were made").clone();
    story.rest(&first).await;
    story.clients.prompt(&first, "#wait begun").await;
    let wanted = Permissions::of(&story.world, &first).await;
    story.world.open_gate(&first, "begun").await;

    let end = Instant::now() + time;
    while Instant::now() < end {
        let action = story.choose();
        story.act(action).await;
        let pause = story.chance.millis(1, 120);
        story.watch(pause).await;
        while story.calls.len() >= CALLS_MAX {
            story.watch(Duration::from_millis(20)).await;
        }
    }
    story.calm().await;
    story.judge(&wanted).await;
    let taken: usize = story.sessions.values().map(|known| known.taken.len()).sum();
    let unclear: usize = story.sessions.values().map(|known| known.unclear.len()).sum();
    println!("{} things done; of prompts of the sessions at the end {taken} were taken, {unclear} not or perhaps", story.log.lines.len());
    let Story { world, disk, .. } = story;
    world.end().await;
    drop(disk);
}
