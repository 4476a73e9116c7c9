//! What the shell does for the members of the cluster: their addresses, who is drained, who takes
//! whose place.

use std::sync::Arc;

use spillway_net::ids::NodeId;
use spillway_net::message::MemberAddress;
use spillway_net::peer::{Hello, LogFormat};
use spillway_updateserver::log::Superblock;
use spillway_updateserver::peer_book::{LogMembers, PeerBook};
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

/// Where a node meets the others.
pub struct Door {
    /// Whom it connects to, and lets in.
    pub book: PeerBook,
    hello: Hello,
}

impl Door {
    /// Of a process that has read its superblock, and is configured with these members, counted
    /// from 0.
    pub fn new(superblock: &Superblock, instance: u64, configured: &[u16], now: u64) -> Self {
        let Superblock { cluster, geometry, node, boot, .. } = *superblock;
        let format = LogFormat {
            block_bytes: geometry.block_bytes,
            batch_bytes_max: geometry.batch_bytes_max,
            partitions: geometry.partitions,
        };
        let configured = configured.iter().map(|node| (NodeId(node + 1), address(*node)));
        let (limits, is_founded) = (0, false);
        Self {
            book: PeerBook::new(node, configured.collect(), now),
            hello: Hello { cluster, limits, format, node, boot, instance, is_founded },
        }
    }

    /// What it says of itself now.
    pub fn hello(&self) -> Hello {
        Hello { is_founded: self.book.is_founded(), ..self.hello }
    }
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
        self.members_known.clone_from(members);
        let removed = self.root.removed();
        self.known.retain(|node, _| !removed.contains(node));
        self.known.extend(members.clone());
        self.known_version += 1;
        let of = |(node, member): (&NodeId, &Member)| (*node, member.peer_address.clone());
        let in_log = LogMembers {
            known: self.known.iter().map(of).collect(),
            removed: removed.iter().copied().collect(),
            is_founded: !members.is_empty(),
        };
        self.door.book.set(in_log, scene.now);
        let own = NodeId(self.number + 1);
        scene.actions.resets.extend(removed.iter().filter(|node| **node != own));
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
