//! The screens beside the conversation: inbox, key manager, usage, terminal.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use openagent_core::id::{SessionId, TerminalId};
use openagent_proto::v1::UsageGrouping;

use super::{good, list, moved, open, request, see};
use crate::app::field::Field;
use crate::app::input::{Call, Effect};
use crate::app::keymap::{
    self, Action, FIELD, FieldCommand, INBOX, InboxCommand, KEYS, KeysCommand, MENU, MenuCommand, TERMINAL, TERMINAL_SHIFTED,
    TerminalCommand, USAGE, UsageCommand,
};
use crate::app::layout;
use crate::app::state::{Confirmed, Entry, Focus, Overlay, Purpose, Screen, State};
use crate::app::terminal::{Pane, encode};

/// Rows that the terminal's menu scrolls.
const SCROLL_ROWS: i32 = 10;

fn to_main(state: &mut State) {
    state.screen = Screen::Main;
    state.focus = if state.open.is_some() { Focus::Talk } else { Focus::List };
    see(state);
}

pub(super) fn inbox_step(state: &mut State, step: i32) {
    let at = state.inbox_at.saturating_add_signed(isize::try_from(step).unwrap_or(0));
    state.inbox_at = at.min(state.inbox.len().saturating_sub(1));
}

pub(super) fn inbox_key(state: &mut State, event: &KeyEvent, effects: &mut Vec<Effect>) {
    let Some(command) = keymap::find(INBOX, event) else { return };
    match command {
        InboxCommand::Move(step) => state.inbox_at = moved(state.inbox_at, state.inbox.len(), step, 5),
        InboxCommand::Answer => {
            if state.ask().is_some() {
                state.focus = Focus::Request;
                // Whoever goes there sees it.
                if let Some(prompt) = &mut state.prompt {
                    prompt.scroll = 0;
                }
            }
        }
        InboxCommand::Open => {
            if let Some(id) = state.inbox.get(state.inbox_at).map(|pending| pending.session.clone()) {
                open(state, &id, effects);
            }
        }
        InboxCommand::Refresh => request::refresh_inbox(state, effects),
        InboxCommand::Back => to_main(state),
        InboxCommand::Do(action) => list::act(state, action, effects),
    }
}

pub(super) fn keys_step(state: &mut State, step: i32) {
    let count = state.keyed_providers().len();
    let at = state.keys.at.saturating_add_signed(isize::try_from(step).unwrap_or(0));
    state.keys.at = at.min(count.saturating_sub(1));
    keys_bring_into_view(state);
}

fn keys_bring_into_view(state: &mut State) {
    // A heading and a row of column names stand above the providers.
    let fit = layout::areas(state).main.map_or(1, |main| usize::from(main.height.saturating_sub(2)).max(1));
    let at = state.keys.at;
    state.keys.offset = state.keys.offset.clamp((at + 1).saturating_sub(fit), at);
}

pub(super) fn keys_filter(state: &mut State, event: &KeyEvent) {
    match keymap::find(FIELD, event) {
        Some(FieldCommand::Accept) => state.keys.filtering = false,
        Some(FieldCommand::Cancel) => {
            state.keys.filtering = false;
            state.keys.filter.clear();
        }
        None => match event.code {
            KeyCode::Down => keys_step(state, 1),
            KeyCode::Up => keys_step(state, -1),
            _ => {
                state.keys.filter.key(event);
                state.keys.at = 0;
                state.keys.offset = 0;
            }
        },
    }
}

pub(super) fn keys_key(state: &mut State, event: &KeyEvent, effects: &mut Vec<Effect>) {
    let Some(command) = keymap::find(KEYS, event) else { return };
    let chosen = state.keyed_providers().get(state.keys.at).map(|provider| (provider.id.clone(), provider.name.clone(), provider.has_key));
    match (command, chosen) {
        (KeysCommand::Move(step), _) => {
            let count = state.keyed_providers().len();
            let page = usize::from(state.size.height / 2).max(1);
            state.keys.at = moved(state.keys.at, count, step, page);
            keys_bring_into_view(state);
        }
        (KeysCommand::Set, Some((id, name, _))) => state.overlays.push(Overlay::Entry(Entry {
            purpose: Purpose::Key(id),
            title: format!("Key for {name}"),
            hint: "type or paste; it is never shown".into(),
            field: Field::for_secret(),
            masked: true,
        })),
        (KeysCommand::Remove, Some((id, name, true))) => state.overlays.push(Overlay::Confirm {
            question: format!("Remove the key for {name}? Sessions that run can no longer use it."),
            purpose: Confirmed::RemoveKey(id),
        }),
        (KeysCommand::Remove, Some((_, name, false))) => good(state, format!("there is no key for {name}")),
        (KeysCommand::Set | KeysCommand::Remove, None) => {}
        (KeysCommand::Filter, _) => state.keys.filtering = true,
        (KeysCommand::Back, _) if !state.keys.filter.text().is_empty() => state.keys.filter.clear(),
        (KeysCommand::Back, _) => to_main(state),
        (KeysCommand::Do(action), _) => list::act(state, action, effects),
    }
}

pub(super) fn usage_key(state: &mut State, event: &KeyEvent, effects: &mut Vec<Effect>) {
    let Some(command) = keymap::find(USAGE, event) else { return };
    match command {
        UsageCommand::NextGrouping => {
            state.usage.grouping = match state.usage.grouping {
                UsageGrouping::Session => UsageGrouping::Day,
                UsageGrouping::Day => UsageGrouping::Model,
                UsageGrouping::Model | UsageGrouping::Message | UsageGrouping::Unspecified => UsageGrouping::Session,
            };
            state.usage.offset = 0;
            effects.push(Effect::Call(Call::Usage(state.usage.grouping)));
        }
        UsageCommand::Move(step) => {
            let count = state.usage.sums.as_ref().map_or(0, |sums| sums.groups.len());
            state.usage.offset = moved(state.usage.offset, count, step, 5);
        }
        UsageCommand::Refresh => effects.push(Effect::Call(Call::Usage(state.usage.grouping))),
        UsageCommand::Back => to_main(state),
        UsageCommand::Do(action) => list::act(state, action, effects),
    }
}

/// Shows a terminal and attaches to it; one that is attached already is only shown.
pub(super) fn attach(state: &mut State, session: SessionId, id: TerminalId, effects: &mut Vec<Effect>) {
    state.screen = Screen::Terminal;
    if state.terminal.as_ref().is_some_and(|pane| pane.id == id && pane.exited.is_none()) {
        return;
    }
    let size = layout::terminal_size(state);
    state.terminal = Some(Pane::new(session.clone(), id.clone(), size.0, size.1));
    effects.push(Effect::Attach { session, terminal: id, offset: 0, size });
}

fn leave(state: &mut State, effects: &mut Vec<Effect>) {
    if let Some(pane) = state.terminal.take() {
        effects.push(Effect::Detach);
        // Back to where it was opened from: its own session.
        state.sessions.chosen = Some(pane.session);
    }
    to_main(state);
}

pub(super) fn terminal_key(state: &mut State, event: &KeyEvent, effects: &mut Vec<Effect>) {
    let page = i32::from(layout::terminal_size(state).1).saturating_sub(1).max(1);
    let Some(pane) = &mut state.terminal else { return to_main(state) };
    if pane.menu {
        pane.menu = false;
        return menu_key(state, event, effects);
    }
    if keymap::find(TERMINAL, event) == Some(TerminalCommand::Menu) {
        pane.menu = true;
        return;
    }
    if event.modifiers == KeyModifiers::SHIFT {
        match keymap::find(TERMINAL_SHIFTED, event) {
            Some(TerminalCommand::PageUp) => return pane.scroll(page),
            Some(TerminalCommand::PageDown) => return pane.scroll(-page),
            Some(TerminalCommand::Menu) | None => {}
        }
    }
    if pane.exited.is_some() {
        return leave(state, effects);
    }
    let bytes = encode::key(event, pane.modes());
    if bytes.is_empty() {
        return;
    }
    pane.to_tail();
    if pane.writing {
        effects.push(Effect::Type(bytes));
    } else if pane.attached {
        good(state, "somebody else types here; Ctrl+] then t takes over");
    }
}

fn menu_key(state: &mut State, event: &KeyEvent, effects: &mut Vec<Effect>) {
    let Some(command) = keymap::find(MENU, event) else { return };
    let Some(pane) = &mut state.terminal else { return };
    match command {
        MenuCommand::Leave => leave(state, effects),
        MenuCommand::TakeOver => effects.push(Effect::TakeOver),
        MenuCommand::PageUp => {
            pane.scroll(SCROLL_ROWS);
            // Scrolling goes on until another key.
            pane.menu = true;
        }
        MenuCommand::PageDown => {
            pane.scroll(-SCROLL_ROWS);
            pane.menu = true;
        }
        MenuCommand::Other => effects.push(Effect::Call(Call::Terminals(pane.session.clone()))),
        MenuCommand::New => {
            let session = pane.session.clone();
            effects.push(Effect::Call(Call::OpenTerminal(session, layout::terminal_size(state))));
        }
        MenuCommand::Close => {
            let purpose = Confirmed::CloseTerminal(pane.session.clone(), pane.id.clone());
            let question = "End this terminal and everything that runs in it?".into();
            state.overlays.push(Overlay::Confirm { question, purpose });
        }
        MenuCommand::Literal => effects.push(Effect::Type(vec![0x1d])),
        MenuCommand::Help => list::act(state, Action::Help, effects),
        MenuCommand::Cancel => {}
    }
}

/// What the usage screen is grouped by, in a word.
#[must_use]
pub(in crate::app) const fn grouping_name(grouping: UsageGrouping) -> &'static str {
    match grouping {
        UsageGrouping::Session => "session",
        UsageGrouping::Day => "day",
        UsageGrouping::Model => "model",
        UsageGrouping::Message => "message",
        UsageGrouping::Unspecified => "everything",
    }
}
