//! Segment headers, and what stood in a segment before the frames of its present use.
//!
//! A segment is a file of fixed size, written full at format and recycled in place. Its first
//! block is the header; behind it stands a table with one checksum for every block of the frame
//! area, taken before the present generation began. With it recovery tells a sector that was never
//! written (it still has its old contents) from one that was damaged (rule R16).

use std::fmt;

use spillway_net::ids::{ClusterId, Lsn, NodeId};
use xxhash_rust::xxh3::xxh3_64;

use super::bytes::{
    CHECKSUM_OFFSET, COUNTER_LIMIT, block_checksum, get_u16, get_u32, get_u64, get_u128,
    header_checksum, header_seal, is_zero, put_u16, put_u32, put_u64, put_u128,
};
use super::frame::FrameFault;
use super::geometry::Geometry;
use super::position::ChainState;

/// First bytes of a segment: "SPSG".
pub const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"SPSG");
/// Version of the segment header.
pub const SEGMENT_VERSION: u16 = 1;

/// Header of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Cluster that the node belongs to.
    pub cluster: ClusterId,
    /// Node that wrote it.
    pub node: NodeId,
    /// Number of the file.
    pub segment: u32,
    /// How often the file was in use, the use that this header starts included.
    pub generation: u64,
    /// Size of a block.
    pub block_bytes: u32,
    /// Size of the file.
    pub segment_bytes: u32,
    /// Frames in this generation have at least this sequence. A lower bound, because segments are
    /// prepared before they are needed.
    pub first_sequence: u64,
    /// Last index in the log when the segment was prepared.
    pub first_lsn: Lsn,
    /// Local checksum of the last frame when the segment was prepared.
    pub previous: u64,
    /// Checksum of the table of previous checksums; 0 in generation 1, which follows zeros and has
    /// no table.
    pub table: u64,
}

impl SegmentHeader {
    /// Writes the header over the whole block.
    pub fn encode(&self, block: &mut [u8]) {
        block.fill(0);
        put_u32(block, 0, SEGMENT_MAGIC);
        put_u16(block, 4, SEGMENT_VERSION);
        put_u128(block, 16, self.cluster.0);
        put_u16(block, 32, self.node.0);
        put_u32(block, 36, self.segment);
        put_u64(block, 40, self.generation);
        put_u32(block, 48, self.block_bytes);
        put_u32(block, 52, self.segment_bytes);
        put_u64(block, 56, self.first_sequence);
        put_u64(block, 64, self.first_lsn.0);
        put_u64(block, 72, self.previous);
        put_u64(block, 80, self.table);
        header_seal(block);
    }

    /// Reads the header of a segment from its first block.
    ///
    /// # Errors
    /// Says what is wrong first: magic, version, checksum, a field.
    pub fn decode(block: &[u8]) -> Result<Self, FrameFault> {
        if block.len() < 96 || get_u32(block, 0) != SEGMENT_MAGIC {
            return Err(FrameFault::Magic);
        }
        let version = get_u16(block, 4);
        if version != SEGMENT_VERSION {
            return Err(FrameFault::Version(version));
        }
        if get_u64(block, CHECKSUM_OFFSET) != header_checksum(block) {
            return Err(FrameFault::Checksum);
        }
        let header = Self {
            cluster: ClusterId(get_u128(block, 16)),
            node: NodeId(get_u16(block, 32)),
            segment: get_u32(block, 36),
            generation: get_u64(block, 40),
            block_bytes: get_u32(block, 48),
            segment_bytes: get_u32(block, 52),
            first_sequence: get_u64(block, 56),
            first_lsn: Lsn(get_u64(block, 64)),
            previous: get_u64(block, 72),
            table: get_u64(block, 80),
        };
        let in_range = get_u16(block, 6) == 0
            && get_u16(block, 34) == 0
            && is_zero(&block[88..])
            && (1..COUNTER_LIMIT).contains(&header.generation)
            && header.first_sequence < COUNTER_LIMIT;
        if in_range { Ok(header) } else { Err(FrameFault::Field("segment header")) }
    }
}

/// What stands in the frame area of a segment, as far as it is known.
#[derive(Clone, PartialEq, Eq)]
pub enum Contents {
    /// Zeros everywhere: fresh from format.
    Zeros,
    /// The checksum of every block.
    Known(Vec<u64>),
    /// Not known: the table is damaged, or nobody has read the segment yet.
    Unknown,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeros => f.write_str("Zeros"),
            Self::Known(table) => write!(f, "Known({} blocks)", table.len()),
            Self::Unknown => f.write_str("Unknown"),
        }
    }
}

impl Contents {
    /// True when the block at `index` holds what this says.
    pub fn holds(&self, index: usize, block: &[u8]) -> bool {
        match self {
            Self::Zeros => is_zero(block),
            Self::Known(table) => table[index] == block_checksum(block),
            Self::Unknown => false,
        }
    }

    /// The table, made from zeros where need be, so that entries can be changed.
    ///
    /// # Panics
    /// When the contents are not known: frames are only written to segments that were prepared.
    pub fn table_mut(&mut self, geometry: &Geometry) -> &mut Vec<u64> {
        if matches!(self, Self::Zeros) {
            *self = Self::Known(table_of_zeros(geometry));
        }
        match self {
            Self::Known(table) => table,
            Self::Zeros | Self::Unknown => panic!("contents of a segment in use are known"),
        }
    }
}

/// The table of a frame area that is zero throughout.
pub fn table_of_zeros(geometry: &Geometry) -> Vec<u64> {
    let zero = vec![0u8; geometry.block()];
    vec![block_checksum(&zero); geometry.data_blocks()]
}

/// Encodes header and table as they stand at the start of the segment file. Turns a segment behind
/// the floor into its next generation: `before` is what its frame area holds now.
///
/// # Panics
/// When the contents are not known.
pub fn segment_recycle(
    geometry: &Geometry,
    cluster: ClusterId,
    node: NodeId,
    ordinal: u64,
    chain: &ChainState,
    before: &Contents,
) -> Vec<u8> {
    let mut bytes = vec![0; geometry.data_offset() as usize];
    let (block, area) = bytes.split_at_mut(geometry.block());
    let table = match before {
        Contents::Zeros => 0,
        Contents::Known(entries) => {
            assert_eq!(entries.len(), geometry.data_blocks(), "a table covers the frame area");
            for (entry, bytes) in entries.iter().zip(area.as_chunks_mut::<8>().0) {
                *bytes = entry.to_le_bytes();
            }
            xxh3_64(area)
        }
        Contents::Unknown => panic!("a segment is recycled only when its contents are known"),
    };
    let header = SegmentHeader {
        cluster,
        node,
        segment: geometry.slot(ordinal),
        generation: geometry.generation(ordinal),
        block_bytes: geometry.block_bytes,
        segment_bytes: geometry.segment_bytes,
        first_sequence: chain.sequence,
        first_lsn: chain.lsn,
        previous: chain.local,
        table,
    };
    header.encode(block);
    bytes
}

/// Reads the table behind a valid segment header. `None` when it does not fit its checksum: the
/// segment was not prepared to the end, or the table is damaged.
pub fn segment_table(geometry: &Geometry, header: &SegmentHeader, area: &[u8]) -> Option<Contents> {
    if header.table == 0 {
        return Some(Contents::Zeros);
    }
    assert_eq!(area.len() + geometry.block(), geometry.data_offset() as usize, "table area");
    if xxh3_64(area) != header.table {
        return None;
    }
    let entries = area.as_chunks::<8>().0[..geometry.data_blocks()].iter();
    Some(Contents::Known(entries.map(|entry| u64::from_le_bytes(*entry)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::testing::small_geometry;

    #[test]
    fn header_survives_and_every_flip_is_seen() {
        let geometry = small_geometry();
        let chain = ChainState { sequence: 9, lsn: Lsn(4), local: 77, ..ChainState::EMPTY };
        let before = Contents::Known((0..geometry.data_blocks() as u64).collect());
        let ordinal = u64::from(geometry.segments_count) * 2 + 1;
        let bytes = segment_recycle(&geometry, ClusterId(5), NodeId(2), ordinal, &chain, &before);
        let (block, area) = bytes.split_at(geometry.block());
        let header = SegmentHeader::decode(block).expect("valid");
        assert_eq!((header.segment, header.generation), (1, 3));
        assert_eq!((header.first_sequence, header.first_lsn, header.previous), (9, Lsn(4), 77));
        assert_eq!(segment_table(&geometry, &header, area), Some(before));
        for bit in 0..block.len() * 8 {
            let mut damaged = block.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&damaged).is_err(), "bit {bit}");
        }
        let mut damaged = area.to_vec();
        damaged[11] ^= 4;
        assert_eq!(segment_table(&geometry, &header, &damaged), None);
    }

    #[test]
    fn contents_know_zeros_and_tables() {
        let geometry = small_geometry();
        let (zero, one) = (vec![0u8; geometry.block()], vec![1u8; geometry.block()]);
        let mut contents = Contents::Zeros;
        assert!(contents.holds(3, &zero) && !contents.holds(3, &one));
        contents.table_mut(&geometry)[3] = block_checksum(&one);
        assert!(contents.holds(3, &one) && !contents.holds(3, &zero) && contents.holds(4, &zero));
        assert!(!Contents::Unknown.holds(0, &zero));
    }
}
