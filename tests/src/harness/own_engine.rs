//! An engine of a test's own: `containerd` and `dockerd` that may be stopped, killed, hung and started again without harm to anybody else's containers.
//!
//! Everything of it is in one folder, and its network namespace is its own (a second engine without a bridge would remove the first one's). It needs root and
//! the programs of the machine's engine, from which it takes the agent's image. Its containers' control groups are below a group of its own.
//!
//! Invariant: nothing outlives it. Dropped, its processes, containers, mounts, control groups and folder go; what a test that was killed has left behind goes
//! when the next engine is made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bollard::query_parameters::ImportImageOptionsBuilder;
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::StreamExt;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::client::within;
use super::process::Process;

/// How the folders of such engines begin.
const PREFIX: &str = "oa-engine-";

/// Where folders of engines are.
const FOLDERS: &str = "/tmp";

/// Limit of a call to the engine, in seconds: loading an image is one.
const CALL_TIMEOUT_SECONDS: u64 = 120;

/// Time in which a told engine must be up or down.
const ENGINE_PATIENCE: Duration = Duration::from_secs(60);

/// Time in which killed processes must be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Of containerd's plugins these want what is not there, or open ports.
const CONTAINERD_CONFIG: &str = r#"version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
"#;

/// What becomes of containers while the engine is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Containers {
    /// They end with it.
    EndWithIt,
    /// They run on: `--live-restore`.
    RunOn,
}

/// The engine.
pub struct OwnEngine {
    // The last field to be dropped would be the folder; `Drop` has emptied it by then.
    folder: TempDir,
    image: String,
    containers: Containers,
    containerd: Option<Child>,
    dockerd: Option<Child>,
}

/// The image under test.
#[must_use]
pub fn image() -> String {
    std::env::var("OPENAGENT_TEST_IMAGE").unwrap_or_else(|_| "openagent-agent:latest".to_owned())
}

impl OwnEngine {
    /// An engine that runs and has an image of the machine's engine: [`image`] or a light one.
    ///
    /// # Panics
    /// When it does not start, or the machine's engine does not have the image.
    pub async fn start(containers: Containers, image: &str) -> Self {
        remove_leftovers();
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(FOLDERS).expect("a temporary folder can be made");
        let mut engine = Self { folder, image: image.to_owned(), containers, containerd: None, dockerd: None };
        fs::write(engine.path("owner"), std::process::id().to_string()).expect("the folder is ours");
        fs::write(engine.path("containerd.toml"), CONTAINERD_CONFIG).expect("the folder is ours");
        engine.run().await;
        engine.load(image).await;
        engine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("docker.sock")
    }

    /// The image that it has.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    /// A client of it.
    ///
    /// # Panics
    /// When its socket is missing.
    #[must_use]
    pub fn client(&self) -> Docker {
        Docker::connect_with_unix(&self.socket().to_string_lossy(), CALL_TIMEOUT_SECONDS, API_DEFAULT_VERSION).expect("the socket is there")
    }

    /// Starts what does not run of it, and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn run(&mut self) {
        let path = |name: &str| self.folder.path().join(name);
        let cgroup = self.cgroup();
        if self.containerd.is_none() {
            let mut command = Command::new("containerd");
            command.args(["--log-level", "error"]).arg("--config").arg(path("containerd.toml")).arg("--root").arg(path("containerd"));
            command.arg("--state").arg(path("run/containerd")).arg("--address").arg(path("containerd.sock"));
            self.containerd = Some(start(command, &path("containerd.log")));
        }
        if self.dockerd.is_none() {
            // Of one that was killed; where its id has been given again, it would stop this one.
            let _ = fs::remove_file(path("docker.pid"));
            let mut command = Command::new("unshare");
            command.args([
                "--net",
                "--",
                "dockerd",
                "--log-level=warn",
                "--bridge=none",
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
            ]);
            command.arg("--host").arg(format!("unix://{}", path("docker.sock").display()));
            command.arg("--containerd").arg(path("containerd.sock"));
            command
                .arg("--data-root")
                .arg(path("data"))
                .arg("--exec-root")
                .arg(path("run/docker"))
                .arg("--pidfile")
                .arg(path("docker.pid"));
            // Groups of systemd would have to be slices.
            command.args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", &cgroup]);
            if self.containers == Containers::RunOn {
                command.arg("--live-restore");
            }
            self.dockerd = Some(start(command, &path("dockerd.log")));
        }
        self.until_up().await;
    }

    /// Whether it answers.
    pub async fn answers(&self) -> bool {
        match Docker::connect_with_unix(&self.socket().to_string_lossy(), CALL_TIMEOUT_SECONDS, API_DEFAULT_VERSION) {
            Ok(client) => client.ping().await.is_ok(),
            Err(_) => false,
        }
    }

    async fn until_up(&mut self) {
        let deadline = Instant::now() + ENGINE_PATIENCE;
        loop {
            if self.answers().await {
                return;
            }
            let ended = self.dockerd.as_mut().and_then(|dockerd| dockerd.try_wait().ok().flatten());
            assert!(ended.is_none() && Instant::now() < deadline, "the engine does not come up ({ended:?})\n{}", self.log());
            tokio::task::yield_now().await;
        }
    }

    /// What the engine said.
    #[must_use]
    pub fn log(&self) -> String {
        ["containerd.log", "dockerd.log"].map(|name| fs::read_to_string(self.path(name)).unwrap_or_default()).concat()
    }

    async fn load(&self, image: &str) {
        let machine = Docker::connect_with_defaults().expect("the machine has an engine");
        machine.inspect_image(image).await.unwrap_or_else(|error| panic!("the machine's engine has no image {image}: {error}"));
        let archive: std::pin::Pin<Box<dyn futures::Stream<Item = _> + Send>> = {
            let image = image.to_owned();
            Box::pin(async_stream::stream! {
                let mut pieces = std::pin::pin!(machine.export_image(&image));
                while let Some(piece) = pieces.next().await {
                    yield piece;
                }
            })
        };
        let options = ImportImageOptionsBuilder::default().quiet(true).build();
        let client = self.client();
        let mut loading = std::pin::pin!(client.import_image_stream(options, archive, None));
        let load = async {
            while let Some(told) = loading.next().await {
                told.expect("the image is taken");
            }
        };
        within("loading the image", Duration::from_secs(CALL_TIMEOUT_SECONDS), load).await;
    }

    /// Ends the engine in order, as an upgrade of it does; waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn stop(&mut self) {
        self.end(Signal::SIGTERM).await;
    }

    /// Kills the engine (not its containerd); waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn kill(&mut self) {
        self.end(Signal::SIGKILL).await;
    }

    async fn end(&mut self, signal: Signal) {
        let Some(mut dockerd) = self.dockerd.take() else { return };
        process_of(&dockerd).inspect(|process| process.signal(signal));
        let deadline = Instant::now() + ENGINE_PATIENCE;
        while dockerd.try_wait().expect("it is our child").is_none() {
            if Instant::now() > deadline {
                self.dockerd = Some(dockerd);
                panic!("the engine does not end\n{}", self.log());
            }
            tokio::task::yield_now().await;
        }
    }

    /// The engine hangs: it takes connections and answers nothing, until it is [thawed](Self::thaw).
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&self) {
        self.process().signal(Signal::SIGSTOP);
    }

    /// The engine goes on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn thaw(&self) {
        self.process().signal(Signal::SIGCONT);
    }

    fn process(&self) -> Process {
        self.dockerd.as_ref().and_then(process_of).expect("the engine runs")
    }

    /// The machine loses its power: engine, containers and everything in memory are gone at once, the disks stay. [`run`](Self::run) boots it.
    ///
    /// # Panics
    /// When something of it cannot be ended.
    pub fn power_off(&mut self) {
        self.kill_all();
        unmount_below(self.folder.path());
        let _ = fs::remove_dir_all(self.path("run"));
        for socket in ["docker.sock", "containerd.sock", "containerd.sock.ttrpc"] {
            let _ = fs::remove_file(self.path(socket));
        }
    }

    fn kill_all(&mut self) {
        let children = [self.dockerd.take(), self.containerd.take()];
        kill_processes_of(self.folder.path());
        for mut child in children.into_iter().flatten() {
            let _ = child.wait();
        }
    }

    fn cgroup(&self) -> String {
        cgroup_of(self.folder.path())
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the engine's log ---\n{}", self.log());
        }
        self.kill_all();
        remove(self.folder.path());
    }
}

fn cgroup_of(folder: &Path) -> String {
    format!("/{}", folder.file_name().unwrap_or_default().to_string_lossy())
}

fn process_of(child: &Child) -> Option<Process> {
    Process::of(i32::try_from(child.id()).ok()?)
}

fn start(mut command: Command, log: &Path) -> Child {
    use std::os::unix::process::CommandExt;
    let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("the folder is ours");
    let errors = log.try_clone().expect("a file can be opened twice");
    // A Ctrl-C is the test's, which then ends the engine in order.
    command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; the programs of an engine are needed"))
}

/// Kills every process that was started with the folder of an engine, and what they have started.
fn kill_processes_of(folder: &Path) {
    let text = folder.to_string_lossy().into_owned();
    let own = Process::of(i32::try_from(std::process::id()).unwrap_or_default());
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        // A shim's containers have nothing of the folder in their words: they are found as its descendants, as long as it lives.
        let engines = || Process::all().into_iter().filter(|process| process.command_line().iter().any(|word| word.contains(&text)));
        let mut killed = 0;
        for process in engines().flat_map(Process::family).filter(|process| Some(*process) != own) {
            process.signal(Signal::SIGKILL);
            killed += 1;
        }
        if killed == 0 {
            return;
        }
        if Instant::now() > deadline {
            eprintln!("processes of the engine in {text} do not end");
            return;
        }
        std::thread::yield_now();
    }
}

fn unmount_below(folder: &Path) {
    // One mount may lie on another.
    for _ in 0..4 {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut below: Vec<&Path> =
            mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new).filter(|path| path.starts_with(folder)).collect();
        if below.is_empty() {
            return;
        }
        below.sort_unstable();
        for path in below.into_iter().rev() {
            // What is busy goes when the last user of it does.
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

/// Removes mounts, control groups and folder of an engine whose processes are gone.
fn remove(folder: &Path) {
    unmount_below(folder);
    let name = cgroup_of(folder);
    let controllers = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    let groups: Vec<PathBuf> =
        controllers.chain([PathBuf::from("/sys/fs/cgroup")]).map(|root| root.join(name.trim_start_matches('/'))).collect();
    let deadline = Instant::now() + KILL_PATIENCE;
    // A killed process leaves its group only once it is reaped.
    while groups.iter().any(|group| group.exists()) && Instant::now() < deadline {
        groups.iter().for_each(|group| remove_group(group));
        std::thread::yield_now();
    }
    let removed = fs::remove_dir_all(folder);
    if folder.exists() {
        eprintln!("{} cannot be removed: {removed:?}", folder.display());
    }
}

/// Control groups are folders that are empty but for files which cannot be removed.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Removes engines whose test is gone.
fn remove_leftovers() {
    for folder in fs::read_dir(FOLDERS).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let is_engine = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        let owner = fs::read_to_string(folder.join("owner")).ok().and_then(|owner| owner.parse().ok());
        if is_engine && owner.is_some_and(|owner| Process::of(owner).is_none()) {
            kill_processes_of(&folder);
            remove(&folder);
        }
    }
}
