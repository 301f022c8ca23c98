//! Processes of this machine as `/proc` tells of them: who descends from whom, what they were started with, and signals.
//!
//! A process is named by [`Process`], its id and the clock tick of its start, so that one which merely got the id of another is never taken for it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::PATIENCE;
use super::client::within;

/// A process, told from all others that had or will have its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    pid: i32,
    started: u64,
}

/// Fields of `/proc/<pid>/stat` behind the name, which may hold anything: the state is the first.
fn stat(pid: i32) -> Option<Vec<String>> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(line.rsplit_once(") ")?.1.split_whitespace().map(str::to_owned).collect())
}

impl Process {
    /// The process that has this id now; none for one that has ended, reaped or not.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let fields = stat(pid)?;
        let ended = matches!(fields.first()?.as_str(), "Z" | "X");
        (!ended).then_some(Self { pid, started: fields.get(19)?.parse().ok()? })
    }

    /// Every process there is.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let names = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| Self::of(name.to_str()?.parse().ok()?)).collect()
    }

    /// Its id.
    #[must_use]
    pub const fn pid(self) -> i32 {
        self.pid
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Whether it is stopped by a signal.
    #[must_use]
    pub fn is_stopped(self) -> bool {
        self.is_alive() && stat(self.pid).is_some_and(|fields| fields.first().is_some_and(|state| state == "T"))
    }

    /// Signals it, if it is still there.
    pub fn signal(self, signal: Signal) {
        if self.is_alive() {
            // It may end meanwhile.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// When it does not.
    pub async fn gone(self) {
        within(&format!("the end of process {}", self.pid), PATIENCE, async {
            while self.is_alive() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Its words, the program first; none when it has ended.
    #[must_use]
    pub fn command_line(self) -> Vec<String> {
        let bytes = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }

    /// What it was started with; empty where it may not be read.
    #[must_use]
    pub fn environment(self) -> BTreeMap<String, String> {
        let bytes = std::fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        text.split('\0').filter_map(|pair| pair.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Whether its folder, its program, its words or its environment are of this folder.
    #[must_use]
    pub fn belongs_to(self, folder: &Path) -> bool {
        let text = folder.to_string_lossy();
        let link = |name: &str| std::fs::read_link(format!("/proc/{}/{name}", self.pid)).is_ok_and(|path| path.starts_with(folder));
        let bytes = |name: &str| {
            std::fs::read(format!("/proc/{}/{name}", self.pid)).is_ok_and(|bytes| memchr::memmem::find(&bytes, text.as_bytes()).is_some())
        };
        link("cwd") || link("exe") || bytes("cmdline") || bytes("environ")
    }

    /// It and everything that descends from it, ancestors first.
    #[must_use]
    pub fn family(self) -> Vec<Self> {
        if !self.is_alive() {
            return vec![];
        }
        let mut children: HashMap<i32, Vec<Self>> = HashMap::new();
        for process in Self::all() {
            if let Some(parent) = stat(process.pid).and_then(|fields| fields.get(1)?.parse().ok()) {
                children.entry(parent).or_default().push(process);
            }
        }
        let mut family = vec![self];
        let mut next = 0;
        while let Some(parent) = family.get(next).copied() {
            family.extend(children.remove(&parent.pid).unwrap_or_default());
            next += 1;
        }
        family
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_family_is_found_and_a_reused_id_is_another_process() {
        let mut child = std::process::Command::new("sh").args(["-c", "read line"]).stdin(std::process::Stdio::piped()).spawn().expect("sh");
        let process = Process::of(i32::try_from(child.id()).expect("ids are small")).expect("it runs");
        let own = Process::of(i32::try_from(std::process::id()).expect("ids are small")).expect("this runs");
        assert!(own.family().contains(&process) && own.family()[0] == own);
        let other = Process { started: 1, ..process };
        other.signal(Signal::SIGKILL);
        assert!(process.is_alive() && !other.is_alive());
        process.signal(Signal::SIGKILL);
        process.gone().await;
        assert!(child.wait().is_ok());
    }
}
