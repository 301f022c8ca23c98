//! `POST /internal/shutdown`, and signals.

use http::{Method, StatusCode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use openagent_proto::sidecar::path;
use serde_json::json;

use crate::fixture::{Folders, TOKEN, journal};

#[tokio::test]
async fn a_grace_that_is_no_time_is_refused_and_the_sidecar_keeps_serving() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    for grace in ["-1", "-0.5", "1e999", "-1e999", "NaN", "Infinity", "300001", "\"5\"", "null_"] {
        let body = format!("{{\"gracePeriodMs\":{grace}}}");
        assert_eq!(daemon.call_raw(Method::POST, path::SHUTDOWN, body).await.error(), (400, "INVALID_REQUEST"), "{grace}");
        daemon.assert_serving().await;
    }
}

#[tokio::test]
async fn the_daemon_ends_it_in_order_and_the_last_event_is_delivered() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    let open = json!({ "id": "trm_01ARZ3NDEKTSV4RRFFQ69G5FAV", "columns": 80, "rows": 24 });
    assert_eq!(daemon.call(Method::POST, path::TERMINALS, &open).await.status, StatusCode::CREATED);
    let mut events = daemon.events(0).await;
    let answer = daemon.call(Method::POST, path::SHUTDOWN, &json!({ "gracePeriodMs": 500.0 })).await;
    assert_eq!((answer.status, answer.body), (StatusCode::ACCEPTED, json!({ "shuttingDown": true })));
    let mut last = None;
    while let Some(event) = events.next().await {
        last = Some(event);
    }
    let last = last.unwrap();
    assert_eq!((last.id, &last.data["kind"]), (Some(2), &json!("terminal")));
    assert!(last.data["exit_code"].is_i64());
    let (status, log) = sidecar.ended().await;
    assert!(status.success(), "{status} {log}");
    assert!(!log.contains(TOKEN) && !log.contains(daemon.bearer.as_ref().unwrap()), "{log}");
    assert_eq!(journal(&folders).last(), 2);
    assert!(!folders.socket().exists());
}

#[tokio::test]
async fn no_body_means_the_usual_grace() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    assert_eq!(daemon.call_raw(Method::POST, path::SHUTDOWN, "").await.status, StatusCode::ACCEPTED);
    assert!(sidecar.ended().await.0.success());
}

#[tokio::test]
async fn a_signal_ends_it_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let folders = Folders::new();
        let sidecar = folders.start().await;
        let pid = i32::try_from(sidecar.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
        assert!(sidecar.ended().await.0.success(), "{signal}");
    }
}

#[tokio::test]
async fn all_mistakes_of_the_environment_are_told_at_once() {
    let folders = Folders::new();
    let output =
        folders.command().env("OPENAGENT_SESSION_ID", "x").env("OPENAGENT_TOKEN_SHA256", "y").env_remove("OPENAGENT_STATE_DIR").output();
    let output = crate::fixture::within("the end", output).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    for name in ["OPENAGENT_SESSION_ID", "OPENAGENT_TOKEN_SHA256", "OPENAGENT_STATE_DIR"] {
        assert!(told.contains(name), "{told}");
    }
}
