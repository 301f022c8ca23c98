//! `cargo xtask test`: formatter, set-up, build, image, lints, every test; then a check that no test left anything in
//! the engine.

use anyhow::{Result, bail};
use std::process::ExitCode;

use crate::build::{self, Profile};
use crate::paths::Paths;
use crate::process;
use crate::setup::{self, Need};
use crate::term::{self, Step};
use crate::{engine, image};

/// Runs everything, or with a filter only the tests whose names match.
pub fn command(paths: &Paths, filter: &[String]) -> Result<ExitCode> {
    let everything = filter.is_empty();
    if everything {
        let mut format = build::cargo_command(paths);
        format.args(["fmt", "--all", "--check"]);
        process::shown("check the formatting", format)?;
    }
    let ready = setup::setup(paths, Need::Everything)?;
    let programs = build::programs(paths, Profile::Debug)?;
    let image = image::ensure(paths, Profile::Debug, &programs.join("openagent-sidecar"), &ready.opencode, false)?;

    let mut compile = build::cargo_command(paths);
    compile.args(["test", "--workspace", "--no-run"]);
    process::shown("build the tests", compile)?;
    if everything {
        let mut lint = build::cargo_command(paths);
        lint.args(["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]);
        process::shown("run the lints", lint)?;
    }

    let before = engine::belongings()?;
    let mut tests = build::cargo_command(paths);
    tests.args(["test", "--workspace", "--no-fail-fast", "--"]).args(filter);
    tests.env("OPENAGENT_TEST_BIN_DIR", &programs);
    tests.env("OPENAGENT_TEST_IMAGE", &image);
    tests.env("OPENAGENT_TEST_OPENCODE", &ready.opencode.path);
    if let Ok(engine) = &ready.engine
        && let Some(host) = &engine.host
    {
        tests.env("DOCKER_HOST", host);
    }
    let outcome = process::shown("run the tests", tests);
    let leaks = leaks(&before);
    outcome?;
    leaks?;
    term::note("everything passed");
    Ok(ExitCode::SUCCESS)
}

/// Each test owns its clean-up; whatever of a session is new now was forgotten by one.
fn leaks(before: &engine::Belongings) -> Result<()> {
    let step = Step::begin("look for what the tests left in the engine");
    let left = engine::belongings()?.since(before);
    if !left.is_empty() {
        for name in &left {
            term::warn(&format!("left behind: {name}"));
        }
        bail!("the tests left {} things of sessions in the engine", left.len());
    }
    step.done();
    Ok(())
}
