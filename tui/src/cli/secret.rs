//! Reading a secret: from stdin, or typed without being shown. Never from an argument, where every process could read it.

use std::io::{self, IsTerminal, Read, Write};

use nix::sys::termios::{self, LocalFlags, SetArg, Termios};
use openagent_core::secret::{SECRET_MAX_BYTES, Secret};
use zeroize::{Zeroize, Zeroizing};

use super::{Failure, usage};
use crate::client::{ClientError, Kind};

/// Reads the key of `provider`.
pub(super) async fn read(provider: &str) -> Result<Secret, Failure> {
    let provider = provider.to_owned();
    let typed =
        tokio::task::spawn_blocking(move || if io::stdin().is_terminal() { prompted(&provider) } else { piped(io::stdin().lock()) });
    let bytes = typed.await.map_err(|error| usage(format!("the key cannot be read: {error}"), ""))??;
    checked(&bytes)
}

fn checked(bytes: &[u8]) -> Result<Secret, Failure> {
    let text = std::str::from_utf8(bytes).map_err(|_| usage("the key is not a text", ""))?;
    if text.is_empty() {
        return Err(usage("the key is empty", "type it, or pipe it in: openagent keys set PROVIDER < file"));
    }
    if bytes.len() > SECRET_MAX_BYTES {
        return Err(usage("the key is longer than 16 KiB", ""));
    }
    Ok(Secret::new(text.to_owned()))
}

/// All of the input, without one newline at its end.
fn piped(input: impl Read) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // The whole capacity at once: a vector that grew would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_MAX_BYTES + 8));
    let unreadable = |error: io::Error| usage(format!("the key cannot be read from stdin: {error}"), "");
    input.take(SECRET_MAX_BYTES as u64 + 3).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    Ok(bytes)
}

/// Puts the terminal back as it was, however the typing ends.
struct Hidden {
    before: Termios,
}

impl Hidden {
    fn begin() -> nix::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        // Signals are off as well: an interrupt would leave the terminal without echo. Its character is looked for below.
        hidden.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        termios::tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &hidden)?;
        Ok(Self { before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // There is nobody left to tell, and nothing else to try.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &self.before);
    }
}

fn prompted(provider: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error: String| usage(format!("the key cannot be typed here: {error}"), "pipe it in: openagent keys set PROVIDER < file");
    let hidden = Hidden::begin().map_err(|error| failed(error.to_string()))?;
    let _ = write!(io::stderr(), "Key of {provider} (shown as *): ");
    let typed = typed(io::stdin().lock(), io::stderr());
    drop(hidden);
    let _ = writeln!(io::stderr());
    typed.map_err(|error| failed(error.to_string()))?.ok_or_else(|| ClientError::new(Kind::Failed, "nothing was stored", "").into())
}

/// One line as it is typed, answered with a star for each character; `None` where it was given up.
fn typed(mut input: impl Read, mut echo: impl Write) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    const INTERRUPT: u8 = 0x03;
    const END: u8 = 0x04;
    const KILL: u8 = 0x15;
    let mut line = Zeroizing::new(Vec::with_capacity(SECRET_MAX_BYTES + 8));
    let mut byte = [0u8; 1];
    let result = loop {
        if input.read(&mut byte)? == 0 {
            break Some(line);
        }
        match byte[0] {
            b'\n' | b'\r' | END => break Some(line),
            INTERRUPT => break None,
            0x7f | 0x08 if line.is_empty() => {}
            0x7f | 0x08 => {
                // A character may be several bytes; what is taken back is a character.
                while line.pop().is_some_and(|byte| (0x80..0xc0).contains(&byte)) {}
                echo.write_all(b"\x08 \x08")?;
            }
            KILL => {
                line.clear();
                echo.write_all(b"\r\x1b[KKey (shown as *): ")?;
            }
            _ if line.len() > SECRET_MAX_BYTES => {}
            other => {
                line.push(other);
                if !(0x80..0xc0).contains(&other) {
                    echo.write_all(b"*")?;
                }
            }
        }
        echo.flush()?;
    };
    byte.zeroize();
    Ok(result)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn one_newline_is_trimmed_and_nothing_else() {
        for (input, expected) in [("sk-1\n", "sk-1"), ("sk-1\r\n", "sk-1"), ("sk-1", "sk-1"), ("sk-1\n\n", "sk-1\n"), (" sk-1 ", " sk-1 ")]
        {
            assert_eq!(piped(input.as_bytes()).unwrap().as_slice(), expected.as_bytes(), "{input:?}");
        }
        assert!(checked(b"").is_err() && checked(&[0xff]).is_err() && checked(&vec![b'a'; SECRET_MAX_BYTES + 1]).is_err());
    }

    #[test]
    fn typing_can_be_corrected_and_given_up_and_is_never_echoed() {
        let mut echo = Vec::new();
        let line = typed("wrong\x15sk-x\x7fabcé\x7f\n".as_bytes(), &mut echo).unwrap().unwrap();
        assert_eq!(line.as_slice(), b"sk-abc");
        assert!(!String::from_utf8_lossy(&echo).contains("abc"));
        assert!(typed("sk\x03".as_bytes(), io::sink()).unwrap().is_none());
    }
}
