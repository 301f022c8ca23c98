//! Aligned columns, measured as a terminal shows them.

use unicode_width::UnicodeWidthStr;

/// Blanks between two columns.
const GAP: &str = "  ";

/// Rows of cells under a headline.
#[derive(Debug, Clone)]
pub struct Table {
    heads: Vec<&'static str>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these heads; a head that begins with `>` is that of a column aligned to the right.
    #[must_use]
    pub fn new(heads: &[&'static str]) -> Self {
        let right = heads.iter().map(|head| head.starts_with('>')).collect();
        Self { heads: heads.iter().map(|head| head.trim_start_matches('>')).collect(), right, rows: Vec::new() }
    }

    /// Adds a row, whose cells are safe texts in one line.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text, one line a row.
    #[must_use]
    pub fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width());
            cells.chain([self.heads[column].width()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        let heads: Vec<String> = self.heads.iter().map(ToString::to_string).collect();
        let mut text = String::new();
        for row in std::iter::once(&heads).chain(&self.rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate().take(widths.len()) {
                let blanks = " ".repeat(widths[column].saturating_sub(cell.width()));
                let (before, after) = if self.right[column] { (blanks.as_str(), "") } else { ("", blanks.as_str()) };
                if column > 0 {
                    line.push_str(GAP);
                }
                line.extend([before, cell, after]);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_where_characters_are_wide() {
        let mut table = Table::new(&["ID", ">TOKENS", "TITLE"]);
        table.row(["日本".into(), "5".into(), "a".into()]);
        table.row(["x".into(), "1234567".into(), String::new()]);
        assert_eq!(table.render(), "ID     TOKENS  TITLE\n日本        5  a\nx     1234567\n");
    }
}
