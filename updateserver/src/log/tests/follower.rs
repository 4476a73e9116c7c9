//! Entries that come from another node: checked, written from the memory they came in, superseded.

use spillway_net::ids::{ClusterId, Epoch, Lsn, NodeId, PartitionId, WallMicros};
use spillway_runtime::slot_ring::{SlotMut, SlotRing};

use crate::log::assembler::{BatchAssembler, SealIdentity, Section};
use crate::log::bytes::{header_seal, put_u16};
use crate::log::effects::{LogEffects, LogInput, LogWrite};
use crate::log::entries::{EntryIndex, EntryPlace};
use crate::log::entry_frame::{EntryFrame, body_verify};
use crate::log::frame::{BodyView, FrameFault, LocalHeader};
use crate::log::fuzz::{FUZZ_GEOMETRY, fuzz_body};
use crate::log::recovery::{LogScanner, Recovered};
use crate::log::superblock::Superblock;
use crate::log::testing::{CLUSTER, Draw, File, NODE, SeedReport, SimDisk, small_geometry};
use crate::log::writer::{LogWriter, LogWriterOptions};

const BLOCK: usize = 512;

/// A follower with a disk that completes when told to.
struct Follower {
    disk: SimDisk,
    writer: LogWriter,
    slots: SlotRing,
    assembler: BatchAssembler,
    entries: EntryIndex,
    open: Vec<LogWrite>,
    durable: u64,
}

fn recover(disk: &SimDisk, boot: u64) -> Recovered {
    let superblock = disk.superblock().expect("readable").superblock;
    let superblock = Superblock { boot, ..superblock };
    let mut scanner = LogScanner::new(&superblock, 0);
    while let Some(read) = scanner.next_read() {
        scanner.feed(disk.read(&read), &mut |_| {}).expect("no damage");
    }
    scanner.finish()
}

impl Follower {
    fn new(node: NodeId, boot: u64) -> Self {
        let geometry = small_geometry();
        let disk = SimDisk::format(geometry);
        let options = LogWriterOptions {
            cluster: CLUSTER,
            node,
            term: Epoch(1),
            vote: NodeId(0),
            boot,
            in_flight_max: 4,
            watermark_idle_nanos: 1_000_000,
        };
        let recovered = recover(&disk, boot);
        Self {
            disk,
            writer: LogWriter::new(options, recovered.position),
            slots: SlotRing::new("test", 1 << 20).expect("memory"),
            assembler: BatchAssembler::new(geometry, 1, 1),
            entries: recovered.entries,
            open: Vec::new(),
            durable: 0,
        }
    }

    /// An entry behind the one with index `after`, sealed in memory of this node.
    fn sealed(&mut self, after: u64, term: u64, content: &[u8]) -> EntryFrame {
        let before = self.entries.identity(Lsn(after)).expect("an entry to follow");
        let identity = SealIdentity {
            cluster: CLUSTER,
            term: Epoch(term),
            index: Lsn(after + 1),
            previous: before.checksum,
            timestamp: WallMicros(before.timestamp.0 + 1),
        };
        let section = Section { partition: PartitionId(2), digest: 3, bytes: content };
        let ticket = self.assembler.ticket() + 1;
        self.assembler.append(ticket, &[section], &mut self.slots);
        self.assembler.seal(identity, &mut self.slots).expect("appended")
    }

    fn write(&mut self, frame: EntryFrame) -> u64 {
        self.entries.take(&frame.shared, EntryPlace::NOWHERE);
        self.writer.write(frame)
    }

    fn entry(&mut self, after: u64, term: u64) -> u64 {
        let frame = self.sealed(after, term, &[term as u8; 600]);
        self.write(frame)
    }

    fn step(&mut self, input: LogInput) -> LogEffects {
        let mut out = LogEffects::default();
        self.writer.step(0, input, &mut self.slots, &mut out);
        self.durable = out.durable.unwrap_or(self.durable);
        for write in &out.writes {
            let (file, bytes) = (File::Segment(write.segment), write.slot.to_vec());
            self.disk.submit(write.sequence, file, write.offset, bytes);
        }
        for issued in &out.issued {
            self.entries.place_set(issued.lsn, issued.checksum, issued.place);
        }
        self.open.extend(out.writes.iter().cloned());
        out
    }

    fn complete(&mut self, sequence: u64) {
        let at = self.disk.pending.iter().position(|write| write.id == sequence);
        self.disk.complete(at.expect("in flight"));
        let at = self.open.iter().position(|write| write.sequence == sequence);
        let write = self.open.remove(at.expect("in flight"));
        self.step(LogInput::WriteCompleted { sequence, result: Ok(write.bytes) });
    }
}

#[test]
fn two_nodes_write_the_same_bytes_behind_their_own_headers() {
    let geometry = small_geometry();
    let (mut leader, mut follower) = (Follower::new(NODE, 1), Follower::new(NodeId(5), 9));
    // The follower's log has another physical history.
    follower.writer.hard_state_set(Epoch(4), NodeId(1));
    for index in 0..5 {
        let frame = leader.sealed(index, 1, &vec![index as u8; 700 * index as usize + 1]);
        let mut slot = follower.slots.reserve(frame.frame_bytes()).expect("room");
        slot[BLOCK..].copy_from_slice(&frame.body);
        let (sent, received) = (frame.body.address(), slot.address() + BLOCK);
        let copy = EntryFrame::verify(&geometry, CLUSTER, slot).expect("whole");
        assert_eq!((copy.shared, copy.ticket), (frame.shared, 0));
        leader.write(frame);
        follower.write(copy);
        let first = leader.step(LogInput::TurnEnd).writes.remove(0);
        let second = follower.step(LogInput::TurnEnd).writes.remove(0);
        assert_eq!(first.slot.address() + BLOCK, sent, "written from where it was sealed");
        assert_eq!(second.slot.address() + BLOCK, received, "written from where it was received");
        assert!(first.slot[BLOCK..] == second.slot[BLOCK..], "the shared part");
        let local = |write: &LogWrite| LocalHeader::decode(&write.slot[..BLOCK]).expect("own");
        let (first_local, second_local) = (local(&first), local(&second));
        assert_ne!(first_local, second_local);
        assert_eq!(first_local.shared, second_local.shared);
        assert_eq!((second_local.node, second_local.boot), (NodeId(5), 9));
        assert_eq!((second_local.term, second_local.vote), (Epoch(4), NodeId(1)));
        leader.complete(first.sequence);
        follower.complete(second.sequence);
    }
    assert_eq!((leader.durable, follower.durable), (5, 5));
}

#[test]
fn what_is_received_is_checked() {
    let geometry = small_geometry();
    let mut node = Follower::new(NODE, 1);
    let frame = node.sealed(0, 1, &[7; 1200]);
    let whole = [&[0; BLOCK], &frame.body[..]].concat();
    let verify = |bytes: &[u8], cluster: ClusterId| {
        let mut slot = SlotMut::heap(bytes.len());
        slot.copy_from_slice(bytes);
        EntryFrame::verify(&geometry, cluster, slot).map(|frame| frame.shared)
    };
    assert_eq!(verify(&whole, CLUSTER), Ok(frame.shared));
    assert_eq!(verify(&whole, ClusterId(1)), Err(FrameFault::Cluster));
    for bit in (BLOCK * 8..whole.len() * 8).step_by(7) {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(verify(&damaged, CLUSTER).is_err(), "bit {bit}");
    }
    let mut damaged = whole.clone();
    damaged[3 * BLOCK] ^= 1;
    assert_eq!(verify(&damaged, CLUSTER), Err(FrameFault::Sector(1)));
    for length in (1..whole.len()).step_by(100) {
        assert!(verify(&whole[..length], CLUSTER).is_err(), "{length} bytes");
    }
    let longer = [&whole[..], &[0; BLOCK]].concat();
    let (expected, found) = (whole.len() - BLOCK, whole.len());
    let fault = FrameFault::Length { expected, found };
    assert_eq!(verify(&longer, CLUSTER), Err(fault));
    // A watermark is good on disk and never comes from another node.
    node.write(frame);
    let data = node.step(LogInput::TurnEnd).writes[0].sequence;
    node.writer.shutdown();
    node.complete(data);
    let mut watermark = node.open[0].slot.to_vec();
    assert_eq!(verify(&watermark, CLUSTER), Err(FrameFault::Field("kind")));
    put_u16(&mut watermark[BLOCK..], 80, 2);
    header_seal(&mut watermark[BLOCK..]);
    verify(&watermark, CLUSTER).expect("as a no-op it would pass");
}

#[test]
fn an_entry_is_read_back_by_its_place() {
    let geometry = small_geometry();
    let mut node = Follower::new(NODE, 1);
    for index in 0..3 {
        node.entry(index, 1);
        let sequence = node.step(LogInput::TurnEnd).writes[0].sequence;
        node.complete(sequence);
    }
    for lsn in 1..=3 {
        let meta = *node.entries.get(Lsn(lsn)).expect("written");
        let body = node.disk.read(&meta.place.read_plan(&geometry)).expect("readable");
        let shared = body_verify(&geometry, CLUSTER, body, meta.checksum).expect("whole");
        assert_eq!(shared.index, Lsn(lsn));
        let view = BodyView::new(&geometry, body).expect("whole");
        assert_eq!(view.sections().next().expect("one").bytes, [1; 600]);
        let other = body_verify(&geometry, CLUSTER, body, meta.checksum ^ 1);
        assert_eq!(other, Err(FrameFault::Other));
    }
}

/// Terms of the entries that recovery finds.
fn terms(disk: &SimDisk) -> Vec<u64> {
    let recovered = recover(disk, 1);
    let entries = &recovered.entries;
    (1..=entries.last().0).map(|lsn| entries.get(Lsn(lsn)).expect("there").term.0).collect()
}

#[test]
fn leaders_supersede_each_other() {
    let mut node = Follower::new(NODE, 1);
    for index in 0..4 {
        assert_eq!(node.entry(index, 1), index + 1);
    }
    let out = node.step(LogInput::TurnEnd);
    assert_eq!(out.writes.len(), 4);
    (1..=4).for_each(|sequence| node.complete(sequence));
    node.writer.committed_set(Lsn(1));
    assert_eq!(terms(&node.disk), [1, 1, 1, 1]);
    // A second leader knows only the first two, a third none of the second's, a fourth brings back
    // an entry of the second.
    for (term, after, entry_term) in [(2, 2, 2), (3, 1, 3), (4, 1, 2), (4, 2, 4)] {
        node.writer.hard_state_set(Epoch(term), NodeId(0));
        node.entry(after, entry_term);
    }
    let out = node.step(LogInput::TurnEnd);
    let numbers: Vec<(u64, u64)> = out.issued.iter().map(|i| (i.number, i.lsn.0)).collect();
    assert_eq!(numbers, [(5, 3), (6, 2), (7, 2), (8, 3)]);
    let hints = out
        .writes
        .iter()
        .map(|write| LocalHeader::decode(&write.slot[..BLOCK]).expect("own frame").commit_hint.0);
    assert_eq!(hints.collect::<Vec<_>>(), [1, 1, 1, 1]);
    // What a crash leaves is always the fold of a prefix.
    for expected in [vec![1, 1, 2], vec![1, 3], vec![1, 2], vec![1, 2, 4]] {
        let sequence = node.open[0].sequence;
        node.complete(sequence);
        assert_eq!(terms(&node.disk), expected);
    }
    assert_eq!(node.durable, 8);
    assert_eq!(recover(&node.disk, 1).commit_hint, Lsn(1));
    assert_eq!(recover(&node.disk, 1).term, Epoch(4));
}

#[test]
fn a_committed_entry_that_is_still_in_flight_is_not_hinted_at() {
    let mut node = Follower::new(NODE, 1);
    (0..3).for_each(|index| assert!(node.entry(index, 1) > 0));
    node.step(LogInput::TurnEnd);
    (1..=3).for_each(|sequence| node.complete(sequence));
    // The new leader's entry 2 is committed by others; here only the old entry 2 is durable.
    node.writer.hard_state_set(Epoch(2), NodeId(0));
    node.entry(1, 2);
    node.writer.committed_set(Lsn(2));
    node.entry(2, 2);
    let hints = |out: &LogEffects| -> Vec<u64> {
        let local = |write: &LogWrite| LocalHeader::decode(&write.slot[..BLOCK]).expect("own");
        out.writes.iter().map(|write| local(write).commit_hint.0).collect()
    };
    assert_eq!(hints(&node.step(LogInput::TurnEnd)), [1, 1]);
    assert_eq!(node.writer.floor_for(Lsn(2)).chain.lsn, Lsn(0));
    (4..=5).for_each(|sequence| node.complete(sequence));
    node.entry(3, 2);
    assert_eq!(hints(&node.step(LogInput::TurnEnd)), [2]);
}

#[test]
#[should_panic(expected = "behind EntryBase")]
fn a_committed_entry_is_not_superseded() {
    let mut node = Follower::new(NODE, 1);
    (0..3).for_each(|index| assert!(node.entry(index, 1) > 0));
    node.writer.committed_set(Lsn(2));
    node.writer.hard_state_set(Epoch(2), NodeId(0));
    node.entry(1, 2);
}

#[test]
fn bodies_of_any_bytes_do_no_harm() {
    let mut passed = 0;
    for seed in 0..2000 {
        let _report = SeedReport(seed);
        let mut draw = Draw(seed);
        let length = draw.below(20) * 512;
        let mut bytes = draw.bytes(length);
        passed += usize::from(fuzz_body(&bytes));
        if length > 0 {
            bytes[..4].copy_from_slice(b"SPSH");
            header_seal(&mut bytes);
            passed += usize::from(fuzz_body(&bytes));
        }
    }
    assert_eq!(passed, 0, "chance makes no frame");
    // Mutations of a good one, with checksums that fit.
    let mut slots = SlotRing::new("test", 1 << 20).expect("memory");
    let mut assembler = BatchAssembler::new(FUZZ_GEOMETRY, 1, 1);
    let section = Section { partition: PartitionId(1), digest: 3, bytes: &[9; 1000] };
    assembler.append(1, &[section], &mut slots);
    let identity = SealIdentity {
        cluster: ClusterId(1),
        term: Epoch(1),
        index: Lsn(1),
        previous: 0,
        timestamp: WallMicros(1),
    };
    let frame = assembler.seal(identity, &mut slots).expect("appended");
    assert!(fuzz_body(&frame.body));
    for seed in 0..5000 {
        let mut draw = Draw(seed);
        let mut bytes = frame.body.to_vec();
        for _ in 0..draw.range(1, 5) {
            let at = draw.below(200);
            bytes[at] = draw.pick(&[0, 1, 0x7f, 0xff]);
        }
        header_seal(&mut bytes[..BLOCK]);
        fuzz_body(&bytes);
    }
}
