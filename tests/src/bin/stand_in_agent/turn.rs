//! Conversations and their turns: one task a busy conversation, which works off its prompts in order.
//!
//! The order of events within a turn is the recorded one. Where a turn is stopped, what it left open is closed as OpenCode does it: first `idle`, then the parts, then
//! the message, then `idle` again.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::log::{Log, id, now};
use super::rules::{Rules, Verdict};

/// Answer to a prompt without a keyword.
const QUICK_ANSWER: &str = "The quick answer is forty-two.";

/// Words of a prompt that make a title.
const TITLE_WORDS: usize = 6;

/// Input tokens of every step.
const INPUT_TOKENS: u64 = 1200;

/// Time between two looks for the file of `#wait`.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What a user asked.
pub(crate) struct Prompt {
    message: String,
    text: String,
    agent: String,
    model: Value,
}

impl Prompt {
    pub(crate) fn of(body: &Value) -> Option<Self> {
        Some(Self {
            message: body["messageID"].as_str().map_or_else(|| id("msg"), str::to_owned),
            text: body["parts"].as_array()?.iter().find_map(|part| part["text"].as_str())?.to_owned(),
            agent: body["agent"].as_str().unwrap_or("build").to_owned(),
            model: body["model"].clone(),
        })
    }
}

/// What was answered to a request.
#[derive(Debug)]
pub(crate) enum Reply {
    Once,
    Always,
    Rejected { message: Option<String> },
    Chosen(Value),
}

struct Waiting {
    is_permission: bool,
    request: Value,
    answer: oneshot::Sender<Reply>,
}

struct Busy {
    stop: CancellationToken,
    prompts: VecDeque<Prompt>,
}

/// Everything that the process knows beside the log.
pub(crate) struct Agent {
    log: Mutex<Log>,
    rules: Mutex<Rules>,
    waiting: Mutex<BTreeMap<String, Waiting>>,
    busy: Mutex<BTreeMap<String, Busy>>,
    tasks: TaskTracker,
    pub(crate) config: Value,
    directory: PathBuf,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    pub(crate) fn new(log: Log, rules: Rules, config: Value, directory: PathBuf) -> Arc<Self> {
        let (log, rules) = (Mutex::new(log), Mutex::new(rules));
        Arc::new(Self { log, rules, waiting: Mutex::default(), busy: Mutex::default(), tasks: TaskTracker::new(), config, directory })
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }

    fn durable(&self, session: &str, kind: &str, mut properties: Value) -> io::Result<()> {
        properties["sessionID"] = session.into();
        self.log().durable(session, kind, &properties)
    }

    fn transient(&self, session: &str, kind: &str, mut properties: Value) {
        properties["sessionID"] = session.into();
        self.log().transient(kind, &properties);
    }

    pub(crate) fn create(&self, id: &str) -> io::Result<Value> {
        if let Some(info) = self.log().session(id) {
            return Ok(info.clone());
        }
        let at = now();
        let info = json!({
            "id": id, "slug": "stand-in", "version": super::VERSION, "projectID": "stand-in", "directory": self.directory, "path": "",
            "title": format!("New session - {at}"), "cost": 0, "time": { "created": at, "updated": at },
        });
        self.durable(id, "session.created", json!({ "info": info }))?;
        Ok(info)
    }

    pub(crate) fn rename(&self, id: &str, title: &str) -> io::Result<Option<Value>> {
        let Some(mut info) = self.log().session(id).cloned() else { return Ok(None) };
        info["title"] = title.into();
        info["time"]["updated"] = now().into();
        self.durable(id, "session.updated", json!({ "info": info }))?;
        Ok(Some(info))
    }

    pub(crate) fn statuses(&self) -> Value {
        lock(&self.busy).keys().map(|session| (session.clone(), json!({ "type": "busy" }))).collect::<serde_json::Map<_, _>>().into()
    }

    pub(crate) fn waiting(&self, is_permission: bool) -> Value {
        lock(&self.waiting)
            .values()
            .filter(|waiting| waiting.is_permission == is_permission)
            .map(|waiting| waiting.request.clone())
            .collect()
    }

    /// Stores the prompt and lets it be worked on; `false` when there is no such conversation.
    pub(crate) fn prompt(self: &Arc<Self>, session: &str, prompt: Prompt) -> io::Result<bool> {
        if self.log().session(session).is_none() {
            return Ok(false);
        }
        let Prompt { message, text, agent, model } = &prompt;
        let info =
            json!({ "id": message, "role": "user", "sessionID": session, "time": { "created": now() }, "agent": agent, "model": model });
        self.durable(session, "message.updated", json!({ "info": info }))?;
        let part = json!({ "type": "text", "text": text, "messageID": message, "sessionID": session, "id": id("prt") });
        self.durable(session, "message.part.updated", json!({ "part": part, "time": now() }))?;
        let mut busy = lock(&self.busy);
        if let Some(busy) = busy.get_mut(session) {
            busy.prompts.push_back(prompt);
            return Ok(true);
        }
        let stop = CancellationToken::new();
        busy.insert(session.to_owned(), Busy { stop: stop.clone(), prompts: VecDeque::from([prompt]) });
        let (agent, session) = (self.clone(), session.to_owned());
        self.tasks.spawn(async move { agent.work(&session, &stop).await });
        Ok(true)
    }

    pub(crate) fn abort(&self, session: &str) {
        if let Some(busy) = lock(&self.busy).get(session) {
            busy.stop.cancel();
        }
    }

    /// Stops every turn and waits for their ends.
    pub(crate) async fn dispose(&self) {
        lock(&self.busy).values().for_each(|busy| busy.stop.cancel());
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
        self.log().transient("server.instance.disposed", &json!({ "directory": self.directory }));
        self.log().transient("global.disposed", &json!({}));
    }

    /// `false` when nothing of this id waits.
    pub(crate) fn reply(&self, id: &str, given: Reply) -> bool {
        let Some(Waiting { request, answer, .. }) = lock(&self.waiting).remove(id) else { return false };
        let session = request["sessionID"].as_str().unwrap_or_default();
        let (kind, word) = match &given {
            Reply::Once => ("permission.replied", json!("once")),
            Reply::Always => ("permission.replied", json!("always")),
            Reply::Rejected { .. } if request["questions"].is_array() => ("question.rejected", Value::Null),
            Reply::Rejected { .. } => ("permission.replied", json!("reject")),
            Reply::Chosen(_) => ("question.replied", Value::Null),
        };
        let mut told = json!({ "requestID": id });
        if let Reply::Chosen(answers) = &given {
            told["answers"] = answers.clone();
        }
        if !word.is_null() {
            told["reply"] = word;
        }
        if matches!(given, Reply::Always) {
            for pattern in request["always"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                lock(&self.rules).allow(request["permission"].as_str().unwrap_or_default(), pattern);
            }
        }
        self.transient(session, kind, told);
        // The turn may have been stopped.
        let _ = answer.send(given);
        true
    }

    async fn work(&self, session: &str, stop: &CancellationToken) {
        loop {
            // Taking the next prompt and coming to rest are one step: a prompt between them would be forgotten.
            let next = {
                let mut busy = lock(&self.busy);
                let next = busy.get_mut(session).filter(|_| !stop.is_cancelled()).and_then(|busy| busy.prompts.pop_front());
                if next.is_none() {
                    busy.remove(session);
                }
                next
            };
            let Some(prompt) = next else { return };
            let mut turn = Turn { agent: self, session, stop, prompt: &prompt, message: Value::Null, open: vec![], spent: 0.0, words: 0 };
            let ended = turn.run().await;
            let last = stop.is_cancelled() || lock(&self.busy).get(session).is_none_or(|busy| busy.prompts.is_empty());
            let closed = match ended {
                Ok(()) if last => turn.rest(),
                Ok(()) => Ok(()),
                Err(Stopped::Aborted) => turn.close(&json!({ "name": "MessageAbortedError", "data": { "message": "Aborted" } })),
                Err(Stopped::Disk(error)) => turn.close(&json!({ "name": "UnknownError", "data": { "message": error.to_string() } })),
            };
            if let Err(error) = closed {
                eprintln!("the end of a turn could not be written: {error}");
            }
        }
    }
}

/// Why a turn did not come to its end.
enum Stopped {
    Aborted,
    Disk(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// The work on one prompt.
struct Turn<'a> {
    agent: &'a Agent,
    session: &'a str,
    stop: &'a CancellationToken,
    prompt: &'a Prompt,
    /// The assistant's message that is being written.
    message: Value,
    /// Its parts that are not finished.
    open: Vec<Value>,
    spent: f64,
    words: u64,
}

impl Turn<'_> {
    async fn run(&mut self) -> Result<(), Stopped> {
        self.status("busy");
        self.begin_message()?;
        self.title()?;
        self.agent.transient(self.session, "session.diff", json!({ "diff": [] }));
        self.user_message()?;
        self.status("busy");
        self.part(json!({ "type": "step-start", "snapshot": "stand-in" }))?;
        let (keyword, line) = keyword(&self.prompt.text);
        match keyword {
            "#echo" => self.say(line.split_inclusive(' '), Duration::ZERO).await?,
            "#slow" => {
                let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap_or(0));
                let (millis, count) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
                let words: Vec<String> = (0..count).map(|number| format!("word{number} ")).collect();
                self.say(words.iter().map(String::as_str), Duration::from_millis(millis)).await?;
            }
            "#wait" => self.wait_for(line).await?,
            "#hang" => {
                self.stop.cancelled().await;
                return Err(Stopped::Aborted);
            }
            "#bash" => {
                let goes_on = self.bash(line).await?;
                return self.after_tool(goes_on).await;
            }
            "#question" => {
                let goes_on = self.question().await?;
                return self.after_tool(goes_on).await;
            }
            _ => self.say(QUICK_ANSWER.split_inclusive(' '), Duration::ZERO).await?,
        }
        self.end_message("stop")
    }

    async fn after_tool(&mut self, goes_on: bool) -> Result<(), Stopped> {
        self.end_message("tool-calls")?;
        if !goes_on {
            return Ok(());
        }
        self.status("busy");
        self.begin_message()?;
        self.status("busy");
        self.part(json!({ "type": "step-start", "snapshot": "stand-in" }))?;
        self.say("The tool has finished.".split_inclusive(' '), Duration::ZERO).await?;
        self.end_message("stop")
    }

    fn status(&self, word: &str) {
        self.agent.transient(self.session, "session.status", json!({ "status": { "type": word } }));
    }

    fn tell_message(&self) -> io::Result<()> {
        self.agent.durable(self.session, "message.updated", json!({ "info": self.message }))
    }

    fn begin_message(&mut self) -> io::Result<()> {
        let Prompt { message, agent, model, .. } = self.prompt;
        let place = self.agent.directory.to_string_lossy();
        self.message = json!({
            "id": id("msg"), "parentID": message, "role": "assistant", "mode": agent, "agent": agent,
            "path": { "cwd": place, "root": place }, "cost": 0,
            "tokens": { "input": 0, "output": 0, "reasoning": 0, "cache": { "read": 0, "write": 0 } },
            "modelID": model["modelID"], "providerID": model["providerID"],
            "time": { "created": now() }, "sessionID": self.session,
        });
        self.words = 0;
        self.tell_message()
    }

    fn title(&self) -> io::Result<()> {
        let untitled = self
            .agent
            .log()
            .session(self.session)
            .is_some_and(|info| info["title"].as_str().is_some_and(|title| title.starts_with("New session - ")));
        if untitled {
            let title: Vec<&str> = self.prompt.text.split_whitespace().take(TITLE_WORDS).collect();
            self.agent.rename(self.session, &title.join(" "))?;
        }
        Ok(())
    }

    fn user_message(&self) -> io::Result<()> {
        let Prompt { message, agent, model, .. } = self.prompt;
        let created = self.agent.log().message(message)?.map_or(Value::Null, |mut info| info["time"]["created"].take());
        let info = json!({
            "role": "user", "time": { "created": created }, "agent": agent, "model": model, "id": message, "sessionID": self.session,
            "summary": { "diffs": [] },
        });
        self.agent.durable(self.session, "message.updated", json!({ "info": info }))
    }

    /// Tells a part as it is now; one without an id is a new one. Gives it as it was told.
    fn part(&self, mut part: Value) -> io::Result<Value> {
        if part["id"].is_null() {
            part["id"] = id("prt").into();
        }
        part["messageID"] = self.message["id"].clone();
        part["sessionID"] = self.session.into();
        self.agent.durable(self.session, "message.part.updated", json!({ "part": part, "time": now() }))?;
        Ok(part)
    }

    async fn pause(&self, time: Duration) -> Result<(), Stopped> {
        if time.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(time) => {}
            }
        }
        if self.stop.is_cancelled() { Err(Stopped::Aborted) } else { Ok(()) }
    }

    fn begin_text(&mut self) -> io::Result<()> {
        let part = self.part(json!({ "type": "text", "text": "", "time": { "start": now() } }))?;
        self.open.push(part);
        Ok(())
    }

    fn letters(&mut self, letters: &str) {
        let Some(part) = self.open.last_mut() else { return };
        let text = part["text"].as_str().unwrap_or_default().to_owned() + letters;
        part["text"] = text.into();
        self.words += 1;
        let delta = json!({ "messageID": part["messageID"], "partID": part["id"], "field": "text", "delta": letters });
        self.agent.transient(self.session, "message.part.delta", delta);
    }

    fn end_text(&mut self) -> io::Result<()> {
        let Some(mut part) = self.open.pop() else { return Ok(()) };
        part["time"]["end"] = now().into();
        self.part(part).map(drop)
    }

    async fn say(&mut self, words: impl Iterator<Item = &str>, pause: Duration) -> Result<(), Stopped> {
        self.begin_text()?;
        for word in words {
            self.letters(word);
            self.pause(pause).await?;
        }
        Ok(self.end_text()?)
    }

    async fn wait_for(&mut self, name: &str) -> Result<(), Stopped> {
        self.begin_text()?;
        self.letters("It begins ");
        let gate = self.agent.directory.join(name);
        while !gate.exists() {
            self.pause(LOOK_INTERVAL).await?;
        }
        self.letters("and ends.");
        Ok(self.end_text()?)
    }

    /// Begins a tool call and gives its part, which is open from now on.
    fn begin_tool(&mut self, tool: &str) -> io::Result<Value> {
        let part = self.part(
            json!({ "type": "tool", "tool": tool, "callID": id("call"), "state": { "status": "pending", "input": {}, "raw": "" } }),
        )?;
        self.open.push(part.clone());
        Ok(part)
    }

    fn tool_state(&mut self, state: Value) -> io::Result<()> {
        let ended = matches!(state["status"].as_str(), Some("completed" | "error"));
        let Some(mut part) = self.open.pop() else { return Ok(()) };
        part["state"] = state;
        let part = self.part(part)?;
        if !ended {
            self.open.push(part);
        }
        Ok(())
    }

    async fn ask(&self, is_permission: bool, mut request: Value, part: &Value) -> Result<Reply, Stopped> {
        let (kind, prefix) = if is_permission { ("permission.asked", "per") } else { ("question.asked", "que") };
        let key = id(prefix);
        request["id"] = key.as_str().into();
        request["sessionID"] = self.session.into();
        request["tool"] = json!({ "messageID": part["messageID"], "callID": part["callID"] });
        let (answer, answered) = oneshot::channel();
        lock(&self.agent.waiting).insert(key, Waiting { is_permission, request: request.clone(), answer });
        self.agent.transient(self.session, kind, request);
        tokio::select! {
            // OpenCode forgets to take the request out of its list; so does this.
            () = self.stop.cancelled() => Err(Stopped::Aborted),
            answer = answered => answer.map_err(|_| Stopped::Aborted),
        }
    }

    /// Whether the turn goes on.
    async fn bash(&mut self, command: &str) -> Result<bool, Stopped> {
        let part = self.begin_tool("bash")?;
        let (input, start) = (json!({ "command": command, "description": "What the prompt says" }), now());
        let failed = |error: String| json!({ "status": "error", "input": input, "error": error, "time": { "start": start, "end": now() } });
        let verdict = lock(&self.agent.rules).verdict("bash", command);
        self.tool_state(json!({ "status": "running", "input": input, "time": { "start": start } }))?;
        match verdict {
            Verdict::Allow => {}
            Verdict::Deny => {
                self.tool_state(failed("The user has specified a rule which prevents you from using this specific tool call.".to_owned()))?;
                return Ok(true);
            }
            Verdict::Ask => {
                let always = format!("{} *", command.split_whitespace().next().unwrap_or_default());
                let request =
                    json!({ "permission": "bash", "patterns": [command], "metadata": { "command": command }, "always": [always] });
                if let Reply::Rejected { message } = self.ask(true, request, &part).await? {
                    let feedback =
                        message.as_ref().map_or_else(|| ".".to_owned(), |message| format!(" with the following feedback: {message}"));
                    self.tool_state(failed(format!("The user rejected permission to use this specific tool call{feedback}")))?;
                    return Ok(message.is_some());
                }
            }
        }
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-c", command]).current_dir(&self.agent.directory).stdin(Stdio::null()).kill_on_drop(true);
        let run = shell.output();
        let output = tokio::select! {
            () = self.stop.cancelled() => return Err(Stopped::Aborted),
            output = run => output?,
        };
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        self.tool_state(json!({ "status": "running", "input": input, "metadata": { "output": said }, "time": { "start": start } }))?;
        self.tool_state(json!({
            "status": "completed", "input": input, "output": said, "title": command,
            "metadata": { "output": said, "exit": output.status.code(), "truncated": false },
            "time": { "start": start, "end": now() },
        }))?;
        Ok(true)
    }

    /// Whether the turn goes on.
    async fn question(&mut self) -> Result<bool, Stopped> {
        let part = self.begin_tool("question")?;
        let option = |label: &str| json!({ "label": label, "description": format!("The colour {label}") });
        let questions =
            json!([{ "question": "Which colour do you want?", "header": "Colour", "options": [option("Blue"), option("Green")] }]);
        let (input, start) = (json!({ "questions": questions }), now());
        self.tool_state(json!({ "status": "running", "input": input, "time": { "start": start } }))?;
        let (state, goes_on) = match self.ask(false, json!({ "questions": questions }), &part).await? {
            Reply::Chosen(answers) => {
                let output = format!("The user answered: {answers}");
                (
                    json!({ "status": "completed", "input": input, "output": output, "title": "Asked 1 question", "metadata": { "answers": answers }, "time": { "start": start, "end": now() } }),
                    true,
                )
            }
            Reply::Once | Reply::Always | Reply::Rejected { .. } => (
                json!({ "status": "error", "input": input, "error": "The user dismissed this question", "time": { "start": start, "end": now() } }),
                false,
            ),
        };
        self.tool_state(state)?;
        Ok(goes_on)
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of words are small")]
    fn end_message(&mut self, finish: &str) -> Result<(), Stopped> {
        let (provider, model) =
            (self.message["providerID"].as_str().unwrap_or_default(), self.message["modelID"].as_str().unwrap_or_default());
        let price = |what: &str| self.agent.config["provider"][provider]["models"][model]["cost"][what].as_f64().unwrap_or(0.0);
        let cost = (INPUT_TOKENS as f64).mul_add(price("input"), self.words as f64 * price("output")) / 1e6;
        self.spent += cost;
        let tokens = json!({
            "total": INPUT_TOKENS + self.words, "input": INPUT_TOKENS, "output": self.words, "reasoning": 0,
            "cache": { "read": 0, "write": 0 },
        });
        self.part(json!({ "type": "step-finish", "reason": finish, "snapshot": "stand-in", "tokens": tokens, "cost": cost }))?;
        self.message["cost"] = cost.into();
        self.message["tokens"] = tokens;
        self.message["finish"] = finish.into();
        self.tell_message()?;
        self.message["time"]["completed"] = now().into();
        Ok(self.tell_message()?)
    }

    fn idle(&self) {
        self.status("idle");
        self.agent.transient(self.session, "session.idle", json!({}));
    }

    /// The conversation comes to rest after a turn that came to its end.
    fn rest(&self) -> io::Result<()> {
        self.idle();
        let info = self.agent.log().session(self.session).cloned();
        if let Some(mut info) = info {
            info["cost"] = (info["cost"].as_f64().unwrap_or(0.0) + self.spent).into();
            info["time"]["updated"] = now().into();
            self.agent.durable(self.session, "session.updated", json!({ "info": info }))?;
        }
        self.agent.transient(self.session, "session.diff", json!({ "diff": [] }));
        self.user_message()
    }

    /// The conversation comes to rest after a turn that was stopped.
    fn close(&mut self, error: &Value) -> io::Result<()> {
        self.agent.transient(self.session, "session.error", json!({ "error": error }));
        self.idle();
        for mut part in std::mem::take(&mut self.open) {
            if part["type"] == "tool" {
                let (input, start) = (part["state"]["input"].clone(), part["state"]["time"]["start"].clone());
                part["state"] = json!({ "status": "error", "input": input, "error": "Tool execution aborted", "time": { "start": start, "end": now() } });
            } else {
                part["time"]["end"] = now().into();
            }
            self.part(part)?;
        }
        if self.message.is_object() {
            self.message["error"] = error.clone();
            self.message["time"]["completed"] = now().into();
            self.tell_message()?;
        }
        self.idle();
        Ok(())
    }
}

/// The first keyword of a prompt and the rest of its line.
fn keyword(text: &str) -> (&str, &str) {
    const KEYWORDS: [&str; 6] = ["#echo", "#slow", "#wait", "#bash", "#question", "#hang"];
    let found = text.lines().find_map(|line| {
        line.split_whitespace().find(|word| KEYWORDS.contains(word)).map(|word| {
            let at = line.find(word).unwrap_or_default() + word.len();
            (word, line.get(at..).unwrap_or_default().trim())
        })
    });
    found.unwrap_or(("", ""))
}
