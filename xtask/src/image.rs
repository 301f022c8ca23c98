//! The session image: assembles the build context, builds with the engine's own builder (the classic one too), and skips
//! all of it while the inputs are the same.
//!
//! Invariant: an image named `openagent-agent:<hash>` was built from exactly the inputs with that hash. `latest` (release
//! sidecar) and `debug` (debug sidecar, for the tests) point to the newest of their kind, so that running the tests never
//! changes what the user's sessions start from.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::base::{self, Base};
use crate::build::{self, Profile};
use crate::opencode::Program;
use crate::paths::Paths;
use crate::setup::{self, Need};
use crate::{digest, engine, process, term};

const REPOSITORY: &str = "openagent-agent";
const INPUTS_LABEL: &str = "dev.openagent.inputs";
/// Mostly apt in the first layer.
const BUILD_LIMIT: Duration = Duration::from_secs(1_800);
/// Images by hash that are kept, so that changing between branches and profiles does not rebuild.
const KEEP_NEWEST: usize = 6;
/// Bytes of the hash that become the tag.
const HASH_BYTES: usize = 8;
/// The engine passes these to build steps by itself if asked, and keeps them out of the image's history.
const PROXY_VARIABLES: [&str; 6] = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"];

/// `cargo xtask image`.
pub fn command(paths: &Paths, profile: Profile, fresh: bool) -> Result<()> {
    let ready = setup::setup(paths, Need::Image)?;
    let sidecar = build::sidecar(paths, profile)?;
    ensure(paths, profile, &sidecar, &ready.opencode, fresh).map(|_| ())
}

/// Makes sure that the image of a profile is there and made from these inputs; returns its name.
pub fn ensure(paths: &Paths, profile: Profile, sidecar: &Path, opencode: &Program, fresh: bool) -> Result<String> {
    fs::create_dir_all(paths.own()).with_context(|| format!("create {}", paths.own().display()))?;
    let lock = File::create(paths.own().join("image.lock")).context("create the lock for image builds")?;
    lock.lock().context("wait for another image build")?;

    let base = base::ensure(paths, fresh)?;
    let dockerfile = paths.root.join("docker/Dockerfile");
    let hash = hash_of(&[
        ("Dockerfile", &digest::sha256_hex(&dockerfile)?),
        ("sidecar", &digest::sha256_hex(sidecar)?),
        ("opencode", &opencode.sha256),
        ("opencode version", &opencode.version),
        ("base image", &base.id),
    ]);
    let by_hash = format!("{REPOSITORY}:{hash}");
    let by_profile = format!("{REPOSITORY}:{}", if profile == Profile::Release { "latest" } else { "debug" });

    if !fresh && engine::image_id(&by_hash)?.is_some() {
        engine::ask(&["tag", &by_hash, &by_profile])?;
        term::note(&format!("image {by_profile} is up to date ({hash})"));
        return Ok(by_profile);
    }
    let context = assemble(paths, &[("Dockerfile", &dockerfile), ("opencode", &opencode.path), ("openagent-sidecar", sidecar)])?;
    build(paths, &context, &base, opencode, &hash, &[&by_hash, &by_profile], fresh)?;
    prune()?;
    Ok(by_profile)
}

/// A folder with nothing but the build's inputs. OpenCode is linked rather than copied where that is possible.
fn assemble(paths: &Paths, files: &[(&str, &Path)]) -> Result<PathBuf> {
    let context = paths.target.join("image-context");
    if context.exists() {
        fs::remove_dir_all(&context).with_context(|| format!("clear {}", context.display()))?;
    }
    fs::create_dir_all(&context).with_context(|| format!("create {}", context.display()))?;
    for (name, source) in files {
        let target = context.join(name);
        if fs::hard_link(source, &target).is_err() {
            fs::copy(source, &target).with_context(|| format!("copy {}", source.display()))?;
        }
    }
    Ok(context)
}

fn build(paths: &Paths, context: &Path, base: &Base, opencode: &Program, hash: &str, names: &[&str], fresh: bool) -> Result<()> {
    let mut build = engine::docker();
    build.arg("build").args(["--build-arg", &format!("BASE_IMAGE={}", base.name)]);
    build.args(["--build-arg", &format!("OPENCODE_VERSION={}", opencode.version)]);
    build.args(["--label", &format!("{INPUTS_LABEL}={hash}")]);
    for variable in PROXY_VARIABLES.iter().filter(|variable| std::env::var_os(variable).is_some()) {
        build.args(["--build-arg", variable]);
    }
    for name in names {
        build.args(["--tag", name]);
    }
    if fresh {
        build.arg("--no-cache");
    }
    build.arg(context);
    process::quiet(&format!("build the image {} ({hash})", names.join(", ")), &paths.log("image"), BUILD_LIMIT, build)
}

/// Removes the oldest images by hash. The engine keeps those that a container uses, which is why refusals are fine.
fn prune() -> Result<()> {
    let format = "{{.Tag}}";
    let tags = engine::ask(&["image", "ls", REPOSITORY, "--format", format])?;
    for tag in outdated(&tags) {
        let _refused = engine::ask(&["image", "rm", &format!("{REPOSITORY}:{tag}")]);
    }
    Ok(())
}

/// Tags that are hashes, beyond the newest; the engine lists the newest first.
fn outdated(tags: &str) -> Vec<&str> {
    let is_hash = |tag: &&str| tag.len() == 2 * HASH_BYTES && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    tags.lines().filter(is_hash).skip(KEEP_NEWEST).collect()
}

/// One hash over named digests; names and lengths keep one input from passing for another.
fn hash_of(inputs: &[(&str, &str)]) -> String {
    let mut hasher = Sha256::new();
    for text in inputs.iter().flat_map(|(name, digest)| [name, digest]) {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    hex::encode(&hasher.finalize()[..HASH_BYTES])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_hash_changes_with_every_input_and_with_nothing_else() {
        let inputs = [("Dockerfile", "aa"), ("sidecar", "bb"), ("base image", "cc")];
        let hash = hash_of(&inputs);
        assert_eq!(hash.len(), 2 * HASH_BYTES);
        assert_eq!(hash, hash_of(&inputs));
        for changed in 0..inputs.len() {
            let mut other = inputs;
            other[changed].1 = "dd";
            assert_ne!(hash, hash_of(&other));
        }
        assert_ne!(hash_of(&[("a", "bc")]), hash_of(&[("ab", "c")]));
    }

    #[test]
    fn only_old_images_by_hash_are_pruned() {
        let hashes: Vec<String> = (0..9).map(|number| format!("{number:016x}")).collect();
        let listing = format!("latest\n{}\ndebug\nmine\n", hashes.join("\n"));
        assert_eq!(outdated(&listing), &hashes[KEEP_NEWEST..]);
    }

    #[test]
    fn the_context_holds_the_inputs_and_nothing_older() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_path_buf();
        let paths = Paths { root: root.clone(), target: root.join("target"), data: root.join("data") };
        let file = root.join("file");
        fs::write(&file, "content").unwrap();
        fs::create_dir_all(paths.target.join("image-context")).unwrap();
        fs::write(paths.target.join("image-context/old"), "old").unwrap();
        let context = assemble(&paths, &[("Dockerfile", &file)]).unwrap();
        assert_eq!(fs::read_dir(&context).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(context.join("Dockerfile")).unwrap(), "content");
    }
}
