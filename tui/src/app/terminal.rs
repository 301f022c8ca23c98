//! The terminal pane: an emulator that is fed a terminal's output, and keys as bytes for its input.
//!
//! The emulator answers no queries of the programs inside: replayed output holds queries that were answered long ago.

pub mod encode;

use std::num::NonZeroU16;

use openagent_core::id::{SessionId, TerminalId};
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};

use crate::client::TerminalItem;

/// Rows of scrollback; each full row of 200 columns costs about 6 kB.
const SCROLLBACK_ROWS: usize = 5_000;

/// Smallest size that the emulator and shells can work with, columns and rows alike.
const SIZE_MIN: u16 = 2;

/// An attached terminal.
pub struct Pane {
    /// Its session.
    pub session: SessionId,
    /// The terminal.
    pub id: TerminalId,
    /// Output up to here has been shown.
    pub offset: u64,
    /// Keys of this client count.
    pub writing: bool,
    /// The shell ended with this code.
    pub exited: Option<i32>,
    /// It is connected.
    pub attached: bool,
    /// The escape chord was pressed.
    pub menu: bool,
    parser: vt100::Parser,
}

impl std::fmt::Debug for Pane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pane").field("id", &self.id).field("offset", &self.offset).finish_non_exhaustive()
    }
}

/// A size that is safe: two columns and rows at least.
#[must_use]
pub fn clamp(columns: u16, rows: u16) -> (u16, u16) {
    (columns.clamp(SIZE_MIN, 1_000), rows.clamp(SIZE_MIN, 1_000))
}

fn emulator(columns: u16, rows: u16) -> vt100::Parser {
    let (columns, rows) = clamp(columns, rows);
    let cells = |count| NonZeroU16::new(count).unwrap_or(NonZeroU16::MIN);
    #[allow(clippy::disallowed_methods, reason = "this is the one place that clamps sizes")]
    vt100::Parser::new(cells(rows), cells(columns), SCROLLBACK_ROWS)
}

impl Pane {
    /// A pane of this size for a terminal of which nothing is known yet.
    #[must_use]
    pub fn new(session: SessionId, id: TerminalId, columns: u16, rows: u16) -> Self {
        let parser = emulator(columns, rows);
        Self { session, id, offset: 0, writing: false, exited: None, attached: false, menu: false, parser }
    }

    /// Takes in what the terminal delivered.
    pub fn take(&mut self, item: TerminalItem) {
        match item {
            TerminalItem::Output { end_offset, data } => {
                self.parser.process(&data);
                self.offset = end_offset;
            }
            TerminalItem::Screen { end_offset, data } => {
                let (columns, rows) = self.size();
                self.parser = emulator(columns, rows);
                self.parser.process(&data);
                self.offset = end_offset;
            }
            TerminalItem::Writer(writing) => self.writing = writing,
            TerminalItem::Size(columns, rows) => self.resize(columns, rows),
            TerminalItem::Exited(code) => self.exited = Some(code),
        }
    }

    /// Columns and rows.
    #[must_use]
    pub fn size(&self) -> (u16, u16) {
        let (rows, columns) = self.parser.screen().size();
        (columns.get(), rows.get())
    }

    /// Gives the emulator this size.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        let (columns, rows) = clamp(columns, rows);
        let cells = |count| NonZeroU16::new(count).unwrap_or(NonZeroU16::MIN);
        self.parser.set_size(cells(rows), cells(columns));
    }

    /// Rows scrolled back.
    #[must_use]
    pub fn scrolled(&self) -> usize {
        self.parser.screen().scrollback()
    }

    /// Scrolls by `rows`, back where positive.
    pub fn scroll(&mut self, rows: i32) {
        let distance = usize::try_from(rows.unsigned_abs()).unwrap_or(usize::MAX);
        let to = if rows < 0 { self.scrolled().saturating_sub(distance) } else { self.scrolled().saturating_add(distance) };
        self.parser.screen_mut().set_scrollback(to.min(SCROLLBACK_ROWS));
    }

    /// Back to what is written now.
    pub fn to_tail(&mut self) {
        self.parser.screen_mut().set_scrollback(0);
    }

    /// How keys are to be encoded.
    #[must_use]
    pub fn modes(&self) -> encode::Modes {
        let screen = self.parser.screen();
        encode::Modes { application_cursor: screen.application_cursor(), bracketed_paste: screen.bracketed_paste() }
    }

    /// The screen as text, for tests and for those who cannot see it.
    #[must_use]
    pub fn contents(&self) -> String {
        self.parser.screen().contents()
    }

    /// Draws the screen into `area` and tells where the cursor is, if it is seen. A terminal of another size is cut or leaves room.
    pub fn draw(&self, area: Rect, buffer: &mut Buffer, color: bool) -> Option<Position> {
        let screen = self.parser.screen();
        let (columns, rows) = self.size();
        for row in 0..rows.min(area.height) {
            for column in 0..columns.min(area.width) {
                let Some(cell) = screen.cell(row, column) else { continue };
                let Some(target) = buffer.cell_mut(Position::new(area.x + column, area.y + row)) else { continue };
                if cell.is_wide_continuation() {
                    // The letter to the left covers it, unless it was cut at the edge.
                    target.set_symbol(" ");
                    continue;
                }
                let contents = cell.contents();
                let fits = !cell.is_wide() || column + 1 < area.width;
                target.set_symbol(if contents.is_empty() || !fits { " " } else { contents });
                target.set_style(style(cell, color));
            }
        }
        let (row, column) = screen.cursor_position();
        let seen = !screen.hide_cursor() && self.scrolled() == 0 && row < area.height && column < area.width;
        seen.then(|| Position::new(area.x + column, area.y + row))
    }
}

fn style(cell: &vt100::Cell, color: bool) -> Style {
    let mut style = Style::new();
    if color {
        style = style.fg(tint(cell.fgcolor())).bg(tint(cell.bgcolor()));
    }
    let modifiers = [
        (cell.bold(), Modifier::BOLD),
        (cell.dim(), Modifier::DIM),
        (cell.italic(), Modifier::ITALIC),
        (cell.underline(), Modifier::UNDERLINED),
        (cell.inverse(), Modifier::REVERSED),
    ];
    for (set, modifier) in modifiers {
        if set {
            style = style.add_modifier(modifier);
        }
    }
    style
}

const fn tint(color: vt100::Color) -> Color {
    match color {
        vt100::Color::Default => Color::Reset,
        vt100::Color::Idx(index) => Color::Indexed(index),
        vt100::Color::Rgb(red, green, blue) => Color::Rgb(red, green, blue),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn pane(columns: u16, rows: u16) -> Pane {
        let session = "ses_00000000000000000000000001".parse().unwrap();
        Pane::new(session, "trm_00000000000000000000000001".parse().unwrap(), columns, rows)
    }

    fn output(data: &[u8]) -> TerminalItem {
        TerminalItem::Output { end_offset: data.len() as u64, data: data.to_vec() }
    }

    #[test]
    fn colours_attributes_and_cursor_are_drawn() {
        let mut pane = pane(10, 3);
        pane.take(output(b"\x1b[1;31mred\x1b[0m \x1b[7;38;5;200mx\x1b[0m\x1b[38;2;1;2;3mr"));
        let area = Rect::new(2, 1, 10, 3);
        let mut buffer = Buffer::empty(Rect::new(0, 0, 14, 5));
        let cursor = pane.draw(area, &mut buffer, true);
        assert_eq!(cursor, Some(Position::new(8, 1)));
        let cell = |column: u16| buffer.cell((2 + column, 1)).unwrap();
        assert_eq!((cell(0).symbol(), cell(0).fg), ("r", Color::Indexed(1)));
        assert!(cell(0).modifier.contains(Modifier::BOLD) && cell(4).modifier.contains(Modifier::REVERSED));
        assert_eq!((cell(4).fg, cell(5).fg), (Color::Indexed(200), Color::Rgb(1, 2, 3)));
    }

    #[test]
    fn tiny_sizes_and_cut_wide_letters_do_not_panic() {
        let mut pane = pane(0, 0);
        assert_eq!(pane.size(), (2, 2));
        pane.take(output("日本語".as_bytes()));
        pane.resize(1, 1);
        let mut buffer = Buffer::empty(Rect::new(0, 0, 1, 1));
        pane.draw(Rect::new(0, 0, 1, 1), &mut buffer, true);
    }

    #[test]
    fn a_screen_replaces_what_was_there_and_sets_the_offset() {
        let mut pane = pane(10, 3);
        pane.take(output(b"old"));
        pane.take(TerminalItem::Screen { end_offset: 900, data: b"new".to_vec() });
        assert_eq!((pane.contents().trim(), pane.offset), ("new", 900));
    }

    #[test]
    fn the_scrollback_can_be_read_and_left() {
        let mut pane = pane(10, 2);
        pane.take(output(b"1\r\n2\r\n3\r\n4"));
        pane.scroll(1);
        assert_eq!(pane.contents().trim(), "2\n3");
        pane.to_tail();
        assert_eq!(pane.contents().trim(), "3\n4");
    }
}
