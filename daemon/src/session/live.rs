//! What goes on while a session has a registered instance: the watch over its end, its freezing and thawing, and the link to its sidecar, which is cut while it is
//! frozen.
//!
//! Invariant: calls that freeze and thaw run one after the other, and the last wish wins. Everything ends when the [`Live`] is dropped.

use std::sync::Arc;

use openagent_core::id::{InstanceId, SessionId};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Shared;
use super::actor::Input;
use super::link::Link;
use crate::sidecar::{Credentials, SidecarClient};

/// A registered instance.
pub struct Live {
    shared: Arc<Shared>,
    session: SessionId,
    instance: InstanceId,
    /// What its registration gave.
    pub credentials: Credentials,
    actor: mpsc::Sender<Input>,
    client: watch::Sender<Option<SidecarClient>>,
    frozen: watch::Sender<bool>,
    link: Option<DropGuard>,
    token: CancellationToken,
    _end: DropGuard,
}

impl Live {
    /// Watches over the instance from now on; not linked yet. `client` shows the connection.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        session: SessionId,
        instance: InstanceId,
        credentials: Credentials,
        actor: mpsc::Sender<Input>,
        client: watch::Sender<Option<SidecarClient>>,
    ) -> Self {
        let token = shared.tasks.token().child_token();
        let frozen = watch::Sender::new(false);
        let (tasks, driver) = (shared.tasks.clone(), Arc::clone(&shared.driver));
        let (ends, ended) = (token.clone(), actor.clone());
        let (of, id) = (session.clone(), instance.clone());
        tasks.spawn("session-end", async move {
            if let Some(cause) = ends.run_until_cancelled(driver.ended(&of, &id)).await {
                let _ = ended.send(Input::Ended(id, cause)).await;
            }
        });
        let freezer = freeze(Arc::clone(&shared), session.clone(), instance.clone(), actor.clone(), frozen.subscribe());
        let ends = token.clone();
        tasks.spawn("session-freezer", async move { ends.run_until_cancelled(freezer).await });
        let end = token.clone().drop_guard();
        Self { shared, session, instance, credentials, actor, client, frozen, link: None, token, _end: end }
    }

    /// Links up with the sidecar, or anew. `first` is a connection that exists already.
    pub fn link(&mut self, first: Option<SidecarClient>) {
        self.unlink();
        let cancel = self.token.child_token();
        let link = Link {
            shared: Arc::clone(&self.shared),
            session: self.session.clone(),
            instance: self.instance.clone(),
            credentials: self.credentials.clone(),
            actor: self.actor.clone(),
            client: self.client.clone(),
            cancel: cancel.clone(),
        };
        link.start(first);
        self.link = Some(cancel.drop_guard());
    }

    /// Cuts the link.
    pub fn unlink(&mut self) {
        self.link = None;
        self.client.send_replace(None);
    }

    /// The instance is to be frozen, or not; the actor is told by [`Input::Frozen`] when it is so.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.unlink();
    }
}

async fn freeze(
    shared: Arc<Shared>,
    session: SessionId,
    instance: InstanceId,
    actor: mpsc::Sender<Input>,
    mut wanted: watch::Receiver<bool>,
) {
    // Unknown after a call that failed: it may have been done all the same, or somebody else's doing.
    let mut frozen = Some(false);
    while wanted.changed().await.is_ok() {
        let want = *wanted.borrow_and_update();
        let outcome = match (want, frozen == Some(want)) {
            (_, true) => Ok(()),
            (true, false) => shared.driver.pause(&session, &instance).await,
            (false, false) => shared.driver.wake(&session, &instance).await,
        };
        frozen = outcome.is_ok().then_some(want);
        if actor.send(Input::Frozen(instance.clone(), want, outcome)).await.is_err() {
            return;
        }
    }
}
