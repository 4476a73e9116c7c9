//! The redo log: batches of fragments as frames in recycled segments.
//!
//! Pure cores - no I/O, no clock, no threads: [`BatchAssembler`] makes entries of a leader's items,
//! [`LogWriter`] turns entries into writes and completions into a report of what is durable,
//! [`LogScanner`] reads a log back and tells a write that a crash cut short from damage.
//! [`FormatPlan`] lays out a fresh node. Byte layouts are in `docs/FORMAT.md`.
//!
//! What a shell does, in this order:
//!
//! 1. Choose the [`Superblock`] among its copies ([`superblock_choose`]) and compare its limits
//!    with the build's ([`Superblock::check_fingerprint`]).
//! 2. Feed a [`LogScanner`] until it names no more reads. [`LogDamaged`] stops the start, unless it
//!    names a [`FrameRepair`] and a peer has what stood there: then write that and scan again.
//!    Entries above the commit hint are held back: they may still be superseded.
//! 3. Write the superblock of the next boot ([`Recovered::superblock_next`],
//!    [`superblock_update`]: two rounds, both durable) before anything else.
//! 4. Give the position to a [`LogWriter`]. Each turn: entries to [`LogWriter::write`] - own ones
//!    that [`BatchAssembler::seal`] finished, or received ones that [`EntryFrame::verify`] passed -
//!    and what is committed to [`LogWriter::committed_set`], then [`LogInput::TurnEnd`]; perform
//!    the effects; report every completion.
//! 5. When a checkpoint covers an index: [`LogWriter::floor_for`], a superblock with that floor and
//!    [`LogWriter::durable_sequence`] ([`LogWriter::superblock_write`]), and when that is durable
//!    [`LogWriter::floor_raise`].
//! 6. At the end: [`LogWriter::shutdown`], and steps until [`LogWriter::is_quiet`].

mod assembler;
mod bytes;
mod clock;
mod damage;
mod effects;
mod entries;
mod entry_frame;
mod examine;
mod format;
mod frame;
mod fuzz;
mod geometry;
mod members;
mod position;
mod recovery;
mod repair;
mod ring;
mod segment;
mod superblock;
mod writer;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use assembler::{AssemblerRoom, BatchAssembler, SealIdentity, Section, sections_bytes};
pub use clock::BatchClock;
pub use damage::{DamageReason, LogDamaged};
pub use effects::{
    Issued, LogEffects, LogInput, LogWrite, Poisoned, RawContent, RawFile, RawWrite,
};
pub use entries::{EntryBase, EntryIndex, EntryMeta, EntryPlace};
pub use entry_frame::{EntryFrame, body_verify};
pub use format::FormatPlan;
pub use frame::{
    BodyView, FrameFault, FrameKind, FrameSizes, LocalHeader, PARTITION_SYSTEM, SectionEntry,
    SectionView, SharedHeader, body_check,
};
pub use fuzz::{FUZZ_GEOMETRY, fuzz_body, fuzz_scan};
pub use geometry::{BLOCK_BYTES_MAX, Geometry, GeometryError};
pub use members::{MEMBERS_MAX, Members};
pub use position::{ChainState, Cursor, Floor, Tail};
pub use recovery::{
    LogPosition, LogScanner, ReadRequest, Recovered, SCAN_READ_BYTES_DEFAULT, ScanEntry, ScanItem,
    Verdict,
};
pub use repair::{FrameRepair, RepairContent};
pub use ring::SegmentRing;
pub use segment::{Contents, SegmentHeader, segment_recycle};
pub use superblock::{
    DurableWrite, SUPERBLOCK_COPIES, SUPERBLOCK_ROUNDS, Superblock, SuperblockChosen,
    SuperblockError, SuperblockWrite, superblock_choose, superblock_update,
};
pub use writer::{LogSpace, LogWriter, LogWriterOptions, RESERVE_SEGMENTS};
