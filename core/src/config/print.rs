//! The configuration as a file.

use std::fmt::Write;

use super::value::{print_duration, print_size};
use super::{Config, ProviderConfig};
use crate::provider::{Model, Route};

pub(super) fn print(config: &Config) -> String {
    let mut page = Page(String::new());
    page.text("driver", config.driver.name());
    page.heading("[docker]");
    page.optional("endpoint", config.docker.endpoint.as_deref());
    page.text("image", &config.docker.image);
    page.optional("runtime", config.docker.runtime.as_deref());
    page.text("link", config.docker.link.name());
    page.heading("[local]");
    page.optional("opencode", config.local.opencode.as_deref());
    page.optional("sidecar", config.local.sidecar.as_deref());
    page.heading("[session]");
    page.optional("model", config.session.model.as_deref());
    page.text("agent", &config.session.agent);
    page.text("permission_mode", config.session.permission_mode.name());
    page.text("idle_timeout", &print_duration(config.session.idle_timeout_millis));
    page.text("idle_action", config.session.idle_action.name());
    page.text("memory", &print_size(config.session.limits.memory_bytes));
    page.raw("cpus", &decimal(u64::from(config.session.limits.cpu_millis), 3));
    page.raw("pids", &config.session.limits.pids.to_string());
    page.heading("[daemon]");
    page.text("log", &config.daemon.log);
    page.text("stop_grace", &print_duration(config.daemon.stop_grace_millis));
    page.text("on_shutdown", config.daemon.on_shutdown.name());
    page.raw("max_running", &config.daemon.max_running.to_string());
    page.text("memory_budget", &print_size(config.daemon.memory_budget_bytes));
    page.heading("[pool]");
    page.raw("size", &config.pool.size.to_string());
    page.text("max_age", &print_duration(config.pool.max_age_millis));
    page.heading("[history]");
    page.raw("compact_after", &config.history.compact_after.to_string());
    page.text("max", &print_size(config.history.max_bytes));
    page.heading("[store]");
    page.text("reserve", &print_size(config.store.reserve_bytes));
    page.heading("[journal]");
    page.text("max", &print_size(config.journal.max_bytes));
    for provider in &config.providers {
        page.provider(provider);
    }
    page.0
}

struct Page(String);

impl Page {
    fn heading(&mut self, heading: &str) {
        let _ = writeln!(self.0, "\n{heading}");
    }

    fn raw(&mut self, key: &str, value: &str) {
        let _ = writeln!(self.0, "{key} = {value}");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.raw(key, &toml::Value::from(value).to_string());
    }

    fn optional(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn provider(&mut self, provider: &ProviderConfig) {
        self.heading(&format!("[provider.{}]", provider.id));
        self.optional("name", provider.name.as_deref());
        self.optional("kind", provider.kind.map(|kind| kind.name()));
        self.optional("base_url", provider.base_url.as_deref());
        if provider.insecure {
            self.raw("insecure", "true");
        }
        self.optional("route", provider.route.map(route_name));
        if let Some(needs_key) = provider.needs_key {
            self.raw("needs_key", &needs_key.to_string());
        }
        for model in &provider.models {
            self.model(&provider.id, model);
        }
    }

    fn model(&mut self, provider: &str, model: &Model) {
        self.heading(&format!("[[provider.{provider}.models]]"));
        self.text("id", &model.id);
        self.text("name", &model.name);
        self.raw("context", &model.context.to_string());
        self.raw("output", &model.output.to_string());
        self.raw("reasoning", &model.reasoning.to_string());
        let price = &model.price;
        for (key, micros) in [
            ("price_input", price.input),
            ("price_output", price.output),
            ("price_cache_read", price.cache_read),
            ("price_cache_write", price.cache_write),
        ] {
            self.raw(key, &decimal(micros, 6));
        }
    }
}

pub(super) const fn route_name(route: Route) -> &'static str {
    match route {
        Route::Host => "host",
        Route::Direct => "direct",
    }
}

/// A number of fractions (`places` decimal ones to a whole) as a decimal number.
fn decimal(fractions: u64, places: u32) -> String {
    let whole = 10u64.pow(places);
    let rest = format!("{:0width$}", fractions % whole, width = places as usize);
    let rest = rest.trim_end_matches('0');
    format!("{}.{}", fractions / whole, if rest.is_empty() { "0" } else { rest })
}
