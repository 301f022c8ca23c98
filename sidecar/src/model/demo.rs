//! The demo provider: a scripted tour, answered here in the format of chat completions, with no key and no network.
//!
//! Where the tour stands is read from the conversation itself, so nothing is remembered: after the prompt a command that asks for permission, after
//! its result a file that asks as well, after that what was seen and what to try. Tools that the agent is not offered are left out of the tour.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};

use super::answer::{ProxyBody, json, refusal};

/// Pause between two words, so that the answer looks as alive as a model's.
const WORD_PAUSE: Duration = Duration::from_millis(15);

/// Bytes of a token, roughly; the demo counts nothing better.
const TOKEN_BYTES: usize = 4;

const WELCOME: &str = "Welcome to **OpenAgent**! I am a scripted demo, not a model, but everything around me is real: a coding agent runs in a \
    sandbox of its own, and what it does comes to you live.\n\nLet me look around in the workspace first. Running a command needs your permission, \
    so you will be asked; you can allow it once, for the session, or always.";

const AFTER_COMMAND: &str = "That is the output of a real command in the sandbox. Now I would like to write a file. You are asked again, this time \
    with the whole change to read.";

const AFTER_NO: &str = "You said no, and that is fine: the agent gets your answer and goes on without. ";

const FAREWELL: &str = "That was the tour. You have seen text that streams in, a command that asked for permission, its output, and a file that was \
    written into the workspace only.\n\nWhat to try next:\n\n- look at the change, or open a terminal in the sandbox\n- close this client and come \
    back: the session goes on without it\n- start a second session beside this one\n- set a key with `openagent keys set PROVIDER` and choose a real \
    model with `openagent models`\n\nWrite *tour* to see this again.";

const LATER: &str = "I am only a scripted demo, so I cannot answer that. Write *tour* to see the tour again, or set a key with \
    `openagent keys set PROVIDER` and choose a real model: this session, its workspace and its history stay as they are.";

const TITLE: &str = "A tour of OpenAgent";

const COMMAND: &str = "ls -la && git log --oneline | head";

const FILE: &str = "hello-openagent.md";

const FILE_CONTENT: &str =
    "# Hello from OpenAgent\n\nThis file was written by the demo. It exists in the workspace of this session only.\n";

/// What the demo says to a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Say {
    /// Prose.
    pub text: String,
    /// A tool call that follows: its name and arguments.
    pub call: Option<(&'static str, Value)>,
}

impl Say {
    fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), call: None }
    }
}

/// What the demo says to the chat completion request `body`.
#[must_use]
pub fn say(body: &Value) -> Say {
    let messages = body.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let offered: Vec<_> = list(body, "tools").iter().filter_map(|tool| tool.pointer("/function/name")?.as_str()).collect();
    // Only an agent at work is offered tools; what remains are titles and summaries.
    if offered.is_empty() {
        return Say::text(TITLE);
    }
    let role = |message: &Value| message.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
    let is_prompt = |message: &&Value| role(message) == "user";
    let prompts = messages.iter().filter(is_prompt).count();
    let last = messages.iter().rposition(|message| role(message) == "user").unwrap_or(0);
    let asked_again = messages.get(last).is_some_and(|message| content(message).to_lowercase().contains("tour"));
    if prompts > 1 && !asked_again {
        return Say::text(LATER);
    }
    let since = messages.get(last..).unwrap_or_default();
    let results: Vec<_> = since.iter().filter(|message| role(message) == "tool").map(content).collect();
    let refused = results.last().is_some_and(|result| result.contains("rejected permission") || result.contains("prevents you from"));
    let before = |text: &str| if refused { format!("{AFTER_NO}{text}") } else { text.to_owned() };
    let steps = [
        ("bash", WELCOME, json!({ "command": COMMAND, "description": "Looks around in the workspace" })),
        ("write", if refused { "" } else { AFTER_COMMAND }, json!({ "filePath": FILE, "content": FILE_CONTENT })),
    ];
    let mut possible = steps.into_iter().filter(|(tool, ..)| offered.contains(tool));
    match possible.nth(results.len()) {
        Some((tool, text, arguments)) => Say { text: before(text), call: Some((tool, arguments)) },
        None if results.is_empty() => Say::text(format!("{WELCOME}\n\n{FAREWELL}")),
        None => Say::text(before(FAREWELL)),
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The text of a message, which may be in pieces.
fn content(message: &Value) -> String {
    let pieces = list(message, "content").iter().filter_map(|piece| piece.get("text")?.as_str());
    message.get("content").and_then(Value::as_str).map_or_else(|| pieces.collect(), str::to_owned)
}

pub(super) async fn answer(body: Limited<Incoming>) -> Response<ProxyBody> {
    let Ok(body) = body.collect().await else {
        return refusal(StatusCode::BAD_REQUEST, "the request to the model ended early or is too large");
    };
    let body = body.to_bytes();
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return refusal(StatusCode::BAD_REQUEST, "the request to the model is not valid JSON");
    };
    let say = say(&request);
    let usage = usage(body.len(), &say);
    if request.get("stream").and_then(Value::as_bool) != Some(true) {
        return json(StatusCode::OK, &whole(&say, &usage));
    }
    let chunks = futures::stream::iter(chunks(&say, &usage)).enumerate().then(|(n, chunk)| async move {
        if n > 0 {
            tokio::time::sleep(WORD_PAUSE).await;
        }
        Ok::<_, Infallible>(Frame::data(Bytes::from(format!("data: {chunk}\n\n"))))
    });
    let body = StreamBody::new(chunks).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer
}

fn usage(request_bytes: usize, say: &Say) -> Value {
    let answer_bytes = say.text.len() + say.call.as_ref().map_or(0, |(_, arguments)| arguments.to_string().len());
    let (prompt, completion) = (request_bytes / TOKEN_BYTES, answer_bytes / TOKEN_BYTES);
    json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion })
}

/// A tool call; `id` differs from call to call since each follows another number of results.
fn call(say: &Say) -> Option<Value> {
    let (tool, arguments) = say.call.as_ref()?;
    let function = json!({ "name": tool, "arguments": arguments.to_string() });
    Some(json!([{ "index": 0, "id": format!("call_demo_{tool}"), "type": "function", "function": function }]))
}

const fn finish(say: &Say) -> &'static str {
    if say.call.is_some() { "tool_calls" } else { "stop" }
}

fn whole(say: &Say, usage: &Value) -> Value {
    let mut message = json!({ "role": "assistant", "content": say.text });
    if let Some(calls) = call(say) {
        message["tool_calls"] = calls;
    }
    json!({ "id": "demo", "object": "chat.completion", "created": 0, "model": "tour",
        "choices": [{ "index": 0, "message": message, "finish_reason": finish(say) }], "usage": usage })
}

/// The answer word by word, with usage and the end mark.
fn chunks(say: &Say, usage: &Value) -> Vec<String> {
    let chunk = |delta: Value, finish: Value| {
        json!({ "id": "demo", "object": "chat.completion.chunk", "created": 0, "model": "tour",
            "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }] })
    };
    let mut chunks = vec![chunk(json!({ "role": "assistant", "content": "" }), Value::Null)];
    chunks.extend(say.text.split_inclusive(' ').map(|word| chunk(json!({ "content": word }), Value::Null)));
    if let Some(calls) = call(say) {
        chunks.push(chunk(json!({ "tool_calls": calls }), Value::Null));
    }
    chunks.push(chunk(json!({}), finish(say).into()));
    chunks.push(json!({ "id": "demo", "object": "chat.completion.chunk", "created": 0, "model": "tour", "choices": [], "usage": usage }));
    chunks.iter().map(Value::to_string).chain(["[DONE]".to_owned()]).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn request(messages: &Value, tools: &[&str]) -> Value {
        let tools: Vec<_> = tools.iter().map(|name| json!({ "type": "function", "function": { "name": name } })).collect();
        json!({ "model": "tour", "stream": true, "messages": messages, "tools": tools })
    }

    #[test]
    fn the_tour_goes_from_a_command_over_a_file_to_the_end() {
        let mut messages =
            vec![json!({ "role": "system", "content": "x" }), json!({ "role": "user", "content": [{ "type": "text", "text": "hi" }] })];
        for expected in [Some("bash"), Some("write"), None] {
            let say = say(&request(&json!(messages), &["bash", "write", "read"]));
            assert_eq!(say.call.map(|(tool, _)| tool), expected);
            assert!(!say.text.is_empty());
            messages.push(json!({ "role": "assistant", "content": "x" }));
            messages.push(json!({ "role": "tool", "content": "done" }));
        }
        messages.push(json!({ "role": "user", "content": "write a compiler" }));
        assert_eq!(say(&request(&json!(messages), &["bash", "write"])), Say::text(LATER));
        messages.push(json!({ "role": "user", "content": "The tour, please" }));
        assert_eq!(say(&request(&json!(messages), &["bash", "write"])).call.unwrap().0, "bash");
    }

    #[test]
    fn a_refusal_is_heard_and_tools_that_are_not_offered_are_left_out() {
        let mut messages = vec![json!({ "role": "user", "content": "hi" })];
        assert_eq!(say(&request(&json!(messages), &["read"])).call, None);
        assert_eq!(say(&request(&json!(messages), &["write"])).call.unwrap().0, "write");
        messages.push(json!({ "role": "tool", "content": "The user rejected permission to use this specific tool call" }));
        assert!(say(&request(&json!(messages), &["bash", "write"])).text.starts_with(AFTER_NO));
    }

    #[test]
    fn a_request_without_tools_is_for_a_title() {
        assert_eq!(say(&request(&json!([{ "role": "user", "content": "hi" }]), &[])), Say::text(TITLE));
    }

    #[test]
    fn the_words_add_up_to_the_text_and_the_stream_ends_as_it_must() {
        let say = Say { text: "one two  three".into(), call: Some(("bash", json!({ "command": "ls" }))) };
        let chunks = chunks(&say, &usage(400, &say));
        assert_eq!(chunks.last().unwrap(), "[DONE]");
        let chunks: Vec<Value> = chunks[..chunks.len() - 1].iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
        let text: String = chunks.iter().filter_map(|chunk| chunk.pointer("/choices/0/delta/content")?.as_str()).collect();
        assert_eq!(text, say.text);
        assert!(chunks.iter().any(|chunk| chunk.pointer("/choices/0/finish_reason") == Some(&json!("tool_calls"))));
        assert_eq!(chunks.last().unwrap()["usage"]["prompt_tokens"], 100);
    }
}
