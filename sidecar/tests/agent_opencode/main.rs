//! The agent with the real OpenCode program and the demo provider, or a model server of the test's own. Nothing leaves this machine.
//!
//! The program is `OPENAGENT_TEST_OPENCODE`, or the one that `cargo xtask setup` installs. Without it the tests fail: they test nothing else.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod fault;
mod fixture;
mod turn;
mod warm;
