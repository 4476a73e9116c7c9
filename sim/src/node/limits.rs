//! Nothing in a node grows without limit: looked at after every step.
//!
//! What clients and peers have sent and nobody has taken belongs to the network: production stops
//! receiving, and the senders' windows bound it.

use super::Node;
use super::log::APPLY_ENTRIES_MAX;
use crate::Failure;
use crate::options::Sizes;
use crate::start::CHUNK_BYTES;

/// Items that one turn of a shard, with the root service's, makes beyond those that may wait.
const TURN_ITEMS_MAX: usize = 64;
/// Orders and acknowledgements on their way between the root service and a shard.
const ORDERS_MAX: usize = 256;

/// The memory of shards is counted row by row: once in so many steps. It does not shrink between
/// two of them.
const MEMORY_CHECK_STEPS: u64 = 256;

/// What is measured, how much of it there is, and how much there may be.
type Length = (&'static str, usize, usize);

impl Node {
    /// What it holds is within its limits.
    pub fn limits_check(&mut self, sizes: &Sizes) -> Result<(), Failure> {
        self.steps += 1;
        let of_node = [
            ("items in the log queue", self.queue.len(), self.queue_max),
            ("acknowledged orders", self.done.len(), ORDERS_MAX),
            ("bytes of slots of the log", self.log.slots_used(), sizes.slots_bytes),
        ];
        self.lengths_check(&of_node)?;
        for seat in &self.seats {
            if self.steps.is_multiple_of(MEMORY_CHECK_STEPS) {
                let (_, used, reserved) = seat.shard.memory();
                let (used, reserved) = (used as usize, reserved as usize);
                self.lengths_check(&[
                    ("bytes of a shard's memory", reserved, sizes.chunks * CHUNK_BYTES),
                    ("bytes used of what is reserved", used, reserved),
                ])?;
            }
            let handovers = sizes.handovers_max as usize + TURN_ITEMS_MAX;
            self.lengths_check(&[
                ("items that wait for the log queue", seat.backlog.len(), handovers),
                ("items that wait for their commit", seat.handed_over.len(), handovers),
                ("entries to apply", seat.apply.len(), APPLY_ENTRIES_MAX),
                ("orders of the root service", seat.orders.len(), ORDERS_MAX),
            ])?;
        }
        Ok(())
    }

    fn lengths_check(&self, lengths: &[Length]) -> Result<(), Failure> {
        let Some((what, length, limit)) = lengths.iter().find(|(_, length, limit)| length > limit)
        else {
            return Ok(());
        };
        let node = self.number + 1;
        Err(Failure::new(format!("node {node} holds {length} {what}, at most {limit} are allowed")))
    }
}
