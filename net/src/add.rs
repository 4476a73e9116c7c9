//! Addition to a number in a row, within bounds: a balance that must not go below zero.

#![deny(clippy::indexing_slicing)]

use crate::layout::{TableLayout, ValueColumn, ValuePlace};
use crate::row::is_null;
use crate::schema::ColumnType;
use crate::value::{decimal_check, fixed, float8_bits_check, float8_canonical};

const HAS_MIN: u8 = 1;
const HAS_MAX: u8 = 2;

/// Why an addition is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// The sum is below the minimum or above the maximum that the operation gives.
    #[error("the sum is outside the bounds that the operation gives")]
    BoundsViolated,
    /// The sum does not fit the column.
    #[error("the sum does not fit the column's type")]
    Overflow,
    /// The column is null.
    #[error("the column is null; set it to a number first")]
    IsNull,
    /// The column is no number.
    #[error("the column is no number; only int2, int4, int8, decimal and float8 can be added to")]
    NotNumeric,
    /// The addend's type is not that of the column.
    #[error("the addend has another type than the column")]
    TypeMismatch,
    /// A value column that the table does not have.
    #[error("value column {value_column} does not exist; the table has {count}")]
    ColumnUnknown {
        /// The value column.
        value_column: usize,
        /// Value columns of the table.
        count: usize,
    },
    /// The argument has not the length that its flags and the column's type give.
    #[error("the argument of an addition has {found} bytes instead of {expected}")]
    LengthWrong {
        /// Length that it should have.
        expected: usize,
        /// Length that it has.
        found: usize,
    },
    /// A flag that is not defined.
    #[error("the argument of an addition has unknown flags {flags:#04x}")]
    FlagsInvalid {
        /// The flags.
        flags: u8,
    },
    /// A number that the column cannot hold, or a float that is NaN or an infinite addend.
    #[error("the argument of an addition holds a number that its column cannot hold")]
    NumberInvalid,
    /// A minimum above the maximum.
    #[error("the minimum of an addition is above its maximum")]
    BoundsInverted,
    /// The row is shorter than its head.
    #[error("the row is shorter than rows of its table are; is the schema current?")]
    RowInvalid,
}

/// An addend and the bounds of the sum, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AddBounded<T> {
    /// What is added.
    pub delta: T,
    /// Least allowed sum.
    pub min: Option<T>,
    /// Greatest allowed sum.
    pub max: Option<T>,
}

/// The argument of an addition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AddArgument {
    /// For int2, int4 and int8.
    Int(AddBounded<i64>),
    /// For decimals, scaled to integers by the column's scale.
    Decimal(AddBounded<i128>),
    /// For float8. Bounds are no NaN, the addend is finite; a sum of NaN violates any bound.
    Float8(AddBounded<f64>),
}

impl<T: Copy + PartialOrd> AddBounded<T> {
    fn map<U>(self, mut map: impl FnMut(T) -> Option<U>) -> Option<AddBounded<U>> {
        let min = self.min.map(&mut map);
        let max = self.max.map(&mut map);
        if matches!(min, Some(None)) || matches!(max, Some(None)) {
            return None;
        }
        Some(AddBounded { delta: map(self.delta)?, min: min.flatten(), max: max.flatten() })
    }

    #[inline]
    fn allows(&self, sum: T) -> bool {
        self.min.is_none_or(|min| sum >= min) && self.max.is_none_or(|max| sum <= max)
    }

    #[inline]
    fn inverted(&self) -> bool {
        self.min.zip(self.max).is_some_and(|(min, max)| min > max)
    }

    /// `flags | delta | min | max`, as far as given.
    fn encode<const N: usize>(&self, to_bytes: impl Fn(T) -> [u8; N], out: &mut Vec<u8>) {
        let min = if self.min.is_some() { HAS_MIN } else { 0 };
        let max = if self.max.is_some() { HAS_MAX } else { 0 };
        out.push(min | max);
        out.extend_from_slice(&to_bytes(self.delta));
        for bound in [self.min, self.max].into_iter().flatten() {
            out.extend_from_slice(&to_bytes(bound));
        }
    }

    #[inline]
    fn decode<const N: usize>(
        bytes: &[u8],
        from_bytes: impl Fn([u8; N]) -> T,
    ) -> Result<AddBounded<T>, AddError> {
        let found = bytes.len();
        let short = AddError::LengthWrong { expected: 1 + N, found };
        let (flags, rest) = bytes.split_first().ok_or(short)?;
        let flags = *flags;
        if flags & !(HAS_MIN | HAS_MAX) != 0 {
            return Err(AddError::FlagsInvalid { flags });
        }
        let numbers = 1 + flags.count_ones() as usize;
        if rest.len() != numbers * N {
            return Err(AddError::LengthWrong { expected: 1 + numbers * N, found });
        }
        let number = |index: usize| {
            let number = rest.get(index * N..).and_then(|rest| rest.first_chunk::<N>());
            number.map(|number| from_bytes(*number)).ok_or(short)
        };
        let delta = number(0)?;
        let min = if flags & HAS_MIN != 0 { Some(number(1)?) } else { None };
        let max = if flags & HAS_MAX != 0 { Some(number(numbers - 1)?) } else { None };
        Ok(AddBounded { delta, min, max })
    }
}

impl AddArgument {
    /// Appends the argument for a column of this type: `flags u8` (1: has a minimum, 2: has a
    /// maximum), then addend, minimum and maximum, as far as given, in the column's width.
    pub fn encode(&self, column_type: ColumnType, out: &mut Vec<u8>) -> Result<(), AddError> {
        self.check(column_type)?;
        let invalid = AddError::NumberInvalid;
        match (self, column_type) {
            (AddArgument::Int(add), ColumnType::Int2) => {
                let add = add.map(|v| i16::try_from(v).ok()).ok_or(invalid)?;
                add.encode(i16::to_le_bytes, out);
            }
            (AddArgument::Int(add), ColumnType::Int4) => {
                let add = add.map(|v| i32::try_from(v).ok()).ok_or(invalid)?;
                add.encode(i32::to_le_bytes, out);
            }
            (AddArgument::Int(add), _) => add.encode(i64::to_le_bytes, out),
            (AddArgument::Decimal(add), _) => add.encode(i128::to_le_bytes, out),
            (AddArgument::Float8(add), _) => {
                add.encode(|v| float8_canonical(v).to_le_bytes(), out);
            }
        }
        Ok(())
    }

    /// Decodes and checks the argument for a column of this type.
    #[inline]
    pub fn decode(column_type: ColumnType, bytes: &[u8]) -> Result<AddArgument, AddError> {
        let argument = match column_type {
            ColumnType::Int2 => AddArgument::Int(AddBounded::decode(bytes, |number| {
                i64::from(i16::from_le_bytes(number))
            })?),
            ColumnType::Int4 => AddArgument::Int(AddBounded::decode(bytes, |number| {
                i64::from(i32::from_le_bytes(number))
            })?),
            ColumnType::Int8 => AddArgument::Int(AddBounded::decode(bytes, i64::from_le_bytes)?),
            ColumnType::Decimal { .. } => {
                AddArgument::Decimal(AddBounded::decode(bytes, i128::from_le_bytes)?)
            }
            ColumnType::Float8 => {
                AddArgument::Float8(AddBounded::decode(bytes, f64::from_le_bytes)?)
            }
            _ => return Err(AddError::NotNumeric),
        };
        argument.check(column_type)?;
        if let AddArgument::Float8(add) = argument {
            let canonical = add.map(|v| float8_bits_check(v.to_bits()).ok());
            canonical.ok_or(AddError::NumberInvalid)?;
        }
        Ok(argument)
    }

    /// Whether the argument suits a column of this type.
    #[inline]
    fn check(&self, column_type: ColumnType) -> Result<(), AddError> {
        let (valid, inverted) = match (self, column_type) {
            (AddArgument::Int(add), ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8) => {
                (true, add.inverted())
            }
            (AddArgument::Decimal(add), ColumnType::Decimal { precision, .. }) => {
                let valid = add.map(|v| decimal_check(v, precision).ok()).is_some();
                (valid, add.inverted())
            }
            (AddArgument::Float8(add), ColumnType::Float8) => {
                let valid = add.delta.is_finite()
                    && add.min.is_none_or(|min| !min.is_nan())
                    && add.max.is_none_or(|max| !max.is_nan());
                (valid, add.inverted())
            }
            _ if numeric(column_type) => return Err(AddError::TypeMismatch),
            _ => return Err(AddError::NotNumeric),
        };
        match (valid, inverted) {
            (false, _) => Err(AddError::NumberInvalid),
            (true, true) => Err(AddError::BoundsInverted),
            (true, false) => Ok(()),
        }
    }
}

const fn numeric(column_type: ColumnType) -> bool {
    matches!(
        column_type,
        ColumnType::Int2
            | ColumnType::Int4
            | ColumnType::Int8
            | ColumnType::Decimal { .. }
            | ColumnType::Float8
    )
}

/// Adds to a value column of `row`, which was checked before, in place. On an error the row is
/// unchanged. A sum that is outside the bounds violates them even if it would not fit the column.
#[inline]
pub fn row_add(
    layout: &TableLayout,
    row: &mut [u8],
    value_column: usize,
    argument: &AddArgument,
) -> Result<(), AddError> {
    let count = layout.values.len();
    let unknown = AddError::ColumnUnknown { value_column, count };
    let column: &ValueColumn = layout.values.get(value_column).ok_or(unknown)?;
    let ValuePlace::Fixed { start, end } = column.place else { return Err(AddError::NotNumeric) };
    let null = is_null(column, row);
    let place = row.get_mut(usize::from(start)..usize::from(end)).ok_or(AddError::RowInvalid)?;
    if null {
        return Err(if numeric(column.column_type) {
            AddError::IsNull
        } else {
            AddError::NotNumeric
        });
    }
    match (column.column_type, argument) {
        (ColumnType::Int2, AddArgument::Int(add)) => {
            let old = i16::from_le_bytes(number(place)?);
            let sum = int_add(i64::from(old), add)?;
            store(place, i16::try_from(sum).map_err(|_| AddError::Overflow)?.to_le_bytes());
        }
        (ColumnType::Int4, AddArgument::Int(add)) => {
            let old = i32::from_le_bytes(number(place)?);
            let sum = int_add(i64::from(old), add)?;
            store(place, i32::try_from(sum).map_err(|_| AddError::Overflow)?.to_le_bytes());
        }
        (ColumnType::Int8, AddArgument::Int(add)) => {
            let sum = int_add(i64::from_le_bytes(number(place)?), add)?;
            store(place, sum.to_le_bytes());
        }
        (ColumnType::Decimal { precision, .. }, AddArgument::Decimal(add)) => {
            let sum = decimal_add(i128::from_le_bytes(number(place)?), add)?;
            decimal_check(sum, precision).map_err(|_| AddError::Overflow)?;
            store(place, sum.to_le_bytes());
        }
        (ColumnType::Float8, AddArgument::Float8(add)) => {
            let sum = float8_add(f64::from_le_bytes(number(place)?), add)?;
            store(place, sum.to_le_bytes());
        }
        (column_type, _) if numeric(column_type) => return Err(AddError::TypeMismatch),
        _ => return Err(AddError::NotNumeric),
    }
    Ok(())
}

#[inline]
fn number<const N: usize>(place: &[u8]) -> Result<[u8; N], AddError> {
    fixed(place).map_err(|_| AddError::RowInvalid)
}

#[inline]
fn store<const N: usize>(place: &mut [u8], bytes: [u8; N]) {
    assert!(place.len() == N, "a column's place has not the width of its type");
    place.copy_from_slice(&bytes);
}

#[inline]
fn int_add(old: i64, add: &AddBounded<i64>) -> Result<i64, AddError> {
    match old.checked_add(add.delta) {
        Some(sum) if add.allows(sum) => Ok(sum),
        Some(_) => Err(AddError::BoundsViolated),
        None => Err(outside(add.delta > 0, add)),
    }
}

#[inline]
fn decimal_add(old: i128, add: &AddBounded<i128>) -> Result<i128, AddError> {
    match old.checked_add(add.delta) {
        Some(sum) if add.allows(sum) => Ok(sum),
        Some(_) => Err(AddError::BoundsViolated),
        None => Err(outside(add.delta > 0, add)),
    }
}

#[inline]
fn float8_add(old: f64, add: &AddBounded<f64>) -> Result<f64, AddError> {
    let sum = float8_canonical(old + add.delta);
    if !add.allows(sum) {
        Err(AddError::BoundsViolated)
    } else if sum.is_infinite() && old.is_finite() {
        Err(AddError::Overflow)
    } else {
        Ok(sum)
    }
}

/// What is wrong with a sum that has no representation at all.
fn outside<T>(above: bool, add: &AddBounded<T>) -> AddError {
    let bound = if above { &add.max } else { &add.min };
    if bound.is_some() { AddError::BoundsViolated } else { AddError::Overflow }
}
