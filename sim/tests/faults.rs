//! The faults of the plan: every kind strikes, all at once break nothing, and long runs stay small.

use spillway_sim::options::SECOND;
use spillway_sim::plan::{FAULT_KINDS, FaultCounts};
use spillway_sim::{FaultKind, FaultKinds, Mode, Options, Report, run};

fn clean(options: Options) -> Report {
    let line = options.to_line();
    run(options).unwrap_or_else(|failure| panic!("{failure}\nrepeat with: {line}"))
}

/// Faults of the plan alone: rare paths in the product are another test's.
fn plain(options: Options) -> Options {
    Options { points_off: true, ..options }
}

fn struck(runs: impl Iterator<Item = Options>) -> FaultCounts {
    let mut sum = FaultCounts::default();
    for options in runs {
        sum.add(&clean(options).counts.faults);
    }
    sum
}

#[test]
fn every_kind_strikes_in_a_cluster() {
    // Where a disk may lose its last writes nothing else happens for a while.
    let without = FAULT_KINDS.into_iter().filter(|kind| *kind != FaultKind::WritesLost);
    let sets = [FaultKinds::ALL, FaultKinds::of(without)];
    let options = |seed: u64| Options {
        mode: Mode::Beyond,
        lossy: true,
        kinds: Some(sets[seed as usize % 2]),
        ..plain(Options::cluster(seed, 3))
    };
    let sum = struck((0..16).map(options));
    for kind in FAULT_KINDS {
        assert!(sum.of(kind) > 0, "no {} in {sum:?}", kind.name());
    }
}

#[test]
fn every_kind_strikes_a_lone_node() {
    let options = |seed| Options { mode: Mode::Beyond, ..plain(Options::new(seed)) };
    let sum = struck((0..60).map(options));
    for kind in FAULT_KINDS.into_iter().filter(|kind| kind.is_possible(&options(0))) {
        assert!(sum.of(kind) > 0, "no {} in {sum:?}", kind.name());
    }
}

#[test]
fn a_minority_of_damaged_disks_costs_nothing() {
    let options = |seed| Options { mode: Mode::Beyond, ..plain(Options::cluster(seed, 3)) };
    let mut refused = 0;
    for seed in 504..516 {
        refused += clean(options(seed)).counts.refused_starts;
    }
    for seed in 500..503 {
        clean(Options { nodes: 5, ..options(seed) });
    }
    assert!(refused > 0, "a damaged disk is refused, and its node replaced");
}

#[test]
fn long_runs_meet_more_and_cost_little() {
    let report = clean(plain(Options::cluster(2, 3).seconds(30)));
    assert!(report.nanos >= 30 * SECOND);
    assert!(report.counts.restarts > 10 && report.counts.committed > 1000);
    assert!(report.counts.events < 3_000_000, "{} events", report.counts.events);
}
