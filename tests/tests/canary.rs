//! The agent never sees a key, and nobody else keeps one: a key that no other run has is looked for everywhere, on both routes.
//!
//! What is searched is listed in [`Everywhere`]. Every search is proved by a control: a planted copy is found by the same search.

use openagent_core::seal::random;
use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_tests::harness::engine::{AGENT, Container, Inspector, ROOT, STRANGER};
use openagent_tests::harness::events::Events;
use openagent_tests::harness::leak::{Needles, canary};
use openagent_tests::harness::shell::Shell;
use openagent_tests::harness::{Clients, Driver, World};
use openagent_tests::model::ModelOptions;

/// The port of the model server in a container, whose loopback is nobody else's.
const INSIDE_PORT: &str = "18080";

/// What an agent would do to find a key.
const NOSY: &str =
    "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; ls -la /run/openagent /var/lib/openagent 2>&1; true";

/// Mounts of a session's container, as seen by a searcher beside it. `/` is the image.
const FOLDERS: [&str; 7] =
    ["/", "/workspace", "/home/agent", "/var/lib/openagent", "/proc/1/root/tmp", "/proc/1/root/run/openagent", "/proc/1/root/dev/shm"];

/// A session that used a key, and everything around it.
struct Everywhere<'a> {
    world: &'a World,
    clients: Clients,
    id: String,
    container: Container,
    inspector: Inspector,
}

impl<'a> Everywhere<'a> {
    async fn around(world: &'a World, clients: &Clients, id: &str) -> Self {
        let container = Container::of(id).await;
        let inspector = container.inspector().await;
        Self { world, clients: clients.clone(), id: id.to_owned(), container, inspector }
    }

    /// What the agent can reach: its own and others' processes as far as they let it, and files.
    async fn agent_finds(&self, needles: &Needles) -> Vec<String> {
        let processes = self.container.search(AGENT, needles, &["proc"]).await;
        assert!(processes.read > 50_000_000, "OpenCode's memory is readable to its own user, and was read: {}", processes.read);
        let files = ["files", "/workspace", "/home/agent", "/tmp", "/etc", "/run", "/var/lib/openagent", "/dev/shm"];
        let files = self.container.search(AGENT, needles, &files).await;
        assert!(files.read > 100_000, "OpenCode's data was read: {}", files.read);
        [processes.finds, files.finds].concat()
    }

    /// Every file of the image and of the session's volumes.
    async fn file_finds(&self, needles: &Needles) -> Vec<String> {
        let files = self.inspector.search(needles, &[&["files"], &FOLDERS[..]].concat()).await;
        assert!(files.read > 200_000_000, "the image and the volumes were read: {}", files.read);
        files.finds
    }

    /// What the daemon and the engine keep and tell.
    async fn must_not_be_told(&mut self, needles: &Needles) {
        let outside = |what: &str| format!("{what} of {}", self.id);
        let about = self.container.inspect().await;
        let image = about.image.clone();
        needles.must_not_be_in(&outside("what the engine tells"), format!("{about:?}").as_bytes());
        needles.must_not_be_in(&outside("the sidecar's log"), self.container.logs().await.as_bytes());
        let changes = self.container.changes().await;
        assert!(
            changes.iter().all(|path| FOLDERS.iter().any(|folder| folder.trim_start_matches("/proc/1/root").starts_with(path.as_str()))),
            "nothing was written into the image {image:?}, which was searched: {changes:?}"
        );

        let pid = self.world.daemon_pid();
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).expect("the daemon is ours");
            needles.must_not_be_in(&format!("the daemon's {file}"), &bytes);
        }
        let history = self.clients.history(&self.id).await;
        assert!(history.len() > 20, "{}", history.len());
        needles.must_not_be_in("the history", format!("{history:?}").as_bytes());
        let session = v1::ListTerminalsRequest { session_id: self.id.clone() };
        let answers = [
            format!("{:?}", self.clients.list().await),
            format!("{:?}", self.clients.get(&self.id).await),
            format!("{:?}", self.clients.vault.list_keys(v1::ListKeysRequest {}).await),
            format!("{:?}", self.clients.provider.list_providers(v1::ListProvidersRequest::default()).await),
            format!("{:?}", self.clients.daemon.get_status(v1::GetStatusRequest {}).await),
            format!("{:?}", self.clients.terminal.list_terminals(session).await),
        ];
        for answer in answers {
            needles.must_not_be_in("an answer of the daemon", answer.as_bytes());
        }
        for arguments in [
            &["keys", "ls", "-o", "json"][..],
            &["providers", "-o", "json"],
            &["show", &self.id, "-o", "json"],
            &["logs", &self.id, "-o", "json"],
            &["daemon", "status"],
        ] {
            let said = self.world.cli(arguments).await;
            assert!(said.status.success(), "{arguments:?}: {said:?}");
            needles.must_not_be_in(&format!("openagent {arguments:?}"), &[said.stdout, said.stderr].concat());
        }
        let exported = self.world.cli(&["export", &self.id, "-o", "session.zip", "--force"]).await;
        assert!(exported.status.success(), "{exported:?}");
        let archive = std::fs::File::open(self.world.path("session.zip")).expect("it was exported");
        let mut archive = zip::ZipArchive::new(archive).expect("it is whole");
        for index in 0..archive.len() {
            let mut file = archive.by_index(index).expect("it is whole");
            let (name, mut bytes) = (file.name().expect("names are UTF-8").into_owned(), b"content: ".to_vec());
            std::io::copy(&mut file, &mut bytes).expect("it is whole");
            needles.must_not_be_in(&name, &bytes);
        }
        // Store, logs, sockets, configuration, homes of the programs, and the archive as it is.
        let (finds, read) = needles.search_folder(&self.world.path(""));
        assert!(read > 50_000, "{read}");
        assert_eq!(finds, [""; 0]);
    }

    /// A copy in a file, in a process's environment and in its memory is found by the same searches, from both sides.
    async fn a_planted_copy_is_found(&self, key: &str, needles: &Needles) {
        let plant = "printf 'x%s' \"$(cat)\" | base64 -w0 > planted; (PLANTED=$(cat planted) exec sleep 1000) </dev/null >/dev/null 2>&1 &
            until grep -lqs PLANTED= /proc/*/environ; do :; done";
        let planted = self.container.exec(AGENT, &["bash", "-c", &format!("cd /workspace; {plant}")], key).await;
        assert_eq!(planted.code, 0, "{planted:?}");
        let processes = self.container.search(AGENT, needles, &["proc"]).await.finds;
        let files = self.container.search(AGENT, needles, &["files", "/workspace"]).await.finds;
        let as_root = self.inspector.search(needles, &["proc"]).await.finds;
        let root_files = self.inspector.search(needles, &["files", "/workspace"]).await.finds;
        let kept = self.world.path("state/planted");
        std::fs::write(&kept, format!("{{\"key\":\"{key}\"}}")).expect("the folder is ours");
        assert_eq!(needles.search_folder(&self.world.path("")).0, [format!("plain in {}", kept.display())]);
        for finds in [&processes, &as_root] {
            for place in ["/environ", "/mem"] {
                assert!(finds.iter().any(|find| find.contains("base64-") && find.ends_with(place)), "{place} in {finds:?}");
            }
        }
        for finds in [files, root_files] {
            assert!(finds.iter().any(|find| find.contains("base64-") && find.ends_with("/workspace/planted")), "{finds:?}");
        }
    }
}

/// Sets a key as a user does.
async fn set_key(world: &World, provider: &str, key: &str, needles: &Needles) {
    let said = world.cli_with_input(&["keys", "set", provider], key).await;
    assert!(said.status.success(), "{said:?}");
    assert_eq!(needles.found_in(&[said.stdout, said.stderr].concat()), [""; 0]);
}

/// Allows all that is asked until the turn ends.
async fn allowed_turn(clients: &mut Clients, id: &str, events: &mut Events) -> v1::TurnEndedEvent {
    loop {
        let next = events.until("a request or the turn's end", |kind| match kind {
            Kind::PermissionAsked(request) => Some(Err(request.id.clone())),
            Kind::TurnEnded(end) => Some(Ok(end.clone())),
            _ => None,
        });
        match next.await {
            Ok(end) => return end,
            Err(request) => clients.permit(id, &request, v1::PermissionResponse::Once).await,
        }
    }
}

/// A turn in which the agent looks around, with a terminal open beside it.
async fn nosy_turn(clients: &mut Clients, id: &str, events: &mut Events) -> Shell {
    let mut shell = Shell::open(clients, id, "").await;
    shell.write(&format!("{NOSY}; echo looked-$((40+2))\n")).await;
    shell.until("looked-42").await;
    clients.prompt(id, &format!("#bash {NOSY}")).await;
    let end = allowed_turn(clients, id, events).await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{end:?}");
    shell
}

/// The next call has the new key, and after its removal there is a sentence; the container is the same all the time.
async fn without_a_key_the_agent_is_told(world: &World, clients: &mut Clients, id: &str, events: &mut Events, provider: &str) {
    let removed = world.cli(&["keys", "rm", provider]).await;
    assert!(removed.status.success(), "{removed:?}");
    let end = clients.turn(id, events, "#echo once more").await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Failed, "{end:?}");
    assert!(end.message.contains("no key") && end.message.contains(&format!("openagent keys set {provider}")), "{end:?}");
}

#[tokio::test]
async fn a_key_on_the_host_route_is_in_the_vault_and_at_the_provider_only() {
    let (key, next) = (canary(), canary());
    let (needles, next_needles) = (Needles::of(&key), Needles::of(&next));
    let mut world = World::new(Driver::Docker).await;
    world.model = ModelOptions::default().start().await.expect("the model server starts");
    world.write_config("");
    world.start().await;
    set_key(&world, "scripted", &key, &needles).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active("scripted/scripted-large").await;
    let shell = nosy_turn(&mut clients, &id, &mut events).await;
    needles.must_not_be_in("the terminal", &shell.seen);
    let seen = |world: &World, key: &str| world.model.requests().last().is_some_and(|request| request.key() == Some(key));
    assert!(seen(&world, &key), "the provider is given the key");

    let mut everywhere = Everywhere::around(&world, &clients, &id).await;
    assert_eq!(everywhere.agent_finds(&needles).await, [""; 0]);
    assert_eq!(everywhere.file_finds(&needles).await, [""; 0]);
    let processes = everywhere.inspector.search(&needles, &["proc"]).await;
    assert_eq!(processes.finds, [""; 0], "the key never entered the container: not even the sidecar has it");
    everywhere.must_not_be_told(&needles).await;

    let started = everywhere.container.inspect().await.state.and_then(|state| state.started_at);
    set_key(&world, "scripted", &next, &next_needles).await;
    clients.turn(&id, &mut events, "#echo with the next key").await;
    assert!(seen(&world, &next), "the next call has the next key");
    without_a_key_the_agent_is_told(&world, &mut clients, &id, &mut events, "scripted").await;
    assert_eq!(everywhere.container.inspect().await.state.and_then(|state| state.started_at), started, "nothing was restarted");
    everywhere.must_not_be_told(&next_needles).await;

    everywhere.a_planted_copy_is_found(&key, &needles).await;
    drop(everywhere);
    world.end().await;
}

/// The keys that the model server in the container was given, oldest first.
async fn keys_seen_inside(container: &Container) -> Vec<String> {
    let url = format!("http://127.0.0.1:{INSIDE_PORT}/control/requests");
    let said = container.exec(ROOT, &["curl", "--silent", "--fail", &url], "").await;
    let requests: serde_json::Value = serde_json::from_str(said.text()).expect("it answers with JSON");
    let keys = requests.as_array().expect("a list").iter().filter_map(|request| {
        let key = request["headers"]["authorization"].as_str()?.strip_prefix("Bearer ")?;
        Some(key.to_owned())
    });
    keys.collect()
}

#[tokio::test]
async fn a_key_on_the_direct_route_is_in_the_sidecars_memory_only() {
    let (key, next) = (canary(), canary());
    let (needles, next_needles) = (Needles::of(&key), Needles::of(&next));
    let mut world = World::new(Driver::Docker).await;
    world.write_config(&format!(
        "[provider.inside]\nkind = \"openai-compatible\"\nroute = \"direct\"\nbase_url = \"http://127.0.0.1:{INSIDE_PORT}/v1\"\n\
         [[provider.inside.models]]\nid = \"scripted-large\"\ncontext = 200000\noutput = 8000\n"
    ));
    world.start().await;
    set_key(&world, "inside", &key, &needles).await;
    let unused = canary();
    set_key(&world, "scripted", &unused, &Needles::of(&unused)).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active("inside/scripted-large").await;
    let mut everywhere = Everywhere::around(&world, &clients, &id).await;

    // The provider: in the container, since it has no network, and of a user that is neither the agent's nor root.
    let program = std::fs::read(env!("CARGO_BIN_EXE_scripted-model")).expect("cargo built it");
    let name = format!("model-{}", hex::encode(random::<4>()));
    everywhere.container.put_program("/home/agent", &name, program).await;
    everywhere.container.spawn(STRANGER, &[&format!("/home/agent/{name}"), "--port", INSIDE_PORT]).await;
    everywhere.container.until(ROOT, &format!("curl --silent --fail http://127.0.0.1:{INSIDE_PORT}/control/requests")).await;

    let shell = nosy_turn(&mut clients, &id, &mut events).await;
    needles.must_not_be_in("the terminal", &shell.seen);
    let seen = keys_seen_inside(&everywhere.container).await;
    assert!(!seen.is_empty() && seen.iter().all(|seen| *seen == key), "the provider is given the key");

    assert_eq!(everywhere.agent_finds(&needles).await, [""; 0]);
    assert_eq!(everywhere.file_finds(&needles).await, [""; 0]);
    let processes = everywhere.inspector.search(&needles, &["proc", STRANGER]).await.finds;
    assert!(processes.contains(&"found plain /proc/1/mem".to_owned()), "the sidecar has it, and the search sees that: {processes:?}");
    assert!(processes.iter().all(|find| find.ends_with(" /proc/1/mem")), "nobody else has it: {processes:?}");
    let others = everywhere.inspector.search(&Needles::of(&unused), &["proc"]).await.finds;
    assert_eq!(others, [""; 0], "a key of another route is not in the container");
    everywhere.must_not_be_told(&needles).await;

    set_key(&world, "inside", &next, &next_needles).await;
    clients.turn(&id, &mut events, "#echo with the next key").await;
    assert_eq!(keys_seen_inside(&everywhere.container).await.last(), Some(&next), "the next call has the next key");
    without_a_key_the_agent_is_told(&world, &mut clients, &id, &mut events, "inside").await;
    everywhere.must_not_be_told(&next_needles).await;
    drop(everywhere);
    world.end().await;
}
