//! The simulator: whole nodes and their clients in one thread, from one seed, in virtual time.
//!
//! What runs are the cores that run in production - `Shard`, `Root`, `Replica` with its log,
//! `LogScanner`, `ClientCore` -; what is simulated is the world: [`disk`], [`network`] and
//! [`links`] say at their head which faults they produce. A node, or all of them, lose power at any
//! moment, read their logs back through the real recovery, and go on, many times per seed. Leaders
//! change by that, by cuts between nodes, and by the operator's wish.
//!
//! ```text
//! cargo xtask sim --seeds 1000            # seeds 0 to 999, a node of its own
//! cargo xtask sim --seeds 1000 --nodes 3  # a cluster
//! cargo xtask sim --seeds 1000 --start 5000
//! cargo xtask sim --seeds 500 --nodes 3 --seconds 60
//! cargo xtask sim --seed 4711             # one, with its faults and numbers
//! cargo xtask sim --seed 4711 --beyond    # with flipped bits, too
//! cargo xtask sim --seed 4711 --shrink    # with as few faults as show its failure
//! cargo xtask sim --seeds 9 --nodes 3 --lossy --twice
//! cargo xtask sim --seeds 50 --bug sessions-forgotten
//! ```
//!
//! A failure prints the line that repeats it. The same seed gives the same run on every machine:
//! [`Report::trace`] is a hash over all its events, and `--twice` holds two runs against each
//! other. [`runner`] runs seeds on all CPUs, [`shrink`] makes a failing run small, [`arguments`]
//! says what a run is made of.
//!
//! What is judged:
//!
//! - [`replicas`]: each node's own log. Logs match; a node acknowledges only what is durable there;
//!   what is committed was durable on a majority; nothing committed is ever replaced; a leader was
//!   elected with a log that has everything committed; a node's committed end never falls.
//! - [`history`]: there is one log. Nothing committed is ever replaced; what a follower applies and
//!   what a restart finds is, byte for byte, what was appended; LSN, terms and timestamps rise. A
//!   term has one leader, and a new one has everything that is committed. Over all its starts a
//!   node votes once in a term, and its term never falls.
//! - [`model`] executes every transaction again on a plain map, in the order in which the shard
//!   executed it, and every answer - outcome, rows, versions, scan page - must be equal. An answer
//!   leaves when it is committed, and nobody answers who was replaced before the request came.
//! - [`reads`]: what a follower answers is what the log was when it answered, and as fresh as it
//!   promises.
//! - Memory and queues of a node stay within their limits, after every step.
//! - When a leadership begins, and at the end, the log must hold every acknowledged transaction,
//!   once; every other one in full or not at all; rows, versions and kept outcomes equal to the
//!   model's; balances that add up; and each shard that begins to lead the digests of the log.
//! - What clients saw - rows, versions, absent rows, and when - is kept by [`recorder`], and
//!   [`checker`] looks for a strictly serializable order of it, knowing nothing of the cores.
//! - A client never hears "committed" of what is not in the log, nor "no effect" of what is.
//! - When the faults stop, every request is answered, all nodes have the same and come to rest, and
//!   a majority of the disks holds all of it.
//!
//! Sizes are drawn small, so that logs and memory fill up. Nothing raises the log's floor yet:
//! segments are used once, and some runs have a log that is small enough to be full.
//!
//! Two things come from within the product ([`spillway_runtime::faults`]): points at which a seed
//! forces rare paths, armed in every run, and bugs that can be planted. [`bug::Bug`] lists these
//! and those of the shells, and [`detect`] looks for each; tests assert that all are found.

pub mod arguments;
pub mod bug;
pub mod calendar;
pub mod checker;
pub mod clock;
pub mod counts;
pub mod detect;
pub mod disk;
pub mod draw;
pub mod entry;
pub mod flip;
pub mod history;
pub mod images;
pub mod links;
pub mod matrix;
pub mod model;
pub mod network;
pub mod node;
pub mod options;
pub mod oracle;
pub mod places;
pub mod plan;
pub mod reads;
pub mod recorder;
pub mod replicas;
pub mod runner;
pub mod shrink;
pub mod start;
pub mod unanswered;
pub mod worker;
pub mod world;

use std::fmt;

use checker::History;
use spillway_runtime::faults;

pub use bug::{BUGS, BUGS_CLUSTER, Bug};
pub use options::{Mode, Options};
pub use plan::{Fault, FaultKind, FaultKinds};
pub use world::{Report, World};

/// Words of a failure that tell its kind.
const KIND_WORDS: usize = 8;

/// What must not happen, and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// In words.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    /// Its first words without their numbers: failures of one kind have the same.
    pub fn kind(&self) -> String {
        let words = self.0.split_whitespace().take(KIND_WORDS);
        let word = |word: &str| word.replace(|letter: char| letter.is_ascii_digit(), "");
        words.map(word).collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One run. A broken assertion of a core panics.
pub fn run(options: Options) -> Result<Report, Failure> {
    armed(options, World::run)
}

/// One run, and what its clients saw. A broken assertion of a core panics.
pub fn run_recorded(options: Options) -> Result<(Result<Report, Failure>, History), Failure> {
    armed(options, World::run_recorded)
}

fn armed<T>(options: Options, run: impl FnOnce(World) -> T) -> T {
    let bug = options.bug.and_then(Bug::planted);
    // Armed on this thread until the run ends, however it ends.
    let _armed = faults::arm(options.seed, bug);
    if options.points_off {
        faults::quiet();
    }
    options.points_disarmed.iter().for_each(|point| faults::disarm(*point));
    run(World::new(options))
}
