//! Digest of records: what two zones compare to know that their memtables are equal.
//!
//! Both sides compute it from the same parts: the leader from the redo record, a follower from
//! what its memtable holds after applying it.

use super::row::RowRef;
use super::version::{VersionKind, VersionRef};
use spillway_net::limits::KEY_BYTES_MAX;
use std::mem::MaybeUninit;
use std::ptr;
use xxhash_rust::xxh3::xxh3_128;

/// Digest of the value, record number, table, key length, value length, kind.
const FIXED_BYTES: usize = 16 + 8 + 2 + 2 + 4 + 1;
const HEAD_BYTES_MAX: usize = FIXED_BYTES + KEY_BYTES_MAX;

const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize);

/// The digest of a version as the memtable holds it.
#[inline]
pub fn record_digest(table: u16, row: RowRef, version: VersionRef) -> u128 {
    record_parts_digest(table, row.key(), version.number(), version.kind(), version.value())
}

/// The digest of a record: XXH3-128 over the XXH3-128 of the value, record number, table, key
/// length, value length, kind and key, integers little-endian.
///
/// Two short hashes cost no more than one over a copy of everything, and large values are not
/// copied. The streaming form of XXH3 costs several times as much.
#[inline]
pub fn record_parts_digest(
    table: u16,
    key: &[u8],
    number: u64,
    kind: VersionKind,
    value: &[u8],
) -> u128 {
    assert!(key.len() <= KEY_BYTES_MAX, "a key above the limit");
    let value_bytes = u32::try_from(value.len()).expect("a value is far shorter than 4 GiB");
    let value_digest = xxh3_128(value).to_le_bytes();
    let mut buffer = [const { MaybeUninit::<u8>::uninit() }; HEAD_BYTES_MAX];
    let base = buffer.as_mut_ptr().cast::<u8>();
    // SAFETY: the parts are FIXED_BYTES and the key long, which fit the buffer (checked above),
    // and all of these bytes are written before the slice is made.
    unsafe {
        ptr::copy_nonoverlapping(value_digest.as_ptr(), base, 16);
        ptr::copy_nonoverlapping(number.to_le_bytes().as_ptr(), base.add(16), 8);
        ptr::copy_nonoverlapping(table.to_le_bytes().as_ptr(), base.add(24), 2);
        ptr::copy_nonoverlapping((key.len() as u16).to_le_bytes().as_ptr(), base.add(26), 2);
        ptr::copy_nonoverlapping(value_bytes.to_le_bytes().as_ptr(), base.add(28), 4);
        base.add(32).write(kind as u8);
        ptr::copy_nonoverlapping(key.as_ptr(), base.add(FIXED_BYTES), key.len());
        xxh3_128(std::slice::from_raw_parts(base, FIXED_BYTES + key.len()))
    }
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
        let mut bytes = xxh3_128(value).to_le_bytes().to_vec();
        bytes.extend(number.to_le_bytes());
        bytes.extend(table.to_le_bytes());
        bytes.extend((key.len() as u16).to_le_bytes());
        bytes.extend((value.len() as u32).to_le_bytes());
        bytes.push(kind as u8);
        bytes.extend(key);
        xxh3_128(&bytes)
    }

    proptest! {
        #[test]
        fn equals_the_definition(
            table: u16, number: u64,
            key in prop::collection::vec(any::<u8>(), 0..=KEY_BYTES_MAX),
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
