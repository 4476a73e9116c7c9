//! Sizes that every reader holds against what an image announces, before it allocates.

use spillway_net::limits::{KEY_BYTES_MAX, ROW_BYTES_MAX, TABLES_MAX};

/// A block is closed once it holds this much, bytes.
pub const BLOCK_BYTES_TARGET: usize = 16 << 10;
/// What a row costs in a block beside its key and its columns, bytes: offset and key length.
pub const BLOCK_ROW_OVERHEAD_BYTES: usize = 4 + 2;
/// What an entry costs beside its columns, bytes: row version and whether it is there.
pub const ENTRY_HEAD_BYTES: usize = 8;
/// What a block costs beside its rows, bytes: the number of rows and the end of the last one.
pub const BLOCK_OVERHEAD_BYTES: usize = 4 + 4;
/// The largest target that a writer may ask for, bytes.
pub const BLOCK_BYTES_TARGET_MAX: usize = 1 << 20;
/// The largest block: the largest target, and one row too many.
pub const BLOCK_BYTES_MAX: usize = BLOCK_BYTES_TARGET_MAX + BLOCK_ROW_BYTES_MAX;
/// The largest row with all that it costs, bytes.
pub const BLOCK_ROW_BYTES_MAX: usize =
    KEY_BYTES_MAX + ROW_BYTES_MAX + ENTRY_HEAD_BYTES + BLOCK_ROW_OVERHEAD_BYTES;
/// The largest tablet, bytes. Merges cut far below.
pub const TABLET_BYTES_MAX: u64 = 1 << 30;
/// The largest index, bytes.
pub const INDEX_BYTES_MAX: u64 = 128 << 20;
/// The largest Bloom filter, bytes.
pub const BLOOM_BYTES_MAX: u64 = 64 << 20;
/// The largest footer, bytes: two keys and fixed fields.
pub const FOOTER_BYTES_MAX: u64 = 4 << 10;
/// The largest run, bytes.
pub const RUN_BYTES_MAX: u64 = 64 << 30;
/// A run's directory before its sections, bytes.
pub const RUN_DIRECTORY_HEAD_BYTES: usize = 48;
/// A section in a run's directory, bytes.
pub const RUN_SECTION_BYTES: usize = 56;
/// The largest directory of a run, bytes: all tables.
pub const RUN_DIRECTORY_BYTES_MAX: u64 =
    (RUN_DIRECTORY_HEAD_BYTES + TABLES_MAX * RUN_SECTION_BYTES) as u64;
/// A tablet's length is a multiple of this, so that direct reads may end at its end, bytes.
pub const TABLET_ALIGNMENT_BYTES: u64 = 4 << 10;
/// Files that a manifest names.
pub const MANIFEST_FILES_MAX: usize = 1 << 16;
/// The manifest's state, and an edit, as bytes.
pub const MANIFEST_STATE_BYTES_MAX: usize = 64 << 20;
/// A file of the manifest, bytes.
pub const MANIFEST_FILE_BYTES_MAX: u64 = 256 << 20;
/// Room for edits in a file of the manifest, at least, bytes.
pub const MANIFEST_EDITS_BYTES_MIN: u64 = 1 << 20;

// With headers at 512 bytes a block, a state takes less than 1.3 times its bytes; an edit too.
const _: () = assert!(
    2 * (MANIFEST_STATE_BYTES_MAX as u64 / 10 * 13) + 2 * TABLET_ALIGNMENT_BYTES
        <= MANIFEST_FILE_BYTES_MAX
);
const _: () = assert!(BLOCK_BYTES_TARGET <= BLOCK_BYTES_TARGET_MAX);
const _: () = assert!(BLOCK_BYTES_MAX <= u32::MAX as usize, "offsets in a block are 32 bits");
const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize, "a key's length is 16 bits");
const _: () = assert!(2 * KEY_BYTES_MAX as u64 + 512 <= FOOTER_BYTES_MAX);
const _: () = assert!(INDEX_BYTES_MAX + BLOOM_BYTES_MAX < TABLET_BYTES_MAX);
