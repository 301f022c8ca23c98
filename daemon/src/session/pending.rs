//! What waits for an answer of the user, and who answered what lately.

use std::collections::VecDeque;

use openagent_core::event::EventKind;
use openagent_core::id::RequestId;
use openagent_core::permission::{PermissionRequest, PermissionRule, QuestionRequest, matches};
use openagent_core::session::Fault;

/// Answers that are remembered, to tell a second answerer who was first.
const ANSWERED_MAX: usize = 64;

/// Requests that may wait in one session. An agent that asks more is not waiting for answers.
const WAITING_MAX: usize = 256;

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pending {
    /// For permission.
    Permission(PermissionRequest),
    /// For an answer to a question.
    Question(QuestionRequest),
}

impl Pending {
    /// The request's id.
    #[must_use]
    pub const fn id(&self) -> &RequestId {
        match self {
            Self::Permission(request) => &request.id,
            Self::Question(request) => &request.id,
        }
    }
}

/// A session's inbox.
#[derive(Debug, Default)]
pub struct Inbox {
    waiting: Vec<Pending>,
    /// Requests that somebody is answering right now, and who.
    taken: Vec<(RequestId, String)>,
    answered: VecDeque<(RequestId, String)>,
}

impl Inbox {
    /// Takes an event into account. Returns whether the inbox changed.
    pub fn apply(&mut self, event: &EventKind) -> bool {
        let before = self.waiting.len();
        match event {
            EventKind::PermissionAsked { request } => self.add(Pending::Permission(request.clone())),
            EventKind::QuestionAsked { request } => self.add(Pending::Question(request.clone())),
            EventKind::PermissionAnswered { id, by, .. } | EventKind::QuestionAnswered { id, by, .. } => self.answered(id, by),
            EventKind::TurnEnded { .. } => self.waiting.clear(),
            _ => return false,
        }
        self.waiting.len() != before
    }

    fn add(&mut self, pending: Pending) {
        if self.waiting.len() < WAITING_MAX && !self.waiting.iter().any(|known| known.id() == pending.id()) {
            self.waiting.push(pending);
        }
    }

    fn answered(&mut self, id: &RequestId, by: &str) {
        self.waiting.retain(|pending| pending.id() != id);
        self.taken.retain(|(taken, _)| taken != id);
        self.answered.push_back((id.clone(), by.to_owned()));
        if self.answered.len() > ANSWERED_MAX {
            self.answered.pop_front();
        }
    }

    /// What waits, oldest first.
    #[must_use]
    pub fn waiting(&self) -> &[Pending] {
        &self.waiting
    }

    /// Everything that waited is void, since the agent that asked is gone.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.taken.clear();
    }

    /// Takes a request to answer it: the first one wins.
    ///
    /// # Errors
    /// `ALREADY_ANSWERED` with who was first, `NOT_FOUND`.
    pub fn take(&mut self, id: &RequestId, by: &str) -> Result<Pending, Fault> {
        let first = self.taken.iter().chain(&self.answered).find(|(known, _)| known == id);
        if let Some((_, first)) = first {
            return Err(Fault::new("ALREADY_ANSWERED", format!("{first} has answered this request already"), ""));
        }
        let pending = self.waiting.iter().find(|pending| pending.id() == id).cloned();
        let pending = pending
            .ok_or_else(|| Fault::new("NOT_FOUND", format!("no request {id} waits in this session"), "see what waits: openagent inbox"))?;
        self.taken.push((id.clone(), by.to_owned()));
        Ok(pending)
    }

    /// The answer did not reach the agent: somebody may answer again.
    pub fn release(&mut self, id: &RequestId) {
        self.taken.retain(|(taken, _)| taken != id);
    }
}

/// Whether remembered answers allow a request: every pattern of it must match a rule of its kind.
#[must_use]
pub fn allowed(rules: &[PermissionRule], request: &PermissionRequest) -> bool {
    !request.patterns.is_empty()
        && request
            .patterns
            .iter()
            .all(|pattern| rules.iter().any(|rule| rule.permission == request.permission && matches(&rule.pattern, pattern)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use openagent_core::permission::PermissionResponse;
    use openagent_core::time::Timestamp;

    fn request(id: &str, patterns: &[&str]) -> PermissionRequest {
        PermissionRequest {
            id: id.parse().unwrap(),
            conversation: "ses_x".parse().unwrap(),
            permission: "bash".into(),
            title: "ls".into(),
            diff: None,
            patterns: patterns.iter().map(|p| (*p).to_owned()).collect(),
            always: vec![],
            asked_at: Timestamp::default(),
        }
    }

    #[test]
    fn the_first_answer_wins_and_the_second_is_told_who_was_first() {
        let mut inbox = Inbox::default();
        assert!(inbox.apply(&EventKind::PermissionAsked { request: request("per_1", &["ls"]) }));
        let id: RequestId = "per_1".parse().unwrap();
        inbox.take(&id, "anna").unwrap();
        assert_eq!(inbox.take(&id, "bert").unwrap_err().message, "anna has answered this request already");
        inbox.release(&id);
        inbox.take(&id, "bert").unwrap();
        inbox.apply(&EventKind::PermissionAnswered { id: id.clone(), response: PermissionResponse::Once, by: "bert".into(), reason: None });
        assert!(inbox.waiting().is_empty());
        assert_eq!(inbox.take(&id, "carl").unwrap_err().code, "ALREADY_ANSWERED");
        assert_eq!(inbox.take(&"per_2".parse().unwrap(), "carl").unwrap_err().code, "NOT_FOUND");
    }

    #[test]
    fn a_rule_must_cover_every_pattern_of_a_request() {
        let rule = PermissionRule { permission: "bash".into(), pattern: "git *".into() };
        assert!(allowed(std::slice::from_ref(&rule), &request("per_1", &["git status", "git log"])));
        assert!(!allowed(std::slice::from_ref(&rule), &request("per_1", &["git status", "rm -rf /"])));
        assert!(!allowed(&[rule], &request("per_1", &[])));
    }
}
