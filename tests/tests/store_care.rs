//! Care of the store with real programs: a backup of a daemon at work, its restore by command, verification, and two daemons on one store or socket.

use std::process::{Output, Stdio};
use std::time::Duration;

use openagent_proto::v1;
use openagent_tests::harness::client::within;
use openagent_tests::harness::{CANARY, Driver, World};
use tonic::Code;
use tonic_types::StatusExt;

const MODEL: &str = "scripted/scripted-large";
const BOUND: Duration = Duration::from_secs(30);

/// Runs `openagentd` to its end.
async fn daemon(world: &World, arguments: &[&str], environment: &[(&str, String)]) -> Output {
    let mut command = tokio::process::Command::from(world.command("openagentd"));
    command.args(arguments).envs(environment.iter().cloned()).stdin(Stdio::null()).kill_on_drop(true);
    within("the end of openagentd", BOUND, command.output()).await.expect("it runs")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn back_up(world: &World) -> Vec<u8> {
    let mut chunks = world.clients().await.daemon.backup_store(v1::BackupStoreRequest {}).await.expect("it begins").into_inner();
    let mut file = vec![];
    while let Some(piece) = within("the backup", BOUND, chunks.message()).await.expect("the stream does not break") {
        assert!(!piece.chunk.is_empty() && piece.chunk.len() <= 64 * 1024, "{}", piece.chunk.len());
        file.extend(piece.chunk);
    }
    file
}

#[tokio::test]
async fn a_backup_of_a_daemon_at_work_is_restored_by_command() {
    let mut world = World::light().await;
    world.start().await;
    world.set_keys(CANARY).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active(MODEL).await;
    clients.turn(&id, &mut events, "#echo one two three").await;
    clients.stop(&id).await;
    let before = clients.history(&id).await;
    let title = clients.get(&id).await.title;

    let file = world.path("backup");
    std::fs::write(&file, back_up(&world).await).expect("the folder is ours");
    let file = file.display().to_string();
    let found = clients.daemon.verify_store(v1::VerifyStoreRequest {}).await.expect("it is verified").into_inner();
    assert_eq!((found.sessions, found.problem_count, found.problems.len(), found.unopened), (1, 0, 0, 0), "{found:?}");
    assert!(found.opened >= 4 && found.events >= before.len() as u64, "{found:?}");

    // Beside the daemon, only the file may be looked at.
    let checked = daemon(&world, &["verify", &file], &[]).await;
    assert!(checked.status.success() && said(&checked).contains("1 sessions"), "{}", said(&checked));
    for arguments in [&["restore", &file][..], &["verify"]] {
        let refused = daemon(&world, arguments, &[]).await;
        let text = said(&refused);
        assert!(!refused.status.success() && text.contains("is in use by another daemon") && text.contains("hint: "), "{text}");
    }
    clients
        .session
        .rename_session(v1::RenameSessionRequest { session_id: id.clone(), title: "changed".to_owned() })
        .await
        .expect("renamed");
    world.stop().await;

    let sound = daemon(&world, &["verify"], &[]).await;
    assert!(sound.status.success() && said(&sound).ends_with("sound\n"), "{}", said(&sound));
    let restored = daemon(&world, &["restore", &file], &[]).await;
    assert!(restored.status.success() && said(&restored).contains("db.before-restore-1"), "{}", said(&restored));
    world.start().await;
    let mut clients = world.clients().await;
    assert_eq!(clients.get(&id).await.title, title);
    let after = clients.history(&id).await;
    assert_eq!(after[..before.len()], before[..]);
    clients.resume(&id).await;
    let mut events = clients.follow_after(&id, after.len() as u64).await;
    let end = clients.turn(&id, &mut events, "#echo four").await;
    assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "keys were restored as well");
    world.end().await;
}

#[tokio::test]
async fn what_is_no_backup_is_refused_with_a_sentence() {
    let world = World::new(Driver::Local).await;
    let file = world.path("backup");
    std::fs::write(&file, "not a backup").expect("the folder is ours");
    for (arguments, sentence) in [
        (["restore", "backup"], "is no sound backup"),
        (["verify", "backup"], "is no sound backup"),
        (["restore", "missing"], "cannot be read"),
    ] {
        let refused = daemon(&world, &arguments, &[]).await;
        let text = said(&refused);
        assert!(!refused.status.success() && text.starts_with("error: ") && text.contains(sentence) && text.contains("hint: "), "{text}");
    }
}

#[tokio::test]
async fn a_second_daemon_on_the_same_state_or_socket_is_refused_and_the_first_goes_on() {
    let world = World::started(Driver::Local).await;
    let other_run = world.path("other-run").display().to_string();
    let other_state = world.path("other-state").display().to_string();
    for (environment, sentence) in [
        (vec![("OPENAGENT_RUNTIME_DIR", other_run)], "is in use by another daemon"),
        (vec![("OPENAGENT_STATE_DIR", other_state)], "another daemon serves"),
        (vec![], "another daemon"),
    ] {
        let refused = daemon(&world, &[], &environment).await;
        let text = said(&refused);
        assert!(!refused.status.success() && text.contains(sentence) && text.contains("hint: "), "{text}");
        world.clients().await.daemon.get_status(v1::GetStatusRequest {}).await.expect("the first goes on");
    }
    world.end().await;
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_reads_go_on() {
    let mut world = World::new(Driver::Local).await;
    world.write_config("[store]\nreserve = \"900000GiB\"\n");
    world.start().await;
    let mut clients = world.clients().await;
    let refused = clients
        .vault
        .set_key(v1::SetKeyRequest { provider: "scripted".to_owned(), secret: CANARY.to_owned() })
        .await
        .expect_err("nothing is written");
    let info = refused.get_error_details().error_info().cloned().expect("error info is attached");
    assert_eq!((refused.code(), info.reason.as_str()), (Code::ResourceExhausted, "STORE_FULL"), "{refused:?}");
    assert!(info.metadata["hint"].contains("MiB"), "{info:?}");
    assert!(clients.list().await.is_empty());
    let found = clients.daemon.verify_store(v1::VerifyStoreRequest {}).await.expect("reads go on").into_inner();
    assert_eq!(found.problem_count, 0, "{found:?}");
    world.end().await;
}
