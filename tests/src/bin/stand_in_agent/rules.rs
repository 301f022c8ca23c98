//! Permission rules as OpenCode's configuration writes them: of those that match, the last one counts; without one it is allowed.

use serde_json::Value;

/// What a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow,
    Ask,
    Deny,
}

/// The rules of the configuration, and what was answered with `always` since the process began.
pub(crate) struct Rules {
    configured: Value,
    always: Vec<(String, String)>,
}

impl Rules {
    pub(crate) const fn new(configured: Value) -> Self {
        Self { configured, always: Vec::new() }
    }

    pub(crate) fn allow(&mut self, permission: &str, pattern: &str) {
        self.always.push((permission.to_owned(), pattern.to_owned()));
    }

    pub(crate) fn verdict(&self, permission: &str, pattern: &str) -> Verdict {
        let mut verdict = Verdict::Allow;
        for (name, rule) in self.configured.as_object().into_iter().flatten().filter(|(name, _)| matches(name, permission)) {
            let patterns = rule.as_object().into_iter().flatten().filter(|(wanted, _)| matches(wanted, pattern)).map(|(_, rule)| rule);
            for word in std::iter::once(rule).chain(patterns).filter_map(Value::as_str) {
                verdict = match word {
                    "allow" => Verdict::Allow,
                    "deny" => Verdict::Deny,
                    _ => Verdict::Ask,
                };
            }
            debug_assert!(!name.is_empty(), "a permission has a name");
        }
        let answered = self.always.iter().any(|(name, wanted)| name == permission && matches(wanted, pattern));
        if answered { Verdict::Allow } else { verdict }
    }
}

/// Whether the text is as the pattern says, in which `*` is any text and a final ` *` may be missing.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    if pattern.strip_suffix(" *") == Some(text) {
        return true;
    }
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => {
            text.strip_prefix(head).is_some_and(|rest| (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(tail, &rest[at..])))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_that_matches_counts() {
        let mut rules =
            Rules::new(serde_json::json!({ "*": "ask", "glob": "allow", "bash": { "*": "ask", "git status *": "allow", "rm *": "deny" } }));
        assert_eq!(rules.verdict("bash", "ls"), Verdict::Ask);
        assert_eq!(rules.verdict("bash", "git status"), Verdict::Allow);
        assert_eq!(rules.verdict("bash", "git status -s"), Verdict::Allow);
        assert_eq!(rules.verdict("bash", "rm -r x"), Verdict::Deny);
        assert_eq!((rules.verdict("edit", "x"), rules.verdict("glob", "x")), (Verdict::Ask, Verdict::Allow));
        rules.allow("bash", "ls *");
        assert_eq!((rules.verdict("bash", "ls -l"), rules.verdict("bash", "lsof")), (Verdict::Allow, Verdict::Ask));
    }
}
