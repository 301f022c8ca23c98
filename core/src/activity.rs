//! What an agent is doing, derived from typed events and never from a screen.
//!
//! ```text
//! quiet ──prompt──► working ──ask──► blocked ──answer──► working ──turn ends──► done
//!                     └──model call failed──► retrying ──────────┘
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event::{Busy, EventKind};
use crate::id::RequestId;
use crate::session::Status;
use crate::time::Timestamp;

/// What an agent is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "activity", rename_all = "snake_case")]
pub enum Activity {
    /// No turn has run since the session was made or resumed.
    #[default]
    Quiet,
    /// It works on a turn.
    Working,
    /// It waits for the user.
    Blocked {
        /// Permission requests that wait.
        permissions: usize,
        /// Questions that wait.
        questions: usize,
    },
    /// A model call failed and is tried again.
    Retrying {
        /// Which attempt failed.
        attempt: u32,
        /// When the next one is made.
        next_at: Timestamp,
    },
    /// Its last turn ended.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Permission,
    Question,
}

/// Follows the events of one session.
#[derive(Debug, Clone, Default)]
pub struct ActivityTracker {
    busy: Option<Busy>,
    turn_ended: bool,
    waiting: BTreeMap<RequestId, Kind>,
}

impl ActivityTracker {
    /// Takes one event into account.
    pub fn apply(&mut self, event: &EventKind) {
        match event {
            EventKind::Busy { busy } => {
                self.busy = Some(busy.clone());
            }
            EventKind::TurnEnded { .. } => {
                self.busy = Some(Busy::Rest);
                self.turn_ended = true;
                self.waiting.clear();
            }
            EventKind::PermissionAsked { request } => {
                self.waiting.insert(request.id.clone(), Kind::Permission);
            }
            EventKind::QuestionAsked { request } => {
                self.waiting.insert(request.id.clone(), Kind::Question);
            }
            EventKind::PermissionAnswered { id, .. } | EventKind::QuestionAnswered { id, .. } => {
                self.waiting.remove(id);
            }
            EventKind::Session { status, .. } if matches!(status, Status::Stopped | Status::Error) => *self = Self::default(),
            EventKind::Session { .. }
            | EventKind::Instance { .. }
            | EventKind::Step { .. }
            | EventKind::Agent { .. }
            | EventKind::Title { .. }
            | EventKind::Message { .. }
            | EventKind::MessageRemoved { .. }
            | EventKind::Part { .. }
            | EventKind::PartRemoved { .. }
            | EventKind::Subagent { .. }
            | EventKind::Todo { .. }
            | EventKind::Diff { .. }
            | EventKind::Usage { .. }
            | EventKind::Terminal { .. }
            | EventKind::KeysUpdated { .. }
            | EventKind::AgentError { .. }
            | EventKind::Gap { .. }
            | EventKind::Unknown { .. } => {}
        }
    }

    /// What the agent is doing now.
    #[must_use]
    pub fn activity(&self) -> Activity {
        if !self.waiting.is_empty() {
            let permissions = self.waiting.values().filter(|kind| **kind == Kind::Permission).count();
            return Activity::Blocked { permissions, questions: self.waiting.len() - permissions };
        }
        match &self.busy {
            Some(Busy::Working) => Activity::Working,
            Some(Busy::Retrying { attempt, next_at, .. }) => Activity::Retrying { attempt: *attempt, next_at: *next_at },
            Some(Busy::Rest) | None if self.turn_ended => Activity::Done,
            Some(Busy::Rest) | None => Activity::Quiet,
        }
    }
}
