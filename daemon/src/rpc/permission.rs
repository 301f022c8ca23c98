//! `PermissionService`.

use std::sync::Arc;

use openagent_core::id::RequestId;
use openagent_core::permission::{PermissionResponse, PermissionRule};
use openagent_core::session::Fault;
use openagent_proto::v1;
use tonic::{Request, Response, Status};

use super::status::{invalid, status};
use super::{Context, convert};
use crate::session::presence::CLIENT_MAX_CHARS;
use crate::session::{Command, Pending, PermissionAnswer, QuestionAnswer};

/// Longest reason for the agent, in bytes.
const REASON_MAX_BYTES: usize = 4096;

/// Most chosen answers to one question, and the longest one in bytes.
const CHOSEN_MAX: (usize, usize) = (32, 4096);

/// The service.
pub struct Permissions(pub Context);

fn request_id(text: &str) -> Result<RequestId, Status> {
    text.parse().map_err(|error: openagent_core::id::InvalidId| invalid(error.to_string()))
}

/// A client's name as others see it: no control characters, and none of the names that the daemon gives itself.
fn by(name: &str) -> Result<String, Status> {
    let clean = name.chars().count() <= CLIENT_MAX_CHARS && !name.chars().any(char::is_control);
    match name {
        "" => Ok("client".to_owned()),
        "rule" | "agent" => Err(invalid(format!("{name:?} is not the name of a client"))),
        name if clean => Ok(name.to_owned()),
        _ => Err(invalid("a client's name has at most 64 characters and no control characters")),
    }
}

#[tonic::async_trait]
impl v1::permission_service_server::PermissionService for Permissions {
    async fn list_pending(&self, request: Request<v1::ListPendingRequest>) -> Result<Response<v1::ListPendingResponse>, Status> {
        let wanted = request.into_inner().session_id;
        let views = if wanted.is_empty() {
            self.0.registry.shared().directory.all()
        } else {
            vec![self.0.registry.find(&wanted).map_err(|fault| status(&fault))?.view()]
        };
        let mut pending: Vec<_> = views
            .iter()
            .flat_map(|view| {
                view.pending.iter().map(|pending| {
                    let (asked_at, request) = match pending.clone() {
                        Pending::Permission(request) => {
                            (request.asked_at, v1::pending::Request::Permission(convert::event::permission_request(request)))
                        }
                        Pending::Question(request) => {
                            (request.asked_at, v1::pending::Request::Question(convert::event::question_request(request)))
                        }
                    };
                    let session = &view.record.session;
                    let wire =
                        v1::Pending { session_id: session.id.to_string(), session_title: session.title.clone(), request: Some(request) };
                    (asked_at, wire)
                })
            })
            .collect();
        pending.sort_by_key(|(asked_at, _)| *asked_at);
        Ok(Response::new(v1::ListPendingResponse { pending: pending.into_iter().map(|(_, wire)| wire).collect() }))
    }

    async fn answer_permission(
        &self,
        request: Request<v1::AnswerPermissionRequest>,
    ) -> Result<Response<v1::AnswerPermissionResponse>, Status> {
        let request = request.into_inner();
        let response = convert::permission_response_from(request.response)
            .ok_or_else(|| invalid("the response must be once, session, always or reject"))?;
        if request.reason.len() > REASON_MAX_BYTES {
            return Err(invalid("a reason has at most 4096 bytes"));
        }
        if !request.reason.is_empty() && response != PermissionResponse::Reject {
            return Err(invalid("only a rejection has a reason"));
        }
        let reason = (!request.reason.is_empty()).then_some(request.reason);
        let answer = PermissionAnswer { id: request_id(&request.request_id)?, response, reason, by: by(&request.by)? };
        let handle = self.0.registry.find(&request.session_id).map_err(|fault| status(&fault))?;
        handle.ask(|reply| Command::AnswerPermission(answer, reply)).await.map_err(|fault| status(&fault))?;
        Ok(Response::new(v1::AnswerPermissionResponse {}))
    }

    async fn answer_question(&self, request: Request<v1::AnswerQuestionRequest>) -> Result<Response<v1::AnswerQuestionResponse>, Status> {
        let request = request.into_inner();
        if request.dismiss && !request.answers.is_empty() {
            return Err(invalid("a question is either answered or dismissed"));
        }
        let (most, longest) = CHOSEN_MAX;
        if request.answers.iter().any(|answer| answer.chosen.len() > most || answer.chosen.iter().any(|text| text.len() > longest)) {
            return Err(invalid("an answer has at most 32 choices of at most 4096 bytes each"));
        }
        let answers = (!request.dismiss).then(|| request.answers.into_iter().map(|answer| answer.chosen).collect());
        let answer = QuestionAnswer { id: request_id(&request.request_id)?, answers, by: by(&request.by)? };
        let handle = self.0.registry.find(&request.session_id).map_err(|fault| status(&fault))?;
        handle.ask(|reply| Command::AnswerQuestion(answer, reply)).await.map_err(|fault| status(&fault))?;
        Ok(Response::new(v1::AnswerQuestionResponse {}))
    }

    async fn list_rules(&self, _: Request<v1::ListRulesRequest>) -> Result<Response<v1::ListRulesResponse>, Status> {
        let rules = Arc::clone(&self.0.registry.shared().rules.borrow());
        let wire = |rule: &PermissionRule| v1::Rule { permission: rule.permission.clone(), pattern: rule.pattern.clone() };
        Ok(Response::new(v1::ListRulesResponse { rules: rules.iter().map(wire).collect() }))
    }

    async fn remove_rule(&self, request: Request<v1::RemoveRuleRequest>) -> Result<Response<v1::RemoveRuleResponse>, Status> {
        let rule = request.into_inner().rule.ok_or_else(|| invalid("the rule is missing"))?;
        let rule = PermissionRule { permission: rule.permission, pattern: rule.pattern };
        let shared = self.0.registry.shared();
        if !shared.store.remove_rule(&rule).await.map_err(|error| status(&error.fault()))? {
            return Err(status(&Fault::new("NOT_FOUND", "there is no such rule", "list them: openagent rules ls")));
        }
        shared.rules.send_modify(|all| *all = Arc::new(all.iter().filter(|known| **known != rule).cloned().collect()));
        Ok(Response::new(v1::RemoveRuleResponse {}))
    }
}
