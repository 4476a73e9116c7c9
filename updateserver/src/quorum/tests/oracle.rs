//! What must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use spillway_net::ids::{Epoch, Lsn, NodeId, WallMicros};

use crate::log::EntryMeta;

/// The truth, as far as it is decided.
#[derive(Default)]
pub struct Oracle {
    /// Who led in which term.
    leaders: BTreeMap<Epoch, NodeId>,
    /// The committed log: checksum and timestamp of every entry.
    pub committed: BTreeMap<Lsn, (u64, WallMicros)>,
    /// Terms in which they were proposed.
    pub terms: BTreeMap<Lsn, Epoch>,
    /// Items of every entry that was ever written, by checksum.
    items: BTreeMap<u64, Vec<u64>>,
    /// Items whose commit was answered.
    pub acked: BTreeSet<u64>,
    /// Highest index that was answered for.
    pub acked_lsn: Lsn,
}

impl Oracle {
    /// Election safety.
    pub fn leads(&mut self, node: NodeId, epoch: Epoch) {
        let other = self.leaders.insert(epoch, node);
        assert!(other.is_none_or(|other| other == node), "{node} and {other:?} lead in {epoch}");
    }

    pub fn leaders(&self) -> usize {
        self.leaders.len()
    }

    /// An entry was sealed with these items.
    pub fn wrote(&mut self, checksum: u64, items: Vec<u64>) {
        if let Some(known) = self.items.insert(checksum, items.clone()) {
            assert_eq!(known, items, "a checksum names an entry");
        }
    }

    /// State machine safety: what one node has committed at an index, all have; and time rises.
    pub fn commit(&mut self, lsn: Lsn, meta: &EntryMeta) {
        let entry = (meta.checksum, meta.timestamp);
        let known = *self.committed.entry(lsn).or_insert(entry);
        self.terms.insert(lsn, meta.term);
        assert_eq!(known, entry, "two entries are committed as {lsn}");
        if let Some((_, (_, before))) = self.committed.range(..lsn).next_back() {
            assert!(*before < meta.timestamp, "time falls at {lsn}");
        }
        if let Some((_, (_, after))) = self.committed.range(Lsn(lsn.0 + 1)..).next() {
            assert!(meta.timestamp < *after, "time falls behind {lsn}");
        }
    }

    /// A client was told that its item is committed.
    pub fn ack(&mut self, item: u64, lsn: Lsn) {
        assert!(self.acked.insert(item), "item {item} is answered once");
        self.acked_lsn = self.acked_lsn.max(lsn);
        let there = self.committed.range(..=lsn).any(|(_, (checksum, _))| {
            self.items.get(checksum).is_some_and(|items| items.contains(&item))
        });
        assert!(there, "item {item} is answered and not in the committed log up to {lsn}");
    }

    /// Everything answered is in the log, once.
    pub fn check_end(&self) {
        let mut seen = BTreeSet::new();
        for (lsn, (checksum, _)) in &self.committed {
            for item in self.items.get(checksum).expect("every entry was written somewhere") {
                assert!(seen.insert(*item), "item {item} is twice in the log, again at {lsn}");
            }
        }
        let lost: Vec<_> = self.acked.difference(&seen).collect();
        assert!(lost.is_empty(), "answered and lost: {lost:?}");
    }
}
