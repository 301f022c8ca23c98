//! From the words of a prompt to an answer, without knowing any wire format. The keyword table is in [`super`].

use std::time::Duration;

use serde_json::{Value, json};

use super::conversation::Tail;

/// Text of an answer without special wishes.
const QUICK_ANSWER: &str = "The quick answer is forty-two.";

/// Reasoning of `#reason`.
const REASONING: &str = "First the question, then what is known about it, then the answer.";

/// Answer to the summary agent; without keywords, because the agent reads it as what the user said.
const SUMMARY: &str = "The user asked for something and the scripted model answered.";

/// Input tokens of answers that name none: fixed, so that totals in tests do not follow OpenCode's prompt length.
const DEFAULT_INPUT_TOKENS: u64 = 1200;

/// Chunks of one answer at most.
const CHUNKS_MAX: usize = 100_000;

/// Longest pause between two chunks.
const PAUSE_MAX_MS: u64 = 60_000;

/// Between half an answer and its break: HTTP clients drop what they have not handed on when a connection breaks, so
/// without it OpenCode shows the half sometimes and sometimes not.
const BREAK_PAUSE: Duration = Duration::from_millis(50);

/// Characters of a tool result that the closing text repeats.
const RESULT_SHOWN_CHARS: usize = 400;

/// Words of a prompt that make a title.
const TITLE_WORDS: usize = 6;

/// Token counts as OpenCode shows them: disjoint, their sum is the total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) reasoning: u64,
    pub(super) cache_read: u64,
    pub(super) cache_write: u64,
}

/// One thing a stream does, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Reason(String),
    Text(String),
    /// A tool call; `arguments` is what is sent, JSON or not.
    Call {
        name: String,
        arguments: String,
    },
    Pause(Duration),
    /// Stand at the gate of that name.
    Gate(String),
    /// Break the connection.
    Cut,
    /// Send an error object and end.
    Fail,
}

/// A stream with its token counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) steps: Vec<Step>,
    pub(super) usage: Usage,
}

/// Why a request gets an error status instead of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 401
    Key,
    /// 403
    Forbidden,
    /// 429, may be tried again
    RateLimit,
    /// 500, may be tried again
    Server,
    /// 400, the context is too long
    Overflow,
    /// 400, the body is no JSON
    Malformed,
}

/// What a prompt asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Script {
    Reply(Reply),
    Refuse(Refusal),
    /// The first `times` tries meet `trouble`, later ones the reply.
    Trouble {
        times: u32,
        trouble: Trouble,
        then: Reply,
    },
    Hang,
}

/// What happens to the first tries of a [`Script::Trouble`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    Refuse(Refusal),
    Reply(Reply),
}

impl Reply {
    fn new(steps: Vec<Step>) -> Self {
        let count = |wanted: fn(&Step) -> bool| steps.iter().filter(|step| wanted(step)).count() as u64;
        let usage = Usage {
            input: DEFAULT_INPUT_TOKENS,
            output: count(|step| matches!(step, Step::Text(_) | Step::Call { .. })),
            reasoning: count(|step| matches!(step, Step::Reason(_))),
            ..Usage::default()
        };
        Self { steps, usage }
    }

    fn text(text: &str) -> Self {
        Self::new(words(text).map(Step::Text).collect())
    }

    fn call(name: &str, arguments: &Value) -> Self {
        Self::new(vec![call(name, arguments)])
    }

    /// Half of the quick answer, time for the reader to see it, then `end`.
    fn broken_off(end: Step) -> Self {
        let mut steps: Vec<Step> = words(QUICK_ANSWER).take(3).map(Step::Text).collect();
        steps.extend([Step::Pause(BREAK_PAUSE), end]);
        Self::new(steps)
    }
}

/// The title agent's answer: the first words of the prompt.
pub(super) fn title(tail: &Tail) -> Reply {
    let text = match tail {
        Tail::User(text) => text.as_str(),
        Tail::Results(_) => "",
    };
    let words = text.split_whitespace().map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()));
    let title: Vec<&str> = words.filter(|word| !word.is_empty()).take(TITLE_WORDS).collect();
    Reply::text(&format!("Scripted: {}", title.join(" ")))
}

/// The summary agent's answer.
pub(super) fn summary() -> Reply {
    Reply::text(SUMMARY)
}

/// What the last message asks for.
pub(super) fn script(tail: &Tail) -> Script {
    match tail {
        Tail::Results(results) => Script::Reply(Reply::text(&closing_text(results))),
        Tail::User(text) => match first_keyword(text) {
            Some(found) => run(&found),
            None => Script::Reply(Reply::text(QUICK_ANSWER)),
        },
    }
}

struct Keyword<'a> {
    name: &'a str,
    /// Arguments up to the end of the line, trimmed.
    line: &'a str,
    /// Everything after the keyword, trimmed.
    all: &'a str,
}

const KEYWORDS: [&str; 27] = [
    "plain",
    "echo",
    "long",
    "slow",
    "reason",
    "bash",
    "write",
    "edit",
    "read",
    "tools",
    "question",
    "todo",
    "subagent",
    "unknown-tool",
    "bad-args",
    "bad-json",
    "usage",
    "401",
    "403",
    "429",
    "429-forever",
    "500",
    "overflow",
    "cut",
    "stream-error",
    "hang",
    "wait",
];

fn first_keyword(text: &str) -> Option<Keyword<'_>> {
    text.match_indices('#').find_map(|(at, _)| {
        let starts_word = text[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric());
        let rest = &text[at + 1..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len());
        let (name, all) = rest.split_at(end);
        let line = all.lines().next().unwrap_or_default();
        (starts_word && KEYWORDS.contains(&name)).then_some(Keyword { name, line: line.trim(), all: all.trim() })
    })
}

fn run(keyword: &Keyword<'_>) -> Script {
    let line = keyword.line;
    let mut numbers = line.split_whitespace().map_while(|word| word.parse::<u64>().ok());
    let mut number = |default: u64| numbers.next().unwrap_or(default);
    let reply = match keyword.name {
        "echo" => Reply::text(keyword.all),
        "long" => Reply::new(numbered(number(100), None)),
        "slow" => {
            let pause = Duration::from_millis(number(100).min(PAUSE_MAX_MS));
            Reply::new(numbered(number(10), Some(pause)))
        }
        "reason" => {
            let reasons = words(REASONING).map(Step::Reason);
            Reply::new(reasons.chain(words(QUICK_ANSWER).map(Step::Text)).collect())
        }
        "bash" => Reply::call("bash", &bash(line)),
        "write" => {
            let (path, text) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            Reply::call("write", &json!({ "filePath": path, "content": unescape(text) }))
        }
        "edit" => {
            let (path, change) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let (old, new) = change.split_once("=>").unwrap_or((change, ""));
            let arguments = json!({ "filePath": path, "oldString": unescape(old), "newString": unescape(new) });
            Reply::call("edit", &arguments)
        }
        "read" => Reply::call("read", &json!({ "filePath": line })),
        "tools" => Reply::new(vec![call("bash", &bash("echo one")), call("bash", &bash("echo two"))]),
        "question" => Reply::call("question", &question()),
        "todo" => Reply::call("todowrite", &todos()),
        "subagent" => {
            let prompt = if line.is_empty() { "#plain" } else { line };
            let arguments = json!({ "description": "Sub job", "prompt": prompt, "subagent_type": "general" });
            Reply::call("task", &arguments)
        }
        "unknown-tool" => Reply::call("no_such_tool", &json!({})),
        "bad-args" => Reply::call("bash", &json!({ "order": 1 })),
        "bad-json" => Reply::new(vec![Step::Call { name: "bash".into(), arguments: "{\"command\": ".into() }]),
        "usage" => {
            let usage = Usage {
                input: number(DEFAULT_INPUT_TOKENS),
                output: number(0),
                reasoning: number(0),
                cache_read: number(0),
                cache_write: number(0),
            };
            Reply { usage, ..Reply::text(QUICK_ANSWER) }
        }
        "wait" => {
            let name = line.split_whitespace().next().unwrap_or("default").to_owned();
            let begin = words("The work has begun ").map(Step::Text);
            let end = words("and has ended.").map(Step::Text);
            Reply::new(begin.chain([Step::Gate(name)]).chain(end).collect())
        }
        "401" => return Script::Refuse(Refusal::Key),
        "403" => return Script::Refuse(Refusal::Forbidden),
        "429-forever" => return Script::Refuse(Refusal::RateLimit),
        "overflow" => return Script::Refuse(Refusal::Overflow),
        "429" => return trouble(number(1), Trouble::Refuse(Refusal::RateLimit)),
        "500" => return trouble(number(1), Trouble::Refuse(Refusal::Server)),
        "cut" => return trouble(number(1), Trouble::Reply(Reply::broken_off(Step::Cut))),
        "stream-error" => return trouble(number(1), Trouble::Reply(Reply::broken_off(Step::Fail))),
        "hang" => return Script::Hang,
        _ => Reply::text(QUICK_ANSWER),
    };
    Script::Reply(reply)
}

fn trouble(times: u64, trouble: Trouble) -> Script {
    let times = u32::try_from(times).unwrap_or(u32::MAX);
    Script::Trouble { times, trouble, then: Reply::text(QUICK_ANSWER) }
}

fn call(name: &str, arguments: &Value) -> Step {
    Step::Call { name: name.to_owned(), arguments: arguments.to_string() }
}

fn bash(command: &str) -> Value {
    json!({ "command": command, "description": "Run what the prompt asked for" })
}

fn question() -> Value {
    let options = json!([
        { "label": "Blue", "description": "The colour of the sky" },
        { "label": "Green", "description": "The colour of grass" },
    ]);
    json!({ "questions": [{ "question": "Which colour shall it be?", "header": "Colour", "options": options }] })
}

fn todos() -> Value {
    json!({ "todos": [
        { "id": "1", "content": "Read the code", "status": "completed", "priority": "high" },
        { "id": "2", "content": "Change the code", "status": "in_progress", "priority": "medium" },
        { "id": "3", "content": "Test the code", "status": "pending", "priority": "low" },
    ] })
}

fn closing_text(results: &[String]) -> String {
    let shown = results.iter().map(|result| result.trim().chars().take(RESULT_SHOWN_CHARS).collect::<String>());
    format!("Done. The tool said: {}", shown.collect::<Vec<_>>().join(" | "))
}

/// The text in chunks of one word with the white space after it, as models stream it.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split_inclusive(char::is_whitespace).map(str::to_owned)
}

fn numbered(count: u64, pause: Option<Duration>) -> Vec<Step> {
    let count = usize::try_from(count).unwrap_or(CHUNKS_MAX).min(CHUNKS_MAX);
    let mut steps = Vec::new();
    for number in 1..=count {
        if let Some(pause) = pause.filter(|_| number > 1) {
            steps.push(Step::Pause(pause));
        }
        // Lines of ten: long answers shall look like prose to whoever wraps and scrolls them.
        let space = if number % 10 == 0 { '\n' } else { ' ' };
        steps.push(Step::Text(format!("chunk-{number}{space}")));
    }
    steps
}

fn unescape(text: &str) -> String {
    text.replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply_to(prompt: &str) -> Reply {
        match script(&Tail::User(prompt.to_owned())) {
            Script::Reply(reply) => reply,
            other => panic!("{prompt} gave {other:?}"),
        }
    }

    fn arguments_of(prompt: &str) -> Value {
        match &reply_to(prompt).steps[..] {
            [Step::Call { arguments, .. }] => serde_json::from_str(arguments).expect("arguments are JSON"),
            other => panic!("{prompt} gave {other:?}"),
        }
    }

    fn text_of(reply: &Reply) -> String {
        reply.steps.iter().map(|step| if let Step::Text(text) = step { text.as_str() } else { "" }).collect()
    }

    #[test]
    fn the_first_known_keyword_decides_and_unknown_ones_are_text() {
        assert_eq!(arguments_of("fix #12 by #bash ls -l\nthen #plain")["command"], "ls -l");
        assert_eq!(text_of(&reply_to("nothing#bash here, C#, #unknown")), QUICK_ANSWER);
        assert_eq!(script(&Tail::User("#429-forever".into())), Script::Refuse(Refusal::RateLimit));
        assert!(matches!(script(&Tail::User("#429 2".into())), Script::Trouble { times: 2, .. }));
    }

    #[test]
    fn arguments_are_split_as_the_table_says() {
        let write = arguments_of("#write src/a.txt one two\\nthree");
        assert_eq!((write["filePath"].as_str(), write["content"].as_str()), (Some("src/a.txt"), Some("one two\nthree")));
        let edit = arguments_of("#edit a.txt old text=>new => text");
        assert_eq!((edit["oldString"].as_str(), edit["newString"].as_str()), (Some("old text"), Some("new => text")));
        assert_eq!(arguments_of("#subagent")["prompt"], "#plain");
        assert_eq!(arguments_of("#subagent #bash ls")["prompt"], "#bash ls");
        assert_eq!(text_of(&reply_to("#echo # Title\n\n- a\n- b\n")), "# Title\n\n- a\n- b");
    }

    #[test]
    fn usage_is_taken_from_the_prompt_or_counts_the_chunks() {
        let asked = Usage { input: 700, output: 150, reasoning: 50, cache_read: 300, cache_write: 0 };
        assert_eq!(reply_to("#usage 700 150 50 300").usage, asked);
        assert_eq!(reply_to("#long 7").usage.output, 7);
        assert_eq!(reply_to("#slow 5 7").usage.output, 7);
        assert_eq!(reply_to("#plain").usage, Usage { input: DEFAULT_INPUT_TOKENS, output: 5, ..Usage::default() });
    }

    #[test]
    fn every_keyword_of_the_table_has_its_own_answer() {
        let plain = script(&Tail::User("#plain".into()));
        for name in KEYWORDS.iter().skip(1) {
            let prompt = format!("#{name} 3 4 5");
            assert_ne!(script(&Tail::User(prompt)), plain, "#{name}");
        }
    }

    #[test]
    fn absurd_lengths_are_bounded() {
        assert_eq!(reply_to("#long 99999999999").steps.len(), CHUNKS_MAX);
        let longest = Step::Pause(Duration::from_millis(PAUSE_MAX_MS));
        assert_eq!(reply_to("#slow 99999999999 2").steps[1], longest);
    }

    #[test]
    fn a_tool_result_is_answered_by_text() {
        let tail = Tail::Results(vec!["one\n".into(), "two".into()]);
        assert!(matches!(script(&tail), Script::Reply(reply) if text_of(&reply) == "Done. The tool said: one | two"));
    }

    #[test]
    fn titles_are_made_of_the_first_words() {
        let tail = Tail::User("Please #bash ls -l and tell me everything".into());
        assert_eq!(text_of(&title(&tail)), "Scripted: Please bash ls l and tell");
    }
}
