//! The port to whatever runs instances: a container engine, or plain child processes.
//!
//! Owns the trait [`Driver`] and the words that cross it. Invariants: nothing of an engine's own vocabulary crosses this port, errors are
//! [`Fault`]s with stable codes and a hint that a user can act on, every method is bounded in time (but [`Driver::ended`], which waits for an end), and
//! everything that undoes something is idempotent: what is missing already is fine. A driver keeps no state that the engine does not hold too, so
//! that a daemon that starts again adopts what it finds by [`Driver::list`].
//!
//! Drivers: [`docker`] (the only place that knows bollard) and [`local`].

pub mod docker;
mod link;
pub mod local;

use std::time::Duration;

use futures::future::BoxFuture;
use openagent_core::id::{InstanceId, SessionId};
use openagent_core::instance::ExitCause;
use openagent_core::session::{Fault, Limits, WorkspaceSource};
use openagent_proto::sidecar::{PREAMBLE_CONTROL, PREAMBLE_RELAY};
use tokio::io::{AsyncRead, AsyncWrite};

/// Time that [`Driver::dial`] gives a sidecar that was just started to answer.
pub const DIAL_PATIENCE: Duration = Duration::from_secs(20);

/// Volumes of a session: name at the end of the volume's name, and path in the container.
pub const VOLUMES: [(&str, &str); 3] = [("workspace", "/workspace"), ("home", "/home/agent"), ("state", "/var/lib/openagent")];

/// A stream to the sidecar: ordered bytes both ways, closed by dropping it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A dialled stream, its preamble sent.
pub type BoxStream = Box<dyn Stream>;

/// A tar archive as it is read.
pub type TarStream = Box<dyn AsyncRead + Send + Unpin>;

/// What a dialled stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The daemon speaks HTTP/2 as client.
    Control,
    /// The sidecar speaks HTTP/2 as client.
    Relay,
}

impl Purpose {
    /// First line on the stream, without its newline.
    #[must_use]
    pub const fn preamble(self) -> &'static str {
        match self {
            Self::Control => PREAMBLE_CONTROL,
            Self::Relay => PREAMBLE_RELAY,
        }
    }

    /// The name that the `exec` bridge takes as its argument.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Relay => "relay",
        }
    }
}

/// What an instance is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceSpec {
    /// The session.
    pub session: SessionId,
    /// The instance.
    pub instance: InstanceId,
    /// SHA-256 of the one-time registration token, in hexadecimal.
    pub token_sha256: String,
    /// What it may use.
    pub limits: Limits,
}

/// What is the case with an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// There is no such instance.
    Missing,
    /// It was made and not started.
    Created,
    /// Its sidecar runs.
    Running,
    /// It is frozen: everything is in memory as it was, and nothing runs.
    Paused,
    /// It has ended and is not removed yet.
    Ended(ExitCause),
}

/// Kind of a thing that a driver holds for this daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnedKind {
    /// An instance's container or process.
    Instance,
    /// A container without a sidecar, made to read a workspace; a leftover if nothing reads it now. Removed as if it were an instance.
    Reader,
    /// One of a session's volumes.
    Volume,
}

/// A thing that a driver holds for this daemon.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owned {
    /// The session it belongs to.
    pub session: SessionId,
    /// The instance it is, or the id that a reader was given; absent for volumes.
    pub instance: Option<InstanceId>,
    /// What it is.
    pub kind: OwnedKind,
    /// It runs now, or is frozen.
    pub running: bool,
}

/// Runs instances.
pub trait Driver: Send + Sync {
    /// `docker` or `local`.
    fn name(&self) -> &'static str;

    /// What it does not isolate, in one sentence for the user; empty for containers.
    fn isolation_warning(&self) -> &'static str;

    /// One line about the engine, such as `Docker 20.10.24, runc`, when it answers.
    fn health(&self) -> BoxFuture<'_, Result<String, Fault>>;

    /// Checks that the image, or the programs, are present; gives what identifies them. Instances made under another identity are out of date.
    fn ensure_image(&self) -> BoxFuture<'_, Result<String, Fault>>;

    /// Makes the session's volumes. Idempotent.
    fn ensure_volumes<'a>(&'a self, session: &'a SessionId) -> BoxFuture<'a, Result<(), Fault>>;

    /// Which of the session's [`VOLUMES`] do not exist, by the first name of the pair.
    fn missing_volumes<'a>(&'a self, session: &'a SessionId) -> BoxFuture<'a, Result<Vec<&'static str>, Fault>>;

    /// Removes the session's volumes with what they hold. Idempotent.
    fn remove_volumes<'a>(&'a self, session: &'a SessionId) -> BoxFuture<'a, Result<(), Fault>>;

    /// Makes the instance without starting it. Idempotent for the same instance.
    fn create(&self, spec: InstanceSpec) -> BoxFuture<'_, Result<(), Fault>>;

    /// Starts a created instance, and wakes a paused one. Idempotent.
    fn start<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<(), Fault>>;

    /// Freezes a running instance: its memory stays, and nothing of it runs until [`Driver::wake`]. A stream to it stays open and is silent, also
    /// one that is dialled now: cut them first. Idempotent.
    fn pause<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<(), Fault>>;

    /// Lets a paused instance go on where it was. Idempotent: one that runs is fine.
    fn wake<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<(), Fault>>;

    /// Asks the instance to end, and ends it by force after `grace`; a paused one is woken for it. Idempotent.
    fn stop<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId, grace: Duration) -> BoxFuture<'a, Result<(), Fault>>;

    /// Removes the instance, running, paused or not; volumes stay. Idempotent.
    fn remove<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<(), Fault>>;

    /// A new stream to the sidecar, its preamble sent. Waits, at most [`DIAL_PATIENCE`], for a sidecar that was just started.
    fn dial<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId, purpose: Purpose) -> BoxFuture<'a, Result<BoxStream, Fault>>;

    /// What is the case with the instance.
    fn inspect<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, Result<Observed, Fault>>;

    /// Resolves when the instance has ended, with what ended it; at once when it has already. One that is paused, or not started yet, goes on being
    /// watched. [`ExitCause::EngineGone`] is an engine that cannot be reached for minutes, and [`ExitCause::EngineStopped`] one that was away, or is
    /// going, when the instance ended. Dropping the future ends the watch; watching costs nothing while nothing happens.
    fn ended<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId) -> BoxFuture<'a, ExitCause>;

    /// The last output of the sidecar, at most `max_bytes`, for people; empty when there is none.
    fn logs<'a>(&'a self, session: &'a SessionId, instance: &'a InstanceId, max_bytes: usize) -> BoxFuture<'a, String>;

    /// Fills the workspace of a created instance that was not started.
    fn fill_workspace<'a>(
        &'a self,
        session: &'a SessionId,
        instance: &'a InstanceId,
        source: WorkspaceSource,
    ) -> BoxFuture<'a, Result<(), Fault>>;

    /// The workspace as a tar archive, whether the instance runs, is stopped, or there is none. Entries are relative to it, with or without a leading
    /// `./`; their content is the agent's, and therefore hostile.
    fn read_workspace<'a>(&'a self, session: &'a SessionId, instance: Option<&'a InstanceId>) -> BoxFuture<'a, Result<TarStream, Fault>>;

    /// Everything that this daemon has made and not removed.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Owned>, Fault>>;
}

/// The end of what a process said, fit for people: whole lines where possible, no control characters.
fn readable_tail(bytes: &[u8], max_bytes: usize) -> String {
    let tail = &bytes[bytes.len().saturating_sub(max_bytes)..];
    let cut = if tail.len() < bytes.len() { tail.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1) } else { 0 };
    String::from_utf8_lossy(&tail[cut..]).chars().filter(|char| matches!(char, '\n' | '\t') || !char.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_begins_with_a_whole_line_and_holds_no_escapes() {
        assert_eq!(readable_tail(b"first\nsecond\nthird\n", 10), "third\n");
        assert_eq!(readable_tail(b"\x1b[31mred\x1b[0m\tx", 100), "[31mred[0m\tx");
    }
}
