//! Who may call what, and the shape of refusals.

use http::{Method, StatusCode};
use openagent_proto::sidecar::{BODY_MAX_BYTES, path};
use serde_json::json;

use crate::fixture::{Folders, SESSION};

const GUARDED: [(Method, &str); 15] = [
    (Method::PUT, path::UPDATE_KEYS),
    (Method::POST, path::SHUTDOWN),
    (Method::GET, path::EVENTS),
    (Method::POST, path::ACK),
    (Method::POST, path::START),
    (Method::POST, path::PROMPT),
    (Method::POST, path::ABORT),
    (Method::POST, path::PERMISSION),
    (Method::POST, path::QUESTION),
    (Method::POST, path::TITLE),
    (Method::GET, path::TERMINALS),
    (Method::POST, path::TERMINALS),
    (Method::DELETE, "/control/terminals/trm_01ARZ3NDEKTSV4RRFFQ69G5FAV"),
    (Method::GET, path::TERMINAL),
    (Method::POST, path::TERMINAL),
];

#[tokio::test]
async fn everything_but_the_open_paths_wants_the_right_bearer() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let mut daemon = sidecar.dial().await;
    for registered in [false, true] {
        if registered {
            daemon.register().await;
        }
        let right = daemon.bearer.take();
        for wrong in [None, Some("wrong".to_owned()), Some(String::new()), right.as_ref().map(|right| format!("{right}x"))] {
            daemon.bearer = wrong;
            for (method, path) in GUARDED {
                let answer = daemon.call_raw(method.clone(), path, "").await;
                assert_eq!(answer.error(), (401, "UNAUTHORIZED"), "{method} {path}");
            }
        }
        daemon.assert_serving().await;
    }
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_answered_in_the_same_shape() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    for path in ["/", "/internal", "/internal/healthx", "/control/nothing"] {
        assert_eq!(daemon.get(path).await.error(), (404, "NOT_FOUND"), "{path}");
    }
    for (method, path) in
        [(Method::POST, path::HEALTH), (Method::GET, path::REGISTER), (Method::POST, path::UPDATE_KEYS), (Method::PUT, path::PROMPT)]
    {
        assert_eq!(daemon.call_raw(method.clone(), path, "").await.error(), (405, "METHOD_NOT_ALLOWED"), "{method} {path}");
    }
}

#[tokio::test]
async fn every_body_is_bounded_and_read_strictly() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    let oversized = bytes::Bytes::from(vec![b' '; BODY_MAX_BYTES + 1]);
    let with_body = [path::ACK, path::START, path::PROMPT, path::PERMISSION, path::QUESTION, path::TITLE, path::TERMINALS, path::SHUTDOWN];
    for path in with_body {
        assert_eq!(daemon.call_raw(Method::POST, path, oversized.clone()).await.error(), (413, "PAYLOAD_TOO_LARGE"), "{path}");
        for bad in ["{", "[]", "{\"surprise\":1}", "\u{0}", "nul"] {
            assert_eq!(daemon.call_raw(Method::POST, path, bad).await.error(), (400, "INVALID_REQUEST"), "{path} {bad}");
        }
    }
    daemon.assert_serving().await;
}

#[tokio::test]
async fn health_is_open_and_ready_says_what_is_waited_for() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.dial().await;
    let health = daemon.get(path::HEALTH).await;
    assert_eq!(health.status, StatusCode::OK);
    assert_eq!(health.body["agent"], json!({ "running": false, "restarts": 0 }));
    assert_eq!(health.body["version"], env!("CARGO_PKG_VERSION"));
    assert!(health.body["uptimeMs"].is_u64());
    assert!(health.body["timestamp"].as_str().unwrap().ends_with('Z'));
    let ready = daemon.get(path::READY).await;
    assert_eq!(ready.error(), (503, "NOT_READY"));
    assert!(!ready.body.to_string().contains(SESSION));
}
