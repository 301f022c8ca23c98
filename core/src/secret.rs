//! Secrets that cannot be printed and do not outlive their use.

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Longest accepted secret, in bytes: provider keys are under 300, service account files under 4 KiB.
pub const SECRET_MAX_BYTES: usize = 16 * 1024;

/// A secret text: no `Display`, a `Debug` that shows nothing, no serde, wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the secret over.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself. Every call site is a place where it could leak; `tests/tidy.rs` keeps their list.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("sk-canary".into())), "[secret]");
    }
}
