//! Keys: an encoding whose order as bytes is the order of the values, column by column.
//!
//! Every column's encoding is free of prefixes within its type, so columns simply follow each
//! other. Every value has one encoding, so equal keys are equal bytes.

#![deny(clippy::indexing_slicing)]

use xxhash_rust::xxh3::xxh3_64;

use crate::ids::PartitionId;
use crate::layout::TableLayout;
use crate::limits::{KEY_BYTES_MAX, PARTITIONS_MAX};
use crate::schema::ColumnType;
use crate::value::{
    Value, ValueError, ValueKind, ValueRef, date_check, decimal_check, fixed, float8_bits_check,
    float8_canonical, timestamp_check,
};

/// Stands for a zero byte of a text or bytea, after the zero byte itself.
const ESCAPE_ZERO: u8 = 0xff;
/// Ends a text or bytea, after a zero byte. Less than anything that continues the value.
const ESCAPE_END: u8 = 0x01;

/// Why a key is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Longer than any key may be.
    #[error("a key of {bytes} bytes exceeds the limit of {KEY_BYTES_MAX}")]
    TooLong {
        /// Length of the key.
        bytes: usize,
    },
    /// Another length than all keys of the table have.
    #[error("a key has {found} bytes, keys of this table have {expected}; is the schema current?")]
    LengthWrong {
        /// Length of every key of the table.
        expected: usize,
        /// Length of this key.
        found: usize,
    },
    /// The key ends within a column.
    #[error("a key ends within its column {position}; is the schema current?")]
    Truncated {
        /// Position in the key.
        position: u16,
    },
    /// Bytes after the last column.
    #[error("a key goes on for {bytes} bytes after its last column; is the schema current?")]
    Excess {
        /// Bytes too many.
        bytes: usize,
    },
    /// A zero byte followed by neither of the two bytes that may follow it.
    #[error("column {position} of a key holds an invalid escape sequence")]
    EscapeInvalid {
        /// Position in the key.
        position: u16,
    },
    /// A value that its column does not take.
    #[error("column {position} of a key: {error}")]
    Value {
        /// Position in the key.
        position: u16,
        /// What is wrong with the value.
        error: ValueError,
    },
    /// Fewer columns given than the key has.
    #[error("{given} columns given for a key of {expected}")]
    ColumnsMissing {
        /// Columns given.
        given: usize,
        /// Columns of the key.
        expected: usize,
    },
    /// More columns given than the key has.
    #[error("more columns given than the {expected} of the key")]
    ColumnsExcess {
        /// Columns of the key.
        expected: usize,
    },
}

/// The partition of a key: the top bits of the hash of its partition prefix, the bytes up to the
/// length that [`key_validate`] or [`KeyWriter::finish`] returned. `partitions` is a power of two.
#[inline]
pub fn partition_of(prefix: &[u8], partitions: u32) -> PartitionId {
    assert!(
        partitions.is_power_of_two() && partitions as usize <= PARTITIONS_MAX,
        "partitions must be a power of two within the limit"
    );
    // Above 2^32, the hash's high half times a power of two is its top bits, also of none.
    PartitionId((((xxh3_64(prefix) >> 32) * u64::from(partitions)) >> 32) as u16)
}

/// The least byte string that is greater than every string beginning with `prefix`; `None` if
/// there is none. The end of a range over everything under a key prefix.
pub fn prefix_successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut successor = prefix.get(..=kept)?.to_vec();
    *successor.last_mut()? += 1;
    Some(successor)
}

/// Checks a key, and returns the length of its partition prefix in bytes.
#[inline]
pub fn key_validate(layout: &TableLayout, bytes: &[u8]) -> Result<usize, KeyError> {
    match (layout.key_bytes_fixed, layout.partition_bytes_fixed) {
        (Some(expected), Some(partition_bytes)) => {
            if bytes.len() != expected {
                return Err(KeyError::LengthWrong { expected, found: bytes.len() });
            }
            for check in &layout.key_checks {
                let position = check.position;
                let range = usize::from(check.start)..usize::from(check.end);
                let column = bytes.get(range).ok_or(KeyError::Truncated { position })?;
                fixed_decode(check.column_type, column)
                    .map_err(|error| KeyError::Value { position, error })?;
            }
            Ok(partition_bytes)
        }
        _ => key_scan(layout, bytes),
    }
}

fn key_scan(layout: &TableLayout, bytes: &[u8]) -> Result<usize, KeyError> {
    let prefix = key_prefix_validate(layout, bytes)?;
    match prefix.partition_bytes {
        Some(partition_bytes) if prefix.columns == layout.key.len() => Ok(partition_bytes),
        _ => Err(KeyError::Truncated { position: prefix.columns as u16 }),
    }
}

/// What a key prefix holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyPrefix {
    /// Leading columns of the key that the prefix holds.
    pub columns: usize,
    /// Length of the partition key, bytes, if the prefix holds all of its columns.
    pub partition_bytes: Option<usize>,
}

/// Checks the encoding of any number of leading key columns: the bound of a scan.
pub fn key_prefix_validate(layout: &TableLayout, bytes: &[u8]) -> Result<KeyPrefix, KeyError> {
    if bytes.len() > KEY_BYTES_MAX {
        return Err(KeyError::TooLong { bytes: bytes.len() });
    }
    let mut rest = bytes;
    let mut partition_bytes = None;
    let mut columns = 0;
    for (position, column) in layout.key.iter().enumerate() {
        if rest.is_empty() {
            break;
        }
        rest = column_check(column.column_type, rest, position as u16)?;
        columns = position + 1;
        if columns == layout.partition_columns {
            partition_bytes = Some(bytes.len() - rest.len());
        }
    }
    if !rest.is_empty() {
        return Err(KeyError::Excess { bytes: rest.len() });
    }
    Ok(KeyPrefix { columns, partition_bytes })
}

/// Checks the column that `bytes` begin with, and returns what follows it.
fn column_check(column_type: ColumnType, bytes: &[u8], position: u16) -> Result<&[u8], KeyError> {
    if let Some(length) = column_type.fixed_bytes() {
        let split = bytes.split_at_checked(length);
        let (column, rest) = split.ok_or(KeyError::Truncated { position })?;
        fixed_decode(column_type, column).map_err(|error| KeyError::Value { position, error })?;
        return Ok(rest);
    }
    segments(bytes, position, |segment| match column_type {
        // UTF-8 has no zero byte within a character, so a text is valid if its segments are.
        ColumnType::Text if std::str::from_utf8(segment).is_err() => {
            Err(KeyError::Value { position, error: ValueError::TextNotUtf8 })
        }
        _ => Ok(()),
    })
}

/// Calls `visit` with the stretches between the zero bytes of the escaped value that `bytes`
/// begin with, and returns what follows the value.
fn segments<'a>(
    bytes: &'a [u8],
    position: u16,
    mut visit: impl FnMut(&'a [u8]) -> Result<(), KeyError>,
) -> Result<&'a [u8], KeyError> {
    let mut rest = bytes;
    loop {
        let zero = rest.iter().position(|b| *b == 0).ok_or(KeyError::Truncated { position })?;
        let (segment, after) = rest.split_at_checked(zero).unwrap_or((rest, &[]));
        visit(segment)?;
        match after {
            [0, ESCAPE_END, after @ ..] => return Ok(after),
            [0, ESCAPE_ZERO, after @ ..] => rest = after,
            [0] | [] => return Err(KeyError::Truncated { position }),
            _ => return Err(KeyError::EscapeInvalid { position }),
        }
    }
}

/// Decodes and checks a column of fixed length.
#[inline]
fn fixed_decode(column_type: ColumnType, bytes: &[u8]) -> Result<ValueRef<'static>, ValueError> {
    Ok(match column_type {
        ColumnType::Bool => match fixed::<1>(bytes)? {
            [0] => ValueRef::Bool(false),
            [1] => ValueRef::Bool(true),
            _ => return Err(ValueError::BoolInvalid),
        },
        ColumnType::Int2 => ValueRef::Int2(i16::from_be_bytes(fixed(bytes)?) ^ i16::MIN),
        ColumnType::Int4 => ValueRef::Int4(i32::from_be_bytes(fixed(bytes)?) ^ i32::MIN),
        ColumnType::Int8 => ValueRef::Int8(i64::from_be_bytes(fixed(bytes)?) ^ i64::MIN),
        ColumnType::Float8 => {
            let bits = float8_bits_decode(u64::from_be_bytes(fixed(bytes)?));
            float8_bits_check(bits)?;
            ValueRef::Float8(f64::from_bits(bits))
        }
        ColumnType::Decimal { precision, .. } => {
            let value = i128::from_be_bytes(fixed(bytes)?) ^ i128::MIN;
            decimal_check(value, precision)?;
            ValueRef::Decimal(value)
        }
        ColumnType::Date => {
            let days = i32::from_be_bytes(fixed(bytes)?) ^ i32::MIN;
            date_check(days)?;
            ValueRef::Date(days)
        }
        ColumnType::Timestamptz => {
            let micros = i64::from_be_bytes(fixed(bytes)?) ^ i64::MIN;
            timestamp_check(micros)?;
            ValueRef::Timestamptz(micros)
        }
        ColumnType::Uuid => ValueRef::Uuid(fixed(bytes)?),
        ColumnType::Text | ColumnType::Bytea => return Err(ValueError::LengthWrong),
    })
}

/// Positive floats get their sign bit set, negative ones are inverted: unsigned order is then
/// numeric order, and the canonical NaN, which is positive, comes last.
const fn float8_bits_encode(bits: u64) -> u64 {
    if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
}

const fn float8_bits_decode(bits: u64) -> u64 {
    if bits >> 63 == 0 { !bits } else { bits & !(1 << 63) }
}

/// Builds a key at the end of a caller's buffer, one column after the other in key order.
///
/// The buffer keeps its old content until [`KeyWriter::finish`] has succeeded: a writer dropped
/// before takes away what it wrote.
#[derive(Debug)]
pub struct KeyWriter<'a> {
    layout: &'a TableLayout,
    out: &'a mut Vec<u8>,
    start: usize,
    columns: usize,
    partition_bytes: usize,
    finished: bool,
}

impl<'a> KeyWriter<'a> {
    /// A key of the table, to be appended to `out`.
    #[inline]
    pub fn new(layout: &'a TableLayout, out: &'a mut Vec<u8>) -> KeyWriter<'a> {
        let start = out.len();
        KeyWriter { layout, out, start, columns: 0, partition_bytes: 0, finished: false }
    }

    /// Appends any value that is not null.
    pub fn push(&mut self, value: ValueRef<'_>) -> Result<&mut Self, KeyError> {
        match value {
            ValueRef::Bool(v) => self.push_bool(v),
            ValueRef::Int2(v) => self.push_int2(v),
            ValueRef::Int4(v) => self.push_int4(v),
            ValueRef::Int8(v) => self.push_int8(v),
            ValueRef::Float8(v) => self.push_float8(v),
            ValueRef::Decimal(v) => self.push_decimal(v),
            ValueRef::Text(v) => self.push_text(v),
            ValueRef::Bytea(v) => self.push_bytea(v),
            ValueRef::Date(v) => self.push_date(v),
            ValueRef::Timestamptz(v) => self.push_timestamptz(v),
            ValueRef::Uuid(v) => self.push_uuid(v),
            ValueRef::Null => {
                let position = self.columns as u16;
                Err(KeyError::Value { position, error: ValueError::NullNotAllowed })
            }
        }
    }

    /// Appends a bool.
    #[inline]
    pub fn push_bool(&mut self, value: bool) -> Result<&mut Self, KeyError> {
        self.fixed(ValueRef::Bool(value), [u8::from(value)])
    }

    /// Appends an int2.
    #[inline]
    pub fn push_int2(&mut self, value: i16) -> Result<&mut Self, KeyError> {
        self.fixed(ValueRef::Int2(value), (value ^ i16::MIN).to_be_bytes())
    }

    /// Appends an int4.
    #[inline]
    pub fn push_int4(&mut self, value: i32) -> Result<&mut Self, KeyError> {
        self.fixed(ValueRef::Int4(value), (value ^ i32::MIN).to_be_bytes())
    }

    /// Appends an int8.
    #[inline]
    pub fn push_int8(&mut self, value: i64) -> Result<&mut Self, KeyError> {
        self.fixed(ValueRef::Int8(value), (value ^ i64::MIN).to_be_bytes())
    }

    /// Appends a float8, in its canonical form.
    #[inline]
    pub fn push_float8(&mut self, value: f64) -> Result<&mut Self, KeyError> {
        let bits = float8_bits_encode(float8_canonical(value).to_bits());
        self.fixed(ValueRef::Float8(value), bits.to_be_bytes())
    }

    /// Appends a decimal, scaled to an integer by the column's scale.
    #[inline]
    pub fn push_decimal(&mut self, value: i128) -> Result<&mut Self, KeyError> {
        self.fixed(ValueRef::Decimal(value), (value ^ i128::MIN).to_be_bytes())
    }

    /// Appends a date, days since 1970-01-01.
    #[inline]
    pub fn push_date(&mut self, days: i32) -> Result<&mut Self, KeyError> {
        self.fixed(ValueRef::Date(days), (days ^ i32::MIN).to_be_bytes())
    }

    /// Appends a timestamptz, microseconds since 1970-01-01T00:00:00Z.
    #[inline]
    pub fn push_timestamptz(&mut self, micros: i64) -> Result<&mut Self, KeyError> {
        self.fixed(ValueRef::Timestamptz(micros), (micros ^ i64::MIN).to_be_bytes())
    }

    /// Appends a UUID.
    #[inline]
    pub fn push_uuid(&mut self, value: [u8; 16]) -> Result<&mut Self, KeyError> {
        self.fixed(ValueRef::Uuid(value), value)
    }

    /// Appends a text.
    pub fn push_text(&mut self, value: &str) -> Result<&mut Self, KeyError> {
        self.variable(ValueKind::Text, value.as_bytes())
    }

    /// Appends a bytea.
    pub fn push_bytea(&mut self, value: &[u8]) -> Result<&mut Self, KeyError> {
        self.variable(ValueKind::Bytea, value)
    }

    /// Ends a whole key, and returns the length of its partition prefix in bytes.
    #[inline]
    pub fn finish(mut self) -> Result<usize, KeyError> {
        let (given, expected) = (self.columns, self.layout.key.len());
        if given != expected {
            return Err(KeyError::ColumnsMissing { given, expected });
        }
        let bytes = self.out.len() - self.start;
        if bytes > KEY_BYTES_MAX {
            return Err(KeyError::TooLong { bytes });
        }
        self.finished = true;
        Ok(self.partition_bytes)
    }

    /// Ends a prefix of a key with any number of columns: the bound of a scan.
    pub fn finish_prefix(mut self) -> Result<KeyPrefix, KeyError> {
        let bytes = self.out.len() - self.start;
        if bytes > KEY_BYTES_MAX {
            return Err(KeyError::TooLong { bytes });
        }
        self.finished = true;
        let has_partition = self.columns >= self.layout.partition_columns;
        let partition_bytes = has_partition.then_some(self.partition_bytes);
        Ok(KeyPrefix { columns: self.columns, partition_bytes })
    }

    #[inline]
    fn column_type(&self) -> Result<ColumnType, KeyError> {
        match self.layout.key.get(self.columns) {
            Some(column) => Ok(column.column_type),
            None => Err(KeyError::ColumnsExcess { expected: self.layout.key.len() }),
        }
    }

    #[inline]
    fn fixed<const N: usize>(
        &mut self,
        value: ValueRef<'_>,
        bytes: [u8; N],
    ) -> Result<&mut Self, KeyError> {
        let position = self.columns as u16;
        let checked = value.check(self.column_type()?);
        checked.map_err(|error| KeyError::Value { position, error })?;
        self.out.extend_from_slice(&bytes);
        self.column_end();
        Ok(self)
    }

    fn variable(&mut self, given: ValueKind, value: &[u8]) -> Result<&mut Self, KeyError> {
        let position = self.columns as u16;
        let expected = self.column_type()?.kind();
        if expected != given {
            let error = ValueError::TypeMismatch { expected, given };
            return Err(KeyError::Value { position, error });
        }
        // Before anything is copied: a value of any length must not fill the buffer.
        if value.len() > KEY_BYTES_MAX {
            return Err(KeyError::TooLong { bytes: value.len() });
        }
        let mut rest = value;
        while let Some(zero) = rest.iter().position(|byte| *byte == 0) {
            let (segment, after) = rest.split_at_checked(zero).unwrap_or((rest, &[]));
            self.out.extend_from_slice(segment);
            self.out.extend_from_slice(&[0, ESCAPE_ZERO]);
            rest = after.get(1..).unwrap_or(&[]);
        }
        self.out.extend_from_slice(rest);
        self.out.extend_from_slice(&[0, ESCAPE_END]);
        self.column_end();
        Ok(self)
    }

    #[inline]
    fn column_end(&mut self) {
        self.columns += 1;
        if self.columns == self.layout.partition_columns {
            self.partition_bytes = self.out.len() - self.start;
        }
    }
}

impl Drop for KeyWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.out.truncate(self.start);
        }
    }
}

/// Appends a whole key of these values, and returns the length of its partition prefix in bytes.
pub fn key_write(
    layout: &TableLayout,
    values: &[Value],
    out: &mut Vec<u8>,
) -> Result<usize, KeyError> {
    let mut writer = KeyWriter::new(layout, out);
    for value in values {
        writer.push(value.view())?;
    }
    writer.finish()
}

/// Decodes a key column by column; ends after the last whole column or the first error.
#[derive(Clone, Debug)]
pub struct KeyReader<'a> {
    layout: &'a TableLayout,
    rest: &'a [u8],
    position: usize,
}

impl<'a> KeyReader<'a> {
    /// Reads a key, or a prefix of one that ends between two columns.
    pub fn new(layout: &'a TableLayout, bytes: &'a [u8]) -> KeyReader<'a> {
        KeyReader { layout, rest: bytes, position: 0 }
    }

    fn column(&mut self, column_type: ColumnType) -> Result<Value, KeyError> {
        let position = self.position as u16;
        if let Some(length) = column_type.fixed_bytes() {
            let split = self.rest.split_at_checked(length);
            let (column, rest) = split.ok_or(KeyError::Truncated { position })?;
            self.rest = rest;
            let value = fixed_decode(column_type, column);
            return match value {
                Ok(value) => Ok(value.to_value()),
                Err(error) => Err(KeyError::Value { position, error }),
            };
        }
        let mut value = Vec::new();
        let mut first = true;
        self.rest = segments(self.rest, position, |segment| {
            if !std::mem::take(&mut first) {
                value.push(0);
            }
            value.extend_from_slice(segment);
            Ok(())
        })?;
        if column_type == ColumnType::Bytea {
            return Ok(Value::Bytea(value));
        }
        let error = ValueError::TextNotUtf8;
        String::from_utf8(value).map(Value::Text).map_err(|_| KeyError::Value { position, error })
    }
}

impl Iterator for KeyReader<'_> {
    type Item = Result<Value, KeyError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some(column) = self.layout.key.get(self.position) else {
            let bytes = std::mem::take(&mut self.rest).len();
            return Some(Err(KeyError::Excess { bytes }));
        };
        let value = self.column(column.column_type);
        self.position += 1;
        if value.is_err() {
            self.rest = &[];
        }
        Some(value)
    }
}

/// Decodes a whole key.
pub fn key_values(layout: &TableLayout, bytes: &[u8]) -> Result<Vec<Value>, KeyError> {
    key_validate(layout, bytes)?;
    KeyReader::new(layout, bytes).collect()
}
