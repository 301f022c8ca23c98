//! The sidecar: the first process of every session's container.
//!
//! It outlives the daemon, so that a turn goes on while the daemon is away; it journals what happens meanwhile; it is the only holder of keys in the
//! container and the wall between them and the agent. Everything that the agent can influence (its event stream, its terminals, its model calls) is
//! hostile input: bounded, checked, and never in a position to end this process.

pub mod agent;
pub mod connect;
pub mod control;
pub mod journal;
pub mod keyring;
pub mod link;
pub mod model;
pub mod process;
pub mod relay;
pub mod serve;
pub mod settings;
pub mod task;
pub mod terminal;
