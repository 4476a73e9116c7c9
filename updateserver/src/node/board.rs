//! Where shard 0 and the log core meet for what is rare: the operator's view of the cluster, the
//! members' addresses, commands. Nobody waits here: a lock is held for a copy, and tried where a
//! busy core asks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spillway_net::ids::NodeId;
use spillway_net::message::MemberAddress;

use crate::peer_book::LogMembers;
use crate::quorum::{ReplicaCommand, ReplicaStatus};

/// A node of the cluster and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub node: NodeId,
    /// Where its peers reach it, `host:port`.
    pub peer_address: String,
    /// Where clients reach its shard 0, `host:port`.
    pub client_address: String,
}

#[derive(Debug, Default)]
struct Content {
    members: Vec<Member>,
    /// Nodes that were members and are none any more.
    removed: Vec<NodeId>,
    /// Whether the root service knows members.
    is_founded: bool,
    drained: Vec<NodeId>,
    status: Option<ReplicaStatus>,
    commands: VecDeque<ReplicaCommand>,
    /// Nodes that are members no more, to be forgotten by the root service.
    gone: Vec<NodeId>,
}

/// Commands that may wait for the log core.
const COMMANDS_MAX: usize = 64;

/// See the module. Shared by all threads of the process.
#[derive(Debug, Default)]
pub(super) struct Board {
    content: Mutex<Content>,
    /// Rises with every change of members or drained nodes.
    version: AtomicU64,
    commands: AtomicU64,
}

impl Board {
    pub fn new(members: Vec<Member>) -> Arc<Self> {
        let content = Content { members, ..Content::default() };
        Arc::new(Self { content: Mutex::new(content), ..Self::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        // A panic of any thread ends the process: the lock is never poisoned.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See the field.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Takes over what the root service knows: addresses replace configured ones.
    pub fn members_merge(&self, members: &[Member], removed: &[NodeId], drained: &[NodeId]) {
        let mut content = self.lock();
        content.members.retain(|known| !removed.contains(&known.node));
        for member in members {
            content.members.retain(|known| known.node != member.node);
            content.members.push(member.clone());
        }
        content.members.sort_by_key(|member| member.node);
        content.drained = drained.to_vec();
        content.removed = removed.to_vec();
        content.is_founded |= !members.is_empty();
        drop(content);
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Nodes that a change of members has left out.
    pub fn gone_note(&self, nodes: impl Iterator<Item = NodeId>) {
        let mut content = self.lock();
        for node in nodes {
            if !content.gone.contains(&node) {
                content.gone.push(node);
            }
        }
    }

    /// The same, for the root service of the leader: all that it has not forgotten yet.
    pub fn gone(&self) -> Vec<NodeId> {
        self.lock().gone.clone()
    }

    /// The root service has forgotten a node, or it is a member again.
    pub fn gone_done(&self, node: NodeId) {
        self.lock().gone.retain(|gone| *gone != node);
    }

    pub fn members(&self) -> Vec<Member> {
        self.lock().members.clone()
    }

    /// For the links to the peers.
    pub fn log_members(&self) -> LogMembers {
        let content = self.lock();
        let of = |member: &Member| (member.node, member.peer_address.clone());
        LogMembers {
            known: content.members.iter().map(of).collect(),
            removed: content.removed.clone(),
            is_founded: content.is_founded,
        }
    }

    pub fn drained(&self) -> Vec<NodeId> {
        self.lock().drained.clone()
    }

    /// What clients are told.
    pub fn addresses(&self) -> Vec<MemberAddress> {
        let of = |member: &Member| MemberAddress {
            node: member.node.0,
            address: member.client_address.clone(),
        };
        self.lock().members.iter().map(of).collect()
    }

    /// For the log core: a newer view, unless somebody is just reading.
    pub fn status_publish(&self, status: ReplicaStatus) {
        if let Ok(mut content) = self.content.try_lock() {
            content.status = Some(status);
        }
    }

    pub fn status(&self) -> Option<ReplicaStatus> {
        self.lock().status.clone()
    }

    /// Leaves a command for the log core. False: too many wait.
    pub fn command(&self, command: ReplicaCommand) -> bool {
        let mut content = self.lock();
        if content.commands.len() >= COMMANDS_MAX {
            return false;
        }
        content.commands.push_back(command);
        drop(content);
        self.commands.fetch_add(1, Ordering::AcqRel);
        true
    }

    /// Whether the log core, which has seen this version, has something to look at. Asked before it
    /// parks: what is left here announces itself by nothing else.
    pub fn has_news(&self, version: u64) -> bool {
        self.commands.load(Ordering::Acquire) > 0 || self.version() != version
    }

    /// The next command, for the log core.
    pub fn command_take(&self) -> Option<ReplicaCommand> {
        if self.commands.load(Ordering::Acquire) == 0 {
            return None;
        }
        let command = self.lock().commands.pop_front();
        if command.is_some() {
            self.commands.fetch_sub(1, Ordering::AcqRel);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_here_is_news_until_it_is_taken() {
        let board = Board::new(Vec::new());
        let seen = board.version();
        assert!(!board.has_news(seen));
        assert!(board.command(ReplicaCommand::Transfer { to: None }));
        assert!(board.has_news(seen), "a command waits");
        assert!(board.command_take().is_some());
        assert!(!board.has_news(seen));
        board.members_merge(&[], &[], &[NodeId(1)]);
        assert!(board.has_news(seen), "a node is drained");
        assert!(!board.has_news(board.version()));
    }
}
