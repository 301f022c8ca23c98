//! Registration: the daemon trades its one-time token and a public key for the sidecar's public key and the bearer token.
//!
//! The order of the checks: a body that cannot be read says nothing about the caller; then the session, which is no secret; then the token, so that
//! only its holder learns whether it was used; then whether it was used; and the public key last, so that a bad one does not use the token up.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use openagent_core::id::SessionId;
use openagent_core::seal::{KeyPair, PublicKey, Purpose, SealKey, Side, random};
use openagent_proto::sidecar::{ErrorCode, PROTOCOL, Register, Registered};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::body::JsonBody;
use super::{ApiError, Control};

/// Life of the registration token, from the start of the sidecar: far longer than the daemon needs.
const TOKEN_LIFE: Duration = Duration::from_mins(10);

/// The item that the bearer token is sealed as.
const BEARER_ITEM: &str = "bearer";

/// The one registration of a sidecar's life.
pub struct Registration {
    session: SessionId,
    token_sha256: [u8; 32],
    valid_until: Instant,
    registered: Mutex<Option<Agreed>>,
}

/// What was agreed on at registration.
struct Agreed {
    bearer_sha256: [u8; 32],
    key_id: String,
    provider_keys: SealKey,
}

impl Registration {
    pub fn new(session: SessionId, token_sha256: [u8; 32], started_at: Instant) -> Self {
        Self { session, token_sha256, valid_until: started_at + TOKEN_LIFE, registered: Mutex::new(None) }
    }

    fn agreed<T>(&self, look: impl FnOnce(&mut Option<Agreed>) -> T) -> T {
        look(&mut self.registered.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether `bearer` is the token that registration gave out.
    pub fn admits(&self, bearer: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(bearer.as_bytes()).into();
        self.agreed(|agreed| agreed.as_ref().is_some_and(|agreed| bool::from(agreed.bearer_sha256.ct_eq(&digest))))
    }

    /// The key that opens provider keys sealed for `recipient`; `None` when that is not this sidecar.
    pub fn opener(&self, recipient: &str) -> Option<SealKey> {
        self.agreed(|agreed| agreed.as_ref().filter(|agreed| agreed.key_id == recipient).map(|agreed| agreed.provider_keys.clone()))
    }

    fn register(&self, request: &Register, now: Instant) -> Result<Registered, ApiError> {
        let refused = |code, message: &str| Err(ApiError::new(code, message));
        if request.session_id != self.session.as_str() {
            return refused(ErrorCode::Forbidden, "this sidecar serves another session");
        }
        let digest: [u8; 32] = Sha256::digest(request.registration_token.as_bytes()).into();
        if !bool::from(self.token_sha256.ct_eq(&digest)) || now > self.valid_until {
            return refused(ErrorCode::Unauthorized, "the registration token is not valid");
        }
        self.agreed(|agreed| {
            if agreed.is_some() {
                return refused(ErrorCode::Conflict, "this sidecar is registered already");
            }
            let pair = KeyPair::generate();
            let channel = PublicKey::from_base64(&request.public_key)
                .and_then(|theirs| pair.agree(theirs, Side::Sidecar, &self.session))
                .map_err(|error| ApiError::new(ErrorCode::InvalidPublicKey, error.to_string()))?;
            let bearer = Zeroizing::new(hex::encode(Zeroizing::new(random::<32>())));
            let aad = Purpose::AuthToken.aad(&self.session, BEARER_ITEM, 1);
            let key_id = pair.public().key_id();
            let answer = Registered {
                success: true,
                sidecar_public_key: pair.public().to_base64(),
                sidecar_key_id: key_id.clone(),
                sidecar_auth_token: channel.auth_token.seal(&aad, bearer.as_bytes()).into(),
                protocol: PROTOCOL,
            };
            *agreed =
                Some(Agreed { bearer_sha256: Sha256::digest(bearer.as_bytes()).into(), key_id, provider_keys: channel.provider_keys });
            Ok(answer)
        })
    }
}

pub async fn register(State(Control(parts)): State<Control>, JsonBody(request): JsonBody<Register>) -> Result<Json<Registered>, ApiError> {
    let answer = parts.registration.register(&request, Instant::now());
    match &answer {
        Ok(_) => tracing::info!("registered"),
        Err(error) => tracing::warn!(%error, "a registration was refused"),
    }
    answer.map(Json)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_no_longer_valid_after_its_life() {
        let session: SessionId = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
        let started_at = Instant::now();
        let registration = Registration::new(session.clone(), Sha256::digest(b"token").into(), started_at);
        let request = Register {
            session_id: session.to_string(),
            registration_token: "token".into(),
            public_key: KeyPair::generate().public().to_base64(),
            key_id: String::new(),
        };
        let late = registration.register(&request, started_at + TOKEN_LIFE + Duration::from_millis(1));
        assert_eq!(late.unwrap_err().code, ErrorCode::Unauthorized);
        assert!(registration.register(&request, started_at + TOKEN_LIFE).is_ok());
    }
}
