//! `ProviderService`.

use openagent_core::provider::{Model, Provider, Route};
use openagent_proto::v1;
use tonic::{Request, Response, Status};

use super::Context;

/// The service.
pub struct Providers(pub Context);

fn model(model: &Model) -> v1::Model {
    v1::Model {
        id: model.id.clone(),
        name: model.name.clone(),
        context_tokens: model.context,
        output_tokens: model.output,
        reasoning: model.reasoning,
        input_price_micros: model.price.input,
        output_price_micros: model.price.output,
    }
}

#[tonic::async_trait]
impl v1::provider_service_server::ProviderService for Providers {
    async fn list_providers(&self, request: Request<v1::ListProvidersRequest>) -> Result<Response<v1::ListProvidersResponse>, Status> {
        let usable_only = request.into_inner().usable_only;
        let shared = self.0.registry.shared();
        let wire = |provider: &Provider| v1::Provider {
            id: provider.id.clone(),
            name: provider.name.clone(),
            kind: provider.kind.name().to_owned(),
            base_url: provider.base_url.clone(),
            route: match provider.route {
                Route::Host => "host".to_owned(),
                Route::Direct => "direct".to_owned(),
            },
            needs_key: provider.needs_key,
            has_key: shared.has_key(&provider.id),
            models: provider.models.iter().map(model).collect(),
            own: shared.catalogue.is_own(&provider.id),
        };
        let providers = shared.catalogue.providers().iter().map(wire).filter(|p| !usable_only || p.has_key || !p.needs_key).collect();
        let default = shared.catalogue.default_model(|id| shared.has_key(id), self.0.defaults.model.as_deref());
        Ok(Response::new(v1::ListProvidersResponse { providers, default_model: default.unwrap_or_default() }))
    }
}
