//! Untrusted text on its way to a terminal.
//!
//! Agents, models and the files that they read decide what stands in titles, commands, diffs and answers. A terminal obeys control
//! characters, and bidirectional and invisible ones make a text look like another one, so all of them are made visible. Character by
//! character: a text may be cut anywhere and filtered in pieces.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character would do something else than show itself.
#[must_use]
pub const fn is_hostile(c: char) -> bool {
    matches!(c,
        '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        // Marks, embeddings, overrides and isolates of the bidirectional algorithm.
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        // Separators of lines and paragraphs that are no newline.
        | '\u{2028}' | '\u{2029}'
        // Invisible: soft hyphen, zero width space, word joiner and operators, deprecated controls, byte order mark, annotations, tags.
        | '\u{ad}' | '\u{180e}' | '\u{200b}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// `text` with every hostile character but newline and tab made visible.
#[must_use]
pub fn visible(text: &str) -> Cow<'_, str> {
    filtered(text, |c| matches!(c, '\n' | '\t'))
}

/// `text` in one line: as [`visible`], with newlines and tabs as blanks.
#[must_use]
pub fn single_line(text: &str) -> String {
    let blanks: String = text.trim().chars().map(|c| if matches!(c, '\n' | '\r' | '\t') { ' ' } else { c }).collect();
    filtered(&blanks, |_| false).into_owned()
}

fn filtered(text: &str, kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let bad = |c: char| is_hostile(c) && !kept(c);
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !bad(c) => safe.push(c),
            '\u{0}'..='\u{1f}' => {
                safe.push('^');
                safe.push(char::from_u32(u32::from(c) + 0x40).unwrap_or('?'));
            }
            '\u{7f}' => safe.push_str("^?"),
            c => {
                // Writing into a String cannot fail.
                let _ = write!(safe, "<U+{:04X}>", u32::from(c));
            }
        }
    }
    Cow::Owned(safe)
}

/// JSON `text` with the hostile characters that JSON leaves as they are escaped as JSON escapes them. Newlines are layout.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    let bad = |c: char| is_hostile(c) && c != '\n';
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if bad(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// `text` in one line of at most `width` columns.
#[must_use]
pub fn shortened(text: &str, width: usize) -> String {
    use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};
    let safe = single_line(text);
    if safe.width() <= width {
        return safe;
    }
    let mut short = String::new();
    let mut used = 1;
    for c in safe.chars() {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        short.push(c);
    }
    short.push('…');
    short
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use unicode_width::UnicodeWidthStr;

    #[test]
    fn escapes_and_bidi_controls_of_agents_become_visible() {
        let hostile = "ok\x1b]0;owned\x07\u{9b}2J\u{202e}evil\u{2069}\r\n\tend\x7f";
        assert_eq!(visible(hostile), "ok^[]0;owned^G<U+009B>2J<U+202E>evil<U+2069>^M\n\tend^?");
        assert!(!visible(hostile).chars().any(|c| is_hostile(c) && !matches!(c, '\n' | '\t')));
    }

    #[test]
    fn harmless_text_of_any_script_stays_as_it_is() {
        for text in ["plain", "größer – 日本語 🦀 👨\u{200d}👩\u{200d}👧", "a\tb\nc"] {
            assert!(matches!(visible(text), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn no_single_character_passes_that_a_terminal_obeys() {
        for c in (0..=0x10_ffff).filter_map(char::from_u32).filter(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
            assert!(!visible(&c.to_string()).contains(c), "{:x}", u32::from(c));
        }
    }

    #[test]
    fn json_stays_the_same_value_without_raw_controls() {
        let value = serde_json::json!({ "t": "\x1b\u{9b}\u{202e}\u{e0041}x\n" });
        let printed = json(&serde_json::to_string_pretty(&value).unwrap()).into_owned();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).unwrap(), value);
        assert!(!printed.chars().any(|c| is_hostile(c) && c != '\n'));
    }

    #[test]
    fn shortened_text_fits_in_columns_not_in_bytes() {
        assert_eq!(shortened("日本語日本語", 5), "日本…");
        assert_eq!(shortened("one\ntwo", 20), "one two");
        assert!(shortened(&"\x1b".repeat(50), 10).width() <= 10);
    }
}
