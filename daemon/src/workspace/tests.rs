//! What of a user's folder goes into a session, and what does not.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;

use futures::StreamExt;

use super::*;

const NO_BOUNDS: Bounds = Bounds { entries: u64::MAX, bytes: u64::MAX };

fn copy_of(folder: &Path) -> WorkspaceSource {
    WorkspaceSource::Copy { path: folder.to_str().unwrap().to_owned() }
}

fn seed(source: &WorkspaceSource, bounds: Bounds) -> Result<Vec<u8>, SeedError> {
    let mut archive = vec![];
    write_seed(source, Ownership::Container(1000), bounds, &mut archive).map(|()| archive)
}

/// Path to mode and content, or to the target of a link.
fn entries(archive: &[u8]) -> BTreeMap<String, (u32, String)> {
    let mut archive = tar::Archive::new(archive);
    let read = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (1000, 1000));
        let mode = header.mode().unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut content = entry.link_name().unwrap().map_or_else(String::new, |target| format!("-> {}", target.display()));
        entry.read_to_string(&mut content).unwrap();
        (path, (mode, content))
    };
    archive.entries().unwrap().map(read).collect()
}

#[test]
fn ignored_files_stay_out_and_the_repository_comes_whole() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for (path, content) in [
        ("src/main.rs", "fn main() {}"),
        ("target/big.o", "x"),
        ("notes.log", "x"),
        (".env", "A=1"),
        (".git/HEAD", "ref: refs/heads/main"),
        (".git/logs/trace.log", "kept"),
        (".git/index.lock", ""),
        (".gitignore", "target/\n*.log\n"),
    ] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    fs::set_permissions(root.join("src/main.rs"), fs::Permissions::from_mode(0o500)).unwrap();
    symlink("/etc/passwd", root.join("outside")).unwrap();
    let long = "d".repeat(120);
    fs::write(root.join(&long), "long").unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());

    let found = entries(&seed(&copy_of(root), NO_BOUNDS).unwrap());
    let names: BTreeSet<&str> = found.keys().map(|path| path.trim_start_matches("./").trim_end_matches('/')).collect();
    let expected = [".env", ".git", ".git/HEAD", ".git/logs", ".git/logs/trace.log", ".gitignore", &long, "outside", "src", "src/main.rs"];
    assert_eq!(names, BTreeSet::from(expected));
    let get = |name: &str| found.iter().find(|(path, _)| path.trim_matches(['.', '/']) == name).unwrap().1;
    assert_eq!(get("src"), &(0o2775, String::new()));
    assert_eq!(get("src/main.rs"), &(0o770, "fn main() {}".to_owned()));
    assert_eq!(get("outside").1, "-> /etc/passwd");
    assert_eq!(get(&long).1, "long");
}

#[test]
fn bounds_are_kept_and_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), vec![b'x'; 1000]).unwrap();
    fs::write(folder.path().join("b"), "x").unwrap();
    let source = copy_of(folder.path());
    assert!(matches!(seed(&source, Bounds { entries: 1, ..NO_BOUNDS }), Err(SeedError::TooMany { .. })));
    assert!(matches!(seed(&source, Bounds { bytes: 1000, ..NO_BOUNDS }), Err(SeedError::TooLarge { .. })));
    assert!(seed(&source, Bounds { entries: 2, bytes: 1001 }).is_ok());
}

#[test]
fn what_is_not_a_folder_is_refused_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file, folder.path().join("missing"), PathBuf::from("relative")] {
        let fault = Fault::from(&seed(&copy_of(&path), NO_BOUNDS).unwrap_err());
        assert_eq!(fault.code, "WORKSPACE_SOURCE");
        assert!(fault.message.contains(path.to_str().unwrap()) && !fault.hint.is_empty(), "{fault:?}");
    }
}

#[test]
fn a_file_that_changes_size_while_it_is_read_does_not_tear_the_archive() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "12345").unwrap();
    let read = |promised: u64| {
        let mut text = String::new();
        Exactly { file: File::open(&path).unwrap(), left: promised, failed: None }.read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(read(3), "123");
    assert_eq!(read(8), "12345\0\0\0");
}

#[test]
fn an_empty_workspace_is_a_git_repository() {
    let folder = tempfile::tempdir().unwrap();
    unpack(seed(&WorkspaceSource::Empty, NO_BOUNDS).unwrap().as_slice(), folder.path()).unwrap();
    let status = std::process::Command::new("git").arg("-C").arg(folder.path()).args(["status", "--porcelain=v2", "--branch"]).output();
    let status = String::from_utf8(status.unwrap().stdout).unwrap();
    assert!(status.contains("# branch.head main"), "{status}");
}

#[tokio::test]
async fn a_seed_larger_than_the_queue_arrives_whole_and_a_dropped_reader_ends_its_writer() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("big"), vec![7; CHUNK_BYTES * (CHUNKS_QUEUED_MAX + 4)]).unwrap();
    let (mut chunks, writing) = stream_seed(copy_of(folder.path()), Ownership::Kept);
    let mut archive = vec![];
    while let Some(chunk) = chunks.next().await {
        archive.extend_from_slice(&chunk.unwrap());
    }
    writing.await.unwrap().unwrap();
    let target = tempfile::tempdir().unwrap();
    unpack(archive.as_slice(), target.path()).unwrap();
    assert_eq!(fs::read(target.path().join("big")).unwrap().len(), CHUNK_BYTES * (CHUNKS_QUEUED_MAX + 4));

    let (chunks, writing) = stream_seed(copy_of(folder.path()), Ownership::Kept);
    drop(chunks);
    assert!(matches!(writing.await.unwrap(), Err(SeedError::NotTaken(_))));
}
