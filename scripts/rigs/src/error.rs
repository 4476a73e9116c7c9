//! Why a rig could not be run to its end.

use spillway_perf::PerfError;
use spillway_runtime::error::RuntimeError;

/// Why a rig could not be run to its end. What the nodes did wrong is no error but the result.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// The machine cannot mount file systems of processes.
    #[error(
        "there is no FUSE here ({0}): load the kernel module `fuse` so that /dev/fuse is there, \
         and run as root or with fusermount3 (package fuse3) installed"
    )]
    NoFuse(std::io::Error),
    /// Options that contradict each other.
    #[error("{0}")]
    Options(String),
    /// An order that the file system does not understand.
    #[error("{order:?} is no order: {why}")]
    Order {
        /// What was ordered.
        order: String,
        /// Why it is none.
        why: String,
    },
    /// The operating system refused something.
    #[error("{doing}: {cause}")]
    System {
        /// What was tried.
        doing: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The load, or a node.
    #[error(transparent)]
    Perf(#[from] PerfError),
    /// The runtime's own account of a failed system call.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl RigError {
    /// Wraps an error of the operating system.
    pub fn system(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |cause| Self::System { doing, cause }
    }
}
