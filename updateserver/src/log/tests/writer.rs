//! Assembler and writer together: batching, the durable prefix, watermarks, space, poison.

use spillway_net::ids::{Epoch, Lsn, NodeId, PartitionId, WallMicros};
use spillway_net::limits::BATCH_BYTES_MAX;
use spillway_runtime::slot_ring::SlotRing;

use super::harness::sections_of;
use crate::log::assembler::{AssemblerRoom, BatchAssembler, SealIdentity, Section, sections_bytes};
use crate::log::effects::{LogEffects, LogInput, LogWrite, Poisoned, RawContent, RawFile};
use crate::log::entries::EntryBase;
use crate::log::entry_frame::EntryFrame;
use crate::log::frame::{BodyView, FrameKind, LocalHeader, PARTITION_SYSTEM};
use crate::log::geometry::Geometry;
use crate::log::recovery::{LogScanner, Recovered};
use crate::log::superblock::Superblock;
use crate::log::testing::{CLUSTER, NODE, SimDisk, small_geometry};
use crate::log::writer::{LogWriter, LogWriterOptions, RESERVE_SEGMENTS};

const IDLE: u64 = 1_000_000;
const IN_FLIGHT_MAX: usize = 4;

struct Rig {
    geometry: Geometry,
    assembler: BatchAssembler,
    writer: LogWriter,
    slots: SlotRing,
    last: EntryBase,
    now: u64,
}

fn scan(disk: &SimDisk) -> (Superblock, Recovered) {
    let superblock = disk.superblock().expect("readable").superblock;
    let mut scanner = LogScanner::new(&superblock, 0);
    while let Some(read) = scanner.next_read() {
        scanner.feed(disk.read(&read), &mut |_| {}).expect("no damage");
    }
    (superblock, scanner.finish())
}

fn options(node: NodeId, boot: u64) -> LogWriterOptions {
    LogWriterOptions {
        cluster: CLUSTER,
        node,
        term: Epoch(7),
        vote: NodeId(3),
        boot,
        in_flight_max: IN_FLIGHT_MAX,
        watermark_idle_nanos: IDLE,
    }
}

impl Rig {
    fn new(geometry: Geometry) -> Self {
        let (_, recovered) = scan(&SimDisk::format(geometry));
        let ring_bytes = 12 * geometry.batch_bytes_max.next_multiple_of(4096) as usize;
        Self {
            geometry,
            assembler: BatchAssembler::new(geometry, 1, 1000),
            last: recovered.entries.base(),
            writer: LogWriter::new(options(NODE, 1), recovered.position),
            slots: SlotRing::new("test", ring_bytes).expect("memory"),
            now: 0,
        }
    }

    fn identity(&self) -> SealIdentity {
        SealIdentity {
            cluster: CLUSTER,
            term: Epoch(7),
            index: Lsn(self.last.lsn.0 + 1),
            previous: self.last.checksum,
            timestamp: WallMicros(self.last.timestamp.0 + 10),
        }
    }

    fn write(&mut self, frame: EntryFrame) -> u64 {
        let shared = frame.shared;
        self.last = EntryBase {
            lsn: shared.index,
            term: shared.entry_term,
            checksum: shared.checksum,
            timestamp: shared.timestamp,
        };
        self.writer.write(frame)
    }

    /// What a shell of one node does: seals what is ripe between completion and turn's end.
    fn step(&mut self, input: LogInput) -> LogEffects {
        let mut out = LogEffects::default();
        let completion = matches!(input, LogInput::WriteCompleted { .. });
        if completion {
            self.writer.step(self.now, input, &mut self.slots, &mut out);
        }
        let poisoned = self.writer.poisoned().is_some();
        let timed = matches!(input, LogInput::Tick);
        while !poisoned
            && !timed
            && self.assembler.ripe(self.writer.pending_count(), IN_FLIGHT_MAX, completion)
        {
            let frame = self.assembler.seal(self.identity(), &mut self.slots).expect("ripe");
            self.write(frame);
        }
        let input = if completion { LogInput::TurnEnd } else { input };
        self.writer.step(self.now, input, &mut self.slots, &mut out);
        out
    }

    fn complete(&mut self, write: &LogWrite) -> LogEffects {
        let (sequence, result) = (write.sequence, Ok(write.bytes));
        self.step(LogInput::WriteCompleted { sequence, result })
    }

    fn has_room(&self, length: usize, reserve: usize) -> bool {
        let length = length.next_multiple_of(16);
        self.writer.has_room(self.assembler.frames_with(1, length), reserve)
    }

    fn append(&mut self, ticket: u64, length: usize) {
        let bytes = vec![ticket as u8; length];
        let section = Section { partition: PartitionId(1), digest: 1, bytes: &bytes };
        assert!(self.has_room(length, 0));
        let room = self.assembler.room(1, length.next_multiple_of(16), &mut self.slots);
        assert_eq!(room, AssemblerRoom::Fits);
        self.assembler.append(ticket, &[section], &mut self.slots);
    }

    fn headers<'a>(&self, write: &'a LogWrite) -> (LocalHeader, BodyView<'a>) {
        let block = self.geometry.block();
        let local = LocalHeader::decode(&write.slot[..block]).expect("own frame");
        let body = BodyView::new(&self.geometry, &write.slot[block..]).expect("own frame");
        assert_eq!(local.shared, body.shared.checksum);
        (local, body)
    }
}

#[test]
fn a_start_alone_writes_nothing_and_frames_name_the_boot() {
    let mut rig = Rig::new(small_geometry());
    let out = rig.step(LogInput::TurnEnd);
    assert!(out.writes.is_empty() && out.raw_writes.is_empty() && rig.writer.is_quiet());
    let frame = rig.assembler.seal_system(rig.identity(), FrameKind::NoOp, &[], &mut rig.slots);
    assert_eq!(rig.write(frame.expect("room")), 1);
    let out = rig.step(LogInput::TurnEnd);
    let (local, view) = rig.headers(&out.writes[0]);
    assert_eq!(view.shared.kind, FrameKind::NoOp);
    assert_eq!((local.boot, local.term, local.vote), (1, Epoch(7), NodeId(3)));
    assert_eq!((local.cluster, local.node), (CLUSTER, NODE));
    assert_eq!((local.sequence, local.durable_sequence, local.commit_hint), (1, 0, Lsn(0)));
    assert_eq!((view.shared.index, view.shared.entry_term), (Lsn(1), Epoch(7)));
    assert_eq!(out.writes[0].bytes, 2 * 512);
    let (number, lsn) = (out.issued[0].number, out.issued[0].lsn);
    assert_eq!((number, lsn, out.issued[0].place.bytes), (1, Lsn(1), 1024));
    assert_eq!(rig.complete(&out.writes[0]).durable, Some(1));
}

#[test]
fn a_small_batch_costs_three_blocks() {
    let geometry = Geometry {
        block_bytes: 4096,
        segment_bytes: 8 << 20,
        segments_count: 4,
        partitions: 256,
        batch_bytes_max: BATCH_BYTES_MAX as u32,
    };
    let mut rig = Rig::new(geometry);
    rig.append(1, 3000);
    let out = rig.step(LogInput::TurnEnd);
    assert_eq!(out.writes[0].bytes, 3 * 4096);
    assert!(out.writes[0].slot.address().is_multiple_of(4096));
    assert!(out.writes[0].offset.is_multiple_of(4096));
}

#[test]
fn with_nothing_in_flight_a_batch_goes_at_once_else_it_waits() {
    let mut rig = Rig::new(small_geometry());
    rig.append(1, 10);
    let first = rig.step(LogInput::TurnEnd);
    assert_eq!(first.writes.len(), 1, "nothing was in flight");
    rig.append(2, 10);
    assert!(rig.step(LogInput::TurnEnd).writes.is_empty(), "less than batch_bytes_wait");
    rig.append(3, 10);
    let out = rig.complete(&first.writes[0]);
    assert_eq!(out.durable, Some(1));
    assert_eq!(out.writes.len(), 1, "a completion sends what waits");
    let (_, view) = rig.headers(&out.writes[0]);
    assert_eq!((view.shared.index, view.shared.section_count), (Lsn(2), 2), "items share a batch");
    rig.append(4, 2000);
    let large = rig.step(LogInput::TurnEnd);
    assert_eq!(large.writes.len(), 1, "more than batch_bytes_wait");
    let (_, view) = rig.headers(&large.writes[0]);
    assert_eq!((view.shared.index, view.shared.section_count), (Lsn(3), 1));
}

#[test]
fn only_the_contiguous_durable_prefix_is_reported() {
    let mut rig = Rig::new(small_geometry());
    let writes: Vec<LogWrite> = (1..=4)
        .map(|ticket| {
            rig.append(ticket, 1500);
            rig.step(LogInput::TurnEnd).writes[0].clone()
        })
        .collect();
    rig.append(5, 1500);
    assert!(rig.step(LogInput::TurnEnd).writes.is_empty(), "four are in flight");
    for index in [2, 1, 3] {
        let out = rig.complete(&writes[index]);
        assert_eq!(out.durable, None, "the first is not durable");
        assert!(out.writes.is_empty(), "the window counts from the durable prefix");
    }
    rig.writer.committed_set(Lsn(4));
    let out = rig.complete(&writes[0]);
    assert_eq!(out.durable, Some(4));
    let (local, _) = rig.headers(&out.writes[0]);
    assert_eq!((local.sequence, local.durable_sequence, local.commit_hint), (5, 4, Lsn(4)));
}

#[test]
fn a_commit_hint_is_never_above_what_is_durable_here() {
    let mut rig = Rig::new(small_geometry());
    rig.append(1, 1500);
    let first = rig.step(LogInput::TurnEnd).writes[0].clone();
    rig.append(2, 1500);
    let second = rig.step(LogInput::TurnEnd).writes[0].clone();
    // Two other nodes have both.
    rig.writer.committed_set(Lsn(2));
    rig.append(3, 1500);
    let third = rig.step(LogInput::TurnEnd).writes[0].clone();
    assert_eq!(rig.headers(&third).0.commit_hint, Lsn(0));
    rig.complete(&second);
    rig.append(4, 1500);
    let fourth = rig.step(LogInput::TurnEnd).writes[0].clone();
    assert_eq!(rig.headers(&fourth).0.commit_hint, Lsn(0), "durable with a hole before it");
    rig.complete(&first);
    rig.append(5, 1500);
    let fifth = rig.step(LogInput::TurnEnd).writes[0].clone();
    assert_eq!(rig.headers(&fifth).0.commit_hint, Lsn(2));
    rig.complete(&third);
    rig.append(6, 1500);
    let sixth = rig.step(LogInput::TurnEnd).writes[0].clone();
    assert_eq!(rig.headers(&sixth).0.commit_hint, Lsn(2), "durable is not committed");
}

/// A change of members follows from the one before it, and its frame says that that is committed.
#[test]
fn a_change_of_members_is_issued_when_all_before_it_is_durable() {
    let mut rig = Rig::new(small_geometry());
    let config = |rig: &mut Rig| {
        let section = Section { partition: PARTITION_SYSTEM, digest: 1, bytes: b"members" };
        let (identity, sections) = (rig.identity(), [section]);
        let kind = FrameKind::Config;
        let frame = rig.assembler.seal_system(identity, kind, &sections, &mut rig.slots);
        rig.write(frame.expect("room"));
        rig.step(LogInput::TurnEnd).writes
    };
    rig.append(1, 1500);
    let data = rig.step(LogInput::TurnEnd).writes[0].clone();
    assert!(config(&mut rig).is_empty(), "entry 1 is on its way");
    let first = rig.complete(&data).writes;
    assert_eq!(rig.headers(&first[0]).0.commit_hint, Lsn(0));
    // Others have it, and the next change was proposed.
    rig.writer.committed_set(Lsn(2));
    assert!(config(&mut rig).is_empty(), "entry 2 is on its way");
    rig.append(2, 1500);
    assert!(rig.step(LogInput::TurnEnd).writes.is_empty(), "nothing overtakes");
    let second = rig.complete(&first[0]).writes;
    assert_eq!(second.len(), 2, "what follows does not wait");
    let hints = second.iter().map(|write| rig.headers(write).0.commit_hint);
    assert_eq!(hints.collect::<Vec<_>>(), [Lsn(2), Lsn(2)]);
}

#[test]
fn sections_keep_their_digests_and_their_order() {
    let mut rig = Rig::new(small_geometry());
    let sections = [
        Section { partition: PartitionId(3), digest: 5, bytes: b"three" },
        Section { partition: PARTITION_SYSTEM, digest: 9, bytes: b"system" },
        Section { partition: PartitionId(3), digest: u128::MAX, bytes: b"again" },
    ];
    rig.assembler.append(1, &sections, &mut rig.slots);
    assert_eq!(rig.assembler.pending_bytes(), sections_bytes(&sections));
    let out = rig.step(LogInput::TurnEnd);
    let (_, view) = rig.headers(&out.writes[0]);
    let expected: Vec<(u16, u128, &[u8])> =
        vec![(3, 5, b"three"), (0xFFFF, 9, b"system"), (3, u128::MAX, b"again")];
    assert_eq!(sections_of(&view), expected);
}

#[test]
fn one_watermark_covers_an_idle_period() {
    let mut rig = Rig::new(small_geometry());
    rig.append(1, 10);
    let out = rig.step(LogInput::TurnEnd);
    rig.now = 500;
    let out = rig.complete(&out.writes[0]);
    assert_eq!(out.next_deadline_nanos, Some(IDLE), "counted from the last frame");
    rig.now = IDLE - 1;
    assert!(rig.step(LogInput::Tick).writes.is_empty());
    rig.now = IDLE;
    let out = rig.step(LogInput::Tick);
    let (local, view) = rig.headers(&out.writes[0]);
    assert_eq!(
        (view.shared.kind, view.shared.index, local.durable_sequence),
        (FrameKind::Watermark, Lsn(1), 1)
    );
    assert!(out.issued.is_empty(), "a watermark is no entry");
    let out = rig.complete(&out.writes[0]);
    assert_eq!((out.durable, out.next_deadline_nanos), (None, None));
    for _ in 0..10 {
        rig.now += 10 * IDLE;
        let out = rig.step(LogInput::Tick);
        assert!(out.writes.is_empty() && out.next_deadline_nanos.is_none(), "one per idle period");
    }
    assert!(rig.writer.is_quiet());
    rig.append(2, 10);
    let out = rig.step(LogInput::TurnEnd);
    let (_, view) = rig.headers(&out.writes[0]);
    assert_eq!(view.shared.index, Lsn(2), "a watermark takes no index");
    assert_eq!(out.issued[0].number, 2, "and no write number");
}

#[test]
fn a_watermark_waits_for_memory() {
    let mut rig = Rig::new(small_geometry());
    rig.append(1, 10);
    let out = rig.step(LogInput::TurnEnd);
    rig.complete(&out.writes[0]);
    drop(out);
    let mut hold = Vec::new();
    while let Some(slot) = rig.slots.reserve(4096) {
        hold.push(slot);
    }
    rig.now = IDLE;
    let out = rig.step(LogInput::Tick);
    assert!(out.writes.is_empty());
    assert_eq!(out.next_deadline_nanos, Some(2 * IDLE), "it looks again later");
    hold.clear();
    rig.now = 2 * IDLE;
    assert_eq!(rig.step(LogInput::Tick).writes.len(), 1);
}

#[test]
fn shutdown_writes_a_watermark_when_all_is_durable() {
    let mut rig = Rig::new(small_geometry());
    rig.append(1, 10);
    let data = rig.step(LogInput::TurnEnd);
    rig.writer.shutdown();
    assert!(rig.step(LogInput::TurnEnd).writes.is_empty(), "data is in flight");
    let out = rig.complete(&data.writes[0]);
    assert_eq!(out.writes.len(), 1);
    let (local, view) = rig.headers(&out.writes[0]);
    assert_eq!((view.shared.kind, local.durable_sequence), (FrameKind::Watermark, 1));
    assert!(!rig.writer.is_quiet());
    rig.complete(&out.writes[0]);
    assert!(rig.writer.is_quiet());
}

#[test]
fn a_failed_or_short_write_poisons_for_ever() {
    let failures: [(Result<u32, i32>, bool); 4] =
        [(Err(5), false), (Err(28), false), (Ok(512), true), (Ok(0), true)];
    for (result, short) in failures {
        let mut rig = Rig::new(small_geometry());
        rig.append(1, 1500);
        let first = rig.step(LogInput::TurnEnd).writes[0].clone();
        rig.append(2, 1500);
        let second = rig.step(LogInput::TurnEnd).writes[0].clone();
        let out = rig.step(LogInput::WriteCompleted { sequence: second.sequence, result });
        let poisoned = out.poisoned.expect("reported");
        assert_eq!(matches!(poisoned, Poisoned::Short { .. }), short);
        assert!(poisoned.to_string().contains(&format!("offset {}", second.offset)));
        assert!(out.durable.is_none() && out.writes.is_empty());
        let out = rig.complete(&first);
        assert!(out.durable.is_none(), "not even an earlier write is reported any more");
        assert!(out.poisoned.is_none(), "reported once");
        assert_eq!(rig.writer.poisoned(), Some(poisoned));
        rig.append(3, 10);
        let frame = rig.assembler.seal(rig.identity(), &mut rig.slots).expect("appended");
        assert_eq!(rig.write(frame), 3, "taken, and never durable");
        rig.now += 10 * IDLE;
        let out = rig.step(LogInput::Tick);
        assert!(out.writes.is_empty() && out.raw_writes.is_empty());
    }
}

#[test]
fn a_superblock_is_written_in_rounds_and_its_failure_poisons() {
    for fail in [false, true] {
        let mut rig = Rig::new(small_geometry());
        let (superblock, _) = scan(&SimDisk::format(rig.geometry));
        let superblock = Superblock { sequence: 2, term: Epoch(7), boot: 1, ..superblock };
        rig.writer.superblock_write(&superblock);
        let mut open = rig.step(LogInput::TurnEnd).raw_writes;
        let mut offsets = Vec::new();
        while let Some(raw) = open.pop() {
            assert!(rig.writer.superblock_is_open() && !rig.writer.is_quiet());
            assert_eq!(raw.file, RawFile::Superblock);
            let RawContent::Bytes(bytes) = &raw.content else { panic!("a copy") };
            let copy = (raw.offset / 512) as usize;
            assert_eq!(Superblock::decode(copy, bytes), Ok(superblock));
            offsets.push(raw.offset);
            let last = offsets.len() == 4;
            let result = if fail && last { Err(5) } else { Ok(raw.content.len()) };
            let out = rig.step(LogInput::RawCompleted { id: raw.id, result });
            assert!(out.raw_writes.is_empty() || open.is_empty(), "round after round");
            assert_eq!(out.superblock_durable, (last && !fail).then_some(2));
            assert_eq!(out.poisoned.is_some(), last && fail);
            open.extend(out.raw_writes);
        }
        assert_eq!(rig.writer.superblock_is_open(), fail);
        offsets.sort_unstable();
        assert_eq!(offsets, [0, 512, 1024, 1536]);
    }
}

/// Fills the log until data is refused; every write completes at once.
fn fill(rig: &mut Rig) -> u64 {
    for ticket in 1.. {
        let length = rig.geometry.payload_bytes_max();
        if !rig.has_room(length, RESERVE_SEGMENTS) {
            let space = rig.writer.space();
            assert!(space.used_bytes < space.total_bytes);
            return ticket;
        }
        rig.append(ticket, length);
        let out = rig.step(LogInput::TurnEnd);
        rig.complete(&out.writes[0]);
        rig.writer.committed_set(Lsn(ticket));
    }
    unreachable!("a log is finite");
}

#[test]
fn a_full_log_refuses_data_keeps_its_reserve_and_recovers_space() {
    let mut rig = Rig::new(small_geometry());
    let ticket = fill(&mut rig);
    let largest = rig.geometry.payload_bytes_max();
    assert!(rig.has_room(largest, 0), "a freeze entry has room");
    let floor = rig.writer.floor_for(rig.last.lsn);
    assert!(floor.ordinal > 0);
    rig.writer.floor_raise(&floor);
    let mut out = rig.step(LogInput::TurnEnd);
    let mut prepared = 0;
    while let Some(raw) = out.raw_writes.pop() {
        assert!(matches!(raw.file, RawFile::Segment(_)) && raw.offset == 0);
        assert!(matches!(raw.content, RawContent::Bytes(_)));
        prepared += 1;
        let result = Ok(raw.content.len());
        out = rig.step(LogInput::RawCompleted { id: raw.id, result });
    }
    assert_eq!(prepared, floor.ordinal, "one by one, each released segment");
    assert!(rig.has_room(largest, RESERVE_SEGMENTS));
    rig.append(ticket, largest);
}

#[test]
fn idle_watermarks_never_eat_a_full_log() {
    let mut rig = Rig::new(small_geometry());
    let ticket = fill(&mut rig);
    let largest = rig.geometry.payload_bytes_max();
    // The reserve, used up to the end by entries that may use it.
    for ticket in ticket.. {
        if !rig.has_room(largest, 0) {
            break;
        }
        rig.append(ticket, largest);
        let out = rig.step(LogInput::TurnEnd);
        rig.complete(&out.writes[0]);
    }
    rig.now += 10 * IDLE;
    assert!(rig.step(LogInput::Tick).writes.is_empty(), "no watermark into the last bytes");
    assert!(rig.writer.is_quiet(), "nor does the end wait for one");
    // A follower has no say: what does not fit waits until the floor rises.
    let section = Section { partition: PartitionId(0), digest: 0, bytes: &vec![1; largest] };
    rig.assembler.append(u64::MAX, &[section], &mut rig.slots);
    assert!(rig.step(LogInput::TurnEnd).writes.is_empty());
    assert_eq!(rig.writer.pending_count(), 1);
    rig.writer.committed_set(rig.last.lsn);
    let floor = rig.writer.floor_for(rig.last.lsn);
    rig.writer.floor_raise(&floor);
    let raw = rig.step(LogInput::TurnEnd).raw_writes.pop().expect("a segment is prepared");
    let result = Ok(raw.content.len());
    assert_eq!(rig.step(LogInput::RawCompleted { id: raw.id, result }).writes.len(), 1);
}

#[test]
fn a_segment_is_entered_only_when_all_before_it_is_durable() {
    let mut rig = Rig::new(small_geometry());
    let mut in_flight: Vec<LogWrite> = Vec::new();
    let mut entered = 0;
    for ticket in 1.. {
        let mut issued = Vec::new();
        let length: usize = 20_000;
        if !rig.has_room(length, RESERVE_SEGMENTS) {
            break;
        }
        let room = rig.assembler.room(1, length.next_multiple_of(16), &mut rig.slots);
        if room == AssemblerRoom::Fits {
            rig.append(ticket, length);
            issued.extend(rig.step(LogInput::TurnEnd).writes);
        } else {
            // The second before the first, when there is one.
            let write = in_flight.remove(usize::from(in_flight.len() == 4));
            issued.extend(rig.complete(&write).writes);
        }
        for write in issued {
            if write.offset == rig.geometry.data_offset() && ticket > 1 {
                assert!(in_flight.is_empty(), "{in_flight:?} before segment {}", write.segment);
                entered += 1;
            }
            in_flight.push(write);
        }
    }
    assert_eq!(entered, 2, "the second and the third segment; the fourth is the reserve");
}

#[test]
fn frames_of_one_partition_per_section_fit_the_largest_item() {
    let geometry = Geometry {
        block_bytes: 512,
        segment_bytes: 8 << 20,
        segments_count: 4,
        partitions: 1024,
        batch_bytes_max: BATCH_BYTES_MAX as u32,
    };
    let mut rig = Rig::new(geometry);
    let bytes = [7u8; 880];
    let sections: Vec<Section<'_>> = (0..1024)
        .map(|index| Section { partition: PartitionId(index), digest: 1, bytes: &bytes })
        .collect();
    let room = rig.assembler.room(1024, 1024 * 880, &mut rig.slots);
    assert_eq!(room, AssemblerRoom::Fits);
    rig.assembler.append(1, &sections, &mut rig.slots);
    let out = rig.step(LogInput::TurnEnd);
    let (local, view) = rig.headers(&out.writes[0]);
    assert_eq!(view.shared.section_count, 1024);
    assert!(local.frame_bytes as usize <= BATCH_BYTES_MAX);
}
