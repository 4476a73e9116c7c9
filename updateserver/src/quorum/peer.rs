//! What comes from other nodes, and the reads that it causes.

use raft::StateRole;
use raft::eraftpb::{Message, MessageType};
use spillway_net::ids::{Epoch, Lsn, NodeId};
use spillway_runtime::slot_ring::{Slot, SlotRing};

use super::cache::CachedEntry;
use super::catch_up::ReadPlan;
use super::convert::{append_entry, message_for, node_of};
use super::effects::{EntryReadRequest, Now, PeerSend, ReplicaEffects};
use super::election::leaderless_ticks;
use super::failure::ReplicaFailure;
use super::replica::{Replica, config_entry};
use super::wire::{PeerHeader, PeerMessage};
use crate::log::{EntryFrame, FrameKind, body_verify};

/// Campaigns without waiting for the election timeout after a connection to the leader broke. The
/// others may notice later, and until then they ignore who asks.
const LEADERLESS_TRIES: usize = 20;
/// Ticks between them, beside the node's place in the order of voters.
const LEADERLESS_RETRY_TICKS: usize = 5;

/// The connection to the leader broke, and nobody leads since.
#[derive(Clone, Copy, Debug)]
pub struct LeaderLost {
    leader: NodeId,
    tries: usize,
}

impl Replica {
    /// Before every tick: a node that lost its leader asks again soon. Asking does not disturb a
    /// leader that others hear.
    pub(super) fn leaderless_tick(&mut self) {
        if self.leading().is_none() && self.election_forced() {
            let timeout = self.raft.raft.randomized_election_timeout();
            self.raft.raft.election_elapsed = timeout - 1;
            return;
        }
        let Some(lost) = &mut self.leader_lost else { return };
        let raft = &self.raft.raft;
        if raft.leader_id != raft::INVALID_ID || lost.tries == 0 {
            self.leader_lost = None;
            return;
        }
        let (own, voters) = (self.options.node, self.membership.voters());
        let reluctant = self.drained.contains(&own);
        let term = Epoch(raft.term);
        let place = leaderless_ticks(voters, lost.leader, own, term, reluctant);
        let timeout = raft.randomized_election_timeout();
        let waited = raft.election_elapsed;
        // Real votes go over the disks of all; questions do not.
        let votes = raft.state == StateRole::Candidate;
        let retry = if votes { 4 * LEADERLESS_RETRY_TICKS } else { LEADERLESS_RETRY_TICKS };
        if waited >= retry + place && waited + place + 1 < timeout {
            lost.tries -= 1;
            assert!(lost.tries < LEADERLESS_TRIES, "tries run out");
            self.raft.raft.election_elapsed = timeout - 1;
        }
    }

    /// Whether a test wants an election now. See [`Self::log_is_roomy`].
    fn election_forced(&self) -> bool {
        self.log_is_roomy() && spillway_runtime::fault_point!(ElectionTimeoutNow)
    }

    /// A message of another node.
    pub(super) fn peer_message(
        &mut self,
        now: Now,
        from: NodeId,
        header: PeerHeader,
        frame: Option<EntryFrame>,
        slots: &mut SlotRing,
        out: &mut ReplicaEffects,
    ) {
        assert_eq!(header.message.has_body(), frame.is_some(), "the link delivers whole messages");
        let ours = header.from == from
            && header.to == self.options.node
            && header.cluster == self.options.cluster;
        if !ours || from == self.options.node {
            return;
        }
        let peer = self.peers.get_mut(from);
        peer.heard_nanos = Some(now.monotonic_nanos);
        peer.applied = peer.applied.max(header.applied);
        match header.message {
            PeerMessage::Confirm { round } => self.confirm(&header, round, out),
            PeerMessage::ConfirmReply { round } => {
                if self.leading() == Some(header.term) {
                    self.rounds.answered(from, header.term, round, &self.membership);
                }
            }
            PeerMessage::Fetch { lsn } => self.fetch(from, lsn, out),
            // For a node that repairs its log before it has a replica.
            PeerMessage::FetchReply { .. } => {}
            _ => self.raft_message(now, header, frame, slots, out),
        }
    }

    /// Says from memory whether the term is still the sender's.
    fn confirm(&mut self, header: &PeerHeader, round: u64, out: &mut ReplicaEffects) {
        let raft = &self.raft.raft;
        let follows = raft.state == StateRole::Follower
            && raft.term == header.term.0
            && raft.leader_id == u64::from(header.from.0);
        if !follows || !self.peers.is_connected(header.from) {
            return;
        }
        let reply = self.header(header.from, PeerMessage::ConfirmReply { round });
        assert_eq!(reply.term, header.term, "the term that was asked for");
        out.sends.push(PeerSend { to: header.from, header: reply, body: None });
    }

    /// A message for the state machine, after everything that would stop it was ruled out.
    fn raft_message(
        &mut self,
        now: Now,
        header: PeerHeader,
        frame: Option<EntryFrame>,
        slots: &mut SlotRing,
        out: &mut ReplicaEffects,
    ) {
        let leads = self.leading();
        if self.writer.poisoned().is_some() && leads.is_none() {
            // Nothing that this node says can be durable: it is silent.
            return;
        }
        let current = header.term.0 >= self.raft.raft.term;
        if current && let Err(failure) = self.peer_check(&header, frame.as_ref()) {
            return self.fail(failure, out);
        }
        if self.is_stray(&header, leads) {
            return;
        }
        let Some(mut message) = message_for(&header) else { return };
        self.plant_in(&mut message);
        if let Some(frame) = frame.filter(|_| current) {
            let data = bytes::Bytes::from_owner(frame.body.clone());
            append_entry(&mut message, frame.shared.kind, frame.shared.entry_term, data);
            self.staged.clear();
            self.staged.push_back(frame);
        }
        // Refused are only answers of strangers.
        let stranger = self.raft.step(message).is_err();
        self.touched();
        if !stranger {
            self.flow_answer(&header);
        }
        if spillway_runtime::planted!(CommitsOlderTerm) && self.leading().is_some() {
            let counted = self.membership.quorum_value(|node| self.matched(node));
            self.raft.raft.raft_log.commit_to(counted);
        }
        self.settle(now, slots, out);
        if self.leading().is_none() {
            // Not taken: it did not fit, or is there already.
            self.staged.clear();
        }
    }

    /// Bugs of tests: see [`spillway_runtime::faults`].
    fn plant_in(&mut self, message: &mut Message) {
        let kind = message.get_msg_type();
        let is_vote = kind == MessageType::MsgRequestVote;
        let asks = is_vote || kind == MessageType::MsgRequestPreVote;
        if is_vote && message.term == self.raft.raft.term && spillway_runtime::planted!(VotesTwice)
        {
            self.raft.raft.vote = raft::INVALID_ID;
            self.raft.raft.leader_id = raft::INVALID_ID;
        }
        if asks && spillway_runtime::planted!(VoteForShortLog) {
            (message.log_term, message.index) = (self.raft.raft.term, u64::MAX / 2);
        }
        if kind == MessageType::MsgAppend && spillway_runtime::planted!(LogMatchingSkipped) {
            let own = self.raft.store().index.identity(Lsn(message.index));
            message.log_term = own.map_or(message.log_term, |own| own.term.0);
        }
    }

    /// Messages that no correct node sends, or sends late.
    fn is_stray(&self, header: &PeerHeader, leads: Option<Epoch>) -> bool {
        let last = self.last_index();
        match header.message {
            PeerMessage::Append { .. } | PeerMessage::Heartbeat { .. } => {
                leads == Some(header.term)
            }
            PeerMessage::AppendReply { index, reject: None, .. } => {
                leads == Some(header.term) && index.0 > last
            }
            _ => false,
        }
    }

    fn flow_answer(&mut self, header: &PeerHeader) {
        if self.leading() != Some(header.term) {
            return;
        }
        if let PeerMessage::AppendReply { index, reject, .. } = header.message {
            let peer = self.peers.get_mut(header.from);
            match reject {
                None => peer.answered(index),
                Some(_) => peer.flight_clear(),
            }
        }
    }

    /// Rules R19 and R20, and the order of the log.
    fn peer_check(
        &self,
        header: &PeerHeader,
        frame: Option<&EntryFrame>,
    ) -> Result<(), ReplicaFailure> {
        let last = Lsn(self.last_index());
        match header.message {
            PeerMessage::Heartbeat { commit: known, .. }
            | PeerMessage::Heartbeat { matched: known, .. }
            | PeerMessage::Append { matched: known, .. }
                if known > last =>
            {
                let (leader, term) = (header.from, header.term);
                Err(ReplicaFailure::LogShort { leader, term, known, last })
            }
            PeerMessage::Append { previous, previous_term, entry_term, .. } => {
                let Some(frame) = frame else { return Ok(()) };
                let shared = &frame.shared;
                let named = shared.index.0 == previous.0 + 1
                    && Some(shared.entry_term) == entry_term
                    && shared.cluster == self.options.cluster;
                if !named {
                    return Err(ReplicaFailure::ChainBroken {
                        lsn: shared.index,
                        from: header.from,
                    });
                }
                self.entry_check(header.from, previous_term, frame)
            }
            _ => Ok(()),
        }
    }

    /// An entry that the state machine would take must continue the one before it.
    fn entry_check(
        &self,
        from: NodeId,
        previous_term: Epoch,
        frame: &EntryFrame,
    ) -> Result<(), ReplicaFailure> {
        let (shared, index) = (&frame.shared, &self.raft.store().index);
        let (lsn, term) = (shared.index, shared.entry_term);
        let committed = Lsn(self.raft.raft.raft_log.committed);
        let before = index.identity(Lsn(lsn.0 - 1));
        let Some(before) = before.filter(|before| before.term == previous_term) else {
            // It does not fit, and the state machine says so to the leader.
            return Ok(());
        };
        if let Some(own) = index.get(lsn) {
            if own.term == term && own.checksum != shared.checksum {
                return Err(ReplicaFailure::EntryDiffers { lsn, term, from });
            }
            if own.term != term && lsn <= committed && before.lsn >= committed {
                return Err(ReplicaFailure::CommittedDiffers { lsn, term, committed, from });
            }
        }
        if shared.previous != before.checksum || term < before.term {
            return Err(ReplicaFailure::ChainBroken { lsn, from });
        }
        if shared.timestamp <= before.timestamp {
            let (found, before) = (shared.timestamp, before.timestamp);
            return Err(ReplicaFailure::timestamp_back(lsn, from, found, before));
        }
        if shared.kind == FrameKind::Config {
            config_entry(&self.geometry, lsn, &frame.body)?;
        }
        Ok(())
    }

    pub(super) fn peer_connected(&mut self, node: NodeId) {
        assert!(node != self.options.node, "no connection to oneself");
        let peer = self.peers.get_mut(node);
        peer.lost();
        peer.connected = true;
        if self.leading().is_some() {
            // Whoever came back should not wait for the next heartbeat.
            self.raft.ping();
            self.touched();
        }
    }

    /// A leader tries the peer again when it is back; a follower that lost its leader does not wait
    /// for the election timeout. A node that only its own connection failed asks in vain: the
    /// others hear their leader.
    pub(super) fn peer_lost(&mut self, node: NodeId) {
        self.peers.get_mut(node).lost();
        let id = u64::from(node.0);
        if self.leading().is_some() {
            self.raft.report_unreachable(id);
            self.touched();
            return;
        }
        let raft = &self.raft.raft;
        if raft.state != StateRole::Follower || raft.leader_id != id || !raft.promotable() {
            return;
        }
        let (voters, own) = (self.membership.voters(), self.options.node);
        let reluctant = self.drained.contains(&own);
        let ticks = leaderless_ticks(voters, node, own, Epoch(raft.term), reluctant);
        let timeout = raft.randomized_election_timeout();
        let raft = &mut self.raft.raft;
        raft.leader_id = raft::INVALID_ID;
        raft.election_elapsed = timeout.saturating_sub(ticks + 1);
        self.leader_lost = Some(LeaderLost { leader: node, tries: LEADERLESS_TRIES });
        self.touched();
        assert_eq!(self.raft.raft.leader_id, raft::INVALID_ID, "nobody leads");
    }

    /// A node that repairs its log asks for an entry.
    fn fetch(&mut self, from: NodeId, lsn: Lsn, out: &mut ReplicaEffects) {
        let store = self.raft.store();
        if let Some(cached) = store.body(lsn) {
            let body = cached.body.clone();
            return self.fetch_reply(from, lsn, Some(body), out);
        }
        let Some(checksum) = self.readable(lsn) else {
            return self.fetch_reply(from, lsn, None, out);
        };
        if self.catch_up.want_fetch(lsn, checksum, from) == ReadPlan::Issue {
            self.read(lsn, out);
        }
    }

    fn fetch_reply(&mut self, to: NodeId, lsn: Lsn, body: Option<Slot>, out: &mut ReplicaEffects) {
        if !self.peers.is_connected(to) {
            return;
        }
        let raft = &self.raft.raft;
        let message = PeerMessage::FetchReply {
            lsn,
            found: body.is_some(),
            last: Lsn(raft.raft_log.last_index()),
            commit: Lsn(raft.raft_log.committed),
            leader: node_of(raft.leader_id),
        };
        let body_bytes = body.as_ref().map_or(0, |body| body.len() as u32);
        let header = PeerHeader { body_bytes, ..self.header(to, message) };
        out.sends.push(PeerSend { to, header, body });
    }

    /// Orders the reads that the state machine asked for, and those that follow from them.
    pub(super) fn reads_turn(&mut self, out: &mut ReplicaEffects) {
        while let Some(wanted) = self.raft.mut_store().wanted_take() {
            let lsn = wanted.lsn;
            let Some(checksum) = self.readable(lsn) else { continue };
            if self.catch_up.want(lsn, checksum, wanted.context) == ReadPlan::Issue {
                self.read(lsn, out);
            }
            self.read_ahead(lsn, out);
        }
    }

    /// The checksum of an entry that is on the disk and not in memory.
    fn readable(&self, lsn: Lsn) -> Option<u64> {
        let store = self.raft.store();
        let meta = store.index.get(lsn).filter(|meta| meta.place.is_known())?;
        store.body(lsn).is_none().then_some(meta.checksum)
    }

    /// Entries are asked for one after the other: reads the next few as well.
    fn read_ahead(&mut self, lsn: Lsn, out: &mut ReplicaEffects) {
        for ahead in 1..self.options.reads_max as u64 {
            let next = Lsn(lsn.0 + ahead);
            let many = self.catch_up.in_flight() >= self.options.reads_max;
            if many || spillway_runtime::fault_point!(ReadAheadStopped) {
                return;
            }
            let Some(checksum) = self.readable(next) else { continue };
            if self.catch_up.want_soon(next, checksum) == ReadPlan::Issue {
                self.read(next, out);
            }
        }
    }

    fn read(&mut self, lsn: Lsn, out: &mut ReplicaEffects) {
        let meta = self.raft.store().index.get(lsn).expect("only entries of the log are read");
        let plan = meta.place.read_plan(&self.geometry);
        let (segment, offset, bytes) = (plan.segment, plan.offset, plan.bytes);
        assert!(bytes > 0, "an entry has a body");
        out.reads.push(EntryReadRequest { lsn, segment, offset, bytes });
    }

    /// An entry came back from the disk.
    pub(super) fn entry_read(
        &mut self,
        lsn: Lsn,
        result: Result<Slot, i32>,
        out: &mut ReplicaEffects,
    ) {
        let read = self.catch_up.ended(lsn);
        let meta = self.raft.store().index.get(lsn).copied();
        let Some(meta) = meta.filter(|meta| meta.checksum == read.checksum) else {
            // Superseded meanwhile.
            return;
        };
        let cluster = self.options.cluster;
        let body = result
            .ok()
            .filter(|body| body_verify(&self.geometry, cluster, body, meta.checksum).is_ok());
        let Some(body) = body else {
            self.entries_unreadable += 1;
            self.handover.unreadable();
            for node in read.fetchers {
                self.fetch_reply(node, lsn, None, out);
            }
            return;
        };
        let entry = CachedEntry::new(meta.term, body.clone());
        self.raft.mut_store().read_back.insert(lsn, entry);
        for node in read.fetchers {
            self.fetch_reply(node, lsn, Some(body.clone()), out);
        }
        for context in read.waiters {
            self.raft.on_entries_fetched(context);
            self.touched();
        }
    }
}
