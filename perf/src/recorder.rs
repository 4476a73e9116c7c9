//! Counts and times of a load.

use spillway_runtime::metrics::{Histogram, Precision};

use crate::disturbance::WindowLatency;
use crate::schedule::{Phase, Phases};

/// Latencies, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Longest.
    pub max: f64,
}

impl Latency {
    /// Reads a histogram of nanoseconds.
    pub fn of(histogram: &Histogram) -> Self {
        let us = |nanos: u64| (nanos as f64 / 100.0).round() / 10.0;
        Self {
            p50: us(histogram.percentile(50.0)),
            p99: us(histogram.percentile(99.0)),
            p999: us(histogram.percentile(99.9)),
            max: us(histogram.max()),
        }
    }
}

/// Transactions counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// That were due, if a rate was given; else those sent.
    pub offered: u64,
    /// That left the generator.
    pub sent: u64,
    /// Answered as committed.
    pub committed: u64,
    /// Answered as anything else.
    pub refused: u64,
}

impl Counts {
    /// What came since `earlier`.
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            offered: self.offered - earlier.offered,
            sent: self.sent - earlier.sent,
            committed: self.committed - earlier.committed,
            refused: self.refused - earlier.refused,
        }
    }
}

/// Latency of one stretch of a load, by the time of the answer.
#[derive(Debug)]
struct Window {
    name: String,
    begin_ns: u64,
    end_ns: u64,
    latency: Histogram,
}

/// What a load was, so far.
#[derive(Debug)]
pub struct Recorder {
    phases: Phases,
    /// Everything so far.
    pub total: Counts,
    /// What fell into the hold phase, by the time of the event.
    pub hold: Counts,
    /// From intended sending to the answer, of frames intended within the hold phase.
    pub latency_hold: Histogram,
    /// The same since [`Recorder::second_end`], of all frames.
    pub latency_second: Histogram,
    /// From intended to actual sending, of frames that did not wait for room in flight.
    pub lateness: Histogram,
    /// The same of frames that did: the node, not the generator, let them wait.
    pub lateness_blocked: Histogram,
    /// Stretches that are looked at by themselves.
    windows: Vec<Window>,
}

impl Recorder {
    /// Nothing so far.
    pub fn new(phases: Phases) -> Self {
        Self {
            phases,
            total: Counts::default(),
            hold: Counts::default(),
            latency_hold: Histogram::new(Precision::ThreeDigits),
            latency_second: Histogram::new(Precision::TwoDigits),
            lateness: Histogram::new(Precision::TwoDigits),
            lateness_blocked: Histogram::new(Precision::TwoDigits),
            windows: Vec::new(),
        }
    }

    /// Looks at these stretches by themselves: name, begin and end.
    pub fn watch(&mut self, windows: Vec<(String, u64, u64)>) {
        let window = |(name, begin_ns, end_ns)| {
            assert!(begin_ns < end_ns, "a window has a length");
            Window { name, begin_ns, end_ns, latency: Histogram::new(Precision::TwoDigits) }
        };
        self.windows = windows.into_iter().map(window).collect();
    }

    /// What the stretches were like.
    pub fn windows(&self) -> Vec<WindowLatency> {
        let read = |window: &Window| WindowLatency {
            name: window.name.clone(),
            begin_ns: window.begin_ns,
            end_ns: window.end_ns,
            committed: window.latency.count(),
            latency: Latency::of(&window.latency),
        };
        self.windows.iter().map(read).collect()
    }

    /// A frame left.
    pub fn sent(&mut self, now_ns: u64, intended_ns: u64, transactions: u64, was_blocked: bool) {
        self.total.sent += transactions;
        if self.phases.at(now_ns) == Phase::Hold {
            self.hold.sent += transactions;
            let late = now_ns.saturating_sub(intended_ns);
            let histogram =
                if was_blocked { &mut self.lateness_blocked } else { &mut self.lateness };
            histogram.record(late);
        }
    }

    /// A frame was answered.
    pub fn answered(&mut self, now_ns: u64, intended_ns: u64, committed: u64, refused: u64) {
        self.total.committed += committed;
        self.total.refused += refused;
        if self.phases.at(now_ns) == Phase::Hold {
            self.hold.committed += committed;
            self.hold.refused += refused;
        }
        let latency = now_ns.saturating_sub(intended_ns);
        if committed > 0 {
            if self.phases.at(intended_ns) == Phase::Hold {
                self.latency_hold.record_times(latency, committed);
            }
            self.latency_second.record_times(latency, committed);
            for window in &mut self.windows {
                if (window.begin_ns..window.end_ns).contains(&now_ns) {
                    window.latency.record_times(latency, committed);
                }
            }
        }
    }

    /// Starts another second.
    pub fn second_end(&mut self) {
        self.latency_second.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::SECOND_NS;

    #[test]
    fn figures_are_taken_in_the_hold_phase() {
        let phases = Phases::from_seconds(1.0, 1.0, 1.0);
        let mut recorder = Recorder::new(phases);
        recorder.sent(SECOND_NS / 2, SECOND_NS / 2, 10, false);
        recorder.answered(SECOND_NS + 5, SECOND_NS / 2, 10, 0);
        recorder.sent(SECOND_NS + 7_000, SECOND_NS + 6_000, 10, false);
        recorder.answered(SECOND_NS + 26_000, SECOND_NS + 6_000, 9, 1);
        assert_eq!(recorder.total, Counts { offered: 0, sent: 20, committed: 19, refused: 1 });
        assert_eq!(recorder.hold, Counts { offered: 0, sent: 10, committed: 19, refused: 1 });
        assert_eq!(recorder.latency_hold.count(), 9);
        let latency = Latency::of(&recorder.latency_hold);
        assert!((latency.p50 - 20.0).abs() < 0.2, "{latency:?}");
        assert_eq!(recorder.lateness.count(), 1);
        recorder.second_end();
        assert_eq!(recorder.latency_second.count(), 0);
    }

    #[test]
    fn windows_go_by_the_time_of_the_answer() {
        let mut recorder = Recorder::new(Phases::from_seconds(0.0, 1.0, 0.0));
        recorder.watch(vec![("before".to_owned(), 10, 100), ("after".to_owned(), 100, 200)]);
        for (answered, sent, committed) in [(5, 0, 1), (50, 40, 3), (100, 20, 2), (200, 100, 9)] {
            recorder.answered(answered, sent, committed, 0);
        }
        let windows = recorder.windows();
        assert_eq!(windows.iter().map(|one| one.committed).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(windows[1].name, "after");
    }
}
