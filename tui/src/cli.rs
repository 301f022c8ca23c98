//! The command line: everything that the terminal user interface does, for people and for scripts.
//!
//! Data goes to stdout, everything else to stderr. A command ends with an [`ExitCode`], or with that of the shell in a terminal.

mod allow;
mod args;
mod daemon;
mod export;
mod inbox;
mod key;
mod log;
mod partial;
mod patience;
mod progress;
mod prompt;
mod resolve;
mod secret;
mod session;
mod store;
mod term;
mod turn;
mod usage;
mod wait;

use std::io::{self, Read};

use thiserror::Error;

pub use args::Cli;
use args::Command;

use crate::app;
use crate::client::{self, Client, ClientError, ExitCode, Kind, Start};
use crate::output::{self, Format, say};

/// Why a command ended early.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// It failed.
    #[error(transparent)]
    Failed(#[from] ClientError),
    /// What was printed is not wanted any more, as by `head`.
    #[error("stdout was closed")]
    Closed,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::Closed;
        }
        Self::Failed(ClientError::new(Kind::Failed, format!("the output cannot be written: {error}"), ""))
    }
}

/// The exit code of a command that came to its end.
pub(crate) type Done = Result<u8, Failure>;

/// It worked.
pub(crate) const OK: u8 = ExitCode::Ok as u8;

/// A mistake in how a command was called, found after its arguments were parsed.
pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Failure {
    Failure::Failed(ClientError::new(Kind::Invalid, message, hint))
}

/// Runs what was asked for and returns the exit code, having said on stderr what went wrong.
pub async fn run(cli: Cli) -> u8 {
    match Box::pin(dispatch(cli)).await {
        Ok(code) => code,
        Err(Failure::Closed) => OK,
        Err(Failure::Failed(error)) => {
            report(&error);
            error.exit_code() as u8
        }
    }
}

/// Says an error and what to do about it on stderr. The daemon's own words may carry these labels already.
pub(crate) fn report(error: &ClientError) {
    let message = error.message.trim();
    say(&format!("error: {}", message.strip_prefix("error: ").unwrap_or(message)));
    if !error.hint.is_empty() {
        say(&format!("hint: {}", error.hint));
    }
}

async fn connect() -> Result<Client, Failure> {
    Ok(Client::connect(&client::paths()?, Start::OnDemand).await?)
}

#[allow(clippy::large_futures, reason = "one future for the life of the process")]
async fn dispatch(cli: Cli) -> Done {
    let format = |output: args::OutputArgs| output.format(cli.output);
    let Some(command) = cli.command else { return interface(None, !cli.no_mouse).await };
    match command {
        Command::Attach(plain) => interface(Some(&plain.id), !cli.no_mouse).await,
        Command::New(new) => {
            let format = format(new.output);
            session::new(&connect().await?, new, format).await
        }
        Command::Ls(listing) => session::ls(&connect().await?, format(listing.output)).await,
        Command::Show(one) => session::show(&connect().await?, &one.id, format(one.output)).await,
        Command::Prompt(prompt) => {
            let format = format(prompt.output);
            prompt::prompt(&connect().await?, prompt, format).await
        }
        Command::Run(run) => {
            let format = format(run.output);
            prompt::run(&connect().await?, run, format).await
        }
        Command::Wait(wait) => wait::wait(&connect().await?, wait).await,
        Command::Logs(logs) => {
            let format = format(logs.output);
            log::logs(&connect().await?, logs, format).await
        }
        Command::Inbox(inbox) => inbox::inbox(&connect().await?, inbox.id.as_deref(), format(inbox.output)).await,
        Command::Permit(permit) => inbox::permit(&connect().await?, permit).await,
        Command::Answer(answer) => inbox::answer(&connect().await?, answer).await,
        Command::Abort(plain) => session::abort(&connect().await?, &plain.id).await,
        Command::Stop(several) => session::stop(&connect().await?, &several.ids, format(several.output)).await,
        Command::Resume(resume) => {
            let format = format(resume.output);
            session::resume(&connect().await?, resume, format).await
        }
        Command::Rm(remove) => session::rm(&connect().await?, remove).await,
        Command::Rename(rename) => {
            let format = format(rename.output);
            session::rename(&connect().await?, rename, format).await
        }
        Command::Term(term) => term::term(&connect().await?, term).await,
        Command::Export(export) => export::export(&connect().await?, export).await,
        Command::Usage(usage) => {
            let format = format(usage.output);
            usage::usage(&connect().await?, usage, format).await
        }
        Command::Keys(keys) => key::keys(keys, cli.output).await,
        Command::Providers(listing) => key::providers(&connect().await?, format(listing.output)).await,
        Command::Models(models) => {
            let format = format(models.output);
            key::models(&connect().await?, models.provider.as_deref(), format).await
        }
        Command::Rules(rules) => inbox::rules(&connect().await?, rules, cli.output).await,
        Command::Daemon(daemon) => daemon::daemon(daemon, cli.output).await,
        Command::Config(args::Config::Print) => daemon::print_config(),
    }
}

/// The terminal user interface, at the session that `id` means.
async fn interface(id: Option<&str>, mouse: bool) -> Done {
    if !output::stdout_is_terminal() {
        return Err(usage("the terminal user interface needs a terminal", "see what can be done without one: openagent help"));
    }
    let client = connect().await?;
    let session = match id {
        Some(id) => Some(resolve::session(&client, id).await?.to_string()),
        None => None,
    };
    match app::run(client, app::Options { session, mouse }).await {
        Ok(()) => Ok(OK),
        Err(error) => Err(ClientError::new(Kind::Failed, format!("{error:#}"), "").into()),
    }
}

/// Asks on the terminal, where nothing but a clear yes is one.
pub(crate) async fn agreed(question: &str) -> bool {
    eprint!("{question} [y/N] ");
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = answer.await.ok().and_then(Result::ok).unwrap_or_default();
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// The prompt that was given, or what stdin holds.
pub(crate) async fn prompt_text(given: Option<String>) -> Result<String, Failure> {
    let from_stdin = match given {
        Some(text) if text != "-" => return checked_prompt(text),
        given => given,
    };
    if from_stdin.is_none() && io::IsTerminal::is_terminal(&io::stdin()) {
        say("Type the prompt, then Ctrl-D on an empty line.");
    }
    let read = tokio::task::spawn_blocking(|| {
        let mut text = Vec::new();
        let limit = openagent_core::session::PROMPT_MAX_BYTES as u64 + 1;
        io::stdin().lock().take(limit).read_to_end(&mut text).map(|_| text)
    });
    let unreadable = |error: String| usage(format!("the prompt cannot be read from stdin: {error}"), "");
    let bytes = read.await.map_err(|error| unreadable(error.to_string()))?.map_err(|error| unreadable(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8".into()))?;
    checked_prompt(text.trim_end_matches('\n').to_owned())
}

fn checked_prompt(text: String) -> Result<String, Failure> {
    if text.trim().is_empty() {
        return Err(usage("the prompt is empty", ""));
    }
    if text.len() > openagent_core::session::PROMPT_MAX_BYTES {
        return Err(usage("the prompt is longer than 1 MiB", "put long texts into the workspace and name the file"));
    }
    Ok(text)
}

/// Prints a session in the format asked for; `table` makes the text for people.
pub(crate) fn print_session(session: client::SessionView, format: Format, table: impl Fn(&client::SessionView) -> String) -> Done {
    match format {
        Format::Json => output::as_json(&output::json::Session::from(session))?,
        Format::Table => output::print(&table(&session))?,
    }
    Ok(OK)
}
