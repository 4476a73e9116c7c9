//! Patches: new values for some value columns of a row.
//!
//! `count u8`, then for each column, ascending, `value column u8 | null u8 (0 or 1) | value`. A
//! value is as in a row; one of variable length has its length before it as a `u32`. A null has
//! no value. Little-endian.

#![deny(clippy::indexing_slicing)]

use crate::layout::{TableLayout, ValueColumn, ValuePlace};
use crate::limits::{COLUMNS_MAX, ROW_BYTES_MAX};
use crate::row::{RowError, RowView, head_set, variable_push};
use crate::value::{ValueError, ValueRef, value_bytes_check};

/// Encoded patch, bytes: values of the longest row, each with its column, null flag and length.
pub const PATCH_BYTES_MAX: usize = ROW_BYTES_MAX + 1 + COLUMNS_MAX * 6;

/// Why a patch is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// Longer than any patch may be.
    #[error("a patch of {bytes} bytes exceeds the limit of {PATCH_BYTES_MAX}")]
    TooLong {
        /// Length of the patch.
        bytes: usize,
    },
    /// A patch of no column.
    #[error("a patch names no column")]
    Empty,
    /// The patch ends within an entry.
    #[error("a patch ends within its entry {entry}")]
    Truncated {
        /// Number of the entry, from 0.
        entry: usize,
    },
    /// Bytes after the last entry.
    #[error("a patch goes on for {bytes} bytes after its last entry")]
    Excess {
        /// Bytes too many.
        bytes: usize,
    },
    /// A value column that the table does not have.
    #[error("a patch names value column {value_column}; the table has {count}")]
    ColumnUnknown {
        /// The value column.
        value_column: usize,
        /// Value columns of the table.
        count: usize,
    },
    /// One column twice.
    #[error("a patch names value column {value_column} twice")]
    ColumnDuplicate {
        /// The value column.
        value_column: usize,
    },
    /// A column behind a greater one.
    #[error("a patch names value column {value_column} behind a greater one")]
    ColumnOrder {
        /// The value column.
        value_column: usize,
    },
    /// A null flag that is neither 0 nor 1.
    #[error("a patch has a null flag that is neither 0 nor 1, for value column {value_column}")]
    FlagInvalid {
        /// The value column.
        value_column: usize,
    },
    /// A value that its column does not take.
    #[error("value column {value_column} of a patch: {error}")]
    Value {
        /// The value column.
        value_column: usize,
        /// What is wrong with the value.
        error: ValueError,
    },
    /// The row is damaged or becomes too long.
    #[error("the patched row: {0}")]
    Row(#[from] RowError),
}

/// One column's new value.
#[derive(Clone, Copy, Debug)]
pub struct PatchEntry<'a> {
    /// The value column.
    pub value_column: usize,
    /// The bytes of the value, checked; `None` is null.
    pub value: Option<&'a [u8]>,
    column: &'a ValueColumn,
    /// The entry as encoded.
    encoded: &'a [u8],
}

impl<'a> PatchEntry<'a> {
    /// The new value.
    pub fn get(&self) -> Result<ValueRef<'a>, PatchError> {
        let value_column = self.value_column;
        let Some(bytes) = self.value else { return Ok(ValueRef::Null) };
        ValueRef::decode(self.column.column_type, bytes)
            .map_err(|error| PatchError::Value { value_column, error })
    }
}

/// Reads and checks the entries of a patch; ends after the first error. If no item is an error,
/// the patch is valid.
#[derive(Clone, Debug)]
pub struct PatchReader<'a> {
    layout: &'a TableLayout,
    rest: &'a [u8],
    entry: usize,
    count: usize,
    /// The least value column that may come next.
    next_min: usize,
}

impl<'a> PatchReader<'a> {
    /// Reads the head of the patch.
    #[inline]
    pub fn new(layout: &'a TableLayout, patch: &'a [u8]) -> Result<PatchReader<'a>, PatchError> {
        if patch.len() > PATCH_BYTES_MAX {
            return Err(PatchError::TooLong { bytes: patch.len() });
        }
        match patch {
            [0, ..] => Err(PatchError::Empty),
            [count, rest @ ..] => {
                let count = usize::from(*count);
                Ok(PatchReader { layout, rest, entry: 0, count, next_min: 0 })
            }
            [] => Err(PatchError::Truncated { entry: 0 }),
        }
    }

    #[inline]
    fn entry(&mut self) -> Result<PatchEntry<'a>, PatchError> {
        let encoded = self.rest;
        let truncated = PatchError::Truncated { entry: self.entry };
        let [value_column, flag, rest @ ..] = self.rest else { return Err(truncated) };
        let value_column = usize::from(*value_column);
        let count = self.layout.values.len();
        let unknown = PatchError::ColumnUnknown { value_column, count };
        let column = self.layout.values.get(value_column).ok_or(unknown)?;
        order_check(value_column, self.next_min)?;
        let (value, rest) = match flag {
            0 => {
                let (value, rest) = value_split(column, rest).ok_or(truncated)?;
                value_bytes_check(column.column_type, value)
                    .map_err(|error| PatchError::Value { value_column, error })?;
                (Some(value), rest)
            }
            1 if column.nullable => (None, rest),
            1 => {
                let error = ValueError::NullNotAllowed;
                return Err(PatchError::Value { value_column, error });
            }
            _ => return Err(PatchError::FlagInvalid { value_column }),
        };
        self.rest = rest;
        self.entry += 1;
        self.next_min = value_column + 1;
        let encoded = encoded.get(..encoded.len() - rest.len()).unwrap_or(&[]);
        Ok(PatchEntry { value_column, value, column, encoded })
    }
}

impl<'a> Iterator for PatchReader<'a> {
    type Item = Result<PatchEntry<'a>, PatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.entry == self.count {
            let bytes = std::mem::take(&mut self.rest).len();
            return (bytes > 0).then_some(Err(PatchError::Excess { bytes }));
        }
        let entry = self.entry();
        if entry.is_err() {
            self.count = self.entry;
            self.rest = &[];
        }
        Some(entry)
    }
}

#[inline]
fn order_check(value_column: usize, next_min: usize) -> Result<(), PatchError> {
    if value_column >= next_min {
        Ok(())
    } else if value_column + 1 == next_min {
        Err(PatchError::ColumnDuplicate { value_column })
    } else {
        Err(PatchError::ColumnOrder { value_column })
    }
}

/// Splits the value of this column from what follows it.
#[inline]
fn value_split<'a>(column: &ValueColumn, bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    match column.place {
        ValuePlace::Fixed { start, end } => bytes.split_at_checked(usize::from(end - start)),
        ValuePlace::Variable { .. } => {
            let (length, rest) = bytes.split_first_chunk::<4>()?;
            rest.split_at_checked(u32::from_le_bytes(*length) as usize)
        }
    }
}

/// Checks a patch.
#[inline]
pub fn patch_validate(layout: &TableLayout, patch: &[u8]) -> Result<(), PatchError> {
    for entry in PatchReader::new(layout, patch)? {
        entry?;
    }
    Ok(())
}

/// Appends to `out` the row `base`, which was checked before, with the patch's values. On an
/// error `out` is as before.
pub fn patch_apply(
    layout: &TableLayout,
    base: &[u8],
    patch: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), PatchError> {
    let start = out.len();
    let applied = patch_append(layout, base, patch, out);
    if applied.is_err() {
        out.truncate(start);
    }
    applied
}

fn patch_append(
    layout: &TableLayout,
    base: &[u8],
    patch: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), PatchError> {
    let start = out.len();
    let (expected, found) = (layout.head_bytes, base.len());
    let split = base.split_at_checked(layout.head_bytes);
    let (head, tail) = split.ok_or(RowError::LengthWrong { expected, found })?;
    let entries = PatchReader::new(layout, patch)?;
    out.extend_from_slice(head);
    let mut changes_variable = false;
    for entry in entries.clone() {
        let entry = entry?;
        let head = out.get_mut(start..).unwrap_or(&mut []);
        head_set(entry.column, head, entry.value);
        changes_variable |= matches!(entry.column.place, ValuePlace::Variable { .. });
    }
    if !changes_variable {
        out.extend_from_slice(tail);
        return Ok(());
    }
    let base = RowView::validated(layout, base);
    let mut entries = entries.filter_map(Result::ok).peekable();
    for (ordinal, check) in layout.variable.iter().enumerate() {
        let value_column = usize::from(check.value_column);
        while entries.next_if(|entry| entry.value_column < value_column).is_some() {}
        let value = match entries.next_if(|entry| entry.value_column == value_column) {
            Some(entry) => entry.value,
            None => base.raw(value_column)?,
        };
        variable_push(layout, out, start, ordinal as u16, value.unwrap_or(&[]))?;
    }
    Ok(())
}

/// Applies the patch to `row`, which was checked before, in place, if it changes columns of fixed
/// length only. Returns false, and changes nothing, if it does not.
pub fn patch_apply_fixed(
    layout: &TableLayout,
    row: &mut [u8],
    patch: &[u8],
) -> Result<bool, PatchError> {
    let entries = PatchReader::new(layout, patch)?;
    let mut changes_variable = false;
    for entry in entries.clone() {
        changes_variable |= matches!(entry?.column.place, ValuePlace::Variable { .. });
    }
    if changes_variable {
        return Ok(false);
    }
    let (expected, found) = (layout.head_bytes, row.len());
    let head = row.get_mut(..layout.head_bytes);
    let head = head.ok_or(RowError::LengthWrong { expected, found })?;
    for entry in entries {
        let entry = entry?;
        head_set(entry.column, head, entry.value);
    }
    Ok(true)
}

/// Appends to `out` the patch that does what `older` and then `newer` do. On an error `out` is
/// as before.
pub fn patch_merge(
    layout: &TableLayout,
    older: &[u8],
    newer: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), PatchError> {
    let start = out.len();
    let merged = patch_merge_append(layout, older, newer, out);
    if merged.is_err() {
        out.truncate(start);
    }
    merged
}

fn patch_merge_append(
    layout: &TableLayout,
    older: &[u8],
    newer: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), PatchError> {
    let start = out.len();
    let mut older = PatchReader::new(layout, older)?;
    let mut newer = PatchReader::new(layout, newer)?;
    let mut older_next = older.next().transpose()?;
    let mut newer_next = newer.next().transpose()?;
    let mut count = 0u8;
    out.push(0);
    loop {
        let older_column = older_next.map_or(usize::MAX, |entry| entry.value_column);
        let newer_column = newer_next.map_or(usize::MAX, |entry| entry.value_column);
        let entry = if newer_column <= older_column { newer_next } else { older_next };
        let Some(entry) = entry else { break };
        out.extend_from_slice(entry.encoded);
        // Cannot overflow: entries have distinct value columns, and there are at most 255.
        count += 1;
        if newer_column <= older_column {
            newer_next = newer.next().transpose()?;
        }
        if older_column <= newer_column {
            older_next = older.next().transpose()?;
        }
    }
    if let Some(first) = out.get_mut(start) {
        *first = count;
    }
    let bytes = out.len() - start;
    if bytes > PATCH_BYTES_MAX { Err(PatchError::TooLong { bytes }) } else { Ok(()) }
}

/// Whether the row has all the values that the patch names; null equals null. Both were checked
/// before: damaged ones are not equal.
#[inline]
pub fn patch_equals(layout: &TableLayout, row: &[u8], patch: &[u8]) -> bool {
    let row = RowView::validated(layout, row);
    let Ok(mut entries) = PatchReader::new(layout, patch) else { return false };
    entries.all(|entry| {
        entry.is_ok_and(|entry| row.raw(entry.value_column).is_ok_and(|raw| raw == entry.value))
    })
}

/// Builds a patch at the end of a caller's buffer, value columns ascending.
///
/// The buffer keeps its old content until [`PatchWriter::finish`] has succeeded: a writer dropped
/// before takes away what it wrote.
#[derive(Debug)]
pub struct PatchWriter<'a> {
    layout: &'a TableLayout,
    out: &'a mut Vec<u8>,
    start: usize,
    count: u8,
    next_min: usize,
    finished: bool,
}

impl<'a> PatchWriter<'a> {
    /// A patch for rows of the table, to be appended to `out`.
    #[inline]
    pub fn new(layout: &'a TableLayout, out: &'a mut Vec<u8>) -> PatchWriter<'a> {
        let start = out.len();
        out.push(0);
        PatchWriter { layout, out, start, count: 0, next_min: 0, finished: false }
    }

    /// Gives a value column this value.
    #[inline]
    pub fn set(
        &mut self,
        value_column: usize,
        value: ValueRef<'_>,
    ) -> Result<&mut Self, PatchError> {
        let checked = match (value, self.layout.values.get(value_column)) {
            (_, None) => Ok(()),
            (ValueRef::Null, Some(_)) => return self.entry(value_column, None),
            (value, Some(column)) => value.check(column.column_type),
        };
        checked.map_err(|error| PatchError::Value { value_column, error })?;
        let mut scratch = [0; 16];
        self.entry(value_column, Some(value.encode(&mut scratch)))
    }

    /// Gives a value column the value that it has in a row: an after-image.
    #[inline]
    pub fn copy(
        &mut self,
        value_column: usize,
        row: &RowView<'_>,
    ) -> Result<&mut Self, PatchError> {
        self.entry(value_column, row.raw(value_column)?)
    }

    #[inline]
    fn entry(
        &mut self,
        value_column: usize,
        value: Option<&[u8]>,
    ) -> Result<&mut Self, PatchError> {
        let count = self.layout.values.len();
        let unknown = PatchError::ColumnUnknown { value_column, count };
        let column = self.layout.values.get(value_column).ok_or(unknown)?;
        order_check(value_column, self.next_min)?;
        if value.is_none() && !column.nullable {
            let error = ValueError::NullNotAllowed;
            return Err(PatchError::Value { value_column, error });
        }
        let bytes = self.out.len() - self.start + 6 + value.map_or(0, <[u8]>::len);
        if bytes > PATCH_BYTES_MAX {
            return Err(PatchError::TooLong { bytes });
        }
        self.out.extend_from_slice(&[value_column as u8, u8::from(value.is_none())]);
        if let Some(value) = value {
            if matches!(column.place, ValuePlace::Variable { .. }) {
                self.out.extend_from_slice(&(value.len() as u32).to_le_bytes());
            }
            self.out.extend_from_slice(value);
        }
        // Cannot overflow: value columns ascend, and there are at most 255.
        self.count += 1;
        self.next_min = value_column + 1;
        Ok(self)
    }

    /// Ends the patch, and returns its length in bytes.
    #[inline]
    pub fn finish(mut self) -> Result<usize, PatchError> {
        if self.count == 0 {
            return Err(PatchError::Empty);
        }
        if let Some(count) = self.out.get_mut(self.start) {
            *count = self.count;
        }
        self.finished = true;
        Ok(self.out.len() - self.start)
    }
}

impl Drop for PatchWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.out.truncate(self.start);
        }
    }
}

/// Appends a patch of these values, given in any order, and returns its length in bytes.
pub fn patch_write(
    layout: &TableLayout,
    values: &[(usize, ValueRef<'_>)],
    out: &mut Vec<u8>,
) -> Result<usize, PatchError> {
    let mut sorted = values.to_vec();
    sorted.sort_by_key(|(value_column, _)| *value_column);
    let mut writer = PatchWriter::new(layout, out);
    for (value_column, value) in sorted {
        writer.set(value_column, value)?;
    }
    writer.finish()
}
