//! Everything that the screen shows, as plain data. [`super::update`] is the only writer, [`super::view`] the only reader that draws.

use std::collections::HashMap;

use openagent_core::activity::Activity;
use openagent_core::id::{RequestId, SessionId, TerminalId};
use openagent_core::permission::PermissionMode;
use openagent_core::session::Status;
use openagent_core::time::Timestamp;
use openagent_proto::v1;
use ratatui::layout::Size;
use ratatui::text::Line;

use super::composer::Composer;
use super::conversation::Conversation;
use super::field::Field;
use super::keymap::{Action, Layer};
use super::terminal::Pane;
use super::text::{fuzzy, has_words};
use super::theme::Theme;
use crate::client::{AttachedTo, AttachedView, ClientError, Pending, SessionView};
use crate::output::quantity::{ordinal, span};

/// Milliseconds after which the daemon is asked again how it is doing, and ages are counted on.
const CALM_MILLIS: u64 = 60_000;

/// The same while something is wrong with it.
const TROUBLED_MILLIS: u64 = 5_000;

/// Conversations that are kept after they were left, to come back to without reading them again.
pub const TALKS_KEPT: usize = 8;

/// The screen and everything behind it.
#[derive(Debug)]
pub struct State {
    /// Size of the terminal.
    pub size: Size,
    /// The time, as last told.
    pub now: Timestamp,
    /// How things look.
    pub theme: Theme,
    /// Folder in which the program was started.
    pub folder: String,
    /// The name under which others see this client.
    pub me: String,
    /// The connection to the daemon.
    pub link: Link,
    /// How the daemon is doing.
    pub daemon: Option<v1::GetStatusResponse>,
    /// When it was last asked for that.
    pub asked_daemon_at: Timestamp,
    /// The sessions.
    pub sessions: Sessions,
    /// Conversations that were opened, each with its composer.
    pub talks: HashMap<SessionId, Talk>,
    /// The session whose conversation is open.
    pub open: Option<SessionId>,
    /// Sessions in the order in which they were opened, the last one last.
    pub opened: Vec<SessionId>,
    /// What is on the screen.
    pub screen: Screen,
    /// Where keys go.
    pub focus: Focus,
    /// What stands over the screen, the uppermost last.
    pub overlays: Vec<Overlay>,
    /// What waits for an answer, over all sessions, oldest first.
    pub inbox: Vec<Pending>,
    /// Which of it is chosen.
    pub inbox_at: usize,
    /// A list of it is on its way, and whether another is wanted after it.
    pub inbox_asked: Option<bool>,
    /// The request that is shown, with what was chosen so far.
    pub prompt: Option<Prompt>,
    /// The providers and their models.
    pub providers: Option<v1::ListProvidersResponse>,
    /// The key manager.
    pub keys: Keyring,
    /// The usage screen.
    pub usage: UsageView,
    /// The attached terminal.
    pub terminal: Option<Pane>,
    /// The last news.
    pub note: Option<Note>,
    /// Ctrl+C was pressed; once more ends the program.
    pub quit_armed: bool,
    /// The tour was offered.
    pub welcomed: bool,
    /// The session to open as soon as it is known.
    pub open_first: Option<String>,
    /// A prompt to suggest in the session that is being made.
    pub suggestion: Option<String>,
    /// Number of the next prompt that is sent.
    pub next_ticket: u64,
}

/// The connection to the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// It is being made for the first time.
    Connecting,
    /// It stands.
    Up,
    /// It broke; what is shown is as old as `since`.
    Down {
        /// When it broke.
        since: Timestamp,
        /// When it is tried again.
        retry_at: Timestamp,
        /// Why.
        error: ClientError,
    },
}

/// What is on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screen {
    /// Sessions and the open conversation.
    Main,
    /// What waits for an answer.
    Inbox,
    /// Provider keys.
    Keys,
    /// Tokens and cost.
    Usage,
    /// A terminal.
    Terminal,
}

/// Where keys go on the main screen and in the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Focus {
    /// The list.
    List,
    /// The conversation, read.
    Talk,
    /// The composer.
    Composer,
    /// The request that waits.
    Request,
}

/// The sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    /// All of them, newest first.
    pub all: Vec<SessionView>,
    /// The chosen one.
    pub chosen: Option<SessionId>,
    /// Up to which event each was seen.
    pub seen: HashMap<SessionId, u64>,
    /// What is searched for.
    pub filter: Field,
    /// The filter is being typed.
    pub filtering: bool,
    /// First row on the screen.
    pub offset: usize,
    /// The first list is complete.
    pub complete: bool,
    /// Sessions that were named since the watch began.
    pub fresh: Vec<SessionId>,
}

impl Sessions {
    /// Those that match the filter.
    #[must_use]
    pub fn shown(&self) -> Vec<&SessionView> {
        let needle = self.filter.text();
        let matches =
            |session: &&SessionView| has_words(needle, &format!("{} {} {}", session.title, session.model, activity_word(session)));
        self.all.iter().filter(matches).collect()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: &SessionId) -> Option<&SessionView> {
        self.all.iter().find(|session| session.id == *id)
    }

    /// Whether something happened in it that was not seen.
    #[must_use]
    pub fn is_unread(&self, session: &SessionView) -> bool {
        self.seen.get(&session.id).is_none_or(|seen| *seen < session.last_seq)
    }
}

/// What a session does, in a word or two. Of one that cannot be reached it is what it did when it last answered.
#[must_use]
pub fn activity_word(session: &SessionView) -> String {
    if session.queue_position > 0 {
        return format!("queued ({})", ordinal(session.queue_position));
    }
    match (session.status, &session.activity) {
        (Some(Status::Creating), _) if session.step.is_empty() => "creating".to_owned(),
        (Some(Status::Creating), _) => format!("creating: {}", session.step),
        (Some(Status::Idle), _) => session.rest().map_or_else(|| "idle".to_owned(), |rest| format!("idle, {}", rest.name())),
        (Some(Status::Stopped), _) => "stopped".to_owned(),
        (Some(Status::Error), _) => "error".to_owned(),
        (_, Activity::Quiet) if !session.step.is_empty() => format!("starting: {}", session.step),
        (_, Activity::Quiet) => "ready".to_owned(),
        (_, Activity::Working) => "working".to_owned(),
        (_, Activity::Blocked { permissions, questions }) => match permissions + questions {
            0 | 1 => "blocked".to_owned(),
            more => format!("blocked ({more})"),
        },
        (_, Activity::Retrying { attempt, .. }) => format!("retrying ({attempt})"),
        (_, Activity::Done) => "done".to_owned(),
        (_, Activity::Failed) => "failed".to_owned(),
    }
}

/// For how long a session has not answered, where it does not.
#[must_use]
pub fn unreachable(session: &SessionView, now: Timestamp) -> Option<String> {
    session.unreachable_since.map(|since| format!("unreachable {}", span(now.millis_since(since))))
}

/// An open conversation.
#[derive(Debug)]
pub struct Talk {
    /// What was said.
    pub conversation: Conversation,
    /// What is being written.
    pub composer: Composer,
    /// Prompts on their way, oldest first, by ticket.
    pub sending: Vec<(u64, String)>,
    /// The stream of its events broke.
    pub lost: bool,
}

impl Talk {
    /// A conversation of which nothing is known yet.
    #[must_use]
    pub fn new(session: SessionId) -> Self {
        Self { conversation: Conversation::new(session), composer: Composer::default(), sending: Vec::new(), lost: false }
    }
}

/// A request with what was chosen so far.
#[derive(Debug)]
pub struct Prompt {
    /// The session that asks.
    pub session: SessionId,
    /// The request.
    pub request: RequestId,
    /// When it came onto the screen; answers that are typed too soon after that are not meant for it.
    pub shown_at: Timestamp,
    /// First row on the screen.
    pub scroll: usize,
    /// Its rows at the width they were last laid out for.
    pub rows: Vec<Line<'static>>,
    /// That width.
    pub width: u16,
    /// The question that is answered.
    pub question: usize,
    /// The option under the cursor.
    pub option: usize,
    /// For each question which options are chosen.
    pub chosen: Vec<Vec<bool>>,
    /// For each question the user's own words.
    pub own: Vec<String>,
    /// The answer is on its way.
    pub sent: bool,
}

/// The key manager.
#[derive(Debug, Default)]
pub struct Keyring {
    /// The stored keys.
    pub stored: Vec<v1::Key>,
    /// What is searched for.
    pub filter: Field,
    /// The search is being typed.
    pub filtering: bool,
    /// Which of the shown providers is chosen.
    pub at: usize,
    /// First row on the screen.
    pub offset: usize,
}

/// The usage screen.
#[derive(Debug)]
pub struct UsageView {
    /// What it is grouped by.
    pub grouping: v1::UsageGrouping,
    /// The sums.
    pub sums: Option<v1::GetUsageResponse>,
    /// First row on the screen.
    pub offset: usize,
}

/// News in one line, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What happened.
    pub text: String,
    /// What to do.
    pub hint: String,
    /// It is bad news.
    pub bad: bool,
}

/// Something that stands over the screen.
#[derive(Debug)]
pub enum Overlay {
    /// The keys of where the user is.
    Help {
        /// The layers from which it was called.
        layers: Vec<Layer>,
        /// First row on the screen.
        offset: usize,
    },
    /// Everything about a session.
    Details {
        /// The session.
        session: SessionId,
        /// First row on the screen.
        offset: usize,
    },
    /// A question for confirmation.
    Confirm {
        /// What is asked.
        question: String,
        /// What it is about.
        purpose: Confirmed,
    },
    /// A text is asked for.
    Entry(Entry),
    /// A session is being described.
    New(Box<NewForm>),
    /// What to begin with.
    Welcome {
        /// The choice under the cursor.
        at: usize,
    },
    /// Actions by name.
    Palette {
        /// What is searched for.
        filter: Field,
        /// The choice under the cursor.
        at: usize,
    },
    /// Terminals of a session.
    Terminals {
        /// The session.
        session: SessionId,
        /// Its terminals; behind them the choice of a new one.
        terminals: Vec<v1::Terminal>,
        /// The choice under the cursor.
        at: usize,
    },
}

/// What is done once it is confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confirmed {
    /// A session is removed.
    Remove(SessionId),
    /// A session is stopped.
    Stop(SessionId),
    /// A provider's key is removed.
    RemoveKey(String),
    /// A terminal is ended.
    CloseTerminal(SessionId, TerminalId),
}

/// A text that is asked for.
#[derive(Debug)]
pub struct Entry {
    /// What it is for.
    pub purpose: Purpose,
    /// Its heading.
    pub title: String,
    /// What to know.
    pub hint: String,
    /// The text.
    pub field: Field,
    /// It is not shown.
    pub masked: bool,
}

/// What a text is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A session's title.
    Rename(SessionId),
    /// Where to export to.
    Export(SessionId),
    /// Why an act is not allowed.
    Reject(SessionId, RequestId),
    /// The answer to a question in own words.
    OwnWords(RequestId, usize),
    /// A provider's key.
    Key(String),
}

/// A session that is being described.
#[derive(Debug)]
pub struct NewForm {
    /// The field that keys go to.
    pub at: FormField,
    /// Its title.
    pub title: Field,
    /// What models are searched for.
    pub model_filter: Field,
    /// Which of the found models is chosen.
    pub model_at: usize,
    /// What it may do unasked.
    pub mode: PermissionMode,
    /// The workspace is a copy of a folder.
    pub copy: bool,
    /// The folder.
    pub path: Field,
    /// The session is being made.
    pub sent: bool,
    /// Why it could not be made.
    pub error: Option<ClientError>,
}

/// A field of the form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormField {
    /// The title.
    Title,
    /// The model.
    Model,
    /// What it may do.
    Mode,
    /// Empty or a copy.
    Workspace,
    /// The folder to copy.
    Path,
}

impl State {
    /// A screen on which nothing is known yet.
    #[must_use]
    pub fn new(size: Size, theme: Theme, folder: String) -> Self {
        Self {
            size,
            now: Timestamp::default(),
            theme,
            folder,
            me: String::new(),
            link: Link::Connecting,
            daemon: None,
            asked_daemon_at: Timestamp::default(),
            sessions: Sessions::default(),
            talks: HashMap::new(),
            open: None,
            opened: Vec::new(),
            screen: Screen::Main,
            focus: Focus::List,
            overlays: Vec::new(),
            inbox: Vec::new(),
            inbox_at: 0,
            inbox_asked: None,
            prompt: None,
            providers: None,
            keys: Keyring::default(),
            usage: UsageView { grouping: v1::UsageGrouping::Session, sums: None, offset: 0 },
            terminal: None,
            note: None,
            quit_armed: false,
            welcomed: false,
            open_first: None,
            suggestion: None,
            next_ticket: 1,
        }
    }

    /// The open conversation.
    #[must_use]
    pub fn talk(&self) -> Option<&Talk> {
        self.open.as_ref().and_then(|id| self.talks.get(id))
    }

    /// The open conversation, to be changed.
    pub fn talk_mut(&mut self) -> Option<&mut Talk> {
        self.open.as_ref().and_then(|id| self.talks.get_mut(id))
    }

    /// The session that actions are about: the open one where its conversation has the keys, else the chosen one.
    #[must_use]
    pub fn subject(&self) -> Option<&SessionView> {
        let open = (self.focus != Focus::List || self.screen == Screen::Terminal).then_some(self.open.as_ref()).flatten();
        open.or(self.sessions.chosen.as_ref()).and_then(|id| self.sessions.get(id))
    }

    /// The request that is on the screen: the first of the open session, or the chosen one in the inbox. While a history is still being read, what
    /// it asks was answered long ago, as far as anybody knows.
    #[must_use]
    pub fn ask(&self) -> Option<&Pending> {
        match self.screen {
            Screen::Main => self.talk().filter(|talk| talk.conversation.caught_up).and_then(|talk| talk.conversation.asks.first()),
            Screen::Inbox => self.inbox.get(self.inbox_at),
            Screen::Keys | Screen::Usage | Screen::Terminal => None,
        }
    }

    /// Models that could be used now and match `filter`, best first, each with its `provider/model` and a name for people.
    #[must_use]
    pub fn models(&self, filter: &str) -> Vec<(String, String)> {
        let Some(providers) = &self.providers else { return Vec::new() };
        let usable = providers.providers.iter().filter(|provider| provider.has_key || !provider.needs_key);
        let mut found: Vec<(usize, bool, String, String)> = usable
            .flat_map(|provider| {
                provider
                    .models
                    .iter()
                    .map(move |model| (format!("{}/{}", provider.id, model.id), format!("{} · {}", provider.name, model.name)))
            })
            .filter_map(|(id, name)| {
                let cost = fuzzy(filter, &format!("{id} {name}"))?;
                let default = id != providers.default_model;
                Some((cost, default, id, name))
            })
            .collect();
        if filter.is_empty() {
            found.sort_by_key(|found| found.1);
        } else {
            found.sort_by_key(|found| (found.0, found.1, found.2.len()));
        }
        found.into_iter().map(|(_, _, id, name)| (id, name)).collect()
    }

    /// Providers that want a key and match the search: those with a key first.
    #[must_use]
    pub fn keyed_providers(&self) -> Vec<&v1::Provider> {
        let Some(providers) = &self.providers else { return Vec::new() };
        let needle = self.keys.filter.text();
        let mut found: Vec<(usize, &v1::Provider)> = providers
            .providers
            .iter()
            .filter(|provider| provider.needs_key || provider.has_key)
            .filter_map(|provider| Some((fuzzy(needle, &format!("{} {}", provider.id, provider.name))?, provider)))
            .collect();
        found.sort_by_key(|(cost, provider)| (!provider.has_key, if needle.is_empty() { 0 } else { *cost }));
        found.into_iter().map(|(_, provider)| provider).collect()
    }

    /// The layer that keys go to first.
    #[must_use]
    pub fn layer(&self) -> Layer {
        match self.overlays.last() {
            Some(Overlay::Help { .. } | Overlay::Details { .. }) => return Layer::Help,
            Some(Overlay::Confirm { .. }) => return Layer::Confirm,
            Some(Overlay::Entry(_)) => return Layer::Field,
            Some(Overlay::New(_)) => return Layer::Form,
            Some(Overlay::Welcome { .. } | Overlay::Palette { .. } | Overlay::Terminals { .. }) => return Layer::Pick,
            None => {}
        }
        match self.screen {
            Screen::Terminal if self.terminal.as_ref().is_some_and(|pane| pane.menu) => Layer::Menu,
            Screen::Terminal => Layer::Terminal,
            Screen::Keys if self.keys.filtering => Layer::Field,
            Screen::Keys => Layer::Keys,
            Screen::Usage => Layer::Usage,
            Screen::Main | Screen::Inbox => match self.focus {
                Focus::Request => match self.ask().map(|ask| &ask.request) {
                    Some(crate::client::PendingRequest::Question(_)) => Layer::Question,
                    Some(crate::client::PendingRequest::Permission(_)) => Layer::Permission,
                    None if self.screen == Screen::Inbox => Layer::Inbox,
                    None => Layer::Talk,
                },
                _ if self.screen == Screen::Inbox => Layer::Inbox,
                Focus::List if self.sessions.filtering => Layer::Field,
                Focus::List => Layer::List,
                Focus::Talk => Layer::Talk,
                Focus::Composer => Layer::Composer,
            },
        }
    }

    /// Milliseconds after which something on the screen is out of date by itself: countdowns each second, ages each minute.
    #[must_use]
    pub fn stale_after(&self) -> Option<u64> {
        let counting = matches!(self.link, Link::Down { .. })
            || self.sessions.all.iter().any(|session| {
                session.status == Some(Status::Creating)
                    || session.unreachable_since.is_some()
                    || session.queue_position > 0
                    || matches!(session.activity, Activity::Retrying { .. })
            });
        match (counting, self.is_troubled(), self.sessions.all.is_empty()) {
            (true, ..) => Some(1_000),
            (false, true, _) => Some(TROUBLED_MILLIS),
            (false, false, false) => Some(CALM_MILLIS),
            (false, false, true) => None,
        }
    }

    /// Whether the daemon is to be asked again how it is doing: soon while something is wrong with it.
    #[must_use]
    pub fn is_daemon_due(&self) -> bool {
        let every = if self.is_troubled() { TROUBLED_MILLIS } else { CALM_MILLIS };
        self.link == Link::Up && self.now.millis_since(self.asked_daemon_at) >= every
    }

    fn is_troubled(&self) -> bool {
        let Some(daemon) = &self.daemon else { return false };
        self.read_only().is_some() || daemon.driver.as_ref().is_some_and(|driver| !driver.healthy)
    }

    /// The daemon's store where it takes no writes.
    #[must_use]
    pub fn read_only(&self) -> Option<&v1::StoreStatus> {
        self.daemon.as_ref()?.store.as_ref().filter(|store| !store.writable)
    }

    /// Who else follows a session.
    #[must_use]
    pub fn others<'a>(&self, session: &'a SessionView) -> Vec<&'a AttachedView> {
        let mut others: Vec<&AttachedView> = session.attached.iter().collect();
        let mut own = |followed: bool, to: AttachedTo| {
            // Another window may go by the same name: only one of each is this one.
            if let Some(index) = others.iter().position(|one| followed && one.to == to && one.client == self.me) {
                others.remove(index);
            }
        };
        own(self.open.as_ref() == Some(&session.id), AttachedTo::Events);
        own(self.terminal.as_ref().is_some_and(|pane| pane.session == session.id), AttachedTo::Terminal);
        others
    }

    /// Whether this action means something now.
    #[must_use]
    pub fn can(&self, action: Action) -> bool {
        let subject = self.subject();
        match action {
            Action::Rename | Action::Remove | Action::Export | Action::Terminal | Action::Details => subject.is_some(),
            Action::Stop => subject.is_some_and(|session| !matches!(session.status, Some(Status::Stopped | Status::Error))),
            Action::Resume => subject.is_some_and(|session| matches!(session.status, Some(Status::Stopped | Status::Error | Status::Idle))),
            Action::Abort => subject.is_some_and(|session| {
                matches!(session.activity, Activity::Working | Activity::Blocked { .. } | Activity::Retrying { .. })
            }),
            Action::New | Action::Inbox | Action::Usage | Action::Keys | Action::Help | Action::Palette | Action::Quit => true,
        }
    }
}
