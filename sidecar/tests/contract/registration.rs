//! `POST /internal/register`.

use http::{Method, StatusCode};
use openagent_core::seal::KeyPair;
use openagent_proto::sidecar::{BODY_MAX_BYTES, PROTOCOL, path};
use serde_json::{Value, json};

use crate::fixture::{Daemon, Folders, OTHER_SESSION, registration};

async fn register(daemon: &Daemon, body: &Value) -> (u16, String) {
    let answer = daemon.call(Method::POST, path::REGISTER, body).await;
    let (status, code) = answer.error();
    (status, code.to_owned())
}

fn good() -> Value {
    registration(&KeyPair::generate().public().to_base64())
}

fn with(field: &str, value: Value) -> Value {
    let mut body = good();
    body[field] = value;
    body
}

#[tokio::test]
async fn each_wrong_registration_has_its_code_and_leaves_the_token_usable_once() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let mut daemon = sidecar.dial().await;
    let zero_key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (body, status, code) in [
        (with("sessionId", json!(OTHER_SESSION)), 403, "FORBIDDEN"),
        (with("sessionId", json!("nonsense")), 403, "FORBIDDEN"),
        (with("registrationToken", json!("wrong")), 401, "UNAUTHORIZED"),
        (with("registrationToken", json!("")), 401, "UNAUTHORIZED"),
        (with("publicKey", json!("")), 400, "INVALID_PUBLIC_KEY"),
        (with("publicKey", json!("not base64!")), 400, "INVALID_PUBLIC_KEY"),
        (with("publicKey", json!("AAAA")), 400, "INVALID_PUBLIC_KEY"),
        (with("publicKey", json!(zero_key)), 400, "INVALID_PUBLIC_KEY"),
        (with("publicKey", json!(7)), 400, "INVALID_REQUEST"),
        (with("surprise", json!(true)), 400, "INVALID_REQUEST"),
        (json!({}), 400, "INVALID_REQUEST"),
        (json!([]), 400, "INVALID_REQUEST"),
    ] {
        assert_eq!(register(&daemon, &body).await, (status, code.to_owned()), "{body}");
        daemon.assert_serving().await;
    }
    let broken = daemon.call_raw(Method::POST, path::REGISTER, "{\"sessionId\":").await;
    assert_eq!(broken.error(), (400, "INVALID_REQUEST"));
    let oversized = daemon.call_raw(Method::POST, path::REGISTER, vec![b' '; BODY_MAX_BYTES + 1]).await;
    assert_eq!(oversized.error(), (413, "PAYLOAD_TOO_LARGE"));
    daemon.assert_serving().await;

    daemon.register().await;
    assert_eq!(register(&daemon, &good()).await, (409, "CONFLICT".into()));
    assert_eq!(register(&daemon, &with("publicKey", json!(zero_key))).await, (409, "CONFLICT".into()));
    assert_eq!(register(&daemon, &with("registrationToken", json!("wrong"))).await, (401, "UNAUTHORIZED".into()));
    assert_eq!(daemon.get(path::TERMINALS).await.status, StatusCode::OK);
}

#[tokio::test]
async fn of_many_registrations_at_once_one_succeeds() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.dial().await;
    let bodies: Vec<Value> = (0..20).map(|_| good()).collect();
    let answers = futures::future::join_all(bodies.iter().map(|body| daemon.call(Method::POST, path::REGISTER, body))).await;
    let mut codes: Vec<u16> = answers.iter().map(|answer| answer.status.as_u16()).collect();
    codes.sort_unstable();
    assert_eq!((codes[0], &codes[1..]), (200, &[409; 19][..]));
}

#[tokio::test]
async fn the_bearer_comes_sealed_and_outlives_the_connection() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let mut daemon = sidecar.dial().await;
    let pair = KeyPair::generate();
    let answer = daemon.call(Method::POST, path::REGISTER, &registration(&pair.public().to_base64())).await;
    assert_eq!((&answer.body["success"], &answer.body["protocol"]), (&json!(true), &json!(PROTOCOL)));
    let text = answer.body.to_string();
    daemon.take_registration(&pair, serde_json::from_value(answer.body).unwrap());
    let bearer = daemon.bearer.clone().unwrap();
    assert!(bearer.len() >= 32 && !text.contains(&bearer));

    let mut restarted = sidecar.dial().await;
    restarted.bearer = Some(bearer);
    assert_eq!(restarted.get(path::TERMINALS).await.status, StatusCode::OK);
}
