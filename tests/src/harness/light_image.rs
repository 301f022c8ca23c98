//! The agent's image with the light stand-in in the place of OpenCode: a real engine, real containers, the real sidecar, and a start in a fraction of the time.
//!
//! Made at the machine's engine in about a second. The stand-in is the program that `cargo` built for this machine: its C library must not be newer than the image's,
//! which is tried when the image is made. Dropped, the image is removed.

use std::sync::atomic::{AtomicU32, Ordering};

use bollard::Docker;
use bollard::models::{ContainerConfig, ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder,
    StartContainerOptions, UploadToContainerOptionsBuilder, WaitContainerOptions,
};
use futures::StreamExt;

use super::PATIENCE;
use super::client::within;
use super::own_engine::image;

/// Repository of such images.
const REPOSITORY: &str = "openagent-test-light";

/// Where the agent's program is in the image.
const FOLDER: &str = "/usr/local/bin";

/// The image.
pub struct LightImage {
    engine: Docker,
    name: String,
}

impl LightImage {
    /// Makes it from the image under test.
    ///
    /// # Panics
    /// When the engine does not make it, or the stand-in does not run in it.
    pub async fn make() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let engine = Docker::connect_with_defaults().expect("the engine is there");
        let tag = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let made = Self { engine, name: format!("{REPOSITORY}:{tag}") };
        let from = made.container(&image(), &[]).await;
        let mut header = tar::Header::new_gnu();
        let program = std::fs::read(super::stand_in_agent()).expect("the stand-in can be read");
        header.set_size(program.len() as u64);
        header.set_mode(0o755);
        let mut archive = tar::Builder::new(vec![]);
        archive.append_data(&mut header, "opencode", program.as_slice()).expect("memory can be written");
        let archive = archive.into_inner().expect("memory can be written");
        let upload = UploadToContainerOptionsBuilder::default().path(FOLDER).build();
        made.engine.upload_to_container(&from, Some(upload), bollard::body_full(archive.into())).await.expect("the engine takes it");
        let commit = CommitContainerOptionsBuilder::default().container(&from).repo(REPOSITORY).tag(&tag).pause(false).build();
        made.engine.commit_container(commit, ContainerConfig::default()).await.expect("the engine makes the image");
        made.remove(&from).await;

        let tried = made.container(&made.name, &["opencode", "--version"]).await;
        made.engine.start_container(&tried, None::<StartContainerOptions>).await.expect("the engine starts it");
        let mut ends = Box::pin(made.engine.wait_container(&tried, None::<WaitContainerOptions>));
        let ended = within("the stand-in in a container", PATIENCE, ends.next()).await;
        let runs = matches!(&ended, Some(Ok(ended)) if ended.status_code == 0);
        drop(ends);
        made.remove(&tried).await;
        assert!(runs, "the stand-in does not run in the image ({ended:?}): this machine's C library may be newer than the image's");
        made
    }

    /// Its name, for `OPENAGENT_IMAGE`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    async fn container(&self, image: &str, command: &[&str]) -> String {
        let words = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()).filter(|words| !words.is_empty());
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: words(command),
            host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..Default::default() }),
            ..Default::default()
        };
        let options = CreateContainerOptionsBuilder::default().build();
        self.engine.create_container(Some(options), body).await.expect("the engine has the image").id
    }

    async fn remove(&self, container: &str) {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        self.engine.remove_container(container, Some(options)).await.expect("the engine removes it");
    }
}

impl Drop for LightImage {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        // The test's own runtime cannot be waited on from here.
        let removing = std::thread::spawn(move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let options = RemoveImageOptionsBuilder::default().force(true).build();
            runtime.block_on(async { Docker::connect_with_defaults()?.remove_image(&name, Some(options), None).await })?;
            Ok(())
        });
        match removing.join() {
            Ok(Ok(())) => {}
            other => eprintln!("a light image could not be removed: {other:?}"),
        }
    }
}
