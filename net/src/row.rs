//! Rows: the columns outside the key, dense, in the one encoding that their values have.
//!
//! `null bitmap | fixed columns | end offsets | bytes`, little-endian. The bitmap has a bit for
//! each nullable column only; the end of the last variable column is the end of the row and is
//! not stored. A row of one `bytea` is therefore just its bytes.

#![deny(clippy::indexing_slicing)]

use crate::layout::{RowCheck, TableLayout, ValueColumn, ValuePlace};
use crate::limits::ROW_BYTES_MAX;
use crate::value::{
    Value, ValueError, ValueKind, ValueRef, fixed, float8_canonical, value_bytes_check,
};

/// Why a row is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Longer than any row may be.
    #[error("a row of {bytes} bytes exceeds the limit of {ROW_BYTES_MAX}")]
    TooLong {
        /// Length of the row.
        bytes: usize,
    },
    /// Shorter than the fixed part, or not as long as a row without variable columns is.
    #[error("a row has {found} bytes, this table's need {expected}; is the schema current?")]
    LengthWrong {
        /// Bytes of the fixed part.
        expected: usize,
        /// Bytes of the row.
        found: usize,
    },
    /// A bit of the null bitmap that belongs to no column is set.
    #[error("a row's null bitmap has a bit set that belongs to no column")]
    NullBitUnused,
    /// An end offset before its predecessor or behind the end of the row.
    #[error("value column {value_column} of a row ends outside its place")]
    OffsetInvalid {
        /// The value column.
        value_column: u16,
    },
    /// A value that its column does not take.
    #[error("value column {value_column} of a row: {error}")]
    Value {
        /// The value column.
        value_column: u16,
        /// What is wrong with the value.
        error: ValueError,
    },
    /// A value column that the table does not have.
    #[error("value column {value_column} does not exist; the table has {count}")]
    ColumnUnknown {
        /// The value column asked for.
        value_column: usize,
        /// Value columns of the table.
        count: usize,
    },
    /// Fewer values given than the row has.
    #[error("{given} values given for a row of {expected}")]
    ColumnsMissing {
        /// Values given.
        given: usize,
        /// Value columns of the table.
        expected: usize,
    },
}

/// Checks a row: after this every getter of [`RowView`] succeeds on it, and writing its values
/// again gives the same bytes.
#[inline]
pub fn row_validate(layout: &TableLayout, bytes: &[u8]) -> Result<(), RowError> {
    if bytes.len() > ROW_BYTES_MAX {
        return Err(RowError::TooLong { bytes: bytes.len() });
    }
    let length = RowError::LengthWrong { expected: layout.head_bytes, found: bytes.len() };
    let (head, tail) = bytes.split_at_checked(layout.head_bytes).ok_or(length)?;
    if layout.variable.is_empty() && !tail.is_empty() {
        return Err(length);
    }
    if layout.null_unused != 0
        && let Some(last) = head.get(layout.null_bytes - 1)
        && last & layout.null_unused != 0
    {
        return Err(RowError::NullBitUnused);
    }
    for &RowCheck { value_column, ref column } in &layout.fixed_checks {
        let ValuePlace::Fixed { start, end } = column.place else { continue };
        let value = head.get(usize::from(start)..usize::from(end)).ok_or(length)?;
        let checked = if is_null(column, head) {
            null_fixed_check(value)
        } else {
            value_bytes_check(column.column_type, value)
        };
        checked.map_err(|error| RowError::Value { value_column, error })?;
    }
    variable_validate(layout, head, tail)
}

#[inline]
fn variable_validate(layout: &TableLayout, head: &[u8], tail: &[u8]) -> Result<(), RowError> {
    let mut start = 0;
    for (ordinal, check) in layout.variable.iter().enumerate() {
        let &RowCheck { value_column, ref column } = check;
        let end = variable_end(layout, head, tail.len(), ordinal);
        let value = tail.get(start..end).ok_or(RowError::OffsetInvalid { value_column })?;
        start = end;
        let checked = match is_null(column, head) {
            true if value.is_empty() => Ok(()),
            true => Err(ValueError::NullNotEmpty),
            false => value_bytes_check(column.column_type, value),
        };
        checked.map_err(|error| RowError::Value { value_column, error })?;
    }
    Ok(())
}

#[inline]
fn null_fixed_check(bytes: &[u8]) -> Result<(), ValueError> {
    if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(ValueError::NullNotEmpty) }
}

/// Whether the head of a row says that this column is null.
#[inline]
pub(crate) fn is_null(column: &ValueColumn, head: &[u8]) -> bool {
    column.null_mask != 0
        && head.get(usize::from(column.null_byte)).is_some_and(|byte| byte & column.null_mask != 0)
}

/// End of the n-th variable column within the variable bytes. An `ordinal` past the stored
/// offsets, or a head too short, gives the end of the row.
#[inline]
fn variable_end(layout: &TableLayout, head: &[u8], tail_bytes: usize, ordinal: usize) -> usize {
    if ordinal + 1 >= layout.variable.len() {
        return tail_bytes;
    }
    let stored = head.get(layout.offsets_start + 2 * ordinal..);
    match stored.and_then(|stored| stored.first_chunk::<2>()) {
        Some(end) => usize::from(u16::from_le_bytes(*end)),
        None => tail_bytes,
    }
}

/// A row for reading.
#[derive(Clone, Copy, Debug)]
pub struct RowView<'a> {
    layout: &'a TableLayout,
    bytes: &'a [u8],
}

impl<'a> RowView<'a> {
    /// Checks the row, and lets its values be read.
    #[inline]
    pub fn new(layout: &'a TableLayout, bytes: &'a [u8]) -> Result<RowView<'a>, RowError> {
        row_validate(layout, bytes)?;
        Ok(RowView { layout, bytes })
    }

    /// A row that was checked before. Reading one that was not gives errors or wrong values, but
    /// never reads outside it.
    #[inline]
    pub fn validated(layout: &'a TableLayout, bytes: &'a [u8]) -> RowView<'a> {
        RowView { layout, bytes }
    }

    /// The encoded row.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    #[inline]
    fn column(&self, value_column: usize) -> Result<&'a ValueColumn, RowError> {
        let count = self.layout.values.len();
        self.layout.values.get(value_column).ok_or(RowError::ColumnUnknown { value_column, count })
    }

    /// The bytes of a value column; `None` if it is null.
    #[inline]
    pub fn raw(&self, value_column: usize) -> Result<Option<&'a [u8]>, RowError> {
        let column = self.column(value_column)?;
        if is_null(column, self.bytes) {
            return Ok(None);
        }
        let value = match column.place {
            ValuePlace::Fixed { start, end } => {
                self.bytes.get(usize::from(start)..usize::from(end))
            }
            ValuePlace::Variable { ordinal } => self.variable(usize::from(ordinal)),
        };
        let (expected, found) = (self.layout.head_bytes, self.bytes.len());
        value.map(Some).ok_or(RowError::LengthWrong { expected, found })
    }

    /// The bytes of a value column of this type; `None` if it is null.
    #[inline]
    fn raw_typed(
        &self,
        value_column: usize,
        given: ValueKind,
    ) -> Result<Option<&'a [u8]>, RowError> {
        let expected = self.column(value_column)?.column_type.kind();
        if expected != given {
            let error = ValueError::TypeMismatch { expected, given };
            return Err(RowError::Value { value_column: value_column as u16, error });
        }
        self.raw(value_column)
    }

    #[inline]
    fn variable(&self, ordinal: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(self.layout.head_bytes)?;
        let start = match ordinal.checked_sub(1) {
            Some(before) => variable_end(self.layout, head, tail.len(), before),
            None => 0,
        };
        tail.get(start..variable_end(self.layout, head, tail.len(), ordinal))
    }

    /// The value of a value column.
    pub fn get(&self, value_column: usize) -> Result<ValueRef<'a>, RowError> {
        let column_type = self.column(value_column)?.column_type;
        let Some(bytes) = self.raw(value_column)? else { return Ok(ValueRef::Null) };
        ValueRef::decode(column_type, bytes)
            .map_err(|error| RowError::Value { value_column: value_column as u16, error })
    }

    /// All values, in the order of the value columns.
    pub fn values(&self) -> impl Iterator<Item = Result<ValueRef<'a>, RowError>> + use<'a> {
        let view = *self;
        (0..self.layout.values.len()).map(move |value_column| view.get(value_column))
    }

    /// Whether a value column is null.
    #[inline]
    pub fn is_null(&self, value_column: usize) -> Result<bool, RowError> {
        Ok(is_null(self.column(value_column)?, self.bytes))
    }
}

/// Typed getters: `None` is null, and another type than the column's is an error.
macro_rules! getter {
    ($($(#[$doc:meta])* $name:ident: $kind:ident -> $result:ty, $decode:expr;)*) => {
        impl<'a> RowView<'a> {
            $(
                $(#[$doc])*
                #[inline]
                pub fn $name(&self, value_column: usize) -> Result<Option<$result>, RowError> {
                    let bytes = self.raw_typed(value_column, ValueKind::$kind)?;
                    let decode: fn(&'a [u8]) -> Result<$result, ValueError> = $decode;
                    bytes.map(decode).transpose().map_err(|error| {
                        RowError::Value { value_column: value_column as u16, error }
                    })
                }
            )*
        }
    };
}

getter! {
    /// A bool column.
    bool: Bool -> bool, |bytes| fixed(bytes).map(|[byte]| byte != 0);
    /// An int2 column.
    int2: Int2 -> i16, |bytes| fixed(bytes).map(i16::from_le_bytes);
    /// An int4 column.
    int4: Int4 -> i32, |bytes| fixed(bytes).map(i32::from_le_bytes);
    /// An int8 column.
    int8: Int8 -> i64, |bytes| fixed(bytes).map(i64::from_le_bytes);
    /// A float8 column.
    float8: Float8 -> f64, |bytes| fixed(bytes).map(f64::from_le_bytes);
    /// A decimal column, scaled to an integer by the column's scale.
    decimal: Decimal -> i128, |bytes| fixed(bytes).map(i128::from_le_bytes);
    /// A text column.
    text: Text -> &'a str, |bytes| str::from_utf8(bytes).map_err(|_| ValueError::TextNotUtf8);
    /// A bytea column.
    bytea: Bytea -> &'a [u8], Ok;
    /// A date column, days since 1970-01-01.
    date: Date -> i32, |bytes| fixed(bytes).map(i32::from_le_bytes);
    /// A timestamptz column, microseconds since 1970-01-01T00:00:00Z.
    timestamptz: Timestamptz -> i64, |bytes| fixed(bytes).map(i64::from_le_bytes);
    /// A uuid column.
    uuid: Uuid -> [u8; 16], fixed;
}

/// Builds a row at the end of a caller's buffer, one value column after the other.
///
/// The buffer keeps its old content until [`RowWriter::finish`] has succeeded: a writer dropped
/// before takes away what it wrote.
#[derive(Debug)]
pub struct RowWriter<'a> {
    layout: &'a TableLayout,
    out: &'a mut Vec<u8>,
    start: usize,
    columns: usize,
    finished: bool,
}

impl<'a> RowWriter<'a> {
    /// A row of the table, to be appended to `out`.
    #[inline]
    pub fn new(layout: &'a TableLayout, out: &'a mut Vec<u8>) -> RowWriter<'a> {
        let start = out.len();
        out.resize(start + layout.head_bytes, 0);
        RowWriter { layout, out, start, columns: 0, finished: false }
    }

    /// Appends the next value column's value.
    #[inline]
    pub fn push(&mut self, value: ValueRef<'_>) -> Result<&mut Self, RowError> {
        match value {
            ValueRef::Null => self.null(),
            ValueRef::Bool(v) => self.fixed(value, [u8::from(v)]),
            ValueRef::Int2(v) => self.fixed(value, v.to_le_bytes()),
            ValueRef::Int4(v) | ValueRef::Date(v) => self.fixed(value, v.to_le_bytes()),
            ValueRef::Int8(v) | ValueRef::Timestamptz(v) => self.fixed(value, v.to_le_bytes()),
            ValueRef::Float8(v) => self.fixed(value, float8_canonical(v).to_le_bytes()),
            ValueRef::Decimal(v) => self.fixed(value, v.to_le_bytes()),
            ValueRef::Uuid(v) => self.fixed(value, v),
            ValueRef::Text(v) => self.variable(value, v.as_bytes()),
            ValueRef::Bytea(v) => self.variable(value, v),
        }
    }

    /// The next value column, if it takes the value.
    #[inline]
    fn column(&self, value: ValueRef<'_>) -> Result<&'a ValueColumn, RowError> {
        let value_column = self.columns;
        let count = self.layout.values.len();
        let unknown = RowError::ColumnUnknown { value_column, count };
        let column = self.layout.values.get(value_column).ok_or(unknown)?;
        let value_column = value_column as u16;
        match value.check(column.column_type) {
            Ok(()) => Ok(column),
            Err(error) => Err(RowError::Value { value_column, error }),
        }
    }

    #[inline]
    fn fixed<const N: usize>(
        &mut self,
        value: ValueRef<'_>,
        bytes: [u8; N],
    ) -> Result<&mut Self, RowError> {
        let column = self.column(value)?;
        if let ValuePlace::Fixed { start, .. } = column.place {
            // The head was appended as zeros, so the null bit is right already.
            let place = self.out.get_mut(self.start + usize::from(start)..);
            let place = place.and_then(|place| place.first_chunk_mut::<N>());
            *place.expect("the head holds every fixed column") = bytes;
        }
        self.columns += 1;
        Ok(self)
    }

    #[inline]
    fn variable(&mut self, value: ValueRef<'_>, bytes: &[u8]) -> Result<&mut Self, RowError> {
        if let ValuePlace::Variable { ordinal } = self.column(value)?.place {
            variable_push(self.layout, self.out, self.start, ordinal, bytes)?;
        }
        self.columns += 1;
        Ok(self)
    }

    fn null(&mut self) -> Result<&mut Self, RowError> {
        let value_column = self.columns;
        let count = self.layout.values.len();
        let unknown = RowError::ColumnUnknown { value_column, count };
        let column = self.layout.values.get(value_column).ok_or(unknown)?;
        if !column.nullable {
            let (value_column, error) = (value_column as u16, ValueError::NullNotAllowed);
            return Err(RowError::Value { value_column, error });
        }
        if let ValuePlace::Variable { ordinal } = column.place {
            variable_push(self.layout, self.out, self.start, ordinal, &[])?;
        }
        head_set(column, self.out.get_mut(self.start..).unwrap_or(&mut []), None);
        self.columns += 1;
        Ok(self)
    }

    /// Ends the row, and returns its length in bytes.
    #[inline]
    pub fn finish(mut self) -> Result<usize, RowError> {
        let (given, expected) = (self.columns, self.layout.values.len());
        if given != expected {
            return Err(RowError::ColumnsMissing { given, expected });
        }
        self.finished = true;
        Ok(self.out.len() - self.start)
    }
}

impl Drop for RowWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.out.truncate(self.start);
        }
    }
}

/// Puts a checked value into the head of a row: the null bit, and the bytes of a fixed column.
#[inline]
pub(crate) fn head_set(column: &ValueColumn, head: &mut [u8], value: Option<&[u8]>) {
    if column.null_mask != 0
        && let Some(byte) = head.get_mut(usize::from(column.null_byte))
    {
        *byte &= !column.null_mask;
        if value.is_none() {
            *byte |= column.null_mask;
        }
    }
    if let ValuePlace::Fixed { start, end } = column.place
        && let Some(place) = head.get_mut(usize::from(start)..usize::from(end))
    {
        match value {
            Some(value) => place.copy_from_slice(value),
            None => place.fill(0),
        }
    }
}

/// Appends the bytes of the n-th variable column to the row that begins at `start` of `out`, and
/// stores their end.
#[inline]
pub(crate) fn variable_push(
    layout: &TableLayout,
    out: &mut Vec<u8>,
    start: usize,
    ordinal: u16,
    value: &[u8],
) -> Result<(), RowError> {
    let bytes = out.len() - start + value.len();
    if bytes > ROW_BYTES_MAX {
        return Err(RowError::TooLong { bytes });
    }
    out.extend_from_slice(value);
    let ordinal = usize::from(ordinal);
    if ordinal + 1 < layout.variable.len() {
        // The head exists: it was appended before the first variable column.
        let stored = out.get_mut(start + layout.offsets_start + 2 * ordinal..);
        if let Some(end) = stored.and_then(|stored| stored.first_chunk_mut::<2>()) {
            *end = ((bytes - layout.head_bytes) as u16).to_le_bytes();
        }
    }
    Ok(())
}

/// Appends a whole row of these values, and returns its length in bytes.
pub fn row_write(
    layout: &TableLayout,
    values: &[Value],
    out: &mut Vec<u8>,
) -> Result<usize, RowError> {
    let mut writer = RowWriter::new(layout, out);
    for value in values {
        writer.push(value.view())?;
    }
    writer.finish()
}
