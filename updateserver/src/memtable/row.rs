//! Row heads: where the hash index and the ordered index point to.

use super::arena::{BLOCK_BYTES_MAX, SizeClass};
use super::version::{VersionHead, VersionRef, Versions};
use spillway_net::limits::KEY_BYTES_MAX;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU16, Ordering};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Apart from every other hash of the same key: partitions are hash slices too, and two equal
/// hashes would leave the rows of one partition in a fraction of its index.
const KEY_HASH_SEED: u64 = 0x6d65_6d74_6162_6c65;

/// The hash that the memtable finds a key by: XXH3-64 with a seed of its own.
#[inline]
pub fn key_hash(key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, KEY_HASH_SEED)
}

/// The row is in the ordered index.
pub(super) const FLAG_ORDERED: u16 = 1;
/// The row's memory is not used again, even if the row is undone: other threads or the fences of
/// the ordered index may know its address.
pub(super) const FLAG_KEPT: u16 = 2;
const TRIM_SHIFT: u32 = 8;

/// 16 bytes, then the key. Key, length and hash never change; `newest` and `flags` change on the
/// owner's thread only.
#[repr(C, align(16))]
pub(super) struct RowHead {
    newest: AtomicPtr<VersionHead>,
    hash: u32,
    key_bytes: u16,
    /// Low byte: `FLAG_*`. High byte: logarithm of how many pushes go by between two looks for
    /// versions to recycle.
    flags: AtomicU16,
}

pub(super) const ROW_HEAD_BYTES: usize = size_of::<RowHead>();
const _: () = assert!(ROW_HEAD_BYTES == 16);

/// Bytes of the block for a row head with a key of this length.
pub const fn row_bytes(key_bytes: usize) -> usize {
    ROW_HEAD_BYTES + key_bytes
}

const _: () = assert!(row_bytes(KEY_BYTES_MAX) <= BLOCK_BYTES_MAX);

/// A row in the memtable.
///
/// Valid while the arena lives and the row is not removed. Rows are removed only when the insert
/// that made them is undone, so whoever keeps a `RowRef` across transactions keeps one of a
/// committed row. Threads other than the owner get rows from an ordered reader only; they may
/// read the key, but versions only once the memtable has no writer any more. A row that was in
/// the ordered index keeps its memory even when it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRef(pub(super) NonNull<RowHead>);

// SAFETY: see the type: what other threads may use of it never changes.
unsafe impl Send for RowRef {}
// SAFETY: as above.
unsafe impl Sync for RowRef {}

impl RowRef {
    /// Writes a head without versions into a block.
    ///
    /// # Safety
    /// `block` is a fresh block of at least `row_bytes(key.len())` bytes.
    pub(super) unsafe fn init(block: NonNull<u8>, hash: u32, key: &[u8]) -> RowRef {
        assert!(key.len() <= usize::from(u16::MAX), "a key longer than its length field");
        let head = block.cast::<RowHead>();
        // SAFETY: the block is large enough and nobody else's.
        unsafe {
            head.write(RowHead {
                newest: AtomicPtr::default(),
                hash,
                key_bytes: key.len() as u16,
                flags: AtomicU16::new(0),
            });
            let place = head.add(1).cast::<u8>().as_ptr();
            std::ptr::copy_nonoverlapping(key.as_ptr(), place, key.len());
        }
        RowRef(head)
    }

    #[inline]
    fn head(&self) -> &RowHead {
        // SAFETY: a valid handle (see the type) points to an initialised head.
        unsafe { self.0.as_ref() }
    }

    /// The key's bytes.
    #[inline]
    pub fn key(&self) -> &[u8] {
        let bytes = usize::from(self.head().key_bytes);
        // SAFETY: the key follows the head in the same block and never changes.
        unsafe { std::slice::from_raw_parts(self.0.add(1).cast::<u8>().as_ptr(), bytes) }
    }

    /// The newest version. A row has none only between its creation and its first write.
    #[inline]
    pub fn newest(&self) -> Option<VersionRef> {
        VersionRef::from_ptr(self.head().newest.load(Ordering::Acquire))
    }

    /// All versions, newest first.
    #[inline]
    pub fn versions(&self) -> Versions {
        Versions(self.newest())
    }

    #[inline]
    pub(super) fn hash(&self) -> u32 {
        self.head().hash
    }

    #[inline]
    pub(super) fn set_newest(&self, version: *mut VersionHead) {
        self.head().newest.store(version, Ordering::Release);
    }

    #[inline]
    pub(super) fn class(&self) -> SizeClass {
        SizeClass::of(row_bytes(usize::from(self.head().key_bytes)))
    }

    #[inline]
    pub(super) fn has_flag(&self, flag: u16) -> bool {
        self.head().flags.load(Ordering::Relaxed) & flag != 0
    }

    pub(super) fn set_flag(&self, flag: u16) {
        let flags = self.head().flags.load(Ordering::Relaxed);
        self.head().flags.store(flags | flag, Ordering::Relaxed);
    }

    /// Pushes between two looks for versions to recycle.
    #[inline]
    pub(super) fn trim_interval(&self) -> usize {
        1 << (self.head().flags.load(Ordering::Relaxed) >> TRIM_SHIFT)
    }

    /// Sets the interval to the power of two at or above the given one.
    #[inline]
    pub(super) fn set_trim_interval(&self, pushes: usize) {
        let log2 = pushes.next_power_of_two().trailing_zeros() as u16;
        let flags = self.head().flags.load(Ordering::Relaxed);
        let low = flags & ((1 << TRIM_SHIFT) - 1);
        self.head().flags.store(low | log2 << TRIM_SHIFT, Ordering::Relaxed);
    }
}

/// Asks the processor to load the line at `address`; any address is allowed.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(any(not(target_arch = "x86_64"), miri))]
    let _ = address;
}
