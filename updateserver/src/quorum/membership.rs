//! Who votes, who learns, and the one change that may be under way.

use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};
use spillway_net::ids::NodeId;

use crate::log::Members;

/// Bytes of an encoded change.
pub const CONFIG_CHANGE_BYTES: usize = 16;
const VERSION: u8 = 1;

/// The way from one set of members to the next: a learner, then a joint configuration, then the
/// new one. Every step is an entry of kind [`crate::log::FrameKind::Config`], so that whoever leads
/// goes on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigChange {
    /// `new` receives the log; it shall vote in place of `old`, or besides the others.
    LearnerAdd(Replacement),
    /// Two majorities decide: the old voters, and those with `new` and without `old`.
    Promote(Replacement),
    /// The new voters decide alone.
    Leave,
}

/// What a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// The voter that goes.
    pub old: Option<NodeId>,
    /// The voter that comes.
    pub new: NodeId,
}

/// An entry of kind configuration change that this build cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a configuration entry of the log is of no known form: install the build that wrote it")]
pub struct ConfigChangeFault;

impl ConfigChange {
    /// The content of the entry's section.
    pub fn encode(&self) -> [u8; CONFIG_CHANGE_BYTES] {
        let (kind, what) = match self {
            Self::LearnerAdd(what) => (1, Some(what)),
            Self::Promote(what) => (2, Some(what)),
            Self::Leave => (3, None),
        };
        let old = what.and_then(|what| what.old).map_or(0, |node| node.0);
        let new = what.map_or(0, |what| what.new.0);
        let mut bytes = [0; CONFIG_CHANGE_BYTES];
        bytes[0] = VERSION;
        bytes[1] = kind;
        bytes[2..4].copy_from_slice(&old.to_le_bytes());
        bytes[4..6].copy_from_slice(&new.to_le_bytes());
        bytes
    }

    /// Reads the content of an entry's section.
    ///
    /// # Errors
    /// [`ConfigChangeFault`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ConfigChangeFault> {
        let bytes: &[u8; CONFIG_CHANGE_BYTES] = bytes.try_into().map_err(|_| ConfigChangeFault)?;
        let old = NodeId(u16::from_le_bytes([bytes[2], bytes[3]]));
        let new = NodeId(u16::from_le_bytes([bytes[4], bytes[5]]));
        let what = Replacement { old: (old.0 > 0).then_some(old), new };
        let change = match bytes[1] {
            1 if new.0 > 0 => Self::LearnerAdd(what),
            2 if new.0 > 0 => Self::Promote(what),
            3 => Self::Leave,
            _ => return Err(ConfigChangeFault),
        };
        if change.encode() == *bytes { Ok(change) } else { Err(ConfigChangeFault) }
    }

    /// The state machine's form.
    pub fn to_raft(self) -> ConfChangeV2 {
        let single = |node: NodeId, kind: ConfChangeType| {
            let mut single = ConfChangeSingle::default();
            single.node_id = u64::from(node.0);
            single.set_change_type(kind);
            single
        };
        let mut change = ConfChangeV2::default();
        match self {
            Self::LearnerAdd(what) => {
                change.mut_changes().push(single(what.new, ConfChangeType::AddLearnerNode));
            }
            Self::Promote(what) => {
                change.set_transition(ConfChangeTransition::Explicit);
                change.mut_changes().push(single(what.new, ConfChangeType::AddNode));
                if let Some(old) = what.old {
                    change.mut_changes().push(single(old, ConfChangeType::RemoveNode));
                }
            }
            Self::Leave => assert!(change.leave_joint(), "an empty change leaves"),
        }
        change
    }
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// Votes.
    Voter,
    /// Receives the log.
    Learner,
    /// Votes in the new half of a joint configuration only.
    Joining,
    /// Votes in the old half of a joint configuration only.
    Leaving,
}

impl MemberKind {
    /// The word for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::Joining => "joining",
            Self::Leaving => "leaving",
        }
    }
}

/// The members as of an index of the log. Lists are in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    voters: Vec<NodeId>,
    voters_outgoing: Vec<NodeId>,
    learners: Vec<NodeId>,
    replacement: Option<Replacement>,
}

fn sorted(nodes: impl Iterator<Item = NodeId>) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = nodes.collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

impl Membership {
    /// A cluster of these voters.
    pub fn of_voters(voters: impl Iterator<Item = NodeId>) -> Self {
        Self { voters: sorted(voters), ..Self::default() }
    }

    /// As the superblock keeps them.
    pub fn of_members(members: &Members) -> Self {
        let list = |list: &[u16]| sorted(list.iter().filter(|n| **n > 0).map(|n| NodeId(*n)));
        Self {
            voters: list(&members.voters),
            voters_outgoing: list(&members.voters_outgoing),
            learners: list(&members.learners),
            replacement: None,
        }
    }

    /// For the superblock.
    pub fn to_members(&self) -> Members {
        Members {
            voters: Members::list(self.voters.iter().copied()),
            voters_outgoing: Members::list(self.voters_outgoing.iter().copied()),
            learners: Members::list(self.learners.iter().copied()),
        }
    }

    /// For the state machine.
    pub fn to_conf_state(&self) -> ConfState {
        let list = |nodes: &[NodeId]| nodes.iter().map(|node| u64::from(node.0)).collect();
        let mut state = ConfState::default();
        state.set_voters(list(&self.voters));
        state.set_voters_outgoing(list(&self.voters_outgoing));
        state.set_learners(list(&self.learners));
        state
    }

    /// True when the state machine sees the same members.
    pub fn equals(&self, state: &ConfState) -> bool {
        let same = |nodes: &[NodeId], ids: &[u64]| {
            let ids = ids.iter().map(|id| super::convert::node_of(*id));
            sorted(ids) == nodes
        };
        same(&self.voters, state.get_voters())
            && same(&self.voters_outgoing, state.get_voters_outgoing())
            && same(&self.learners, state.get_learners())
            && state.get_learners_next().is_empty()
    }

    /// Takes in a committed change.
    pub fn apply(&mut self, change: ConfigChange) {
        match change {
            ConfigChange::LearnerAdd(what) => {
                assert!(!self.is_voter(what.new), "a voter does not become a learner");
                self.learners = sorted(self.learners.iter().copied().chain([what.new]));
                self.replacement = Some(what);
            }
            ConfigChange::Promote(what) => {
                assert!(!self.is_joint(), "one change at a time");
                let stays = |node: &NodeId| Some(*node) != what.old && *node != what.new;
                self.voters_outgoing = self.voters.clone();
                let voters = self.voters.iter().copied().filter(stays).chain([what.new]);
                self.voters = sorted(voters);
                self.learners.retain(|node| *node != what.new);
                self.replacement = Some(what);
            }
            ConfigChange::Leave => {
                assert!(self.is_joint(), "only a joint configuration is left");
                self.voters_outgoing.clear();
                self.replacement = None;
            }
        }
        assert!(!self.voters.is_empty(), "somebody votes");
    }

    /// The change under way.
    pub fn replacement(&self) -> Option<Replacement> {
        self.replacement
    }

    /// Voters; of a joint configuration, the incoming ones.
    pub fn voters(&self) -> &[NodeId] {
        &self.voters
    }

    /// True while two majorities decide.
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// True when the node votes in either half.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.voters_outgoing.contains(&node)
    }

    /// True when this node decides alone.
    pub fn is_alone(&self, node: NodeId) -> bool {
        !self.is_joint() && self.voters == [node]
    }

    /// What a node is; `None` for strangers.
    pub fn kind(&self, node: NodeId) -> Option<MemberKind> {
        let (new, old) = (self.voters.contains(&node), self.voters_outgoing.contains(&node));
        match (self.is_joint(), new, old) {
            (false, true, _) | (true, true, true) => Some(MemberKind::Voter),
            (true, true, false) => Some(MemberKind::Joining),
            (true, false, true) => Some(MemberKind::Leaving),
            _ => self.learners.contains(&node).then_some(MemberKind::Learner),
        }
    }

    /// All members in ascending order.
    pub fn nodes(&self) -> Vec<NodeId> {
        let lists = self.voters.iter().chain(&self.voters_outgoing).chain(&self.learners);
        sorted(lists.copied())
    }

    /// The highest value that a quorum has reached, of both majorities where there are two.
    pub fn quorum_value(&self, value: impl Fn(NodeId) -> u64) -> u64 {
        let half = |voters: &[NodeId]| {
            let mut values: Vec<u64> = voters.iter().map(|node| value(*node)).collect();
            values.sort_unstable();
            // Of n ascending values, a majority has at least the one at (n - 1) / 2.
            values[(values.len() - 1) / 2]
        };
        assert!(!self.voters.is_empty(), "somebody votes");
        let new = half(&self.voters);
        if self.is_joint() { new.min(half(&self.voters_outgoing)) } else { new }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_survive_and_nothing_else_is_read() {
        let what = |old: Option<u16>, new| Replacement { old: old.map(NodeId), new: NodeId(new) };
        for change in [
            ConfigChange::LearnerAdd(what(None, 4)),
            ConfigChange::LearnerAdd(what(Some(2), 4)),
            ConfigChange::Promote(what(Some(2), 4)),
            ConfigChange::Leave,
        ] {
            let bytes = change.encode();
            assert_eq!(ConfigChange::decode(&bytes), Ok(change));
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut other = bytes;
                    other[at] ^= 1 << bit;
                    assert_ne!(ConfigChange::decode(&other), Ok(change), "byte {at} bit {bit}");
                }
            }
        }
        assert!(ConfigChange::decode(&[1; 15]).is_err());
    }

    #[test]
    fn a_replacement_goes_through_a_joint_configuration() {
        let what = Replacement { old: Some(NodeId(2)), new: NodeId(4) };
        let mut members = Membership::of_voters((1..=3).map(NodeId));
        members.apply(ConfigChange::LearnerAdd(what));
        assert_eq!(members.kind(NodeId(4)), Some(MemberKind::Learner));
        assert_eq!(members.quorum_value(|node| u64::from(node.0)), 2);
        members.apply(ConfigChange::Promote(what));
        assert_eq!(members.kind(NodeId(4)), Some(MemberKind::Joining));
        assert_eq!(members.kind(NodeId(2)), Some(MemberKind::Leaving));
        assert_eq!(members.kind(NodeId(1)), Some(MemberKind::Voter));
        assert_eq!(members.quorum_value(|node| u64::from(node.0)), 2);
        assert_eq!(members.quorum_value(|node| u64::from(node.0 >= 3)), 0);
        assert_eq!(Membership::of_members(&members.to_members()).voters, members.voters);
        members.apply(ConfigChange::Leave);
        assert_eq!(members.kind(NodeId(2)), None);
        assert_eq!(members.nodes(), [1, 3, 4].map(NodeId));
        assert_eq!(members.replacement(), None);
    }

    #[test]
    fn quorum_values_need_a_majority() {
        let value = |count: u16, have: u16| {
            let members = Membership::of_voters((1..=count).map(NodeId));
            members.quorum_value(|node| u64::from(node.0 <= have))
        };
        let quorums = [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (7, 4)];
        for (count, quorum) in quorums {
            assert_eq!((value(count, quorum), value(count, quorum - 1)), (1, 0), "{count}");
        }
    }
}
