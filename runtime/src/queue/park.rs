//! Whether the receiver of news sleeps: no wake-up is lost, and none is sent to who is awake.
//!
//! The consumer: `prepare_to_park`, look at every source **again**, then either `cancel` (there
//! was something) or sleep, and `cancel` after waking. The producer: publish, then ask
//! [`WakeFlag::needs_wake`], and if so wake the consumer by whatever it sleeps in.
//!
//! Why no wake-up is lost: each side writes first and reads then, with a full fence between. If
//! the producer read "awake", its fence came before the consumer's, so the consumer's recheck sees
//! what was published. Without the recheck this bad order exists: the consumer finds the queue
//! empty, the producer publishes and reads "awake", the consumer sleeps.

use super::sync::{AtomicBool, Ordering, fence};

/// One consumer's "I am asleep, or about to be".
#[derive(Debug)]
pub struct WakeFlag {
    is_parked: AtomicBool,
}

impl Default for WakeFlag {
    fn default() -> WakeFlag {
        WakeFlag::new()
    }
}

impl WakeFlag {
    /// The flag of a consumer that is awake.
    #[must_use]
    pub fn new() -> WakeFlag {
        WakeFlag { is_parked: AtomicBool::new(false) }
    }

    /// The consumer is about to sleep. It must look at its sources once more after this.
    pub fn prepare_to_park(&self) {
        self.is_parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The consumer is awake: it does not sleep after all, or has woken.
    pub fn cancel(&self) {
        self.is_parked.store(false, Ordering::Relaxed);
    }

    /// Whether the producer that has just published must wake the consumer. Of several producers
    /// one is told so.
    #[must_use]
    pub fn needs_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.is_parked.load(Ordering::Relaxed) && self.is_parked.swap(false, Ordering::Relaxed)
    }
}
