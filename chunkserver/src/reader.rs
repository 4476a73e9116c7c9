//! Reads one tablet.

use crate::block::{BlockView, checksum as block_checksum};
use crate::bloom::{self, Bloom};
use crate::codec;
use crate::digest::Digester;
use crate::entry::{Entry, EntryOwned};
use crate::error::{BlockError, ReadError, TabletError};
use crate::footer::{Content, Footer};
use crate::index::{BlockHandle, IndexView};
use crate::source::ByteSource;
use crate::trailer::{Image, TRAILER_BYTES, Trailer};
use bytes::Bytes;

/// Everything of a tablet that stays in memory. It does no I/O: it says which block to read, and
/// [`BlockView::open`] checks what came.
#[derive(Debug, Clone)]
pub struct TabletMeta {
    footer: Footer,
    index: IndexView,
    bloom: Bloom,
}

impl TabletMeta {
    /// Puts checked parts together, and checks what they say about each other.
    pub fn new(
        footer: Footer,
        index_bytes: Vec<u8>,
        bloom_bytes: Vec<u8>,
    ) -> Result<TabletMeta, TabletError> {
        let index = IndexView::open(index_bytes, footer.index.checksum, footer.blocks_bytes)?;
        let bloom = Bloom::open(bloom_bytes, footer.bloom.checksum)?;
        let rows: u64 = (0..index.blocks()).map(|block| u64::from(index.handle(block).rows)).sum();
        if rows != footer.rows {
            return Err(TabletError::Malformed("index and footer count rows differently"));
        }
        let digest = |block| index.handle(block).digest.0;
        let digest = (0..index.blocks()).fold(0u128, |sum, block| sum.wrapping_add(digest(block)));
        if digest != footer.digest.0 {
            return Err(TabletError::Malformed("index and footer have another digest"));
        }
        let plain = |block| u64::from(index.handle(block).plain_length);
        if (0..index.blocks()).map(plain).sum::<u64>() != footer.plain_bytes {
            return Err(TabletError::Malformed("index and footer have other lengths of blocks"));
        }
        let last_block = index.first_key(index.blocks() - 1);
        if index.first_key(0) != footer.first_key || last_block > footer.last_key.as_slice() {
            return Err(TabletError::Malformed("index and footer name other key ranges"));
        }
        Ok(TabletMeta { footer, index, bloom })
    }

    /// What the tablet is.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Number of blocks: at least 1.
    pub fn blocks(&self) -> u32 {
        self.index.blocks()
    }

    /// Key of the first row of a block.
    pub fn first_key(&self, block: u32) -> &[u8] {
        self.index.first_key(block)
    }

    /// The block at `block`, which must be below [`TabletMeta::blocks`].
    pub fn handle(&self, block: u32) -> BlockHandle {
        self.index.handle(block)
    }

    /// The block to read for a point: `None` if the key is certainly not there.
    pub fn block_for(&self, key: &[u8]) -> Option<BlockHandle> {
        if key > self.footer.last_key.as_slice() || !self.bloom.may_contain(bloom::hash(key)) {
            return None;
        }
        self.index.block_of(key).map(|block| self.index.handle(block))
    }

    /// The first block that can hold `key` or a greater one; `None` past the end.
    pub fn block_from(&self, key: &[u8]) -> Option<BlockHandle> {
        if key > self.footer.last_key.as_slice() {
            return None;
        }
        Some(self.index.handle(self.index.block_of(key).unwrap_or(0)))
    }

    /// Checks the stored bytes of a block against what the index says about it, and the block
    /// behind them.
    fn open_block(&self, handle: BlockHandle, stored: &Bytes) -> Result<Bytes, TabletError> {
        let block = handle.block;
        let of_block = |error| TabletError::Block { block, error };
        let (expected, found) = (handle.checksum, block_checksum(stored));
        if found != expected {
            return Err(of_block(BlockError::Checksum { expected, found }));
        }
        if stored.len() as u64 != u64::from(handle.length) {
            return Err(TabletError::Malformed("a block of another size than its index says"));
        }
        let plain = codec::decode(stored, handle.plain_length).map_err(of_block)?;
        let view = BlockView::parse(&plain).map_err(of_block)?;
        if view.rows() != handle.rows {
            return Err(TabletError::Malformed("a block of other rows than its index says"));
        }
        if view.row(0).key != self.index.first_key(block) {
            return Err(TabletError::Malformed("a block that begins with another key"));
        }
        Ok(plain)
    }
}

/// A block in memory that was checked against the index of its tablet: it is read without another
/// check. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CheckedBlock {
    plain: Bytes,
    /// As it stands in the image; the same memory if it is not compressed.
    stored: Option<Bytes>,
    handle: BlockHandle,
}

impl CheckedBlock {
    /// Checks what was read for `handle`, a block of the tablet of `meta`.
    pub fn new(
        meta: &TabletMeta,
        handle: BlockHandle,
        stored: Bytes,
    ) -> Result<CheckedBlock, TabletError> {
        let plain = meta.open_block(handle, &stored)?;
        Ok(CheckedBlock { plain, stored: Some(stored), handle })
    }

    /// The same without what is stored of a compressed block: it takes less memory, and cannot be
    /// copied into another tablet.
    pub fn to_read(mut self) -> CheckedBlock {
        if self.handle.length != self.handle.plain_length {
            self.stored = None;
        }
        self
    }

    /// Which block it is.
    pub fn handle(&self) -> BlockHandle {
        self.handle
    }

    /// Its bytes, not compressed.
    pub fn bytes(&self) -> &Bytes {
        &self.plain
    }

    /// Its bytes as they stand in the image.
    pub fn stored(&self) -> Option<&Bytes> {
        self.stored.as_ref()
    }

    /// Its rows.
    pub fn view(&self) -> BlockView<'_> {
        BlockView::checked_before(&self.plain, self.handle.rows)
    }
}

/// A tablet over a source that can be asked and answers.
#[derive(Debug)]
pub struct TabletReader<S> {
    source: S,
    meta: TabletMeta,
    footer_checksum: u64,
}

impl<S: ByteSource> TabletReader<S> {
    /// Reads and checks trailer, footer, index and Bloom filter.
    pub fn open(mut source: S) -> Result<TabletReader<S>, ReadError<S::Error>> {
        let total = source.bytes_total();
        let Some(trailer_start) = total.checked_sub(TRAILER_BYTES as u64) else {
            return Err(TabletError::Magic.into());
        };
        let bytes = source.read(trailer_start..total).map_err(ReadError::Source)?;
        let bytes = bytes.as_slice().try_into().expect("a source gives what it was asked for");
        let section = Trailer::decode(Image::Tablet, bytes, total)?.footer;
        let tail = source.read(section.offset..trailer_start).map_err(ReadError::Source)?;
        let (footer_bytes, zeros) = tail.split_at(section.length as usize);
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(TabletError::Malformed("bytes between footer and trailer").into());
        }
        let footer = Footer::decode(footer_bytes, section)?;
        let index_bytes = source.read(footer.index.range()).map_err(ReadError::Source)?;
        let bloom_bytes = source.read(footer.bloom.range()).map_err(ReadError::Source)?;
        let meta = TabletMeta::new(footer, index_bytes, bloom_bytes)?;
        Ok(TabletReader { source, meta, footer_checksum: section.checksum })
    }

    /// What stays in memory.
    pub fn meta(&self) -> &TabletMeta {
        &self.meta
    }

    /// XXH3-64 of the footer: which file this is.
    pub fn footer_checksum(&self) -> u64 {
        self.footer_checksum
    }

    /// The entry of this key: at most one read.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<EntryOwned>, ReadError<S::Error>> {
        let Some(handle) = self.meta.block_for(key) else { return Ok(None) };
        let block = self.read_block(handle)?;
        let entry = block.view().get(key).map(Entry::decode).transpose()?;
        Ok(entry.map(Entry::to_owned))
    }

    /// Gives entries with `key` or a greater one, in order, to `visit`, until it answers `false`.
    pub fn scan(
        &mut self,
        key: &[u8],
        mut visit: impl FnMut(&[u8], Entry<'_>) -> bool,
    ) -> Result<(), ReadError<S::Error>> {
        let Some(first) = self.meta.block_from(key) else { return Ok(()) };
        for number in first.block..self.meta.blocks() {
            let handle = self.meta.handle(number);
            let block = self.read_block(handle)?;
            for row in block.view().seek(key) {
                if !visit(row.key, Entry::decode(row.row)?) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Reads all blocks, and checks that rows, order, key range, filter and digest are as the
    /// footer says.
    pub fn verify(&mut self) -> Result<(), ReadError<S::Error>> {
        let footer = self.meta.footer.clone();
        let mut digester = Digester::new(footer.table);
        let mut key_before: Vec<u8> = Vec::new();
        let mut rows = 0u64;
        for number in 0..self.meta.blocks() {
            let handle = self.meta.handle(number);
            let block = self.read_block(handle)?;
            let before = digester.digest();
            for row in block.view().iter() {
                if row.key <= key_before.as_slice() {
                    return Err(TabletError::Content("keys do not rise").into());
                }
                if !self.meta.bloom.may_contain(bloom::hash(row.key)) {
                    return Err(TabletError::Content("a key misses in the Bloom filter").into());
                }
                if Entry::decode(row.row)?.row.is_none() && footer.content == Content::Rows {
                    return Err(TabletError::Content("a deletion in a tablet").into());
                }
                digester.add(row.key, row.row);
                key_before.clear();
                key_before.extend_from_slice(row.key);
                rows += 1;
            }
            if digester.since(before) != handle.digest {
                return Err(TabletError::Content("digest of a block").into());
            }
        }
        if rows != footer.rows || key_before != footer.last_key {
            return Err(TabletError::Content("number of rows or last key").into());
        }
        if digester.digest() != footer.digest {
            return Err(TabletError::Content("digest").into());
        }
        Ok(())
    }

    fn read_block(&mut self, handle: BlockHandle) -> Result<CheckedBlock, ReadError<S::Error>> {
        let end = handle.offset + u64::from(handle.length);
        let stored = self.source.read(handle.offset..end).map_err(ReadError::Source)?;
        Ok(CheckedBlock::new(&self.meta, handle, Bytes::from(stored))?)
    }
}
