//! Values of columns: owned, borrowed, and the rules that every stored value keeps.
//!
//! Each value has exactly one encoding, so that equality of values is equality of bytes: a
//! float is never -0.0 and has one NaN, a decimal keeps its column's precision, dates and
//! timestamps stay within the years that have a text form.

#![deny(clippy::indexing_slicing)]

use crate::schema::ColumnType;

/// First date that a column takes, days since 1970-01-01: -9999-01-01.
pub const DATE_DAYS_MIN: i32 = -4_371_587;
/// Last date that a column takes, days since 1970-01-01: 9999-12-31.
pub const DATE_DAYS_MAX: i32 = 2_932_896;
/// First timestamp that a column takes, microseconds: -9999-01-02T01:59:59Z.
pub const TIMESTAMP_MICROS_MIN: i64 = -377_705_023_201_000_000;
/// Last timestamp that a column takes, microseconds: 9999-12-30T22:00:00.999999Z.
pub const TIMESTAMP_MICROS_MAX: i64 = 253_402_207_200_999_999;
/// Largest precision of a decimal: as many digits always fit an `i128`.
pub const DECIMAL_PRECISION_MAX: u8 = 38;

const FLOAT8_NAN_BITS: u64 = 0x7ff8_0000_0000_0000;
const FLOAT8_INFINITY_BITS: u64 = 0x7ff0_0000_0000_0000;
const FLOAT8_SIGN_BIT: u64 = 1 << 63;

/// The type of a value without the parameters of its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// No value.
    Null,
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
    Decimal,
    /// UTF-8 text.
    Text,
    /// Bytes.
    Bytea,
    /// Calendar date.
    Date,
    /// Instant in microseconds.
    Timestamptz,
    /// UUID.
    Uuid,
}

impl ValueKind {
    /// The name as it stands in a table definition.
    pub const fn name(self) -> &'static str {
        match self {
            ValueKind::Null => "null",
            ValueKind::Bool => "bool",
            ValueKind::Int2 => "int2",
            ValueKind::Int4 => "int4",
            ValueKind::Int8 => "int8",
            ValueKind::Float8 => "float8",
            ValueKind::Decimal => "decimal",
            ValueKind::Text => "text",
            ValueKind::Bytea => "bytea",
            ValueKind::Date => "date",
            ValueKind::Timestamptz => "timestamptz",
            ValueKind::Uuid => "uuid",
        }
    }
}

/// Why a value does not fit its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The value has another type than the column.
    #[error("the column has type {}, the value is {}", .expected.name(), .given.name())]
    TypeMismatch {
        /// Type of the column.
        expected: ValueKind,
        /// Type of the value.
        given: ValueKind,
    },
    /// Null for a column that takes none.
    #[error("the column takes no null; give a value, or define the column as `null`")]
    NullNotAllowed,
    /// A null column whose bytes are not empty or not zero.
    #[error("a null value carries bytes")]
    NullNotEmpty,
    /// A number of bytes that the type does not have.
    #[error("a value has not the length of its type")]
    LengthWrong,
    /// A bool that is neither 0 nor 1.
    #[error("a bool is neither 0 nor 1")]
    BoolInvalid,
    /// -0.0, or a NaN other than the canonical one.
    #[error("a float8 is -0.0 or a NaN in another than the canonical form")]
    Float8NotCanonical,
    /// More digits than the column's precision.
    #[error("a decimal has more than the {precision} digits of its column")]
    DecimalTooLong {
        /// Precision of the column.
        precision: u8,
    },
    /// A date outside the years -9999 to 9999.
    #[error("a date is outside the years -9999 to 9999")]
    DateOutOfRange,
    /// A timestamp outside the years -9999 to 9999.
    #[error("a timestamptz is outside the years -9999 to 9999")]
    TimestampOutOfRange,
    /// Text that is not UTF-8.
    #[error("a text is not valid UTF-8")]
    TextNotUtf8,
}

/// An owned value.
#[derive(Clone, Debug)]
pub enum Value {
    /// No value.
    Null,
    /// True or false.
    Bool(bool),
    /// 16-bit integer.
    Int2(i16),
    /// 32-bit integer.
    Int4(i32),
    /// 64-bit integer.
    Int8(i64),
    /// 64-bit float.
    Float8(f64),
    /// Decimal, scaled to an integer by the column's scale: 1.50 at scale 2 is 150.
    Decimal(i128),
    /// UTF-8 text.
    Text(String),
    /// Bytes.
    Bytea(Vec<u8>),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since 1970-01-01T00:00:00Z.
    Timestamptz(i64),
    /// UUID, most significant byte first.
    Uuid([u8; 16]),
}

/// A borrowed value.
#[derive(Clone, Copy, Debug)]
pub enum ValueRef<'a> {
    /// No value.
    Null,
    /// True or false.
    Bool(bool),
    /// 16-bit integer.
    Int2(i16),
    /// 32-bit integer.
    Int4(i32),
    /// 64-bit integer.
    Int8(i64),
    /// 64-bit float.
    Float8(f64),
    /// Decimal, scaled to an integer by the column's scale: 1.50 at scale 2 is 150.
    Decimal(i128),
    /// UTF-8 text.
    Text(&'a str),
    /// Bytes.
    Bytea(&'a [u8]),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since 1970-01-01T00:00:00Z.
    Timestamptz(i64),
    /// UUID, most significant byte first.
    Uuid([u8; 16]),
}

impl Value {
    /// The same value, borrowed.
    pub fn view(&self) -> ValueRef<'_> {
        match self {
            Value::Null => ValueRef::Null,
            Value::Bool(v) => ValueRef::Bool(*v),
            Value::Int2(v) => ValueRef::Int2(*v),
            Value::Int4(v) => ValueRef::Int4(*v),
            Value::Int8(v) => ValueRef::Int8(*v),
            Value::Float8(v) => ValueRef::Float8(*v),
            Value::Decimal(v) => ValueRef::Decimal(*v),
            Value::Text(v) => ValueRef::Text(v),
            Value::Bytea(v) => ValueRef::Bytea(v),
            Value::Date(v) => ValueRef::Date(*v),
            Value::Timestamptz(v) => ValueRef::Timestamptz(*v),
            Value::Uuid(v) => ValueRef::Uuid(*v),
        }
    }
}

impl<'a> From<&'a Value> for ValueRef<'a> {
    fn from(value: &'a Value) -> ValueRef<'a> {
        value.view()
    }
}

impl From<ValueRef<'_>> for Value {
    fn from(value: ValueRef<'_>) -> Value {
        value.to_value()
    }
}

/// As stored values are equal: NaN equals NaN, null equals null.
impl PartialEq for ValueRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        use ValueRef as V;
        match (self, other) {
            (V::Null, V::Null) => true,
            (V::Bool(a), V::Bool(b)) => a == b,
            (V::Int2(a), V::Int2(b)) => a == b,
            (V::Int4(a), V::Int4(b)) | (V::Date(a), V::Date(b)) => a == b,
            (V::Int8(a), V::Int8(b)) | (V::Timestamptz(a), V::Timestamptz(b)) => a == b,
            (V::Float8(a), V::Float8(b)) => {
                float8_canonical(*a).to_bits() == float8_canonical(*b).to_bits()
            }
            (V::Decimal(a), V::Decimal(b)) => a == b,
            (V::Text(a), V::Text(b)) => a == b,
            (V::Bytea(a), V::Bytea(b)) => a == b,
            (V::Uuid(a), V::Uuid(b)) => a == b,
            _ => false,
        }
    }
}

/// As stored values are equal: NaN equals NaN, null equals null.
impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.view() == other.view()
    }
}

impl<'a> ValueRef<'a> {
    /// The same value, owned.
    pub fn to_value(self) -> Value {
        match self {
            ValueRef::Null => Value::Null,
            ValueRef::Bool(v) => Value::Bool(v),
            ValueRef::Int2(v) => Value::Int2(v),
            ValueRef::Int4(v) => Value::Int4(v),
            ValueRef::Int8(v) => Value::Int8(v),
            ValueRef::Float8(v) => Value::Float8(v),
            ValueRef::Decimal(v) => Value::Decimal(v),
            ValueRef::Text(v) => Value::Text(v.to_owned()),
            ValueRef::Bytea(v) => Value::Bytea(v.to_vec()),
            ValueRef::Date(v) => Value::Date(v),
            ValueRef::Timestamptz(v) => Value::Timestamptz(v),
            ValueRef::Uuid(v) => Value::Uuid(v),
        }
    }

    /// The type of this value.
    pub const fn kind(self) -> ValueKind {
        match self {
            ValueRef::Null => ValueKind::Null,
            ValueRef::Bool(_) => ValueKind::Bool,
            ValueRef::Int2(_) => ValueKind::Int2,
            ValueRef::Int4(_) => ValueKind::Int4,
            ValueRef::Int8(_) => ValueKind::Int8,
            ValueRef::Float8(_) => ValueKind::Float8,
            ValueRef::Decimal(_) => ValueKind::Decimal,
            ValueRef::Text(_) => ValueKind::Text,
            ValueRef::Bytea(_) => ValueKind::Bytea,
            ValueRef::Date(_) => ValueKind::Date,
            ValueRef::Timestamptz(_) => ValueKind::Timestamptz,
            ValueRef::Uuid(_) => ValueKind::Uuid,
        }
    }

    /// Whether this value, which is not null, may stand in a column of this type.
    #[inline]
    pub fn check(self, column_type: ColumnType) -> Result<(), ValueError> {
        match (self, column_type) {
            (ValueRef::Decimal(v), ColumnType::Decimal { precision, .. }) => {
                decimal_check(v, precision)
            }
            (ValueRef::Date(v), ColumnType::Date) => date_check(v),
            (ValueRef::Timestamptz(v), ColumnType::Timestamptz) => timestamp_check(v),
            _ if self.kind() == column_type.kind() => Ok(()),
            _ => Err(ValueError::TypeMismatch { expected: column_type.kind(), given: self.kind() }),
        }
    }

    /// Decodes the bytes that rows and patches hold for a value of this type, and checks them.
    #[inline]
    pub fn decode(column_type: ColumnType, bytes: &'a [u8]) -> Result<ValueRef<'a>, ValueError> {
        value_bytes_check(column_type, bytes)?;
        Ok(match column_type {
            ColumnType::Bool => ValueRef::Bool(u8::from_le_bytes(fixed(bytes)?) != 0),
            ColumnType::Int2 => ValueRef::Int2(i16::from_le_bytes(fixed(bytes)?)),
            ColumnType::Int4 => ValueRef::Int4(i32::from_le_bytes(fixed(bytes)?)),
            ColumnType::Int8 => ValueRef::Int8(i64::from_le_bytes(fixed(bytes)?)),
            ColumnType::Float8 => ValueRef::Float8(f64::from_le_bytes(fixed(bytes)?)),
            ColumnType::Decimal { .. } => ValueRef::Decimal(i128::from_le_bytes(fixed(bytes)?)),
            ColumnType::Text => {
                ValueRef::Text(std::str::from_utf8(bytes).map_err(|_| ValueError::TextNotUtf8)?)
            }
            ColumnType::Bytea => ValueRef::Bytea(bytes),
            ColumnType::Date => ValueRef::Date(i32::from_le_bytes(fixed(bytes)?)),
            ColumnType::Timestamptz => ValueRef::Timestamptz(i64::from_le_bytes(fixed(bytes)?)),
            ColumnType::Uuid => ValueRef::Uuid(fixed(bytes)?),
        })
    }

    /// The bytes that rows and patches hold for this value: little-endian, empty for null. Short
    /// values are put into `scratch`.
    #[inline]
    pub(crate) fn encode<'s>(self, scratch: &'s mut [u8; 16]) -> &'s [u8]
    where
        'a: 's,
    {
        match self {
            ValueRef::Null => &[],
            ValueRef::Bool(v) => head_store(scratch, [u8::from(v)]),
            ValueRef::Int2(v) => head_store(scratch, v.to_le_bytes()),
            ValueRef::Int4(v) | ValueRef::Date(v) => head_store(scratch, v.to_le_bytes()),
            ValueRef::Int8(v) | ValueRef::Timestamptz(v) => head_store(scratch, v.to_le_bytes()),
            ValueRef::Float8(v) => head_store(scratch, float8_canonical(v).to_le_bytes()),
            ValueRef::Decimal(v) => head_store(scratch, v.to_le_bytes()),
            ValueRef::Uuid(v) => head_store(scratch, v),
            ValueRef::Text(v) => v.as_bytes(),
            ValueRef::Bytea(v) => v,
        }
    }
}

#[inline]
fn head_store<const N: usize>(scratch: &mut [u8; 16], bytes: [u8; N]) -> &[u8] {
    match scratch.first_chunk_mut::<N>() {
        Some(head) => {
            *head = bytes;
            head
        }
        // No fixed type is longer than the scratch space.
        None => &[],
    }
}

#[inline]
pub(crate) fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], ValueError> {
    bytes.try_into().map_err(|_| ValueError::LengthWrong)
}

/// The float as it is stored: +0.0 for -0.0, and one NaN.
#[inline]
pub const fn float8_canonical(value: f64) -> f64 {
    if value.is_nan() {
        f64::from_bits(FLOAT8_NAN_BITS)
    } else if value == 0.0 {
        0.0
    } else {
        value
    }
}

#[inline]
pub(crate) const fn float8_bits_check(bits: u64) -> Result<(), ValueError> {
    let is_number = bits & !FLOAT8_SIGN_BIT <= FLOAT8_INFINITY_BITS;
    if (is_number && bits != FLOAT8_SIGN_BIT) || bits == FLOAT8_NAN_BITS {
        Ok(())
    } else {
        Err(ValueError::Float8NotCanonical)
    }
}

const fn decimal_limits() -> [u128; DECIMAL_PRECISION_MAX as usize + 1] {
    let mut limits = [1; DECIMAL_PRECISION_MAX as usize + 1];
    let mut precision = 1;
    while precision < limits.len() {
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, loop-bounded")]
        {
            limits[precision] = limits[precision - 1] * 10;
        }
        precision += 1;
    }
    limits
}

/// `10^precision`, the first magnitude with too many digits.
static DECIMAL_LIMITS: [u128; DECIMAL_PRECISION_MAX as usize + 1] = decimal_limits();

#[inline]
pub(crate) fn decimal_check(value: i128, precision: u8) -> Result<(), ValueError> {
    match DECIMAL_LIMITS.get(usize::from(precision)) {
        Some(limit) if value.unsigned_abs() < *limit => Ok(()),
        _ => Err(ValueError::DecimalTooLong { precision }),
    }
}

#[inline]
pub(crate) const fn date_check(days: i32) -> Result<(), ValueError> {
    if days >= DATE_DAYS_MIN && days <= DATE_DAYS_MAX {
        Ok(())
    } else {
        Err(ValueError::DateOutOfRange)
    }
}

#[inline]
pub(crate) const fn timestamp_check(micros: i64) -> Result<(), ValueError> {
    if micros >= TIMESTAMP_MICROS_MIN && micros <= TIMESTAMP_MICROS_MAX {
        Ok(())
    } else {
        Err(ValueError::TimestampOutOfRange)
    }
}

/// Checks the bytes that a row or a patch holds for a value that is not null: length and
/// canonical form.
#[inline]
pub(crate) fn value_bytes_check(column_type: ColumnType, bytes: &[u8]) -> Result<(), ValueError> {
    match column_type {
        ColumnType::Bool => match fixed::<1>(bytes)? {
            [0 | 1] => Ok(()),
            _ => Err(ValueError::BoolInvalid),
        },
        ColumnType::Float8 => float8_bits_check(u64::from_le_bytes(fixed(bytes)?)),
        ColumnType::Decimal { precision, .. } => {
            decimal_check(i128::from_le_bytes(fixed(bytes)?), precision)
        }
        ColumnType::Date => date_check(i32::from_le_bytes(fixed(bytes)?)),
        ColumnType::Timestamptz => timestamp_check(i64::from_le_bytes(fixed(bytes)?)),
        ColumnType::Int2 => fixed::<2>(bytes).map(|_| ()),
        ColumnType::Int4 => fixed::<4>(bytes).map(|_| ()),
        ColumnType::Int8 => fixed::<8>(bytes).map(|_| ()),
        ColumnType::Uuid => fixed::<16>(bytes).map(|_| ()),
        ColumnType::Text => {
            std::str::from_utf8(bytes).map(|_| ()).map_err(|_| ValueError::TextNotUtf8)
        }
        ColumnType::Bytea => Ok(()),
    }
}
