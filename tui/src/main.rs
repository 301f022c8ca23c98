//! The `openagent` program: takes the command line apart, runs it, and says how it went.
fn main() {}
