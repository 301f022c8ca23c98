//! Sample sessions, events and screens for the tests of the interface.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each uses a part of it")]

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use openagent::app::input::{Answer, Effect, Input, Watch};
use openagent::app::state::State;
use openagent::app::theme::Theme;
use openagent::app::update::update;
use openagent::app::view::view;
use openagent::client::{InstanceView, SessionChange, SessionView, StreamItem};
use openagent_core::activity::Activity;
use openagent_core::event::*;
use openagent_core::id::SessionId;
use openagent_core::instance::ExitCause;
use openagent_core::permission::*;
use openagent_core::session::{Limits, Status, Step, WorkspaceSource};
use openagent_core::time::Timestamp;
use openagent_core::usage::{Tokens, Usage};
use openagent_proto::v1;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::layout::Size;
use serde_json::json;

/// A moment in 2026.
pub const NOON: i64 = 1_795_345_200_000;

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(NOON + seconds * 1_000)
}

pub fn session_id(number: u32) -> SessionId {
    format!("ses_{number:026}").parse().unwrap()
}

pub fn session(number: u32, title: &str, status: Status, activity: Activity) -> SessionView {
    SessionView {
        id: session_id(number),
        title: title.into(),
        status: Some(status),
        fault: None,
        activity,
        driver: "docker".into(),
        instance: None,
        workspace: WorkspaceSource::Empty,
        model: "anthropic/claude-sonnet-5".into(),
        agent: "build".into(),
        permission_mode: Some(PermissionMode::Ask),
        limits: Limits::default(),
        idle_timeout_millis: 900_000,
        usage: Usage { tokens: Tokens { input: 12_000, output: 345, ..Tokens::default() }, cost_micros: 40_000 },
        created_at: at(-3_600 + i64::from(number)),
        updated_at: at(-60 * i64::from(number)),
        last_seq: 10,
        network: "none".into(),
        step: if status == Status::Creating { "image".into() } else { String::new() },
        idle_action: None,
        queue_position: 0,
        unreachable_since: None,
        attached: Vec::new(),
    }
}

pub fn instance(state: &'static str, exit: Option<ExitCause>) -> InstanceView {
    InstanceView {
        id: format!("ins_{:026}", 1).parse().unwrap(),
        driver: "docker".into(),
        state,
        exit_cause: exit.as_ref().map(ToString::to_string).unwrap_or_default(),
        exit,
        created_at: at(-3_000),
        running_at: None,
        ended_at: None,
    }
}

pub fn sessions() -> Vec<SessionView> {
    vec![
        session(6, "Make the parser faster", Status::Active, Activity::Working),
        session(5, "Fix the flaky test", Status::Active, Activity::Blocked { permissions: 1, questions: 0 }),
        session(4, "", Status::Creating, Activity::Quiet),
        session(3, "Write the release notes", Status::Active, Activity::Done),
        session(2, "Try the new allocator", Status::Stopped, Activity::Quiet),
        session(1, "日本語のタイトル", Status::Error, Activity::Quiet),
    ]
}

pub fn providers() -> v1::ListProvidersResponse {
    let model = |id: &str, name: &str| v1::Model { id: id.into(), name: name.into(), ..v1::Model::default() };
    let provider = |id: &str, name: &str, has_key: bool, models: Vec<v1::Model>| v1::Provider {
        id: id.into(),
        name: name.into(),
        needs_key: id != "demo",
        has_key,
        models,
        ..v1::Provider::default()
    };
    v1::ListProvidersResponse {
        providers: vec![
            provider(
                "anthropic",
                "Anthropic",
                true,
                vec![model("claude-sonnet-5", "Claude Sonnet 5"), model("claude-opus-5", "Claude Opus 5")],
            ),
            provider("demo", "Demo", false, vec![model("tour", "A scripted tour")]),
            provider("openai", "OpenAI", false, vec![model("gpt-6", "GPT-6")]),
        ],
        default_model: "anthropic/claude-sonnet-5".into(),
    }
}

/// A screen that is connected and shows `sessions`.
pub fn connected(width: u16, height: u16, sessions: Vec<SessionView>) -> State {
    let mut state = State::new(Size::new(width, height), Theme { color: true }, "/home/user/project".into());
    update(&mut state, Input::Clock(at(0)));
    update(&mut state, Input::Watch(Watch::Connected));
    for session in sessions {
        update(&mut state, Input::Watch(Watch::Item(SessionChange::Changed(Box::new(session)))));
    }
    update(&mut state, Input::Answer(Answer::Providers(Ok(providers()))));
    update(&mut state, Input::Watch(Watch::Item(SessionChange::CaughtUp)));
    state
}

pub fn key(code: KeyCode) -> Input {
    Input::Key(KeyEvent::new(code, KeyModifiers::NONE))
}

pub fn press(state: &mut State, code: KeyCode) -> Vec<Effect> {
    update(state, key(code))
}

pub fn ctrl(state: &mut State, letter: char) -> Vec<Effect> {
    update(state, Input::Key(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL)))
}

pub fn type_text(state: &mut State, text: &str) -> Vec<Effect> {
    text.chars().flat_map(|letter| press(state, KeyCode::Char(letter))).collect()
}

/// The screen as it would be drawn.
pub fn drawn(state: &mut State) -> TestBackend {
    update(state, Input::Frame);
    let mut terminal = Terminal::new(TestBackend::new(state.size.width, state.size.height)).unwrap();
    terminal.draw(|frame| view(state, frame)).unwrap();
    terminal.backend().clone()
}

/// Feeds events, numbered from 1, to the conversation of session `number`.
pub fn feed(state: &mut State, number: u32, kinds: Vec<EventKind>) {
    for (seq, kind) in (1..).zip(kinds) {
        let item = StreamItem::Event(Event { seq, at: at(0), kind });
        update(state, Input::Follow(session_id(number), Watch::Item(item)));
    }
    update(state, Input::Follow(session_id(number), Watch::Item(StreamItem::CaughtUp(1))));
}

pub fn message(number: u32, id: &str, role: Role) -> EventKind {
    EventKind::Message {
        message: Message {
            id: id.to_owned().try_into().unwrap(),
            conversation: session_id(number).to_string().try_into().unwrap(),
            role,
            parent: None,
            agent: "build".into(),
            model: String::new(),
            created_at: at(0),
            completed_at: None,
            error: None,
            summary: false,
        },
    }
}

pub fn part_in(conversation: &str, message: &str, id: &str, body: PartBody) -> EventKind {
    EventKind::Part {
        part: Part {
            id: id.to_owned().try_into().unwrap(),
            message: message.to_owned().try_into().unwrap(),
            conversation: conversation.to_owned().try_into().unwrap(),
            body,
        },
    }
}

pub fn part(number: u32, message: &str, id: &str, body: PartBody) -> EventKind {
    part_in(session_id(number).as_str(), message, id, body)
}

pub fn text(body: &str, done: bool) -> PartBody {
    PartBody::Text { text: body.into(), done, synthetic: false }
}

pub fn delta(message: &str, id: &str, offset: u64, letters: &str) -> PartDelta {
    PartDelta { message: message.to_owned().try_into().unwrap(), part: id.to_owned().try_into().unwrap(), offset, text: letters.into() }
}

pub fn bash(command: &str, output: &str, exit_code: i32) -> PartBody {
    PartBody::Tool {
        tool: "bash".into(),
        state: ToolState::Completed {
            input: json!({ "command": command }),
            title: String::new(),
            output: output.into(),
            exit_code: Some(exit_code),
            diff: None,
            millis: 1_234,
        },
    }
}

pub const DIFF: &str = "--- a/src/main.rs\n+++ b/src/main.rs\n@@ -1,3 +1,3 @@\n fn main() {\n-    slow();\n+    fast();\n }\n";

pub fn edit() -> PartBody {
    PartBody::Tool {
        tool: "edit".into(),
        state: ToolState::Completed {
            input: json!({ "filePath": "src/main.rs" }),
            title: "src/main.rs".into(),
            output: "ok".into(),
            exit_code: None,
            diff: Some(DIFF.into()),
            millis: 20,
        },
    }
}

pub fn permission(id: &str, title: &str) -> PermissionRequest {
    PermissionRequest {
        id: id.to_owned().try_into().unwrap(),
        conversation: session_id(6).to_string().try_into().unwrap(),
        permission: "bash".into(),
        title: title.into(),
        diff: None,
        patterns: vec![title.into()],
        always: vec!["cargo test *".into()],
        asked_at: at(-90),
    }
}

pub fn question(id: &str, multiple: bool) -> QuestionRequest {
    let option = |label: &str, description: &str| QuestionOption { label: label.into(), description: description.into() };
    QuestionRequest {
        id: id.to_owned().try_into().unwrap(),
        conversation: session_id(6).to_string().try_into().unwrap(),
        questions: vec![Question {
            header: "Database".into(),
            text: "Which database shall I use?".into(),
            options: vec![option("SQLite", "a file, nothing to run"), option("PostgreSQL", "a server"), option("None", "")],
            multiple,
            custom: true,
        }],
        asked_at: at(-30),
    }
}

/// A whole conversation with one of everything that is common.
pub fn conversation(number: u32) -> Vec<EventKind> {
    let done = |step, millis| EventKind::Step { step, outcome: StepOutcome::Done { millis } };
    vec![
        EventKind::Session { status: Status::Creating, fault: None, title: String::new() },
        EventKind::Step { step: Step::Image, outcome: StepOutcome::Started },
        done(Step::Image, 12),
        EventKind::Step { step: Step::Agent, outcome: StepOutcome::Started },
        done(Step::Agent, 2_480),
        EventKind::Session { status: Status::Active, fault: None, title: "Make the parser faster".into() },
        message(number, "msg_1", Role::User),
        part(number, "msg_1", "prt_1", text("Make the parser faster, please.", true)),
        EventKind::Busy { busy: Busy::Working },
        message(number, "msg_2", Role::Assistant),
        part(
            number,
            "msg_2",
            "prt_2",
            PartBody::Reasoning { text: "The parser copies.\nIt could borrow.\nLet me look.\nThen measure.".into(), done: true },
        ),
        part(number, "msg_2", "prt_3", text("I'll **measure** first:\n\n- run the `bench`\n- find what is slow", true)),
        part(number, "msg_2", "prt_4", bash("cargo bench", &(1..=14).map(|n| format!("line {n}\n")).collect::<String>(), 0)),
        part(number, "msg_2", "prt_5", edit()),
        part(number, "msg_2", "prt_6", bash("cargo test", "2 tests failed", 101)),
        EventKind::Usage {
            message: "msg_2".to_owned().try_into().unwrap(),
            provider: "anthropic".into(),
            model: "claude-sonnet-5".into(),
            usage: Usage { tokens: Tokens { input: 12_000, output: 345, ..Tokens::default() }, cost_micros: 40_000 },
        },
        EventKind::Todo {
            items: vec![
                TodoItem { content: "Measure".into(), status: "completed".into(), priority: "high".into() },
                TodoItem { content: "Borrow instead of copying".into(), status: "in_progress".into(), priority: "high".into() },
                TodoItem { content: "Measure again".into(), status: "pending".into(), priority: "low".into() },
            ],
        },
        part(number, "msg_2", "prt_7", text("Two tests fail. I am lo", false)),
    ]
}
