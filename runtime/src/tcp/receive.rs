//! The buffers that the kernel fills with what arrives: one ring of them for all connections of a
//! thread, so that an idle connection holds no memory.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use crate::error::{Errno, RuntimeError};
use crate::region::{HUGE_PAGE_BYTES, HugePages, Region};

/// The only buffer group of a ring.
pub(super) const GROUP: u16 = 0;

/// Bytes that arrived. Holding one proves that the kernel does not touch them; give it back with
/// [`crate::tcp::TcpRing::release`], or the ring runs out of buffers.
#[derive(Debug)]
#[must_use = "a received buffer that is not released is lost to its ring"]
pub struct ReceivedBuffer {
    pool: u32,
    buffer: u16,
    bytes: u32,
}

impl ReceivedBuffer {
    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes as usize
    }

    /// Never: the end of a connection is an event of its own.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

pub(super) struct ReceivePool {
    /// Tells the buffers of two rings apart.
    pool: u32,
    entries: Region,
    memory: Region,
    count: u16,
    bytes_each: u32,
    /// Next place to fill, published to the kernel by `publish`.
    tail: u16,
    /// Buffers that the kernel has.
    free: u16,
}

impl ReceivePool {
    pub(super) fn new(count: u16, bytes_each: u32) -> Result<ReceivePool, RuntimeError> {
        static POOLS: AtomicU32 = AtomicU32::new(0);
        assert!(count.is_power_of_two() && count <= 1 << 15, "{count} receive buffers");
        assert!(bytes_each > 0, "receive buffers have bytes");
        let bytes = usize::from(count) * bytes_each as usize;
        let huge = if bytes >= HUGE_PAGE_BYTES { HugePages::Try } else { HugePages::No };
        let entries_bytes = usize::from(count) * size_of::<BufRingEntry>();
        let mut pool = ReceivePool {
            pool: POOLS.fetch_add(1, Ordering::Relaxed),
            entries: Region::new(entries_bytes, HugePages::No)?,
            memory: Region::new(bytes, huge)?,
            count,
            bytes_each,
            tail: 0,
            free: 0,
        };
        for buffer in 0..count {
            pool.give(buffer);
        }
        pool.publish();
        Ok(pool)
    }

    /// Makes the pool known to the ring, which must be dropped before it.
    pub(super) fn register(&self, ring: &IoUring) -> Result<(), RuntimeError> {
        let address = self.entries.as_ptr() as u64;
        // SAFETY: the entries are initialised, page-aligned, and outlive the ring.
        let registered =
            unsafe { ring.submitter().register_buf_ring_with_flags(address, self.count, GROUP, 0) };
        registered.map_err(|error| {
            RuntimeError::ring_registration(Errno::of(&error), "receive buffers", 0)
        })
    }

    /// Buffers that the kernel has left.
    pub(super) fn free(&self) -> u16 {
        self.free
    }

    /// The kernel filled a buffer.
    pub(super) fn take(&mut self, buffer: u16, bytes: u32) -> ReceivedBuffer {
        assert!(buffer < self.count && bytes <= self.bytes_each, "buffer {buffer}: {bytes} bytes");
        assert!(self.free > 0, "the kernel filled a buffer it did not have");
        self.free -= 1;
        ReceivedBuffer { pool: self.pool, buffer, bytes }
    }

    pub(super) fn bytes(&self, received: &ReceivedBuffer) -> &[u8] {
        assert!(received.pool == self.pool, "the buffer belongs to another ring");
        let start = usize::from(received.buffer) * self.bytes_each as usize;
        // SAFETY: `take` checked the bounds; the kernel leaves a taken buffer alone until it is
        // given back, which consumes `received`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(start), received.len()) }
    }

    pub(super) fn release(&mut self, received: ReceivedBuffer) {
        assert!(received.pool == self.pool, "the buffer belongs to another ring");
        self.give(received.buffer);
    }

    fn give(&mut self, buffer: u16) {
        let start = usize::from(buffer) * self.bytes_each as usize;
        let place = usize::from(self.tail & (self.count - 1));
        // SAFETY: the place is inside the entries, and the kernel does not read it before the
        // tail is published. The tail itself lives in the unused part of the first entry, which
        // the setters leave alone.
        unsafe {
            let address = self.memory.as_ptr().add(start) as u64;
            let entry = &mut *self.entries.as_ptr().cast::<BufRingEntry>().add(place);
            entry.set_addr(address);
            entry.set_len(self.bytes_each);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        self.free += 1;
    }

    /// Shows the kernel what was given since the last time.
    pub(super) fn publish(&self) {
        // SAFETY: the first entry is initialised (the region is zeroed) and aligned; the tail is
        // shared with the kernel and therefore accessed as an atomic.
        let tail = unsafe {
            let base = self.entries.as_ptr().cast::<BufRingEntry>();
            AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut())
        };
        tail.store(self.tail, Ordering::Release);
    }
}
