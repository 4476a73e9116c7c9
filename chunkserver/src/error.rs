//! What can be wrong with a tablet.

use std::convert::Infallible;

/// What can be wrong with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The bytes are not those that the parent vouches for.
    #[error("block checksum {found:016x}, its index says {expected:016x}")]
    Checksum {
        /// What the index says.
        expected: u64,
        /// What the bytes give.
        found: u64,
    },
    /// Lengths inside do not add up.
    #[error("block of {bytes} bytes is malformed: {what}")]
    Malformed {
        /// Length of the block.
        bytes: usize,
        /// Which rule it breaks.
        what: &'static str,
    },
}

/// What can be wrong with a tablet's image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TabletError {
    /// Not a tablet, or its end was never written.
    #[error("no tablet trailer at the end: the file is something else, or its writing was cut off")]
    Magic,
    /// A tablet of another release.
    #[error("tablet format {found}, this release reads {supported}; use the release that wrote it")]
    Version {
        /// The version of the image.
        found: u32,
        /// The version of this release.
        supported: u32,
    },
    /// A part's bytes are not those that its parent vouches for.
    #[error(
        "checksum of the {part} is {found:016x}, expected {expected:016x}: the disk returned \
             wrong bytes; copy the tablet from another zone"
    )]
    Checksum {
        /// Which part.
        part: &'static str,
        /// What its parent says.
        expected: u64,
        /// What the bytes give.
        found: u64,
    },
    /// Sound bytes that break a rule.
    #[error("tablet is malformed: {0}")]
    Malformed(&'static str),
    /// A block is wrong.
    #[error("block {block}: {error}")]
    Block {
        /// Which block.
        block: u32,
        /// What is wrong with it.
        error: BlockError,
    },
    /// All parts are sound, and yet the rows are not those that were written.
    #[error("content of the tablet differs from its footer: {0}")]
    Content(&'static str),
}

/// Why a tablet could not be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError<E> {
    /// The source failed.
    #[error("reading the tablet: {0}")]
    Source(E),
    /// The image is wrong.
    #[error(transparent)]
    Tablet(#[from] TabletError),
}

/// Why a tablet could not be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError<E = Infallible> {
    /// The sink failed.
    #[error("writing the tablet: {0}")]
    Sink(E),
    /// Keys must rise: what feeds the writer is out of order or repeats a key.
    #[error("row {row}: its key does not follow the key before it")]
    Order {
        /// The row, counted from 0.
        row: u64,
    },
    /// A key of a size that no table has.
    #[error("row {row}: a key of {bytes} bytes; 1 to {max} are allowed", max = crate::writer::KEY)]
    KeySize {
        /// The row, counted from 0.
        row: u64,
        /// Its key's length.
        bytes: usize,
    },
    /// A row beyond the limit.
    #[error("row {row}: {bytes} bytes; at most {max} are allowed", max = crate::writer::ROW)]
    RowSize {
        /// The row, counted from 0.
        row: u64,
        /// Its length.
        bytes: usize,
    },
    /// The tablet would exceed its limit; cut the range before it.
    #[error("the tablet would grow beyond its limit after {rows} rows; start another one")]
    Full {
        /// Rows that are in it.
        rows: u64,
    },
    /// A tablet holds at least one row.
    #[error("a tablet without rows")]
    Empty,
}
