//! A node on a simulated disk, and the model of what it must remember.

use std::collections::BTreeMap;

use spillway_net::ids::{Epoch, Lsn, PartitionId, WallMicros};

use crate::log::batch::{BatchBuffers, Section, sections_bytes};
use crate::log::damage::LogDamaged;
use crate::log::frame::{FrameKind, PARTITION_SYSTEM};
use crate::log::geometry::Geometry;
use crate::log::position::Floor;
use crate::log::recovery::{LogScanner, Recovered, ScanItem};
use crate::log::superblock::{Superblock, SuperblockWrite, superblock_update};
use crate::log::testing::{CLUSTER, Draw, File, NODE, SimDisk, VecBuffers};
use crate::log::writer::{
    LogEffects, LogInput, LogWrite, LogWriter, LogWriterOptions, RawContent, Room,
};

/// A section as the model keeps it: partition, running digest, content.
pub type SectionKept = (PartitionId, u128, Vec<u8>);

/// An entry as the model keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryKept {
    pub epoch: Epoch,
    pub sections: Vec<SectionKept>,
}

/// What was ever given to the log and not superseded by a crash.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub entries: BTreeMap<u64, EntryKept>,
    /// Running digests after each entry.
    pub digests: BTreeMap<u64, Vec<u128>>,
    pub acknowledged: u64,
    pub timestamps: BTreeMap<u64, WallMicros>,
}

/// A frame that was issued, to aim damage at.
#[derive(Clone, Debug)]
pub struct Issued {
    pub write: LogWrite,
    pub durable_sequence: u64,
    pub lsn: u64,
    pub entry: bool,
    /// What stood there before.
    pub before: Vec<u8>,
}

pub struct Boot {
    pub writer: LogWriter,
    pub buffers: VecBuffers,
    pub superblock: Superblock,
    pub now_nanos: u64,
    pub wall: WallMicros,
    pub ticket: u64,
    /// Ticket of each index, highest.
    pub tickets: BTreeMap<u64, u64>,
    update: Option<Update>,
    /// Frames complete in any order: sequence -> done.
    pub writes_open: BTreeMap<u64, LogWrite>,
    pub log_full: usize,
    pub later: usize,
}

struct Update {
    superblock: Superblock,
    floor: Floor,
    rounds: Vec<Vec<SuperblockWrite>>,
    open: usize,
}

pub struct Node {
    pub geometry: Geometry,
    pub disk: SimDisk,
    pub model: Model,
    pub issued: BTreeMap<u64, Issued>,
    pub draw: Draw,
    pub wall: WallMicros,
    pub boots: u64,
    pub largest: usize,
}

const SUPERBLOCK_IDS: u64 = 1 << 60;
const RAW_IDS: u64 = 1 << 61;

impl Node {
    pub fn new(geometry: Geometry, seed: u64) -> Self {
        geometry.check().expect("test geometry");
        let mut model = Model::default();
        model.digests.insert(0, vec![0; usize::from(geometry.partitions)]);
        Self {
            geometry,
            disk: SimDisk::format(geometry),
            model,
            issued: BTreeMap::new(),
            draw: Draw(seed),
            wall: WallMicros(1_700_000_000_000_000),
            boots: 0,
            largest: geometry.payload_bytes_max(),
        }
    }

    /// Scans the disk and compares all that it yields with the model.
    pub fn scan(&mut self) -> Result<(Superblock, Recovered), LogDamaged> {
        let superblock = self.disk.superblock().expect("superblock readable").superblock;
        let read_bytes = self.draw.pick(&[0, 1 << 16, 1 << 18, 1 << 22]);
        let mut scanner = LogScanner::new(&superblock, read_bytes);
        let mut expected = superblock.floor.chain.lsn.0 + 1;
        let mut last = superblock.floor.chain.timestamp;
        while let Some(request) = scanner.next_read() {
            assert!(request.bytes <= scanner.read_bytes_max());
            let model = &self.model;
            let mut sink = |item: ScanItem<'_>| {
                let ScanItem::Entry(view) = item else { panic!("one node truncates nothing") };
                let lsn = view.shared.index.0;
                assert_eq!(lsn, expected, "entries in order, none twice, none skipped");
                expected += 1;
                assert!(view.shared.timestamp > last, "timestamps rise");
                last = view.shared.timestamp;
                let kept = model.entries.get(&lsn).expect("nothing that was never written");
                let sections: Vec<SectionKept> =
                    view.sections().map(|s| (s.partition, s.digest, s.bytes.to_vec())).collect();
                assert_eq!(sections, kept.sections, "entry {lsn} is whole and unchanged");
                assert_eq!(view.shared.entry_term, kept.epoch);
                assert_eq!(view.shared.kind == FrameKind::NoOp, sections.is_empty());
                if let Some(stamp) = model.timestamps.get(&lsn) {
                    assert_eq!(*stamp, view.shared.timestamp);
                }
            };
            scanner.feed(self.disk.read(&request), &mut sink)?;
        }
        let recovered = scanner.finish();
        assert_eq!(recovered.last_lsn.0 + 1, expected);
        Ok((superblock, recovered))
    }

    /// Starts the node: scan, check that nothing acknowledged is missing, superblock, writer.
    /// `None` when it lost power before the writer was made.
    pub fn boot(&mut self) -> Result<Option<Boot>, LogDamaged> {
        let (last, recovered) = self.scan()?;
        let lsn = recovered.last_lsn.0;
        assert!(lsn >= self.model.acknowledged, "acknowledged {}", self.model.acknowledged);
        Ok(self.boot_at(last, recovered))
    }

    fn boot_at(&mut self, last: Superblock, recovered: Recovered) -> Option<Boot> {
        let lsn = recovered.last_lsn.0;
        self.model.entries.retain(|index, _| *index <= lsn);
        self.model.digests.retain(|index, _| *index <= lsn);
        self.model.timestamps.retain(|index, _| *index <= lsn);
        // What was recovered is on the medium: it counts from now on.
        self.model.acknowledged = lsn;
        self.issued.retain(|sequence, _| *sequence < recovered.position.cursor.chain.sequence);
        let superblock = recovered.superblock_next(&last, Epoch(recovered.term.0 + 1), NODE);
        for round in superblock_update(&superblock) {
            for write in round {
                self.disk.submit(0, File::Superblock, write.offset, write.bytes);
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
        let buffers = self.draw.range(5, 8) as u16;
        let options = LogWriterOptions {
            cluster: CLUSTER,
            node: NODE,
            term: superblock.term,
            vote: superblock.vote,
            boot: superblock.boot,
            in_flight_max: 4,
            in_flight_small_max: self.draw.pick(&[1, 2, 4]),
            batch_bytes_wait: self.draw.pick(&[512, 4096, 32 << 10]),
            watermark_idle_nanos: 1_000_000,
            buffers,
        };
        let digests = self.model.digests.get(&lsn).expect("digests of every entry").clone();
        self.boots += 1;
        // The no-op that every boot begins with.
        self.model.entries.insert(lsn + 1, EntryKept { epoch: options.term, sections: vec![] });
        self.model.digests.insert(lsn + 1, digests.clone());
        // Clocks jump between boots.
        let jump = self.draw.below(2_000_000) as u64;
        self.wall = WallMicros(self.wall.0 + 1_000_000 - jump);
        Some(Boot {
            writer: LogWriter::new(options, recovered.position, digests),
            buffers: VecBuffers::new(&self.geometry, buffers),
            superblock,
            now_nanos: self.draw.next() >> 20,
            wall: self.wall,
            ticket: 0,
            tickets: BTreeMap::new(),
            update: None,
            writes_open: BTreeMap::new(),
            log_full: 0,
            later: 0,
        })
    }

    fn effects(&mut self, boot: &mut Boot, out: &LogEffects) {
        assert!(out.poisoned.is_none());
        for write in &out.writes {
            let from = write.buffer_offset as usize;
            let buffer = boot.buffers.buffer_mut(write.buffer);
            let bytes = buffer[from..from + write.bytes as usize].to_vec();
            let local = crate::log::frame::LocalHeader::decode(&bytes[..self.geometry.block()])
                .expect("own frame");
            let area = &bytes[self.geometry.block()..local.header_bytes as usize];
            let shared =
                crate::log::frame::SharedHeader::decode(&self.geometry, area).expect("own frame");
            assert!(local.sequence - local.durable_sequence <= 4, "the in-flight window");
            self.issued.insert(
                write.sequence,
                Issued {
                    write: *write,
                    durable_sequence: local.durable_sequence,
                    lsn: shared.index.0,
                    entry: shared.kind.is_entry(),
                    before: self.disk.segments[write.segment as usize][write.offset as usize..]
                        [..write.bytes as usize]
                        .to_vec(),
                },
            );
            self.disk.submit(write.sequence, File::Segment(write.segment), write.offset, bytes);
            boot.writes_open.insert(write.sequence, *write);
        }
        for raw in &out.raw_writes {
            let bytes = match &raw.content {
                RawContent::Zeros(bytes) => vec![0; *bytes as usize],
                RawContent::Bytes(bytes) => bytes.clone(),
            };
            let id = RAW_IDS + u64::from(raw.id);
            self.disk.submit(id, File::Segment(raw.segment), raw.offset, bytes);
        }
        if let Some(committed) = out.committed {
            assert!(committed.lsn.0 > self.model.acknowledged, "commits rise");
            self.model.acknowledged = committed.lsn.0;
            self.model.timestamps.insert(committed.lsn.0, committed.timestamp);
            let ticket = boot.tickets.range(..=committed.lsn.0).next_back();
            assert_eq!(committed.ticket, ticket.map_or(0, |(_, ticket)| *ticket));
        }
    }

    pub fn step(&mut self, boot: &mut Boot, input: LogInput) -> LogEffects {
        let mut out = LogEffects::default();
        let Boot { writer, buffers, now_nanos, wall, .. } = boot;
        writer.step(*now_nanos, *wall, input, buffers, &mut out);
        self.effects(boot, &out);
        out
    }

    fn section_bytes(&mut self) -> usize {
        match self.draw.below(8) {
            0 => self.draw.range(1, self.largest / 2),
            1 | 2 => self.draw.range(1, 2000),
            _ => self.draw.range(1, 120),
        }
    }

    /// Appends one item of random sections if there is room.
    pub fn append(&mut self, boot: &mut Boot) -> Room {
        let partitions = usize::from(self.geometry.partitions);
        let count = self.draw.range(1, partitions);
        let mut kept = Vec::new();
        let mut total = 0;
        for _ in 0..count {
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
        let item: Vec<Section<'_>> = kept
            .iter()
            .map(|(partition, digest, bytes)| Section {
                partition: *partition,
                digest: *digest,
                bytes,
            })
            .collect();
        if item.is_empty() {
            return Room::Later;
        }
        let room = boot.writer.room(item.len(), sections_bytes(&item));
        match room {
            Room::Fits => {}
            Room::Later => boot.later += 1,
            Room::LogFull(_) => boot.log_full += 1,
            Room::Poisoned => panic!("not poisoned"),
        }
        if room == Room::Fits {
            boot.ticket += 1 + self.draw.below(3) as u64;
            let lsn = boot.writer.append(boot.ticket, &item, &mut boot.buffers);
            self.remember(boot, lsn, kept);
        }
        room
    }

    fn remember(&mut self, boot: &mut Boot, lsn: Lsn, mut kept: Vec<SectionKept>) {
        let lsn = lsn.0;
        let before = self.model.digests.range(..=lsn).next_back().expect("0 is there").1;
        let mut digests = before.clone();
        for (partition, digest, _) in &mut kept {
            if *partition != PARTITION_SYSTEM {
                let running = &mut digests[usize::from(partition.0)];
                *running = running.wrapping_add(*digest);
                *digest = *running;
            }
        }
        assert_eq!(boot.writer.digests(), digests);
        self.model.digests.insert(lsn, digests);
        let epoch = boot.superblock.term;
        let entry = self.model.entries.entry(lsn);
        let entry = entry.or_insert_with(|| EntryKept { epoch, sections: vec![] });
        entry.sections.extend(kept);
        boot.tickets.insert(lsn, boot.ticket);
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
        } else if write.id >= SUPERBLOCK_IDS {
            self.update_completed(boot);
        } else {
            let frame = boot.writes_open.remove(&write.id).expect("open");
            let from = frame.buffer_offset as usize;
            let buffer = boot.buffers.buffer_mut(frame.buffer);
            let now = &buffer[from..from + frame.bytes as usize];
            assert_eq!(now, write.bytes, "a buffer in flight does not change");
            self.step(boot, LogInput::WriteCompleted { sequence: write.id, result });
        }
    }

    /// Begins to raise the floor to a random covered index.
    pub fn floor_begin(&mut self, boot: &mut Boot) {
        if boot.update.is_some() {
            return;
        }
        let lsn = Lsn(self.draw.below(self.model.acknowledged as usize + 1) as u64);
        let lsn = if self.draw.once_in(2) { Lsn(self.model.acknowledged) } else { lsn };
        let floor = boot.writer.floor_for(lsn);
        assert!(floor.chain.lsn <= lsn || floor == boot.superblock.floor);
        let mut superblock = boot.superblock;
        superblock.sequence += 1;
        superblock.floor = floor;
        superblock.durable_sequence = boot.writer.durable_sequence();
        let mut rounds = superblock_update(&superblock).to_vec();
        rounds.reverse();
        boot.update = Some(Update { superblock, floor, rounds, open: 1 });
        self.update_completed(boot);
    }

    fn update_completed(&mut self, boot: &mut Boot) {
        let update = boot.update.as_mut().expect("an update is under way");
        update.open -= 1;
        if update.open > 0 {
            return;
        }
        if let Some(round) = update.rounds.pop() {
            for write in round {
                update.open += 1;
                self.disk.submit(SUPERBLOCK_IDS, File::Superblock, write.offset, write.bytes);
            }
            return;
        }
        boot.superblock = update.superblock;
        let floor = update.floor;
        boot.update = None;
        boot.writer.floor_raise(&floor);
        self.issued.retain(|sequence, _| *sequence >= floor.chain.sequence);
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
        match self.draw.below(18) {
            0..=5 => {
                for _ in 0..self.draw.range(1, 6) {
                    self.append(boot);
                }
                self.step(boot, LogInput::TurnEnd);
            }
            6..=12 => self.complete_one(boot),
            13 => {
                self.step(boot, LogInput::Tick);
            }
            14 => {
                self.step(boot, LogInput::TurnEnd);
            }
            _ => self.floor_begin(boot),
        }
    }

    /// Completes everything and ends cleanly.
    pub fn shutdown(&mut self, boot: &mut Boot) {
        boot.writer.shutdown();
        self.step(boot, LogInput::TurnEnd);
        while !self.disk.pending.is_empty() {
            self.complete_one(boot);
            self.step(boot, LogInput::TurnEnd);
        }
    }

    pub fn crash(&mut self) {
        self.disk.crash(&mut self.draw);
    }
}
