//! A table as a client uses it: typed values to encoded keys and rows and back, and the shard
//! where a key lives.

use crate::add::{AddArgument, AddError};
use crate::client::error::ClientError;
use crate::ids::TableId;
use crate::key::{KeyError, KeyWriter, key_validate, key_values, key_write, partition_of};
use crate::layout::{ColumnPlace, TableLayout};
use crate::limits::PARTITIONS_MAX;
use crate::message::Welcome;
use crate::patch::{PatchError, patch_write};
use crate::row::{RowError, RowView, RowWriter};
use crate::schema::{SchemaError, TableDefinition};
use crate::value::Value;

/// Why values do not fit a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The table has no such column.
    #[error("table {table} has no column {column}")]
    ColumnUnknown {
        /// The table.
        table: String,
        /// The name given.
        column: String,
    },
    /// The column is part of the key, which never changes.
    #[error("column {column} of table {table} is part of the key: insert another row instead")]
    ColumnOfKey {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// A row needs a value, or null, for every column.
    #[error("table {table} has {columns} columns, {values} values were given")]
    ValueCount {
        /// The table.
        table: String,
        /// Its columns.
        columns: usize,
        /// The values given.
        values: usize,
    },
    /// The key does not fit.
    #[error("key of table {table}: {error}")]
    Key {
        /// The table.
        table: String,
        /// Why.
        error: KeyError,
    },
    /// The row does not fit.
    #[error("row of table {table}: {error}")]
    Row {
        /// The table.
        table: String,
        /// Why.
        error: RowError,
    },
    /// The change of columns does not fit.
    #[error("change of table {table}: {error}")]
    Patch {
        /// The table.
        table: String,
        /// Why.
        error: PatchError,
    },
    /// The addition does not fit.
    #[error("addition to column {column}: {error}")]
    Add {
        /// The column.
        column: String,
        /// Why.
        error: AddError,
    },
}

/// Which shard of the node owns a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Router {
    partitions: u32,
    shards: u16,
}

impl Router {
    /// By what the node said of itself.
    pub fn new(welcome: &Welcome) -> Result<Self, ClientError> {
        let partitions = welcome.partitions;
        if !partitions.is_power_of_two() || partitions as usize > PARTITIONS_MAX {
            return Err(ClientError::Protocol("its number of partitions is impossible"));
        }
        let shards = u16::try_from(welcome.shard_ports.len()).unwrap_or(0);
        if shards == 0 || usize::from(shards) > PARTITIONS_MAX {
            return Err(ClientError::Protocol("its number of shards is impossible"));
        }
        Ok(Self { partitions, shards })
    }

    /// The shard of keys with this partition prefix.
    pub fn shard_of(&self, partition_prefix: &[u8]) -> u16 {
        partition_of(partition_prefix, self.partitions).0 % self.shards
    }

    /// Shards of the node.
    pub fn shards(&self) -> u16 {
        self.shards
    }
}

/// A table of a node.
#[derive(Clone, Debug)]
pub struct TableHandle {
    id: TableId,
    definition: TableDefinition,
    layout: TableLayout,
    router: Router,
}

impl TableHandle {
    /// A table that the node knows by `id`.
    pub fn new(
        id: TableId,
        definition: TableDefinition,
        router: Router,
    ) -> Result<Self, SchemaError> {
        let layout = TableLayout::new(&definition)?;
        Ok(Self { id, definition, layout, router })
    }

    /// Its id.
    pub fn id(&self) -> TableId {
        self.id
    }

    /// Its definition.
    pub fn definition(&self) -> &TableDefinition {
        &self.definition
    }

    /// Its layout, for writing keys and rows without [`Value`]s.
    pub fn layout(&self) -> &TableLayout {
        &self.layout
    }

    fn name(&self) -> String {
        self.definition.name.clone()
    }

    /// Index of a column by its name.
    pub fn column(&self, name: &str) -> Result<u16, TableError> {
        let unknown = || TableError::ColumnUnknown { table: self.name(), column: name.to_owned() };
        self.definition.column_index(name).ok_or_else(unknown)
    }

    /// The row's column of a column by its name.
    fn value_column(&self, name: &str) -> Result<usize, TableError> {
        let of_key = || TableError::ColumnOfKey { table: self.name(), column: name.to_owned() };
        self.layout.value_column(usize::from(self.column(name)?)).ok_or_else(of_key)
    }

    /// Appends the key of these values, which are in the order of the primary key. Returns the
    /// shard where it lives.
    pub fn write_key(&self, values: &[Value], out: &mut Vec<u8>) -> Result<u16, TableError> {
        let start = out.len();
        let written = key_write(&self.layout, values, out);
        let prefix = written.map_err(|error| TableError::Key { table: self.name(), error })?;
        Ok(self.router.shard_of(&out[start..start + prefix]))
    }

    /// Appends the encoding of the first columns of the key.
    pub fn write_key_prefix(&self, values: &[Value], out: &mut Vec<u8>) -> Result<(), TableError> {
        let mut write = || {
            let mut writer = KeyWriter::new(&self.layout, out);
            for value in values {
                writer.push(value.view())?;
            }
            writer.finish_prefix()
        };
        write().map_err(|error| TableError::Key { table: self.name(), error })?;
        Ok(())
    }

    /// The shard where an encoded key lives.
    pub fn shard_of(&self, key: &[u8]) -> Result<u16, TableError> {
        let checked = key_validate(&self.layout, key);
        let prefix = checked.map_err(|error| TableError::Key { table: self.name(), error })?;
        Ok(self.router.shard_of(&key[..prefix]))
    }

    /// Appends key and row of these values, one per column of the definition, to two buffers.
    /// Returns the shard where they live.
    pub fn write_row(
        &self,
        values: &[Value],
        key: &mut Vec<u8>,
        row: &mut Vec<u8>,
    ) -> Result<u16, TableError> {
        let columns = self.definition.columns.len();
        if values.len() != columns {
            return Err(TableError::ValueCount {
                table: self.name(),
                columns,
                values: values.len(),
            });
        }
        let start = key.len();
        let mut write_key = || {
            let mut writer = KeyWriter::new(&self.layout, key);
            for column in self.layout.key_columns() {
                writer.push(values[usize::from(column.column)].view())?;
            }
            writer.finish()
        };
        let prefix = write_key().map_err(|error| TableError::Key { table: self.name(), error })?;
        let mut write_row = || {
            let mut writer = RowWriter::new(&self.layout, row);
            for column in self.layout.value_columns() {
                writer.push(values[usize::from(column.column)].view())?;
            }
            writer.finish()
        };
        write_row().map_err(|error| TableError::Row { table: self.name(), error })?;
        Ok(self.router.shard_of(&key[start..start + prefix]))
    }

    /// Appends a change of these columns.
    pub fn write_patch(
        &self,
        columns: &[(&str, Value)],
        out: &mut Vec<u8>,
    ) -> Result<(), TableError> {
        let entry = |(name, value): &'_ (&str, Value)| {
            self.value_column(name).map(|column| (column, value.clone()))
        };
        let columns = columns.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        let views: Vec<_> = columns.iter().map(|(column, value)| (*column, value.view())).collect();
        let written = patch_write(&self.layout, &views, out);
        written.map_err(|error| TableError::Patch { table: self.name(), error })?;
        Ok(())
    }

    /// Appends the argument of an addition; returns the column's index in the definition.
    pub fn write_add(
        &self,
        column: &str,
        argument: &AddArgument,
        out: &mut Vec<u8>,
    ) -> Result<u16, TableError> {
        self.value_column(column)?;
        let index = self.column(column)?;
        let column_type = self.definition.columns[usize::from(index)].column_type;
        let written = argument.encode(column_type, out);
        written.map_err(|error| TableError::Add { column: column.to_owned(), error })?;
        Ok(index)
    }

    /// Decodes a row, one value per column of the definition.
    pub fn read_row(&self, key: &[u8], row: &[u8]) -> Result<Vec<Value>, TableError> {
        let key = key_values(&self.layout, key)
            .map_err(|error| TableError::Key { table: self.name(), error })?;
        let wrong = |error| TableError::Row { table: self.name(), error };
        let view = RowView::new(&self.layout, row).map_err(wrong)?;
        let value = |column| match self.layout.column_place(column) {
            Some(ColumnPlace::Key(position)) => Ok(key[position].clone()),
            Some(ColumnPlace::Value(position)) => view.get(position).map(Value::from),
            None => unreachable!("the layout has every column of its definition"),
        };
        (0..self.definition.columns.len()).map(value).collect::<Result<_, _>>().map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::add::AddBounded;

    fn welcome(partitions: u32, shards: usize) -> Welcome {
        Welcome {
            cluster: 1,
            node: 1,
            epoch: 1,
            leader: 1,
            partitions,
            shard: 0,
            shard_ports: vec![1; shards],
            ..Welcome::default()
        }
    }

    fn table() -> TableHandle {
        let text = "t(note text null, branch int8, id int8, balance int8, \
                    primary key (branch, id), partition key (branch))";
        let definition = TableDefinition::parse(text).expect("it parses");
        let router = Router::new(&welcome(256, 3)).expect("possible");
        TableHandle::new(TableId(4), definition, router).expect("valid")
    }

    #[test]
    fn impossible_welcomes_are_errors() {
        for (partitions, shards) in [(0, 1), (3, 1), (2048, 1), (256, 0), (256, 70_000)] {
            let router = Router::new(&welcome(partitions, shards));
            assert!(matches!(router, Err(ClientError::Protocol(_))), "{partitions} {shards}");
        }
    }

    #[test]
    fn rows_come_back_in_the_order_of_the_definition() {
        let table = table();
        let values =
            [Value::Text("x".to_owned()), Value::Int8(-3), Value::Int8(7), Value::Int8(100)];
        let (mut key, mut row) = (vec![9], vec![8]);
        let shard = table.write_row(&values, &mut key, &mut row).expect("it fits");
        assert_eq!(table.read_row(&key[1..], &row[1..]).expect("valid"), values);
        assert_eq!(table.shard_of(&key[1..]).expect("valid"), shard);
        let mut same = Vec::new();
        let same_shard = table.write_key(&[Value::Int8(-3), Value::Int8(7)], &mut same);
        assert_eq!((same_shard, &same[..]), (Ok(shard), &key[1..]));
        let mut prefix = Vec::new();
        table.write_key_prefix(&[Value::Int8(-3)], &mut prefix).expect("a prefix");
        assert!(key[1..].starts_with(&prefix));
    }

    #[test]
    fn rows_of_one_partition_key_share_a_shard_and_others_spread() {
        let table = table();
        let shard =
            |branch, id| table.write_key(&[Value::Int8(branch), Value::Int8(id)], &mut Vec::new());
        for id in 0..50 {
            assert_eq!(shard(5, id), shard(5, 0));
        }
        let mut seen = [false; 3];
        for branch in 0..50 {
            seen[usize::from(shard(branch, 0).expect("valid"))] = true;
        }
        assert_eq!(seen, [true; 3]);
    }

    #[test]
    fn wrong_values_are_typed_errors() {
        let table = table();
        let mut out = Vec::new();
        let count = table.write_row(&[Value::Null], &mut Vec::new(), &mut out);
        assert!(matches!(count, Err(TableError::ValueCount { columns: 4, values: 1, .. })));
        let key = table.write_key(&[Value::Int4(1), Value::Int8(1)], &mut out);
        assert!(matches!(key, Err(TableError::Key { .. })));
        let unknown = table.write_patch(&[("nothing", Value::Null)], &mut out);
        assert!(matches!(unknown, Err(TableError::ColumnUnknown { .. })));
        let of_key = table.write_patch(&[("id", Value::Int8(1))], &mut out);
        assert!(matches!(of_key, Err(TableError::ColumnOfKey { .. })));
        let null = table.write_patch(&[("balance", Value::Null)], &mut out);
        assert!(matches!(null, Err(TableError::Patch { .. })));
        let add = AddArgument::Int(AddBounded { delta: 1, min: None, max: None });
        assert!(matches!(table.write_add("note", &add, &mut out), Err(TableError::Add { .. })));
        assert!(matches!(table.read_row(&[1], &[]), Err(TableError::Key { .. })));
        assert!(out.is_empty(), "nothing is left of what did not fit");
    }
}
