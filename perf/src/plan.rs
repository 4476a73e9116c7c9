//! What the command line asks to be done to the nodes of a burst, and when.

use std::time::Duration;

use crate::arguments::BurstArguments;
use crate::disturbance::{FOLLOWER_PAUSED, FOLLOWER_SLOWED, HANDED_OVER, LEADER_KILLED};
use crate::schedule::{Phases, SECOND_NS};
use crate::script::Script;

/// How long the load is looked at by itself after the leader was killed.
const KILLED_NS: u64 = 2 * SECOND_NS;
/// The same after a hand-over.
const HANDED_OVER_NS: u64 = SECOND_NS;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    KillLeader,
    PauseFollower { nanos: u64 },
    SlowFollower { nanos: u64 },
    HandOver,
}

impl Step {
    const fn kind(self) -> &'static str {
        match self {
            Self::KillLeader => LEADER_KILLED,
            Self::PauseFollower { .. } => FOLLOWER_PAUSED,
            Self::SlowFollower { .. } => FOLLOWER_SLOWED,
            Self::HandOver => HANDED_OVER,
        }
    }

    const fn nanos(self) -> u64 {
        match self {
            Self::KillLeader => KILLED_NS,
            Self::PauseFollower { nanos } | Self::SlowFollower { nanos } => nanos,
            Self::HandOver => HANDED_OVER_NS,
        }
    }
}

/// Steps in the order of their times.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    steps: Vec<(u64, Step)>,
}

impl Plan {
    /// What the command line asks for.
    pub fn of(arguments: &BurstArguments) -> Self {
        let nanos = |seconds: f64| (seconds * SECOND_NS as f64) as u64;
        let killed = arguments.kill_leader_at.iter().map(|at| (nanos(*at), Step::KillLeader));
        let handed_over = arguments.transfer_at.iter().map(|at| (nanos(*at), Step::HandOver));
        let paused = arguments
            .pause_follower
            .iter()
            .map(|pause| (nanos(pause.at), Step::PauseFollower { nanos: nanos(pause.seconds) }));
        let slowed = arguments
            .slow_follower
            .iter()
            .map(|pause| (nanos(pause.at), Step::SlowFollower { nanos: nanos(pause.seconds) }));
        let all = killed.chain(handed_over).chain(paused).chain(slowed);
        let mut steps: Vec<(u64, Step)> = all.collect();
        steps.sort_by_key(|step| step.0);
        Self { steps }
    }

    /// When the last step is; none without any.
    pub fn last_ns(&self) -> Option<u64> {
        self.steps.last().map(|step| step.0)
    }

    /// Stretches of the load to look at by themselves: before, during each step, and after.
    pub fn windows(&self, phases: &Phases) -> Vec<(String, u64, u64)> {
        let Some(first) = self.steps.first() else { return Vec::new() };
        let hold_end = phases.ramp_ns + phases.hold_ns;
        let mut windows = vec![("before".to_owned(), phases.ramp_ns, first.0)];
        let mut after = first.0;
        for (index, (at, step)) in self.steps.iter().enumerate() {
            let next = self.steps.get(index + 1).map_or(hold_end, |next| next.0);
            after = at.saturating_add(step.nanos()).min(next);
            windows.push((step.kind().to_owned(), *at, after));
        }
        windows.push(("after".to_owned(), after, hold_end));
        windows.retain(|(_, begin, end)| begin < end);
        windows
    }

    /// Does all that, each at its time.
    pub fn script(self) -> Option<Script> {
        if self.steps.is_empty() {
            return None;
        }
        Some(Box::new(move |field| {
            for (at, step) in self.steps {
                field.wait_until(at)?;
                if field.is_over() {
                    break;
                }
                match step {
                    Step::KillLeader => field.leader_kill()?,
                    Step::HandOver => field.hand_over()?,
                    Step::SlowFollower { nanos } => {
                        field.follower_slow(Duration::from_nanos(nanos))?;
                    }
                    Step::PauseFollower { nanos } => {
                        field.follower_pause(Duration::from_nanos(nanos))?;
                    }
                }
            }
            Ok(())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_hold_phase_and_do_not_overlap() {
        let s = SECOND_NS;
        let steps = vec![(3 * s, Step::PauseFollower { nanos: 2 * s }), (4 * s, Step::KillLeader)];
        let phases = Phases::from_seconds(2.0, 5.0, 2.0);
        let windows = Plan { steps }.windows(&phases);
        let expected = [
            ("before".to_owned(), 2 * s, 3 * s),
            (FOLLOWER_PAUSED.to_owned(), 3 * s, 4 * s),
            (LEADER_KILLED.to_owned(), 4 * s, 6 * s),
            ("after".to_owned(), 6 * s, 7 * s),
        ];
        assert_eq!(windows, expected);
        let early = Plan { steps: vec![(s, Step::HandOver)] }.windows(&phases);
        assert_eq!(early[0], (HANDED_OVER.to_owned(), s, 2 * s), "nothing before the ramp");
        assert!(Plan::default().windows(&phases).is_empty() && Plan::default().script().is_none());
    }
}
