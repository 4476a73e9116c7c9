//! Every bug that can be planted is found, by the seed that found it last or by one of the first.

use spillway_sim::Bug;
use spillway_sim::detect::find;

/// Seeds that are tried for each bug besides the known one.
const SEEDS_MORE: u64 = 12;

/// Names of bugs, and a seed that shows them. A change of the product or of the simulator moves
/// them: `cargo xtask sim detect` finds the new ones.
const SEEDS: &[(&str, u64)] = &[
    ("answer-before-commit", 0),
    ("bounds-ignored", 4),
    ("client-acknowledges-unread", 0),
    ("client-forgets-doubt", 18),
    ("clock-not-carried-over", 0),
    ("commit-hint-ahead", 20),
    ("commit-out-of-order", 4),
    ("commits-older-term", 0),
    ("completion-counts-for-all", 0),
    ("deadline-lost", 0),
    ("digest-skipped", 4),
    ("durable-claimed-early", 4),
    ("follower-acknowledges-early", 0),
    ("follower-reads-early", 0),
    ("frame-place-overlaps", 0),
    ("hand-over-lost", 2),
    ("leads-before-applied", 0),
    ("leads-before-own-entry", 0),
    ("order-lost", 0),
    ("outcome-evicted-early", 0),
    ("outcomes-not-applied", 0),
    ("own-append-counted-early", 0),
    ("read-answers-uncommitted", 4),
    ("replay-one-less", 0),
    ("replay-section-skipped", 4),
    ("results-forgotten-early", 6),
    ("row-version-reused", 4),
    ("scan-skips-behind-deleted", 4),
    ("section-dropped", 4),
    ("sections-applied-backwards", 0),
    ("session-id-reused", 0),
    ("step-down-keeps-outcomes", 0),
    ("step-down-keeps-rows", 0),
    ("superblock-not-written", 1),
    ("superblock-oldest-chosen", 1),
    ("table-id-reused", 0),
    ("tail-not-held-back", 0),
    ("undo-oldest-first", 4),
    ("vote-for-short-log", 0),
    ("vote-forgotten", 66),
    ("vote-not-awaited", 0),
    ("votes-twice", 1),
    ("write-confirmed-early", 0),
    ("write-error-ignored", 0),
];

/// Found by some tens or hundreds of seeds: too many for a test, and looked for by `cargo xtask sim
/// detect` alone.
const RARE: &[&str] = &[
    "damage-taken-for-torn",
    "fence-forgotten",
    "hard-state-lost",
    "log-matching-skipped",
    "remains-not-wiped",
    "round-confirmed-alone",
    "round-not-awaited",
    "round-of-the-past",
    "sessions-forgotten",
];

const PARTS: usize = 4;

fn part(number: usize) {
    let known = SEEDS.iter().skip(number).step_by(PARTS);
    let mut missed = Vec::new();
    for (name, seed) in known {
        let bug = Bug::parse(name).expect("a bug has this name");
        let found = find(bug, None, *seed..seed + 1).or_else(|| find(bug, None, 0..SEEDS_MORE));
        match found {
            Some(found) => {
                println!("{}", found.line());
                assert!(found.is_clear(), "repeat with: cargo xtask sim detect --bug {name}");
            }
            None => missed.push(*name),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}; see cargo xtask sim detect --bug NAME");
}

#[test]
fn all_bugs_have_their_place() {
    for bug in Bug::all() {
        let name = bug.name();
        let listed = SEEDS.iter().filter(|(known, _)| *known == name).count()
            + RARE.iter().filter(|known| **known == name).count();
        assert_eq!(listed, 1, "{name}");
    }
}

#[test]
fn bugs_are_found_first_part() {
    part(0);
}

#[test]
fn bugs_are_found_second_part() {
    part(1);
}

#[test]
fn bugs_are_found_third_part() {
    part(2);
}

#[test]
fn bugs_are_found_fourth_part() {
    part(3);
}
