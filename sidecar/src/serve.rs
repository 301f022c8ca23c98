//! The sidecar as a whole: puts its parts together, serves until it is told to end, and ends in order.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::Agent;
use crate::control::Control;
use crate::journal::{Journal, JournalError};
use crate::keyring::KeyRing;
use crate::link::Link;
use crate::model::ModelProxy;
use crate::process::{self, reaper::Reaper};
use crate::relay::Relay;
use crate::settings::Settings;
use crate::task::Tasks;
use crate::terminal::Terminals;

/// Time for the agent to end when a signal ends the sidecar: less than what container engines grant.
const SIGNAL_GRACE: Duration = Duration::from_secs(5);

/// Time for streams to deliver what is recorded, once everything else has ended.
const STREAM_GRACE: Duration = Duration::from_secs(2);

/// Why the sidecar could not start.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The journal cannot be opened.
    #[error("the journal cannot be opened")]
    Journal(#[from] JournalError),
    /// The socket cannot be made.
    #[error("the sidecar cannot listen in {folder}")]
    Listen {
        /// Its folder.
        folder: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The model proxy cannot be started.
    #[error("the model proxy cannot be started")]
    Model(#[source] std::io::Error),
    /// Signals or orphans cannot be received.
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
}

/// Serves until the daemon or a signal ends it.
///
/// # Errors
/// [`ServeError`] when it cannot start.
pub async fn serve(settings: Settings) -> Result<(), ServeError> {
    let settings = Arc::new(settings);
    let tasks = Tasks::default();
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let reaper = Reaper::new().map_err(ServeError::Signals)?;
    let stop = tasks.token().clone();
    tasks.spawn("reaper", async move { stop.run_until_cancelled(reaper.run()).await });

    let journal = Journal::open_within(&settings.state_dir, settings.journal_max_bytes)?;
    let keys = KeyRing::default();
    let relay = Relay::default();
    let models = ModelProxy::bind(keys.clone(), relay.clone()).await.map_err(ServeError::Model)?;
    let agent = Agent::new(Arc::clone(&settings), journal.clone(), models);
    let terminals = Terminals::new(Arc::clone(&settings), journal.clone(), tasks.clone());
    let control = Control::new(Arc::clone(&settings), journal.clone(), keys, agent.clone(), terminals.clone(), tasks.clone());
    let link = Link::listen(&settings.link_dir)
        .map_err(|source| ServeError::Listen { folder: settings.link_dir.display().to_string(), source })?;
    tracing::info!(session = %settings.session, journal = journal.last(), "serving");
    tasks.spawn("link", link.serve(control.router(), relay, tasks.clone()));

    let grace = tokio::select! {
        grace = control.asked_to_end() => grace,
        _ = terminate.recv() => SIGNAL_GRACE,
        _ = interrupt.recv() => SIGNAL_GRACE,
    };
    tracing::info!(grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX), "ending");
    tokio::join!(agent.shutdown(grace), terminals.close_all());
    // What the ending agent and terminals had to say is recorded; the streams now deliver it and end.
    if let Err(error) = journal.flush().await {
        tracing::error!(%error, "the journal could not be flushed");
    }
    if !tasks.shutdown(STREAM_GRACE).await {
        tracing::warn!("some streams did not end in time");
    }
    process::end_descendants().await;
    Ok(())
}
