//! The terminal user interface.

pub mod conversation;
pub mod markdown;
pub mod text;
pub mod theme;
pub mod wrap;
