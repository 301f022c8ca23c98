//! `DaemonService`.

use openagent_core::session::lifecycle::State;
use openagent_proto::{PROTOCOL, v1};
use tonic::{Request, Response, Status};

use super::{Context, convert};

/// The service.
pub struct Daemon(pub Context);

#[tonic::async_trait]
impl v1::daemon_service_server::DaemonService for Daemon {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        let shared = self.0.registry.shared();
        let views = shared.directory.all();
        let running = views
            .iter()
            .filter(|view| {
                matches!(
                    view.record.lifecycle.state(),
                    State::Starting { .. } | State::Active { .. } | State::Idle { .. } | State::Unwinding { .. }
                )
            })
            .count();
        let health = shared.driver.health().await;
        let driver = v1::DriverStatus {
            name: shared.driver.name().to_owned(),
            healthy: health.is_ok(),
            detail: health.as_ref().cloned().unwrap_or_default(),
            fault: health.as_ref().err().map(convert::fault),
            isolation_warning: shared.driver.isolation_warning().to_owned(),
        };
        Ok(Response::new(v1::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            pid: i64::from(std::process::id()),
            started_at: Some(convert::timestamp(self.0.started_at)),
            socket: self.0.socket.display().to_string(),
            state_directory: self.0.state_dir.display().to_string(),
            sessions: u32::try_from(views.len()).unwrap_or(u32::MAX),
            running: u32::try_from(running).unwrap_or(u32::MAX),
            driver: Some(driver),
            memory_bytes: resident_bytes(),
            ..v1::GetStatusResponse::default()
        }))
    }

    async fn shutdown(&self, _: Request<v1::ShutdownRequest>) -> Result<Response<v1::ShutdownResponse>, Status> {
        tracing::info!("a client asked the daemon to end");
        self.0.shutdown.cancel();
        Ok(Response::new(v1::ShutdownResponse {}))
    }
}

/// Resident memory as the kernel tells it; 0 where it does not.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
