//! The baseline: `opencode serve` itself, started by nothing but a shell or the engine, with the environment that the sidecar gives it and a
//! configuration of the same shape, so that both sides do the same work.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType, ResourcesUlimits};
use bollard::query_parameters::{LogsOptionsBuilder, RemoveContainerOptionsBuilder};
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use openagent_core::session::Limits;
use openagent_tests::harness::{PATIENCE, opencode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// What precedes the address on standard output, once the server answers.
const LISTENING: &str = "opencode server listening on ";

/// Where the server listens in a container.
const CONTAINER_PORT: u16 = 4096;

/// Same as the sidecar's: an empty configuration folder, a repository with a first commit.
const PREPARE: &str = r#"
set -eu
mkdir -p "$HOME/.config/opencode/node_modules"
printf '%s' '{"lockfileVersion":3,"packages":{"":{"dependencies":{"@opencode-ai/plugin":"1.18.33"}}}}' > "$HOME/.config/opencode/package-lock.json"
git init -q -b main
git -c user.name=bench -c user.email=bench@localhost commit -q --allow-empty -m start
exec "$0" serve --hostname 127.0.0.1 --port "$1"
"#;

const PASSWORD: &str = "bench";
const DIRECTORY: &str = "/workspace";

/// A connection to the engine that the environment names.
pub fn engine() -> Result<bollard::Docker> {
    bollard::Docker::connect_with_defaults().context("connect to the engine")
}

/// The image that sessions start from.
pub fn image() -> String {
    std::env::var("OPENAGENT_TEST_IMAGE").unwrap_or_else(|_| "openagent-agent:latest".to_owned())
}

/// The environment of the server: what the sidecar sets, and nothing else.
fn environment(home: &str, path: &str, base_url: &str) -> Vec<(&'static str, String)> {
    let model = |name: &str, reasoning: bool| {
        json!({ "name": name, "tool_call": true, "reasoning": reasoning, "limit": { "context": 200_000, "output": 8000 },
                "cost": { "input": 1.0, "output": 2.0, "cache_read": 0.1, "cache_write": 1.25 } })
    };
    let permission = json!({ "*": "ask", "bash": "ask", "edit": "ask", "read": "allow" });
    let config = json!({
        "$schema": "https://opencode.ai/config.json", "model": "scripted/scripted-large", "small_model": "scripted/scripted-small",
        "enabled_providers": ["scripted"], "share": "disabled", "autoupdate": false, "lsp": false, "formatter": false, "permission": permission,
        "provider": { "scripted": { "npm": "@ai-sdk/openai-compatible", "name": "scripted",
            "options": { "baseURL": base_url, "apiKey": openagent_tests::harness::CANARY },
            "models": { "scripted-large": model("scripted-large", true), "scripted-small": model("scripted-small", false) } } },
    });
    let mut environment = vec![
        ("HOME", home.to_owned()),
        ("PATH", path.to_owned()),
        ("USER", "agent".to_owned()),
        ("LOGNAME", "agent".to_owned()),
        ("SHELL", "/bin/bash".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TERM", "xterm-256color".to_owned()),
        ("OPENCODE_CONFIG_CONTENT", config.to_string()),
        ("OPENCODE_PERMISSION", permission.to_string()),
        ("OPENCODE_SERVER_PASSWORD", PASSWORD.to_owned()),
    ];
    let switches = [
        "OPENCODE_DISABLE_MODELS_FETCH",
        "OPENCODE_DISABLE_AUTOUPDATE",
        "OPENCODE_DISABLE_LSP_DOWNLOAD",
        "OPENCODE_DISABLE_SHARE",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS",
        "OPENCODE_DISABLE_PROJECT_CONFIG",
        "OPENCODE_PURE",
    ];
    environment.extend(switches.map(|name| (name, "1".to_owned())));
    environment
}

/// How a server is reached: its address, and the process in whose network that address is.
#[derive(Debug, Clone)]
pub struct Server {
    pub address: SocketAddr,
    pub namespace: Option<u32>,
    pub password: String,
}

impl Server {
    async fn connect(&self) -> Result<TcpStream> {
        let Some(pid) = self.namespace else { return TcpStream::connect(self.address).await.context("connect to OpenCode") };
        let (reply, replied) = oneshot::channel();
        let address = self.address;
        // A thread of its own, since it changes into the container's network and ends there. A socket stays in the network it was made in.
        std::thread::spawn(move || {
            let connect = || -> Result<std::net::TcpStream> {
                let network = std::fs::File::open(format!("/proc/{pid}/ns/net")).context("open the container's network")?;
                nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).context("enter the container's network")?;
                let stream = std::net::TcpStream::connect(address).context("connect to OpenCode")?;
                stream.set_nonblocking(true).context("prepare the connection")?;
                Ok(stream)
            };
            drop(reply.send(connect()));
        });
        let stream = replied.await.context("the connecting thread ended")??;
        TcpStream::from_std(stream).context("take the connection over")
    }

    async fn send(
        &self,
        connections: &mut JoinSet<()>,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<http::Response<Incoming>> {
        let stream = self.connect().await?;
        drop(stream.set_nodelay(true));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("speak HTTP")?;
        connections.spawn(async move { drop(connection.await) });
        let credentials = base64::engine::general_purpose::STANDARD.encode(format!("opencode:{}", self.password));
        let request = http::Request::builder().method(method).uri(path).header(http::header::HOST, "opencode");
        let request = request.header(http::header::AUTHORIZATION, format!("Basic {credentials}"));
        let request = request.header(http::header::CONTENT_TYPE, "application/json");
        let request = request.body(Full::new(body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()))))?;
        let response = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.context("OpenCode does not answer")??;
        ensure!(response.status().is_success(), "OpenCode answered {} to {path}", response.status());
        Ok(response)
    }

    /// Makes a conversation and hands a prompt over; returns once OpenCode has it.
    pub async fn prompt(&self, directory: &str, text: &str) -> Result<()> {
        let mut connections = JoinSet::new();
        let id = "ses_01KBQ9GMSE3M6Y8VH1E2C5WZRT";
        let body = json!({ "id": id, "location": { "directory": directory } });
        self.send(&mut connections, "POST", "/api/session", Some(&body)).await?.into_body().collect().await?;
        let body = json!({ "parts": [{ "type": "text", "text": text }], "agent": "build",
                           "model": { "providerID": "scripted", "modelID": "scripted-large" } });
        let path = format!("/session/{id}/prompt_async");
        self.send(&mut connections, "POST", &path, Some(&body)).await?.into_body().collect().await?;
        Ok(())
    }

    /// OpenCode's own events; `connections` holds the connection as long as they are read.
    pub async fn events(&self, connections: &mut JoinSet<()>) -> Result<Events> {
        let response = self.send(connections, "GET", "/global/event", None).await?;
        Ok(Events { body: response.into_body(), rest: Vec::new() })
    }
}

/// OpenCode's event stream, one JSON value an event.
pub struct Events {
    body: Incoming,
    rest: Vec<u8>,
}

impl Events {
    /// The next event.
    pub async fn next(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.rest.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.rest.drain(..end + 2).collect();
                let data = event.strip_prefix(b"data: ").context("an event of another form")?;
                return serde_json::from_slice(data).context("an event that is no JSON");
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.context("OpenCode is silent")?;
            let frame = frame.context("OpenCode's events ended")??;
            if let Ok(data) = frame.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }
}

/// One start as a child process up to an accepted prompt; its end is not timed.
pub async fn start_local(base_url: &str) -> Result<Duration> {
    let folder = tempfile::tempdir().context("make a folder")?;
    let (home, work) = (folder.path().join("home"), folder.path().join("work"));
    let began = std::time::Instant::now();
    for new in [&home, &work] {
        std::fs::create_dir(new).with_context(|| format!("create {}", new.display()))?;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", PREPARE]).arg(opencode()).arg("0").env_clear().envs(environment(&home.display().to_string(), &path, base_url));
    command.current_dir(&work).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().context("start a shell")?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).context("the child has no id")?;
    let taken = accepted(&mut child, &work).await.map(|()| began.elapsed());
    // It may have ended by itself.
    let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::SIGKILL);
    drop(child.wait().await);
    taken
}

async fn accepted(child: &mut tokio::process::Child, work: &Path) -> Result<()> {
    let mut lines = BufReader::new(child.stdout.take().context("its output is piped")?).lines();
    let address = loop {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.context("OpenCode is not ready in time")??;
        let line = line.context("OpenCode ended before it was ready")?;
        if let Some(address) = line.strip_prefix(LISTENING) {
            break address.trim().trim_start_matches("http://").trim_end_matches('/').parse().context("OpenCode's address")?;
        }
    };
    let server = Server { address, namespace: None, password: PASSWORD.to_owned() };
    server.prompt(&work.display().to_string(), "#plain").await
}

/// One start in a container with the limits and the hardening of a session's, up to an accepted prompt; its removal is not timed.
pub async fn start_docker(engine: &bollard::Docker, cpus: i64) -> Result<Duration> {
    let began = std::time::Instant::now();
    let made = engine.create_container(None, container(cpus)).await.context("create the container")?;
    let taken = accepted_in_container(engine, &made.id).await.map(|()| began.elapsed());
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    engine.remove_container(&made.id, Some(options)).await.context("remove the container")?;
    taken
}

async fn accepted_in_container(engine: &bollard::Docker, id: &str) -> Result<()> {
    engine.start_container(id, None).await.context("start the container")?;
    // The same sign that the sidecar waits for: asking the port too early costs more than it saves.
    let options = LogsOptionsBuilder::default().follow(true).stdout(true).stderr(true).build();
    let mut output = std::pin::pin!(engine.logs(id, Some(options)));
    let mut said = String::new();
    while !said.contains(LISTENING) {
        let next = tokio::time::timeout(PATIENCE, output.next()).await.context("OpenCode is not ready in time")?;
        let Some(piece) = next else { bail!("OpenCode ended before it was ready: {said}") };
        said.push_str(&piece.context("read its output")?.to_string());
    }
    let inspected = engine.inspect_container(id, None).await.context("inspect the container")?;
    let pid = inspected.state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok()).context("it has no process")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, CONTAINER_PORT));
    Server { address, namespace: Some(pid), password: PASSWORD.to_owned() }.prompt(DIRECTORY, "#plain").await
}

fn container(cpus: i64) -> ContainerCreateBody {
    let limits = Limits::default();
    let memory = i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX);
    let volume = |path: &str| Mount { typ: Some(MountType::VOLUME), target: Some(path.to_owned()), ..Default::default() };
    let host = HostConfig {
        network_mode: Some("none".to_owned()),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        readonly_rootfs: Some(true),
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), "exec,size=512m,mode=1777".to_owned())])),
        mounts: Some(vec![volume(DIRECTORY), volume("/home/agent")]),
        memory: Some(memory),
        memory_swap: Some(memory),
        nano_cpus: Some((i64::from(limits.cpu_millis) * 1_000_000).min(cpus * 1_000_000_000)),
        pids_limit: Some(i64::from(limits.pids)),
        ulimits: Some(vec![ResourcesUlimits { name: Some("core".to_owned()), soft: Some(0), hard: Some(0) }]),
        ..Default::default()
    };
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    // Nothing answers there: a container without a network has no model, and what is timed ends before one is asked.
    let environment = environment("/home/agent", path, "http://127.0.0.1:9/v1");
    ContainerCreateBody {
        image: Some(image()),
        user: Some("1000:1000".to_owned()),
        working_dir: Some(DIRECTORY.to_owned()),
        entrypoint: Some(["/bin/sh", "-c", PREPARE, "/usr/local/bin/opencode"].map(str::to_owned).to_vec()),
        cmd: Some(vec![CONTAINER_PORT.to_string()]),
        env: Some(environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect()),
        host_config: Some(host),
        ..Default::default()
    }
}
