//! The request that waits for the user: permissions and questions.
//!
//! An answer must be meant for the request that it reaches. Hence: a request takes the keys only from an empty composer, and answers that come within
//! [`GUARD_MILLIS`] of its appearance are not taken.

use crossterm::event::KeyEvent;
use openagent_core::permission::{PermissionRequest, PermissionResponse, QuestionRequest};
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::{good, screen};
use crate::app::conversation::render::diff_rows;
use crate::app::field::Field;
use crate::app::input::{Call, Effect};
use crate::app::keymap::{self, Move, PERMISSION, PermissionCommand, QUESTION, QuestionCommand};
use crate::app::layout;
use crate::app::state::{Entry, Focus, Overlay, Prompt, Purpose, Screen, State};
use crate::app::text::harmless;
use crate::app::theme::Theme;
use crate::app::wrap::{Break, wrap, wrap_text};
use crate::client::PendingRequest;

/// Time for which a request that just appeared takes no answer; about what a person needs to see it.
pub const GUARD_MILLIS: u64 = 300;

/// Asks for the inbox; while an answer is on its way, once more after it.
pub(super) fn refresh_inbox(state: &mut State, effects: &mut Vec<Effect>) {
    match &mut state.inbox_asked {
        Some(again) => *again = true,
        none => {
            *none = Some(false);
            effects.push(Effect::Call(Call::Pending));
        }
    }
}

/// Brings the shown request in line with what waits.
pub(super) fn sync(state: &mut State) {
    let asked = state.ask().map(|ask| (ask.session.clone(), ask.request.clone()));
    let Some((session, request)) = asked else {
        state.prompt = None;
        if state.focus == Focus::Request {
            state.focus = if state.screen == Screen::Inbox { Focus::List } else { Focus::Composer };
        }
        return;
    };
    let id = request.id().clone();
    if state.prompt.as_ref().is_some_and(|prompt| prompt.request == id && prompt.session == session) {
        return;
    }
    let (chosen, own) = match &request {
        PendingRequest::Question(question) => (
            question.questions.iter().map(|question| vec![false; question.options.len()]).collect(),
            vec![String::new(); question.questions.len()],
        ),
        PendingRequest::Permission(_) => (Vec::new(), Vec::new()),
    };
    state.prompt = Some(Prompt {
        session,
        request: id,
        shown_at: state.now,
        scroll: 0,
        rows: Vec::new(),
        width: 0,
        question: 0,
        option: 0,
        chosen,
        own,
        sent: false,
    });
    let writes = state.focus == Focus::Composer && state.talk().is_some_and(|talk| !talk.composer.is_blank());
    if state.screen == Screen::Main && state.focus != Focus::List && !writes {
        state.focus = Focus::Request;
    }
}

/// Lays the shown request out where its width changed or it has none yet.
pub(super) fn lay_out(state: &mut State) {
    // The width does not depend on the rows, so one look at the layout is enough.
    let Some(area) = layout::request(state) else { return };
    let Some(ask) = state.ask() else { return };
    let Some(prompt) = &state.prompt else { return };
    if prompt.width != area.width || prompt.rows.is_empty() {
        let width = usize::from(area.width).max(4);
        let rows = match &ask.request {
            PendingRequest::Permission(request) => permission_rows(request, width, state.theme),
            PendingRequest::Question(request) => question_rows(request, prompt, width, state.theme),
        };
        if let Some(prompt) = &mut state.prompt {
            prompt.rows = rows;
            prompt.width = area.width;
        }
    }
    let Some(area) = layout::request(state) else { return };
    if let Some(prompt) = &mut state.prompt {
        prompt.scroll = prompt.scroll.min(layout::request_scroll_max(prompt, area));
    }
}

fn permission_rows(request: &PermissionRequest, width: usize, theme: Theme) -> Vec<Line<'static>> {
    let bar = Span::styled("│ ", theme.warn());
    let mut rows = wrap_text(&harmless(&request.title), theme.strong(), width, Break::Letters, &bar);
    if let Some(diff) = &request.diff {
        rows.extend(diff_rows(diff, width, theme, &bar));
    }
    if !request.always.is_empty() {
        let patterns: Vec<String> = request.always.iter().map(|pattern| harmless(pattern).replace('\n', " ")).collect();
        let mut spans = vec![Span::styled(format!("s and A would allow: {}", patterns.join(", ")), theme.dim())];
        if request.always.iter().any(|pattern| pattern == "*") {
            spans.push(Span::styled(format!("  (every {})", harmless(&request.permission).replace('\n', " ")), theme.warn()));
        }
        rows.extend(wrap(&spans, width, Break::Words, &bar, &bar));
    }
    rows
}

fn question_rows(request: &QuestionRequest, prompt: &Prompt, width: usize, theme: Theme) -> Vec<Line<'static>> {
    let bar = Span::styled("│ ", theme.warn());
    let mut rows = Vec::new();
    let count = request.questions.len();
    let Some(question) = request.questions.get(prompt.question) else { return rows };
    let number = if count > 1 { format!("({} of {count}) ", prompt.question + 1) } else { String::new() };
    let text = format!("{number}{}", harmless(&question.text));
    for line in text.split('\n') {
        rows.extend(wrap(&[Span::styled(line.to_owned(), theme.strong())], width, Break::Words, &bar, &bar));
    }
    let chosen = prompt.chosen.get(prompt.question);
    for (index, option) in question.options.iter().enumerate() {
        let set = chosen.and_then(|chosen| chosen.get(index)).copied().unwrap_or(false);
        let mark = match (question.multiple, set) {
            (true, true) => "[x]",
            (true, false) => "[ ]",
            (false, true) => "(•)",
            (false, false) => "( )",
        };
        let here = index == prompt.option;
        let first = Span::styled(format!("│ {} {mark} ", if here { "▸" } else { " " }), theme.warn());
        let rest = Span::styled("│       ", theme.warn());
        let style = if here { theme.accent() } else { Style::new() };
        let mut spans = vec![Span::styled(harmless(&option.label).replace('\n', " "), style)];
        if !option.description.is_empty() {
            spans.push(Span::styled(format!("  {}", harmless(&option.description).replace('\n', " ")), theme.dim()));
        }
        rows.extend(wrap(&spans, width, Break::Words, &first, &rest));
    }
    if let Some(own) = prompt.own.get(prompt.question).filter(|own| !own.is_empty()) {
        rows.extend(wrap(&[Span::raw(format!("own words: {}", harmless(own)))], width, Break::Words, &bar, &bar));
    } else if question.custom {
        rows.extend(wrap(&[Span::styled("w: answer in your own words", theme.dim())], width, Break::Words, &bar, &bar));
    }
    rows
}

/// Scrolls the request by `rows`, down where positive.
pub(super) fn scroll(state: &mut State, rows: i32) {
    let Some(area) = layout::request(state) else { return };
    if let Some(prompt) = &mut state.prompt {
        let most = layout::request_scroll_max(prompt, area);
        prompt.scroll = prompt.scroll.saturating_add_signed(isize::try_from(rows).unwrap_or(0)).min(most);
    }
}

fn scroll_step(state: &mut State, step: Move) {
    let page = layout::request(state).map_or(1, |area| i32::from(area.height).saturating_sub(2).max(1));
    let rows = match step {
        Move::Up => -1,
        Move::Down => 1,
        Move::PageUp => -page,
        Move::PageDown => page,
        Move::First => i32::MIN / 2,
        Move::Last => i32::MAX / 2,
    };
    scroll(state, rows);
}

pub(super) fn key(state: &mut State, event: &KeyEvent, effects: &mut Vec<Effect>) {
    let Some(ask) = state.ask().cloned() else { return };
    match ask.request {
        PendingRequest::Permission(request) => permission_key(state, event, &request, effects),
        PendingRequest::Question(request) => question_key(state, event, &request, effects),
    }
}

/// Whether an answer may be taken now.
fn ready(state: &mut State) -> bool {
    let Some(prompt) = &state.prompt else { return false };
    if prompt.sent {
        good(state, "the answer is on its way");
        return false;
    }
    if state.now.millis_since(prompt.shown_at) < GUARD_MILLIS {
        good(state, "the request has only just appeared; press the key again if you mean it");
        return false;
    }
    true
}

fn permission_key(state: &mut State, event: &KeyEvent, request: &PermissionRequest, effects: &mut Vec<Effect>) {
    let Some(command) = keymap::find(PERMISSION, event) else { return };
    let response = match command {
        PermissionCommand::Once => PermissionResponse::Once,
        PermissionCommand::Session => PermissionResponse::Session,
        PermissionCommand::Always => PermissionResponse::Always,
        PermissionCommand::Reject => {
            if ready(state)
                && let Some(prompt) = &state.prompt
            {
                let purpose = Purpose::Reject(prompt.session.clone(), request.id.clone());
                state.overlays.push(Overlay::Entry(Entry {
                    purpose,
                    title: "Not allowed, because".into(),
                    hint: "with a reason the agent goes on; without one the turn ends".into(),
                    field: Field::default(),
                    masked: false,
                }));
            }
            return;
        }
        PermissionCommand::Scroll(step) => return scroll_step(state, step),
        PermissionCommand::Compose => return compose(state),
        PermissionCommand::Leave => return leave(state),
    };
    if ready(state)
        && let Some(prompt) = &mut state.prompt
    {
        prompt.sent = true;
        let (session, request) = (prompt.session.clone(), request.id.clone());
        effects.push(Effect::Call(Call::AnswerPermission { session, request, response, reason: String::new() }));
    }
}

fn compose(state: &mut State) {
    if state.screen == Screen::Main {
        state.focus = Focus::Composer;
    }
}

fn leave(state: &mut State) {
    state.focus = if state.screen == Screen::Inbox { Focus::List } else { Focus::Talk };
}

fn question_key(state: &mut State, event: &KeyEvent, request: &QuestionRequest, effects: &mut Vec<Effect>) {
    let Some(command) = keymap::find(QUESTION, event) else { return };
    match command {
        QuestionCommand::Leave => return leave(state),
        QuestionCommand::Compose => return compose(state),
        QuestionCommand::Dismiss => {
            if ready(state)
                && let Some(prompt) = &mut state.prompt
            {
                prompt.sent = true;
                let session = prompt.session.clone();
                effects.push(Effect::Call(Call::AnswerQuestion { session, request: request.id.clone(), answers: None }));
            }
            return;
        }
        QuestionCommand::Send if !ready(state) => return,
        QuestionCommand::Move(_) | QuestionCommand::Choose | QuestionCommand::Own | QuestionCommand::Send | QuestionCommand::Previous => {}
    }
    let Some(prompt) = &mut state.prompt else { return };
    let at = prompt.question;
    let Some(question) = request.questions.get(at) else { return };
    prompt.rows.clear();
    match command {
        QuestionCommand::Move(step) => prompt.option = super::moved(prompt.option, question.options.len(), step, 5),
        QuestionCommand::Previous => {
            prompt.question = at.saturating_sub(1);
            prompt.option = 0;
        }
        QuestionCommand::Choose => choose(prompt, at, question.multiple),
        QuestionCommand::Own => {
            if question.custom {
                let field = Field::with(prompt.own.get(at).map_or("", String::as_str));
                state.overlays.push(Overlay::Entry(Entry {
                    purpose: Purpose::OwnWords(request.id.clone(), at),
                    title: "Your answer".into(),
                    hint: String::new(),
                    field,
                    masked: false,
                }));
            } else {
                good(state, "this question wants one of its options");
            }
        }
        QuestionCommand::Send => {
            let answered = |prompt: &Prompt| {
                prompt.chosen.get(at).is_some_and(|chosen| chosen.contains(&true)) || prompt.own.get(at).is_some_and(|own| !own.is_empty())
            };
            // Where one option is wanted, the one under the cursor is meant.
            if !answered(prompt) && !question.multiple {
                choose(prompt, at, false);
            }
            if !answered(prompt) {
                good(state, "choose an option with Space first");
            } else if at + 1 < request.questions.len() {
                prompt.question = at + 1;
                prompt.option = 0;
            } else {
                let answers = answers(request, prompt);
                prompt.sent = true;
                let session = prompt.session.clone();
                effects.push(Effect::Call(Call::AnswerQuestion { session, request: request.id.clone(), answers: Some(answers) }));
            }
        }
        QuestionCommand::Dismiss | QuestionCommand::Leave | QuestionCommand::Compose => {}
    }
}

fn choose(prompt: &mut Prompt, at: usize, multiple: bool) {
    let option = prompt.option;
    let Some(chosen) = prompt.chosen.get_mut(at) else { return };
    let Some(before) = chosen.get(option).copied() else { return };
    if !multiple {
        chosen.fill(false);
        if let Some(own) = prompt.own.get_mut(at) {
            own.clear();
        }
    }
    chosen[option] = !before;
}

fn answers(request: &QuestionRequest, prompt: &Prompt) -> Vec<Vec<String>> {
    let chosen = |(index, question): (usize, &openagent_core::permission::Question)| {
        let marks = prompt.chosen.get(index);
        let mut labels: Vec<String> = question
            .options
            .iter()
            .enumerate()
            .filter(|(option, _)| marks.and_then(|marks| marks.get(*option)).copied().unwrap_or(false))
            .map(|(_, option)| option.label.clone())
            .collect();
        labels.extend(prompt.own.get(index).filter(|own| !own.is_empty()).cloned());
        labels
    };
    request.questions.iter().enumerate().map(chosen).collect()
}

/// A request was answered, or is no longer there: it is taken off the lists.
pub(super) fn settled(state: &mut State, id: &openagent_core::id::RequestId) {
    state.inbox.retain(|pending| pending.request.id() != id);
    for talk in state.talks.values_mut() {
        talk.conversation.asks.retain(|ask| ask.request.id() != id);
    }
    screen::inbox_step(state, 0);
}
