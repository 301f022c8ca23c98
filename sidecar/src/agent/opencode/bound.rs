//! Keeps recorded events within [`EVENT_MAX_BYTES`]: long texts are cut with a note, and what is still too large becomes a note alone.

use openagent_core::event::{EVENT_MAX_BYTES, EventKind};
use serde_json::{Value, json};

/// Longest texts that are tried in turn, in bytes.
const TEXT_MAX_BYTES: [usize; 3] = [512 * 1024, 32 * 1024, 2 * 1024];

/// Most entries of a list in an event that is too large.
const LIST_MAX: usize = 500;

/// Room for the sequence number and time around the event.
const MARGIN_BYTES: usize = 1024;

/// The event itself, or a shortened one where it is too large.
pub(super) fn bounded(kind: EventKind) -> EventKind {
    if fits(&kind) {
        return kind;
    }
    let Ok(whole) = serde_json::to_value(&kind) else { return too_large(&kind) };
    for max in TEXT_MAX_BYTES {
        let mut cut = whole.clone();
        shorten(&mut cut, max);
        match serde_json::from_value::<EventKind>(cut) {
            Ok(kind) if fits(&kind) => return kind,
            Ok(_) | Err(_) => {}
        }
    }
    too_large(&kind)
}

fn too_large(kind: &EventKind) -> EventKind {
    let name = serde_json::to_value(kind).ok().and_then(|value| value.get("kind").and_then(Value::as_str).map(str::to_owned));
    EventKind::Unknown { name: name.unwrap_or_default(), raw: json!({ "note": "left out: it was too large" }) }
}

/// `text` with at most about `max` bytes, and a note where some are missing.
pub(super) fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}\n[cut: {} bytes are not kept]", &text[..end], text.len() - end)
}

fn fits(kind: &EventKind) -> bool {
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            if self.0 > EVENT_MAX_BYTES - MARGIN_BYTES { Err(std::io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes.len()) }
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    serde_json::to_writer(Counter(0), kind).is_ok()
}

fn shorten(value: &mut Value, max: usize) {
    match value {
        Value::String(text) => {
            if text.len() > max {
                *text = cut(text, max);
            }
        }
        Value::Array(items) => {
            items.truncate(LIST_MAX);
            items.iter_mut().for_each(|item| shorten(item, max));
        }
        Value::Object(fields) => fields.values_mut().for_each(|field| shorten(field, max)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_text_is_cut_with_a_note_and_a_small_one_is_untouched() {
        let error = |message: String| EventKind::AgentError { name: "E".into(), message, status_code: None, hint: None };
        assert_eq!(bounded(error("short".into())), error("short".into()));
        let EventKind::AgentError { message, .. } = bounded(error("\u{1}".repeat(EVENT_MAX_BYTES))) else { panic!("another kind") };
        assert!(message.ends_with("bytes are not kept]") && message.len() < EVENT_MAX_BYTES);
    }

    #[test]
    fn an_event_of_too_many_small_things_becomes_a_note() {
        let raw = Value::Object((0..400_000).map(|n| (format!("key-{n}"), json!(n))).collect());
        assert!(
            matches!(bounded(EventKind::Unknown { name: "x".into(), raw }), EventKind::Unknown { raw, .. } if raw.get("note").is_some())
        );
    }
}
