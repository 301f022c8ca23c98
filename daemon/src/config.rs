//! The configuration file and the daemon's folders, as they are on disk.
//!
//! `core::config` says what they mean; this module reads and makes them. Invariant: the folders are the user's own and closed to others, or
//! the daemon does not start: who could write to the socket's folder could stand in for the daemon.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use openagent_core::config::{CONFIG_MAX_BYTES, Config, ConfigError, Paths, Platform};
use openagent_core::session::Fault;
use thiserror::Error;

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The environment does not say where files are.
    #[error("the environment is not usable: {}", lines(.0))]
    Environment(Vec<ConfigError>),
    /// The file cannot be read.
    #[error("the configuration file {path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The file is not text, or is too large.
    #[error("the configuration file {path} {why}")]
    NotText {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file holds mistakes.
    #[error("the configuration file {path} holds mistakes:\n{}", lines(.mistakes))]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// All of them.
        mistakes: Vec<ConfigError>,
    },
    /// A folder cannot be made.
    #[error("the folder {path} cannot be made")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// A folder is open to others.
    #[error("the folder {path} {why}")]
    UnsafeFolder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

fn lines(mistakes: &[ConfigError]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl LoadError {
    /// The error for users: a stable code, the message with its cause, and what to do.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let (code, hint) = match self {
            Self::Environment(_) => ("ENVIRONMENT_INVALID", "set the named variables and start again".to_owned()),
            Self::Unreadable { path, .. } => ("CONFIG_UNREADABLE", format!("make {} readable, or move it away", path.display())),
            Self::NotText { path, .. } => ("CONFIG_UNREADABLE", format!("replace or remove {}", path.display())),
            Self::Mistakes { .. } => ("CONFIG_INVALID", "mend every line above; openagentd --print-config prints what is known".to_owned()),
            Self::Folder { path, .. } => ("FOLDER_FAILED", format!("check the permissions of the folders above {}", path.display())),
            Self::UnsafeFolder { path, .. } => {
                ("FOLDER_UNSAFE", format!("remove {}, or set OPENAGENT_RUNTIME_DIR to a folder of your own", path.display()))
            }
        };
        let message = match self {
            Self::Unreadable { source, .. } | Self::Folder { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        };
        Fault::new(code, message, hint)
    }
}

/// Where files are, for this process.
///
/// # Errors
/// [`LoadError::Environment`].
pub fn paths(env: impl Fn(&str) -> Option<String>) -> Result<Paths, LoadError> {
    Paths::resolve(env, nix::unistd::geteuid().as_raw(), Platform::CURRENT).map_err(LoadError::Environment)
}

/// Reads the configuration file, if there is one, and applies the environment.
///
/// # Errors
/// [`LoadError`].
pub fn load(paths: &Paths, env: impl Fn(&str) -> Option<String>) -> Result<Config, LoadError> {
    let path = &paths.config_file;
    let mut config = match read(path)? {
        None => Config::default(),
        Some(text) => Config::parse(&text).map_err(|mistakes| LoadError::Mistakes { path: path.clone(), mistakes })?,
    };
    config.overlay(env).map_err(LoadError::Environment)?;
    Ok(config)
}

fn read(path: &Path) -> Result<Option<String>, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    // O_NONBLOCK: a pipe in its place is not waited for.
    let file = match OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let refuse = |why| Err(LoadError::NotText { path: path.to_owned(), why });
    if !file.metadata().map_err(unreadable)?.is_file() {
        return refuse("is not a file");
    }
    let mut bytes = Vec::new();
    file.take(CONFIG_MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > CONFIG_MAX_BYTES {
        return refuse("is larger than 1 MiB");
    }
    String::from_utf8(bytes).map(Some).or_else(|_| refuse("is not text in UTF-8"))
}

/// Makes the folders for state, data and the socket, closed to others. A socket folder that is not the user's own, or open to others, is refused;
/// the state folder is closed, because only what the user himself did can have opened it.
///
/// # Errors
/// [`LoadError::Folder`], [`LoadError::UnsafeFolder`].
pub fn make_folders(paths: &Paths) -> Result<(), LoadError> {
    for folder in [&paths.state_dir, &paths.data_dir, &paths.runtime_dir] {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| LoadError::Folder { path: folder.clone(), source })?;
    }
    close(&paths.state_dir)?;
    check_private(&paths.runtime_dir)
}

/// Opened as a folder and never through a link, so that what is checked is what is meant.
fn open_folder(path: &Path) -> Result<File, LoadError> {
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    opened.map_err(|source| LoadError::Folder { path: path.to_owned(), source })
}

fn check_private(path: &Path) -> Result<(), LoadError> {
    let found = open_folder(path)?.metadata().map_err(|source| LoadError::Folder { path: path.to_owned(), source })?;
    let refuse = |why| Err(LoadError::UnsafeFolder { path: path.to_owned(), why });
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return refuse("belongs to another user");
    }
    if found.mode() & 0o077 != 0 {
        return refuse("is open to other users");
    }
    Ok(())
}

fn close(path: &Path) -> Result<(), LoadError> {
    let failed = |source| LoadError::Folder { path: path.to_owned(), source };
    let folder = File::open(path).map_err(failed)?;
    let found = folder.metadata().map_err(failed)?;
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(LoadError::UnsafeFolder { path: path.to_owned(), why: "belongs to another user" });
    }
    if found.mode() & 0o077 != 0 {
        folder.set_permissions(fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn paths_in(folder: &Path) -> Paths {
        let home = folder.to_str().unwrap().to_owned();
        let runtime = folder.join("run").to_str().unwrap().to_owned();
        paths(move |name| match name {
            "HOME" => Some(home.clone()),
            "OPENAGENT_RUNTIME_DIR" => Some(runtime.clone()),
            _ => None,
        })
        .unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_missing_file_gives_the_defaults_and_a_bad_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths_in(folder.path());
        assert_eq!(load(&paths, |_| None).unwrap(), Config::default());
        fs::create_dir_all(paths.config_file.parent().unwrap()).unwrap();
        for (content, code) in [
            (&b"colour = 1\nimage = 2"[..], "CONFIG_INVALID"),
            (b"\xff\xfe", "CONFIG_UNREADABLE"),
            (&vec![b'#'; CONFIG_MAX_BYTES + 1], "CONFIG_UNREADABLE"),
        ] {
            fs::write(&paths.config_file, content).unwrap();
            assert_eq!(load(&paths, |_| None).unwrap_err().fault().code, code);
        }
        fs::remove_file(&paths.config_file).unwrap();
        fs::create_dir(&paths.config_file).unwrap();
        assert_eq!(load(&paths, |_| None).unwrap_err().fault().code, "CONFIG_UNREADABLE");
    }

    #[test]
    fn folders_are_made_closed_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths_in(folder.path());
        make_folders(&paths).unwrap();
        assert_eq!((mode(&paths.state_dir), mode(&paths.runtime_dir), mode(&paths.data_dir)), (0o700, 0o700, 0o700));
        fs::set_permissions(&paths.state_dir, fs::Permissions::from_mode(0o755)).unwrap();
        make_folders(&paths).unwrap();
        assert_eq!(mode(&paths.state_dir), 0o700);
    }

    #[test]
    fn a_socket_folder_that_others_could_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths_in(folder.path());
        make_folders(&paths).unwrap();
        for open in [0o777, 0o1777, 0o720, 0o701] {
            fs::set_permissions(&paths.runtime_dir, fs::Permissions::from_mode(open)).unwrap();
            assert_eq!(make_folders(&paths).unwrap_err().fault().code, "FOLDER_UNSAFE", "{open:o}");
        }
        fs::remove_dir(&paths.runtime_dir).unwrap();
        std::os::unix::fs::symlink(&paths.state_dir, &paths.runtime_dir).unwrap();
        assert!(make_folders(&paths).is_err(), "a link in its place");
    }
}
