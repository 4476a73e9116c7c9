//! When a leader gives way, and what it sees to at every tick.

use spillway_net::ids::{Lsn, NodeId};
use spillway_net::limits::{NODE_ID_MAX, NODES_MAX};
use spillway_runtime::slot_ring::SlotRing;

use super::effects::{CommandAnswer, CommandRefusal, Now, ReplicaCommand, ReplicaEffects};
use super::membership::{ConfigChange, Replacement};
use super::replica::Replica;
use super::transfer::{Candidate, best, is_ready};
use crate::log::Poisoned;

/// Ticks between attempts to hand over: the state machine gives one up after an election timeout.
const ATTEMPT_TICKS: u64 = 100;
/// Ticks without an answer after which what was sent to a peer is taken for lost.
const WINDOW_TICKS_MAX: u64 = 100;
/// A learner may vote when it is this near to the end of the log, entries.
const LEARNER_BEHIND_MAX: u64 = 64;

/// How much a leader wants another one in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// It is drained, and leads as long as nobody else can.
    Rather,
    /// It is not to lead, whoever takes over.
    Must,
}

/// Attempts to hand over.
#[derive(Debug, Default)]
pub struct Handover {
    /// No attempt before this tick.
    next_tick: u64,
    /// An entry that was committed, and when that was seen, while it was not durable here.
    lag: Option<(Lsn, u64)>,
    /// The own log cannot be read in a place that a peer needs.
    unreadable: bool,
    /// When the log was seen to be poisoned, by ticks.
    poisoned_tick: Option<u64>,
}

impl Handover {
    /// A new leadership has no attempts behind it.
    pub fn end(&mut self) {
        self.next_tick = 0;
        self.lag = None;
        self.unreadable = false;
    }

    /// A read of the own log failed.
    pub fn unreadable(&mut self) {
        self.unreadable = true;
    }

    /// True when an entry has been committed for longer than `nanos_max` and is not durable here.
    fn lags(&mut self, committed: Lsn, durable: Lsn, now_nanos: u64, nanos_max: u64) -> bool {
        self.lag = self.lag.filter(|(lsn, _)| durable < *lsn);
        if committed > durable && self.lag.is_none() {
            self.lag = Some((committed, now_nanos));
        }
        self.lag.is_some_and(|(_, since)| now_nanos.saturating_sub(since) > nanos_max)
    }
}

impl Replica {
    /// At every tick.
    pub(super) fn duties(&mut self, now: Now, slots: &mut SlotRing, out: &mut ReplicaEffects) {
        if self.leading().is_none() || self.failed.is_some() {
            return;
        }
        self.relieve(now, slots, out);
        self.windows_stuck();
        if self.roles.epoch().is_none() {
            // Elected, and not told yet. The shards will not be: see `Replica::publish`.
            if self.log_is_lost() {
                self.give_up();
                self.hand_over(Wish::Must);
            }
            return;
        }
        // A drained leader that nobody can follow goes on with everything else.
        let wish = self.hand_over_wish(now);
        let hands_over = wish.is_some_and(|wish| self.hand_over(wish) || wish == Wish::Must);
        if !hands_over {
            self.membership_turn();
        }
        if let Some((term, round)) = self.rounds.open()
            && (self.ticks.is_multiple_of(self.options.heartbeat_ticks as u64)
                || spillway_runtime::fault_point!(RoundAskedAgain))
        {
            self.confirm_send(term, round, out);
        }
    }

    /// Lets go of connections that hold memory and take nothing when memory is short. The ring
    /// gives memory back in order, so one slow peer would in the end hold all of it. Entries that
    /// nobody needs go first: they fill the ring of any leader, also of one that rests, and a peer
    /// that catches up then would be cut off at every tick and never arrive.
    fn relieve(&mut self, now: Now, slots: &mut SlotRing, out: &mut ReplicaEffects) {
        let total = slots.bytes_total();
        if slots.bytes_used() <= total / 2 {
            return;
        }
        let (room, half) = (total / 4 * 3, self.options.inflight_bytes_max / 2);
        if self.peers.iter().any(|peer| peer.holds_memory() && peer.flight_bytes() >= half) {
            while slots.bytes_used() > room && self.evict(total / 16) {
                slots.reclaim();
            }
        }
        let short = slots.bytes_used() > room;
        let silence = self.options.peer_silence_nanos_max;
        let silent = self.peers.iter().filter(|peer| peer.holds_memory()).filter(|peer| {
            let full = short && peer.flight_bytes() >= half;
            full || peer.silent_nanos(now.monotonic_nanos) > silence
        });
        let nodes: Vec<NodeId> = silent.map(|peer| peer.node).collect();
        for node in nodes {
            assert!(node != self.options.node, "no connection to oneself");
            self.peer_lost(node);
            out.resets.push(node);
        }
    }

    /// A closed window whose answers do not come and do not get lost either: tries again.
    fn windows_stuck(&mut self) {
        let stuck = self
            .peers
            .iter_mut()
            .filter_map(|peer| peer.tick(WINDOW_TICKS_MAX).then_some(peer.node));
        for node in stuck.collect::<Vec<NodeId>>() {
            assert!(node != self.options.node, "no window to oneself");
            self.raft.report_unreachable(u64::from(node.0));
            self.touched();
        }
    }

    fn hand_over_wish(&mut self, now: Now) -> Option<Wish> {
        let node = self.options.node;
        let durable = Lsn(self.raft.raft.raft_log.persisted);
        let lag_max = self.options.disk_lag_nanos_max;
        let (committed, nanos) = (self.published.lsn, now.monotonic_nanos);
        let lags = self.handover.lags(committed, durable, nanos, lag_max);
        let leaves = !self.membership.voters().contains(&node)
            || self.replacement_due().is_some_and(|what| what.old == Some(node));
        let poisoned = self.writer.poisoned().is_some();
        if self.log_is_lost() {
            self.give_up();
        }
        let drained = self.drained.contains(&node);
        let forced = self.log_is_roomy() && spillway_runtime::fault_point!(HandoverWanted);
        let wanted = self.handover.unreadable || forced;
        self.leading()?;
        if lags || leaves || poisoned || wanted || self.stopping {
            Some(Wish::Must)
        } else {
            drained.then_some(Wish::Rather)
        }
    }

    /// While three quarters of the log are free. Every leadership leaves an entry, and those that
    /// it supersedes, on all disks, and nothing gives that room back: a test that forces changes of
    /// leader without end fills the log, and where nothing can be written nobody is elected. The
    /// rest belongs to changes that have a cause.
    pub(super) fn log_is_roomy(&self) -> bool {
        let space = self.writer.space();
        space.used_bytes < space.total_bytes / 4
    }

    /// True when this node cannot write any more and others can.
    fn log_is_lost(&self) -> bool {
        self.writer.poisoned().is_some() && !self.membership.is_alone(self.options.node)
    }

    /// Why nothing is left to do for this node, if so: its log failed, it does not lead, its shards
    /// know that, and others decide. Only a start, which reads back what is durable, makes it a
    /// part of the cluster again. A node that decides alone stays, to tell its clients.
    pub fn ended(&self) -> Option<Poisoned> {
        let through = self.leading().is_none() && self.roles.applies();
        self.writer.poisoned().filter(|_| through && self.log_is_lost())
    }

    /// A leader that cannot write and found nobody to hand over to stops leading.
    fn give_up(&mut self) {
        let since = *self.handover.poisoned_tick.get_or_insert(self.ticks);
        if self.ticks < since + self.options.election_ticks_min as u64 {
            return;
        }
        let term = self.raft.raft.term;
        self.raft.raft.become_follower(term, raft::INVALID_ID);
        self.touched();
        assert!(self.leading().is_none(), "stepped down");
    }

    /// Voters that could lead.
    fn candidates(&self) -> Vec<Candidate> {
        let voters = self.membership.voters().iter().filter(|node| **node != self.options.node);
        let candidate = |node: &NodeId| {
            let progress = self.raft.raft.prs().get(u64::from(node.0));
            Candidate {
                node: *node,
                matched: progress.map_or(0, |progress| progress.matched),
                reachable: self.peers.is_connected(*node)
                    && progress.is_some_and(|progress| progress.matched > 0),
                drained: self.drained.contains(node),
            }
        };
        voters.map(candidate).collect()
    }

    /// Tries to hand over. Returns whether an attempt is under way. Where no other voter is left a
    /// drained one leads: it can, and this node must not.
    fn hand_over(&mut self, wish: Wish) -> bool {
        if self.leading().is_none() {
            return false;
        }
        if self.raft.raft.lead_transferee.is_some() || self.ticks < self.handover.next_tick {
            return true;
        }
        let (mut candidates, last) = (self.candidates(), self.last_index());
        let mut node = best(&candidates, last);
        if node.is_none() && wish == Wish::Must {
            candidates.iter_mut().for_each(|candidate| candidate.drained = false);
            node = best(&candidates, last);
        }
        if let Some(node) = node {
            self.handover.next_tick = self.ticks + ATTEMPT_TICKS;
            self.transfer(node);
        }
        node.is_some()
    }

    fn transfer(&mut self, node: NodeId) {
        assert!(self.membership.voters().contains(&node), "only a voter can lead");
        assert!(node != self.options.node, "to another node");
        self.raft.transfer_leader(u64::from(node.0));
        self.touched();
    }

    /// The replacement whose new voter is ready.
    fn replacement_due(&self) -> Option<Replacement> {
        let what = self.membership.replacement().filter(|_| !self.membership.is_joint())?;
        let progress = self.raft.raft.prs().get(u64::from(what.new.0))?;
        let near = progress.matched + LEARNER_BEHIND_MAX >= self.last_index();
        // After a lost connection only a new acknowledgement shows that it keeps up, and who has
        // everything has none to give.
        let whole = progress.matched == self.last_index() && self.peers.is_connected(what.new);
        let keeps_up = whole || progress.state == raft::ProgressState::Replicate;
        (near && keeps_up).then_some(what)
    }

    /// Goes on with a change of members, whoever began it.
    fn membership_turn(&mut self) {
        if !self.may_change_config() || !self.staged.is_empty() {
            return;
        }
        if self.membership.is_joint() {
            self.propose_config(ConfigChange::Leave);
        } else if let Some(node) = self.membership.learner_superseded() {
            self.propose_config(ConfigChange::LearnerRemove(node));
        } else if let Some(what) = self.replacement_due() {
            self.propose_config(ConfigChange::Promote(what));
        }
    }

    pub(super) fn command(&mut self, command: ReplicaCommand, out: &mut ReplicaEffects) {
        let result = match &command {
            ReplicaCommand::Transfer { to } => self.command_transfer(*to),
            ReplicaCommand::MemberReplace { old, new } => self.command_replace(*old, *new),
            ReplicaCommand::Drained(nodes) => {
                self.drained.clone_from(nodes);
                self.touched();
                Ok(())
            }
        };
        out.answers.push(CommandAnswer { command, result });
    }

    fn command_transfer(&mut self, to: Option<NodeId>) -> Result<(), CommandRefusal> {
        if self.roles.epoch().is_none() || self.leading() != self.roles.epoch() {
            return Err(CommandRefusal::NotLeader);
        }
        if self.raft.raft.lead_transferee.is_some() {
            return Err(CommandRefusal::Busy);
        }
        let (candidates, last) = (self.candidates(), self.last_index());
        let node = match to {
            Some(node) if node == self.options.node => return Ok(()),
            Some(node) => {
                let candidate = candidates.iter().find(|candidate| candidate.node == node);
                let candidate = candidate.ok_or(CommandRefusal::NotVoter(node))?;
                is_ready(candidate, last).then_some(node).ok_or(CommandRefusal::NobodyReady)?
            }
            None => best(&candidates, last).ok_or(CommandRefusal::NobodyReady)?,
        };
        self.transfer(node);
        Ok(())
    }

    fn command_replace(&mut self, old: Option<NodeId>, new: NodeId) -> Result<(), CommandRefusal> {
        if self.roles.epoch().is_none() || self.leading() != self.roles.epoch() {
            return Err(CommandRefusal::NotLeader);
        }
        if !(1..=NODE_ID_MAX).contains(&new.0) {
            return Err(CommandRefusal::NodeId(new));
        }
        if self.membership.is_voter(new) {
            return Err(CommandRefusal::Member(new));
        }
        if let Some(old) = old.filter(|old| !self.membership.voters().contains(old)) {
            return Err(CommandRefusal::NotVoter(old));
        }
        if old.is_none() && self.membership.voters().len() >= NODES_MAX {
            return Err(CommandRefusal::Full);
        }
        if self.membership.is_joint() || !self.may_change_config() {
            return Err(CommandRefusal::Busy);
        }
        self.propose_config(ConfigChange::LearnerAdd(Replacement { old, new }));
        Ok(())
    }
}
