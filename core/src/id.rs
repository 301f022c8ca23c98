//! Identifiers, parsed at the door.
//!
//! Ids that OpenAgent makes are a prefix and a ULID (26 characters of Crockford base 32), so that they sort by creation and are valid
//! session ids for OpenCode as well. Ids that the agent makes are opaque tokens: bounded, of a harmless alphabet, and never interpreted.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use ulid::Ulid;

/// Longest accepted id, in bytes; the longest that any known agent makes is 30.
pub const ID_MAX_BYTES: usize = 128;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a {what} id (expected {expected})")]
pub struct InvalidId {
    /// The kind of id that was expected.
    pub what: &'static str,
    /// The refused text, shortened.
    pub text: String,
    /// What a valid one looks like.
    pub expected: &'static str,
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

macro_rules! own_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id made of `ulid`, which the caller drew.
            #[must_use]
            pub fn from_ulid(ulid: Ulid) -> Self {
                Self(format!(concat!($prefix, "_{}"), ulid))
            }

            /// The id as text, prefix included.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let canonical = text
                    .strip_prefix(concat!($prefix, "_"))
                    .and_then(|rest| Ulid::from_string(rest).ok())
                    .map(Self::from_ulid)
                    .filter(|id| id.0 == text);
                canonical.ok_or_else(|| InvalidId {
                    what: $what,
                    text: shorten(text),
                    expected: concat!($prefix, "_ and 26 letters and digits"),
                })
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

own_id!(
    /// A session. Also the id of the conversation inside OpenCode.
    SessionId, "ses", "session"
);
own_id!(
    /// One container run of a session.
    InstanceId, "ins", "instance"
);
own_id!(
    /// A terminal of a session.
    TerminalId, "trm", "terminal"
);

macro_rules! agent_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as the agent wrote it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_from(text.to_owned())
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                let harmless = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
                if !text.is_empty() && text.len() <= ID_MAX_BYTES && text.bytes().all(harmless) {
                    return Ok(Self(text));
                }
                Err(InvalidId { what: $what, text: shorten(&text), expected: "1 to 128 letters, digits, '_' and '-'" })
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

agent_id!(
    /// A message of a conversation.
    MessageId, "message"
);
agent_id!(
    /// A part of a message.
    PartId, "part"
);
agent_id!(
    /// A permission request or a question that waits for an answer.
    RequestId, "request"
);
agent_id!(
    /// A conversation inside the agent: the session's own, or that of a subagent.
    ConversationId, "conversation"
);

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn own_ids_round_trip_and_refuse_everything_else() {
        let id = SessionId::from_ulid(Ulid::from_parts(1_795_336_693_531, 7));
        assert_eq!(id.as_str().parse::<SessionId>().unwrap(), id);
        assert!(id.as_str()["ses_".len()..].bytes().all(|b| b.is_ascii_alphanumeric()));
        for bad in [
            "",
            "ses_",
            "ses_../../etc",
            "ins_01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "ses_01arz3ndektsv4rrffq69g5fav",
            "ses_01ARZ3NDEKTSV4RRFFQ69G5FA ",
        ] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn agent_ids_are_bounded_and_harmless() {
        assert!("per_202680d78001ocRwqxGuFQpenK".parse::<RequestId>().is_ok());
        for bad in ["", "a/b", "a b", "a\n", "é"] {
            assert!(bad.parse::<RequestId>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(ID_MAX_BYTES + 1).parse::<RequestId>().is_err());
    }

    #[test]
    fn ids_are_checked_when_they_are_deserialised() {
        assert!(serde_json::from_str::<SessionId>("\"ses_nonsense\"").is_err());
    }
}
