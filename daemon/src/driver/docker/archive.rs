//! Workspaces in and out of volumes, through the engine's archive calls.
//!
//! A workspace is read through a container of its own that is never started, so that it works the same whether the session runs, is stopped or
//! has no container. Invariant: that container is removed when the archive's reader is dropped; one that a crash left behind is listed as
//! [`super::super::OwnedKind::Reader`] and removed like an instance.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, DownloadFromContainerOptionsBuilder, RemoveContainerOptionsBuilder, UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use openagent_core::id::{InstanceId, SessionId};
use openagent_core::session::{Fault, WorkspaceSource};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::StreamReader;
use ulid::Ulid;

use super::super::TarStream;
use super::engine::{ASK_LIMIT, CALL_LIMIT, Engine};
use super::spec::{AGENT_ID, WORKSPACE, container_name, reader, volume_name};
use crate::task::Tasks;
use crate::workspace::{self, Ownership, SeedError};

/// Limit of filling a workspace; 100 MB take 0.2 s, and 5,000 small files 1.4 s.
const FILL_LIMIT: Duration = Duration::from_secs(600);

/// Longest silence of the engine while a workspace is read.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// Fills the workspace of a container that was not started.
pub(super) async fn fill(engine: &Engine, container: &str, source: WorkspaceSource) -> Result<(), Fault> {
    let client = engine.client()?.with_timeout(FILL_LIMIT);
    let (chunks, writing) = workspace::stream_seed(source, Ownership::Container(AGENT_ID));
    let options = UploadToContainerOptionsBuilder::default().path(WORKSPACE).build();
    let upload = client.upload_to_container(container, Some(options), bollard::body_try_stream(chunks));
    let uploaded = engine.call("filling the workspace", FILL_LIMIT, upload).await;
    let written = writing.await.map_err(|_| Fault::new("WORKSPACE_SOURCE", "reading the workspace's source broke off", ""))?;
    match (uploaded, written) {
        // The writer knows why the upload broke off, unless it was the engine that stopped listening.
        (_, Err(error)) if !matches!(error, SeedError::NotTaken(_)) => Err(Fault::from(&error)),
        (Err(error), _) => Err(error.into()),
        (Ok(()), _) => Ok(()),
    }
}

/// Reads the session's workspace.
pub(super) async fn read(engine: &Engine, tasks: &Tasks, image: &str, state: &str, session: &SessionId) -> Result<TarStream, Fault> {
    let client = engine.client()?;
    let volume = volume_name(session, "workspace");
    // The engine would make a missing volume, without our labels.
    match engine.call("looking for the workspace's volume", ASK_LIMIT, client.inspect_volume(&volume)).await {
        Err(error) if error.status() == Some(404) => {
            return Err(Fault::new("WORKSPACE_MISSING", format!("session {session} has no workspace yet"), "start the session first"));
        }
        other => drop(other?),
    }
    let id = InstanceId::from_ulid(Ulid::new());
    let name = container_name(&id);
    let body = reader(image, state, session, &id);
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    let made = engine.call("creating a container to read the workspace", CALL_LIMIT, client.create_container(Some(options), body)).await;
    let container = match made {
        Err(error) if error.status() == Some(404) => return Err(super::image_missing(image)),
        other => Reader { client: client.clone(), tasks: tasks.clone(), container: other?.id },
    };
    let options = DownloadFromContainerOptionsBuilder::default().path(&format!("{WORKSPACE}/.")).build();
    let mut chunks = Box::pin(client.download_from_container(&container.container, Some(options)));
    let first = match tokio::time::timeout(SILENCE_LIMIT, chunks.next()).await {
        Ok(Some(Ok(first))) => first,
        Ok(Some(Err(error))) => return Err(engine.fault("reading the workspace", &error)),
        Ok(None) => Bytes::new(),
        Err(_) => return Err(engine.fault("reading the workspace", &Error::RequestTimeoutError)),
    };
    let rest = tokio_stream::StreamExt::timeout(chunks.map_err(io::Error::other), SILENCE_LIMIT)
        .map(|chunk| chunk.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())));
    let chunks = futures::stream::once(async { Ok(first) }).chain(rest).boxed();
    Ok(Box::new(Archive { content: StreamReader::new(chunks), _container: container }))
}

/// Removes its container when it is dropped.
struct Reader {
    client: Docker,
    tasks: Tasks,
    container: String,
}

impl Drop for Reader {
    fn drop(&mut self) {
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (client, container) = (self.client.clone(), std::mem::take(&mut self.container));
        // Bounded by the client's own limit; what fails here is found by `Driver::list` at the next start.
        self.tasks.spawn("workspace reader", async move {
            let options = RemoveContainerOptionsBuilder::default().force(true).build();
            let removed = client.remove_container(&container, Some(options)).await;
            let gone = matches!(removed, Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }));
            if let (Err(error), false) = (removed, gone) {
                tracing::warn!(%error, container, "a container that read a workspace could not be removed");
            }
        });
    }
}

struct Archive<R> {
    content: R,
    _container: Reader,
}

impl<R: AsyncRead + Unpin> AsyncRead for Archive<R> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.content).poll_read(context, buffer)
    }
}
