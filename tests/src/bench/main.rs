//! The benches: each measures OpenAgent beside a raw baseline in the same run and prints one table. Started by `cargo xtask bench`.
//!
//! Invariants: rounds of both sides alternate (ours, raw, ours, raw ...), so that a machine that is slow for a minute is slow for both; what is
//! shown is the median with the smallest and the largest value; nothing here passes or fails on a time.

mod fan_out;
mod latency;
mod machine;
mod memory;
mod proc;
mod raw;
mod readers;
mod report;
mod scale;
mod start;
mod wake;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use openagent_tests::harness::Driver;

use crate::report::Report;

/// What nobody shall read into the table.
const NOT_COVERED: &str =
    "Not covered: terminals, the drawing of the client, remote engines and other runtimes, other file systems, a cold page cache.";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Create to accepted prompt, in containers
    StartDocker,
    /// Create to accepted prompt, as child processes
    StartLocal,
    /// Sessions from the warm pool
    Warm,
    /// Sessions that were stopped
    Resume,
    /// Sessions that were paused
    Wake,
    /// What lies between OpenCode's own stream and the client
    Latency,
    /// Memory and idle processor time of daemon and sidecars
    Memory,
    /// One event to many clients
    FanOut,
    /// Many sessions, stored and live
    Scale,
}

impl Part {
    const ALL: [Self; 9] =
        [Self::StartDocker, Self::StartLocal, Self::Warm, Self::Resume, Self::Wake, Self::Latency, Self::Memory, Self::FanOut, Self::Scale];
}

#[derive(Parser)]
#[command(about = "Measures OpenAgent beside raw baselines; start it as `cargo xtask bench`")]
struct Options {
    /// Measured starts of each side
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Measured rounds of what takes milliseconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    warm_rounds: u32,
    /// Share of the full numbers of sessions, for a short run
    #[arg(long, default_value_t = 1.0)]
    share: f64,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    #[command(flatten)]
    readers: readers::Options,
    /// Write the report to this file as well
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if readers::run(&options.readers)? {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(measure(&options))
}

async fn measure(options: &Options) -> Result<()> {
    let parts: Vec<Part> = if options.only.is_empty() { Part::ALL.to_vec() } else { options.only.clone() };
    let mut report = Report::new(machine::describe().await);
    for part in parts {
        eprintln!("bench: {part:?}");
        match part {
            Part::StartDocker => start::docker(options.rounds, &mut report).await?,
            Part::StartLocal => start::local(options.rounds, &mut report).await?,
            Part::Warm => wake::warm(options.warm_rounds, &mut report).await?,
            Part::Resume => {
                wake::resume(Driver::Docker, options.rounds, &mut report).await?;
                wake::resume(Driver::Local, options.rounds, &mut report).await?;
            }
            Part::Wake => {
                wake::wake(Driver::Docker, options.warm_rounds, &mut report).await?;
                wake::wake(Driver::Local, options.warm_rounds, &mut report).await?;
            }
            Part::Latency => {
                latency::measure(Driver::Local, "local driver", "", &mut report).await?;
                latency::in_memory(&mut report).await?;
                latency::measure(Driver::Docker, "Docker, socket", "[docker]\nlink = \"socket\"\n", &mut report).await?;
                latency::measure(Driver::Docker, "Docker, exec bridge", "[docker]\nlink = \"exec\"\n", &mut report).await?;
            }
            Part::Memory => memory::measure(&mut report).await?,
            Part::FanOut => fan_out::measure(&mut report).await?,
            Part::Scale => scale::measure(options.share, &mut report).await?,
        }
    }
    report.note(NOT_COVERED);
    let text = report.markdown();
    println!("{text}");
    if let Some(out) = &options.out {
        if let Some(folder) = out.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        std::fs::write(out, text).with_context(|| format!("write {}", out.display()))?;
    }
    Ok(())
}
