//! `openagentd`: reads its configuration, opens what it owns, serves until it is told to end; or takes care of the store while no daemon runs.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use openagent_core::session::Fault;
use openagentd::offline;
use openagentd::run::{Options, run};

/// The OpenAgent daemon. It is started on demand by `openagent`; nobody needs to start it by hand.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Print the configuration that is in force, as a configuration file, and exit.
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    care: Option<Care>,
}

/// What is done with the store while no daemon runs.
#[derive(Subcommand)]
enum Care {
    /// Put a backup in the place of the store; the store that is there is kept beside it
    Restore {
        /// A file that `openagent daemon backup` made
        file: PathBuf,
        /// Leave out provider keys and credentials, which only the master key of the machine opens that made them
        #[arg(long)]
        without_keys: bool,
    },
    /// Read every record of the store, or of a backup, and tell what is damaged
    Verify {
        /// A backup; without it, the store
        file: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let Arguments { print_config, care } = Arguments::parse();
    let options = Options::from_environment();
    if print_config {
        return match options.configuration() {
            Ok((config, _)) => {
                let written = std::io::stdout().lock().write_all(config.to_toml().as_bytes());
                if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(fault) => fail(&fault),
        };
    }
    if let Some(care) = care {
        let done = match care {
            Care::Restore { file, without_keys } => offline::restore(&options, &file, without_keys),
            Care::Verify { file } => offline::verify(&options, file.as_deref()),
        };
        return match done {
            Ok(told) => {
                let written = std::io::stdout().lock().write_all(told.text.as_bytes());
                if told.is_sound && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(fault) => fail(&fault),
        };
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Fault::new("INTERNAL", format!("the runtime cannot be started: {error}"), "")),
    };
    match runtime.block_on(run(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => fail(&fault),
    }
}

/// The last words of a daemon that could not start: the client that started it shows them.
fn fail(fault: &Fault) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "error: {fault}");
    if !fault.hint.is_empty() {
        let _ = writeln!(stderr, "hint: {}", fault.hint);
    }
    ExitCode::FAILURE
}
