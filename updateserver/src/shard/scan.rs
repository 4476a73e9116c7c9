//! Pages of rows in key order, across all partitions of the shard.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use spillway_net::ids::TableId;
use spillway_net::message::{ArchivedScan, RowHead, ScanPage};

use crate::memtable::{OrderCursor, RowRef};

use super::store::Store;

/// Rows of one page at most: what a scan may hold the shard up with, some 100 us.
const PAGE_ROWS_MAX: u32 = 4096;
/// A page ends behind the row that fills it, bytes.
const PAGE_BYTES_CLOSE: usize = 512 << 10;

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
    /// Reads one page; `None` when the table does not exist. Rows are those the shard holds now,
    /// committed or not: the page's answer waits for what it saw.
    pub fn scan(&mut self, scan: &ArchivedScan) -> Option<ScanPage> {
        let id = TableId(scan.table.to_native());
        let (slices, arena) = self.slices_mut(id)?;
        for slice in slices {
            slice.flush_order(arena);
        }
        let table = self.table(id)?;
        let rows_max = scan.rows_max.to_native().clamp(1, PAGE_ROWS_MAX);
        let (start, end): (&[u8], &[u8]) = (&scan.start, &scan.end);
        let mut cursors: Vec<OrderCursor<'_>> =
            self.slices(table).iter().map(|slice| slice.seek(start)).collect();
        let mut heads: BinaryHeap<Reverse<Head>> = BinaryHeap::with_capacity(cursors.len());
        for (at, cursor) in cursors.iter_mut().enumerate() {
            heads.extend(cursor.next().map(|row| Reverse(Head { row, cursor: at })));
        }
        let mut page = ScanPage::default();
        let (mut scratch, mut spare) = (Vec::new(), Vec::new());
        while let Some(Reverse(head)) = heads.pop() {
            let row = head.row;
            if !end.is_empty() && row.key() >= end {
                break;
            }
            if page.rows.len() >= rows_max as usize || page.bytes.len() >= PAGE_BYTES_CLOSE {
                page.more = true;
                break;
            }
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
            }
        }
        Some(page)
    }
}
