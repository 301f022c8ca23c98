//! How soon a session is there that was prepared, stopped or paused before.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_proto::v1::subscribe_response::Item;
use openagent_tests::harness::events::Events;
use openagent_tests::harness::{CANARY, Clients, Driver, PATIENCE, World};

use crate::memory::TICK_MILLIS;
use crate::report::{Report, Series};
use crate::start::{ORDER, Steps, step};
use crate::{proc, raw};

const MODEL: &str = "scripted/scripted-large";

/// How the model's answer begins.
const ANSWER: &str = "The";

/// Prepared instances that are kept.
const POOL: u32 = 2;

/// Time between two looks at whether the pool is full again.
const LOOK: Duration = Duration::from_millis(50);

/// Time at rest after which a session is paused; short, since it is waited for in each round.
const IDLE: Duration = Duration::from_millis(300);

/// How long nothing happens while processor time is counted.
const REST: Duration = Duration::from_secs(5);

/// Files of the repository that is copied into a workspace.
const FILES: usize = 50;

/// From the warm pool, with an empty workspace and with a copied one.
pub async fn warm(rounds: u32, report: &mut Report) -> Result<()> {
    if raw::engine()?.ping().await.is_err() {
        report.skip("create to accepted prompt, warm pool", "no engine answers");
        return Ok(());
    }
    let mut world = World::new(Driver::Docker).await;
    world.write_config(&format!("[pool]\nsize = {POOL}\n"));
    let repository = world.path("repository");
    make_repository(&repository)?;
    world.start().await;
    let mut clients = world.clients().await;
    clients.set_key("scripted", CANARY).await;
    // What was prepared before there was a key is of no use to its sessions.
    let settled = clients.create(MODEL).await.id;
    clients.prompt(&settled, "#plain").await;
    clients.remove(&settled).await;
    let copy = v1::workspace::Source::Copy(v1::CopyWorkspace { path: repository.display().to_string() });
    for (name, source) in [("empty workspace", None), ("copied repository", Some(copy))] {
        let (mut accepted, mut letters, mut steps) = (vec![], vec![], Steps::default());
        for round in 0..=rounds {
            until_full(&mut clients).await?;
            let workspace = source.clone().map(|source| v1::Workspace { source: Some(source) });
            let request = v1::CreateSessionRequest { model: MODEL.to_owned(), workspace, ..Default::default() };
            let began = Instant::now();
            let id = clients.create_with(request).await.id;
            let mut events = clients.follow(&id).await;
            clients.prompt(&id, "#plain").await;
            let at_prompt = began.elapsed();
            until_letter(&mut events).await?;
            let at_letter = began.elapsed();
            events.until_turn_ended().await;
            eprintln!("  round {round}: accepted {:.0} ms, first letter {:.0} ms", millis(at_prompt), millis(at_letter));
            let made = events.seen.iter().any(|event| matches!(&event.kind, Some(Kind::Step(step)) if step.step == "create"));
            ensure!(!made, "the session did not take a prepared instance");
            if round > 0 {
                accepted.push(millis(at_prompt));
                letters.push(millis(at_letter));
                for (step, millis) in events.seen.iter().filter_map(step) {
                    steps.entry(step).or_default().push(millis);
                }
            }
            clients.remove(&id).await;
        }
        let (accepted, letters) = (Series::new(accepted), Series::new(letters));
        let what = format!("warm pool, {name}");
        report.promise(&format!("create to accepted prompt, {what} (p95)"), 200.0, accepted.quantile(0.95), "ms");
        report.promise(&format!("create to first letter, {what} (p95)"), 600.0, letters.quantile(0.95), "ms");
        report.row(&format!("create to accepted prompt, {what}"), &accepted.quantiles("ms"), "", "", accepted.count());
        report.row(&format!("create to first letter, {what}"), &letters.quantiles("ms"), "", "", letters.count());
        report.note(&format!("Medians of the steps of \"{what}\" in milliseconds: {}.", of_steps(steps)));
    }
    world.stop().await;
    report.note(
        "Warm pool: `[pool] size = 2` on Docker, with the pool full before each round; the model answers at once. The copied repository has 50 files and \
         two commits. Instances are prepared again between rounds, which are not timed.",
    );
    Ok(())
}

/// Of a stopped session, beside OpenCode's own start.
pub async fn resume(driver: Driver, rounds: u32, report: &mut Report) -> Result<()> {
    let name = if driver == Driver::Docker { "Docker" } else { "local driver" };
    let what = format!("resume of a stopped session to accepted prompt, {name}");
    let engine = raw::engine()?;
    if driver == Driver::Docker && (engine.ping().await.is_err() || !nix::unistd::geteuid().is_root()) {
        report.skip(&what, "needs an engine, and root to reach the baseline");
        return Ok(());
    }
    let world = World::started(driver).await;
    let mut clients = world.clients().await;
    clients.set_key("scripted", CANARY).await;
    let (id, mut events) = clients.active(MODEL).await;
    clients.turn(&id, &mut events, "#plain").await;
    let (mut ours, mut theirs) = (vec![], vec![]);
    for round in 0..=rounds {
        clients.stop(&id).await;
        let began = Instant::now();
        clients.resume(&id).await;
        clients.prompt(&id, "#plain").await;
        let own = began.elapsed();
        events.until_turn_ended().await;
        let other = match driver {
            Driver::Docker => raw::start_docker(&engine, engine.info().await?.ncpu.unwrap_or(1)).await?,
            Driver::Local => raw::start_local(&world.model.base_url()).await?,
        };
        eprintln!("  round {round}: ours {:.2} s, raw {:.2} s", own.as_secs_f64(), other.as_secs_f64());
        if round > 0 {
            ours.push(own.as_secs_f64());
            theirs.push(other.as_secs_f64());
        }
    }
    world.end().await;
    let (ours, theirs) = (Series::new(ours), Series::new(theirs));
    report.compare(&what, &ours, &theirs, "s");
    report.promise(&format!("{what}, beyond OpenCode's own start (median)"), 1.0, ours.median() - theirs.median(), "s");
    report.note(
        "Resume of a stopped session: from the ResumeSession call until the Prompt call that follows it at once is answered; raw is the cold start of \
         OpenCode as above.",
    );
    Ok(())
}

/// Of a paused session.
pub async fn wake(driver: Driver, rounds: u32, report: &mut Report) -> Result<()> {
    let name = if driver == Driver::Docker { "Docker" } else { "local driver" };
    let what = format!("prompt of a paused session, {name}");
    if driver == Driver::Docker && raw::engine()?.ping().await.is_err() {
        report.skip(&what, "no engine answers");
        return Ok(());
    }
    let world = World::started(driver).await;
    let mut clients = world.clients().await;
    clients.set_key("scripted", CANARY).await;
    let idle_timeout = Some(prost_types::Duration { seconds: 0, nanos: i32::try_from(IDLE.as_nanos())? });
    let request =
        v1::CreateSessionRequest { model: MODEL.to_owned(), idle_timeout, idle_action: v1::IdleAction::Pause.into(), ..Default::default() };
    let id = clients.create_with(request).await.id;
    let mut events = clients.follow(&id).await;
    clients.prompt(&id, "#plain").await;
    let (mut accepted, mut woken, mut letters) = (vec![], vec![], vec![]);
    for round in 0..=rounds {
        until_instance(&mut events, v1::InstanceState::Paused).await;
        let mut caller = clients.clone();
        let began = Instant::now();
        let (at_prompt, at_wake, at_letter) = {
            let prompted = async {
                caller.prompt(&id, "#plain").await;
                began.elapsed()
            };
            let seen = async {
                until_instance(&mut events, v1::InstanceState::Running).await;
                let at_wake = began.elapsed();
                until_letter(&mut events).await.map(|()| (at_wake, began.elapsed()))
            };
            let (prompted, seen) = tokio::join!(prompted, seen);
            let (at_wake, at_letter) = seen?;
            (prompted, at_wake, at_letter)
        };
        eprintln!(
            "  round {round}: awake {:.0} ms, accepted {:.0} ms, first letter {:.0} ms",
            millis(at_wake),
            millis(at_prompt),
            millis(at_letter)
        );
        if round > 0 {
            accepted.push(millis(at_prompt));
            woken.push(millis(at_wake));
            letters.push(millis(at_letter));
        }
    }
    until_instance(&mut events, v1::InstanceState::Paused).await;
    let root = crate::latency::agent_root(&world, &id).await?;
    let inside: Vec<u32> = ["openagent-sidecar", "opencode"].iter().flat_map(|program| proc::named(root, program)).collect();
    let ticks = |pids: &[u32]| pids.iter().map(|pid| proc::ticks(*pid)).sum::<u64>() * TICK_MILLIS;
    let daemon = [world.daemon_pid()];
    let before = (ticks(&daemon), ticks(&inside));
    tokio::time::sleep(REST).await;
    let shown = format!("daemon {} ms, sidecar and OpenCode {} ms", ticks(&daemon) - before.0, ticks(&inside) - before.1);
    report.row(&format!("processor time of a paused session, {} s, {name}", REST.as_secs()), &shown, "", "", 1);
    world.end().await;
    for (part, times) in [("accepted", accepted), ("instance awake", woken), ("first letter", letters)] {
        let times = Series::new(times);
        if part == "accepted" {
            report.promise(&format!("{what} (p95)"), 150.0, times.quantile(0.95), "ms");
        }
        report.row(&format!("{what}: {part}"), &times.quantiles("ms"), "", "", times.count());
    }
    report.note("Prompt of a paused session: from the Prompt call until the client has seen each of these; the session was paused by its idle timeout.");
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

async fn until_full(clients: &mut Clients) -> Result<()> {
    let began = Instant::now();
    loop {
        let status = clients.daemon.get_status(v1::GetStatusRequest {}).await.context("ask for the status")?.into_inner();
        if status.warm_ready == POOL {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "the pool does not get full");
        tokio::time::sleep(LOOK).await;
    }
}

/// The model's answer begins: a letter of it, or all of it where that came in one piece.
async fn until_letter(events: &mut Events) -> Result<()> {
    loop {
        match events.next(PATIENCE).await.context("the history ended")? {
            Item::Delta(_) => return Ok(()),
            Item::Event(v1::Event { kind: Some(Kind::Part(v1::Part { body: Some(v1::part::Body::Text(text)), .. })), .. })
                if text.text.starts_with(ANSWER) =>
            {
                return Ok(());
            }
            Item::Event(_) | Item::CaughtUp(_) | Item::Snapshot(_) => {}
        }
    }
}

async fn until_instance(events: &mut Events, state: v1::InstanceState) {
    let is = |kind: &Kind| matches!(kind, Kind::Instance(v1::InstanceEvent { instance: Some(now) }) if now.state() == state).then_some(());
    events.until(state.as_str_name(), is).await;
}

fn of_steps(mut steps: Steps) -> String {
    let series = ORDER.iter().filter_map(|step| Some((step, Series::new(steps.remove(*step)?))));
    series.map(|(step, series)| format!("{step} {:.0}", series.median())).collect::<Vec<_>>().join(", ")
}

fn make_repository(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder.join("src")).context("make a folder")?;
    for file in 0..FILES {
        std::fs::write(folder.join(format!("src/file{file}.txt")), "some words in a line\n".repeat(40)).context("write a file")?;
    }
    for arguments in ["init -q -b main", "add .", "commit -q -m first", "commit -q --allow-empty -m second"] {
        let mut git = Command::new("git");
        git.current_dir(folder).args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"]).args(arguments.split(' '));
        ensure!(git.status().context("run git")?.success(), "git {arguments} failed");
    }
    Ok(())
}
