//! The thread that owns the nodes.
//!
//! The kernel kills a node when the thread that started it ends, so that no node outlives its
//! burst. One thread therefore starts all of them, also those that come back in the middle of a
//! load; and waiting for a killed process never holds up the generator.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;

use spillway_runtime::thread;

use crate::cluster::Cluster;
use crate::error::PerfError;

type Job = Box<dyn FnOnce(&mut Cluster) + Send>;

/// See the module. Dropping it kills the nodes.
pub struct Warden {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    is_abandoned: Arc<AtomicBool>,
}

/// A job that may still be under way.
pub struct Pending<R> {
    result: Receiver<R>,
}

impl<R> Pending<R> {
    /// A job that is done.
    pub fn done(result: R) -> Self {
        let (done, pending) = mpsc::channel();
        done.send(result).expect("the receiver is here");
        Self { result: pending }
    }

    /// The result, if it is there.
    pub fn take(&mut self) -> Option<R> {
        match self.result.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => panic!("a result is taken once"),
        }
    }

    /// Waits for the result.
    pub fn wait(self) -> R {
        self.result.recv().expect("every job is done, and a result is taken once")
    }
}

impl Warden {
    /// Hands the nodes over to a thread of their own.
    pub fn new(mut cluster: Cluster) -> Result<Self, PerfError> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let is_abandoned = cluster.abandonment();
        let work = move || {
            for job in todo {
                job(&mut cluster);
            }
        };
        let thread = thread::spawn("warden", None, work)?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), is_abandoned })
    }

    /// Begins a job; jobs are done one after the other.
    pub fn begin<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Cluster) -> R + Send + 'static,
    ) -> Pending<R> {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move |cluster| {
            // Nobody may be waiting any more.
            drop(done.send(job(cluster)));
        });
        let jobs = self.jobs.as_ref().expect("open until dropped");
        jobs.send(job).expect("the thread takes jobs until it is told to end");
        Pending { result }
    }

    /// Does a job and waits for it.
    pub fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Cluster) -> R + Send + 'static,
    ) -> R {
        self.begin(job).wait()
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        drop(self.jobs.take());
        self.is_abandoned.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_done_in_order() {
        let cluster = Cluster::new(Vec::new(), Vec::new(), None);
        let warden = Warden::new(cluster).expect("a thread");
        let mut first = warden.begin(|cluster| cluster.len());
        assert!(warden.call(|cluster| cluster.is_empty()));
        assert_eq!(first.take(), Some(0));
    }
}
