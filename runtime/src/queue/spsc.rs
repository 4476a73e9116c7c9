//! A bounded ring from one producer to one consumer. Each side keeps a copy of the other's index
//! and looks at the shared one only when the copy says "full" or "empty".

use super::sync::{Arc, AtomicU64, Ordering, Padded, Slot};

/// The ring was full; here is the item again.
#[derive(Debug, PartialEq, Eq)]
pub struct Full<T>(pub T);

#[derive(Debug)]
struct Ring<T> {
    /// Items published so far. Written by the producer.
    tail: Padded<AtomicU64>,
    /// Items taken so far. Written by the consumer.
    head: Padded<AtomicU64>,
    mask: u64,
    places: Box<[Slot<T>]>,
}

// SAFETY: a place belongs to the producer from `head + capacity` on and to the consumer below
// `tail`; items move between the threads, so they must be Send.
unsafe impl<T: Send> Send for Ring<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Ring<T> {}

/// The pushing end. There is one.
#[derive(Debug)]
pub struct Producer<T> {
    ring: Arc<Ring<T>>,
    /// Items staged so far, published or not.
    tail: u64,
    head_seen: u64,
}

/// The popping end. There is one.
#[derive(Debug)]
pub struct Consumer<T> {
    ring: Arc<Ring<T>>,
    head: u64,
    tail_seen: u64,
}

/// Creates a ring for `capacity` items.
///
/// # Panics
/// If `capacity` is not a power of two.
#[must_use]
pub fn ring<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(capacity.is_power_of_two(), "{capacity} is no ring size");
    let ring = Arc::new(Ring {
        tail: Padded(AtomicU64::new(0)),
        head: Padded(AtomicU64::new(0)),
        mask: capacity as u64 - 1,
        places: (0..capacity).map(|_| Slot::empty()).collect(),
    });
    let producer = Producer { ring: Arc::clone(&ring), tail: 0, head_seen: 0 };
    (producer, Consumer { ring, head: 0, tail_seen: 0 })
}

impl<T> Producer<T> {
    /// Appends an item and publishes it with all staged before.
    ///
    /// # Errors
    /// [`Full`] with the item.
    pub fn try_push(&mut self, item: T) -> Result<(), Full<T>> {
        self.stage(item)?;
        self.publish();
        Ok(())
    }

    /// Appends an item that the consumer sees only after [`Producer::publish`]: one publication
    /// for many items moves one cache line instead of many.
    ///
    /// # Errors
    /// [`Full`] with the item.
    pub fn stage(&mut self, item: T) -> Result<(), Full<T>> {
        let capacity = self.ring.mask + 1;
        if self.tail - self.head_seen == capacity {
            self.head_seen = self.ring.head.0.load(Ordering::Acquire);
            if self.tail - self.head_seen == capacity {
                return Err(Full(item));
            }
        }
        // SAFETY: the consumer has taken what was here a round ago, and sees nothing beyond the
        // published tail.
        unsafe { self.ring.places[(self.tail & self.ring.mask) as usize].put(item) };
        self.tail += 1;
        Ok(())
    }

    /// Shows the consumer all items staged.
    pub fn publish(&mut self) {
        self.ring.tail.0.store(self.tail, Ordering::Release);
    }

    /// Items that can be staged now.
    #[must_use]
    pub fn room(&mut self) -> usize {
        self.head_seen = self.ring.head.0.load(Ordering::Acquire);
        (self.ring.mask + 1 - (self.tail - self.head_seen)) as usize
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        self.publish();
    }
}

impl<T> Consumer<T> {
    /// Takes the oldest item.
    pub fn pop(&mut self) -> Option<T> {
        if self.head == self.tail_seen {
            self.tail_seen = self.ring.tail.0.load(Ordering::Acquire);
            if self.head == self.tail_seen {
                return None;
            }
        }
        // SAFETY: below the published tail the places are ours.
        let item = unsafe { self.ring.places[(self.head & self.ring.mask) as usize].take() };
        self.head += 1;
        self.ring.head.0.store(self.head, Ordering::Release);
        Some(item)
    }

    /// Whether [`Consumer::pop`] would find something: the recheck before parking.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ring.tail.0.load(Ordering::Acquire) != self.head
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let tail = self.tail.0.load(Ordering::Acquire);
        for number in self.head.0.load(Ordering::Acquire)..tail {
            // SAFETY: published, not taken, and the last owner is dropping the ring.
            drop(unsafe { self.places[(number & self.mask) as usize].take() });
        }
    }
}
