//! `GET /events` and `POST /control/ack`.

use http::{Method, StatusCode};
use openagent_core::event::Event;
use openagent_proto::sidecar::path;
use serde_json::json;

use crate::fixture::{Daemon, Folders};

async fn record(daemon: &Daemon, versions: impl Iterator<Item = u64>) {
    for version in versions {
        let keys = [daemon.seal(&format!("p{version}"), version, b"sk-canary")];
        assert_eq!(daemon.update_keys(version, &keys).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn events_are_replayed_from_a_cursor_and_then_followed() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    record(&daemon, 1..=3).await;
    let mut events = daemon.events(1).await;
    for wanted in 2..=3 {
        let mut frame = events.next().await.unwrap();
        assert_eq!((frame.id, &frame.event), (Some(wanted), &None));
        // With its number put in, it is an event of the domain.
        frame.data["seq"] = json!(wanted);
        let event: Event = serde_json::from_value(frame.data).unwrap();
        assert!(event.at.as_millis() > 1_700_000_000_000);
    }
    record(&daemon, 4..=4).await;
    assert_eq!(events.next().await.unwrap().id, Some(4));
    // Another reader, from the beginning, at its own pace.
    assert_eq!(daemon.events(0).await.next().await.unwrap().data["providers"], json!(["p1"]));
}

#[tokio::test]
async fn a_killed_sidecar_has_lost_nothing_that_it_answered() {
    let folders = Folders::new();
    let mut sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    record(&daemon, 1..=20).await;
    sidecar.child.start_kill().unwrap();
    sidecar.ended().await;

    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    let mut events = daemon.events(0).await;
    for wanted in 1..=20 {
        assert_eq!(events.next().await.unwrap().id, Some(wanted));
    }
    record(&daemon, 1..=1).await;
    assert_eq!(events.next().await.unwrap().id, Some(21));
}

#[tokio::test]
async fn killed_in_the_middle_of_writing_it_keeps_every_event_that_it_answered() {
    let folders = Folders::new();
    let mut sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    let answered = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let writing = {
        let (daemon, answered) = (daemon.clone(), answered.clone());
        tokio::spawn(async move {
            for version in 1.. {
                record(&daemon, version..=version).await;
                answered.store(version, std::sync::atomic::Ordering::SeqCst);
            }
        })
    };
    let mut events = daemon.events(0).await;
    while events.next().await.unwrap().id.unwrap() < 50 {}
    sidecar.child.start_kill().unwrap();
    sidecar.ended().await;
    // It ends when a call finds nobody.
    assert!(writing.await.is_err());
    let answered = answered.load(std::sync::atomic::Ordering::SeqCst);
    let journal = crate::fixture::journal(&folders);
    assert!((answered..=answered + 1).contains(&journal.last()), "{answered} {}", journal.last());
}

#[tokio::test]
async fn acknowledgements_are_taken_up_to_the_end_of_the_journal_only() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    record(&daemon, 1..=2).await;
    for seq in [1, 1, 2, 0] {
        let answer = daemon.call(Method::POST, path::ACK, &json!({ "seq": seq })).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
    }
    for bad in [json!({ "seq": 3 }), json!({ "seq": -1 }), json!({ "seq": "1" })] {
        assert_eq!(daemon.call(Method::POST, path::ACK, &bad).await.error(), (400, "INVALID_REQUEST"));
    }
}

#[tokio::test]
async fn a_cursor_that_is_none_is_refused() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    let daemon = sidecar.registered().await;
    for query in ["after=-1", "after=x", "after=18446744073709551615", "before=1"] {
        assert_eq!(daemon.get(&format!("{}?{query}", path::EVENTS)).await.error(), (400, "INVALID_REQUEST"), "{query}");
    }
}
