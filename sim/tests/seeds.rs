//! Some hundred seeds, their determinism, and the power to detect.

use std::panic::{AssertUnwindSafe, catch_unwind};

use spillway_sim::{BUGS, BUGS_CLUSTER, Bug, Mode, Options, Report, run};

/// A broken assertion of a core is a finding too.
fn caught(options: Options) -> Result<Report, String> {
    match catch_unwind(AssertUnwindSafe(|| run(options))) {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(failure)) => Err(failure.to_string()),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default()),
    }
}

fn clean(seeds: std::ops::Range<u64>, mode: Mode) -> Vec<Report> {
    seeds
        .map(|seed| {
            let mut options = Options::new(seed);
            options.mode = mode;
            options.faults_nanos /= 2;
            caught(options).unwrap_or_else(|failure| panic!("seed {seed}, {mode:?}: {failure}"))
        })
        .collect()
}

#[test]
fn promised_faults_are_survived() {
    let reports = clean(0..120, Mode::Promised);
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    // The runs must meet what they are meant to meet.
    assert!(sum(|r| r.counts.committed) > 10_000);
    assert!(sum(|r| r.counts.repeated) > 50);
    assert!(sum(|r| r.counts.scans) > 500);
    assert!(sum(|r| r.counts.torn) > 20);
    assert!(sum(|r| r.counts.write_errors) > 10);
    assert!(sum(|r| r.counts.log_full) > 10);
    assert!(sum(|r| r.counts.memory_full) > 0);
}

#[test]
fn flipped_bits_are_refused_or_harmless() {
    let reports = clean(0..60, Mode::Beyond);
    assert!(reports.iter().map(|r| r.counts.refused_starts).sum::<u64>() > 10);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (first, second) = (clean(0..20, Mode::Promised), clean(0..20, Mode::Promised));
    assert_eq!(first, second);
    assert_ne!(first[0].trace, first[1].trace);
}

fn clean_cluster(seeds: std::ops::Range<u64>, nodes: u16) -> Vec<Report> {
    seeds
        .map(|seed| {
            let report = caught(Options::cluster(seed, nodes));
            report.unwrap_or_else(|failure| panic!("seed {seed}, {nodes} nodes: {failure}"))
        })
        .collect()
}

#[test]
fn clusters_survive_what_they_promise_to() {
    let mut reports = clean_cluster(0..40, 3);
    reports.extend(clean_cluster(1000..1010, 5));
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    assert!(sum(|r| r.counts.committed) > 20_000);
    assert!(sum(|r| r.counts.repeated) > 300);
    assert!(sum(|r| r.counts.leaderships) > 200);
    assert!(sum(|r| r.counts.transfers) > 20);
    assert!(sum(|r| r.counts.held_back) > 200);
    assert!(sum(|r| r.counts.superseded) > 20);
    assert!(sum(|r| r.counts.read_back) > 200);
    assert!(sum(|r| r.counts.messages_entries) > 10_000);
    assert!(sum(|r| r.counts.torn) > 20);
    assert!(sum(|r| r.counts.write_errors) > 10);
}

#[test]
fn the_same_seed_gives_the_same_cluster() {
    assert_eq!(clean_cluster(0..5, 3), clean_cluster(0..5, 3));
}

fn found_within(options: Options, bug: Bug, seeds: u64) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| {
        let options = Options { seed, bug: Some(bug), ..options.clone() };
        caught(options).err().map(|failure| (seed, failure))
    })
}

fn all_are_found(options: Options, bugs: &[Bug]) {
    for bug in bugs {
        let found = found_within(options.clone(), *bug, 200);
        let (seed, failure) = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        // The bug was found, not something else that this seed meets without it.
        let without = caught(Options { seed, bug: None, ..options.clone() });
        assert!(without.is_ok(), "seed {seed} fails without {bug:?}: {without:?}");
        let failure: String = failure.chars().take(160).collect();
        println!("{bug:?}: seed {seed}: {failure}");
    }
}

#[test]
fn every_planted_bug_is_found() {
    all_are_found(Options::new(0), &BUGS);
}

#[test]
fn every_bug_planted_in_a_cluster_is_found() {
    all_are_found(Options::cluster(0, 3), &BUGS_CLUSTER);
}
