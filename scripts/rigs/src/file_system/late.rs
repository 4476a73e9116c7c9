//! A thread that does things later, so that a slow disk holds up nobody else's.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, Weak};
use std::time::Duration;

use spillway_runtime::clock::{MonotonicNanos, monotonic_now};
use spillway_runtime::thread;

use super::Shared;
use super::serve::Job;
use crate::error::RigError;

struct Due {
    at: MonotonicNanos,
    /// What is due together is done in its order.
    order: u64,
    job: Job,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest: a heap gives that first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at.0, other.order).cmp(&(self.at.0, self.order))
    }
}

/// Takes what is to be done later.
pub struct Late {
    jobs: Mutex<Sender<(Duration, Job)>>,
}

/// A thread that was not started yet.
pub struct LateThread {
    jobs: Receiver<(Duration, Job)>,
}

impl Late {
    pub fn new() -> (Self, LateThread) {
        let (sender, jobs) = channel();
        (Self { jobs: Mutex::new(sender) }, LateThread { jobs })
    }

    /// Does something after this time.
    pub fn after(&self, delay: Duration, job: Job) {
        let jobs = self.jobs.lock().expect("nobody panics with it");
        // When the thread is gone the file system is, and the job answers for itself.
        drop(jobs.send((delay, job)));
    }
}

impl LateThread {
    /// Runs until the file system is gone.
    pub fn start(self, shared: Weak<Shared>) -> Result<(), RigError> {
        thread::spawn("late", None, move || run(&self.jobs, &shared))?;
        Ok(())
    }
}

fn run(jobs: &Receiver<(Duration, Job)>, shared: &Weak<Shared>) {
    const IDLE: Duration = Duration::from_millis(500);
    let mut waiting: BinaryHeap<Due> = BinaryHeap::new();
    let mut order = 0;
    loop {
        let now = monotonic_now();
        let pause = waiting.peek().map_or(IDLE, |due| due.at.saturating_since(now));
        match jobs.recv_timeout(pause) {
            Ok((delay, job)) => {
                let at = MonotonicNanos(monotonic_now().0 + delay.as_nanos() as u64);
                waiting.push(Due { at, order, job });
                order += 1;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while waiting.peek().is_some_and(|due| due.at <= monotonic_now()) {
            let due = waiting.pop().expect("just seen");
            let Some(shared) = shared.upgrade() else { return };
            shared.take_late(due.job);
        }
    }
}
