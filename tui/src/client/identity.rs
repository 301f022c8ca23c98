//! Under which name others see this client: as who follows a session, and as who answered a request.
//!
//! `$OPENAGENT_CLIENT` where it is set, else the user, the machine and the terminal, such as `anna@laptop (pts/3)`: that is what tells two
//! people, or two windows of one, apart.

use std::os::fd::AsFd;

use crate::output::text::single_line;

/// Longest name, in characters; the daemon refuses longer ones.
pub const NAME_MAX_CHARS: usize = 64;

/// Names under which the daemon and the agent themselves settle requests.
const TAKEN: [&str; 2] = ["rule", "agent"];

/// The name of this client.
#[must_use]
pub fn name() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name);
    let host = nix::unistd::gethostname().ok().map(|host| host.to_string_lossy().into_owned());
    let tty = [std::io::stdin().as_fd(), std::io::stdout().as_fd(), std::io::stderr().as_fd()]
        .into_iter()
        .find_map(|stream| nix::unistd::ttyname(stream).ok())
        .map(|path| path.to_string_lossy().into_owned());
    let given = std::env::var("OPENAGENT_CLIENT").ok();
    made_of(given.as_deref(), user.as_deref(), host.as_deref(), tty.as_deref())
}

fn made_of(given: Option<&str>, user: Option<&str>, host: Option<&str>, tty: Option<&str>) -> String {
    let given = given.map(single_line).filter(|name| !name.is_empty() && !TAKEN.contains(&name.as_str()));
    let name = given.unwrap_or_else(|| {
        let user = user.filter(|user| !user.is_empty()).unwrap_or("somebody");
        // The rest of a full host name is the same for all who share the daemon.
        let host = host.and_then(|host| host.split('.').next()).filter(|host| !host.is_empty()).map(|host| format!("@{host}"));
        let tty = tty.map(|tty| format!(" ({})", tty.trim_start_matches("/dev/")));
        single_line(&format!("{user}{}{}", host.unwrap_or_default(), tty.unwrap_or_default()))
    });
    name.chars().take(NAME_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_people_and_windows_apart() {
        let name = |given, tty| made_of(given, Some("anna"), Some("laptop.example.org"), tty);
        assert_eq!(name(None, Some("/dev/pts/3")), "anna@laptop (pts/3)");
        assert_eq!(name(None, None), "anna@laptop");
        assert_eq!(name(Some(" the phone\n"), None), "the phone");
        assert_eq!(name(Some(""), None), "anna@laptop");
        assert_eq!(made_of(None, None, None, None), "somebody");
    }

    #[test]
    fn nobody_passes_for_a_remembered_answer_and_no_name_is_too_long_or_moves_the_cursor() {
        assert_eq!(made_of(Some("rule"), Some("anna"), None, None), "anna");
        let hostile = made_of(Some(&"\u{1b}[2J".repeat(40)), None, None, None);
        assert!(hostile.chars().count() <= NAME_MAX_CHARS && !hostile.contains('\u{1b}'), "{hostile}");
    }
}
