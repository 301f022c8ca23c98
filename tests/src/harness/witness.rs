//! What a client has received of a session over all its connections, and whether a history keeps it: the judge of every fault test.
//!
//! A [`Witness`] is a client that lost its connection as often as the test wants: it goes on behind the last event that it has. What it has was acknowledged, so it
//! must be in every later history, as it was. Its checks: nothing acknowledged is lost or changed, nothing is told twice, numbers are dense (above the floor).

use std::collections::{BTreeMap, BTreeSet};

use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_proto::v1::subscribe_response::Item;
use openagent_proto::v1::{part, tool_part};
use tonic::Streaming;

use super::PATIENCE;
use super::client::{Clients, within};
use super::events::{asked, turn_ended};

/// A client of one session that remembers everything.
pub struct Witness {
    /// The session.
    pub session: String,
    stream: Option<Streaming<v1::SubscribeResponse>>,
    seen: BTreeMap<u64, v1::Event>,
    floor: u64,
    last: u64,
    /// Pieces of unfinished text so far.
    pub pieces: usize,
}

impl Witness {
    /// One that has seen nothing, and is not connected.
    #[must_use]
    pub fn of(session: &str) -> Self {
        Self { session: session.to_owned(), stream: None, seen: BTreeMap::new(), floor: 0, last: 0, pieces: 0 }
    }

    /// Connects, and goes on behind what it has.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub async fn connect(&mut self, clients: &mut Clients) {
        let request = v1::SubscribeRequest {
            session_id: self.session.clone(),
            after_seq: self.last,
            follow: true,
            deltas: true,
            ..Default::default()
        };
        self.stream = Some(clients.event.subscribe(request).await.expect("the history is there").into_inner());
    }

    /// What it has received, by number.
    #[must_use]
    pub const fn seen(&self) -> &BTreeMap<u64, v1::Event> {
        &self.seen
    }

    /// The next event; `None` when the connection has broken or ended.
    ///
    /// # Panics
    /// When it is not the one that must come next.
    async fn next(&mut self) -> Option<Option<Kind>> {
        let item = self.stream.as_mut().expect("it is connected").message().await;
        let Ok(Some(v1::SubscribeResponse { item: Some(item) })) = item else {
            self.stream = None;
            return None;
        };
        match item {
            Item::Event(event) => {
                if event.seq > self.floor {
                    assert_eq!(
                        event.seq,
                        self.last.max(self.floor) + 1,
                        "{}: events above the floor are dense and come once",
                        self.session
                    );
                }
                self.last = event.seq;
                let kind = event.kind.clone();
                self.seen.insert(event.seq, event);
                Some(kind)
            }
            Item::Delta(_) => {
                self.pieces += 1;
                Some(None)
            }
            Item::CaughtUp(_) => Some(None),
            Item::Snapshot(snapshot) => {
                self.floor = snapshot.floor_seq;
                self.seen.retain(|seq, _| *seq > snapshot.floor_seq);
                self.last = 0;
                Some(None)
            }
        }
    }

    /// Receives until an event that `wanted` takes.
    ///
    /// # Panics
    /// When it does not come, or the connection breaks before.
    pub async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&Kind) -> Option<T>) -> T {
        within(what, PATIENCE, async {
            loop {
                let next = self.next().await;
                let kind = next.unwrap_or_else(|| panic!("the connection broke before {what}; last were {:#?}", self.tail()));
                if let Some(found) = kind.as_ref().and_then(&mut wanted) {
                    return found;
                }
            }
        })
        .await
    }

    /// Receives until a piece of unfinished text.
    ///
    /// # Panics
    /// When none comes.
    pub async fn until_letters(&mut self) {
        let before = self.pieces;
        within("letters", PATIENCE, async {
            while self.pieces == before {
                assert!(self.next().await.is_some(), "the connection broke before letters; last were {:#?}", self.tail());
            }
        })
        .await;
    }

    /// Whether it is connected, as far as it has seen.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Number of the last event that it has.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Goes away.
    pub fn disconnect(&mut self) {
        self.stream = None;
    }

    /// Receives what comes until `bound` is over or the connection breaks.
    ///
    /// # Panics
    /// When it is not what must come next.
    pub async fn take_for(&mut self, bound: std::time::Duration) {
        let taking = async { while self.stream.is_some() && self.next().await.is_some() {} };
        // Either is good: the time is over, or the connection.
        let _ = tokio::time::timeout(bound, taking).await;
    }

    /// Receives what still comes until the connection breaks: what was on its way when the daemon was killed.
    ///
    /// # Panics
    /// When it does not break.
    pub async fn until_broken(&mut self) {
        within("the end of the connection", PATIENCE, async { while self.stream.is_some() && self.next().await.is_some() {} }).await;
    }

    /// Receives until a step of the start begins.
    ///
    /// # Panics
    /// When it does not begin.
    pub async fn until_step_begins(&mut self, name: &str) {
        self.until(&format!("the beginning of step {name}"), |kind| match kind {
            Kind::Step(step) if step.step == name && matches!(step.outcome, Some(v1::step_event::Outcome::Started(_))) => Some(()),
            _ => None,
        })
        .await;
    }

    /// Receives until the agent accepts prompts, whatever failed before.
    ///
    /// # Panics
    /// When it does not.
    pub async fn until_ready(&mut self) {
        self.until("a ready agent", |kind| match kind {
            Kind::Step(step) if step.step == "agent" && matches!(step.outcome, Some(v1::step_event::Outcome::Done(_))) => Some(()),
            _ => None,
        })
        .await;
    }

    /// Receives until the end of a turn.
    ///
    /// # Panics
    /// When none comes.
    pub async fn until_turn_ended(&mut self) -> v1::TurnEndedEvent {
        self.until("the end of the turn", turn_ended).await
    }

    /// Receives until a permission request.
    ///
    /// # Panics
    /// When none comes.
    pub async fn until_asked(&mut self) -> v1::PermissionRequest {
        self.until("a permission request", asked).await
    }

    fn tail(&self) -> Vec<&v1::Event> {
        self.seen.values().rev().take(8).collect()
    }

    /// Reads the whole history anew and judges it: everything that was received is in it as it was, nothing is in it twice. Gives it.
    ///
    /// # Panics
    /// When something is lost, changed, or twice.
    pub async fn judge(&self, clients: &mut Clients) -> Vec<v1::Event> {
        let request = v1::SubscribeRequest { session_id: self.session.clone(), ..Default::default() };
        let stream = clients.event.subscribe(request).await.expect("the history is there").into_inner();
        let mut events = super::events::Events::new(stream, 0);
        while events.next(PATIENCE).await.is_some() {}
        let kept: BTreeMap<u64, &v1::Event> = events.seen.iter().map(|event| (event.seq, event)).collect();
        for (seq, event) in self.seen.range(events.floor + 1..) {
            let found = kept.get(seq).unwrap_or_else(|| panic!("event {seq} was received and is lost: {event:#?}"));
            assert_eq!(*found, event, "event {seq} was received and is another now");
        }
        assert_none_twice(&events.seen);
        events.seen
    }
}

/// Panics when a history tells something twice that happens once: a request, its answer, the finish of a part, the cost of a step, or the same state of the same thing
/// in a row.
///
/// # Panics
/// When it does.
pub fn assert_none_twice(history: &[v1::Event]) {
    let mut once: BTreeSet<String> = BTreeSet::new();
    let mut states: BTreeMap<String, &Kind> = BTreeMap::new();
    for event in history {
        let Some(kind) = &event.kind else { continue };
        if matches!(kind, Kind::Gap(_)) {
            // Who lost count says so, and tells again what it still has.
            (once, states) = Default::default();
        }
        let happened = match kind {
            Kind::PermissionAsked(request) => Some(format!("the permission request {}", request.id)),
            Kind::PermissionAnswered(answer) => Some(format!("the answer to the permission request {}", answer.id)),
            Kind::QuestionAsked(request) => Some(format!("the question {}", request.id)),
            Kind::QuestionAnswered(answer) => Some(format!("the answer to the question {}", answer.id)),
            Kind::Part(part) if is_finished(part) => Some(format!("the finished part {}", part.id)),
            Kind::Subagent(subagent) => Some(format!("the subagent {}", subagent.conversation_id)),
            _ => None,
        };
        if let Some(happened) = happened {
            assert!(once.insert(happened.clone()), "{happened} is told twice, again by event {}", event.seq);
        }
        let state = match kind {
            Kind::Message(message) => Some(format!("message {}", message.id)),
            Kind::Part(part) => Some(format!("part {}", part.id)),
            Kind::Usage(usage) => Some(format!("cost of {}", usage.message_id)),
            _ => None,
        };
        if let Some(state) = state {
            let before = states.insert(state.clone(), kind);
            assert!(before != Some(kind), "the {state} is told twice as it is, again by event {}: {kind:?}", event.seq);
        }
    }
}

/// Whether nothing more comes of a part.
fn is_finished(part: &v1::Part) -> bool {
    match &part.body {
        Some(part::Body::Text(text)) => text.done,
        Some(part::Body::Reasoning(reasoning)) => reasoning.done,
        Some(part::Body::Tool(tool)) => matches!(tool.state, Some(tool_part::State::Completed(_) | tool_part::State::Error(_))),
        Some(part::Body::StepFinish(_)) => true,
        _ => false,
    }
}
