//! The update server: takes all writes into memory, logs them, and answers when they are durable.

pub mod redo;
pub mod session;
