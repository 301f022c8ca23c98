//! Named gates at which `#wait NAME` streams stand. A gate counts who reached it and, once released, stays open.

use std::collections::HashMap;

use tokio::sync::watch;

/// Names kept; when full, the open gates that nobody needs any more are forgotten first.
const GATES_MAX: usize = 256;

/// All gates by name.
#[derive(Debug, Default)]
pub(super) struct Gates {
    by_name: HashMap<String, Gate>,
}

impl Gates {
    /// The gate of that name, made closed when it is new.
    pub(super) fn gate(&mut self, name: &str) -> Gate {
        if let Some(gate) = self.by_name.get(name) {
            return gate.clone();
        }
        if self.by_name.len() >= GATES_MAX {
            self.by_name.retain(|_, gate| !gate.state.borrow().released);
        }
        let gate = Gate { state: watch::Sender::new(GateState::default()) };
        if self.by_name.len() < GATES_MAX {
            self.by_name.insert(name.to_owned(), gate.clone());
        } else {
            // Nobody can find this gate again to release it, so it must not block.
            gate.release();
        }
        gate
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct GateState {
    reached: bool,
    released: bool,
}

/// One gate; clones are the same gate.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    state: watch::Sender<GateState>,
}

impl Gate {
    pub(super) fn release(&self) {
        self.state.send_modify(|state| state.released = true);
    }

    /// Marks the gate as reached and returns when it is open.
    pub(super) async fn pass(&self) {
        self.state.send_modify(|state| state.reached = true);
        self.wait(|state| state.released).await;
    }

    pub(super) async fn wait_reached(&self) {
        self.wait(|state| state.reached).await;
    }

    async fn wait(&self, until: impl FnMut(&GateState) -> bool) {
        // The sender lives in `self`, so this cannot end by a closed channel.
        drop(self.state.subscribe().wait_for(until).await);
    }
}
