//! The command line as data.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use openagent_core::permission::{PermissionMode, PermissionResponse};
use openagent_core::session::IdleAction;

use super::allow::Allow;
use crate::output::{Format, quantity};

/// Coding agents in the background, each in a sandbox of its own.
#[derive(Debug, Parser)]
#[command(name = "openagent", version, about, after_help = AFTER_HELP, arg_required_else_help = false)]
pub struct Cli {
    #[command(flatten)]
    pub(super) output: OutputArgs,
    /// Leave the mouse to the terminal, for its own selection.
    #[arg(long)]
    pub(super) no_mouse: bool,
    /// What to do; without it the terminal user interface opens.
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

const AFTER_HELP: &str = "Without a command the terminal user interface opens.
ID is a session's id, the beginning or the end of one, what lists show of it, or a title that only one session has.
Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 key missing or refused, 5 the agent waits for an answer.";

#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct OutputArgs {
    /// How data is printed.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
    /// The same as -o json.
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

impl OutputArgs {
    /// What was asked for here, else `outer`, else a table.
    pub(super) fn format(self, outer: Self) -> Format {
        let here = |args: Self| if args.json { Some(Format::Json) } else { args.output };
        here(self).or_else(|| here(outer)).unwrap_or_default()
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a session.
    New(New),
    /// List the sessions.
    #[command(visible_alias = "list")]
    Ls(Listing),
    /// Show a session.
    Show(One),
    /// Open a session in the terminal user interface.
    Attach(Plain),
    /// Give an agent a prompt.
    Prompt(Prompt),
    /// Make a session, give it a prompt, wait, and print the answer.
    Run(Run),
    /// Wait until a session has come to something.
    Wait(Wait),
    /// Print what happened in a session.
    Logs(Logs),
    /// List what agents ask.
    Inbox(Inbox),
    /// Answer a request for permission.
    Permit(Permit),
    /// Answer a question.
    Answer(Answer),
    /// End the turn that runs.
    Abort(Plain),
    /// End the containers of sessions and keep everything else.
    Stop(Several),
    /// Give a stopped or failed session a new container.
    Resume(Resume),
    /// Remove sessions with their workspaces and histories.
    Rm(Remove),
    /// Give a session a title.
    Rename(Rename),
    /// Open a terminal in a session's sandbox, or attach to one.
    Term(Term),
    /// Save a session's workspace and transcript as a zip archive.
    Export(Export),
    /// Show tokens and cost.
    Usage(UsageArgs),
    /// Store, list and remove provider keys.
    #[command(subcommand)]
    Keys(Keys),
    /// List the model providers.
    Providers(Listing),
    /// List the models.
    Models(Models),
    /// List and remove remembered answers that hold for every session.
    #[command(subcommand)]
    Rules(Rules),
    /// Start, stop and look at the daemon.
    #[command(subcommand)]
    Daemon(Daemon),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(Config),
}

#[derive(Debug, Args)]
pub(super) struct Listing {
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct One {
    /// The session.
    pub(super) id: String,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    /// The session.
    pub(super) id: String,
    /// Return before the agent is ready.
    #[arg(long)]
    pub(super) no_wait: bool,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct Plain {
    /// The session.
    pub(super) id: String,
}

#[derive(Debug, Args)]
pub(super) struct Several {
    /// The sessions.
    #[arg(required = true)]
    pub(super) ids: Vec<String>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// What a new session is made with.
#[derive(Debug, Args)]
pub(super) struct SessionOptions {
    /// Its title; without one the agent gives one.
    #[arg(long)]
    pub(super) title: Option<String>,
    /// Its model, as provider/model.
    #[arg(long, short)]
    pub(super) model: Option<String>,
    /// Its agent, such as build or plan.
    #[arg(long)]
    pub(super) agent: Option<String>,
    /// What it may do unasked: ask, auto-edit or read-only.
    #[arg(long, value_name = "MODE")]
    pub(super) permission_mode: Option<PermissionMode>,
    /// Start from a copy of this folder, without what its ignore files exclude.
    #[arg(long, visible_alias = "copy", value_name = "PATH")]
    pub(super) workspace: Option<PathBuf>,
    /// Memory limit, such as 2G.
    #[arg(long, value_name = "SIZE", value_parser = quantity::parse_bytes)]
    pub(super) memory: Option<u64>,
    /// Processor limit in cores, such as 1.5.
    #[arg(long, value_name = "CORES", value_parser = quantity::parse_cpus)]
    pub(super) cpus: Option<u32>,
    /// Limit of processes and threads.
    #[arg(long, value_name = "COUNT")]
    pub(super) pids: Option<u32>,
    /// Rest after which it becomes idle, such as 15m; never keeps it active.
    #[arg(long, value_name = "TIME", value_parser = quantity::parse_duration)]
    pub(super) idle_timeout: Option<Duration>,
    /// What becomes of its container then: pause freezes it and wakes it at once, stop frees its memory.
    #[arg(long, value_name = "ACTION", value_parser = parse_idle_action)]
    pub(super) idle_action: Option<IdleAction>,
}

fn parse_idle_action(text: &str) -> Result<IdleAction, String> {
    IdleAction::ALL.into_iter().find(|action| action.name() == text).ok_or_else(|| "expected pause or stop".to_owned())
}

#[derive(Debug, Args)]
pub(super) struct New {
    #[command(flatten)]
    pub(super) options: SessionOptions,
    /// Its first prompt; - reads it from stdin.
    #[arg(short, long, value_name = "PROMPT")]
    pub(super) prompt: Option<String>,
    /// Return before the agent is ready.
    #[arg(long, conflicts_with = "prompt")]
    pub(super) no_wait: bool,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct Prompt {
    /// The session.
    pub(super) id: String,
    /// The prompt; without it, or with -, it is read from stdin.
    pub(super) text: Option<String>,
    /// From now on use this model, as provider/model.
    #[arg(long, short)]
    pub(super) model: Option<String>,
    /// From now on use this agent, such as build or plan.
    #[arg(long)]
    pub(super) agent: Option<String>,
    /// Wait for the turn's end and print the answer.
    #[arg(long, short)]
    pub(super) wait: bool,
    #[command(flatten)]
    pub(super) turn: TurnOptions,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// How a turn is waited for.
#[derive(Debug, Args)]
pub(super) struct TurnOptions {
    /// Allow once, each time it is asked: all, a permission such as edit, or a permission with a pattern such as 'bash:git *'.
    /// May be given several times.
    #[arg(long, value_name = "RULE")]
    pub(super) allow: Vec<Allow>,
    /// Give up after this time, such as 10m.
    #[arg(long, value_name = "TIME", value_parser = quantity::parse_duration)]
    pub(super) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// The prompt; - reads it from stdin.
    pub(super) prompt: String,
    #[command(flatten)]
    pub(super) options: SessionOptions,
    #[command(flatten)]
    pub(super) turn: TurnOptions,
    /// Keep the session afterwards (the default).
    #[arg(long, conflicts_with = "rm")]
    pub(super) keep: bool,
    /// Remove the session afterwards, unless it waits for an answer.
    #[arg(long)]
    pub(super) rm: bool,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Until {
    /// The agent has ended its turn.
    Done,
    /// The agent waits for an answer.
    Blocked,
    /// The session is idle.
    Idle,
    /// The session is stopped.
    Stopped,
    /// The session accepts prompts.
    Active,
    /// The session has failed.
    Error,
}

#[derive(Debug, Args)]
pub(super) struct Wait {
    /// The session.
    pub(super) id: String,
    /// What to wait for. Without it: the turn's end (exit code 0) or a request of the agent (exit code 5).
    #[arg(long, value_enum)]
    pub(super) until: Option<Until>,
    /// Give up after this time, such as 10m.
    #[arg(long, value_name = "TIME", value_parser = quantity::parse_duration)]
    pub(super) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// The session.
    pub(super) id: String,
    /// Go on with what happens from now on.
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Begin behind this event.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub(super) after: u64,
    /// Print the letters of parts that are still being written; with -f.
    #[arg(long, requires = "follow")]
    pub(super) deltas: bool,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct Inbox {
    /// Only this session.
    pub(super) id: Option<String>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct Permit {
    /// The session (may be left out), the request, and once, session, always or reject.
    #[arg(required = true, num_args = 2..=3, value_names = ["[ID] REQUEST", "RESPONSE"])]
    pub(super) words: Vec<String>,
    /// Why it is rejected, for the agent, which then goes on.
    #[arg(long)]
    pub(super) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Answer {
    /// The session.
    pub(super) id: String,
    /// The request.
    pub(super) request: String,
    /// One answer for each question: a label, its number, or your own words; several labels separated by commas.
    #[arg(required_unless_present = "dismiss")]
    pub(super) answers: Vec<String>,
    /// Do not answer; the turn ends.
    #[arg(long, conflicts_with = "answers")]
    pub(super) dismiss: bool,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The sessions.
    #[arg(required = true)]
    pub(super) ids: Vec<String>,
    /// Do not ask, and do not mind what does not exist.
    #[arg(short, long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Rename {
    /// The session.
    pub(super) id: String,
    /// Its title from now on.
    pub(super) title: String,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct Term {
    /// The session.
    pub(super) id: String,
    /// Attach to this terminal instead of opening one.
    #[arg(long, value_name = "TERMINAL", conflicts_with = "command")]
    pub(super) terminal: Option<String>,
    /// Only look.
    #[arg(long)]
    pub(super) read_only: bool,
    /// A command instead of a login shell.
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// The session.
    pub(super) id: String,
    /// The archive; - writes it to stdout.
    #[arg(short, long, value_name = "FILE.zip")]
    pub(super) output: PathBuf,
    /// Overwrite a file that exists.
    #[arg(long)]
    pub(super) force: bool,
}

/// What usage is grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum GroupBy {
    /// By session.
    Session,
    /// By day, UTC.
    Day,
    /// By provider/model.
    Model,
    /// By message; needs a session.
    Message,
}

#[derive(Debug, Args)]
pub(super) struct UsageArgs {
    /// Only this session; otherwise all, also those removed since.
    pub(super) id: Option<String>,
    /// Group by this.
    #[arg(long, value_enum)]
    pub(super) by: Option<GroupBy>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum Keys {
    /// Store the key of a provider. It is read from stdin, or asked for; never given as an argument.
    Set {
        /// The provider.
        provider: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the stored keys, without the keys.
    Ls(Listing),
    /// Remove the key of a provider.
    Rm {
        /// The provider.
        provider: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Models {
    /// Only this provider's.
    pub(super) provider: Option<String>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum Rules {
    /// List them.
    Ls(Listing),
    /// Forget one.
    Rm {
        /// The permission, such as bash.
        permission: String,
        /// The pattern, as listed.
        pattern: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Daemon {
    /// Start it, unless it runs.
    Start(Listing),
    /// End it. What becomes of sessions that run is configured, or said here.
    Stop(StopDaemon),
    /// End it and start the one that is installed; sessions go on running.
    Restart(Listing),
    /// Show how it is doing.
    Status(Listing),
    /// Save a copy of its store, while it goes on serving.
    Backup(Backup),
    /// Read every record of its store, or of a backup, and tell what is damaged.
    Verify(Verify),
    /// Put a backup in the place of its store, while it does not run.
    Restore(Restore),
    /// Run it here until it ends.
    Run {
        /// Leave the terminal first.
        #[arg(long, hide = true)]
        detach: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct StopDaemon {
    /// Sessions go on running and are found again at the next start.
    #[arg(long, conflicts_with = "stop_sessions")]
    pub(super) keep_sessions: bool,
    /// Sessions are stopped first.
    #[arg(long)]
    pub(super) stop_sessions: bool,
}

#[derive(Debug, Args)]
pub(super) struct Backup {
    /// The copy; - writes it to stdout.
    pub(super) file: PathBuf,
    /// Overwrite a file that exists.
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// A backup; without it, the store.
    pub(super) file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The backup.
    pub(super) file: PathBuf,
    /// Do not ask.
    #[arg(short, long)]
    pub(super) yes: bool,
    /// Leave out provider keys and credentials, which only the machine opens that made them.
    #[arg(long)]
    pub(super) without_keys: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Print the configuration that holds, and where it is read from.
    Print,
}

/// The answer to a request for permission, as it is typed.
pub(super) fn parse_response(text: &str) -> Option<PermissionResponse> {
    [PermissionResponse::Once, PermissionResponse::Session, PermissionResponse::Always, PermissionResponse::Reject]
        .into_iter()
        .find(|response| crate::output::event::response_name(*response) == text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("openagent").chain(line.iter().copied()))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_format_may_stand_before_or_behind_the_command() {
        for line in [&["ls", "-o", "json"][..], &["-o", "json", "ls"], &["ls", "--json"], &["--json", "ls"]] {
            let cli = parse(line).unwrap();
            let Some(Command::Ls(listing)) = cli.command else { panic!("{line:?}") };
            assert_eq!(listing.output.format(cli.output), Format::Json, "{line:?}");
        }
        let cli = parse(&["--json", "ls", "-o", "table"]).unwrap();
        let Some(Command::Ls(listing)) = cli.command else { panic!() };
        assert_eq!(listing.output.format(cli.output), Format::Table, "the nearer one holds");
    }

    #[test]
    fn a_session_is_made_with_what_people_write() {
        let line = ["new", "--memory", "1.5G", "--cpus", "0.5", "--idle-timeout", "never", "--permission-mode", "auto-edit", "--copy", "."];
        let Some(Command::New(new)) = parse(&line).unwrap().command else { panic!() };
        assert_eq!((new.options.memory, new.options.cpus, new.options.idle_timeout), (Some(3 << 29), Some(500), Some(Duration::ZERO)));
        assert_eq!(new.options.permission_mode, Some(PermissionMode::AutoEdit));
        assert_eq!(new.options.workspace, Some(PathBuf::from(".")));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_usage_code() {
        for line in [
            &["frobnicate"][..],
            &["new", "--memory", "lots"],
            &["new", "--permission-mode", "yolo"],
            &["permit", "x"],
            &["answer", "x", "y"],
            &["answer", "x", "y", "z", "--dismiss"],
            &["run"],
            &["run", "x", "--keep", "--rm"],
            &["export", "x"],
            &["keys", "set", "openai", "sk-secret"],
            &["logs", "x", "--deltas"],
            &["run", "x", "--allow", ""],
            &["new", "--idle-action", "sleep"],
            &["daemon", "stop", "--keep-sessions", "--stop-sessions"],
            &["daemon", "restore"],
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line:?}");
        }
    }

    #[test]
    fn a_command_for_a_terminal_stands_behind_two_dashes() {
        let Some(Command::Term(term)) = parse(&["term", "x", "--", "ls", "-l"]).unwrap().command else { panic!() };
        assert_eq!(term.command, ["ls", "-l"]);
    }

    #[test]
    fn the_four_answers_are_known_by_name() {
        assert_eq!(parse_response("always"), Some(PermissionResponse::Always));
        assert_eq!(parse_response("yes"), None);
    }
}
