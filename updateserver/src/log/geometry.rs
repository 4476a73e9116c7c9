//! Sizes of the log, fixed at format.

use spillway_net::limits::{
    BATCH_BYTES_MAX, BATCH_HEADER_BYTES_MAX, LOG_WRITES_IN_FLIGHT_MAX, PARTITIONS_MAX,
};

use super::bytes::align_up;
use super::frame::{SECTION_ENTRY_BYTES, SHARED_FIXED_BYTES};

/// Smallest block, bytes: the smallest sector of any disk.
pub const BLOCK_BYTES_MIN: u32 = 512;
/// Largest block, bytes.
pub const BLOCK_BYTES_MAX: u32 = 4096;
/// Largest segment, bytes.
pub const SEGMENT_BYTES_MAX: u32 = 1 << 30;
/// Fewest segments: one that is written, one that is prepared, the reserve, one to release.
pub const SEGMENTS_COUNT_MIN: u32 = 4;
/// Largest frames that a segment must hold: all that can be in flight, and one more, so that what a
/// crash may tear lies in one segment.
pub const FRAMES_OF_SEGMENT_MIN: usize = LOG_WRITES_IN_FLIGHT_MAX + 1;
/// Most segments.
pub const SEGMENTS_COUNT_MAX: u32 = 1 << 16;

/// Sizes of the log of a node. Written into the superblock at format and never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The unit that the disk writes whole or not at all, and that sector checksums cover.
    pub block_bytes: u32,
    /// Size of a segment file.
    pub segment_bytes: u32,
    /// Number of segment files.
    pub segments_count: u32,
    /// Partitions of the cluster, a power of two.
    pub partitions: u16,
    /// Largest frame with its headers. The same on every node of a cluster.
    pub batch_bytes_max: u32,
}

/// Why a geometry is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The block size is not a power of two from 512 to 4096.
    #[error("log block size of {0} bytes: must be 512, 1024, 2048 or 4096")]
    Block(u32),
    /// The partition count is not a power of two within the limit.
    #[error("{0} partitions: must be a power of two up to {PARTITIONS_MAX}")]
    Partitions(u16),
    /// The largest frame is no multiple of the block or beyond the limit, or its header is too
    /// small for one section of each partition.
    #[error(
        "largest batch of {0} bytes: must be a multiple of the block, at most {BATCH_BYTES_MAX}, \
         and have room for a section of every partition"
    )]
    Batch(u32),
    /// The segment size is no multiple of the block or outside its limits.
    #[error(
        "log segment of {0} bytes: must be a multiple of the block, at most {SEGMENT_BYTES_MAX}, \
         and hold {FRAMES_OF_SEGMENT_MIN} largest batches beside its header"
    )]
    Segment(u32),
    /// Too few or too many segments.
    #[error("{0} log segments: must be {SEGMENTS_COUNT_MIN} to {SEGMENTS_COUNT_MAX}")]
    Segments(u32),
}

impl Geometry {
    /// Checks every relation that the rest of the log relies on.
    ///
    /// # Errors
    /// The first relation that does not hold.
    pub fn check(&self) -> Result<(), GeometryError> {
        let block_ok = self.block_bytes.is_power_of_two()
            && (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&self.block_bytes);
        if !block_ok {
            return Err(GeometryError::Block(self.block_bytes));
        }
        if !self.partitions.is_power_of_two() || usize::from(self.partitions) > PARTITIONS_MAX {
            return Err(GeometryError::Partitions(self.partitions));
        }
        let batch = self.batch_bytes_max;
        let batch_ok = batch.is_multiple_of(self.block_bytes)
            && batch as usize <= BATCH_BYTES_MAX
            && batch > 8 * self.block_bytes
            && self.sections_max() > usize::from(self.partitions);
        if !batch_ok {
            return Err(GeometryError::Batch(batch));
        }
        let window = FRAMES_OF_SEGMENT_MIN as u64 * u64::from(batch);
        let segment_ok = self.segment_bytes.is_multiple_of(self.block_bytes)
            && self.segment_bytes <= SEGMENT_BYTES_MAX
            && u64::from(self.segment_bytes) >= self.data_offset() + window;
        if !segment_ok {
            return Err(GeometryError::Segment(self.segment_bytes));
        }
        if !(SEGMENTS_COUNT_MIN..=SEGMENTS_COUNT_MAX).contains(&self.segments_count) {
            return Err(GeometryError::Segments(self.segments_count));
        }
        Ok(())
    }

    /// Block size as an index type.
    pub fn block(&self) -> usize {
        self.block_bytes as usize
    }

    /// Room that a batch buffer keeps in front of the payload, for the headers of the largest
    /// batch.
    pub fn header_bytes_max(&self) -> usize {
        let share = (self.batch_bytes_max as usize).div_ceil(16).max(4 * self.block());
        align_up(share, self.block()).min(BATCH_HEADER_BYTES_MAX)
    }

    /// Largest payload of a frame, a multiple of the block.
    pub fn payload_bytes_max(&self) -> usize {
        (self.batch_bytes_max as usize).saturating_sub(self.header_bytes_max())
    }

    /// Most sections of a frame: what fits the header room beside the checksums of the largest
    /// payload.
    pub fn sections_max(&self) -> usize {
        let checksums = self.payload_bytes_max() / self.block() * 8;
        self.header_bytes_max()
            .saturating_sub(self.block() + SHARED_FIXED_BYTES + checksums)
            .checked_div(SECTION_ENTRY_BYTES)
            .expect("a section entry has bytes")
    }

    /// First byte of a segment that frames may use: behind the header block and the table of
    /// previous checksums.
    pub fn data_offset(&self) -> u64 {
        let blocks = (self.segment_bytes / self.block_bytes) as usize;
        (self.block() + align_up(blocks * 8, self.block())) as u64
    }

    /// Bytes of a segment that frames may use.
    pub fn data_bytes(&self) -> u64 {
        u64::from(self.segment_bytes) - self.data_offset()
    }

    /// Blocks of a segment that frames may use: entries of the table of previous checksums.
    pub fn data_blocks(&self) -> usize {
        (self.data_bytes() / u64::from(self.block_bytes)) as usize
    }

    /// The table entry of the block at `offset` of a segment.
    pub fn block_index(&self, offset: u64) -> usize {
        assert!(offset >= self.data_offset(), "offset {offset} lies in the segment header");
        assert!(offset.is_multiple_of(u64::from(self.block_bytes)), "offset {offset} not aligned");
        ((offset - self.data_offset()) / u64::from(self.block_bytes)) as usize
    }

    /// The segment file that holds the segment with this ordinal.
    pub fn slot(&self, ordinal: u64) -> u32 {
        (ordinal % u64::from(self.segments_count)) as u32
    }

    /// How often the file of this ordinal has been in use, this time included. From 1.
    pub fn generation(&self, ordinal: u64) -> u64 {
        ordinal / u64::from(self.segments_count) + 1
    }
}

// The largest header fits the share of a batch that nothing else may use, at every block size.
const _: () = {
    let blocks = (BATCH_BYTES_MAX - BATCH_HEADER_BYTES_MAX) / BLOCK_BYTES_MIN as usize;
    let sections = (PARTITIONS_MAX + 1) * SECTION_ENTRY_BYTES;
    assert!(
        BLOCK_BYTES_MAX as usize + SHARED_FIXED_BYTES + blocks * 8 + sections
            <= BATCH_HEADER_BYTES_MAX
    );
};

#[cfg(test)]
mod tests {
    use super::*;

    fn standard() -> Geometry {
        Geometry {
            block_bytes: 4096,
            segment_bytes: 64 << 20,
            segments_count: 16,
            partitions: 256,
            batch_bytes_max: BATCH_BYTES_MAX as u32,
        }
    }

    #[test]
    fn the_standard_geometry_holds() {
        let geometry = standard();
        geometry.check().expect("valid");
        assert_eq!(geometry.header_bytes_max(), BATCH_HEADER_BYTES_MAX);
        assert!(geometry.sections_max() > PARTITIONS_MAX);
        assert_eq!(geometry.data_offset(), 4096 + 16384 * 8);
        assert_eq!(geometry.data_blocks() as u64 * 4096, geometry.data_bytes());
        assert_eq!((geometry.slot(35), geometry.generation(35)), (3, 3));
        assert_eq!((geometry.slot(0), geometry.generation(0)), (0, 1));
    }

    #[test]
    fn every_relation_is_checked() {
        let base = standard();
        for block_bytes in [0, 1, 256, 513, 3000, 8192] {
            let geometry = Geometry { block_bytes, ..base };
            assert_eq!(geometry.check(), Err(GeometryError::Block(block_bytes)));
        }
        for partitions in [0, 3, 2048] {
            let geometry = Geometry { partitions, ..base };
            assert_eq!(geometry.check(), Err(GeometryError::Partitions(partitions)));
        }
        for batch_bytes_max in [0, 4096, 4097, 100_000, (1 << 20) + 4096] {
            let geometry = Geometry { batch_bytes_max, ..base };
            assert_eq!(geometry.check(), Err(GeometryError::Batch(batch_bytes_max)));
        }
        for segment_bytes in [0, 4096, 5 << 20, (64 << 20) + 512, SEGMENT_BYTES_MAX + 4096] {
            let geometry = Geometry { segment_bytes, ..base };
            assert_eq!(geometry.check(), Err(GeometryError::Segment(segment_bytes)));
        }
        for segments_count in [0, 3, SEGMENTS_COUNT_MAX + 1] {
            let geometry = Geometry { segments_count, ..base };
            assert_eq!(geometry.check(), Err(GeometryError::Segments(segments_count)));
        }
        for block_bytes in [512, 1024, 2048, 4096] {
            Geometry { block_bytes, partitions: 1024, ..base }.check().expect("valid");
        }
    }
}
