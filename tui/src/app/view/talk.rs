//! The open conversation: history, strip, request, composer.

use openagent_core::activity::Activity;
use openagent_core::event::Busy;
use openagent_core::session::Status;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use unicode_width::UnicodeWidthStr;

use super::{centred, list};
use crate::app::conversation::viewport::Anchor;
use crate::app::layout;
use crate::app::state::{Focus, Screen, State, Talk, activity_word, unreachable};
use crate::app::text::{duration, one_line, spent};
use crate::app::wrap::fit;
use crate::client::{AttachedView, PendingRequest};

pub(super) fn draw(state: &State, frame: &mut Frame<'_>, main: Rect) {
    let theme = state.theme;
    let Some(talk) = state.talk() else {
        let lines = vec![Line::styled("Enter opens the chosen session, n makes one.", theme.dim())];
        return centred(frame, main, lines);
    };
    let areas = layout::talk(state, main);
    title(state, frame, areas.title);
    history(state, talk, frame, areas.history);
    strip(state, talk, frame, areas.strip);
    if areas.request.height > 0 {
        request(state, frame, areas.request, 1, talk.conversation.asks.len());
    }
    composer(state, talk, frame, areas.composer);
}

fn title(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let theme = state.theme;
    let Some(session) = state.open.as_ref().and_then(|id| state.sessions.get(id)) else { return };
    let (symbol, style) = list::symbol(session, theme);
    let mode = session.permission_mode.map_or("", openagent_core::permission::PermissionMode::name);
    let model = format!("{} · {mode}", one_line(&session.model));
    let room = usize::from(area.width);
    let mut spans = vec![Span::styled(format!("{symbol} "), style)];
    let name = fit(&list::title(session), room.saturating_sub(2));
    let left = name.width() + 2;
    spans.push(Span::styled(name, theme.strong()));
    // As much as fits: that somebody is there matters more than the model.
    let fitting = rights(&state.others(session), model).into_iter().find(|(here, model)| left + 1 + here.width() + model.width() <= room);
    if let Some((here, model)) = fitting {
        spans.push(Span::raw(" ".repeat(room - left - here.width() - model.width())));
        spans.push(Span::styled(here, theme.accent()));
        spans.push(Span::styled(model, theme.dim()));
    }
    frame.render_widget(Line::from(spans), area);
}

/// Who else is there and which model it is, with more and more left out.
fn rights(others: &[&AttachedView], model: String) -> Vec<(String, String)> {
    let names: Vec<String> = others.iter().map(|other| one_line(&other.client)).collect();
    let number = match names.len() {
        0 => return vec![(String::new(), model)],
        1 => "1 other here".to_owned(),
        more => format!("{more} others here"),
    };
    let named = format!("{} here", names.join(", "));
    let few = format!("+{}", names.len());
    vec![
        (named.clone(), format!(" · {model}")),
        (named, String::new()),
        (number.clone(), format!(" · {model}")),
        (number, String::new()),
        (few, String::new()),
    ]
}

fn history(state: &State, talk: &Talk, frame: &mut Frame<'_>, area: Rect) {
    let theme = state.theme;
    let conversation = &talk.conversation;
    if conversation.view.visible.is_empty() {
        let text = if conversation.caught_up { "Nothing was said yet." } else { "reading the history…" };
        return centred(frame, area, vec![Line::styled(text, theme.dim())]);
    }
    // A conversation that is shorter than the screen stands at its top.
    for (offset, (index, row)) in (0..area.height).zip(&conversation.view.visible) {
        let Some(entry) = conversation.entries().get(*index) else { continue };
        let Some(line) = entry.rows().get(*row) else { continue };
        let place = Rect { y: area.y + offset, height: 1, ..area };
        frame.render_widget(line, place);
        if conversation.view.selected == Some(*index) && !line.spans.is_empty() {
            frame.render_widget(Span::styled("▸", theme.accent()), Rect { x: area.x.saturating_sub(1), width: 1, ..place });
        }
    }
}

/// A line that tells what the agent does, what waits to be sent and what was spent.
fn strip(state: &State, talk: &Talk, frame: &mut Frame<'_>, area: Rect) {
    let theme = state.theme;
    let mut spans = vec![Span::styled("─ ", theme.dim())];
    let session = state.open.as_ref().and_then(|id| state.sessions.get(id));
    match (&talk.conversation.busy, session) {
        (_, Some(session)) if unreachable(session, state.now).is_some() => {
            let words = unreachable(session, state.now).unwrap_or_default();
            spans.push(Span::styled(format!("~ {words} "), theme.warn()));
            spans.push(Span::styled(format!("was {} ", activity_word(session)), theme.dim()));
        }
        (_, Some(session)) if session.status == Some(Status::Creating) || session.queue_position > 0 => {
            let since = talk.conversation.running_step().map(|(_, at)| state.now.millis_since(at) / 1_000 * 1_000);
            let time = since.filter(|millis| *millis > 0).map(|millis| format!(" {}", duration(millis))).unwrap_or_default();
            spans.push(Span::styled(format!("○ {}{time} ", activity_word(session)), theme.accent()));
        }
        (Some(Busy::Retrying { attempt, next_at, .. }), _) => {
            let seconds = next_at.millis_since(state.now).div_ceil(1_000);
            spans.push(Span::styled(format!("↻ attempt {attempt} failed, next in {seconds} s "), theme.warn()));
        }
        (busy, Some(session)) => {
            let (symbol, style) = list::symbol(session, theme);
            let word = match (busy, &session.activity) {
                // The conversation knows a little earlier than the list.
                (Some(Busy::Working), Activity::Quiet | Activity::Done | Activity::Failed) => "working".to_owned(),
                _ => activity_word(session),
            };
            spans.push(Span::styled(format!("{symbol} {word} "), style));
        }
        (_, None) => {}
    }
    if talk.lost {
        spans.push(Span::styled("✗ reconnecting ", theme.bad()));
    }
    let working = matches!(talk.conversation.busy, Some(Busy::Working | Busy::Retrying { .. }));
    match talk.sending.as_slice() {
        [] => {}
        [(_, text)] => {
            let word = if working { "steering" } else { "sending" };
            spans.push(Span::styled(format!("» {word}: {} ", fit(&one_line(text), 24)), theme.accent()));
        }
        more => spans.push(Span::styled(format!("» {} prompts wait ", more.len()), theme.accent())),
    }
    if talk.conversation.view.anchor != Anchor::Tail {
        spans.push(Span::styled("↓ more below (G) ", theme.accent()));
    }
    // What was spent on messages that are no longer kept is in the session's sum only.
    let told = Some(talk.conversation.spent).filter(|spent| spent.tokens.total() > 0 && !talk.conversation.is_compacted());
    let usage = told.or_else(|| session.map(|session| session.usage));
    let right = usage.filter(|usage| usage.tokens.total() > 0).map(|usage| format!(" {}", spent(&usage))).unwrap_or_default();
    let left: usize = spans.iter().map(Span::width).sum();
    let room = usize::from(area.width).saturating_sub(left + right.width());
    spans.push(Span::styled("─".repeat(room), theme.dim()));
    spans.push(Span::styled(right, theme.dim()));
    frame.render_widget(Line::from(spans), area);
}

/// The request that waits: `number` of `count`.
pub(super) fn request(state: &State, frame: &mut Frame<'_>, area: Rect, number: usize, count: usize) {
    let theme = state.theme;
    let (Some(ask), Some(prompt)) = (state.ask(), &state.prompt) else { return };
    let (what, header) = match &ask.request {
        PendingRequest::Permission(request) => ("! asks to use ", one_line(&request.permission)),
        PendingRequest::Question(request) => {
            ("? asks: ", request.questions.get(prompt.question).map(|question| one_line(&question.header)).unwrap_or_default())
        }
    };
    let mut head = vec![Span::styled(what, theme.warn()), Span::styled(header, theme.strong())];
    if count > 1 {
        head.push(Span::styled(format!("  {number} of {count}"), theme.dim()));
    }
    let most = layout::request_scroll_max(prompt, area);
    if most > 0 {
        head.push(Span::styled(
            format!("  row {}–{} of {} (j k)", prompt.scroll + 1, prompt.scroll + usize::from(area.height) - 1, prompt.rows.len()),
            theme.dim(),
        ));
    }
    if prompt.sent {
        head.push(Span::styled("  » answering", theme.accent()));
    } else if state.focus != Focus::Request {
        let key = match (state.screen, state.focus) {
            (Screen::Inbox, _) => "  Enter answers",
            (_, Focus::Composer) => "  Tab answers",
            _ => "  y answers",
        };
        head.push(Span::styled(key, theme.accent()));
    }
    frame.render_widget(Line::from(head), Rect { height: 1.min(area.height), ..area });
    for (offset, row) in (1..area.height).zip(prompt.rows.iter().skip(prompt.scroll)) {
        frame.render_widget(row, Rect { y: area.y + offset, height: 1, ..area });
    }
}

fn composer(state: &State, talk: &Talk, frame: &mut Frame<'_>, area: Rect) {
    if area.height == 0 {
        return;
    }
    let theme = state.theme;
    let style = if state.focus == Focus::Composer { theme.accent() } else { theme.dim() };
    frame.render_widget(Paragraph::new("❯").style(style), Rect { width: 1.min(area.width), ..area });
    let field = Rect { x: area.x + 2, width: area.width.saturating_sub(2), ..area };
    if state.focus == Focus::Composer {
        frame.render_widget(talk.composer.area(), field);
    } else if talk.composer.is_blank() {
        let text = if layout::request(state).is_some() { "" } else { "c writes a prompt" };
        frame.render_widget(Line::styled(text, theme.dim()), Rect { height: 1, ..field });
    } else {
        let text = talk.composer.text();
        frame.render_widget(Paragraph::new(text).style(theme.dim()), field);
    }
}
