//! Waiting until a session has come to something.

use openagent_core::activity::Activity;
use openagent_core::id::SessionId;
use openagent_core::session::Status;

use super::args::{Until, Wait};
use super::patience::Patience;
use super::progress::Progress;
use super::session::{failed, stopped};
use super::{Done, Failure, OK, resolve};
use crate::client::{Client, ClientError, ExitCode, Kind, SessionChange, SessionView};
use crate::output::session::short_id;

/// The exit code for an agent that waits for an answer.
const BLOCKED: u8 = ExitCode::Blocked as u8;

pub(super) async fn wait(client: &Client, wait: Wait) -> Done {
    let id = resolve::session(client, &wait.id).await?;
    let waiting = until(client, &id, wait.until);
    let Some(limit) = wait.timeout else { return waiting.await };
    tokio::time::timeout(limit, waiting).await.unwrap_or_else(|_| {
        let message = format!("session {} did not come to it within {} seconds", short_id(&id), limit.as_secs_f32());
        Err(ClientError::new(Kind::Deadline, message, format!("see what it does: openagent show {}", short_id(&id))).into())
    })
}

async fn until(client: &Client, id: &SessionId, until: Option<Until>) -> Done {
    let mut progress = Progress::default();
    let mut patience = Patience::default();
    let end = loop {
        match watch(client, id, until, &mut progress, &mut patience).await {
            Err(Failure::Failed(error)) => match patience.again(error).await {
                Ok(()) => {}
                Err(failure) => break Err(failure),
            },
            end => break end,
        }
    };
    progress.end();
    end
}

async fn watch(client: &Client, id: &SessionId, until: Option<Until>, progress: &mut Progress, patience: &mut Patience) -> Done {
    let mut changes = client.watch_sessions().await?;
    let mut seen = false;
    while let Some(change) = changes.next().await? {
        match change {
            SessionChange::Changed(session) if session.id == *id => {
                seen = true;
                patience.there();
                progress.session(&session);
                match judge(&session, until) {
                    // What was answered a moment ago may still show: only what is listed waits.
                    Some(Ok(BLOCKED)) if client.pending(Some(id)).await?.is_empty() => {}
                    Some(result) => return result.map_err(Failure::from),
                    None => {}
                }
            }
            SessionChange::Removed(removed) if removed == *id => {
                return Err(ClientError::new(Kind::NotFound, "the session was removed", "").into());
            }
            SessionChange::CaughtUp if !seen => {
                let hint = "see which there are: openagent ls";
                return Err(ClientError::new(Kind::NotFound, format!("there is no session {id}"), hint).into());
            }
            SessionChange::Changed(_) | SessionChange::Removed(_) | SessionChange::CaughtUp => {}
        }
    }
    Err(ClientError::new(Kind::Unreachable, "the daemon ended while it was waited for", "start it again: openagent daemon start").into())
}

/// Whether the waiting is over: reached, or out of reach.
fn judge(session: &SessionView, until: Option<Until>) -> Option<Result<u8, ClientError>> {
    let status = session.status;
    let blocked = matches!(session.activity, Activity::Blocked { .. });
    // A session that is still being made, or waits for room, has not ended a turn; one that rests has.
    let up = matches!(status, Some(Status::Active | Status::Idle)) && session.queue_position == 0;
    let done = up && matches!(session.activity, Activity::Done | Activity::Quiet);
    if up && matches!(session.activity, Activity::Failed) && matches!(until, None | Some(Until::Done)) {
        let hint = format!("see why: openagent logs {}", session.id);
        return Some(Err(ClientError::new(Kind::Failed, "the agent's last turn was ended by an error", hint)));
    }
    let reached = match until {
        None | Some(Until::Done) => done,
        Some(Until::Blocked) => blocked,
        Some(Until::Idle) => status == Some(Status::Idle),
        Some(Until::Stopped) => status == Some(Status::Stopped),
        Some(Until::Active) => up && status == Some(Status::Active) && session.step.is_empty(),
        Some(Until::Error) => status == Some(Status::Error),
    };
    if reached {
        return Some(Ok(OK));
    }
    match (until, status) {
        (None, _) if blocked => Some(Ok(BLOCKED)),
        (_, Some(Status::Error)) => Some(Err(failed(&session.id, session.fault.clone()))),
        (_, Some(Status::Stopped)) => Some(Err(stopped(&session.id))),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::client::convert;
    use openagent_proto::v1;

    fn session(status: Status, activity: Activity) -> SessionView {
        let mut view = convert::session(v1::Session { id: "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".into(), ..Default::default() }).unwrap();
        (view.status, view.activity) = (Some(status), activity);
        view
    }

    fn code(status: Status, activity: Activity, until: Option<Until>) -> Option<u8> {
        judge(&session(status, activity), until).map(|result| result.unwrap_or_else(|error| error.exit_code() as u8))
    }

    #[test]
    fn who_waits_for_room_has_not_ended_the_turn_that_waits_with_it() {
        let mut queued = session(Status::Idle, Activity::Done);
        queued.queue_position = 2;
        for until in [None, Some(Until::Done), Some(Until::Active)] {
            assert!(judge(&queued, until).is_none(), "{until:?}");
        }
    }

    #[test]
    fn waiting_ends_where_it_was_meant_to_or_where_it_never_will() {
        let blocked = || Activity::Blocked { permissions: 1, questions: 0 };
        let table = [
            (Status::Active, Activity::Working, None, None),
            (Status::Active, Activity::Done, None, Some(0)),
            (Status::Active, Activity::Failed, None, Some(1)),
            (Status::Active, blocked(), None, Some(5)),
            (Status::Active, blocked(), Some(Until::Done), None),
            (Status::Active, blocked(), Some(Until::Blocked), Some(0)),
            (Status::Creating, Activity::Quiet, None, None),
            (Status::Idle, Activity::Done, Some(Until::Idle), Some(0)),
            (Status::Active, Activity::Quiet, Some(Until::Active), Some(0)),
            (Status::Stopped, Activity::Quiet, Some(Until::Done), Some(1)),
            (Status::Stopped, Activity::Quiet, Some(Until::Stopped), Some(0)),
            (Status::Error, Activity::Quiet, Some(Until::Error), Some(0)),
            (Status::Error, Activity::Quiet, Some(Until::Stopped), Some(1)),
        ];
        for (status, activity, until, expected) in table {
            assert_eq!(code(status, activity.clone(), until), expected, "{status:?} {activity:?} {until:?}");
        }
    }
}
