//! The session list.

use openagent_core::activity::Activity;
use openagent_core::session::Status;
use ratatui::Frame;
use ratatui::layout::{Position, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::centred;
use crate::app::layout;
use crate::app::state::{Focus, State, activity_word, unreachable};
use crate::app::text::{age, count, money, one_line};
use crate::app::theme::Theme;
use crate::app::wrap::{fit, pad};
use crate::client::SessionView;

/// Columns of what a session does; the longest is a provisioning step.
const ACTIVITY_COLUMNS: usize = 19;

/// Columns of a model's name.
const MODEL_COLUMNS: usize = 16;

/// A session's model without its provider.
fn short_model(session: &SessionView) -> &str {
    session.model.rsplit('/').next().unwrap_or_default()
}

/// A symbol for what a session does; no two mean the same.
pub(super) fn symbol(session: &SessionView, theme: Theme) -> (&'static str, Style) {
    if session.unreachable_since.is_some() {
        return ("~", theme.warn());
    }
    match (session.status, &session.activity) {
        _ if session.queue_position > 0 => ("○", theme.warn()),
        (Some(Status::Creating), _) => ("○", theme.accent()),
        (Some(Status::Idle), _) => ("◌", theme.dim()),
        (Some(Status::Stopped), _) => ("■", theme.dim()),
        (Some(Status::Error), _) => ("✗", theme.bad()),
        (_, Activity::Working) => ("●", theme.accent()),
        (_, Activity::Blocked { .. }) => ("!", theme.warn()),
        (_, Activity::Retrying { .. }) => ("↻", theme.warn()),
        (_, Activity::Done) => ("✓", theme.good()),
        (_, Activity::Failed) => ("✗", theme.bad()),
        (_, Activity::Quiet) if !session.step.is_empty() => ("○", theme.accent()),
        (_, Activity::Quiet) => ("·", Style::new()),
    }
}

/// A session's title; sessions without one say so.
pub(super) fn title(session: &SessionView) -> String {
    if session.title.trim().is_empty() { "untitled".to_owned() } else { one_line(&session.title) }
}

pub(super) fn draw(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let theme = state.theme;
    let rows = layout::list_rows(state, area);
    if rows.y > area.y {
        let filter = &state.sessions.filter;
        let line = Line::from(vec![Span::styled("/", theme.accent()), Span::raw(filter.text().to_owned())]);
        frame.render_widget(line, Rect { height: 1, ..area });
        if state.sessions.filtering && state.focus == Focus::List && state.overlays.is_empty() {
            let column = unicode_width::UnicodeWidthStr::width(&filter.text()[..filter.cursor()]);
            frame.set_cursor_position(Position::new(area.x + 1 + u16::try_from(column).unwrap_or(0), area.y));
        }
    }
    let shown = state.sessions.shown();
    if shown.is_empty() {
        let text = match (state.sessions.all.is_empty(), state.sessions.complete) {
            (_, false) => "reading the sessions…",
            (true, true) => "No sessions yet. n makes one.",
            (false, true) => "No session matches. Esc drops the filter.",
        };
        centred(frame, rows, vec![Line::styled(text, theme.dim())]);
        return;
    }
    let height = layout::session_rows(area.width);
    let fit = usize::from(rows.height / height);
    for (index, session) in shown.into_iter().skip(state.sessions.offset).take(fit).enumerate() {
        let y = rows.y + u16::try_from(index).unwrap_or(0) * height;
        let place = Rect { y, height, ..rows };
        let chosen = state.sessions.chosen.as_ref() == Some(&session.id);
        let lines = if height == 1 { vec![wide(state, session, area.width)] } else { narrow(state, session, area.width) };
        for (offset, line) in (0..).zip(lines) {
            frame.render_widget(line, Rect { y: place.y + offset, height: 1, ..place });
        }
        if chosen {
            let style = if state.focus == Focus::List { theme.selected() } else { theme.strong() };
            frame.buffer_mut().set_style(Rect { height: if state.focus == Focus::List { height } else { 1 }, ..place }, style);
        }
    }
}

fn mark(state: &State, session: &SessionView) -> Span<'static> {
    let unread = state.sessions.is_unread(session);
    Span::styled(if unread { "*" } else { " " }, state.theme.warn())
}

/// A session's title in as many columns, with how many others are there.
fn titled(state: &State, session: &SessionView, columns: usize) -> String {
    let here = match state.others(session).len() {
        0 => String::new(),
        others => format!(" +{others}"),
    };
    pad(&format!("{}{here}", fit(&title(session), columns.saturating_sub(here.len()))), columns)
}

/// What a session does and how that looks: pale where it is only what it last was known to do.
fn doing(state: &State, session: &SessionView, style: Style) -> (String, Style) {
    match unreachable(session, state.now) {
        Some(words) => (words, state.theme.dim()),
        None => (activity_word(session), style),
    }
}

/// A session in one row: everything in columns.
fn wide(state: &State, session: &SessionView, width: u16) -> Line<'static> {
    let theme = state.theme;
    let (symbol, style) = symbol(session, theme);
    let (activity, as_of) = doing(state, session, style);
    let activity = pad(&activity, ACTIVITY_COLUMNS);
    let model = pad(&one_line(short_model(session)), MODEL_COLUMNS);
    let tail = format!(
        "{:>7} {:>8} {:>4}",
        count(session.usage.tokens.total()),
        money(session.usage.cost_micros),
        age(session.updated_at, state.now)
    );
    let used = 4 + ACTIVITY_COLUMNS + 1 + MODEL_COLUMNS + 1 + tail.len();
    let title = titled(state, session, usize::from(width).saturating_sub(used));
    Line::from(vec![
        Span::styled(format!("{symbol} "), style),
        mark(state, session),
        Span::raw(format!("{title} ")),
        Span::styled(format!("{activity} "), as_of),
        Span::styled(format!("{model} "), theme.dim()),
        Span::raw(tail),
    ])
}

/// A session in two rows.
fn narrow(state: &State, session: &SessionView, width: u16) -> Vec<Line<'static>> {
    let theme = state.theme;
    let (symbol, style) = symbol(session, theme);
    let age = age(session.updated_at, state.now);
    let room = usize::from(width).saturating_sub(3 + 5);
    let first = Line::from(vec![
        Span::styled(format!("{symbol} "), style),
        mark(state, session),
        Span::raw(titled(state, session, room)),
        Span::styled(format!("{age:>4} "), theme.dim()),
    ]);
    let usage = format!("{} {}", count(session.usage.tokens.total()), money(session.usage.cost_micros));
    let (activity, as_of) = doing(state, session, style);
    let rest = format!(" · {usage} · {}", one_line(short_model(session)));
    let room = usize::from(width).saturating_sub(4 + activity.chars().count());
    let second = Line::from(vec![Span::styled(format!("   {activity}"), as_of), Span::styled(fit(&rest, room), theme.dim())]);
    vec![first, second]
}
