//! Entry points for fuzzers: bytes from anybody against keys, rows and patches.
//!
//! Each takes any input, must not panic, and asserts that what is accepted has exactly one
//! encoding: decoding it and encoding the values again gives the same bytes.

#![deny(clippy::indexing_slicing)]

use std::sync::LazyLock;

use crate::key::{key_prefix_validate, key_validate, key_values, key_write, partition_of};
use crate::layout::TableLayout;
use crate::patch::{PatchReader, patch_apply, patch_equals, patch_merge, patch_validate};
use crate::patch::{PatchWriter, patch_apply_fixed};
use crate::row::{RowView, row_validate, row_write};
use crate::schema::TableDefinition;
use crate::value::{Value, ValueRef};

/// Tables that between them have every type in every place; the first byte of an input picks one.
pub const TABLES: [&str; 6] = [
    "a(branch int8, id int8, balance int8, note bytea, primary key (branch, id), \
     partition key (branch))",
    "b(k bool, n int2, f float8, primary key (k, n, f), partition key (k))",
    "c(t text, b bytea, i int4, primary key (t, b, i), partition key (t))",
    "d(v decimal(5,2), d date, z timestamptz, u uuid, t text, x bool null, \
     primary key (v, d, z, u, t), partition key (v, d))",
    "e(id int4, a bool null, b int2 null, c int4 null, d int8 null, e float8 null, \
     f decimal(38,10) null, g text null, h bytea null, i date null, j timestamptz null, \
     k uuid null, l text, m bool, n float8, primary key (id))",
    "f(id uuid, a text, b bytea, c text null, d decimal(3,0), primary key (id))",
];

static LAYOUTS: LazyLock<Vec<TableLayout>> = LazyLock::new(|| {
    let layout = |text: &&str| {
        let definition = TableDefinition::parse(text).expect("the table is valid");
        TableLayout::new(&definition).expect("the table is valid")
    };
    TABLES.iter().map(layout).collect()
});

fn split(data: &[u8]) -> Option<(&'static TableLayout, &[u8])> {
    let (first, rest) = data.split_first()?;
    LAYOUTS.get(usize::from(*first) % LAYOUTS.len()).map(|layout| (layout, rest))
}

/// A key, or a prefix of one.
pub fn fuzz_key(data: &[u8]) {
    let Some((layout, bytes)) = split(data) else { return };
    key_check(layout, bytes);
}

/// The properties of [`fuzz_key`], for any table. Returns whether the key was accepted.
pub fn key_check(layout: &TableLayout, bytes: &[u8]) -> bool {
    let prefix = key_prefix_validate(layout, bytes);
    let Ok(partition_bytes) = key_validate(layout, bytes) else {
        assert!(prefix.is_err() || prefix.is_ok_and(|p| p.columns < layout.key_columns().len()));
        return false;
    };
    let prefix = prefix.expect("a key is a prefix of itself");
    assert_eq!(prefix.columns, layout.key_columns().len());
    assert_eq!(prefix.partition_bytes, Some(partition_bytes));
    let partition = bytes.get(..partition_bytes).expect("the partition key is part of the key");
    assert!(partition_of(partition, 256).0 < 256);
    let values = key_values(layout, bytes).expect("a valid key can be read");
    let mut again = Vec::new();
    assert_eq!(key_write(layout, &values, &mut again), Ok(partition_bytes));
    assert_eq!(again, bytes, "a key has two encodings");
    true
}

/// A row.
pub fn fuzz_row(data: &[u8]) {
    let Some((layout, bytes)) = split(data) else { return };
    row_check(layout, bytes);
}

/// The properties of [`fuzz_row`], for any table. Returns whether the row was accepted.
pub fn row_check(layout: &TableLayout, bytes: &[u8]) -> bool {
    let view = RowView::validated(layout, bytes);
    let values: Result<Vec<Value>, _> = view.values().map(|v| v.map(ValueRef::to_value)).collect();
    if row_validate(layout, bytes).is_err() {
        return false;
    }
    let values = values.expect("a valid row can be read");
    let mut again = Vec::new();
    assert_eq!(row_write(layout, &values, &mut again), Ok(bytes.len()));
    assert_eq!(again, bytes, "a row has two encodings");
    true
}

/// A patch, and after it a row to which it is applied.
pub fn fuzz_patch(data: &[u8]) {
    let Some((layout, rest)) = split(data) else { return };
    let Some((patch_bytes, rest)) = rest.split_first() else { return };
    let Some((patch, row)) = rest.split_at_checked(usize::from(*patch_bytes)) else { return };
    patch_check(layout, row, patch);
}

/// The properties of [`fuzz_patch`], for any table. Returns whether the patch was accepted.
pub fn patch_check(layout: &TableLayout, row: &[u8], patch: &[u8]) -> bool {
    let row_valid = row_validate(layout, row).is_ok();
    let mut out = Vec::new();
    let applied = patch_apply(layout, row, patch, &mut out);
    let mut merged = Vec::new();
    let merge = patch_merge(layout, patch, patch, &mut merged);
    let equal = patch_equals(layout, row, patch);
    let mut in_place = row.to_vec();
    let fixed = patch_apply_fixed(layout, &mut in_place, patch);
    if patch_validate(layout, patch).is_err() {
        assert!(applied.is_err() && out.is_empty() && merge.is_err() && merged.is_empty());
        assert!(!equal && fixed.is_err());
        return false;
    }
    let mut again = Vec::new();
    let mut writer = PatchWriter::new(layout, &mut again);
    for entry in PatchReader::new(layout, patch).expect("the patch is valid") {
        let entry = entry.expect("the patch is valid");
        let value = entry.get().expect("the patch is valid");
        writer.set(entry.value_column, value).expect("the patch is valid");
    }
    assert_eq!(writer.finish(), Ok(patch.len()));
    assert_eq!(again, patch, "a patch has two encodings");
    assert_eq!(merge, Ok(()));
    assert_eq!(merged, patch, "a patch merged with itself is another");
    if row_valid && applied.is_ok() {
        assert!(row_validate(layout, &out).is_ok(), "a patched row is not valid");
        assert!(patch_equals(layout, &out, patch), "a patched row has not the patch's values");
        assert!(!equal || out == row, "a patch of equal values changes the row");
        assert!(fixed != Ok(true) || in_place == out);
    }
    true
}
