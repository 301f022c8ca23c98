//! What the daemon asks of the agent.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use openagent_proto::sidecar::{AgentStarted, PermissionReply, Prompt, Prompted, QuestionReply, StartAgent, Title};

use super::body::JsonBody;
use super::{ApiError, Control};

pub async fn start(State(control): State<Control>, JsonBody(request): JsonBody<StartAgent>) -> Result<Json<AgentStarted>, ApiError> {
    let agent = control.0.agent.clone();
    control.see_through("start", async move { agent.start(request).await }).await.map(Json)
}

pub async fn prompt(State(control): State<Control>, JsonBody(request): JsonBody<Prompt>) -> Result<(StatusCode, Json<Prompted>), ApiError> {
    let agent = control.0.agent.clone();
    let prompted = control.see_through("prompt", async move { agent.prompt(request).await }).await?;
    Ok((StatusCode::ACCEPTED, Json(prompted)))
}

pub async fn abort(State(control): State<Control>) -> Result<StatusCode, ApiError> {
    let agent = control.0.agent.clone();
    control.see_through("abort", async move { agent.abort().await }).await.map(|()| StatusCode::NO_CONTENT)
}

pub async fn permission(State(control): State<Control>, JsonBody(request): JsonBody<PermissionReply>) -> Result<StatusCode, ApiError> {
    let agent = control.0.agent.clone();
    control.see_through("permission", async move { agent.answer_permission(request).await }).await.map(|()| StatusCode::NO_CONTENT)
}

pub async fn question(State(control): State<Control>, JsonBody(request): JsonBody<QuestionReply>) -> Result<StatusCode, ApiError> {
    let agent = control.0.agent.clone();
    control.see_through("question", async move { agent.answer_question(request).await }).await.map(|()| StatusCode::NO_CONTENT)
}

pub async fn title(State(control): State<Control>, JsonBody(request): JsonBody<Title>) -> Result<StatusCode, ApiError> {
    let agent = control.0.agent.clone();
    control.see_through("title", async move { agent.rename(request).await }).await.map(|()| StatusCode::NO_CONTENT)
}
