//! Keys become commands through one table per layer. The same tables are printed by the help and the bottom bar, so what is shown is what
//! works.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// A key with its modifiers. Shift is part of a letter and never named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chord {
    /// The key.
    pub code: KeyCode,
    /// Control and alt.
    pub modifiers: KeyModifiers,
}

const fn ch(letter: char) -> Chord {
    Chord { code: KeyCode::Char(letter), modifiers: KeyModifiers::NONE }
}

const fn ctrl(letter: char) -> Chord {
    Chord { code: KeyCode::Char(letter), modifiers: KeyModifiers::CONTROL }
}

const fn key(code: KeyCode) -> Chord {
    Chord { code, modifiers: KeyModifiers::NONE }
}

const fn alt(code: KeyCode) -> Chord {
    Chord { code, modifiers: KeyModifiers::ALT }
}

impl Chord {
    /// Whether `event` is this chord.
    #[must_use]
    pub fn is(self, event: &KeyEvent) -> bool {
        let modifiers = event.modifiers & (KeyModifiers::CONTROL | KeyModifiers::ALT);
        self.code == event.code && self.modifiers == modifiers
    }

    /// Its name for people.
    #[must_use]
    pub fn name(self) -> String {
        let code = match self.code {
            KeyCode::Char(' ') => "Space".to_owned(),
            KeyCode::Char(letter) => letter.to_string(),
            KeyCode::Up => "↑".to_owned(),
            KeyCode::Down => "↓".to_owned(),
            KeyCode::Left => "←".to_owned(),
            KeyCode::Right => "→".to_owned(),
            KeyCode::BackTab => "Shift+Tab".to_owned(),
            KeyCode::PageUp => "PgUp".to_owned(),
            KeyCode::PageDown => "PgDn".to_owned(),
            other => other.to_string(),
        };
        match self.modifiers {
            KeyModifiers::CONTROL => format!("Ctrl+{code}"),
            KeyModifiers::ALT => format!("Alt+{code}"),
            _ => code,
        }
    }
}

/// One row of a key table.
#[derive(Debug, Clone, Copy)]
pub struct Binding<C: 'static> {
    /// The keys, the one that is shown first.
    pub keys: &'static [Chord],
    /// What they do.
    pub command: C,
    /// A word for the bottom bar; empty where it is not shown there.
    pub label: &'static str,
    /// A sentence for the help.
    pub help: &'static str,
}

const fn bind<C>(keys: &'static [Chord], command: C, label: &'static str, help: &'static str) -> Binding<C> {
    Binding { keys, command, label, help }
}

/// The command of `event` in `table`.
#[must_use]
pub fn find<C: Copy>(table: &[Binding<C>], event: &KeyEvent) -> Option<C> {
    table.iter().find(|binding| binding.keys.iter().any(|chord| chord.is(event))).map(|binding| binding.command)
}

/// A printed row of a key table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The keys.
    pub keys: String,
    /// A word for the bottom bar.
    pub label: &'static str,
    /// A sentence for the help.
    pub help: &'static str,
}

fn printed<C>(table: &[Binding<C>]) -> Vec<Row> {
    let row = |binding: &Binding<C>| Row {
        keys: binding.keys.iter().map(|chord| chord.name()).collect::<Vec<_>>().join(" "),
        label: binding.label,
        help: binding.help,
    };
    table.iter().map(row).collect()
}

/// What can be done with a session or the program, from several layers and from the palette.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make a session.
    New,
    /// Give the session a title.
    Rename,
    /// Stop the session.
    Stop,
    /// Resume the session.
    Resume,
    /// Remove the session.
    Remove,
    /// End the turn.
    Abort,
    /// Open a terminal.
    Terminal,
    /// Write an archive.
    Export,
    /// Show everything about the session.
    Details,
    /// Show what waits for an answer.
    Inbox,
    /// Show what was spent.
    Usage,
    /// Show the provider keys.
    Keys,
    /// Show the help.
    Help,
    /// Show the palette.
    Palette,
    /// End the program.
    Quit,
}

/// Actions with their names, as the palette lists them.
pub const ACTIONS: &[(Action, &str)] = &[
    (Action::New, "new session"),
    (Action::Inbox, "inbox: what waits for an answer"),
    (Action::Terminal, "terminal in this session"),
    (Action::Abort, "end the turn that runs"),
    (Action::Rename, "rename this session"),
    (Action::Stop, "stop this session"),
    (Action::Resume, "resume this session"),
    (Action::Remove, "remove this session"),
    (Action::Export, "export this session as a zip archive"),
    (Action::Details, "details of this session, and who is there"),
    (Action::Usage, "usage: tokens and cost"),
    (Action::Keys, "provider keys"),
    (Action::Help, "help"),
    (Action::Quit, "quit"),
];

/// Commands that hold everywhere but in a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GlobalCommand {
    /// End the turn, or leave.
    Interrupt,
    /// Act.
    Do(Action),
}

/// Keys that hold everywhere but in a terminal.
pub const GLOBAL: &[Binding<GlobalCommand>] = &[
    bind(&[ctrl('c')], GlobalCommand::Interrupt, "", "end the turn that runs; twice in a row, or where nothing runs: quit"),
    bind(&[ctrl('p')], GlobalCommand::Do(Action::Palette), "", "palette: every action by name"),
    bind(&[key(KeyCode::F(1))], GlobalCommand::Do(Action::Help), "", "help for where you are"),
];

/// Commands of lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// One up.
    Up,
    /// One down.
    Down,
    /// To the first.
    First,
    /// To the last.
    Last,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
}

/// Commands of the session list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListCommand {
    /// Move the choice.
    Move(Move),
    /// Open the chosen session.
    Open,
    /// Type a filter.
    Filter,
    /// Drop the filter, or nothing.
    Clear,
    /// Act.
    Do(Action),
}

/// Keys of the session list.
pub const LIST: &[Binding<ListCommand>] = &[
    bind(&[key(KeyCode::Enter), key(KeyCode::Right), ch('l')], ListCommand::Open, "open", "open the chosen session"),
    bind(&[ch('n')], ListCommand::Do(Action::New), "new", "make a session"),
    bind(&[ch('?')], ListCommand::Do(Action::Help), "help", "this help"),
    bind(&[ch('q')], ListCommand::Do(Action::Quit), "quit", "quit; sessions go on running"),
    bind(&[ch('i')], ListCommand::Do(Action::Inbox), "inbox", "everything that waits for an answer"),
    bind(&[ch('/')], ListCommand::Filter, "filter", "show only sessions whose title, model or state matches"),
    bind(&[ch('t')], ListCommand::Do(Action::Terminal), "terminal", "a terminal in the session's sandbox"),
    bind(&[ch('a')], ListCommand::Do(Action::Abort), "abort", "end the turn that runs"),
    bind(&[ch('s')], ListCommand::Do(Action::Stop), "stop", "stop the session; everything but its container is kept"),
    bind(&[ch('R')], ListCommand::Do(Action::Resume), "resume", "give a stopped or failed session a new container"),
    bind(&[ch('r')], ListCommand::Do(Action::Rename), "rename", "give the session a title"),
    bind(&[ch('d')], ListCommand::Do(Action::Remove), "remove", "remove the session with its workspace and history"),
    bind(&[ch('e')], ListCommand::Do(Action::Export), "export", "write workspace and transcript to a zip archive"),
    bind(&[ch('u')], ListCommand::Do(Action::Usage), "usage", "tokens and cost"),
    bind(&[ch('K')], ListCommand::Do(Action::Keys), "keys", "provider keys"),
    bind(&[ch('v')], ListCommand::Do(Action::Details), "details", "everything about the session, and who is there"),
    bind(&[ch('j'), key(KeyCode::Down)], ListCommand::Move(Move::Down), "", "one down"),
    bind(&[ch('k'), key(KeyCode::Up)], ListCommand::Move(Move::Up), "", "one up"),
    bind(&[ch('g'), key(KeyCode::Home)], ListCommand::Move(Move::First), "", "to the first"),
    bind(&[ch('G'), key(KeyCode::End)], ListCommand::Move(Move::Last), "", "to the last"),
    bind(&[key(KeyCode::PageUp)], ListCommand::Move(Move::PageUp), "", "a page up"),
    bind(&[key(KeyCode::PageDown)], ListCommand::Move(Move::PageDown), "", "a page down"),
    bind(&[key(KeyCode::Esc)], ListCommand::Clear, "", "drop the filter"),
];

/// Commands of one-line fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldCommand {
    /// Take it.
    Accept,
    /// Leave it.
    Cancel,
}

/// Keys of one-line fields.
pub const FIELD: &[Binding<FieldCommand>] = &[
    bind(&[key(KeyCode::Enter)], FieldCommand::Accept, "ok", "take what was typed"),
    bind(&[key(KeyCode::Esc)], FieldCommand::Cancel, "cancel", "leave it as it was"),
];

/// Commands of a conversation that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TalkCommand {
    /// Scroll.
    Scroll(Move),
    /// Choose the next card.
    NextCard,
    /// Choose the card before.
    PreviousCard,
    /// Fold or unfold.
    Toggle,
    /// Write.
    Compose,
    /// To the request that waits.
    Answer,
    /// Back to the list.
    Back,
    /// Act.
    Do(Action),
}

/// Keys of a conversation that is read.
pub const TALK: &[Binding<TalkCommand>] = &[
    bind(&[ch('c'), key(KeyCode::Tab)], TalkCommand::Compose, "write", "write a prompt"),
    bind(&[ch('o'), key(KeyCode::Enter)], TalkCommand::Toggle, "unfold", "unfold or fold the chosen card, else the last on the screen"),
    bind(&[key(KeyCode::Esc), ch('q'), ch('h'), key(KeyCode::Left)], TalkCommand::Back, "back", "back to the sessions"),
    bind(&[ch('?')], TalkCommand::Do(Action::Help), "help", "this help"),
    bind(&[ch('y')], TalkCommand::Answer, "answer", "go to the request that waits"),
    bind(&[ch('a')], TalkCommand::Do(Action::Abort), "abort", "end the turn that runs"),
    bind(&[ch('t')], TalkCommand::Do(Action::Terminal), "terminal", "a terminal in the session's sandbox"),
    bind(&[ch('j'), key(KeyCode::Down)], TalkCommand::Scroll(Move::Down), "", "one row down"),
    bind(&[ch('k'), key(KeyCode::Up)], TalkCommand::Scroll(Move::Up), "", "one row up"),
    bind(&[key(KeyCode::PageDown), ch(' ')], TalkCommand::Scroll(Move::PageDown), "", "a page down"),
    bind(&[key(KeyCode::PageUp), ch('b')], TalkCommand::Scroll(Move::PageUp), "", "a page up"),
    bind(&[ch('g'), key(KeyCode::Home)], TalkCommand::Scroll(Move::First), "", "to the beginning"),
    bind(&[ch('G'), key(KeyCode::End)], TalkCommand::Scroll(Move::Last), "", "to the end, and follow it"),
    bind(&[ch(']'), ch('J')], TalkCommand::NextCard, "", "choose the next card"),
    bind(&[ch('['), ch('K')], TalkCommand::PreviousCard, "", "choose the card before"),
    bind(&[ch('e')], TalkCommand::Do(Action::Export), "", "write workspace and transcript to a zip archive"),
    bind(&[ch('i')], TalkCommand::Do(Action::Inbox), "", "everything that waits for an answer"),
    bind(&[ch('n')], TalkCommand::Do(Action::New), "", "make a session"),
    bind(&[ch('r')], TalkCommand::Do(Action::Rename), "", "give the session a title"),
    bind(&[ch('R')], TalkCommand::Do(Action::Resume), "", "give a stopped or failed session a new container"),
    bind(&[ch('s')], TalkCommand::Do(Action::Stop), "", "stop the session"),
    bind(&[ch('v')], TalkCommand::Do(Action::Details), "", "everything about the session, and who is there"),
    bind(&[ch('u')], TalkCommand::Do(Action::Usage), "", "tokens and cost"),
];

/// Commands of the composer; every other key edits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComposerCommand {
    /// Send the prompt.
    Send,
    /// A new line.
    Newline,
    /// The prompt before, from the first line.
    Earlier,
    /// The prompt after, from the last line.
    Later,
    /// Scroll the conversation.
    Scroll(Move),
    /// To the request that waits.
    Answer,
    /// Read.
    Leave,
}

/// Keys of the composer.
pub const COMPOSER: &[Binding<ComposerCommand>] = &[
    bind(&[key(KeyCode::Enter)], ComposerCommand::Send, "send", "send the prompt; during a turn it steers the agent"),
    bind(&[alt(KeyCode::Enter), ctrl('j')], ComposerCommand::Newline, "new line", "a new line"),
    bind(&[key(KeyCode::Esc)], ComposerCommand::Leave, "read", "leave the composer: keys scroll and act"),
    bind(&[key(KeyCode::Tab)], ComposerCommand::Answer, "answer", "go to the request that waits"),
    bind(&[key(KeyCode::Up)], ComposerCommand::Earlier, "", "in the first line: the prompt before"),
    bind(&[key(KeyCode::Down)], ComposerCommand::Later, "", "in the last line: the prompt after"),
    bind(&[key(KeyCode::PageUp)], ComposerCommand::Scroll(Move::PageUp), "", "scroll the conversation up"),
    bind(&[key(KeyCode::PageDown)], ComposerCommand::Scroll(Move::PageDown), "", "scroll the conversation down"),
];

/// Commands of a permission request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PermissionCommand {
    /// Allow this act.
    Once,
    /// Allow such acts in this session.
    Session,
    /// Allow such acts for ever.
    Always,
    /// Refuse.
    Reject,
    /// Scroll what is asked.
    Scroll(Move),
    /// Write instead.
    Compose,
    /// Leave it for now.
    Leave,
}

/// Keys of a permission request.
pub const PERMISSION: &[Binding<PermissionCommand>] = &[
    bind(&[ch('y')], PermissionCommand::Once, "once", "allow this one act"),
    bind(&[ch('s')], PermissionCommand::Session, "session", "allow acts of this pattern for the life of this session"),
    bind(&[ch('A')], PermissionCommand::Always, "always", "allow acts of this pattern in this and every later session"),
    bind(&[ch('n')], PermissionCommand::Reject, "reject", "refuse; you can give the agent a reason"),
    bind(&[key(KeyCode::Tab)], PermissionCommand::Compose, "write", "write to the agent instead"),
    bind(&[key(KeyCode::Esc)], PermissionCommand::Leave, "later", "leave it for now"),
    bind(&[ch('j'), key(KeyCode::Down)], PermissionCommand::Scroll(Move::Down), "", "scroll the request down"),
    bind(&[ch('k'), key(KeyCode::Up)], PermissionCommand::Scroll(Move::Up), "", "scroll the request up"),
    bind(&[key(KeyCode::PageDown), ch(' ')], PermissionCommand::Scroll(Move::PageDown), "", "a page down"),
    bind(&[key(KeyCode::PageUp), ch('b')], PermissionCommand::Scroll(Move::PageUp), "", "a page up"),
];

/// Commands of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuestionCommand {
    /// Move the choice.
    Move(Move),
    /// Choose or drop an option.
    Choose,
    /// Answer in own words.
    Own,
    /// Next question, or send.
    Send,
    /// Question before.
    Previous,
    /// Dismiss all.
    Dismiss,
    /// Write instead.
    Compose,
    /// Leave it for now.
    Leave,
}

/// Keys of a question.
pub const QUESTION: &[Binding<QuestionCommand>] = &[
    bind(&[key(KeyCode::Enter)], QuestionCommand::Send, "answer", "take the choice: to the next question, or send all answers"),
    bind(&[ch(' ')], QuestionCommand::Choose, "choose", "choose or drop the option under the cursor"),
    bind(&[ch('w')], QuestionCommand::Own, "own words", "answer in your own words, where the question allows it"),
    bind(&[ch('x')], QuestionCommand::Dismiss, "dismiss", "do not answer; the turn ends"),
    bind(&[key(KeyCode::Esc)], QuestionCommand::Leave, "later", "leave it for now"),
    bind(&[key(KeyCode::Tab)], QuestionCommand::Compose, "write", "write to the agent instead"),
    bind(&[ch('j'), key(KeyCode::Down)], QuestionCommand::Move(Move::Down), "", "next option"),
    bind(&[ch('k'), key(KeyCode::Up)], QuestionCommand::Move(Move::Up), "", "option before"),
    bind(&[key(KeyCode::BackTab), key(KeyCode::Left), ch('h')], QuestionCommand::Previous, "", "question before"),
];

/// Commands of the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboxCommand {
    /// Move the choice.
    Move(Move),
    /// Answer the chosen request.
    Answer,
    /// Open its session.
    Open,
    /// Ask the daemon again.
    Refresh,
    /// Back.
    Back,
    /// Act.
    Do(Action),
}

/// Keys of the inbox.
pub const INBOX: &[Binding<InboxCommand>] = &[
    bind(&[key(KeyCode::Enter), key(KeyCode::Right), ch('l')], InboxCommand::Answer, "answer", "answer the chosen request"),
    bind(&[ch('o')], InboxCommand::Open, "open", "open the session that asks"),
    bind(&[key(KeyCode::Esc), ch('q'), ch('h'), key(KeyCode::Left)], InboxCommand::Back, "back", "back to the sessions"),
    bind(&[ch('?')], InboxCommand::Do(Action::Help), "help", "this help"),
    bind(&[ch('j'), key(KeyCode::Down)], InboxCommand::Move(Move::Down), "", "one down"),
    bind(&[ch('k'), key(KeyCode::Up)], InboxCommand::Move(Move::Up), "", "one up"),
    bind(&[ch('r')], InboxCommand::Refresh, "", "ask the daemon again"),
];

/// Commands of the key manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeysCommand {
    /// Move the choice.
    Move(Move),
    /// Enter a key.
    Set,
    /// Remove the key.
    Remove,
    /// Search.
    Filter,
    /// Back.
    Back,
    /// Act.
    Do(Action),
}

/// Keys of the key manager.
pub const KEYS: &[Binding<KeysCommand>] = &[
    bind(&[key(KeyCode::Enter), ch('a')], KeysCommand::Set, "set key", "enter the provider's key, or replace it; it is never shown"),
    bind(&[ch('d')], KeysCommand::Remove, "remove", "remove the provider's key"),
    bind(&[ch('/')], KeysCommand::Filter, "search", "search providers"),
    bind(&[key(KeyCode::Esc), ch('q'), key(KeyCode::Left)], KeysCommand::Back, "back", "drop the search, or back to the sessions"),
    bind(&[ch('?')], KeysCommand::Do(Action::Help), "help", "this help"),
    bind(&[ch('j'), key(KeyCode::Down)], KeysCommand::Move(Move::Down), "", "one down"),
    bind(&[ch('k'), key(KeyCode::Up)], KeysCommand::Move(Move::Up), "", "one up"),
    bind(&[ch('g'), key(KeyCode::Home)], KeysCommand::Move(Move::First), "", "to the first"),
    bind(&[ch('G'), key(KeyCode::End)], KeysCommand::Move(Move::Last), "", "to the last"),
    bind(&[key(KeyCode::PageUp)], KeysCommand::Move(Move::PageUp), "", "a page up"),
    bind(&[key(KeyCode::PageDown)], KeysCommand::Move(Move::PageDown), "", "a page down"),
];

/// Commands of the usage screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageCommand {
    /// Group by something else.
    NextGrouping,
    /// Scroll.
    Move(Move),
    /// Ask the daemon again.
    Refresh,
    /// Back.
    Back,
    /// Act.
    Do(Action),
}

/// Keys of the usage screen.
pub const USAGE: &[Binding<UsageCommand>] = &[
    bind(&[key(KeyCode::Tab), key(KeyCode::Enter)], UsageCommand::NextGrouping, "group", "group by session, day or model"),
    bind(&[ch('r')], UsageCommand::Refresh, "refresh", "ask the daemon again"),
    bind(&[key(KeyCode::Esc), ch('q'), ch('h'), key(KeyCode::Left)], UsageCommand::Back, "back", "back to the sessions"),
    bind(&[ch('?')], UsageCommand::Do(Action::Help), "help", "this help"),
    bind(&[ch('j'), key(KeyCode::Down)], UsageCommand::Move(Move::Down), "", "scroll down"),
    bind(&[ch('k'), key(KeyCode::Up)], UsageCommand::Move(Move::Up), "", "scroll up"),
];

/// Commands of the new session form; every other key edits its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormCommand {
    /// Make the session.
    Create,
    /// Next field.
    Next,
    /// Field before.
    Previous,
    /// Choice above.
    Up,
    /// Choice below.
    Down,
    /// Leave.
    Cancel,
}

/// Keys of the new session form.
pub const FORM: &[Binding<FormCommand>] = &[
    bind(&[key(KeyCode::Enter)], FormCommand::Create, "create", "make the session"),
    bind(&[key(KeyCode::Tab)], FormCommand::Next, "next field", "next field"),
    bind(&[key(KeyCode::Down)], FormCommand::Down, "choose", "next choice of this field, or next field"),
    bind(&[key(KeyCode::Esc)], FormCommand::Cancel, "cancel", "leave without making one"),
    bind(&[key(KeyCode::BackTab)], FormCommand::Previous, "", "field before"),
    bind(&[key(KeyCode::Up)], FormCommand::Up, "", "choice or field before"),
];

/// Commands of a question for confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfirmCommand {
    /// Do it.
    Yes,
    /// Do not.
    No,
}

/// Keys of a question for confirmation. Enter is not among them: it is typed too easily.
pub const CONFIRM: &[Binding<ConfirmCommand>] = &[
    bind(&[ch('y')], ConfirmCommand::Yes, "yes", "do it"),
    bind(&[ch('n'), key(KeyCode::Esc), ch('q')], ConfirmCommand::No, "no", "do not"),
];

/// Commands of lists to pick from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PickCommand {
    /// Choice above.
    Up,
    /// Choice below.
    Down,
    /// Take it.
    Take,
    /// Leave.
    Cancel,
}

/// Keys of lists to pick from, such as the palette; in the palette every other key filters.
pub const PICK: &[Binding<PickCommand>] = &[
    bind(&[key(KeyCode::Enter)], PickCommand::Take, "take", "take the choice"),
    bind(&[key(KeyCode::Down), ctrl('n')], PickCommand::Down, "choose", "next choice"),
    bind(&[key(KeyCode::Up)], PickCommand::Up, "", "choice before"),
    bind(&[key(KeyCode::Esc)], PickCommand::Cancel, "cancel", "leave"),
];

/// Commands of the help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelpCommand {
    /// Scroll.
    Move(Move),
    /// Close.
    Close,
}

/// Keys of the help.
pub const HELP: &[Binding<HelpCommand>] = &[
    bind(&[key(KeyCode::Esc), ch('q'), ch('?'), key(KeyCode::F(1))], HelpCommand::Close, "close", "close the help"),
    bind(&[ch('j'), key(KeyCode::Down)], HelpCommand::Move(Move::Down), "scroll", "scroll down"),
    bind(&[ch('k'), key(KeyCode::Up)], HelpCommand::Move(Move::Up), "", "scroll up"),
    bind(&[key(KeyCode::PageDown), ch(' ')], HelpCommand::Move(Move::PageDown), "", "a page down"),
    bind(&[key(KeyCode::PageUp), ch('b')], HelpCommand::Move(Move::PageUp), "", "a page up"),
];

/// Commands of a terminal, all but the first behind the escape chord.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminalCommand {
    /// The escape chord.
    Menu,
    /// A page up in the scrollback.
    PageUp,
    /// A page down in the scrollback.
    PageDown,
}

/// Keys of a terminal that the shell does not get. Terminals without the kitty protocol send `Ctrl+]` as what is read as `Ctrl+5`.
pub const TERMINAL: &[Binding<TerminalCommand>] =
    &[bind(&[ctrl(']'), ctrl('5')], TerminalCommand::Menu, "menu: leave, scroll, take over", "the menu; then q leaves")];

/// Keys with shift that scroll a terminal; shift is otherwise no part of a chord.
pub const TERMINAL_SHIFTED: &[Binding<TerminalCommand>] = &[
    bind(&[key(KeyCode::PageUp)], TerminalCommand::PageUp, "", "scroll up (with shift)"),
    bind(&[key(KeyCode::PageDown)], TerminalCommand::PageDown, "", "scroll down (with shift)"),
];

/// Commands of a terminal's menu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MenuCommand {
    /// Back to the conversation; the terminal goes on.
    Leave,
    /// Become the one who types.
    TakeOver,
    /// Scroll.
    PageUp,
    /// Scroll.
    PageDown,
    /// Another terminal.
    Other,
    /// One more terminal.
    New,
    /// End this terminal.
    Close,
    /// The chord itself, for the shell.
    Literal,
    /// Help.
    Help,
    /// Back to the shell.
    Cancel,
}

/// Keys of a terminal's menu.
pub const MENU: &[Binding<MenuCommand>] = &[
    bind(&[ch('q')], MenuCommand::Leave, "leave", "leave; the terminal goes on"),
    bind(&[key(KeyCode::PageUp), ch('u')], MenuCommand::PageUp, "up", "scroll up"),
    bind(&[key(KeyCode::PageDown), ch('d')], MenuCommand::PageDown, "down", "scroll down"),
    bind(&[ch('t')], MenuCommand::TakeOver, "take over", "become the one whose keys count"),
    bind(&[ch('l')], MenuCommand::Other, "list", "this session's terminals"),
    bind(&[ch('n')], MenuCommand::New, "new", "one more terminal"),
    bind(&[ch('x')], MenuCommand::Close, "end", "end this terminal and what runs in it"),
    bind(&[ctrl(']'), ctrl('5')], MenuCommand::Literal, "", "send Ctrl+] to the shell"),
    bind(&[ch('?')], MenuCommand::Help, "help", "this help"),
    bind(&[key(KeyCode::Esc)], MenuCommand::Cancel, "back", "back to the shell"),
];

/// What keys go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the table of its name")]
pub enum Layer {
    List,
    Field,
    Talk,
    Composer,
    Permission,
    Question,
    Inbox,
    Keys,
    Usage,
    Form,
    Confirm,
    Pick,
    Help,
    Terminal,
    Menu,
}

impl Layer {
    /// Its table as text.
    #[must_use]
    pub fn rows(self) -> Vec<Row> {
        match self {
            Self::List => printed(LIST),
            Self::Field => printed(FIELD),
            Self::Talk => printed(TALK),
            Self::Composer => printed(COMPOSER),
            Self::Permission => printed(PERMISSION),
            Self::Question => printed(QUESTION),
            Self::Inbox => printed(INBOX),
            Self::Keys => printed(KEYS),
            Self::Usage => printed(USAGE),
            Self::Form => printed(FORM),
            Self::Confirm => printed(CONFIRM),
            Self::Pick => printed(PICK),
            Self::Help => printed(HELP),
            Self::Terminal => printed(TERMINAL).into_iter().chain(printed(TERMINAL_SHIFTED)).collect(),
            Self::Menu => printed(MENU),
        }
    }

    /// Its name in the help.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::List => "sessions",
            Self::Field => "text field",
            Self::Talk => "conversation",
            Self::Composer => "writing",
            Self::Permission => "permission request",
            Self::Question => "question",
            Self::Inbox => "inbox",
            Self::Keys => "provider keys",
            Self::Usage => "usage",
            Self::Form => "new session",
            Self::Confirm => "confirm",
            Self::Pick => "choose",
            Self::Help => "help",
            Self::Terminal => "terminal",
            Self::Menu => "terminal menu",
        }
    }
}

/// Keys that hold everywhere, as text.
#[must_use]
pub fn global_rows() -> Vec<Row> {
    printed(GLOBAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_key_twice<C>(name: &str, table: &[Binding<C>]) {
        let chords: Vec<Chord> = table.iter().flat_map(|binding| binding.keys.iter().copied()).collect();
        for (index, chord) in chords.iter().enumerate() {
            assert!(!chords[index + 1..].contains(chord), "{name}: {} is bound twice", chord.name());
        }
    }

    #[test]
    fn no_table_binds_a_key_twice() {
        no_key_twice("global", GLOBAL);
        no_key_twice("list", LIST);
        no_key_twice("talk", TALK);
        no_key_twice("composer", COMPOSER);
        no_key_twice("permission", PERMISSION);
        no_key_twice("question", QUESTION);
        no_key_twice("inbox", INBOX);
        no_key_twice("keys", KEYS);
        no_key_twice("usage", USAGE);
        no_key_twice("form", FORM);
        no_key_twice("confirm", CONFIRM);
        no_key_twice("pick", PICK);
        no_key_twice("help", HELP);
        no_key_twice("menu", MENU);
    }

    #[test]
    fn shift_is_part_of_a_letter() {
        let event = KeyEvent::new(KeyCode::Char('G'), KeyModifiers::SHIFT);
        assert_eq!(find(LIST, &event), Some(ListCommand::Move(Move::Last)));
    }
}
