//! A recorded event with the form in which it goes to clients, made once for all of them.
//!
//! Events that are encoded together lie next to each other in one buffer, so that a reader passes them on in large pieces without a copy.

use std::collections::VecDeque;
use std::ops::{Deref, Range};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use openagent_core::event::Event;

/// How many bytes are encoded, and passed on, together: a few frames of the transport.
const RUN_BYTES: usize = 64 * 1024;

/// A recorded event.
#[derive(Debug)]
pub struct Recorded {
    event: Event,
    form: OnceLock<Form>,
}

/// Where in a buffer that it shares with its neighbours the encoded event is.
#[derive(Debug)]
struct Form {
    run: Bytes,
    at: Range<usize>,
}

impl Recorded {
    pub(super) const fn new(event: Event) -> Self {
        Self { event, form: OnceLock::new() }
    }

    /// The event, without a copy if nobody else has it.
    #[must_use]
    pub fn into_event(self: Arc<Self>) -> Event {
        Arc::try_unwrap(self).map_or_else(|shared| shared.event.clone(), |own| own.event)
    }
}

impl Deref for Recorded {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.event
    }
}

impl PartialEq for Recorded {
    fn eq(&self, other: &Self) -> bool {
        self.event == other.event
    }
}

/// The encoded form of the first of `events`, and of those behind it that lie next to it; and how many these are.
pub(super) fn run(events: &VecDeque<Arc<Recorded>>, encode: impl Fn(&Event, &mut Vec<u8>)) -> (Bytes, usize) {
    let Some(first) = events.front() else { return (Bytes::new(), 0) };
    if first.form.get().is_none() {
        make(events, encode);
    }
    let Some(form) = first.form.get() else { return (Bytes::new(), 0) };
    let mut at = form.at.clone();
    let mut count = 1;
    for next in events.iter().skip(1).map_while(|event| event.form.get()) {
        if next.run.as_ptr() != form.run.as_ptr() || next.at.start != at.end || next.at.end - at.start > RUN_BYTES {
            break;
        }
        at.end = next.at.end;
        count += 1;
    }
    (form.run.slice(at), count)
}

/// Encodes the first events into one buffer. Whoever does the same at the same time only wastes its work.
fn make(events: &VecDeque<Arc<Recorded>>, encode: impl Fn(&Event, &mut Vec<u8>)) {
    let mut run = Vec::new();
    let mut made = Vec::new();
    for event in events.iter().take_while(|event| event.form.get().is_none()) {
        let start = run.len();
        encode(event, &mut run);
        made.push((event, start..run.len()));
        if run.len() >= RUN_BYTES {
            break;
        }
    }
    let run = Bytes::from(run);
    for (event, at) in made {
        let _ = event.form.set(Form { run: run.clone(), at });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use openagent_core::event::EventKind;
    use openagent_core::time::Timestamp;

    use super::*;

    fn events(sizes: &[usize]) -> VecDeque<Arc<Recorded>> {
        let event =
            |(seq, size): (u64, &usize)| Event { seq, at: Timestamp::from_millis(0), kind: EventKind::Gap { reason: "x".repeat(*size) } };
        (1..).zip(sizes).map(|numbered| Arc::new(Recorded::new(event(numbered)))).collect()
    }

    fn letters(event: &Event, into: &mut Vec<u8>) {
        let EventKind::Gap { reason } = &event.kind else { panic!("{event:?}") };
        into.extend_from_slice(&event.seq.to_be_bytes());
        into.extend_from_slice(reason.as_bytes());
    }

    /// What a reader passes on that takes the events by pieces of at most `step`.
    fn passed(events: &VecDeque<Arc<Recorded>>, step: usize) -> Vec<u8> {
        let (mut all, mut left) = (vec![], events.clone());
        while !left.is_empty() {
            let page: VecDeque<_> = left.iter().take(step).cloned().collect();
            let (bytes, count) = run(&page, letters);
            assert!(count > 0 && count <= page.len());
            all.extend_from_slice(&bytes);
            left.drain(..count);
        }
        all
    }

    #[test]
    fn every_reader_passes_on_the_same_bytes_however_it_takes_them() {
        let events = events(&[3, 70_000, 0, 8_000, 8_000, 8_000, 8_000, 8_000, 8_000, 8_000, 8_000, 8_000, 8_000, 200_000, 1]);
        let mut expected = vec![];
        events.iter().for_each(|event| letters(event, &mut expected));
        for step in [4, 1, 100, 2] {
            assert!(passed(&events, step) == expected, "by {step}");
        }
    }

    #[test]
    fn small_events_go_together_and_are_encoded_once() {
        let events = events(&[100; 20]);
        let (bytes, count) = run(&events, letters);
        assert_eq!((bytes.len(), count), (20 * 108, 20));
        let (again, _) = run(&events, |_, _| panic!("it was encoded already"));
        assert_eq!(again.as_ptr(), bytes.as_ptr());
    }
}
