//! The shells: threads that move completions into the cores and their effects onto rings.
//!
//! Nothing here decides about data. [`format()`] lays out a node's files, [`start()`] recovers
//! the log, starts the threads and runs until the process is told to stop.

mod apply;
mod board;
mod core_loop;
mod error;
mod files;
mod format;
mod inbound;
mod log_shell;
mod memory;
mod outbox;
mod peer_plan;
mod peers;
mod published;
mod reader;
mod recover;
mod repair;
mod shard_shell;
mod start;
mod status;

#[cfg(test)]
mod shard_shell_tests;

pub use error::NodeError;
pub use format::{FormatReport, format};
pub use start::{Ready, RunOptions, start};
