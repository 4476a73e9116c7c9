//! What planted bugs do is shown by few faults.

use spillway_sim::runner::{Plan, run_caught, run_seeds};
use spillway_sim::shrink::shrink;
use spillway_sim::{BUGS, BUGS_CLUSTER, Bug, Options};

/// Faults that a person can look at one by one.
const FAULTS_FEW: usize = 20;
const RUNS_MAX: u64 = 120;

/// Shrinks the first seed that finds a bug. Returns how many faults are left.
fn faults_left(options: &Options, bug: Bug) -> usize {
    let options = Options { bug: Some(bug), ..options.clone() };
    let plan = Plan { options, start: 0, seeds: 200, jobs: 1, twice: false, keep_going: false };
    let found = run_seeds(&plan, |_, _, _| {}).found.pop();
    let found = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
    let shrunk = shrink(&found.options, RUNS_MAX).expect("the seed fails");
    let line = shrunk.options.to_line();
    println!("{} faults in {} runs: {line}", shrunk.faults.len(), shrunk.runs);
    assert_eq!(shrunk.failure.kind(), found.failure.kind());
    let again = run_caught(&shrunk.options).expect_err("the small run fails");
    assert_eq!(again, shrunk.failure, "{line}");
    shrunk.faults.len()
}

#[test]
fn nine_bugs_of_ten_are_shown_by_few_faults() {
    let alone = BUGS.iter().map(|bug| faults_left(&Options::new(0), *bug));
    let cluster = BUGS_CLUSTER.iter().map(|bug| faults_left(&Options::cluster(0, 3), *bug));
    let left: Vec<usize> = alone.chain(cluster).collect();
    let few = left.iter().filter(|faults| **faults <= FAULTS_FEW).count();
    assert!(few * 10 >= left.len() * 9, "{left:?}");
}
