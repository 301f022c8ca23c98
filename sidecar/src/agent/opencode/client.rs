//! Client of OpenCode's HTTP API on loopback. Every answer is bounded in size and time, and must be JSON: an unknown path answers 200 with a page.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use openagent_core::secret::Secret;
use serde_json::{Value, json};
use thiserror::Error;

/// Largest answer, in bytes: the durable log of a turn with many outputs of a running command.
pub const ANSWER_MAX_BYTES: usize = 64 * 1024 * 1024;

/// Time for an answer. The first prompt of a process takes up to 4 s on a slow machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for the first answers to the health check.
const HEALTH_TIMEOUTS: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// How long a connection is kept for the next call. Short: one that was kept over a pause of the container may be closed by the server, whose timers
/// fire at once when it goes on, under the very call that takes it.
const IDLE_CONNECTION_MAX: Duration = Duration::from_secs(5);

/// Most bytes of an error's text that are shown.
const MESSAGE_MAX_BYTES: usize = 2000;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No connection, or it broke.
    #[error("OpenCode's server cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer in time.
    #[error("OpenCode's server did not answer {0} in time")]
    Timeout(&'static str),
    /// It refused.
    #[error("OpenCode's server answered {status} to {what}: {message}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// HTTP status.
        status: u16,
        /// Its message.
        message: String,
    },
    /// The answer is no JSON.
    #[error("OpenCode's server did not answer {0} with JSON")]
    NotJson(&'static str),
}

/// A client of one server process.
#[derive(Clone)]
pub struct Client {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    address: String,
    password: Secret,
}

impl Client {
    /// A client of the server at `address` (`http://127.0.0.1:PORT`).
    #[must_use]
    pub fn new(address: String, password: Secret) -> Self {
        let mut http = HttpClient::builder(TokioExecutor::new());
        http.pool_idle_timeout(IDLE_CONNECTION_MAX).pool_timer(TokioTimer::new());
        Self { http: http.build_http(), address, password }
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Request<Full<Bytes>>, ClientError> {
        let credentials = base64::engine::general_purpose::STANDARD.encode(format!("opencode:{}", self.password.expose()));
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.address))
            .header(header::AUTHORIZATION, format!("Basic {credentials}"));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        request.body(Full::new(body)).map_err(|error| ClientError::Unreachable(error.into()))
    }

    async fn call(&self, what: &'static str, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        self.call_within(ANSWER_TIMEOUT, what, method, path, body).await
    }

    async fn call_within(
        &self,
        limit: Duration,
        what: &'static str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let request = self.request(method, path, body)?;
        let answered = tokio::time::timeout(limit, async {
            let answer = self.http.request(request).await.map_err(|error| ClientError::Unreachable(error.into()))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_MAX_BYTES).collect().await.map_err(ClientError::Unreachable)?.to_bytes();
            Ok((head.status, body))
        });
        let (status, body) = answered.await.map_err(|_| ClientError::Timeout(what))??;
        if !status.is_success() {
            return Err(ClientError::Refused { what, status: status.as_u16(), message: message(&body) });
        }
        if status == StatusCode::NO_CONTENT || body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|_| ClientError::NotJson(what))
    }

    /// Whether the error means that what was asked for does not exist.
    #[must_use]
    pub const fn is_missing(error: &ClientError) -> bool {
        matches!(error, ClientError::Refused { status: 404, .. })
    }

    /// The server's version. Asked again over a new connection when there is no answer: a request that comes when the server has only just begun to
    /// listen may never have one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn version(&self) -> Result<String, ClientError> {
        let (what, path) = ("the health check", "/global/health");
        for limit in HEALTH_TIMEOUTS {
            match self.call_within(limit, what, Method::GET, path, None).await {
                Err(ClientError::Timeout(_)) => {}
                answered => return Ok(super::json::text(&answered?, "version").to_owned()),
            }
        }
        let health = self.call(what, Method::GET, path, None).await?;
        Ok(super::json::text(&health, "version").to_owned())
    }

    /// Checks that the configuration is accepted; an invalid one is an error of every later call.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn check_config(&self) -> Result<(), ClientError> {
        self.call("the check of its configuration", Method::GET, "/config", None).await.map(drop)
    }

    /// Makes the conversation `id` in `directory` unless it exists.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_session(&self, id: &str, directory: &str) -> Result<(), ClientError> {
        let body = json!({ "id": id, "location": { "directory": directory } });
        self.call("the creation of the conversation", Method::POST, "/api/session", Some(&body)).await.map(drop)
    }

    /// Gives the conversation a title.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rename(&self, id: &str, title: &str) -> Result<(), ClientError> {
        let body = json!({ "title": title });
        self.call("the new title", Method::PATCH, &format!("/session/{id}"), Some(&body)).await.map(drop)
    }

    /// Hands a prompt over. Not idempotent: ask for the message before a second try.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn prompt(&self, id: &str, message: &str, text: &str, agent: &str, model: (&str, &str)) -> Result<(), ClientError> {
        let body = json!({
            "messageID": message,
            "parts": [{ "type": "text", "text": text }],
            "agent": agent,
            "model": { "providerID": model.0, "modelID": model.1 },
        });
        self.call("the prompt", Method::POST, &format!("/session/{id}/prompt_async"), Some(&body)).await.map(drop)
    }

    /// Hands a prompt over and waits for the end of its turn.
    ///
    /// # Errors
    /// [`ClientError`], also when the turn ended with an error.
    pub async fn converse(&self, id: &str, text: &str, agent: &str, model: (&str, &str)) -> Result<(), ClientError> {
        let what = "a prompt";
        let body = json!({
            "parts": [{ "type": "text", "text": text }],
            "agent": agent,
            "model": { "providerID": model.0, "modelID": model.1 },
        });
        let answer = self.call(what, Method::POST, &format!("/session/{id}/message"), Some(&body)).await?;
        match answer.pointer("/info/error") {
            Some(error) => Err(ClientError::Refused { what, status: 200, message: message(error.to_string().as_bytes()) }),
            None => Ok(()),
        }
    }

    /// Removes a conversation with everything that belongs to it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_session(&self, id: &str) -> Result<(), ClientError> {
        self.call("the end of a conversation", Method::DELETE, &format!("/session/{id}"), None).await.map(drop)
    }

    /// Has the server forget what it knows of the workspace; it looks again at the next call.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn forget_workspace(&self) -> Result<(), ClientError> {
        self.call("another look at the workspace", Method::POST, "/instance/dispose", None).await.map(drop)
    }

    /// Whether the message exists.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn has_message(&self, id: &str, message: &str) -> Result<bool, ClientError> {
        match self.call("a message", Method::GET, &format!("/session/{id}/message/{message}"), None).await {
            Ok(found) => Ok(super::json::text(super::json::field(&found, "info"), "id") == message),
            Err(ClientError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Stops the turn, if there is one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn abort(&self, id: &str) -> Result<(), ClientError> {
        self.call("the abort", Method::POST, &format!("/session/{id}/abort"), None).await.map(drop)
    }

    /// Answers a permission request: `once`, `always` or `reject`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn answer_permission(&self, request: &str, reply: &str, message: Option<&str>) -> Result<(), ClientError> {
        let mut body = json!({ "reply": reply });
        if let Some(message) = message {
            body["message"] = message.into();
        }
        self.call("the answer to a permission request", Method::POST, &format!("/permission/{request}/reply"), Some(&body)).await.map(drop)
    }

    /// Answers a question, or dismisses it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn answer_question(&self, request: &str, answers: Option<&[Vec<String>]>) -> Result<(), ClientError> {
        let what = "the answer to a question";
        match answers {
            Some(answers) => {
                let body = json!({ "answers": answers });
                self.call(what, Method::POST, &format!("/question/{request}/reply"), Some(&body)).await.map(drop)
            }
            None => self.call(what, Method::POST, &format!("/question/{request}/reject"), None).await.map(drop),
        }
    }

    /// What the server does not say again by itself.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn snapshot(&self, id: &str) -> Result<super::translate::Snapshot, ClientError> {
        let todo = format!("/session/{id}/todo");
        let (permissions, questions, todos, statuses) = tokio::try_join!(
            self.call("the permission requests", Method::GET, "/permission", None),
            self.call("the questions", Method::GET, "/question", None),
            self.call("the list of things to do", Method::GET, &todo, None),
            self.call("the status", Method::GET, "/session/status", None),
        )?;
        Ok(super::translate::Snapshot { permissions, questions, todos: Some(todos), statuses })
    }

    /// Durable events behind `known`, the last known sequence number of each conversation.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn history(&self, known: &BTreeMap<String, u64>) -> Result<Vec<Value>, ClientError> {
        match self.call("the durable events", Method::POST, "/sync/history", Some(&json!(known))).await? {
            Value::Array(events) => Ok(events),
            _ => Err(ClientError::NotJson("the durable events")),
        }
    }

    /// Ends everything that runs, in order: commands are killed, texts are saved.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn dispose(&self) -> Result<(), ClientError> {
        self.call("the end of its work", Method::POST, "/global/dispose", None).await.map(drop)
    }

    /// The stream of everything that happens, once the server has begun it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events(&self, limit: Duration) -> Result<Incoming, ClientError> {
        let request = self.request(Method::GET, "/global/event", None)?;
        let answer = tokio::time::timeout(limit, self.http.request(request)).await;
        let answer = answer.map_err(|_| ClientError::Timeout("the events"))?.map_err(|error| ClientError::Unreachable(error.into()))?;
        if answer.status() == StatusCode::OK {
            Ok(answer.into_body())
        } else {
            Err(ClientError::Refused { what: "the events", status: answer.status().as_u16(), message: String::new() })
        }
    }
}

/// The message of an error answer, in any of OpenCode's shapes.
fn message(body: &[u8]) -> String {
    let value = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let message = [value.pointer("/data/message"), value.get("message"), value.get("name"), value.get("_tag")];
    let message = message.into_iter().flatten().find_map(Value::as_str).unwrap_or("no message");
    super::bound::cut(message, MESSAGE_MAX_BYTES)
}
