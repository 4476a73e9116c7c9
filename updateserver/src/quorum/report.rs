//! The status of a replica.

use raft::StateRole;
use spillway_net::ids::{Epoch, Lsn, NodeId};

use super::convert::node_of;
use super::effects::Now;
use super::membership::MemberKind;
use super::replica::Replica;
use super::status::{MemberState, MemberStatus, ReplicaRole, ReplicaStatus};

/// A member that is further behind than this many entries lags.
const LAGGING_ENTRIES: u64 = 1024;

impl Replica {
    fn role(&self) -> ReplicaRole {
        let kind = self.membership.kind(self.options.node);
        match self.raft.raft.state {
            StateRole::Leader if self.roles.epoch().is_some() => ReplicaRole::Leader,
            StateRole::Leader => ReplicaRole::Elected,
            StateRole::Candidate | StateRole::PreCandidate => ReplicaRole::Candidate,
            StateRole::Follower if matches!(kind, None | Some(MemberKind::Learner)) => {
                ReplicaRole::Learner
            }
            StateRole::Follower => ReplicaRole::Follower,
        }
    }

    /// Up to here a member has acknowledged this leader's log.
    pub(super) fn matched(&self, node: NodeId) -> u64 {
        let progress = self.raft.raft.prs().get(u64::from(node.0));
        progress.map_or(0, |progress| progress.matched)
    }

    fn member(&self, now: Now, node: NodeId, kind: MemberKind) -> MemberStatus {
        let leader = self.raft.raft.leader_id == u64::from(node.0);
        let drained = self.drained.contains(&node);
        let leads = self.leading().is_some();
        if node == self.options.node {
            let durable = Lsn(self.raft.raft.raft_log.persisted);
            let state = if leader { MemberState::Leader } else { MemberState::Follower };
            let (matched, applied) = (durable, self.applied);
            return MemberStatus { node, kind, state, drained, matched, applied, silent_ms: 0 };
        }
        let peer = self.peers.get(node);
        let silent = peer.map_or(u64::MAX, |peer| peer.silent_nanos(now.monotonic_nanos));
        let timeout = self.options.election_ticks_min as u64 * self.options.tick_nanos;
        let connected = peer.is_some_and(|peer| peer.connected);
        let matched = if leads { self.matched(node) } else { 0 };
        let state = if leader {
            MemberState::Leader
        } else if !connected || (leads && silent > timeout) {
            MemberState::Unreachable
        } else if !leads {
            MemberState::Unknown
        } else if matched + LAGGING_ENTRIES < self.published.lsn.0 {
            MemberState::Lagging
        } else {
            MemberState::Follower
        };
        MemberStatus {
            node,
            kind,
            state,
            drained,
            matched: Lsn(matched),
            applied: peer.map_or(Lsn(0), |peer| peer.applied),
            silent_ms: if silent == u64::MAX { u64::MAX } else { silent / 1_000_000 },
        }
    }

    /// How this node sees itself and the others at this time.
    pub fn status(&self, now: Now) -> ReplicaStatus {
        let raft = &self.raft.raft;
        let members = self.membership.nodes().into_iter().filter_map(|node| {
            let kind = self.membership.kind(node)?;
            Some(self.member(now, node, kind))
        });
        let vdl = self.published.lsn;
        let vcl = match self.leading() {
            Some(_) => Lsn(self.membership.quorum_value(|node| self.matched(node))).max(vdl),
            None => vdl,
        };
        ReplicaStatus {
            node: self.options.node,
            role: self.role(),
            term: Epoch(raft.term),
            leader: (raft.leader_id != raft::INVALID_ID).then(|| node_of(raft.leader_id)),
            scl: Lsn(raft.raft_log.persisted),
            vcl,
            vdl,
            last: Lsn(raft.raft_log.last_index()),
            applied: self.applied,
            lal_bytes: self.options.tail_bytes_max,
            tail_bytes: self.tail_bytes(),
            members: members.collect(),
            entries_unreadable: self.entries_unreadable,
        }
    }
}
