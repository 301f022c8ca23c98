//! What the user reads while xtask works, on stderr: one line when a step begins, one when it ends with its time.

use std::env;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

/// A step that was announced; `done` ends it.
pub struct Step {
    name: String,
    started_at: Instant,
}

impl Step {
    /// Announces a step.
    pub fn begin(name: impl Into<String>) -> Self {
        let name = name.into();
        eprintln!("{} {name}", paint("1;34", "==>"));
        Self { name, started_at: Instant::now() }
    }

    /// Says that the step goes on, with the newest line of its output.
    pub fn still(&self, newest: &str) {
        let newest = newest.trim();
        let separator = if newest.is_empty() { "" } else { ": " };
        eprintln!("    still at it after {}{separator}{newest}", elapsed(self.started_at.elapsed()));
    }

    /// Says that the step is done and how long it took.
    pub fn done(self) {
        let took = elapsed(self.started_at.elapsed());
        eprintln!("    {} {} ({took})", paint("32", "done:"), self.name);
    }
}

/// One line of information under the current step.
pub fn note(line: &str) {
    eprintln!("    {line}");
}

/// One line the user should not miss.
pub fn warn(line: &str) {
    eprintln!("    {} {line}", paint("33", "note:"));
}

/// The last thing said before a failure's exit code.
pub fn failure(error: &anyhow::Error) {
    eprintln!("{} {error:#}", paint("1;31", "error:"));
}

fn paint(code: &str, text: &str) -> String {
    if stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

fn elapsed(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds >= 60 { format!("{} min {:02} s", seconds / 60, seconds % 60) } else { format!("{:.1} s", time.as_secs_f64()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short_to_read() {
        assert_eq!(elapsed(Duration::from_millis(1_240)), "1.2 s");
        assert_eq!(elapsed(Duration::from_secs(125)), "2 min 05 s");
    }
}
