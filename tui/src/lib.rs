//! The OpenAgent client: the terminal user interface and the command line, both on top of one gRPC [`client`].
//!
//! Everything that is shown comes from the daemon over its Unix socket; nothing here keeps state of its own. Texts that agents wrote pass
//! [`output::text`] before they reach a terminal.

pub mod app;
pub mod cli;
pub mod client;
pub mod output;
