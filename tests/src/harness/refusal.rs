//! What a refusal must hold, whatever was refused: a code, a sentence, a stable reason, and what to do about it.

use openagent_proto::ERROR_DOMAIN;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A refusal as a client gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// One sentence, or one for each mistake.
    pub message: String,
    /// What to do about it; empty where the sentence says all.
    pub hint: String,
}

/// Takes a refusal apart and checks what every refusal must hold.
///
/// # Panics
/// When the call was not refused, or with another code or reason, or without details.
pub fn refused<T>(outcome: Result<T, Status>, code: Code, reason: &str) -> Refusal {
    let status = outcome.err().unwrap_or_else(|| panic!("expected {code:?} {reason}, but the call was taken"));
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no details in {status:?}"));
    assert_eq!((status.code(), info.reason.as_str()), (code, reason), "{status:?}");
    assert_eq!(info.domain, ERROR_DOMAIN);
    assert!(!status.message().is_empty(), "{status:?}");
    for leak in ["panicked", "Status {", ".rs:", "Some("] {
        assert!(!status.message().contains(leak), "the sentence is for people: {status:?}");
    }
    let hint = info.metadata.get("hint").cloned().unwrap_or_default();
    assert!(!hint.is_empty() || code == Code::InvalidArgument || code == Code::Aborted, "it says what to do: {status:?}");
    Refusal { message: status.message().to_owned(), hint }
}
