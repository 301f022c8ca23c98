//! Keys as the bytes that a shell expects, after xterm.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// What the program inside asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Modes {
    /// Arrows are sent as `ESC O`.
    pub application_cursor: bool,
    /// Pasted text is marked as such.
    pub bracketed_paste: bool,
}

/// The bytes of a key; empty where it has none.
#[must_use]
pub fn key(event: &KeyEvent, modes: Modes) -> Vec<u8> {
    let alt = event.modifiers.contains(KeyModifiers::ALT);
    let control = event.modifiers.contains(KeyModifiers::CONTROL);
    let shift = event.modifiers.contains(KeyModifiers::SHIFT);
    let modifier = 1 + u8::from(shift) + 2 * u8::from(alt) + 4 * u8::from(control);
    let with_alt = |bytes: &[u8]| if alt { [b"\x1b", bytes].concat() } else { bytes.to_vec() };
    match event.code {
        KeyCode::Char(letter) if control => with_alt(&[control_byte(letter)]),
        KeyCode::Char(letter) => with_alt(letter.encode_utf8(&mut [0; 4]).as_bytes()),
        KeyCode::Enter => with_alt(b"\r"),
        KeyCode::Tab => with_alt(b"\t"),
        KeyCode::BackTab => b"\x1b[Z".to_vec(),
        KeyCode::Backspace if control => with_alt(b"\x08"),
        KeyCode::Backspace => with_alt(b"\x7f"),
        KeyCode::Esc => with_alt(b"\x1b"),
        KeyCode::Up => cursor(b'A', modifier, modes),
        KeyCode::Down => cursor(b'B', modifier, modes),
        KeyCode::Right => cursor(b'C', modifier, modes),
        KeyCode::Left => cursor(b'D', modifier, modes),
        KeyCode::Home => cursor(b'H', modifier, modes),
        KeyCode::End => cursor(b'F', modifier, modes),
        KeyCode::Insert => tilde(2, modifier),
        KeyCode::Delete => tilde(3, modifier),
        KeyCode::PageUp => tilde(5, modifier),
        KeyCode::PageDown => tilde(6, modifier),
        KeyCode::F(number) => function(number, modifier),
        KeyCode::Null => vec![0],
        _ => Vec::new(),
    }
}

/// Pasted text. Inside, the mark that ends a paste is taken out, so that a paste cannot type.
#[must_use]
pub fn paste(text: &str, modes: Modes) -> Vec<u8> {
    let lines = text.replace("\r\n", "\r").replace('\n', "\r");
    if !modes.bracketed_paste {
        return lines.into_bytes();
    }
    let mut clean = lines;
    while clean.contains("\x1b[201~") {
        clean = clean.replace("\x1b[201~", "");
    }
    [b"\x1b[200~", clean.as_bytes(), b"\x1b[201~"].concat()
}

/// The byte of a letter with control. Terminals report some of them by the digit that sends the same byte.
fn control_byte(letter: char) -> u8 {
    match letter.to_ascii_lowercase() {
        letter @ 'a'..='z' => letter as u8 - b'a' + 1,
        '@' | ' ' | '2' => 0x00,
        '[' | '3' => 0x1b,
        '\\' | '4' => 0x1c,
        ']' | '5' => 0x1d,
        '^' | '6' => 0x1e,
        '_' | '/' | '7' => 0x1f,
        '?' | '8' => 0x7f,
        letter => u8::try_from(letter).unwrap_or(b'?'),
    }
}

fn cursor(letter: u8, modifier: u8, modes: Modes) -> Vec<u8> {
    match modifier {
        1 if modes.application_cursor => vec![0x1b, b'O', letter],
        1 => vec![0x1b, b'[', letter],
        _ => format!("\x1b[1;{modifier}{}", char::from(letter)).into_bytes(),
    }
}

fn tilde(number: u8, modifier: u8) -> Vec<u8> {
    match modifier {
        1 => format!("\x1b[{number}~").into_bytes(),
        _ => format!("\x1b[{number};{modifier}~").into_bytes(),
    }
}

fn function(number: u8, modifier: u8) -> Vec<u8> {
    match number {
        1..=4 => {
            let letter = char::from(b'P' + number - 1);
            match modifier {
                1 => format!("\x1bO{letter}").into_bytes(),
                _ => format!("\x1b[1;{modifier}{letter}").into_bytes(),
            }
        }
        5 => tilde(15, modifier),
        6..=10 => tilde(number + 11, modifier),
        11..=12 => tilde(number + 12, modifier),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(code: KeyCode, modifiers: KeyModifiers) -> Vec<u8> {
        key(&KeyEvent::new(code, modifiers), Modes::default())
    }

    #[test]
    fn keys_become_what_xterm_sends() {
        const NONE: KeyModifiers = KeyModifiers::NONE;
        const CTRL: KeyModifiers = KeyModifiers::CONTROL;
        const ALT: KeyModifiers = KeyModifiers::ALT;
        const SHIFT: KeyModifiers = KeyModifiers::SHIFT;
        let table: [(KeyCode, KeyModifiers, &[u8]); 24] = [
            (KeyCode::Char('a'), NONE, b"a"),
            (KeyCode::Char('é'), NONE, "é".as_bytes()),
            (KeyCode::Char('c'), CTRL, b"\x03"),
            (KeyCode::Char('C'), CTRL.union(SHIFT), b"\x03"),
            (KeyCode::Char(' '), CTRL, b"\x00"),
            (KeyCode::Char('4'), CTRL, b"\x1c"),
            (KeyCode::Char('7'), CTRL, b"\x1f"),
            (KeyCode::Char('b'), ALT, b"\x1bb"),
            (KeyCode::Char('b'), ALT.union(CTRL), b"\x1b\x02"),
            (KeyCode::Enter, NONE, b"\r"),
            (KeyCode::Backspace, NONE, b"\x7f"),
            (KeyCode::Backspace, ALT, b"\x1b\x7f"),
            (KeyCode::BackTab, SHIFT, b"\x1b[Z"),
            (KeyCode::Esc, NONE, b"\x1b"),
            (KeyCode::Up, NONE, b"\x1b[A"),
            (KeyCode::Right, CTRL, b"\x1b[1;5C"),
            (KeyCode::Home, SHIFT, b"\x1b[1;2H"),
            (KeyCode::Delete, NONE, b"\x1b[3~"),
            (KeyCode::PageUp, CTRL, b"\x1b[5;5~"),
            (KeyCode::F(1), NONE, b"\x1bOP"),
            (KeyCode::F(5), NONE, b"\x1b[15~"),
            (KeyCode::F(6), NONE, b"\x1b[17~"),
            (KeyCode::F(12), NONE, b"\x1b[24~"),
            (KeyCode::F(2), SHIFT, b"\x1b[1;2Q"),
        ];
        for (code, modifiers, expected) in table {
            assert_eq!(bytes(code, modifiers), expected, "{code:?} {modifiers:?}");
        }
    }

    #[test]
    fn arrows_follow_the_application_mode() {
        let modes = Modes { application_cursor: true, ..Modes::default() };
        assert_eq!(key(&KeyEvent::new(KeyCode::Left, KeyModifiers::NONE), modes), b"\x1bOD");
        assert_eq!(key(&KeyEvent::new(KeyCode::Left, KeyModifiers::ALT), modes), b"\x1b[1;3D");
    }

    #[test]
    fn a_paste_cannot_end_itself() {
        let modes = Modes { bracketed_paste: true, ..Modes::default() };
        assert_eq!(paste("a\nb\x1b[20\x1b[201~1~c", modes), b"\x1b[200~a\rbc\x1b[201~");
        assert_eq!(paste("a\nb", Modes::default()), b"a\rb");
    }
}
