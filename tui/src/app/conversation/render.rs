//! Entries of a conversation as rows. What a colour says a symbol or word says too.

use openagent_core::event::{FileDiff, PartBody, Role, StepOutcome, TodoItem, ToolState, TurnOutcome};
use openagent_core::permission::PermissionResponse;
use openagent_core::session::{Fault, Status, Step};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use serde_json::Value;

use super::{Answer, Entry, EntryKind, PartEntry, Rung};
use crate::app::markdown;
use crate::app::text::{duration, harmless, one_line};
use crate::app::theme::Theme;
use crate::app::wrap::{Break, fit, wrap, wrap_text};

/// Rows of output that a folded card shows.
const FOLDED_ROWS: usize = 10;

/// Rows of reasoning that stay visible when folded.
const FOLDED_REASONING_ROWS: usize = 2;

/// Rows of output that an unfolded card shows; an export has them all.
const UNFOLDED_ROWS: usize = 5_000;

/// Shortest wait that is worth a word.
const WAIT_SHOWN_MILLIS: u64 = 100;

struct Pen {
    width: usize,
    theme: Theme,
    rows: Vec<Line<'static>>,
}

/// The rows of an entry.
#[must_use]
pub fn rows_of(entry: &Entry, width: usize, theme: Theme) -> Vec<Line<'static>> {
    let mut pen = Pen { width: width.max(4), theme, rows: Vec::new() };
    pen.entry(&entry.kind, entry.toggled);
    if entry.gap && !pen.rows.is_empty() {
        pen.rows.insert(0, Line::default());
    }
    pen.rows
}

/// A diff without the two heading rows that some programs put before the unified form: they only repeat the file's name.
fn unified(diff: &str) -> &str {
    let rest = || {
        let (rule, rest) = diff.strip_prefix("Index: ")?.split_once('\n')?.1.split_once('\n')?;
        (!rule.is_empty() && rule.bytes().all(|byte| byte == b'=')).then_some(rest)
    };
    rest().unwrap_or(diff)
}

/// A unified diff as rows; signs are kept, colour is added.
#[must_use]
pub fn diff_rows(diff: &str, width: usize, theme: Theme, prefix: &Span<'static>) -> Vec<Line<'static>> {
    harmless(unified(diff))
        .trim_end_matches('\n')
        .split('\n')
        .flat_map(|line| {
            let style = match line.as_bytes().first() {
                Some(b'+') if !line.starts_with("+++") => theme.added(),
                Some(b'-') if !line.starts_with("---") => theme.removed(),
                Some(b'@') => theme.accent(),
                Some(_) | None => Style::new(),
            };
            wrap(&[Span::styled(line.to_owned(), style)], width, Break::Letters, prefix, prefix)
        })
        .collect()
}

/// What an argument list says at a glance: the command, file or address that it is about.
fn argument(input: &Value) -> String {
    const TELLING: [&str; 8] = ["command", "filePath", "path", "pattern", "url", "query", "description", "prompt"];
    TELLING.iter().find_map(|name| input.get(name)).and_then(Value::as_str).map(one_line).unwrap_or_default()
}

impl Pen {
    fn line(&mut self, spans: &[Span<'_>], rest: &str) {
        let rest = Span::styled(rest.to_owned(), self.theme.dim());
        self.rows.extend(wrap(spans, self.width, Break::Words, &Span::raw(""), &rest));
    }

    fn block(&mut self, text: &str, style: Style, at: Break, prefix: &str) {
        let prefix = Span::styled(prefix.to_owned(), self.theme.dim());
        self.rows.extend(wrap_text(&harmless(text), style, self.width, at, &prefix));
    }

    fn hint(&mut self, hint: &str) {
        if !hint.is_empty() {
            let text = harmless(hint);
            self.line(&[Span::styled("  → ", self.theme.accent()), Span::raw(text)], "    ");
        }
    }

    fn entry(&mut self, kind: &EntryKind, toggled: bool) {
        let theme = self.theme;
        match kind {
            EntryKind::Part(entry) => self.part(entry, toggled),
            EntryKind::Subagent { title, parts } => self.subagent(title, parts, toggled),
            EntryKind::Ladder(rungs) => self.ladder(rungs, toggled),
            EntryKind::Status { status, fault } => self.status(*status, fault.as_ref()),
            EntryKind::InstanceLost(cause) => {
                let text = format!("■ the sandbox ended while it rested: {cause}; your next prompt starts a new one");
                self.line(&[Span::styled(text, theme.warn())], "  ");
            }
            EntryKind::AgentExited { code, restart_in_millis, cause } => {
                let then =
                    restart_in_millis.map_or_else(|| "given up".to_owned(), |millis| format!("starts again in {}", duration(millis)));
                let what = cause.sentence(*code);
                self.line(&[Span::styled(format!("✗ the agent's program {what}; {then}"), theme.bad())], "  ");
            }
            EntryKind::TurnEnded(outcome) => match outcome {
                TurnOutcome::Completed => {}
                TurnOutcome::Aborted => self.line(&[Span::styled("■ you stopped this turn", theme.warn())], "  "),
                TurnOutcome::Interrupted => {
                    self.line(&[Span::styled("■ the turn was interrupted: the agent's program ended under it", theme.warn())], "  ");
                }
                TurnOutcome::Failed { message } if message.is_empty() => self.line(&[Span::styled("■ the turn failed", theme.bad())], "  "),
                TurnOutcome::Failed { message } => {
                    self.line(&[Span::styled(format!("■ the turn failed: {}", harmless(message)), theme.bad())], "  ");
                }
            },
            EntryKind::Error { name, message, status_code, hint } => {
                let mut head = "✗ ".to_owned();
                if !name.is_empty() {
                    head.push_str(&one_line(name));
                }
                if let Some(code) = status_code {
                    head.push_str(&format!(" ({code})"));
                }
                if head.len() > "✗ ".len() {
                    head.push_str(": ");
                }
                head.push_str(&harmless(message));
                for line in head.split('\n') {
                    self.line(&[Span::styled(line.to_owned(), theme.bad())], "  ");
                }
                self.hint(hint.as_deref().unwrap_or_default());
            }
            EntryKind::Retry { attempt, message } => {
                self.line(&[Span::styled(format!("↻ attempt {attempt} failed: {}", one_line(message)), theme.warn())], "  ");
            }
            EntryKind::Todo(items) => self.todo(items),
            EntryKind::Diff(files) => self.diff(files, toggled),
            EntryKind::Answered { asked, answer, by } => self.answered(asked, answer, by),
            EntryKind::Gap(reason) => {
                self.line(&[Span::styled(format!("┄┄ something is missing here: {} ┄┄", harmless(reason)), theme.warn())], "  ");
            }
            EntryKind::Compacted { floor, dropped } => {
                let text = format!("┄┄ older events were compacted: {dropped} of the first {floor} are no longer kept ┄┄");
                self.line(&[Span::styled(text, theme.dim())], "  ");
            }
            EntryKind::Unknown(name) => {
                self.line(&[Span::styled(format!("? {} (this version cannot show it)", one_line(name)), theme.dim())], "  ");
            }
            EntryKind::Gone => {}
        }
    }

    fn part(&mut self, entry: &PartEntry, toggled: bool) {
        let theme = self.theme;
        match &entry.part.body {
            PartBody::Text { text, synthetic: true, .. } => {
                self.line(&[Span::styled(format!("· {}", one_line(text)), theme.dim())], "  ");
            }
            PartBody::Text { text, .. } if entry.role == Role::User => {
                let style = theme.accent().add_modifier(Modifier::BOLD);
                let bar = Span::styled("▌ ", theme.accent());
                self.rows.extend(wrap_text(harmless(text).trim_end(), style, self.width, Break::Words, &bar));
            }
            PartBody::Text { text, done, .. } => {
                self.holed(entry.holed);
                let shown = harmless(text);
                self.rows.extend(markdown::render(&shown, self.width, theme));
                if !done {
                    self.cursor();
                }
            }
            PartBody::Reasoning { text, done } => self.reasoning(entry, text, *done, toggled),
            PartBody::Tool { tool, state } => self.tool(tool, state, entry.waited_millis, toggled),
            PartBody::File { mime, name } => {
                self.line(&[Span::raw(format!("▣ {} ", one_line(name))), Span::styled(one_line(mime), theme.dim())], "  ");
            }
            PartBody::Patch { files } => {
                let names: Vec<String> = files.iter().map(|file| one_line(file.rsplit('/').next().unwrap_or_default())).collect();
                self.line(&[Span::styled(format!("± changed {}", names.join(", ")), theme.dim())], "  ");
            }
            PartBody::Subtask { agent, description } => {
                self.line(&[Span::raw(format!("◆ for {}: {}", one_line(agent), one_line(description)))], "  ");
            }
            PartBody::Mention { agent } => self.line(&[Span::raw(format!("@{}", one_line(agent)))], "  "),
            PartBody::Compaction { auto } => {
                let who = if *auto { "by itself" } else { "as you asked" };
                self.line(&[Span::styled(format!("┄┄ the agent summarised what was before, {who} ┄┄"), theme.dim())], "  ");
            }
            PartBody::StepStart | PartBody::StepFinish { .. } => {}
            PartBody::Unknown { name, .. } => {
                self.line(&[Span::styled(format!("? {} (this version cannot show it)", one_line(name)), theme.dim())], "  ");
            }
        }
    }

    fn cursor(&mut self) {
        let mark = Span::styled("▍", self.theme.accent());
        match self.rows.last_mut() {
            Some(last) if last.width() < self.width => last.spans.push(mark),
            Some(_) | None => self.rows.push(Line::from(mark)),
        }
    }

    fn holed(&mut self, holed: bool) {
        if holed {
            self.line(&[Span::styled("… letters are missing until this part is complete", self.theme.dim())], "  ");
        }
    }

    fn reasoning(&mut self, entry: &PartEntry, text: &str, done: bool, toggled: bool) {
        if text.trim().is_empty() {
            if !done {
                self.line(&[Span::styled("∴ thinking…", self.theme.dim())], "  ");
            }
            return;
        }
        self.holed(entry.holed);
        let style = self.theme.dim().add_modifier(Modifier::ITALIC);
        let first = Span::styled("∴ ", self.theme.dim());
        let mut rows = Vec::new();
        for line in harmless(text.trim()).split('\n') {
            let prefix = if rows.is_empty() { first.clone() } else { Span::raw("  ") };
            rows.extend(wrap(&[Span::styled(line.to_owned(), style)], self.width, Break::Words, &prefix, &Span::raw("  ")));
        }
        // While it is written its end is of interest, afterwards its beginning.
        let hidden = rows.len().saturating_sub(FOLDED_REASONING_ROWS);
        if !toggled && hidden > 0 {
            if done {
                rows.truncate(FOLDED_REASONING_ROWS);
            } else {
                rows.drain(..hidden);
            }
            self.rows.append(&mut rows);
            self.more(hidden, "  ");
            return;
        }
        self.rows.append(&mut rows);
    }

    fn more(&mut self, hidden: usize, prefix: &str) {
        let text = format!("{prefix}… {hidden} more {} (o)", if hidden == 1 { "row" } else { "rows" });
        self.rows.push(Line::from(Span::styled(fit(&text, self.width), self.theme.dim())));
    }

    fn tool(&mut self, tool: &str, state: &ToolState, waited_millis: u64, toggled: bool) {
        let theme = self.theme;
        let name = one_line(tool);
        let (symbol, style, what, tail) = match state {
            ToolState::Pending => ("○", theme.dim(), String::new(), "preparing".to_owned()),
            ToolState::Running { input, title, .. } => ("●", theme.accent(), about(input, title), "running".to_owned()),
            ToolState::Completed { input, title, exit_code, millis, .. } => {
                let failed = exit_code.is_some_and(|code| code != 0);
                // The user's time is not the tool's.
                let own = millis.saturating_sub(waited_millis);
                let time = if own >= 100 { duration(own) } else { String::new() };
                match exit_code {
                    Some(code) if failed => ("✗", theme.bad(), about(input, title), format!("exit {code} {time}")),
                    _ => ("✓", theme.good(), about(input, title), time),
                }
            }
            ToolState::Error { input, .. } => ("✗", theme.bad(), about(input, ""), "failed".to_owned()),
        };
        let mut spans = vec![Span::styled(format!("{symbol} "), style), Span::styled(name, theme.strong())];
        if !what.is_empty() {
            spans.push(Span::styled(format!(" {what}"), theme.code()));
        }
        if !tail.trim().is_empty() {
            spans.push(Span::styled(format!("  {}", tail.trim()), theme.dim()));
        }
        self.line(&spans, "  ");
        match state {
            ToolState::Pending => {}
            ToolState::Running { input, title, output } => {
                self.full_command(input, title, toggled);
                self.output(output, toggled, true);
            }
            ToolState::Completed { input, title, output, diff, .. } => {
                self.full_command(input, title, toggled);
                match diff {
                    Some(diff) if !diff.is_empty() => {
                        let rows = diff_rows(diff, self.width, theme, &Span::styled("  │ ", theme.dim()));
                        self.folded(rows, toggled, false);
                    }
                    Some(_) | None => self.output(output, toggled, false),
                }
            }
            ToolState::Error { error, .. } => self.block(error.trim_end(), theme.bad(), Break::Words, "  │ "),
        }
    }

    /// The whole command where the first row could only show its beginning.
    fn full_command(&mut self, input: &Value, title: &str, toggled: bool) {
        if let Some(command) = input.get("command").and_then(Value::as_str)
            && toggled
            && (command.contains('\n') || !title.is_empty())
        {
            self.block(command, self.theme.code(), Break::Letters, "  $ ");
        }
    }

    fn output(&mut self, output: &str, toggled: bool, at_end: bool) {
        let output = output.trim_end();
        if !output.is_empty() {
            let prefix = Span::styled("  │ ", self.theme.dim());
            let rows = wrap_text(&harmless(output), Style::new(), self.width, Break::Letters, &prefix);
            self.folded(rows, toggled, at_end);
        }
    }

    /// Adds rows, folded to ten unless `toggled`; the last ones where `at_end`.
    fn folded(&mut self, mut rows: Vec<Line<'static>>, toggled: bool, at_end: bool) {
        let keep = if toggled { UNFOLDED_ROWS } else { FOLDED_ROWS };
        let hidden = rows.len().saturating_sub(keep);
        // One hidden row would cost as much as the note about it.
        if hidden <= 1 {
            self.rows.append(&mut rows);
            return;
        }
        if at_end {
            rows.drain(..hidden);
        } else {
            rows.truncate(keep);
        }
        self.rows.append(&mut rows);
        self.more(hidden, "  ");
    }

    fn subagent(&mut self, title: &str, parts: &[PartEntry], toggled: bool) {
        let theme = self.theme;
        let tools = parts.iter().filter(|entry| matches!(entry.part.body, PartBody::Tool { .. })).count();
        let title = if title.is_empty() { "subagent".to_owned() } else { one_line(title) };
        let calls = if tools == 1 { "1 call".to_owned() } else { format!("{tools} calls") };
        self.line(
            &[Span::styled("◆ ", theme.accent()), Span::styled(title, theme.strong()), Span::styled(format!("  {calls}"), theme.dim())],
            "  ",
        );
        let mut inner = Self { width: self.width.saturating_sub(4).max(4), theme, rows: Vec::new() };
        let shown = if toggled { parts } else { &parts[parts.len().saturating_sub(1)..] };
        for entry in shown {
            inner.part(entry, false);
        }
        if !toggled {
            let hidden = inner.rows.len().saturating_sub(3);
            inner.rows.drain(..hidden);
        }
        for row in inner.rows {
            let mut spans = vec![Span::styled("  ┊ ", theme.dim())];
            spans.extend(row.spans);
            self.rows.push(Line::from(spans));
        }
        if !toggled && parts.len() > 1 {
            self.rows.push(Line::from(Span::styled(fit("  … all of it (o)", self.width), theme.dim())));
        }
    }

    fn ladder(&mut self, rungs: &[Rung], toggled: bool) {
        let theme = self.theme;
        let failed = rungs.iter().any(|rung| matches!(rung.outcome, StepOutcome::Failed { .. }));
        let ready = rungs.iter().any(|rung| rung.step.next().is_none() && matches!(rung.outcome, StepOutcome::Done { .. }));
        if ready && !failed && !toggled {
            let total = rungs.iter().map(|rung| if let StepOutcome::Done { millis } = rung.outcome { millis } else { 0 }).sum();
            let waited = rungs.iter().find_map(|rung| match rung.outcome {
                StepOutcome::Done { millis } if rung.step == Step::Admission && millis >= WAIT_SHOWN_MILLIS => Some(millis),
                _ => None,
            });
            let waited = waited.map(|millis| format!(", {} of it waiting for room", duration(millis))).unwrap_or_default();
            self.line(&[Span::styled(format!("✓ ready after {}{waited}", duration(total)), theme.dim())], "  ");
            return;
        }
        for rung in rungs {
            let name = rung.step.name();
            match &rung.outcome {
                StepOutcome::Started if rung.step == Step::Admission => {
                    self.line(
                        &[Span::styled(format!("● {name:<10} … waits for room; stopping takes it out of the queue"), theme.accent())],
                        "  ",
                    );
                }
                StepOutcome::Started => self.line(&[Span::styled(format!("● {name:<10} …"), theme.accent())], "  "),
                StepOutcome::Done { millis } => self.line(
                    &[Span::styled("✓ ", theme.good()), Span::raw(format!("{name:<10} ")), Span::styled(duration(*millis), theme.dim())],
                    "  ",
                ),
                StepOutcome::Failed { fault } => {
                    self.line(&[Span::styled(format!("✗ {name:<10} {}", harmless(&fault.message)), theme.bad())], "  ");
                    self.hint(&fault.hint);
                }
            }
        }
    }

    fn status(&mut self, status: Status, fault: Option<&Fault>) {
        let theme = self.theme;
        let words = match status {
            Status::Creating => "○ the session is being made",
            Status::Active => "● the session is active",
            Status::Idle => "◌ the session rests; your next prompt wakes it",
            Status::Stopped => "■ the session is stopped; R resumes it",
            Status::Error => "✗ the session failed; R tries again",
        };
        let style = if status == Status::Error { theme.bad() } else { theme.dim() };
        self.line(&[Span::styled(words, style)], "  ");
        if let Some(fault) = fault {
            self.line(&[Span::styled(format!("  {} ({})", harmless(&fault.message), one_line(&fault.code)), theme.bad())], "  ");
            self.hint(&fault.hint);
        }
    }

    fn todo(&mut self, items: &[TodoItem]) {
        let theme = self.theme;
        let done = items.iter().filter(|item| item.status == "completed").count();
        self.line(&[Span::styled(format!("≡ to do, {done} of {} done", items.len()), theme.strong())], "  ");
        for item in items {
            let (mark, style) = match item.status.as_str() {
                "completed" => ("[x]", theme.dim()),
                "in_progress" => ("[>]", theme.accent()),
                "cancelled" => ("[-]", theme.dim()),
                _ => ("[ ]", Style::new()),
            };
            self.line(&[Span::styled(format!("  {mark} {}", one_line(&item.content)), style)], "      ");
        }
    }

    fn diff(&mut self, files: &[FileDiff], toggled: bool) {
        let theme = self.theme;
        let (added, removed) = files.iter().fold((0, 0), |(added, removed), file| (added + file.additions, removed + file.deletions));
        let noun = if files.len() == 1 { "file" } else { "files" };
        self.line(
            &[
                Span::styled(format!("± {} {noun} changed in this turn ", files.len()), theme.strong()),
                Span::styled(format!("+{added} "), theme.added()),
                Span::styled(format!("-{removed}"), theme.removed()),
            ],
            "  ",
        );
        for file in files {
            self.line(
                &[
                    Span::raw(format!("  {} {} ", file.status.chars().next().unwrap_or('m').to_ascii_uppercase(), one_line(&file.path))),
                    Span::styled(format!("+{} ", file.additions), theme.added()),
                    Span::styled(format!("-{}", file.deletions), theme.removed()),
                ],
                "    ",
            );
            if toggled {
                let rows = diff_rows(&file.patch, self.width, theme, &Span::styled("  │ ", theme.dim()));
                self.folded(rows, true, false);
            }
        }
    }

    fn answered(&mut self, asked: &str, answer: &Answer, by: &str) {
        let theme = self.theme;
        let by = one_line(by);
        let (words, style) = match answer {
            Answer::Permission(PermissionResponse::Once, _) => ("✓ allowed once".to_owned(), theme.good()),
            Answer::Permission(PermissionResponse::Session, _) => ("✓ allowed for this session".to_owned(), theme.good()),
            Answer::Permission(PermissionResponse::Always, _) => ("✓ always allowed".to_owned(), theme.good()),
            Answer::Permission(PermissionResponse::Reject, reason) => {
                let why = reason.as_deref().map(|reason| format!(" ({})", one_line(reason))).unwrap_or_default();
                (format!("✗ not allowed{why}"), theme.bad())
            }
            Answer::Chosen(chosen) => (format!("✓ answered: {}", one_line(chosen)), theme.good()),
            Answer::Dismissed => ("✗ question dismissed".to_owned(), theme.bad()),
        };
        let mut spans = vec![Span::styled(words, style), Span::styled(format!(" by {by}"), theme.dim())];
        if !asked.is_empty() {
            spans.push(Span::styled(format!(": {}", one_line(asked)), theme.dim()));
        }
        self.line(&spans, "  ");
    }
}

/// What a call is about: its command where it has one, else its title, else what its arguments say.
fn about(input: &Value, title: &str) -> String {
    match input.get("command").and_then(Value::as_str) {
        Some(command) => one_line(command),
        None if !title.is_empty() => one_line(title),
        None => argument(input),
    }
}
