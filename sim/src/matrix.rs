//! Every single fault of a disk, on three nodes: what it strikes, how, on whom, and when.
//!
//! ```text
//! cargo xtask sim matrix                 # all cells
//! cargo xtask sim matrix --cell 1234     # one
//! ```
//!
//! A cell is safe if the run finds nothing (see the library), the cluster goes on to commit within
//! the load that follows the fault, and the node is whole within a minute: because nothing was
//! needed, because its peers had what its disk lost - bit for bit -, or because it stopped and
//! said that it must be replaced. The last are counted apart and named.

use std::collections::BTreeMap;
use std::fmt;

use crate::draw::Draw;
use crate::options::{Bug, Options, SECOND, Sizes};
use crate::places::{Place, places};
use crate::plan::FaultKinds;
use crate::runner::caught;
use crate::world::{
    BLOCK_FAULTS, BlockFault, Injection, InjectionReport, MOMENTS, VICTIMS, World, is_nonsense,
};
use crate::{Failure, Report};

/// When the fault strikes.
const AT_NANOS: u64 = 3 * SECOND / 2;
/// The load goes on until then.
const LOAD_NANOS: u64 = 4 * SECOND;
/// A repair takes no longer.
const REPAIR_NANOS_MAX: u64 = 60 * SECOND;
/// Seeds that are tried until what is to be struck is there.
const SEEDS: u64 = 4;

/// What became of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It means nothing, and why.
    Nonsense(&'static str),
    /// What was to be struck was never there.
    NotMet,
    /// Nothing had to be done.
    Whole,
    /// The peers had what was lost.
    Repaired,
    /// The node says that it must be replaced, and why.
    Replace(String),
    /// What must not be.
    Unsafe(String),
}

/// All cells, in an order that does not change.
pub fn cells() -> Vec<Injection> {
    let mut cells = Vec::new();
    for place in places() {
        for fault in BLOCK_FAULTS {
            for victim in VICTIMS {
                for moment in MOMENTS {
                    cells.push(Injection { place, fault, victim, moment, at: AT_NANOS });
                }
            }
        }
    }
    cells
}

/// In words.
pub fn describe(cell: &Injection) -> String {
    let Injection { place, fault, victim, moment, .. } = cell;
    format!("{place}, {fault:?}, {victim:?}, {moment:?}")
}

/// A run that no other fault disturbs, whose log does not fill up.
fn options(seed: u64, bug: Option<Bug>) -> Options {
    let options = |seed| Options {
        bug,
        kinds: Some(FaultKinds::NONE),
        faults_nanos: LOAD_NANOS,
        workers_max: Some(1),
        ..Options::cluster(seed, 3)
    };
    let fits = |seed: &u64| {
        let sizes = Sizes::draw(&mut Draw::new(*seed), &options(*seed));
        sizes.geometry.segments_count >= 40 && sizes.think_nanos == 2_000_000
    };
    let seed = (seed * 1000..).find(fits).expect("most seeds do");
    options(seed)
}

/// Runs one cell, with a planted bug or without.
pub fn run_cell(number: usize, cell: &Injection, seed: u64, bug: Option<Bug>) -> Outcome {
    let line = format!("cargo xtask sim matrix --cell {number} --seed {seed}");
    if let Some(why) = is_nonsense(cell) {
        return Outcome::Nonsense(why);
    }
    for seed in seed * SEEDS..(seed + 1) * SEEDS {
        let result = caught(line.clone(), || {
            let mut world = World::new(options(seed, bug));
            world.inject(*cell);
            world.run_injected()
        });
        match judge(cell, result) {
            Outcome::NotMet => {}
            Outcome::Unsafe(why) => return Outcome::Unsafe(format!("seed {seed}: {why}")),
            outcome => return outcome,
        }
    }
    Outcome::NotMet
}

fn judge(cell: &Injection, result: Result<(Report, InjectionReport), Failure>) -> Outcome {
    let found = match result {
        Ok((_, found)) => found,
        Err(failure) => return Outcome::Unsafe(failure.to_string()),
    };
    let InjectionReport { struck, repairs: [begun, ended], retired, .. } = &found;
    if *struck == 0 {
        return Outcome::NotMet;
    }
    if found.committed_after == 0 {
        return Outcome::Unsafe("nothing was committed any more".to_owned());
    }
    if found.repair_nanos_max > REPAIR_NANOS_MAX {
        return Outcome::Unsafe(format!("a repair took {} s", found.repair_nanos_max / SECOND));
    }
    match &retired[..] {
        [] if *begun == 0 => Outcome::Whole,
        // A node that loses power while it repairs begins again.
        [] if *ended > 0 => Outcome::Repaired,
        [] => Outcome::Unsafe("a repair did not end".to_owned()),
        [why] => {
            let harmless = matches!(cell.fault, BlockFault::WriteError | BlockFault::Torn);
            if harmless {
                return Outcome::Unsafe(format!("no reason to be replaced: {why}"));
            }
            Outcome::Replace(why.clone())
        }
        more => Outcome::Unsafe(format!("{} nodes are gone for one fault", more.len())),
    }
}

/// All that was found.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    outcomes: Vec<(Injection, Outcome)>,
}

/// Cells by outcome.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    nonsense: u64,
    not_met: u64,
    whole: u64,
    repaired: u64,
    replace: u64,
    bad: u64,
}

impl Counts {
    fn note(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Nonsense(_) => self.nonsense += 1,
            Outcome::NotMet => self.not_met += 1,
            Outcome::Whole => self.whole += 1,
            Outcome::Repaired => self.repaired += 1,
            Outcome::Replace(_) => self.replace += 1,
            Outcome::Unsafe(_) => self.bad += 1,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nonsense, not_met, whole, repaired, replace, bad } = self;
        let named = [
            (whole, 'w'),
            (repaired, 'r'),
            (replace, 'R'),
            (not_met, '?'),
            (bad, '!'),
            (nonsense, '-'),
        ];
        let parts: Vec<String> = named
            .iter()
            .filter(|(count, _)| **count > 0)
            .map(|(count, letter)| format!("{count}{letter}"))
            .collect();
        f.pad(&parts.join(" "))
    }
}

impl Summary {
    /// Adds a cell.
    pub fn note(&mut self, cell: Injection, outcome: Outcome) {
        self.outcomes.push((cell, outcome));
    }

    /// Cells that are not safe.
    pub fn bad(&self) -> usize {
        self.outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Unsafe(_))).count()
    }

    /// Cells with this outcome.
    pub fn count(&self, which: impl Fn(&Outcome) -> bool) -> usize {
        self.outcomes.iter().filter(|(_, outcome)| which(outcome)).count()
    }

    fn counts(&self, of: impl Fn(&Injection) -> bool) -> Counts {
        let mut counts = Counts::default();
        for (_, outcome) in self.outcomes.iter().filter(|(cell, _)| of(cell)) {
            counts.note(outcome);
        }
        counts
    }

    fn rows(&self) -> Vec<Place> {
        let mut rows: Vec<Place> = Vec::new();
        for (cell, _) in &self.outcomes {
            if !rows.contains(&cell.place) {
                rows.push(cell.place);
            }
        }
        rows
    }

    /// Texts with how many cells say so. What differs from run to run - numbers - is left out.
    fn grouped(&self, text: impl Fn(&Outcome) -> Option<String>) -> BTreeMap<String, u64> {
        let mut groups = BTreeMap::new();
        for (cell, outcome) in &self.outcomes {
            if let Some(text) = text(outcome) {
                let words = text.split_whitespace();
                let kept = words.filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
                let text = kept.collect::<Vec<_>>().join(" ");
                let text: String = text.chars().take(110).collect();
                *groups.entry(format!("{}: {text}", cell.place)).or_default() += 1;
            }
        }
        groups
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "w whole, r repaired, R to be replaced, ? never there, ! not safe, - means nothing"
        )?;
        write!(f, "{:<22}", "")?;
        for fault in BLOCK_FAULTS {
            write!(f, "{:>13}", format!("{fault:?}"))?;
        }
        writeln!(f)?;
        for place in self.rows() {
            write!(f, "{:<22}", place.to_string())?;
            for fault in BLOCK_FAULTS {
                let counts = self.counts(|cell| cell.place == place && cell.fault == fault);
                write!(f, "{counts:>13}")?;
            }
            writeln!(f)?;
        }
        let replace = |outcome: &Outcome| match outcome {
            Outcome::Replace(why) => Some(why.clone()),
            _ => None,
        };
        for (text, count) in self.grouped(replace) {
            writeln!(f, "replace {count:>4}: {text}")?;
        }
        let nonsense = |outcome: &Outcome| match outcome {
            Outcome::Nonsense(why) => Some((*why).to_owned()),
            _ => None,
        };
        for (text, count) in self.grouped(nonsense) {
            writeln!(f, "means nothing {count:>4}: {text}")?;
        }
        for (cell, outcome) in &self.outcomes {
            if let Outcome::Unsafe(why) = outcome {
                writeln!(f, "NOT SAFE {}: {why}", describe(cell))?;
            }
        }
        let all = self.counts(|_| true);
        write!(
            f,
            "{} cells: {} whole, {} repaired, {} to be replaced, {} never there, {} mean nothing, \
             {} not safe",
            self.outcomes.len(),
            all.whole,
            all.repaired,
            all.replace,
            all.not_met,
            all.nonsense,
            all.bad
        )
    }
}
