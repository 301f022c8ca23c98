//! The `openagent` program against a daemon that pretends, over real gRPC.

#![allow(missing_docs, reason = "a test")]

#[path = "fake/daemon.rs"]
mod fake;

use fake::{Fake, Outcome, SESSION, State, session};
use openagent_proto::v1;
use tonic::Code;
use v1::event::Kind;

const OTHER: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FBW";

fn text(message: &str, part: &str, text: &str) -> [Kind; 2] {
    let assistant =
        v1::Message { id: message.into(), conversation_id: SESSION.into(), role: v1::Role::Assistant.into(), ..Default::default() };
    let body = v1::part::Body::Text(v1::TextPart { text: text.into(), done: true, synthetic: false });
    let part = v1::Part { id: part.into(), message_id: message.into(), conversation_id: SESSION.into(), body: Some(body) };
    [Kind::Message(assistant), Kind::Part(part)]
}

fn asks(command: &str, patterns: &[&str]) -> Kind {
    Kind::PermissionAsked(v1::PermissionRequest {
        id: "per_1".into(),
        conversation_id: SESSION.into(),
        permission: "bash".into(),
        title: command.into(),
        patterns: patterns.iter().map(ToString::to_string).collect(),
        ..Default::default()
    })
}

fn ended(outcome: v1::TurnOutcome, message: &str) -> Kind {
    Kind::TurnEnded(v1::TurnEndedEvent { outcome: outcome.into(), message: message.into() })
}

fn completed() -> Kind {
    ended(v1::TurnOutcome::Completed, "")
}

fn json(outcome: &Outcome) -> serde_json::Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

#[tokio::test]
async fn run_prints_the_final_answer_and_nothing_else_on_stdout() {
    let script = text("msg_1", "prt_1", "I look").into_iter().chain(text("msg_2", "prt_2", "It is 42.")).chain([completed()]).collect();
    let fake = Fake::serving(State { script, ..Default::default() });
    let outcome = fake.openagent(&["run", "What is it?", "--title", "t", "--memory", "1G"]).await;
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (0, "It is 42.\n", ""));
    fake.with(|state| {
        assert_eq!(state.prompts, ["What is it?"]);
        assert_eq!((state.created[0].title.as_str(), state.created[0].limits.unwrap_or_default().memory_bytes), ("t", 1 << 30));
        assert!(state.removed.is_empty());
    });
}

#[tokio::test]
async fn run_with_a_request_that_no_rule_allows_says_how_to_answer_and_keeps_the_session() {
    let fake = Fake::serving(State { script: vec![asks("git status && curl x\x1b[2J", &["git status", "curl x"])], ..Default::default() });
    let outcome = fake.openagent(&["run", "go", "--allow", "bash:git *", "--rm"]).await;
    assert_eq!(outcome.code, 5, "{outcome:?}");
    assert!(outcome.stderr.contains("openagent permit Q69G5FAV per_1 once|session|always|reject"), "{outcome:?}");
    assert!(outcome.stderr.contains("curl x^[[2J") && !outcome.stderr.contains('\x1b'), "{outcome:?}");
    fake.with(|state| assert!(state.answered.is_empty() && state.removed.is_empty()));
}

#[tokio::test]
async fn run_answers_once_what_a_rule_allows() {
    let after_answer = text("msg_1", "prt_1", "done").into_iter().chain([completed()]).collect();
    let fake = Fake::serving(State { script: vec![asks("git status", &["git status"])], after_answer, ..Default::default() });
    let outcome = fake.openagent(&["run", "go", "--allow", "bash:git *", "--rm", "--json"]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(json(&outcome)["outcome"], "completed");
    assert_eq!((&json(&outcome)["text"], &json(&outcome)["removed"]), (&"done".into(), &true.into()));
    fake.with(|state| {
        assert_eq!(state.answered, [("per_1".to_owned(), i32::from(v1::PermissionResponse::Once))]);
        assert_eq!(state.removed, [SESSION]);
    });
}

#[tokio::test]
async fn a_refused_key_and_a_missing_key_have_the_same_exit_code() {
    let error = Kind::AgentError(v1::AgentErrorEvent {
        name: "APIError".into(),
        message: "invalid x-api-key".into(),
        status_code: Some(401),
        hint: "store a new one: openagent keys set openai".into(),
    });
    let script = vec![error, ended(v1::TurnOutcome::Failed, "invalid x-api-key")];
    let fake = Fake::serving(State { script, ..Default::default() });
    let outcome = fake.openagent(&["run", "go"]).await;
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert_eq!(outcome.stderr, "error: invalid x-api-key\nhint: store a new one: openagent keys set openai\n");
    let outcome = fake.openagent(&["new", "--model", "openai/none"]).await;
    assert_eq!(outcome.code, 4);
    assert_eq!(outcome.stderr, "error: openai has no key\nhint: store it: openagent keys set openai\n");
}

#[tokio::test]
async fn a_turn_that_failed_is_an_error_and_one_that_does_not_end_is_given_up() {
    let fake = Fake::serving(State { script: vec![ended(v1::TurnOutcome::Failed, "overloaded")], ..Default::default() });
    let outcome = fake.openagent(&["run", "go"]).await;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (1, "error: overloaded\n"));
    let outcome = fake.openagent(&["prompt", "q69g5fav", "go on", "--wait", "--timeout", "100ms", "--json"]).await;
    assert_eq!((outcome.code, &json(&outcome)["outcome"]), (1, &"timeout".into()), "{outcome:?}");
}

#[tokio::test]
async fn sessions_are_listed_for_people_and_for_programs() {
    let sessions = vec![session(SESSION, "fix \x1b[31mthe parser"), session(OTHER, "docs")];
    let fake = Fake::serving(State { sessions, ..Default::default() });
    let table = fake.openagent(&["ls"]).await;
    assert_eq!(table.code, 0, "{table:?}");
    assert!(table.stdout.starts_with("ID        STATE") && table.stdout.contains("fix ^[[31mthe parser"), "{table:?}");
    let listed = json(&fake.openagent(&["ls", "-o", "json"]).await);
    assert_eq!(
        (&listed[1]["id"], &listed[1]["status"], &listed[1]["activity"]["state"]),
        (&OTHER.into(), &"active".into(), &"quiet".into())
    );
    assert_eq!(json(&fake.openagent(&["show", "docs", "--json"]).await)["id"], OTHER);
    let ambiguous = fake.openagent(&["show", "01A"]).await;
    assert_eq!(ambiguous.code, 2);
    assert!(ambiguous.stderr.contains("may be 2 sessions: Q69G5FAV fix ^[[31mthe parser, Q69G5FBW docs"), "{ambiguous:?}");
    let unknown = fake.openagent(&["show", "nothing"]).await;
    assert_eq!((unknown.code, unknown.stdout.as_str()), (3, ""));
    let gone = fake.openagent(&["show", "ses_01ARZ3NDEKTSV4RRFFQ69G5FCX"]).await;
    assert_eq!((gone.code, gone.stderr.as_str()), (3, "error: there is no such session\nhint: list them: openagent ls\n"));
}

#[tokio::test]
async fn logs_are_one_json_event_a_line_from_the_cursor_on() {
    let fake = Fake::serving(State { sessions: vec![session(SESSION, "t")], ..Default::default() });
    fake.record([Kind::Gap(v1::GapEvent { reason: "first".into() }), Kind::Gap(v1::GapEvent { reason: "second".into() })]);
    fake.record([Kind::Title(v1::TitleEvent { title: "third".into() })]);
    let outcome = fake.openagent(&["logs", SESSION, "--after", "1", "--json"]).await;
    let lines: Vec<openagent_core::event::Event> =
        outcome.stdout.lines().map(|line| serde_json::from_str(line).expect("core's own form")).collect();
    assert_eq!(lines.iter().map(|event| event.seq).collect::<Vec<_>>(), [2, 3], "{outcome:?}");
    assert_eq!(fake.openagent(&["logs", SESSION]).await.stdout.lines().count(), 3);
}

#[tokio::test]
async fn what_waits_is_listed_and_answered_with_or_without_its_session() {
    let fake = Fake::serving(State { sessions: vec![session(SESSION, "t")], ..Default::default() });
    fake.record([asks("make", &["make"])]);
    let inbox = json(&fake.openagent(&["inbox", "--json"]).await);
    assert_eq!((&inbox[0]["kind"], &inbox[0]["title"]), (&"permission".into(), &"make".into()));
    assert_eq!(fake.openagent(&["permit", "per_1", "perhaps"]).await.code, 2);
    assert_eq!(fake.openagent(&["permit", "per_2", "once"]).await.code, 3);
    assert_eq!(fake.openagent(&["permit", "per_1", "always"]).await.code, 0);
    fake.record([asks("make", &["make"])]);
    assert_eq!(fake.openagent(&["permit", "Q69G5FAV", "per_1", "reject", "--reason", "no"]).await.code, 0);
    let given: Vec<i32> = fake.with(|state| state.answered.iter().map(|(_, response)| *response).collect());
    assert_eq!(given, [v1::PermissionResponse::Always, v1::PermissionResponse::Reject].map(i32::from));
}

#[tokio::test]
async fn a_question_is_answered_by_label_or_number() {
    let option = |label: &str| v1::QuestionOption { label: label.into(), description: String::new() };
    let question = v1::Question { text: "Which?".into(), options: vec![option("SQLite"), option("Postgres")], ..Default::default() };
    let request = v1::QuestionRequest { id: "que_1".into(), conversation_id: SESSION.into(), questions: vec![question], asked_at: None };
    let request = Some(v1::pending::Request::Question(request));
    let pending = vec![v1::Pending { session_id: SESSION.into(), session_title: "t".into(), request }];
    let fake = Fake::serving(State { sessions: vec![session(SESSION, "t")], pending, ..Default::default() });
    assert_eq!(fake.openagent(&["answer", "t", "que_1", "Oracle"]).await.code, 2);
    assert_eq!(fake.openagent(&["answer", "t", "que_1", "2"]).await.code, 0);
    assert_eq!(fake.openagent(&["answer", "t", "que_1", "--dismiss"]).await.code, 0);
    fake.with(|state| {
        assert_eq!(state.answers[0].answers[0].chosen, ["Postgres"]);
        assert!(state.answers[1].dismiss && state.answers[1].answers.is_empty());
    });
}

#[tokio::test]
async fn a_key_comes_from_stdin_and_is_never_printed() {
    let fake = Fake::serving(State::default());
    let outcome = fake.openagent_with(&["keys", "set", "openai"], "sk-canary-key\n").await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(!format!("{outcome:?}").contains("canary"));
    fake.with(|state| assert_eq!(state.secrets, [("openai".to_owned(), "sk-canary-key".to_owned())]));
    assert_eq!(fake.openagent(&["keys", "set", "openai"]).await.code, 2, "an empty key");
    assert_eq!(fake.openagent_with(&["keys", "set", "nobody"], "sk").await.code, 3);
    assert_eq!(fake.openagent(&["keys", "rm", "openai"]).await.code, 3);
    let models = json(&fake.openagent(&["models", "openai", "--json"]).await);
    assert_eq!((&models[0]["id"], &models[0]["default"], &models[0]["usable"]), (&"openai/gpt".into(), &true.into(), &false.into()));
}

#[tokio::test]
async fn an_archive_is_whole_under_its_name_or_not_there() {
    let archive = vec![Ok(b"PK".to_vec()), Ok(b"rest".to_vec())];
    let fake = Fake::serving(State { sessions: vec![session(SESSION, "t")], archive, ..Default::default() });
    let path = fake.folder().join("out.zip");
    let name = path.to_str().expect("temporary folders are UTF-8");
    assert_eq!(fake.openagent(&["export", SESSION, "-o", name]).await.code, 0);
    assert_eq!(std::fs::read(&path).expect("it is there"), b"PKrest");
    let refused = fake.openagent(&["export", SESSION, "-o", name]).await;
    assert!(refused.code == 1 && refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(fake.openagent(&["export", SESSION, "-o", "-"]).await.stdout, "PKrest");
    fake.with(|state| state.archive = vec![Ok(b"PK".to_vec()), Err(Code::Internal)]);
    assert_eq!(fake.openagent(&["export", SESSION, "-o", name, "--force"]).await.code, 1);
    assert_eq!(std::fs::read(&path).expect("it is still there"), b"PKrest");
    let left: Vec<_> = std::fs::read_dir(fake.folder()).expect("it can be listed").flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
}

#[tokio::test]
async fn waiting_tells_done_from_blocked_by_the_exit_code() {
    let activity = |kind| Some(v1::Activity { kind: Some(kind) });
    let mut blocked = session(SESSION, "t");
    blocked.activity = activity(v1::activity::Kind::Blocked(v1::ActivityBlocked { permissions: 1, questions: 0 }));
    let mut done = session(OTHER, "d");
    done.activity = activity(v1::activity::Kind::Done(v1::ActivityDone {}));
    let fake = Fake::serving(State { sessions: vec![blocked, done], ..Default::default() });
    assert_eq!(fake.openagent(&["wait", SESSION, "--timeout", "100ms"]).await.code, 1, "nothing is listed: it was answered a moment ago");
    fake.record([asks("make", &["make"])]);
    assert_eq!(fake.openagent(&["wait", SESSION]).await.code, 5);
    assert_eq!(fake.openagent(&["wait", OTHER]).await.code, 0);
    assert_eq!(fake.openagent(&["wait", SESSION, "--until", "done", "--timeout", "100ms"]).await.code, 1);
    assert_eq!(fake.openagent(&["wait", "ses_01ARZ3NDEKTSV4RRFFQ69G5FCX"]).await.code, 3);
}

#[tokio::test]
async fn a_daemon_of_another_protocol_is_refused_with_the_command_that_mends_it() {
    let fake = Fake::serving(State { protocol: Some(0), ..Default::default() });
    let outcome = fake.openagent(&["ls"]).await;
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("openagent daemon restart"), "{outcome:?}");
    assert_eq!(json(&fake.openagent(&["daemon", "status", "--json"]).await)["protocol"], 0, "it can still be looked at");
}

#[tokio::test]
async fn what_makes_no_sense_has_the_usage_code_and_needs_no_daemon() {
    let fake = Fake::new(State::default());
    for line in [&["frobnicate"][..], &["run"], &["new", "--memory", "lots"], &["keys", "set", "openai", "sk-secret"]] {
        assert_eq!(fake.openagent(line).await.code, 2, "{line:?}");
    }
    assert_eq!(fake.openagent(&["daemon", "status"]).await.code, 1);
    assert_eq!(fake.openagent(&["--help"]).await.code, 0);
    let config = fake.openagent(&["config", "print"]).await;
    assert!(config.code == 0 && config.stdout.contains("driver = "), "{config:?}");
    assert!(!fake.folder().join("openagentd.log").exists(), "no daemon was started");
}
