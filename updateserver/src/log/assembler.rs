//! The leader's batches on their way from the first section to the finished entry.
//!
//! A batch is assembled where it stays: in one reservation of the slot ring with room for the
//! largest headers in front of the payload, so that sections are copied exactly once and nothing
//! moves when the headers get their final size. What is not needed at the end goes back to the
//! ring when the batch is closed; what is not needed in front stays unused.

use spillway_net::ids::{ClusterId, Epoch, Lsn, PartitionId, WallMicros};
use spillway_runtime::slot_ring::{SlotMut, SlotRing};

use super::bytes::align_up;
use super::entry_frame::EntryFrame;
use super::frame::{FrameKind, FrameSizes, SECTION_ALIGN, SectionEntry, SharedHeader, body_seal};
use super::geometry::Geometry;

/// What one item adds to one partition.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// Partition, or [`super::PARTITION_SYSTEM`].
    pub partition: PartitionId,
    /// Running digest of the partition after this fragment, or the digest of a system section.
    pub digest: u128,
    /// Content, not empty.
    pub bytes: &'a [u8],
}

/// Payload that these sections take.
pub fn sections_bytes(sections: &[Section<'_>]) -> usize {
    sections.iter().map(|section| align_up(section.bytes.len(), SECTION_ALIGN)).sum()
}

/// Whether an item can be appended now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssemblerRoom {
    /// Append it.
    Fits,
    /// A closed batch waits to be sealed, or the slot ring is full: keep the item.
    Later,
}

/// What an entry gets when it is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealIdentity {
    /// Cluster.
    pub cluster: ClusterId,
    /// Term in which it is proposed.
    pub term: Epoch,
    /// Its index.
    pub index: Lsn,
    /// Shared checksum of the entry before it.
    pub previous: u64,
    /// Batch timestamp, above that of the entry before it.
    pub timestamp: WallMicros,
}

impl SealIdentity {
    fn header(&self, kind: FrameKind, payload_bytes: usize) -> SharedHeader {
        SharedHeader {
            kind,
            checksum: 0,
            cluster: self.cluster,
            entry_term: self.term,
            index: self.index,
            previous: self.previous,
            timestamp: self.timestamp,
            section_count: 0,
            payload_bytes: payload_bytes as u32,
            frame_bytes: 0,
        }
    }
}

/// A batch that has no identity yet.
#[derive(Debug)]
struct Batch {
    slot: SlotMut,
    directory: Vec<SectionEntry>,
    payload_bytes: usize,
    ticket: u64,
}

impl Batch {
    fn has_room(&self, geometry: &Geometry, sections: usize, bytes: usize) -> bool {
        self.directory.len() + sections <= geometry.sections_max()
            && self.payload_bytes + bytes <= geometry.payload_bytes_max()
    }

    fn frame_bytes_with(&self, geometry: &Geometry, sections: usize, bytes: usize) -> usize {
        let count = self.directory.len() + sections;
        FrameSizes::of(geometry, count, self.payload_bytes + bytes).frame_bytes
    }

    /// Copies a section behind the others.
    fn push(&mut self, geometry: &Geometry, section: &Section<'_>) {
        let length = section.bytes.len();
        assert!(length > 0, "a section has content");
        let from = geometry.header_bytes_max() + self.payload_bytes;
        let end = from + align_up(length, SECTION_ALIGN);
        self.slot[from..from + length].copy_from_slice(section.bytes);
        self.slot[from + length..end].fill(0);
        self.payload_bytes = end - geometry.header_bytes_max();
        self.directory.push(SectionEntry {
            partition: section.partition,
            flags: 0,
            length: length as u32,
            digest: section.digest,
        });
    }

    /// Gives the unused end back to the ring.
    fn shrink(&mut self, geometry: &Geometry, slots: &mut SlotRing) {
        let payload = align_up(self.payload_bytes, geometry.block());
        slots.shrink(&mut self.slot, geometry.header_bytes_max() + payload);
    }
}

/// See the module.
#[derive(Debug)]
pub struct BatchAssembler {
    geometry: Geometry,
    in_flight_small_max: usize,
    batch_bytes_wait: usize,
    /// May be without sections: reserved for an item that did not come.
    open: Option<Batch>,
    /// Did not have room for the item that followed. Sealed before the open one.
    closed: Option<Batch>,
    directories_free: Vec<Vec<SectionEntry>>,
    ticket: u64,
}

impl BatchAssembler {
    /// An assembler without a batch. With fewer than `in_flight_small_max` frames in flight a batch
    /// goes at once, however small; with more it waits until it holds `batch_bytes_wait` or one of
    /// them completes.
    pub fn new(geometry: Geometry, in_flight_small_max: usize, batch_bytes_wait: usize) -> Self {
        geometry.check().expect("the superblock's geometry was checked");
        assert!(in_flight_small_max > 0, "with none in flight a batch goes at once");
        Self {
            geometry,
            in_flight_small_max,
            batch_bytes_wait,
            open: None,
            closed: None,
            directories_free: Vec::new(),
            ticket: 0,
        }
    }

    /// Whether an item of this many sections and payload bytes (each section rounded up to 16) can
    /// be appended now. Closes the open batch if the item does not fit it, and reserves memory for
    /// the next: asked last, when the item is welcome in every other respect.
    pub fn room(&mut self, sections: usize, bytes: usize, slots: &mut SlotRing) -> AssemblerRoom {
        assert!(sections > 0 && bytes > 0, "an item has sections");
        assert!(sections <= self.geometry.sections_max(), "an item fits a batch: {sections}");
        assert!(bytes <= self.geometry.payload_bytes_max(), "an item fits a batch: {bytes} bytes");
        if let Some(open) = &self.open {
            if open.has_room(&self.geometry, sections, bytes) {
                return AssemblerRoom::Fits;
            }
            if self.closed.is_some() {
                return AssemblerRoom::Later;
            }
        }
        if let Some(mut full) = self.open.take() {
            full.shrink(&self.geometry, slots);
            self.closed = Some(full);
        }
        let Some(slot) = slots.reserve(self.geometry.batch_bytes_max as usize) else {
            return AssemblerRoom::Later;
        };
        let directory = self.directories_free.pop().unwrap_or_default();
        self.open = Some(Batch { slot, directory, payload_bytes: 0, ticket: 0 });
        AssemblerRoom::Fits
    }

    /// Copies an item into the open batch.
    ///
    /// # Panics
    /// When [`Self::room`] would not say that it fits, or tickets do not rise.
    pub fn append(&mut self, ticket: u64, sections: &[Section<'_>], slots: &mut SlotRing) {
        assert!(ticket > self.ticket, "tickets rise: {ticket} after {}", self.ticket);
        let room = self.room(sections.len(), sections_bytes(sections), slots);
        assert_eq!(room, AssemblerRoom::Fits, "room was asked for before");
        let batch = self.open.as_mut().expect("there is room in an open batch");
        for section in sections {
            batch.push(&self.geometry, section);
        }
        batch.ticket = ticket;
        self.ticket = ticket;
    }

    /// Whether a batch should be sealed now, with this many entries proposed and not durable here,
    /// after a completion or not.
    pub fn ripe(&self, in_flight: usize, in_flight_max: usize, completion: bool) -> bool {
        if in_flight >= in_flight_max || spillway_runtime::fault_point!(BatchKeptBack) {
            return false;
        }
        let few = in_flight < self.in_flight_small_max
            || spillway_runtime::fault_point!(BatchSealedEarly);
        self.closed.is_some()
            || self.open_batch().is_some_and(|open| {
                completion || few || open.payload_bytes >= self.batch_bytes_wait
            })
    }

    fn open_batch(&self) -> Option<&Batch> {
        self.open.as_ref().filter(|batch| !batch.directory.is_empty())
    }

    /// Finishes the oldest batch as an entry: checksums are computed and headers written in its
    /// own memory. `None` when nothing was appended.
    pub fn seal(&mut self, identity: SealIdentity, slots: &mut SlotRing) -> Option<EntryFrame> {
        let batch = match self.closed.take() {
            Some(batch) => batch,
            None => {
                let mut open = self.open.take_if(|batch| !batch.directory.is_empty())?;
                open.shrink(&self.geometry, slots);
                open
            }
        };
        let Batch { slot, mut directory, payload_bytes, ticket } = batch;
        let sizes = FrameSizes::of(&self.geometry, directory.len(), payload_bytes);
        let (_, frame) = slot.split_at(self.geometry.header_bytes_max() - sizes.header_bytes);
        let (head, mut body) = frame.split_at(self.geometry.block());
        let header = identity.header(FrameKind::Data, payload_bytes);
        let shared = body_seal(&self.geometry, &mut body, &directory, header);
        directory.clear();
        self.directories_free.push(directory);
        Some(EntryFrame { shared, head, body: body.freeze(), ticket })
    }

    /// An entry that is no batch: a no-op, or a configuration change with its one section. It does
    /// not touch the batches. `None` when the ring is full.
    pub fn seal_system(
        &self,
        identity: SealIdentity,
        kind: FrameKind,
        sections: &[Section<'_>],
        slots: &mut SlotRing,
    ) -> Option<EntryFrame> {
        let payload_bytes = sections_bytes(sections);
        let sizes = FrameSizes::of(&self.geometry, sections.len(), payload_bytes);
        let slot = slots.reserve(sizes.frame_bytes)?;
        Some(self.seal_system_in(identity, kind, sections, slot))
    }

    /// Like [`Self::seal_system`], in memory of the entry's own: the first entry of a term cannot
    /// wait for room in the ring.
    pub fn seal_system_heap(
        &self,
        identity: SealIdentity,
        kind: FrameKind,
        sections: &[Section<'_>],
    ) -> EntryFrame {
        let payload_bytes = sections_bytes(sections);
        let sizes = FrameSizes::of(&self.geometry, sections.len(), payload_bytes);
        self.seal_system_in(identity, kind, sections, SlotMut::heap(sizes.frame_bytes))
    }

    fn seal_system_in(
        &self,
        identity: SealIdentity,
        kind: FrameKind,
        sections: &[Section<'_>],
        slot: SlotMut,
    ) -> EntryFrame {
        assert!(matches!(kind, FrameKind::NoOp | FrameKind::Config), "{kind:?} is no such entry");
        let payload_bytes = sections_bytes(sections);
        let sizes = FrameSizes::of(&self.geometry, sections.len(), payload_bytes);
        let (head, mut body) = slot.split_at(self.geometry.block());
        let mut directory = Vec::with_capacity(sections.len());
        let mut at = sizes.shared_bytes;
        for Section { partition, digest, bytes } in sections.iter().copied() {
            assert!(!bytes.is_empty(), "a section has content");
            let end = at + align_up(bytes.len(), SECTION_ALIGN);
            body[at..at + bytes.len()].copy_from_slice(bytes);
            body[at + bytes.len()..end].fill(0);
            at = end;
            let length = bytes.len() as u32;
            directory.push(SectionEntry { partition, flags: 0, length, digest });
        }
        let header = identity.header(kind, payload_bytes);
        let shared = body_seal(&self.geometry, &mut body, &directory, header);
        let sizes = shared.check_sizes(&self.geometry, &body[..sizes.shared_bytes]);
        assert_eq!(sizes, Ok(()), "sections of a {kind:?} entry");
        EntryFrame { shared, head, body: body.freeze(), ticket: 0 }
    }

    /// Drops what was appended and not sealed.
    pub fn abandon(&mut self) {
        for batch in [self.closed.take(), self.open.take()].into_iter().flatten() {
            let mut directory = batch.directory;
            directory.clear();
            self.directories_free.push(directory);
        }
    }

    /// Payload that was appended and not sealed.
    pub fn pending_bytes(&self) -> usize {
        self.closed.iter().chain(&self.open).map(|batch| batch.payload_bytes).sum()
    }

    /// Sizes of the frames that wait to be sealed, if this many sections and payload bytes came in
    /// as well.
    pub fn frames_with(
        &self,
        sections: usize,
        bytes: usize,
    ) -> impl Iterator<Item = usize> + use<> {
        let geometry = &self.geometry;
        let size = |batch: &Batch| batch.frame_bytes_with(geometry, 0, 0);
        let closed = self.closed.as_ref().map(size);
        let joins = self.open.as_ref().filter(|open| open.has_room(geometry, sections, bytes));
        let before = if joins.is_some() { None } else { self.open_batch().map(size) };
        let last = match joins {
            Some(open) => open.frame_bytes_with(geometry, sections, bytes),
            None => FrameSizes::of(geometry, sections, bytes).frame_bytes,
        };
        closed.into_iter().chain(before).chain([last])
    }

    /// Highest ticket appended so far.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }
}
