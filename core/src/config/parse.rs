//! Reading a configuration file: all mistakes in one go.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::print::route_name;
use super::{
    CONFIG_MAX_BYTES, Config, ConfigError, DriverName, HistoryConfig, JournalConfig, LinkMode, OnShutdown, PoolConfig, ProviderConfig,
    nearest, value,
};
use crate::permission::PermissionMode;
use crate::provider::{DEMO, Model, Price, ProviderKind, Route, is_provider_id, split_model};
use crate::session::{IdleAction, Limits};
use crate::usage::micros;

/// Most models of one provider, and most providers.
const MODELS_MAX: usize = 1_000;
const PROVIDERS_MAX: usize = 200;

pub(super) fn parse(text: &str) -> Result<Config, Vec<ConfigError>> {
    if text.len() > CONFIG_MAX_BYTES {
        return Err(vec![ConfigError { line: None, message: "the file is larger than 1 MiB".to_owned() }]);
    }
    let mut mistakes = Mistakes { text, found: vec![] };
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in syntax {
        mistakes.add(error.span(), error.message().to_owned());
    }
    let mut config = Config::default();
    let sections = ["driver", "docker", "local", "session", "daemon", "pool", "history", "store", "journal", "provider"];
    let mut root = Section::new(&mut mistakes, "", document.get_ref(), &sections);
    root.take("driver", text_of, |name| value::one_of(&name, DriverName::ALL.map(|driver| (driver.name(), driver))), &mut config.driver);
    root.section("docker", &["endpoint", "image", "runtime", "link"], |docker| {
        docker.take("endpoint", text_of, |text| value::endpoint(&text).map(|()| Some(text)), &mut config.docker.endpoint);
        docker.take("image", text_of, filled, &mut config.docker.image);
        docker.take("runtime", text_of, |text| filled(text).map(Some), &mut config.docker.runtime);
        docker.take("link", text_of, |name| value::one_of(&name, LinkMode::ALL.map(|link| (link.name(), link))), &mut config.docker.link);
    });
    root.section("local", &["opencode", "sidecar"], |local| {
        local.take("opencode", text_of, |text| filled(text).map(Some), &mut config.local.opencode);
        local.take("sidecar", text_of, |text| filled(text).map(Some), &mut config.local.sidecar);
    });
    root.section("session", &["model", "agent", "permission_mode", "idle_timeout", "idle_action", "memory", "cpus", "pids"], |session| {
        let to = &mut config.session;
        session.take("model", text_of, |text| model_name(text).map(Some), &mut to.model);
        session.take("agent", text_of, filled, &mut to.agent);
        let mode = |name: String| value::one_of(&name, PermissionMode::ALL.map(|mode| (mode.name(), mode)));
        session.take("permission_mode", text_of, mode, &mut to.permission_mode);
        session.take("idle_timeout", text_of, |text| value::duration(&text), &mut to.idle_timeout_millis);
        let action = |name: String| value::one_of(&name, IdleAction::ALL.map(|action| (action.name(), action)));
        session.take("idle_action", text_of, action, &mut to.idle_action);
        session.take("memory", text_of, memory, &mut to.limits.memory_bytes);
        session.take("cpus", number_of, cpus, &mut to.limits.cpu_millis);
        session.take("pids", integer_of, pids, &mut to.limits.pids);
    });
    root.section("daemon", &["log", "stop_grace", "on_shutdown", "max_running", "memory_budget"], |daemon| {
        let to = &mut config.daemon;
        daemon.take("log", text_of, filled, &mut to.log);
        daemon.take("stop_grace", text_of, |text| value::duration(&text), &mut to.stop_grace_millis);
        let choice = |name: String| value::one_of(&name, OnShutdown::ALL.map(|choice| (choice.name(), choice)));
        daemon.take("on_shutdown", text_of, choice, &mut to.on_shutdown);
        daemon.take("max_running", integer_of, |number| up_to(number, 10_000), &mut to.max_running);
        daemon.take("memory_budget", text_of, |text| value::size(&text), &mut to.memory_budget_bytes);
    });
    root.section("pool", &["size", "max_age"], |pool| {
        pool.take("size", integer_of, |number| up_to(number, PoolConfig::SIZE_MAX), &mut config.pool.size);
        let age = |text: String| value::duration(&text).and_then(|millis| at_least(millis, 60_000, "1m"));
        pool.take("max_age", text_of, age, &mut config.pool.max_age_millis);
    });
    root.section("history", &["compact_after", "max"], |history| {
        let to = &mut config.history;
        let fewest = HistoryConfig::COMPACT_AFTER_MIN;
        history.take("compact_after", integer_of, |events| at_least(events, fewest, &fewest.to_string()), &mut to.compact_after);
        let size = |text: String| value::size(&text).and_then(|bytes| at_least(bytes, HistoryConfig::MAX_BYTES_MIN, "8MiB"));
        history.take("max", text_of, size, &mut to.max_bytes);
    });
    root.section("store", &["reserve"], |store| {
        store.take("reserve", text_of, |text| value::size(&text), &mut config.store.reserve_bytes);
    });
    root.section("journal", &["max"], |journal| {
        let size = |text: String| value::size(&text).and_then(|bytes| at_least(bytes, JournalConfig::MAX_BYTES_MIN, "8MiB"));
        journal.take("max", text_of, size, &mut config.journal.max_bytes);
    });
    root.entries("provider", |root, id, span, table| {
        if let Some(provider) = provider(root, id, span, table)
            && config.providers.len() < PROVIDERS_MAX
        {
            config.providers.push(provider);
        }
    });
    mistakes.into_result(config)
}

const PROVIDER_KEYS: [&str; 7] = ["kind", "base_url", "insecure", "name", "route", "needs_key", "models"];
const MODEL_KEYS: [&str; 9] =
    ["id", "name", "context", "output", "reasoning", "price_input", "price_output", "price_cache_read", "price_cache_write"];

fn provider(mistakes: &mut Mistakes<'_>, id: &str, span: Range<usize>, table: &DeTable<'_>) -> Option<ProviderConfig> {
    if !is_provider_id(id) {
        mistakes.add(Some(span), format!("provider.{id}: a provider's name is 1 to 64 lower-case letters, digits and inner \"-\""));
        return None;
    }
    if id == DEMO {
        mistakes.add(Some(span), "provider.demo: the demo is built in and has no settings".to_owned());
        return None;
    }
    let line = mistakes.line(span.start);
    let mut to = ProviderConfig {
        id: id.to_owned(),
        line,
        name: None,
        kind: None,
        base_url: None,
        insecure: false,
        route: None,
        needs_key: None,
        models: vec![],
    };
    let mut section = Section::new(mistakes, &format!("provider.{id}"), table, &PROVIDER_KEYS);
    let kinds = [ProviderKind::OpenaiCompatible, ProviderKind::Openai, ProviderKind::Anthropic];
    section.take("kind", text_of, |name| value::one_of(&name, kinds.map(|kind| (kind.name(), Some(kind)))), &mut to.kind);
    section.take("insecure", flag_of, Ok, &mut to.insecure);
    let insecure = to.insecure;
    section.take("base_url", text_of, |text| value::base_url(&text, insecure).map(Some), &mut to.base_url);
    section.take("name", text_of, |text| filled(text).map(Some), &mut to.name);
    let routes = [Route::Host, Route::Direct].map(|route| (route_name(route), Some(route)));
    section.take("route", text_of, |name| value::one_of(&name, routes), &mut to.route);
    section.take("needs_key", flag_of, |needs| Ok(Some(needs)), &mut to.needs_key);
    section.list("models", MODELS_MAX, |mistakes, at, span, table| {
        let model = model(mistakes, &format!("provider.{id}.models[{at}]"), span.clone(), table)?;
        if to.models.iter().any(|other| other.id == model.id) {
            mistakes.add(Some(span), format!("provider.{id}.models[{at}]: the model {:?} is there twice", model.id));
        }
        to.models.push(model);
        Some(())
    });
    Some(to)
}

fn model(mistakes: &mut Mistakes<'_>, path: &str, span: Range<usize>, table: &DeTable<'_>) -> Option<Model> {
    let mut model = Model {
        id: String::new(),
        name: String::new(),
        // What most present models can do at least; a wrong value only compacts too early or too late.
        context: 128_000,
        output: 8_192,
        tools: true,
        reasoning: false,
        price: Price::default(),
    };
    let mut section = Section::new(mistakes, path, table, &MODEL_KEYS);
    let is_named = section.has("id");
    section.take("id", text_of, model_id, &mut model.id);
    section.take("name", text_of, filled, &mut model.name);
    section.take("context", integer_of, tokens, &mut model.context);
    section.take("output", integer_of, tokens, &mut model.output);
    section.take("reasoning", flag_of, Ok, &mut model.reasoning);
    section.take("price_input", number_of, price, &mut model.price.input);
    section.take("price_output", number_of, price, &mut model.price.output);
    section.take("price_cache_read", number_of, price, &mut model.price.cache_read);
    section.take("price_cache_write", number_of, price, &mut model.price.cache_write);
    if !is_named {
        mistakes.add(Some(span), format!("{path}: the key id is missing"));
    }
    if model.name.is_empty() {
        model.name.clone_from(&model.id);
    }
    (!model.id.is_empty()).then_some(model)
}

/// The mistakes found so far.
struct Mistakes<'t> {
    text: &'t str,
    found: Vec<ConfigError>,
}

impl Mistakes<'_> {
    fn line(&self, at: usize) -> usize {
        self.text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
    }

    fn add(&mut self, span: Option<Range<usize>>, message: String) {
        let line = span.map(|span| self.line(span.start));
        self.found.push(ConfigError { line, message });
    }

    fn into_result(mut self, config: Config) -> Result<Config, Vec<ConfigError>> {
        if self.found.is_empty() {
            return Ok(config);
        }
        self.found.sort_by_key(|mistake| mistake.line);
        Err(self.found)
    }
}

/// One table of the file. Unknown keys are mistakes as soon as it is entered.
struct Section<'s, 't, 'v> {
    mistakes: &'s mut Mistakes<'t>,
    path: String,
    table: &'s DeTable<'v>,
}

impl<'s, 't, 'v> Section<'s, 't, 'v> {
    fn new(mistakes: &'s mut Mistakes<'t>, path: &str, table: &'s DeTable<'v>, known: &[&str]) -> Self {
        let section = Self { mistakes, path: path.to_owned(), table };
        for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let meant = nearest(key.get_ref(), known.iter().copied());
            let hint = meant.map_or_else(|| format!("known here: {}", known.join(", ")), |meant| format!("did you mean {meant}?"));
            let name = section.name(key.get_ref());
            section.mistakes.add(Some(key.span()), format!("{name} is not a known key; {hint}"));
        }
        section
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Reads a value: `shape` takes it out of the file, `check` makes it what it means.
    fn take<S, T>(
        &mut self,
        key: &str,
        shape: impl FnOnce(&DeValue<'_>) -> Result<S, String>,
        check: impl FnOnce(S) -> Result<T, String>,
        to: &mut T,
    ) {
        let Some(found) = self.table.get(key) else { return };
        match shape(found.get_ref()).and_then(check) {
            Ok(value) => *to = value,
            Err(why) => self.mistakes.add(Some(found.span()), format!("{}: {why}", self.name(key))),
        }
    }

    fn section(&mut self, key: &str, known: &[&str], read: impl FnOnce(&mut Section<'_, 't, 'v>)) {
        let name = self.name(key);
        if let Some(table) = self.table.get(key).and_then(|found| self.table_of(&name, found)) {
            read(&mut Section::new(self.mistakes, &name, table, known));
        }
    }

    /// The tables of a table, whatever their names.
    fn entries(&mut self, key: &str, mut read: impl FnMut(&mut Mistakes<'t>, &str, Range<usize>, &DeTable<'v>)) {
        let name = self.name(key);
        let Some(table) = self.table.get(key).and_then(|found| self.table_of(&name, found)) else { return };
        for (key, found) in table {
            if let Some(inner) = self.table_of(&format!("{name}.{}", key.get_ref()), found) {
                read(self.mistakes, key.get_ref(), key.span(), inner);
            }
        }
    }

    fn list(&mut self, key: &str, most: usize, mut read: impl FnMut(&mut Mistakes<'t>, usize, Range<usize>, &DeTable<'v>) -> Option<()>) {
        let Some(found) = self.table.get(key) else { return };
        let name = self.name(key);
        let DeValue::Array(items) = found.get_ref() else {
            self.mistakes.add(Some(found.span()), format!("{name}: is not a list of tables (write [[{name}]])"));
            return;
        };
        if items.len() > most {
            self.mistakes.add(Some(found.span()), format!("{name}: has more than {most} entries"));
        }
        for (at, item) in items.iter().enumerate().take(most) {
            if let Some(table) = self.table_of(&format!("{name}[{at}]"), item) {
                read(self.mistakes, at, item.span(), table);
            }
        }
    }

    fn table_of<'x>(&mut self, name: &str, found: &'x Spanned<DeValue<'v>>) -> Option<&'x DeTable<'v>> {
        if let DeValue::Table(table) = found.get_ref() {
            return Some(table);
        }
        self.mistakes.add(Some(found.span()), format!("{name}: is not a table (write [{name}])"));
        None
    }
}

fn wrong<T>(expected: &str, found: &DeValue<'_>) -> Result<T, String> {
    Err(format!("expected {expected}, found {}", found.type_str()))
}

fn text_of(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) if text.len() <= 4_096 => Ok(text.to_string()),
        DeValue::String(_) => Err("is longer than 4 KiB".to_owned()),
        other => wrong("a text in quotes", other),
    }
}

fn flag_of(value: &DeValue<'_>) -> Result<bool, String> {
    match value {
        DeValue::Boolean(flag) => Ok(*flag),
        other => wrong("true or false", other),
    }
}

fn integer_of(value: &DeValue<'_>) -> Result<u64, String> {
    match value {
        DeValue::Integer(number) => {
            u64::from_str_radix(number.as_str(), number.radix()).map_err(|_| "expected a whole number that is not negative".to_owned())
        }
        other => wrong("a whole number", other),
    }
}

fn number_of(value: &DeValue<'_>) -> Result<f64, String> {
    let number = match value {
        DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse::<f64>().ok(),
        other => return wrong("a number", other),
    };
    number.filter(|number| number.is_finite() && *number >= 0.0).ok_or_else(|| "expected a number that is not negative".to_owned())
}

fn filled(text: String) -> Result<String, String> {
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return Err("must not be empty or contain control characters".to_owned());
    }
    Ok(text)
}

fn model_name(text: String) -> Result<String, String> {
    if split_model(&text).is_none() {
        return Err(format!("{text:?} is not a model (expected provider/model)"));
    }
    Ok(text)
}

fn model_id(text: String) -> Result<String, String> {
    let text = filled(text)?;
    if text.len() > 200 { Err("is longer than 200 bytes".to_owned()) } else { Ok(text) }
}

fn memory(text: String) -> Result<u64, String> {
    let bytes = value::size(&text)?;
    if bytes < Limits::MEMORY_MIN_BYTES { Err(format!("{text:?} is less than the agent needs (512MiB)")) } else { Ok(bytes) }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked in the line before")]
fn cpus(cpus: f64) -> Result<u32, String> {
    if !(0.1..=1_024.0).contains(&cpus) {
        return Err("expected 0.1 to 1024".to_owned());
    }
    Ok((cpus * 1_000.0).round() as u32)
}

fn pids(pids: u64) -> Result<u32, String> {
    // The agent's own server has about 30 threads.
    u32::try_from(pids).ok().filter(|pids| (64..=1_000_000).contains(pids)).ok_or_else(|| "expected 64 to 1000000".to_owned())
}

fn up_to(number: u64, most: u32) -> Result<u32, String> {
    u32::try_from(number).ok().filter(|number| *number <= most).ok_or_else(|| format!("expected 0 to {most}"))
}

fn at_least(number: u64, least: u64, written: &str) -> Result<u64, String> {
    if number < least { Err(format!("expected at least {written}")) } else { Ok(number) }
}

fn tokens(tokens: u64) -> Result<u64, String> {
    if (1..=1_000_000_000).contains(&tokens) { Ok(tokens) } else { Err("expected 1 to 1000000000 tokens".to_owned()) }
}

fn price(units: f64) -> Result<u64, String> {
    if units <= 1e6 { Ok(micros(units)) } else { Err("is more than a million for a million tokens".to_owned()) }
}
