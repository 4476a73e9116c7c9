//! The clocks of a machine.
//!
//! Fault model: the wall clock of a machine is wrong by an offset of its own from the beginning,
//! and may jump by up to an hour in either direction at any moment. Both clocks of a machine may
//! run up to a tenth too fast or too slow; the monotonic one never goes back while the machine has
//! power, and begins anywhere when it gets it.

use spillway_net::ids::WallMicros;

/// Unix time at which all runs begin, microseconds.
const WALL_MICROS: u64 = 1_700_000_000_000_000;
/// Parts of a rate.
const MILLION: i128 = 1_000_000;
/// How far a rate may be off, in millionths.
pub const RATE_OFF_MAX: i64 = 100_000;

/// See the module. Virtual time goes in, what the machine believes comes out.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Virtual time since which the rate holds.
    since: u64,
    /// The monotonic clock then.
    monotonic: u64,
    /// The wall clock then, microseconds.
    wall_micros: u64,
    /// Millionths by which it runs too fast.
    rate_off: i64,
}

impl Clock {
    /// Right but for an offset.
    pub fn new(ahead_micros: u64) -> Self {
        Self { since: 0, monotonic: 0, wall_micros: WALL_MICROS + ahead_micros, rate_off: 0 }
    }

    fn passed(&self, at: u64) -> u64 {
        assert!(at >= self.since, "virtual time does not go back");
        let rate = MILLION + i128::from(self.rate_off);
        (i128::from(at - self.since) * rate / MILLION) as u64
    }

    /// What the monotonic clock shows at a virtual time.
    pub fn monotonic(&self, at: u64) -> u64 {
        self.monotonic + self.passed(at)
    }

    /// What the wall clock shows at a virtual time.
    pub fn wall(&self, at: u64) -> WallMicros {
        WallMicros(self.wall_micros + self.passed(at) / 1000)
    }

    /// The first virtual time at which the monotonic clock shows this, or later.
    pub fn virtual_at(&self, monotonic: u64) -> u64 {
        let wait = i128::from(monotonic.saturating_sub(self.monotonic));
        let rate = MILLION + i128::from(self.rate_off);
        self.since + ((wait * MILLION + rate - 1) / rate) as u64
    }

    fn rebase(&mut self, at: u64) {
        (self.monotonic, self.wall_micros) = (self.monotonic(at), self.wall(at).0);
        self.since = at;
    }

    /// From now on both clocks run at another rate.
    pub fn rate_set(&mut self, at: u64, rate_off: i64) {
        assert!(rate_off.abs() <= RATE_OFF_MAX, "clocks are not that wrong");
        self.rebase(at);
        self.rate_off = rate_off;
    }

    /// The wall clock jumps.
    pub fn jump(&mut self, at: u64, micros: i64) {
        self.rebase(at);
        self.wall_micros = self.wall_micros.saturating_add_signed(micros);
    }

    /// The machine has power again: its monotonic clock begins anew.
    pub fn begin(&mut self, at: u64, monotonic: u64) {
        self.rebase(at);
        self.monotonic = monotonic;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_met_at_every_rate() {
        let mut clock = Clock::new(7);
        for (at, rate_off) in [(1000, 100_000), (2_000_003, -100_000), (9_000_000_001, 12_345)] {
            let before = (clock.monotonic(at), clock.wall(at));
            clock.rate_set(at, rate_off);
            assert_eq!((clock.monotonic(at), clock.wall(at)), before);
            for wait in [0, 1, 3, 999, 1_000_001] {
                let deadline = clock.monotonic(at) + wait;
                let met = clock.virtual_at(deadline);
                assert!(clock.monotonic(met) >= deadline);
                assert!(met == at || clock.monotonic(met - 1) < deadline);
            }
        }
    }

    #[test]
    fn a_jump_moves_the_wall_clock_alone() {
        let mut clock = Clock::new(0);
        let (monotonic, wall) = (clock.monotonic(50_000), clock.wall(50_000));
        clock.jump(50_000, -3_600_000_000);
        assert_eq!(clock.monotonic(50_000), monotonic);
        assert_eq!(clock.wall(50_000).0, wall.0 - 3_600_000_000);
        clock.begin(60_000, 5);
        assert_eq!(clock.monotonic(60_000), 5);
    }
}
