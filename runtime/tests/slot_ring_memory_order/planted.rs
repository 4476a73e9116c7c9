//! The ring with a planted bug: a count of owners that orders nothing.

pub mod queue {
    pub mod sync {
        use std::fmt;
        use std::ops::Deref;
        use std::ptr::NonNull;

        use loom::sync::atomic::{AtomicUsize, Ordering};

        struct Counted<T> {
            owners: AtomicUsize,
            value: T,
        }

        /// As `std::sync::Arc`, but relaxed throughout. What it holds is never freed, so that
        /// nothing but the ring's own use of the count can be wrong.
        pub struct Arc<T>(NonNull<Counted<T>>);

        // SAFETY: the value is never freed; who may write it is what the model finds out.
        unsafe impl<T: Send + Sync> Send for Arc<T> {}
        // SAFETY: as above.
        unsafe impl<T: Send + Sync> Sync for Arc<T> {}

        impl<T> Arc<T> {
            pub fn new(value: T) -> Arc<T> {
                let counted = Box::new(Counted { owners: AtomicUsize::new(1), value });
                Arc(NonNull::from(Box::leak(counted)))
            }

            pub fn ptr_eq(one: &Arc<T>, other: &Arc<T>) -> bool {
                one.0 == other.0
            }

            pub fn get_mut(this: &mut Arc<T>) -> Option<&mut T> {
                if this.counted().owners.load(Ordering::Relaxed) != 1 {
                    return None;
                }
                // SAFETY: there is one owner.
                Some(unsafe { &mut this.0.as_mut().value })
            }

            fn counted(&self) -> &Counted<T> {
                // SAFETY: never freed.
                unsafe { self.0.as_ref() }
            }
        }

        impl<T> Clone for Arc<T> {
            fn clone(&self) -> Arc<T> {
                self.counted().owners.fetch_add(1, Ordering::Relaxed);
                Arc(self.0)
            }
        }

        impl<T> Drop for Arc<T> {
            fn drop(&mut self) {
                self.counted().owners.fetch_sub(1, Ordering::Relaxed);
            }
        }

        impl<T> Deref for Arc<T> {
            type Target = T;

            fn deref(&self) -> &T {
                &self.counted().value
            }
        }

        impl<T: fmt::Debug> fmt::Debug for Arc<T> {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.counted().value.fmt(formatter)
            }
        }
    }
}

#[path = "../../src/slot_ring.rs"]
#[expect(dead_code, reason = "the model uses a part of the file")]
pub mod slot_ring;
