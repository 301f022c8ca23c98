//! The agent's paths, as far as they go without an agent: its program is missing here. With one they are tested in the stories.

use http::Method;
use openagent_proto::sidecar::path;
use serde_json::json;

use crate::fixture::Folders;

#[tokio::test]
async fn without_its_program_the_agent_is_unavailable_and_everything_else_is_served() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    let demo = json!({
        "id": "demo", "name": "Demo", "kind": "demo", "route": "host", "baseUrl": "", "needsKey": false,
        "models": [{ "id": "tour", "name": "Tour", "context": 1000, "output": 100, "reasoning": false,
                     "price": { "input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0 } }]
    });
    let start = json!({ "model": "demo/tour", "agent": "build", "permissionMode": "ask", "allow": [], "providers": [demo] });
    assert_eq!(daemon.call(Method::POST, path::START, &start).await.error(), (503, "AGENT_UNAVAILABLE"));
    let prompt = json!({ "text": "hello", "model": "demo/tour", "agent": "build" });
    assert_eq!(daemon.call(Method::POST, path::PROMPT, &prompt).await.error(), (503, "NOT_READY"));
    for (path, body) in [
        (path::PERMISSION, json!({ "id": "per_1", "response": "once", "by": "test" })),
        (path::QUESTION, json!({ "id": "que_1", "by": "test" })),
        (path::TITLE, json!({ "title": "new" })),
        (path::ABORT, json!(null)),
    ] {
        let answer = daemon.call(Method::POST, path, &body).await;
        assert!(matches!(answer.error(), (404, "NOT_FOUND") | (503, "NOT_READY")), "{path} {answer:?}");
    }
    daemon.assert_serving().await;
}
