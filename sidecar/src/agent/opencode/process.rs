//! OpenCode's server process: started offline-safe and without a secret but its own password, ended in order.
//!
//! Its port accepts connections before it answers them, and a request sent then is never answered; so its port is not tried but read from its output.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use openagent_core::seal::random;
use openagent_core::secret::Secret;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::mpsc;

use super::config::Config;
use crate::process::{Child, agent_command, exit_code, spawn};
use crate::settings::Settings;
use crate::task::Tasks;

/// Time to be ready: 2.5 s are usual, much more on a machine that starts ten at once.
const READY_TIMEOUT: Duration = Duration::from_secs(90);

/// Time for making the workspace ready.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);

/// Time between the request to end and the kill.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for reading what an ended process has printed.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(200);

/// Longest line of its output that is looked at, in bytes.
const OUTPUT_LINE_MAX_BYTES: u64 = 8 * 1024;

/// What precedes the address on standard output.
const LISTENING: &str = "opencode server listening on ";

/// Run by the agent's user before the server. The folder of its configuration is emptied, since whatever is in it would be merged into what we
/// configure, permissions included; the lock file keeps OpenCode from fetching a package into it. Without a repository and its first commit there
/// are no snapshots and no diffs. A repository that was put aside is put back where it was, in two steps of which the second is atomic, since the home
/// is another file system; all the rest was done when it was put aside. Says in one word what it found, see [`Workspace`].
const PREPARE: &str = r#"
set -eu
config="$HOME/.config/opencode"
aside="$HOME/.cache/openagent/repository"
rm -rf -- "$config" .git.openagent
mkdir -p -- "$config/node_modules"
printf '%s' '{"lockfileVersion":3,"packages":{"":{"dependencies":{"@opencode-ai/plugin":"1.18.33"}}}}' > "$config/package-lock.json"
if [ ! -e .git ] && [ -d "$aside" ]; then
  mv -- "$aside" .git.openagent
  mv -- .git.openagent .git
  found=kept
else
  rm -rf -- "$aside"
  command -v git > /dev/null || { echo 'git is missing' >&2; exit 3; }
  found=changed
  [ -e .git ] || { git init -q -b main; found=made; }
  git rev-parse -q --verify HEAD > /dev/null || {
    # Of one that was killed while it did this: nobody else locks a repository that has no commit.
    rm -f .git/*.lock .git/refs/heads/*.lock
    git -c core.hooksPath=/dev/null -c commit.gpgSign=false -c user.name=OpenAgent -c user.email=openagent@localhost \
      commit -q --allow-empty -m 'Start of the session'
  }
fi
for name in .opencode .claude .agents; do [ ! -e "$name" ] || found=changed; done
echo "$found"
"#;

/// Run by the agent's user: leaves the workspace empty, as it was before there was a repository.
const PUT_ASIDE: &str = r#"
set -eu
aside="$HOME/.cache/openagent/repository"
rm -rf -- "$aside"
mkdir -p -- "${aside%/*}"
mv -- .git "$aside"
"#;

/// Variable of the server's environment that its commands inherit, and theirs, however they detach; its value says whose they are.
const MARK: &str = "OPENAGENT_AGENT_OF";

/// Run by the agent's user, who alone may look into the environment of its processes: kills those that carry the mark `$1`, and what they start
/// meanwhile. Terminals do not carry it.
const SWEEP: &str = r#"
for round in 1 2 3 4 5; do
  found=$(grep -lzaxF -e "$1" /proc/[0-9]*/environ 2> /dev/null) || :
  [ "$found" ] || exit 0
  for file in $found; do
    pid=${file#/proc/}
    kill -KILL "${pid%/environ}" 2> /dev/null
  done
done
"#;

/// Why the server does not run.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The program is not there.
    #[error("OpenCode is missing: {program} does not exist; install it with `cargo xtask setup`, or name it in OPENAGENT_OPENCODE")]
    Missing {
        /// Where it was looked for.
        program: String,
    },
    /// The program cannot be started.
    #[error("OpenCode cannot be started from {program}")]
    Start {
        /// Where it is.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The workspace could not be made ready.
    #[error("the workspace could not be made ready: {0}")]
    Prepare(String),
    /// It ended before it was ready.
    #[error("OpenCode ended with code {code} before it was ready: {last}")]
    Ended {
        /// Exit code.
        code: i32,
        /// The last line it printed.
        last: String,
    },
    /// It was not ready in time.
    #[error("OpenCode was not ready within {} seconds", READY_TIMEOUT.as_secs())]
    Late,
}

/// A running server.
pub struct Server {
    /// Its process.
    pub child: Child,
    /// Where it listens.
    pub address: String,
    /// What its HTTP API asks for.
    pub password: Secret,
}

/// What the workspace was when it was made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workspace {
    /// It had no repository; one was made.
    Made,
    /// Its repository was put back, and nothing is there that the agent reads only once.
    Kept,
    /// Anything else.
    Changed,
}

/// Makes the agent's home and the workspace ready for the server, as the agent's user.
///
/// # Errors
/// [`ProcessError::Prepare`] with what the script said.
pub async fn prepare(settings: &Settings) -> Result<Workspace, ProcessError> {
    Ok(match run(settings, PREPARE, "").await?.trim() {
        "made" => Workspace::Made,
        "kept" => Workspace::Kept,
        _ => Workspace::Changed,
    })
}

/// Puts the workspace's repository aside until [`prepare`] puts it back, so that the workspace can be filled meanwhile, with a repository or without.
///
/// # Errors
/// [`ProcessError::Prepare`] with what the script said.
pub async fn put_aside(settings: &Settings) -> Result<(), ProcessError> {
    run(settings, PUT_ASIDE, "").await.map(drop)
}

/// Kills what an ended server has left running: commands that it, or whoever killed it, did not take along.
///
/// # Errors
/// [`ProcessError::Prepare`] when it took too long.
pub async fn sweep(settings: &Settings) -> Result<(), ProcessError> {
    run(settings, SWEEP, &format!("{MARK}={}", mark(settings))).await.map(drop)
}

/// The home as well, since the local driver's processes see those of other daemons.
fn mark(settings: &Settings) -> String {
    format!("{}:{}", settings.session, settings.agent_home.display())
}

/// Runs a script as the agent's user and returns what it printed.
async fn run(settings: &Settings, script: &str, argument: &str) -> Result<String, ProcessError> {
    // Never a person's own home: what is emptied there was not ours.
    if std::env::var_os("HOME").is_some_and(|home| home == *settings.agent_home) && settings.agent_uid.is_none() {
        return Err(ProcessError::Prepare("the agent's home is the user's own".to_owned()));
    }
    let failed = |error: io::Error| ProcessError::Prepare(error.to_string());
    let mut command = agent_command(settings, "/bin/sh");
    command.args(["-c", script, "sh", argument]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command).map_err(failed)?;
    let (stdout, stderr) = (child.take_stdout(), child.take_stderr());
    let run = async {
        let (printed, said) = tokio::try_join!(read(stdout), read(stderr))?;
        Ok((child.wait().await?, printed, said))
    };
    let (status, printed, said) = tokio::time::timeout(PREPARE_TIMEOUT, run)
        .await
        .map_err(|_| ProcessError::Prepare("it took too long".to_owned()))?
        .map_err(failed)?;
    if status.success() {
        return Ok(printed);
    }
    Err(ProcessError::Prepare(said.lines().last().map_or_else(|| format!("it ended with code {}", exit_code(status)), str::to_owned)))
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut said = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_LINE_MAX_BYTES).read_to_end(&mut said).await?;
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// Starts the server and waits until it answers.
///
/// # Errors
/// [`ProcessError`].
pub async fn start(settings: &Settings, config: &Config, tasks: &Tasks) -> Result<Server, ProcessError> {
    let password = Secret::new(hex::encode(random::<24>()));
    let program = settings.opencode.display().to_string();
    let mut command = agent_command(settings, &settings.opencode);
    command
        .args(["serve", "--hostname", "127.0.0.1", "--port", "0"])
        .envs([
            ("OPENCODE_DISABLE_MODELS_FETCH", "1"),
            ("OPENCODE_DISABLE_AUTOUPDATE", "1"),
            ("OPENCODE_DISABLE_LSP_DOWNLOAD", "1"),
            ("OPENCODE_DISABLE_SHARE", "1"),
            ("OPENCODE_DISABLE_DEFAULT_PLUGINS", "1"),
            ("OPENCODE_PURE", "1"),
            ("OPENCODE_DISABLE_PROJECT_CONFIG", "1"),
        ])
        .env("OPENCODE_CONFIG_CONTENT", config.content.to_string())
        .env("OPENCODE_PERMISSION", config.permission.to_string())
        .env("OPENCODE_SERVER_PASSWORD", password.expose())
        .env(MARK, mark(settings))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn(&mut command).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ProcessError::Missing { program: program.clone() },
        _ => ProcessError::Start { program: program.clone(), source },
    })?;
    let (said, mut lines) = mpsc::channel(16);
    if let Some(stdout) = child.take_stdout() {
        tasks.spawn("agent output", drain(stdout, said.clone()));
    }
    if let Some(stderr) = child.take_stderr() {
        tasks.spawn("agent output", drain(stderr, said));
    }
    let mut last = String::new();
    let ready = async {
        loop {
            tokio::select! {
                biased;
                line = lines.recv() => match line {
                    Some(line) => {
                        if let Some(address) = line.strip_prefix(LISTENING) {
                            return Ok(address.trim().trim_end_matches('/').to_owned());
                        }
                        if !line.trim().is_empty() {
                            last = line;
                        }
                    }
                    None => return Err(child.wait().await),
                },
                status = child.wait() => return Err(status),
            }
        }
    };
    match tokio::time::timeout(READY_TIMEOUT, ready).await {
        Ok(Ok(address)) => Ok(Server { child, address, password }),
        Ok(Err(status)) => {
            // What it printed at its end may still be on its way.
            while let Ok(Some(line)) = tokio::time::timeout(LAST_WORDS_TIMEOUT, lines.recv()).await {
                if !line.trim().is_empty() {
                    last = line;
                }
            }
            Err(ProcessError::Ended { code: status.map_or(-1, exit_code), last })
        }
        Err(_) => Err(ProcessError::Late),
    }
}

/// Reads until the end, since a full pipe would stop the server. What it prints may be a user's words: it is shown only while it starts, never logged.
async fn drain(pipe: impl AsyncRead + Unpin, lines: mpsc::Sender<String>) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut pipe).take(OUTPUT_LINE_MAX_BYTES).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            // Nobody waits for lines once the server is ready.
            Ok(_) => drop(lines.try_send(String::from_utf8_lossy(&line).trim_end().to_owned())),
        }
    }
}

impl Server {
    /// Kills the process with its whole group.
    pub async fn kill(&mut self) {
        self.child.signal_group(Signal::SIGKILL);
        // Killed: the kernel ends it.
        let _ = self.child.wait().await;
    }

    /// Ends the process: asked first, then killed with its whole group.
    pub async fn end(mut self) {
        self.child.signal_group(Signal::SIGTERM);
        let ended = tokio::time::timeout(TERMINATE_TIMEOUT, self.child.wait()).await;
        self.child.signal_group(Signal::SIGKILL);
        if ended.is_err() {
            // Killed: the kernel ends it.
            let _ = self.child.wait().await;
        }
    }
}
