//! A terminal's screen as a picture: an SVG that needs no font of its own and no program to make it.
//!
//! Text stays text. Every run of one style is stretched to the width of its cells, so that columns stand in line in whatever monospaced font is at
//! hand; lines and blocks are drawn as shapes, because their glyphs rarely meet.

use std::fmt::Write;

/// Width of a cell in pixels.
const CELL_WIDTH: f64 = 8.4;
/// Height of a cell in pixels.
const CELL_HEIGHT: f64 = 18.0;
/// From the upper edge of a cell to its baseline.
const BASELINE: f64 = 13.5;
/// Around the screen.
const MARGIN: f64 = 16.0;
/// Height of the window's title bar.
const TITLE_HEIGHT: f64 = 34.0;

const BACKGROUND: &str = "#16191f";
const FOREGROUND: &str = "#d4d8e0";
const FRAME: &str = "#363c48";

/// The sixteen named colours.
const NAMED: [&str; 16] = [
    "#2b303b", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#c8ccd4", "#5c6370", "#ef7f88", "#a9d58a", "#f0cd8b",
    "#74bdfa", "#d48ceb", "#6bcbd7", "#ffffff",
];

/// Levels of the colour cube.
const CUBE: [u8; 6] = [0, 95, 135, 175, 215, 255];

fn colour(colour: vt100::Color, default: &str) -> String {
    match colour {
        vt100::Color::Default => default.to_owned(),
        vt100::Color::Rgb(red, green, blue) => format!("#{red:02x}{green:02x}{blue:02x}"),
        vt100::Color::Idx(index) => match index {
            0..16 => NAMED[usize::from(index)].to_owned(),
            16..232 => {
                let level = |step: u8| CUBE[usize::from((index - 16) / step % 6)];
                format!("#{:02x}{:02x}{:02x}", level(36), level(6), level(1))
            }
            232.. => {
                let grey = 8 + (index - 232) * 10;
                format!("#{grey:02x}{grey:02x}{grey:02x}")
            }
        },
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Style {
    foreground: String,
    background: String,
    bold: bool,
    dim: bool,
    italic: bool,
    underline: bool,
}

impl Style {
    fn of(cell: &vt100::Cell) -> Self {
        let mut style = Self {
            foreground: colour(cell.fgcolor(), FOREGROUND),
            background: colour(cell.bgcolor(), BACKGROUND),
            bold: cell.bold(),
            dim: cell.dim(),
            italic: cell.italic(),
            underline: cell.underline(),
        };
        if cell.inverse() {
            std::mem::swap(&mut style.foreground, &mut style.background);
        }
        style
    }

    fn attributes(&self) -> String {
        let mut attributes = format!(" fill=\"{}\"", self.foreground);
        for (set, attribute) in [
            (self.bold, " font-weight=\"bold\""),
            (self.dim, " fill-opacity=\"0.6\""),
            (self.italic, " font-style=\"italic\""),
            (self.underline, " text-decoration=\"underline\""),
        ] {
            if set {
                attributes.push_str(attribute);
            }
        }
        attributes
    }
}

/// Where a line character has arms: left, right, up, down.
fn arms(letter: &str) -> Option<[bool; 4]> {
    Some(match letter {
        "─" => [true, true, false, false],
        "│" => [false, false, true, true],
        "┌" => [false, true, false, true],
        "┐" => [true, false, false, true],
        "└" => [false, true, true, false],
        "┘" => [true, false, true, false],
        "├" => [false, true, true, true],
        "┤" => [true, false, true, true],
        _ => return None,
    })
}

/// The part of a cell's width that a block character fills.
fn filled(letter: &str) -> Option<f64> {
    Some(match letter {
        "█" => 1.0,
        "▌" => 0.5,
        "▍" => 0.375,
        "▎" => 0.25,
        "▏" => 0.125,
        _ => return None,
    })
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A run of cells of one style and kind.
struct Run {
    column: u16,
    columns: u16,
    text: String,
    style: Style,
    plain: bool,
}

/// The runs of a row; shapes and letters beyond ASCII stand alone, because fonts differ most in those.
fn runs(screen: &vt100::Screen, row: u16) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let (_, columns) = screen.size();
    for column in 0..columns.get() {
        let Some(cell) = screen.cell(row, column).filter(|cell| !cell.is_wide_continuation()) else { continue };
        let text = if cell.has_contents() { cell.contents() } else { " " };
        let (style, plain, width) = (Style::of(cell), text.is_ascii(), if cell.is_wide() { 2 } else { 1 });
        match runs.last_mut() {
            Some(run) if run.style == style && run.plain && plain => {
                run.text.push_str(text);
                run.columns += width;
            }
            _ => runs.push(Run { column, columns: width, text: text.to_owned(), style, plain }),
        }
    }
    runs
}

fn draw(svg: &mut String, run: &Run, x: f64, y: f64) {
    let width = f64::from(run.columns) * CELL_WIDTH;
    let Style { foreground, background, dim, .. } = &run.style;
    let opacity = if *dim { " opacity=\"0.6\"" } else { "" };
    if background != BACKGROUND {
        let _ = writeln!(svg, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{CELL_HEIGHT}\" fill=\"{background}\"/>");
    }
    if let Some([left, right, up, down]) = arms(&run.text) {
        let (middle, centre) = (x + width / 2.0, y + CELL_HEIGHT / 2.0);
        let mut path = String::new();
        for (set, to_x, to_y) in [(left, x, centre), (right, x + width, centre), (up, middle, y), (down, middle, y + CELL_HEIGHT)] {
            if set {
                let _ = write!(path, "M{middle:.1} {centre:.1}L{to_x:.1} {to_y:.1}");
            }
        }
        let _ = writeln!(svg, "<path d=\"{path}\" stroke=\"{foreground}\"{opacity}/>");
    } else if let Some(part) = filled(&run.text) {
        let width = width * part;
        let _ =
            writeln!(svg, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{CELL_HEIGHT}\" fill=\"{foreground}\"{opacity}/>");
    } else if !run.text.trim().is_empty() {
        // Blanks at the ends say nothing, and not every viewer stretches over them.
        let before = run.text.len() - run.text.trim_start().len();
        let text = run.text.trim();
        let before = u16::try_from(before).map_or(0.0, |columns| f64::from(columns) * CELL_WIDTH);
        let columns = if run.plain { u16::try_from(text.len()).unwrap_or(run.columns) } else { run.columns };
        let _ = writeln!(
            svg,
            "<text xml:space=\"preserve\" x=\"{:.1}\" y=\"{:.1}\" textLength=\"{:.1}\" lengthAdjust=\"spacingAndGlyphs\"{}>{}</text>",
            x + before,
            y + BASELINE,
            f64::from(columns) * CELL_WIDTH,
            run.style.attributes(),
            escaped(text),
        );
    }
}

/// The screen in a window of this title.
#[must_use]
pub fn svg(screen: &vt100::Screen, title: &str) -> String {
    let (rows, columns) = screen.size();
    let width = f64::from(columns.get()) * CELL_WIDTH + 2.0 * MARGIN;
    let height = f64::from(rows.get()) * CELL_HEIGHT + TITLE_HEIGHT + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" \
         font-family=\"ui-monospace, 'SF Mono', Menlo, 'DejaVu Sans Mono', Consolas, monospace\" font-size=\"14\">\n\
         <title>{}</title>\n\
         <rect x=\"0.5\" y=\"0.5\" width=\"{:.0}\" height=\"{:.0}\" rx=\"10\" fill=\"{BACKGROUND}\" stroke=\"{FRAME}\"/>\n",
        escaped(title),
        width - 1.0,
        height - 1.0,
    );
    for (x, colour) in [(20, "#e06c75"), (40, "#e5c07b"), (60, "#98c379")] {
        let _ = writeln!(svg, "<circle cx=\"{x}\" cy=\"17\" r=\"6\" fill=\"{colour}\"/>");
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"22\" text-anchor=\"middle\" fill=\"{FOREGROUND}\" fill-opacity=\"0.6\">{}</text>",
        width / 2.0,
        escaped(title)
    );
    for row in 0..rows.get() {
        for run in runs(screen, row) {
            draw(&mut svg, &run, MARGIN + f64::from(run.column) * CELL_WIDTH, TITLE_HEIGHT + f64::from(row) * CELL_HEIGHT);
        }
    }
    if !screen.hide_cursor() {
        let (row, column) = screen.cursor_position();
        let (x, y) = (MARGIN + f64::from(column) * CELL_WIDTH, TITLE_HEIGHT + f64::from(row) * CELL_HEIGHT);
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{CELL_WIDTH}\" height=\"{CELL_HEIGHT}\" fill=\"{FOREGROUND}\" opacity=\"0.5\"/>"
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    fn drawn(bytes: &str) -> String {
        let cells = |count| NonZeroU16::new(count).expect("it is not zero");
        #[allow(clippy::disallowed_methods, reason = "the size is fixed")]
        let mut parser = vt100::Parser::new(cells(2), cells(20), 0);
        parser.process(b"\x1b[?25l");
        parser.process(bytes.as_bytes());
        svg(parser.screen(), "a < b")
    }

    #[test]
    fn text_stays_text_and_cannot_become_markup() {
        let svg = drawn("1 < 2 && <svg>");
        assert!(svg.contains(">1 &lt; 2 &amp;&amp; &lt;svg&gt;</text>"), "{svg}");
        assert!(svg.contains("<title>a &lt; b</title>"));
    }

    #[test]
    fn colours_of_every_kind_are_drawn() {
        assert!(drawn("\x1b[31mx").contains("fill=\"#e06c75\">x"));
        assert!(drawn("\x1b[38;5;208mx").contains("fill=\"#ff8700\">x"));
        assert!(drawn("\x1b[38;5;244mx").contains("fill=\"#808080\">x"));
        assert!(drawn("\x1b[38;2;1;2;3mx").contains("fill=\"#010203\">x"));
        assert!(drawn("\x1b[1;3;4mx").contains("font-weight=\"bold\" font-style=\"italic\" text-decoration=\"underline\">x"));
        let inverse = drawn("\x1b[7mx");
        assert!(
            inverse.contains(&format!("fill=\"{FOREGROUND}\"/>")) && inverse.contains(&format!("fill=\"{BACKGROUND}\">x")),
            "{inverse}"
        );
    }

    #[test]
    fn lines_are_shapes_and_columns_stay_in_line() {
        let svg = drawn("ab│cd");
        assert!(svg.contains("<path d=\"M37.0 43.0L37.0 34.0M37.0 43.0L37.0 52.0\""), "{svg}");
        assert!(svg.contains("x=\"41.2\" y=\"47.5\" textLength=\"16.8\""), "{svg}");
    }
}
