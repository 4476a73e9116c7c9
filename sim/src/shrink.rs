//! Makes a failing run small: the same failure in less time, without the product's own points or with
//! fewer of them, with fewer kinds of faults, with fewer faults, with fewer clients.
//!
//! What is left out of a plan moves no other fault, but it does move all other chance: latencies
//! and the clients' choices follow other events. So each smaller run is tried with a few salts:
//! the plan is the same, the rest of the chance another one. A run counts as failing in the same
//! way if the first words of the failure are the same ([`Failure::kind`]).

use spillway_runtime::faults::{self, Point};

use crate::plan::{Fault, FaultKinds, is_left_out, plan};
use crate::runner::run_caught;
use crate::{Failure, Options};

/// Salts that are tried for a smaller run, the current one first.
const SALTS: u64 = 4;
/// Parts into which time is cut.
const TIME_PARTS: u64 = 64;

/// A small run.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The run.
    pub options: Options,
    /// How it fails.
    pub failure: Failure,
    /// The faults that it meets.
    pub faults: Vec<Fault>,
    /// Runs that it took.
    pub runs: u64,
}

/// The faults that a run meets, if it lasts.
pub fn faults_of(options: &Options) -> Vec<Fault> {
    let mut faults = plan(options);
    faults.retain(|fault| !is_left_out(fault, options) && fault.at < options.faults_end());
    faults
}

/// The points in the product that may fire in a run.
pub fn points_of(options: &Options) -> Vec<Point> {
    let may_fire = |point: &Point| !options.points_off && !options.points_disarmed.contains(point);
    faults::armed_by(options.seed).filter(may_fire).collect()
}

struct Search<'a> {
    best: Options,
    failure: Failure,
    runs: u64,
    runs_max: u64,
    run: &'a mut dyn FnMut(&Options) -> Result<(), Failure>,
}

impl Search<'_> {
    /// Whether a smaller run fails in the same way; then it is the best from now on.
    fn take(&mut self, smaller: &Options) -> bool {
        for salt in 0..SALTS {
            if self.runs >= self.runs_max {
                return false;
            }
            self.runs += 1;
            let salted = Options { salt: (smaller.salt + salt) % SALTS, ..smaller.clone() };
            let failed = (self.run)(&salted).err();
            if let Some(failure) = failed.filter(|failure| failure.kind() == self.failure.kind()) {
                (self.best, self.failure) = (salted, failure);
                return true;
            }
        }
        false
    }

    /// Halves what is left of the time as long as that goes.
    fn time(&mut self) {
        let unit = (self.best.faults_nanos / TIME_PARTS).max(1);
        let (mut fits_not, mut fits) = (0, self.best.faults_end().div_ceil(unit));
        while fits - fits_not > 1 {
            let middle = fits_not + (fits - fits_not) / 2;
            let until = Some(middle * unit);
            if self.take(&Options { until_nanos: until, ..self.best.clone() }) {
                fits = middle;
            } else {
                fits_not = middle;
            }
        }
    }

    fn kinds(&mut self) {
        let all = FaultKinds::of(faults_of(&self.best).iter().map(|fault| fault.kind));
        let none = all.iter().fold(self.best.kinds_off, FaultKinds::with);
        if self.take(&Options { kinds_off: none, ..self.best.clone() }) {
            return;
        }
        for kind in all.iter() {
            let kinds_off = self.best.kinds_off.with(kind);
            self.take(&Options { kinds_off, ..self.best.clone() });
        }
    }

    /// Leaves out part after part, each time in smaller parts (ddmin).
    fn faults(&mut self) {
        let mut parts = 2;
        loop {
            let left: Vec<u64> = faults_of(&self.best).iter().map(|fault| fault.ordinal).collect();
            if left.is_empty() {
                return;
            }
            parts = parts.min(left.len());
            let smaller = left.chunks(left.len().div_ceil(parts)).any(|part| {
                let mut faults_skipped = self.best.faults_skipped.clone();
                faults_skipped.extend(part);
                self.take(&Options { faults_skipped, ..self.best.clone() })
            });
            if smaller {
                parts = (parts - 1).max(2);
            } else if parts == left.len() {
                return;
            } else {
                parts *= 2;
            }
        }
    }

    fn points(&mut self) {
        if self.take(&Options { points_off: true, ..self.best.clone() }) {
            return;
        }
        for point in points_of(&self.best) {
            let mut points_disarmed = self.best.points_disarmed.clone();
            points_disarmed.insert(point);
            self.take(&Options { points_disarmed, ..self.best.clone() });
        }
    }

    fn clients(&mut self) {
        for workers in [1, 2] {
            if self.take(&Options { workers_max: Some(workers), ..self.best.clone() }) {
                return;
            }
        }
    }
}

/// The smallest run that was found within so many runs. `None` if the run does not fail.
pub fn shrink(options: &Options, runs_max: u64) -> Option<Shrunk> {
    shrink_with(options, runs_max, &mut |options| run_caught(options).map(drop))
}

fn shrink_with(
    options: &Options,
    runs_max: u64,
    run: &mut dyn FnMut(&Options) -> Result<(), Failure>,
) -> Option<Shrunk> {
    let failure = run(options).err()?;
    let mut search = Search { best: options.clone(), failure, runs: 1, runs_max, run };
    search.points();
    search.time();
    search.kinds();
    search.faults();
    search.clients();
    search.time();
    let Search { best, failure, runs, .. } = search;
    // A kind that is left out anyway need not be named.
    let faults = faults_of(&best);
    Some(Shrunk { options: best, failure, faults, runs })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::options::SECOND;

    /// A run that fails if two faults of its plan strike, whatever else does.
    fn fails_with(options: &Options, needed: &[u64]) -> Result<(), Failure> {
        let met: BTreeSet<u64> = faults_of(options).iter().map(|fault| fault.ordinal).collect();
        if needed.iter().all(|ordinal| met.contains(ordinal)) {
            return Err(Failure::new(format!("{} faults made 2 of 3 nodes fail", met.len())));
        }
        Ok(())
    }

    #[test]
    fn the_needed_faults_are_what_is_left() {
        let mut tried = 0;
        for seed in 0..40 {
            let options = Options::cluster(seed, 3);
            let whole = plan(&options);
            if whole.len() < 30 {
                continue;
            }
            tried += 1;
            let needed = [whole[3].ordinal, whole[17].ordinal];
            let shrunk = shrink_with(&options, 1000, &mut |run| fails_with(run, &needed));
            let shrunk = shrunk.expect("the whole plan fails");
            let left: Vec<u64> = shrunk.faults.iter().map(|fault| fault.ordinal).collect();
            assert_eq!(left, needed, "seed {seed}");
            assert_eq!(shrunk.failure.to_string(), "2 faults made 2 of 3 nodes fail");
            assert!(shrunk.options.faults_end() < whole[17].at + 5 * SECOND / 32);
        }
        assert!(tried > 5, "some seeds have plans that are long enough");
    }

    #[test]
    fn a_run_that_does_not_fail_cannot_shrink() {
        assert!(shrink_with(&Options::new(1), 10, &mut |_| Ok(())).is_none());
    }

    #[test]
    fn another_failure_is_not_the_same() {
        let mut first = true;
        let shrunk = shrink_with(&Options::cluster(1, 3), 100, &mut |_| {
            let text = if std::mem::take(&mut first) { "one" } else { "another" };
            Err(Failure::new(text))
        });
        let shrunk = shrunk.expect("it fails");
        assert_eq!(shrunk.failure.to_string(), "one");
        assert!(
            shrunk.options.until_nanos.is_none() && shrunk.options.kinds_off.iter().count() == 0
        );
    }
}
