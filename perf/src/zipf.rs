//! Which of n records a request goes to: Zipf's law over ranks, ranks scattered over records.

use rand::distr::Distribution;
use rand_distr::Zipf;

use crate::identity::{Draw, mix};

/// Chooses records by a Zipf law whose popular records lie anywhere among the rest.
#[derive(Clone, Debug)]
pub struct Popularity {
    ranks: Zipf<f64>,
    scatter: Scatter,
}

impl Popularity {
    /// `alpha` is the exponent: 0 chooses all records equally, 0.99 is YCSB's.
    pub fn new(records: u64, alpha: f64, seed: u64) -> Self {
        assert!(records > 0, "there is something to choose from");
        let ranks = Zipf::new(records as f64, alpha).expect("records and alpha were checked");
        Self { ranks, scatter: Scatter::new(records, seed) }
    }

    /// The record of the next request.
    pub fn choose(&self, draw: &mut Draw) -> u64 {
        let rank = self.ranks.sample(draw) as u64;
        self.scatter.apply(rank.clamp(1, self.scatter.length) - 1)
    }
}

/// A permutation of `0..length`.
#[derive(Clone, Copy, Debug)]
pub struct Scatter {
    length: u64,
    half_bits: u32,
    key: u64,
}

impl Scatter {
    /// The permutation that belongs to `seed`.
    pub fn new(length: u64, seed: u64) -> Self {
        assert!(length > 0 && length <= 1 << 62, "a permutation of something");
        let bits = 64 - (length - 1).leading_zeros();
        Self { length, half_bits: bits.div_ceil(2).max(1), key: mix(seed ^ 0x5CA7) }
    }

    /// Where `index` goes: a Feistel network over the next even power of two, walked until it
    /// falls inside the range (four steps at most on average).
    pub fn apply(&self, index: u64) -> u64 {
        assert!(index < self.length, "the index is in the range");
        let mask = (1 << self.half_bits) - 1;
        let mut value = index;
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for round in 0..4 {
                let folded = left ^ (mix(right ^ self.key ^ (round << 56)) & mask);
                (left, right) = (right, folded);
            }
            value = left << self.half_bits | right;
            if value < self.length {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scatter_is_a_permutation() {
        for length in [1u64, 2, 3, 10, 1000, 4096, 5000] {
            let scatter = Scatter::new(length, 9);
            let mut seen = vec![false; length as usize];
            for index in 0..length {
                let at = scatter.apply(index) as usize;
                assert!(!seen[at], "{index} of {length} met {at} again");
                seen[at] = true;
            }
        }
    }

    fn counts(alpha: f64, draws: u64) -> Vec<u64> {
        let popularity = Popularity::new(1000, alpha, 5);
        let mut draw = Draw::new(11, 0);
        let mut counts = vec![0; 1000];
        for _ in 0..draws {
            counts[popularity.choose(&mut draw) as usize] += 1;
        }
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts
    }

    #[test]
    fn frequencies_follow_the_law() {
        // H(1000, 0.99) = 7.729 by direct summation: the first rank gets 12.9 %.
        let harmonic: f64 = (1..=1000).map(|rank| f64::from(rank).powf(-0.99)).sum();
        let draws = 400_000;
        let counts = counts(0.99, draws);
        for rank in [1usize, 2, 3, 10] {
            let expected = (rank as f64).powf(-0.99) / harmonic * draws as f64;
            let found = counts[rank - 1] as f64;
            assert!((found / expected - 1.0).abs() < 0.06, "rank {rank}: {found}, {expected}");
        }
    }

    #[test]
    fn exponent_zero_is_even() {
        let counts = counts(0.0, 400_000);
        assert!(counts[0] < 520 && counts[999] > 290, "{} to {}", counts[0], counts[999]);
    }

    #[test]
    fn the_popular_are_scattered() {
        let popularity = Popularity::new(1 << 20, 0.99, 5);
        let first = popularity.scatter.apply(0);
        let second = popularity.scatter.apply(1);
        assert!(first.abs_diff(second) > 1);
    }
}
