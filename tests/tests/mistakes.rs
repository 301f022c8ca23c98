//! What goes wrong in front of the user: each mistake, through the real `openagent` and the real daemon, is a clear sentence, says what to do,
//! has the right exit code, loses nothing, and shows no insides.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_tests::harness::client::within;
use openagent_tests::harness::{CANARY, Driver, PATIENCE, World, copy_program, programs};

const MODEL: &str = "scripted/scripted-large";
const UNKNOWN: &str = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV";

/// The user whom nothing here belongs to.
const NOBODY: u32 = 65534;

/// What no user must ever be shown.
const INSIDES: [&str; 8] = ["panicked", "RUST_BACKTRACE", "stack backtrace", "Status {", "ErrorInfo", ".rs:", "Err(", CANARY];

/// What a command said when it failed.
#[derive(Debug)]
struct Said {
    stdout: String,
    /// The error, without its label, and all its lines.
    error: String,
    hint: String,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("it prints text")
}

/// Takes apart what a failed command said.
#[track_caller]
fn failed(output: &Output, code: i32) -> Said {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{stdout}\n{stderr}");
    for inside in INSIDES {
        assert!(!stderr.contains(inside) && !stdout.contains(inside), "{inside} is shown: {stdout}\n{stderr}");
    }
    let begin = stderr.find("error: ").unwrap_or_else(|| panic!("no error is told: {stderr}"));
    let (error, hint) = stderr[begin..].split_once("\nhint: ").unwrap_or_else(|| panic!("it does not say what to do: {stderr}"));
    let error = error.trim_start_matches("error: ").to_owned();
    assert!(!error.contains("error: "), "it is told once: {stderr}");
    Said { stdout, error, hint: hint.to_owned() }
}

#[track_caller]
fn holds(text: &str, wanted: &[&str]) {
    for piece in wanted {
        assert!(text.contains(piece), "{piece:?} is missing in {text:?}");
    }
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The only session; what failed is still there to be looked at.
async fn only_session(world: &World) -> serde_json::Value {
    let listed = json(&world.cli(&["ls", "-o", "json"]).await);
    let sessions = listed.as_array().expect("a list");
    assert_eq!(sessions.len(), 1, "{listed}");
    sessions[0].clone()
}

/// The only session, once what was begun of it is undone and it shows its failure.
async fn only_failed_session(world: &World) -> serde_json::Value {
    let session = only_session(world).await;
    let waited = world.cli(&["wait", "--until", "error", session["id"].as_str().expect("it has an id")]).await;
    assert!(waited.status.success(), "{waited:?}");
    only_session(world).await
}

/// Runs programs of a folder of their own, so that what is missing there is missing.
async fn run_in(world: &World, folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(folder.join("openagent"));
    command.env_clear().envs(world.environment()).env("PATH", folder).args(arguments).stdin(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    within("the command", PATIENCE, command.kill_on_drop(true).output()).await.expect("it runs")
}

/// Copies a folder that holds only files and folders.
fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the folder is ours");
    for entry in std::fs::read_dir(from).expect("it is there") {
        let entry = entry.expect("it can be read");
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("it can be copied");
        }
    }
}

fn installed(world: &World, names: &[&str]) -> PathBuf {
    let folder = world.path("programs");
    std::fs::create_dir_all(&folder).expect("the folder is ours");
    for name in names {
        copy_program(&programs().join(name), &folder.join(name));
    }
    folder
}

#[tokio::test]
async fn a_session_that_does_not_exist() {
    let world = World::started(Driver::Local).await;
    let archive = world.path("out.zip").display().to_string();
    let commands: [&[&str]; 14] = [
        &["show", UNKNOWN],
        &["prompt", UNKNOWN, "hello"],
        &["prompt", "--wait", UNKNOWN, "hello"],
        &["wait", UNKNOWN],
        &["logs", UNKNOWN],
        &["inbox", UNKNOWN],
        &["abort", UNKNOWN],
        &["stop", UNKNOWN],
        &["resume", UNKNOWN],
        &["rename", UNKNOWN, "title"],
        &["term", UNKNOWN, "--", "true"],
        &["export", UNKNOWN, "-o", &archive],
        &["usage", UNKNOWN],
        &["answer", UNKNOWN, "que_1", "Blue"],
    ];
    for command in commands {
        let said = failed(&world.cli(command).await, 3);
        holds(&said.error, &[UNKNOWN]);
        holds(&said.hint, &["openagent ls"]);
        assert!(said.stdout.is_empty(), "{command:?}: {said:?}");
    }
    for command in [&["show", "no-such-title"][..], &["stop", "zzz"], &["permit", "per_1", "once"]] {
        failed(&world.cli(command).await, 3);
    }
    assert!(!Path::new(&archive).exists());
    world.end().await;
}

#[tokio::test]
async fn a_configuration_with_mistakes() {
    let world = World::new(Driver::Local).await;
    world.write_config("drivr = \"local\"\n[sesion]\nmodel = 1\n[daemon]\nstop_grace = \"soon\"\nlog = 7\n[docker]\nlink = \"pipe\"\n");
    for command in [&["ls"][..], &["daemon", "start"], &["run", "hello"]] {
        let said = failed(&world.cli(command).await, 1);
        holds(
            &said.error,
            &["config.toml", "drivr", "driver", "sesion", "session", "stop_grace", "log", "link", "line 1", "line 2", "line 5"],
        );
    }
    let said = failed(&world.cli(&["config", "print"]).await, 2);
    holds(&said.error, &["drivr", "stop_grace", "link"]);
    assert!(!world.path("state/db").exists(), "nothing was begun with it");

    world.write_config("");
    let status = world.cli(&["daemon", "status"]).await;
    holds(&failed(&status, 1).hint, &["openagent daemon start"]);
    assert!(world.cli(&["ls"]).await.status.success(), "mended, it works");
    assert!(world.cli(&["daemon", "stop"]).await.status.success());
}

#[tokio::test]
async fn no_engine() {
    let mut world = World::new(Driver::Docker).await;
    let nowhere = world.path("no-engine.sock").display().to_string();
    world.set_env("OPENAGENT_DOCKER_HOST", &nowhere);
    world.start().await;
    world.set_keys(CANARY).await;
    let said = failed(&world.cli(&["run", "-m", MODEL, "hello"]).await, 1);
    holds(&said.error, &[&nowhere]);
    holds(&said.hint, &["install Docker", "OPENAGENT_DRIVER=local"]);
    let session = only_failed_session(&world).await;
    assert_eq!((session["status"].as_str(), session["fault"]["code"].as_str()), (Some("error"), Some("ENGINE_MISSING")), "{session}");
    holds(&text(&world.cli(&["show", session["id"].as_str().expect("it has an id")]).await.stdout), &["install Docker"]);
    holds(&text(&world.cli(&["daemon", "status"]).await.stdout), &["docker", &nowhere, "install Docker"]);
    world.stop().await;

    // A socket that nobody listens on any more: the engine is installed and not running.
    drop(std::os::unix::net::UnixListener::bind(&nowhere).expect("the folder is ours"));
    world.start().await;
    let said = failed(&world.cli(&["new", "-m", MODEL]).await, 1);
    holds(&said.error, &[&nowhere, "cannot be reached"]);
    holds(&said.hint, &["start it"]);
    world.stop().await;
}

#[tokio::test]
async fn an_engine_that_the_user_may_not_use() {
    let mut world = World::new(Driver::Docker).await;
    let socket = world.path("engine.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("the folder is ours");
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o0)).expect("it is ours");
    world.set_env("OPENAGENT_DOCKER_HOST", &socket.display().to_string());
    let folder = installed(&world, &["openagent", "openagentd"]);
    let own = !nix::unistd::geteuid().is_root();
    let run = |arguments: &'static [&'static str]| {
        let mut command = Command::new(folder.join("openagent"));
        command.env_clear().envs(world.environment()).args(arguments).stdin(Stdio::null()).current_dir("/");
        if !own {
            // Modes do not bind root; another user can be bound.
            command.uid(NOBODY).gid(NOBODY);
        }
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        async move { within("the command", PATIENCE, command.output()).await.expect("it runs") }
    };
    if !own {
        std::os::unix::fs::chown(world.path(""), Some(NOBODY), Some(NOBODY)).expect("root may");
    }
    let said = failed(&run(&["new", "-m", "demo/tour"]).await, 1);
    holds(&said.error, &["may not use the container engine"]);
    holds(&said.hint, &["docker", "group", "OPENAGENT_DRIVER=local"]);
    assert!(run(&["ls"]).await.status.success());
    assert!(run(&["daemon", "stop"]).await.status.success());
}

#[tokio::test]
async fn an_image_that_is_missing() {
    let mut world = World::new(Driver::Docker).await;
    world.set_env("OPENAGENT_IMAGE", "openagent-no-such-image:never");
    world.start().await;
    let said = failed(&world.cli(&["run", "-m", "demo/tour", "hello"]).await, 1);
    holds(&said.error, &["openagent-no-such-image:never", "missing"]);
    holds(&said.hint, &["cargo xtask image"]);
    assert_eq!(only_failed_session(&world).await["fault"]["code"], "IMAGE_MISSING");
    world.end().await;
}

#[tokio::test]
async fn programs_that_are_missing() {
    let mut world = World::new(Driver::Local).await;
    let folder = installed(&world, &["openagent"]);
    let said = failed(&run_in(&world, &folder, &["ls"]).await, 3);
    holds(&said.error, &["openagentd"]);
    holds(&said.hint, &["install openagentd"]);

    let folder = installed(&world, &["openagentd"]);
    let said = failed(&run_in(&world, &folder, &["new", "-m", "demo/tour"]).await, 1);
    holds(&said.error, &["openagent-sidecar"]);
    holds(&said.hint, &["install openagent-sidecar"]);
    assert!(run_in(&world, &folder, &["daemon", "stop"]).await.status.success());

    let nowhere = world.path("no-opencode").display().to_string();
    world.set_env("OPENAGENT_OPENCODE", &nowhere);
    world.start().await;
    let said = failed(&world.cli(&["run", "-m", "demo/tour", "hello"]).await, 1);
    holds(&said.error, &[&nowhere]);
    holds(&said.hint, &["cargo xtask setup", "OPENAGENT_OPENCODE"]);
    world.end().await;
}

#[tokio::test]
async fn providers_models_and_keys_that_are_not_there() {
    let world = World::started(Driver::Local).await;
    for (command, code, wanted, help) in [
        (&["new", "-m", "scriptd/scripted-large"][..], 3, "scriptd", "scripted"),
        (&["run", "-m", "scripted/scripted-larg", "hello"], 3, "scripted-larg", "scripted/scripted-large"),
        (&["run", "-m", "scripted-large", "hello"], 2, "scripted-large", "/scripted-large"),
        (&["keys", "set", "scriptd"], 3, "scriptd", "scripted"),
    ] {
        let said = failed(&world.cli_with_input(command, "sk-any\n").await, code);
        holds(&said.error, &[wanted]);
        holds(&said.hint, &[help]);
    }
    for command in [&["new", "-m", MODEL][..], &["run", "-m", MODEL, "hello"]] {
        let said = failed(&world.cli(command).await, 4);
        holds(&said.error, &["key"]);
        holds(&said.hint, &["openagent keys set scripted"]);
    }
    failed(&world.cli(&["keys", "rm", "scripted"]).await, 3);
    let output = world.cli_with_input(&["keys", "set", "scripted"], "").await;
    assert_eq!(output.status.code(), Some(2), "an empty key: {output:?}");
    assert_eq!(json(&world.cli(&["ls", "-o", "json"]).await), serde_json::json!([]), "nothing was made");
    world.end().await;
}

#[tokio::test]
async fn a_provider_that_refuses_limits_or_fails() {
    let world = World::started(Driver::Local).await;
    assert!(world.cli_with_input(&["keys", "set", "scripted"], "sk-mistyped\n").await.status.success());
    let said = failed(&world.cli(&["run", "-m", MODEL, "#plain"]).await, 4);
    holds(&said.hint, &["openagent keys set scripted"]);
    let session = only_session(&world).await;
    let id = session["id"].as_str().expect("it has an id");
    assert_eq!(session["status"], "active", "nothing is lost: {session}");

    assert!(world.cli_with_input(&["keys", "set", "scripted"], CANARY).await.status.success());
    let output = world.cli(&["prompt", "--wait", id, "#echo the key was mended"]).await;
    assert_eq!((output.status.code(), text(&output.stdout).trim()), (Some(0), "the key was mended"), "{output:?}");
    holds(&failed(&world.cli(&["prompt", "--wait", id, "#401"]).await, 4).hint, &["openagent keys set scripted"]);

    // Limits and errors that pass are waited out, and shown while they are.
    let mut clients = world.clients().await;
    for prompt in ["#429 2", "#500"] {
        let mut events = clients.follow_after(id, clients.clone().get(id).await.last_seq).await;
        let output = world.cli(&["prompt", "--wait", id, prompt]).await;
        assert_eq!(output.status.code(), Some(0), "{prompt}: {output:?}");
        events.until_turn_ended().await;
        let retry = events.seen.iter().find_map(|event| match &event.kind {
            Some(Kind::Busy(v1::BusyEvent { busy: Some(v1::busy_event::Busy::Retrying(retry)) })) => Some(retry.clone()),
            _ => None,
        });
        let retry = retry.unwrap_or_else(|| panic!("{prompt}: the retry is not in the history"));
        assert!(retry.attempt >= 1 && !retry.message.is_empty() && retry.next_at.is_some(), "{retry:?}");
    }
    let logs = text(&world.cli(&["logs", id]).await.stdout);
    holds(&logs, &["will be tried again"]);

    // A provider that goes on failing ends the turn; one that goes on limiting ends the user's patience. The session goes on after both.
    let said = failed(&world.cli(&["prompt", "--wait", id, "#500 100000"]).await, 1);
    holds(&said.error, &["server had an error"]);
    holds(&said.hint, &["the provider has a fault of its own"]);
    let said = failed(&world.cli(&["prompt", "--wait", "--timeout", "2s", id, "#hang"]).await, 1);
    holds(&said.error, &["did not end within 2 seconds"]);
    holds(&said.hint, &["openagent wait", "openagent abort"]);
    assert_eq!(only_session(&world).await["activity"]["state"], "working");
    assert!(world.cli(&["abort", id]).await.status.success());
    let wait = world.cli(&["wait", id]).await;
    let logs = text(&world.cli(&["logs", id]).await.stdout);
    assert!(wait.status.success(), "{wait:?}\n{logs}");
    let output = world.cli(&["prompt", "--wait", id, "#echo all is well"]).await;
    assert_eq!(text(&output.stdout).trim(), "all is well", "{output:?}");
    world.end().await;
}

#[tokio::test]
async fn a_run_that_nobody_answers() {
    let world = World::with_keys(Driver::Local).await;
    let output = world.cli(&["run", "-m", MODEL, "#bash touch made.txt"]).await;
    let said = failed(&output, 5);
    holds(&said.error, &["asks for permission: bash"]);
    holds(&said.hint, &["openagent wait"]);
    let session = only_session(&world).await;
    let id = session["id"].as_str().expect("it has an id").to_owned();
    assert_eq!(session["activity"]["state"], "blocked", "{session}");
    let output_of_wait = world.cli(&["wait", &id]).await;
    assert_eq!(output_of_wait.status.code(), Some(5), "{output_of_wait:?}");

    // It says how to answer, word for word.
    let stderr = text(&output.stderr);
    holds(&stderr, &["touch made.txt"]);
    let line = stderr.lines().find_map(|line| line.split_once("openagent permit ")).unwrap_or_else(|| panic!("{stderr}")).1;
    let [short, request, responses] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
    assert_eq!(responses, "once|session|always|reject");
    let permitted = world.cli(&["permit", short, request, "once"]).await;
    assert!(permitted.status.success(), "{permitted:?}");
    let output = world.cli(&["wait", &id]).await;
    assert!(output.status.success(), "{output:?}");
    // Twice is a conflict, told as one, and changes nothing.
    let again = world.cli(&["permit", short, request, "reject"]).await;
    assert!(matches!(again.status.code(), Some(1 | 3)), "{again:?}");

    let output = world.cli(&["prompt", "--wait", "-o", "json", &id, "#question"]).await;
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let turn = json(&output);
    assert_eq!((turn["outcome"].as_str(), turn["pending"].as_array().map(Vec::len)), (Some("blocked"), Some(1)), "{turn}");
    assert!(world.cli(&["abort", &id]).await.status.success());
    let output = world.cli(&["prompt", "--wait", "--allow", "bash:ls*", &id, "#bash touch other.txt"]).await;
    failed(&output, 5);
    world.end().await;
}

#[tokio::test]
async fn two_daemons_for_one_user() {
    let mut world = World::started(Driver::Local).await;
    let run = |command: Command| async move {
        let mut command = tokio::process::Command::from(command);
        within("the second daemon", PATIENCE, command.stdin(Stdio::null()).kill_on_drop(true).output()).await.expect("it runs")
    };
    // The same state behind another socket, the same everything, and the same socket with another state.
    let mut same_state = world.command("openagentd");
    same_state.env("OPENAGENT_RUNTIME_DIR", world.path("run2"));
    let same = world.command("openagentd");
    let mut same_socket = world.command("openagentd");
    same_socket.env("OPENAGENT_STATE_DIR", world.path("state2")).env("OPENAGENT_MASTER_KEY_FILE", world.path("key2"));
    for command in [same_state, same, same_socket] {
        let said = failed(&run(command).await, 1);
        holds(&said.hint, &["openagent daemon stop"]);
    }
    let mut through_client = world.command("openagent");
    through_client.env("OPENAGENT_RUNTIME_DIR", world.path("run3")).arg("ls");
    holds(&failed(&run(through_client).await, 1).hint, &["openagent daemon stop"]);
    assert!(world.cli(&["ls"]).await.status.success(), "the first one goes on");
    world.stop().await;
    world.start().await;
    world.end().await;
}

#[tokio::test]
async fn a_store_that_is_damaged_or_belongs_to_somebody_else() {
    let mut world = World::with_keys(Driver::Local).await;
    world.stop().await;
    let (db, backup) = (world.path("state/db"), world.path("backup"));
    copy_folder(&db, &backup);
    let whole = std::fs::read(db.join("db")).expect("the store has its data in a file of this name");
    let noise: Vec<u8> = whole.iter().map(|byte| byte ^ 0x5a).collect();
    for damage in [&noise[..], &[]] {
        std::fs::write(db.join("db"), damage).expect("it is ours");
        for _ in 0..2 {
            let said = failed(&world.cli(&["ls"]).await, 1);
            holds(&said.error, &["state/db"]);
            holds(&said.hint, &["openagent daemon restore", "away to start afresh"]);
        }
        std::fs::remove_dir_all(&db).expect("it is ours");
        copy_folder(&backup, &db);
    }
    world.start().await;
    let keys = json(&world.cli(&["keys", "ls", "-o", "json"]).await);
    assert_eq!(keys.as_array().map(Vec::len), Some(4), "the backup is as good as the original: {keys}");
    world.stop().await;

    let master = world.path("data/master.key");
    let aside = world.path("aside.key");
    std::fs::rename(&master, &aside).unwrap_or_else(|error| panic!("{}: {error}", master.display()));
    let said = failed(&world.cli(&["ls"]).await, 1);
    holds(&said.error, &["master.key"]);
    holds(&said.hint, &["put the original file back"]);
    std::fs::rename(&aside, &master).expect("it is ours");
    world.start().await;
    world.end().await;
}

#[tokio::test]
async fn a_socket_folder_that_others_could_use() {
    let world = World::new(Driver::Local).await;
    let run = world.path("run");
    std::fs::create_dir(&run).expect("the folder is ours");
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    let said = failed(&world.cli(&["ls"]).await, 1);
    holds(&said.error, &[&run.display().to_string()]);
    holds(&said.hint, &["OPENAGENT_RUNTIME_DIR"]);
}

#[tokio::test]
async fn commands_that_make_no_sense() {
    let world = World::started(Driver::Local).await;
    for command in [
        &["nonsense"][..],
        &["run"],
        &["run", ""],
        &["new", "--memory", "much"],
        &["new", "--permission-mode", "everything"],
        &["permit", "per_1", "maybe"],
        &["answer", "some", "que_1"],
        &["wait"],
        &["keys", "set"],
    ] {
        let output = world.cli(command).await;
        assert_eq!(output.status.code(), Some(2), "{command:?}: {output:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains("error: ") && INSIDES.iter().all(|inside| !stderr.contains(inside)), "{command:?}: {stderr}");
    }
    let said = failed(&world.cli(&["new", "--memory", "1M", "--pids", "1", "-m", "nobody/nothing"]).await, 2);
    holds(&said.error, &["memory", "processes", "nobody"]);
    assert!(!said.hint.is_empty());
    world.end().await;
}
