//! Anonymous memory in pages: arenas and buffers are cut from it.

use std::ops::Range;
use std::ptr::NonNull;

use crate::error::{Errno, RuntimeError};

/// Bytes of a small page.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a huge page.
pub const HUGE_PAGE_BYTES: usize = 2 * 1024 * 1024;

/// What pages a [`Region`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Reserved huge pages (vm.nr_hugepages): guaranteed.
    Huge,
    /// The kernel was advised to use huge pages where it finds them.
    TransparentHuge,
    /// Small pages.
    Small,
}

/// Whether a [`Region`] should try for huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Small pages only.
    No,
    /// Reserved huge pages, else transparent ones, else small ones.
    Try,
}

/// Page-aligned zeroed anonymous memory, returned to the kernel on drop.
///
/// It is one owner's memory: `&Region` reads, `&mut Region` writes. Pages are taken when they are
/// first touched, by the policy of the touching thread, or by [`Region::populate`].
#[derive(Debug)]
pub struct Region {
    start: NonNull<u8>,
    bytes: usize,
    pages: PageKind,
}

// SAFETY: the region owns its memory exclusively, and nothing about a mapping is thread-bound.
unsafe impl Send for Region {}
// SAFETY: through a shared reference the region can only be read.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `bytes`, rounded up to whole pages of the kind it gets.
    ///
    /// # Errors
    /// [`RuntimeError::MemoryExhausted`] if the kernel refuses the mapping.
    ///
    /// # Panics
    /// If `bytes` is zero.
    pub fn new(bytes: usize, huge: HugePages) -> Result<Region, RuntimeError> {
        assert!(bytes > 0, "a region has at least one page");
        if huge == HugePages::No || cfg!(miri) {
            let bytes = bytes.next_multiple_of(PAGE_BYTES);
            let start = map(bytes, 0)?;
            return Ok(Region { start, bytes, pages: PageKind::Small });
        }
        let bytes = bytes.next_multiple_of(HUGE_PAGE_BYTES);
        if let Ok(start) = map(bytes, libc::MAP_HUGETLB) {
            return Ok(Region { start, bytes, pages: PageKind::Huge });
        }
        let start = map_aligned_to_huge(bytes)?;
        // SAFETY: the range is our own fresh mapping.
        let advised =
            unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) } == 0;
        let pages = if advised { PageKind::TransparentHuge } else { PageKind::Small };
        Ok(Region { start, bytes, pages })
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What pages it got.
    #[must_use]
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// The first byte. Valid for as long as the region lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// All bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is `bytes` long, initialised (zero), and shared reading is all that
        // `&self` allows.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// All bytes, to be written.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// Takes the pages of a range now, so that no later access faults. The content stays.
    ///
    /// # Errors
    /// Fails if there is no memory for them.
    ///
    /// # Panics
    /// If the range is not made of whole pages inside the region.
    pub fn populate(&mut self, range: Range<usize>) -> Result<(), RuntimeError> {
        self.advise(range, libc::MADV_POPULATE_WRITE, "populate memory")
    }

    /// Gives the pages of a range back to the kernel; their content becomes zero.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    ///
    /// # Panics
    /// If the range is not made of whole pages inside the region.
    pub fn release(&mut self, range: Range<usize>) -> Result<(), RuntimeError> {
        self.advise(range, libc::MADV_DONTNEED, "release memory")
    }

    fn advise(
        &mut self,
        range: Range<usize>,
        advice: i32,
        what: &'static str,
    ) -> Result<(), RuntimeError> {
        let page = if self.pages == PageKind::Huge { HUGE_PAGE_BYTES } else { PAGE_BYTES };
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} is outside");
        assert!(
            range.start.is_multiple_of(page) && range.end.is_multiple_of(page),
            "{range:?} is not made of whole pages of {page} bytes"
        );
        if range.is_empty() {
            return Ok(());
        }
        loop {
            // SAFETY: the range lies inside our mapping, and `&mut self` means nobody holds a
            // reference into it while DONTNEED zeroes it.
            let result = unsafe {
                let start = self.start.as_ptr().add(range.start);
                libc::madvise(start.cast(), range.len(), advice)
            };
            match (result, Errno::last()) {
                (0, _) => return Ok(()),
                (_, Errno(libc::EINTR | libc::EAGAIN)) => {}
                (_, errno) => {
                    let bytes = range.len() as u64;
                    return Err(RuntimeError::MemoryExhausted { what, bytes, errno });
                }
            }
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        unmap(self.start.as_ptr(), self.bytes);
    }
}

/// Miri has no mappings with these flags: pages come from the allocator there, as a slot ring's
/// memory is judged and not the kernel's calls.
#[cfg(miri)]
fn map(bytes: usize, _flags: i32) -> Result<NonNull<u8>, RuntimeError> {
    let layout = std::alloc::Layout::from_size_align(bytes, PAGE_BYTES).expect("whole pages");
    // SAFETY: the layout has a size above zero.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    Ok(NonNull::new(start).expect("miri never runs out of memory"))
}

#[cfg(not(miri))]
fn map(bytes: usize, flags: i32) -> Result<NonNull<u8>, RuntimeError> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // Reserved huge pages must be accounted for at once, or the first touch could be fatal.
    let flags = match flags & libc::MAP_HUGETLB {
        0 => flags,
        _ => flags & !libc::MAP_NORESERVE,
    };
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice replaces nothing.
    let start = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0)
    };
    if start == libc::MAP_FAILED {
        let errno = Errno::last();
        let bytes = bytes as u64;
        return Err(RuntimeError::MemoryExhausted { what: "a memory region", bytes, errno });
    }
    Ok(NonNull::new(start.cast()).expect("mmap never returns the zero page unasked"))
}

/// Maps more than asked and trims both ends: transparent huge pages need the alignment.
fn map_aligned_to_huge(bytes: usize) -> Result<NonNull<u8>, RuntimeError> {
    let mapped = bytes + HUGE_PAGE_BYTES;
    let start = map(mapped, 0)?;
    let before = start.as_ptr().align_offset(HUGE_PAGE_BYTES);
    assert!(before < HUGE_PAGE_BYTES, "the address can be aligned");
    // SAFETY: `before` is inside the mapping.
    let aligned = unsafe { start.add(before) };
    unmap(start.as_ptr(), before);
    // SAFETY: the end of the wanted part is inside the mapping, or its end.
    let after = unsafe { aligned.as_ptr().add(bytes) };
    unmap(after, HUGE_PAGE_BYTES - before);
    Ok(aligned)
}

#[cfg(miri)]
fn unmap(start: *mut u8, bytes: usize) {
    let layout = std::alloc::Layout::from_size_align(bytes, PAGE_BYTES).expect("whole pages");
    // SAFETY: `map` allocated it with this layout, and only whole regions are given back.
    unsafe { std::alloc::dealloc(start, layout) };
}

#[cfg(not(miri))]
fn unmap(start: *mut u8, bytes: usize) {
    if bytes == 0 {
        return;
    }
    // SAFETY: callers pass a part of a mapping that they own and no longer use.
    let result = unsafe { libc::munmap(start.cast(), bytes) };
    assert!(result == 0, "munmap of our own mapping failed: {}", Errno::last());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zeroed_aligned_and_rounded() {
        let mut region = Region::new(5_000, HugePages::No).expect("map");
        assert_eq!((region.bytes(), region.pages()), (8_192, PageKind::Small));
        assert!(region.as_slice().iter().all(|byte| *byte == 0));
        region.as_mut_slice()[8_191] = 7;
        assert_eq!(region.as_slice()[8_191], 7);
    }

    #[test]
    #[cfg_attr(miri, ignore = "asks the kernel for huge pages")]
    fn huge_is_aligned_whatever_it_got() {
        let region = Region::new(1, HugePages::Try).expect("map");
        assert_eq!(region.bytes(), HUGE_PAGE_BYTES);
        assert!((region.as_ptr() as usize).is_multiple_of(HUGE_PAGE_BYTES));
    }

    #[test]
    #[cfg_attr(miri, ignore = "madvise")]
    fn release_zeroes_only_its_range() {
        let mut region = Region::new(4 * PAGE_BYTES, HugePages::No).expect("map");
        region.populate(0..4 * PAGE_BYTES).expect("populate");
        region.as_mut_slice().fill(9);
        region.release(PAGE_BYTES..2 * PAGE_BYTES).expect("release");
        let bytes = region.as_slice();
        assert_eq!(bytes[PAGE_BYTES - 1], 9);
        assert!(bytes[PAGE_BYTES..2 * PAGE_BYTES].iter().all(|byte| *byte == 0));
        assert_eq!(bytes[2 * PAGE_BYTES], 9);
    }

    #[test]
    #[cfg_attr(miri, ignore = "asks the kernel for more than it has")]
    fn absurd_size_is_an_error() {
        let error = Region::new(1 << 50, HugePages::No).expect_err("a pebibyte");
        assert!(error.to_string().contains("free -m"), "{error}");
    }

    #[test]
    #[should_panic(expected = "whole pages")]
    fn part_of_a_page_is_refused() {
        let mut region = Region::new(PAGE_BYTES, HugePages::No).expect("map");
        region.release(0..100).expect("never reached");
    }
}
