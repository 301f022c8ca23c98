//! A stream to the sidecar through `exec`: works for every engine and runtime, where a socket in a mounted folder does not.
//!
//! An engine reports an exec that could not be started as output of it, so nothing is believed before the bridge's magic line. What the bridge
//! writes to its standard error is kept for people, bounded, and is never part of the stream.
//!
//! Closing an exec does not end its process; the bridge ends itself when its input ends or when it hears nothing for too long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use openagent_core::session::Fault;
use openagent_proto::sidecar::BRIDGE_MAGIC;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::{BoxStream, Purpose};
use super::engine::{ASK_LIMIT, Engine};
use super::spec::SIDECAR;

/// Limit from the start of the bridge to its magic line; it takes 50 ms, and 0.4 s under Podman.
const MAGIC_LIMIT: Duration = Duration::from_secs(10);

/// Size of the frames that are read at once; engines send up to 32 KiB.
const OUTPUT_CAPACITY_BYTES: usize = 64 * 1024;

/// Kept of what the bridge, or the engine in its place, says.
const COMPLAINT_MAX_BYTES: usize = 512;

/// Exit codes of an exec that could not be started: Docker's and Podman's.
const NOT_STARTED: [i64; 2] = [126, 127];

/// Why there is no bridge.
#[derive(Debug)]
pub(super) enum BridgeError {
    /// A later try may work: the sidecar does not listen yet.
    Later(Fault),
    /// No try will work.
    Never(Fault),
}

impl From<Fault> for BridgeError {
    fn from(fault: Fault) -> Self {
        Self::Never(fault)
    }
}

/// Starts a bridge in the container. It sends the preamble by itself, and its magic line once it has reached the sidecar.
pub(super) async fn open(engine: &Engine, container: &str, purpose: Purpose) -> Result<BoxStream, BridgeError> {
    let client = engine.client()?;
    let config = ExecConfig {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(false),
        cmd: Some([SIDECAR, "connect", purpose.name()].map(str::to_owned).to_vec()),
        ..Default::default()
    };
    // 404 and 409 (Podman: 500) mean that the container is not running, which the caller finds out by itself.
    let later = |error: super::engine::CallError| match error.status() {
        Some(_) => BridgeError::Later(error.into()),
        None => BridgeError::Never(error.into()),
    };
    let made = engine.call("creating the bridge to the sidecar", ASK_LIMIT, client.create_exec(container, config)).await.map_err(later)?;
    let options = StartExecOptions { detach: false, tty: false, output_capacity: Some(OUTPUT_CAPACITY_BYTES) };
    let started = engine.call("starting the bridge to the sidecar", ASK_LIMIT, client.start_exec(&made.id, Some(options)));
    let StartExecResults::Attached { output, input } = started.await.map_err(later)? else {
        return Err(BridgeError::Never(failed("the engine did not attach to it", None)));
    };
    let mut stream = ExecStream { output, input, pending: Bytes::new(), complaint: BytesMut::new() };
    let complaint = match tokio::time::timeout(MAGIC_LIMIT, stream.expect_magic()).await {
        Ok(Ok(())) => return Ok(Box::new(stream)),
        Ok(Err(complaint)) => complaint,
        Err(_) => "it said nothing".to_owned(),
    };
    drop(stream);
    let inspected = engine.call("looking at the bridge to the sidecar", ASK_LIMIT, client.inspect_exec(&made.id)).await;
    let code = inspected.ok().and_then(|exec| exec.exit_code);
    let fault = failed(&complaint, code);
    Err(if code.is_some_and(|code| NOT_STARTED.contains(&code)) { BridgeError::Never(fault) } else { BridgeError::Later(fault) })
}

fn failed(complaint: &str, code: Option<i64>) -> Fault {
    let code = code.map_or_else(String::new, |code| format!(" (exit code {code})"));
    let hint = "the image may be of another version: build it again with `cargo xtask image`";
    Fault::new("BRIDGE_FAILED", format!("the bridge to the sidecar failed: {complaint}{code}"), hint)
}

type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>;

/// The standard streams of an exec as one stream.
struct ExecStream {
    output: Output,
    input: Pin<Box<dyn AsyncWrite + Send>>,
    pending: Bytes,
    complaint: BytesMut,
}

impl ExecStream {
    /// Reads the magic line, or returns what came instead.
    async fn expect_magic(&mut self) -> Result<(), String> {
        let magic = [BRIDGE_MAGIC.as_bytes(), b"\n"].concat();
        let mut seen = BytesMut::new();
        while seen.len() < magic.len() {
            let Some(Ok(frame)) = self.output.next().await else { break };
            match frame {
                LogOutput::StdOut { message } => seen.extend_from_slice(&message),
                other => complain(&mut self.complaint, &other),
            }
            if !magic.starts_with(&seen[..seen.len().min(magic.len())]) {
                break;
            }
        }
        if seen.starts_with(&magic) {
            self.pending = seen.split_off(magic.len()).freeze();
            return Ok(());
        }
        // The reason comes on standard error, or in place of the magic line; it may still be on its way.
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(Duration::from_millis(200), self.output.next()).await {
            complain(&mut self.complaint, &frame);
        }
        self.complaint.extend_from_slice(&seen);
        self.complaint.truncate(COMPLAINT_MAX_BYTES);
        let text: String =
            String::from_utf8_lossy(&self.complaint).chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
        Err(if text.trim().is_empty() { "it ended without a word".to_owned() } else { text.trim().to_owned() })
    }
}

fn complain(complaint: &mut BytesMut, frame: &LogOutput) {
    let room = COMPLAINT_MAX_BYTES - complaint.len().min(COMPLAINT_MAX_BYTES);
    let words = frame.as_ref();
    complaint.extend_from_slice(&words[..words.len().min(room)]);
}

impl AsyncRead for ExecStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.pending.is_empty() {
            match ready!(this.output.as_mut().poll_next(context)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                Some(Ok(LogOutput::StdOut { message })) => this.pending = message,
                Some(Ok(other)) => complain(&mut this.complaint, &other),
            }
        }
        let part = this.pending.len().min(buffer.remaining());
        buffer.put_slice(&this.pending[..part]);
        this.pending.advance(part);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ExecStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().input.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().input.as_mut().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().input.as_mut().poll_shutdown(context)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn stream(frames: Vec<LogOutput>) -> ExecStream {
        ExecStream {
            output: Box::pin(futures::stream::iter(frames.into_iter().map(Ok))),
            input: Box::pin(tokio::io::sink()),
            pending: Bytes::new(),
            complaint: BytesMut::new(),
        }
    }

    fn out(text: &'static str) -> LogOutput {
        LogOutput::StdOut { message: text.into() }
    }

    #[tokio::test]
    async fn bytes_after_the_magic_line_are_the_stream_and_standard_error_is_not() {
        let noise = || LogOutput::StdErr { message: "noise".into() };
        let mut stream = stream(vec![noise(), out("openagent-"), out("bridge/1\nfirst"), noise(), out(" second")]);
        stream.expect_magic().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "first second");
    }

    #[tokio::test]
    async fn an_engine_that_reports_an_error_as_output_is_not_taken_for_the_sidecar() {
        let told = stream(vec![out("OCI runtime exec failed: no such file\n")]).expect_magic().await;
        assert_eq!(told.unwrap_err(), "OCI runtime exec failed: no such file");
        let told = stream(vec![LogOutput::StdErr { message: Bytes::from(vec![b'x'; 4 * COMPLAINT_MAX_BYTES]) }]).expect_magic().await;
        assert_eq!(told.unwrap_err().len(), COMPLAINT_MAX_BYTES);
        assert_eq!(stream(vec![]).expect_magic().await.unwrap_err(), "it ended without a word");
    }
}
