//! Permission requests and questions: asked, answered, and withdrawn when nobody waits for the answer any more.

use openagent_core::event::EventKind;
use openagent_core::id::RequestId;
use openagent_core::permission::{PATTERNS_MAX, PermissionRequest, PermissionResponse, Question, QuestionOption, QuestionRequest};
use openagent_core::time::Timestamp;
use serde_json::Value;

use super::super::json::{field, flag, list, text, texts};
use super::{Snapshot, Translator};

/// The most questions of a request and options of a question that are kept.
const QUESTIONS_MAX: usize = 32;

/// What we have answered ourselves: OpenCode's event says less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Who answers.
    pub by: String,
    /// The answer to a permission request; absent for a question.
    pub response: Option<PermissionResponse>,
    /// Why it was rejected.
    pub reason: Option<String>,
}

#[derive(Debug)]
pub(super) struct Pending {
    id: RequestId,
    conversation: String,
    is_permission: bool,
    answer: Option<Answer>,
}

impl Pending {
    pub(super) fn conversation(&self) -> &str {
        &self.conversation
    }
}

impl Translator {
    /// Whether a permission request (or a question) of this id waits for an answer.
    #[must_use]
    pub fn waits(&self, id: &str, is_permission: bool) -> bool {
        self.requests.get(id).is_some_and(|pending| pending.is_permission == is_permission && pending.answer.is_none())
    }

    /// OpenCode does not know this request any more.
    pub fn gone(&mut self, id: &str) -> Vec<super::Output> {
        self.expect_answer(id, None);
        self.withdraw_requests(|pending| pending.id.as_str() == id, "the agent no longer waits for it");
        self.take()
    }

    /// An earlier run has told that these were asked, and no answer: nobody waits for one any more.
    pub fn asked_before(&mut self, asked: Vec<EventKind>) -> Vec<super::Output> {
        for event in asked {
            match event {
                EventKind::PermissionAsked { request } => self.wait_for(request.id, request.conversation.as_str(), true),
                EventKind::QuestionAsked { request } => self.wait_for(request.id, request.conversation.as_str(), false),
                _ => false,
            };
        }
        self.withdraw_requests(|_| true, "the agent's process ended");
        self.take()
    }

    /// Announces the answer that is about to be given; `None` takes it back. Its event will carry it.
    pub fn expect_answer(&mut self, id: &str, answer: Option<Answer>) {
        if let Some(pending) = self.requests.get_mut(id) {
            pending.answer = answer;
        }
    }

    pub(super) fn permission_asked(&mut self, properties: &Value, now: Timestamp) -> Option<()> {
        let id: RequestId = text(properties, "id").parse().ok()?;
        let conversation = text(properties, "sessionID");
        let metadata = field(properties, "metadata");
        let patterns = texts(properties, "patterns", PATTERNS_MAX);
        let title = ["command", "filepath", "url"].into_iter().map(|key| text(metadata, key)).find(|title| !title.is_empty());
        let request = PermissionRequest {
            id: id.clone(),
            conversation: conversation.parse().ok()?,
            permission: text(properties, "permission").to_owned(),
            title: title.map_or_else(|| patterns.join(", "), str::to_owned),
            diff: metadata.get("diff").and_then(Value::as_str).map(str::to_owned),
            patterns,
            always: texts(properties, "always", PATTERNS_MAX),
            asked_at: now,
        };
        if self.wait_for(id, conversation, true) {
            self.record(EventKind::PermissionAsked { request });
        }
        Some(())
    }

    pub(super) fn permission_replied(&mut self, properties: &Value) -> Option<()> {
        let id: RequestId = text(properties, "requestID").parse().ok()?;
        // One that was withdrawn before has been answered.
        let Some(pending) = self.requests.remove(id.as_str()) else { return Some(()) };
        let answer = pending.answer.unwrap_or_else(|| match text(properties, "reply") {
            // An earlier answer `always` of this run covers it.
            "once" | "always" => Answer { by: "rule".to_owned(), response: Some(PermissionResponse::Session), reason: None },
            _ => Answer { by: "agent".to_owned(), response: None, reason: Some("another request was rejected".to_owned()) },
        });
        self.permission_answered(id, answer);
        Some(())
    }

    fn permission_answered(&mut self, id: RequestId, answer: Answer) {
        let Answer { by, response, reason } = answer;
        self.record(EventKind::PermissionAnswered { id, response: response.unwrap_or(PermissionResponse::Reject), by, reason });
    }

    pub(super) fn question_asked(&mut self, properties: &Value, now: Timestamp) -> Option<()> {
        let id: RequestId = text(properties, "id").parse().ok()?;
        let conversation = text(properties, "sessionID");
        let option = |option: &Value| QuestionOption {
            label: text(option, "label").to_owned(),
            description: text(option, "description").to_owned(),
        };
        let question = |question: &Value| Question {
            header: text(question, "header").to_owned(),
            text: text(question, "question").to_owned(),
            options: list(question, "options").iter().take(QUESTIONS_MAX).map(option).collect(),
            multiple: flag(question, "multiple"),
            // OpenCode accepts own words unless the question forbids them.
            custom: field(question, "custom").as_bool().unwrap_or(true),
        };
        let request = QuestionRequest {
            id: id.clone(),
            conversation: conversation.parse().ok()?,
            questions: list(properties, "questions").iter().take(QUESTIONS_MAX).map(question).collect(),
            asked_at: now,
        };
        if self.wait_for(id, conversation, false) {
            self.record(EventKind::QuestionAsked { request });
        }
        Some(())
    }

    pub(super) fn question_answered(&mut self, properties: &Value) -> Option<()> {
        let id: RequestId = text(properties, "requestID").parse().ok()?;
        let Some(pending) = self.requests.remove(id.as_str()) else { return Some(()) };
        let words = |answer: &Value| answer.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        let answers = properties.get("answers").and_then(Value::as_array).map(|answers| answers.iter().map(words).collect());
        let by = pending.answer.map_or_else(|| "agent".to_owned(), |answer| answer.by);
        self.record(EventKind::QuestionAnswered { id, answers, by });
        Some(())
    }

    /// Nobody waits for these answers any more, and OpenCode says nothing of it.
    pub(super) fn withdraw_requests(&mut self, which: impl Fn(&Pending) -> bool, why: &str) {
        let ids: Vec<_> = self.requests.iter().filter(|(_, pending)| which(pending)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let Some(Pending { id, is_permission, answer, .. }) = self.requests.remove(&id) else { continue };
            let answer = answer.unwrap_or_else(|| Answer { by: "agent".to_owned(), response: None, reason: Some(why.to_owned()) });
            if is_permission {
                self.permission_answered(id, answer);
            } else {
                self.record(EventKind::QuestionAnswered { id, answers: None, by: answer.by });
            }
        }
    }

    /// What still waits is asked again unless it is known; what no longer waits was answered while we did not listen.
    pub(super) fn resync_requests(&mut self, state: &Snapshot, now: Timestamp) {
        let waiting: Vec<_> = [&state.permissions, &state.questions].into_iter().filter_map(Value::as_array).flatten().collect();
        let gone = |pending: &Pending| !waiting.iter().any(|request| text(request, "id") == pending.id.as_str());
        self.withdraw_requests(gone, "it was answered while the connection to the agent was down");
        for (requests, is_permission) in [(&state.permissions, true), (&state.questions, false)] {
            // Requests of conversations at rest are ghosts of an aborted turn.
            for request in requests.as_array().into_iter().flatten() {
                let waits = self.busy.contains(text(request, "sessionID"));
                match is_permission {
                    true if waits => self.permission_asked(request, now),
                    false if waits => self.question_asked(request, now),
                    true | false => None,
                };
            }
        }
    }

    fn wait_for(&mut self, id: RequestId, conversation: &str, is_permission: bool) -> bool {
        let key = id.as_str().to_owned();
        if self.requests.contains_key(&key) {
            return false;
        }
        self.requests.insert(key, Pending { id, conversation: conversation.to_owned(), is_permission, answer: None });
        true
    }
}
