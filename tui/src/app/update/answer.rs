//! What became of calls.

use super::{bad, good, list, open, overlay, request, screen, stream};
use crate::app::input::{Answer, Call, Effect};
use crate::app::layout;
use crate::app::state::{Note, Overlay, Screen, State};
use crate::client::Kind;

pub(super) fn answer(state: &mut State, answer: Answer, effects: &mut Vec<Effect>) {
    match answer {
        Answer::Status(Ok(status)) => state.daemon = Some(*status),
        Answer::Providers(Ok(providers)) => {
            state.providers = Some(providers);
            screen::keys_step(state, 0);
            overlay::maybe_welcome(state);
        }
        Answer::Keys(Ok(keys)) => state.keys.stored = keys,
        Answer::Pending(result) => {
            if state.inbox_asked.take() == Some(true) {
                request::refresh_inbox(state, effects);
            }
            if let Ok(mut pending) = result {
                // The chosen request stays chosen.
                let chosen = state.inbox.get(state.inbox_at).map(|pending| pending.request.id().clone());
                // What was just answered here is not shown again, whatever the daemon said before it knew.
                let sent = state.prompt.as_ref().filter(|prompt| prompt.sent).map(|prompt| prompt.request.clone());
                pending.retain(|pending| Some(pending.request.id()) != sent.as_ref());
                state.inbox = pending;
                if let Some(at) = chosen.and_then(|id| state.inbox.iter().position(|pending| *pending.request.id() == id)) {
                    state.inbox_at = at;
                }
                screen::inbox_step(state, 0);
            }
        }
        Answer::Usage(grouping, Ok(sums)) => {
            if state.usage.grouping == grouping {
                state.usage.sums = Some(sums);
                state.usage.offset = 0;
            }
        }
        Answer::Created(Ok(session)) => {
            if matches!(state.overlays.last(), Some(Overlay::New(_))) {
                state.overlays.pop();
            }
            let id = session.id.clone();
            stream::changed(state, *session, effects);
            open(state, &id, effects);
            if let Some(prompt) = state.suggestion.take()
                && let Some(talk) = state.talk_mut()
            {
                talk.composer.set(&prompt);
                good(state, "Enter sends the suggested prompt; it waits until the agent is ready");
            }
        }
        Answer::Created(Err(error)) => {
            state.suggestion = None;
            match state.overlays.last_mut() {
                Some(Overlay::New(form)) => {
                    form.sent = false;
                    form.error = Some(error);
                }
                _ => bad(state, &error),
            }
        }
        Answer::Prompted { session, ticket, result } => {
            let Some(talk) = state.talks.get_mut(&session) else { return };
            let Some(index) = talk.sending.iter().position(|(sent, _)| *sent == ticket) else { return };
            let (_, text) = talk.sending.remove(index);
            if let Err(error) = result {
                // Nothing that was written is lost.
                if talk.composer.is_blank() {
                    talk.composer.set(&text);
                } else {
                    talk.composer.paste(&format!("\n{text}"));
                }
                bad(state, &error);
            }
        }
        Answer::Changed(what, Ok(session)) => {
            stream::changed(state, *session, effects);
            good(state, what);
        }
        Answer::Removed(id, Ok(())) => {
            list::removed(state, &id, effects);
            good(state, "removed");
        }
        Answer::Exported(path, Ok(bytes)) => {
            good(state, format!("exported to {path} ({} kB)", bytes.div_ceil(1_000)));
        }
        Answer::Aborted(Ok(())) => {}
        Answer::Replied(id, Ok(())) => {
            request::settled(state, &id);
            // The next one may belong to another session.
            if state.screen == Screen::Inbox {
                request::refresh_inbox(state, effects);
            }
        }
        Answer::Replied(id, Err(error)) => {
            if let Some(prompt) = state.prompt.as_mut().filter(|prompt| prompt.request == id) {
                prompt.sent = false;
            }
            if matches!(error.kind, Kind::NotFound | Kind::Conflict) {
                request::settled(state, &id);
                request::refresh_inbox(state, effects);
            }
            bad(state, &error);
        }
        Answer::KeySet(provider, Ok(key)) => {
            good(state, format!("key for {provider} stored (version {})", key.version));
            effects.extend([Call::Providers, Call::Keys].map(Effect::Call));
        }
        Answer::KeyRemoved(provider, Ok(())) => {
            good(state, format!("key for {provider} removed"));
            effects.extend([Call::Providers, Call::Keys].map(Effect::Call));
        }
        Answer::Terminals(session, Ok(mut terminals)) => {
            terminals.retain(|terminal| terminal.exit_code.is_none());
            match terminals.as_slice() {
                [] => effects.push(Effect::Call(Call::OpenTerminal(session, layout::terminal_size(state)))),
                // From within a terminal the list is wanted even if there is only one.
                [only] if state.screen != Screen::Terminal => {
                    if let Ok(id) = only.id.parse() {
                        screen::attach(state, session, id, effects);
                    }
                }
                _ => state.overlays.push(Overlay::Terminals { session, terminals, at: 0 }),
            }
        }
        Answer::TerminalOpened(session, Ok(terminal)) => match terminal.id.parse() {
            Ok(id) => screen::attach(state, session, id, effects),
            Err(error) => {
                let text = format!("the terminal cannot be shown: {error}");
                state.note = Some(Note { text, hint: String::new(), bad: true });
            }
        },
        Answer::TerminalClosed(Ok(())) => good(state, "terminal ended"),
        Answer::Status(Err(error)) | Answer::Providers(Err(error)) | Answer::Keys(Err(error)) => {
            // A broken connection is shown by the watch, and these are asked again when it stands.
            if !error.is_disconnected() {
                bad(state, &error);
            }
        }
        Answer::Usage(_, Err(error))
        | Answer::Changed(_, Err(error))
        | Answer::Removed(_, Err(error))
        | Answer::Exported(_, Err(error))
        | Answer::Aborted(Err(error))
        | Answer::KeySet(_, Err(error))
        | Answer::KeyRemoved(_, Err(error))
        | Answer::Terminals(_, Err(error))
        | Answer::TerminalOpened(_, Err(error))
        | Answer::TerminalClosed(Err(error)) => bad(state, &error),
    }
}
