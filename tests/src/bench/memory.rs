//! Memory of the daemon and of the sidecars, with OpenCode in the same sessions for scale, and what they cost when nothing happens.

use std::time::Duration;

use anyhow::{Context, Result};
use openagent_tests::harness::{CANARY, Clients, Driver, World};

use crate::report::{Report, Series};
use crate::{latency, proc, raw};

/// Sessions of the larger measurement.
const SESSIONS: usize = 8;

/// How long nothing happens while processor time is counted.
const REST: Duration = Duration::from_secs(5);

/// Milliseconds of one clock tick of the kernel's accounts.
pub const TICK_MILLIS: u64 = 10;

/// Measures on containers, or on child processes where there is no engine.
pub async fn measure(report: &mut Report) -> Result<()> {
    let driver = if raw::engine()?.ping().await.is_ok() { Driver::Docker } else { Driver::Local };
    let where_at = if driver == Driver::Docker { "Docker" } else { "local driver" };
    let world = World::started(driver).await;
    let mut clients = world.clients().await;
    clients.set_key("scripted", CANARY).await;
    let daemon = world.daemon_pid();
    report.row("memory of the daemon, no session", &shown(&[daemon])?, "", "", 1);

    let mut sessions = vec![ready(&mut clients).await];
    let (sidecars, agents) = processes(&world, &sessions).await?;
    report.row(&format!("memory of the daemon, 1 session ({where_at})"), &shown(&[daemon])?, "", "", 1);
    beside(report, &format!("memory of the sidecar, 1 session ({where_at})"), &sidecars, &agents)?;
    while sessions.len() < SESSIONS {
        sessions.push(ready(&mut clients).await);
    }
    let (sidecars, agents) = processes(&world, &sessions).await?;
    report.row(&format!("memory of the daemon, {SESSIONS} sessions ({where_at})"), &shown(&[daemon])?, "", "", 1);
    beside(report, &format!("memory of a sidecar, {SESSIONS} sessions ({where_at})"), &sidecars, &agents)?;

    let of_all = |pids: &[u32]| pids.iter().map(|pid| proc::ticks(*pid)).sum::<u64>();
    let before = (of_all(&[daemon]), of_all(&sidecars), of_all(&agents));
    tokio::time::sleep(REST).await;
    let used = (of_all(&[daemon]) - before.0, of_all(&sidecars) - before.1, of_all(&agents) - before.2);
    let millis = |ticks: u64| ticks * TICK_MILLIS;
    report.row(
        &format!("processor time at rest, {SESSIONS} sessions, {} s", REST.as_secs()),
        &format!("daemon {} ms, {SESSIONS} sidecars {} ms", millis(used.0), millis(used.1)),
        &format!("OpenCode in them: {} ms", millis(used.2)),
        "",
        1,
    );
    report.promise("memory of a sidecar (largest)", 10.0, resident(&sidecars)?.quantile(1.0), "MiB");
    world.end().await;
    report.note(
        "Memory: resident pages (VmRSS), and in brackets what is theirs alone plus their share of shared pages (Pss), after each session has answered \
         one prompt. The baseline is OpenCode's own process in the same sessions; each container also costs the engine's own shim (about 13 MB), which any \
         container does.",
    );
    report.note("Processor time at rest is counted by the kernel in ticks of 10 ms.");
    Ok(())
}

/// A session that has answered a prompt.
async fn ready(clients: &mut Clients) -> String {
    let (id, mut events) = clients.active("scripted/scripted-large").await;
    clients.turn(&id, &mut events, "#plain").await;
    id
}

async fn processes(world: &World, sessions: &[String]) -> Result<(Vec<u32>, Vec<u32>)> {
    let mut roots = vec![];
    for session in sessions {
        roots.push(latency::agent_root(world, session).await?);
    }
    roots.dedup();
    let of = |program: &str| roots.iter().flat_map(|root| proc::named(*root, program)).collect::<Vec<_>>();
    Ok((of("openagent-sidecar"), of("opencode")))
}

fn beside(report: &mut Report, what: &str, sidecars: &[u32], agents: &[u32]) -> Result<()> {
    let ratio = resident(sidecars)?.median() / resident(agents)?.median();
    report.row(what, &shown(sidecars)?, &format!("OpenCode: {}", shown(agents)?), &format!("{ratio:.3}"), sidecars.len());
    Ok(())
}

/// Resident memory of processes, in MiB.
#[allow(clippy::cast_precision_loss, reason = "memory of a process in KiB")]
pub fn resident(pids: &[u32]) -> Result<Series> {
    let values = pids.iter().map(|pid| Ok(proc::memory(*pid)?.resident as f64 / 1024.0)).collect::<Result<Vec<_>>>()?;
    anyhow::ensure!(!values.is_empty(), "the processes to be measured do not run");
    Ok(Series::new(values))
}

/// Resident memory of processes, and their share of it in brackets.
#[allow(clippy::cast_precision_loss, reason = "memory of a process in KiB")]
pub fn shown(pids: &[u32]) -> Result<String> {
    let resident = resident(pids).context("read memory")?;
    let shares: Option<Vec<f64>> = pids.iter().map(|pid| proc::memory(*pid).ok()?.proportional.map(|kib| kib as f64 / 1024.0)).collect();
    let size = if pids.len() == 1 { format!("{:.1} MiB", resident.median()) } else { resident.spread("MiB") };
    Ok(shares.map_or_else(|| size.clone(), |shares| format!("{size} [{:.1}]", Series::new(shares).median())))
}
