//! What is kept of ended terminals from one sidecar to the next, so that a session that is resumed still shows what was done in them.
//!
//! One file a terminal in a folder of the state volume: a line of JSON, then the last bytes of the output. Written when the terminal has ended; a
//! file that makes no sense is left out.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use openagent_core::id::TerminalId;
use openagent_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::ENDED_MAX;

/// Bytes of output that are kept of each: several screens, and small enough to be held for all of them.
pub const KEPT_MAX_BYTES: usize = 64 * 1024;

/// Longest first line of a file.
const ABOUT_MAX_BYTES: usize = 1024;

/// An ended terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub id: TerminalId,
    pub created_at: Timestamp,
    pub ended_at: Timestamp,
    pub columns: u16,
    pub rows: u16,
    pub exit_code: i32,
    /// Offset behind the last byte of its output.
    pub end_offset: u64,
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("terminals")
}

/// Keeps what an ended terminal has shown last, and no more than [`ENDED_MAX`] of them.
///
/// # Errors
/// The file system's.
pub fn keep(state_dir: &Path, about: &About, output: &[u8]) -> io::Result<()> {
    let folder = folder(state_dir);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let path = folder.join(about.id.as_str());
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    let mut text = serde_json::to_vec(about)?;
    text.push(b'\n');
    text.extend_from_slice(&output[output.len().saturating_sub(KEPT_MAX_BYTES)..]);
    file.write_all(&text)?;
    fs::rename(&new, &path)?;
    let kept = load(state_dir);
    for (old, _) in kept.iter().rev().skip(ENDED_MAX) {
        fs::remove_file(folder.join(old.id.as_str()))?;
    }
    Ok(())
}

/// What was kept, the terminal that ended first at the beginning.
pub fn load(state_dir: &Path) -> Vec<(About, Vec<u8>)> {
    let entries = fs::read_dir(folder(state_dir)).into_iter().flatten().flatten();
    let mut kept: Vec<(About, Vec<u8>)> = entries.filter_map(|entry| read(&entry.path())).collect();
    kept.sort_by_key(|(about, _)| (about.ended_at, about.id.clone()));
    kept
}

fn read(path: &Path) -> Option<(About, Vec<u8>)> {
    use std::io::Read;
    let mut text = Vec::new();
    let limit = (ABOUT_MAX_BYTES + KEPT_MAX_BYTES) as u64;
    fs::File::open(path).ok()?.take(limit).read_to_end(&mut text).ok()?;
    let line = text.iter().take(ABOUT_MAX_BYTES).position(|byte| *byte == b'\n')?;
    let about: About = serde_json::from_slice(&text[..line]).ok()?;
    let output = text.split_off(line + 1);
    let is_sound = path.file_name()? == about.id.as_str() && output.len() as u64 <= about.end_offset;
    is_sound.then_some((about, output))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn about(number: u32) -> About {
        About {
            id: format!("trm_{number:026}").parse().unwrap(),
            created_at: Timestamp::from_millis(1),
            ended_at: Timestamp::from_millis(i64::from(number)),
            columns: 80,
            rows: 24,
            exit_code: 3,
            end_offset: 1_000_000,
        }
    }

    #[test]
    fn the_last_terminals_are_kept_with_the_end_of_their_output() {
        let folder = tempfile::tempdir().unwrap();
        let long = [vec![b'x'; 10], vec![b'y'; KEPT_MAX_BYTES]].concat();
        for number in (1..).take(ENDED_MAX + 2) {
            keep(folder.path(), &about(number), &long).unwrap();
        }
        let kept = load(folder.path());
        assert_eq!(kept.len(), ENDED_MAX);
        assert_eq!(kept[0].0, about(3), "the oldest are gone");
        assert!(kept.iter().all(|(_, output)| *output == long[10..]));
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        let state = tempfile::tempdir().unwrap();
        keep(state.path(), &about(1), b"sound").unwrap();
        for (name, text) in [("trm_x", &b"no json\n"[..]), ("trm_y", b""), ("trm_z", &[b'a'; 5000])] {
            fs::write(folder(state.path()).join(name), text).unwrap();
        }
        let renamed = serde_json::to_vec(&about(2)).unwrap();
        fs::write(folder(state.path()).join("another-name"), [&renamed[..], b"\n"].concat()).unwrap();
        assert_eq!(load(state.path()), [(about(1), b"sound".to_vec())]);
    }
}
