//! Point access: an extendible hash table of small segments.
//!
//! A directory, indexed by the top bits of a row's 32-bit hash, points to segments: linear-probed
//! arrays of 8-byte slots (16-bit tag, 48-bit row pointer) at a load of at most 0.8. A segment
//! doubles up to 512 slots and then splits in two, so one insert moves at most 409 slots, of
//! which only a split reads the row heads (for the next bit of the hash), prefetched. The home of
//! a slot comes from its tag alone: doubling and removal read no row head, and removal shifts
//! slots back instead of leaving tombstones.
//!
//! Keys whose hashes agree by design rather than by chance cannot be told apart by splitting.
//! Those that find no room after one split go into an ordered set beside the segments.

use super::arena::{Arena, ArenaFull, SizeClass, block_bytes_max};
use super::row::{RowHead, RowRef, prefetch};
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ptr::{self, NonNull};

const SLOTS_MIN_LOG2: u32 = 3;
const SLOTS_MAX_LOG2: u32 = 9;
/// The low bits of the hash are the tag, of which the low bits are the home slot.
const TAG_SHIFT: u32 = 48;
const DEPTH_MAX: u32 = 24;
/// The directory doubles only while it has at most this many entries per segment: an uneven hash
/// must not blow it up.
const DIRECTORY_SPARSE_MAX: usize = 16;
const PREFETCH_AHEAD: usize = 16;

/// Most that one insert takes from the arena for slots, bytes.
pub(super) const SLOTS_BYTES_MAX: usize = block_bytes_max(8 << SLOTS_MAX_LOG2);

/// A slot: null, or a row's address with the tag in the top 16 bits. Slot 0 of a segment holds
/// no row, but the segment's `Meta`.
type Slot = *mut RowHead;

#[derive(Clone, Copy, Debug)]
struct Meta {
    rows: u32,
    depth: u32,
}

/// A directory entry: the segment's address with the logarithm of its slots in the low 4 bits.
#[derive(Clone, Copy)]
struct Segment(*mut Slot);

impl Segment {
    const LOG2_MASK: usize = 15;

    fn new(base: NonNull<u8>, log2: u32) -> Segment {
        assert!(log2 as usize <= Self::LOG2_MASK, "a segment's size fits its field");
        assert!(base.addr().get() & Self::LOG2_MASK == 0, "a segment is aligned");
        Segment(base.as_ptr().map_addr(|a| a | log2 as usize).cast())
    }

    #[inline]
    fn base(self) -> *mut Slot {
        self.0.map_addr(|a| a & !Self::LOG2_MASK)
    }

    #[inline]
    fn log2(self) -> u32 {
        (self.0.addr() & Self::LOG2_MASK) as u32
    }

    #[inline]
    fn mask(self) -> usize {
        (1 << self.log2()) - 1
    }

    fn slots(self) -> usize {
        1 << self.log2()
    }

    #[inline]
    fn home(self, tag: usize) -> usize {
        (tag & self.mask()).max(1)
    }

    #[inline]
    fn after(self, position: usize) -> usize {
        ((position + 1) & self.mask()).max(1)
    }

    #[inline]
    fn slot(self, position: usize) -> *mut Slot {
        assert!(position <= self.mask(), "a slot outside of its segment");
        // SAFETY: the position is within the segment's slots.
        unsafe { self.base().add(position) }
    }

    #[inline]
    fn get(self, position: usize) -> Slot {
        // SAFETY: slots of a segment are initialised, and only the owner's thread has them.
        unsafe { self.slot(position).read() }
    }

    #[inline]
    fn set(self, position: usize, slot: Slot) {
        // SAFETY: as in `get`.
        unsafe { self.slot(position).write(slot) }
    }

    #[inline]
    fn meta(self) -> Meta {
        // SAFETY: slot 0 is initialised with a `Meta` and has its size and alignment.
        unsafe { self.base().cast::<Meta>().read() }
    }

    #[inline]
    fn set_meta(self, meta: Meta) {
        // SAFETY: as in `meta`.
        unsafe { self.base().cast::<Meta>().write(meta) }
    }

    /// Puts a slot behind those of the same home. The segment must have room.
    #[inline]
    fn put(self, slot: Slot) {
        let mut position = self.home(slot_tag(slot));
        while !self.get(position).is_null() {
            position = self.after(position);
        }
        self.set(position, slot);
    }

    fn clear(self) {
        // SAFETY: all slots belong to the segment; a null pointer is all zeros.
        unsafe { self.base().write_bytes(0, self.slots()) };
    }
}

const _: () = assert!(size_of::<Meta>() == size_of::<Slot>());

#[inline]
fn slot_tag(slot: Slot) -> usize {
    slot.addr() >> TAG_SHIFT
}

#[inline]
fn slot_row(slot: Slot) -> Option<RowRef> {
    NonNull::new(slot.map_addr(|a| a & ((1 << TAG_SHIFT) - 1))).map(RowRef)
}

#[inline]
fn slot_new(row: RowRef, hash: u64) -> Slot {
    let slot = row.0.as_ptr().map_addr(|a| a | (hash as usize) << TAG_SHIFT);
    assert!(row.0.addr().get() >> TAG_SHIFT == 0, "a row above 48 bits of address");
    slot
}

/// Bits of the key's hash that the row head keeps; the directory is indexed by their top.
#[inline]
pub(super) fn head_hash(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// A row that found no slot, ordered by key.
#[derive(Clone, Copy)]
struct Spilled(RowRef);

impl Borrow<[u8]> for Spilled {
    fn borrow(&self) -> &[u8] {
        self.0.key()
    }
}

impl PartialEq for Spilled {
    fn eq(&self, other: &Spilled) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for Spilled {}

impl PartialOrd for Spilled {
    fn partial_cmp(&self, other: &Spilled) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Spilled {
    fn cmp(&self, other: &Spilled) -> Ordering {
        self.0.key().cmp(other.0.key())
    }
}

/// The hash index of one table in one partition. Touched by its owner's thread only.
pub(super) struct HashIndex {
    directory: Vec<Segment>,
    depth: u32,
    segments: usize,
    rows: usize,
    slot_bytes: usize,
    spilled: BTreeSet<Spilled>,
    scratch: Vec<Slot>,
}

// SAFETY: the pointers lead into the arena, which moves between threads together with the slice.
unsafe impl Send for HashIndex {}

impl HashIndex {
    pub(super) fn new() -> HashIndex {
        HashIndex {
            directory: Vec::new(),
            depth: 0,
            segments: 0,
            rows: 0,
            slot_bytes: 0,
            spilled: BTreeSet::new(),
            scratch: Vec::new(),
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn slot_bytes(&self) -> usize {
        self.slot_bytes + self.directory.capacity() * size_of::<Segment>()
    }

    #[inline]
    fn position(&self, hash32: u32) -> usize {
        // In 64 bits a shift by 32 is defined: an empty prefix gives entry 0.
        (u64::from(hash32) >> (32 - self.depth)) as usize
    }

    #[inline]
    fn segment(&self, hash32: u32) -> Option<Segment> {
        self.directory.get(self.position(hash32)).copied()
    }

    #[inline]
    pub(super) fn prefetch_slot(&self, hash: u64) {
        if let Some(segment) = self.segment(head_hash(hash)) {
            let home = segment.home(hash as usize & 0xffff);
            let slot = segment.slot(home);
            prefetch(slot);
            // A probe seldom goes further than this.
            prefetch(slot.wrapping_add(3));
        }
    }

    /// The first row with the hash's tag: nearly always the one that is looked for.
    #[inline]
    pub(super) fn candidate(&self, hash: u64) -> Option<RowRef> {
        let segment = self.segment(head_hash(hash))?;
        let tag = hash as usize & 0xffff;
        let mut position = segment.home(tag);
        loop {
            let slot = segment.get(position);
            let row = slot_row(slot)?;
            if slot_tag(slot) == tag {
                return Some(row);
            }
            position = segment.after(position);
        }
    }

    #[inline]
    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Option<RowRef> {
        let hash32 = head_hash(hash);
        let segment = self.segment(hash32)?;
        let tag = hash as usize & 0xffff;
        let mut position = segment.home(tag);
        loop {
            let slot = segment.get(position);
            let Some(row) = slot_row(slot) else { break };
            if slot_tag(slot) == tag && row.hash() == hash32 && row.key() == key {
                return Some(row);
            }
            position = segment.after(position);
        }
        if self.spilled.is_empty() {
            return None;
        }
        self.spilled.get(key).map(|row| row.0)
    }

    /// Enters a row whose key is not in the index.
    #[inline]
    pub(super) fn insert(
        &mut self,
        arena: &mut Arena,
        hash: u64,
        row: RowRef,
    ) -> Result<(), ArenaFull> {
        assert!(row.hash() == head_hash(hash), "a row under a hash that is not its own");
        if self.directory.is_empty() {
            let first = new_segment(arena, SLOTS_MIN_LOG2, 0)?;
            self.directory.push(first);
            self.segments = 1;
            self.slot_bytes = first.slots() * size_of::<Slot>();
        }
        // One attempt at growing bounds what an insert costs, in time and in memory.
        let placed = self.place(hash, row)
            || (self.grow(arena, row.hash())? && self.place(hash, row))
            || self.spilled.insert(Spilled(row));
        assert!(placed, "a row is entered once");
        self.rows += 1;
        Ok(())
    }

    #[inline]
    fn place(&self, hash: u64, row: RowRef) -> bool {
        let segment = self.directory[self.position(row.hash())];
        let meta = segment.meta();
        if (meta.rows as usize + 1) * 5 > segment.mask() * 4 {
            return false;
        }
        segment.put(slot_new(row, hash));
        segment.set_meta(Meta { rows: meta.rows + 1, ..meta });
        true
    }

    /// Makes room in the segment of the hash; false when that cannot be done.
    #[cold]
    fn grow(&mut self, arena: &mut Arena, hash32: u32) -> Result<bool, ArenaFull> {
        let segment = self.directory[self.position(hash32)];
        if segment.log2() < SLOTS_MAX_LOG2 {
            return self.double(arena, hash32).map(|()| true);
        }
        let depth = segment.meta().depth;
        let dense = self.directory.len() * 2 <= self.segments * DIRECTORY_SPARSE_MAX;
        if depth < self.depth || (self.depth < DEPTH_MAX && dense) {
            return self.split(arena, hash32).map(|()| true);
        }
        Ok(false)
    }

    /// The directory entries that point to the segment of the hash.
    fn entries(&self, hash32: u32, depth: u32) -> std::ops::Range<usize> {
        assert!(depth <= self.depth, "a segment deeper than the directory");
        let span = 1usize << (self.depth - depth);
        let first = self.position(hash32) & !(span - 1);
        first..first + span
    }

    fn double(&mut self, arena: &mut Arena, hash32: u32) -> Result<(), ArenaFull> {
        let old = self.directory[self.position(hash32)];
        let meta = old.meta();
        let new = new_segment(arena, old.log2() + 1, meta.depth)?;
        for position in 1..old.slots() {
            let slot = old.get(position);
            if !slot.is_null() {
                new.put(slot);
            }
        }
        new.set_meta(meta);
        let entries = self.entries(hash32, meta.depth);
        self.directory[entries].fill(new);
        let class = SizeClass::of(old.slots() * size_of::<Slot>());
        let block = NonNull::new(old.base().cast()).expect("a segment has an address");
        // SAFETY: the block came from this arena with this class; no entry points to it now.
        unsafe { arena.free(block, class) };
        self.slot_bytes += old.slots() * size_of::<Slot>();
        Ok(())
    }

    fn split(&mut self, arena: &mut Arena, hash32: u32) -> Result<(), ArenaFull> {
        let old = self.directory[self.position(hash32)];
        let Meta { rows, depth } = old.meta();
        let new = new_segment(arena, old.log2(), depth + 1)?;
        if depth == self.depth {
            self.directory = self.directory.iter().flat_map(|s| [*s, *s]).collect();
            self.depth += 1;
        }
        self.scratch.clear();
        let taken = (1..old.slots()).map(|position| old.get(position)).filter(|s| !s.is_null());
        self.scratch.extend(taken);
        assert_eq!(self.scratch.len(), rows as usize, "a segment counts its rows");
        old.clear();
        let mut moved = 0;
        for (i, slot) in self.scratch.iter().enumerate() {
            if let Some(ahead) = self.scratch.get(i + PREFETCH_AHEAD) {
                prefetch(ahead.map_addr(|a| a & ((1 << TAG_SHIFT) - 1)));
            }
            let row = slot_row(*slot).expect("only taken slots were collected");
            let goes_right = row.hash() >> (31 - depth) & 1 == 1;
            if goes_right {
                new.put(*slot)
            } else {
                old.put(*slot)
            }
            moved += u32::from(goes_right);
        }
        old.set_meta(Meta { rows: rows - moved, depth: depth + 1 });
        new.set_meta(Meta { rows: moved, depth: depth + 1 });
        let right = self.entries(hash32 | 1 << (31 - depth), depth + 1);
        self.directory[right].fill(new);
        self.segments += 1;
        self.slot_bytes += new.slots() * size_of::<Slot>();
        Ok(())
    }

    /// Takes a row out that is in the index.
    pub(super) fn remove(&mut self, hash: u64, row: RowRef) {
        let segment = self.segment(row.hash()).expect("a row is removed from where it is");
        self.rows -= 1;
        if !self.spilled.is_empty() && self.spilled.remove(row.key()) {
            return;
        }
        assert!(head_hash(hash) == row.hash(), "a row was entered under another hash");
        let wanted = slot_new(row, hash);
        let mut hole = segment.home(slot_tag(wanted));
        while segment.get(hole) != wanted {
            assert!(!segment.get(hole).is_null(), "a row to remove is in the index");
            hole = segment.after(hole);
        }
        let mut position = segment.after(hole);
        loop {
            let slot = segment.get(position);
            if slot.is_null() {
                break;
            }
            // A slot may fill the hole if that lies between its home and its place, cyclically.
            let home = segment.home(slot_tag(slot));
            let behind = if position > hole {
                home <= hole || home > position
            } else {
                home <= hole && home > position
            };
            if behind {
                segment.set(hole, slot);
                hole = position;
            }
            position = segment.after(position);
        }
        segment.set(hole, ptr::null_mut());
        let meta = segment.meta();
        segment.set_meta(Meta { rows: meta.rows - 1, ..meta });
    }

    /// Calls `each` for the rows of the segment whose hashes include `from`, and returns the
    /// first hash behind that segment, `None` after the last. Begun with 0 and gone on with what
    /// it returns, it stays right when the index grows between two calls.
    pub(super) fn visit(&self, from: u32, mut each: impl FnMut(RowRef)) -> Option<u32> {
        let segment = self.segment(from)?;
        for position in 1..segment.slots() {
            if let Some(row) = slot_row(segment.get(position)) {
                each(row);
            }
        }
        let span = 1u64 << (32 - segment.meta().depth);
        let first = u64::from(from) & !(span - 1);
        let hashes = first..first + span;
        let spilled = self.spilled.iter().filter(|row| hashes.contains(&u64::from(row.0.hash())));
        spilled.for_each(|row| each(row.0));
        u32::try_from(hashes.end).ok()
    }

    #[cfg(test)]
    pub(super) fn segment_bytes(&self) -> usize {
        self.slot_bytes
    }

    #[cfg(test)]
    pub(super) fn spilled(&self) -> usize {
        self.spilled.len()
    }
}

fn new_segment(arena: &mut Arena, log2: u32, depth: u32) -> Result<Segment, ArenaFull> {
    let block = arena.alloc(SizeClass::of(size_of::<Slot>() << log2))?;
    let segment = Segment::new(block, log2);
    segment.clear();
    segment.set_meta(Meta { rows: 0, depth });
    Ok(segment)
}
