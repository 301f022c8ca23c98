//! Everything that a real OpenCode 1.18.33 was recorded to say, translated.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use openagent_core::event::{Busy, EventKind, PartBody, Role, ToolState, TurnOutcome};
use openagent_core::permission::PermissionResponse;
use openagent_core::time::Timestamp;
use openagent_core::usage::Usage;
use openagent_sidecar::agent::opencode::translate::{Answer, Output, Snapshot, Translator};
use proptest::prelude::*;
use serde_json::{Value, json};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/opencode-1.18.33")
}

/// The payloads of a recorded stream.
fn stream(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
    events.map(|line| serde_json::from_str::<Value>(line).unwrap()).map(|event| event.get("payload").cloned().unwrap_or(event)).collect()
}

/// The first conversation that has no parent: by its creation, or by who is said to be busy first.
fn root(events: &[Value]) -> String {
    let created = events.iter().filter(|event| event["type"] == "session.created" && event["properties"]["info"]["parentID"].is_null());
    let named = created.chain(events).find_map(|event| event["properties"]["sessionID"].as_str());
    named.unwrap_or("ses_none").to_owned()
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(1_795_336_690_000 + millis)
}

struct Told {
    records: Vec<EventKind>,
    letters: BTreeMap<String, String>,
}

impl Told {
    fn take(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Record(kind) => self.records.push(kind),
                Output::Delta(delta) => {
                    let letters = self.letters.entry(delta.part.to_string()).or_default();
                    assert_eq!(delta.offset, letters.len() as u64, "letters of {} do not fit", delta.part);
                    letters.push_str(&delta.text);
                }
            }
        }
    }

    fn turns(&self) -> Vec<&TurnOutcome> {
        self.records.iter().filter_map(|kind| if let EventKind::TurnEnded { outcome } = kind { Some(outcome) } else { None }).collect()
    }

    /// The last form of each part.
    fn parts(&self) -> BTreeMap<String, (String, PartBody)> {
        let mut parts = BTreeMap::new();
        for kind in &self.records {
            match kind {
                EventKind::Part { part } => {
                    parts.insert(part.id.to_string(), (part.message.to_string(), part.body.clone()));
                }
                EventKind::PartRemoved { id, .. } => {
                    parts.remove(id.as_str());
                }
                _ => {}
            }
        }
        parts
    }

    fn tools(&self, name: &str) -> Vec<ToolState> {
        let of = |kind: &EventKind| match kind {
            EventKind::Part { part } => match &part.body {
                PartBody::Tool { tool, state } if tool == name => Some(state.clone()),
                _ => None,
            },
            _ => None,
        };
        self.records.iter().filter_map(of).collect()
    }

    fn usage(&self, only: impl Fn(&str) -> bool) -> Usage {
        let mut last = BTreeMap::new();
        for kind in &self.records {
            if let EventKind::Usage { message, usage, .. } = kind {
                last.insert(message.to_string(), *usage);
            }
        }
        let mut sum = Usage::default();
        last.iter().filter(|(message, _)| only(message)).for_each(|(_, usage)| sum.add(usage));
        sum
    }

    fn conversation_of(&self, message: &str) -> Option<String> {
        self.records.iter().find_map(|kind| match kind {
            EventKind::Message { message: known } if known.id.as_str() == message => Some(known.conversation.to_string()),
            _ => None,
        })
    }
}

fn tell_to(translator: &mut Translator, events: &[Value]) -> Told {
    let mut told = Told { records: Vec::new(), letters: BTreeMap::new() };
    for (n, event) in events.iter().enumerate() {
        told.take(translator.apply(event, at(n as i64 * 10)));
    }
    told.take(translator.tick(at(10_000_000)));
    told
}

fn tell(name: &str) -> Told {
    let events = stream(name);
    tell_to(&mut Translator::new(root(&events).parse().unwrap()), &events)
}

fn names(ending: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| name.ends_with(ending)).collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

#[test]
fn every_recorded_stream_is_known_and_closes_what_it_opens() {
    for name in names(".sse") {
        let told = tell(&name);
        for kind in &told.records {
            assert!(!matches!(kind, EventKind::Unknown { .. }), "{name}: {kind:?}");
            assert_eq!(serde_json::from_value::<EventKind>(serde_json::to_value(kind).unwrap()).unwrap(), *kind, "{name}");
        }
        let mut waiting = std::collections::BTreeSet::new();
        for kind in &told.records {
            match kind {
                EventKind::PermissionAsked { request } => assert!(waiting.insert(request.id.clone()), "{name}: asked twice"),
                EventKind::QuestionAsked { request } => assert!(waiting.insert(request.id.clone()), "{name}: asked twice"),
                EventKind::PermissionAnswered { id, .. } | EventKind::QuestionAnswered { id, .. } => {
                    assert!(waiting.remove(id), "{name}: {id} answered twice");
                }
                _ => {}
            }
        }
        assert!(waiting.is_empty(), "{name}: {waiting:?} wait for ever");
    }
}

#[test]
fn both_streams_of_a_recording_tell_the_same() {
    for name in names(".global.sse") {
        let other = name.replace(".global.", ".event.");
        let strip = |told: Told| {
            let mut records = told.records;
            for kind in &mut records {
                match kind {
                    EventKind::PermissionAsked { request } => request.asked_at = at(0),
                    EventKind::QuestionAsked { request } => request.asked_at = at(0),
                    _ => {}
                }
            }
            (records, told.letters)
        };
        // How often a running command is shown depends on the clock, which counts the doubled events here.
        let whole = |(records, letters): (Vec<EventKind>, _)| {
            let running = |kind: &EventKind| matches!(kind, EventKind::Part { part } if matches!(part.body, PartBody::Tool { state: ToolState::Running { .. }, .. }));
            (records.into_iter().filter(|kind| !running(kind)).collect::<Vec<_>>(), letters)
        };
        assert_eq!(whole(strip(tell(&name))), whole(strip(tell(&other))), "{name}");
    }
}

#[test]
fn the_final_parts_are_those_of_the_history() {
    for name in names(".messages.json").into_iter().filter(|name| !name.starts_with("v2-") && !name.starts_with("32-")) {
        let told = tell(&name.replace(".messages.json", ".event.sse"));
        let parts = told.parts();
        let history: Value = serde_json::from_str(&std::fs::read_to_string(folder().join(&name)).unwrap()).unwrap();
        for message in history.as_array().unwrap() {
            for part in message["parts"].as_array().unwrap() {
                let Some((of, body)) = parts.get(part["id"].as_str().unwrap()) else { panic!("{name}: {part} is missing") };
                assert_eq!(of, part["messageID"].as_str().unwrap());
                match body {
                    PartBody::Text { text, done, .. } | PartBody::Reasoning { text, done } => {
                        assert!(done, "{name}: {part}");
                        // A text whose stream broke is empty in OpenCode's history; ours keeps the letters that came.
                        let expected = part["text"].as_str().unwrap();
                        assert!(text == expected || expected.is_empty(), "{name}: {text:?} is not {expected:?}");
                    }
                    PartBody::Tool { tool, state } => {
                        assert_eq!(tool, part["tool"].as_str().unwrap());
                        match (state, part["state"]["status"].as_str().unwrap()) {
                            (ToolState::Completed { output, .. }, "completed") => {
                                assert_eq!(output, part["state"]["output"].as_str().unwrap())
                            }
                            (ToolState::Error { error, .. }, "error") => assert_eq!(error, part["state"]["error"].as_str().unwrap()),
                            (state, status) => panic!("{name}: {state:?} is not {status}"),
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn the_letters_of_a_part_are_its_text() {
    let told = tell("02-reasoning.global.sse");
    let parts = told.parts();
    assert!(told.letters.len() >= 2);
    for (id, letters) in &told.letters {
        let (_, PartBody::Text { text, .. } | PartBody::Reasoning { text, .. }) = &parts[id] else { panic!("{id}") };
        assert_eq!(letters, text);
    }
}

#[test]
fn each_turn_ends_exactly_once_and_as_it_did() {
    use TurnOutcome::{Aborted, Completed};
    let failed = |message: &str| TurnOutcome::Failed { message: message.to_owned() };
    for (name, expected) in [
        ("00-cold-first-prompt", vec![Completed]),
        ("01-plain", vec![Completed]),
        ("03-bash", vec![Completed]),
        ("08-permission-reject", vec![Completed]),
        ("09-permission-reject-with-message", vec![Completed]),
        ("11-question-reject", vec![Completed]),
        ("13-subagent", vec![Completed]),
        ("14-abort", vec![Aborted]),
        ("16-error-401", vec![failed("Incorrect API key provided: fake.")]),
        ("17-error-429-retry", vec![Completed]),
        ("18-error-500-retry", vec![Completed]),
        ("20-overflow-error", vec![Completed]),
        ("21-auto-compaction", vec![Completed, Completed]),
        ("22-manual-compaction", vec![Completed, Completed]),
        ("28-stream-error", vec![Completed]),
        ("35-error-500-until-given-up", vec![failed("The server had an error.")]),
        ("48-dispose-while-busy", vec![Aborted]),
        ("52-abort-parent-while-child-asks", vec![Completed]),
    ] {
        let told = tell(&format!("{name}.event.sse"));
        assert_eq!(told.turns(), expected.iter().collect::<Vec<_>>(), "{name}");
        assert!(
            matches!(told.records.iter().rfind(|kind| matches!(kind, EventKind::Busy { .. })), Some(EventKind::Busy { busy: Busy::Rest })),
            "{name}"
        );
    }
}

#[test]
fn usage_adds_up_to_what_opencode_says_of_the_session() {
    for name in ["01-plain", "02-reasoning", "04-edit", "12-todo", "13-subagent", "23-usage-cost"] {
        let events = stream(&format!("{name}.event.sse"));
        let root = root(&events);
        let told = tell(&format!("{name}.event.sse"));
        let totals = events
            .iter()
            .rev()
            .find(|event| event["type"] == "session.updated" && event["properties"]["sessionID"] == root.as_str())
            .unwrap();
        let totals = &totals["properties"]["info"];
        let sum = told.usage(|message| told.conversation_of(message).as_deref() == Some(root.as_str()));
        assert_eq!(json!(sum.tokens.input), totals["tokens"]["input"], "{name}");
        assert_eq!(json!(sum.tokens.output), totals["tokens"]["output"], "{name}");
        assert_eq!(json!(sum.tokens.cache_read), totals["tokens"]["cache"]["read"], "{name}");
        assert!((sum.cost_micros as f64 / 1e6 - totals["cost"].as_f64().unwrap()).abs() < 1e-5, "{name}");
        assert!(sum.cost_micros > 0, "{name}");
    }
}

#[test]
fn a_command_is_told_with_its_arguments_output_and_exit_code() {
    let told = tell("03-bash.event.sse");
    let states = told.tools("bash");
    assert_eq!(states.first(), Some(&ToolState::Pending));
    let Some(ToolState::Completed { input, output, exit_code, millis, .. }) = states.last() else { panic!("{states:?}") };
    assert!(input["command"].as_str().unwrap().starts_with("for i in 1 2 3"));
    assert_eq!((output.as_str(), *exit_code, *millis), ("line 1\nline 2\nline 3\nerr\n", Some(3), 1323));
}

#[test]
fn repeated_whole_outputs_of_a_command_are_thinned_and_the_newest_is_kept() {
    let root = "ses_a";
    let mut translator = Translator::new(root.parse().unwrap());
    let running = |n: usize| {
        json!({"type": "message.part.updated", "properties": {"part": {"id": "prt_a", "messageID": "msg_a", "sessionID": root, "type": "tool",
            "tool": "bash", "state": {"status": "running", "input": {"command": "make"}, "metadata": {"output": "x".repeat(n)}}}}})
    };
    let mut told = Told { records: Vec::new(), letters: BTreeMap::new() };
    for n in 1..=500 {
        told.take(translator.apply(&running(n), at(n as i64)));
    }
    assert_eq!(told.records.len(), 1);
    let due = translator.next_tick().unwrap();
    told.take(translator.tick(due));
    assert!(matches!(told.tools("bash").last(), Some(ToolState::Running { output, .. }) if output.len() == 500));
    assert_eq!((told.records.len(), translator.next_tick()), (2, None));
}

#[test]
fn an_edit_gives_its_diff_and_the_diff_of_the_turn() {
    let told = tell("04-edit.event.sse");
    assert!(
        told.tools("edit")
            .iter()
            .any(|state| matches!(state, ToolState::Completed { diff: Some(diff), .. } if diff.contains("+goodbye world")))
    );
    let diffs: Vec<_> =
        told.records.iter().filter_map(|kind| if let EventKind::Diff { files } = kind { Some(files) } else { None }).collect();
    assert_eq!(diffs.len(), 1, "the same diff is told once");
    assert_eq!((diffs[0][0].path.as_str(), diffs[0][0].additions, diffs[0][0].status.as_str()), ("hello.txt", 1, "modified"));
}

#[test]
fn a_permission_answer_carries_who_gave_it_and_how() {
    let events = stream("06-permission-once.event.sse");
    let mut translator = Translator::new(root(&events).parse().unwrap());
    let mut answered = None;
    for event in &events {
        for output in translator.apply(event, at(0)) {
            match output {
                Output::Record(EventKind::PermissionAsked { request }) => {
                    assert_eq!((request.permission.as_str(), request.title.as_str()), ("bash", "echo permitted-once"));
                    assert_eq!(request.always, ["echo *"]);
                    assert!(translator.waits(request.id.as_str(), true) && !translator.waits(request.id.as_str(), false));
                    let answer = Answer { by: "tui".into(), response: Some(PermissionResponse::Session), reason: None };
                    translator.expect_answer(request.id.as_str(), Some(answer));
                    assert!(!translator.waits(request.id.as_str(), true), "one answer is enough");
                }
                Output::Record(EventKind::PermissionAnswered { by, response, .. }) => answered = Some((by, response)),
                Output::Record(_) | Output::Delta(_) => {}
            }
        }
    }
    assert_eq!(answered, Some(("tui".to_owned(), PermissionResponse::Session)));
}

#[test]
fn an_edit_is_asked_with_its_diff() {
    let told = tell("38-edit-permission.event.sse");
    let asked =
        told.records.iter().find_map(|kind| if let EventKind::PermissionAsked { request } = kind { Some(request) } else { None }).unwrap();
    assert_eq!(asked.permission, "edit");
    assert!(asked.title.ends_with("hello.txt") && asked.diff.as_ref().unwrap().contains("+HELLO world"));
}

#[test]
fn a_subagent_has_its_own_conversation_and_its_unanswered_request_is_withdrawn() {
    let name = "52-abort-parent-while-child-asks.event.sse";
    let root = root(&stream(name));
    let told = tell(name);
    let subagents: Vec<_> = told.records.iter().filter(|kind| matches!(kind, EventKind::Subagent { .. })).collect();
    let [EventKind::Subagent { conversation, parent, title }] = subagents[..] else { panic!("{subagents:?}") };
    assert_eq!((parent.as_str(), title.as_str()), (root.as_str(), "Sub job (@general subagent)"));
    let asked =
        told.records.iter().find_map(|kind| if let EventKind::PermissionAsked { request } = kind { Some(request) } else { None }).unwrap();
    assert_eq!(asked.conversation, *conversation);
    let answers: Vec<_> = told.records.iter().filter(|kind| matches!(kind, EventKind::PermissionAnswered { .. })).collect();
    assert!(
        matches!(answers[..], [EventKind::PermissionAnswered { response: PermissionResponse::Reject, by, .. }] if by == "agent"),
        "{answers:?}"
    );
}

#[test]
fn a_refused_key_is_told_with_what_to_do() {
    let told = tell("16-error-401.event.sse");
    let errors: Vec<_> = told.records.iter().filter(|kind| matches!(kind, EventKind::AgentError { .. })).collect();
    let [EventKind::AgentError { name, status_code, hint, .. }] = errors[..] else { panic!("{errors:?}") };
    assert_eq!((name.as_str(), *status_code), ("APIError", Some(401)));
    assert!(hint.as_ref().unwrap().contains("openagent keys set fake"));
}

#[test]
fn each_failure_of_a_model_call_says_what_to_do() {
    for (status, message, hint) in [
        (json!(401), "no key is set for Acme", "set one with"),
        (json!(403), "forbidden", "refused the key"),
        (json!(429), "slow down", "wait"),
        (json!(500), "boom", "a fault of its own"),
        (json!(502), "the provider acme cannot be reached", "check its address"),
        (Value::Null, "Unable to connect", "check its address"),
    ] {
        let error = json!({"name": "APIError", "data": {"message": message, "statusCode": status}});
        let event = json!({"type": "session.error", "properties": {"sessionID": "ses_a", "error": error}});
        let outputs = Translator::new("ses_a".parse().unwrap()).apply(&event, at(0));
        let [Output::Record(EventKind::AgentError { hint: Some(told), .. })] = &outputs[..] else { panic!("{outputs:?}") };
        assert!(told.contains(hint), "{message}: {told}");
    }
}

#[test]
fn a_retry_is_told_with_its_time() {
    let told = tell("17-error-429-retry.event.sse");
    let retry = told.records.iter().find_map(|kind| match kind {
        EventKind::Busy { busy: Busy::Retrying { attempt, message, next_at } } => Some((*attempt, message.clone(), *next_at)),
        _ => None,
    });
    assert_eq!(retry, Some((1, "Rate limit reached for requests.".to_owned(), Timestamp::from_millis(1_795_336_726_788))));
}

#[test]
fn compaction_todo_title_and_files_are_told() {
    let told = tell("21-auto-compaction.event.sse");
    assert!(told.parts().values().any(|(_, body)| *body == PartBody::Compaction { auto: true }));
    assert!(
        told.records
            .iter()
            .any(|kind| matches!(kind, EventKind::Message { message } if message.summary && message.role == Role::Assistant))
    );
    let told = tell("12-todo.event.sse");
    assert!(
        told.records.iter().any(|kind| matches!(kind, EventKind::Todo { items } if items.len() == 2 && items[0].status == "in_progress"))
    );
    let titles: Vec<_> = told.records.iter().filter(|kind| matches!(kind, EventKind::Title { .. })).collect();
    assert!(matches!(titles[..], [EventKind::Title { title }] if title.starts_with("Fake title")), "{titles:?}");
    for name in ["46-image-part.event.sse", "51-read-image-attachment.event.sse"] {
        let told = serde_json::to_string(&tell(name).records).unwrap();
        assert!(!told.contains("base64,"), "{name}: contents of files are not kept");
    }
    assert!(
        tell("46-image-part.event.sse").parts().values().any(|(_, body)| matches!(body, PartBody::File { name, .. } if name == "a.png"))
    );
}

#[test]
fn whoever_joins_in_the_middle_of_a_text_gets_it_whole_at_its_end() {
    let told = tell("41-reconnect-mid-stream.event.sse");
    assert!(told.parts().values().all(|(_, body)| !matches!(body, PartBody::Text { done: false, .. })));
    let events = stream("01-plain.event.sse");
    let mut translator = Translator::new(root(&events).parse().unwrap());
    let letters = events.iter().position(|event| event["type"] == "message.part.delta").unwrap();
    let mut told = tell_to(&mut translator, &events[..letters + 3]);
    let before = told.letters.clone();
    translator.stream_broke();
    let rest = tell_to(&mut translator, &events[letters + 5..]);
    assert!(rest.letters.is_empty(), "letters after a gap have no place");
    told.records.extend(rest.records);
    let (id, so_far) = before.first_key_value().unwrap();
    assert!(
        matches!(&told.parts()[id].1, PartBody::Text { text, done: true, .. } if text.starts_with(so_far.as_str()) && text.len() > so_far.len())
    );
    assert_eq!(told.turns(), [&TurnOutcome::Completed]);
}

#[test]
fn a_gap_is_closed_from_the_durable_log_without_telling_anything_twice() {
    let events = stream("03-bash.global.sse");
    let root = root(&events);
    let durable = |event: &Value| {
        (event["type"] == "sync").then(|| {
            let event = &event["syncEvent"];
            json!({"id": event["id"], "type": event["type"], "seq": event["seq"], "aggregate_id": event["aggregateID"], "data": event["data"]})
        })
    };
    let whole = tell("03-bash.global.sse");
    for cut in (0..events.len()).step_by(7) {
        let mut translator = Translator::new(root.parse().unwrap());
        let mut told = tell_to(&mut translator, &events[..cut]);
        translator.stream_broke();
        // Everything durable that was missed, then nothing live but the state that is asked for.
        for entry in events.iter().filter_map(durable) {
            told.take(translator.replay(&entry, at(100_000)));
        }
        told.take(
            translator.resync(&Snapshot { statuses: json!({}), permissions: json!([]), questions: json!([]), todos: None }, at(100_001)),
        );
        // What was replayed comes again on the live stream, which was joined before the log was read.
        for event in events[cut..].iter().filter(|event| event["type"] == "message.updated") {
            told.take(translator.apply(event, at(100_002)));
        }
        told.take(translator.tick(at(200_000)));
        assert_eq!(told.parts(), whole.parts(), "cut at {cut}");
        assert_eq!(told.turns(), [&TurnOutcome::Completed], "cut at {cut}");
        assert!(told.usage(|_| true) == whole.usage(|_| true), "cut at {cut}");
    }
}

#[test]
fn letters_of_a_part_whose_birth_was_replayed_are_withheld() {
    let mut translator = Translator::new("ses_a".parse().unwrap());
    let part = |text: &str, times: Value| json!({"id": "prt_a", "messageID": "msg_a", "sessionID": "ses_a", "type": "text", "text": text, "time": times});
    let entry = json!({"id": "evt_1", "type": "message.part.updated.1", "seq": 4, "aggregate_id": "ses_a", "data": {"part": part("", json!({"start": 1}))}});
    assert_eq!(translator.replay(&entry, at(0)).len(), 1);
    assert_eq!(translator.replay(&entry, at(0)), [], "once");
    let delta =
        json!({"type": "message.part.delta", "properties": {"messageID": "msg_a", "partID": "prt_a", "field": "text", "delta": "late "}});
    assert_eq!(translator.apply(&delta, at(1)), []);
    let whole = json!({"type": "message.part.updated", "properties": {"part": part("so late ", json!({"start": 1, "end": 2}))}});
    let outputs = translator.apply(&whole, at(2));
    assert!(
        matches!(&outputs[..], [Output::Record(EventKind::Part { part })] if matches!(&part.body, PartBody::Text { text, done: true, .. } if text == "so late "))
    );
}

#[test]
fn when_the_process_dies_at_any_point_everything_open_is_closed() {
    for name in ["03-bash.global.sse", "06-permission-once.global.sse", "13-subagent.global.sse"] {
        let events = stream(name);
        for cut in 0..events.len() {
            let mut translator = Translator::new(root(&events).parse().unwrap());
            let mut told = Told { records: Vec::new(), letters: BTreeMap::new() };
            for event in &events[..cut] {
                told.take(translator.apply(event, at(0)));
            }
            let was_in_turn = translator.in_turn();
            let ended_before = told.turns().len();
            told.take(translator.died());
            assert_eq!(told.turns().len(), ended_before + usize::from(was_in_turn), "{name} cut at {cut}");
            for (_, body) in told.parts().values() {
                match body {
                    PartBody::Text { text, done, .. } | PartBody::Reasoning { text, done } => assert!(*done, "{name} cut at {cut}: {text}"),
                    PartBody::Tool { state, .. } => {
                        assert!(matches!(state, ToolState::Completed { .. } | ToolState::Error { .. }), "{name} cut at {cut}: {state:?}");
                    }
                    _ => {}
                }
            }
            assert_eq!(translator.next_tick(), None);
        }
    }
}

#[test]
fn the_late_idle_of_an_aborted_turn_does_not_end_the_next_one() {
    let mut events = stream("14-abort.event.sse");
    let root = root(&events);
    // Behind the last message come two more signs of rest.
    let late = events.split_off(events.len() - 2);
    let mut translator = Translator::new(root.parse().unwrap());
    let mut told = Told { records: Vec::new(), letters: BTreeMap::new() };
    events.iter().for_each(|event| told.take(translator.apply(event, at(0))));
    assert_eq!(told.turns(), [&TurnOutcome::Aborted]);
    translator.prompted();
    late.iter().for_each(|event| told.take(translator.apply(event, at(10))));
    let due = translator.next_tick().unwrap();
    assert!(!translator.overdue(at(5_000)) && translator.overdue(due));
    // Asked for its state, OpenCode says that it works.
    let statuses = json!({ root.as_str(): { "type": "busy" } });
    told.take(translator.resync(&Snapshot { statuses, permissions: json!([]), questions: json!([]), todos: None }, due));
    told.take(translator.tick(due));
    assert_eq!((told.turns().len(), translator.in_turn()), (1, true));
}

#[test]
fn an_error_before_any_work_ends_the_turn() {
    let mut translator = Translator::new("ses_a".parse().unwrap());
    translator.prompted();
    let error = json!({"type": "session.error", "properties": {"sessionID": "ses_a", "error": {"name": "UnknownError", "data": {"message": "Agent not found: \"x\"\n    at stack"}}}});
    let mut told = Told { records: Vec::new(), letters: BTreeMap::new() };
    told.take(translator.apply(&error, at(0)));
    assert!(matches!(&told.records[..], [EventKind::AgentError { message, .. }] if message == "Agent not found: \"x\""));
    told.take(translator.tick(translator.next_tick().unwrap()));
    assert_eq!(told.turns(), [&TurnOutcome::Failed { message: "Agent not found: \"x\"".into() }]);
}

#[test]
fn what_is_not_known_is_kept_and_bad_ids_stop_nothing() {
    let mut translator = Translator::new("ses_a".parse().unwrap());
    for event in [
        json!({"type": "session.next.new", "properties": {"x": 1}}),
        json!({"type": "message.part.updated", "properties": {"part": {"id": "../x", "type": "text"}}}),
        json!({"type": "permission.asked", "properties": {"id": "a b"}}),
    ] {
        let outputs = translator.apply(&event, at(0));
        assert!(
            matches!(&outputs[..], [Output::Record(EventKind::Unknown { name, .. })] if name.as_str() == event["type"].as_str().unwrap())
        );
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_]{0,12}".prop_map(Value::from),
        Just(json!("ses_a")),
    ];
    let key = prop_oneof![proptest::sample::select(vec![
        "id",
        "type",
        "info",
        "part",
        "state",
        "status",
        "time",
        "tokens",
        "sessionID",
        "messageID",
        "partID",
        "delta",
        "field",
        "role",
        "error",
        "data",
        "message",
        "metadata",
        "patterns",
        "always",
        "questions",
        "answers",
        "summary",
        "diffs",
        "completed",
        "created"
    ]),];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((key.clone().prop_map(str::to_owned), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_json_makes_it_panic(properties in proptest::collection::vec((0usize..16, any_json()), 0..12), now in any::<i64>()) {
        let types = ["message.part.updated", "message.part.delta", "message.part.removed", "message.updated", "message.removed", "session.status", "session.idle",
            "session.error", "session.created", "session.diff", "todo.updated", "permission.asked", "permission.replied", "question.asked", "question.replied", "sync"];
        let mut translator = Translator::new("ses_a".parse().unwrap());
        for (kind, properties) in properties {
            let now = Timestamp::from_millis(now);
            translator.apply(&json!({"type": types[kind], "properties": properties.clone(), "syncEvent": properties}), now);
            translator.apply(&properties, now);
            translator.replay(&properties, now);
            translator.resync(&Snapshot { statuses: properties.clone(), permissions: properties.clone(), questions: properties.clone(), todos: Some(properties) }, now);
            translator.tick(now);
        }
        translator.died();
    }
}
