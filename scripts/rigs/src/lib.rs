//! Real nodes on a file system that fails on demand: power cuts, errors, torn writes, slow and
//! full disks, flipped bits. Under a load whose every acknowledgement is kept and held against
//! what is there afterwards.
//!
//! [`disk`] decides what fails, [`sectors`] keeps what was written and not flushed; neither does
//! I/O. [`file_system`] passes everything else on to a directory. [`mount`] puts it into the tree
//! and takes it out again however the process ends. [`rigs`] use it.

pub mod disk;
pub mod error;
pub mod file_system;
pub mod load;
pub mod mount;
pub mod order;
pub mod rigs;
pub mod sectors;

pub use error::RigError;
