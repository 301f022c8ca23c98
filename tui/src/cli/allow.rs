//! Rules by which `run` and `prompt --wait` allow what an agent asks.

use std::str::FromStr;

use openagent_core::permission::{PermissionRequest, matches};

/// Characters with which a shell goes on to another command, or to a file. A title is one text and not taken apart into commands, so a
/// pattern such as `git *` would match all that follows.
const SHELL_CHAINING: [char; 9] = [';', '|', '&', '`', '$', '<', '>', '\n', '\r'];

/// What is allowed: `all`, a permission, or a permission and a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Allow {
    /// `None`: every permission.
    permission: Option<String>,
    /// `None`: whatever it is about.
    pattern: Option<String>,
}

impl FromStr for Allow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (permission, pattern) = match text.split_once(':') {
            Some((permission, pattern)) => (permission, Some(pattern)),
            None => (text, None),
        };
        let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '*');
        if permission.is_empty() || !permission.chars().all(name) || pattern == Some("") {
            return Err(format!("{text:?} is not a rule (expected all, a permission such as edit, or a pattern such as 'bash:git *')"));
        }
        Ok(Self { permission: (permission != "all").then(|| permission.to_owned()), pattern: pattern.map(str::to_owned) })
    }
}

impl Allow {
    /// Whether the rule allows everything that is asked. Every single pattern of the request must match: a command line is asked as the
    /// patterns of all of its commands.
    pub(super) fn fits(&self, request: &PermissionRequest) -> bool {
        if self.permission.as_ref().is_some_and(|permission| *permission != request.permission) {
            return false;
        }
        match &self.pattern {
            None => true,
            Some(pattern) if request.patterns.is_empty() => !request.title.contains(SHELL_CHAINING) && matches(pattern, &request.title),
            Some(pattern) => request.patterns.iter().all(|asked| matches(pattern, asked)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use openagent_core::time::Timestamp;

    fn request(permission: &str, title: &str, patterns: &[&str]) -> PermissionRequest {
        PermissionRequest {
            id: "per_1".parse().unwrap(),
            conversation: "ses_1".parse().unwrap(),
            permission: permission.into(),
            title: title.into(),
            diff: None,
            patterns: patterns.iter().map(ToString::to_string).collect(),
            always: vec![],
            asked_at: Timestamp::default(),
        }
    }

    fn allows(rule: &str, request: &PermissionRequest) -> bool {
        rule.parse::<Allow>().unwrap().fits(request)
    }

    #[test]
    fn every_command_of_a_line_must_match() {
        assert!(allows("bash:git *", &request("bash", "git add . && git commit", &["git add .", "git commit"])));
        assert!(!allows("bash:git *", &request("bash", "git add . && rm -rf /", &["git add .", "rm -rf /"])));
    }

    #[test]
    fn without_patterns_a_title_that_goes_on_is_not_allowed_by_a_pattern() {
        assert!(allows("bash:git *", &request("bash", "git status", &[])));
        for chained in ["git status; rm -rf /", "git status && curl x", "git $(rm x)", "git `rm x`", "git log > ~/.bashrc", "git a\nrm b"] {
            assert!(!allows("bash:git *", &request("bash", chained, &[])), "{chained}");
            assert!(allows("bash", &request("bash", chained, &[])), "a whole permission is what it says");
        }
    }

    #[test]
    fn permissions_are_told_apart_and_all_means_all() {
        let edit = request("edit", "a.rs", &["a.rs"]);
        assert!(allows("edit", &edit) && allows("all", &edit) && allows("edit:*.rs", &edit) && allows("all:*.rs", &edit));
        assert!(!allows("bash", &edit) && !allows("edit:*.md", &edit));
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for bad in ["", ":x", "edit:", "rm -rf"] {
            assert!(bad.parse::<Allow>().is_err(), "{bad:?}");
        }
    }
}
