//! Digest of records: what two zones compare to know that their memtables are equal.
//!
//! Both sides compute it from the same parts: the leader from the redo record, a follower from
//! what its memtable holds after applying it.

use super::row::RowRef;
use super::version::{VersionKind, VersionRef};
use std::ptr;
use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

/// Records up to this length are hashed in one go from a copy on the stack; the streaming form
/// of XXH3 costs several times the whole hash.
const COPY_BYTES_MAX: usize = 512;
/// table, key length, record number, kind, value length.
const FIXED_BYTES: usize = 2 + 2 + 8 + 1 + 4;

/// The digest of a version as the memtable holds it.
#[inline]
pub fn record_digest(table: u16, row: RowRef, version: VersionRef) -> u128 {
    record_parts_digest(table, row.key(), version.number(), version.kind(), version.value())
}

/// The digest of a record: XXH3-128 over table, key length, key, record number, kind, value
/// length and value, integers little-endian. A record above 512 bytes is hashed in two parts,
/// the value with the folded hash of what precedes it as seed.
#[inline]
pub fn record_parts_digest(
    table: u16,
    key: &[u8],
    number: u64,
    kind: VersionKind,
    value: &[u8],
) -> u128 {
    assert!(key.len() <= usize::from(u16::MAX), "a key longer than its length field");
    assert!(value.len() <= u32::MAX as usize, "a value longer than its length field");
    if FIXED_BYTES + key.len() + value.len() > COPY_BYTES_MAX {
        return large_digest(table, key, number, kind, value);
    }
    let mut buffer = [const { std::mem::MaybeUninit::<u8>::uninit() }; COPY_BYTES_MAX];
    let base = buffer.as_mut_ptr().cast::<u8>();
    // SAFETY: the parts are FIXED_BYTES, the key and the value long, which fit the buffer
    // (checked above); all bytes up to `end` are written before the slice is made.
    unsafe {
        ptr::copy_nonoverlapping(table.to_le_bytes().as_ptr(), base, 2);
        ptr::copy_nonoverlapping((key.len() as u16).to_le_bytes().as_ptr(), base.add(2), 2);
        ptr::copy_nonoverlapping(key.as_ptr(), base.add(4), key.len());
        let rest = base.add(4 + key.len());
        ptr::copy_nonoverlapping(number.to_le_bytes().as_ptr(), rest, 8);
        rest.add(8).write(kind as u8);
        ptr::copy_nonoverlapping((value.len() as u32).to_le_bytes().as_ptr(), rest.add(9), 4);
        ptr::copy_nonoverlapping(value.as_ptr(), rest.add(13), value.len());
        let end = FIXED_BYTES + key.len() + value.len();
        xxh3_128(std::slice::from_raw_parts(base, end))
    }
}

#[cold]
fn large_digest(table: u16, key: &[u8], number: u64, kind: VersionKind, value: &[u8]) -> u128 {
    let mut head = Vec::with_capacity(FIXED_BYTES + key.len());
    head.extend_from_slice(&table.to_le_bytes());
    head.extend_from_slice(&(key.len() as u16).to_le_bytes());
    head.extend_from_slice(key);
    head.extend_from_slice(&number.to_le_bytes());
    head.push(kind as u8);
    head.extend_from_slice(&(value.len() as u32).to_le_bytes());
    let seed = xxh3_128(&head);
    xxh3_128_with_seed(value, (seed >> 64) as u64 ^ seed as u64)
}

/// The digest of a fragment: the wrapping sum over its records, in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentDigest(pub u128);

impl FragmentDigest {
    /// Takes a record in.
    #[inline]
    pub fn add(&mut self, record: u128) {
        self.0 = self.0.wrapping_add(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, put together in the plainest way.
    fn reference(table: u16, key: &[u8], number: u64, kind: VersionKind, value: &[u8]) -> u128 {
        let mut bytes = table.to_le_bytes().to_vec();
        bytes.extend((key.len() as u16).to_le_bytes());
        bytes.extend(key);
        bytes.extend(number.to_le_bytes());
        bytes.push(kind as u8);
        bytes.extend((value.len() as u32).to_le_bytes());
        if bytes.len() + value.len() > 512 {
            let head = xxh3_128(&bytes);
            return xxh3_128_with_seed(value, (head >> 64) as u64 ^ head as u64);
        }
        bytes.extend(value);
        xxh3_128(&bytes)
    }

    proptest! {
        #[test]
        fn equals_the_definition(
            table: u16, number: u64,
            key in prop::collection::vec(any::<u8>(), 0..600),
            value in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            for kind in [VersionKind::Full, VersionKind::Patch, VersionKind::Delete] {
                prop_assert_eq!(
                    record_parts_digest(table, &key, number, kind, &value),
                    reference(table, &key, number, kind, &value)
                );
            }
        }
    }

    #[test]
    fn a_byte_moved_between_key_and_value_changes_it() {
        let one = record_parts_digest(1, b"ab", 7, VersionKind::Full, b"c");
        let two = record_parts_digest(1, b"a", 7, VersionKind::Full, b"bc");
        assert_ne!(one, two);
        let mut sum = FragmentDigest::default();
        sum.add(one);
        sum.add(two);
        let mut turned = FragmentDigest::default();
        turned.add(two);
        turned.add(one);
        assert_eq!(sum, turned);
    }
}
