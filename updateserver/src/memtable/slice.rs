//! The rows of one table in one partition.

use super::arena::{Arena, ArenaFull, SizeClass, block_bytes_max};
use super::hash_index::{HashIndex, SLOTS_BYTES_MAX, head_hash};
use super::ordered::{OrderedCursor, OrderedReader};
use super::row::{FLAG_KEPT, RowRef, key_hash, prefetch, row_bytes};
use super::row_order::{OrderState, RowOrder};
use super::undo::{UndoEntry, UndoLog};
use super::version::Stamp;
use super::write::drop_above;
use std::ops::Bound;

/// A slice's place in its owner's array of slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceIndex(pub u32);

/// Most that [`TableSlice::upsert_row`] takes from the arena, bytes.
pub const fn row_insert_bytes_max(key_bytes: usize) -> usize {
    block_bytes_max(row_bytes(key_bytes)) + SLOTS_BYTES_MAX
}

/// The rows of one table in one partition: a hash index over row heads in an arena.
///
/// A slice has one owner, the thread that writes. All calls for a slice take the same arena.
pub struct TableSlice {
    index: SliceIndex,
    rows: HashIndex,
    /// Boxed, since most slices are never scanned.
    order: Option<Box<RowOrder>>,
}

impl TableSlice {
    /// An empty slice. `index` is its place in the array that undo logs are rolled back on.
    pub fn new(index: SliceIndex) -> TableSlice {
        TableSlice { index, rows: HashIndex::new(), order: None }
    }

    /// How many rows there are, deleted ones included.
    pub fn rows_count(&self) -> usize {
        self.rows.rows()
    }

    /// Bytes of the hash index.
    pub fn slot_bytes(&self) -> usize {
        self.rows.slot_bytes()
    }

    /// First of three stages that bring a row into the cache, for groups of about 16 keys: run
    /// each stage for the whole group, then the lookups. This one starts on the hash slot.
    #[inline]
    pub fn prefetch_slot(&self, hash: u64) {
        self.rows.prefetch_slot(hash);
    }

    /// Second stage: reads the slot, starts on the row head.
    #[inline]
    pub fn prefetch_head(&self, hash: u64) {
        if let Some(row) = self.rows.candidate(hash) {
            prefetch(row.0.as_ptr());
        }
    }

    /// Third stage: reads the head, starts on the newest version.
    #[inline]
    pub fn prefetch_version(&self, hash: u64) {
        let Some(version) = self.rows.candidate(hash).and_then(|row| row.newest()) else { return };
        let head = version.0.as_ptr().cast::<u8>();
        prefetch(head);
        prefetch(head.wrapping_add(64));
        prefetch(head.wrapping_add(128));
    }

    /// Fourth stage, for writes: reads the newest version, starts on the next older one, which
    /// the write will probably recycle.
    #[inline]
    pub fn prefetch_older(&self, hash: u64) {
        let Some(version) = self.rows.candidate(hash).and_then(|row| row.newest()) else { return };
        if let Some(older) = version.next() {
            // All of it: a recycled block is the next to be written.
            let head = older.0.as_ptr().cast::<u8>();
            prefetch(head);
            prefetch(head.wrapping_add(64));
            prefetch(head.wrapping_add(128));
        }
    }

    /// The row with this key; `hash` is the key's [`super::key_hash`].
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<RowRef> {
        self.rows.find(hash, key)
    }

    /// The row with this key, made if there is none (then `true`). A new row has no version and
    /// must get one, or be rolled back. Room for [`row_insert_bytes_max`] must have been checked.
    #[inline]
    pub fn upsert_row(
        &mut self,
        arena: &mut Arena,
        hash: u64,
        key: &[u8],
        undo: &mut UndoLog,
    ) -> (RowRef, bool) {
        if let Some(row) = self.rows.find(hash, key) {
            return (row, false);
        }
        let block = arena.alloc(SizeClass::of(row_bytes(key.len())));
        let block = block.expect("room was checked before the transaction began");
        // SAFETY: a fresh block of the size that the key needs.
        let row = unsafe { RowRef::init(block, head_hash(hash), key) };
        let entered = self.rows.insert(arena, hash, row);
        entered.expect("room was checked before the transaction began");
        if let Some(order) = &mut self.order {
            order.row_created(row);
        }
        undo.push(UndoEntry::Created { slice: self.index, row, hash });
        (row, true)
    }

    /// Takes out a row without versions.
    pub(super) fn remove_row(&mut self, arena: &mut Arena, row: RowRef, hash: u64) {
        assert!(row.newest().is_none(), "a row with versions is not removed");
        self.rows.remove(hash, row);
        if let Some(order) = &mut self.order {
            order.row_removed(row);
        }
        if !row.has_flag(FLAG_KEPT) {
            // SAFETY: no index points to the row any more, and only the owner knew it.
            unsafe { arena.free(row.0.cast(), row.class()) };
        }
    }

    /// Drops all versions of the given rows with stamps above `stamp`, and rows that have none
    /// left. For step-down; no undo log may be open.
    pub fn rollback_above(
        &mut self,
        arena: &mut Arena,
        rows: impl IntoIterator<Item = RowRef>,
        stamp: Stamp,
    ) {
        for row in rows {
            drop_above(arena, row, stamp);
            if row.newest().is_none() {
                self.remove_row(arena, row, key_hash(row.key()));
            }
        }
    }

    /// Calls `each` for some hundred rows, in no useful order. To be begun with 0 and gone on with
    /// what it returns, `None` at the end. Rows that come or go
    /// between two calls may be met or missed; all others are met exactly once.
    pub fn visit_rows(&self, from: u32, each: impl FnMut(RowRef)) -> Option<u32> {
        self.rows.visit(from, each)
    }

    /// Enters rows into the ordered index, about `rows_max` at most. The first call, for the
    /// first scan or freeze, begins to build it; from then on new rows wait in a list. Complete
    /// means that every row of the slice is in the index.
    ///
    /// Takes memory that [`Arena::room_bytes`] leaves out of account. If even that is used up,
    /// rows go on waiting. Not to be called between a check of the room and the writes.
    pub fn flush_order(
        &mut self,
        arena: &mut Arena,
        rows_max: usize,
    ) -> Result<OrderState, ArenaFull> {
        self.order.get_or_insert_default().flush(arena, &self.rows, rows_max)
    }

    /// Whether enough rows wait that `flush_order` should be called: by the owner after each
    /// transaction or group of transactions, so that the list stays short.
    #[inline]
    pub fn order_is_due(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.is_due())
    }

    /// How far the order is; `None` until the first flush.
    pub fn order_state(&self) -> Option<OrderState> {
        self.order.as_ref().map(|order| order.state())
    }

    /// A cursor over the rows in the order of their keys. The order must be complete.
    pub fn seek(&self, start: Bound<&[u8]>) -> OrderedCursor {
        let order = self.order.as_ref().expect("a scan follows a flush of the order");
        assert!(order.state() == OrderState::Complete, "a scan follows a flush of the order");
        order.reader().seek(start)
    }

    /// A reader of the ordered index for other threads, once `flush_order` was called. It sees
    /// the rows that are in the index.
    ///
    /// # Safety
    /// The reader, its cursors and the rows from them must not be used any more when the arena
    /// is released or dropped.
    pub unsafe fn ordered_reader(&self) -> Option<OrderedReader> {
        self.order.as_ref().map(|order| order.reader())
    }

    #[cfg(test)]
    pub(super) fn segment_bytes(&self) -> usize {
        self.rows.segment_bytes()
    }

    #[cfg(test)]
    pub(super) fn spilled(&self) -> usize {
        self.rows.spilled()
    }
}
