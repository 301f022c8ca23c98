//! Where things are: the workspace, what xtask makes under `target/`, and the user's data folder.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folders of one xtask run.
pub struct Paths {
    /// The workspace's root.
    pub root: PathBuf,
    /// Cargo's target folder.
    pub target: PathBuf,
    /// `$XDG_DATA_HOME/openagent`, shared with the installed programs.
    pub data: PathBuf,
}

impl Paths {
    /// Reads the folders from what cargo and the user set.
    pub fn locate() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR").context("start this program as `cargo xtask`")?;
        let root = Path::new(&manifest).parent().context("the xtask crate has no parent folder")?.to_path_buf();
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |target| root.join(target));
        let data = match absolute("XDG_DATA_HOME") {
            Some(data) => data,
            None => absolute("HOME").context("neither XDG_DATA_HOME nor HOME is set")?.join(".local/share"),
        };
        Ok(Self { root, target, data: data.join("openagent") })
    }

    /// Folder for what xtask itself makes: staged programs, logs, marks.
    pub fn own(&self) -> PathBuf {
        self.target.join("openagent")
    }

    /// Log file of one quiet step.
    pub fn log(&self, step: &str) -> PathBuf {
        self.own().join("log").join(format!("{step}.log"))
    }
}

/// The XDG specification says that relative values are to be ignored.
fn absolute(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}
