//! To whom leadership should go.

use spillway_net::ids::NodeId;

/// Entries by which the next leader may be behind: it gets them while proposals wait.
const BEHIND_ENTRIES_MAX: u64 = 512;

/// A voter, as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub node: NodeId,
    /// Its log equals the leader's up to here.
    pub matched: u64,
    /// Messages arrive there, and it answers.
    pub reachable: bool,
    /// Kept from leading.
    pub drained: bool,
}

/// The best voter to lead next: reachable, not drained, nearest to the end of the log; of equals
/// the first.
pub fn best(candidates: &[Candidate], last_index: u64) -> Option<NodeId> {
    let mut best: Option<&Candidate> = None;
    for candidate in candidates.iter().filter(|candidate| is_ready(candidate, last_index)) {
        assert!(candidate.matched <= last_index, "nobody is ahead of the leader");
        if !candidate.drained && best.is_none_or(|best| candidate.matched > best.matched) {
            best = Some(candidate);
        }
    }
    best.map(|candidate| candidate.node)
}

/// True when the voter could take over at once.
pub fn is_ready(candidate: &Candidate, last_index: u64) -> bool {
    candidate.reachable && candidate.matched + BEHIND_ENTRIES_MAX >= last_index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_reachable_undrained_and_near() {
        let voter = |node, matched| Candidate {
            node: NodeId(node),
            matched,
            reachable: true,
            drained: false,
        };
        let drained = Candidate { drained: true, ..voter(1, 1000) };
        let dead = Candidate { reachable: false, ..voter(2, 1000) };
        assert_eq!(best(&[drained, dead, voter(3, 990), voter(4, 995)], 1000), Some(NodeId(4)));
        assert_eq!(best(&[drained, voter(3, 1000), voter(4, 1000)], 1000), Some(NodeId(3)));
        assert_eq!(best(&[drained, dead, voter(3, 10)], 1000), None);
        assert!(is_ready(&drained, 1000) && !is_ready(&dead, 1000));
    }
}
