//! Positions in a session's history.
//!
//! A session's events are numbered densely from 1; of those up to a floor only some are kept in a long history. A cursor is the number of the last event its reader has seen (0: none), so the
//! next event to deliver is always `cursor + 1`, and a reader that comes back resumes with no loss and no duplicate.

use serde::{Deserialize, Serialize};

/// The number of the last event seen; 0 before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cursor(pub u64);

/// What an event means to a reader at a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// It is the next one; the reader now stands behind it.
    Next,
    /// The reader has seen it already.
    Duplicate,
    /// Events are missing before it; nothing was advanced.
    Gap {
        /// First missing event.
        first: u64,
        /// Last missing event.
        last: u64,
    },
}

impl Cursor {
    /// Takes the event numbered `seq` of a history into account that is dense only above `floor`.
    pub fn advance_above(&mut self, floor: u64, seq: u64) -> Advance {
        if self.0 < seq {
            self.0 = self.0.max(floor.min(seq - 1));
        }
        self.advance(seq)
    }

    /// Takes the event numbered `seq` into account.
    pub fn advance(&mut self, seq: u64) -> Advance {
        if seq <= self.0 {
            Advance::Duplicate
        } else if seq == self.0 + 1 {
            self.0 = seq;
            Advance::Next
        } else {
            Advance::Gap { first: self.0 + 1, last: seq - 1 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn duplicates_and_gaps_do_not_move_the_cursor() {
        let mut cursor = Cursor(4);
        assert_eq!(cursor.advance(4), Advance::Duplicate);
        assert_eq!(cursor.advance(7), Advance::Gap { first: 5, last: 6 });
        assert_eq!(cursor.advance(5), Advance::Next);
        assert_eq!(cursor, Cursor(5));
    }

    #[test]
    fn up_to_the_floor_numbers_may_be_missing() {
        let mut cursor = Cursor::default();
        let taken = [3, 7, 7, 5, 11, 12, 14].map(|seq| cursor.advance_above(10, seq));
        let gap = Advance::Gap { first: 13, last: 13 };
        assert_eq!(taken, [Advance::Next, Advance::Next, Advance::Duplicate, Advance::Duplicate, Advance::Next, Advance::Next, gap]);
        assert_eq!(cursor, Cursor(12));
    }

    proptest! {
        #[test]
        fn whatever_arrives_each_event_is_taken_once_and_in_order(arrivals in proptest::collection::vec(1u64..20, 0..200)) {
            let mut cursor = Cursor::default();
            let taken: Vec<u64> = arrivals.into_iter().filter(|seq| cursor.advance(*seq) == Advance::Next).collect();
            prop_assert_eq!(taken, (1..=cursor.0).collect::<Vec<_>>());
        }
    }
}
