//! The entries that are not committed: how many bytes they are, and whose answers wait for them.

use std::collections::VecDeque;

use spillway_net::ids::Lsn;

#[derive(Clone, Copy, Debug)]
struct TailEntry {
    lsn: Lsn,
    bytes: u64,
    /// Highest ticket in it, 0 for none.
    ticket: u64,
}

/// The tail of the log behind the committed end.
#[derive(Debug, Default)]
pub struct Tail {
    entries: VecDeque<TailEntry>,
    bytes: u64,
}

impl Tail {
    /// Adds an entry; those with its index and above are gone.
    pub fn push(&mut self, lsn: Lsn, bytes: u64, ticket: u64) {
        while self.entries.back().is_some_and(|entry| entry.lsn >= lsn) {
            let entry = self.entries.pop_back().expect("seen above");
            self.bytes -= entry.bytes;
        }
        let last = self.entries.back();
        assert!(last.is_none_or(|last| last.lsn.0 + 1 == lsn.0), "entries come in order");
        let tickets = self.entries.iter().rev().find(|entry| entry.ticket > 0);
        assert!(ticket == 0 || tickets.is_none_or(|e| e.ticket < ticket), "tickets rise");
        self.entries.push_back(TailEntry { lsn, bytes, ticket });
        self.bytes += bytes;
    }

    /// Everything up to `lsn` is committed. Returns the highest ticket in it, 0 for none.
    pub fn commit(&mut self, lsn: Lsn) -> u64 {
        let mut ticket = 0;
        while self.entries.front().is_some_and(|entry| entry.lsn <= lsn) {
            let entry = self.entries.pop_front().expect("seen above");
            assert!(self.bytes >= entry.bytes, "bytes are those of the entries");
            self.bytes -= entry.bytes;
            ticket = ticket.max(entry.ticket);
        }
        ticket
    }

    /// Leadership ended: what is committed from now on answers nobody here.
    pub fn tickets_forget(&mut self) {
        for entry in &mut self.entries {
            entry.ticket = 0;
        }
    }

    /// Bytes of all entries.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_bytes_and_tickets() {
        let mut tail = Tail::default();
        tail.push(Lsn(4), 100, 0);
        tail.push(Lsn(5), 10, 7);
        tail.push(Lsn(6), 20, 9);
        assert_eq!(tail.bytes(), 130);
        assert_eq!(tail.commit(Lsn(4)), 0);
        assert_eq!(tail.commit(Lsn(5)), 7);
        tail.push(Lsn(7), 5, 0);
        tail.push(Lsn(6), 1, 0);
        assert_eq!(tail.bytes(), 1);
        assert_eq!((tail.commit(Lsn(9)), tail.bytes()), (0, 0));
        tail.push(Lsn(20), 1, 11);
        tail.tickets_forget();
        assert_eq!(tail.commit(Lsn(20)), 0);
    }
}
