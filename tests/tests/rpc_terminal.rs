//! Contract of `TerminalService`: shells that any number of clients see from any offset, with one writer, until their end.

use openagent_proto::v1;
use openagent_proto::v1::attach_terminal_request::Request as Asked;
use openagent_proto::v1::attach_terminal_response::Response as Told;
use openagent_proto::v1::event::Kind;
use openagent_tests::harness::client::within;
use openagent_tests::harness::refusal::refused;
use openagent_tests::harness::{CANARY, Clients, Driver, PATIENCE, World};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

const MODEL: &str = "scripted/scripted-large";

/// Terminals of one session.
const TERMINALS_MAX: usize = 16;

/// One piece of input.
const INPUT_MAX_BYTES: usize = 64 * 1024;

const SIZE: v1::TerminalSize = v1::TerminalSize { columns: 100, rows: 30 };

/// A client that is attached.
struct Attached {
    requests: mpsc::Sender<v1::AttachTerminalRequest>,
    told: Streaming<v1::AttachTerminalResponse>,
    /// Output so far.
    text: String,
    /// Offset behind it.
    end: u64,
    writing: Option<bool>,
    size: Option<v1::TerminalSize>,
}

impl Attached {
    async fn new(clients: &mut Clients, attach: v1::TerminalAttach) -> Result<Self, tonic::Status> {
        let (requests, stream) = mpsc::channel(16);
        let end = attach.offset_bytes;
        requests.send(request(Asked::Attach(attach))).await.expect("the stream is ours");
        let told = clients.terminal.attach_terminal(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { requests, told, text: String::new(), end, writing: None, size: None })
    }

    async fn ask(&self, asked: Asked) {
        self.requests.send(request(asked)).await.expect("it is attached");
    }

    async fn type_in(&self, text: &str) {
        self.ask(Asked::Input(text.as_bytes().to_vec())).await;
    }

    /// The next thing told; output continues what came before.
    async fn next(&mut self) -> Result<Option<Told>, tonic::Status> {
        let told = within("what a terminal tells", PATIENCE, self.told.message()).await?;
        let told = told.map(|told| told.response.expect("a response is never empty"));
        match &told {
            Some(Told::Output(output)) => {
                self.end += output.data.len() as u64;
                assert_eq!(output.end_offset_bytes, self.end, "output is without gaps");
                self.text.push_str(&String::from_utf8_lossy(&output.data));
            }
            Some(Told::Screen(screen)) => {
                self.end = screen.end_offset_bytes;
                self.text = String::from_utf8_lossy(&screen.data).into_owned();
            }
            Some(Told::Writer(writer)) => self.writing = Some(writer.writing),
            Some(Told::Size(size)) => self.size = Some(*size),
            Some(Told::Exited(_)) | None => {}
        }
        Ok(told)
    }

    async fn until(&mut self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        while !so(self) {
            let told = self.next().await.expect("the stream does not break");
            assert!(told.is_some_and(|told| !matches!(told, Told::Exited(_))), "it ended before {what}: {:?}", self.text);
        }
    }

    async fn until_shown(&mut self, text: &str) {
        self.until(text, |attached| attached.text.contains(text)).await;
    }

    /// The exit code, after which nothing comes.
    async fn until_exited(&mut self) -> i32 {
        loop {
            match self.next().await.expect("the stream does not break") {
                Some(Told::Exited(exited)) => {
                    assert_eq!(self.next().await.expect("it ends in order"), None, "nothing comes behind the end");
                    return exited.code;
                }
                Some(_) => {}
                None => panic!("the stream ended without an exit code: {:?}", self.text),
            }
        }
    }
}

fn request(asked: Asked) -> v1::AttachTerminalRequest {
    v1::AttachTerminalRequest { request: Some(asked) }
}

fn attach(session: &str, terminal: &str) -> v1::TerminalAttach {
    v1::TerminalAttach {
        session_id: session.to_owned(),
        terminal_id: terminal.to_owned(),
        offset_bytes: 0,
        read_only: false,
        size: Some(SIZE),
        client: "test".to_owned(),
    }
}

fn opening(session: &str, command: &str) -> v1::OpenTerminalRequest {
    v1::OpenTerminalRequest { session_id: session.to_owned(), size: Some(SIZE), command: command.to_owned() }
}

async fn open(clients: &mut Clients, session: &str, command: &str) -> v1::Terminal {
    let opened = clients.terminal.open_terminal(opening(session, command)).await;
    opened.expect("a terminal is opened").into_inner().terminal.expect("it is answered")
}

async fn listed(clients: &mut Clients, session: &str) -> Vec<v1::Terminal> {
    let request = v1::ListTerminalsRequest { session_id: session.to_owned() };
    clients.terminal.list_terminals(request).await.expect("terminals are listed").into_inner().terminals
}

fn closing(session: &str, terminal: &str) -> v1::CloseTerminalRequest {
    v1::CloseTerminalRequest { session_id: session.to_owned(), terminal_id: terminal.to_owned() }
}

#[tokio::test]
async fn a_shell_is_typed_into_resized_and_seen_by_late_and_reading_clients() {
    let world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active(MODEL).await;
    let terminal = open(&mut clients, &id, "").await;
    assert_eq!((terminal.size, terminal.exit_code, terminal.attached), (Some(SIZE), None, 0));
    assert!(terminal.id.starts_with("trm_") && terminal.created_at.is_some());

    let mut first = Attached::new(&mut clients, attach(&id, &terminal.id)).await.expect("it is attached");
    first.until("the right to write", |attached| attached.writing == Some(true)).await;
    first.type_in("stty size; echo in-$((40 + 2)); git rev-parse --is-inside-work-tree\n").await;
    first.until_shown("30 100").await;
    first.until_shown("in-42").await;
    first.until_shown("true").await;
    first.ask(Asked::Resize(v1::TerminalSize { columns: 77, rows: 33 })).await;
    first.until("the new size", |attached| attached.size == Some(v1::TerminalSize { columns: 77, rows: 33 })).await;
    first.type_in("stty size\n").await;
    first.until_shown("33 77").await;

    // A late client sees everything from the beginning, or what is behind its offset.
    let mut late = Attached::new(&mut clients, attach(&id, &terminal.id)).await.expect("it is attached");
    late.until_shown("33 77").await;
    assert!(first.text.starts_with(&late.text) || late.text.starts_with(&first.text), "{:?} and {:?}", first.text, late.text);
    assert_eq!(late.size, Some(v1::TerminalSize { columns: 77, rows: 33 }), "it is told the size that the shell sees");
    let returning = v1::TerminalAttach { offset_bytes: first.end, read_only: true, ..attach(&id, &terminal.id) };
    let mut reader = Attached::new(&mut clients, returning).await.expect("it is attached");
    assert_eq!(listed(&mut clients, &id).await.iter().map(|terminal| terminal.attached).collect::<Vec<_>>(), [3]);

    // Neither a second client nor a reader writes; the one takes over, the other cannot.
    late.type_in("echo not-the-writer\n").await;
    reader.type_in("echo only-a-reader\n").await;
    reader.ask(Asked::TakeOver(v1::TakeOver {})).await;
    reader.type_in("echo still-a-reader\n").await;
    late.ask(Asked::TakeOver(v1::TakeOver {})).await;
    late.until("the right to write", |attached| attached.writing == Some(true)).await;
    first.until("the loss of it", |attached| attached.writing == Some(false)).await;
    late.until("its own size", |attached| attached.size == Some(SIZE)).await;
    first.type_in("echo no-longer\n").await;
    late.type_in("echo ta''ken\n").await;
    reader.until_shown("taken").await;
    for ignored in ["not-the-writer", "only-a-reader", "still-a-reader", "no-longer"] {
        assert!(!reader.text.contains(ignored), "{ignored}: {:?}", reader.text);
    }
    assert_ne!(reader.writing, Some(true));
    drop(late);
    first.until("the right to write, which falls back", |attached| attached.writing == Some(true)).await;

    first.type_in("exit 7\n").await;
    assert_eq!((first.until_exited().await, reader.until_exited().await), (7, 7));
    let ended = events
        .until("the end in the history", |kind| match kind {
            Kind::Terminal(end) if end.exit_code.is_some() => Some(end.clone()),
            _ => None,
        })
        .await;
    assert_eq!((ended.id.as_str(), ended.exit_code), (terminal.id.as_str(), Some(7)));
    let mut after = Attached::new(&mut clients, attach(&id, &terminal.id)).await.expect("an ended terminal can be looked at");
    assert_eq!(after.until_exited().await, 7);
    assert!(after.text.contains("taken"), "with all that it showed: {:?}", after.text);

    let killed = open(&mut clients, &id, "echo ready; kill -TERM $$").await;
    let mut attached = Attached::new(&mut clients, attach(&id, &killed.id)).await.expect("it is attached");
    assert_eq!(attached.until_exited().await, 128 + 15);
    assert!(attached.text.contains("ready"));
    world.end().await;
}

#[tokio::test]
async fn what_cannot_be_opened_attached_or_typed_is_refused_and_closing_may_be_repeated() {
    let world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    let (id, _events) = clients.active(MODEL).await;
    let sized = |columns, rows| v1::OpenTerminalRequest { size: Some(v1::TerminalSize { columns, rows }), ..opening(&id, "") };
    for request in [sized(1, 24), sized(80, 1), sized(1001, 24), sized(80, u32::MAX), opening(&id, &"x".repeat(64 * 1024 + 1))] {
        refused(clients.terminal.open_terminal(request).await, Code::InvalidArgument, "INVALID");
    }
    let unknown = "trm_01ARZ3NDEKTSV4RRFFQ69G5FAV";
    refused(Attached::new(&mut clients, attach(&id, unknown)).await, Code::NotFound, "NOT_FOUND");
    refused(Attached::new(&mut clients, attach(&id, "nonsense")).await, Code::InvalidArgument, "INVALID");
    let too_large = v1::TerminalAttach { size: Some(v1::TerminalSize { columns: 1001, rows: 24 }), ..attach(&id, unknown) };
    refused(Attached::new(&mut clients, too_large).await, Code::InvalidArgument, "INVALID");
    let nothing = clients.terminal.attach_terminal(tokio_stream::empty()).await;
    refused(nothing, Code::InvalidArgument, "INVALID");
    let typed_first = clients.terminal.attach_terminal(tokio_stream::once(request(Asked::Input(b"ls\n".to_vec())))).await;
    refused(typed_first, Code::InvalidArgument, "INVALID");

    let terminal = open(&mut clients, &id, "cat").await;
    let twice = Asked::Attach(attach(&id, &terminal.id));
    let bad_size = Asked::Resize(v1::TerminalSize { columns: 0, rows: 0 });
    for bad in [Asked::Input(vec![b'x'; INPUT_MAX_BYTES + 1]), twice, bad_size] {
        let mut attached = Attached::new(&mut clients, attach(&id, &terminal.id)).await.expect("it is attached");
        attached.ask(bad).await;
        let refusal = loop {
            match attached.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without saying why"),
                Err(refusal) => break refusal,
            }
        };
        refused::<()>(Err(refusal), Code::InvalidArgument, "INVALID");
    }
    let mut attached = Attached::new(&mut clients, attach(&id, &terminal.id)).await.expect("the terminal is as it was");
    attached.type_in("still there\n").await;
    attached.until_shown("still there").await;

    for _ in 1..TERMINALS_MAX {
        open(&mut clients, &id, "exec cat").await;
    }
    let one_too_many = clients.terminal.open_terminal(opening(&id, "cat")).await;
    refused(one_too_many, Code::ResourceExhausted, "RESOURCE_EXHAUSTED");
    let running = listed(&mut clients, &id).await.into_iter().filter(|terminal| terminal.exit_code.is_none());
    assert_eq!(running.count(), TERMINALS_MAX);
    for _ in 0..2 {
        clients.terminal.close_terminal(closing(&id, &terminal.id)).await.expect("it is closed");
    }
    assert!(attached.until_exited().await != 0);
    clients.terminal.close_terminal(closing(&id, unknown)).await.expect("what is not there need not be closed");
    refused(clients.terminal.close_terminal(closing(&id, "nonsense")).await, Code::InvalidArgument, "INVALID");
    let again = open(&mut clients, &id, "exec cat").await;

    // With the instance its terminals end.
    let mut watching = Attached::new(&mut clients, attach(&id, &again.id)).await.expect("it is attached");
    clients.stop(&id).await;
    loop {
        match watching.next().await {
            Ok(Some(Told::Exited(_)) | None) | Err(_) => break,
            Ok(Some(_)) => {}
        }
    }
    assert!(listed(&mut clients, &id).await.is_empty());
    refused(clients.terminal.open_terminal(opening(&id, "")).await, Code::FailedPrecondition, "NOT_RUNNING");
    refused(Attached::new(&mut clients, attach(&id, &again.id)).await, Code::FailedPrecondition, "NOT_RUNNING");
    clients.terminal.close_terminal(closing(&id, &again.id)).await.expect("it is closed");
    world.end().await;
}

#[tokio::test]
async fn a_resumed_session_still_shows_what_was_done_in_its_terminals() {
    let mut world = World::light().await;
    world.start().await;
    world.set_keys(CANARY).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active(MODEL).await;
    let terminal = open(&mut clients, &id, "echo done before the stop; exec sleep 1000").await.id;
    Attached::new(&mut clients, attach(&id, &terminal)).await.expect("it is there").until_shown("done before the stop").await;
    clients.stop(&id).await;
    assert!(listed(&mut clients, &id).await.is_empty(), "a stopped session has no terminals");
    clients.resume(&id).await;
    events.until_ready().await;
    let kept = listed(&mut clients, &id).await;
    assert_eq!(kept.iter().map(|kept| (kept.id.as_str(), kept.exit_code.is_some())).collect::<Vec<_>>(), [(terminal.as_str(), true)]);
    let mut screen = Attached::new(&mut clients, attach(&id, &terminal)).await.expect("it can be looked at");
    screen.until_shown("done before the stop").await;
    screen.until_exited().await;
    world.end().await;
}
