//! When a node campaigns: a deterministic spread instead of the state machine's random one.

use spillway_net::ids::{Epoch, NodeId};

/// Ticks between the campaigns of nodes that all lost their leader at once: several round trips of
/// a vote, so that the first has won before the second begins.
const RANK_TICKS: usize = 3;

/// Mixes a number; every bit of the input reaches every bit of the output.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The span from which election timeouts are taken, ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElectionSpan {
    /// Shortest timeout.
    pub min: usize,
    /// Timeouts are shorter than this.
    pub max: usize,
}

impl ElectionSpan {
    /// The timeout of a node in a term (rule R4): the same on every run from the same seed. `role`
    /// tells the states of one term apart. A node that would rather not lead takes its timeout from
    /// behind the span.
    pub fn timeout_ticks(
        &self,
        seed: u64,
        node: NodeId,
        term: Epoch,
        role: u8,
        reluctant: bool,
    ) -> usize {
        assert!(self.min > 0 && self.min < self.max, "a span of timeouts");
        let name = u64::from(node.0) << 8 | u64::from(role);
        let drawn = mix(mix(seed ^ name.wrapping_mul(0x9e37_79b9_7f4a_7c15)) ^ term.0);
        let ticks = self.min + (drawn % (self.max - self.min) as u64) as usize;
        assert!((self.min..self.max).contains(&ticks), "within the span");
        if reluctant { ticks + self.max } else { ticks }
    }

    /// One above the longest timeout of all.
    pub fn limit(&self) -> usize {
        2 * self.max
    }
}

/// Ticks after which a node campaigns whose connection to the leader broke. Each voter that is left
/// has a place of its own in an order that turns with the term, so that they do not split the vote.
pub fn leaderless_ticks(
    voters: &[NodeId],
    leader: NodeId,
    node: NodeId,
    term: Epoch,
    reluctant: bool,
) -> usize {
    let left = || voters.iter().filter(|voter| **voter != leader);
    let count = left().count();
    let Some(place) = left().position(|voter| *voter == node) else {
        return RANK_TICKS * voters.len();
    };
    assert!(count > 0 && place < count, "a voter has a place");
    let turned = (place as u64 + term.0) % count as u64;
    let behind = if reluctant { count } else { 0 };
    (turned as usize + behind) * RANK_TICKS
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn timeouts_spread_and_repeat() {
        let span = ElectionSpan { min: 50, max: 100 };
        let draw = |seed, node, term, role| {
            span.timeout_ticks(seed, NodeId(node), Epoch(term), role, false)
        };
        let mut seen = BTreeSet::new();
        for term in 0..400 {
            let ticks = draw(1, 2, term, 0);
            assert_eq!(ticks, draw(1, 2, term, 0));
            assert!((50..100).contains(&ticks));
            seen.insert(ticks);
        }
        assert!(seen.len() > 45, "only {} different timeouts", seen.len());
        let differ = |a: usize, b: usize| usize::from(a != b);
        let nodes: usize = (0..100).map(|t| differ(draw(1, 1, t, 0), draw(1, 2, t, 0))).sum();
        let roles: usize = (0..100).map(|t| differ(draw(1, 1, t, 0), draw(1, 1, t, 1))).sum();
        assert!(nodes > 90 && roles > 90, "{nodes} {roles}");
        assert!(span.timeout_ticks(1, NodeId(1), Epoch(1), 0, true) >= 150);
        assert!(span.timeout_ticks(1, NodeId(1), Epoch(1), 0, true) < span.limit());
    }

    #[test]
    fn the_voters_left_never_campaign_at_once() {
        let voters: Vec<NodeId> = (1..=5).map(NodeId).collect();
        for term in 0..20 {
            for leader in &voters {
                let left = voters.iter().filter(|v| *v != leader);
                let delays: BTreeSet<usize> = left
                    .map(|v| leaderless_ticks(&voters, *leader, *v, Epoch(term), false))
                    .collect();
                assert_eq!(delays.len(), 4);
                assert_eq!(delays.first(), Some(&0));
                assert_eq!(delays.last(), Some(&9));
            }
        }
        let drained = leaderless_ticks(&voters, NodeId(1), NodeId(2), Epoch(0), true);
        assert!(drained >= 12);
    }
}
