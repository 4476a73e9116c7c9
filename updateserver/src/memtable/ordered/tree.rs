//! The writer's side of the ordered index.

use super::super::arena::{Arena, ArenaFull};
use super::super::row::{FLAG_KEPT, FLAG_ORDERED, RowHead, RowRef, prefetch};
use super::cursor::OrderedReader;
use super::node::{ENTRIES_MAX, Node, NodeRef, SequenceLock, common_bytes, prefix_at};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Keys whose ways through the tree are fetched together.
const PREFETCH_GROUP: usize = 16;
/// Where inner nodes at the right edge are split: keys that rise leave them well filled.
const SPLIT_RIGHT_EDGE: usize = ENTRIES_MAX - 6;

/// Entries of the sort buffer that are kept between two inserts.
const SORTED_KEPT_MAX: usize = 1024;

/// Where readers begin. The lock covers the fields here.
#[derive(Default)]
pub(super) struct TreeHead {
    pub(super) lock: SequenceLock,
    root: AtomicPtr<Node>,
    /// Levels above the leaves.
    height: AtomicU32,
    /// All keys that ever were in the tree begin with this many bytes of the sample's key.
    common: AtomicU32,
    sample: AtomicPtr<RowHead>,
}

impl TreeHead {
    pub(super) fn root(&self) -> Option<NodeRef> {
        NonNull::new(self.root.load(Ordering::Acquire)).map(NodeRef)
    }

    pub(super) fn height(&self) -> u32 {
        self.height.load(Ordering::Relaxed)
    }

    pub(super) fn common(&self) -> usize {
        self.common.load(Ordering::Relaxed) as usize
    }

    pub(super) fn sample(&self) -> Option<RowRef> {
        NonNull::new(self.sample.load(Ordering::Acquire)).map(RowRef)
    }
}

const NEVER_STALE: &str = "the writer reads no half-made change";

/// A B+tree of rows by key. One writer; nodes come from the arena and are never freed.
pub(in super::super) struct OrderedTree {
    head: Arc<TreeHead>,
    rows: usize,
    sorted: Vec<(u64, RowRef)>,
}

impl OrderedTree {
    pub(in super::super) fn new() -> OrderedTree {
        OrderedTree { head: Arc::default(), rows: 0, sorted: Vec::new() }
    }

    pub(in super::super) fn rows(&self) -> usize {
        self.rows
    }

    pub(in super::super) fn reader(&self) -> OrderedReader {
        OrderedReader::new(Arc::clone(&self.head))
    }

    /// Enters rows whose keys are not in the tree and takes them off the list. If the arena
    /// fills up, those that did not get in stay on the list.
    pub(in super::super) fn insert(
        &mut self,
        arena: &mut Arena,
        rows: &mut Vec<RowRef>,
    ) -> Result<(), ArenaFull> {
        if rows.is_empty() {
            return Ok(());
        }
        self.narrow_common(rows);
        let mut sorted = std::mem::take(&mut self.sorted);
        let common = self.head.common();
        sorted.clear();
        sorted.extend(rows.iter().map(|row| (prefix_at(row.key(), common), *row)));
        sorted.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.key().cmp(b.1.key())));
        let (done, result) = self.insert_sorted(arena, &sorted);
        self.rows += done;
        rows.clear();
        rows.extend(sorted[done..].iter().map(|entry| entry.1));
        sorted.clear();
        sorted.shrink_to(SORTED_KEPT_MAX);
        self.sorted = sorted;
        result
    }

    fn insert_sorted(
        &mut self,
        arena: &mut Arena,
        sorted: &[(u64, RowRef)],
    ) -> (usize, Result<(), ArenaFull>) {
        let mut done = 0;
        let mut warm = 0;
        while done < sorted.len() {
            if done >= warm {
                warm = (done + PREFETCH_GROUP).min(sorted.len());
                self.prefetch_ways(&sorted[done..warm]);
            }
            let leaf = match self.leaf_for(arena, sorted[done].1) {
                Ok(leaf) => leaf,
                Err(full) => return (done, Err(full)),
            };
            let run = run_length(leaf.node(), &sorted[done..]);
            insert_run(leaf.node(), &sorted[done..done + run]);
            done += run;
        }
        (done, Ok(()))
    }

    /// Walks a group of keys down the tree, a level at a time for all, so that the misses of a
    /// level overlap: first on the nodes, then on the rows that decide ties.
    fn prefetch_ways(&self, group: &[(u64, RowRef)]) {
        assert!(group.len() <= PREFETCH_GROUP, "a prefetch group of bounded size");
        let Some(root) = self.head.root() else { return };
        let mut nodes = [root; PREFETCH_GROUP];
        let mut firsts = [0; PREFETCH_GROUP];
        let height = self.head.height();
        for level in 0..=height {
            for ((first, node), (_, row)) in firsts.iter_mut().zip(&nodes).zip(group) {
                *first = node.node().prefetch_bound(row.key());
            }
            if level == height {
                return;
            }
            let mut last = None;
            for ((first, node), (_, row)) in firsts.iter().zip(&mut nodes).zip(group) {
                let count = node.node().count();
                let i = node.node().bound_from(*first, count, row.key(), true);
                let i = i.expect(NEVER_STALE);
                *node = node.child(i).expect("an inner node has all its children");
                if last != Some(*node) {
                    node.prefetch(level + 1 == height);
                    last = Some(*node);
                }
            }
        }
    }

    /// The leaf into which the row belongs, with room for at least one entry.
    fn leaf_for(&mut self, arena: &mut Arena, row: RowRef) -> Result<NodeRef, ArenaFull> {
        let mut node = match self.head.root() {
            Some(root) if root.node().count() < ENTRIES_MAX => root,
            Some(root) => self.raise(arena, root)?,
            None => {
                let leaf = NodeRef::new_leaf(arena)?;
                self.set_root(leaf, 0);
                leaf
            }
        };
        for level in (0..self.head.height()).rev() {
            let (i, child) = child_for(node, row.key());
            if child.node().count() < ENTRIES_MAX {
                node = child;
                continue;
            }
            self.split(arena, node, i, child, level == 0, row)?;
            node = child_for(node, row.key()).1;
        }
        assert!(node.node().count() < ENTRIES_MAX, "full nodes are split on the way down");
        Ok(node)
    }

    fn set_root(&self, root: NodeRef, height: u32) {
        self.head.lock.write_begin();
        self.head.root.store(root.0.as_ptr(), Ordering::Release);
        self.head.height.store(height, Ordering::Relaxed);
        self.head.lock.write_end();
    }

    /// Puts a new root above the full one.
    fn raise(&mut self, arena: &mut Arena, old: NodeRef) -> Result<NodeRef, ArenaFull> {
        let root = NodeRef::new_inner(arena)?;
        root.set_child(0, old);
        self.set_root(root, self.head.height() + 1);
        Ok(root)
    }

    /// Splits a full child of a node that is not full, before `row` goes into it.
    fn split(
        &self,
        arena: &mut Arena,
        parent: NodeRef,
        i: usize,
        child: NodeRef,
        is_leaf: bool,
        row: RowRef,
    ) -> Result<(), ArenaFull> {
        let right = if is_leaf { NodeRef::new_leaf(arena) } else { NodeRef::new_inner(arena) }?;
        let left = child.node();
        let count = left.count();
        assert!(count == ENTRIES_MAX, "only full nodes are split");
        let at_edge = left.high().is_none();
        let (middle, separator) = if is_leaf {
            let last = left.row(count - 1).expect("an entry has a row");
            if at_edge && last.key() < row.key() {
                // Rising keys: the full leaf stays full. The row is a fence before it is an
                // entry; nothing can fail between the two.
                (count, row)
            } else {
                (count / 2, left.row(count / 2).expect("an entry has a row"))
            }
        } else {
            let middle =
                if at_edge && i == parent.node().count() { SPLIT_RIGHT_EDGE } else { count / 2 };
            (middle, left.row(middle).expect("an entry has a row"))
        };
        self.fill_right(child, right, middle, separator, is_leaf);
        parent.node().lock.write_begin();
        left.lock.write_begin();
        left.set_count(middle);
        left.set_bounds(left.low(), Some(separator));
        left.set_next(Some(right));
        if left.has_ties() && self.shared_bytes(left) > left.skip() {
            left.encode(self.shared_bytes(left));
        }
        self.insert_child(parent, i, separator, right);
        left.lock.write_end();
        parent.node().lock.write_end();
        Ok(())
    }

    /// Fills a node that nobody knows yet with what lies right of the separator.
    fn fill_right(
        &self,
        child: NodeRef,
        right: NodeRef,
        middle: usize,
        separator: RowRef,
        is_leaf: bool,
    ) {
        let (from, to) = (child.node(), right.node());
        let count = from.count();
        let first = if is_leaf { middle } else { middle + 1 };
        for i in first..count {
            from.copy_entry(i, to, i - first);
        }
        if !is_leaf {
            for i in first..=count {
                let grandchild = child.child(i).expect("an inner node has all its children");
                right.set_child(i - first, grandchild);
            }
        }
        to.set_count(count - first);
        to.set_bounds(Some(separator), from.high());
        to.set_next(from.next());
        to.set_skip(from.skip());
        if to.has_ties() && self.shared_bytes(to) > to.skip() {
            to.encode(self.shared_bytes(to));
        }
    }

    /// Puts a child right of child `i`.
    fn insert_child(&self, parent: NodeRef, i: usize, separator: RowRef, right: NodeRef) {
        let node = parent.node();
        let count = node.count();
        assert!(i <= count && count < ENTRIES_MAX, "the parent has room");
        for k in (i..count).rev() {
            node.copy_entry(k, node, k + 1);
            parent.set_child(k + 2, parent.child(k + 1).expect("a child has an address"));
        }
        let prefix = prefix_at(separator.key(), node.skip());
        node.set(i, prefix, separator);
        parent.set_child(i + 1, right);
        node.set_count(count + 1);
        let ties =
            (i > 0 && node.prefix(i - 1) == prefix) || (i < count && node.prefix(i + 1) == prefix);
        if ties && self.shared_bytes(node) > node.skip() {
            node.encode(self.shared_bytes(node));
        }
    }

    /// Bytes that all keys share that belong into the node.
    fn shared_bytes(&self, node: &Node) -> usize {
        match (node.low(), node.high()) {
            (Some(low), Some(high)) => common_bytes(low.key(), high.key()),
            _ => self.head.common(),
        }
    }

    /// Brings `common` down to what the new keys share with all others. Nodes at the edges, whose
    /// keys share no more than that, may have left out more.
    fn narrow_common(&self, rows: &[RowRef]) {
        let Some(sample) = self.head.sample().or(rows.first().copied()) else { return };
        let is_first = self.head.sample().is_none();
        let before = if is_first { sample.key().len() } else { self.head.common() };
        let mut common = before;
        for (i, row) in rows.iter().enumerate() {
            if let Some(ahead) = rows.get(i + PREFETCH_GROUP) {
                prefetch(ahead.0.as_ptr());
            }
            let shares = row.key().get(..common) == sample.key().get(..common);
            if !shares {
                common = common_bytes(row.key(), sample.key());
            }
        }
        if common == before && !is_first {
            return;
        }
        sample.set_flag(FLAG_KEPT);
        self.head.lock.write_begin();
        self.head.sample.store(sample.0.as_ptr(), Ordering::Release);
        self.head.common.store(common as u32, Ordering::Relaxed);
        for right_edge in [false, true] {
            let mut at = self.head.root();
            for level in (0..=self.head.height()).rev() {
                let Some(node) = at else { break };
                narrow_node(node.node(), common);
                let last = if right_edge { node.node().count() } else { 0 };
                at = if level > 0 { node.child(last) } else { None };
            }
        }
        self.head.lock.write_end();
    }

    /// Takes a row out that is in the tree. Nodes are not joined: undone inserts are few.
    pub(in super::super) fn remove(&mut self, row: RowRef) {
        let mut leaf = self.head.root().expect("a row to remove is in the tree");
        for _ in 0..self.head.height() {
            leaf = child_for(leaf, row.key()).1;
        }
        let node = leaf.node();
        let count = node.count();
        let place = node.bound(count, row.key(), false).expect(NEVER_STALE);
        assert!(place < count && node.row(place) == Some(row), "a row to remove is in the tree");
        node.lock.write_begin();
        for i in place + 1..count {
            node.copy_entry(i, node, i - 1);
        }
        node.set_count(count - 1);
        node.lock.write_end();
        self.rows -= 1;
    }
}

#[cfg(test)]
impl OrderedTree {
    /// Checks what the tree relies on, in every node.
    pub(super) fn check(&self) {
        let Some(root) = self.head.root() else { return };
        let mut entries = 0;
        let mut level_nodes = vec![root];
        for level in (0..=self.head.height()).rev() {
            let mut below = Vec::new();
            for (n, at) in level_nodes.iter().enumerate() {
                let node = at.node();
                let next = level_nodes.get(n + 1).copied();
                assert!(node.next() == next);
                assert!(node.high() == next.and_then(|next| next.node().low()));
                assert!(node.skip() <= self.shared_bytes(node));
                let rows: Vec<RowRef> = (0..node.count()).map(|i| node.row(i).unwrap()).collect();
                assert!(rows.is_sorted_by(|a, b| a.key() < b.key()));
                for (i, row) in rows.iter().enumerate() {
                    assert!(node.low().is_none_or(|low| low.key() <= row.key()));
                    assert!(node.high().is_none_or(|high| row.key() < high.key()));
                    assert_eq!(node.prefix(i), prefix_at(row.key(), node.skip()));
                }
                if level == 0 {
                    entries += rows.len();
                    continue;
                }
                for i in 0..=node.count() {
                    let child = at.child(i).unwrap();
                    let low = if i == 0 { node.low() } else { node.row(i - 1) };
                    assert!(child.node().low() == low);
                    below.push(child);
                }
            }
            level_nodes = below;
        }
        assert_eq!(entries, self.rows);
    }

    /// Entries of all nodes whose neighbours have the same prefix.
    pub(super) fn ties(&self) -> usize {
        let mut at = self.head.root();
        for _ in 0..self.head.height() {
            at = at.and_then(|node| node.child(0));
        }
        let mut ties = 0;
        while let Some(leaf) = at {
            let node = leaf.node();
            ties += (1..node.count()).filter(|i| node.prefix(i - 1) == node.prefix(*i)).count();
            at = node.next();
        }
        ties
    }
}

fn narrow_node(node: &Node, common: usize) {
    if node.skip() > common {
        node.lock.write_begin();
        node.encode(common);
        node.lock.write_end();
    }
}

#[inline]
fn child_for(node: NodeRef, key: &[u8]) -> (usize, NodeRef) {
    let i = node.node().bound(node.node().count(), key, true).expect(NEVER_STALE);
    (i, node.child(i).expect("an inner node has all its children"))
}

/// How many of the sorted rows belong into the leaf and fit it. The first does.
#[inline]
fn run_length(leaf: &Node, sorted: &[(u64, RowRef)]) -> usize {
    let room = ENTRIES_MAX - leaf.count();
    let most = room.min(sorted.len());
    let Some(high) = leaf.high() else { return most };
    let high = high.key();
    1 + sorted[1..most].iter().take_while(|(_, row)| row.key() < high).count()
}

/// Merges sorted rows into a leaf, from the back, so that every entry moves once.
fn insert_run(leaf: &Node, run: &[(u64, RowRef)]) {
    let count = leaf.count();
    let skip = leaf.skip();
    assert!(!run.is_empty() && count + run.len() <= ENTRIES_MAX, "the leaf has room");
    leaf.lock.write_begin();
    let mut end = count;
    for (i, (_, row)) in run.iter().enumerate().rev() {
        let place = leaf.bound(end, row.key(), false).expect(NEVER_STALE);
        for k in (place..end).rev() {
            leaf.copy_entry(k, leaf, k + i + 1);
        }
        leaf.set(place + i, prefix_at(row.key(), skip), *row);
        row.set_flag(FLAG_ORDERED | FLAG_KEPT);
        end = place;
    }
    leaf.set_count(count + run.len());
    leaf.lock.write_end();
}

impl Drop for OrderedTree {
    fn drop(&mut self) {
        // A reader that begins after this finds an empty tree.
        self.head.lock.write_begin();
        self.head.root.store(ptr::null_mut(), Ordering::Release);
        self.head.lock.write_end();
    }
}
