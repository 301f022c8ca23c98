//! The whole program as a person uses it: the real `openagent` in a real terminal, from nothing to a quit.

use std::io::Read;

use openagent_tests::harness::pty::{CTRL_BRACKET, CTRL_C, ENTER, ESC, Pty, READING, TAB};
use openagent_tests::harness::{CANARY, Driver, World};

/// A part of the key that no screen may show.
const CANARY_PART: &str = "sk-canary";

fn open(world: &World, columns: u16, rows: u16) -> Pty {
    let mut screen = Pty::spawn(world.command("openagent"), columns, rows);
    screen.forbid(CANARY_PART);
    screen
}

/// Reads the request, and allows it once: one that has only just appeared takes no answer.
async fn allow_once(screen: &mut Pty) {
    screen.wait_for(&["asks to use", "y once"]).await;
    screen.watch_for(READING).await;
    screen.type_keys("y").await;
    screen.wait_for_screen("the request answered", |text| !text.contains("y once")).await;
}

/// Waits for this text in a row of its own.
async fn wait_for_row(screen: &mut Pty, row: &str) {
    screen.wait_for_screen(&format!("row {row:?}"), |text| text.lines().any(|line| line == row)).await;
}

fn assert_terminal_is_given_back(screen: &Pty) {
    let left = screen.screen();
    assert!(!left.alternate_screen(), "the alternate screen is left");
    assert!(!left.hide_cursor(), "the cursor is shown");
    assert!(!left.bracketed_paste(), "pastes are plain");
    assert_eq!(left.mouse_protocol_mode(), vt100::MouseProtocolMode::None, "the mouse is the terminal's");
}

async fn add_the_key(screen: &mut Pty) {
    screen.wait_for(&["Welcome to OpenAgent", "Add a provider key", "Take the tour", "Later"]).await;
    screen.type_keys(ENTER).await;
    screen.wait_for(&["Provider keys", "Anthropic (anthropic)"]).await;
    screen.type_keys("/scripted").await;
    screen.wait_for(&["/scripted", "scripted (scripted)"]).await;
    screen.type_keys(ENTER).await;
    screen.wait_for(&["Enter set key"]).await;
    screen.type_keys(ENTER).await;
    screen.wait_for(&["Key for scripted ", "0 characters"]).await;
    let (typed, pasted) = CANARY.split_at(CANARY_PART.len());
    screen.type_keys(typed).await;
    screen.paste(pasted).await;
    screen.wait_for(&[&format!("{} characters", CANARY.len()), "••••"]).await;
    screen.type_keys(ENTER).await;
    screen.wait_for(&["key for scripted stored", "✓ scripted (scripted)"]).await;
    screen.type_keys(ESC).await;
    screen.wait_for(&["Anthropic (anthropic)"]).await;
    screen.type_keys(ESC).await;
    screen.wait_for(&["No sessions yet"]).await;
}

async fn make_a_session(screen: &mut Pty) {
    screen.type_keys("n").await;
    screen.wait_for(&["New session", "title"]).await;
    screen.type_keys(&format!("Story{TAB}scripted/scripted-la")).await;
    screen.wait_for(&["Story", "▸ scripted/scripted-large"]).await;
    screen.type_keys(ENTER).await;
    screen.wait_for_screen("a step that is done beside one that runs", |text| text.contains("✓ image") && text.contains(" …")).await;
    screen.wait_for(&["ready after", "Write a prompt"]).await;
}

async fn have_a_file_made(screen: &mut Pty) {
    screen.type_keys("#bash echo hello-from-agent > made.txt").await;
    screen.type_keys(ENTER).await;
    screen.wait_for(&["asks to use bash", "│ echo hello-from-agent > made.txt", "1 waiting"]).await;
    allow_once(screen).await;
    screen.wait_for(&["allowed once by", "✓ done", "Done. The tool said", "A made.txt"]).await;
}

async fn see_it_in_the_terminal(screen: &mut Pty) {
    screen.type_keys(ESC).await;
    screen.wait_for(&["c write"]).await;
    screen.type_keys("t").await;
    screen.wait_for(&["Terminal · Story", "/workspace$", "Ctrl+] menu: leave"]).await;
    screen.type_keys("cat made.txt\r").await;
    wait_for_row(screen, "hello-from-agent").await;
    screen.type_keys("id\r").await;
    screen.wait_for(&["uid=1000(agent)"]).await;
    screen.type_keys(CTRL_BRACKET).await;
    screen.wait_for(&["q leave"]).await;
    screen.type_keys("q").await;
    screen.wait_for(&["c write", "Done. The tool said"]).await;
}

async fn see_what_it_cost(screen: &mut Pty) {
    screen.type_keys("u").await;
    screen.wait_for(&["Usage", "by session", "total"]).await;
    let spent = |text: &str| text.lines().any(|row| row.starts_with("Story") && row.contains("$0.0") && !row.ends_with("$0"));
    screen.wait_for_screen("what the session cost", spent).await;
    screen.type_keys(ESC).await;
    screen.wait_for(&["c write"]).await;
}

async fn take_it_home(screen: &mut Pty, world: &World) {
    screen.type_keys("e").await;
    screen.wait_for(&["Export to", "story.zip"]).await;
    screen.type_keys(ENTER).await;
    screen.wait_for(&["exported to"]).await;
    let file = std::fs::File::open(world.path("story.zip")).expect("the archive is there");
    let mut archive = zip::ZipArchive::new(file).expect("it is an archive");
    let mut made = String::new();
    archive.by_name("workspace/made.txt").expect("the agent's file is in it").read_to_string(&mut made).expect("it is text");
    assert_eq!(made, "hello-from-agent\n");
}

async fn stop_and_resume(screen: &mut Pty) {
    screen.type_keys("s").await;
    screen.wait_for(&["Stop “Story”?", "y yes"]).await;
    screen.type_keys("y").await;
    screen.wait_for(&["■ stopped", "R resumes it"]).await;
    screen.type_keys("R").await;
    screen.wait_for_screen("a session that runs", |text| !text.contains("■ stopped") && text.matches("ready after").count() == 2).await;
    screen.wait_for(&["#bash echo hello-from-agent > made.txt", "allowed once by", "Done. The tool said"]).await;
    screen.type_keys("c").await;
    screen.wait_for(&["Write a prompt"]).await;
    screen.type_keys("#read made.txt").await;
    screen.type_keys(ENTER).await;
    screen.wait_for(&["read made.txt", "✓ done"]).await;
    screen.wait_for_screen("the answer", |text| text.matches("Done. The tool said").count() == 2).await;
}

async fn lose_the_daemon_and_find_it_again(screen: &mut Pty, world: &World) {
    let pid = world.serving_pid().await;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the daemon runs");
    screen.wait_for(&["✗ offline", "Story"]).await;
    let started = world.cli(&["daemon", "start"]).await;
    assert!(started.status.success(), "{started:?}");
    screen.wait_for_screen("the daemon again", |text| !text.contains("offline") && text.contains("Story")).await;
    screen.type_keys("#plain").await;
    screen.type_keys(ENTER).await;
    screen.wait_for(&["The quick answer is forty-two.", "✓ done"]).await;
}

#[tokio::test]
async fn a_new_user_gets_from_nothing_to_a_file_that_an_agent_wrote() {
    let world = World::new(Driver::Docker).await;
    let mut screen = open(&world, 110, 32);
    add_the_key(&mut screen).await;
    make_a_session(&mut screen).await;
    have_a_file_made(&mut screen).await;
    see_it_in_the_terminal(&mut screen).await;
    see_what_it_cost(&mut screen).await;
    take_it_home(&mut screen, &world).await;
    stop_and_resume(&mut screen).await;

    screen.type_keys(ESC).await;
    screen.wait_for(&["c write"]).await;
    screen.type_keys("q").await;
    screen.wait_for(&["q quit"]).await;
    screen.type_keys("q").await;
    assert!(screen.ended().await.success());
    assert_terminal_is_given_back(&screen);

    for (columns, rows) in [(40, 12), (80, 24)] {
        let mut screen = open(&world, columns, rows);
        screen.wait_for(&["OpenAgent", "Story", "done", "Enter open"]).await;
        screen.type_keys(ENTER).await;
        screen.wait_for(&["(End of file - total 1 lines)", "✓ done", "Write a prompt"]).await;
        screen.resize(110, 32);
        screen.wait_for(&["Story", "done · ", "scripted/scripted-large · ask"]).await;
        if columns == 80 {
            lose_the_daemon_and_find_it_again(&mut screen, &world).await;
        }
        screen.type_keys(CTRL_C).await;
        screen.type_keys(CTRL_C).await;
        assert!(screen.ended().await.success());
        assert_terminal_is_given_back(&screen);
    }
    world.end().await;
}

#[tokio::test]
async fn the_tour_needs_no_key() {
    let world = World::new(Driver::Local).await;
    let mut screen = open(&world, 100, 30);
    screen.wait_for(&["Welcome to OpenAgent", "Take the tour"]).await;
    screen.type_keys("2").await;
    screen.wait_for(&["▸ 2 Take the tour"]).await;
    screen.type_keys(ENTER).await;
    screen.wait_for(&["Show me what you can do", "Enter sends the suggested prompt"]).await;
    screen.type_keys(ENTER).await;
    screen.wait_for(&["asks to use bash", "ls -la"]).await;
    allow_once(&mut screen).await;
    screen.wait_for(&["asks to use edit", "hello-openagent.md", "+# Hello from OpenAgent"]).await;
    allow_once(&mut screen).await;
    screen.wait_for(&["That was the tour", "✓ done"]).await;
    screen.type_keys(CTRL_C).await;
    screen.type_keys(CTRL_C).await;
    assert!(screen.ended().await.success());
    assert_terminal_is_given_back(&screen);
    world.end().await;
}
