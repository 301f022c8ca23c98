//! The JSON form of events is the journal, the wire between sidecar and daemon, and the store. What is in the fixture was shipped: it must load for ever, and
//! be written in the same way.

use openagent_core::event::{Event, EventKind};

const SHIPPED: &str = include_str!("fixtures/events-v1.jsonl");

#[test]
fn every_shipped_event_loads_and_is_written_as_it_was() {
    for line in SHIPPED.lines() {
        let event: Event = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(serde_json::to_string(&event).expect("events can be written"), line);
    }
}

#[test]
fn the_fixture_holds_every_kind_of_event() {
    let kinds: std::collections::BTreeSet<String> = SHIPPED
        .lines()
        .map(|line| {
            let event: Event = serde_json::from_str(line).expect("the fixture loads");
            let name = serde_json::to_value(&event.kind).expect("events can be written")["kind"].as_str().map(str::to_owned);
            // A new kind of event fails to compile here until it is in the fixture.
            match event.kind {
                EventKind::Session { .. }
                | EventKind::Instance { .. }
                | EventKind::Step { .. }
                | EventKind::Agent { .. }
                | EventKind::Busy { .. }
                | EventKind::TurnEnded { .. }
                | EventKind::Title { .. }
                | EventKind::Message { .. }
                | EventKind::MessageRemoved { .. }
                | EventKind::Part { .. }
                | EventKind::PartRemoved { .. }
                | EventKind::Subagent { .. }
                | EventKind::PermissionAsked { .. }
                | EventKind::PermissionAnswered { .. }
                | EventKind::QuestionAsked { .. }
                | EventKind::QuestionAnswered { .. }
                | EventKind::Todo { .. }
                | EventKind::Diff { .. }
                | EventKind::Usage { .. }
                | EventKind::Terminal { .. }
                | EventKind::KeysUpdated { .. }
                | EventKind::AgentError { .. }
                | EventKind::Gap { .. }
                | EventKind::Unknown { .. } => name.expect("kinds have names"),
            }
        })
        .collect();
    assert_eq!(kinds.len(), 24, "{kinds:?}");
}
