//! The local driver with the real sidecar, and with shell scripts in its place where a sidecar must misbehave.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/driver.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use openagent_core::instance::ExitCause;
use openagent_core::session::WorkspaceSource;
use openagentd::driver::local::{LocalDriver, LocalOptions};
use openagentd::driver::{Driver, Observed, OwnedKind, Purpose};
use openagentd::task::Tasks;
use support::{Subject, assert_example, copy_of, eventually, example_folder, files, in_time};

/// A sidecar that ignores SIGTERM and has a child, whose id it writes down.
const STUBBORN: &str = "#!/bin/sh
trap '' TERM
mkfifo \"$OPENAGENT_STATE_DIR/never\"
(read line < \"$OPENAGENT_STATE_DIR/never\") &
echo $! > \"$OPENAGENT_STATE_DIR/child\"
echo ready
while :; do read line < \"$OPENAGENT_STATE_DIR/never\"; done
";

/// A sidecar with an agent, which has two children: one that it stopped itself, and one that left for a session of its own and has no parent any more.
const BUSY: &str = "#!/bin/sh
cd \"$OPENAGENT_STATE_DIR\"
mkfifo never
HOME=\"$OPENAGENT_AGENT_HOME\" sh -c '
  (read line < never) & stopped=$!
  kill -STOP $stopped
  setsid sh -c \"(read line < never) & echo \\$! > orphan\"
  echo $stopped > stopped
  echo $$ > agent
  read line < never
' &
read line < never
";

/// State of a process as the kernel tells it; absent when it is gone or waits to be reaped.
fn state_of(pid: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next().filter(|state| *state != 'Z')
}

/// A program that `cargo xtask test` built, or the newest build of it.
fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("OPENAGENT_TEST_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let test = std::env::current_exe().expect("the path of this test");
        // target/debug/deps/test
        test.ancestors().nth(3).expect("the target folder").join("openagent/debug/bin")
    });
    let program = folder.join(name);
    assert!(program.is_file(), "{} is missing: run the tests with `cargo xtask test`", program.display());
    program
}

struct Fixture {
    driver: LocalDriver,
    options: LocalOptions,
    tasks: Tasks,
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new(sidecar: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let opencode = std::env::var_os("OPENAGENT_TEST_OPENCODE").map_or_else(|| PathBuf::from("/bin/sh"), PathBuf::from);
        let options = LocalOptions {
            state_dir: folder.path().join("state"),
            runtime_dir: folder.path().join("run"),
            sidecar,
            opencode,
            journal_max_bytes: openagent_core::config::JournalConfig::default().max_bytes,
        };
        let tasks = Tasks::new();
        Self { driver: LocalDriver::new(options.clone(), tasks.clone()), options, tasks, folder }
    }

    fn real() -> Self {
        Self::new(program("openagent-sidecar"))
    }

    fn scripted(script: &str) -> Self {
        let mut fixture = Self::new(PathBuf::new());
        let path = fixture.folder.path().join("sidecar");
        write_program(&path, script);
        fixture.options.sidecar = path;
        fixture.driver = LocalDriver::new(fixture.options.clone(), fixture.tasks.clone());
        fixture
    }

    fn session(&self, subject: &Subject) -> PathBuf {
        self.options.state_dir.join("local").join(subject.session.as_str())
    }

    fn process_file(&self, subject: &Subject) -> PathBuf {
        self.session(subject).join("instances").join(subject.instance.as_str()).join("process.json")
    }

    fn pid(&self, subject: &Subject) -> Pid {
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(self.process_file(subject)).unwrap()).unwrap();
        Pid::from_raw(i32::try_from(record["pid"].as_i64().unwrap()).unwrap())
    }

    /// The driver of a daemon that was started again; the first one reaps no more.
    async fn restarted(&self) -> LocalDriver {
        self.tasks.shutdown(Duration::ZERO).await;
        LocalDriver::new(self.options.clone(), Tasks::new())
    }
}

fn code<T>(outcome: Result<T, openagent_core::session::Fault>) -> String {
    let fault = outcome.err().expect("a fault");
    assert!(!fault.message.is_empty() && !fault.hint.is_empty(), "{fault:?}");
    fault.code
}

async fn reads(path: &Path) -> String {
    eventually(&format!("{} is written", path.display()), || async {
        std::fs::read_to_string(path).is_ok_and(|text| text.ends_with('\n'))
    })
    .await;
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_sidecar_answers_over_http2_and_ends_when_it_is_told_to() {
    let fixture = Fixture::real();
    let (driver, subject) = (&fixture.driver, Subject::new());
    assert_eq!(driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Missing);
    subject.start(driver, WorkspaceSource::Empty).await;
    assert_eq!(subject.ask_health(driver).await.status, "ok");
    drop(driver.dial(&subject.session, &subject.instance, Purpose::Relay).await.unwrap());
    assert!(fixture.session(&subject).join("workspace/.git/HEAD").is_file());
    let mode = std::fs::metadata(fixture.session(&subject)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    driver.stop(&subject.session, &subject.instance, Duration::from_secs(10)).await.unwrap();
    let ended = driver.inspect(&subject.session, &subject.instance).await.unwrap();
    assert!(matches!(ended, Observed::Ended(ExitCause::Exited { .. })), "it ended by itself: {ended:?}");
    assert_eq!(code(driver.dial(&subject.session, &subject.instance, Purpose::Control).await), "INSTANCE_NOT_RUNNING");
    subject.end(driver).await;
}

#[tokio::test]
async fn a_daemon_that_starts_again_adopts_its_sidecars() {
    let fixture = Fixture::real();
    let subject = Subject::new();
    subject.start(&fixture.driver, WorkspaceSource::Empty).await;
    subject.ask_health(&fixture.driver).await;
    let driver = fixture.restarted().await;
    assert_eq!(driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Running);
    assert_eq!(subject.ask_health(&driver).await.status, "ok");
    driver.start(&subject.session, &subject.instance).await.unwrap();
    let pid = fixture.pid(&subject);
    let ended = driver.ended(&subject.session, &subject.instance);
    let (ended, _) = tokio::join!(in_time(ended), async { kill(pid, Signal::SIGKILL).unwrap() });
    assert_eq!(ended, ExitCause::Unwatched);
    subject.end(&driver).await;
}

#[tokio::test]
async fn an_end_is_told_with_its_cause() {
    let fixture = Fixture::real();
    let (driver, subject) = (&fixture.driver, Subject::new());
    subject.start(driver, WorkspaceSource::Empty).await;
    subject.ask_health(driver).await;
    let pid = fixture.pid(&subject);
    let ended = driver.ended(&subject.session, &subject.instance);
    let (ended, _) = tokio::join!(in_time(ended), async { kill(pid, Signal::SIGKILL).unwrap() });
    assert_eq!(ended, ExitCause::Killed { signal: 9 });
    let later = LocalDriver::new(fixture.options.clone(), Tasks::new());
    let found = later.inspect(&subject.session, &subject.instance).await.unwrap();
    assert_eq!(found, Observed::Ended(ExitCause::Killed { signal: 9 }), "known to the next daemon too");
    subject.end(driver).await;
}

#[tokio::test]
async fn a_sidecar_that_ignores_the_request_is_killed_with_its_children() {
    let fixture = Fixture::scripted(STUBBORN);
    let (driver, subject) = (&fixture.driver, Subject::new());
    subject.start(driver, WorkspaceSource::Empty).await;
    let child = Pid::from_raw(reads(&fixture.session(&subject).join("state/child")).await.parse().unwrap());
    eventually("it said so", || async { driver.logs(&subject.session, &subject.instance, 100).await == "ready\n" }).await;
    driver.stop(&subject.session, &subject.instance, Duration::from_millis(100)).await.unwrap();
    assert_eq!(driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Ended(ExitCause::Killed { signal: 9 }));
    let stat = PathBuf::from(format!("/proc/{child}/stat"));
    eventually("the child is gone", || async { std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")) }).await;
    subject.end(driver).await;
}

#[tokio::test]
async fn a_paused_instance_stands_still_whoever_pauses_and_wakes_it() {
    let fixture = Fixture::scripted(BUSY);
    let subject = Subject::new();
    subject.start(&fixture.driver, WorkspaceSource::Empty).await;
    let state = fixture.session(&subject).join("state");
    let pid = |name: &str| {
        let path = state.join(name);
        async move { Pid::from_raw(reads(&path).await.parse().unwrap()) }
    };
    let (agent, stopped, orphan, sidecar) = (pid("agent").await, pid("stopped").await, pid("orphan").await, fixture.pid(&subject));
    let states = || [sidecar, agent, orphan, stopped].map(state_of);
    eventually("everything waits", || async { states() == [Some('S'), Some('S'), Some('S'), Some('T')] }).await;
    fixture.driver.wake(&subject.session, &subject.instance).await.unwrap();
    for _ in 0..2 {
        fixture.driver.pause(&subject.session, &subject.instance).await.unwrap();
        assert_eq!(states(), [Some('T'); 4]);
        assert_eq!(fixture.driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Paused);
    }
    let driver = fixture.restarted().await;
    assert_eq!(driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Paused);
    assert!(driver.list().await.unwrap().iter().any(|owned| owned.kind == OwnedKind::Instance && owned.running));
    for wake in 0..3 {
        match wake {
            0 | 1 => driver.wake(&subject.session, &subject.instance).await.unwrap(),
            _ => {
                driver.pause(&subject.session, &subject.instance).await.unwrap();
                driver.start(&subject.session, &subject.instance).await.unwrap();
            }
        }
        eventually("they go on", || async { states()[..3].iter().all(|state| *state == Some('S')) }).await;
        assert_eq!(state_of(stopped), Some('T'), "what the agent stopped is its own affair");
        assert_eq!(driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Running);
    }
    driver.pause(&subject.session, &subject.instance).await.unwrap();
    in_time(driver.remove(&subject.session, &subject.instance)).await.unwrap();
    assert_eq!(states(), [None; 4]);
    assert_eq!(code(driver.pause(&subject.session, &subject.instance).await), "INSTANCE_NOT_RUNNING");
    assert_eq!(code(driver.wake(&subject.session, &subject.instance).await), "INSTANCE_NOT_RUNNING");
    subject.end(&driver).await;
}

#[tokio::test]
async fn a_paused_sidecar_answers_when_it_is_woken_and_ends_in_good_order() {
    let fixture = Fixture::real();
    let (driver, subject) = (&fixture.driver, Subject::new());
    subject.start(driver, WorkspaceSource::Empty).await;
    subject.ask_health(driver).await;
    driver.pause(&subject.session, &subject.instance).await.unwrap();
    driver.wake(&subject.session, &subject.instance).await.unwrap();
    assert_eq!(subject.ask_health(driver).await.status, "ok");
    driver.pause(&subject.session, &subject.instance).await.unwrap();
    let ended = driver.ended(&subject.session, &subject.instance);
    let stopped = driver.stop(&subject.session, &subject.instance, Duration::from_secs(10));
    let (ended, stopped) = tokio::join!(in_time(ended), in_time(stopped));
    stopped.unwrap();
    assert_eq!(ended, ExitCause::Exited { code: 0 });
    subject.end(driver).await;
}

#[tokio::test]
async fn what_a_killed_sidecar_leaves_behind_is_ended() {
    for adopted in [false, true] {
        let fixture = Fixture::scripted(BUSY);
        let subject = Subject::new();
        subject.start(&fixture.driver, WorkspaceSource::Empty).await;
        let state = fixture.session(&subject).join("state");
        let left = [reads(&state.join("orphan")).await, reads(&state.join("stopped")).await, reads(&state.join("agent")).await];
        let left = left.map(|pid| Pid::from_raw(pid.parse().unwrap()));
        let again = fixture.restarted();
        let driver = if adopted { &again.await } else { &fixture.driver };
        let pid = fixture.pid(&subject);
        let ended = driver.ended(&subject.session, &subject.instance);
        let (ended, ()) = tokio::join!(in_time(ended), async { kill(pid, Signal::SIGKILL).unwrap() });
        assert_eq!(ended, if adopted { ExitCause::Unwatched } else { ExitCause::Killed { signal: 9 } });
        assert_eq!(left.map(state_of), [None; 3], "they are gone when the end is told");
        subject.end(driver).await;
    }
}

#[tokio::test]
async fn missing_volumes_are_named_and_programs_have_an_identity() {
    let fixture = Fixture::scripted("#!/bin/sh\n");
    let (driver, subject) = (&fixture.driver, Subject::new());
    assert_eq!(driver.missing_volumes(&subject.session).await.unwrap(), ["workspace", "home", "state"]);
    driver.ensure_volumes(&subject.session).await.unwrap();
    assert!(driver.missing_volumes(&subject.session).await.unwrap().is_empty());
    std::fs::remove_dir(fixture.session(&subject).join("workspace")).unwrap();
    assert_eq!(driver.missing_volumes(&subject.session).await.unwrap(), ["workspace"]);
    let before = driver.ensure_image().await.unwrap();
    assert_eq!(driver.ensure_image().await.unwrap(), before);
    write_program(&fixture.options.sidecar, "#!/bin/sh\necho new\n");
    assert_ne!(driver.ensure_image().await.unwrap(), before);
    subject.end(driver).await;
}

#[tokio::test]
async fn a_process_that_only_has_the_same_id_is_left_alone() {
    let fixture = Fixture::scripted("#!/bin/sh\n");
    let subject = Subject::new();
    subject.start(&fixture.driver, WorkspaceSource::Empty).await;
    in_time(fixture.driver.ended(&subject.session, &subject.instance)).await;
    let record = serde_json::json!({ "pid": std::process::id(), "started": "another boot/1" });
    std::fs::write(fixture.process_file(&subject), record.to_string()).unwrap();
    let driver = fixture.restarted().await;
    assert!(matches!(driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Ended(_)));
    subject.end(&driver).await;
}

#[tokio::test]
async fn a_sidecar_that_ends_at_once_is_not_waited_for() {
    let fixture = Fixture::scripted("#!/bin/sh\necho broken >&2\nexit 3\n");
    let (driver, subject) = (&fixture.driver, Subject::new());
    subject.start(driver, WorkspaceSource::Empty).await;
    let fault = in_time(driver.dial(&subject.session, &subject.instance, Purpose::Control)).await.err().unwrap();
    assert_eq!((fault.code.as_str(), fault.message.contains("exited with code 3")), ("INSTANCE_NOT_RUNNING", true), "{fault:?}");
    assert_eq!(driver.logs(&subject.session, &subject.instance, 100).await, "broken\n");
    subject.end(driver).await;
}

#[tokio::test]
async fn a_workspace_goes_in_and_comes_back() {
    let fixture = Fixture::scripted("#!/bin/sh\n");
    let (driver, subject) = (&fixture.driver, Subject::new());
    let folder = example_folder();
    subject.start(driver, copy_of(folder.path())).await;
    assert_example(&files(driver.read_workspace(&subject.session, Some(&subject.instance)).await.unwrap()).await);
    let around = copy_of(fixture.folder.path());
    assert_eq!(code(driver.fill_workspace(&subject.session, &subject.instance, around).await), "WORKSPACE_SOURCE");
    let missing = copy_of(Path::new("/nowhere/at/all"));
    assert_eq!(code(driver.fill_workspace(&subject.session, &subject.instance, missing).await), "WORKSPACE_SOURCE");
    subject.end(driver).await;
    assert_eq!(code(driver.read_workspace(&subject.session, None).await), "WORKSPACE_MISSING");
}

#[tokio::test]
async fn everything_that_is_held_is_listed() {
    let fixture = Fixture::scripted(STUBBORN);
    let (driver, subject) = (&fixture.driver, Subject::new());
    assert!(driver.list().await.unwrap().is_empty());
    driver.ensure_volumes(&subject.session).await.unwrap();
    driver.create(subject.spec()).await.unwrap();
    driver.create(subject.spec()).await.unwrap();
    assert_eq!(driver.inspect(&subject.session, &subject.instance).await.unwrap(), Observed::Created);
    let kinds = |listed: Vec<openagentd::driver::Owned>| listed.into_iter().map(|owned| (owned.kind, owned.running)).collect::<Vec<_>>();
    assert_eq!(kinds(driver.list().await.unwrap()), [(OwnedKind::Volume, false), (OwnedKind::Instance, false)]);
    driver.start(&subject.session, &subject.instance).await.unwrap();
    assert_eq!(kinds(driver.list().await.unwrap()), [(OwnedKind::Volume, false), (OwnedKind::Instance, true)]);
    assert_eq!(
        code(driver.create(subject.spec()).await.map_err(|mut fault| {
            fault.hint = "none is needed".to_owned();
            fault
        })),
        "INSTANCE_RUNS"
    );
    subject.end(driver).await;
}

#[tokio::test]
async fn missing_programs_are_named() {
    let fixture = Fixture::new(PathBuf::from("/nowhere/openagent-sidecar"));
    assert_eq!(code(fixture.driver.ensure_image().await), "SIDECAR_MISSING");
    let mut options = fixture.options.clone();
    options.sidecar = PathBuf::from("/bin/sh");
    options.opencode = PathBuf::from("/nowhere/opencode");
    let driver = LocalDriver::new(options, Tasks::new());
    assert_eq!(code(driver.health().await), "OPENCODE_MISSING");
    assert!(!driver.isolation_warning().is_empty());
}

/// Writes a script by another process: a child started by another test meanwhile would hold it open for writing, and it could not be run (`ETXTBSY`).
fn write_program(path: &Path, script: &str) {
    let source = path.with_extension("source");
    std::fs::write(&source, script).unwrap();
    assert!(std::process::Command::new("cp").arg(&source).arg(path).status().unwrap().success());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
