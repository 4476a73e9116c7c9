//! Every bug that can be planted is found, by the seed that found it last or by one of the first.

use spillway_sim::Bug;
use spillway_sim::detect::find;

/// Seeds that are tried for each bug besides the known one.
const SEEDS_MORE: u64 = 12;

/// Names of bugs, and a seed that shows them. A change of the product or of the simulator moves
/// them: `cargo xtask sim detect` finds the new ones.
const SEEDS: &[(&str, u64)] = &[
@@
];

/// Found by some tens or hundreds of seeds: too many for a test, and looked for by `cargo xtask sim
/// detect` alone.
const RARE: &[&str] = &[@R@];

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
