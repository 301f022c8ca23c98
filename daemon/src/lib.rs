//! Skeleton.

pub mod driver;
pub mod workspace;
