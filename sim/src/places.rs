//! Where what stands on the disk of a node: to aim damage at.

use std::fmt;

use spillway_updateserver::log::{FrameKind, Geometry, LocalHeader, SharedHeader};

use crate::disk::{Disk, File};

/// A frame on a disk.
#[derive(Clone, Copy, Debug)]
pub struct FrameAt {
    /// Segment file.
    pub segment: u32,
    /// Offset in it.
    pub offset: u64,
    /// Whole frame.
    pub bytes: u64,
    /// Local and shared header.
    pub header_bytes: u64,
    /// What it is.
    pub kind: FrameKind,
}

/// The frames of a log that was never recycled, in order, as far as they can be read.
pub fn frames(disk: &Disk, geometry: &Geometry) -> Vec<FrameAt> {
    let (block, mut frames) = (geometry.block(), Vec::new());
    for segment in 0..geometry.segments_count {
        let bytes = disk.bytes(File::Segment(segment));
        let mut offset = geometry.data_offset() as usize;
        let before = frames.len();
        while offset + 2 * block <= bytes.len() {
            let Ok(local) = LocalHeader::decode(&bytes[offset..offset + block]) else { break };
            let area = offset + block..offset + local.header_bytes as usize;
            if local.offset != offset as u64 || area.end > bytes.len() {
                break;
            }
            let Ok(shared) = SharedHeader::decode(geometry, &bytes[area]) else { break };
            frames.push(FrameAt {
                segment,
                offset: local.offset,
                bytes: local.frame_bytes.into(),
                header_bytes: local.header_bytes.into(),
                kind: shared.kind,
            });
            offset += local.frame_bytes as usize;
        }
        if frames.len() == before {
            break;
        }
    }
    frames
}

/// Which frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The first data frame.
    First,
    /// One in the middle.
    Middle,
    /// The last data frame.
    Last,
    /// The last no-op: the first entry of a term.
    NoOp,
    /// The last watermark.
    Watermark,
    /// A change of the members.
    Config,
}

/// Which block of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its local header.
    Local,
    /// The first block of its shared header.
    Shared,
    /// The first block of its payload.
    Body,
}

/// A kind of block on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Copies of the superblock, as bits.
    Superblock(u8),
    /// The header of the segment that is written to.
    SegmentHeader,
    /// The header of the segment after it.
    SegmentHeaderNext,
    /// A block of a frame.
    Frame(Which, Part),
    /// The first block behind the last frame.
    Behind,
}

/// Copies that are damaged together: each alone, the two of a round, three, all.
const COPIES: [u8; 8] = [0b0001, 0b0010, 0b0100, 0b1000, 0b0011, 0b1100, 0b0111, 0b1111];

/// All places.
pub fn places() -> Vec<Place> {
    let mut places: Vec<Place> = COPIES.into_iter().map(Place::Superblock).collect();
    places.extend([Place::SegmentHeader, Place::SegmentHeaderNext]);
    for which in [Which::First, Which::Middle, Which::Last, Which::Config] {
        places
            .extend([Part::Local, Part::Shared, Part::Body].map(|part| Place::Frame(which, part)));
    }
    for which in [Which::NoOp, Which::Watermark] {
        places.extend([Part::Local, Part::Shared].map(|part| Place::Frame(which, part)));
    }
    places.push(Place::Behind);
    places
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock(copies) => {
                let named = |copy: &u8| copies >> copy & 1 == 1;
                let names: Vec<_> = (0..4).filter(named).map(|copy| copy.to_string()).collect();
                write!(f, "superblock {}", names.join("+"))
            }
            Self::SegmentHeader => f.write_str("segment header"),
            Self::SegmentHeaderNext => f.write_str("next segment header"),
            Self::Frame(which, part) => write!(f, "{which:?} frame {part:?}"),
            Self::Behind => f.write_str("behind the last frame"),
        }
    }
}

impl Place {
    /// The blocks that it is on a disk now; none if there is no such thing yet.
    pub fn blocks(self, disk: &Disk, geometry: &Geometry) -> Vec<(File, u64)> {
        let block = u64::from(geometry.block_bytes);
        let frames = frames(disk, geometry);
        let header = |ahead: u32| {
            let segment = frames.last().map_or(0, |frame| frame.segment) + ahead;
            vec![(File::Segment(segment), 0)]
        };
        match self {
            Self::Superblock(copies) => (0..4u64)
                .filter(|copy| copies >> copy & 1 == 1)
                .map(|copy| (File::Superblock, copy * block))
                .collect(),
            Self::SegmentHeader => header(0),
            Self::SegmentHeaderNext => header(1),
            Self::Frame(which, part) => {
                let Some(frame) = choose(&frames, which) else { return Vec::new() };
                let at = match part {
                    Part::Local => 0,
                    Part::Shared => block,
                    Part::Body => frame.header_bytes,
                };
                let there = at < frame.bytes;
                let place = (File::Segment(frame.segment), frame.offset + at);
                there.then_some(place).into_iter().collect()
            }
            Self::Behind => {
                let Some(last) = frames.last() else { return Vec::new() };
                let at = last.offset + last.bytes;
                let there = at < u64::from(geometry.segment_bytes);
                there.then_some((File::Segment(last.segment), at)).into_iter().collect()
            }
        }
    }
}

fn choose(frames: &[FrameAt], which: Which) -> Option<FrameAt> {
    let of = |kind: FrameKind| frames.iter().filter(move |frame| frame.kind == kind);
    let data = of(FrameKind::Data).count();
    match which {
        Which::First => of(FrameKind::Data).next(),
        Which::Middle => of(FrameKind::Data).nth(data / 2),
        Which::Last => of(FrameKind::Data).next_back(),
        Which::NoOp => of(FrameKind::NoOp).next_back(),
        Which::Watermark => of(FrameKind::Watermark).next_back(),
        Which::Config => of(FrameKind::Config).next_back(),
    }
    .copied()
}
