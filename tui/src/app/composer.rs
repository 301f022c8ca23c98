//! The field in which prompts are written, with the prompts that were sent as its history.

use crossterm::event::KeyEvent;
use openagent_core::session::PROMPT_MAX_BYTES;
use ratatui::style::{Modifier, Style};
use ratatui_textarea::{CursorMove, TextArea, WrapMode};
use unicode_width::UnicodeWidthStr;

/// A prompt that is being written.
#[derive(Debug)]
pub struct Composer {
    area: TextArea<'static>,
    /// Which prompt of the history is shown, counted from the last; and what was written before.
    recalled: Option<(usize, String)>,
}

impl Default for Composer {
    fn default() -> Self {
        Self { area: fresh(""), recalled: None }
    }
}

fn fresh(text: &str) -> TextArea<'static> {
    let mut area = TextArea::from(text.split('\n'));
    area.set_cursor_line_style(Style::new());
    area.set_cursor_style(Style::new().add_modifier(Modifier::REVERSED));
    area.set_wrap_mode(WrapMode::WordOrGlyph);
    area.set_placeholder_text("Write a prompt");
    area.set_placeholder_style(Style::new().add_modifier(Modifier::DIM));
    area.move_cursor(CursorMove::Bottom);
    area.move_cursor(CursorMove::End);
    area
}

impl Composer {
    /// What was written.
    #[must_use]
    pub fn text(&self) -> String {
        self.area.lines().join("\n")
    }

    /// Whether nothing but space was written.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.area.lines().iter().all(|line| line.trim().is_empty())
    }

    /// Replaces what was written.
    pub fn set(&mut self, text: &str) {
        self.area = fresh(text);
        self.recalled = None;
    }

    /// Takes what was written out.
    pub fn take(&mut self) -> String {
        let text = self.text();
        self.set("");
        text
    }

    /// Edits.
    pub fn key(&mut self, key: KeyEvent) {
        // Undoing is kept, the clipboard of the field's own is not offered: the terminal has a better one.
        self.area.input(key);
    }

    /// Inserts pasted text. Nothing in it is a command.
    pub fn paste(&mut self, text: &str) {
        let text: String = text.replace("\r\n", "\n").replace('\r', "\n");
        let room = PROMPT_MAX_BYTES.saturating_sub(self.text().len());
        let mut end = text.len().min(room);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let clean: String = text[..end].chars().filter(|letter| matches!(letter, '\n' | '\t') || !letter.is_control()).collect();
        self.area.insert_str(clean);
    }

    /// Adds a line.
    pub fn newline(&mut self) {
        self.area.insert_newline();
    }

    /// Shows the prompt before, if the cursor is in the first line; whether it did.
    pub fn earlier(&mut self, history: &[String]) -> bool {
        if self.area.screen_cursor().row != 0 {
            return false;
        }
        let next = self.recalled.as_ref().map_or(0, |(index, _)| index + 1);
        let Some(prompt) = history.len().checked_sub(next + 1).and_then(|index| history.get(index)) else { return true };
        let draft = self.recalled.take().map_or_else(|| self.text(), |(_, draft)| draft);
        self.area = fresh(prompt);
        self.area.move_cursor(CursorMove::Top);
        self.recalled = Some((next, draft));
        true
    }

    /// Shows the prompt after, if one was recalled; whether it did.
    pub fn later(&mut self, history: &[String]) -> bool {
        let Some((index, draft)) = self.recalled.take() else { return false };
        if index == 0 {
            self.area = fresh(&draft);
            return true;
        }
        let prompt = history.len().checked_sub(index).and_then(|index| history.get(index)).map_or("", String::as_str);
        self.area = fresh(prompt);
        self.recalled = Some((index - 1, draft));
        true
    }

    /// Rows it wants at a width.
    #[must_use]
    pub fn rows(&self, width: u16) -> u16 {
        let width = usize::from(width).max(1);
        let rows: usize = self.area.lines().iter().map(|line| line.width() / width + 1).sum();
        u16::try_from(rows).unwrap_or(u16::MAX)
    }

    /// The field as a widget.
    #[must_use]
    pub const fn area(&self) -> &TextArea<'static> {
        &self.area
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_goes_back_and_forth_and_keeps_the_draft() {
        let history = ["one".to_owned(), "two".to_owned()];
        let mut composer = Composer::default();
        composer.paste("draft");
        for expected in ["two", "one", "one"] {
            assert!(composer.earlier(&history));
            assert_eq!(composer.text(), expected);
        }
        assert!(composer.later(&history));
        assert_eq!(composer.text(), "two");
        assert!(composer.later(&history));
        assert_eq!(composer.text(), "draft");
        assert!(!composer.later(&history));
    }

    #[test]
    fn a_paste_keeps_its_lines_and_loses_control_characters() {
        let mut composer = Composer::default();
        composer.paste("a\r\nb\u{1b}[31m");
        assert_eq!(composer.text(), "a\nb[31m");
    }
}
