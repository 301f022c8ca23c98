//! The current views of all sessions, for whoever lists or watches them.
//!
//! Each change gets the next number; a watcher remembers the number it has seen and asks for what changed since. A session that changes often is told once, as it is
//! then, and the work of a watcher is proportional to what changed and not to how many sessions there are.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use openagent_core::id::SessionId;
use tokio::sync::watch;

use super::View;

/// Removals that are remembered for watchers. One that is further behind is told to begin anew.
const REMOVALS_MAX: usize = 4096;

/// What changed.
#[derive(Debug, Clone)]
pub enum Change {
    /// A session is new or other than before.
    Changed(Arc<View>),
    /// A session is gone.
    Removed(SessionId),
}

#[derive(Default)]
struct Inner {
    last: u64,
    views: HashMap<SessionId, (u64, Arc<View>)>,
    order: BTreeMap<u64, SessionId>,
    removed: BTreeMap<u64, SessionId>,
    /// Removals up to here are forgotten.
    forgotten: u64,
}

/// The current views of all sessions.
pub struct Directory {
    inner: Mutex<Inner>,
    doorbell: watch::Sender<u64>,
}

impl Default for Directory {
    fn default() -> Self {
        Self { inner: Mutex::default(), doorbell: watch::Sender::new(0) }
    }
}

impl Directory {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A session is as in `view` from now on.
    pub fn changed(&self, view: Arc<View>) {
        let number = self.with(|inner| {
            inner.last += 1;
            let number = inner.last;
            let id = view.record.session.id.clone();
            if let Some((old, _)) = inner.views.insert(id.clone(), (number, view)) {
                inner.order.remove(&old);
            }
            inner.order.insert(number, id);
            number
        });
        self.ring(number);
    }

    /// Two may ring at once, and the later number must stay.
    fn ring(&self, number: u64) {
        self.doorbell.send_if_modified(|last| {
            let later = number > *last;
            *last = number.max(*last);
            later
        });
    }

    /// A session is gone.
    pub fn removed(&self, id: &SessionId) {
        let number = self.with(|inner| {
            inner.last += 1;
            let number = inner.last;
            if let Some((old, _)) = inner.views.remove(id) {
                inner.order.remove(&old);
            }
            inner.removed.insert(number, id.clone());
            while inner.removed.len() > REMOVALS_MAX {
                if let Some((oldest, _)) = inner.removed.pop_first() {
                    inner.forgotten = oldest;
                }
            }
            number
        });
        self.ring(number);
    }

    /// All views, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<View>> {
        self.with(|inner| inner.views.values().map(|(_, view)| Arc::clone(view)).collect())
    }

    /// The view of one session.
    #[must_use]
    pub fn get(&self, id: &SessionId) -> Option<Arc<View>> {
        self.with(|inner| inner.views.get(id).map(|(_, view)| Arc::clone(view)))
    }

    /// How many sessions there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.with(|inner| inner.views.len())
    }

    /// A watcher that has seen nothing yet.
    #[must_use]
    pub fn watch(self: &Arc<Self>) -> Watcher {
        Watcher { directory: Arc::clone(self), seen: 0, fresh: true, doorbell: self.doorbell.subscribe() }
    }
}

/// Follows the changes of a [`Directory`].
pub struct Watcher {
    directory: Arc<Directory>,
    seen: u64,
    fresh: bool,
    doorbell: watch::Receiver<u64>,
}

impl Watcher {
    /// What changed since the last call; waits until something did, but for the first call. `None` when the watcher is too far behind and must begin anew.
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Vec<Change>> {
        if !self.fresh && self.doorbell.wait_for(|last| *last > self.seen).await.is_err() {
            return None;
        }
        let (seen, fresh) = (self.seen, self.fresh);
        let (last, changes) = self.directory.with(|inner| {
            if !fresh && inner.forgotten > seen {
                return (inner.last, None);
            }
            let mut changes: Vec<Change> =
                inner.order.range(seen + 1..).filter_map(|(_, id)| Some(Change::Changed(Arc::clone(&inner.views.get(id)?.1)))).collect();
            if !fresh {
                changes.extend(inner.removed.range(seen + 1..).map(|(_, id)| Change::Removed(id.clone())));
            }
            (inner.last, Some(changes))
        });
        self.seen = last;
        self.fresh = false;
        changes
    }
}
