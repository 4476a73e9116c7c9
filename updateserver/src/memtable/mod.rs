//! The delta in memory: rows of tables, by partition, with their versions.
//!
//! One thread owns a memtable: an [`Arena`] and one [`TableSlice`] per table and partition. It
//! alone writes, and reads at will. A write goes in three steps: check that the arena has room
//! for the whole transaction, find or make the row ([`TableSlice::upsert_row`]), push a version
//! ([`write`]). An [`UndoLog`] takes the writes back if the transaction fails.
//!
//! [`RowRef`] and [`VersionRef`] are bare addresses. They carry no lifetime, since a group of
//! transactions keeps rows of many slices between writes to others; their documentation says how
//! long they hold.

mod arena;
mod hash_index;
mod ordered;
mod row;
mod row_order;
mod slice;
mod undo;
mod version;
mod write;

#[cfg(test)]
mod model_tests;

pub use arena::{
    Arena, ArenaFull, BLOCK_BYTES_MAX, CHUNK_BYTES_MIN, Chunk, ChunkSource, HeapChunks, SizeClass,
    block_bytes_max,
};
pub use ordered::{OrderedCursor, OrderedReader};
pub use row::{RowRef, key_hash, row_bytes};
pub use row_order::OrderState;
pub use slice::{SliceIndex, TableSlice, row_insert_bytes_max};
pub use undo::{UndoLog, UndoMark};
pub use version::{Stamp, VersionKind, VersionRef, Versions, version_bytes};
pub use write::{WriteVersion, Wrote, write};
