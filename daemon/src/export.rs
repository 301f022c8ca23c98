//! Export: a session's workspace and transcript as one zip archive, streamed.
//!
//! ```text
//! workspace/...      what the agent worked on
//! transcript.md      the conversation, for people
//! transcript.json    the conversation, for programs
//! manifest.json      what is in the archive, with sizes and SHA-256 digests; what was left out, and why
//! ```
//! The workspace arrives as a tar archive made from a hostile container: names that could leave the folder into which somebody unpacks are left out (and said so in
//! the manifest), as are links that point out of the workspace and special files. Everything is bounded, and nothing is held in memory but the conversation.

pub mod archive;
pub mod transcript;

use std::sync::Arc;

use futures::Stream;
use openagent_core::session::Fault;
use openagent_core::session::lifecycle::State;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::SyncIoBridge;

use crate::event::Item;
use crate::session::{Shared, View};
use transcript::Transcript;

/// Size of the pieces that are streamed, in bytes.
const CHUNK_BYTES: usize = 64 * 1024;

/// Pieces that may wait for the client; the archive is made no faster than it is read.
const CHUNKS_MAX: usize = 8;

/// Streams the archive of a session. It is whole only if the stream ends without an error.
///
/// # Errors
/// `SESSION_CREATING` while there is no workspace yet, the driver's fault, `STORE_FAILED`.
pub async fn export(shared: &Arc<Shared>, view: &View) -> Result<impl Stream<Item = Result<Vec<u8>, Fault>> + use<>, Fault> {
    if !view.record.lifecycle.workspace_ready() {
        return Err(Fault::new("SESSION_CREATING", "the session has no workspace yet", "wait until it is active: openagent wait ID"));
    }
    let session = &view.record.session;
    let mut transcript = Transcript::default();
    let failed = |error: crate::store::StoreError| error.fault();
    let mut reader = shared.log.subscribe(&session.id, 0, false).await.map_err(failed)?;
    loop {
        match reader.next().await.map_err(failed)? {
            Item::Event(event) => transcript.apply(event.into_event()),
            Item::Snapshot(_) => transcript = Transcript::default(),
            Item::Delta(_) => {}
            Item::CaughtUp(_) | Item::Removed => break,
        }
    }
    let instance = match view.record.lifecycle.state() {
        State::Active { instance } | State::Idle { instance } | State::Waking { instance } => Some(instance),
        State::Starting { .. } | State::Resting | State::Unwinding { .. } | State::Stopped | State::Failed { .. } | State::Removed => None,
    };
    let workspace = shared.driver.read_workspace(&session.id, instance).await?;
    let (chunks, archive) = mpsc::channel(CHUNKS_MAX);
    let about = archive::About { session: session.clone(), usage: view.usage, created_at: crate::clock::now() };
    let reader = SyncIoBridge::new(workspace);
    shared.tasks.spawn("export", async move {
        let end = chunks.clone();
        let written = tokio::task::spawn_blocking(move || archive::write(reader, &transcript, &about, ChunkWriter::new(chunks))).await;
        let fault = match written {
            Ok(Ok(())) => return,
            Ok(Err(fault)) => fault,
            Err(_) => Fault::new("INTERNAL", "the export ended unexpectedly", "look at the daemon's log"),
        };
        let _ = end.send(Err(fault)).await;
    });
    Ok(ReceiverStream::new(archive))
}

/// Gathers bytes into chunks for a channel; blocks while the channel is full.
struct ChunkWriter {
    chunks: mpsc::Sender<Result<Vec<u8>, Fault>>,
    buffer: Vec<u8>,
}

impl ChunkWriter {
    fn new(chunks: mpsc::Sender<Result<Vec<u8>, Fault>>) -> Self {
        Self { chunks, buffer: Vec::with_capacity(CHUNK_BYTES) }
    }

    fn send(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        self.chunks.blocking_send(Ok(chunk)).map_err(|_| std::io::Error::new(std::io::ErrorKind::BrokenPipe, "the client went away"))
    }
}

impl std::io::Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let taken = data.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&data[..taken]);
        if self.buffer.len() == CHUNK_BYTES {
            self.send()?;
        }
        Ok(taken)
    }

    /// Only the end is flushed: small flushes of the archiver must not become small chunks.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
