//! Terminals, through the WebSocket that the daemon attaches with.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use openagent_proto::sidecar::terminal::{Command, FRAME_MAX_BYTES, Notice, OUTPUT, SCREEN, TERMINALS_MAX};
use openagent_proto::sidecar::{TerminalInfo, path};
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::bridge::{bridged, connect};
use crate::fixture::{Answer, Daemon, Folders, within};

const RING_BYTES: u64 = 1024 * 1024;

fn id(number: usize) -> String {
    format!("trm_01ARZ3NDEKTSV4RRFFQ69G5F{number:02}")
}

async fn open(daemon: &Daemon, number: usize, command: Option<&str>) -> Answer {
    let mut body = json!({ "id": id(number), "columns": 80, "rows": 24 });
    if let Some(command) = command {
        body["command"] = json!(command);
    }
    daemon.call(Method::POST, path::TERMINALS, &body).await
}

async fn list(daemon: &Daemon) -> Vec<TerminalInfo> {
    serde_json::from_value(daemon.get(path::TERMINALS).await.body).unwrap()
}

struct View {
    socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>,
    /// Everything shown since the last screen.
    text: Vec<u8>,
    end: u64,
    screens: usize,
    notices: Vec<Notice>,
}

impl View {
    async fn attach(daemon: &Daemon, number: usize, query: &str) -> Self {
        let mut request = daemon.request(Method::CONNECT, &format!("{}?id={}&{query}", path::TERMINAL, id(number)), "");
        request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
        request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
        let answer = daemon.send(request).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let upgraded = within("the upgrade", hyper::upgrade::on(answer)).await.unwrap();
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
        Self { socket, text: Vec::new(), end: 0, screens: 0, notices: Vec::new() }
    }

    /// Takes one message in; false at the end.
    async fn step(&mut self) -> bool {
        match within("the next message", self.socket.next()).await {
            Some(Ok(Message::Binary(frame))) => {
                assert!((9..=9 + FRAME_MAX_BYTES).contains(&frame.len()));
                self.end = u64::from_be_bytes(frame[1..9].try_into().unwrap());
                match frame[0] {
                    OUTPUT => {}
                    SCREEN => {
                        self.screens += 1;
                        self.text.clear();
                    }
                    other => panic!("frame {other}"),
                }
                self.text.extend_from_slice(&frame[9..]);
                true
            }
            Some(Ok(Message::Text(text))) => {
                self.notices.push(serde_json::from_str(&text).unwrap());
                true
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => false,
            Some(Ok(_)) => true,
        }
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            assert!(self.step().await, "the terminal ended before {what}: {:?} {:?}", self.notices, String::from_utf8_lossy(&self.text));
        }
    }

    fn shows(&self, text: &str) -> bool {
        self.text.windows(text.len()).any(|part| part == text.as_bytes())
    }

    async fn until_shown(&mut self, text: &str) {
        self.until(text, |view| view.shows(text)).await;
    }

    async fn until_told(&mut self, notice: Notice) {
        self.until(&format!("{notice:?}"), |view| view.notices.contains(&notice)).await;
    }

    async fn until_end(&mut self) -> i32 {
        while self.step().await {}
        match self.notices.last() {
            Some(Notice::Exited { code }) => *code,
            other => panic!("the last notice is {other:?}"),
        }
    }

    async fn type_in(&mut self, text: &str) {
        self.socket.send(Message::Binary(Bytes::from(text.to_owned()))).await.unwrap();
    }

    async fn command(&mut self, command: &Command) {
        self.socket.send(Message::Text(serde_json::to_string(command).unwrap().into())).await.unwrap();
    }
}

#[tokio::test]
async fn a_shell_echoes_runs_in_the_workspace_and_its_end_is_told_and_recorded() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    let opened = open(&daemon, 1, None).await;
    assert_eq!(opened.status, StatusCode::CREATED);
    assert_eq!((&opened.body["id"], &opened.body["columns"], &opened.body["attached"]), (&json!(id(1)), &json!(80), &json!(0)));
    let mut view = View::attach(&daemon, 1, "columns=80&rows=24").await;
    view.type_in("echo in-$PWD $((40 + 2)); env | cut -d= -f1 | sort | tr '\\n' ' '; echo; exit 7\r").await;
    assert_eq!(view.until_end().await, 7);
    let text = String::from_utf8_lossy(&view.text).into_owned();
    assert!(text.contains(&format!("in-{} 42", folders.path("workspace").display())), "{text}");
    assert!(!text.contains("OPENAGENT"), "{text}");
    assert!(view.notices.contains(&Notice::Writer { writing: true }));

    let mut events = daemon.events(0).await;
    assert_eq!(events.next().await.unwrap().data["kind"], "terminal");
    assert_eq!(events.next().await.unwrap().data["exit_code"], 7);
    // Whoever comes late sees the end as well, and the list still has it.
    let mut late = View::attach(&daemon, 1, "columns=80&rows=24").await;
    assert_eq!(late.until_end().await, 7);
    assert_eq!(late.text, view.text);
    assert_eq!(list(&daemon).await[0].exit_code, Some(7));
}

#[tokio::test]
async fn a_returning_client_goes_on_where_it_was() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    open(&daemon, 1, Some("printf one; read x; printf two; read x")).await;
    let mut view = View::attach(&daemon, 1, "columns=80&rows=24").await;
    view.until_shown("one").await;
    let known = view.end;
    drop(view);
    let mut again = View::attach(&daemon, 1, &format!("columns=80&rows=24&offset={known}")).await;
    again.until_told(Notice::Writer { writing: true }).await;
    again.type_in("\r").await;
    again.until_shown("two").await;
    assert!(!again.shows("one"));
}

#[tokio::test]
async fn a_client_behind_the_ring_gets_the_screen_drawn() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    open(&daemon, 1, Some("head -c 2000000 /dev/zero | tr '\\0' x; printf '\\033[?1049h\\033[2J\\033[3;4Hhere-now'; read x")).await;
    let mut first = View::attach(&daemon, 1, "columns=80&rows=24").await;
    first.until_shown("here-now").await;
    assert!(first.end > RING_BYTES);
    let mut late = View::attach(&daemon, 1, "columns=80&rows=24&readOnly=true").await;
    late.until("the screen", |view| view.screens == 1).await;
    assert!(late.text.starts_with(b"\x1b[?1049h") && late.shows("here-now"));
    assert!(late.text.len() < 10_000);
    assert_eq!(late.end, first.end);
}

#[tokio::test]
async fn a_client_that_reads_nothing_stalls_neither_the_shell_nor_the_others() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    open(&daemon, 1, Some("read x; head -c 8000000 /dev/zero | tr '\\0' y; echo; echo all-done; read x")).await;
    // On a connection of its own, whose windows it lets fill up.
    let mut other = sidecar.dial().await;
    other.bearer = daemon.bearer.clone();
    let mut stuck = View::attach(&other, 1, "columns=80&rows=24&readOnly=true").await;
    let mut reader = View::attach(&daemon, 1, "columns=80&rows=24").await;
    reader.until_told(Notice::Writer { writing: true }).await;
    reader.type_in("\r").await;
    reader.until_shown("all-done").await;
    // When it reads again it gets what was on its way, then the screen instead of what it missed.
    stuck.until("the end of the output", |view| view.shows("all-done")).await;
    assert!(stuck.screens > 0);
}

#[tokio::test]
async fn one_client_writes_and_another_can_take_over() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    open(&daemon, 1, Some("stty -echo; while read x; do stty size; echo got-$x; done")).await;
    let mut first = View::attach(&daemon, 1, "columns=80&rows=24").await;
    first.until_told(Notice::Writer { writing: true }).await;
    let mut second = View::attach(&daemon, 1, "columns=100&rows=30").await;
    second.until_told(Notice::Writer { writing: false }).await;
    second.until_told(Notice::Size { columns: 80, rows: 24 }).await;
    let mut watcher = View::attach(&daemon, 1, "columns=10&rows=10&readOnly=true").await;

    // Neither keys nor size of one that does not write count; a watcher cannot become the writer.
    watcher.command(&Command::TakeOver).await;
    second.type_in("ignored\r").await;
    second.command(&Command::Resize { columns: 120, rows: 40 }).await;
    first.type_in("mine\r").await;
    second.until_shown("24 80\r\ngot-mine").await;
    assert!(!second.shows("ignored"));

    second.command(&Command::TakeOver).await;
    second.until_told(Notice::Writer { writing: true }).await;
    second.until_told(Notice::Size { columns: 120, rows: 40 }).await;
    first.until_told(Notice::Writer { writing: false }).await;
    second.type_in("yours\r").await;
    watcher.until_shown("40 120\r\ngot-yours").await;

    second.command(&Command::Resize { columns: 1, rows: 5000 }).await;
    second.until_told(Notice::Size { columns: 2, rows: 1000 }).await;
    // When the writer goes, the one that came before it writes again.
    drop(second);
    first
        .until("the pen again", |view| {
            view.notices.last() == Some(&Notice::Size { columns: 80, rows: 24 })
                || view.notices.ends_with(&[Notice::Writer { writing: true }])
        })
        .await;
    first.type_in("back\r").await;
    watcher.until_shown("got-back").await;
    assert_eq!(list(&daemon).await[0].attached, 2);
}

#[tokio::test]
async fn a_lost_daemon_does_not_stay_the_writer_although_the_shell_reads_nothing() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    open(&daemon, 1, Some("stty raw -echo; printf up; exec sleep 1000")).await;
    let mut bridge = connect(&folders, "control");
    let mut other = bridged(&mut bridge).await;
    other.bearer = daemon.bearer.clone();
    let mut lost = View::attach(&other, 1, "columns=80&rows=24").await;
    lost.until_told(Notice::Writer { writing: true }).await;
    lost.until_shown("up").await;
    // As much as everything between here and the shell takes.
    let paste = "x".repeat(FRAME_MAX_BYTES);
    let pasting = async {
        loop {
            lost.type_in(&paste).await;
        }
    };
    let stuck = tokio::time::timeout(std::time::Duration::from_millis(300), pasting).await;
    assert!(stuck.is_err());
    bridge.kill().await.unwrap();
    let mut next = View::attach(&daemon, 1, "columns=80&rows=24&offset=2").await;
    next.until_told(Notice::Writer { writing: true }).await;
}

#[tokio::test]
async fn closing_ends_everything_that_runs_in_it_and_is_idempotent() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    let pids = folders.path("workspace").join("pids");
    open(
        &daemon,
        1,
        Some("set -m; trap '' HUP; sleep 1000 & echo $! > pids.new; sleep 1000 & echo $! >> pids.new; mv pids.new pids; echo up; wait"),
    )
    .await;
    let mut view = View::attach(&daemon, 1, "columns=80&rows=24").await;
    view.until_shown("up").await;
    let started: Vec<i32> = std::fs::read_to_string(pids).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(started.len(), 2);
    for _ in 0..2 {
        let answer = daemon.call_raw(Method::DELETE, &format!("{}/{}", path::TERMINALS, id(1)), "").await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
    }
    assert!(view.until_end().await >= 128);
    for pid in started {
        within("the job is gone", async {
            while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let unknown = daemon.call_raw(Method::DELETE, &format!("{}/{}", path::TERMINALS, id(9)), "").await;
    assert_eq!(unknown.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_shell_that_leaves_a_job_behind_ends_all_the_same() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    open(&daemon, 1, Some("(trap '' HUP; sleep 1000) & echo last-words; exit 3")).await;
    let mut view = View::attach(&daemon, 1, "columns=80&rows=24").await;
    assert_eq!(view.until_end().await, 3);
    assert!(view.shows("last-words"));
}

#[tokio::test]
async fn a_signal_is_told_as_a_shell_tells_it() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    open(&daemon, 1, Some("kill -KILL $$")).await;
    assert_eq!(View::attach(&daemon, 1, "columns=80&rows=24").await.until_end().await, 137);
}

#[tokio::test]
async fn wrong_requests_are_refused() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    assert_eq!(open(&daemon, 1, Some("read x")).await.status, StatusCode::CREATED);
    assert_eq!(open(&daemon, 1, None).await.error(), (409, "CONFLICT"));
    let good = || json!({ "id": id(2), "columns": 80, "rows": 24 });
    let with = |field: &str, value: Value| {
        let mut body = good();
        body[field] = value;
        body
    };
    for bad in [
        with("id", json!("../../x")),
        with("id", json!("")),
        with("columns", json!(1)),
        with("rows", json!(1001)),
        with("rows", json!(-1)),
        with("command", json!("x".repeat(64 * 1024 + 1))),
        with("command", json!("a\u{0}b")),
    ] {
        assert_eq!(daemon.call(Method::POST, path::TERMINALS, &bad).await.error(), (400, "INVALID_REQUEST"), "{bad}");
    }
    for (query, error) in [
        (format!("id={}&columns=80&rows=24", id(9)), (404, "NOT_FOUND")),
        (format!("id={}", id(1)), (400, "INVALID_REQUEST")),
        ("id=nonsense&columns=80&rows=24".to_owned(), (400, "INVALID_REQUEST")),
        // Not a WebSocket.
        (format!("id={}&columns=80&rows=24", id(1)), (400, "INVALID_REQUEST")),
    ] {
        assert_eq!(daemon.get(&format!("{}?{query}", path::TERMINAL)).await.error(), error, "{query}");
    }
    assert_eq!(daemon.call_raw(Method::DELETE, &format!("{}/nonsense", path::TERMINALS), "").await.error(), (400, "INVALID_REQUEST"));
}

#[tokio::test]
async fn the_number_of_terminals_is_bounded_and_an_ended_one_makes_room() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    for number in 0..TERMINALS_MAX {
        assert_eq!(open(&daemon, number, Some("read x")).await.status, StatusCode::CREATED);
    }
    assert_eq!(open(&daemon, 90, None).await.error(), (429, "RESOURCE_EXHAUSTED"));
    daemon.call_raw(Method::DELETE, &format!("{}/{}", path::TERMINALS, id(0)), "").await;
    assert_eq!(open(&daemon, 90, Some("read x")).await.status, StatusCode::CREATED);
}
