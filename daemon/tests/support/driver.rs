//! What the tests of both drivers share: ids, a client of the sidecar's health path, archives, and waiting with a bound.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use openagent_core::id::{InstanceId, SessionId};
use openagent_core::session::{Limits, WorkspaceSource};
use openagent_proto::sidecar::{Health, path};
use openagentd::driver::{BoxStream, Driver, InstanceSpec, Purpose, TarStream};
use tokio::io::AsyncReadExt;
use ulid::Ulid;

/// Longest wait for anything.
pub const BOUND: Duration = Duration::from_secs(30);

/// A session with one instance.
pub struct Subject {
    pub session: SessionId,
    pub instance: InstanceId,
}

impl Subject {
    pub fn new() -> Self {
        let ulid = Ulid::from_parts(1, u128::from_ne_bytes(rand_bytes()));
        Self { session: SessionId::from_ulid(ulid), instance: InstanceId::from_ulid(ulid) }
    }

    pub fn spec(&self) -> InstanceSpec {
        let limits = Limits { memory_bytes: Limits::MEMORY_MIN_BYTES, ..Limits::default() };
        InstanceSpec { session: self.session.clone(), instance: self.instance.clone(), token_sha256: "ab".repeat(32), limits }
    }

    /// Climbs the ladder as far as the driver goes.
    pub async fn start(&self, driver: &dyn Driver, source: WorkspaceSource) {
        driver.ensure_image().await.expect("the image or programs");
        driver.ensure_volumes(&self.session).await.expect("volumes");
        driver.ensure_volumes(&self.session).await.expect("volumes, again");
        driver.create(self.spec()).await.expect("create");
        driver.fill_workspace(&self.session, &self.instance, source).await.expect("fill the workspace");
        driver.start(&self.session, &self.instance).await.expect("start");
        driver.start(&self.session, &self.instance).await.expect("start, again");
    }

    /// Undoes everything, twice, and checks that nothing is left.
    pub async fn end(&self, driver: &dyn Driver) {
        for _ in 0..2 {
            driver.stop(&self.session, &self.instance, Duration::from_secs(5)).await.expect("stop");
        }
        for _ in 0..2 {
            driver.remove(&self.session, &self.instance).await.expect("remove");
            driver.remove_volumes(&self.session).await.expect("remove volumes");
        }
        eventually("everything is removed", || async { driver.list().await.expect("list").is_empty() }).await;
    }

    /// Dials a control stream and asks over HTTP/2 how the sidecar is.
    pub async fn ask_health(&self, driver: &dyn Driver) -> Health {
        let stream = driver.dial(&self.session, &self.instance, Purpose::Control).await.expect("dial");
        tokio::time::timeout(BOUND, health(stream)).await.expect("the sidecar answers in time")
    }
}

fn rand_bytes() -> [u8; 16] {
    Ulid::new().0.to_ne_bytes()
}

async fn health(stream: BoxStream) -> Health {
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake::<_, Empty<bytes::Bytes>>(TokioIo::new(stream))
        .await
        .expect("HTTP/2 handshake");
    let asked = async {
        let request = hyper::Request::get(format!("http://sidecar{}", path::HEALTH)).body(Empty::new()).expect("a valid request");
        let answer = sender.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.expect("a body").to_bytes()
    };
    tokio::select! {
        body = asked => serde_json::from_slice(&body).expect("health as JSON"),
        ended = connection => panic!("the connection ended: {ended:?}"),
    }
}

/// Waits until `holds`, at most for [`BOUND`].
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let waiting = async {
        while !holds().await {
            looks.tick().await;
        }
    };
    assert!(tokio::time::timeout(BOUND, waiting).await.is_ok(), "not within {BOUND:?}: {what}");
}

/// The value of a future, at most after [`BOUND`].
pub async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.expect("in time")
}

/// Files and links of an archive: content or target, and whether the owner may execute it.
pub async fn files(mut archive: TarStream) -> BTreeMap<String, (String, bool)> {
    let mut bytes = vec![];
    archive.read_to_end(&mut bytes).await.expect("read the archive");
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut files = BTreeMap::new();
    for entry in archive.entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        let kind = entry.header().entry_type();
        let path = entry.path().expect("a path");
        let name = path.strip_prefix(".").unwrap_or(&path).display().to_string();
        let executable = kind.is_file() && entry.header().mode().expect("a mode") & 0o100 != 0;
        let mut content = entry.link_name().expect("a target").map_or_else(String::new, |target| format!("-> {}", target.display()));
        if kind.is_file() {
            entry.read_to_string(&mut content).expect("text");
        }
        if !kind.is_dir() {
            files.insert(name, (content, executable));
        }
    }
    files
}

/// A folder with a program, a text, an ignored file and two links, one of which leads outside.
pub fn example_folder() -> tempfile::TempDir {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    std::fs::create_dir_all(root.join("src/deep")).expect("folders");
    std::fs::write(root.join("src/deep/text"), "text").expect("a file");
    std::fs::write(root.join("run.sh"), "#!/bin/sh\n").expect("a file");
    std::fs::set_permissions(root.join("run.sh"), std::fs::Permissions::from_mode(0o755)).expect("a mode");
    std::fs::write(root.join("ignored.log"), "x").expect("a file");
    std::fs::write(root.join(".gitignore"), "*.log\n").expect("a file");
    symlink("src/deep/text", root.join("inside")).expect("a link");
    symlink("/etc/passwd", root.join("outside")).expect("a link");
    folder
}

pub fn copy_of(folder: &Path) -> WorkspaceSource {
    WorkspaceSource::Copy { path: folder.display().to_string() }
}

/// Checks what came back of [`example_folder`], and that the agent's changes are in it.
pub fn assert_example(files: &BTreeMap<String, (String, bool)>) {
    let get = |name: &str| files.get(name).cloned();
    let found = |content: &str, executable| Some((content.to_owned(), executable));
    assert_eq!(get("src/deep/text"), found("text", false), "{files:?}");
    assert_eq!(get("run.sh"), found("#!/bin/sh\n", true));
    assert_eq!(get("inside"), found("-> src/deep/text", false));
    assert_eq!(get("outside"), found("-> /etc/passwd", false));
    assert_eq!(get("ignored.log"), None);
}
