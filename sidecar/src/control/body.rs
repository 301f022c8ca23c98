//! Request bodies: bounded, and parsed strictly.

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use openagent_proto::sidecar::{BODY_MAX_BYTES, ErrorCode};
use serde::de::DeserializeOwned;

use super::ApiError;

/// A JSON body of at most [`BODY_MAX_BYTES`].
pub struct JsonBody<T>(pub T);

/// A JSON body that may be absent, which is the default.
pub struct OptionalJsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        parse(&read(request).await?).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let body = read(request).await?;
        if body.is_empty() { Ok(Self(T::default())) } else { parse(&body).map(Self) }
    }
}

async fn read(request: Request) -> Result<Bytes, ApiError> {
    match Limited::new(request.into_body(), BODY_MAX_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ApiError::new(ErrorCode::PayloadTooLarge, format!("the body is over {BODY_MAX_BYTES} bytes")))
        }
        Err(_) => Err(ApiError::new(ErrorCode::InvalidRequest, "the body broke off")),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // The parser would also take a list for the fields of an object, in their order.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "the body is not a JSON object"));
    }
    // The parser's own message can quote the body, which may hold a token or a prompt.
    serde_json::from_slice(body).map_err(|error| {
        let kind = match error.classify() {
            serde_json::error::Category::Data => "does not have the expected fields",
            _ => "is not JSON",
        };
        let (line, column) = (error.line(), error.column());
        ApiError::new(ErrorCode::InvalidRequest, format!("the body {kind} (line {line}, column {column})"))
    })
}
