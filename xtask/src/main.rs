//! The commands every developer, CI and new user uses: `cargo xtask setup|image|run|screenshot|test|bench`.
//!
//! Each command starts with the same set-up, so that one line works on a fresh machine, and is idempotent: what is
//! there and right is left alone. Everything it makes lies under `target/`, in the user's data folder, or in the engine;
//! `screenshot` and `bench` also renew what they are named for in `docs/`.

mod apt;
mod base;
mod bench;
mod build;
mod digest;
mod engine;
mod image;
mod opencode;
mod paths;
mod process;
mod run;
mod screenshot;
mod setup;
mod term;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::build::Profile;
use crate::paths::Paths;
use crate::setup::Need;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Set up, run, test and package OpenAgent")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check what this machine needs and install what is missing (on Debian and Ubuntu as root; elsewhere it says what to install)
    Setup,
    /// Build the session image, if its inputs changed
    Image {
        /// Build profile of the sidecar inside
        #[arg(long, value_enum, default_value_t = Profile::Release)]
        profile: Profile,
        /// Fetch or make the base image anew and redo every layer, for newer system packages
        #[arg(long)]
        fresh: bool,
    },
    /// Set up, build, and open OpenAgent
    Run {
        /// Build profile of all programs
        #[arg(long, value_enum, default_value_t = Profile::Release)]
        profile: Profile,
        /// Arguments for `openagent`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Set up, build, and take the picture of the terminal user interface that the README shows
    Screenshot,
    /// Set up, build, and run every test, with the formatter and the lints
    Test {
        /// Run only tests whose name contains one of these (skips formatter and lints)
        filter: Vec<String>,
    },
    /// Set up, build for release, measure beside raw baselines, and write docs/benchmarks.md
    Bench {
        /// Arguments for the bench program (then no report is written unless `--out` is among them), see `-- --help`
        #[arg(last = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = Paths::locate().and_then(|paths| match Cli::parse().command {
        Command::Setup => setup::setup(&paths, Need::Everything).map(|_| ExitCode::SUCCESS),
        Command::Image { profile, fresh } => image::command(&paths, profile, fresh).map(|()| ExitCode::SUCCESS),
        Command::Run { profile, args } => run::command(&paths, profile, &args),
        Command::Screenshot => screenshot::command(&paths).map(|()| ExitCode::SUCCESS),
        Command::Test { filter } => test::command(&paths, &filter),
        Command::Bench { args } => bench::command(&paths, &args),
    });
    outcome.unwrap_or_else(|error| {
        term::failure(&error);
        ExitCode::FAILURE
    })
}
