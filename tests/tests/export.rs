//! Exports: the archive holds what the session holds, can be unpacked by anybody without harm, and is whole or not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use openagent_proto::v1;
use openagent_tests::harness::engine::{AGENT, Container};
use openagent_tests::harness::shell::Shell;
use openagent_tests::harness::{Clients, Driver, PATIENCE, World};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Makes a workspace of all that is awkward, and ends with a line that says so.
const AWKWARD: &str = r"
    mkdir -p sub/deeper empty '...' 'ümläut' &&
    printf 'down below' > sub/deeper/file && printf 'dots' > '.../..dots..' && printf 'letters' > 'ümläut/naïve 日本' &&
    head -c 300000 /dev/urandom > random.bin && printf '#!/bin/sh\n' > script.sh && chmod 755 script.sh && : > nothing &&
    ln -s kept.txt good && ln -s ../../kept.txt sub/deeper/up && ln -s sub/deeper folder && ln -s gone dangling && ln -s . here &&
    ln -s /etc/passwd x && ln -s ../../.. y && ln -s here/here/../.. chain && ln -s sub/../../.. z && ln -s ../../../out sub/deeper/out &&
    printf 1 > $'new\nline' && printf 2 > 'back\slash' && printf 3 > '..\..\evil' && printf 4 > $'bell\a' && printf 5 > $'\377' &&
    mkdir $'odd\tfolder' && printf 6 > $'odd\tfolder/inside' &&
    mkfifo pipe && echo made-$((40+2))
";

/// What of it must be left out, as it is shown.
const LEFT_OUT: [&str; 13] = [
    "x",
    "y",
    "z",
    "chain",
    "sub/deeper/out",
    "new\nline",
    "back\\slash",
    "..\\..\\evil",
    "bell\u{7}",
    "\u{fffd}",
    "odd\tfolder",
    "odd\tfolder/inside",
    "pipe",
];

const LINKS: [(&str, &str); 5] =
    [("good", "kept.txt"), ("sub/deeper/up", "../../kept.txt"), ("folder", "sub/deeper"), ("dangling", "gone"), ("here", ".")];

/// An archive, taken apart and checked for what every archive must hold.
struct Archive {
    /// Regular files by name, with mode.
    files: BTreeMap<String, (Vec<u8>, u32)>,
    folders: BTreeSet<String>,
    links: BTreeMap<String, String>,
    manifest: Value,
    left_out: BTreeMap<String, String>,
}

impl Archive {
    fn read(path: &Path) -> Self {
        let mut zip = zip::ZipArchive::new(File::open(path).expect("the archive is there")).expect("the archive is whole");
        let mut archive = Self {
            files: BTreeMap::new(),
            folders: BTreeSet::new(),
            links: BTreeMap::new(),
            manifest: Value::Null,
            left_out: BTreeMap::new(),
        };
        let mut names = BTreeSet::new();
        for index in 0..zip.len() {
            let mut entry = zip.by_index(index).expect("the archive is whole");
            let name = entry.name().expect("names are UTF-8").into_owned();
            assert!(entry.enclosed_name().is_some(), "{name:?} stays below the folder into which it is unpacked");
            assert!(!name.contains('\\') && !name.chars().any(char::is_control), "{name:?} is harmless on every system");
            assert!(names.insert(name.trim_end_matches('/').to_owned()), "{name:?} is there once");
            let mut bytes = vec![];
            std::io::copy(&mut entry, &mut bytes).expect("the archive is whole: checksums fit");
            if entry.is_dir() {
                archive.folders.insert(name.trim_end_matches('/').to_owned());
            } else if entry.is_symlink() {
                archive.links.insert(name, String::from_utf8(bytes).expect("targets are UTF-8"));
            } else {
                archive.files.insert(name, (bytes, entry.unix_mode().unwrap_or_default() & 0o777));
            }
        }
        archive.manifest = archive.json("manifest.json");
        archive.check_manifest();
        archive.check_links(path);
        archive
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.files[name].0).expect("it is JSON")
    }

    fn text(&self, name: &str) -> &str {
        std::str::from_utf8(&self.files[name].0).expect("it is text")
    }

    /// Digests and sizes are those of the bytes, of all files and no others.
    fn check_manifest(&mut self) {
        let mut listed = BTreeMap::new();
        for file in self.manifest["files"].as_array().expect("a list") {
            let digest = (file["size_bytes"].as_u64().expect("a size"), file["sha256"].as_str().expect("a digest").to_owned());
            assert_eq!(listed.insert(file["path"].as_str().expect("a path").to_owned(), digest), None);
        }
        let files = self.files.iter().filter(|(name, _)| *name != "manifest.json");
        let real: BTreeMap<_, _> =
            files.map(|(name, (bytes, _))| (name.clone(), (bytes.len() as u64, hex::encode(Sha256::digest(bytes))))).collect();
        assert_eq!(listed, real);
        for left in self.manifest["left_out"].as_array().expect("a list") {
            let [path, reason] = ["path", "reason"].map(|key| left[key].as_str().expect("a text").to_owned());
            assert!(!reason.is_empty());
            self.left_out.insert(path, reason);
        }
    }

    /// Unpacked as a careless program would, no link leads out.
    fn check_links(&self, path: &Path) {
        let folder = tempfile::tempdir_in(path.parent().expect("it is in a folder")).expect("a folder can be made");
        let root = folder.path().canonicalize().expect("it is there");
        zip::ZipArchive::new(File::open(path).expect("it is there")).and_then(|mut zip| zip.extract(&root)).expect("it can be unpacked");
        for link in self.links.keys() {
            // A link to nothing leads nowhere.
            if let Ok(target) = root.join(link).canonicalize() {
                assert!(target.starts_with(root.join("workspace")), "{link:?} leads to {}", target.display());
            }
        }
    }

    fn workspace(&self) -> BTreeMap<&str, &[u8]> {
        self.files.iter().filter_map(|(name, (bytes, _))| Some((name.strip_prefix("workspace/")?, bytes.as_slice()))).collect()
    }

    /// The conversation is in both transcripts.
    fn check_transcripts(&self, session: &str, model: &str) {
        assert_eq!(self.manifest["session"]["id"], session);
        assert_eq!(self.manifest["session"]["model"], model);
        assert!(
            self.manifest["session"]["usage"]["tokens"]["input"].as_u64().is_some_and(|tokens| tokens > 0),
            "{}",
            self.manifest["session"]
        );
        let markdown = self.text("transcript.md");
        for expected in
            [session, "## User", "#write kept.txt kept for the archive", "## Agent (scripted", "#echo first line", "second line"]
        {
            assert!(markdown.contains(expected), "{expected:?} is in {markdown}");
        }
        let transcript = self.json("transcript.json");
        let messages = transcript["messages"].as_array().expect("a list");
        let roles: Vec<_> = messages.iter().filter_map(|message| message["role"].as_str()).collect();
        assert!(roles.len() >= 5 && roles[0] == "user" && roles.contains(&"assistant"), "{roles:?}");
        let text = transcript.to_string();
        for expected in ["kept for the archive", "first line\\nsecond line", "write"] {
            assert!(text.contains(expected), "{expected:?} is in {text}");
        }
    }

    /// What [`AWKWARD`] made is there, or named as left out.
    fn check_awkward(&self) {
        let left: BTreeSet<&str> = self.left_out.keys().map(|path| path.trim_start_matches("./").trim_end_matches('/')).collect();
        assert_eq!(left, BTreeSet::from(LEFT_OUT), "{:?}", self.left_out);
        let links: BTreeMap<_, _> = LINKS.map(|(name, target)| (format!("workspace/{name}"), target.to_owned())).into();
        assert_eq!(self.links, links);
        for (name, content) in [
            ("kept.txt", "kept for the archive"),
            ("sub/deeper/file", "down below"),
            (".../..dots..", "dots"),
            ("ümläut/naïve 日本", "letters"),
            ("nothing", ""),
        ] {
            let found = self.workspace().get(name).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            assert_eq!(found.as_deref(), Some(content), "{name}");
        }
        assert_eq!(self.files["workspace/script.sh"].1, 0o755, "what can be run still can");
        assert!(self.folders.contains("workspace/empty"), "{:?}", self.folders);
    }
}

/// A session with a conversation and an awkward workspace.
async fn session_with_work(clients: &mut Clients) -> String {
    let request = v1::CreateSessionRequest {
        model: "scripted/scripted-large".to_owned(),
        permission_mode: v1::PermissionMode::AutoEdit.into(),
        ..Default::default()
    };
    let id = clients.create_with(request).await.id;
    let mut events = clients.follow(&id).await;
    events.until_ready().await;
    for prompt in ["#write kept.txt kept for the archive", "#echo first line\nsecond line"] {
        let end = clients.turn(&id, &mut events, prompt).await;
        assert_eq!(end.outcome(), v1::TurnOutcome::Completed, "{end:?}");
    }
    let (code, shown) = Shell::open(clients, &id, AWKWARD).await.until_exited().await;
    assert!(code == 0 && shown.contains("made-42"), "{code} {shown}");
    id
}

async fn export(world: &World, id: &str, name: &str) -> Archive {
    let said = world.cli(&["export", id, "-o", name]).await;
    assert!(said.status.success(), "{said:?}");
    assert_eq!(said.stdout, b"", "what is written to a file is not data for the next program");
    Archive::read(&world.path(name))
}

fn stray_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("it can be listed").path());
    entries.filter(|path| path.to_string_lossy().contains(".zip")).collect()
}

/// Names and digests of the workspace's files, without what git and the agent change by themselves.
fn stable(archive: &Archive) -> BTreeMap<&str, &[u8]> {
    archive.workspace().into_iter().filter(|(name, _)| !name.starts_with(".git/")).collect()
}

#[tokio::test]
async fn an_archive_is_the_session_without_what_could_do_harm() {
    let world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    let id = session_with_work(&mut clients).await;
    let running = export(&world, &id, "running.zip").await;
    running.check_awkward();
    running.check_transcripts(&id, "scripted/scripted-large");
    // Every file on disk is in the archive with its bytes, or is named as left out.
    let root = world.path(&format!("state/local/{id}/workspace"));
    let (mut folders, mut seen) = (vec![root.clone()], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("it is there") {
            let path = entry.expect("it can be listed").path();
            let kind = path.symlink_metadata().expect("it is there").file_type();
            let name = path.strip_prefix(&root).expect("it is below").to_string_lossy().into_owned();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && !LEFT_OUT.contains(&name.as_str()) {
                assert_eq!(
                    running.workspace().get(name.as_str()).copied(),
                    Some(&*std::fs::read(&path).expect("it can be read")),
                    "{name}"
                );
                seen += 1;
            }
        }
    }
    assert_eq!(seen, running.workspace().len(), "and nothing else is in it");

    // A file that is there stays as it is.
    let before = std::fs::read(world.path("running.zip")).expect("it is there");
    let refused = world.cli(&["export", &id, "-o", "running.zip"]).await;
    let words = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(words.contains("running.zip exists") && words.contains("--force"), "{words}");
    assert_eq!(std::fs::read(world.path("running.zip")).expect("it is there"), before);
    let unknown = world.cli(&["export", "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV", "-o", "unknown.zip"]).await;
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
    let nowhere = world.cli(&["export", &id, "-o", "no/such/folder/a.zip"]).await;
    assert_eq!(nowhere.status.code(), Some(1), "{nowhere:?}");

    clients.stop(&id).await;
    let forced = world.cli(&["export", &id, "-o", "running.zip", "--force"]).await;
    assert!(forced.status.success(), "{forced:?}");
    let stopped = Archive::read(&world.path("running.zip"));
    stopped.check_awkward();
    stopped.check_transcripts(&id, "scripted/scripted-large");
    assert_eq!(stable(&stopped), stable(&running), "a stopped session has the same files");
    let piped = world.cli(&["export", &id, "-o", "-"]).await;
    assert!(piped.status.success(), "{:?}", piped.status);
    std::fs::write(world.path("piped.zip"), piped.stdout).expect("the folder is ours");
    assert_eq!(stable(&Archive::read(&world.path("piped.zip"))), stable(&running));
    assert_eq!(stray_files(&world.path("")).len(), 2, "refused exports leave nothing: {:?}", stray_files(&world.path("")));
    world.end().await;
}

#[tokio::test]
async fn a_container_is_exported_whether_it_runs_or_not() {
    let world = World::with_keys(Driver::Docker).await;
    let mut clients = world.clients().await;
    let id = session_with_work(&mut clients).await;
    let running = export(&world, &id, "running.zip").await;
    running.check_awkward();
    running.check_transcripts(&id, "scripted/scripted-large");
    let sums = "find . -path ./.git -prune -o -type f -print0 | xargs -0 sha256sum --zero | tr '\\0\\n' '\\n?'";
    let sums = Container::of(&id).await.run(AGENT, sums).await;
    let mut seen = 0;
    for line in sums.text().lines() {
        let (digest, name) = line.split_once("  ./").unwrap_or_else(|| panic!("{line:?}"));
        if let Some(bytes) = running.workspace().get(name) {
            assert_eq!(hex::encode(Sha256::digest(bytes)), digest, "{name}");
            seen += 1;
        }
    }
    assert_eq!(seen, stable(&running).len(), "every file is as it is in the container: {sums:?}");

    clients.stop(&id).await;
    let stopped = export(&world, &id, "stopped.zip").await;
    stopped.check_awkward();
    stopped.check_transcripts(&id, "scripted/scripted-large");
    assert_eq!(stable(&stopped), stable(&running));
    world.end().await;
}

#[tokio::test]
async fn an_export_that_breaks_off_leaves_no_file() {
    let mut world = World::with_keys(Driver::Local).await;
    let mut clients = world.clients().await;
    let (id, _events) = clients.active("scripted/scripted-large").await;
    let large = world.path(&format!("state/local/{id}/workspace/large"));
    // Random, so that packing takes its time.
    let mut random = File::open("/dev/urandom").map(|file| std::io::Read::take(file, 64 << 20)).expect("there is randomness");
    std::io::copy(&mut random, &mut File::create(large).expect("the folder is ours")).expect("there is room");
    std::fs::create_dir(world.path("saved")).expect("the folder is ours");

    let mut command = tokio::process::Command::from(world.command("openagent"));
    command
        .args(["export", &id, "-o", "saved/session.zip"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let exporting = command.spawn().expect("openagent is staged");
    let deadline = Instant::now() + PATIENCE;
    let partial = loop {
        let begun = stray_files(&world.path("saved")).into_iter().find(|path| path.metadata().is_ok_and(|about| about.len() > 0));
        if let Some(partial) = begun {
            break partial;
        }
        assert!(Instant::now() < deadline, "the export does not begin");
        tokio::task::yield_now().await;
    };
    assert_ne!(partial, world.path("saved/session.zip"), "what is not whole does not have the name");
    world.kill().await;
    let said = exporting.wait_with_output().await.expect("it is our child");
    let words = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{words}");
    assert!(words.starts_with("error: ") && !words.contains("panicked"), "{words}");
    assert_eq!(stray_files(&world.path("saved")), [] as [PathBuf; 0], "nothing half is left");

    world.start().await;
    let whole = export(&world, &id, "saved/session.zip").await;
    assert_eq!(whole.workspace()["large"].len(), 64 << 20);
    world.end().await;
}
