//! What tests, benches and demos share: the scripted model server that stands in for a paid one.

pub mod model;
