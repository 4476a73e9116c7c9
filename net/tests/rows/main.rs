//! Keys, rows, patches, additions, values as text and table definitions, against models.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod add;
mod fuzz;
mod generate;
mod key;
mod patch;
mod row;
mod schema;
mod value_text;
