//! How the offered rate moves over time: a piecewise linear curve, its integral and the inverse.
//!
//! Pure: time comes in as nanoseconds since the load began.

use crate::shape::Shape;

/// Nanoseconds of a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// Which part of a burst an instant belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The rate rises.
    Ramp,
    /// The rate stands at its peak; figures are taken here.
    Hold,
    /// The rate falls.
    Fall,
}

impl Phase {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ramp => "ramp",
            Self::Hold => "hold",
            Self::Fall => "fall",
        }
    }
}

/// Lengths of the three phases, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phases {
    /// Rise.
    pub ramp_ns: u64,
    /// Peak.
    pub hold_ns: u64,
    /// Fall.
    pub fall_ns: u64,
}

impl Phases {
    /// From seconds.
    pub fn from_seconds(ramp: f64, hold: f64, fall: f64) -> Self {
        let ns = |seconds: f64| (seconds * SECOND_NS as f64) as u64;
        Self { ramp_ns: ns(ramp), hold_ns: ns(hold), fall_ns: ns(fall) }
    }

    /// All three together.
    pub const fn total_ns(&self) -> u64 {
        self.ramp_ns + self.hold_ns + self.fall_ns
    }

    /// The phase of an instant.
    pub const fn at(&self, now_ns: u64) -> Phase {
        if now_ns < self.ramp_ns {
            Phase::Ramp
        } else if now_ns < self.ramp_ns + self.hold_ns {
            Phase::Hold
        } else {
            Phase::Fall
        }
    }

    /// The share of full strength at an instant: 0 to 1, linear in ramp and fall.
    pub fn strength(&self, now_ns: u64) -> f64 {
        match self.at(now_ns) {
            Phase::Ramp => now_ns as f64 / self.ramp_ns as f64,
            Phase::Hold => 1.0,
            Phase::Fall => {
                let left = self.total_ns().saturating_sub(now_ns);
                left as f64 / (self.fall_ns.max(1)) as f64
            }
        }
    }
}

/// One corner of the curve.
#[derive(Clone, Copy, Debug)]
struct Corner {
    at_s: f64,
    rate: f64,
    /// Arrivals up to here.
    before: f64,
}

/// The offered rate over time.
#[derive(Clone, Debug)]
pub struct Schedule {
    corners: Vec<Corner>,
}

impl Schedule {
    /// Up to `rate` per second, hold, and down again.
    pub fn trapezoid(phases: &Phases, rate: f64) -> Self {
        let at = |ns: u64| ns as f64 / SECOND_NS as f64;
        let hold_end = phases.ramp_ns + phases.hold_ns;
        Self::through(
            [
                (0.0, if phases.ramp_ns == 0 { rate } else { 0.0 }),
                (at(phases.ramp_ns), rate),
                (at(hold_end), rate),
                (at(phases.total_ns()), if phases.fall_ns == 0 { rate } else { 0.0 }),
            ]
            .into_iter(),
        )
    }

    /// The series' own curve: its peak becomes `rate`, its span all three phases together.
    pub fn shaped(phases: &Phases, rate: f64, shape: &Shape) -> Self {
        let span_s = phases.total_ns() as f64 / SECOND_NS as f64;
        Self::through(shape.points().map(|(time, value)| (time * span_s, value * rate)))
    }

    fn through(points: impl Iterator<Item = (f64, f64)>) -> Self {
        let mut corners: Vec<Corner> = Vec::new();
        for (at_s, rate) in points {
            assert!(rate >= 0.0 && rate.is_finite(), "a rate is a number and not below 0");
            let before = corners.last().map_or(0.0, |last| {
                assert!(at_s >= last.at_s, "time does not run backwards");
                last.before + (at_s - last.at_s) * (rate + last.rate) / 2.0
            });
            corners.push(Corner { at_s, rate, before });
        }
        assert!(corners.len() >= 2, "a curve has a beginning and an end");
        Self { corners }
    }

    /// Arrivals over the whole curve.
    pub fn total(&self) -> f64 {
        self.corners[self.corners.len() - 1].before
    }

    /// Arrivals up to an instant.
    pub fn arrivals(&self, now_ns: u64) -> f64 {
        let now_s = now_ns as f64 / SECOND_NS as f64;
        let after = self.corners.partition_point(|corner| corner.at_s <= now_s);
        let Some(from) = after.checked_sub(1).map(|at| self.corners[at]) else { return 0.0 };
        let Some(to) = self.corners.get(after) else { return self.total() };
        let x = now_s - from.at_s;
        let slope = (to.rate - from.rate) / (to.at_s - from.at_s);
        from.before + from.rate * x + slope * x * x / 2.0
    }

    /// When arrival number `number` (counted from 0) is due; none if the curve ends before.
    pub fn due_ns(&self, number: f64) -> Option<u64> {
        if number >= self.total() {
            return None;
        }
        let after = self.corners.partition_point(|corner| corner.before <= number);
        let (from, to) = (self.corners[after - 1], self.corners[after]);
        let missing = number - from.before;
        let slope = (to.rate - from.rate) / (to.at_s - from.at_s);
        // The root of rate * x + slope / 2 * x^2 = missing that lies in the segment, in the form
        // that survives a slope of 0.
        let root = (from.rate * from.rate + 2.0 * slope * missing).max(0.0).sqrt();
        let x = if missing == 0.0 { 0.0 } else { 2.0 * missing / (from.rate + root) };
        Some(((from.at_s + x) * SECOND_NS as f64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn phases() -> Phases {
        Phases::from_seconds(2.0, 5.0, 2.0)
    }

    #[test]
    fn a_trapezoid_has_the_area_of_one() {
        let schedule = Schedule::trapezoid(&phases(), 1000.0);
        assert!((schedule.total() - 7000.0).abs() < 1e-6);
        assert!((schedule.arrivals(2 * SECOND_NS) - 1000.0).abs() < 1e-6);
        assert!((schedule.arrivals(7 * SECOND_NS) - 6000.0).abs() < 1e-6);
        assert!((schedule.arrivals(SECOND_NS) - 250.0).abs() < 1e-6);
        assert!((schedule.arrivals(100 * SECOND_NS) - 7000.0).abs() < 1e-6);
    }

    #[test]
    fn due_times_rise_and_end() {
        let schedule = Schedule::trapezoid(&phases(), 1000.0);
        let mut last = 0;
        for number in 0..7000 {
            let due = schedule.due_ns(f64::from(number)).expect("within the curve");
            assert!(due >= last && due <= phases().total_ns());
            last = due;
        }
        assert_eq!(schedule.due_ns(7000.0), None);
        let hold = schedule.due_ns(1000.0).expect("within the curve");
        assert_eq!(hold, 2 * SECOND_NS);
    }

    #[test]
    fn no_ramp_and_no_fall_is_a_rectangle() {
        let schedule = Schedule::trapezoid(&Phases::from_seconds(0.0, 3.0, 0.0), 10.0);
        assert!((schedule.total() - 30.0).abs() < 1e-9);
        assert_eq!(schedule.due_ns(0.0), Some(0));
        assert_eq!(schedule.due_ns(10.0), Some(SECOND_NS));
    }

    #[test]
    fn phases_and_strength() {
        let phases = phases();
        assert_eq!(phases.at(0), Phase::Ramp);
        assert_eq!(phases.at(2 * SECOND_NS), Phase::Hold);
        assert_eq!(phases.at(7 * SECOND_NS), Phase::Fall);
        assert!((phases.strength(SECOND_NS) - 0.5).abs() < 1e-9);
        assert!((phases.strength(3 * SECOND_NS) - 1.0).abs() < 1e-9);
        assert!((phases.strength(8 * SECOND_NS) - 0.5).abs() < 1e-9);
        assert!(phases.strength(20 * SECOND_NS).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn due_is_the_inverse_of_arrivals(
            values in prop::collection::vec(0.0f64..100.0, 2..30), at in 0.0f64..1.0,
        ) {
            let mut values = values;
            values[0] += 1.0;
            let shape = Shape::from_values(&values).expect("has a peak");
            let schedule = Schedule::shaped(&phases(), 50_000.0, &shape);
            let number = (schedule.total() * at).floor();
            if let Some(due) = schedule.due_ns(number) {
                let back = schedule.arrivals(due);
                prop_assert!((back - number).abs() < 0.01, "{number} came back as {back}");
            }
        }

        #[test]
        fn a_shape_reaches_the_rate_and_no_more(
            values in prop::collection::vec(0.0f64..100.0, 3..30),
        ) {
            let mut values = values;
            values[1] = 200.0;
            let shape = Shape::from_values(&values).expect("has a peak");
            let highest = shape.points().map(|(_, value)| value).fold(0.0, f64::max);
            prop_assert!((highest - 1.0).abs() < 1e-9);
            let schedule = Schedule::shaped(&phases(), 1000.0, &shape);
            prop_assert!(schedule.total() <= 9.0 * 1000.0 + 1e-6);
        }
    }
}
