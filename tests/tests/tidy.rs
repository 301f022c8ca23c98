//! The rules that no compiler checks: who may name what, how files look, and what must be there. Each rule is a row of a table and says what to do.
//!
//! Files are those that git tracks or would track, so a new file counts before it is committed. Words that this file must not contain itself are put
//! together from two halves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// This file, which holds the words that it looks for.
const OWN: &str = "tests/tests/tidy.rs";

/// Longest file, in lines.
const FILE_MAX_LINES: usize = 800;

/// Crates that are programs; they never depend on one another.
const PROGRAMS: [(&str, &str); 3] = [("daemon", "openagentd"), ("sidecar", "openagent-sidecar"), ("tui", "openagent")];

/// Folders that the README's layout names.
const FOLDERS: [&str; 8] = ["core", "daemon", "tui", "proto", "sidecar", "docker", "tests", "xtask"];

/// What may be said only in some places.
struct Rule {
    /// Words that mark the thing in code, outside comments.
    words: &'static [&'static str],
    /// Where the rule holds: beginnings of paths; all code if empty.
    within: &'static [&'static str],
    /// Where the words may stand: beginnings of paths.
    only_in: &'static [&'static str],
    /// What to do.
    say: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        words: &["bollard::"],
        within: &[],
        only_in: &["daemon/src/driver/docker", "daemon/tests/", "tests/"],
        say: "only the Docker driver knows bollard: put what you need behind `Driver` (daemon/src/driver.rs)",
    },
    Rule {
        words: &["sled::"],
        within: &[],
        only_in: &["daemon/src/store"],
        say: "only the store knows sled: add a method to `Store` (daemon/src/store.rs)",
    },
    Rule {
        words: &["tonic::", "tonic_health::", "tonic_reflection::", "tonic_types::"],
        within: &[],
        only_in: &["daemon/src/rpc", "daemon/tests/", "tui/src/client", "tui/tests/", "proto/", "tests/"],
        say: "gRPC stays at the doors: convert in daemon/src/rpc/convert.rs or tui/src/client/convert.rs and hand domain types on",
    },
    Rule {
        words: &[
            "prompt_async",
            "\"/global/",
            "\"/api/session",
            "\"message.part",
            "\"session.idle\"",
            "\"session.status\"",
            "\"permission.asked\"",
        ],
        within: &[],
        only_in: &["sidecar/src/agent/opencode", "sidecar/tests/", "tests/"],
        say: "only sidecar/src/agent/opencode knows OpenCode's paths and JSON: translate there to domain events",
    },
    Rule {
        words: &[
            "std::fs",
            "std::env",
            "std::process",
            "std::thread",
            "std::net::Tcp",
            "std::net::Udp",
            "std::net::ToSocketAddrs",
            "std::os::",
            "std::{",
            "tokio",
            "SystemTime::now",
            "Instant::now",
        ],
        within: &["core/src/"],
        only_in: &[],
        say: "core does no I/O, reads no clock and starts nothing (and names std's modules one by one): take the value as an argument",
    },
    Rule {
        words: &["openagent_proto"],
        within: &["core/"],
        only_in: &[],
        say: "core does not know the wire: convert at the door that needs it",
    },
    Rule {
        words: &["openagent_core"],
        within: &["proto/"],
        only_in: &[],
        say: "proto does not know the domain: convert at the door that needs it",
    },
];

/// Tests that may sleep, and why.
const SLEEPS: &[(&str, &str)] = &[
    ("tests/src/model/http.rs", "the scripted model pauses where a prompt asks for it"),
    ("tests/src/bin/stand_in_agent/turn.rs", "the stand-in pauses where a prompt asks for it"),
    ("tests/src/harness/engine_proxy.rs", "a rule delays calls where a test asks for it"),
    ("tests/src/bench/memory.rs", "what is measured is that nothing happens for a while"),
    ("tests/src/bench/scale.rs", "what is measured is that nothing happens for a while"),
    ("tests/src/bench/wake.rs", "sessions must have become idle, and the pool calm, before a round"),
];

/// Every place that takes a secret out of its wrapper, and how often.
const EXPOSES: &[(&str, usize, &str)] = &[
    ("daemon/src/relay.rs", 1, "the key goes into the header of a model call"),
    ("daemon/src/sidecar.rs", 4, "the bearer into a header and into its sealed record, the one-time token and sealed keys to the sidecar"),
    ("daemon/src/vault.rs", 2, "the key is checked, and encrypted"),
    ("sidecar/src/agent/opencode/client.rs", 1, "OpenCode's own password into a header"),
    ("sidecar/src/agent/opencode/process.rs", 1, "OpenCode's own password into its environment"),
    ("sidecar/src/model/direct.rs", 1, "the key goes into the header of a model call"),
    ("tui/src/client.rs", 1, "the key goes to the daemon"),
];

/// What keeps a shipped format readable.
enum Kept {
    File(&'static str),
    Test(&'static str, &'static str),
}

/// Formats that users have on their disks or that others send: the line that says which is written now, and what proves that it is still read. A new
/// format gets a row with its own proof; the rows before it stay.
const FORMATS: &[(&str, &str, Kept)] = &[
    (
        "daemon/src/store/open.rs",
        "const FORMAT: u64 = 2;",
        Kept::Test("daemon/tests/store_formats.rs", "every_shipped_store_opens_with_all_that_is_in_it"),
    ),
    (
        "daemon/src/store/model.rs",
        "pub struct SessionRecord {",
        Kept::Test("daemon/src/store/tests.rs", "records_of_the_first_version_are_read"),
    ),
    ("daemon/src/store/record.rs", "const VERSION: u8 = 1;", Kept::Test("daemon/src/store/tests.rs", "the_stored_form_of_an_event_stays")),
    ("core/src/envelope.rs", "const FORMAT: u8 = 1;", Kept::Test("core/src/envelope.rs", "an_envelope_of_the_first_format_opens")),
    (
        "sidecar/src/journal/file.rs",
        "b\"openagent-journal/1\\n\"",
        Kept::Test("sidecar/src/journal/tests.rs", "a_journal_of_the_first_format_is_read"),
    ),
    ("core/src/event.rs", "pub enum EventKind {", Kept::File("core/tests/fixtures/events-v1.jsonl")),
    ("docker/opencode.lock.toml", "version = \"1.18.33\"", Kept::File("tests/fixtures/opencode-1.18.33/01-plain.global.sse")),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace").to_owned()
}

/// Every text file that belongs to the project, by its path.
fn files() -> BTreeMap<String, String> {
    let mut git = Command::new("git");
    git.arg("-C").arg(root()).args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = git.output().expect("git is there");
    assert!(output.status.success(), "the files are listed by git: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let read = |name: &str| Some((name.to_owned(), String::from_utf8(fs::read(root().join(name)).ok()?).ok()?));
    let files: BTreeMap<String, String> = names.split_terminator('\0').filter_map(read).collect();
    assert!(files.contains_key(OWN), "this file is one of them");
    files
}

fn sources() -> BTreeMap<String, String> {
    files().into_iter().filter(|(name, _)| name.ends_with(".rs")).collect()
}

/// Code without line comments, with the numbers of its lines.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(number, line)| (number + 1, line)).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn begins_with_any(name: &str, beginnings: &[&str]) -> bool {
    beginnings.iter().any(|beginning| name.starts_with(beginning))
}

#[track_caller]
fn none(mistakes: &[String]) {
    assert!(mistakes.is_empty(), "\n{}\n", mistakes.join("\n"));
}

#[test]
fn each_thing_is_known_in_one_place() {
    let mut mistakes = vec![];
    for (name, text) in sources().into_iter().filter(|(name, _)| name != OWN) {
        for rule in RULES {
            let holds = rule.within.is_empty() || begins_with_any(&name, rule.within);
            if !holds || begins_with_any(&name, rule.only_in) {
                continue;
            }
            for (number, line) in code(&text) {
                if let Some(word) = rule.words.iter().find(|word| line.contains(**word)) {
                    mistakes.push(format!("{name}:{number}: {word}: {}", rule.say));
                }
            }
        }
    }
    none(&mistakes);
}

#[test]
fn crates_depend_on_one_another_only_as_the_architecture_says() {
    let mut mistakes = vec![];
    let files = files();
    let needs = |folder: &str, package: &str| {
        let manifest = &files[&format!("{folder}/Cargo.toml")];
        let is_dependency = |line: &str| line.strip_prefix(package).is_some_and(|rest| rest.trim_start().starts_with(['.', '=']));
        manifest.lines().any(is_dependency)
    };
    for (folder, _) in PROGRAMS {
        for (_, other) in PROGRAMS.iter().filter(|(other, _)| *other != folder) {
            if needs(folder, other) {
                mistakes.push(format!("{folder}/Cargo.toml: {other}: programs share only core and proto; move what both need there"));
            }
        }
    }
    for (folder, forbidden) in [
        (
            "core",
            &["openagent-proto", "openagentd", "openagent-sidecar", "tokio", "hyper", "axum", "tonic", "bollard", "sled", "reqwest"][..],
        ),
        ("proto", &["openagent-core", "openagentd", "openagent-sidecar", "tokio"][..]),
    ] {
        for package in forbidden.iter().filter(|package| needs(folder, package)) {
            mistakes.push(format!("{folder}/Cargo.toml: {package}: {folder} stays free of I/O and of the other crates"));
        }
    }
    none(&mistakes);
}

#[test]
fn files_are_short_enough_to_be_read() {
    let checked = [".rs", ".proto", ".md", ".toml", ".sh", "Dockerfile", ".ci/run"];
    let too_long = files().into_iter().filter(|(name, _)| checked.iter().any(|end| name.ends_with(end)) && !name.contains("/fixtures/"));
    let mistakes: Vec<String> = too_long
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > FILE_MAX_LINES)
        .map(|(name, lines)| format!("{name}: {lines} lines: split it by subject, at most {FILE_MAX_LINES}"))
        .collect();
    none(&mistakes);
}

/// Whether a line calls this function, and not one whose name only ends like it.
fn calls(line: &str, function: &str) -> bool {
    line.match_indices(function).any(|(at, _)| !line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_'))
}

#[test]
fn no_test_sleeps() {
    let sleep = concat!("sle", "ep(");
    let mut mistakes = vec![];
    for (name, text) in sources() {
        if SLEEPS.iter().any(|(exempt, _)| *exempt == name) {
            continue;
        }
        let is_test = name.starts_with("tests/") || name.contains("/tests/") || name.ends_with("/tests.rs");
        // Unit tests stand at the end of their file.
        let tests_begin = if is_test { 0 } else { text.lines().position(|line| line.trim() == "#[cfg(test)]").unwrap_or(usize::MAX) };
        for (number, _) in code(&text).filter(|(number, line)| *number > tests_begin && calls(line, sleep)) {
            mistakes.push(format!(
                "{name}:{number}: wait for a named condition with a bound; if it must pause, add it to SLEEPS with the reason"
            ));
        }
    }
    for (name, why) in SLEEPS {
        let is_needed = sources().get(*name).is_some_and(|text| text.contains(sleep));
        assert!(is_needed, "{name} does not pause any more ({why}): take it out of SLEEPS");
    }
    none(&mistakes);
}

#[test]
fn every_module_begins_by_saying_what_it_is() {
    let mistakes: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(name, _)| format!("{name}: begin with `//!`: what the module owns and its invariant"))
        .collect();
    none(&mistakes);
}

#[test]
fn no_module_is_called_mod() {
    let names = sources().into_keys().filter(|name| name.ends_with("/mod.rs"));
    none(&names.map(|name| format!("{name}: call it after its folder, next to the folder")).collect::<Vec<_>>());
}

#[test]
fn the_readme_shows_every_folder() {
    let files = files();
    let readme = files.get("README.md").expect("there is a README.md");
    let layout = readme.split("## Layout").nth(1).expect("README.md has a section `## Layout`");
    let layout = layout.split("\n## ").next().unwrap_or_default();
    let mut mistakes: Vec<String> = FOLDERS
        .iter()
        .filter(|folder| !layout.contains(&format!("{folder}/")))
        .map(|folder| format!("README.md: the layout does not name {folder}/"))
        .collect();
    let folders: std::collections::BTreeSet<&str> =
        files.keys().filter(|name| name.ends_with("/Cargo.toml")).map(|name| &name[..name.len() - 11]).collect();
    mistakes.extend(
        folders
            .iter()
            .filter(|folder| !FOLDERS.contains(folder))
            .map(|folder| format!("{folder}/ is new: name it in FOLDERS and in the README's layout")),
    );
    none(&mistakes);
}

#[test]
fn secrets_are_taken_out_only_where_they_are_used() {
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for (name, text) in
        sources().iter().filter(|(name, _)| !name.starts_with("tests/") && !name.contains("/tests/") && !name.ends_with("/tests.rs"))
    {
        let product = text.split("#[cfg(test)]\n#[allow").next().unwrap_or_default();
        let count = code(product).map(|(_, line)| line.matches(".expose()").count()).sum();
        if count > 0 && name != "core/src/secret.rs" {
            found.insert(name.clone(), count);
        }
    }
    let expected: BTreeMap<String, usize> = EXPOSES.iter().map(|(name, count, _)| ((*name).to_owned(), *count)).collect();
    assert_eq!(found, expected, "hand the `Secret` on instead; where its text itself is needed, add the place to EXPOSES with the reason");
}

#[test]
fn every_allowed_lint_has_a_reason() {
    let mut mistakes = vec![];
    for (name, text) in sources() {
        for word in ["[allow(", "[expect("] {
            for (at, _) in text.match_indices(&format!("#{word}")).chain(text.match_indices(&format!("#!{word}"))) {
                let attribute = text[at..].split(")]").next().unwrap_or_default();
                if !attribute.contains("reason = \"") {
                    let number = text[..at].lines().count() + 1;
                    mistakes.push(format!("{name}:{number}: say why: `reason = \"...\"`"));
                }
            }
        }
    }
    none(&mistakes);
}

#[test]
fn nothing_names_the_machine_it_was_made_on() {
    let words = [concat!("/wo", "rk/"), concat!("../sha", "red"), concat!("far", "m-")];
    let mut mistakes = vec![];
    for (name, text) in files() {
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                mistakes.push(format!("{name}:{}: {word}: name a path of the project, or say it in words", number + 1));
            }
        }
    }
    none(&mistakes);
}

#[test]
fn every_shipped_format_is_kept_readable() {
    let files = files();
    let mut mistakes = vec![];
    for (place, line, kept) in FORMATS {
        if !files.get(*place).is_some_and(|text| text.contains(line)) {
            mistakes.push(format!(
                "{place}: `{line}` is gone: add the new format with its own proof to FORMATS and keep the proof of the old one"
            ));
        }
        let (proof, is_there) = match kept {
            Kept::File(path) => (*path, files.get(*path).is_some_and(|text| !text.is_empty())),
            Kept::Test(path, test) => (*test, files.get(*path).is_some_and(|text| text.contains(&format!("fn {test}(")))),
        };
        if !is_there {
            mistakes.push(format!("{proof}: it proves that the format of {place} is read for ever: bring it back"));
        }
    }
    none(&mistakes);
}

#[test]
fn every_fault_in_the_table_names_tests_that_are_there() {
    let files = files();
    let table = files.get("docs/faults.md").expect("there is a docs/faults.md");
    let mut mistakes = vec![];
    let mut rows = 0;
    for (number, line) in table.lines().enumerate().filter(|(_, line)| line.starts_with("| ") && !line.starts_with("| fault |")) {
        rows += 1;
        let names: Vec<(&str, &str)> = line.split('`').skip(1).step_by(2).filter_map(|word| word.split_once("::")).collect();
        if names.is_empty() && !line.ends_with("| the same |") {
            mistakes.push(format!("docs/faults.md:{}: name the test that keeps it, as `file::test`", number + 1));
        }
        for (file, test) in names {
            let folders = ["tests", "daemon", "sidecar", "tui"].map(|folder| format!("{folder}/tests/{file}.rs"));
            let is_there = folders.iter().filter_map(|path| files.get(path)).any(|text| text.contains(&format!("fn {test}(")));
            if !is_there {
                mistakes.push(format!("docs/faults.md:{}: there is no test {file}::{test}", number + 1));
            }
        }
    }
    assert!(rows > 10, "the table has {rows} rows");
    none(&mistakes);
}
