//! `cargo xtask bench`: set-up, release builds of programs, image and bench, then one run that prints the table and writes `docs/benchmarks.md`.

use std::process::ExitCode;

use anyhow::Result;

use crate::build::{self, Profile};
use crate::image;
use crate::paths::Paths;
use crate::process;
use crate::setup::{self, Need};

/// Where a run without arguments leaves its report.
const REPORT: &str = "docs/benchmarks.md";

/// Measures; with arguments of the bench program's own it writes no report unless they say so.
pub fn command(paths: &Paths, args: &[String]) -> Result<ExitCode> {
    let ready = setup::setup(paths, Need::Everything)?;
    let programs = build::programs(paths, Profile::Release)?;
    let image = image::ensure(paths, Profile::Release, &programs.join("openagent-sidecar"), &ready.opencode, false)?;
    let mut compile = build::cargo_command(paths);
    compile.args([
        "build",
        "--release",
        "--package",
        "openagent-tests",
        "--features",
        "bench",
        "--bin",
        "bench",
        "--bin",
        "stand-in-agent",
    ]);
    process::shown("build the benches", compile)?;

    let mut bench = std::process::Command::new(paths.target.join("release/bench"));
    bench.current_dir(&paths.root);
    if args.is_empty() {
        bench.args(["--out", REPORT]);
    } else {
        bench.args(args);
    }
    bench.env("OPENAGENT_TEST_BIN_DIR", &programs);
    bench.env("OPENAGENT_TEST_IMAGE", &image);
    bench.env("OPENAGENT_TEST_OPENCODE", &ready.opencode.path);
    // What a user's daemon logs.
    bench.env("OPENAGENT_TEST_LOG", "info");
    if let Ok(engine) = &ready.engine
        && let Some(host) = &engine.host
    {
        bench.env("DOCKER_HOST", host);
    }
    process::shown("measure", bench)?;
    Ok(ExitCode::SUCCESS)
}
