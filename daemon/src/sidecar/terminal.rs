//! A client's view of a terminal: a WebSocket over the sidecar's HTTP/2 connection (RFC 8441).

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::Method;
use http_body_util::Full;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use openagent_proto::sidecar::{self as wire, terminal};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::{SidecarClient, SidecarError, refusal};

/// What a terminal tells an attached client.
#[derive(Debug, PartialEq, Eq)]
pub enum Shown {
    /// More output; `end` is the offset behind its last byte.
    Output {
        /// Offset behind the last byte.
        end: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Output is missing; the whole screen as bytes that draw it.
    Screen {
        /// Offset that the screen stands for.
        end: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Anything else.
    Notice(terminal::Notice),
}

/// An attached client's connection.
pub struct TerminalStream {
    socket: WebSocketStream<TokioIo<Upgraded>>,
}

impl SidecarClient {
    /// Attaches to a terminal.
    ///
    /// # Errors
    /// [`SidecarError`]; `NOT_FOUND` for an unknown terminal.
    pub async fn attach_terminal(&self, attach: &wire::AttachTerminal) -> Result<TerminalStream, SidecarError> {
        let mut sender = self.sender.clone();
        sender.ready().await.map_err(|_| SidecarError::Lost)?;
        let query = format!(
            "{}?id={}&offset={}&readOnly={}&columns={}&rows={}",
            wire::path::TERMINAL,
            attach.id,
            attach.offset,
            attach.read_only,
            attach.columns,
            attach.rows
        );
        let mut request = self
            .request(Method::CONNECT, &query)
            .header("sec-websocket-version", "13")
            .body(Full::new(Bytes::new()))
            .map_err(|_| SidecarError::Protocol)?;
        request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
        let answer = tokio::time::timeout(super::CALL_DEADLINE, sender.send_request(request))
            .await
            .map_err(|_| SidecarError::Deadline)?
            .map_err(|_| SidecarError::Lost)?;
        if !answer.status().is_success() {
            let status = answer.status();
            let body = http_body_util::Limited::new(answer.into_body(), super::ANSWER_MAX_BYTES);
            let body = http_body_util::BodyExt::collect(body).await.map_err(|_| SidecarError::Lost)?.to_bytes();
            return Err(refusal(status, &body));
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(|_| SidecarError::Lost)?;
        // Only the size of one frame is bounded by the protocol; twice that leaves room for its header.
        let config = WebSocketConfig::default()
            .max_message_size(Some(2 * terminal::FRAME_MAX_BYTES))
            .max_frame_size(Some(2 * terminal::FRAME_MAX_BYTES));
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await;
        Ok(TerminalStream { socket })
    }
}

impl TerminalStream {
    /// The next thing shown; `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// [`SidecarError::Protocol`] for what cannot be understood.
    pub async fn next(&mut self) -> Result<Option<Shown>, SidecarError> {
        loop {
            match self.socket.next().await {
                None | Some(Err(_) | Ok(Message::Close(_))) => return Ok(None),
                Some(Ok(Message::Binary(frame))) => return parse(frame).map(Some),
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text).map(|notice| Some(Shown::Notice(notice))).map_err(|_| SidecarError::Protocol);
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            }
        }
    }

    /// Sends typed bytes.
    ///
    /// # Errors
    /// [`SidecarError::Lost`].
    pub async fn input(&mut self, data: Bytes) -> Result<(), SidecarError> {
        self.socket.send(Message::Binary(data)).await.map_err(|_| SidecarError::Lost)
    }

    /// Sends a command.
    ///
    /// # Errors
    /// [`SidecarError::Lost`].
    pub async fn command(&mut self, command: &terminal::Command) -> Result<(), SidecarError> {
        let text = serde_json::to_string(command).map_err(|_| SidecarError::Protocol)?;
        self.socket.send(Message::Text(text.into())).await.map_err(|_| SidecarError::Lost)
    }
}

fn parse(mut frame: Bytes) -> Result<Shown, SidecarError> {
    let Some((kind, end)) = frame.split_first_chunk::<9>().map(|(head, _)| {
        let [kind, end @ ..] = *head;
        (kind, u64::from_be_bytes(end))
    }) else {
        return Err(SidecarError::Protocol);
    };
    let data = frame.split_off(9);
    match kind {
        terminal::OUTPUT => Ok(Shown::Output { end, data }),
        terminal::SCREEN => Ok(Shown::Screen { end, data }),
        _ => Err(SidecarError::Protocol),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_apart_and_nonsense_is_refused() {
        let frame = Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 0, 9, b'h', b'i']);
        assert!(matches!(parse(frame), Ok(Shown::Output { end: 9, data }) if data == "hi"));
        assert!(matches!(parse(Bytes::from_static(&[0; 8])), Err(SidecarError::Protocol)));
        assert!(matches!(parse(Bytes::from_static(&[7; 9])), Err(SidecarError::Protocol)));
    }
}
