//! The redo log: batches of fragments as frames in recycled segments.
//!
//! Pure cores - no I/O, no clock, no threads: [`LogWriter`] turns items into writes and completions
//! into acknowledgements; [`LogScanner`] reads a log back and tells a write that a crash cut short
//! from damage. [`FormatPlan`] lays out a fresh node. Byte layouts are in `docs/FORMAT.md`.
//!
//! What a shell does, in this order:
//!
//! 1. Choose the [`Superblock`] among its copies ([`superblock_choose`]) and compare its limits
//!    with the build's ([`Superblock::check_fingerprint`]).
//! 2. Feed a [`LogScanner`] until it names no more reads. [`LogDamaged`] stops the start.
//! 3. Write the superblock of the next boot ([`Recovered::superblock_next`],
//!    [`superblock_update`]: two rounds, both durable) before anything else.
//! 4. Give the position to a [`LogWriter`], with the running digests that the applier has at the
//!    end of the log. Each turn: [`LogWriter::room`] and [`LogWriter::append`] for what is there,
//!    then [`LogInput::TurnEnd`]; perform the effects; report every completion.
//! 5. When a checkpoint covers an index: [`LogWriter::floor_for`], a superblock with that floor and
//!    [`LogWriter::durable_sequence`], and when that is durable [`LogWriter::floor_raise`].
//! 6. At the end: [`LogWriter::shutdown`], and steps until [`LogWriter::is_quiet`].

mod batch;
mod bytes;
mod clock;
mod damage;
mod examine;
mod format;
mod frame;
mod fuzz;
mod geometry;
mod position;
mod recovery;
mod ring;
mod segment;
mod superblock;
mod writer;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use batch::{BatchBuffers, Committed, Section, batch_buffer_bytes, sections_bytes};
pub use clock::BatchClock;
pub use damage::{DamageReason, LogDamaged};
pub use format::FormatPlan;
pub use frame::{
    FrameFault, FrameKind, FrameSealed, FrameSizes, FrameView, LocalHeader, PARTITION_SYSTEM,
    SectionEntry, SectionView, SharedHeader, frame_seal,
};
pub use fuzz::{FUZZ_GEOMETRY, fuzz_scan};
pub use geometry::{Geometry, GeometryError};
pub use position::{ChainState, Cursor, Floor, Tail};
pub use recovery::{
    LogPosition, LogScanner, ReadRequest, Recovered, SCAN_READ_BYTES_DEFAULT, ScanItem, Verdict,
};
pub use ring::SegmentRing;
pub use segment::{Contents, SegmentHeader, segment_recycle};
pub use superblock::{
    DurableWrite, SUPERBLOCK_COPIES, SUPERBLOCK_ROUNDS, Superblock, SuperblockChosen,
    SuperblockError, SuperblockWrite, superblock_choose, superblock_update,
};
pub use writer::{
    LogEffects, LogInput, LogSpace, LogWrite, LogWriter, LogWriterOptions, Poisoned,
    RESERVE_SEGMENTS, RawContent, RawWrite, Room,
};
