//! The running instance of a session, from outside: its sidecar and its agent, to be killed, stopped and continued, and what its agent was allowed at its start.

use std::collections::BTreeMap;

use bollard::query_parameters::KillContainerOptionsBuilder;
use nix::sys::signal::Signal;
use openagent_proto::v1;
use serde_json::Value;

use super::client::within;
use super::engine::{AGENT, Container};
use super::process::Process;
use super::{Driver, PATIENCE, World};

/// What the agent's server was started as, in every driver.
const AGENT_WORDS: &str = "serve --hostname 127.0.0.1";

/// A process of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The sidecar.
    Sidecar,
    /// The agent's server.
    Agent,
}

impl World {
    /// The container of a session, wherever the engine is.
    ///
    /// # Panics
    /// When there is not exactly one.
    pub async fn container(&self, session: &str) -> Container {
        Container::at(self.engine(), session).await
    }

    /// A process of a session's instance on this machine; waits until there is one.
    ///
    /// # Panics
    /// When there is none, or the driver has its processes elsewhere.
    pub async fn process_of(&self, session: &str, who: Who) -> Process {
        assert_eq!(self.driver(), Driver::Local, "processes in a container are the engine's");
        let find = || {
            let (_, _, sidecar) = self.sidecars().into_iter().find(|(_, of, _)| of == session)?;
            let is_agent = |process: &Process| process.command_line().join(" ").contains(AGENT_WORDS);
            match who {
                Who::Sidecar => Some(sidecar),
                Who::Agent => sidecar.family().into_iter().find(is_agent),
            }
        };
        within(&format!("the {who:?} of {session}"), PATIENCE, async {
            loop {
                if let Some(process) = find() {
                    return process;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    /// Signals a process of a session's instance, in either driver. Does not wait for what comes of it.
    ///
    /// # Panics
    /// When there is no such process.
    pub async fn signal_to(&self, session: &str, who: Who, signal: Signal) {
        match (self.driver(), who) {
            (Driver::Local, _) => self.process_of(session, who).await.signal(signal),
            (Driver::Docker, Who::Sidecar) => {
                let options = KillContainerOptionsBuilder::default().signal(signal.as_str()).build();
                let container = self.container(session).await;
                self.engine().kill_container(&container.id, Some(options)).await.expect("the container runs");
            }
            (Driver::Docker, Who::Agent) => {
                let script = format!("pkill -{} -f -- '[s]erve --hostname 127.0.0.1'", signal.as_str().trim_start_matches("SIG"));
                self.container(session).await.until(AGENT, &script).await;
            }
        }
    }

    /// The permission rules that the agent's running server was started with.
    ///
    /// # Panics
    /// When it does not run, or has none.
    pub async fn rules_of(&self, session: &str) -> BTreeMap<String, Value> {
        let text = match self.driver() {
            Driver::Local => self.process_of(session, Who::Agent).await.environment().remove("OPENCODE_PERMISSION").unwrap_or_default(),
            Driver::Docker => {
                let script = "pid=$(pgrep -o -f '[s]erve --hostname 127.0.0.1') && tr '\\0' '\\n' < /proc/$pid/environ | \
                              sed -n 's/^OPENCODE_PERMISSION=//p' | grep .";
                self.container(session).await.until(AGENT, script).await
            }
        };
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("the rules of {session} cannot be read: {error}"))
    }
}

/// What a session may do without asking.
#[derive(Debug, Clone, PartialEq)]
pub struct Permissions {
    mode: v1::PermissionMode,
    rules: BTreeMap<String, Value>,
}

impl Permissions {
    /// Those of a session whose agent runs.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn of(world: &World, session: &str) -> Self {
        let mode = world.clients().await.get(session).await.permission_mode();
        Self { mode, rules: world.rules_of(session).await }
    }

    /// Every permission and pattern with its word.
    fn words(&self) -> BTreeMap<(String, String), String> {
        let mut words = BTreeMap::new();
        for (permission, rule) in &self.rules {
            if let Some(word) = rule.as_str() {
                words.insert((permission.clone(), "*".to_owned()), word.to_owned());
            }
            for (pattern, word) in rule.as_object().into_iter().flatten() {
                words.insert((permission.clone(), pattern.clone()), word.as_str().unwrap_or_default().to_owned());
            }
        }
        words
    }

    /// Panics when these are wider than `before`: another mode, or something is allowed (or asked where it was denied) that was not.
    ///
    /// # Panics
    /// When they are.
    pub fn must_not_be_wider_than(&self, before: &Self) {
        assert_eq!(self.mode, before.mode, "the permission mode is another");
        let width = |word: Option<&String>| match word.map(String::as_str) {
            Some("allow") => 2,
            Some("ask") => 1,
            _ => 0,
        };
        let known = before.words();
        for (what, word) in self.words() {
            // A pattern that was not named before was decided by the rule for all.
            let was = known
                .get(&what)
                .or_else(|| known.get(&(what.0.clone(), "*".to_owned())))
                .or_else(|| known.get(&("*".to_owned(), "*".to_owned())));
            assert!(width(Some(&word)) <= width(was), "{what:?} is wider than before: {word}, was {was:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn permissions(rules: Value) -> Permissions {
        Permissions { mode: v1::PermissionMode::Ask, rules: serde_json::from_value(rules).expect("an object") }
    }

    #[test]
    fn narrower_rules_pass() {
        let before = permissions(json!({ "*": "ask", "glob": "allow", "bash": { "*": "ask", "ls *": "allow" } }));
        permissions(json!({ "*": "ask", "glob": "allow", "bash": "ask", "edit": "ask" })).must_not_be_wider_than(&before);
        before.must_not_be_wider_than(&before);
    }

    #[test]
    #[should_panic(expected = "wider than before")]
    fn a_new_allowance_does_not() {
        let before = permissions(json!({ "*": "ask", "bash": "ask" }));
        permissions(json!({ "*": "ask", "bash": { "*": "ask", "rm *": "allow" } })).must_not_be_wider_than(&before);
    }
}
