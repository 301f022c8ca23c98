//! Contract of `DaemonService`, of gRPC health and reflection, and of the socket itself.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use openagent_proto::{PROTOCOL, v1};
use openagent_tests::harness::client::within;
use openagent_tests::harness::{Driver, PATIENCE, World, copy_program, programs};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

const SERVICES: [&str; 8] = [
    "openagent.v1.DaemonService",
    "openagent.v1.EventService",
    "openagent.v1.PermissionService",
    "openagent.v1.ProviderService",
    "openagent.v1.SessionService",
    "openagent.v1.TerminalService",
    "openagent.v1.UsageService",
    "openagent.v1.VaultService",
];

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

async fn health(world: &World, service: &str) -> Result<HealthCheckResponse, tonic::Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(world.clients().await.channel).check(request).await.map(tonic::Response::into_inner)
}

async fn reflect(world: &World, asked: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(asked) };
    let mut client = ServerReflectionClient::new(world.clients().await.channel);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.expect("reflection is served").into_inner();
    let answer: ServerReflectionResponse = answers.message().await.expect("the stream does not break").expect("it is answered");
    answer.message_response.expect("an answer is never empty")
}

#[tokio::test]
async fn the_status_tells_who_is_there_and_how_it_is_doing() {
    let world = World::started(Driver::Local).await;
    let mut clients = world.clients().await;
    let status = clients.daemon.get_status(v1::GetStatusRequest {}).await.expect("it answers").into_inner();
    assert_eq!(status.protocol, PROTOCOL);
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(status.pid, i64::from(world.daemon_pid()));
    assert_eq!(status.socket, world.socket().display().to_string());
    assert_eq!(status.state_directory, world.path("state").display().to_string());
    assert!(status.started_at.is_some());
    assert!(status.memory_bytes > 1024 * 1024, "{}", status.memory_bytes);
    assert_eq!((status.sessions, status.running), (0, 0));
    let driver = status.driver.expect("there is a driver");
    assert_eq!(driver.name, "local");
    assert!(driver.healthy && driver.fault.is_none(), "{driver:?}");
    assert!(!driver.detail.is_empty());
    assert!(!driver.isolation_warning.is_empty(), "it is said that nothing is isolated");
    world.end().await;
}

#[tokio::test]
async fn the_status_answers_without_an_engine_and_says_what_is_wrong() {
    let mut world = World::new(Driver::Docker).await;
    let nowhere = world.path("no-engine.sock");
    world.set_env("OPENAGENT_DOCKER_HOST", &nowhere.display().to_string());
    world.start().await;
    let status = world.clients().await.daemon.get_status(v1::GetStatusRequest {}).await.expect("it answers").into_inner();
    let driver = status.driver.expect("there is a driver");
    assert!(!driver.healthy);
    let fault = driver.fault.expect("it says why");
    assert_eq!(fault.code, "ENGINE_MISSING", "{fault:?}");
    assert!(!fault.message.is_empty() && !fault.hint.is_empty(), "{fault:?}");
    assert!(driver.isolation_warning.is_empty(), "containers are isolated");
    world.stop().await;
}

#[tokio::test]
async fn shutdown_answers_then_ends_streams_the_process_and_the_socket() {
    let mut world = World::started(Driver::Local).await;
    let mut clients = world.clients().await;
    let mut watch = clients.session.watch_sessions(v1::WatchSessionsRequest {}).await.expect("sessions are watched").into_inner();
    let first = watch.message().await.expect("the stream does not break").expect("it begins").item;
    assert_eq!(first, Some(v1::watch_sessions_response::Item::CaughtUp(v1::WatchCaughtUp {})));
    clients.daemon.shutdown(v1::ShutdownRequest::default()).await.expect("it answers before it ends");
    let end = within("the end of the watch", PATIENCE, watch.message()).await.expect_err("the daemon says that it ends");
    assert_eq!(end.code(), tonic::Code::Unavailable, "{end:?}");
    world.ended().await;
    assert!(!world.socket().exists(), "the socket is gone");
    world.start().await;
    world.end().await;
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let world = World::started(Driver::Local).await;
    for service in ["", "openagent.v1.SessionService"] {
        assert_eq!(health(&world, service).await.expect("it is known").status(), ServingStatus::Serving, "{service:?}");
    }
    assert_eq!(health(&world, "openagent.v1.NoService").await.expect_err("it is not known").code(), tonic::Code::NotFound);

    let MessageResponse::ListServicesResponse(list) = reflect(&world, MessageRequest::ListServices(String::new())).await else {
        panic!("services are listed");
    };
    let named: BTreeSet<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in SERVICES.iter().chain(&["grpc.health.v1.Health"]) {
        assert!(named.contains(*service), "{service} is missing in {named:?}");
        let described = reflect(&world, MessageRequest::FileContainingSymbol((*service).to_owned())).await;
        assert!(matches!(described, MessageResponse::FileDescriptorResponse(_)), "{service}: {described:?}");
    }
    let ours = named.iter().filter(|name| name.starts_with("openagent.")).count();
    assert_eq!(ours, SERVICES.len(), "each service of ours is in this list and has a contract test: {named:?}");
    world.end().await;
}

#[tokio::test]
async fn the_socket_and_the_state_are_closed_to_others() {
    let world = World::started(Driver::Local).await;
    assert_eq!(mode(&world.socket()), 0o600);
    assert_eq!(mode(&world.path("run")), 0o700);
    assert_eq!(mode(&world.path("state")), 0o700);
    world.end().await;
}

#[tokio::test]
async fn another_user_is_refused_even_where_somebody_opened_the_folder() {
    if !nix::unistd::geteuid().is_root() {
        // Only root can become another user; the modes are checked above.
        return;
    }
    let world = World::started(Driver::Local).await;
    for (path, mode) in [(world.path(""), 0o755), (world.path("run"), 0o755), (world.socket(), 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    }
    let program = world.path("openagent");
    copy_program(&programs().join("openagent"), &program);
    let mut status = Command::new(&program);
    status.env_clear().envs(world.environment()).args(["daemon", "status"]).uid(65534).gid(65534).current_dir("/");
    let mut status = tokio::process::Command::from(status);
    let output = within("the other user's call", Duration::from_secs(30), status.kill_on_drop(true).output()).await.expect("it runs");
    assert!(!output.status.success(), "{output:?}");
    assert!(world.log().contains("a connection of another user was refused"), "{output:?}\n{}", world.log());
    let mut clients = world.clients().await;
    clients.daemon.get_status(v1::GetStatusRequest {}).await.expect("the owner is served as before");
    world.end().await;
}
