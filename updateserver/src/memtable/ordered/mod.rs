//! The ordered index of a slice: a B+tree over row heads, written by the slice's owner and read
//! by any thread without locks.
//!
//! An entry is eight bytes of the key and the row's address. Which eight bytes is a matter of the
//! node: all keys between a node's fences share what the fences share, so a node whose entries
//! tie leaves that out. Ties that remain are resolved through the rows' keys.

mod cursor;
mod node;
mod tree;

#[cfg(test)]
mod tests;

pub use cursor::{OrderedCursor, OrderedReader};
pub(super) use tree::OrderedTree;
