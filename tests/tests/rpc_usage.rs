//! Contract of `UsageService`: every sum is that of the numbers which the model server gave, however it is grouped.

use openagent_proto::v1;
use openagent_proto::v1::UsageGrouping::{Day, Message, Model, Session, Unspecified};
use openagent_proto::v1::event::Kind;
use openagent_tests::harness::refusal::refused;
use openagent_tests::harness::{Clients, Driver, World};
use tonic::Code;

/// What a prompt of `#usage` costs.
#[derive(Clone, Copy)]
struct Turn {
    input: u64,
    output: u64,
    reasoning: u64,
    cache_read: u64,
}

impl Turn {
    fn prompt(self) -> String {
        format!("#usage {} {} {} {}", self.input, self.output, self.reasoning, self.cache_read)
    }

    /// With the prices of the harness: 1, 2 and 0.1 a million tokens; reasoning is paid as output.
    fn usage(self, priced: bool) -> v1::Usage {
        let Self { input, output, reasoning, cache_read } = self;
        let cost_micros = if priced { input + 2 * (output + reasoning) + cache_read / 10 } else { 0 };
        v1::Usage { tokens: Some(v1::Tokens { input, output, reasoning, cache_read, cache_write: 0 }), cost_micros }
    }
}

fn sum<'a>(usages: impl IntoIterator<Item = &'a v1::Usage>) -> v1::Usage {
    let mut tokens = v1::Tokens::default();
    let mut cost_micros = 0;
    for usage in usages {
        let of = usage.tokens.unwrap_or_default();
        tokens.input += of.input;
        tokens.output += of.output;
        tokens.reasoning += of.reasoning;
        tokens.cache_read += of.cache_read;
        tokens.cache_write += of.cache_write;
        cost_micros += usage.cost_micros;
    }
    v1::Usage { tokens: Some(tokens), cost_micros }
}

async fn usage(clients: &mut Clients, id: &str, by: v1::UsageGrouping) -> v1::GetUsageResponse {
    let request = v1::GetUsageRequest { session_id: id.to_owned(), group_by: by.into() };
    let answer = clients.usage.get_usage(request).await.expect("usage is told").into_inner();
    let groups: Vec<_> = answer.groups.iter().filter_map(|group| group.usage.as_ref()).collect();
    if by != Unspecified {
        assert_eq!(Some(sum(groups)), answer.total, "groups add up to the total: {by:?} of {id:?}");
    }
    answer
}

fn keys(answer: &v1::GetUsageResponse) -> Vec<&str> {
    answer.groups.iter().map(|group| group.key.as_str()).collect()
}

#[tokio::test]
async fn every_grouping_adds_up_to_what_the_model_server_counted() {
    let mut world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    let nothing = usage(&mut clients, "", Unspecified).await;
    assert_eq!((nothing.total, nothing.groups.len()), (Some(v1::Usage { tokens: Some(v1::Tokens::default()), cost_micros: 0 }), 0));

    let turns = [
        Turn { input: 700, output: 100, reasoning: 50, cache_read: 300 },
        Turn { input: 11, output: 22, reasoning: 0, cache_read: 0 },
        Turn { input: 90_000, output: 40_000, reasoning: 1, cache_read: 70 },
    ];
    let (one, mut events) = clients.active("scripted/scripted-large").await;
    for turn in &turns[..2] {
        clients.turn(&one, &mut events, &turn.prompt()).await;
    }
    let expected: Vec<_> = turns[..2].iter().map(|turn| turn.usage(true)).collect();
    let told: Vec<_> =
        events.seen.iter().filter_map(|event| if let Some(Kind::Usage(usage)) = &event.kind { Some(usage) } else { None }).collect();
    let messages: std::collections::BTreeMap<_, _> =
        told.iter().map(|usage| (usage.message_id.clone(), usage.usage.expect("it is there"))).collect();
    assert_eq!(messages.values().copied().collect::<Vec<_>>(), expected, "message ids are in order of time");
    assert!(told.iter().all(|usage| usage.provider == "scripted" && usage.model == "scripted-large"));

    let by_message = usage(&mut clients, &one, Message).await;
    assert_eq!(keys(&by_message), messages.keys().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(by_message.groups.iter().filter_map(|group| group.usage).collect::<Vec<_>>(), expected);
    clients.get_when(&one, "the same sum", |session| session.usage == by_message.total).await;

    let small = v1::PromptRequest {
        session_id: one.clone(),
        text: turns[2].prompt(),
        model: "scripted/scripted-small".to_owned(),
        ..Default::default()
    };
    clients.session.prompt(small).await.expect("it is taken");
    events.until_turn_ended().await;
    let all_of_one = sum(&[expected[0], expected[1], turns[2].usage(false)]);
    for by in [Unspecified, Session, Day, Model, Message] {
        assert_eq!(usage(&mut clients, &one, by).await.total, Some(all_of_one), "{by:?}");
    }
    let by_model = usage(&mut clients, &one, Model).await;
    assert_eq!(keys(&by_model), ["scripted/scripted-large", "scripted/scripted-small"]);
    assert_eq!(by_model.groups[1].usage, Some(turns[2].usage(false)), "a model without prices costs nothing");

    let (two, mut events) = clients.active("scripted-anthropic/scripted-large").await;
    let other = Turn { input: 40, output: 30, reasoning: 0, cache_read: 20 };
    clients.turn(&two, &mut events, &other.prompt()).await;
    let of_two = usage(&mut clients, &two, Unspecified).await.total.expect("there is a total");
    assert_eq!(of_two, other.usage(true));
    let total = sum(&[all_of_one, of_two]);
    for by in [Unspecified, Session, Day, Model] {
        assert_eq!(usage(&mut clients, "", by).await.total, Some(total), "{by:?}");
    }
    let by_session = usage(&mut clients, "", Session).await;
    let mut ids = vec![one.as_str(), two.as_str()];
    ids.sort_unstable();
    assert_eq!(keys(&by_session), ids);
    let days = usage(&mut clients, "", Day).await;
    let is_day = |key: &str| key.len() == 10 && key.split('-').map(str::len).eq([4, 2, 2]);
    assert!(keys(&days).iter().all(|key| is_day(key)) && days.groups.len() <= 2, "{days:?}");

    // Removed sessions and a restart change nothing of what was spent.
    clients.remove(&two).await;
    world.stop().await;
    world.start().await;
    let mut clients = world.clients().await;
    for by in [Unspecified, Day, Model] {
        assert_eq!(usage(&mut clients, "", by).await.total, Some(total), "{by:?}, with a session removed");
    }
    assert_eq!(usage(&mut clients, &one, Message).await.total, Some(all_of_one));
    let request = v1::GetUsageRequest { session_id: String::new(), group_by: Session.into() };
    let after = clients.usage.get_usage(request).await.expect("usage is told").into_inner();
    assert_eq!((keys(&after), after.total), (vec![one.as_str()], Some(total)), "a removed session has no group");

    for (group_by, id) in [(i32::from(Message), ""), (99, ""), (99, one.as_str())] {
        let request = v1::GetUsageRequest { session_id: id.to_owned(), group_by };
        refused(clients.usage.get_usage(request).await, Code::InvalidArgument, "INVALID");
    }
    world.end().await;
}
