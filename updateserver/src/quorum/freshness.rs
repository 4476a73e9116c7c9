//! How fresh what a node has is: proven, never assumed.
//!
//! A leader now and then begins a round and notes its wall time before. When a quorum has confirmed
//! the round, nobody else led at that time, so whatever was acknowledged by then is within its
//! committed end. Time and committed end travel in every message; a follower that has applied that
//! end is as fresh as that time.

use spillway_net::ids::{Lsn, NodeId, WallMicros};

use super::effects::Now;
use super::round::Round;

/// Time between two rounds by which a leader proves how fresh it is.
const PROOF_NANOS: u64 = 50_000_000;

/// See the module. A change of role begins anew.
#[derive(Debug, Default)]
pub struct Freshness {
    /// This node leads.
    leading: bool,
    /// The leader's time up to which everything acknowledged is applied here.
    fresh: WallMicros,
    /// As a follower: what a message of the leader said and this node has not applied yet.
    heard: Option<(Lsn, WallMicros)>,
    /// As a leader: the round that will prove this time.
    asked: Option<(u64, WallMicros)>,
    ask_at_nanos: u64,
}

impl Freshness {
    /// The leader's time as of which what this node has is complete; 0 if that is not known.
    pub fn fresh(&self) -> WallMicros {
        self.fresh
    }

    /// What the messages of this node may say: its own proof, of a leader only.
    pub fn proof(&self) -> WallMicros {
        if self.leading { self.fresh } else { WallMicros(0) }
    }

    /// The node leads from now on, or follows.
    pub fn role_changed(&mut self, leading: bool) {
        *self = Self { leading, ask_at_nanos: self.ask_at_nanos, ..Self::default() };
    }

    /// A message of a peer says what it knows to be committed, and as of when. `leader` is whom
    /// this node follows.
    pub fn heard(
        &mut self,
        leader: Option<NodeId>,
        from: NodeId,
        committed: Lsn,
        time: WallMicros,
    ) {
        // The oldest that is not applied: newer ones would move the goal for ever.
        if !self.leading && leader == Some(from) && self.heard.is_none() {
            self.heard = Some((committed, time));
        }
    }

    /// Everything up to here is applied on all shards.
    pub fn applied(&mut self, applied: Lsn) {
        if let Some((_, time)) = self.heard.filter(|(committed, _)| *committed <= applied) {
            self.fresh = self.fresh.max(time);
            self.heard = None;
        }
    }

    /// Takes in how far the rounds of a leader are. Returns the round to want, when it is time for
    /// another proof.
    pub fn round_due(&mut self, now: Now, round: Round) -> Option<u64> {
        if !self.leading {
            return None;
        }
        if let Some((_, began)) = self.asked.filter(|(asked, _)| *asked <= round.confirmed) {
            self.fresh = self.fresh.max(began);
            self.asked = None;
        }
        if self.asked.is_some() || now.monotonic_nanos < self.ask_at_nanos {
            return None;
        }
        self.ask_at_nanos = now.monotonic_nanos + PROOF_NANOS;
        // It begins after this moment, so what it proves holds for this moment too.
        let next = round.started + 1;
        self.asked = Some((next, now.wall));
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: NodeId = NodeId(2);

    fn now(milliseconds: u64) -> Now {
        let wall = WallMicros(1_000_000 + milliseconds * 1000);
        Now { monotonic_nanos: milliseconds * 1_000_000, wall }
    }

    #[test]
    fn a_follower_is_as_fresh_as_what_it_has_applied() {
        let mut node = Freshness::default();
        node.heard(Some(LEADER), LEADER, Lsn(7), WallMicros(50));
        node.applied(Lsn(6));
        assert_eq!(node.fresh(), WallMicros(0), "LSN 7 may have been acknowledged before 50");
        node.heard(Some(LEADER), LEADER, Lsn(9), WallMicros(60));
        node.applied(Lsn(7));
        assert_eq!(node.fresh(), WallMicros(50));
        node.applied(Lsn(9));
        assert_eq!(node.fresh(), WallMicros(50), "the second message was not waited for");
        node.heard(Some(LEADER), LEADER, Lsn(9), WallMicros(40));
        node.applied(Lsn(9));
        assert_eq!(node.fresh(), WallMicros(50), "never back");
        assert_eq!(node.proof(), WallMicros(0), "a follower proves nothing to others");
    }

    #[test]
    fn only_the_leader_is_believed() {
        let mut node = Freshness::default();
        node.heard(Some(LEADER), NodeId(3), Lsn(1), WallMicros(50));
        node.heard(None, LEADER, Lsn(1), WallMicros(50));
        node.applied(Lsn(1));
        assert_eq!(node.fresh(), WallMicros(0));
        node.role_changed(true);
        node.heard(Some(LEADER), LEADER, Lsn(1), WallMicros(50));
        node.applied(Lsn(1));
        assert_eq!(node.fresh(), WallMicros(0), "a leader needs a proof of its own");
    }

    #[test]
    fn a_leader_is_as_fresh_as_its_last_confirmed_round_began() {
        let mut node = Freshness::default();
        let round = |started, confirmed| Round { started, confirmed };
        assert_eq!(node.round_due(now(10), round(4, 4)), None, "a follower asks nobody");
        node.role_changed(true);
        assert_eq!(node.round_due(now(10), round(4, 4)), Some(5));
        assert_eq!(node.round_due(now(70), round(5, 4)), None, "one at a time");
        assert_eq!(node.fresh(), WallMicros(0), "round 4 began before this node led");
        assert_eq!(node.round_due(now(80), round(6, 5)), Some(7));
        assert_eq!((node.fresh(), node.proof()), (now(10).wall, now(10).wall));
        assert_eq!(node.round_due(now(90), round(7, 7)), None, "not before it is time");
        assert_eq!(node.fresh(), now(80).wall);
        assert_eq!(node.round_due(now(130), round(7, 7)), Some(8));
    }

    #[test]
    fn a_change_of_role_begins_anew() {
        let mut node = Freshness::default();
        node.role_changed(true);
        node.round_due(now(10), Round { started: 0, confirmed: 0 });
        node.round_due(now(10), Round { started: 1, confirmed: 1 });
        assert_eq!(node.fresh(), now(10).wall);
        node.round_due(now(60), Round { started: 1, confirmed: 1 });
        node.role_changed(false);
        assert_eq!((node.fresh(), node.proof()), (WallMicros(0), WallMicros(0)));
        node.role_changed(true);
        node.round_due(now(61), Round { started: 2, confirmed: 2 });
        assert_eq!(node.fresh(), WallMicros(0), "that round was of another leadership");
    }
}
