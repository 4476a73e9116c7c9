//! Term and vote, and the superblock that makes them durable before anybody hears of them (R10).

use spillway_net::ids::{Epoch, NodeId};

use crate::log::{LogWriter, Superblock};

/// Keeps the superblock up with the state machine's term and vote.
///
/// Frames carry a new term at once: a term may rise for no reason, and an entry of that term needs
/// it. They carry a vote only when the superblock that has it is durable.
#[derive(Debug)]
pub struct HardStateKeeper {
    /// The one written last, or on its way.
    superblock: Superblock,
    term: Epoch,
    vote: NodeId,
    /// Sequence of the superblock that has the term and vote.
    needed: u64,
    durable: u64,
}

impl HardStateKeeper {
    /// The superblock is durable.
    pub fn new(superblock: Superblock) -> Self {
        assert!(superblock.boot > 0, "the superblock of a start");
        let (term, vote) = (superblock.term, superblock.vote);
        let sequence = superblock.sequence;
        Self { superblock, term, vote, needed: sequence, durable: sequence }
    }

    /// Sequence of the superblock that must be durable before anything of the present term and
    /// vote leaves.
    pub fn needed(&self) -> u64 {
        self.needed
    }

    /// Sequence of the last durable superblock.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// The state machine has a new term or vote.
    pub fn set(&mut self, term: Epoch, vote: NodeId, writer: &mut LogWriter) {
        if (term, vote) == (self.term, self.vote) {
            return;
        }
        assert!(term >= self.term, "the term never falls");
        assert!(term > self.term || self.vote == NodeId(0), "one vote in a term");
        if term > self.term {
            writer.hard_state_set(term, NodeId(0));
        }
        (self.term, self.vote) = (term, vote);
        self.needed = self.superblock.sequence + 1;
    }

    /// Orders the superblock if it is behind and none is on its way. True when it did.
    pub fn write(&mut self, writer: &mut LogWriter) -> bool {
        let current = (self.superblock.term, self.superblock.vote) == (self.term, self.vote);
        let is_busy = writer.superblock_is_open() || writer.poisoned().is_some();
        if current || is_busy || spillway_runtime::fault_point!(SuperblockHeld) {
            return false;
        }
        self.superblock.sequence += 1;
        self.superblock.term = self.term;
        self.superblock.vote = self.vote;
        self.superblock.durable_sequence = writer.durable_sequence();
        assert!(self.needed <= self.superblock.sequence, "this one has what is needed");
        self.needed = self.superblock.sequence;
        writer.superblock_write(&self.superblock);
        true
    }

    /// A superblock is in force.
    pub fn written(&mut self, sequence: u64, writer: &mut LogWriter) {
        assert_eq!(sequence, self.superblock.sequence, "one superblock at a time");
        self.durable = sequence;
        if self.superblock.term == self.term {
            writer.hard_state_set(self.superblock.term, self.superblock.vote);
        }
    }
}
