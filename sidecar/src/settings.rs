//! What the sidecar is told through its environment. None of it is secret: of the registration token it holds the digest only.

use std::path::PathBuf;

use openagent_core::id::SessionId;
use openagent_proto::sidecar::env;
use thiserror::Error;

use crate::journal::DEFAULT_MAX_BYTES;

/// What the sidecar is told through its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The session.
    pub session: SessionId,
    /// SHA-256 of the one-time registration token.
    pub token_sha256: [u8; 32],
    /// Folder of the socket.
    pub link_dir: PathBuf,
    /// The workspace.
    pub workspace: PathBuf,
    /// Folder of the journal.
    pub state_dir: PathBuf,
    /// The agent's home.
    pub agent_home: PathBuf,
    /// User and group of the agent; absent: the sidecar's own.
    pub agent_uid: Option<u32>,
    /// The OpenCode program.
    pub opencode: PathBuf,
    /// Largest size of the journal, in bytes.
    pub journal_max_bytes: u64,
}

/// Bounds of the journal's size, in bytes: a few of the largest events; what no state volume exceeds.
const JOURNAL_BYTES: std::ops::RangeInclusive<u64> = 8 * 1024 * 1024..=1024 * 1024 * 1024 * 1024;

/// Everything that is wrong with the environment, in one message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the environment is not usable: {}", .0.join("; "))]
pub struct InvalidSettings(pub Vec<String>);

impl Settings {
    /// Reads the settings from `variable`, which looks an environment variable up.
    ///
    /// # Errors
    /// [`InvalidSettings`] with all mistakes at once.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, InvalidSettings> {
        let mut mistakes = Vec::new();
        let mut required = |name: &str| match variable(name).filter(|value| !value.is_empty()) {
            Some(value) => value,
            None => {
                mistakes.push(format!("{name} is not set"));
                String::new()
            }
        };
        let session = required(env::SESSION_ID);
        let token_sha256 = required(env::TOKEN_SHA256);
        let folders =
            [env::LINK_DIR, env::WORKSPACE_DIR, env::STATE_DIR, env::AGENT_HOME, env::OPENCODE].map(|name| (name, required(name)));

        let session_id = session.parse::<SessionId>();
        if let (false, Err(error)) = (session.is_empty(), &session_id) {
            mistakes.push(format!("{}: {error}", env::SESSION_ID));
        }
        let digest = hex::decode(&token_sha256).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        if digest.is_none() && !token_sha256.is_empty() {
            mistakes.push(format!("{} is not 64 hexadecimal digits", env::TOKEN_SHA256));
        }
        for (name, path) in &folders {
            // A bare program name is looked up in PATH, so only the folders must be absolute.
            if *name != env::OPENCODE && !path.is_empty() && !path.starts_with('/') {
                mistakes.push(format!("{name} is not an absolute path"));
            }
        }
        let agent_uid = variable(env::AGENT_UID).filter(|text| !text.is_empty()).and_then(|text| match text.parse::<u32>() {
            Ok(uid) if uid != 0 && uid != u32::MAX => Some(uid),
            Ok(_) | Err(_) => {
                mistakes.push(format!("{} is not the id of an ordinary user", env::AGENT_UID));
                None
            }
        });
        let journal = variable(env::JOURNAL_MAX_BYTES).filter(|text| !text.is_empty());
        let journal_max_bytes = journal.map_or(DEFAULT_MAX_BYTES, |text| {
            text.parse::<u64>().ok().filter(|bytes| JOURNAL_BYTES.contains(bytes)).unwrap_or_else(|| {
                mistakes.push(format!("{} is not a number of bytes from 8 MiB to 1 TiB", env::JOURNAL_MAX_BYTES));
                DEFAULT_MAX_BYTES
            })
        });
        match (session_id, digest) {
            (Ok(session), Some(token_sha256)) if mistakes.is_empty() => {
                let [link_dir, workspace, state_dir, agent_home, opencode] = folders.map(|(_, path)| PathBuf::from(path));
                Ok(Self { session, token_sha256, link_dir, workspace, state_dir, agent_home, agent_uid, opencode, journal_max_bytes })
            }
            _ => Err(InvalidSettings(mistakes)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn good(name: &str) -> Option<String> {
        let value = match name {
            env::SESSION_ID => "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
            env::TOKEN_SHA256 => "ab".repeat(32),
            env::AGENT_UID => "1000".into(),
            env::OPENCODE => "opencode".into(),
            env::JOURNAL_MAX_BYTES => "8388608".into(),
            _ => format!("/{name}"),
        };
        Some(value)
    }

    #[test]
    fn a_complete_environment_is_read() {
        let settings = Settings::read(good).unwrap();
        assert_eq!(settings.token_sha256, [0xab; 32]);
        assert_eq!((settings.agent_uid, settings.journal_max_bytes), (Some(1000), 8 << 20));
        assert_eq!(settings.link_dir, PathBuf::from("/OPENAGENT_LINK_DIR"));
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let InvalidSettings(mistakes) = Settings::read(|name| match name {
            env::SESSION_ID => Some("ses_x".into()),
            env::TOKEN_SHA256 => Some("zz".into()),
            env::WORKSPACE_DIR => Some("relative".into()),
            env::AGENT_UID => Some("0".into()),
            env::JOURNAL_MAX_BYTES => Some("1024".into()),
            _ => None,
        })
        .unwrap_err();
        assert_eq!(mistakes.len(), 9, "{mistakes:?}");
    }
}
