//! The only drawer: reads the [`State`], changes nothing. What costs was laid out before, when the frame became due.

mod list;
mod overlay;
mod screen;
mod talk;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph};
use unicode_width::UnicodeWidthStr;

use super::keymap::Layer;
use super::layout;
use super::state::{Link, Screen, State};
use super::text::one_line;
use super::wrap::fit;
use crate::output::quantity::span;

/// Draws the screen.
pub fn view(state: &State, frame: &mut Frame<'_>) {
    let areas = layout::areas(state);
    header(state, frame, areas.header);
    frame.render_widget(Paragraph::new(layout::banner_rows(state)), areas.banner);
    if let Some(list) = areas.list {
        list::draw(state, frame, list);
        if let Some(main) = areas.main {
            let line = Rect { x: main.x.saturating_sub(1), width: 1, ..main };
            let rows: Vec<Line<'_>> = (0..line.height).map(|_| Line::styled("│", state.theme.dim())).collect();
            frame.render_widget(Paragraph::new(rows), line);
        }
    }
    if let Some(main) = areas.main {
        match state.screen {
            Screen::Main => talk::draw(state, frame, main),
            Screen::Inbox => screen::inbox(state, frame, main),
            Screen::Keys => screen::keys(state, frame, main),
            Screen::Usage => screen::usage(state, frame, main),
            Screen::Terminal => screen::terminal(state, frame, main),
        }
    }
    overlay::draw(state, frame);
    if areas.note.height > 0 {
        frame.render_widget(Clear, areas.note);
        frame.render_widget(Paragraph::new(layout::note_rows(state)), areas.note);
    }
    bar(state, frame, areas.bar);
}

fn header(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let theme = state.theme;
    let mut spans = vec![Span::styled("OpenAgent", theme.strong())];
    let (blocked, working) = layout::counts(state);
    if let Some(driver) = state.daemon.as_ref().and_then(|daemon| daemon.driver.as_ref()) {
        if driver.healthy {
            spans.push(Span::styled(format!(" {}", one_line(&driver.name)), theme.dim()));
        } else {
            let why = driver.fault.as_ref().map(|fault| one_line(&fault.message)).unwrap_or_default();
            spans.push(Span::styled(format!(" ✗ {} {why}", one_line(&driver.name)), theme.bad()));
        }
    }
    if state.read_only().is_some() {
        spans.push(Span::styled("  ! read-only", theme.bad()));
    }
    if working > 0 {
        spans.push(Span::styled(format!("  ● {working} working"), theme.accent()));
    }
    let waiting = state.inbox.len().max(blocked);
    if waiting > 0 {
        spans.push(Span::styled(format!("  ! {waiting} waiting"), theme.warn()));
    }
    frame.render_widget(Line::from(spans), area);
    let (text, style) = match &state.link {
        Link::Connecting => ("○ connecting".to_owned(), theme.dim()),
        Link::Up => (String::new(), Style::new()),
        Link::Down { since, retry_at, error } => {
            let seconds = retry_at.millis_since(state.now).div_ceil(1_000);
            let age = span(state.now.millis_since(*since));
            let then = if seconds == 0 { "connecting".to_owned() } else { format!("again in {seconds} s") };
            let why = if area.width >= layout::TWO_PANES_MIN { format!("{}, ", one_line(&error.message)) } else { String::new() };
            if area.width >= 60 {
                (format!("✗ offline: {why}as of {age} ago, {then}"), theme.bad())
            } else {
                (format!("✗ offline {age}: {then}"), theme.bad())
            }
        }
    };
    if !text.is_empty() {
        let text = fit(&format!(" {text}"), usize::from(area.width));
        let columns = u16::try_from(text.width()).unwrap_or(area.width);
        let right = Rect { x: area.x + area.width - columns, width: columns, ..area };
        frame.render_widget(Clear, right);
        frame.render_widget(Line::styled(text, style), right);
    }
}

/// The keys of the layer that has them, as many as fit.
fn bar(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let theme = state.theme;
    let layer = state.layer();
    let mut spans = Vec::new();
    let mut used = 0;
    // Keys of a request are of no use where none waits.
    let idle = state.ask().is_none() && matches!(layer, Layer::Talk | Layer::Composer);
    for row in layer.rows() {
        if row.label.is_empty() || (idle && row.label == "answer") {
            continue;
        }
        let key = row.keys.split(' ').next().unwrap_or_default().to_owned();
        let columns = key.width() + row.label.width() + 3;
        if used + columns > usize::from(area.width) + 2 {
            // The way out of a terminal is always shown, cut where there is no room.
            if layer == Layer::Terminal {
                let room = usize::from(area.width).saturating_sub(key.width() + 1);
                spans.push(Span::styled(key, theme.accent()));
                spans.push(Span::styled(format!(" {}", fit(row.label, room)), theme.dim()));
            }
            break;
        }
        used += columns;
        spans.push(Span::styled(key, theme.accent()));
        spans.push(Span::styled(format!(" {}  ", row.label), theme.dim()));
    }
    frame.render_widget(Clear, area);
    frame.render_widget(Line::from(spans), area);
}

/// Writes a message into the middle of an area.
fn centred(frame: &mut Frame<'_>, area: Rect, lines: Vec<Line<'static>>) {
    let rows = u16::try_from(lines.len()).unwrap_or(area.height).min(area.height);
    let y = area.y + (area.height - rows) / 2;
    frame.render_widget(Paragraph::new(lines).centered(), Rect { y, height: rows, ..area });
}
