//! A field of one line. Its text is wiped when the field goes, since it may hold a key.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use zeroize::Zeroizing;

use openagent_core::secret::SECRET_MAX_BYTES;

/// Longest text of a field, in bytes; the longest is a key.
const FIELD_MAX_BYTES: usize = SECRET_MAX_BYTES;

/// A field of one line.
#[derive(Clone)]
pub struct Field {
    text: Zeroizing<String>,
    cursor: usize,
}

impl Default for Field {
    fn default() -> Self {
        Self { text: Zeroizing::new(String::new()), cursor: 0 }
    }
}

impl std::fmt::Debug for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Field({} bytes)", self.text.len())
    }
}

impl Field {
    /// A field that holds `text`, with the cursor behind it.
    #[must_use]
    pub fn with(text: &str) -> Self {
        let mut field = Self::default();
        field.insert(text);
        field
    }

    /// An empty field that never moves its text, so that no copy of a key is left behind.
    #[must_use]
    pub fn for_secret() -> Self {
        Self { text: Zeroizing::new(String::with_capacity(FIELD_MAX_BYTES)), cursor: 0 }
    }

    /// Its text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Byte offset of the cursor.
    #[must_use]
    pub const fn cursor(&self) -> usize {
        self.cursor
    }

    /// How many characters it holds.
    #[must_use]
    pub fn chars(&self) -> usize {
        self.text.chars().count()
    }

    /// Inserts `text` at the cursor, without line ends and other control characters. What does not fit is left out.
    pub fn insert(&mut self, text: &str) {
        for letter in text.chars().filter(|letter| !letter.is_control()) {
            if self.text.len() + letter.len_utf8() > FIELD_MAX_BYTES {
                return;
            }
            self.text.insert(self.cursor, letter);
            self.cursor += letter.len_utf8();
        }
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.text.clear();
        self.cursor = 0;
    }

    fn before(&self) -> usize {
        self.text[..self.cursor].char_indices().next_back().map_or(0, |(index, _)| index)
    }

    fn behind(&self) -> usize {
        self.text[self.cursor..].chars().next().map_or(self.cursor, |letter| self.cursor + letter.len_utf8())
    }

    fn cut(&mut self, from: usize, to: usize) {
        self.text.replace_range(from..to, "");
        self.cursor = from;
    }

    /// Edits; whether the key meant something.
    pub fn key(&mut self, key: &KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('u') if control => self.cut(0, self.cursor),
            KeyCode::Char('k') if control => self.cut(self.cursor, self.text.len()),
            KeyCode::Char('a') if control => self.cursor = 0,
            KeyCode::Char('e') if control => self.cursor = self.text.len(),
            KeyCode::Char('w') if control => {
                let word = self.text[..self.cursor].trim_end();
                let from = word.rfind(' ').map_or(0, |index| index + 1);
                self.cut(from, self.cursor);
            }
            KeyCode::Char(letter) if !control && !key.modifiers.contains(KeyModifiers::ALT) => {
                self.insert(letter.encode_utf8(&mut [0; 4]));
            }
            KeyCode::Backspace => self.cut(self.before(), self.cursor),
            KeyCode::Delete => self.cut(self.cursor, self.behind()),
            KeyCode::Left => self.cursor = self.before(),
            KeyCode::Right => self.cursor = self.behind(),
            KeyCode::Home => self.cursor = 0,
            KeyCode::End => self.cursor = self.text.len(),
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(field: &mut Field, code: KeyCode) {
        field.key(&KeyEvent::new(code, KeyModifiers::NONE));
    }

    #[test]
    fn edits_respect_letters_of_several_bytes() {
        let mut field = Field::with("aéb");
        press(&mut field, KeyCode::Left);
        press(&mut field, KeyCode::Backspace);
        assert_eq!((field.text(), field.cursor()), ("ab", 1));
        press(&mut field, KeyCode::Delete);
        press(&mut field, KeyCode::Delete);
        assert_eq!(field.text(), "a");
    }

    #[test]
    fn a_pasted_key_loses_its_line_end_and_debug_shows_nothing() {
        let mut field = Field::for_secret();
        field.insert("sk-canary\r\n");
        assert_eq!(field.text(), "sk-canary");
        assert_eq!(format!("{field:?}"), "Field(9 bytes)");
    }
}
