//! The simulator: a whole node and its clients in one thread, from one seed, in virtual time.
//!
//! What runs are the cores that run in production - `Shard`, `Root`, `LogWriter`, `LogScanner`,
//! `ClientCore` -; what is simulated is the world: [`disk`] and [`network`] say at their head which
//! faults they produce. The node loses power at any moment, reads its log back through the real
//! recovery, and goes on, many times per seed.
//!
//! ```text
//! cargo xtask sim --seeds 1000            # seeds 0 to 999
//! cargo xtask sim --seeds 1000 --start 5000
//! cargo xtask sim --seed 4711             # one, with its numbers
//! cargo xtask sim --seed 4711 --beyond    # with flipped bits, too
//! cargo xtask sim --seeds 50 --bug sessions-forgotten
//! ```
//!
//! A failure prints the line that repeats it. The same seed gives the same run on every machine:
//! [`Report::trace`] is a hash over all its events.
//!
//! What is judged:
//!
//! - [`model`] executes every transaction again on a plain map, in the order in which the shard
//!   executed it, and every answer - outcome, rows, versions, scan page - must be equal.
//! - At every restart the log must hold, byte for byte, what was appended; every acknowledged
//!   transaction, once; every other one in full or not at all; rows, versions and kept outcomes
//!   equal to the model's; balances that add up; LSN and timestamps that rise. Digests are checked
//!   by the replay of the product.
//! - A client never hears "committed" of what is not in the log, nor "no effect" of what is.
//! - When the faults stop, every request is answered and the node comes to rest.
//!
//! Sizes are drawn small, so that segments are recycled, logs and memory fill up. There is no
//! freeze yet: a checkpoint here raises the log's floor, and the run keeps what stands below it as
//! a baseline would.
//!
//! [`options::Bug`] lists bugs that can be planted around the cores; tests assert that each is
//! found.

pub mod disk;
pub mod draw;
pub mod entry;
pub mod history;
pub mod links;
pub mod model;
pub mod network;
pub mod node;
pub mod options;
pub mod oracle;
pub mod start;
pub mod worker;
pub mod world;

use std::fmt;

pub use options::{BUGS, BUGS_CLUSTER, Bug, Mode, Options};
pub use world::{Report, World};

/// What must not happen, and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// In words.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One run. A broken assertion of a core panics.
pub fn run(options: Options) -> Result<Report, Failure> {
    World::new(options).run()
}
