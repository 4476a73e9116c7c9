//! When the next frame is to leave. Pure: time comes in.

use crate::schedule::{Phases, Schedule};

/// Frames that arrive at given times, whatever becomes of the earlier ones.
///
/// Arrivals fall on a grid: what is due at the same point of it is sent together, as it would be
/// by a client that collects. A frame's latency counts from its point of the grid.
#[derive(Clone, Debug)]
pub struct OpenPacer {
    schedule: Schedule,
    batch: f64,
    grid_ns: u64,
    next_frame: u64,
    next_due_ns: Option<u64>,
}

impl OpenPacer {
    /// Frames of `batch` transactions by `schedule`.
    pub fn new(schedule: Schedule, batch: usize, grid_ns: u64) -> Self {
        assert!(batch > 0 && grid_ns > 0, "frames hold something and time moves");
        let mut pacer =
            Self { schedule, batch: batch as f64, grid_ns, next_frame: 0, next_due_ns: None };
        pacer.next_due_ns = pacer.due_ns(0);
        pacer
    }

    fn due_ns(&self, frame: u64) -> Option<u64> {
        let due = self.schedule.due_ns(frame as f64 * self.batch)?;
        Some(due.next_multiple_of(self.grid_ns))
    }

    /// When the next frame is due; none after the last.
    pub const fn next_due_ns(&self) -> Option<u64> {
        self.next_due_ns
    }

    /// Takes the next frame.
    pub fn take(&mut self) {
        self.next_frame += 1;
        self.next_due_ns = self.due_ns(self.next_frame);
    }

    /// Frames that are due and were not taken.
    pub fn backlog(&self, now_ns: u64) -> u64 {
        let due = (self.schedule.arrivals(now_ns) / self.batch).floor() as u64;
        due.saturating_sub(self.next_frame)
    }
}

/// How many frames a connection may have unanswered when answers set the pace: all of them while
/// the load holds, few at both ends, never none.
pub fn frames_allowed(
    phases: &Phases,
    now_ns: u64,
    connection: usize,
    connections: usize,
    in_flight: usize,
) -> usize {
    assert!(connection < connections, "the connection is one of them");
    let full = (connections * in_flight) as f64;
    let total = (phases.strength(now_ns) * full).ceil().clamp(1.0, full) as usize;
    total / connections + usize::from(connection < total % connections)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::SECOND_NS;

    #[test]
    fn frames_come_on_the_grid_and_are_counted() {
        let phases = Phases::from_seconds(0.0, 1.0, 0.0);
        let mut pacer = OpenPacer::new(Schedule::trapezoid(&phases, 50_000.0), 10, 100_000);
        let mut last = 0;
        for frame in 0..5000u64 {
            let due = pacer.next_due_ns().expect("5,000 frames in a second");
            assert!(due >= last && due.is_multiple_of(100_000));
            let exact = frame * SECOND_NS / 5000;
            assert!(due + 1 >= exact && due <= exact + 100_000, "frame {frame}: {due}, {exact}");
            last = due;
            assert_eq!(pacer.backlog(due + 300_000), ((due + 300_000) / 200_000).min(5000) - frame);
            pacer.take();
        }
        assert_eq!(pacer.next_due_ns(), None);
        assert_eq!(pacer.backlog(2 * SECOND_NS), 0);
    }

    #[test]
    fn strength_opens_and_closes_the_window() {
        let phases = Phases::from_seconds(1.0, 1.0, 1.0);
        let total = |now| (0..4).map(|at| frames_allowed(&phases, now, at, 4, 8)).sum::<usize>();
        assert_eq!(total(0), 1);
        assert_eq!(total(SECOND_NS / 2), 16);
        assert_eq!(total(SECOND_NS), 32);
        assert_eq!(total(2 * SECOND_NS + SECOND_NS / 4), 24);
        assert_eq!(total(10 * SECOND_NS), 1);
        for now in (0..3 * SECOND_NS).step_by(10_000_000) {
            assert!((1..=32).contains(&total(now)));
        }
    }
}
