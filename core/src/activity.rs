//! What an agent is doing, derived from typed events and never from a screen.
//!
//! ```text
//! quiet ──prompt──► working ──ask──► blocked ──answer──► working ──turn ends──► done
//!                     └──model call failed──► retrying ──────────┴──by an error──► failed
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event::{Busy, EventKind, TurnOutcome};
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
    /// Its last turn was ended by an error.
    Failed,
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
    /// It rests after work, and the end of the turn, which says how, is still to come.
    resting: bool,
    turn_ended: Option<Activity>,
    waiting: BTreeMap<RequestId, Kind>,
}

impl ActivityTracker {
    /// Takes one event into account.
    pub fn apply(&mut self, event: &EventKind) {
        match event {
            // Until then it would seem to be as its last turn left it.
            EventKind::Busy { busy: Busy::Rest } if matches!(self.busy, Some(Busy::Working | Busy::Retrying { .. })) => self.resting = true,
            EventKind::Busy { busy } => {
                self.busy = Some(busy.clone());
                self.resting = false;
            }
            // The end is among what is missing.
            EventKind::Gap { .. } if self.resting => {
                self.busy = Some(Busy::Rest);
                self.resting = false;
            }
            EventKind::TurnEnded { outcome } => {
                self.busy = Some(Busy::Rest);
                self.resting = false;
                self.turn_ended = Some(match outcome {
                    TurnOutcome::Completed | TurnOutcome::Aborted => Activity::Done,
                    TurnOutcome::Failed { .. } | TurnOutcome::Interrupted => Activity::Failed,
                });
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
            EventKind::Session { status: Status::Stopped | Status::Error, .. } => *self = Self::default(),
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
            Some(Busy::Rest) | None => self.turn_ended.clone().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::permission::{PermissionRequest, PermissionResponse};

    fn asked(id: &str) -> EventKind {
        EventKind::PermissionAsked {
            request: PermissionRequest {
                id: id.parse().unwrap(),
                conversation: "ses_x".parse().unwrap(),
                permission: "bash".into(),
                title: "ls".into(),
                diff: None,
                patterns: vec![],
                always: vec![],
                asked_at: Timestamp::default(),
            },
        }
    }

    #[test]
    fn an_agent_that_rests_is_not_what_the_turn_before_left_it() {
        let mut tracker = ActivityTracker::default();
        let failed = TurnOutcome::Failed { message: String::new() };
        for event in [
            EventKind::Busy { busy: Busy::Working },
            EventKind::Busy { busy: Busy::Rest },
            EventKind::TurnEnded { outcome: failed },
            EventKind::Busy { busy: Busy::Working },
            EventKind::Busy { busy: Busy::Rest },
        ] {
            tracker.apply(&event);
        }
        assert_eq!(tracker.activity(), Activity::Working, "how it ended is still to come");
        tracker.apply(&EventKind::TurnEnded { outcome: TurnOutcome::Aborted });
        assert_eq!(tracker.activity(), Activity::Done);
        for event in
            [EventKind::Busy { busy: Busy::Working }, EventKind::Busy { busy: Busy::Rest }, EventKind::Gap { reason: String::new() }]
        {
            tracker.apply(&event);
        }
        assert_eq!(tracker.activity(), Activity::Done, "its end was lost");
    }

    #[test]
    fn activity_follows_a_turn_from_quiet_to_done() {
        let mut tracker = ActivityTracker::default();
        assert_eq!(tracker.activity(), Activity::Quiet);
        tracker.apply(&EventKind::Busy { busy: Busy::Working });
        assert_eq!(tracker.activity(), Activity::Working);
        tracker.apply(&asked("per_1"));
        assert_eq!(tracker.activity(), Activity::Blocked { permissions: 1, questions: 0 });
        let id = "per_1".parse().unwrap();
        tracker.apply(&EventKind::PermissionAnswered { id, response: PermissionResponse::Once, by: "x".into(), reason: None });
        assert_eq!(tracker.activity(), Activity::Working);
        let next_at = Timestamp::from_millis(5);
        tracker.apply(&EventKind::Busy { busy: Busy::Retrying { attempt: 2, message: String::new(), next_at } });
        assert_eq!(tracker.activity(), Activity::Retrying { attempt: 2, next_at });
        tracker.apply(&EventKind::TurnEnded { outcome: TurnOutcome::Completed });
        assert_eq!(tracker.activity(), Activity::Done);
        tracker.apply(&EventKind::TurnEnded { outcome: TurnOutcome::Failed { message: "refused".into() } });
        assert_eq!(tracker.activity(), Activity::Failed, "a turn that an error ended is not called done");
    }

    #[test]
    fn nothing_waits_for_an_agent_that_is_gone() {
        for end in [
            EventKind::TurnEnded { outcome: TurnOutcome::Interrupted },
            EventKind::Session { status: Status::Error, fault: None, title: String::new() },
        ] {
            let mut tracker = ActivityTracker::default();
            tracker.apply(&asked("per_1"));
            tracker.apply(&end);
            assert!(!matches!(tracker.activity(), Activity::Blocked { .. }));
        }
    }
}
