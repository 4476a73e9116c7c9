//! A block: rows in key order, found by binary search, used where they lie.
//!
//! ```text
//! offset          bytes        field
//! 0               4            rows: their number, at least 1
//! 4               4            start of row 0, counted from the begin of the block
//! 8               4 * rows     end of row i, which is the start of row i + 1
//! 8 + 4 * rows    -            rows: key length (2), key, columns up to the row's end
//! ```
//!
//! All numbers are little-endian. The first row begins where the offsets end, and the last row ends
//! where the block ends. The checksum is XXH3-64 over the whole block as it is stored; the parent
//! keeps it. It may be stored compressed ([`crate::codec`]).

use crate::error::BlockError;
use crate::limits::{BLOCK_BYTES_MAX, BLOCK_OVERHEAD_BYTES, BLOCK_ROW_OVERHEAD_BYTES};
use std::cmp::Ordering;
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

/// The checksum that the parent keeps.
pub fn checksum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// Collects rows and lays them out as one block.
///
/// The caller feeds keys in rising order: the writer of the tablet checks that across blocks.
#[derive(Debug, Default)]
pub struct BlockBuilder {
    /// End of each row in `cells`.
    ends: Vec<u32>,
    cells: Vec<u8>,
}

impl BlockBuilder {
    /// Adds a row behind those that are there.
    pub fn push(&mut self, key: &[u8], row: &[u8]) {
        let key_bytes = u16::try_from(key.len()).expect("the writer limits keys");
        assert!(key_bytes > 0, "a key is never empty");
        self.cells.extend_from_slice(&key_bytes.to_le_bytes());
        self.cells.extend_from_slice(key);
        self.cells.extend_from_slice(row);
        assert!(self.bytes() <= BLOCK_BYTES_MAX, "the writer closes blocks before they overflow");
        self.ends.push(self.cells.len() as u32);
    }

    /// Rows that are in it.
    pub fn rows(&self) -> u32 {
        self.ends.len() as u32
    }

    /// Length of the block if it were laid out now.
    pub fn bytes(&self) -> usize {
        BLOCK_OVERHEAD_BYTES + 4 * self.ends.len() + self.cells.len()
    }

    /// Length of the block after one more row.
    pub fn bytes_with(&self, key: &[u8], row: &[u8]) -> usize {
        self.bytes() + BLOCK_ROW_OVERHEAD_BYTES + key.len() + row.len()
    }

    /// Lays the block out at the end of `out`, and begins the next one.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        assert!(!self.ends.is_empty(), "a block holds at least one row");
        let begin = out.len();
        let cells_start = (BLOCK_OVERHEAD_BYTES + 4 * self.ends.len()) as u32;
        out.extend_from_slice(&self.rows().to_le_bytes());
        out.extend_from_slice(&cells_start.to_le_bytes());
        for end in &self.ends {
            out.extend_from_slice(&(cells_start + end).to_le_bytes());
        }
        out.extend_from_slice(&self.cells);
        assert_eq!(out.len() - begin, self.bytes(), "the length announced is the length written");
        self.ends.clear();
        self.cells.clear();
    }
}

/// A block whose checksum and lengths were checked: every row lies inside.
#[derive(Debug, Clone, Copy)]
pub struct BlockView<'a> {
    bytes: &'a [u8],
    rows: u32,
}

/// One row where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Its key, never empty.
    pub key: &'a [u8],
    /// Its columns.
    pub row: &'a [u8],
}

impl<'a> BlockView<'a> {
    /// Checks `bytes` against the checksum that the parent keeps, and all lengths inside.
    pub fn open(bytes: &'a [u8], expected: u64) -> Result<BlockView<'a>, BlockError> {
        let found = checksum(bytes);
        if found != expected {
            return Err(BlockError::Checksum { expected, found });
        }
        BlockView::parse(bytes)
    }

    /// Checks all lengths inside.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<BlockView<'a>, BlockError> {
        let malformed = |what| BlockError::Malformed { bytes: bytes.len(), what };
        if bytes.len() < BLOCK_OVERHEAD_BYTES || bytes.len() > BLOCK_BYTES_MAX {
            return Err(malformed("length beyond the limits"));
        }
        let rows = number(bytes, 0);
        let cells_start = BLOCK_OVERHEAD_BYTES as u64 + 4 * u64::from(rows);
        if rows == 0 || cells_start > bytes.len() as u64 {
            return Err(malformed("number of rows"));
        }
        let view = BlockView { bytes, rows };
        if u64::from(view.offset(0)) != cells_start {
            return Err(malformed("start of the first row"));
        }
        if view.offset(rows) as usize != bytes.len() {
            return Err(malformed("end of the last row"));
        }
        let mut start = cells_start as usize;
        for index in 0..rows {
            let end = view.offset(index + 1) as usize;
            if end < start + 2 || end > bytes.len() {
                return Err(malformed("length of a row"));
            }
            let key_bytes = usize::from(short(bytes, start));
            if key_bytes == 0 || start + 2 + key_bytes > end {
                return Err(malformed("length of a key"));
            }
            start = end;
        }
        Ok(view)
    }

    /// A view of bytes that were checked before, and have this many rows.
    pub(crate) fn checked_before(bytes: &'a [u8], rows: u32) -> BlockView<'a> {
        assert_eq!(number(bytes, 0), rows, "not the block that was checked");
        BlockView { bytes, rows }
    }

    /// Number of rows: at least 1.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// The row at `index`, which must be below [`BlockView::rows`].
    pub fn row(&self, index: u32) -> Row<'a> {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        let (start, end) = (self.offset(index) as usize, self.offset(index + 1) as usize);
        let key_end = start + 2 + usize::from(short(self.bytes, start));
        Row { key: &self.bytes[start + 2..key_end], row: &self.bytes[key_end..end] }
    }

    /// The columns of the row with this key.
    pub fn get(&self, key: &[u8]) -> Option<&'a [u8]> {
        let index = self.lower_bound(key);
        if index == self.rows {
            return None;
        }
        let row = self.row(index);
        (row.key == key).then_some(row.row)
    }

    /// Rows from the first one whose key is `key` or greater.
    pub fn seek(&self, key: &[u8]) -> Rows<'a> {
        Rows { block: *self, range: self.lower_bound(key)..self.rows }
    }

    /// All rows in order.
    pub fn iter(&self) -> Rows<'a> {
        Rows { block: *self, range: 0..self.rows }
    }

    /// The first row whose key is `key` or greater; the number of rows if there is none.
    pub fn lower_bound(&self, key: &[u8]) -> u32 {
        let (mut low, mut high) = (0, self.rows);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.row(middle).key.cmp(key) {
                Ordering::Less => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }

    /// Start of row `index`; for the number of rows the end of the last one.
    fn offset(&self, index: u32) -> u32 {
        number(self.bytes, 4 + 4 * index as usize)
    }
}

/// Rows of a block in order.
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    block: BlockView<'a>,
    range: Range<u32>,
}

impl<'a> Iterator for Rows<'a> {
    type Item = Row<'a>;

    fn next(&mut self) -> Option<Row<'a>> {
        self.range.next().map(|index| self.block.row(index))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.range.size_hint()
    }
}

impl DoubleEndedIterator for Rows<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.range.next_back().map(|index| self.block.row(index))
    }
}

impl ExactSizeIterator for Rows<'_> {}

fn number(bytes: &[u8], at: usize) -> u32 {
    let four = bytes[at..at + 4].try_into().expect("a slice of four bytes");
    u32::from_le_bytes(four)
}

fn short(bytes: &[u8], at: usize) -> u16 {
    let two = bytes[at..at + 2].try_into().expect("a slice of two bytes");
    u16::from_le_bytes(two)
}
