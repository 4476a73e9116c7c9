//! One partition of a shard and its open fragment.

use spillway_net::ids::PartitionId;

use crate::memtable::RowRef;
use crate::redo::{
    ArchivedOutcomeRecord, ArchivedSessionRun, OutcomeRecord, RESULTS_NOT_KEPT, SessionRun,
};

/// A row that the open fragment changed. Its newest version is the record to log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touched {
    pub table: u16,
    pub row: RowRef,
}

/// A partition owned by this shard. Lives on the shard's core.
#[derive(Debug)]
pub(super) struct Partition {
    pub id: PartitionId,
    /// Row version the next write gets; rises by one per write, never repeats.
    pub next_number: u64,
    /// Value of `next_number` when the open fragment got its first write.
    pub first_number: u64,
    /// Sum of the digests of all records up to the last seal.
    pub digest: u128,
    /// Rows changed since the last seal, each once: a second write in the same fragment
    /// overwrites the version in place.
    pub touched: Vec<Touched>,
    /// Whether some version was overwritten, so that row versions are not dense.
    pub overwritten: bool,
    pub runs: Vec<SessionRun>,
    pub outcomes: Vec<OutcomeRecord>,
    pub results: Vec<u8>,
    /// Whether the partition is in the shard's list of open fragments.
    pub open: bool,
    /// The transaction that last saved its mark here; see `Store::mark_partition`.
    pub transaction: u64,
}

impl Partition {
    pub fn new(id: PartitionId) -> Self {
        Self {
            id,
            next_number: 1,
            first_number: 1,
            digest: 0,
            touched: Vec::new(),
            overwritten: false,
            runs: Vec::new(),
            outcomes: Vec::new(),
            results: Vec::new(),
            open: false,
            transaction: 0,
        }
    }

    /// Adds the outcome of a committed transaction to the open fragment. Returns the bytes that
    /// it adds to the fragment.
    pub fn push_outcome(
        &mut self,
        session: u64,
        number: u64,
        acknowledged_below: u64,
        request_hash: u32,
        results: Option<&[u8]>,
    ) -> usize {
        assert!(acknowledged_below <= number, "a number below the acknowledged mark is refused");
        assert!(self.open, "an outcome stands beside its transaction's records");
        let delta = match self.runs.last() {
            Some(run) if run.session == session && number >= run.base_number => {
                u16::try_from(number - run.base_number).ok()
            }
            _ => None,
        };
        let mut bytes = size_of::<ArchivedOutcomeRecord>() + results.map_or(0, <[u8]>::len);
        let number_delta = match delta {
            Some(delta) => delta,
            None => {
                let acknowledged_behind = (number - acknowledged_below) as u32;
                let base_number = number;
                let outcomes = 0;
                self.runs.push(SessionRun { session, base_number, outcomes, acknowledged_behind });
                bytes += size_of::<ArchivedSessionRun>();
                0
            }
        };
        self.runs.last_mut().expect("pushed above").outcomes += 1;
        let result_length = results.map_or(RESULTS_NOT_KEPT, |results| results.len() as u8);
        self.results.extend_from_slice(results.unwrap_or(&[]));
        self.outcomes.push(OutcomeRecord { number_delta, request_hash, result_length });
        bytes
    }

    /// Whether nothing is open.
    pub fn is_at_rest(&self) -> bool {
        !self.open && self.touched.is_empty() && self.first_number == self.next_number
    }

    /// Forgets the open fragment once it is sealed.
    pub fn clear(&mut self) {
        self.touched.clear();
        self.overwritten = false;
        self.runs.clear();
        self.outcomes.clear();
        self.results.clear();
        self.open = false;
        self.first_number = self.next_number;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_share_a_run_while_their_numbers_fit() {
        let mut partition = Partition::new(PartitionId(3));
        partition.open = true;
        assert_eq!(partition.push_outcome(7, 100, 90, 1, Some(b"")), 7 + 24, "with its run");
        assert_eq!(partition.push_outcome(7, 101, 90, 2, Some(b"ab")), 7 + 2);
        partition.push_outcome(7, 99, 99, 3, None);
        partition.push_outcome(8, 100, 1, 4, Some(b""));
        partition.push_outcome(8, 100 + 70_000, 1, 5, Some(b""));
        let runs: Vec<_> = partition.runs.iter().map(|r| (r.session, r.base_number)).collect();
        assert_eq!(runs, [(7, 100), (7, 99), (8, 100), (8, 70_100)]);
        assert_eq!(partition.runs[0].outcomes, 2);
        assert_eq!(partition.results, b"ab");
        assert_eq!(partition.outcomes[2].result_length, RESULTS_NOT_KEPT);
        partition.clear();
        assert!(partition.runs.is_empty() && !partition.open);
    }
}
