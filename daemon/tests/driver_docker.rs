//! The container driver on a real engine, with the real image and sidecar.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/driver.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use openagent_core::config::{JournalConfig, LinkMode};
use openagent_core::instance::ExitCause;
use openagent_core::session::WorkspaceSource;
use openagentd::driver::docker::{DockerDriver, DockerOptions};
use openagentd::driver::{Driver, Observed, OwnedKind, Purpose};
use openagentd::task::Tasks;
use support::{Subject, assert_example, copy_of, eventually, example_folder, files, in_time};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// Names the socket in a re-run of one test as another user.
const SOCKET_VARIABLE: &str = "OPENAGENT_TEST_SOCKET";

fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().expect("the docker command");
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A driver of its own label; what a failed test leaves is removed by it.
struct Fixture {
    driver: DockerDriver,
    options: DockerOptions,
    _runtime: tempfile::TempDir,
}

impl Fixture {
    fn new(link_mode: LinkMode) -> Self {
        Self::at(link_mode, None)
    }

    fn at(link_mode: LinkMode, endpoint: Option<String>) -> Self {
        let runtime = tempfile::tempdir().unwrap();
        let options = DockerOptions {
            endpoint,
            image: std::env::var("OPENAGENT_TEST_IMAGE").unwrap_or_else(|_| "openagent-agent:latest".to_owned()),
            runtime: None,
            link_mode,
            runtime_dir: runtime.path().to_path_buf(),
            state_label: format!("test-{}", Subject::new().session),
            journal_max_bytes: JournalConfig::default().max_bytes,
        };
        Self { driver: DockerDriver::new(options.clone(), Tasks::new()), options, _runtime: runtime }
    }

    /// The driver of a daemon that was started again.
    fn restarted(&self) -> DockerDriver {
        DockerDriver::new(self.options.clone(), Tasks::new())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let filter = format!("label=dev.openagent.state={}", self.options.state_label);
        // After a failed test only; what a reader removes at this moment may be gone before it is asked for.
        let remove = |list: &[&str], remove: &[&str]| {
            let found = Command::new("docker").args(list).args(["--quiet", "--filter", &filter]).output().expect("the docker command");
            for id in String::from_utf8_lossy(&found.stdout).lines() {
                Command::new("docker").args(remove).arg(id).output().expect("the docker command");
            }
        };
        remove(&["ps", "--all"], &["rm", "--force"]);
        remove(&["volume", "ls"], &["volume", "rm", "--force"]);
    }
}

/// A socket in front of the engine's, which can be shut, and be made to hang.
struct Door {
    socket: PathBuf,
    open: watch::Sender<Way>,
    /// Connections that are open now.
    passing: Arc<AtomicUsize>,
    _folder: tempfile::TempDir,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Every connection is passed on.
    Open,
    /// There is no socket, and what was open is cut.
    Shut,
    /// Connections are taken, and nothing is passed on.
    Hanging,
}

impl Door {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let door = Self {
            socket: folder.path().join("engine.sock"),
            open: watch::Sender::new(Way::Open),
            passing: Arc::default(),
            _folder: folder,
        };
        let listener = UnixListener::bind(&door.socket).unwrap();
        Tasks::new().spawn("door", keep_door(listener, door.socket.clone(), door.open.subscribe(), Arc::clone(&door.passing)));
        door
    }

    fn endpoint(&self) -> Option<String> {
        Some(self.socket.display().to_string())
    }

    async fn set(&self, way: Way) {
        self.open.send_replace(way);
        eventually("the door is as it was set", || async { self.socket.exists() == (way != Way::Shut) }).await;
    }
}

async fn keep_door(first: UnixListener, socket: PathBuf, mut way: watch::Receiver<Way>, passing: Arc<AtomicUsize>) {
    let mut listener = Some(first);
    loop {
        let now = *way.borrow_and_update();
        if now == Way::Shut {
            listener = None;
            let _gone = std::fs::remove_file(&socket);
            let _other = way.changed().await;
            continue;
        }
        let taken = listener.get_or_insert_with(|| UnixListener::bind(&socket).unwrap());
        tokio::select! {
            changed = way.changed() => if changed.is_err() { return },
            Ok((mut outer, _)) = taken.accept() => {
                let (mut way, passing) = (way.clone(), Arc::clone(&passing));
                Tasks::new().spawn("passer", async move {
                    passing.fetch_add(1, Ordering::SeqCst);
                    while *way.borrow_and_update() == Way::Hanging {
                        let _other = way.changed().await;
                    }
                    let mut inner = UnixStream::connect("/var/run/docker.sock").await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut outer, &mut inner) => {}
                        _ = way.wait_for(|way| *way == Way::Shut) => {}
                    }
                    passing.fetch_sub(1, Ordering::SeqCst);
                });
            }
        }
    }
}

fn container(subject: &Subject) -> String {
    format!("openagent-{}", subject.instance)
}

fn code<T>(outcome: Result<T, openagent_core::session::Fault>) -> String {
    let fault = outcome.err().expect("a fault");
    assert!(!fault.message.is_empty() && !fault.hint.is_empty(), "{fault:?}");
    fault.code
}

#[tokio::test]
async fn a_sidecar_answers_over_http2_in_every_link_mode() {
    for mode in [LinkMode::Socket, LinkMode::Exec, LinkMode::Auto] {
        let fixture = Fixture::new(mode);
        let (driver, subject) = (&fixture.driver, Subject::new());
        assert_eq!(driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Missing);
        subject.start(driver, WorkspaceSource::Empty).await;
        assert_eq!(driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Running);
        assert_eq!(subject.ask_health(driver).await.status, "ok", "{mode:?}");
        drop(driver.dial(&subject.session, &subject.instance, Purpose::Relay).await.unwrap());
        assert_eq!(subject.ask_health(&fixture.restarted()).await.status, "ok", "{mode:?}");
        driver.stop(&subject.session, &subject.instance, Duration::from_secs(10)).await.unwrap();
        let ended = driver.inspect(&subject.session, &subject.instance).await.unwrap();
        assert!(matches!(ended, Observed::Ended(ExitCause::Exited { .. })), "it ended by itself: {ended:?}");
        assert_eq!(code(driver.dial(&subject.session, &subject.instance, Purpose::Control).await), "INSTANCE_NOT_RUNNING");
        subject.end(driver).await;
    }
}

#[tokio::test]
async fn an_engine_that_sockets_do_not_reach_is_found_out_and_remembered() {
    let fixture = Fixture::new(LinkMode::Auto);
    let (driver, subject) = (&fixture.driver, Subject::new());
    subject.start(driver, WorkspaceSource::Empty).await;
    // The mount stays with the moved folder, so that the socket is out of reach as it is with an engine on another machine.
    let links = fixture.options.runtime_dir.join("l");
    let folder = std::fs::read_dir(&links).unwrap().next().unwrap().unwrap().path();
    std::fs::rename(&folder, links.join("moved")).unwrap();
    std::fs::create_dir(&folder).unwrap();
    assert_eq!(subject.ask_health(driver).await.status, "ok");

    let next = Subject::new();
    driver.ensure_volumes(&next.session).await.unwrap();
    driver.create(next.spec()).await.unwrap();
    let mounts = docker(&["inspect", "--format", "{{range .Mounts}}{{.Type}} {{end}}", &container(&next)]);
    assert!(mounts.contains("tmpfs") && !mounts.contains("bind"), "{mounts}");
    driver.remove(&next.session, &next.instance).await.unwrap();
    driver.remove_volumes(&next.session).await.unwrap();
    subject.end(driver).await;
}

#[tokio::test]
async fn an_end_is_told_with_its_cause() {
    let fixture = Fixture::new(LinkMode::Auto);
    let driver = &fixture.driver;
    // A child process takes all memory, while the kernel is told to prefer the sidecar.
    let starve = "echo 1000 > /proc/1/oom_score_adj; exec tail /dev/zero";
    let ways: [(&[&str], ExitCause); 3] = [
        (&["kill", "--signal", "KILL"], ExitCause::Killed { signal: 9 }),
        (&["rm", "--force"], ExitCause::Removed),
        (&["exec", "--detach", "CONTAINER", "sh", "-c", starve], ExitCause::OutOfMemory),
    ];
    for (way, cause) in ways {
        let subject = Subject::new();
        subject.start(driver, WorkspaceSource::Empty).await;
        subject.ask_health(driver).await;
        let name = container(&subject);
        let mut arguments: Vec<&str> = way.iter().map(|word| if *word == "CONTAINER" { name.as_str() } else { word }).collect();
        if !way.contains(&"CONTAINER") {
            arguments.push(&name);
        }
        let ended = driver.ended(&subject.session, &subject.instance);
        let (ended, _) = tokio::join!(in_time(ended), async { docker(&arguments) });
        assert_eq!(ended, cause);
        assert_eq!(in_time(driver.ended(&subject.session, &subject.instance)).await, cause, "asked again");
        subject.end(driver).await;
    }
}

#[tokio::test]
async fn a_paused_container_keeps_what_it_had_and_goes_on() {
    for mode in [LinkMode::Socket, LinkMode::Exec] {
        let fixture = Fixture::new(mode);
        let (driver, subject) = (&fixture.driver, Subject::new());
        subject.start(driver, WorkspaceSource::Empty).await;
        subject.ask_health(driver).await;
        driver.wake(&subject.session, &subject.instance).await.unwrap();
        for _ in 0..2 {
            driver.pause(&subject.session, &subject.instance).await.unwrap();
            assert_eq!(driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Paused);
        }
        assert!(driver.list().await.unwrap().iter().any(|owned| owned.kind == OwnedKind::Instance && owned.running));
        for _ in 0..2 {
            fixture.restarted().wake(&subject.session, &subject.instance).await.unwrap();
            assert_eq!(driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Running);
        }
        assert_eq!(subject.ask_health(driver).await.status, "ok");
        driver.pause(&subject.session, &subject.instance).await.unwrap();
        driver.start(&subject.session, &subject.instance).await.unwrap();
        assert_eq!(subject.ask_health(driver).await.status, "ok");
        driver.pause(&subject.session, &subject.instance).await.unwrap();
        let began = Instant::now();
        in_time(driver.stop(&subject.session, &subject.instance, Duration::from_secs(20))).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(20), "it was not waited for in vain: {:?}", began.elapsed());
        let ended = driver.inspect(&subject.session, &subject.instance).await.unwrap();
        assert!(matches!(ended, Observed::Ended(_)), "{ended:?}");
        assert_eq!(code(driver.pause(&subject.session, &subject.instance).await), "INSTANCE_NOT_RUNNING");
        assert_eq!(code(driver.wake(&subject.session, &subject.instance).await), "INSTANCE_NOT_RUNNING");
        subject.end(driver).await;
    }
}

#[tokio::test]
async fn a_paused_container_is_watched_and_can_be_removed() {
    let fixture = Fixture::new(LinkMode::Auto);
    let driver = &fixture.driver;
    for way in [["kill", "--signal", "KILL"].as_slice(), ["rm", "--force"].as_slice()] {
        let subject = Subject::new();
        subject.start(driver, WorkspaceSource::Empty).await;
        subject.ask_health(driver).await;
        let mut ended = Box::pin(driver.ended(&subject.session, &subject.instance));
        driver.pause(&subject.session, &subject.instance).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(300), &mut ended).await.is_err(), "a pause is no end");
        let name = container(&subject);
        docker(&[way, &[name.as_str()]].concat());
        let expected = if way[0] == "rm" { ExitCause::Removed } else { ExitCause::Killed { signal: 9 } };
        assert_eq!(in_time(ended).await, expected);
        subject.end(driver).await;
    }
    let subject = Subject::new();
    subject.start(driver, WorkspaceSource::Empty).await;
    subject.ask_health(driver).await;
    driver.pause(&subject.session, &subject.instance).await.unwrap();
    in_time(driver.remove(&subject.session, &subject.instance)).await.unwrap();
    assert_eq!(driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Missing);
    subject.end(driver).await;
}

#[tokio::test]
async fn a_volume_that_somebody_removed_is_missed_and_the_image_has_an_identity() {
    let fixture = Fixture::new(LinkMode::Auto);
    let (driver, subject) = (&fixture.driver, Subject::new());
    assert_eq!(driver.missing_volumes(&subject.session).await.unwrap(), ["workspace", "home", "state"]);
    driver.ensure_volumes(&subject.session).await.unwrap();
    assert!(driver.missing_volumes(&subject.session).await.unwrap().is_empty());
    docker(&["volume", "rm", &format!("openagent-{}-workspace", subject.session)]);
    assert_eq!(driver.missing_volumes(&subject.session).await.unwrap(), ["workspace"]);
    let identity = docker(&["image", "inspect", "--format", "{{.Id}}", &fixture.options.image]);
    assert_eq!(driver.ensure_image().await.unwrap(), identity);
    subject.end(driver).await;
}

#[tokio::test]
async fn many_ends_are_watched_by_one_stream() {
    const MANY: usize = 6;
    let door = Door::new();
    let fixture = Fixture::at(LinkMode::Auto, door.endpoint());
    let driver = &fixture.driver;
    let subjects: Vec<Subject> = (0..MANY).map(|_| Subject::new()).collect();
    for subject in &subjects {
        driver.ensure_volumes(&subject.session).await.unwrap();
        driver.create(subject.spec()).await.unwrap();
        driver.start(&subject.session, &subject.instance).await.unwrap();
    }
    let before = door.passing.load(Ordering::SeqCst);
    let mut ends: Vec<_> = subjects.iter().map(|subject| Box::pin(driver.ended(&subject.session, &subject.instance))).collect();
    for end in &mut ends {
        assert!(tokio::time::timeout(Duration::from_millis(100), end).await.is_err());
    }
    let open = door.passing.load(Ordering::SeqCst);
    assert!(open <= before + 2, "one after the other looks, and one stream stays: {before} {open}");
    for subject in subjects.iter().rev() {
        docker(&["kill", &container(subject)]);
    }
    for end in ends {
        assert_eq!(in_time(end).await, ExitCause::Killed { signal: 9 });
    }
    for subject in &subjects {
        driver.remove(&subject.session, &subject.instance).await.unwrap();
        driver.remove_volumes(&subject.session).await.unwrap();
    }
}

#[tokio::test]
async fn an_end_while_the_engine_was_away_is_the_engines_unless_it_tells_another_cause() {
    let door = Door::new();
    let fixture = Fixture::at(LinkMode::Auto, door.endpoint());
    let driver = &fixture.driver;
    let [killed, gone, survives] = [(); 3].map(|()| Subject::new());
    for subject in [&killed, &gone, &survives] {
        subject.start(driver, WorkspaceSource::Empty).await;
        subject.ask_health(driver).await;
    }
    let mut ends = [&killed, &gone, &survives].map(|subject| Box::pin(driver.ended(&subject.session, &subject.instance)));
    for end in &mut ends {
        assert!(tokio::time::timeout(Duration::from_millis(300), end).await.is_err());
    }
    let [killed_end, gone_end, mut survives_end] = ends;
    door.set(Way::Shut).await;
    docker(&["kill", "--signal", "TERM", &container(&killed)]);
    docker(&["rm", "--force", &container(&gone)]);
    docker(&["wait", &container(&killed)]);
    assert_eq!(code(driver.inspect(&survives.session, &survives.instance).await), "ENGINE_UNREACHABLE");
    door.set(Way::Open).await;
    assert_eq!(in_time(killed_end).await, ExitCause::EngineStopped);
    assert_eq!(in_time(gone_end).await, ExitCause::Removed);
    // The watch goes on over the absence, and later ends are told as what they are.
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut survives_end).await.is_err());
    docker(&["kill", &container(&survives)]);
    assert_eq!(in_time(survives_end).await, ExitCause::Killed { signal: 9 });
    for subject in [&killed, &gone, &survives] {
        driver.remove(&subject.session, &subject.instance).await.unwrap();
        driver.remove_volumes(&subject.session).await.unwrap();
    }
}

#[tokio::test]
async fn an_engine_that_hangs_holds_up_nobody_longer_than_its_bound() {
    let door = Door::new();
    let fixture = Fixture::at(LinkMode::Auto, door.endpoint());
    let (driver, subject) = (&fixture.driver, Subject::new());
    door.set(Way::Hanging).await;
    let began = Instant::now();
    let (health, one, other, listed) =
        tokio::join!(driver.health(), driver.create(subject.spec()), driver.inspect(&subject.session, &subject.instance), driver.list());
    assert_eq!([code(health), code(one), code(other), code(listed)], ["ENGINE_TIMEOUT"; 4].map(str::to_owned));
    assert!(began.elapsed() < Duration::from_secs(15), "they wait side by side: {:?}", began.elapsed());
    door.set(Way::Open).await;
    assert!(in_time(driver.health()).await.is_ok());
}

#[tokio::test]
async fn a_workspace_goes_in_and_comes_back_whether_the_session_runs_or_not() {
    let fixture = Fixture::new(LinkMode::Auto);
    let (driver, subject) = (&fixture.driver, Subject::new());
    let folder = example_folder();
    subject.start(driver, copy_of(folder.path())).await;
    subject.ask_health(driver).await;
    let name = container(&subject);
    docker(&["exec", "--user", "1000:1000", &name, "sh", "-c", "echo more >> src/deep/text && git init --quiet . && rm run.sh"]);
    docker(&[
        "exec",
        "--user",
        "1000:1000",
        &name,
        "sh",
        "-c",
        "printf '#!/bin/sh\\n' > run.sh; chmod +x run.sh; printf text > src/deep/text",
    ]);
    assert_example(&files(driver.read_workspace(&subject.session, Some(&subject.instance)).await.unwrap()).await);
    driver.stop(&subject.session, &subject.instance, Duration::from_secs(10)).await.unwrap();
    driver.remove(&subject.session, &subject.instance).await.unwrap();
    assert_example(&files(driver.read_workspace(&subject.session, None).await.unwrap()).await);

    let mut unfinished = driver.read_workspace(&subject.session, None).await.unwrap();
    unfinished.read_u8().await.unwrap();
    let listed = driver.list().await.unwrap();
    let reader = listed.iter().find(|owned| owned.kind == OwnedKind::Reader && !owned.running).expect("a reader");
    // As a daemon does with what the one before it left.
    driver.remove(&subject.session, reader.instance.as_ref().unwrap()).await.unwrap();
    drop(unfinished);
    let mut unfinished = driver.read_workspace(&subject.session, None).await.unwrap();
    unfinished.read_u8().await.unwrap();
    drop(unfinished);
    subject.end(driver).await;
    assert_eq!(code(driver.read_workspace(&subject.session, None).await), "WORKSPACE_MISSING");
}

#[tokio::test]
async fn a_bad_workspace_source_is_the_fault_that_is_told() {
    let fixture = Fixture::new(LinkMode::Auto);
    let (driver, subject) = (&fixture.driver, Subject::new());
    driver.ensure_volumes(&subject.session).await.unwrap();
    driver.create(subject.spec()).await.unwrap();
    let filled = driver.fill_workspace(&subject.session, &subject.instance, copy_of(Path::new("/nowhere/at/all"))).await;
    assert_eq!(code(filled), "WORKSPACE_SOURCE");
    subject.end(driver).await;
}

#[tokio::test]
async fn everything_that_is_held_is_listed_and_what_others_hold_is_not() {
    let fixture = Fixture::new(LinkMode::Auto);
    let other = Fixture::new(LinkMode::Auto);
    let (driver, subject) = (&fixture.driver, Subject::new());
    driver.ensure_volumes(&subject.session).await.unwrap();
    driver.create(subject.spec()).await.unwrap();
    assert_eq!(driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Created);
    // As after a crash between two steps: the same instance again, with the token of now.
    driver.create(subject.spec()).await.unwrap();
    let listed = driver.list().await.unwrap();
    let kinds: Vec<_> = listed.iter().map(|owned| (owned.kind, owned.instance.is_some(), owned.running)).collect();
    assert_eq!(kinds, [(OwnedKind::Volume, false, false), (OwnedKind::Instance, true, false)]);
    assert!(listed.iter().all(|owned| owned.session == subject.session));
    assert!(other.driver.list().await.unwrap().is_empty());
    driver.start(&subject.session, &subject.instance).await.unwrap();
    assert!(driver.list().await.unwrap().iter().any(|owned| owned.kind == OwnedKind::Instance && owned.running));
    subject.end(driver).await;
}

#[tokio::test]
async fn a_container_is_closed_to_the_agent_and_to_the_network() {
    let fixture = Fixture::new(LinkMode::Auto);
    let (driver, subject) = (&fixture.driver, Subject::new());
    subject.start(driver, WorkspaceSource::Empty).await;
    subject.ask_health(driver).await;
    let name = container(&subject);
    let script = "ls /run/openagent /var/lib/openagent || touch /etc/x || echo denied; touch /workspace/x /tmp/x /home/agent/x && echo open; \
                  cat /sys/class/net/*/operstate | wc -l; grep CapEff /proc/self/status | cut -f2; stat -c %a:%u /workspace";
    let told = docker(&["exec", "--user", "1000:1000", &name, "sh", "-c", &format!("({script}) 2>/dev/null")]);
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(&lines[..2], ["denied", "open"], "{told}");
    assert_eq!(&lines[3..], ["0000000000000000", "2775:1000"], "{told}");
    assert_eq!(docker(&["inspect", "--format", "{{.HostConfig.NetworkMode}} {{len .NetworkSettings.Ports}}", &name]), "none 0");
    assert!(driver.logs(&subject.session, &subject.instance, 4096).await.len() <= 4096);
    subject.end(driver).await;
}

#[tokio::test]
async fn a_missing_image_is_a_fault_at_both_doors() {
    let mut fixture = Fixture::new(LinkMode::Auto);
    fixture.options.image = "openagent-no-such-image:never".to_owned();
    let (driver, subject) = (fixture.restarted(), Subject::new());
    assert_eq!(code(driver.ensure_image().await), "IMAGE_MISSING");
    assert_eq!(code(driver.create(subject.spec()).await), "IMAGE_MISSING");
    assert!(driver.list().await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(fixture.options.runtime_dir.join("l")).unwrap().count(), 0, "no link folder is left");
}

fn at(endpoint: &Path) -> DockerDriver {
    let mut options = Fixture::new(LinkMode::Auto).options.clone();
    options.endpoint = Some(format!("unix://{}", endpoint.display()));
    DockerDriver::new(options, Tasks::new())
}

#[tokio::test]
async fn an_engine_that_is_missing_or_down_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    assert_eq!(code(at(&socket).health().await), "ENGINE_MISSING");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert_eq!(code(at(&socket).health().await), "ENGINE_UNREACHABLE");
    let health = Fixture::new(LinkMode::Auto).driver.health().await.unwrap();
    assert!(health.contains("Docker") || health.contains("Podman"), "{health}");
}

#[tokio::test]
async fn an_engine_that_hangs_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let _accepts_and_says_nothing = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert_eq!(code(at(&socket).health().await), "ENGINE_TIMEOUT");
}

#[tokio::test]
async fn a_socket_that_the_user_may_not_use_is_told_as_such() {
    if let Some(socket) = std::env::var_os(SOCKET_VARIABLE) {
        let options = DockerOptions {
            endpoint: Some(PathBuf::from(socket).display().to_string()),
            image: String::new(),
            runtime: None,
            link_mode: LinkMode::Auto,
            runtime_dir: PathBuf::from("/nonexistent"),
            state_label: String::new(),
            journal_max_bytes: JournalConfig::default().max_bytes,
        };
        assert_eq!(code(DockerDriver::new(options, Tasks::new()).health().await), "ENGINE_FORBIDDEN");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = folder.path().join("engine.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o000)).unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "a_socket_that_the_user_may_not_use_is_told_as_such"]).env(SOCKET_VARIABLE, &socket);
    if nix::unistd::geteuid().is_root() {
        // Modes do not bind root; a copy of this test that the other user can reach does.
        let copy = folder.path().join("test");
        // By another process: a child started by another test meanwhile would hold it open for writing, and it could not be run.
        assert!(Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&copy).status().unwrap().success());
        again = {
            let mut command = Command::new(copy);
            command.args(again.get_args()).env(SOCKET_VARIABLE, &socket).current_dir("/").uid(65_534).gid(65_534);
            command
        };
    }
    let output = again.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test]
async fn volumes_in_use_are_not_removed_in_silence() {
    let fixture = Fixture::new(LinkMode::Auto);
    let (driver, subject) = (&fixture.driver, Subject::new());
    driver.ensure_volumes(&subject.session).await.unwrap();
    driver.create(subject.spec()).await.unwrap();
    assert_eq!(code(driver.remove_volumes(&subject.session).await), "VOLUME_IN_USE");
    subject.end(driver).await;
    eventually("the volumes are gone", || async { driver.list().await.unwrap().is_empty() }).await;
}
