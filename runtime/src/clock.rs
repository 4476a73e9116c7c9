//! Clocks. Time enters the deciding code as an argument; shells take it from here.

use std::time::Duration;

/// A reading of the monotonic clock, in nanoseconds since an arbitrary start.
///
/// Holding one proves nothing about wall time; two of one machine can be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MonotonicNanos(pub u64);

impl MonotonicNanos {
    /// The time from `earlier` to `self`, zero if `earlier` is later.
    #[must_use]
    pub fn saturating_since(self, earlier: MonotonicNanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The nanoseconds from `earlier` to `self`, zero if `earlier` is later.
    #[must_use]
    pub fn saturating_nanos_since(self, earlier: MonotonicNanos) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This time plus `nanos`, at most the end of time.
    #[must_use]
    pub fn add_nanos(self, nanos: u64) -> MonotonicNanos {
        MonotonicNanos(self.0.saturating_add(nanos))
    }

    /// This time plus `duration`, at most the end of time.
    #[must_use]
    pub fn add_duration(self, duration: Duration) -> MonotonicNanos {
        self.add_nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// The monotonic clock, read without a system call.
#[must_use]
pub fn monotonic_now() -> MonotonicNanos {
    MonotonicNanos(read(libc::CLOCK_MONOTONIC))
}

/// The wall clock in microseconds since 1970. It can jump; never order events by it.
#[must_use]
pub fn wall_now_micros() -> u64 {
    read(libc::CLOCK_REALTIME) / 1_000
}

/// CPU time used by the calling thread, in nanoseconds.
#[must_use]
pub fn thread_cpu_nanos() -> u64 {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time used by all threads of this process, in nanoseconds.
#[must_use]
pub fn process_cpu_nanos() -> u64 {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the write, and the clock ids above exist on every Linux.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert!(result == 0, "clock_gettime({clock}) failed, which Linux rules out for this clock");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_never_goes_back() {
        let mut last = monotonic_now();
        for _ in 0..1_000 {
            let now = monotonic_now();
            assert!(now >= last);
            last = now;
        }
    }

    #[test]
    fn differences_saturate() {
        let early = MonotonicNanos(5);
        let late = early.add_nanos(10);
        assert_eq!(late.saturating_nanos_since(early), 10);
        assert_eq!(early.saturating_since(late), Duration::ZERO);
        assert_eq!(early.add_duration(Duration::MAX), MonotonicNanos(u64::MAX));
    }

    #[test]
    fn wall_clock_is_in_this_century() {
        let micros = wall_now_micros();
        assert!((1_600_000_000_000_000..4_200_000_000_000_000).contains(&micros));
    }

    #[test]
    fn cpu_time_grows_with_work() {
        let thread_before = thread_cpu_nanos();
        let process_before = process_cpu_nanos();
        let mut sum = 0u64;
        while thread_cpu_nanos() == thread_before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(process_cpu_nanos() > process_before);
    }
}
