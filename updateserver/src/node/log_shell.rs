//! The log core's shell: takes items from the queue and messages from the peers into the replica
//! core, and moves its effects onto the log ring, the peer links and the shards.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use spillway_net::ids::{ClusterId, Epoch, Lsn, NodeId, WallMicros};
use spillway_net::peer::Message;
use spillway_runtime::buffer::{BufferIndex, BufferPool};
use spillway_runtime::clock;
use spillway_runtime::direct::DirectFile;
use spillway_runtime::disk::{
    DiskCompletion, DiskRing, DiskRingOptions, Durability, FileSlot, WriteRequest, WriteSlotRequest,
};
use spillway_runtime::error::{Errno, RuntimeError};
use spillway_runtime::metrics::{Histogram, Precision};
use spillway_runtime::queue::mpsc::{Consumer, Ticket};
use spillway_runtime::queue::spsc;
use spillway_runtime::queue::state::{StateCell, StateWriter};
use spillway_runtime::slot_ring::{SlotMut, SlotRing};
use spillway_runtime::tcp::{TcpEvent, TcpRing};

use crate::log::{EntryFrame, Geometry, RawContent, RawFile, RawWrite, Section};
use crate::quorum::{
    Freshness, Now, PeerHeader, Replica, ReplicaEffects, ReplicaInput, ReplicaOptions,
    ReplicaStart, Role, RoleChange, Room, Round,
};
use crate::shard::{LogItem, ORIGIN_ROOT};

use super::NodeError;
use super::apply::ApplyEntry;
use super::board::Board;
use super::peers::{PeerEvent, PeerLinks};
use super::published::{Published, ShardWord};
use super::reader::EntryReader;
use super::status::LogNumbers;

/// Marks tokens of writes that are no frames.
const TOKEN_RAW: u64 = 1 << 63;
/// Largest raw write of zeros, bytes.
const ZEROS_BYTES_MAX: usize = 1 << 20;
/// Time between two views for the operator.
const STATUS_NANOS: u64 = 100_000_000;

/// What the log's shell is made of.
pub(super) struct LogShellOptions {
    pub replica: ReplicaOptions,
    pub start: ReplicaStart,
    pub geometry: Geometry,
    pub slots: SlotRing,
    pub files: Vec<DirectFile>,
    pub superblock: DirectFile,
    pub durability: Durability,
    pub queue: Consumer<Box<LogItem>>,
    /// Where emptied items go back, by shard.
    pub recycle: Vec<spsc::Producer<Box<LogItem>>>,
    /// Committed entries for the shards of a follower, by shard.
    pub apply: Vec<spsc::Producer<Arc<ApplyEntry>>>,
    /// What the shards say, by shard.
    pub shards: Vec<StateCell<{ ShardWord::WORDS }>>,
    pub state: StateWriter<{ Published::WORDS }>,
    pub numbers: StateWriter<{ LogNumbers::WORDS }>,
    pub board: Arc<Board>,
    /// Space that must stay free for items already handed over when the log counts as full.
    pub margin_bytes: u64,
}

/// See the module. Lives on the log's thread.
pub(super) struct LogShell {
    replica: Replica,
    cluster: ClusterId,
    node: NodeId,
    geometry: Geometry,
    slots: SlotRing,
    disk: DiskRing,
    segments: Vec<FileSlot>,
    superblock: FileSlot,
    durability: Durability,
    reader: EntryReader,
    queue: Consumer<Box<LogItem>>,
    waiting: Option<(Ticket, Box<LogItem>)>,
    recycle: Vec<spsc::Producer<Box<LogItem>>>,
    apply: Vec<spsc::Producer<Arc<ApplyEntry>>>,
    apply_waits: bool,
    shards: Vec<StateCell<{ ShardWord::WORDS }>>,
    shards_seen: ShardWord,
    state: StateWriter<{ Published::WORDS }>,
    published: Published,
    published_words: [u64; Published::WORDS],
    numbers_out: StateWriter<{ LogNumbers::WORDS }>,
    numbers: LogNumbers,
    status_at_nanos: u64,
    write_times: Histogram,
    effects: ReplicaEffects,
    completions: Vec<DiskCompletion>,
    raw_waiting: VecDeque<RawWrite>,
    raw_buffer: BufferIndex,
    /// Start of each frame write in flight, by sequence.
    started: VecDeque<(u64, u64)>,
    deadline_nanos: Option<u64>,
    margin_bytes: u64,
    board: Arc<Board>,
    board_version: u64,
    peers: Option<PeerLinks>,
    peer_events: Vec<PeerEvent>,
    /// The members as the quorum last told them.
    members: Vec<NodeId>,
    /// What the connection of each peer that has one had not taken when the replica was last told.
    outgoing: Vec<(NodeId, usize)>,
    freshness: Freshness,
    failure: Option<NodeError>,
}

impl LogShell {
    /// Registers files and memory with a ring of their own.
    pub fn new(options: LogShellOptions, peers: Option<PeerLinks>) -> Result<Self, RuntimeError> {
        let geometry = options.geometry;
        let (cluster, node) = (options.start.superblock.cluster, options.start.superblock.node);
        let mut disk = DiskRing::new(DiskRingOptions {
            entries: 64,
            files_max: geometry.segments_count + 1,
            name: "log".to_owned(),
        })?;
        // A raw write is zeros, or header and table of a segment, or a superblock.
        let raw_bytes = (geometry.data_offset() as usize).max(ZEROS_BYTES_MAX);
        let pool = BufferPool::new(1, raw_bytes.next_multiple_of(4096))?;
        if let Some(warning) = disk.register_buffers_and_slots(pool, &options.slots)? {
            eprintln!("warning: {warning}");
        }
        let segments =
            options.files.iter().map(|file| disk.register_file(file)).collect::<Result<_, _>>()?;
        let superblock = disk.register_file(&options.superblock)?;
        let reader = EntryReader::new(&options.files)?;
        Ok(Self {
            replica: Replica::new(options.replica, options.start),
            cluster,
            node,
            geometry,
            slots: options.slots,
            disk,
            segments,
            superblock,
            durability: options.durability,
            reader,
            queue: options.queue,
            waiting: None,
            recycle: options.recycle,
            apply: options.apply,
            apply_waits: false,
            shards: options.shards,
            shards_seen: ShardWord::default(),
            state: options.state,
            published: Published::default(),
            published_words: [0; Published::WORDS],
            numbers_out: options.numbers,
            numbers: LogNumbers::default(),
            status_at_nanos: 0,
            write_times: Histogram::new(Precision::TwoDigits),
            effects: ReplicaEffects::default(),
            completions: Vec::new(),
            raw_waiting: VecDeque::new(),
            raw_buffer: BufferIndex(0),
            started: VecDeque::new(),
            deadline_nanos: Some(0),
            margin_bytes: options.margin_bytes,
            board: options.board,
            board_version: u64::MAX,
            peers,
            peer_events: Vec::new(),
            members: Vec::new(),
            outgoing: Vec::new(),
            freshness: Freshness::default(),
            failure: None,
        })
    }

    /// Readable when a write has completed.
    pub fn fd(&self) -> RawFd {
        self.disk.fd()
    }

    /// Readable when entries were read back.
    pub fn reader_fd(&self) -> RawFd {
        self.reader.fd()
    }

    /// When [`Self::turn`] wants to be called although nothing happened.
    pub fn deadline_nanos(&self) -> Option<u64> {
        let peers = self.peers.as_ref().map(PeerLinks::deadline_nanos);
        self.deadline_nanos.into_iter().chain(peers).min()
    }

    /// Whether there is work that no completion will announce.
    pub fn has_work(&self) -> bool {
        (self.waiting.is_none() && self.queue.is_ready())
            || self.shards_word() != self.shards_seen
            || self.board.has_news(self.board_version)
    }

    /// Takes what concerns the peers; gives the rest back.
    pub fn event(&mut self, ring: &mut TcpRing, event: TcpEvent) -> Option<TcpEvent> {
        match &mut self.peers {
            Some(peers) => peers.event(ring, event),
            None => Some(event),
        }
    }

    /// One turn: completions, messages and items in; writes and messages out. Returns whether
    /// what the shards see changed.
    ///
    /// # Errors
    /// The replica cannot go on; the text says why.
    pub fn turn(&mut self, ring: &mut TcpRing) -> Result<bool, NodeError> {
        let now = clock::monotonic_now().0;
        // Items first: a completion then lets a fuller batch go.
        self.drain();
        self.peers_turn(ring, now);
        self.outgoing_tell(ring);
        self.reap(ring, now);
        self.shards_turn(ring);
        self.freshness_turn(ring);
        self.commands(ring);
        if self.deadline_nanos.is_some_and(|deadline| deadline <= now) {
            self.step(ring, ReplicaInput::Tick);
        }
        loop {
            self.drain();
            let issued = self.numbers.batches;
            self.step(ring, ReplicaInput::TurnEnd);
            if self.numbers.batches == issued || self.waiting.is_none() {
                break;
            }
        }
        let applied = self.apply_push();
        self.disk.submit()?;
        self.reader.submit()?;
        self.status_publish(now);
        let ended = self.replica.ended().map(NodeError::LogFailed);
        match self.failure.take().or(ended) {
            Some(failure) => Err(failure),
            None => Ok(self.publish() || applied),
        }
    }

    fn peers_turn(&mut self, ring: &mut TcpRing, now: u64) {
        let Some(peers) = &mut self.peers else { return };
        let mut events = std::mem::take(&mut self.peer_events);
        let (replica, slots) = (&mut self.replica, &mut self.slots);
        let mut reserve = |bytes: usize| replica.reserve(bytes, slots);
        peers.turn(ring, &mut reserve, now, &mut events);
        for event in events.drain(..) {
            match event {
                PeerEvent::Connected(node) => {
                    self.outgoing.push((node, 0));
                    self.step(ring, ReplicaInput::PeerConnected(node));
                }
                PeerEvent::Lost(node) => {
                    self.outgoing.retain(|(lost, _)| *lost != node);
                    self.step(ring, ReplicaInput::PeerLost(node));
                }
                PeerEvent::Message { from, header, body } => {
                    self.message(ring, from, &header, body);
                }
                PeerEvent::Notice(notice) => eprintln!("{notice}"),
            }
        }
        self.peer_events = events;
    }

    /// One message of a peer. What does not stand up to its checksums is dropped, and the link
    /// with it.
    fn message(
        &mut self,
        ring: &mut TcpRing,
        from: NodeId,
        header: &Message,
        body: Option<SlotMut>,
    ) {
        let header = PeerHeader::decode(&self.geometry, header).ok();
        let header = header.filter(|header| header.from == from && header.cluster == self.cluster);
        let Some(header) = header else { return self.message_lost(ring, from) };
        let frame = match body.map(|body| EntryFrame::verify(&self.geometry, self.cluster, body)) {
            None => None,
            Some(Ok(frame)) => Some(frame),
            Some(Err(fault)) => {
                eprintln!("warning: node {from} sent an entry that is damaged ({fault}): dropped");
                return self.message_lost(ring, from);
            }
        };
        let leader = Some(NodeId(self.published.leader)).filter(|leader| leader.0 > 0);
        self.freshness.heard(leader, from, header.committed, header.time);
        self.step(ring, ReplicaInput::Peer { from, header, frame });
    }

    /// A link that stands has lost nothing, and the peer counts on that: it would wait for an
    /// answer for ever.
    fn message_lost(&mut self, ring: &mut TcpRing, from: NodeId) {
        if let Some(peers) = &mut self.peers {
            peers.reset(ring, from);
        }
    }

    /// Tells the replica what the connections have not taken yet, where that changed.
    fn outgoing_tell(&mut self, ring: &mut TcpRing) {
        for at in 0..self.outgoing.len() {
            let (node, before) = self.outgoing[at];
            let Some(peers) = &self.peers else { return };
            let bytes = peers.outgoing_bytes(ring, node);
            if bytes != before {
                self.outgoing[at].1 = bytes;
                self.step(ring, ReplicaInput::PeerOutgoing { node, bytes });
            }
        }
    }

    /// Tells the shards how fresh this node is. A leader asks for a round of its own now and then,
    /// so that it and its followers can say so.
    fn freshness_turn(&mut self, ring: &mut TcpRing) {
        if self.peers.is_none() {
            return;
        }
        let Published { round_started, round_confirmed, .. } = self.published;
        let round = Round { started: round_started, confirmed: round_confirmed };
        if let Some(round) = self.freshness.round_due(self.now(), round) {
            self.step(ring, ReplicaInput::RoundWanted(round));
        }
        self.published.fresh_micros = self.freshness.fresh().0;
    }

    fn reap(&mut self, ring: &mut TcpRing, _now: u64) {
        let mut completions = std::mem::take(&mut self.completions);
        self.disk.reap(&mut completions);
        let now = clock::monotonic_now().0;
        for completion in completions.drain(..) {
            let result = completion.result.map_err(|Errno(errno)| errno);
            if completion.token & TOKEN_RAW != 0 {
                let id = (completion.token & !TOKEN_RAW) as u32;
                self.step(ring, ReplicaInput::RawCompleted { id, result });
                self.raw_next();
                continue;
            }
            let sequence = completion.token;
            if let Some(at) = self.started.iter().position(|(started, _)| *started == sequence) {
                let (_, started) = self.started.remove(at).expect("found above");
                self.write_times.record(now.saturating_sub(started));
            }
            self.step(ring, ReplicaInput::WriteCompleted { sequence, result });
        }
        self.completions = completions;
        while let Some((lsn, result)) = self.reader.reap() {
            self.step(ring, ReplicaInput::EntryRead { lsn, result });
        }
    }

    /// The least that all shards have done, and the most that any wants.
    fn shards_word(&self) -> ShardWord {
        let mut least = ShardWord { role_number: u64::MAX, applied: u64::MAX, round_wanted: 0 };
        for shard in &self.shards {
            let word = ShardWord::of(shard.read());
            least.role_number = least.role_number.min(word.role_number);
            least.applied = least.applied.min(word.applied);
            least.round_wanted = least.round_wanted.max(word.round_wanted);
        }
        least
    }

    fn shards_turn(&mut self, ring: &mut TcpRing) {
        let word = self.shards_word();
        let seen = std::mem::replace(&mut self.shards_seen, word);
        if word.role_number != seen.role_number {
            self.step(ring, ReplicaInput::RoleAcknowledged(word.role_number));
        }
        if word.applied != seen.applied {
            self.step(ring, ReplicaInput::Applied(Lsn(word.applied)));
        }
        self.freshness.applied(Lsn(word.applied));
        if word.round_wanted > seen.round_wanted {
            self.step(ring, ReplicaInput::RoundWanted(word.round_wanted));
        }
    }

    fn commands(&mut self, ring: &mut TcpRing) {
        while let Some(command) = self.board.command_take() {
            self.step(ring, ReplicaInput::Command(command));
        }
        let version = self.board.version();
        if version == self.board_version {
            return;
        }
        self.board_version = version;
        let drained = self.board.drained();
        self.published.drained = drained.contains(&self.node);
        if let Some(peers) = &mut self.peers {
            peers.members_set(ring, self.board.log_members());
        }
        let command = crate::quorum::ReplicaCommand::Drained(drained);
        self.step(ring, ReplicaInput::Command(command));
    }

    /// Moves items into the open batch until it is full or there are none.
    fn drain(&mut self) {
        loop {
            let Some((ticket, item)) = self.waiting.take().or_else(|| self.queue.pop()) else {
                return;
            };
            if item.epoch.0 != self.published.epoch || !self.published.leading {
                // Of a term that is over: the shard has taken it back, or is about to.
                self.recycle(item);
                continue;
            }
            let sections: Vec<Section<'_>> = item
                .sections
                .iter()
                .map(|section| Section {
                    partition: section.partition,
                    digest: section.digest,
                    bytes: &item.bytes[section.start as usize..section.end as usize],
                })
                .collect();
            let bytes = crate::log::sections_bytes(&sections);
            let room = self.replica.room(sections.len(), bytes, &mut self.slots);
            if !matches!(room, Room::Fits) {
                drop(sections);
                self.waiting = Some((ticket, item));
                return;
            }
            let epoch = Epoch(self.published.epoch);
            let taken = self.replica.append(epoch, ticket.0, &sections, &mut self.slots);
            assert!(taken, "there was room for an item of this term");
            drop(sections);
            self.recycle(item);
        }
    }

    fn recycle(&mut self, mut item: Box<LogItem>) {
        item.clear();
        if item.origin != ORIGIN_ROOT
            && let Some(back) = self.recycle.get_mut(usize::from(item.origin))
        {
            // A full ring only means that the shard has spares enough.
            drop(back.try_push(item));
        }
    }

    fn now(&self) -> Now {
        Now {
            monotonic_nanos: clock::monotonic_now().0,
            wall: WallMicros(clock::wall_now_micros()),
        }
    }

    fn step(&mut self, ring: &mut TcpRing, input: ReplicaInput) {
        let now = self.now();
        let mut effects = std::mem::take(&mut self.effects);
        effects.clear();
        self.replica.step(now, input, &mut self.slots, &mut effects);
        self.carry_out(ring, now.monotonic_nanos, &mut effects);
        self.effects = effects;
    }

    fn carry_out(&mut self, ring: &mut TcpRing, now: u64, effects: &mut ReplicaEffects) {
        if let Some(role) = effects.role {
            self.role_changed(&role);
        }
        if let Some(round) = effects.round {
            self.published.round_started = round.started;
            self.published.round_confirmed = round.confirmed;
        }
        if let Some(committed) = effects.committed {
            self.published.lsn = committed.lsn.0;
            self.published.ticket = committed.ticket;
        }
        if effects.role.is_some() || effects.round.is_some() {
            // Before any message: who answers a request that came since must wait for the next
            // round.
            self.publish();
        }
        // Peers before the own disk: theirs are to work at the same time.
        if let Some(peers) = &mut self.peers {
            let (committed, time) = (Lsn(self.published.lsn), self.freshness.proof());
            for send in effects.sends.drain(..) {
                let header = PeerHeader { committed, time, ..send.header };
                peers.send(ring, send.to, &header.encode(), send.body);
            }
            for node in effects.resets.drain(..) {
                peers.reset(ring, node);
            }
        }
        for write in effects.writes.drain(..) {
            self.started.push_back((write.sequence, now));
            self.numbers.batches += 1;
            self.numbers.bytes += u64::from(write.bytes);
            self.disk.write_slot(WriteSlotRequest {
                file: self.segments[write.segment as usize],
                file_offset: write.offset,
                slot: write.slot,
                durability: self.durability,
                token: write.sequence,
            });
        }
        let idle = self.raw_waiting.is_empty();
        self.raw_waiting.extend(effects.raw_writes.drain(..));
        if idle {
            self.raw_submit();
        }
        for read in effects.reads.drain(..) {
            self.reader.read(&read);
        }
        if let Some(members) = effects.members.take() {
            self.members_changed(members);
        }
        if let Some(leader) = effects.leader {
            self.published.leader = leader.map_or(0, |NodeId(node)| node);
        }
        if let Some(poisoned) = effects.poisoned {
            eprintln!("error: {poisoned}");
            self.published.failed = true;
        }
        for answer in effects.answers.drain(..) {
            if let Err(refusal) = answer.result {
                eprintln!("note: {:?} was not carried out: {refusal}", answer.command);
            }
        }
        if let Some(failure) = effects.failed.take() {
            self.failure = Some(NodeError::Replica(failure));
        }
        self.deadline_nanos = effects.next_deadline_nanos;
    }

    /// A leader sees to it that addresses of former members are forgotten.
    fn members_changed(&mut self, members: Vec<NodeId>) {
        if self.published.leading {
            let gone = self.members.iter().filter(|node| !members.contains(node));
            self.board.gone_note(gone.copied());
        }
        self.members = members;
    }

    fn role_changed(&mut self, change: &RoleChange) {
        assert!(change.number > self.published.role_number, "role changes are numbered upwards");
        self.published.role_number = change.number;
        self.freshness.role_changed(matches!(change.role, Role::Lead { .. }));
        self.published.fresh_micros = 0;
        self.published.barrier_ticket = change.barrier.ticket;
        self.published.barrier_lsn = change.barrier.lsn.0;
        match change.role {
            Role::Lead { epoch } => {
                self.published.leading = true;
                self.published.epoch = epoch.0;
            }
            Role::Follow => self.published.leading = false,
        }
    }

    /// The raw write in front has completed.
    fn raw_next(&mut self) {
        self.raw_waiting.pop_front().expect("a raw write was in flight");
        if self.published.failed {
            // Rounds behind one that failed must not be written.
            self.raw_waiting.clear();
        }
        self.raw_submit();
    }

    /// Raw writes share one buffer, so they go one by one. They are rare: one per segment, and
    /// the superblock's, whose rounds must follow each other.
    fn raw_submit(&mut self) {
        let Some(write) = self.raw_waiting.front() else { return };
        let buffer = self.disk.buffer_mut(self.raw_buffer);
        let bytes = write.content.len() as usize;
        match &write.content {
            RawContent::Zeros(_) => buffer[..bytes].fill(0),
            RawContent::Bytes(content) => buffer[..bytes].copy_from_slice(content),
        }
        let file = match write.file {
            RawFile::Segment(segment) => self.segments[segment as usize],
            RawFile::Superblock => self.superblock,
        };
        self.disk.write(WriteRequest {
            file,
            file_offset: write.offset,
            buffer: self.raw_buffer,
            buffer_offset: 0,
            bytes: bytes as u32,
            durability: self.durability,
            token: TOKEN_RAW | u64::from(write.id),
        });
    }

    /// Gives committed entries to the shards of a follower, as many as all have room for.
    fn apply_push(&mut self) -> bool {
        let mut any = false;
        self.apply_waits = false;
        while let Some((_, body)) = self.replica.apply_next() {
            if self.apply.iter_mut().any(|shard| shard.room() == 0) {
                self.apply_waits = true;
                break;
            }
            let entry = ApplyEntry::of(&self.geometry, body);
            for shard in &mut self.apply {
                let pushed = shard.try_push(Arc::clone(&entry));
                assert!(pushed.is_ok(), "room was asked for before");
            }
            self.replica.apply_taken();
            any = true;
        }
        any
    }

    fn publish(&mut self) -> bool {
        let space = self.replica.space();
        self.published.limited = self.replica.is_held_up();
        self.published.full = space.used_bytes + self.margin_bytes >= space.total_bytes;
        let words = self.published.words();
        if self.published_words == words {
            return false;
        }
        self.published_words = words;
        self.state.publish(words);
        true
    }

    /// Percentiles and the view of the cluster are read by others: now and then, not per batch.
    fn status_publish(&mut self, now: u64) {
        if now.saturating_sub(self.status_at_nanos) < STATUS_NANOS {
            return;
        }
        self.status_at_nanos = now;
        self.numbers.write_p50_nanos = self.write_times.percentile(50.0);
        self.numbers.write_p99_nanos = self.write_times.percentile(99.0);
        let space = self.replica.space();
        self.numbers.used_bytes = space.used_bytes;
        self.numbers.total_bytes = space.total_bytes;
        self.numbers_out.publish(self.numbers.words());
        let now = self.now();
        self.board.status_publish(self.replica.status(now));
    }

    /// Begins the orderly end; the log is quiet when [`Self::is_quiet`] says so.
    pub fn shutdown(&mut self, ring: &mut TcpRing) -> Result<(), NodeError> {
        self.replica.shutdown();
        self.step(ring, ReplicaInput::Tick);
        self.disk.submit()?;
        Ok(())
    }

    /// Ends the links to the peers, who then know at once.
    pub fn links_end(&mut self, ring: &mut TcpRing) {
        if let Some(peers) = &mut self.peers {
            peers.stop(ring);
        }
    }

    /// Whether nothing is in flight or waiting.
    pub fn is_quiet(&self) -> bool {
        self.published.failed || (self.replica.is_quiet() && self.disk.in_flight() == 0)
    }
}
