//! Every field of every header: kept, covered by the checksum, and range-checked.

use spillway_net::ids::{ClusterId, Epoch, Lsn, NodeId, PartitionId, WallMicros};

use crate::log::bytes::{COUNTER_LIMIT, header_seal, put_u16, put_u32, put_u64};
use crate::log::frame::{
    BodyView, FrameFault, FrameKind, LOCAL_MAGIC, LocalHeader, SECTION_ENTRY_BYTES,
    SHARED_FIXED_BYTES, SHARED_MAGIC, SectionEntry, SharedHeader,
};
use crate::log::geometry::GeometryError;
use crate::log::superblock::{
    DurableWrite, SUPERBLOCK_COPIES, SUPERBLOCK_MAGIC, Superblock, SuperblockError,
    superblock_choose, superblock_update,
};
use crate::log::testing::{CLUSTER, NODE, SimDisk, frame_seal, small_geometry};

fn local() -> LocalHeader {
    LocalHeader {
        cluster: ClusterId(1 << 100 | 1),
        node: NodeId(2),
        boot: 3,
        segment: 4,
        generation: 5,
        offset: 6 * 512,
        sequence: 17,
        previous: 8,
        term: Epoch(9),
        vote: NodeId(1),
        durable_sequence: 14,
        commit_hint: Lsn(12),
        frame_bytes: 13 * 512,
        header_bytes: 2 * 512,
        shared: 15,
    }
}

fn shared() -> SharedHeader {
    SharedHeader {
        kind: FrameKind::Data,
        checksum: 0,
        cluster: ClusterId(1 << 100 | 1),
        entry_term: Epoch(8),
        index: Lsn(21),
        previous: 22,
        timestamp: WallMicros(23),
        section_count: 0,
        payload_bytes: 0,
        frame_bytes: 0,
    }
}

#[test]
fn local_header_survives_and_every_flip_is_seen() {
    let mut block = vec![0xff; 512];
    local().encode(&mut block);
    assert_eq!(LocalHeader::decode(&block), Ok(local()));
    for bit in 0..block.len() * 8 {
        let mut damaged = block.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(LocalHeader::decode(&damaged).is_err(), "bit {bit}");
    }
    assert_eq!(LocalHeader::decode(&block[..100]), Err(FrameFault::Magic));
}

#[test]
fn local_header_fields_are_range_checked() {
    let counter = COUNTER_LIMIT;
    type Edit = (&'static str, fn(&mut LocalHeader, u64));
    let edits: [Edit; 6] = [
        ("boot", |h, v| h.boot = v),
        ("generation", |h, v| h.generation = v),
        ("term", |h, v| h.term = Epoch(v)),
        ("commit hint", |h, v| h.commit_hint = Lsn(v)),
        ("sequence", |h, v| h.sequence = v),
        ("durable sequence", |h, v| h.durable_sequence = v),
    ];
    for (field, edit) in edits {
        let mut header = local();
        edit(&mut header, counter);
        let mut block = vec![0; 512];
        header.encode(&mut block);
        assert_eq!(LocalHeader::decode(&block), Err(FrameFault::Field(field)));
    }
    let mut block = vec![0; 512];
    // Not durable before it was issued, and within the window of writes in flight.
    for durable_sequence in [12, 17, 18] {
        LocalHeader { durable_sequence, ..local() }.encode(&mut block);
        let fault = FrameFault::Field("durable sequence");
        assert_eq!(LocalHeader::decode(&block), Err(fault));
    }
    local().encode(&mut block);
    put_u16(&mut block, 4, 2);
    assert_eq!(LocalHeader::decode(&block), Err(FrameFault::Version(2)));
    for (at, field) in [(6, "local reserved"), (300, "local padding")] {
        local().encode(&mut block);
        block[at] = 1;
        header_seal(&mut block);
        assert_eq!(LocalHeader::decode(&block), Err(FrameFault::Field(field)));
    }
    assert_eq!(LOCAL_MAGIC.to_le_bytes(), *b"SPLF");
}

/// A frame with two sections, and where it starts in its buffer.
fn sealed() -> (Vec<u8>, usize, usize) {
    let geometry = small_geometry();
    let start = geometry.header_bytes_max();
    let mut buffer = vec![0xee; geometry.batch_bytes_max as usize];
    buffer[start..start + 700].fill(7);
    buffer[start + 700..start + 704].fill(0);
    buffer[start + 704..start + 720].fill(9);
    let entry = |partition, length, digest| SectionEntry {
        partition: PartitionId(partition),
        flags: 0,
        length,
        digest,
    };
    let directory = [entry(3, 700, 1 << 90), entry(0xFFFF, 16, 2)];
    let header = SharedHeader { payload_bytes: 720, ..shared() };
    let sealed = frame_seal(&geometry, &mut buffer, start, &directory, header, local());
    assert_eq!(sealed.sizes.frame_bytes, 512 + 512 + 1024);
    (buffer, sealed.start, sealed.sizes.frame_bytes)
}

#[test]
fn a_frame_survives_and_shared_flips_are_seen() {
    let geometry = small_geometry();
    let (buffer, start, length) = sealed();
    let frame = &buffer[start..start + length];
    let local = LocalHeader::decode(&frame[..512]).expect("valid");
    let area = &frame[512..1024];
    let header = SharedHeader::decode(&geometry, area).expect("valid");
    assert_eq!(local.shared, header.checksum);
    assert_eq!((local.frame_bytes, local.header_bytes), (2048, 1024));
    let expected = SharedHeader {
        checksum: header.checksum,
        section_count: 2,
        payload_bytes: 720,
        frame_bytes: 2048,
        ..shared()
    };
    assert_eq!(header, expected);
    let view = BodyView::new(&geometry, &frame[512..]).expect("valid");
    let seen: Vec<_> = view.sections().map(|s| (s.partition.0, s.digest, s.bytes)).collect();
    let expected: Vec<(u16, u128, &[u8])> = vec![(3, 1 << 90, &[7; 700]), (0xFFFF, 2, &[9; 16])];
    assert_eq!(seen, expected);
    assert!(frame[1024 + 720..].iter().all(|byte| *byte == 0), "padding is zero");
    for bit in 0..area.len() * 8 {
        let mut damaged = area.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(SharedHeader::decode(&geometry, &damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn shared_header_fields_are_range_checked() {
    let geometry = small_geometry();
    let (buffer, start, _) = sealed();
    let area = &buffer[start + 512..start + 1024];
    let directory = SHARED_FIXED_BYTES + 2 * 8;
    let second = directory + SECTION_ENTRY_BYTES;
    let check = |field: &'static str, edit: &dyn Fn(&mut [u8])| {
        let mut damaged = area.to_vec();
        edit(&mut damaged);
        header_seal(&mut damaged);
        let error = SharedHeader::decode(&geometry, &damaged).expect_err(field);
        assert_eq!(error, FrameFault::Field(field));
    };
    check("kind", &|a| put_u16(a, 80, 9));
    check("reserved bytes in front of the checksum", &|a| put_u16(a, 6, 9));
    check("entry term", &|a| put_u64(a, 32, u64::MAX));
    check("index", &|a| put_u64(a, 40, u64::MAX));
    check("timestamp", &|a| put_u64(a, 56, u64::MAX));
    check("section count", &|a| put_u32(a, 64, u32::MAX));
    check("payload size", &|a| put_u32(a, 68, u32::MAX));
    check("frame size", &|a| put_u32(a, 72, 2048 + 512));
    check("block size", &|a| put_u32(a, 76, 4096));
    check("shared reserved", &|a| a[82] = 1);
    check("sections of this kind", &|a| put_u32(a, 64, 0));
    check("sections of this kind", &|a| put_u16(a, 80, 2));
    check("header size", &|a| {
        put_u32(a, 64, 40);
        put_u32(a, 72, 2048 + 1024);
    });
    check("partition", &|a| put_u16(a, directory, geometry.partitions));
    check("section flags", &|a| put_u16(a, second + 2, 1));
    check("section length", &|a| put_u32(a, second + 4, 0));
    check("section length", &|a| put_u32(a, second + 4, u32::MAX));
    check("sum of section lengths", &|a| put_u32(a, directory + 4, 600));
    let mut other = area.to_vec();
    put_u16(&mut other, 4, 9);
    assert_eq!(SharedHeader::decode(&geometry, &other), Err(FrameFault::Version(9)));
    assert_eq!(SHARED_MAGIC.to_le_bytes(), *b"SPSH");
}

fn superblock() -> Superblock {
    let mut superblock = SimDisk::format(small_geometry()).superblock().expect("valid").superblock;
    superblock.sequence = 9;
    superblock.term = Epoch(4);
    superblock.vote = NodeId(3);
    superblock.boot = 6;
    superblock.durable_sequence = 95;
    superblock.floor.ordinal = 5;
    superblock.floor.chain.sequence = 70;
    superblock.floor.chain.local = 71;
    superblock.floor.chain.lsn = Lsn(72);
    superblock.floor.chain.shared = 73;
    superblock.floor.chain.timestamp = WallMicros(74);
    superblock.floor.chain.entry_term = Epoch(3);
    superblock.tail.ordinal = 6;
    superblock.tail.sequence = 90;
    superblock.tail.wipe_end = superblock.tail.offset + 1024;
    superblock
}

fn copies(superblock: &Superblock) -> [Vec<u8>; SUPERBLOCK_COPIES] {
    [0, 1, 2, 3].map(|copy| {
        let mut block = vec![0xff; superblock.geometry.block()];
        superblock.encode(copy, &mut block);
        block
    })
}

#[test]
fn superblock_survives_and_every_flip_is_seen() {
    let block = &copies(&superblock())[2];
    assert_eq!(Superblock::decode(2, block), Ok(superblock()));
    let mut longer = block.clone();
    longer.resize(4096, 0xaa);
    assert_eq!(Superblock::decode(2, &longer), Ok(superblock()), "the size is found within");
    assert_eq!(
        Superblock::decode(1, block),
        Err(SuperblockError::Misplaced { expected: 1, found: 2 })
    );
    for bit in 0..block.len() * 8 {
        let mut damaged = block.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Superblock::decode(2, &damaged).is_err(), "bit {bit}");
    }
    for length in [0, 100, 511] {
        assert_eq!(Superblock::decode(2, &block[..length]), Err(SuperblockError::Magic));
    }
    assert_eq!(SUPERBLOCK_MAGIC.to_le_bytes(), *b"SPSB");
    assert_eq!(superblock().cluster, CLUSTER);
    assert_eq!(superblock().node, NODE);
}

#[test]
fn superblock_fields_are_range_checked() {
    type Edit = fn(&mut Superblock);
    let edits: [(&str, Edit); 14] = [
        ("node", |s| s.node = NodeId(1000)),
        ("vote", |s| s.vote = NodeId(1000)),
        ("sequence", |s| s.sequence = 0),
        ("term", |s| s.term = Epoch(u64::MAX)),
        ("boot", |s| s.boot = u64::MAX),
        ("tail sequence", |s| s.tail.sequence = u64::MAX),
        ("durable sequence", |s| s.durable_sequence = u64::MAX),
        ("frame sequence", |s| s.tail.sequence = 0),
        ("tail offset", |s| s.tail.offset = 0),
        ("wiped range", |s| s.tail.wipe_end = s.tail.offset - 512),
        ("wiped range", |s| s.tail.wipe_end = 1 << 40),
        ("tail alignment", |s| s.tail.wipe_end += 1),
        ("tail segment", |s| s.tail.ordinal = 9),
        ("floor term", |s| s.floor.chain.entry_term = Epoch(s.term.0 + 1)),
    ];
    for (field, edit) in edits {
        let mut edited = superblock();
        edit(&mut edited);
        let decoded = Superblock::decode(0, &copies(&edited)[0]);
        assert_eq!(decoded, Err(SuperblockError::Field(field)));
    }
    let mut edited = superblock();
    edited.geometry.segments_count = 2;
    let decoded = Superblock::decode(0, &copies(&edited)[0]);
    assert_eq!(decoded, Err(SuperblockError::Geometry(GeometryError::Segments(2))));
    let mut block = copies(&superblock())[0].clone();
    put_u16(&mut block, 4, 3);
    assert_eq!(Superblock::decode(0, &block), Err(SuperblockError::Version(3)));
    put_u16(&mut block, 4, 1);
    assert_eq!(Superblock::decode(0, &block), Err(SuperblockError::Version(1)), "no members");
    put_u16(&mut block, 4, 2);
    put_u16(&mut block, 34, 3);
    header_seal(&mut block);
    let field = SuperblockError::Field("durable write mode");
    assert_eq!(Superblock::decode(0, &block), Err(field));
    assert_eq!(superblock().check_fingerprint(), Ok(()));
    let other = Superblock { fingerprint: 1, ..superblock() };
    assert!(matches!(other.check_fingerprint(), Err(SuperblockError::Fingerprint { .. })));
}

#[test]
fn the_highest_valid_copy_is_chosen() {
    let (new, old) = (Superblock { sequence: 10, ..superblock() }, superblock());
    let bad = Err(SuperblockError::Checksum);
    let chosen = superblock_choose(&[Ok(old), Ok(new), bad, Ok(old)]).expect("two are valid");
    assert_eq!(chosen.superblock, new);
    assert_eq!((chosen.copies_bad, chosen.copies_old), (1, 2));
    assert_eq!(superblock_choose(&[bad; 4]), Err(SuperblockError::AllBad));
    let version = Err(SuperblockError::Version(2));
    assert_eq!(superblock_choose(&[version, bad, version, bad]), Err(SuperblockError::Version(2)));
    let flipped = Err(SuperblockError::Version(19));
    assert_eq!(superblock_choose(&[bad, flipped, bad, version]), Err(SuperblockError::AllBad));
    let unreadable = Err(SuperblockError::Unreadable(5));
    let chosen = superblock_choose(&[unreadable, unreadable, Ok(old), unreadable]).expect("one");
    assert_eq!((chosen.superblock, chosen.copies_bad), (old, 3));
    let error = superblock_choose(&[bad, unreadable, bad, bad]);
    assert_eq!(error, Err(SuperblockError::Unreadable(5)), "it may be whole");
    type Edit = fn(&mut Superblock);
    let edits: [(&str, Edit); 5] = [
        ("the cluster id", |s| s.cluster = ClusterId(1)),
        ("the node id", |s| s.node = NodeId(1)),
        ("the geometry", |s| s.geometry.segments_count = 9),
        ("the durable write mode", |s| s.durable_write = DurableWrite::WriteThenFlush),
        ("the limits", |s| s.fingerprint = 1),
    ];
    for (field, edit) in edits {
        let mut other = old;
        edit(&mut other);
        let error = superblock_choose(&[Ok(new), Ok(other), bad, bad]);
        assert_eq!(error, Err(SuperblockError::Disagree(field)));
    }
    let twin = Superblock { vote: NodeId(1), ..new };
    let error = superblock_choose(&[Ok(new), Ok(twin), bad, bad]);
    assert_eq!(error, Err(SuperblockError::Disagree("the state of one update")));
    let later = Superblock { boot: 7, ..old };
    let error = superblock_choose(&[Ok(new), Ok(later), bad, bad]);
    assert_eq!(error, Err(SuperblockError::Disagree("the order of updates")));
}

#[test]
fn an_update_never_touches_all_copies_at_once() {
    let rounds = superblock_update(&superblock());
    let mut offsets: Vec<u64> = Vec::new();
    for round in &rounds {
        assert!(round.len() < SUPERBLOCK_COPIES, "some copies rest");
        for write in round {
            let copy = (write.offset / 512) as usize;
            assert_eq!(Superblock::decode(copy, &write.bytes), Ok(superblock()));
            offsets.push(write.offset);
        }
    }
    offsets.sort_unstable();
    assert_eq!(offsets, [0, 512, 1024, 1536]);
}
