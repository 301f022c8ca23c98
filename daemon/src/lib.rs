//! Skeleton.

pub mod driver;
pub mod event;
pub mod store;
pub mod task;
pub mod vault;
pub mod workspace;
