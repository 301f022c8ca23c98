//! Breaking styled text into lines of a width, by grapheme clusters and display columns.

use ratatui::style::Style;
use ratatui::text::{Line, Span};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// Where a line may be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Behind spaces; inside a word only where it is wider than a line.
    Words,
    /// Anywhere: output and code keep their columns.
    Letters,
}

#[derive(Clone, Copy)]
struct Letter<'a> {
    text: &'a str,
    style: Style,
    width: usize,
}

/// Breaks one logical line. `first` stands before its first row, `rest` before the others; both count towards `width`. Rows are never
/// empty: an empty line is one row.
#[must_use]
pub fn wrap(spans: &[Span<'_>], width: usize, at: Break, first: &Span<'static>, rest: &Span<'static>) -> Vec<Line<'static>> {
    let letters: Vec<Letter<'_>> = spans
        .iter()
        .flat_map(|span| span.content.graphemes(true).map(|text| Letter { text, style: span.style, width: text.width() }))
        .collect();
    let mut rows = Vec::new();
    let mut start = 0;
    loop {
        let prefix = if rows.is_empty() { first } else { rest };
        let room = width.saturating_sub(prefix.content.width()).max(1);
        let end = row_end(&letters[start..], room, at) + start;
        let mut shown = end;
        // The space at which a row was broken belongs to neither row.
        if at == Break::Words && end < letters.len() {
            while shown > start + 1 && letters[shown - 1].text == " " {
                shown -= 1;
            }
        }
        rows.push(row(prefix, &letters[start..shown]));
        start = end;
        while at == Break::Words && start < letters.len() && letters[start].text == " " {
            start += 1;
        }
        if start >= letters.len() {
            return rows;
        }
    }
}

/// How many letters fit into a row of `room` columns; at least one, if there is one.
fn row_end(letters: &[Letter<'_>], room: usize, at: Break) -> usize {
    let mut used = 0;
    let mut last_break = 0;
    for (index, letter) in letters.iter().enumerate() {
        used += letter.width;
        if used > room {
            return match at {
                Break::Words if letter.text == " " => index.max(1),
                Break::Words if last_break > 0 => last_break,
                Break::Words | Break::Letters => index.max(1),
            };
        }
        if letter.text == " " {
            last_break = index + 1;
        }
    }
    letters.len()
}

fn row(prefix: &Span<'static>, letters: &[Letter<'_>]) -> Line<'static> {
    let mut spans: Vec<Span<'static>> = Vec::new();
    if !prefix.content.is_empty() {
        spans.push(prefix.clone());
    }
    let mut run = String::new();
    let mut style = Style::new();
    for letter in letters {
        if letter.style != style && !run.is_empty() {
            spans.push(Span::styled(std::mem::take(&mut run), style));
        }
        style = letter.style;
        run.push_str(letter.text);
    }
    if !run.is_empty() {
        spans.push(Span::styled(run, style));
    }
    Line::from(spans)
}

/// Breaks a text of several lines, all of one style and behind the same prefix.
#[must_use]
pub fn wrap_text(text: &str, style: Style, width: usize, at: Break, prefix: &Span<'static>) -> Vec<Line<'static>> {
    text.split('\n').flat_map(|line| wrap(&[Span::styled(line, style)], width, at, prefix, prefix)).collect()
}

/// `text` in at most `width` columns, with `…` where something was cut.
#[must_use]
pub fn fit(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for letter in text.graphemes(true) {
        used += letter.width();
        if used + 1 > width {
            break;
        }
        out.push_str(letter);
    }
    if width > 0 {
        out.push('…');
    }
    out
}

/// `text` in exactly `width` columns.
#[must_use]
pub fn pad(text: &str, width: usize) -> String {
    let mut out = fit(text, width);
    let missing = width.saturating_sub(out.width());
    out.extend(std::iter::repeat_n(' ', missing));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str, width: usize, at: Break) -> Vec<String> {
        wrap_text(text, Style::new(), width, at, &Span::raw("")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn words_stay_whole_where_they_fit() {
        assert_eq!(rows("one two three", 8, Break::Words), ["one two", "three"]);
        assert_eq!(rows("abcdefghij", 4, Break::Words), ["abcd", "efgh", "ij"]);
    }

    #[test]
    fn wide_letters_count_two_columns_and_are_not_split() {
        assert_eq!(rows("日本語", 5, Break::Letters), ["日本", "語"]);
        assert_eq!(rows("日", 1, Break::Letters), ["日"]);
    }

    #[test]
    fn an_empty_line_is_one_row() {
        assert_eq!(rows("a\n\nb", 5, Break::Words), ["a", "", "b"]);
    }

    #[test]
    fn what_is_cut_says_so() {
        assert_eq!(fit("abcdef", 4), "abc…");
        assert_eq!(pad("ab", 4), "ab  ");
    }
}
