//! Rows: round trip, canonical form, size.

use proptest::prelude::*;
use spillway_net::layout::{ColumnPlace, TableLayout};
use spillway_net::limits::ROW_BYTES_MAX;
use spillway_net::patch::{patch_apply, patch_write};
use spillway_net::row::{RowError, RowView, row_validate, row_write};
use spillway_net::rows_fuzz::{patch_check, row_check};
use spillway_net::schema::TableDefinition;
use spillway_net::value::{Value, ValueError, ValueKind};

use crate::generate;

fn layout(text: &str) -> TableLayout {
    TableLayout::new(&TableDefinition::parse(text).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn round_trip(
        (layout, values) in generate::table().prop_flat_map(|(_, layout)| {
            let values = generate::row_values(&layout);
            (Just(layout), values)
        })
    ) {
        let mut row = b"before".to_vec();
        let bytes = row_write(&layout, &values, &mut row).unwrap();
        prop_assert_eq!(&row[..6], b"before");
        let row = row.split_off(6);
        prop_assert_eq!(bytes, row.len());
        prop_assert!(row.len() >= layout.row_bytes_min());
        if let Some(fixed) = layout.row_bytes_fixed() {
            prop_assert_eq!(row.len(), fixed);
        }
        let view = RowView::new(&layout, &row).unwrap();
        let read: Vec<Value> = view.values().map(|v| v.unwrap().to_value()).collect();
        prop_assert_eq!(&read, &values);
        for (value_column, value) in values.iter().enumerate() {
            prop_assert_eq!(view.is_null(value_column).unwrap(), *value == Value::Null);
        }
    }

    #[test]
    fn mutations_are_refused_or_canonical(
        (layout, values, mutations) in generate::table().prop_flat_map(|(_, layout)| {
            let values = generate::row_values(&layout);
            (Just(layout), values, generate::mutations())
        })
    ) {
        let mut row = Vec::new();
        row_write(&layout, &values, &mut row).unwrap();
        prop_assert!(row_check(&layout, &row));
        generate::mutate(&mut row, &mutations);
        row_check(&layout, &row);
    }

    #[test]
    fn layout_finds_every_column((definition, layout) in generate::table()) {
        for index in 0..definition.columns.len() {
            match layout.column_place(index).unwrap() {
                ColumnPlace::Key(position) => {
                    prop_assert_eq!(usize::from(definition.key[position]), index);
                    prop_assert_eq!(layout.key_position(index), Some(position));
                    prop_assert_eq!(layout.value_column(index), None);
                }
                ColumnPlace::Value(value_column) => {
                    let column = layout.value_columns()[value_column];
                    prop_assert_eq!(usize::from(column.column), index);
                    prop_assert_eq!(layout.value_column(index), Some(value_column));
                    prop_assert_eq!(layout.key_position(index), None);
                }
            }
        }
        prop_assert_eq!(layout.column_place(definition.columns.len()), None);
    }
}

#[test]
fn a_payload_of_100_bytes_costs_100_bytes() {
    let one = layout("t(id int8, payload bytea, primary key (id))");
    let mut row = Vec::new();
    assert_eq!(row_write(&one, &[Value::Bytea(vec![7; 100])], &mut row), Ok(100));
    let five = layout("t(id int8, a int8, b bytea null, c int4, d text, primary key (id))");
    let text = Value::Text("x".repeat(44));
    let values = [Value::Int8(1), Value::Bytea(vec![7; 44]), Value::Int4(2), text];
    row.clear();
    assert_eq!(row_write(&five, &values, &mut row), Ok(100 + 3));
}

#[test]
fn bytes_are_as_the_format_says() {
    let layout = layout(
        "t(a int2 null, id int4, b text, c bytea null, d bool, e text null, primary key (id))",
    );
    let values = [
        Value::Null,
        Value::Text("xy".to_owned()),
        Value::Bytea(vec![9]),
        Value::Bool(true),
        Value::Null,
    ];
    let mut row = Vec::new();
    row_write(&layout, &values, &mut row).unwrap();
    assert_eq!(row, [0b101, 0, 0, 1, 2, 0, 3, 0, b'x', b'y', 9]);
}

#[test]
fn every_kind_of_damage_has_its_error() {
    let layout = layout(
        "t(a int2 null, id int4, b text, c bytea null, d bool, e text null, primary key (id))",
    );
    let good = [0b101, 0, 0, 1, 2, 0, 3, 0, b'x', b'y', 9];
    assert_eq!(row_validate(&layout, &good), Ok(()));
    let with = |at: usize, byte: u8| {
        let mut row = good;
        row[at] = byte;
        row_validate(&layout, &row)
    };
    let value = |value_column, error| Err(RowError::Value { value_column, error });
    assert_eq!(with(0, 0b1101), Err(RowError::NullBitUnused));
    assert_eq!(with(1, 1), value(0, ValueError::NullNotEmpty));
    assert_eq!(with(3, 2), value(3, ValueError::BoolInvalid));
    assert_eq!(with(4, 4), Err(RowError::OffsetInvalid { value_column: 1 }));
    assert_eq!(with(6, 1), Err(RowError::OffsetInvalid { value_column: 2 }));
    assert_eq!(with(5, 1), Err(RowError::OffsetInvalid { value_column: 1 }));
    assert_eq!(with(6, 4), Err(RowError::OffsetInvalid { value_column: 2 }));
    assert_eq!(with(6, 2), value(4, ValueError::NullNotEmpty));
    assert_eq!(with(8, 0xff), value(1, ValueError::TextNotUtf8));
    let (expected, found) = (8, 7);
    let short = Err(RowError::LengthWrong { expected, found });
    assert_eq!(row_validate(&layout, &good[..7]), short);
    let long = vec![0; ROW_BYTES_MAX + 1];
    let too_long = Err(RowError::TooLong { bytes: ROW_BYTES_MAX + 1 });
    assert_eq!(row_validate(&layout, &long), too_long);
}

#[test]
fn a_row_without_variable_columns_has_one_length() {
    let layout = layout("t(id int4, a int2, primary key (id))");
    assert_eq!(layout.row_bytes_fixed(), Some(2));
    assert_eq!(row_validate(&layout, &[1, 2]), Ok(()));
    for row in [&[1u8][..], &[1, 2, 3]] {
        let (expected, found) = (2, row.len());
        let refused = Err(RowError::LengthWrong { expected, found });
        assert_eq!(row_validate(&layout, row), refused);
    }
    let key_only = self::layout("t(id int4, primary key (id))");
    assert_eq!(row_write(&key_only, &[], &mut Vec::new()), Ok(0));
    assert_eq!(row_validate(&key_only, &[]), Ok(()));
}

#[test]
fn the_longest_row_is_accepted_and_no_longer_one() {
    for text in
        ["t(id int4, a bytea, primary key (id))", "t(id int4, a bytea, b text, primary key (id))"]
    {
        let layout = layout(text);
        let two = layout.value_columns().len() == 2;
        let bytes_max = ROW_BYTES_MAX - layout.row_bytes_min();
        for (bytes, fits) in [(bytes_max, true), (bytes_max + 1, false), (1 << 20, false)] {
            let mut values = vec![Value::Bytea(vec![1; bytes])];
            if two {
                values.push(Value::Text(String::new()));
            }
            let mut row = b"old".to_vec();
            let written = row_write(&layout, &values, &mut row);
            if fits {
                assert_eq!(written, Ok(ROW_BYTES_MAX));
                assert!(row_check(&layout, &row[3..]));
            } else {
                assert!(matches!(written, Err(RowError::TooLong { .. })));
                assert_eq!(row, b"old");
            }
        }
    }
}

#[test]
fn getters_check_type_and_column() {
    let layout = layout("t(id int4, a int8 null, b text, primary key (id))");
    let mut row = Vec::new();
    row_write(&layout, &[Value::Int8(-5), Value::Text("b".to_owned())], &mut row).unwrap();
    let view = RowView::new(&layout, &row).unwrap();
    assert_eq!(view.int8(0), Ok(Some(-5)));
    assert_eq!(view.text(1), Ok(Some("b")));
    let error = ValueError::TypeMismatch { expected: ValueKind::Int8, given: ValueKind::Int4 };
    assert_eq!(view.int4(0), Err(RowError::Value { value_column: 0, error }));
    assert_eq!(view.int4(2), Err(RowError::ColumnUnknown { value_column: 2, count: 2 }));
    row.clear();
    row_write(&layout, &[Value::Null, Value::Text("b".to_owned())], &mut row).unwrap();
    let view = RowView::new(&layout, &row).unwrap();
    assert_eq!(view.int8(0), Ok(None));
    assert_eq!(view.int4(0), Err(RowError::Value { value_column: 0, error }));
}

#[test]
fn a_writer_that_fails_leaves_the_buffer_as_it_was() {
    let layout = layout("t(id int4, a int8, b text, primary key (id))");
    let mut out = b"old".to_vec();
    let (given, expected) = (1, 2);
    let missing = Err(RowError::ColumnsMissing { given, expected });
    assert_eq!(row_write(&layout, &[Value::Int8(1)], &mut out), missing);
    let refused = Err(RowError::Value { value_column: 0, error: ValueError::NullNotAllowed });
    assert_eq!(row_write(&layout, &[Value::Null], &mut out), refused);
    let error = ValueError::TypeMismatch { expected: ValueKind::Text, given: ValueKind::Bytea };
    let refused = Err(RowError::Value { value_column: 1, error });
    assert_eq!(row_write(&layout, &[Value::Int8(1), Value::Bytea(vec![])], &mut out), refused);
    let text = || Value::Text("x".to_owned());
    let excess = row_write(&layout, &[Value::Int8(1), text(), text()], &mut out);
    assert_eq!(excess, Err(RowError::ColumnUnknown { value_column: 2, count: 2 }));
    assert_eq!(out, b"old");
}

#[test]
fn the_widest_table_has_rows_and_patches() {
    let types = ["int2", "text", "bool", "decimal(9,3)", "bytea", "uuid", "float8"];
    let columns: Vec<String> =
        (0..255).map(|index| format!("c{index} {} null, ", types[index % types.len()])).collect();
    let layout = layout(&format!("t(id int8, {}primary key (id))", columns.concat()));
    assert_eq!(layout.value_columns().len(), 255);
    let value = |index: usize| match index % types.len() {
        0 => Value::Int2(index as i16),
        1 => Value::Text(format!("text {index}")),
        2 => Value::Bool(index % 2 == 1),
        3 => Value::Decimal(-(index as i128)),
        4 => Value::Bytea(vec![index as u8; index % 5]),
        5 => Value::Uuid([index as u8; 16]),
        _ => Value::Float8(index as f64),
    };
    // Every column is null once, and each of them alone is the one that is not.
    for null in 0..255 {
        let mut values: Vec<Value> = (0..255).map(value).collect();
        values[null] = Value::Null;
        let mut row = Vec::new();
        row_write(&layout, &values, &mut row).unwrap();
        assert!(row_check(&layout, &row));
        let view = RowView::new(&layout, &row).unwrap();
        let read: Vec<Value> = view.values().map(|value| value.unwrap().to_value()).collect();
        assert_eq!(read, values);
        let mut alone = vec![Value::Null; 255];
        alone[null] = value(null);
        let mut row = Vec::new();
        row_write(&layout, &alone, &mut row).unwrap();
        let mut patch = Vec::new();
        let changes: Vec<_> = values.iter().map(Value::view).enumerate().collect();
        patch_write(&layout, &changes, &mut patch).unwrap();
        assert!(patch_check(&layout, &row, &patch));
        let mut patched = Vec::new();
        patch_apply(&layout, &row, &patch, &mut patched).unwrap();
        let view = RowView::new(&layout, &patched).unwrap();
        assert!(view.values().zip(&values).all(|(read, value)| read.unwrap() == value.view()));
    }
}
