//! The segments of a log as a ring: which are held, which are ready for frames, which must be
//! prepared first, and what stands in each.

use std::collections::VecDeque;

use spillway_net::ids::{ClusterId, Lsn, NodeId};

use super::geometry::Geometry;
use super::position::{ChainState, Floor};
use super::segment::{Contents, segment_recycle};

/// State of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Holds frames that are needed, or is being written.
    Held,
    /// Prepared: frames may enter.
    Ready,
    /// Behind the floor, or disturbed by frames that were dropped: must be prepared.
    Dirty,
    /// Its header is being written.
    Preparing,
}

/// A segment file and what stands in its frame area.
#[derive(Clone, Debug)]
pub struct Slot {
    /// State.
    pub state: SlotState,
    /// Contents.
    pub contents: Contents,
}

/// A segment in use.
#[derive(Clone, Copy, Debug)]
pub struct HeldSegment {
    /// The chain before its first frame.
    pub chain: ChainState,
    /// Highest index in it, or before it.
    pub lsn_max: Lsn,
    /// Lowest index in it; the next one while there is none. Not above the index before the
    /// segment when entries before it were superseded in it.
    pub lsn_min: Lsn,
}

impl HeldSegment {
    /// A segment without frames.
    pub fn new(chain: ChainState) -> Self {
        Self { chain, lsn_max: chain.lsn, lsn_min: Lsn(chain.lsn.0 + 1) }
    }

    /// Notes an entry in it.
    pub fn note(&mut self, lsn: Lsn) {
        self.lsn_max = self.lsn_max.max(lsn);
        self.lsn_min = self.lsn_min.min(lsn);
    }
}

/// The ring.
#[derive(Clone, Debug)]
pub struct SegmentRing {
    geometry: Geometry,
    cluster: ClusterId,
    node: NodeId,
    floor: u64,
    held: VecDeque<HeldSegment>,
    slots: Vec<Slot>,
}

impl SegmentRing {
    /// A ring of held segments from ordinal `floor` on; `slots` by file number.
    pub fn new(
        geometry: Geometry,
        cluster: ClusterId,
        node: NodeId,
        floor: u64,
        held: VecDeque<HeldSegment>,
        slots: Vec<Slot>,
    ) -> Self {
        assert_eq!(slots.len(), geometry.segments_count as usize, "one slot for each segment");
        assert!(!held.is_empty() && held.len() <= slots.len(), "held segments within the ring");
        let ring = Self { geometry, cluster, node, floor, held, slots };
        for ordinal in floor..floor + u64::from(geometry.segments_count) {
            let slot = &ring.slots[geometry.slot(ordinal) as usize];
            let held = ordinal <= ring.current();
            assert_eq!(slot.state == SlotState::Held, held, "state of segment {ordinal}");
            let free_known = held || slot.contents != Contents::Unknown;
            assert!(free_known, "contents of free segment {ordinal} are known");
        }
        ring
    }

    /// Sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Ordinal of the segment that is being written.
    pub fn current(&self) -> u64 {
        self.floor + self.held.len() as u64 - 1
    }

    /// Segments that hold no needed frames, prepared or not.
    pub fn free_count(&self) -> usize {
        self.slots.len() - self.held.len()
    }

    /// Held segments, the current one included.
    pub fn held_count(&self) -> usize {
        self.held.len()
    }

    /// True when the next segment can take frames.
    pub fn next_ready(&self) -> bool {
        if self.free_count() == 0 {
            return false;
        }
        self.slots[self.geometry.slot(self.current() + 1) as usize].state == SlotState::Ready
    }

    /// Moves to the next segment, whose first frame will continue `chain`.
    pub fn advance(&mut self, chain: ChainState) {
        assert!(self.next_ready(), "a segment is entered only when it is prepared");
        let last = self.held.back().expect("a segment is always held");
        assert!(chain.sequence > last.chain.sequence, "a segment is left with frames in it");
        self.held.push_back(HeldSegment::new(chain));
        let slot = self.geometry.slot(self.current()) as usize;
        self.slots[slot].state = SlotState::Held;
    }

    /// Notes a frame at `offset` of the current segment: its index if it is an entry, and the
    /// checksums of its blocks as they will stand on disk.
    pub fn record(&mut self, offset: u64, entry: Option<Lsn>, blocks: impl Iterator<Item = u64>) {
        let held = self.held.back_mut().expect("a segment is always held");
        if let Some(lsn) = entry {
            held.note(lsn);
        }
        let slot = self.geometry.slot(self.current()) as usize;
        let from = self.geometry.block_index(offset);
        let table = self.slots[slot].contents.table_mut(&self.geometry);
        for (entry, checksum) in table[from..].iter_mut().zip(blocks) {
            *entry = checksum;
        }
    }

    /// The highest floor that keeps every frame with an index above `lsn`, and the current
    /// segment, and before which no entry was superseded behind it: recovery knows of the entries
    /// before a floor only the last one, and must never meet a frame that replaces it.
    pub fn floor_for(&self, lsn: Lsn) -> Floor {
        let released = self.held.iter().take_while(|held| held.lsn_max <= lsn).count();
        let most = released.min(self.held.len() - 1);
        let is_final = |keep: &usize| {
            let last = self.held[*keep].chain.lsn;
            self.held.range(*keep..).all(|held| held.lsn_min > last)
        };
        let keep = (0..=most).rev().find(is_final).unwrap_or(0);
        Floor { ordinal: self.floor + keep as u64, chain: self.held[keep].chain }
    }

    /// Releases the segments before `floor`. The superblock that names it must be durable, or a
    /// crash would leave a node that looks for its log in recycled segments.
    pub fn release(&mut self, floor: &Floor) {
        assert!(floor.ordinal >= self.floor, "the floor never falls");
        assert!(floor.ordinal <= self.current(), "the current segment stays");
        while self.floor < floor.ordinal {
            let slot = self.geometry.slot(self.floor) as usize;
            assert_eq!(self.slots[slot].state, SlotState::Held, "released segments were held");
            self.slots[slot].state = SlotState::Dirty;
            self.held.pop_front();
            self.floor += 1;
        }
        let first = self.held.front().expect("the current segment stays");
        assert_eq!(first.chain, floor.chain, "a floor names the chain before its segment");
    }

    /// Starts to prepare the next segment that needs it, one at a time: the file and the bytes of
    /// header and table.
    pub fn prepare_next(&mut self, chain: &ChainState) -> Option<(u32, Vec<u8>)> {
        if self.slots.iter().any(|slot| slot.state == SlotState::Preparing) {
            return None;
        }
        let free = self.current() + 1..self.floor + self.slots.len() as u64;
        let state = |ordinal: &u64| self.slots[self.geometry.slot(*ordinal) as usize].state;
        let ordinal = free.into_iter().find(|ordinal| state(ordinal) == SlotState::Dirty)?;
        let segment = self.geometry.slot(ordinal);
        let slot = &mut self.slots[segment as usize];
        slot.state = SlotState::Preparing;
        let bytes = segment_recycle(
            &self.geometry,
            self.cluster,
            self.node,
            ordinal,
            chain,
            &slot.contents,
        );
        Some((segment, bytes))
    }

    /// The header of `segment` is durable.
    pub fn prepared(&mut self, segment: u32) {
        let slot = &mut self.slots[segment as usize];
        assert_eq!(slot.state, SlotState::Preparing, "segment {segment} was being prepared");
        slot.state = SlotState::Ready;
    }
}
