//! The entries of the log by index: what each is, and where its frame stands.

use std::collections::VecDeque;

use spillway_net::ids::{Epoch, Lsn, WallMicros};

use super::frame::{FrameKind, SharedHeader};
use super::geometry::Geometry;
use super::position::ChainState;
use super::recovery::ReadRequest;

/// Where the frame of an entry stands on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPlace {
    /// Segments are numbered without end; the file is `ordinal % segments_count`.
    pub ordinal: u64,
    /// Offset of the frame in the segment file.
    pub offset: u32,
    /// Whole frame, the local header included; 0 while the frame has no place.
    pub bytes: u32,
}

impl EntryPlace {
    /// Of an entry that was not issued yet.
    pub const NOWHERE: Self = Self { ordinal: 0, offset: 0, bytes: 0 };

    /// True when the frame was issued.
    pub fn is_known(&self) -> bool {
        self.bytes > 0
    }

    /// The read that brings the body of the frame: all but the local header.
    ///
    /// # Panics
    /// When the frame has no place.
    pub fn read_plan(&self, geometry: &Geometry) -> ReadRequest {
        assert!(self.is_known(), "an entry without a place cannot be read");
        assert!(self.bytes as usize > geometry.block(), "a frame is more than its local header");
        ReadRequest {
            segment: geometry.slot(self.ordinal),
            offset: u64::from(self.offset) + u64::from(geometry.block_bytes),
            bytes: self.bytes as usize - geometry.block(),
        }
    }
}

/// What is known of an entry without reading it. 48 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryMeta {
    /// Term in which it was proposed.
    pub term: Epoch,
    /// Checksum of its shared header: names the entry and all before it.
    pub checksum: u64,
    /// Batch timestamp.
    pub timestamp: WallMicros,
    /// Where its frame stands.
    pub place: EntryPlace,
    /// What it holds.
    pub kind: FrameKind,
}

impl EntryMeta {
    /// Of the frame with this header.
    pub fn of(shared: &SharedHeader, place: EntryPlace) -> Self {
        Self {
            term: shared.entry_term,
            checksum: shared.checksum,
            timestamp: shared.timestamp,
            place,
            kind: shared.kind,
        }
    }
}

/// What the next entry must continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryBase {
    /// Index; 0 before the first entry.
    pub lsn: Lsn,
    /// Term.
    pub term: Epoch,
    /// Checksum of the shared header.
    pub checksum: u64,
    /// Batch timestamp.
    pub timestamp: WallMicros,
}

/// The logical log from its floor on: one [`EntryMeta`] for each entry, 48 bytes, and the identity
/// of the entry before the first. A log of 16 GiB in frames of three blocks of 4 KiB has 1.4
/// million entries, which take 64 MiB here, and up to twice that after it has grown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryIndex {
    base: EntryBase,
    entries: VecDeque<EntryMeta>,
}

impl EntryIndex {
    /// An empty index behind the last entry of `chain`.
    pub fn behind(chain: &ChainState) -> Self {
        let base = EntryBase {
            lsn: chain.lsn,
            term: chain.entry_term,
            checksum: chain.shared,
            timestamp: chain.timestamp,
        };
        Self { base, entries: VecDeque::new() }
    }

    /// The entry before the first.
    pub fn base(&self) -> EntryBase {
        self.base
    }

    /// Index of the first entry, whether or not there is one.
    pub fn first(&self) -> Lsn {
        Lsn(self.base.lsn.0 + 1)
    }

    /// Index of the last entry; that of the base when there is none.
    pub fn last(&self) -> Lsn {
        Lsn(self.base.lsn.0 + self.entries.len() as u64)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when there is no entry behind the base.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn at(&self, lsn: Lsn) -> Option<usize> {
        lsn.0.checked_sub(self.base.lsn.0 + 1).map(|at| at as usize)
    }

    /// The entry with this index.
    pub fn get(&self, lsn: Lsn) -> Option<&EntryMeta> {
        self.entries.get(self.at(lsn)?)
    }

    /// Identity of the entry with this index, or of the base.
    pub fn identity(&self, lsn: Lsn) -> Option<EntryBase> {
        if lsn == self.base.lsn {
            return Some(self.base);
        }
        self.get(lsn).map(|meta| EntryBase {
            lsn,
            term: meta.term,
            checksum: meta.checksum,
            timestamp: meta.timestamp,
        })
    }

    /// Identity of the last entry, or of the base.
    pub fn last_identity(&self) -> EntryBase {
        self.identity(self.last()).expect("the last entry or the base is there")
    }

    /// Adds the next entry.
    ///
    /// # Panics
    /// When it is not the next one.
    pub fn push(&mut self, lsn: Lsn, meta: EntryMeta) {
        assert_eq!(lsn.0, self.last().0 + 1, "entries are added in order");
        assert!(meta.kind.is_entry(), "a watermark is no entry");
        self.entries.push_back(meta);
    }

    /// Takes back the entries behind `lsn`.
    ///
    /// # Panics
    /// When `lsn` lies before the base.
    pub fn truncate_after(&mut self, lsn: Lsn) {
        assert!(lsn >= self.base.lsn, "{lsn} lies before the first entry");
        self.entries.truncate((lsn.0 - self.base.lsn.0) as usize);
    }

    /// Forgets the entries up to `lsn`, which becomes the base.
    ///
    /// # Panics
    /// When `lsn` is beyond the last entry.
    pub fn release_to(&mut self, lsn: Lsn) {
        if lsn <= self.base.lsn {
            return;
        }
        let released = (lsn.0 - self.base.lsn.0) as usize;
        self.base = self.identity(lsn).expect("entries are released up to one that is there");
        self.entries.drain(..released);
    }

    /// Notes where the frame of an entry stands. Returns false, and changes nothing, when the entry
    /// with this index is another one by now: it was superseded before its frame was issued.
    pub fn place_set(&mut self, lsn: Lsn, checksum: u64, place: EntryPlace) -> bool {
        let Some(at) = self.at(lsn) else { return false };
        match self.entries.get_mut(at) {
            Some(meta) if meta.checksum == checksum => {
                meta.place = place;
                true
            }
            _ => false,
        }
    }

    /// Whether the entry with this header may come next, or supersede the one with its index and
    /// all behind it (rule R9): it continues the entry before it, and replaces none that is
    /// committed, none of its own term and index. Recovery, writer and followers ask the same.
    pub fn accepts(&self, shared: &SharedHeader, committed: Lsn) -> bool {
        let index = shared.index;
        if !shared.kind.is_entry() || index <= self.base.lsn || index.0 > self.last().0 + 1 {
            return false;
        }
        let superseded = self.get(index);
        let before = self.identity(Lsn(index.0 - 1)).expect("an entry or the base is before it");
        shared.previous == before.checksum
            && shared.entry_term.0 > 0
            && shared.entry_term >= before.term
            && shared.timestamp > before.timestamp
            && superseded.is_none_or(|old| index > committed && old.term != shared.entry_term)
    }

    /// Takes in an entry that [`Self::accepts`] allows; what it supersedes is gone.
    pub fn take(&mut self, shared: &SharedHeader, place: EntryPlace) {
        self.truncate_after(Lsn(shared.index.0 - 1));
        self.push(shared.index, EntryMeta::of(shared, place));
    }

    /// A copy of what follows `lsn`.
    pub fn tail(&self, lsn: Lsn) -> Self {
        let base = self.identity(lsn).expect("a tail begins behind an entry that is there");
        let from = (lsn.0 - self.base.lsn.0) as usize;
        Self { base, entries: self.entries.range(from..).copied().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::testing::{CLUSTER, small_geometry};

    fn header(index: u64, term: u64, previous: u64) -> SharedHeader {
        SharedHeader {
            kind: FrameKind::Data,
            checksum: 1000 * term + index,
            cluster: CLUSTER,
            entry_term: Epoch(term),
            index: Lsn(index),
            previous,
            timestamp: WallMicros(10 * index + term),
            section_count: 1,
            payload_bytes: 16,
            frame_bytes: 1536,
        }
    }

    /// Entries 6 to 9 of term 1 behind entry 5.
    fn index() -> EntryIndex {
        let chain = ChainState {
            lsn: Lsn(5),
            shared: 1005,
            timestamp: WallMicros(51),
            entry_term: Epoch(1),
            ..ChainState::EMPTY
        };
        let mut index = EntryIndex::behind(&chain);
        for lsn in 6..=9 {
            let next = header(lsn, 1, 1000 + lsn - 1);
            assert!(index.accepts(&next, Lsn(0)));
            index.take(&next, EntryPlace::NOWHERE);
        }
        index
    }

    #[test]
    fn entries_are_found_by_index() {
        let mut index = index();
        assert_eq!((index.first(), index.last(), index.len()), (Lsn(6), Lsn(9), 4));
        assert_eq!(index.get(Lsn(7)).map(|meta| meta.checksum), Some(1007));
        assert_eq!((index.get(Lsn(5)), index.get(Lsn(10)), index.get(Lsn(0))), (None, None, None));
        assert_eq!(index.identity(Lsn(5)), Some(index.base()));
        assert_eq!(index.identity(Lsn(4)), None);
        index.release_to(Lsn(7));
        assert_eq!((index.first(), index.last()), (Lsn(8), Lsn(9)));
        assert_eq!((index.base().lsn, index.base().checksum), (Lsn(7), 1007));
        index.release_to(Lsn(6));
        assert_eq!(index.first(), Lsn(8), "never back");
        index.truncate_after(Lsn(8));
        assert_eq!((index.last(), index.last_identity().checksum), (Lsn(8), 1008));
        index.release_to(Lsn(8));
        assert!(index.is_empty());
        assert_eq!((index.first(), index.last()), (Lsn(9), Lsn(8)));
        assert_eq!(index.last_identity(), index.base());
    }

    #[test]
    fn a_tail_is_what_follows() {
        let index = index();
        let tail = index.tail(Lsn(7));
        assert_eq!((tail.base().lsn, tail.base().checksum), (Lsn(7), 1007));
        assert_eq!((tail.get(Lsn(8)), tail.last()), (index.get(Lsn(8)), Lsn(9)));
        assert_eq!(index.tail(Lsn(5)), index);
        assert!(index.tail(Lsn(9)).is_empty());
    }

    #[test]
    fn only_what_continues_is_accepted() {
        let index = index();
        let accepts = |header: &SharedHeader| index.accepts(header, Lsn(6));
        assert!(accepts(&header(10, 1, 1009)) && accepts(&header(10, 4, 1009)));
        assert!(accepts(&header(8, 2, 1007)), "another term supersedes");
        assert!(!accepts(&header(8, 1, 1007)), "its own term does not");
        assert!(!accepts(&header(6, 2, 1005)), "committed");
        assert!(!accepts(&header(5, 2, 1004)) && !accepts(&header(0, 2, 0)), "the base");
        assert!(!accepts(&header(11, 2, 1010)), "a gap");
        assert!(!accepts(&header(10, 1, 1008)), "behind another entry");
        assert!(!accepts(&header(10, 0, 1009)), "an earlier term");
        let watermark = SharedHeader { kind: FrameKind::Watermark, ..header(10, 1, 1009) };
        assert!(!accepts(&watermark));
        for (timestamp, lawful) in [(90, false), (91, false), (92, true)] {
            let timestamp = WallMicros(timestamp);
            assert_eq!(accepts(&SharedHeader { timestamp, ..header(10, 1, 1009) }), lawful);
        }
    }

    #[test]
    fn a_place_belongs_to_one_entry() {
        let geometry = small_geometry();
        let mut index = index();
        let place = EntryPlace { ordinal: 6, offset: 5120, bytes: 1536 };
        index.take(&header(8, 2, 1007), EntryPlace::NOWHERE);
        assert_eq!(index.last(), Lsn(8), "all behind it is gone");
        assert!(!index.place_set(Lsn(8), 1008, place), "issued for the entry before");
        assert!(!index.place_set(Lsn(9), 1009, place) && !index.place_set(Lsn(5), 1005, place));
        assert!(index.get(Lsn(8)).is_some_and(|meta| !meta.place.is_known()));
        assert!(index.place_set(Lsn(8), 2008, place));
        let plan = index.get(Lsn(8)).expect("there").place.read_plan(&geometry);
        assert_eq!(plan, ReadRequest { segment: 2, offset: 5632, bytes: 1024 });
        assert_eq!(size_of::<EntryMeta>(), 48);
    }
}
