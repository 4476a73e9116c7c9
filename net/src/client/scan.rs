//! A scan over all shards of a node, merged by key.

use std::collections::VecDeque;

use crate::client::blocking::{Client, Row};
use crate::client::error::ClientError;
use crate::client::table::{TableError, TableHandle};
use crate::key::prefix_successor;
use crate::limits::KEY_BYTES_MAX;
use crate::message::{Scan, ScanPage};
use crate::value::Value;

/// Rows asked for with one page.
const PAGE_ROWS: u32 = 1000;

/// Which rows to scan: encoded keys from `start`, included, to `end`, not included. Empty: open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanRange {
    /// First encoded key.
    pub start: Vec<u8>,
    /// First encoded key behind the range.
    pub end: Vec<u8>,
}

impl ScanRange {
    /// All rows.
    pub fn all() -> Self {
        Self::default()
    }

    /// The rows whose key begins with these values.
    pub fn prefix(table: &TableHandle, values: &[Value]) -> Result<Self, TableError> {
        let mut start = Vec::new();
        table.write_key_prefix(values, &mut start)?;
        let end = prefix_successor(&start).unwrap_or_default();
        Ok(Self { start, end })
    }
}

/// A row as it came: key, row, version.
#[derive(Debug)]
struct RawRow {
    key: Vec<u8>,
    row: Vec<u8>,
    version: u64,
}

#[derive(Debug)]
struct ShardCursor {
    rows: VecDeque<RawRow>,
    /// Where the next page begins; none if the shard has no more.
    next: Option<Vec<u8>>,
}

/// The rows of a scan in key order. Ends after the first error.
#[derive(Debug)]
pub struct ScanRows<'a> {
    client: &'a mut Client,
    table: &'a TableHandle,
    end: Vec<u8>,
    shards: Vec<ShardCursor>,
    is_done: bool,
}

impl<'a> ScanRows<'a> {
    pub(crate) fn new(client: &'a mut Client, table: &'a TableHandle, range: ScanRange) -> Self {
        let cursor = |_| ShardCursor { rows: VecDeque::new(), next: Some(range.start.clone()) };
        let shards = (0..client.router().shards()).map(cursor).collect();
        Self { client, table, end: range.end, shards, is_done: false }
    }

    fn advance(&mut self) -> Result<Option<Row>, ClientError> {
        for shard in 0..self.shards.len() {
            while self.shards[shard].rows.is_empty() && self.shards[shard].next.is_some() {
                self.fetch(shard)?;
            }
        }
        let heads = self.shards.iter_mut().filter(|shard| !shard.rows.is_empty());
        let least = heads.min_by(|a, b| a.rows[0].key.cmp(&b.rows[0].key));
        let Some(raw) = least.and_then(|shard| shard.rows.pop_front()) else { return Ok(None) };
        let values = self.table.read_row(&raw.key, &raw.row)?;
        Ok(Some(Row { values, version: raw.version }))
    }

    fn fetch(&mut self, shard: usize) -> Result<(), ClientError> {
        let start = self.shards[shard].next.take().expect("the caller looked");
        let scan =
            Scan { table: self.table.id().0, start, end: self.end.clone(), rows_max: PAGE_ROWS };
        let page = self.client.scan_page(shard as u16, &scan)?;
        let rows = read_page(&scan, &page)?;
        if page.more {
            let last = rows.back().map_or(scan.start.as_slice(), |last| &last.key);
            if page.next.as_slice() < last {
                return Err(ClientError::Protocol("a scan goes back"));
            }
            self.shards[shard].next = Some(page.next);
        }
        self.shards[shard].rows = rows;
        Ok(())
    }
}

impl Iterator for ScanRows<'_> {
    type Item = Result<Row, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let row = self.advance().transpose();
        self.is_done = !matches!(row, Some(Ok(_)));
        row
    }
}

/// Takes a page apart and checks it against its request, so that a scan always ends.
fn read_page(scan: &Scan, page: &ScanPage) -> Result<VecDeque<RawRow>, ClientError> {
    let mut rows = VecDeque::with_capacity(page.rows.len());
    let mut rest = page.bytes.as_slice();
    let mut previous: Option<&[u8]> = None;
    for head in &page.rows {
        let key = rest.split_at_checked(usize::from(head.key_length));
        let short = ClientError::Protocol("a page is shorter than its rows");
        let Some((key, row)) = key else { return Err(short) };
        let Some((row, later)) = row.split_at_checked(head.row_length as usize) else {
            return Err(short);
        };
        rest = later;
        let is_outside = key < scan.start.as_slice()
            || (!scan.end.is_empty() && key >= scan.end.as_slice())
            || key.len() > KEY_BYTES_MAX;
        if is_outside || previous.is_some_and(|previous| key <= previous) {
            return Err(ClientError::Protocol("a page holds rows outside its range or order"));
        }
        previous = Some(key);
        rows.push_back(RawRow { key: key.to_vec(), row: row.to_vec(), version: head.version });
    }
    if !rest.is_empty() {
        return Err(ClientError::Protocol("a page is longer than its rows"));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::RowHead;

    fn scan(start: &[u8], end: &[u8]) -> Scan {
        Scan { table: 1, start: start.to_vec(), end: end.to_vec(), rows_max: 10 }
    }

    fn page(keys: &[&[u8]]) -> ScanPage {
        let mut page = ScanPage::default();
        for key in keys {
            let key_length = key.len() as u16;
            page.rows.push(RowHead { key_length, row_length: 2, version: 3 });
            page.bytes.extend_from_slice(key);
            page.bytes.extend_from_slice(b"ro");
        }
        page
    }

    #[test]
    fn a_page_is_read() {
        let rows = read_page(&scan(b"a", b"c"), &page(&[b"a", b"ab", b"b"])).expect("good");
        let keys: Vec<_> = rows.iter().map(|row| row.key.as_slice()).collect();
        assert_eq!(keys, [&b"a"[..], b"ab", b"b"]);
        assert!(rows.iter().all(|row| row.row == b"ro" && row.version == 3));
    }

    #[test]
    fn hostile_pages_are_errors() {
        let wrong = |scan: &Scan, page: &ScanPage| {
            assert!(matches!(read_page(scan, page), Err(ClientError::Protocol(_))));
        };
        let all = scan(b"", b"");
        wrong(&scan(b"b", b""), &page(&[b"a"]));
        wrong(&scan(b"", b"b"), &page(&[b"b"]));
        wrong(&all, &page(&[b"b", b"b"]));
        wrong(&all, &page(&[b"b", b"a"]));
        let mut short = page(&[b"a"]);
        short.bytes.pop();
        wrong(&all, &short);
        let mut long = page(&[b"a"]);
        long.bytes.push(0);
        wrong(&all, &long);
        let mut huge = page(&[b"a"]);
        huge.rows[0].row_length = u32::MAX;
        wrong(&all, &huge);
    }
}
