//! Sealing between daemon and sidecar: X25519, HKDF-SHA-256, AES-256-GCM.
//!
//! Both sides draw an ephemeral X25519 key pair and exchange public keys at registration. From the shared secret each derives one AES-256 key
//! for each [`Purpose`] (RFC 5869; salt: daemon's public key, then sidecar's; info: label, session id, protocol version, each with its
//! length before it). A purpose has one direction, so that no key ever encrypts in two. A shared secret of all zeros, which a
//! low-order public key gives (RFC 7748, section 6.1), is refused.
//!
//! Associated data binds what a ciphertext is for: purpose, session, item and version; moved elsewhere it does not open.

use std::fmt;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use x25519_dalek::{PublicKey as DalekPublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::id::SessionId;

/// Version of the protocol between daemon and sidecar.
pub const PROTOCOL: u32 = 1;

const NONCE_BYTES: usize = 12;

/// Why something could not be sealed or opened. Deliberately says no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SealError {
    /// A public key is not 32 bytes in base 64, or has no secret in common with anyone.
    #[error("the public key is not valid")]
    InvalidPublicKey,
    /// The ciphertext was changed, or is not for this key and purpose.
    #[error("the sealed data cannot be opened")]
    CannotOpen,
}

/// A public key: 32 bytes, base 64 in JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Reads standard base 64 of exactly 32 bytes.
    ///
    /// # Errors
    /// [`SealError::InvalidPublicKey`] for anything else.
    pub fn from_base64(text: &str) -> Result<Self, SealError> {
        let bytes = BASE64.decode(text).map_err(|_| SealError::InvalidPublicKey)?;
        bytes.try_into().map(Self).map_err(|_| SealError::InvalidPublicKey)
    }

    /// Standard base 64.
    #[must_use]
    pub fn to_base64(self) -> String {
        BASE64.encode(self.0)
    }

    /// A short name for this key: the first 8 bytes of its SHA-256 in hexadecimal.
    #[must_use]
    pub fn key_id(self) -> String {
        Sha256::digest(self.0).iter().take(8).fold(String::new(), |mut id, byte| {
            fmt::Write::write_fmt(&mut id, format_args!("{byte:02x}")).expect("writing to a string cannot fail");
            id
        })
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.key_id())
    }
}

/// An ephemeral key pair.
pub struct KeyPair(StaticSecret);

impl KeyPair {
    /// Draws a new one.
    #[must_use]
    pub fn generate() -> Self {
        Self(StaticSecret::random())
    }

    /// The key pair of a known secret, for known-answer tests.
    #[must_use]
    pub fn from_bytes(secret: [u8; 32]) -> Self {
        Self(StaticSecret::from(secret))
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(DalekPublicKey::from(&self.0).to_bytes())
    }

    /// The keys shared with the holder of `theirs`, seen from `side`.
    ///
    /// # Errors
    /// [`SealError::InvalidPublicKey`] when the shared secret is all zeros.
    pub fn agree(&self, theirs: PublicKey, side: Side, session: &SessionId) -> Result<SealedChannel, SealError> {
        let shared = self.0.diffie_hellman(&DalekPublicKey::from(theirs.0));
        if !shared.was_contributory() {
            return Err(SealError::InvalidPublicKey);
        }
        let (daemon, sidecar) = match side {
            Side::Daemon => (self.public(), theirs),
            Side::Sidecar => (theirs, self.public()),
        };
        let salt = [daemon.0, sidecar.0].concat();
        let hkdf = Hkdf::<Sha256>::new(Some(&salt), shared.as_bytes());
        let derive = |purpose: Purpose| {
            let mut info = Vec::new();
            for field in [purpose.label().as_bytes(), session.as_str().as_bytes(), &PROTOCOL.to_be_bytes()] {
                push_field(&mut info, field);
            }
            let mut key = SealKey([0; 32]);
            hkdf.expand(&info, &mut key.0).expect("32 bytes are within HKDF's limit of 255 blocks");
            key
        };
        Ok(SealedChannel { auth_token: derive(Purpose::AuthToken), provider_keys: derive(Purpose::ProviderKeys) })
    }
}

/// Who agrees on keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The daemon.
    Daemon,
    /// The sidecar.
    Sidecar,
}

/// What a derived key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The bearer token that the sidecar gives the daemon.
    AuthToken,
    /// Provider keys that the daemon gives the sidecar.
    ProviderKeys,
}

impl Purpose {
    const fn label(self) -> &'static str {
        match self {
            Self::AuthToken => "openagent/v1/sidecar-auth-token",
            Self::ProviderKeys => "openagent/v1/provider-keys",
        }
    }

    /// Associated data: what the sealed thing is and where it belongs.
    #[must_use]
    pub fn aad(self, session: &SessionId, item: &str, version: u64) -> Vec<u8> {
        let mut aad = Vec::new();
        for field in [self.label().as_bytes(), session.as_str().as_bytes(), item.as_bytes(), &version.to_be_bytes()] {
            push_field(&mut aad, field);
        }
        aad
    }
}

/// The keys of one registration, one a purpose.
pub struct SealedChannel {
    /// Opens and seals the bearer token.
    pub auth_token: SealKey,
    /// Opens and seals provider keys.
    pub provider_keys: SealKey,
}

/// An AES-256-GCM key.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SealKey([u8; 32]);

impl SealKey {
    /// Takes key bytes over, such as those kept (encrypted) over a restart of the daemon.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Draws a new key.
    #[must_use]
    pub fn generate() -> Self {
        Self(random())
    }

    /// The key bytes, to be encrypted at rest.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0)
    }

    /// Encrypts under a fresh nonce; `aad` is bound but not contained.
    #[must_use]
    pub fn seal(&self, aad: &[u8], plaintext: &[u8]) -> Sealed {
        self.seal_with_nonce(random(), aad, plaintext)
    }

    fn seal_with_nonce(&self, nonce: [u8; NONCE_BYTES], aad: &[u8], plaintext: &[u8]) -> Sealed {
        let ciphertext = self
            .cipher()
            .encrypt(&Nonce::from(nonce), Payload { msg: plaintext, aad })
            .expect("AES-GCM encrypts anything shorter than 64 GiB");
        Sealed { nonce, ciphertext }
    }

    /// Decrypts what [`SealKey::seal`] made with the same `aad`.
    ///
    /// # Errors
    /// [`SealError::CannotOpen`] whatever was wrong.
    pub fn open(&self, aad: &[u8], sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, SealError> {
        self.cipher()
            .decrypt(&Nonce::from(sealed.nonce), Payload { msg: &sealed.ciphertext, aad })
            .map(Zeroizing::new)
            .map_err(|_| SealError::CannotOpen)
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(&self.0.into())
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey")
    }
}

/// A nonce and a ciphertext with its tag; base 64 of both together in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sealed {
    nonce: [u8; NONCE_BYTES],
    ciphertext: Vec<u8>,
}

impl Sealed {
    /// Nonce, ciphertext and tag in one piece.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.nonce[..], &self.ciphertext].concat()
    }

    /// Takes [`Sealed::to_bytes`] apart.
    ///
    /// # Errors
    /// [`SealError::CannotOpen`] when it is shorter than a nonce and a tag.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SealError> {
        match bytes.split_first_chunk::<NONCE_BYTES>() {
            Some((nonce, ciphertext)) if ciphertext.len() >= 16 => Ok(Self { nonce: *nonce, ciphertext: ciphertext.to_vec() }),
            Some(_) | None => Err(SealError::CannotOpen),
        }
    }
}

impl TryFrom<String> for Sealed {
    type Error = SealError;

    fn try_from(text: String) -> Result<Self, SealError> {
        Self::from_bytes(&BASE64.decode(text).map_err(|_| SealError::CannotOpen)?)
    }
}

impl From<Sealed> for String {
    fn from(sealed: Sealed) -> Self {
        BASE64.encode(sealed.to_bytes())
    }
}

/// `N` random bytes from the operating system.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // StaticSecret draws 32 bytes from the operating system; taking them from there keeps one source of randomness.
    for chunk in bytes.chunks_mut(32) {
        let drawn = Zeroizing::new(StaticSecret::random().to_bytes());
        chunk.copy_from_slice(&drawn[..chunk.len()]);
    }
    bytes
}

/// Appends a field with its length before it, so that no two lists of fields give the same bytes.
pub(crate) fn push_field(to: &mut Vec<u8>, field: &[u8]) {
    to.extend_from_slice(&u32::try_from(field.len()).expect("fields are shorter than 4 GiB").to_be_bytes());
    to.extend_from_slice(field);
}

#[cfg(test)]
mod tests;
