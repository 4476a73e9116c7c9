//! Counters and latency histograms. Recording allocates nothing and takes no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The writing end of a counter. There is one per counter, so an addition is a plain load and
/// store, not a locked instruction.
#[derive(Debug, Default)]
pub struct Counter {
    value: Arc<AtomicU64>,
}

/// The reading end of a counter, for any thread.
#[derive(Clone, Debug)]
pub struct CounterReader {
    value: Arc<AtomicU64>,
}

impl Counter {
    /// A counter at zero.
    #[must_use]
    pub fn new() -> Counter {
        Counter::default()
    }

    /// Adds `amount`, wrapping.
    pub fn add(&mut self, amount: u64) {
        let value = self.value.load(Ordering::Relaxed);
        self.value.store(value.wrapping_add(amount), Ordering::Relaxed);
    }

    /// Adds one.
    pub fn increment(&mut self) {
        self.add(1);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    /// A reading end.
    #[must_use]
    pub fn reader(&self) -> CounterReader {
        CounterReader { value: Arc::clone(&self.value) }
    }
}

impl CounterReader {
    /// The value, as of some moment not long ago.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// Digits that a [`Histogram`] keeps of each value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Within 1 %, 38 KiB.
    TwoDigits,
    /// Within 0.1 %, 450 KiB.
    ThreeDigits,
}

/// Longest time a [`Histogram`] tells from longer ones: 100 s.
pub const HISTOGRAM_NANOS_MAX: u64 = 100_000_000_000;

/// A histogram of durations from 1 ns to 100 s; what lies outside counts as the nearest bound.
/// All its memory is taken at the start. It lives on one core; others get a clone or a merge.
#[derive(Clone, Debug)]
pub struct Histogram {
    inner: hdrhistogram::Histogram<u64>,
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub fn new(precision: Precision) -> Histogram {
        let digits = match precision {
            Precision::TwoDigits => 2,
            Precision::ThreeDigits => 3,
        };
        let inner = hdrhistogram::Histogram::new_with_bounds(1, HISTOGRAM_NANOS_MAX, digits);
        Histogram { inner: inner.expect("the bounds are constants that the crate accepts") }
    }

    /// Adds one duration.
    pub fn record(&mut self, nanos: u64) {
        self.inner.saturating_record(nanos.clamp(1, HISTOGRAM_NANOS_MAX));
    }

    /// Adds the same duration `times` times.
    pub fn record_times(&mut self, nanos: u64, times: u64) {
        self.inner.saturating_record_n(nanos.clamp(1, HISTOGRAM_NANOS_MAX), times);
    }

    /// The duration that `percent` of all are not above, zero if the histogram is empty.
    ///
    /// # Panics
    /// If `percent` is not from 0 to 100.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> u64 {
        assert!((0.0..=100.0).contains(&percent), "{percent} is no percentage");
        self.inner.value_at_percentile(percent)
    }

    /// Adds all of `other`, which has the same precision.
    ///
    /// # Panics
    /// If the precisions differ.
    pub fn merge(&mut self, other: &Histogram) {
        assert!(self.inner.sigfig() == other.inner.sigfig(), "precisions differ");
        self.inner.add(&other.inner).expect("equal bounds always add up");
    }

    /// Empties it, keeping the memory.
    pub fn reset(&mut self) {
        self.inner.reset();
    }

    /// Durations recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.inner.len()
    }

    /// Shortest duration, zero if empty.
    #[must_use]
    pub fn min(&self) -> u64 {
        if self.inner.is_empty() { 0 } else { self.inner.min() }
    }

    /// Longest duration, zero if empty.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.inner.max()
    }

    /// Mean duration, zero if empty.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.inner.mean()
    }

    /// The durations recorded, ascending, each with how often.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.inner.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_is_read_elsewhere() {
        let mut counter = Counter::new();
        let reader = counter.reader();
        counter.add(41);
        counter.increment();
        let seen = crate::thread::spawn("reader", None, move || reader.get()).expect("spawn");
        assert_eq!(seen.join().expect("join"), 42);
        assert_eq!(counter.get(), 42);
    }

    #[test]
    fn percentiles_are_within_the_precision() {
        for (precision, tolerance) in [(Precision::TwoDigits, 100), (Precision::ThreeDigits, 1000)]
        {
            let mut histogram = Histogram::new(precision);
            for nanos in 1..=100_000u64 {
                histogram.record(nanos);
            }
            for percent in [50u64, 90, 99] {
                let expected = percent * 1_000;
                let got = histogram.percentile(percent as f64);
                assert!(got.abs_diff(expected) <= expected / tolerance + 1, "{percent}: {got}");
            }
            assert_eq!(histogram.count(), 100_000);
        }
    }

    #[test]
    fn extremes_are_kept_at_the_bounds() {
        let mut histogram = Histogram::new(Precision::TwoDigits);
        histogram.record(0);
        histogram.record(u64::MAX);
        assert_eq!(histogram.count(), 2);
        assert_eq!(histogram.min(), 1);
        assert!(histogram.max() >= HISTOGRAM_NANOS_MAX);
    }

    #[test]
    fn merge_adds_and_reset_empties() {
        let mut one = Histogram::new(Precision::ThreeDigits);
        let mut two = Histogram::new(Precision::ThreeDigits);
        one.record(10);
        two.record_times(1_000, 3);
        one.merge(&two);
        assert_eq!(one.buckets().collect::<Vec<_>>(), vec![(10, 1), (1_000, 3)]);
        one.reset();
        assert_eq!((one.count(), one.max(), one.percentile(50.0)), (0, 0, 0));
    }
}
