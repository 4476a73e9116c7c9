//! The model checker's atomics, in the shape of `src/queue/sync.rs`.

use std::cell::UnsafeCell;

pub(super) use shuttle::sync::Arc;
pub(super) use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The checker's atomics are sequentially consistent, so a fence adds only a place to switch.
pub(super) fn fence(_ordering: Ordering) {
    shuttle::thread::yield_now();
}

pub(super) fn wait_a_moment() {
    shuttle::thread::yield_now();
}

/// A place for one value that reports every misuse: two threads at once, filled twice, taken
/// empty. Each access can be interrupted in its middle.
#[derive(Debug)]
pub(super) struct Slot<T> {
    is_busy: AtomicBool,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: the checker runs one thread at a time, and `is_busy` reports overlapping accesses.
unsafe impl<T: Send> Send for Slot<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Slot<T> {}

impl<T> Slot<T> {
    pub(super) fn empty() -> Slot<T> {
        Slot { is_busy: AtomicBool::new(false), value: UnsafeCell::new(None) }
    }

    fn access<R>(&self, access: impl FnOnce(&mut Option<T>) -> R) -> R {
        assert!(!self.is_busy.swap(true, Ordering::SeqCst), "two threads in one slot");
        shuttle::thread::yield_now();
        // SAFETY: the swap above says that nobody else is here.
        let result = access(unsafe { &mut *self.value.get() });
        shuttle::thread::yield_now();
        self.is_busy.store(false, Ordering::SeqCst);
        result
    }

    /// Puts a value in.
    ///
    /// # Safety
    /// None needed here; the signature is that of the real slot.
    pub(super) unsafe fn put(&self, value: T) {
        let before = self.access(|place| place.replace(value));
        assert!(before.is_none(), "a slot was filled twice");
    }

    /// Takes the value out.
    ///
    /// # Safety
    /// None needed here; the signature is that of the real slot.
    pub(super) unsafe fn take(&self) -> T {
        self.access(Option::take).expect("a slot was taken empty")
    }
}

/// A value; in the model its cache line does not matter.
#[derive(Debug)]
pub(super) struct Padded<T>(pub(super) T);
