//! From what people type to the session that they mean.

use openagent_core::id::{RequestId, SessionId};

use super::{Failure, usage};
use crate::client::{Client, ClientError, Kind, Pending, SessionView};
use crate::output::session::short_id;
use crate::output::text::shortened;

/// Most candidates that are named where it is not clear which is meant.
const CANDIDATES_MAX: usize = 8;

/// The session that `text` means: its id, the beginning or end of one, or a title.
pub(super) async fn session(client: &Client, text: &str) -> Result<SessionId, Failure> {
    // A whole id is not looked up: the daemon says best what is wrong with it.
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    Ok(find(&client.sessions().await?, text)?.id.clone())
}

/// Whether `text` names `id`, which may have a prefix that need not be typed.
fn names(text: &str, id: &str) -> bool {
    let (text, id) = (text.to_ascii_lowercase(), id.to_ascii_lowercase());
    let bare = id.split_once('_').map_or(id.as_str(), |(_, bare)| bare);
    id.starts_with(&text) || bare.starts_with(&text) || bare.ends_with(&text)
}

/// Whether `text` names a session's id; the beginning of what lists show of it counts as well.
fn means(text: &str, session: &SessionView) -> bool {
    names(text, session.id.as_str()) || short_id(&session.id).starts_with(&text.to_ascii_uppercase())
}

fn find<'a>(sessions: &'a [SessionView], text: &str) -> Result<&'a SessionView, Failure> {
    if text.trim().is_empty() {
        return Err(usage("the session's id is empty", "see which there are: openagent ls"));
    }
    let by_id: Vec<&SessionView> = sessions.iter().filter(|session| means(text, session)).collect();
    let found = if by_id.is_empty() { sessions.iter().filter(|session| session.title == text).collect() } else { by_id };
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(ClientError::new(
            Kind::NotFound,
            format!("there is no session {:?}", shortened(text, 60)),
            "see which there are: openagent ls",
        )
        .into()),
        several => {
            let named = several.iter().take(CANDIDATES_MAX);
            let candidates: Vec<String> =
                named.map(|session| format!("{} {}", short_id(&session.id), shortened(&session.title, 40)).trim_end().to_owned()).collect();
            let more = if several.len() > CANDIDATES_MAX { " ..." } else { "" };
            Err(usage(
                format!("{:?} may be {} sessions: {}{more}", shortened(text, 60), several.len(), candidates.join(", ")),
                "type more of the id",
            ))
        }
    }
}

/// The one among `pending` whose request `text` means.
pub(super) fn request<'a>(pending: &'a [Pending], text: &str) -> Result<&'a Pending, Failure> {
    let exact = pending.iter().filter(|pending| pending.request.id().as_str() == text).collect::<Vec<_>>();
    let found = if exact.is_empty() {
        pending.iter().filter(|pending| !text.is_empty() && names(text, pending.request.id().as_str())).collect()
    } else {
        exact
    };
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(ClientError::new(
            Kind::NotFound,
            format!("no request {:?} waits for an answer", shortened(text, 60)),
            "see which do: openagent inbox",
        )
        .into()),
        several => {
            let ids: Vec<&str> = several.iter().take(CANDIDATES_MAX).map(|pending| pending.request.id()).map(RequestId::as_str).collect();
            Err(usage(
                format!("{:?} may be several requests: {}", shortened(text, 60), ids.join(", ")),
                "type more of the id, or name the session",
            ))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::client::convert;
    use openagent_proto::v1;

    fn sessions() -> Vec<SessionView> {
        [("01ARZ3NDEKTSV4RRFFQ69G5FAV", "fix the parser"), ("01ARZ3NDEKTSV4RRFFQ69G5FBW", "docs"), ("01BRZ3NDEKTSV4RRFFQ69G5FAV", "docs")]
            .into_iter()
            .map(|(id, title)| v1::Session { id: format!("ses_{id}"), title: title.into(), ..Default::default() })
            .map(|session| convert::session(session).unwrap())
            .collect()
    }

    fn found(text: &str) -> Result<String, ClientError> {
        match find(&sessions(), text) {
            Ok(session) => Ok(session.id.to_string()),
            Err(Failure::Failed(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn beginnings_ends_and_titles_name_a_session() {
        assert_eq!(found("ses_01B").unwrap(), "ses_01BRZ3NDEKTSV4RRFFQ69G5FAV");
        assert_eq!(found("01b").unwrap(), "ses_01BRZ3NDEKTSV4RRFFQ69G5FAV");
        assert_eq!(found("q69g5fb").unwrap(), "ses_01ARZ3NDEKTSV4RRFFQ69G5FBW", "the beginning of what lists show");
        assert_eq!(found("5fbw").unwrap(), "ses_01ARZ3NDEKTSV4RRFFQ69G5FBW");
        assert_eq!(found("fix the parser").unwrap(), "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV");
    }

    #[test]
    fn what_may_be_several_names_the_candidates() {
        for text in ["5FAV", "docs", "ses_01A"] {
            let error = found(text).unwrap_err();
            assert_eq!(error.exit_code() as u8, 2, "{text}");
            assert!(error.message.contains("may be 2 sessions: "), "{}", error.message);
        }
        assert!(found("5FAV").unwrap_err().message.contains("FQ69G5FAV".get(1..).unwrap()));
    }

    #[test]
    fn what_is_none_is_not_found() {
        assert_eq!(found("zzz").unwrap_err().exit_code() as u8, 3);
        assert_eq!(found(" ").unwrap_err().exit_code() as u8, 2);
    }
}
