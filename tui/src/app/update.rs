//! The only writer of the [`State`]: inputs in, effects out, no clock and no I/O.
//!
//! Keys go to the uppermost layer alone ([`State::layer`]). What costs (wrapping, Markdown) is done when a frame is due
//! ([`Input::Frame`]) and only for what is on the screen. Whatever an input did, the request that waits is brought in line
//! afterwards, so that no path forgets it.

mod answer;
mod list;
pub(in crate::app) mod overlay;
pub(in crate::app) mod request;
pub(in crate::app) mod screen;
mod stream;
mod talk;

use crossterm::event::{KeyEvent, KeyEventKind, MouseButton, MouseEvent, MouseEventKind};
use openagent_core::id::SessionId;
use openagent_core::time::Timestamp;
use ratatui::layout::{Position, Size};

use super::input::{Call, Effect, Input};
use super::keymap::{self, GLOBAL, GlobalCommand, Layer, Move};
use super::layout;
use super::state::{Focus, Note, Overlay, Screen, State, TALKS_KEPT, Talk};
use crate::client::ClientError;

/// Rows that one notch of the wheel scrolls.
const WHEEL_ROWS: i32 = 3;

/// Takes an input in and tells what is to be done.
pub fn update(state: &mut State, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    match input {
        Input::Clock(now) => {
            state.now = now;
            if state.is_daemon_due() {
                state.asked_daemon_at = now;
                effects.push(Effect::Call(Call::Status));
            }
        }
        Input::Frame => frame(state),
        Input::Key(event) if event.kind == KeyEventKind::Release => {}
        Input::Key(event) => key(state, &event, &mut effects),
        Input::Paste(text) => paste(state, &text, &mut effects),
        Input::Mouse(event) => mouse(state, event, &mut effects),
        Input::Resize(columns, rows) => resize(state, columns, rows, &mut effects),
        Input::Watch(watch) => stream::sessions(state, watch, &mut effects),
        Input::Follow(session, watch) => stream::events(state, &session, watch, &mut effects),
        Input::Terminal(id, watch) => stream::terminal(state, &id, watch),
        Input::Answer(answer) => answer::answer(state, answer, &mut effects),
    }
    request::sync(state);
    effects
}

/// Lays out what is on the screen.
fn frame(state: &mut State) {
    request::lay_out(state);
    let areas = layout::areas(state);
    if let Some(list) = areas.list {
        list::bring_into_view(state, list);
    }
    if state.screen == Screen::Main
        && let Some(main) = areas.main
    {
        let history = layout::talk(state, main).history;
        let theme = state.theme;
        if let Some(talk) = state.talk_mut() {
            talk.conversation.arrange(history.width, history.height, theme);
        }
    }
}

fn key(state: &mut State, event: &KeyEvent, effects: &mut Vec<Effect>) {
    let layer = state.layer();
    let armed = std::mem::take(&mut state.quit_armed);
    if !matches!(layer, Layer::Terminal | Layer::Menu) {
        match keymap::find(GLOBAL, event) {
            Some(GlobalCommand::Interrupt) => return interrupt(state, armed, effects),
            Some(GlobalCommand::Do(action)) => return list::act(state, action, effects),
            None => {}
        }
    }
    // News stand until the next key; they must not take a row from a program that runs in a terminal.
    state.note = None;
    match layer {
        Layer::Help | Layer::Confirm | Layer::Form | Layer::Pick => overlay::key(state, event, effects),
        Layer::Field if !state.overlays.is_empty() => overlay::key(state, event, effects),
        Layer::Field if state.screen == Screen::Keys => screen::keys_filter(state, event),
        Layer::Field => list::filter(state, event),
        Layer::List => list::key(state, event, effects),
        Layer::Talk => talk::key(state, event, effects),
        Layer::Composer => talk::composer_key(state, event, effects),
        Layer::Permission | Layer::Question => request::key(state, event, effects),
        Layer::Inbox => screen::inbox_key(state, event, effects),
        Layer::Keys => screen::keys_key(state, event, effects),
        Layer::Usage => screen::usage_key(state, event, effects),
        Layer::Terminal | Layer::Menu => screen::terminal_key(state, event, effects),
    }
}

fn interrupt(state: &mut State, armed: bool, effects: &mut Vec<Effect>) {
    if armed {
        effects.push(Effect::Quit);
        return;
    }
    if state.overlays.pop().is_some() {
        return;
    }
    state.quit_armed = true;
    let running =
        state.subject().filter(|_| state.focus != Focus::List && state.can(keymap::Action::Abort)).map(|session| session.id.clone());
    match running {
        Some(id) => {
            effects.push(Effect::Call(Call::Abort(id)));
            good(state, "ending the turn; Ctrl+C once more quits");
        }
        None => good(state, "Ctrl+C once more quits; sessions go on running"),
    }
}

fn paste(state: &mut State, text: &str, effects: &mut Vec<Effect>) {
    match state.layer() {
        Layer::Field if state.overlays.is_empty() && state.screen == Screen::Keys => state.keys.filter.insert(text),
        Layer::Field if state.overlays.is_empty() => state.sessions.filter.insert(text),
        Layer::Field | Layer::Form | Layer::Pick => overlay::paste(state, text),
        Layer::Composer => {
            if let Some(talk) = state.talk_mut() {
                talk.composer.paste(text);
            }
        }
        Layer::Talk if state.talk().is_some() => {
            state.focus = Focus::Composer;
            if let Some(talk) = state.talk_mut() {
                talk.composer.paste(text);
            }
        }
        Layer::Terminal => {
            if let Some(pane) = &mut state.terminal {
                pane.to_tail();
                effects.push(Effect::Type(super::terminal::encode::paste(text, pane.modes())));
            }
        }
        // Pasted letters must never act as keys.
        Layer::List
        | Layer::Talk
        | Layer::Permission
        | Layer::Question
        | Layer::Inbox
        | Layer::Keys
        | Layer::Usage
        | Layer::Confirm
        | Layer::Help
        | Layer::Menu => {}
    }
}

fn resize(state: &mut State, columns: u16, rows: u16, effects: &mut Vec<Effect>) {
    state.size = Size::new(columns, rows);
    let (columns, rows) = layout::terminal_size(state);
    if let Some(pane) = &mut state.terminal {
        if pane.writing {
            pane.resize(columns, rows);
        }
        effects.push(Effect::ResizeTerminal(columns, rows));
    }
}

fn mouse(state: &mut State, event: MouseEvent, effects: &mut Vec<Effect>) {
    let at = Position::new(event.column, event.row);
    let rows = match event.kind {
        MouseEventKind::ScrollUp => -WHEEL_ROWS,
        MouseEventKind::ScrollDown => WHEEL_ROWS,
        MouseEventKind::Down(MouseButton::Left) if state.overlays.is_empty() => return click(state, at, effects),
        _ => return,
    };
    if let Some(Overlay::Help { offset, .. } | Overlay::Details { offset, .. }) = state.overlays.last_mut() {
        *offset = offset.saturating_add_signed(isize::try_from(rows).unwrap_or(0));
        return;
    }
    if !state.overlays.is_empty() {
        return;
    }
    let areas = layout::areas(state);
    if areas.list.is_some_and(|list| list.contains(at)) {
        return list::step(state, if rows < 0 { Move::Up } else { Move::Down });
    }
    if layout::request(state).is_some_and(|request| request.contains(at)) {
        return request::scroll(state, rows);
    }
    match state.screen {
        Screen::Main => {
            if let Some(talk) = state.talk_mut() {
                talk.conversation.scroll(rows);
            }
        }
        Screen::Terminal => {
            if let Some(pane) = &mut state.terminal {
                pane.scroll(-rows);
            }
        }
        Screen::Inbox => screen::inbox_step(state, rows.signum()),
        Screen::Keys => screen::keys_step(state, rows.signum()),
        Screen::Usage => state.usage.offset = state.usage.offset.saturating_add_signed(isize::try_from(rows).unwrap_or(0)),
    }
}

fn click(state: &mut State, at: Position, effects: &mut Vec<Effect>) {
    let areas = layout::areas(state);
    if let Some(list) = areas.list
        && list.contains(at)
    {
        let rows = layout::list_rows(state, list);
        let row = usize::from(at.y.saturating_sub(rows.y) / layout::session_rows(list.width)) + state.sessions.offset;
        let clicked = state.sessions.shown().get(row).map(|session| session.id.clone());
        if let Some(id) = clicked.filter(|_| at.y >= rows.y) {
            open(state, &id, effects);
        }
        return;
    }
    let (Screen::Main, Some(main)) = (state.screen, areas.main) else { return };
    let talk_areas = layout::talk(state, main);
    if talk_areas.composer.contains(at) {
        state.focus = Focus::Composer;
    } else if talk_areas.request.contains(at) {
        state.focus = Focus::Request;
    } else if let Some(talk) = state.talk_mut()
        && talk_areas.history.contains(at)
        && let Some((entry, _)) = talk.conversation.view.visible.get(usize::from(at.y - talk_areas.history.y)).copied()
    {
        talk.conversation.toggle(entry);
    }
}

/// Opens a session's conversation and follows it.
fn open(state: &mut State, id: &SessionId, effects: &mut Vec<Effect>) {
    state.screen = Screen::Main;
    state.focus = Focus::Composer;
    state.sessions.chosen = Some(id.clone());
    if state.open.as_ref() != Some(id) {
        let talk = state.talks.entry(id.clone()).or_insert_with(|| Talk::new(id.clone()));
        talk.lost = false;
        effects.push(Effect::Follow(id.clone(), talk.conversation.cursor.0));
        state.open = Some(id.clone());
        state.opened.retain(|opened| opened != id);
        state.opened.push(id.clone());
        while state.opened.len() > TALKS_KEPT {
            let oldest = state.opened.remove(0);
            state.talks.remove(&oldest);
        }
    }
    see(state);
}

/// Marks the open conversation as seen.
fn see(state: &mut State) {
    if state.screen != Screen::Main || state.focus == Focus::List && state.size.width < layout::TWO_PANES_MIN {
        return;
    }
    if let Some(session) = state.open.as_ref().and_then(|id| state.sessions.get(id)) {
        let (id, seq) = (session.id.clone(), session.last_seq);
        state.sessions.seen.insert(id, seq);
    }
}

fn good(state: &mut State, text: impl Into<String>) {
    state.note = Some(Note { text: text.into(), hint: String::new(), bad: false });
}

fn bad(state: &mut State, error: &ClientError) {
    if error.reason.starts_with("STORE_") {
        // What is wrong with the store is asked at once, and stands until it is mended.
        state.asked_daemon_at = Timestamp::default();
    }
    state.note = Some(Note { text: error.message.clone(), hint: error.hint.clone(), bad: true });
}

/// Moves `at` within `count` things.
fn moved(at: usize, count: usize, step: Move, page: usize) -> usize {
    let last = count.saturating_sub(1);
    match step {
        Move::Up => at.saturating_sub(1),
        Move::Down => (at + 1).min(last),
        Move::First => 0,
        Move::Last => last,
        Move::PageUp => at.saturating_sub(page),
        Move::PageDown => (at + page).min(last),
    }
}
