//! The simulated log disk.
//!
//! Fault model, as far as a node of its own promises to survive it:
//!
//! - A write takes a time of its own; writes in flight complete in any order. For a while a disk
//!   may take a hundred times as long, or complete nothing at all and then everything.
//! - Until it has completed, a write is on the medium not at all, in part or in full: at a power
//!   loss every block of it is old or new as a whole, by one of several patterns (none, all, a
//!   prefix, all but a prefix, every block by itself). That covers torn writes and the loss of
//!   what a cache had not flushed; a completed write was durable, for that is what the shells
//!   order (a synced write, or a write and a flush, whichever the device needs).
//! - A write may end with an error (input/output error, or no space), or short. Then it has landed
//!   in part, by the same patterns.
//! - Reads return what the medium holds.
//!
//! On a minority of a cluster's nodes, always the same ones: the whole disk is lost; or, while all
//! others are well, the last writes that the disk had acknowledged, at most four
//! ([`Disk::writes_lose`]), are lost with the power.
//!
//! Beyond that promise, where one node can only refuse to start, and in a cluster on that minority:
//! [`Disk::flip`] changes a bit of the medium, [`Disk::unreadable`] names places whose reading
//! fails, [`Disk::block_stale`] takes a block of an acknowledged write back,
//! [`Disk::block_misdirect`] has it at another place, and [`Disk::tear_bytes`] lets a power loss
//! tear what the disk claims to write whole. What a lone node cannot see (docs/PROMISES.md) is not
//! done to it: a block that is stale or astray is one of a write with eight later ones.
//!
//! The block is what the disk writes whole. Formatting is not simulated.

use std::collections::VecDeque;

use spillway_net::ids::{ClusterId, NodeId};
use spillway_updateserver::log::{
    DurableWrite, FormatPlan, Geometry, Members, ReadRequest, SUPERBLOCK_COPIES, Superblock,
    SuperblockError, SuperblockWrite, superblock_choose,
};

use crate::draw::Draw;

/// The cluster of all runs.
pub const CLUSTER: ClusterId = ClusterId(0x5350_4c57);
/// The errno of an input/output error.
pub const EIO: i32 = 5;
/// The errno of a full device.
pub const ENOSPC: i32 = 28;

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// A segment of the log.
    Segment(u32),
    /// The superblock.
    Superblock,
}

/// A write in flight.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Names it.
    pub id: u64,
    /// Where it goes.
    pub file: File,
    /// Offset in the file.
    pub offset: u64,
    /// What it writes.
    pub bytes: Vec<u8>,
}

/// How many writes to segments a disk remembers, to take them back.
const REMEMBERED_MAX: usize = 48;
/// So many later writes prove that an earlier one was durable.
const COVERED_BY: usize = 8;

/// A write that has landed, and what it replaced.
#[derive(Clone, Debug)]
struct Landed {
    segment: u32,
    offset: u64,
    before: Vec<u8>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Disk {
    block: usize,
    segments: Vec<Vec<u8>>,
    superblock: Vec<u8>,
    /// What each copy of the superblock held before its last write.
    superblock_before: Vec<u8>,
    pending: Vec<Pending>,
    landed: VecDeque<Landed>,
    /// Whether it remembers what writes replaced.
    pub remembers: bool,
    id_next: u64,
    /// What a power loss leaves whole; the block, unless the disk breaks its word.
    pub tear_bytes: usize,
    /// Segment and offset of places that cannot be read.
    pub unreadable: Vec<(u32, u64)>,
}

impl Disk {
    /// A freshly formatted disk of a node of a cluster of so many.
    pub fn format(geometry: Geometry, node: NodeId, nodes: u16) -> Self {
        Self::format_as(geometry, node, Members::of_voters((1..=nodes).map(NodeId)))
    }

    /// A freshly formatted disk of a node that is to join a cluster.
    pub fn format_joining(geometry: Geometry, node: NodeId) -> Self {
        Self::format_as(geometry, node, Members::default())
    }

    fn format_as(geometry: Geometry, node: NodeId, members: Members) -> Self {
        let plan = FormatPlan::new(CLUSTER, node, geometry, DurableWrite::SyncedWrite, members)
            .expect("drawn geometries hold");
        let segment = |number| {
            // Memory that nobody has touched costs nothing.
            let mut bytes = vec![0; geometry.segment_bytes as usize];
            let start = plan.segment_start(number);
            bytes[..start.len()].copy_from_slice(&start);
            bytes
        };
        let mut disk = Self {
            block: geometry.block(),
            segments: (0..plan.segments()).map(segment).collect(),
            superblock: vec![0; SUPERBLOCK_COPIES * geometry.block()],
            superblock_before: vec![0; SUPERBLOCK_COPIES * geometry.block()],
            pending: Vec::new(),
            landed: VecDeque::new(),
            remembers: false,
            id_next: 1,
            tear_bytes: geometry.block(),
            unreadable: Vec::new(),
        };
        for write in plan.superblock_writes().into_iter().flatten() {
            disk.land(File::Superblock, write.offset, &write.bytes);
        }
        disk
    }

    fn file_mut(&mut self, file: File) -> &mut Vec<u8> {
        match file {
            File::Segment(number) => &mut self.segments[number as usize],
            File::Superblock => &mut self.superblock,
        }
    }

    fn land(&mut self, file: File, offset: u64, bytes: &[u8]) {
        let at = offset as usize;
        if file == File::Superblock {
            let before = &self.superblock[at..at + bytes.len()];
            self.superblock_before[at..at + bytes.len()].copy_from_slice(before);
        }
        // A place that is written anew can be read again: drives put another sector there.
        let end = offset + bytes.len() as u64;
        self.unreadable
            .retain(|(segment, at)| File::Segment(*segment) != file || *at < offset || *at >= end);
        self.file_mut(file)[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Takes a write; returns its name.
    pub fn submit(&mut self, file: File, offset: u64, bytes: Vec<u8>) -> u64 {
        assert!(offset.is_multiple_of(self.block as u64), "aligned offset");
        assert!(!bytes.is_empty() && bytes.len().is_multiple_of(self.block), "aligned length");
        let end = offset + bytes.len() as u64;
        assert!(end <= self.file_mut(file).len() as u64, "files never grow");
        for other in self.pending.iter().filter(|other| other.file == file) {
            let other_end = other.offset + other.bytes.len() as u64;
            assert!(end <= other.offset || other_end <= offset, "two writes of one place");
        }
        let id = self.id_next;
        self.id_next += 1;
        self.pending.push(Pending { id, file, offset, bytes });
        id
    }

    fn take(&mut self, id: u64) -> Option<Pending> {
        let at = self.pending.iter().position(|pending| pending.id == id)?;
        Some(self.pending.swap_remove(at))
    }

    /// A write has landed; `None` when a power loss came first.
    pub fn complete(&mut self, id: u64) -> Option<Pending> {
        let pending = self.take(id)?;
        self.remember(&pending);
        self.land(pending.file, pending.offset, &pending.bytes);
        Some(pending)
    }

    fn remember(&mut self, write: &Pending) {
        let File::Segment(segment) = write.file else { return };
        if !self.remembers {
            return;
        }
        if self.landed.len() == REMEMBERED_MAX {
            self.landed.pop_front();
        }
        let at = write.offset as usize;
        let before = self.segments[segment as usize][at..at + write.bytes.len()].to_vec();
        self.landed.push_back(Landed { segment, offset: write.offset, before });
    }

    /// The last writes that were acknowledged are lost. Returns how many.
    pub fn writes_lose(&mut self, count: usize) -> usize {
        let count = count.min(self.landed.len());
        for _ in 0..count {
            let Landed { segment, offset, before } = self.landed.pop_back().expect("counted above");
            self.land(File::Segment(segment), offset, &before);
        }
        count
    }

    /// A block of a write that later ones cover: its segment, its place, what it replaced.
    fn block_covered(&mut self, draw: &mut Draw) -> Option<(u32, u64, Vec<u8>)> {
        let covered = self.landed.len().checked_sub(COVERED_BY).filter(|covered| *covered > 0)?;
        let landed = &self.landed[draw.below(covered as u64) as usize];
        let blocks = landed.before.len() / self.block;
        let from = draw.below(blocks as u64) as usize * self.block;
        let before = landed.before[from..from + self.block].to_vec();
        Some((landed.segment, landed.offset + from as u64, before))
    }

    /// A block of an acknowledged write has never reached the medium. False: there is none.
    pub fn block_stale(&mut self, draw: &mut Draw) -> bool {
        let Some((segment, offset, before)) = self.block_covered(draw) else { return false };
        self.land(File::Segment(segment), offset, &before);
        true
    }

    /// A block of an acknowledged write went to another place of its segment. False: there is
    /// none.
    pub fn block_misdirect(&mut self, draw: &mut Draw) -> bool {
        let Some((segment, offset, before)) = self.block_covered(draw) else { return false };
        let from = offset as usize;
        let bytes = self.segments[segment as usize][from..from + self.block].to_vec();
        let blocks = self.segments[segment as usize].len() / self.block;
        let astray = draw.below(blocks as u64) * self.block as u64;
        self.land(File::Segment(segment), offset, &before);
        self.land(File::Segment(segment), astray, &bytes);
        true
    }

    /// A write failed and has landed in part.
    pub fn fail(&mut self, id: u64, draw: &mut Draw) -> Option<Pending> {
        let pending = self.take(id)?;
        self.tear(&pending, draw);
        Some(pending)
    }

    /// A write never reaches the medium; planted.
    pub fn lose(&mut self, id: u64) {
        self.take(id);
    }

    fn tear(&mut self, write: &Pending, draw: &mut Draw) {
        let blocks = write.bytes.len() / self.tear_bytes;
        let pattern = draw.below(5);
        let cut = draw.below(blocks as u64 + 1) as usize;
        for index in 0..blocks {
            let landed = match pattern {
                0 => false,
                1 => true,
                2 => index < cut,
                3 => index >= cut,
                _ => draw.once_in(2),
            };
            if landed {
                let from = index * self.tear_bytes;
                let bytes = &write.bytes[from..from + self.tear_bytes];
                self.land(write.file, write.offset + from as u64, bytes);
            }
        }
    }

    /// Loses power.
    pub fn crash(&mut self, draw: &mut Draw) {
        for write in std::mem::take(&mut self.pending) {
            self.tear(&write, draw);
        }
    }

    /// Writes the copies of one superblock round; with `torn` the power goes meanwhile.
    pub fn superblock_round(&mut self, round: &[SuperblockWrite], torn: Option<&mut Draw>) {
        for write in round {
            self.submit(File::Superblock, write.offset, write.bytes.clone());
        }
        match torn {
            Some(draw) => self.crash(draw),
            None => {
                for write in std::mem::take(&mut self.pending) {
                    self.land(write.file, write.offset, &write.bytes);
                }
            }
        }
    }

    /// Reads from the medium.
    pub fn read(&self, request: &ReadRequest) -> Result<&[u8], i32> {
        let from = request.offset as usize;
        let range = request.offset..request.offset + request.bytes as u64;
        let bad = |(segment, at): &(u32, u64)| *segment == request.segment && range.contains(at);
        if self.unreadable.iter().any(bad) {
            return Err(EIO);
        }
        Ok(&self.segments[request.segment as usize][from..from + request.bytes])
    }

    /// The superblock that counts.
    pub fn superblock(&self) -> Result<Superblock, SuperblockError> {
        let chosen = superblock_choose(&std::array::from_fn(|copy| {
            Superblock::decode(copy, &self.superblock[copy * self.block..(copy + 1) * self.block])
        }))?;
        chosen.superblock.check_fingerprint()?;
        Ok(chosen.superblock)
    }

    /// What a file holds.
    pub fn bytes(&self, file: File) -> &[u8] {
        match file {
            File::Segment(number) => &self.segments[number as usize],
            File::Superblock => &self.superblock,
        }
    }

    /// What a block of the superblock held before its last write.
    pub fn superblock_before(&self, offset: u64) -> &[u8] {
        &self.superblock_before[offset as usize..offset as usize + self.block]
    }

    /// Changes what is on the medium, as no write does.
    pub fn change(&mut self, file: File, offset: u64, bytes: &[u8]) {
        let at = offset as usize;
        self.file_mut(file)[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Whether a frame is on its way.
    pub fn has_frame_pending(&self) -> bool {
        self.pending.iter().any(|write| matches!(write.file, File::Segment(_)))
    }

    /// Segments that hold frames, at least one.
    fn segments_used(&self) -> u64 {
        let has_frames = |segment: &Vec<u8>| {
            let frames = segment.chunks(self.block).skip(segment.len() / self.block / 4);
            frames.step_by(7).any(|block| block[0] != 0)
        };
        self.segments.iter().rposition(has_frames).map_or(1, |last| last as u64 + 1)
    }

    /// Changes a bit: in a segment that holds frames, or in one copy of the superblock.
    pub fn flip(&mut self, draw: &mut Draw) {
        if draw.once_in(6) {
            return flip(&mut self.superblock, draw);
        }
        let used = self.segments_used();
        if draw.once_in(2) {
            // What was written last has the fewest witnesses.
            let segment = &mut self.segments[used as usize - 1];
            let written = |block: &[u8]| block.iter().any(|byte| *byte != 0);
            let blocks = segment.chunks(self.block).rposition(written).map_or(1, |last| last + 1);
            let end = blocks * self.block;
            return flip(&mut segment[end.saturating_sub(6 * self.block)..end], draw);
        }
        let segment = draw.below(used);
        flip(&mut self.segments[segment as usize], draw);
    }

    /// A place cannot be read any more.
    pub fn spoil(&mut self, draw: &mut Draw) {
        let segment = draw.below(self.segments_used()) as u32;
        let blocks = self.segments[segment as usize].len() / self.block;
        let at = draw.below(blocks as u64) * self.block as u64;
        self.unreadable.push((segment, at));
    }
}

/// Changes one bit of a byte that is not zero, if one is found.
fn flip(bytes: &mut [u8], draw: &mut Draw) {
    for _ in 0..1000 {
        let at = draw.below(bytes.len() as u64) as usize;
        if bytes[at] != 0 {
            bytes[at] ^= 1 << draw.below(8);
            return;
        }
    }
}
