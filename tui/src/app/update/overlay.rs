//! What stands over the screen: help, confirmations, fields, the new session form, the welcome, pickers.

use crossterm::event::{KeyCode, KeyEvent};
use openagent_core::permission::PermissionMode;
use openagent_core::permission::PermissionResponse;
use openagent_core::provider::DEMO;
use openagent_core::secret::Secret;
use openagent_core::session::WorkspaceSource;

use super::{good, list, moved, screen};
use crate::app::input::{Call, Effect};
use crate::app::keymap::{
    self, ACTIONS, Action, CONFIRM, ConfirmCommand, FIELD, FORM, FieldCommand, FormCommand, HELP, HelpCommand, PICK, PickCommand,
};
use crate::app::layout;
use crate::app::state::{Confirmed, Entry, FormField, NewForm, Note, Overlay, Purpose, Screen, State};
use crate::app::text::fuzzy;
use crate::client::NewSession;

/// The choices of the welcome.
pub const WELCOME: [(&str, &str); 3] = [
    ("Add a provider key", "it stays in the daemon's vault"),
    ("Take the tour", "a scripted agent; no key, no network"),
    ("Later", "K adds keys, n makes sessions"),
];

/// What the tour suggests to say.
const TOUR_PROMPT: &str = "Show me what you can do";

/// Offers the tour once, where there is nothing to work with yet.
pub(super) fn maybe_welcome(state: &mut State) {
    let Some(providers) = &state.providers else { return };
    // A model server of the shipped list that needs no key is not known to run; one that the user configured is.
    let usable = providers.providers.iter().any(|provider| provider.has_key || provider.own && !provider.needs_key);
    if !state.welcomed && state.sessions.complete && state.sessions.all.is_empty() && !usable {
        state.welcomed = true;
        state.overlays.push(Overlay::Welcome { at: 0 });
    }
}

/// Actions whose name matches, best first.
#[must_use]
pub(in crate::app) fn palette(filter: &str) -> Vec<(Action, &'static str)> {
    let mut found: Vec<(usize, (Action, &'static str))> =
        ACTIONS.iter().filter_map(|(action, name)| Some((fuzzy(filter, name)?, (*action, *name)))).collect();
    if !filter.is_empty() {
        found.sort_by_key(|(cost, _)| *cost);
    }
    found.into_iter().map(|(_, action)| action).collect()
}

pub(super) fn key(state: &mut State, event: &KeyEvent, effects: &mut Vec<Effect>) {
    match state.overlays.last_mut() {
        Some(Overlay::Help { offset, .. } | Overlay::Details { offset, .. }) => match keymap::find(HELP, event) {
            Some(HelpCommand::Close) => {
                state.overlays.pop();
            }
            Some(HelpCommand::Move(step)) => *offset = moved(*offset, 200, step, usize::from(state.size.height / 2).max(1)),
            None => {}
        },
        Some(Overlay::Confirm { .. }) => match keymap::find(CONFIRM, event) {
            Some(ConfirmCommand::Yes) => {
                if let Some(Overlay::Confirm { purpose, .. }) = state.overlays.pop() {
                    confirmed(state, purpose, effects);
                }
            }
            Some(ConfirmCommand::No) => {
                state.overlays.pop();
            }
            None => {}
        },
        Some(Overlay::Entry(entry)) => match keymap::find(FIELD, event) {
            Some(FieldCommand::Accept) => {
                if let Some(Overlay::Entry(entry)) = state.overlays.pop() {
                    entered(state, entry, effects);
                }
            }
            Some(FieldCommand::Cancel) => {
                state.overlays.pop();
            }
            None => {
                entry.field.key(event);
            }
        },
        Some(Overlay::New(_)) => form_key(state, event, effects),
        Some(Overlay::Welcome { .. } | Overlay::Palette { .. } | Overlay::Terminals { .. }) => pick_key(state, event, effects),
        None => {}
    }
}

pub(super) fn paste(state: &mut State, text: &str) {
    match state.overlays.last_mut() {
        Some(Overlay::Entry(entry)) => entry.field.insert(text.trim()),
        Some(Overlay::New(form)) => {
            if let Some(field) = form_field(form) {
                field.insert(text.trim());
            }
        }
        Some(Overlay::Palette { filter, .. }) => filter.insert(text.trim()),
        Some(
            Overlay::Help { .. } | Overlay::Details { .. } | Overlay::Confirm { .. } | Overlay::Welcome { .. } | Overlay::Terminals { .. },
        )
        | None => {}
    }
}

fn confirmed(state: &mut State, purpose: Confirmed, effects: &mut Vec<Effect>) {
    effects.push(Effect::Call(match purpose {
        Confirmed::Remove(id) => {
            good(state, "removing…");
            Call::Remove(id)
        }
        Confirmed::Stop(id) => {
            good(state, "stopping…");
            Call::Stop(id)
        }
        Confirmed::RemoveKey(provider) => Call::RemoveKey(provider),
        Confirmed::CloseTerminal(session, terminal) => Call::CloseTerminal(session, terminal),
    }));
}

fn entered(state: &mut State, entry: Entry, effects: &mut Vec<Effect>) {
    let text = entry.field.text().trim();
    let needed = match &entry.purpose {
        Purpose::Rename(_) => "a title",
        Purpose::Export(_) => "a file name",
        Purpose::Key(_) => "a key",
        Purpose::Reject(..) | Purpose::OwnWords(..) => "",
    };
    if text.is_empty() && !needed.is_empty() {
        state.note = Some(Note { text: format!("{needed} is needed"), hint: String::new(), bad: true });
        state.overlays.push(Overlay::Entry(entry));
        return;
    }
    let call = match &entry.purpose {
        Purpose::Rename(id) => Call::Rename(id.clone(), text.to_owned()),
        Purpose::Export(id) => {
            good(state, "exporting…");
            Call::Export(id.clone(), text.to_owned())
        }
        Purpose::Key(provider) => Call::SetKey(provider.clone(), Secret::new(text.to_owned())),
        Purpose::Reject(session, request) => {
            // What is on the screen may have changed while the reason was written.
            if let Some(prompt) = state.prompt.as_mut().filter(|prompt| prompt.request == *request) {
                prompt.sent = true;
            }
            Call::AnswerPermission {
                session: session.clone(),
                request: request.clone(),
                response: PermissionResponse::Reject,
                reason: text.to_owned(),
            }
        }
        Purpose::OwnWords(request, question) => {
            if let Some(prompt) = state.prompt.as_mut().filter(|prompt| prompt.request == *request)
                && let Some(own) = prompt.own.get_mut(*question)
            {
                text.clone_into(own);
                prompt.rows.clear();
            }
            return;
        }
    };
    effects.push(Effect::Call(call));
}

fn form_field(form: &mut NewForm) -> Option<&mut crate::app::field::Field> {
    match form.at {
        FormField::Title => Some(&mut form.title),
        FormField::Model => Some(&mut form.model_filter),
        FormField::Path => Some(&mut form.path),
        FormField::Mode | FormField::Workspace => None,
    }
}

fn next_field(form: &NewForm, forward: bool) -> FormField {
    let fields: &[FormField] = if form.copy {
        &[FormField::Title, FormField::Model, FormField::Mode, FormField::Workspace, FormField::Path]
    } else {
        &[FormField::Title, FormField::Model, FormField::Mode, FormField::Workspace]
    };
    let at = fields.iter().position(|field| *field == form.at).unwrap_or(0);
    let next = if forward { at + 1 } else { at + fields.len() - 1 };
    fields[next % fields.len()]
}

fn turn_mode(mode: PermissionMode, forward: bool) -> PermissionMode {
    let all = PermissionMode::ALL;
    let at = all.iter().position(|candidate| *candidate == mode).unwrap_or(0);
    all[if forward { at + 1 } else { at + all.len() - 1 } % all.len()]
}

fn form_key(state: &mut State, event: &KeyEvent, effects: &mut Vec<Effect>) {
    let found = match state.overlays.last() {
        Some(Overlay::New(form)) => state.models(form.model_filter.text()),
        _ => return,
    };
    let Some(Overlay::New(form)) = state.overlays.last_mut() else { return };
    match keymap::find(FORM, event) {
        Some(FormCommand::Cancel) => {
            state.overlays.pop();
        }
        Some(FormCommand::Next) => form.at = next_field(form, true),
        Some(FormCommand::Previous) => form.at = next_field(form, false),
        Some(FormCommand::Down) if form.at == FormField::Model => form.model_at = (form.model_at + 1).min(found.len().saturating_sub(1)),
        Some(FormCommand::Up) if form.at == FormField::Model && form.model_at > 0 => form.model_at -= 1,
        Some(FormCommand::Down) => form.at = next_field(form, true),
        Some(FormCommand::Up) => form.at = next_field(form, false),
        Some(FormCommand::Create) if form.sent => {}
        Some(FormCommand::Create) => {
            let Some((model, _)) = found.get(form.model_at) else {
                let hint = "Esc, then K adds a provider key; or search for another model".to_owned();
                state.note = Some(Note { text: "no usable model matches".to_owned(), hint, bad: true });
                return;
            };
            form.sent = true;
            form.error = None;
            let path = form.path.text().trim().to_owned();
            effects.push(Effect::Call(Call::Create(NewSession {
                title: form.title.text().trim().to_owned(),
                workspace: if form.copy { WorkspaceSource::Copy { path } } else { WorkspaceSource::Empty },
                model: model.clone(),
                permission_mode: Some(form.mode),
                ..NewSession::default()
            })));
        }
        None => match (form.at, event.code) {
            (FormField::Mode, KeyCode::Left) => form.mode = turn_mode(form.mode, false),
            (FormField::Mode, KeyCode::Right | KeyCode::Char(' ')) => form.mode = turn_mode(form.mode, true),
            (FormField::Workspace, KeyCode::Left | KeyCode::Right | KeyCode::Char(' ')) => form.copy = !form.copy,
            (FormField::Model, _) => {
                if form.model_filter.key(event) {
                    form.model_at = 0;
                }
            }
            _ => {
                if let Some(field) = form_field(form) {
                    field.key(event);
                }
            }
        },
    }
}

fn pick_key(state: &mut State, event: &KeyEvent, effects: &mut Vec<Effect>) {
    let count = match state.overlays.last() {
        Some(Overlay::Welcome { .. }) => WELCOME.len(),
        Some(Overlay::Palette { filter, .. }) => palette(filter.text()).len(),
        Some(Overlay::Terminals { terminals, .. }) => terminals.len() + 1,
        _ => return,
    };
    let command = keymap::find(PICK, event);
    // A letter moves where nothing is searched for.
    let searches = matches!(state.overlays.last(), Some(Overlay::Palette { .. }));
    let command = match (command, event.code) {
        (None, KeyCode::Char('j')) if !searches => Some(PickCommand::Down),
        (None, KeyCode::Char('k')) if !searches => Some(PickCommand::Up),
        (command, _) => command,
    };
    let Some(Overlay::Welcome { at } | Overlay::Palette { at, .. } | Overlay::Terminals { at, .. }) = state.overlays.last_mut() else {
        return;
    };
    match command {
        Some(PickCommand::Up) => *at = at.saturating_sub(1),
        Some(PickCommand::Down) => *at = (*at + 1).min(count.saturating_sub(1)),
        Some(PickCommand::Cancel) => {
            state.overlays.pop();
        }
        Some(PickCommand::Take) => {
            if let Some(overlay) = state.overlays.pop() {
                taken(state, overlay, effects);
            }
        }
        None => match state.overlays.last_mut() {
            Some(Overlay::Palette { filter, at }) => {
                // What is found changes with what is searched for.
                let edited = filter.key(event);
                *at = if edited { 0 } else { *at };
            }
            Some(Overlay::Welcome { at } | Overlay::Terminals { at, .. }) => {
                if let KeyCode::Char(digit @ '1'..='9') = event.code {
                    let index = digit as usize - '1' as usize;
                    if index < count {
                        *at = index;
                    }
                }
            }
            _ => {}
        },
    }
}

fn taken(state: &mut State, overlay: Overlay, effects: &mut Vec<Effect>) {
    match overlay {
        Overlay::Palette { filter, at } => {
            if let Some((action, _)) = palette(filter.text()).get(at).copied() {
                list::act(state, action, effects);
            }
        }
        Overlay::Terminals { session, terminals, at } => match terminals.get(at).and_then(|terminal| terminal.id.parse().ok()) {
            Some(id) => screen::attach(state, session, id, effects),
            None => effects.push(Effect::Call(Call::OpenTerminal(session, layout::terminal_size(state)))),
        },
        Overlay::Welcome { at: 0 } => {
            state.screen = Screen::Keys;
            effects.extend([Call::Providers, Call::Keys].map(Effect::Call));
        }
        Overlay::Welcome { at: 1 } => {
            let demo = state.providers.as_ref().and_then(|providers| providers.providers.iter().find(|provider| provider.id == DEMO));
            match demo.and_then(|demo| demo.models.first()).map(|model| format!("{DEMO}/{}", model.id)) {
                Some(model) => {
                    state.suggestion = Some(TOUR_PROMPT.to_owned());
                    effects.push(Effect::Call(Call::Create(NewSession { model, title: "Tour".to_owned(), ..NewSession::default() })));
                }
                None => state.note = Some(Note { text: "this daemon has no demo".to_owned(), hint: String::new(), bad: true }),
            }
        }
        Overlay::Welcome { .. }
        | Overlay::Help { .. }
        | Overlay::Details { .. }
        | Overlay::Confirm { .. }
        | Overlay::Entry(_)
        | Overlay::New(_) => {}
    }
}
