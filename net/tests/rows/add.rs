//! Additions against a model in wide integers.

use proptest::prelude::*;
use spillway_net::add::{AddArgument, AddBounded, AddError, row_add};
use spillway_net::layout::TableLayout;
use spillway_net::row::{RowView, row_write};
use spillway_net::schema::{ColumnType, TableDefinition};
use spillway_net::value::Value;

fn layout(text: &str) -> TableLayout {
    TableLayout::new(&TableDefinition::parse(text).unwrap()).unwrap()
}

const TABLE: &str = "t(id int4, a int2, b int4, c int8 null, d decimal(38,2), e float8, f text, \
                     g decimal(3,0), h date, primary key (id))";

fn row(layout: &TableLayout, a: i64, d: i128, e: f64) -> Vec<u8> {
    let values = [
        Value::Int2(a as i16),
        Value::Int4(a as i32),
        Value::Int8(a),
        Value::Decimal(d),
        Value::Float8(e),
        Value::Text("f".to_owned()),
        Value::Decimal(d % 1000),
        Value::Date(0),
    ];
    let mut row = Vec::new();
    row_write(layout, &values, &mut row).unwrap();
    row
}

fn int(delta: i64, min: Option<i64>, max: Option<i64>) -> AddArgument {
    AddArgument::Int(AddBounded { delta, min, max })
}

fn decimal(delta: i128, min: Option<i128>, max: Option<i128>) -> AddArgument {
    AddArgument::Decimal(AddBounded { delta, min, max })
}

/// The same without bounds of the type, with an `i128` sum that cannot overflow.
fn model(
    old: i128,
    add: (i128, Option<i128>, Option<i128>),
    range: (i128, i128),
) -> Result<i128, AddError> {
    let (delta, min, max) = add;
    let Some(sum) = old.checked_add(delta) else {
        let bound = if delta > 0 { max } else { min };
        return Err(if bound.is_some() { AddError::BoundsViolated } else { AddError::Overflow });
    };
    if min.is_some_and(|min| sum < min) || max.is_some_and(|max| sum > max) {
        Err(AddError::BoundsViolated)
    } else if sum < range.0 || sum > range.1 {
        Err(AddError::Overflow)
    } else {
        Ok(sum)
    }
}

fn edge() -> impl Strategy<Value = i64> {
    prop_oneof![
        any::<i64>(),
        -3..4i64,
        Just(i64::MIN),
        Just(i64::MAX),
        any::<i32>().prop_map(i64::from),
        any::<i16>().prop_map(i64::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn integers_like_the_model(
        old in edge(),
        delta in edge(),
        min in prop::option::of(edge()),
        max in prop::option::of(edge()),
    ) {
        let layout = layout(TABLE);
        let ranges = [
            (i128::from(i16::MIN), i128::from(i16::MAX), i128::from(old as i16)),
            (i128::from(i32::MIN), i128::from(i32::MAX), i128::from(old as i32)),
            (i128::from(i64::MIN), i128::from(i64::MAX), i128::from(old)),
        ];
        for (column, (low, high, old_value)) in ranges.into_iter().enumerate() {
            let mut row = row(&layout, old, 0, 0.0);
            let before = row.clone();
            let wide = (i128::from(delta), min.map(i128::from), max.map(i128::from));
            let expected = model(old_value, wide, (low, high));
            let result = row_add(&layout, &mut row, column, &int(delta, min, max));
            prop_assert_eq!(result, expected.map(|_| ()));
            match expected {
                Ok(sum) => {
                    let view = RowView::new(&layout, &row).unwrap();
                    let value = [
                        view.int2(0).unwrap().map(i128::from),
                        view.int4(1).unwrap().map(i128::from),
                        view.int8(2).unwrap().map(i128::from),
                    ];
                    prop_assert_eq!(value[column], Some(sum));
                }
                Err(_) => prop_assert_eq!(row, before),
            }
        }
    }

    #[test]
    fn decimals_like_the_model(
        old in -(10i128.pow(38) - 1)..10i128.pow(38),
        delta in prop_oneof![-(10i128.pow(38) - 1)..10i128.pow(38), -5..5i128],
        min in prop::option::of(-(10i128.pow(38) - 1)..10i128.pow(38)),
        max in prop::option::of(-(10i128.pow(38) - 1)..10i128.pow(38)),
    ) {
        let layout = layout(TABLE);
        let limit = 10i128.pow(38) - 1;
        let mut row = row(&layout, 0, old, 0.0);
        let before = row.clone();
        let expected = model(old, (delta, min, max), (-limit, limit));
        let result = row_add(&layout, &mut row, 3, &decimal(delta, min, max));
        prop_assert_eq!(result, expected.map(|_| ()));
        match expected {
            Ok(sum) => {
                let view = RowView::new(&layout, &row).unwrap();
                prop_assert_eq!(view.decimal(3).unwrap(), Some(sum));
            }
            Err(_) => prop_assert_eq!(row, before),
        }
    }

    #[test]
    fn floats_stay_canonical(old in any::<f64>(), delta in any::<f64>()) {
        let layout = layout(TABLE);
        let mut row = row(&layout, 0, 0, old);
        let add = AddArgument::Float8(AddBounded { delta, min: None, max: None });
        let result = row_add(&layout, &mut row, 4, &add);
        let view = RowView::new(&layout, &row).expect("the row is still valid");
        let value = view.float8(4).unwrap().unwrap();
        match result {
            Ok(()) => prop_assert_eq!(value, old + delta),
            Err(error) => {
                prop_assert_eq!(error, AddError::Overflow);
                prop_assert!((old + delta).is_infinite() && value == old);
            }
        }
    }

    #[test]
    fn arguments_round_trip_and_damage_is_refused(
        delta in edge(), min in prop::option::of(edge()), max in prop::option::of(edge()),
        bytes in prop::collection::vec(any::<u8>(), 0..26),
        flags in 0..5u8,
    ) {
        let types = [
            ColumnType::Int2, ColumnType::Int4, ColumnType::Int8, ColumnType::Float8,
            ColumnType::Decimal { precision: 18, scale: 2 },
        ];
        for column_type in types {
            let argument = match column_type {
                ColumnType::Float8 => AddArgument::Float8(AddBounded {
                    delta: delta as f64,
                    min: min.map(|v| v as f64),
                    max: max.map(|v| v as f64),
                }),
                ColumnType::Decimal { .. } => {
                    decimal(delta.into(), min.map(i128::from), max.map(i128::from))
                }
                _ => int(delta, min, max),
            };
            let mut encoded = Vec::new();
            match argument.encode(column_type, &mut encoded) {
                Ok(()) => prop_assert_eq!(AddArgument::decode(column_type, &encoded), Ok(argument)),
                Err(error) => {
                    prop_assert!(encoded.is_empty());
                    prop_assert!(
                        matches!(error, AddError::NumberInvalid | AddError::BoundsInverted)
                    );
                }
            }
            let mut damaged = vec![flags];
            damaged.extend_from_slice(&bytes);
            if let Ok(argument) = AddArgument::decode(column_type, &damaged) {
                let mut again = Vec::new();
                argument.encode(column_type, &mut again).unwrap();
                prop_assert_eq!(again, damaged);
            }
        }
    }
}

#[test]
fn only_numbers_that_are_not_null_can_be_added_to() {
    let layout = layout(TABLE);
    let mut row = row(&layout, 5, 5, 5.0);
    let add = int(1, None, None);
    assert_eq!(row_add(&layout, &mut row, 5, &add), Err(AddError::NotNumeric));
    assert_eq!(row_add(&layout, &mut row, 7, &add), Err(AddError::NotNumeric));
    assert_eq!(row_add(&layout, &mut row, 3, &add), Err(AddError::TypeMismatch));
    let unknown = AddError::ColumnUnknown { value_column: 8, count: 8 };
    assert_eq!(row_add(&layout, &mut row, 8, &add), Err(unknown));
    assert_eq!(row_add(&layout, &mut [], 0, &add), Err(AddError::RowInvalid));
    let mut null = Vec::new();
    let values = [
        Value::Int2(0),
        Value::Int4(0),
        Value::Null,
        Value::Decimal(0),
        Value::Float8(0.0),
        Value::Text(String::new()),
        Value::Decimal(0),
        Value::Date(0),
    ];
    row_write(&layout, &values, &mut null).unwrap();
    assert_eq!(row_add(&layout, &mut null, 2, &add), Err(AddError::IsNull));
    // Three digits are three digits.
    assert_eq!(row_add(&layout, &mut row, 6, &decimal(994, None, None)), Ok(()));
    assert_eq!(row_add(&layout, &mut row, 6, &decimal(1, None, None)), Err(AddError::Overflow));
    let capped = decimal(1, None, Some(999));
    assert_eq!(row_add(&layout, &mut row, 6, &capped), Err(AddError::BoundsViolated));
}

#[test]
fn a_balance_does_not_go_below_zero() {
    let layout = layout("t(id int4, balance int8, primary key (id))");
    let mut row = Vec::new();
    row_write(&layout, &[Value::Int8(10)], &mut row).unwrap();
    assert_eq!(row_add(&layout, &mut row, 0, &int(-10, Some(0), None)), Ok(()));
    let refused = Err(AddError::BoundsViolated);
    assert_eq!(row_add(&layout, &mut row, 0, &int(-1, Some(0), None)), refused);
    assert_eq!(RowView::new(&layout, &row).unwrap().int8(0), Ok(Some(0)));
}

#[test]
fn damaged_arguments_have_their_errors() {
    let decode = |bytes: &[u8]| AddArgument::decode(ColumnType::Int2, bytes);
    assert_eq!(decode(&[3, 1, 0, 2, 0, 3, 0]), Ok(int(1, Some(2), Some(3))));
    assert_eq!(decode(&[2, 1, 0, 3, 0]), Ok(int(1, None, Some(3))));
    assert_eq!(decode(&[]), Err(AddError::LengthWrong { expected: 3, found: 0 }));
    assert_eq!(decode(&[1, 1, 0]), Err(AddError::LengthWrong { expected: 5, found: 3 }));
    assert_eq!(decode(&[0, 1, 0, 0]), Err(AddError::LengthWrong { expected: 3, found: 4 }));
    assert_eq!(decode(&[4, 1, 0]), Err(AddError::FlagsInvalid { flags: 4 }));
    assert_eq!(decode(&[3, 1, 0, 3, 0, 2, 0]), Err(AddError::BoundsInverted));
    let text = AddArgument::decode(ColumnType::Text, &[0, 1, 0]);
    assert_eq!(text, Err(AddError::NotNumeric));
    for float in [f64::NAN, f64::INFINITY, -0.0] {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&float.to_le_bytes());
        let decoded = AddArgument::decode(ColumnType::Float8, &bytes);
        assert_eq!(decoded, Err(AddError::NumberInvalid), "{float}");
    }
}
