//! The update server: takes all writes into memory, logs them, and answers when they are durable.

pub mod catalog;
pub mod config;
pub mod log;
pub mod memtable;
pub mod node;
pub mod peer_book;
pub mod quorum;
pub mod redo;
pub mod root;
pub mod session;
pub mod shard;
