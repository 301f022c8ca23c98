//! The daemon's streams, item by item. Every `next` is cancel safe: dropping its future loses nothing.

use openagent_core::event::{Event, PartDelta};
use openagent_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use v1::attach_terminal_request::Request;
use v1::attach_terminal_response::Response;
use v1::subscribe_response::Item;

use super::convert;
use super::error::{ClientError, Kind};
use super::view::SessionChange;

/// Typed input that waits for the connection. When it is full the typist waits, as with any slow line.
const TERMINAL_INPUT_CAPACITY: usize = 64;

/// Largest piece of typed input; a longer paste is cut into pieces. The protocol's bound is 64 KiB.
const TERMINAL_INPUT_MAX_BYTES: usize = 32 * 1024;

/// Something that a subscription delivers.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamItem {
    /// A recorded event.
    Event(Event),
    /// Letters of a part that is still being written.
    Delta(PartDelta),
    /// Older events were compacted: what was built from earlier ones is to be forgotten. What is kept of them follows, from the beginning.
    Snapshot(Snapshot),
    /// Everything that was recorded when the subscription began has been delivered; the last event's seq.
    CaughtUp(u64),
}

/// What is left of the older part of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Events up to here are not dense.
    pub floor: u64,
    /// How many of them are not kept.
    pub dropped: u64,
}

/// The history of a session.
#[derive(Debug)]
pub struct EventStream {
    answers: Streaming<v1::SubscribeResponse>,
    unreadable: u64,
}

impl EventStream {
    pub(super) const fn new(answers: Streaming<v1::SubscribeResponse>) -> Self {
        Self { answers, unreadable: 0 }
    }

    /// The next item; `None` when the stream has ended.
    pub async fn next(&mut self) -> Result<Option<StreamItem>, ClientError> {
        loop {
            let Some(answer) = self.answers.message().await? else { return Ok(None) };
            match answer.item {
                Some(Item::Event(event)) => return Ok(Some(StreamItem::Event(convert::event(event)))),
                Some(Item::Delta(delta)) => match convert::delta(delta) {
                    Ok(delta) => return Ok(Some(StreamItem::Delta(delta))),
                    Err(_) => self.unreadable += 1,
                },
                Some(Item::Snapshot(snapshot)) => {
                    return Ok(Some(StreamItem::Snapshot(Snapshot { floor: snapshot.floor_seq, dropped: snapshot.dropped })));
                }
                Some(Item::CaughtUp(caught_up)) => return Ok(Some(StreamItem::CaughtUp(caught_up.seq))),
                None => self.unreadable += 1,
            }
        }
    }

    /// How many items were skipped because they could not be read. Recorded events are never among them.
    #[must_use]
    pub const fn unreadable(&self) -> u64 {
        self.unreadable
    }
}

/// The set of sessions as it changes.
#[derive(Debug)]
pub struct SessionStream {
    answers: Streaming<v1::WatchSessionsResponse>,
    unreadable: u64,
}

impl SessionStream {
    pub(super) const fn new(answers: Streaming<v1::WatchSessionsResponse>) -> Self {
        Self { answers, unreadable: 0 }
    }

    /// The next change; `None` when the stream has ended.
    pub async fn next(&mut self) -> Result<Option<SessionChange>, ClientError> {
        loop {
            let Some(answer) = self.answers.message().await? else { return Ok(None) };
            match convert::session_change(answer) {
                Ok(change) => return Ok(Some(change)),
                Err(_) => self.unreadable += 1,
            }
        }
    }

    /// How many items were skipped because they could not be read.
    #[must_use]
    pub const fn unreadable(&self) -> u64 {
        self.unreadable
    }
}

/// A session as a zip archive, in pieces.
#[derive(Debug)]
pub struct ExportStream {
    answers: Streaming<v1::ExportSessionResponse>,
}

impl ExportStream {
    pub(super) const fn new(answers: Streaming<v1::ExportSessionResponse>) -> Self {
        Self { answers }
    }

    /// The next bytes; `None` when the archive is whole.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        Ok(self.answers.message().await?.map(|answer| answer.chunk))
    }
}

/// A copy of the daemon's store, in pieces.
#[derive(Debug)]
pub struct BackupStream {
    answers: Streaming<v1::BackupStoreResponse>,
}

impl BackupStream {
    pub(super) const fn new(answers: Streaming<v1::BackupStoreResponse>) -> Self {
        Self { answers }
    }

    /// The next bytes; `None` when the copy is whole.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        Ok(self.answers.message().await?.map(|answer| answer.chunk))
    }
}

/// Something that an attached terminal delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TerminalItem {
    /// Output, and the offset behind its last byte.
    Output {
        /// Offset behind the last byte.
        end_offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Output is missing; the screen as it is, to be drawn on a reset terminal.
    Screen {
        /// Offset of the output that it contains.
        end_offset: u64,
        /// Bytes that draw it.
        data: Vec<u8>,
    },
    /// This client became, or is no longer, the writer.
    Writer(bool),
    /// The size that the shell sees: columns and rows.
    Size(u16, u16),
    /// The shell ended with this exit code.
    Exited(i32),
}

/// What an attached terminal shows.
#[derive(Debug)]
pub struct TerminalStream {
    answers: Streaming<v1::AttachTerminalResponse>,
}

impl TerminalStream {
    pub(super) const fn new(answers: Streaming<v1::AttachTerminalResponse>) -> Self {
        Self { answers }
    }

    /// The next item; `None` when the stream has ended.
    pub async fn next(&mut self) -> Result<Option<TerminalItem>, ClientError> {
        loop {
            let Some(answer) = self.answers.message().await? else { return Ok(None) };
            return Ok(Some(match answer.response {
                Some(Response::Output(output)) => TerminalItem::Output { end_offset: output.end_offset_bytes, data: output.data },
                Some(Response::Screen(screen)) => TerminalItem::Screen { end_offset: screen.end_offset_bytes, data: screen.data },
                Some(Response::Writer(writer)) => TerminalItem::Writer(writer.writing),
                Some(Response::Exited(exited)) => TerminalItem::Exited(exited.code),
                Some(Response::Size(size)) => {
                    let bounded = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX);
                    TerminalItem::Size(bounded(size.columns), bounded(size.rows))
                }
                None => continue,
            }));
        }
    }
}

/// What goes to an attached terminal. Dropping it detaches.
#[derive(Debug, Clone)]
pub struct TerminalInput {
    requests: mpsc::Sender<v1::AttachTerminalRequest>,
}

impl TerminalInput {
    pub(super) fn new(attach: v1::TerminalAttach) -> (Self, impl futures::Stream<Item = v1::AttachTerminalRequest> + Send + 'static) {
        let (requests, queued) = mpsc::channel(TERMINAL_INPUT_CAPACITY);
        let first = v1::AttachTerminalRequest { request: Some(Request::Attach(attach)) };
        let stream = futures::StreamExt::chain(futures::stream::iter([first]), ReceiverStream::new(queued));
        (Self { requests }, stream)
    }

    async fn send(&self, request: Request) -> Result<(), ClientError> {
        let gone = |_| ClientError::new(Kind::Unreachable, "the terminal is no longer attached", "");
        self.requests.send(v1::AttachTerminalRequest { request: Some(request) }).await.map_err(gone)
    }

    /// Types `bytes`.
    pub async fn input(&self, bytes: &[u8]) -> Result<(), ClientError> {
        for piece in bytes.chunks(TERMINAL_INPUT_MAX_BYTES) {
            self.send(Request::Input(piece.to_vec())).await?;
        }
        Ok(())
    }

    /// Tells the shell the size of the client's view.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<(), ClientError> {
        self.send(Request::Resize(convert::size_request(columns, rows))).await
    }

    /// Becomes the writer.
    pub async fn take_over(&self) -> Result<(), ClientError> {
        self.send(Request::TakeOver(v1::TakeOver {})).await
    }
}
