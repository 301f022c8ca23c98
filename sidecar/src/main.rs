//! `openagent-sidecar`: process 1 of a session's container, and the bridge into it.

use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use openagent_proto::sidecar::{PREAMBLE_CONTROL, PREAMBLE_RELAY, SOCKET_NAME, env};
use openagent_sidecar::connect::{self, Ended};
use openagent_sidecar::process::confine;
use openagent_sidecar::serve;
use openagent_sidecar::settings::Settings;
use tracing_subscriber::EnvFilter;

/// Runtime threads: most of what the sidecar does is waiting.
const WORKERS: usize = 2;

/// Threads for blocking work that others start in the runtime, such as name look-ups.
const BLOCKING_MAX: usize = 8;

/// Stack of each thread, in bytes.
const STACK_BYTES: usize = 1024 * 1024;

/// Exit code of a bridge that nothing was heard through.
const EXIT_SILENCE: u8 = 3;

#[derive(Parser)]
#[command(version, about = "First process of an OpenAgent session's container")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Supervise the agent and serve the daemon, as the environment says.
    Serve,
    /// Join standard input and output to the socket of the sidecar that serves here.
    Connect {
        /// What the stream is for.
        purpose: Purpose,
        /// Folder of the socket.
        #[arg(long, env = env::LINK_DIR)]
        link_dir: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Purpose {
    Control,
    Relay,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Serve => run_serve(),
        Command::Connect { purpose, link_dir } => run_connect(purpose, link_dir),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("openagent-sidecar: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_serve() -> anyhow::Result<ExitCode> {
    // Before anything else, and before there is a thread.
    confine::harden_self().context("cannot protect this process from others")?;
    if std::env::var_os(env::START_GATE).is_some() && io::stdin().read(&mut [0]).context("cannot read standard input")? == 0 {
        return Ok(ExitCode::FAILURE);
    }
    let filter = EnvFilter::try_from_env("OPENAGENT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).init();
    let settings = Settings::read(|name| std::env::var(name).ok())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_MAX)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve::serve(settings))?;
    Ok(ExitCode::SUCCESS)
}

fn run_connect(purpose: Purpose, link_dir: PathBuf) -> anyhow::Result<ExitCode> {
    let preamble = match purpose {
        Purpose::Control => PREAMBLE_CONTROL,
        Purpose::Relay => PREAMBLE_RELAY,
    };
    let input = io::stdin().as_fd().try_clone_to_owned().context("there is no standard input")?;
    let output = io::stdout().as_fd().try_clone_to_owned().context("there is no standard output")?;
    Ok(match connect::run(&link_dir.join(SOCKET_NAME), preamble, input, output)? {
        Ended::Closed => ExitCode::SUCCESS,
        Ended::Silence => ExitCode::from(EXIT_SILENCE),
    })
}
