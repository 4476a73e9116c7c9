//! A set of counters that is nearly all of `0..n`: answers come almost in order, so a minute of
//! a million transactions a second is a handful of intervals.

/// Disjoint, not touching, ascending half-open intervals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntervalSet {
    intervals: Vec<(u64, u64)>,
}

impl IntervalSet {
    /// Adds `start..end`.
    pub fn insert(&mut self, start: u64, end: u64) {
        assert!(start <= end, "an interval does not end before it starts");
        if start == end {
            return;
        }
        if let Some(last) = self.intervals.last_mut()
            && last.0 <= start
            && start <= last.1
        {
            last.1 = last.1.max(end);
            return;
        }
        let first = self.intervals.partition_point(|interval| interval.1 < start);
        let after = self.intervals.partition_point(|interval| interval.0 <= end);
        if first == after {
            self.intervals.insert(first, (start, end));
            return;
        }
        let merged = (start.min(self.intervals[first].0), end.max(self.intervals[after - 1].1));
        self.intervals[first] = merged;
        self.intervals.drain(first + 1..after);
    }

    /// Whether `value` is in the set.
    pub fn contains(&self, value: u64) -> bool {
        let at = self.intervals.partition_point(|interval| interval.1 <= value);
        self.intervals.get(at).is_some_and(|interval| interval.0 <= value)
    }

    /// Members.
    pub fn len(&self) -> u64 {
        self.intervals.iter().map(|interval| interval.1 - interval.0).sum()
    }

    /// Whether it has no members.
    pub fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }

    /// The intervals, ascending.
    pub fn intervals(&self) -> &[(u64, u64)] {
        &self.intervals
    }
}

/// One bit per counter, for what arrives in no order at all.
#[derive(Clone, Debug, Default)]
pub struct Bitmap {
    words: Vec<u64>,
    members: u64,
}

impl Bitmap {
    /// An empty set with room for `0..length`.
    pub fn with_length(length: u64) -> Self {
        Self { words: vec![0; (length as usize).div_ceil(64)], members: 0 }
    }

    /// Adds `value`, which is within the length; tells whether it was new.
    pub fn insert(&mut self, value: u64) -> bool {
        let word = &mut self.words[value as usize / 64];
        let bit = 1 << (value % 64);
        let new = *word & bit == 0;
        *word |= bit;
        self.members += u64::from(new);
        new
    }

    /// Whether `value` is in the set.
    pub fn contains(&self, value: u64) -> bool {
        self.words.get(value as usize / 64).is_some_and(|word| word & (1 << (value % 64)) != 0)
    }

    /// Members.
    pub fn len(&self) -> u64 {
        self.members
    }

    /// Whether it has no members.
    pub fn is_empty(&self) -> bool {
        self.members == 0
    }

    /// How many members of `set` are missing here; `example` sees the first few.
    pub fn missing(&self, set: &IntervalSet, mut example: impl FnMut(u64)) -> u64 {
        let mut missing = 0;
        for &(start, end) in set.intervals() {
            let mut value = start;
            while value < end {
                let whole = value % 64 == 0 && end - value >= 64;
                if whole && self.words.get(value as usize / 64) == Some(&u64::MAX) {
                    value += 64;
                    continue;
                }
                if !self.contains(value) {
                    missing += 1;
                    if missing <= 8 {
                        example(value);
                    }
                }
                value += 1;
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_a_plain_set(
            ranges in prop::collection::vec((0u64..200, 0u64..30), 0..40),
        ) {
            let mut set = IntervalSet::default();
            let mut model = BTreeSet::new();
            for (start, length) in ranges {
                set.insert(start, start + length);
                model.extend(start..start + length);
                prop_assert_eq!(set.len(), model.len() as u64);
                for pair in set.intervals().windows(2) {
                    prop_assert!(pair[0].1 < pair[1].0, "intervals must not touch");
                }
            }
            for value in 0..240 {
                prop_assert_eq!(set.contains(value), model.contains(&value));
            }
        }

        #[test]
        fn missing_is_the_difference(
            acknowledged in prop::collection::vec((0u64..400, 0u64..130), 0..10),
            holes in prop::collection::btree_set(0u64..540, 0..20),
        ) {
            let mut set = IntervalSet::default();
            for (start, length) in acknowledged {
                set.insert(start, start + length);
            }
            let mut bitmap = Bitmap::with_length(540);
            for value in 0..540 {
                if !holes.contains(&value) {
                    prop_assert!(bitmap.insert(value));
                    prop_assert!(!bitmap.insert(value));
                }
            }
            let expected = holes.iter().filter(|hole| set.contains(**hole)).count() as u64;
            prop_assert_eq!(bitmap.missing(&set, |_| ()), expected);
        }
    }

    #[test]
    fn in_order_answers_are_one_interval() {
        let mut set = IntervalSet::default();
        for frame in 0..10_000u64 {
            set.insert(frame * 1000, (frame + 1) * 1000);
        }
        assert_eq!(set.intervals(), &[(0, 10_000_000)]);
    }

    #[test]
    fn counters_behind_the_bitmap_are_missing() {
        let mut set = IntervalSet::default();
        set.insert(100, 103);
        assert_eq!(Bitmap::with_length(0).missing(&set, |_| ()), 3);
    }
}
