//! A light stand-in for the OpenCode 1.18 server: what the sidecar uses of it, in a few MB and milliseconds.
//!
//! Fault tests start hundreds of agents, and benches a hundred at once; the real one takes 300 MB and seconds each. This one is started in the same way, prints the
//! same line, wants the same password and speaks the same paths and events; the recordings in `tests/fixtures` are what it was written after, and
//! `tests/tests/light.rs` tells one story to both. It has no model: it answers a prompt by itself, as its first keyword says, in the words of the scripted model
//! (`openagent_tests::model`).
//!
//! | keyword | answer |
//! |---|---|
//! | `#echo TEXT...` | everything after the keyword |
//! | `#slow MS N` | N words, MS milliseconds apart |
//! | `#wait NAME` | begins, goes on once a file of this name is in the workspace |
//! | `#bash COMMAND` | runs it as the `bash` tool, after asking where the permission rules say so; then a text |
//! | `#question` | one question with the options Blue and Green; then a text |
//! | `#hang` | begins and never ends by itself |
//! | none | a short text |
//!
//! Invariant, as of the original: a durable event is in the log on disk before anybody is told of it, the log is all that a later process knows, and what was
//! unfinished when a process was killed stays so: `log` owns it. `turn` does the work of prompts, `server` is the HTTP door, `rules` decides what is asked.

mod log;
mod rules;
mod server;
mod turn;

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use serde_json::Value;
use tokio::net::TcpListener;

/// The version whose behaviour is shown.
const VERSION: &str = "1.18.33";

/// Stands in for OpenCode's server.
#[derive(Debug, Parser)]
#[command(name = "stand-in-agent", version = VERSION)]
enum Arguments {
    /// Serve the HTTP API
    Serve {
        /// Address to listen on
        #[arg(long, default_value = "127.0.0.1")]
        hostname: String,
        /// Port to listen on; 0 takes a free one
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
}

fn json_of(variable: &str) -> anyhow::Result<Value> {
    match std::env::var(variable) {
        Ok(text) => serde_json::from_str(&text).with_context(|| format!("{variable} is no JSON")),
        Err(_) => Ok(Value::Null),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Arguments::Serve { hostname, port } = Arguments::parse();
    let home = PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?);
    let directory = std::env::current_dir().context("the workspace cannot be entered")?;
    let log = log::Log::open(&home.join(".local/share/opencode"), &directory).context("the log cannot be opened")?;
    let agent = turn::Agent::new(log, rules::Rules::new(json_of("OPENCODE_PERMISSION")?), json_of("OPENCODE_CONFIG_CONTENT")?, directory);
    let password = std::env::var("OPENCODE_SERVER_PASSWORD").unwrap_or_default();
    let listener = TcpListener::bind((hostname.as_str(), port)).await.with_context(|| format!("{hostname}:{port} cannot be bound"))?;
    println!("opencode server listening on http://{}", listener.local_addr()?);
    axum::serve(listener, server::router(agent, &password)).await.context("the server broke off")
}
