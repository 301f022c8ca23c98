//! What stands over the screen.

use openagent_core::id::SessionId;
use ratatui::Frame;
use ratatui::layout::{Position, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear};
use unicode_width::UnicodeWidthStr;

use crate::app::field::Field;
use crate::app::keymap::{Layer, global_rows};
use crate::app::layout;
use crate::app::state::{Entry, FormField, NewForm, Overlay, State};
use crate::app::text::{harmless, one_line};
use crate::app::update::overlay::{WELCOME, palette};
use crate::app::wrap::{Break, fit, pad, wrap, wrap_text};
use crate::output::session::block;

/// Rows of models that the form shows.
const MODEL_ROWS: usize = 6;

pub(super) fn draw(state: &State, frame: &mut Frame<'_>) {
    match state.overlays.last() {
        Some(Overlay::Help { layers, offset }) => help(state, frame, layers, *offset),
        Some(Overlay::Details { session, offset }) => details(state, frame, session, *offset),
        Some(Overlay::Confirm { question, .. }) => {
            let area = layout::window(state, 60, 6);
            let inner = window(state, frame, area, "Are you sure?");
            let mut rows = wrap_text(question, Style::new(), usize::from(inner.width), Break::Words, &Span::raw(""));
            rows.push(Line::from(vec![
                Span::styled("y", state.theme.accent()),
                Span::raw(" yes   "),
                Span::styled("n", state.theme.accent()),
                Span::raw(" no"),
            ]));
            lines(frame, inner, rows);
        }
        Some(Overlay::Entry(entry)) => self::entry(state, frame, entry),
        Some(Overlay::New(form)) => new(state, frame, form),
        Some(Overlay::Welcome { at }) => welcome(state, frame, *at),
        Some(Overlay::Palette { filter, at }) => {
            let area = layout::window(state, 50, 18);
            let inner = window(state, frame, area, "Actions");
            field(state, frame, inner, "> ", filter, false, true);
            let names: Vec<String> = palette(filter.text()).into_iter().map(|(_, name)| name.to_owned()).collect();
            choices(state, frame, below(inner, 1), &names, *at);
        }
        Some(Overlay::Terminals { terminals, at, .. }) => {
            let area = layout::window(state, 60, u16::try_from(terminals.len() + 3).unwrap_or(20));
            let inner = window(state, frame, area, "Terminals");
            let mut names: Vec<String> = terminals
                .iter()
                .map(|terminal| {
                    let size = terminal.size.map(|size| format!("{}x{}", size.columns, size.rows)).unwrap_or_default();
                    format!("{} {size}, {} attached", one_line(&terminal.id), terminal.attached)
                })
                .collect();
            names.push("+ one more".to_owned());
            choices(state, frame, inner, &names, *at);
        }
        None => {}
    }
}

/// Everything about a session, as the command line shows it.
fn details(state: &State, frame: &mut Frame<'_>, id: &SessionId, offset: usize) {
    let area = layout::window(state, 100, state.size.height.saturating_sub(2));
    let inner = window(state, frame, area, "Session");
    let Some(session) = state.sessions.get(id) else { return };
    let rows: Vec<Line<'static>> = block(session, state.now)
        .lines()
        .flat_map(|line| wrap(&[Span::raw(line.to_owned())], usize::from(inner.width), Break::Words, &Span::raw(""), &Span::raw("  ")))
        .collect();
    let offset = offset.min(rows.len().saturating_sub(usize::from(inner.height)));
    lines(frame, inner, rows.into_iter().skip(offset));
}

fn window(state: &State, frame: &mut Frame<'_>, area: Rect, title: &str) -> Rect {
    let block = Block::bordered().title(Span::styled(format!(" {title} "), state.theme.strong())).border_style(state.theme.dim());
    let inner = block.inner(area);
    frame.render_widget(Clear, area);
    frame.render_widget(block, area);
    inner
}

fn below(area: Rect, rows: u16) -> Rect {
    let rows = rows.min(area.height);
    Rect { y: area.y + rows, height: area.height - rows, ..area }
}

fn lines(frame: &mut Frame<'_>, area: Rect, rows: impl IntoIterator<Item = Line<'static>>) {
    for (offset, row) in (0..area.height).zip(rows) {
        frame.render_widget(row, Rect { y: area.y + offset, height: 1, ..area });
    }
}

/// A field of one line, scrolled so that its cursor is seen. Of a masked one only its length is told.
fn field(state: &State, frame: &mut Frame<'_>, area: Rect, label: &str, field: &Field, masked: bool, here: bool) {
    let style = if here { state.theme.accent() } else { state.theme.dim() };
    let room = usize::from(area.width).saturating_sub(label.width() + 1).max(1);
    let (before, behind) = if masked {
        let cursor = field.text()[..field.cursor()].chars().count();
        ("•".repeat(cursor), "•".repeat(field.chars() - cursor))
    } else {
        (harmless(&field.text()[..field.cursor()]), harmless(&field.text()[field.cursor()..]))
    };
    let mut shown = before.as_str();
    while shown.width() > room {
        let mut letters = shown.chars();
        letters.next();
        shown = letters.as_str();
    }
    let column = u16::try_from(label.width() + shown.width()).unwrap_or(0);
    let text = fit(&format!("{shown}{behind}"), room + 1);
    let line = Line::from(vec![Span::styled(label.to_owned(), style), Span::raw(text)]);
    frame.render_widget(line, Rect { height: 1.min(area.height), ..area });
    if here && area.height > 0 {
        frame.set_cursor_position(Position::new(area.x + column, area.y));
    }
}

fn choices(state: &State, frame: &mut Frame<'_>, area: Rect, names: &[String], at: usize) {
    let offset = (at + 1).saturating_sub(usize::from(area.height).max(1));
    for (row, (index, name)) in (0..area.height).zip(names.iter().enumerate().skip(offset)) {
        let place = Rect { y: area.y + row, height: 1, ..area };
        let mark = if index == at { "▸ " } else { "  " };
        frame.render_widget(Line::raw(pad(&format!("{mark}{name}"), usize::from(area.width))), place);
        if index == at {
            frame.buffer_mut().set_style(place, state.theme.selected());
        }
    }
}

fn help(state: &State, frame: &mut Frame<'_>, layers: &[Layer], offset: usize) {
    let theme = state.theme;
    let area = layout::window(state, 84, state.size.height.saturating_sub(2));
    let inner = window(state, frame, area, "Help");
    let width = usize::from(inner.width);
    let columns = 16.min(width / 3);
    let mut rows: Vec<Line<'static>> = Vec::new();
    let tables = layers.iter().map(|layer| (layer.name(), layer.rows())).chain([("everywhere", global_rows())]);
    for (name, table) in tables {
        if !rows.is_empty() {
            rows.push(Line::default());
        }
        rows.push(Line::styled(name, theme.strong()));
        for row in table {
            let first = Span::styled(format!("{} ", pad(&row.keys, columns)), theme.accent());
            let rest = Span::raw(" ".repeat(columns + 1));
            rows.extend(wrap(&[Span::raw(row.help)], width, Break::Words, &first, &rest));
        }
    }
    let offset = offset.min(rows.len().saturating_sub(usize::from(inner.height)));
    lines(frame, inner, rows.into_iter().skip(offset));
}

fn entry(state: &State, frame: &mut Frame<'_>, entry: &Entry) {
    let area = layout::window(state, 70, 6);
    let inner = window(state, frame, area, &one_line(&entry.title));
    field(state, frame, inner, "> ", &entry.field, entry.masked, true);
    let mut rows = Vec::new();
    if entry.masked {
        rows.push(Line::styled(format!("  {} characters", entry.field.chars()), state.theme.dim()));
    }
    rows.extend(wrap_text(&entry.hint, state.theme.dim(), usize::from(inner.width), Break::Words, &Span::raw("")));
    lines(frame, below(inner, 1), rows);
}

fn welcome(state: &State, frame: &mut Frame<'_>, at: usize) {
    let theme = state.theme;
    let area = layout::window(state, 66, 11);
    let inner = window(state, frame, area, "Welcome to OpenAgent");
    let width = usize::from(inner.width);
    let roomy = inner.height >= 9;
    let mut rows = Vec::new();
    if roomy {
        rows.push(Line::raw("No provider has a key yet. What would you like to do?"));
        rows.push(Line::default());
    }
    for (index, (name, why)) in WELCOME.into_iter().enumerate() {
        let mark = if index == at { "▸" } else { " " };
        let style = if index == at { theme.selected() } else { theme.strong() };
        rows.push(Line::styled(pad(&format!("{mark} {} {name}", index + 1), width), style));
        rows.push(Line::styled(fit(&format!("    {why}"), width), theme.dim()));
    }
    lines(frame, inner, rows);
}

fn new(state: &State, frame: &mut Frame<'_>, form: &NewForm) {
    let theme = state.theme;
    let area = layout::window(state, 72, 16);
    let mut rest = window(state, frame, area, if form.sent { "New session » creating…" } else { "New session" });
    field(state, frame, rest, "title      ", &form.title, false, form.at == FormField::Title);
    rest = below(rest, 1);
    let found = state.models(form.model_filter.text());
    let at = form.model_at.min(found.len().saturating_sub(1));
    if form.at == FormField::Model {
        field(state, frame, rest, "model    / ", &form.model_filter, false, true);
        rest = below(rest, 1);
        // Three fields stand below.
        let most = MODEL_ROWS.min(usize::from(rest.height.saturating_sub(3))).max(1);
        let names: Vec<String> = found.iter().map(|(id, name)| one_line(&format!("{id}  {name}"))).collect();
        let height = u16::try_from(names.len().clamp(1, most)).unwrap_or(1);
        let place = Rect { x: rest.x + 2, width: rest.width.saturating_sub(2), height: height.min(rest.height), ..rest };
        if names.is_empty() {
            lines(frame, place, [Line::styled("no usable model matches", theme.warn())]);
        } else {
            choices(state, frame, place, &names, at);
        }
        rest = below(rest, height);
    } else {
        let text = found.get(at).map_or_else(|| "none is usable; add a provider key first".to_owned(), |(id, _)| one_line(id));
        let width = usize::from(rest.width);
        lines(frame, rest, [Line::from(vec![Span::styled("model      ", theme.dim()), Span::raw(fit(&text, width.saturating_sub(11)))])]);
        rest = below(rest, 1);
    }
    let pick = |label: &'static str, value: &str, here: bool| {
        let style = if here { theme.accent() } else { theme.dim() };
        let value = if here { format!("◂ {value} ▸") } else { value.to_owned() };
        Line::from(vec![Span::styled(label, style), Span::raw(value)])
    };
    let what = match form.mode {
        openagent_core::permission::PermissionMode::Ask => "ask: commands, edits and fetches",
        openagent_core::permission::PermissionMode::AutoEdit => "auto-edit: only edits are not asked",
        openagent_core::permission::PermissionMode::ReadOnly => "read-only: nothing is changed or run",
    };
    lines(frame, rest, [pick("permission ", what, form.at == FormField::Mode)]);
    rest = below(rest, 1);
    lines(frame, rest, [pick("workspace  ", if form.copy { "a copy of a folder" } else { "empty" }, form.at == FormField::Workspace)]);
    rest = below(rest, 1);
    if form.copy {
        field(state, frame, rest, "folder     ", &form.path, false, form.at == FormField::Path);
        rest = below(rest, 1);
    }
    if let Some(error) = &form.error {
        let width = usize::from(rest.width);
        let mut rows = wrap_text(&harmless(&error.message), theme.bad(), width, Break::Words, &Span::raw("✗ "));
        if !error.hint.is_empty() {
            rows.extend(wrap_text(&harmless(&error.hint), Style::new(), width, Break::Words, &Span::raw("→ ")));
        }
        lines(frame, rest, rows);
    }
}
