//! Who votes, who learns, and the one change that may be under way.

use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};
use spillway_net::ids::NodeId;

use crate::log::{MEMBERS_MAX, Members};

/// Bytes of an encoded entry.
pub const CONFIG_ENTRY_BYTES: usize = 64;
const VERSION: u8 = 1;
const AT_MEMBERS: usize = 16;

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
    /// This learner shall not vote after all.
    LearnerRemove(NodeId),
}

/// What a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// The voter that goes.
    pub old: Option<NodeId>,
    /// The voter that comes.
    pub new: NodeId,
}

/// A configuration entry: the step, and the members after it, from which a node begins that joins
/// with an empty log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigEntry {
    /// The step.
    pub change: ConfigChange,
    /// Who is a member after it.
    pub members: Members,
}

/// An entry of kind configuration change that this build cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a configuration entry of the log is of no known form: install the build that wrote it")]
pub struct ConfigEntryFault;

fn lists_of(members: &Members) -> [[u16; MEMBERS_MAX]; 3] {
    [members.voters, members.voters_outgoing, members.learners]
}

impl ConfigEntry {
    /// The content of the entry's section.
    pub fn encode(&self) -> [u8; CONFIG_ENTRY_BYTES] {
        let nobody = NodeId(0);
        let (kind, old, new) = match self.change {
            ConfigChange::LearnerAdd(what) => (1, what.old.unwrap_or(nobody), what.new),
            ConfigChange::Promote(what) => (2, what.old.unwrap_or(nobody), what.new),
            ConfigChange::Leave => (3, nobody, nobody),
            ConfigChange::LearnerRemove(node) => (4, node, nobody),
        };
        let mut bytes = [0; CONFIG_ENTRY_BYTES];
        bytes[0] = VERSION;
        bytes[1] = kind;
        bytes[2..4].copy_from_slice(&old.0.to_le_bytes());
        bytes[4..6].copy_from_slice(&new.0.to_le_bytes());
        let nodes = lists_of(&self.members).into_iter().flatten();
        for (place, node) in bytes[AT_MEMBERS..].as_chunks_mut::<2>().0.iter_mut().zip(nodes) {
            *place = node.to_le_bytes();
        }
        bytes
    }

    /// Reads the content of an entry's section.
    ///
    /// # Errors
    /// [`ConfigEntryFault`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ConfigEntryFault> {
        let bytes: &[u8; CONFIG_ENTRY_BYTES] = bytes.try_into().map_err(|_| ConfigEntryFault)?;
        let at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let (old, new) = (NodeId(at(2)), NodeId(at(4)));
        let what = Replacement { old: (old.0 > 0).then_some(old), new };
        let change = match bytes[1] {
            1 if new.0 > 0 => ConfigChange::LearnerAdd(what),
            2 if new.0 > 0 => ConfigChange::Promote(what),
            3 => ConfigChange::Leave,
            4 if old.0 > 0 => ConfigChange::LearnerRemove(old),
            _ => return Err(ConfigEntryFault),
        };
        let list = |number: usize| -> [u16; MEMBERS_MAX] {
            std::array::from_fn(|index| at(AT_MEMBERS + (number * MEMBERS_MAX + index) * 2))
        };
        let members = Members { voters: list(0), voters_outgoing: list(1), learners: list(2) };
        let entry = Self { change, members };
        let sound = members.fault().is_none() && members.voters[0] != 0;
        if sound && entry.encode() == *bytes { Ok(entry) } else { Err(ConfigEntryFault) }
    }
}

fn single(node: NodeId, kind: ConfChangeType) -> ConfChangeSingle {
    let node_id = u64::from(node.0);
    let mut single = ConfChangeSingle { node_id, ..ConfChangeSingle::default() };
    single.set_change_type(kind);
    single
}

impl ConfigChange {
    /// The state machine's form.
    pub fn to_raft(self) -> ConfChangeV2 {
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
            Self::LearnerRemove(node) => {
                change.mut_changes().push(single(node, ConfChangeType::RemoveNode));
            }
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

    /// The members after a change.
    ///
    /// # Panics
    /// When the change does not fit; [`Self::take`] says so instead.
    pub fn after(&self, change: ConfigChange) -> Self {
        let mut after = self.clone();
        match change {
            ConfigChange::LearnerAdd(what) => {
                assert!(!self.is_voter(what.new), "a voter does not become a learner");
                after.learners = sorted(self.learners.iter().copied().chain([what.new]));
                after.replacement = Some(what);
            }
            ConfigChange::Promote(what) => {
                assert!(!self.is_joint(), "one change at a time");
                let stays = |node: &NodeId| Some(*node) != what.old && *node != what.new;
                let voters = self.voters.iter().copied().filter(stays).chain([what.new]);
                after.voters = sorted(voters);
                after.voters_outgoing.clone_from(&self.voters);
                after.learners.retain(|node| *node != what.new);
                after.replacement = Some(what);
            }
            ConfigChange::Leave => {
                assert!(self.is_joint(), "only a joint configuration is left");
                after.voters_outgoing.clear();
                after.replacement = None;
            }
            ConfigChange::LearnerRemove(node) => {
                assert!(!self.is_joint(), "one change at a time");
                after.learners.retain(|learner| *learner != node);
            }
        }
        assert!(!after.voters.is_empty(), "somebody votes");
        after
    }

    fn fits(&self, change: ConfigChange) -> bool {
        let has_room = |nodes: &[NodeId]| nodes.len() < MEMBERS_MAX;
        match change {
            ConfigChange::LearnerAdd(what) => {
                let known = self.learners.contains(&what.new);
                !self.is_voter(what.new) && (known || has_room(&self.learners))
            }
            ConfigChange::Promote(what) => {
                let leaves = what.old.is_some_and(|old| self.voters.contains(&old));
                let fits = !self.is_joint() && !self.is_voter(what.new);
                fits && (leaves || has_room(&self.voters))
            }
            ConfigChange::Leave => self.is_joint(),
            ConfigChange::LearnerRemove(node) => !self.is_joint() && self.learners.contains(&node),
        }
    }

    /// True before the first configuration entry on a node that joined with an empty log.
    pub fn is_unknown(&self) -> bool {
        self.voters.is_empty()
    }

    /// Takes in a committed entry. Returns the changes that bring the state machine to the same
    /// members.
    ///
    /// # Errors
    /// It does not fit these members.
    pub fn take(&mut self, entry: &ConfigEntry) -> Result<Vec<ConfChangeV2>, ConfigEntryFault> {
        if self.is_unknown() {
            return self.adopt(entry);
        }
        if !self.fits(entry.change) {
            return Err(ConfigEntryFault);
        }
        let after = self.after(entry.change);
        if after.to_members() != entry.members {
            return Err(ConfigEntryFault);
        }
        *self = after;
        Ok(vec![entry.change.to_raft()])
    }

    /// A log begins with the members of its format, which a node that joins does not know. The
    /// first change that it sees says who they are.
    fn adopt(&mut self, entry: &ConfigEntry) -> Result<Vec<ConfChangeV2>, ConfigEntryFault> {
        let ConfigChange::LearnerAdd(what) = entry.change else { return Err(ConfigEntryFault) };
        let members = Self::of_members(&entry.members);
        if members.is_joint() || members.is_unknown() {
            return Err(ConfigEntryFault);
        }
        let one = |node: &NodeId, kind| {
            let mut change = ConfChangeV2::default();
            change.mut_changes().push(single(*node, kind));
            change
        };
        let voters = members.voters.iter().map(|node| one(node, ConfChangeType::AddNode));
        let learners = members.learners.iter();
        let learners = learners.map(|node| one(node, ConfChangeType::AddLearnerNode));
        let changes = voters.chain(learners).collect();
        *self = Self { replacement: Some(what), ..members };
        Ok(changes)
    }

    /// The change under way.
    pub fn replacement(&self) -> Option<Replacement> {
        self.replacement
    }

    /// A learner that was to vote before another one was named in its place.
    pub fn learner_superseded(&self) -> Option<NodeId> {
        let what = self.replacement?;
        self.learners.iter().copied().find(|node| *node != what.new)
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

    fn what(old: Option<u16>, new: u16) -> Replacement {
        Replacement { old: old.map(NodeId), new: NodeId(new) }
    }

    #[test]
    fn entries_survive_and_nothing_else_is_read() {
        let members = Members::of_voters([1, 2, 4].map(NodeId));
        for change in [
            ConfigChange::LearnerAdd(what(None, 4)),
            ConfigChange::LearnerAdd(what(Some(2), 4)),
            ConfigChange::Promote(what(Some(2), 4)),
            ConfigChange::Leave,
            ConfigChange::LearnerRemove(NodeId(5)),
        ] {
            let entry = ConfigEntry { change, members };
            let bytes = entry.encode();
            assert_eq!(ConfigEntry::decode(&bytes), Ok(entry));
            for bit in 0..bytes.len() * 8 {
                let mut other = bytes;
                other[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(ConfigEntry::decode(&other), Ok(entry), "bit {bit}");
            }
        }
        assert!(ConfigEntry::decode(&[1; 15]).is_err());
    }

    fn take(members: &mut Membership, change: ConfigChange) -> usize {
        let entry = ConfigEntry { change, members: members.after(change).to_members() };
        members.take(&entry).expect("it fits").len()
    }

    #[test]
    fn a_replacement_goes_through_a_joint_configuration() {
        let mut members = Membership::of_voters((1..=3).map(NodeId));
        let what = what(Some(2), 4);
        let leave = ConfigEntry { change: ConfigChange::Leave, members: members.to_members() };
        assert_eq!(members.take(&leave), Err(ConfigEntryFault));
        take(&mut members, ConfigChange::LearnerAdd(what));
        assert_eq!(members.kind(NodeId(4)), Some(MemberKind::Learner));
        assert_eq!(members.quorum_value(|node| u64::from(node.0)), 2);
        take(&mut members, ConfigChange::Promote(what));
        assert_eq!(members.kind(NodeId(4)), Some(MemberKind::Joining));
        assert_eq!(members.kind(NodeId(2)), Some(MemberKind::Leaving));
        assert_eq!(members.kind(NodeId(1)), Some(MemberKind::Voter));
        assert_eq!(members.quorum_value(|node| u64::from(node.0)), 2);
        assert_eq!(members.quorum_value(|node| u64::from(node.0 >= 3)), 0);
        assert_eq!(Membership::of_members(&members.to_members()).voters, members.voters);
        take(&mut members, ConfigChange::Leave);
        assert_eq!(members.kind(NodeId(2)), None);
        assert_eq!(members.nodes(), [1, 3, 4].map(NodeId));
        assert_eq!(members.replacement(), None);
    }

    #[test]
    fn a_node_that_joins_learns_the_members_from_the_first_change() {
        let mut members = Membership::of_voters((1..=3).map(NodeId));
        let change = ConfigChange::LearnerAdd(what(Some(3), 5));
        let entry = ConfigEntry { change, members: members.after(change).to_members() };
        let mut fresh = Membership::default();
        assert!(fresh.is_unknown());
        assert_eq!(fresh.take(&entry).map(|changes| changes.len()), Ok(4));
        assert_eq!(members.take(&entry).map(|changes| changes.len()), Ok(1));
        assert_eq!(fresh, members);
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
