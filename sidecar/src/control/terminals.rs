//! Terminals: open, list, close, attach.

use axum::extract::rejection::QueryRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::{Extension, Json};
use http::StatusCode;
use openagent_core::id::TerminalId;
use openagent_proto::sidecar::terminal::FRAME_MAX_BYTES;
use openagent_proto::sidecar::{AttachTerminal, ErrorCode, OpenTerminal, TerminalInfo};

use super::body::JsonBody;
use super::{ApiError, Control};
use crate::link::ConnectionEnd;

pub async fn list(State(Control(parts)): State<Control>) -> Json<Vec<TerminalInfo>> {
    Json(parts.terminals.list())
}

pub async fn open(
    State(control): State<Control>,
    JsonBody(request): JsonBody<OpenTerminal>,
) -> Result<(StatusCode, Json<TerminalInfo>), ApiError> {
    let terminals = control.0.terminals.clone();
    let info = control.see_through("open terminal", async move { terminals.open(&request).await }).await?;
    Ok((StatusCode::CREATED, Json(info)))
}

fn id(text: &str) -> Result<TerminalId, ApiError> {
    text.parse().map_err(|_| ApiError::new(ErrorCode::InvalidRequest, "this is not a terminal's id"))
}

pub async fn close(State(control): State<Control>, Path(terminal): Path<String>) -> Result<StatusCode, ApiError> {
    let id = id(&terminal)?;
    let terminals = control.0.terminals.clone();
    let closing = async move {
        terminals.close(&id).await;
        Ok(StatusCode::NO_CONTENT)
    };
    control.see_through("close terminal", closing).await
}

pub async fn attach(
    State(Control(parts)): State<Control>,
    Extension(ConnectionEnd(end)): Extension<ConnectionEnd>,
    request: Result<Query<AttachTerminal>, QueryRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let Ok(Query(request)) = request else {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "the query must have id, columns and rows, and may have offset and readOnly"));
    };
    let terminal = parts.terminals.get(&id(&request.id)?).ok_or_else(|| ApiError::new(ErrorCode::NotFound, "there is no such terminal"))?;
    let upgrade = upgrade.map_err(|_| ApiError::new(ErrorCode::InvalidRequest, "this path is for WebSockets"))?;
    let attachment =
        terminal.attach(&request).ok_or_else(|| ApiError::new(ErrorCode::ResourceExhausted, "the terminal has too many clients"))?;
    let upgrade = upgrade.max_message_size(FRAME_MAX_BYTES).max_frame_size(FRAME_MAX_BYTES);
    Ok(upgrade.on_upgrade(|socket| async move {
        end.run_until_cancelled(attachment.serve(socket)).await;
    }))
}
