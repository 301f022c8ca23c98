//! Markdown as agents write it, as styled lines. Marks that carry meaning without colour stay visible: bullets, quote bars, `#` of
//! headings, addresses of links. The text must have been made harmless before.

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr;

use super::theme::Theme;
use super::wrap::{Break, pad, wrap};

/// A block that stands inside a list item or quote: what is put before its first row and before the others.
struct Container {
    first: String,
    rest: String,
    opened: bool,
}

struct Writer {
    theme: Theme,
    width: usize,
    rows: Vec<Line<'static>>,
    inline: Vec<Span<'static>>,
    styles: Vec<Style>,
    containers: Vec<Container>,
    lists: Vec<Option<u64>>,
    links: Vec<(String, usize)>,
    code: Option<String>,
    table: Option<Vec<Vec<String>>>,
    wants_gap: bool,
}

/// Lays `text` out in `width` columns.
#[must_use]
pub fn render(text: &str, width: usize, theme: Theme) -> Vec<Line<'static>> {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    let mut writer = Writer {
        theme,
        width: width.max(1),
        rows: Vec::new(),
        inline: Vec::new(),
        styles: vec![Style::new()],
        containers: Vec::new(),
        lists: Vec::new(),
        links: Vec::new(),
        code: None,
        table: None,
        wants_gap: false,
    };
    for event in Parser::new_ext(text, options) {
        writer.take(event);
    }
    writer.flush();
    writer.rows
}

impl Writer {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) => self.text(&text),
            Event::Code(text) => {
                let style = self.style().patch(self.theme.code());
                self.push(&text, style);
            }
            Event::Html(text) | Event::InlineHtml(text) | Event::InlineMath(text) | Event::DisplayMath(text) => self.text(&text),
            Event::FootnoteReference(name) => self.text(&format!("[{name}]")),
            Event::SoftBreak => self.text(" "),
            Event::HardBreak => self.flush(),
            Event::Rule => {
                self.gap();
                let style = self.theme.dim();
                self.push(&"─".repeat(self.width.min(40)), style);
                self.flush();
                self.wants_gap = true;
            }
            Event::TaskListMarker(done) => self.text(if done { "[x] " } else { "[ ] " }),
        }
    }

    fn style(&self) -> Style {
        self.styles.last().copied().unwrap_or_default()
    }

    fn enter(&mut self, style: Style) {
        self.styles.push(self.style().patch(style));
    }

    fn push(&mut self, text: &str, style: Style) {
        if let Some(row) = self.table.as_mut().and_then(|rows| rows.last_mut()) {
            if let Some(cell) = row.last_mut() {
                cell.push_str(text);
            }
            return;
        }
        self.inline.push(Span::styled(text.to_owned(), style));
    }

    fn text(&mut self, text: &str) {
        match &mut self.code {
            Some(code) => code.push_str(text),
            None => {
                // Block HTML comes with its line ends, paragraphs never do.
                let mut lines = text.split('\n').peekable();
                while let Some(line) = lines.next() {
                    let style = self.style();
                    self.push(line, style);
                    if lines.peek().is_some() {
                        self.flush();
                    }
                }
            }
        }
    }

    fn prefixes(&mut self) -> (Span<'static>, Span<'static>) {
        let mut first = String::new();
        let mut rest = String::new();
        for container in &mut self.containers {
            first.push_str(if container.opened { &container.rest } else { &container.first });
            rest.push_str(&container.rest);
            container.opened = true;
        }
        (Span::styled(first, self.theme.dim()), Span::styled(rest, self.theme.dim()))
    }

    fn gap(&mut self) {
        self.flush();
        if self.wants_gap && !self.rows.is_empty() {
            let rest: String =
                self.containers.iter().map(|container| if container.opened { container.rest.as_str() } else { "" }).collect();
            self.rows.push(Line::from(Span::styled(rest.trim_end().to_owned(), self.theme.dim())));
        }
        self.wants_gap = false;
    }

    fn flush(&mut self) {
        if self.inline.is_empty() {
            return;
        }
        let inline = std::mem::take(&mut self.inline);
        let (first, rest) = self.prefixes();
        self.rows.extend(wrap(&inline, self.width, Break::Words, &first, &rest));
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Paragraph => self.gap(),
            Tag::Heading { level, .. } => {
                self.gap();
                self.enter(self.theme.accent().add_modifier(Modifier::BOLD));
                let marks = match level {
                    HeadingLevel::H1 => "# ",
                    HeadingLevel::H2 => "## ",
                    HeadingLevel::H3 => "### ",
                    HeadingLevel::H4 | HeadingLevel::H5 | HeadingLevel::H6 => "#### ",
                };
                let style = self.theme.dim();
                self.push(marks, style);
            }
            Tag::BlockQuote(_) => {
                self.gap();
                self.containers.push(Container { first: "│ ".into(), rest: "│ ".into(), opened: false });
            }
            Tag::CodeBlock(kind) => {
                self.gap();
                if let CodeBlockKind::Fenced(language) = &kind
                    && !language.is_empty()
                {
                    let style = self.theme.dim();
                    self.push(&format!("  {language}"), style);
                    self.flush();
                }
                self.code = Some(String::new());
            }
            Tag::List(start) => {
                if self.lists.is_empty() {
                    self.gap();
                }
                self.flush();
                self.wants_gap = false;
                self.lists.push(start);
            }
            Tag::Item => {
                self.flush();
                let marker = match self.lists.last_mut() {
                    Some(Some(number)) => {
                        let marker = format!("{number}. ");
                        *number += 1;
                        marker
                    }
                    Some(None) | None => "• ".to_owned(),
                };
                let rest = " ".repeat(marker.width());
                self.containers.push(Container { first: marker, rest, opened: false });
                self.wants_gap = false;
            }
            Tag::Emphasis => self.enter(Style::new().add_modifier(Modifier::ITALIC)),
            Tag::Strong => self.enter(Style::new().add_modifier(Modifier::BOLD)),
            Tag::Strikethrough => self.enter(Style::new().add_modifier(Modifier::CROSSED_OUT)),
            Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. } => {
                self.links.push((dest_url.to_string(), self.inline.len()));
                self.enter(Style::new().add_modifier(Modifier::UNDERLINED));
            }
            Tag::Table(_) => {
                self.gap();
                self.table = Some(Vec::new());
            }
            Tag::TableHead | Tag::TableRow => {
                if let Some(rows) = &mut self.table {
                    rows.push(Vec::new());
                }
            }
            Tag::TableCell => {
                if let Some(row) = self.table.as_mut().and_then(|rows| rows.last_mut()) {
                    row.push(String::new());
                }
            }
            Tag::HtmlBlock
            | Tag::FootnoteDefinition(_)
            | Tag::DefinitionList
            | Tag::DefinitionListTitle
            | Tag::DefinitionListDefinition
            | Tag::Superscript
            | Tag::Subscript
            | Tag::MetadataBlock(_) => self.gap(),
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Paragraph | TagEnd::HtmlBlock => {
                self.flush();
                self.wants_gap = true;
            }
            TagEnd::Heading(_) => {
                self.styles.pop();
                self.flush();
                self.wants_gap = true;
            }
            TagEnd::BlockQuote(_) => {
                self.flush();
                self.containers.pop();
                self.wants_gap = true;
            }
            TagEnd::CodeBlock => {
                let code = self.code.take().unwrap_or_default();
                for line in code.trim_end_matches('\n').split('\n') {
                    let (first, rest) = self.prefixes();
                    let indent = |prefix: Span<'static>| Span::styled(format!("{}  ", prefix.content), prefix.style);
                    let spans = [Span::styled(line.to_owned(), self.theme.code())];
                    self.rows.extend(wrap(&spans, self.width, Break::Letters, &indent(first), &indent(rest)));
                }
                self.wants_gap = true;
            }
            TagEnd::List(_) => {
                self.flush();
                self.lists.pop();
                self.wants_gap = self.lists.is_empty();
            }
            TagEnd::Item => {
                self.flush();
                if self.containers.last().is_some_and(|item| !item.opened) {
                    let (first, _) = self.prefixes();
                    self.rows.push(Line::from(first));
                }
                self.containers.pop();
            }
            TagEnd::Emphasis | TagEnd::Strong | TagEnd::Strikethrough => {
                self.styles.pop();
            }
            TagEnd::Link | TagEnd::Image => {
                self.styles.pop();
                if let Some((address, from)) = self.links.pop() {
                    let shown: String = self.inline.iter().skip(from).map(|span| span.content.as_ref()).collect();
                    if shown != address && !address.is_empty() {
                        let style = self.theme.dim();
                        self.push(&format!(" ({address})"), style);
                    }
                }
            }
            TagEnd::Table => self.end_table(),
            TagEnd::TableHead
            | TagEnd::TableRow
            | TagEnd::TableCell
            | TagEnd::FootnoteDefinition
            | TagEnd::DefinitionList
            | TagEnd::DefinitionListTitle
            | TagEnd::DefinitionListDefinition
            | TagEnd::Superscript
            | TagEnd::Subscript
            | TagEnd::MetadataBlock(_) => {}
        }
    }

    fn end_table(&mut self) {
        let table = self.table.take().unwrap_or_default();
        let columns = table.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        for row in &table {
            for (column, cell) in row.iter().enumerate() {
                widths[column] = widths[column].max(cell.width());
            }
        }
        for (index, row) in table.iter().enumerate() {
            let cells: Vec<String> = row.iter().enumerate().map(|(column, cell)| pad(cell, widths[column])).collect();
            let style = if index == 0 { self.theme.strong() } else { Style::new() };
            let (first, rest) = self.prefixes();
            let line = cells.join(" │ ");
            self.rows.extend(wrap(&[Span::styled(line.trim_end().to_owned(), style)], self.width, Break::Words, &first, &rest));
        }
        self.wants_gap = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str, width: usize) -> Vec<String> {
        render(text, width, Theme { color: false }).iter().map(|line| line.to_string().trim_end().to_owned()).collect()
    }

    #[test]
    fn headings_paragraphs_and_lists_keep_their_marks() {
        let text = "# Title\n\nSome *words* here.\n\n- one\n- two\n  - inner\n\n3. three\n4. four";
        assert_eq!(plain(text, 40), ["# Title", "", "Some words here.", "", "• one", "• two", "  • inner", "", "3. three", "4. four"]);
    }

    #[test]
    fn quotes_and_links_are_told_without_colour() {
        assert_eq!(plain("> said\n> so\n\n[docs](https://x.test)", 40), ["│ said so", "", "docs (https://x.test)"]);
    }

    #[test]
    fn code_keeps_its_lines() {
        assert_eq!(plain("```rust\nfn main() {\n    x();\n}\n```", 40), ["  rust", "  fn main() {", "      x();", "  }"]);
    }

    #[test]
    fn long_items_hang() {
        assert_eq!(plain("- aaa bbb ccc", 8), ["• aaa", "  bbb", "  ccc"]);
    }

    #[test]
    fn tables_line_up() {
        assert_eq!(plain("|a|bb|\n|-|-|\n|ccc|d|", 40), ["a   │ bb", "ccc │ d"]);
    }

    #[test]
    fn unfinished_marks_do_not_panic() {
        for text in ["```", "**bo", "- ", "> ", "[a](", "|a|\n|-", "1. ", "# "] {
            let _ = plain(text, 1);
        }
    }
}
