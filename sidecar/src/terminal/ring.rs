//! The last bytes of a terminal's output, addressed by their offset since its beginning.

use std::collections::VecDeque;

use bytes::Bytes;

/// Bytes kept: some ten thousand lines.
pub const RING_MAX_BYTES: usize = 1024 * 1024;

/// The last bytes of an output.
#[derive(Default)]
pub struct Ring {
    kept: VecDeque<u8>,
    end: u64,
}

impl Ring {
    /// One that holds `bytes` as the last of an output of `end` bytes.
    pub fn ending_at(end: u64, bytes: &[u8]) -> Self {
        Self { kept: bytes.iter().copied().collect(), end: end.max(bytes.len() as u64) }
    }

    /// Offset of the first byte that is kept.
    pub fn floor(&self) -> u64 {
        self.end - self.kept.len() as u64
    }

    /// Offset behind the last byte.
    pub const fn end(&self) -> u64 {
        self.end
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(RING_MAX_BYTES)..];
        let surplus = (self.kept.len() + bytes.len()).saturating_sub(RING_MAX_BYTES);
        self.kept.drain(..surplus);
        self.kept.extend(bytes);
    }

    /// Up to `most` bytes from `offset` on; `None` when that is not kept (any more, or yet).
    pub fn from(&self, offset: u64, most: usize) -> Option<Bytes> {
        let start = usize::try_from(offset.checked_sub(self.floor())?).ok().filter(|start| *start <= self.kept.len())?;
        let length = most.min(self.kept.len() - start);
        let (head, tail) = self.kept.as_slices();
        let mut piece = Vec::with_capacity(length);
        let from_head = head.get(start..).unwrap_or_default();
        piece.extend_from_slice(&from_head[..from_head.len().min(length)]);
        let from_tail = &tail[start.saturating_sub(head.len())..];
        piece.extend_from_slice(&from_tail[..length - piece.len()]);
        Some(piece.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_fell_out_is_not_found() {
        let mut ring = Ring::default();
        ring.push(&vec![b'a'; RING_MAX_BYTES]);
        ring.push(b"bc");
        assert_eq!((ring.floor(), ring.end()), (2, RING_MAX_BYTES as u64 + 2));
        assert_eq!(ring.from(1, 10), None);
        assert_eq!(ring.from(ring.end() - 2, 10).as_deref(), Some(&b"bc"[..]));
        assert_eq!(ring.from(ring.end(), 10).as_deref(), Some(&b""[..]));
        assert_eq!(ring.from(ring.end() + 1, 10), None);
    }

    #[test]
    fn a_ring_that_goes_on_from_an_earlier_one_has_its_offsets() {
        let ring = Ring::ending_at(10, b"end");
        assert_eq!((ring.floor(), ring.end(), ring.from(7, 9).as_deref(), ring.from(6, 9)), (7, 10, Some(&b"end"[..]), None));
    }

    proptest! {
        #[test]
        fn a_reader_that_keeps_up_gets_every_byte_once(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..40), most in 1usize..300) {
            let mut ring = Ring::default();
            let (mut got, mut offset) = (Vec::new(), 0);
            for piece in &pieces {
                ring.push(piece);
                while offset < ring.end() {
                    let more = ring.from(offset, most).unwrap_or_default();
                    prop_assert!(!more.is_empty() && more.len() <= most);
                    offset += more.len() as u64;
                    got.extend_from_slice(&more);
                }
            }
            prop_assert_eq!(got, pieces.concat());
        }
    }
}
