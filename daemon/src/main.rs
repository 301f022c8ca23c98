//! `openagentd`: reads its configuration, opens what it owns, serves until it is told to end.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use openagent_core::session::Fault;
use openagentd::run::{Options, run};

/// The OpenAgent daemon. It is started on demand by `openagent`; nobody needs to start it by hand.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Print the configuration that is in force, as a configuration file, and exit.
    #[arg(long)]
    print_config: bool,
}

fn main() -> ExitCode {
    let Arguments { print_config } = Arguments::parse();
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
