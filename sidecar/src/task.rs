//! The one place that spawns tasks: named, tracked, told to stop through a token, their panics reported and never the end of the sidecar.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks and knows which run. A clone is the same set.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Cancelled when the tasks are to end.
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
        // On the heap, since some are large and the tracker would move them.
        let future = AssertUnwindSafe(Box::pin(future)).catch_unwind();
        let watched = async move { future.await.inspect_err(|_| tracing::error!(task = name, "task panicked")).ok() };
        Task { handle: self.tracker.spawn(watched) }
    }

    /// Tells every task to stop, waits up to `grace`, and says whether all have ended.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.tracker.close();
        self.stop.cancel();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

/// A running task; a future of its result, which is `None` when it panicked or was aborted.
#[derive(Debug)]
pub struct Task<T> {
    handle: tokio::task::JoinHandle<Option<T>>,
}

impl<T> Task<T> {
    /// Drops the task where it stands.
    pub fn abort(&self) {
        self.handle.abort();
    }
}

impl<T> Future for Task<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.handle).poll(context).map(|joined| joined.ok().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_own_task_only() {
        let tasks = Tasks::default();
        let other = tasks.spawn("other", async { 7 });
        assert_eq!(tasks.spawn("failing", async { panic!("on purpose") }).await, None::<()>);
        assert_eq!(other.await, Some(7));
        assert!(tasks.shutdown(Duration::from_secs(5)).await);
    }
}
