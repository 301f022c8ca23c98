//! Whom and what the agent's processes run as, and what becomes of those that nobody waits for.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use http::{Method, StatusCode};
use openagent_proto::sidecar::{env, path};
use serde_json::json;

use crate::fixture::{Daemon, Folders, within};

const TERMINAL: &str = "trm_01ARZ3NDEKTSV4RRFFQ69G5FAV";

async fn run(daemon: &Daemon, command: &str) {
    let body = json!({ "id": TERMINAL, "columns": 80, "rows": 24, "command": command });
    assert_eq!(daemon.call(Method::POST, path::TERMINALS, &body).await.status, StatusCode::CREATED);
}

async fn content(path: &Path) -> String {
    within(&format!("{} appears", path.display()), async {
        loop {
            if let Ok(content) = std::fs::read_to_string(path) {
                return content;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// State and parent of a process; `None` when it is gone.
fn state_and_parent(pid: &str) -> Option<(String, String)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned);
    Some((fields.next()?, fields.next()?))
}

async fn until_gone(pid: &str) {
    within(&format!("process {pid} is gone"), async {
        while state_and_parent(pid).is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_orphan_is_taken_over_and_reaped() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    let workspace = folders.path("workspace");
    run(&daemon, "mkfifo go; setsid sh -c 'echo $$ > pid.new; mv pid.new pid; read x < go' & while ! [ -e pid ]; do :; done").await;
    let pid = content(&workspace.join("pid")).await.trim().to_owned();
    let sidecar_pid = sidecar.child.id().unwrap().to_string();
    within("the orphan is the sidecar's", async {
        while state_and_parent(&pid).is_none_or(|(_, parent)| parent != sidecar_pid) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    std::fs::write(workspace.join("go"), "\n").unwrap();
    until_gone(&pid).await;
}

#[tokio::test]
async fn nothing_is_left_running_when_the_sidecar_has_ended() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    run(&daemon, "setsid sh -c 'trap \"\" HUP TERM; echo $$ > pid.new; mv pid.new pid; while :; do sleep 1000; done' & wait").await;
    let pid = content(&folders.path("workspace").join("pid")).await.trim().to_owned();
    assert_eq!(daemon.call(Method::POST, path::SHUTDOWN, &json!({ "gracePeriodMs": 100 })).await.status, StatusCode::ACCEPTED);
    assert!(sidecar.ended().await.0.success());
    until_gone(&pid).await;
}

#[tokio::test]
async fn a_killed_sidecar_takes_its_children_along() {
    let folders = Folders::new();
    let mut sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    run(&daemon, "trap '' HUP; echo $$ > pid.new; mv pid.new pid; while :; do read x; done").await;
    let pid = content(&folders.path("workspace").join("pid")).await.trim().to_owned();
    sidecar.child.start_kill().unwrap();
    sidecar.ended().await;
    within("the shell has ended", async {
        while state_and_parent(&pid).is_some_and(|(state, _)| state != "Z") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn another_user_has_no_privilege_and_cannot_look_into_the_sidecar() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can start processes of another user");
        return;
    }
    let folders = Folders::new();
    let open = |name: &str, mode| std::fs::set_permissions(folders.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    open("", 0o755);
    open("workspace", 0o777);
    open("state", 0o700);
    let sidecar = folders.start_with(|command| command.env(env::AGENT_UID, "12345")).await;
    let daemon = sidecar.registered().await;
    let state = folders.path("state");
    run(
        &daemon,
        &format!(
            "{{ id -u; id -G; umask; grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs)' /proc/self/status; ls {state} || echo closed-state; \
             cat /proc/$PPID/environ || echo closed-environ; cat /proc/$PPID/mem || echo closed-mem; ls /proc/$PPID/fd || echo closed-fd; \
             kill -0 $PPID || echo closed-kill; sh -c 'echo open-tty > /proc/self/fd/0'; ls -l /proc/self/fd | wc -l; tty > /dev/null && : > $(tty) && echo named-tty; }} \
             > out.new 2>/dev/null; mv out.new out",
            state = state.display()
        ),
    )
    .await;
    let out = content(&folders.path("workspace").join("out")).await;
    let expected = [
        "12345\n12345\n0002\n",
        "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n",
        "closed-state\nclosed-environ\nclosed-mem\nclosed-fd\nclosed-kill\n",
        "named-tty\n",
    ];
    for part in expected {
        assert!(out.contains(part), "{part:?} is not in {out}");
    }
}

#[tokio::test]
async fn the_sidecar_cannot_be_dumped_or_read_by_its_own_user() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let pid = sidecar.child.id().unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core: Vec<_> = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"]);
    // What a process that is not dumpable owns in /proc belongs to root.
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0);
}
