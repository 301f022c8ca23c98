//! `TerminalService`: a door to the sidecar, which owns the terminals and their output. Each attached client has a connection of its own down to the
//! sidecar, so that a slow one stalls nobody else.

use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openagent_core::id::TerminalId;
use openagent_core::session::Fault;
use openagent_core::time::Timestamp;
use openagent_proto::sidecar::terminal::{Command, FRAME_MAX_BYTES, Notice};
use openagent_proto::{sidecar as wire, v1};
use tonic::{Request, Response, Status, Streaming};

use super::status::{invalid, status};
use super::{Context, convert};
use crate::session::SessionHandle;
use crate::session::presence::{AttachedTo, Attachment};
use crate::sidecar::SidecarError;
use crate::sidecar::terminal::{Shown, TerminalStream};

/// Longest command of a new terminal, in bytes.
const COMMAND_MAX_BYTES: usize = 64 * 1024;

/// The service.
pub struct Terminals(pub Context);

fn size(size: Option<v1::TerminalSize>) -> Result<(u16, u16), Status> {
    let v1::TerminalSize { columns, rows } = size.unwrap_or(v1::TerminalSize { columns: 80, rows: 24 });
    match (u16::try_from(columns), u16::try_from(rows)) {
        (Ok(columns @ 2..=1000), Ok(rows @ 2..=1000)) => Ok((columns, rows)),
        _ => Err(invalid("a terminal has 2 to 1000 columns and rows")),
    }
}

fn terminal_id(text: &str) -> Result<TerminalId, Status> {
    text.parse().map_err(|error: openagent_core::id::InvalidId| invalid(error.to_string()))
}

fn terminal(info: wire::TerminalInfo) -> v1::Terminal {
    v1::Terminal {
        id: info.id,
        size: Some(v1::TerminalSize { columns: info.columns.into(), rows: info.rows.into() }),
        created_at: Some(convert::timestamp(Timestamp::from_millis(info.created_at))),
        exit_code: info.exit_code,
        attached: info.attached,
    }
}

#[allow(clippy::needless_pass_by_value, reason = "an error mapper for map_err")]
fn failed(error: SidecarError) -> Status {
    status(&match &error {
        SidecarError::Refused { code, message, .. } if code == "NOT_FOUND" => {
            Fault::new("NOT_FOUND", message.clone(), "open a new one: openagent term ID")
        }
        SidecarError::Refused { code, message, .. } if code == "RESOURCE_EXHAUSTED" => {
            Fault::new("RESOURCE_EXHAUSTED", message.clone(), "end one of them first, by exit in its shell")
        }
        _ => error.fault(),
    })
}

impl Terminals {
    fn find(&self, id: &str) -> Result<SessionHandle, Status> {
        self.0.registry.find(id).map_err(|fault| status(&fault))
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<v1::AttachTerminalResponse, Status>> + Send>>;

#[tonic::async_trait]
impl v1::terminal_service_server::TerminalService for Terminals {
    type AttachTerminalStream = Responses;

    async fn open_terminal(&self, request: Request<v1::OpenTerminalRequest>) -> Result<Response<v1::OpenTerminalResponse>, Status> {
        let request = request.into_inner();
        let (columns, rows) = size(request.size)?;
        if request.command.len() > COMMAND_MAX_BYTES {
            return Err(invalid("the command has more than 64 KiB"));
        }
        let client = self.find(&request.session_id)?.client().await.map_err(|fault| status(&fault))?;
        let open = wire::OpenTerminal {
            id: TerminalId::from_ulid(ulid::Ulid::new()).to_string(),
            columns,
            rows,
            command: (!request.command.is_empty()).then_some(request.command),
        };
        let info = client.open_terminal(&open).await.map_err(failed)?;
        Ok(Response::new(v1::OpenTerminalResponse { terminal: Some(terminal(info)) }))
    }

    async fn list_terminals(&self, request: Request<v1::ListTerminalsRequest>) -> Result<Response<v1::ListTerminalsResponse>, Status> {
        let handle = self.find(&request.into_inner().session_id)?;
        // Terminals live and end with the instance: without one there are none.
        let terminals = match handle.client().await {
            Ok(client) => client.terminals().await.map_err(failed)?,
            Err(_) => vec![],
        };
        Ok(Response::new(v1::ListTerminalsResponse { terminals: terminals.into_iter().map(terminal).collect() }))
    }

    async fn attach_terminal(&self, request: Request<Streaming<v1::AttachTerminalRequest>>) -> Result<Response<Responses>, Status> {
        use v1::attach_terminal_request::Request as Asked;
        let mut requests = request.into_inner();
        let first = requests.next().await.transpose()?.and_then(|request| request.request);
        let Some(Asked::Attach(attach)) = first else {
            return Err(invalid("the first request must attach"));
        };
        let (columns, rows) = size(attach.size)?;
        let id = terminal_id(&attach.terminal_id)?;
        let handle = self.find(&attach.session_id)?;
        let client = handle.client().await.map_err(|fault| status(&fault))?;
        // Before the stream: from now on the session does not become idle under it.
        let present = handle.presence().attach(&attach.client, AttachedTo::Terminal);
        let attach = wire::AttachTerminal { id: id.to_string(), offset: attach.offset_bytes, read_only: attach.read_only, columns, rows };
        let stream = client.attach_terminal(&attach).await.map_err(failed)?;
        Ok(Response::new(Box::pin(pump(stream, requests, present, self.0.shutdown.clone()))))
    }

    async fn close_terminal(&self, request: Request<v1::CloseTerminalRequest>) -> Result<Response<v1::CloseTerminalResponse>, Status> {
        let request = request.into_inner();
        let handle = self.find(&request.session_id)?;
        let id = terminal_id(&request.terminal_id)?;
        if let Ok(client) = handle.client().await {
            match client.close_terminal(&id).await {
                Ok(()) | Err(SidecarError::Refused { status: 404, .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(Response::new(v1::CloseTerminalResponse {}))
    }
}

fn pump(
    mut terminal: TerminalStream,
    mut requests: Streaming<v1::AttachTerminalRequest>,
    present: Attachment,
    stop: tokio_util::sync::CancellationToken,
) -> impl Stream<Item = Result<v1::AttachTerminalResponse, Status>> {
    async_stream::stream! {
        let _present = present;
        let mut asking = true;
        loop {
            tokio::select! {
                shown = terminal.next() => match shown {
                    Ok(Some(shown)) => {
                        let over = matches!(shown, Shown::Notice(Notice::Exited { .. }));
                        yield Ok(v1::AttachTerminalResponse { response: Some(response(shown)) });
                        if over {
                            return;
                        }
                    }
                    Ok(None) => {
                        let fault = Fault::new("SIDECAR_UNREACHABLE", "the connection to the terminal was lost", "attach again");
                        yield Err(status(&fault));
                        return;
                    }
                    Err(error) => {
                        yield Err(failed(error));
                        return;
                    }
                },
                request = requests.next(), if asking => match request {
                    Some(Ok(request)) => {
                        if let Err(refused) = pass_on(&mut terminal, request).await {
                            yield Err(refused);
                            return;
                        }
                    }
                    // The client has nothing more to type but may go on reading.
                    None => asking = false,
                    Some(Err(_)) => return,
                },
                () = stop.cancelled() => {
                    yield Err(status(&Fault::new("DAEMON_STOPPING", "the daemon is ending", "attach again in a moment")));
                    return;
                }
            }
        }
    }
}

async fn pass_on(terminal: &mut TerminalStream, request: v1::AttachTerminalRequest) -> Result<(), Status> {
    use v1::attach_terminal_request::Request as Asked;
    match request.request {
        Some(Asked::Input(data)) if data.len() > FRAME_MAX_BYTES => Err(invalid("one input has at most 64 KiB")),
        Some(Asked::Input(data)) => terminal.input(Bytes::from(data)).await.map_err(failed),
        Some(Asked::Resize(new)) => {
            let (columns, rows) = size(Some(new))?;
            terminal.command(&Command::Resize { columns, rows }).await.map_err(failed)
        }
        Some(Asked::TakeOver(_)) => terminal.command(&Command::TakeOver).await.map_err(failed),
        Some(Asked::Attach(_)) => Err(invalid("this stream is attached already")),
        // A request that a newer client knows.
        None => Ok(()),
    }
}

fn response(shown: Shown) -> v1::attach_terminal_response::Response {
    use v1::attach_terminal_response::Response as Answer;
    match shown {
        Shown::Output { end, data } => Answer::Output(v1::TerminalOutput { end_offset_bytes: end, data: data.into() }),
        Shown::Screen { end, data } => Answer::Screen(v1::TerminalOutput { end_offset_bytes: end, data: data.into() }),
        Shown::Notice(Notice::Writer { writing }) => Answer::Writer(v1::TerminalWriter { writing }),
        Shown::Notice(Notice::Size { columns, rows }) => Answer::Size(v1::TerminalSize { columns: columns.into(), rows: rows.into() }),
        Shown::Notice(Notice::Exited { code }) => Answer::Exited(v1::TerminalExited { code }),
    }
}
