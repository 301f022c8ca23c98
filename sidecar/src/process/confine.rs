//! What is done between fork and exec, and to the sidecar itself, so that no child can gain or keep a privilege.
//!
//! The only module with `unsafe` code: a closure that runs between fork and exec may only make async-signal-safe calls and must not allocate. The one
//! below makes plain system calls on values that were captured before, and builds its errors from error numbers.

#![allow(unsafe_code, reason = "pre_exec has no safe form; see the module's documentation")]

use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, getpid, getppid, setsid};
use tokio::process::Command;

/// Makes the child of `command` the leader of a session, unable to gain privileges, and dead when the sidecar is. With `other_user`, a child that
/// still has a capability does not start.
pub fn confine(command: &mut Command, other_user: bool) {
    let parent = getpid();
    let between = move || {
        setsid()?;
        restrict(parent, other_user)
    };
    // SAFETY: `setsid` and what `restrict` calls are system calls without a lock or an allocation.
    unsafe { command.pre_exec(between) };
}

/// As [`confine`], for a command on a terminal, which makes the session itself.
#[must_use]
pub fn confine_on_terminal(command: pty_process::Command, other_user: bool) -> pty_process::Command {
    let parent = getpid();
    // SAFETY: what `restrict` calls are system calls without a lock or an allocation.
    unsafe { command.pre_exec(move || restrict(parent, other_user)) }
}

fn restrict(parent: Pid, other_user: bool) -> io::Result<()> {
    // Group-writable, since the agent's users share the workspace by group.
    umask(Mode::from_bits_truncate(0o002));
    prctl::set_no_new_privs()?;
    // After the change of user, which clears it.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    if other_user && has_capabilities()? {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(())
}

/// Whether this process has a permitted or effective capability.
fn has_capabilities() -> io::Result<bool> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    // _LINUX_CAPABILITY_VERSION_3 of linux/capability.h, with two words for each set.
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: both pointers are to live values of the layout that capget(2) documents for this version.
    let answer = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    let [[effective, permitted, _], [effective_high, permitted_high, _]] = sets;
    Ok(effective | permitted | effective_high | permitted_high != 0)
}

/// Makes the sidecar itself unreadable to other processes of its user, and its memory never a file.
///
/// # Errors
/// When the operating system refuses one of them.
pub fn harden_self() -> nix::Result<()> {
    prctl::set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // The journal is nobody else's; the socket's mode is set by name.
    umask(Mode::from_bits_truncate(0o077));
    Ok(())
}
