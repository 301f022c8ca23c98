//! The daemon: owns sessions, containers, encrypted provider keys and all state, and serves `openagent.v1` on a Unix socket.

pub mod catalogue;
pub mod clock;
pub mod config;
pub mod driver;
pub mod event;
pub mod export;
pub mod offline;
pub mod relay;
pub mod rpc;
pub mod run;
pub mod session;
pub mod sidecar;
pub mod store;
pub mod task;
pub mod vault;
pub mod workspace;
