//! The open conversation and its composer.

use crossterm::event::KeyEvent;
use openagent_core::session::PROMPT_MAX_BYTES;

use super::list;
use crate::app::input::{Call, Effect};
use crate::app::keymap::{self, COMPOSER, ComposerCommand, Move, TALK, TalkCommand};
use crate::app::state::{Focus, Note, State};

pub(super) fn key(state: &mut State, event: &KeyEvent, effects: &mut Vec<Effect>) {
    let Some(command) = keymap::find(TALK, event) else { return };
    match command {
        TalkCommand::Scroll(step) => scroll(state, step),
        TalkCommand::NextCard | TalkCommand::PreviousCard => {
            if let Some(talk) = state.talk_mut() {
                talk.conversation.select_next(command == TalkCommand::NextCard);
            }
        }
        TalkCommand::Toggle => {
            if let Some(talk) = state.talk_mut() {
                talk.conversation.toggle_selected();
            }
        }
        TalkCommand::Compose => state.focus = Focus::Composer,
        TalkCommand::Answer => answer(state),
        TalkCommand::Back => state.focus = Focus::List,
        TalkCommand::Do(action) => list::act(state, action, effects),
    }
}

fn answer(state: &mut State) {
    if state.ask().is_some() {
        state.focus = Focus::Request;
    }
}

pub(super) fn scroll(state: &mut State, step: Move) {
    let Some(talk) = state.talk_mut() else { return };
    let page = i32::try_from(talk.conversation.view.visible.len()).unwrap_or(1).saturating_sub(1).max(1);
    match step {
        Move::Up => talk.conversation.scroll(-1),
        Move::Down => talk.conversation.scroll(1),
        Move::PageUp => talk.conversation.scroll(-page),
        Move::PageDown => talk.conversation.scroll(page),
        Move::First => talk.conversation.to_top(),
        Move::Last => talk.conversation.to_tail(),
    }
}

pub(super) fn composer_key(state: &mut State, event: &KeyEvent, effects: &mut Vec<Effect>) {
    let command = keymap::find(COMPOSER, event);
    let asks = state.ask().is_some();
    let Some(talk) = state.talk_mut() else { return };
    match command {
        Some(ComposerCommand::Send) => send(state, effects),
        Some(ComposerCommand::Newline) => talk.composer.newline(),
        Some(ComposerCommand::Leave) => state.focus = Focus::Talk,
        Some(ComposerCommand::Answer) if asks => answer(state),
        Some(ComposerCommand::Answer) => state.focus = Focus::Talk,
        Some(ComposerCommand::Scroll(step)) => scroll(state, step),
        Some(ComposerCommand::Earlier) if talk.composer.earlier(&talk.conversation.prompts) => {}
        Some(ComposerCommand::Later) if talk.composer.later(&talk.conversation.prompts) => {}
        Some(ComposerCommand::Earlier | ComposerCommand::Later) | None => talk.composer.key(*event),
    }
}

fn send(state: &mut State, effects: &mut Vec<Effect>) {
    let ticket = state.next_ticket;
    let Some(session) = state.open.clone() else { return };
    let Some(talk) = state.talk_mut() else { return };
    if talk.composer.is_blank() {
        return;
    }
    let text = talk.composer.text();
    if text.len() > PROMPT_MAX_BYTES {
        let hint = "put it into a file of the workspace and name that".to_owned();
        state.note = Some(Note { text: "the prompt is longer than 1 MiB".to_owned(), hint, bad: true });
        return;
    }
    talk.composer.take();
    talk.sending.push((ticket, text.clone()));
    talk.conversation.to_tail();
    state.next_ticket += 1;
    effects.push(Effect::Call(Call::Prompt { session, ticket, text }));
}
