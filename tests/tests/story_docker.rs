//! The stories on the real engine, with the real OpenCode.

use openagent_tests::harness::Driver;
use openagent_tests::stories;

#[tokio::test]
async fn a_prompt_is_answered() {
    stories::a_prompt_is_answered(Driver::Docker).await;
}

#[tokio::test]
async fn permission_is_asked_and_answered() {
    stories::permission_is_asked_and_answered(Driver::Docker).await;
}

#[tokio::test]
async fn a_restarted_daemon_goes_on() {
    stories::a_restarted_daemon_goes_on(Driver::Docker).await;
}

#[tokio::test]
async fn a_stopped_session_is_resumed() {
    stories::a_stopped_session_is_resumed(Driver::Docker).await;
}

#[tokio::test]
async fn work_of_every_kind_is_told() {
    stories::work_of_every_kind_is_told(Driver::Docker).await;
}
