//! Damaged disks in a cluster: repaired from the peers, refused, and never a cause of loss.

use spillway_sim::Bug;
use spillway_sim::flip;
use spillway_sim::matrix::{Outcome, Summary, cells, describe, run_cell};
use spillway_sim::places::{Part, Place, Which};
use spillway_sim::world::{BlockFault, Injection, Moment, Victim};

fn outcome_of(place: Place, fault: BlockFault, victim: Victim, moment: Moment) -> Outcome {
    let all = cells();
    let is_it = |cell: &Injection| {
        cell.place == place && cell.fault == fault && cell.victim == victim && cell.moment == moment
    };
    let number = all.iter().position(is_it).expect("all combinations are cells");
    run_cell(number, &all[number], 0, None)
}

#[test]
fn what_the_peers_have_is_repaired() {
    let body = Place::Frame(Which::Middle, Part::Body);
    for victim in [Victim::Leader, Victim::Follower, Victim::Lagging] {
        let outcome = outcome_of(body, BlockFault::Garbage, victim, Moment::Rest);
        assert_eq!(outcome, Outcome::Repaired, "{victim:?}");
    }
    let unreadable = outcome_of(body, BlockFault::ReadError, Victim::Follower, Moment::TakeOver);
    assert_eq!(unreadable, Outcome::Repaired);
    let shared = Place::Frame(Which::First, Part::Shared);
    let outcome = outcome_of(shared, BlockFault::Bit, Victim::Leader, Moment::Running);
    assert_eq!(outcome, Outcome::Repaired);
}

#[test]
fn what_nobody_can_know_is_refused_and_the_others_go_on() {
    let local = Place::Frame(Which::Middle, Part::Local);
    for moment in [Moment::Rest, Moment::OtherRecovers] {
        let outcome = outcome_of(local, BlockFault::Bit, Victim::Follower, moment);
        assert!(matches!(outcome, Outcome::Replace(_)), "{moment:?}: {outcome:?}");
    }
    let all = Place::Superblock(0b1111);
    let outcome = outcome_of(all, BlockFault::Garbage, Victim::Leader, Moment::Rest);
    assert!(matches!(outcome, Outcome::Replace(_)), "{outcome:?}");
    let three = Place::Superblock(0b0111);
    let outcome = outcome_of(three, BlockFault::Garbage, Victim::Leader, Moment::Rest);
    assert_eq!(outcome, Outcome::Whole);
}

#[test]
fn a_sample_of_all_single_faults_is_safe() {
    let mut summary = Summary::default();
    for (number, cell) in cells().iter().enumerate().step_by(101) {
        let outcome = run_cell(number, cell, 1, None);
        println!("{number} {}: {outcome:?}", describe(cell));
        summary.note(*cell, outcome);
    }
    assert_eq!(summary.bad(), 0, "{summary}");
    assert!(summary.count(|outcome| *outcome == Outcome::Repaired) > 0, "{summary}");
}

#[test]
fn flipped_bits_and_power_losses_of_all_lose_nothing() {
    let (mut seed, mut runs) = (100, 0);
    let (mut flips, mut repairs, mut exposed) = (0, 0, 0);
    while runs < 3 {
        if let Some(options) = flip::options(seed, 5) {
            let (_, found) = flip::run(options).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            runs += 1;
            flips += found.struck;
            repairs += found.repairs[1];
            exposed += found.exposed;
        }
        seed += 1;
    }
    assert!(flips > 3 && repairs > 1 && exposed > 1000, "{flips} {repairs} {exposed}");
}

/// The rigs themselves must be able to fail.
#[test]
fn a_planted_bug_is_found() {
    let mut found = 0;
    for seed in (200..).filter(|seed| flip::options(*seed, 5).is_some()).take(4) {
        let mut options = flip::options(seed, 5).expect("filtered");
        options.bug = Some(Bug::WriteConfirmedEarly);
        found += u32::from(flip::run(options).is_err());
    }
    assert!(found > 0, "writes that are confirmed early lose transactions");
    let cell = Injection {
        place: Place::Frame(Which::Last, Part::Body),
        fault: BlockFault::Torn,
        victim: Victim::Follower,
        moment: Moment::Running,
        at: 1_500_000_000,
    };
    let bug = Some(Bug::WriteConfirmedEarly);
    let outcomes: Vec<Outcome> = (0..4).map(|seed| run_cell(0, &cell, seed, bug)).collect();
    let is_unsafe = |outcome: &Outcome| matches!(outcome, Outcome::Unsafe(_));
    assert!(outcomes.iter().any(is_unsafe), "{outcomes:?}");
}
