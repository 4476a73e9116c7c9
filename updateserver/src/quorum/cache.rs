//! The newest entries of the log in memory: what is sent, applied and counted from.

use std::collections::VecDeque;

use bytes::Bytes;
use spillway_net::ids::{Epoch, Lsn};
use spillway_runtime::slot_ring::{Slot, SlotRing};

/// An entry's body, and the same memory in the state machine's form.
#[derive(Clone, Debug)]
pub struct CachedEntry {
    /// Term in which it was proposed.
    pub term: Epoch,
    /// Shared header area and payload.
    pub body: Slot,
    /// The same bytes, kept alive by a clone of `body`.
    pub data: Bytes,
}

impl CachedEntry {
    /// Wraps a body. The memory is shared, not copied.
    pub fn new(term: Epoch, body: Slot) -> Self {
        let data = Bytes::from_owner(body.clone());
        assert_eq!(data.as_ptr() as usize, body.address(), "the same memory");
        Self { term, body, data }
    }
}

/// Entries without gaps up to the end of the log; those before the first were evicted.
#[derive(Debug)]
pub struct EntryCache {
    /// Index of the first cached entry, or of the next entry when there is none.
    first: Lsn,
    entries: VecDeque<CachedEntry>,
    bytes: u64,
}

impl EntryCache {
    /// An empty cache; the next entry has index `next`.
    pub fn new(next: Lsn) -> Self {
        assert!(next.0 > 0, "the first entry has index 1");
        Self { first: next, entries: VecDeque::new(), bytes: 0 }
    }

    /// Index that the next entry will have.
    pub fn next(&self) -> Lsn {
        Lsn(self.first.0 + self.entries.len() as u64)
    }

    /// Bytes of all bodies.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The entry with this index, unless it was evicted or is not there yet.
    pub fn get(&self, lsn: Lsn) -> Option<&CachedEntry> {
        let at = lsn.0.checked_sub(self.first.0)?;
        self.entries.get(at as usize)
    }

    /// Adds the next entry.
    pub fn push(&mut self, lsn: Lsn, entry: CachedEntry) {
        assert_eq!(lsn, self.next(), "entries are cached in order");
        assert!(!entry.body.is_empty(), "an entry has a body");
        self.bytes += entry.body.len() as u64;
        self.entries.push_back(entry);
    }

    /// Takes back the entries behind `lsn`.
    pub fn truncate_after(&mut self, lsn: Lsn) {
        while self.next().0 > lsn.0 + 1 {
            let Some(entry) = self.entries.pop_back() else {
                // What is superseded was evicted already; the cache goes on from there.
                self.first = Lsn(lsn.0 + 1);
                break;
            };
            self.bytes -= entry.body.len() as u64;
        }
        assert!(self.next().0 <= lsn.0 + 1, "nothing is left behind {lsn}");
    }

    /// Moves the entries from `first` to `last` out of the ring, as long as no more than `bytes_max`
    /// of them lie outside of it then. False when there was none to move.
    pub fn move_out(&mut self, first: Lsn, last: Lsn, bytes_max: u64, ring: &SlotRing) -> bool {
        let begin = first.0.saturating_sub(self.first.0) as usize;
        let end = (last.0 + 1).saturating_sub(self.first.0) as usize;
        let (mut outside, mut moved) = (0, false);
        let count = end.min(self.entries.len()).saturating_sub(begin);
        for entry in self.entries.iter_mut().skip(begin).take(count) {
            outside += entry.body.len() as u64;
            if outside > bytes_max {
                break;
            }
            if ring.contains(&entry.body) {
                *entry = CachedEntry::new(entry.term, Slot::from_vec(entry.body.to_vec()));
                moved = true;
            }
        }
        moved
    }

    /// Forgets the oldest entry if its index is at most `limit`. False when there is none.
    pub fn evict_first(&mut self, limit: Lsn) -> bool {
        if self.first > limit {
            return false;
        }
        let Some(entry) = self.entries.pop_front() else { return false };
        assert!(self.bytes >= entry.body.len() as u64, "bytes are those of the entries");
        self.bytes -= entry.body.len() as u64;
        self.first.0 += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(term: u64) -> CachedEntry {
        CachedEntry::new(Epoch(term), Slot::from_vec(vec![7; 512]))
    }

    #[test]
    fn keeps_a_run_without_gaps() {
        let mut cache = EntryCache::new(Lsn(5));
        for lsn in 5..9 {
            cache.push(Lsn(lsn), entry(lsn));
        }
        assert_eq!((cache.first, cache.next(), cache.bytes()), (Lsn(5), Lsn(9), 2048));
        assert_eq!(cache.get(Lsn(7)).map(|e| e.term), Some(Epoch(7)));
        assert!(cache.get(Lsn(4)).is_none() && cache.get(Lsn(9)).is_none());
        assert!(cache.evict_first(Lsn(5)) && !cache.evict_first(Lsn(5)));
        cache.truncate_after(Lsn(6));
        assert_eq!((cache.first, cache.next(), cache.bytes()), (Lsn(6), Lsn(7), 512));
        cache.truncate_after(Lsn(2));
        assert_eq!((cache.first, cache.next(), cache.bytes()), (Lsn(3), Lsn(3), 0));
        cache.push(Lsn(3), entry(9));
        assert!(!cache.evict_first(Lsn(2)));
    }

    #[test]
    fn entries_are_moved_out_of_the_ring_within_a_limit() {
        let mut ring = SlotRing::new("test", 64 << 10).expect("a little memory");
        let mut cache = EntryCache::new(Lsn(5));
        for lsn in 5..9 {
            let mut slot = ring.reserve(512).expect("room");
            slot.fill(lsn as u8);
            cache.push(Lsn(lsn), CachedEntry::new(Epoch(lsn), slot.freeze()));
        }
        let inside = |cache: &EntryCache, ring: &SlotRing| -> Vec<u64> {
            let inside = |lsn: &u64| ring.contains(&cache.get(Lsn(*lsn)).expect("cached").body);
            (5..9).filter(inside).collect()
        };
        assert_eq!(inside(&cache, &ring), [5, 6, 7, 8]);
        assert!(cache.move_out(Lsn(6), Lsn(9), 1100, &ring));
        assert_eq!(inside(&cache, &ring), [5, 8]);
        assert!(!cache.move_out(Lsn(6), Lsn(9), 1100, &ring));
        assert!(!cache.move_out(Lsn(1), Lsn(4), 1 << 20, &ring));
        assert!(cache.move_out(Lsn(1), Lsn(5), 1 << 20, &ring));
        assert_eq!(inside(&cache, &ring), [8]);
        assert_eq!((cache.bytes(), cache.next()), (2048, Lsn(9)));
        assert!(
            (5..9).all(|lsn| cache.get(Lsn(lsn)).is_some_and(|e| e.body[..] == [lsn as u8; 512]))
        );
        ring.reclaim();
        assert_eq!(ring.reservations(), 1);
    }

    #[test]
    fn the_state_machine_sees_the_same_memory() {
        let entry = entry(1);
        assert_eq!(entry.data.as_ptr() as usize, entry.body.address());
        assert_eq!(entry.data.clone().as_ptr() as usize, entry.body.address());
    }
}
