//! What a daemon costs as sessions become many: stored ones, and ones that live and rest. Live ones are child processes with the light stand-in for OpenCode,
//! since only the daemon is measured.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use openagent_core::event::EventKind;
use openagent_core::id::SessionId;
use openagent_core::time::Timestamp;
use openagent_proto::v1;
use openagent_tests::harness::{CANARY, Clients, World};
use openagentd::event::EventLog;
use openagentd::store::Store;

use crate::memory::TICK_MILLIS;
use crate::report::{Report, Series};
use crate::{fan_out, proc};

/// Stored sessions of each measurement.
const STORED: [usize; 3] = [100, 1_000, 10_000];

/// Live sessions of each measurement, beside the largest number of stored ones.
const LIVE: [usize; 3] = [1, 10, 100];

/// Events of each stored session, and the bytes of text in each.
const EVENTS: usize = 10;
const EVENT_BYTES: usize = 200;

/// How long nothing happens while processor time is counted.
const REST: Duration = Duration::from_secs(20);

/// Calls of each kind, and of those that answer with every session.
const CALLS: usize = 500;
const LISTS: usize = 30;

/// Appends that are in flight while the store is filled.
const FILLING: usize = 256;

/// Sessions that start or end at once.
const STARTING: usize = 4;

const MODEL: &str = "scripted/scripted-large";

/// Measures with ever more stored sessions, then with ever more live ones beside them. `share` of the full numbers, for a short run.
pub async fn measure(share: f64, report: &mut Report) -> Result<()> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "numbers of sessions")]
    let of = |count: usize| ((count as f64 * share).ceil() as usize).max(1);
    let last = STORED.len() - 1;
    for (index, stored) in STORED.map(of).into_iter().enumerate() {
        let mut world = World::light().await;
        world.write_config("[daemon]\nmax_running = 1000\n");
        fill(&world, stored).await.context("fill the store")?;
        let began = Instant::now();
        world.start().await;
        let mut clients = world.clients().await;
        clients.daemon.get_status(v1::GetStatusRequest {}).await.context("ask for the status")?;
        let start = began.elapsed();
        if index == last {
            report.promise(&format!("start, {stored} sessions stored"), 1_000.0, millis(start), "ms");
        }
        report.row(&format!("start to first answer, {stored} sessions stored"), &format!("{:.0} ms", millis(start)), "", "", 1);
        at_rest(&world, &mut clients, &format!("{stored} stored"), false, report).await?;
        if index == last {
            let mut live: Vec<String> = vec![];
            clients.set_key("scripted", CANARY).await;
            for count in LIVE.map(of) {
                let missing = count.saturating_sub(live.len());
                let more = stream::iter(0..missing).map(|_| ready(clients.clone())).buffer_unordered(STARTING);
                live.extend(more.collect::<Vec<_>>().await);
                at_rest(&world, &mut clients, &format!("{stored} stored, {count} live"), count == of(LIVE[LIVE.len() - 1]), report).await?;
            }
            let removed = stream::iter(live).map(|id| remove(clients.clone(), id)).buffer_unordered(STARTING);
            removed.collect::<()>().await;
        }
        world.stop().await;
    }
    report.note(
        "Scale: stored sessions were made through the store's own API, with 10 events of 200 bytes each. Live ones are child processes whose agent is the \
         light stand-in; each has answered one prompt and rests. Start is from the program's start to the first answered GetStatus. Processor time is what \
         the kernel counted for the daemon, in ticks of 10 ms, over 20 s in which nothing happens. Calls are made one after the other by one client in the \
         bench's process; their times are p50 and p95.",
    );
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Stores sessions that were stopped, each with a short history.
async fn fill(world: &World, count: usize) -> Result<()> {
    let store = Store::open(world.path("state/db")).await.context("open the store")?;
    let log = EventLog::new(store.clone());
    let ids = (0..count).map(|number| -> Result<SessionId> { format!("ses_01KBQ9GMSE3M6Y8V{number:010}").parse().context("an id") });
    stream::iter(ids)
        .try_for_each_concurrent(FILLING, |id| {
            let (store, log) = (store.clone(), log.clone());
            async move {
                store.put_session(&fan_out::record(&id)).await.context("store a session")?;
                let event = || (Timestamp::from_millis(1_790_000_000_000), EventKind::Gap { reason: "x".repeat(EVENT_BYTES) });
                log.append(&id, (0..EVENTS).map(|_| event()).collect(), None).await.context("append")?;
                Ok(())
            }
        })
        .await?;
    store.close().await;
    Ok(())
}

/// A session that has answered a prompt.
async fn ready(mut clients: Clients) -> String {
    let (id, mut events) = clients.active(MODEL).await;
    clients.turn(&id, &mut events, "#echo one").await;
    id
}

async fn remove(mut clients: Clients, id: String) {
    clients.remove(&id).await;
}

/// Memory, processor time and answers of a daemon to which nothing happens.
async fn at_rest(world: &World, clients: &mut Clients, what: &str, promised: bool, report: &mut Report) -> Result<()> {
    let daemon = world.daemon_pid();
    let before = proc::ticks(daemon);
    tokio::time::sleep(REST).await;
    let busy = Duration::from_millis((proc::ticks(daemon) - before) * TICK_MILLIS);
    let share = busy.as_secs_f64() / REST.as_secs_f64() * 100.0;
    let shown = format!("{:.0} ms in {} s: {share:.2} % of a core", millis(busy), REST.as_secs());
    report.row(&format!("processor time at rest, {what}"), &shown, "", "", 1);
    if promised {
        report.promise(&format!("processor time at rest, {what}"), 1.0, share, "% of a core");
        report.promise(&format!("memory of the daemon, {what}"), 40.0, crate::memory::resident(&[daemon])?.median(), "MiB");
    }
    report.row(&format!("memory of the daemon, {what}"), &crate::memory::shown(&[daemon])?, "", "", 1);

    let ids: Vec<String> = clients.list().await.into_iter().map(|session| session.id).collect();
    let id = |call: usize| v1::GetSessionRequest { session_id: ids[call * 7_919 % ids.len()].clone() };
    let (mut get, mut status, mut list) = (vec![], vec![], vec![]);
    for call in 0..CALLS {
        let began = Instant::now();
        clients.session.get_session(id(call)).await.context("get a session")?;
        get.push(millis(began.elapsed()));
        let began = Instant::now();
        clients.daemon.get_status(v1::GetStatusRequest {}).await.context("ask for the status")?;
        status.push(millis(began.elapsed()));
    }
    for _ in 0..LISTS {
        let began = Instant::now();
        clients.session.list_sessions(v1::ListSessionsRequest {}).await.context("list the sessions")?;
        list.push(millis(began.elapsed()));
    }
    for (call, times) in [("GetSession", get), ("GetStatus", status), ("ListSessions", list)] {
        let times = Series::new(times);
        if promised && call != "ListSessions" {
            report.promise(&format!("{call}, {what} (p95)"), 2.0, times.quantile(0.95), "ms");
        }
        report.row(&format!("{call}, {what}"), &times.quantiles("ms"), "", "", times.count());
    }
    report.row(&format!("memory of the daemon after these calls, {what}"), &crate::memory::shown(&[daemon])?, "", "", 1);
    Ok(())
}
