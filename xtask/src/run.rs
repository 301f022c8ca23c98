//! `cargo xtask run`: from a fresh machine to the open program in one command.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::build::{self, Profile};
use crate::paths::Paths;
use crate::setup::{self, Need};
use crate::{image, term};

const LOCAL_DRIVER: &str = "no usable container engine, so the agent will run as plain processes of your own user: nothing keeps it from your \
                            files, your network, your other processes, or the provider keys stored on this machine";

/// Sets up, builds, and becomes `openagent`, which starts the daemon on demand.
pub fn command(paths: &Paths, profile: Profile, args: &[String]) -> Result<ExitCode> {
    let ready = setup::setup(paths, Need::Run)?;
    let programs = build::programs(paths, profile)?;
    let mut openagent = Command::new(programs.join("openagent"));
    match &ready.engine {
        Ok(engine) => {
            image::ensure(paths, profile, &programs.join("openagent-sidecar"), &ready.opencode, false)?;
            if let Some(host) = &engine.host {
                openagent.env("DOCKER_HOST", host);
            }
        }
        Err(_) => {
            term::warn(LOCAL_DRIVER);
            openagent.env("OPENAGENT_DRIVER", "local");
        }
    }
    Err(openagent.args(args).exec()).context("start openagent")
}
