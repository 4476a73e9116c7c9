//! What is done to the nodes while a load runs. A script runs on the warden's thread, beside the
//! generator.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use spillway_runtime::clock::{MonotonicNanos, monotonic_now};
use spillway_runtime::thread;

use crate::cluster::{Cluster, RECOVER_SECONDS_MAX};
use crate::disturbance::{
    ALL_KILLED, Event, FOLLOWER_KILLED, FOLLOWER_PAUSED, FOLLOWER_SLOWED, HANDED_OVER,
    LEADER_KILLED,
};
use crate::error::PerfError;
use crate::probe;

/// How often somebody who waits looks again.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What generator and script tell each other.
#[derive(Debug, Default)]
pub struct LoadView {
    began: Mutex<Option<MonotonicNanos>>,
    committed: AtomicU64,
    is_over: AtomicBool,
    is_enough: AtomicBool,
    lines: Mutex<Vec<String>>,
}

impl LoadView {
    /// The load begins.
    pub fn begin(&self, began: MonotonicNanos) {
        *self.began.lock().expect("nobody panics with it") = Some(began);
    }

    /// So many transactions were answered as committed.
    pub fn committed_add(&self, committed: u64) {
        self.committed.fetch_add(committed, Ordering::Relaxed);
    }

    /// The load has ended.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// Whether the script has seen enough.
    pub fn is_enough(&self) -> bool {
        self.is_enough.load(Ordering::Acquire)
    }

    /// Ends a load that lasts as long as its script.
    pub fn enough(&self) {
        self.is_enough.store(true, Ordering::Release);
    }

    /// What the script had to say since the last call.
    pub fn take_lines(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock().expect("nobody panics with it"))
    }
}

/// What a script does; events come back in their order.
pub type Script = Box<dyn FnOnce(&mut Field<'_>) -> Result<(), PerfError> + Send>;

/// The nodes and the load, as a script has them.
pub struct Field<'a> {
    /// The nodes, counted from 0.
    pub cluster: &'a mut Cluster,
    load: &'a LoadView,
    events: Vec<Event>,
}

impl<'a> Field<'a> {
    /// For a load that may not have begun yet.
    pub fn new(cluster: &'a mut Cluster, load: &'a LoadView) -> Self {
        Self { cluster, load, events: Vec::new() }
    }

    /// What was done.
    pub fn finish(self) -> Vec<Event> {
        self.events
    }

    /// Tells whoever watches.
    pub fn say(&self, line: String) {
        self.load.lines.lock().expect("nobody panics with it").push(line);
    }

    /// Nanoseconds from the begin of the load to a moment; 0 before it.
    fn load_ns(&self, at: MonotonicNanos) -> u64 {
        let began = *self.load.began.lock().expect("nobody panics with it");
        began.map_or(0, |began| at.saturating_nanos_since(began))
    }

    /// Whether the load has ended.
    pub fn is_over(&self) -> bool {
        self.load.is_over.load(Ordering::Acquire)
    }

    /// Transactions answered as committed so far.
    pub fn committed(&self) -> u64 {
        self.load.committed.load(Ordering::Relaxed)
    }

    /// Waits until a moment of the load, or its end.
    pub fn wait_until(&mut self, at_ns: u64) -> Result<(), PerfError> {
        while self.load_ns(monotonic_now()) < at_ns && !self.is_over() {
            self.cluster.check_alive()?;
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Lets the load run for a while.
    pub fn sleep(&mut self, duration: Duration) -> Result<(), PerfError> {
        let until = self.load_ns(monotonic_now()) + duration.as_nanos() as u64;
        self.wait_until(until)
    }

    /// Waits until transactions commit that nobody had answered before: a node leads, and the
    /// generator has found it. False: the load ended instead.
    pub fn progress_wait(&mut self) -> Result<bool, PerfError> {
        self.cluster.leader_wait()?;
        // What was on its way already must not count.
        let enough = self.committed() + 1;
        let began = monotonic_now();
        while self.committed() < enough {
            if self.is_over() {
                return Ok(false);
            }
            self.cluster.check_alive()?;
            if monotonic_now().saturating_since(began).as_secs() >= RECOVER_SECONDS_MAX {
                let (seconds, tail) = (RECOVER_SECONDS_MAX, self.cluster.tails());
                return Err(PerfError::TimedOut { what: "the next commit", seconds, tail });
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(true)
    }

    /// Notes something that was done to nodes counted from 0.
    pub fn note(&mut self, kind: &'static str, nodes: &[usize], at: MonotonicNanos) -> &mut Event {
        let at_ns = self.load_ns(at);
        let nodes = nodes.iter().map(|at| *at as u16 + 1).collect();
        let event = Event { kind, nodes, at_ns, ready_s: None, caught_up_s: None, gap_ns: 0 };
        self.events.push(event);
        self.events.last_mut().expect("just pushed")
    }

    /// Kills nodes, of which the leader may be one.
    pub fn kill(&mut self, nodes: &[usize]) -> Result<(), PerfError> {
        let leader = self.cluster.leader();
        let kind = match leader {
            _ if nodes.len() == self.cluster.len() => ALL_KILLED,
            Some(leader) if nodes.contains(&leader) => LEADER_KILLED,
            _ => FOLLOWER_KILLED,
        };
        let at = self.cluster.kill(nodes)?;
        self.note(kind, nodes, at);
        Ok(())
    }

    /// Starts all nodes that are down again.
    pub fn restart(&mut self) -> Result<(), PerfError> {
        let seconds = self.cluster.start_all()?;
        if let Some(event) = self.events.last_mut() {
            event.ready_s = Some(seconds);
        }
        Ok(())
    }

    /// Waits until all nodes have caught up with what is committed now.
    pub fn caught_up_wait(&mut self) -> Result<(), PerfError> {
        for at in 0..self.cluster.len() {
            self.cluster.caught_up_wait(at)?;
        }
        let now_ns = self.load_ns(monotonic_now());
        if let Some(event) = self.events.last_mut() {
            event.caught_up_s = Some(now_ns.saturating_sub(event.at_ns) as f64 / 1e9);
        }
        Ok(())
    }

    /// Kills the leader, waits for the next one and its first commit, and brings the killed node
    /// back.
    pub fn leader_kill(&mut self) -> Result<(), PerfError> {
        let leader = self.cluster.leader_wait()?;
        self.kill(&[leader])?;
        self.progress_wait()?;
        self.restart()?;
        self.caught_up_wait()
    }

    /// Asks the leader to hand over, to whom it likes best, and waits until another node leads.
    pub fn hand_over(&mut self) -> Result<(), PerfError> {
        let leader = self.cluster.leader_wait()?;
        let address = self.cluster.address(leader);
        let at = monotonic_now();
        probe::transfer(address, 0)
            .map_err(|cause| PerfError::Refused(format!("the transfer was refused: {cause}")))?;
        self.note(HANDED_OVER, &[leader], at);
        let next = self.cluster.wait("the hand-over of the leader", |cluster| {
            cluster.leader().filter(|next| *next != leader)
        })?;
        self.say(format!("node {} handed over to node {}", leader + 1, next + 1));
        self.progress_wait().map(drop)
    }

    /// Slows the log disk of a follower for a while.
    pub fn follower_slow(&mut self, duration: Duration) -> Result<(), PerfError> {
        let leader = self.cluster.leader_wait()?;
        let follower = (leader + 1) % self.cluster.len();
        let slow = self.cluster.slow_disk(follower)?;
        self.note(FOLLOWER_SLOWED, &[follower], monotonic_now());
        self.sleep(duration)?;
        drop(slow);
        self.caught_up_wait()
    }

    /// Lets a follower stand still for a while.
    pub fn follower_pause(&mut self, duration: Duration) -> Result<(), PerfError> {
        let leader = self.cluster.leader_wait()?;
        let follower = (leader + 1) % self.cluster.len();
        let at = monotonic_now();
        self.cluster.pause(follower)?;
        self.note(FOLLOWER_PAUSED, &[follower], at);
        let slept = self.sleep(duration);
        self.cluster.resume(follower)?;
        slept?;
        self.caught_up_wait()
    }
}
