//! A terminal in a session's sandbox, as a client that types and reads.

use openagent_proto::v1;
use openagent_proto::v1::attach_terminal_request::Request;
use openagent_proto::v1::attach_terminal_response::Response;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::PATIENCE;
use super::client::Clients;

const SIZE: v1::TerminalSize = v1::TerminalSize { columns: 200, rows: 50 };

/// An attached terminal.
pub struct Shell {
    requests: mpsc::Sender<v1::AttachTerminalRequest>,
    responses: Streaming<v1::AttachTerminalResponse>,
    /// Its id.
    pub terminal: String,
    /// Everything that it showed since it was attached.
    pub seen: Vec<u8>,
    /// Offset behind the last byte of it.
    pub end_offset: u64,
}

impl Shell {
    /// Opens a terminal that runs `command`, or a login shell, and attaches to it.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub async fn open(clients: &mut Clients, session: &str, command: &str) -> Self {
        let request = v1::OpenTerminalRequest { session_id: session.to_owned(), size: Some(SIZE), command: command.to_owned() };
        let opened = clients.terminal.open_terminal(request).await.expect("the terminal is opened").into_inner();
        Self::attach(clients, session, &opened.terminal.expect("it is answered").id, 0).await
    }

    /// Attaches to a terminal whose output is known up to an offset.
    ///
    /// # Panics
    /// When the daemon refuses.
    pub async fn attach(clients: &mut Clients, session: &str, terminal: &str, offset_bytes: u64) -> Self {
        let (requests, stream) = mpsc::channel(8);
        let attach = v1::TerminalAttach {
            session_id: session.to_owned(),
            terminal_id: terminal.to_owned(),
            offset_bytes,
            read_only: false,
            size: Some(SIZE),
            client: "test".to_owned(),
        };
        requests.send(v1::AttachTerminalRequest { request: Some(Request::Attach(attach)) }).await.expect("the channel has room");
        let responses = clients.terminal.attach_terminal(ReceiverStream::new(stream)).await.expect("the terminal is there").into_inner();
        Self { requests, responses, terminal: terminal.to_owned(), seen: vec![], end_offset: offset_bytes }
    }

    /// Types.
    ///
    /// # Panics
    /// When the stream has ended.
    pub async fn write(&self, text: &str) {
        let input = Request::Input(text.as_bytes().to_vec());
        self.requests.send(v1::AttachTerminalRequest { request: Some(input) }).await.expect("the terminal is attached");
    }

    /// Waits until it has shown `text`.
    ///
    /// # Panics
    /// When it does not, or ends before.
    pub async fn until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            let ended = self.next().await;
            assert!(ended.is_none(), "it ended with {ended:?} before {text:?}: {}", String::from_utf8_lossy(&self.seen));
        }
    }

    /// Waits until the shell has ended, and gives its exit code and all that it showed.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn until_exited(mut self) -> (i32, String) {
        loop {
            if let Some(code) = self.next().await {
                return (code, String::from_utf8_lossy(&self.seen).into_owned());
            }
        }
    }

    async fn next(&mut self) -> Option<i32> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        let next = next.unwrap_or_else(|_| panic!("nothing came after {}", String::from_utf8_lossy(&self.seen)));
        match next.expect("the stream does not break").expect("the stream goes on until the shell's end").response {
            Some(Response::Output(output) | Response::Screen(output)) => {
                self.seen.extend_from_slice(&output.data);
                self.end_offset = output.end_offset_bytes;
                None
            }
            Some(Response::Exited(exited)) => Some(exited.code),
            _ => None,
        }
    }
}
