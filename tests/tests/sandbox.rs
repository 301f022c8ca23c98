//! What the agent is shut into, seen from inside as the agent's user, on the real engine; and both ways to reach the sidecar, with real sessions.

use openagent_proto::v1;
use openagent_tests::harness::engine::{AGENT, Container, ROOT};
use openagent_tests::harness::shell::Shell;
use openagent_tests::harness::{CANARY, Driver, World};

/// Prints `pid uid CapEff CapPrm CapAmb NoNewPrivs name` of every process.
const PROCESSES: &str = r#"
    for my $pid (map { m{/(\d+)$} } glob '/proc/[0-9]*') {
        next if $pid == $$;
        open(my $file, '<', "/proc/$pid/status") or next;
        my %about = map { /^(\w+):\s+(.*)/ } <$file>;
        my ($uid) = split ' ', $about{Uid};
        print join(' ', $pid, $uid, @about{qw(CapEff CapPrm CapAmb NoNewPrivs Name)}), "\n";
    }
"#;

/// Tries to attach to process 1 as a debugger, and prints the error's number: 1 is EPERM.
const TRACE: &str = r#"
    my $call = (`uname -m` =~ /x86_64/) ? 101 : 117;
    my $answer = syscall($call, 16, 1, 0, 0);
    print $answer == -1 ? $! + 0 : 'attached';
"#;

/// Starts a setuid program that waits for its input, and prints its real, effective, saved and file system user.
const SETUID: &str = r#"
    die 'no setuid program to try' unless -u '/usr/bin/passwd';
    my $pid = open(my $input, '|-', 'exec /usr/bin/passwd >/dev/null 2>&1') or die;
    while (kill 0, $pid) {
        open(my $file, '<', "/proc/$pid/status") or last;
        my %about = map { /^(\w+):\s+(.*)/ } <$file>;
        if ($about{Name} eq 'passwd') { print join(',', split ' ', $about{Uid}); last }
    }
"#;

#[tokio::test]
async fn the_agent_is_shut_in() {
    let world = World::with_keys(Driver::Docker).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active("scripted/scripted-large").await;
    let container = Container::of(&id).await;
    // A terminal stays open, so that its shell is among the processes that are looked at.
    let mut shell = Shell::open(&mut clients, &id, "").await;
    shell.write("id -u; echo up-$((40+2))\n").await;
    shell.until("up-42").await;

    let processes = container.exec(AGENT, &["perl", "-e", PROCESSES], "").await;
    let processes: Vec<Vec<&str>> = processes.text().lines().map(|line| line.split(' ').collect()).collect();
    let none = "0000000000000000";
    let mut names = vec![];
    for process in &processes {
        let [pid, uid, effective, permitted, ambient, no_new_privileges, name] = process[..] else { panic!("{process:?}") };
        assert_eq!((no_new_privileges, ambient), ("1", none), "{process:?}");
        if pid == "1" {
            // KILL, SETGID, SETUID: bits 5, 6 and 7 of linux/capability.h.
            assert_eq!((uid, effective, permitted), ("0", "00000000000000e0", "00000000000000e0"), "{process:?}");
        } else {
            assert_eq!((uid, effective, permitted), (AGENT, none, none), "{process:?}");
            names.push(name);
        }
    }
    for expected in ["opencode", "bash"] {
        assert!(names.contains(&expected), "{expected} is among {names:?}");
    }

    // The sidecar and what is its own.
    for closed in [
        "cat /proc/1/environ",
        "cat /proc/1/maps",
        "head -c1 /proc/1/mem",
        "ls /proc/1/fd",
        "ls /proc/1/root/",
        "ls /run/openagent",
        "ls /run/openagent/link",
        "cd /run/openagent",
        "ls /var/lib/openagent",
        "kill -0 1",
        "kill -KILL 1",
        "curl --silent --max-time 2 --unix-socket /run/openagent/link/sidecar.sock http://x/internal/health",
        // The root file system and what an escape would begin with.
        "touch /planted",
        "touch /etc/planted /usr/local/bin/planted",
        "echo x >> /usr/local/bin/openagent-sidecar",
        "mount -t tmpfs none /mnt",
        "mknod /tmp/disk b 8 0",
        "unshare --user --map-root-user true",
        "chroot / true",
        "su root -c true </dev/null",
        "ls /var/run/docker.sock",
        "ls /run/docker.sock /run/containerd",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo b > /proc/sysrq-trigger",
        "cat /proc/kcore",
        "dmesg",
    ] {
        let said = container.run(AGENT, closed).await;
        assert_ne!(said.code, 0, "{closed}: {said:?}");
    }
    assert_eq!(container.exec(AGENT, &["perl", "-e", TRACE], "").await.text(), "1", "the sidecar cannot be traced");
    assert_eq!(container.exec(AGENT, &["perl", "-e", SETUID], "").await.text(), "1000,1000,1000,1000", "setuid gives nothing");
    for open in
        ["touch /workspace/mine && rm /workspace/mine", "touch /home/agent/mine && rm /home/agent/mine", "touch /tmp/mine && rm /tmp/mine"]
    {
        assert_eq!(container.run(AGENT, open).await.code, 0, "{open}");
    }

    // The network: loopback, and nothing of this machine.
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let reached = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
    assert!(reached.is_ok(), "the service of this machine is up");
    assert_eq!(container.run(AGENT, "ls /sys/class/net").await.text(), "lo");
    let routes = container.run(AGENT, "cat /proc/net/route | tail -n +2; grep -v ' lo$' /proc/net/ipv6_route").await;
    assert_eq!(routes.out, "", "no way leads out");
    let here = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut addresses: Vec<&str> =
        here.lines().filter_map(|line| line.trim().strip_prefix("|-- ")).filter(|a| !a.starts_with("0.")).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert!(addresses.contains(&"127.0.0.1"), "{addresses:?}");
    let tries: String =
        addresses.iter().map(|address| format!("(exec 3<>/dev/tcp/{address}/{port}) 2>/dev/null && echo {address};")).collect();
    let reached = container.run(AGENT, &format!("{tries} true")).await;
    assert_eq!(reached.text(), "", "services of this machine cannot be reached at any of its addresses");
    assert_ne!(container.run(AGENT, "getent hosts example.org").await.code, 0, "no names are resolved");

    // The limits, as the engine has them and as they are felt.
    let host = container.inspect().await.host_config.expect("it is told");
    assert!(host.memory.is_some_and(|bytes| bytes >= 512 << 20), "{:?}", host.memory);
    assert_eq!(host.memory_swap, host.memory);
    assert!(host.pids_limit.is_some_and(|count| (16..=65_536).contains(&count)), "{:?}", host.pids_limit);
    assert!(host.nano_cpus.is_some_and(|cpus| cpus > 0));
    assert_eq!((host.privileged, host.readonly_rootfs), (Some(false), Some(true)));
    assert_eq!(host.binds.unwrap_or_default(), [""; 0]);
    let felt = "cat /sys/fs/cgroup/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids/pids.max";
    assert_eq!(container.run(AGENT, felt).await.text(), host.pids_limit.unwrap_or_default().to_string());
    assert_eq!(container.run(AGENT, "ulimit -c").await.text(), "0");

    // A fork bomb of the agent's ends at the limit, and the session goes on.
    let bomb = "for i in $(seq 1 100000); do sleep 1000 & done 2>&1 | grep -qm1 -i 'fork: ' && echo stopped";
    let bombed = container.run(AGENT, &format!("({bomb}); kill $(pgrep -x sleep)")).await;
    assert!(bombed.out.contains("stopped"), "{bombed:?}");
    let end = clients.turn(&id, &mut events, "#echo still here").await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{end:?}");
    world.end().await;
}

#[tokio::test]
async fn two_sessions_cannot_see_each_other() {
    let world = World::with_keys(Driver::Docker).await;
    let mut clients = world.clients().await;
    let first = clients.create("scripted/scripted-large").await.id;
    let second = clients.create("scripted/scripted-large").await.id;
    for id in [&first, &second] {
        clients.follow(id).await.until_ready().await;
    }
    let (one, two) = (Container::of(&first).await, Container::of(&second).await);
    let server = "echo secret-of-the-first > note; cd /home/agent && exec perl -MIO::Socket::INET -e '
        $s = IO::Socket::INET->new(Listen => 1, LocalAddr => \"0.0.0.0:18081\"); while ($c = $s->accept) { print $c \"first\\n\" }'";
    one.spawn(AGENT, &["bash", "-c", server]).await;
    let ask = "exec 3<>/dev/tcp/127.0.0.1/18081 && head -n1 <&3";
    assert_eq!(one.until(AGENT, ask).await.trim(), "first");

    for (blocked, why) in [
        (ask, "each has a loopback of its own"),
        ("ls /workspace/note", "each has a workspace of its own"),
        ("pgrep -f 18081", "each has processes of its own"),
        ("grep -rls secret-of-the-first /workspace /home/agent /tmp", "nothing of the other is in any folder"),
    ] {
        let said = two.run(AGENT, blocked).await;
        assert_ne!(said.code, 0, "{why}: {said:?}");
    }
    let mounts = two.run(ROOT, "cat /proc/self/mountinfo").await;
    assert!(mounts.text().contains(&second), "the mounts are named by the session");
    assert!(!mounts.text().contains(&first), "{}", mounts.text());
    let environment = two.run(ROOT, "cat /proc/1/environ /proc/self/environ").await;
    assert!(!environment.out.contains(&first));
    world.end().await;
}

/// Prompt, permission, terminal, restart of the daemon, the terminal again, a prompt again: by one way to the sidecar.
async fn a_whole_story(link: &str) -> bollard::models::ContainerInspectResponse {
    let mut world = World::new(Driver::Docker).await;
    world.write_config(&format!("[docker]\nlink = \"{link}\"\n"));
    world.start().await;
    world.set_keys(CANARY).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active("scripted/scripted-large").await;
    let container = Container::of(&id).await;
    let about = container.inspect().await;

    clients.prompt(&id, "#bash echo by-the-agent > made.txt").await;
    let request = events.until_asked().await;
    clients.permit(&id, &request.id, v1::PermissionResponse::Once).await;
    let end = events.until_turn_ended().await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{link}: {end:?}");
    let mut shell = Shell::open(&mut clients, &id, "").await;
    shell.write("cat made.txt; seq -s, 1 20000 | tee long.txt; echo shown-$((40+2))\n").await;
    shell.until("shown-42").await;
    let shown = String::from_utf8_lossy(&shell.seen).replace(['\r', '\n'], "");
    assert!(shown.contains("by-the-agent") && shown.contains("19999,20000"), "{link}: a hundred kilobytes come whole");
    shell.write("kept=over-the-restart; echo set-$((40+2))\n").await;
    shell.until("set-42").await;
    let (terminal, offset) = (shell.terminal.clone(), shell.end_offset);
    drop((shell, events));

    world.stop().await;
    world.start().await;
    let mut clients = world.clients().await;
    let last = clients.get(&id).await.last_seq;
    let mut events = clients.follow_after(&id, last).await;
    let end = clients.turn(&id, &mut events, "#echo after").await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{link}: {end:?}");
    assert!(events.answer().contains("after"), "{link}: the relay is up again");
    let mut shell = Shell::attach(&mut clients, &id, &terminal, offset).await;
    shell.write("echo $kept-$((40+2))\n").await;
    shell.until("over-the-restart-42").await;
    assert_eq!(container.inspect().await.state.map(|state| state.started_at), about.state.clone().map(|state| state.started_at));
    assert!(world.model.requests().iter().all(|request| request.key() == Some(CANARY)), "{link}");
    world.end().await;
    about
}

/// How `/run/openagent/link` is mounted.
fn link_mount(about: &bollard::models::ContainerInspectResponse) -> Option<String> {
    let mounts = about.mounts.as_ref()?;
    mounts.iter().find(|mount| mount.destination.as_deref() == Some("/run/openagent/link"))?.typ.clone()
}

#[tokio::test]
async fn a_session_works_over_the_bridge_as_over_the_socket() {
    for (link, mount) in [("exec", "tmpfs"), ("socket", "bind")] {
        let about = a_whole_story(link).await;
        assert_eq!(link_mount(&about).as_deref(), Some(mount), "{link}");
    }
}
