//! The last events of a session that somebody reads, decoded once for all readers.

use std::collections::VecDeque;
use std::sync::Arc;

use super::recorded::Recorded;
use crate::store::Page;

/// Bounds of what is kept: a burst of a thousand events of 8 KiB, for sessions that are being read only.
const EVENTS_MAX: usize = 1_024;
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// A dense run of events that ends with the last one; or nothing.
#[derive(Debug, Default)]
pub(super) struct Recent {
    events: VecDeque<(Arc<Recorded>, usize)>,
    bytes: usize,
}

impl Recent {
    pub(super) fn extend(&mut self, events: Vec<(Arc<Recorded>, usize)>) {
        for (event, size) in events {
            self.bytes += size;
            self.events.push_back((event, size));
        }
        while self.events.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            let Some((_, size)) = self.events.pop_front() else { break };
            self.bytes -= size;
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// A page of the events that follow `after`, if the next one is here.
    pub(super) fn page(&self, after: u64, page: Page) -> Option<VecDeque<Arc<Recorded>>> {
        let first = self.events.front()?.0.seq;
        let from = usize::try_from((after + 1).checked_sub(first)?).ok()?;
        let mut left = page.bytes;
        let mut events = VecDeque::new();
        for (event, size) in self.events.range(from.min(self.events.len())..).take(page.events) {
            if !events.is_empty() && *size > left {
                break;
            }
            left = left.saturating_sub(*size);
            events.push_back(Arc::clone(event));
        }
        (!events.is_empty()).then_some(events)
    }
}
