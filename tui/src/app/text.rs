//! Untrusted text on its way to the screen, and numbers for people.

use openagent_core::time::Timestamp;
use openagent_core::usage::Usage;

/// What may be shown of one text; more would make every redraw slow, and the export has it all.
pub const SHOWN_MAX_BYTES: usize = 256 * 1024;

/// Whether a terminal or a reader could be deceived by `letter`: control characters, and those that change the direction of text or are
/// not seen at all.
fn is_deceptive(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' | '\u{061c}' | '\u{00ad}')
}

/// `text` with every deceptive character made visible; line ends stay, tabs become spaces. Long texts are cut with a note.
#[must_use]
pub fn harmless(text: &str) -> String {
    let mut end = text.len().min(SHOWN_MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = String::with_capacity(end);
    for letter in text[..end].replace("\r\n", "\n").chars() {
        match letter {
            '\n' => out.push('\n'),
            '\t' => out.push_str("    "),
            // Zero width joiners hold emoji together; they cannot reorder anything.
            '\u{200d}' => out.push(letter),
            '\0'..='\u{1f}' => out.push(char::from_u32(0x2400 + letter as u32).unwrap_or('␦')),
            '\u{7f}' => out.push('␡'),
            _ if is_deceptive(letter) => out.push_str(&format!("<U+{:04X}>", letter as u32)),
            _ => out.push(letter),
        }
    }
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

/// A number of things, short: `950`, `12.3k`, `4.5M`.
#[must_use]
pub fn count(number: u64) -> String {
    let tenths = |unit: u64| format!("{}.{}", number / unit, number % unit * 10 / unit);
    match number {
        0..1_000 => number.to_string(),
        1_000..1_000_000 => tenths(1_000) + "k",
        _ => tenths(1_000_000) + "M",
    }
}

/// Money, with as many digits as matter.
#[must_use]
pub fn money(micros: u64) -> String {
    if micros < 10_000 && micros > 0 {
        return format!("${}.{:04}", micros / 1_000_000, micros % 1_000_000 / 100);
    }
    format!("${}.{:02}", micros / 1_000_000, micros % 1_000_000 / 10_000)
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

/// A duration in milliseconds.
#[must_use]
pub fn duration(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        _ => format!("{}m {:02}s", millis / 60_000, millis / 1_000 % 60),
    }
}

/// Whether the letters of `needle` occur in `hay` in that order, and how well: lower is better. Case does not count.
#[must_use]
pub fn fuzzy(needle: &str, hay: &str) -> Option<usize> {
    let hay: Vec<char> = hay.to_lowercase().chars().collect();
    let mut cost = 0;
    let mut at = 0;
    for letter in needle.to_lowercase().chars().filter(|letter| !letter.is_whitespace()) {
        let skipped = hay[at..].iter().position(|candidate| *candidate == letter)?;
        cost += skipped;
        at += skipped + 1;
    }
    Some(cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_deceive_is_seen() {
        assert_eq!(harmless("a\u{1b}[31m\u{202e}b\r\nc\td\u{7f}"), "a␛[31m<U+202E>b\nc    d␡");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([count(999), count(1_234), count(4_560_000)], ["999", "1.2k", "4.5M"]);
        assert_eq!([money(0), money(2_400), money(1_230_000)], ["$0.00", "$0.0024", "$1.23"]);
        let at = |seconds: i64| Timestamp::from_millis(1_000 + seconds * 1_000);
        assert_eq!(age(at(0), at(59)), "now");
        assert_eq!(age(at(0), at(7_200)), "2h");
        assert_eq!(duration(61_000), "1m 01s");
    }

    #[test]
    fn letters_in_order_match() {
        assert!(fuzzy("gpt4", "openai/gpt-4o").is_some());
        assert_eq!(fuzzy("xg", "openai/gpt"), None);
        assert!(fuzzy("demo", "demo/tour") < fuzzy("demo", "d-e-m-o"));
    }
}
