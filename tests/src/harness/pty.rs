//! A program in a pseudo-terminal of its own, seen as a person sees it: what it prints goes through a terminal emulator, keys go the other way.
//!
//! [`Pty`] owns the program, its terminal and the emulator. Output is taken in only while something is waited for, so that a test sees every state
//! in order, and only whole frames where the program marks them (synchronized updates); each is checked for words that must never be seen
//! ([`Pty::forbid`]). Every wait names what it waits for and has a bound; when it is not met, the panic shows the screen.

use std::num::NonZeroU16;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::PATIENCE;

/// What the Enter key sends.
pub const ENTER: &str = "\r";
/// What the Escape key sends.
pub const ESC: &str = "\x1b";
/// What the Tab key sends.
pub const TAB: &str = "\t";
/// What `Ctrl+]` sends.
pub const CTRL_BRACKET: &str = "\x1d";
/// What `Ctrl+C` sends.
pub const CTRL_C: &str = "\x03";

/// Time to read a request, longer than the interface protects it from keys that were meant for something else.
pub const READING: Duration = Duration::from_millis(400);

/// Smallest number of columns and rows; the emulator fails on fewer.
const SIZE_MIN: u16 = 2;

/// Bytes read at once.
const READ_MAX_BYTES: usize = 8 * 1024;

/// A program in a pseudo-terminal.
pub struct Pty {
    pty: pty_process::Pty,
    child: tokio::process::Child,
    parser: vt100::Parser,
    forbidden: Vec<String>,
    /// The last bytes, where a mark may have begun.
    tail: Vec<u8>,
    /// A frame has begun and not ended.
    in_frame: bool,
    closed: bool,
}

/// What begins and what ends a frame.
const FRAME_MARKS: [&[u8]; 2] = [b"\x1b[?2026h", b"\x1b[?2026l"];

fn cells(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count.max(SIZE_MIN)).expect("it is two at least")
}

impl Pty {
    /// Starts a program in a terminal of this size. It is killed when this is dropped.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(command: Command, columns: u16, rows: u16) -> Self {
        let (pty, pts) = pty_process::open().expect("a pseudo-terminal can be had");
        pty.resize(pty_process::Size::new(rows, columns)).expect("a new pseudo-terminal takes a size");
        let command = pty_process::Command::from(tokio::process::Command::from(command)).kill_on_drop(true);
        let child = command.spawn(pts).expect("the program is staged: cargo xtask test does that");
        #[allow(clippy::disallowed_methods, reason = "sizes are clamped")]
        let parser = vt100::Parser::new(cells(rows), cells(columns), 0);
        Self { pty, child, parser, forbidden: Vec::new(), tail: Vec::new(), in_frame: false, closed: false }
    }

    /// From now on the test fails when `word` is ever on the screen.
    pub fn forbid(&mut self, word: &str) {
        self.forbidden.push(word.to_owned());
    }

    /// The emulator's screen.
    #[must_use]
    pub fn screen(&self) -> &vt100::Screen {
        self.parser.screen()
    }

    /// The screen as rows of text.
    #[must_use]
    pub fn text(&self) -> String {
        let (_, columns) = self.screen().size();
        self.screen().rows(0, columns.get()).map(|row| row.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }

    /// Types; several keys in one string arrive at once, so Escape must come last.
    ///
    /// # Panics
    /// When the program does not take it.
    pub async fn type_keys(&mut self, keys: &str) {
        let written = timeout(PATIENCE, self.pty.write_all(keys.as_bytes())).await;
        written.unwrap_or_else(|_| panic!("{keys:?} is not taken; {self}")).unwrap_or_else(|error| panic!("{keys:?}: {error}; {self}"));
    }

    /// Pastes, as a terminal does it for a program that asked to be told.
    ///
    /// # Panics
    /// When the program does not ask for it, or does not take it.
    pub async fn paste(&mut self, text: &str) {
        assert!(self.screen().bracketed_paste(), "the program wants to know what is pasted");
        self.type_keys(&format!("\x1b[200~{text}\x1b[201~")).await;
    }

    /// Waits for a screen that holds every one of these texts.
    ///
    /// # Panics
    /// When it does not come.
    pub async fn wait_for(&mut self, texts: &[&str]) {
        self.wait_for_screen(&format!("{texts:?}"), |screen| texts.iter().all(|text| screen.contains(text))).await;
    }

    /// Waits for a screen, given as rows of text.
    ///
    /// # Panics
    /// When it does not come.
    pub async fn wait_for_screen(&mut self, what: &str, wanted: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while self.in_frame || !wanted(&self.text()) {
            assert!(!self.closed, "the program ended before {what}; {self}");
            assert!(self.take_in(deadline).await, "there is no {what}; {self}");
        }
    }

    /// Gives the terminal another size, and tells the program.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.parser.screen_mut().set_size(cells(rows), cells(columns));
        self.pty.resize(pty_process::Size::new(rows, columns)).expect("the terminal is there");
    }

    /// Waits until the program has ended and everything that it printed is taken in.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while !self.closed {
            assert!(self.take_in(deadline).await, "the program does not end; {self}");
        }
        let status = timeout(PATIENCE, self.child.wait()).await;
        status.unwrap_or_else(|_| panic!("the program closed its terminal but does not end")).expect("it is our child")
    }

    /// Takes in the next output; `false` when none comes before the deadline.
    async fn take_in(&mut self, deadline: Instant) -> bool {
        let mut buffer = [0; READ_MAX_BYTES];
        match timeout_at(deadline, self.pty.read(&mut buffer)).await {
            Ok(Ok(count @ 1..)) => {
                self.parser.process(&buffer[..count]);
                self.look_for_marks(&buffer[..count]);
                let text = self.text();
                if let Some(word) = self.forbidden.iter().find(|word| text.contains(word.as_str())) {
                    panic!("{word:?} is seen; {self}");
                }
            }
            // An error (EIO) is how a pseudo-terminal says that nobody has it open any more.
            Ok(_) => self.closed = true,
            Err(_) => return false,
        }
        true
    }

    fn look_for_marks(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let [begin, end] = FRAME_MARKS.map(|mark| memchr::memmem::rfind(&self.tail, mark));
        if begin.is_some() || end.is_some() {
            self.in_frame = begin > end;
        }
        let kept = self.tail.len().min(FRAME_MARKS[0].len() - 1);
        self.tail.drain(..self.tail.len() - kept);
    }

    /// Takes in output for this long: what a person sees who waits.
    pub async fn watch_for(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while !self.closed && self.take_in(deadline).await {}
    }
}

/// The screen in a frame.
impl std::fmt::Display for Pty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "the screen:")?;
        self.text().lines().try_for_each(|row| writeln!(f, "  |{row}"))
    }
}
