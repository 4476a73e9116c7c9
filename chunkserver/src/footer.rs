//! The footer: what the tablet is, and where its index and its filter lie.

use crate::digest::ContentDigest;
use crate::error::TabletError;
use crate::limits::{BLOOM_BYTES_MAX, FOOTER_BYTES_MAX, INDEX_BYTES_MAX};
use rkyv::rancor::Error;
use spillway_net::ids::TableId;
use spillway_net::limits::KEY_BYTES_MAX;
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

/// A part of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Section {
    /// Where it begins.
    pub offset: u64,
    /// Its length, bytes.
    pub length: u64,
    /// Its XXH3-64.
    pub checksum: u64,
}

impl Section {
    /// Its bytes in the image.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.length)
    }
}

/// What the entries of an image are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Content {
    /// All rows of a key range: a tablet. No entry is a deletion.
    Rows = 1,
    /// What changed between two freezes: a section of a run.
    Changes = 2,
}

#[derive(Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Encoded {
    table: u16,
    content: u8,
    schema: u64,
    version: u64,
    rows: u64,
    digest: u128,
    blocks_bytes: u64,
    plain_bytes: u64,
    index: Section,
    bloom: Section,
    first_key: Vec<u8>,
    last_key: Vec<u8>,
}

/// A footer whose rules were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// The table.
    pub table: TableId,
    /// What the entries are.
    pub content: Content,
    /// Fingerprint of the table's schema: rows of another one cannot be decoded.
    pub schema: u64,
    /// The freeze up to which changes are in it.
    pub version: u64,
    /// Its rows: at least 1.
    pub rows: u64,
    /// Its content.
    pub digest: ContentDigest,
    /// Length of all blocks; they begin at 0.
    pub blocks_bytes: u64,
    /// Length of all blocks if none were compressed.
    pub plain_bytes: u64,
    /// The index of the blocks: behind the blocks.
    pub index: Section,
    /// The Bloom filter: behind the index.
    pub bloom: Section,
    /// Key of the first row.
    pub first_key: Vec<u8>,
    /// Key of the last row: the range includes it.
    pub last_key: Vec<u8>,
}

impl Footer {
    /// The bytes that go into the image.
    pub fn encode(&self) -> Vec<u8> {
        let encoded = Encoded {
            table: self.table.0,
            content: self.content as u8,
            schema: self.schema,
            version: self.version,
            rows: self.rows,
            digest: self.digest.0,
            blocks_bytes: self.blocks_bytes,
            plain_bytes: self.plain_bytes,
            index: self.index,
            bloom: self.bloom,
            first_key: self.first_key.clone(),
            last_key: self.last_key.clone(),
        };
        let bytes = rkyv::to_bytes::<Error>(&encoded).expect("plain data in memory encodes");
        bytes.to_vec()
    }

    /// Checks `bytes`, which lie where `section` says, against its checksum and the rules: blocks,
    /// index, filter and footer follow each other without a gap.
    pub fn decode(bytes: &[u8], section: Section) -> Result<Footer, TabletError> {
        let (part, expected, found) = ("footer", section.checksum, xxh3_64(bytes));
        if found != expected {
            return Err(TabletError::Checksum { part, expected, found });
        }
        let malformed = |what| Err(TabletError::Malformed(what));
        if bytes.len() as u64 > FOOTER_BYTES_MAX {
            return malformed("the footer is beyond its limit");
        }
        let Ok(archive) = rkyv::access::<ArchivedEncoded, Error>(bytes) else {
            return malformed("the footer is no archive");
        };
        let (first_key, last_key) = (archive.first_key.as_slice(), archive.last_key.as_slice());
        if first_key.is_empty() || last_key < first_key || last_key.len() > KEY_BYTES_MAX {
            return malformed("key range");
        }
        let content = match archive.content {
            1 => Content::Rows,
            2 => Content::Changes,
            _ => return malformed("what the entries are"),
        };
        let footer = Footer {
            table: TableId(archive.table.to_native()),
            content,
            schema: archive.schema.to_native(),
            version: archive.version.to_native(),
            rows: archive.rows.to_native(),
            digest: ContentDigest(archive.digest.to_native()),
            blocks_bytes: archive.blocks_bytes.to_native(),
            plain_bytes: archive.plain_bytes.to_native(),
            index: native(&archive.index),
            bloom: native(&archive.bloom),
            first_key: first_key.to_vec(),
            last_key: last_key.to_vec(),
        };
        if footer.rows == 0 || footer.table == TableId(0) {
            return malformed("no rows or no table");
        }
        if footer.index.length > INDEX_BYTES_MAX || footer.bloom.length > BLOOM_BYTES_MAX {
            return malformed("index or Bloom filter beyond its limit");
        }
        let index_follows = footer.index.offset == footer.blocks_bytes;
        let bloom_follows = footer.bloom.offset == footer.index.range().end;
        if !index_follows || !bloom_follows || section.offset != footer.bloom.range().end {
            return malformed("a gap between its parts");
        }
        Ok(footer)
    }
}

fn native(section: &ArchivedSection) -> Section {
    Section {
        offset: section.offset.to_native(),
        length: section.length.to_native(),
        checksum: section.checksum.to_native(),
    }
}

const _: () = assert!(size_of::<ArchivedEncoded>() == 123, "as docs/FORMAT.md says");
