//! Model providers and their models: the shipped snapshot, the user's own, and the demo.
//!
//! `data/catalogue.json` is made from the list of models.dev (MIT licence) that OpenCode 1.18.33 embeds: the providers that speak one of the wire
//! formats known here, their models that call tools, the one to begin with first. The user's `[provider.NAME]` adds a provider or changes
//! one of the snapshot; what it leaves out stays as shipped. A catalogue does not change once it is made.

use std::collections::{BTreeMap, BTreeSet};

use openagent_core::config::{ConfigError, ProviderConfig, nearest};
use openagent_core::provider::{DEMO, Model, Price, Provider, ProviderKind, Route, split_model};
use openagent_core::session::Fault;
use serde::Deserialize;

const SNAPSHOT: &str = include_str!("../data/catalogue.json");

/// Name of the demo's only model.
const DEMO_MODEL: &str = "tour";

/// Providers in whose order a first model is chosen, when several could be used; then by id, and the demo last.
const PREFERRED: [&str; 6] = ["anthropic", "openai", "openrouter", "google", "deepseek", "mistral"];

#[derive(Deserialize)]
struct Snapshot {
    providers: Vec<Provider>,
}

/// All providers.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// By id.
    providers: Vec<Provider>,
    /// Ids of those that the user's configuration made or changed.
    own: BTreeSet<String>,
}

impl Catalogue {
    /// The shipped providers with the user's own.
    ///
    /// # Errors
    /// Every provider of the user's that lacks what the catalogue cannot supply.
    pub fn new(own: &[ProviderConfig]) -> Result<Self, Vec<ConfigError>> {
        let snapshot: Snapshot = serde_json::from_str(SNAPSHOT).expect("the shipped catalogue is read by a test");
        let shipped = snapshot.providers.into_iter().chain([demo()]);
        let mut providers: BTreeMap<String, Provider> = shipped.map(|provider| (provider.id.clone(), provider)).collect();
        let mut mistakes = vec![];
        for config in own {
            match merge(config, providers.get(&config.id)) {
                Ok(provider) => {
                    providers.insert(config.id.clone(), provider);
                }
                Err(missing) => mistakes.extend(missing.into_iter().map(|what| ConfigError {
                    line: Some(config.line),
                    message: format!(
                        "provider.{}: the key {what} is missing, and the catalogue has no such provider to take it from",
                        config.id
                    ),
                })),
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self { providers: providers.into_values().collect(), own: own.iter().map(|config| config.id.clone()).collect() })
    }

    /// All providers, by id.
    #[must_use]
    pub fn providers(&self) -> &[Provider] {
        &self.providers
    }

    /// A provider.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Provider> {
        self.providers.iter().find(|provider| provider.id == id)
    }

    /// Whether the user's configuration made or changed this provider.
    #[must_use]
    pub fn is_own(&self, id: &str) -> bool {
        self.own.contains(id)
    }

    /// The provider named `id`, or why there is none.
    ///
    /// # Errors
    /// A fault that names what was probably meant.
    pub fn require(&self, id: &str) -> Result<&Provider, Fault> {
        self.get(id).ok_or_else(|| {
            let meant = nearest(id, self.providers.iter().map(|provider| provider.id.as_str()));
            let hint = meant.map_or_else(
                || format!("list providers with: openagent providers; or add [provider.{}] to your config.toml", shown(id)),
                |meant| format!("did you mean {meant:?}? list providers with: openagent providers"),
            );
            Fault::new("PROVIDER_UNKNOWN", format!("there is no provider {:?}", shown(id)), hint)
        })
    }

    /// The provider and the model that `provider/model` names, or why there are none.
    ///
    /// # Errors
    /// A fault that names what was probably meant.
    pub fn resolve_model(&self, name: &str) -> Result<(&Provider, &Model), Fault> {
        let Some((provider, model)) = split_model(name) else {
            let suffix = format!("/{name}");
            let whole = self
                .providers
                .iter()
                .flat_map(|p| p.models.iter().map(move |m| (p, m)))
                .find(|(_, m)| m.id == name || m.id.ends_with(&suffix));
            let hint = whole.map_or_else(
                || "name it as provider/model; list models with: openagent models".to_owned(),
                |(provider, model)| {
                    format!("did you mean {:?}? list models with: openagent models", format!("{}/{}", provider.id, model.id))
                },
            );
            return Err(Fault::new("MODEL_INVALID", format!("{:?} is not a model", shown(name)), hint));
        };
        let provider = self.require(provider)?;
        let found = provider.models.iter().find(|known| known.id == model).ok_or_else(|| {
            let meant = nearest(model, provider.models.iter().map(|known| known.id.as_str()));
            let hint = meant.map_or_else(
                || format!("list models with: openagent models {0}; or add [[provider.{0}.models]] to your config.toml", provider.id),
                |meant| {
                    format!("did you mean {:?}? list models with: openagent models {}", format!("{}/{meant}", provider.id), provider.id)
                },
            );
            Fault::new("MODEL_UNKNOWN", format!("the provider {} has no model {:?}", provider.id, shown(model)), hint)
        })?;
        Ok((provider, found))
    }

    /// `provider/model` that a new session gets: the configured one; else the first model of a provider of the user's own that can be used now,
    /// then of a preferred one, then of any; else the demo's.
    #[must_use]
    pub fn default_model(&self, has_key: impl Fn(&str) -> bool, configured: Option<&str>) -> Option<String> {
        if let Some(configured) = configured {
            return Some(configured.to_owned());
        }
        // A provider that needs no key counts if the user named it: a shipped one on this machine may not run here.
        let is_usable = |provider: &&Provider| has_key(&provider.id) || !provider.needs_key && self.is_own(&provider.id);
        let rank = |provider: &&Provider| {
            let preferred = PREFERRED.iter().position(|id| *id == provider.id).unwrap_or(PREFERRED.len());
            (!self.is_own(&provider.id), preferred)
        };
        let usable = self.providers.iter().filter(|provider| !provider.models.is_empty()).filter(is_usable);
        let best = usable.min_by_key(rank).or_else(|| self.get(DEMO))?;
        Some(format!("{}/{}", best.id, best.models.first()?.id))
    }
}

fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

fn merge(config: &ProviderConfig, base: Option<&Provider>) -> Result<Provider, Vec<&'static str>> {
    let kind = config.kind.or_else(|| base.map(|base| base.kind));
    let base_url = config.base_url.clone().or_else(|| base.map(|base| base.base_url.clone()));
    let models = if config.models.is_empty() { base.map(|base| base.models.clone()).unwrap_or_default() } else { config.models.clone() };
    match (kind, base_url) {
        (Some(kind), Some(base_url)) if !models.is_empty() => Ok(Provider {
            id: config.id.clone(),
            name: config.name.clone().or_else(|| base.map(|base| base.name.clone())).unwrap_or_else(|| config.id.clone()),
            kind,
            base_url,
            route: config.route.or_else(|| base.map(|base| base.route)).unwrap_or_default(),
            needs_key: config.needs_key.or_else(|| base.map(|base| base.needs_key)).unwrap_or(true),
            models,
        }),
        (kind, base_url) => {
            let missing = [("kind", kind.is_none()), ("base_url", base_url.is_none()), ("models", models.is_empty())];
            Err(missing.into_iter().filter(|(_, is_missing)| *is_missing).map(|(key, _)| key).collect())
        }
    }
}

fn demo() -> Provider {
    let tour = Model {
        id: DEMO_MODEL.to_owned(),
        name: "Guided tour".to_owned(),
        context: 128_000,
        output: 8_192,
        tools: true,
        reasoning: false,
        price: Price::default(),
    };
    Provider {
        id: DEMO.to_owned(),
        name: "Demo (no key, no network)".to_owned(),
        kind: ProviderKind::Demo,
        base_url: String::new(),
        route: Route::Direct,
        needs_key: false,
        models: vec![tour],
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use openagent_core::config::Config;
    use openagent_core::provider::is_provider_id;

    use super::*;

    fn with(text: &str) -> Result<Catalogue, Vec<ConfigError>> {
        Catalogue::new(&Config::parse(text).unwrap().providers)
    }

    #[test]
    fn the_shipped_snapshot_is_whole() {
        let catalogue = with("").unwrap();
        assert!(catalogue.providers().len() >= 40);
        for provider in catalogue.providers() {
            assert!(is_provider_id(&provider.id) && !provider.models.is_empty(), "{}", provider.id);
            let is_local = provider.base_url.starts_with("http://127.0.0.1:") && !provider.needs_key;
            assert!(provider.id == DEMO || is_local || provider.base_url.starts_with("https://"), "{}", provider.base_url);
            assert!(!provider.base_url.ends_with('/') && !provider.base_url.contains('$'), "{}", provider.base_url);
            for model in &provider.models {
                let name = format!("{}/{}", provider.id, model.id);
                assert!(model.tools && model.context > 0, "{name}");
                assert_eq!(catalogue.resolve_model(&name).unwrap().1, model, "{name}");
            }
        }
    }

    #[test]
    fn unknown_names_are_answered_with_what_was_meant() {
        let catalogue = with("").unwrap();
        let fault = catalogue.require("antropic").unwrap_err();
        assert_eq!((fault.code.as_str(), fault.hint.contains("\"anthropic\"")), ("PROVIDER_UNKNOWN", true));
        let fault = catalogue.resolve_model("demo/tuor").unwrap_err();
        assert_eq!((fault.code.as_str(), fault.hint.contains("\"demo/tour\"")), ("MODEL_UNKNOWN", true), "{fault:?}");
        let fault = catalogue.resolve_model("tour").unwrap_err();
        assert_eq!((fault.code.as_str(), fault.hint.contains("\"demo/tour\"")), ("MODEL_INVALID", true), "{fault:?}");
        assert!(catalogue.resolve_model(&"x".repeat(10_000)).unwrap_err().message.len() < 200);
    }

    #[test]
    fn a_provider_of_the_users_adds_or_changes() {
        let own = "[provider.mine]\nkind = 'openai'\nbase_url = 'https://x.org/v1'\n[[provider.mine.models]]\nid = 'm'\n[provider.openai]\nroute = 'direct'";
        let catalogue = with(own).unwrap();
        assert!(catalogue.get("mine").unwrap().needs_key && catalogue.is_own("mine"));
        let openai = catalogue.get("openai").unwrap();
        assert_eq!((openai.route, openai.base_url.as_str(), openai.models.len() > 5), (Route::Direct, "https://api.openai.com/v1", true));
        let mistakes = with("[provider.mine]\nname = 'x'\n[provider.other]\nkind = 'openai'\n").unwrap_err();
        assert_eq!((mistakes.len(), mistakes[0].line, mistakes[4].line), (5, Some(1), Some(3)));
    }

    #[test]
    fn the_first_model_is_configured_own_preferred_or_the_demo() {
        let catalogue = with("").unwrap();
        assert_eq!(catalogue.default_model(|_| false, None).unwrap(), "demo/tour");
        assert_eq!(catalogue.default_model(|_| false, Some("a/b")).unwrap(), "a/b");
        assert!(catalogue.default_model(|id| id == "zai" || id == "openai", None).unwrap().starts_with("openai/"));
        let own = with(
            "[provider.mine]\nkind = 'openai'\nbase_url = 'http://localhost:1/v1'\nneeds_key = false\n[[provider.mine.models]]\nid = 'm'\n",
        )
        .unwrap();
        assert_eq!(own.default_model(|id| id == "openai", None).unwrap(), "mine/m");
    }
}
