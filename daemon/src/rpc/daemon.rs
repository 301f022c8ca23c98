//! `DaemonService`.

use std::io;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use openagent_core::config::OnShutdown;
use openagent_proto::{PROTOCOL, v1};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::status::status;
use super::{Context, convert};
use crate::clock;

/// Bytes of a backup that are sent at once.
const BACKUP_CHUNK_BYTES: usize = 64 * 1024;

/// Pieces of a backup that may wait for the client; then it is written no faster than it is read.
const BACKUP_CHUNKS_MAX: usize = 8;

/// Time for which a backup waits for a client that takes nothing: meanwhile no history is compacted, and nothing of removed sessions deleted.
const BACKUP_PATIENCE: Duration = Duration::from_secs(30);

/// The service.
pub struct Daemon(pub Context);

#[tonic::async_trait]
impl v1::daemon_service_server::DaemonService for Daemon {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        let shared = self.0.registry.shared();
        let views = shared.directory.all();
        let running = views.iter().filter(|view| view.record.lifecycle.holds_instance() && view.queue_position == 0).count();
        let (bounds, load) = (shared.admission.bounds(), *shared.admission.load().borrow());
        let (warm_ready, warm_wanted) = shared.pool.counts();
        let unwritable = shared.store.condition().borrow().fault();
        let health = shared.driver.health().await;
        let driver = v1::DriverStatus {
            name: shared.driver.name().to_owned(),
            healthy: health.is_ok(),
            detail: health.as_ref().cloned().unwrap_or_default(),
            fault: health.as_ref().err().map(convert::fault),
            isolation_warning: shared.driver.isolation_warning().to_owned(),
        };
        Ok(Response::new(v1::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            pid: i64::from(std::process::id()),
            started_at: Some(convert::timestamp(self.0.started_at)),
            socket: self.0.socket.display().to_string(),
            state_directory: self.0.state_dir.display().to_string(),
            sessions: u32::try_from(views.len()).unwrap_or(u32::MAX),
            running: u32::try_from(running).unwrap_or(u32::MAX),
            driver: Some(driver),
            memory_bytes: resident_bytes(),
            queued: load.waiting,
            max_running: bounds.running,
            memory_reserved_bytes: load.memory_bytes,
            memory_budget_bytes: bounds.memory_bytes,
            warm_ready,
            warm_wanted,
            store: Some(v1::StoreStatus { writable: unwritable.is_none(), fault: unwritable.as_ref().map(convert::fault) }),
        }))
    }

    type BackupStoreStream = BoxStream<'static, Result<v1::BackupStoreResponse, Status>>;

    async fn backup_store(&self, _: Request<v1::BackupStoreRequest>) -> Result<Response<Self::BackupStoreStream>, Status> {
        let shared = self.0.registry.shared();
        let (chunks, stream) = mpsc::channel(BACKUP_CHUNKS_MAX);
        let store = shared.store.clone();
        shared.tasks.spawn("backup", async move {
            let out = io::BufWriter::with_capacity(BACKUP_CHUNK_BYTES, ChunkWriter { chunks: chunks.clone(), runtime: Handle::current() });
            match store.backup(out, clock::now()).await {
                Ok((_, manifest)) => tracing::info!(sessions = manifest.sessions, events = manifest.events, "a backup was made"),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a backup was not finished");
                    let _ = chunks.send(Err(status(&error.fault()))).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn verify_store(&self, _: Request<v1::VerifyStoreRequest>) -> Result<Response<v1::VerifyStoreResponse>, Status> {
        let shared = self.0.registry.shared();
        let report = shared.store.verify(shared.vault.opener()).await.map_err(|error| status(&error.fault()))?;
        Ok(Response::new(v1::VerifyStoreResponse {
            format: report.format,
            sessions: report.sessions,
            events: report.events,
            records: report.records,
            opened: report.opened,
            unopened: report.unopened,
            problems: report.problems,
            problem_count: report.problem_count,
        }))
    }

    async fn shutdown(&self, request: Request<v1::ShutdownRequest>) -> Result<Response<v1::ShutdownResponse>, Status> {
        match request.into_inner().sessions() {
            v1::ShutdownSessions::Unspecified => {}
            v1::ShutdownSessions::Keep => drop(self.0.on_shutdown.send_replace(OnShutdown::Keep)),
            v1::ShutdownSessions::Stop => drop(self.0.on_shutdown.send_replace(OnShutdown::Stop)),
        }
        tracing::info!("a client asked the daemon to end");
        self.0.shutdown.cancel();
        Ok(Response::new(v1::ShutdownResponse {}))
    }
}

/// Gives what is written to a client, on a thread that may block.
struct ChunkWriter {
    chunks: mpsc::Sender<Result<v1::BackupStoreResponse, Status>>,
    runtime: Handle,
}

impl io::Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let data = &data[..data.len().min(BACKUP_CHUNK_BYTES)];
        let chunk = v1::BackupStoreResponse { chunk: data.to_vec() };
        match self.runtime.block_on(self.chunks.send_timeout(Ok(chunk), BACKUP_PATIENCE)) {
            Ok(()) => Ok(data.len()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client went away")),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Resident memory as the kernel tells it; 0 where it does not.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
