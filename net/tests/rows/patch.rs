//! Patches against a model: a row as a list of values.

use proptest::prelude::*;
use spillway_net::layout::TableLayout;
use spillway_net::limits::ROW_BYTES_MAX;
use spillway_net::patch::{
    PatchError, PatchWriter, patch_apply, patch_apply_fixed, patch_equals, patch_merge,
    patch_validate, patch_write,
};
use spillway_net::row::{RowError, RowView, row_write};
use spillway_net::rows_fuzz::patch_check;
use spillway_net::schema::TableDefinition;
use spillway_net::value::{Value, ValueError, ValueRef};

use crate::generate;

fn layout(text: &str) -> TableLayout {
    TableLayout::new(&TableDefinition::parse(text).unwrap()).unwrap()
}

fn row(layout: &TableLayout, values: &[Value]) -> Vec<u8> {
    let mut row = Vec::new();
    row_write(layout, values, &mut row).unwrap();
    row
}

fn patch(layout: &TableLayout, changes: &[(usize, Value)]) -> Vec<u8> {
    let changes: Vec<_> = changes.iter().map(|(column, value)| (*column, value.view())).collect();
    let mut patch = Vec::new();
    assert_eq!(patch_write(layout, &changes, &mut patch), Ok(patch.len()));
    patch
}

fn model_apply(values: &mut [Value], changes: &[(usize, Value)]) {
    for (column, value) in changes {
        values[*column] = value.clone();
    }
}

type Changes = Vec<(usize, Value)>;

/// A table with a row and two non-empty patches for it.
fn scene() -> impl Strategy<Value = (TableLayout, Vec<Value>, Changes, Changes)> {
    generate::table()
        .prop_filter("a patch needs value columns", |(_, l)| !l.value_columns().is_empty())
        .prop_flat_map(|(_, layout)| {
            let values = generate::row_values(&layout);
            let older = generate::changes(&layout);
            let newer = generate::changes(&layout);
            (Just(layout), values, older, newer)
        })
        .prop_filter("a patch is not empty", |(_, _, older, newer)| {
            !older.is_empty() && !newer.is_empty()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn apply_merge_and_compare_like_the_model((layout, mut values, older, newer) in scene()) {
        let base = row(&layout, &values);
        let (older_patch, newer_patch) = (patch(&layout, &older), patch(&layout, &newer));
        prop_assert_eq!(patch_validate(&layout, &older_patch), Ok(()));

        let equal = older.iter().all(|(column, value)| values[*column] == *value);
        prop_assert_eq!(patch_equals(&layout, &base, &older_patch), equal);

        let mut out = b"before".to_vec();
        patch_apply(&layout, &base, &older_patch, &mut out).unwrap();
        prop_assert_eq!(&out[..6], b"before");
        let patched = out.split_off(6);
        model_apply(&mut values, &older);
        prop_assert_eq!(&patched, &row(&layout, &values));
        prop_assert!(patch_equals(&layout, &patched, &older_patch));

        let mut in_place = base.clone();
        let fixed = patch_apply_fixed(&layout, &mut in_place, &older_patch).unwrap();
        let types = layout.value_columns();
        let all_fixed =
            older.iter().all(|(column, _)| types[*column].column_type.fixed_bytes().is_some());
        prop_assert_eq!(fixed, all_fixed);
        prop_assert_eq!(&in_place, if fixed { &patched } else { &base });

        let mut merged = b"before".to_vec();
        patch_merge(&layout, &older_patch, &newer_patch, &mut merged).unwrap();
        let merged = merged.split_off(6);
        let mut model: Vec<Option<Value>> = vec![None; values.len()];
        for (column, value) in older.iter().chain(&newer) {
            model[*column] = Some(value.clone());
        }
        let changes: Vec<(usize, Value)> =
            model.into_iter().enumerate().filter_map(|(c, value)| Some((c, value?))).collect();
        prop_assert_eq!(&merged, &patch(&layout, &changes));

        // After-images taken from the row are the patch that made it.
        let view = RowView::new(&layout, &patched).unwrap();
        let mut copied = Vec::new();
        let mut writer = PatchWriter::new(&layout, &mut copied);
        for (column, _) in &older {
            writer.copy(*column, &view).unwrap();
        }
        writer.finish().unwrap();
        prop_assert_eq!(copied, older_patch);
    }

    #[test]
    fn mutations_are_refused_or_canonical(
        (layout, values, changes, _) in scene(),
        mutations in generate::mutations(),
        row_mutations in generate::mutations(),
    ) {
        let mut row = row(&layout, &values);
        let mut patch = patch(&layout, &changes);
        prop_assert!(patch_check(&layout, &row, &patch));
        generate::mutate(&mut patch, &mutations);
        patch_check(&layout, &row, &patch);
        generate::mutate(&mut row, &row_mutations);
        patch_check(&layout, &row, &patch);
    }
}

const TABLE: &str = "t(id int4, a int2 null, b text, c bool, primary key (id))";

#[test]
fn bytes_are_as_the_format_says() {
    let layout = layout(TABLE);
    let changes = [(0, Value::Null), (1, Value::Text("xy".to_owned())), (2, Value::Bool(true))];
    let expected = [3, 0, 1, 1, 0, 2, 0, 0, 0, b'x', b'y', 2, 0, 1];
    assert_eq!(patch(&layout, &changes), expected);
    assert_eq!(patch(&layout, &[(0, Value::Int2(-2))]), [1, 0, 0, 0xfe, 0xff]);
}

#[test]
fn every_kind_of_damage_has_its_error() {
    let layout = layout(TABLE);
    let check = |patch: &[u8]| patch_validate(&layout, patch);
    assert_eq!(check(&[]), Err(PatchError::Truncated { entry: 0 }));
    assert_eq!(check(&[0]), Err(PatchError::Empty));
    assert_eq!(check(&[1]), Err(PatchError::Truncated { entry: 0 }));
    assert_eq!(check(&[1, 0, 0, 7]), Err(PatchError::Truncated { entry: 0 }));
    assert_eq!(check(&[2, 0, 1, 2]), Err(PatchError::Truncated { entry: 1 }));
    assert_eq!(check(&[1, 0, 1, 9]), Err(PatchError::Excess { bytes: 1 }));
    assert_eq!(check(&[1, 3, 1]), Err(PatchError::ColumnUnknown { value_column: 3, count: 3 }));
    assert_eq!(check(&[2, 0, 1, 0, 1]), Err(PatchError::ColumnDuplicate { value_column: 0 }));
    assert_eq!(check(&[2, 2, 0, 1, 0, 1]), Err(PatchError::ColumnOrder { value_column: 0 }));
    assert_eq!(check(&[1, 0, 2]), Err(PatchError::FlagInvalid { value_column: 0 }));
    let value = |value_column, error| Err(PatchError::Value { value_column, error });
    assert_eq!(check(&[1, 1, 1]), value(1, ValueError::NullNotAllowed));
    assert_eq!(check(&[1, 2, 0, 2]), value(2, ValueError::BoolInvalid));
    assert_eq!(check(&[1, 1, 0, 1, 0, 0, 0, 0xff]), value(1, ValueError::TextNotUtf8));
    // A length that lies is no reason to allocate.
    assert_eq!(
        check(&[1, 1, 0, 0xff, 0xff, 0xff, 0xff, b'x']),
        Err(PatchError::Truncated { entry: 0 })
    );
    let bytes = 1 << 20;
    assert_eq!(check(&vec![0; bytes]), Err(PatchError::TooLong { bytes }));
}

#[test]
fn a_writer_refuses_duplicates_and_leaves_the_buffer_as_it_was() {
    let layout = layout(TABLE);
    let mut out = b"old".to_vec();
    let twice = [(2, ValueRef::Bool(true)), (0, ValueRef::Null), (2, ValueRef::Bool(true))];
    assert_eq!(
        patch_write(&layout, &twice, &mut out),
        Err(PatchError::ColumnDuplicate { value_column: 2 })
    );
    assert_eq!(patch_write(&layout, &[], &mut out), Err(PatchError::Empty));
    let unknown = Err(PatchError::ColumnUnknown { value_column: 3, count: 3 });
    assert_eq!(patch_write(&layout, &[(3, ValueRef::Null)], &mut out), unknown);
    assert_eq!(patch_write(&layout, &[(3, ValueRef::Int2(1))], &mut out), unknown);
    let mut writer = PatchWriter::new(&layout, &mut out);
    writer.set(2, ValueRef::Bool(false)).unwrap();
    let error = writer.set(1, ValueRef::Text("x")).map(|_| ());
    assert_eq!(error, Err(PatchError::ColumnOrder { value_column: 1 }));
    drop(writer);
    assert_eq!(out, b"old");
}

#[test]
fn a_row_that_becomes_too_long_is_refused() {
    let layout = layout("t(id int4, a bytea, b bytea, primary key (id))");
    let base = row(&layout, &[Value::Bytea(vec![1; 40_000]), Value::Bytea(vec![])]);
    let patch = patch(&layout, &[(1, Value::Bytea(vec![2; 40_000]))]);
    let mut out = b"old".to_vec();
    let applied = patch_apply(&layout, &base, &patch, &mut out);
    assert_eq!(applied, Err(PatchError::Row(RowError::TooLong { bytes: 80_002 })));
    assert_eq!(out, b"old");
    let longest = self::patch(&layout, &[(0, Value::Bytea(vec![3; ROW_BYTES_MAX - 2]))]);
    let base = row(&layout, &[Value::Bytea(vec![]), Value::Bytea(vec![])]);
    patch_apply(&layout, &base, &longest, &mut out).unwrap();
    assert_eq!(out.len(), 3 + ROW_BYTES_MAX);
}
