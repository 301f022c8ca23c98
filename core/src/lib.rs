//! The domain of OpenAgent, without I/O.
//!
//! Ids, the lifecycle of sessions and instances, events and cursors, permissions, usage, providers, configuration and the two
//! cryptographic envelopes (sealing between daemon and sidecar, envelope encryption at rest). Nothing here opens a file or a socket, reads
//! a clock, or spawns a task: times come in as values. The one exception is randomness for keys and nonces, which is drawn where it is
//! used, so that no caller can reuse a nonce.
//!
//! The serde form of [`event::EventKind`] is at once what the sidecar journals, what it sends to the daemon, and what the daemon stores:
//! one format that changes only by addition, pinned by `tests/event_format.rs`.

pub mod activity;
pub mod config;
pub mod cursor;
pub mod envelope;
pub mod event;
pub mod id;
pub mod instance;
pub mod permission;
pub mod provider;
pub mod seal;
pub mod secret;
pub mod session;
pub mod time;
pub mod usage;
