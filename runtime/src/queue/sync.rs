//! The atomics of the machine. The model-checking test has a module of the same shape.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;

pub(crate) use std::sync::Arc;
pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Tells the CPU that this is a short wait for another core.
pub(super) fn wait_a_moment() {
    std::hint::spin_loop();
}

/// A place for one value, handed between threads by an atomic beside it.
#[derive(Debug)]
pub(super) struct Slot<T>(UnsafeCell<MaybeUninit<T>>);

impl<T> Slot<T> {
    pub(super) fn empty() -> Slot<T> {
        Slot(UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// Puts a value in.
    ///
    /// # Safety
    /// No other thread accesses the slot, and it is empty.
    pub(super) unsafe fn put(&self, value: T) {
        // SAFETY: the caller has the slot to itself.
        unsafe { (*self.0.get()).write(value) };
    }

    /// Takes the value out.
    ///
    /// # Safety
    /// No other thread accesses the slot, and it holds a value.
    pub(super) unsafe fn take(&self) -> T {
        // SAFETY: the caller has the slot to itself, and it was initialised.
        unsafe { (*self.0.get()).assume_init_read() }
    }
}

/// A value on cache lines of its own: two lines, because the prefetcher takes them in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Padded<T>(pub(super) T);
