//! How long to wait before connecting again: growing, jittered, from a given seed.

/// The first wait is below this, nanoseconds.
const WAIT_NANOS_MIN: u64 = 4_000_000;
/// The longest wait, nanoseconds.
const WAIT_NANOS_MAX: u64 = 100_000_000;

/// How fast waits grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eagerness {
    /// By a sixteenth: a wait is about a sixteenth of the time waited so far. For one connection
    /// that looks for a new leader.
    Scout,
    /// Twofold: for the many others, which are told what the scout finds.
    Patient,
}

/// Waits between attempts. Draws from a generator of its own, so that the same seed gives the
/// same waits.
#[derive(Debug)]
pub struct Backoff {
    random: u64,
    eagerness: Eagerness,
    bound: u64,
}

impl Backoff {
    /// Starts at the shortest wait.
    pub fn new(seed: u64, eagerness: Eagerness) -> Self {
        Self { random: seed, eagerness, bound: WAIT_NANOS_MIN }
    }

    /// Back to the shortest wait: something worked.
    pub fn reset(&mut self) {
        self.bound = WAIT_NANOS_MIN;
    }

    /// The next wait: between half and all of a bound that grows up to the longest wait. The
    /// jitter keeps thousands of clients from coming back at one moment.
    pub fn next_nanos(&mut self) -> u64 {
        let bound = self.bound;
        let growth = match self.eagerness {
            Eagerness::Scout => bound / 16,
            Eagerness::Patient => bound,
        };
        self.bound = (bound + growth).min(WAIT_NANOS_MAX);
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
        for eagerness in [Eagerness::Scout, Eagerness::Patient] {
            let waits = |seed| {
                let mut backoff = Backoff::new(seed, eagerness);
                (0..200).map(|_| backoff.next_nanos()).collect::<Vec<_>>()
            };
            let first = waits(7);
            assert_eq!(first, waits(7));
            assert_ne!(first, waits(8));
            assert!((WAIT_NANOS_MIN / 2..=WAIT_NANOS_MIN).contains(&first[0]));
            let all = WAIT_NANOS_MIN / 2..=WAIT_NANOS_MAX;
            assert!(first.iter().all(|wait| all.contains(wait)), "{first:?}");
            assert!(first[199] >= WAIT_NANOS_MAX / 2);
        }
    }

    #[test]
    fn a_scout_comes_back_within_a_small_share_of_the_time_it_waited() {
        let mut backoff = Backoff::new(3, Eagerness::Scout);
        let mut waited = 0;
        while waited < 500_000_000 {
            let wait = backoff.next_nanos();
            assert!(wait <= WAIT_NANOS_MIN + waited / 8, "{wait} after {waited}");
            waited += wait;
        }
    }

    #[test]
    fn reset_starts_over() {
        let mut backoff = Backoff::new(1, Eagerness::Patient);
        for _ in 0..20 {
            backoff.next_nanos();
        }
        backoff.reset();
        assert!(backoff.next_nanos() <= WAIT_NANOS_MIN);
    }
}
