//! Buffers aligned for O_DIRECT.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::error::RuntimeError;
use crate::region::{HugePages, PageKind, Region};

/// Alignment of every buffer: that of the largest logical block in use.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// Number of a buffer in its [`BufferPool`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferIndex(pub u16);

/// Equal aligned buffers cut from one region, by index. Who may use which is the owner's affair.
#[derive(Debug)]
pub struct BufferPool {
    region: Region,
    count: u16,
    bytes_each: usize,
}

impl BufferPool {
    /// Maps `count` zeroed buffers of `bytes_each`, a multiple of [`BUFFER_ALIGNMENT`].
    ///
    /// # Errors
    /// Fails if the kernel refuses the memory.
    ///
    /// # Panics
    /// If `count` is zero or `bytes_each` is zero or not a multiple.
    pub fn new(count: u16, bytes_each: usize) -> Result<BufferPool, RuntimeError> {
        assert!(count > 0 && bytes_each > 0, "a pool has buffers, and they have bytes");
        assert!(bytes_each.is_multiple_of(BUFFER_ALIGNMENT), "{bytes_each} is not aligned");
        let bytes = bytes_each * usize::from(count);
        let large = bytes >= crate::region::HUGE_PAGE_BYTES;
        let huge = if large { HugePages::Try } else { HugePages::No };
        Ok(BufferPool { region: Region::new(bytes, huge)?, count, bytes_each })
    }

    /// Number of buffers.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Bytes of each buffer.
    #[must_use]
    pub fn bytes_each(&self) -> usize {
        self.bytes_each
    }

    /// What pages the pool got.
    #[must_use]
    pub fn pages(&self) -> PageKind {
        self.region.pages()
    }

    /// The bytes of buffer `index`.
    #[must_use]
    pub fn get(&self, index: BufferIndex) -> &[u8] {
        let start = self.start_of(index);
        &self.region.as_slice()[start..start + self.bytes_each]
    }

    /// The bytes of buffer `index`, to be written.
    #[must_use]
    pub fn get_mut(&mut self, index: BufferIndex) -> &mut [u8] {
        let start = self.start_of(index);
        let end = start + self.bytes_each;
        &mut self.region.as_mut_slice()[start..end]
    }

    /// The first byte of buffer `index`, valid for as long as the pool lives.
    #[must_use]
    pub fn as_ptr(&self, index: BufferIndex) -> *mut u8 {
        // SAFETY: `start_of` asserts that the buffer is inside the region.
        unsafe { self.region.as_ptr().add(self.start_of(index)) }
    }

    fn start_of(&self, index: BufferIndex) -> usize {
        assert!(index.0 < self.count, "buffer {} of {}", index.0, self.count);
        usize::from(index.0) * self.bytes_each
    }
}

/// One zeroed heap buffer aligned for O_DIRECT.
#[derive(Debug)]
pub struct AlignedBuffer {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns its memory as a Vec does.
unsafe impl Send for AlignedBuffer {}
// SAFETY: through a shared reference it can only be read.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// Allocates `bytes`, rounded up to a multiple of [`BUFFER_ALIGNMENT`].
    ///
    /// # Panics
    /// If `bytes` is zero.
    #[must_use]
    pub fn new(bytes: usize) -> AlignedBuffer {
        assert!(bytes > 0, "a buffer has bytes");
        let bytes = bytes.next_multiple_of(BUFFER_ALIGNMENT);
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(Self::layout(bytes)) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(Self::layout(bytes)) };
        AlignedBuffer { start, bytes }
    }

    /// The first byte, for those who hand out parts of the buffer and see to it that nobody else
    /// refers to the buffer meanwhile.
    pub(crate) fn start_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, BUFFER_ALIGNMENT).expect("a size that memory can have")
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the allocation is `bytes` long and initialised.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_buffers_are_aligned_and_apart() {
        let mut pool = BufferPool::new(3, 8192).expect("map");
        for number in 0..3 {
            pool.get_mut(BufferIndex(number)).fill(number as u8 + 1);
        }
        for number in 0..3 {
            let index = BufferIndex(number);
            assert!((pool.as_ptr(index) as usize).is_multiple_of(BUFFER_ALIGNMENT));
            assert_eq!(pool.get(index), vec![number as u8 + 1; 8192]);
        }
        assert_eq!((pool.count(), pool.bytes_each()), (3, 8192));
    }

    #[test]
    #[should_panic(expected = "buffer 3 of 3")]
    fn index_beyond_the_pool() {
        let pool = BufferPool::new(3, 4096).expect("map");
        assert_eq!(pool.get(BufferIndex(3)).len(), 0);
    }

    #[test]
    fn owned_buffer_is_aligned_and_rounded() {
        let mut buffer = AlignedBuffer::new(1);
        assert_eq!(buffer.len(), 4096);
        assert!((buffer.as_ptr() as usize).is_multiple_of(BUFFER_ALIGNMENT));
        buffer[4095] = 1;
        assert_eq!(buffer.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 1);
    }
}
