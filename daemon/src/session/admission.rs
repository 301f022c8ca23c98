//! How many sessions may run at a time, and the queue of those that wait.
//!
//! Invariants: the queue is in order of arrival and nobody passes its head; a [`Permit`] stands for one session (or prepared instance) that holds, or may hold, an
//! engine's memory, and room is given back when it is dropped; a [`Ticket`] that is dropped leaves the queue. Instances that are found running when the daemon
//! starts are counted without being asked, even over the limits: nothing that runs is ended for them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use openagent_core::session::Fault;
use tokio::sync::watch;

/// What may run at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Sessions with an instance.
    pub running: u32,
    /// Sum of their memory limits, in bytes; 0: no bound.
    pub memory_bytes: u64,
}

/// What runs and waits now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Sessions with an instance, and prepared instances.
    pub running: u32,
    /// Sum of their memory limits, in bytes.
    pub memory_bytes: u64,
    /// Sessions that wait.
    pub waiting: u32,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    memory_bytes: u64,
    place: watch::Sender<Place>,
}

/// Where a ticket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the queue, from 1.
    Waiting(u32),
    /// There is room, and it is taken.
    Admitted,
}

#[derive(Debug, Default)]
struct Inner {
    load: Load,
    queue: VecDeque<Waiter>,
    last_number: u64,
}

#[derive(Debug)]
struct Shared {
    bounds: Bounds,
    inner: Mutex<Inner>,
    load: watch::Sender<Load>,
}

/// Admits sessions. A clone is the same queue.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Shared>);

impl Admission {
    /// Admits sessions within `bounds`.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Shared { bounds, inner: Mutex::default(), load: watch::Sender::new(Load::default()) }))
    }

    /// The bounds.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.0.bounds
    }

    /// What runs and waits, as it changes.
    #[must_use]
    pub fn load(&self) -> watch::Receiver<Load> {
        self.0.load.subscribe()
    }

    /// Changes the state, admits who can be, and tells everybody.
    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut inner);
        while let Some(head) = inner.queue.front()
            && self.fits(&inner.load, head.memory_bytes)
        {
            let Some(head) = inner.queue.pop_front() else { break };
            take(&mut inner.load, head.memory_bytes);
            head.place.send_replace(Place::Admitted);
        }
        for (place, waiter) in (1..).zip(&inner.queue) {
            waiter.place.send_if_modified(|now| std::mem::replace(now, Place::Waiting(place)) != Place::Waiting(place));
        }
        inner.load.waiting = u32::try_from(inner.queue.len()).unwrap_or(u32::MAX);
        let load = inner.load;
        // Under the lock: what is told last must be what is so.
        self.0.load.send_if_modified(|now| std::mem::replace(now, load) != load);
        result
    }

    fn fits(&self, load: &Load, memory_bytes: u64) -> bool {
        let bounds = self.0.bounds;
        let memory = bounds.memory_bytes == 0 || load.memory_bytes.saturating_add(memory_bytes) <= bounds.memory_bytes;
        load.running < bounds.running && memory
    }

    /// Takes a place in the queue, for a session of this memory limit.
    ///
    /// # Errors
    /// `OVER_BUDGET` when it could never run.
    pub fn ask(&self, memory_bytes: u64) -> Result<Ticket, Fault> {
        let budget = self.0.bounds.memory_bytes;
        if budget > 0 && memory_bytes > budget {
            let message = format!("the session may use {memory_bytes} bytes of memory, and all sessions together {budget}");
            return Err(Fault::new("OVER_BUDGET", message, "give it less memory, or raise memory_budget in [daemon] of the configuration"));
        }
        let (number, place) = self.with(|inner| {
            inner.last_number += 1;
            let number = inner.last_number;
            let (sender, place) = watch::channel(Place::Waiting(u32::MAX));
            inner.queue.push_back(Waiter { number, memory_bytes, place: sender });
            (number, place)
        });
        Ok(Ticket { admission: self.clone(), number, memory_bytes, place, used: false })
    }

    /// Room for what runs already.
    #[must_use]
    pub fn adopt(&self, memory_bytes: u64) -> Permit {
        self.with(|inner| take(&mut inner.load, memory_bytes));
        Permit { admission: self.clone(), memory_bytes }
    }

    /// Room, if there is some and nobody waits for it.
    #[must_use]
    pub fn spare(&self, memory_bytes: u64) -> Option<Permit> {
        let taken = self.with(|inner| {
            let free = inner.queue.is_empty() && self.fits(&inner.load, memory_bytes);
            if free {
                take(&mut inner.load, memory_bytes);
            }
            free
        });
        taken.then(|| Permit { admission: self.clone(), memory_bytes })
    }

    fn give_back(&self, memory_bytes: u64) {
        self.with(|inner| {
            inner.load.running = inner.load.running.saturating_sub(1);
            inner.load.memory_bytes = inner.load.memory_bytes.saturating_sub(memory_bytes);
        });
    }
}

const fn take(load: &mut Load, memory_bytes: u64) {
    load.running += 1;
    load.memory_bytes = load.memory_bytes.saturating_add(memory_bytes);
}

/// Room for one instance.
#[derive(Debug)]
pub struct Permit {
    admission: Admission,
    memory_bytes: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.give_back(self.memory_bytes);
    }
}

/// A place in the queue.
#[derive(Debug)]
pub struct Ticket {
    admission: Admission,
    number: u64,
    memory_bytes: u64,
    place: watch::Receiver<Place>,
    used: bool,
}

impl Ticket {
    /// The permit, if it is this one's turn; else its place, from 1.
    ///
    /// # Errors
    /// Its place in the queue.
    pub fn redeem(&mut self) -> Result<Permit, u32> {
        match *self.place.borrow_and_update() {
            Place::Waiting(place) => Err(place),
            Place::Admitted => {
                self.used = true;
                Ok(Permit { admission: self.admission.clone(), memory_bytes: self.memory_bytes })
            }
        }
    }

    /// Waits until its place changes. Cancel safe.
    pub async fn changed(&mut self) {
        // The sender is dropped with the waiter once it is admitted, which counts as a change.
        let _ = self.place.changed().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.used {
            return;
        }
        let was_waiting = self.admission.with(|inner| {
            let before = inner.queue.len();
            inner.queue.retain(|waiter| waiter.number != self.number);
            inner.queue.len() < before
        });
        if !was_waiting {
            self.admission.give_back(self.memory_bytes);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn admission(running: u32, memory_bytes: u64) -> Admission {
        Admission::new(Bounds { running, memory_bytes })
    }

    fn place(ticket: &mut Ticket) -> u32 {
        ticket.redeem().err().unwrap_or(0)
    }

    #[test]
    fn who_came_first_runs_first_and_the_others_move_up() {
        let admission = admission(1, 0);
        let first = admission.ask(GIB).unwrap().redeem().unwrap();
        let mut waiting: Vec<Ticket> = (0..3).map(|_| admission.ask(GIB).unwrap()).collect();
        assert_eq!(waiting.iter_mut().map(place).collect::<Vec<_>>(), [1, 2, 3]);
        drop(waiting.remove(0));
        assert_eq!(waiting.iter_mut().map(place).collect::<Vec<_>>(), [1, 2]);
        drop(first);
        let second = waiting[0].redeem().unwrap();
        assert_eq!((place(&mut waiting[1]), admission.load().borrow().waiting), (1, 1));
        drop((second, waiting));
        assert_eq!(*admission.load().borrow(), Load::default(), "everything is given back");
    }

    #[test]
    fn a_large_session_at_the_head_is_not_passed_by_small_ones() {
        let admission = admission(10, 4 * GIB);
        let running = admission.ask(3 * GIB).unwrap().redeem().unwrap();
        let (mut large, mut small) = (admission.ask(2 * GIB).unwrap(), admission.ask(GIB).unwrap());
        assert_eq!((place(&mut large), place(&mut small)), (1, 2));
        assert!(admission.spare(GIB).is_none(), "what is prepared ahead waits behind everybody");
        drop(running);
        assert!(large.redeem().is_ok() && small.redeem().is_ok());
    }

    #[test]
    fn what_could_never_run_is_refused_and_what_runs_already_is_counted() {
        let admission = admission(1, 2 * GIB);
        assert_eq!(admission.ask(3 * GIB).unwrap_err().code, "OVER_BUDGET");
        let running = [admission.adopt(2 * GIB), admission.adopt(2 * GIB)];
        assert_eq!(*admission.load().borrow(), Load { running: 2, memory_bytes: 4 * GIB, waiting: 0 });
        let mut ticket = admission.ask(GIB).unwrap();
        drop(running);
        assert!(ticket.redeem().is_ok());
    }

    #[test]
    fn a_ticket_that_was_admitted_and_not_used_gives_its_room_back() {
        let admission = admission(1, 0);
        drop(admission.ask(GIB).unwrap());
        assert_eq!(*admission.load().borrow(), Load::default());
    }

    #[tokio::test]
    async fn a_waiter_is_told_when_its_turn_comes() {
        let admission = admission(1, 0);
        let running = admission.adopt(GIB);
        let mut ticket = admission.ask(GIB).unwrap();
        assert_eq!(place(&mut ticket), 1);
        let told = async {
            ticket.changed().await;
            ticket.redeem()
        };
        let ((), permit) = tokio::join!(async { drop(running) }, told);
        assert!(permit.is_ok());
    }
}
