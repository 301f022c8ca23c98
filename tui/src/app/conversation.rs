//! The conversation of one session, folded from its events.
//!
//! Invariants: entries are only ever added at the end, so an entry's index is stable; a change to an entry raises its revision, which is
//! what the memoised layout is keyed by. An event counts once ([`Cursor`]); a delta that does not continue what is there is ignored, since the
//! recorded part that follows supersedes it. Subagents' parts live inside their own card.

pub mod render;
pub mod viewport;

use std::collections::{HashMap, HashSet};

use openagent_core::cursor::{Advance, Cursor};
use openagent_core::event::{
    AgentExit, AgentProcess, Busy, Event, EventKind, FileDiff, Message, Part, PartBody, PartDelta, Role, StepOutcome, TodoItem, ToolState,
    TurnOutcome,
};
use openagent_core::id::{ConversationId, MessageId, PartId, RequestId, SessionId};
use openagent_core::instance::{ExitCause, InstanceState};
use openagent_core::permission::PermissionResponse;
use openagent_core::session::{Fault, Status, Step};
use openagent_core::time::Timestamp;
use openagent_core::usage::Usage;

use crate::client::{Pending, PendingRequest};
use viewport::{Layout, Viewport};

/// One thing in a conversation.
#[derive(Debug)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Whether the user turned its fold from how it stands by itself.
    pub toggled: bool,
    /// Whether a blank row stands before it.
    pub gap: bool,
    revision: u64,
    layout: Option<Layout>,
}

/// What an entry is.
#[derive(Debug)]
pub enum EntryKind {
    /// A part of a message of the session's own conversation.
    Part(PartEntry),
    /// A subagent's conversation.
    Subagent {
        /// What it is to do.
        title: String,
        /// Its parts, oldest first.
        parts: Vec<PartEntry>,
    },
    /// Provisioning, as a ladder of steps.
    Ladder(Vec<Rung>),
    /// The session's status changed.
    Status {
        /// Status from then on.
        status: Status,
        /// Why, where it is an error.
        fault: Option<Fault>,
    },
    /// The instance of a session that rested ended by itself. Of one that worked the status tells.
    InstanceLost(ExitCause),
    /// The agent's process ended by itself.
    AgentExited {
        /// Exit code.
        code: i32,
        /// Milliseconds until it is started again; `None` when it was given up.
        restart_in_millis: Option<u64>,
        /// What ended it.
        cause: AgentExit,
    },
    /// A turn ended other than well.
    TurnEnded(TurnOutcome),
    /// An error of the agent or of the provider.
    Error {
        /// The agent's name for it.
        name: String,
        /// Its message.
        message: String,
        /// HTTP status.
        status_code: Option<u16>,
        /// What to do.
        hint: Option<String>,
    },
    /// A model call is tried again.
    Retry {
        /// Which attempt failed.
        attempt: u32,
        /// What the provider said.
        message: String,
    },
    /// The list of things to do.
    Todo(Vec<TodoItem>),
    /// What the turn changed.
    Diff(Vec<FileDiff>),
    /// A request was answered.
    Answered {
        /// What was asked.
        asked: String,
        /// The answer.
        answer: Answer,
        /// Who answered.
        by: String,
    },
    /// Events are missing.
    Gap(String),
    /// Of the first events so many are no longer kept, since they say nothing any more.
    Compacted {
        /// How many of the first events were compacted.
        floor: u64,
        /// How many of these are gone.
        dropped: u64,
    },
    /// Something that this version does not know.
    Unknown(String),
    /// It was taken out of the conversation.
    Gone,
}

/// An answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To a permission request, with the reason of a rejection.
    Permission(PermissionResponse, Option<String>),
    /// To a question: what was chosen.
    Chosen(String),
    /// A question was dismissed.
    Dismissed,
}

/// A part with what is known of its message.
#[derive(Debug)]
pub struct PartEntry {
    /// The part.
    pub part: Part,
    /// Who wrote its message.
    pub role: Role,
    /// Letters before the shown ones are missing, because the reader came late.
    pub holed: bool,
    /// For how long of a tool's time it waited for permission, in milliseconds.
    pub waited_millis: u64,
}

/// A provisioning step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rung {
    /// The step.
    pub step: Step,
    /// What became of it.
    pub outcome: StepOutcome,
    /// When it began.
    pub started_at: Timestamp,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Top(usize),
    Inside(usize, usize),
}

/// What is remembered of a request until its answer is recorded.
#[derive(Debug)]
struct Asked {
    text: String,
    /// The conversation and the kind of tool that wait for it, where it is a permission.
    tool: Option<(ConversationId, String)>,
    at: Timestamp,
}

impl Place {
    /// Index of the entry that it is, or is in.
    const fn top(self) -> usize {
        let (Self::Top(index) | Self::Inside(index, _)) = self;
        index
    }
}

/// A session's conversation.
#[derive(Debug)]
pub struct Conversation {
    session: SessionId,
    /// What has been taken in.
    pub cursor: Cursor,
    /// Up to here events were compacted: their numbers have holes.
    floor: u64,
    /// Everything that was recorded when the subscription began has arrived.
    pub caught_up: bool,
    /// What waits for the user, oldest first.
    pub asks: Vec<Pending>,
    /// What the agent does.
    pub busy: Option<Busy>,
    /// Title as the events tell it.
    pub title: String,
    /// What was spent on this conversation.
    pub spent: Usage,
    /// Prompts of the user, oldest first, for the composer's history.
    pub prompts: Vec<String>,
    /// What is on the screen.
    pub view: Viewport,
    entries: Vec<Entry>,
    places: HashMap<PartId, Place>,
    roles: HashMap<MessageId, Role>,
    parts_of: HashMap<MessageId, Vec<PartId>>,
    spent_by: HashMap<MessageId, Usage>,
    subagents: HashMap<ConversationId, usize>,
    told_prompts: HashSet<PartId>,
    /// Tools that run, and what was asked and not answered yet.
    running: HashSet<PartId>,
    asked: HashMap<RequestId, Asked>,
    turn_start: usize,
    told_errors: HashSet<String>,
    status: Option<Status>,
}

impl Conversation {
    /// An empty conversation of `session`.
    #[must_use]
    pub fn new(session: SessionId) -> Self {
        Self {
            session,
            cursor: Cursor::default(),
            floor: 0,
            caught_up: false,
            asks: Vec::new(),
            busy: None,
            title: String::new(),
            spent: Usage::default(),
            prompts: Vec::new(),
            view: Viewport::default(),
            entries: Vec::new(),
            places: HashMap::new(),
            roles: HashMap::new(),
            parts_of: HashMap::new(),
            spent_by: HashMap::new(),
            subagents: HashMap::new(),
            told_prompts: HashSet::new(),
            running: HashSet::new(),
            asked: HashMap::new(),
            turn_start: 0,
            told_errors: HashSet::new(),
            status: None,
        }
    }

    /// An empty conversation of which the events up to `floor` were compacted; `dropped` of them are no longer kept.
    #[must_use]
    pub fn compacted(session: SessionId, floor: u64, dropped: u64) -> Self {
        let mut conversation = Self { floor, ..Self::new(session) };
        conversation.add(EntryKind::Compacted { floor, dropped });
        conversation
    }

    /// Whether its older events were compacted, so that it may lack messages that were paid for.
    #[must_use]
    pub const fn is_compacted(&self) -> bool {
        self.floor > 0
    }

    /// What the conversation consists of.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The step of provisioning that runs, with the time it began.
    #[must_use]
    pub fn running_step(&self) -> Option<(Step, Timestamp)> {
        self.entries.iter().rev().take(8).find_map(|entry| match &entry.kind {
            EntryKind::Ladder(rungs) => {
                rungs.iter().find(|rung| rung.outcome == StepOutcome::Started).map(|rung| (rung.step, rung.started_at))
            }
            _ => None,
        })
    }

    /// Takes a recorded event in. A number that was seen before is ignored; missing numbers are shown as a gap.
    pub fn apply(&mut self, event: Event) {
        match self.cursor.advance_above(self.floor, event.seq) {
            Advance::Duplicate => return,
            Advance::Gap { first, last } => {
                self.add(EntryKind::Gap(format!("events {first} to {last} did not arrive")));
                self.cursor = Cursor(event.seq);
            }
            Advance::Next => {}
        }
        self.take(event.kind, event.at);
    }

    fn take(&mut self, kind: EventKind, at: Timestamp) {
        match kind {
            EventKind::Session { status, fault, title } => self.session_changed(status, fault, title),
            EventKind::Title { title } => self.title = title,
            EventKind::Step { step, outcome } => self.step(step, outcome, at),
            EventKind::Agent { process: AgentProcess::Exited { code, restart_in_millis, cause } } => {
                self.add(EntryKind::AgentExited { code, restart_in_millis, cause });
            }
            EventKind::Busy { busy } => {
                if let Busy::Retrying { attempt, message, .. } = &busy {
                    self.retry(*attempt, message.clone());
                }
                self.busy = Some(busy);
            }
            EventKind::TurnEnded { outcome } => self.turn_ended(outcome),
            EventKind::Message { message } => self.message(message),
            EventKind::MessageRemoved { id } => {
                for part in self.parts_of.remove(&id).unwrap_or_default() {
                    self.remove_part(&part);
                }
                self.roles.remove(&id);
            }
            EventKind::Part { part } => self.part(part),
            EventKind::PartRemoved { message, id } => {
                if let Some(parts) = self.parts_of.get_mut(&message) {
                    parts.retain(|part| *part != id);
                }
                self.remove_part(&id);
            }
            EventKind::Subagent { conversation, title, .. } => {
                let card = self.subagent(conversation);
                self.change(card, |kind| {
                    if let EntryKind::Subagent { title: shown, .. } = kind {
                        *shown = title;
                    }
                });
            }
            EventKind::PermissionAsked { request } => self.ask(PendingRequest::Permission(request), at),
            EventKind::QuestionAsked { request } => self.ask(PendingRequest::Question(request), at),
            EventKind::PermissionAnswered { id, response, by, reason } => {
                let asked = self.answered(&id, at);
                self.add(EntryKind::Answered { asked, answer: Answer::Permission(response, reason), by });
            }
            EventKind::QuestionAnswered { id, answers, by } => {
                let asked = self.answered(&id, at);
                let answer = answers.map_or(Answer::Dismissed, |answers| {
                    Answer::Chosen(answers.iter().map(|chosen| chosen.join(", ")).collect::<Vec<_>>().join("; "))
                });
                self.add(EntryKind::Answered { asked, answer, by });
            }
            EventKind::Todo { items } => self.in_turn(|kind| matches!(kind, EntryKind::Todo(_)), EntryKind::Todo(items)),
            EventKind::Diff { files } => {
                if !files.is_empty() {
                    self.in_turn(|kind| matches!(kind, EntryKind::Diff(_)), EntryKind::Diff(files));
                }
            }
            EventKind::Usage { message, usage, .. } => {
                self.spent_by.insert(message, usage);
                self.spent = Usage::default();
                for usage in self.spent_by.values() {
                    self.spent.add(usage);
                }
            }
            EventKind::AgentError { name, message, status_code, hint } => {
                if self.told_errors.insert(message.clone()) {
                    self.add(EntryKind::Error { name, message, status_code, hint });
                }
            }
            EventKind::Gap { reason } => self.add(EntryKind::Gap(reason)),
            EventKind::Unknown { name, .. } => self.add(EntryKind::Unknown(name)),
            EventKind::Instance { instance } => {
                if let InstanceState::Error { cause } = instance.state
                    && self.status == Some(Status::Idle)
                {
                    self.add(EntryKind::InstanceLost(cause));
                }
            }
            // Shown elsewhere (keys, terminals, the session's own record), or good news that the next event tells as well.
            EventKind::Agent { process: AgentProcess::Ready { .. } } | EventKind::Terminal { .. } | EventKind::KeysUpdated { .. } => {}
        }
    }

    /// Takes in letters of a part that is still being written.
    pub fn delta(&mut self, delta: PartDelta) {
        if !self.places.contains_key(&delta.part) {
            let conversation: Result<ConversationId, _> = self.session.as_str().to_owned().try_into();
            let Ok(conversation) = conversation else { return };
            let body = PartBody::Text { text: String::new(), done: false, synthetic: false };
            self.part(Part { id: delta.part.clone(), message: delta.message, conversation, body });
        }
        let Some(place) = self.places.get(&delta.part).copied() else { return };
        let mut changed = false;
        if let Some(entry) = self.part_at(place)
            && let PartBody::Text { text, done: false, .. } | PartBody::Reasoning { text, done: false } = &mut entry.part.body
        {
            let offset = usize::try_from(delta.offset).unwrap_or(usize::MAX);
            if offset == 0 {
                *text = delta.text;
                entry.holed = false;
                changed = true;
            } else if offset == text.len() {
                text.push_str(&delta.text);
                changed = true;
            } else if offset < text.len() && text.is_char_boundary(offset) && !text[offset..].starts_with(&delta.text) {
                text.truncate(offset);
                text.push_str(&delta.text);
                changed = true;
            } else if offset > text.len() && !entry.holed {
                entry.holed = true;
                changed = true;
            }
        }
        if changed {
            self.touch(place);
        }
    }

    fn session_changed(&mut self, status: Status, fault: Option<Fault>, title: String) {
        if matches!(status, Status::Stopped | Status::Error) {
            self.asks.clear();
            self.asked.clear();
            self.running.clear();
            self.busy = None;
        }
        let news = self.status != Some(status) && self.status.is_some() || fault.is_some();
        // That it is active is what the ladder's last step says.
        let told = status == Status::Creating || (self.status == Some(Status::Creating) && status == Status::Active);
        if news && !told {
            self.add(EntryKind::Status { status, fault });
        }
        self.status = Some(status);
        self.title = title;
    }

    fn step(&mut self, step: Step, outcome: StepOutcome, at: Timestamp) {
        let current = self.entries.iter().rposition(|entry| matches!(entry.kind, EntryKind::Ladder(_)));
        // A step that begins below the last one is the foot of a new ladder.
        let fits = current.filter(|index| match &self.entries[*index].kind {
            EntryKind::Ladder(rungs) => {
                !rungs.iter().any(|rung| matches!(rung.outcome, StepOutcome::Failed { .. }))
                    && match outcome {
                        StepOutcome::Started => rungs.iter().all(|rung| rung.step < step),
                        StepOutcome::Done { .. } | StepOutcome::Failed { .. } => {
                            rungs.iter().all(|rung| rung.step != step || rung.outcome == StepOutcome::Started)
                        }
                    }
            }
            _ => false,
        });
        let Some(index) = fits else {
            self.add(EntryKind::Ladder(vec![Rung { step, outcome, started_at: at }]));
            return;
        };
        self.change(index, |kind| {
            if let EntryKind::Ladder(rungs) = kind {
                match rungs.iter_mut().find(|rung| rung.step == step) {
                    Some(rung) => rung.outcome = outcome,
                    None => rungs.push(Rung { step, outcome, started_at: at }),
                }
            }
        });
    }

    fn retry(&mut self, attempt: u32, message: String) {
        if let Some(index) = self.entries.len().checked_sub(1)
            && matches!(self.entries[index].kind, EntryKind::Retry { .. })
        {
            self.change(index, |kind| *kind = EntryKind::Retry { attempt, message });
            return;
        }
        self.add(EntryKind::Retry { attempt, message });
    }

    fn turn_ended(&mut self, outcome: TurnOutcome) {
        self.busy = Some(Busy::Rest);
        self.asks.clear();
        self.running.clear();
        self.asked.clear();
        match &outcome {
            TurnOutcome::Completed => {}
            TurnOutcome::Failed { message } if self.told_errors.contains(message) => {
                self.add(EntryKind::TurnEnded(TurnOutcome::Failed { message: String::new() }));
            }
            TurnOutcome::Failed { .. } | TurnOutcome::Aborted | TurnOutcome::Interrupted => self.add(EntryKind::TurnEnded(outcome)),
        }
        self.turn_start = self.entries.len();
        self.told_errors.clear();
    }

    /// Replaces this turn's entry of a kind that is told whole each time, or adds it.
    fn in_turn(&mut self, same: impl Fn(&EntryKind) -> bool, new: EntryKind) {
        let start = self.turn_start.min(self.entries.len());
        match self.entries[start..].iter().rposition(|entry| same(&entry.kind)) {
            Some(index) => self.change(start + index, |kind| *kind = new),
            None => self.add(new),
        }
    }

    fn message(&mut self, message: Message) {
        let known = self.roles.insert(message.id.clone(), message.role);
        if known != Some(message.role) {
            for part in self.parts_of.get(&message.id).cloned().unwrap_or_default() {
                if let Some(place) = self.places.get(&part).copied() {
                    if let Some(entry) = self.part_at(place) {
                        entry.role = message.role;
                    }
                    self.touch(place);
                    self.note_prompt(&part);
                }
            }
        }
        if let Some(error) = message.error
            && self.told_errors.insert(error.clone())
        {
            self.add(EntryKind::Error { name: String::new(), message: error, status_code: None, hint: None });
        }
    }

    fn part(&mut self, part: Part) {
        let role = self.roles.get(&part.message).copied().unwrap_or(Role::Assistant);
        let id = part.id.clone();
        if matches!(part.body, PartBody::Tool { state: ToolState::Pending | ToolState::Running { .. }, .. }) {
            self.running.insert(id.clone());
        } else {
            self.running.remove(&id);
        }
        if let Some(place) = self.places.get(&id).copied() {
            if let Some(entry) = self.part_at(place) {
                *entry = PartEntry { part, role, holed: false, waited_millis: entry.waited_millis };
            }
            self.touch(place);
            self.note_prompt(&id);
            return;
        }
        self.parts_of.entry(part.message.clone()).or_default().push(id.clone());
        let place = if part.conversation.as_str() == self.session.as_str() {
            self.add(EntryKind::Part(PartEntry { part, role, holed: false, waited_millis: 0 }));
            Place::Top(self.entries.len() - 1)
        } else {
            let card = self.subagent(part.conversation.clone());
            let mut inner = 0;
            self.change(card, |kind| {
                if let EntryKind::Subagent { parts, .. } = kind {
                    parts.push(PartEntry { part, role, holed: false, waited_millis: 0 });
                    inner = parts.len() - 1;
                }
            });
            Place::Inside(card, inner)
        };
        self.places.insert(id.clone(), place);
        self.note_prompt(&id);
    }

    fn note_prompt(&mut self, id: &PartId) {
        let Some(Place::Top(index)) = self.places.get(id).copied() else { return };
        if let EntryKind::Part(PartEntry { part, role: Role::User, .. }) = &self.entries[index].kind
            && let PartBody::Text { text, synthetic: false, .. } = &part.body
            && !text.is_empty()
            && self.told_prompts.insert(id.clone())
        {
            self.prompts.push(text.clone());
        }
    }

    fn remove_part(&mut self, id: &PartId) {
        match self.places.remove(id) {
            Some(Place::Top(index)) => self.change(index, |kind| *kind = EntryKind::Gone),
            Some(Place::Inside(card, inner)) => self.change(card, |kind| {
                if let EntryKind::Subagent { parts, .. } = kind
                    && let Some(entry) = parts.get_mut(inner)
                {
                    // Its place stays, so that the places of its neighbours do.
                    entry.part.body = PartBody::StepStart;
                }
            }),
            None => {}
        }
    }

    fn subagent(&mut self, conversation: ConversationId) -> usize {
        if let Some(index) = self.subagents.get(&conversation) {
            return *index;
        }
        self.add(EntryKind::Subagent { title: String::new(), parts: Vec::new() });
        let index = self.entries.len() - 1;
        self.subagents.insert(conversation, index);
        index
    }

    fn ask(&mut self, request: PendingRequest, at: Timestamp) {
        let (text, tool) = match &request {
            PendingRequest::Permission(request) => {
                (format!("{} {}", request.permission, request.title), Some((request.conversation.clone(), request.permission.clone())))
            }
            PendingRequest::Question(request) => {
                (request.questions.first().map(|question| question.text.clone()).unwrap_or_default(), None)
            }
        };
        self.asked.insert(request.id().clone(), Asked { text, tool, at });
        self.asks.retain(|ask| ask.request.id() != request.id());
        self.asks.push(Pending { session: self.session.clone(), session_title: self.title.clone(), request });
    }

    /// A request was answered; what it was about. Who answered it here took it off the list already.
    fn answered(&mut self, id: &RequestId, at: Timestamp) -> String {
        self.asks.retain(|ask| ask.request.id() != id);
        let Some(asked) = self.asked.remove(id) else { return String::new() };
        if let Some((conversation, permission)) = &asked.tool {
            self.tool_waited(conversation, permission, at.millis_since(asked.at));
        }
        asked.text
    }

    /// The tool that asked for a permission did nothing meanwhile. Where several run, it is the only one of the kind that was asked for, or not known.
    fn tool_waited(&mut self, conversation: &ConversationId, permission: &str, millis: u64) {
        let running: Vec<(Place, bool)> = self
            .running
            .iter()
            .filter_map(|part| self.places.get(part))
            .filter_map(|place| {
                let entry = self.part_in(*place)?;
                let PartBody::Tool { tool, .. } = &entry.part.body else { return None };
                (entry.part.conversation == *conversation).then_some((*place, tool == permission))
            })
            .collect();
        let of_kind: Vec<Place> = running.iter().filter(|(_, fits)| *fits).map(|(place, _)| *place).collect();
        let asking = match (running.as_slice(), of_kind.as_slice()) {
            ([(only, _)], _) | (_, [only]) => *only,
            _ => return,
        };
        if let Some(entry) = self.part_at(asking) {
            entry.waited_millis = entry.waited_millis.saturating_add(millis);
        }
    }

    fn add(&mut self, kind: EntryKind) {
        let gap = self.entries.last().is_some_and(|before| !(before.kind.is_compact() && kind.is_compact()));
        self.entries.push(Entry { kind, toggled: false, gap, revision: 0, layout: None });
    }

    fn change(&mut self, index: usize, with: impl FnOnce(&mut EntryKind)) {
        if let Some(entry) = self.entries.get_mut(index) {
            with(&mut entry.kind);
            entry.revision += 1;
        }
    }

    fn touch(&mut self, place: Place) {
        self.change(place.top(), |_| {});
    }

    fn part_in(&self, place: Place) -> Option<&PartEntry> {
        match (place, &self.entries.get(place.top())?.kind) {
            (Place::Top(_), EntryKind::Part(entry)) => Some(entry),
            (Place::Inside(_, inner), EntryKind::Subagent { parts, .. }) => parts.get(inner),
            _ => None,
        }
    }

    fn part_at(&mut self, place: Place) -> Option<&mut PartEntry> {
        match place {
            Place::Top(index) => match &mut self.entries.get_mut(index)?.kind {
                EntryKind::Part(entry) => Some(entry),
                _ => None,
            },
            Place::Inside(card, inner) => match &mut self.entries.get_mut(card)?.kind {
                EntryKind::Subagent { parts, .. } => parts.get_mut(inner),
                _ => None,
            },
        }
    }
}

impl EntryKind {
    /// Whether it stands close to its neighbours of the same sort.
    fn is_compact(&self) -> bool {
        match self {
            Self::Part(entry) => matches!(entry.part.body, PartBody::Tool { .. } | PartBody::StepStart | PartBody::StepFinish { .. }),
            Self::Answered { .. } | Self::Subagent { .. } | Self::Unknown(_) | Self::Gone => true,
            Self::Ladder(_)
            | Self::Status { .. }
            | Self::AgentExited { .. }
            | Self::InstanceLost(_)
            | Self::TurnEnded(_)
            | Self::Error { .. }
            | Self::Retry { .. }
            | Self::Todo(_)
            | Self::Diff(_)
            | Self::Compacted { .. }
            | Self::Gap(_) => false,
        }
    }

    /// Whether there is something to fold or unfold.
    #[must_use]
    pub fn folds(&self) -> bool {
        match self {
            Self::Part(entry) => matches!(entry.part.body, PartBody::Tool { .. } | PartBody::Reasoning { .. }),
            Self::Subagent { .. } | Self::Diff(_) | Self::Ladder(_) => true,
            Self::Status { .. }
            | Self::AgentExited { .. }
            | Self::InstanceLost(_)
            | Self::TurnEnded(_)
            | Self::Error { .. }
            | Self::Retry { .. }
            | Self::Todo(_)
            | Self::Answered { .. }
            | Self::Compacted { .. }
            | Self::Gap(_)
            | Self::Unknown(_)
            | Self::Gone => false,
        }
    }
}
