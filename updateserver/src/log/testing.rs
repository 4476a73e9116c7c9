//! What the tests of this module share: sizes, a seeded generator, a disk.
//!
//! Fault model of [`SimDisk`]: a write is pending until it completes. A completed write is on the
//! medium. At a crash each pending write has landed in part: every sector (of one block) is old or
//! new as a whole, chosen by one of several patterns (none, all, a prefix, all but a prefix, coin
//! tosses). Beside that the tests damage the medium directly: flipped bits, sectors that fall back
//! to what they held before a write, unreadable sectors.

use spillway_net::ids::{ClusterId, NodeId};

use super::format::FormatPlan;
use super::frame::{FrameSizes, LocalHeader, SectionEntry, SharedHeader, body_seal};
use super::geometry::Geometry;
use super::members::Members;
use super::recovery::ReadRequest;
use super::superblock::{
    DurableWrite, SUPERBLOCK_COPIES, Superblock, SuperblockChosen, SuperblockError,
    superblock_choose,
};

/// Cluster of all tests.
pub const CLUSTER: ClusterId = ClusterId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
/// Node of all tests.
pub const NODE: NodeId = NodeId(2);
/// The errno of an input/output error.
pub const EIO: i32 = 5;

/// A log that wraps soon.
pub fn small_geometry() -> Geometry {
    Geometry {
        block_bytes: 512,
        segment_bytes: 256 << 10,
        segments_count: 4,
        partitions: 8,
        batch_bytes_max: 48 << 10,
    }
}

/// SplitMix64: everything that a test draws follows from its seed.
#[derive(Clone, Debug)]
pub struct Draw(pub u64);

impl Draw {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub fn range(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from)
    }

    /// True once in `n`.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        // Some content is compressible or empty, as rows are; some looks like old zeros.
        if !self.once_in(8) {
            for chunk in bytes.chunks_mut(8) {
                let word = self.next().to_le_bytes();
                chunk.copy_from_slice(&word[..chunk.len()]);
            }
        }
        bytes
    }
}

/// Names the seed when a test fails.
pub struct SeedReport(pub u64);

impl Drop for SeedReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failing seed: {}", self.0);
        }
    }
}

/// A frame finished in a buffer.
pub struct FrameSealed {
    /// Where it starts in the buffer.
    pub start: usize,
    pub sizes: FrameSizes,
    /// Checksum of the local header.
    pub local: u64,
    /// Checksum of the shared header.
    pub shared: u64,
}

/// Finishes a frame by hand: the payload stands at `payload_start` of `buffer`. Sizes and checksums
/// in the given headers are computed, all else is written as it is given, lawful or not.
pub fn frame_seal(
    geometry: &Geometry,
    buffer: &mut [u8],
    payload_start: usize,
    directory: &[SectionEntry],
    shared: SharedHeader,
    mut local: LocalHeader,
) -> FrameSealed {
    let sizes = FrameSizes::of(geometry, directory.len(), shared.payload_bytes as usize);
    let start = payload_start - sizes.header_bytes;
    let frame = &mut buffer[start..start + sizes.frame_bytes];
    let (head, body) = frame.split_at_mut(geometry.block());
    let shared = body_seal(geometry, body, directory, shared).checksum;
    local.frame_bytes = sizes.frame_bytes as u32;
    local.header_bytes = sizes.header_bytes as u32;
    local.shared = shared;
    FrameSealed { start, sizes, local: local.encode(head), shared }
}

/// A file of the simulated disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    Segment(u32),
    Superblock,
}

#[derive(Clone, Debug)]
pub struct PendingWrite {
    pub id: u64,
    pub file: File,
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// See the head of the module for the fault model.
#[derive(Clone, Debug)]
pub struct SimDisk {
    pub block: usize,
    /// What a power loss leaves whole.
    pub tear: usize,
    pub segments: Vec<Vec<u8>>,
    pub superblock: Vec<u8>,
    pub pending: Vec<PendingWrite>,
    /// Segment and offset of sectors that cannot be read.
    pub unreadable: Vec<(u32, u64)>,
}

impl SimDisk {
    pub fn format(geometry: Geometry) -> Self {
        let members = Members::of_voters([NODE]);
        let plan = FormatPlan::new(CLUSTER, NODE, geometry, DurableWrite::SyncedWrite, members);
        let plan = plan.expect("test geometry");
        let segment = |number| {
            let mut bytes = plan.segment_start(number);
            bytes.resize(geometry.segment_bytes as usize, 0);
            bytes
        };
        let mut disk = Self {
            block: geometry.block(),
            tear: geometry.block(),
            segments: (0..plan.segments()).map(segment).collect(),
            superblock: vec![0; SUPERBLOCK_COPIES * geometry.block()],
            pending: Vec::new(),
            unreadable: Vec::new(),
        };
        for write in plan.superblock_writes().into_iter().flatten() {
            disk.write(File::Superblock, write.offset, &write.bytes);
        }
        disk
    }

    pub fn file_mut(&mut self, file: File) -> &mut Vec<u8> {
        match file {
            File::Segment(number) => &mut self.segments[number as usize],
            File::Superblock => &mut self.superblock,
        }
    }

    pub fn write(&mut self, file: File, offset: u64, bytes: &[u8]) {
        let at = offset as usize;
        self.file_mut(file)[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn submit(&mut self, id: u64, file: File, offset: u64, bytes: Vec<u8>) {
        assert!(offset.is_multiple_of(self.block as u64), "aligned offset");
        assert!(!bytes.is_empty() && bytes.len().is_multiple_of(self.block), "aligned length");
        let end = offset as usize + bytes.len();
        assert!(end <= self.file_mut(file).len(), "files never grow");
        for other in self.pending.iter().filter(|other| other.file == file) {
            let other_end = other.offset as usize + other.bytes.len();
            let apart = end <= other.offset as usize || other_end <= offset as usize;
            assert!(apart, "no two writes of one place in flight");
        }
        self.pending.push(PendingWrite { id, file, offset, bytes });
    }

    /// Completes the pending write at `index`.
    pub fn complete(&mut self, index: usize) -> PendingWrite {
        let write = self.pending.swap_remove(index);
        self.write(write.file, write.offset, &write.bytes);
        write
    }

    /// Loses power: pending writes land sector by sector.
    pub fn crash(&mut self, draw: &mut Draw) {
        for write in std::mem::take(&mut self.pending) {
            let sectors = write.bytes.len() / self.tear;
            let pattern = draw.below(5);
            let cut = draw.below(sectors + 1);
            for (index, sector) in write.bytes.chunks(self.tear).enumerate() {
                let landed = match pattern {
                    0 => false,
                    1 => true,
                    2 => index < cut,
                    3 => index >= cut,
                    _ => draw.once_in(2),
                };
                if landed {
                    let offset = write.offset + (index * self.tear) as u64;
                    self.write(write.file, offset, sector);
                }
            }
        }
    }

    pub fn read(&self, request: &ReadRequest) -> Result<&[u8], i32> {
        let (from, to) = (request.offset, request.offset + request.bytes as u64);
        let bad = |(segment, offset): &(u32, u64)| {
            *segment == request.segment && (from..to).contains(offset)
        };
        if self.unreadable.iter().any(bad) {
            return Err(EIO);
        }
        Ok(&self.segments[request.segment as usize][from as usize..to as usize])
    }

    pub fn superblock(&self) -> Result<SuperblockChosen, SuperblockError> {
        superblock_choose(&[0, 1, 2, 3].map(|copy| {
            Superblock::decode(copy, &self.superblock[copy * self.block..(copy + 1) * self.block])
        }))
    }
}
