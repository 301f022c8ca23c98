//! What an agent may do unasked, what it asks, and what is answered.

use serde::{Deserialize, Serialize};

use crate::id::{ConversationId, RequestId};
use crate::time::Timestamp;

/// Most patterns that one request or one rule set may hold.
pub const PATTERNS_MAX: usize = 64;

/// How much an agent may do without asking. Part of the session record; resuming never changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PermissionMode {
    /// Commands, edits and network fetches are asked.
    #[default]
    Ask,
    /// Edits inside the workspace are allowed, everything else is asked.
    AutoEdit,
    /// Nothing that changes a file or runs a command is allowed; nothing is asked.
    ReadOnly,
}

impl PermissionMode {
    /// Every mode, in the order in which help lists them.
    pub const ALL: [Self; 3] = [Self::Ask, Self::AutoEdit, Self::ReadOnly];

    /// The name used in configuration and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ask => "ask",
            Self::AutoEdit => "auto-edit",
            Self::ReadOnly => "read-only",
        }
    }
}

impl std::str::FromStr for PermissionMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| format!("{text:?} is not a permission mode (expected ask, auto-edit or read-only)"))
    }
}

/// A request of the agent to do something that its mode does not allow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermissionRequest {
    /// The request, as the agent named it.
    pub id: RequestId,
    /// The conversation that asks: the session's own or a subagent's.
    pub conversation: ConversationId,
    /// What kind of act: `bash`, `edit`, `webfetch`, `external_directory` ...
    pub permission: String,
    /// What it is about in one piece: the full command, or the file. Untrusted text.
    pub title: String,
    /// The whole change as a unified diff, where the act is an edit. Untrusted text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
    /// The patterns that the act matches.
    pub patterns: Vec<String>,
    /// The patterns that a wider answer than `once` would allow.
    pub always: Vec<String>,
    /// When it was asked.
    pub asked_at: Timestamp,
}

/// The answer to a permission request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PermissionResponse {
    /// This act only.
    Once,
    /// Acts of the same patterns, for the life of this session.
    Session,
    /// Acts of the same patterns, in this and every later session.
    Always,
    /// Not allowed. Without a reason the turn ends; with one the agent reads it and goes on.
    Reject,
}

/// A remembered answer: acts of `permission` that match `pattern` are allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PermissionRule {
    /// The kind of act.
    pub permission: String,
    /// `*` stands for any run of characters, `?` for one; everything else for itself.
    pub pattern: String,
}

/// Whether `text` matches `pattern` (`*`: any run of characters, `?`: any one). Linear in the product of both lengths, no recursion.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p, t));
            p += 1;
        } else if p < pattern.len() && (pattern[p] == '?' || pattern[p] == text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star_p, star_t)) = star {
            star = Some((star_p, star_t + 1));
            p = star_p + 1;
            t = star_t + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// A question of the agent with options to choose from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuestionRequest {
    /// The request, as the agent named it.
    pub id: RequestId,
    /// The conversation that asks.
    pub conversation: ConversationId,
    /// The questions, all to be answered together.
    pub questions: Vec<Question>,
    /// When it was asked.
    pub asked_at: Timestamp,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// A short heading.
    pub header: String,
    /// The question.
    pub text: String,
    /// The offered answers.
    pub options: Vec<QuestionOption>,
    /// Several may be chosen.
    pub multiple: bool,
    /// An answer of the user's own words is accepted.
    pub custom: bool,
}

/// One offered answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuestionOption {
    /// The answer itself.
    pub label: String,
    /// What choosing it means.
    pub description: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_documented() {
        assert!(matches("git status *", "git status --short"));
        assert!(matches("*", ""));
        assert!(matches("a*b?d", "axxbcd"));
        assert!(!matches("git status *", "git push"));
        assert!(!matches("ls", "ls; rm -rf /"));
    }

    #[test]
    fn a_hostile_pattern_costs_no_exponential_time() {
        let text = "a".repeat(2_000);
        assert!(!matches(&format!("{}b", "a*".repeat(200)), &text));
    }
}
