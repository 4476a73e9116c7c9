//! The readers' side of the ordered index.

use super::super::row::{RowRef, prefetch};
use super::node::{ENTRIES_MAX, NodeRef, Stale, interleave};
use super::tree::TreeHead;
use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

/// Rows ahead of the cursor whose heads are fetched.
const PREFETCH_AHEAD: usize = 8;

/// Reads the ordered index of a slice, on any thread, while its owner writes.
#[derive(Clone)]
pub struct OrderedReader {
    head: Arc<TreeHead>,
}

/// Where a key lies as seen from the root.
enum Way<'a> {
    First,
    Key(&'a [u8], bool),
    BehindLast,
}

impl OrderedReader {
    pub(super) fn new(head: Arc<TreeHead>) -> OrderedReader {
        OrderedReader { head }
    }

    /// A cursor before the first row at or after `start` (after it, if excluded).
    pub fn seek(&self, start: Bound<&[u8]>) -> OrderedCursor {
        let mut cursor = OrderedCursor {
            head: Arc::clone(&self.head),
            page: [const { None }; ENTRIES_MAX],
            place: 0,
            count: 0,
            leaf: None,
            last: None,
        };
        while cursor.fill_first(start).is_err() {
            std::hint::spin_loop();
        }
        cursor
    }
}

/// Walks the rows in the order of their keys.
///
/// Rows that were in the index when the cursor was made and stay in it are all met, each once.
/// Rows that come or go meanwhile may be met or not. A cursor that came to the end stays there.
pub struct OrderedCursor {
    head: Arc<TreeHead>,
    page: [Option<RowRef>; ENTRIES_MAX],
    place: usize,
    count: usize,
    /// The leaf that the page was copied from, as it was then; none at the end.
    leaf: Option<(NodeRef, u64)>,
    /// The last row of the last page that had any.
    last: Option<RowRef>,
}

impl Iterator for OrderedCursor {
    type Item = RowRef;

    #[inline]
    fn next(&mut self) -> Option<RowRef> {
        if self.place == self.count && !self.turn() {
            return None;
        }
        let row = self.page[self.place];
        self.place += 1;
        if let Some(Some(ahead)) = self.page[..self.count].get(self.place + PREFETCH_AHEAD) {
            prefetch(ahead.0.as_ptr());
        }
        row
    }
}

impl OrderedCursor {
    /// The first page that is not empty, or the end.
    fn fill_first(&mut self, start: Bound<&[u8]>) -> Result<(), Stale> {
        self.fill_from(start)?;
        while self.count == 0 && self.fill_next()? {}
        Ok(())
    }

    /// Turns to the next page that is not empty; false at the end.
    fn turn(&mut self) -> bool {
        while self.place == self.count {
            match self.fill_next() {
                Ok(true) => {}
                Ok(false) => return false,
                Err(Stale) => self.seek_again(),
            }
        }
        true
    }

    /// The leaf has changed since it was copied: finds the way from the root once more.
    #[cold]
    fn seek_again(&mut self) {
        let last = self.last.expect("a cursor that is not at the end has met a row");
        while self.fill_from(Bound::Excluded(last.key())).is_err() {
            std::hint::spin_loop();
        }
    }

    /// Copies the leaf in which `start` lies, from there on.
    fn fill_from(&mut self, start: Bound<&[u8]>) -> Result<(), Stale> {
        let head = Arc::clone(&self.head);
        let word = head.lock.read();
        let Some(root) = head.root() else {
            head.lock.validate(word)?;
            (self.leaf, self.place, self.count) = (None, 0, 0);
            return Ok(());
        };
        interleave();
        let height = head.height();
        let common = head.common();
        let sample = head.sample().ok_or(Stale)?;
        let way = way(start, sample.key(), common);
        let mut node = root;
        let mut node_word = node.node().lock.read();
        // Before the way down: a height that is not the root's would take a leaf for an inner node.
        head.lock.validate(word)?;
        for _ in 0..height {
            let i = child_on(&way, node)?;
            let child = node.child(i);
            node.node().lock.validate(node_word)?;
            let child = child.ok_or(Stale)?;
            let child_word = child.node().lock.read();
            // Still so now: the child has not been split before its word was read.
            node.node().lock.validate(node_word)?;
            (node, node_word) = (child, child_word);
        }
        let first = entry_on(&way, node)?;
        self.copy(node, node_word, first, Some(word))
    }

    /// Copies the leaf behind the present one; false if there is none.
    fn fill_next(&mut self) -> Result<bool, Stale> {
        let Some((leaf, word)) = self.leaf else { return Ok(false) };
        let next = leaf.node().next();
        leaf.node().lock.validate(word)?;
        let Some(next) = next else {
            self.leaf = None;
            return Ok(false);
        };
        // Should the next leaf be split now, its left half is still what comes next.
        let next_word = next.node().lock.read();
        self.copy(next, next_word, 0, None)?;
        Ok(true)
    }

    /// Copies a leaf's rows from `first` on. Nothing has changed but the page if it is stale.
    fn copy(
        &mut self,
        leaf: NodeRef,
        word: u64,
        first: usize,
        head_word: Option<u64>,
    ) -> Result<(), Stale> {
        let node = leaf.node();
        let count = node.count().saturating_sub(first);
        assert!(self.place == self.count, "a page is copied over one that is done");
        for i in 0..count {
            self.page[i] = Some(node.row(first + i).ok_or(Stale)?);
            interleave();
        }
        let next = node.next();
        node.lock.validate(word)?;
        if let Some(head_word) = head_word {
            self.head.lock.validate(head_word)?;
        }
        (self.place, self.count) = (0, count);
        self.leaf = Some((leaf, word));
        if count > 0 {
            self.last = self.page[count - 1];
            let ahead = self.page[..count].iter().take(PREFETCH_AHEAD).flatten();
            ahead.for_each(|row| prefetch(row.0.as_ptr()));
        }
        if let Some(next) = next {
            next.prefetch(true);
        }
        Ok(())
    }
}

fn way<'a>(start: Bound<&'a [u8]>, sample: &[u8], common: usize) -> Way<'a> {
    let (key, or_equal) = match start {
        Bound::Unbounded => return Way::First,
        Bound::Included(key) => (key, false),
        Bound::Excluded(key) => (key, true),
    };
    let common = common.min(sample.len());
    let shared = key.len().min(common);
    match key[..shared].cmp(&sample[..shared]) {
        Ordering::Less => Way::First,
        Ordering::Greater => Way::BehindLast,
        // A key that ends before what all keys share is less than all of them.
        Ordering::Equal if shared < common => Way::First,
        Ordering::Equal => Way::Key(key, or_equal),
    }
}

/// The child to go to: the keys in it begin with the separator left of it.
#[inline]
fn child_on(way: &Way<'_>, node: NodeRef) -> Result<usize, Stale> {
    let count = node.node().count();
    match way {
        Way::First => Ok(0),
        Way::BehindLast => Ok(count),
        Way::Key(key, _) => node.node().bound(count, key, true),
    }
}

/// The first entry of a leaf to take.
#[inline]
fn entry_on(way: &Way<'_>, node: NodeRef) -> Result<usize, Stale> {
    let count = node.node().count();
    match way {
        Way::First => Ok(0),
        Way::BehindLast => Ok(count),
        Way::Key(key, or_equal) => node.node().bound(count, key, *or_equal),
    }
}
