//! Events that the journal has not taken because its disk is full or broken. They keep their order and are tried again; meanwhile the actor takes no
//! further event of OpenCode, so that little waits here and nothing is lost.

use std::collections::VecDeque;
use std::time::Duration;

use openagent_core::event::EventKind;
use tokio::time::Instant;

use super::chain;
use crate::agent::opencode::translate::Output;
use crate::journal::{Journal, JournalError};

/// Time between two attempts.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Waiting {
    outputs: VecDeque<Output>,
    since: Option<Instant>,
    retry_at: Option<Instant>,
}

impl Waiting {
    pub(super) fn is_stuck(&self) -> bool {
        !self.outputs.is_empty()
    }

    pub(super) const fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Gives an output to the journal, or has it wait behind the others.
    pub(super) async fn put(&mut self, journal: &Journal, output: Output) {
        if self.is_stuck() {
            self.outputs.push_back(output);
        } else if let Output::Delta(delta) = output {
            journal.delta(delta);
        } else if !written(journal, &output).await {
            let now = Instant::now();
            self.outputs.push_back(output);
            self.since = Some(now);
            self.retry_at = Some(now + RETRY_PAUSE);
        }
    }

    /// Tries again. When nothing waits any more, returns what is to be told of it.
    pub(super) async fn write(&mut self, journal: &Journal) -> Option<EventKind> {
        while let Some(output) = self.outputs.front() {
            if !written(journal, output).await {
                self.retry_at = Some(Instant::now() + RETRY_PAUSE);
                return None;
            }
            self.outputs.pop_front();
        }
        self.retry_at = None;
        let seconds = self.since.take()?.elapsed().as_secs();
        Some(EventKind::AgentError {
            name: "JOURNAL_FULL".to_owned(),
            message: format!(
                "the session's disk took nothing for {seconds} s: what happened meanwhile was told late, and nothing is missing"
            ),
            status_code: None,
            hint: Some("free some space where the engine keeps its volumes".to_owned()),
        })
    }
}

/// Whether the journal has it, or never will.
async fn written(journal: &Journal, output: &Output) -> bool {
    let kind = match output {
        Output::Record(kind) => kind,
        Output::Delta(delta) => {
            journal.delta(delta.clone());
            return true;
        }
    };
    match journal.record(kind).await {
        Ok(_) => true,
        // The journal has logged why.
        Err(JournalError::Write(_)) => false,
        Err(error) => {
            tracing::error!(error = chain(&error), "an event of the agent could not be recorded");
            true
        }
    }
}
