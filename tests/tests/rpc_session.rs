//! Contract of `SessionService`: each call's success, that it may be repeated, and every code that it promises.

use std::collections::HashSet;
use std::io::Read;
use std::time::Duration;

use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_proto::v1::watch_sessions_response::Item;
use openagent_tests::harness::client::{Clients, within};
use openagent_tests::harness::refusal::refused;
use openagent_tests::harness::{Driver, PATIENCE, World};
use sha2::Digest;
use tonic::{Code, Streaming};

const MODEL: &str = "scripted/scripted-large";
const UNKNOWN: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV";

/// The door's own limit of a prompt.
const PROMPT_MAX_BYTES: usize = 1024 * 1024;

/// A world whose sessions fail at their first step: they cost nothing, and all that needs no agent can be tried with them.
async fn without_opencode() -> World {
    let mut world = World::new(Driver::Local).await;
    world.set_env("OPENAGENT_OPENCODE", &world.path("no-opencode").display().to_string());
    world.start().await;
    world.set_keys("any").await;
    world
}

fn prompt(id: &str, text: &str) -> v1::PromptRequest {
    v1::PromptRequest { session_id: id.to_owned(), text: text.to_owned(), ..Default::default() }
}

fn rename(id: &str, title: &str) -> v1::RenameSessionRequest {
    v1::RenameSessionRequest { session_id: id.to_owned(), title: title.to_owned() }
}

fn stop_within(id: &str, seconds: i64) -> v1::StopSessionRequest {
    v1::StopSessionRequest { session_id: id.to_owned(), grace_period: Some(prost_types::Duration { seconds, nanos: 0 }) }
}

fn resume(id: &str) -> v1::ResumeSessionRequest {
    v1::ResumeSessionRequest { session_id: id.to_owned() }
}

fn abort(id: &str) -> v1::AbortRequest {
    v1::AbortRequest { session_id: id.to_owned() }
}

fn export(id: &str) -> v1::ExportSessionRequest {
    v1::ExportSessionRequest { session_id: id.to_owned() }
}

/// Waits until a list that is watched says something.
async fn seen<T>(watch: &mut Streaming<v1::WatchSessionsResponse>, what: &str, mut wanted: impl FnMut(Item) -> Option<T>) -> T {
    within(what, PATIENCE, async {
        loop {
            let item = watch.message().await.expect("the watch does not break").expect("nor end").item.expect("an item is never empty");
            if let Some(found) = wanted(item) {
                return found;
            }
        }
    })
    .await
}

async fn watched(clients: &mut Clients) -> Streaming<v1::WatchSessionsResponse> {
    clients.session.watch_sessions(v1::WatchSessionsRequest {}).await.expect("sessions are watched").into_inner()
}

async fn failed(clients: &mut Clients) -> v1::Session {
    let id = clients.create(MODEL).await.id;
    clients.get_when(&id, "the failure", |session| session.status() == v1::SessionStatus::Error).await
}

#[tokio::test]
async fn a_session_that_cannot_be_made_is_refused_with_all_mistakes_at_once() {
    let world = World::started(Driver::Local).await;
    let mut clients = world.clients().await;
    let all_wrong = v1::CreateSessionRequest {
        title: "two\nlines".to_owned(),
        workspace: Some(v1::Workspace {
            source: Some(v1::workspace::Source::Copy(v1::CopyWorkspace { path: "relative/folder".to_owned() })),
        }),
        model: "nobody/nothing".to_owned(),
        agent: "no such name".to_owned(),
        permission_mode: 99,
        limits: Some(v1::Limits { memory_bytes: 1, cpu_millis: 1, pids: 1 }),
        idle_timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        idle_action: 98,
    };
    let refusal = refused(clients.session.create_session(all_wrong).await, Code::InvalidArgument, "INVALID");
    for mistake in ["title", "relative/folder", "nobody", "no such name", "99", "memory", "processor", "processes", "idle timeout", "98"] {
        assert!(refusal.message.contains(mistake), "{mistake} is missing in {:?}", refusal.message);
    }
    let long = v1::CreateSessionRequest { title: "x".repeat(201), ..Default::default() };
    assert!(refused(clients.session.create_session(long).await, Code::InvalidArgument, "INVALID").message.contains("200"));

    let with = |model: &str| v1::CreateSessionRequest { model: model.to_owned(), ..Default::default() };
    for (model, code, reason, meant) in [
        ("scriptd/scripted-large", Code::InvalidArgument, "PROVIDER_UNKNOWN", "scripted"),
        ("scripted/scripted-larg", Code::InvalidArgument, "MODEL_UNKNOWN", "scripted/scripted-large"),
        ("scripted-large", Code::InvalidArgument, "MODEL_INVALID", "/scripted-large"),
        (MODEL, Code::FailedPrecondition, "KEY_MISSING", "openagent keys set scripted"),
    ] {
        let refusal = refused(clients.session.create_session(with(model)).await, code, reason);
        assert!(refusal.hint.contains(meant), "{model}: {refusal:?}");
    }
    assert!(clients.list().await.is_empty(), "nothing was made");
    world.end().await;
}

#[tokio::test]
async fn every_call_says_that_there_is_no_such_session() {
    let world = World::started(Driver::Local).await;
    for (id, code, reason) in
        [(UNKNOWN, Code::NotFound, "NOT_FOUND"), ("nonsense", Code::InvalidArgument, "INVALID"), ("", Code::InvalidArgument, "INVALID")]
    {
        let Clients { mut session, mut event, mut permission, mut terminal, mut usage, .. } = world.clients().await;
        let (id, request_id, terminal_id) = (id.to_owned(), "per_1".to_owned(), "trm_01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned());
        refused(session.get_session(v1::GetSessionRequest { session_id: id.clone() }).await, code, reason);
        refused(session.prompt(prompt(&id, "hello")).await, code, reason);
        refused(session.abort(abort(&id)).await, code, reason);
        refused(session.stop_session(stop_within(&id, 1)).await, code, reason);
        refused(session.resume_session(resume(&id)).await, code, reason);
        refused(session.remove_session(v1::RemoveSessionRequest { session_id: id.clone() }).await, code, reason);
        refused(session.rename_session(rename(&id, "a title")).await, code, reason);
        refused(session.export_session(export(&id)).await, code, reason);
        refused(event.subscribe(v1::SubscribeRequest { session_id: id.clone(), ..Default::default() }).await, code, reason);
        let once = v1::PermissionResponse::Once.into();
        let answer =
            v1::AnswerPermissionRequest { session_id: id.clone(), request_id: request_id.clone(), response: once, ..Default::default() };
        refused(permission.answer_permission(answer).await, code, reason);
        let answer = v1::AnswerQuestionRequest { session_id: id.clone(), request_id, dismiss: true, ..Default::default() };
        refused(permission.answer_question(answer).await, code, reason);
        refused(terminal.open_terminal(v1::OpenTerminalRequest { session_id: id.clone(), ..Default::default() }).await, code, reason);
        refused(terminal.list_terminals(v1::ListTerminalsRequest { session_id: id.clone() }).await, code, reason);
        let close = v1::CloseTerminalRequest { session_id: id.clone(), terminal_id: terminal_id.clone() };
        refused(terminal.close_terminal(close).await, code, reason);
        let attach = v1::TerminalAttach { session_id: id.clone(), terminal_id, ..Default::default() };
        let attach = v1::AttachTerminalRequest { request: Some(v1::attach_terminal_request::Request::Attach(attach)) };
        refused(terminal.attach_terminal(tokio_stream::once(attach)).await, code, reason);
        if !id.is_empty() {
            // Where the session may be left out, an empty id means all of them.
            refused(permission.list_pending(v1::ListPendingRequest { session_id: id.clone() }).await, code, reason);
            refused(usage.get_usage(v1::GetUsageRequest { session_id: id, ..Default::default() }).await, code, reason);
        }
    }
    world.end().await;
}

#[tokio::test]
async fn sessions_are_listed_newest_first_and_watched_with_their_removal() {
    let world = without_opencode().await;
    let mut clients = world.clients().await;
    let first = failed(&mut clients).await;
    assert_eq!(first.fault.as_ref().map(|fault| fault.code.as_str()), Some("OPENCODE_MISSING"), "{first:?}");
    let mut watch = watched(&mut clients).await;
    let mut at_first = vec![];
    seen(&mut watch, "what is there", |item| match item {
        Item::Changed(session) => {
            at_first.push(session.id);
            None
        }
        Item::CaughtUp(_) => Some(()),
        Item::Removed(id) => panic!("nothing was removed: {id}"),
    })
    .await;
    assert_eq!(at_first, std::slice::from_ref(&first.id));

    let second = failed(&mut clients).await;
    let shown = |item, id: &str| {
        matches!(&item, Item::Changed(session) if session.id == id && session.status() == v1::SessionStatus::Error).then_some(())
    };
    seen(&mut watch, "the new session", |item| shown(item, &second.id)).await;
    let listed: Vec<_> = clients.list().await.into_iter().map(|session| session.id).collect();
    assert_eq!(listed, [second.id.clone(), first.id.clone()]);

    let changes = 200;
    for number in 1..=changes {
        clients.session.rename_session(rename(&second.id, &format!("title {number}"))).await.expect("it is renamed");
    }
    let mut pieces = 0;
    let last = format!("title {changes}");
    seen(&mut watch, "the last title", |item| {
        pieces += 1;
        matches!(&item, Item::Changed(session) if session.title == last).then_some(())
    })
    .await;
    assert!(pieces < changes / 2, "changes that follow fast on each other are sent as one: {pieces} for {changes}");

    clients.remove(&second.id).await;
    seen(&mut watch, "the removal", |item| (item == Item::Removed(second.id.clone())).then_some(())).await;
    let gone = clients.session.get_session(v1::GetSessionRequest { session_id: second.id.clone() }).await;
    assert!(refused(gone, Code::NotFound, "NOT_FOUND").hint.contains("openagent ls"));
    assert_eq!(clients.list().await.len(), 1);
    world.end().await;
}

#[tokio::test]
async fn a_session_keeps_what_it_was_made_with() {
    let world = without_opencode().await;
    let mut clients = world.clients().await;
    let plain = clients.create(MODEL).await;
    assert_eq!((plain.model.as_str(), plain.agent.as_str(), plain.driver.as_str()), (MODEL, "build", "local"));
    assert_eq!(
        (plain.status(), plain.permission_mode(), plain.network.as_str()),
        (v1::SessionStatus::Creating, v1::PermissionMode::Ask, "none")
    );
    assert_eq!(plain.idle_timeout, Some(prost_types::Duration { seconds: 900, nanos: 0 }));
    assert!(plain.id.starts_with("ses_") && plain.created_at.is_some() && !plain.title.is_empty());
    let own = v1::CreateSessionRequest {
        title: "mine".to_owned(),
        model: "scripted-direct/scripted-small".to_owned(),
        agent: "plan".to_owned(),
        permission_mode: v1::PermissionMode::ReadOnly.into(),
        limits: Some(v1::Limits { memory_bytes: 1 << 30, cpu_millis: 500, pids: 200 }),
        idle_timeout: Some(prost_types::Duration { seconds: 0, nanos: 0 }),
        idle_action: v1::IdleAction::Stop.into(),
        workspace: None,
    };
    let made = clients.create_with(own.clone()).await;
    let kept = clients.get(&made.id).await;
    assert_eq!((kept.title.as_str(), kept.model.as_str(), kept.agent.as_str()), ("mine", own.model.as_str(), "plan"));
    assert_eq!((plain.idle_action(), kept.idle_action()), (v1::IdleAction::Pause, v1::IdleAction::Stop));
    assert_eq!((kept.permission_mode(), kept.limits, kept.idle_timeout), (v1::PermissionMode::ReadOnly, own.limits, own.idle_timeout));
    assert_eq!(kept.workspace.and_then(|workspace| workspace.source), Some(v1::workspace::Source::Empty(v1::EmptyWorkspace {})));

    let nowhere = v1::workspace::Source::Copy(v1::CopyWorkspace { path: world.path("no-such-folder").display().to_string() });
    let copy = clients.create_with(v1::CreateSessionRequest { workspace: Some(v1::Workspace { source: Some(nowhere) }), ..own }).await;
    let error = clients.follow(&copy.id).await.until_status(v1::SessionStatus::Error).await;
    assert!(error.fault.is_some_and(|fault| !fault.message.is_empty() && !fault.hint.is_empty()));
    world.end().await;
}

#[tokio::test]
async fn a_failed_session_says_why_and_is_stopped_renamed_resumed_and_removed() {
    let world = without_opencode().await;
    let mut clients = world.clients().await;
    let id = failed(&mut clients).await.id;
    let refusal = refused(clients.session.prompt(prompt(&id, "hello")).await, Code::FailedPrecondition, "SESSION_FAILED");
    assert!(refusal.message.contains("no-opencode") && refusal.hint.contains("OPENAGENT_OPENCODE"), "{refusal:?}");
    refused(clients.session.export_session(export(&id)).await, Code::FailedPrecondition, "SESSION_CREATING");
    clients.session.abort(abort(&id)).await.expect("no turn runs, so nothing is left to end");

    for title in ["", "   ", "a\u{7}bell", &"x".repeat(201)] {
        refused(clients.session.rename_session(rename(&id, title)).await, Code::InvalidArgument, "INVALID");
    }
    let longest = "ü".repeat(200);
    for title in [longest.as_str(), "  the new name ", "the new name"] {
        let renamed = clients.session.rename_session(rename(&id, title)).await.expect("it is renamed").into_inner().session;
        assert_eq!(renamed.map(|session| session.title).as_deref(), Some(title.trim()), "the answer shows it");
    }
    let title = |event: v1::Event| match event.kind {
        Some(Kind::Session(session)) => Some(session.title),
        _ => None,
    };
    let titles: Vec<_> = clients.history(&id).await.into_iter().filter_map(title).collect();
    assert_eq!(titles.last().map(String::as_str), Some("the new name"));
    assert_eq!(titles.iter().filter(|title| *title == "the new name").count(), 1, "the same title again is no event");

    let again = clients.session.resume_session(resume(&id)).await.expect("it is tried again").into_inner().session.expect("answered");
    assert_eq!(again.status(), v1::SessionStatus::Creating, "{again:?}");
    let mut events = clients.follow_after(&id, again.last_seq).await;
    events.until_status(v1::SessionStatus::Error).await;
    clients.get_when(&id, "the second failure", |session| session.status() == v1::SessionStatus::Error).await;
    for _ in 0..2 {
        let stopped = clients.session.stop_session(stop_within(&id, 0)).await.expect("it is stopped").into_inner().session;
        assert_eq!(stopped.map(|session| session.status()), Some(v1::SessionStatus::Stopped));
    }
    refused(clients.session.prompt(prompt(&id, "hello")).await, Code::FailedPrecondition, "SESSION_STOPPED");
    clients.remove(&id).await;
    let again = clients.session.remove_session(v1::RemoveSessionRequest { session_id: id }).await;
    refused(again, Code::NotFound, "NOT_FOUND");
    world.end().await;
}

#[tokio::test]
async fn prompts_and_grace_periods_out_of_bounds_are_refused_before_anything_happens() {
    let world = without_opencode().await;
    let mut clients = world.clients().await;
    let id = failed(&mut clients).await.id;
    let before = clients.get(&id).await.last_seq;
    for text in [String::new(), " \n\t ".to_owned(), "x".repeat(PROMPT_MAX_BYTES + 1)] {
        refused(clients.session.prompt(prompt(&id, &text)).await, Code::InvalidArgument, "INVALID");
    }
    let largest = "x".repeat(PROMPT_MAX_BYTES);
    refused(clients.session.prompt(prompt(&id, &largest)).await, Code::FailedPrecondition, "SESSION_FAILED");
    let far_too_large = clients.session.prompt(prompt(&id, &"x".repeat(3 * PROMPT_MAX_BYTES))).await;
    assert_eq!(far_too_large.expect_err("it is not even read").code(), Code::OutOfRange);
    let with = |model: &str, agent: &str| v1::PromptRequest { model: model.to_owned(), agent: agent.to_owned(), ..prompt(&id, "hello") };
    refused(clients.session.prompt(with("nobody/nothing", "")).await, Code::InvalidArgument, "PROVIDER_UNKNOWN");
    refused(clients.session.prompt(with("anthropic/claude-sonnet-4-5", "")).await, Code::FailedPrecondition, "KEY_MISSING");
    refused(clients.session.prompt(with("", "../up")).await, Code::InvalidArgument, "INVALID");
    for (seconds, nanos) in [(-1, 0), (0, -1), (300, 1), (301, 0), (i64::MAX, 0), (0, 1_000_000_000)] {
        let grace_period = Some(prost_types::Duration { seconds, nanos });
        let asked = v1::StopSessionRequest { session_id: id.clone(), grace_period };
        refused(clients.session.stop_session(asked).await, Code::InvalidArgument, "INVALID");
    }
    assert_eq!(clients.get(&id).await.last_seq, before, "nothing happened");
    assert_eq!(clients.get(&id).await.status(), v1::SessionStatus::Error);
    clients.session.stop_session(stop_within(&id, 300)).await.expect("the longest grace period is taken");
    world.end().await;
}

#[tokio::test]
async fn a_session_of_another_driver_is_not_resumed() {
    let mut world = without_opencode().await;
    let mut clients = world.clients().await;
    let id = failed(&mut clients).await.id;
    world.stop().await;
    world.set_env("OPENAGENT_DRIVER", "docker");
    world.set_env("OPENAGENT_DOCKER_HOST", &world.path("no-engine.sock").display().to_string());
    world.start().await;
    let mut clients = world.clients().await;
    let refusal = refused(clients.session.resume_session(resume(&id)).await, Code::FailedPrecondition, "OTHER_DRIVER");
    assert!(refusal.hint.contains("OPENAGENT_DRIVER=local"), "{refusal:?}");
    assert_eq!(clients.get(&id).await.title, "New session", "it can be looked at all the same");
    world.stop().await;
}

#[tokio::test]
async fn prompts_wait_while_the_session_is_created_and_are_told_when_it_is_stopped_instead() {
    let world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    let id = clients.create(MODEL).await.id;
    refused(clients.session.export_session(export(&id)).await, Code::FailedPrecondition, "SESSION_CREATING");
    let mut hurried = tonic::Request::new(prompt(&id, "#echo too slow"));
    hurried.set_timeout(Duration::from_millis(20));
    let late = clients.session.prompt(hurried).await.expect_err("the agent is not ready so fast");
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");

    // Sixteen wait (one of them has nobody who waits for it), the others are refused.
    let calls = (0..20).map(|number| {
        let (mut session, id) = (clients.session.clone(), id.clone());
        async move { session.prompt(prompt(&id, &format!("#echo {number}"))).await }
    });
    let stopping = async {
        let mut session = clients.session.clone();
        // The refusals come at once and show that the others wait.
        session.stop_session(stop_within(&id, 1)).await
    };
    let (answers, stopped) = tokio::join!(futures::future::join_all(calls), stopping);
    assert_eq!(stopped.expect("it is stopped").into_inner().session.map(|session| session.status()), Some(v1::SessionStatus::Stopped));
    let reasons: Vec<_> = answers.into_iter().map(|answer| answer.expect_err("no prompt was given").code()).collect();
    assert!(reasons.iter().all(|code| matches!(code, Code::FailedPrecondition | Code::ResourceExhausted)), "{reasons:?}");
    assert!(reasons.contains(&Code::FailedPrecondition), "{reasons:?}");
    let spoken = |kind: &Option<Kind>| matches!(kind, Some(Kind::Message(_)));
    assert!(!clients.history(&id).await.iter().any(|event| spoken(&event.kind)), "no prompt reached an agent");

    let first = clients.session.resume_session(resume(&id)).await.expect("it is resumed").into_inner().session.expect("answered");
    let second = clients.session.resume_session(resume(&id)).await.expect("it is resumed already").into_inner().session.expect("answered");
    let instance = |session: &v1::Session| session.instance.as_ref().map(|instance| instance.id.clone());
    assert_eq!(instance(&first), instance(&second), "resuming twice makes one instance");
    let mut events = clients.follow_after(&id, first.last_seq).await;
    let message = clients.prompt(&id, "#echo patience").await;
    assert!(!message.is_empty());
    let end = events.until_turn_ended().await;
    assert_eq!((end.outcome(), events.answer().as_str()), (v1::TurnOutcome::Completed, "patience"));
    let is_it = |event: &v1::Event| matches!(&event.kind, Some(Kind::Message(m)) if m.id == message && m.role() == v1::Role::User);
    assert!(events.seen.iter().any(is_it), "the id that was answered is that of the user's message");
    let active = clients.session.resume_session(resume(&id)).await.expect("it runs already").into_inner().session.expect("answered");
    assert_eq!((active.status(), instance(&active)), (v1::SessionStatus::Active, instance(&second)));
    world.end().await;
}

#[tokio::test]
async fn a_turn_is_aborted_once_and_a_session_stopped_exported_and_removed_in_the_middle_of_one() {
    let world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    let request =
        v1::CreateSessionRequest { model: MODEL.to_owned(), permission_mode: v1::PermissionMode::AutoEdit.into(), ..Default::default() };
    let id = clients.create_with(request).await.id;
    let mut events = clients.follow(&id).await;
    events.until_ready().await;
    clients.session.abort(abort(&id)).await.expect("no turn runs yet");
    clients.turn(&id, &mut events, "#write sub/kept.txt kept by export").await;
    clients.get_when(&id, "the agent's title", |session| session.title.starts_with("Scripted: ")).await;
    clients.session.rename_session(rename(&id, "mine")).await.expect("it is renamed");

    clients.prompt(&id, "#wait never").await;
    assert!(world.model.wait_until_waiting("never", PATIENCE).await);
    let working = Some(v1::Activity { kind: Some(v1::activity::Kind::Working(v1::ActivityWorking {})) });
    clients.get_when(&id, "work", |session| session.activity == working).await;
    clients.session.abort(abort(&id)).await.expect("the turn is ended");
    assert_eq!(events.until_turn_ended().await.outcome(), v1::TurnOutcome::Aborted);
    clients.session.abort(abort(&id)).await.expect("and is ended still");

    let other = v1::PromptRequest { model: "scripted/scripted-small".to_owned(), ..prompt(&id, "#echo with another model") };
    clients.session.prompt(other).await.expect("it is taken");
    events.until_turn_ended().await;
    let session = clients.get(&id).await;
    assert_eq!(
        (session.model.as_str(), session.title.as_str()),
        ("scripted/scripted-small", "mine"),
        "the model stays, the title was the user's"
    );

    let running = exported(&mut clients, &id).await;
    clients.prompt(&id, "#wait forever").await;
    assert!(world.model.wait_until_waiting("forever", PATIENCE).await);
    let stopped = clients.session.stop_session(stop_within(&id, 2)).await;
    let stopped = stopped.expect("it is stopped").into_inner().session.expect("answered");
    assert_eq!(stopped.status(), v1::SessionStatus::Stopped);
    assert_eq!(stopped.instance.map(|instance| instance.state()), Some(v1::InstanceState::Terminated));
    events.until_status(v1::SessionStatus::Stopped).await;
    clients.session.abort(abort(&id)).await.expect("no turn runs");
    assert_eq!(exported(&mut clients, &id).await["workspace/sub/kept.txt"], running["workspace/sub/kept.txt"]);

    clients.resume(&id).await;
    events.until_ready().await;
    clients.prompt(&id, "#wait for-ever").await;
    assert!(world.model.wait_until_waiting("for-ever", PATIENCE).await);
    let mut watch = watched(&mut clients).await;
    clients.remove(&id).await;
    seen(&mut watch, "the removal", |item| (item == Item::Removed(id.clone())).then_some(())).await;
    while events.next(PATIENCE).await.is_some() {}
    world.end().await;
}

/// The files of an archive, after checking its chunks and digests.
async fn exported(clients: &mut Clients, id: &str) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut chunks = clients.session.export_session(export(id)).await.expect("it is exported").into_inner();
    let mut archive = Vec::new();
    while let Some(piece) = within("the archive", PATIENCE, chunks.message()).await.expect("the stream ends without an error") {
        assert!(!piece.chunk.is_empty() && piece.chunk.len() <= 64 * 1024, "{}", piece.chunk.len());
        archive.extend(piece.chunk);
    }
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(archive)).expect("it is a zip archive");
    let mut files = std::collections::BTreeMap::new();
    for index in 0..archive.len() {
        let mut file = archive.by_index(index).expect("it can be read");
        if file.is_file() {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).expect("it is whole");
            let name = file.name().expect("names are text").into_owned();
            assert!(files.insert(name.clone(), bytes).is_none(), "{name} is there once");
        }
    }
    assert_eq!(files["workspace/sub/kept.txt"], b"kept by export");
    let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).expect("the manifest is JSON");
    let listed = manifest["files"].as_array().expect("it lists the files");
    let named: HashSet<&str> = listed.iter().filter_map(|file| file["path"].as_str()).collect();
    for (name, bytes) in files.iter().filter(|(name, _)| *name != "manifest.json") {
        assert!(named.contains(name.as_str()), "{name} is not in {named:?}");
        let entry = listed.iter().find(|file| file["path"] == name.as_str()).expect("just seen");
        assert_eq!(entry["sha256"], hex::encode(sha2::Sha256::digest(bytes)), "{name}");
    }
    assert!(String::from_utf8_lossy(&files["transcript.md"]).contains("kept by export"), "the prompt is in the transcript");
    files
}
