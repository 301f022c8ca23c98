//! What tests, benches and demos share: the scripted model server that stands in for a paid one, and a world of its own for each test.

pub mod harness;
pub mod model;
pub mod screenshot;
pub mod stories;
