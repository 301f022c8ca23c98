//! `cargo xtask screenshot`: the picture in `docs/screen.svg`, taken of the programs as they are.

use anyhow::Result;

use crate::build::{self, Profile};
use crate::paths::Paths;
use crate::setup::{self, Need};
use crate::{image, process};

/// Where the picture lies, from the root of the workspace.
const PICTURE: &str = "docs/screen.svg";

/// Sets up, builds, and takes the picture; on an engine where there is one.
pub fn command(paths: &Paths) -> Result<()> {
    let ready = setup::setup(paths, Need::Run)?;
    let programs = build::programs(paths, Profile::Debug)?;
    let mut take = build::cargo_command(paths);
    take.args(["run", "--package", "openagent-tests", "--bin", "screenshot", "--"]).arg(paths.root.join(PICTURE));
    take.env("OPENAGENT_TEST_BIN_DIR", &programs);
    take.env("OPENAGENT_TEST_OPENCODE", &ready.opencode.path);
    match &ready.engine {
        Ok(engine) => {
            let image = image::ensure(paths, Profile::Debug, &programs.join("openagent-sidecar"), &ready.opencode, false)?;
            take.env("OPENAGENT_TEST_IMAGE", image);
            if let Some(host) = &engine.host {
                take.env("DOCKER_HOST", host);
            }
        }
        Err(_) => {
            take.args(["--driver", "local"]);
        }
    }
    process::shown("take the picture", take)
}
