//! Answers to the agent: a provider's passed through, or a refusal in a shape that both wire formats understand.

use std::error::Error as StdError;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::json;

/// Body of an answer to the agent.
pub(super) type ProxyBody = BoxBody<Bytes, Box<dyn StdError + Send + Sync>>;

/// An answer with JSON that is there already.
pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Response<ProxyBody> {
    let mut answer = Response::new(Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// A refusal. OpenAI's format reads `error.message`, Anthropic's the same and `type`; so the agent shows the message with either.
pub(super) fn refusal(status: StatusCode, message: &str) -> Response<ProxyBody> {
    let kind = match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED => "invalid_request_error",
        _ => "api_error",
    };
    json(status, &json!({ "type": "error", "error": { "type": kind, "code": kind, "message": message } }))
}

/// A provider's answer, with its status and headers, as it comes.
pub(super) fn pass<B>(answer: Response<B>) -> Response<ProxyBody>
where
    B: hyper::body::Body<Data = Bytes> + Send + Sync + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let (mut head, body) = answer.into_parts();
    super::header::strip_response(&mut head.headers);
    head.version = http::Version::HTTP_11;
    Response::from_parts(head, body.map_err(Into::into).boxed())
}
