//! The medium of one node, with an undo list: an image is made by landing some of the pieces in
//! flight, read, and taken back, without copying a disk.

use spillway_net::ids::NodeId;
use spillway_updateserver::log::{
    DurableWrite, FormatPlan, Geometry, Members, ReadRequest, SUPERBLOCK_COPIES, Superblock,
    SuperblockError, superblock_choose,
};

use super::NODE;
use crate::disk::{CLUSTER, File};

/// What a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A frame of this sequence.
    Frame(u64),
    /// Another write of the writer, of this name.
    Raw(u32),
    /// A copy of the superblock of a boot, before there is a writer.
    Boot,
}

/// A write whose end has not been reported.
#[derive(Clone, Debug)]
pub struct Pending {
    /// What for.
    pub purpose: Purpose,
    /// Where it goes.
    pub file: File,
    /// Offset in the file.
    pub offset: u64,
    /// What it writes.
    pub bytes: Vec<u8>,
    /// Reported already; planted.
    pub is_reported: bool,
    /// The length that is reported.
    pub length: usize,
}

/// What a power loss leaves whole: part of a pending write.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pending: usize,
    from: usize,
    to: usize,
}

/// What stood somewhere before.
#[derive(Clone, Debug)]
struct Undo {
    file: usize,
    offset: usize,
    bytes: usize,
}

/// A state to go back to.
#[derive(Debug)]
pub struct Mark(usize);

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Medium {
    block: usize,
    /// The superblock, then the segments.
    files: Vec<Vec<u8>>,
    /// Writes in flight, the oldest first.
    pub pending: Vec<Pending>,
    undo: Vec<Undo>,
    undo_bytes: Vec<u8>,
    marks: usize,
}

fn index_of(file: File) -> usize {
    match file {
        File::Superblock => 0,
        File::Segment(segment) => segment as usize + 1,
    }
}

impl Medium {
    /// Freshly formatted.
    pub fn format(geometry: Geometry) -> Self {
        let members = Members::of_voters([NODE, NodeId(2), NodeId(3)]);
        let plan = FormatPlan::new(CLUSTER, NODE, geometry, DurableWrite::SyncedWrite, members);
        let plan = plan.expect("the geometry holds");
        let segment = |number| {
            let mut bytes = plan.segment_start(number);
            bytes.resize(geometry.segment_bytes as usize, 0);
            bytes
        };
        let superblock = vec![0; SUPERBLOCK_COPIES * geometry.block()];
        let files = std::iter::once(superblock).chain((0..plan.segments()).map(segment)).collect();
        let mut medium = Self { block: geometry.block(), files, ..Self::default() };
        for write in plan.superblock_writes().into_iter().flatten() {
            medium.land(File::Superblock, write.offset, &write.bytes);
        }
        medium
    }

    fn land(&mut self, file: File, offset: u64, bytes: &[u8]) {
        let (file, offset) = (index_of(file), offset as usize);
        let place = &mut self.files[file][offset..offset + bytes.len()];
        if self.marks > 0 {
            self.undo.push(Undo { file, offset, bytes: bytes.len() });
            self.undo_bytes.extend_from_slice(place);
        }
        place.copy_from_slice(bytes);
    }

    /// From here on everything can be taken back. Marks nest.
    pub fn mark(&mut self) -> Mark {
        self.marks += 1;
        Mark(self.undo.len())
    }

    /// Takes back all that has landed since the mark.
    pub fn rollback(&mut self, mark: Mark) {
        assert!(self.marks > 0 && self.undo.len() >= mark.0, "the last mark first");
        self.marks -= 1;
        for Undo { file, offset, bytes } in self.undo.drain(mark.0..).rev() {
            let from = self.undo_bytes.len() - bytes;
            self.files[file][offset..offset + bytes].copy_from_slice(&self.undo_bytes[from..]);
            self.undo_bytes.truncate(from);
        }
    }

    /// Takes a write.
    pub fn submit(&mut self, purpose: Purpose, file: File, offset: u64, bytes: Vec<u8>) {
        assert!(offset.is_multiple_of(self.block as u64), "aligned offset");
        assert!(!bytes.is_empty() && bytes.len().is_multiple_of(self.block), "aligned length");
        let end = offset + bytes.len() as u64;
        assert!(end <= self.files[index_of(file)].len() as u64, "files never grow");
        for other in self.pending.iter().filter(|other| other.file == file) {
            let other_end = other.offset + other.bytes.len() as u64;
            let apart = end <= other.offset || other_end <= offset;
            assert!(apart || other.is_reported, "two writes of one place");
        }
        let length = bytes.len();
        self.pending.push(Pending { purpose, file, offset, bytes, is_reported: false, length });
    }

    /// A write has landed.
    pub fn complete(&mut self, at: usize) -> Pending {
        let write = self.pending.remove(at);
        self.land(write.file, write.offset, &write.bytes);
        write
    }

    /// All writes in flight land, though nobody hears of it: a killed process, not a lost machine.
    pub fn complete_all(&mut self) {
        while !self.pending.is_empty() {
            self.complete(0);
        }
    }

    /// What may have landed, each for itself: cut at multiples of `tear` in the file.
    pub fn pieces(&self, tear: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (pending, write) in self.pending.iter().enumerate() {
            let mut from = 0;
            while from < write.bytes.len() {
                let at = write.offset as usize + from;
                let end = at - at % tear + tear;
                let to = (end - write.offset as usize).min(write.bytes.len());
                pieces.push(Piece { pending, from, to });
                from = to;
            }
        }
        pieces
    }

    /// A piece has landed.
    pub fn land_piece(&mut self, piece: Piece) {
        let pending = std::mem::take(&mut self.pending);
        let write = &pending[piece.pending];
        let offset = write.offset + piece.from as u64;
        self.land(write.file, offset, &write.bytes[piece.from..piece.to]);
        self.pending = pending;
    }

    /// Reads a segment.
    pub fn read(&self, request: &ReadRequest) -> &[u8] {
        let from = request.offset as usize;
        &self.files[request.segment as usize + 1][from..from + request.bytes]
    }

    /// The superblock that counts.
    ///
    /// # Errors
    /// There is none.
    pub fn superblock(&self) -> Result<Superblock, SuperblockError> {
        let copy = |copy: usize| &self.files[0][copy * self.block..(copy + 1) * self.block];
        let copies = std::array::from_fn(|at| Superblock::decode(at, copy(at)));
        Ok(superblock_choose(&copies)?.superblock)
    }
}
