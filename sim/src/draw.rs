//! The one source of chance, and the one record of what happened.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// SplitMix64: everything that a run draws follows from its seed, on every machine and release.
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// Starts from a seed. The stream tells runs of neighbouring seeds apart.
    pub fn new(seed: u64) -> Self {
        Self(xxh3_64_with_seed(&seed.to_le_bytes(), 0x5350_4c57))
    }

    /// A stream of its own of this seed: what others draw does not move it.
    pub fn stream(seed: u64, name: &str) -> Self {
        Self(xxh3_64_with_seed(name.as_bytes(), Self::new(seed).0))
    }

    /// Another source that begins here.
    pub fn fork(&mut self) -> Self {
        Self::new(self.bits())
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        assert!(limit > 0, "nothing lies below 0");
        self.bits() % limit
    }

    /// From `from`, included, to `to`, not included.
    pub fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }

    /// True once in `n`.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A time, mostly near `typical`, sometimes twenty times as long.
    pub fn nanos(&mut self, typical: u64) -> u64 {
        let long = if self.once_in(20) { 20 } else { 1 };
        self.range(typical / 4 + 1, typical * 2 + 2) * long
    }
}

/// A running hash over all events of a run. Two runs of one seed must end with the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace(pub u64);

impl Trace {
    /// Adds an event: its kind, its time, two numbers.
    pub fn note(&mut self, kind: &str, now: u64, a: u64, b: u64) {
        let mut bytes = [0u8; 24];
        bytes[..8].copy_from_slice(&now.to_le_bytes());
        bytes[8..16].copy_from_slice(&a.to_le_bytes());
        bytes[16..].copy_from_slice(&b.to_le_bytes());
        self.0 = xxh3_64_with_seed(kind.as_bytes(), self.0);
        self.0 = xxh3_64_with_seed(&bytes, self.0);
    }

    /// Adds bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }
}
