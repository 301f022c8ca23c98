//! Contract of `EventService`: what a history promises to each subscriber, whatever the others do.

use openagent_proto::v1;
use openagent_proto::v1::event::Kind;
use openagent_proto::v1::subscribe_response::Item;
use openagent_tests::harness::client::within;
use openagent_tests::harness::refusal::refused;
use openagent_tests::harness::{Clients, Driver, PATIENCE, World};
use tonic::{Code, Streaming};

const MODEL: &str = "scripted/scripted-large";

/// Subscribers of one history; one of them never reads.
const SUBSCRIBERS: usize = 20;

/// Prompts whose echo is longer than what the transport holds back for one stream.
const FLOOD_TURNS: usize = 4;
const FLOOD_PROMPT_BYTES: usize = 400_000;

fn subscription(id: &str, after_seq: u64, follow: bool) -> v1::SubscribeRequest {
    v1::SubscribeRequest { session_id: id.to_owned(), after_seq, follow, ..Default::default() }
}

async fn subscribed(clients: &mut Clients, request: v1::SubscribeRequest) -> Streaming<v1::SubscribeResponse> {
    clients.event.subscribe(request).await.expect("the history is there").into_inner()
}

async fn next(stream: &mut Streaming<v1::SubscribeResponse>) -> Result<Option<Item>, tonic::Status> {
    let item = within("the next item", PATIENCE, stream.message()).await?;
    Ok(item.map(|item| item.item.expect("an item is never empty")))
}

/// Every recorded event until the stream ends, which must hold nothing else.
async fn to_the_end(stream: &mut Streaming<v1::SubscribeResponse>) -> Vec<v1::Event> {
    let mut events = vec![];
    while let Some(item) = next(stream).await.expect("the stream does not break") {
        match item {
            Item::Event(event) => events.push(event),
            other => panic!("neither letters nor a place in the history were asked for: {other:?}"),
        }
    }
    events
}

#[tokio::test]
async fn a_history_is_read_from_any_cursor_and_its_stream_ends_as_asked() {
    let mut world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active(MODEL).await;
    clients.turn(&id, &mut events, "#reason").await;
    let whole = to_the_end(&mut subscribed(&mut clients, subscription(&id, 0, false)).await).await;
    assert_eq!(whole.iter().map(|event| event.seq).collect::<Vec<_>>(), (1..=whole.len() as u64).collect::<Vec<_>>(), "dense from 1");
    assert!(whole.iter().all(|event| event.created_at.is_some() && event.kind.is_some()));
    let is_reasoning =
        |event: &v1::Event| matches!(&event.kind, Some(Kind::Part(part)) if matches!(part.body, Some(v1::part::Body::Reasoning(_))));
    assert!(whole.iter().any(is_reasoning));

    let last = whole.len() as u64;
    for after in [1, last / 2, last - 1, last] {
        let rest = to_the_end(&mut subscribed(&mut clients, subscription(&id, after, false)).await).await;
        assert_eq!(rest, whole[usize::try_from(after).expect("histories are short")..], "behind {after}");
    }
    for beyond in [last + 1, u64::MAX] {
        let outcome = clients.event.subscribe(subscription(&id, beyond, true)).await;
        let refusal = refused(outcome, Code::OutOfRange, "CURSOR_BEYOND_END");
        assert!(refusal.hint.contains('0'), "{refusal:?}");
    }

    // A subscriber that goes in the middle of a turn and comes back with its cursor has everything once.
    let mut pieces = vec![];
    let mut first = subscribed(&mut clients, subscription(&id, last, true)).await;
    assert_eq!(next(&mut first).await.expect("it goes on"), Some(Item::CaughtUp(v1::CaughtUp { seq: last })));
    clients.prompt(&id, "#wait middle").await;
    assert!(world.model.wait_until_waiting("middle", PATIENCE).await);
    for _ in 0..3 {
        match next(&mut first).await.expect("it goes on").expect("it goes on") {
            Item::Event(event) => pieces.push(event),
            other => panic!("{other:?}"),
        }
    }
    drop(first);
    world.model.release("middle");
    events.until_turn_ended().await;
    let cursor = pieces.last().map_or(0, |event| event.seq);
    pieces.extend(to_the_end(&mut subscribed(&mut clients, subscription(&id, cursor, false)).await).await);
    let told = clients.history(&id).await;
    assert_eq!(pieces, told[usize::try_from(last).expect("histories are short")..]);

    let mut stopped = subscribed(&mut clients, subscription(&id, 0, true)).await;
    let other = clients.create(MODEL).await.id;
    let mut removed = clients.follow(&other).await;
    clients.remove(&other).await;
    while removed.next(PATIENCE).await.is_some() {}
    world.stop().await;
    let end = loop {
        match next(&mut stopped).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the end of the daemon is not the end of the history"),
            Err(end) => break end,
        }
    };
    assert!(refused::<()>(Err(end), Code::Unavailable, "DAEMON_STOPPING").hint.contains("again"));
    world.start().await;
    world.end().await;
}

#[tokio::test]
async fn a_late_reader_gets_the_letters_so_far_and_then_the_rest() {
    let world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    let (id, mut early) = clients.active(MODEL).await;
    clients.prompt(&id, "#wait half").await;
    assert!(world.model.wait_until_waiting("half", PATIENCE).await);
    let so_far = "The work has begun ";
    while !early.letters.values().any(|text| text == so_far) {
        early.next(PATIENCE).await;
    }
    let mut late = clients.follow(&id).await;
    while !late.letters.values().any(|text| text == so_far) {
        late.next(PATIENCE).await;
    }
    assert_eq!(late.pieces, 1, "what was written already comes as one piece");
    let mut without = subscribed(&mut clients, subscription(&id, 0, true)).await;
    world.model.release("half");
    for reader in [&mut early, &mut late] {
        reader.until_turn_ended().await;
        assert_eq!(reader.answer(), "The work has begun and has ended.");
        let whole = reader.answer();
        assert!(reader.letters.values().any(|text| *text == whole), "the letters are the text: {:?}", reader.letters);
    }
    assert_eq!(early.seen, late.seen);
    let mut recorded = vec![];
    while recorded.len() < early.seen.len() {
        match next(&mut without).await.expect("it goes on").expect("it goes on") {
            Item::Event(event) => recorded.push(event),
            Item::Snapshot(_) | Item::CaughtUp(_) => {}
            Item::Delta(delta) => panic!("letters were not asked for: {delta:?}"),
        }
    }
    assert_eq!(recorded, early.seen);
    world.end().await;
}

#[tokio::test]
async fn of_twenty_subscribers_one_never_reads_and_the_others_miss_nothing() {
    let world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active(MODEL).await;
    let mut never_reads = world.clients().await;
    let request = v1::SubscribeRequest { deltas: true, ..subscription(&id, 0, true) };
    let stuck = subscribed(&mut never_reads, request).await;
    let mut readers = vec![];
    for _ in 1..SUBSCRIBERS {
        // Each has a connection of its own, as programs have.
        readers.push(world.clients().await.follow(&id).await);
    }
    let flood = format!("#echo {}", "0123456789".repeat(FLOOD_PROMPT_BYTES / 10));
    for turn in 0..FLOOD_TURNS {
        let reading = futures::future::join_all(readers.iter_mut().map(|reader| reader.until_turn_ended()));
        let (end, others) = tokio::join!(clients.turn(&id, &mut events, &flood), reading);
        assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "turn {turn}: {end:?}");
        assert!(others.iter().all(|other| *other == end));
    }
    let history = clients.history(&id).await;
    for reader in &readers {
        assert!(reader.seen == history[..reader.seen.len()], "every reader has seen the same");
    }
    let mut stuck = stuck;
    let mut seen = 0;
    while seen < history.len() as u64 {
        if let Item::Event(event) = next(&mut stuck).await.expect("it was not thrown out").expect("nor ended") {
            assert_eq!(event.seq, seen + 1, "who reads late has missed nothing");
            seen = event.seq;
        }
    }
    world.end().await;
}

/// The texts of all prose, in order of their first appearance.
fn prose(events: &[v1::Event]) -> Vec<String> {
    let mut order = vec![];
    let mut texts = std::collections::HashMap::new();
    for event in events {
        if let Some(Kind::Part(part)) = &event.kind
            && let Some(v1::part::Body::Text(text)) = &part.body
            && texts.insert(part.id.clone(), text.text.clone()).is_none()
        {
            order.push(part.id.clone());
        }
    }
    order.iter().map(|id| texts[id].clone()).collect()
}

#[tokio::test]
async fn a_long_history_is_compacted_and_whoever_comes_from_before_is_told() {
    let mut world = World::new(Driver::Local).await;
    world.write_config("[history]\ncompact_after = 100\n");
    world.start().await;
    world.set_keys("key").await;
    let mut clients = world.clients().await;
    let (id, mut events) = clients.active(MODEL).await;
    let mut turns = 0;
    while events.seen.len() < 260 {
        clients.turn(&id, &mut events, &format!("turn {turns}")).await;
        turns += 1;
    }
    assert_eq!(events.floor, 0, "who follows from the beginning is not disturbed");

    let compacted = within("the compaction", PATIENCE, async {
        loop {
            let mut stream = subscribed(&mut clients, subscription(&id, 0, false)).await;
            match next(&mut stream).await.expect("the stream does not break") {
                Some(Item::Snapshot(snapshot)) if snapshot.floor_seq > 150 => break (snapshot, to_the_end(&mut stream).await),
                _ => {}
            }
        }
    })
    .await;
    let (snapshot, kept) = compacted;
    let below = kept.iter().filter(|event| event.seq <= snapshot.floor_seq).count() as u64;
    assert_eq!((below, snapshot.kept + snapshot.dropped), (snapshot.kept, snapshot.floor_seq));
    assert!(snapshot.dropped > snapshot.floor_seq / 4, "{snapshot:?}");
    assert_eq!(prose(&kept), prose(&events.seen), "it is the same conversation");
    assert_eq!(prose(&clients.history(&id).await), prose(&events.seen));
    let at_the_floor = to_the_end(&mut subscribed(&mut clients, subscription(&id, snapshot.floor_seq, false)).await).await;
    assert_eq!(at_the_floor, events.seen[usize::try_from(snapshot.floor_seq).expect("histories are short")..]);

    let logs = world.cli(&["logs", &id]).await;
    assert!(logs.status.success(), "{logs:?}");
    assert!(String::from_utf8_lossy(&logs.stderr).contains("older events were compacted"), "{logs:?}");

    // After a restart it goes on from there.
    world.kill().await;
    world.start().await;
    let mut clients = world.clients().await;
    let mut again = clients.follow(&id).await;
    while !again.caught_up {
        again.next(PATIENCE).await;
    }
    clients.turn(&id, &mut again, "one more").await;
    assert!(again.floor >= snapshot.floor_seq);
    assert!(prose(&again.seen).starts_with(&prose(&events.seen)));
    world.end().await;
}
