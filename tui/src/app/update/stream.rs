//! What the streams deliver: all sessions, the open conversation, the attached terminal.

use openagent_core::activity::Activity;
use openagent_core::event::{Event, EventKind};
use openagent_core::id::{SessionId, TerminalId};
use openagent_core::permission::PermissionResponse;

use super::{bad, list, overlay, request, see};
use crate::app::conversation::Conversation;
use crate::app::input::{Call, Effect, Watch};
use crate::app::state::{Focus, Link, Note, Screen, State};
use crate::client::{SessionChange, SessionView, StreamItem, TerminalItem};

/// The watch over all sessions; it also is what the connection is judged by.
pub(super) fn sessions(state: &mut State, watch: Watch<SessionChange>, effects: &mut Vec<Effect>) {
    match watch {
        Watch::Connected | Watch::Reset => {
            state.link = Link::Up;
            state.sessions.fresh.clear();
            state.asked_daemon_at = state.now;
            effects.extend([Call::Status, Call::Providers, Call::Keys].map(Effect::Call));
        }
        Watch::Item(SessionChange::Changed(session)) => {
            state.sessions.fresh.push(session.id.clone());
            changed(state, *session, effects);
        }
        Watch::Item(SessionChange::Removed(id)) => list::removed(state, &id, effects),
        Watch::Item(SessionChange::CaughtUp) => {
            // What was removed while nobody watched is not named again.
            let fresh = std::mem::take(&mut state.sessions.fresh);
            let gone: Vec<SessionId> =
                state.sessions.all.iter().filter(|session| !fresh.contains(&session.id)).map(|session| session.id.clone()).collect();
            for id in gone {
                list::removed(state, &id, effects);
            }
            if !state.sessions.complete {
                state.sessions.complete = true;
                // They come in any order.
                state.sessions.chosen = state.sessions.all.first().map(|session| session.id.clone());
                // Unread is what happens from now on.
                state.sessions.seen = state.sessions.all.iter().map(|session| (session.id.clone(), session.last_seq)).collect();
            }
            request::refresh_inbox(state, effects);
            overlay::maybe_welcome(state);
            if let Some(wanted) = state.open_first.take() {
                let found = state.sessions.all.iter().find(|session| session.id.as_str() == wanted).map(|session| session.id.clone());
                match found {
                    Some(id) => super::open(state, &id, effects),
                    None => state.note = Some(Note { text: format!("there is no session {wanted}"), hint: String::new(), bad: true }),
                }
            }
        }
        Watch::Lost(error, retry_in) => {
            let since = match &state.link {
                Link::Down { since, .. } => *since,
                Link::Up | Link::Connecting => state.now,
            };
            let retry_at = state.now.plus_millis(i64::try_from(retry_in).unwrap_or(i64::MAX));
            state.link = Link::Down { since, retry_at, error };
        }
        Watch::Ended(error) => {
            if let Some(error) = error {
                state.link = Link::Down { since: state.now, retry_at: state.now, error };
            }
        }
    }
}

/// Takes a session as it is now.
pub(super) fn changed(state: &mut State, session: SessionView, effects: &mut Vec<Effect>) {
    let waits = |session: &SessionView| match session.activity {
        Activity::Blocked { permissions, questions } => permissions + questions,
        Activity::Quiet | Activity::Working | Activity::Retrying { .. } | Activity::Done | Activity::Failed => 0,
    };
    let id = session.id.clone();
    let before = match state.sessions.all.iter_mut().find(|known| known.id == id) {
        Some(known) => {
            let before = waits(known);
            // An answer to a call can arrive after newer news of the watch.
            if session.last_seq >= known.last_seq {
                *known = session.clone();
            }
            before
        }
        None => {
            state.sessions.all.push(session.clone());
            state.sessions.all.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
            0
        }
    };
    if state.sessions.chosen.is_none() {
        state.sessions.chosen = state.sessions.all.first().map(|session| session.id.clone());
    }
    if state.sessions.complete && before != waits(&session) {
        request::refresh_inbox(state, effects);
    }
    if state.open.as_ref() == Some(&id) {
        see(state);
    }
}

/// The events of a session.
pub(super) fn events(state: &mut State, id: &SessionId, watch: Watch<StreamItem>, effects: &mut Vec<Effect>) {
    let Some(talk) = state.talks.get_mut(id) else { return };
    match watch {
        Watch::Connected => talk.lost = false,
        Watch::Reset => {
            talk.conversation = Conversation::new(id.clone());
            talk.lost = false;
        }
        Watch::Item(StreamItem::Event(event)) => {
            let note = somebody_elses(state, &event);
            if let Some(talk) = state.talks.get_mut(id) {
                talk.conversation.apply(event);
            }
            if note.is_some() {
                state.note = note;
            }
        }
        Watch::Item(StreamItem::Snapshot(snapshot)) => {
            let caught_up = talk.conversation.caught_up;
            talk.conversation = Conversation::compacted(id.clone(), snapshot.floor, snapshot.dropped);
            // It is told once.
            talk.conversation.caught_up = caught_up;
        }
        Watch::Item(StreamItem::Delta(delta)) => talk.conversation.delta(delta),
        Watch::Item(StreamItem::CaughtUp(_)) => {
            talk.conversation.caught_up = true;
            see(state);
        }
        Watch::Lost(..) => talk.lost = true,
        Watch::Ended(error) => {
            if let Some(error) = error {
                talk.lost = true;
                bad(state, &error);
            } else if state.open.as_ref() == Some(id) && state.sessions.get(id).is_none() {
                list::removed(state, id, effects);
            }
        }
    }
}

/// Who answered the request that is on the screen, if it was not this client.
fn somebody_elses(state: &State, event: &Event) -> Option<Note> {
    let (id, by, what) = match &event.kind {
        EventKind::PermissionAnswered { id, by, response: PermissionResponse::Reject, .. } => (id, by, "did not allow it"),
        EventKind::PermissionAnswered { id, by, .. } => (id, by, "allowed it"),
        EventKind::QuestionAnswered { id, by, answers: Some(_) } => (id, by, "answered the question"),
        EventKind::QuestionAnswered { id, by, answers: None } => (id, by, "dismissed the question"),
        _ => return None,
    };
    let prompt = state.prompt.as_ref()?;
    (prompt.request == *id && !prompt.sent).then(|| Note {
        text: match by.as_str() {
            "rule" => "a remembered answer settled the request".to_owned(),
            "agent" => "the agent withdrew the request".to_owned(),
            other => format!("{other} {what}"),
        },
        hint: String::new(),
        bad: false,
    })
}

/// The attached terminal.
pub(super) fn terminal(state: &mut State, id: &TerminalId, watch: Watch<TerminalItem>) {
    let Some(pane) = state.terminal.as_mut().filter(|pane| pane.id == *id) else { return };
    match watch {
        Watch::Connected => pane.attached = true,
        Watch::Reset => {
            let (columns, rows) = pane.size();
            *pane = crate::app::terminal::Pane::new(pane.session.clone(), pane.id.clone(), columns, rows);
        }
        Watch::Item(item) => pane.take(item),
        Watch::Lost(..) => {
            pane.attached = false;
            pane.writing = false;
        }
        Watch::Ended(error) => {
            pane.attached = false;
            if let Some(error) = error {
                bad(state, &error);
                state.terminal = None;
                if state.screen == Screen::Terminal {
                    state.screen = Screen::Main;
                    state.focus = if state.open.is_some() { Focus::Talk } else { Focus::List };
                }
            }
        }
    }
}
