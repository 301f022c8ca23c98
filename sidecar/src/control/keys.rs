//! Sealed provider keys in: all of a set, or nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use openagent_core::event::EventKind;
use openagent_core::provider::is_provider_id;
use openagent_core::seal::{Purpose, Sealed};
use openagent_core::secret::{SECRET_MAX_BYTES, Secret};
use openagent_proto::sidecar::{ErrorCode, KeysUpdated, UpdateKeys};

use super::body::JsonBody;
use super::{ApiError, Control, Parts};

/// Most keys in a set.
const KEYS_MAX: usize = 256;

pub async fn update(State(control): State<Control>, JsonBody(request): JsonBody<UpdateKeys>) -> Result<Json<KeysUpdated>, ApiError> {
    let parts = Arc::clone(&control.0);
    control.see_through("update keys", take(parts, request)).await.map(Json)
}

async fn take(parts: Arc<Parts>, request: UpdateKeys) -> Result<KeysUpdated, ApiError> {
    let invalid = |message: &str| ApiError::new(ErrorCode::InvalidRequest, message);
    let opener = parts.registration.opener(&request.recipient_key_id).ok_or_else(|| invalid("the keys are sealed for another sidecar"))?;
    if request.keys.len() > KEYS_MAX {
        return Err(invalid("there are more than 256 keys"));
    }
    let _turn = parts.update.lock().await;
    if request.version <= parts.keys.version() {
        return Err(ApiError::new(ErrorCode::Conflict, "a set of keys of this version, or a newer one, was taken before"));
    }
    let mut keys = BTreeMap::new();
    for key in request.keys {
        if !is_provider_id(&key.provider) {
            return Err(invalid("a provider's id is not 1 to 64 lower-case letters, digits and inner '-'"));
        }
        let aad = Purpose::ProviderKeys.aad(&parts.settings.session, &key.provider, request.version);
        let secret = Sealed::try_from(key.sealed)
            .and_then(|sealed| opener.open(&aad, &sealed))
            .map_err(|error| ApiError::new(ErrorCode::InvalidRequest, error.to_string()))?;
        let text = std::str::from_utf8(&secret).ok().filter(|text| (1..=SECRET_MAX_BYTES).contains(&text.len()));
        let text = text.ok_or_else(|| invalid("a key is empty, longer than 16 KiB, or not text"))?;
        if keys.insert(key.provider, Secret::new(text.to_owned())).is_some() {
            return Err(invalid("a provider is named twice"));
        }
    }
    let providers: Vec<String> = keys.keys().cloned().collect();
    // Recorded first: an update that is answered with an error has changed nothing.
    parts.journal.record(EventKind::KeysUpdated { providers: providers.clone() }).await.map_err(|error| {
        tracing::error!(%error, "an update of the keys could not be recorded");
        ApiError::new(ErrorCode::Internal, "the update could not be recorded")
    })?;
    parts.keys.replace(request.version, keys);
    Ok(KeysUpdated { updated: true, providers })
}
