//! Entry points for fuzzing: arbitrary bytes as the segments of a log, or as an entry from the
//! network.

use spillway_net::ids::{ClusterId, NodeId};

use super::format::FormatPlan;
use super::frame::{BodyView, LocalHeader, SharedHeader, body_check};
use super::geometry::Geometry;
use super::members::Members;
use super::recovery::{LogScanner, ScanItem};
use super::segment::SegmentHeader;
use super::superblock::{DurableWrite, SUPERBLOCK_COPIES, Superblock, superblock_choose};

/// Sizes that [`fuzz_scan`] reads its input with: four segments of 64 KiB, blocks of 512 bytes.
pub const FUZZ_GEOMETRY: Geometry = Geometry {
    block_bytes: 512,
    segment_bytes: 64 << 10,
    segments_count: 4,
    partitions: 4,
    batch_bytes_max: 8 << 10,
};

/// Reads `data` as a superblock file followed by segments, as far as it goes, and zeros behind.
/// Must not panic, and must not allocate more than a small multiple of the log's size, whatever the
/// bytes are. Returns the number of entries found, so that the work cannot be optimised away.
pub fn fuzz_scan(data: &[u8]) -> usize {
    let geometry = FUZZ_GEOMETRY;
    let block = geometry.block();
    let (copies, log) = data.split_at(data.len().min(SUPERBLOCK_COPIES * block));
    let mut copies_found = copies.chunks(block);
    let decoded =
        [0, 1, 2, 3].map(|copy| Superblock::decode(copy, copies_found.next().unwrap_or_default()));
    let plan = FormatPlan::new(
        ClusterId(1),
        NodeId(1),
        geometry,
        DurableWrite::SyncedWrite,
        Members::default(),
    );
    let plan = plan.expect("the geometry of this function holds");
    let chosen = superblock_choose(&decoded).map(|chosen| chosen.superblock);
    let superblock = chosen
        .ok()
        .filter(|superblock| superblock.geometry == geometry)
        .unwrap_or(Superblock { boot: 1, ..plan.superblock });
    let mut entries = 0;
    for bytes in log.chunks(block) {
        let local = LocalHeader::decode(bytes).is_ok();
        let segment = SegmentHeader::decode(bytes).is_ok();
        let shared = SharedHeader::decode(&geometry, bytes).is_ok();
        entries += usize::from(local) + usize::from(segment) + usize::from(shared);
    }
    let mut scanner = LogScanner::new(&superblock, 0);
    let mut buffer = vec![0; scanner.read_bytes_max()];
    while let Some(read) = scanner.next_read() {
        let from = read.segment as usize * geometry.segment_bytes as usize + read.offset as usize;
        let there = log.get(from..).unwrap_or_default();
        let there = &there[..there.len().min(read.bytes)];
        let target = &mut buffer[..read.bytes];
        target[..there.len()].copy_from_slice(there);
        target[there.len()..].fill(0);
        let mut sink = |item: ScanItem<'_>| match item {
            ScanItem::Entry(entry) => entries += 1 + entry.view.sections().count(),
            ScanItem::Truncated(_) => entries += 1,
        };
        if scanner.feed(Ok(target), &mut sink).is_err() {
            return entries;
        }
    }
    entries += scanner.finish().frames as usize;
    entries
}

/// Reads `data` as the body of an entry from the network, in the sizes of [`FUZZ_GEOMETRY`]. Must
/// not panic and not allocate, whatever the bytes are. Returns whether it is a good one.
pub fn fuzz_body(data: &[u8]) -> bool {
    let header = BodyView::new(&FUZZ_GEOMETRY, data).map(|view| view.sections().count());
    let checked = body_check(&FUZZ_GEOMETRY, ClusterId(1), data);
    assert!(checked.is_err() || header.is_ok(), "what passes the full check can be viewed");
    checked.is_ok()
}
