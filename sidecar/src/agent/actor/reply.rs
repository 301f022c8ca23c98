//! What users ask of a running agent: prompts, answers, an abort. The calls run beside the actor.

use openagent_core::permission::PermissionResponse;
use openagent_core::provider::split_model;
use openagent_core::seal::random;
use openagent_proto::sidecar::{ErrorCode, PermissionReply, Prompt, Prompted, QuestionReply};

use super::{Actor, Notice, Phase, Reply, failed, now};
use crate::agent::opencode::client::{Client, ClientError};
use crate::agent::opencode::message_id::message_id;
use crate::agent::opencode::translate::Answer;
use crate::control::ApiError;

impl Actor {
    fn client(&self) -> Result<Client, ApiError> {
        match &self.phase {
            Phase::Up(up) => Ok(up.client.clone()),
            Phase::Down | Phase::Rising(_) | Phase::Warm(_) => {
                Err(ApiError::new(ErrorCode::NotReady, format!("the agent does not accept prompts: {}", self.condition.borrow().step)))
            }
        }
    }

    fn session(&self) -> String {
        self.settings.session.to_string()
    }

    pub(super) fn prompt(&mut self, prompt: Prompt, reply: Reply<Prompted>) {
        let checked = self.client().and_then(|client| {
            if self.waiting.is_stuck() {
                let message = "the session's disk takes nothing, so what the agent does could not be recorded: free some space there, then send the prompt again";
                return Err(ApiError::new(ErrorCode::ResourceExhausted, message));
            }
            let known =
                |provider: &str| self.wanted.as_ref().is_some_and(|wanted| wanted.providers.iter().any(|known| known.id == provider));
            match split_model(&prompt.model) {
                Some((provider, model)) if known(provider) => Ok((client, provider.to_owned(), model.to_owned())),
                Some(_) | None => {
                    Err(ApiError::new(ErrorCode::InvalidRequest, format!("the agent has no provider for the model {:?}", prompt.model)))
                }
            }
        });
        let (client, provider, model) = match checked {
            Ok(checked) => checked,
            Err(error) => return drop(reply.send(Err(error))),
        };
        // Two prompts of one millisecond keep their order.
        let millis = u64::try_from(now().as_millis()).unwrap_or(0).max(self.last_prompt_millis + 1);
        self.last_prompt_millis = millis;
        let message = message_id(millis, random());
        self.translator.prompted();
        let (session, notices) = (self.session(), self.notices.clone());
        self.tasks.spawn("prompt", async move {
            let sent = send(&client, &session, &message, &prompt, (&provider, &model)).await;
            if sent.is_err() {
                // The actor is gone only when the whole agent is.
                let _ = notices.send(Notice::PromptRefused).await;
            }
            let _ = reply.send(sent.map(|()| Prompted { message_id: message }).map_err(|error| failed(&error)));
        });
    }

    pub(super) fn abort(&mut self, reply: Reply<()>) {
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => return drop(reply.send(Err(error))),
        };
        self.translator.aborting(true);
        let (session, notices) = (self.session(), self.notices.clone());
        self.tasks.spawn("abort", async move {
            let aborted = client.abort(&session).await.map_err(|error| failed(&error));
            if aborted.is_err() {
                let _ = notices.send(Notice::NotAborted).await;
            }
            let _ = reply.send(aborted);
        });
    }

    pub(super) fn answer_permission(&mut self, request: PermissionReply, reply: Reply<()>) {
        let PermissionReply { id, response, reason, by } = request;
        let checked = self.client().and_then(|client| {
            let response = parse(&response)?;
            if self.translator.waits(&id, true) {
                Ok((client, response))
            } else {
                Err(ApiError::new(ErrorCode::NotFound, format!("no permission request {id} waits for an answer")))
            }
        });
        let (client, response) = match checked {
            Ok(checked) => checked,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let word = match response {
            PermissionResponse::Once => "once",
            PermissionResponse::Session | PermissionResponse::Always => "always",
            PermissionResponse::Reject => "reject",
        };
        let reason = reason.filter(|reason| response == PermissionResponse::Reject && !reason.is_empty());
        self.translator.expect_answer(&id, Some(Answer { by, response: Some(response), reason: reason.clone() }));
        let notices = self.notices.clone();
        self.tasks.spawn("permission answer", async move {
            let answered = client.answer_permission(&id, word, reason.as_deref()).await;
            let answered = settle(answered, id, &notices).await;
            let _ = reply.send(answered);
        });
    }

    pub(super) fn answer_question(&mut self, request: QuestionReply, reply: Reply<()>) {
        let QuestionReply { id, answers, by } = request;
        let checked = self.client().and_then(|client| {
            if self.translator.waits(&id, false) {
                Ok(client)
            } else {
                Err(ApiError::new(ErrorCode::NotFound, format!("no question {id} waits for an answer")))
            }
        });
        let client = match checked {
            Ok(client) => client,
            Err(error) => return drop(reply.send(Err(error))),
        };
        self.translator.expect_answer(&id, Some(Answer { by, response: None, reason: None }));
        let notices = self.notices.clone();
        self.tasks.spawn("question answer", async move {
            let answered = client.answer_question(&id, answers.as_deref()).await;
            let answered = settle(answered, id, &notices).await;
            let _ = reply.send(answered);
        });
    }

    pub(super) fn rename(&mut self, title: String, reply: Reply<()>) {
        if let Phase::Rising(rising) = &mut self.phase {
            rising.title = Some(title);
            return drop(reply.send(Ok(())));
        }
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => return drop(reply.send(Err(error))),
        };
        // A restart must not bring the old one back.
        if let Some(wanted) = &mut self.wanted {
            wanted.title = Some(title.clone());
        }
        let session = self.session();
        self.tasks.spawn("rename", async move {
            let _ = reply.send(client.rename(&session, &title).await.map_err(|error| failed(&error)));
        });
    }
}

/// Hands a prompt over. It is not idempotent: a second time only if the first has left nothing behind.
async fn send(client: &Client, session: &str, message: &str, prompt: &Prompt, model: (&str, &str)) -> Result<(), ClientError> {
    let once = || client.prompt(session, message, &prompt.text, &prompt.agent, model);
    match once().await {
        Err(ClientError::Unreachable(_) | ClientError::Timeout(_)) => {
            if client.has_message(session, message).await? {
                return Ok(());
            }
            once().await
        }
        answered => answered,
    }
}

/// What the result of an answer means for the request.
async fn settle(answered: Result<(), ClientError>, id: String, notices: &tokio::sync::mpsc::Sender<Notice>) -> Result<(), ApiError> {
    let Err(error) = answered else { return Ok(()) };
    if Client::is_missing(&error) {
        let message = format!("the request {id} no longer waits for an answer");
        let _ = notices.send(Notice::Gone(id)).await;
        return Err(ApiError::new(ErrorCode::NotFound, message));
    }
    let _ = notices.send(Notice::NotAnswered(id)).await;
    Err(failed(&error))
}

fn parse(response: &str) -> Result<PermissionResponse, ApiError> {
    match response {
        "once" => Ok(PermissionResponse::Once),
        "session" => Ok(PermissionResponse::Session),
        "always" => Ok(PermissionResponse::Always),
        "reject" => Ok(PermissionResponse::Reject),
        other => {
            Err(ApiError::new(ErrorCode::InvalidRequest, format!("{other:?} is not an answer (expected once, session, always or reject)")))
        }
    }
}
