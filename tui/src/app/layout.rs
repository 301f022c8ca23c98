//! Where things are. Pure functions of the state, shared by drawing, mouse hits and the sizes that terminals are told.

use openagent_core::activity::Activity;
use openagent_proto::PROTOCOL;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::state::{Focus, Link, Prompt, Screen, State};
use super::terminal::clamp;
use super::text::harmless;
use super::wrap::{Break, wrap};
use crate::client::SessionView;

/// Columns from which sessions and conversation stand side by side.
pub const TWO_PANES_MIN: u16 = 100;

/// Columns of the session list beside a conversation.
const LIST_COLUMNS: u16 = 36;

/// Columns below which a session takes two rows.
const ONE_ROW_MIN: u16 = 76;

/// Most rows of news.
const NOTE_ROWS_MAX: usize = 4;

/// Rows of the screen below which less is said of what is wrong.
const BANNER_SMALL: u16 = 20;

/// Most rows of the composer.
const COMPOSER_ROWS_MAX: u16 = 10;

/// The parts of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Areas {
    /// Name, connection, counts.
    pub header: Rect,
    /// What is wrong as a whole, and what to do about it; empty where nothing is.
    pub banner: Rect,
    /// The session list, if it is seen.
    pub list: Option<Rect>,
    /// What stands beside or instead of it.
    pub main: Option<Rect>,
    /// News.
    pub note: Rect,
    /// The keys.
    pub bar: Rect,
}

/// The parts of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TalkAreas {
    /// Its title.
    pub title: Rect,
    /// What was said.
    pub history: Rect,
    /// What the agent does and what was spent.
    pub strip: Rect,
    /// The request that waits; empty where none does.
    pub request: Rect,
    /// The composer.
    pub composer: Rect,
}

fn cut(area: &mut Rect, rows: u16) -> Rect {
    let rows = rows.min(area.height);
    let top = Rect { height: rows, ..*area };
    area.y += rows;
    area.height -= rows;
    top
}

fn cut_bottom(area: &mut Rect, rows: u16) -> Rect {
    let rows = rows.min(area.height);
    area.height -= rows;
    Rect { y: area.y + area.height, height: rows, ..*area }
}

/// The rows that say what is wrong as a whole. A terminal's programs are not moved for them: there the header must do.
#[must_use]
pub fn banner_rows(state: &State) -> Vec<Line<'static>> {
    let theme = state.theme;
    if state.screen == Screen::Terminal {
        return Vec::new();
    }
    let (what, todo) = match (&state.link, state.read_only(), &state.daemon) {
        (Link::Down { error, .. }, ..) if error.is_disconnected() => (String::new(), "start it: openagent daemon start".to_owned()),
        (Link::Down { error, .. }, ..) => (String::new(), harmless(&error.hint)),
        (_, Some(store), _) => {
            let fault = store.fault.clone().unwrap_or_default();
            let why = if fault.message.is_empty() { String::new() } else { format!(": {}", harmless(&fault.message)) };
            (format!("! the store is read-only{why}"), harmless(&fault.hint))
        }
        (_, None, Some(daemon)) if daemon.protocol != PROTOCOL => (
            format!("! the daemon speaks protocol {}, this client {PROTOCOL}", daemon.protocol),
            "quit and start openagent again".to_owned(),
        ),
        _ => return Vec::new(),
    };
    let width = usize::from(state.size.width).max(1);
    // On a small screen what to do matters more than the end of a long sentence.
    let most = if state.size.height < BANNER_SMALL { 1 } else { 2 };
    let rest = Span::raw("  ");
    let said = |text: &str, style, first: Span<'static>| {
        let mut rows = wrap(&[Span::styled(text.replace('\n', " "), style)], width, Break::Words, &first, &rest);
        rows.truncate(most);
        rows
    };
    let mut rows = Vec::new();
    if !what.is_empty() {
        rows.extend(said(&what, theme.bad(), Span::raw("")));
    }
    if !todo.is_empty() {
        rows.extend(said(&todo, Style::new(), Span::styled("→ ", theme.accent())));
    }
    rows
}

/// The rows of the news.
#[must_use]
pub fn note_rows(state: &State) -> Vec<Line<'static>> {
    let Some(note) = &state.note else { return Vec::new() };
    let width = usize::from(state.size.width).max(1);
    let (symbol, style) = if note.bad { ("✗ ", state.theme.bad()) } else { ("✓ ", state.theme.good()) };
    let rest = Span::raw("  ");
    let text = harmless(&note.text).replace('\n', " ");
    let mut rows = wrap(&[Span::styled(text, style)], width, Break::Words, &Span::styled(symbol, style), &rest);
    if !note.hint.is_empty() {
        let hint = harmless(&note.hint).replace('\n', " ");
        rows.extend(wrap(&[Span::raw(hint)], width, Break::Words, &Span::styled("→ ", state.theme.accent()), &rest));
    }
    rows.truncate(NOTE_ROWS_MAX);
    rows
}

/// The parts of the screen.
#[must_use]
pub fn areas(state: &State) -> Areas {
    let mut rest = Rect::new(0, 0, state.size.width, state.size.height);
    let header = cut(&mut rest, 1);
    let banner = cut(&mut rest, u16::try_from(banner_rows(state).len()).unwrap_or(0));
    let bar = cut_bottom(&mut rest, 1);
    let note = cut_bottom(&mut rest, u16::try_from(note_rows(state).len()).unwrap_or(0));
    let (list, main) = match state.screen {
        Screen::Main if rest.width >= TWO_PANES_MIN => {
            let list = Rect { width: LIST_COLUMNS, ..rest };
            // One column stays free for the line between them.
            (Some(list), Some(Rect { x: rest.x + LIST_COLUMNS + 1, width: rest.width - LIST_COLUMNS - 1, ..rest }))
        }
        Screen::Main if state.focus == Focus::List || state.open.is_none() => (Some(rest), None),
        Screen::Main | Screen::Inbox | Screen::Keys | Screen::Usage | Screen::Terminal => (None, Some(rest)),
    };
    Areas { header, banner, list, main, note, bar }
}

/// Rows of a session in a list of this width.
#[must_use]
pub const fn session_rows(width: u16) -> u16 {
    if width >= ONE_ROW_MIN { 1 } else { 2 }
}

/// The sessions in the list: everything below the filter, which stands in the first row while there is one.
#[must_use]
pub fn list_rows(state: &State, list: Rect) -> Rect {
    let mut rest = list;
    if state.sessions.filtering || !state.sessions.filter.text().is_empty() {
        cut(&mut rest, 1);
    }
    rest
}

/// The parts of a conversation in `main`.
#[must_use]
pub fn talk(state: &State, main: Rect) -> TalkAreas {
    let mut rest = main;
    let title = cut(&mut rest, 1);
    let asks = state.screen == Screen::Main && state.ask().is_some();
    let wanted = state.talk().map_or(1, |talk| talk.composer.rows(main.width.saturating_sub(2)));
    let most = (main.height / 3).clamp(1, COMPOSER_ROWS_MAX);
    // A request takes the composer's place until the user goes there.
    let composer_rows = if asks && state.focus != Focus::Composer { 0 } else { wanted.clamp(1, most) };
    let composer = cut_bottom(&mut rest, composer_rows);
    let request_rows = match (&state.prompt, asks) {
        (Some(prompt), true) => {
            let content = u16::try_from(prompt.rows.len()).unwrap_or(u16::MAX).saturating_add(1);
            let most = if state.focus == Focus::Composer { main.height / 4 } else { main.height * 2 / 3 };
            content.min(most.max(3))
        }
        _ => 0,
    };
    let request = cut_bottom(&mut rest, request_rows);
    let strip = cut_bottom(&mut rest, 1);
    // The first column of the history is for the mark of the chosen card.
    let history = Rect { x: rest.x + 1, width: rest.width.saturating_sub(1), ..rest };
    TalkAreas { title, history, strip, request, composer }
}

/// The list and the shown request of the inbox.
#[must_use]
pub fn inbox(state: &State, main: Rect) -> (Rect, Rect) {
    let mut rest = main;
    cut(&mut rest, 1);
    let wanted = u16::try_from(state.inbox.len()).unwrap_or(u16::MAX).max(1);
    let list = cut(&mut rest, wanted.min((main.height / 3).max(2)));
    (list, rest)
}

/// The terminal in `main`: everything below its title.
#[must_use]
pub fn terminal(main: Rect) -> Rect {
    let mut rest = main;
    cut(&mut rest, 1);
    rest
}

/// Columns and rows that a terminal would have on this screen.
#[must_use]
pub fn terminal_size(state: &State) -> (u16, u16) {
    // Its header, title and bar; news are drawn over it rather than resizing every program for them.
    clamp(state.size.width, state.size.height.saturating_sub(3))
}

/// Where the request is drawn, if one is: in the conversation or in the inbox.
#[must_use]
pub fn request(state: &State) -> Option<Rect> {
    let main = areas(state).main?;
    state.ask()?;
    match state.screen {
        Screen::Main => Some(talk(state, main).request),
        Screen::Inbox => Some(inbox(state, main).1),
        Screen::Keys | Screen::Usage | Screen::Terminal => None,
    }
}

/// How far a request of this height can be scrolled.
#[must_use]
pub fn request_scroll_max(prompt: &Prompt, area: Rect) -> usize {
    prompt.rows.len().saturating_sub(usize::from(area.height.saturating_sub(1)))
}

/// A window of this size in the middle of the screen.
#[must_use]
pub fn window(state: &State, columns: u16, rows: u16) -> Rect {
    let columns = columns.min(state.size.width);
    let rows = rows.min(state.size.height.saturating_sub(1));
    Rect { x: (state.size.width - columns) / 2, y: (state.size.height.saturating_sub(1 + rows)) / 2, width: columns, height: rows }
}

/// How many sessions wait for an answer, and how many work.
#[must_use]
pub fn counts(state: &State) -> (usize, usize) {
    let blocked = state.sessions.all.iter().filter(|session| matches!(session.activity, Activity::Blocked { .. })).count();
    let works = |session: &&SessionView| {
        session.unreachable_since.is_none() && matches!(session.activity, Activity::Working | Activity::Retrying { .. })
    };
    let working = state.sessions.all.iter().filter(works).count();
    (blocked, working)
}
