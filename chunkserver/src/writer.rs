//! Writes one tablet, front to back.

use crate::block::{self, BlockBuilder};
use crate::bloom;
use crate::codec::Codec;
use crate::digest::{ContentDigest, Digester};
use crate::entry::Entry;
use crate::error::WriteError;
use crate::footer::{Content, Footer, Section};
use crate::index::{BlockEntry, BlockIndex};
use crate::limits::{
    BLOCK_BYTES_TARGET, BLOCK_BYTES_TARGET_MAX, BLOOM_BYTES_MAX, ENTRY_HEAD_BYTES,
    FOOTER_BYTES_MAX, INDEX_BYTES_MAX, TABLET_ALIGNMENT_BYTES, TABLET_BYTES_MAX,
};
use crate::source::ByteSink;
use crate::trailer::{Image, TRAILER_BYTES, Trailer};
use bytes::Bytes;
use spillway_net::ids::TableId;
use spillway_net::limits::{KEY_BYTES_MAX, ROW_BYTES_MAX};
use xxhash_rust::xxh3::xxh3_64;

/// The longest key, for messages.
pub(crate) const KEY: usize = KEY_BYTES_MAX;
/// The longest row, for messages.
pub(crate) const ROW: usize = ROW_BYTES_MAX;
/// What an archived entry takes at most beside its key, bytes; generous.
pub(crate) const INDEX_ENTRY_BYTES_MAX: u64 = 64;

/// What the tablet is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TabletOptions {
    /// The table.
    pub table: TableId,
    /// What the entries are.
    pub content: Content,
    /// Fingerprint of the table's schema.
    pub schema: u64,
    /// The freeze up to which changes are in it.
    pub version: u64,
    /// A block is closed once it holds this much, bytes.
    pub block_bytes_target: usize,
    /// How blocks are written.
    pub codec: Codec,
}

impl TabletOptions {
    /// A tablet with blocks of the usual size.
    pub fn new(table: TableId, schema: u64, version: u64) -> TabletOptions {
        let (content, block_bytes_target) = (Content::Rows, BLOCK_BYTES_TARGET);
        let codec = Codec::Plain;
        TabletOptions { table, content, schema, version, block_bytes_target, codec }
    }
}

/// A block that is complete, and what a tablet has to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedBlock {
    /// Its bytes as they are to be stored.
    pub bytes: Bytes,
    /// Its length when it is not compressed, bytes.
    pub plain_bytes: u32,
    /// Its rows.
    pub rows: u32,
    /// Key of its first row.
    pub first_key: Vec<u8>,
    /// Key of its last row.
    pub last_key: Vec<u8>,
    /// The XXH3-64 of what is stored.
    pub checksum: u64,
    /// Its content.
    pub digest: ContentDigest,
    /// The hashes of its keys, for the filter.
    pub hashes: Vec<u64>,
}

/// What was written: what a zone reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TabletSummary {
    /// The footer.
    pub footer: Footer,
    /// Number of blocks.
    pub blocks: u32,
    /// Length of the image, bytes.
    pub image_bytes: u64,
    /// XXH3-64 of the footer: which file this is.
    pub footer_checksum: u64,
}

/// Takes rows in key order and writes a tablet. Holds one block, the index and a hash per row.
#[derive(Debug)]
pub struct TabletWriter<S> {
    sink: S,
    options: TabletOptions,
    block: BlockBuilder,
    /// First key of the block that is open.
    block_first_key: Vec<u8>,
    index: BlockIndex,
    index_keys_bytes: u64,
    /// The digest of all blocks that are closed.
    digest_closed: ContentDigest,
    hashes: Vec<u64>,
    digester: Digester,
    last_key: Vec<u8>,
    /// Bytes that went into the sink.
    written: u64,
    /// Length of all closed blocks if none were compressed.
    plain_bytes: u64,
    payload: Vec<u8>,
}

impl<S: ByteSink> TabletWriter<S> {
    /// Begins a tablet.
    pub fn new(sink: S, options: TabletOptions) -> TabletWriter<S> {
        assert!(options.table != TableId(0), "0 is no table");
        let target = options.block_bytes_target;
        assert!((1..=BLOCK_BYTES_TARGET_MAX).contains(&target), "blocks of {target} bytes");
        TabletWriter {
            sink,
            options,
            block: BlockBuilder::default(),
            block_first_key: Vec::new(),
            index: BlockIndex::default(),
            index_keys_bytes: 0,
            digest_closed: ContentDigest::default(),
            hashes: Vec::new(),
            digester: Digester::new(options.table),
            last_key: Vec::new(),
            written: 0,
            plain_bytes: 0,
            payload: Vec::new(),
        }
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.hashes.len() as u64
    }

    /// About how long the image would be if it were finished now, bytes: where to cut.
    pub fn bytes(&self) -> u64 {
        self.written + self.block.bytes() as u64 + self.tail_bytes_max()
    }

    /// Adds an entry behind all others.
    ///
    /// After an error of the sink the tablet is lost; after any other the writer goes on as if the
    /// entry had not come.
    ///
    /// # Panics
    /// On a deletion in a tablet.
    pub fn add(&mut self, key: &[u8], entry: Entry<'_>) -> Result<(), WriteError<S::Error>> {
        let is_change = self.options.content == Content::Changes;
        assert!(is_change || entry.row.is_some(), "a tablet holds no deletions");
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        entry.encode(&mut payload);
        let added = self.add_payload(key, &payload);
        self.payload = payload;
        added
    }

    fn add_payload(&mut self, key: &[u8], row: &[u8]) -> Result<(), WriteError<S::Error>> {
        self.check(key, row)?;
        let full = self.block.bytes_with(key, row) > self.options.block_bytes_target;
        if full && self.block.rows() > 0 {
            self.close_block()?;
        }
        if self.block.rows() == 0 {
            self.block_first_key.clear();
            self.block_first_key.extend_from_slice(key);
        }
        self.block.push(key, row);
        self.hashes.push(bloom::hash(key));
        self.digester.add(key, row);
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        Ok(())
    }

    /// Adds a whole block behind all rows, as it stands: neither cut anew nor looked into.
    ///
    /// # Errors
    /// As the sink fails: the tablet is lost then.
    ///
    /// # Panics
    /// If the block does not follow what is there, or the tablet would exceed its limit: who adds
    /// blocks cuts tablets far below it.
    pub fn add_block(&mut self, block: &FinishedBlock) -> Result<(), WriteError<S::Error>> {
        if self.block.rows() > 0 {
            self.close_block()?;
        }
        assert!(block.first_key.as_slice() > self.last_key.as_slice(), "blocks in key order");
        assert_eq!(block.hashes.len(), block.rows as usize, "a hash for each row");
        self.index_keys_bytes += block.first_key.len() as u64;
        self.index.entries.push(BlockEntry {
            first_key: block.first_key.clone(),
            offset: self.written,
            length: block.bytes.len() as u32,
            plain_length: block.plain_bytes,
            rows: block.rows,
            checksum: block.checksum,
            digest: block.digest.0,
        });
        self.plain_bytes += u64::from(block.plain_bytes);
        self.digester.add_range(block.digest);
        self.digest_closed = self.digester.digest();
        self.hashes.extend_from_slice(&block.hashes);
        self.last_key.clone_from(&block.last_key);
        self.append(&block.bytes)?;
        let bloom_bytes = self.rows() * bloom::BITS_PER_KEY / 8 + bloom::BLOCK_BYTES as u64;
        assert!(self.bytes() + 2 * TABLET_ALIGNMENT_BYTES <= TABLET_BYTES_MAX, "a tablet too long");
        assert!(self.index_bytes_max() <= INDEX_BYTES_MAX, "a tablet of too many blocks");
        assert!(bloom_bytes <= BLOOM_BYTES_MAX, "a tablet of too many rows");
        Ok(())
    }

    /// Takes what the sink has got, for a sink that is only a buffer.
    pub fn sink_mut(&mut self) -> &mut S {
        &mut self.sink
    }

    fn check(&self, key: &[u8], row: &[u8]) -> Result<(), WriteError<S::Error>> {
        let number = self.rows();
        if key.is_empty() || key.len() > KEY {
            return Err(WriteError::KeySize { row: number, bytes: key.len() });
        }
        let bytes = row.len() - ENTRY_HEAD_BYTES;
        if bytes > ROW {
            return Err(WriteError::RowSize { row: number, bytes });
        }
        // No key is empty, so any first key follows the empty one.
        if key <= self.last_key.as_slice() {
            return Err(WriteError::Order { row: number });
        }
        let bloom_bytes = (number + 1) * bloom::BITS_PER_KEY / 8 + bloom::BLOCK_BYTES as u64;
        let index_bytes = self.index_bytes_max() + INDEX_ENTRY_BYTES_MAX + key.len() as u64;
        let image_bytes = self.written
            + self.block.bytes_with(key, row) as u64
            + index_bytes
            + bloom_bytes
            + FOOTER_BYTES_MAX
            + 2 * TABLET_ALIGNMENT_BYTES;
        let fits = bloom_bytes <= BLOOM_BYTES_MAX
            && index_bytes <= INDEX_BYTES_MAX
            && image_bytes <= TABLET_BYTES_MAX;
        if fits { Ok(()) } else { Err(WriteError::Full { rows: number }) }
    }

    fn index_bytes_max(&self) -> u64 {
        // The block that is open and its key count as one more.
        let entries = self.index.entries.len() as u64 + 1;
        entries * INDEX_ENTRY_BYTES_MAX + self.index_keys_bytes + self.block_first_key.len() as u64
    }

    fn tail_bytes_max(&self) -> u64 {
        let bloom_bytes = self.rows() * bloom::BITS_PER_KEY / 8 + bloom::BLOCK_BYTES as u64;
        self.index_bytes_max() + bloom_bytes + FOOTER_BYTES_MAX
    }

    fn close_block(&mut self) -> Result<(), WriteError<S::Error>> {
        let rows = self.block.rows();
        let mut plain = Vec::with_capacity(self.block.bytes());
        self.block.finish(&mut plain);
        let plain = Bytes::from(plain);
        let stored = self.options.codec.encode(&plain);
        self.plain_bytes += plain.len() as u64;
        let first_key = std::mem::take(&mut self.block_first_key);
        self.index_keys_bytes += first_key.len() as u64;
        self.index.entries.push(BlockEntry {
            first_key,
            offset: self.written,
            length: stored.len() as u32,
            plain_length: plain.len() as u32,
            rows,
            checksum: block::checksum(&stored),
            digest: self.digester.since(self.digest_closed).0,
        });
        self.digest_closed = self.digester.digest();
        self.append(&stored)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError<S::Error>> {
        self.sink.append(bytes).map_err(WriteError::Sink)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn append_section(&mut self, bytes: &[u8]) -> Result<Section, WriteError<S::Error>> {
        let (offset, length) = (self.written, bytes.len() as u64);
        self.append(bytes)?;
        Ok(Section { offset, length, checksum: xxh3_64(bytes) })
    }

    /// Writes what is left, and gives the sink back.
    pub fn finish(mut self) -> Result<(S, TabletSummary), WriteError<S::Error>> {
        if self.rows() == 0 {
            return Err(WriteError::Empty);
        }
        if self.block.rows() > 0 {
            self.close_block()?;
        }
        let blocks_bytes = self.written;
        let index_bytes = self.index.encode();
        assert!(index_bytes.len() as u64 <= self.index_bytes_max(), "entries are as small as said");
        let index = self.append_section(&index_bytes)?;
        let bloom = self.append_section(&bloom::build(&self.hashes))?;
        let digest: ContentDigest = self.digester.digest();
        let footer = Footer {
            table: self.options.table,
            content: self.options.content,
            schema: self.options.schema,
            version: self.options.version,
            rows: self.rows(),
            digest,
            blocks_bytes,
            plain_bytes: self.plain_bytes,
            index,
            bloom,
            first_key: self.index.entries[0].first_key.clone(),
            last_key: self.last_key.clone(),
        };
        let footer_section = self.append_section(&footer.encode())?;
        let trailer = Trailer::behind(footer_section);
        let zeros = trailer.image_bytes - TRAILER_BYTES as u64 - self.written;
        self.append(&vec![0; zeros as usize])?;
        self.append(&trailer.encode(Image::Tablet))?;
        assert_eq!(self.written, trailer.image_bytes, "the image is as long as its trailer says");
        let (blocks, image_bytes) = (self.index.entries.len() as u32, self.written);
        let footer_checksum = footer_section.checksum;
        Ok((self.sink, TabletSummary { footer, blocks, image_bytes, footer_checksum }))
    }
}
