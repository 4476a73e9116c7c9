//! Keys: order, round trip, canonical form.

use std::cmp::Ordering;

use proptest::prelude::*;
use spillway_net::key::{
    KeyError, KeyPrefix, KeyWriter, key_prefix_validate, key_validate, key_values, key_write,
    partition_of, prefix_successor,
};
use spillway_net::layout::TableLayout;
use spillway_net::limits::KEY_BYTES_MAX;
use spillway_net::rows_fuzz::key_check;
use spillway_net::schema::TableDefinition;
use spillway_net::value::{Value, ValueError, ValueKind, float8_canonical};

use crate::generate;

fn layout(text: &str) -> TableLayout {
    TableLayout::new(&TableDefinition::parse(text).unwrap()).unwrap()
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Int2(a), Value::Int2(b)) => a.cmp(b),
        (Value::Int4(a), Value::Int4(b)) | (Value::Date(a), Value::Date(b)) => a.cmp(b),
        (Value::Int8(a), Value::Int8(b)) => a.cmp(b),
        (Value::Timestamptz(a), Value::Timestamptz(b)) => a.cmp(b),
        (Value::Float8(a), Value::Float8(b)) => match (a.is_nan(), b.is_nan()) {
            (false, false) => a.partial_cmp(b).unwrap(),
            (a, b) => a.cmp(&b),
        },
        (Value::Decimal(a), Value::Decimal(b)) => a.cmp(b),
        (Value::Text(a), Value::Text(b)) => a.chars().cmp(b.chars()),
        (Value::Bytea(a), Value::Bytea(b)) => a.cmp(b),
        (Value::Uuid(a), Value::Uuid(b)) => a.cmp(b),
        _ => panic!("two values of one column have different types"),
    }
}

fn encode(layout: &TableLayout, values: &[Value]) -> (Vec<u8>, usize) {
    let mut key = b"before".to_vec();
    let partition_bytes = key_write(layout, values, &mut key).unwrap();
    assert_eq!(&key[..6], b"before");
    (key.split_off(6), partition_bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn order_of_bytes_is_order_of_values(
        (layout, a, b, same) in generate::table().prop_flat_map(|(_, layout)| {
            let (a, b) = (generate::key_values(&layout), generate::key_values(&layout));
            let same = prop::collection::vec(any::<bool>(), a.len());
            (Just(layout), a, b, same)
        })
    ) {
        let columns = a.iter().zip(b).zip(same);
        let b: Vec<Value> =
            columns.map(|((a, b), same)| if same { a.clone() } else { b }).collect();
        let expected = a.iter().zip(&b).map(|(a, b)| compare(a, b)).find(|o| o.is_ne());
        let (key_a, _) = encode(&layout, &a);
        let (key_b, _) = encode(&layout, &b);
        prop_assert_eq!(key_a.cmp(&key_b), expected.unwrap_or(Ordering::Equal), "{:?} {:?}", a, b);
        // No key is a prefix of another.
        prop_assert!(key_a == key_b || !key_a.starts_with(&key_b));
    }

    #[test]
    fn round_trip(
        (layout, values) in generate::table().prop_flat_map(|(_, layout)| {
            let values = generate::key_values(&layout);
            (Just(layout), values)
        })
    ) {
        let (key, partition_bytes) = encode(&layout, &values);
        prop_assert_eq!(key_validate(&layout, &key), Ok(partition_bytes));
        prop_assert_eq!(key_values(&layout, &key).unwrap(), values.clone());
        if let Some(fixed) = layout.partition_bytes_fixed() {
            prop_assert_eq!(fixed, partition_bytes);
        }
        // The partition prefix is the encoding of the partition columns alone.
        let mut prefix = Vec::new();
        let mut writer = KeyWriter::new(&layout, &mut prefix);
        for value in &values[..layout.partition_columns()] {
            writer.push(value.view()).unwrap();
        }
        let written = writer.finish_prefix().unwrap();
        prop_assert_eq!(&prefix, &key[..partition_bytes]);
        let (columns, partition_bytes) = (layout.partition_columns(), Some(partition_bytes));
        prop_assert_eq!(written, KeyPrefix { columns, partition_bytes });
        prop_assert_eq!(key_prefix_validate(&layout, &prefix), Ok(written));
        prop_assert!(prefix_successor(&prefix).is_none_or(|successor| successor > key));
    }

    #[test]
    fn mutations_are_refused_or_canonical(
        (layout, values, mutations) in generate::table().prop_flat_map(|(_, layout)| {
            let values = generate::key_values(&layout);
            (Just(layout), values, generate::mutations())
        })
    ) {
        let (mut key, _) = encode(&layout, &values);
        prop_assert!(key_check(&layout, &key));
        generate::mutate(&mut key, &mutations);
        key_check(&layout, &key);
    }
}

#[test]
fn floats_sort_by_number_and_have_one_zero_and_one_nan() {
    let layout = layout("t(f float8, primary key (f))");
    let encode = |value| encode(&layout, &[Value::Float8(value)]).0;
    let ascending = [f64::NEG_INFINITY, f64::MIN, -1.0, 0.0, 1.0, f64::INFINITY, f64::NAN];
    assert!(ascending.windows(2).all(|pair| encode(pair[0]) < encode(pair[1])));
    assert_eq!(encode(-0.0), encode(0.0));
    assert_eq!(encode(f64::from_bits(0xfff0_0000_0000_0001)), encode(f64::NAN));
    assert_eq!(float8_canonical(-0.0).to_bits(), 0);
    for bits in [0x7fff_ffff_ffff_ffffu64, 0xfff8_0000_0000_0001, 0x0007_ffff_ffff_ffff] {
        let error = ValueError::Float8NotCanonical;
        let refused = Err(KeyError::Value { position: 0, error });
        assert_eq!(key_validate(&layout, &bits.to_be_bytes()), refused, "{bits:#x}");
    }
}

#[test]
fn every_kind_of_damage_has_its_error() {
    let fixed = layout("t(a bool, b int2, primary key (a, b))");
    assert_eq!(key_validate(&fixed, &[1, 0x80, 0]), Ok(3));
    assert_eq!(
        key_validate(&fixed, &[1, 0x80]),
        Err(KeyError::LengthWrong { expected: 3, found: 2 })
    );
    let refused = Err(KeyError::Value { position: 0, error: ValueError::BoolInvalid });
    assert_eq!(key_validate(&fixed, &[2, 0x80, 0]), refused);
    let text = layout("t(a text, b int2, primary key (a, b), partition key (a))");
    assert_eq!(key_validate(&text, b"ab\0\x01\x80\0"), Ok(4));
    assert_eq!(key_validate(&text, b"ab\0\x01\x80"), Err(KeyError::Truncated { position: 1 }));
    assert_eq!(key_validate(&text, b"ab\0\x01"), Err(KeyError::Truncated { position: 1 }));
    assert_eq!(key_validate(&text, b"ab"), Err(KeyError::Truncated { position: 0 }));
    assert_eq!(key_validate(&text, b""), Err(KeyError::Truncated { position: 0 }));
    assert_eq!(key_validate(&text, b"a\0\x02\x80\0"), Err(KeyError::EscapeInvalid { position: 0 }));
    assert_eq!(key_validate(&text, b"a\0\x01\x80\0xy"), Err(KeyError::Excess { bytes: 2 }));
    let refused = Err(KeyError::Value { position: 0, error: ValueError::TextNotUtf8 });
    assert_eq!(key_validate(&text, b"a\xff\0\x01\x80\0"), refused);
    // A character torn by an escaped zero byte is no text.
    assert_eq!(key_validate(&text, b"\xc3\0\xff\xa9\0\x01\x80\0"), refused);
    let long = vec![b'a'; KEY_BYTES_MAX + 1];
    assert_eq!(key_validate(&text, &long), Err(KeyError::TooLong { bytes: KEY_BYTES_MAX + 1 }));
}

#[test]
fn decimals_keep_their_precision() {
    let layout = layout("t(d decimal(3,1), primary key (d))");
    let error = ValueError::DecimalTooLong { precision: 3 };
    for value in [1000, -1000, i128::MIN, i128::MAX] {
        let key = (value ^ i128::MIN).to_be_bytes();
        assert_eq!(key_validate(&layout, &key), Err(KeyError::Value { position: 0, error }));
        let written = key_write(&layout, &[Value::Decimal(value)], &mut Vec::new());
        assert_eq!(written, Err(KeyError::Value { position: 0, error }));
    }
    assert_eq!(key_validate(&layout, &(999 ^ i128::MIN).to_be_bytes()), Ok(16));
}

#[test]
fn a_writer_that_fails_leaves_the_buffer_as_it_was() {
    let layout = layout("t(a text, b int2, primary key (a, b))");
    let mut out = b"old".to_vec();
    let text = || Value::Text("x".to_owned());
    let (given, expected) = (1, 2);
    assert_eq!(
        key_write(&layout, &[text()], &mut out),
        Err(KeyError::ColumnsMissing { given, expected })
    );
    let values = [text(), Value::Int2(1), Value::Int2(1)];
    assert_eq!(key_write(&layout, &values, &mut out), Err(KeyError::ColumnsExcess { expected }));
    let error = ValueError::TypeMismatch { expected: ValueKind::Int2, given: ValueKind::Int4 };
    let refused = Err(KeyError::Value { position: 1, error });
    assert_eq!(key_write(&layout, &[text(), Value::Int4(1)], &mut out), refused);
    let refused = Err(KeyError::Value { position: 0, error: ValueError::NullNotAllowed });
    assert_eq!(key_write(&layout, &[Value::Null, Value::Int2(1)], &mut out), refused);
    for bytes in [KEY_BYTES_MAX - 3, KEY_BYTES_MAX + 1, 1 << 20] {
        let values = [Value::Text("x".repeat(bytes)), Value::Int2(1)];
        let written = key_write(&layout, &values, &mut out);
        assert!(matches!(written, Err(KeyError::TooLong { .. })));
    }
    assert_eq!(out, b"old");
    let values = [Value::Text("x".repeat(KEY_BYTES_MAX - 4)), Value::Int2(1)];
    assert_eq!(key_write(&layout, &values, &mut out), Ok(KEY_BYTES_MAX));
    assert_eq!(out.len(), 3 + KEY_BYTES_MAX);
}

#[test]
fn partitions_are_the_top_bits_of_the_hash() {
    for prefix in [&b""[..], b"a", b"12345678"] {
        let hash = xxhash_rust::xxh3::xxh3_64(prefix);
        assert_eq!(partition_of(prefix, 1).0, 0);
        for bits in 1..=10 {
            assert_eq!(u64::from(partition_of(prefix, 1 << bits).0), hash >> (64 - bits));
        }
    }
}

#[test]
fn the_successor_of_a_prefix_is_behind_all_that_begin_with_it() {
    assert_eq!(prefix_successor(b"ab"), Some(b"ac".to_vec()));
    assert_eq!(prefix_successor(b"a\xff\xff"), Some(b"b".to_vec()));
    assert_eq!(prefix_successor(b"\xff\xff"), None);
    assert_eq!(prefix_successor(b""), None);
}
