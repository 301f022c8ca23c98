//! The link between a session and the sidecar of its instance.
//!
//! The follower reads the sidecar's event stream, tells the actor what concerns it, makes it durable (batched: whatever has arrived), and acknowledges it. When the
//! connection is lost it dials anew and resumes behind the last durable entry, for as long as the instance runs. The relay is dialled anew in the same way.
//! Both end with the link's cancellation token.
//!
//! A sidecar that does not answer is told to the actor soon, so that nobody takes what is shown of the agent for the present; one that does not answer for
//! [`SILENCE_MAX`] while its instance runs has failed.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use openagent_core::event::EventKind;
use openagent_core::id::{InstanceId, SessionId};
use openagent_core::instance::ExitCause;
use openagent_core::time::Timestamp;
use openagent_proto::sidecar::PROTOCOL;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::actor::Input;
use crate::driver::{Observed, Purpose};
use crate::sidecar::events::Told;
use crate::sidecar::{Credentials, SidecarClient, SidecarError};

/// Events that are made durable in one go at most.
const BATCH_MAX: usize = 128;

/// Durable entries that the sidecar need not know of yet.
const UNACKNOWLEDGED_MAX: u64 = 256;

/// After this much silence the sidecar is told what is durable.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_millis(500);

/// Waits between attempts to dial anew.
const BACKOFF: [Duration; 5] =
    [Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// Time in which a lost connection may come back before anybody is told.
const SILENCE_TOLD: Duration = Duration::from_secs(2);

/// Time for which a sidecar may be silent while its instance runs.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Time for a sidecar that runs to take a connection and answer on it.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// One instance's link.
#[derive(Clone)]
pub struct Link {
    /// What the session shares with others.
    pub shared: Arc<Shared>,
    /// The session.
    pub session: SessionId,
    /// The instance.
    pub instance: InstanceId,
    /// What the registration gave.
    pub credentials: Credentials,
    /// Where the actor listens.
    pub actor: mpsc::Sender<Input>,
    /// Where the connection is shown.
    pub client: watch::Sender<Option<SidecarClient>>,
    /// Ends everything about this link.
    pub cancel: CancellationToken,
}

impl Link {
    /// Starts the follower and the relay. `first` is a connection that exists already.
    pub fn start(&self, first: Option<SidecarClient>) {
        if let Some(first) = &first {
            self.client.send_replace(Some(first.clone()));
        }
        let tasks = &self.shared.tasks;
        let follower = self.clone();
        tasks.spawn("session-follower", async move {
            follower.cancel.clone().run_until_cancelled(follower.follow(first)).await;
        });
        let relay = self.clone();
        tasks.spawn("session-relay", async move {
            relay.cancel.clone().run_until_cancelled(relay.keep_relay()).await;
        });
    }

    async fn dial(&self) -> Result<SidecarClient, SidecarError> {
        let dial = async {
            let stream = self.shared.driver.dial(&self.session, &self.instance, Purpose::Control).await.map_err(|_| SidecarError::Lost)?;
            let client = SidecarClient::connect(stream, &self.shared.tasks).await?;
            let health = client.health().await?;
            if health.protocol != 0 && health.protocol != PROTOCOL {
                return Err(SidecarError::OtherProtocol { theirs: health.protocol });
            }
            Ok(client.with_bearer(self.credentials.bearer.clone()))
        };
        tokio::time::timeout(DIAL_DEADLINE, dial).await.unwrap_or(Err(SidecarError::Deadline))
    }

    /// What the driver knows of the instance; `None` when it cannot be asked.
    async fn observed(&self) -> Option<Observed> {
        self.shared.driver.inspect(&self.session, &self.instance).await.ok()
    }

    async fn follow(&self, mut known: Option<SidecarClient>) {
        let mut attempt = 0;
        let mut silence = Silence::default();
        // A daemon that ended on a full disk may have frozen it without noting that.
        let mut may_thaw = known.is_none();
        loop {
            let client = match known.take() {
                Some(client) => Ok(client),
                None => self.dial().await,
            };
            match client {
                Ok(client) => {
                    attempt = 0;
                    if silence.ended() {
                        self.tell_reached(None).await;
                    }
                    self.client.send_replace(Some(client.clone()));
                    let error = self.pump(&client).await;
                    self.client.send_replace(None);
                    tracing::info!(session = %self.session, %error, "the sidecar's event stream ended");
                    silence = Silence::begun();
                }
                Err(SidecarError::OtherProtocol { theirs }) => {
                    tracing::error!(session = %self.session, theirs, "the sidecar is of another version");
                    let _ = self.actor.send(Input::Outdated(self.instance.clone(), theirs)).await;
                    return;
                }
                Err(_) => {}
            }
            match self.observed().await {
                Some(Observed::Missing | Observed::Ended(_)) => return,
                Some(Observed::Running) => {}
                Some(Observed::Paused) if std::mem::take(&mut may_thaw) => {
                    let _ = self.shared.driver.wake(&self.session, &self.instance).await;
                }
                // Frozen by somebody else, or the engine is away: the sidecar has no chance to answer.
                Some(Observed::Paused | Observed::Created) | None => silence.excuse(),
            }
            if let Some(since) = silence.told_now() {
                self.tell_reached(Some(since)).await;
            }
            if silence.is_too_long() {
                tracing::warn!(session = %self.session, "the sidecar runs and does not answer");
                let _ = self.actor.send(Input::Ended(self.instance.clone(), ExitCause::Unresponsive)).await;
                return;
            }
            tokio::time::sleep(BACKOFF[attempt]).await;
            attempt = (attempt + 1).min(BACKOFF.len() - 1);
        }
    }

    async fn tell_reached(&self, unreachable_since: Option<Timestamp>) {
        let _ = self.actor.send(Input::Reached(self.instance.clone(), unreachable_since)).await;
    }

    /// Reads until the stream ends; gives the reason.
    async fn pump(&self, client: &SidecarClient) -> SidecarError {
        let mut durable = match self.shared.log.info(&self.session).await {
            Ok(info) => info.journal_seq,
            Err(error) => {
                tracing::error!(session = %self.session, %error, "the end of the history cannot be read");
                return SidecarError::Lost;
            }
        };
        let mut acknowledged = durable;
        let mut stream = match client.events(durable).await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        let mut ahead = None;
        loop {
            let told = match ahead.take() {
                Some(told) => told,
                None => {
                    let silence = tokio::time::sleep(ACKNOWLEDGE_AFTER);
                    tokio::select! {
                        told = stream.next() => told,
                        () = silence, if acknowledged < durable => {
                            if let Err(error) = client.ack(durable).await {
                                return error;
                            }
                            acknowledged = durable;
                            continue;
                        }
                    }
                }
            };
            let told = match told {
                Ok(told) => told,
                Err(error) => return error,
            };
            let mut batch: Vec<(Timestamp, EventKind)> = Vec::new();
            let mut last = durable;
            match told {
                Told::Delta(delta) => {
                    if let Err(error) = self.shared.log.delta(&self.session, delta).await {
                        tracing::debug!(session = %self.session, %error, "letters were dropped");
                    }
                    continue;
                }
                told => take(told, &mut last, &mut batch),
            }
            while batch.len() < BATCH_MAX {
                match stream.next().now_or_never() {
                    Some(Ok(told @ (Told::Recorded { .. } | Told::Gap(_)))) => take(told, &mut last, &mut batch),
                    Some(other) => {
                        ahead = Some(other);
                        break;
                    }
                    None => break,
                }
            }
            if batch.is_empty() {
                continue;
            }
            let news: Vec<EventKind> = batch.iter().filter(|(_, kind)| concerns_actor(kind)).map(|(_, kind)| kind.clone()).collect();
            // The actor first: whoever sees a request in the history can answer it at once. It is durable in the sidecar's journal already.
            if !news.is_empty() && self.actor.send(Input::Happened(self.instance.clone(), news)).await.is_err() {
                return SidecarError::Lost;
            }
            if let Err(error) = self.shared.log.append(&self.session, batch, Some(last)).await {
                tracing::error!(session = %self.session, %error, "events cannot be stored");
                return SidecarError::Lost;
            }
            durable = last;
            if self.actor.send(Input::Recorded).await.is_err() {
                return SidecarError::Lost;
            }
            if durable - acknowledged >= UNACKNOWLEDGED_MAX {
                if let Err(error) = client.ack(durable).await {
                    return error;
                }
                acknowledged = durable;
            }
        }
    }

    async fn keep_relay(&self) {
        let mut attempt = 0;
        loop {
            if let Ok(stream) = self.shared.driver.dial(&self.session, &self.instance, Purpose::Relay).await {
                attempt = 0;
                self.shared.relay.serve(self.session.clone(), stream).await;
            }
            if matches!(self.observed().await, Some(Observed::Missing | Observed::Ended(_))) {
                return;
            }
            tokio::time::sleep(BACKOFF[attempt]).await;
            attempt = (attempt + 1).min(BACKOFF.len() - 1);
        }
    }
}

/// How long a sidecar has been silent, and who knows.
struct Silence {
    since: Timestamp,
    began: Instant,
    /// From when on it counts against the sidecar.
    blamed: Instant,
    told: bool,
}

impl Default for Silence {
    fn default() -> Self {
        Self::begun()
    }
}

impl Silence {
    fn begun() -> Self {
        let now = Instant::now();
        Self { since: crate::clock::now(), began: now, blamed: now, told: false }
    }

    fn excuse(&mut self) {
        self.blamed = Instant::now();
    }

    /// It is over; whether anybody was told of it.
    fn ended(&mut self) -> bool {
        std::mem::take(&mut self.told)
    }

    /// Since when, if that is to be told now.
    fn told_now(&mut self) -> Option<Timestamp> {
        (self.began.elapsed() >= SILENCE_TOLD && !std::mem::replace(&mut self.told, true)).then_some(self.since)
    }

    fn is_too_long(&self) -> bool {
        self.blamed.elapsed() >= SILENCE_MAX
    }
}

/// Adds what a journal entry says, unless it is durable already.
fn take(told: Told, last: &mut u64, batch: &mut Vec<(Timestamp, EventKind)>) {
    let gap = |first: u64, last: u64| EventKind::Gap { reason: format!("{} events were no longer kept by the sidecar", last + 1 - first) };
    match told {
        Told::Recorded { seq, at, kind } => {
            if seq <= *last {
                return;
            }
            if seq > *last + 1 {
                batch.push((at, gap(*last + 1, seq - 1)));
            }
            *last = seq;
            batch.push((at, kind));
        }
        Told::Gap(missing) if missing.last > *last && missing.first <= missing.last => {
            batch.push((crate::clock::now(), gap(missing.first.max(*last + 1), missing.last)));
            *last = missing.last;
        }
        Told::Gap(_) | Told::Delta(_) => {}
    }
}

/// Whether the actor must know; the bulk of a conversation changes only the history.
fn concerns_actor(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::Agent { .. }
            | EventKind::Busy { .. }
            | EventKind::TurnEnded { .. }
            | EventKind::Title { .. }
            | EventKind::PermissionAsked { .. }
            | EventKind::PermissionAnswered { .. }
            | EventKind::QuestionAsked { .. }
            | EventKind::QuestionAnswered { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use openagent_core::event::Busy;

    fn entry(seq: u64) -> Told {
        Told::Recorded { seq, at: Timestamp::default(), kind: EventKind::Busy { busy: Busy::Rest } }
    }

    #[test]
    fn what_is_durable_is_not_taken_twice_and_what_is_missing_is_said() {
        let (mut last, mut batch) = (3, vec![]);
        for told in [entry(2), entry(4), entry(4), entry(7)] {
            take(told, &mut last, &mut batch);
        }
        let gaps = batch.iter().filter(|(_, kind)| matches!(kind, EventKind::Gap { .. })).count();
        assert_eq!((last, batch.len(), gaps), (7, 3, 1));
    }
}
