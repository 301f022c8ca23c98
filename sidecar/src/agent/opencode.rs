//! OpenCode 1.18 behind the agent port: the only code that knows its JSON, its paths and its program.
//!
//! `config` writes its configuration, `process` starts and stops its server, `client` speaks its HTTP API, `feed` reads `/global/event`, and
//! `translate` turns what it says into domain events without any I/O.

mod bound;
pub mod client;
pub mod config;
pub mod feed;
mod json;
pub mod message_id;
pub mod process;
pub mod translate;
