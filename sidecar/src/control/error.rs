//! Errors of the control API, in the one JSON shape that all of its answers have.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use openagent_proto::sidecar::{ErrorBody, ErrorCode, ErrorDetail};
use thiserror::Error;

/// An error answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of error.
    pub code: ErrorCode,
    /// One sentence, without secrets.
    pub message: String,
}

impl ApiError {
    /// An error answer.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (code, status) = self.code.wire();
        let body = ErrorBody { success: false, error: ErrorDetail { code: code.to_owned(), message: self.message } };
        (StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(body)).into_response()
    }
}
