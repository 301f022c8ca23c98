//! The session list, and actions on sessions from wherever they are asked for.

use crossterm::event::{KeyCode, KeyEvent};
use openagent_core::id::SessionId;
use openagent_core::permission::PermissionMode;
use ratatui::layout::Rect;

use super::{good, moved, open, request};
use crate::app::field::Field;
use crate::app::input::{Call, Effect};
use crate::app::keymap::{self, Action, FIELD, FieldCommand, LIST, Layer, ListCommand, Move};
use crate::app::layout;
use crate::app::state::{Confirmed, Entry, Focus, FormField, NewForm, Overlay, Purpose, Screen, State};
use crate::app::text::one_line;

pub(super) fn key(state: &mut State, event: &KeyEvent, effects: &mut Vec<Effect>) {
    let Some(command) = keymap::find(LIST, event) else {
        if event.code == KeyCode::Tab && state.open.is_some() {
            state.focus = Focus::Composer;
        }
        return;
    };
    match command {
        ListCommand::Move(step) => self::step(state, step),
        ListCommand::Open => {
            if let Some(id) = state.sessions.chosen.clone() {
                open(state, &id, effects);
            }
        }
        ListCommand::Filter => state.sessions.filtering = true,
        ListCommand::Clear => state.sessions.filter.clear(),
        ListCommand::Do(action) => act(state, action, effects),
    }
}

pub(super) fn step(state: &mut State, step: Move) {
    let shown = state.sessions.shown();
    let at = shown.iter().position(|session| Some(&session.id) == state.sessions.chosen.as_ref()).unwrap_or(0);
    let page = usize::from(state.size.height / 2).max(1);
    let chosen = shown.get(moved(at, shown.len(), step, page)).map(|session| session.id.clone());
    if chosen.is_some() {
        state.sessions.chosen = chosen;
    }
}

pub(super) fn filter(state: &mut State, event: &KeyEvent) {
    match keymap::find(FIELD, event) {
        Some(FieldCommand::Accept) => state.sessions.filtering = false,
        Some(FieldCommand::Cancel) => {
            state.sessions.filtering = false;
            state.sessions.filter.clear();
        }
        None => match event.code {
            KeyCode::Down => step(state, Move::Down),
            KeyCode::Up => step(state, Move::Up),
            _ => {
                state.sessions.filter.key(event);
                let shown = state.sessions.shown();
                if !shown.iter().any(|session| Some(&session.id) == state.sessions.chosen.as_ref()) {
                    state.sessions.chosen = shown.first().map(|session| session.id.clone());
                }
            }
        },
    }
}

/// Scrolls the list so that the chosen session is seen.
pub(super) fn bring_into_view(state: &mut State, list: Rect) {
    let rows = layout::list_rows(state, list);
    let fit = usize::from(rows.height / layout::session_rows(list.width)).max(1);
    let shown = state.sessions.shown();
    let count = shown.len();
    let at = shown.iter().position(|session| Some(&session.id) == state.sessions.chosen.as_ref()).unwrap_or(0);
    let offset = state.sessions.offset.min(count.saturating_sub(fit));
    state.sessions.offset = offset.clamp((at + 1).saturating_sub(fit), at);
}

/// A session is no more.
pub(super) fn removed(state: &mut State, id: &SessionId, effects: &mut Vec<Effect>) {
    let at = state.sessions.all.iter().position(|session| session.id == *id);
    state.sessions.all.retain(|session| session.id != *id);
    state.sessions.seen.remove(id);
    state.talks.remove(id);
    state.opened.retain(|opened| opened != id);
    state.inbox.retain(|pending| pending.session != *id);
    if state.sessions.chosen.as_ref() == Some(id) {
        let next = at.unwrap_or(0).min(state.sessions.all.len().saturating_sub(1));
        state.sessions.chosen = state.sessions.all.get(next).map(|session| session.id.clone());
    }
    if state.terminal.as_ref().is_some_and(|pane| pane.session == *id) {
        state.terminal = None;
        effects.push(Effect::Detach);
        if state.screen == Screen::Terminal {
            state.screen = Screen::Main;
        }
    }
    if state.open.as_ref() == Some(id) {
        state.open = None;
        state.focus = Focus::List;
        effects.push(Effect::Unfollow);
    }
}

/// A file name made of a title.
fn file_name(title: &str) -> String {
    let name: String = title.chars().map(|letter| if letter.is_alphanumeric() { letter } else { '-' }).take(60).collect();
    let name = name.trim_matches('-').to_lowercase();
    if name.is_empty() { "session".to_owned() } else { name }
}

/// Acts on the session that has the keys, or on the program.
pub(super) fn act(state: &mut State, action: Action, effects: &mut Vec<Effect>) {
    if !state.can(action) {
        let why = match action {
            Action::Abort => "no turn runs",
            Action::Stop => "the session does not run",
            Action::Resume => "the session is not stopped",
            _ => "there is no session",
        };
        good(state, why);
        return;
    }
    let subject = state.subject().map(|session| (session.id.clone(), session.title.clone()));
    match (action, subject) {
        (Action::New, _) => {
            state.overlays.push(Overlay::New(Box::new(NewForm {
                at: FormField::Title,
                title: Field::default(),
                model_filter: Field::default(),
                model_at: 0,
                mode: PermissionMode::default(),
                copy: false,
                path: Field::with(&state.folder),
                sent: false,
                error: None,
            })));
            effects.push(Effect::Call(Call::Providers));
        }
        (Action::Inbox, _) => {
            state.screen = Screen::Inbox;
            state.focus = Focus::List;
            request::refresh_inbox(state, effects);
        }
        (Action::Usage, _) => {
            state.screen = Screen::Usage;
            effects.push(Effect::Call(Call::Usage(state.usage.grouping)));
        }
        (Action::Keys, _) => {
            state.screen = Screen::Keys;
            effects.extend([Call::Providers, Call::Keys].map(Effect::Call));
        }
        (Action::Help, _) => {
            if !matches!(state.overlays.last(), Some(Overlay::Help { .. })) {
                let layer = state.layer();
                let mut layers = vec![layer];
                layers.extend([Layer::Composer, Layer::Talk, Layer::List].into_iter().filter(|other| *other != layer));
                state.overlays.push(Overlay::Help { layers, offset: 0 });
            }
        }
        (Action::Palette, _) => {
            if !matches!(state.overlays.last(), Some(Overlay::Palette { .. })) {
                state.overlays.push(Overlay::Palette { filter: Field::default(), at: 0 });
            }
        }
        (Action::Quit, _) => effects.push(Effect::Quit),
        (Action::Rename, Some((id, title))) => state.overlays.push(Overlay::Entry(Entry {
            purpose: Purpose::Rename(id),
            title: "Title of the session".into(),
            hint: "1 to 200 characters".into(),
            field: Field::with(&title),
            masked: false,
        })),
        (Action::Export, Some((id, title))) => state.overlays.push(Overlay::Entry(Entry {
            purpose: Purpose::Export(id),
            title: "Export to".into(),
            hint: "a zip archive with the workspace and the transcript; no file is replaced".into(),
            field: Field::with(&format!("{}/{}.zip", state.folder.trim_end_matches('/'), file_name(&title))),
            masked: false,
        })),
        (Action::Remove, Some((id, title))) => state.overlays.push(Overlay::Confirm {
            question: format!("Remove “{}” with its workspace and history? This cannot be undone.", one_line(&title)),
            purpose: Confirmed::Remove(id),
        }),
        (Action::Stop, Some((id, title))) => {
            let title = one_line(&title);
            let question = if state.can(Action::Abort) {
                format!("“{title}” is in the middle of a turn. Stop it?")
            } else if state.subject().is_some_and(|session| session.queue_position > 0) {
                format!("Take “{title}” out of the queue? R puts it back.")
            } else {
                format!("Stop “{title}”? Everything but its container is kept; R resumes it.")
            };
            state.overlays.push(Overlay::Confirm { question, purpose: Confirmed::Stop(id) });
        }
        (Action::Details, Some((session, _))) => state.overlays.push(Overlay::Details { session, offset: 0 }),
        (Action::Resume, Some((id, _))) => effects.push(Effect::Call(Call::Resume(id))),
        (Action::Abort, Some((id, _))) => effects.push(Effect::Call(Call::Abort(id))),
        (Action::Terminal, Some((id, _))) => effects.push(Effect::Call(Call::Terminals(id))),
        (
            Action::Rename
            | Action::Export
            | Action::Remove
            | Action::Stop
            | Action::Resume
            | Action::Abort
            | Action::Terminal
            | Action::Details,
            None,
        ) => {}
    }
}
