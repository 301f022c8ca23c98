//! The agent.

pub mod opencode;
