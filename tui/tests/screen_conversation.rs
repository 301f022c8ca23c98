//! A conversation is what its events say, whatever order, doubling or loss they come with, and only what is on the screen is laid out.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "screen_support/sample.rs"]
mod sample;

use openagent::app::conversation::viewport::Anchor;
use openagent::app::conversation::{Conversation, EntryKind};
use openagent::app::theme::Theme;
use openagent_core::event::*;
use openagent_core::permission::PermissionResponse;
use openagent_core::session::{Fault, Status, Step};
use proptest::prelude::*;
use sample::*;

const THEME: Theme = Theme { color: false };

fn folded(kinds: Vec<EventKind>) -> Conversation {
    let mut conversation = Conversation::new(session_id(1));
    for (seq, kind) in (1..).zip(kinds) {
        conversation.apply(Event { seq, at: at(0), kind });
    }
    conversation
}

fn shown(conversation: &mut Conversation, width: u16, height: u16) -> Vec<String> {
    conversation.arrange(width, height, THEME);
    let row = |(entry, row): &(usize, usize)| conversation.entries()[*entry].rows()[*row].to_string().trim_end().to_owned();
    conversation.view.visible.iter().map(row).collect()
}

fn all(conversation: &mut Conversation) -> Vec<String> {
    shown(conversation, 60, 1_000)
}

fn assistant(parts: Vec<EventKind>) -> Vec<EventKind> {
    [vec![message(1, "m", Role::Assistant)], parts].concat()
}

#[test]
fn deltas_continue_a_part_and_the_recorded_part_has_the_last_word() {
    let mut conversation = folded(assistant(vec![part(1, "m", "p", text("", false))]));
    conversation.delta(delta("m", "p", 0, "Hel"));
    conversation.delta(delta("m", "p", 3, "lo"));
    assert_eq!(all(&mut conversation), ["Hello▍"]);
    conversation.apply(Event { seq: 3, at: at(0), kind: part(1, "m", "p", text("Hello!", true)) });
    conversation.delta(delta("m", "p", 5, " late"));
    assert_eq!(all(&mut conversation), ["Hello!"]);
}

#[test]
fn doubled_deltas_change_nothing_and_overlapping_ones_replace() {
    let mut conversation = folded(assistant(vec![part(1, "m", "p", text("", false))]));
    for (offset, letters) in [(0, "abc"), (3, "def"), (3, "def"), (1, "bc"), (4, "XY")] {
        conversation.delta(delta("m", "p", offset, letters));
    }
    assert_eq!(all(&mut conversation), ["abcdXY▍"]);
}

#[test]
fn a_late_reader_is_told_that_letters_are_missing_until_the_part_is_whole() {
    let mut conversation = folded(assistant(vec![]));
    conversation.delta(delta("m", "p", 100, "tail"));
    assert!(all(&mut conversation)[0].contains("missing"));
    conversation.delta(delta("m", "p", 0, "from the start"));
    assert_eq!(all(&mut conversation), ["from the start▍"]);
}

#[test]
fn an_event_that_was_seen_is_not_taken_twice_and_a_hole_is_shown() {
    let mut conversation = folded(assistant(vec![part(1, "m", "p", text("one", true))]));
    conversation.apply(Event { seq: 2, at: at(0), kind: part(1, "m", "q", text("again", true)) });
    conversation.apply(Event { seq: 9, at: at(0), kind: part(1, "m", "r", text("two", true)) });
    let rows = all(&mut conversation);
    assert_eq!(rows[0], "one");
    assert!(rows.join(" ").contains("events 3 to 8 did not arrive"), "{rows:?}");
    assert_eq!(rows.last().map(String::as_str), Some("two"));
    assert_eq!(conversation.cursor.0, 9);
}

#[test]
fn a_role_that_comes_after_its_part_makes_it_a_prompt() {
    let mut conversation = folded(vec![part(1, "m", "p", text("please", true)), message(1, "m", Role::User)]);
    assert_eq!(all(&mut conversation), ["▌ please"]);
    assert_eq!(conversation.prompts, ["please"]);
}

#[test]
fn removed_messages_and_parts_leave_nothing() {
    let mut kinds = assistant(vec![part(1, "m", "p", text("one", true)), part(1, "m", "q", text("two", true))]);
    kinds.push(EventKind::PartRemoved { message: "m".to_owned().try_into().unwrap(), id: "p".to_owned().try_into().unwrap() });
    let mut conversation = folded(kinds);
    assert_eq!(all(&mut conversation), ["", "two"]);
    conversation.apply(Event { seq: 5, at: at(0), kind: EventKind::MessageRemoved { id: "m".to_owned().try_into().unwrap() } });
    assert!(all(&mut conversation).is_empty());
}

#[test]
fn a_subagents_parts_are_in_its_own_card() {
    let mut conversation = folded(vec![
        EventKind::Subagent {
            conversation: "ses_child".to_owned().try_into().unwrap(),
            parent: session_id(1).to_string().try_into().unwrap(),
            title: "Look around".into(),
        },
        part_in("ses_child", "c", "c1", bash("ls", "a\nb", 0)),
        part(1, "m", "p", text("meanwhile", true)),
        part_in("ses_child", "c", "c2", text("I found it", true)),
    ]);
    let rows = all(&mut conversation);
    assert_eq!(rows[0], "◆ Look around  1 call");
    assert_eq!(rows[1], "  ┊ I found it");
    conversation.toggle(0);
    assert!(all(&mut conversation).iter().any(|row| row.contains("┊ ✓ bash ls")));
    assert_eq!(conversation.entries().len(), 2);
}

#[test]
fn long_output_is_folded_to_ten_rows_and_unfolds() {
    let output: String = (1..=30).map(|n| format!("row {n}\n")).collect();
    let mut conversation = folded(assistant(vec![part(1, "m", "p", bash("make", &output, 0))]));
    let rows = all(&mut conversation);
    assert_eq!(rows.len(), 12);
    assert_eq!(rows[11], "  … 20 more rows (o)");
    conversation.toggle_selected();
    assert_eq!(all(&mut conversation).len(), 31);
}

#[test]
fn diffs_keep_their_signs() {
    let mut conversation = folded(assistant(vec![part(1, "m", "p", edit())]));
    let rows = all(&mut conversation);
    assert!(rows.contains(&"  │ -    slow();".to_owned()) && rows.contains(&"  │ +    fast();".to_owned()), "{rows:?}");
}

#[test]
fn only_a_heading_that_repeats_the_files_name_is_left_out_of_a_diff() {
    for (shown, first) in
        [("Index: a\n===\n--- a\n+++ a\n", "--- a"), ("Index: a\nno rule\n", "Index: a"), ("@@ -1 +1 @@\n-Index: a\n", "@@ -1 +1 @@")]
    {
        let mut body = edit();
        let PartBody::Tool { state: ToolState::Completed { diff, .. }, .. } = &mut body else { panic!("{body:?}") };
        *diff = Some(shown.to_owned());
        let rows = all(&mut folded(assistant(vec![part(1, "m", "p", body)])));
        assert_eq!(rows[1], format!("  │ {first}"), "{rows:?}");
    }
}

#[test]
fn errors_carry_their_hint_on_a_line_of_its_own_and_are_told_once() {
    let mut conversation = folded(vec![
        EventKind::AgentError { name: "APIError".into(), message: "bad key".into(), status_code: Some(401), hint: Some("press K".into()) },
        EventKind::TurnEnded { outcome: TurnOutcome::Failed { message: "bad key".into() } },
    ]);
    assert_eq!(all(&mut conversation), ["✗ APIError (401): bad key", "  → press K", "", "■ the turn failed"]);
}

#[test]
fn provisioning_is_a_ladder_that_closes_when_it_is_climbed() {
    let step = |step, outcome| EventKind::Step { step, outcome };
    let mut conversation = folded(vec![
        step(Step::Image, StepOutcome::Started),
        step(Step::Image, StepOutcome::Done { millis: 40 }),
        step(Step::Agent, StepOutcome::Started),
    ]);
    assert_eq!(all(&mut conversation), ["✓ image      40 ms", "● agent      …"]);
    assert_eq!(conversation.running_step().map(|(step, _)| step), Some(Step::Agent));
    conversation.apply(Event { seq: 4, at: at(2), kind: step(Step::Agent, StepOutcome::Done { millis: 2_000 }) });
    assert_eq!(all(&mut conversation), ["✓ ready after 2.0 s"]);
    let fault = Fault::new("IMAGE_MISSING", "there is no image", "cargo xtask image");
    conversation.apply(Event { seq: 5, at: at(3), kind: step(Step::Image, StepOutcome::Failed { fault }) });
    let rows = all(&mut conversation);
    assert_eq!(rows[2..], ["✗ image      there is no image", "  → cargo xtask image"], "a new attempt is a new ladder");
}

#[test]
fn requests_wait_until_they_are_answered_and_the_answer_stays() {
    let mut conversation = folded(vec![
        EventKind::PermissionAsked { request: permission("per_1", "rm -rf target") },
        EventKind::PermissionAsked { request: permission("per_2", "ls") },
    ]);
    assert_eq!(conversation.asks.len(), 2);
    let answered = EventKind::PermissionAnswered {
        id: "per_1".to_owned().try_into().unwrap(),
        response: PermissionResponse::Reject,
        by: "phone".into(),
        reason: Some("too wide".into()),
    };
    conversation.apply(Event { seq: 3, at: at(0), kind: answered });
    assert_eq!(conversation.asks.len(), 1);
    assert_eq!(all(&mut conversation), ["✗ not allowed (too wide) by phone: bash rm -rf target"]);
    conversation.apply(Event {
        seq: 4,
        at: at(0),
        kind: EventKind::Session { status: Status::Stopped, fault: None, title: String::new() },
    });
    assert!(conversation.asks.is_empty());
}

#[test]
fn a_tools_time_does_not_count_what_it_waited_for_permission() {
    let running = |tool: &str| PartBody::Tool {
        tool: tool.into(),
        state: ToolState::Running { input: serde_json::json!({ "command": "make" }), title: String::new(), output: String::new() },
    };
    let mut completed = bash("make", "", 0);
    let PartBody::Tool { state: ToolState::Completed { millis, .. }, .. } = &mut completed else { panic!("{completed:?}") };
    *millis = 42_000;
    let answered = EventKind::PermissionAnswered {
        id: "per_1".to_owned().try_into().unwrap(),
        response: PermissionResponse::Once,
        by: "anna".into(),
        reason: None,
    };
    let mut ask = permission("per_1", "make");
    ask.conversation = session_id(1).to_string().try_into().unwrap();
    let events = [
        (0, message(1, "m", Role::Assistant)),
        (0, part(1, "m", "read", running("read"))),
        (0, part(1, "m", "bash", running("bash"))),
        (1, EventKind::PermissionAsked { request: ask }),
        (41, answered),
        (42, part(1, "m", "bash", completed.clone())),
        (42, part(1, "m", "read", completed)),
    ];
    let mut conversation = Conversation::new(session_id(1));
    for (seq, (seconds, kind)) in (1..).zip(events) {
        conversation.apply(Event { seq, at: at(seconds), kind });
    }
    let rows = all(&mut conversation);
    assert_eq!(rows[..2], ["✓ bash make  42.0 s", "✓ bash make  2.0 s"], "{rows:?}");
}

#[test]
fn a_wait_for_room_is_told_apart_from_the_work() {
    let step = |step, outcome| EventKind::Step { step, outcome };
    let mut conversation = folded(vec![step(Step::Admission, StepOutcome::Started)]);
    assert!(all(&mut conversation)[0].contains("waits for room"));
    for (seq, kind) in (2..).zip([
        step(Step::Admission, StepOutcome::Done { millis: 12_000 }),
        step(Step::Agent, StepOutcome::Started),
        step(Step::Agent, StepOutcome::Done { millis: 3_000 }),
    ]) {
        conversation.apply(Event { seq, at: at(0), kind });
    }
    assert_eq!(all(&mut conversation), ["✓ ready after 15.0 s, 12.0 s of it waiting for room"]);
}

#[test]
fn control_and_direction_characters_are_seen() {
    let body = bash("echo \u{1b}[2Jhi \u{202e}live", "\u{1b}]0;title\u{7}", 0);
    let mut conversation = folded(assistant(vec![part(1, "m", "p", body), part(1, "m", "q", text("a\u{9b}b", true))]));
    let rows = all(&mut conversation).join("\n");
    assert!(rows.contains("^[[2Jhi <U+202E>live") && rows.contains("^[]0;title^G") && rows.contains("a<U+009B>b"), "{rows}");
    assert!(!rows.contains('\u{1b}'));
}

fn long(parts: usize) -> Conversation {
    folded((0..parts).map(|n| part(1, "m", &format!("p{n}"), text(&format!("part {n}"), true))).collect())
}

#[test]
fn of_a_hundred_thousand_parts_only_those_on_the_screen_are_laid_out() {
    let mut conversation = long(100_000);
    let rows = shown(&mut conversation, 80, 40);
    assert_eq!(rows.last().map(String::as_str), Some("part 99999"));
    assert!(conversation.layouts_made() <= 40, "{}", conversation.layouts_made());
    conversation.delta(delta("m", "p99999", 0, "ignored: it is done"));
    shown(&mut conversation, 80, 40);
    assert!(conversation.layouts_made() <= 40, "what is unchanged is not laid out again");
    conversation.to_top();
    assert_eq!(shown(&mut conversation, 80, 40)[0], "part 0");
    assert!(conversation.layouts_made() <= 80, "{}", conversation.layouts_made());
}

#[test]
fn scrolling_keeps_its_place_while_the_end_grows_and_follows_again_at_the_end() {
    let mut conversation = long(100);
    shown(&mut conversation, 80, 10);
    conversation.scroll(-20);
    let before = shown(&mut conversation, 80, 10);
    conversation.apply(Event { seq: 101, at: at(0), kind: part(1, "m", "new", text("new", true)) });
    assert_eq!(shown(&mut conversation, 80, 10), before);
    conversation.scroll(7);
    conversation.scroll(-7);
    assert_eq!(shown(&mut conversation, 80, 10), before);
    conversation.scroll(1_000);
    assert_eq!(shown(&mut conversation, 80, 10).last().map(String::as_str), Some("new"));
    assert_eq!(conversation.view.anchor, Anchor::Tail);
    conversation.scroll(-100_000);
    assert_eq!(shown(&mut conversation, 80, 10)[0], "part 0");
}

#[test]
fn cards_can_be_chosen_one_after_the_other() {
    let mut kinds = assistant((0..30).map(|n| part(1, "m", &format!("t{n}"), text("prose", true))).collect());
    kinds.push(part(1, "m", "a", bash("ls", "x", 0)));
    kinds.push(part(1, "m", "b", bash("pwd", "y", 0)));
    let mut conversation = folded(kinds);
    shown(&mut conversation, 80, 10);
    conversation.select_next(false);
    let last = conversation.view.selected.unwrap();
    assert!(matches!(conversation.entries()[last].kind, EntryKind::Part(_)));
    conversation.select_next(false);
    assert_eq!(conversation.view.selected, Some(last - 1));
}

fn any_kind() -> impl Strategy<Value = EventKind> {
    let id = || (0_u8..6).prop_map(|n| format!("x{n}"));
    let letters = || "[a-z *`#\n\u{1b}é日>|-]{0,40}";
    prop_oneof![
        (id(), id(), letters(), any::<bool>()).prop_map(|(message, id, body, done)| part(1, &message, &id, text(&body, done))),
        (id(), id(), letters()).prop_map(|(message, id, body)| part(1, &message, &id, bash(&body, &body, 0))),
        (id(), id(), letters()).prop_map(|(message, id, body)| part_in("child", &message, &id, text(&body, true))),
        (id(), id(), letters()).prop_map(|(message, id, body)| part(1, &message, &id, PartBody::Reasoning { text: body, done: false })),
        id().prop_map(|id| message(1, &id, Role::User)),
        id().prop_map(|id| EventKind::MessageRemoved { id: id.try_into().unwrap() }),
        (id(), id()).prop_map(|(message, id)| EventKind::PartRemoved { message: message.try_into().unwrap(), id: id.try_into().unwrap() }),
        id().prop_map(|id| EventKind::PermissionAsked { request: permission(&id, "ls") }),
        (id(), letters()).prop_map(|(id, by)| EventKind::QuestionAnswered { id: id.try_into().unwrap(), answers: None, by }),
        (0_usize..8, any::<bool>()).prop_map(|(step, started)| EventKind::Step {
            step: Step::LADDER[step],
            outcome: if started { StepOutcome::Started } else { StepOutcome::Done { millis: 1 } },
        }),
        letters().prop_map(|reason| EventKind::Gap { reason }),
        Just(EventKind::TurnEnded { outcome: TurnOutcome::Aborted }),
        Just(EventKind::Todo { items: Vec::new() }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_and_moves_panics(
        kinds in proptest::collection::vec((any_kind(), 0_u64..200, -50_i32..50, 0_u16..90, 0_u16..30), 0..80)
    ) {
        let mut conversation = Conversation::new(session_id(1));
        for (kind, seq, scroll, width, height) in kinds {
            conversation.apply(Event { seq, at: at(0), kind });
            conversation.delta(delta("x1", &format!("x{}", seq % 7), seq % 13, "é"));
            conversation.arrange(width, height, THEME);
            conversation.scroll(scroll);
            conversation.select_next(scroll > 0);
            conversation.toggle_selected();
        }
    }
}
