//! Health, readiness and the end.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use openagent_core::time::Timestamp;
use openagent_proto::sidecar::{ErrorCode, Health, PROTOCOL, Ready, Shutdown, ShuttingDown};
use time::OffsetDateTime;

use super::body::OptionalJsonBody;
use super::{ApiError, Control};

/// Time for the agent to end where the daemon names none, in milliseconds.
const GRACE_DEFAULT_MILLIS: f64 = 10_000.0;

/// Longest time that the daemon can name, in milliseconds.
const GRACE_MAX_MILLIS: f64 = 300_000.0;

fn now() -> String {
    Timestamp::from(OffsetDateTime::now_utc()).to_string()
}

pub async fn health(State(Control(parts)): State<Control>) -> Json<Health> {
    Json(Health {
        status: "ok".to_owned(),
        timestamp: now(),
        uptime_ms: u64::try_from(parts.started_at.elapsed().as_millis()).unwrap_or(u64::MAX),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL,
        agent: parts.agent.health(),
    })
}

pub async fn ready(State(Control(parts)): State<Control>) -> Result<Json<Ready>, ApiError> {
    if !parts.agent.ready() {
        return Err(ApiError::new(ErrorCode::NotReady, format!("the agent does not accept prompts yet: {}", parts.agent.step())));
    }
    Ok(Json(Ready { status: "ok".to_owned(), ready: true, timestamp: now(), session_id: parts.settings.session.to_string() }))
}

pub async fn shutdown(
    State(Control(parts)): State<Control>,
    OptionalJsonBody(request): OptionalJsonBody<Shutdown>,
) -> Result<(StatusCode, Json<ShuttingDown>), ApiError> {
    let millis = request.grace_period_ms.unwrap_or(GRACE_DEFAULT_MILLIS);
    if !(0.0..=GRACE_MAX_MILLIS).contains(&millis) {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "gracePeriodMs must be a finite number from 0 to 300000"));
    }
    // The first one counts.
    let grace = Duration::from_secs_f64(millis / 1000.0);
    parts.shutdown.send_if_modified(|asked| asked.is_none() && asked.replace(grace).is_none());
    Ok((StatusCode::ACCEPTED, Json(ShuttingDown { shutting_down: true })))
}
