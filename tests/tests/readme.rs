//! The README's first session, command by command as it is printed there.

use std::process::Stdio;

use openagent_tests::harness::{Driver, PATIENCE, World, programs};

const README: &str = include_str!("../../README.md");

#[tokio::test]
async fn the_first_session_of_the_readme_works_as_printed() {
    let (_, rest) = README.split_once("```sh session\n").expect("the README shows a first session");
    let (script, _) = rest.split_once("```").expect("the block ends");
    let world = World::started(Driver::Local).await;
    let path = format!("{}:{}", programs().display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = tokio::process::Command::new("bash");
    shell.args(["-eu", "-c", script]).env_clear().envs(world.environment()).env("PATH", path).current_dir(world.path("home"));
    shell.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, shell.output()).await.expect("the session ends").expect("bash is there");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("# Hello from OpenAgent"), "the file that the agent wrote is shown: {out}");
    assert!(world.path("home/first-look.zip").is_file());
    world.end().await;
}
