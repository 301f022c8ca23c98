//! Sessions at rest have an actor only while somebody needs it.

use openagent_core::config::PoolConfig;
use openagent_core::permission::PermissionMode;
use openagent_core::session::Limits;
use tokio::sync::watch;

use super::*;
use crate::catalogue::Catalogue;
use crate::driver::local::{LocalDriver, LocalOptions};
use crate::event::EventLog;
use crate::relay::ModelRelay;
use crate::session::admission::{Admission, Bounds};
use crate::session::directory::Directory;
use crate::session::pool::{Pool, Template};
use crate::session::presence::AttachedTo;
use crate::store::Store;
use crate::task::Tasks;
use crate::vault::Vault;

const SESSIONS: [&str; 3] = ["ses_01KBQ9GMSE3M6Y8VH1E2C5WZRT", "ses_01KBQ9GMSE3M6Y8VH1E2C5WZRV", "ses_01KBQ9GMSE3M6Y8VH1E2C5WZRW"];

/// Time in which what was let go has gone.
const PATIENCE: Duration = Duration::from_secs(30);

fn record(id: &str) -> SessionRecord {
    let mut record = crate::store::tests::record(id);
    "old".clone_into(&mut record.session.title);
    record
}

async fn registry(folder: &std::path::Path) -> SessionRegistry {
    drop(rustls::crypto::ring::default_provider().install_default());
    let store = Store::open(folder.join("store")).await.unwrap();
    for id in SESSIONS {
        store.put_session(&record(id)).await.unwrap();
    }
    let tasks = Tasks::new();
    let vault = Vault::open(store.clone(), &folder.join("master.key")).await.unwrap();
    let catalogue = Arc::new(Catalogue::new(&[]).unwrap());
    let local = LocalOptions {
        state_dir: folder.to_owned(),
        runtime_dir: folder.to_owned(),
        sidecar: folder.join("none"),
        opencode: folder.join("none"),
        journal_max_bytes: 1024 * 1024,
    };
    let shared = Shared {
        log: EventLog::new(store.clone()),
        store,
        relay: ModelRelay::new(Arc::clone(&catalogue), vault.clone()).unwrap(),
        vault,
        driver: Arc::new(LocalDriver::new(local, tasks.clone())),
        catalogue,
        rules: watch::Sender::new(Arc::default()),
        directory: Arc::new(Directory::default()),
        admission: Admission::new(Bounds { running: 1, memory_bytes: 0 }),
        pool: Pool::new(Template {
            config: PoolConfig { size: 0, ..PoolConfig::default() },
            model: None,
            agent: "build".to_owned(),
            permission_mode: PermissionMode::Ask,
            limits: Limits::default(),
        }),
        tasks,
        stop_grace: Duration::ZERO,
    };
    let registry = SessionRegistry::new(Arc::new(shared));
    assert_eq!(registry.raise_all().await.unwrap(), SESSIONS.len());
    registry
}

fn raised(registry: &SessionRegistry) -> usize {
    registry.with(|all| all.len())
}

async fn until_let_go(registry: &SessionRegistry, left: usize) {
    let began = std::time::Instant::now();
    while raised(registry) > left {
        assert!(began.elapsed() < PATIENCE, "the actor is not let go");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn sessions_at_rest_are_raised_by_whoever_asks_and_let_go_when_nobody_does() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(folder.path()).await;
    assert_eq!(raised(&registry), 0, "a daemon that starts raises no session at rest");
    for id in SESSIONS {
        assert_eq!(registry.look(id).await.unwrap().record.session.title, "old");
    }
    assert_eq!(raised(&registry), 0, "who only looks raises none either");

    let [held, followed, unused] = SESSIONS;
    let handle = registry.find(held).unwrap();
    let present = registry.find(followed).unwrap().presence().attach("somebody", AttachedTo::Events);
    let rename = |reply| Command::Rename("new".to_owned(), reply);
    registry.find(unused).unwrap().ask(rename).await.unwrap();
    assert_eq!(raised(&registry), 3);
    until_let_go(&registry, 2).await;
    let view = registry.look(unused).await.unwrap();
    assert_eq!(view.record.session.title, "new", "what is shown of it is as it was");
    assert_eq!(registry.look(followed).await.unwrap().attached.len(), 1);
    assert!(handle.ask(Command::Look).await.is_ok());

    drop((handle, present));
    until_let_go(&registry, 0).await;
    assert_eq!(registry.look(followed).await.unwrap().attached.len(), 0);
    registry.find(unused).unwrap().ask(Command::Remove).await.unwrap();
    assert_eq!(registry.look(unused).await.unwrap_err().code, "NOT_FOUND");
    assert_eq!(registry.raise_all().await.unwrap(), 2, "what was removed is not stored");
}
