//! Table definitions: validation, text form, archive.

use proptest::prelude::*;
use spillway_net::layout::TableLayout;
use spillway_net::limits::{COLUMNS_MAX, NAME_BYTES_MAX};
use spillway_net::schema::TableDefinition;
use spillway_net::schema::{ArchivedTableDefinition, ColumnDefinition, ColumnType, SchemaError};
use spillway_net::schema_text::SchemaTextError;

use crate::generate;

const ACCOUNTS: &str = "accounts(branch int8, id int8, balance decimal(18,2), note text null, \
                        primary key (branch, id), partition key (branch))";

proptest! {
    #[test]
    fn text_round_trip((definition, _) in generate::table()) {
        let text = definition.to_string();
        prop_assert_eq!(TableDefinition::parse(&text).unwrap(), definition);
    }

    #[test]
    fn archive_round_trip((definition, _) in generate::table()) {
        type Error = rkyv::rancor::Error;
        let bytes = rkyv::to_bytes::<Error>(&definition).unwrap();
        let archived = rkyv::access::<ArchivedTableDefinition, Error>(&bytes).unwrap();
        let again: TableDefinition = rkyv::deserialize::<_, Error>(archived).unwrap();
        prop_assert_eq!(again, definition);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[a-z0-9_(), \u{e9}`]{0,80}") {
        if let Ok(definition) = TableDefinition::parse(&text) {
            prop_assert_eq!(definition.validate(), Ok(()));
        }
    }

    #[test]
    fn a_changed_definition_is_read_or_refused(
        (definition, _) in generate::table(), mutations in generate::mutations()
    ) {
        let mut text = definition.to_string().into_bytes();
        generate::mutate(&mut text, &mutations);
        if let Ok(text) = String::from_utf8(text)
            && let Ok(definition) = TableDefinition::parse(&text)
        {
            let printed = definition.to_string();
            prop_assert_eq!(TableDefinition::parse(&printed), Ok(definition));
        }
    }
}

#[test]
fn the_example_is_read() {
    let table = TableDefinition::parse(ACCOUNTS).unwrap();
    assert_eq!(table.name, "accounts");
    assert_eq!(table.columns.len(), 4);
    assert_eq!(table.columns[2].column_type, ColumnType::Decimal { precision: 18, scale: 2 });
    assert!(table.columns[3].nullable && !table.columns[2].nullable);
    assert_eq!((table.key.as_slice(), table.partition_columns), (&[0, 1][..], 1));
    assert_eq!(table.to_string(), ACCOUNTS);
    let layout = TableLayout::new(&table).unwrap();
    assert_eq!((layout.key_bytes_fixed(), layout.partition_bytes_fixed()), (Some(16), Some(8)));
}

#[test]
fn words_of_the_grammar_may_be_names_and_the_partition_key_may_be_left_out() {
    let text = "key(primary int2, partition int2 not null, null text null, key int4, \
                primary key (partition, key))";
    let table = TableDefinition::parse(text).unwrap();
    assert_eq!((table.key.as_slice(), table.partition_columns), (&[1, 3][..], 2));
    assert_eq!(TableDefinition::parse(&table.to_string()).unwrap(), table);
}

#[test]
fn errors_name_the_place() {
    let error = |text: &str| TableDefinition::parse(text).unwrap_err().to_string();
    assert_eq!(
        error("t(a bigint, primary key (a))"),
        "at character 5 of the table definition: expected bool, int2, int4, int8, float8, \
         decimal(PRECISION,SCALE), text, bytea, date, timestamptz or uuid, found `bigint`"
    );
    assert_eq!(
        error("t(a int8, primary key (b))"),
        "at character 24 of the table definition: the table has no column `b` before this place"
    );
    assert_eq!(
        error("t(a int8, b int8, primary key (a, b), partition key (b))"),
        "at character 54 of the table definition: the partition key must consist of the first \
         columns of the primary key, in its order"
    );
    assert_eq!(
        error("t(a int8"),
        "at character 9 of the table definition: expected `,` or `)`, found the end"
    );
    assert!(error("t(a int8)").contains("add `primary key (COLUMN, ...)`"));
    assert!(error("t(a int8, primary key (a), primary key (a))").contains("only one primary key"));
    assert!(error("t(a int8, partition key (a), primary key (a))").contains("after the primary"));
    assert!(error("t(a int8, primary key (a)) x").contains("expected the end"));
    assert!(error("t(a decimal(300,1), primary key (a))").contains("precision, 1 to 38"));
    assert!(error("").contains("the name of the table, found the end"));
    let partition_too_long = "t(a int8, b int8, primary key (a), partition key (a, b))";
    assert!(matches!(
        TableDefinition::parse(partition_too_long),
        Err(SchemaTextError::PartitionKey { position: 54 })
    ));
    let long = " ".repeat(1 << 20);
    assert!(matches!(TableDefinition::parse(&long), Err(SchemaTextError::TooLong { .. })));
}

#[test]
fn validation_refuses_each_defect() {
    let good = TableDefinition::parse(ACCOUNTS).unwrap();
    let defect = |change: fn(&mut TableDefinition)| {
        let mut table = good.clone();
        change(&mut table);
        assert!(TableLayout::new(&table).is_err());
        table.validate().unwrap_err()
    };
    let name = |name: &str| name.to_owned();
    assert_eq!(defect(|t| t.columns.clear()), SchemaError::ColumnsNone);
    assert_eq!(defect(|t| t.key.clear()), SchemaError::KeyNone);
    let duplicate = SchemaError::ColumnDuplicate { name: name("`id`") };
    assert_eq!(defect(|t| t.columns[3].name = "id".to_owned()), duplicate);
    let unknown = SchemaError::KeyColumnUnknown { index: 4, count: 4 };
    assert_eq!(defect(|t| t.key[1] = 4), unknown);
    let twice = SchemaError::KeyColumnDuplicate { name: name("`branch`") };
    assert_eq!(defect(|t| t.key[1] = 0), twice);
    let nullable = SchemaError::KeyColumnNullable { name: name("`note`") };
    assert_eq!(defect(|t| t.key[1] = 3), nullable);
    let partition = |given| SchemaError::PartitionColumns { given, count: 2 };
    assert_eq!(defect(|t| t.partition_columns = 0), partition(0));
    assert_eq!(defect(|t| t.partition_columns = 3), partition(3));
    let decimal = |t: &mut TableDefinition, precision, scale| {
        t.columns[2].column_type = ColumnType::Decimal { precision, scale };
        t.validate().unwrap_err()
    };
    let column = || name("`balance`");
    for precision in [0, 39] {
        let refused = SchemaError::DecimalPrecision { name: column(), precision };
        assert_eq!(decimal(&mut good.clone(), precision, 0), refused);
    }
    let refused = SchemaError::DecimalScale { name: column(), precision: 5, scale: 6 };
    assert_eq!(decimal(&mut good.clone(), 5, 6), refused);
}

#[test]
fn names_are_lower_case_identifiers() {
    let good = TableDefinition::parse(ACCOUNTS).unwrap();
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    for name in ["", "1a", "A", "a-b", "\u{e9}", "a b", "a\0", long.as_str()] {
        let mut table = good.clone();
        table.name = name.to_owned();
        assert!(matches!(table.validate(), Err(SchemaError::NameInvalid { .. })), "{name:?}");
        let mut table = good.clone();
        table.columns[3].name = name.to_owned();
        assert!(matches!(table.validate(), Err(SchemaError::NameInvalid { .. })), "{name:?}");
    }
    let mut table = good.clone();
    table.name = "_".repeat(NAME_BYTES_MAX);
    assert_eq!(table.validate(), Ok(()));
    // The message is short whatever the name is.
    table.name = "x".repeat(1 << 20);
    assert!(table.validate().unwrap_err().to_string().len() < 300);
}

#[test]
fn column_and_key_limits_hold() {
    let column = |index: usize, column_type| ColumnDefinition {
        name: format!("c{index}"),
        column_type,
        nullable: false,
    };
    let wide = |count: usize, key: u16| TableDefinition {
        name: "t".to_owned(),
        columns: (0..count).map(|index| column(index, ColumnType::Uuid)).collect(),
        key: (0..key).collect(),
        partition_columns: 1,
    };
    assert!(TableLayout::new(&wide(COLUMNS_MAX, 1)).is_ok());
    let count = COLUMNS_MAX + 1;
    assert_eq!(wide(count, 1).validate(), Err(SchemaError::ColumnsTooMany { count }));
    let text = wide(count, 1).to_string();
    assert!(matches!(
        TableDefinition::parse(&text),
        Err(SchemaTextError::Schema(SchemaError::ColumnsTooMany { .. }))
    ));
    assert!(TableLayout::new(&wide(COLUMNS_MAX, 64)).is_ok());
    assert_eq!(wide(COLUMNS_MAX, 65).validate(), Err(SchemaError::KeyTooLong { bytes: 1040 }));
}
