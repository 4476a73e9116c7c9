//! What planted bugs do is shown by few faults. `cargo xtask sim detect --shrink` looks at all.

use spillway_sim::runner::{Plan, run_caught, run_seeds};
use spillway_sim::shrink::shrink;
use spillway_sim::{BUGS, BUGS_CLUSTER, Bug, Options};

/// Faults that a person can look at one by one.
const FAULTS_FEW: usize = 20;
const RUNS_MAX: u64 = 200;

/// Shrinks the first of a few seeds that finds a bug. Returns how many faults are left.
fn faults_left(options: &Options, seeds: u64, bug: Bug) -> Option<usize> {
    let options = Options { bug: Some(bug), ..options.clone() };
    let plan = Plan { options, start: 0, seeds, jobs: 1, twice: false, keep_going: false };
    let found = run_seeds(&plan, |_, _, _| {}).found.pop()?;
    let shrunk = shrink(&found.options, RUNS_MAX).expect("the seed fails");
    let line = shrunk.options.to_line();
    println!("{} faults in {} runs: {line}", shrunk.faults.len(), shrunk.runs);
    assert_eq!(shrunk.failure.kind(), found.failure.kind());
    let again = run_caught(&shrunk.options).expect_err("the small run fails");
    assert_eq!(again, shrunk.failure, "{line}");
    Some(shrunk.faults.len())
}

#[test]
fn nine_bugs_of_ten_are_shown_by_few_faults() {
    let alone = BUGS.iter().filter_map(|bug| faults_left(&Options::new(0), 8, *bug));
    let cluster = Options::cluster(0, 3);
    let cluster = BUGS_CLUSTER.iter().filter_map(|bug| faults_left(&cluster, 2, *bug));
    let left: Vec<usize> = alone.chain(cluster).collect();
    let few = left.iter().filter(|faults| **faults <= FAULTS_FEW).count();
    assert!(left.len() >= 8, "most of them are found at once: {left:?}");
    assert!(few * 10 >= left.len() * 9, "{left:?}");
}
