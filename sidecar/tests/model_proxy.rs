//! The model proxy over real sockets: what it refuses, what it takes off, what it adds, and that it holds nothing back.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use openagent_core::secret::Secret;
use openagent_proto::sidecar::AgentProvider;
use openagent_sidecar::agent::opencode::config::Endpoint;
use openagent_sidecar::keyring::KeyRing;
use openagent_sidecar::model::{BODY_MAX_BYTES, ModelProxy};
use openagent_sidecar::relay::Relay;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(30);
const KEY: &str = "sk-canary-real-key";

fn provider(id: &str, kind: &str, route: &str, base_url: &str) -> AgentProvider {
    AgentProvider {
        id: id.into(),
        name: id.into(),
        kind: kind.into(),
        route: route.into(),
        base_url: base_url.into(),
        needs_key: true,
        models: Vec::new(),
    }
}

/// What reached a provider, or the daemon.
struct Seen {
    path: String,
    headers: HeaderMap,
    body: Bytes,
    pieces: mpsc::Sender<&'static str>,
}

/// Answers every call with status 429 and a body that the test writes piece by piece.
async fn answer(request: Request<Incoming>, told: mpsc::Sender<Seen>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let (pieces, mut written) = mpsc::channel::<&'static str>(8);
    told.send(Seen { path: head.uri.path_and_query().unwrap().to_string(), headers: head.headers, body, pieces }).await.unwrap();
    let stream = async_stream::stream! {
        while let Some(piece) = written.recv().await {
            yield Ok(Frame::data(Bytes::from(piece)));
        }
    };
    let answer = Response::builder().status(429).header("retry-after", "7").header("set-cookie", "a=b");
    Ok(answer.body(StreamBody::new(stream).boxed()).unwrap())
}

async fn upstream() -> (String, mpsc::Receiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    let (told, seen) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let told = told.clone();
            let service = hyper::service::service_fn(move |request| answer(request, told.clone()));
            tokio::spawn(
                async move { drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await) },
            );
        }
    });
    (base_url, seen)
}

fn keys() -> KeyRing {
    let keys = KeyRing::default();
    assert!(
        keys.replace(1, BTreeMap::from([("acme".to_owned(), Secret::new(KEY.into())), ("claude".to_owned(), Secret::new(KEY.into()))]))
    );
    keys
}

async fn proxy(keys: KeyRing, relay: Relay, providers: &[AgentProvider]) -> (ModelProxy, Endpoint) {
    let proxy = ModelProxy::bind(keys, relay).await.unwrap();
    let endpoint = proxy.configure(providers);
    (proxy, endpoint)
}

fn call(endpoint: &Endpoint, path: &str) -> http::request::Builder {
    Request::builder()
        .method(Method::POST)
        .uri(format!("{}{path}", endpoint.base_url))
        .header("authorization", format!("Bearer {}", endpoint.key))
        .header("content-type", "application/json")
}

async fn send(request: http::request::Builder, body: impl Into<Bytes>) -> Response<Incoming> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    timeout(LONG, client.request(request.body(Full::new(body.into())).unwrap())).await.unwrap().unwrap()
}

async fn refusal(answer: Response<Incoming>) -> (StatusCode, String) {
    let status = answer.status();
    let body: Value = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(body["type"], "error");
    (status, body["error"]["message"].as_str().unwrap().to_owned())
}

async fn piece(body: &mut Incoming) -> Bytes {
    timeout(LONG, body.frame()).await.expect("a piece comes while the rest is held back").unwrap().unwrap().into_data().unwrap()
}

#[tokio::test]
async fn only_the_present_dummy_key_is_accepted() {
    let (base_url, mut seen) = upstream().await;
    let providers = [provider("acme", "openai-compatible", "direct", &base_url)];
    let (proxy, old) = proxy(keys(), Relay::default(), &providers).await;
    let new = proxy.configure(&providers);
    assert_ne!(old.key, new.key);
    let path = "/p/acme/chat/completions";
    let uri = format!("{}{path}", new.base_url);
    for (name, value) in [
        ("authorization", format!("Bearer {}", old.key)),
        ("authorization", new.key.clone()),
        ("x-api-key", KEY.to_owned()),
        ("x-y", String::new()),
    ] {
        let request = Request::builder().method(Method::POST).uri(&uri).header(name, value);
        assert_eq!(refusal(send(request, "{}").await).await.0, StatusCode::UNAUTHORIZED, "{name}");
    }
    let unconfigured = ModelProxy::bind(keys(), Relay::default()).await.unwrap();
    let endpoint = unconfigured.configure(&[]);
    assert_eq!(refusal(send(call(&endpoint, path), "{}").await).await.0, StatusCode::NOT_FOUND);
    assert_eq!(proxy.calls(), 0);
    assert!(seen.try_recv().is_err(), "nothing went out");
}

#[tokio::test]
async fn only_calls_that_a_model_needs_are_let_through() {
    let (base_url, mut seen) = upstream().await;
    let (proxy, endpoint) = proxy(keys(), Relay::default(), &[provider("acme", "openai-compatible", "direct", &base_url)]).await;
    for path in [
        "/p/acme/files",
        "/p/acme/responses",
        "/p/acme/chat/completions/",
        "/p/acme/../acme/chat/completions",
        "/p/acme//chat/completions",
        "/p/acme/chat%2Fcompletions",
        "/p/other/chat/completions",
        "/chat/completions",
        "/",
    ] {
        assert_eq!(refusal(send(call(&endpoint, path), "{}").await).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    let get = call(&endpoint, "/p/acme/chat/completions").method(Method::GET);
    assert_eq!(refusal(send(get, "").await).await.0, StatusCode::METHOD_NOT_ALLOWED);
    let large = send(call(&endpoint, "/p/acme/chat/completions"), vec![b' '; BODY_MAX_BYTES + 1]).await;
    assert_eq!(refusal(large).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(proxy.calls(), 0);
    assert!(seen.try_recv().is_err(), "nothing went out");
}

#[tokio::test]
async fn the_direct_route_takes_the_callers_key_off_adds_the_real_one_and_streams() {
    let (base_url, mut seen) = upstream().await;
    let providers =
        [provider("acme", "openai-compatible", "direct", &base_url), provider("claude", "anthropic", "direct", &format!("{base_url}/"))];
    let (proxy, endpoint) = proxy(keys(), Relay::default(), &providers).await;
    for (path, expected, header, value) in [
        ("/p/acme/chat/completions", "/v1/chat/completions", "authorization", format!("Bearer {KEY}")),
        ("/p/claude/messages?beta=true", "/v1/messages?beta=true", "x-api-key", KEY.to_owned()),
    ] {
        let request = call(&endpoint, path).header("x-api-key", &endpoint.key).header("cookie", "c").header("anthropic-version", "1");
        let answering = tokio::spawn(send(request, "{\"a\":1}"));
        let seen = timeout(LONG, seen.recv()).await.unwrap().unwrap();
        assert_eq!((seen.path.as_str(), seen.body.as_ref()), (expected, b"{\"a\":1}".as_ref()));
        assert_eq!(seen.headers[header], value.as_str());
        assert!(!format!("{:?}", seen.headers).contains(&endpoint.key), "the dummy key stays here");
        assert!(!seen.headers.contains_key("cookie") && seen.headers["anthropic-version"] == "1");
        let other = if header == "x-api-key" { "authorization" } else { "x-api-key" };
        assert!(!seen.headers.contains_key(other));

        seen.pieces.send("first").await.unwrap();
        let answer = answering.await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (429, &"7".parse::<http::HeaderValue>().unwrap()));
        assert!(!answer.headers().contains_key("set-cookie"));
        let mut body = answer.into_body();
        assert_eq!(piece(&mut body).await, "first");
        seen.pieces.send("second").await.unwrap();
        assert_eq!(piece(&mut body).await, "second");
        drop(seen.pieces);
        assert!(timeout(LONG, body.frame()).await.unwrap().is_none());
    }
    assert_eq!(proxy.calls(), 2);
}

#[tokio::test]
async fn the_host_route_goes_to_the_daemon_without_any_key_and_streams() {
    let relay = Relay::default();
    let (ours, daemons) = tokio::io::duplex(64 * 1024);
    let (told, mut seen) = mpsc::channel(8);
    tokio::spawn(async move {
        let service = hyper::service::service_fn(move |request| answer(request, told.clone()));
        drop(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(daemons), service).await);
    });
    let running = relay.clone();
    tokio::spawn(async move { drop(running.run(ours).await) });
    let (_proxy, endpoint) = proxy(keys(), relay, &[provider("acme", "openai", "host", "https://not.used.example")]).await;
    let answering = tokio::spawn(send(call(&endpoint, "/p/acme/responses?x=1"), "{}"));
    let seen = timeout(LONG, seen.recv()).await.unwrap().unwrap();
    assert_eq!(seen.path, "/model/acme/responses?x=1");
    let headers = format!("{:?}", seen.headers);
    assert!(!headers.contains(KEY) && !headers.contains(&endpoint.key) && !seen.headers.contains_key("authorization"), "{headers}");
    seen.pieces.send("first").await.unwrap();
    let answer = answering.await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (429, &"7".parse::<http::HeaderValue>().unwrap()));
    let mut body = answer.into_body();
    assert_eq!(piece(&mut body).await, "first");
    seen.pieces.send("second").await.unwrap();
    assert_eq!(piece(&mut body).await, "second");
}

#[tokio::test]
async fn what_is_missing_is_told_plainly() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let providers = [
        provider("acme", "openai-compatible", "direct", &format!("http://{free}/v1")),
        provider("keyless", "openai-compatible", "direct", &format!("http://{free}/v1")),
        provider("host", "openai-compatible", "host", ""),
    ];
    let (_proxy, endpoint) = proxy(keys(), Relay::with_wait_max(Duration::from_millis(10)), &providers).await;
    for (id, status, message) in [
        ("keyless", StatusCode::UNAUTHORIZED, "no key for provider keyless: openagent keys set keyless"),
        ("acme", StatusCode::BAD_GATEWAY, "the provider acme cannot be reached"),
        ("host", StatusCode::SERVICE_UNAVAILABLE, "the OpenAgent daemon is not running"),
    ] {
        let (answered, text) = refusal(send(call(&endpoint, &format!("/p/{id}/chat/completions")), "{}").await).await;
        assert_eq!(answered, status, "{id}");
        assert!(text.starts_with(message) && !text.contains(KEY), "{text}");
    }
}

#[tokio::test]
async fn the_demo_answers_in_a_stream_and_in_one_piece() {
    let (_proxy, endpoint) = proxy(KeyRing::default(), Relay::default(), &[provider("demo", "demo", "host", "")]).await;
    let path = "/p/demo/chat/completions";
    let body = r#"{"messages":[{"role":"user","content":"hi"}],"tools":[{"function":{"name":"bash"}}],"stream":true}"#;
    let answer = send(call(&endpoint, path), body).await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut answer = answer.into_body();
    assert!(piece(&mut answer).await.starts_with(b"data: {"));
    let rest = timeout(LONG, answer.collect()).await.unwrap().unwrap().to_bytes();
    let rest = String::from_utf8(rest.to_vec()).unwrap();
    assert!(rest.contains("tool_calls") && rest.ends_with("data: [DONE]\n\n"));
    let answer = send(call(&endpoint, path), r#"{"messages":[]}"#).await;
    let answer: Value = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "A tour of OpenAgent");
    assert_eq!(refusal(send(call(&endpoint, path), "no json").await).await.0, StatusCode::BAD_REQUEST);
}
