//! Lenient reading of OpenCode's JSON: a field that is missing or of another type reads as empty, so that a new version never stops the translation.

use openagent_core::time::Timestamp;
use openagent_core::usage::{Tokens, micros};
use serde_json::Value;

/// The text at `key`, or the empty one.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The value at `key`, or null.
pub(super) fn field<'a>(value: &'a Value, key: &str) -> &'a Value {
    value.get(key).unwrap_or(&Value::Null)
}

/// The list at `key`, or the empty one.
pub(super) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The texts of the list at `key`, at most `max` of them.
pub(super) fn texts(value: &Value, key: &str, max: usize) -> Vec<String> {
    list(value, key).iter().filter_map(Value::as_str).take(max).map(str::to_owned).collect()
}

/// Whether the value at `key` is true.
pub(super) fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// The count at `key`; OpenCode's counts may be floating-point numbers.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked in the same line")]
pub(super) fn count(value: &Value, key: &str) -> u64 {
    let value = field(value, key);
    let float = || value.as_f64().filter(|number| (0.0..9e15).contains(number)).map_or(0, |number| number as u64);
    value.as_u64().unwrap_or_else(float)
}

/// The time in milliseconds since the epoch at `key`.
pub(super) fn time(value: &Value, key: &str) -> Option<Timestamp> {
    let value = value.get(key)?;
    value.as_number().map(|_| Timestamp::from_millis(i64::try_from(count(&serde_json::json!({ "t": value }), "t")).unwrap_or(i64::MAX)))
}

/// Token counts as messages and `step-finish` parts carry them.
pub(super) fn tokens(value: &Value) -> Tokens {
    let cache = field(value, "cache");
    Tokens {
        input: count(value, "input"),
        output: count(value, "output"),
        reasoning: count(value, "reasoning"),
        cache_read: count(cache, "read"),
        cache_write: count(cache, "write"),
    }
}

/// A price in whole units of currency at `key`, in micro-units.
pub(super) fn cost(value: &Value, key: &str) -> u64 {
    micros(field(value, key).as_f64().unwrap_or(0.0))
}
