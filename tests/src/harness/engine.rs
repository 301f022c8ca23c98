//! A session's container as the engine has it: commands in it as any user, its processes, and what the engine tells of it.
//!
//! This is the view of somebody who is root beside OpenAgent, not of a user of it: tests look here at what must hold inside.

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ExecConfig, HostConfig, Mount, MountType};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, StartContainerOptions, UploadToContainerOptionsBuilder,
};
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

use super::PATIENCE;
use super::client::within;
use super::leak::{Needles, SEARCHER};

/// The user that every process of the agent has.
pub const AGENT: &str = "1000";

/// The user that the image reserves and nothing uses yet: neither the agent nor root.
pub const STRANGER: &str = "990";

/// Root of the container, which is not root of the machine.
pub const ROOT: &str = "0";

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i64,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Standard output without the last line break of a command that succeeded.
    ///
    /// # Panics
    /// When it failed.
    #[must_use]
    pub fn text(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        self.out.trim_end()
    }
}

/// What a search inside a container found.
#[derive(Debug)]
pub struct Search {
    /// Forms and places.
    pub finds: Vec<String>,
    /// How many bytes were looked at.
    pub read: u64,
}

/// The container of a session that runs.
pub struct Container {
    client: Docker,
    /// Its id.
    pub id: String,
}

impl Container {
    /// The container of a session.
    ///
    /// # Panics
    /// When there is not exactly one, or the engine does not answer.
    pub async fn of(session: &str) -> Self {
        Self::at(Docker::connect_with_defaults().expect("the engine is there"), session).await
    }

    /// The container of a session at an engine.
    ///
    /// # Panics
    /// When there is not exactly one, or the engine does not answer.
    pub async fn at(client: Docker, session: &str) -> Self {
        let filters = std::collections::HashMap::from([("label", vec![format!("dev.openagent.session={session}")])]);
        let options = ListContainersOptionsBuilder::default().filters(&filters).build();
        let found = client.list_containers(Some(options)).await.expect("the engine answers");
        let [one] = found.as_slice() else { panic!("one container is expected: {found:?}") };
        let id = one.id.clone().expect("containers have ids");
        Self { client, id }
    }

    /// Everything that the engine tells of it.
    ///
    /// # Panics
    /// When it is gone.
    pub async fn inspect(&self) -> ContainerInspectResponse {
        self.client.inspect_container(&self.id, None::<InspectContainerOptions>).await.expect("the container is there")
    }

    /// Runs a `bash` script in it as a user.
    ///
    /// # Panics
    /// When the engine does not, or the script does not end.
    pub async fn run(&self, user: &str, script: &str) -> Said {
        self.exec(user, &["bash", "-c", script], "").await
    }

    /// Runs a command in it as a user, with standard input, and waits for its end.
    ///
    /// # Panics
    /// When the engine does not, or the command does not end.
    pub async fn exec(&self, user: &str, command: &[&str], input: &str) -> Said {
        within("a command in a container", PATIENCE, exec(&self.client, &self.id, user, command, input)).await
    }

    /// Starts a command in it as a user and goes on.
    ///
    /// # Panics
    /// When the engine does not.
    pub async fn spawn(&self, user: &str, command: &[&str]) {
        let config = ExecConfig {
            user: Some(user.to_owned()),
            cmd: Some(command.iter().map(|&word| word.to_owned()).collect()),
            ..Default::default()
        };
        let made = self.client.create_exec(&self.id, config).await.expect("the engine makes it");
        let options = StartExecOptions { detach: true, ..Default::default() };
        self.client.start_exec(&made.id, Some(options)).await.expect("the engine starts it");
    }

    /// Runs a script again and again until it succeeds, and gives what it said.
    ///
    /// # Panics
    /// When it never does.
    pub async fn until(&self, user: &str, script: &str) -> String {
        within(script, PATIENCE, async {
            loop {
                let said = self.run(user, script).await;
                if said.code == 0 {
                    return said.out;
                }
            }
        })
        .await
    }

    /// Puts a program into a folder of a volume.
    ///
    /// # Panics
    /// When the engine does not take it.
    pub async fn put_program(&self, folder: &str, name: &str, program: Vec<u8>) {
        let mut header = tar::Header::new_gnu();
        header.set_size(program.len() as u64);
        header.set_mode(0o755);
        let mut archive = tar::Builder::new(vec![]);
        archive.append_data(&mut header, name, program.as_slice()).expect("memory can be written");
        let archive = archive.into_inner().expect("memory can be written");
        let options = UploadToContainerOptionsBuilder::default().path(folder).build();
        self.client.upload_to_container(&self.id, Some(options), bollard::body_full(archive.into())).await.expect("the engine takes it");
    }

    /// Everything that its main process said.
    ///
    /// # Panics
    /// When the engine does not answer.
    pub async fn logs(&self) -> String {
        let mut frames = self.client.logs(&self.id, Some(LogsOptionsBuilder::default().stdout(true).stderr(true).build()));
        let mut text = String::new();
        while let Some(frame) = frames.next().await {
            text.push_str(&frame.expect("the engine answers").to_string());
        }
        text
    }

    /// What differs from the image: paths.
    ///
    /// # Panics
    /// When the engine does not answer.
    pub async fn changes(&self) -> Vec<String> {
        let changes = self.client.container_changes(&self.id).await.expect("the engine answers");
        changes.unwrap_or_default().into_iter().map(|change| change.path).collect()
    }

    /// Looks for a secret from the inside with the rights of `user`: `what` is what the searcher is told.
    ///
    /// # Panics
    /// When the search cannot be made.
    pub async fn search(&self, user: &str, needles: &Needles, what: &[&str]) -> Search {
        searched(&self.exec(user, &[&["perl", "-e", SEARCHER], what].concat(), &needles.for_searcher()).await)
    }

    /// A second container that sees this one's processes and volumes with every right over them: what root of the machine sees.
    ///
    /// # Panics
    /// When the engine does not make it.
    pub async fn inspector(&self) -> Inspector {
        let about = self.inspect().await;
        let volume = |mount: bollard::models::MountPoint| {
            (mount.typ.as_deref() == Some("volume")).then(|| Mount {
                typ: Some(MountType::VOLUME),
                source: mount.name,
                target: mount.destination,
                ..Default::default()
            })
        };
        let host = HostConfig {
            auto_remove: Some(true),
            network_mode: Some("none".to_owned()),
            pid_mode: Some(format!("container:{}", self.id)),
            cap_add: Some(vec!["SYS_PTRACE".to_owned()]),
            mounts: Some(about.mounts.unwrap_or_default().into_iter().filter_map(volume).collect()),
            ..Default::default()
        };
        let body = ContainerCreateBody {
            image: about.image,
            user: Some(ROOT.to_owned()),
            entrypoint: Some(["tail", "-f", "/dev/null"].map(str::to_owned).to_vec()),
            host_config: Some(host),
            ..Default::default()
        };
        let options = CreateContainerOptionsBuilder::default().build();
        let made = self.client.create_container(Some(options), body).await.expect("the engine makes the inspector");
        self.client.start_container(&made.id, None::<StartContainerOptions>).await.expect("the engine starts the inspector");
        Inspector { client: self.client.clone(), id: made.id }
    }
}

/// Sees everything in a session's container. Dropped, it is removed.
pub struct Inspector {
    client: Docker,
    id: String,
}

impl Inspector {
    /// Looks for a secret; `what` is what the searcher is told.
    ///
    /// # Panics
    /// When the search cannot be made.
    pub async fn search(&self, needles: &Needles, what: &[&str]) -> Search {
        let command = [&["perl", "-e", SEARCHER], what].concat();
        let input = needles.for_searcher();
        let search = exec(&self.client, &self.id, ROOT, &command, &input);
        searched(&within("a search as root", PATIENCE, search).await)
    }
}

/// It holds the session's volumes, so a test that failed must not keep it: the session could not be removed.
impl Drop for Inspector {
    fn drop(&mut self) {
        let id = std::mem::take(&mut self.id);
        // The test's own runtime cannot be waited on from here.
        let removing = std::thread::spawn(move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let options = RemoveContainerOptionsBuilder::default().force(true).build();
            Ok(runtime.block_on(async { Docker::connect_with_defaults()?.remove_container(&id, Some(options)).await })?)
        });
        match removing.join() {
            Ok(Ok(())) => {}
            other => eprintln!("an inspector could not be removed: {other:?}"),
        }
    }
}

async fn exec(client: &Docker, container: &str, user: &str, command: &[&str], input: &str) -> Said {
    let config = ExecConfig {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        user: Some(user.to_owned()),
        cmd: Some(command.iter().map(|&word| word.to_owned()).collect()),
        ..Default::default()
    };
    let made = client.create_exec(container, config).await.expect("the engine makes it");
    let started = client.start_exec(&made.id, None).await.expect("the engine starts it");
    let StartExecResults::Attached { mut output, input: mut stdin } = started else { panic!("it is attached") };
    // A command that reads no input may be over.
    let _ = stdin.write_all(input.as_bytes()).await;
    let _ = stdin.shutdown().await;
    let (mut out, mut err) = (vec![], vec![]);
    while let Some(frame) = output.next().await {
        match frame.expect("the engine does not break off") {
            LogOutput::StdErr { message } => err.extend_from_slice(&message),
            other => out.extend_from_slice(other.as_ref()),
        }
    }
    let code = client.inspect_exec(&made.id).await.expect("the engine knows it").exit_code.expect("it has ended");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { code, out: text(out), err: text(err) }
}

fn searched(said: &Said) -> Search {
    let lines: Vec<&str> = said.text().lines().collect();
    let (read, finds) = lines.split_last().unwrap_or_else(|| panic!("the search said nothing: {said:?}"));
    let read = read.strip_prefix("read ").and_then(|read| read.parse().ok()).unwrap_or_else(|| panic!("the search broke off: {said:?}"));
    Search { finds: finds.iter().map(|find| (*find).to_owned()).collect(), read }
}
