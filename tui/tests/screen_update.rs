//! Inputs in, state and effects out.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "screen_support/sample.rs"]
mod sample;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use openagent::app::input::{Answer, Call, Effect, Input, Watch};
use openagent::app::keymap::Layer;
use openagent::app::state::{Focus, Link, Overlay, Screen, State};
use openagent::app::update::update;
use openagent::client::{
    AttachedTo, AttachedView, ClientError, Kind, NewSession, Pending, PendingRequest, SessionChange, Snapshot, StreamItem, TerminalItem,
};
use openagent_core::activity::Activity;
use openagent_core::event::{Event, EventKind};
use openagent_core::permission::{PermissionMode, PermissionResponse};
use openagent_core::secret::Secret;
use openagent_core::session::{Status, WorkspaceSource};
use openagent_proto::v1;
use sample::*;
use zeroize::Zeroizing;

fn opened() -> State {
    let mut state = connected(80, 24, sessions());
    let effects = press(&mut state, KeyCode::Enter);
    assert_eq!(effects, [Effect::Follow(session_id(6), 0)]);
    state
}

fn asked(title: &str) -> State {
    let mut state = opened();
    feed(&mut state, 6, vec![EventKind::PermissionAsked { request: permission("per_1", title) }]);
    drawn(&mut state);
    state
}

fn later(state: &mut State, seconds: i64) {
    update(state, Input::Clock(at(seconds)));
}

fn error(kind: Kind, message: &str) -> ClientError {
    ClientError::new(kind, message, "do this")
}

fn watch(change: SessionChange) -> Input {
    Input::Watch(Watch::Item(change))
}

#[test]
fn connecting_asks_for_what_the_screen_needs() {
    let mut state = connected(80, 24, vec![]);
    let effects = update(&mut state, Input::Watch(Watch::Connected));
    assert_eq!(effects, [Call::Status, Call::Providers, Call::Keys].map(Effect::Call));
    assert_eq!(state.link, Link::Up);
}

#[test]
fn a_lost_connection_keeps_what_is_shown_and_says_so() {
    let mut state = connected(80, 24, sessions());
    update(&mut state, Input::Watch(Watch::Lost(error(Kind::Unreachable, "gone"), 2_000)));
    assert_eq!(state.sessions.all.len(), 6);
    assert!(drawn(&mut state).to_string().contains("offline"));
    assert_eq!(state.stale_after(), Some(1_000), "the countdown counts");
}

#[test]
fn sessions_that_vanished_while_nobody_watched_are_gone_after_the_next_list() {
    let mut state = connected(80, 24, sessions());
    update(&mut state, Input::Watch(Watch::Connected));
    for session in sessions().into_iter().skip(1) {
        update(&mut state, watch(SessionChange::Changed(Box::new(session))));
    }
    assert_eq!(state.sessions.all.len(), 6, "nothing is taken away before the list is complete");
    update(&mut state, watch(SessionChange::CaughtUp));
    assert_eq!(state.sessions.all.len(), 5);
    assert_eq!(state.sessions.chosen, Some(session_id(5)));
}

#[test]
fn what_happens_elsewhere_is_unread_until_it_is_opened() {
    let mut state = connected(80, 24, sessions());
    let mut news = session(3, "Write the release notes", Status::Active, Activity::Done);
    assert!(!state.sessions.is_unread(&news));
    news.last_seq = 11;
    update(&mut state, watch(SessionChange::Changed(Box::new(news.clone()))));
    assert!(state.sessions.is_unread(&news));
    for _ in 0..3 {
        press(&mut state, KeyCode::Char('j'));
    }
    press(&mut state, KeyCode::Enter);
    assert!(!state.sessions.is_unread(&news));
}

#[test]
fn the_filter_narrows_the_list_and_escape_drops_it() {
    let mut state = connected(80, 24, sessions());
    press(&mut state, KeyCode::Char('/'));
    type_text(&mut state, "alloc");
    assert_eq!(state.sessions.shown().len(), 1);
    assert_eq!(state.sessions.chosen, Some(session_id(2)));
    press(&mut state, KeyCode::Enter);
    assert_eq!(state.layer(), Layer::List);
    press(&mut state, KeyCode::Esc);
    assert_eq!(state.sessions.shown().len(), 6);
}

#[test]
fn a_prompt_is_sent_and_comes_back_if_it_was_refused() {
    let mut state = opened();
    type_text(&mut state, "hello");
    update(&mut state, Input::Key(KeyEvent::new(KeyCode::Enter, KeyModifiers::ALT)));
    type_text(&mut state, "there");
    let effects = press(&mut state, KeyCode::Enter);
    let text = "hello\nthere".to_owned();
    assert_eq!(effects, [Effect::Call(Call::Prompt { session: session_id(6), ticket: 1, text: text.clone() })]);
    assert!(state.talk().unwrap().composer.is_blank());
    assert_eq!(state.talk().unwrap().sending.len(), 1);
    let refused = Answer::Prompted { session: session_id(6), ticket: 1, result: Err(error(Kind::State, "it is stopped")) };
    update(&mut state, Input::Answer(refused));
    assert_eq!(state.talk().unwrap().composer.text(), text);
    assert!(state.note.as_ref().unwrap().bad);
    assert!(state.talk().unwrap().sending.is_empty());
}

#[test]
fn a_paste_never_acts_as_keys() {
    let mut state = asked("cargo test");
    assert_eq!(state.layer(), Layer::Permission);
    later(&mut state, 5);
    assert_eq!(update(&mut state, Input::Paste(Zeroizing::new("y".into()))), []);
    let mut state = opened();
    assert_eq!(update(&mut state, Input::Paste(Zeroizing::new("one\ntwo\n".into()))), []);
    assert_eq!(state.talk().unwrap().composer.text(), "one\ntwo\n");
}

#[test]
fn a_request_that_only_just_appeared_takes_no_answer() {
    let mut state = asked("cargo test");
    assert_eq!(press(&mut state, KeyCode::Char('y')), []);
    later(&mut state, 1);
    let effects = press(&mut state, KeyCode::Char('y'));
    let call = Call::AnswerPermission {
        session: session_id(6),
        request: "per_1".to_owned().try_into().unwrap(),
        response: PermissionResponse::Once,
        reason: String::new(),
    };
    assert_eq!(effects, [Effect::Call(call)]);
    assert_eq!(press(&mut state, KeyCode::Char('A')), [], "one answer is enough");
}

#[test]
fn a_request_does_not_take_the_keys_from_somebody_who_writes() {
    let mut state = opened();
    type_text(&mut state, "wh");
    feed(&mut state, 6, vec![EventKind::PermissionAsked { request: permission("per_1", "rm -rf /") }]);
    later(&mut state, 9);
    assert_eq!(type_text(&mut state, "y not"), []);
    assert_eq!(state.talk().unwrap().composer.text(), "why not");
    press(&mut state, KeyCode::Tab);
    assert_eq!(state.layer(), Layer::Permission);
}

#[test]
fn what_was_answered_here_is_told_with_what_it_was_about_whichever_news_comes_first() {
    let mut state = asked("rm -rf target");
    update(&mut state, Input::Answer(Answer::Replied("per_1".to_owned().try_into().unwrap(), Ok(()))));
    assert!(state.ask().is_none());
    let answered = EventKind::PermissionAnswered {
        id: "per_1".to_owned().try_into().unwrap(),
        response: PermissionResponse::Once,
        by: "me".into(),
        reason: None,
    };
    update(&mut state, Input::Follow(session_id(6), Watch::Item(StreamItem::Event(Event { seq: 2, at: at(1), kind: answered }))));
    assert!(drawn(&mut state).to_string().contains("allowed once by me: bash rm -rf target"));
}

#[test]
fn a_rejection_can_carry_a_reason() {
    let mut state = asked("rm -rf /");
    later(&mut state, 5);
    press(&mut state, KeyCode::Char('n'));
    type_text(&mut state, "never");
    let effects = press(&mut state, KeyCode::Enter);
    let [Effect::Call(Call::AnswerPermission { response, reason, .. })] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!((*response, reason.as_str()), (PermissionResponse::Reject, "never"));
}

#[test]
fn the_next_request_shows_after_an_answer_and_somebody_elses_answer_is_told() {
    let mut state = asked("first");
    let second = EventKind::PermissionAsked { request: permission("per_2", "second") };
    update(&mut state, Input::Follow(session_id(6), Watch::Item(StreamItem::Event(Event { seq: 2, at: at(0), kind: second }))));
    let answered = EventKind::PermissionAnswered {
        id: "per_1".to_owned().try_into().unwrap(),
        response: PermissionResponse::Once,
        by: "phone".into(),
        reason: None,
    };
    update(&mut state, Input::Follow(session_id(6), Watch::Item(StreamItem::Event(Event { seq: 3, at: at(0), kind: answered }))));
    assert_eq!(state.note.as_ref().unwrap().text, "phone allowed it");
    assert_eq!(state.prompt.as_ref().unwrap().request.as_str(), "per_2");
    assert_eq!(state.focus, Focus::Request);
    assert!(drawn(&mut state).to_string().contains("second"));
}

#[test]
fn a_request_that_was_answered_long_ago_is_neither_shown_nor_told_while_the_history_is_read() {
    let mut state = connected(80, 24, sessions());
    press(&mut state, KeyCode::Enter);
    let answered = EventKind::PermissionAnswered {
        id: "per_1".to_owned().try_into().unwrap(),
        response: PermissionResponse::Once,
        by: "tui".into(),
        reason: None,
    };
    let history = [EventKind::PermissionAsked { request: permission("per_1", "first") }, answered];
    for (seq, kind) in (1..).zip(history) {
        update(&mut state, Input::Follow(session_id(6), Watch::Item(StreamItem::Event(Event { seq, at: at(0), kind }))));
        assert_eq!((state.ask(), state.note.as_ref()), (None, None));
    }
    update(&mut state, Input::Follow(session_id(6), Watch::Item(StreamItem::CaughtUp(2))));
    assert_eq!((state.ask(), state.note.as_ref()), (None, None));
}

#[test]
fn a_compacted_history_replaces_what_was_shown_and_says_so() {
    let mut state = opened();
    let item = |item| Input::Follow(session_id(6), Watch::Item(item));
    let event = |seq, title: &str| item(StreamItem::Event(Event { seq, at: at(0), kind: EventKind::Gap { reason: title.to_owned() } }));
    update(&mut state, event(1, "forgotten"));
    update(&mut state, item(StreamItem::CaughtUp(1)));
    update(&mut state, item(StreamItem::Snapshot(Snapshot { floor: 90, dropped: 88 })));
    for (seq, title) in [(7, "kept"), (40, "kept too"), (91, "dense")] {
        update(&mut state, event(seq, title));
    }
    let screen = drawn(&mut state).to_string();
    assert!(screen.contains("older events were compacted: 88 of the first 90 are no longer kept"), "{screen}");
    assert!(screen.contains("kept too") && screen.contains("dense") && !screen.contains("forgotten"), "{screen}");
    assert!(!screen.contains("did not arrive"), "{screen}");
    assert!(state.talks[&session_id(6)].conversation.caught_up, "it is not told again");
}

#[test]
fn what_happened_behind_another_screen_is_seen_on_the_way_back() {
    let mut state = opened();
    press(&mut state, KeyCode::Esc);
    press(&mut state, KeyCode::Char('u'));
    let mut news = session(6, "Make the parser faster", Status::Active, Activity::Done);
    news.last_seq = 11;
    update(&mut state, watch(SessionChange::Changed(Box::new(news.clone()))));
    assert!(state.sessions.is_unread(&news));
    press(&mut state, KeyCode::Esc);
    assert!(!state.sessions.is_unread(&news));
}

#[test]
fn an_answer_that_came_too_late_takes_the_request_away() {
    let mut state = asked("first");
    later(&mut state, 5);
    press(&mut state, KeyCode::Char('y'));
    let late = Answer::Replied("per_1".to_owned().try_into().unwrap(), Err(error(Kind::Conflict, "phone answered first")));
    update(&mut state, Input::Answer(late));
    assert!(state.ask().is_none());
    assert_eq!(state.note.as_ref().unwrap().text, "phone answered first");
    assert_eq!(state.focus, Focus::Composer);
}

#[test]
fn questions_are_answered_with_options_or_own_words() {
    let mut state = opened();
    feed(&mut state, 6, vec![EventKind::QuestionAsked { request: question("que_1", true) }]);
    later(&mut state, 5);
    press(&mut state, KeyCode::Char(' '));
    press(&mut state, KeyCode::Char('j'));
    press(&mut state, KeyCode::Char(' '));
    press(&mut state, KeyCode::Char('w'));
    type_text(&mut state, "or DuckDB");
    press(&mut state, KeyCode::Enter);
    let effects = press(&mut state, KeyCode::Enter);
    let [Effect::Call(Call::AnswerQuestion { answers: Some(answers), .. })] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(*answers, [["SQLite", "PostgreSQL", "or DuckDB"]]);
}

#[test]
fn enter_takes_the_option_under_the_cursor_where_one_is_wanted() {
    let mut state = opened();
    feed(&mut state, 6, vec![EventKind::QuestionAsked { request: question("que_1", false) }]);
    later(&mut state, 5);
    press(&mut state, KeyCode::Down);
    let effects = press(&mut state, KeyCode::Enter);
    let [Effect::Call(Call::AnswerQuestion { answers: Some(answers), .. })] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(*answers, [["PostgreSQL"]]);
}

#[test]
fn the_inbox_goes_on_with_the_next_request() {
    let mut state = connected(80, 24, sessions());
    let pending = |id: &str| Pending {
        session: session_id(5),
        session_title: "Fix".into(),
        request: PendingRequest::Permission(permission(id, "ls")),
    };
    press(&mut state, KeyCode::Char('i'));
    update(&mut state, Input::Answer(Answer::Pending(Ok(vec![pending("per_1"), pending("per_2")]))));
    press(&mut state, KeyCode::Enter);
    later(&mut state, 5);
    let effects = press(&mut state, KeyCode::Char('s'));
    assert!(matches!(effects.as_slice(), [Effect::Call(Call::AnswerPermission { response: PermissionResponse::Session, .. })]));
    update(&mut state, Input::Answer(Answer::Replied("per_1".to_owned().try_into().unwrap(), Ok(()))));
    assert_eq!(state.prompt.as_ref().unwrap().request.as_str(), "per_2");
    assert_eq!(state.layer(), Layer::Permission);
}

#[test]
fn a_key_is_typed_unseen_and_leaves_the_screen_as_a_secret() {
    let mut state = connected(80, 24, sessions());
    press(&mut state, KeyCode::Char('K'));
    type_text(&mut state, "/openai");
    press(&mut state, KeyCode::Enter);
    press(&mut state, KeyCode::Enter);
    type_text(&mut state, "sk-");
    update(&mut state, Input::Paste(Zeroizing::new("canary\n".into())));
    let screen = drawn(&mut state).to_string();
    assert!(!screen.contains("sk-") && !screen.contains("canary") && screen.contains("9 characters"), "{screen}");
    assert!(!format!("{state:?}").contains("canary"));
    let effects = press(&mut state, KeyCode::Enter);
    assert!(!format!("{effects:?}").contains("canary"));
    assert_eq!(effects, [Effect::Call(Call::SetKey("openai".into(), Secret::new("sk-canary".into())))]);
}

#[test]
fn the_form_makes_the_session_that_was_described() {
    let mut state = connected(80, 24, sessions());
    press(&mut state, KeyCode::Char('n'));
    type_text(&mut state, "Faster");
    press(&mut state, KeyCode::Tab);
    type_text(&mut state, "opus");
    press(&mut state, KeyCode::Tab);
    press(&mut state, KeyCode::Right);
    press(&mut state, KeyCode::Tab);
    press(&mut state, KeyCode::Right);
    let effects = press(&mut state, KeyCode::Enter);
    let expected = NewSession {
        title: "Faster".into(),
        workspace: WorkspaceSource::Copy { path: "/home/user/project".into() },
        model: "anthropic/claude-opus-5".into(),
        permission_mode: Some(PermissionMode::AutoEdit),
        ..NewSession::default()
    };
    assert_eq!(effects, [Effect::Call(Call::Create(expected))]);
    assert_eq!(press(&mut state, KeyCode::Enter), [], "it is made once");
    let refused = Answer::Created(Err(error(Kind::Invalid, "no such folder")));
    update(&mut state, Input::Answer(refused));
    assert!(drawn(&mut state).to_string().contains("no such folder"));
    let made = session(9, "Faster", Status::Creating, Activity::Quiet);
    let effects = update(&mut state, Input::Answer(Answer::Created(Ok(Box::new(made)))));
    assert_eq!(effects, [Effect::Follow(session_id(9), 0)]);
    assert!(state.overlays.is_empty() && state.focus == Focus::Composer);
}

#[test]
fn whoever_has_no_key_is_offered_the_tour() {
    let mut state = connected(80, 24, vec![]);
    assert!(state.overlays.is_empty(), "there is a key");
    let mut providers = providers();
    for provider in &mut providers.providers {
        provider.has_key = false;
    }
    update(&mut state, Input::Answer(Answer::Providers(Ok(providers))));
    assert!(matches!(state.overlays.last(), Some(Overlay::Welcome { .. })));
    press(&mut state, KeyCode::Char('2'));
    let effects = press(&mut state, KeyCode::Enter);
    let [Effect::Call(Call::Create(new))] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(new.model, "demo/tour");
    update(&mut state, Input::Answer(Answer::Created(Ok(Box::new(session(7, "Tour", Status::Creating, Activity::Quiet))))));
    assert!(!state.talk().unwrap().composer.is_blank());
}

#[test]
fn stopping_wants_a_yes_wherever_the_letter_was_typed() {
    let mut state = connected(80, 24, vec![session(3, "Write the release notes", Status::Active, Activity::Done)]);
    assert_eq!(press(&mut state, KeyCode::Char('s')), []);
    assert_eq!(press(&mut state, KeyCode::Char('n')), []);
    press(&mut state, KeyCode::Enter);
    press(&mut state, KeyCode::Esc);
    assert_eq!(press(&mut state, KeyCode::Char('s')), []);
    assert_eq!(press(&mut state, KeyCode::Char('y')), [Effect::Call(Call::Stop(session_id(3)))]);
}

#[test]
fn a_daemon_whose_store_takes_no_writes_is_asked_again_until_it_does() {
    let mut state = connected(80, 24, vec![]);
    assert_eq!(update(&mut state, Input::Clock(at(30))), []);
    let refused = ClientError { reason: "STORE_FULL".into(), ..error(Kind::Limit, "the disk is full") };
    update(&mut state, Input::Answer(Answer::Created(Err(refused))));
    assert_eq!(update(&mut state, Input::Clock(at(31))), [Effect::Call(Call::Status)], "a refused write is reason to look");
    let status = |writable| v1::GetStatusResponse {
        protocol: openagent_proto::PROTOCOL,
        store: Some(v1::StoreStatus { writable, fault: None }),
        ..v1::GetStatusResponse::default()
    };
    update(&mut state, Input::Answer(Answer::Status(Ok(Box::new(status(false))))));
    assert!(drawn(&mut state).to_string().contains("the store is read-only"));
    assert_eq!(state.stale_after(), Some(5_000));
    assert_eq!(update(&mut state, Input::Clock(at(37))), [Effect::Call(Call::Status)]);
    update(&mut state, Input::Answer(Answer::Status(Ok(Box::new(status(true))))));
    assert!(!drawn(&mut state).to_string().contains("read-only"));
    assert_eq!(update(&mut state, Input::Clock(at(60))), [], "what is well is asked rarely");
}

#[test]
fn others_are_everybody_but_this_window() {
    let mut state = opened();
    state.me = "anna".into();
    let mut shared = session(6, "Make the parser faster", Status::Active, Activity::Working);
    let here = |client: &str, to| AttachedView { client: client.into(), to, since: at(0) };
    shared.attached = vec![here("anna", AttachedTo::Events), here("anna", AttachedTo::Events), here("anna", AttachedTo::Terminal)];
    assert_eq!(state.others(&shared).len(), 2, "another window may go by the same name");
    state.open = None;
    assert_eq!(state.others(&shared).len(), 3);
}

#[test]
fn removing_wants_a_yes() {
    let mut state = connected(80, 24, sessions());
    press(&mut state, KeyCode::Char('d'));
    assert_eq!(press(&mut state, KeyCode::Enter), []);
    assert_eq!(press(&mut state, KeyCode::Char('y')), [Effect::Call(Call::Remove(session_id(6)))]);
    update(&mut state, Input::Answer(Answer::Removed(session_id(6), Ok(()))));
    assert_eq!(state.sessions.all.len(), 5);
}

#[test]
fn control_c_ends_the_turn_and_twice_the_program() {
    let mut state = opened();
    assert_eq!(ctrl(&mut state, 'c'), [Effect::Call(Call::Abort(session_id(6)))]);
    assert_eq!(ctrl(&mut state, 'c'), [Effect::Quit]);
    let mut state = opened();
    ctrl(&mut state, 'c');
    press(&mut state, KeyCode::Char('x'));
    assert_eq!(ctrl(&mut state, 'c'), [Effect::Call(Call::Abort(session_id(6)))], "another key in between disarms");
}

fn in_terminal() -> State {
    let mut state = connected(80, 24, sessions());
    let effects = press(&mut state, KeyCode::Char('t'));
    assert_eq!(effects, [Effect::Call(Call::Terminals(session_id(6)))]);
    let effects = update(&mut state, Input::Answer(Answer::Terminals(session_id(6), Ok(vec![]))));
    assert_eq!(effects, [Effect::Call(Call::OpenTerminal(session_id(6), (80, 21)))]);
    let terminal = v1::Terminal { id: "trm_00000000000000000000000001".into(), ..v1::Terminal::default() };
    let effects = update(&mut state, Input::Answer(Answer::TerminalOpened(session_id(6), Ok(terminal))));
    assert!(matches!(effects.as_slice(), [Effect::Attach { offset: 0, size: (80, 21), .. }]));
    let id = || "trm_00000000000000000000000001".parse().unwrap();
    update(&mut state, Input::Terminal(id(), Watch::Connected));
    update(&mut state, Input::Terminal(id(), Watch::Item(TerminalItem::Writer(true))));
    update(&mut state, Input::Terminal(id(), Watch::Item(TerminalItem::Output { end_offset: 5, data: b"$ ls\r".to_vec() })));
    state
}

#[test]
fn a_terminal_gets_every_key_but_the_escape_chord() {
    let mut state = in_terminal();
    assert_eq!(ctrl(&mut state, 'c'), [Effect::Type(vec![3])]);
    assert_eq!(press(&mut state, KeyCode::Char('q')), [Effect::Type(b"q".to_vec())]);
    assert_eq!(press(&mut state, KeyCode::F(1)), [Effect::Type(b"\x1bOP".to_vec())]);
    let screen = drawn(&mut state).to_string();
    assert!(screen.contains("Ctrl+]") && screen.contains("$ ls"), "{screen}");
    ctrl(&mut state, '5');
    assert_eq!(press(&mut state, KeyCode::Char('q')), [Effect::Detach]);
    assert_eq!(state.screen, Screen::Main);
}

#[test]
fn a_terminal_follows_the_size_of_the_screen() {
    let mut state = in_terminal();
    assert_eq!(update(&mut state, Input::Resize(100, 30)), [Effect::ResizeTerminal(100, 27)]);
    assert_eq!(state.terminal.as_ref().unwrap().size(), (100, 27));
    assert_eq!(update(&mut state, Input::Resize(1, 1)), [Effect::ResizeTerminal(2, 2)]);
    drawn(&mut state);
}

#[test]
fn who_only_reads_is_told_how_to_take_over() {
    let mut state = in_terminal();
    let id = "trm_00000000000000000000000001".parse().unwrap();
    update(&mut state, Input::Terminal(id, Watch::Item(TerminalItem::Writer(false))));
    assert_eq!(press(&mut state, KeyCode::Char('x')), []);
    assert!(state.note.as_ref().unwrap().text.contains("takes over"));
    ctrl(&mut state, ']');
    assert_eq!(press(&mut state, KeyCode::Char('t')), [Effect::TakeOver]);
}

#[test]
fn the_mouse_opens_sessions_and_scrolls() {
    let mut state = connected(120, 24, sessions());
    drawn(&mut state);
    let mouse = |kind, column, row| Input::Mouse(MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE });
    let effects = update(&mut state, mouse(MouseEventKind::Down(MouseButton::Left), 4, 3));
    assert_eq!(effects, [Effect::Follow(session_id(5), 0)]);
    update(&mut state, mouse(MouseEventKind::ScrollDown, 4, 3));
    assert_eq!(state.sessions.chosen, Some(session_id(4)));
}

#[test]
fn the_palette_runs_actions_by_name() {
    let mut state = connected(80, 24, sessions());
    ctrl(&mut state, 'p');
    type_text(&mut state, "usage");
    assert_eq!(press(&mut state, KeyCode::Enter), [Effect::Call(Call::Usage(v1::UsageGrouping::Session))]);
    assert_eq!(state.screen, Screen::Usage);
}

#[test]
fn coming_back_to_a_conversation_resumes_behind_what_was_seen() {
    let mut state = opened();
    feed(&mut state, 6, conversation(6));
    press(&mut state, KeyCode::Esc);
    press(&mut state, KeyCode::Esc);
    press(&mut state, KeyCode::Char('j'));
    assert_eq!(press(&mut state, KeyCode::Enter), [Effect::Follow(session_id(5), 0)]);
    press(&mut state, KeyCode::Esc);
    press(&mut state, KeyCode::Esc);
    press(&mut state, KeyCode::Char('k'));
    let count = u64::try_from(conversation(6).len()).unwrap();
    assert_eq!(press(&mut state, KeyCode::Enter), [Effect::Follow(session_id(6), count)]);
}

#[test]
fn nothing_moves_by_itself_where_nothing_counts() {
    let mut state = connected(80, 24, vec![]);
    assert_eq!(state.stale_after(), None);
    update(&mut state, watch(SessionChange::Changed(Box::new(session(1, "", Status::Active, Activity::Quiet)))));
    assert_eq!(state.stale_after(), Some(60_000));
}
