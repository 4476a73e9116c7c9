//! Leading and following.
//!
//! A shard executes for clients only while it leads. When leadership ends it takes back whatever
//! was not committed, so that it can apply what the next leader has in its log.

use spillway_net::ids::{Epoch, NodeId};
use spillway_net::message::{Refusal, RefusalCode};

use crate::memtable::Stamp;

use super::execute::RETRY_AFTER_MS;
use super::{Shard, ShardEffects};

/// What a shard may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Applies what is committed, and serves reads that may be old.
    Follow,
    /// Executes.
    Lead(Epoch),
    /// Its state is not the leader's: it does nothing any more.
    Diverged,
}

impl Shard {
    /// Whether it executes.
    pub fn leads(&self) -> bool {
        matches!(self.role, Role::Lead(_))
    }

    /// The newest term this shard knows.
    pub(super) fn epoch(&self) -> Epoch {
        match self.role {
            Role::Lead(epoch) => epoch,
            Role::Follow | Role::Diverged => self.log.epoch,
        }
    }

    /// This node leads.
    pub(super) fn lead(&mut self, epoch: Epoch, out: &mut ShardEffects) {
        assert!(self.role == Role::Follow, "only a follower that applied everything leads");
        assert!(epoch > self.epoch_led, "every term has its leader once");
        assert!(self.store.open.is_empty(), "a follower opens no fragments");
        self.role = Role::Lead(epoch);
        self.epoch_led = epoch;
        // Sessions that this node did not know when they were asked for: it may know them now. And
        // those that came before what they follow upon: outcomes of an older session in their slot
        // have taken their place since.
        let sessions = &self.sessions;
        let is_lost = |session, connection| {
            sessions.get(session).is_none_or(|held| held.connection != Some(connection))
        };
        for connection in self.connections.unattached(is_lost) {
            self.connection_closed(connection);
            out.closes.push(connection);
        }
    }

    /// This node does not lead any more: see [`super::ShardInput::StepDown`].
    pub(super) fn step_down(&mut self, stamp: u64, out: &mut ShardEffects) {
        if !self.leads() {
            return;
        }
        let stamp = Stamp(stamp).max(self.store.floor);
        let sessions = &mut self.sessions;
        self.store.rollback_above(stamp, |session, number| {
            if !spillway_runtime::planted!(StepDownKeepsOutcomes) {
                sessions.forget(session, number);
            }
        });
        self.store.tables_show();
        self.role = Role::Follow;
        // What these answers report may or may not come to be: the clients must hear "unknown",
        // and only a lost connection says that.
        self.held.abandon();
        for connection in self.connections.numbers() {
            self.connection_closed(connection);
            out.closes.push(connection);
        }
        assert!(self.store.partitions.iter().all(|partition| partition.is_at_rest()));
    }

    /// The leader as far as it is known, and where its shard 0 listens.
    pub(super) fn leader(&self) -> (NodeId, String) {
        let leader = if self.leads() { self.options.node } else { self.log.leader };
        let member = self.members.iter().find(|member| member.node == leader.0);
        (leader, member.map_or_else(String::new, |member| member.address.clone()))
    }

    /// What a client hears whose request only the leader can serve.
    pub(super) fn refusal_not_leader(&self) -> Refusal {
        let (leader, leader_address) = self.leader();
        let (message, retry_after_ms) = if self.role == Role::Diverged {
            ("this node's data is not what the leader has: ask another node", 0)
        } else if leader.0 == 0 {
            ("no leader is known: an election may be under way", RETRY_AFTER_MS)
        } else if leader == self.options.node {
            ("this node is about to lead: try again", RETRY_AFTER_MS)
        } else {
            ("this node does not lead: ask the leader", 0)
        };
        Refusal {
            retry_after_ms,
            leader: leader.0,
            leader_address,
            ..Refusal::new(RefusalCode::NotLeader, message.to_owned())
        }
    }
}
