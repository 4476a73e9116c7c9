//! One flipped bit in the log of one of five nodes and a power loss of all, again and again.
//!
//! ```text
//! cargo xtask sim flip                          # until a million transactions were exposed
//! cargo xtask sim flip --seed 17                # one run
//! ```
//!
//! A transaction is exposed that was acknowledged before the last flip of its run. The judges of
//! the library find whatever is lost, twice, or another; a node whose disk says nothing certain
//! any more says so and stays down, at most a minority of them.

use crate::draw::Draw;
use crate::options::{Options, SECOND, Sizes};
use crate::plan::FaultKinds;
use crate::runner::caught;
use crate::world::{InjectionReport, World};
use crate::{Failure, Report};

/// Nodes of the cluster.
const NODES: u16 = 5;
/// Time between two flips.
const FLIP_NANOS: u64 = SECOND;

/// The run of a seed: nothing else goes wrong. None: its log fills up, or its clients do little.
pub fn options(seed: u64, seconds: u64) -> Option<Options> {
    let options = Options {
        kinds: Some(FaultKinds::NONE),
        faults_nanos: seconds * SECOND,
        ..Options::cluster(seed, NODES)
    };
    let sizes = Sizes::draw(&mut Draw::new(seed), &options);
    let fits = sizes.geometry.segments_count >= 40 && sizes.think_nanos < 10_000_000;
    fits.then_some(options)
}

/// Runs a seed.
///
/// # Errors
/// What must not happen, and did.
pub fn run(options: Options) -> Result<(Report, InjectionReport), Failure> {
    caught(line(&options), || {
        let mut world = World::new(options);
        world.flips(FLIP_NANOS);
        world.run_injected()
    })
}

/// The line that repeats a run.
pub fn line(options: &Options) -> String {
    let (seed, seconds) = (options.seed, options.faults_nanos / SECOND);
    format!("cargo xtask sim flip --seed {seed} --seconds {seconds}")
}
