//! Faults of the host: it goes down with all that runs on it, its power is cut, its disks are full, its clock jumps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bollard::query_parameters::KillContainerOptionsBuilder;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;

use super::client::within;
use super::process::Process;
use super::{Driver, PATIENCE, World, copy_program};

/// Bytes of a mebibyte.
pub const MIB: u64 = 1024 * 1024;

/// Most that is written to a disk in one go.
const PIECE_BYTES: usize = 64 * 1024;

/// A day.
pub const DAY: i64 = 24 * 60 * 60;

impl World {
    /// The host goes down, with everything that runs on it and what is only in memory, and is up again; nothing of ours is started.
    ///
    /// # Panics
    /// When something of it goes on.
    pub async fn reboot(&mut self) {
        // It sees nothing of what ends around it.
        if let Some(daemon) = self.daemon_process() {
            daemon.signal(Signal::SIGSTOP);
        }
        match self.driver() {
            Driver::Local => {
                let place = self.path("state/local");
                within("the end of everything", PATIENCE, async {
                    loop {
                        let left: Vec<Process> = Process::all().into_iter().filter(|process| process.belongs_to(&place)).collect();
                        if left.is_empty() {
                            return;
                        }
                        left.into_iter().for_each(|process| process.signal(Signal::SIGKILL));
                        tokio::task::yield_now().await;
                    }
                })
                .await;
            }
            Driver::Docker => {
                for container in self.running_containers().await {
                    let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
                    // It may be ending already.
                    let _ = self.engine().kill_container(&container, Some(options)).await;
                }
                within("the end of all containers", PATIENCE, async { while !self.running_containers().await.is_empty() {} }).await;
            }
        }
        self.kill().await;
        fs::remove_dir_all(self.path("run")).expect("the daemon has made it");
    }
}

/// A disk of its own at a folder; unmounted when dropped. Needs root, as the engines of tests do.
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// A disk of this size at `folder`, which is made.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn at(folder: &Path, bytes: u64) -> Self {
        fs::create_dir_all(folder).expect("the folder can be made");
        let options = format!("size={bytes},mode=0700");
        let mounted = mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()));
        mounted.unwrap_or_else(|error| panic!("a disk at {} (this needs root): {error}", folder.display()));
        Self { folder: folder.to_owned() }
    }

    /// Bytes that are free.
    ///
    /// # Panics
    /// When the system does not tell.
    #[must_use]
    pub fn free(&self) -> u64 {
        let found = statvfs(&self.folder).expect("it is mounted");
        found.blocks_available() * found.fragment_size()
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    /// Writes to it until at most this much is free.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn fill(&self, leave_bytes: u64) {
        use std::io::Write;
        let mut filler = fs::OpenOptions::new().create(true).append(true).open(self.filler()).expect("the disk is there");
        while self.free() > leave_bytes {
            let piece = usize::try_from(self.free() - leave_bytes).unwrap_or(usize::MAX).min(PIECE_BYTES);
            if filler.write_all(&vec![7; piece]).is_err() {
                return;
            }
        }
    }

    /// Takes away what [`SmallDisk::fill`] wrote.
    pub fn clear(&self) {
        // It may not have been filled.
        let _ = fs::remove_file(self.filler());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.folder, MntFlags::MNT_DETACH) {
            eprintln!("a test's disk at {} is still mounted: {error}", self.folder.display());
        }
    }
}

/// The system's clock as programs see it that are started with [`Clock::preload`]: the real one, moved by as many seconds as a file says. The clock that only
/// measures durations is not moved, as on a host whose clock is set.
pub struct Clock {
    offset: PathBuf,
    library: PathBuf,
}

/// What is put between a program and the C library; the tests are linked by the same compiler.
const SHIM: &str = include_str!("clock.c");

impl Clock {
    /// A clock that shows the time, with its files in `folder`.
    ///
    /// # Panics
    /// When the shim cannot be compiled.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        let (source, library, offset) = (folder.join("clock.c"), folder.join("clock.so"), folder.join("clock.offset"));
        fs::write(&source, SHIM).expect("the folder is ours");
        fs::write(&offset, 0_i64.to_ne_bytes()).expect("the folder is ours");
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(&source).arg("-ldl").output();
        let compiled = compiled.expect("the compiler that links the tests is there");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        Self { offset, library }
    }

    /// Variables that give a program this clock.
    #[must_use]
    pub fn preload(&self) -> [(&'static str, String); 2] {
        [("LD_PRELOAD", self.library.display().to_string()), ("CLOCK_OFFSET_FILE", self.offset.display().to_string())]
    }

    /// A program that is `program` with this clock.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn wrapped(&self, program: &Path) -> PathBuf {
        let name = program.file_name().expect("a program has a name").to_string_lossy();
        let [(preload, library), (variable, offset)] = self.preload();
        let script = format!("#!/bin/sh\nexec env {preload}={library} {variable}={offset} {} \"$@\"\n", program.display());
        let written = self.offset.with_file_name(format!("{name}.script"));
        fs::write(&written, script).expect("the folder is ours");
        let wrapped = self.offset.with_file_name(format!("clocked-{name}"));
        copy_program(&written, &wrapped);
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&wrapped, fs::Permissions::from_mode(0o755)).expect("it is ours");
        wrapped
    }

    /// Sets it to so many seconds ahead of (or behind) the real one.
    ///
    /// # Panics
    /// When it cannot be set.
    pub fn set(&self, seconds: i64) {
        // In place and in one write: programs have it mapped.
        use std::os::unix::fs::FileExt;
        let file = fs::OpenOptions::new().write(true).open(&self.offset).expect("it was made");
        file.write_all_at(&seconds.to_ne_bytes(), 0).expect("the folder is ours");
    }
}

/// Looks at `found` until it is as `wanted`.
///
/// # Panics
/// When it does not become so in time.
pub async fn until<T: std::fmt::Debug>(what: &str, bound: Duration, mut found: impl AsyncFnMut() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + bound;
    loop {
        let now = found().await;
        if wanted(&now) {
            return now;
        }
        assert!(Instant::now() < deadline, "{what} within {bound:?}; it is {now:?}");
        tokio::task::yield_now().await;
    }
}
