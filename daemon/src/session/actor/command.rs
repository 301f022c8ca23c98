//! What clients ask of a session.

use openagent_core::permission::{PermissionResponse, PermissionRule};
use openagent_core::session::Fault;
use openagent_core::session::lifecycle::{Input as LifecycleInput, Reply, State};
use tokio::sync::oneshot;

use super::effect::Job;
use super::{Actor, new_instance};
use crate::session::pending::Pending;
use crate::session::{Command, PromptJob};

/// Prompts that may wait for an agent to become ready.
const WAITING_PROMPTS_MAX: usize = 16;

impl Actor {
    pub(super) fn command(&mut self, command: Command) {
        // What begins work is refused while nothing can be recorded; what ends it is not.
        let refused = match &command {
            Command::Resume(_) | Command::Wake(_) | Command::Prompt(_) => self.own_driver().err().or_else(|| self.unwritable()),
            Command::Rename(..) => self.unwritable(),
            Command::Stop(..)
            | Command::Remove(_)
            | Command::Abort(_)
            | Command::AnswerPermission(..)
            | Command::AnswerQuestion(..)
            | Command::Look(_) => None,
        };
        if let Some(fault) = refused {
            command.refuse(fault);
            return;
        }
        match command {
            Command::Resume(reply) => match verdict(self.lifecycle(LifecycleInput::Start(new_instance()))) {
                Ok(()) => self.replies.push(reply),
                Err(fault) => {
                    let _ = reply.send(Err(fault));
                }
            },
            Command::Wake(reply) => match self.lifecycle(LifecycleInput::Start(new_instance())) {
                Reply::Denied(fault) => {
                    let _ = reply.send(Err(fault));
                }
                Reply::Accepted | Reply::AlreadySo | Reply::Ignored(_) => match self.record.lifecycle.state() {
                    State::Waking { .. } => self.wakers.push(reply),
                    _ => self.replies.push(reply),
                },
            },
            Command::Stop(grace, reply) => {
                self.stop_grace = grace.unwrap_or(self.shared.stop_grace);
                let outcome = self.lifecycle(LifecycleInput::Stop);
                self.stop_grace = self.shared.stop_grace;
                self.when_settled(outcome, reply);
            }
            Command::Remove(reply) => {
                let outcome = self.lifecycle(LifecycleInput::Remove);
                self.when_settled(outcome, reply);
            }
            Command::Prompt(job) => self.prompt(job),
            Command::Abort(reply) => match self.record.lifecycle.state() {
                State::Active { .. } => self.jobs.push(Job::Abort(reply)),
                State::Starting { .. }
                | State::Idle { .. }
                | State::Waking { .. }
                | State::Resting
                | State::Unwinding { .. }
                | State::Stopped
                | State::Failed { .. }
                | State::Removed => {
                    let _ = reply.send(Ok(()));
                }
            },
            Command::AnswerPermission(answer, reply) => match self.inbox.take(&answer.id, &answer.by) {
                Ok(Pending::Permission(request)) => {
                    let rule = |pattern: &String| PermissionRule { permission: request.permission.clone(), pattern: pattern.clone() };
                    let rules = match answer.response {
                        PermissionResponse::Session | PermissionResponse::Always => request.always.iter().map(rule).collect(),
                        PermissionResponse::Once | PermissionResponse::Reject => vec![],
                    };
                    self.jobs.push(Job::Answer(answer, rules, Some(reply)));
                }
                Ok(Pending::Question(_)) => {
                    self.inbox.release(&answer.id);
                    let _ = reply.send(Err(Fault::new("INVALID", "this request is a question", "answer it: openagent answer")));
                }
                Err(fault) => {
                    let _ = reply.send(Err(fault));
                }
            },
            Command::AnswerQuestion(answer, reply) => match self.inbox.take(&answer.id, &answer.by) {
                Ok(Pending::Question(request)) => {
                    let fits = answer.answers.as_ref().is_none_or(|answers| answers.len() == request.questions.len());
                    if fits {
                        self.jobs.push(Job::Reply(answer, reply));
                    } else {
                        self.inbox.release(&answer.id);
                        let message = format!("{} answers are needed, one for each question", request.questions.len());
                        let _ = reply.send(Err(Fault::new("INVALID", message, "")));
                    }
                }
                Ok(Pending::Permission(_)) => {
                    self.inbox.release(&answer.id);
                    let _ = reply.send(Err(Fault::new("INVALID", "this request asks for permission", "answer it: openagent permit")));
                }
                Err(fault) => {
                    let _ = reply.send(Err(fault));
                }
            },
            Command::Look(reply) => self.replies.push(reply),
            Command::Rename(title, reply) => {
                self.record.session.title_is_users = true;
                self.retitle(title.clone());
                self.freshen(Job::Title(title));
                self.replies.push(reply);
            }
        }
    }

    fn when_settled(&mut self, outcome: Reply, reply: oneshot::Sender<Result<(), Fault>>) {
        let unwinding = matches!(self.record.lifecycle.state(), State::Unwinding { .. });
        match verdict(outcome) {
            Ok(()) if unwinding => self.settled.push(reply),
            Ok(()) => self.replies.push(reply),
            Err(fault) => {
                let _ = reply.send(Err(fault));
            }
        }
    }

    pub(super) fn retitle(&mut self, title: String) {
        if self.record.session.title != title {
            self.record.session.title = title;
            self.store = true;
            self.show_status();
        }
    }

    fn prompt(&mut self, job: PromptJob) {
        match self.lifecycle(LifecycleInput::Prompted(new_instance())) {
            Reply::Accepted | Reply::AlreadySo | Reply::Ignored(_) => {}
            Reply::Denied(fault) => {
                let _ = job.reply.send(Err(fault));
                return;
            }
        }
        self.idle_at = None;
        match self.record.lifecycle.state() {
            State::Active { .. } => self.jobs.push(Job::Deliver(job)),
            State::Starting { .. } | State::Waking { .. } | State::Unwinding { .. } if self.prompts.len() < WAITING_PROMPTS_MAX => {
                self.prompts.push_back(job);
            }
            State::Starting { .. } | State::Waking { .. } | State::Unwinding { .. } => {
                let _ =
                    job.reply.send(Err(Fault::new("BUSY", "too many prompts wait for this session already", "wait until it is active")));
            }
            State::Idle { .. } | State::Resting | State::Stopped | State::Failed { .. } | State::Removed => {
                unreachable!("the lifecycle denies prompts in these states, or leaves them")
            }
        }
    }

    /// Does it now, or when the instance is thawed.
    pub(super) fn freshen(&mut self, job: Job) {
        match self.record.lifecycle.state() {
            State::Active { .. } => self.jobs.push(job),
            State::Idle { .. } | State::Waking { .. } => self.stale = true,
            State::Starting { .. } if self.live.is_some() => self.jobs.push(job),
            State::Starting { .. } | State::Resting | State::Unwinding { .. } | State::Stopped | State::Failed { .. } | State::Removed => {}
        }
    }

    /// Looks at the disk, so only for what would write.
    fn unwritable(&self) -> Option<Fault> {
        self.shared.store.condition().borrow().fault()
    }
}

fn verdict(reply: Reply) -> Result<(), Fault> {
    match reply {
        Reply::Accepted | Reply::AlreadySo | Reply::Ignored(_) => Ok(()),
        Reply::Denied(fault) => Err(fault),
    }
}
