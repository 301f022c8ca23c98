//! The three wire formats: what a reply looks like as a stream, whole, and as an error.
//!
//! Everything here is a pure function of the reply and the ids given; times of creation are fixed, so that recordings
//! can be compared.

use axum::http::StatusCode;
use serde_json::Value;

use super::script::{Refusal, Reply, Step, Usage};

mod chat;
mod messages;
mod responses;

/// Creation time in every answer, seconds since 1970.
const CREATED: u64 = 1_767_225_600;

/// One of the formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenAI chat completions.
    Chat,
    /// OpenAI responses.
    Responses,
    /// Anthropic messages.
    Messages,
}

/// What names one answer.
#[derive(Debug, Clone)]
pub(super) struct Heading {
    /// Unique per server; ids of the answer and of its calls are made of it.
    pub(super) number: u64,
    pub(super) model: String,
    pub(super) usage: Usage,
    /// Chat completions only.
    pub(super) wants_usage: bool,
}

/// Writes one answer as server-sent events; each call returns the frames to send, ready for the socket.
pub(super) trait Encoder: Send {
    fn open(&mut self) -> String;
    fn reason(&mut self, text: &str) -> String;
    fn text(&mut self, text: &str) -> String;
    fn call(&mut self, name: &str, arguments: &str) -> String;
    /// An error object inside the stream, after which the stream ends.
    fn fail(&mut self) -> String;
    fn close(&mut self) -> String;
}

impl Format {
    pub(super) fn encoder(self, heading: Heading) -> Box<dyn Encoder> {
        match self {
            Self::Chat => Box::new(chat::Stream::new(heading)),
            Self::Responses => Box::new(responses::Stream::new(heading)),
            Self::Messages => Box::new(messages::Stream::new(heading)),
        }
    }

    /// The answer to a request that did not ask for a stream.
    pub(super) fn whole(self, heading: &Heading, reply: &Reply) -> Value {
        let parts = Parts::of(heading.number, reply);
        match self {
            Self::Chat => chat::whole(heading, &parts),
            Self::Responses => responses::whole(heading, &parts),
            Self::Messages => messages::whole(heading, &parts),
        }
    }

    pub(super) fn refusal(self, refusal: Refusal) -> (StatusCode, Value) {
        let status = match refusal {
            Refusal::Key => StatusCode::UNAUTHORIZED,
            Refusal::Forbidden => StatusCode::FORBIDDEN,
            Refusal::RateLimit => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Server => StatusCode::INTERNAL_SERVER_ERROR,
            Refusal::Overflow | Refusal::Malformed => StatusCode::BAD_REQUEST,
        };
        let body = match self {
            Self::Chat | Self::Responses => chat::refusal(refusal),
            Self::Messages => messages::refusal(refusal),
        };
        (status, body)
    }
}

/// A tool call of a whole answer.
struct Call {
    /// Number unique per server.
    number: String,
    name: String,
    arguments: String,
}

/// A reply gathered for a whole answer.
#[derive(Default)]
struct Parts {
    reasoning: String,
    text: String,
    calls: Vec<Call>,
}

impl Parts {
    fn of(number: u64, reply: &Reply) -> Self {
        let mut parts = Self::default();
        for step in &reply.steps {
            match step {
                Step::Reason(text) => parts.reasoning.push_str(text),
                Step::Text(text) => parts.text.push_str(text),
                Step::Call { name, arguments } => {
                    let number = call_number(number, parts.calls.len());
                    parts.calls.push(Call { number, name: name.clone(), arguments: arguments.clone() });
                }
                Step::Pause(_) | Step::Gate(_) | Step::Cut | Step::Fail => {}
            }
        }
        parts
    }
}

/// The variable part of a tool call's id.
fn call_number(answer: u64, index: usize) -> String {
    format!("{answer:06}_{index}")
}

/// A frame with an `event:` line, as OpenAI responses and Anthropic send them: the name is the data's `type`.
fn named_frame(data: &Value) -> String {
    format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap_or_default())
}

/// Arguments in two pieces, cut at a character boundary: readers must join them.
fn halves(arguments: &str) -> [&str; 2] {
    let middle = (arguments.len() / 2..=arguments.len()).find(|at| arguments.is_char_boundary(*at)).unwrap_or_default();
    let (head, tail) = arguments.split_at(middle);
    [head, tail]
}
