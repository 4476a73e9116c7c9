//! Where the log stands: what the next frame continues.

use spillway_net::ids::{Epoch, Lsn, WallMicros};

/// Everything that the next frame repeats of the frames before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainState {
    /// Physical sequence number of the next frame.
    pub sequence: u64,
    /// Checksum of the last frame's local header; 0 in an empty log.
    pub local: u64,
    /// Index of the last entry; 0 in an empty log.
    pub lsn: Lsn,
    /// Checksum of the last entry's shared header; 0 in an empty log.
    pub shared: u64,
    /// Timestamp of the last entry.
    pub timestamp: WallMicros,
    /// Term of the last entry.
    pub entry_term: Epoch,
}

impl ChainState {
    /// The chain of an empty log.
    pub const EMPTY: Self = Self {
        sequence: 1,
        local: 0,
        lsn: Lsn(0),
        shared: 0,
        timestamp: WallMicros(0),
        entry_term: Epoch(0),
    };
}

/// The next byte of the log and what a frame there must continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Segments are numbered without end; the file is `ordinal % segments_count`.
    pub ordinal: u64,
    /// Offset in the segment file.
    pub offset: u64,
    /// What the next frame continues.
    pub chain: ChainState,
}

/// The oldest segment that is still needed, and the chain before its first frame. In the
/// superblock; segments before it may be recycled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// Ordinal of the segment.
    pub ordinal: u64,
    /// State before its first frame.
    pub chain: ChainState,
}

/// Where the log ended when the current boot began. In the superblock.
///
/// Frames from `sequence` on are of that boot; frames before it were all read back when it began,
/// so that a damaged one among them is corruption, never a torn write. From `offset` to `wipe_end`
/// the boot writes zeros before its first frame, so that the remains of frames that were dropped
/// cannot be taken for contents of an earlier generation or for corruption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Segment in which the boot began to write.
    pub ordinal: u64,
    /// Offset of its first frame.
    pub offset: u64,
    /// Sequence of its first frame.
    pub sequence: u64,
    /// End of the zeroed range; equal to `offset` when there is none.
    pub wipe_end: u64,
}
