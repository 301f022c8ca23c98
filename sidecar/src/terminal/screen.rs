//! The screen that a terminal's output has drawn, to be drawn anew for a client that missed some of it.
//!
//! The one place that makes a [`vt100::Parser`]: sizes under 2 make it panic, so a size is clamped here.

use std::num::NonZeroU16;

use super::state::Size;

/// The screen.
pub struct Screen(vt100::Parser);

/// What the agent prints is hostile: if some of it ever makes the parser panic, the screen is empty and the terminal goes on.
fn survived(change: impl FnOnce()) -> bool {
    let survived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(change)).is_ok();
    if !survived {
        tracing::error!("the terminal parser failed; the screen is begun anew");
    }
    survived
}

fn clamped(size: Size) -> (NonZeroU16, NonZeroU16) {
    let clamp = |value: u16| NonZeroU16::new(value.clamp(Size::MIN, Size::MAX)).unwrap_or(NonZeroU16::MAX);
    (clamp(size.rows), clamp(size.columns))
}

impl Screen {
    #[allow(clippy::disallowed_methods, reason = "the one place that clamps the size")]
    pub fn new(size: Size) -> Self {
        let (rows, columns) = clamped(size);
        Self(vt100::Parser::new(rows, columns, 0))
    }

    pub fn process(&mut self, bytes: &[u8]) {
        let (rows, columns) = self.0.screen().size();
        if !survived(|| self.0.process(bytes)) {
            *self = Self::new(Size { columns: columns.get(), rows: rows.get() });
        }
    }

    pub fn resize(&mut self, size: Size) {
        let (rows, columns) = clamped(size);
        if !survived(|| self.0.set_size(rows, columns)) {
            *self = Self::new(size);
        }
    }

    /// Bytes that draw it on a reset terminal of its size.
    pub fn draw(&self) -> Vec<u8> {
        let screen = self.0.screen();
        // The parser's own rendering leaves out which of the two screens it is.
        let prefix = if screen.alternate_screen() { "\x1b[?1049h" } else { "" };
        [prefix.as_bytes(), screen.state_formatted().as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_screen_draws_the_same_screen() {
        let size = Size { columns: 20, rows: 5 };
        let mut screen = Screen::new(size);
        screen.process(b"one\r\n\x1b[31mtwo\x1b[0m\r\n\x1b[?1049h\x1b[2;3Hthree \xe4\xb8\xad");
        let mut again = Screen::new(size);
        again.process(&screen.draw());
        assert_eq!(again.0.screen().contents(), screen.0.screen().contents());
        assert_eq!(again.0.screen().cursor_position(), screen.0.screen().cursor_position());
        assert!(again.0.screen().alternate_screen());
    }

    #[test]
    fn impossible_sizes_do_not_panic() {
        for (columns, rows) in [(0, 0), (1, 1), (u16::MAX, 1)] {
            let mut screen = Screen::new(Size { columns, rows });
            screen.process("中中中\r\n".as_bytes());
            screen.resize(Size { columns: rows, rows: columns.min(50) });
            screen.process(b"\x1b[999;999Hx");
        }
    }
}
