//! Values as text, for people and the command line. Every text that is printed can be read again
//! and gives the same value.
//!
//! Null is `\N`. A text has backslash, tab, line feed, carriage return and other control
//! characters escaped, so that a value is always one line and a text is never taken for null. A
//! bytea is `\x` and hexadecimal digits. Decimals are exact; nothing is rounded in silence.

#![deny(clippy::indexing_slicing)]

use std::fmt::Write as _;

use jiff::civil::Date;
use jiff::{Span, Timestamp};
use uuid::Uuid;

use crate::schema::ColumnType;
use crate::value::{
    Value, ValueError, ValueRef, date_check, decimal_check, float8_canonical, timestamp_check,
};

/// The text of null.
pub const NULL_TEXT: &str = "\\N";

const EPOCH: Date = Date::constant(1970, 1, 1);

/// Why a text gives no value of a column's type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueTextError {
    /// The text has not the form that the type has.
    #[error("`{text}` is no {column_type}; write {form}")]
    Invalid {
        /// The text, escaped and cut.
        text: String,
        /// Type of the column.
        column_type: ColumnType,
        /// What to write instead.
        form: &'static str,
    },
    /// The text is a value that the column does not take.
    #[error("`{text}`: {error}")]
    Value {
        /// The text, escaped and cut.
        text: String,
        /// What is wrong with the value.
        error: ValueError,
    },
}

/// Appends the text of a value of this type.
pub fn value_print(column_type: ColumnType, value: ValueRef<'_>, out: &mut String) {
    let written = match value {
        ValueRef::Null => out.write_str(NULL_TEXT),
        ValueRef::Bool(v) => write!(out, "{v}"),
        ValueRef::Int2(v) => write!(out, "{v}"),
        ValueRef::Int4(v) => write!(out, "{v}"),
        ValueRef::Int8(v) => write!(out, "{v}"),
        ValueRef::Float8(v) => write!(out, "{:?}", float8_canonical(v)),
        ValueRef::Decimal(v) => {
            let scale = match column_type {
                ColumnType::Decimal { scale, .. } => scale,
                _ => 0,
            };
            decimal_print(v, scale, out);
            Ok(())
        }
        ValueRef::Text(v) => {
            text_print(v, out);
            Ok(())
        }
        ValueRef::Bytea(v) => {
            out.push_str("\\x");
            v.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
        }
        ValueRef::Date(v) => match EPOCH.checked_add(Span::new().days(v)) {
            Ok(date) => write!(out, "{date}"),
            Err(_) => write!(out, "(day {v})"),
        },
        ValueRef::Timestamptz(v) => match timestamp(v) {
            Ok(timestamp) => write!(out, "{timestamp}"),
            Err(_) => write!(out, "(microsecond {v})"),
        },
        ValueRef::Uuid(v) => write!(out, "{}", Uuid::from_bytes(v)),
    };
    written.expect("writing to a string does not fail");
}

/// The text of a value of this type.
pub fn value_to_text(column_type: ColumnType, value: ValueRef<'_>) -> String {
    let mut out = String::new();
    value_print(column_type, value, &mut out);
    out
}

/// By seconds and the rest, for the last second of the calendar has microseconds too.
fn timestamp(micros: i64) -> Result<Timestamp, jiff::Error> {
    let nanoseconds = micros.rem_euclid(1_000_000) * 1000;
    Timestamp::new(micros.div_euclid(1_000_000), nanoseconds as i32)
}

fn decimal_print(value: i128, scale: u8, out: &mut String) {
    let scale = usize::from(scale);
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    if value < 0 {
        out.push('-');
    }
    // Digits are ASCII, so that every place is a boundary of characters.
    let (whole, fraction) = digits.split_at_checked(digits.len() - scale).unwrap_or((&digits, ""));
    out.push_str(whole);
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
}

fn text_print(value: &str, out: &mut String) {
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                write!(out, "\\u{{{:x}}}", u32::from(c))
                    .expect("writing to a string does not fail");
            }
            c => out.push(c),
        }
    }
}

/// Reads a value of this type, or null.
pub fn value_parse(column_type: ColumnType, text: &str) -> Result<Value, ValueTextError> {
    if text == NULL_TEXT {
        return Ok(Value::Null);
    }
    let (parsed, form) = match column_type {
        ColumnType::Bool => (bool_parse(text), "true or false"),
        ColumnType::Int2 => (text.parse().ok().map(Value::Int2), "a number of -32768 to 32767"),
        ColumnType::Int4 => {
            (text.parse().ok().map(Value::Int4), "a number of -2147483648 to 2147483647")
        }
        ColumnType::Int8 => (
            text.parse().ok().map(Value::Int8),
            "a number of -9223372036854775808 to 9223372036854775807",
        ),
        ColumnType::Float8 => {
            let parsed = text.parse().ok().map(|v| Value::Float8(float8_canonical(v)));
            (parsed, "a number like -1.5e3, or inf, -inf, NaN")
        }
        ColumnType::Decimal { scale, .. } => {
            (decimal_parse(text, scale), "an exact number with no more than the column's digits")
        }
        ColumnType::Text => {
            (text_parse(text).map(Value::Text), r"a text with \\ \n \r \t \u{HEX} for specials")
        }
        ColumnType::Bytea => {
            (bytea_parse(text).map(Value::Bytea), r"\x and an even number of hexadecimal digits")
        }
        ColumnType::Date => (date_parse(text), "a date like 2026-01-31"),
        ColumnType::Timestamptz => {
            (timestamp_parse(text), "an instant like 2026-01-31T12:00:00.123456Z, with Z or offset")
        }
        ColumnType::Uuid => {
            let parsed = Uuid::try_parse(text).ok().map(|v| Value::Uuid(v.into_bytes()));
            (parsed, "a uuid like 67e55044-10b1-426f-9247-bb680e5fe0c8")
        }
    };
    let Some(value) = parsed else {
        return Err(ValueTextError::Invalid { text: excerpt(text), column_type, form });
    };
    let checked = match (&value, column_type) {
        (Value::Decimal(v), ColumnType::Decimal { precision, .. }) => decimal_check(*v, precision),
        (Value::Date(v), _) => date_check(*v),
        (Value::Timestamptz(v), _) => timestamp_check(*v),
        _ => Ok(()),
    };
    match checked {
        Ok(()) => Ok(value),
        Err(error) => Err(ValueTextError::Value { text: excerpt(text), error }),
    }
}

/// The text for an error message: escaped and cut.
fn excerpt(text: &str) -> String {
    const CHARACTERS_MAX: usize = 64;
    let cut: String = text.chars().take(CHARACTERS_MAX).collect();
    let tail = if cut.len() < text.len() { "..." } else { "" };
    format!("{}{tail}", cut.escape_debug())
}

fn bool_parse(text: &str) -> Option<Value> {
    match text {
        "true" | "t" => Some(Value::Bool(true)),
        "false" | "f" => Some(Value::Bool(false)),
        _ => None,
    }
}

/// Digits beyond the scale must be zeros: nothing is rounded.
fn decimal_parse(text: &str, scale: u8) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let mut value: i128 = 0;
    let kept = fraction.bytes().chain(std::iter::repeat(b'0')).take(usize::from(scale));
    for digit in whole.bytes().chain(kept) {
        value = value.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
    }
    if fraction.bytes().skip(usize::from(scale)).any(|digit| digit != b'0') {
        return None;
    }
    Some(Value::Decimal(if negative { -value } else { value }))
}

fn text_parse(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let mut characters = after.chars();
        match characters.next()? {
            '\\' => out.push('\\'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'u' => {
                let (hex, after) = characters.as_str().strip_prefix('{')?.split_once('}')?;
                if hex.starts_with('+') {
                    return None;
                }
                out.push(char::from_u32(u32::from_str_radix(hex, 16).ok()?)?);
                characters = after.chars();
            }
            _ => return None,
        }
        rest = characters.as_str();
    }
    out.push_str(rest);
    Some(out)
}

fn bytea_parse(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    pairs.iter().map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8)).collect()
}

fn date_parse(text: &str) -> Option<Value> {
    let date: Date = text.parse().ok()?;
    // A date with a time is an instant, not a date.
    if text.contains([':', 'T', 't', ' ']) {
        return None;
    }
    let days = EPOCH.until(date).ok()?.get_days();
    Some(Value::Date(days))
}

fn timestamp_parse(text: &str) -> Option<Value> {
    let timestamp: Timestamp = text.parse().ok()?;
    if timestamp.as_nanosecond() % 1000 != 0 {
        return None;
    }
    Some(Value::Timestamptz(timestamp.as_microsecond()))
}
