//! The scripted model server as a program, for demos and for trying OpenCode by hand.
//!
//! Prints its base URL as the first line and serves until interrupted. `POST /control/release/NAME` opens a gate of
//! `#wait NAME`, `GET /control/requests` lists what was asked.

use clap::Parser;
use openagent_tests::model::ModelOptions;
use tokio::signal::unix::{SignalKind, signal};

/// Serves a scripted language model on loopback.
#[derive(Debug, Parser)]
#[command(name = "scripted-model", version)]
struct Arguments {
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Refuse every other key with 401
    #[arg(long)]
    key: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut options = ModelOptions::default().on_port(arguments.port);
    if let Some(key) = arguments.key {
        options = options.with_key(key);
    }
    let mut model = options.start().await?;
    println!("scripted model on {}", model.base_url());
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result?,
        _ = terminate.recv() => {}
        () = model.wait() => anyhow::bail!("the scripted model ended by itself"),
    }
    model.shutdown().await;
    Ok(())
}
