//! The answer to the agent's first prompt when no session is at work yet: one word in the wire format that was asked for, so that the agent has
//! loaded what it needs to speak it. No provider is asked, no key is used, and nothing is counted.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;

use super::answer::{ProxyBody, refusal};

const CHAT_COMPLETIONS: &str = r#"data: {"id":"rehearsal","object":"chat.completion.chunk","created":0,"model":"rehearsal","choices":[{"index":0,"delta":{"role":"assistant","content":"Ready"},"finish_reason":null}]}

data: {"id":"rehearsal","object":"chat.completion.chunk","created":0,"model":"rehearsal","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}

data: [DONE]

"#;

const RESPONSES: &str = r#"event: response.created
data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_rehearsal","object":"response","created_at":0,"model":"rehearsal","status":"in_progress","output":[]}}

event: response.output_item.added
data: {"type":"response.output_item.added","sequence_number":1,"output_index":0,"item":{"type":"message","id":"msg_rehearsal","status":"in_progress","role":"assistant","content":[]}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":2,"item_id":"msg_rehearsal","output_index":0,"content_index":0,"delta":"Ready","logprobs":[]}

event: response.output_item.done
data: {"type":"response.output_item.done","sequence_number":3,"output_index":0,"item":{"type":"message","id":"msg_rehearsal","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Ready","annotations":[]}]}}

event: response.completed
data: {"type":"response.completed","sequence_number":4,"response":{"id":"resp_rehearsal","object":"response","created_at":0,"model":"rehearsal","status":"completed","output":[],"usage":{"input_tokens":0,"output_tokens":0,"total_tokens":0}}}

"#;

const MESSAGES: &str = r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_rehearsal","type":"message","role":"assistant","model":"rehearsal","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":0,"output_tokens":0}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Ready"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":0}}

event: message_stop
data: {"type":"message_stop"}

"#;

/// Answers a call of the provider's `path`.
pub(super) async fn answer(path: &str, body: Limited<Incoming>) -> Response<ProxyBody> {
    let word = match path {
        "responses" => RESPONSES,
        "messages" => MESSAGES,
        "chat/completions" => CHAT_COMPLETIONS,
        _ => return refusal(StatusCode::NOT_FOUND, "this call is not answered while no session is at work"),
    };
    // Read to its end, so that the connection stays good for the next call.
    if body.collect().await.is_err() {
        return refusal(StatusCode::BAD_REQUEST, "the request to the model ended early or is too large");
    }
    let mut answer = Response::new(Full::new(Bytes::from_static(word.as_bytes())).map_err(|never| match never {}).boxed());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer
}
