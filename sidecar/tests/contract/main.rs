//! Contract tests of the sidecar: the real program over its real socket, with the daemon's side written here.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod agent;
mod bridge;
mod events;
mod fixture;
mod guard;
mod keys;
mod link;
mod process;
mod registration;
mod shutdown;
mod terminal;
