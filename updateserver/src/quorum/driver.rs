//! What the state machine produced: entries to the log, messages to the peers, changes of members.

use raft::StateRole;
use raft::eraftpb::{Entry, EntryType, Message};
use spillway_net::ids::{Epoch, Lsn, NodeId, WallMicros};
use spillway_runtime::slot_ring::{Slot, SlotRing};

use super::cache::CachedEntry;
use super::convert::{header_of, node_of};
use super::effects::{Now, PeerSend, ReplicaEffects};
use super::failure::ReplicaFailure;
use super::flow::WindowChange;
use super::membership::{ConfigEntry, Membership};
use super::ready::Held;
use super::replica::{Replica, config_entry};
use crate::log::{
    EntryBase, EntryFrame, EntryMeta, EntryPlace, FrameKind, PARTITION_SYSTEM, SealIdentity,
    Section,
};
use crate::redo::system_digest;

impl Replica {
    /// Takes one `Ready` out of the state machine.
    pub(super) fn ready(&mut self, now: Now, slots: &mut SlotRing, out: &mut ReplicaEffects) {
        self.elected();
        self.seal_own(now, slots);
        let mut ready = self.raft.ready();
        let number = ready.number();
        let messages = ready.take_messages();
        let persisted_messages = ready.take_persisted_messages();
        let entries = ready.take_entries();
        let committed = ready.take_committed_entries();
        assert!(ready.snapshot().get_metadata().index == 0, "no snapshots");
        if let Some(hard) = ready.hs() {
            self.keeper.set(Epoch(hard.term), node_of(hard.vote), &mut self.writer);
        }
        for entry in &entries {
            self.accept(entry);
        }
        // The entries are readable in the store from here on.
        self.raft.advance_append_async(ready);
        self.touched();
        self.send_now(number, messages, out);
        let (mut write, mut superblock) = (self.write_last, self.keeper.needed());
        let early = match self.leading() {
            Some(_) => spillway_runtime::planted!(OwnAppendCountedEarly),
            None => spillway_runtime::planted!(FollowerAcknowledgesEarly),
        };
        if early {
            write = self.held.write();
        }
        if spillway_runtime::planted!(VoteNotAwaited) {
            superblock = self.keeper.durable();
        }
        self.held.push(Held { number, write, superblock, messages: persisted_messages });
        if let Some(last) = committed.last() {
            self.config_due = Lsn(last.index);
        }
        self.apply_committed(out);
    }

    /// Notes an election that was won.
    fn elected(&mut self) {
        let Some(term) = self.leading() else { return };
        if !self.roles.elect(term) {
            return;
        }
        let last = self.log_end();
        let carried = if spillway_runtime::planted!(ClockNotCarriedOver) {
            WallMicros(0)
        } else {
            last.timestamp
        };
        self.clock = crate::log::BatchClock::new(carried);
        self.peers.lead();
        self.handover.end();
        self.config_proposed = None;
        let inflight = self.options.inflight_messages_max;
        for node in self.membership.nodes() {
            self.raft.raft.adjust_max_inflight_msgs(u64::from(node.0), inflight);
        }
    }

    /// Identity of the last entry of the log, staged ones included.
    pub(super) fn log_end(&self) -> EntryBase {
        match self.staged.back() {
            Some(frame) => EntryBase {
                lsn: frame.shared.index,
                term: frame.shared.entry_term,
                checksum: frame.shared.checksum,
                timestamp: frame.shared.timestamp,
            },
            None => self.raft.store().index.last_identity(),
        }
    }

    /// What the next entry of this leader gets.
    pub(super) fn seal_identity(&mut self, now: Now, term: Epoch) -> SealIdentity {
        let end = self.log_end();
        let timestamp = self.clock.stamp(now.monotonic_nanos, now.wall);
        assert!(timestamp > end.timestamp, "time in the log rises");
        assert!(term >= end.term, "terms in the log never fall");
        SealIdentity {
            cluster: self.options.cluster,
            term,
            index: Lsn(end.lsn.0 + 1),
            previous: end.checksum,
            timestamp,
        }
    }

    /// Makes frames for the entries that the state machine, or a change of members, added.
    fn seal_own(&mut self, now: Now, slots: &mut SlotRing) {
        let staged = |replica: &Self, lsn: Lsn, term: u64| {
            let same = |f: &EntryFrame| f.shared.index == lsn && f.shared.entry_term.0 == term;
            replica.staged.iter().any(same)
        };
        let unstable = self.raft.raft.raft_log.unstable_entries();
        let missing: Vec<(Lsn, u64, EntryType)> = unstable
            .iter()
            .filter(|entry| !staged(self, Lsn(entry.index), entry.term))
            .map(|entry| (Lsn(entry.index), entry.term, entry.get_entry_type()))
            .collect();
        for (lsn, term, kind) in missing {
            assert_eq!(self.leading(), Some(Epoch(term)), "only a leader adds entries");
            let identity = self.seal_identity(now, Epoch(term));
            assert_eq!(identity.index, lsn, "frames are sealed in order");
            let frame = match self.config_proposed.take().filter(|(at, _)| *at == lsn) {
                Some((_, entry)) => {
                    assert_eq!(kind, EntryType::EntryConfChangeV2, "a change of members");
                    self.seal_config(identity, entry, slots)
                }
                None => {
                    assert_eq!(kind, EntryType::EntryNormal, "a no-op");
                    self.roles.first_entry(lsn);
                    self.seal_system(identity, FrameKind::NoOp, &[], slots)
                }
            };
            self.staged.push_back(frame);
        }
    }

    fn seal_config(
        &mut self,
        identity: SealIdentity,
        entry: ConfigEntry,
        slots: &mut SlotRing,
    ) -> EntryFrame {
        let bytes = entry.encode();
        let digest = system_digest(&bytes);
        let section = Section { partition: PARTITION_SYSTEM, digest, bytes: &bytes };
        self.seal_system(identity, FrameKind::Config, &[section], slots)
    }

    fn seal_system(
        &mut self,
        identity: SealIdentity,
        kind: FrameKind,
        sections: &[Section<'_>],
        slots: &mut SlotRing,
    ) -> EntryFrame {
        let sealed = self.assembler.seal_system(identity, kind, sections, slots);
        sealed.unwrap_or_else(|| self.assembler.seal_system_heap(identity, kind, sections))
    }

    /// Takes an entry into the log; it supersedes those with its index and above.
    fn accept(&mut self, entry: &Entry) {
        let (lsn, term) = (Lsn(entry.index), Epoch(entry.term));
        let same = |f: &EntryFrame| f.shared.index == lsn && f.shared.entry_term == term;
        let at = self.staged.iter().position(same).expect("every entry has a frame");
        let frame = self.staged.remove(at).expect("found above");
        assert!(lsn > self.published.lsn, "what is committed is never superseded");
        while self.config_pending.back().is_some_and(|(at, _)| *at >= lsn) {
            self.config_pending.pop_back();
        }
        if frame.shared.kind == FrameKind::Config {
            let entry = config_entry(&self.geometry, lsn, &frame.body);
            self.config_pending.push_back((lsn, entry.expect("checked when it came")));
        }
        self.tail.push(lsn, frame.frame_bytes() as u64, frame.ticket);
        // The state machine's clone of the memory serves, where it has one.
        let shared = entry.data.as_ptr() as usize == frame.body.address();
        let body = frame.body.clone();
        let cached = match shared && entry.data.len() == body.len() {
            true => CachedEntry { term, body, data: entry.data.clone() },
            false => CachedEntry::new(term, body),
        };
        let meta = EntryMeta::of(&frame.shared, EntryPlace::NOWHERE);
        self.raft.mut_store().append(lsn, meta, cached);
        self.write_last = self.writer.write(frame);
        self.writer_due = true;
    }

    /// Sends what a leader may send at once. Only its term and vote must be durable, and they are,
    /// except where it decides alone and has learners.
    fn send_now(&mut self, number: u64, messages: Vec<Message>, out: &mut ReplicaEffects) {
        if messages.is_empty() {
            return;
        }
        assert!(self.leading().is_some() && number > 0, "only a leader sends at once");
        if self.keeper.needed() > self.keeper.durable() {
            self.held.push(Held {
                number: number - 1,
                write: self.held.write(),
                superblock: self.keeper.needed(),
                messages,
            });
            return;
        }
        for message in messages {
            self.send(message, out);
        }
    }

    /// Hands a message to the connection, with the entry in the memory in which it is written.
    pub(super) fn send(&mut self, message: Message, out: &mut ReplicaEffects) {
        let to = node_of(message.to);
        if !self.peers.is_connected(to) || spillway_runtime::fault_point!(PeerMessageLost) {
            return;
        }
        let body = match message.entries.first() {
            None => None,
            Some(entry) => match self.body_of(entry) {
                Some(body) => Some(body),
                // Evicted meanwhile: like a lost message.
                None => return,
            },
        };
        let body_bytes = body.as_ref().map_or(0, |body| body.len() as u32);
        let matched = Lsn(self.matched(to));
        let cluster = self.options.cluster;
        let header = header_of(&message, cluster, self.applied, body_bytes, matched);
        assert_eq!(header.from, self.options.node, "messages are one's own");
        if let Some(entry) = message.entries.first() {
            self.peers.get_mut(to).sent(Lsn(entry.index), u64::from(body_bytes));
        }
        out.sends.push(PeerSend { to, header, body });
    }

    fn body_of(&self, entry: &Entry) -> Option<Slot> {
        let cached = self.raft.store().body(Lsn(entry.index))?;
        (cached.term.0 == entry.term).then(|| cached.body.clone())
    }

    /// Carries out the changes of members among entries that are committed and durable here.
    ///
    /// A leader goes on as it is until it has handed over, where the change would make it a
    /// stranger: the state machine cannot lead without being a member, and the members that do not
    /// know yet that the change is committed may need this one. It comes to that where a node
    /// that leaves is elected with the end of the change in its log.
    fn apply_committed(&mut self, out: &mut ReplicaEffects) {
        let mut end = self.config_due;
        while self.failed.is_none()
            && let Some((lsn, entry)) = self.config_pending.front().copied()
            && lsn <= self.config_due
        {
            let stays = Membership::of_members(&entry.members).kind(self.options.node).is_some();
            if self.leading().is_some() && !stays {
                end = Lsn(lsn.0 - 1);
                break;
            }
            self.config_pending.pop_front();
            self.apply_config(lsn, entry, out);
        }
        if end.0 > self.raft.raft.raft_log.applied() {
            self.raft.advance_apply_to(end.0);
            self.touched();
        }
    }

    fn apply_config(&mut self, lsn: Lsn, entry: ConfigEntry, out: &mut ReplicaEffects) {
        let reason = "it does not fit the members of this node";
        let Ok(changes) = self.membership.take(&entry) else {
            return self.fail(ReplicaFailure::Config { lsn, reason }, out);
        };
        let mut state = self.raft.raft.prs().conf().to_conf_state();
        for change in changes {
            match self.raft.apply_conf_change(&change) {
                Ok(after) => state = after,
                Err(_) => return self.fail(ReplicaFailure::Config { lsn, reason }, out),
            }
            self.touched();
        }
        assert!(self.membership.equals(&state), "{:?} is {state:?}", self.membership);
        out.members = Some(self.membership.nodes());
    }

    /// Opens and closes the windows of the peers. True when one was opened.
    pub(super) fn windows_turn(&mut self) -> bool {
        if self.leading().is_none() {
            return false;
        }
        let bytes_max = self.options.inflight_bytes_max;
        let mut opened = false;
        let mut changes = [const { None }; 16];
        for (slot, peer) in changes.iter_mut().zip(self.peers.iter_mut()) {
            *slot = peer.window_change(bytes_max).map(|change| (peer.node, change));
        }
        for (node, change) in changes.into_iter().flatten() {
            opened |= self.window_set(node, change);
        }
        opened
    }

    fn window_set(&mut self, node: NodeId, change: WindowChange) -> bool {
        let id = u64::from(node.0);
        assert!(self.raft.raft.state == StateRole::Leader, "only a leader has windows");
        if self.raft.raft.prs().get(id).is_none() || node == self.options.node {
            return false;
        }
        let open = change == WindowChange::Open;
        let inflight = if open { self.options.inflight_messages_max } else { 0 };
        self.raft.raft.adjust_max_inflight_msgs(id, inflight);
        if open {
            self.raft.raft.send_append(id);
        }
        self.touched();
        open
    }
}
