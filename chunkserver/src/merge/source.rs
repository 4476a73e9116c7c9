//! What a merge reads from.

use crate::entry::{Entry, EntryOwned};
use crate::error::TabletError;
use crate::index::BlockHandle;
use crate::manifest::FileId;
use crate::reader::{CheckedBlock, TabletMeta};
use std::sync::Arc;

/// A block that has to be read before a source can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockNeed {
    /// The file.
    pub file: FileId,
    /// Where the image of the tablet begins in the file: 0 but for sections of runs.
    pub image_offset: u64,
    /// Which block, counted from the begin of the image.
    pub handle: BlockHandle,
}

impl BlockNeed {
    /// Where it begins in the file.
    pub fn offset(&self) -> u64 {
        self.image_offset + self.handle.offset
    }
}

/// Which keys a source is to yield.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key; empty for all.
    pub from: Vec<u8>,
    /// The first key behind it; `None` for all.
    pub to: Option<Vec<u8>>,
}

impl KeyRange {
    /// All keys.
    pub fn all() -> KeyRange {
        KeyRange::default()
    }

    /// Whether a key lies in front of the range's end.
    pub fn ends_behind(&self, key: &[u8]) -> bool {
        self.to.as_ref().is_none_or(|to| key < to.as_slice())
    }

    /// Whether a key lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.from.as_slice() && self.ends_behind(key)
    }
}

/// One layer: entries in key order, one per key.
///
/// It is in one of three states: at an entry, in need of a block, or at its end.
pub trait Source {
    /// The key it is at; `None` in need of a block and at the end.
    fn key(&self) -> Option<&[u8]>;

    /// The entry it is at.
    ///
    /// # Errors
    /// When what was read is no entry.
    ///
    /// # Panics
    /// If it is at none.
    fn entry(&self) -> Result<Entry<'_>, TabletError>;

    /// Goes on to the next entry. At the end it does nothing.
    fn advance(&mut self);

    /// The block without which it cannot go on.
    fn need(&self) -> Option<BlockNeed> {
        None
    }

    /// The block that it is going to need next, so that it can be on its way meanwhile. It may be
    /// supplied as soon as it is there.
    fn need_ahead(&self) -> Option<BlockNeed> {
        None
    }

    /// Takes a block that it needs or is going to need. Any other is a mistake of the caller.
    fn supply(&mut self, _block: CheckedBlock) {
        panic!("a source in memory needs no block");
    }
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn key(&self) -> Option<&[u8]> {
        (**self).key()
    }

    fn entry(&self) -> Result<Entry<'_>, TabletError> {
        (**self).entry()
    }

    fn advance(&mut self) {
        (**self).advance();
    }

    fn need(&self) -> Option<BlockNeed> {
        (**self).need()
    }

    fn need_ahead(&self) -> Option<BlockNeed> {
        (**self).need_ahead()
    }

    fn supply(&mut self, block: CheckedBlock) {
        (**self).supply(block);
    }
}

/// Entries in memory, sorted.
#[derive(Debug)]
pub struct SortedSource<'a> {
    entries: &'a [(Vec<u8>, EntryOwned)],
    at: usize,
    end: usize,
}

impl<'a> SortedSource<'a> {
    /// Those of `entries` that lie in the range. Their keys rise.
    pub fn new(entries: &'a [(Vec<u8>, EntryOwned)], range: &KeyRange) -> SortedSource<'a> {
        let at = entries.partition_point(|(key, _)| *key < range.from);
        let end = entries.partition_point(|(key, _)| range.ends_behind(key));
        SortedSource { entries, at, end: end.max(at) }
    }
}

impl Source for SortedSource<'_> {
    fn key(&self) -> Option<&[u8]> {
        (self.at < self.end).then(|| self.entries[self.at].0.as_slice())
    }

    fn entry(&self) -> Result<Entry<'_>, TabletError> {
        assert!(self.at < self.end, "a source at its end has no entry");
        Ok(self.entries[self.at].1.as_entry())
    }

    fn advance(&mut self) {
        self.at = (self.at + 1).min(self.end);
    }
}

/// A tablet, or a section of a run, as a part of a view.
#[derive(Debug, Clone)]
pub struct TabletOfView {
    /// Its file.
    pub file: FileId,
    /// Where its image begins in the file.
    pub image_offset: u64,
    /// What of it stays in memory.
    pub meta: Arc<TabletMeta>,
}

/// The tablets of one table at one version, or one section of a run. Holds at most two blocks.
#[derive(Debug)]
pub struct TabletSource {
    /// In key order, none of them touching another.
    tablets: Vec<TabletOfView>,
    range: KeyRange,
    /// Tablet and block that it is at, or needs; behind the last tablet at the end.
    tablet: usize,
    block: u32,
    current: Option<CheckedBlock>,
    row: u32,
    ahead: Option<CheckedBlock>,
}

impl TabletSource {
    /// The entries of these tablets that lie in the range.
    ///
    /// # Panics
    /// If the tablets overlap or are out of order.
    pub fn new(tablets: Vec<TabletOfView>, range: KeyRange) -> TabletSource {
        for pair in tablets.windows(2) {
            let (one, two) = (pair[0].meta.footer(), pair[1].meta.footer());
            assert!(one.last_key < two.first_key, "tablets of a view lie side by side");
            assert_eq!(one.table, two.table, "a view is of one table");
        }
        let tablet = tablets.partition_point(|tablet| tablet.meta.footer().last_key < range.from);
        let first = tablets.get(tablet).and_then(|tablet| tablet.meta.block_from(&range.from));
        let block = first.map_or(0, |handle| handle.block);
        let (current, ahead) = (None, None);
        let mut source = TabletSource { tablets, range, tablet, block, current, row: 0, ahead };
        source.end_behind_range();
        source
    }

    /// The block that it is at, when it is at the block's first entry: for those who take blocks as
    /// a whole.
    pub fn block_begun(&self) -> Option<(&TabletOfView, &CheckedBlock)> {
        let block = self.current.as_ref().filter(|_| self.row == 0)?;
        Some((&self.tablets[self.tablet], block))
    }

    /// The first key of the block behind the one that it is at; `None` at the last one.
    pub fn block_end_key(&self) -> Option<&[u8]> {
        let (tablet, block) = self.place_next();
        Some(self.tablets.get(tablet)?.meta.first_key(block))
    }

    /// Goes on behind the block that it is at.
    pub fn skip_block(&mut self) {
        assert!(self.current.is_some(), "it is at a block");
        self.next_block();
    }

    fn place(&self, tablet: usize, block: u32) -> Option<BlockNeed> {
        let TabletOfView { file, image_offset, meta } = self.tablets.get(tablet)?;
        let (file, image_offset) = (*file, *image_offset);
        self.range.ends_behind(meta.first_key(block)).then(|| BlockNeed {
            file,
            image_offset,
            handle: meta.handle(block),
        })
    }

    fn place_next(&self) -> (usize, u32) {
        let blocks = self.tablets[self.tablet].meta.blocks();
        if self.block + 1 < blocks { (self.tablet, self.block + 1) } else { (self.tablet + 1, 0) }
    }

    /// At the end nothing is needed any more.
    fn end_behind_range(&mut self) {
        if self.place(self.tablet, self.block).is_none() {
            self.tablet = self.tablets.len();
            self.ahead = None;
        }
    }

    fn next_block(&mut self) {
        (self.tablet, self.block) = self.place_next();
        (self.current, self.row) = (None, 0);
        self.end_behind_range();
        if let Some(block) = self.ahead.take() {
            self.enter(block);
        }
    }

    fn enter(&mut self, block: CheckedBlock) {
        let view = block.view();
        // Only the first block can begin in front of the range.
        self.row = view.lower_bound(&self.range.from);
        let is_empty = self.row == view.rows();
        self.current = Some(block);
        if is_empty {
            self.next_block();
        } else {
            self.end_at_range();
        }
    }

    fn end_at_range(&mut self) {
        let is_behind = self.key().is_some_and(|key| !self.range.ends_behind(key));
        if is_behind {
            self.tablet = self.tablets.len();
            (self.current, self.ahead) = (None, None);
        }
    }
}

impl Source for TabletSource {
    fn key(&self) -> Option<&[u8]> {
        Some(self.current.as_ref()?.view().row(self.row).key)
    }

    fn entry(&self) -> Result<Entry<'_>, TabletError> {
        let block = self.current.as_ref().expect("a source in need or at its end has no entry");
        Entry::decode(block.view().row(self.row).row)
    }

    fn advance(&mut self) {
        let Some(block) = &self.current else { return };
        self.row += 1;
        if self.row == block.handle().rows {
            self.next_block();
        } else if self.range.to.is_some() {
            self.end_at_range();
        }
    }

    fn need(&self) -> Option<BlockNeed> {
        if self.current.is_some() { None } else { self.place(self.tablet, self.block) }
    }

    fn need_ahead(&self) -> Option<BlockNeed> {
        if self.tablet == self.tablets.len() || self.ahead.is_some() {
            return None;
        }
        let (tablet, block) = self.place_next();
        self.place(tablet, block)
    }

    fn supply(&mut self, block: CheckedBlock) {
        let handle = block.handle();
        if self.need().is_some_and(|need| need.handle == handle) {
            self.enter(block);
        } else {
            let ahead = self.need_ahead();
            assert!(ahead.is_some_and(|need| need.handle == handle), "a block nobody asked for");
            self.ahead = Some(block);
        }
    }
}
