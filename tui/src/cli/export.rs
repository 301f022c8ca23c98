//! Saving a session as a zip archive.

use std::io::{IsTerminal, Write};

use super::args::Export;
use super::partial::{Partial, exists};
use super::{Done, Failure, OK, resolve, usage};
use crate::client::{Client, ClientError, ExportStream, Kind};
use crate::output::quantity::bytes;
use crate::output::{say, stderr_is_terminal};

pub(super) async fn export(client: &Client, export: Export) -> Done {
    if export.output.as_os_str() == "-" {
        if std::io::stdout().is_terminal() {
            return Err(usage("an archive is not written to a terminal", "name a file: openagent export ID -o FILE.zip"));
        }
        let id = resolve::session(client, &export.id).await?;
        let mut archive = client.export(&id).await?;
        while let Some(chunk) = archive.next().await? {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(&chunk)?;
        }
        std::io::stdout().flush()?;
        return Ok(OK);
    }
    if !export.force && export.output.symlink_metadata().is_ok() {
        return Err(exists(&export.output));
    }
    let id = resolve::session(client, &export.id).await?;
    let mut archive = client.export(&id).await?;
    let mut partial = Partial::create(&export.output)?;
    let size = tokio::select! {
        size = receive(&mut archive, &mut partial) => size?,
        _ = tokio::signal::ctrl_c() => return Err(ClientError::new(Kind::Failed, "interrupted; nothing was saved", "").into()),
    };
    partial.finish(&export.output, export.force)?;
    if stderr_is_terminal() {
        say(&format!("{} ({})", export.output.display(), bytes(size)));
    }
    Ok(OK)
}

async fn receive(archive: &mut ExportStream, partial: &mut Partial) -> Result<u64, Failure> {
    let mut size = 0;
    while let Some(chunk) = archive.next().await? {
        partial.write(&chunk)?;
        size += chunk.len() as u64;
    }
    Ok(size)
}
