//! The `exec` bridge: standard input and output of a process that the container engine started, joined to the sidecar's socket.
//!
//! It must work in a container whose agent has used up all process ids, so it starts no thread: one thread, non-blocking descriptors. Neither closing the
//! engine's connection nor the engine's death ends such a process, so it ends itself after a silence in which a live daemon would have pinged.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use openagent_proto::sidecar::{BRIDGE_MAGIC, BRIDGE_SILENCE_MAX_MILLIS};
use thiserror::Error;

/// Bytes on their way in one direction.
const BUFFER_BYTES: usize = 64 * 1024;

/// Why the bridge ended before its time.
#[derive(Debug, Error)]
pub enum BridgeError {
    /// The sidecar does not listen.
    #[error("the sidecar's socket cannot be reached")]
    Connect(#[source] io::Error),
    /// Reading or writing failed.
    #[error("the bridge broke")]
    Pump(#[source] io::Error),
}

/// What ended the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// One of the sides closed its stream.
    Closed,
    /// Nothing came from the engine's side for too long.
    Silence,
}

/// Connects to the socket, says what the stream is for, and pumps until either side closes.
///
/// # Errors
/// [`BridgeError`].
pub fn run(socket: &Path, preamble: &str, input: OwnedFd, output: OwnedFd) -> Result<Ended, BridgeError> {
    let silence = Duration::from_millis(BRIDGE_SILENCE_MAX_MILLIS);
    run_with(socket, preamble, input, output, silence)
}

fn run_with(socket: &Path, preamble: &str, input: OwnedFd, output: OwnedFd, silence: Duration) -> Result<Ended, BridgeError> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).map_err(BridgeError::Connect)?;
    stream.write_all(format!("{preamble}\n").as_bytes()).map_err(BridgeError::Connect)?;
    let mut to_engine = Pipe::new();
    to_engine.put(format!("{BRIDGE_MAGIC}\n").as_bytes());
    let stream = OwnedFd::from(stream);
    pump(&input, &output, &stream, Pipe::new(), to_engine, silence).map_err(BridgeError::Pump)
}

/// Bytes that were read and not written yet.
struct Pipe {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    closed: bool,
}

impl Pipe {
    fn new() -> Self {
        Self { bytes: vec![0; BUFFER_BYTES], start: 0, end: 0, closed: false }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Reads once, when everything read before is written. Says whether anything came.
    fn fill(&mut self, from: &OwnedFd) -> io::Result<bool> {
        match nix::unistd::read(from, &mut self.bytes) {
            Ok(0) | Err(Errno::ECONNRESET) => self.closed = true,
            Ok(count) => (self.start, self.end) = (0, count),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    /// Writes once what there is. Says whether the other side still takes it.
    fn drain(&mut self, to: &OwnedFd) -> io::Result<bool> {
        match nix::unistd::write(to, &self.bytes[self.start..self.end]) {
            Ok(count) => self.start += count,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }
}

/// Restores the blocking mode of a descriptor that others may share.
struct NonBlocking<'a> {
    fd: &'a OwnedFd,
    before: OFlag,
}

impl<'a> NonBlocking<'a> {
    fn new(fd: &'a OwnedFd) -> nix::Result<Self> {
        let before = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
        fcntl(fd, FcntlArg::F_SETFL(before | OFlag::O_NONBLOCK))?;
        Ok(Self { fd, before })
    }
}

impl Drop for NonBlocking<'_> {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = fcntl(self.fd, FcntlArg::F_SETFL(self.before));
    }
}

fn pump(
    input: &OwnedFd,
    output: &OwnedFd,
    stream: &OwnedFd,
    mut to_sidecar: Pipe,
    mut to_engine: Pipe,
    silence: Duration,
) -> io::Result<Ended> {
    let _modes = (NonBlocking::new(input)?, NonBlocking::new(output)?, NonBlocking::new(stream)?);
    let mut heard_at = std::time::Instant::now();
    loop {
        if (to_sidecar.closed && to_sidecar.is_empty()) || (to_engine.closed && to_engine.is_empty()) {
            return Ok(Ended::Closed);
        }
        let Some(left) = silence.checked_sub(heard_at.elapsed()).filter(|left| !left.is_zero()) else {
            return Ok(Ended::Silence);
        };
        // Each direction is either read into or written from; a closed one is only written from.
        let wants = |pipe: &Pipe, reading: PollFlags, writing: PollFlags| {
            if !pipe.is_empty() {
                (PollFlags::empty(), writing)
            } else if pipe.closed {
                (PollFlags::empty(), PollFlags::empty())
            } else {
                (reading, PollFlags::empty())
            }
        };
        let (from_input, into_stream) = wants(&to_sidecar, PollFlags::POLLIN, PollFlags::POLLOUT);
        let (from_stream, into_output) = wants(&to_engine, PollFlags::POLLIN, PollFlags::POLLOUT);
        // A descriptor that nothing is wanted of is left out: its hang-up would be reported over and over.
        let mut fds = Vec::with_capacity(3);
        let mut watch = |fd, flags: PollFlags| {
            if !flags.is_empty() {
                fds.push(PollFd::new(fd, flags))
            }
        };
        watch(input.as_fd(), from_input);
        watch(output.as_fd(), into_output);
        watch(stream.as_fd(), from_stream | into_stream);
        // Rounded up, so that the last millisecond is not spent in a busy loop.
        let millis = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
        match poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if to_sidecar.is_empty() && !to_sidecar.closed && to_sidecar.fill(input)? {
            heard_at = std::time::Instant::now();
        }
        if !to_sidecar.is_empty() && !to_sidecar.drain(stream)? {
            return Ok(Ended::Closed);
        }
        if to_engine.is_empty() && !to_engine.closed {
            to_engine.fill(stream)?;
        }
        if !to_engine.is_empty() && !to_engine.drain(output)? {
            return Ok(Ended::Closed);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Read;
    use std::net::Shutdown;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    struct Bridge {
        engine: UnixStream,
        sidecar: UnixStream,
        ended: std::thread::JoinHandle<Result<Ended, BridgeError>>,
        _folder: tempfile::TempDir,
    }

    fn bridge(silence: Duration) -> Bridge {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (engine, bridge) = UnixStream::pair().unwrap();
        let output = OwnedFd::from(bridge.try_clone().unwrap());
        let ended = std::thread::spawn(move || run_with(&path, "openagent/1 control", bridge.into(), output, silence));
        let (mut sidecar, _) = listener.accept().unwrap();
        let mut preamble = [0; 20];
        sidecar.read_exact(&mut preamble).unwrap();
        assert_eq!(&preamble, b"openagent/1 control\n");
        let mut magic = vec![0; BRIDGE_MAGIC.len() + 1];
        (&engine).read_exact(&mut magic).unwrap();
        assert_eq!(magic, format!("{BRIDGE_MAGIC}\n").as_bytes());
        Bridge { engine, sidecar, ended, _folder: folder }
    }

    #[test]
    fn megabytes_pass_both_ways_at_once_and_unchanged() {
        let bridge = bridge(Duration::from_secs(20));
        let load: Vec<u8> = (0u32..1_000_000).flat_map(u32::to_be_bytes).collect();
        std::thread::scope(|threads| {
            for (from, to) in [(&bridge.engine, &bridge.sidecar), (&bridge.sidecar, &bridge.engine)] {
                let load = &load;
                threads.spawn(move || (&*from).write_all(load).unwrap());
                threads.spawn(move || {
                    let mut got = vec![0; load.len()];
                    (&*to).read_exact(&mut got).unwrap();
                    assert!(got == *load);
                });
            }
        });
        bridge.engine.shutdown(Shutdown::Write).unwrap();
        assert_eq!(bridge.ended.join().unwrap().unwrap(), Ended::Closed);
    }

    #[test]
    fn the_end_of_the_sidecar_ends_it_after_the_last_byte() {
        let mut bridge = bridge(Duration::from_secs(20));
        bridge.sidecar.write_all(b"last").unwrap();
        drop(bridge.sidecar);
        assert_eq!(bridge.ended.join().unwrap().unwrap(), Ended::Closed);
        let mut rest = String::new();
        bridge.engine.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "last");
    }

    #[test]
    fn silence_ends_it_although_nobody_closed_anything() {
        let bridge = bridge(Duration::from_millis(50));
        assert_eq!(bridge.ended.join().unwrap().unwrap(), Ended::Silence);
    }

    #[test]
    fn no_sidecar_is_an_error() {
        let (one, two) = UnixStream::pair().unwrap();
        let ended = run(Path::new("/nonexistent/socket"), "openagent/1 relay", one.into(), two.into());
        assert!(matches!(ended, Err(BridgeError::Connect(_))));
    }
}
