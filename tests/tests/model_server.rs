//! Contract of the scripted model server: wire formats, keywords, errors, gates. Everything else in this crate trusts it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use openagent_tests::model::{MODELS, RETRY_AFTER_MS, ScriptedModel};
use serde_json::{Value, json};

const CHAT: &str = "/chat/completions";
const RESPONSES: &str = "/responses";
const MESSAGES: &str = "/messages";
const ALL: [&str; 3] = [CHAT, RESPONSES, MESSAGES];

/// Far above what any of these takes; reached only when something hangs.
const BOUND: Duration = Duration::from_secs(10);

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    /// What arrived, also when the connection broke.
    body: String,
    is_whole: bool,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The data of all events but the closing `[DONE]`; where an event has a name it must be its data's type.
    fn events(&self) -> Vec<Value> {
        let mut events = Vec::new();
        for frame in self.body.split_terminator("\n\n") {
            let data = frame.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
            if data == "[DONE]" {
                continue;
            }
            let data: Value = serde_json::from_str(data).unwrap();
            if let Some(name) = frame.lines().find_map(|line| line.strip_prefix("event: ")) {
                assert_eq!(data["type"], name);
            }
            events.push(data);
        }
        events
    }

    /// The strings at that pointer of all events, joined.
    fn joined(&self, pointer: &str) -> String {
        self.events().iter().filter_map(|event| event.pointer(pointer)?.as_str().map(str::to_owned)).collect()
    }

    /// The strings at that pointer of the events of one type, joined.
    fn joined_of(&self, kind: &str, pointer: &str) -> String {
        let events = self.events();
        let of_kind = events.iter().filter(|event| event["type"] == kind);
        of_kind.filter_map(|event| event.pointer(pointer)?.as_str()).collect()
    }

    /// The text a user would see.
    fn text(&self, path: &str) -> String {
        match path {
            CHAT => self.joined("/choices/0/delta/content"),
            RESPONSES => self.joined_of("response.output_text.delta", "/delta"),
            _ => self.joined("/delta/text"),
        }
    }
}

async fn send(model: &ScriptedModel, path: &str, headers: &[(&str, &str)], body: &Value) -> Response<Incoming> {
    let mut request = Request::post(format!("{}{path}", model.base_url()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_string()))).unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    tokio::time::timeout(BOUND, client.request(request)).await.unwrap().unwrap()
}

async fn gather(response: Response<Incoming>) -> Answer {
    let (parts, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    let is_whole = loop {
        match tokio::time::timeout(BOUND, body.frame()).await.unwrap() {
            None => break true,
            Some(Err(_)) => break false,
            Some(Ok(frame)) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
        }
    };
    Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(bytes).unwrap(), is_whole }
}

/// One user message in that path's format.
fn prompt(path: &str, text: &str) -> Value {
    let messages = json!([{ "role": "user", "content": text }]);
    let field = if path == RESPONSES { "input" } else { "messages" };
    json!({ "model": MODELS[0], field: messages, "stream": true, "stream_options": { "include_usage": true } })
}

async fn ask(model: &ScriptedModel, path: &str, text: &str) -> Answer {
    gather(send(model, path, &[], &prompt(path, text)).await).await
}

async fn ask_whole(model: &ScriptedModel, path: &str, text: &str) -> Answer {
    let mut body = prompt(path, text);
    body["stream"] = json!(false);
    gather(send(model, path, &[], &body).await).await
}

#[tokio::test]
async fn a_plain_prompt_streams_the_quick_answer_in_every_format() {
    let model = ScriptedModel::start().await.unwrap();
    for path in ALL {
        let answer = ask(&model, path, "Please #plain").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
        assert_eq!(answer.text(path), "The quick answer is forty-two.", "{path}");
        assert!(answer.is_whole);
        assert_eq!(answer.body.ends_with("data: [DONE]\n\n"), path == CHAT);
    }
}

#[tokio::test]
async fn the_same_prompt_gets_the_same_answer_but_for_its_ids() {
    let model = ScriptedModel::start().await.unwrap();
    for path in ALL {
        let first = ask(&model, path, "#tools").await.body;
        let second = ask(&model, path, "#tools").await.body;
        let number = |body: &str| body.find("00000").map(|at| body[at..at + 6].to_owned()).unwrap();
        assert_ne!(number(&first), number(&second));
        assert_eq!(first.replace(&number(&first), "N"), second.replace(&number(&second), "N"));
    }
}

#[tokio::test]
async fn usage_numbers_are_those_of_the_prompt() {
    let model = ScriptedModel::start().await.unwrap();
    let asked = "#usage 700 150 50 300 20";

    let chat = json!({
        "prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200,
        "prompt_tokens_details": { "cached_tokens": 300 }, "completion_tokens_details": { "reasoning_tokens": 50 },
    });
    let last = ask(&model, CHAT, asked).await.events().pop().unwrap();
    assert_eq!((&last["usage"], &last["choices"]), (&chat, &json!([])));
    assert_eq!(ask_whole(&model, CHAT, asked).await.json()["usage"], chat);

    let responses = json!({
        "input_tokens": 1000, "output_tokens": 200, "total_tokens": 1200,
        "input_tokens_details": { "cached_tokens": 300 }, "output_tokens_details": { "reasoning_tokens": 50 },
    });
    let last = ask(&model, RESPONSES, asked).await.events().pop().unwrap();
    assert_eq!((&last["type"], &last["response"]["usage"]), (&json!("response.completed"), &responses));
    assert_eq!(ask_whole(&model, RESPONSES, asked).await.json()["usage"], responses);

    let messages = json!({
        "input_tokens": 700, "output_tokens": 200, "cache_read_input_tokens": 300, "cache_creation_input_tokens": 20,
    });
    let events = ask(&model, MESSAGES, asked).await.events();
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], 700);
    assert_eq!(events[events.len() - 2]["usage"], messages);
    assert_eq!(ask_whole(&model, MESSAGES, asked).await.json()["usage"], messages);
}

#[tokio::test]
async fn chat_sends_usage_in_a_stream_only_when_asked() {
    let model = ScriptedModel::start().await.unwrap();
    let body = json!({ "model": "any", "messages": [{ "role": "user", "content": "#plain" }], "stream": true });
    let answer = gather(send(&model, CHAT, &[], &body).await).await;
    assert!(answer.events().iter().all(|event| event.get("usage").is_none()));
    assert_eq!(answer.events()[0]["model"], "any");
}

#[tokio::test]
async fn reasoning_comes_before_the_text_in_every_format() {
    let model = ScriptedModel::start().await.unwrap();
    let thought = "First the question, then what is known about it, then the answer.";

    let chat = ask(&model, CHAT, "#reason").await;
    assert_eq!(chat.joined("/choices/0/delta/reasoning_content"), thought);

    let responses = ask(&model, RESPONSES, "#reason").await;
    assert_eq!(responses.joined_of("response.reasoning_summary_text.delta", "/delta"), thought);
    let done = responses.events().pop().unwrap();
    assert_eq!(done["response"]["output"][0]["summary"][0]["text"], thought);
    assert_eq!(done["response"]["output"][1]["type"], "message");

    let messages = ask(&model, MESSAGES, "#reason").await;
    assert_eq!(messages.joined("/delta/thinking"), thought);
    assert!(!messages.joined("/delta/signature").is_empty());

    for (path, answer) in ALL.iter().zip([chat, responses, messages]) {
        assert_eq!(answer.text(path), "The quick answer is forty-two.");
        assert!(answer.body.find("First").unwrap() < answer.body.find("quick").unwrap());
    }
    assert_eq!(ask_whole(&model, CHAT, "#reason").await.json()["choices"][0]["message"]["reasoning_content"], thought);
    assert_eq!(ask_whole(&model, MESSAGES, "#reason").await.json()["content"][0]["thinking"], thought);
}

#[tokio::test]
async fn a_tool_call_arrives_in_pieces_that_join_to_its_arguments() {
    let model = ScriptedModel::start().await.unwrap();
    let command = "printf 'größer\\n' | cat -A";
    let asked = format!("Please #bash {command}\nand tell me");

    let chat = ask(&model, CHAT, &asked).await;
    assert_eq!(chat.joined("/choices/0/delta/tool_calls/0/function/name"), "bash");
    let chat_arguments = chat.joined("/choices/0/delta/tool_calls/0/function/arguments");
    assert_eq!(chat.joined("/choices/0/finish_reason"), "tool_calls");

    let responses = ask(&model, RESPONSES, &asked).await;
    let responses_arguments = responses.joined_of("response.function_call_arguments.delta", "/delta");
    let item = &responses.events().pop().unwrap()["response"]["output"][0];
    assert_eq!((&item["type"], &item["name"]), (&json!("function_call"), &json!("bash")));
    assert_eq!(item["arguments"], responses_arguments);

    let messages = ask(&model, MESSAGES, &asked).await;
    assert_eq!(messages.joined("/content_block/name"), "bash");
    assert_eq!(messages.joined("/delta/stop_reason"), "tool_use");
    let messages_arguments = messages.joined("/delta/partial_json");

    for arguments in [chat_arguments, responses_arguments, messages_arguments] {
        let arguments: Value = serde_json::from_str(&arguments).unwrap();
        assert_eq!(arguments["command"], command);
        assert!(arguments["description"].is_string());
    }
    let whole = ask_whole(&model, MESSAGES, &asked).await.json();
    assert_eq!((&whole["stop_reason"], &whole["content"][0]["input"]["command"]), (&json!("tool_use"), &json!(command)));
    let whole = ask_whole(&model, CHAT, &asked).await.json();
    assert_eq!(whole["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "bash");
}

#[tokio::test]
async fn every_tool_keyword_fills_the_fields_of_its_tool() {
    let model = ScriptedModel::start().await.unwrap();
    let table = [
        ("#write a.txt one\\ntwo", "write", json!({ "filePath": "a.txt", "content": "one\ntwo" })),
        ("#edit a.txt one=>two", "edit", json!({ "filePath": "a.txt", "oldString": "one", "newString": "two" })),
        ("#read a.txt", "read", json!({ "filePath": "a.txt" })),
        ("#subagent", "task", json!({ "description": "Sub job", "prompt": "#plain", "subagent_type": "general" })),
        ("#unknown-tool", "no_such_tool", json!({})),
        ("#bad-args", "bash", json!({ "order": 1 })),
    ];
    for (asked, name, arguments) in table {
        let call = ask_whole(&model, CHAT, asked).await.json()["choices"][0]["message"]["tool_calls"][0]["function"].clone();
        assert_eq!(call["name"], name);
        assert_eq!(serde_json::from_str::<Value>(call["arguments"].as_str().unwrap()).unwrap(), arguments);
    }
    let arguments = async |asked: &str| {
        let call = ask_whole(&model, CHAT, asked).await.json()["choices"][0]["message"]["tool_calls"][0]["function"].clone();
        call["arguments"].as_str().unwrap().to_owned()
    };
    let question: Value = serde_json::from_str(&arguments("#question").await).unwrap();
    assert_eq!(question["questions"][0]["options"].as_array().unwrap().len(), 2);
    let todos: Value = serde_json::from_str(&arguments("#todo").await).unwrap();
    assert_eq!(todos["todos"].as_array().unwrap().len(), 3);
    assert!(serde_json::from_str::<Value>(&arguments("#bad-json").await).is_err());
}

#[tokio::test]
async fn parallel_calls_have_different_ids_and_places() {
    let model = ScriptedModel::start().await.unwrap();
    let begins: Vec<Value> = ask(&model, CHAT, "#tools")
        .await
        .events()
        .into_iter()
        .filter_map(|event| event.pointer("/choices/0/delta/tool_calls/0").cloned())
        .filter(|call| call.get("id").is_some())
        .collect();
    assert_eq!(begins.len(), 2);
    assert_ne!(begins[0]["id"], begins[1]["id"]);
    assert_eq!((&begins[0]["index"], &begins[1]["index"]), (&json!(0), &json!(1)));
    let output = ask_whole(&model, RESPONSES, "#tools").await.json()["output"].clone();
    assert_ne!(output[0]["call_id"], output[1]["call_id"]);
}

#[tokio::test]
async fn a_tool_result_is_answered_by_text_that_repeats_it() {
    let model = ScriptedModel::start().await.unwrap();
    let chat = json!({ "stream": true, "messages": [
        { "role": "user", "content": "#bash ls" },
        { "role": "assistant", "content": "", "tool_calls": [{ "id": "call_1", "type": "function", "function": { "name": "bash", "arguments": "{}" } }] },
        { "role": "tool", "tool_call_id": "call_1", "content": "hello.txt\n" },
    ] });
    let responses = json!({ "stream": true, "input": [
        { "role": "user", "content": [{ "type": "input_text", "text": "#bash ls" }] },
        { "type": "function_call", "call_id": "call_1", "name": "bash", "arguments": "{}" },
        { "type": "function_call_output", "call_id": "call_1", "output": "hello.txt\n" },
    ] });
    let messages = json!({ "stream": true, "messages": [
        { "role": "user", "content": [{ "type": "text", "text": "#bash ls" }] },
        { "role": "assistant", "content": [{ "type": "tool_use", "id": "toolu_1", "name": "bash", "input": {} }] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "toolu_1", "content": "hello.txt\n" }] },
    ] });
    for (path, body) in ALL.into_iter().zip([chat, responses, messages]) {
        let answer = gather(send(&model, path, &[], &body).await).await;
        assert_eq!(answer.text(path), "Done. The tool said: hello.txt", "{path}");
    }
}

#[tokio::test]
async fn the_agents_for_titles_and_summaries_never_run_a_keyword() {
    let model = ScriptedModel::start().await.unwrap();
    let ask_as = async |system: &str| {
        let messages = json!([{ "role": "system", "content": system }, { "role": "user", "content": "Fix #401 in the parser" }]);
        let body = json!({ "messages": messages, "stream": true });
        gather(send(&model, CHAT, &[], &body).await).await.text(CHAT)
    };
    assert_eq!(ask_as("You are a title generator. Nothing else.").await, "Scripted: Fix 401 in the parser");
    assert!(ask_as("You are a context summarization agent.").await.starts_with("The user asked"));
}

#[tokio::test]
async fn refusals_have_the_status_and_body_of_the_real_services() {
    let model = ScriptedModel::start().await.unwrap();
    let table = [
        ("#401", 401, "invalid_api_key", "authentication_error"),
        ("#403", 403, "model_not_allowed", "permission_error"),
        ("#429-forever", 429, "rate_limit_exceeded", "rate_limit_error"),
        ("#overflow", 400, "context_length_exceeded", "invalid_request_error"),
    ];
    for (asked, status, code, kind) in table {
        for path in ALL {
            let answer = ask(&model, path, asked).await;
            assert_eq!(answer.status.as_u16(), status, "{path} {asked}");
            let error = &answer.json()["error"];
            assert!(error["message"].is_string());
            if path == MESSAGES {
                assert_eq!(error["type"], kind);
            } else {
                assert_eq!(error["code"], code);
            }
        }
    }
}

#[tokio::test]
async fn passing_troubles_pass_after_the_number_of_tries_asked_for() {
    for path in ALL {
        let model = ScriptedModel::start().await.unwrap();
        for (asked, status) in [("#429 2", 429), ("#500 2", 500)] {
            for _ in 0..2 {
                let refused = ask(&model, path, asked).await;
                assert_eq!(refused.status.as_u16(), status);
                assert_eq!(refused.headers["retry-after-ms"], RETRY_AFTER_MS.to_string().as_str());
            }
            assert_eq!(ask(&model, path, asked).await.text(path), "The quick answer is forty-two.");
        }
    }
}

#[tokio::test]
async fn tries_are_counted_per_session_and_turn() {
    let model = ScriptedModel::start().await.unwrap();
    let status = async |session: &str, turns: usize| {
        let turn = json!({ "role": "user", "content": "#500" });
        let body = json!({ "messages": vec![turn; turns], "stream": true });
        gather(send(&model, CHAT, &[("x-session-affinity", session)], &body).await).await.status.as_u16()
    };
    assert_eq!((status("ses_a", 1).await, status("ses_a", 1).await), (500, 200));
    assert_eq!((status("ses_b", 1).await, status("ses_b", 1).await), (500, 200));
    assert_eq!((status("ses_a", 2).await, status("ses_a", 2).await), (500, 200));
}

#[tokio::test]
async fn a_cut_stream_breaks_the_connection_once() {
    let model = ScriptedModel::start().await.unwrap();
    for path in ALL {
        let asked = format!("#cut for {path}");
        let whole = ask_whole(&model, path, &format!("#cut whole {path}")).await;
        assert_eq!((whole.status, whole.is_whole), (StatusCode::OK, false));
        let broken = ask(&model, path, &asked).await;
        assert_eq!((broken.status, broken.is_whole), (StatusCode::OK, false));
        assert_eq!(broken.text(path), "The quick answer ");
        let second = ask(&model, path, &asked).await;
        assert!(second.is_whole);
        assert_eq!(second.text(path), "The quick answer is forty-two.");
    }
}

#[tokio::test]
async fn an_error_inside_the_stream_ends_it_once() {
    let model = ScriptedModel::start().await.unwrap();
    for path in ALL {
        let asked = format!("#stream-error for {path}");
        let broken = ask(&model, path, &asked).await;
        let last = broken.events().pop().unwrap();
        assert!(broken.is_whole && (last["type"] == "error" || last["error"].is_object()), "{path}: {last}");
        assert_eq!(ask(&model, path, &asked).await.text(path), "The quick answer is forty-two.");
    }
}

#[tokio::test]
async fn a_waiting_stream_has_begun_and_ends_when_released() {
    let model = ScriptedModel::start().await.unwrap();
    for path in ALL {
        let name = path.trim_start_matches('/').replace('/', "-");
        let mut response = send(&model, path, &[], &prompt(path, &format!("#wait {name}"))).await;
        assert!(model.wait_until_waiting(&name, BOUND).await);
        let first = response.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(!first.is_empty());
        model.release(&name);
        let rest = gather(response).await;
        assert!(rest.is_whole && rest.text(path).ends_with("and has ended."));
        // A released name stays released.
        let again = ask(&model, path, &format!("#wait {name}")).await;
        assert_eq!(again.text(path), "The work has begun and has ended.");
    }
}

#[tokio::test]
async fn a_gate_can_be_opened_by_http_and_bounds_are_kept() {
    let model = ScriptedModel::start().await.unwrap();
    assert!(!model.wait_until_waiting("nobody", Duration::from_millis(1)).await);
    assert!(model.wait_for_request(Duration::from_millis(1), |_| true).await.is_none());
    let url = model.base_url().replace("/v1", "/control/release/door");
    let request = Request::post(url).body(Full::<Bytes>::default()).unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    assert_eq!(client.request(request).await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(ask(&model, CHAT, "#wait door").await.text(CHAT), "The work has begun and has ended.");
}

#[tokio::test]
async fn a_hanging_request_is_recorded_and_never_answered_until_the_server_stops() {
    let model = ScriptedModel::start().await.unwrap();
    let body = prompt(CHAT, "#hang");
    let request = Request::post(format!("{}{CHAT}", model.base_url())).body(Full::new(Bytes::from(body.to_string()))).unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    #[allow(clippy::disallowed_methods, reason = "a request that is to hang, in a test without a supervisor")]
    let pending = tokio::spawn(client.request(request));
    assert!(model.wait_for_request(BOUND, |request| request.path == "/v1/chat/completions").await.is_some());
    assert!(!pending.is_finished());
    tokio::time::timeout(BOUND, model.shutdown()).await.unwrap();
    let end = tokio::time::timeout(BOUND, pending).await.unwrap().unwrap();
    assert!(end.is_err() || end.is_ok_and(|response| response.status() == StatusCode::SERVICE_UNAVAILABLE));
}

#[tokio::test]
async fn shutdown_cuts_streams_that_wait_and_frees_the_port() {
    let model = ScriptedModel::start().await.unwrap();
    let address = model.address();
    let response = send(&model, CHAT, &[], &prompt(CHAT, "#wait never")).await;
    assert!(model.wait_until_waiting("never", BOUND).await);
    tokio::time::timeout(BOUND, model.shutdown()).await.unwrap();
    assert!(!gather(response).await.is_whole);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_required_key_is_checked_in_both_headers_and_recorded() {
    let model = ScriptedModel::with_key("sk-right").start().await.unwrap();
    let table = [
        (("authorization", "Bearer sk-right"), 200),
        (("x-api-key", "sk-right"), 200),
        (("authorization", "Bearer sk-wrong"), 401),
        (("x-api-key", "sk-wrong"), 401),
        (("x-other", "sk-right"), 401),
    ];
    for (header, status) in table {
        for path in ALL {
            let answer = gather(send(&model, path, &[header], &prompt(path, "#plain")).await).await;
            assert_eq!(answer.status.as_u16(), status, "{path} {header:?}");
        }
    }
    let seen = model.requests();
    assert_eq!(seen.len(), table.len() * ALL.len());
    assert_eq!(seen[0].header("authorization"), Some("Bearer sk-right"));
    assert_eq!((seen[3].key(), seen[9].key(), seen[12].key()), (Some("sk-right"), Some("sk-wrong"), None));
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("POST", "/v1/chat/completions"));
    assert_eq!(seen[0].body["messages"][0]["content"], "#plain");
    assert!(seen[0].received_at <= seen[14].received_at && model.forgotten() == 0);
}

#[tokio::test]
async fn the_model_list_serves_both_families_and_needs_the_key_too() {
    let model = ScriptedModel::with_key("sk-right").start().await.unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    let get = async |key: &str| {
        let request = Request::get(format!("{}/models", model.base_url())).header("authorization", format!("Bearer {key}"));
        gather(client.request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap()).await
    };
    let list = get("sk-right").await.json();
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().filter_map(|entry| entry["id"].as_str()).collect();
    assert_eq!(ids, MODELS);
    assert_eq!((&list["object"], &list["data"][0]["type"]), (&json!("list"), &json!("model")));
    assert_eq!(get("sk-wrong").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn long_and_slow_answers_have_the_asked_number_of_chunks() {
    let model = ScriptedModel::start().await.unwrap();
    for asked in ["#long 250", "#slow 0 250"] {
        let text = ask(&model, MESSAGES, asked).await.text(MESSAGES);
        assert_eq!(text.split_whitespace().count(), 250);
        assert!(text.ends_with("chunk-250\n"));
    }
    let markdown = "# Title\n\n- größer\n\n```rust\nfn main() {}\n```";
    assert_eq!(ask(&model, RESPONSES, &format!("#echo {markdown}")).await.text(RESPONSES), markdown);
}

#[tokio::test]
async fn a_body_that_is_no_json_is_refused_in_the_words_of_the_format() {
    let model = ScriptedModel::start().await.unwrap();
    for path in ALL {
        let answer = gather(send(&model, path, &[], &json!("no object")).await).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.json()["error"]["message"].is_string());
    }
}
