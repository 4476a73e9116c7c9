//! The members of a cluster as the superblock keeps them.

use spillway_net::ids::NodeId;
use spillway_net::limits::NODE_ID_MAX;

use super::bytes::{get_u16, put_u16};

/// Slots of each list.
pub const MEMBERS_MAX: usize = 8;
/// Bytes of three lists.
pub(super) const MEMBERS_BYTES: usize = 3 * MEMBERS_MAX * 2;

/// Who votes and who learns, as of the floor of the log: what the configuration changes behind it
/// start from. Lists are filled from the front; 0 is an empty slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Voters; of a joint configuration, the incoming ones.
    pub voters: [u16; MEMBERS_MAX],
    /// Voters of the outgoing half of a joint configuration.
    pub voters_outgoing: [u16; MEMBERS_MAX],
    /// Nodes that receive the log and do not vote.
    pub learners: [u16; MEMBERS_MAX],
}

impl Members {
    /// One list from node ids.
    ///
    /// # Panics
    /// On more ids than slots.
    pub fn list(nodes: impl IntoIterator<Item = NodeId>) -> [u16; MEMBERS_MAX] {
        let mut list = [0; MEMBERS_MAX];
        for (at, node) in nodes.into_iter().enumerate() {
            assert!(at < MEMBERS_MAX, "at most {MEMBERS_MAX} members");
            list[at] = node.0;
        }
        list
    }

    /// A cluster of these voters.
    pub fn of_voters(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        Self { voters: Self::list(nodes), ..Self::default() }
    }

    /// The nodes of one list.
    pub fn nodes(list: &[u16; MEMBERS_MAX]) -> impl Iterator<Item = NodeId> + use<> {
        (*list).into_iter().take_while(|node| *node != 0).map(NodeId)
    }

    fn list_is_sound(list: &[u16; MEMBERS_MAX]) -> bool {
        let used = Self::nodes(list).count();
        let unique = |at: usize| !list[..at].contains(&list[at]);
        let known = list.iter().all(|node| *node <= NODE_ID_MAX);
        known && list[used..].iter().all(|node| *node == 0) && (0..used).all(unique)
    }

    /// The first rule that does not hold: ids in range, no gap and no node twice in a list, no
    /// learner that votes, no outgoing half without an incoming one.
    pub fn fault(&self) -> Option<&'static str> {
        let lists = [&self.voters, &self.voters_outgoing, &self.learners];
        if !lists.into_iter().all(Self::list_is_sound) {
            return Some("member list");
        }
        let votes =
            |node: &NodeId| self.voters.contains(&node.0) || self.voters_outgoing.contains(&node.0);
        if Self::nodes(&self.learners).any(|node| votes(&node)) {
            return Some("learner that votes");
        }
        (self.voters[0] == 0 && self.voters_outgoing[0] != 0).then_some("outgoing voters")
    }

    pub(super) fn encode(&self, bytes: &mut [u8]) {
        let lists = [self.voters, self.voters_outgoing, self.learners];
        for (index, node) in lists.into_iter().flatten().enumerate() {
            put_u16(bytes, index * 2, node);
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        let list = |number: usize| {
            std::array::from_fn(|at| get_u16(bytes, (number * MEMBERS_MAX + at) * 2))
        };
        Self { voters: list(0), voters_outgoing: list(1), learners: list(2) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_survive_and_are_checked() {
        let members = Members {
            voters: Members::list([3, 1, 4].map(NodeId)),
            voters_outgoing: Members::list([1, 2, 3].map(NodeId)),
            learners: Members::list([NodeId(6)]),
        };
        assert_eq!(members.fault(), None);
        let mut bytes = [0xff; MEMBERS_BYTES];
        members.encode(&mut bytes);
        assert_eq!(Members::decode(&bytes), members);
        let voters: Vec<u16> = Members::nodes(&members.voters).map(|node| node.0).collect();
        assert_eq!(voters, [3, 1, 4]);
        assert_eq!(Members::default().fault(), None, "a node that joins later knows nobody");
        let with = |voters: [u16; 8]| Members { voters, ..Members::default() }.fault();
        assert_eq!(with([1, 2, 3, 4, 5, 6, 7, 0]), None);
        for voters in
            [[1, 0, 2, 0, 0, 0, 0, 0], [1, 2, 1, 0, 0, 0, 0, 0], [1000, 0, 0, 0, 0, 0, 0, 0]]
        {
            assert_eq!(with(voters), Some("member list"), "{voters:?}");
        }
        for learner in [4, 2] {
            let learners = Members::list([NodeId(learner)]);
            assert_eq!(Members { learners, ..members }.fault(), Some("learner that votes"));
        }
        let alone = Members { voters: [0; 8], ..members };
        assert_eq!(alone.fault(), Some("outgoing voters"));
    }
}
