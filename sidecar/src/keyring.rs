//! The provider keys, in memory only: set as a whole from opened sealed keys, replaced as a whole, wiped when replaced.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use openagent_core::secret::Secret;

/// Handle on the provider keys.
#[derive(Clone, Default)]
pub struct KeyRing(Arc<RwLock<Set>>);

#[derive(Default)]
struct Set {
    version: u64,
    keys: BTreeMap<String, Secret>,
}

impl KeyRing {
    /// The key of `provider`, if it has one.
    #[must_use]
    pub fn get(&self, provider: &str) -> Option<Secret> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys.get(provider).cloned()
    }

    /// The providers that have a key, sorted.
    #[must_use]
    pub fn providers(&self) -> Vec<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys.keys().cloned().collect()
    }

    /// The version of the set; 0 before the first.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).version
    }

    /// Takes `keys` as the whole set if `version` is higher than every earlier one, and says whether it was.
    pub fn replace(&self, version: u64, keys: BTreeMap<String, Secret>) -> bool {
        let mut set = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let newer = version > set.version;
        if newer {
            *set = Set { version, keys };
        }
        newer
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRing").field("version", &self.version()).field("providers", &self.providers()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(provider: &str) -> BTreeMap<String, Secret> {
        BTreeMap::from([(provider.to_owned(), Secret::new("sk-canary".into()))])
    }

    #[test]
    fn a_newer_set_replaces_the_whole_and_an_older_one_changes_nothing() {
        let ring = KeyRing::default();
        assert!(ring.replace(3, set("openai")));
        assert!(!ring.replace(3, set("other")) && !ring.replace(2, BTreeMap::new()));
        assert_eq!(ring.providers(), ["openai"]);
        assert!(ring.replace(4, BTreeMap::new()));
        assert_eq!(ring.get("openai"), None);
    }

    #[test]
    fn debug_shows_no_key() {
        let ring = KeyRing::default();
        assert!(ring.replace(1, set("openai")));
        assert!(!format!("{ring:?}").contains("canary"));
    }
}
