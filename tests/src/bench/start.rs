//! Create to accepted prompt: the time from "I want a session" to "the agent has my prompt".

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_tests::harness::{CANARY, Clients, Driver, World};

use crate::raw;
use crate::report::{Report, Series};

const NOTE: &str = "Create to accepted prompt: ours is the CreateSession call until the Prompt call that follows it at once is answered. Raw is the \
    same OpenCode with the same environment and prepared repository and a configuration of the same shape (fewer permission rules, one provider), from its start (`sh`) or the creation of its container until \
    `prompt_async` answers 204; readiness is its own line on standard output on both sides. Both are cold: no pool, a new home, the image on the \
    disk. One start of each side before the measured ones is not counted.";

/// The steps in which a session starts.
pub const ORDER: [&str; 9] = ["admission", "image", "volume", "create", "workspace", "start", "register", "keys", "agent"];

/// What each step took, by its name.
pub type Steps = HashMap<String, Vec<f64>>;

/// In containers.
pub async fn docker(rounds: u32, report: &mut Report) -> Result<()> {
    let engine = raw::engine()?;
    let Ok(info) = engine.info().await else {
        report.skip("create to accepted prompt, Docker", "no engine answers");
        return Ok(());
    };
    if !nix::unistd::geteuid().is_root() {
        report.skip("create to accepted prompt, Docker", "the baseline is reached through its network, which only root can enter");
        return Ok(());
    }
    let cpus = info.ncpu.unwrap_or(1);
    let raw = async |_: &World| raw::start_docker(&engine, cpus).await;
    compare("create to accepted prompt, Docker", Driver::Docker, rounds, report, raw).await?;
    report.note(
        "The raw container has the session's network (none), limits, read-only root and volumes, but runs as the agent's user from the start and \
         without a sidecar. The bench reaches it by entering its network as root.",
    );
    Ok(())
}

/// As child processes.
pub async fn local(rounds: u32, report: &mut Report) -> Result<()> {
    let raw = async |world: &World| raw::start_local(&world.model.base_url()).await;
    compare("create to accepted prompt, local driver", Driver::Local, rounds, report, raw).await?;
    Ok(())
}

async fn compare(
    what: &str,
    driver: Driver,
    rounds: u32,
    report: &mut Report,
    raw: impl AsyncFn(&World) -> Result<Duration>,
) -> Result<()> {
    let world = World::started(driver).await;
    let mut clients = world.clients().await;
    clients.set_key("scripted", CANARY).await;
    let (mut ours, mut theirs, mut steps) = (vec![], vec![], Steps::default());
    for round in 0..=rounds {
        let (own, of_steps) = start(&mut clients).await;
        let other = raw(&world).await.with_context(|| format!("{what}: the baseline"))?;
        eprintln!("  round {round}: ours {:.2} s, raw {:.2} s", own.as_secs_f64(), other.as_secs_f64());
        if round > 0 {
            ours.push(own.as_secs_f64());
            theirs.push(other.as_secs_f64());
            for (step, millis) in of_steps {
                steps.entry(step).or_default().push(millis);
            }
        }
    }
    world.end().await;
    let parts: Vec<String> = ORDER
        .iter()
        .filter_map(|step| Some((step, Series::new(steps.remove(*step)?))))
        .map(|(step, series)| format!("{step} {:.0}", series.median()))
        .collect();
    report.note(NOTE);
    report.note(&format!("Medians of the steps of \"{what}\" in milliseconds: {}; the prompt itself is the rest.", parts.join(", ")));
    let (ours, theirs) = (Series::new(ours), Series::new(theirs));
    report.compare(what, &ours, &theirs, "s");
    report.promise(&format!("{what}, cold, beside the raw start (median)"), 1.15, ours.median() / theirs.median(), "x");
    Ok(())
}

async fn start(clients: &mut Clients) -> (Duration, Vec<(String, f64)>) {
    let began = Instant::now();
    let session = clients.create("scripted/scripted-large").await;
    clients.prompt(&session.id, "#plain").await;
    let taken = began.elapsed();
    let history = clients.history(&session.id).await;
    clients.remove(&session.id).await;
    (taken, history.iter().filter_map(step).collect())
}

/// A step that was done, and how long it took in milliseconds.
#[allow(clippy::cast_precision_loss, reason = "a duration in milliseconds")]
pub fn step(event: &v1::Event) -> Option<(String, f64)> {
    match event.kind.as_ref()? {
        Kind::Step(v1::StepEvent { step, outcome: Some(v1::step_event::Outcome::Done(done)) }) => Some((step.clone(), done.millis as f64)),
        _ => None,
    }
}
