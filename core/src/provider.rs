//! Model providers: who they are, how they are spoken to, and which calls an agent may make of them.

use serde::{Deserialize, Serialize};

/// Id of the built-in provider that needs no key and no network.
pub const DEMO: &str = "demo";

/// The wire format that a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderKind {
    /// OpenAI's chat completions, as many others offer them.
    OpenaiCompatible,
    /// OpenAI's responses.
    Openai,
    /// Anthropic's messages.
    Anthropic,
    /// The scripted tour that the sidecar answers itself.
    Demo,
}

impl ProviderKind {
    /// The name used in configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenaiCompatible => "openai-compatible",
            Self::Openai => "openai",
            Self::Anthropic => "anthropic",
            Self::Demo => "demo",
        }
    }

    /// Paths, relative to the provider's base URL, that an agent may `POST` to. Anything else a key could do (files, billing,
    /// administration) is out of reach.
    #[must_use]
    pub const fn allowed_paths(self) -> &'static [&'static str] {
        match self {
            Self::OpenaiCompatible | Self::Demo => &["chat/completions"],
            Self::Openai => &["responses", "chat/completions"],
            Self::Anthropic => &["messages", "messages/count_tokens"],
        }
    }

    /// The request header that carries the key, and what stands before it.
    #[must_use]
    pub const fn key_header(self) -> (&'static str, &'static str) {
        match self {
            Self::OpenaiCompatible | Self::Openai | Self::Demo => ("authorization", "Bearer "),
            Self::Anthropic => ("x-api-key", ""),
        }
    }
}

/// The way of a model call to its provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Through the daemon, which adds the key; the key never enters the container.
    #[default]
    Host,
    /// From the sidecar, which holds the key in its memory.
    Direct,
}

/// A provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// Short name: lower-case letters, digits and `-`.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Wire format.
    pub kind: ProviderKind,
    /// Where it is, up to and including the version: the allowed paths are appended to it. Empty for the demo.
    pub base_url: String,
    /// How calls reach it.
    #[serde(default)]
    pub route: Route,
    /// It wants a key.
    pub needs_key: bool,
    /// Its models.
    pub models: Vec<Model>,
}

/// A model of a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The provider's name for it.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Tokens that it can take into account.
    pub context: u64,
    /// Tokens that it can answer.
    pub output: u64,
    /// It can call tools, which every coding agent needs.
    pub tools: bool,
    /// It can reason.
    pub reasoning: bool,
    /// Prices in micro-units of currency for a million tokens.
    #[serde(default)]
    pub price: Price,
}

/// Prices in micro-units of currency for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Price {
    /// Of tokens sent.
    pub input: u64,
    /// Of tokens answered, reasoning included.
    pub output: u64,
    /// Of tokens read from the cache.
    pub cache_read: u64,
    /// Of tokens written to the cache.
    pub cache_write: u64,
}

/// Whether `id` can be a provider's id: 1 to 64 lower-case letters, digits and inner `-`. It becomes a path segment and a table key.
#[must_use]
pub fn is_provider_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !id.starts_with('-')
        && !id.ends_with('-')
}

/// Takes `provider/model` apart; the model may itself contain slashes.
#[must_use]
pub fn split_model(model: &str) -> Option<(&str, &str)> {
    let (provider, model) = model.split_once('/')?;
    (is_provider_id(provider) && !model.is_empty() && model.len() <= 200).then_some((provider, model))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_are_split_at_the_first_slash() {
        assert_eq!(split_model("openrouter/meta/llama"), Some(("openrouter", "meta/llama")));
        for bad in ["", "x", "/y", "x/", "UP/y", "a b/c"] {
            assert_eq!(split_model(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_provider_id_is_a_safe_path_segment() {
        for bad in ["", ".", "..", "a/b", "A", "-a", "a-", "a%2f"] {
            assert!(!is_provider_id(bad), "{bad:?}");
        }
        assert!(is_provider_id("ollama-2"));
    }
}
