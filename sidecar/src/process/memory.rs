//! How often the kernel has killed a process here because the memory was used up, as the control group counts it.

use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// The counter of this process's control group; none where there is no such group.
#[derive(Debug, Clone, Default)]
pub struct OomKills {
    file: Option<PathBuf>,
}

impl OomKills {
    /// Finds the counter.
    #[must_use]
    pub fn find() -> Self {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self { file: candidates(&groups, Path::new(MOUNT)).into_iter().find(|file| read(file).is_some()) }
    }

    /// How many there were so far; 0 where nobody counts.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.file.as_deref().and_then(read).unwrap_or(0)
    }
}

/// Where the counter may be, by the lines of `/proc/self/cgroup`: version 2 (`0::/path`) counts in `memory.events`, version 1
/// (`5:memory:/path`) in `memory.oom_control`. Within a container the group is the root of what is mounted, whatever its path says.
fn candidates(groups: &str, mount: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => (mount.to_owned(), "memory.events"),
            names if names.split(',').any(|name| name == "memory") => (mount.join("memory"), "memory.oom_control"),
            _ => continue,
        };
        files.push(root.join(path.trim_start_matches('/')).join(file));
        files.push(root.join(file));
    }
    files
}

fn read(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found_in_both_versions_and_in_a_container() {
        let folder = tempfile::tempdir().unwrap();
        let find = |groups: &str| candidates(groups, folder.path()).into_iter().find_map(|file| read(&file));
        assert_eq!(find("0::/user.slice\n"), None);
        std::fs::create_dir_all(folder.path().join("memory")).unwrap();
        std::fs::write(folder.path().join("memory/memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n").unwrap();
        assert_eq!(find("4:cpu,cpuacct:/docker/x\n5:memory:/docker/x\n0::/docker/x\n"), Some(3), "the root of a container");
        std::fs::create_dir(folder.path().join("user.slice")).unwrap();
        std::fs::write(folder.path().join("user.slice/memory.events"), "low 0\noom 1\noom_kill 2\noom_group_kill 0\n").unwrap();
        assert_eq!(find("0::/user.slice\n"), Some(2));
    }
}
