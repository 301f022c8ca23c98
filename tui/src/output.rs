//! What the command line prints: data on stdout, as a table for people or as JSON for programs, and everything else on stderr.
//!
//! Texts that agents or models wrote pass [`text`] on their way to a terminal. The JSON shapes in [`json`] change only by addition.

pub mod event;
pub mod json;
pub mod quantity;
pub mod session;
pub mod table;
pub mod text;

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns and blocks for people.
    #[default]
    Table,
    /// JSON for programs.
    Json,
}

/// Whether stdout is a terminal.
#[must_use]
pub fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether stderr is a terminal.
#[must_use]
pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Prints `data` on stdout at once.
pub fn print(data: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(data.as_bytes())?;
    stdout.flush()
}

/// Prints one line on stdout.
pub fn line(data: &str) -> io::Result<()> {
    print(&format!("{data}\n"))
}

/// Prints `data` as JSON on stdout, indented.
pub fn as_json<T: Serialize>(data: &T) -> io::Result<()> {
    line(&text::json(&serde_json::to_string_pretty(data)?))
}

/// Prints `data` as one line of JSON on stdout.
pub fn as_json_line<T: Serialize>(data: &T) -> io::Result<()> {
    line(&text::json(&serde_json::to_string(data)?))
}

/// Says `message` on stderr, made safe for a terminal.
pub fn say(message: &str) {
    // Who closed stderr does not want to be told.
    let _ = writeln!(io::stderr().lock(), "{}", text::visible(message));
}
