//! Clients that only read, in a process of their own: nothing that they get is decoded or kept, so that what is measured is the daemon.
//!
//! The bench starts itself anew as that process. It connects to a socket as many times as it is told, and says a line on its standard output for each event that
//! all of its clients have.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use openagent_proto::v1::SubscribeRequest;
use prost::Message as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::{JoinSet, LocalSet};

/// Longest wait for all clients to have an event.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is said once all are connected.
const CONNECTED: &str = "connected";

/// What a client reads at once.
const READ_BYTES: usize = 64 * 1024;

/// Types of HTTP/2 frames (RFC 9113, section 6), and the length of their head.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const FRAME_HEAD: usize = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// The largest window: a client that never has to grant more room.
const WINDOW_MAX: u32 = 0x7fff_ffff;
const WINDOW_FIRST: u32 = 65_535;

/// What the process of readers is told.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Read from this socket, as a process of readers
    #[arg(long, hide = true)]
    read_from: Option<PathBuf>,
    /// The session that is followed; without it, what comes is raw bytes
    #[arg(long, hide = true)]
    session: Option<String>,
    #[arg(long, hide = true, default_value_t = 1)]
    clients: usize,
    /// Further clients that subscribe and never read
    #[arg(long, hide = true, default_value_t = 0)]
    stuck: usize,
    /// Smallest size of what counts as an event
    #[arg(long, hide = true, default_value_t = 1)]
    event_bytes: usize,
}

/// A process of readers, as the bench sees it.
pub struct Readers {
    lines: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl Readers {
    /// Starts the process; it connects by and by.
    pub fn start(socket: &Path, session: Option<&str>, clients: usize, stuck: usize, event_bytes: usize) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.arg("--read-from").arg(socket).args(["--clients", &clients.to_string(), "--stuck", &stuck.to_string()]);
        command.args(["--event-bytes", &event_bytes.to_string()]);
        if let Some(session) = session {
            command.args(["--session", session]);
        }
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().context("start the readers")?;
        let lines = BufReader::new(process.stdout.take().context("its output is piped")?).lines();
        Ok(Self { lines, _process: process })
    }

    /// Waits until all are connected.
    pub async fn connected(&mut self) -> Result<()> {
        ensure!(self.line().await? == CONNECTED, "the readers said something else");
        Ok(())
    }

    /// Waits until every reader has had `events` more; answers when it was told so.
    pub async fn until_all_have(&mut self, events: usize) -> Result<Instant> {
        for _ in 0..events {
            self.line().await?;
        }
        Ok(Instant::now())
    }

    async fn line(&mut self) -> Result<String> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.context("a client did not get every event")?;
        line.context("hear the readers")?.context("the readers ended")
    }
}

/// Is the process of readers, if the options say so.
pub fn run(options: &Options) -> Result<bool> {
    let Some(socket) = options.read_from.clone() else { return Ok(false) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    LocalSet::new().block_on(&runtime, async {
        let had = Rc::new(RefCell::new(Had { clients: options.clients, by_event: vec![], first_open: 0 }));
        let mut stuck = vec![];
        for _ in 0..options.stuck {
            stuck.push(connect(&socket, options.session.as_deref()).await?);
        }
        let mut readers = JoinSet::new();
        for _ in 0..options.clients {
            let stream = connect(&socket, options.session.as_deref()).await?;
            readers.spawn_local(read(stream, options.session.is_some(), options.event_bytes, Rc::clone(&had)));
        }
        println!("{CONNECTED}");
        while let Some(ended) = readers.join_next().await {
            ended.context("a reader panicked")??;
        }
        anyhow::Ok(true)
    })
}

/// How many clients have had each event, by its number.
struct Had {
    clients: usize,
    by_event: Vec<usize>,
    first_open: usize,
}

impl Had {
    fn note(&mut self, event: usize) {
        if self.by_event.len() <= event {
            self.by_event.resize(event + 1, 0);
        }
        self.by_event[event] += 1;
        while self.by_event.get(self.first_open) == Some(&self.clients) {
            self.first_open += 1;
            println!();
        }
    }
}

async fn connect(socket: &Path, session: Option<&str>) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await.context("connect")?;
    if let Some(session) = session {
        stream.write_all(&subscription(session)).await.context("subscribe")?;
    }
    Ok(stream)
}

/// Everything that a client sends to follow a session.
fn subscription(session: &str) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut setting = vec![0, 4];
    setting.extend(WINDOW_MAX.to_be_bytes());
    frame(&mut bytes, SETTINGS, 0, 0, &setting);
    frame(&mut bytes, WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - WINDOW_FIRST).to_be_bytes());
    // Literals without Huffman's code (RFC 7541, section 6.2.2), beside `:method: POST` and `:scheme: http` of the static table.
    let mut head = vec![0x83, 0x86];
    for (name, value) in [(&[0x04][..], "/openagent.v1.EventService/Subscribe"), (&[0x01], "daemon"), (&[0x0f, 0x10], "application/grpc")] {
        head.extend(name);
        push_text(&mut head, value);
    }
    head.push(0);
    push_text(&mut head, "te");
    push_text(&mut head, "trailers");
    frame(&mut bytes, HEADERS, END_HEADERS, 1, &head);
    let request = SubscribeRequest { session_id: session.to_owned(), after_seq: 0, follow: true, deltas: true, client: "bench".to_owned() };
    let request = request.encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(request.len()).unwrap_or_default().to_be_bytes());
    body.extend(request);
    frame(&mut bytes, DATA, END_STREAM, 1, &body);
    bytes
}

fn push_text(into: &mut Vec<u8>, text: &str) {
    into.push(u8::try_from(text.len()).unwrap_or_default());
    into.extend(text.as_bytes());
}

fn frame(into: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    into.extend(&u32::try_from(payload.len()).unwrap_or_default().to_be_bytes()[1..]);
    into.extend([kind, flags]);
    into.extend(stream.to_be_bytes());
    into.extend(payload);
}

async fn read(mut stream: UnixStream, framed: bool, event_bytes: usize, had: Rc<RefCell<Had>>) -> Result<()> {
    let (mut buffer, mut rest) = (vec![0; READ_BYTES], Vec::new());
    let (mut messages, mut raw, mut events) = (Messages::default(), 0, 0);
    loop {
        let count = stream.read(&mut buffer).await.context("read")?;
        if count == 0 {
            return Ok(());
        }
        let mut complete = 0;
        if framed {
            rest.extend_from_slice(&buffer[..count]);
            let answer = take_frames(&mut rest, |data| complete += messages.take(data, event_bytes));
            if !answer.is_empty() {
                stream.write_all(&answer).await.context("answer")?;
            }
        } else {
            raw += count;
            complete = raw / event_bytes;
            raw %= event_bytes;
        }
        for _ in 0..complete {
            had.borrow_mut().note(events);
            events += 1;
        }
    }
}

/// Takes whole frames off the front; gives what is to be answered.
fn take_frames(rest: &mut Vec<u8>, mut data: impl FnMut(&[u8])) -> Vec<u8> {
    let (mut at, mut answer) = (0, Vec::new());
    while let Some(head) = rest.get(at..at + FRAME_HEAD) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let Some(payload) = rest.get(at + FRAME_HEAD..at + FRAME_HEAD + length) else { break };
        match kind {
            DATA => data(payload),
            SETTINGS if flags & ACK == 0 => frame(&mut answer, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => frame(&mut answer, PING, ACK, 0, payload),
            _ => {}
        }
        at += FRAME_HEAD + length;
    }
    rest.drain(..at);
    answer
}

/// Counts gRPC messages in a stream of bytes.
#[derive(Default)]
struct Messages {
    head: Vec<u8>,
    left: usize,
    bytes: usize,
}

impl Messages {
    /// How many messages of at least `smallest` bytes end in this piece.
    fn take(&mut self, mut piece: &[u8], smallest: usize) -> usize {
        let mut ended = 0;
        while !piece.is_empty() {
            if self.left == 0 {
                let missing = (5 - self.head.len()).min(piece.len());
                self.head.extend(&piece[..missing]);
                piece = &piece[missing..];
                if let Ok([_, length @ ..]) = <[u8; 5]>::try_from(self.head.as_slice()) {
                    self.bytes = usize::try_from(u32::from_be_bytes(length)).unwrap_or_default();
                    self.left = self.bytes;
                    self.head.clear();
                }
            }
            let taken = self.left.min(piece.len());
            piece = &piece[taken..];
            if taken > 0 {
                self.left -= taken;
                ended += usize::from(self.left == 0 && self.bytes >= smallest);
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let message = |bytes: u8| {
            let mut message = vec![0, 0, 0, 0, bytes];
            message.resize(5 + usize::from(bytes), b'x');
            message
        };
        let all = [message(10), message(200), message(3), message(120)].concat();
        for cut in 1..all.len() {
            let mut messages = Messages::default();
            let counted: usize = all.chunks(cut).map(|piece| messages.take(piece, 100)).sum();
            assert_eq!(counted, 2, "in pieces of {cut}");
        }
    }
}
