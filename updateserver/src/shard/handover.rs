//! What it takes to take hand-overs back that were not committed when leadership ended.
//!
//! Sealing moves the lists of an open fragment - the rows it touched, the outcomes it carries -
//! here instead of emptying them, and commits give them back for the next fragments: keeping the
//! history copies nothing.

use std::collections::VecDeque;

use spillway_net::ids::SessionId;

use crate::memtable::Stamp;
use crate::redo::{OutcomeRecord, SessionRun};

use super::partition::{Partition, Touched};
use super::store::Store;

/// Memory of fragments kept for reuse. Bytes.
const SPARE_BYTES_MAX: usize = 8 << 20;
/// Lists of fragments kept for reuse: as many as hand-overs may be on their way.
const SPARE_LISTS_MAX: usize = 16;

/// A partition's share of a hand-over, and what it was before.
#[derive(Debug, Default)]
struct SealedFragment {
    local: u16,
    number_before: u64,
    digest_before: u128,
    digest_after: u128,
    touched: Vec<Touched>,
    runs: Vec<SessionRun>,
    outcomes: Vec<OutcomeRecord>,
}

impl SealedFragment {
    fn capacity_bytes(&self) -> usize {
        size_of::<Self>()
            + self.touched.capacity() * size_of::<Touched>()
            + self.runs.capacity() * size_of::<SessionRun>()
            + self.outcomes.capacity() * size_of::<OutcomeRecord>()
    }
}

#[derive(Debug)]
struct Handover {
    stamp: Stamp,
    fragments: Vec<SealedFragment>,
}

/// Hand-overs that are not known to be committed, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    handovers: VecDeque<Handover>,
    spare: Vec<SealedFragment>,
    spare_bytes: usize,
    spare_lists: Vec<Vec<SealedFragment>>,
}

impl History {
    /// A hand-over begins: the fragments that follow are its.
    pub fn begin(&mut self, stamp: Stamp) {
        assert!(
            self.handovers.back().is_none_or(|newest| newest.stamp < stamp),
            "hand-overs come in the order of their stamps"
        );
        let fragments = self.spare_lists.pop().unwrap_or_default();
        self.handovers.push_back(Handover { stamp, fragments });
    }

    /// Takes over the lists of a fragment that was just sealed; the partition gets empty ones.
    pub fn keep(&mut self, local: u16, partition: &mut Partition, digest_before: u128) {
        let mut kept = match self.spare.pop() {
            Some(spare) => {
                self.spare_bytes -= spare.capacity_bytes();
                spare
            }
            None => SealedFragment::default(),
        };
        kept.local = local;
        kept.number_before = partition.first_number;
        kept.digest_before = digest_before;
        kept.digest_after = partition.digest;
        std::mem::swap(&mut kept.touched, &mut partition.touched);
        std::mem::swap(&mut kept.runs, &mut partition.runs);
        std::mem::swap(&mut kept.outcomes, &mut partition.outcomes);
        let newest = self.handovers.back_mut().expect("a hand-over was begun");
        newest.fragments.push(kept);
    }

    /// Everything up to a stamp is committed and cannot be taken back any more.
    pub fn commit(&mut self, stamp: Stamp) {
        while self.handovers.front().is_some_and(|oldest| oldest.stamp <= stamp) {
            let handover = self.handovers.pop_front().expect("seen above");
            self.recycle(handover);
        }
    }

    fn pop_above(&mut self, stamp: Stamp) -> Option<Handover> {
        let is_above = self.handovers.back().is_some_and(|newest| newest.stamp > stamp);
        if is_above { self.handovers.pop_back() } else { None }
    }

    fn recycle(&mut self, mut handover: Handover) {
        for mut fragment in handover.fragments.drain(..) {
            fragment.touched.clear();
            fragment.runs.clear();
            fragment.outcomes.clear();
            let bytes = fragment.capacity_bytes();
            if self.spare_bytes + bytes <= SPARE_BYTES_MAX {
                self.spare_bytes += bytes;
                self.spare.push(fragment);
            }
        }
        if self.spare_lists.len() < SPARE_LISTS_MAX {
            self.spare_lists.push(handover.fragments);
        }
    }

    /// Hand-overs that could still be taken back.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.handovers.len()
    }
}

/// The sessions and numbers of a fragment's outcomes.
fn outcomes_of<'a>(
    runs: &'a [SessionRun],
    outcomes: &'a [OutcomeRecord],
) -> impl Iterator<Item = (SessionId, u64)> + 'a {
    let mut rest = outcomes;
    runs.iter().flat_map(move |run| {
        let (of_run, after) = rest.split_at(run.outcomes as usize);
        rest = after;
        of_run.iter().map(|outcome| {
            (SessionId(run.session), run.base_number + u64::from(outcome.number_delta))
        })
    })
}

impl Store {
    /// Everything up to a stamp is committed.
    pub fn commit(&mut self, stamp: Stamp) {
        assert!(stamp < self.stamp, "only what was handed over is committed");
        if stamp > self.floor {
            self.floor = stamp;
            self.history.commit(stamp);
        }
    }

    /// Takes back the open fragments and all hand-overs above `stamp`, newest first: a row goes
    /// when its oldest version goes, and only then. `forget` is told every outcome that is gone.
    /// What stays counts as committed, and the stamps that are gone are not used again.
    pub fn rollback_above(&mut self, stamp: Stamp, mut forget: impl FnMut(SessionId, u64)) {
        assert!(stamp >= self.floor, "what is committed is not taken back");
        assert!(stamp < self.stamp, "only what was handed over is committed");
        self.rollback_open(&mut forget);
        while let Some(handover) = self.history.pop_above(stamp) {
            let before = Stamp(handover.stamp.0 - 1);
            for fragment in &handover.fragments {
                if !spillway_runtime::planted!(StepDownKeepsRows) {
                    self.rollback_rows(fragment.local, &fragment.touched, before);
                }
                for (session, number) in outcomes_of(&fragment.runs, &fragment.outcomes) {
                    forget(session, number);
                }
                let partition = &mut self.partitions[usize::from(fragment.local)];
                assert_eq!(partition.digest, fragment.digest_after, "digests go back in order");
                assert!(fragment.number_before <= partition.next_number, "numbers go back");
                partition.digest = fragment.digest_before;
                partition.next_number = fragment.number_before;
                partition.first_number = fragment.number_before;
            }
            self.history.recycle(handover);
        }
        self.floor = Stamp(self.stamp.0 - 1);
        self.history.commit(self.floor);
    }

    fn rollback_open(&mut self, forget: &mut impl FnMut(SessionId, u64)) {
        let before = Stamp(self.stamp.0 - 1);
        let mut open = std::mem::take(&mut self.open);
        for local in open.drain(..) {
            let touched = std::mem::take(&mut self.partitions[usize::from(local)].touched);
            self.rollback_rows(local, &touched, before);
            let partition = &mut self.partitions[usize::from(local)];
            for (session, number) in outcomes_of(&partition.runs, &partition.outcomes) {
                forget(session, number);
            }
            partition.touched = touched;
            partition.next_number = partition.first_number;
            partition.clear();
        }
        self.open = open;
        self.open_bytes = 0;
    }

    /// Drops the versions above a stamp of rows that one fragment touched, each once.
    fn rollback_rows(&mut self, local: u16, touched: &[Touched], stamp: Stamp) {
        for touched in touched {
            let table = self.table_held(spillway_net::ids::TableId(touched.table));
            let base = table.expect("a table outlives what is not committed").slice_base;
            let slice = &mut self.slices[base + usize::from(local)];
            slice.rollback_above(&mut self.arena, [touched.row], stamp);
        }
    }
}
