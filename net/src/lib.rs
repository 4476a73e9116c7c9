//! Frames, messages, data types with their encodings, and the client library.
//!
//! This crate knows how things look on the wire and in a row. It never knows what a transaction
//! does to stored data.

pub mod add;
pub mod client;
pub mod frame;
pub mod ids;
pub mod key;
pub mod layout;
pub mod limits;
pub mod message;
pub mod patch;
pub mod peer;
pub mod row;
pub mod rows_fuzz;
pub mod schema;
pub mod schema_text;
pub mod value;
pub mod value_text;
