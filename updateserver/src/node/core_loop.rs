//! One core's loop: reap, feed the cores, submit, sleep.
//!
//! A thread carries a shard, or the log, or both. It sleeps only in its network ring, which also
//! watches the log ring; other threads wake it by a message to that ring, and only if it sleeps.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use spillway_runtime::clock;
use spillway_runtime::queue::park::WakeFlag;
use spillway_runtime::shutdown::ShutdownFlag;
use spillway_runtime::tcp::{ListenerId, TcpEvent, TcpRing, Wait};

use super::NodeError;
use super::log_shell::LogShell;
use super::shard_shell::ShardShell;

/// Token of the log ring's descriptor.
const TOKEN_LOG: u64 = 1;
/// Token of the descriptor of the ring that reads entries back.
const TOKEN_READER: u64 = 2;
/// Longest sleep: bounds what a lost wake-up could cost, and lets the stop flag be seen.
const SLEEP_NANOS_MAX: u64 = 500_000_000;

/// What all threads share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Whether each thread sleeps.
    pub wake_flags: Vec<WakeFlag>,
    /// Each thread's ring.
    pub rings: Vec<RawFd>,
    /// The thread that carries the log.
    pub log_thread: usize,
    /// Shards.
    pub shards: u32,
    /// Set when the process is told to stop.
    pub stop: ShutdownFlag,
    /// Shards whose hand-overs are all committed, after the stop.
    pub drained: AtomicU32,
    /// Set when the log is quiet, after the stop.
    pub quiet: AtomicBool,
}

/// See the module.
pub(super) struct CoreLoop {
    pub thread: usize,
    pub ring: TcpRing,
    pub listener: Option<ListenerId>,
    pub shard: Option<ShardShell>,
    pub log: Option<LogShell>,
    pub shared: Arc<Shared>,
    /// Whether the log was told to stop.
    pub log_stopping: bool,
}

impl CoreLoop {
    /// Runs until the process is told to stop and everything handed over is durable.
    ///
    /// # Errors
    /// The kernel, or the replica, cannot go on.
    pub fn run(mut self) -> Result<(), NodeError> {
        if let Some(log) = &self.log {
            self.ring.watch(log.fd(), TOKEN_LOG);
            self.ring.watch(log.reader_fd(), TOKEN_READER);
        }
        let mut events = Vec::new();
        let (mut stopping, mut drained) = (false, false);
        while !self.shared.quiet.load(Ordering::Acquire) {
            let wait = self.wait();
            self.ring.turn(wait, &mut events)?;
            self.shared.wake_flags[self.thread].cancel();
            for event in events.drain(..) {
                self.event(event);
            }
            self.turn()?;
            if let Some(diverged) = self.shard.as_mut().and_then(ShardShell::diverged_take) {
                return Err(NodeError::Diverged(diverged));
            }
            if !stopping && self.shared.stop.requested() {
                stopping = true;
                self.stop();
            }
            if stopping && !drained && self.shard.as_ref().is_some_and(ShardShell::is_drained) {
                drained = true;
                self.shared.drained.fetch_add(1, Ordering::AcqRel);
                self.wake(self.shared.log_thread);
            }
            let all_drained = self.all_drained();
            if let Some(log) = self.log.as_mut().filter(|_| all_drained) {
                if !self.log_stopping {
                    self.log_stopping = true;
                    log.shutdown(&mut self.ring)?;
                }
                if log.is_quiet() {
                    self.shared.quiet.store(true, Ordering::Release);
                    self.wake_all();
                }
            }
        }
        if let Some(log) = &mut self.log {
            log.links_end(&mut self.ring);
        }
        // Messages to other rings leave with an entry into the kernel.
        self.ring.turn(Wait::Not, &mut events)?;
        Ok(())
    }

    fn wait(&self) -> Wait {
        if self.has_work() {
            return Wait::Not;
        }
        let flag = &self.shared.wake_flags[self.thread];
        flag.prepare_to_park();
        // Looked at again: what was published before the flag rose is not announced.
        if self.has_work() {
            flag.cancel();
            return Wait::Not;
        }
        let now = clock::monotonic_now().0;
        let log = self.log.as_ref().and_then(LogShell::deadline_nanos);
        let shard = self.shard.as_ref().map(ShardShell::deadline_nanos);
        let deadline = [log, shard].into_iter().flatten().min().unwrap_or(u64::MAX);
        Wait::For(deadline.saturating_sub(now).clamp(1, SLEEP_NANOS_MAX))
    }

    /// What ends a stop counts as work, too: it may be published after a thread looked and before
    /// its flag rose, and nobody wakes that thread a second time.
    fn has_work(&self) -> bool {
        self.shard.as_ref().is_some_and(ShardShell::has_work)
            || self.log.as_ref().is_some_and(LogShell::has_work)
            || (self.log.is_some() && !self.log_stopping && self.all_drained())
            || self.shared.quiet.load(Ordering::Acquire)
    }

    fn all_drained(&self) -> bool {
        self.shared.drained.load(Ordering::Acquire) == self.shared.shards
    }

    fn event(&mut self, event: TcpEvent) {
        let event = match &mut self.log {
            Some(log) => log.event(&mut self.ring, event),
            None => Some(event),
        };
        let Some(event) = event else { return };
        match (event, &mut self.shard) {
            (TcpEvent::Accepted { connection, .. }, Some(shard)) => {
                shard.accepted(&mut self.ring, connection)
            }
            (TcpEvent::Received { connection, buffer }, Some(shard)) => {
                shard.received(&mut self.ring, connection, buffer);
            }
            (TcpEvent::Closed { connection, .. }, Some(shard)) => shard.closed(connection),
            (TcpEvent::Received { buffer, .. }, None) => self.ring.release(buffer),
            _ => {}
        }
    }

    /// The shard first: what it executes now can leave in the batch that a completion of this
    /// same turn lets go, instead of waiting for the next one. Then the log, and then the answers
    /// that the log lets go.
    fn turn(&mut self) -> Result<(), NodeError> {
        let handed_over = match &mut self.shard {
            Some(shard) => shard.turn(&mut self.ring),
            None => false,
        };
        let mut moved = false;
        match &mut self.log {
            Some(log) => moved = log.turn(&mut self.ring)?,
            None if handed_over => self.wake(self.shared.log_thread),
            None => {}
        }
        if let Some(shard) = &mut self.shard
            && shard.log_moved(&mut self.ring)
        {
            match &mut self.log {
                Some(log) => moved |= log.turn(&mut self.ring)?,
                None => self.wake(self.shared.log_thread),
            }
        }
        if self.thread == 0 {
            // Orders of the root service may have gone out.
            moved = true;
        }
        if moved || self.shard.is_some() {
            self.wake_others(moved);
        }
        Ok(())
    }

    /// Tells the threads that sleep what this one has published.
    fn wake_others(&mut self, log_moved: bool) {
        for thread in 0..self.shared.wake_flags.len() {
            // Shards other than 0 publish only for the root service, on thread 0.
            if thread != self.thread && (log_moved || thread == 0) {
                self.wake(thread);
            }
        }
    }

    fn wake(&mut self, thread: usize) {
        if thread != self.thread && self.shared.wake_flags[thread].needs_wake() {
            self.ring.wake_ring(self.shared.rings[thread]);
        }
    }

    fn wake_all(&mut self) {
        for thread in 0..self.shared.wake_flags.len() {
            self.wake(thread);
        }
    }

    fn stop(&mut self) {
        if let Some(listener) = self.listener.take() {
            self.ring.listen_end(listener);
        }
        if let Some(shard) = &mut self.shard {
            shard.stop();
        }
    }
}
