//! Batch timestamps: strictly rising, moved by the monotonic clock, slewed towards wall time.

use spillway_net::ids::WallMicros;

/// Of the time that passes, one part in this many may be added or withheld to come nearer to wall
/// time. It never jumps: a step of the wall clock must not become a step of the visible time.
const SLEW_DIVISOR: u64 = 16;

/// The clock of batch timestamps.
#[derive(Clone, Debug)]
pub struct BatchClock {
    started: bool,
    /// Present value; nanoseconds, so that fractions of a microsecond add up.
    value_nanos: u64,
    /// Monotonic reading that belongs to it.
    at_nanos: u64,
    last: WallMicros,
}

impl BatchClock {
    /// A clock that continues after the last timestamp in the log.
    pub fn new(last: WallMicros) -> Self {
        Self { started: false, value_nanos: 0, at_nanos: 0, last }
    }

    /// The timestamp of the next batch: at least one microsecond after the one before.
    pub fn stamp(&mut self, now_nanos: u64, wall: WallMicros) -> WallMicros {
        let wall_nanos = wall.0.saturating_mul(1000);
        if self.started {
            let elapsed = now_nanos.saturating_sub(self.at_nanos);
            let straight = self.value_nanos.saturating_add(elapsed);
            let slew = elapsed / SLEW_DIVISOR;
            self.value_nanos =
                wall_nanos.clamp(straight.saturating_sub(slew), straight.saturating_add(slew));
        } else {
            // Nobody has seen a time of this boot yet, so it may begin at wall time.
            self.started = true;
            self.value_nanos = wall_nanos.max((self.last.0 + 1).saturating_mul(1000));
        }
        self.at_nanos = self.at_nanos.max(now_nanos);
        let stamp = (self.value_nanos / 1000).max(self.last.0 + 1);
        self.value_nanos = self.value_nanos.max(stamp.saturating_mul(1000));
        assert!(stamp > self.last.0, "batch timestamps rise strictly");
        self.last = WallMicros(stamp);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::bytes::COUNTER_LIMIT;

    #[test]
    fn begins_at_wall_time_or_after_the_log() {
        let mut ahead = BatchClock::new(WallMicros(100));
        assert_eq!(ahead.stamp(5, WallMicros(1_000)), WallMicros(1_000));
        let mut behind = BatchClock::new(WallMicros(5_000));
        assert_eq!(behind.stamp(5, WallMicros(1_000)), WallMicros(5_001));
    }

    /// A header may carry any time below the limit of counters.
    #[test]
    fn goes_on_behind_a_time_that_has_no_nanoseconds() {
        let last = COUNTER_LIMIT - 10;
        let mut clock = BatchClock::new(WallMicros(last));
        assert_eq!(clock.stamp(5, WallMicros(1_000)), WallMicros(last + 1));
        assert_eq!(clock.stamp(2_000_005, WallMicros(3_000)), WallMicros(last + 2));
    }

    #[test]
    fn rises_even_when_no_clock_moves() {
        let mut clock = BatchClock::new(WallMicros(0));
        let first = clock.stamp(7, WallMicros(50));
        for step in 1..1000 {
            assert_eq!(clock.stamp(7, WallMicros(50)).0, first.0 + step);
        }
    }

    #[test]
    fn a_step_of_the_wall_clock_is_slewed() {
        let mut clock = BatchClock::new(WallMicros(0));
        assert_eq!(clock.stamp(0, WallMicros(1_000_000)), WallMicros(1_000_000));
        // One millisecond later the wall clock says one hour more, then one hour less.
        let hour = 3_600_000_000;
        let up = clock.stamp(1_000_000, WallMicros(1_001_000 + hour));
        assert_eq!(up, WallMicros(1_001_062));
        let down = clock.stamp(2_000_000, WallMicros(0));
        assert_eq!(down, WallMicros(1_002_000));
    }

    #[test]
    fn comes_back_to_wall_time() {
        let mut clock = BatchClock::new(WallMicros(0));
        clock.stamp(0, WallMicros(1_000_000));
        let mut last = WallMicros(0);
        for milli in 1..=200 {
            last = clock.stamp(milli * 1_000_000, WallMicros(1_005_000 + milli * 1000));
        }
        assert_eq!(last, WallMicros(1_205_000));
    }
}
