//! Random tables, values and mutations.

use proptest::prelude::*;
use proptest::sample::Index;
use spillway_net::layout::TableLayout;
use spillway_net::schema::{ColumnDefinition, ColumnType, TableDefinition};
use spillway_net::value::{
    DATE_DAYS_MAX, DATE_DAYS_MIN, TIMESTAMP_MICROS_MAX, TIMESTAMP_MICROS_MIN, Value,
};

pub fn column_type() -> impl Strategy<Value = ColumnType> {
    prop_oneof![
        Just(ColumnType::Bool),
        Just(ColumnType::Int2),
        Just(ColumnType::Int4),
        Just(ColumnType::Int8),
        Just(ColumnType::Float8),
        (1..=38u8).prop_flat_map(|precision| {
            (0..=precision).prop_map(move |scale| ColumnType::Decimal { precision, scale })
        }),
        Just(ColumnType::Text),
        Just(ColumnType::Text),
        Just(ColumnType::Bytea),
        Just(ColumnType::Bytea),
        Just(ColumnType::Date),
        Just(ColumnType::Timestamptz),
        Just(ColumnType::Uuid),
    ]
}

/// A valid table of up to 12 columns with its layout.
pub fn table() -> impl Strategy<Value = (TableDefinition, TableLayout)> {
    let columns = prop::collection::vec((column_type(), any::<bool>(), any::<u32>()), 1..12);
    (columns, any::<Index>(), any::<Index>()).prop_map(|(columns, key, partition)| {
        let key_columns = 1 + key.index(columns.len().min(5));
        let mut order: Vec<u16> = (0..columns.len() as u16).collect();
        order.sort_by_key(|index| columns[usize::from(*index)].2);
        let key = order[..key_columns].to_vec();
        let definition = TableDefinition {
            name: "t".to_owned(),
            columns: columns
                .iter()
                .enumerate()
                .map(|(index, (column_type, nullable, _))| ColumnDefinition {
                    name: format!("c{index}"),
                    column_type: *column_type,
                    nullable: *nullable && !key.contains(&(index as u16)),
                })
                .collect(),
            partition_columns: 1 + partition.index(key_columns) as u16,
            key,
        };
        let layout = TableLayout::new(&definition).expect("the table is valid");
        (definition, layout)
    })
}

fn float8() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        prop::sample::select(vec![
            0.0,
            -0.0,
            1.0,
            -1.0,
            f64::MIN,
            f64::MAX,
            f64::MIN_POSITIVE,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
            -f64::NAN,
            f64::from_bits(1),
            f64::from_bits(1 | 1 << 63),
        ]),
    ]
}

fn text() -> impl Strategy<Value = String> {
    let special = vec!['\0', '\u{1}', '\u{ff}', 'a', 'b', '\\', '\n', '\u{7f}', '\u{10ffff}'];
    prop_oneof![
        prop::collection::vec(prop::sample::select(special), 0..6)
            .prop_map(|characters| characters.into_iter().collect()),
        prop::collection::vec(any::<char>(), 0..8)
            .prop_map(|characters| characters.into_iter().collect()),
    ]
}

fn bytea() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![prop::sample::select(vec![0u8, 1, 2, 0xfe, 0xff]), any::<u8>()];
    prop::collection::vec(byte, 0..7)
}

/// A value that is not null.
pub fn value(column_type: ColumnType) -> BoxedStrategy<Value> {
    match column_type {
        ColumnType::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        ColumnType::Int2 => {
            prop_oneof![any::<i16>(), -2..3i16, Just(i16::MIN)].prop_map(Value::Int2).boxed()
        }
        ColumnType::Int4 => {
            prop_oneof![any::<i32>(), -2..3i32, Just(i32::MIN)].prop_map(Value::Int4).boxed()
        }
        ColumnType::Int8 => {
            prop_oneof![any::<i64>(), -2..3i64, Just(i64::MIN)].prop_map(Value::Int8).boxed()
        }
        ColumnType::Float8 => float8().prop_map(Value::Float8).boxed(),
        ColumnType::Decimal { precision, .. } => {
            let max = 10i128.pow(u32::from(precision)) - 1;
            prop_oneof![-max..=max, Just(max), Just(-max), -1..2i128]
                .prop_map(Value::Decimal)
                .boxed()
        }
        ColumnType::Text => text().prop_map(Value::Text).boxed(),
        ColumnType::Bytea => bytea().prop_map(Value::Bytea).boxed(),
        ColumnType::Date => {
            prop_oneof![DATE_DAYS_MIN..=DATE_DAYS_MAX, Just(DATE_DAYS_MIN), Just(DATE_DAYS_MAX)]
                .prop_map(Value::Date)
                .boxed()
        }
        ColumnType::Timestamptz => prop_oneof![
            TIMESTAMP_MICROS_MIN..=TIMESTAMP_MICROS_MAX,
            Just(TIMESTAMP_MICROS_MIN),
            Just(TIMESTAMP_MICROS_MAX),
            -2..3i64
        ]
        .prop_map(Value::Timestamptz)
        .boxed(),
        ColumnType::Uuid => any::<[u8; 16]>().prop_map(Value::Uuid).boxed(),
    }
}

fn value_or_null(column_type: ColumnType, nullable: bool) -> BoxedStrategy<Value> {
    if nullable {
        prop_oneof![1 => Just(Value::Null), 2 => value(column_type)].boxed()
    } else {
        value(column_type)
    }
}

/// The values of one key.
pub fn key_values(layout: &TableLayout) -> Vec<BoxedStrategy<Value>> {
    layout.key_columns().iter().map(|column| value(column.column_type)).collect()
}

/// The values of one row.
pub fn row_values(layout: &TableLayout) -> Vec<BoxedStrategy<Value>> {
    let columns = layout.value_columns().iter();
    columns.map(|column| value_or_null(column.column_type, column.nullable)).collect()
}

/// New values for some columns of a row: a mask, and a value for every column.
pub fn changes(layout: &TableLayout) -> impl Strategy<Value = Vec<(usize, Value)>> + use<> {
    let mask = prop::collection::vec(any::<bool>(), layout.value_columns().len());
    (mask, row_values(layout)).prop_map(|(mask, values)| {
        let all = values.into_iter().enumerate();
        all.zip(mask).filter(|(_, take)| *take).map(|(change, _)| change).collect()
    })
}

/// A change to encoded bytes.
#[derive(Clone, Debug)]
pub enum Mutation {
    Set(Index, u8),
    FlipBit(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Truncate(Index),
    Swap(Index, Index),
}

pub fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let byte = || prop_oneof![prop::sample::select(vec![0u8, 1, 2, 0x7f, 0x80, 0xff]), any::<u8>()];
    let mutation = prop_oneof![
        3 => (any::<Index>(), byte()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        3 => (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Mutation::FlipBit(at, bit)),
        1 => (any::<Index>(), byte()).prop_map(|(at, byte)| Mutation::Insert(at, byte)),
        1 => any::<Index>().prop_map(Mutation::Remove),
        1 => any::<Index>().prop_map(Mutation::Truncate),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Mutation::Swap(a, b)),
    ];
    prop::collection::vec(mutation, 1..4)
}

pub fn mutate(bytes: &mut Vec<u8>, mutations: &[Mutation]) {
    for mutation in mutations {
        if let Mutation::Insert(at, byte) = mutation {
            bytes.insert(at.index(bytes.len() + 1), *byte);
            continue;
        }
        if bytes.is_empty() {
            continue;
        }
        let length = bytes.len();
        match mutation {
            Mutation::Set(at, byte) => bytes[at.index(length)] = *byte,
            Mutation::FlipBit(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Mutation::Remove(at) => drop(bytes.remove(at.index(length))),
            Mutation::Truncate(at) => bytes.truncate(at.index(length)),
            Mutation::Swap(a, b) => bytes.swap(a.index(length), b.index(length)),
            Mutation::Insert(..) => unreachable!("handled above"),
        }
    }
}
