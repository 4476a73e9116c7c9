//! Loom's atomics, in the shape of `src/queue/sync.rs`. They reorder as the language allows.

use std::mem::MaybeUninit;

pub(super) use loom::sync::Arc;
pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

pub(super) fn wait_a_moment() {
    loom::thread::yield_now();
}

/// A place for one value; loom reports an access that no ordering protects.
#[derive(Debug)]
pub(super) struct Slot<T>(loom::cell::UnsafeCell<MaybeUninit<T>>);

impl<T> Slot<T> {
    pub(super) fn empty() -> Slot<T> {
        Slot(loom::cell::UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// Puts a value in.
    ///
    /// # Safety
    /// As the real slot.
    pub(super) unsafe fn put(&self, value: T) {
        // SAFETY: loom reports overlapping accesses before they happen.
        self.0.with_mut(|place| unsafe { (*place).write(value) });
    }

    /// Takes the value out.
    ///
    /// # Safety
    /// As the real slot.
    pub(super) unsafe fn take(&self) -> T {
        // SAFETY: as above; the caller says that the slot holds a value.
        self.0.with_mut(|place| unsafe { (*place).assume_init_read() })
    }
}

/// A value; in the model its cache line does not matter.
#[derive(Debug)]
pub(super) struct Padded<T>(pub(super) T);
