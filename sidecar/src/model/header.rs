//! Which headers pass. Authentication of the caller never does, nor does what belongs to one connection.

use http::header::{self, HeaderMap, HeaderName};

/// Of one connection only (RFC 9110, section 7.6.1), or telling about the way.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Of the caller: its authentication, where it meant to go, and compression, which would hold small pieces of a stream back.
const CALLERS: &[&str] = &[
    "authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "cookie",
    "host",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "accept-encoding",
    "expect",
];

/// The key with which the agent calls, in any of the forms that its SDKs use.
pub(super) fn caller_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())
}

/// Takes off what must not reach a provider.
pub(super) fn strip_request(headers: &mut HeaderMap) {
    strip_connection(headers);
    CALLERS.iter().for_each(|name| drop(headers.remove(*name)));
}

/// Takes off what must not reach the agent.
pub(super) fn strip_response(headers: &mut HeaderMap) {
    strip_connection(headers);
    headers.remove(header::SET_COOKIE);
}

fn strip_connection(headers: &mut HeaderMap) {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok()).flat_map(|names| names.split(','));
    let named: Vec<HeaderName> = named.filter_map(|name| name.trim().parse().ok()).collect();
    named.iter().for_each(|name| drop(headers.remove(name)));
    HOP_BY_HOP.iter().for_each(|name| drop(headers.remove(*name)));
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn authentication_and_what_a_connection_names_are_taken_off() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("authorization", "Bearer a"), ("x-api-key", "b"), ("connection", "close, x-mine"), ("x-mine", "1"), ("cookie", "c")]
        {
            headers.insert(name, value.parse().unwrap());
        }
        headers.insert("anthropic-version", "2023-06-01".parse().unwrap());
        assert_eq!(caller_key(&headers), Some("a"));
        strip_request(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["anthropic-version"]);
    }
}
