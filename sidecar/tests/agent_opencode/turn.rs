//! Turns: prompts, permissions, aborts, subagents, and what is told when the stream of events breaks.

use openagent_core::event::{AgentProcess, EventKind, PartBody, Role, ToolState, TurnOutcome};
use openagent_core::permission::PermissionResponse;
use openagent_proto::sidecar::{AllowRule, PermissionReply, Prompt, StartAgent, Title};
use serde_json::json;
use tokio::time::timeout;

use crate::fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_asks_for_permission_and_writes_its_file() {
    let mut world = World::new().await;
    assert!(!world.agent.ready());
    let started = world.agent.start(start(provider("demo", "demo", ""))).await.unwrap();
    assert_eq!(started.version, "1.18.33");
    assert!(world.agent.ready() && world.agent.health().running);
    assert_eq!(world.agent.start(start(provider("demo", "demo", ""))).await.unwrap(), started, "starting again changes nothing");
    assert!(world.folder.path().join("workspace/.git").exists());

    let message = world.prompt("Show me around", "demo/tour").await;
    let asked = world.until_asked().await;
    assert_eq!(asked.permission, "bash");
    assert!(asked.title.contains("ls -la"), "{asked:?}");
    assert!(world.letters.contains("Welcome to **OpenAgent**"), "the text streams before the question: {:?}", world.letters);
    let unknown = PermissionReply { id: "per_x".into(), response: "once".into(), reason: None, by: "test".into() };
    assert_eq!(world.agent.answer_permission(unknown).await.unwrap_err().code.wire().0, "NOT_FOUND");
    world.answer(asked.id.as_str(), "session").await;
    let answered =
        |kind: &EventKind| if let EventKind::PermissionAnswered { by, response, .. } = kind { Some((by.clone(), *response)) } else { None };
    assert_eq!(world.until("answer", answered).await, ("test".to_owned(), PermissionResponse::Session));
    let asked = world.until_asked().await;
    assert_eq!(asked.permission, "edit");
    assert!(asked.diff.as_ref().unwrap().contains("+# Hello from OpenAgent"), "{asked:?}");
    assert!(!world.folder.path().join("workspace/hello-openagent.md").exists());
    world.answer(asked.id.as_str(), "once").await;
    assert_eq!(world.until_turn_ended().await, TurnOutcome::Completed);

    assert!(std::fs::read_to_string(world.folder.path().join("workspace/hello-openagent.md")).unwrap().starts_with("# Hello"));
    let tools = world.tools();
    assert!(tools.iter().any(|(tool, state)| tool == "bash"
        && matches!(state, ToolState::Completed { output, exit_code: Some(0), .. } if output.contains(".git"))));
    assert!(tools.iter().any(|(tool, state)| tool == "write" && matches!(state, ToolState::Completed { .. })));
    assert!(world.texts().contains("That was the tour"));
    assert!(
        world.told.iter().any(|kind| matches!(kind, EventKind::Message { message: m } if m.id.as_str() == message && m.role == Role::User))
    );
    assert!(world.told.iter().any(|kind| matches!(kind, EventKind::Usage { usage, .. } if usage.cost_micros > 0)));
    assert!(world.models.calls() >= 3);
    let diff = |kind: &EventKind| if let EventKind::Diff { files } = kind { Some(files.clone()) } else { None };
    assert_eq!(world.told.iter().filter_map(diff).next_back().unwrap()[0].path, "hello-openagent.md");

    world.prompt("And now?", "demo/tour").await;
    assert_eq!(world.until_turn_ended().await, TurnOutcome::Completed);
    assert!(world.texts().contains("I am only a scripted demo"));
    assert_eq!(world.told.iter().filter(|kind| matches!(kind, EventKind::TurnEnded { .. })).count(), 2);
    assert!(world.told.iter().any(|kind| matches!(kind, EventKind::Title { title } if title == "A tour of OpenAgent")));
    world.agent.rename(Title { title: "Mine".into() }).await.unwrap();
    world.until("new title", |kind| matches!(kind, EventKind::Title { title } if title == "Mine").then_some(())).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_turn_ends_once_as_aborted_and_the_next_prompt_works() {
    let (mut world, mut model) = (World::new().await, Model::new().await);
    std::fs::write(world.folder.path().join("workspace/AGENTS.md"), "Always be brief, says the canary.").unwrap();
    world.agent.start(StartAgent { title: Some("Named".into()), ..start(model.provider()) }).await.unwrap();
    world.agent.abort().await.unwrap();
    world.prompt("Talk", "acme/tour").await;
    let call = model.call().await;
    assert_eq!(call.request["model"], "tour");
    assert!(call.request.to_string().contains("says the canary"), "the project's instructions are read");
    call.say("half a ").await;
    world
        .until("text", |kind| {
            matches!(kind, EventKind::Part { part } if matches!(part.body, PartBody::Text { done: false, .. })).then_some(())
        })
        .await;
    world.agent.abort().await.unwrap();
    assert_eq!(world.until_turn_ended().await, TurnOutcome::Aborted);
    assert!(world.texts().contains("half a "));
    drop(call);

    world.prompt("Again", "acme/tour").await;
    let call = model.call().await;
    call.say("whole").await;
    call.stop().await;
    assert_eq!(world.until_turn_ended().await, TurnOutcome::Completed);
    assert!(world.texts().contains("whole"));
    assert_eq!(world.told.iter().filter(|kind| matches!(kind, EventKind::TurnEnded { .. })).count(), 2);
    assert!(!world.told.iter().any(|kind| matches!(kind, EventKind::Title { .. })), "the user's title stays");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_comes_back_and_what_it_left_open_is_closed() {
    let (mut world, mut model) = (World::new().await, Model::new().await);
    world.agent.start(start(model.provider())).await.unwrap();
    world.prompt("Run it", "acme/tour").await;
    let call = model.call().await;
    call.say("Running.").await;
    call.tool("bash", &json!({ "command": "sleep 60", "description": "Waits" })).await;
    let asked = world.until_asked().await;
    kill(&world);
    let exited = |kind: &EventKind| match kind {
        EventKind::Agent { process: AgentProcess::Exited { code, restart_in_millis, .. } } => Some((*code, *restart_in_millis)),
        _ => None,
    };
    assert_eq!(world.until("exit", exited).await, (137, Some(500)));
    let interrupted = |kind: &EventKind| matches!(kind, EventKind::TurnEnded { outcome: TurnOutcome::Interrupted });
    assert_eq!(world.told.iter().filter(|kind| interrupted(kind)).count(), 1);
    assert!(
        matches!(world.tools().last(), Some((_, ToolState::Error { error, .. })) if error.contains("interrupted")),
        "{:?}",
        world.tools()
    );
    assert!(world.told.iter().any(|kind| matches!(kind, EventKind::PermissionAnswered { id, by, .. } if *id == asked.id && by == "agent")));
    let ready = |kind: &EventKind| matches!(kind, EventKind::Agent { process: AgentProcess::Ready { .. } }).then_some(());
    world.until("second start", ready).await;
    assert_eq!(world.agent.health().restarts, 1);
    assert!(world.told.iter().filter(|kind| interrupted(kind)).count() == 1, "the turn is interrupted once");

    timeout(LONG, async {
        while !world.agent.ready() {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
    world.prompt("Go on", "acme/tour").await;
    let call = model.call().await;
    assert!(call.request.to_string().contains("Run it"), "the conversation goes on");
    call.say("Fine.").await;
    call.stop().await;
    assert_eq!(world.until_turn_ended().await, TurnOutcome::Completed);

    // The sidecar dies as well, in the middle of a turn: a new one finds out.
    world.prompt("Once more", "acme/tour").await;
    let call = model.call().await;
    call.say("lost letters").await;
    world
        .until("text", |kind| {
            matches!(kind, EventKind::Part { part } if matches!(part.body, PartBody::Text { done: false, .. })).then_some(())
        })
        .await;
    drop(call);
    let World { folder, agent, reader, journal, .. } = world;
    let servers_home = folder.path().to_owned();
    drop((agent, reader, journal));
    let mut world = World::open(folder, program()).await;
    assert_eq!(servers_home, world.folder.path());
    world.agent.start(start(model.provider())).await.unwrap();
    world.until("start of the new sidecar's agent", ready).await;
    assert_eq!(world.told.iter().filter(|kind| interrupted(kind)).count(), 1, "{:#?}", world.told);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_agent_a_remembered_answer_and_a_mode_that_changes_nothing() {
    let (mut world, mut model) = (World::new().await, Model::new().await);
    let allow = vec![AllowRule { permission: "bash".into(), pattern: "echo *".into() }];
    world.agent.start(StartAgent { allow, ..start(model.provider()) }).await.unwrap();
    let prompt = Prompt { text: "x".into(), model: "acme/tour".into(), agent: "nobody".into() };
    // OpenCode takes the prompt and fails on it afterwards, or refuses it.
    if world.agent.prompt(prompt).await.is_ok() {
        let outcome = world.until_turn_ended().await;
        assert!(matches!(&outcome, TurnOutcome::Failed { message } if message.contains("nobody")), "{outcome:?} {:#?}", world.told);
        assert!(world.told.iter().any(|kind| matches!(kind, EventKind::AgentError { .. })));
    }
    let prompt = Prompt { text: "x".into(), model: "other/tour".into(), agent: "build".into() };
    assert_eq!(world.agent.prompt(prompt).await.unwrap_err().code.wire().0, "INVALID_REQUEST");

    world.prompt("Echo", "acme/tour").await;
    let call = model.call().await;
    let tools: Vec<_> =
        call.request["tools"].as_array().unwrap().iter().map(|tool| tool["function"]["name"].as_str().unwrap().to_owned()).collect();
    assert!(tools.contains(&"bash".to_owned()) && tools.contains(&"task".to_owned()), "{tools:?}");
    call.tool("bash", &json!({ "command": "echo allowed", "description": "Echoes" })).await;
    let call = model.call().await;
    assert!(call.request.to_string().contains("allowed\\n"), "it ran unasked");
    call.tool("bash", &json!({ "command": "ls", "description": "Lists" })).await;
    let asked = world.until_asked().await;
    assert_eq!(asked.title, "ls");
    let reject = PermissionReply { id: asked.id.to_string(), response: "reject".into(), reason: Some("not now".into()), by: "test".into() };
    world.agent.answer_permission(reject.clone()).await.unwrap();
    assert!(world.agent.answer_permission(reject).await.is_err(), "one answer is enough");
    let call = model.call().await;
    assert!(call.request.to_string().contains("not now"), "the agent reads the reason");
    call.stop().await;
    assert_eq!(world.until_turn_ended().await, TurnOutcome::Completed);
    let rejected = |kind: &EventKind| matches!(kind, EventKind::PermissionAnswered { response: PermissionResponse::Reject, by, reason: Some(reason), .. } if by == "test" && reason == "not now");
    assert!(world.told.iter().any(rejected));

    // Another mode is another configuration: the agent is started anew.
    world.agent.start(StartAgent { permission_mode: "read-only".into(), ..start(model.provider()) }).await.unwrap();
    world.prompt("Look", "acme/tour").await;
    let call = model.call().await;
    let tools = call.request["tools"].to_string();
    assert!(!tools.contains("\"bash\"") && !tools.contains("\"write\"") && tools.contains("\"read\""), "{tools}");
    call.stop().await;
    assert_eq!(world.until_turn_ended().await, TurnOutcome::Completed);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wire_format_calls_its_own_path_through_the_proxy() {
    let (mut world, mut model) = (World::new().await, Model::new().await);
    for (kind, path) in [("anthropic", "/v1/messages"), ("openai", "/v1/responses")] {
        // Another set of providers is another configuration.
        world.agent.start(start(provider(kind, kind, &model.base_url))).await.unwrap();
        world.prompt("Hello", &format!("{kind}/tour")).await;
        let call = model.call().await;
        assert_eq!((call.path.as_str(), &call.request["model"], &call.request["stream"]), (path, &json!("tour"), &json!(true)));
        world.agent.abort().await.unwrap();
        assert_eq!(world.until_turn_ended().await, TurnOutcome::Aborted);
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subagents_request_is_asked_and_answered() {
    let (mut world, mut model) = (World::new().await, Model::new().await);
    world.agent.start(start(model.provider())).await.unwrap();
    world.prompt("Delegate", "acme/tour").await;
    let call = model.call().await;
    call.tool("task", &json!({ "description": "Look", "prompt": "Run date", "subagent_type": "general" })).await;
    let call = model.call().await;
    call.tool("bash", &json!({ "command": "date", "description": "Tells the time" })).await;
    let asked = world.until_asked().await;
    let subagent = world
        .told
        .iter()
        .find_map(|kind| if let EventKind::Subagent { conversation, .. } = kind { Some(conversation.clone()) } else { None });
    assert_eq!(subagent, Some(asked.conversation.clone()), "a subagent asks as well, for itself");
    world.answer(asked.id.as_str(), "once").await;
    let call = model.call().await;
    call.say("It is late.").await;
    call.stop().await;
    let call = model.call().await;
    call.say("The subagent says it is late.").await;
    call.stop().await;
    assert_eq!(world.until_turn_ended().await, TurnOutcome::Completed);
    assert!(world.texts().contains("The subagent says it is late."));
    assert_eq!(world.told.iter().filter(|kind| matches!(kind, EventKind::TurnEnded { .. })).count(), 1);
    world.end().await;
}

/// OpenCode behind a forwarder that cuts every connection at SIGUSR1, refuses new ones, and lets them through again at SIGUSR2.
const FORWARDER: &str = r#"#!/usr/bin/env python3
import signal, socket, subprocess, sys, threading
child = subprocess.Popen(["PROGRAM"] + sys.argv[1:], stdout=subprocess.PIPE, text=True)
port = next(int(line.rsplit(":", 1)[1]) for line in child.stdout if "listening on" in line)
pairs, open_ = [], True
def cut(*_):
    global open_
    open_ = False
    for end in pairs:
        try: end.shutdown(socket.SHUT_RDWR)
        except OSError: pass
    pairs.clear()
def mend(*_):
    global open_
    open_ = True
signal.signal(signal.SIGUSR1, cut)
signal.signal(signal.SIGUSR2, mend)
def pump(source, sink):
    try:
        while data := source.recv(65536): sink.sendall(data)
    except OSError: pass
    for end in (source, sink):
        try: end.shutdown(socket.SHUT_RDWR)
        except OSError: pass
listener = socket.create_server(("127.0.0.1", 0))
print("opencode server listening on http://127.0.0.1:%d" % listener.getsockname()[1], flush=True)
while True:
    ours, _ = listener.accept()
    if not open_:
        ours.close()
        continue
    theirs = socket.create_connection(("127.0.0.1", port))
    pairs += [ours, theirs]
    threading.Thread(target=pump, args=(ours, theirs), daemon=True).start()
    threading.Thread(target=pump, args=(theirs, ours), daemon=True).start()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_while_the_event_stream_is_down_is_told_afterwards_and_once() {
    use nix::sys::signal::{Signal, kill};
    let folder = folder();
    let forwarder = folder.path().join("opencode");
    write_program(&forwarder, &FORWARDER.replace("PROGRAM", program().to_str().unwrap()));
    let (mut world, mut model) = (World::open(folder, forwarder).await, Model::new().await);
    let allow = vec![AllowRule { permission: "bash".into(), pattern: "echo *".into() }];
    world.agent.start(StartAgent { allow, ..start(model.provider()) }).await.unwrap();
    let is_forwarder = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("python"));
    let forwarder = nix::unistd::Pid::from_raw(servers(&world).into_iter().find(is_forwarder).unwrap());

    world.prompt("Go", "acme/tour").await;
    let call = model.call().await;
    call.say("before ").await;
    world
        .until("text", |kind| {
            matches!(kind, EventKind::Part { part } if matches!(part.body, PartBody::Text { done: false, .. })).then_some(())
        })
        .await;
    kill(forwarder, Signal::SIGUSR1).unwrap();
    call.say("and in the gap").await;
    call.tool("bash", &json!({ "command": "echo in-the-gap", "description": "Echoes" })).await;
    let call = model.call().await;
    assert!(call.request.to_string().contains("in-the-gap\\n"), "the command has run while nobody listened");
    call.tool("bash", &json!({ "command": "ls", "description": "Lists" })).await;
    kill(forwarder, Signal::SIGUSR2).unwrap();

    let asked = world.until_asked().await;
    assert!(world.texts().contains("before and in the gap"));
    assert!(world.tools().iter().any(|(_, state)| matches!(state, ToolState::Completed { output, .. } if output == "in-the-gap\n")));
    world.answer(asked.id.as_str(), "once").await;
    let call = model.call().await;
    call.say("after").await;
    call.stop().await;
    assert_eq!(world.until_turn_ended().await, TurnOutcome::Completed);
    assert!(world.texts().contains("after"));
    let count = |wanted: &dyn Fn(&EventKind) -> bool| world.told.iter().filter(|kind| wanted(kind)).count();
    assert_eq!(count(&|kind| matches!(kind, EventKind::TurnEnded { .. })), 1);
    assert_eq!(count(&|kind| matches!(kind, EventKind::PermissionAsked { .. })), 1);
    assert_eq!(count(&|kind| matches!(kind, EventKind::Gap { .. })), 0);
    assert_eq!(world.agent.health().restarts, 0);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_program_and_another_major_version_are_told_plainly() {
    let world = World::open(folder(), "/nowhere/opencode".into()).await;
    let error = world.agent.start(start(provider("demo", "demo", ""))).await.unwrap_err();
    assert_eq!(error.code.wire().0, "AGENT_UNAVAILABLE");
    assert!(error.message.starts_with("OpenCode is missing"), "{}", error.message);
    let error = world.agent.prompt(Prompt { text: "x".into(), model: "demo/tour".into(), agent: "build".into() }).await.unwrap_err();
    assert_eq!(error.code.wire().0, "NOT_READY");

    let World { folder, agent, reader, journal, .. } = world;
    drop((agent, reader, journal));
    // A server of version 2 as far as it is looked at.
    let program = folder.path().join("opencode");
    let script = r#"#!/usr/bin/env python3
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"healthy":true,"version":"2.0.1"}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print("opencode server listening on http://127.0.0.1:%d" % server.server_port, flush=True)
server.serve_forever()
"#;
    write_program(&program, script);
    let world = World::open(folder, program).await;
    let error = world.agent.start(start(provider("demo", "demo", ""))).await.unwrap_err();
    assert_eq!(error.code.wire().0, "AGENT_UNAVAILABLE");
    assert!(error.message.contains("2.0.1 is not supported"), "{}", error.message);
    assert!(!world.agent.health().running);
}
