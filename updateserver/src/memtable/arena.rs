//! Memory of a memtable: bump allocation from large chunks, with free lists by size class.
//!
//! The arena never touches the operating system. A [`ChunkSource`] hands out chunks; the shell's
//! source serves them from huge pages that a background thread has faulted in.

use std::alloc::Layout;
use std::ptr::{self, NonNull};

/// Largest block an arena hands out, bytes.
pub const BLOCK_BYTES_MAX: usize = 128 << 10;
/// Smallest chunk a source may hand out, bytes. Keeps the unused tail of a chunk small.
pub const CHUNK_BYTES_MIN: usize = 2 * BLOCK_BYTES_MAX;

const SMALL_STEP_BYTES: usize = 16;
const SMALL_BYTES_MAX: usize = 512;
const SMALL_CLASSES: usize = SMALL_BYTES_MAX / SMALL_STEP_BYTES;
const STEPS_PER_DOUBLING: usize = 8;
const CLASSES: usize =
    SMALL_CLASSES + STEPS_PER_DOUBLING * (BLOCK_BYTES_MAX / SMALL_BYTES_MAX).ilog2() as usize;
/// Blocks above `SMALL_BYTES_MAX` start on a cache line.
const LARGE_ALIGN_BYTES: usize = 64;
/// Pointers are stored in 48 bits beside 16 bits of tag.
const ADDRESS_BITS: u32 = 48;

const _: () = assert!(CLASSES <= u8::MAX as usize);

/// A block's size class: blocks of one class are interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeClass(pub(super) u8);

impl SizeClass {
    /// The smallest class whose blocks hold `bytes`.
    pub const fn of(bytes: usize) -> SizeClass {
        assert!(bytes > 0, "a block has at least one byte");
        assert!(bytes <= BLOCK_BYTES_MAX, "a block larger than the arena's limit");
        if bytes <= SMALL_BYTES_MAX {
            return SizeClass((bytes.div_ceil(SMALL_STEP_BYTES) - 1) as u8);
        }
        let last = bytes - 1;
        let shift = last.ilog2() - STEPS_PER_DOUBLING.ilog2();
        let step = (last >> shift) % STEPS_PER_DOUBLING;
        let doubling = (last.ilog2() - SMALL_BYTES_MAX.ilog2()) as usize;
        SizeClass((SMALL_CLASSES + doubling * STEPS_PER_DOUBLING + step) as u8)
    }

    /// Bytes of a block of this class.
    pub const fn bytes(self) -> usize {
        let class = self.0 as usize;
        assert!(class < CLASSES, "no such size class");
        if class < SMALL_CLASSES {
            return (class + 1) * SMALL_STEP_BYTES;
        }
        let large = class - SMALL_CLASSES;
        let doubling = large / STEPS_PER_DOUBLING;
        let step = large % STEPS_PER_DOUBLING;
        ((STEPS_PER_DOUBLING + step + 1) << doubling) * (SMALL_BYTES_MAX / STEPS_PER_DOUBLING)
    }

    const fn align(self) -> usize {
        if (self.0 as usize) < SMALL_CLASSES { SMALL_STEP_BYTES } else { LARGE_ALIGN_BYTES }
    }
}

/// What a block for `bytes` takes from the arena at most, rounding and alignment included: the
/// figure to compare with [`Arena::room_bytes`].
pub const fn block_bytes_max(bytes: usize) -> usize {
    let class = SizeClass::of(bytes);
    class.bytes() + class.align() - SMALL_STEP_BYTES
}

/// A piece of writable memory that belongs to its holder alone.
#[derive(Debug)]
pub struct Chunk {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a chunk is exclusively owned memory without any tie to the thread that obtained it.
unsafe impl Send for Chunk {}

impl Chunk {
    /// A chunk of `bytes` bytes at `base`.
    ///
    /// # Safety
    /// The memory must be readable and writable, exclusively the chunk's until it goes back to
    /// its source, and valid for `bytes` bytes in one allocation.
    pub unsafe fn new(base: NonNull<u8>, bytes: usize) -> Chunk {
        assert!(bytes >= CHUNK_BYTES_MIN, "a chunk below the least size");
        assert!(base.addr().get().is_multiple_of(LARGE_ALIGN_BYTES), "a chunk starts on a line");
        assert!((base.addr().get() + bytes) >> ADDRESS_BITS == 0, "addresses above 48 bits");
        Chunk { base, bytes }
    }

    /// Where it starts.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// How long it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Hands out chunks, all of one size.
pub trait ChunkSource: Send {
    /// The size of every chunk, bytes; at least [`CHUNK_BYTES_MIN`].
    fn chunk_bytes(&self) -> usize;
    /// Chunks that the next calls of `take` will give without fail and without delay.
    fn chunks_ready(&self) -> usize;
    /// The next chunk, `None` only when none is ready.
    fn take(&mut self) -> Option<Chunk>;
    /// Takes a chunk back that this source handed out.
    fn give_back(&mut self, chunk: Chunk);
}

/// Chunks from the process's allocator, up to a limit. For tests and tools.
#[derive(Debug)]
pub struct HeapChunks {
    chunk_bytes: usize,
    chunks_left: usize,
}

impl HeapChunks {
    const ALIGN_BYTES: usize = 4096;

    /// A source of `chunks_max` chunks of `chunk_bytes` each.
    pub fn new(chunk_bytes: usize, chunks_max: usize) -> HeapChunks {
        assert!(chunk_bytes >= CHUNK_BYTES_MIN, "chunks below the least size");
        HeapChunks { chunk_bytes, chunks_left: chunks_max }
    }

    fn layout(&self) -> Layout {
        Layout::from_size_align(self.chunk_bytes, Self::ALIGN_BYTES)
            .expect("a chunk's size and alignment make a layout")
    }
}

impl ChunkSource for HeapChunks {
    fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    fn chunks_ready(&self) -> usize {
        self.chunks_left
    }

    fn take(&mut self) -> Option<Chunk> {
        self.chunks_left = self.chunks_left.checked_sub(1)?;
        let layout = self.layout();
        // SAFETY: the layout has a size above zero.
        let base = unsafe { std::alloc::alloc(layout) };
        let Some(base) = NonNull::new(base) else { std::alloc::handle_alloc_error(layout) };
        // SAFETY: fresh from the allocator, `chunk_bytes` long, and given to nobody else.
        Some(unsafe { Chunk::new(base, self.chunk_bytes) })
    }

    fn give_back(&mut self, chunk: Chunk) {
        assert_eq!(chunk.bytes, self.chunk_bytes, "a chunk of another source");
        self.chunks_left += 1;
        // SAFETY: the chunk came from `take`, which allocated it with this layout.
        unsafe { std::alloc::dealloc(chunk.base.as_ptr(), self.layout()) };
    }
}

/// The arena has no room left, and its source has no chunk ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the memtable's memory is used up: writes come faster than freeze and release free memory; \
     start a merge or raise the memory budget"
)]
pub struct ArenaFull;

/// Bump allocation with free lists. Blocks live until they are freed or the arena is dropped.
pub struct Arena {
    source: Box<dyn ChunkSource>,
    chunks: Vec<Chunk>,
    bump: *mut u8,
    bump_bytes: usize,
    /// Heads of the free lists; a free block's first word points to the next.
    free: [*mut u8; CLASSES],
    bytes_used: usize,
    bytes_reserved: usize,
    bytes_withheld: usize,
}

// SAFETY: all pointers lead into chunks that the arena owns; nothing is tied to a thread.
unsafe impl Send for Arena {}

impl Arena {
    /// An empty arena. `room_bytes` leaves `bytes_withheld` out of account, so that work which
    /// cannot be refused (entering rows into the ordered index) still finds room when writes no
    /// longer do.
    pub fn new(source: Box<dyn ChunkSource>, bytes_withheld: usize) -> Arena {
        assert!(source.chunk_bytes() >= CHUNK_BYTES_MIN, "chunks below the least size");
        Arena {
            source,
            chunks: Vec::new(),
            bump: ptr::null_mut(),
            bump_bytes: 0,
            free: [ptr::null_mut(); CLASSES],
            bytes_used: 0,
            bytes_reserved: 0,
            bytes_withheld,
        }
    }

    /// Bytes in blocks that are handed out and not freed.
    pub fn bytes_used(&self) -> usize {
        self.bytes_used
    }

    /// Bytes in chunks that were taken from the source.
    pub fn bytes_reserved(&self) -> usize {
        self.bytes_reserved
    }

    /// Blocks whose [`block_bytes_max`] add up to this can be had without fail. Free lists and
    /// the tails of chunks are not counted, so this is a lower bound.
    pub fn room_bytes(&self) -> usize {
        let ready = self.source.chunks_ready() * (self.source.chunk_bytes() - BLOCK_BYTES_MAX);
        let current = self.bump_bytes.saturating_sub(BLOCK_BYTES_MAX);
        (ready + current).saturating_sub(self.bytes_withheld)
    }

    /// As [`Self::has_room`], with what is withheld taken into account: for work that was done
    /// once within the budget and must find room again.
    #[must_use]
    pub fn has_room_withheld(&self, bytes: usize) -> bool {
        let chunk = self.source.chunk_bytes() - BLOCK_BYTES_MAX;
        let current = self.bump_bytes.saturating_sub(BLOCK_BYTES_MAX);
        current >= bytes || self.source.chunks_ready() * chunk + current >= bytes
    }

    /// Whether blocks of `bytes` in all are certain to be had: asked before a transaction runs.
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        // Nearly always the current chunk answers, without asking the source.
        self.bump_bytes >= bytes + BLOCK_BYTES_MAX + self.bytes_withheld
            || self.room_bytes() >= bytes
    }

    /// A block of the class, its content undefined; aligned to 16 bytes, above 512 to 64.
    #[inline]
    pub(super) fn alloc(&mut self, class: SizeClass) -> Result<NonNull<u8>, ArenaFull> {
        let bytes = class.bytes();
        let head = self.free[class.0 as usize];
        let block = match NonNull::new(head) {
            Some(block) => {
                // SAFETY: a block on a free list belongs to the arena and starts with the
                // pointer to the next one, written by `free`.
                self.free[class.0 as usize] = unsafe { block.cast::<*mut u8>().read() };
                block
            }
            None => self.bump(bytes, class.align())?,
        };
        self.bytes_used += bytes;
        Ok(block)
    }

    /// Gives a block back for reuse by its class.
    ///
    /// # Safety
    /// The block came from `alloc` of this arena with this class, was not freed since, and
    /// nobody reads or writes it any more.
    #[inline]
    pub(super) unsafe fn free(&mut self, block: NonNull<u8>, class: SizeClass) {
        let bytes = class.bytes();
        assert!(self.bytes_used >= bytes, "more was freed than handed out");
        self.bytes_used -= bytes;
        // SAFETY: the block is the caller's to give, at least 16 bytes long, 16-byte aligned.
        unsafe { block.cast::<*mut u8>().write(self.free[class.0 as usize]) };
        self.free[class.0 as usize] = block.as_ptr();
    }

    #[inline]
    fn bump(&mut self, bytes: usize, align: usize) -> Result<NonNull<u8>, ArenaFull> {
        let pad = self.bump.addr().wrapping_neg() % align;
        if self.bump.is_null() || self.bump_bytes < bytes + pad {
            return self.bump_next_chunk(bytes);
        }
        // SAFETY: `bump` has `bump_bytes` bytes of the current chunk after it, which suffice.
        let block = unsafe { self.bump.add(pad) };
        // SAFETY: as above.
        self.bump = unsafe { block.add(bytes) };
        self.bump_bytes -= bytes + pad;
        Ok(NonNull::new(block).expect("a pointer into a chunk is not null"))
    }

    #[cold]
    fn bump_next_chunk(&mut self, bytes: usize) -> Result<NonNull<u8>, ArenaFull> {
        let chunk = self.source.take().ok_or(ArenaFull)?;
        assert!(chunk.bytes >= CHUNK_BYTES_MIN, "a chunk below the least size");
        let block = chunk.base;
        self.bump_bytes = chunk.bytes - bytes;
        // SAFETY: no block is larger than half a chunk.
        self.bump = unsafe { chunk.base.as_ptr().add(bytes) };
        self.bytes_reserved += chunk.bytes;
        self.chunks.push(chunk);
        Ok(block)
    }

    /// Gives back up to `chunks_max` chunks and says how many are left. For releasing a memtable
    /// in slices: after the first call the arena is dead, every block in it is gone.
    ///
    /// # Safety
    /// Nobody may hold a row, a version or an ordered reader of this arena any more.
    pub unsafe fn release(&mut self, chunks_max: usize) -> usize {
        self.bump = ptr::null_mut();
        self.bump_bytes = 0;
        self.free = [ptr::null_mut(); CLASSES];
        self.bytes_used = 0;
        for _ in 0..chunks_max {
            let Some(chunk) = self.chunks.pop() else { break };
            self.bytes_reserved -= chunk.bytes;
            self.source.give_back(chunk);
        }
        self.chunks.len()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        while let Some(chunk) = self.chunks.pop() {
            self.source.give_back(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arena(chunks: usize) -> Arena {
        Arena::new(Box::new(HeapChunks::new(CHUNK_BYTES_MIN, chunks)), 0)
    }

    #[test]
    fn a_class_holds_what_it_is_for_and_wastes_little() {
        // From the limit downwards, so that it is always among them.
        let sizes = (1..=BLOCK_BYTES_MAX).rev().step_by(if cfg!(miri) { 61 } else { 1 });
        for bytes in sizes {
            let class = SizeClass::of(bytes);
            assert!(class.bytes() >= bytes);
            assert!(class.bytes() - bytes < 16.max(bytes / 8), "{bytes} in {}", class.bytes());
            if class.0 > 0 {
                assert!(SizeClass(class.0 - 1).bytes() < bytes);
            }
            assert_eq!(class.bytes() % class.align(), 0);
        }
        assert_eq!(SizeClass::of(BLOCK_BYTES_MAX).0 as usize, CLASSES - 1);
    }

    #[test]
    fn full_is_an_error_and_room_says_so_before() {
        let mut arena = arena(2);
        let class = SizeClass::of(1000);
        let mut count = 0;
        while arena.has_room(block_bytes_max(1000)) {
            arena.alloc(class).unwrap();
            count += 1;
        }
        assert!(count > 200, "{count}");
        while arena.alloc(class).is_ok() {
            count += 1;
        }
        assert!(count <= 2 * CHUNK_BYTES_MIN / 1000);
        assert_eq!(arena.bytes_used(), count * class.bytes());
        assert_eq!(arena.bytes_reserved(), 2 * CHUNK_BYTES_MIN);
        // SAFETY: the blocks are forgotten.
        assert_eq!(unsafe { arena.release(1) }, 1);
        // SAFETY: as above.
        assert_eq!(unsafe { arena.release(9) }, 0);
        assert_eq!((arena.bytes_used(), arena.bytes_reserved()), (0, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 64 }))]
        /// What `room_bytes` promises holds whatever the sizes and their order are.
        #[test]
        fn room_is_a_promise(
            chunks in 1usize..4,
            withheld in prop_oneof![Just(0usize), Just(100_000)],
            sizes in prop::collection::vec(
                prop_oneof![1usize..600, 600usize..20_000, Just(BLOCK_BYTES_MAX)],
                1..if cfg!(miri) { 100 } else { 400 },
            ),
        ) {
            let source = Box::new(HeapChunks::new(2 * CHUNK_BYTES_MIN, chunks));
            let mut arena = Arena::new(source, withheld);
            let mut room = arena.room_bytes();
            prop_assert!(room + withheld >= chunks * CHUNK_BYTES_MIN);
            for (i, bytes) in sizes.into_iter().enumerate() {
                if room < block_bytes_max(bytes) {
                    continue;
                }
                room -= block_bytes_max(bytes);
                let block = arena.alloc(SizeClass::of(bytes));
                prop_assert!(block.is_ok(), "allocation {} of {} bytes", i, bytes);
                prop_assert!(arena.room_bytes() >= room);
                prop_assert!(arena.has_room(room));
            }
        }

        #[test]
        fn blocks_never_overlap(
            sizes in prop::collection::vec(
                (1usize..if cfg!(miri) { 700 } else { 5000 }, any::<bool>()),
                1..if cfg!(miri) { 60 } else { 300 },
            ),
        ) {
            let mut arena = arena(64);
            let mut live: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
            let mut used = 0;
            for (i, (bytes, free_one)) in sizes.into_iter().enumerate() {
                if free_one && !live.is_empty() {
                    let (block, bytes, fill) = live.swap_remove(i % live.len());
                    // SAFETY: live blocks are readable, and this one leaves the list.
                    unsafe {
                        let content = std::slice::from_raw_parts(block.as_ptr(), bytes);
                        prop_assert!(content.iter().all(|b| *b == fill));
                        arena.free(block, SizeClass::of(bytes));
                    }
                    used -= SizeClass::of(bytes).bytes();
                }
                let block = arena.alloc(SizeClass::of(bytes)).unwrap();
                used += SizeClass::of(bytes).bytes();
                prop_assert_eq!(block.addr().get() % SizeClass::of(bytes).align(), 0);
                // SAFETY: the block has at least `bytes` bytes.
                unsafe { block.as_ptr().write_bytes(i as u8, bytes) };
                live.push((block, bytes, i as u8));
                prop_assert_eq!(arena.bytes_used(), used);
            }
            for (block, bytes, fill) in live {
                // SAFETY: live blocks are readable.
                let content = unsafe { std::slice::from_raw_parts(block.as_ptr(), bytes) };
                prop_assert!(content.iter().all(|b| *b == fill));
            }
        }
    }
}
