//! Byte layout of a frame: one batch with its headers, as it stands on disk.
//!
//! ```text
//! | local header: one block | shared header, sector checksums, directory | payload | zeros |
//! ```
//!
//! Every part ends on a block boundary. The local header is written by the node for its own copy;
//! everything behind it is the same on all nodes. Offsets and rules: `docs/FORMAT.md`.

use spillway_net::ids::{ClusterId, Epoch, Lsn, NodeId, PartitionId, WallMicros};
use spillway_net::limits::LOG_WRITES_IN_FLIGHT_MAX;

use super::bytes::{
    CHECKSUM_OFFSET, COUNTER_LIMIT, align_up, block_checksum, get_u16, get_u32, get_u64, get_u128,
    header_checksum, header_seal, is_zero, put_u16, put_u32, put_u64, put_u128,
};
use super::geometry::Geometry;
use super::position::ChainState;

/// First bytes of a local header: "SPLF".
pub const LOCAL_MAGIC: u32 = u32::from_le_bytes(*b"SPLF");
/// First bytes of a shared header: "SPSH".
pub const SHARED_MAGIC: u32 = u32::from_le_bytes(*b"SPSH");
/// Version of both headers.
pub const FRAME_VERSION: u16 = 1;
/// Used bytes of the local header; the rest of its block is zero.
pub const LOCAL_FIXED_BYTES: usize = 128;
/// Bytes of the shared header in front of the sector checksums.
pub const SHARED_FIXED_BYTES: usize = 96;
/// Bytes of one entry of the section directory.
pub const SECTION_ENTRY_BYTES: usize = 24;
/// Every section starts at a multiple of this within the payload.
pub const SECTION_ALIGN: usize = 16;
/// The section that belongs to no partition: freezes, schema, configuration.
pub const PARTITION_SYSTEM: PartitionId = PartitionId(0xFFFF);

/// The reserved bytes in front of the checksum.
const RESERVED_UNCOVERED: &str = "reserved bytes in front of the checksum";

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A batch of fragments. Takes the next index.
    Data,
    /// An entry without sections: the first of a term. Takes the next index.
    NoOp,
    /// Not an entry: repeats index and timestamp of the last one, and exists for the durable
    /// sequence in its local header (rule R21). Never leaves the node.
    Watermark,
    /// A change of the cluster's members: one system section. Takes the next index.
    Config,
}

impl FrameKind {
    fn code(self) -> u16 {
        match self {
            Self::Data => 1,
            Self::NoOp => 2,
            Self::Watermark => 3,
            Self::Config => 4,
        }
    }

    fn from_code(code: u16) -> Option<Self> {
        let kinds = [Self::Data, Self::NoOp, Self::Watermark, Self::Config];
        kinds.into_iter().find(|kind| kind.code() == code)
    }

    fn allows_sections(self, count: usize) -> bool {
        match self {
            Self::Data => count > 0,
            Self::NoOp | Self::Watermark => count == 0,
            Self::Config => count == 1,
        }
    }

    /// True when the frame is an entry of the log with an index of its own.
    pub fn is_entry(self) -> bool {
        self != Self::Watermark
    }
}

/// Why bytes are not a valid header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// The magic number is missing.
    #[error("no frame header")]
    Magic,
    /// The version is not known to this build.
    #[error("frame version {0} is not known to this build")]
    Version(u16),
    /// The header does not fit its checksum.
    #[error("header checksum mismatch")]
    Checksum,
    /// A field is outside its range although the checksum fits.
    #[error("header field out of range: {0}")]
    Field(&'static str),
    /// A payload block does not fit its checksum.
    #[error("checksum mismatch in payload block {0}")]
    Sector(usize),
    /// The bytes end before the frame does, or go on behind it.
    #[error("the frame has {expected} bytes, {found} came")]
    Length {
        /// By its header.
        expected: usize,
        /// There.
        found: usize,
    },
    /// The frame is of another cluster.
    #[error("a frame of another cluster")]
    Cluster,
    /// A good frame, but not the one that was asked for.
    #[error("another frame than the one that was asked for")]
    Other,
}

impl FrameFault {
    /// True when bytes of a header are not those that were written; otherwise they are, and say
    /// what they should not.
    pub(super) fn is_of_bytes(self) -> bool {
        matches!(
            self,
            Self::Magic | Self::Version(_) | Self::Checksum | Self::Field(RESERVED_UNCOVERED)
        )
    }
}

fn require(holds: bool, field: &'static str) -> Result<(), FrameFault> {
    if holds { Ok(()) } else { Err(FrameFault::Field(field)) }
}

/// The node's own part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalHeader {
    /// Cluster that the node belongs to.
    pub cluster: ClusterId,
    /// Node that wrote the frame.
    pub node: NodeId,
    /// Start of the node during which the frame was written.
    pub boot: u64,
    /// Segment file.
    pub segment: u32,
    /// How often that file was in use.
    pub generation: u64,
    /// Offset of this frame in the segment file.
    pub offset: u64,
    /// Number of the frame on this node, without gaps over all starts.
    pub sequence: u64,
    /// Checksum of the previous frame's local header.
    pub previous: u64,
    /// The node's current term (not the entry's).
    pub term: Epoch,
    /// Whom the node voted for in that term; node 0 is nobody.
    pub vote: NodeId,
    /// Up to this sequence everything was durable here when the frame was issued.
    pub durable_sequence: u64,
    /// Up to this index everything was committed, and durable here, when the frame was issued.
    pub commit_hint: Lsn,
    /// Whole frame, all headers and padding included.
    pub frame_bytes: u32,
    /// Local and shared header area, in whole blocks.
    pub header_bytes: u32,
    /// Checksum of the shared header.
    pub shared: u64,
}

impl LocalHeader {
    /// Writes the header over the whole block. Returns its checksum.
    pub fn encode(&self, block: &mut [u8]) -> u64 {
        assert!(block.len() >= LOCAL_FIXED_BYTES, "a local header needs a block");
        block.fill(0);
        put_u32(block, 0, LOCAL_MAGIC);
        put_u16(block, 4, FRAME_VERSION);
        put_u128(block, 16, self.cluster.0);
        put_u16(block, 32, self.node.0);
        put_u16(block, 34, self.vote.0);
        put_u32(block, 36, self.frame_bytes);
        put_u32(block, 40, self.header_bytes);
        put_u32(block, 44, self.segment);
        put_u64(block, 48, self.generation);
        put_u64(block, 56, self.offset);
        put_u64(block, 64, self.boot);
        put_u64(block, 72, self.sequence);
        put_u64(block, 80, self.previous);
        put_u64(block, 88, self.term.0);
        put_u64(block, 96, self.durable_sequence);
        put_u64(block, 104, self.commit_hint.0);
        put_u64(block, 112, self.shared);
        header_seal(block)
    }

    /// Reads a header from one block.
    ///
    /// # Errors
    /// Says what is wrong first: magic, version, checksum, a field.
    pub fn decode(block: &[u8]) -> Result<Self, FrameFault> {
        if block.len() < LOCAL_FIXED_BYTES || get_u32(block, 0) != LOCAL_MAGIC {
            return Err(FrameFault::Magic);
        }
        let version = get_u16(block, 4);
        if version != FRAME_VERSION {
            return Err(FrameFault::Version(version));
        }
        if get_u64(block, CHECKSUM_OFFSET) != header_checksum(block) {
            return Err(FrameFault::Checksum);
        }
        let header = Self {
            cluster: ClusterId(get_u128(block, 16)),
            node: NodeId(get_u16(block, 32)),
            vote: NodeId(get_u16(block, 34)),
            frame_bytes: get_u32(block, 36),
            header_bytes: get_u32(block, 40),
            segment: get_u32(block, 44),
            generation: get_u64(block, 48),
            offset: get_u64(block, 56),
            boot: get_u64(block, 64),
            sequence: get_u64(block, 72),
            previous: get_u64(block, 80),
            term: Epoch(get_u64(block, 88)),
            durable_sequence: get_u64(block, 96),
            commit_hint: Lsn(get_u64(block, 104)),
            shared: get_u64(block, 112),
        };
        require(get_u16(block, 6) == 0, "local reserved")?;
        require(is_zero(&block[120..]), "local padding")?;
        require(header.boot < COUNTER_LIMIT, "boot")?;
        require(header.generation < COUNTER_LIMIT, "generation")?;
        require(header.term.0 < COUNTER_LIMIT, "term")?;
        require(header.commit_hint.0 < COUNTER_LIMIT, "commit hint")?;
        require((1..COUNTER_LIMIT).contains(&header.sequence), "sequence")?;
        let ahead = header.sequence.checked_sub(header.durable_sequence);
        let window = 1..=LOG_WRITES_IN_FLIGHT_MAX as u64;
        require(ahead.is_some_and(|ahead| window.contains(&ahead)), "durable sequence")?;
        Ok(header)
    }
}

/// The checksum of an encoded local header: the value that the next frame repeats.
pub fn local_checksum(block: &[u8]) -> u64 {
    get_u64(block, CHECKSUM_OFFSET)
}

/// The part of a frame's headers that is the same on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedHeader {
    /// What the frame holds.
    pub kind: FrameKind,
    /// Own checksum; the next entry repeats it. Computed when encoded.
    pub checksum: u64,
    /// Cluster that the entry belongs to.
    pub cluster: ClusterId,
    /// Term in which the entry was proposed.
    pub entry_term: Epoch,
    /// Index of the entry.
    pub index: Lsn,
    /// Shared checksum of the entry before, in log order.
    pub previous: u64,
    /// Batch timestamp: the visible time of all that is in the batch.
    pub timestamp: WallMicros,
    /// Entries of the section directory.
    pub section_count: u32,
    /// Bytes of all sections, each rounded up to 16.
    pub payload_bytes: u32,
    /// Whole frame, all headers and padding included.
    pub frame_bytes: u32,
}

/// What a watermark says: it repeats the last entry, so that it follows from the chain alone.
/// Sizes and checksum come with [`body_seal`].
pub(super) fn watermark_header(cluster: ClusterId, chain: &ChainState) -> SharedHeader {
    SharedHeader {
        kind: FrameKind::Watermark,
        checksum: 0,
        cluster,
        entry_term: chain.entry_term,
        index: chain.lsn,
        previous: chain.shared,
        timestamp: chain.timestamp,
        section_count: 0,
        payload_bytes: 0,
        frame_bytes: 0,
    }
}

/// Sizes of the parts of a frame, which follow from its section count and payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameSizes {
    /// Shared header area, in whole blocks.
    pub shared_bytes: usize,
    /// Payload blocks.
    pub payload_blocks: usize,
    /// Local and shared header area.
    pub header_bytes: usize,
    /// Whole frame.
    pub frame_bytes: usize,
}

impl FrameSizes {
    /// Sizes of a frame with this much in it.
    pub fn of(geometry: &Geometry, section_count: usize, payload_bytes: usize) -> Self {
        let block = geometry.block();
        let payload_blocks = payload_bytes.div_ceil(block);
        let used = SHARED_FIXED_BYTES + payload_blocks * 8 + section_count * SECTION_ENTRY_BYTES;
        let shared_bytes = align_up(used, block);
        let header_bytes = block + shared_bytes;
        let frame_bytes = header_bytes + payload_blocks * block;
        Self { shared_bytes, payload_blocks, header_bytes, frame_bytes }
    }
}

impl SharedHeader {
    /// Writes the fixed part. The caller seals the area when checksums and directory are in.
    pub fn encode(&self, geometry: &Geometry, area: &mut [u8]) {
        put_u32(area, 0, SHARED_MAGIC);
        put_u16(area, 4, FRAME_VERSION);
        put_u16(area, 6, 0);
        put_u64(area, CHECKSUM_OFFSET, 0);
        put_u128(area, 16, self.cluster.0);
        put_u64(area, 32, self.entry_term.0);
        put_u64(area, 40, self.index.0);
        put_u64(area, 48, self.previous);
        put_u64(area, 56, self.timestamp.0);
        put_u32(area, 64, self.section_count);
        put_u32(area, 68, self.payload_bytes);
        put_u32(area, 72, self.frame_bytes);
        put_u32(area, 76, geometry.block_bytes);
        put_u128(area, 80, u128::from(self.kind.code()));
    }

    /// Reads and checks a shared header area: its checksum, its sizes, its directory.
    ///
    /// # Errors
    /// Says what is wrong first: magic, version, checksum, a field.
    pub fn decode(geometry: &Geometry, area: &[u8]) -> Result<Self, FrameFault> {
        if area.len() < SHARED_FIXED_BYTES || get_u32(area, 0) != SHARED_MAGIC {
            return Err(FrameFault::Magic);
        }
        let version = get_u16(area, 4);
        if version != FRAME_VERSION {
            return Err(FrameFault::Version(version));
        }
        let checksum = get_u64(area, CHECKSUM_OFFSET);
        if checksum != header_checksum(area) {
            return Err(FrameFault::Checksum);
        }
        require(get_u16(area, 6) == 0, RESERVED_UNCOVERED)?;
        let kind = FrameKind::from_code(get_u16(area, 80)).ok_or(FrameFault::Field("kind"))?;
        let header = Self {
            kind,
            checksum,
            cluster: ClusterId(get_u128(area, 16)),
            entry_term: Epoch(get_u64(area, 32)),
            index: Lsn(get_u64(area, 40)),
            previous: get_u64(area, 48),
            timestamp: WallMicros(get_u64(area, 56)),
            section_count: get_u32(area, 64),
            payload_bytes: get_u32(area, 68),
            frame_bytes: get_u32(area, 72),
        };
        require(get_u32(area, 76) == geometry.block_bytes, "block size")?;
        require(is_zero(&area[82..SHARED_FIXED_BYTES]), "shared reserved")?;
        header.check_sizes(geometry, area)?;
        Ok(header)
    }

    pub(super) fn check_sizes(&self, geometry: &Geometry, area: &[u8]) -> Result<(), FrameFault> {
        let (count, payload) = (self.section_count as usize, self.payload_bytes as usize);
        require(self.entry_term.0 < COUNTER_LIMIT, "entry term")?;
        require(self.index.0 < COUNTER_LIMIT, "index")?;
        require(self.timestamp.0 < COUNTER_LIMIT, "timestamp")?;
        require(count <= geometry.sections_max(), "section count")?;
        require(payload <= geometry.payload_bytes_max(), "payload size")?;
        require(self.kind.allows_sections(count), "sections of this kind")?;
        let sizes = FrameSizes::of(geometry, count, payload);
        require(sizes.frame_bytes == self.frame_bytes as usize, "frame size")?;
        require(sizes.shared_bytes == area.len(), "header size")?;
        let directory = directory_of(area, sizes.payload_blocks, count);
        let mut total = 0;
        for entry in directory.as_chunks::<SECTION_ENTRY_BYTES>().0 {
            let entry = SectionEntry::decode(entry);
            let known =
                entry.partition.0 < geometry.partitions || entry.partition == PARTITION_SYSTEM;
            let system = entry.partition == PARTITION_SYSTEM;
            require(known && (system || self.kind == FrameKind::Data), "partition")?;
            require(entry.flags == 0, "section flags")?;
            require(entry.length > 0 && entry.length as usize <= payload, "section length")?;
            total += align_up(entry.length as usize, SECTION_ALIGN);
        }
        require(total == payload, "sum of section lengths")
    }

    /// Length of the header area that `body` begins with, by fields that no checksum has covered
    /// yet but that are within their limits.
    fn area_bytes(geometry: &Geometry, body: &[u8]) -> Result<usize, FrameFault> {
        if body.len() < SHARED_FIXED_BYTES || get_u32(body, 0) != SHARED_MAGIC {
            return Err(FrameFault::Magic);
        }
        let (count, payload) = (get_u32(body, 64) as usize, get_u32(body, 68) as usize);
        require(count <= geometry.sections_max(), "section count")?;
        require(payload <= geometry.payload_bytes_max(), "payload size")?;
        let sizes = FrameSizes::of(geometry, count, payload);
        let (expected, found) = (sizes.frame_bytes - geometry.block(), body.len());
        if expected == found {
            Ok(sizes.shared_bytes)
        } else {
            Err(FrameFault::Length { expected, found })
        }
    }

    /// Sizes of the frame.
    pub fn sizes(&self, geometry: &Geometry) -> FrameSizes {
        FrameSizes::of(geometry, self.section_count as usize, self.payload_bytes as usize)
    }
}

/// One entry of the section directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionEntry {
    /// Partition, or [`PARTITION_SYSTEM`].
    pub partition: PartitionId,
    /// None are defined; zero.
    pub flags: u16,
    /// Bytes of the section without padding.
    pub length: u32,
    /// Running digest of the partition after this fragment.
    pub digest: u128,
}

impl SectionEntry {
    /// Writes the entry.
    pub fn encode(&self, bytes: &mut [u8; SECTION_ENTRY_BYTES]) {
        put_u16(bytes, 0, self.partition.0);
        put_u16(bytes, 2, self.flags);
        put_u32(bytes, 4, self.length);
        put_u128(bytes, 8, self.digest);
    }

    /// Reads the entry; ranges are checked with the header.
    pub fn decode(bytes: &[u8; SECTION_ENTRY_BYTES]) -> Self {
        Self {
            partition: PartitionId(get_u16(bytes, 0)),
            flags: get_u16(bytes, 2),
            length: get_u32(bytes, 4),
            digest: get_u128(bytes, 8),
        }
    }
}

fn directory_of(area: &[u8], payload_blocks: usize, count: usize) -> &[u8] {
    let from = SHARED_FIXED_BYTES + payload_blocks * 8;
    &area[from..from + count * SECTION_ENTRY_BYTES]
}

/// The checksum of payload block `block` in a shared header area.
pub fn sector_checksum(area: &[u8], block: usize) -> u64 {
    get_u64(area, SHARED_FIXED_BYTES + block * 8)
}

/// A section of a checked frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionView<'a> {
    /// Partition, or [`PARTITION_SYSTEM`].
    pub partition: PartitionId,
    /// Running digest of the partition after this fragment.
    pub digest: u128,
    /// Content.
    pub bytes: &'a [u8],
}

/// The part of a frame that is the same on all nodes: the shared header area and the payload with
/// its padding.
#[derive(Clone, Copy, Debug)]
pub struct BodyView<'a> {
    /// The header.
    pub shared: SharedHeader,
    directory: &'a [u8],
    payload: &'a [u8],
}

impl<'a> BodyView<'a> {
    /// Takes apart a body of exactly one frame. The header is checked in full, the payload is not:
    /// see [`Self::check_sectors`].
    ///
    /// # Errors
    /// What is wrong with the header first.
    pub fn new(geometry: &Geometry, body: &'a [u8]) -> Result<Self, FrameFault> {
        let area_bytes = SharedHeader::area_bytes(geometry, body)?;
        let shared = SharedHeader::decode(geometry, &body[..area_bytes])?;
        Ok(Self::of(geometry, shared, body))
    }

    /// Takes apart a body whose header was decoded from these bytes.
    pub(super) fn of(geometry: &Geometry, shared: SharedHeader, body: &'a [u8]) -> Self {
        let sizes = shared.sizes(geometry);
        let bytes = sizes.frame_bytes - geometry.block();
        assert_eq!(body.len(), bytes, "a body is exactly that of its frame");
        let (area, payload) = body.split_at(sizes.shared_bytes);
        let directory = directory_of(area, sizes.payload_blocks, shared.section_count as usize);
        Self { shared, directory, payload: &payload[..shared.payload_bytes as usize] }
    }

    /// The sections in the order of the batch.
    pub fn sections(&self) -> impl Iterator<Item = SectionView<'a>> + use<'a> {
        let payload = self.payload;
        let mut at = 0;
        self.directory.as_chunks::<SECTION_ENTRY_BYTES>().0.iter().map(move |entry| {
            let entry = SectionEntry::decode(entry);
            let bytes = &payload[at..at + entry.length as usize];
            at += align_up(entry.length as usize, SECTION_ALIGN);
            SectionView { partition: entry.partition, digest: entry.digest, bytes }
        })
    }
}

/// Checks everything that a body says about itself: header, sizes, directory, every payload block.
///
/// # Errors
/// What is wrong first.
pub fn body_check(
    geometry: &Geometry,
    cluster: ClusterId,
    body: &[u8],
) -> Result<SharedHeader, FrameFault> {
    let area_bytes = SharedHeader::area_bytes(geometry, body)?;
    let (area, payload) = body.split_at(area_bytes);
    let shared = SharedHeader::decode(geometry, area)?;
    if shared.cluster != cluster {
        return Err(FrameFault::Cluster);
    }
    for (index, sector) in payload.chunks_exact(geometry.block()).enumerate() {
        if block_checksum(sector) != sector_checksum(area, index) {
            return Err(FrameFault::Sector(index));
        }
    }
    Ok(shared)
}

/// A frame whose headers and sectors were all checked.
#[derive(Clone, Copy, Debug)]
pub struct FrameView<'a> {
    /// The node's own header.
    pub local: LocalHeader,
    /// What all nodes share.
    pub body: BodyView<'a>,
}

impl<'a> FrameView<'a> {
    /// Takes apart a frame whose headers were decoded from these bytes and whose sectors fit.
    pub fn new(
        geometry: &Geometry,
        local: LocalHeader,
        shared: SharedHeader,
        frame: &'a [u8],
    ) -> Self {
        Self { local, body: BodyView::of(geometry, shared, &frame[geometry.block()..]) }
    }
}

/// Finishes the body of a frame whose payload stands in its place behind the header area: zeroes
/// the padding, computes all checksums and writes the header. Sizes and checksum in the given
/// header are ignored and computed; the header as it was written comes back.
pub fn body_seal(
    geometry: &Geometry,
    body: &mut [u8],
    directory: &[SectionEntry],
    mut shared: SharedHeader,
) -> SharedHeader {
    let block = geometry.block();
    let payload_bytes = shared.payload_bytes as usize;
    let sizes = FrameSizes::of(geometry, directory.len(), payload_bytes);
    assert!(sizes.frame_bytes <= geometry.batch_bytes_max as usize, "frame over its limit");
    assert_eq!(body.len(), sizes.frame_bytes - block, "a body is exactly that of its frame");
    let (area, payload) = body.split_at_mut(sizes.shared_bytes);
    payload[payload_bytes..].fill(0);
    shared.section_count = directory.len() as u32;
    shared.frame_bytes = sizes.frame_bytes as u32;
    shared.encode(geometry, area);
    for (index, sector) in payload.chunks_exact(block).enumerate() {
        put_u64(area, SHARED_FIXED_BYTES + index * 8, block_checksum(sector));
    }
    let mut at = SHARED_FIXED_BYTES + sizes.payload_blocks * 8;
    for entry in directory {
        let bytes = area[at..].first_chunk_mut().expect("the area was sized for the directory");
        entry.encode(bytes);
        at += SECTION_ENTRY_BYTES;
    }
    area[at..].fill(0);
    shared.checksum = header_seal(area);
    shared
}
