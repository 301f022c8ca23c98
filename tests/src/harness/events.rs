//! A followed history that checks what every history must hold: numbers are dense above the floor, ascend below it, and each event comes once.

use std::collections::HashMap;
use std::time::Duration;

use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_proto::v1::subscribe_response::Item;
use tonic::Streaming;

use super::PATIENCE;

/// A history as it is followed.
pub struct Events {
    stream: Streaming<v1::SubscribeResponse>,
    last: u64,
    /// Events up to here were compacted; 0 where none were.
    pub floor: u64,
    /// Recorded events so far, since the last snapshot.
    pub seen: Vec<v1::Event>,
    /// Letters so far, by part.
    pub letters: HashMap<String, String>,
    /// Pieces in which letters came.
    pub pieces: usize,
    /// Everything that was there at the beginning has come.
    pub caught_up: bool,
}

/// The end of a turn.
pub(super) fn turn_ended(kind: &Kind) -> Option<v1::TurnEndedEvent> {
    if let Kind::TurnEnded(end) = kind { Some(end.clone()) } else { None }
}

/// A permission request.
pub(super) fn asked(kind: &Kind) -> Option<v1::PermissionRequest> {
    if let Kind::PermissionAsked(request) = kind { Some(request.clone()) } else { None }
}

impl Events {
    pub(super) fn new(stream: Streaming<v1::SubscribeResponse>, after: u64) -> Self {
        Self { stream, last: after, floor: 0, seen: vec![], letters: HashMap::new(), pieces: 0, caught_up: false }
    }

    /// The next item; `None` at the end of the stream.
    ///
    /// # Panics
    /// When nothing comes within `bound`, a number is missing or twice, or letters do not continue what came before.
    pub async fn next(&mut self, bound: Duration) -> Option<Item> {
        let next = tokio::time::timeout(bound, self.stream.message()).await;
        let next = next.unwrap_or_else(|_| panic!("nothing came for {bound:?} after {:#?}", self.tail()));
        let item = next.expect("the stream does not break")?.item.expect("an item is never empty");
        match &item {
            Item::Event(event) => {
                if event.seq > self.floor {
                    assert_eq!(event.seq, self.last.max(self.floor) + 1, "events above the floor are dense and come once");
                } else {
                    assert!(event.seq > self.last, "event {} comes behind event {}", event.seq, self.last);
                }
                self.last = event.seq;
                self.seen.push(event.clone());
            }
            Item::Delta(delta) => {
                let text = self.letters.entry(delta.part_id.clone()).or_default();
                if delta.offset_bytes == 0 {
                    text.clear();
                }
                assert_eq!(text.len() as u64, delta.offset_bytes, "letters continue what came before");
                text.push_str(&delta.text);
                self.pieces += 1;
            }
            Item::CaughtUp(_) => self.caught_up = true,
            Item::Snapshot(snapshot) => {
                self.floor = snapshot.floor_seq;
                self.last = 0;
                self.seen.clear();
            }
        }
        Some(item)
    }

    fn tail(&self) -> &[v1::Event] {
        &self.seen[self.seen.len().saturating_sub(8)..]
    }

    /// Waits for a recorded event that `wanted` takes.
    ///
    /// # Panics
    /// When it does not come.
    pub async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&Kind) -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            assert!(!left.is_zero(), "{what} did not come; last were {:#?}", self.tail());
            match self.next(left).await {
                Some(Item::Event(event)) => {
                    if let Some(found) = event.kind.as_ref().and_then(&mut wanted) {
                        return found;
                    }
                }
                Some(Item::Delta(_) | Item::CaughtUp(_) | Item::Snapshot(_)) => {}
                None => panic!("the stream ended before {what}; last were {:#?}", self.tail()),
            }
        }
    }

    /// Waits until the agent accepts prompts.
    ///
    /// # Panics
    /// When a step fails, or it does not become ready.
    pub async fn until_ready(&mut self) {
        self.until("a ready agent", |kind| match kind {
            Kind::Step(step) => {
                if let Some(v1::step_event::Outcome::Failed(fault)) = &step.outcome {
                    panic!("step {} failed: {} ({})", step.step, fault.message, fault.hint);
                }
                (step.step == "agent" && matches!(step.outcome, Some(v1::step_event::Outcome::Done(_)))).then_some(())
            }
            _ => None,
        })
        .await;
    }

    /// Waits for the end of the turn.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn until_turn_ended(&mut self) -> v1::TurnEndedEvent {
        self.until("the end of the turn", turn_ended).await
    }

    /// Waits for a permission request.
    ///
    /// # Panics
    /// When none comes.
    pub async fn until_asked(&mut self) -> v1::PermissionRequest {
        self.until("a permission request", asked).await
    }

    /// Waits for a status.
    ///
    /// # Panics
    /// When it does not come.
    pub async fn until_status(&mut self, status: v1::SessionStatus) -> v1::SessionEvent {
        self.until(status.as_str_name(), |kind| match kind {
            Kind::Session(event) if event.status() == status => Some(event.clone()),
            _ => None,
        })
        .await
    }

    /// The text of the last whole prose that the agent wrote.
    #[must_use]
    pub fn answer(&self) -> String {
        let mut assistant = std::collections::HashSet::new();
        let mut answer = String::new();
        for event in &self.seen {
            match &event.kind {
                Some(Kind::Message(message)) if message.role() == v1::Role::Assistant => {
                    assistant.insert(message.id.clone());
                }
                Some(Kind::Part(part)) if assistant.contains(&part.message_id) => {
                    if let Some(v1::part::Body::Text(text)) = &part.body
                        && text.done
                    {
                        answer.clone_from(&text.text);
                    }
                }
                _ => {}
            }
        }
        answer
    }

    /// The last state of every tool call, in order of their first.
    #[must_use]
    pub fn tools(&self) -> Vec<v1::ToolPart> {
        let mut order = vec![];
        let mut last = HashMap::new();
        for event in &self.seen {
            if let Some(Kind::Part(part)) = &event.kind
                && let Some(v1::part::Body::Tool(tool)) = &part.body
                && last.insert(part.id.clone(), tool.clone()).is_none()
            {
                order.push(part.id.clone());
            }
        }
        order.iter().filter_map(|id| last.remove(id)).collect()
    }
}
