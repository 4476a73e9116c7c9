//! The index of a tablet's blocks: where each lies, what it begins with, and its checksum.

use crate::digest::ContentDigest;
use crate::error::TabletError;
use crate::limits::{BLOCK_BYTES_MAX, INDEX_BYTES_MAX};
use rkyv::rancor::Error;
use spillway_net::limits::KEY_BYTES_MAX;
use xxhash_rust::xxh3::xxh3_64;

/// One block, as its parent describes it.
#[derive(Debug, Clone, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct BlockEntry {
    /// Key of its first row.
    pub first_key: Vec<u8>,
    /// Where it begins in the image: where the block before it ends.
    pub offset: u64,
    /// Its length as it is stored, bytes.
    pub length: u32,
    /// Its length, bytes: more than what is stored if it is compressed.
    pub plain_length: u32,
    /// Its rows.
    pub rows: u32,
    /// The XXH3-64 of what is stored.
    pub checksum: u64,
    /// The sum of its rows' digests.
    pub digest: u128,
}

/// All blocks of a tablet in key order, without gaps between them.
#[derive(Debug, Clone, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct BlockIndex {
    /// The blocks.
    pub entries: Vec<BlockEntry>,
}

impl BlockIndex {
    /// The bytes that go into the image.
    pub fn encode(&self) -> Vec<u8> {
        let bytes = rkyv::to_bytes::<Error>(self).expect("plain data in memory always encodes");
        bytes.to_vec()
    }
}

/// Where a block lies and what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHandle {
    /// Its number.
    pub block: u32,
    /// Where it begins in the image.
    pub offset: u64,
    /// Its length as it is stored, bytes.
    pub length: u32,
    /// Its length, bytes: more than what is stored if it is compressed.
    pub plain_length: u32,
    /// Its rows.
    pub rows: u32,
    /// The XXH3-64 of what is stored.
    pub checksum: u64,
    /// Its content.
    pub digest: ContentDigest,
}

/// An index whose checksum, structure and rules were checked; it owns its bytes and is read in
/// place.
#[derive(Debug, Clone)]
pub struct IndexView {
    bytes: Vec<u8>,
}

impl IndexView {
    /// Checks `bytes` against the checksum that the footer keeps, and that the blocks follow each
    /// other from 0 to `blocks_bytes` with rising first keys.
    pub fn open(
        bytes: Vec<u8>,
        checksum: u64,
        blocks_bytes: u64,
    ) -> Result<IndexView, TabletError> {
        let found = xxh3_64(&bytes);
        if found != checksum {
            let (part, expected) = ("block index", checksum);
            return Err(TabletError::Checksum { part, expected, found });
        }
        if bytes.len() as u64 > INDEX_BYTES_MAX {
            return Err(TabletError::Malformed("the index is beyond its limit"));
        }
        let index = rkyv::access::<ArchivedBlockIndex, Error>(&bytes)
            .map_err(|_| TabletError::Malformed("the index is no archive of blocks"))?;
        if index.entries.is_empty() || index.entries.len() > u32::MAX as usize {
            return Err(TabletError::Malformed("number of blocks"));
        }
        let mut end = 0u64;
        let mut key_before: &[u8] = &[];
        for entry in index.entries.iter() {
            let length = entry.length.to_native();
            if entry.offset.to_native() != end {
                return Err(TabletError::Malformed("a gap between blocks"));
            }
            let plain_length = entry.plain_length.to_native();
            let lengths = 1 <= length && length <= plain_length;
            if !lengths || plain_length as usize > BLOCK_BYTES_MAX || entry.rows.to_native() == 0 {
                return Err(TabletError::Malformed("size of a block"));
            }
            let key = entry.first_key.as_slice();
            if key.len() > KEY_BYTES_MAX || key <= key_before {
                return Err(TabletError::Malformed("first keys of blocks do not rise"));
            }
            key_before = key;
            end += u64::from(length);
        }
        if end != blocks_bytes {
            return Err(TabletError::Malformed("the blocks end elsewhere"));
        }
        Ok(IndexView { bytes })
    }

    /// Number of blocks: at least 1.
    pub fn blocks(&self) -> u32 {
        self.archive().entries.len() as u32
    }

    /// The block at `block`, which must be below [`IndexView::blocks`].
    pub fn handle(&self, block: u32) -> BlockHandle {
        let entry = &self.archive().entries[block as usize];
        BlockHandle {
            block,
            offset: entry.offset.to_native(),
            length: entry.length.to_native(),
            plain_length: entry.plain_length.to_native(),
            rows: entry.rows.to_native(),
            checksum: entry.checksum.to_native(),
            digest: ContentDigest(entry.digest.to_native()),
        }
    }

    /// Key of the first row of a block.
    pub fn first_key(&self, block: u32) -> &[u8] {
        self.archive().entries[block as usize].first_key.as_slice()
    }

    /// The only block that can hold `key`; `None` if the key is before the first block.
    pub fn block_of(&self, key: &[u8]) -> Option<u32> {
        let entries = &self.archive().entries;
        let after = entries.partition_point(|entry| entry.first_key.as_slice() <= key);
        after.checked_sub(1).map(|block| block as u32)
    }

    fn archive(&self) -> &ArchivedBlockIndex {
        // SAFETY: `open` has validated exactly these bytes as this type, they are private and
        // nothing changes them; the workspace builds rkyv without alignment, so a moved or cloned
        // vector is as valid as the one that was checked.
        unsafe { rkyv::access_unchecked::<ArchivedBlockIndex>(&self.bytes) }
    }
}

const _: () = assert!(size_of::<ArchivedBlockEntry>() == 52, "as docs/FORMAT.md says");

#[cfg(test)]
mod tests {
    use super::*;

    fn index(keys: &[&str]) -> BlockIndex {
        let entry = |(at, key): (usize, &&str)| BlockEntry {
            first_key: key.as_bytes().to_vec(),
            offset: 100 * at as u64,
            length: 100,
            plain_length: 100,
            rows: 1,
            checksum: 7,
            digest: 9,
        };
        BlockIndex { entries: keys.iter().enumerate().map(entry).collect() }
    }

    fn open(index: &BlockIndex, blocks_bytes: u64) -> Result<IndexView, TabletError> {
        let bytes = index.encode();
        let checksum = xxh3_64(&bytes);
        IndexView::open(bytes, checksum, blocks_bytes)
    }

    #[test]
    fn keys_lead_to_blocks() {
        let view = open(&index(&["b", "d", "f"]), 300).expect("sound");
        assert_eq!(view.blocks(), 3);
        let block = |key: &str| view.block_of(key.as_bytes());
        assert_eq!((block("a"), block("b"), block("c")), (None, Some(0), Some(0)));
        assert_eq!((block("d"), block("z")), (Some(1), Some(2)));
        assert_eq!(view.handle(2).offset, 200);
        assert_eq!(view.first_key(2), b"f");
    }

    #[test]
    fn broken_rules_are_refused() {
        assert!(open(&index(&[]), 0).is_err());
        assert!(open(&index(&["b", "a"]), 200).is_err());
        assert!(open(&index(&["a", "a"]), 200).is_err());
        assert!(open(&index(&[""]), 100).is_err());
        assert!(open(&index(&["a"]), 101).is_err());
        let mut gap = index(&["a", "b"]);
        gap.entries[1].offset = 101;
        assert!(open(&gap, 201).is_err());
        let mut empty = index(&["a"]);
        empty.entries[0].rows = 0;
        assert!(open(&empty, 100).is_err());
        let bytes = index(&["a"]).encode();
        let wrong = IndexView::open(bytes, 1, 100);
        assert!(matches!(wrong, Err(TabletError::Checksum { .. })));
    }
}
