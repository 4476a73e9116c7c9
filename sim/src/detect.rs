//! The power to detect: every bug that can be planted, and how soon it is found.

use spillway_runtime::clock::monotonic_now;

use crate::runner::run_caught;
use crate::{Bug, Options, Report};

/// Seeds that are tried for a bug unless told.
pub const SEEDS_MAX: u64 = 2000;
/// Letters of a failure in the table.
const FAILURE_LETTERS_MAX: usize = 110;

/// How a bug was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The bug.
    pub bug: Bug,
    /// Nodes of the cluster.
    pub nodes: u16,
    /// The first seed that shows it.
    pub seed: u64,
    /// Time that all seeds up to it took, nanoseconds.
    pub nanos: u64,
    /// What failed.
    pub failure: String,
    /// What the same seed does without the bug: a failure there is another bug.
    pub without: Result<(), String>,
}

/// A run whose broken assertions are failures too.
pub fn caught(options: &Options) -> Result<Report, String> {
    run_caught(options).map_err(|failure| failure.to_string())
}

/// Runs seeds with the bug until one fails.
pub fn find(bug: Bug, nodes: Option<u16>, seeds: std::ops::Range<u64>) -> Option<Found> {
    let began = monotonic_now();
    for seed in seeds {
        let options = bug.options(seed, nodes);
        let Err(failure) = caught(&options) else { continue };
        let nanos = monotonic_now().saturating_nanos_since(began);
        let without = caught(&Options { bug: None, ..options.clone() });
        let without = without.map(drop);
        return Some(Found { bug, nodes: options.nodes, seed, nanos, failure, without });
    }
    None
}

impl Found {
    /// Whether the bug, and nothing else, made the seed fail.
    pub fn is_clear(&self) -> bool {
        self.without.is_ok()
    }

    /// A line of the table.
    pub fn line(&self) -> String {
        let letters = |text: &str| -> String {
            let plain = text.chars().map(|letter| match letter {
                '|' => '/',
                letter if letter.is_control() => ' ',
                letter => letter,
            });
            plain.take(FAILURE_LETTERS_MAX).collect()
        };
        let mut by = letters(&self.failure);
        if let Err(other) = &self.without {
            by = format!("UNCLEAR, fails without it: {}", letters(other));
        }
        format!(
            "| {} | {} | {} | {} | {:.1} | {by} |",
            self.bug.name(),
            self.bug.text(),
            self.nodes,
            self.seed,
            self.nanos as f64 / 1e9
        )
    }
}

/// The head of the table.
pub const HEAD: &str =
    "| bug | what is broken | nodes | seed | seconds | found by |\n|---|---|---|---|---|---|";

/// Looks for every bug, or for one; tells of each as it is found. Returns those that were missed
/// or whose seed fails without them.
pub fn detect(
    bugs: &[Bug],
    nodes: Option<u16>,
    seeds: u64,
    mut told: impl FnMut(Bug, Option<&Found>),
) -> Vec<Bug> {
    let mut missed = Vec::new();
    for bug in bugs {
        let found = find(*bug, nodes, 0..seeds);
        if !found.as_ref().is_some_and(Found::is_clear) {
            missed.push(*bug);
        }
        told(*bug, found.as_ref());
    }
    missed
}
