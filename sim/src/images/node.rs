//! A node that does one thing after another on a medium: the production writer, superblock and
//! scanner, and as much of a shell as it takes.

use std::collections::BTreeMap;
use std::rc::Rc;

use spillway_net::ids::{Epoch, Lsn, NodeId, PartitionId, WallMicros};
use spillway_runtime::slot_ring::SlotRing;
use spillway_updateserver::log::{
    AssemblerRoom, BatchAssembler, EntryFrame, EntryIndex, EntryPlace, Floor, FrameKind, Geometry,
    LocalHeader, LogEffects, LogInput, LogWriter, LogWriterOptions, PARTITION_SYSTEM, RawContent,
    RawFile, Recovered, SealIdentity, Section, Superblock, sections_bytes, superblock_update,
};

use super::judge::{Bad, Kept, Model, recover};
use super::medium::{Medium, Purpose};
use super::{NODE, Plant};
use crate::disk::{CLUSTER, File};

/// Silence after which a watermark covers the last frame.
const IDLE_NANOS: u64 = 1_000_000;
const WALL_MICROS: u64 = 1_700_000_000_000_000;

/// Something that a node does with its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Appends a small entry.
    Small,
    /// Appends a batch of many sections: its shared header takes more than one small block.
    Batch,
    /// Appends an entry of the largest payload.
    Large,
    /// Appends a configuration entry.
    Config,
    /// Votes in a new term: a superblock in two rounds.
    Vote,
    /// A new leader replaces what is not committed.
    Supersede,
    /// Appends until the next segment is entered.
    Roll,
    /// A silence, in which a watermark covers what was written.
    Watermark,
    /// Ends and starts again.
    Restart,
    /// Raises the floor to what is committed, and recycles the segments before it.
    Floor,
}

/// All of them.
pub const OPERATIONS: [Operation; 10] = [
    Operation::Small,
    Operation::Batch,
    Operation::Large,
    Operation::Config,
    Operation::Vote,
    Operation::Supersede,
    Operation::Roll,
    Operation::Watermark,
    Operation::Restart,
    Operation::Floor,
];

/// When writes end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Each operation ends before the next begins; a restart is an orderly one.
    Serial,
    /// Operations follow each other at once, writes end in order; a restart is a kill.
    InOrder,
    /// The same, and of the writes in flight the newest ends first.
    NewestFirst,
}

/// All of them.
pub const SCHEDULES: [Schedule; 3] = [Schedule::Serial, Schedule::InOrder, Schedule::NewestFirst];

/// Called whenever the power may go: after something was submitted, and after it ended.
pub type Cut<'a> = dyn FnMut(&mut Medium, &Model) -> Result<(), Bad> + 'a;

/// What lives as long as the process.
struct Live {
    writer: LogWriter,
    assembler: BatchAssembler,
    superblock: Superblock,
    entries: EntryIndex,
    ticket: u64,
    now_nanos: u64,
    term: Epoch,
    /// Index and body of what was given to the writer, by write number, until it is issued.
    given: BTreeMap<u64, (u64, Rc<[u8]>)>,
    /// Sequence of the frame of each write number.
    issued: BTreeMap<u64, u64>,
    /// The superblock on its way.
    update: Option<Superblock>,
    floor: Option<Floor>,
}

/// See the module.
pub struct Node<'a> {
    geometry: Geometry,
    /// Its disk.
    pub medium: Medium,
    /// What must be found on it.
    pub model: Model,
    slots: &'a mut SlotRing,
    live: Option<Live>,
    schedule: Schedule,
    plant: Option<Plant>,
    filler: u64,
}

impl<'a> Node<'a> {
    /// A node that is down.
    pub fn new(
        geometry: Geometry,
        medium: Medium,
        model: Model,
        slots: &'a mut SlotRing,
        schedule: Schedule,
        plant: Option<Plant>,
    ) -> Self {
        Self { geometry, medium, model, slots, live: None, schedule, plant, filler: 0 }
    }

    /// How many blocks are left in the segment, and its ordinal.
    pub fn place(&self) -> (u64, u64) {
        let live = self.live.as_ref().expect("the node is up");
        let last = live.entries.get(live.entries.last()).expect("there is an entry");
        let end = u64::from(last.place.offset + last.place.bytes);
        let left = u64::from(self.geometry.segment_bytes) - end;
        (left / u64::from(self.geometry.block_bytes), last.place.ordinal)
    }

    /// Reads the log, writes the superblock of the boot, and begins to write.
    ///
    /// # Errors
    /// What was found.
    pub fn boot(&mut self, cut: &mut Cut<'_>) -> Result<(), Bad> {
        assert!(self.live.is_none() && self.medium.pending.is_empty(), "the node is down");
        let (last, recovered) = recover(&self.medium, &self.model, 0)?;
        // What was read back is on the medium, and counts from now on.
        let next = recovered.position.cursor.chain.sequence;
        self.model.acknowledged = next - 1;
        self.model.frames.split_off(&next);
        self.model.committed = self.model.committed.min(recovered.last_lsn.0);
        let superblock = recovered.superblock_next(&last, recovered.term, recovered.vote);
        if self.plant != Some(Plant::BootNotWritten) {
            for round in superblock_update(&superblock) {
                for write in round {
                    let (file, offset) = (File::Superblock, write.offset);
                    self.medium.submit(Purpose::Boot, file, offset, write.bytes);
                }
                cut(&mut self.medium, &self.model)?;
                while !self.medium.pending.is_empty() {
                    self.medium.complete(0);
                    cut(&mut self.medium, &self.model)?;
                }
            }
            self.model.boot = superblock.boot;
            self.model.promised = (superblock.term.0, superblock.vote.0);
        }
        self.live = Some(live_of(self.geometry, superblock, recovered));
        self.step(LogInput::TurnEnd, cut)
    }

    fn live(&mut self) -> &mut Live {
        self.live.as_mut().expect("the node is up")
    }

    /// One step of the writer, and what it orders.
    fn step(&mut self, input: LogInput, cut: &mut Cut<'_>) -> Result<(), Bad> {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut out = LogEffects::default();
            let live = self.live.as_mut().expect("the node is up");
            live.writer.step(live.now_nanos, input, self.slots, &mut out);
            assert!(out.poisoned.is_none(), "no write failed");
            self.reported(&out, &mut inputs);
            self.submit(out)?;
            cut(&mut self.medium, &self.model)?;
            if let Some(confirmed) = self.confirm_early() {
                inputs.push(confirmed);
            }
        }
        Ok(())
    }

    /// What the writer says is durable.
    fn reported(&mut self, out: &LogEffects, inputs: &mut Vec<LogInput>) {
        let live = self.live.as_mut().expect("the node is up");
        if let Some(number) = out.durable {
            self.model.acknowledged = live.issued[&number];
        }
        if let Some(sequence) = out.superblock_durable {
            let superblock = live.update.take().expect("an update is under way");
            assert_eq!(superblock.sequence, sequence, "one update at a time");
            if superblock.term == live.term {
                live.writer.hard_state_set(superblock.term, superblock.vote);
            }
            self.model.promised = (superblock.term.0, superblock.vote.0);
            live.superblock = superblock;
            if let Some(floor) = live.floor.take() {
                live.writer.floor_raise(&floor);
                inputs.push(LogInput::TurnEnd);
            }
        }
    }

    fn submit(&mut self, out: LogEffects) -> Result<(), Bad> {
        let block = self.geometry.block();
        let live = self.live.as_mut().expect("the node is up");
        for write in out.writes {
            let issued = out.issued.iter().find(|issued| {
                self.geometry.slot(issued.place.ordinal) == write.segment
                    && u64::from(issued.place.offset) == write.offset
            });
            let body: Rc<[u8]> = Rc::from(&write.slot[block..]);
            if let Some(issued) = issued {
                live.issued.insert(issued.number, write.sequence);
                live.entries.place_set(issued.lsn, issued.checksum, issued.place);
                let given = live.given.remove(&issued.number);
                if given.is_none_or(|(_, given)| given != body) {
                    return Err(Bad::Wrong(format!("the writer changed LSN {}", issued.lsn)));
                }
            }
            let local = LocalHeader::decode(&write.slot[..block]).expect("the writer's own");
            let lsn = issued.map(|issued| issued.lsn.0);
            let kept = Kept { lsn, term: local.term.0, body };
            self.model.frames.insert(write.sequence, kept);
            let (purpose, file) = (Purpose::Frame(write.sequence), File::Segment(write.segment));
            self.medium.submit(purpose, file, write.offset, write.slot[..].to_vec());
        }
        for raw in out.raw_writes {
            let bytes = match raw.content {
                RawContent::Zeros(bytes) => vec![0; bytes as usize],
                RawContent::Bytes(bytes) => bytes,
            };
            let file = match raw.file {
                RawFile::Segment(segment) => File::Segment(segment),
                RawFile::Superblock => File::Superblock,
            };
            self.medium.submit(Purpose::Raw(raw.id), file, raw.offset, bytes);
        }
        Ok(())
    }

    /// Planted: the end of a write is reported before it has landed, or without.
    fn confirm_early(&mut self) -> Option<LogInput> {
        let plant = self.plant?;
        let is_early = |purpose: &Purpose, file: &File| match plant {
            Plant::WriteConfirmedEarly => matches!(purpose, Purpose::Frame(_)),
            Plant::SuperblockConfirmedEarly => {
                matches!(purpose, Purpose::Raw(_)) && *file == File::Superblock
            }
            Plant::WipeSkipped => {
                matches!(purpose, Purpose::Raw(_)) && matches!(file, File::Segment(_))
            }
            Plant::BootNotWritten | Plant::GapIgnored => false,
        };
        let found = self.medium.pending.iter().position(|write| {
            let zeros = plant != Plant::WipeSkipped || write.bytes.iter().all(|byte| *byte == 0);
            !write.is_reported && is_early(&write.purpose, &write.file) && zeros
        })?;
        let write = &mut self.medium.pending[found];
        write.is_reported = true;
        let input = ended(write.purpose, write.length);
        if plant == Plant::WipeSkipped {
            self.medium.pending.remove(found);
        }
        Some(input)
    }

    /// The write ends that the schedule names next.
    fn complete_next(&mut self, cut: &mut Cut<'_>) -> Result<(), Bad> {
        let last = self.medium.pending.len() - 1;
        let at = if self.schedule == Schedule::NewestFirst { last } else { 0 };
        let write = self.medium.complete(at);
        if write.is_reported {
            return cut(&mut self.medium, &self.model);
        }
        let mut input = ended(write.purpose, write.length);
        if self.plant == Some(Plant::GapIgnored)
            && let Purpose::Frame(_) = write.purpose
        {
            input = self.oldest_instead(input, write.length);
        }
        self.step(input, cut)
    }

    /// Planted: whichever frame has landed, the oldest counts as the one.
    fn oldest_instead(&mut self, input: LogInput, length: usize) -> LogInput {
        let frames = self.medium.pending.iter_mut().filter(|write| !write.is_reported);
        let oldest = frames.filter_map(|write| match write.purpose {
            Purpose::Frame(sequence) => Some((sequence, write)),
            _ => None,
        });
        let LogInput::WriteCompleted { sequence: landed, .. } = input else { return input };
        match oldest.min_by_key(|(sequence, _)| *sequence) {
            Some((sequence, write)) if sequence < landed => {
                // The other one is reported when this one lands: each is reported once.
                let result = Ok(write.length as u32);
                write.purpose = Purpose::Frame(landed);
                write.length = length;
                LogInput::WriteCompleted { sequence, result }
            }
            _ => input,
        }
    }

    /// Everything in flight ends.
    pub fn drain(&mut self, cut: &mut Cut<'_>) -> Result<(), Bad> {
        while !self.medium.pending.is_empty() {
            self.complete_next(cut)?;
        }
        Ok(())
    }

    /// Does something.
    ///
    /// # Errors
    /// What `cut` says of an image on the way, or what a start finds.
    pub fn operate(&mut self, operation: Operation, cut: &mut Cut<'_>) -> Result<(), Bad> {
        match operation {
            Operation::Small | Operation::Batch | Operation::Large | Operation::Config => {
                self.append(operation, cut)?;
            }
            Operation::Vote => self.vote(cut)?,
            Operation::Supersede => self.supersede(cut)?,
            Operation::Roll => self.roll(cut)?,
            Operation::Watermark => {
                self.drain(cut)?;
                self.live().now_nanos += 2 * IDLE_NANOS;
                self.step(LogInput::Tick, cut)?;
            }
            Operation::Restart => self.restart(cut)?,
            Operation::Floor => self.floor(cut)?,
        }
        if self.schedule == Schedule::Serial {
            self.drain(cut)?;
        }
        self.commit();
        Ok(())
    }

    fn roll(&mut self, cut: &mut Cut<'_>) -> Result<(), Bad> {
        let last = |live: &Live| live.entries.get(live.entries.last()).map(|meta| meta.place);
        let is_issued = |live: &Live| last(live).is_none_or(|place| place.is_known());
        // A segment is entered when all before it is durable.
        if !is_issued(self.live()) {
            self.drain(cut)?;
        }
        let before = last(self.live()).map(|place| place.ordinal);
        loop {
            self.append(Operation::Large, cut)?;
            if !is_issued(self.live()) {
                self.drain(cut)?;
            }
            if last(self.live()).map(|place| place.ordinal) != before {
                return Ok(());
            }
        }
    }

    /// All but the last two durable entries are committed.
    pub fn commit(&mut self) {
        let acknowledged = self.model.frames.range(..=self.model.acknowledged);
        let durable = acknowledged.rev().find_map(|(_, kept)| kept.lsn).unwrap_or(0);
        let lsn = durable.saturating_sub(2);
        // What waits may replace what is durable: only what stands now can be committed.
        let pending = self.model.frames.range(self.model.acknowledged + 1..);
        let replaced = pending.filter_map(|(_, kept)| kept.lsn).min().unwrap_or(u64::MAX);
        let live = self.live.as_mut().expect("the node is up");
        let waits_from = live.given.values().map(|(lsn, _)| *lsn).min().unwrap_or(u64::MAX);
        let lsn = lsn.min(replaced - 1).min(waits_from - 1);
        if lsn > self.model.committed {
            self.model.committed = lsn;
            live.writer.committed_set(Lsn(lsn));
        }
    }

    fn identity(&mut self, before: Lsn) -> SealIdentity {
        let live = self.live();
        let before = live.entries.identity(before).expect("it is there");
        SealIdentity {
            cluster: CLUSTER,
            term: live.term,
            index: Lsn(before.lsn.0 + 1),
            previous: before.checksum,
            timestamp: WallMicros(before.timestamp.0.max(WALL_MICROS) + 10),
        }
    }

    fn append(&mut self, operation: Operation, cut: &mut Cut<'_>) -> Result<(), Bad> {
        let last = self.live().entries.last();
        self.append_behind(operation, last, cut)
    }

    fn append_behind(
        &mut self,
        operation: Operation,
        before: Lsn,
        cut: &mut Cut<'_>,
    ) -> Result<(), Bad> {
        let identity = self.identity(before);
        self.filler += 1;
        let (count, bytes) = match operation {
            Operation::Batch => (24, 40),
            Operation::Large => (1, self.geometry.payload_bytes_max()),
            Operation::Config => (1, 64),
            _ => (1, 100),
        };
        let seed = identity.index.0 << 32 ^ identity.term.0 << 16 ^ self.filler;
        let contents: Vec<Vec<u8>> = (0..count).map(|at| fill(seed ^ at << 48, bytes)).collect();
        let section = |(at, bytes): (usize, &Vec<u8>)| (at as u16 % 4, bytes.clone());
        let parts: Vec<(u16, Vec<u8>)> = contents.iter().enumerate().map(section).collect();
        let system = operation == Operation::Config;
        let sections: Vec<Section<'_>> = parts
            .iter()
            .map(|(partition, bytes)| Section {
                partition: if system { PARTITION_SYSTEM } else { PartitionId(*partition) },
                digest: u128::from(seed),
                bytes,
            })
            .collect();
        let live = self.live.as_mut().expect("the node is up");
        let frame = if system {
            live.assembler.seal_system_heap(identity, FrameKind::Config, &sections)
        } else {
            let room = live.assembler.room(sections.len(), sections_bytes(&sections), self.slots);
            assert_eq!(room, AssemblerRoom::Fits, "memory for a few entries");
            live.ticket += 1;
            live.assembler.append(live.ticket, &sections, self.slots);
            live.assembler.seal(identity, self.slots).expect("one item")
        };
        self.write(frame, cut)
    }

    fn write(&mut self, frame: EntryFrame, cut: &mut Cut<'_>) -> Result<(), Bad> {
        let live = self.live();
        assert!(live.writer.has_room([frame.frame_bytes()], 0), "the log has room");
        let (lsn, body) = (frame.shared.index.0, Rc::from(&frame.body[..]));
        live.entries.take(&frame.shared, EntryPlace::NOWHERE);
        let number = live.writer.write(frame);
        live.given.insert(number, (lsn, body));
        self.step(LogInput::TurnEnd, cut)
    }

    /// Orders a superblock with the present term and this vote.
    fn superblock_order(&mut self, vote: NodeId, cut: &mut Cut<'_>) -> Result<(), Bad> {
        let live = self.live.as_mut().expect("the node is up");
        let mut superblock = live.superblock;
        superblock.sequence += 1;
        superblock.term = live.term;
        superblock.vote = vote;
        superblock.durable_sequence = live.writer.durable_sequence();
        superblock.floor = live.floor.unwrap_or(superblock.floor);
        live.writer.superblock_write(&superblock);
        live.update = Some(superblock);
        self.model.hard_states.push((superblock.term.0, vote.0));
        self.step(LogInput::TurnEnd, cut)
    }

    fn superblock_closed(&mut self, cut: &mut Cut<'_>) -> Result<(), Bad> {
        while self.live().writer.superblock_is_open() {
            self.complete_next(cut)?;
        }
        Ok(())
    }

    fn term_next(&mut self) {
        let live = self.live.as_mut().expect("the node is up");
        live.term = Epoch(live.term.0 + 1);
        live.writer.hard_state_set(live.term, NodeId(0));
        self.model.hard_states.push((live.term.0, 0));
    }

    fn vote(&mut self, cut: &mut Cut<'_>) -> Result<(), Bad> {
        self.superblock_closed(cut)?;
        self.term_next();
        let voted = NodeId(1 + (self.live().term.0 % 3) as u16);
        self.superblock_order(voted, cut)
    }

    /// As a follower of a new leader: its first entry replaces all that is not committed.
    fn supersede(&mut self, cut: &mut Cut<'_>) -> Result<(), Bad> {
        self.superblock_closed(cut)?;
        self.term_next();
        self.superblock_order(NodeId(0), cut)?;
        let committed = Lsn(self.model.committed.max(self.live().entries.base().lsn.0));
        self.append_behind(Operation::Batch, committed, cut)
    }

    fn floor(&mut self, cut: &mut Cut<'_>) -> Result<(), Bad> {
        self.superblock_closed(cut)?;
        self.commit();
        let committed = Lsn(self.model.committed);
        let live = self.live();
        live.floor = Some(live.writer.floor_for(committed));
        let vote = if live.superblock.term == live.term { live.superblock.vote } else { NodeId(0) };
        self.superblock_order(vote, cut)
    }

    fn restart(&mut self, cut: &mut Cut<'_>) -> Result<(), Bad> {
        if self.schedule == Schedule::Serial {
            self.live().writer.shutdown();
            self.step(LogInput::TurnEnd, cut)?;
            self.drain(cut)?;
            assert!(self.live().writer.is_quiet(), "an orderly end");
        }
        self.down();
        // Writes that nobody waits for any more end all the same.
        self.medium.complete_all();
        self.boot(cut)
    }

    /// The process is gone; what it had in flight is not.
    pub fn down(&mut self) {
        self.live = None;
    }
}

fn live_of(geometry: Geometry, superblock: Superblock, recovered: Recovered) -> Live {
    let options = LogWriterOptions {
        cluster: CLUSTER,
        node: NODE,
        term: superblock.term,
        vote: superblock.vote,
        boot: superblock.boot,
        in_flight_max: 4,
        watermark_idle_nanos: IDLE_NANOS,
    };
    Live {
        writer: LogWriter::new(options, recovered.position),
        assembler: BatchAssembler::new(geometry, 4, 1),
        entries: recovered.entries,
        term: superblock.term,
        superblock,
        ticket: 0,
        now_nanos: 1,
        given: BTreeMap::new(),
        issued: BTreeMap::new(),
        update: None,
        floor: None,
    }
}

fn ended(purpose: Purpose, bytes: usize) -> LogInput {
    let result = Ok(bytes as u32);
    match purpose {
        Purpose::Frame(sequence) => LogInput::WriteCompleted { sequence, result },
        Purpose::Raw(id) => LogInput::RawCompleted { id, result },
        Purpose::Boot => unreachable!("there is no writer yet"),
    }
}

/// Bytes that tell their entry.
fn fill(seed: u64, bytes: usize) -> Vec<u8> {
    let mut draw = crate::draw::Draw::new(seed);
    let words = std::iter::repeat_with(|| draw.bits().to_le_bytes());
    words.flatten().take(bytes).collect()
}
