//! The content of a tablet in one number, whatever its blocks look like.

use spillway_net::ids::TableId;
use xxhash_rust::xxh3::xxh3_128;

/// The sum of a hash over every row: table, key and columns.
///
/// A sum does not depend on the order, so two zones that cut blocks or tablets differently still
/// agree on a range, and a range's digest is the sum of its parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContentDigest(pub u128);

/// Adds rows up, with a scratch buffer of its own.
#[derive(Debug)]
pub struct Digester {
    table: TableId,
    sum: u128,
    scratch: Vec<u8>,
}

impl Digester {
    /// The digest of no rows of this table.
    pub fn new(table: TableId) -> Digester {
        Digester { table, sum: 0, scratch: Vec::new() }
    }

    /// Adds one row. The key's length goes in too: without it, bytes could move between key and
    /// columns unseen.
    pub fn add(&mut self, key: &[u8], row: &[u8]) {
        self.scratch.clear();
        self.scratch.extend_from_slice(&self.table.0.to_le_bytes());
        self.scratch.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.scratch.extend_from_slice(key);
        self.scratch.extend_from_slice(row);
        self.sum = self.sum.wrapping_add(xxh3_128(&self.scratch));
    }

    /// Adds the digest of a range of rows.
    pub fn add_range(&mut self, range: ContentDigest) {
        self.sum = self.sum.wrapping_add(range.0);
    }

    /// The digest of what was added since `before`.
    pub fn since(&self, before: ContentDigest) -> ContentDigest {
        ContentDigest(self.sum.wrapping_sub(before.0))
    }

    /// The digest of all rows that were added.
    pub fn digest(&self) -> ContentDigest {
        ContentDigest(self.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(table: u16, rows: &[(&str, &str)]) -> ContentDigest {
        let mut digester = Digester::new(TableId(table));
        for (key, row) in rows {
            digester.add(key.as_bytes(), row.as_bytes());
        }
        digester.digest()
    }

    #[test]
    fn order_does_not_matter_and_content_does() {
        let one = digest(1, &[("a", "1"), ("b", "2")]);
        assert_eq!(one, digest(1, &[("b", "2"), ("a", "1")]));
        assert_ne!(one, digest(2, &[("a", "1"), ("b", "2")]));
        assert_ne!(one, digest(1, &[("a", "2"), ("b", "1")]));
        assert_ne!(digest(1, &[("ab", "c")]), digest(1, &[("a", "bc")]));
        assert_ne!(one, digest(1, &[("a", "1"), ("b", "2"), ("b", "2")]));
    }
}
