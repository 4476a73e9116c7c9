//! Keys, rows, patches, additions, values as text and table definitions, against models.

mod add;
mod fuzz;
mod generate;
mod key;
mod patch;
mod row;
mod schema;
mod value_text;
