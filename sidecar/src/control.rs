//! The control API: what the daemon asks of the sidecar over HTTP. Paths, bodies and codes are those of [`openagent_proto::sidecar`].

mod error;

pub use error::ApiError;
