//! Frames, messages, data types with their encodings, and the client library.
//!
//! This crate knows how things look on the wire and in a row. It never knows what a transaction
//! does to stored data.

pub mod client;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod message;
pub mod schema;
