//! Some hundred seeds, their determinism, and the power to detect.

use spillway_sim::oracle::Counts;
use spillway_sim::runner::{Plan, run_caught, run_seeds};
use spillway_sim::{BUGS, BUGS_CLUSTER, Bug, Failure, Mode, Options};

fn plan(options: Options, seeds: u64) -> Plan {
    Plan { start: options.seed, options, seeds, jobs: 1, twice: false, keep_going: false }
}

/// No seed fails.
fn clean(plan: &Plan) -> Counts {
    let summary = run_seeds(plan, |_, options, result| {
        if let Err(failure) = result {
            panic!("{failure}\nrepeat with: {}", options.to_line());
        }
    });
    assert_eq!(summary.runs, plan.seeds);
    summary.counts
}

fn alone(seed: u64, mode: Mode) -> Options {
    let options = Options::new(seed);
    Options { mode, faults_nanos: options.faults_nanos / 2, ..options }
}

#[test]
fn promised_faults_are_survived() {
    let counts = clean(&plan(alone(0, Mode::Promised), 120));
    // The runs must meet what they are meant to meet.
    assert!(counts.committed > 10_000);
    assert!(counts.repeated > 50);
    assert!(counts.scans > 500);
    assert!(counts.torn > 20);
    assert!(counts.write_errors > 10);
    assert!(counts.log_full > 10);
    assert!(counts.memory_full > 0);
}

#[test]
fn flipped_bits_are_refused_or_harmless() {
    let counts = clean(&plan(alone(0, Mode::Beyond), 60));
    assert!(counts.refused_starts > 10);
}

#[test]
fn clusters_survive_what_they_promise_to() {
    let counts = clean(&plan(Options::cluster(0, 3), 24));
    assert!(counts.committed > 10_000);
    assert!(counts.repeated > 100);
    assert!(counts.leaderships > 100);
    assert!(counts.transfers > 3);
    assert!(counts.held_back > 50);
    assert!(counts.superseded > 0);
    assert!(counts.read_back > 100);
    assert!(counts.messages_entries > 5_000);
    assert!(counts.torn > 3);
    assert!(counts.write_errors > 5);
    assert!(counts.old_reads > 0 && counts.behind > 0);
    clean(&plan(Options::cluster(1000, 5), 4));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    clean(&Plan { twice: true, ..plan(alone(0, Mode::Promised), 20) });
    clean(&Plan { twice: true, ..plan(Options::cluster(0, 3), 5) });
    let trace = |seed| run_caught(&alone(seed, Mode::Promised)).expect("clean").trace;
    assert_ne!(trace(0), trace(1));
}

#[test]
fn many_threads_give_the_same_numbers() {
    let one = plan(alone(0, Mode::Promised), 20);
    assert_eq!(clean(&Plan { jobs: 5, ..one.clone() }), clean(&one));
}

fn first_found(options: &Options, bug: Bug, seeds: u64) -> (Options, Failure) {
    let options = Options { bug: Some(bug), ..options.clone() };
    let mut found = run_seeds(&plan(options, seeds), |_, _, _| {}).found;
    let found = found.pop().unwrap_or_else(|| panic!("{bug:?} was not found"));
    // The bug was found, not something else that this seed meets without it.
    let without = run_caught(&Options { bug: None, ..found.options.clone() });
    assert!(without.is_ok(), "{} fails without its bug: {without:?}", found.options.to_line());
    (found.options, found.failure)
}

fn all_are_found(options: &Options, bugs: &[Bug]) {
    for bug in bugs {
        let (options, failure) = first_found(options, *bug, 200);
        let failure: String = failure.to_string().chars().take(160).collect();
        println!("{}: {failure}", options.to_line());
    }
}

#[test]
fn every_planted_bug_is_found() {
    all_are_found(&Options::new(0), &BUGS);
}

/// The others show in one seed of hundreds: `cargo xtask sim detect` looks for all.
#[test]
fn bugs_planted_in_a_cluster_are_found() {
    let rare = [Bug::RoundNotAwaited, Bug::HardStateLost];
    let soon: Vec<Bug> = BUGS_CLUSTER.into_iter().filter(|bug| !rare.contains(bug)).collect();
    all_are_found(&Options::cluster(0, 3), &soon);
}

/// Keep-going tells of every failing seed in order, and else the lowest one alone.
#[test]
fn failures_are_told_in_the_order_of_their_seeds() {
    let options = Options { bug: Some(Bug::AnswerBeforeCommit), ..Options::new(0) };
    let all = Plan { jobs: 3, keep_going: true, ..plan(options, 12) };
    let told = |plan: &Plan| {
        let mut told = Vec::new();
        let summary =
            run_seeds(plan, |_, options, result| told.push((options.seed, result.is_ok())));
        let found: Vec<u64> = summary.found.iter().map(|found| found.options.seed).collect();
        (told, found)
    };
    let (seeds, found) = told(&all);
    assert!(seeds.iter().map(|(seed, _)| *seed).eq(0..12));
    assert!(found.len() > 1 && found.is_sorted());
    let (seeds, first) = told(&Plan { keep_going: false, ..all });
    assert_eq!(first, found[..1]);
    assert_eq!(seeds.last(), Some(&(found[0], false)));
}
