//! A terminal as a value: output, screen, size, who is attached and who writes. No I/O.

use std::collections::BTreeMap;

use bytes::Bytes;
use openagent_proto::sidecar::terminal::FRAME_MAX_BYTES;

use super::ring::Ring;
use super::screen::Screen;

/// Most clients of one terminal.
const CLIENTS_MAX: usize = 64;

/// A size of a terminal, in cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

impl Size {
    /// Smallest.
    pub const MIN: u16 = 2;
    /// Largest.
    pub const MAX: u16 = 1000;

    /// A size within the bounds.
    pub fn checked(columns: u16, rows: u16) -> Option<Self> {
        let fits = |value| (Self::MIN..=Self::MAX).contains(&value);
        (fits(columns) && fits(rows)).then_some(Self { columns, rows })
    }

    /// The nearest size within the bounds.
    pub fn clamped(columns: u16, rows: u16) -> Self {
        Self { columns: columns.clamp(Self::MIN, Self::MAX), rows: rows.clamp(Self::MIN, Self::MAX) }
    }

    pub fn of_pty(self) -> pty_process::Size {
        pty_process::Size::new(self.rows, self.columns)
    }
}

/// Number of an attached client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(u64);

struct Client {
    read_only: bool,
    size: Size,
}

/// What a client gets to see next.
#[derive(Debug, PartialEq, Eq)]
pub enum Shown {
    /// Nothing yet.
    Nothing,
    /// Output, and the offset behind it.
    Output(u64, Bytes),
    /// The whole screen, and the offset that it stands for.
    Screen(u64, Bytes),
    /// Everything was shown and the shell has ended.
    Ended(i32),
}

/// A terminal as a value.
pub struct State {
    ring: Ring,
    screen: Screen,
    size: Size,
    clients: BTreeMap<ClientId, Client>,
    writer: Option<ClientId>,
    numbered: u64,
    ended: Option<(std::time::Instant, i32)>,
}

impl State {
    pub fn new(size: Size) -> Self {
        Self { ring: Ring::default(), screen: Screen::new(size), size, clients: BTreeMap::new(), writer: None, numbered: 0, ended: None }
    }

    /// One whose output up to `end_offset` ended with `output`, and that exited with `code`.
    pub fn ended_before(size: Size, end_offset: u64, output: &[u8], code: i32) -> Self {
        let mut state = Self { ring: Ring::ending_at(end_offset, output), ..Self::new(size) };
        state.screen.process(output);
        state.end(code);
        state
    }

    /// The last bytes of the output, `most` at most, with the offset behind them.
    pub fn last(&self, most: usize) -> (u64, Bytes) {
        let end = self.ring.end();
        let from = end.saturating_sub(most as u64).max(self.ring.floor());
        (end, self.ring.from(from, most).unwrap_or_default())
    }

    pub fn output(&mut self, bytes: &[u8]) {
        self.ring.push(bytes);
        self.screen.process(bytes);
    }

    pub fn end(&mut self, code: i32) {
        self.ended = Some((std::time::Instant::now(), code));
    }

    pub fn exit_code(&self) -> Option<i32> {
        self.ended.map(|(_, code)| code)
    }

    pub fn ended_at(&self) -> Option<std::time::Instant> {
        self.ended.map(|(at, _)| at)
    }

    pub const fn size(&self) -> Size {
        self.size
    }

    pub fn attached(&self) -> u32 {
        u32::try_from(self.clients.len()).unwrap_or(u32::MAX)
    }

    /// A client comes; the first that may write does. `None` when there are too many.
    pub fn attach(&mut self, read_only: bool, size: Size) -> Option<ClientId> {
        if self.clients.len() >= CLIENTS_MAX {
            return None;
        }
        self.numbered += 1;
        let id = ClientId(self.numbered);
        self.clients.insert(id, Client { read_only, size });
        if self.writer.is_none() {
            self.take_over(id);
        }
        Some(id)
    }

    /// A client goes; if it was the writer, the one that came first of those that may write is from now on.
    pub fn detach(&mut self, id: ClientId) {
        self.clients.remove(&id);
        if self.writer == Some(id) {
            self.writer = None;
            if let Some(next) = self.clients.iter().find(|(_, client)| !client.read_only).map(|(id, _)| *id) {
                self.take_over(next);
            }
        }
    }

    /// The client becomes the writer, unless it only reads.
    pub fn take_over(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get(&id).filter(|client| !client.read_only) {
            let size = client.size;
            self.writer = Some(id);
            self.set_size(size);
        }
    }

    /// The client's view has another size.
    pub fn resize(&mut self, id: ClientId, size: Size) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.size = size;
            if self.writer == Some(id) {
                self.set_size(size);
            }
        }
    }

    pub fn is_writer(&self, id: ClientId) -> bool {
        self.writer == Some(id)
    }

    fn set_size(&mut self, size: Size) {
        if self.ended.is_none() && self.size != size {
            self.size = size;
            self.screen.resize(size);
        }
    }

    /// What follows `offset` for a client.
    pub fn shown_after(&self, offset: u64) -> Shown {
        match self.ring.from(offset, FRAME_MAX_BYTES) {
            Some(piece) if !piece.is_empty() => Shown::Output(offset + piece.len() as u64, piece),
            Some(_) => self.exit_code().map_or(Shown::Nothing, Shown::Ended),
            None => Shown::Screen(self.ring.end(), self.screen.draw().into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const SMALL: Size = Size { columns: 10, rows: 4 };
    const LARGE: Size = Size { columns: 99, rows: 40 };

    #[test]
    fn the_first_to_attach_for_writing_writes_until_it_goes_or_another_takes_over() {
        let mut state = State::new(SMALL);
        let watcher = state.attach(true, LARGE).unwrap();
        assert!(!state.is_writer(watcher));
        let first = state.attach(false, SMALL).unwrap();
        let second = state.attach(false, LARGE).unwrap();
        assert!(state.is_writer(first) && !state.is_writer(second));
        state.take_over(second);
        assert!(state.is_writer(second) && state.size() == LARGE);
        state.take_over(watcher);
        assert!(state.is_writer(second));
        state.detach(second);
        assert!(state.is_writer(first) && state.size() == SMALL);
    }

    #[test]
    fn only_the_writer_sets_the_size() {
        let mut state = State::new(SMALL);
        let writer = state.attach(false, SMALL).unwrap();
        let other = state.attach(false, LARGE).unwrap();
        state.resize(other, LARGE);
        assert_eq!(state.size(), SMALL);
        state.resize(writer, LARGE);
        assert_eq!(state.size(), LARGE);
    }

    #[test]
    fn a_client_behind_the_ring_gets_the_screen_and_goes_on_from_there() {
        let mut state = State::new(SMALL);
        state.output(b"lost");
        state.output(&vec![b'\n'; super::super::ring::RING_MAX_BYTES]);
        state.output(b"now");
        let Shown::Screen(offset, screen) = state.shown_after(0) else { panic!("no screen") };
        assert!(screen.windows(3).any(|part| part == b"now"));
        assert_eq!(state.shown_after(offset), Shown::Nothing);
        state.end(3);
        assert_eq!(state.shown_after(offset), Shown::Ended(3));
    }

    #[test]
    fn clients_are_bounded() {
        let mut state = State::new(SMALL);
        assert!((0..CLIENTS_MAX).all(|_| state.attach(true, SMALL).is_some()));
        assert_eq!(state.attach(true, SMALL), None);
    }
}
