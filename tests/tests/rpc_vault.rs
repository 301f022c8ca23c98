//! Contract of `VaultService` and `ProviderService`: keys go in and never come out, and what can be used follows from them.

use std::collections::BTreeSet;

use openagent_proto::v1;
use openagent_tests::harness::refusal::refused;
use openagent_tests::harness::{CANARY, Clients, Driver, PATIENCE, World};
use tonic::Code;

/// Longest secret.
const SECRET_MAX_BYTES: usize = 16 * 1024;

fn key(provider: &str, secret: &str) -> v1::SetKeyRequest {
    v1::SetKeyRequest { provider: provider.to_owned(), secret: secret.to_owned() }
}

async fn set(clients: &mut Clients, provider: &str, secret: &str) -> v1::Key {
    clients.vault.set_key(key(provider, secret)).await.expect("the key is taken").into_inner().key.expect("it is answered")
}

async fn keys(clients: &mut Clients) -> Vec<v1::Key> {
    clients.vault.list_keys(v1::ListKeysRequest {}).await.expect("keys are listed").into_inner().keys
}

async fn providers(clients: &mut Clients, usable_only: bool) -> v1::ListProvidersResponse {
    clients.provider.list_providers(v1::ListProvidersRequest { usable_only }).await.expect("providers are listed").into_inner()
}

#[tokio::test]
async fn keys_are_set_listed_and_removed_and_never_told() {
    let mut world = World::started(Driver::Local).await;
    let mut clients = world.clients().await;
    assert!(keys(&mut clients).await.is_empty());
    let first = set(&mut clients, "scripted", CANARY).await;
    assert_eq!((first.provider.as_str(), first.version, first.used_at), ("scripted", 1, None));
    assert!(first.created_at.is_some() && first.created_at == first.updated_at);
    let second = set(&mut clients, "scripted", &format!("{CANARY}-two")).await;
    assert_eq!((second.version, second.created_at), (2, first.created_at), "it is the same key, changed");
    set(&mut clients, "anthropic", &"x".repeat(SECRET_MAX_BYTES)).await;
    let listed = keys(&mut clients).await;
    assert_eq!(listed.iter().map(|key| key.provider.as_str()).collect::<Vec<_>>(), ["anthropic", "scripted"], "by provider");
    assert_eq!(listed[1], second);
    for answer in
        [format!("{first:?}"), format!("{second:?}"), format!("{listed:?}"), format!("{:?}", providers(&mut clients, false).await)]
    {
        assert!(!answer.contains(CANARY), "no answer holds a key");
    }

    let bad = [
        ("scripted", String::new(), "KEY_INVALID"),
        ("scripted", "x".repeat(SECRET_MAX_BYTES + 1), "KEY_INVALID"),
        ("scripted", "sk-two\nlines".to_owned(), "KEY_INVALID"),
        ("scripted", "sk-\u{7}".to_owned(), "KEY_INVALID"),
        ("scriptd", CANARY.to_owned(), "PROVIDER_UNKNOWN"),
        ("", CANARY.to_owned(), "PROVIDER_UNKNOWN"),
        ("../up", CANARY.to_owned(), "PROVIDER_UNKNOWN"),
    ];
    for (provider, secret, reason) in bad {
        let refusal = refused(clients.vault.set_key(key(provider, &secret)).await, Code::InvalidArgument, reason);
        assert!(!refusal.hint.is_empty(), "{refusal:?}");
        assert!(secret.is_empty() || !format!("{refusal:?}").contains(&secret), "a refusal repeats no key");
    }
    assert_eq!(keys(&mut clients).await, listed, "nothing was changed");

    let remove = |provider: &str| v1::RemoveKeyRequest { provider: provider.to_owned() };
    for unknown in ["openai", "nobody", ""] {
        let refusal = refused(clients.vault.remove_key(remove(unknown)).await, Code::NotFound, "NOT_FOUND");
        assert!(refusal.hint.contains("openagent keys ls"), "{refusal:?}");
    }
    clients.vault.remove_key(remove("scripted")).await.expect("it is removed");
    refused(clients.vault.remove_key(remove("scripted")).await, Code::NotFound, "NOT_FOUND");

    world.kill().await;
    world.start().await;
    let mut clients = world.clients().await;
    assert_eq!(keys(&mut clients).await, listed[..1], "what was answered is durable");
    let again = set(&mut clients, "scripted", CANARY).await;
    assert!(again.version > second.version, "a version is never given twice: {again:?}");
    assert!(!world.log().contains(CANARY), "no key in the log");
    world.end().await;
}

#[tokio::test]
async fn a_session_uses_a_changed_key_from_its_next_call_and_a_removed_one_no_more() {
    let world = World::started(Driver::Local).await;
    let mut clients = world.clients().await;
    for provider in ["scripted", "scripted-direct"] {
        set(&mut clients, provider, "sk-mistyped").await;
    }
    for provider in ["scripted", "scripted-direct"] {
        let (id, mut events) = clients.active(&format!("{provider}/scripted-large")).await;
        let end = clients.turn(&id, &mut events, "#plain").await;
        assert_eq!(end.outcome(), v1::TurnOutcome::Failed, "{provider}: {end:?}");
        let key = set(&mut clients, provider, CANARY).await;
        // The direct route's keys go to the sidecar behind the answer; the scripted server says when the new one is used.
        let mut turns = 0;
        while clients.turn(&id, &mut events, "#plain").await.outcome() != v1::TurnOutcome::Completed {
            turns += 1;
            assert!(turns < 5, "{provider}: the new key is not used");
        }
        if provider == "scripted" {
            assert_eq!(turns, 0, "the relay uses it at once");
            let used = keys(&mut clients).await.into_iter().find(|key| key.provider == provider).expect("it is stored");
            assert!(used.used_at.is_some() && used.version == key.version, "{used:?}");
        }
        clients.vault.remove_key(v1::RemoveKeyRequest { provider: provider.to_owned() }).await.expect("it is removed");
        let mut turns = 0;
        while clients.turn(&id, &mut events, "#plain").await.outcome() != v1::TurnOutcome::Failed {
            turns += 1;
            assert!(turns < 5 && provider != "scripted", "{provider}: the removed key is still used");
        }
        let hint = events
            .seen
            .iter()
            .rev()
            .find_map(|event| match &event.kind {
                Some(v1::event::Kind::AgentError(error)) => Some(error.hint.clone()),
                _ => None,
            })
            .expect("the agent says what is wrong");
        assert!(hint.contains(&format!("openagent keys set {provider}")), "{provider}: {hint}");
        clients.remove(&id).await;
    }
    assert!(world.model.wait_for_request(PATIENCE, |request| request.key() == Some(CANARY)).await.is_some());
    world.end().await;
}

#[tokio::test]
async fn providers_tell_what_can_be_used_now_and_what_a_new_session_gets() {
    let mut world = World::started(Driver::Local).await;
    let mut clients = world.clients().await;
    let all = providers(&mut clients, false).await;
    let ids: Vec<_> = all.providers.iter().map(|provider| provider.id.as_str()).collect();
    assert!(ids.is_sorted() && ids.len() == ids.iter().collect::<BTreeSet<_>>().len(), "by id, each once: {ids:?}");
    for shipped in ["anthropic", "openai", "demo", "scripted", "scripted-direct"] {
        assert!(ids.contains(&shipped), "{shipped}");
    }
    let find = |list: &v1::ListProvidersResponse, id: &str| {
        list.providers.iter().find(|provider| provider.id == id).cloned().expect("it is listed")
    };
    let scripted = find(&all, "scripted");
    assert_eq!((scripted.kind.as_str(), scripted.route.as_str(), scripted.base_url), ("openai-compatible", "host", world.model.base_url()));
    assert_eq!((scripted.needs_key, scripted.has_key, scripted.own), (true, false, true));
    assert_eq!(find(&all, "scripted-direct").route, "direct");
    let model = &scripted.models[0];
    assert_eq!((model.id.as_str(), model.context_tokens, model.output_tokens, model.reasoning), ("scripted-large", 200_000, 8_000, true));
    assert_eq!((model.input_price_micros, model.output_price_micros), (1_000_000, 2_000_000));
    let demo = find(&all, "demo");
    assert_eq!((demo.needs_key, demo.own, demo.models.len()), (false, false, 1));
    assert!(!find(&all, "anthropic").own && all.providers.iter().all(|provider| !provider.name.is_empty()));

    assert_eq!(all.default_model, "demo/tour", "without any key there is the demo");
    let usable = providers(&mut clients, true).await;
    assert!(usable.providers.iter().all(|provider| provider.has_key || !provider.needs_key), "{usable:?}");
    assert!(!usable.providers.iter().any(|provider| provider.id == "scripted"));
    set(&mut clients, "scripted", CANARY).await;
    let usable = providers(&mut clients, true).await;
    assert!(find(&usable, "scripted").has_key);
    assert_eq!(usable.default_model, "scripted/scripted-large");

    world.stop().await;
    world.write_config("[session]\nmodel = \"scripted/scripted-small\"\n");
    world.start().await;
    let mut clients = world.clients().await;
    assert_eq!(providers(&mut clients, false).await.default_model, "scripted/scripted-small");
    world.end().await;
}
