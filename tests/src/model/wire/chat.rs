//! OpenAI chat completions, with the `reasoning_content` field that compatible servers add, and OpenAI's error bodies.

use serde_json::{Value, json};

use super::super::script::{Refusal, Usage};
use super::{CREATED, Call, Encoder, Heading, Parts, call_number, halves};

pub(super) struct Stream {
    heading: Heading,
    calls: usize,
}

impl Stream {
    pub(super) fn new(heading: Heading) -> Self {
        Self { heading, calls: 0 }
    }

    fn chunk(&self, choices: &Value, usage: &Value) -> String {
        let mut chunk = json!({
            "id": id(&self.heading),
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": self.heading.model,
            "choices": choices,
        });
        if self.heading.wants_usage {
            chunk["usage"] = usage.clone();
        }
        format!("data: {chunk}\n\n")
    }

    fn delta(&self, delta: &Value, finish_reason: Option<&str>) -> String {
        self.chunk(&json!([{ "index": 0, "delta": delta, "finish_reason": finish_reason }]), &Value::Null)
    }
}

impl Encoder for Stream {
    fn open(&mut self) -> String {
        self.delta(&json!({ "role": "assistant", "content": "" }), None)
    }

    fn reason(&mut self, text: &str) -> String {
        self.delta(&json!({ "reasoning_content": text }), None)
    }

    fn text(&mut self, text: &str) -> String {
        self.delta(&json!({ "content": text }), None)
    }

    fn call(&mut self, name: &str, arguments: &str) -> String {
        let index = self.calls;
        self.calls += 1;
        let id = format!("call_{}", call_number(self.heading.number, index));
        let function = json!({ "name": name, "arguments": "" });
        let begin = json!({ "tool_calls": [{ "index": index, "id": id, "type": "function", "function": function }] });
        let mut frames = self.delta(&begin, None);
        for piece in halves(arguments) {
            let more = json!({ "tool_calls": [{ "index": index, "function": { "arguments": piece } }] });
            frames.push_str(&self.delta(&more, None));
        }
        frames
    }

    fn fail(&mut self) -> String {
        let error = json!({ "message": "The server broke off in mid-stream.", "type": "server_error", "code": "server_error" });
        format!("data: {}\n\n", json!({ "error": error }))
    }

    fn close(&mut self) -> String {
        let mut frames = self.delta(&json!({}), Some(finish_reason(self.calls)));
        if self.heading.wants_usage {
            frames.push_str(&self.chunk(&json!([]), &usage(self.heading.usage)));
        }
        frames.push_str("data: [DONE]\n\n");
        frames
    }
}

pub(super) fn whole(heading: &Heading, parts: &Parts) -> Value {
    let mut message = json!({ "role": "assistant", "content": parts.text });
    if !parts.reasoning.is_empty() {
        message["reasoning_content"] = json!(parts.reasoning);
    }
    if !parts.calls.is_empty() {
        message["content"] = Value::Null;
        message["tool_calls"] = parts.calls.iter().map(tool_call).collect();
    }
    json!({
        "id": id(heading),
        "object": "chat.completion",
        "created": CREATED,
        "model": heading.model,
        "choices": [{ "index": 0, "message": message, "finish_reason": finish_reason(parts.calls.len()) }],
        "usage": usage(heading.usage),
    })
}

/// OpenAI's error body, the same for chat completions and responses.
pub(super) fn refusal(refusal: Refusal) -> Value {
    let (message, kind, code) = match refusal {
        Refusal::Key => ("Incorrect API key provided.", "invalid_request_error", Some("invalid_api_key")),
        Refusal::Forbidden => ("You are not allowed to use this model.", "invalid_request_error", Some("model_not_allowed")),
        Refusal::RateLimit => ("Rate limit reached for requests.", "requests", Some("rate_limit_exceeded")),
        Refusal::Server => ("The server had an error.", "server_error", None),
        Refusal::Overflow => (
            "This model's maximum context length is 32000 tokens. However, your messages resulted in 40000 tokens. \
             Please reduce the length of the messages.",
            "invalid_request_error",
            Some("context_length_exceeded"),
        ),
        Refusal::Malformed => ("We could not parse the JSON body of your request.", "invalid_request_error", None),
    };
    json!({ "error": { "message": message, "type": kind, "param": Value::Null, "code": code } })
}

fn id(heading: &Heading) -> String {
    format!("chatcmpl-{:06}", heading.number)
}

fn tool_call(call: &Call) -> Value {
    let function = json!({ "name": call.name, "arguments": call.arguments });
    json!({ "id": format!("call_{}", call.number), "type": "function", "function": function })
}

fn finish_reason(calls: usize) -> &'static str {
    if calls == 0 { "stop" } else { "tool_calls" }
}

fn usage(usage: Usage) -> Value {
    let prompt = usage.input + usage.cache_read;
    let completion = usage.output + usage.reasoning;
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": { "cached_tokens": usage.cache_read },
        "completion_tokens_details": { "reasoning_tokens": usage.reasoning },
    })
}
