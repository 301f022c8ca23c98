//! Envelope encryption at rest.
//!
//! Each record has a random 256-bit data key of its own, under which it is encrypted with AES-256-GCM; the data key is wrapped by the master key. Both
//! encryptions bind the same associated data: format, record id, owner and version. So two records cannot be swapped, none can be put back
//! to an older version behind the back of whoever remembers the current one, and not a single byte can change unnoticed.
//!
//! ```text
//! byte 0        format (1)
//! bytes 1..17   id of the master key
//! 4 bytes       length of the wrapped data key, big-endian; then nonce, ciphertext, tag
//! rest          the record: nonce, ciphertext, tag
//! ```

use thiserror::Error;
use zeroize::Zeroizing;

use crate::seal::{SealKey, Sealed, push_field, random};

const FORMAT: u8 = 1;
const MASTER_KEY_ID_BYTES: usize = 16;

/// Why a record could not be opened. Deliberately opaque.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EnvelopeError {
    /// The record was made under another master key.
    #[error("the record was encrypted under another master key")]
    OtherMasterKey,
    /// The record was changed, moved, or is not a record.
    #[error("the record cannot be opened")]
    CannotOpen,
}

/// What a record is: bound into its encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordId<'a> {
    /// The record's own name, such as `provider-key/openai`.
    pub record: &'a str,
    /// Whose it is.
    pub owner: &'a str,
    /// Its version, from 1; each change makes it one higher.
    pub version: u64,
}

impl RecordId<'_> {
    fn aad(&self, layer: &str) -> Vec<u8> {
        let mut aad = Vec::new();
        let version = self.version.to_be_bytes();
        for field in [b"openagent/v1/envelope", layer.as_bytes(), &[FORMAT], self.record.as_bytes(), self.owner.as_bytes(), &version] {
            push_field(&mut aad, field);
        }
        aad
    }
}

/// The key that wraps data keys.
#[derive(Clone)]
pub struct MasterKey {
    id: [u8; MASTER_KEY_ID_BYTES],
    key: SealKey,
}

impl MasterKey {
    /// Length of [`MasterKey::to_bytes`].
    pub const BYTES: usize = MASTER_KEY_ID_BYTES + 32;

    /// Draws a new one.
    #[must_use]
    pub fn generate() -> Self {
        Self { id: random(), key: SealKey::generate() }
    }

    /// Id and key in one piece, as its source keeps them.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([&self.id[..], &self.key.to_bytes()[..]].concat())
    }

    /// Takes [`MasterKey::to_bytes`] apart; `None` for another length.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (id, key) = bytes.split_first_chunk::<MASTER_KEY_ID_BYTES>()?;
        Some(Self { id: *id, key: SealKey::from_bytes(key.try_into().ok()?) })
    }

    /// Encrypts a record.
    #[must_use]
    pub fn seal(&self, id: RecordId<'_>, plaintext: &[u8]) -> Vec<u8> {
        let data_key = SealKey::generate();
        let mut envelope = vec![FORMAT];
        envelope.extend_from_slice(&self.id);
        push_field(&mut envelope, &self.key.seal(&id.aad("data-key"), &data_key.to_bytes()[..]).to_bytes());
        envelope.extend_from_slice(&data_key.seal(&id.aad("record"), plaintext).to_bytes());
        envelope
    }

    /// Decrypts what [`MasterKey::seal`] made for the same `id`.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn open(&self, id: RecordId<'_>, envelope: &[u8]) -> Result<Zeroizing<Vec<u8>>, EnvelopeError> {
        let (master, wrapped, record) = take_apart(envelope).ok_or(EnvelopeError::CannotOpen)?;
        if master != self.id {
            return Err(EnvelopeError::OtherMasterKey);
        }
        let open = |key: &SealKey, layer: &str, bytes: &[u8]| {
            Sealed::from_bytes(bytes).and_then(|sealed| key.open(&id.aad(layer), &sealed)).map_err(|_| EnvelopeError::CannotOpen)
        };
        let data_key = open(&self.key, "data-key", wrapped)?;
        let data_key: [u8; 32] = data_key.as_slice().try_into().map_err(|_| EnvelopeError::CannotOpen)?;
        open(&SealKey::from_bytes(data_key), "record", record)
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey")
    }
}

fn take_apart(envelope: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let rest = envelope.strip_prefix(&[FORMAT])?;
    let (master, rest) = rest.split_at_checked(MASTER_KEY_ID_BYTES)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (wrapped, record) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    Some((master, wrapped, record))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: RecordId<'_> = RecordId { record: "provider-key/openai", owner: "user", version: 3 };

    #[test]
    fn a_record_opens_only_as_itself() {
        let master = MasterKey::from_bytes(&MasterKey::generate().to_bytes()).unwrap();
        let envelope = master.seal(ID, b"sk-canary");
        assert_eq!(master.open(ID, &envelope).unwrap().as_slice(), b"sk-canary");
        for other in [RecordId { record: "provider-key/other", ..ID }, RecordId { owner: "else", ..ID }, RecordId { version: 2, ..ID }] {
            assert_eq!(master.open(other, &envelope).unwrap_err(), EnvelopeError::CannotOpen);
        }
        assert_eq!(MasterKey::generate().open(ID, &envelope).unwrap_err(), EnvelopeError::OtherMasterKey);
    }

    #[test]
    fn an_envelope_of_the_first_format_opens() {
        let master = MasterKey::from_bytes(&[7; MasterKey::BYTES]).unwrap();
        // Shipped: keys that users have stored must open for ever.
        let envelope = concat!(
            "01070707070707070707070707070707070000003c88776a0cd7ee27ea9f803a598f78287b90e9793da8dab76b5e26d873ea53a1b71fa8af",
            "f67b8e8afe8606e65282313c97b4207c8c9d4ea19e698c8575944f066a05f3aa5c73fa0bb318552c611580e7cab1515a5c6542f3c9596fc9",
            "e914141c3689",
        );
        assert_eq!(master.open(ID, &hex::decode(envelope).unwrap()).unwrap().as_slice(), b"sk-canary");
    }

    #[test]
    fn the_same_secret_never_looks_the_same_twice() {
        let master = MasterKey::generate();
        assert_ne!(master.seal(ID, b"x"), master.seal(ID, b"x"));
    }

    proptest! {
        #[test]
        fn any_edited_byte_fails_to_open(at in any::<proptest::sample::Index>(), flip in 1u8..) {
            let master = MasterKey::generate();
            let mut envelope = master.seal(ID, b"sk-canary");
            let at = at.index(envelope.len());
            envelope[at] ^= flip;
            prop_assert!(master.open(ID, &envelope).is_err());
        }

        #[test]
        fn any_cut_fails_to_open(keep in any::<proptest::sample::Index>()) {
            let master = MasterKey::generate();
            let envelope = master.seal(ID, b"sk-canary");
            prop_assert!(master.open(ID, &envelope[..keep.index(envelope.len())]).is_err());
        }
    }
}
