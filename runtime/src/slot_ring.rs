//! Memory handed out in ring order: one mapped region whose parts travel between the network, the
//! log core, the disk and the shards without being copied.
//!
//! [`SlotRing::reserve`] hands out the region's bytes one after the other, each reservation in one
//! piece that begins at a multiple of 4,096. A reservation is a [`SlotMut`] (exclusive, can be
//! split into disjoint parts) and becomes one or more [`Slot`]s (shared, immutable). It ends when
//! the last part and the last clone of it are dropped, on whatever thread; the ring takes ended
//! reservations back strictly in the order in which they were made, so one that lives long holds
//! up all later ones.
//!
//! What holds: a byte belongs to at most one `SlotMut`, or to any number of `Slot`s, never to
//! both; the region lives as long as any part of it. A steady state allocates nothing.
//!
//! What passes between threads is the count of owners, so it comes from `queue::sync`:
//! `tests/slot_ring_memory_order.rs` compiles this file against a model checker's.

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

use super::queue::sync::Arc;
use crate::buffer::{AlignedBuffer, BUFFER_ALIGNMENT};
use crate::error::RuntimeError;
use crate::region::{HUGE_PAGE_BYTES, HugePages, PageKind, Region};

/// Most bytes of one ring: the kernel registers no larger buffer.
pub const SLOT_RING_BYTES_MAX: usize = 1 << 30;

/// What a slot's bytes live in. One per reservation; its count of owners is that of the parts.
#[derive(Debug)]
enum Memory {
    /// A ring's region, which the last of its ring and its slots unmaps.
    Ring(Arc<Region>),
    /// A buffer of the slot's own.
    Heap(AlignedBuffer),
}

impl Memory {
    fn start(&self) -> NonNull<u8> {
        let start = match self {
            Memory::Ring(region) => region.as_ptr(),
            Memory::Heap(buffer) => buffer.start_ptr(),
        };
        NonNull::new(start).expect("memory never starts at the zero page")
    }
}

/// One reservation as the ring remembers it. Offsets are into the region.
#[derive(Debug)]
struct Reservation {
    memory: Arc<Memory>,
    start: usize,
    /// End of the bytes asked for.
    end: usize,
    /// Bytes in whole alignments from `start` on.
    span: usize,
    /// Bytes at the end of the region that were left out to keep this one in one piece.
    skipped: usize,
}

/// See the module. It has one owner, the thread that reserves; slots may go anywhere.
pub struct SlotRing {
    name: String,
    region: Arc<Region>,
    bytes: usize,
    /// Oldest first.
    reservations: VecDeque<Reservation>,
    /// Where the next reservation begins if it fits there.
    head: usize,
    used: usize,
    /// Counts of ended reservations, to be used again.
    spare: Vec<Arc<Memory>>,
}

impl SlotRing {
    /// Maps `bytes` for a ring that messages call `name`.
    ///
    /// # Errors
    /// Fails if the kernel refuses the memory.
    ///
    /// # Panics
    /// If `bytes` is zero, no multiple of [`BUFFER_ALIGNMENT`] or above [`SLOT_RING_BYTES_MAX`].
    pub fn new(name: &str, bytes: usize) -> Result<SlotRing, RuntimeError> {
        assert!(bytes > 0 && bytes.is_multiple_of(BUFFER_ALIGNMENT), "{name}: {bytes} bytes");
        assert!(bytes <= SLOT_RING_BYTES_MAX, "{name}: {bytes} bytes are too many");
        let huge = if bytes >= HUGE_PAGE_BYTES { HugePages::Try } else { HugePages::No };
        Ok(SlotRing {
            name: name.to_owned(),
            region: Arc::new(Region::new(bytes, huge)?),
            bytes,
            reservations: VecDeque::new(),
            head: 0,
            used: 0,
            spare: Vec::new(),
        })
    }

    /// Reserves `bytes` in one piece, or `None` if there is no room now. The slot has exactly the
    /// bytes asked for and begins at a multiple of [`BUFFER_ALIGNMENT`]; the room it takes is
    /// rounded up to that. Its content is whatever was there before.
    ///
    /// # Panics
    /// If `bytes` is zero.
    pub fn reserve(&mut self, bytes: usize) -> Option<SlotMut> {
        assert!(bytes > 0, "a slot of the {} ring has bytes", self.name);
        if bytes > self.bytes || crate::fault_point!(SlotRingFull) {
            return None;
        }
        self.reclaim();
        let span = bytes.next_multiple_of(BUFFER_ALIGNMENT);
        let (start, skipped) = self.place(span)?;
        let memory = self.spare.pop();
        let memory = memory.unwrap_or_else(|| Arc::new(Memory::Ring(Arc::clone(&self.region))));
        assert!(start + span <= self.bytes, "the {} ring left its region", self.name);
        // SAFETY: the offset is inside the region, as was just checked.
        let address = unsafe { memory.start().add(start) };
        self.head = start + span;
        self.used += span + skipped;
        let slot = SlotMut { memory: Arc::clone(&memory), start: address, bytes };
        let end = start + bytes;
        self.reservations.push_back(Reservation { memory, start, end, span, skipped });
        Some(slot)
    }

    /// Where `span` bytes fit in one piece, and how many bytes at the region's end that leaves out.
    fn place(&mut self, span: usize) -> Option<(usize, usize)> {
        let Some(oldest) = self.reservations.front().map(|oldest| oldest.start) else {
            assert!(self.used == 0, "an empty {} ring uses {} bytes", self.name, self.used);
            self.head = 0;
            return (span <= self.bytes).then_some((0, 0));
        };
        // A reservation is never empty: equal means that the newest ends where the oldest begins.
        if self.head <= oldest {
            return (span <= oldest - self.head).then_some((self.head, 0));
        }
        if span <= self.bytes - self.head {
            return Some((self.head, 0));
        }
        (span <= oldest).then_some((0, self.bytes - self.head))
    }

    /// Cuts `slot` down to its first `bytes`. If it reaches to the end of the newest reservation,
    /// the ring gets the room behind it back at once; else with the rest of its reservation. Slots
    /// that are not of this ring are only cut.
    ///
    /// # Panics
    /// If the slot has fewer bytes.
    pub fn shrink(&mut self, slot: &mut SlotMut, bytes: usize) {
        let end_before = slot.start.as_ptr() as usize + slot.bytes;
        slot.truncate(bytes);
        let Some(newest) = self.reservations.back_mut() else { return };
        let base = self.region.as_ptr() as usize;
        // No other part has a byte behind a part that reaches to the end.
        let is_last = Arc::ptr_eq(&newest.memory, &slot.memory) && end_before == base + newest.end;
        if !is_last {
            return;
        }
        newest.end = slot.start.as_ptr() as usize + bytes - base;
        assert!(newest.end >= newest.start, "a part begins inside its reservation");
        let span = (newest.end - newest.start).next_multiple_of(BUFFER_ALIGNMENT);
        // At least one, so that a reservation is never empty.
        let span = span.max(BUFFER_ALIGNMENT);
        assert!(span <= newest.span, "shrinking grew a slot of the {} ring", self.name);
        self.used -= newest.span - span;
        newest.span = span;
        self.head = newest.start + span;
    }

    /// Takes ended reservations back, oldest first, up to the first that still lives.
    /// [`SlotRing::reserve`] does so by itself.
    pub fn reclaim(&mut self) {
        while let Some(oldest) = self.reservations.front_mut() {
            // Exclusive access to the count proves that no part is left, and orders whatever the
            // owners of the parts did before whatever the next owner does.
            if Arc::get_mut(&mut oldest.memory).is_none() {
                // What was left out for it lies before it, where nothing lives any more.
                self.used -= std::mem::take(&mut oldest.skipped);
                return;
            }
            let ended = self.reservations.pop_front().expect("it was just seen");
            self.used -= ended.span + ended.skipped;
            self.spare.push(ended.memory);
        }
    }

    /// True when the slot is memory of this ring.
    #[must_use]
    pub fn contains(&self, slot: &Slot) -> bool {
        slot.is_in(&self.region)
    }

    /// Size of the region.
    #[must_use]
    pub fn bytes_total(&self) -> usize {
        self.bytes
    }

    /// Bytes in reservations that were not taken back yet, with what was left out between them.
    #[must_use]
    pub fn bytes_used(&self) -> usize {
        self.used
    }

    /// Reservations that were not taken back yet.
    #[must_use]
    pub fn reservations(&self) -> usize {
        self.reservations.len()
    }

    /// What pages the region got.
    #[must_use]
    pub fn pages(&self) -> PageKind {
        self.region.pages()
    }

    /// Counts that wait to be used again.
    #[cfg(test)]
    pub(crate) fn spare_counts(&self) -> usize {
        self.spare.len()
    }

    /// The region, for those who register it with the kernel.
    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }
}

impl fmt::Debug for SlotRing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (used, bytes) = (self.used, self.bytes);
        write!(formatter, "SlotRing({}: {used} of {bytes} bytes used)", self.name)
    }
}

/// Bytes that have one owner, who may write them.
pub struct SlotMut {
    memory: Arc<Memory>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the bytes are the slot's alone, and nothing about them is thread-bound.
unsafe impl Send for SlotMut {}
// SAFETY: through a shared reference the bytes can only be read.
unsafe impl Sync for SlotMut {}

impl SlotMut {
    /// A zeroed slot of its own on the heap, in no ring: for code without one, or when it is full.
    /// It begins at a multiple of [`BUFFER_ALIGNMENT`].
    #[must_use]
    pub fn heap(bytes: usize) -> SlotMut {
        let memory = Arc::new(Memory::Heap(AlignedBuffer::new(bytes.max(1))));
        SlotMut { start: memory.start(), memory, bytes }
    }

    /// Two parts, the first with `at` bytes.
    ///
    /// # Panics
    /// If the slot has fewer bytes.
    #[must_use]
    pub fn split_at(self, at: usize) -> (SlotMut, SlotMut) {
        assert!(at <= self.bytes, "a slot of {} bytes cannot be split at {at}", self.bytes);
        // SAFETY: the offset was just checked to be inside the slot, or its end.
        let start = unsafe { self.start.add(at) };
        let tail = SlotMut { memory: Arc::clone(&self.memory), start, bytes: self.bytes - at };
        (SlotMut { bytes: at, ..self }, tail)
    }

    /// Two parts of one slot as one again, or `None` if `body` does not begin where `head` ends.
    #[must_use]
    pub fn joined(head: SlotMut, body: SlotMut) -> Option<SlotMut> {
        let is_adjacent =
            Arc::ptr_eq(&head.memory, &body.memory) && head.end_address() == body.address();
        is_adjacent.then(|| SlotMut { bytes: head.bytes + body.bytes, ..head })
    }

    /// Cuts the slot down to its first `bytes`.
    ///
    /// # Panics
    /// If the slot has fewer bytes.
    pub fn truncate(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes, "a slot of {} bytes cannot have {bytes}", self.bytes);
        self.bytes = bytes;
    }

    /// Ends the writing: the same bytes, to be shared.
    #[must_use]
    pub fn freeze(self) -> Slot {
        Slot { memory: self.memory, start: self.start, bytes: self.bytes }
    }

    /// Where the first byte is, to tell whether two slots are the same memory.
    #[must_use]
    pub fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }

    fn end_address(&self) -> usize {
        self.address() + self.bytes
    }

    /// For the kernel, which writes while this crate holds the slot and nobody refers to it.
    pub(crate) fn start_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn is_in(&self, region: &Arc<Region>) -> bool {
        is_in(&self.memory, region)
    }
}

impl Deref for SlotMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are initialised (regions and buffers start zeroed), live as long as
        // `memory`, and belong to this slot alone.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for SlotMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl AsRef<[u8]> for SlotMut {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for SlotMut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SlotMut({} bytes at {:#x})", self.bytes, self.address())
    }
}

/// Bytes that nobody writes any more, shared by any number of owners on any threads.
///
/// Two slots are equal if their bytes are; [`Slot::address`] tells whether they are the same.
#[derive(Clone)]
pub struct Slot {
    memory: Arc<Memory>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the bytes can only be read, and nothing about them is thread-bound.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Slot {
    /// A slot of its own on the heap with these bytes. They are copied once, so that they begin at
    /// a multiple of [`BUFFER_ALIGNMENT`], which a `Vec` does not promise.
    #[must_use]
    pub fn from_vec(bytes: Vec<u8>) -> Slot {
        let mut slot = SlotMut::heap(bytes.len());
        slot.copy_from_slice(&bytes);
        slot.freeze()
    }

    /// Part of the slot: the same memory, kept alive as a whole.
    ///
    /// # Panics
    /// If the range leaves the slot.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Slot {
        let is_inside = range.start <= range.end && range.end <= self.bytes;
        assert!(is_inside, "{range:?} leaves a slot of {} bytes", self.bytes);
        // SAFETY: the offset was just checked to be inside the slot, or its end.
        let start = unsafe { self.start.add(range.start) };
        Slot { memory: Arc::clone(&self.memory), start, bytes: range.len() }
    }

    /// Two parts of one reservation as one, or `None` if `body` does not begin where `head` ends.
    #[must_use]
    pub fn joined(head: &Slot, body: &Slot) -> Option<Slot> {
        let is_adjacent =
            Arc::ptr_eq(&head.memory, &body.memory) && head.end_address() == body.address();
        is_adjacent.then(|| Slot {
            memory: Arc::clone(&head.memory),
            start: head.start,
            bytes: head.bytes + body.bytes,
        })
    }

    /// Where the first byte is, to tell whether two slots are the same memory.
    #[must_use]
    pub fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }

    fn end_address(&self) -> usize {
        self.address() + self.bytes
    }

    pub(crate) fn is_in(&self, region: &Arc<Region>) -> bool {
        is_in(&self.memory, region)
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are initialised, live as long as `memory`, and nobody writes them: the
        // only `SlotMut` of them was consumed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Slot {
    fn eq(&self, other: &Slot) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Slot {}

impl From<Vec<u8>> for Slot {
    fn from(bytes: Vec<u8>) -> Slot {
        Slot::from_vec(bytes)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Slot({} bytes at {:#x})", self.bytes, self.address())
    }
}

fn is_in(memory: &Memory, region: &Arc<Region>) -> bool {
    match memory {
        Memory::Ring(own) => Arc::ptr_eq(own, region),
        Memory::Heap(_) => false,
    }
}
