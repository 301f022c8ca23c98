//! Untrusted text on its way to the screen, and numbers for people.

use openagent_core::time::Timestamp;
use openagent_core::usage::Usage;

pub use crate::output::quantity::{cost as money, count, took as duration};
use crate::output::text::visible;

/// What may be shown of one text; more would make every redraw slow, and the export has it all.
pub const SHOWN_MAX_BYTES: usize = 256 * 1024;

/// `text` with every deceptive character made visible; line ends stay, tabs become spaces. Long texts are cut with a note.
#[must_use]
pub fn harmless(text: &str) -> String {
    let mut end = text.len().min(SHOWN_MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = visible(&text[..end].replace("\r\n", "\n")).replace('\t', "    ");
    if end < text.len() {
        out.push_str(&format!("\n… {} more bytes are not shown; an export has them", text.len() - end));
    }
    out
}

/// The first line of `text`, harmless.
#[must_use]
pub fn one_line(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    let end = line.char_indices().nth(500).map_or(line.len(), |(index, _)| index);
    let mut out = harmless(&line[..end]);
    if text.trim().lines().nth(1).is_some() || end < line.len() {
        out.push('…');
    }
    out
}

/// Tokens and money together.
#[must_use]
pub fn spent(usage: &Usage) -> String {
    format!("{} tok {}", count(usage.tokens.total()), money(usage.cost_micros))
}

/// How long ago `then` was, in one unit.
#[must_use]
pub fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.millis_since(then) / 1_000;
    match seconds {
        _ if then == Timestamp::default() => String::new(),
        0..60 => "now".to_owned(),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// What a match of scattered letters costs beyond one of whole words.
const SCATTERED: usize = 1_000;

/// Whether every word of `needle` occurs in `hay`, whole or as letters in that order, and how well: lower is better. Case does not count.
#[must_use]
pub fn fuzzy(needle: &str, hay: &str) -> Option<usize> {
    let hay = hay.to_lowercase();
    needle.to_lowercase().split_whitespace().map(|word| word_cost(word, &hay)).sum()
}

/// Whether every word of `needle` occurs in `hay` whole. Case does not count.
#[must_use]
pub fn has_words(needle: &str, hay: &str) -> bool {
    let hay = hay.to_lowercase();
    needle.to_lowercase().split_whitespace().all(|word| hay.contains(word))
}

fn word_cost(word: &str, hay: &str) -> Option<usize> {
    if let Some(at) = hay.find(word) {
        return Some(at);
    }
    let mut rest = hay.chars();
    let mut skipped = 0;
    for letter in word.chars() {
        skipped += rest.by_ref().position(|candidate| candidate == letter)?;
    }
    Some(SCATTERED + skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_deceive_is_seen() {
        assert_eq!(harmless("a\u{1b}[31m\u{202e}b\r\nc\td\u{7f}"), "a^[[31m<U+202E>b\nc    d^?");
    }

    #[test]
    fn ages_are_short() {
        let at = |seconds: i64| Timestamp::from_millis(1_000 + seconds * 1_000);
        assert_eq!(age(at(0), at(59)), "now");
        assert_eq!(age(at(0), at(7_200)), "2h");
    }

    #[test]
    fn letters_in_order_match() {
        assert!(fuzzy("gpt4", "openai/gpt-4o").is_some());
        assert_eq!(fuzzy("xg", "openai/gpt"), None);
        assert!(fuzzy("demo", "a long name: demo/tour") < fuzzy("demo", "d-e-m-o"));
        assert!(has_words("fast PARSER", "make the parser faster") && !has_words("psr", "parser"));
    }
}
