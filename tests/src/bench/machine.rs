//! What the numbers were measured on.

use std::fs;
use std::process::Command;

/// One line a fact.
pub async fn describe() -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = value_of("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let memory: u64 = value_of("/proc/meminfo", "MemTotal").and_then(|kib| kib.split(' ').next()?.parse().ok()).unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let engine = match super::raw::engine() {
        Ok(engine) => engine.version().await.ok().and_then(|version| version.version),
        Err(_) => None,
    };
    let opencode = Command::new(openagent_tests::harness::opencode()).arg("--version").output();
    let opencode = opencode.map_or_else(|_| "missing".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let today = Command::new("date").arg("+%Y-%m-%d").output();
    let today = today.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    vec![
        format!("{cores} cores ({cpu}), {} GiB of memory, Linux {}; load when it began: {load}", memory >> 20, kernel.trim()),
        format!("Docker {}, OpenCode {opencode}, OpenAgent {}", engine.as_deref().unwrap_or("none"), env!("CARGO_PKG_VERSION")),
        format!(
            "build profile: {}; {today}",
            if cfg!(debug_assertions) { "debug, so do not take the numbers for the product's" } else { "release" }
        ),
    ]
}

fn value_of(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
