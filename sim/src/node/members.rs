//! What the shell does for the members of the cluster: their addresses, who is drained, who takes
//! whose place.

use std::sync::Arc;

use spillway_net::ids::NodeId;
use spillway_net::message::MemberAddress;
use spillway_updateserver::quorum::{MemberKind, Now, ReplicaCommand};
use spillway_updateserver::root::{Member, RootInput};
use spillway_updateserver::shard::RootCommand;

use super::{Node, Scene, Seat};
use crate::Failure;
use crate::worker::address;

/// Where a node is reached, counted from 0.
pub fn member(node: u16) -> Member {
    Member { peer_address: address(node), client_address: address(node) }
}

impl Node {
    /// What clients are told.
    pub(super) fn addresses(&self) -> Arc<[MemberAddress]> {
        let of = |(node, member): (&NodeId, &Member)| MemberAddress {
            node: node.0,
            address: member.client_address.clone(),
        };
        self.known.iter().map(of).collect()
    }

    /// Whether it knows where another node is reached, counted from 0.
    pub fn knows(&self, other: u16) -> bool {
        self.known.contains_key(&NodeId(other + 1))
    }

    /// The members as the quorum knows them here.
    pub fn members(&self, scene: &Scene<'_>) -> Vec<(NodeId, MemberKind)> {
        let now = Now { monotonic_nanos: scene.now, wall: scene.wall };
        let status = self.log.replica.status(now);
        status.members.iter().map(|member| (member.node, member.kind)).collect()
    }

    /// Whether leadership and reads are kept away from a node, as far as this one knows.
    pub fn has_drained(&self, node: NodeId) -> bool {
        self.drained.contains(&node)
    }

    /// The operator's command to the root service of a leader.
    pub fn command(&mut self, command: RootCommand, scene: &mut Scene<'_>) -> Result<(), Failure> {
        if !self.seats[0].leading {
            return Ok(());
        }
        self.root.step(scene.now, RootInput::Internal(command), &mut self.root_effects);
        self.apply_seat(0, scene)?;
        scene.actions.turns.insert(Seat::Shard(0));
        Ok(())
    }

    /// A leader puts the addresses that only its configuration knows into the replicated state.
    pub(super) fn members_propose(&mut self, scene: &Scene<'_>) {
        let is_new = |node: &NodeId| !self.root.members().contains_key(node);
        let news = self.known.iter().filter(|(node, _)| is_new(node));
        for (node, member) in news.map(|(node, member)| (*node, member.clone())).collect::<Vec<_>>()
        {
            let Member { peer_address, client_address } = member;
            let command = RootCommand::MemberSet { node, peer_address, client_address };
            self.root.step(scene.now, RootInput::Internal(command), &mut self.root_effects);
        }
    }

    /// Tells the others of the node which members the root service knows.
    pub(super) fn members_publish(&mut self, scene: &mut Scene<'_>) {
        let members = self.root.members();
        let drained: Vec<NodeId> = self.root.drained().iter().copied().collect();
        if *members == self.members_known && drained == self.drained {
            return;
        }
        let before = std::mem::replace(&mut self.members_known, members.clone());
        self.known.retain(|node, _| members.contains_key(node) || !before.contains_key(node));
        self.known.extend(members.clone());
        self.known_version += 1;
        self.log.published.drained = drained.contains(&NodeId(self.number + 1));
        self.log.commands.push_back(ReplicaCommand::Drained(drained.clone()));
        self.drained = drained;
        scene.actions.turns.insert(Seat::Log);
    }

    /// A leader forgets the addresses of nodes that are members no more.
    pub(super) fn gone_propose(&mut self, scene: &Scene<'_>) {
        if !self.seats[0].leading {
            return;
        }
        if let Some(node) = self.log.gone.pop() {
            let command = RootCommand::MemberRemove { node };
            self.root.step(scene.now, RootInput::Internal(command), &mut self.root_effects);
        }
    }
}
