//! A bounded ring from many producers to one consumer, in the order of one atomic tail.
//!
//! A push reserves its place by moving the tail; the place is the item's [`Ticket`]. Because there
//! is one tail, tickets are a causal cut: whatever a producer pushed before another producer could
//! know of it has the lower ticket. The consumer takes items strictly in that order and stops at a
//! place that is reserved and not yet published.
//!
//! Each slot carries the ticket it is ready for: `t` (counted from zero) when empty and waiting
//! for push number `t`, `t + 1` when that push is published, `t + capacity` when taken.

use super::sync::{Arc, AtomicU64, Ordering, Padded, Slot};

/// Number of a push, starting at one and rising by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The ring was full; here is the item again. Nothing was reserved.
#[derive(Debug, PartialEq, Eq)]
pub struct Full<T>(pub T);

#[derive(Debug)]
struct Place<T> {
    sequence: AtomicU64,
    item: Slot<T>,
}

#[derive(Debug)]
struct Ring<T> {
    /// Pushes reserved so far.
    tail: Padded<AtomicU64>,
    mask: u64,
    places: Box<[Place<T>]>,
}

// SAFETY: an item is touched only by the thread that reserved its place, until `sequence` hands it
// to the consumer; it moves between threads, so it must be Send.
unsafe impl<T: Send> Send for Ring<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Ring<T> {}

impl<T> Ring<T> {
    fn place(&self, number: u64) -> &Place<T> {
        &self.places[(number & self.mask) as usize]
    }
}

/// A pushing end; cloned for each producer.
#[derive(Debug)]
pub struct Producer<T> {
    ring: Arc<Ring<T>>,
}

impl<T> Clone for Producer<T> {
    fn clone(&self) -> Producer<T> {
        Producer { ring: Arc::clone(&self.ring) }
    }
}

/// The popping end. There is one.
#[derive(Debug)]
pub struct Consumer<T> {
    ring: Arc<Ring<T>>,
    /// Items taken so far.
    head: u64,
}

/// Creates a ring for `capacity` items.
///
/// # Panics
/// If `capacity` is not a power of two, or one: with a single place, "taken" and "published" would
/// be the same sequence number.
#[must_use]
pub fn ring<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(capacity.is_power_of_two() && capacity >= 2, "{capacity} is no ring size");
    let place = |number| Place { sequence: AtomicU64::new(number), item: Slot::empty() };
    let ring = Arc::new(Ring {
        tail: Padded(AtomicU64::new(0)),
        mask: capacity as u64 - 1,
        places: (0..capacity as u64).map(place).collect(),
    });
    (Producer { ring: Arc::clone(&ring) }, Consumer { ring, head: 0 })
}

impl<T> Producer<T> {
    /// Appends an item and returns its ticket, or the item if the ring is full.
    ///
    /// # Errors
    /// [`Full`] with the item; nothing was reserved.
    pub fn try_push(&self, item: T) -> Result<Ticket, Full<T>> {
        let mut tail = self.ring.tail.0.load(Ordering::Relaxed);
        loop {
            let place = self.ring.place(tail);
            let sequence = place.sequence.load(Ordering::Acquire);
            if sequence == tail {
                let moved = self.ring.tail.0.compare_exchange_weak(
                    tail,
                    tail + 1,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                match moved {
                    Ok(_) => {
                        // SAFETY: the exchange made the place ours alone, and its sequence said
                        // that the consumer has emptied it.
                        unsafe { place.item.put(item) };
                        place.sequence.store(tail + 1, Ordering::Release);
                        return Ok(Ticket(tail + 1));
                    }
                    Err(newer) => tail = newer,
                }
                continue;
            }
            // The place is ahead of our view of the tail if others were faster, and behind it if
            // it still holds the item of one round ago.
            let newer = self.ring.tail.0.load(Ordering::Relaxed);
            if newer == tail && sequence < tail + 1 {
                return Err(Full(item));
            }
            tail = newer;
        }
    }

    /// Places in the ring.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ring.places.len()
    }
}

impl<T> Consumer<T> {
    /// Takes the next item in ticket order, if it is published.
    pub fn pop(&mut self) -> Option<(Ticket, T)> {
        let place = self.ring.place(self.head);
        if place.sequence.load(Ordering::Acquire) != self.head + 1 {
            return None;
        }
        // SAFETY: the sequence says that the item was published, and only we take items.
        let item = unsafe { place.item.take() };
        place.sequence.store(self.head + self.ring.mask + 1, Ordering::Release);
        self.head += 1;
        Some((Ticket(self.head), item))
    }

    /// Whether [`Consumer::pop`] would find something: the recheck before parking.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ring.place(self.head).sequence.load(Ordering::Acquire) == self.head + 1
    }

    /// Items reserved and not yet taken, published or not.
    #[must_use]
    pub fn len(&self) -> usize {
        (self.ring.tail.0.load(Ordering::Relaxed).saturating_sub(self.head)) as usize
    }

    /// Whether nothing is reserved.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // Items pushed after the consumer went: published places whose item nobody took. A place
        // is published when its sequence is one above a number that falls on it.
        for (index, place) in self.places.iter().enumerate() {
            let sequence = place.sequence.load(Ordering::Acquire);
            if sequence.wrapping_sub(1) & self.mask == index as u64 {
                // SAFETY: the last owner of the ring is dropping it.
                drop(unsafe { place.item.take() });
            }
        }
    }
}
