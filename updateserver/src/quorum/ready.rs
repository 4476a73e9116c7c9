//! Messages that must not leave before something is durable (rules R8-R12).

use std::collections::VecDeque;

use raft::eraftpb::Message;

/// What the state machine produced in one go, and what must be durable before it counts.
#[derive(Debug)]
pub struct Held {
    /// Number of the state machine's `Ready`.
    pub number: u64,
    /// All log writes up to this one.
    pub write: u64,
    /// All superblocks up to this one.
    pub superblock: u64,
    /// Messages that leave then.
    pub messages: Vec<Message>,
}

/// First in, first out: what came later never counts earlier.
#[derive(Debug, Default)]
pub struct HeldQueue {
    items: VecDeque<Held>,
    write: u64,
    superblock: u64,
    number: u64,
}

impl HeldQueue {
    /// Adds what must wait.
    pub fn push(&mut self, held: Held) {
        assert!(held.number >= self.number, "numbers rise");
        assert!(held.write >= self.write && held.superblock >= self.superblock, "needs rise");
        (self.number, self.write, self.superblock) = (held.number, held.write, held.superblock);
        self.items.push_back(held);
    }

    /// The oldest, if all that it needs is durable.
    pub fn pop(&mut self, write_durable: u64, superblock_durable: u64) -> Option<Held> {
        let front = self.items.front()?;
        if front.write > write_durable || front.superblock > superblock_durable {
            return None;
        }
        let item = self.items.pop_front()?;
        assert!(item.number <= self.number, "taken in order");
        Some(item)
    }

    /// What the last item needs of the log.
    pub fn write(&self) -> u64 {
        self.write
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overtakes() {
        let mut queue = HeldQueue::default();
        let held =
            |number, write, superblock| Held { number, write, superblock, messages: Vec::new() };
        queue.push(held(1, 1, 1));
        queue.push(held(2, 1, 2));
        queue.push(held(3, 4, 2));
        assert!(queue.pop(9, 0).is_none() && queue.pop(0, 9).is_none());
        assert_eq!(queue.pop(4, 1).map(|h| h.number), Some(1));
        assert!(queue.pop(4, 1).is_none());
        assert_eq!(queue.pop(3, 2).map(|h| h.number), Some(2));
        assert!(queue.pop(3, 2).is_none());
        assert_eq!(queue.pop(4, 2).map(|h| h.number), Some(3));
        assert!(queue.items.is_empty());
    }
}
