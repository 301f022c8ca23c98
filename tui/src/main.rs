//! The `openagent` program: takes the command line apart, runs it, and says how it went.

use std::process::ExitCode;

use clap::Parser;
use openagent::cli::{Cli, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the program cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(Box::pin(run(cli)));
    // Somebody may still read from a terminal that nobody types into any more.
    runtime.shutdown_background();
    ExitCode::from(code)
}
