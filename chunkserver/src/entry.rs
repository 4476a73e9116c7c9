//! What a block holds for a key: a row version, and the columns or the fact that they are gone.
//!
//! ```text
//! 0    8   row version * 2, + 1 if the row was deleted
//! 8        the columns; none if it was deleted
//! ```
//!
//! Little-endian. The row version stays with the row in tablets too: clients check it, and two
//! zones that disagree about it disagree.

use crate::error::TabletError;
use crate::limits::ENTRY_HEAD_BYTES;

/// Row versions are below this.
pub const ROW_VERSION_LIMIT: u64 = 1 << 62;

/// A row as of some moment, where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The row version: the running number of the change in its partition.
    pub version: u64,
    /// The columns; `None` if the row was deleted.
    pub row: Option<&'a [u8]>,
}

/// A row as of some moment, with memory of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryOwned {
    /// The row version.
    pub version: u64,
    /// The columns; `None` if the row was deleted.
    pub row: Option<Vec<u8>>,
}

impl<'a> Entry<'a> {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.version < ROW_VERSION_LIMIT, "row version {}", self.version);
        let head = self.version << 1 | u64::from(self.row.is_none());
        out.extend_from_slice(&head.to_le_bytes());
        out.extend_from_slice(self.row.unwrap_or_default());
    }

    /// Reads an entry from the bytes that a block holds for a key.
    pub fn decode(bytes: &'a [u8]) -> Result<Entry<'a>, TabletError> {
        let Some((head, row)) = bytes.split_first_chunk::<ENTRY_HEAD_BYTES>() else {
            return Err(TabletError::Malformed("an entry without its head"));
        };
        let head = u64::from_le_bytes(*head);
        let (version, is_deleted) = (head >> 1, head & 1 == 1);
        if version >= ROW_VERSION_LIMIT || (is_deleted && !row.is_empty()) {
            return Err(TabletError::Malformed("head of an entry"));
        }
        Ok(Entry { version, row: (!is_deleted).then_some(row) })
    }

    /// A copy.
    pub fn to_owned(self) -> EntryOwned {
        EntryOwned { version: self.version, row: self.row.map(<[u8]>::to_vec) }
    }
}

impl EntryOwned {
    /// The same, where it lies.
    pub fn as_entry(&self) -> Entry<'_> {
        Entry { version: self.version, row: self.row.as_deref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back() {
        let rows: [Option<&[u8]>; 3] = [None, Some(b""), Some(b"columns")];
        for version in [0, 1, ROW_VERSION_LIMIT - 1] {
            for row in rows {
                let (entry, mut bytes) = (Entry { version, row }, Vec::new());
                entry.encode(&mut bytes);
                assert_eq!(Entry::decode(&bytes), Ok(entry));
                assert_eq!(entry.to_owned().as_entry(), entry);
            }
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        assert!(Entry::decode(&[]).is_err());
        assert!(Entry::decode(&[0; 7]).is_err());
        assert!(Entry::decode(&[0xff; 8]).is_err(), "a version beyond the limit");
        assert!(Entry::decode(&[1, 0, 0, 0, 0, 0, 0, 0, 9]).is_err(), "columns of a deleted row");
    }
}
