//! A table definition prepared for the hot path: offsets, widths and what there is to check.

#![deny(clippy::indexing_slicing)]

use crate::limits::{COLUMNS_MAX, KEY_BYTES_MAX, ROW_BYTES_MAX};
use crate::schema::{ColumnType, SchemaError, TableDefinition};

// A table has a key column, so a value column's index and the number of value columns fit a byte
// of a patch.
const _: () = assert!(COLUMNS_MAX <= 256);
// Offsets in rows are `u16`. The last end is not stored, so an offset exists only beside a second
// one's two bytes of head.
const _: () = assert!(ROW_BYTES_MAX - 2 <= u16::MAX as usize);
// The head of a row of the most and widest columns always fits.
const _: () = assert!(COLUMNS_MAX * 16 + COLUMNS_MAX / 8 <= ROW_BYTES_MAX);
const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize);

/// Where a column of the table is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnPlace {
    /// In the key, at this position.
    Key(usize),
    /// In the row, as this value column.
    Value(usize),
}

/// One column of the key.
#[derive(Clone, Copy, Debug)]
pub struct KeyColumn {
    /// Index in the table definition.
    pub column: u16,
    /// Type of the values.
    pub column_type: ColumnType,
}

/// A fixed column of an all-fixed key whose bytes have rules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyCheck {
    pub(crate) position: u16,
    pub(crate) start: u16,
    pub(crate) end: u16,
    pub(crate) column_type: ColumnType,
}

/// Where a row keeps the bytes of a value column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValuePlace {
    /// Bytes of the head.
    Fixed { start: u16, end: u16 },
    /// The column is the row's n-th of variable length.
    Variable { ordinal: u16 },
}

/// One column outside the key.
#[derive(Clone, Copy, Debug)]
pub struct ValueColumn {
    /// Index in the table definition.
    pub column: u16,
    /// Type of the values.
    pub column_type: ColumnType,
    /// Whether null is allowed.
    pub nullable: bool,
    pub(crate) null_byte: u16,
    /// Zero if the column takes no null.
    pub(crate) null_mask: u8,
    pub(crate) place: ValuePlace,
}

/// A value column with its number, so that checking a row walks one list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowCheck {
    pub(crate) value_column: u16,
    pub(crate) column: ValueColumn,
}

/// A table definition prepared for encoding and checking keys, rows and patches.
///
/// A *value column* is a column outside the key; value columns are numbered from 0 in the order
/// of the table definition.
#[derive(Clone, Debug)]
pub struct TableLayout {
    pub(crate) columns: Vec<ColumnPlace>,
    pub(crate) key: Vec<KeyColumn>,
    pub(crate) partition_columns: usize,
    pub(crate) key_bytes_fixed: Option<usize>,
    pub(crate) partition_bytes_fixed: Option<usize>,
    pub(crate) key_checks: Vec<KeyCheck>,
    pub(crate) values: Vec<ValueColumn>,
    pub(crate) null_bytes: usize,
    /// Bits of the bitmap's last byte that belong to no column.
    pub(crate) null_unused: u8,
    /// First byte of the stored end offsets.
    pub(crate) offsets_start: usize,
    /// Bytes of a row before the first variable byte.
    pub(crate) head_bytes: usize,
    /// Value columns of variable length, in order.
    pub(crate) variable: Vec<RowCheck>,
    /// Fixed value columns that are nullable or whose bytes have rules.
    pub(crate) fixed_checks: Vec<RowCheck>,
}

impl TableLayout {
    /// Validates the definition and lays the table out.
    pub fn new(definition: &TableDefinition) -> Result<TableLayout, SchemaError> {
        definition.validate()?;
        let mut layout = TableLayout {
            columns: vec![ColumnPlace::Value(0); definition.columns.len()],
            key: Vec::with_capacity(definition.key.len()),
            partition_columns: usize::from(definition.partition_columns),
            key_bytes_fixed: None,
            partition_bytes_fixed: None,
            key_checks: Vec::new(),
            values: Vec::with_capacity(definition.columns.len() - definition.key.len()),
            null_bytes: 0,
            null_unused: 0,
            offsets_start: 0,
            head_bytes: 0,
            variable: Vec::new(),
            fixed_checks: Vec::new(),
        };
        layout.key_lay_out(definition);
        layout.row_lay_out(definition);
        assert!(layout.key.len() + layout.values.len() == layout.columns.len());
        assert!(layout.head_bytes <= ROW_BYTES_MAX, "the head of a row exceeds a row");
        Ok(layout)
    }

    fn key_lay_out(&mut self, definition: &TableDefinition) {
        let mut end = Some(0);
        for (position, &index) in definition.key.iter().enumerate() {
            let column = definition.columns.get(usize::from(index)).expect("definition is valid");
            let place = self.columns.get_mut(usize::from(index)).expect("definition is valid");
            *place = ColumnPlace::Key(position);
            let column_type = column.column_type;
            self.key.push(KeyColumn { column: index, column_type });
            let start = end;
            end = start.zip(column_type.fixed_bytes()).map(|(start, bytes)| start + bytes);
            if let (Some(start), Some(end)) = (start, end)
                && !column_type.takes_all_bytes()
            {
                let (start, end) = (start as u16, end as u16);
                let position = position as u16;
                self.key_checks.push(KeyCheck { position, start, end, column_type });
            }
            if position + 1 == self.partition_columns {
                self.partition_bytes_fixed = end;
            }
        }
        self.key_bytes_fixed = end;
    }

    fn row_lay_out(&mut self, definition: &TableDefinition) {
        let outside_key = |place: &ColumnPlace| !matches!(place, ColumnPlace::Key(_));
        let all = definition.columns.iter().zip(&mut self.columns).enumerate();
        let mut nullable_count = 0;
        for (index, (column, place)) in all.filter(|(_, (_, place))| outside_key(place)) {
            *place = ColumnPlace::Value(self.values.len());
            let (mut null_byte, mut null_mask) = (0, 0);
            if column.nullable {
                null_byte = nullable_count / 8;
                null_mask = 1 << (nullable_count % 8);
                nullable_count += 1;
            }
            self.values.push(ValueColumn {
                column: index as u16,
                column_type: column.column_type,
                nullable: column.nullable,
                null_byte,
                null_mask,
                // Set below, when the length of the bitmap is known.
                place: ValuePlace::Variable { ordinal: 0 },
            });
        }
        self.null_bytes = usize::from(nullable_count).div_ceil(8);
        self.null_unused = match nullable_count % 8 {
            0 => 0,
            used => !0 << used,
        };
        let mut end = self.null_bytes;
        for (index, value) in self.values.iter_mut().enumerate() {
            let value_column = index as u16;
            if let Some(bytes) = value.column_type.fixed_bytes() {
                let start = end;
                end += bytes;
                value.place = ValuePlace::Fixed { start: start as u16, end: end as u16 };
                if value.nullable || !value.column_type.takes_all_bytes() {
                    self.fixed_checks.push(RowCheck { value_column, column: *value });
                }
            } else {
                value.place = ValuePlace::Variable { ordinal: self.variable.len() as u16 };
                self.variable.push(RowCheck { value_column, column: *value });
            }
        }
        self.offsets_start = end;
        self.head_bytes = end + 2 * self.variable.len().saturating_sub(1);
    }

    /// Where the column of the table definition is kept.
    pub fn column_place(&self, column: usize) -> Option<ColumnPlace> {
        self.columns.get(column).copied()
    }

    /// Position in the key of the column of the table definition.
    pub fn key_position(&self, column: usize) -> Option<usize> {
        match self.columns.get(column) {
            Some(ColumnPlace::Key(position)) => Some(*position),
            _ => None,
        }
    }

    /// Value column of the column of the table definition.
    pub fn value_column(&self, column: usize) -> Option<usize> {
        match self.columns.get(column) {
            Some(ColumnPlace::Value(value_column)) => Some(*value_column),
            _ => None,
        }
    }

    /// Columns of the key, in key order.
    pub fn key_columns(&self) -> &[KeyColumn] {
        &self.key
    }

    /// Columns outside the key, in the order of the table definition.
    pub fn value_columns(&self) -> &[ValueColumn] {
        &self.values
    }

    /// How many leading columns of the key form the partition key.
    pub fn partition_columns(&self) -> usize {
        self.partition_columns
    }

    /// Length of every key, bytes, if all have the same.
    pub fn key_bytes_fixed(&self) -> Option<usize> {
        self.key_bytes_fixed
    }

    /// Length of the partition key in every key, bytes; `None` if it must be found by a scan.
    pub fn partition_bytes_fixed(&self) -> Option<usize> {
        self.partition_bytes_fixed
    }

    /// Length of every row, bytes, if all have the same.
    pub fn row_bytes_fixed(&self) -> Option<usize> {
        self.variable.is_empty().then_some(self.head_bytes)
    }

    /// Length of the shortest row, bytes.
    pub fn row_bytes_min(&self) -> usize {
        self.head_bytes
    }
}
