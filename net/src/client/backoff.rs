//! How long to wait before connecting again: exponential, jittered, from a given seed.

/// The first wait, nanoseconds.
const WAIT_NANOS_MIN: u64 = 10_000_000;
/// The longest wait, nanoseconds.
const WAIT_NANOS_MAX: u64 = 5_000_000_000;

/// Waits between attempts. Draws from a generator of its own, so that the same seed gives the
/// same waits.
#[derive(Debug)]
pub struct Backoff {
    random: u64,
    attempts: u32,
}

impl Backoff {
    /// Starts at the shortest wait.
    pub fn new(seed: u64) -> Self {
        Self { random: seed, attempts: 0 }
    }

    /// Back to the shortest wait: something worked.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The next wait: between half and all of a bound that doubles up to the longest wait. The
    /// jitter keeps thousands of clients from coming back at one moment.
    pub fn next_nanos(&mut self) -> u64 {
        let bound = WAIT_NANOS_MIN
            .checked_shl(self.attempts.min(32))
            .map_or(WAIT_NANOS_MAX, |wait| wait.min(WAIT_NANOS_MAX));
        self.attempts = self.attempts.saturating_add(1);
        bound / 2 + self.draw() % (bound / 2 + 1)
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_within_their_bounds_and_repeat_by_seed() {
        let waits = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..100).map(|_| backoff.next_nanos()).collect::<Vec<_>>()
        };
        let first = waits(7);
        assert_eq!(first, waits(7));
        assert_ne!(first, waits(8));
        for (i, wait) in first.iter().enumerate() {
            let bound = (WAIT_NANOS_MIN << i.min(20)).min(WAIT_NANOS_MAX);
            assert!((bound / 2..=bound).contains(wait), "wait {i} is {wait}");
        }
    }

    #[test]
    fn reset_starts_over() {
        let mut backoff = Backoff::new(1);
        for _ in 0..20 {
            backoff.next_nanos();
        }
        backoff.reset();
        assert!(backoff.next_nanos() <= WAIT_NANOS_MIN);
    }
}
