//! A terminal in a session's sandbox, on this terminal.
//!
//! Bytes go through as they are, as with ssh. Leaving with `Ctrl-\ Ctrl-\` lets the shell go on; the end of the shell ends the command
//! with its exit code. This terminal is put back on every way out.

use std::io::{self, IsTerminal, Write};
use std::pin::pin;

use openagent_core::id::{SessionId, TerminalId};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use super::args::Term;
use super::{Done, Failure, OK, resolve, usage};
use crate::client::{Client, ClientError, ExitCode, Kind, TerminalInput, TerminalItem, TerminalStream};
use crate::output::say;
use crate::output::session::short_id;

/// Ctrl-\, the key that leaves when it is pressed twice.
const LEAVE: u8 = 0x1c;

/// The end of the input, as a terminal says it.
const END_OF_INPUT: u8 = 0x04;

/// What is read at once from this terminal.
const INPUT_CHUNK_BYTES: usize = 4096;

/// The size where there is no terminal to ask.
const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// Undoes what programs may have left on: alternate screen, mouse, focus and paste reports, application keys, hidden cursor, colours, keyboard protocol.
const RESET: &[u8] =
    b"\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1005l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>\x1b[<u\x1b[?25h\x1b[0m";

/// Draws on an empty screen.
const CLEAR: &[u8] = b"\x1b[2J\x1b[H";

pub(super) async fn term(client: &Client, term: Term) -> Done {
    let id = resolve::session(client, &term.id).await?;
    let size = size();
    let terminal = match &term.terminal {
        Some(text) => find(client, &id, text).await?,
        None => {
            let opened = client.open_terminal(&id, size.0, size.1, command(&term.command)).await?;
            opened.id.parse().map_err(|_| ClientError::malformed("the terminal's id"))?
        }
    };
    let (input, output) = client.attach_terminal(&id, &terminal, 0, term.read_only, size).await?;
    if io::stdin().is_terminal() {
        say("attached; leave with Ctrl-\\ Ctrl-\\ (the shell goes on)");
    }
    let raw = Raw::begin()?;
    let end = pump(input, output, raw.is_some(), term.read_only).await;
    drop(raw);
    match end? {
        Some(code) => {
            // What has ended is of no use to anybody; the daemon keeps only a few.
            let _ = client.close_terminal(&id, &terminal).await;
            Ok(u8::try_from(code).unwrap_or(ExitCode::Error as u8))
        }
        None => {
            say(&format!("left; come back: openagent term {} --terminal {terminal}", short_id(&id)));
            Ok(OK)
        }
    }
}

async fn find(client: &Client, id: &SessionId, text: &str) -> Result<TerminalId, Failure> {
    let terminals = client.terminals(id).await?;
    let suffix = text.to_ascii_uppercase();
    let found: Vec<&str> = terminals
        .iter()
        .map(|terminal| terminal.id.as_str())
        .filter(|id| *id == text || (!suffix.is_empty() && id.ends_with(&suffix)))
        .collect();
    match found.as_slice() {
        [one] => Ok(one.parse().map_err(|_| ClientError::malformed("the terminal's id"))?),
        [] => {
            let ids: Vec<&str> = terminals.iter().map(|terminal| terminal.id.as_str()).collect();
            let hint = if ids.is_empty() { "open one: openagent term ID".into() } else { format!("there are: {}", ids.join(" ")) };
            Err(ClientError::new(Kind::NotFound, format!("the session has no terminal {text:?}"), hint).into())
        }
        _ => Err(usage(format!("{text:?} may be several terminals"), "type more of the id")),
    }
}

/// The words as one command for the shell. A single word is a whole command line; several are quoted, so that each arrives as it is.
fn command(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:,@%+".contains(c);
    match words {
        [line] => line.clone(),
        words => {
            let quoted = words.iter().map(|word| {
                if !word.is_empty() && word.chars().all(plain) { word.clone() } else { format!("'{}'", word.replace('\'', "'\\''")) }
            });
            quoted.collect::<Vec<_>>().join(" ")
        }
    }
}

fn size() -> (u16, u16) {
    if io::stdout().is_terminal() { crossterm::terminal::size().unwrap_or(DEFAULT_SIZE) } else { DEFAULT_SIZE }
}

/// This terminal in raw mode, for as long as the value lives.
struct Raw;

impl Raw {
    /// `None` where stdin is no terminal: a script pipes input in, and there is nothing to put back.
    fn begin() -> Result<Option<Self>, Failure> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        crossterm::terminal::enable_raw_mode()
            .map_err(|error| ClientError::new(Kind::Failed, format!("the terminal cannot be made raw: {error}"), ""))?;
        Ok(Some(Self))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody left to tell, and nothing else to try.
        let _ = crossterm::terminal::disable_raw_mode();
        if io::stdout().is_terminal() {
            let mut stdout = io::stdout().lock();
            let _ = stdout.write_all(RESET).and_then(|()| stdout.write_all(b"\r\n")).and_then(|()| stdout.flush());
        }
    }
}

/// Looks for the two key presses that leave.
#[derive(Debug, Default)]
struct Chord {
    pressed: bool,
}

impl Chord {
    /// What of `typed` goes to the shell, and whether it was left.
    fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for byte in typed {
            match (self.pressed, *byte) {
                (true, LEAVE) => return (passed, true),
                (false, LEAVE) => self.pressed = true,
                (pressed, other) => {
                    if pressed {
                        passed.push(LEAVE);
                    }
                    self.pressed = false;
                    passed.push(other);
                }
            }
        }
        (passed, false)
    }
}

/// Moves bytes until the shell has ended (its exit code) or was left (`None`).
async fn pump(input: TerminalInput, mut output: TerminalStream, raw: bool, read_only: bool) -> Result<Option<i32>, Failure> {
    let watch = |kind| signal(kind).map_err(|error| ClientError::new(Kind::Failed, format!("signals cannot be watched: {error}"), ""));
    let mut resized = watch(SignalKind::window_change())?;
    let mut terminated = watch(SignalKind::terminate())?;
    let mut hung_up = watch(SignalKind::hangup())?;
    let mut stdin = pin!(tokio::io::stdin());
    let mut typed = vec![0; INPUT_CHUNK_BYTES];
    let mut chord = Chord::default();
    let mut reading = true;
    loop {
        tokio::select! {
            item = output.next() => match item? {
                Some(TerminalItem::Output { data, .. }) => write(&data)?,
                Some(TerminalItem::Screen { data, .. }) => {
                    write(CLEAR)?;
                    write(&data)?;
                }
                Some(TerminalItem::Writer(writing)) if !writing && !read_only && raw => {
                    // In raw mode a newline does not return to the first column.
                    let _ = io::stderr().write_all(b"\r\n[somebody else types here; what you type is not passed on]\r\n");
                }
                Some(TerminalItem::Writer(_) | TerminalItem::Size(..)) => {}
                Some(TerminalItem::Exited(code)) => return Ok(Some(code)),
                None => return Err(ClientError::new(Kind::Unreachable, "the daemon closed the terminal's stream", "attach again with --terminal").into()),
            },
            read = stdin.read(&mut typed), if reading => match read {
                Ok(0) | Err(_) => {
                    reading = false;
                    if !read_only {
                        input.input(&[END_OF_INPUT]).await?;
                    }
                }
                Ok(length) => {
                    let (passed, left) = if raw { chord.take(&typed[..length]) } else { (typed[..length].to_vec(), false) };
                    if !passed.is_empty() && !read_only {
                        input.input(&passed).await?;
                    }
                    if left {
                        return Ok(None);
                    }
                }
            },
            _ = resized.recv() => {
                let (columns, rows) = size();
                input.resize(columns, rows).await?;
            }
            _ = terminated.recv() => return Ok(None),
            _ = hung_up.recv() => return Ok(None),
        }
    }
}

fn write(data: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(data)?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_presses_in_a_row_leave() {
        let mut chord = Chord::default();
        assert_eq!(chord.take(b"ls\r"), (b"ls\r".to_vec(), false));
        assert_eq!(chord.take(b"\x1c"), (vec![], false));
        assert_eq!(chord.take(b"x"), (b"\x1cx".to_vec(), false), "a single one reaches the shell with what follows");
        assert_eq!(chord.take(b"a\x1c"), (b"a".to_vec(), false));
        assert_eq!(chord.take(b"\x1cnever"), (vec![], true));
    }

    #[test]
    fn words_reach_the_shell_as_they_are() {
        let words = |words: &[&str]| command(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(words(&[]), "");
        assert_eq!(words(&["make test && echo $HOME"]), "make test && echo $HOME");
        assert_eq!(words(&["echo", "it's", "$HOME", ""]), "echo 'it'\\''s' '$HOME' ''");
    }
}
