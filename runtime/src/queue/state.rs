//! The newest state of one core, for all others: overwritten, not queued. A reader gets all words
//! of one publication, never a mixture.
//!
//! A sequence lock: the writer makes the sequence odd, writes the words, makes it even again; a
//! reader that saw the sequence change reads again. The words are atomics, so a reader that
//! overlaps reads nothing undefined, only something it throws away.

use super::sync::{Arc, AtomicU64, Ordering, fence, wait_a_moment};

#[derive(Debug)]
#[repr(align(128))]
struct Shared<const N: usize> {
    sequence: AtomicU64,
    words: [AtomicU64; N],
}

/// The publishing end. There is one.
#[derive(Debug)]
pub struct StateWriter<const N: usize> {
    shared: Arc<Shared<N>>,
}

/// A reading end, for any thread.
#[derive(Debug)]
pub struct StateCell<const N: usize> {
    shared: Arc<Shared<N>>,
}

impl<const N: usize> Clone for StateCell<N> {
    fn clone(&self) -> StateCell<N> {
        StateCell { shared: Arc::clone(&self.shared) }
    }
}

/// Creates a cell that holds `words`.
#[must_use]
pub fn cell<const N: usize>(words: [u64; N]) -> (StateWriter<N>, StateCell<N>) {
    let words = words.map(AtomicU64::new);
    let shared = Arc::new(Shared { sequence: AtomicU64::new(0), words });
    (StateWriter { shared: Arc::clone(&shared) }, StateCell { shared })
}

impl<const N: usize> StateWriter<N> {
    /// Replaces the state.
    pub fn publish(&mut self, words: [u64; N]) {
        let sequence = self.shared.sequence.load(Ordering::Relaxed);
        self.shared.sequence.store(sequence + 1, Ordering::Relaxed);
        // A reader that sees one of the words below sees the odd sequence too.
        fence(Ordering::Release);
        for (place, word) in self.shared.words.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        self.shared.sequence.store(sequence + 2, Ordering::Release);
    }

    /// Another reading end.
    #[must_use]
    pub fn reader(&self) -> StateCell<N> {
        StateCell { shared: Arc::clone(&self.shared) }
    }
}

impl<const N: usize> StateCell<N> {
    /// The newest state. Waits only while a publication is under way, a few nanoseconds.
    #[must_use]
    pub fn read(&self) -> [u64; N] {
        loop {
            if let Some(words) = self.try_read() {
                return words;
            }
            wait_a_moment();
        }
    }

    /// The newest state, unless a publication is under way.
    #[must_use]
    pub fn try_read(&self) -> Option<[u64; N]> {
        let before = self.shared.sequence.load(Ordering::Acquire);
        if !before.is_multiple_of(2) {
            return None;
        }
        let words = std::array::from_fn(|index| self.shared.words[index].load(Ordering::Relaxed));
        // The words above are read before the sequence below.
        fence(Ordering::Acquire);
        let after = self.shared.sequence.load(Ordering::Relaxed);
        (before == after).then_some(words)
    }
}
