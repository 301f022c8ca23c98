//! `VaultService`.

use openagent_core::secret::Secret;
use openagent_core::session::Fault;
use openagent_proto::v1;
use tonic::{Request, Response, Status};

use super::status::status;
use super::{Context, convert};
use crate::clock;
use crate::vault::{KeyInfo, VaultError};

/// The service.
pub struct Keys(pub Context);

fn key(info: KeyInfo) -> v1::Key {
    v1::Key {
        provider: info.provider,
        version: info.version,
        created_at: Some(convert::timestamp(info.created_at)),
        updated_at: Some(convert::timestamp(info.updated_at)),
        used_at: info.used_at.map(convert::timestamp),
    }
}

#[tonic::async_trait]
impl v1::vault_service_server::VaultService for Keys {
    async fn set_key(&self, request: Request<v1::SetKeyRequest>) -> Result<Response<v1::SetKeyResponse>, Status> {
        let v1::SetKeyRequest { provider, secret } = request.into_inner();
        let secret = Secret::new(secret);
        let shared = self.0.registry.shared();
        let provider = shared.catalogue.require(&provider).map_err(|fault| status(&fault))?;
        let info = shared.vault.set(&provider.id, secret, clock::now()).await.map_err(|error| status(&error.fault()))?;
        Ok(Response::new(v1::SetKeyResponse { key: Some(key(info)) }))
    }

    async fn list_keys(&self, _: Request<v1::ListKeysRequest>) -> Result<Response<v1::ListKeysResponse>, Status> {
        let keys = self.0.registry.shared().vault.list();
        Ok(Response::new(v1::ListKeysResponse { keys: keys.into_iter().map(key).collect() }))
    }

    async fn remove_key(&self, request: Request<v1::RemoveKeyRequest>) -> Result<Response<v1::RemoveKeyResponse>, Status> {
        let provider = request.into_inner().provider;
        self.0.registry.shared().vault.remove(&provider, clock::now()).await.map_err(|error| match error {
            VaultError::NoKey(_) => status(&Fault::new("NOT_FOUND", error.to_string(), "list them: openagent keys ls")),
            error => status(&error.fault()),
        })?;
        Ok(Response::new(v1::RemoveKeyResponse {}))
    }
}
