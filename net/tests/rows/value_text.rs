//! Values as text.

use proptest::prelude::*;
use spillway_net::schema::ColumnType;
use spillway_net::value::{
    DATE_DAYS_MAX, DATE_DAYS_MIN, TIMESTAMP_MICROS_MAX, TIMESTAMP_MICROS_MIN, Value,
};
use spillway_net::value_text::{value_parse, value_to_text};

use crate::generate;

const DECIMAL: ColumnType = ColumnType::Decimal { precision: 6, scale: 2 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn round_trip(
        (column_type, value) in generate::column_type()
            .prop_flat_map(|column_type| (Just(column_type), generate::value(column_type)))
    ) {
        let text = value_to_text(column_type, value.view());
        prop_assert!(!text.contains(char::is_control), "{:?}", text);
        prop_assert_eq!(value_parse(column_type, &text), Ok(value), "{}", text);
    }

    #[test]
    fn any_text_is_read_or_refused(
        column_type in generate::column_type(), text in "[-+0-9.:TZeINanft\\\\x{}u ]{0,30}"
    ) {
        if let Ok(value) = value_parse(column_type, &text) {
            let printed = value_to_text(column_type, value.view());
            prop_assert_eq!(value_parse(column_type, &printed), Ok(value));
        }
    }
}

fn print(column_type: ColumnType, value: Value) -> String {
    value_to_text(column_type, value.view())
}

#[test]
fn texts_are_as_people_write_them() {
    assert_eq!(print(DECIMAL, Value::Decimal(150)), "1.50");
    assert_eq!(print(DECIMAL, Value::Decimal(-5)), "-0.05");
    assert_eq!(print(DECIMAL, Value::Decimal(0)), "0.00");
    assert_eq!(print(ColumnType::Date, Value::Date(0)), "1970-01-01");
    assert_eq!(print(ColumnType::Date, Value::Date(20_000)), "2024-10-04");
    assert_eq!(
        print(ColumnType::Timestamptz, Value::Timestamptz(1)),
        "1970-01-01T00:00:00.000001Z"
    );
    assert_eq!(print(ColumnType::Bytea, Value::Bytea(vec![0, 255])), "\\x00ff");
    assert_eq!(print(ColumnType::Text, Value::Text("a\tb\\\0".to_owned())), "a\\tb\\\\\\u{0}");
    assert_eq!(print(ColumnType::Text, Value::Null), "\\N");
    assert_eq!(print(ColumnType::Text, Value::Text("\\N".to_owned())), "\\\\N");
    assert_eq!(print(ColumnType::Float8, Value::Float8(1e300)), "1e300");
    assert_eq!(print(ColumnType::Bool, Value::Bool(true)), "true");
    let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    let value = value_parse(ColumnType::Uuid, uuid).unwrap();
    assert_eq!(print(ColumnType::Uuid, value), uuid);
}

#[test]
fn the_ends_of_the_calendar_are_the_ends_of_the_columns() {
    assert_eq!(print(ColumnType::Date, Value::Date(DATE_DAYS_MIN)), "-009999-01-01");
    assert_eq!(print(ColumnType::Date, Value::Date(DATE_DAYS_MAX)), "9999-12-31");
    assert_eq!(jiff::Timestamp::MIN.as_microsecond(), TIMESTAMP_MICROS_MIN);
    assert_eq!(jiff::Timestamp::MAX.as_microsecond(), TIMESTAMP_MICROS_MAX);
    for value in [Value::Date(DATE_DAYS_MIN), Value::Date(DATE_DAYS_MAX)] {
        let text = print(ColumnType::Date, value.clone());
        assert_eq!(value_parse(ColumnType::Date, &text), Ok(value));
    }
}

#[test]
fn nothing_is_rounded_or_guessed() {
    let refused = |column_type, text: &str| {
        let parsed = value_parse(column_type, text);
        assert!(parsed.is_err(), "{text:?} gives {parsed:?}");
        parsed.unwrap_err().to_string()
    };
    refused(DECIMAL, "1.505");
    refused(DECIMAL, "12345.67");
    refused(DECIMAL, "1e3");
    refused(DECIMAL, ".");
    refused(DECIMAL, "");
    refused(DECIMAL, "--1");
    refused(DECIMAL, &"9".repeat(100));
    assert_eq!(value_parse(DECIMAL, "1.5000"), Ok(Value::Decimal(150)));
    assert_eq!(value_parse(DECIMAL, "-.5"), Ok(Value::Decimal(-50)));
    assert_eq!(value_parse(DECIMAL, "+7"), Ok(Value::Decimal(700)));
    assert_eq!(
        refused(ColumnType::Int2, "32768"),
        "`32768` is no int2; write a number of -32768 to 32767"
    );
    refused(ColumnType::Date, "2026-02-30");
    refused(ColumnType::Date, "2026-01-31T12:00:00");
    refused(ColumnType::Timestamptz, "2026-01-31T12:00:00");
    refused(ColumnType::Timestamptz, "2026-01-31T12:00:00.1234567Z");
    assert_eq!(
        value_parse(ColumnType::Timestamptz, "1970-01-01T01:00:00+01:00"),
        Ok(Value::Timestamptz(0))
    );
    refused(ColumnType::Bytea, "00");
    refused(ColumnType::Bytea, "\\x0");
    refused(ColumnType::Bytea, "\\x0\u{e9}");
    refused(ColumnType::Text, "a\\");
    refused(ColumnType::Text, "\\q");
    refused(ColumnType::Text, "\\u{d800}");
    refused(ColumnType::Text, "\\u{+41}");
    refused(ColumnType::Bool, "yes");
    let long = "x".repeat(1 << 16);
    assert!(refused(ColumnType::Int8, &long).len() < 200);
}
