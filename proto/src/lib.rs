//! The wires of OpenAgent: [`v1`], the gRPC protocol that clients speak with the daemon, and [`sidecar`], the HTTP protocol that the daemon
//! speaks with the sidecar. Shapes only; conversion to the domain lives at each door.

pub mod sidecar;

/// `openagent.v1` as generated from `proto/openagent/v1/*.proto`, which hold its documentation.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unused_qualifications,
    reason = "generated code; its documentation is in the .proto files"
)]
pub mod v1 {
    tonic::include_proto!("openagent.v1");

    impl std::fmt::Debug for SetKeyRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("SetKeyRequest").field("provider", &self.provider).field("secret", &"[secret]").finish()
        }
    }
}

/// Serialised descriptors of `openagent.v1`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/openagent.bin"));

/// Version of `openagent.v1` as a whole; raised only if a client of the older one could not go on.
pub const PROTOCOL: u32 = 1;

/// Domain of the `google.rpc.ErrorInfo` in error details.
pub const ERROR_DOMAIN: &str = "openagent";
