//! What OpenAgent adds to an event: the same piece of text is read from OpenCode's own stream and by a client of the daemon, in one process and
//! by one clock, and the difference is taken piece by piece.

use std::collections::HashMap;
use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context, Result};
use openagent_proto::v1::event::Kind;
use openagent_proto::v1::subscribe_response::Item;
use openagent_tests::harness::events::Events;
use openagent_tests::harness::{CANARY, Driver, PATIENCE, World};
use tokio::task::JoinSet;

use crate::report::{Report, Series};
use crate::{proc, raw};

/// Measured turns, and what each asks for: 200 pieces, 20 ms apart.
const TURNS: usize = 3;
const PROMPT: &str = "#slow 20 200";

/// A file system in memory.
const MEMORY: &str = "/dev/shm";

/// Flushes of the disk that are timed.
const FLUSHES: usize = 500;

/// For each part, how long its text was and when.
type Arrivals = HashMap<String, Vec<(usize, Instant)>>;

/// Measures one way between daemon and sidecar.
pub async fn measure(driver: Driver, way: &str, config: &str, report: &mut Report) -> Result<()> {
    let what = format!("event latency, {way}");
    if driver == Driver::Docker && (!nix::unistd::geteuid().is_root() || raw::engine()?.ping().await.is_err()) {
        report.skip(&what, "needs an engine, and root to read OpenCode's stream inside the container");
        return Ok(());
    }
    let world = World::new(driver).await;
    world.write_config(config);
    run(world, &what, report).await
}

/// The same on the local driver with the daemon's state in memory: what remains is no disk's.
pub async fn in_memory(report: &mut Report) -> Result<()> {
    let what = "event latency, local driver, state in memory";
    let Ok(folder) = tempfile::Builder::new().prefix("oa").tempdir_in(MEMORY) else {
        report.skip(what, "there is no file system in memory");
        return Ok(());
    };
    let mut world = World::new(Driver::Local).await;
    world.set_env("OPENAGENT_STATE_DIR", &folder.path().join("state").display().to_string());
    run(world, what, report).await?;
    let disk = tempfile::Builder::new().prefix("oa").tempdir_in("/tmp").context("make a folder")?;
    let mut file = std::fs::File::create(disk.path().join("file")).context("create a file")?;
    let mut flushes = vec![];
    for _ in 0..FLUSHES {
        let began = Instant::now();
        file.write_all(&[0; 512]).context("write")?;
        file.sync_data().context("flush")?;
        flushes.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let flushes = Series::new(flushes);
    report.row("512 bytes appended to a file and made durable (`fdatasync`)", "", &flushes.tail("ms"), "", flushes.count());
    Ok(())
}

async fn run(mut world: World, what: &str, report: &mut Report) -> Result<()> {
    world.start().await;
    let mut clients = world.clients().await;
    clients.set_key("scripted", CANARY).await;
    let (id, mut ours) = clients.active("scripted/scripted-large").await;
    clients.turn(&id, &mut ours, "#plain").await;
    let server = find_server(&world, &id).await.context("find OpenCode's server")?;
    let mut connections = JoinSet::new();
    let mut theirs = server.events(&mut connections).await?;

    let mut added = vec![];
    for _ in 0..TURNS {
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            let arrivals = read_theirs(&mut theirs).await?;
            anyhow::Ok((theirs, arrivals))
        });
        clients.prompt(&id, PROMPT).await;
        let seen = read_ours(&mut ours).await?;
        let read = reading.join_next().await.context("a reader runs")?;
        let source;
        (theirs, source) = read.context("the reader of OpenCode's stream panicked")??;
        added.extend(differences(&source, &seen));
    }
    drop(connections);
    world.end().await;
    let added = Series::new(added);
    report.promise(&format!("{what}: added (p99)"), 2.0, added.quantile(0.99), "ms");
    report.row(what, &format!("adds {}", added.tail("ms")), "OpenCode's own stream: 0 by definition", "-", added.count());
    report.note(
        "Event latency: while a turn streams 200 pieces of text 20 ms apart, the bench reads OpenCode's own `/global/event` directly (with the \
         password from the process's environment) and follows the session over gRPC as any client does. Shown is, piece by piece, how much later the \
         client had it: OpenCode -> sidecar -> daemon -> Unix socket -> client. What the model call itself goes through (proxy and relay) is before both \
         readers and is not in it.",
    );
    Ok(())
}

/// The process of a session's OpenCode: a descendant of the daemon, or of the container's first process.
pub async fn agent_root(world: &World, session: &str) -> Result<u32> {
    if world.driver() == Driver::Local {
        return Ok(world.daemon_pid());
    }
    let engine = raw::engine()?;
    let filters = HashMap::from([("label".to_owned(), vec![format!("dev.openagent.session={session}")])]);
    let options = bollard::query_parameters::ListContainersOptionsBuilder::default().filters(&filters).build();
    let found = engine.list_containers(Some(options)).await.context("list containers")?;
    let id = found.into_iter().find_map(|container| container.id).context("the session has no container")?;
    let state = engine.inspect_container(&id, None).await.context("inspect the container")?.state;
    state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok()).context("the container has no process")
}

async fn find_server(world: &World, session: &str) -> Result<raw::Server> {
    let root = agent_root(world, session).await?;
    let pid = *proc::named(root, "opencode").first().context("OpenCode does not run")?;
    let namespace = (world.driver() == Driver::Docker).then_some(pid);
    Ok(raw::Server { address: proc::listening(pid)?, namespace, password: proc::variable(pid, "OPENCODE_SERVER_PASSWORD")? })
}

async fn read_theirs(events: &mut raw::Events) -> Result<Arrivals> {
    let mut arrivals = Arrivals::new();
    loop {
        let event = events.next().await?;
        let now = Instant::now();
        let (kind, properties) = (&event["payload"]["type"], &event["payload"]["properties"]);
        if kind == "message.part.delta" {
            let part = properties["partID"].as_str().context("a piece without a part")?.to_owned();
            let length = properties["delta"].as_str().context("a piece without text")?.len();
            let so_far = arrivals.entry(part).or_default();
            let before = so_far.last().map_or(0, |(end, _)| *end);
            so_far.push((before + length, now));
        } else if kind == "session.idle" && !arrivals.is_empty() {
            return Ok(arrivals);
        }
    }
}

async fn read_ours(events: &mut Events) -> Result<Arrivals> {
    let mut arrivals = Arrivals::new();
    loop {
        let item = events.next(PATIENCE).await.context("the history ended")?;
        let now = Instant::now();
        match item {
            Item::Delta(delta) => {
                let end = usize::try_from(delta.offset_bytes).context("an offset")? + delta.text.len();
                arrivals.entry(delta.part_id).or_default().push((end, now));
            }
            Item::Event(event) => {
                if let Some(Kind::TurnEnded(_)) = event.kind {
                    return Ok(arrivals);
                }
            }
            Item::Snapshot(_) | Item::CaughtUp(_) => {}
        }
    }
}

/// For each piece of the source, how much later the client had it, in milliseconds. Pieces that only came with the whole part are not letters.
fn differences(source: &Arrivals, seen: &Arrivals) -> Vec<f64> {
    let mut differences = vec![];
    for (part, pieces) in source {
        let seen = seen.get(part).map(Vec::as_slice).unwrap_or_default();
        for (end, at) in pieces {
            if let Some((_, later)) = seen.iter().find(|(reached, _)| reached >= end) {
                let sign = if later >= at { 1.0 } else { -1.0 };
                let apart = if later >= at { *later - *at } else { *at - *later };
                differences.push(sign * apart.as_secs_f64() * 1e3);
            }
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pieces_are_matched_by_how_far_the_text_reaches() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let source = Arrivals::from([("p".to_owned(), vec![(3, at(0)), (6, at(10)), (9, at(20))])]);
        let seen = Arrivals::from([("p".to_owned(), vec![(6, at(11)), (8, at(19))])]);
        let mut found = differences(&source, &seen);
        found.sort_by(f64::total_cmp);
        assert_eq!(found, [1.0, 11.0]);
    }
}
