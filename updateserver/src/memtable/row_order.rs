//! When and how rows get into the ordered index of a slice.

use super::arena::{Arena, ArenaFull};
use super::hash_index::HashIndex;
use super::ordered::{OrderedReader, OrderedTree};
use super::row::{FLAG_ORDERED, RowRef};

/// Rows that may wait before they should be entered.
const PENDING_ROWS_MAX: usize = 512;

/// How far the ordered index of a slice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderState {
    /// All rows are in it.
    Complete,
    /// Some rows wait.
    Behind,
}

/// The ordered index with the rows that wait for it.
///
/// Rows enter when they are flushed, also those of transactions that may still be undone; undoing
/// takes them out again.
pub(super) struct RowOrder {
    tree: OrderedTree,
    pending: Vec<RowRef>,
    /// While the index is built: rows with this hash or a higher one have not been collected.
    build_from: Option<u32>,
}

impl Default for RowOrder {
    fn default() -> RowOrder {
        RowOrder { tree: OrderedTree::new(), pending: Vec::new(), build_from: Some(0) }
    }
}

impl RowOrder {
    #[inline]
    pub(super) fn row_created(&mut self, row: RowRef) {
        if self.is_collected(row) {
            self.pending.push(row);
        }
    }

    fn is_collected(&self, row: RowRef) -> bool {
        self.build_from.is_none_or(|from| row.hash() < from)
    }

    pub(super) fn row_removed(&mut self, row: RowRef) {
        if row.has_flag(FLAG_ORDERED) {
            self.tree.remove(row);
        } else if self.is_collected(row) {
            let place = self.pending.iter().rposition(|pending| *pending == row);
            self.pending.swap_remove(place.expect("a row is in the index or waits for it"));
        }
    }

    pub(super) fn is_due(&self) -> bool {
        self.pending.len() >= PENDING_ROWS_MAX
    }

    pub(super) fn state(&self) -> OrderState {
        if self.pending.is_empty() && self.build_from.is_none() {
            OrderState::Complete
        } else {
            OrderState::Behind
        }
    }

    pub(super) fn reader(&self) -> OrderedReader {
        self.tree.reader()
    }

    pub(super) fn flush(
        &mut self,
        arena: &mut Arena,
        rows: &HashIndex,
        rows_max: usize,
    ) -> Result<OrderState, ArenaFull> {
        while let Some(from) = self.build_from.filter(|_| self.pending.len() < rows_max) {
            self.build_from = rows.visit(from, |row| self.pending.push(row));
        }
        self.tree.insert(arena, &mut self.pending)?;
        self.pending.shrink_to(2 * PENDING_ROWS_MAX);
        let state = self.state();
        assert!(
            state == OrderState::Behind || self.tree.rows() == rows.rows(),
            "a complete order has all rows"
        );
        Ok(state)
    }
}
