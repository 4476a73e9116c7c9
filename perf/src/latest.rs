//! Which writes may be the last one of a cell, as far as an observer of sends and answers can
//! tell.
//!
//! A write that was answered before another one was sent comes before it. So once a write is
//! acknowledged, every write that was answered before it was sent is overwritten for good; all
//! others may still be the one that stays.

use std::collections::{HashMap, VecDeque};

use crate::identity::Origin;

#[derive(Clone, Debug, Default)]
struct Cell {
    /// When the youngest acknowledged write was sent.
    floor: u64,
    /// Acknowledged writes that may have stayed, with when they were answered, ascending.
    candidates: VecDeque<(Origin, u64)>,
}

/// Acknowledged writes of all cells. Holds no more writes of a cell than were in flight together.
#[derive(Clone, Debug, Default)]
pub struct LatestWrites {
    cells: HashMap<u64, Cell>,
}

impl LatestWrites {
    /// The write of `origin` to `cell`, sent in event `sent`, was acknowledged in event
    /// `answered`. Answers arrive in the order of their events.
    pub fn acknowledged(&mut self, cell: u64, origin: Origin, sent: u64, answered: u64) {
        assert!(sent < answered, "nothing is answered before it is sent");
        let cell = self.cells.entry(cell).or_default();
        assert!(
            cell.candidates.back().is_none_or(|last| last.1 <= answered),
            "events come in order"
        );
        cell.floor = cell.floor.max(sent);
        cell.candidates.push_back((origin, answered));
        while cell.candidates.front().is_some_and(|first| first.1 < cell.floor) {
            cell.candidates.pop_front();
        }
        assert!(!cell.candidates.is_empty(), "the youngest write may always have stayed");
    }

    /// Whether any write of the cell was acknowledged.
    pub fn is_written(&self, cell: u64) -> bool {
        self.cells.contains_key(&cell)
    }

    /// Whether this acknowledged write may be the one that stayed.
    pub fn may_stay(&self, cell: u64, origin: Origin) -> bool {
        self.cells
            .get(&cell)
            .is_some_and(|cell| cell.candidates.iter().any(|candidate| candidate.0 == origin))
    }

    /// Cells with an acknowledged write.
    pub fn cells(&self) -> usize {
        self.cells.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(counter: u64) -> Origin {
        Origin { connection: 0, counter }
    }

    #[test]
    fn what_was_answered_before_a_later_send_is_overwritten() {
        let mut latest = LatestWrites::default();
        assert!(!latest.is_written(7));
        latest.acknowledged(7, origin(1), 1, 5);
        latest.acknowledged(7, origin(2), 4, 6);
        assert!(latest.may_stay(7, origin(1)), "both were in flight together");
        assert!(latest.may_stay(7, origin(2)));
        latest.acknowledged(7, origin(3), 6, 9);
        assert!(!latest.may_stay(7, origin(1)), "answered at 5, before the send at 6");
        assert!(latest.may_stay(7, origin(2)), "answered in the very event of the send");
        assert!(latest.may_stay(7, origin(3)));
        assert!(!latest.may_stay(8, origin(3)));
        assert_eq!(latest.cells(), 1);
    }

    #[test]
    fn an_answer_out_of_order_does_not_raise_the_dead() {
        let mut latest = LatestWrites::default();
        latest.acknowledged(7, origin(1), 5, 6);
        // Sent before, answered after: nobody can tell which of the two came last.
        latest.acknowledged(7, origin(2), 1, 9);
        assert!(latest.may_stay(7, origin(1)) && latest.may_stay(7, origin(2)));
    }

    #[test]
    fn memory_is_bounded_by_what_is_in_flight() {
        let mut latest = LatestWrites::default();
        for event in 0..100_000u64 {
            latest.acknowledged(1, origin(event), event, event + 8);
        }
        assert!(latest.cells[&1].candidates.len() <= 10);
    }
}
