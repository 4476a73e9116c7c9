//! A node on a simulated disk, and the model of what it must remember.
//!
//! The model is physical: which frames were issued, in order, and up to which of them everything
//! was reported durable. What a scan yields must be the fold of a prefix of these frames that is
//! not shorter than what was reported.

use std::collections::BTreeMap;

use spillway_net::ids::{Epoch, Lsn, NodeId, PartitionId, WallMicros};
use spillway_runtime::slot_ring::SlotRing;

use crate::log::assembler::{AssemblerRoom, BatchAssembler, SealIdentity, Section, sections_bytes};
use crate::log::clock::BatchClock;
use crate::log::damage::LogDamaged;
use crate::log::effects::{LogEffects, LogInput, LogWrite, RawContent, RawFile};
use crate::log::entries::{EntryBase, EntryIndex, EntryMeta, EntryPlace};
use crate::log::entry_frame::{EntryFrame, body_verify};
use crate::log::frame::{
    BodyView, FrameKind, LocalHeader, PARTITION_SYSTEM, SectionView, SharedHeader,
};
use crate::log::geometry::Geometry;
use crate::log::position::Floor;
use crate::log::recovery::{LogScanner, Recovered, ScanEntry, ScanItem};
use crate::log::superblock::{Superblock, superblock_update};
use crate::log::testing::{CLUSTER, Draw, File, NODE, SimDisk};
use crate::log::writer::{LogWriter, LogWriterOptions, RESERVE_SEGMENTS};

/// Entries that may wait for the writer.
const PENDING_MAX: usize = 8;
const SUPERBLOCK_IDS: u64 = 1 << 60;
const RAW_IDS: u64 = 1 << 61;

/// A frame that was issued: to compare with what is read back, and to aim damage at.
#[derive(Clone, Debug)]
pub struct Kept {
    pub write: LogWrite,
    pub durable_sequence: u64,
    /// Index of the last entry once this frame is read.
    pub lsn: u64,
    pub shared: SharedHeader,
    pub place: EntryPlace,
    /// What stood there before.
    pub before: Vec<u8>,
}

impl Kept {
    pub fn is_entry(&self) -> bool {
        self.shared.kind.is_entry()
    }

    pub fn body(&self, geometry: &Geometry) -> &[u8] {
        &self.write.slot[geometry.block()..]
    }
}

pub struct Boot {
    pub writer: LogWriter,
    pub assembler: BatchAssembler,
    pub slots: SlotRing,
    pub superblock: Superblock,
    pub now_nanos: u64,
    pub wall: WallMicros,
    clock: BatchClock,
    pub ticket: u64,
    /// Receives its entries from a leader, who may change its mind about what is not committed.
    pub follows: bool,
    term: Epoch,
    /// Term of the next entries.
    entry_term: Epoch,
    /// All entries given to the writer and not superseded.
    pub entries: EntryIndex,
    /// Write number of each of them; none for those of earlier boots.
    numbers: BTreeMap<u64, u64>,
    /// Write number of each issued frame of an entry.
    issued: BTreeMap<u64, u64>,
    durable_number: u64,
    pub committed: Lsn,
    in_flight_max: usize,
    update: Option<(Superblock, Floor)>,
    /// Frames complete in any order: sequence -> write.
    pub writes_open: BTreeMap<u64, LogWrite>,
    pub log_full: usize,
    pub later: usize,
    pub superseded: usize,
}

pub struct Node {
    pub geometry: Geometry,
    pub disk: SimDisk,
    pub kept: BTreeMap<u64, Kept>,
    /// Everything up to this sequence was reported durable, or was there at a start.
    pub acknowledged: u64,
    /// Checksums of entries that were committed, as far as this node knew and remembers.
    pub committed: BTreeMap<u64, u64>,
    pub draw: Draw,
    pub wall: WallMicros,
    pub largest: usize,
    /// Frames that went back, as scans met them.
    pub truncations: usize,
}

/// What a sink has heard.
struct Heard<'a> {
    node: &'a Node,
    expected: Vec<&'a Kept>,
    next: usize,
    last: EntryBase,
    truncated: Option<Lsn>,
    entries: EntryIndex,
    hint: Lsn,
    truncations: usize,
}

impl Heard<'_> {
    fn take(&mut self, item: ScanItem<'_>) {
        match item {
            ScanItem::Truncated(lsn) => {
                assert!(lsn < self.last.lsn && self.truncated.is_none(), "something to truncate");
                assert!(lsn >= self.hint, "what is committed stays");
                self.truncated = Some(lsn);
                self.truncations += 1;
                self.entries.truncate_after(lsn);
            }
            ScanItem::Entry(entry) => self.entry(entry),
        }
    }

    fn entry(&mut self, entry: &ScanEntry<'_>) {
        let shared = &entry.view.shared;
        let kept = self.expected.get(self.next).expect("nothing that was never written");
        self.next += 1;
        assert_eq!(*shared, kept.shared, "frames in order, none twice, none skipped");
        let before = self.truncated.take().unwrap_or(self.last.lsn);
        assert_eq!(shared.index.0, before.0 + 1, "what goes back is announced");
        assert!(entry.body == kept.body(&self.node.geometry), "whole and unchanged");
        let meta = EntryMeta::of(&kept.shared, kept.place);
        assert_eq!(entry.meta, meta);
        assert!(entry.commit_hint >= self.hint, "the hint rises");
        self.hint = entry.commit_hint;
        self.entries.push(shared.index, meta);
        self.last = self.entries.last_identity();
    }
}

impl Node {
    pub fn new(geometry: Geometry, seed: u64) -> Self {
        geometry.check().expect("test geometry");
        Self {
            geometry,
            disk: SimDisk::format(geometry),
            kept: BTreeMap::new(),
            acknowledged: 0,
            committed: BTreeMap::new(),
            draw: Draw(seed),
            wall: WallMicros(1_700_000_000_000_000),
            largest: geometry.payload_bytes_max(),
            truncations: 0,
        }
    }

    /// Index of the last entry after all frames before this one.
    pub fn lsn_before(&self, sequence: u64) -> Lsn {
        let floor = self.disk.superblock().expect("readable").superblock.floor;
        let last = self.kept.range(floor.chain.sequence..sequence).next_back();
        last.map_or(floor.chain.lsn, |(_, kept)| Lsn(kept.lsn))
    }

    /// Scans the disk and compares all that it yields with the model.
    pub fn scan(&mut self) -> Result<(Superblock, Recovered), LogDamaged> {
        let superblock = self.disk.superblock().expect("superblock readable").superblock;
        let read_bytes = self.draw.pick(&[0, 1 << 16, 1 << 18, 1 << 22]);
        let mut scanner = LogScanner::new(&superblock, read_bytes);
        let floor = superblock.floor.chain;
        let entries = EntryIndex::behind(&floor);
        let frames = self.kept.range(floor.sequence..).map(|(_, kept)| kept);
        let mut heard = Heard {
            node: self,
            expected: frames.filter(|kept| kept.is_entry()).collect(),
            next: 0,
            last: entries.base(),
            truncated: None,
            entries,
            hint: floor.lsn,
            truncations: 0,
        };
        while let Some(request) = scanner.next_read() {
            assert!(request.bytes <= scanner.read_bytes_max());
            scanner.feed(self.disk.read(&request), &mut |item| heard.take(item))?;
        }
        let recovered = scanner.finish();
        let end = recovered.position.cursor.chain.sequence;
        let (entries, truncations) = (heard.entries, heard.truncations);
        let read = self.kept.range(floor.sequence..end).filter(|(_, kept)| kept.is_entry());
        assert_eq!(read.count(), heard.next, "a prefix of what was issued");
        assert_eq!(recovered.entries, entries);
        assert_eq!(recovered.last_lsn, entries.last());
        assert_eq!(recovered.last_timestamp, entries.last_identity().timestamp);
        assert!(recovered.commit_hint >= heard.hint && recovered.commit_hint <= entries.last());
        assert_eq!(recovered.position.tail, entries.tail(recovered.commit_hint));
        for (index, checksum) in self.committed.range(..=recovered.commit_hint.0) {
            let found = entries.identity(Lsn(*index));
            let covered = *index < floor.lsn.0;
            assert!(covered || found.is_some_and(|found| found.checksum == *checksum), "{index}");
        }
        assert!(recovered.commit_hint.0 <= self.committed.keys().next_back().map_or(0, |k| *k));
        self.truncations += truncations;
        Ok((superblock, recovered))
    }

    /// Starts the node: scan, check that nothing acknowledged is missing, superblock, writer.
    /// `None` when it lost power before the writer was made.
    pub fn boot(&mut self) -> Result<Option<Boot>, LogDamaged> {
        let (last, recovered) = self.scan()?;
        self.is_all_there(&recovered);
        self.read_back(&recovered);
        Ok(self.boot_at(last, recovered))
    }

    /// Nothing that was reported durable is missing.
    pub fn is_all_there(&self, recovered: &Recovered) {
        let next = recovered.position.cursor.chain.sequence;
        assert!(next > self.acknowledged, "frame {} was acknowledged", self.acknowledged);
    }

    /// Any entry can be read alone from where the index says.
    fn read_back(&mut self, recovered: &Recovered) {
        let entries = &recovered.entries;
        if entries.is_empty() {
            return;
        }
        let lsn = Lsn(entries.first().0 + self.draw.below(entries.len()) as u64);
        let meta = entries.get(lsn).expect("drawn from what is there");
        let plan = meta.place.read_plan(&self.geometry);
        let body = self.disk.read(&plan).expect("readable");
        let shared = body_verify(&self.geometry, CLUSTER, body, meta.checksum).expect("whole");
        assert_eq!((shared.index, shared.entry_term), (lsn, meta.term));
    }

    fn boot_at(&mut self, last: Superblock, recovered: Recovered) -> Option<Boot> {
        // What was recovered is on the medium: it counts from now on.
        self.acknowledged = recovered.position.cursor.chain.sequence - 1;
        self.kept.split_off(&(self.acknowledged + 1));
        // What others committed and this node lost is of no concern to its disk.
        self.committed.split_off(&(recovered.commit_hint.0 + 1));
        let superblock = recovered.superblock_next(&last, Epoch(recovered.term.0 + 1), NODE);
        for round in superblock_update(&superblock) {
            for write in round {
                self.disk.submit(SUPERBLOCK_IDS, File::Superblock, write.offset, write.bytes);
            }
            if self.draw.once_in(20) {
                self.disk.crash(&mut self.draw);
                return None;
            }
            while !self.disk.pending.is_empty() {
                let index = self.draw.below(self.disk.pending.len());
                self.disk.complete(index);
            }
        }
        // Clocks jump between boots.
        let jump = self.draw.below(2_000_000) as u64;
        self.wall = WallMicros(self.wall.0 + 1_000_000 - jump);
        Some(self.boot_of(superblock, recovered))
    }

    fn boot_of(&mut self, superblock: Superblock, recovered: Recovered) -> Boot {
        let in_flight_max = self.draw.pick(&[1, 4, 4, 4]);
        let options = LogWriterOptions {
            cluster: CLUSTER,
            node: NODE,
            term: superblock.term,
            vote: superblock.vote,
            boot: superblock.boot,
            in_flight_max,
            watermark_idle_nanos: 1_000_000,
        };
        let small_max = self.draw.pick(&[1, 2, 4]);
        let wait = self.draw.pick(&[512, 4096, 32 << 10]);
        let ring_bytes = self.geometry.batch_bytes_max.next_multiple_of(4096) as usize;
        let ring_bytes = ring_bytes * self.draw.range(3, 9);
        Boot {
            clock: BatchClock::new(recovered.last_timestamp),
            committed: recovered.commit_hint,
            entries: recovered.entries,
            writer: LogWriter::new(options, recovered.position),
            assembler: BatchAssembler::new(self.geometry, small_max, wait),
            slots: SlotRing::new("test", ring_bytes).expect("memory"),
            now_nanos: self.draw.next() >> 20,
            wall: self.wall,
            ticket: 0,
            follows: self.draw.once_in(2),
            term: superblock.term,
            entry_term: superblock.term,
            numbers: BTreeMap::new(),
            issued: BTreeMap::new(),
            durable_number: 0,
            in_flight_max,
            update: None,
            writes_open: BTreeMap::new(),
            log_full: 0,
            later: 0,
            superseded: 0,
            superblock,
        }
    }

    fn keep(&mut self, boot: &mut Boot, write: &LogWrite, out: &LogEffects) {
        let block = self.geometry.block();
        let local = LocalHeader::decode(&write.slot[..block]).expect("own frame");
        let view = BodyView::new(&self.geometry, &write.slot[block..]).expect("own frame");
        assert!(local.sequence - local.durable_sequence <= 4, "the in-flight window");
        assert_eq!(local.term, boot.term);
        // Committed, and durable here as what it is now.
        let hint = local.commit_hint;
        let durable = boot.numbers.get(&hint.0).is_none_or(|n| *n <= boot.durable_number);
        assert!(hint <= boot.committed && durable, "hint {hint}");
        let issued = out.issued.iter().find(|issued| {
            (issued.place.ordinal % u64::from(self.geometry.segments_count)) as u32 == write.segment
                && u64::from(issued.place.offset) == write.offset
        });
        assert_eq!(issued.is_some(), view.shared.kind.is_entry());
        let place = issued.map_or(EntryPlace::NOWHERE, |issued| issued.place);
        if let Some(issued) = issued {
            assert_eq!(issued.lsn, view.shared.index);
            assert_eq!(issued.checksum, view.shared.checksum);
            assert_eq!(issued.place.bytes, write.bytes);
            boot.issued.insert(issued.number, write.sequence);
            boot.entries.place_set(issued.lsn, issued.checksum, place);
        }
        let before = &self.disk.segments[write.segment as usize][write.offset as usize..];
        let kept = Kept {
            // A copy: the ring takes the memory back.
            write: LogWrite { slot: write.slot.to_vec().into(), ..write.clone() },
            durable_sequence: local.durable_sequence,
            lsn: view.shared.index.0,
            shared: view.shared,
            place,
            before: before[..write.bytes as usize].to_vec(),
        };
        self.kept.insert(write.sequence, kept);
    }

    fn effects(&mut self, boot: &mut Boot, out: &LogEffects) {
        assert!(out.poisoned.is_none());
        for write in &out.writes {
            self.keep(boot, write, out);
            let bytes = write.slot.to_vec();
            self.disk.submit(write.sequence, File::Segment(write.segment), write.offset, bytes);
            boot.writes_open.insert(write.sequence, write.clone());
        }
        for raw in &out.raw_writes {
            let bytes = match &raw.content {
                RawContent::Zeros(bytes) => vec![0; *bytes as usize],
                RawContent::Bytes(bytes) => bytes.clone(),
            };
            let file = match raw.file {
                RawFile::Segment(segment) => File::Segment(segment),
                RawFile::Superblock => File::Superblock,
            };
            self.disk.submit(RAW_IDS + u64::from(raw.id), file, raw.offset, bytes);
        }
    }

    pub fn step(&mut self, boot: &mut Boot, input: LogInput) -> LogEffects {
        let mut out = LogEffects::default();
        boot.writer.step(boot.now_nanos, input, &mut boot.slots, &mut out);
        if let Some(number) = out.durable {
            assert!(number > boot.durable_number, "what is durable rises");
            boot.durable_number = number;
            let sequence = boot.issued[&number];
            assert!(boot.writes_open.range(..=sequence).next().is_none(), "a contiguous prefix");
            self.acknowledged = sequence;
        }
        self.effects(boot, &out);
        if let Some(sequence) = out.superblock_durable {
            let (superblock, floor) = boot.update.take().expect("an update is under way");
            assert_eq!(sequence, superblock.sequence);
            boot.superblock = superblock;
            boot.writer.floor_raise(&floor);
            self.kept = self.kept.split_off(&floor.chain.sequence);
            self.step(boot, LogInput::TurnEnd);
        }
        out
    }

    fn section_bytes(&mut self) -> usize {
        match self.draw.below(8) {
            0 => self.draw.range(1, self.largest / 2),
            1 | 2 => self.draw.range(1, 2000),
            _ => self.draw.range(1, 120),
        }
    }

    fn sections(&mut self) -> Vec<(PartitionId, u128, Vec<u8>)> {
        let partitions = usize::from(self.geometry.partitions);
        let mut kept = Vec::new();
        let mut total = 0;
        for _ in 0..self.draw.range(1, partitions) {
            let length = self.section_bytes();
            if total + length + 16 > self.largest {
                continue;
            }
            total += length.next_multiple_of(16);
            let partition = match self.draw.below(partitions + 1) {
                index if index == partitions => PARTITION_SYSTEM,
                index => PartitionId(index as u16),
            };
            let digest = u128::from(self.draw.next()) << 64 | u128::from(self.draw.next());
            kept.push((partition, digest, self.draw.bytes(length)));
        }
        kept
    }

    /// Appends one item of random sections if there is room.
    pub fn append(&mut self, boot: &mut Boot) {
        let kept = self.sections();
        if kept.is_empty() {
            return;
        }
        let item: Vec<Section<'_>> = kept
            .iter()
            .map(|(partition, digest, bytes)| Section {
                partition: *partition,
                digest: *digest,
                bytes,
            })
            .collect();
        let bytes = sections_bytes(&item);
        let reserve = if boot.follows { 0 } else { RESERVE_SEGMENTS };
        if !boot.writer.has_room(boot.assembler.frames_with(item.len(), bytes), reserve) {
            boot.log_full += 1;
            // A follower has no say: what comes waits for room.
            if !boot.follows || boot.writer.pending_count() >= PENDING_MAX {
                return;
            }
        }
        if boot.assembler.room(item.len(), bytes, &mut boot.slots) == AssemblerRoom::Later {
            boot.later += 1;
            return;
        }
        boot.ticket += 1 + self.draw.below(3) as u64;
        boot.assembler.append(boot.ticket, &item, &mut boot.slots);
    }

    fn identity(&mut self, boot: &mut Boot) -> SealIdentity {
        let before = boot.entries.last_identity();
        boot.entry_term = boot.entry_term.max(before.term);
        if boot.entry_term < boot.term && self.draw.once_in(3) {
            boot.entry_term = boot.term;
        }
        SealIdentity {
            cluster: CLUSTER,
            term: boot.entry_term,
            index: Lsn(before.lsn.0 + 1),
            previous: before.checksum,
            timestamp: boot.clock.stamp(boot.now_nanos, boot.wall),
        }
    }

    /// Gives a finished entry to the writer; a follower has it from the network.
    fn write(&mut self, boot: &mut Boot, frame: EntryFrame) -> bool {
        let frame = if boot.follows {
            let Some(mut slot) = boot.slots.reserve(frame.frame_bytes()) else {
                boot.later += 1;
                return false;
            };
            slot[self.geometry.block()..].copy_from_slice(&frame.body);
            EntryFrame::verify(&self.geometry, CLUSTER, slot).expect("sealed by a leader")
        } else {
            frame
        };
        let shared = frame.shared;
        assert!(boot.entries.accepts(&shared, boot.committed));
        boot.entries.take(&shared, EntryPlace::NOWHERE);
        let number = boot.writer.write(frame);
        boot.numbers.split_off(&shared.index.0);
        boot.numbers.insert(shared.index.0, number);
        true
    }

    /// What a shell does at the end of its turn, after a completion or not.
    pub fn turn_end(&mut self, boot: &mut Boot, completion: bool) {
        let in_flight_max = if boot.follows { PENDING_MAX } else { boot.in_flight_max };
        while boot.assembler.ripe(boot.writer.pending_count(), in_flight_max, completion) {
            let identity = self.identity(boot);
            let frame = boot.assembler.seal(identity, &mut boot.slots).expect("ripe");
            self.write(boot, frame);
        }
        self.step(boot, LogInput::TurnEnd);
    }

    /// An entry that is no batch.
    fn system(&mut self, boot: &mut Boot) {
        let (count, length) = (self.draw.below(2), self.draw.range(1, 300));
        let bytes = self.draw.bytes(length);
        let section = Section { partition: PARTITION_SYSTEM, digest: 7, bytes: &bytes };
        let sections = &[section][..count];
        let kind = [FrameKind::NoOp, FrameKind::Config][count];
        let room = boot.writer.has_room([8 << 10], 0);
        if boot.writer.pending_count() >= PENDING_MAX || !room {
            return;
        }
        let identity = self.identity(boot);
        let frame = boot.assembler.seal_system(identity, kind, sections, &mut boot.slots);
        if let Some(frame) = frame {
            self.write(boot, frame);
            self.step(boot, LogInput::TurnEnd);
        }
    }

    /// A new leader takes back what is not committed, from a random index on.
    fn supersede(&mut self, boot: &mut Boot) {
        let least = boot.committed.max(boot.entries.base().lsn);
        let open = (boot.entries.last().0 - least.0) as usize;
        boot.assembler.abandon();
        boot.term = Epoch(boot.term.0 + 1);
        boot.writer.hard_state_set(boot.term, NodeId(0));
        if open == 0 || boot.writer.pending_count() >= PENDING_MAX {
            return;
        }
        let keep = Lsn(least.0 + self.draw.below(open) as u64);
        let before = boot.entries.identity(keep).expect("kept");
        let old = boot.entries.get(Lsn(keep.0 + 1)).expect("replaced").term;
        // The new leader's entry may be of an older term than the one it replaces.
        let terms = before.term.0.max(boot.term.0.saturating_sub(3))..=boot.term.0;
        let terms: Vec<u64> = terms.filter(|term| *term > 0 && Epoch(*term) != old).collect();
        boot.entry_term = Epoch(self.draw.pick(&terms));
        let kept = self.sections();
        let Some((partition, digest, bytes)) = kept.first() else { return };
        let identity = SealIdentity {
            cluster: CLUSTER,
            term: boot.entry_term,
            index: Lsn(keep.0 + 1),
            previous: before.checksum,
            timestamp: boot.clock.stamp(boot.now_nanos, boot.wall),
        };
        let section = Section { partition: *partition, digest: *digest, bytes };
        let room = boot.assembler.room(1, sections_bytes(&[section]), &mut boot.slots);
        if room == AssemblerRoom::Later {
            return;
        }
        boot.ticket += 1;
        boot.assembler.append(boot.ticket, &[section], &mut boot.slots);
        let frame = boot.assembler.seal(identity, &mut boot.slots).expect("one item");
        boot.superseded += usize::from(self.write(boot, frame));
    }

    /// The leader says how far the log is committed; with one node that is what is durable.
    fn commit(&mut self, boot: &mut Boot) {
        let last = boot.entries.last().0;
        let durable = boot.numbers.iter().rev().find(|(_, n)| **n <= boot.durable_number);
        let durable = durable.map_or(boot.committed.0, |(index, _)| *index);
        let limit = if boot.follows { last } else { durable.max(boot.committed.0) };
        let from = boot.committed.0.min(limit);
        let lsn = from + self.draw.below((limit - from) as usize + 1) as u64;
        let lsn = if self.draw.once_in(2) { lsn } else { (lsn + limit) / 2 };
        for index in boot.committed.0 + 1..=lsn {
            let entry = boot.entries.identity(Lsn(index)).expect("it was written");
            self.committed.insert(index, entry.checksum);
        }
        boot.committed = boot.committed.max(Lsn(lsn));
        boot.writer.committed_set(Lsn(lsn));
    }

    pub fn complete_one(&mut self, boot: &mut Boot) {
        if self.disk.pending.is_empty() {
            return;
        }
        let index = self.draw.below(self.disk.pending.len());
        let write = self.disk.complete(index);
        let result = Ok(write.bytes.len() as u32);
        if write.id >= RAW_IDS {
            let id = (write.id - RAW_IDS) as u32;
            self.step(boot, LogInput::RawCompleted { id, result });
        } else {
            let frame = boot.writes_open.remove(&write.id).expect("open");
            assert!(*frame.slot == *write.bytes, "memory in flight does not change");
            self.step(boot, LogInput::WriteCompleted { sequence: write.id, result });
        }
        self.turn_end(boot, true);
    }

    /// Begins to raise the floor to a random covered index.
    pub fn floor_begin(&mut self, boot: &mut Boot) {
        if boot.writer.superblock_is_open() {
            return;
        }
        let lsn = Lsn(self.draw.below(boot.committed.0 as usize + 1) as u64);
        let lsn = if self.draw.once_in(2) { boot.committed } else { lsn };
        let floor = boot.writer.floor_for(lsn);
        assert!(floor.chain.lsn <= lsn || floor == boot.superblock.floor);
        let mut superblock = boot.superblock;
        superblock.sequence += 1;
        superblock.floor = floor;
        superblock.durable_sequence = boot.writer.durable_sequence();
        superblock.term = boot.term;
        boot.writer.superblock_write(&superblock);
        boot.update = Some((superblock, floor));
        self.step(boot, LogInput::TurnEnd);
    }

    pub fn advance(&mut self, boot: &mut Boot) {
        boot.now_nanos += self.draw.below(3_000_000) as u64;
        boot.wall = WallMicros(boot.wall.0 + self.draw.below(3000) as u64);
        self.wall = boot.wall;
    }

    /// One random event.
    pub fn event(&mut self, boot: &mut Boot) {
        self.advance(boot);
        match self.draw.below(20) {
            0..=5 => {
                for _ in 0..self.draw.range(1, 6) {
                    self.append(boot);
                }
                self.turn_end(boot, false);
            }
            6..=12 => self.complete_one(boot),
            13 => {
                self.step(boot, LogInput::Tick);
            }
            14 => self.turn_end(boot, false),
            15 => self.system(boot),
            16 if boot.follows => self.supersede(boot),
            16 | 17 => self.commit(boot),
            _ => {
                self.commit(boot);
                self.floor_begin(boot);
            }
        }
    }

    /// Completes everything and ends cleanly.
    pub fn shutdown(&mut self, boot: &mut Boot) {
        boot.writer.shutdown();
        self.turn_end(boot, true);
        while !self.disk.pending.is_empty() {
            self.complete_one(boot);
        }
    }

    pub fn crash(&mut self) {
        self.disk.crash(&mut self.draw);
    }
}

/// The sections of a view, for comparison.
pub fn sections_of<'a>(view: &BodyView<'a>) -> Vec<(u16, u128, &'a [u8])> {
    view.sections()
        .map(|SectionView { partition, digest, bytes }| (partition.0, digest, bytes))
        .collect()
}
