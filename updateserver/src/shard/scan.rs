//! Pages of rows in key order, across all partitions of the shard.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Bound;

use spillway_net::ids::TableId;
use spillway_net::message::{ArchivedScan, RowHead, ScanPage};

use crate::memtable::{ArenaFull, OrderState, OrderedCursor, RowRef};

use super::store::Store;

/// Rows of one page at most: with their look-ups some hundred microseconds.
const PAGE_ROWS_MAX: u32 = 4096;
/// Rows of one page that are looked at, deleted ones included.
const PAGE_VISITED_MAX: u32 = 2 * PAGE_ROWS_MAX;
/// Rows that one page may enter into the order of a table that was not scanned before: some
/// milliseconds.
const PAGE_ORDER_ROWS_MAX: usize = 32 << 10;
/// A page ends behind the row that fills it, bytes.
const PAGE_BYTES_CLOSE: usize = 512 << 10;

/// Rows that one keeping-up enters into the order of one slice.
const ORDER_ROWS_MAX: usize = 512;

/// A cursor's next row, ordered by key for the merge.
struct Head {
    row: RowRef,
    cursor: usize,
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.row.key() == other.row.key()
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.row.key().cmp(other.row.key())
    }
}

impl Store {
    /// Enters some of the waiting rows of the open partitions into the order of tables that are
    /// scanned, so that no list of them grows long. Called between transactions.
    pub fn order_keep_up(&mut self) {
        for id in &self.ordered {
            let Some(base) = self.table(*id).map(|table| table.slice_base) else { continue };
            for local in &self.open {
                let slice = &mut self.slices[base + usize::from(*local)];
                if slice.order_is_due() && !spillway_runtime::fault_point!(OrderKeptWaiting) {
                    let kept_up = slice.flush_order(&mut self.arena, ORDER_ROWS_MAX);
                    if kept_up.is_err() {
                        // Out of memory: the rows go on waiting, and the next scan says so.
                        return;
                    }
                }
            }
        }
    }

    /// Brings the order of a table's rows nearer to complete. The first scan of a table builds it,
    /// some rows per page, so that no page stalls the shard. Returns whether it is complete.
    fn order_complete(&mut self, id: TableId) -> Result<bool, ArenaFull> {
        if !self.ordered.contains(&id) {
            self.ordered.push(id);
        }
        let Some((slices, arena)) = self.slices_mut(id) else { return Ok(true) };
        let mut room = PAGE_ORDER_ROWS_MAX;
        for slice in slices {
            if slice.order_state() == Some(OrderState::Complete) {
                continue;
            }
            let rows = slice.rows_count();
            if slice.flush_order(arena, room)? != OrderState::Complete {
                return Ok(false);
            }
            room = room.saturating_sub(rows);
            if room == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads one page; `None` when the table does not exist. Rows are those the shard holds now,
    /// committed or not: the page's answer waits for what it saw.
    pub fn scan(&mut self, scan: &ArchivedScan) -> Result<Option<ScanPage>, ArenaFull> {
        let id = TableId(scan.table.to_native());
        if self.table(id).is_none() {
            return Ok(None);
        }
        let mut page = ScanPage::default();
        if !self.order_complete(id)? || spillway_runtime::fault_point!(ScanOrderBehind) {
            page.more = true;
            page.next.extend_from_slice(&scan.start);
            return Ok(Some(page));
        }
        let table = self.table(id).expect("looked up above");
        let rows_max = scan.rows_max.to_native().clamp(1, PAGE_ROWS_MAX) as usize;
        let (start, end): (&[u8], &[u8]) = (&scan.start, &scan.end);
        let mut cursors: Vec<OrderedCursor> =
            self.slices(table).iter().map(|slice| slice.seek(Bound::Included(start))).collect();
        let mut heads: BinaryHeap<Reverse<Head>> = BinaryHeap::with_capacity(cursors.len());
        for (at, cursor) in cursors.iter_mut().enumerate() {
            heads.extend(cursor.next().map(|row| Reverse(Head { row, cursor: at })));
        }
        let (mut scratch, mut spare) = (Vec::new(), Vec::new());
        let mut visited = 0;
        while let Some(Reverse(head)) = heads.pop() {
            let row = head.row;
            if !end.is_empty() && row.key() >= end {
                break;
            }
            let is_full = page.rows.len() >= rows_max
                || page.bytes.len() >= PAGE_BYTES_CLOSE
                || (!page.rows.is_empty() && spillway_runtime::fault_point!(ScanPageShort));
            if is_full || visited >= PAGE_VISITED_MAX {
                page.more = true;
                page.next.extend_from_slice(row.key());
                break;
            }
            visited += 1;
            if let Some(next) = cursors[head.cursor].next() {
                heads.push(Reverse(Head { row: next, cursor: head.cursor }));
            }
            if let Some((value, version)) = Self::resolve(table, row, &mut scratch, &mut spare) {
                page.rows.push(RowHead {
                    key_length: row.key().len() as u16,
                    row_length: value.len() as u32,
                    version,
                });
                page.bytes.extend_from_slice(row.key());
                page.bytes.extend_from_slice(value);
            } else if spillway_runtime::planted!(ScanSkipsBehindDeleted) {
                heads.pop();
            }
        }
        Ok(Some(page))
    }
}
