//! The screens beside the conversation.

use openagent_core::usage::{Tokens, Usage};
use openagent_proto::v1;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr;

use super::{centred, talk};
use crate::app::layout;
use crate::app::state::{Focus, State};
use crate::app::text::{age, count, money, one_line};
use crate::app::update::screen::grouping_name;
use crate::app::wrap::{fit, pad};
use crate::client::PendingRequest;
use openagent_core::time::Timestamp;

fn heading(state: &State, frame: &mut Frame<'_>, area: Rect, text: &str, right: &str) {
    let room = usize::from(area.width).saturating_sub(text.width());
    let right = fit(right, room.saturating_sub(1));
    let gap = room.saturating_sub(right.width());
    let line = Line::from(vec![
        Span::styled(text.to_owned(), state.theme.strong()),
        Span::raw(" ".repeat(gap)),
        Span::styled(right, state.theme.dim()),
    ]);
    frame.render_widget(line, Rect { height: 1.min(area.height), ..area });
}

pub(super) fn inbox(state: &State, frame: &mut Frame<'_>, main: Rect) {
    let theme = state.theme;
    heading(state, frame, main, "Inbox", &format!("{} waiting, oldest first", state.inbox.len()));
    let (list, request) = layout::inbox(state, main);
    if state.inbox.is_empty() {
        return centred(frame, request, vec![Line::styled("Nothing waits for you.", theme.dim())]);
    }
    let fits = usize::from(list.height).max(1);
    let offset = (state.inbox_at + 1).saturating_sub(fits);
    for (row, (index, pending)) in (0..list.height).zip(state.inbox.iter().enumerate().skip(offset)) {
        let place = Rect { y: list.y + row, height: 1, ..list };
        let (symbol, what, asked_at) = match &pending.request {
            PendingRequest::Permission(request) => {
                ("!", format!("{} {}", one_line(&request.permission), one_line(&request.title)), request.asked_at)
            }
            PendingRequest::Question(request) => {
                ("?", request.questions.first().map(|question| one_line(&question.text)).unwrap_or_default(), request.asked_at)
            }
        };
        let title = if pending.session_title.is_empty() { "untitled".to_owned() } else { one_line(&pending.session_title) };
        let title = pad(&title, usize::from(list.width / 3));
        let room = usize::from(list.width).saturating_sub(2 + title.width() + 1 + 5);
        let line = Line::from(vec![
            Span::styled(format!("{symbol} "), theme.warn()),
            Span::raw(format!("{title} ")),
            Span::styled(pad(&what, room), theme.code()),
            Span::styled(format!("{:>5}", age(asked_at, state.now)), theme.dim()),
        ]);
        frame.render_widget(line, place);
        if index == state.inbox_at {
            let style = if state.focus == Focus::Request { theme.strong() } else { theme.selected() };
            frame.buffer_mut().set_style(place, style);
        }
    }
    talk::request(state, frame, request, state.inbox_at + 1, state.inbox.len());
}

pub(super) fn keys(state: &State, frame: &mut Frame<'_>, main: Rect) {
    let theme = state.theme;
    let filter = state.keys.filter.text();
    let right = if state.keys.filtering || !filter.is_empty() { format!("/{filter}") } else { "keys are never shown".to_owned() };
    heading(state, frame, main, "Provider keys", &right);
    if main.height < 3 {
        return;
    }
    let name_columns = usize::from(main.width).saturating_sub(2 + 8 + 10 + 6);
    let names = format!("  {}{:>8}{:>10}", pad("provider", name_columns), "version", "last used");
    frame.render_widget(Line::styled(fit(&names, usize::from(main.width)), theme.dim()), Rect { y: main.y + 1, height: 1, ..main });
    let providers = state.keyed_providers();
    let rest = Rect { y: main.y + 2, height: main.height - 2, ..main };
    if providers.is_empty() {
        let text = if state.providers.is_some() { "No provider matches." } else { "reading the providers…" };
        return centred(frame, rest, vec![Line::styled(text, theme.dim())]);
    }
    for (row, (index, provider)) in (0..rest.height).zip(providers.into_iter().enumerate().skip(state.keys.offset)) {
        let place = Rect { y: rest.y + row, height: 1, ..rest };
        let key = state.keys.stored.iter().find(|key| key.provider == provider.id);
        let (symbol, style) = if provider.has_key { ("✓ ", theme.good()) } else { ("· ", theme.dim()) };
        let version = key.map(|key| key.version.to_string()).unwrap_or_default();
        let used = match key {
            Some(key) => {
                key.used_at.as_ref().map_or_else(|| "never".to_owned(), |at| age(Timestamp::from_millis(at.seconds * 1_000), state.now))
            }
            None => String::new(),
        };
        let name = format!("{} ({})", one_line(&provider.name), one_line(&provider.id));
        let line = Line::from(vec![
            Span::styled(symbol, style),
            Span::raw(pad(&name, name_columns)),
            Span::styled(format!("{version:>8}{used:>10}"), theme.dim()),
        ]);
        frame.render_widget(line, place);
        if index == state.keys.at {
            frame.buffer_mut().set_style(place, theme.selected());
        }
    }
}

fn sum(usage: Option<&v1::Usage>) -> Usage {
    let tokens = usage.and_then(|usage| usage.tokens).unwrap_or_default();
    Usage {
        tokens: Tokens {
            input: tokens.input,
            output: tokens.output,
            reasoning: tokens.reasoning,
            cache_read: tokens.cache_read,
            cache_write: tokens.cache_write,
        },
        cost_micros: usage.map_or(0, |usage| usage.cost_micros),
    }
}

pub(super) fn usage(state: &State, frame: &mut Frame<'_>, main: Rect) {
    let theme = state.theme;
    heading(state, frame, main, "Usage", &format!("by {}", grouping_name(state.usage.grouping)));
    let rest = Rect { y: main.y + 1, height: main.height.saturating_sub(1), ..main };
    let Some(sums) = &state.usage.sums else {
        return centred(frame, rest, vec![Line::styled("reading…", theme.dim())]);
    };
    let wide = main.width >= 70;
    let row = |name: &str, usage: &Usage| {
        let tokens = usage.tokens;
        let columns = if wide {
            format!(
                "{:>9}{:>9}{:>9}{:>9}{:>10}",
                count(tokens.input),
                count(tokens.output),
                count(tokens.reasoning),
                count(tokens.cache_read.saturating_add(tokens.cache_write)),
                money(usage.cost_micros)
            )
        } else {
            format!("{:>8}{:>9}", count(tokens.total()), money(usage.cost_micros))
        };
        let room = usize::from(main.width).saturating_sub(columns.width());
        format!("{}{columns}", pad(name, room))
    };
    let names = if wide {
        format!("{:>9}{:>9}{:>9}{:>9}{:>10}", "input", "output", "thought", "cache", "cost")
    } else {
        format!("{:>8}{:>9}", "tokens", "cost")
    };
    let room = usize::from(main.width).saturating_sub(names.width());
    let mut lines = vec![
        Line::styled(format!("{}{names}", " ".repeat(room)), theme.dim()),
        Line::styled(row("total", &sum(sums.total.as_ref())), theme.strong()),
    ];
    for group in sums.groups.iter().skip(state.usage.offset) {
        let known = state.sessions.all.iter().find(|session| session.id.as_str() == group.key);
        let name = known.map_or_else(|| one_line(&group.key), super::list::title);
        lines.push(Line::raw(row(&name, &sum(group.usage.as_ref()))));
    }
    for (offset, line) in (0..rest.height).zip(lines) {
        frame.render_widget(line, Rect { y: rest.y + offset, height: 1, ..rest });
    }
}

pub(super) fn terminal(state: &State, frame: &mut Frame<'_>, main: Rect) {
    let theme = state.theme;
    let Some(pane) = &state.terminal else { return };
    let title = state.sessions.get(&pane.session).map(super::list::title).unwrap_or_default();
    let (columns, rows) = pane.size();
    let right = match (pane.exited, pane.attached, pane.writing) {
        (Some(code), ..) => format!("✗ ended with code {code}; any key leaves"),
        (None, false, _) => "○ connecting".to_owned(),
        (None, true, true) if pane.scrolled() > 0 => format!("↑ {} rows back", pane.scrolled()),
        (None, true, true) => format!("{columns}x{rows}"),
        (None, true, false) => format!("◦ reading only, {columns}x{rows}"),
    };
    heading(state, frame, main, &fit(&format!("Terminal · {title}"), usize::from(main.width / 2)), &right);
    let area = layout::terminal(main);
    let cursor = pane.draw(area, frame.buffer_mut(), theme.color);
    if let Some(position) = cursor.filter(|_| state.overlays.is_empty() && !pane.menu) {
        frame.set_cursor_position(position);
    }
}
