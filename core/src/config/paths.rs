//! Where files are kept.
//!
//! Four folders by how long their content matters and to whom: configuration (the user writes it), data (can be got again, and the
//! master key), state (sessions and histories), runtime (the socket; gone with the login).
//!
//! The master key is in the data folder: outside the state folder, so that a copy of the state alone opens no provider key; and not with the
//! configuration, because people publish that with their dotfiles.

use std::path::{Path, PathBuf};

use super::ConfigError;

/// Longest path of a Unix socket, in bytes without its final zero; 107 on Linux, 103 on macOS.
const SOCKET_MAX_BYTES: usize = 103;

/// The system whose conventions hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// Freedesktop conventions.
    Linux,
    /// Apple's, unless the freedesktop variables are set.
    MacOs,
}

impl Platform {
    /// The one that this program was built for.
    pub const CURRENT: Self = if cfg!(target_os = "macos") { Self::MacOs } else { Self::Linux };
}

/// Where files are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The configuration file, `$OPENAGENT_CONFIG`.
    pub config_file: PathBuf,
    /// Sessions and histories, `$OPENAGENT_STATE_DIR`.
    pub state_dir: PathBuf,
    /// The store's folder in the state folder.
    pub store_dir: PathBuf,
    /// What can be got again, such as OpenCode, `$OPENAGENT_DATA_DIR`.
    pub data_dir: PathBuf,
    /// The socket's folder, `$OPENAGENT_RUNTIME_DIR`.
    pub runtime_dir: PathBuf,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The master key of the vault, `$OPENAGENT_MASTER_KEY_FILE`.
    pub master_key_file: PathBuf,
}

impl Paths {
    /// Finds the folders out of the environment and the user's number.
    ///
    /// # Errors
    /// Every variable that is needed and missing, or not an absolute path; a socket path that no system takes.
    pub fn resolve(env: impl Fn(&str) -> Option<String>, uid: u32, platform: Platform) -> Result<Self, Vec<ConfigError>> {
        let mut search = Search { env, mistakes: vec![] };
        let mac = platform == Platform::MacOs;
        let library = "Library/Application Support/openagent";
        let config_file = search.own("OPENAGENT_CONFIG").or_else(|| {
            let folder = search.base("XDG_CONFIG_HOME", "openagent", ".config/openagent")?;
            Some(folder.join("config.toml"))
        });
        let state_dir = search.own("OPENAGENT_STATE_DIR").or_else(|| {
            search.base(
                "XDG_STATE_HOME",
                "openagent",
                if mac { "Library/Application Support/openagent/state" } else { ".local/state/openagent" },
            )
        });
        let data_dir = search
            .own("OPENAGENT_DATA_DIR")
            .or_else(|| search.base("XDG_DATA_HOME", "openagent", if mac { library } else { ".local/share/openagent" }));
        let runtime_dir = search.own("OPENAGENT_RUNTIME_DIR").unwrap_or_else(|| {
            search.xdg("XDG_RUNTIME_DIR").map_or_else(
                || search.xdg("TMPDIR").unwrap_or_else(|| PathBuf::from("/tmp")).join(format!("openagent-{uid}")),
                |folder| folder.join("openagent"),
            )
        });
        let master_key_file = search.own("OPENAGENT_MASTER_KEY_FILE").or_else(|| Some(data_dir.as_deref()?.join("master.key")));
        let socket = runtime_dir.join("openagentd.sock");
        if socket.as_os_str().len() > SOCKET_MAX_BYTES {
            search.mistake(format!(
                "the path of the socket, {}, is longer than {SOCKET_MAX_BYTES} bytes; set OPENAGENT_RUNTIME_DIR to a shorter one",
                socket.display()
            ));
        }
        match (config_file, state_dir, data_dir, master_key_file) {
            (Some(config_file), Some(state_dir), Some(data_dir), Some(master_key_file)) if search.mistakes.is_empty() => {
                let store_dir = state_dir.join("db");
                if master_key_file.starts_with(&store_dir) {
                    search.mistake("OPENAGENT_MASTER_KEY_FILE must not be inside the folder of the store that it protects".to_owned());
                    return Err(search.mistakes);
                }
                Ok(Self { config_file, state_dir, store_dir, data_dir, runtime_dir, socket, master_key_file })
            }
            _ => {
                search.mistakes.dedup();
                Err(search.mistakes)
            }
        }
    }
}

struct Search<E> {
    env: E,
    mistakes: Vec<ConfigError>,
}

impl<E: Fn(&str) -> Option<String>> Search<E> {
    fn mistake(&mut self, message: String) {
        self.mistakes.push(ConfigError { line: None, message });
    }

    fn set(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|value| !value.is_empty())
    }

    /// A variable of our own must be an absolute path.
    fn own(&mut self, name: &str) -> Option<PathBuf> {
        let value = self.set(name)?;
        if !Path::new(&value).is_absolute() {
            self.mistake(format!("{name} must be an absolute path, not {value:?}"));
        }
        Some(value.into())
    }

    /// A relative path in a freedesktop variable is to be ignored, as their specification says.
    fn xdg(&self, name: &str) -> Option<PathBuf> {
        self.set(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    fn base(&mut self, xdg: &str, below: &str, below_home: &str) -> Option<PathBuf> {
        if let Some(folder) = self.xdg(xdg) {
            return Some(folder.join(below));
        }
        let home = self.xdg("HOME");
        if home.is_none() {
            self.mistake("HOME is not set to an absolute path, so there is no place for files".to_owned());
        }
        Some(home?.join(below_home))
    }
}
