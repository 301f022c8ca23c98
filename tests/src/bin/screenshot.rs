//! Takes the picture of the terminal user interface that the README shows: the real programs, with the demo and the scripted model server.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use openagent_proto::v1;
use openagent_tests::harness::pty::{ENTER, Pty, READING};
use openagent_tests::harness::{Clients, Driver, World};
use openagent_tests::screenshot;

/// Columns and rows of the picture.
const SIZE: (u16, u16) = (110, 32);

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Sandbox {
    Docker,
    Local,
}

/// Takes a picture of OpenAgent at work.
#[derive(Debug, Parser)]
#[command(name = "screenshot")]
struct Arguments {
    /// File to write
    output: PathBuf,
    /// What runs the sessions
    #[arg(long, value_enum, default_value = "docker")]
    driver: Sandbox,
}

/// A session that has taken a prompt.
async fn session(clients: &mut Clients, title: &str, model: &str, prompt: &str) -> (String, openagent_tests::harness::events::Events) {
    let request = v1::CreateSessionRequest { title: title.to_owned(), model: model.to_owned(), ..Default::default() };
    let id = clients.create_with(request).await.id;
    let mut events = clients.follow(&id).await;
    events.until_ready().await;
    clients.prompt(&id, prompt).await;
    (id, events)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let driver = match arguments.driver {
        Sandbox::Docker => Driver::Docker,
        Sandbox::Local => Driver::Local,
    };
    let world = World::with_keys(driver).await;
    let mut clients = world.clients().await;

    let (stopped, mut events) = session(&mut clients, "Draft the release notes", "scripted/scripted-small", "#usage 5100 620 0 0").await;
    events.until_turn_ended().await;
    clients.stop(&stopped).await;
    let (_, mut events) = session(&mut clients, "Fix the flaky parser test", "scripted/scripted-large", "#usage 18200 940 310 12000").await;
    events.until_turn_ended().await;
    session(&mut clients, "Port the build to Rust 2024", "scripted/scripted-large", "#wait picture").await;
    let (_, mut events) = session(&mut clients, "A tour of OpenAgent", "demo/tour", "Show me what you can do").await;
    events.until_asked().await;

    let mut screen = Pty::spawn(world.command("openagent"), SIZE.0, SIZE.1);
    screen.wait_for(&["A tour of OpenAgent", "Enter open"]).await;
    screen.type_keys(ENTER).await;
    screen.wait_for(&["asks to use bash", "y once"]).await;
    screen.watch_for(READING).await;
    screen.type_keys("y").await;
    screen.wait_for(&["asks to use edit", "y once", "1 working", "1 waiting"]).await;
    let picture = screenshot::svg(screen.screen(), "openagent");
    if let Some(folder) = arguments.output.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    std::fs::write(&arguments.output, picture).with_context(|| format!("write {}", arguments.output.display()))?;
    drop(screen);
    world.model.release("picture");
    world.end().await;
    Ok(())
}
