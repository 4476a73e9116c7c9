//! What a table looks like: columns, primary key, partition key.
//!
//! The module [`crate::schema_text`] reads and writes definitions as text.

#![deny(clippy::indexing_slicing)]

use rkyv::{Archive, Deserialize, Serialize};

use crate::limits::{COLUMNS_MAX, KEY_BYTES_MAX, NAME_BYTES_MAX};
use crate::value::{DECIMAL_PRECISION_MAX, ValueKind};

pub use column_type::{ArchivedColumnType, ColumnType, ColumnTypeResolver};

mod column_type {
    #![expect(missing_docs, reason = "the derive leaves the fields of the resolver's variant bare")]

    use rkyv::{Archive, Deserialize, Serialize};

    /// The type of a column.
    #[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ColumnType {
        /// True or false.
        Bool,
        /// 16-bit integer.
        Int2,
        /// 32-bit integer.
        Int4,
        /// 64-bit integer.
        Int8,
        /// 64-bit float.
        Float8,
        /// Exact decimal number.
        Decimal {
            /// Digits in all, 1 to 38.
            precision: u8,
            /// Digits after the point, at most `precision`.
            scale: u8,
        },
        /// UTF-8 text.
        Text,
        /// Bytes.
        Bytea,
        /// Calendar date, days since 1970-01-01.
        Date,
        /// Instant, microseconds since 1970-01-01T00:00:00Z.
        Timestamptz,
        /// UUID.
        Uuid,
    }
}

impl ColumnType {
    /// The type without its parameters.
    #[inline]
    pub const fn kind(self) -> ValueKind {
        match self {
            ColumnType::Bool => ValueKind::Bool,
            ColumnType::Int2 => ValueKind::Int2,
            ColumnType::Int4 => ValueKind::Int4,
            ColumnType::Int8 => ValueKind::Int8,
            ColumnType::Float8 => ValueKind::Float8,
            ColumnType::Decimal { .. } => ValueKind::Decimal,
            ColumnType::Text => ValueKind::Text,
            ColumnType::Bytea => ValueKind::Bytea,
            ColumnType::Date => ValueKind::Date,
            ColumnType::Timestamptz => ValueKind::Timestamptz,
            ColumnType::Uuid => ValueKind::Uuid,
        }
    }

    /// Bytes of a value in rows, patches and keys; `None` if values differ in length.
    #[inline]
    pub const fn fixed_bytes(self) -> Option<usize> {
        match self {
            ColumnType::Bool => Some(1),
            ColumnType::Int2 => Some(2),
            ColumnType::Int4 | ColumnType::Date => Some(4),
            ColumnType::Int8 | ColumnType::Float8 | ColumnType::Timestamptz => Some(8),
            ColumnType::Decimal { .. } | ColumnType::Uuid => Some(16),
            ColumnType::Text | ColumnType::Bytea => None,
        }
    }

    /// Whether every byte string of the right length is a value, so that nothing is to check.
    pub(crate) const fn takes_all_bytes(self) -> bool {
        matches!(
            self,
            ColumnType::Int2
                | ColumnType::Int4
                | ColumnType::Int8
                | ColumnType::Uuid
                | ColumnType::Bytea
        )
    }
}

/// One column of a table.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ColumnDefinition {
    /// Lower-case identifier, unique in its table.
    pub name: String,
    /// Type of the values.
    pub column_type: ColumnType,
    /// Whether null is allowed.
    pub nullable: bool,
}

/// One table.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TableDefinition {
    /// Lower-case identifier.
    pub name: String,
    /// All columns, those of the key among them.
    pub columns: Vec<ColumnDefinition>,
    /// Columns of the primary key as indices into `columns`, in key order.
    pub key: Vec<u16>,
    /// How many leading columns of the key form the partition key; at least one.
    pub partition_columns: u16,
}

/// Why a table definition is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Not a lower-case identifier.
    #[error(
        "the name {name} is not an identifier: 1 to {NAME_BYTES_MAX} of a-z, 0-9 and _, \
         not beginning with a digit"
    )]
    NameInvalid {
        /// The name, quoted and cut.
        name: String,
    },
    /// No columns at all.
    #[error("a table needs at least one column")]
    ColumnsNone,
    /// More columns than the limit.
    #[error("{count} columns are more than the {COLUMNS_MAX} that a table may have")]
    ColumnsTooMany {
        /// Columns of the definition.
        count: usize,
    },
    /// Two columns with one name.
    #[error("the column {name} is defined twice")]
    ColumnDuplicate {
        /// The name.
        name: String,
    },
    /// Precision of a decimal out of range.
    #[error("the column {name} has decimal precision {precision}; it must be 1 to 38")]
    DecimalPrecision {
        /// The column.
        name: String,
        /// The precision.
        precision: u8,
    },
    /// Scale of a decimal above its precision.
    #[error("the column {name} has decimal scale {scale}, above its precision {precision}")]
    DecimalScale {
        /// The column.
        name: String,
        /// The precision.
        precision: u8,
        /// The scale.
        scale: u8,
    },
    /// No primary key.
    #[error("a table needs a primary key: add `primary key (COLUMN, ...)`")]
    KeyNone,
    /// A key column that does not exist.
    #[error("the primary key names column number {index}, but the table has {count} columns")]
    KeyColumnUnknown {
        /// Index in the definition.
        index: u16,
        /// Columns of the definition.
        count: usize,
    },
    /// A column twice in the key.
    #[error("the column {name} stands twice in the primary key")]
    KeyColumnDuplicate {
        /// The column.
        name: String,
    },
    /// A nullable column in the key.
    #[error("the column {name} is part of the primary key and cannot be `null`")]
    KeyColumnNullable {
        /// The column.
        name: String,
    },
    /// The fixed columns of the key alone are longer than a key may be.
    #[error("keys of this table have at least {bytes} bytes, more than {KEY_BYTES_MAX}")]
    KeyTooLong {
        /// Length of the shortest key.
        bytes: usize,
    },
    /// Partition key empty or longer than the primary key.
    #[error(
        "the partition key has {given} columns; it must be a prefix of the primary key's {count}"
    )]
    PartitionColumns {
        /// Columns of the partition key.
        given: u16,
        /// Columns of the primary key.
        count: usize,
    },
}

/// Whether a table or column may have this name.
pub fn name_valid(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= NAME_BYTES_MAX
        && bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// A name for an error message: quoted, escaped, and cut, since it may come from anybody.
pub(crate) fn name_quoted(name: &str) -> String {
    let cut: String = name.chars().take(NAME_BYTES_MAX).collect();
    let tail = if cut.len() < name.len() { "..." } else { "" };
    format!("`{}{tail}`", cut.escape_debug())
}

impl TableDefinition {
    /// Index of the column with this name.
    pub fn column_index(&self, name: &str) -> Option<u16> {
        self.columns.iter().position(|column| column.name == name).map(|index| index as u16)
    }

    /// Checks everything that [`crate::layout::TableLayout`] and the encodings rely on.
    pub fn validate(&self) -> Result<(), SchemaError> {
        // The count comes first: what follows is quadratic in it.
        match self.columns.len() {
            0 => return Err(SchemaError::ColumnsNone),
            count if count > COLUMNS_MAX => return Err(SchemaError::ColumnsTooMany { count }),
            _ => {}
        }
        name_check(&self.name)?;
        for (index, column) in self.columns.iter().enumerate() {
            name_check(&column.name)?;
            if self.columns.iter().take(index).any(|earlier| earlier.name == column.name) {
                return Err(SchemaError::ColumnDuplicate { name: name_quoted(&column.name) });
            }
            decimal_check(column)?;
        }
        self.key_validate()
    }

    fn key_validate(&self) -> Result<(), SchemaError> {
        if self.key.is_empty() {
            return Err(SchemaError::KeyNone);
        }
        let mut seen = [false; COLUMNS_MAX];
        let mut bytes = 0;
        for &index in &self.key {
            let unknown = SchemaError::KeyColumnUnknown { index, count: self.columns.len() };
            let Some(column) = self.columns.get(usize::from(index)) else { return Err(unknown) };
            let Some(seen) = seen.get_mut(usize::from(index)) else { return Err(unknown) };
            if std::mem::replace(seen, true) {
                return Err(SchemaError::KeyColumnDuplicate { name: name_quoted(&column.name) });
            }
            if column.nullable {
                return Err(SchemaError::KeyColumnNullable { name: name_quoted(&column.name) });
            }
            // An empty text still has its two bytes of terminator.
            bytes += column.column_type.fixed_bytes().unwrap_or(2);
        }
        if bytes > KEY_BYTES_MAX {
            return Err(SchemaError::KeyTooLong { bytes });
        }
        if self.partition_columns == 0 || usize::from(self.partition_columns) > self.key.len() {
            let (given, count) = (self.partition_columns, self.key.len());
            return Err(SchemaError::PartitionColumns { given, count });
        }
        Ok(())
    }
}

fn name_check(name: &str) -> Result<(), SchemaError> {
    if name_valid(name) {
        Ok(())
    } else {
        Err(SchemaError::NameInvalid { name: name_quoted(name) })
    }
}

fn decimal_check(column: &ColumnDefinition) -> Result<(), SchemaError> {
    let ColumnType::Decimal { precision, scale } = column.column_type else { return Ok(()) };
    let name = name_quoted(&column.name);
    if precision == 0 || precision > DECIMAL_PRECISION_MAX {
        return Err(SchemaError::DecimalPrecision { name, precision });
    }
    if scale > precision {
        return Err(SchemaError::DecimalScale { name, precision, scale });
    }
    Ok(())
}
