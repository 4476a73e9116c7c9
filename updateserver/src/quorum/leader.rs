//! What only a leader does: take items, make batches of them, propose them.

use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};
use spillway_net::ids::{Epoch, Lsn, WallMicros};
use spillway_runtime::slot_ring::{SlotMut, SlotRing};

use super::effects::{Now, PeerSend, ReplicaEffects, Room};
use super::membership::{ConfigChange, ConfigEntry};
use super::replica::Replica;
use super::wire::{PeerHeader, PeerMessage};
use crate::log::{AssemblerRoom, Section, sections_bytes};

/// Tries to find room by letting go of old entries.
const EVICTIONS_MAX: usize = 4;

impl Replica {
    /// Whether an item of this many sections and payload bytes (each section rounded up to 16) can
    /// be appended now. To be asked again while it says [`Room::Later`]: how long it does decides
    /// [`Self::is_held_up`].
    pub fn room(&mut self, sections: usize, bytes: usize, slots: &mut SlotRing) -> Room {
        let room = self.room_now(sections, bytes, slots);
        match room {
            Room::Later => drop(self.held_up_since.get_or_insert(self.ticks)),
            _ => self.held_up_since = None,
        }
        room
    }

    /// Whether items have found no room for the least time of an election: nothing is committed,
    /// or the log cannot keep up. New work is to be refused, not queued.
    pub fn is_held_up(&self) -> bool {
        let ticks = self.options.election_ticks_min as u64;
        let waits = |since: u64| self.ticks - since >= ticks;
        self.roles.epoch().is_some() && self.held_up_since.is_some_and(waits)
    }

    fn room_now(&mut self, sections: usize, bytes: usize, slots: &mut SlotRing) -> Room {
        if self.writer.poisoned().is_some() {
            return Room::Poisoned;
        }
        if self.roles.epoch().is_none() || self.failed.is_some() {
            return Room::NotLeading;
        }
        let hands_over = self.raft.raft.lead_transferee.is_some();
        if self.stopping || hands_over || spillway_runtime::fault_point!(ItemLater) {
            return Room::Later;
        }
        let tail = self.tail_bytes() + bytes as u64;
        if tail > self.options.tail_bytes_max {
            return Room::Later;
        }
        // The shards refuse new work long before. What they handed over until they knew may use
        // the reserve: it could never be answered otherwise, nor could the node stop in order.
        let frames = self.assembler.frames_with(sections, bytes);
        if !self.writer.has_room(frames, 0) {
            return Room::LogFull(self.writer.space());
        }
        for _ in 0..EVICTIONS_MAX {
            if self.assembler.room(sections, bytes, slots) == AssemblerRoom::Fits {
                return Room::Fits;
            }
            if !self.evict(self.geometry.batch_bytes_max as usize) {
                break;
            }
        }
        Room::Later
    }

    /// Copies an item into the open batch; [`Self::room`] must have said that it fits. False, and
    /// nothing is done, when the item was executed in another epoch than the present one.
    pub fn append(
        &mut self,
        epoch: Epoch,
        ticket: u64,
        sections: &[Section<'_>],
        slots: &mut SlotRing,
    ) -> bool {
        if self.roles.epoch() != Some(epoch) || self.stopping || self.failed.is_some() {
            return false;
        }
        assert!(!sections.is_empty(), "an item has sections");
        assert!(sections_bytes(sections) <= self.geometry.payload_bytes_max(), "it fits a batch");
        self.assembler.append(ticket, sections, slots);
        true
    }

    /// Memory for something that is to be received, if need be in place of entries that nobody here
    /// needs any more. `None`: try again after the next step.
    pub fn reserve(&mut self, bytes: usize, slots: &mut SlotRing) -> Option<SlotMut> {
        assert!(bytes <= slots.bytes_total(), "it fits the ring at all");
        for _ in 0..EVICTIONS_MAX {
            if let Some(slot) = slots.reserve(bytes) {
                return Some(slot);
            }
            if !self.evict(2 * bytes) {
                break;
            }
        }
        let slot = slots.reserve(bytes);
        if slot.is_some() || !self.make_way(slots) {
            return slot;
        }
        slots.reserve(bytes)
    }

    /// Copies the entries that are durable and not known to be committed out of the ring, when
    /// nothing in front of them is left that would be let go of. They stay until a message says
    /// that they are committed, the ring gives nothing back that was reserved behind them, and that
    /// may have been for nothing: entries that came twice, did not fit, or were superseded. False
    /// when there was nothing to do.
    fn make_way(&mut self, slots: &SlotRing) -> bool {
        let log = &self.raft.raft.raft_log;
        let (committed, durable) = (Lsn(log.committed), Lsn(log.persisted));
        if self.applied < committed || durable <= committed {
            return false;
        }
        // No leader is further ahead of what it knows to be committed than a quarter of its ring.
        let bytes_max = slots.bytes_total() as u64 / 2;
        let first = Lsn(committed.0 + 1);
        self.raft.mut_store().cache.move_out(first, durable, bytes_max, slots)
    }

    /// Bytes that are appended and not committed.
    pub(super) fn tail_bytes(&self) -> u64 {
        self.tail.bytes() + self.assembler.pending_bytes() as u64
    }

    /// True when the state machine takes proposals and nothing speaks against one.
    fn may_propose(&self) -> bool {
        let raft = &self.raft.raft;
        let leads = self.roles.epoch().is_some() && self.leading() == self.roles.epoch();
        leads
            && self.failed.is_none()
            && raft.lead_transferee.is_none()
            && self.writer.poisoned().is_none()
            && self.membership.is_voter(self.options.node)
            && self.tail.bytes() < self.options.uncommitted_bytes_max
            && self.writer.pending_count() + self.staged.len() < self.options.backlog_frames_max
    }

    /// Proposes the batches that are ripe. `completion`: some were committed just now.
    pub(super) fn propose_all(&mut self, now: Now, completion: bool, slots: &mut SlotRing) -> bool {
        let mut proposed = false;
        while self.may_propose() && self.is_ripe(completion) {
            self.propose(now, slots);
            proposed = true;
        }
        proposed
    }

    /// What is in flight is what is not committed: with a quorum of fast disks a slow one of one's
    /// own makes no difference.
    fn is_ripe(&self, completion: bool) -> bool {
        let log = &self.raft.raft.raft_log;
        let in_flight = (log.last_index() - log.committed) as usize;
        self.assembler.ripe(in_flight, self.options.writer.in_flight_max, completion)
    }

    /// Seals the next batch and proposes it as one entry, in the memory in which it stands.
    fn propose(&mut self, now: Now, slots: &mut SlotRing) {
        let term = self.leading().expect("only a leader proposes");
        let identity = self.seal_identity(now, term);
        let frame = self.assembler.seal(identity, slots).expect("a ripe batch");
        let data = Bytes::from_owner(frame.body.clone());
        assert_eq!(data.as_ptr() as usize, frame.body.address(), "the same memory");
        let entry = Entry { data, ..Entry::default() };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.id();
        message.entries.push(entry);
        let result = self.raft.step(message);
        self.touched();
        result.expect("a leader that is not handing over takes proposals");
        let log = &self.raft.raft.raft_log;
        assert_eq!(log.last_index(), identity.index.0, "the next index");
        assert_eq!(log.last_term(), term.0, "the present term");
        self.staged.push_back(frame);
    }

    /// True when a change of members can be proposed.
    pub(super) fn may_change_config(&self) -> bool {
        let raft = &self.raft.raft;
        self.may_propose() && !raft.has_pending_conf() && self.config_proposed.is_none()
    }

    /// Proposes a change of members. Its frame is made when the state machine hands it back.
    pub(super) fn propose_config(&mut self, change: ConfigChange) {
        assert!(self.may_change_config(), "one change at a time");
        assert!(self.staged.is_empty(), "in the order of the log");
        let members = self.membership.after(change).to_members();
        let result = self.raft.propose_conf_change(Vec::new(), change.to_raft());
        self.touched();
        result.expect("a leader that is not handing over takes proposals");
        let lsn = spillway_net::ids::Lsn(self.last_index());
        self.config_proposed = Some((lsn, ConfigEntry { change, members }));
    }

    /// The end of the shell's turn: a round of confirmation if somebody waits for one, and the
    /// committed end to the followers if no entry will carry it.
    pub(super) fn turn_end(&mut self, now: Now, slots: &mut SlotRing, out: &mut ReplicaEffects) {
        if self.leading().is_none() || self.failed.is_some() {
            return;
        }
        if !spillway_runtime::fault_point!(RoundDelayed)
            && let Some((term, round)) = self.rounds.begin()
        {
            self.rounds.answered(self.options.node, term, round, &self.membership);
            self.confirm_send(term, round, out);
        }
        let committed = self.published.lsn;
        let idle =
            committed.0 == self.last_index() && !spillway_runtime::fault_point!(CommitNotTold);
        if idle && committed > self.commit_sent && self.roles.epoch().is_some() {
            self.raft.raft.bcast_append();
            self.touched();
            self.commit_sent = committed;
            self.settle(now, slots, out);
        }
    }

    /// Asks all voters whether the term is still this leader's.
    pub(super) fn confirm_send(&mut self, term: Epoch, round: u64, out: &mut ReplicaEffects) {
        assert!(self.rounds.round().started >= round, "a round begins before it is sent");
        for node in self.membership.nodes() {
            let connected = self.peers.is_connected(node);
            if node == self.options.node || !self.membership.is_voter(node) || !connected {
                continue;
            }
            let message = PeerMessage::Confirm { round };
            let header = PeerHeader { term, ..self.header(node, message) };
            out.sends.push(PeerSend { to: node, header, body: None });
        }
    }

    /// A header of this node's present state.
    pub(super) fn header(&self, to: spillway_net::ids::NodeId, message: PeerMessage) -> PeerHeader {
        PeerHeader {
            cluster: self.options.cluster,
            from: self.options.node,
            to,
            term: Epoch(self.raft.raft.term),
            applied: self.applied,
            committed: Lsn(0),
            time: WallMicros(0),
            body_bytes: 0,
            message,
        }
    }
}
