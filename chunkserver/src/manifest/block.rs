//! Blocks and records: the bytes of a manifest file.
//!
//! A file is a row of records, each in whole blocks: a snapshot, then edits. Every block stands for
//! itself:
//!
//! ```text
//! 0    4   magic "SPMB"
//! 4    2   version of the format
//! 6    2   kind: 1 snapshot, 2 edit
//! 8    8   XXH3-64 of bytes 16 to the end of the block
//! 16   16  cluster
//! 32   2   node
//! 34   2   zero
//! 36   4   block bytes
//! 40   4   number of this block in its record, from 0
//! 44   4   blocks of the record
//! 48   4   payload bytes of the record
//! 52   4   zero
//! 56   8   length of the file
//! 64   8   generation: rises with every change of the file; odd in file 1, even in file 0
//! 72   8   sequence: rises by one with every edit; a snapshot has that of the last edit in it
//! 80   8   checksum of the record before; of a snapshot: of the last edit in it, 0 = none
//! 88   8   checksum of this record: XXH3-64 of its payload, seeded with the one before
//! 96   8   offset of this block in the file
//! 104      payload, then zeros
//! ```
//!
//! All numbers are little-endian. A block is what the disk writes whole or not at all.

use super::recovery::ManifestOptions;
use crate::bytes::{
    get_u16, get_u32, get_u64, get_u128, is_zero, put_u16, put_u32, put_u64, put_u128,
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of a block before the payload.
pub const BLOCK_HEADER_BYTES: usize = 104;
/// Version of the format that this release reads and writes.
pub const FORMAT_VERSION: u16 = 1;
/// The smallest block.
pub const BLOCK_BYTES_MIN: usize = 512;
/// The largest block.
pub const BLOCK_BYTES_MAX: usize = 4096;
const MAGIC: u32 = u32::from_le_bytes(*b"SPMB");

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RecordKind {
    /// The whole state; the first record of a file, and only that.
    Snapshot = 1,
    /// A change.
    Edit = 2,
}

/// What all blocks of a record say alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it is.
    pub kind: RecordKind,
    /// Blocks.
    pub blocks: u32,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// Length of the file.
    pub file_bytes: u64,
    /// Generation of the file.
    pub generation: u64,
    /// Number of the edit.
    pub sequence: u64,
    /// Checksum of the record before.
    pub previous: u64,
    /// Checksum of this record.
    pub checksum: u64,
}

/// Checksum of a record.
pub fn record_checksum(payload: &[u8], previous: u64) -> u64 {
    xxh3_64_with_seed(payload, previous)
}

/// Blocks that a payload of this length takes.
pub fn record_blocks(payload_bytes: usize, block_bytes: usize) -> usize {
    payload_bytes.div_ceil(block_bytes - BLOCK_HEADER_BYTES)
}

/// What is to become a record.
#[derive(Clone, Copy, Debug)]
pub struct RecordPlan<'a> {
    /// What it is.
    pub kind: RecordKind,
    /// Its content, not empty.
    pub payload: &'a [u8],
    /// Where it begins in the file.
    pub offset: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Generation of the file.
    pub generation: u64,
    /// Number of the edit.
    pub sequence: u64,
    /// Checksum of the record before.
    pub previous: u64,
}

impl RecordPlan<'_> {
    /// The blocks of the record, and its checksum.
    pub fn encode(&self, options: &ManifestOptions) -> (Vec<u8>, u64) {
        let block_bytes = options.block_bytes();
        let blocks = record_blocks(self.payload.len(), block_bytes);
        let checksum = record_checksum(self.payload, self.previous);
        assert!(blocks > 0, "a record has a payload");
        assert!(self.offset.is_multiple_of(block_bytes as u64), "records begin with a block");
        assert!(self.offset + (blocks * block_bytes) as u64 <= self.file_bytes, "files never grow");
        let mut out = vec![0; blocks * block_bytes];
        let parts = self.payload.chunks(block_bytes - BLOCK_HEADER_BYTES);
        for (number, (block, part)) in out.chunks_mut(block_bytes).zip(parts).enumerate() {
            put_u32(block, 0, MAGIC);
            put_u16(block, 4, FORMAT_VERSION);
            put_u16(block, 6, self.kind as u16);
            put_u128(block, 16, options.cluster.0);
            put_u16(block, 32, options.node.0);
            put_u32(block, 36, options.block_bytes);
            put_u32(block, 40, number as u32);
            put_u32(block, 44, blocks as u32);
            put_u32(block, 48, self.payload.len() as u32);
            put_u64(block, 56, self.file_bytes);
            put_u64(block, 64, self.generation);
            put_u64(block, 72, self.sequence);
            put_u64(block, 80, self.previous);
            put_u64(block, 88, checksum);
            put_u64(block, 96, self.offset + (number * block_bytes) as u64);
            block[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + part.len()].copy_from_slice(part);
            seal(block);
        }
        (out, checksum)
    }
}

/// Stores the checksum of a block in it.
pub(crate) fn seal(block: &mut [u8]) {
    let checksum = xxh3_64(&block[16..]);
    put_u64(block, 8, checksum);
}

/// A block as it was read.
#[derive(Clone, Copy, Debug)]
pub(super) enum BlockFound<'a> {
    /// All zeros: never written.
    Zero,
    /// Whole, and in its place.
    Valid { record: RecordHeader, number: u32, part: &'a [u8] },
    /// Whole, of another place, node or cluster.
    Misplaced,
    /// Whole, of another release.
    Version(u16),
    /// Anything else.
    Bad,
}

/// Judges the block that was read at `offset`.
pub(super) fn examine<'a>(
    options: &ManifestOptions,
    block: &'a [u8],
    offset: u64,
) -> BlockFound<'a> {
    if is_zero(block) {
        return BlockFound::Zero;
    }
    let is_whole = block.len() == options.block_bytes()
        && get_u32(block, 0) == MAGIC
        && get_u64(block, 8) == xxh3_64(&block[16..]);
    if !is_whole {
        return BlockFound::Bad;
    }
    if get_u16(block, 4) != FORMAT_VERSION {
        return BlockFound::Version(get_u16(block, 4));
    }
    let is_ours = get_u128(block, 16) == options.cluster.0
        && get_u16(block, 32) == options.node.0
        && get_u32(block, 36) == options.block_bytes
        && get_u64(block, 96) == offset;
    if !is_ours {
        return BlockFound::Misplaced;
    }
    let kind = match get_u16(block, 6) {
        1 => RecordKind::Snapshot,
        2 => RecordKind::Edit,
        _ => return BlockFound::Bad,
    };
    let record = RecordHeader {
        kind,
        blocks: get_u32(block, 44),
        payload_bytes: get_u32(block, 48),
        file_bytes: get_u64(block, 56),
        generation: get_u64(block, 64),
        sequence: get_u64(block, 72),
        previous: get_u64(block, 80),
        checksum: get_u64(block, 88),
    };
    let (number, room) = (get_u32(block, 40), block.len() - BLOCK_HEADER_BYTES);
    let blocks = record_blocks(record.payload_bytes as usize, block.len());
    if blocks == 0 || blocks != record.blocks as usize || number >= record.blocks {
        return BlockFound::Bad;
    }
    let length = (record.payload_bytes as usize - number as usize * room).min(room);
    let (part, zeros) = block[BLOCK_HEADER_BYTES..].split_at(length);
    let reserved = get_u16(block, 34) == 0 && get_u32(block, 52) == 0;
    if !is_zero(zeros) || !reserved {
        return BlockFound::Bad;
    }
    BlockFound::Valid { record, number, part }
}
