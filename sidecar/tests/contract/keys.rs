//! `PUT /internal/update-keys`.

use http::{Method, StatusCode};
use openagent_proto::sidecar::{SealedProviderKey, path};
use serde_json::json;

use crate::fixture::Folders;

#[tokio::test]
async fn a_set_is_taken_whole_and_recorded_and_an_empty_one_revokes_all() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    let mut events = daemon.events(0).await;
    let keys = [daemon.seal("openai", 1, b"sk-canary-1"), daemon.seal("anthropic", 1, b"sk-canary-2")];
    let answer = daemon.update_keys(1, &keys).await;
    assert_eq!((answer.status, answer.body), (StatusCode::OK, json!({ "updated": true, "providers": ["anthropic", "openai"] })));
    let event = events.next().await.unwrap();
    assert_eq!(
        (event.id, &event.data["kind"], &event.data["providers"]),
        (Some(1), &json!("keys_updated"), &json!(["anthropic", "openai"]))
    );

    let answer = daemon.update_keys(7, &[]).await;
    assert_eq!(answer.body, json!({ "updated": true, "providers": [] }));
    assert_eq!(events.next().await.unwrap().data["providers"], json!([]));
}

#[tokio::test]
async fn whatever_is_wrong_with_a_set_changes_nothing() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    let good = daemon.seal("openai", 5, b"sk-canary");
    assert_eq!(daemon.update_keys(5, std::slice::from_ref(&good)).await.status, StatusCode::OK);

    let next = |provider: &str| daemon.seal(provider, 6, b"sk-canary");
    let unreadable = SealedProviderKey { provider: "openai".into(), sealed: "AAAA".into() };
    let moved = SealedProviderKey { provider: "other".into(), ..next("openai") };
    for (what, version, keys, status) in [
        ("replayed version", 5, vec![daemon.seal("openai", 5, b"sk")], 409),
        ("older version", 4, vec![daemon.seal("openai", 4, b"sk")], 409),
        ("empty provider", 6, vec![SealedProviderKey { provider: String::new(), ..next("openai") }], 400),
        ("bad provider", 6, vec![SealedProviderKey { provider: "../x".into(), ..next("openai") }], 400),
        ("duplicate provider", 6, vec![next("openai"), next("openai")], 400),
        ("second one unreadable", 6, vec![next("anthropic"), unreadable], 400),
        ("sealed for another provider", 6, vec![moved], 400),
        ("sealed for another version", 7, vec![next("openai")], 400),
        ("empty key", 6, vec![daemon.seal("openai", 6, b"")], 400),
        ("not text", 6, vec![daemon.seal("openai", 6, &[0xff, 0xfe])], 400),
        ("too long", 6, vec![daemon.seal("openai", 6, &[b'x'; 20_000])], 400),
    ] {
        let answer = daemon.update_keys(version, &keys).await;
        assert_eq!(answer.error().0, status, "{what}");
        assert!(!answer.body.to_string().contains("canary"), "{what}");
    }
    let mut other = daemon.clone();
    other.recipient = "0123456789abcdef".into();
    assert_eq!(other.update_keys(6, &[next("openai")]).await.error(), (400, "INVALID_REQUEST"));
    let negative = json!({ "recipientKeyId": daemon.recipient, "version": -1, "keys": [] });
    assert_eq!(daemon.call(Method::PUT, path::UPDATE_KEYS, &negative).await.error(), (400, "INVALID_REQUEST"));

    // Neither a version was used up nor an event recorded by any of them.
    assert_eq!(daemon.update_keys(6, &[next("openai")]).await.status, StatusCode::OK);
    let mut events = daemon.events(0).await;
    assert_eq!(events.next().await.unwrap().id, Some(1));
    assert_eq!(events.next().await.unwrap().id, Some(2));
}
