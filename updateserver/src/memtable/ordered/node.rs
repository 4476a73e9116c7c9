//! Nodes of the ordered index: what the writer changes and readers look at meanwhile.
//!
//! Everything in a node is atomic. The writer makes a node's lock word odd while it changes the
//! node; a reader notes the word, reads, and throws away what it read if the word has changed.
//! Pointers are stored with release and loaded with acquire, so that even what is thrown away
//! was a pointer to initialised memory. Nodes are never freed before the arena.

use super::super::arena::{Arena, ArenaFull, SizeClass};
use super::super::row::{RowHead, RowRef, prefetch};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};

/// Entries of a node.
pub(super) const ENTRIES_MAX: usize = 61;
const SPINS_MAX: usize = 64;

/// A reader saw a node in the middle of a change and must begin again.
#[derive(Debug)]
pub(super) struct Stale;

#[cfg(test)]
thread_local! {
    /// What a test does to the tree while a reader of the same thread is under way.
    pub(super) static INTERLEAVED: std::cell::RefCell<Option<Box<dyn FnMut()>>> =
        const { std::cell::RefCell::new(None) };
}

/// A point at which a writer may get between a reader's steps.
#[inline(always)]
pub(super) fn interleave() {
    #[cfg(test)]
    {
        let taken = INTERLEAVED.with(|hook| hook.borrow_mut().take());
        if let Some(mut hook) = taken {
            hook();
            INTERLEAVED.with(|place| *place.borrow_mut() = Some(hook));
        }
    }
}

/// A sequence lock of one writer.
#[derive(Default)]
pub(super) struct SequenceLock(AtomicU64);

impl SequenceLock {
    /// Waits until no write is going on; the result goes into `validate`.
    #[inline]
    pub(super) fn read(&self) -> u64 {
        interleave();
        let mut spins = 0;
        loop {
            let word = self.0.load(Ordering::Acquire);
            if word.is_multiple_of(2) {
                interleave();
                return word;
            }
            spins += 1;
            // The writer may have lost its processor in the middle.
            if spins > SPINS_MAX { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    /// Whether nothing was written since `read` returned the word.
    #[inline]
    pub(super) fn validate(&self, word: u64) -> Result<(), Stale> {
        interleave();
        fence(Ordering::Acquire);
        if self.0.load(Ordering::Relaxed) == word { Ok(()) } else { Err(Stale) }
    }

    #[inline]
    pub(super) fn write_begin(&self) {
        let word = self.0.load(Ordering::Relaxed);
        assert!(word.is_multiple_of(2), "two writes to one node at a time");
        self.0.store(word + 1, Ordering::Relaxed);
        fence(Ordering::Release);
    }

    #[inline]
    pub(super) fn write_end(&self) {
        let word = self.0.load(Ordering::Relaxed);
        assert!(!word.is_multiple_of(2), "a write ends that never began");
        self.0.store(word + 1, Ordering::Release);
    }
}

/// The part that leaves and inner nodes share. Entries are sorted: of a leaf its rows, of an
/// inner node the separators (an entry is the least key right of it; its row may be removed).
/// Every key that belongs into a node lies in `low..high` (null is open) and shares its first
/// `skip` bytes with all others that do; `prefixes` are the eight bytes after those.
#[repr(C, align(64))]
pub(super) struct Node {
    pub(super) lock: SequenceLock,
    count: AtomicU32,
    skip: AtomicU32,
    next: AtomicPtr<Node>,
    low: AtomicPtr<RowHead>,
    high: AtomicPtr<RowHead>,
    prefixes: [AtomicU64; ENTRIES_MAX],
    rows: [AtomicPtr<RowHead>; ENTRIES_MAX],
}

#[repr(C)]
struct Inner {
    node: Node,
    children: [AtomicPtr<Node>; ENTRIES_MAX + 1],
}

const _: () = assert!(size_of::<Node>() == 1024 && size_of::<Inner>() == 1536);
pub(super) const LEAF_BYTES: usize = size_of::<Node>();
pub(super) const INNER_BYTES: usize = size_of::<Inner>();

/// The eight bytes after the first `skip`, as a number that sorts like them.
#[inline]
pub(super) fn prefix_at(key: &[u8], skip: usize) -> u64 {
    let rest = key.get(skip..).unwrap_or(&[]);
    if let Some(bytes) = rest.first_chunk::<8>() {
        return u64::from_be_bytes(*bytes);
    }
    let mut bytes = [0; 8];
    bytes[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(bytes)
}

/// Bytes that two keys share at their beginning.
pub(super) fn common_bytes(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// A node, leaf or inner; which of them its level in the tree says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeRef(pub(super) NonNull<Node>);

// SAFETY: all of a node is atomic, and it lives as long as the arena.
unsafe impl Send for NodeRef {}

impl NodeRef {
    pub(super) fn new_leaf(arena: &mut Arena) -> Result<NodeRef, ArenaFull> {
        Self::new(arena, LEAF_BYTES)
    }

    pub(super) fn new_inner(arena: &mut Arena) -> Result<NodeRef, ArenaFull> {
        Self::new(arena, INNER_BYTES)
    }

    fn new(arena: &mut Arena, bytes: usize) -> Result<NodeRef, ArenaFull> {
        let block = arena.alloc(SizeClass::of(bytes))?;
        assert!(block.cast::<Node>().is_aligned(), "large blocks are aligned to lines");
        // SAFETY: a fresh block of that size; zeros are a valid empty node.
        unsafe { block.write_bytes(0, bytes) };
        Ok(NodeRef(block.cast()))
    }

    #[inline]
    pub(super) fn node(&self) -> &Node {
        // SAFETY: nodes are initialised, entirely atomic, and live as long as the arena.
        unsafe { self.0.as_ref() }
    }

    /// Only of an inner node.
    #[inline]
    fn children(&self) -> &[AtomicPtr<Node>; ENTRIES_MAX + 1] {
        // SAFETY: as in `node`; the caller's level says that the block is an `Inner`. The
        // pointer comes from the block and covers all of it.
        unsafe { &(*self.0.cast::<Inner>().as_ptr()).children }
    }

    #[inline]
    pub(super) fn child(&self, i: usize) -> Option<NodeRef> {
        NonNull::new(self.children()[i].load(Ordering::Acquire)).map(NodeRef)
    }

    #[inline]
    pub(super) fn set_child(&self, i: usize, child: NodeRef) {
        self.children()[i].store(child.0.as_ptr(), Ordering::Release);
    }

    /// Starts to load what a search reads, and with `all` what an insert changes.
    #[inline]
    pub(super) fn prefetch(&self, all: bool) {
        let lines = if all { LEAF_BYTES / 64 } else { 9 };
        let base = self.0.as_ptr().cast::<u8>();
        for line in 0..lines {
            prefetch(base.wrapping_add(line * 64));
        }
    }
}

impl Node {
    #[inline]
    pub(super) fn count(&self) -> usize {
        (self.count.load(Ordering::Relaxed) as usize).min(ENTRIES_MAX)
    }

    #[inline]
    pub(super) fn set_count(&self, count: usize) {
        assert!(count <= ENTRIES_MAX, "a node holds what it has room for");
        self.count.store(count as u32, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn skip(&self) -> usize {
        self.skip.load(Ordering::Relaxed) as usize
    }

    pub(super) fn set_skip(&self, skip: usize) {
        self.skip.store(skip as u32, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn row(&self, i: usize) -> Option<RowRef> {
        NonNull::new(self.rows[i].load(Ordering::Acquire)).map(RowRef)
    }

    #[inline]
    pub(super) fn prefix(&self, i: usize) -> u64 {
        self.prefixes[i].load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn set(&self, i: usize, prefix: u64, row: RowRef) {
        self.prefixes[i].store(prefix, Ordering::Relaxed);
        self.rows[i].store(row.0.as_ptr(), Ordering::Release);
    }

    #[inline]
    pub(super) fn copy_entry(&self, i: usize, to: &Node, to_i: usize) {
        to.prefixes[to_i].store(self.prefix(i), Ordering::Relaxed);
        to.rows[to_i].store(self.rows[i].load(Ordering::Relaxed), Ordering::Release);
    }

    pub(super) fn next(&self) -> Option<NodeRef> {
        NonNull::new(self.next.load(Ordering::Acquire)).map(NodeRef)
    }

    pub(super) fn set_next(&self, next: Option<NodeRef>) {
        let next = next.map_or(ptr::null_mut(), |next| next.0.as_ptr());
        self.next.store(next, Ordering::Release);
    }

    pub(super) fn low(&self) -> Option<RowRef> {
        NonNull::new(self.low.load(Ordering::Acquire)).map(RowRef)
    }

    pub(super) fn high(&self) -> Option<RowRef> {
        NonNull::new(self.high.load(Ordering::Acquire)).map(RowRef)
    }

    pub(super) fn set_bounds(&self, low: Option<RowRef>, high: Option<RowRef>) {
        let address = |row: Option<RowRef>| row.map_or(ptr::null_mut(), |row| row.0.as_ptr());
        self.low.store(address(low), Ordering::Release);
        self.high.store(address(high), Ordering::Release);
    }

    /// Of the first `count` entries, how many lie below the key; with `or_equal` at or below.
    /// The key belongs into the node. Equal prefixes are decided by the rows' keys.
    #[inline]
    pub(super) fn bound(&self, count: usize, key: &[u8], or_equal: bool) -> Result<usize, Stale> {
        let first = self.prefix_bound(count, prefix_at(key, self.skip()));
        self.bound_from(first, count, key, or_equal)
    }

    /// How many prefixes lie below the wanted one.
    #[inline]
    pub(super) fn prefix_bound(&self, count: usize, wanted: u64) -> usize {
        let mut first = 0;
        let mut rest = count;
        while rest > 0 {
            let half = rest / 2;
            let below = self.prefix(first + half) < wanted;
            first = if below { first + half + 1 } else { first };
            rest = if below { rest - half - 1 } else { half };
        }
        first
    }

    /// `bound`, when `first` is the bound of the key's prefix.
    #[inline]
    pub(super) fn bound_from(
        &self,
        first: usize,
        count: usize,
        key: &[u8],
        or_equal: bool,
    ) -> Result<usize, Stale> {
        let wanted = prefix_at(key, self.skip());
        if first >= count || self.prefix(first) != wanted {
            return Ok(first);
        }
        let mut first = first;
        let mut end = self.tie_end(first, count, wanted);
        while first < end {
            let middle = first + (end - first) / 2;
            let row = self.row(middle).ok_or(Stale)?;
            let order = row.key().cmp(key);
            if order.is_lt() || (or_equal && order.is_eq()) {
                first = middle + 1;
            } else {
                end = middle;
            }
        }
        Ok(first)
    }

    fn tie_end(&self, first: usize, count: usize, wanted: u64) -> usize {
        let mut end = first;
        while end < count && self.prefix(end) == wanted {
            end += 1;
        }
        end
    }

    /// The bound of the key's prefix; starts to load the rows that decide a tie.
    #[inline]
    pub(super) fn prefetch_bound(&self, key: &[u8]) -> usize {
        let count = self.count();
        let wanted = prefix_at(key, self.skip());
        let first = self.prefix_bound(count, wanted);
        if first < count && self.prefix(first) == wanted {
            let end = self.tie_end(first, count, wanted);
            (first..end).filter_map(|i| self.row(i)).for_each(|row| prefetch(row.0.as_ptr()));
        }
        first
    }

    /// Whether two neighbours have the same prefix.
    pub(super) fn has_ties(&self) -> bool {
        (1..self.count()).any(|i| self.prefix(i - 1) == self.prefix(i))
    }

    /// Takes the prefixes anew, behind `skip` bytes. Under the lock if readers know the node.
    pub(super) fn encode(&self, skip: usize) {
        self.set_skip(skip);
        let count = self.count();
        (0..count).filter_map(|i| self.row(i)).for_each(|row| prefetch(row.0.as_ptr()));
        for i in 0..count {
            let row = self.row(i).expect("an entry has a row");
            self.prefixes[i].store(prefix_at(row.key(), skip), Ordering::Relaxed);
        }
    }
}
