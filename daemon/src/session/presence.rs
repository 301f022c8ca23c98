//! Who follows a session: clients on its conversation and on its terminals.
//!
//! State, not history: a `watch` of the whole list, from which the session's actor makes its view. An [`Attachment`] is a client's presence; dropping
//! it ends it, whatever ended the client.

use std::sync::Arc;

use openagent_core::time::Timestamp;
use tokio::sync::watch;

use crate::clock;

/// Longest name of a client, in characters.
pub const CLIENT_MAX_CHARS: usize = 64;

/// What a client follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachedTo {
    /// The conversation.
    Events,
    /// A terminal.
    Terminal,
}

/// Somebody who follows a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The client's name.
    pub client: String,
    /// What it follows.
    pub to: AttachedTo,
    /// Since when.
    pub since: Timestamp,
}

/// Everybody who follows a session, oldest first, by number.
pub type Everybody = Vec<(u64, Attached)>;

/// Who follows a session. A clone is the same list.
#[derive(Debug, Clone, Default)]
pub struct Presence(Arc<watch::Sender<Everybody>>);

impl Presence {
    /// A client follows from now on, until the result is dropped. Its name is cut to [`CLIENT_MAX_CHARS`] and freed of control characters.
    #[must_use]
    pub fn attach(&self, client: &str, to: AttachedTo) -> Attachment {
        let name: String = client.chars().filter(|char| !char.is_control()).take(CLIENT_MAX_CHARS).collect();
        let client = if name.trim().is_empty() { "client".to_owned() } else { name };
        let mut number = 0;
        self.0.send_modify(|all| {
            number = all.last().map_or(1, |(last, _)| last + 1);
            all.push((number, Attached { client, to, since: clock::now() }));
        });
        Attachment { presence: self.clone(), number }
    }

    /// The list, as it changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Everybody> {
        self.0.subscribe()
    }
}

/// A client's presence.
#[derive(Debug)]
pub struct Attachment {
    presence: Presence,
    number: u64,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.presence.0.send_modify(|all| all.retain(|(number, _)| *number != self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_there_until_its_attachment_is_dropped() {
        let presence = Presence::default();
        let list = presence.subscribe();
        let names = || list.borrow().iter().map(|(_, attached)| attached.client.clone()).collect::<Vec<_>>();
        let first = presence.attach("anna\u{1b}[31m", AttachedTo::Events);
        let second = presence.attach(" ", AttachedTo::Terminal);
        assert_eq!(names(), ["anna[31m", "client"]);
        drop(first);
        assert_eq!(names(), ["client"]);
        let third = presence.attach(&"x".repeat(100), AttachedTo::Events);
        assert_eq!(names()[1].len(), CLIENT_MAX_CHARS);
        drop((second, third));
        assert!(names().is_empty());
    }
}
