//! Provider keys, providers and models.

use super::args::{Keys, OutputArgs};
use super::{Done, OK, connect, secret};
use crate::client::{Client, ClientError, Kind, convert};
use crate::output::quantity::{count, now, span};
use crate::output::table::Table;
use crate::output::text::single_line;
use crate::output::{self, Format, json, say};

pub(super) async fn keys(keys: Keys, outer: OutputArgs) -> Done {
    match keys {
        Keys::Set { provider, output } => {
            // Whether the provider exists is known before anybody types a key into the void.
            let client = connect().await?;
            let known = client.providers(false).await?;
            if !known.providers.iter().any(|known| known.id == provider) {
                let ids: Vec<String> = known.providers.iter().filter(|known| known.needs_key).map(|known| single_line(&known.id)).collect();
                let message = format!("there is no provider {provider:?}");
                return Err(ClientError::new(Kind::NotFound, message, format!("known are: {}", ids.join(" "))).into());
            }
            let secret = secret::read(&provider).await?;
            let key = client.set_key(&provider, &secret).await?;
            match output.format(outer) {
                Format::Json => output::as_json(&json::Key::from(key))?,
                Format::Table => say(&format!("the key of {provider} is stored (version {})", key.version)),
            }
        }
        Keys::Ls(listing) => {
            let keys = connect().await?.keys().await?;
            match listing.output.format(outer) {
                Format::Json => output::as_json(&keys.into_iter().map(json::Key::from).collect::<Vec<_>>())?,
                Format::Table if keys.is_empty() => say("No keys are stored. Store one: openagent keys set PROVIDER"),
                Format::Table => {
                    let ago = |at| convert::timestamp(at).map_or("never".into(), |at| format!("{} ago", span(now().millis_since(at))));
                    let mut table = Table::new(&["PROVIDER", ">VERSION", "CHANGED", "USED"]);
                    for key in keys {
                        table.row([single_line(&key.provider), key.version.to_string(), ago(key.updated_at), ago(key.used_at)]);
                    }
                    output::print(&table.render())?;
                }
            }
        }
        Keys::Rm { provider } => connect().await?.remove_key(&provider).await?,
    }
    Ok(OK)
}

pub(super) async fn providers(client: &Client, format: Format) -> Done {
    let listed = client.providers(false).await?.providers;
    match format {
        Format::Json => output::as_json(&listed.into_iter().map(json::Provider::from).collect::<Vec<_>>())?,
        Format::Table => {
            let mut table = Table::new(&["ID", "NAME", "KEY", "ROUTE", ">MODELS", "URL"]);
            for provider in listed {
                let key = match (provider.needs_key, provider.has_key) {
                    (_, true) => "stored",
                    (true, false) => "missing",
                    (false, false) => "not needed",
                };
                table.row([
                    single_line(&provider.id),
                    single_line(&provider.name),
                    key.into(),
                    single_line(&provider.route),
                    provider.models.len().to_string(),
                    single_line(&provider.base_url),
                ]);
            }
            output::print(&table.render())?;
        }
    }
    Ok(OK)
}

pub(super) async fn models(client: &Client, provider: Option<&str>, format: Format) -> Done {
    let mut listed = client.providers(false).await?;
    if let Some(provider) = provider {
        listed.providers.retain(|known| known.id == provider);
        if listed.providers.is_empty() {
            let hint = "see which there are: openagent providers";
            return Err(ClientError::new(Kind::NotFound, format!("there is no provider {provider:?}"), hint).into());
        }
    }
    let models = json::models(listed);
    match format {
        Format::Json => output::as_json(&models)?,
        Format::Table => {
            // Prices are micro-units for a million tokens: a millionth of that is what the column says in whole units.
            let price = |micros: u64| format!("{}.{:02}", micros / 1_000_000, micros % 1_000_000 / 10_000);
            let mut table = Table::new(&["MODEL", "NAME", ">CONTEXT", ">IN $/M", ">OUT $/M", "USE"]);
            for model in models {
                let usable = match (model.default, model.usable) {
                    (true, _) => "default",
                    (false, true) => "ready",
                    (false, false) => "key missing",
                };
                table.row([
                    single_line(&model.id),
                    single_line(&model.name),
                    count(model.context_tokens),
                    price(model.input_price_micros),
                    price(model.output_price_micros),
                    usable.into(),
                ]);
            }
            output::print(&table.render())?;
        }
    }
    Ok(OK)
}
