//! The main screens at three sizes, as text. Colours are not part of it: nothing may depend on them.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "screen_support/sample.rs"]
mod sample;

use crossterm::event::KeyCode;
use openagent::app::input::{Answer, Input, Watch};
use openagent::app::state::State;
use openagent::app::update::update;
use openagent::client::{AttachedTo, AttachedView, ClientError, Kind, Pending, PendingRequest, SessionView, TerminalItem};
use openagent_core::activity::Activity;
use openagent_core::event::{EventKind, StepOutcome};
use openagent_core::instance::ExitCause;
use openagent_core::session::{Fault, Status, Step};
use openagent_proto::v1;
use sample::*;

const SIZES: [(u16, u16); 3] = [(40, 12), (80, 24), (140, 40)];

fn each_size(name: &str, prepare: impl Fn(&mut State)) {
    each_size_of(name, sessions(), prepare);
}

fn each_size_of(name: &str, sessions: Vec<SessionView>, prepare: impl Fn(&mut State)) {
    for (width, height) in SIZES {
        let mut state = connected(width, height, sessions.clone());
        prepare(&mut state);
        insta::assert_snapshot!(format!("{name}_{width}x{height}"), drawn(&mut state));
    }
}

fn open(state: &mut State) {
    press(state, KeyCode::Enter);
    feed(state, 6, conversation(6));
}

#[test]
fn sessions_are_listed() {
    each_size("sessions", |state| {
        let mut news = session(3, "Write the release notes", Status::Active, Activity::Done);
        news.last_seq = 99;
        let change = openagent::client::SessionChange::Changed(Box::new(news));
        update(state, Input::Watch(Watch::Item(change)));
    });
}

#[test]
fn a_conversation_is_shown() {
    each_size("conversation", open);
}

#[test]
fn a_conversation_is_read_from_its_beginning_and_offline() {
    each_size("offline", |state| {
        open(state);
        press(state, KeyCode::Esc);
        press(state, KeyCode::Char('g'));
        let error = ClientError::new(Kind::Unreachable, "the connection to the daemon was lost", "");
        update(state, Input::Watch(Watch::Lost(error, 4_000)));
    });
}

/// Every way in which a session waits, rests or is out of reach.
fn waiting() -> Vec<SessionView> {
    let mut queued = session(6, "Make the parser faster", Status::Creating, Activity::Quiet);
    (queued.step, queued.queue_position) = ("admission".into(), 2);
    let mut lost = session(5, "Fix the flaky test", Status::Active, Activity::Working);
    lost.unreachable_since = Some(at(-12));
    let mut paused = session(4, "Write the release notes", Status::Idle, Activity::Done);
    paused.instance = Some(instance("paused", None));
    let mut resting = session(3, "Try the new allocator", Status::Idle, Activity::Done);
    resting.instance = Some(instance("terminated", None));
    vec![queued, lost, paused, resting]
}

#[test]
fn what_sessions_wait_for_and_rest_on_is_listed() {
    each_size_of("waiting", waiting(), |_| {});
}

#[test]
fn who_waits_for_room_sees_the_place_in_the_queue() {
    each_size_of("queued", waiting(), |state| {
        press(state, KeyCode::Enter);
        let started = |step| EventKind::Step { step, outcome: StepOutcome::Started };
        feed(state, 6, vec![started(Step::Admission)]);
        update(state, Input::Clock(at(9)));
        press(state, KeyCode::Esc);
        press(state, KeyCode::Char('s'));
    });
}

#[test]
fn a_session_out_of_reach_shows_how_old_it_is_and_who_else_is_there() {
    let mut lost = session(6, "Make the parser faster", Status::Active, Activity::Working);
    lost.unreachable_since = Some(at(-12));
    let here = |client: &str| AttachedView { client: client.into(), to: AttachedTo::Events, since: at(-60) };
    lost.attached = vec![here("anna@laptop (pts/3)"), here("me"), here("ben@desk (pts/1)\u{1b}[2J")];
    each_size_of("unreachable", vec![lost], |state| {
        state.me = "me".into();
        open(state);
        let fault = v1::Fault {
            code: "STORE_FULL".into(),
            message: "the disk of the store is full, so nothing is written".into(),
            hint: "free some space: openagent rm ID, or remove other files".into(),
        };
        let store = Some(v1::StoreStatus { writable: false, fault: Some(fault) });
        let status = v1::GetStatusResponse { protocol: openagent_proto::PROTOCOL, store, ..v1::GetStatusResponse::default() };
        update(state, Input::Answer(Answer::Status(Ok(Box::new(status)))));
    });
}

#[test]
fn everything_about_a_session_is_shown() {
    let mut failed = session(6, "Make the parser faster", Status::Error, Activity::Quiet);
    failed.fault =
        Some(Fault::new("INSTANCE_ENDED", "the sandbox ended: it ran out of memory and was killed", "resume it: openagent resume ID"));
    failed.instance = Some(instance("error", Some(ExitCause::OutOfMemory)));
    failed.attached = vec![AttachedView { client: "anna@laptop (pts/3)".into(), to: AttachedTo::Terminal, since: at(-60) }];
    each_size_of("details", vec![failed], |state| {
        press(state, KeyCode::Char('v'));
    });
}

#[test]
fn a_permission_is_asked() {
    each_size("permission", |state| {
        press(state, KeyCode::Enter);
        let command = "cargo test --workspace && \\\n  rm -rf target/\u{202e}gpj.exe \u{1b}[2J";
        let mut events = conversation(6);
        events.push(EventKind::PermissionAsked { request: permission("per_1", command) });
        feed(state, 6, events);
    });
}

#[test]
fn a_question_is_asked() {
    each_size("question", |state| {
        press(state, KeyCode::Enter);
        feed(state, 6, vec![EventKind::QuestionAsked { request: question("que_1", true) }]);
        press(state, KeyCode::Char(' '));
    });
}

#[test]
fn the_inbox_lists_what_waits() {
    each_size("inbox", |state| {
        press(state, KeyCode::Char('i'));
        let mut edit = permission("per_2", "src/main.rs");
        edit.permission = "edit".into();
        edit.diff = Some(DIFF.into());
        let pending = |number, request| Pending { session: session_id(number), session_title: format!("Session {number}"), request };
        let pending = vec![pending(5, PendingRequest::Permission(edit)), pending(6, PendingRequest::Question(question("que_1", false)))];
        update(state, Input::Answer(Answer::Pending(Ok(pending))));
    });
}

#[test]
fn keys_are_managed() {
    each_size("keys", |state| {
        press(state, KeyCode::Char('K'));
        let key = v1::Key { provider: "anthropic".into(), version: 3, ..v1::Key::default() };
        update(state, Input::Answer(Answer::Keys(Ok(vec![key]))));
    });
}

#[test]
fn a_key_is_entered_unseen() {
    each_size("key_entry", |state| {
        press(state, KeyCode::Char('K'));
        press(state, KeyCode::Enter);
        type_text(state, "sk-canary");
    });
}

#[test]
fn a_session_is_described() {
    each_size("new_session", |state| {
        press(state, KeyCode::Char('n'));
        type_text(state, "Faster");
        press(state, KeyCode::Tab);
    });
}

#[test]
fn usage_is_summed_up() {
    each_size("usage", |state| {
        press(state, KeyCode::Char('u'));
        let usage = |input, cost_micros| {
            let tokens = Some(v1::Tokens { input, output: 345, cache_read: 9_000, ..v1::Tokens::default() });
            Some(v1::Usage { tokens, cost_micros })
        };
        let group = |key: String, input, cost| v1::UsageGroup { key, usage: usage(input, cost) };
        let groups = vec![group(session_id(6).to_string(), 12_000, 40_000), group(session_id(3).to_string(), 700, 1_200)];
        let sums = v1::GetUsageResponse { total: usage(12_700, 41_200), groups };
        update(state, Input::Answer(Answer::Usage(v1::UsageGrouping::Session, Ok(sums))));
    });
}

#[test]
fn a_terminal_is_shown() {
    each_size("terminal", |state| {
        let id = "trm_00000000000000000000000001";
        let terminal = v1::Terminal { id: id.into(), ..v1::Terminal::default() };
        update(state, Input::Answer(Answer::TerminalOpened(session_id(6), Ok(terminal))));
        let mut tell = |watch| update(state, Input::Terminal(id.parse().unwrap(), watch));
        tell(Watch::Connected);
        tell(Watch::Item(TerminalItem::Writer(true)));
        let data = b"\x1b[1;32magent\x1b[0m:\x1b[34m/workspace\x1b[0m$ ls\r\nCargo.toml  src\r\nagent:/workspace$ ".to_vec();
        tell(Watch::Item(TerminalItem::Output { end_offset: 90, data }));
    });
}

#[test]
fn the_help_prints_the_key_tables() {
    each_size("help", |state| {
        press(state, KeyCode::Char('?'));
    });
}

#[test]
fn the_palette_lists_actions() {
    each_size("palette", |state| {
        ctrl(state, 'p');
        type_text(state, "se");
    });
}

#[test]
fn the_tour_is_offered() {
    for (width, height) in SIZES {
        let mut state = connected(width, height, vec![]);
        let mut providers = providers();
        for provider in &mut providers.providers {
            provider.has_key = false;
        }
        update(&mut state, Input::Answer(Answer::Providers(Ok(providers))));
        insta::assert_snapshot!(format!("welcome_{width}x{height}"), drawn(&mut state));
    }
}

#[test]
fn every_screen_fits_the_smallest_sizes() {
    for (width, height) in [(1, 1), (3, 2), (10, 4), (40, 12), (99, 5), (100, 3)] {
        for keys in ["", "n", "n\t", "?", "K", "u", "i", "d", "s", "v", "r", "e", "/x", "K\n"] {
            let mut state = connected(width, height, sessions());
            for letter in keys.chars() {
                press(
                    &mut state,
                    match letter {
                        '\t' => KeyCode::Tab,
                        '\n' => KeyCode::Enter,
                        letter => KeyCode::Char(letter),
                    },
                );
            }
            drawn(&mut state);
        }
        let mut state = connected(width, height, sessions());
        open(&mut state);
        drawn(&mut state);
        feed(&mut state, 6, vec![]);
        let mut state = connected(width, height, sessions());
        press(&mut state, KeyCode::Enter);
        feed(&mut state, 6, vec![EventKind::PermissionAsked { request: permission("per_1", "ls") }]);
        drawn(&mut state);
        let store = Some(v1::StoreStatus { writable: false, fault: None });
        update(
            &mut state,
            Input::Answer(Answer::Status(Ok(Box::new(v1::GetStatusResponse { store, ..v1::GetStatusResponse::default() })))),
        );
        drawn(&mut state);
        update(&mut state, Input::Watch(Watch::Lost(ClientError::new(Kind::Unreachable, "gone", ""), 1_000)));
        drawn(&mut state);
    }
}
