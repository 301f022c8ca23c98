//! The direct route: the sidecar adds the key from its memory and calls the provider.

use std::sync::OnceLock;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyDataStream, Limited};
use hyper::body::Incoming;
use openagent_core::provider::ProviderKind;
use openagent_proto::sidecar::AgentProvider;

use super::answer::{ProxyBody, pass, refusal};
use crate::keyring::KeyRing;

/// Time for a connection to the provider.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The client, made with the first call: reading the certificates takes time that most sessions never need.
#[derive(Default)]
pub(super) struct Direct(OnceLock<Option<reqwest::Client>>);

impl Direct {
    fn client(&self) -> Option<&reqwest::Client> {
        let make = || {
            // Refused when another part of the program has installed it already.
            let _ = rustls::crypto::ring::default_provider().install_default();
            // A redirect would carry the key to another place.
            let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).connect_timeout(CONNECT_TIMEOUT).build();
            client.inspect_err(|error| tracing::error!(error = error as &dyn std::error::Error, "no client for model calls")).ok()
        };
        self.0.get_or_init(make).as_ref()
    }

    pub(super) async fn send(
        &self,
        provider: &AgentProvider,
        kind: ProviderKind,
        keys: &KeyRing,
        path: &str,
        mut headers: HeaderMap,
        body: Limited<Incoming>,
    ) -> Response<ProxyBody> {
        let id = &provider.id;
        match keys.get(id) {
            Some(key) => {
                let (name, before) = kind.key_header();
                let Ok(mut value) = HeaderValue::from_str(&format!("{before}{}", key.expose())) else {
                    return refusal(
                        StatusCode::UNAUTHORIZED,
                        &format!("the key for provider {id} cannot be sent: openagent keys set {id}"),
                    );
                };
                value.set_sensitive(true);
                headers.insert(HeaderName::from_static(name), value);
            }
            None if provider.needs_key => {
                return refusal(StatusCode::UNAUTHORIZED, &format!("no key for provider {id}: openagent keys set {id}"));
            }
            None => {}
        }
        let Some(client) = self.client() else {
            return refusal(StatusCode::BAD_GATEWAY, "no connection to a provider is possible from here: the system has no certificates");
        };
        let address = format!("{}/{path}", provider.base_url.trim_end_matches('/'));
        let body = reqwest::Body::wrap_stream(BodyDataStream::new(body));
        match client.post(address).headers(headers).body(body).send().await {
            Ok(answer) => pass::<reqwest::Body>(answer.into()),
            Err(error) => {
                // Without its address, which may hold what the user regards as private.
                let error = error.without_url();
                tracing::warn!(provider = id, error = &error as &dyn std::error::Error, "a provider could not be reached");
                let why = if error.is_timeout() { "in time" } else { "from this container" };
                refusal(StatusCode::BAD_GATEWAY, &format!("the provider {id} cannot be reached {why}"))
            }
        }
    }
}
