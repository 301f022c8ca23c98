//! Reads a request body of any of the three wire formats into the few facts the script needs.
//!
//! Lenient: whatever is missing or strange reads as empty, because providers add fields all the time.

use serde_json::Value;

use super::wire::Format;

/// How OpenCode's own agents begin their system prompts.
const INTRODUCTIONS: [(&str, Asker); 2] =
    [("You are a title generator", Asker::TitleAgent), ("You are a context summarization agent", Asker::SummaryAgent)];

/// Who sent a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Asker {
    /// The agent the user talks to, or a subagent: the last message is meant for the model.
    #[default]
    Agent,
    /// Wants a title; the last message is the user's prompt.
    TitleAgent,
    /// Wants a summary; the last message quotes the whole conversation.
    SummaryAgent,
}

/// What stands last in a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tail {
    /// The text of the last user message.
    User(String),
    /// The results of the tools just run.
    Results(Vec<String>),
}

/// The facts of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conversation {
    pub(super) model: String,
    pub(super) is_streaming: bool,
    /// Chat completions only: the last chunk shall carry the usage.
    pub(super) wants_usage: bool,
    pub(super) asker: Asker,
    /// Number of user messages.
    pub(super) turn: usize,
    pub(super) tail: Tail,
}

impl Conversation {
    pub(super) fn read(format: Format, body: &Value) -> Self {
        let messages = match format {
            Format::Chat | Format::Messages => items(&body["messages"]),
            Format::Responses => items(&body["input"]),
        };
        let mut seen = Seen::default();
        seen.system(&text_of(&body["system"]));
        seen.system(&text_of(&body["instructions"]));
        if let (Format::Responses, Value::String(input)) = (format, &body["input"]) {
            seen.user(input.clone());
        }
        for message in messages {
            match (message["role"].as_str(), message["type"].as_str()) {
                (Some("system" | "developer"), _) => seen.system(&text_of(&message["content"])),
                (Some("tool"), _) => seen.result(text_of(&message["content"])),
                (_, Some("function_call_output")) => seen.result(text_of(&message["output"])),
                (Some("user"), _) => user_message(&mut seen, &message["content"]),
                _ => seen.assistant(),
            }
        }
        Self {
            model: body["model"].as_str().unwrap_or(super::MODELS[0]).to_owned(),
            is_streaming: body["stream"].as_bool().unwrap_or(false),
            wants_usage: body["stream_options"]["include_usage"].as_bool().unwrap_or(false),
            asker: seen.asker,
            turn: seen.turn,
            tail: seen.tail.unwrap_or(Tail::User(String::new())),
        }
    }
}

/// Anthropic sends tool results inside user messages, and what the user says meanwhile in the same message after them.
fn user_message(seen: &mut Seen, content: &Value) {
    let blocks = items(content);
    let Some(last_result) = blocks.iter().rposition(|block| block["type"] == "tool_result") else {
        return seen.user(text_of(content));
    };
    for block in blocks.iter().filter(|block| block["type"] == "tool_result") {
        seen.result(text_of(&block["content"]));
    }
    let said = text_of_all(&blocks[last_result + 1..]);
    if !said.is_empty() {
        seen.user(said);
    }
}

#[derive(Default)]
struct Seen {
    asker: Asker,
    turn: usize,
    tail: Option<Tail>,
}

impl Seen {
    fn system(&mut self, text: &str) {
        if let Some((_, asker)) = INTRODUCTIONS.iter().find(|(words, _)| text.contains(words)) {
            self.asker = *asker;
        }
    }

    fn user(&mut self, text: String) {
        self.turn += 1;
        self.tail = Some(Tail::User(text));
    }

    fn result(&mut self, text: String) {
        match &mut self.tail {
            Some(Tail::Results(results)) => results.push(text),
            _ => self.tail = Some(Tail::Results(vec![text])),
        }
    }

    /// A new step: results before it have been answered.
    fn assistant(&mut self) {
        if let Some(Tail::Results(results)) = &mut self.tail {
            results.clear();
        }
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The text of a content field: a string, or blocks of which those with `text` count.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => text_of_all(blocks),
        _ => String::new(),
    }
}

fn text_of_all(blocks: &[Value]) -> String {
    let texts: Vec<&str> = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
    texts.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn results_of_an_earlier_step_are_not_repeated() {
        let body = json!({ "input": [
            { "role": "developer", "content": "Be brief" },
            { "role": "user", "content": [{ "type": "input_text", "text": "#bash ls" }] },
            { "type": "function_call", "call_id": "a" },
            { "type": "function_call_output", "call_id": "a", "output": "old" },
            { "type": "function_call", "call_id": "b" },
            { "type": "function_call_output", "call_id": "b", "output": [{ "type": "input_text", "text": "new" }] },
        ] });
        let read = Conversation::read(Format::Responses, &body);
        assert_eq!(read.tail, Tail::Results(vec!["new".into()]));
        assert_eq!((read.turn, read.is_streaming), (1, false));
    }

    #[test]
    fn what_the_user_says_after_a_tool_result_counts_as_said() {
        let result = json!({ "type": "tool_result", "content": [{ "type": "text", "text": "listing" }] });
        let said = json!({ "type": "text", "text": "#plain" });
        let read = |content: Value| {
            let body = json!({ "messages": [{ "role": "user", "content": "#bash ls" }, { "role": "user", "content": content }] });
            Conversation::read(Format::Messages, &body).tail
        };
        assert_eq!(read(json!([result])), Tail::Results(vec!["listing".into()]));
        assert_eq!(read(json!([result, said])), Tail::User("#plain".into()));
    }

    #[test]
    fn the_own_agents_of_opencode_are_known_by_their_system_prompt() {
        for (introduction, asker) in INTRODUCTIONS {
            let prompt = format!("{introduction}. You output ONLY text.");
            let user = json!({ "role": "user", "content": "Hello" });
            let chat = json!({ "messages": [{ "role": "system", "content": prompt }, user] });
            let responses = json!({ "instructions": prompt, "input": "Hello" });
            let messages = json!({ "system": [{ "type": "text", "text": prompt }], "messages": [user] });
            for (format, body) in [(Format::Chat, chat), (Format::Responses, responses), (Format::Messages, messages)] {
                assert_eq!(Conversation::read(format, &body).asker, asker, "{format:?}");
            }
        }
    }
}
