//! The writer alone: batching, acknowledgement, watermarks, space, poison.

use spillway_net::ids::{Epoch, Lsn, NodeId, PartitionId, WallMicros};
use spillway_net::limits::BATCH_BYTES_MAX;

use crate::log::batch::{BatchBuffers, Committed, Section};
use crate::log::frame::{FrameKind, LocalHeader, PARTITION_SYSTEM, SharedHeader};
use crate::log::geometry::Geometry;
use crate::log::recovery::{LogScanner, Recovered};
use crate::log::superblock::Superblock;
use crate::log::testing::{CLUSTER, NODE, SimDisk, VecBuffers, small_geometry};
use crate::log::writer::{
    LogEffects, LogInput, LogWrite, LogWriter, LogWriterOptions, Poisoned, RawContent, Room,
};

const IDLE: u64 = 1_000_000;

struct Rig {
    geometry: Geometry,
    writer: LogWriter,
    buffers: VecBuffers,
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

impl Rig {
    fn new(geometry: Geometry) -> Self {
        let (_, recovered) = scan(&SimDisk::format(geometry));
        let options = LogWriterOptions {
            cluster: CLUSTER,
            node: NODE,
            term: Epoch(7),
            vote: NodeId(3),
            boot: 1,
            in_flight_max: 4,
            in_flight_small_max: 1,
            batch_bytes_wait: 1000,
            watermark_idle_nanos: IDLE,
            buffers: 6,
        };
        let digests = vec![100; usize::from(geometry.partitions)];
        let writer = LogWriter::new(options, recovered.position, digests);
        Self { geometry, writer, buffers: VecBuffers::new(&geometry, 6), now: 0 }
    }

    /// A rig whose no-op is durable.
    fn started(geometry: Geometry) -> Self {
        let mut rig = Self::new(geometry);
        let out = rig.step(LogInput::TurnEnd);
        assert_eq!(out.writes.len(), 1);
        let out = rig.complete(&out.writes[0]);
        assert_eq!(out.committed.map(|c| c.lsn), Some(Lsn(1)));
        rig
    }

    fn step(&mut self, input: LogInput) -> LogEffects {
        let mut out = LogEffects::default();
        let wall = WallMicros(1000 + self.now / 1000);
        self.writer.step(self.now, wall, input, &mut self.buffers, &mut out);
        out
    }

    fn complete(&mut self, write: &LogWrite) -> LogEffects {
        let (sequence, result) = (write.sequence, Ok(write.bytes));
        self.step(LogInput::WriteCompleted { sequence, result })
    }

    fn append(&mut self, ticket: u64, length: usize) -> Lsn {
        let bytes = vec![ticket as u8; length];
        let section = Section { partition: PartitionId(1), digest: 1, bytes: &bytes };
        assert_eq!(self.writer.room(1, length.next_multiple_of(16)), Room::Fits);
        self.writer.append(ticket, &[section], &mut self.buffers)
    }

    fn headers(&mut self, write: &LogWrite) -> (LocalHeader, SharedHeader) {
        let from = write.buffer_offset as usize;
        let frame = &self.buffers.buffer_mut(write.buffer)[from..from + write.bytes as usize];
        let block = self.geometry.block();
        let local = LocalHeader::decode(&frame[..block]).expect("own frame");
        let area = &frame[block..local.header_bytes as usize];
        (local, SharedHeader::decode(&self.geometry, area).expect("own frame"))
    }
}

#[test]
fn the_first_frame_is_a_no_op_of_the_boot() {
    let mut rig = Rig::new(small_geometry());
    let out = rig.step(LogInput::TurnEnd);
    let (local, shared) = rig.headers(&out.writes[0]);
    assert_eq!(shared.kind, FrameKind::NoOp);
    assert_eq!((local.boot, local.term, local.vote), (1, Epoch(7), NodeId(3)));
    assert_eq!((local.cluster, local.node), (CLUSTER, NODE));
    assert_eq!((local.sequence, local.durable_sequence, local.commit_hint), (1, 0, Lsn(0)));
    assert_eq!((shared.index, shared.entry_term), (Lsn(1), Epoch(7)));
    assert_eq!(out.writes[0].bytes, 2 * 512);
    let committed = rig.complete(&out.writes[0]).committed;
    let expected =
        Committed { epoch: Epoch(7), lsn: Lsn(1), ticket: 0, timestamp: shared.timestamp };
    assert_eq!(committed, Some(expected));
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
    let mut rig = Rig::started(geometry);
    rig.append(1, 3000);
    let out = rig.step(LogInput::TurnEnd);
    assert_eq!(out.writes[0].bytes, 3 * 4096);
    assert!(out.writes[0].buffer_offset.is_multiple_of(4096));
    assert!(out.writes[0].offset.is_multiple_of(4096));
}

#[test]
fn with_nothing_in_flight_a_batch_goes_at_once_else_it_waits() {
    let mut rig = Rig::started(small_geometry());
    assert_eq!(rig.append(1, 10), Lsn(2));
    let first = rig.step(LogInput::TurnEnd);
    assert_eq!(first.writes.len(), 1, "nothing was in flight");
    assert_eq!(rig.append(2, 10), Lsn(3));
    assert!(rig.step(LogInput::TurnEnd).writes.is_empty(), "less than batch_bytes_wait");
    assert_eq!(rig.append(3, 10), Lsn(3), "items share a batch");
    let out = rig.complete(&first.writes[0]);
    assert_eq!(out.committed.map(|c| (c.lsn, c.ticket)), Some((Lsn(2), 1)));
    assert_eq!(out.writes.len(), 1, "a completion sends what waits");
    rig.append(4, 2000);
    let large = rig.step(LogInput::TurnEnd);
    assert_eq!(large.writes.len(), 1, "more than batch_bytes_wait");
    let (_, shared) = rig.headers(&large.writes[0]);
    assert_eq!((shared.index, shared.section_count), (Lsn(4), 1));
}

#[test]
fn only_the_contiguous_durable_prefix_is_acknowledged() {
    let mut rig = Rig::started(small_geometry());
    let writes: Vec<LogWrite> = (1..=4)
        .map(|ticket| {
            rig.append(ticket, 1500);
            rig.step(LogInput::TurnEnd).writes[0]
        })
        .collect();
    rig.append(5, 1500);
    assert!(rig.step(LogInput::TurnEnd).writes.is_empty(), "four are in flight");
    for index in [2, 1, 3] {
        let out = rig.complete(&writes[index]);
        assert_eq!(out.committed, None, "the first is not durable");
        assert!(out.writes.is_empty(), "the window counts from the durable prefix");
    }
    let out = rig.complete(&writes[0]);
    assert_eq!(out.committed.map(|c| (c.lsn, c.ticket)), Some((Lsn(5), 4)));
    let (local, _) = rig.headers(&out.writes[0]);
    assert_eq!((local.sequence, local.durable_sequence, local.commit_hint), (6, 5, Lsn(5)));
}

#[test]
fn digests_run_and_sections_keep_their_order() {
    let mut rig = Rig::started(small_geometry());
    let sections = [
        Section { partition: PartitionId(3), digest: 5, bytes: b"three" },
        Section { partition: PARTITION_SYSTEM, digest: 9, bytes: b"system" },
        Section { partition: PartitionId(3), digest: u128::MAX, bytes: b"again" },
    ];
    rig.writer.append(1, &sections, &mut rig.buffers);
    assert_eq!(rig.writer.digests()[3], 104);
    let out = rig.step(LogInput::TurnEnd);
    let (local, shared) = rig.headers(&out.writes[0]);
    let from = out.writes[0].buffer_offset as usize;
    let frame =
        &rig.buffers.0[usize::from(out.writes[0].buffer)][from..][..local.frame_bytes as usize];
    let view = crate::log::frame::FrameView::new(&rig.geometry, local, shared, frame);
    let seen: Vec<_> = view.sections().map(|s| (s.partition.0, s.digest, s.bytes)).collect();
    let expected: Vec<(u16, u128, &[u8])> =
        vec![(3, 105, b"three"), (0xFFFF, 9, b"system"), (3, 104, b"again")];
    assert_eq!(seen, expected);
}

#[test]
fn one_watermark_covers_an_idle_period() {
    let mut rig = Rig::started(small_geometry());
    rig.append(1, 10);
    let out = rig.step(LogInput::TurnEnd);
    rig.now = 500;
    let out = rig.complete(&out.writes[0]);
    assert_eq!(out.next_deadline_nanos, Some(IDLE), "counted from the last frame");
    rig.now = IDLE - 1;
    assert!(rig.step(LogInput::Tick).writes.is_empty());
    rig.now = IDLE;
    let out = rig.step(LogInput::Tick);
    let (local, shared) = rig.headers(&out.writes[0]);
    assert_eq!(
        (shared.kind, shared.index, local.durable_sequence),
        (FrameKind::Watermark, Lsn(2), 2)
    );
    let out = rig.complete(&out.writes[0]);
    assert_eq!((out.committed, out.next_deadline_nanos), (None, None));
    for _ in 0..10 {
        rig.now += 10 * IDLE;
        let out = rig.step(LogInput::Tick);
        assert!(out.writes.is_empty() && out.next_deadline_nanos.is_none(), "one per idle period");
    }
    assert!(rig.writer.is_quiet());
    rig.append(2, 10);
    let out = rig.step(LogInput::TurnEnd);
    let (_, shared) = rig.headers(&out.writes[0]);
    assert_eq!(shared.index, Lsn(3), "a watermark takes no index");
}

#[test]
fn shutdown_writes_a_watermark_when_all_is_durable() {
    let mut rig = Rig::started(small_geometry());
    rig.append(1, 10);
    let data = rig.step(LogInput::TurnEnd);
    rig.writer.shutdown();
    assert!(rig.step(LogInput::TurnEnd).writes.is_empty(), "data is in flight");
    let out = rig.complete(&data.writes[0]);
    assert_eq!(out.writes.len(), 1);
    let (local, shared) = rig.headers(&out.writes[0]);
    assert_eq!((shared.kind, local.durable_sequence), (FrameKind::Watermark, 2));
    assert!(!rig.writer.is_quiet());
    rig.complete(&out.writes[0]);
    assert!(rig.writer.is_quiet());
}

#[test]
fn a_failed_or_short_write_poisons_for_ever() {
    let failures: [(Result<u32, i32>, bool); 4] =
        [(Err(5), false), (Err(28), false), (Ok(512), true), (Ok(0), true)];
    for (result, short) in failures {
        let mut rig = Rig::started(small_geometry());
        rig.append(1, 1500);
        let first = rig.step(LogInput::TurnEnd).writes[0];
        rig.append(2, 1500);
        let second = rig.step(LogInput::TurnEnd).writes[0];
        let out = rig.step(LogInput::WriteCompleted { sequence: second.sequence, result });
        let poisoned = out.poisoned.expect("reported");
        assert_eq!(matches!(poisoned, Poisoned::Short { .. }), short);
        assert!(poisoned.to_string().contains(&format!("offset {}", second.offset)));
        assert!(out.committed.is_none() && out.writes.is_empty());
        let out = rig.complete(&first);
        assert!(out.committed.is_none(), "not even an earlier write is acknowledged any more");
        assert!(out.poisoned.is_none(), "reported once");
        assert_eq!(rig.writer.room(1, 16), Room::Poisoned);
        rig.now += 10 * IDLE;
        let out = rig.step(LogInput::Tick);
        assert!(out.writes.is_empty() && out.raw_writes.is_empty());
    }
}

/// Fills the log until data is refused; every write completes at once.
fn fill(rig: &mut Rig) -> u64 {
    for ticket in 1.. {
        let length = rig.geometry.payload_bytes_max();
        match rig.writer.room(1, length) {
            Room::Fits => {}
            Room::LogFull(space) => {
                assert!(space.used_bytes < space.total_bytes);
                return ticket;
            }
            other => panic!("{other:?}"),
        }
        rig.append(ticket, length);
        let out = rig.step(LogInput::TurnEnd);
        rig.complete(&out.writes[0]);
    }
    unreachable!("a log is finite");
}

#[test]
fn a_full_log_refuses_data_keeps_its_reserve_and_recovers_space() {
    let mut rig = Rig::started(small_geometry());
    let ticket = fill(&mut rig);
    let largest = rig.geometry.payload_bytes_max();
    assert_eq!(rig.writer.room_reserved(1, largest), Room::Fits, "a freeze entry has room");
    let floor = rig.writer.floor_for(rig.writer.committed().lsn);
    assert!(floor.ordinal > 0);
    rig.writer.floor_raise(&floor);
    let mut out = rig.step(LogInput::TurnEnd);
    let mut prepared = 0;
    while let Some(raw) = out.raw_writes.pop() {
        assert_eq!(raw.offset, 0);
        assert!(matches!(raw.content, RawContent::Bytes(_)));
        prepared += 1;
        let result = Ok(raw.content.len());
        out = rig.step(LogInput::RawCompleted { id: raw.id, result });
    }
    assert_eq!(prepared, floor.ordinal, "one by one, each released segment");
    assert_eq!(rig.writer.room(1, largest), Room::Fits);
    rig.append(ticket, largest);
}

#[test]
fn idle_watermarks_never_eat_a_full_log() {
    let mut rig = Rig::started(small_geometry());
    let ticket = fill(&mut rig);
    let largest = rig.geometry.payload_bytes_max();
    let bytes = vec![1; largest];
    // The reserve, used up to the end by entries that may use it.
    for ticket in ticket.. {
        if rig.writer.room_reserved(1, largest) != Room::Fits {
            break;
        }
        let section = Section { partition: PARTITION_SYSTEM, digest: 0, bytes: &bytes };
        rig.writer.append(ticket, &[section], &mut rig.buffers);
        let out = rig.step(LogInput::TurnEnd);
        rig.complete(&out.writes[0]);
    }
    rig.now += 10 * IDLE;
    assert!(rig.step(LogInput::Tick).writes.is_empty(), "no watermark into the last bytes");
}

#[test]
fn a_segment_is_entered_only_when_all_before_it_is_durable() {
    let mut rig = Rig::started(small_geometry());
    let mut in_flight: Vec<LogWrite> = Vec::new();
    let mut entered = 0;
    for ticket in 1.. {
        let mut issued = Vec::new();
        match rig.writer.room(1, 20_000) {
            Room::Fits => {
                rig.append(ticket, 20_000);
                issued.extend(rig.step(LogInput::TurnEnd).writes);
            }
            Room::Later => {
                // The second before the first, when there is one.
                let write = in_flight.remove(usize::from(in_flight.len() == 4));
                issued.extend(rig.complete(&write).writes);
            }
            Room::LogFull(_) => break,
            Room::Poisoned => panic!("no write failed"),
        }
        for write in issued {
            if write.offset == rig.geometry.data_offset() {
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
    let mut rig = Rig::started(geometry);
    let bytes = [7u8; 880];
    let sections: Vec<Section<'_>> = (0..1024)
        .map(|index| Section { partition: PartitionId(index), digest: 1, bytes: &bytes })
        .collect();
    assert_eq!(rig.writer.room(1024, 1024 * 880), Room::Fits);
    rig.writer.append(1, &sections, &mut rig.buffers);
    let out = rig.step(LogInput::TurnEnd);
    let (local, shared) = rig.headers(&out.writes[0]);
    assert_eq!(shared.section_count, 1024);
    assert!(local.frame_bytes as usize <= BATCH_BYTES_MAX);
}
