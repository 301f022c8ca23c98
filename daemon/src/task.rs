//! The one place that spawns tasks.
//!
//! Every task has a name, is tracked until it ends, can be told to stop through a tree of cancellation tokens, and has its panic caught:
//! a panicking task is logged by name and reported to whoever awaits its [`Task`]; the daemon lives. clippy refuses `tokio::spawn`
//! elsewhere. A shutdown asks first (the token), waits for the grace period, and then drops what still runs.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Time that dropped tasks get to release what they hold, after the grace period.
const DROP_GRACE: Duration = Duration::from_millis(500);

/// Why a task has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TaskError {
    /// It panicked. What it said is on the daemon's standard error.
    #[error("the task {0} panicked")]
    Panicked(&'static str),
    /// It was still running when the grace period of a shutdown was over.
    #[error("the task {0} was dropped at shutdown")]
    Dropped(&'static str),
}

/// Spawns tasks and knows which run. A clone is the same set; a [`child`](Tasks::child) can be cancelled alone.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    force: CancellationToken,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self { tracker: TaskTracker::new(), stop: CancellationToken::new(), force: CancellationToken::new() }
    }

    /// A branch: stopped together with `self`, or alone by cancelling its own [`token`](Tasks::token).
    #[must_use]
    pub fn child(&self) -> Self {
        Self { tracker: self.tracker.clone(), stop: self.stop.child_token(), force: self.force.clone() }
    }

    /// Tells the tasks of this set to stop. A task that has something to finish awaits `cancelled()`.
    #[must_use]
    pub const fn token(&self) -> &CancellationToken {
        &self.stop
    }

    /// Starts a task. Dropping the handle does not end it.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let force = self.force.clone();
        let future = AssertUnwindSafe(Box::pin(future)).catch_unwind();
        let watched = async move {
            tokio::select! {
                biased;
                outcome = future => outcome.map_err(|_| {
                    tracing::error!(task = name, "task panicked");
                    TaskError::Panicked(name)
                }),
                () = force.cancelled() => {
                    tracing::warn!(task = name, "task dropped: it did not end within the grace period");
                    Err(TaskError::Dropped(name))
                }
            }
        };
        Task { name, handle: self.tracker.spawn(watched.instrument(tracing::info_span!("task", name))) }
    }

    /// Tells every task of the whole tree to stop, waits up to `grace`, and drops those that still run. Answers how many were dropped.
    pub async fn shutdown(&self, grace: Duration) -> usize {
        self.tracker.close();
        self.stop.cancel();
        if tokio::time::timeout(grace, self.tracker.wait()).await.is_ok() {
            return 0;
        }
        let left = self.tracker.len();
        self.force.cancel();
        if tokio::time::timeout(DROP_GRACE, self.tracker.wait()).await.is_err() {
            tracing::warn!(tasks = self.tracker.len(), "tasks do not yield and are left behind");
        }
        left
    }
}

/// A running task; a future of its result.
#[derive(Debug)]
pub struct Task<T> {
    name: &'static str,
    handle: tokio::task::JoinHandle<Result<T, TaskError>>,
}

impl<T> Task<T> {
    /// Whether it has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Drops the task where it stands.
    pub fn abort(&self) {
        self.handle.abort();
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let name = self.name;
        Pin::new(&mut self.handle).poll(context).map(|joined| joined.unwrap_or(Err(TaskError::Dropped(name))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_reported_to_whoever_waits_and_ends_nothing_else() {
        let tasks = Tasks::new();
        let other = tasks.spawn("other", async { 7 });
        let failing = tasks.spawn("failing", async { panic!("on purpose") });
        assert_eq!(failing.await, Err::<(), _>(TaskError::Panicked("failing")));
        assert_eq!(other.await, Ok(7));
        assert_eq!(tasks.shutdown(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test]
    async fn shutdown_asks_first_and_drops_what_does_not_listen() {
        let tasks = Tasks::new();
        let token = tasks.token().clone();
        let polite = tasks.spawn("polite", async move { token.cancelled().await });
        let deaf = tasks.spawn("deaf", std::future::pending::<()>());
        assert_eq!(tasks.shutdown(Duration::from_millis(20)).await, 1);
        assert_eq!(polite.await, Ok(()));
        assert_eq!(deaf.await, Err(TaskError::Dropped("deaf")));
    }

    #[tokio::test]
    async fn a_child_stops_alone_and_with_its_parent() {
        let tasks = Tasks::new();
        let (one, two) = (tasks.child(), tasks.child());
        one.token().cancel();
        assert!(!tasks.token().is_cancelled() && !two.token().is_cancelled());
        tasks.shutdown(Duration::from_secs(5)).await;
        assert!(two.token().is_cancelled());
    }
}
