//! A client of a terminal: one WebSocket.
//!
//! Two loops side by side, so that keys get through while output is stuck on its way to a slow client: one shows, by its own cursor, what there is to
//! see; the other takes commands and keys. When the shell does not read, the second waits and the client's stream fills up; nothing is dropped.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use openagent_proto::sidecar::AttachTerminal;
use openagent_proto::sidecar::terminal::{Command, FRAME_MAX_BYTES, Notice, OUTPUT, SCREEN};

use super::Terminal;
use super::state::{ClientId, Shown, Size};

/// Time that a client gets to answer that it has seen the end.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// A client that is attached until this is dropped.
pub struct Attachment {
    terminal: Arc<Terminal>,
    client: ClientId,
    offset: u64,
}

impl Terminal {
    /// Attaches a client; `None` when there are too many.
    #[must_use]
    pub fn attach(self: &Arc<Self>, request: &AttachTerminal) -> Option<Attachment> {
        let size = Size::clamped(request.columns, request.rows);
        let client = self.change(|state| state.attach(request.read_only, size))?;
        Some(Attachment { terminal: Arc::clone(self), client, offset: request.offset })
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.terminal.change(|state| state.detach(self.client));
    }
}

impl Attachment {
    /// Serves the client until it goes or the shell has ended.
    pub async fn serve(self, socket: WebSocket) {
        let (to_client, from_client) = socket.split();
        let listening = self.listen(from_client);
        tokio::pin!(listening);
        tokio::select! {
            shown = self.show(to_client) => if shown.is_ok() {
                // Gone too early, it would take the last frames with it.
                let _ = tokio::time::timeout(CLOSE_GRACE, listening).await;
            },
            () = &mut listening => {}
        }
    }

    async fn show(&self, mut to_client: SplitSink<WebSocket, Message>) -> Result<(), axum::Error> {
        let mut changes = self.terminal.doorbell.subscribe();
        let (mut told_writing, mut told_size) = (None, None);
        let mut offset = self.offset;
        loop {
            changes.mark_unchanged();
            let (writing, size, shown) = {
                let state = self.terminal.state();
                (state.is_writer(self.client), state.size(), state.shown_after(offset))
            };
            if told_size.replace(size) != Some(size) {
                to_client.send(notice(&Notice::Size { columns: size.columns, rows: size.rows })).await?;
            }
            if told_writing.replace(writing) != Some(writing) {
                to_client.send(notice(&Notice::Writer { writing })).await?;
            }
            match shown {
                Shown::Output(end, bytes) => {
                    offset = end;
                    to_client.send(frame(OUTPUT, end, &bytes)).await?;
                }
                Shown::Screen(end, bytes) => {
                    offset = end;
                    send_screen(&mut to_client, end, &bytes).await?;
                }
                Shown::Ended(code) => {
                    to_client.send(notice(&Notice::Exited { code })).await?;
                    to_client.send(Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: "".into() }))).await?;
                    return Ok(());
                }
                Shown::Nothing => {
                    if changes.changed().await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn listen(&self, mut from_client: SplitStream<WebSocket>) {
        while let Some(Ok(message)) = from_client.next().await {
            match message {
                // A shell that has ended takes no input; the other loop says so.
                Message::Binary(typed) if !typed.is_empty() && self.terminal.state().is_writer(self.client) => {
                    let _ = self.terminal.input.send(typed).await;
                }
                Message::Text(text) => match serde_json::from_str(text.as_str()) {
                    Ok(Command::Resize { columns, rows }) => {
                        self.terminal.change(|state| state.resize(self.client, Size::clamped(columns, rows)));
                    }
                    Ok(Command::TakeOver) => self.terminal.change(|state| state.take_over(self.client)),
                    Err(_) => tracing::debug!("a terminal's client sent a command that is not known"),
                },
                Message::Close(_) => return,
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) => {}
            }
        }
    }
}

/// A screen that is larger than a frame goes on as output. Only the last piece carries the offset: a client that goes in the middle gets it anew.
async fn send_screen(to_client: &mut SplitSink<WebSocket, Message>, end: u64, screen: &Bytes) -> Result<(), axum::Error> {
    let pieces = screen.len().div_ceil(FRAME_MAX_BYTES).max(1);
    for piece in 0..pieces {
        let from = piece * FRAME_MAX_BYTES;
        let bytes = screen.slice(from..screen.len().min(from + FRAME_MAX_BYTES));
        let kind = if piece == 0 { SCREEN } else { OUTPUT };
        let offset = if piece + 1 == pieces { end } else { 0 };
        to_client.send(frame(kind, offset, &bytes)).await?;
    }
    Ok(())
}

fn frame(kind: u8, end: u64, bytes: &Bytes) -> Message {
    let mut frame = BytesMut::with_capacity(9 + bytes.len());
    frame.put_u8(kind);
    frame.put_u64(end);
    frame.put_slice(bytes);
    Message::Binary(frame.freeze())
}

fn notice(notice: &Notice) -> Message {
    Message::Text(serde_json::to_string(notice).expect("a notice is plain data").into())
}
