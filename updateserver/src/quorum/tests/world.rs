//! A cluster in virtual time: disks that complete out of order, a network that delays, loses,
//! repeats and is cut, and shards that execute items.

use std::collections::{BTreeMap, BTreeSet};

use spillway_net::ids::{Lsn, NodeId, WallMicros};
use spillway_runtime::slot_ring::Slot;

use super::node::{SimNode, Up, items_of};
use super::oracle::Oracle;
use crate::log::testing::{CLUSTER, Draw, File};
use crate::log::{EntryFrame, Geometry, Members, RawContent, RawFile, ReadRequest};
use crate::quorum::{
    Now, PEER_HEADER_BYTES, PeerHeader, PeerMessage, PeerSend, ReplicaCommand, ReplicaEffects,
    ReplicaInput, Role,
};

/// Sizes of all tests: blocks small enough for many entries.
pub fn geometry() -> Geometry {
    Geometry {
        block_bytes: 512,
        segment_bytes: 256 << 10,
        segments_count: 12,
        partitions: 8,
        batch_bytes_max: 16 << 10,
    }
}

pub const MILLI: u64 = 1_000_000;

pub enum Event {
    Tick { node: u16, boot: u64 },
    Frame { node: u16, boot: u64, sequence: u64 },
    Raw { node: u16, boot: u64, id: u32 },
    Read { node: u16, boot: u64, lsn: Lsn, result: Result<Vec<u8>, i32> },
    Message { from: u16, to: u16, link: u64, header: [u8; PEER_HEADER_BYTES], body: Vec<u8> },
    Acknowledge { node: u16, boot: u64, number: u64 },
    Client,
}

/// Faults of the network.
#[derive(Clone, Default)]
pub struct Net {
    /// One-way cuts, silent.
    pub cut: BTreeSet<(u16, u16)>,
    /// Per thousand.
    pub loss: usize,
    pub repeat: usize,
    /// Longest extra delay.
    pub jitter_nanos: u64,
    /// Messages of one link keep their order.
    pub ordered: bool,
}

pub struct World {
    pub nodes: BTreeMap<u16, SimNode>,
    events: BTreeMap<(u64, u64), Event>,
    count: u64,
    pub now: u64,
    pub draw: Draw,
    pub net: Net,
    /// Generation of the connection between two nodes, and when its last message arrives.
    links: BTreeMap<(u16, u16), (u64, u64)>,
    pub oracle: Oracle,
    pub disk_nanos: BTreeMap<u16, u64>,
    /// Paused processes: their events wait.
    pub paused: BTreeSet<u16>,
    waiting: Vec<(u16, Event)>,
    pub item: u64,
    pub items_max: u64,
    pub item_bytes: usize,
    pub client_nanos: u64,
    pub open_max: usize,
    pub seed: u64,
    pub resets: u64,
    pub reads: u64,
    pub trace: u64,
    pub sent: Vec<(u16, PeerSend)>,
    pub keep_sends: bool,
    /// How slow shards are: they apply once in so many turns, and acknowledge within this time.
    pub apply_once_in: usize,
    pub shard_nanos: u64,
}

impl World {
    /// A cluster of `count` voters, all started.
    pub fn new(seed: u64, count: u16) -> Self {
        let mut world = Self::formatted(seed, count);
        for id in 1..=count {
            world.start(id);
        }
        world
    }

    pub fn formatted(seed: u64, count: u16) -> Self {
        let members = Members::of_voters((1..=count).map(NodeId));
        let node = |id: u16| (id, SimNode::new(geometry(), NodeId(id), members));
        Self {
            nodes: (1..=count).map(node).collect(),
            events: BTreeMap::from([((0, 0), Event::Client)]),
            count: 1,
            now: 0,
            draw: Draw(seed),
            net: Net { jitter_nanos: MILLI / 4, ordered: true, ..Net::default() },
            links: BTreeMap::new(),
            oracle: Oracle::default(),
            disk_nanos: BTreeMap::new(),
            paused: BTreeSet::new(),
            waiting: Vec::new(),
            item: 0,
            items_max: u64::MAX,
            item_bytes: 600,
            client_nanos: 5 * MILLI,
            open_max: 16,
            seed,
            resets: 0,
            reads: 0,
            trace: 0,
            sent: Vec::new(),
            keep_sends: false,
            apply_once_in: 1,
            shard_nanos: MILLI / 10,
        }
    }

    pub fn add(&mut self, delay: u64, event: Event) {
        self.count += 1;
        self.events.insert((self.now + delay, self.count), event);
    }

    fn pair(a: u16, b: u16) -> (u16, u16) {
        (a.min(b), a.max(b))
    }

    fn link(&self, a: u16, b: u16) -> u64 {
        self.links.get(&Self::pair(a, b)).map_or(0, |link| link.0)
    }

    pub fn up(&mut self, id: u16) -> &mut Up {
        self.nodes.get_mut(&id).expect("a node").up.as_mut().expect("it runs")
    }

    pub fn is_up(&self, id: u16) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.up.is_some())
    }

    fn ids(&self) -> Vec<u16> {
        self.nodes.keys().copied().collect()
    }

    pub fn start(&mut self, id: u16) {
        let seed = self.seed;
        let started = self.nodes.get_mut(&id).expect("a node").start(seed);
        started.unwrap_or_else(|damage| panic!("node {id} does not start: {damage}"));
        self.connect(id);
    }

    /// Connects a node that has just started.
    pub fn connect(&mut self, id: u16) {
        let boot = self.nodes[&id].boot;
        self.add(0, Event::Tick { node: id, boot });
        for other in self.ids() {
            if other != id && self.is_up(other) {
                self.links.entry(Self::pair(id, other)).or_default().0 += 1;
                self.step(id, ReplicaInput::PeerConnected(NodeId(other)));
                self.step(other, ReplicaInput::PeerConnected(NodeId(id)));
            }
        }
    }

    /// A process dies with its machine; the others see the connections break.
    pub fn crash(&mut self, id: u16) {
        let node = self.nodes.get_mut(&id).expect("a node");
        node.crash(&mut self.draw);
        self.paused.remove(&id);
        self.waiting.retain(|(node, _)| *node != id);
        for other in self.ids() {
            if other != id {
                self.links.entry(Self::pair(id, other)).or_default().0 += 1;
                if self.is_up(other) {
                    self.step(other, ReplicaInput::PeerLost(NodeId(id)));
                }
            }
        }
    }

    /// Breaks a connection and opens it again.
    pub fn reconnect(&mut self, a: u16, b: u16) {
        self.links.entry(Self::pair(a, b)).or_default().0 += 1;
        for (one, other) in [(a, b), (b, a)] {
            if self.is_up(one) {
                self.step(one, ReplicaInput::PeerLost(NodeId(other)));
            }
        }
        for (one, other) in [(a, b), (b, a)] {
            if self.is_up(one) && self.is_up(other) {
                self.step(one, ReplicaInput::PeerConnected(NodeId(other)));
            }
        }
    }

    pub fn cut(&mut self, a: u16, b: u16) {
        self.net.cut.extend([(a, b), (b, a)]);
    }

    pub fn resume(&mut self, id: u16) {
        self.paused.remove(&id);
        let (mine, rest) = std::mem::take(&mut self.waiting).into_iter().partition(|e| e.0 == id);
        self.waiting = rest;
        let mine: Vec<(u16, Event)> = mine;
        for (_, event) in mine {
            self.add(0, event);
        }
    }

    pub fn now(&self) -> Now {
        // Wall clocks of a simulated cluster run apart a little and begin in 2026.
        Now { monotonic_nanos: self.now, wall: WallMicros(1_790_000_000_000_000 + self.now / 1000) }
    }

    /// Gives a node an input, ends its turn, and performs what it says.
    pub fn step(&mut self, id: u16, input: ReplicaInput) {
        let mut now = self.now();
        now.wall.0 += u64::from(id) * 777;
        let mut out = ReplicaEffects::default();
        let up = self.up(id);
        up.replica.step(now, input, &mut up.slots, &mut out);
        self.perform(id, out);
        for _ in 0..4 {
            let mut out = ReplicaEffects::default();
            let up = self.up(id);
            up.replica.step(now, ReplicaInput::TurnEnd, &mut up.slots, &mut out);
            self.perform(id, out);
            if !self.apply(id) {
                break;
            }
        }
    }

    /// The shards take what is committed.
    fn apply(&mut self, id: u16) -> bool {
        let geometry = geometry();
        let mut applied = None;
        if !self.draw.once_in(self.apply_once_in) {
            return false;
        }
        while let Some((lsn, body)) = self.up(id).replica.apply_next() {
            let (_, checksum, _) = items_of(&geometry, &body);
            assert_eq!(self.oracle.committed.get(&lsn).map(|c| c.0), Some(checksum), "{lsn}");
            let up = self.up(id);
            assert_eq!(up.shards.applied.len() as u64 + 1, lsn.0, "in order");
            if let Some((written, address)) = up.bodies.get(&lsn).filter(|b| b.0 == checksum) {
                assert_eq!((*written, *address), (checksum, body.address()), "the same memory");
            }
            up.shards.applied.push(checksum);
            up.replica.apply_taken();
            applied = Some(lsn);
        }
        if let Some(lsn) = applied {
            let now = self.now();
            let mut out = ReplicaEffects::default();
            let up = self.up(id);
            up.replica.step(now, ReplicaInput::Applied(lsn), &mut up.slots, &mut out);
            self.perform(id, out);
        }
        applied.is_some()
    }

    fn perform(&mut self, id: u16, out: ReplicaEffects) {
        self.trace = self.trace.wrapping_mul(31).wrapping_add(
            out.sends.len() as u64 + 17 * out.writes.len() as u64 + u64::from(out.role.is_some()),
        );
        let follow = out.role.filter(|change| change.role == Role::Follow);
        let mut acknowledge = None;
        if let Some(change) = follow {
            let shards = &mut self.up(id).shards;
            shards.leading = None;
            shards.open.clear();
            shards.rounds.clear();
            shards.applied.truncate(change.barrier.lsn.0 as usize);
            assert_eq!(shards.applied.len() as u64, change.barrier.lsn.0, "nothing is missing");
            acknowledge = Some(change.number);
        }
        if let Some(round) = out.round {
            self.round(id, round);
        }
        if let Some(committed) = out.committed {
            self.committed(id, committed);
        }
        if let Some(change) = out.role.filter(|change| change.role != Role::Follow) {
            self.lead(id, change);
            acknowledge = Some(change.number);
        }
        let boot = self.nodes[&id].boot;
        if let Some(at) = out.next_deadline_nanos {
            let up = self.up(id);
            if up.tick_at.is_none_or(|tick| at < tick) {
                up.tick_at = Some(at);
                let delay = at.saturating_sub(self.now).max(1);
                self.add(delay, Event::Tick { node: id, boot });
            }
        }
        self.perform_disk(id, boot, &out);
        for send in out.sends {
            self.send(id, send);
        }
        let shards = &mut self.up(id).shards;
        shards.failed |= out.failed.is_some();
        shards.poisoned |= out.poisoned.is_some();
        shards.answers.extend(out.answers);
        for node in out.resets {
            self.resets += 1;
            self.links.entry(Self::pair(id, node.0)).or_default().0 += 1;
        }
        if let Some(number) = acknowledge {
            let delay = self.draw.next() % self.shard_nanos.max(1);
            self.add(delay, Event::Acknowledge { node: id, boot, number });
        }
    }

    fn round(&mut self, id: u16, round: crate::quorum::Round) {
        let acked = self.oracle.acked_lsn;
        let node = self.nodes.get_mut(&id).expect("a node");
        let up = node.up.as_mut().expect("it runs");
        if round.started > up.shards.round_started {
            up.shards.round_started = round.started;
            up.shards.rounds.push_back((round.started, acked));
        }
        let confirmed = |begun: &(u64, Lsn)| begun.0 <= round.confirmed;
        while up.shards.rounds.front().is_some_and(confirmed) {
            let (_, acked) = up.shards.rounds.pop_front().expect("seen above");
            let index = &up.replica.raft.store().index;
            let own = index.identity(acked).map(|identity| identity.checksum);
            let truth = self.oracle.committed.get(&acked).map(|entry| entry.0);
            assert!(acked == Lsn(0) || own == truth, "a confirmed leader has what was answered");
        }
    }

    fn committed(&mut self, id: u16, committed: crate::quorum::Committed) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let up = node.up.as_mut().expect("it runs");
        let index = &up.replica.raft.store().index;
        assert!(committed.lsn > up.shards.published, "the committed end moves on");
        for lsn in up.shards.published.0 + 1..=committed.lsn.0 {
            let meta = index.get(Lsn(lsn)).expect("in the log");
            self.oracle.commit(Lsn(lsn), meta);
            if up.shards.leading.is_some() {
                up.shards.applied.push(meta.checksum);
            }
        }
        up.shards.published = committed.lsn;
        assert!(committed.ticket <= up.shards.ticket, "tickets are the node's own");
        let told = std::mem::replace(&mut up.shards.ticket_told, committed.ticket);
        let moved = committed.ticket > told;
        assert!(committed.ticket >= told && (!moved || up.shards.leading.is_some()), "tickets");
        while up.shards.open.front().is_some_and(|(ticket, _)| *ticket <= committed.ticket) {
            let (_, item) = up.shards.open.pop_front().expect("seen above");
            assert_eq!(up.shards.leading, Some(committed.epoch), "answers are of one epoch");
            self.oracle.ack(item, committed.lsn);
        }
    }

    fn lead(&mut self, id: u16, change: crate::quorum::RoleChange) {
        let Role::Lead { epoch } = change.role else { panic!("leads") };
        self.oracle.leads(NodeId(id), epoch);
        let node = self.nodes.get_mut(&id).expect("a node");
        let up = node.up.as_mut().expect("it runs");
        assert_eq!(up.shards.applied.len() as u64, change.barrier.lsn.0, "all is applied");
        up.shards.leading = Some(epoch);
        let index = &up.replica.raft.store().index;
        for (lsn, (checksum, _)) in &self.oracle.committed {
            if self.oracle.terms[lsn] >= epoch {
                // It may be announced late, when another one leads already.
                break;
            }
            let own = index.identity(*lsn).map(|identity| identity.checksum);
            assert_eq!(own, Some(*checksum), "leader completeness at {lsn}");
        }
    }

    fn perform_disk(&mut self, id: u16, boot: u64, out: &ReplicaEffects) {
        let geometry = geometry();
        for write in &out.writes {
            let body = &write.slot[geometry.block()..];
            let (kind, checksum, items) = items_of(&geometry, body);
            let mut entry = None;
            if kind.is_entry() {
                self.oracle.wrote(checksum, items);
                let view = crate::log::BodyView::new(&geometry, body).expect("checked");
                let address = write.slot.address() + geometry.block();
                entry = Some((view.shared.index, checksum));
                self.up(id).bodies.insert(view.shared.index, (checksum, address));
            }
            self.up(id).durable.issue(write.sequence, entry);
            let node = self.nodes.get_mut(&id).expect("a node");
            let file = File::Segment(write.segment);
            node.disk.submit(write.sequence * 2, file, write.offset, write.slot.to_vec());
            let delay = self.disk_delay(id);
            self.add(delay, Event::Frame { node: id, boot, sequence: write.sequence });
        }
        for raw in &out.raw_writes {
            let file = match raw.file {
                RawFile::Segment(segment) => File::Segment(segment),
                RawFile::Superblock => File::Superblock,
            };
            let bytes = match &raw.content {
                RawContent::Zeros(bytes) => vec![0; *bytes as usize],
                RawContent::Bytes(bytes) => bytes.clone(),
            };
            let node = self.nodes.get_mut(&id).expect("a node");
            node.disk.submit(u64::from(raw.id) * 2 + 1, file, raw.offset, bytes);
            let delay = self.disk_delay(id);
            self.add(delay, Event::Raw { node: id, boot, id: raw.id });
        }
        for read in &out.reads {
            self.reads += 1;
            let request =
                ReadRequest { segment: read.segment, offset: read.offset, bytes: read.bytes };
            let result = self.nodes[&id].disk.read(&request).map(<[u8]>::to_vec);
            let delay = self.disk_delay(id);
            self.add(delay, Event::Read { node: id, boot, lsn: read.lsn, result });
        }
    }

    fn disk_delay(&mut self, id: u16) -> u64 {
        let base = self.disk_nanos.get(&id).copied().unwrap_or(MILLI / 5);
        base / 2 + self.draw.next() % base
    }

    /// Rules R8-R10: what must be durable before a message leaves.
    fn check_durable(&self, from: u16, header: &PeerHeader) {
        let node = &self.nodes[&from];
        let up = node.up.as_ref().expect("it sends");
        let superblock = node.disk.superblock().expect("a superblock").superblock;
        match header.message {
            PeerMessage::Vote { pre: false, .. } => {
                assert_eq!((superblock.term, superblock.vote), (header.term, NodeId(from)));
            }
            PeerMessage::VoteReply { pre: false, reject: false, .. } => {
                let vote = superblock.term > header.term || superblock.vote == header.to;
                assert!(superblock.term >= header.term && vote, "a vote is durable");
            }
            PeerMessage::AppendReply { index, reject, .. } => {
                assert!(superblock.term >= header.term, "the term is durable");
                let own = up.replica.raft.store().index.identity(index);
                if reject.is_none() && up.replica.raft.raft.term == header.term.0 {
                    let own = own.expect("what is acknowledged is in the log").checksum;
                    let durable = up.durable.log.get(&index).copied();
                    assert!(index == Lsn(0) || durable == Some(own), "{index} is durable");
                }
            }
            PeerMessage::Append { matched, .. } | PeerMessage::Heartbeat { matched, .. } => {
                assert!(superblock.term >= header.term, "a leader's term is durable");
                let raft = &up.replica.raft.raft;
                let member = raft.prs().get(u64::from(header.to.0)).is_some();
                if raft.term == header.term.0 && member {
                    assert_eq!(matched.0, up.replica.matched(header.to), "what it acknowledged");
                }
            }
            _ => {}
        }
    }

    fn send(&mut self, from: u16, send: PeerSend) {
        let to = send.to.0;
        self.check_durable(from, &send.header);
        let body = send.body.as_ref().map_or(Vec::new(), |body| body.to_vec());
        assert_eq!(body.len(), send.header.body_bytes as usize, "the header names the body");
        let header = send.header.encode();
        if self.keep_sends {
            self.sent.push((from, send));
        }
        if !self.nodes.contains_key(&to) {
            return;
        }
        let lost = self.draw.below(1000) < self.net.loss || self.net.cut.contains(&(from, to));
        let copies = 1 + usize::from(self.draw.below(1000) < self.net.repeat);
        let link = self.link(from, to);
        for _ in 0..if lost { 0 } else { copies } {
            let mut at = self.now + MILLI / 10 + self.draw.next() % self.net.jitter_nanos.max(1);
            if self.net.ordered {
                let last = &mut self.links.entry(Self::pair(from, to)).or_default().1;
                at = at.max(*last + 1);
                *last = at;
            }
            let body = body.clone();
            self.add(at - self.now, Event::Message { from, to, link, header, body });
        }
    }

    fn client(&mut self) {
        let delay = self.client_nanos / 2 + self.draw.next() % self.client_nanos.max(1);
        self.add(delay.max(1), Event::Client);
        for id in self.ids() {
            if !self.is_up(id) || self.paused.contains(&id) || self.item >= self.items_max {
                continue;
            }
            let bytes = 16 + self.draw.below(self.item_bytes);
            let (item, open_max) = (self.item + 1, self.open_max);
            let up = self.up(id);
            if up.shards.open.len() < open_max && up.append(item, bytes) {
                self.item = item;
                if self.draw.once_in(4) {
                    let next = self.up(id).shards.round_started + 1;
                    self.step(id, ReplicaInput::RoundWanted(next));
                } else {
                    self.step(id, ReplicaInput::TurnEnd);
                }
            }
        }
    }

    fn event_node(event: &Event) -> Option<(u16, Option<u64>)> {
        Some(match event {
            Event::Tick { node, boot }
            | Event::Frame { node, boot, .. }
            | Event::Raw { node, boot, .. }
            | Event::Acknowledge { node, boot, .. }
            | Event::Read { node, boot, .. } => (*node, Some(*boot)),
            Event::Message { to, .. } => (*to, None),
            Event::Client => return None,
        })
    }

    fn event(&mut self, event: Event) {
        if let Some((node, boot)) = Self::event_node(&event) {
            if !self.is_up(node) || boot.is_some_and(|boot| boot != self.nodes[&node].boot) {
                return;
            }
            if self.paused.contains(&node) {
                self.waiting.push((node, event));
                return;
            }
        }
        match event {
            Event::Client => self.client(),
            Event::Acknowledge { node, number, .. } => {
                self.step(node, ReplicaInput::RoleAcknowledged(number));
            }
            Event::Tick { node, .. } => {
                let now = self.now;
                let up = self.up(node);
                if up.tick_at.is_some_and(|at| at <= now) {
                    up.tick_at = None;
                }
                self.step(node, ReplicaInput::Tick);
            }
            Event::Frame { node, sequence, .. } => {
                let bytes = self.complete(node, sequence * 2);
                self.up(node).durable.complete(sequence);
                self.step(node, ReplicaInput::WriteCompleted { sequence, result: Ok(bytes) });
            }
            Event::Raw { node, id, .. } => {
                let bytes = self.complete(node, u64::from(id) * 2 + 1);
                self.step(node, ReplicaInput::RawCompleted { id, result: Ok(bytes) });
            }
            Event::Read { node, lsn, result, .. } => {
                let result = result.map(Slot::from_vec);
                self.step(node, ReplicaInput::EntryRead { lsn, result });
            }
            Event::Message { from, to, link, header, body } => {
                if link == self.link(from, to) {
                    self.deliver(from, to, &header, &body);
                }
            }
        }
    }

    fn complete(&mut self, id: u16, write: u64) -> u32 {
        let disk = &mut self.nodes.get_mut(&id).expect("a node").disk;
        let at = disk.pending.iter().position(|pending| pending.id == write).expect("pending");
        disk.complete(at).bytes.len() as u32
    }

    pub fn deliver(&mut self, from: u16, to: u16, header: &[u8], body: &[u8]) {
        let geometry = geometry();
        let header = PeerHeader::decode(&geometry, header).expect("a header of ours");
        let up = self.up(to);
        let frame = if body.is_empty() {
            None
        } else {
            let bytes = geometry.block() + body.len();
            let Some(mut slot) = up.replica.reserve(bytes, &mut up.slots) else {
                // A link would wait; here the message is lost.
                return;
            };
            slot[geometry.block()..].copy_from_slice(body);
            Some(EntryFrame::verify(&geometry, CLUSTER, slot).expect("an entry of ours"))
        };
        self.step(to, ReplicaInput::Peer { from: NodeId(from), header, frame });
    }

    /// Runs for a while.
    pub fn run(&mut self, nanos: u64) {
        let end = self.now + nanos;
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.event(event);
        }
        self.now = end;
    }

    /// Runs until it holds.
    pub fn run_until(&mut self, nanos_max: u64, what: &str, holds: impl Fn(&Self) -> bool) -> u64 {
        let from = self.now;
        while !holds(self) {
            assert!(self.now < from + nanos_max, "seed {}: never: {what}", self.seed);
            self.run(MILLI);
        }
        self.now - from
    }

    /// The node whose shards lead, of the highest epoch.
    pub fn leader(&self) -> Option<u16> {
        let leading = |(id, node): (&u16, &SimNode)| {
            let up = node.up.as_ref().filter(|_| !self.paused.contains(id))?;
            up.shards.leading.map(|epoch| (epoch, *id))
        };
        self.nodes.iter().filter_map(leading).max().map(|(_, id)| id)
    }

    pub fn wait_leader(&mut self) -> u16 {
        self.run_until(10_000 * MILLI, "a leader", |world| world.leader().is_some());
        self.leader().expect("just seen")
    }

    pub fn command(&mut self, id: u16, command: ReplicaCommand) {
        self.step(id, ReplicaInput::Command(command));
    }

    /// Heals everything, lets the cluster settle, and checks what must hold at the end.
    pub fn check_end(&mut self) {
        self.net.cut.clear();
        self.net.loss = 0;
        self.net.repeat = 0;
        self.disk_nanos.clear();
        self.apply_once_in = 1;
        for id in self.ids() {
            self.resume(id);
            if !self.is_up(id) {
                self.start(id);
            }
        }
        self.items_max = self.item;
        self.run(500 * MILLI);
        for (a, b) in self.links.keys().copied().collect::<Vec<_>>() {
            self.reconnect(a, b);
        }
        let settled = |world: &World| {
            let Some(leader) = world.leader() else { return false };
            let end = world.published(leader);
            let last = world.nodes[&leader].up.as_ref().expect("it leads").replica.last_index();
            let all = |id: &u16| world.published(*id) == end;
            end.0 == last && world.nodes.keys().all(all)
        };
        self.run_until(30_000 * MILLI, "all nodes agree", settled);
        let leader = self.leader().expect("settled");
        let log = self.up(leader).shards.applied.clone();
        for id in self.ids() {
            assert_eq!(self.up(id).shards.applied, log, "node {id} applied the same");
        }
        self.oracle.check_end();
    }

    pub fn published(&self, id: u16) -> Lsn {
        self.nodes[&id].up.as_ref().map_or(Lsn(0), |up| up.shards.published)
    }
}
