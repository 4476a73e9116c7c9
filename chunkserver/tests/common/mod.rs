//! What the random tests share: a seeded generator that names its seed when a test fails.

#![allow(dead_code, reason = "each test binary uses a part")]

/// SplitMix64: everything that a test draws follows from its seed.
#[derive(Clone, Debug)]
pub struct Draw(pub u64);

impl Draw {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub fn range(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from)
    }

    /// True once in `n`.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Names the seed when a test fails, and the line that repeats it.
struct SeedReport {
    test: &'static str,
    seed: u64,
}

impl Drop for SeedReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let SeedReport { test, seed } = self;
            eprintln!(
                "failing seed {seed}; again: SPILLWAY_SEED={seed} cargo test -p \
                 spillway-chunkserver {test} -- --nocapture"
            );
        }
    }
}

/// Runs a test for `count` seeds, for as many as `SPILLWAY_SEEDS` says, or for the one that
/// `SPILLWAY_SEED` names.
pub fn for_seeds(test: &'static str, count: u64, mut run: impl FnMut(Draw)) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SPILLWAY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SPILLWAY_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        let _report = SeedReport { test, seed };
        run(Draw(seed.wrapping_mul(0xd134_2543_de82_ef95)));
    }
}
