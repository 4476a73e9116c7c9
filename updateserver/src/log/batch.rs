//! Batches on their way from the first section to the frame on disk.

use spillway_net::ids::{Epoch, Lsn, PartitionId, WallMicros};

use super::bytes::align_up;
use super::frame::{FrameKind, FrameSizes, SECTION_ALIGN, SectionEntry};
use super::geometry::Geometry;

/// Memory that batches are assembled in and written from, owned by the shell: registered,
/// page-aligned, each buffer of [`batch_buffer_bytes`].
pub trait BatchBuffers {
    /// Buffer number `index`, in full.
    fn buffer_mut(&mut self, index: u16) -> &mut [u8];
    /// Number of buffers.
    fn count(&self) -> u16;
}

/// Bytes that every buffer must have.
pub fn batch_buffer_bytes(geometry: &Geometry) -> usize {
    geometry.batch_bytes_max as usize
}

/// What one item adds to one partition.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// Partition, or [`super::frame::PARTITION_SYSTEM`].
    pub partition: PartitionId,
    /// The partition's running digest behind it, or a system section's own; stored as it is.
    pub digest: u128,
    /// Content, not empty.
    pub bytes: &'a [u8],
}

/// Payload that these sections take.
pub fn sections_bytes(sections: &[Section<'_>]) -> usize {
    sections.iter().map(|section| align_up(section.bytes.len(), SECTION_ALIGN)).sum()
}

/// A batch that has no index yet. Its payload stands in its buffer behind the room for the largest
/// headers, so that nothing moves when the headers get their final size.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub kind: FrameKind,
    pub buffer: u16,
    pub directory: Vec<SectionEntry>,
    pub payload_bytes: usize,
    /// Highest ticket in it.
    pub ticket: u64,
}

impl Batch {
    pub fn new(kind: FrameKind, buffer: u16, directory: Vec<SectionEntry>) -> Self {
        assert!(directory.is_empty(), "a batch starts without sections");
        Self { kind, buffer, directory, payload_bytes: 0, ticket: 0 }
    }

    /// Bytes of the frame if this much more came in.
    pub fn frame_bytes_with(&self, geometry: &Geometry, sections: usize, bytes: usize) -> usize {
        let count = self.directory.len() + sections;
        FrameSizes::of(geometry, count, self.payload_bytes + bytes).frame_bytes
    }

    pub fn frame_bytes(&self, geometry: &Geometry) -> usize {
        self.frame_bytes_with(geometry, 0, 0)
    }

    pub fn has_room(&self, geometry: &Geometry, sections: usize, bytes: usize) -> bool {
        self.directory.len() + sections <= geometry.sections_max()
            && self.payload_bytes + bytes <= geometry.payload_bytes_max()
    }

    /// Copies a section behind the others.
    pub fn push(&mut self, geometry: &Geometry, section: &Section<'_>, buffer: &mut [u8]) {
        let length = section.bytes.len();
        assert!(length > 0, "a section has content");
        let from = geometry.header_bytes_max() + self.payload_bytes;
        let end = from + align_up(length, SECTION_ALIGN);
        buffer[from..from + length].copy_from_slice(section.bytes);
        buffer[from + length..end].fill(0);
        self.payload_bytes = end - geometry.header_bytes_max();
        let (partition, length, digest) = (section.partition, length as u32, section.digest);
        self.directory.push(SectionEntry { partition, flags: 0, length, digest });
    }
}

/// A frame that was issued.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub buffer: u16,
    pub segment: u32,
    pub offset: u64,
    pub frame_bytes: u32,
    pub done: bool,
    pub kind: FrameKind,
    pub committed: Committed,
}

/// The end of the log that is durable at a quorum (of one node: here).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Term in which the entry was proposed.
    pub epoch: Epoch,
    /// Index.
    pub lsn: Lsn,
    /// Highest ticket in the log up to this index.
    pub ticket: u64,
    /// Timestamp of the entry.
    pub timestamp: WallMicros,
}
