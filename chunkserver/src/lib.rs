//! The baseline, and what the delta is merged into it with: tablets, runs, the manifest.
//!
//! A tablet is a key range of one table at one version, in one image that is written once, front
//! to back: blocks of rows, an index of the blocks, a Bloom filter, a footer, a trailer
//! ([`trailer`] draws it). Every part's checksum is kept by the part that names it, so a part that
//! was not written, or was written elsewhere, does not pass for the right one.
//!
//! [`block`], [`index`], [`bloom`] and [`footer`] read and write one part each, from bytes to
//! bytes. [`writer`] and [`reader`] put them together over a [`source::ByteSink`] and a
//! [`source::ByteSource`]: neither knows a disk. The shells that do are [`file`](mod@file) for one
//! file, [`manifest::file`] and, for all of them together, [`baseline`].
//!
//! A run ([`run`]) is what changed in one partition between two freezes: a section per table, each
//! an image like a tablet's, of entries that may be deletions. The [`manifest`] says which files
//! are in force. [`merge`] reads through all layers, and makes new tablets of old ones and changes.
//!
//! This crate knows nothing of the log, of consensus or of column types: keys are bytes in their
//! order, rows are a version and bytes.

pub mod baseline;
pub mod block;
pub mod bloom;
mod bytes;
pub mod cache;
pub mod codec;
pub mod digest;
pub mod entry;
pub mod error;
pub mod file;
pub mod footer;
pub mod fuzz;
pub mod index;
pub mod limits;
pub mod manifest;
pub mod merge;
pub mod reader;
pub mod run;
pub mod source;
pub mod trailer;
pub mod writer;

pub use entry::{Entry, EntryOwned};
pub use error::{BlockError, ReadError, TabletError, WriteError};
pub use reader::TabletReader;
pub use writer::{TabletOptions, TabletSummary, TabletWriter};
