//! OpenCode's configuration, made anew at every start from what the daemon says. Nothing in it is secret: the providers are the sidecar's proxy,
//! and the key is a dummy that only this proxy accepts.
//!
//! Order matters: of the rules that match, OpenCode takes the last one, so the wide ones stand first. The rules are in the configuration and not in
//! the session, whose `ask` rules a subagent does not inherit.

use std::path::Path;

use openagent_core::permission::PermissionMode;
use openagent_core::provider::{ProviderKind, split_model};
use openagent_proto::sidecar::{AgentModel, AgentProvider, StartAgent};
use serde_json::{Map, Value, json};
use thiserror::Error;

/// How long OpenCode waits for the first byte of a model's answer and between two pieces, in milliseconds: longer than the relay waits for a daemon.
const MODEL_TIMEOUT_MILLIS: u64 = 300_000;

/// Why there is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The model has no provider.
    #[error("the model {0:?} is not of the form provider/model")]
    Model(String),
    /// The provider of the model is not among the given ones.
    #[error("the provider of the model {0:?} is not among the providers of this session")]
    NoProvider(String),
    /// The provider does not have the model.
    #[error("the provider {provider} has no model {model:?}")]
    NoModel {
        /// Its id.
        provider: String,
        /// The model.
        model: String,
    },
    /// The kind of the provider is not known.
    #[error("the provider {provider} is of the unknown kind {kind:?}")]
    Kind {
        /// Its id.
        provider: String,
        /// The kind.
        kind: String,
    },
    /// The permission mode is not known.
    #[error("{0}")]
    Mode(String),
}

/// Where the sidecar's model proxy is.
#[derive(Clone)]
pub struct Endpoint {
    /// Address without a final slash; `/p/<provider>` is appended.
    pub base_url: String,
    /// The key that it accepts.
    pub key: String,
}

/// What OpenCode gets for its configuration.
#[derive(Clone)]
pub struct Config {
    /// The whole configuration.
    pub content: Value,
    /// Its permission rules, which are given once more since they are merged last.
    pub permission: Value,
}

impl Config {
    /// Whether an agent with the configuration `other` does what this one asks. The default model is not compared: every prompt names its own.
    #[must_use]
    pub fn serves_as(&self, other: &Self) -> bool {
        let comparable = |config: &Self| {
            let mut content = config.content.clone();
            content["model"] = Value::Null;
            // As text, since the order of the rules counts.
            content.to_string()
        };
        comparable(self) == comparable(other)
    }
}

/// The configuration for a session that works in `workspace`.
///
/// # Errors
/// [`ConfigError`].
pub fn config(start: &StartAgent, workspace: &Path, endpoint: &Endpoint) -> Result<Config, ConfigError> {
    let (provider_id, model_id) = split_model(&start.model).ok_or_else(|| ConfigError::Model(start.model.clone()))?;
    let provider =
        start.providers.iter().find(|provider| provider.id == provider_id).ok_or_else(|| ConfigError::NoProvider(start.model.clone()))?;
    let model = provider
        .models
        .iter()
        .find(|model| model.id == model_id)
        .ok_or_else(|| ConfigError::NoModel { provider: provider_id.to_owned(), model: model_id.to_owned() })?;
    let mode = start.permission_mode.parse::<PermissionMode>().map_err(ConfigError::Mode)?;
    let permission = permission(mode, start);
    let providers = start.providers.iter().map(|provider| Ok((provider.id.clone(), provider_entry(provider, endpoint)?)));
    let content = json!({
        "$schema": "https://opencode.ai/config.json",
        "model": start.model,
        "small_model": format!("{provider_id}/{}", cheapest(provider, model).id),
        "enabled_providers": start.providers.iter().map(|provider| provider.id.as_str()).collect::<Vec<_>>(),
        "share": "disabled",
        "autoupdate": false,
        "lsp": false,
        "formatter": false,
        // The project's configuration is switched off, and its instructions with it.
        "instructions": [workspace.join("AGENTS.md").to_string_lossy()],
        "permission": permission,
        "provider": providers.collect::<Result<Map<_, _>, ConfigError>>()?,
    });
    Ok(Config { content, permission })
}

/// The provider's cheapest model, for titles; `model` itself where none is cheaper (all of a local provider's cost nothing).
fn cheapest<'a>(provider: &'a AgentProvider, model: &'a AgentModel) -> &'a AgentModel {
    let price = |model: &AgentModel| model.price.input.saturating_add(model.price.output);
    let cheaper = provider.models.iter().filter(|other| price(other) > 0 && price(other) < price(model));
    cheaper.min_by_key(|other| price(other)).unwrap_or(model)
}

fn provider_entry(provider: &AgentProvider, endpoint: &Endpoint) -> Result<Value, ConfigError> {
    let kind = kind(provider).ok_or_else(|| ConfigError::Kind { provider: provider.id.clone(), kind: provider.kind.clone() })?;
    let package = match kind {
        ProviderKind::OpenaiCompatible | ProviderKind::Demo => "@ai-sdk/openai-compatible",
        ProviderKind::Openai => "@ai-sdk/openai",
        ProviderKind::Anthropic => "@ai-sdk/anthropic",
    };
    let models = provider.models.iter().map(|model| (model.id.clone(), model_entry(model)));
    Ok(json!({
        "npm": package,
        "name": provider.name,
        "options": {
            "baseURL": format!("{}/p/{}", endpoint.base_url, provider.id),
            "apiKey": endpoint.key,
            "headerTimeout": MODEL_TIMEOUT_MILLIS,
            "chunkTimeout": MODEL_TIMEOUT_MILLIS,
        },
        // OpenCode would add what it knows of a provider of this name.
        "whitelist": provider.models.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(),
        "models": models.collect::<Map<_, _>>(),
    }))
}

/// The wire format of a provider.
#[must_use]
pub fn kind(provider: &AgentProvider) -> Option<ProviderKind> {
    [ProviderKind::OpenaiCompatible, ProviderKind::Openai, ProviderKind::Anthropic, ProviderKind::Demo]
        .into_iter()
        .find(|kind| kind.name() == provider.kind)
}

#[allow(clippy::cast_precision_loss, reason = "prices are far below 2^53 micro-units")]
fn model_entry(model: &AgentModel) -> Value {
    let units = |micros: u64| micros as f64 / 1e6;
    json!({
        "name": model.name,
        "tool_call": true,
        "reasoning": model.reasoning,
        "limit": { "context": model.context, "output": model.output },
        "cost": {
            "input": units(model.price.input),
            "output": units(model.price.output),
            "cache_read": units(model.price.cache_read),
            "cache_write": units(model.price.cache_write),
        },
    })
}

/// What is allowed, asked and denied.
fn permission(mode: PermissionMode, start: &StartAgent) -> Value {
    let (other, edit) = match mode {
        PermissionMode::Ask => ("ask", "ask"),
        PermissionMode::AutoEdit => ("ask", "allow"),
        PermissionMode::ReadOnly => ("deny", "deny"),
    };
    let mut rules = Map::new();
    rules.insert("*".into(), other.into());
    for harmless in ["glob", "grep", "list", "todowrite", "todoread", "question", "task", "skill", "lsp"] {
        rules.insert(harmless.into(), "allow".into());
    }
    // Files of this name hold keys.
    rules.insert("read".into(), json!({ "*": "allow", "*.env": other, "*.env.*": other, "*.env.example": "allow" }));
    for act in ["bash", "webfetch", "websearch", "codesearch", "external_directory", "doom_loop"] {
        rules.insert(act.into(), other.into());
    }
    rules.insert("edit".into(), edit.into());
    if mode != PermissionMode::ReadOnly {
        start.allow.iter().for_each(|rule| allow(&mut rules, &rule.permission, &rule.pattern));
    }
    Value::Object(rules)
}

fn allow(rules: &mut Map<String, Value>, permission: &str, pattern: &str) {
    let rule = rules.entry(permission).or_insert_with(|| json!({}));
    if let Value::String(all) = rule {
        *rule = json!({ "*": all });
    }
    if let Value::Object(patterns) = rule {
        // The last match wins, and a key keeps its place when its value is replaced.
        patterns.shift_remove(pattern);
        patterns.insert(pattern.to_owned(), "allow".into());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use openagent_proto::sidecar::{AgentPrice, AllowRule};

    fn start(mode: &str) -> StartAgent {
        let model = |id: &str, price: u64| AgentModel {
            id: id.into(),
            name: id.into(),
            context: 32_000,
            output: 4096,
            reasoning: false,
            price: AgentPrice { input: price, output: price, ..AgentPrice::default() },
        };
        StartAgent {
            title: None,
            model: "acme/large".into(),
            agent: "build".into(),
            permission_mode: mode.into(),
            allow: vec![
                AllowRule { permission: "bash".into(), pattern: "git status *".into() },
                AllowRule { permission: "mcp_x".into(), pattern: "*".into() },
            ],
            providers: vec![AgentProvider {
                id: "acme".into(),
                name: "Acme".into(),
                kind: "anthropic".into(),
                route: "host".into(),
                base_url: "https://acme.example/v1".into(),
                needs_key: true,
                models: vec![model("large", 3_000_000), model("small", 250_000), model("free", 0)],
            }],
            warm: false,
        }
    }

    fn made(mode: &str) -> Value {
        let endpoint = Endpoint { base_url: "http://127.0.0.1:1".into(), key: "dummy".into() };
        config(&start(mode), Path::new("/workspace"), &endpoint).unwrap().content
    }

    #[test]
    fn providers_are_the_proxy_and_nothing_else_is_enabled() {
        let config = made("ask");
        assert_eq!(config["enabled_providers"], json!(["acme"]));
        assert_eq!((&config["model"], &config["small_model"]), (&json!("acme/large"), &json!("acme/small")));
        let provider = &config["provider"]["acme"];
        assert_eq!(provider["options"]["baseURL"], "http://127.0.0.1:1/p/acme");
        assert_eq!(provider["npm"], "@ai-sdk/anthropic");
        assert_eq!(provider["models"]["small"]["cost"]["input"], 0.25);
        assert!(!config.to_string().contains("acme.example"), "the agent does not learn where the provider is");
    }

    #[test]
    fn wide_rules_stand_before_narrow_ones() {
        let permission = made("ask")["permission"].clone();
        assert_eq!(permission.as_object().unwrap().keys().next().unwrap(), "*");
        let bash: Vec<_> = permission["bash"].as_object().unwrap().iter().collect();
        assert_eq!(bash, [(&"*".to_owned(), &json!("ask")), (&"git status *".to_owned(), &json!("allow"))]);
        assert_eq!((&permission["edit"], &permission["mcp_x"]["*"]), (&json!("ask"), &json!("allow")));
        assert_eq!(made("auto-edit")["permission"]["edit"], "allow");
    }

    #[test]
    fn read_only_denies_and_forgets_remembered_answers() {
        let permission = made("read-only")["permission"].clone();
        for act in ["*", "bash", "edit", "webfetch", "external_directory"] {
            assert_eq!(permission[act], "deny", "{act}");
        }
        assert_eq!(permission["read"]["*"], "allow");
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let endpoint = Endpoint { base_url: String::new(), key: String::new() };
        let refused = |change: &dyn Fn(&mut StartAgent)| {
            let mut start = start("ask");
            change(&mut start);
            config(&start, Path::new("/w"), &endpoint).err().unwrap()
        };
        assert!(matches!(refused(&|start| start.model = "acme".into()), ConfigError::Model(_)));
        assert!(matches!(refused(&|start| start.model = "other/x".into()), ConfigError::NoProvider(_)));
        assert!(matches!(refused(&|start| start.model = "acme/x".into()), ConfigError::NoModel { .. }));
        assert!(matches!(refused(&|start| start.providers[0].kind = "x".into()), ConfigError::Kind { .. }));
        assert!(matches!(refused(&|start| start.permission_mode = "x".into()), ConfigError::Mode(_)));
    }
}
