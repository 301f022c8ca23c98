//! Anthropic messages: a list of content blocks, each opened, filled by deltas and closed.
//!
//! The format has no count of reasoning tokens: they are part of the output tokens.

use serde_json::{Value, json};

use super::super::script::{Refusal, Usage};
use super::{Encoder, Heading, Parts, call_number, halves, named_frame};

/// Stands for the opaque proof that real servers attach to thinking.
const SIGNATURE: &str = "c2NyaXB0ZWQ=";

pub(super) struct Stream {
    heading: Heading,
    /// Blocks opened so far; the open one is the last.
    blocks: usize,
    open: Option<Kind>,
    calls: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
}

impl Stream {
    pub(super) fn new(heading: Heading) -> Self {
        Self { heading, blocks: 0, open: None, calls: 0 }
    }

    fn start_block(&mut self, block: &Value) -> String {
        self.blocks += 1;
        named_frame(&json!({ "type": "content_block_start", "index": self.blocks - 1, "content_block": block }))
    }

    fn delta(&self, delta: &Value) -> String {
        named_frame(&json!({ "type": "content_block_delta", "index": self.blocks.saturating_sub(1), "delta": delta }))
    }

    fn stop_block(&self) -> String {
        named_frame(&json!({ "type": "content_block_stop", "index": self.blocks.saturating_sub(1) }))
    }

    fn turn_to(&mut self, kind: Kind) -> String {
        if self.open == Some(kind) {
            return String::new();
        }
        let mut frames = self.close_block();
        self.open = Some(kind);
        frames.push_str(&self.start_block(&match kind {
            Kind::Thinking => json!({ "type": "thinking", "thinking": "", "signature": "" }),
            Kind::Text => json!({ "type": "text", "text": "" }),
        }));
        frames
    }

    fn close_block(&mut self) -> String {
        match self.open.take() {
            None => String::new(),
            Some(Kind::Text) => self.stop_block(),
            Some(Kind::Thinking) => {
                let proof = json!({ "type": "signature_delta", "signature": SIGNATURE });
                self.delta(&proof) + &self.stop_block()
            }
        }
    }
}

impl Encoder for Stream {
    fn open(&mut self) -> String {
        let mut message = message(&self.heading, &json!([]), None);
        message["usage"]["output_tokens"] = json!(1);
        let start = named_frame(&json!({ "type": "message_start", "message": message }));
        start + &named_frame(&json!({ "type": "ping" }))
    }

    fn reason(&mut self, text: &str) -> String {
        self.turn_to(Kind::Thinking) + &self.delta(&json!({ "type": "thinking_delta", "thinking": text }))
    }

    fn text(&mut self, text: &str) -> String {
        self.turn_to(Kind::Text) + &self.delta(&json!({ "type": "text_delta", "text": text }))
    }

    fn call(&mut self, name: &str, arguments: &str) -> String {
        let mut frames = self.close_block();
        let id = format!("toolu_{}", call_number(self.heading.number, self.calls));
        self.calls += 1;
        frames.push_str(&self.start_block(&json!({ "type": "tool_use", "id": id, "name": name, "input": {} })));
        for piece in halves(arguments) {
            frames.push_str(&self.delta(&json!({ "type": "input_json_delta", "partial_json": piece })));
        }
        frames + &self.stop_block()
    }

    fn fail(&mut self) -> String {
        let error = json!({ "type": "overloaded_error", "message": "The server broke off in mid-stream." });
        named_frame(&json!({ "type": "error", "error": error }))
    }

    fn close(&mut self) -> String {
        let mut frames = self.close_block();
        let delta = json!({ "stop_reason": stop_reason(self.calls), "stop_sequence": Value::Null });
        let usage = usage(self.heading.usage);
        frames.push_str(&named_frame(&json!({ "type": "message_delta", "delta": delta, "usage": usage })));
        frames + &named_frame(&json!({ "type": "message_stop" }))
    }
}

pub(super) fn whole(heading: &Heading, parts: &Parts) -> Value {
    let mut content = Vec::new();
    if !parts.reasoning.is_empty() {
        content.push(json!({ "type": "thinking", "thinking": parts.reasoning, "signature": SIGNATURE }));
    }
    if !parts.text.is_empty() {
        content.push(json!({ "type": "text", "text": parts.text }));
    }
    content.extend(parts.calls.iter().map(|call| {
        // A whole answer cannot carry broken JSON in this format.
        let input: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
        json!({ "type": "tool_use", "id": format!("toolu_{}", call.number), "name": call.name, "input": input })
    }));
    message(heading, &Value::Array(content), Some(stop_reason(parts.calls.len())))
}

pub(super) fn refusal(refusal: Refusal) -> Value {
    let (kind, message) = match refusal {
        Refusal::Key => ("authentication_error", "invalid x-api-key"),
        Refusal::Forbidden => ("permission_error", "Your API key may not use this model."),
        Refusal::RateLimit => ("rate_limit_error", "This request would exceed your rate limit."),
        Refusal::Server => ("api_error", "Internal server error"),
        Refusal::Overflow => ("invalid_request_error", "prompt is too long: 40000 tokens > 32000 maximum"),
        Refusal::Malformed => ("invalid_request_error", "The request body is not valid JSON."),
    };
    json!({ "type": "error", "error": { "type": kind, "message": message } })
}

fn message(heading: &Heading, content: &Value, stop_reason: Option<&str>) -> Value {
    json!({
        "id": format!("msg_{:06}", heading.number),
        "type": "message",
        "role": "assistant",
        "model": heading.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": Value::Null,
        "usage": usage(heading.usage),
    })
}

fn stop_reason(calls: usize) -> &'static str {
    if calls == 0 { "end_turn" } else { "tool_use" }
}

fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.output + usage.reasoning,
    })
}
