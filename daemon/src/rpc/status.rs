//! Faults as gRPC status: one table from reason to code.

use std::collections::HashMap;

use openagent_core::session::Fault;
use openagent_proto::ERROR_DOMAIN;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Reason, and the code it is sent with. Reasons that are not listed are sent as `FAILED_PRECONDITION`: the request was good, its object is not.
const CODES: [(&str, Code); 24] = [
    ("AGENT_FAILED", Code::Unavailable),
    ("ALREADY_ANSWERED", Code::Aborted),
    ("BUSY", Code::ResourceExhausted),
    ("CURSOR_BEYOND_END", Code::OutOfRange),
    ("DAEMON_STOPPING", Code::Unavailable),
    ("DEADLINE", Code::DeadlineExceeded),
    ("EVENT_TOO_LARGE", Code::InvalidArgument),
    ("EXPORT_TOO_LARGE", Code::ResourceExhausted),
    ("INTERNAL", Code::Internal),
    ("INVALID", Code::InvalidArgument),
    ("INVALID_REQUEST", Code::InvalidArgument),
    ("KEY_INVALID", Code::InvalidArgument),
    ("KEY_UNREADABLE", Code::DataLoss),
    ("MODEL_INVALID", Code::InvalidArgument),
    ("MODEL_UNKNOWN", Code::InvalidArgument),
    ("NOT_FOUND", Code::NotFound),
    ("NOT_READY", Code::Unavailable),
    ("PROVIDER_UNKNOWN", Code::InvalidArgument),
    ("RESOURCE_EXHAUSTED", Code::ResourceExhausted),
    ("SESSION_NOT_FOUND", Code::NotFound),
    ("SIDECAR_UNREACHABLE", Code::Unavailable),
    ("STORE_CORRUPT", Code::DataLoss),
    ("STORE_FAILED", Code::Internal),
    ("STORE_FULL", Code::ResourceExhausted),
];

/// The code a reason is sent with.
#[must_use]
pub fn code(reason: &str) -> Code {
    CODES.iter().find(|(known, _)| *known == reason).map_or(Code::FailedPrecondition, |(_, code)| *code)
}

/// The status for a fault: its sentence, and a `google.rpc.ErrorInfo` with reason and hint.
#[must_use]
pub fn status(fault: &Fault) -> Status {
    let mut metadata = HashMap::new();
    if !fault.hint.is_empty() {
        metadata.insert("hint".to_owned(), fault.hint.clone());
    }
    let details = ErrorDetails::with_error_info(&fault.code, ERROR_DOMAIN, metadata);
    Status::with_error_details(code(&fault.code), &fault.message, details)
}

/// A request that cannot be understood; the sentence names every mistake.
#[must_use]
pub fn invalid(message: impl Into<String>) -> Status {
    status(&Fault::new("INVALID", message, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_has_each_reason_once() {
        assert!(CODES.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn reason_and_hint_travel_in_the_details() {
        let sent = status(&Fault::new("NOT_FOUND", "there is no such session", "list them: openagent ls"));
        assert_eq!(sent.code(), Code::NotFound);
        let info = sent.get_error_details().error_info().cloned().expect("error info is attached");
        assert_eq!((info.reason.as_str(), info.metadata["hint"].as_str()), ("NOT_FOUND", "list them: openagent ls"));
    }

    #[test]
    fn an_unlisted_reason_is_a_failed_precondition() {
        assert_eq!(code("SESSION_STOPPED"), Code::FailedPrecondition);
    }
}
