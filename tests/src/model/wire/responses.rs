//! OpenAI responses: a list of output items, each opened, filled by deltas and closed.

use serde_json::{Value, json};

use super::super::script::Usage;
use super::{CREATED, Call, Encoder, Heading, Parts, call_number, halves, named_frame};

pub(super) struct Stream {
    heading: Heading,
    sequence: u64,
    /// Closed items, as they appear in the final response.
    output: Vec<Value>,
    open: Option<Open>,
    calls: usize,
}

/// The item being filled.
struct Open {
    kind: Kind,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
}

impl Stream {
    pub(super) fn new(heading: Heading) -> Self {
        Self { heading, sequence: 0, output: Vec::new(), open: None, calls: 0 }
    }

    /// One frame of that type; `fields` is an object.
    fn event(&mut self, kind: &str, fields: Value) -> String {
        let mut data = json!({ "type": kind, "sequence_number": self.sequence });
        self.sequence += 1;
        if let (Value::Object(data), Value::Object(fields)) = (&mut data, fields) {
            data.extend(fields);
        }
        named_frame(&data)
    }

    fn item_id(&self, kind: Kind) -> String {
        item_id(kind, self.heading.number, self.output.len())
    }

    /// Makes an item of that kind the open one, closing another.
    fn turn_to(&mut self, kind: Kind) -> String {
        if self.open.as_ref().is_some_and(|open| open.kind == kind) {
            return String::new();
        }
        let mut frames = self.close_item();
        let id = self.item_id(kind);
        let index = self.output.len();
        self.open = Some(Open { kind, text: String::new() });
        let item = match kind {
            Kind::Reasoning => reasoning_item(&id, None),
            Kind::Message => json!({ "type": "message", "id": id, "status": "in_progress", "role": "assistant", "content": [] }),
        };
        frames.push_str(&self.event("response.output_item.added", json!({ "output_index": index, "item": item })));
        let (name, part) = match kind {
            Kind::Reasoning => {
                let part = json!({ "type": "summary_text", "text": "" });
                ("response.reasoning_summary_part.added", json!({ "item_id": id, "output_index": index, "summary_index": 0, "part": part }))
            }
            Kind::Message => {
                ("response.content_part.added", json!({ "item_id": id, "output_index": index, "content_index": 0, "part": text_part("") }))
            }
        };
        frames.push_str(&self.event(name, part));
        frames
    }

    fn close_item(&mut self) -> String {
        let Some(Open { kind, text }) = self.open.take() else { return String::new() };
        let id = self.item_id(kind);
        let index = self.output.len();
        let mut frames = String::new();
        let item = match kind {
            Kind::Reasoning => {
                let place = json!({ "item_id": id, "output_index": index, "summary_index": 0, "text": text });
                frames.push_str(&self.event("response.reasoning_summary_text.done", place));
                let part = json!({ "type": "summary_text", "text": text });
                let place = json!({ "item_id": id, "output_index": index, "summary_index": 0, "part": part });
                frames.push_str(&self.event("response.reasoning_summary_part.done", place));
                reasoning_item(&id, Some(&text))
            }
            Kind::Message => {
                let place = json!({ "item_id": id, "output_index": index, "content_index": 0, "text": text, "logprobs": [] });
                frames.push_str(&self.event("response.output_text.done", place));
                let place = json!({ "item_id": id, "output_index": index, "content_index": 0, "part": text_part(&text) });
                frames.push_str(&self.event("response.content_part.done", place));
                message_item(&id, &text)
            }
        };
        frames.push_str(&self.event("response.output_item.done", json!({ "output_index": index, "item": item })));
        self.output.push(item);
        frames
    }

    fn delta(&mut self, kind: Kind, text: &str) -> String {
        let mut frames = self.turn_to(kind);
        if let Some(open) = &mut self.open {
            open.text.push_str(text);
        }
        let id = self.item_id(kind);
        let index = self.output.len();
        let (name, fields) = match kind {
            Kind::Reasoning => (
                "response.reasoning_summary_text.delta",
                json!({ "item_id": id, "output_index": index, "summary_index": 0, "delta": text }),
            ),
            Kind::Message => (
                "response.output_text.delta",
                json!({ "item_id": id, "output_index": index, "content_index": 0, "delta": text, "logprobs": [] }),
            ),
        };
        frames.push_str(&self.event(name, fields));
        frames
    }
}

impl Encoder for Stream {
    fn open(&mut self) -> String {
        let response = response(&self.heading, "in_progress", &[]);
        let mut frames = self.event("response.created", json!({ "response": response }));
        frames.push_str(&self.event("response.in_progress", json!({ "response": response })));
        frames
    }

    fn reason(&mut self, text: &str) -> String {
        self.delta(Kind::Reasoning, text)
    }

    fn text(&mut self, text: &str) -> String {
        self.delta(Kind::Message, text)
    }

    fn call(&mut self, name: &str, arguments: &str) -> String {
        let mut frames = self.close_item();
        let number = call_number(self.heading.number, self.calls);
        self.calls += 1;
        let index = self.output.len();
        let id = format!("fc_{number}");
        let begin = call_item(&number, name, "", "in_progress");
        frames.push_str(&self.event("response.output_item.added", json!({ "output_index": index, "item": begin })));
        for piece in halves(arguments) {
            let fields = json!({ "item_id": id, "output_index": index, "delta": piece });
            frames.push_str(&self.event("response.function_call_arguments.delta", fields));
        }
        let fields = json!({ "item_id": id, "output_index": index, "arguments": arguments });
        frames.push_str(&self.event("response.function_call_arguments.done", fields));
        let item = call_item(&number, name, arguments, "completed");
        frames.push_str(&self.event("response.output_item.done", json!({ "output_index": index, "item": item })));
        self.output.push(item);
        frames
    }

    fn fail(&mut self) -> String {
        let fields = json!({ "code": "server_error", "message": "The server broke off in mid-stream.", "param": Value::Null });
        self.event("error", fields)
    }

    fn close(&mut self) -> String {
        let mut frames = self.close_item();
        let response = response(&self.heading, "completed", &self.output);
        frames.push_str(&self.event("response.completed", json!({ "response": response })));
        frames
    }
}

pub(super) fn whole(heading: &Heading, parts: &Parts) -> Value {
    let mut output = Vec::new();
    if !parts.reasoning.is_empty() {
        output.push(reasoning_item(&item_id(Kind::Reasoning, heading.number, output.len()), Some(&parts.reasoning)));
    }
    if !parts.text.is_empty() {
        output.push(message_item(&item_id(Kind::Message, heading.number, output.len()), &parts.text));
    }
    let calls = parts.calls.iter().map(|Call { number, name, arguments }| call_item(number, name, arguments, "completed"));
    output.extend(calls);
    response(heading, "completed", &output)
}

fn response(heading: &Heading, status: &str, output: &[Value]) -> Value {
    let usage = if status == "completed" { usage(heading.usage) } else { Value::Null };
    json!({
        "id": format!("resp_{:06}", heading.number),
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": Value::Null,
        "incomplete_details": Value::Null,
        "model": heading.model,
        "output": output,
        "parallel_tool_calls": true,
        "usage": usage,
    })
}

fn item_id(kind: Kind, number: u64, index: usize) -> String {
    match kind {
        Kind::Reasoning => format!("rs_{number:06}_{index}"),
        Kind::Message => format!("msg_{number:06}_{index}"),
    }
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn message_item(id: &str, text: &str) -> Value {
    json!({ "type": "message", "id": id, "status": "completed", "role": "assistant", "content": [text_part(text)] })
}

fn reasoning_item(id: &str, text: Option<&str>) -> Value {
    let summary: Vec<Value> = text.iter().map(|text| json!({ "type": "summary_text", "text": text })).collect();
    json!({ "type": "reasoning", "id": id, "summary": summary, "encrypted_content": "c2NyaXB0ZWQ=" })
}

fn call_item(number: &str, name: &str, arguments: &str, status: &str) -> Value {
    json!({
        "type": "function_call",
        "id": format!("fc_{number}"),
        "call_id": format!("call_{number}"),
        "name": name,
        "arguments": arguments,
        "status": status,
    })
}

fn usage(usage: Usage) -> Value {
    let input = usage.input + usage.cache_read;
    let output = usage.output + usage.reasoning;
    json!({
        "input_tokens": input,
        "input_tokens_details": { "cached_tokens": usage.cache_read },
        "output_tokens": output,
        "output_tokens_details": { "reasoning_tokens": usage.reasoning },
        "total_tokens": input + output,
    })
}
