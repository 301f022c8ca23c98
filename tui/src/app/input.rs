//! What comes into the state and what goes out of it: every input is a fact, every effect is data that the runner carries out.

use crossterm::event::{KeyEvent, MouseEvent};
use openagent_core::id::{RequestId, SessionId, TerminalId};
use openagent_core::permission::PermissionResponse;
use openagent_core::secret::Secret;
use openagent_core::time::Timestamp;
use openagent_proto::v1;
use zeroize::Zeroizing;

use crate::client::{ClientError, NewSession, Pending, SessionChange, SessionView, StreamItem, TerminalItem};

/// A fact.
#[derive(Debug)]
pub enum Input {
    /// The time. Comes before anything else that was waited for.
    Clock(Timestamp),
    /// A frame is about to be drawn.
    Frame,
    /// A key was pressed.
    Key(KeyEvent),
    /// Text was pasted. It may be a key, so it is wiped.
    Paste(Zeroizing<String>),
    /// The mouse did something.
    Mouse(MouseEvent),
    /// The terminal has this size: columns and rows.
    Resize(u16, u16),
    /// The watch over all sessions.
    Watch(Watch<SessionChange>),
    /// The open session's events.
    Follow(SessionId, Watch<StreamItem>),
    /// The attached terminal.
    Terminal(TerminalId, Watch<TerminalItem>),
    /// A call was answered.
    Answer(Answer),
}

/// What a stream that reconnects by itself reports.
#[derive(Debug)]
pub enum Watch<T> {
    /// It is connected, and begins where it was asked to.
    Connected,
    /// It begins anew: what was taken in before does not hold.
    Reset,
    /// An item.
    Item(T),
    /// It broke; it is tried again in this many milliseconds.
    Lost(ClientError, u64),
    /// It ended for good.
    Ended(Option<ClientError>),
}

/// Something to do outside.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// End the program.
    Quit,
    /// Follow a session behind this event; a session that was followed before no longer is.
    Follow(SessionId, u64),
    /// Follow no session.
    Unfollow,
    /// Call the daemon.
    Call(Call),
    /// Attach to a terminal of this size from an offset of its output; one that was attached before no longer is.
    Attach {
        /// The session.
        session: SessionId,
        /// The terminal.
        terminal: TerminalId,
        /// Output that is known.
        offset: u64,
        /// Columns and rows.
        size: (u16, u16),
    },
    /// Attach to no terminal.
    Detach,
    /// Type into the attached terminal.
    Type(Vec<u8>),
    /// The attached terminal's view has this size.
    ResizeTerminal(u16, u16),
    /// Become the attached terminal's writer.
    TakeOver,
}

/// A call of the daemon.
#[derive(Debug, PartialEq)]
#[allow(missing_docs, reason = "each is the client's method of its name")]
pub enum Call {
    Status,
    Providers,
    Keys,
    Pending,
    Usage(v1::UsageGrouping),
    Create(NewSession),
    Prompt { session: SessionId, ticket: u64, text: String },
    Abort(SessionId),
    Stop(SessionId),
    Resume(SessionId),
    Remove(SessionId),
    Rename(SessionId, String),
    Export(SessionId, String),
    AnswerPermission { session: SessionId, request: RequestId, response: PermissionResponse, reason: String },
    AnswerQuestion { session: SessionId, request: RequestId, answers: Option<Vec<Vec<String>>> },
    SetKey(String, Secret),
    RemoveKey(String),
    Terminals(SessionId),
    OpenTerminal(SessionId, (u16, u16)),
    CloseTerminal(SessionId, TerminalId),
}

/// What became of a call.
#[derive(Debug)]
#[allow(missing_docs, reason = "each answers the call of its name")]
pub enum Answer {
    Status(Result<Box<v1::GetStatusResponse>, ClientError>),
    Providers(Result<v1::ListProvidersResponse, ClientError>),
    Keys(Result<Vec<v1::Key>, ClientError>),
    Pending(Result<Vec<Pending>, ClientError>),
    Usage(v1::UsageGrouping, Result<v1::GetUsageResponse, ClientError>),
    Created(Result<Box<SessionView>, ClientError>),
    Prompted {
        session: SessionId,
        ticket: u64,
        result: Result<String, ClientError>,
    },
    Aborted(Result<(), ClientError>),
    /// A session was stopped, resumed or renamed: the words say what, the session how it is now.
    Changed(&'static str, Result<Box<SessionView>, ClientError>),
    Removed(SessionId, Result<(), ClientError>),
    /// A session was exported to this file of this many bytes.
    Exported(String, Result<u64, ClientError>),
    /// A request was answered.
    Replied(RequestId, Result<(), ClientError>),
    KeySet(String, Result<v1::Key, ClientError>),
    KeyRemoved(String, Result<(), ClientError>),
    Terminals(SessionId, Result<Vec<v1::Terminal>, ClientError>),
    TerminalOpened(SessionId, Result<v1::Terminal, ClientError>),
    TerminalClosed(Result<(), ClientError>),
}
