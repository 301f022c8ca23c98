//! Skeleton.

pub mod driver;
