//! The kernel side of Spillway: pinned threads, rings, disks, buffers, queues between cores,
//! clock, metrics and shutdown. It knows nothing about databases.
//!
//! | module | holds |
//! |---|---|
//! | [`clock`], [`thread`], [`placement`] | time, pinned threads, CPUs and NUMA nodes |
//! | [`region`], [`buffer`] | page-aligned memory and the buffers cut from it |
//! | [`slot_ring`] | memory in ring order that disk, network and threads share without copies |
//! | [`file`], [`direct`], [`prewrite`], [`lock`], [`device`] | files, and what their disk can do |
//! | [`disk`], [`tcp`] | the io_uring of one disk, and the io_uring of one thread's network |
//! | [`queue`] | rings, wake flags and published state between cores |
//! | [`metrics`], [`shutdown`] | counters and histograms, the orderly end |
//! | [`faults`] | rare paths that a test forces |
//! | [`error`] | operating errors, each with its cause and the command that mends it |
//!
//! Absences that hold: no module but this crate's calls `std::fs`, reads a clock or starts a
//! thread; nothing here blocks except [`tcp::TcpRing::turn`], [`disk::DiskRing::submit_and_wait`],
//! [`thread::sleep`] and the synchronous calls of [`file`] and [`direct`].

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("Spillway runs on Linux x86_64 only: it is built on io_uring");

pub mod buffer;
pub mod clock;
pub mod device;
pub mod direct;
pub mod disk;
pub mod error;
pub mod faults;
pub mod file;
pub mod lock;
pub mod metrics;
pub mod placement;
pub mod prewrite;
pub mod queue;
pub mod random;
pub mod region;
pub mod shutdown;
pub mod slot_ring;
#[cfg(test)]
mod slot_ring_tests;
pub mod tcp;
pub mod thread;

pub use error::{Errno, RuntimeError};
