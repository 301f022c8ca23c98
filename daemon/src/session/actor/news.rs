//! What instances and effects tell a session.

use std::sync::Arc;

use openagent_core::event::{AgentExit, AgentProcess, Busy, EventKind, StepOutcome};
use openagent_core::id::{InstanceId, RequestId};
use openagent_core::instance::ExitCause;
use openagent_core::permission::{PATTERNS_MAX, PermissionResponse, PermissionRule};
use openagent_core::session::lifecycle::{Input as LifecycleInput, State};
use openagent_core::session::{Fault, Step, TITLE_MAX_CHARS};
use tokio::sync::oneshot;

use super::effect::Job;
use super::{Actor, Input, new_instance};
use crate::clock;
use crate::session::PermissionAnswer;
use crate::session::pending::allowed;
use crate::session::step::Yield;
use crate::sidecar::SidecarError;

/// Name under which remembered answers are given.
const BY_RULE: &str = "rule";

impl Actor {
    pub(super) fn apply(&mut self, input: Input) {
        match input {
            Input::Command(command) => self.command(command),
            Input::Queued(instance, place) => {
                if matches!(self.record.lifecycle.state(), State::Starting { instance: now, step: Step::Admission } if *now == instance) {
                    self.queue_position = place;
                }
            }
            Input::Stepped(instance, step, outcome, millis) => self.stepped(instance, step, outcome, millis),
            Input::Unwound => {
                self.instance_ended(None);
                self.lifecycle(LifecycleInput::Unwound(new_instance()));
            }
            Input::Happened(instance, events) if self.record.lifecycle.instance() == Some(&instance) => {
                for event in &events {
                    self.happened(event);
                }
            }
            Input::Reached(instance, unreachable_since) => {
                if self.record.lifecycle.instance() == Some(&instance) {
                    self.unreachable_since = unreachable_since;
                    if unreachable_since.is_none() {
                        self.refresh();
                    }
                }
            }
            Input::Outdated(instance, theirs) => {
                let fault = SidecarError::OtherProtocol { theirs }.fault();
                self.lifecycle(LifecycleInput::InstanceEnded(instance, fault));
            }
            Input::Ended(instance, cause) => self.ended(instance, cause),
            Input::Frozen(instance, frozen, outcome) => {
                if self.record.lifecycle.instance() == Some(&instance) {
                    self.frozen(instance, frozen, outcome);
                }
            }
            Input::Answered(id, rules, everywhere, outcome, reply) => self.answered(&id, rules, everywhere, outcome, reply),
            Input::Delivered(news, outcome, reply) => {
                self.delivering = self.delivering.saturating_sub(1);
                match outcome {
                    Ok(message) => {
                        self.restart_due = false;
                        if news == self.work_news {
                            self.tracker.apply(&EventKind::Busy { busy: Busy::Working });
                        }
                        self.delivered.push((reply, message));
                    }
                    Err(fault) => {
                        let _ = reply.send(Err(fault));
                    }
                }
            }
            Input::IdleTimeout => {
                self.idle_at = None;
                if let State::Idle { instance } = self.record.lifecycle.state() {
                    self.jobs.push(Job::Freeze(instance.clone()));
                }
                self.lifecycle(LifecycleInput::IdleTimeout(self.record.session.idle_action));
            }
            Input::Yield => {
                self.lifecycle(LifecycleInput::Yield);
            }
            Input::KeysChanged => {
                if self.live.is_some() {
                    self.record.keys_version += 1;
                    self.store = true;
                    self.freshen(Job::PushKeys);
                }
            }
            Input::KeysNotPushed => self.stale = true,
            // What an instance told while it was being ended changes only the history; what was recorded is shown in any case.
            Input::Happened(..) | Input::Recorded | Input::Attached | Input::StoreAgain | Input::Unused => {}
        }
    }

    fn ended(&mut self, instance: InstanceId, cause: ExitCause) {
        if self.record.lifecycle.instance() != Some(&instance) {
            return;
        }
        let fault = Fault::new("INSTANCE_ENDED", format!("the sandbox ended: {cause}"), cause.hint());
        self.instance_ended(Some(cause));
        self.lifecycle(LifecycleInput::InstanceEnded(instance, fault));
    }

    fn frozen(&mut self, instance: InstanceId, frozen: bool, outcome: Result<(), Fault>) {
        if let Err(fault) = outcome {
            tracing::warn!(session = %self.record.session.id, frozen, %fault, "an instance cannot be frozen or thawed");
            if !frozen {
                self.lifecycle(LifecycleInput::WakeFailed(instance));
                self.refuse_waiting(&fault);
            }
            return;
        }
        if let Some(now) = &mut self.record.instance
            && now.frozen(frozen)
        {
            let instance = now.clone();
            self.tell(EventKind::Instance { instance });
            self.store = true;
        }
        if frozen || !matches!(self.record.lifecycle.state(), State::Waking { .. }) {
            return;
        }
        self.unreachable_since = None;
        if let Some(live) = &mut self.live {
            live.link(None);
        }
        self.lifecycle(LifecycleInput::Woken(instance));
        self.refresh();
        self.replies.append(&mut self.wakers);
        self.jobs.extend(self.prompts.drain(..).map(Job::Deliver));
    }

    /// Tells the sidecar what changed while it could not be told.
    fn refresh(&mut self) {
        if std::mem::take(&mut self.stale) {
            self.record.keys_version += 1;
            self.store = true;
            self.jobs.push(Job::PushKeys);
            if self.record.session.title_is_users {
                self.jobs.push(Job::Title(self.record.session.title.clone()));
            }
        }
    }

    fn stepped(&mut self, instance: InstanceId, step: Step, outcome: Result<Yield, Fault>, millis: u64) {
        let current =
            matches!(self.record.lifecycle.state(), State::Starting { instance: now, step: at } if *now == instance && *at == step);
        if !current {
            return;
        }
        match outcome {
            Ok(given) => {
                self.tell(EventKind::Step { step, outcome: StepOutcome::Done { millis } });
                match given {
                    Yield::Nothing => {}
                    Yield::Room(permit) => self.permit = Some(permit),
                    Yield::Token(token) => self.token = Some(token),
                    Yield::Connected(client, credentials) => {
                        self.token = None;
                        self.claimed = None;
                        if let Some(now) = &mut self.record.instance
                            && now.registered(clock::now())
                        {
                            let instance = now.clone();
                            self.tell(EventKind::Instance { instance });
                        }
                        if let Some(live) = self.go_live(instance.clone(), credentials) {
                            live.link(Some(client));
                        }
                    }
                }
                // New volumes begin with an empty journal.
                self.fresh_journal |= step == Step::Volume && !self.record.lifecycle.workspace_ready();
                self.lifecycle(LifecycleInput::StepDone(instance, step));
                if matches!(self.record.lifecycle.state(), State::Active { .. }) {
                    self.prepared = false;
                    self.jobs.extend(self.prompts.drain(..).map(Job::Deliver));
                    self.replies.append(&mut self.wakers);
                }
            }
            Err(fault) => {
                self.tell(EventKind::Step { step, outcome: StepOutcome::Failed { fault: fault.clone() } });
                self.instance_ended(Some(ExitCause::NotStarted));
                // A prepared instance that does not work is no fault of the session's: it gets one of its own.
                let own = step == Step::Workspace || !std::mem::take(&mut self.prepared);
                self.lifecycle(if own { LifecycleInput::StepFailed(instance, step, fault) } else { LifecycleInput::Interrupted });
            }
        }
    }

    fn happened(&mut self, event: &EventKind) {
        self.tracker.apply(event);
        self.inbox.apply(event);
        match event {
            EventKind::Busy { .. } => self.work_news += 1,
            EventKind::TurnEnded { .. } => {
                self.work_news += 1;
                self.replies.extend(self.unconfirmed.drain(..).map(|(_, reply)| reply));
            }
            EventKind::PermissionAnswered { id, .. } | EventKind::QuestionAnswered { id, .. } => {
                self.replies.extend(self.unconfirmed.extract_if(.., |(known, _)| known == id).map(|(_, reply)| reply));
            }
            EventKind::Title { title } if !self.record.session.title_is_users => {
                let title: String = title.chars().filter(|c| !c.is_control()).take(TITLE_MAX_CHARS).collect();
                if !title.trim().is_empty() {
                    self.retitle(title.trim().to_owned());
                }
            }
            EventKind::PermissionAsked { request } => {
                let remembered = allowed(&self.record.session.permission_rules, request) || allowed(&self.shared.rules.borrow(), request);
                if remembered && self.inbox.take(&request.id, BY_RULE).is_ok() {
                    let answer = PermissionAnswer {
                        id: request.id.clone(),
                        response: PermissionResponse::Once,
                        reason: None,
                        by: BY_RULE.to_owned(),
                    };
                    self.jobs.push(Job::Answer(answer, vec![], None));
                }
            }
            EventKind::Agent { process: AgentProcess::Exited { restart_in_millis: None, code, cause } } => {
                let hint = match cause {
                    AgentExit::OutOfMemory => "give its sessions more memory in the configuration, then resume it: openagent resume ID",
                    AgentExit::Ended | AgentExit::Unresponsive => "look at: openagent logs ID; then resume it: openagent resume ID",
                };
                let message = format!("the agent's program ended again and again; at last it {}", cause.sentence(*code));
                let fault = Fault::new("AGENT_GAVE_UP", message, hint);
                if let Some(instance) = self.record.lifecycle.instance().cloned() {
                    self.lifecycle(LifecycleInput::InstanceEnded(instance, fault));
                }
            }
            _ => {}
        }
    }

    fn answered(
        &mut self,
        id: &RequestId,
        rules: Vec<PermissionRule>,
        everywhere: bool,
        outcome: Result<(), Fault>,
        reply: Option<oneshot::Sender<Result<(), Fault>>>,
    ) {
        if outcome.is_err() {
            self.inbox.release(id);
        } else {
            let known = &mut self.record.session.permission_rules;
            if everywhere {
                self.shared.rules.send_modify(|all| {
                    let mut more = (**all).clone();
                    more.extend(rules);
                    more.sort();
                    more.dedup();
                    *all = Arc::new(more);
                });
            } else {
                for rule in rules {
                    if !known.contains(&rule) && known.len() < PATTERNS_MAX {
                        known.push(rule);
                        self.store = true;
                    }
                }
            }
        }
        match (outcome, reply) {
            (Ok(()), Some(reply)) if self.inbox.waiting().iter().any(|pending| pending.id() == id) => {
                self.unconfirmed.push((id.clone(), reply));
            }
            (outcome, Some(reply)) => {
                let _ = reply.send(outcome);
            }
            (_, None) => {}
        }
    }
}
