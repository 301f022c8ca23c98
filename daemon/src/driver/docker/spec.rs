//! What a session's container is made of, as data. Nothing here talks to an engine.
//!
//! Invariants: no network, no privilege, no capability but SETUID, SETGID and KILL (the sidecar starts and ends processes of the agent's user),
//! a root file system that cannot be written, and no published port.

use std::collections::HashMap;
use std::path::PathBuf;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountTmpfsOptions, MountType, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum, VolumeCreateRequest,
};
use openagent_core::id::{InstanceId, SessionId};
use openagent_proto::sidecar::env;

use super::super::{InstanceSpec, VOLUMES};
use super::DockerOptions;
use super::engine::Facts;

/// Labels on everything that is made, and their meaning: the session, the instance, and the daemon whose it is.
pub(super) const LABEL_SESSION: &str = "dev.openagent.session";
pub(super) const LABEL_INSTANCE: &str = "dev.openagent.instance";
pub(super) const LABEL_STATE: &str = "dev.openagent.state";

/// Set on containers that only read a workspace.
pub(super) const LABEL_READER: &str = "dev.openagent.reader";

/// User and group of the agent in the image.
pub(super) const AGENT_ID: u64 = 1000;

/// The sidecar in the image.
pub(super) const SIDECAR: &str = "/usr/local/bin/openagent-sidecar";

/// The workspace in the container.
pub(super) const WORKSPACE: &str = "/workspace";

const LINK: &str = "/run/openagent/link";

/// Enough for a socket's directory entry.
const LINK_TMPFS_BYTES: i64 = 64 * 1024;

/// Seconds that the engine waits after SIGTERM when somebody else stops the container; the sidecar ends its children within it.
const STOP_SECONDS: i64 = 10;

/// How the sidecar's socket is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    /// This folder of the host is mounted.
    Folder(PathBuf),
    /// It stays inside; the `exec` bridge reaches it.
    Inside,
}

pub(super) fn container_name(instance: &InstanceId) -> String {
    format!("openagent-{instance}")
}

pub(super) fn volume_name(session: &SessionId, volume: &str) -> String {
    format!("openagent-{session}-{volume}")
}

fn labels(state: &str, session: &SessionId, instance: Option<&InstanceId>) -> HashMap<String, String> {
    let mut labels = HashMap::from([(LABEL_STATE.to_owned(), state.to_owned()), (LABEL_SESSION.to_owned(), session.as_str().to_owned())]);
    if let Some(instance) = instance {
        labels.insert(LABEL_INSTANCE.to_owned(), instance.as_str().to_owned());
    }
    labels
}

pub(super) fn volume(state: &str, session: &SessionId, volume: &str) -> VolumeCreateRequest {
    VolumeCreateRequest { name: Some(volume_name(session, volume)), labels: Some(labels(state, session, None)), ..Default::default() }
}

fn volume_mount(session: &SessionId, (volume, path): (&str, &str)) -> Mount {
    Mount { typ: Some(MountType::VOLUME), source: Some(volume_name(session, volume)), target: Some(path.to_owned()), ..Default::default() }
}

/// The container of an instance.
pub(super) fn instance(options: &DockerOptions, spec: &InstanceSpec, link: Link, facts: &Facts) -> ContainerCreateBody {
    let mut mounts: Vec<Mount> = VOLUMES.into_iter().map(|volume| volume_mount(&spec.session, volume)).collect();
    mounts.push(match link {
        // Mounts, unlike binds, refuse a folder that does not exist, which is how a remote engine shows itself.
        Link::Folder(folder) => Mount {
            typ: Some(MountType::BIND),
            source: Some(folder.to_string_lossy().into_owned()),
            target: Some(LINK.to_owned()),
            ..Default::default()
        },
        Link::Inside => Mount {
            typ: Some(MountType::TMPFS),
            target: Some(LINK.to_owned()),
            tmpfs_options: Some(MountTmpfsOptions { mode: Some(0o777), size_bytes: Some(LINK_TMPFS_BYTES), ..Default::default() }),
            ..Default::default()
        },
    });
    let memory = i64::try_from(spec.limits.memory_bytes).unwrap_or(i64::MAX);
    let wanted = i64::from(spec.limits.cpu_millis) * 1_000_000;
    let environment = [
        (env::SESSION_ID, spec.session.as_str()),
        (env::TOKEN_SHA256, &spec.token_sha256),
        (env::LINK_DIR, LINK),
        (env::WORKSPACE_DIR, WORKSPACE),
        (env::STATE_DIR, "/var/lib/openagent"),
        (env::AGENT_HOME, "/home/agent"),
        (env::AGENT_UID, &AGENT_ID.to_string()),
        (env::OPENCODE, "/usr/local/bin/opencode"),
        (env::JOURNAL_MAX_BYTES, &options.journal_max_bytes.to_string()),
    ];
    let host = HostConfig {
        network_mode: Some("none".to_owned()),
        privileged: Some(false),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(["SETUID", "SETGID", "KILL"].map(str::to_owned).to_vec()),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        readonly_rootfs: Some(true),
        // `exec`: OpenCode unpacks a native library there, without which it has no terminals.
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), "exec,size=512m,mode=1777".to_owned())])),
        mounts: Some(mounts),
        memory: Some(memory),
        memory_swap: Some(memory),
        // More processors than the engine has would be refused.
        nano_cpus: Some(wanted.min(facts.cpus * 1_000_000_000)),
        pids_limit: Some(i64::from(spec.limits.pids)),
        ulimits: Some(vec![ResourcesUlimits { name: Some("core".to_owned()), soft: Some(0), hard: Some(0) }]),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some([("max-size", "1m"), ("max-file", "2")].map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        }),
        // The sidecar reaps, and the daemon decides what is started again.
        init: Some(false),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), ..Default::default() }),
        runtime: options.runtime.clone(),
        ..Default::default()
    };
    ContainerCreateBody {
        image: Some(options.image.clone()),
        hostname: Some("openagent".to_owned()),
        env: Some(environment.map(|(name, value)| format!("{name}={value}")).to_vec()),
        labels: Some(labels(&options.state_label, &spec.session, Some(&spec.instance))),
        stop_timeout: Some(STOP_SECONDS),
        host_config: Some(host),
        ..Default::default()
    }
}

/// A container that is never started, through which the engine reads a session's workspace.
pub(super) fn reader(image: &str, state: &str, session: &SessionId, reader: &InstanceId) -> ContainerCreateBody {
    let mut labels = labels(state, session, Some(reader));
    labels.insert(LABEL_READER.to_owned(), "true".to_owned());
    let host = HostConfig {
        network_mode: Some("none".to_owned()),
        mounts: Some(vec![volume_mount(session, ("workspace", WORKSPACE))]),
        ..Default::default()
    };
    ContainerCreateBody { image: Some(image.to_owned()), labels: Some(labels), host_config: Some(host), ..Default::default() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use openagent_core::config::LinkMode;
    use openagent_core::session::Limits;

    use super::*;

    fn facts() -> Facts {
        Facts {
            name: "Docker 1".into(),
            cpus: 1,
            same_kernel: true,
            default_runtime: "runc".into(),
            rootless: false,
            user_namespace: false,
        }
    }

    fn made(link: Link) -> ContainerCreateBody {
        let spec = InstanceSpec {
            session: "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            instance: "ins_01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            token_sha256: "ab".repeat(32),
            limits: Limits::default(),
        };
        let options = DockerOptions {
            endpoint: None,
            image: "image".into(),
            runtime: None,
            link_mode: LinkMode::Auto,
            runtime_dir: "/run".into(),
            state_label: "digest".into(),
            journal_max_bytes: 1 << 26,
        };
        instance(&options, &spec, link, &facts())
    }

    #[test]
    fn a_container_has_no_network_no_privilege_and_no_port() {
        let body = made(Link::Inside);
        assert!(body.exposed_ports.is_none());
        let host = body.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!((host.privileged, host.readonly_rootfs, host.init), (Some(false), Some(true), Some(false)));
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!(host.cap_add.unwrap(), ["SETUID", "SETGID", "KILL"]);
        assert_eq!(host.security_opt.unwrap(), ["no-new-privileges"]);
        assert!(host.port_bindings.is_none() && host.binds.is_none());
        assert_eq!((host.memory, host.nano_cpus), (host.memory_swap, Some(1_000_000_000)));
    }

    #[test]
    fn the_link_is_a_folder_of_the_host_or_stays_inside() {
        let kind = |link| made(link).host_config.unwrap().mounts.unwrap().pop().unwrap();
        let folder = kind(Link::Folder("/run/l/x".into()));
        assert_eq!((folder.typ, folder.source.as_deref()), (Some(MountType::BIND), Some("/run/l/x")));
        assert_eq!(kind(Link::Inside).tmpfs_options.unwrap().mode, Some(0o777));
    }
}
