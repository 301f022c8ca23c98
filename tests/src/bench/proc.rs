//! What the kernel says about processes: who started whom, memory, processor time, and where a server listens.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// What is resident, shared pages included.
    pub resident: u64,
    /// What is resident, shared pages divided by their users; absent where the kernel does not tell us.
    pub proportional: Option<u64>,
}

/// Memory of a process now.
pub fn memory(pid: u32) -> Result<Memory> {
    let resident = kib_of(&format!("/proc/{pid}/status"), "VmRSS:").with_context(|| format!("read the memory of process {pid}"))?;
    Ok(Memory { resident, proportional: kib_of(&format!("/proc/{pid}/smaps_rollup"), "Pss:") })
}

fn kib_of(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// Fields of `/proc/PID/stat` behind the program's name, which may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// Processor time that a process has used, in clock ticks (a hundredth of a second each).
pub fn ticks(pid: u32) -> u64 {
    let stat = stat(pid).unwrap_or_default();
    [11, 12].iter().filter_map(|&field| stat.get(field)?.parse::<u64>().ok()).sum()
}

/// All descendants of a process.
pub fn descendants(root: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, stat(pid)?.get(1)?.parse().ok()?))).collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

/// The process and its descendants whose program has this name.
pub fn named(root: u32, program: &str) -> Vec<u32> {
    let mut all = vec![root];
    all.extend(descendants(root));
    all.retain(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
        first.rsplit(|byte| *byte == b'/').next() == Some(program.as_bytes())
    });
    all
}

/// A variable of the environment that a process was started with.
pub fn variable(pid: u32, name: &str) -> Result<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).with_context(|| format!("read the environment of process {pid}"))?;
    let mut pairs = environment.split(|byte| *byte == 0).filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='));
    let value = pairs.find(|(found, _)| *found == name).map(|(_, value)| value.to_owned());
    value.with_context(|| format!("process {pid} has no variable {name}"))
}

/// Where a process listens, in its own network.
pub fn listening(pid: u32) -> Result<SocketAddr> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).with_context(|| format!("read the open files of process {pid}"))?;
    let targets = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    let sockets: HashSet<String> =
        targets.filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).with_context(|| format!("read the sockets of process {pid}"))?;
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Column 3 is the state (0A: listening), column 9 the socket's number.
        if let [_, local, _, "0A", _, _, _, _, _, inode, ..] = fields[..]
            && sockets.contains(inode)
            && let Some((_, port)) = local.split_once(':')
        {
            let port = u16::from_str_radix(port, 16).context("read a port")?;
            return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
    }
    bail!("process {pid} does not listen")
}
