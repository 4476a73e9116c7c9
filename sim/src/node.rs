//! The node: the production cores, and around them in one thread what the shells do.
//!
//! A seat is what has a thread of its own in production: each shard, and the log. Seats take turns
//! at drawn times and see of each other only what the queues and the published state carry.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use spillway_net::frame::{Assembled, FrameAssembler, FrameHeader, HEADER_BYTES};
use spillway_net::ids::{Lsn, WallMicros};
use spillway_net::limits::FRAME_PAYLOAD_BYTES_MAX;
use spillway_net::message::HELLO_BYTES_MAX;
use spillway_updateserver::log::{
    BatchBuffers, Geometry, LogEffects, LogInput, LogWriter, LogWriterOptions, RawContent,
    RawWrite, Room, Section, Superblock, batch_buffer_bytes, sections_bytes,
};
use spillway_updateserver::redo::PARTITION_SYSTEM;
use spillway_updateserver::root::{Root, RootEffects, RootInput};
use spillway_updateserver::shard::{
    InboundFrame, LogItem, LogState, ORIGIN_ROOT, Released, RootOrder, Shard, ShardEffects,
    ShardInput,
};

use crate::Failure;
use crate::disk::File;
use crate::draw::Draw;
use crate::options::{Bug, Sizes};
use crate::oracle::Oracle;
use crate::start::Started;

/// Bytes of frames that one turn executes, so that an item fits the small batches.
const TURN_BYTES_MAX: usize = 10 << 10;

/// Who takes a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seat {
    /// A shard.
    Shard(u16),
    /// The log.
    Log,
}

/// What a write was for.
#[derive(Clone, Debug)]
pub enum Token {
    /// A frame: its sequence, and the buffer it is written from.
    Frame(u64, u16, u32),
    /// Something else in a segment.
    Raw(u32),
    /// A copy of the superblock.
    Superblock,
}

/// What the node wants of the world.
#[derive(Debug, Default)]
pub struct Actions {
    /// Bytes for clients.
    pub frames: Vec<(u64, Vec<u8>)>,
    /// Connections to close behind them.
    pub closes: Vec<u64>,
    /// Writes.
    pub writes: Vec<(File, u64, Vec<u8>, Token)>,
    /// Seats that have something to do.
    pub turns: BTreeSet<Seat>,
}

/// What a section holds, as it went into the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntrySection {
    /// Its partition.
    pub partition: u16,
    /// Sum of its records' digests.
    pub digest: u128,
    /// Its redo.
    pub bytes: Vec<u8>,
}

/// Entries of the log by LSN: the record of what was appended, and in place of a baseline for
/// those below the floor.
pub type Entries = BTreeMap<u64, Vec<EntrySection>>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Published {
    lsn: u64,
    ticket: u64,
    full: bool,
    failed: bool,
}

struct Peer {
    assembler: FrameAssembler,
    first_frame: bool,
}

struct ShardSeat {
    shard: Shard,
    effects: ShardEffects,
    peers: BTreeMap<u64, Peer>,
    inbound: VecDeque<(u64, FrameHeader, Vec<u8>)>,
    backlog: VecDeque<Box<LogItem>>,
    handed_over: VecDeque<(u64, u16, u64)>,
    committed: u64,
    committed_root: u64,
    seen: Published,
    orders: VecDeque<RootOrder>,
    #[expect(clippy::vec_box, reason = "the shard hands boxes over and takes boxes back")]
    recycled: Vec<Box<LogItem>>,
}

struct Checkpoint {
    next: Superblock,
    round: usize,
    left: usize,
}

struct Buffers(Vec<Vec<u8>>);

impl BatchBuffers for Buffers {
    fn buffer_mut(&mut self, index: u16) -> &mut [u8] {
        &mut self.0[usize::from(index)]
    }

    fn count(&self) -> u16 {
        self.0.len() as u16
    }
}

/// What a step of the node works with.
pub struct Scene<'a> {
    /// Virtual time.
    pub now: u64,
    /// Sizes of the run.
    pub sizes: &'a Sizes,
    /// The planted bug.
    pub bug: Option<Bug>,
    /// The judge.
    pub oracle: &'a mut Oracle,
    /// Chance.
    pub draw: &'a mut Draw,
    /// What was appended.
    pub entries: &'a mut Entries,
    /// What is wanted.
    pub actions: &'a mut Actions,
}

/// See the module.
pub struct Node {
    seats: Vec<ShardSeat>,
    root: Root,
    root_effects: RootEffects,
    /// Acknowledged orders on their way to the root service, by shard.
    done: VecDeque<u16>,
    writer: LogWriter,
    buffers: Buffers,
    log_effects: LogEffects,
    queue: VecDeque<(u64, Box<LogItem>)>,
    queue_max: usize,
    ticket: u64,
    waiting: Option<(u64, Box<LogItem>)>,
    raw_waiting: VecDeque<RawWrite>,
    published: Published,
    shown: Published,
    /// Ticket and LSN of what was appended.
    appended: Vec<(u64, u64)>,
    margin_bytes: u64,
    superblock: Superblock,
    checkpoint: Option<Checkpoint>,
    /// When the log wants a tick.
    pub log_deadline: Option<u64>,
    /// Whether the log device has failed.
    pub failed: bool,
}

fn margin_bytes(geometry: &Geometry, queue_items: usize) -> u64 {
    let total = u64::from(geometry.segment_bytes) * u64::from(geometry.segments_count);
    let wanted = (queue_items + 8) as u64 * u64::from(geometry.batch_bytes_max)
        + 3 * u64::from(geometry.segment_bytes);
    wanted.min(total / 2)
}

impl Node {
    /// A node that has read its log and written its superblock.
    pub fn new(started: Started, sizes: &Sizes) -> Self {
        let Started { shards, root, recovered, digests, superblock, .. } = started;
        let geometry = sizes.geometry;
        let buffers = sizes.in_flight_max as u16 + 3;
        let options = LogWriterOptions {
            cluster: superblock.cluster,
            node: superblock.node,
            term: superblock.term,
            vote: superblock.vote,
            boot: superblock.boot,
            in_flight_max: sizes.in_flight_max,
            in_flight_small_max: 1 + sizes.batch_bytes_wait % 2,
            batch_bytes_wait: sizes.batch_bytes_wait,
            watermark_idle_nanos: sizes.watermark_idle_nanos,
            buffers,
        };
        let queue_max = (shards.len() * sizes.handovers_max as usize + 64).next_power_of_two();
        let seat = |shard| ShardSeat {
            shard,
            effects: ShardEffects::default(),
            peers: BTreeMap::new(),
            inbound: VecDeque::new(),
            backlog: VecDeque::new(),
            handed_over: VecDeque::new(),
            committed: 0,
            committed_root: 0,
            seen: Published::default(),
            orders: VecDeque::new(),
            recycled: Vec::new(),
        };
        let published = Published { lsn: recovered.last_lsn.0, ..Published::default() };
        Self {
            seats: shards.into_iter().map(seat).collect(),
            root,
            root_effects: RootEffects::default(),
            done: VecDeque::new(),
            writer: LogWriter::new(options, recovered.position, digests),
            buffers: Buffers(
                (0..buffers).map(|_| vec![0xa5; batch_buffer_bytes(&geometry)]).collect(),
            ),
            log_effects: LogEffects::default(),
            queue: VecDeque::new(),
            queue_max,
            ticket: 0,
            waiting: None,
            raw_waiting: VecDeque::new(),
            published,
            shown: published,
            appended: Vec::new(),
            margin_bytes: margin_bytes(&geometry, queue_max),
            superblock,
            checkpoint: None,
            log_deadline: None,
            failed: false,
        }
    }

    /// A client connected to a shard.
    pub fn accepted(&mut self, shard: u16, connection: u64, scene: &mut Scene<'_>) {
        let seat = &mut self.seats[usize::from(shard)];
        let peer = Peer { assembler: FrameAssembler::default(), first_frame: true };
        seat.peers.insert(connection, peer);
        scene.oracle.opened(shard, connection);
        seat.shard.step(scene.now, ShardInput::Opened(connection), &mut seat.effects);
    }

    /// A connection is gone.
    pub fn closed(&mut self, shard: u16, connection: u64, scene: &mut Scene<'_>) {
        let seat = &mut self.seats[usize::from(shard)];
        if seat.peers.remove(&connection).is_some() {
            scene.oracle.closed(shard, connection);
            seat.shard.step(scene.now, ShardInput::Closed(connection), &mut seat.effects);
        }
    }

    /// Bytes arrived.
    pub fn received(
        &mut self,
        shard: u16,
        connection: u64,
        mut bytes: &[u8],
        scene: &mut Scene<'_>,
    ) -> Result<(), Failure> {
        let seat = &mut self.seats[usize::from(shard)];
        let Some(peer) = seat.peers.get_mut(&connection) else { return Ok(()) };
        loop {
            let limit = if peer.first_frame { HELLO_BYTES_MAX } else { FRAME_PAYLOAD_BYTES_MAX };
            let next = peer.assembler.next(&mut bytes, limit, &mut Vec::new());
            let (header, frame) = match next {
                Ok(Assembled::InPlace(header, frame)) => (header, frame.to_vec()),
                Ok(Assembled::Owned(header, frame)) => (header, frame),
                Ok(Assembled::Incomplete) => break,
                Err(error) => return Err(Failure::new(format!("a client's frame: {error}"))),
            };
            peer.first_frame = false;
            seat.inbound.push_back((connection, header, frame));
        }
        scene.actions.turns.insert(Seat::Shard(shard));
        Ok(())
    }

    /// A shard's turn.
    pub fn shard_turn(&mut self, shard: u16, scene: &mut Scene<'_>) -> Result<(), Failure> {
        let at = usize::from(shard);
        self.log_moved(shard, scene)?;
        self.root_turn(shard, scene);
        self.apply(shard, scene)?;
        let seat = &mut self.seats[at];
        if !seat.inbound.is_empty() && seat.backlog.is_empty() && seat.shard.accepts_frames() {
            let (mut count, mut bytes) = (0, 0);
            for (_, _, frame) in seat.inbound.iter().take(scene.sizes.turn_frames) {
                bytes += frame.len();
                if count > 0 && bytes > TURN_BYTES_MAX {
                    break;
                }
                count += 1;
            }
            let inbound: Vec<_> = seat
                .inbound
                .iter()
                .take(count)
                .map(|(connection, header, frame)| InboundFrame {
                    connection: *connection,
                    header: *header,
                    payload: &frame[HEADER_BYTES..],
                })
                .collect();
            seat.shard.step(scene.now, ShardInput::Frames(&inbound), &mut seat.effects);
            // The shard may leave some for later; what it took the model executes too.
            for (connection, header, frame) in seat.inbound.drain(..seat.effects.frames_taken) {
                scene.oracle.execute(shard, connection, &header, &frame[HEADER_BYTES..])?;
            }
            seat.shard.step(scene.now, ShardInput::TurnEnd, &mut seat.effects);
            self.apply(shard, scene)?;
        }
        self.hand_over(shard, scene);
        let seat = &self.seats[at];
        if !seat.inbound.is_empty() && seat.backlog.is_empty() && seat.shard.accepts_frames() {
            scene.actions.turns.insert(Seat::Shard(shard));
        }
        Ok(())
    }

    fn log_moved(&mut self, shard: u16, scene: &mut Scene<'_>) -> Result<(), Failure> {
        let mut published = self.shown;
        let seat = &mut self.seats[usize::from(shard)];
        for item in seat.recycled.drain(..) {
            seat.shard.recycle(item);
        }
        if scene.bug == Some(Bug::AnswerBeforeCommit) {
            published.ticket = self.ticket;
        }
        if published == seat.seen {
            return Ok(());
        }
        let failed = published.failed && !seat.seen.failed;
        seat.seen = published;
        let mut root_moved = false;
        while let Some((ticket, origin, stamp)) = seat.handed_over.front().copied() {
            if ticket > published.ticket {
                break;
            }
            seat.handed_over.pop_front();
            if origin == ORIGIN_ROOT {
                seat.committed_root = stamp;
                root_moved = true;
            } else {
                seat.committed = stamp;
            }
        }
        let state =
            LogState { vdl: Lsn(published.lsn), full: published.full, failed: published.failed };
        let input = ShardInput::Log { stamp: seat.committed, state };
        seat.shard.step(scene.now, input, &mut seat.effects);
        if root_moved {
            let input = RootInput::Committed { stamp: seat.committed_root };
            self.root.step(scene.now, input, &mut self.root_effects);
        }
        self.apply(shard, scene)?;
        if failed {
            scene.oracle.log_failed(shard);
        }
        Ok(())
    }

    fn root_turn(&mut self, shard: u16, scene: &mut Scene<'_>) {
        if shard == 0 {
            while let Some(shard) = self.done.pop_front() {
                let input = RootInput::OrderDone { shard };
                self.root.step(scene.now, input, &mut self.root_effects);
            }
            return;
        }
        let seat = &mut self.seats[usize::from(shard)];
        while let Some(order) = seat.orders.pop_front() {
            seat.shard.step(scene.now, ShardInput::Root(order), &mut seat.effects);
        }
    }

    fn apply(&mut self, shard: u16, scene: &mut Scene<'_>) -> Result<(), Failure> {
        loop {
            let seat = &mut self.seats[usize::from(shard)];
            let mut effects = std::mem::take(&mut seat.effects);
            for frame in &effects.released.frames {
                let bytes = &effects.released.bytes[frame.start..frame.end];
                scene.oracle.released(shard, frame.connection, bytes)?;
            }
            send(&effects.released, scene);
            for connection in effects.closes.drain(..) {
                scene.actions.closes.push(connection);
            }
            seat.backlog.extend(effects.items.drain(..));
            for (origin, command) in effects.root_commands.drain(..) {
                let input = RootInput::Command(origin, command);
                self.root.step(scene.now, input, &mut self.root_effects);
            }
            for _ in 0..effects.orders_done {
                if shard == 0 {
                    let input = RootInput::OrderDone { shard: 0 };
                    self.root.step(scene.now, input, &mut self.root_effects);
                } else {
                    self.done.push_back(shard);
                    scene.actions.turns.insert(Seat::Shard(0));
                }
            }
            effects.clear();
            seat.effects = effects;
            if shard != 0 || !self.root_effects(scene) {
                return Ok(());
            }
        }
    }

    fn root_effects(&mut self, scene: &mut Scene<'_>) -> bool {
        let mut effects = std::mem::take(&mut self.root_effects);
        for (at, seat) in self.seats.iter_mut().enumerate().skip(1) {
            if scene.bug == Some(Bug::OrderLost) && scene.draw.once_in(2) {
                continue;
            }
            seat.orders.extend(effects.orders.iter().cloned());
            if !effects.orders.is_empty() {
                scene.actions.turns.insert(Seat::Shard(at as u16));
            }
        }
        let ordered = !effects.orders.is_empty();
        let seat = &mut self.seats[0];
        for order in effects.orders.drain(..) {
            seat.shard.step(scene.now, ShardInput::Root(order), &mut seat.effects);
        }
        seat.backlog.extend(seat.effects.items.drain(..));
        seat.backlog.extend(effects.items.drain(..));
        send(&effects.answers, scene);
        effects.clear();
        self.root_effects = effects;
        ordered
    }

    fn hand_over(&mut self, shard: u16, scene: &mut Scene<'_>) {
        let seat = &mut self.seats[usize::from(shard)];
        while self.queue.len() < self.queue_max
            && let Some(item) = seat.backlog.pop_front()
        {
            self.ticket += 1;
            seat.handed_over.push_back((self.ticket, item.origin, item.stamp));
            self.queue.push_back((self.ticket, item));
            scene.actions.turns.insert(Seat::Log);
        }
        if !seat.backlog.is_empty() {
            scene.actions.turns.insert(Seat::Shard(shard));
        }
    }

    /// The root service's tick.
    pub fn tick(&mut self, scene: &mut Scene<'_>) -> Result<(), Failure> {
        let log_takes = !self.shown.full && !self.shown.failed;
        self.root.step(scene.now, RootInput::Tick { log_takes }, &mut self.root_effects);
        self.apply(0, scene)?;
        scene.actions.turns.insert(Seat::Shard(0));
        Ok(())
    }

    /// The log's turn.
    pub fn log_turn(&mut self, scene: &mut Scene<'_>) -> Result<(), Failure> {
        if self.log_deadline.is_some_and(|deadline| deadline <= scene.now) {
            self.log_step(LogInput::Tick, scene);
        }
        loop {
            self.drain(scene)?;
            let writes = scene.actions.writes.len();
            self.log_step(LogInput::TurnEnd, scene);
            if scene.actions.writes.len() == writes || self.waiting.is_none() {
                break;
            }
        }
        self.publish(scene);
        Ok(())
    }

    fn publish(&mut self, scene: &mut Scene<'_>) {
        let space = self.writer.space();
        self.published.full = space.used_bytes + self.margin_bytes >= space.total_bytes;
        if self.published != self.shown {
            self.shown = self.published;
            scene.actions.turns.extend((0..self.seats.len() as u16).map(Seat::Shard));
        }
    }

    fn drain(&mut self, scene: &mut Scene<'_>) -> Result<(), Failure> {
        loop {
            let next = self.waiting.take().or_else(|| self.queue.pop_front());
            let Some((ticket, mut item)) = next else { return Ok(()) };
            let mut sections: Vec<Section<'_>> = item
                .sections
                .iter()
                .map(|section| Section {
                    partition: section.partition,
                    digest: section.digest,
                    bytes: &item.bytes[section.start as usize..section.end as usize],
                })
                .collect();
            let bytes = sections_bytes(&sections);
            let mut room = self.writer.room(sections.len(), bytes);
            if matches!(room, Room::LogFull(_)) {
                room = self.writer.room_reserved(sections.len(), bytes);
            }
            if room != Room::Fits {
                drop(sections);
                self.waiting = Some((ticket, item));
                return Ok(());
            }
            match scene.bug {
                Some(Bug::SectionDropped) if sections.len() > 1 => drop(sections.pop()),
                Some(Bug::HandOverLost) if scene.draw.once_in(30) => continue,
                _ => {}
            }
            let lsn = self.writer.append(ticket, &sections, &mut self.buffers);
            self.appended.push((ticket, lsn.0));
            let entry = scene.entries.entry(lsn.0).or_default();
            for section in &sections {
                let (partition, digest) = (section.partition.0, section.digest);
                entry.push(EntrySection { partition, digest, bytes: section.bytes.to_vec() });
                if partition != PARTITION_SYSTEM {
                    scene.oracle.appended(lsn, section.bytes)?;
                }
            }
            drop(sections);
            item.clear();
            if item.origin != ORIGIN_ROOT {
                self.seats[usize::from(item.origin)].recycled.push(item);
            }
        }
    }

    fn log_step(&mut self, input: LogInput, scene: &mut Scene<'_>) {
        let mut effects = std::mem::take(&mut self.log_effects);
        effects.clear();
        let wall = WallMicros(1_700_000_000_000_000 + scene.now / 1000);
        self.writer.step(scene.now, wall, input, &mut self.buffers, &mut effects);
        for write in &effects.writes {
            let from = write.buffer_offset as usize;
            let buffer = &self.buffers.0[usize::from(write.buffer)];
            let bytes = buffer[from..from + write.bytes as usize].to_vec();
            let token = Token::Frame(write.sequence, write.buffer, write.buffer_offset);
            scene.actions.writes.push((File::Segment(write.segment), write.offset, bytes, token));
        }
        let idle = self.raw_waiting.is_empty();
        self.raw_waiting.extend(effects.raw_writes.drain(..));
        if idle {
            self.raw_submit(scene);
        }
        if let Some(committed) = effects.committed {
            self.published.lsn = committed.lsn.0;
            self.published.ticket = committed.ticket;
        }
        if effects.poisoned.is_some() {
            self.published.failed = true;
            self.failed = true;
        }
        self.log_deadline = effects.next_deadline_nanos;
        self.log_effects = effects;
    }

    fn raw_submit(&mut self, scene: &mut Scene<'_>) {
        let Some(write) = self.raw_waiting.front() else { return };
        let bytes = match &write.content {
            RawContent::Zeros(bytes) => vec![0; *bytes as usize],
            RawContent::Bytes(bytes) => bytes.clone(),
        };
        let file = File::Segment(write.segment);
        scene.actions.writes.push((file, write.offset, bytes, Token::Raw(write.id)));
    }

    /// A write of the log has ended.
    pub fn written(
        &mut self,
        token: &Token,
        bytes: &[u8],
        result: Result<u32, i32>,
        scene: &mut Scene<'_>,
    ) -> Result<(), Failure> {
        match token {
            Token::Frame(sequence, buffer, offset) => {
                let from = *offset as usize;
                let now = &self.buffers.0[usize::from(*buffer)][from..from + bytes.len()];
                if now != bytes {
                    return Err(Failure::new("a buffer was changed while it was being written"));
                }
                let input = LogInput::WriteCompleted { sequence: *sequence, result };
                self.log_step(input, scene);
                if scene.bug == Some(Bug::CommitOutOfOrder) {
                    let issued = self.writer.lsn_next().0 - 1;
                    let last = self.appended.iter().rev().find(|(_, lsn)| *lsn <= issued);
                    if let Some((ticket, lsn)) = last {
                        self.published.ticket = *ticket;
                        self.published.lsn = *lsn;
                    }
                }
            }
            Token::Raw(id) => {
                self.log_step(LogInput::RawCompleted { id: *id, result }, scene);
                self.raw_waiting.pop_front();
                self.raw_submit(scene);
            }
            Token::Superblock => self.superblock_written(scene),
        }
        self.log_turn(scene)
    }

    /// Begins a checkpoint if enough of the log is used. What it covers is in the entries that
    /// the run keeps, as a baseline would hold it.
    pub fn checkpoint(&mut self, scene: &mut Scene<'_>) {
        let space = self.writer.space();
        if self.checkpoint.is_some() || self.failed || space.used_bytes * 3 < space.total_bytes {
            return;
        }
        let floor = self.writer.floor_for(self.writer.committed().lsn);
        if floor.ordinal <= self.superblock.floor.ordinal {
            return;
        }
        let next = Superblock {
            sequence: self.superblock.sequence + 1,
            floor,
            durable_sequence: self.writer.durable_sequence(),
            ..self.superblock
        };
        if scene.bug == Some(Bug::FloorRaisedEarly) {
            self.superblock.floor = floor;
            self.writer.floor_raise(&floor);
            return;
        }
        scene.oracle.counts.checkpoints += 1;
        self.checkpoint = Some(Checkpoint { next, round: 0, left: 0 });
        self.superblock_round(scene);
    }

    fn superblock_round(&mut self, scene: &mut Scene<'_>) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        let rounds = spillway_updateserver::log::superblock_update(&checkpoint.next);
        let round = &rounds[checkpoint.round];
        checkpoint.left = round.len();
        for write in round {
            let bytes = write.bytes.clone();
            scene.actions.writes.push((File::Superblock, write.offset, bytes, Token::Superblock));
        }
    }

    fn superblock_written(&mut self, scene: &mut Scene<'_>) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        checkpoint.left -= 1;
        if checkpoint.left > 0 {
            return;
        }
        checkpoint.round += 1;
        if checkpoint.round < 2 {
            self.superblock_round(scene);
            return;
        }
        let next = checkpoint.next;
        self.checkpoint = None;
        scene.oracle.counts.recycled += next.floor.ordinal - self.superblock.floor.ordinal;
        self.superblock = next;
        self.writer.floor_raise(&next.floor);
    }
}

fn send(released: &Released, scene: &mut Scene<'_>) {
    for frame in &released.frames {
        let bytes = released.bytes[frame.start..frame.end].to_vec();
        scene.actions.frames.push((frame.connection, bytes));
    }
}
