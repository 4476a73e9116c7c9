//! What was done to the nodes while a load ran, and what the load noticed of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::recorder::Latency;
use crate::schedule::SECOND_NS;

/// The leader was killed.
pub const LEADER_KILLED: &str = "leader killed";
/// One or more followers were killed.
pub const FOLLOWER_KILLED: &str = "follower killed";
/// All nodes were killed at once.
pub const ALL_KILLED: &str = "all killed";
/// The leader was asked to hand over.
pub const HANDED_OVER: &str = "handed over";
/// A follower stood still for a while.
pub const FOLLOWER_PAUSED: &str = "follower paused";

/// The log disk of a follower was slow for a while.
pub const FOLLOWER_SLOWED: &str = "follower's disk slowed";

/// A gap counts as one event's if it ends so long after it at most.
const HORIZON_NS: u64 = 60 * SECOND_NS;

/// One thing that was done.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What.
    pub kind: &'static str,
    /// To which nodes, by number.
    pub nodes: Vec<u16>,
    /// When, nanoseconds since the load began.
    pub at_ns: u64,
    /// How long the longest start of the killed nodes took, seconds.
    pub ready_s: Option<f64>,
    /// From the event until all of them had caught up, seconds.
    pub caught_up_s: Option<f64>,
    /// The longest time without a committed answer around it, nanoseconds; filled in afterwards.
    pub gap_ns: u64,
}

impl Event {
    /// The event for machines.
    pub fn json(&self) -> Value {
        json!({
            "kind": self.kind,
            "nodes": self.nodes,
            "at_s": self.at_ns as f64 / 1e9,
            "gap_ms": self.gap_ns as f64 / 1e6,
            "ready_s": self.ready_s,
            "caught_up_s": self.caught_up_s,
        })
    }
}

/// Pauses between committed answers. Holds the longest ones only.
#[derive(Clone, Debug)]
pub struct Gaps {
    last_ns: Option<u64>,
    /// Shorter ones are not kept.
    floor_ns: u64,
    /// Begin and end, ascending.
    kept: Vec<(u64, u64)>,
}

impl Default for Gaps {
    fn default() -> Self {
        Self { last_ns: None, floor_ns: 1_000_000, kept: Vec::new() }
    }
}

impl Gaps {
    /// More are not kept: the floor rises.
    const KEPT_MAX: usize = 1 << 16;

    /// A committed answer has arrived. Time does not go back.
    pub fn committed(&mut self, now_ns: u64) {
        let last_ns = self.last_ns.replace(now_ns).unwrap_or(now_ns);
        assert!(last_ns <= now_ns, "time does not go back");
        if now_ns - last_ns < self.floor_ns {
            return;
        }
        if self.kept.len() == Self::KEPT_MAX {
            self.floor_ns *= 2;
            let floor_ns = self.floor_ns;
            self.kept.retain(|(begin, end)| end - begin >= floor_ns);
        }
        self.kept.push((last_ns, now_ns));
    }

    /// The longest gap that lasted at `at_ns` or began after it; but one that began after it and
    /// lasts at `until_ns` belongs to what was done then. What is not known to be over lasts until
    /// `end_ns`.
    fn around(&self, at_ns: u64, until_ns: u64, end_ns: u64) -> u64 {
        let open = self.last_ns.map(|last_ns| (last_ns, end_ns.max(last_ns)));
        let all = self.kept.iter().copied().chain(open);
        let around = all.filter(|(begin, end)| {
            let is_of_next = *begin > at_ns && *end > until_ns;
            *end > at_ns && *begin < until_ns && !is_of_next
        });
        around.map(|(begin, end)| end - begin).max().unwrap_or(0)
    }

    /// Fills in what each event cost. Events are in the order of their times.
    pub fn fill_in(&self, events: &mut [Event], end_ns: u64) {
        for at in 0..events.len() {
            let until_ns = match events.get(at + 1) {
                Some(next) => next.at_ns.min(events[at].at_ns + HORIZON_NS),
                None => events[at].at_ns + HORIZON_NS,
            };
            events[at].gap_ns = self.around(events[at].at_ns, until_ns, end_ns);
        }
    }
}

/// Write gaps of events of one kind, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct GapSummary {
    /// Events.
    pub count: usize,
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile: with fewer than 100 events, the longest.
    pub p99_ms: f64,
    /// Longest.
    pub max_ms: f64,
}

/// The events' gaps by kind.
pub fn summaries(events: &[Event]) -> BTreeMap<&'static str, GapSummary> {
    let mut gaps: BTreeMap<&'static str, Vec<u64>> = BTreeMap::new();
    for event in events {
        gaps.entry(event.kind).or_default().push(event.gap_ns);
    }
    let summary = |mut all: Vec<u64>| {
        all.sort_unstable();
        // Nearest rank: the smallest value that so many percent do not exceed.
        let rank = |percent: usize| all[(all.len() * percent).div_ceil(100).max(1) - 1];
        let ms = |nanos: u64| nanos as f64 / 1e6;
        GapSummary {
            count: all.len(),
            p50_ms: ms(rank(50)),
            p99_ms: ms(rank(99)),
            max_ms: ms(rank(100)),
        }
    };
    gaps.into_iter().map(|(kind, all)| (kind, summary(all))).collect()
}

/// Latency of committed answers in one stretch of the load.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowLatency {
    /// `before`, the event's kind, or `after`.
    pub name: String,
    /// From here, nanoseconds since the load began.
    pub begin_ns: u64,
    /// To here.
    pub end_ns: u64,
    /// Transactions committed in it.
    pub committed: u64,
    /// Their latency.
    pub latency: Latency,
}

impl WindowLatency {
    /// The window for machines.
    pub fn json(&self) -> Value {
        let seconds = (self.end_ns - self.begin_ns) as f64 / 1e9;
        json!({
            "name": self.name,
            "begin_s": self.begin_ns as f64 / 1e9,
            "end_s": self.end_ns as f64 / 1e9,
            "committed_tps": (self.committed as f64 / seconds).round(),
            "latency_us": self.latency,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn event(kind: &'static str, at_ns: u64) -> Event {
        Event { kind, nodes: vec![1], at_ns, ready_s: None, caught_up_s: None, gap_ns: 0 }
    }

    #[test]
    fn gaps_belong_to_the_event_before_them() {
        let mut gaps = Gaps::default();
        for now in [1, 2, 3, 103, 104, 105, 125, 126] {
            gaps.committed(now * MS);
        }
        // Killed at 50, in the middle of 100 ms of silence; asked to hand over at 105.5.
        let mut events = [event(LEADER_KILLED, 50 * MS), event(HANDED_OVER, 105 * MS + MS / 2)];
        gaps.fill_in(&mut events, 130 * MS);
        assert_eq!(events.clone().map(|event| event.gap_ns), [100 * MS, 20 * MS]);
        // Commits stopped at 3 because of what was done at 4, not of what was done at 2.
        let mut events = [event(FOLLOWER_PAUSED, 2 * MS), event(LEADER_KILLED, 4 * MS)];
        gaps.fill_in(&mut events, 130 * MS);
        assert_eq!(events.map(|event| event.gap_ns), [MS, 100 * MS]);
        // Nothing has come since 126: that counts up to the end.
        let mut events = [event(LEADER_KILLED, 127 * MS)];
        gaps.fill_in(&mut events, 930 * MS);
        assert_eq!(events[0].gap_ns, 804 * MS);
    }

    #[test]
    fn long_gaps_are_kept_among_many_short_ones() {
        let mut gaps = Gaps::default();
        let mut now = 0;
        for _ in 0..3 * Gaps::KEPT_MAX as u64 {
            now += MS;
            gaps.committed(now);
        }
        gaps.committed(now + 500 * MS);
        assert!(gaps.kept.len() <= Gaps::KEPT_MAX);
        let mut events = [event(LEADER_KILLED, now + MS)];
        gaps.fill_in(&mut events, now + 500 * MS);
        assert_eq!(events[0].gap_ns, 500 * MS);
    }

    #[test]
    fn summaries_are_nearest_rank() {
        let mut events: Vec<Event> = (1..=200).map(|at| event(LEADER_KILLED, at)).collect();
        for (gap, event) in events.iter_mut().enumerate() {
            event.gap_ns = (gap as u64 + 1) * MS;
        }
        events.push(event(HANDED_OVER, 900));
        let all = summaries(&events);
        assert_eq!(all[HANDED_OVER], GapSummary { count: 1, ..GapSummary::default() });
        let killed = GapSummary { count: 200, p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 };
        assert_eq!(all[LEADER_KILLED], killed);
        let fifty = summaries(&events[..50]);
        assert_eq!(fifty[LEADER_KILLED].p99_ms, 50.0);
    }
}
