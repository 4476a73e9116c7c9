//! The members of the cluster: where they are reached, and from which reads are kept away. Who
//! votes is the quorum's business.

use std::collections::{BTreeMap, BTreeSet};

use spillway_net::ids::NodeId;
use spillway_net::limits::NODES_MAX;
use spillway_net::message::RefusalCode;

use crate::redo::SystemCommand;
use crate::shard::{RootAnswer, RootCommand, RootOrigin};

use super::{Change, Root, RootEffects, answer_done};

/// Bytes of an address, `name:port`.
const ADDRESS_BYTES_MAX: usize = 259;
/// Nodes that may be known at a time: those of a whole cluster that is being replaced.
const MEMBERS_MAX: usize = 2 * NODES_MAX;

/// Where a node is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// By its peers.
    pub peer_address: String,
    /// By clients: its shard 0.
    pub client_address: String,
}

/// A node that shall vote in place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replacement {
    /// Who asked, and waits for an answer.
    pub origin: Option<RootOrigin>,
    /// The node that leaves, if one does.
    pub old: Option<NodeId>,
    /// The node that comes.
    pub new: NodeId,
}

type Decided<T> = Result<T, (RefusalCode, String)>;

impl Root {
    /// The nodes that are known, by committed entries.
    pub fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    /// The nodes from which leadership and reads are kept away, by committed entries.
    pub fn drained(&self) -> &BTreeSet<NodeId> {
        &self.drained
    }

    /// The nodes that were members once and are not, by committed entries. A number is never
    /// given to another disk, so one that is here comes back only by an operator's word.
    pub fn removed(&self) -> &BTreeSet<NodeId> {
        &self.removed
    }

    pub(super) fn cluster_apply(&mut self, command: &SystemCommand) {
        match command {
            SystemCommand::MemberSet { node, peer_address, client_address } => {
                let (peer_address, client_address) = (peer_address.clone(), client_address.clone());
                self.members.insert(NodeId(*node), Member { peer_address, client_address });
                self.removed.remove(&NodeId(*node));
            }
            SystemCommand::MemberRemove { node } => {
                self.members.remove(&NodeId(*node));
                self.drained.remove(&NodeId(*node));
                self.removed.insert(NodeId(*node));
            }
            SystemCommand::ZoneDrain { node, drained: true } => {
                self.drained.insert(NodeId(*node));
            }
            SystemCommand::ZoneDrain { node, drained: false } => {
                self.drained.remove(&NodeId(*node));
            }
            _ => unreachable!("tables and sessions are no members"),
        }
    }

    /// Whether a change of the cluster is under way.
    pub(super) fn changes_cluster(&self) -> bool {
        self.pending.iter().any(|pending| matches!(pending.change, Change::Cluster(..)))
    }

    pub(super) fn cluster_command(
        &mut self,
        origin: Option<RootOrigin>,
        command: RootCommand,
        out: &mut RootEffects,
    ) -> Decided<()> {
        if self.changes_cluster() {
            let text = "another change of the cluster is under way: try again".to_owned();
            return Err((RefusalCode::ClusterBusy, text));
        }
        let (command, replacement) = match command {
            RootCommand::MemberSet { node, .. } if self.removed.contains(&node) => {
                let text = format!("node {node} was a member and is none any more");
                return Err((RefusalCode::ClusterBusy, text));
            }
            RootCommand::MemberSet { node, peer_address, client_address } => {
                (self.member_set(node, peer_address, client_address)?, None)
            }
            RootCommand::MemberReplace { old, new, peer_address, client_address } => {
                if old == Some(new) {
                    let text = "a node that lost its data comes back under a new number";
                    return Err((RefusalCode::Malformed, text.to_owned()));
                }
                old.map_or(Ok(()), |old| self.member_known(old))?;
                (self.member_set(new, peer_address, client_address)?, Some((old, new)))
            }
            RootCommand::MemberRemove { node } => {
                self.member_known(node)?;
                (Some(SystemCommand::MemberRemove { node: node.0 }), None)
            }
            RootCommand::ZoneDrain { node, drained } => (self.zone_drain(node, drained)?, None),
            _ => unreachable!("tables and sessions are no members"),
        };
        match command {
            Some(command) => {
                let stamp = self.propose(command.clone(), out);
                self.wait(origin, Change::Cluster(command, replacement), None, Some(stamp));
            }
            // It is so already. What remains of a replacement the quorum takes while it leads.
            None if replacement.is_some() => answer(origin, replacement, out),
            None => self.answer_of_state(origin, RootAnswer::Done, out),
        }
        Ok(())
    }

    pub(super) fn cluster_committed(
        &mut self,
        origin: Option<RootOrigin>,
        command: &SystemCommand,
        replacement: Option<(Option<NodeId>, NodeId)>,
        out: &mut RootEffects,
    ) {
        self.cluster_apply(command);
        answer(origin, replacement, out);
    }

    /// The entry that makes it so, `None` if it is so.
    fn member_set(
        &self,
        node: NodeId,
        peer_address: String,
        client_address: String,
    ) -> Decided<Option<SystemCommand>> {
        if node.0 == 0 {
            return Err((RefusalCode::Malformed, "0 is no node".to_owned()));
        }
        if [&peer_address, &client_address].iter().any(|address| !is_address(address)) {
            let text = "a node's addresses have the form name:port".to_owned();
            return Err((RefusalCode::Malformed, text));
        }
        if !self.members.contains_key(&node) && self.members.len() >= MEMBERS_MAX {
            let text = format!("{MEMBERS_MAX} nodes are known: remove those that are gone");
            return Err((RefusalCode::LimitReached, text));
        }
        let member = Member { peer_address, client_address };
        if self.members.get(&node) == Some(&member) {
            return Ok(None);
        }
        let Member { peer_address, client_address } = member;
        Ok(Some(SystemCommand::MemberSet { node: node.0, peer_address, client_address }))
    }

    fn zone_drain(&self, node: NodeId, drained: bool) -> Decided<Option<SystemCommand>> {
        self.member_known(node)?;
        if self.drained.contains(&node) == drained {
            return Ok(None);
        }
        let mut others = self.members.keys().filter(|member| **member != node);
        if drained && others.all(|member| self.drained.contains(member)) {
            let text = "it is the last node that is not drained: undrain another one first";
            return Err((RefusalCode::ClusterBusy, text.to_owned()));
        }
        Ok(Some(SystemCommand::ZoneDrain { node: node.0, drained }))
    }

    fn member_known(&self, node: NodeId) -> Decided<()> {
        if self.members.contains_key(&node) {
            return Ok(());
        }
        Err((RefusalCode::ClusterBusy, format!("node {node} is no member of the cluster")))
    }
}

fn is_address(address: &str) -> bool {
    let port = address.rsplit_once(':').filter(|(name, _)| !name.is_empty());
    address.len() <= ADDRESS_BYTES_MAX
        && port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port != 0))
}

/// A replacement is answered by the shell, when the quorum has taken it.
fn answer(
    origin: Option<RootOrigin>,
    replacement: Option<(Option<NodeId>, NodeId)>,
    out: &mut RootEffects,
) {
    match replacement {
        Some((old, new)) => out.replacements.push(Replacement { origin, old, new }),
        None => answer_done(origin, out),
    }
}
