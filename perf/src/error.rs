//! Why a burst could not be run to its end.

use spillway_net::client::ClientError;
use spillway_net::message::OutcomeStatus;
use spillway_runtime::error::RuntimeError;

use crate::shape::ShapeError;

/// Why a burst could not be run to its end. Whether acknowledged transactions were lost is not an
/// error but a result: see [`crate::report::BurstReport`].
#[derive(Debug, thiserror::Error)]
pub enum PerfError {
    /// Options that contradict each other or the limits.
    #[error("{0}")]
    Options(String),
    /// The shape's file.
    #[error("--shape {file}: {error}")]
    Shape {
        /// The file.
        file: String,
        /// What is wrong with it.
        error: ShapeError,
    },
    /// The operating system refused something.
    #[error("{doing}: {cause}")]
    System {
        /// What was tried.
        doing: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The runtime's own account of a failed system call.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Not enough room for the log.
    #[error(
        "{directory} has {free_mib} MiB free, the burst needs {needed_mib} MiB for its log: choose \
         another place with --dir, or a smaller log with --log-gib"
    )]
    DiskFull {
        /// Where the burst was to run.
        directory: String,
        /// Free, MiB.
        free_mib: u64,
        /// Needed, MiB.
        needed_mib: u64,
    },
    /// The node did not come up, or went away by itself.
    #[error("{what}\n--- last lines of the node's output ---\n{tail}")]
    Node {
        /// What happened.
        what: String,
        /// End of its output.
        tail: String,
    },
    /// The client library.
    #[error("{doing}: {error}")]
    Client {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        error: ClientError,
    },
    /// The node answered a transaction in a way that ends the burst.
    #[error("the node answered {status:?} to a transaction of the {workload} workload{hint}")]
    Outcome {
        /// The answer.
        status: OutcomeStatus,
        /// Which workload.
        workload: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// The node refused a whole frame for good, or gave none of the possible answers.
    #[error("{0}")]
    Refused(String),
    /// Something took longer than it may.
    #[error("{what} took longer than {seconds} s\n--- last lines of the node's output ---\n{tail}")]
    TimedOut {
        /// What.
        what: &'static str,
        /// The limit.
        seconds: u64,
        /// End of the node's output.
        tail: String,
    },
}

impl PerfError {
    /// Wraps an error of the operating system.
    pub fn system(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |cause| Self::System { doing, cause }
    }

    /// Wraps an error of the client library.
    pub fn client(doing: &'static str) -> impl FnOnce(ClientError) -> Self {
        move |error| Self::Client { doing, error }
    }
}
